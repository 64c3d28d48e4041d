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
from scipy.optimize import brentq
from scipy.stats import binom

from fairlib.errors import DataError
from fairlib.measures.intervals import Interval, Labels, Rng, Sample, bootstrap, check_defined
from fairlib.measures.shares import (
    CalibrationSet,
    Evaluator,
    Tables,
    check_probabilities,
    checked_targets,
    class_accuracies,
    each_part,
    rogan_gladen,
    unclipped,
)

TAILS = (0.035, 0.02)
"""Chances that the truth lies below and above the interval of a gap: the lower one is the larger,
since without gaps there is none above. Simulated, it covers 94 to 98 %.
"""


@dataclass(frozen=True)
class Gap:
    """Gaps over prompts, |share - target|.

    mean: of the observed gaps; floor: the mean that a generator exactly on target would show at
    this number of images; beyond_chance: root mean square gap with the noise of sampling taken
    out, and a 95 % interval that carries the calibration set's too; prompts: one row a prompt with
    `prompt, n, target, raw, share, low, high, gap, floor`.
    """

    mean: float
    floor: float
    beyond_chance: Interval
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
    """The distances between female share and target over prompts, and what chance makes of them.

    p_female: [N] in [0, 1]; prompts: [N] labels; target: one share, or `{prompt: share}`. Shares
    are corrected (Rogan and Gladen), by `strata` [N] of which each prompt lies in one. Images are
    drawn again within each prompt, the calibration set by subject. A mean of absolute values is
    biased upward by noise; so `floor` is given with it, and the interval is that of the root mean
    square without noise, see `beyond_chance`.

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
        certain = np.where(a_f + a_m > 1, a_f + a_m - 1, np.nan)
        return (np.bincount(code, read) / np.bincount(code) + a_m - 1) / certain

    accuracies = rates(*labelled.arrays)
    raw = np.bincount(codes, read) / count
    share = rogan_gladen(raw, *accuracies)
    draws = bootstrap(corrected, [images, labelled], rng, replicates)
    check_defined(draws)
    low, high = np.clip(np.nanquantile(draws, [0.025, 0.975], axis=0), 0, 1)
    floors = [sampling_floor(*row) for row in zip(targets, count, *accuracies, strict=True)]
    columns = {"prompt": names, "n": count, "target": targets, "raw": raw, "share": share}
    gaps = {"low": low, "high": high, "gap": np.abs(share - targets), "floor": floors}
    observed, certain = unclipped(raw, *accuracies), np.add(*accuracies) - 1
    variance = raw * (1 - raw) / np.maximum(count - 1, 1) / certain**2
    noise = draws[~np.isnan(draws).any(axis=1)] - observed
    excess, mean = beyond_chance(observed - targets, variance, noise), np.mean(gaps["gap"])
    return Gap(float(mean), float(np.mean(floors)), excess, pd.DataFrame(columns | gaps))


def sampling_floor(target: float, n: int, a_f: float = 1.0, a_m: float = 1.0) -> float:
    """E|corrected share - target| when the true share is `target` and `n` images are read: an exact
    binomial sum.
    """
    read = a_f * target + (1 - a_m) * (1 - target)
    counts = np.arange(n + 1)
    return float(binom.pmf(counts, n, read) @ np.abs(rogan_gladen(counts / n, a_f, a_m) - target))


def beyond_chance(gaps: np.ndarray, variance: np.ndarray, noise: np.ndarray) -> Interval:
    """Root mean square of the true gaps behind `gaps` [prompts], with a 95 % interval; `variance`
    [prompts]: of each gap by the sampling of images; `noise` [B, prompts]: bootstrap draws of
    images and calibration set, less what they were drawn from.

    Estimate: the root of the mean square less the mean variance, at least 0. Ends:
    the root mean squares at which as large, or as small, a mean square as the observed one has a
    chance of `TAILS` (an inverted test; Carpenter, Statistics in Medicine 1999). How much the mean
    square varies depends on where gaps and noise point together: for the low end the observed
    pattern of gaps is taken, for the high end that or equal gaps, whichever reaches further, since
    errors of the calibration set move all prompts alike.
    """
    square, noise_square = np.mean(gaps**2), np.mean(noise**2, axis=1)
    size = np.sqrt(square)
    most = 2 * size + 10 * np.sqrt(noise_square.mean())

    def end(quantile: float, pattern: np.ndarray) -> float:
        cross = 2 * noise @ pattern / len(gaps)

        def excess(true: float) -> float:
            drawn = true**2 + true * cross + noise_square
            return float(np.quantile(drawn, quantile) - square)

        return 0.0 if excess(0.0) >= 0 else float(brentq(excess, 0.0, most))

    equal = np.full(len(gaps), -1.0 if gaps.mean() < 0 else 1.0)
    pattern = gaps / size if size else equal
    estimate = float(np.sqrt(max(0.0, square - np.mean(variance))))
    high = max(end(TAILS[1], pattern), end(TAILS[1], equal))
    return Interval(estimate, end(1 - TAILS[0], pattern), high)


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
        prompts, known = part.images.prompt.to_numpy(), part.calibration
        gap = per_prompt_gap(part.p, prompts, target, known, rng, replicates, part.strata)
        tables.append(gap.prompts.assign(**keys))
    table = pd.concat(tables, ignore_index=True)
    return table[[*by, "evaluator", *table.columns.drop([*by, "evaluator"])]]
