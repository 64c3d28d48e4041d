"""Synthetic brains and the files that hold them.

A synthetic brain is a function of space: real anatomy (MNI152 templates), synthetic subjects. A
`Subject` is a handful of numbers, drawn by the generative rules of this module; `render` evaluates
it at any points, so that one definition makes both volumes and slices. Coordinates are millimetres,
RAS: x to the patient's right, y to the front, z up, origin at the brain's centre.

`write_brats`: subjects in the BraTS 2018 layout, with the tables from which their sex is joined.
The default counts are those of the real cohort whose sex is public: high grade 63 male and 38
female, low grade 27 male and 38 female. `write_roco`: the training slices in the ROCO layout, four
in five male. `truth.csv`, which no real data set has, says how each was drawn.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairlib.cohorts.brats import caption
from fairlib.cohorts.slices import CONTRASTS
from fairlib.errors import SettingsError
from fairlib.io import write_bytes
from fairlib.rng import numpy_rng

# Linear size: sexes differ by `difference` of log scale (men larger); `spread` is the standard
# deviation within a sex.
# teaching: chosen so that one slice tells sex at AUC about 0.95.
# realistic: total brain volume about 11 % larger in men, within-sex coefficient of variation about
# 8.5 %.
# the MNI152 template is larger than an average head; also leaves room in the frame
BASE_SIZE = np.log(0.925)
EFFECTS = {
    "teaching": (0.090, 0.030),
    "realistic": (np.log(1.11) / 3, 0.085 / 3),
    "none": (0.0, 0.030),
}
CENTRE = np.array([0.0, -18.0, 8.0])  # of the template brain, mm
VENTRICLES = np.array([0.0, -12.0, 16.0])

# Brightness of cerebrospinal fluid, grey and white matter in each contrast.
TISSUE = {
    "t1": (0.10, 0.52, 0.80),
    "t1ce": (0.10, 0.52, 0.62),
    "t2": (1.00, 0.60, 0.40),
    "flair": (0.08, 0.60, 0.46),
}
# Brightness of (core, enhancing rim, oedema) in a high-grade and of (solid part, -, halo) in a
# low-grade tumour.
TUMOUR = {
    "HGG": {
        "t1": (0.18, 0.48, 0.38),
        "t1ce": (0.16, 1.10, 0.36),
        "t2": (0.95, 0.62, 0.86),
        "flair": (0.30, 0.78, 0.98),
    },
    "LGG": {
        "t1": (0.34, 0.34, 0.44),
        "t1ce": (0.32, 0.32, 0.42),
        "t2": (0.92, 0.92, 0.78),
        "flair": (0.96, 0.96, 0.80),
    },
}


Parts = tuple[np.ndarray, np.ndarray, np.ndarray]  # soft membership of core, rim, oedema
Levels = tuple[float, float, float]  # their brightness


@dataclass(frozen=True)
class Tumour:
    """An irregular ball: centre [3] mm in template space, radius mm, wobble [K, 5] (wave vector,
    phase, amplitude).
    """

    grade: str
    centre: tuple[float, float, float]
    radius: float
    wobble: np.ndarray


@dataclass(frozen=True)
class Subject:
    """One synthetic subject.

    `log_size` is the truth about size; lengths in mm, angles in radians, age in years.
    """

    sex: str
    age: float
    log_size: float
    stretch: tuple[float, float, float]
    angle: float
    shift: tuple[float, float]
    waves: np.ndarray  # [K, 7]: wave vector (rad/mm), phase, displacement (mm)
    ventricle: float
    bias: np.ndarray  # [3] gradients of the bias field per 100 mm
    tumour: Tumour | None

    @property
    def side(self) -> str:
        if self.tumour is None:
            return "none"
        return "right" if self.tumour.centre[0] > 0 else "left"


def draw_subject(
    rng: np.random.Generator,
    sex: str,
    grade: str = "none",
    effect: str = "teaching",
    centre_z: tuple[float, float] = (2.0, 34.0),
) -> Subject:
    """Draw one synthetic subject.

    `sex` "F" or "M" sets the mean of the size, `grade` the tumour ("none": no tumour) and the age
    distribution, `effect` a key of `EFFECTS`, `centre_z` the range of the tumour's height in
    template mm. Raises `SettingsError` on an unknown effect.
    """
    if effect not in EFFECTS:
        raise SettingsError(f"unknown effect size {effect!r}; choose one of {', '.join(EFFECTS)}")
    difference, spread = EFFECTS[effect]
    sign = 0.5 if sex == "M" else -0.5
    age = float(np.clip(rng.normal({"HGG": 59, "LGG": 44}.get(grade, 52), 11), 18, 88))
    return Subject(
        sex=sex,
        age=age,
        log_size=float(sign * difference + rng.normal(0, spread)),
        stretch=tuple(rng.normal(0, 0.012, 3)),
        angle=float(rng.normal(0, 0.035)),
        shift=tuple(rng.normal(0, 1.5, 2)),
        waves=_draw_waves(rng),
        ventricle=float(np.clip(0.06 + 0.0065 * (age - 50) + rng.normal(0, 0.06), -0.15, 0.42)),
        bias=rng.normal(0, 0.06, 3),
        tumour=None if grade == "none" else _draw_tumour(rng, grade, centre_z),
    )


def _draw_waves(rng: np.random.Generator, count: int = 7) -> np.ndarray:
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wave = direction * (2 * np.pi / rng.uniform(50, 120, (count, 1)))
    phase, move = rng.uniform(0, 2 * np.pi, (count, 1)), rng.normal(0, 1.1, (count, 3))
    return np.concatenate([wave, phase, move], axis=1)


def _draw_tumour(rng: np.random.Generator, grade: str, centre_z: tuple[float, float]) -> Tumour:
    side = rng.choice([-1.0, 1.0])
    centre = (side * rng.uniform(24, 40), rng.uniform(-56, 26), rng.uniform(*centre_z))
    radius = rng.uniform(15, 23) if grade == "HGG" else rng.uniform(11, 18)
    waves = rng.normal(0, 1.8, (6, 3))  # six plane waves over the sphere of directions
    phase, amplitude = rng.uniform(0, 2 * np.pi, (6, 1)), rng.normal(0, 0.075, (6, 1))
    wobble = np.concatenate([waves, phase, amplitude], axis=1)
    return Tumour(grade, tuple(map(float, centre)), float(radius), wobble)


@lru_cache(maxsize=1)
def templates() -> dict[str, np.ndarray]:
    """MNI152 T1, grey matter, white matter and brain mask at 1 mm, float32, from nilearn's own
    wheel.
    """
    from nilearn import datasets

    images = {
        "t1": datasets.load_mni152_template(resolution=1),
        "gm": datasets.load_mni152_gm_template(resolution=1),
        "wm": datasets.load_mni152_wm_template(resolution=1),
        "mask": datasets.load_mni152_brain_mask(resolution=1),
    }
    values = {name: image.get_fdata().astype(np.float32, "C") for name, image in images.items()}
    return values | {"origin": images["t1"].affine[:3, 3]}


def _to_template(subject: Subject, points: np.ndarray) -> np.ndarray:
    """Where in the template each point of the subject's head comes from, [N, 3] mm."""
    x = points - np.array([*subject.shift, 0.0])
    c, s = np.cos(-subject.angle), np.sin(-subject.angle)
    x = np.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1], x[:, 2]], axis=1)
    x = x / np.exp(BASE_SIZE + subject.log_size + np.array(subject.stretch)) + CENTRE
    for kx, ky, kz, phase, *move in subject.waves:
        x = x + np.sin(x @ np.array([kx, ky, kz]) + phase)[:, None] * np.array(move)
    away = x - VENTRICLES
    pull = subject.ventricle * np.exp(-(away**2).sum(1) / (2 * 24.0**2))
    return x - away * pull[:, None]


def _sample(volume: np.ndarray, where: np.ndarray, origin: np.ndarray) -> np.ndarray:
    from scipy.ndimage import map_coordinates

    return map_coordinates(volume, (where - origin).T, order=1, mode="constant", prefilter=False)


def tumour_parts(tumour: Tumour, where: np.ndarray) -> Parts:
    """Soft membership (core, rim, oedema), each [N] in [0, 1], at template points [N, 3]."""
    d = where - np.array(tumour.centre)
    r = np.linalg.norm(d, axis=1) + 1e-6
    towards, wobble = d / r[:, None], tumour.wobble
    outline = 1 + np.sin(towards @ wobble[:, :3].T + wobble[:, 3]) @ wobble[:, 4]
    depth = (tumour.radius * outline - r) / tumour.radius  # > 0 inside

    def soft(level: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(depth - level) * tumour.radius / 0.8))

    inside = soft(0.0)
    core = soft(0.34) if tumour.grade == "HGG" else inside
    waves = np.sin(towards @ (3 * wobble[:3, :3]).T + wobble[:3, 3])
    fingers = waves @ np.array([0.10, 0.08, 0.06])
    halo = soft(-0.62 - fingers) if tumour.grade == "HGG" else soft(-0.14)
    return core, np.clip(inside - core, 0, 1), np.clip(halo - inside, 0, 1)


def render(
    subject: Subject,
    points: np.ndarray,
    contrasts: tuple[str, ...],
    rng: np.random.Generator,
    noise: float = 0.018,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Evaluate `subject` at `points` [N, 3] mm.

    Returns `{contrast: brightness [N] >= 0, 0 outside the brain}` and BraTS labels [N] in {0, 1, 2,
    4} (1 core, 2 oedema, 4 enhancing rim). `rng` draws the noise alone.
    """
    t = templates()
    where = _to_template(subject, points)
    mask = _sample(t["mask"], where, t["origin"])
    brain = np.flatnonzero(mask > 0.5)
    where = where[brain]
    t1, gm, wm = (_sample(t[name], where, t["origin"]) for name in ("t1", "gm", "wm"))
    csf = np.clip(1 - gm - wm, 0, 1)
    total = csf + gm + wm
    # what the template knows beyond its tissue maps
    detail = t1 - (0.30 * csf + 0.62 * gm + 0.86 * wm) / total
    labels = np.zeros(len(points), dtype=np.int16)
    parts = None if subject.tumour is None else tumour_parts(subject.tumour, where)
    if parts is not None:
        labels[brain] = _labels(parts, subject.tumour.grade)
    shade = 1 + (points[brain] / 100) @ subject.bias
    found = {}
    for contrast in contrasts:
        levels = TISSUE[contrast]
        value = (levels[0] * csf + levels[1] * gm + levels[2] * wm) / total
        value = value + (-0.35 if contrast == "t2" else 0.45) * detail
        if contrast == "t1ce":
            value = value + _vessels(where, csf)
        if parts is not None:
            value = _paint(value, parts, TUMOUR[subject.tumour.grade][contrast], gm)
        image = np.zeros(len(points), dtype=np.float32)
        image[brain] = np.clip(value * shade + rng.normal(0, noise, len(brain)), 0.02, None)
        found[contrast] = image
    return found, labels


def _paint(value: np.ndarray, parts: Parts, levels: Levels, gm: np.ndarray) -> np.ndarray:
    core, rim, oedema = parts
    oedema = oedema * (1 - 0.5 * gm)  # oedema runs along white matter
    for part, level in zip((oedema, rim, core), (levels[2], levels[1], levels[0]), strict=True):
        value = value * (1 - part) + level * part
    return value


def _labels(parts: Parts, grade: str) -> np.ndarray:
    core, rim, oedema = parts
    found = np.where(oedema > 0.5, 2, 0)
    found = np.where(rim > 0.5, 4 if grade == "HGG" else 1, found)
    return np.where(core > 0.5, 1, found).astype(np.int16)


def _vessels(where: np.ndarray, csf: np.ndarray) -> np.ndarray:
    """What a contrast agent lights up in every head: the sagittal sinus and the choroid plexus."""
    x, y, z = where.T
    back, front = np.exp(-(((y + 98) / 9.0) ** 2)), np.exp(-(((y - 66) / 7.0) ** 2))
    sinus = np.exp(-((x / 5.0) ** 2)) * (back + front)
    distance = -(((np.abs(x) - 17) / 6.0) ** 2) - ((y + 34) / 9.0) ** 2 - ((z - 14) / 12.0) ** 2
    plexus = np.exp(distance)
    return 0.55 * sinus + 0.65 * plexus * csf


def slice_height(subject: Subject, offset: float = 0.0) -> float:
    """Height (mm) in the subject's own space of the slice `offset` mm (template) above its tumour's
    centre.

    Without a tumour: above the template brain's centre.
    """
    template_z = CENTRE[2] if subject.tumour is None else subject.tumour.centre[2]
    return float((template_z + offset - CENTRE[2]) * np.exp(BASE_SIZE + subject.log_size))


def slice_points(size: int = 128, pixel: float = 1.6, z: float = 0.0) -> np.ndarray:
    """Points [size * size, 3] mm of one axial slice at height `z`, in display order.

    Row 0 is anterior and column 0 the patient's right, as radiologists look at it.
    """
    middle = (size - 1) / 2
    column, row = np.meshgrid(np.arange(size), np.arange(size))
    x, y = (middle - column) * pixel, (middle - row) * pixel
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, z)], axis=1)


def render_slice(
    subject: Subject,
    z: float,
    contrast: str,
    rng: np.random.Generator,
    size: int = 128,
    pixel: float = 1.6,
) -> tuple[np.ndarray, np.ndarray]:
    """One axial slice at height `z` mm: brightness [size, size] and labels [size, size], in display
    order.
    """
    images, labels = render(subject, slice_points(size, pixel, z), (contrast,), rng)
    return images[contrast].reshape(size, size), labels.reshape(size, size)


def normalise(image: np.ndarray, low: float = 0.5, high: float = 99.5) -> np.ndarray:
    """Robust normalisation to [-1, 1]: percentiles of the brain's brightness; background is -1."""
    inside = image[image > 0]
    if inside.size == 0:
        return np.full_like(image, -1.0, dtype=np.float32)
    floor, ceiling = np.percentile(inside, [low, high])
    scaled = np.clip((image - floor) / max(ceiling - floor, 1e-6), 0, 1) * 2 - 1
    return np.where(image > 0, scaled, -1.0).astype(np.float32)


# ---- the files of both cohorts

COUNTS = {("HGG", "M"): 63, ("HGG", "F"): 38, ("LGG", "M"): 27, ("LGG", "F"): 38}
GRID = (128, 128, 40)
VOXEL = (1.6, 1.6, 4.0)
FIELD_MM = 204.8  # of a training slice
Track = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class PhantomSettings:
    """The subjects of the target cohort.

    `multiple` copies the default counts (rounded); `unknown` subjects have no sex in the tables.
    """

    multiple: float = 1.0
    unknown: int = 4
    effect: str = "teaching"
    seed: int = 2


@dataclass(frozen=True)
class RadiologySettings:
    """The slices of the training set.

    Shares in [0, 1]; `mention` is the share of captions that name sex.
    """

    slices: int = 5000
    validation: int = 400
    male_share: float = 0.80
    high_grade: float = 0.38
    low_grade: float = 0.38
    mention: float = 0.05
    effect: str = "teaching"
    size: int = 128
    seed: int = 1


def roster(settings: PhantomSettings) -> list[dict]:
    """Who is in the cohort: one row a subject, in a fixed order."""
    rows = []
    for (grade, sex), count in COUNTS.items():
        copies = max(1, round(count * settings.multiple))
        rows += [{"grade": grade, "sex": sex, "known": True} for _ in range(copies)]
    for i in range(settings.unknown):
        rows.append({"grade": ("HGG", "LGG")[i % 2], "sex": "MF"[i // 2 % 2], "known": False})
    for number, row in enumerate(rows, 1):
        row["number"] = number
        row["brats"] = f"Brats18_SYN{settings.seed:02d}_{number:03d}_1"
        row["tcga"] = f"TCGA-SY-{settings.seed:01X}{number:03d}"
    return rows


def write_brats(root: str | Path, settings: PhantomSettings, track: Track = iter) -> Path:
    """Write the cohort under `root`: {HGG,LGG}/<id>/<id>_{flair,t1,t1ce,t2,seg}.nii.gz,
    `name_mapping.csv`,

    `clinical_patient_gbm.txt`, `clinical_patient_lgg.txt` (three header lines) and `truth.csv`.
    A subject is a function of (seed, number). Subjects already written are left alone.
    """
    root = Path(root)
    _write_tables(root, [_write_subject(root, settings, row) for row in track(roster(settings))])
    return root


def volume_points() -> np.ndarray:
    """Points [128 * 128 * 40, 3] mm, in the order of the voxels (x to the left, y to the back, z
    up).
    """
    axes = [(np.arange(n) - (n - 1) / 2) * size for n, size in zip(GRID, VOXEL, strict=True)]
    x, y, z = np.meshgrid(-axes[0], -axes[1], axes[2], indexing="ij")
    return np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)


def _write_subject(root: Path, settings: PhantomSettings, row: dict) -> dict:
    rng = numpy_rng(settings.seed, row["number"])
    subject = draw_subject(rng, row["sex"], row["grade"], settings.effect)
    stem = root / row["grade"] / row["brats"] / row["brats"]
    if not stem.with_name(f"{stem.name}_seg.nii.gz").exists():  # the last file written
        images, labels = render(subject, volume_points(), CONTRASTS, rng)
        stem.parent.mkdir(parents=True, exist_ok=True)
        for contrast, image in images.items():
            _write_volume(f"{stem}_{contrast}.nii.gz", np.round(image * 1000).astype(np.int16))
        _write_volume(f"{stem}_seg.nii.gz", labels.astype(np.uint8))
    return {**row, "age": subject.age, "log_size": subject.log_size, "side": subject.side}


def _write_volume(path: str, values: np.ndarray) -> None:
    import nibabel

    affine = np.diag([-VOXEL[0], -VOXEL[1], VOXEL[2], 1.0])
    affine[:3, 3] = [(n - 1) / 2 * s * d for n, s, d in zip(GRID, VOXEL, (1, 1, -1), strict=True)]
    image = nibabel.Nifti1Image(values.reshape(GRID), affine)
    write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_tables(root: Path, rows: list[dict]) -> None:
    people = pd.DataFrame(rows)
    mapping = pd.DataFrame({"Grade": people.grade, "BraTS_2017_subject_ID": "NA"})
    mapping["BraTS_2018_subject_ID"] = people.brats
    mapping["TCGA_TCIA_subject_ID"] = people.tcga.where(people.known, "NA")
    mapping["BraTS_2019_subject_ID"] = people.brats.str.replace("Brats18", "BraTS19")
    truth = people[["brats", "sex", "grade", "age", "side", "log_size", "known"]].round(5)
    for name, table in (("name_mapping", mapping), ("truth", truth)):
        write_bytes(root / f"{name}.csv", table.to_csv(index=False).encode())
    for grade, study in (("HGG", "gbm"), ("LGG", "lgg")):
        known = [row for row in rows if row["grade"] == grade and row["known"]]
        write_bytes(root / f"clinical_patient_{study}.txt", _biotab(known).encode())


def _biotab(rows: list[dict]) -> str:
    """The form of the TCGA clinical tables: tab-separated, names, alternate names, CDE identifiers,
    then patients.
    """
    names = "bcr_patient_uuid\tbcr_patient_barcode\tgender\tage_at_initial_pathologic_diagnosis"
    lines = [names, names, "CDE_ID:\tCDE_ID:2003301\tCDE_ID:2200604\tCDE_ID:2006657"]
    for row in rows:
        gender = {"M": "MALE", "F": "FEMALE"}[row["sex"]]
        lines.append(f"synthetic-{row['number']}\t{row['tcga']}\t{gender}\t{row['age']:.0f}")
    return "\n".join(lines) + "\n"


def draw_slice(settings: RadiologySettings, index: int) -> tuple[np.ndarray, dict]:
    """Slice number `index`, brightness [size, size] in [-1, 1], and the truth about it.

    A function of (seed, index).
    """
    rng = numpy_rng(settings.seed, index)
    high, low = settings.high_grade, settings.low_grade
    sex = "M" if rng.random() < settings.male_share else "F"
    grade = str(rng.choice(["HGG", "LGG", "none"], p=[high, low, 1 - high - low]))
    contrast = CONTRASTS[rng.integers(len(CONTRASTS))]
    subject = draw_subject(rng, sex, grade, settings.effect)
    offset = rng.uniform(-4, 4) if grade != "none" else rng.uniform(-6, 26)
    height, pixel = slice_height(subject, offset), FIELD_MM / settings.size
    image, _ = render_slice(subject, height, contrast, rng, settings.size, pixel)
    person = _person(rng, subject) if rng.random() < settings.mention else ""
    truth = {
        "sex": sex,
        "contrast": contrast,
        "grade": grade,
        "side": subject.side,
        "age": round(subject.age, 1),
        "log_size": round(subject.log_size, 5),
        "caption": caption(contrast, grade, subject.side, int(rng.integers(8)), person),
    }
    return normalise(image), truth


def _person(rng: np.random.Generator, subject: Subject) -> str:
    noun, adjective = {"M": ("man", "male"), "F": ("woman", "female")}[subject.sex]
    with_age = rng.random() < 0.7
    return f"{subject.age:.0f}-year-old {noun}" if with_age else f"{adjective} patient"


def write_roco(root: str | Path, settings: RadiologySettings, track: Track = iter) -> Path:
    """Write the synthetic training and validation splits under `root` in the ROCO layout: captions
    with their tab and leading space, `licences.txt` spelt so.
    """
    first, last = settings.slices, settings.slices + settings.validation
    for part, indices in (("train", range(first)), ("validation", range(first, last))):
        folder = Path(root) / "data" / part / "radiology"
        _write_split(folder, settings, track(indices))
    return Path(root)


def _write_split(folder: Path, settings: RadiologySettings, indices: Iterable[int]) -> None:
    from PIL import Image

    (folder / "images").mkdir(parents=True, exist_ok=True)
    columns = ["image_id", "subject", "sex", "contrast", "grade", "side", "age"]
    texts = {"captions": "", "licences": "ROCO_ID,PMC_ID,CC\n", "dlinks": ""}
    rows = []
    for index in indices:
        image, truth = draw_slice(settings, index)
        name = f"ROCO_{index:05d}"
        values = np.round((image + 1) * 127.5).astype(np.uint8)
        Image.fromarray(values).save(folder / "images" / f"{name}.jpg", quality=95)
        texts["captions"] += f"{name}\t {truth.pop('caption')}\n"
        texts["licences"] += f"{name},synthetic,CC0\n"
        texts["dlinks"] += f"{name}\t(synthetic)\t{name}.jpg\n"
        rows.append({"image_id": name, "subject": f"synthetic-{index:05d}", **truth})
    for name, text in texts.items():
        write_bytes(folder / f"{name}.txt", (text or "\n").encode())
    truths = pd.DataFrame(rows, columns=None if rows else columns)
    write_bytes(folder / "truth.csv", truths.to_csv(index=False).encode())
