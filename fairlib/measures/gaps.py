"""Gaps between the share of each prompt and its target, and what chance alone makes of them.

Shares are corrected by Rogan and Gladen, and readings and calibration sets are tables as in
`measures.shares`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import binom

from fairlib.errors import DataError
from fairlib.measures.intervals import Interval, Labels, Rng, Sample, bootstrap, check_defined
from fairlib.measures.shares import (
    BY,
    CalibrationSet,
    Evaluator,
    Numbers,
    Part,
    Tables,
    check_probabilities,
    checked_targets,
    class_accuracies,
    each_part,
    rogan_gladen,
)


@dataclass(frozen=True)
class Gap:
    """Mean over prompts of |share - target|.

    mean: with a 95 % interval; floor: the mean that a generator exactly on target would show at
    this number of images; beyond_chance: root mean square gap with the noise of sampling taken out,
    at least the noise-free mean gap; prompts: one row a prompt with `prompt, n, target, raw, share,
    low, high, gap, floor`.
    """

    mean: Interval
    floor: float
    beyond_chance: float
    prompts: pd.DataFrame


def per_prompt_gap(
    p_female: ArrayLike,
    prompts: ArrayLike,
    target: float | dict[str, float],
    calibration: CalibrationSet,
    rng: Rng,
    replicates: int = 1000,
    strata: Labels = None,
) -> Gap:
    """The mean over prompts of the distance between female share and target.

    p_female: [N] in [0, 1]; prompts: [N] labels; target: one share, or `{prompt: share}`. Shares
    are corrected (Rogan and Gladen), by `strata` [N] of which each prompt lies in one. Images are
    drawn again within each prompt, the calibration set by subject. A mean of absolute values is
    biased upward by noise, and its bootstrap twice; so the low end is reflected, and zero where
    chance alone could make the mean, and `floor` is given beside it.

    Raises `DataError` as `corrected_share` does: on an evaluator no better than chance on the
    calibration set, or in more than 5 % of the bootstrap replicates.
    """
    check_probabilities(p_female)
    names, codes = np.unique(np.asarray(prompts), return_inverse=True)
    targets, count = checked_targets(target, names), np.bincount(codes)
    read = (np.asarray(p_female) > calibration.threshold).astype(float)
    images = Sample(read, codes, strata=codes)
    of_image, labelled = calibration.matched(strata, len(codes))
    place = np.zeros(len(names), int)  # the stratum of each prompt
    place[codes] = of_image
    if (place[codes] != of_image).any():
        raise DataError("a prompt lies in two strata; give each prompt images of one")

    def rates(
        labelled_p: np.ndarray, truth: np.ndarray, labelled_codes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        read = labelled_p > calibration.threshold
        a_f, a_m = class_accuracies(read, truth, labelled_codes, place.max() + 1)
        return a_f[place], a_m[place]

    def corrected(read: np.ndarray, code: np.ndarray, *labelled: np.ndarray) -> np.ndarray:
        a_f, a_m = rates(*labelled)
        usable = a_f + a_m > 1
        shares = np.bincount(code, read) / np.bincount(code)
        return np.where(usable, rogan_gladen(shares, *np.where(usable, (a_f, a_m), 1)), np.nan)

    accuracies = rates(*labelled.arrays)
    raw = np.bincount(codes, read) / count
    share = rogan_gladen(raw, *accuracies)
    draws = bootstrap(corrected, [images, labelled], rng, replicates)
    check_defined(draws)
    low, high = np.nanquantile(draws, [0.025, 0.975], axis=0)
    floors = [sampling_floor(*row) for row in zip(targets, count, *accuracies, strict=True)]
    columns = {"prompt": names, "n": count, "target": targets, "raw": raw, "share": share}
    gaps = {"low": low, "high": high, "gap": np.abs(share - targets), "floor": floors}
    excess = beyond_chance(raw, count, targets, *accuracies)
    mean = _mean_gap(draws, share, targets)
    return Gap(mean, float(np.mean(floors)), excess, pd.DataFrame(columns | gaps))


def sampling_floor(target: float, n: int, a_f: float = 1.0, a_m: float = 1.0) -> float:
    """E|corrected share - target| when the true share is `target` and `n` images are read: an exact
    binomial sum.

    book/fairness.md, Eq. (eq-read).
    """
    read = a_f * target + (1 - a_m) * (1 - target)
    counts = np.arange(n + 1)
    return float(binom.pmf(counts, n, read) @ np.abs(rogan_gladen(counts / n, a_f, a_m) - target))


def beyond_chance(
    raw: ArrayLike, n: ArrayLike, target: Numbers, a_f: Numbers = 1.0, a_m: Numbers = 1.0
) -> float:
    """Root of the mean over prompts of (share - target)^2 less its sampling variance; zero where
    chance explains all.

    raw, n, target: [prompts]. The mean square is unbiased, and a root mean square is never below
    the mean of |gap|.
    """
    raw, n = np.asarray(raw), np.asarray(n)
    gap = (raw + a_m - 1) / (a_f + a_m - 1) - target
    noise = raw * (1 - raw) / np.maximum(n - 1, 1) / (a_f + a_m - 1) ** 2
    return float(np.sqrt(max(0.0, np.mean(gap**2 - noise))))


def _mean_gap(draws: np.ndarray, share: np.ndarray, targets: np.ndarray) -> Interval:
    """Interval of the mean gap: percentile above; below reflected, and zero where noise alone
    reaches as far.
    """
    estimate = float(np.abs(share - targets).mean())
    high = float(np.nanquantile(np.abs(draws - targets).mean(1), 0.975))
    chance = np.nanquantile(np.abs(draws - share).mean(1), 0.975)
    return Interval(estimate, 0.0 if estimate <= chance else max(0.0, 2 * estimate - high), high)


def _gap(part: Part, target: float | dict[str, float], rng: Rng, replicates: int) -> Gap:
    prompts = part.images.prompt.to_numpy()
    return per_prompt_gap(part.p, prompts, target, part.calibration, rng, replicates, part.strata)


def gap_table(
    readings: pd.DataFrame,
    calibration: Tables,
    evaluators: Sequence[Evaluator],
    target: float | dict[str, float],
    rng: Rng,
    by: Sequence[str] = BY,
    replicates: int = 500,
) -> pd.DataFrame:
    """Mean over prompts of |corrected share - target|.

    Columns: `*by, evaluator, n, unreadable, gap, gap_low, gap_high, floor, beyond_chance`.
    target: one share, or `{prompt: share}`. `floor` is what chance alone makes of a generator on
    target. Other arguments as in `share_table`.
    """
    rows = []
    for part in each_part(readings, calibration, evaluators, by):
        gap = _gap(part, target, rng, replicates)
        chance = {"floor": gap.floor, "beyond_chance": gap.beyond_chance}
        rows.append(part.cells | gap.mean.columns("gap") | chance)
    return pd.DataFrame(rows)


def prompt_table(
    readings: pd.DataFrame,
    calibration: Tables,
    evaluators: Sequence[Evaluator],
    target: float | dict[str, float],
    rng: Rng,
    by: Sequence[str] = ("arm",),
    replicates: int = 500,
) -> pd.DataFrame:
    """Corrected share of every prompt: `*by, evaluator` and the columns of `Gap.prompts`."""
    tables = []
    for part in each_part(readings, calibration, evaluators, by):
        keys = {name: part.cells[name] for name in (*by, "evaluator")}
        tables.append(_gap(part, target, rng, replicates).prompts.assign(**keys))
    table = pd.concat(tables, ignore_index=True)
    return table[[*by, "evaluator", *table.columns.drop([*by, "evaluator"])]]
