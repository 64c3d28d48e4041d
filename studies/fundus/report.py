"""The bounds of the fundus study: each figure with its interval, its bound, and whether it
holds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.cohorts.attributes import RACES
from fairlib.errors import DataError
from fairlib.measures.intervals import Interval
from studies.engine.bounds import COLUMNS, verdict
from studies.fundus.settings import ARMS, BASE, REAL, UNTUNED
from studies.fundus.statistics import CDR, FOUND, GAP, MMD, NO_TASK, TO_GENERATED, TO_REAL
from studies.fundus.study import load_fundus_results

CDR_MOST = 0.08
GAPS = (
    (MMD, NO_TASK),
    (FOUND, "race"),
    (TO_REAL, "glaucoma"),
    (TO_REAL, "cdr_status"),
    (TO_GENERATED, "glaucoma"),
    (TO_GENERATED, "cdr_status"),
)
"""The gaps over races that arms are compared by: quality, the race that was asked for, and semantic
correlation both ways.
"""
COMPARED = (
    ("released", "plain"),
    ("released", "random"),
    ("repaired", "plain"),
    ("repaired", "random-repaired"),
    ("inverse", "plain"),
    ("dro", "plain"),
    ("balanced", "plain"),
)
JUDGES = {CDR: "ruler", MMD: "reader's features"}


def fundus_report(folder: str | Path | None = None, results: dict | None = None) -> pd.DataFrame:
    """All bounds, columns `measures.bounds.COLUMNS`; from `results` (tables values, differences,
    people; as a notebook has them) or from the folder.

    A value's interval draws people anew; that of a difference is Student's t over the seeds' paired
    differences where there are two or more (its judge says so), else it draws people anew.
    """
    found = load_fundus_results(folder) if results is None else results
    rows = [*_cups(found), *_gaps(found), *_repair(found)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _cups(found: dict) -> list[dict]:
    """One row an arm, of the race whose error is largest; `floor` is the error of real people of
    that race and those words.

    The start, whose denoiser has seen White people alone, has no bound.
    """
    values, people = found["values"], found["people"]
    table = values[
        (values["measure"] == CDR) & (values["by"] == "race") & values["group"].isin(RACES)
    ]
    floors = table[table["arm"] == REAL].set_index("group")["value"]
    rows = []
    for arm in [name for name in (*UNTUNED, *ARMS) if name in set(table["arm"])]:
        part = table[table["arm"] == arm]
        row = part.loc[part["value"].idxmax()]
        n = int(
            ((people["part"] == "asked") & (people["race"] == row["group"])).sum() * row["seeds"]
        )
        rows.append(
            verdict(
                f"cup-to-disc error, worst race ({row['group']})",
                arm,
                JUDGES[CDR],
                Interval(row["value"], row["people_low"], row["people_high"]),
                np.nan if arm == BASE else CDR_MOST,
                n,
                floor=float(floors.get(row["group"], np.nan)),
            )
        )
    return rows


def _gaps(found: dict) -> list[dict]:
    """What the method does to the gap over races, against plain fine-tuning and against the same
    noise unsteered, and what the
    oldest remedies do: no bound.
    """
    rows = []
    for measure, task in GAPS:
        for arm, reference in COMPARED:
            row = race_difference(found["differences"], measure, task, arm, reference)
            if row is not None:
                rows.append(_difference(row, found, np.nan))
    return rows


def _repair(found: dict) -> list[dict]:
    """Is the repaired form shown to be worse than the released one? It holds unless the whole
    interval lies above zero, which a wide interval does easily.
    """
    rows = []
    for measure, task in GAPS:
        row = race_difference(found["differences"], measure, task, "repaired", "released")
        if row is not None:
            made = _difference(row, found, 0.0)
            rows.append(made | {"holds": bool(made["low"] <= 0)})
    return rows


def race_difference(
    differences: pd.DataFrame, measure: str, task: str, arm: str, reference: str, group: str = GAP
) -> pd.Series | None:
    """The row of differences.csv on the gap over races, or on one race; None where the two arms
    were not compared.
    """
    chosen = differences[
        (differences["measure"] == measure)
        & (differences["task"] == task)
        & (differences["by"] == "race")
        & (differences["group"] == group)
        & (differences["arm"] == arm)
        & (differences["reference"] == reference)
    ]
    return chosen.iloc[0] if len(chosen) else None


def interval_of(row: pd.Series) -> tuple[Interval, str]:
    """The interval of a difference, and what it is over: seeds where there are two or more, else
    people.
    """
    over = "seed" if row["seeds"] > 1 else "people"
    return (
        Interval(row["difference"], row[f"{over}_low"], row[f"{over}_high"]),
        f"t over {int(row['seeds'])} seeds" if over == "seed" else "bootstrap over people",
    )


def in_words(
    differences: pd.DataFrame,
    measure: str,
    task: str = NO_TASK,
    arm: str = "released",
    reference: str = "random",
) -> str:
    """One plain sentence on the gap over races.

    Raises `DataError` when the two arms were not compared.
    """
    row = race_difference(differences, measure, task, arm, reference)
    if row is None:
        raise DataError(
            f"arms {arm!r} and {reference!r} were not compared; run both with one seed in common"
        )
    found, over = interval_of(row)
    over += ", one training each" if row["seeds"] == 1 else ""
    said = f"{found.estimate:+.3f} ({found.low:+.3f} to {found.high:+.3f}, {over})"
    if found.low > 0:
        return f"The gap over races is wider under {arm} than under {reference}: {said}."
    if found.high < 0:
        return f"The gap over races is narrower under {arm} than under {reference}: {said}."
    return f"Whether {arm} and {reference} differ in the gap over races cannot be told: {said}."


def _difference(row: pd.Series, found: dict, bound: float) -> dict:
    interval, over = interval_of(row)
    part = "reference" if row["measure"] == TO_REAL else "asked"
    n = int((found["people"]["part"] == part).sum() * row["seeds"])
    task = "" if row["task"] == NO_TASK else f", {row['task']}"
    figure = f"gap over races: {row['measure']}{task}, less that of {row['reference']}"
    return verdict(figure, row["arm"], over, interval, bound, n)


__all__ = ["COMPARED", "GAPS", "fundus_report", "in_words", "interval_of", "race_difference"]
