"""The statistics chapter: what published tests and intervals do where the truth is known, and the
chapter as data for the engine (`python -m studies statistics` makes `results/statistics`).

    distances.csv   per-group Frechet distance and MMD of equally good generators, by group size
    groups.csv      equity-scaled AUC of a fair classifier, by number of groups
    null.csv        how often each comparison of two equal arms finds a difference
    worst.csv       coverage of three intervals for the worst group
    rare.csv        coverage of intervals for a share of 5 to 50 patients (exact, nothing drawn)
    study.json      settings, commit, packages, device

Three habits of the field are put to the test (Luo et al., arXiv 2412.20374, as released; others do
the same). A Frechet distance for every group, each from as many images as the group has. An
equity-scaled AUC compared between attributes with more and fewer groups. A paired t-test over the
replicates of one bootstrap: it asks whether the mean over B draws differs from zero, and with
enough draws it always does, since drawing again costs nothing and adds no patient.

Does the interval for the worst group hold what it says? Beside `measures.equity.worst_group` stand
the two intervals one meets in papers: the percentile bootstrap of the minimum over groups, and the
95 % interval of whichever group came out lowest, as if it had been named beforehand.

Nothing here needs data or weights. All figures come from one seed that was not used to find the
methods; each table has a random number generator of its own, so that one does not depend on the
length of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri
from scipy.stats import binom, ttest_1samp

from fairlib.errors import DataError, SettingsError
from fairlib.measures.distances import frechet, mmd
from fairlib.measures.equity import equity_scaled, logit_bounds, worst_auc, worst_share
from fairlib.measures.intervals import (
    Interval,
    clopper_pearson,
    counted,
    delong,
    draw_counts,
    jeffreys,
    pair_table,
    weighted_auc,
    wilson,
)
from fairlib.measures.intervals import auc as area
from fairlib.measures.paired import STATISTICS, PairedAreas, auc_differences, swap_p
from studies.engine.criteria import Criterion, Rule
from studies.engine.profiles import settings_from
from studies.engine.stage import Progress
from studies.engine.study import Source, Study, Table, Tables

# ---- statistics where nothing is to be found

LEVEL = 0.05  # of every test
PUBLISHED = "paired t-test over replicates"
BOOTSTRAP, SWAP = "paired bootstrap over patients", "arms swapped within patients"


def distance_by_size(
    rng: np.random.Generator,
    sizes: Sequence[int],
    worse: float = 0.25,
    dimensions: int = 64,
    repeats: int = 20,
    progress: Callable[[Iterable], Iterable] = iter,
) -> pd.DataFrame:
    """Distances of generated to real images, group by group, where every group's generator is
    perfect but one.

    Features are normal with variances 1, 1/2, ..., 1/`dimensions`. Groups have `sizes` images, real
    and generated; a further group of the largest size is generated worse: shifted by `worse`
    standard deviations in every direction. Columns: group ("as real" or "worse"), n, measure
    ("Frechet, own n", "Frechet, equal n", "MMD, own n", "MMD, equal n"; equal: the smallest size),
    and over `repeats`: mean, low, high (2.5 and 97.5 % quantiles).
    """
    scale, least, rows = 1 / np.sqrt(np.arange(1, dimensions + 1)), min(sizes), []
    groups = [*(("as real", int(n)) for n in sizes), ("worse", int(max(sizes)))]
    for _ in progress(range(repeats)):
        for group, n in groups:
            real, generated = rng.normal(size=(2, n, dimensions)) * scale
            generated = generated + worse * scale * (group == "worse")
            for name, count in {"own n": n, "equal n": least}.items():
                part = real[:count], generated[:count]
                for measure, distance in (("Frechet", frechet), ("MMD", mmd)):
                    rows.append((group, n, f"{measure}, {name}", distance(*part, n_min=2)))
    table = pd.DataFrame(rows, columns=["group", "n", "measure", "value"])
    grouped = table.groupby(["group", "n", "measure"], sort=False)["value"]
    return grouped.agg(
        mean="mean", low=lambda x: x.quantile(0.025), high=lambda x: x.quantile(0.975)
    ).reset_index()


def equity_by_groups(
    rng: np.random.Generator, subjects: int, counts: Sequence[int], repeats: int = 200
) -> pd.DataFrame:
    """Equity-scaled AUC of one classifier that treats all patients alike (true AUC 0.85), when
    `subjects` are put into groups at random.

    counts: numbers of groups. Columns, means over `repeats`: groups, n (patients a group), auc,
    equity_scaled, worst, max_min. Raises `DataError` when a group would have fewer than ten ill or
    healthy patients.
    """
    if subjects // (2 * max(counts)) < 10:
        raise DataError(
            f"{subjects} patients in {max(counts)} groups: fewer than ten ill or healthy in each; "
            "ask for fewer groups"
        )
    rows = []
    for _ in range(repeats):
        ill, healthy = rng.normal(size=(2, subjects // 2))
        ill = ill + separation(0.85)
        whole = float(area(ill, healthy))
        for count in counts:
            each = subjects // (2 * count)
            parts = area(*(side[: each * count].reshape(count, each) for side in (ill, healthy)))
            scaled, worst, gap = equity_scaled(whole, parts), parts.min(), np.ptp(parts)
            rows.append((count, 2 * each, whole, scaled, worst, gap))
    table = pd.DataFrame(rows, columns=["groups", "n", "auc", "equity_scaled", "worst", "max_min"])
    return table.groupby("groups", as_index=False).mean().astype({"n": int})


def separation(auc: ArrayLike) -> np.ndarray:
    """By how much normal scores of variance one must lie apart for this AUC."""
    return np.sqrt(2) * ndtri(auc)


def simulated_arms(
    rng: np.random.Generator, sizes: Sequence[int], areas: Sequence[float], shared: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two arms of the same quality on the same patients: label [N], scores [2, N], group [N].

    sizes, areas: patients and true AUC of each group (half of it ill). shared: the part of the
    scores' variance that lies in the patient and not in the arm, in [0, 1).
    """
    group = np.repeat(np.arange(len(sizes)), sizes)
    label = np.concatenate([np.arange(size) % 2 for size in sizes])
    apart = separation(np.asarray(areas, float))[group] * label
    patient = np.sqrt(shared) * rng.normal(size=len(group)) + apart
    return label, patient + np.sqrt(1 - shared) * rng.normal(size=(2, len(group))), group


def published_p(differences: np.ndarray) -> float:
    """The published test: a paired t-test over bootstrap replicates, from the differences [B] of
    the two arms.
    """
    return float(ttest_1samp(differences, 0.0).pvalue)


def published_rate(replicates: int) -> float:
    """How often the published test rejects a true null, to first order: 2 Phi(-z / sqrt(B)), z the
    normal quantile of `LEVEL`.

    The mean of B replicates lies at the observed difference, their spread is that difference's
    standard error s, and the test takes s / sqrt(B) for the error. With B = 100 it rejects at a
    fifth of a standard error.
    """
    return float(2 * ndtr(ndtri(LEVEL / 2) / np.sqrt(replicates)))


def null_rates(
    rng: np.random.Generator,
    sizes: Sequence[int],
    areas: Sequence[float],
    repeats: int = 1000,
    replicates: int = 400,
    published: Sequence[int] = (100, 1000, 5000),
    progress: Callable[[Iterable], Iterable] = iter,
) -> pd.DataFrame:
    """How often each comparison finds a difference between two arms that have none, over `repeats`
    simulated test sets.

    Columns: test, statistic, replicates, rejected, low, high (Wilson), expected (`published_rate`
    for the published test, else `LEVEL`), repeats. The published test is run on the AUC of
    all patients, ours on all of `paired.STATISTICS`.
    """
    keys = [(PUBLISHED, "auc", count) for count in published]
    keys += [(test, name, replicates) for test in (BOOTSTRAP, SWAP) for name in STATISTICS]
    rejections: dict[tuple, list[bool]] = {key: [] for key in keys}
    for _ in progress(range(repeats)):
        arms = PairedAreas(*simulated_arms(rng, sizes, areas))
        observed, drawn, swapped = auc_differences(arms, rng, replicates)
        ends = np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2], axis=0)
        for name, out, p in zip(
            STATISTICS, (ends[0] > 0) | (ends[1] < 0), swap_p(observed, swapped), strict=True
        ):
            rejections[BOOTSTRAP, name, replicates].append(out)
            rejections[SWAP, name, replicates].append(p <= LEVEL)
        many = arms.overall_differences(rng, max(published)) if published else np.empty(0)
        for count in published:
            rejections[PUBLISHED, "auc", count].append(published_p(many[:count]) <= LEVEL)
    return pd.DataFrame([_rate(key, rejected) for key, rejected in rejections.items()])


def _rate(key: tuple, rejected: list) -> dict:
    row = dict(zip(("test", "statistic", "replicates"), key, strict=True))
    expected = published_rate(row["replicates"]) if row["test"] == PUBLISHED else LEVEL
    proportion = _proportion("rejected", np.array(rejected))
    return row | proportion | {"expected": expected, "repeats": len(rejected)}


def _proportion(name: str, events: np.ndarray) -> dict[str, float]:
    """The proportion of events [N] (bool) with the ends of its Wilson interval: `name`, low,
    high.
    """
    low, high = wilson(events.sum(), len(events))
    return {name: float(events.mean()), "low": float(low), "high": float(high)}


# ---- coverage of intervals

Ends = tuple[np.ndarray, np.ndarray]  # of intervals
OURS, NAIVE, PICKED = "contenders", "bootstrap of the minimum", "interval of the lowest group"
RACE, RACE_SEX = (90, 150, 760), (51, 39, 86, 64, 433, 327)
"""Patients of a test set of 1,000 with the shares of the fundus phantom: Asian, Black, White; and
each as women, men.
"""


@dataclass(frozen=True)
class Setting:
    """One world: `metric` ("accuracy" or "auc"), patients of each group (`sizes`; half of them
    ill), the groups' true `values`.
    """

    name: str
    metric: str
    sizes: tuple[int, ...]
    values: tuple[float, ...]


def chapter_settings(shrink: float = 1.0) -> list[Setting]:
    """The settings of the chapter; `shrink` multiplies the numbers of patients (at least 20 a
    group).

    The last one of each metric is made to be hard: five groups lie about one standard error above
    the worst, where the interval is most conservative.
    """
    worlds = {
        "3 groups alike": (RACE, (0.85, 0.85, 0.85)),
        "3 groups, one clearly worse": (RACE, (0.70, 0.87, 0.87)),
        "3 groups, one slightly worse": (RACE, (0.82, 0.85, 0.85)),
        "3 groups, stairs": (RACE, (0.80, 0.85, 0.90)),
        "6 groups alike": (RACE_SEX, (0.85,) * 6),
        "6 groups, one clearly worse": (RACE_SEX, (0.60, *(0.88,) * 5)),
        "6 groups, stairs": (RACE_SEX, (0.78, 0.80, 0.82, 0.84, 0.86, 0.88)),
        "6 groups, five one error above": ((166,) * 6, (0.80, *(0.83,) * 5)),
    }
    return [
        Setting(name, metric, tuple(max(20, round(shrink * n)) for n in sizes), values)
        for metric in ("accuracy", "auc")
        for name, (sizes, values) in worlds.items()
    ]


def coverage(
    rng: np.random.Generator,
    setting: Setting,
    repeats: int = 2000,
    replicates: int = 300,
    naive_repeats: int | None = None,
) -> pd.DataFrame:
    """How often each 95 % interval holds the true worst value: one row a method.

    Columns: setting, metric, groups, method, coverage, low, high (Wilson, over repeats), below
    (share of intervals that lie wholly below the truth), above, width (mean), repeats. The
    bootstrap of the minimum is run on the first `naive_repeats` test sets (all by default), with
    `replicates` draws each.
    """
    if setting.metric not in ("accuracy", "auc") or len(setting.sizes) != len(setting.values):
        raise DataError(
            f"setting {setting.name!r}: metric {setting.metric!r}, {len(setting.sizes)} sizes and "
            f"{len(setting.values)} values; expected accuracy or auc, and a value for each group"
        )
    draw = _shares if setting.metric == "accuracy" else _areas
    naive = repeats if naive_repeats is None else min(naive_repeats, repeats)
    intervals = draw(rng, setting, repeats, replicates, naive)
    return pd.DataFrame([_row(setting, method, *ends) for method, ends in intervals.items()])


def coverage_table(
    rng: np.random.Generator,
    settings: Sequence[Setting],
    *counts: int,
    progress: Callable[[Iterable], Iterable] = iter,
) -> pd.DataFrame:
    """`coverage` in all `settings`, one below the other; each has its own generator,
    spawned from `rng`. counts: repeats, replicates and naive_repeats of `coverage`.
    """
    each = list(zip(rng.spawn(len(settings)), settings, strict=True))
    tables = [coverage(own_rng, setting, *counts) for own_rng, setting in progress(each)]
    return pd.concat(tables, ignore_index=True)


def _row(setting: Setting, method: str, low: np.ndarray, high: np.ndarray) -> dict:
    truth, repeats = min(setting.values), len(low)
    below, above = high < truth - 1e-12, low > truth + 1e-12
    held = ~(below | above)
    return {
        "setting": setting.name,
        "metric": setting.metric,
        "groups": len(setting.sizes),
        "method": method,
        **_proportion("coverage", held),
        "below": float(below.mean()),
        "above": float(above.mean()),
        "width": float((high - low).mean()),
        "repeats": repeats,
    }


def _shares(
    rng: np.random.Generator, setting: Setting, repeats: int, replicates: int, naive_repeats: int
) -> dict[str, Ends]:
    n = np.array(setting.sizes)
    right = rng.binomial(n, setting.values, (repeats, len(n)))
    lowest = (right / n).argmin(1)
    picked = jeffreys(np.take_along_axis(right, lowest[:, None], 1)[:, 0], n[lowest], 0.025, 0.025)
    # a bootstrap draw of a share is binomial with the observed share: nothing else need be drawn
    drawn = rng.binomial(n, right[:naive_repeats] / n, (replicates, naive_repeats, len(n))) / n
    naive = tuple(np.quantile(drawn.min(-1), [0.025, 0.975], axis=0))
    return {OURS: worst_share(right, n)[:2], NAIVE: naive, PICKED: picked}


def _areas(
    rng: np.random.Generator, setting: Setting, repeats: int, replicates: int, naive_repeats: int
) -> dict[str, Ends]:
    half = np.array(setting.sizes) // 2
    value, error = np.empty((2, repeats, len(half)))
    drawn = np.ones((naive_repeats, replicates))
    for place in range(repeats):
        for g, size in enumerate(half):
            ill, healthy = rng.normal(separation(setting.values[g]), 1, size), rng.normal(size=size)
            value[place, g], error[place, g] = delong(ill, healthy)
            if place < naive_repeats:
                times = draw_counts(rng, size, replicates), draw_counts(rng, size, replicates)
                areas = weighted_auc(pair_table(ill, healthy), *times)
                drawn[place] = np.minimum(drawn[place], areas)
    at = np.arange(repeats), value.argmin(1)
    picked = logit_bounds(value[at], error[at], 0.025, 0.025)
    naive = tuple(np.quantile(drawn, [0.025, 0.975], axis=1))
    return {OURS: worst_auc(value, error, half)[:2], NAIVE: naive, PICKED: picked}


def percentile_bootstrap(right: np.ndarray, n: np.ndarray) -> Ends:
    """What the percentile bootstrap of a share gives with infinitely many replicates; of width zero
    where all or none are right.

    It needs no drawing: its replicates are binomial with the observed share, so its ends, and the
    coverage of every interval for a share, are exact sums.
    """
    right, n = counted(right, n)
    return binom.ppf(LEVEL / 2, n, right / n) / n, binom.ppf(1 - LEVEL / 2, n, right / n) / n


METHODS = {
    "percentile bootstrap": percentile_bootstrap,
    "Wilson": wilson,
    "Clopper-Pearson": clopper_pearson,
}


def exact_coverage(method: Callable[..., Ends], n: int, shares: np.ndarray) -> pd.DataFrame:
    """Columns share, n, coverage, width (mean) and no_width (probability of an interval of width
    zero), summed over all outcomes.
    """
    outcomes, shares = np.arange(n + 1), np.atleast_1d(np.asarray(shares, float))
    low, high = method(outcomes, n)
    weight = binom.pmf(outcomes, n, shares[:, None])
    covered = (low <= shares[:, None] + 1e-12) & (shares[:, None] <= high + 1e-12)
    width = high - low
    held, none = (weight * covered).sum(1), weight @ (width < 1e-12)
    table = {"share": shares, "n": n, "coverage": held, "width": weight @ width, "no_width": none}
    return pd.DataFrame(table)


def rare_intersections(sizes: Sequence[int], shares: np.ndarray) -> pd.DataFrame:
    """`exact_coverage` of every method for groups of `sizes` patients, with a column `method`."""
    parts = [
        exact_coverage(method, n, shares).assign(method=name)
        for name, method in METHODS.items()
        for n in sizes
    ]
    return pd.concat(parts, ignore_index=True)


# ---- the chapter

RATE = Criterion(
    "false_positives", "false positives: {test}, {statistic}", 0.03, Rule.BETWEEN, upper=0.07
)
COVERAGE = Criterion("coverage", "coverage, worst group's {metric}", 0.93, Rule.BETWEEN, upper=0.97)
WORLDS = {"groups alike": (0.85, 0.85, 0.85), "one group worse": (0.75, 0.87, 0.87)}


@dataclass(frozen=True)
class StatisticsSettings:
    """sizes: images a group; subjects, counts: of the equity-scaled AUC; null_sizes: patients of
    the three groups of the null; published: replicates of the published test; shrink: multiplies
    the patients of the worst-group settings; *_repeats: simulated test sets; *_replicates:
    bootstrap draws in each; naive_repeats: test sets on which the bootstrap of the minimum is run.
    """

    cohort: str = "simulated"
    seed: int = 2026
    sizes: tuple[int, ...] = (50, 100, 200, 400, 1600)
    size_repeats: int = 20
    subjects: int = 1000
    counts: tuple[int, ...] = (2, 3, 7, 18)
    equity_repeats: int = 100
    null_sizes: tuple[int, ...] = (40, 60, 140)
    null_repeats: int = 1000
    null_replicates: int = 400
    published: tuple[int, ...] = (100, 1000, 5000)
    shrink: float = 1.0
    worst_repeats: int = 4000
    worst_replicates: int = 200
    naive_repeats: int = 400
    rare: tuple[int, ...] = (5, 10, 20, 30, 50)

    def __post_init__(self) -> None:
        if min(self.null_repeats, self.worst_repeats, self.size_repeats) < 1:
            raise SettingsError("repeats of 0: every table needs one simulated test set or more")

    @classmethod
    def from_parameters(cls, parameters: Any) -> StatisticsSettings:
        """The chapter at the size that the parameters of its notebook ask for."""
        return settings_from(cls, parameters, cohort=cls.cohort)

    def rng(self, *part: int) -> np.random.Generator:
        """The random number generator of one table."""
        return np.random.default_rng([self.seed, *part])


def distances(settings: StatisticsSettings) -> pd.DataFrame:
    """See `distance_by_size`."""
    repeats, progress = settings.size_repeats, _track("distances")
    return distance_by_size(settings.rng(0), settings.sizes, repeats=repeats, progress=progress)


def groups(settings: StatisticsSettings) -> pd.DataFrame:
    """See `equity_by_groups`."""
    repeats = settings.equity_repeats
    return equity_by_groups(settings.rng(1), settings.subjects, settings.counts, repeats=repeats)


def null(settings: StatisticsSettings) -> pd.DataFrame:
    """See `null_rates`: in both `WORLDS` (column world); the published test in the
    first alone.
    """
    parts = []
    for place, (world, areas) in enumerate(WORLDS.items()):
        rates = null_rates(
            settings.rng(2, place),
            settings.null_sizes,
            areas,
            settings.null_repeats,
            settings.null_replicates,
            () if place else settings.published,
            progress=_track("null"),
        )
        parts.append(rates.assign(world=world))
    return pd.concat(parts, ignore_index=True)


def worst(settings: StatisticsSettings) -> pd.DataFrame:
    """See `coverage`, in all `chapter_settings`."""
    counts = (settings.worst_repeats, settings.worst_replicates, settings.naive_repeats)
    chapter, progress = chapter_settings(settings.shrink), _track("worst group")
    return coverage_table(settings.rng(3), chapter, *counts, progress=progress)


def rare(settings: StatisticsSettings) -> pd.DataFrame:
    """See `rare_intersections`, for true shares from 0.50 to 0.99."""
    return rare_intersections(settings.rare, np.round(np.arange(0.50, 0.995, 0.01), 2))


def criteria(tables: Tables, settings: StatisticsSettings) -> list[dict]:
    """Make the rows of the chapter's criteria from the tables null and worst.

    False-positive rates of our comparisons: the paired bootstrap of the AUC of all patients, and
    the swap test of every statistic. (The bootstrap of worst group and gap is conservative by far,
    see null.csv; it has no criterion.) Coverage of the worst group's interval in every setting,
    also in those where it is known to be conservative.
    """
    rates, covered = tables["null"], tables["worst"]
    auc = (rates["test"] == BOOTSTRAP) & (rates["statistic"] == "auc")
    rows = []
    for row in rates[(rates["test"] == SWAP) | auc].itertuples():
        interval = Interval(row.rejected, row.low, row.high)
        where = (row.world, "simulation", interval, row.repeats)
        rows.append(RATE.row(*where, test=row.test, statistic=row.statistic))
    for row in covered[covered["method"] == OURS].itertuples():
        interval = Interval(row.coverage, row.low, row.high)
        where = (row.setting, "simulation", interval, row.repeats)
        rows.append(COVERAGE.row(*where, metric=row.metric))
    return rows


def _track(label: str) -> Callable[[Iterable], Iterable]:
    return partial(Progress().track, label=label)


STUDY: Study[StatisticsSettings] = Study(
    "statistics",
    StatisticsSettings,
    arms={},
    tables={
        make.__name__: Table(make, "study", decimals=6)
        for make in (distances, groups, null, worst, rare)
    },
    sources={"simulated": Source(lambda settings: None, lambda settings: "none")},
    criteria=criteria,
    seeds=(),
)
