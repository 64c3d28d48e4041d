"""One engine for every study: registries, the loop over arms and seeds, merging and writing.

A study is data. Its arms, evaluators, cohorts and tables are entries of dictionaries, each made of
functions; a new arm is one function and one line, and so is a new table. What is computed once lies
in stages (`studies.engine.stage`); the engine calls for the tables, keeps them in
`results/<folder>` arm by arm and seed by seed, and never mixes two studies.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pandas as pd
from torch import Tensor

from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json, read_sheet, write_bytes, write_json, write_sheet
from fairlib.settings import digest, from_dict, require_known, to_dict
from studies.engine import environment, repository
from studies.engine.criteria import criteria_table
from studies.engine.reach import code_digest
from studies.engine.stage import Artifact, Progress, alone, commit, duration, identity, provenance

S = TypeVar("S")  # the settings of a study: a frozen dataclass
Tables = dict[str, pd.DataFrame]
# of a record: digests of what the study read; what older records lack is taken as it is
INPUTS = "inputs"
# where things lie is no part of what they are
PATHS = ("data_dir", "weights", "everyone", "clip", "controlnet", "reference_weights")
WORKFLOW = """\
# Run it from the repository's root, as: snakemake -s FILE --keep-going --jobs 8 --executor slurm
CELLS = {cells}
SETTINGS = {settings}
PYTHON = {python}

rule all:
    input: expand("runs/grid/{done}/{{cell}}", cell=CELLS)

rule cell:
    output: touch("runs/grid/{done}/{{cell}}")
    params: settings=SETTINGS, python=PYTHON
    shell: "{{params.python}} -m studies grid {{wildcards.cell:q}} --settings {{params.settings:q}}"
"""


@dataclasses.dataclass(frozen=True)
class Arm(Generic[S]):
    """One combination of method, classifier and target (or of training data) that a study compares.

    run: (settings, seed) -> the artifact that is measured: generated images, or a trained
    classifier's answers.
    acts: where it intervenes. says: one sentence for tables. evaluator: the classifier that it
    follows, if it follows one. refused: settings -> why they cannot have it, or None.
    """

    run: Callable[[S, int], Artifact]
    says: str
    acts: Literal["nowhere", "training", "fine-tuning", "sampling", "selection"] = "fine-tuning"
    evaluator: str | None = None
    refused: Callable[[S], str | None] = lambda settings: None


@dataclasses.dataclass(frozen=True)
class Source(Generic[S]):
    """A cohort that a study can use.

    read: settings -> the artifact of its images and table. people: who they are.
    """

    read: Callable[[S], Any]
    digest: Callable[[S], str]
    people: str = "synthetic"


def release_folder(settings: S, holds: str, patterns: Iterable[str], reader: Callable) -> Artifact:
    """The release under `data_dir`, which `holds` a table or folder of that name, known by names,
    sizes and times of the files that match `patterns`. Raises `DataError` without `data_dir`.
    """
    cohort, folder = settings.cohort, settings.data_dir  # type: ignore[attr-defined]
    if not folder:
        raise DataError(f"cohort {cohort!r} needs data_dir, the folder that holds {holds}")
    root = Path(folder).expanduser()
    return Artifact.files(root, [p for pattern in patterns for p in root.glob(pattern)], reader)


@dataclasses.dataclass(frozen=True)
class Table(Generic[S]):
    """One table of the results, made of

    per "run":      make(run), with columns arm and seed added;
    per "study":    make(settings);
    per "summary":  make(tables so far, settings).
    when: whether a study of these settings has it. arms: the arms it is made for (default: all).
    decimals: of its numbers.
    """

    make: Callable[..., pd.DataFrame]
    per: Literal["run", "study", "summary"] = "run"
    compressed: bool = False
    when: Callable[[S], bool] = lambda settings: True
    arms: Callable[[str], bool] = lambda arm: True
    decimals: int = 5

    def file(self, name: str) -> str:
        """The file that holds it."""
        return f"{name}.csv.gz" if self.compressed else f"{name}.csv"


@dataclasses.dataclass(frozen=True)
class Study(Generic[S]):
    """A study as data.

    name: of the command. settings: the class of its settings. arms, sources, evaluators, bases,
    tables: its registries, by name (`bases`: settings field -> what reads the weights). references:
    arms that are made for every seed, whichever are asked for (the untuned model, real images).
    default_arms, seeds: what a long run makes. folder: settings -> name in `results/`. criteria:
    tables -> rows of `studies.engine.criteria`. shown: run -> images that a reader sees, uint8
    [N, C, H, W], kept beside the tables as one sheet. fixed: settings whose other values no stored
    run can stand for.
    """

    name: str
    settings: type[S]
    arms: Mapping[str, Arm[S]]
    tables: Mapping[str, Table[S]]
    sources: Mapping[str, Source[S]]
    criteria: Callable[[Tables, S], list[dict]]
    evaluators: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bases: Mapping[str, Callable[[S], Artifact]] = dataclasses.field(default_factory=dict)
    references: Callable[[S], tuple[str, ...]] = lambda settings: ()
    default_arms: Callable[[S], tuple[str, ...]] = lambda settings: ()
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    folder: Callable[[S], str] | None = None
    shown: Callable[[Run[S]], Tensor] | None = None
    fixed: tuple[str, ...] = ()

    def results(self, settings: S | None = None) -> Path:
        """The folder in `results/` of a study of these settings."""
        chosen = self.settings() if settings is None else settings
        return repository() / "results" / (self.folder(chosen) if self.folder else self.name)

    def identity(self, settings: S) -> dict[str, Any]:
        """What makes results comparable: settings, and digests of weights and cohort."""
        kept = {name: value for name, value in to_dict(settings).items() if name not in PATHS}
        kept = json.loads(json.dumps(kept))  # as it is read back: a tuple is a list
        weights = {name: base(settings).digest for name, base in self.bases.items()}
        cohort = self.sources[settings.cohort].digest(settings)  # type: ignore[attr-defined]
        return {"study": kept, INPUTS: {**weights, "cohort": cohort}}

    def arms_of(
        self, settings: S, arms: Iterable[str] | None, references: bool = True
    ) -> tuple[str, ...]:
        """References first (unless they are left out), then `arms` (or the default ones), each
        once.

        Raises `SettingsError` on an unknown one, and on one that these settings cannot have.
        """
        chosen = self.default_arms(settings) if arms is None else tuple(arms)
        for arm in chosen:
            require_known(arm, self.arms, f"the arms of study {self.name}")
            if reason := self.arms[arm].refused(settings):
                raise SettingsError(f"arm {arm!r}: {reason}")
        return tuple(dict.fromkeys((*(self.references(settings) if references else ()), *chosen)))

    def ordered(self, table: pd.DataFrame) -> pd.DataFrame:
        """Rows seed by seed, arms in the order of the registry."""
        order = {arm: place for place, arm in enumerate(self.arms)}
        places = table["arm"].map(order).fillna(len(order))
        return table.iloc[np.lexsort((places, table["seed"]))].reset_index(drop=True)


@dataclasses.dataclass(frozen=True)
class Run(Generic[S]):
    """One arm at one seed."""

    study: Study[S]
    settings: S
    name: str
    seed: int

    @property
    def arm(self) -> Arm[S]:
        """The entry of the registry."""
        return self.study.arms[self.name]

    @property
    def artifact(self) -> Artifact:
        """What the arm makes."""
        return self.arm.run(self.settings, self.seed)

    def of(self, name: str) -> Run[S]:
        """Another arm at the same seed."""
        return dataclasses.replace(self, name=name)


def run_tables(
    study: Study[S], settings: S, arm: str, seed: int, only: Iterable[str] | None = None
) -> Tables:
    """Make the tables of one arm and seed."""
    run = Run(study, settings, arm, seed)
    return {
        name: table.make(run).assign(arm=arm, seed=seed)
        for name, table in _chosen(study, settings, "run", only)
        if table.arms(arm)
    }


def tables_of(
    study: Study[S],
    settings: S,
    arms: Iterable[str] | None = None,
    seeds: Iterable[int] = (1,),
    only: Iterable[str] | None = None,
) -> Tables:
    """All tables of `arms` and `seeds` in memory, as a notebook wants them; nothing is written but
    stages.
    """
    cells = product(dict.fromkeys(seeds), study.arms_of(settings, arms))
    rows = [run_tables(study, settings, arm, seed, only) for seed, arm in cells]
    tables = {name: table.make(settings) for name, table in _chosen(study, settings, "study", only)}
    for name, _ in _chosen(study, settings, "run", only):
        if parts := [one[name] for one in rows if name in one]:
            tables[name] = study.ordered(pd.concat(parts, ignore_index=True))
    for name, table in _chosen(study, settings, "summary", only):
        tables[name] = table.make(tables, settings)
    return tables


def run_study(
    study: Study[S],
    settings: S,
    arms: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
    out: str | Path | None = None,
    only: Iterable[str] | None = None,
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
    fixed = {name: t.make(settings) for name, t in _chosen(study, settings, "study", only)}
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


def missing(study: Study[S], settings: S, text: str) -> list[tuple[str, int]]:
    """The arms and seeds that `ARM,...:SEED,...` names (all of a long run where one of the lists is
    empty), seed by seed, references first, but for those whose rows the present code has made.

    Raises `SettingsError` on an unknown arm or a seed that is no number, and `DataError` when the
    folder holds another study.
    """
    arms, _, seeds = text.partition(":")
    if not re.fullmatch(r"(\d+(,\d+)*)?", seeds):
        raise SettingsError(f"{study.name}:{text}: give seeds as 1,2,3")
    numbers = map(int, seeds.split(",")) if seeds else study.seeds
    chosen = study.arms_of(settings, arms.split(",") if arms else None)
    record, made = study.results(settings) / "study.json", study.identity(settings)
    same_study(record, made)
    rows = read_json(record).get("rows", {}) if record.is_file() else {}
    now = origins_of(study, made)

    def is_done(arm: str, seed: int) -> bool:
        found = rows.get(arm, {}).get(str(seed), [{"code": None}])
        whole = any("only" not in row for row in found)
        return whole and {row["code"] for row in found} == {now[arm]["code"]}

    return [(arm, seed) for seed in numbers for arm in chosen if not is_done(arm, seed)]


def run_cell(place: str, settings: str, out: str, *cell: str) -> None:
    """Make the rows of one arm and seed of the study at `place` (`module:name`) with `settings`
    (JSON); without arm and seed, the tables that the study has once.
    """
    study, arms, seeds = resolve_name(place), cell[:1], map(int, cell[1:])
    only = [name for name, table in study.tables.items() if (table.per == "run") == bool(cell)]
    chosen = from_dict(study.settings, json.loads(settings))
    run_study(study, chosen, arms, seeds, out, only, references=False)


def run_grid(
    places: dict[str, str], settings: dict[str, Any], cells: list[tuple[str, str, int]], jobs: int
) -> list[str]:
    """Run `cells` (study, arm, seed) with `settings`, `jobs` at a time, each in a process of its
    own, and then make what the studies `places` (name: `module:name`) have once; returns what
    failed. A finished cell is in the folder of its study at once; a failure ends no other cell.
    """
    call = "import sys; from studies.engine.study import run_cell; run_cell(*sys.argv[1:])"
    failed = []

    def run(name: str, *cell: object) -> None:
        study, start = resolve_name(places[name]), time.monotonic()
        out = study.results(from_dict(study.settings, settings))
        given = [places[name], json.dumps(settings), out, *map(str, cell)]
        label = ":".join(map(str, [name, *(cell or ["summary"])]))
        process = subprocess.run([sys.executable, "-c", call, *given], env=environment(jobs))
        if process.returncode:
            failed.append(label)
        ended = f"{'failed' if process.returncode else 'done'} in"
        Progress().say(f"{label}: {ended} {duration(time.monotonic() - start)}")

    with ThreadPoolExecutor(jobs) as pool:  # after Ctrl-C, `map` cancels what has not begun
        list(pool.map(run, *zip(*cells, strict=True)))
    for name in places:
        run(name)
    return failed


def workflow(settings: dict[str, Any], cells: list[tuple[str, str, int]]) -> str:
    """A Snakefile that runs `cells` (study, arm, seed) with `settings` as jobs of a cluster. An
    empty file in `runs/grid` says that a job is done; another commit does all of them again.
    """
    return WORKFLOW.format(
        cells=json.dumps([":".join(map(str, cell)) for cell in cells], indent=4),
        settings=json.dumps(json.dumps(settings)),
        done=digest([cells, settings, commit()]),
        python=json.dumps(shlex.quote(sys.executable)),
    )


def summarise(study: Study[S], settings: S, out: Path, only: Iterable[str] | None = None) -> None:
    """Make the summary tables again from the tables in the folder."""
    tables = read_tables(study, out)
    for name, table in _chosen(study, settings, "summary", only):
        tables[name] = table.make(tables, settings)
        _write(study, out, name, tables[name])


def sheet_path(folder: Path, arm: str, seed: int) -> Path:
    """Where the images of one arm and seed lie that a reader sees."""
    return folder / "images" / f"{arm}-{seed}.png"


def results_of(
    study: Study[S],
    settings: S,
    runs: str,
    arms: Iterable[str],
    seed: int | Iterable[int],
    only: Iterable[str] | None = None,
) -> tuple[Tables, dict[str, Tensor], int]:
    """What a chapter shows of `arms` and the references: tables, images by arm (none of a study
    that shows none), and the seed of the images: of the long runs (`runs` is "stored"), or made
    here of `seed` ("live"); of several seeds the images are of the first.

    Raises `SettingsError` on another word and where the long runs have another value of what is
    `fixed`, `DataError` when nothing is stored of this cohort.
    """
    seeds = [seed] if isinstance(seed, int) else list(seed)
    chosen = study.arms_of(settings, arms) if study.shown else ()
    if runs == "live":
        shown = {arm: study.shown(Run(study, settings, arm, seeds[0])) for arm in chosen}
        return tables_of(study, settings, arms, seeds, only), shown, seeds[0]
    if runs != "stored":
        raise SettingsError(f"runs is {runs!r}; choose stored (the long runs) or live (made here)")
    folder = study.results(settings)
    if not (folder / "study.json").is_file():
        folder = study.results()
    tables, stored = load_results(study, folder), settings_of(study, folder)
    if stored.cohort != settings.cohort:
        what = f"{folder}: of cohort {stored.cohort!r}, not {settings.cohort!r}"
        raise DataError(f"{what}; set runs = 'live'")
    for name in study.fixed:
        if getattr(settings, name) != (there := getattr(stored, name)):
            made = f"{name}: the stored runs were made with {there!r}"
            raise SettingsError(f"{made}, not {getattr(settings, name)!r}; set runs = 'live'")
    sheets = {path.name for path in (folder / "images").glob("*.png")}
    for number in study.seeds:
        paths = {arm: sheet_path(folder, arm, number) for arm in chosen}
        if sheets.issuperset(path.name for path in paths.values()):
            return tables, {arm: read_sheet(path) for arm, path in paths.items()}, number
    raise DataError(f"{folder}: no images of {', '.join(chosen)} at one seed; run the study again")


def load_results(study: Study[S], folder: str | Path | None = None) -> Tables:
    """The tables of a long run, by name. Raises `DataError` when there are none."""
    folder = Path(folder or study.results())
    if not (folder / "study.json").is_file():
        what = f"{folder}: no results here (study.json is missing)"
        raise DataError(f"{what}; make them with `python -m studies {study.name}`")
    return read_tables(study, folder)


def origins_of(
    study: Study[S], made: dict[str, Any], only: Iterable[str] | None = None
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


def outdated(folder: Path) -> dict[str, list[int]]:
    """Arms and seeds of a long run whose rows come from other code than its latest rows, or from
    code that nobody noted; none where the whole folder is older than such notes.
    """
    record = read_json(folder / "study.json")
    rows, latest = record.get("rows", {}), record.get("latest", {})
    found: dict[str, list[int]] = {}
    for arm, seeds in record["runs"].items() if rows else ():
        for seed in seeds:
            codes = {row["code"] for row in rows.get(arm, {}).get(str(seed), [{"code": None}])}
            if codes != {latest.get(arm)}:
                found.setdefault(arm, []).append(seed)
    return found


def criteria_of(study: Study[S], folder: str | Path | None = None) -> pd.DataFrame:
    """The figures of a long run with their criteria, columns of `studies.engine.criteria`; in its
    `attrs["outdated"]` the rows behind them that other code made (see `outdated`).

    Raises `DataError` when there are no results.
    """
    folder = Path(folder or study.results())
    table = criteria_table(study.criteria(load_results(study, folder), settings_of(study, folder)))
    table.attrs["outdated"] = outdated(folder)
    return table


def reports(studies: Iterable[Study[Any]]) -> Tables:
    """Criteria of every folder of results, by its name: of each study the main one first."""
    found = {}
    for study in studies:
        main = study.results()
        beside = sorted(path.parent for path in main.parent.glob(f"{main.name}-*/study.json"))
        for folder in [main, *beside]:
            if (folder / "study.json").is_file():
                found[folder.name] = criteria_of(study, folder)
    return found


def read_tables(study: Study[S], folder: Path) -> Tables:
    """The tables of `study` that are in `folder`, by name."""
    files = {name: folder / table.file(name) for name, table in study.tables.items()}
    return {name: read_table(path) for name, path in files.items() if path.is_file()}


def settings_of(study: Study[S], folder: Path) -> S:
    """The settings that the results in `folder` were made with; settings added since have their
    defaults.
    """
    record = read_json(folder / "study.json")["study"]
    known = {field.name for field in dataclasses.fields(study.settings)}  # type: ignore[arg-type]
    return study.settings(**{name: value for name, value in record.items() if name in known})


def _chosen(
    study: Study[S], settings: S, per: str, only: Iterable[str] | None
) -> list[tuple[str, Table[S]]]:
    wanted = None if only is None else set(only)
    for name in wanted or ():
        require_known(name, study.tables, f"the tables of study {study.name}")
    return [
        (name, table)
        for name, table in study.tables.items()
        if table.per == per and table.when(settings) and (wanted is None or name in wanted)
    ]


def _write(study: Study[S], out: Path, name: str, rows: pd.DataFrame) -> None:
    table = study.tables[name]
    write_table(out / table.file(name), rows, table.decimals)


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


def write_table(path: Path, table: pd.DataFrame, decimals: int = 5) -> None:
    """CSV with numbers in `decimals`, gzipped where the name ends in .gz; the same table gives the
    same bytes.
    """
    data = table.round(decimals).to_csv(index=False).encode()
    write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def read_table(path: Path) -> pd.DataFrame:
    """A table written by `write_table`; a word such as NA stays a word."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


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
