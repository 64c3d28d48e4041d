"""The whole fundus study, written down: `python -m studies fundus` makes `results/fundus`.

    people.csv.gz       asked and reference people, one row each, with the ratio that the words of
    the prompt stand for readings.csv.gz     one row a picture: arm, seed, image, what was asked,
    what the ruler and the reader found, and what a
                        classifier trained on real people says
    answers.csv.gz      one row a reference person: what a classifier trained on an arm's pictures
    says distances.csv.gz    MMD of each race, as observed (draw 0) and in every bootstrap draw
    history.csv.gz      the diary of every fine-tuning;  probe.csv.gz  losses of the finished
    denoisers on the held-out probe values.csv, differences.csv, excluded.csv study.json
    settings, commit, packages, device, arms and seeds

The last three tables follow from the others alone (`figures_from`), so a copy of the folder is all
that a reader needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.cohorts.fairgenmed import PROMPTED
from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json
from fairlib.settings import unknown_key
from studies.engine.places import repository
from studies.engine.results import (
    INPUTS,
    growing,
    merged,
    read_table,
    same_study,
    write_record,
    write_table,
)
from studies.fundus import finetuning
from studies.fundus.asked import asked_ratios
from studies.fundus.cohorts import fundi, table_digest
from studies.fundus.comparison import differences_table, values_table
from studies.fundus.distances import race_distances, times
from studies.fundus.judges import readings
from studies.fundus.semantics import answers
from studies.fundus.settings import ARMS, REAL, UNTUNED, FundusStudy, identity, rows_of, untuned
from studies.fundus.statistics import Figures, People, excluded, figures_of

RAW = ("readings", "answers", "distances", "probe", "history")
NO_LAW = "cup-to-disc error: only a phantom's law says which ratio the words of a prompt stand for"


def run_fundus_study(
    study: FundusStudy,
    arms: Iterable[str] = ARMS,
    seeds: Iterable[int] = (1, 2, 3, 4, 5),
    out: str | Path | None = None,
) -> Path:
    """Fine-tune, draw, measure and compare every arm at every seed; returns the folder of the
    tables.

    Rows "base" and "everyone" (no fine-tuning here) and "real" are made for every seed. Tables are
    written after every arm and seed; those of arms and seeds that are already in the folder are
    kept, made anew they take the place of the old. Raises `SettingsError` on an unknown arm,
    `DataError` when the folder holds another study.
    """
    arms, seeds, out = (
        tuple(dict.fromkeys(arms)),
        tuple(dict.fromkeys(seeds)),
        Path(out or fundus_results_folder()),
    )
    for arm in arms:
        if arm not in ARMS:
            raise SettingsError(unknown_key(arm, list(ARMS), "the arms"))
    same_study(out / "study.json", _identity(study))
    known: dict[tuple[str, int], Figures] = {}
    for seed in seeds:
        for arm in rows_of(study, arms):
            tables = raw_tables(study, arm, seed)
            with growing(out, _identity(study)):
                write_table(out / "people.csv.gz", people_table(study))
                for name, table in tables.items():
                    path = out / f"{name}.csv.gz"
                    write_table(path, _ordered(merged(path, table)))
                _say_what(out, study)
            known.pop((arm, seed), None)
        with growing(out, _identity(study)):
            write_summary(out, known)
    return out


def measured(
    study: FundusStudy, arms: Iterable[str], seeds: Iterable[int]
) -> dict[str, pd.DataFrame]:
    """The same tables in memory, as a notebook wants them: people, `RAW`, values, differences,
    excluded; nothing is written.
    """
    rows = rows_of(study, dict.fromkeys(arms))
    found = [raw_tables(study, arm, seed) for seed in dict.fromkeys(seeds) for arm in rows]
    tables = {
        name: pd.concat([one[name] for one in found if name in one], ignore_index=True)
        for name in RAW
    }
    tables["people"] = people_table(study)
    figures = figures_from(tables, study.replicates, study.n_min)
    people = people_from(tables["people"], 1, study.n_min)
    return tables | {
        "values": values_table(figures),
        "differences": differences_table(figures),
        "excluded": excluded(people),
    }


def raw_tables(study: FundusStudy, arm: str, seed: int) -> dict[str, pd.DataFrame]:
    """What one arm and seed leaves behind, by name of `RAW`: "real" has no probe, and no row
    without fine-tuning a history.
    """
    said, tried = answers(study, arm, seed)
    asked = fundi(study, "asked").table[list(PROMPTED)].reset_index(drop=True)
    found = pd.concat([asked, readings(study, arm, seed), tried], axis=1)
    tables = {
        "readings": found.assign(image=range(len(found))),
        "answers": said.assign(person=range(len(said))),
        "distances": (drawn := race_distances(study, arm, seed)).assign(draw=range(len(drawn))),
    }
    if arm != REAL:
        tables["probe"] = pd.DataFrame([finetuning.final_probe(study, arm, seed)])
    if arm not in (REAL, *UNTUNED):
        tables["history"] = finetuning.history(study, arm, seed)
    return {name: table.assign(arm=arm, seed=seed) for name, table in tables.items()}


def people_table(study: FundusStudy) -> pd.DataFrame:
    """Asked and reference people: part, person, attributes, and `asked_cdr` where the cohort is the
    phantom.
    """
    parts = []
    for part in ("asked", "reference"):
        table = fundi(study, part).table[list(PROMPTED)].reset_index(drop=True)
        ratios = asked_ratios(table) if study.cohort == "phantom" else np.nan
        parts.append(table.assign(part=part, person=range(len(table)), asked_cdr=ratios))
    return pd.concat(parts, ignore_index=True)


def people_from(table: pd.DataFrame, replicates: int, n_min: int) -> People:
    """The people of `people.csv.gz` with their bootstrap draws."""
    asked, reference = (
        table[table["part"] == part].reset_index(drop=True) for part in ("asked", "reference")
    )
    return People(
        asked, reference, times(asked, replicates, 0), times(reference, replicates, 1), n_min
    )


def figures_from(
    tables: dict[str, pd.DataFrame],
    replicates: int,
    n_min: int,
    known: dict[tuple[str, int], Figures] | None = None,
) -> dict[tuple[str, int], Figures]:
    """The figures of every arm and seed in the raw tables; `known` ones are not computed again, and
    new ones are added to it.
    """
    known = {} if known is None else known
    people = people_from(tables["people"], replicates, n_min)
    parts = {
        name: dict(iter(tables[name].groupby(["arm", "seed"])))
        for name in ("readings", "answers", "distances")
    }
    order = {arm: place for place, arm in enumerate((REAL, *UNTUNED, *ARMS))}
    keys = sorted(parts["readings"], key=lambda key: (order.get(key[0], len(order)), key[1]))
    for arm, seed in keys:
        if (arm, seed) not in known:
            rows = {name: parts[name][arm, seed].reset_index(drop=True) for name in parts}
            real = None if arm == REAL else parts["readings"].get((REAL, seed))
            known[arm, seed] = figures_of(
                people,
                rows["readings"],
                rows["answers"],
                rows["distances"],
                None if real is None else real.reset_index(drop=True),
            )
    return {key: known[key] for key in keys}


def write_summary(out: Path, known: dict[tuple[str, int], Figures] | None = None) -> None:
    """values.csv, differences.csv and excluded.csv from the raw tables in the folder."""
    study = read_json(out / "study.json")["study"]
    tables = {
        name: read_table(out / f"{name}.csv.gz")
        for name in ("people", "readings", "answers", "distances")
    }
    found = figures_from(tables, study["replicates"], study["n_min"], known)
    write_table(out / "values.csv", values_table(found))
    write_table(out / "differences.csv", differences_table(found))
    write_table(out / "excluded.csv", excluded(people_from(tables["people"], 1, study["n_min"])))


def fundus_results_folder() -> Path:
    """Where the long run of the fundus study lies."""
    return repository() / "results" / "fundus"


def load_fundus_results(folder: str | Path | None = None) -> dict:
    """The tables that `python -m studies fundus` wrote, by name, and `study` (study.json).

    Raises `DataError` when they are not there.
    """
    folder = Path(folder or fundus_results_folder())
    names = {
        **{name: f"{name}.csv.gz" for name in ("people", *RAW)},
        **{name: f"{name}.csv" for name in ("values", "differences", "excluded")},
        "study": "study.json",
    }
    missing = [file for file in names.values() if not (folder / file).is_file()]
    if missing:
        raise DataError(
            f"{folder}: no results here ({missing[0]} is missing); make them with `python -m "
            "fairlib fundus`"
        )
    return {
        name: read_json(folder / file) if name == "study" else read_table(folder / file)
        for name, file in names.items()
    }


def _identity(study: FundusStudy) -> dict:
    starts = (arm for arm in rows_of(study) if arm != REAL)
    return {
        "study": identity(study),
        "weights": {arm: finetuning.generator_digest(untuned(study, arm)) for arm in starts},
        INPUTS: {"cohort": table_digest(study)},
    }


def _say_what(out: Path, study: FundusStudy) -> None:
    phantom = study.cohort == "phantom"
    write_record(
        out / "study.json",
        _identity(study),
        read_table(out / "readings.csv.gz"),
        "synthetic" if phantom else "patients of FairGenMed",
        left_out=[] if phantom else [NO_LAW],
    )


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Seed by seed, arms in the order of the study."""
    order = {name: place for place, name in enumerate((REAL, *UNTUNED, *ARMS))}
    return (
        table.assign(_place=table["arm"].map(order))
        .sort_values(["seed", "_place"], kind="stable", ignore_index=True)
        .drop(columns="_place")
    )
