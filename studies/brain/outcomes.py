"""The outcomes of the comparison, from readings of every image and of the calibration sets: what
`plan.md` defines, with intervals that draw seeds, images and calibration subjects together.

Arms of one seed share their noises, unless they choose among more, so each draw takes the same
images of every arm: differences between arms are paired. An evaluator's error rates are counted on
one calibration set, whose subjects are drawn once for all arms and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fairlib.errors import DataError
from fairlib.measures.intervals import Interval

PRIMARY = "radiology"
UNTUNED = "untuned"
THRESHOLD = 0.5
PLANNED = 0.04  # difference of distances that the plan wants seen


@dataclass(frozen=True)
class Draws:
    """What one resampling takes: how often each seed [B, S], image [B, S, I] and calibration image
    [B, C]; the first draw takes everything once and gives the estimate.
    """

    seeds: np.ndarray
    images: np.ndarray
    calibration: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Readings of several arms at the same seeds and noises by one evaluator, as arrays.

    arms: names [A]; seeds: [S]; p: [A, S, I] in [0, 1]; extent: [A, S, I] mm; prompts: [I] codes;
    known: [S, C] readings of the calibration set; female: [C]; known_extent: [C] mm.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    p: np.ndarray
    extent: np.ndarray
    prompts: np.ndarray
    known: np.ndarray
    female: np.ndarray
    known_extent: np.ndarray
    subjects: np.ndarray

    def place(self, arm: str) -> int:
        """The row of an arm."""
        return self.arms.index(arm)

    def draws(self, replicates: int, rng: np.random.Generator) -> Draws:
        """Bootstrap counts: seeds with replacement, images within prompt, calibration subjects
        within sex.
        """
        shape = (replicates + 1, len(self.seeds))
        images = np.ones((*shape, len(self.prompts)), dtype=np.float32)
        for code in np.unique(self.prompts):
            rows = np.flatnonzero(self.prompts == code)
            counts = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=shape)
            images[..., rows] = counts
        images[0] = 1
        seeds = rng.multinomial(shape[1], np.full(shape[1], 1 / shape[1]), size=shape[0])
        seeds[0] = 1
        return Draws(seeds.astype(float), images, self._subject_counts(shape[0], rng))

    def _subject_counts(self, count: int, rng: np.random.Generator) -> np.ndarray:
        names, codes = np.unique(self.subjects, return_inverse=True)
        kinds = np.full(len(names), -1)
        kinds[codes] = self.female
        taken = np.zeros((count, len(names)), dtype=np.float32)
        for kind in np.unique(kinds):
            rows = np.flatnonzero(kinds == kind)
            chances = np.full(len(rows), 1 / len(rows))
            taken[:, rows] = rng.multinomial(len(rows), chances, size=count)
        taken[0] = 1
        return taken[:, codes]


def compare(
    readings: pd.DataFrame,
    calibration: pd.DataFrame,
    column: str,
    arms: Sequence[str],
    calibration_set: str = PRIMARY,
) -> Comparison:
    """Put the readings of `arms` by an evaluator into arrays, at the seeds that all of them have.

    column: the evaluator's, in both tables. Raises `DataError` when the arms share no seed or
    differ in their images, or where a reading is missing.
    """
    held = [set(readings.seed[readings.arm == arm]) for arm in arms]
    seeds = sorted(set.intersection(*held, set(calibration.seed)))
    if not seeds:
        raise DataError(f"arms {', '.join(arms)} share no seed with a calibration set; run them")
    cells = {key: part.sort_values("image") for key, part in readings.groupby(["arm", "seed"])}
    first = cells[arms[0], seeds[0]]
    for arm in arms:
        for seed in seeds:
            if cells[arm, seed].prompt.tolist() != first.prompt.tolist():
                raise DataError(f"arm {arm!r}, seed {seed}: other images than {arms[0]!r} has")
    columns = [column, "extent_mm"]
    values = [[cells[arm, seed][columns].to_numpy(float) for seed in seeds] for arm in arms]
    p, extent = np.moveaxis(np.array(values), -1, 0)
    chosen = calibration[(calibration["set"] == calibration_set) & calibration.seed.isin(seeds)]
    if np.isnan(p).any() or chosen[column].isna().any():
        where = f"arms {', '.join(arms)} and calibration set {calibration_set}"
        raise DataError(f"{column} did not read every image of {where}; run them again")
    known = [chosen[chosen.seed == seed] for seed in seeds]
    return Comparison(
        tuple(arms),
        tuple(seeds),
        p,
        extent,
        pd.factorize(first.prompt)[0],
        np.stack([part[column].to_numpy(float) for part in known]),
        (known[0].sex == "F").to_numpy(int),
        known[0].extent_mm.to_numpy(float),
        known[0].subject.to_numpy(str),
    )


def error_rates(data: Comparison, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """(a_F, a_M), each [B, S]: how often the evaluator is right on female and on male images; NaN
    in a draw in which it is no better than chance.

    Raises `DataError` when it is so on the calibration set itself.
    """
    read = (data.known > THRESHOLD).astype(np.float32)
    right = []
    for sex, good in ((1, read), (0, 1 - read)):
        rows = data.female == sex
        counts = draws.calibration[:, rows]
        right.append(counts @ good[:, rows].T / counts.sum(1, keepdims=True))
    useless = right[0] + right[1] <= 1
    if useless[0].any():
        raise DataError("an evaluator is no better than chance on its calibration set")
    return tuple(np.where(useless, np.nan, each) for each in right)  # type: ignore[return-value]


def is_useful(data: Comparison) -> bool:
    """Whether the evaluator is better than chance on its calibration set, at every seed."""
    read = data.known > THRESHOLD
    return bool((read[:, data.female == 1].mean(1) > read[:, data.female == 0].mean(1)).all())


def cell_shares(data: Comparison, draws: Draws) -> np.ndarray:
    """Corrected shares [B, A, S] of every arm and seed, not clipped."""
    a_f, a_m = error_rates(data, draws)
    read = np.nan_to_num((data.p > THRESHOLD).astype(np.float32))
    raw = np.einsum("asi,bsi->bas", read, draws.images) / draws.images.sum(2)[:, None]
    return (raw + (a_m - 1)[:, None]) / (a_f + a_m - 1)[:, None]


def shares(data: Comparison, draws: Draws) -> np.ndarray:
    """Corrected shares [B, A], mean over the drawn seeds."""
    return np.einsum("bas,bs->ba", cell_shares(data, draws), draws.seeds) / len(data.seeds)


def interval_of(values: np.ndarray) -> Interval:
    """The first draw as estimate with the 95 % percentile interval of the others; NaN where none is
    a number.
    """
    if np.isnan(values[1:]).all():
        return Interval(float(values[0]), np.nan, np.nan)
    return Interval(float(values[0]), *map(float, np.nanquantile(values[1:], [0.025, 0.975])))


def confirmation_ratio(
    measured: Comparison, tuning: Comparison, arm: str, draws: Draws, other: Draws
) -> Interval:
    """Corrected change of `arm` by an evaluator over that by its tuning classifier, both against
    the untuned model; the two share their draws of seeds and images.
    """
    moved = [
        each[:, data.place(arm)] - each[:, data.place(UNTUNED)]
        for data, each in ((measured, shares(measured, draws)), (tuning, shares(tuning, other)))
    ]
    nothing = np.full_like(moved[1], np.nan)  # where the tuning classifier reads no change
    return interval_of(np.divide(moved[0], moved[1], out=nothing, where=moved[1] != 0))


def gap_closed(data: Comparison, draws: Draws, arm: str, target: float) -> Interval:
    """Which part of the way from the untuned model's corrected share to the target `arm` goes."""
    found = shares(data, draws)
    before = found[:, data.place(UNTUNED)]
    return interval_of((found[:, data.place(arm)] - before) / (target - before))


def same_images(data: Comparison, draws: Draws, rng: np.random.Generator) -> Draws:
    """Draws for another evaluator or calibration set that take the same seeds and images."""
    return Draws(draws.seeds, draws.images, data._subject_counts(len(draws.seeds), rng))


def prompt_gap(
    data: Comparison, draws: Draws, arm: str, target: float, own: np.ndarray | None = None
) -> Interval:
    """Root mean square over prompts and seeds of (corrected share - target), less its expected
    sampling variance.

    own: [S, I], the readings by which an arm chose its images. They are then no independent draws,
    and their variance is that between neighbours in `own` (`neighbour_variance`).

    A bootstrap draw holds that variance and that of drawing the images again, and loses both.
    """
    a_f, a_m = error_rates(data, draws)
    slope = a_f + a_m - 1
    read = (data.p[data.place(arm)] > THRESHOLD).astype(np.float32)
    squares, noise = np.zeros_like(slope), np.zeros_like(slope)
    again = np.arange(len(slope))[:, None] > 0
    codes = np.unique(data.prompts)
    for code in codes:
        rows = data.prompts == code
        counts = draws.images[..., rows]
        raw = (counts * read[None, :, rows]).sum(2) / counts.sum(2)
        squares += ((raw + a_m - 1) / slope - target) ** 2 / len(codes)
        plain = read[:, rows].mean(1)
        drawn = plain * (1 - plain) / (rows.sum() - 1)
        made = drawn if own is None else neighbour_variance(read[:, rows], own[:, rows])
        noise += (made + again * drawn) / slope**2 / len(codes)
    mean = ((squares - noise) * draws.seeds).sum(1) / len(data.seeds)
    found = interval_of(mean)
    return Interval(
        *(float(np.sqrt(max(0.0, value))) for value in (found.estimate, found.low, found.high))
    )


def neighbour_variance(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Variance of the mean of `values` [S, N], each row chosen at even steps of `order` [S, N]:
    from successive differences, as for a systematic sample (Wolter, Introduction to Variance
    Estimation, 2007, chapter 8).
    """
    rows = np.take_along_axis(values, np.argsort(order, axis=1, kind="stable"), axis=1)
    count = values.shape[1]
    return (np.diff(rows, axis=1) ** 2).sum(1) / (2 * count * (count - 1))


def size_within(data: Comparison, draws: Draws, arm: str, sex: str) -> Interval:
    """Mean size of images classified as `sex` less that of calibration images classified so, in the
    standard deviations of calibration images of that sex.

    The calibration images are mixed in the arm's own corrected share: images classified as one sex
    hold misclassified ones of the other, the more the rarer that sex is.
    """
    p, extent = data.p[data.place(arm)], data.extent[data.place(arm)]
    mine = ((p > THRESHOLD) == (sex == "F")) & np.isfinite(extent)
    theirs = (data.known[0] > THRESHOLD) == (sex == "F")
    weight = draws.images * mine * draws.seeds[:, :, None]
    generated = (weight * np.nan_to_num(extent)).sum((1, 2)) / weight.sum((1, 2))
    share = np.clip(shares(data, draws)[:, [data.place(arm)]], 0, 1)
    female, male = ((data.female == code) / (data.female == code).sum() for code in (1, 0))
    counts = draws.calibration * theirs * (share * female + (1 - share) * male)
    real = counts @ np.nan_to_num(data.known_extent) / counts.sum(1)
    spread = np.nanstd(data.known_extent[data.female == (sex == "F")], ddof=1)
    return interval_of((generated - real) / spread)


def size_distance(data: Comparison, arm: str, target: float) -> tuple[float, float]:
    """Wasserstein-1 distance (mm) of brain sizes to the target's mixture of calibration images, and
    what a perfect generator would read at this number of images (mean of 200 draws).
    """
    known = data.known_extent
    weights = np.where(data.female == 1, target / data.female.sum(), 0)
    weights = np.where(data.female == 0, (1 - target) / (1 - data.female).sum(), weights)
    found = [
        stats.wasserstein_distance(sizes[np.isfinite(sizes)], known, None, weights)
        for sizes in data.extent[data.place(arm)]
    ]
    rng, count = np.random.default_rng(7), data.extent.shape[2]
    perfect = [
        stats.wasserstein_distance(rng.choice(known, count, p=weights), known, None, weights)
        for _ in range(200)
    ]
    return float(np.mean(found)), float(np.mean(perfect))


def contrasts(data: Comparison, target: float, default: str, others: Sequence[str]) -> pd.DataFrame:
    """Paired t tests over seeds of the distance of the share to the target, the default against
    each of `others`, with Holm's correction and the power for a true difference of `PLANNED`: one
    row each.
    """
    each = np.abs(seed_shares(data) - target)
    table = pd.DataFrame([paired(data, each, default, other) for other in others])
    return table.assign(p_holm=holm(table.p.to_numpy()))


def seed_shares(data: Comparison) -> np.ndarray:
    """Corrected shares [A, S] of every arm and seed."""
    return cell_shares(data, data.draws(0, np.random.default_rng(0)))[0]


def mean_of_runs(values: np.ndarray) -> Interval:
    """Mean of a value of each seed [S] with its 95 % t interval; NaN ends with one seed."""
    if len(values) < 2:
        return Interval(float(values.mean()), np.nan, np.nan)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return Interval(float(values.mean()), float(low), float(high))


def paired(data: Comparison, values: np.ndarray, one: str, other: str) -> dict[str, Any]:
    """Paired t test over seeds of `values` [A, S]: `one` less `other`."""
    difference = values[data.place(one)] - values[data.place(other)]
    mean, count = mean_of_runs(difference), len(difference)
    found = {"arm": one, "against": other, "seeds": count, "difference": mean.estimate}
    found |= {"low": mean.low, "high": mean.high, "p": stats.ttest_1samp(difference, 0).pvalue}
    return found | {"power": power(PLANNED, difference.std(ddof=1), count)}


def power(true: float, spread: float, seeds: int) -> float:
    """Chance that a paired t test (two-sided, 5 %) sees a true difference, where differences of
    single seeds have the standard deviation `spread`.
    """
    if spread == 0:
        return 1.0
    freedom, shift = seeds - 1, true / spread * np.sqrt(seeds)
    bound = stats.t.ppf(0.975, freedom)
    return float(stats.nct.sf(bound, freedom, shift) + stats.nct.cdf(-bound, freedom, shift))


def holm(p: np.ndarray) -> np.ndarray:
    """P values [K] of one family, corrected by Holm's step-down rule (1979)."""
    order = np.argsort(p)
    steps = np.minimum(1, np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1)))
    return steps[np.argsort(order)]
