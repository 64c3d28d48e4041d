"""FairGenMed as it is released (Luo et al., arXiv 2412.20374): npz files in three folders, and
`data_summary.csv`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.cohorts.fairgenmed_npz import RACE_WORDS, FundusReader, UnknownCode, read_codes
from fairlib.cohorts.fundus import (
    CDR_STATUSES,
    ETHNICITIES,
    PROMPTED,
    REFRACTIONS,
    RNFLT_STATUSES,
    SEVERITIES,
    USES,
    prompt_of,
)
from fairlib.cohorts.prompted import PromptCohort, with_prompts
from fairlib.cohorts.table import report
from fairlib.cohorts.text_tables import column, read_rows, refuse_twice
from fairlib.cohorts.vocabulary import itself, number_of, word_of
from fairlib.errors import DataError

TABLE, TRUTH = "data_summary.csv", "truth.csv"
FOLDERS = dict(zip(USES, ("Training", "Validation", "Test"), strict=True))
# the csv's name, and the README's
REFRACTION_COLUMNS = ("near_vision_refraction_stage", "se_status")
FIELDS = {
    "sex": "gender",
    "race": "race",
    "ethnicity": "ethnicity",
    "glaucoma": "glaucoma",
    "use": "use",
    "md_severity": "md_severity",
    "cdr_status": "cdr_status",
    "rnflt_status": "rnflt_status",
}
NUMBERS = {"age": (0, 120), "md": (-60, 20)}  # years, dB
COLUMNS = (
    "subject",
    "age",
    "sex",
    "race",
    "ethnicity",
    "glaucoma",
    "md",
    "md_severity",
    "cdr_status",
    "rnflt_status",
    "refraction",
    "use",
    "image",
)
WORDS = {
    "sex": {"female": "F", "male": "M", "f": "F", "m": "M"},
    "race": RACE_WORDS,
    "ethnicity": itself(ETHNICITIES),
    "glaucoma": {"yes": "glaucoma", "no": "non-glaucoma"},
    "use": itself(USES),
    "md_severity": itself(SEVERITIES),
    "cdr_status": itself(CDR_STATUSES) | {"borderline abnormal": "borderline"},
    "rnflt_status": itself(RNFLT_STATUSES),
    "refraction": {"positive": "hyperopia", "neutral": "emmetropia", "negative": "myopia"}
    | itself(REFRACTIONS),
}


def read_fairgenmed(
    root: str | Path,
    size: int = 128,
    rotate: bool = False,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PromptCohort:
    """The subjects of `root`: `data_summary.csv`, and `{Training,Validation,Test}/data_XXXXX.npz`
    by its column `use`.

    One row is one subject: subject, age (years), sex, race, ethnicity, glaucoma, md (dB),
    md_severity, cdr_status, rnflt_status, refraction, use, image, prompt (missing where one of its
    attributes is: `with_prompt()` counts and drops those), and the truth of a phantom (`truth.csv`:
    cdr, disc_diameter, ...). `parts()` is the release's split. Pictures are read when loaded (see
    `fairgenmed_npz.fundus_picture`; `rotate` turns them by -90 degrees as the paper's code does);
    each npz is opened once here for its codes alone. `progress(done, subjects)`.

    Left out and listed in `excluded`: a row without its npz, an npz without a row, a race,
    glaucoma, male or hispanic code outside of the release's, csv and npz that disagree on one of
    them. With `strict`, the first of these is a `DataError` instead. Always a `DataError`: another
    layout, a missing column, an unknown word, a file name twice, an npz that is broken, or one
    whose arrays are pickled objects (they are never unpickled).
    """
    root = Path(root)
    people = read_people(root / TABLE)
    found = find_npz(root)
    lost = [
        (name, "not in the table", folder) for name, folder in found.items() if name not in people
    ]
    for done, (name, person) in enumerate(people.items(), 1):
        problem = _problem(root, name, person, found)
        lost += [(name, *problem)] if problem else []
        if progress is not None:
            progress(done, len(people))
    if strict and lost:
        raise DataError(
            f"{root}: {lost[0][0]}: {lost[0][1]} ({lost[0][2]}), {len(lost)} such in all; correct "
            "the data, or read "
            "with strict=False to leave them out"
        )
    gone = {name for name, *_ in lost}
    kept = [person for name, person in people.items() if name not in gone]
    if not kept:
        raise DataError(
            f"{root}: no subject can be used ({len(lost)} left out, such as {lost[:1]}); check "
            "folder and csv"
        )
    table = with_prompts(_with_truth(_table(kept), root / TRUTH), tuple(PROMPTED), prompt_of)
    return PromptCohort(
        "fairgenmed", table, FundusReader(root, size, rotate), report(lost), needed=tuple(PROMPTED)
    )


def read_people(path: str | Path) -> dict[str, dict]:
    """`data_summary.csv` as npz file name -> attributes in our words, missing ones None or NaN.

    Raises `DataError`.
    """
    rows = read_rows(path)
    names = [name for name in REFRACTION_COLUMNS if name in rows[0]] or REFRACTION_COLUMNS[:1]
    fields = {
        **FIELDS,
        "refraction": names[0],
        "filename": "filename",
        **{name: name for name in NUMBERS},
    }
    places = {name: column(path, rows[0], label) for name, label in fields.items()}
    raw = [{name: row[place] for name, place in places.items()} for row in rows[1:]]
    people = [_person(path, row, fields) for row in raw]
    refuse_twice(path, [name for name, _ in people])
    return dict(people)


def find_npz(root: Path) -> dict[str, str]:
    """npz file name -> the folder it lies in.

    Raises `DataError` when no folder is there, or a name lies in two.
    """
    folders = [folder for folder in FOLDERS.values() if (root / folder).is_dir()]
    if not folders:
        raise DataError(
            f"{root}: none of {', '.join(FOLDERS.values())} is there; give the folder that holds "
            f"{TABLE}"
        )
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted((root / folder).glob("*.npz")):
            if path.name in found:
                raise DataError(
                    f"{root}: {path.name} lies in {found[path.name]} and {folder}; a subject is in "
                    "one part only"
                )
            found[path.name] = folder
    return found


def _person(path: str | Path, row: dict[str, str], fields: Mapping[str, str]) -> tuple[str, dict]:
    name = row["filename"] if row["filename"].endswith(".npz") else f"{row['filename']}.npz"
    if Path(name).name != name or name == ".npz":
        raise DataError(
            f"{path}: filename {row['filename']!r}; expected a name such as data_00001.npz, "
            "without a folder"
        )
    where = f"{path}: {name}"
    person = {key: word_of(where, fields[key], row[key], words) for key, words in WORDS.items()}
    if person["use"] is None:
        raise DataError(f"{where}: use is empty; expected one of {', '.join(USES)}")
    numbers = {key: number_of(where, key, row[key], *limits) for key, limits in NUMBERS.items()}
    return name, {
        "subject": name.removesuffix(".npz"),
        **person,
        **numbers,
        "image": f"{FOLDERS[person['use']]}/{name}",
    }


def _problem(root: Path, name: str, person: dict, found: dict[str, str]) -> tuple[str, str] | None:
    """(reason, detail) why a row of the table cannot be used."""
    if name not in found:
        return "npz missing", f"expected {person['image']}"
    if found[name] != FOLDERS[person["use"]]:
        return "npz in another folder", f"use says {person['use']}, the file lies in {found[name]}"
    try:
        codes = read_codes(root / person["image"])
    except UnknownCode as why:
        return "unknown code", str(why)
    apart = [
        f"{key}: csv {person[key]}, npz {said}"
        for key, said in codes.items()
        if said is not None and person[key] is not None and said != person[key]
    ]
    return ("csv and npz disagree", "; ".join(apart)) if apart else None


def _table(people: list[dict]) -> pd.DataFrame:
    table = pd.DataFrame(people, columns=list(COLUMNS))
    return table.astype({name: float if name in NUMBERS else "string" for name in COLUMNS})


def _with_truth(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Join what a phantom knows of its pictures: every column of `truth.csv` that the table lacks,
    by `filename`.
    """
    if not path.is_file():
        return table
    rows = read_rows(path)
    key = column(path, rows[0], "filename")
    refuse_twice(path, [row[key] for row in rows[1:]])
    truth = (
        pd.DataFrame(rows[1:], columns=rows[0])
        .set_index("filename")
        .reindex(table["subject"] + ".npz")
    )
    new = [name for name in truth if name not in table]
    return table.assign(
        **{name: pd.to_numeric(truth[name]).to_numpy(dtype=float, na_value=np.nan) for name in new}
    )
