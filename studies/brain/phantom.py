"""Synthetic subjects in the BraTS 2018 layout, with the tables from which their sex is joined.

Real anatomy, synthetic people: nobody in these files exists. The default counts are those of the
real cohort whose
sex is public: high grade 63 men and 38 women, low grade 27 men and 38 women, and one subject
without a sex.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairlib.cohorts.slices import CONTRASTS
from fairlib.io import write_bytes
from studies.brain.rules import draw_subject, render

COUNTS = {("HGG", "M"): 63, ("HGG", "F"): 38, ("LGG", "M"): 27, ("LGG", "F"): 38}
GRID = (128, 128, 40)
VOXEL = (1.6, 1.6, 4.0)


@dataclass(frozen=True)
class BrainSettings:
    """Whom to draw.

    `multiple` copies the default counts (rounded); `unknown` subjects have no sex in the tables.
    """

    multiple: float = 1.0
    unknown: int = 4
    effect: str = "teaching"
    seed: int = 2


def roster(settings: BrainSettings) -> list[dict]:
    """Who is in the cohort: one row a subject, in a fixed order."""
    rows = []
    for (grade, sex), count in COUNTS.items():
        rows += [{"grade": grade, "sex": sex, "known": True}] * max(
            1, round(count * settings.multiple)
        )
    rows += [
        {"grade": ("HGG", "LGG")[i % 2], "sex": "MF"[i // 2 % 2], "known": False}
        for i in range(settings.unknown)
    ]
    return [
        {
            **row,
            "number": i + 1,
            "brats": f"Brats18_SYN{settings.seed:02d}_{i + 1:03d}_1",
            "tcga": f"TCGA-SY-{settings.seed:01X}{i + 1:03d}",
        }
        for i, row in enumerate(rows)
    ]


def write_brats(root: str | Path, settings: BrainSettings, progress=iter) -> Path:
    """Write the cohort under `root`: {HGG,LGG}/<id>/<id>_{flair,t1,t1ce,t2,seg}.nii.gz,
    `name_mapping.csv`,

    `clinical_patient_gbm.txt`, `clinical_patient_lgg.txt` (three header lines) and `truth.csv`,
    which no real cohort has. A subject is a function of (seed, number). Subjects already written
    are left alone.
    """
    root = Path(root)
    rows = [_write_subject(root, settings, row) for row in progress(roster(settings))]
    _write_tables(root, rows)
    return root


def volume_points() -> np.ndarray:
    """Points [128 * 128 * 40, 3] mm, in the order of the voxels (x to the left, y to the back, z
    up).
    """
    axes = [(np.arange(n) - (n - 1) / 2) * size for n, size in zip(GRID, VOXEL, strict=True)]
    x, y, z = np.meshgrid(-axes[0], -axes[1], axes[2], indexing="ij")
    return np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)


def _write_subject(root: Path, settings: BrainSettings, row: dict) -> dict:
    rng = np.random.default_rng([settings.seed, row["number"]])
    subject = draw_subject(rng, row["sex"], row["grade"], settings.effect)
    row = {**row, "age": subject.age, "log_size": subject.log_size, "side": subject.side}
    folder = root / row["grade"] / row["brats"]
    if (folder / f"{row['brats']}_seg.nii.gz").exists():  # the last file written
        return row
    images, labels = render(subject, volume_points(), CONTRASTS, rng)
    folder.mkdir(parents=True, exist_ok=True)
    for contrast, image in images.items():
        _write_volume(
            folder / f"{row['brats']}_{contrast}.nii.gz", np.round(image * 1000).astype(np.int16)
        )
    _write_volume(folder / f"{row['brats']}_seg.nii.gz", labels.astype(np.uint8))
    return row


def _write_volume(path: Path, values: np.ndarray) -> None:
    import gzip

    import nibabel

    affine = np.diag([-VOXEL[0], -VOXEL[1], VOXEL[2], 1.0])
    affine[:3, 3] = [(n - 1) / 2 * s * d for n, s, d in zip(GRID, VOXEL, (1, 1, -1), strict=True)]
    image = nibabel.Nifti1Image(values.reshape(GRID), affine)
    write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_tables(root: Path, rows: list[dict]) -> None:
    import pandas as pd

    mapping = [
        {
            "Grade": r["grade"],
            "BraTS_2017_subject_ID": "NA",
            "BraTS_2018_subject_ID": r["brats"],
            "TCGA_TCIA_subject_ID": r["tcga"] if r["known"] else "NA",
            "BraTS_2019_subject_ID": r["brats"].replace("Brats18", "BraTS19"),
        }
        for r in rows
    ]
    write_bytes(root / "name_mapping.csv", pd.DataFrame(mapping).to_csv(index=False).encode())
    for grade, study in (("HGG", "gbm"), ("LGG", "lgg")):
        write_bytes(
            root / f"clinical_patient_{study}.txt",
            _biotab([r for r in rows if r["grade"] == grade]).encode(),
        )
    truth = pd.DataFrame(rows)[["brats", "sex", "grade", "age", "side", "log_size", "known"]]
    write_bytes(root / "truth.csv", truth.round(5).to_csv(index=False).encode())


SEX_OF_TCGA = {"M": "MALE", "F": "FEMALE"}


def _biotab(rows: list[dict]) -> str:
    """The form of the TCGA clinical tables: tab-separated, names, alternate names, CDE identifiers,
    then patients.
    """
    lines = [
        "bcr_patient_uuid\tbcr_patient_barcode\tgender\tage_at_initial_pathologic_diagnosis",
        "bcr_patient_uuid\tbcr_patient_barcode\tgender\tage_at_initial_pathologic_diagnosis",
        "CDE_ID:\tCDE_ID:2003301\tCDE_ID:2200604\tCDE_ID:2006657",
    ]
    lines += [
        f"synthetic-{r['number']}\t{r['tcga']}\t{SEX_OF_TCGA[r['sex']]}\t{r['age']:.0f}"
        for r in rows
        if r["known"]
    ]
    return "\n".join(lines) + "\n"
