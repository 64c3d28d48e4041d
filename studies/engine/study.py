"""A study is data: its arms, evaluators, cohorts and tables are entries of dictionaries, each made
of functions; a new arm is one function and one line, and so is a new table.

Here are these registries, and the tables of a study: made in memory, or read from
`results/<folder>`, where `studies.engine.running` writes them. What is computed once lies in stages
(`studies.engine.stage`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pandas as pd
from torch import Tensor

from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json, read_sheet
from fairlib.settings import require_known, to_dict
from studies.engine import repository
from studies.engine.stage import Artifact

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
    study: Study[S], settings: S, arm: str, seed: int, only: Collection[str] | None = None
) -> Tables:
    """Make the tables of one arm and seed."""
    run = Run(study, settings, arm, seed)
    return {
        name: table.make(run).assign(arm=arm, seed=seed)
        for name, table in chosen_tables(study, settings, "run", only)
        if table.arms(arm)
    }


def tables_of(
    study: Study[S],
    settings: S,
    arms: Iterable[str] | None = None,
    seeds: Iterable[int] = (1,),
    only: Collection[str] | None = None,
) -> Tables:
    """All tables of `arms` and `seeds` in memory, as a notebook wants them; nothing is written but
    stages.
    """
    cells = product(dict.fromkeys(seeds), study.arms_of(settings, arms))
    rows = [run_tables(study, settings, arm, seed, only) for seed, arm in cells]
    once = chosen_tables(study, settings, "study", only)
    tables = {name: table.make(settings) for name, table in once}
    for name, _ in chosen_tables(study, settings, "run", only):
        if parts := [one[name] for one in rows if name in one]:
            tables[name] = study.ordered(pd.concat(parts, ignore_index=True))
    for name, table in chosen_tables(study, settings, "summary", only):
        tables[name] = table.make(tables, settings)
    return tables


def results_of(
    study: Study[S],
    settings: S,
    runs: str,
    arms: Iterable[str],
    seed: int | Iterable[int],
    only: Collection[str] | None = None,
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


def chosen_tables(
    study: Study[S], settings: S, per: str, only: Collection[str] | None
) -> list[tuple[str, Table[S]]]:
    """Tables made `per` run, study or summary that a study of these settings has: of `only` (names)
    where it is given. Raises `SettingsError` on an unknown one.
    """
    for name in only or ():
        require_known(name, study.tables, f"the tables of study {study.name}")
    return [
        (name, table)
        for name, table in study.tables.items()
        if table.per == per and table.when(settings) and (only is None or name in only)
    ]


def sheet_path(folder: Path, arm: str, seed: int) -> Path:
    """Where the images of one arm and seed lie that a reader sees."""
    return folder / "images" / f"{arm}-{seed}.png"


def read_table(path: Path) -> pd.DataFrame:
    """A table of a study from its file; a word such as NA stays a word."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])
