"""Who and what the notebooks show of the cohort."""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import Tensor

from fairlib.cohorts.slices import CONTRASTS
from studies.brain.cohorts import _phantom, brain_cohort, splits
from studies.brain.settings import Study


def phantom_truth(study: Study) -> pd.DataFrame | None:
    """What is known of synthetic people and of nobody else: subject, sex, grade, age, side,
    log_size, known.

    One row a subject; None for a real cohort.
    """
    if study.cohort != "phantom":
        return None
    return pd.read_csv(_phantom(study) / "truth.csv").rename(columns={"brats": "subject"})


def cohort_images(
    study: Study, part: str, count: int, seed: int = 0
) -> tuple[Tensor, pd.DataFrame]:
    """`count` slices of a part of the cohort (all when there are fewer), drawn at random, and their
    rows.
    """
    cohort = splits(study)[part]
    rows = np.sort(np.random.default_rng(seed).permutation(len(cohort))[:count])
    return cohort.load(rows), cohort.table.iloc[rows].reset_index(drop=True)


def one_slice_each(study: Study, contrast: str = "t1") -> tuple[Tensor, pd.DataFrame]:
    """One slice (the second chosen) of every subject with a known sex, in one contrast, and their
    rows.
    """
    cohort = brain_cohort(study).with_known_sex()
    table = cohort.table[cohort.table.contrast == contrast].sort_values(["subject", "slice"])
    rows = table.index[table.groupby("subject").cumcount() == 1].to_numpy()
    return cohort.load(rows), cohort.table.iloc[rows].reset_index(drop=True)


def examples(study: Study, seed: int) -> tuple[Tensor, list[str]]:
    """One slice with a tumour of a woman and a man of each grade, in all four contrasts: images
    [16, ...] and four labels.
    """
    cohort, rng = brain_cohort(study).with_known_sex(), np.random.default_rng(seed)
    table, rows, labels = cohort.table, [], []
    for grade in ("HGG", "LGG"):
        for sex, word in (("F", "woman"), ("M", "man")):
            part = table[(table.sex == sex) & (table.grade == grade) & (table.side != "none")]
            one = part[part.subject == rng.choice(np.unique(part.subject))]
            one = one[one.slice == one.slice.iloc[len(one) // 2]].set_index("contrast", append=True)
            rows += [one.xs(contrast, level="contrast").index[0] for contrast in CONTRASTS]
            labels.append(f"{word}, {grade}")
    return cohort.load(rows), labels
