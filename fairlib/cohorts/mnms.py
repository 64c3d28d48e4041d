"""M&Ms (Multi-Centre, Multi-Vendor & Multi-Disease Cardiac Segmentation) as it is released, as a
cohort of short-axis hearts.

Heart failure is no label of M&Ms: `DIAGNOSES` maps its pathology codes to the paper's two
diagnoses, and is a choice of this book. Dilated cardiomyopathy (DCM) stands for failure with a low
ejection, hypertensive heart disease (HHD) and hypertrophic cardiomyopathy (HCM) for failure with a
thick wall; the other diseases are neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fairlib.cohorts.cardiac import (
    STANDARD,
    CardiacSettings,
    HeartSlices,
    Unsegmented,
    extract,
    frame_numbers,
    read_hearts,
    subject_row,
)
from fairlib.cohorts.cohort import Cohort
from fairlib.cohorts.listing import by_name, folders, missing, only
from fairlib.cohorts.tables import (
    SEXES,
    is_missing,
    itself,
    named_cells,
    number_of,
    read_rows,
    refuse_twice,
    word_of,
)
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


def read_mnms(
    root: str | Path,
    *,
    diagnoses: Mapping[str, str | None] = DIAGNOSES,
    settings: CardiacSettings = STANDARD,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Cohort:
    """Read the short-axis hearts of M&Ms: `*Dataset_information*.csv` and, under
    Training/{Labeled,Unlabeled}, Validation and Testing, `<code>/<code>_sa.nii.gz` and
    `<code>_sa_gt.nii.gz` (x, y, slice, frame).

    ED and ES count frames from 0. Sources contradict each other on what the labels 1 to 3 mean, so
    it is decided on each subject's masks (the myocardium encloses the left ventricle).

    Parameters
    ----------
    root
        OpenDataset, or the folder that holds it.
    diagnoses
        Pathology code of the table to "healthy", "heart failure", or None for neither.
    settings
        Size in pixels, width of a pixel in mm, and slices a subject.
    cache_dir
        Where the drawn slices are kept, one file a subject, keyed by settings, file size and time;
        in memory when None.
    progress
        Called as `progress(done, subjects)` after each subject.

    Returns
    -------
    Cohort
        One row is one slice position; columns as in `cardiac.read_hearts`. Images are float32 `[N,
        3, size, size]` (ED, ES, ED) in [-1, 1], masks uint8 `[N, 2, size, size]` (0 background, 1
        LV, 2 MYO, 3 RV). Subjects stay when height, weight or a diagnosis is missing
        (`with_prompt()` counts and drops them). In `excluded` are those with empty masks
        ("Unlabeled"), without images, without a row in the table, without a slice that shows
        everything, or with another label order than most.

    Raises
    ------
    DataError
        Another layout, a missing column, an id twice, an unknown pathology, heights or weights
        outside of human cm and kg.
    CorruptScan
        A scan that cannot be trusted, mask and image on different grids, a label outside 0 to 3, ED
        or ES out of range.
    """
    root = Path(root).expanduser()
    root = root / "OpenDataset" if (root / "OpenDataset").is_dir() else root
    table = only(root, "*Dataset_information*.csv", "take the table from the release")
    subjects, parts = read_subjects(table, diagnoses), find_subjects(root)
    excluded = [(one, "no images", "in the table only") for one in subjects if one not in parts]
    excluded += [
        (one, "not in the table", part) for one, (part, _) in parts.items() if one not in subjects
    ]
    scans = {}
    for subject in [one for one in subjects if one in parts]:
        part, folder = parts[subject]
        subjects[subject]["part"] = part
        scans[subject] = [folder / f"{subject}_sa.nii.gz", folder / f"{subject}_sa_gt.nii.gz"]
        if part == "unlabelled" and not scans[subject][1].is_file():
            del scans[subject][1]
    return read_hearts(
        "mnms", root, subjects, scans, read_subject, settings, cache_dir, progress, excluded
    )


def read_subjects(
    path: str | Path, diagnoses: Mapping[str, str | None] = DIAGNOSES
) -> dict[str, dict]:
    """Read the table: for each subject its attributes (`cardiac.subject_row`), and frames `ed` and
    `es`.

    Raises `DataError` naming the file and the column or subject: missing column, id twice, no
    number where one must be, a sex other than F or M, unknown pathology, ED and ES the same frame,
    height or weight outside of human cm and kg.
    """
    cells = named_cells(path, read_rows(path), FIELDS)
    refuse_twice(path, [row["subject"] for row in cells])
    return {row["subject"]: _attributes(path, row, diagnoses) for row in cells}


def find_subjects(root: Path) -> dict[str, tuple[str, Path]]:
    """Subject -> (part, folder).

    Raises `DataError` when no part is there, or a subject lies in two.
    """
    parts = {part: root / where for part, where in PARTS.items() if (root / where).is_dir()}
    if not parts:
        remedy = "give the folder OpenDataset of the release"
        raise missing(root, f"none of {', '.join(PARTS.values())} is there", remedy)
    return by_name(root, {part: folders(folder) for part, folder in parts.items()})


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
    numbers = {
        name: number_of(where, FIELDS[name], row[name], 0, 1e4)
        for name in ("age", "height", "weight", "ed", "es")
    }
    frames = frame_numbers(where, numbers["ed"], numbers["es"], 0)
    words = {name: None if is_missing(row[name]) else row[name] for name in row}
    words |= {"subject": row["subject"], "sex": word_of(where, "Sex", row["sex"], itself(SEXES))}
    return subject_row({**words, **numbers, **frames}, diagnoses, where)
