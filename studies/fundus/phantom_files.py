"""Synthetic fundi in the layout of FairGenMed: a table, and one npz file a subject in the folder of
its part.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from fairlib.cohorts.attributes import ETHNICITIES, RACES, SEX_WORDS, SEXES
from fairlib.cohorts.fairgenmed import GLAUCOMA, USES
from fairlib.io import write_bytes
from studies.fundus.phantom import draw_fundus
from studies.fundus.rules import FundusSettings

TABLE = "data_summary.csv"
FOLDERS = dict(zip(USES, ("Training", "Validation", "Test"), strict=True))
SIDE = 200  # of slo_fundus, in pixels
MARITAL = ("Married or Partnered", "Single", "Divorced", "Widowed", "Legally Separated")
LANGUAGES = ("English", "Spanish", "Other")
REFRACTION_STAGES = {"hyperopia": "positive", "emmetropia": "neutral", "myopia": "negative"}
TRUTH = ("cdr", "disc_diameter", "pigment", "rnfl")


def write_fairgenmed(root: str | Path, settings: FundusSettings, progress=iter) -> Path:
    """Write `settings.subjects` subjects under `root`, which then looks like the released
    FairGenMed.

    `data_summary.csv` with the release's columns (gender, near_vision_refraction_stage: positive is
    hyperopia, negative is myopia; glaucoma: yes/no), and `{Training, Validation,
    Test}/data_XXXXX.npz` (numbers only, nothing pickled): slo_fundus uint8 [200, 200, 3] (grey,
    upright), the codes glaucoma, race, male, hispanic, maritalstatus, language, md in dB, and an
    oct_bscans of zeros, uint8 [1, 200, 200], because a phantom has no scan. Also `truth.csv`, which
    no real data set has. The picture of data_00007 shows the eye of `draw_fundus(settings, 7)`. A
    subject is a function of (seed, index); files already written are left alone.
    """
    root = Path(root)
    rows = [_write_subject(root, settings, index) for index in progress(range(settings.subjects))]
    _write_tables(root, rows)
    return root


def _write_subject(root: Path, settings: FundusSettings, index: int) -> dict:
    larger = FundusSettings(**{**vars(settings), "size": SIDE})
    subject = draw_fundus(larger, index)
    clerk = np.random.default_rng([settings.seed, index, 1])  # what no picture shows
    marital, language = (
        int(clerk.choice(5, p=(0.55, 0.22, 0.10, 0.11, 0.02))),
        int(clerk.choice(3, p=(0.92, 0.03, 0.05))),
    )
    name, row = f"data_{index:05d}.npz", subject.row
    path = root / FOLDERS[row["use"]] / name
    if not path.exists():
        write_bytes(path, _npz(subject.image[0], row, marital, language))
    known = {
        key: row[key]
        for key in (
            "age",
            "race",
            "ethnicity",
            "md",
            "use",
            "md_severity",
            "cdr_status",
            "rnflt_status",
        )
    }
    return {
        "filename": name,
        **known,
        "gender": SEX_WORDS[row["sex"]],
        "language": LANGUAGES[language],
        "maritalstatus": MARITAL[marital],
        "glaucoma": "yes" if row["glaucoma"] == "glaucoma" else "no",
        "near_vision_refraction_stage": REFRACTION_STAGES[row["refraction"]],
        **{key: row[key] for key in TRUTH},
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


def _write_tables(root: Path, rows: list[dict]) -> None:
    import pandas as pd

    order = (
        "filename",
        "age",
        "gender",
        "race",
        "ethnicity",
        "language",
        "maritalstatus",
        "md",
        "glaucoma",
        "use",
        "md_severity",
        "cdr_status",
        "rnflt_status",
        "near_vision_refraction_stage",
    )
    table = pd.DataFrame(rows)
    write_bytes(root / TABLE, table[list(order)].to_csv(index=False).encode())
    write_bytes(
        root / "truth.csv", table[["filename", *TRUTH]].round(5).to_csv(index=False).encode()
    )
