"""What Fair Bayesian Perturbation is held against: no weights, the same noise unsteered, fixed
weights, and group DRO.

All answer the protocol of `methods.sample_weights`, so arms of one seed see the same batches, time
steps and noises. Groups are those of single attributes by default, as in the perturbation, or their
intersections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fairlib.errors import DataError, SettingsError
from fairlib.methods.perturbation import NoisyWeights, PerturbationSettings
from fairlib.methods.sample_weights import (
    checked_groups,
    checked_sizes,
    group_means,
    offsets,
    require_keys,
)
from fairlib.methods.subgroups import balancing
from fairlib.models.training import generator_for

Over = Literal["attributes", "intersections"]


class Plain:
    """Weight one for everybody. `sizes` (values of each attribute) serve the reports alone."""

    observes = "batch"

    def __init__(self, sizes: Sequence[int]):
        self.sizes = checked_sizes(sizes)

    def weights(self, groups, step: int) -> Tensor:
        return torch.ones(len(checked_groups(groups, self.sizes)), dtype=torch.float64)

    def observe(self, losses: Tensor, groups, step: int) -> None:
        """Learns nothing."""

    def sigma(self, step: int) -> None:
        return None

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        require_keys(state, (), type(self).__name__)


class RandomSigma(NoisyWeights):
    """The perturbation without its optimiser: candidates are drawn from U(0, 1)^d, all else is the
    same.

    Same form, same noise xi at the same seed, same first window, same drift; only the candidates of
    later windows differ, so the difference to `FairBayesianPerturbation` is what the optimiser
    does. `fixed`: sigma of every group in every step instead, without drift; 1.0 is the authors'
    own ablation, normal noise of unit variance without an optimiser.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        settings: PerturbationSettings | None = None,
        fixed: float | None = None,
    ):
        super().__init__(sizes, settings)
        if fixed is not None and not 0 <= fixed < math.inf:
            raise SettingsError(
                f"fixed sigma is {fixed}; expected a standard deviation of at least 0"
            )
        self.fixed = fixed
        self.observes = "batch" if fixed is not None else self.observes

    def sigma(self, step: int) -> Tensor:
        return (
            super().sigma(step)
            if self.fixed is None
            else torch.full_like(self.candidate, self.fixed)
        )

    def observe(self, losses: Tensor, groups, step: int) -> None:
        """Draw a new candidate when the window is over; the losses do not matter."""
        if self.fixed is None and self._due(step):
            chance = generator_for(self.settings.seed, 26, step)
            self._choose(
                torch.rand(len(self.candidate), dtype=torch.float64, generator=chance), step
            )


class InverseFrequency(Plain):
    """Weights that give every group of the training set the same total, mean one over that set.

    group_codes: [N, A], of the training set. over: "attributes" takes the mean over the attributes
    of N / (K_a n_a,g), so each attribute is balanced for itself; "intersections" takes N / (K
    n_cell) over the K cells that occur. cap: the most a weight may be as a multiple of the mean,
    before the mean is set to one again (see `methods.subgroups.balancing`).
    """

    def __init__(
        self, group_codes, sizes: Sequence[int], over: Over = "attributes", cap: float = math.inf
    ):
        import pandas as pd

        super().__init__(sizes)
        _check_over(over)
        if not cap >= 1:
            raise SettingsError(
                f"cap is {cap}; a weight is at most cap times the mean, so expected at least 1"
            )
        codes = checked_groups(group_codes, self.sizes)
        table = pd.DataFrame(codes.numpy())
        parts = [table[[name]] for name in table] if over == "attributes" else [table]
        found = torch.stack([torch.from_numpy(balancing(part, cap)) for part in parts]).mean(0)
        self._of_cell = torch.full((math.prod(self.sizes),), math.nan, dtype=torch.float64)
        self._of_cell[_cell(codes, self.sizes)] = found

    def weights(self, groups, step: int) -> Tensor:
        """Raises `DataError` for a combination of groups that the training set has not."""
        codes = checked_groups(groups, self.sizes)
        found = self._of_cell[_cell(codes, self.sizes)]
        if bool(found.isnan().any()):
            row = int(found.isnan().nonzero()[0])
            raise DataError(
                f"groups {codes[row].tolist()} of row {row} do not occur in the codes that the "
                "weights were made of"
            )
        return found


class GroupDRO:
    """Group distributionally robust optimisation (Sagawa et al. 2020, algorithm 1), adapted to the
    loss of a denoiser.

        q_g <- q_g exp(rate * mean loss of g in the batch), normalised;   weight of a sample of
        group g: q_g / p_g

    p_g is the share of g in `group_codes` [N, A] of the training set: importance weighting in place
    of drawing groups evenly, so that mean_i w_i loss_i has expectation sum_g q_g E[loss | g] and
    the weights have mean one. A group that the batch lacks takes the batch's mean loss (in the
    published code it takes 0, which lets rare groups fade as all losses are positive). The weights
    of a step rest on the losses before it. over: "attributes" runs one q for each attribute and
    averages the weights, "intersections" one over the cells that occur. Starts as
    `InverseFrequency`, and stays it at rate 0.
    rate: 0.01 is published; the loss of a denoiser varies with the time step far more than with the
    group, so a high rate follows noise.
    """

    observes = "batch"

    def __init__(
        self, group_codes, sizes: Sequence[int], over: Over = "attributes", rate: float = 0.01
    ):
        self.sizes, self.over = checked_sizes(sizes), over
        _check_over(over)
        if not 0 <= rate < math.inf:
            raise SettingsError(f"rate of group DRO is {rate}; expected a number of at least 0")
        self.rate = rate
        self._cells = self.sizes if over == "attributes" else (math.prod(self.sizes),)
        codes = self._codes(group_codes)
        counts = torch.bincount(
            (codes + offsets(self._cells)).flatten(), minlength=sum(self._cells)
        ).double()
        self.shares = counts / len(codes)
        self.logits = torch.where(counts > 0, 0.0, -math.inf).double()

    @property
    def probabilities(self) -> Tensor:
        """q: float64 [sum of sizes], or [product of sizes] over intersections (first attribute
        slowest); one in all for each attribute, zero where the training set has nobody.
        """
        return torch.cat([part.softmax(0) for part in self.logits.split(list(self._cells))])

    def weights(self, groups, step: int) -> Tensor:
        """Raises `DataError` for a group that the training set has not."""
        columns = self._codes(groups) + offsets(self._cells)
        if bool((self.shares[columns] == 0).any()):
            raise DataError(
                "a group of the batch does not occur in the codes that group DRO was made of"
            )
        return (self.probabilities / self.shares)[columns].mean(1)

    def observe(self, losses: Tensor, groups, step: int) -> None:
        """One step of exponentiated gradient ascent from the losses [B] of the training batch."""
        means = group_means(losses, self._codes(groups), self._cells)
        self.logits = self.logits + self.rate * (means - losses.double().mean().item()).nan_to_num(
            0.0
        )

    def sigma(self, step: int) -> None:
        return None

    def state_dict(self) -> dict:
        # saved files hold no infinity; empty groups are known by shares
        return {"logits": self.logits.nan_to_num(neginf=0.0)}

    def load_state_dict(self, state: dict) -> None:
        """Raises `WeightsError` when `state` is that of another arm."""
        require_keys(state, ("logits",), type(self).__name__)
        self.logits = (
            state["logits"].detach().cpu().double().masked_fill(self.shares == 0, -math.inf)
        )

    def _codes(self, groups) -> Tensor:
        codes = checked_groups(groups, self.sizes)
        return codes if self.over == "attributes" else _cell(codes, self.sizes)[:, None]


def _cell(codes: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Number of each row's combination of groups, int64 [N], the first attribute slowest."""
    found = torch.zeros(len(codes), dtype=torch.int64)
    for column, size in enumerate(sizes):
        found = found * size + codes[:, column]
    return found


def _check_over(over: str) -> None:
    if over not in ("attributes", "intersections"):
        raise SettingsError(f"over is {over!r}; expected 'attributes' or 'intersections'")
