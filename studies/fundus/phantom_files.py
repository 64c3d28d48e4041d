"""The fundus phantom written in the layout of FairGenMed, so that its reader runs in every test."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairlib.cohorts.fairgenmed import FOLDERS, GLAUCOMA, TABLE
from fairlib.cohorts.fairgenmed import TRUTH as TRUTH_TABLE
from fairlib.cohorts.tables import ETHNICITIES, RACES, SEX_WORDS, SEXES
from fairlib.io import write_bytes
from studies.fundus.phantom import TRUTH, draw_fundus
from studies.fundus.rules import PhantomSettings

Progress = Callable[[Iterable], Iterable]


def write_csv(path: Path, rows: Sequence[Any], columns: Sequence[str]) -> None:
    """Write rows (mappings or sequences) as a table with these columns."""
    write_bytes(path, pd.DataFrame(rows, columns=list(columns)).to_csv(index=False).encode())


SIDE = 200  # of slo_fundus, in pixels
MARITAL = ("Married or Partnered", "Single", "Divorced", "Widowed", "Legally Separated")
LANGUAGES = ("English", "Spanish", "Other")
REFRACTION_STAGES = {"hyperopia": "positive", "emmetropia": "neutral", "myopia": "negative"}
FUNDUS_COLUMNS = (
    *("filename", "age", "gender", "race", "ethnicity", "language", "maritalstatus", "md"),
    *("glaucoma", "use", "md_severity", "cdr_status", "rnflt_status"),
    "near_vision_refraction_stage",
)


def write_fairgenmed(
    root: str | Path, settings: PhantomSettings, progress: Progress = iter
) -> Path:
    """Write `settings.subjects` subjects under `root`, which then looks like the released
    FairGenMed.

    `data_summary.csv` with the release's columns (gender, near_vision_refraction_stage: positive is
    hyperopia, negative is myopia; glaucoma: yes/no), and `{Training, Validation,
    Test}/data_XXXXX.npz` (numbers only, nothing pickled): slo_fundus uint8 [200, 200, 3] (grey,
    upright), the codes glaucoma, race, male, hispanic, maritalstatus, language, md in dB, and an
    oct_bscans of zeros, uint8 [1, 200, 200], because a phantom has no scan. Also `truth.csv`, which
    no real data set has. The image of data_00007 shows the eye of `draw_fundus(settings, 7)`. A
    subject is a function of (seed, index); files already written are left alone.
    """
    root = Path(root)
    rows = [_write_subject(root, settings, index) for index in progress(range(settings.subjects))]
    write_csv(root / TABLE, rows, FUNDUS_COLUMNS)
    truth = pd.DataFrame(rows)[["filename", *TRUTH]].round(5)
    write_csv(root / TRUTH_TABLE, truth.to_dict("records"), ["filename", *TRUTH])
    return root


def _write_subject(root: Path, settings: PhantomSettings, index: int) -> dict:
    subject = draw_fundus(replace(settings, size=SIDE), index)
    rng = np.random.default_rng([settings.seed, index, 1])  # what no image shows
    marital = int(rng.choice(5, p=(0.55, 0.22, 0.10, 0.11, 0.02)))
    language = int(rng.choice(3, p=(0.92, 0.03, 0.05)))
    name, row = f"data_{index:05d}.npz", subject.row
    path = root / FOLDERS[row["use"]] / name
    if not path.exists():
        write_bytes(path, _npz(subject.image[0], row, marital, language))
    return {
        **row,
        "filename": name,
        "gender": SEX_WORDS[row["sex"]],
        "language": LANGUAGES[language],
        "maritalstatus": MARITAL[marital],
        "glaucoma": "yes" if row["glaucoma"] == "glaucoma" else "no",
        "near_vision_refraction_stage": REFRACTION_STAGES[row["refraction"]],
    }


def _npz(image: np.ndarray, row: dict, marital: int, language: int) -> bytes:
    grey = np.round((image + 1) * 127.5).astype(np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        slo_fundus=np.repeat(grey[:, :, None], 3, axis=2),
        oct_bscans=np.zeros((1, SIDE, SIDE), np.uint8),
        glaucoma=GLAUCOMA.index(row["glaucoma"]),
        race=RACES.index(row["race"]),
        male=SEXES.index(row["sex"]),
        hispanic=ETHNICITIES.index(row["ethnicity"]),
        maritalstatus=marital,
        language=language,
        md=row["md"],
    )
    return buffer.getvalue()
