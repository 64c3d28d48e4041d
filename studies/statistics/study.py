"""The statistics chapter as data for the engine: `python -m studies statistics` makes
`results/statistics`.

    distances.csv   per-group Frechet distance and MMD of equally good generators, by group size
    groups.csv      equity-scaled AUC of a fair classifier, by number of groups
    null.csv        how often each comparison of two equal arms finds a difference
    worst.csv       coverage of three intervals for the worst group
    rare.csv        coverage of intervals for a share of 5 to 50 patients (exact, nothing drawn)
    study.json      settings, commit, packages, device

Nothing here needs data or weights. All figures come from one seed that was not used to find the
methods; each table has a generator of its own, so that one does not depend on the length of
another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from fairlib.errors import SettingsError
from fairlib.measures.intervals import Interval
from studies.engine.criteria import Criterion, Rule
from studies.engine.profiles import settings_from
from studies.engine.stage import Progress
from studies.engine.study import Source, Study, Table, Tables
from studies.statistics.coverage_simulation import (
    OURS,
    chapter_settings,
    coverage_table,
    rare_intersections,
)
from studies.statistics.null_simulation import (
    BOOTSTRAP,
    SWAP,
    distance_by_size,
    equity_by_groups,
    null_rates,
)

RATE = Criterion(
    "false_positives", "false positives: {test}, {statistic}", 0.03, Rule.BETWEEN, upper=0.07
)
COVERAGE = Criterion("coverage", "coverage, worst group's {metric}", 0.93, Rule.BETWEEN, upper=0.97)
WORLDS = {"groups alike": (0.85, 0.85, 0.85), "one group worse": (0.75, 0.87, 0.87)}


@dataclass(frozen=True)
class StatisticsSettings:
    """sizes: images a group; people, counts: of the equity-scaled AUC; null_sizes: patients of the
    three groups of the null; published: replicates of the published test; shrink: multiplies the
    patients of the worst-group settings; *_repeats: simulated test sets; *_replicates: bootstrap
    draws in each; naive_repeats: test sets on which the bootstrap of the minimum is run.
    """

    cohort: str = "simulated"
    seed: int = 2026
    sizes: tuple[int, ...] = (50, 100, 200, 400, 1600)
    size_repeats: int = 20
    people: int = 1000
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
    """See `null_simulation.distance_by_size`."""
    repeats, progress = settings.size_repeats, _track("distances")
    return distance_by_size(settings.rng(0), settings.sizes, repeats=repeats, progress=progress)


def groups(settings: StatisticsSettings) -> pd.DataFrame:
    """See `null_simulation.equity_by_groups`."""
    repeats = settings.equity_repeats
    return equity_by_groups(settings.rng(1), settings.people, settings.counts, repeats=repeats)


def null(settings: StatisticsSettings) -> pd.DataFrame:
    """See `null_simulation.null_rates`: in both `WORLDS` (column world); the published test in the
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
    """See `coverage_simulation.coverage`, in all `chapter_settings`."""
    counts = (settings.worst_repeats, settings.worst_replicates, settings.naive_repeats)
    chapter, progress = chapter_settings(settings.shrink), _track("worst group")
    return coverage_table(settings.rng(3), chapter, *counts, progress=progress)


def rare(settings: StatisticsSettings) -> pd.DataFrame:
    """See `coverage_simulation.rare_intersections`, for true shares from 0.50 to 0.99."""
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
