"""ACDC (Automated Cardiac Diagnosis Challenge) as it is released, as a cohort of short-axis hearts
without sex and age.

Images and masks are good for training a segmenter and for testing where hearts come from another
hospital. Sex and age are not in the release: asking for them is an error, not a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fairlib.cohorts.cardiac import (
    STANDARD,
    CardiacSettings,
    HeartSlices,
    extract,
    frame_numbers,
    read_hearts,
    subject_row,
)
from fairlib.cohorts.cohort import Cohort
from fairlib.cohorts.listing import folders, missing
from fairlib.cohorts.tables import number_of, read_text
from fairlib.errors import DataError
from fairlib.nifti import read_labels, read_volume, require_same_grid
from fairlib.settings import unknown_key

KEYS = ("ED", "ES", "Group", "Height", "NbFrame", "Weight")  # of Info.cfg
DIAGNOSES: dict[str, str | None] = {
    "NOR": "healthy",
    "DCM": "heart failure",
    "HCM": "heart failure",
}
DIAGNOSES |= dict.fromkeys(("MINF", "RV", "ARV"))
LABELS = frozenset({0, 1, 2, 3})
NOT_STATED = dict.fromkeys(
    ("sex", "age", "decade", "prompt"),
    "it needs sex or age, and ACDC states neither; use M&Ms, or ask for height, weight, bmi, "
    "diagnosis or pathology",
)


def read_acdc(
    root: str | Path,
    *,
    diagnoses: Mapping[str, str | None] = DIAGNOSES,
    settings: CardiacSettings = STANDARD,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Cohort:
    """Read the short-axis hearts of ACDC: `patientNNN/Info.cfg`, `patientNNN_frameMM.nii.gz` and
    `patientNNN_frameMM_gt.nii.gz` for the frames ED and ES that Info.cfg names (counted from 1).

    Masks are in the label order of this book (in the files it is 1 RV, 2 MYO, 3 LV, and that is
    checked on the data). The released sforms state no voxel size, so it is read from pixdim, and
    `notes` says of whom.

    Parameters
    ----------
    root
        `training`, `testing`, or the folder that holds them.
    diagnoses
        Group of Info.cfg to "healthy", "heart failure", or None for neither.
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
        One row is one slice position; columns as in `cardiac.read_hearts`, without sex, age, decade
        and prompt, which ACDC does not state. Images are float32 `[N, 3, size, size]` (ED, ES, ED)
        in [-1, 1], masks uint8 `[N, 2, size, size]` (0 background, 1 LV, 2 MYO, 3 RV). In
        `excluded` are subjects without a usable slice or with another label order than most.

    Raises
    ------
    DataError
        Another layout, an Info.cfg that is incomplete, an unknown group; later, whatever needs sex,
        age, decade or prompt.
    CorruptScan
        A scan that cannot be trusted.
    """
    root = Path(root).expanduser()
    subjects = {
        folder.name: {**read_info(folder / "Info.cfg", diagnoses), "part": part, "folder": folder}
        for part, folder in find_subjects(root)
    }
    scans = {name: _scans(subject) for name, subject in subjects.items()}
    return read_hearts(
        "acdc",
        root,
        subjects,
        scans,
        read_subject,
        settings,
        cache_dir,
        progress,
        strata=("diagnosis",),
        not_stated=NOT_STATED,
    )


def find_subjects(root: Path) -> list[tuple[str, Path]]:
    """(part, folder) of each patient under `root`, `root/training` and `root/testing`.

    Raises `DataError` if there is none.
    """
    found = [
        (part.name, folder)
        for part in (root, root / "training", root / "testing")
        for folder in folders(part)
        if (folder / "Info.cfg").is_file()
    ]
    if not found:
        remedy = "give the folder that holds training and testing"
        raise missing(root, "no patient folders with an Info.cfg", remedy)
    return found


def read_info(path: Path, diagnoses: Mapping[str, str | None] = DIAGNOSES) -> dict:
    """Read one Info.cfg: a subject's attributes (`cardiac.subject_row`), and frames `ed` and `es`
    (from 1).

    Raises `DataError` naming file and line.
    """
    pairs = [line.partition(":") for line in read_text(path).splitlines() if line.strip()]
    info = {key.strip(): value.strip() for key, _, value in pairs}
    for key in KEYS:
        if key not in info:
            raise DataError(f"{path}: has no line {key!r}; {unknown_key(key, list(info), 'it')}")
    keys = [key for key in KEYS if key != "Group"]
    numbers = {key: number_of(str(path), key, info[key], 0, 1e4) for key in keys}
    ed, es, frames = (numbers[key] for key in ("ED", "ES", "NbFrame"))
    subject = {
        "subject": path.parent.name,
        "sex": None,
        "age": np.nan,
        "height": numbers["Height"],
        "weight": numbers["Weight"],
        "pathology": info["Group"],
        "centre": "ACDC",
        "vendor": None,
    } | frame_numbers(str(path), ed, es, 1, frames)
    return subject_row(subject, diagnoses, str(path))


def read_subject(
    files: Sequence[Path], frames: Sequence[int], settings: CardiacSettings
) -> HeartSlices:
    """Read image and mask of ED and of ES (`files`), check that they lie on one grid, and draw the
    slices.

    Raises `CorruptScan`, or `DataError` when no slice can be used.
    """
    first, affine = read_labels(files[1], LABELS)
    images, masks = [], []
    for image_path, mask_path in (files[:2], files[2:]):
        image, image_grid = read_volume(image_path)
        mask, mask_grid = read_labels(mask_path, LABELS)
        require_same_grid(image_path, image, image_grid, first.shape, affine)
        require_same_grid(mask_path, mask, mask_grid, first.shape, affine)
        images.append(image)
        masks.append(mask)
    return extract(np.stack(images, axis=-1), np.stack(masks, axis=-1), affine, settings)


def _scans(subject: Mapping) -> list[Path]:
    """Image and mask of ED, image and mask of ES."""
    return [
        subject["folder"] / f"{subject['subject']}_frame{subject[phase]:02d}{ending}.nii.gz"
        for phase in ("ed", "es")
        for ending in ("", "_gt")
    ]
