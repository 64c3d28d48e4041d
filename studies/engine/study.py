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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import pandas as pd

from fairlib.doctor import device, versions
from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json, write_bytes, write_json
from fairlib.settings import digest, to_dict, unknown_key
from studies.engine.criteria import criteria_table
from studies.engine.manifest import commit
from studies.engine.places import repository
from studies.engine.reach import code_digest
from studies.engine.stage import Artifact, alone

S = TypeVar("S")  # the settings of a study: a frozen dataclass
Tables = dict[str, pd.DataFrame]
# of a record: digests of what the study read; what older records lack is taken as it is
INPUTS = "inputs"
# where things lie is no part of what they are
PATHS = ("data_dir", "weights", "everyone", "clip", "controlnet", "reference_weights")


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
    tables -> rows of `studies.engine.criteria`.
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
            if arm not in self.arms:
                raise SettingsError(
                    unknown_key(arm, list(self.arms), f"the arms of study {self.name}")
                )
            if reason := self.arms[arm].refused(settings):
                raise SettingsError(f"arm {arm!r}: {reason}")
        first = self.references(settings) if references else ()
        return tuple(dict.fromkeys((*first, *chosen)))

    def ordered(self, table: pd.DataFrame) -> pd.DataFrame:
        """Rows seed by seed, arms in the order of the registry."""
        order = {arm: place for place, arm in enumerate(self.arms)}
        places = table["arm"].map(order).fillna(len(order))
        return (
            table.assign(_=places)
            .sort_values(["seed", "_"], kind="stable", ignore_index=True)
            .drop(columns="_")
        )


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
    rows = [
        run_tables(study, settings, arm, seed, only)
        for seed in dict.fromkeys(seeds)
        for arm in study.arms_of(settings, arms)
    ]
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

    Tables are written after every arm and seed. Those of arms and seeds that are in the folder
    already are kept; made again they take the place of the old. `only`: the tables to make.
    `references`: whether arms that the study always has are made, too. Raises `SettingsError` on an
    unknown arm, and `DataError` when the folder holds another study.
    """
    out = Path(out or study.results(settings))
    chosen = study.arms_of(settings, arms, references)
    made = study.identity(settings)
    same_study(out / "study.json", made)
    fixed = {
        name: (table, table.make(settings))
        for name, table in _chosen(study, settings, "study", only)
    }
    with growing(out, made):
        for name, (table, rows) in fixed.items():
            write_table(out / table.file(name), rows, table.decimals)
        _record(study, settings, out, made)
    for seed in dict.fromkeys(study.seeds if seeds is None else seeds):
        for arm in chosen:
            found = run_tables(study, settings, arm, seed, only)
            with growing(out, made):
                for name, rows in found.items():
                    table = study.tables[name]
                    path = out / table.file(name)
                    write_table(path, study.ordered(merged(path, rows)), table.decimals)
                _record(study, settings, out, made)
        with growing(out, made):
            summarise(study, settings, out, only)
    return out


def summarise(study: Study[S], settings: S, out: Path, only: Iterable[str] | None = None) -> None:
    """Make the summary tables again from the tables in the folder."""
    tables = read_tables(study, out)
    for name, table in _chosen(study, settings, "summary", only):
        tables[name] = table.make(tables, settings)
        write_table(out / table.file(name), tables[name], table.decimals)


def load_results(study: Study[S], folder: str | Path | None = None) -> Tables:
    """The tables of a long run, by name. Raises `DataError` when there are none."""
    folder = Path(folder or study.results())
    if not (folder / "study.json").is_file():
        raise DataError(
            f"{folder}: no results here (study.json is missing); make them with `python -m studies "
            f"{study.name}`"
        )
    return read_tables(study, folder)


def criteria_of(study: Study[S], folder: str | Path | None = None) -> pd.DataFrame:
    """The figures of a long run with their criteria, columns of `studies.engine.criteria`.

    Raises `DataError` when there are no results.
    """
    folder = Path(folder or study.results())
    tables = load_results(study, folder)
    return criteria_table(study.criteria(tables, settings_of(study, folder)))


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
        if name not in study.tables:
            raise SettingsError(
                unknown_key(name, list(study.tables), f"the tables of study {study.name}")
            )
    return [
        (name, table)
        for name, table in study.tables.items()
        if table.per == per and table.when(settings) and (wanted is None or name in wanted)
    ]


def _record(study: Study[S], settings: S, out: Path, made: dict[str, Any]) -> None:
    """What was run, with what and by what: identity, arms and seeds, code, commit, device,
    versions.
    """
    runs: dict[str, set[int]] = {}
    for name, table in study.tables.items():
        path = out / table.file(name)
        if table.per == "run" and path.is_file():
            for arm, rows in read_table(path).groupby("arm"):
                runs.setdefault(str(arm), set()).update(map(int, rows["seed"].unique()))
    code = digest({name: code_digest(table.make) for name, table in study.tables.items()})
    write_json(
        out / "study.json",
        {
            **made,
            "runs": {arm: sorted(seeds) for arm, seeds in runs.items()},
            "code": code,
            "commit": commit(),
            "device": device(),
            "packages": versions(),
            "people": study.sources[settings.cohort].people,  # type: ignore[attr-defined]
        },
    )


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
        old, done = read_table(path), set(zip(new["arm"], new["seed"], strict=True))
        new = pd.concat(
            [old[[key not in done for key in zip(old["arm"], old["seed"], strict=True)]], new]
        )
    return new.sort_values(["arm", "seed"], kind="stable", ignore_index=True)


def same_study(path: Path, identity: dict[str, Any]) -> None:
    """Raise `DataError` when the record at `path` is there and was made by a study that differs in
    `identity`; of its inputs, in those that the record names.
    """
    record = {INPUTS: {}, **(read_json(path) if path.is_file() else identity)}
    expected = dict(identity)
    if INPUTS in identity:
        expected[INPUTS] = {key: identity[INPUTS].get(key) for key in record[INPUTS]}
    differing = [key for key in expected if record.get(key) != expected[key]]
    if differing:
        raise DataError(
            f"{path}: these results come from another study (they differ in {differing[0]!r}); "
            "choose another --out, or delete the folder"
        )


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
