"""Synthetic fundi as files in the layout of FairGenMed, for what reads that release."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.cohorts.fairgenmed import FOLDERS, GLAUCOMA, TABLE
from fairlib.cohorts.fairgenmed import TRUTH as TRUTH_TABLE
from fairlib.cohorts.tables import ETHNICITIES, RACES, SEX_WORDS, SEXES
from fairlib.io import write_bytes
from fairlib.rng import numpy_rng
from studies.engine import StudyStream
from studies.fundus.phantom import TRUTH, PhantomSettings, draw_fundus

SIDE = 200  # of slo_fundus, in pixels
MARITAL = ("Married or Partnered", "Single", "Divorced", "Widowed", "Legally Separated")
LANGUAGES = ("English", "Spanish", "Other")
REFRACTION_STAGES = {"hyperopia": "positive", "emmetropia": "neutral", "myopia": "negative"}
FUNDUS_COLUMNS = (
    *("filename", "age", "gender", "race", "ethnicity", "language", "maritalstatus", "md"),
    *("glaucoma", "use", "md_severity", "cdr_status", "rnflt_status"),
    "near_vision_refraction_stage",
)


def write_fairgenmed(root: str | Path, settings: PhantomSettings) -> Path:
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
    rows = [_write_subject(root, settings, index) for index in range(settings.subjects)]
    table, truth = pd.DataFrame(rows), ["filename", *TRUTH]
    write_bytes(root / TABLE, table[list(FUNDUS_COLUMNS)].to_csv(index=False).encode())
    write_bytes(root / TRUTH_TABLE, table[truth].round(5).to_csv(index=False).encode())
    return root


def _write_subject(root: Path, settings: PhantomSettings, index: int) -> dict:
    subject = draw_fundus(replace(settings, size=SIDE), index)
    rng = numpy_rng(settings.seed, index, StudyStream.NOT_SHOWN)  # what no image shows
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
