"""All figures of one arm and seed, as observed and in every bootstrap draw of the people.

    cdr error               mean absolute difference of the measured cup-to-disc ratio from that of
    the words of the prompt no disc                 share of pictures in which no disc with a cup
    was found (they have no error, and are counted here) mmd                     distance to real
    unseen pictures of the same race; of all: the mean over races auc, generated to real  of a
    classifier trained on the pictures, tried on real unseen people auc, real to generated  of one
    trained on real people, tried on the pictures asked found             share of pictures in which
    the reader of real pictures reads what was asked ... of real             the same divided by the
    share among the asked people's own pictures

Each for all, for every race, sex and ethnicity, and as `gap` (highest less lowest) and `worst` of
an attribute; AUC also `equity-scaled` (see `measures.equity`). The gap of noisy values is above
zero without any difference, in all arms alike. The draws are the same for all arms and seeds, so a
difference of draws is a paired draw of the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fairlib.cohorts.attributes import ATTRIBUTES, RACES
from fairlib.measures.equity import class_counts
from fairlib.measures.intervals import pair_table, weighted_auc
from studies.fundus.judges import stacked
from studies.fundus.settings import HEADS, TASKS

ALL, GAP, WORST, SCALED = "all", "gap", "worst", "equity-scaled"
NO_TASK = "-"
CDR, NO_DISC, MMD, TO_REAL, TO_GENERATED, FOUND, OF_REAL = (
    "cdr error",
    "no disc",
    "mmd",
    "auc, generated to real",
    "auc, real to generated",
    "asked found",
    "asked found, of real",
)
LOWER_IS_BETTER = (CDR, NO_DISC, MMD)
ASKED = ("race", "sex", "ethnicity", "glaucoma", "cdr_status")
INDEX = ["measure", "task", "by", "group"]


@dataclass(frozen=True, eq=False)
class People:
    """asked, reference: tables of people (attributes, and of the asked `asked_cdr`, all missing
    where there is no law);

    times_asked, times_reference: [1 + R, N] draws of them, see `distances.times`; n_min: see
    `settings.FundusStudy`.
    """

    asked: pd.DataFrame
    reference: pd.DataFrame
    times_asked: np.ndarray
    times_reference: np.ndarray
    n_min: int = 10


@dataclass(frozen=True, eq=False)
class Figures:
    """index: one row a figure, columns `INDEX`; draws [1 + R, K]: as observed, then one row a draw
    of people.
    """

    index: pd.DataFrame
    draws: np.ndarray


def figures_of(
    people: People,
    readings: pd.DataFrame,
    answers: pd.DataFrame,
    distances: pd.DataFrame,
    real: pd.DataFrame | None = None,
) -> Figures:
    """The figures of one arm and seed.

    readings: one row an asked person, with what was found in the picture (`judges.readings`) and
    what a classifier trained on real people says of it (`semantics.answers`, columns s_...).
    answers: the same of a classifier trained on these pictures, one row a reference person.
    distances: see `distances.race_distances`. real: readings of the asked people's own pictures.
    """
    found = [*_cups(people, readings), *_distances(distances)]
    for name, table, said, drawn in (
        (TO_REAL, people.reference, answers, people.times_reference),
        (TO_GENERATED, people.asked, readings, people.times_asked),
    ):
        for task, values in TASKS.items():
            label = pd.Index(list(values)).get_indexer(table[task].astype(object))
            found += _areas(
                name, task, table, label, stacked(said, "s", task, values), drawn, people.n_min
            )
    found += _recovered(people, readings, real)
    index = pd.DataFrame([key for key, _ in found], columns=INDEX)
    return Figures(index, np.stack([values for _, values in found], axis=1))


def excluded(people: People) -> pd.DataFrame:
    """Groups that are too small for an AUC: measure, task, by, group, the number of people of each
    value, and the reason.
    """
    rows = []
    for name, table in ((TO_REAL, people.reference), (TO_GENERATED, people.asked)):
        for task, values in TASKS.items():
            label = pd.Index(list(values)).get_indexer(table[task].astype(object))
            for by in ATTRIBUTES:
                counts = class_counts(
                    label, table[by].astype(str), np.arange(len(table)), len(values)
                )
                for group, row in counts[counts.min(axis=1) < people.n_min].iterrows():
                    rows.append(
                        {
                            "measure": name,
                            "task": task,
                            "by": by,
                            "group": group,
                            "people": " ".join(map(str, row)),
                            "reason": f"fewer than {people.n_min} of a class",
                        }
                    )
    return pd.DataFrame(rows, columns=[*INDEX, "people", "reason"])


def _cups(people: People, readings: pd.DataFrame) -> list:
    seen = readings["found"].to_numpy(bool)
    rows = _means(
        NO_DISC,
        NO_TASK,
        people.asked,
        (~seen).astype(float),
        np.ones(len(seen), bool),
        people.times_asked,
    )
    wanted = people.asked["asked_cdr"].to_numpy(float)
    if np.isnan(wanted).any():  # a real cohort has no law that says what the words mean in numbers
        return rows
    error = np.abs(np.where(seen, readings["cdr"].to_numpy(float), 0) - wanted)
    return [*_means(CDR, NO_TASK, people.asked, error, seen, people.times_asked), *rows]


def _recovered(people: People, readings: pd.DataFrame, real: pd.DataFrame | None) -> list:
    rows, everybody = [], np.ones(len(readings), bool)
    for name in ASKED:
        wanted = people.asked[name].astype(str).to_numpy()
        own = _means(
            FOUND, name, people.asked, _right(readings, name, wanted), everybody, people.times_asked
        )
        rows += own
        if real is not None:
            floor = dict(
                _means(
                    FOUND,
                    name,
                    people.asked,
                    _right(real, name, wanted),
                    everybody,
                    people.times_asked,
                )
            )
            shares = [
                (key, values / floor[key])
                for key, values in own
                if key[3] not in (GAP, WORST) and floor[key].min() > 0
            ]
            rows += _with_ends([((OF_REAL, *key[1:]), values) for key, values in shares])
    return rows


def _right(readings: pd.DataFrame, name: str, wanted: np.ndarray) -> np.ndarray:
    read = np.array(HEADS[name])[stacked(readings, "p", name, HEADS[name]).argmax(1)]
    return (read == wanted).astype(float)


def _distances(table: pd.DataFrame) -> list:
    rows = [((MMD, NO_TASK, "race", race), table[race].to_numpy(float)) for race in RACES]
    return [
        ((MMD, NO_TASK, ALL, ALL), np.mean([values for _, values in rows], axis=0)),
        *_with_ends(rows),
    ]


def _means(
    measure: str,
    task: str,
    table: pd.DataFrame,
    values: np.ndarray,
    known: np.ndarray,
    times: np.ndarray,
) -> list:
    """Means over the rows that are `known`, of all and of each group that has one."""

    def mean(mask: np.ndarray) -> np.ndarray:
        total = times[:, mask].sum(1, dtype=float)
        return times[:, mask].astype(float) @ values[mask] / np.where(total > 0, total, np.nan)

    rows = [((measure, task, ALL, ALL), mean(known))] if known.any() else []
    for by, names in ATTRIBUTES.items():
        masks = {name: known & (table[by] == name).to_numpy() for name in names}
        rows += [
            ((measure, task, by, name), mean(mask)) for name, mask in masks.items() if mask.any()
        ]
    return _with_ends(rows)


def _areas(
    measure: str,
    task: str,
    table: pd.DataFrame,
    label: np.ndarray,
    score: np.ndarray,
    times: np.ndarray,
    n_min: int,
) -> list:
    """AUC of all and of each group that is large enough; of more than two classes the mean of each
    against the rest.
    """
    classes = score.shape[1]

    def area(mask: np.ndarray) -> np.ndarray:
        parts = []
        for code in range(1, classes) if classes == 2 else range(classes):
            ill, rest = (
                np.flatnonzero(mask & (label == code)),
                np.flatnonzero(mask & (label != code)),
            )
            # a draw may lack a class; that draw is missing then
            with np.errstate(invalid="ignore", divide="ignore"):
                parts.append(
                    weighted_auc(
                        pair_table(score[ill, code], score[rest, code]),
                        times[:, ill],
                        times[:, rest],
                    )
                )
        return np.mean(parts, axis=0)

    whole = area(np.ones(len(label), bool))
    rows = []
    for by in ATTRIBUTES:
        counts = class_counts(label, table[by].astype(str), np.arange(len(table)), classes)
        large = counts.index[counts.min(axis=1) >= n_min]
        own = [
            ((measure, task, by, str(name)), area((table[by] == name).to_numpy())) for name in large
        ]
        rows += own
        if len(own) > 1:
            apart = np.abs(np.stack([values for _, values in own]) - whole).sum(0)
            rows.append(((measure, task, by, SCALED), whole / (1 + apart)))
    return [((measure, task, ALL, ALL), whole), *_with_ends(rows)]


def _with_ends(rows: list) -> list:
    """The rows and, for each attribute with two groups or more, its gap and its worst group."""
    found = list(rows)
    for by in ATTRIBUTES:
        own = [(key, values) for key, values in rows if key[2] == by and key[3] != SCALED]
        if len(own) > 1:
            (measure, task, *_), values = own[0][0], np.stack([values for _, values in own])
            worst = values.max(0) if measure in LOWER_IS_BETTER else values.min(0)
            found += [
                ((measure, task, by, GAP), values.max(0) - values.min(0)),
                ((measure, task, by, WORST), worst),
            ]
    return found
