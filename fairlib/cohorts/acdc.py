"""ACDC (Automated Cardiac Diagnosis Challenge) as it is released, as a cohort of short-axis hearts
without sex and age.

The images and masks are good for training a segmenter and for testing where hearts come from
another hospital. Sex
and age are not in the release: asking for them is an error, not a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.cohorts.cardiac_cohort import (
    HeartCohort,
    HeartStore,
    heart_notes,
    heart_table,
    person_row,
    slice_rows,
)
from fairlib.cohorts.cardiac_slices import STANDARD, CardiacSettings, HeartSlices, extract
from fairlib.cohorts.nifti import read_labels, read_volume, require_same_grid
from fairlib.cohorts.table import report
from fairlib.cohorts.text_tables import read_text
from fairlib.errors import DataError
from fairlib.settings import unknown_key

KEYS = ("ED", "ES", "Group", "Height", "NbFrame", "Weight")  # of Info.cfg
DIAGNOSES = {
    "NOR": "healthy",
    "DCM": "heart failure",
    "HCM": "heart failure",
    "MINF": None,
    "RV": None,
    "ARV": None,
}
LABELS = frozenset({0, 1, 2, 3})


@dataclass(frozen=True, eq=False)
class AcdcCohort(HeartCohort):
    """A `HeartCohort` in which sex and age are missing for everybody; whatever needs them raises
    `DataError`.
    """

    def labels(self):
        raise self._absent("labels()")

    def shares(self, by=None, unit="subject"):
        raise self._absent("shares()")

    def with_known_sex(self):
        raise self._absent("with_known_sex()")

    def with_prompt(self):
        raise self._absent("with_prompt()")

    def by_subject(self, columns: Sequence[str] = ("diagnosis",)) -> pd.DataFrame:
        """As `Cohort.by_subject`; `DataError` when sex, age or what is made from them is among the
        columns.
        """
        if {"sex", "age", "decade", "prompt"} & set(columns):
            raise self._absent(f"by_subject({list(columns)})")
        return super().by_subject(columns)

    def split(
        self, fractions: dict[str, float], seed: int, stratify: Sequence[str] = ("diagnosis",)
    ):
        """As `Cohort.split`, stratified by what ACDC does state."""
        return super().split(fractions, seed, stratify)

    def _absent(self, asked: str) -> DataError:
        return DataError(
            f"{self.name}: {asked} needs sex or age, and ACDC states neither; use M&Ms, or ask for "
            "height, "
            "weight, bmi, diagnosis or pathology"
        )


def read_acdc(
    root: str | Path,
    settings: CardiacSettings = STANDARD,
    diagnoses: Mapping[str, str | None] = DIAGNOSES,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AcdcCohort:
    """The patients of `root` (`training`, `testing`, or the folder that holds them):
    `patientNNN/Info.cfg`,

    `patientNNN_frameMM.nii.gz` and `patientNNN_frameMM_gt.nii.gz` for the frames ED and ES that
    Info.cfg names (counted from 1). Columns as in `HeartCohort`, sex and age missing; masks in the
    label order of this book (1 LV, 2 MYO, 3 RV; in the files it is 1 RV, 2 MYO, 3 LV, and that is
    checked on the data). The released sforms state no voxel size, so it is read from pixdim, and
    `notes` says of whom. Left out and listed: no usable slice. Raises `DataError` (layout,
    Info.cfg, unknown group) and `CorruptScan` (a scan that cannot be trusted).
    """
    folders = find_patients(Path(root))
    store = HeartStore(None if cache_dir is None else Path(cache_dir), settings)
    kept, files, rows, lost = {}, {}, [], []
    for done, (part, folder) in enumerate(folders, 1):
        person = read_info(folder / "Info.cfg", diagnoses)
        files[folder.name] = scans = _files(folder, person)
        try:
            kept[folder.name] = store.add(
                folder.name, scans, lambda scans=scans: _read_patient(scans, settings)
            )
            rows += slice_rows({**person, "part": part}, kept[folder.name])
        except DataError as why:
            lost.append((folder.name, "no usable slice", str(why)))
        if progress is not None:
            progress(done, len(folders))
    if not rows:
        raise DataError(f"{root}: no patient has usable images and masks ({lost[:1]})")
    return AcdcCohort(
        "acdc",
        heart_table(rows),
        store.images,
        report(lost),
        heart_notes(kept, files, settings),
        masks=store.masks,
    )


def find_patients(root: Path) -> list[tuple[str, Path]]:
    """(part, folder) of each patient under `root`, `root/training` and `root/testing`.

    Raises `DataError` if there is none.
    """
    places = [
        (folder.name, folder)
        for folder in (root, root / "training", root / "testing")
        if folder.is_dir()
    ]
    found = [
        (part, entry)
        for part, folder in places
        for entry in sorted(folder.iterdir())
        if (entry / "Info.cfg").is_file()
    ]
    if not found:
        raise DataError(
            f"{root}: no patient folders with an Info.cfg; give the folder that holds training and "
            "testing"
        )
    return found


def read_info(path: Path, diagnoses: Mapping[str, str | None] = DIAGNOSES) -> dict:
    """One Info.cfg as a row's attributes, and frames `ed` and `es` (from 1).

    Raises `DataError` naming file and line.
    """
    pairs = [line.partition(":") for line in read_text(path).splitlines() if line.strip()]
    info = {key.strip(): value.strip() for key, _, value in pairs}
    for key in KEYS:
        if key not in info:
            raise DataError(f"{path}: has no line {key!r}; {unknown_key(key, list(info), 'it')}")
    numbers = {key: _number(path, key, info[key]) for key in KEYS if key != "Group"}
    ed, es, frames = (numbers[key] for key in ("ED", "ES", "NbFrame"))
    if ed == es or not all(1 <= frame <= frames and frame == int(frame) for frame in (ed, es)):
        raise DataError(
            f"{path}: ED {info['ED']} and ES {info['ES']} of {info['NbFrame']} frames; expected "
            "two, counted from 1"
        )
    person = {
        "subject": path.parent.name,
        "sex": None,
        "age": np.nan,
        "height": numbers["Height"],
        "weight": numbers["Weight"],
        "pathology": info["Group"],
        "centre": "ACDC",
        "vendor": None,
    }
    return {**person_row(person, diagnoses, str(path)), "ed": int(ed), "es": int(es)}


def _number(path: Path, key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DataError(
            f"{path}: {key} is {text!r}, not a number; take the file from the release again"
        ) from error


def _files(folder: Path, person: dict) -> list[Path]:
    """Image and mask of ED, image and mask of ES."""
    names = [
        f"{folder.name}_frame{person[phase]:02d}{ending}"
        for phase in ("ed", "es")
        for ending in ("", "_gt")
    ]
    files = [folder / f"{name}.nii.gz" for name in names]
    for path in files:
        if not path.is_file():
            raise DataError(
                f"{path}: is missing, but Info.cfg names its frame; copy it from the release"
            )
    return files


def _read_patient(files: list[Path], settings: CardiacSettings) -> HeartSlices:
    first, affine = read_labels(files[1], LABELS)
    images, masks = [], []
    for image_path, mask_path in (files[:2], files[2:]):
        image, own = read_volume(image_path)
        mask, other = read_labels(mask_path, LABELS)
        require_same_grid(image_path, image, own, first.shape, affine)
        require_same_grid(mask_path, mask, other, first.shape, affine)
        images.append(image)
        masks.append(mask)
    return extract(np.stack(images, axis=-1), np.stack(masks, axis=-1), affine, settings)
