"""CheXpert as it is released, as a cohort of chest radiographs with one finding; prompt of Luo et
al. (arXiv 2412.20374). The demographic sheet gives race, which the release's csv files do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.cohorts.cohort import Cohort, prompted
from fairlib.cohorts.listing import (
    Excluded,
    faulty_images,
    first_of,
    folders,
    missing,
    read_file,
    read_grey,
    require_some,
)
from fairlib.cohorts.tables import (
    RACES,
    SEX_CELLS,
    SEX_WORDS,
    SEXES,
    itself,
    named_cells,
    number_of,
    read_rows,
    refuse_twice,
    require_words,
    sound_rows,
    typed,
    word_of,
)
from fairlib.errors import DataError, SettingsError
from fairlib.settings import require_known

FOLDERS = ("CheXpert-v1.0", "CheXpert-v1.0-small")  # also the prefixes of Path
TABLES = {"train.csv": "training", "valid.csv": "validation"}
SHEETS = ("CHEXPERT DEMO.xlsx", "CHEXPERT DEMO.csv")
PATH = re.compile(
    r"(?:(?:.*/)?CheXpert[^/]*/)?"
    r"((?:train|valid|test)/(patient\d+)/study\d+/view\d+_(?:frontal|lateral)\.(?:jpg|png))"
)
BATCH = re.compile(r"CheXpert-v1\.0 batch ", re.IGNORECASE)
MENTIONS = {"1": "present", "0": "absent", "-1": "uncertain", "": "not mentioned"}
POLICIES = ("zeros", "ones", "exclude")
UNMENTIONED = ("exclude", "zeros")
ATTRIBUTES = {"sex": SEXES, "race": RACES}  # five groups for the perturbation
NEEDED = ("sex", "race", "finding")
FIELDS = {"path": "Path", "sex": "Sex", "age": "Age", "view": "Frontal/Lateral"}
FIELDS |= {"projection": "AP/PA"}
SHEET_FIELDS = {"subject": "PATIENT", "sex": "GENDER", "primary_race": "PRIMARY_RACE"}
VIEWS = itself(("frontal", "lateral"))


def read_chexpert(
    root: str | Path,
    *,
    uncertain: str | None = None,
    unmentioned: str = "exclude",
    label: str = "Pleural Effusion",
    frontal_only: bool = True,
    demographics: str | Path | None = None,
    size: int = 128,
) -> Cohort:
    """Read the chest radiographs of CheXpert: `train.csv` and `valid.csv` (those that are there),
    with race joined from the demographic sheet. The release of 2021 is read as it is unpacked, in
    batches.

    Parameters
    ----------
    root
        CheXpert-v1.0 or CheXpert-v1.0-small, or the folder that holds it or its batches.
    uncertain
        The policy for the label -1, which must be given: "zeros" (absent, as the paper's code),
        "ones" (present) or "exclude" (left out and listed).
    unmentioned
        The policy for a blank cell: "exclude" leaves the finding missing, "zeros" takes it as
        absent.
    label
        The finding: a column of the tables.
    frontal_only
        Whether lateral views are left out.
    demographics
        The sheet, csv or xlsx; by default `CHEXPERT DEMO.xlsx` or `.csv` beside the tables, in
        `root` or beside it.
    size
        Pixels a side; images are padded to a square with black.

    Returns
    -------
    Cohort
        One row is one image: subject (the patient, so that `split()` is by patient), sex, race
        (Asian, Black, White or missing), primary_race (the sheet's words), age (years), view,
        projection, mention (what the label says), finding (`label`, "non " and `label`, or
        missing), use (training or validation, the release's split), image, prompt. Images are read
        when loaded: grey float32 `[N, 1, size, size]` in [-1, 1]. `with_prompt()` drops and counts
        those without sex, race or finding. Images that are not on the disk or broken, and faulty
        rows of the tables, are in `excluded`; patients of whom csv and sheet state another sex, or
        the sheet several things, are in `notes`.

    Raises
    ------
    SettingsError
        A policy that is missing or unknown.
    DataError
        Another layout, a missing column or sheet, a table without any row that can be used.
    """
    _check_policies(uncertain, unmentioned)
    root = Path(root).expanduser()
    folder = _folder(root)
    tables = {folder / name: use for name, use in TABLES.items() if (folder / name).is_file()}
    sheet = read_demographics(demographics or find_demographics([folder, root, root.parent]))
    absent = f"non {label}"
    findings: dict[str, str | None] = {"present": label, "absent": absent}
    findings["uncertain"] = label if uncertain == "ones" else absent
    findings["not mentioned"] = absent if unmentioned == "zeros" else None
    rows: list[dict] = []
    faulty: list[Excluded] = []
    for path, use in tables.items():
        cells = named_cells(path, read_rows(path), {**FIELDS, "label": label})
        make = partial(_row, path, label=label, use=use, sheet=sheet, findings=findings)
        sound = sound_rows(path, cells, make, "path")
        rows, faulty = rows + sound[0], faulty + sound[1]
    refuse_twice(folder, [row["image"] for row in rows])
    files = partial(_file, folder, batches(folder) | batches(folder.parent))
    table, excluded = _choose(files, typed(rows, ("age",)), uncertain, frontal_only)
    excluded = faulty + excluded
    require_some(table, excluded, folder, "listed images", "check the folder")
    prompt, notes = partial(prompt_of, label=label), _sheet_notes(table, sheet)
    read_image = partial(read_file, read_grey, files, size)
    return prompted("chexpert", table, NEEDED, prompt, read_image, excluded, notes)


def prompt_of(row: Mapping, label: str = "Pleural Effusion") -> str:
    """The prompt of one row (mapping with sex, race, finding).

    For example "Chest Radiography image of a Female Asian patient diagnosed with Pleural Effusion",
    or "... with non Pleural Effusion". Raises `DataError` on a value outside the template.
    """
    require_words(row, {**ATTRIBUTES, "finding": (label, f"non {label}")})
    patient = f"{SEX_WORDS[row['sex']]} {row['race']} patient"
    return f"Chest Radiography image of a {patient} diagnosed with {row['finding']}"


def race_of(text: str) -> str | None:
    """ "Asian", "Black" or "White" from the sheet's words ("Black or African American", "White,
    non-Hispanic", ...).

    The sheet uses many words; a race is told by the first one. None for all others (other, unknown,
    refused, ...).
    """
    first = (text.replace(",", " ").split() or [""])[0]
    return itself(RACES).get(first.lower())


def find_demographics(folders: Iterable[Path]) -> Path:
    """The sheet in one of the folders. Raises `DataError` when it is in none."""
    folders = list(folders)
    what = f"no {SHEETS[0]} or {SHEETS[1]} beside the tables, and only this sheet knows race"
    remedy = "get it from the same source as the images, or give its path as demographics="
    paths = [folder / name for folder in folders for name in SHEETS]
    return first_of(paths, missing(folders[0], what, remedy, *SHEETS))


def read_demographics(path: str | Path) -> dict[str, dict]:
    """Read the sheet: patient -> race ("Asian", "Black", "White" or None), primary_race (the
    sheet's words or None), sex ("F", "M", None).

    Reads csv or xlsx. Of a patient who stands twice, whatever differs is None, as is all of a row
    with an unknown word for a sex; `fault` says why. Raises `DataError` on a missing column, or
    when no row can be used.
    """
    rows = named_cells(path, read_rows(path), SHEET_FIELDS)
    sound, faulty = sound_rows(path, rows, partial(_patient, path), "subject")
    patients: dict[str, dict] = {}
    for subject, patient in sound:
        first = patients.setdefault(subject, patient)
        if differ := [name for name in patient if first[name] != patient[name]]:
            fault = {"fault": f"two rows, whose {' and '.join(differ)} differ"}
            patients[subject] = first | dict.fromkeys(differ) | fault
    for subject, _, why in faulty:
        patients[subject] = dict.fromkeys(("race", "primary_race", "sex")) | {"fault": why}
    return patients


def _patient(path: str | Path, cells: Mapping[str, str]) -> tuple[str, dict]:
    where = f"{path}: {cells['subject']}"
    return cells["subject"], {
        "race": race_of(cells["primary_race"]),
        "primary_race": cells["primary_race"] or None,
        "sex": word_of(where, SHEET_FIELDS["sex"], cells["sex"], SEX_CELLS),
    }


def batches(root: Path) -> dict[str, Path]:
    """Patient -> folder, of the training images in the batches of the release of 2021, as
    `CheXpert-v1.0 batch 2 (train 1)/patient00001`.
    """
    places = [place for place in folders(root) if BATCH.match(place.name)]
    return {path.name: path for place in places for path in folders(place)}


def _file(folder: Path, batched: Mapping[str, Path], key: str) -> Path:
    """`key` is "train/patient00001/study1/view1_frontal.jpg"."""
    part, patient, rest = key.split("/", 2)
    whole = part != "train" or patient not in batched
    return folder / key if whole else batched[patient] / rest


def _row(
    path: Path,
    cells: Mapping[str, str],
    label: str,
    use: str,
    sheet: Mapping[str, dict],
    findings: Mapping[str, str | None],
) -> dict:
    match = PATH.fullmatch(cells["path"].replace("\\", "/"))
    if match is None:
        raise DataError(
            f"{path}: Path {cells['path']!r}; expected CheXpert-v1.0/train/patient00001/study1/"
            "view1_frontal.jpg, or the same after CheXpert-v1.0-small/"
        )
    where = f"{path}: {match[1]}"
    text = cells["label"].removesuffix(".0")
    if text not in MENTIONS:
        expected = "expected 1, 0, -1 or an empty cell"
        raise DataError(f"{where}: {label} is {cells['label']!r}; {expected}")
    known = sheet.get(match[2], {})
    return {
        "subject": match[2],
        "sex": word_of(where, "Sex", cells["sex"], SEX_CELLS),
        "race": known.get("race"),
        "primary_race": known.get("primary_race"),
        "age": number_of(where, "Age", cells["age"], 0, 120),
        "view": word_of(where, "Frontal/Lateral", cells["view"], VIEWS),
        "projection": cells["projection"] or None,
        "mention": MENTIONS[text],
        "finding": findings[MENTIONS[text]],
        "use": use,
        "image": match[1],
    }


def _choose(
    files: Callable[[str], Path], table: pd.DataFrame, uncertain: str | None, frontal_only: bool
) -> tuple[pd.DataFrame, list[Excluded]]:
    reasons = {
        "not frontal": ~table["view"].eq("frontal").fillna(False) & frontal_only,
        "label uncertain": table["mention"].eq("uncertain") & (uncertain == "exclude"),
    }
    why = np.select([met.to_numpy(bool) for met in reasons.values()], list(reasons), "")
    pairs = zip(table["image"], why.tolist(), strict=True)
    excluded = [(image, reason, "") for image, reason in pairs if reason]
    excluded += faulty_images({key: files(key) for key in table["image"][why == ""]})
    return table[~table["image"].isin([key for key, *_ in excluded])], excluded


def _sheet_notes(table: pd.DataFrame, sheet: Mapping[str, dict]) -> list[Excluded]:
    """Patients of whom tables and sheet state another sex, or whose row in the sheet is faulty."""
    faults = {one: sheet[one].get("fault") for one in table["subject"].unique() if one in sheet}
    notes = [(one, "fault in the demographic sheet", why) for one, why in faults.items() if why]
    pairs = table[["subject", "sex"]].drop_duplicates().dropna()
    return notes + [
        (one, "sex differs from the demographic sheet", f"csv {sex}, sheet {sheet[one]['sex']}")
        for one, sex in pairs.itertuples(index=False)
        if one in sheet and sheet[one]["sex"] not in (None, sex)
    ]


def _folder(root: Path) -> Path:
    what = f"holds neither train.csv nor valid.csv, nor does {' or '.join(FOLDERS)} in it"
    inner = [place.name for place in folders(root) if place.name not in FOLDERS]
    paths = [root / folder / name for folder in ("", *FOLDERS, *inner) for name in TABLES]
    return first_of(paths, missing(root, what, "give that folder", *TABLES)).parent


def _check_policies(uncertain: str | None, unmentioned: str) -> None:
    if uncertain is None:
        raise SettingsError(
            "CheXpert marks labels as uncertain (-1), and what they count as changes every result: "
            f"give uncertain= one of {', '.join(POLICIES)} (the paper's code takes zeros)"
        )
    require_known(uncertain, POLICIES, "the policies for uncertain labels")
    require_known(unmentioned, UNMENTIONED, "the policies for labels that are not mentioned")
