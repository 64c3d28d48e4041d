"""Synthetic data in the layouts of the real ones, drawn by the generative rules of
`studies.brain.rules`.

`write_brats`: subjects in the BraTS 2018 layout, with the tables from which their sex is joined.
The default counts are those of the real cohort whose sex is public: high grade 63 male and 38
female, low grade 27 male and 38 female. `write_roco`: the training slices in the ROCO layout, four
in five male. Real anatomy, synthetic subjects; `truth.csv`, which no real data set has, says how
each was drawn.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairlib.cohorts.brats import caption
from fairlib.cohorts.slices import CONTRASTS
from fairlib.io import write_bytes
from studies.brain.rules import (
    Subject,
    draw_subject,
    normalise,
    render,
    render_slice,
    slice_height,
)

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
    rng = np.random.default_rng([settings.seed, row["number"]])
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
    rng, high, low = (
        np.random.default_rng([settings.seed, index]),
        settings.high_grade,
        settings.low_grade,
    )
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
