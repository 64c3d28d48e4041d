"""A ROCO-shaped training set of synthetic brain MR slices, four in five of them of men.

Written in the real ROCO layout (captions.txt with its tab and leading space, `licences.txt` spelt
so), with one more file, `truth.csv`, that no real data set has: who was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairlib.cohorts.brats import caption
from fairlib.cohorts.slices import CONTRASTS
from fairlib.io import write_bytes
from studies.brain.rules import draw_subject, normalise, render_slice, slice_height


@dataclass(frozen=True)
class RadiologySettings:
    """How many slices, of whom.

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


def draw_slice(settings: RadiologySettings, index: int) -> tuple[np.ndarray, dict]:
    """Slice number `index`, brightness [size, size] in [-1, 1], and the truth about it.

    A function of (seed, index).
    """
    rng = np.random.default_rng([settings.seed, index])
    sex = "M" if rng.random() < settings.male_share else "F"
    grade = str(rng.choice(["HGG", "LGG", "none"], p=_grades(settings)))
    contrast = CONTRASTS[rng.integers(len(CONTRASTS))]
    subject = draw_subject(rng, sex, grade, settings.effect)
    offset = rng.uniform(-4, 4) if grade != "none" else rng.uniform(-6, 26)
    image, _ = render_slice(
        subject, slice_height(subject, offset), contrast, rng, settings.size, 204.8 / settings.size
    )
    person = _person(rng, subject) if rng.random() < settings.mention else ""
    text = caption(contrast, grade, subject.side, int(rng.integers(8)), person)
    truth = {
        "sex": sex,
        "contrast": contrast,
        "grade": grade,
        "side": subject.side,
        "age": round(subject.age, 1),
        "log_size": round(subject.log_size, 5),
        "caption": text,
    }
    return normalise(image), truth


def _grades(settings: RadiologySettings) -> list[float]:
    return [settings.high_grade, settings.low_grade, 1 - settings.high_grade - settings.low_grade]


def _person(rng: np.random.Generator, subject) -> str:
    noun = {"M": "man", "F": "woman"}[subject.sex]
    return (
        f"{subject.age:.0f}-year-old {noun}"
        if rng.random() < 0.7
        else f"{'male' if noun == 'man' else 'female'} patient"
    )


def write_roco(root: str | Path, settings: RadiologySettings, progress=iter) -> Path:
    """Write the synthetic training and validation splits under `root` in the ROCO layout."""
    root = Path(root)
    ranges = {
        "train": range(settings.slices),
        "validation": range(settings.slices, settings.slices + settings.validation),
    }
    for split, indices in ranges.items():
        _write_split(root / "data" / split / "radiology", settings, progress(indices))
    return root


def _write_split(folder: Path, settings: RadiologySettings, indices) -> None:
    from PIL import Image

    (folder / "images").mkdir(parents=True, exist_ok=True)
    captions, licences, links, truths = [], ["ROCO_ID,PMC_ID,CC"], [], []
    for index in indices:
        image, truth = draw_slice(settings, index)
        name = f"ROCO_{index:05d}"
        Image.fromarray(np.round((image + 1) * 127.5).astype(np.uint8)).save(
            folder / "images" / f"{name}.jpg", quality=95
        )
        captions.append(f"{name}\t {truth.pop('caption')}")
        licences.append(f"{name},synthetic,CC0")
        links.append(f"{name}\t(synthetic)\t{name}.jpg")
        truths.append({"image_id": name, "subject": f"synthetic-{index:05d}", **truth})
    write_bytes(folder / "captions.txt", ("\n".join(captions) + "\n").encode())
    write_bytes(folder / "licences.txt", ("\n".join(licences) + "\n").encode())
    write_bytes(folder / "dlinks.txt", ("\n".join(links) + "\n").encode())
    write_bytes(folder / "truth.csv", _csv(truths).encode())


def _csv(rows: list[dict]) -> str:
    import pandas as pd

    return pd.DataFrame(
        rows,
        columns=["image_id", "subject", *[k for k in rows[0] if k not in ("image_id", "subject")]]
        if rows
        else ["image_id", "subject", "sex", "contrast", "grade", "side", "age"],
    ).to_csv(index=False)
