"""Running a study over arms and seeds: tables are kept in `results/<folder>` arm by arm and seed by
seed, beside a record of what made them; two studies are never mixed.
"""

from __future__ import annotations

import gzip
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from fairlib.errors import DataError
from fairlib.io import read_json, write_bytes, write_json, write_sheet
from fairlib.settings import digest
from studies.engine.reach import code_digest
from studies.engine.stage import alone, commit, identity, provenance
from studies.engine.study import (
    INPUTS,
    Run,
    S,
    Study,
    chosen_tables,
    read_table,
    read_tables,
    run_tables,
    sheet_path,
)


def run_study(
    study: Study[S],
    settings: S,
    arms: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
    out: str | Path | None = None,
    only: Collection[str] | None = None,
    references: bool = True,
) -> Path:
    """Run every arm at every seed and write the tables; returns their folder.

    Tables are written after every arm and seed, summaries after every seed (or at once where there
    are no seeds). Rows of arms and seeds that are in the folder already are kept; made again they
    take the place of the old. `only`: the tables to make.
    `references`: whether arms that the study always has are made, too. Raises `SettingsError` on an
    unknown arm, and `DataError` when the folder holds another study.
    """
    out = Path(out or study.results(settings))
    chosen = study.arms_of(settings, arms, references)
    seeds = tuple(dict.fromkeys(study.seeds if seeds is None else seeds))
    made = study.identity(settings)
    same_study(out / "study.json", made)
    origins = origins_of(study, made, only)
    fixed = {name: t.make(settings) for name, t in chosen_tables(study, settings, "study", only)}
    with growing(out, made):
        for name, rows in fixed.items():
            _write(study, out, name, rows)
        _record(study, settings, out, made, origins)
        if not seeds:
            summarise(study, settings, out, only)
    for seed in seeds:
        for arm in chosen:
            found = run_tables(study, settings, arm, seed, only)
            if study.shown and only is None:
                shown = study.shown(Run(study, settings, arm, seed))
                write_sheet(sheet_path(out, arm, seed), shown)
            with growing(out, made):
                for name, rows in found.items():
                    path = out / study.tables[name].file(name)
                    _write(study, out, name, study.ordered(merged(path, rows)))
                _record(study, settings, out, made, origins, (arm, seed))
        with growing(out, made):
            summarise(study, settings, out, only)
    return out


def summarise(study: Study[S], settings: S, out: Path, only: Collection[str] | None = None) -> None:
    """Make the summary tables again from the tables in the folder."""
    tables = read_tables(study, out)
    for name, table in chosen_tables(study, settings, "summary", only):
        tables[name] = table.make(tables, settings)
        _write(study, out, name, tables[name])


def origins_of(
    study: Study[S], made: dict[str, Any], only: Collection[str] | None = None
) -> dict[str, dict[str, Any]]:
    """What rows made now come from, by arm: the commit, whether the tree was clean, and digests of
    the code (of the arm and of its tables), of the weights and of the cohort in `made`; and `only`,
    where it leaves out tables of an arm and seed.
    """
    head, tables = commit(), {name: t for name, t in study.tables.items() if t.per == "run"}
    every = {"commit": head and head.rstrip("+"), "clean": head and not head.endswith("+")}
    if only is not None and not set(tables) <= set(only):
        every["only"] = sorted(only)
    found = {}
    for name, arm in study.arms.items():
        makers = {each: identity(t.make) for each, t in tables.items() if t.arms(name)}
        found[name] = {**every, "code": digest([identity(arm.run), makers]), **made[INPUTS]}
    return found


def _write(study: Study[S], out: Path, name: str, rows: pd.DataFrame) -> None:
    """Write a table as CSV, gzipped where it is `compressed`; the same rows give the same bytes."""
    table = study.tables[name]
    data = rows.round(table.decimals).to_csv(index=False).encode()
    packed = gzip.compress(data, mtime=0) if table.compressed else data
    write_bytes(out / table.file(name), packed)


def _record(
    study: Study[S],
    settings: S,
    out: Path,
    made: dict[str, Any],
    origins: dict[str, dict[str, Any]],
    cell: tuple[str, int] | None = None,
) -> None:
    """What was run, with what and by what: identity, arms and seeds, code, commit, device,
    versions; and of every arm and seed what made its rows (more than one thing where a few of its
    tables were made again).
    """
    runs: dict[str, set[int]] = {}
    for name, table in study.tables.items():
        path = out / table.file(name)
        if table.per == "run" and path.is_file():
            for arm, rows in read_table(path).groupby("arm"):
                runs.setdefault(str(arm), set()).update(map(int, rows["seed"].unique()))
    path = out / "study.json"
    origin_of = read_json(path).get("rows", {}) if path.is_file() else {}
    if cell:
        seeds, seed, new = origin_of.setdefault(cell[0], {}), str(cell[1]), origins[cell[0]]
        earlier = seeds.get(seed, []) if "only" in new else []
        seeds[seed] = [*(row for row in earlier if row != new), new]
    record = {
        **made,
        **provenance(),
        "runs": {arm: sorted(seeds) for arm, seeds in runs.items()},
        "rows": origin_of,
        "latest": {arm: origins[arm]["code"] for arm in runs if arm in origins},
        "code": digest({name: code_digest(t.make) for name, t in study.tables.items()}),
        "people": study.sources[settings.cohort].people,  # type: ignore[attr-defined]
    }
    write_json(path, record)


def merged(path: Path, new: pd.DataFrame) -> pd.DataFrame:
    """`new` (columns arm, seed) with what the table at `path` holds of other arms and seeds, if it
    is there.
    """
    if path.is_file():
        old = read_table(path)
        cells, made = (pd.MultiIndex.from_frame(rows[["arm", "seed"]]) for rows in (old, new))
        new = pd.concat([old[~cells.isin(made)], new])
    return new.sort_values(["arm", "seed"], kind="stable", ignore_index=True)


def same_study(path: Path, identity: dict[str, Any]) -> None:
    """Raise `DataError` when the record at `path` is there and was made by a study that differs in
    `identity`; of its inputs, in those that the record names. A setting that is newer than the
    record counts where it is set.
    """
    record = {INPUTS: {}, **(read_json(path) if path.is_file() else identity)}
    known, expected = record.get("study", {}), dict(identity)
    expected["study"] = {k: v for k, v in identity["study"].items() if v or k in known}
    if INPUTS in identity:
        expected[INPUTS] = {key: identity[INPUTS].get(key) for key in record[INPUTS]}
    differing = [key for key in expected if record.get(key) != expected[key]]
    if differing:
        what = f"{path}: these results come from another study (they differ in {differing[0]!r})"
        raise DataError(f"{what}; choose another --out, or delete the folder")


@contextmanager
def growing(out: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Hold the folder `out` between reading its tables and writing them, so that no process loses
    another's rows.

    Raises `DataError` when it holds another study (see `same_study`). Not to be entered twice.
    """
    # beside it, so that it holds results alone
    with alone(out.resolve().parent, out.resolve().name):
        same_study(out / "study.json", identity)
        yield
