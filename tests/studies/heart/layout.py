"""Synthetic hearts as files in the layout of M&Ms, for what reads that release."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd

from fairlib.io import write_bytes
from fairlib.rng import numpy_rng
from studies.engine import StudyStream
from studies.heart.phantom import (
    PATHOLOGY,
    VENDORS,
    Heart,
    Person,
    PhantomSettings,
    Scene,
    attributes,
    draw_scene,
    finish,
    grid,
    make_subject,
    render,
)

TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
# by index
PARTS = (*["Training/Labeled"] * 3, "Validation", *["Testing"] * 2)
UNLABELLED = "Training/Unlabeled"
MATRIX, SLICE_MM = 96, 10.0
# base to apex; the middle slice is the one that `draw_heart` draws
LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)
PHASES = (0.0, 0.6, 1.0, 0.4)  # of the frames, before a centre's own start is rolled in
CENTRE_PIXEL_MM = {1: 1.6, 2: 1.5, 3: 1.75, 4: 1.65, 5: 1.7}  # by centre
START = {1: 0, 2: 0, 3: 0, 4: 1, 5: 0}  # which frame is end-diastole, by centre


def write_mnms(root: str | Path, settings: PhantomSettings) -> Path:
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
    rows = [_write_subject(root, settings, index) for index in range(settings.subjects)]
    table, truths = map(pd.DataFrame, zip(*rows, strict=True))
    write_bytes(root / TABLE, table.to_csv().encode())
    write_bytes(root / "truth.csv", truths.round(5).to_csv(index=False).encode())
    return root


def _write_subject(root: Path, settings: PhantomSettings, index: int) -> tuple[dict, dict]:
    rng, person, heart = make_subject(settings, index)
    scene = draw_scene(rng, heart)
    losses = numpy_rng(
        settings.seed, index, StudyStream.NOT_SHOWN
    )  # of what a hospital fails to record
    unlabelled, lost = losses.random() < settings.unlabelled, losses.random() < settings.missing
    code, centre = f"SYN{index:05d}", VENDORS[person.vendor][2]
    part = UNLABELLED if unlabelled else PARTS[index % len(PARTS)]
    folder = root / part / code
    if not (folder / f"{code}_sa_gt.nii.gz").exists():  # the last file written
        images, labels = _volumes(rng, heart, scene, centre)
        pixel = CENTRE_PIXEL_MM[centre]
        _write_volume(folder / f"{code}_sa.nii.gz", images, pixel)
        _write_volume(folder / f"{code}_sa_gt.nii.gz", labels * np.uint8(not unlabelled), pixel)
    return _rows(person, heart, code, part, lost)


def _volumes(
    rng: np.random.Generator, heart: Heart, scene: Scene, centre: int
) -> tuple[np.ndarray, np.ndarray]:
    """Brightness int16 and labels uint8, both [x, y, slice, frame]."""
    x, y = grid(MATRIX, CENTRE_PIXEL_MM[centre], tuple(rng.uniform(-8, 8, 2) - [10, 0]))
    rendered = [render(heart, scene, x, y, PHASES, level) for level in LEVELS]
    slices, labels = zip(*rendered, strict=True)
    images, labels = finish(np.stack(slices), scene, CENTRE_PIXEL_MM[centre], rng), np.stack(labels)
    segmented = np.isin(PHASES, (0.0, 1.0)).astype(np.uint8)[:, None, None]
    volumes = np.round(images * 600).astype(np.int16), labels * segmented
    return tuple(np.roll(values, START[centre], axis=1).transpose(3, 2, 0, 1) for values in volumes)


def _rows(person: Person, heart: Heart, code: str, part: str, lost: bool) -> tuple[dict, dict]:
    """The row of the data set's table, and that of `truth.csv`."""
    vendor, letter, centre = VENDORS[person.vendor]
    ed, es = ((PHASES.index(phase) + START[centre]) % len(PHASES) for phase in (0.0, 1.0))
    return {
        "External code": code,
        "Pathology": PATHOLOGY[person.face],
        "VendorName": vendor,
        "Vendor": letter,
        "Centre": centre,
        "ED": ed,
        "ES": es,
        "Age": person.age,
        "Sex": person.sex,
        "Height": "" if lost else person.height,
        "Weight": "" if lost else person.weight,
    }, {"External code": code, "part": part, **attributes(person, heart)}


def _write_volume(path: Path, values: np.ndarray, pixel: float) -> None:
    # x grows to the patient's left, y to the back
    affine = np.diag([-pixel, -pixel, SLICE_MM, 1.0])
    affine[:3, 3] = [pixel * MATRIX / 2, pixel * MATRIX / 2, 0]
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
