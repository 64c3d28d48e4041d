"""From a heart to images: synthetic subjects with short-axis images in end-diastole (ED) and
end-systole (ES), the truth about them, and files in the layout of M&Ms.

No subject exists. Coordinates, level and phase are those of `rules`.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from fairlib.cohorts.cardiac import bmi_class, decade, normalise, prompt_of, stack
from fairlib.errors import DataError
from fairlib.io import write_bytes
from studies.heart.rules import (
    PATHOLOGY,
    VENDORS,
    WALL_ORDERS,
    Heart,
    Person,
    PhantomSettings,
    depths,
    draw_person,
    grid,
    make_heart,
    masks,
    truth,
    waves,
)

# ---- the image: surroundings, brightness, scanner

# Brightness of a balanced steady-state free precession image, 1 = fat.
BLOOD, MUSCLE, FAT, LUNG, LIVER, CHEST = 0.82, 0.30, 0.95, 0.05, 0.40, 0.26


@dataclass(frozen=True)
class Scene:
    """What surrounds the heart, and how it was scanned. Lengths in mm from the heart's edge, angles
    in radians.

    chest and liver: (direction, distance, curvature 1/mm); chest_fat: depth at which muscle gives
    way to fat; aorta: (direction, distance, radius); patches [3, 2]: amplitudes of the fat's
    unevenness; vessels [K, 3]: x, y, radius; bias [3]: per 100 mm along x, y and squared; blood,
    muscle: their brightness; noise: standard deviation; blur: mm.
    """

    chest: tuple[float, float, float]
    chest_fat: float
    liver: tuple[float, float, float]
    aorta: tuple[float, float, float]
    patches: np.ndarray
    vessels: np.ndarray
    bias: np.ndarray
    blood: float
    muscle: float
    noise: float
    blur: float


def draw_scene(rng: np.random.Generator, heart: Heart) -> Scene:
    """Random surroundings; the layer of fat in the chest wall grows with the fat around the
    heart.
    """
    vessels = np.stack(
        [rng.uniform(-75, 75, 14), rng.uniform(-75, 75, 14), rng.uniform(1.0, 2.4, 14)], axis=1
    )
    return Scene(
        chest=(heart.angle + rng.normal(0.45, 0.15), rng.uniform(6, 14), rng.uniform(0.002, 0.006)),
        chest_fat=rng.uniform(8, 14) - 0.6 * heart.fat,
        liver=(np.pi / 2 + rng.normal(0.25, 0.18), rng.uniform(3, 12), rng.uniform(-0.008, -0.002)),
        aorta=(rng.normal(0.75, 0.14), rng.uniform(4, 10), rng.uniform(9, 12)),
        patches=rng.normal(0, 0.6, (len(WALL_ORDERS), 2)),
        vessels=vessels,
        bias=np.concatenate([rng.normal(0, 0.16, 2), rng.normal(0, 0.12, 1)]),
        blood=BLOOD * rng.uniform(0.92, 1.08),
        muscle=MUSCLE * rng.uniform(0.88, 1.12),
        noise=rng.uniform(0.016, 0.032),
        blur=rng.uniform(0.8, 1.3),
    )


def render(
    heart: Heart,
    scene: Scene,
    x: np.ndarray,
    y: np.ndarray,
    phases: Sequence[float],
    level: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """One slice at several phases, at points x, y [H, W]: brightness float32 [P, H, W], about 0 to
    1.1 (before blur and

    noise), and labels uint8 [P, H, W].
    """
    x, y = x.astype(np.float32), y.astype(np.float32)
    behind, bias, theta = _surroundings(heart, scene, x, y), _bias(scene, x, y), np.arctan2(y, x)
    fat = _fat(heart, scene, theta) - 0.6
    depth = [depths(heart, x, y, phase, level) for phase in phases]
    images = [_paint(scene, behind, each, fat) * bias for each in depth]
    return np.stack(images), np.stack([masks(each) for each in depth])


def finish(image: np.ndarray, scene: Scene, pixel: float, rng: np.random.Generator) -> np.ndarray:
    """The scanner's share: blur within the plane [..., H, W], then noise (the magnitude of a
    complex signal).
    """
    sigma = (0,) * (image.ndim - 2) + (scene.blur / pixel,) * 2
    smooth = gaussian_filter(image.astype(np.float32), sigma, mode="nearest")
    real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * scene.noise
    return np.hypot(smooth + real, imaginary)


def _paint(
    scene: Scene, behind: np.ndarray, depth: dict[str, np.ndarray], fat: np.ndarray
) -> np.ndarray:
    edge = np.maximum(depth["epicardium"], depth["rv_wall"])
    value = _over(behind, FAT, _soft(edge + fat))
    value = _over(value, scene.muscle, _soft(edge))
    value = _over(value, 0.97 * scene.blood, _soft(depth["rv"]))
    value = _over(value, scene.muscle, _soft(depth["epicardium"]))
    return _over(value, scene.blood, _soft(depth["lv"]))


def _surroundings(heart: Heart, scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Lung with vessels, the chest wall (muscle, then fat), the liver under its dome, the
    descending aorta.
    """
    outer = heart.lv_radius + heart.wall
    value = np.full_like(x, LUNG)
    for across, down, radius in scene.vessels:
        value = _over(value, 0.35, _soft(radius - np.hypot(x - across, y - down)))
    angle, gap, radius = scene.aorta
    away = outer + gap + radius
    aorta = np.hypot(x - away * np.cos(angle), y - away * np.sin(angle))
    value = _over(value, CHEST, _soft(radius + 1.5 - aorta))
    value = _over(value, 0.9 * scene.blood, _soft(radius - aorta))
    liver = _beyond(x, y, scene.liver, outer)
    value = _over(value, FAT * 0.8, _soft(liver + 0.8 * heart.fat))
    value = _over(value, LIVER * (1 + 0.05 * np.sin(x / 7 + 1) * np.sin(y / 6)), _soft(liver))
    chest = _beyond(x, y, scene.chest, outer + 0.9 * heart.rv_reach)
    value = _over(value, CHEST, _soft(chest))
    return _over(value, FAT, _soft(chest - scene.chest_fat))


def _fat(heart: Heart, scene: Scene, theta: np.ndarray) -> np.ndarray:
    """Thickness of the fat around the heart, mm: most over the right ventricle, patches elsewhere,
    none in between.
    """
    share = (
        0.5
        + 0.8 * np.cos(theta - heart.angle - 0.2)
        + 0.5 * waves(theta, WALL_ORDERS, scene.patches)
    )
    return heart.fat * np.clip(share, 0, None)


def _beyond(
    x: np.ndarray, y: np.ndarray, surface: tuple[float, float, float], edge: float
) -> np.ndarray:
    """Depth beyond a bent line that lies `surface[1]` mm from the heart's edge in the direction
    `surface[0]`.
    """
    angle, gap, bend = surface
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return along - edge - gap + bend * across**2


def _bias(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    u, v = x / 100, y / 100
    return 1 + scene.bias[0] * u + scene.bias[1] * v - abs(scene.bias[2]) * (u**2 + v**2)


def _over(below: np.ndarray, value, share: np.ndarray) -> np.ndarray:
    return below + (value - below) * share


def _soft(depth: np.ndarray, width: float = 0.5) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(depth / (2 * width))


# ---- subjects


@dataclass(frozen=True, eq=False)
class HeartSubject:
    """One synthetic subject: who, what the heart truly measures, and the mid-ventricular slice.

    row: the attributes of a cohort's row and the truth (`lv_ed_area`, `lv_es_area` mm2, `wall_ed`,
    `wall_es` mm mean thickness, `ejection` = 1 - es / ed area, `face`); images: float32 [2, 64, 64]
    (ED, ES) in [-1, 1]; masks: uint8 [2, 64, 64], 0 background, 1 LV, 2 MYO, 3 RV.
    """

    row: dict
    heart: Heart
    images: np.ndarray
    masks: np.ndarray


def draw_heart(settings: PhantomSettings, index: int) -> HeartSubject:
    """Subject number `index`: a function of (settings.seed, index) and the shares alone."""
    rng = np.random.default_rng([settings.seed, index])
    return draw_subject(rng, draw_person(rng, settings), f"synthetic-heart-{index:05d}", settings)


def draw_hearts(
    settings: PhantomSettings, indices: Iterable[int] | None = None
) -> tuple[Tensor, Tensor, pd.DataFrame]:
    """Draw many subjects (`indices` None: the first `settings.subjects`).

    Returns images float32 [N, 3, 64, 64] (ED, ES, ED) in [-1, 1], masks uint8 [N, 2, 64, 64], and a
    table with one row each: attributes, prompt, classes and truth. Raises `DataError` without an
    index.
    """
    chosen = range(settings.subjects) if indices is None else list(indices)
    if not len(chosen):
        raise DataError("no hearts to draw; give at least one index")
    found = [draw_heart(settings, int(index)) for index in chosen]
    images = torch.from_numpy(np.stack([subject.images for subject in found]))
    labels = torch.from_numpy(np.stack([subject.masks for subject in found]))
    return stack(images), labels, pd.DataFrame([subject.row for subject in found])


def image_centre(heart: Heart) -> tuple[float, float]:
    """The middle (x, y) in mm of the box around the segmentation of both phases at
    mid-ventricle.
    """
    x, y = grid(80, 2.0, (-12.0, 0.0))
    found = np.logical_or(*[masks(depths(heart, x, y, phase)) > 0 for phase in (0.0, 1.0)])
    return tuple(float(axis[found].min() + axis[found].max()) / 2 for axis in (x, y))


def draw_subject(
    rng: np.random.Generator,
    person: Person,
    name: str = "synthetic-heart",
    settings: PhantomSettings | None = None,
) -> HeartSubject:
    """Draw the heart of a given person (see `rules.make_person`); `settings` says the size of the
    image.
    """
    settings = settings or PhantomSettings()
    heart = make_heart(rng, person)
    scene = draw_scene(rng, heart)
    x, y = grid(settings.size, settings.pixel_mm, image_centre(heart))
    raw, labels = render(heart, scene, x, y, (0.0, 1.0))
    images = normalise(finish(raw, scene, settings.pixel_mm, rng))
    return HeartSubject(_row(person, heart, name), heart, images, labels)


def _row(person: Person, heart: Heart, name: str) -> dict:
    known = _known(person, heart)
    return {
        "subject": name,
        **known,
        "pathology": PATHOLOGY[person.face],
        "centre": VENDORS[person.vendor][2],
        "slice": 0,
        "decade": decade(person.age),
        "bmi_class": bmi_class(person.bmi),
        "prompt": prompt_of(known),
    }


def _known(person: Person, heart: Heart) -> dict:
    """The attributes of a subject, and what the heart truly measures."""
    return {**vars(person), "vendor": VENDORS[person.vendor][0], **truth(heart)}


# ---- files in the layout of M&Ms

TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
# by index
PARTS = (*["Training/Labeled"] * 3, "Validation", *["Testing"] * 2)
UNLABELLED = "Training/Unlabeled"
MATRIX, SLICE_MM = 96, 10.0
# base to apex; the middle slice is the one that `draw_heart` draws
LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)
PHASES = (0.0, 0.6, 1.0, 0.4)  # of the frames, before a centre's own start is rolled in
PIXEL_MM = {1: 1.6, 2: 1.5, 3: 1.75, 4: 1.65, 5: 1.7}  # by centre
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
    rng = np.random.default_rng([settings.seed, index])
    person = draw_person(rng, settings)
    heart = make_heart(rng, person)
    scene = draw_scene(rng, heart)
    losses = np.random.default_rng([settings.seed, index, 1])  # of what a hospital fails to record
    unlabelled, lost = losses.random() < settings.unlabelled, losses.random() < settings.missing
    code, centre = f"SYN{index:05d}", VENDORS[person.vendor][2]
    part = UNLABELLED if unlabelled else PARTS[index % len(PARTS)]
    folder = root / part / code
    if not (folder / f"{code}_sa_gt.nii.gz").exists():  # the last file written
        images, labels = _volumes(rng, heart, scene, centre)
        pixel = PIXEL_MM[centre]
        _write_volume(folder / f"{code}_sa.nii.gz", images, pixel)
        _write_volume(folder / f"{code}_sa_gt.nii.gz", labels * np.uint8(not unlabelled), pixel)
    return _rows(person, heart, code, part, lost)


def _volumes(
    rng: np.random.Generator, heart: Heart, scene: Scene, centre: int
) -> tuple[np.ndarray, np.ndarray]:
    """Brightness int16 and labels uint8, both [x, y, slice, frame]."""
    x, y = grid(MATRIX, PIXEL_MM[centre], tuple(rng.uniform(-8, 8, 2) - [10, 0]))
    slices, labels = zip(
        *[render(heart, scene, x, y, PHASES, level) for level in LEVELS], strict=True
    )
    images, labels = finish(np.stack(slices), scene, PIXEL_MM[centre], rng), np.stack(labels)
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
    }, {"External code": code, "part": part, **_known(person, heart)}


def _write_volume(path: Path, values: np.ndarray, pixel: float) -> None:
    # x grows to the patient's left, y to the back
    affine = np.diag([-pixel, -pixel, SLICE_MM, 1.0])
    affine[:3, 3] = [pixel * MATRIX / 2, pixel * MATRIX / 2, 0]
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
