"""The statistics chapter as one run: `python -m studies statistics` makes `results/statistics`.

    distances.csv   per-group Frechet distance and MMD of equally good generators, by group size
    groups.csv      equity-scaled AUC of a fair classifier, by number of groups
    null.csv        how often each comparison of two equal arms finds a difference
    worst.csv       coverage of three intervals for the worst group
    rare.csv        coverage of intervals for a share of 5 to 50 people (exact sums, nothing drawn)
    study.json      settings, seconds, commit, packages, device

Nothing here needs data or weights. All figures come from one seed that was not used to find the
methods.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.errors import DataError, SettingsError
from fairlib.io import write_bytes, write_json
from fairlib.settings import to_dict
from studies.coverage_simulation import (
    OURS,
    chapter_settings,
    coverage_table,
    rare_intersections,
)
from studies.engine.manifest import commit, device, versions
from studies.engine.places import repository
from studies.engine.progress import Progress
from studies.null_simulation import BOOTSTRAP, SWAP, distance_by_size, equity_by_groups, null_rates

TABLES = ("distances", "groups", "null", "worst", "rare")
FALSE_POSITIVES, COVERAGE = (0.03, 0.07), (0.93, 0.97)
WORLDS = {"groups alike": (0.85, 0.85, 0.85), "one group worse": (0.75, 0.87, 0.87)}


@dataclass(frozen=True)
class StatisticsSettings:
    """sizes: images a group; people, counts: of the equity-scaled AUC; null_sizes: people of the
    three groups of the null;
    published: replicates of the published test; shrink: multiplies the people of the worst-group
    settings; *_repeats: simulated test sets; *_replicates: bootstrap draws in each; naive_repeats:
    test sets on which the bootstrap of the minimum is run.
    """

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


SMOKE = StatisticsSettings(
    sizes=(50, 100),
    size_repeats=3,
    people=400,
    counts=(2, 3),
    equity_repeats=5,
    null_repeats=12,
    null_replicates=100,
    published=(100, 400),
    shrink=0.3,
    worst_repeats=40,
    worst_replicates=50,
    naive_repeats=20,
    rare=(5, 20),
)
"""Seconds: does everything run? Its figures mean nothing."""


def statistics_folder() -> Path:
    """Where the long run of the statistics chapter lies."""
    return repository() / "results" / "statistics"


def measured(
    study: StatisticsSettings = StatisticsSettings(), progress: Progress | None = None
) -> dict[str, pd.DataFrame]:
    """All `TABLES`.

    Each has a generator of its own, so that one does not depend on the length of another.
    """
    say = progress or Progress()
    return {
        "distances": distances(study, say),
        "groups": groups(study),
        "null": null(study, say),
        "worst": worst(study, say),
        "rare": rare(study),
    }


def distances(study: StatisticsSettings, progress: Progress | None = None) -> pd.DataFrame:
    """See `replication.distance_by_size`."""
    track = (progress or Progress()).track
    return distance_by_size(
        _rng(study, 0),
        study.sizes,
        repeats=study.size_repeats,
        progress=lambda x: track(x, label="distances"),
    )


def groups(study: StatisticsSettings) -> pd.DataFrame:
    """See `replication.equity_by_groups`."""
    return equity_by_groups(
        _rng(study, 1), study.people, study.counts, repeats=study.equity_repeats
    )


def null(study: StatisticsSettings, progress: Progress | None = None) -> pd.DataFrame:
    """See `replication.null_rates`: in both `WORLDS` (column world); the published test in the
    first alone.
    """
    track, parts = (progress or Progress()).track, []
    for place, (world, areas) in enumerate(WORLDS.items()):
        found = null_rates(
            _rng(study, 2, place),
            study.null_sizes,
            areas,
            study.null_repeats,
            study.null_replicates,
            () if place else study.published,
            progress=lambda x: track(x, label="null"),
        )
        parts.append(found.assign(world=world))
    return pd.concat(parts, ignore_index=True)


def worst(study: StatisticsSettings, progress: Progress | None = None) -> pd.DataFrame:
    """See `worst_check.coverage`, in all `worst_check.chapter_settings`."""
    track = (progress or Progress()).track
    return coverage_table(
        _rng(study, 3),
        chapter_settings(study.shrink),
        study.worst_repeats,
        study.worst_replicates,
        study.naive_repeats,
        progress=lambda x: track(x, label="worst group"),
    )


def rare(study: StatisticsSettings) -> pd.DataFrame:
    """See `coverage_simulation.rare_intersections`, for true shares from 0.50 to 0.99."""
    return rare_intersections(study.rare, np.round(np.arange(0.50, 0.995, 0.01), 2))


def run_statistics(
    study: StatisticsSettings = StatisticsSettings(), out: str | Path | None = None
) -> Path:
    """Compute all tables (about five minutes on one slow core) and write them; returns their
    folder.
    """
    out, start = Path(out or statistics_folder()), time.monotonic()
    for name, table in measured(study).items():
        write_bytes(out / f"{name}.csv", table.round(6).to_csv(index=False).encode())
    write_json(
        out / "study.json",
        {
            "settings": to_dict(study),
            "seconds": round(time.monotonic() - start),
            "commit": commit(),
            "device": device(),
            "packages": versions(),
            "people": "synthetic",
        },
    )
    return out


def load_statistics(folder: str | Path | None = None) -> dict[str, pd.DataFrame]:
    """The tables that `run_statistics` wrote. Raises `DataError` when one is not there."""
    folder = Path(folder or statistics_folder())
    missing = [name for name in TABLES if not (folder / f"{name}.csv").is_file()]
    if missing:
        raise DataError(
            f"{folder}: no {missing[0]}.csv; make the tables with `python -m studies statistics`"
        )
    return {name: pd.read_csv(folder / f"{name}.csv") for name in TABLES}


def statistics_report(tables: dict[str, pd.DataFrame] | None = None) -> pd.DataFrame:
    """The chapter's bounds: columns figure, setting, value, low, high, least, most, holds (the
    value lies between them), certain (so does its whole interval), n (simulated test sets).

    False-positive rates of our comparisons: the paired bootstrap of the AUC of everybody, and the
    swap test of every statistic. (The bootstrap of worst group and gap is conservative by far, see
    null.csv; it is no part of the bound.) Coverage of the worst group's interval in every setting,
    also in those where it is known to be conservative.
    """
    found = load_statistics() if tables is None else tables
    rates, covered = found["null"], found["worst"]
    ours = rates[
        (rates["test"] == SWAP) | ((rates["test"] == BOOTSTRAP) & (rates["statistic"] == "auc"))
    ]
    rows = [
        _held(
            f"false positives: {row['test']}, {row['statistic']}",
            row["world"],
            row["rejected"],
            row,
            FALSE_POSITIVES,
        )
        for row in ours.to_dict("records")
    ]
    rows += [
        _held(
            f"coverage, worst group's {row['metric']}",
            row["setting"],
            row["coverage"],
            row,
            COVERAGE,
        )
        for row in covered[covered["method"] == OURS].to_dict("records")
    ]
    return pd.DataFrame(rows)


def _held(figure: str, setting: str, value: float, row: dict, bounds: tuple[float, float]) -> dict:
    (least, most), low, high = bounds, row["low"], row["high"]
    return {
        "figure": figure,
        "setting": setting,
        "value": value,
        "low": low,
        "high": high,
        "least": least,
        "most": most,
        "holds": least <= value <= most,
        "certain": least <= low and high <= most,
        "n": row["repeats"],
    }


def _rng(study: StatisticsSettings, *part: int) -> np.random.Generator:
    if study.null_repeats < 1 or study.worst_repeats < 1 or study.size_repeats < 1:
        raise SettingsError("repeats of 0: every table needs one simulated test set or more")
    return np.random.default_rng([study.seed, *part])
