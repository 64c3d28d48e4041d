"""Small drawings in the layouts of CheXpert and HAM10000, so that their readers run in every test.

No chest and no skin. What follows what in them (conventions, not medicine): a pleural effusion
fills the lower part of one lung up to a curved level; women have smaller lungs and two faint
shadows over their lower third; race changes nothing in the image. A malignant lesion has an
irregular border and several colours, a benign one is nearly round and of one colour; skin of 60
years or older carries brown spots; skin of men carries dark hairs. Two images of one lesion differ
by a rotation and by noise.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from fairlib.cohorts.ham10000 import BENIGN, MALIGNANT
from fairlib.io import write_bytes

Progress = Callable[[Iterable], Iterable]


def write_csv(path: Path, rows: Sequence[Any], columns: Sequence[str]) -> None:
    """Write rows (mappings or sequences) as a table with these columns."""
    write_bytes(path, pd.DataFrame(rows, columns=list(columns)).to_csv(index=False).encode())


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write an image, uint8 [H, W] or [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    write_bytes(path, buffer.getvalue())


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert brightness in [0, 1] to bytes; clipped outside."""
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


# ---- CheXpert

FINDINGS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion"),
    *("Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"),
    *("Pleural Other", "Fracture", "Support Devices"),
)
HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
DEMO = ("PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE", "ETHNICITY")
RACE_WORDS = {
    "White": ("White", "White, non-Hispanic"),
    "Black": ("Black or African American", "Black, non-Hispanic"),
    "Asian": ("Asian", "Asian, non-Hispanic"),
    "Other": ("Other", "Unknown", "Patient Refused"),
}


@dataclass(frozen=True)
class ChestSettings:
    """How many patients. Shares in [0, 1] are ours: of women, races (White, Black, Asian, the rest
    other or unknown), effusion, and of images whose label is uncertain or blank; `lateral` is the
    share with a second view.
    """

    patients: int = 24
    validation: int = 4
    female: float = 0.41
    races: tuple[float, float, float] = (0.56, 0.06, 0.11)
    effusion: float = 0.4
    uncertain: float = 0.1
    blank: float = 0.2
    lateral: float = 0.2
    width: int = 80
    height: int = 96
    seed: int = 1


def draw_chest(settings: ChestSettings, index: int) -> tuple[np.ndarray, dict]:
    """Draw patient number `index` from the front: uint8 [height, width], and the truth: sex, race,
    age, effusion (bool).

    A function of (seed, index) and the shares. `race` is "White", "Black", "Asian" or "Other".
    """
    rng = np.random.default_rng([settings.seed, index])
    female, effusion = rng.random() < settings.female, rng.random() < settings.effusion
    race = rng.choice(list(RACE_WORDS), p=[*settings.races, 1 - sum(settings.races)])
    truth = {"sex": "Female" if female else "Male", "race": str(race)}
    truth |= {"age": int(rng.integers(18, 91)), "effusion": effusion}
    y, x = np.mgrid[: settings.height, : settings.width] / settings.height
    x = x - 0.5 * settings.width / settings.height
    side, level, scale = rng.choice([-1, 1]), rng.uniform(0.50, 0.62), 0.9 if female else 1.0
    lungs = {
        lung: _ellipse(x, y, 0.19 * lung, 0.47, 0.14 * scale, 0.33 * scale) for lung in (-1, 1)
    }
    image = 0.75 - 0.25 * np.clip(abs(x) / 0.4, 0, 1) ** 4 + 0.12 * np.exp(-((x / 0.04) ** 2))
    for lung in lungs.values():
        image = image - 0.5 * lung
    if effusion:
        below = y - level + 1.5 * (abs(x) - 0.2) ** 2 - 0.15 * (abs(x) - 0.2)
        image = image + 0.42 * (1 / (1 + np.exp(-60 * below))) * lungs[side]
    # the heart, to the right of the image
    image = image + 0.25 * _ellipse(x, y, 0.05, 0.60, 0.13, 0.14)
    if female:
        breasts = [_ellipse(x, y, 0.2 * breast, 0.68, 0.13, 0.12) for breast in (-1, 1)]
        image = image + 0.08 * sum(breasts)
    return to_uint8(image + rng.normal(0, 0.02, image.shape)), truth


def write_chexpert(
    root: str | Path, settings: ChestSettings, small: bool = True, progress: Progress = iter
) -> Path:
    """Write the patients under `root/CheXpert-v1.0-small` (or `CheXpert-v1.0`): train.csv,
    valid.csv, their images, and `CHEXPERT DEMO.csv` with the columns of the released xlsx.

    A share of the labels is -1 or blank; a lateral view is a grey field with noise. Returns the
    folder written.
    """
    folder = Path(root) / f"CheXpert-v1.0{'-small' if small else ''}"
    tables, people = {"train": [], "valid": []}, []
    for index in progress(range(settings.patients + settings.validation)):
        part, patient = "train" if index < settings.patients else "valid", f"patient{index + 1:05d}"
        image, truth = draw_chest(settings, index)
        rng = np.random.default_rng([settings.seed, index, 1])  # what the report says
        label = _label(rng, settings, truth["effusion"])
        findings = [label if name == "Pleural Effusion" else "" for name in FINDINGS]
        views = ["frontal", "lateral"] if rng.random() < settings.lateral else ["frontal"]
        for number, view in enumerate(views, 1):
            place = f"{part}/{patient}/study1/view{number}_{view}.jpg"
            front = view == "frontal"
            write_jpeg(folder / place, image if front else _grey(rng, image.shape))
            about = (truth["sex"], truth["age"], view.capitalize(), "AP" if front else "")
            tables[part].append((f"{folder.name}/{place}", *about, *findings))
        words = str(rng.choice(RACE_WORDS[truth["race"]]))
        people.append((patient, truth["sex"], truth["age"], words, "Unknown"))
    for part, rows in tables.items():
        write_csv(folder / f"{part}.csv", rows, HEADER)
    write_csv(folder / "CHEXPERT DEMO.csv", people, DEMO)
    return folder


def _grey(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(90, 110, shape).astype(np.uint8)


def _ellipse(
    x: np.ndarray, y: np.ndarray, centre: float, middle: float, width: float, height: float
) -> np.ndarray:
    """1 inside, 0 outside, with a soft edge."""
    return 1 / (1 + np.exp(-12 * (1 - ((x - centre) / width) ** 2 - ((y - middle) / height) ** 2)))


def _label(rng: np.random.Generator, settings: ChestSettings, effusion: bool) -> str:
    draw = rng.random()
    if draw < settings.uncertain:
        return "-1.0"
    if draw < settings.uncertain + settings.blank:
        return ""
    return "1.0" if effusion else "0.0"


# ---- HAM10000

SITES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "chest")
SKIN, BROWN, BLUE = (
    np.array([0.87, 0.68, 0.60]),
    np.array([0.45, 0.27, 0.18]),
    np.array([0.30, 0.32, 0.42]),
)


@dataclass(frozen=True)
class DermoscopySettings:
    """How many lesions. Shares in [0, 1] are ours; `again` lesions have a second image; pixels as
    [width, height].
    """

    lesions: int = 24
    malignant: float = 0.2
    male: float = 0.54
    older: float = 0.37
    again: float = 0.3
    sex_unknown: float = 0.03
    age_unknown: float = 0.03
    width: int = 120
    height: int = 90
    seed: int = 1


def draw_lesion(settings: DermoscopySettings, index: int, view: int = 0) -> tuple[np.ndarray, dict]:
    """Draw lesion number `index` in its view 0 or 1: uint8 [height, width, 3], and its row of the
    metadata, with sex and age.

    A function of (seed, index, view) and the shares.
    """
    rng = np.random.default_rng([settings.seed, index])
    malignant, male, older = (
        rng.random() < share for share in (settings.malignant, settings.male, settings.older)
    )
    kinds = (MALIGNANT, (0.17, 0.26, 0.57)) if malignant else (BENIGN, (0.14, 0.01, 0.83, 0.02))
    dx = str(rng.choice(kinds[0], p=kinds[1]))
    age = 5 * int(rng.integers(12, 18) if older else rng.integers(3, 12))
    row = {
        "lesion_id": f"HAM_{index:07d}",
        "image_id": f"ISIC_{2 * index + view:07d}",
        "dx": dx,
        "dx_type": "synthetic",
        "age": float(age),
        "sex": "male" if male else "female",
        "localization": str(rng.choice(SITES)),
        "dataset": "synthetic",
    }
    y, x = np.mgrid[: settings.height, : settings.width] / settings.height - 0.5
    x = x - 0.5 * (settings.width / settings.height - 1)
    image = _lesion(rng, x, y, malignant, view)
    image = _spots(rng, _hairs(rng, image, x, y, 4 * male), x, y, 6 * older)
    noise = np.random.default_rng([settings.seed, index, view]).normal(0, 0.015, image.shape)
    return to_uint8(image + noise), row


def write_ham10000(
    root: str | Path, settings: DermoscopySettings, progress: Progress = iter
) -> Path:
    """Write the lesions under `root` in the layout of HAM10000; every second image goes to part 2.

    A share of the lesions has sex "unknown" or an empty age; `draw_lesion` still gives them.
    """
    root, rows = Path(root), []
    for index in progress(range(settings.lesions)):
        rng = np.random.default_rng([settings.seed, index, 2])  # what the clinic does not note
        shares = (settings.again, settings.sex_unknown, settings.age_unknown)
        again, no_sex, no_age = rng.random(3) < shares
        unknown = ({"sex": "unknown"} if no_sex else {}) | ({"age": ""} if no_age else {})
        for view in range(1 + again):
            image, row = draw_lesion(settings, index, view)
            folder = root / f"HAM10000_images_part_{1 + len(rows) % 2}"
            write_jpeg(folder / f"{row['image_id']}.jpg", image)
            rows.append(row | unknown)
    write_csv(root / "HAM10000_metadata.csv", rows, list(rows[0]))
    return root


def _lesion(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, malignant: bool, view: int
) -> np.ndarray:
    """Skin with a lesion: its border is a circle with waves, low for a benign one."""
    radius, heights = (
        rng.uniform(0.20, 0.30),
        (0.4 if malignant else 0.05) * rng.uniform(0.6, 1.4, 4) / np.arange(2, 6),
    )
    phases, turn = rng.uniform(0, 2 * np.pi, 4), view * rng.uniform(0.5, 1.5)
    angle, distance = np.arctan2(y, x) + turn, np.hypot(x, y)
    waves = sum(
        height * np.cos(k * angle + phase)
        for k, height, phase in zip(range(2, 6), heights, phases, strict=True)
    )
    inside = 1 / (1 + np.exp(-60 * (radius * (1 + waves) - distance)))[..., None]
    patches = (np.sin(3 * angle + 12 * distance) > 0.2)[..., None] & malignant
    return SKIN * (1 - inside) + np.where(patches, BLUE, BROWN) * inside


def _hairs(
    rng: np.random.Generator, image: np.ndarray, x: np.ndarray, y: np.ndarray, count: int
) -> np.ndarray:
    for slope, shift in zip(
        rng.normal(0, 1, 6)[:count], rng.uniform(-0.4, 0.4, 6)[:count], strict=True
    ):
        line = np.exp(-(((y - slope * x - shift) / np.hypot(1, slope) / 0.008) ** 2))[..., None]
        image = image * (1 - 0.7 * line)
    return image


def _spots(
    rng: np.random.Generator, image: np.ndarray, x: np.ndarray, y: np.ndarray, count: int
) -> np.ndarray:
    for where in rng.uniform(-0.45, 0.45, (6, 2))[:count]:
        spot = np.exp(-(((x - where[0]) ** 2 + (y - where[1]) ** 2) / 0.03**2))[..., None]
        image = image * (1 - spot * (1 - BROWN / SKIN) * 0.5)
    return image
