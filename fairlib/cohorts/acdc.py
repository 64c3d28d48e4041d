"""ACDC (Automated Cardiac Diagnosis Challenge) as it is released, as a cohort of short-axis hearts
without sex and age.

Images and masks are good for training a segmenter and for testing where hearts come from another
hospital. Sex and age are not in the release: asking for them is an error, not a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fairlib.cohorts.cardiac import (
    STANDARD,
    CardiacSettings,
    HeartSlices,
    Reading,
    check_diagnoses,
    check_headers,
    extract,
    frame_numbers,
    read_hearts,
    scan_file,
    subject_row,
)
from fairlib.cohorts.cohort import Cohort
from fairlib.cohorts.listing import attempt, by_name, folders, listed, missing, require_some
from fairlib.cohorts.tables import number_of, read_text
from fairlib.errors import DataError, FairlibError
from fairlib.nifti import read_labels, read_volume, require_same_grid
from fairlib.settings import unknown_key

KEYS = ("ED", "ES", "Group", "Height", "NbFrame", "Weight")  # of Info.cfg
DIAGNOSES: dict[str, str | None] = {"NOR": "healthy"}
DIAGNOSES |= dict.fromkeys(("DCM", "HCM"), "heart failure")
DIAGNOSES |= dict.fromkeys(("MINF", "RV", "ARV"))
LABELS = frozenset({0, 1, 2, 3})
PARTS, PATIENT = ("training", "testing"), re.compile(r"patient\d+", re.IGNORECASE)
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
    skip_faulty: bool = False,
    headers_only: bool = False,
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
        Group of Info.cfg to "healthy", "heart failure", or None for neither. Subjects of another
        group have no diagnosis, and are in `notes`.
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
        one row is one subject.

    Returns
    -------
    Cohort
        One row is one slice position; columns as in `cardiac.read_hearts`, without sex, age, decade
        and prompt, which ACDC does not state. Images are float32 `[N, 3, size, size]` (ED, ES, ED)
        in [-1, 1], masks uint8 `[N, 2, size, size]` (0 background, 1 LV, 2 MYO, 3 RV). In
        `excluded` are subjects whose Info.cfg is faulty, without a usable slice or with another
        label order than most.

    Raises
    ------
    DataError
        Another layout, no Info.cfg that can be used; later, whatever needs sex, age, decade or
        prompt.
    CorruptScan
        A scan that cannot be trusted (several are one `DataError`).
    """
    check_diagnoses(diagnoses)
    root = Path(root).expanduser()
    subjects, faults = {}, dict[str, FairlibError]()
    for name, (part, folder) in find_subjects(root).items():
        stated = partial(read_info, folder / "Info.cfg", diagnoses)
        if info := attempt(stated, faults, name):
            subjects[name] = {**info, "part": part, "folder": folder}
    excluded = [(name, "faulty Info.cfg", str(why)) for name, why in faults.items()]
    require_some(subjects, excluded, root, "patients", "take their Info.cfg from the release again")
    scans = {name: _scans(subject) for name, subject in subjects.items()}
    read, strata = check_headers if headers_only else read_subject, ("diagnosis",)
    how = Reading(settings, cache_dir, progress, skip_faulty, headers_only)
    return read_hearts("acdc", root, subjects, scans, read, how, excluded, strata, NOT_STATED)


survey_acdc = partial(read_acdc, headers_only=True)


def find_subjects(root: Path) -> dict[str, tuple[str, Path]]:
    """Patient -> (part, folder), under `root`, its folders training and testing, and those of
    `root/database`.

    Raises `DataError` if there is none, or a patient is in two parts.
    """
    database = root / "database" if (root / "database").is_dir() else root
    places = [root, *(database / part for part in PARTS)]
    found = {
        place.name: [path for path in folders(place) if PATIENT.fullmatch(path.name)]
        for place in places
    }
    if any((path / "Info.cfg").is_file() for paths in found.values() for path in paths):
        return by_name(root, found)
    what, remedy = "no patient folders with an Info.cfg", "take the release of the challenge"
    deeper = (path for place in folders(root) for path in folders(place))
    others = [*(path for paths in found.values() for path in paths), *deeper]
    other = next((path for path in others if PATIENT.fullmatch(path.name)), None)
    if other is None:
        remedy = "give the folder that holds training and testing"
        raise missing(root, what, remedy, "Info.cfg", *PARTS)
    names = ", ".join(path.name for path in listed(other)[:3])
    layout = f"{other.relative_to(root)} holds {names} without one: ED, ES and group are not stated"
    raise missing(root, f"{what} ({layout})", remedy)


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
    frames = [f"{subject['subject']}_frame{subject[phase]:02d}" for phase in ("ed", "es")]
    return [scan_file(subject["folder"], name + end) for name in frames for end in ("", "_gt")]
