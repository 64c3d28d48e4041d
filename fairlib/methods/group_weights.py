"""Weights of each sample's loss by its groups: uniform, inverse frequency and group DRO.

These are what Fair Bayesian Perturbation (`methods.perturbation`) is compared with. Fine-tuning
knows every one of them by the protocol `SampleWeights`; methods of one seed see the same batches,
time steps and noises.

Groups are integer codes `[N, A]`, one column an attribute, as `cohorts.tables.group_codes`
gives them; `sizes` says how many values each attribute has. Where all values stand in one row
(sigma, group means), attributes follow one another: with sizes (3, 2, 2) column 3 is the first
value of the second attribute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fairlib.errors import DataError, SettingsError, WeightsError

if TYPE_CHECKING:
    import pandas as pd

Over = Literal["attributes", "intersections"]


class SampleWeights(Protocol):
    """Weights of the loss of each sample, and what they learn from losses. Fine-tuning knows
    nothing else of a method.

    sizes: number of values of each attribute. observes: which losses `observe` is to be given,
    those of the training batch after every step, or those of a fixed probe after every step that
    measures it.
    """

    sizes: tuple[int, ...]
    observes: Literal["batch", "probe"]

    def weights(self, groups: Tensor, step: int) -> Tensor:
        """Weights, float64 [B] on the CPU, of samples with codes `groups` [B, A] in the 0-based
        `step`; changes nothing.
        """

    def observe(self, losses: Tensor, groups: Tensor, step: int) -> None:
        """Take note of the unweighted losses [B] that followed the 0-based `step`.

        Several processes gather them first.
        """

    def sigma(self, step: int) -> Tensor | None:
        """Standard deviation of the noise of each value, float64 [sum of sizes]; None for weights
        without noise.
        """

    def state_dict(self) -> dict[str, Tensor | int | float]:
        """Everything that `observe` has changed: tensors and plain numbers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave (numbers may be 0-d tensors).

        Raises `WeightsError` on another arm's state.
        """


def checked_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return `sizes` as a tuple. Raises `SettingsError` when there is none, or one below 1."""
    counts = tuple(int(size) for size in sizes)
    if not counts or min(counts) < 1:
        raise SettingsError(f"sizes {counts}: give one number of at least 1 for each attribute")
    return counts


def checked_groups(groups: Tensor | ArrayLike, sizes: tuple[int, ...]) -> Tensor:
    """Return codes as int64 `[B, A]` on the CPU.

    Raises `DataError` when a column is missing or a code is outside its attribute.
    """
    rows = groups if isinstance(groups, Tensor) else np.asarray(groups)
    codes = torch.as_tensor(rows).detach().cpu()
    if codes.ndim != 2 or codes.shape[1] != len(sizes) or codes.is_floating_point():
        what = f"group codes of shape {tuple(codes.shape)} and type {codes.dtype}"
        raise DataError(f"{what}; expected integers [N, {len(sizes)}]")
    codes = codes.long()
    outside = (codes < 0) | (codes >= torch.tensor(sizes))
    if bool(outside.any()):
        row, column = outside.nonzero()[0].tolist()
        raise DataError(
            f"row {row} has code {int(codes[row, column])} in attribute {column}, which has "
            f"{sizes[column]} values "
            "from 0 on; leave rows of unknown groups out first, and say how many"
        )
    return codes


def offsets(sizes: tuple[int, ...]) -> Tensor:
    """Column at which each attribute starts in a row of all values, int64 [A]."""
    return torch.tensor((0, *sizes[:-1])).cumsum(0)


def group_means(losses: Tensor, groups: Tensor | ArrayLike, sizes: tuple[int, ...]) -> Tensor:
    """Mean loss of every value, float64 [sum of sizes]; NaN where `groups` [B, A] lacks it.
    `losses`: [B].
    """
    codes, losses = checked_groups(groups, sizes), losses.detach().cpu().double()
    if losses.shape != (len(codes),) or not bool(losses.isfinite().all()):
        what = f"losses of shape {tuple(losses.shape)} for {len(codes)} rows of groups"
        raise DataError(f"{what}; one finite loss a row is needed")
    columns = (codes + offsets(sizes)).flatten()
    total = torch.zeros(sum(sizes), dtype=torch.float64)
    sums = total.index_add(0, columns, losses.repeat_interleave(len(sizes)))
    return sums / total.index_add(0, columns, torch.ones(len(columns), dtype=torch.float64))


def attribute_gaps(means: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Highest less lowest group mean of each attribute, float64 [A]; NaN where a group is missing.
    `means`: `group_means`.
    """
    return torch.stack([part.max() - part.min() for part in means.split(list(sizes))])


def loss_gap(losses: Tensor, groups: Tensor | ArrayLike, sizes: tuple[int, ...]) -> float:
    """Sum over attributes of (highest less lowest group mean), an attribute that lacks a group
    counting 0 (as released).

    So a batch without its rarest group looks fairer than one with it. Of a batch in which every
    attribute lacks a group the released code makes an error; here its gap is 0.

    book/fairdiffusion.md, Eq. (eq-fbp).
    """
    return float(attribute_gaps(group_means(losses, groups, sizes), sizes).nan_to_num(0.0).sum())


def inverse_frequency(groups: pd.DataFrame, cap: float) -> np.ndarray:
    """Weight each row of `groups` (columns: what defines a group) by the inverse of its group's
    size.

    Returns float64 `[N]` of mean one. Without a cap every group that occurs has the same total
    weight. `cap` bounds a weight as a multiple of the mean, before the mean is set to one again, so
    that a handful of images cannot dominate.
    """
    weights = 1 / _sizes(groups)
    weights = np.minimum(weights / weights.mean(), cap)
    return weights / weights.mean()


def balancing_weights(prompts: Sequence[str], clip: float = 20) -> np.ndarray:
    """Sampling weight of each image, float64 [N]: min(1 / count of its full prompt, 1 / (9 *
    clip)).

    Inverse frequency, capped so that a class of fewer than 9 * clip images is not drawn beyond
    that (Skorupko et al., arXiv 2403.19508). The paper's code takes clip 20 in training and 5 in
    generation.
    """
    import pandas as pd

    if clip <= 0:
        paper = "the paper takes 20 in training, 5 in generation"
        raise SettingsError(f"clip {clip}: must be positive; {paper}")
    return np.minimum(1 / _sizes(pd.DataFrame({"prompt": list(prompts)})), 1 / (9 * clip))


def _sizes(groups: pd.DataFrame) -> np.ndarray:
    """The size of each row's group."""
    names = list(groups.columns)
    grouped = groups.groupby(names, dropna=False, observed=True)[names[0]]
    return grouped.transform("size").to_numpy()


def require_keys(state: Mapping[str, Any], expected: Sequence[str], name: str) -> None:
    """Raise `WeightsError` unless `state` has exactly the keys `expected`."""
    differing = sorted(set(state) ^ set(expected))
    if differing:
        raise WeightsError(
            f"the saved state is not one of {name}: {differing[0]!r} is "
            f"{'missing' if differing[0] in expected else 'unknown'}; "
            "resume with the arm that wrote it, or start afresh"
        )


class Uniform:
    """Weight one for every sample. `sizes` (values of each attribute) serve the reports alone."""

    observes: Literal["batch", "probe"] = "batch"

    def __init__(self, sizes: Sequence[int]):
        self.sizes = checked_sizes(sizes)

    def weights(self, groups: Tensor, step: int) -> Tensor:
        """Ones, float64 `[B]`."""
        return torch.ones(len(checked_groups(groups, self.sizes)), dtype=torch.float64)

    def observe(self, losses: Tensor, groups: Tensor, step: int) -> None:
        """Learn nothing."""

    def sigma(self, step: int) -> Tensor | None:
        """None: there is no noise."""
        return None

    def state_dict(self) -> dict[str, Tensor | int | float]:
        """Nothing: `observe` changes nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `WeightsError` when `state` is that of another method."""
        require_keys(state, (), type(self).__name__)


class InverseFrequency(Uniform):
    """Weights that give every group of the training set the same total, mean one over that set.

    group_codes: `[N, A]`, of the training set. over: "attributes" takes the mean over attributes of
    N / (K_a n_a,g), so each attribute is balanced separately; "intersections" takes N / (K
    n_cell) over the K cells that occur. cap: the most a weight may be as a multiple of the mean,
    before the mean is set to one again (see `inverse_frequency`).
    """

    def __init__(
        self,
        group_codes: Tensor | ArrayLike,
        sizes: Sequence[int],
        over: Over = "attributes",
        cap: float = math.inf,
    ):
        import pandas as pd

        super().__init__(sizes)
        _check_over(over)
        if not cap >= 1:
            raise SettingsError(f"cap is {cap}; expected at least 1, as a multiple of the mean")
        codes = checked_groups(group_codes, self.sizes)
        table = pd.DataFrame(codes.numpy())
        parts = [table[[name]] for name in table] if over == "attributes" else [table]
        each = torch.stack([torch.from_numpy(inverse_frequency(part, cap)) for part in parts])
        self._of_cell = torch.full((math.prod(self.sizes),), math.nan, dtype=torch.float64)
        self._of_cell[_cell(codes, self.sizes)] = each.mean(0)

    def weights(self, groups: Tensor, step: int) -> Tensor:
        """Weights, float64 `[B]`.

        Raises `DataError` for a combination of groups that the training set does not have.
        """
        codes = checked_groups(groups, self.sizes)
        weights = self._of_cell[_cell(codes, self.sizes)]
        if bool(weights.isnan().any()):
            row = int(weights.isnan().nonzero()[0])
            raise DataError(f"row {row}: groups {codes[row].tolist()} are not in the training set")
        return weights


class GroupDRO(Uniform):
    """Group distributionally robust optimisation (Sagawa et al. 2020, algorithm 1), adapted to the
    loss of a denoiser.

        q_g <- q_g exp(rate * mean loss of g in the batch), normalised
        weight of a sample of group g: q_g / p_g

    p_g is the share of g in `group_codes` `[N, A]` of the training set: importance weighting in
    place of drawing groups evenly, so that mean_i w_i loss_i has expectation sum_g q_g E[loss | g]
    and the weights have mean one. A group that the batch lacks takes the batch's mean loss (in the
    published code it takes 0, which lets rare groups fade as all losses are positive). The weights
    of a step rest on the losses before it. over: "attributes" runs one q for each attribute and
    averages the weights, "intersections" one over the cells that occur. Starts as
    `InverseFrequency`, and stays it at rate 0.
    rate: 0.01 is published; the loss of a denoiser varies with the time step far more than with the
    group, so a high rate follows noise.
    """

    def __init__(
        self,
        group_codes: Tensor | ArrayLike,
        sizes: Sequence[int],
        over: Over = "attributes",
        rate: float = 0.01,
    ):
        super().__init__(sizes)
        _check_over(over)
        if not 0 <= rate < math.inf:
            raise SettingsError(f"rate of group DRO is {rate}; expected a number of at least 0")
        self.over, self.rate = over, rate
        self._cells = self.sizes if over == "attributes" else (math.prod(self.sizes),)
        codes = self._codes(group_codes)
        columns = (codes + offsets(self._cells)).flatten()
        counts = torch.bincount(columns, minlength=sum(self._cells)).double()
        self.shares = counts / len(codes)
        self.logits = torch.where(counts > 0, 0.0, -math.inf).double()

    @property
    def probabilities(self) -> Tensor:
        """q: float64 [sum of sizes], or [product of sizes] over intersections (first attribute
        slowest); they sum to one for each attribute and are zero for groups without training data.
        """
        return torch.cat([part.softmax(0) for part in self.logits.split(list(self._cells))])

    def weights(self, groups: Tensor, step: int) -> Tensor:
        """Weights, float64 `[B]`. Raises `DataError` for a group that the training set lacks."""
        columns = self._codes(groups) + offsets(self._cells)
        if bool((self.shares[columns] == 0).any()):
            raise DataError("a group of the batch is not in the codes that group DRO was made of")
        return (self.probabilities / self.shares)[columns].mean(1)

    def observe(self, losses: Tensor, groups: Tensor, step: int) -> None:
        """Take one step of exponentiated gradient ascent from the losses `[B]` of the batch."""
        means = group_means(losses, self._codes(groups), self._cells)
        above = (means - losses.double().mean().item()).nan_to_num(0.0)
        self.logits = self.logits + self.rate * above

    def state_dict(self) -> dict[str, Tensor | int | float]:
        """The logarithms of q, up to a constant."""
        # saved files hold no infinity; empty groups are known by shares
        return {"logits": self.logits.nan_to_num(neginf=0.0)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `WeightsError` when `state` is that of another method."""
        require_keys(state, ("logits",), type(self).__name__)
        logits = torch.as_tensor(state["logits"]).detach().cpu().double()
        self.logits = logits.masked_fill(self.shares == 0, -math.inf)

    def _codes(self, groups: Tensor | ArrayLike) -> Tensor:
        codes = checked_groups(groups, self.sizes)
        return codes if self.over == "attributes" else _cell(codes, self.sizes)[:, None]


def _cell(codes: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Number of each row's combination of groups, int64 [N], the first attribute slowest."""
    return torch.as_tensor(np.ravel_multi_index(tuple(codes.numpy().T), sizes))


def _check_over(over: str) -> None:
    if over not in get_args(Over):
        raise SettingsError(f"over is {over!r}; expected 'attributes' or 'intersections'")
