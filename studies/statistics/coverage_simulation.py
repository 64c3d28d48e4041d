"""Does the interval for the worst group hold what it says? Simulated test sets whose true worst
value is known.

Beside `measures.equity.worst_group` stand the two intervals one meets in papers: the percentile
bootstrap of the minimum over groups, and the 95 % interval of whichever group came out lowest, as
if it had been named beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binom

from fairlib.errors import DataError
from fairlib.measures.equity import logit_bounds, worst_auc, worst_share
from fairlib.measures.intervals import (
    clopper_pearson,
    counted,
    delong,
    draw_counts,
    jeffreys,
    pair_table,
    weighted_auc,
    wilson,
)
from studies.statistics.null_simulation import separation

Ends = tuple[np.ndarray, np.ndarray]  # of intervals
OURS, NAIVE, PICKED = "contenders", "bootstrap of the minimum", "interval of the lowest group"
RACE, RACE_SEX = (90, 150, 760), (51, 39, 86, 64, 433, 327)
"""People of a test set of 1,000 with the shares of the fundus phantom: Asian, Black, White; and
each as women, men.
"""


@dataclass(frozen=True)
class Setting:
    """One world: `metric` ("accuracy" or "auc"), people of each group (`sizes`; half of them ill),
    the groups' true `values`.
    """

    name: str
    metric: str
    sizes: tuple[int, ...]
    values: tuple[float, ...]


def chapter_settings(shrink: float = 1.0) -> list[Setting]:
    """The settings of the chapter; `shrink` multiplies the numbers of people (at least 20 a group).

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
    intervals = draw(
        rng,
        setting,
        repeats,
        replicates,
        repeats if naive_repeats is None else min(naive_repeats, repeats),
    )
    return pd.DataFrame([_row(setting, method, *ends) for method, ends in intervals.items()])


def coverage_table(
    rng: np.random.Generator,
    settings: Sequence[Setting],
    repeats: int = 2000,
    replicates: int = 300,
    naive_repeats: int | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> pd.DataFrame:
    """`coverage` in all `settings`, one below the other; each has its own generator,
    spawned from `rng`.
    """
    each = list(zip(rng.spawn(len(settings)), settings, strict=True))
    tables = [
        coverage(own_rng, setting, repeats, replicates, naive_repeats)
        for own_rng, setting in progress(each)
    ]
    return pd.concat(tables, ignore_index=True)


def _row(setting: Setting, method: str, low: np.ndarray, high: np.ndarray) -> dict:
    truth, repeats = min(setting.values), len(low)
    below, above = high < truth - 1e-12, low > truth + 1e-12
    held = ~(below | above)
    ends = wilson(held.sum(), repeats)
    return {
        "setting": setting.name,
        "metric": setting.metric,
        "groups": len(setting.sizes),
        "method": method,
        "coverage": float(held.mean()),
        "low": float(ends[0]),
        "high": float(ends[1]),
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
    drawn = (
        rng.binomial(n, right[:naive_repeats] / n, (replicates, naive_repeats, len(n))) / n
    ).min(-1)
    return {
        OURS: worst_share(right, n)[:2],
        NAIVE: tuple(np.quantile(drawn, [0.025, 0.975], axis=0)),
        PICKED: picked,
    }


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


def percentile_bootstrap(right: np.ndarray, n: np.ndarray, level: float = 0.95) -> Ends:
    """What the percentile bootstrap of a share gives with infinitely many replicates; of width zero
    where all or none are right.

    It needs no drawing: its replicates are binomial with the observed share, so its ends, and the
    coverage of every interval for a share, are exact sums.
    """
    right, n = counted(right, n)
    tail = (1 - level) / 2
    return binom.ppf(tail, n, right / n) / n, binom.ppf(1 - tail, n, right / n) / n


METHODS = {
    "percentile bootstrap": percentile_bootstrap,
    "Wilson": wilson,
    "Clopper-Pearson": clopper_pearson,
}


def exact_coverage(
    method: Callable[..., Ends], n: int, shares: np.ndarray, level: float = 0.95
) -> pd.DataFrame:
    """Columns share, n, coverage, width (mean) and no_width (probability of an interval of width
    zero), summed over all outcomes.
    """
    outcomes, shares = np.arange(n + 1), np.atleast_1d(np.asarray(shares, float))
    low, high = method(outcomes, n, level)
    weight = binom.pmf(outcomes, n, shares[:, None])
    covered = (low <= shares[:, None] + 1e-12) & (shares[:, None] <= high + 1e-12)
    width = high - low
    held, none = (weight * covered).sum(1), weight @ (width < 1e-12)
    table = {"share": shares, "n": n, "coverage": held, "width": weight @ width, "no_width": none}
    return pd.DataFrame(table)


def rare_intersections(sizes: Sequence[int], shares: np.ndarray) -> pd.DataFrame:
    """`exact_coverage` of every method for groups of `sizes` people, with a column `method`."""
    parts = [
        exact_coverage(method, n, shares).assign(method=name)
        for name, method in METHODS.items()
        for n in sizes
    ]
    return pd.concat(parts, ignore_index=True)
