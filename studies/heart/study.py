"""The whole heart study, written down: `python -m studies heart` makes `results/heart`.

Beside it lie a half of it each: `--people 150` makes `results/heart-shared`, the downstream tables
alone; `--guidance 2` makes `results/heart-guidance2`, the tables on the hearts alone. What a half
has in common with the main study is its stages.

    hearts.csv.gz       what was asked for and what the instruments found, one row a heart
    (generated, or real and unseen) dice.csv            asked and found masks, per subgroup;
    geometry.csv  measured geometry against the law recovered.csv       is the person asked in the
    image;     flips.csv     prompt or mask distances.csv       to real hearts, with the floor;
    frechet.csv, memorisation.csv too_few.csv         what those lack for want of people;
    excluded.csv  people of a real cohort who are in no part people.csv.gz       who was tested;
    margins.csv.gz  every answer of every arm and seed values.csv, differences.csv
    the downstream tables small_groups.csv    subgroups with too few people for them study.json
    settings, commit, packages, device
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.errors import SettingsError
from fairlib.methods.downstream import ARMS as KNOWN
from fairlib.settings import to_dict, unknown_key
from studies.engine.progress import Progress
from studies.engine.results import (
    INPUTS,
    growing,
    merged,
    read_table,
    same_study,
    write_record,
    write_table,
)
from studies.heart import control, downstream, realism
from studies.heart.cohorts import people_left_out, table_digest
from studies.heart.generation import generator_digest
from studies.heart.report import heart_results_folder
from studies.heart.settings import ARMS, WAYS, HeartStudy

KEEP = ("sex", "age", "bmi", "height", "decade", "bmi_class", "diagnosis", "subject")


def run_heart_study(
    study: HeartStudy,
    arms=None,
    seeds=tuple(range(1, 9)),
    out: Path | None = None,
    replicates: int = 1000,
    n_min: int = 10,
) -> Path:
    """Generate, measure, train every arm at every seed, and write the tables; returns their folder,
    `results/<study.name>`.

    arms: `study.arms` unless others are named. n_min: ill and healthy people that a subgroup of the
    downstream tables must have.

    A study that `draws_hearts` gets the tables on the hearts, one that `trains_classifiers` the
    downstream tables. Run again it finds its stages; answers of arms and seeds that are already in
    the folder are kept, made anew they take the place of the old. Raises `SettingsError` on an
    unknown arm, one that a real cohort cannot have, or an n_min below 1, `DataError` when the
    folder holds another study.
    """
    out = Path(out or heart_results_folder(study.name))
    arms = _checked(study, arms, n_min)
    same_study(out / "study.json", _identity(study))
    if study.cohort != "phantom":
        write_table(out / "excluded.csv", people_left_out(study))
    if study.draws_hearts:
        tables = measured(study, replicates)
        with growing(out, _identity(study)):
            for name, table in tables.items():
                write_table(out / name, table)
    if study.trains_classifiers:
        _train(study, arms, seeds, out)
        with growing(out, _identity(study)):
            write_downstream(
                out,
                read_table(out / "margins.csv.gz"),
                downstream.people_of(study),
                replicates,
                n_min,
            )
    else:
        with growing(out, _identity(study)):
            _record(study, pd.DataFrame(columns=["arm", "seed"]), out)
    return out


def _checked(study: HeartStudy, arms, n_min: int) -> tuple[str, ...]:
    if n_min < 1:
        raise SettingsError(f"n_min {n_min}: a subgroup needs at least 1 ill and 1 healthy person")
    if arms is None and study.arms != ARMS:
        Progress().say(
            f"cohort {study.cohort}: without arm extra_real, a real cohort has no people beyond "
            "its parts"
        )
    arms = study.arms if arms is None else tuple(arms)
    for arm in arms:
        if arm not in KNOWN:
            raise SettingsError(unknown_key(arm, list(KNOWN), "the arms"))
    if "extra_real" in arms and study.cohort != "phantom":
        raise SettingsError(
            f"arm 'extra_real': cohort {study.cohort!r} has no people beyond its parts; leave it "
            "out"
        )
    return arms


def _train(study: HeartStudy, arms, seeds, out: Path) -> None:
    for seed in dict.fromkeys(seeds):
        made = downstream.predictions_of(study, arms, [seed])
        with growing(out, _identity(study)):
            write_table(out / "people.csv.gz", downstream.people_of(study))
            margins = merged(out / "margins.csv.gz", made)
            write_table(out / "margins.csv.gz", margins)
            _record(study, margins, out)


def _record(study: HeartStudy, trained: pd.DataFrame, out: Path) -> None:
    people = "synthetic" if study.cohort == "phantom" else "patients of M&Ms"
    write_record(out / "study.json", _identity(study), trained, people)


def measured(study: HeartStudy, replicates: int = 1000) -> dict[str, pd.DataFrame]:
    """Every table on the generated hearts themselves, by file name. Deterministic."""
    rng, tables = np.random.default_rng(61), {}
    sources = [*WAYS, *(f"flipped-{word}" for word in control.FLIPS), "hold"]
    kept = [_kept(control.readings(study, source)[0], source) for source in sources]
    tables["hearts.csv.gz"] = pd.concat(kept, ignore_index=True)
    tables["dice.csv"] = _by_way(lambda way: control.dice_of(study, way, rng, replicates))
    if study.cohort == "phantom":
        tables["geometry.csv"] = _by_way(
            lambda way: control.geometry_of(study, way, rng, replicates)
        )
    real = control.readings(study, "hold")[0]
    tables["recovered.csv"] = _by_way(
        lambda way: control.recovered(control.readings(study, way)[0], real, rng, replicates)
    )
    tables["flips.csv"] = control.prompt_or_mask(study, rng, replicates)
    tables["distances.csv"], left_out = realism.distances_of(study, rng)
    tables["frechet.csv"] = realism.frechet_floor(study, rng)
    tables["too_few.csv"] = realism.too_few(left_out, tables["frechet.csv"])
    tables["memorisation.csv"] = realism.memorisation_of(study, rng, replicates)[0]
    return tables


def write_downstream(
    out: Path, margins: pd.DataFrame, people: pd.DataFrame, replicates: int = 1000, n_min: int = 10
) -> None:
    """The downstream tables, from the answers that lie in the folder; `small_groups.csv` names who
    is too few for them.
    """
    cuts, small = downstream.comparable(people, n_min)
    values, differences = downstream.tables_of(
        margins, people, np.random.default_rng(62), replicates, n_min, cuts
    )
    write_table(out / "small_groups.csv", small)
    write_table(out / "values.csv", values)
    write_table(out / "differences.csv", differences)


def _kept(table: pd.DataFrame, source: str) -> pd.DataFrame:
    found = [name for name in table if name.startswith(("dice_", "measured_", "read_"))]
    return table[[*KEEP, *found]].round(3).assign(hearts=source)


def _by_way(make) -> pd.DataFrame:
    return pd.concat([make(way).assign(way=way) for way in WAYS], ignore_index=True)


def _identity(study: HeartStudy) -> dict:
    """What makes results comparable: all settings but the folder names, the weights themselves, and
    who is in the cohort.
    """
    settings = {
        name: value
        for name, value in to_dict(study).items()
        if name not in ("weights", "controlnet", "data_dir")
    }
    weights, *controlnet = generator_digest(study)
    return {
        "study": settings,
        "weights": weights,
        INPUTS: {"controlnet": controlnet, "cohort": table_digest(study)},
    }
