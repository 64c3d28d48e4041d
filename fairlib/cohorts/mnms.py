"""M&Ms (Multi-Centre, Multi-Vendor & Multi-Disease Cardiac Segmentation) as it is released, as a
cohort of short-axis hearts.

Heart failure is no label of M&Ms: `DIAGNOSES` maps its pathology codes to the paper's two
diagnoses, and is a choice of this book. Dilated cardiomyopathy (DCM) stands for failure with a low
ejection, hypertensive heart disease (HHD) and hypertrophic cardiomyopathy (HCM) for failure with a
thick wall; the other diseases are neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from fairlib.cohorts.cardiac import (
    STANDARD,
    CardiacSettings,
    HeartSlices,
    Reading,
    Unsegmented,
    check_diagnoses,
    check_headers,
    extract,
    frame_numbers,
    read_hearts,
    scan_file,
    subject_row,
)
from fairlib.cohorts.cohort import Cohort
from fairlib.cohorts.listing import Excluded, by_name, folders, listed, missing, only
from fairlib.cohorts.tables import (
    SEX_CELLS,
    SEXES,
    is_missing,
    itself,
    named_cells,
    number_of,
    read_rows,
    refuse_twice,
    sound_rows,
    word_of,
)
from fairlib.errors import DataError
from fairlib.nifti import as_labels, read_frames, require_same_grid

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
DIAGNOSES: dict[str, str | None] = {"NOR": "healthy"}
DIAGNOSES |= dict.fromkeys(("DCM", "HHD", "HCM"), "heart failure")
DIAGNOSES |= dict.fromkeys(("ARV", "AHS", "IHD", "LVNC", "Other"))
LABELS = frozenset({0, 1, 2, 3})
SEX_WORDS = itself(SEXES) | SEX_CELLS
TABLE = "*Dataset_information*.csv"
# of the releases: 211230_M&Ms_Dataset_information_diagnosis_opendataset.csv, 201014_M&Ms_Dataset_
# Information_-_opendataset.csv, M&Ms Dataset Information.xlsx (the workshop's)
TABLES = re.compile(r".*dataset[ _-]*information.*\.(csv|xlsx)", re.IGNORECASE)


def read_mnms(
    root: str | Path,
    *,
    diagnoses: Mapping[str, str | None] = DIAGNOSES,
    settings: CardiacSettings = STANDARD,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    skip_faulty: bool = False,
    headers_only: bool = False,
) -> Cohort:
    """Read the short-axis hearts of M&Ms: `*Dataset_information*.csv` (or the xlsx of the workshop)
    and, under Training/{Labeled,Unlabeled} (or Training-corrected), Validation and Testing,
    `<code>/<code>_sa.nii.gz` and `<code>_sa_gt.nii.gz` (x, y, slice, frame).

    ED and ES count frames from 0. Sources contradict each other on what the labels 1 to 3 mean, so
    it is decided on each subject's masks (the myocardium encloses the left ventricle).

    Parameters
    ----------
    root
        OpenDataset, or the folder that holds it.
    diagnoses
        Pathology code of the table to "healthy", "heart failure", or None for neither. Subjects
        with another code have no diagnosis, and are in `notes`.
    settings
        Size in pixels, width of a pixel in mm, and slices a subject.
    cache_dir
        Where the drawn slices are kept, one file a subject, keyed by settings, file size and time;
        in memory when None.
    progress
        Called as `progress(done, subjects)` after each subject.
    skip_faulty
        Whether subjects whose scans are missing or cannot be trusted are left out; else they are
        one error.
    headers_only
        Whether only tables, names, lengths and headers are read: quick, and without images. Then
        one row is one subject, and masks of the part "Unlabeled" count as absent (they are empty).

    Returns
    -------
    Cohort
        One row is one slice position; columns as in `cardiac.read_hearts`. Images are float32 `[N,
        3, size, size]` (ED, ES, ED) in [-1, 1], masks uint8 `[N, 2, size, size]` (0 background, 1
        LV, 2 MYO, 3 RV). Subjects stay when height, weight or a diagnosis is missing
        (`with_prompt()` counts and drops them). In `excluded` are those whose row of the table is
        faulty (an age of 0, no frames, ...), with empty masks ("Unlabeled"), without images,
        without a row in the table, without a slice that shows everything, or with another label
        order than most.

    Raises
    ------
    DataError
        Another layout, a missing column, an id twice, a table without any row that can be used.
    CorruptScan
        A scan that cannot be trusted (several are one `DataError`), mask and image on different
        grids, a label outside 0 to 3, ED or ES out of range.
    """
    check_diagnoses(diagnoses)
    root = Path(root).expanduser()
    root = root / "OpenDataset" if (root / "OpenDataset").is_dir() else root
    subjects, excluded = read_subjects(find_table(root), diagnoses)
    parts, stated = find_subjects(root), {*subjects, *(item for item, *_ in excluded)}
    excluded += [(one, "no images", "in the table only") for one in subjects if one not in parts]
    others = {one: part for one, (part, _) in parts.items() if one not in stated}
    excluded += [(one, "not in the table", part) for one, part in others.items()]
    scans = {}
    for subject in [one for one in subjects if one in parts]:
        part, folder = parts[subject]
        subjects[subject]["part"] = part
        scans[subject] = [scan_file(folder, f"{subject}_sa{ending}") for ending in ("", "_gt")]
        if part == "unlabelled" and (headers_only or not scans[subject][1].is_file()):
            del scans[subject][1]
    read = partial(check_headers, series=True) if headers_only else read_subject
    how = Reading(settings, cache_dir, progress, skip_faulty, headers_only)
    return read_hearts("mnms", root, subjects, scans, read, how, excluded)


survey_mnms = partial(read_mnms, headers_only=True)


def find_table(root: Path) -> Path:
    """The table in `root` or in one of its folders; a csv goes before an xlsx.

    Raises `DataError` when there is none, or more than one.
    """
    places = [root, *folders(root)]
    paths = [path for place in places for path in listed(place) if TABLES.fullmatch(path.name)]
    paths = [path for path in paths if path.suffix.lower() == ".csv"] or paths
    return only(root, TABLE, "take the table from the release", paths)


def read_subjects(
    path: str | Path, diagnoses: Mapping[str, str | None] = DIAGNOSES
) -> tuple[dict[str, dict], list[Excluded]]:
    """Read the table: for each subject its attributes (`cardiac.subject_row`), and frames `ed` and
    `es`; and the subjects whose rows are faulty.

    Faulty: no number where one must be, a sex other than F or M, ED and ES the same frame, an age,
    height or weight (cm and kg) that no adult has. Raises `DataError` naming the file and the
    column or id: missing column, id twice, no row that can be used, the table of M&Ms-2.
    """
    rows = read_rows(path)
    if "SUBJECT_CODE" in rows[0]:
        what = f"{path}: is of M&Ms-2, which states neither sex nor age, height or weight"
        raise DataError(f"{what}; read the first M&Ms, whose table has them")
    cells = named_cells(path, rows, FIELDS)
    refuse_twice(path, [row["subject"] for row in cells])
    made = partial(_attributes, path, diagnoses=diagnoses)
    kept, excluded = sound_rows(path, cells, made, "subject")
    return {row["subject"]: row for row in kept}, excluded


def find_subjects(root: Path) -> dict[str, tuple[str, Path]]:
    """Subject -> (part, folder).

    Raises `DataError` when no part is there, or a subject lies in two.
    """
    parts: dict[str, list[Path]] = {}
    for part, where in PARTS.items():  # the workshop's release has another name for Training
        inner = where.removeprefix("Training/")
        for place in {where: 0, f"Training-corrected/{inner}": 0, inner: 0}:
            parts[part] = parts.get(part, []) + folders(root / place)
    if not any(parts.values()):
        remedy = "give the folder OpenDataset of the release"
        what = f"none of {', '.join(PARTS.values())} is there"
        raise missing(root, what, remedy, *(Path(where).name for where in PARTS.values()))
    return by_name(root, parts)


def read_subject(
    files: Sequence[Path], frames: Sequence[int], settings: CardiacSettings
) -> HeartSlices:
    """Read frames ED and ES of image and masks (`files`; the masks may be absent), check that they
    lie on one grid, and draw the slices.

    Raises `CorruptScan`, `Unsegmented`, or `DataError` when no slice can be used.
    """
    if len(files) == 1:
        raise Unsegmented("no mask file")
    image_path, mask_path = files
    values, affine = read_frames(mask_path, frames)
    labels = as_labels(mask_path, values, LABELS)
    images, grid = read_frames(image_path, frames)
    require_same_grid(mask_path, labels, affine, images.shape, grid)
    if not labels.any():
        raise Unsegmented("masks are empty in ED and ES")
    return extract(images, labels, affine, settings)


def _attributes(
    path: str | Path, row: Mapping[str, str], diagnoses: Mapping[str, str | None]
) -> dict:
    where = f"{path}: {row['subject']}"
    names = ("age", "height", "weight", "ed", "es")
    numbers = {name: number_of(where, FIELDS[name], row[name], 0, 1e4) for name in names}
    frames = frame_numbers(where, numbers["ed"], numbers["es"], 0)
    words = {name: None if is_missing(row[name]) else row[name] for name in row}
    words |= {"subject": row["subject"], "sex": word_of(where, "Sex", row["sex"], SEX_WORDS)}
    return subject_row({**words, **numbers, **frames}, diagnoses, where)
