"""Drawing, weighting and leaving out rows: one engine for every method that changes who is trained
on.

Inverse-frequency weights can scale a loss (reweighting) or decide how often a row is drawn
(resampling); a random subset leaves rows out. All of it is a function of tables and seeds; no
images, no networks. Source: Skorupko et al., arXiv 2403.19508, and its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fairlib.errors import DataError, SettingsError
from fairlib.models.training import FitSettings, batch_indices, generator_for

if TYPE_CHECKING:
    import pandas as pd


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
    that. The paper's code takes clip 20 in training and 5 in generation.
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


def draw_rows(weights: ArrayLike, count: int, seed: int, *keys: int) -> Tensor:
    """Draw `count` rows in proportion to `weights` `[N]`, with replacement; a function of (seed,
    keys).

    Raises `DataError` when a weight is negative or not finite, or all are zero.
    """
    chances = torch.tensor(np.array(weights, dtype=np.float64))
    usable = bool((chances.isfinite() & (chances >= 0)).all()) and float(chances.sum()) > 0
    if not usable:
        raise DataError(
            "sampling weights must be finite, at least 0 and not all 0; see balancing_weights"
        )
    return torch.multinomial(chances, count, replacement=True, generator=generator_for(seed, *keys))


def rows_of_step(
    settings: FitSettings, step: int, count: int, weights: ArrayLike | None = None
) -> Tensor:
    """Rows `[batch_size]` of the 0-based `step`, a function of (seed, step).

    Epochs of permutations of `count` rows, or with `weights` `[count]` draws in proportion.
    """
    if weights is None:
        return batch_indices(settings.seed, step, count, settings.batch_size)
    return draw_rows(weights, settings.batch_size, settings.seed, 12, step)


def random_subset(rng: np.random.Generator, values: ArrayLike, count: int) -> np.ndarray:
    """Draw `count` of `values` without replacement, in random order; fewer are the first of more.

    `values`: an array, or a number N for `0 .. N - 1`.
    """
    return rng.permutation(values)[:count]
