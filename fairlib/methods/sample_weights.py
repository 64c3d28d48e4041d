"""One weight a sample: what every arm of the fine-tuning study must answer, and the group losses
they look at.

Groups are integer codes [N, A], one column an attribute, as `cohorts.fundus.group_codes` gives
them; `sizes` says how many values each attribute has. Where all values stand in one row (sigma,
group means), attributes follow one another: with sizes (3, 2, 2) column 3 is the first value of the
second attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fairlib.errors import DataError, SettingsError, WeightsError


class SampleWeights(Protocol):
    """Weights of the loss of each sample, and what they learn from losses. Fine-tuning knows
    nothing else of an arm.

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

    def load_state_dict(self, state: dict[str, Tensor | int | float]) -> None:
        """Take up what `state_dict` gave (numbers may be 0-d tensors).

        Raises `WeightsError` on another arm's state.
        """


def checked_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """`sizes` as a tuple of numbers. Raises `SettingsError` when there is none, or one below 1."""
    found = tuple(int(size) for size in sizes)
    if not found or min(found) < 1:
        raise SettingsError(
            f"sizes {found}: one number of values for each attribute is needed, each at least 1"
        )
    return found


def checked_groups(groups, sizes: tuple[int, ...]) -> Tensor:
    """Codes as int64 [B, A] on the CPU.

    Raises `DataError` when a column is missing or a code is outside its attribute.
    """
    codes = (
        torch.as_tensor(groups if isinstance(groups, Tensor) else np.asarray(groups)).detach().cpu()
    )
    if codes.ndim != 2 or codes.shape[1] != len(sizes) or codes.is_floating_point():
        raise DataError(
            f"group codes of shape {tuple(codes.shape)} and type {codes.dtype}; expected integers "
            f"[N, {len(sizes)}]"
        )
    codes = codes.long()
    odd = (codes < 0) | (codes >= torch.tensor(sizes))
    if bool(odd.any()):
        row, column = odd.nonzero()[0].tolist()
        raise DataError(
            f"row {row} has code {int(codes[row, column])} in attribute {column}, which has "
            f"{sizes[column]} values "
            "from 0 on; leave rows of unknown groups out first, and say how many"
        )
    return codes


def offsets(sizes: tuple[int, ...]) -> Tensor:
    """Column at which each attribute starts in a row of all values, int64 [A]."""
    return torch.tensor((0, *sizes[:-1])).cumsum(0)


def group_means(losses: Tensor, groups: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Mean loss of every value, float64 [sum of sizes]; NaN where `groups` [B, A] has nobody.
    `losses`: [B].
    """
    codes, losses = checked_groups(groups, sizes), losses.detach().cpu().double()
    if losses.shape != (len(codes),) or not bool(losses.isfinite().all()):
        raise DataError(
            f"losses of shape {tuple(losses.shape)} for {len(codes)} rows of groups; one finite "
            "loss a row is needed"
        )
    columns = (codes + offsets(sizes)).flatten()
    total = torch.zeros(sum(sizes), dtype=torch.float64)
    sums = total.index_add(0, columns, losses.repeat_interleave(len(sizes)))
    return sums / total.index_add(0, columns, torch.ones(len(columns), dtype=torch.float64))


def attribute_gaps(means: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Highest less lowest group mean of each attribute, float64 [A]; NaN where a group is missing.
    `means`: `group_means`.
    """
    return torch.stack([part.max() - part.min() for part in means.split(list(sizes))])


def loss_gap(losses: Tensor, groups: Tensor, sizes: tuple[int, ...]) -> float:
    """Sum over attributes of (highest less lowest group mean), an attribute that lacks a group
    counting 0 (as released).

    So a batch without its rarest group looks fairer than one with it. Of a batch in which every
    attribute lacks a group the released code makes an error; here its gap is 0.
    """
    return float(attribute_gaps(group_means(losses, groups, sizes), sizes).nan_to_num(0.0).sum())


def require_keys(state: dict, wanted: Sequence[str], name: str) -> None:
    """Raise `WeightsError` unless `state` has exactly the keys `wanted`."""
    odd = sorted(set(state) ^ set(wanted))
    if odd:
        raise WeightsError(
            f"the saved state is not one of {name}: {odd[0]!r} is "
            f"{'missing' if odd[0] in wanted else 'unknown'}; "
            "resume with the arm that wrote it, or start afresh"
        )
