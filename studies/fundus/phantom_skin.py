"""Synthetic dermoscopic pictures in the layout of HAM10000: small drawings that let its reader run
every day, no skin.

What follows what (conventions of the phantom, not medicine): a malignant lesion has an irregular
border and several colours, a benign one is nearly round and of one colour; skin of 60 years or
older carries brown spots; skin of men carries dark hairs. Two pictures of one lesion differ by a
turn and by noise.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairlib.cohorts.ham10000 import BENIGN, MALIGNANT
from fairlib.io import write_bytes

COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset")
SITES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "chest")
SKIN, BROWN, BLUE = (
    np.array([0.87, 0.68, 0.60]),
    np.array([0.45, 0.27, 0.18]),
    np.array([0.30, 0.32, 0.42]),
)


@dataclass(frozen=True)
class DermoscopySettings:
    """How many lesions, of whom.

    Shares in [0, 1] are ours; `again` lesions have a second picture; pixels as [width, height].
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
    """Lesion number `index` in its view 0 or 1: uint8 [height, width, 3], and its row of the
    metadata, with sex and age.

    A function of (seed, index, view) and the shares.
    """
    rng = np.random.default_rng([settings.seed, index])
    malignant, male, older = (
        rng.random() < share for share in (settings.malignant, settings.male, settings.older)
    )
    dx = str(
        rng.choice(
            MALIGNANT if malignant else BENIGN,
            p=(0.17, 0.26, 0.57) if malignant else (0.14, 0.01, 0.83, 0.02),
        )
    )
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
    picture = _lesion(rng, x, y, malignant, view)
    picture = _spots(rng, _hairs(rng, picture, x, y, 4 * male), x, y, 6 * older)
    picture = picture + np.random.default_rng([settings.seed, index, view]).normal(
        0, 0.015, picture.shape
    )
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8), row


def write_ham10000(root: str | Path, settings: DermoscopySettings, progress=iter) -> Path:
    """Write the lesions under `root` in the layout of HAM10000; every second picture goes to part
    2.

    A share of the lesions has sex "unknown" or an empty age; `draw_lesion` still tells.
    """
    root, rows = Path(root), []
    for index in progress(range(settings.lesions)):
        clerk = np.random.default_rng([settings.seed, index, 2])  # what the clinic does not note
        again, no_sex, no_age = clerk.random(3) < (
            settings.again,
            settings.sex_unknown,
            settings.age_unknown,
        )
        for view in range(1 + again):
            picture, row = draw_lesion(settings, index, view)
            _write(
                root / f"HAM10000_images_part_{1 + len(rows) % 2}" / f"{row['image_id']}.jpg",
                picture,
            )
            rows.append(
                row | ({"sex": "unknown"} if no_sex else {}) | ({"age": ""} if no_age else {})
            )
    lines = [",".join(str(row[name]) for name in COLUMNS) for row in rows]
    write_bytes(root / "HAM10000_metadata.csv", "\n".join([",".join(COLUMNS), *lines, ""]).encode())
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
    rng: np.random.Generator, picture: np.ndarray, x: np.ndarray, y: np.ndarray, count: int
) -> np.ndarray:
    for slope, shift in zip(
        rng.normal(0, 1, 6)[:count], rng.uniform(-0.4, 0.4, 6)[:count], strict=True
    ):
        line = np.exp(-(((y - slope * x - shift) / np.hypot(1, slope) / 0.008) ** 2))[..., None]
        picture = picture * (1 - 0.7 * line)
    return picture


def _spots(
    rng: np.random.Generator, picture: np.ndarray, x: np.ndarray, y: np.ndarray, count: int
) -> np.ndarray:
    for where in rng.uniform(-0.45, 0.45, (6, 2))[:count]:
        spot = np.exp(-(((x - where[0]) ** 2 + (y - where[1]) ** 2) / 0.03**2))[..., None]
        picture = picture * (1 - spot * (1 - BROWN / SKIN) * 0.5)
    return picture


def _write(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
    write_bytes(path, buffer.getvalue())
