"""Synthetic people with synthetic hearts: short-axis pictures in end-diastole and end-systole, and
the truth about them.

Nobody in these pictures exists. The law from a person to a heart stands in `heart_law`, the writer
of the M&Ms layout in `heart_mnms`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fairlib.cohorts.cardiac import bmi_class, decade, normalise, prompt_of, stack
from fairlib.errors import DataError
from studies.heart.phantom_files import write_mnms
from studies.heart.rules import (
    PATHOLOGY,
    VENDORS,
    HeartSettings,
    Person,
    draw_person,
    expected_geometry,
    make_heart,
    make_person,
)
from studies.heart.scene import draw_scene, finish, render
from studies.heart.shape import Heart, depths, grid, masks, truth

__all__ = [
    "HeartSettings",
    "HeartSubject",
    "draw_heart",
    "draw_heart_with",
    "draw_hearts",
    "expected_geometry",
    "write_mnms",
]


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


def draw_heart_with(
    rng: np.random.Generator,
    sex: str,
    age: float,
    bmi: float,
    diagnosis: str,
    height: float | None = None,
    face: str | None = None,
    subject: str = "synthetic-heart",
    settings: HeartSettings | None = None,
) -> HeartSubject:
    """One subject with GIVEN attributes: extra people for training, or many of one kind to test a
    law.

    sex "F"/"M", age in years, bmi in kg/m2, diagnosis "healthy"/"heart failure"; height (cm) and
    face are drawn when None. `rng` decides everything else. Raises `DataError` on attributes
    outside the prompt's template.
    """
    return _subject(
        rng,
        make_person(rng, sex, age, bmi, diagnosis, height, face),
        subject,
        settings or HeartSettings(),
    )


def draw_heart(settings: HeartSettings, index: int) -> HeartSubject:
    """Subject number `index`: a function of (settings.seed, index) and the shares alone."""
    rng = np.random.default_rng([settings.seed, index])
    return _subject(rng, draw_person(rng, settings), f"synthetic-heart-{index:05d}", settings)


def draw_hearts(settings: HeartSettings, indices: Iterable[int] | None = None, progress=iter):
    """Many subjects: images float32 tensor [N, 3, 64, 64] (ED, ES, ED) in [-1, 1], masks uint8
    tensor [N, 2, 64, 64],

    and a table (one row each: attributes, prompt, classes and truth). `indices` None: the first
    `settings.subjects`.
    """
    import pandas as pd
    import torch

    chosen = range(settings.subjects) if indices is None else list(indices)
    if not len(chosen):
        raise DataError("no hearts to draw; give at least one index")
    found = [draw_heart(settings, int(index)) for index in progress(chosen)]
    images = torch.from_numpy(np.stack([subject.images for subject in found]))
    labels = torch.from_numpy(np.stack([subject.masks for subject in found]))
    return stack(images), labels, pd.DataFrame([subject.row for subject in found])


def picture_centre(heart: Heart) -> tuple[float, float]:
    """The middle (x, y) in mm of the box around the segmentation of both phases at
    mid-ventricle.
    """
    x, y = grid(80, 2.0, (-12.0, 0.0))
    found = np.logical_or(*[masks(depths(heart, x, y, phase)) > 0 for phase in (0.0, 1.0)])
    return tuple(float(axis[found].min() + axis[found].max()) / 2 for axis in (x, y))


def _subject(
    rng: np.random.Generator, person: Person, name: str, settings: HeartSettings
) -> HeartSubject:
    heart = make_heart(rng, person)
    scene = draw_scene(rng, heart)
    x, y = grid(settings.size, settings.pixel_mm, picture_centre(heart))
    pictures, labels = render(heart, scene, x, y, (0.0, 1.0))
    images = normalise(finish(pictures, scene, settings.pixel_mm, rng))
    return HeartSubject(_row(person, heart, name), heart, images, labels)


def _row(person: Person, heart: Heart, name: str) -> dict:
    vendor, _, centre = VENDORS[person.vendor]
    row = {
        "subject": name,
        "sex": person.sex,
        "age": person.age,
        "height": person.height,
        "weight": person.weight,
        "bmi": person.bmi,
        "diagnosis": person.diagnosis,
        "pathology": PATHOLOGY[person.face],
        "centre": centre,
        "vendor": vendor,
        "slice": 0,
    }
    return {
        **row,
        "decade": decade(person.age),
        "bmi_class": bmi_class(person.bmi),
        "prompt": prompt_of(row),
        **truth(heart),
        "face": person.face,
    }
