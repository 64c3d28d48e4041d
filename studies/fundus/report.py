"""The criteria of the fundus study, and what its tables say to a reader."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from fairlib.cohorts.tables import RACES
from fairlib.errors import DataError
from fairlib.measures.intervals import Interval
from studies.engine.criteria import Criterion, Rule, as_interval, first_row
from studies.fundus.data import BASE, EVERYONE, REAL, FundusSettings, Vocabulary
from studies.fundus.measures import (
    ALL,
    CDR,
    GAP,
    MMD,
    NO_DISC,
    NO_TASK,
    PAIRS,
    RECOVERED,
    SCALED,
    TO_GENERATED,
    TO_REAL,
    WORST,
)

CUP = Criterion("cdr", "cup-to-disc error, worst race ({race})", 0.08, Rule.AT_MOST)
DIFFERENCE = Criterion("gap", "gap over {groups}: {what}, less that of {reference}")
REPAIR = Criterion("repair", DIFFERENCE.figure, 0.0, Rule.NOT_ABOVE)
# what a gap is over, by the first attribute of a cohort
GROUPS = {"race": "races", "sex": "sexes"}
POINTS = ("value", "value_low", "value_high")  # of a dot plot
COMPARED = (
    ("released", "plain"),
    ("released", "random"),
    ("repaired", "plain"),
    ("repaired", "random-repaired"),
    ("inverse", "plain"),
    ("dro", "plain"),
    ("balanced", "plain"),
)
REPAIRED = ("repaired", "released")
LABELS = {  # of arms, for readers
    REAL: "real images",
    BASE: "initial model",
    EVERYONE: "trained on all patients",
    "plain": "plain fine-tuning",
    "released": "FairDiffusion (released)",
    "repaired": "FairDiffusion (repaired)",
    "random": "random sigma (released)",
    "random-repaired": "random sigma (repaired)",
    "inverse": "inverse frequency",
    "dro": "group DRO",
    "balanced": "balanced batches",
}


def criteria(tables: dict[str, pd.DataFrame], settings: FundusSettings) -> list[dict]:
    """Make the rows of the study's criteria from the tables values, differences and subjects.

    A value's interval draws patients anew; that of a difference is Student's t over the seeds'
    paired differences where there are two or more (its evaluator says so), else it draws patients
    anew. Is the repaired form shown to be worse than the released one? It is not unless the whole
    interval lies above zero, which a wide interval does easily.
    """
    words, differences = settings.vocabulary, tables["differences"]
    by = words.compared[0]  # in the place of race, where a cohort states none
    differences = differences[differences["by"] == by].assign(by="race")
    rows = _cups(tables["values"], tables["subjects"]) if words.has_disc else []
    for pairs, criterion in ((COMPARED, DIFFERENCE), ([REPAIRED], REPAIR)):
        for measure, task in gaps(words):
            for arm, reference in pairs:
                row = race_difference(differences, measure, task, arm, reference)
                rows += [] if row is None else [_gap(criterion, row, tables["subjects"], by)]
    return rows


def gaps(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The gaps over races (or groups of the first attribute) that arms are compared by: quality,
    the race that was requested, and semantic correlation both ways.
    """
    semantic = product((TO_REAL, TO_GENERATED), vocabulary.learnt)
    return [(MMD, NO_TASK), (RECOVERED, vocabulary.compared[0]), *semantic]


def _cups(values: pd.DataFrame, subjects: pd.DataFrame) -> list[dict]:
    """One row an arm, of the race whose error is largest; `floor` is the error of real images of
    that race and those words.

    The initial model, whose denoiser was trained on White patients alone, has no criterion.
    """
    table = chosen(values, CDR)
    table = table[table["group"].isin(RACES)]
    floors = table[table["arm"] == REAL].set_index("group")["value"]
    rows = []
    for arm, part in table[table["arm"] != REAL].groupby("arm", sort=False):
        row = part.loc[part["value"].idxmax()]
        race = row["group"]
        n = ((subjects["part"] == "requested") & (subjects["race"] == race)).sum() * row["seeds"]
        interval = as_interval(row, ("value", "subject_low", "subject_high"))
        where = ("anatomical measurement", interval, int(n), float(floors.get(race, np.nan)))
        rows.append(CUP.row(arm, *where, compared=arm == BASE, race=race))
    return rows


def _gap(criterion: Criterion, row: pd.Series, subjects: pd.DataFrame, by: str) -> dict:
    interval, over = interval_of(row)
    part = "reference" if row["measure"] == TO_REAL else "requested"
    n = int((subjects["part"] == part).sum() * row["seeds"])
    what = row["measure"] + ("" if row["task"] == NO_TASK else f", {row['task']}")
    about = {"what": what, "reference": row["reference"], "groups": GROUPS[by]}
    return criterion.row(row["arm"], over, interval, n, **about)


def race_difference(
    differences: pd.DataFrame, measure: str, task: str, arm: str, reference: str, group: str = GAP
) -> pd.Series | None:
    """Find the row of differences.csv on the gap over races, or on one race; None where the two
    arms were not compared.
    """
    table = chosen(differences, measure, task)
    return first_row(table, group=group, arm=arm, reference=reference)


def interval_of(row: pd.Series) -> tuple[Interval, str]:
    """The interval of a difference, and what it is over: seeds where there are two or more, else
    patients.
    """
    over = "seed" if row["seeds"] > 1 else "subject"
    interval = as_interval(row, ("difference", f"{over}_low", f"{over}_high"))
    words = {"seed": f"t over {int(row['seeds'])} seeds", "subject": "bootstrap over patients"}
    return interval, words[over]


def in_words(differences: pd.DataFrame, measure: str, task: str, arm: str, reference: str) -> str:
    """Say one plain sentence on the gap over races.

    Raises `DataError` when the two arms were not compared.
    """
    row = race_difference(differences, measure, task, arm, reference)
    if row is None:
        what = f"arms {arm!r} and {reference!r} were not compared"
        raise DataError(f"{what}; run both with one seed in common")
    interval, over = interval_of(row)
    over += ", one training each" if row["seeds"] == 1 else ""
    low, high = interval.low, interval.high
    numbers = f"{interval.estimate:+.3f} (95 % CI {low:+.3f} to {high:+.3f}, {over})"
    first, second = LABELS[arm], LABELS[reference]
    side = "wider" if low > 0 else "narrower" if high < 0 else None
    if side is None:
        what = (
            "The 95 % CI includes zero, so the data do not show a difference in the gap over races"
        )
        return f"{what} between {first} and {second}: {numbers}."
    return f"The gap over races is {side} under {first} than under {second}: {numbers}."


def findings(differences: pd.DataFrame) -> list[str]:
    """Sentences on the gap over races in every comparison that the table holds: quality, the race
    requested, glaucoma, and what choosing sigma adds to the noise.
    """
    sentences = []
    for pair in (*COMPARED, REPAIRED):
        if race_difference(differences, MMD, NO_TASK, *pair) is not None:
            race = in_words(differences, RECOVERED, "race", *pair)
            sentences.append("**Quality.** " + in_words(differences, MMD, NO_TASK, *pair))
            sentences.append(f"**Requested race.** {race}")
    pairs = (("released", "random"), ("random", "plain"))
    chosen, noise = (race_difference(differences, MMD, NO_TASK, *pair) for pair in pairs)
    if chosen is not None:
        sentences.append("**Glaucoma.** " + in_words(differences, TO_REAL, "glaucoma", *pairs[0]))
    if chosen is not None and noise is not None:
        alone, added = interval_of(noise)[0], interval_of(chosen)[0]
        sentences.append(
            f"**Optimiser or noise.** The noise alone changes the gap over races in MMD by "
            f"{alone.estimate:+.2f}; the 95 % CI of what choosing its sigma adds is "
            f"{added.low:+.2f} to {added.high:+.2f}."
        )
    return sentences


def numbers_of(row: pd.Series, name: str) -> dict[str, float]:
    """Estimate and ends of a row of differences.csv, for prose: `name`, `name`_low, `name`_high."""
    return interval_of(row)[0].columns(name)


# ---- tables for readers


def chosen(table: pd.DataFrame, measure: str, task: str = NO_TASK) -> pd.DataFrame:
    """Rows of one measure over races."""
    return table[(table["measure"] == measure) & (table["task"] == task) & (table["by"] == "race")]


def race_points(values: pd.DataFrame, measure: str, task: str = NO_TASK) -> pd.DataFrame:
    """A measure of every arm and race with its interval over patients: columns arm, race,
    `POINTS`.
    """
    part = chosen(values, measure, task)
    names = {"group": "race", "subject_low": "value_low", "subject_high": "value_high"}
    return part[part["group"].isin(RACES)].rename(columns=names)[["arm", "race", *POINTS]]


def difference_points(differences: pd.DataFrame, measure: str, task: str = NO_TASK) -> pd.DataFrame:
    """The gap over races of an arm less that of its reference, with an interval over patients and,
    of several seeds, one over these: columns comparison, interval, `POINTS`.
    """
    pairs = [("released", "plain"), ("repaired", "plain"), *PAIRS[:3]]
    rows = []
    for pair in (*pairs, *((arm, "plain") for arm in ("inverse", "dro", "balanced", EVERYONE))):
        row = race_difference(differences, measure, task, *pair)
        if row is not None:
            for end, interval in {"subject": "over patients", "seed": "over seeds"}.items():
                ends = row[[f"{end}_low", f"{end}_high"]]
                compared = " less ".join(LABELS[name] for name in pair)
                rows.append((compared, interval, row["difference"], *ends))
    table = pd.DataFrame(rows, columns=["comparison", "interval", *POINTS])
    return table.dropna(subset=["value_low"], ignore_index=True)


def by_race(differences: pd.DataFrame, measure: str, task: str = NO_TASK) -> pd.DataFrame:
    """What an arm changes in each race by itself, in words: arm, less that of, and a column a race,
    with intervals as `interval_of` gives them.
    """
    rows = []
    for pair in (*COMPARED, REPAIRED):
        races = [race_difference(differences, measure, task, *pair, race) for race in RACES]
        if all(row is not None for row in races):
            ends = [interval_of(row)[0] for row in races]
            words = [f"{e.estimate:+.2f} ({e.low:+.2f}\u00a0to\u00a0{e.high:+.2f})" for e in ends]
            rows.append((*(LABELS[name] for name in pair), *words))
    return pd.DataFrame(rows, columns=["arm", "less that of", *RACES])


def arm_table(values: pd.DataFrame) -> pd.DataFrame:
    """One row an arm: error of the ratio (all, worst race), images without a disc, MMD (mean over
    races, gap), and the AUC for glaucoma of a classifier trained on the images (all, equity-scaled
    over race, gap), and of one trained on real patients.
    """
    columns = {
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
    indexed = values.set_index(["arm", "measure", "task", "by", "group"])["value"]
    rows = [
        {"arm": arm, **{name: indexed.get((arm, *key), np.nan) for name, key in columns.items()}}
        for arm in dict.fromkeys(values["arm"])
    ]
    return pd.DataFrame(rows)
