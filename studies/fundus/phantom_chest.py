"""Synthetic chest radiographs in the layout of CheXpert: small drawings that let its reader run
every day, no chest.

What follows what (conventions of the phantom, not medicine): a pleural effusion fills the lower
part of one lung up to a curved level; women have smaller lungs and two faint shadows over their
lower third; race moves nothing in the picture.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairlib.io import write_bytes

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
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
    """How many patients, of whom. Shares in [0, 1] are ours: of women, races (White, Black, Asian,
    the rest other or

    unknown), effusion, and of pictures whose label is uncertain or blank; `lateral` is the share
    with a second view.
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
    """Patient number `index`, from the front: uint8 [height, width], and the truth: sex, race, age,
    effusion (bool).

    A function of (seed, index) and the shares. `race` is "White", "Black", "Asian" or "Other".
    """
    rng = np.random.default_rng([settings.seed, index])
    female, effusion = rng.random() < settings.female, rng.random() < settings.effusion
    race = str(
        rng.choice(
            ["White", "Black", "Asian", "Other"], p=[*settings.races, 1 - sum(settings.races)]
        )
    )
    truth = {
        "sex": "Female" if female else "Male",
        "race": race,
        "age": int(rng.integers(18, 91)),
        "effusion": effusion,
    }
    y, x = np.mgrid[: settings.height, : settings.width] / settings.height
    x = x - 0.5 * settings.width / settings.height
    side, level = rng.choice([-1, 1]), rng.uniform(0.50, 0.62)
    picture = 0.75 - 0.25 * np.clip(abs(x) / 0.4, 0, 1) ** 4 + 0.12 * np.exp(-((x / 0.04) ** 2))
    for lung in (-1, 1):
        picture = picture - 0.5 * _lung(x, y, lung, 0.9 if female else 1.0)
    if effusion:
        fluid = 1 / (
            1 + np.exp(-60 * (y - level + 1.5 * (abs(x) - 0.2) ** 2 - 0.15 * (abs(x) - 0.2)))
        )
        picture = picture + 0.42 * fluid * _lung(x, y, side, 0.9 if female else 1.0)
    # the heart, to the right of the picture
    picture = picture + 0.25 * _ellipse(x, y, 0.05, 0.60, 0.13, 0.14)
    if female:
        picture = picture + 0.08 * sum(
            _ellipse(x, y, 0.2 * breast, 0.68, 0.13, 0.12) for breast in (-1, 1)
        )
    picture = picture + rng.normal(0, 0.02, picture.shape)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8), truth


def write_chexpert(
    root: str | Path, settings: ChestSettings, small: bool = True, progress=iter
) -> Path:
    """Write the patients under `root/CheXpert-v1.0-small` (or `CheXpert-v1.0`): train.csv,
    valid.csv, their pictures, and

    `CHEXPERT DEMO.csv` with the columns of the released xlsx. A share of the labels is -1 or blank;
    a lateral view is a grey field with noise. Returns the folder written.
    """
    folder = Path(root) / f"CheXpert-v1.0{'-small' if small else ''}"
    tables, people = {"train": [], "valid": []}, []
    for index in progress(range(settings.patients + settings.validation)):
        part = "train" if index < settings.patients else "valid"
        picture, truth = draw_chest(settings, index)
        clerk = np.random.default_rng([settings.seed, index, 1])  # what the report says
        label = _label(clerk, settings, truth["effusion"])
        patient = f"patient{index + 1:05d}"
        views = ["frontal", "lateral"] if clerk.random() < settings.lateral else ["frontal"]
        for number, view in enumerate(views, 1):
            place = f"{part}/{patient}/study1/view{number}_{view}.jpg"
            shown = (
                picture
                if view == "frontal"
                else clerk.integers(90, 110, picture.shape).astype(np.uint8)
            )
            _write(folder / place, shown)
            tables[part].append(_row(f"{folder.name}/{place}", truth, view, label))
        words = str(clerk.choice(RACE_WORDS[truth["race"]]))
        people.append((patient, truth["sex"], truth["age"], f'"{words}"', "Unknown"))
    for part, rows in tables.items():
        _write_table(folder / f"{part}.csv", HEADER, rows)
    _write_table(folder / "CHEXPERT DEMO.csv", DEMO, people)
    return folder


def _ellipse(
    x: np.ndarray, y: np.ndarray, centre: float, middle: float, width: float, height: float
) -> np.ndarray:
    """1 inside, 0 outside, with a soft edge."""
    return 1 / (1 + np.exp(-12 * (1 - ((x - centre) / width) ** 2 - ((y - middle) / height) ** 2)))


def _lung(x: np.ndarray, y: np.ndarray, side: int, scale: float) -> np.ndarray:
    return _ellipse(x, y, 0.19 * side, 0.47, 0.14 * scale, 0.33 * scale)


def _label(clerk: np.random.Generator, settings: ChestSettings, effusion: bool) -> str:
    draw = clerk.random()
    if draw < settings.uncertain:
        return "-1.0"
    if draw < settings.uncertain + settings.blank:
        return ""
    return "1.0" if effusion else "0.0"


def _row(path: str, truth: dict, view: str, label: str) -> tuple:
    findings = [label if name == "Pleural Effusion" else "" for name in FINDINGS]
    return (
        path,
        truth["sex"],
        truth["age"],
        view.capitalize(),
        "AP" if view == "frontal" else "",
        *findings,
    )


def _write_table(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    write_bytes(
        path,
        "\n".join([",".join(str(cell) for cell in row) for row in [header, *rows]] + [""]).encode(),
    )


def _write(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
    write_bytes(path, buffer.getvalue())
