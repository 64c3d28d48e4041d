"""M&Ms (Multi-Centre, Multi-Vendor & Multi-Disease Cardiac Segmentation) as it is released, as a
cohort of short-axis hearts.

Heart failure is no label of M&Ms: `DIAGNOSES` maps its pathology codes to the paper's two
diagnoses, and is a choice of this book. Dilated cardiomyopathy (DCM) stands for failure with a low
ejection, hypertensive heart disease (HHD) and hypertrophic cardiomyopathy (HCM) for failure with a
thick wall; the other diseases are neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from fairlib.cohorts.cardiac_cohort import (
    HeartCohort,
    HeartStore,
    heart_notes,
    heart_table,
    person_row,
    slice_rows,
)
from fairlib.cohorts.cardiac_slices import STANDARD, CardiacSettings, HeartSlices, extract
from fairlib.cohorts.nifti import as_labels, read_frames, require_same_grid
from fairlib.cohorts.table import report
from fairlib.cohorts.text_tables import column, read_rows, refuse_twice
from fairlib.errors import DataError

PARTS = {
    "train": "Training/Labeled",
    "unlabelled": "Training/Unlabeled",
    "validation": "Validation",
    "test": "Testing",
}
FIELDS = {
    "subject": "External code",
    "pathology": "Pathology",
    "vendor": "VendorName",
    "centre": "Centre",
    "ed": "ED",
    "es": "ES",
    "sex": "Sex",
    "age": "Age",
    "height": "Height",
    "weight": "Weight",
}
DIAGNOSES = {
    "NOR": "healthy",
    "DCM": "heart failure",
    "HHD": "heart failure",
    "HCM": "heart failure",
    "ARV": None,
    "AHS": None,
    "IHD": None,
    "LVNC": None,
    "Other": None,
}
MISSING = {"", "NA", "N/A", "NAN", "NONE", "-"}
LABELS = frozenset({0, 1, 2, 3})


def read_mnms(
    root: str | Path,
    settings: CardiacSettings = STANDARD,
    diagnoses: Mapping[str, str | None] = DIAGNOSES,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> HeartCohort:
    """The subjects of `root` (OpenDataset, or the folder that holds it):
    `*Dataset_information*.csv` and, under

    Training/{Labeled,Unlabeled}, Validation and Testing, `<code>/<code>_sa.nii.gz` and
    `<code>_sa_gt.nii.gz` (x, y, slice, frame). One row is one slice position; see `HeartCohort` for
    the columns. ED and ES count frames from 0.

    Sources contradict each other on what the labels 1 to 3 mean, so it is decided on each subject's
    own masks (the myocardium encloses the left ventricle). Subjects stay when height, weight or a
    diagnosis is missing (`with_prompt()` counts and drops them); left out and listed in `excluded`
    are those with empty masks ("Unlabeled"), without images, without a row in the table, without a
    slice that shows everything, or with another label order than most. The pictures go to
    `cache_dir`, or stay in memory when it is None. `progress(done, subjects)`. Raises `DataError`
    (layout, missing column, id twice, unknown pathology, units) and `CorruptScan` (a scan that
    cannot be trusted, mask and image on different grids, label outside 0 to 3, ED or ES out of
    range).
    """
    root = _open_dataset(Path(root))
    people = read_people(_table_path(root), diagnoses)
    folders = find_folders(root)
    store = HeartStore(None if cache_dir is None else Path(cache_dir), settings)
    lost = [
        (subject, "no images", "in the table only") for subject in people if subject not in folders
    ]
    lost += [
        (subject, "not in the table", part)
        for subject, (part, _) in folders.items()
        if subject not in people
    ]
    found = {}
    present = [subject for subject in people if subject in folders]
    for done, subject in enumerate(present, 1):
        part, folder = folders[subject]
        outcome = _read(store, part, folder, people[subject])
        if isinstance(outcome, HeartSlices):
            found[subject] = outcome
        else:
            lost.append((subject, *outcome))
        if progress is not None:
            progress(done, len(present))
    lost += _odd_orders(found)
    kept = {
        subject: found[subject] for subject in found if subject not in {item for item, *_ in lost}
    }
    if not kept:
        raise DataError(
            f"{root}: no subject has usable images and masks ({len(lost)} left out, such as "
            f"{lost[:1]})"
        )
    rows = [
        row
        for subject, slices in kept.items()
        for row in slice_rows({**people[subject], "part": folders[subject][0]}, slices)
    ]
    notes = heart_notes(kept, {subject: _files(folders[subject][1]) for subject in kept}, settings)
    return HeartCohort(
        "mnms", heart_table(rows), store.images, report(lost), notes, masks=store.masks
    )


def read_people(
    path: str | Path, diagnoses: Mapping[str, str | None] = DIAGNOSES
) -> dict[str, dict]:
    """The table: for each subject its attributes (`person_row`), and frames `ed` and `es`.

    Raises `DataError` naming the file and the column or subject: missing column, id twice, no
    number where one must be, a sex other than F or M, unknown pathology, ED and ES the same frame,
    height or weight outside of human cm and kg.
    """
    rows = read_rows(path)
    places = {name: column(path, rows[0], label) for name, label in FIELDS.items()}
    raw = [{name: row[place] for name, place in places.items()} for row in rows[1:]]
    refuse_twice(path, [row["subject"] for row in raw])
    return {row["subject"]: _person(path, row, diagnoses) for row in raw}


def find_folders(root: Path) -> dict[str, tuple[str, Path]]:
    """Subject -> (part, folder).

    Raises `DataError` when no part is there, or a subject lies in two.
    """
    parts = {part: root / where for part, where in PARTS.items() if (root / where).is_dir()}
    if not parts:
        raise DataError(
            f"{root}: none of {', '.join(PARTS.values())} is there; give the folder OpenDataset of "
            "the release"
        )
    found: dict[str, tuple[str, Path]] = {}
    for part, folder in parts.items():
        for entry in sorted(
            entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        ):
            if entry.name in found:
                raise DataError(
                    f"{root}: {entry.name} lies in {found[entry.name][0]} and {part}; remove one "
                    "folder"
                )
            found[entry.name] = (part, entry)
    return found


class Unsegmented(DataError):
    """Masks that are empty in ED and ES, as those of the folder "Unlabeled" are."""


def read_subject(
    image_path: Path, mask_path: Path, ed: int, es: int, settings: CardiacSettings
) -> HeartSlices:
    """Read frames ED and ES of image and masks, check that they lie on one grid, and draw the
    slices.

    Raises `CorruptScan`, `Unsegmented`, or `DataError` when no slice can be used.
    """
    values, affine = read_frames(mask_path, (ed, es))
    labels = as_labels(mask_path, values, LABELS)
    images, own = read_frames(image_path, (ed, es))
    require_same_grid(mask_path, labels, affine, images.shape, own)
    if not labels.any():
        raise Unsegmented("masks are empty in ED and ES")
    return extract(images, labels, affine, settings)


def _read(
    store: HeartStore, part: str, folder: Path, person: dict
) -> HeartSlices | tuple[str, str]:
    """The slices of a subject, or (reason, detail) why there are none."""
    subject, frames = person["subject"], (person["ed"], person["es"])
    files = _files(folder)
    if part == "unlabelled" and not files[1].is_file():
        return "no segmentation", f"no mask file, {part}"
    for path in files:
        if not path.is_file():
            raise DataError(f"{path}: is missing; copy it from the release")
    try:
        return store.add(
            subject, files, lambda: read_subject(*files, *frames, store.settings), frames
        )
    except Unsegmented as why:
        return "no segmentation", f"{why}, {part}"
    except DataError as why:
        return "no usable slice", str(why)


def _files(folder: Path) -> list[Path]:
    """The images and the masks of a subject."""
    return [folder / f"{folder.name}_sa.nii.gz", folder / f"{folder.name}_sa_gt.nii.gz"]


def _odd_orders(found: dict[str, HeartSlices]) -> list[tuple[str, str, str]]:
    orders = [slices.order for slices in found.values()]
    usual = max(sorted(set(orders)), key=orders.count, default=None)
    return [
        (
            subject,
            "another label order",
            f"(LV, MYO, RV) are {slices.order}, in most subjects {usual}",
        )
        for subject, slices in found.items()
        if slices.order != usual
    ]


def _person(path: str | Path, row: dict[str, str], diagnoses: Mapping[str, str | None]) -> dict:
    where = f"{path}: {row['subject']}"
    numbers = {
        name: _number(where, FIELDS[name], row[name]) for name in ("age", "height", "weight")
    }
    frames = {name: _number(where, FIELDS[name], row[name]) for name in ("ed", "es")}
    if (
        any(not (value >= 0 and value == int(value)) for value in frames.values())
        or frames["ed"] == frames["es"]
    ):
        raise DataError(
            f"{where}: ED {row['ed']!r} and ES {row['es']!r}; expected two different frames, "
            "counted from 0"
        )
    words = {
        name: None if row[name].upper() in MISSING else row[name]
        for name in ("sex", "pathology", "centre", "vendor")
    }
    if words["sex"] not in (None, "F", "M"):
        raise DataError(f"{where}: Sex {row['sex']!r}; expected F, M or empty")
    person = person_row({"subject": row["subject"], **words, **numbers}, diagnoses, where)
    return {**person, **{name: int(value) for name, value in frames.items()}}


def _number(where: str, name: str, text: str) -> float:
    if text.upper() in MISSING:
        return np.nan
    try:
        return float(text)
    except ValueError as error:
        raise DataError(
            f"{where}: {name} is {text!r}, not a number; correct the table or leave the cell empty"
        ) from error


def _open_dataset(root: Path) -> Path:
    inner = root / "OpenDataset"
    return inner if inner.is_dir() else root


def _table_path(root: Path) -> Path:
    found = sorted(root.glob("*Dataset_information*.csv"))
    if len(found) != 1:
        raise DataError(
            f"{root}: {len(found)} tables named *Dataset_information*.csv; expected the one of the "
            "release"
        )
    return found[0]
