"""Synthetic hearts in the layout of M&Ms: a table, and 4-D short-axis volumes with their
segmentations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fairlib.io import write_bytes
from studies.heart.rules import PATHOLOGY, VENDORS, HeartSettings, Person, draw_person, make_heart
from studies.heart.scene import Scene, draw_scene, finish, render
from studies.heart.shape import Heart, grid, truth

TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
COLUMNS = (
    "External code",
    "Pathology",
    "VendorName",
    "Vendor",
    "Centre",
    "ED",
    "ES",
    "Age",
    "Sex",
    "Height",
    "Weight",
)
# by index
PARTS = (
    "Training/Labeled",
    "Training/Labeled",
    "Training/Labeled",
    "Validation",
    "Testing",
    "Testing",
)
UNLABELLED = "Training/Unlabeled"
MATRIX, SLICE_MM = 96, 10.0
# base to apex; the middle slice is the one that `draw_heart` draws
LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)
PHASES = (0.0, 0.6, 1.0, 0.4)  # of the frames, before a centre's own start is rolled in
PIXEL_MM = {1: 1.6, 2: 1.5, 3: 1.75, 4: 1.65, 5: 1.7}  # by centre
START = {1: 0, 2: 0, 3: 0, 4: 1, 5: 0}  # which frame is end-diastole, by centre


def write_mnms(root: str | Path, settings: HeartSettings, progress=iter) -> Path:
    """Write `settings.subjects` subjects under `root`, which then looks like M&Ms' folder
    OpenDataset.

    The table has the real columns (the unnamed index included; ED and ES are zero-based frames;
    height in cm and weight in kg are empty for a share `missing`). `{Training/Labeled,
    Training/Unlabeled, Validation, Testing}/<code>/` hold `<code>_sa.nii.gz` and
    `<code>_sa_gt.nii.gz` (x, y, slice, frame; segmented in ED and ES only, empty throughout for a
    share `unlabelled`). Also `truth.csv`, which no real data set has. The middle slice of subject
    SYN00007 is the heart of `draw_heart(settings, 7)`. A subject is a function of (seed, index);
    subjects already written are left alone.
    """
    root = Path(root)
    rows = [_write_subject(root, settings, index) for index in progress(range(settings.subjects))]
    _write_tables(root, rows)
    return root


def _write_subject(root: Path, settings: HeartSettings, index: int) -> dict:
    rng = np.random.default_rng([settings.seed, index])
    person = draw_person(rng, settings)
    heart = make_heart(rng, person)
    scene = draw_scene(rng, heart)
    clerk = np.random.default_rng([settings.seed, index, 1])  # what the hospital loses
    unlabelled, lost = clerk.random() < settings.unlabelled, clerk.random() < settings.missing
    code, centre = f"SYN{index:05d}", VENDORS[person.vendor][2]
    part = UNLABELLED if unlabelled else PARTS[index % len(PARTS)]
    folder = root / part / code
    if not (folder / f"{code}_sa_gt.nii.gz").exists():  # the last file written
        images, labels = _volumes(rng, heart, scene, centre)
        pixel = PIXEL_MM[centre]
        _write_volume(folder / f"{code}_sa.nii.gz", images, pixel)
        _write_volume(folder / f"{code}_sa_gt.nii.gz", labels * np.uint8(not unlabelled), pixel)
    return _row(person, heart, code, part, lost)


def _volumes(
    rng: np.random.Generator, heart: Heart, scene: Scene, centre: int
) -> tuple[np.ndarray, np.ndarray]:
    """Brightness int16 and labels uint8, both [x, y, slice, frame]."""
    x, y = grid(MATRIX, PIXEL_MM[centre], tuple(rng.uniform(-8, 8, 2) - [10, 0]))
    pictures, labels = zip(
        *[render(heart, scene, x, y, PHASES, level) for level in LEVELS], strict=True
    )
    pictures, labels = finish(np.stack(pictures), scene, PIXEL_MM[centre], rng), np.stack(labels)
    segmented = np.isin(PHASES, (0.0, 1.0)).astype(np.uint8)[:, None, None]
    found = np.round(pictures * 600).astype(np.int16), labels * segmented
    return tuple(np.roll(values, START[centre], axis=1).transpose(3, 2, 0, 1) for values in found)


def _row(person: Person, heart: Heart, code: str, part: str, lost: bool) -> dict:
    vendor, letter, centre = VENDORS[person.vendor]
    frame = {phase: (PHASES.index(phase) + START[centre]) % len(PHASES) for phase in (0.0, 1.0)}
    values = (
        code,
        PATHOLOGY[person.face],
        vendor,
        letter,
        centre,
        frame[0.0],
        frame[1.0],
        person.age,
        person.sex,
        "" if lost else person.height,
        "" if lost else person.weight,
    )
    known = {
        "part": part,
        "sex": person.sex,
        "age": person.age,
        "height": person.height,
        "weight": person.weight,
        "bmi": person.bmi,
        "diagnosis": person.diagnosis,
        "face": person.face,
        **truth(heart),
    }
    return {**dict(zip(COLUMNS, values, strict=True)), **known}


def _write_volume(path: Path, values: np.ndarray, pixel: float) -> None:
    import gzip

    import nibabel

    # x grows to the patient's left, y to the back
    affine = np.diag([-pixel, -pixel, SLICE_MM, 1.0])
    affine[:3, 3] = [pixel * MATRIX / 2, pixel * MATRIX / 2, 0]
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_tables(root: Path, rows: list[dict]) -> None:
    import pandas as pd

    table = pd.DataFrame(rows)
    write_bytes(root / TABLE, table[list(COLUMNS)].to_csv().encode())
    known = table.drop(columns=[name for name in COLUMNS if name != "External code"])
    write_bytes(root / "truth.csv", known.round(5).to_csv(index=False).encode())
