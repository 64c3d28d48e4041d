"""What a correction is worth when its assumption fails: known shares, estimated in three ways.

Images of known sex with generated texture are drawn in a known share and read by the held-out
classifier. Rogan-Gladen and EM take its errors from a calibration set, once from images
of the same kind and once from the target cohort's test slices, on which it errs otherwise.
Prediction-powered inference takes 200 labels of the images themselves.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from fairlib.measures.intervals import Interval
from fairlib.measures.shares import CalibrationSet, corrected_share, em_share, ppi_share

SHARES = (0.16, 0.458)
IMAGES, LABELS = 1000, 200


def estimators(
    calibration: pd.DataFrame, column: str = "heldout", repeats: int = 100, replicates: int = 200
) -> pd.DataFrame:
    """Bias and coverage of each estimator: errors_from (calibration set), method, share, mean,
    coverage, width, repeats. calibration: of one seed, with the sets "denoised" and "test".
    """
    known = calibration[calibration["set"] == "denoised"]
    female = (known.sex == "F").to_numpy()
    drawn_from, errors_from = np.arange(len(known)) % 2 == 0, np.arange(len(known)) % 2 == 1
    sets = {
        "the same kind of image": known[errors_from],
        "test slices": calibration[calibration["set"] == "test"],
    }
    p, rows = known[column].to_numpy(float), []
    for share in SHARES:
        for repeat in range(repeats):
            rng = np.random.default_rng([71, repeat])
            sexes = rng.random(IMAGES) < share
            places = np.array(
                [rng.choice(np.flatnonzero(drawn_from & (female == sex))) for sex in sexes]
            )
            found = _estimates(p[places], sexes, sets, column, rng, replicates)
            rows += [(*names, share, value) for names, value in found.items()]
    return _summary(pd.DataFrame(rows, columns=["method", "errors_from", "share", "interval"]))


def _estimates(
    p: np.ndarray,
    sexes: np.ndarray,
    sets: dict[str, pd.DataFrame],
    column: str,
    rng: np.random.Generator,
    replicates: int,
) -> dict[tuple[str, str], Interval]:
    found = {}
    for name, table in sets.items():
        truth, subjects = (table.sex == "F").to_numpy(int), table.subject.to_numpy(str)
        labelled = CalibrationSet(table[column].to_numpy(float), truth, subjects)
        found["Rogan-Gladen", name] = corrected_share(p, labelled, rng, replicates)
        found["EM", name] = em_share(p, labelled, rng, replicates)
    labels = sexes[:LABELS].astype(float)
    read = (p > 0.5).astype(float)
    found["prediction-powered", "200 labels"] = ppi_share(labels, read[:LABELS], read[LABELS:])
    found["labels alone", "200 labels"] = ppi_share(labels, np.full(LABELS, 0.5), read[LABELS:])
    return found


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    values = table.interval
    table = table.assign(
        mean=[value.estimate for value in values],
        coverage=[share in value for share, value in zip(table["share"], values, strict=True)],
        width=[value.high - value.low for value in values],
        repeats=1,
    )
    by = ["share", "method", "errors_from"]
    how = {"mean": "mean", "coverage": "mean", "width": "mean", "repeats": "sum"}
    return table.groupby(by, sort=False).agg(how).reset_index()
