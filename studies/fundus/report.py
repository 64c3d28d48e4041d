"""The criteria of the fundus study, and what its tables say to a reader."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from fairlib.cohorts.attributes import RACES
from fairlib.errors import DataError
from fairlib.measures.intervals import Interval
from studies.engine.criteria import Criterion, Rule
from studies.fundus.measures import (
    ALL,
    CDR,
    FOUND,
    GAP,
    MMD,
    NO_DISC,
    NO_TASK,
    PAIRS,
    SCALED,
    TO_GENERATED,
    TO_REAL,
    WORST,
)
from studies.fundus.settings import BASE, EVERYONE, REAL, TASKS, FundusSettings

CUP = Criterion("cdr", "cup-to-disc error, worst race ({race})", 0.08, Rule.AT_MOST)
DIFFERENCE = Criterion("gap", "gap over races: {what}, less that of {reference}")
REPAIR = Criterion("repair", DIFFERENCE.figure, 0.0, Rule.NOT_ABOVE)
GAPS = ((MMD, NO_TASK), (FOUND, "race"), *product((TO_REAL, TO_GENERATED), TASKS))
"""The gaps over races that arms are compared by: quality, the race that was requested, and semantic
correlation both ways.
"""
POINTS = ("lane", "series", "value", "value_low", "value_high")  # of a dot plot
COMPARED = (
    ("released", "plain"),
    ("released", "random"),
    ("repaired", "plain"),
    ("repaired", "random-repaired"),
    ("inverse", "plain"),
    ("dro", "plain"),
    ("balanced", "plain"),
)


def criteria(tables: dict[str, pd.DataFrame], settings: FundusSettings) -> list[dict]:
    """Make the rows of the study's criteria from the tables values, differences and people.

    A value's interval draws patients anew; that of a difference is Student's t over the seeds'
    paired differences where there are two or more (its evaluator says so), else it draws patients
    anew. Is the repaired form shown to be worse than the released one? It is not unless the whole
    interval lies above zero, which a wide interval does easily.
    """
    rows = _cups(tables["values"], tables["people"])
    for pairs, criterion in ((COMPARED, DIFFERENCE), ([("repaired", "released")], REPAIR)):
        for measure, task in GAPS:
            for arm, reference in pairs:
                row = race_difference(tables["differences"], measure, task, arm, reference)
                rows += [] if row is None else [_gap(criterion, row, tables["people"])]
    return rows


def _cups(values: pd.DataFrame, people: pd.DataFrame) -> list[dict]:
    """One row an arm, of the race whose error is largest; `floor` is the error of real images of
    that race and those words.

    The start, whose denoiser has seen White patients alone, has no criterion.
    """
    table = chosen(values, CDR)
    table = table[table["group"].isin(RACES)]
    floors = table[table["arm"] == REAL].set_index("group")["value"]
    rows = []
    for arm, part in table[table["arm"] != REAL].groupby("arm", sort=False):
        row = part.loc[part["value"].idxmax()]
        race = row["group"]
        n = ((people["part"] == "asked") & (people["race"] == race)).sum() * row["seeds"]
        found = Interval(*(float(row[end]) for end in ("value", "people_low", "people_high")))
        where = ("anatomical measurement", found, int(n), float(floors.get(race, np.nan)))
        rows.append(CUP.row(arm, *where, compared=arm == BASE, race=race))
    return rows


def _gap(criterion: Criterion, row: pd.Series, people: pd.DataFrame) -> dict:
    interval, over = interval_of(row)
    part = "reference" if row["measure"] == TO_REAL else "asked"
    n = int((people["part"] == part).sum() * row["seeds"])
    what = row["measure"] + ("" if row["task"] == NO_TASK else f", {row['task']}")
    return criterion.row(row["arm"], over, interval, n, what=what, reference=row["reference"])


def race_difference(
    differences: pd.DataFrame, measure: str, task: str, arm: str, reference: str, group: str = GAP
) -> pd.Series | None:
    """Find the row of differences.csv on the gap over races, or on one race; None where the two
    arms were not compared.
    """
    table = chosen(differences, measure, task)
    wanted = {"group": group, "arm": arm, "reference": reference}
    table = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return table.iloc[0] if len(table) else None


def interval_of(row: pd.Series) -> tuple[Interval, str]:
    """The interval of a difference, and what it is over: seeds where there are two or more, else
    patients.
    """
    over = "seed" if row["seeds"] > 1 else "people"
    ends = ("difference", f"{over}_low", f"{over}_high")
    found = Interval(*(float(row[end]) for end in ends))
    return found, f"t over {int(row['seeds'])} seeds" if over == "seed" else "bootstrap over people"


def in_words(
    differences: pd.DataFrame,
    measure: str,
    task: str = NO_TASK,
    arm: str = "released",
    reference: str = "random",
) -> str:
    """Say one plain sentence on the gap over races.

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
    side = "wider" if found.low > 0 else "narrower" if found.high < 0 else None
    if side is None:
        return f"Whether {arm} and {reference} differ in the gap over races cannot be told: {said}."
    return f"The gap over races is {side} under {arm} than under {reference}: {said}."


# ---- tables for readers


def chosen(table: pd.DataFrame, measure: str, task: str = NO_TASK) -> pd.DataFrame:
    """Rows of one measure over races."""
    return table[(table["measure"] == measure) & (table["task"] == task) & (table["by"] == "race")]


def race_points(values: pd.DataFrame, measure: str, task: str = NO_TASK) -> pd.DataFrame:
    """A measure of every race (series) for every arm (lane), with intervals over patients: columns
    `POINTS`.
    """
    part = chosen(values, measure, task)
    names = {
        "arm": "lane",
        "group": "series",
        "people_low": "value_low",
        "people_high": "value_high",
    }
    part = part[part["group"].isin(RACES)].rename(columns=names)
    return part[list(POINTS)]


def difference_points(differences: pd.DataFrame, measure: str, task: str = NO_TASK) -> pd.DataFrame:
    """The gap over races of an arm less that of its rival (lane), with both intervals (series):
    columns `POINTS`.
    """
    against_plain = ("inverse", "dro", "balanced", EVERYONE)
    pairs = [("released", "plain"), ("repaired", "plain"), *PAIRS[:3]]
    rows = []
    for arm, reference in (*pairs, *((arm, "plain") for arm in against_plain)):
        row = race_difference(differences, measure, task, arm, reference)
        if row is not None:
            ends = {"over people": "people"} | ({"over seeds": "seed"} if row["seeds"] > 1 else {})
            lane, value = f"{arm} less {reference}", row["difference"]
            rows += [
                (lane, series, value, *row[[f"{end}_low", f"{end}_high"]])
                for series, end in ends.items()
            ]
    return pd.DataFrame(rows, columns=list(POINTS))


def by_race(differences: pd.DataFrame, measure: str, task: str = NO_TASK) -> pd.DataFrame:
    """What an arm changes in each race by itself, in words: arm, less that of, and a column a race,
    with intervals as `interval_of` gives them.
    """
    rows = []
    for pair in (*COMPARED, ("repaired", "released")):
        found = [race_difference(differences, measure, task, *pair, race) for race in RACES]
        if all(row is not None for row in found):
            ends = [interval_of(row)[0] for row in found]
            words = [f"{e.estimate:+.2f} ({e.low:+.2f}\u00a0to\u00a0{e.high:+.2f})" for e in ends]
            rows.append((*pair, *words))
    return pd.DataFrame(rows, columns=["arm", "less that of", *RACES])


def arm_table(values: pd.DataFrame) -> pd.DataFrame:
    """One row an arm: error of the ratio (all, worst race), images without a disc, MMD (mean over
    races, gap), and the AUC for glaucoma of a classifier trained on the images (all, equity-scaled
    over race, gap), and of one trained on real patients.
    """
    wanted = {
        "error": (CDR, NO_TASK, ALL, ALL),
        "error, worst race": (CDR, NO_TASK, "race", WORST),
        "no disc": (NO_DISC, NO_TASK, ALL, ALL),
        "MMD": (MMD, NO_TASK, ALL, ALL),
        "MMD, gap": (MMD, NO_TASK, "race", GAP),
        "AUC to real": (TO_REAL, "glaucoma", ALL, ALL),
        "equity-scaled": (TO_REAL, "glaucoma", "race", SCALED),
        "AUC, gap": (TO_REAL, "glaucoma", "race", GAP),
        "AUC from real": (TO_GENERATED, "glaucoma", ALL, ALL),
    }
    known = values.set_index(["arm", "measure", "task", "by", "group"])["value"]
    rows = [
        {"arm": arm, **{name: known.get((arm, *key), np.nan) for name, key in wanted.items()}}
        for arm in dict.fromkeys(values["arm"])
    ]
    return pd.DataFrame(rows)
