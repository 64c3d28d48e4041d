"""A tiny cohort in the real BraTS 2018 layout, with the tables from which sex is joined, and a tiny
table cohort.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from fairlib.cohorts.cohort import Cohort

SHAPE = (12, 14, 6)
# x grows to the patient's left, y to the back, as in BraTS
AFFINE = np.diag([-2.0, -2.0, 4.0, 1.0])
CONTRASTS = ("t1", "t1ce", "t2", "flair")
PEOPLE = [  # id, grade, TCGA id, sex, age
    ("Brats18_TCIA01_001_1", "HGG", "TCGA-02-0001", "FEMALE", "44"),
    ("Brats18_TCIA01_002_1", "HGG", "TCGA-02-0002", "MALE", "[Not Available]"),
    ("Brats18_CBICA_AAB_1", "HGG", "NA", None, None),
    ("Brats18_TCIA09_003_1", "LGG", "TCGA-CS-0003", "MALE", "38"),
    ("Brats18_TCIA09_004_1", "LGG", "TCGA-CS-0004", None, None),
]


def brain(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Four int16 volumes (a box of tissue, 0 outside) and a label map with tumour on the patient's
    left.
    """
    rng = np.random.default_rng(seed)
    volumes = {}
    for contrast in CONTRASTS:
        volume = np.zeros(SHAPE, dtype=np.int16)
        volume[2:10, 2:12, 1:5] = rng.integers(100, 1000, (8, 10, 4))
        volumes[contrast] = volume
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[7:9, 4:8, 3] = 4  # index 7 and 8 of 12, and x grows to the left
    labels[7:9, 4:6, 2] = 2
    return volumes, labels


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


def write_subject(
    root: Path, subject: str, grade: str, seed: int = 0, ending: str = ".nii.gz"
) -> Path:
    volumes, labels = brain(seed)
    folder = root / grade / subject
    for name, data in {**volumes, "seg": labels}.items():
        save(folder / f"{subject}_{name}{ending}", data)
    return folder


def write_mapping(path: Path, people=PEOPLE, year: int = 2019) -> Path:
    years = [2017, 2018, 2019, *([2020] if year == 2020 else [])]
    header = ["Grade", "BraTS_2017_subject_ID", "BraTS_2018_subject_ID", "TCGA_TCIA_subject_ID"]
    header += [f"BraTS_{y}_subject_ID" for y in years[2:]]
    rows = [
        [
            grade,
            "NA",
            subject,
            tcga,
            *[subject.replace("Brats18", f"BraTS{y % 100}") for y in years[2:]],
        ]
        for subject, grade, tcga, *_ in people
    ]
    path.write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    return path


def write_biotab(path: Path, people=PEOPLE) -> Path:
    lines = [
        "bcr_patient_uuid\tbcr_patient_barcode\tgender\tbirth_days_to\tage_at_initial_pathologic_diagnosis",
        "bcr_patient_uuid\tbcr_patient_barcode\tgender\tdays_to_birth\tage_at_initial_pathologic_diagnosis",
        "CDE_ID:\tCDE_ID:2673794\tCDE_ID:2200604\tCDE_ID:3008233\tCDE_ID:2006657",
    ]
    lines += [
        f"u{i}\t{tcga}\t{sex}\t-1\t{age}" for i, (_, _, tcga, sex, age) in enumerate(people) if sex
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def brats(tmp_path):
    """Keyword arguments of `read_brats` for five subjects: one without a TCGA id, one absent from
    the tables.
    """
    for number, (subject, grade, *_) in enumerate(PEOPLE):
        write_subject(
            tmp_path / "brats", subject, grade, number, ending=(".nii.gz", ".nii")[number % 2]
        )
    gbm = write_biotab(tmp_path / "gbm.txt", [person for person in PEOPLE if person[1] == "HGG"])
    lgg = write_biotab(tmp_path / "lgg.txt", [person for person in PEOPLE if person[1] == "LGG"])
    return {
        "root": tmp_path / "brats",
        "name_mapping": write_mapping(tmp_path / "map.csv"),
        "clinical": [gbm, lgg],
    }


@pytest.fixture
def write():
    """The writers of this file, by name."""
    return {
        "subject": write_subject,
        "mapping": write_mapping,
        "biotab": write_biotab,
        "save": save,
        "brain": brain,
    }


def people_table(counts: dict[tuple[str, str], int], images: int = 1) -> pd.DataFrame:
    rows = []
    for (sex, grade), count in counts.items():
        for number in range(count):
            person = {"subject": f"{grade}-{sex}-{number:03d}", "sex": sex or pd.NA, "grade": grade}
            rows += [{**person, "image": f"{person['subject']}/{k}"} for k in range(images)]
    return pd.DataFrame(rows)


@pytest.fixture
def make_cohort():
    """`make_cohort(counts, images)`: a cohort whose images are constants, no disk."""

    def make(counts, images=1):
        table = people_table(counts, images)
        value = {
            key: np.full((8, 8), i / max(1, len(table)), np.float32)
            for i, key in enumerate(table["image"])
        }
        return Cohort("toy", table, value.__getitem__, strata=("sex", "grade"))

    return make
