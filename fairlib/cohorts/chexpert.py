"""CheXpert as it is released, as a cohort of chest radiographs with one finding; prompt of Luo et
al. (arXiv 2412.20374).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.cohorts.chexpert_people import find_demographics, read_demographics
from fairlib.cohorts.fundus import RACES, SEX_WORDS, SEXES
from fairlib.cohorts.prompted import PromptCohort, with_prompts
from fairlib.cohorts.roco import read_picture
from fairlib.cohorts.table import report
from fairlib.cohorts.text_tables import column, read_rows, refuse_twice
from fairlib.cohorts.vocabulary import number_of, word_of
from fairlib.errors import DataError, SettingsError
from fairlib.settings import unknown_key

FOLDERS = ("CheXpert-v1.0", "CheXpert-v1.0-small")  # also the prefixes of Path
TABLES = {"train.csv": "training", "valid.csv": "validation"}
PATH = re.compile(
    r"(?:CheXpert-v1\.0(?:-small)?/)?"
    r"((?:train|valid|test)/(patient\d+)/study\d+/view\d+_(?:frontal|lateral)\.(?:jpg|png))"
)
MENTIONS = {"1": "present", "0": "absent", "-1": "uncertain", "": "not mentioned"}
POLICIES = ("zeros", "ones", "exclude")
UNMENTIONED = ("exclude", "zeros")
ATTRIBUTES = {"sex": SEXES, "race": RACES}  # five groups for the perturbation
NEEDED = ("sex", "race", "finding")
SEX = {"female": "F", "male": "M"}
COLUMNS = (
    "subject",
    "sex",
    "race",
    "primary_race",
    "age",
    "view",
    "projection",
    "mention",
    "finding",
    "use",
    "image",
)


def read_chexpert(
    root: str | Path,
    uncertain: str | None = None,
    demographics: str | Path | None = None,
    label: str = "Pleural Effusion",
    unmentioned: str = "exclude",
    frontal_only: bool = True,
    size: int = 128,
) -> PromptCohort:
    """The radiographs of `root` (CheXpert-v1.0 or CheXpert-v1.0-small, or the folder that holds
    it).

    Reads `train.csv` and `valid.csv` (those that are there). `uncertain` is the policy for the
    label -1 and must be given: "zeros" (absent, as the paper's code), "ones" (present) or "exclude"
    (left out and listed). A blank cell means not
    mentioned: `unmentioned` "exclude" leaves the finding missing, "zeros" takes it as absent. Race
    is joined from the demographic sheet (`demographics`; by default `CHEXPERT DEMO.xlsx` or `.csv`
    in one of the two folders).

    One row is one picture: subject (the patient, so that `split()` is by patient), sex, race
    (Asian, Black, White or missing), primary_race (the sheet's words), age (years), view,
    projection, mention (what the label says), finding (`label`, "non " and `label`, or missing),
    use (training/validation, the release's split), image, prompt. `with_prompt()` drops and counts
    those without sex, race or finding. Pictures are read when loaded: grey, padded to a square.

    Lateral views are left out unless `frontal_only` is False; pictures that are not on the disk are
    listed in `excluded`. Patients of whom csv and sheet state another sex are listed in `notes`.
    Raises `SettingsError` on a policy that is missing or unknown, `DataError` on another layout, a
    missing column or sheet, a Path, label, sex or age that is none, and a patient of two races.
    """
    _check_policies(uncertain, unmentioned)
    root = Path(root)
    folder = _folder(root)
    rows = [
        row
        for name, use in TABLES.items()
        if (folder / name).is_file()
        for row in _rows(folder / name, label, use)
    ]
    refuse_twice(folder, [row["image"] for row in rows])
    people = read_demographics(demographics or find_demographics([folder, root, root.parent]))
    kept, lost = _choose(folder, rows, uncertain, frontal_only)
    table = pd.DataFrame(
        [_joined(row, people, label, uncertain, unmentioned) for row in kept], columns=list(COLUMNS)
    )
    table = table.astype({name: float if name == "age" else "string" for name in COLUMNS})
    cohort = PromptCohort(
        "chexpert",
        with_prompts(table, NEEDED, _Prompt(label)),
        _Reader(folder, size),
        report(lost),
        needed=NEEDED,
    )
    return replace(cohort, notes=_sex_notes(table, people))


def prompt_of(row: Mapping, label: str = "Pleural Effusion") -> str:
    """The prompt of one row (mapping with sex, race, finding).

    For example "Chest Radiography image of a Female Asian patient diagnosed with Pleural Effusion",
    or "... with non Pleural Effusion". Raises `DataError` on a value outside the template.
    """
    for name, known in {**ATTRIBUTES, "finding": (label, f"non {label}")}.items():
        if pd.isna(row[name]) or row[name] not in known:
            raise DataError(
                f"{name} {row[name]!r}: the prompt knows {', '.join(known)}; leave rows without "
                "one out"
            )
    person = f"{SEX_WORDS[row['sex']]} {row['race']} patient"
    return f"Chest Radiography image of a {person} diagnosed with {row['finding']}"


@dataclass(frozen=True)
class _Prompt:
    label: str

    def __call__(self, row: Mapping) -> str:
        return prompt_of(row, self.label)


@dataclass(frozen=True)
class _Reader:
    folder: Path
    size: int

    def __call__(self, key: str) -> np.ndarray:
        return read_picture(self.folder / key, self.size)


def _rows(path: Path, label: str, use: str) -> list[dict]:
    """The rows of one table, without what the sheet adds."""
    rows = read_rows(path)
    names = {
        "path": "Path",
        "sex": "Sex",
        "age": "Age",
        "view": "Frontal/Lateral",
        "projection": "AP/PA",
        "label": label,
    }
    places = {name: column(path, rows[0], heading) for name, heading in names.items()}
    return [
        _row(path, {name: row[place] for name, place in places.items()}, label, use)
        for row in rows[1:]
    ]


def _row(path: Path, cells: dict[str, str], label: str, use: str) -> dict:
    found = PATH.fullmatch(cells["path"])
    if found is None:
        raise DataError(
            f"{path}: Path {cells['path']!r}; expected "
            "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg, "
            "or the same after CheXpert-v1.0-small/"
        )
    where = f"{path}: {found[1]}"
    text = cells["label"].removesuffix(".0")
    if text not in MENTIONS:
        raise DataError(
            f"{where}: {label} is {cells['label']!r}; expected 1, 0, -1 or an empty cell"
        )
    return {
        "subject": found[2],
        "sex": word_of(where, "Sex", cells["sex"], SEX),
        "age": number_of(where, "Age", cells["age"], 0, 120),
        "view": word_of(
            where, "Frontal/Lateral", cells["view"], {"frontal": "frontal", "lateral": "lateral"}
        ),
        "projection": cells["projection"] or None,
        "mention": MENTIONS[text],
        "use": use,
        "image": found[1],
    }


def _choose(
    folder: Path, rows: Sequence[dict], uncertain: str, frontal_only: bool
) -> tuple[list[dict], list[tuple]]:
    kept, lost = [], []
    for row in rows:
        if frontal_only and row["view"] != "frontal":
            lost.append((row["image"], "not frontal", ""))
        elif uncertain == "exclude" and row["mention"] == "uncertain":
            lost.append((row["image"], "label uncertain", ""))
        elif not (folder / row["image"]).is_file():
            lost.append((row["image"], "image missing", ""))
        else:
            kept.append(row)
    if not kept:
        raise DataError(
            f"{folder}: none of the {len(rows)} listed pictures can be used, such as {lost[:1]}; "
            "check the folder"
        )
    return kept, lost


def _joined(
    row: dict, people: Mapping[str, dict], label: str, uncertain: str, unmentioned: str
) -> dict:
    person = people.get(row["subject"], {})
    present = {
        "present": True,
        "absent": False,
        "uncertain": uncertain == "ones",
        "not mentioned": False if unmentioned == "zeros" else None,
    }[row["mention"]]
    finding = None if present is None else label if present else f"non {label}"
    return {
        **row,
        "race": person.get("race"),
        "primary_race": person.get("primary_race"),
        "finding": finding,
    }


def _sex_notes(table: pd.DataFrame, people: Mapping[str, dict]) -> pd.DataFrame:
    pairs = table[["subject", "sex"]].drop_duplicates().dropna()
    return report(
        [
            (
                subject,
                "sex differs from the demographic sheet",
                f"csv {sex}, sheet {people[subject]['sex']}",
            )
            for subject, sex in pairs.itertuples(index=False)
            if subject in people and people[subject]["sex"] not in (None, sex)
        ]
    )


def _folder(root: Path) -> Path:
    for folder in (root, *(root / name for name in FOLDERS)):
        if any((folder / name).is_file() for name in TABLES):
            return folder
    raise DataError(
        f"{root}: holds neither train.csv nor valid.csv, nor does {' or '.join(FOLDERS)} in it; "
        "give that folder"
    )


def _check_policies(uncertain: str | None, unmentioned: str) -> None:
    if uncertain is None:
        raise SettingsError(
            "CheXpert marks labels as uncertain (-1), and what they count as changes every result: "
            "give "
            f"uncertain= one of {', '.join(POLICIES)} (the paper's code takes zeros)"
        )
    if uncertain not in POLICIES:
        raise SettingsError(
            unknown_key(uncertain, list(POLICIES), "the policies for uncertain labels")
        )
    if unmentioned not in UNMENTIONED:
        raise SettingsError(
            unknown_key(
                unmentioned, list(UNMENTIONED), "the policies for labels that are not mentioned"
            )
        )
