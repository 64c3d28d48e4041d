"""Synthetic people with synthetic fundi: grey pictures centred near the optic disc, and the truth
about them.

Nobody in these pictures exists. The law from a person to an eye stands in `fundus_law`, the vessels
in `fundus_vessels`, the picture in `fundus_scene`, the writer of FairGenMed's layout in
`fundus_files`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fairlib.cohorts.fairgenmed import USES, cdr_status, prompt_of
from fairlib.errors import DataError
from studies.fundus.rules import (
    FundusSettings,
    Patient,
    draw_patient,
    expected_cdr,
    expected_rnfl,
    law,
    make_patient,
)
from studies.fundus.scene import draw_scene, finish, make_eye, render

__all__ = [
    "FundusSettings",
    "FundusSubject",
    "draw_fundi",
    "draw_fundus",
    "draw_fundus_with",
    "expected_cdr",
    "expected_rnfl",
    "law",
    "write_fairgenmed",
]

# by the last digit of the index: six to train on, one to choose by, three to test
USE_OF = (0, 0, 0, 0, 0, 0, 1, 2, 2, 2)


@dataclass(frozen=True, eq=False)
class FundusSubject:
    """One synthetic subject. row: the attributes of a cohort's row, the prompt and the truth
    (`cdr`: vertical cup-to-disc

    ratio; `disc_diameter`: vertical, in pixels of 128; `pigment` in [0, 1]; `rnfl`: micrometres);
    image: float32 [1, H, H] in [-1, 1].
    """

    row: dict
    image: np.ndarray


def draw_fundus_with(
    rng: np.random.Generator,
    race: str,
    sex: str,
    ethnicity: str,
    glaucoma: str,
    md_severity: str,
    refraction: str,
    cdr: float | None = None,
    cdr_status: str | None = None,
    age: float | None = None,
    subject: str = "synthetic-fundus",
    size: int = 128,
) -> FundusSubject:
    """One subject with GIVEN attributes (words of `fairlib.cohorts.fairgenmed`); `rng` decides
    everything else.

    cdr: the true ratio, 0.15 to 0.92; without it the law decides, within `cdr_status` when that is
    given. The same draws are
    made whatever the attributes are: the same seed gives one eye under other attributes. Raises
    `DataError` on attributes outside the vocabularies.
    """
    patient = make_patient(
        rng, race, sex, ethnicity, glaucoma, md_severity, refraction, cdr, cdr_status, age
    )
    return _subject(rng, patient, subject, "training", size)


def draw_fundus(settings: FundusSettings, index: int) -> FundusSubject:
    """Subject number `index`: a function of (settings.seed, index), the shares and the size
    alone.
    """
    rng = np.random.default_rng([settings.seed, index])
    return _subject(
        rng,
        draw_patient(rng, settings),
        f"synthetic-fundus-{index:05d}",
        USES[USE_OF[index % 10]],
        settings.size,
    )


def draw_fundi(settings: FundusSettings, indices: Iterable[int] | None = None, progress=iter):
    """Many subjects: images float32 tensor [N, 1, H, H] in [-1, 1], and a table (one row each:
    attributes, prompt, truth).

    `indices` None: the first `settings.subjects`. Raises `DataError` when there are none.
    """
    import pandas as pd
    import torch

    chosen = range(settings.subjects) if indices is None else list(indices)
    if not len(chosen):
        raise DataError("no fundi to draw; give at least one index")
    found = [draw_fundus(settings, int(index)) for index in progress(chosen)]
    return torch.from_numpy(np.stack([subject.image for subject in found])), pd.DataFrame(
        [subject.row for subject in found]
    )


def write_fairgenmed(root, settings: FundusSettings, progress=iter):
    """Write the cohort under `root` in FairGenMed's layout; see `fundus_files.write_fairgenmed`."""
    from studies.fundus.phantom_files import write_fairgenmed as write

    return write(root, settings, progress)


def _subject(
    rng: np.random.Generator, patient: Patient, name: str, use: str, size: int
) -> FundusSubject:
    eye = make_eye(rng, patient)
    scene = draw_scene(rng, patient, eye)
    image = finish(render(patient, eye, scene, size), scene, rng)
    return FundusSubject(_row(patient, name, use), image[None])


def _row(patient: Patient, name: str, use: str) -> dict:
    row = {
        "subject": name,
        "age": patient.age,
        "sex": patient.sex,
        "race": patient.race,
        "ethnicity": patient.ethnicity,
        "glaucoma": patient.glaucoma,
        "md": patient.md,
        "md_severity": patient.md_severity,
        "cdr_status": cdr_status(patient.cdr),
        "rnflt_status": patient.rnflt_status,
        "refraction": patient.refraction,
        "use": use,
    }
    return {
        **row,
        "prompt": prompt_of(row),
        "cdr": patient.cdr,
        "disc_diameter": patient.disc_diameter,
        "pigment": patient.pigment,
        "rnfl": patient.rnfl,
    }
