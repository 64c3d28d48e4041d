"""BraTS 2018 as it is released, with the sex that it does not carry joined from TCGA, as a cohort
of axial slices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from fairlib.cohorts.clinical import grades, join_people
from fairlib.cohorts.nifti import read_labels, read_volume, require_same_grid
from fairlib.cohorts.nifti_affine import scale_note
from fairlib.cohorts.slice_cache import SliceStore, image_key
from fairlib.cohorts.slices import CONTRASTS, STANDARD, SliceSettings, SubjectSlices, extract
from fairlib.cohorts.table import Cohort, report
from fairlib.errors import CorruptScan, DataError

GRADES = ("HGG", "LGG")
SCANS = (*CONTRASTS, "seg")


@dataclass(frozen=True)
class SubjectFiles:
    """One subject's folder: its five files by name (t1, t1ce, t2, flair, seg)."""

    subject: str
    grade: str
    files: dict[str, Path]


def read_brats(
    root: str | Path,
    name_mapping: str | Path,
    clinical: Sequence[str | Path],
    settings: SliceSettings = STANDARD,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Cohort:
    """A cohort of informative axial slices from
    `root/{HGG,LGG}/<id>/<id>_{flair,t1,t1ce,t2,seg}.nii[.gz]`.

    One row is one (subject, slice, contrast): subject, sex, grade, contrast, slice (axial index
    from the feet), side (of the tumour in that slice, the patient's), caption, age (years or NaN),
    image. A slice without visible tumour has side "none" and a caption that names none; `grade`
    stays the subject's. Subjects whose sex is not known stay, with sex missing and the reason in
    `notes`; a second scan of the same patient is left out (`excluded`), since it could fall on both
    sides of a split. On the released training data 166 of 285 subjects find a sex, 76 of them
    female.

    Every volume is opened once: the slices go to `cache_dir` (one file a subject, keyed by
    settings, file size and time), or stay in memory when it is None. `progress(done, subjects)` is
    called after each subject. Raises `DataError` (layout, missing scan, ids, tables) and
    `CorruptScan` (a scan that cannot be trusted).
    """
    subjects = find_subjects(root)
    people = join_people([entry.subject for entry in subjects], name_mapping, clinical)
    _check_grades(name_mapping, subjects)
    again = _same_patient(people)
    subjects = [entry for entry in subjects if entry.subject not in again]
    store = SliceStore(None if cache_dir is None else Path(cache_dir), settings)
    people = people.set_index("subject")
    rows, notes = [], []
    for done, entry in enumerate(subjects, 1):
        slices = store.add(
            entry.subject, entry.files.values(), partial(read_subject, entry, settings)
        )
        rows += _rows(entry, slices, people.loc[entry.subject])
        notes += _notes(entry, slices, people.loc[entry.subject], settings)
        if progress is not None:
            progress(done, len(subjects))
    excluded = report(
        [
            (subject, "second scan of one patient", f"same as {first}")
            for subject, first in again.items()
        ]
    )
    return Cohort("brats", _table(rows), store, excluded, report(notes))


def find_subjects(root: str | Path) -> list[SubjectFiles]:
    """The subjects under `root/HGG` and `root/LGG`, sorted by grade and id.

    Raises `DataError` naming the missing folder or scan, a scan present as .nii and .nii.gz, or an
    id in both grades.
    """
    found = [entry for grade in GRADES for entry in _find_grade(Path(root), grade)]
    if not found:
        raise DataError(
            f"{root}: HGG and LGG hold no subject folders; give the folder of the training release"
        )
    seen: dict[str, str] = {}
    for entry in found:
        if entry.subject in seen:
            raise DataError(
                f"{root}: {entry.subject} lies in {seen[entry.subject]} and {entry.grade}; remove "
                "one folder"
            )
        seen[entry.subject] = entry.grade
    return found


def read_subject(entry: SubjectFiles, settings: SliceSettings) -> SubjectSlices:
    """Read the five volumes of one subject, check that they share one grid, and draw its slices."""
    labels, affine = read_labels(entry.files["seg"])
    volumes = {}
    for contrast in CONTRASTS:
        path = entry.files[contrast]
        volumes[contrast], own = read_volume(path)
        require_same_grid(path, volumes[contrast], own, labels.shape, affine)
    try:
        return extract(volumes, labels, affine, settings)
    except DataError as error:
        raise CorruptScan(entry.files["t1"].parent, str(error)) from error


def _find_grade(root: Path, grade: str) -> list[SubjectFiles]:
    if not (root / grade).is_dir():
        raise DataError(
            f"{root}: no folder {grade}; give the folder that holds HGG and LGG (BraTS 2018 "
            "training data)"
        )
    folders = [
        entry
        for entry in sorted((root / grade).iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    ]
    return [
        SubjectFiles(folder.name, grade, {scan: _find_scan(folder, scan) for scan in SCANS})
        for folder in folders
    ]


def _find_scan(folder: Path, scan: str) -> Path:
    both = [folder / f"{folder.name}_{scan}{ending}" for ending in (".nii", ".nii.gz")]
    present = [path for path in both if path.is_file()]
    if not present:
        raise DataError(
            f"{folder}: {scan} is missing (expected {both[1].name} or .nii); copy it from the "
            "release"
        )
    if len(present) > 1:
        raise DataError(f"{folder}: {scan} is there twice, as .nii and .nii.gz; remove one")
    return present[0]


def _check_grades(name_mapping: str | Path, subjects: list[SubjectFiles]) -> None:
    known = grades(name_mapping)
    for entry in subjects:
        if known.get(entry.subject, entry.grade) != entry.grade:
            raise DataError(
                f"{name_mapping}: {entry.subject} is {known[entry.subject]}, its folder "
                f"{entry.grade}; move the folder"
            )


def _same_patient(people: pd.DataFrame) -> dict[str, str]:
    """Subject -> the earlier subject who is the same TCGA patient."""
    known = people[people["tcga"].notna()]
    first = known.drop_duplicates("tcga").set_index("tcga")["subject"]
    later = known[known["tcga"].duplicated()]
    return {row.subject: first[row.tcga] for row in later.itertuples()}


def _rows(entry: SubjectFiles, slices: SubjectSlices, person: pd.Series) -> list[dict]:
    return [
        _row(entry, person, contrast, number, index, side)
        for number, (index, side) in enumerate(zip(slices.index, slices.side, strict=True))
        for contrast in CONTRASTS
    ]


def _row(
    entry: SubjectFiles, person: pd.Series, contrast: str, number: int, index: int, side: str
) -> dict:
    from fairlib.cohorts.captions import caption

    text = caption(contrast=contrast, grade="none" if side == "none" else entry.grade, side=side)
    return {
        "subject": entry.subject,
        "sex": person["sex"],
        "grade": entry.grade,
        "contrast": contrast,
        "slice": index,
        "side": side,
        "caption": text,
        "age": person["age"],
        "image": image_key(entry.subject, contrast, number),
    }


def _notes(
    entry: SubjectFiles, slices: SubjectSlices, person: pd.Series, settings: SliceSettings
) -> list[tuple]:
    notes = []
    if scale := scale_note(entry.files.values()):
        notes.append((entry.subject, "voxel size from pixdim", scale))
    if person["reason"]:
        notes.append(
            (entry.subject, person["reason"], "" if pd.isna(person["tcga"]) else person["tcga"])
        )
    if slices.cropped:
        notes.append(
            (entry.subject, "brain cropped", f"wider than {settings.field_of_view_mm:g} mm")
        )
    if len(slices.index) < settings.slices_per_subject:
        notes.append(
            (entry.subject, "fewer slices", f"{len(slices.index)} of {settings.slices_per_subject}")
        )
    return notes


def _table(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({"sex": "string", "age": float})
