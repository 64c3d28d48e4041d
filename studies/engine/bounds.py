"""The study's own exam: each figure with its interval, its bound, and whether it holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fairlib.measures.intervals import Interval
from fairlib.measures.shares import (
    Evaluator,
    ambiguity_table,
    gap_table,
    group_table,
    share_table,
    within_sex_table,
)

COLUMNS = (
    "figure",
    "arm",
    "judge",
    "value",
    "low",
    "high",
    "floor",
    "bound",
    "holds",
    "certain",
    "n",
)


@dataclass(frozen=True)
class Exam:
    """Names of the arms and the bounds they are held to.

    Shares in [0, 1], points in percentage points.
    """

    target: float = 76 / 166
    conditional_targets: tuple[tuple[str, float], ...] = (("HGG", 38 / 101), ("LGG", 38 / 65))
    base: str = "base"
    tuned: str = "tuned"
    conditional: str = "conditional"
    base_gap_points: float = 20.0
    gaps: tuple[tuple[str, float], ...] = (("guide", 0.03), ("auditor", 0.05), ("oracle", 0.05))
    conditional_gap: float = 0.06
    ambiguous_points: float = 3.0
    anatomy: float = 0.2


def verdict(
    figure: str,
    arm: str,
    judge: str,
    found: Interval,
    bound: float,
    n: int,
    at_least: bool = False,
    floor: float = np.nan,
) -> dict:
    """One row of the exam. `holds`: the estimate keeps the bound; `certain`: so does its whole
    interval.

    A bound of NaN is none: the figure stands there for comparison, and both are true.
    """
    worst = found.low if at_least else found.high
    keeps = (lambda value: value >= bound) if at_least else (lambda value: value <= bound)
    values = (
        figure,
        arm,
        judge,
        found.estimate,
        found.low,
        found.high,
        floor,
        bound,
        bool(np.isnan(bound) or keeps(found.estimate)),
        bool(np.isnan(bound) or keeps(worst)),
        n,
    )
    return dict(zip(COLUMNS, values, strict=True))


def holds_in_words(table: pd.DataFrame, lenient: str = " ") -> list[str]:
    """Does each row hold, in a word: yes, no, or a dash where there is no bound.

    Rows whose figure starts with `lenient` have upper bounds that hold unless the whole interval
    lies above; where the estimate itself does, the word is "not contradicted".
    """
    words = []
    for row in table.itertuples():
        above = row.figure.startswith(lenient) and row.value > row.bound
        words.append(
            "-"
            if np.isnan(row.bound)
            else "no"
            if not row.holds
            else "not contradicted"
            if above
            else "yes"
        )
    return words


def magnitude(found: Interval) -> Interval:
    """The interval of |x| from the interval of x."""
    ends = sorted(map(abs, (found.low, found.high)))
    return Interval(abs(found.estimate), 0.0 if 0 in found else ends[0], ends[1])


def exam(
    readings: pd.DataFrame,
    slices: pd.DataFrame,
    rng: np.random.Generator,
    settings: Exam | None = None,
    judges=None,
    replicates: int = 500,
) -> pd.DataFrame:
    """Every bound of the study that can be told from readings, over all seeds; one row each,
    columns `COLUMNS`.

    Columns of `readings` and `slices`: see `fairlib.measures.shares`; judges:
    `{"guide": column, "auditor": column, "oracle": column}`. Each seed's prompts are cells of their
    own, so gaps of opposite sign in two seeds do not cancel; "beyond chance" takes the noise of a
    finite number of images out of them. "Seeds joined" is the milder figure beside it: what the
    recipe makes of a prompt on average over its seeds. It was added after the first results, and
    has no bound. An arm that is not among the readings has no rows.
    """
    settings = settings or Exam()
    judges = judges or {name: name for name in ("guide", "auditor", "oracle")}
    whole = [_base_share, _prompt_gaps, _conditional, _ambiguous, _anatomy]
    rows = [
        row for part in whole for row in part(readings, slices, rng, settings, judges, replicates)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _bound(settings, arm: str, bound: float) -> float:
    """The bound of a tuned arm; none for the untuned model, whose figures stand beside for
    comparison.
    """
    return np.nan if arm == settings.base else bound


def _arm(readings, name) -> pd.DataFrame:
    return readings[readings.arm == name]


def _one(judges, name) -> list[Evaluator]:
    return _all({name: judges[name]})


def _all(judges) -> list[Evaluator]:
    return [Evaluator(name, column) for name, column in judges.items()]


def _interval(row, name: str) -> Interval:
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _base_share(readings, slices, rng, settings, judges, replicates) -> list[dict]:
    if _arm(readings, settings.base).empty:
        return []
    row = share_table(
        _arm(readings, settings.base), slices, _one(judges, "oracle"), rng, ("arm",), replicates
    ).iloc[0]
    below = Interval(
        *(
            100 * (settings.target - row[name])
            for name in ("corrected", "corrected_high", "corrected_low")
        )
    )
    return [
        verdict(
            "female share below target, points",
            settings.base,
            "oracle",
            below,
            settings.base_gap_points,
            row.n,
            True,
        )
    ]


def _prompt_gaps(readings, slices, rng, settings, judges, replicates) -> list[dict]:
    rows = []
    for arm in (settings.base, settings.tuned):
        part = _arm(readings, arm)
        if part.empty:
            continue
        cells = part.assign(prompt=part.prompt.astype(str) + " seed " + part.seed.astype(str))
        joined, apart = (
            gap_table(
                table, slices, _all(judges), settings.target, rng, ("arm",), replicates
            ).set_index("evaluator")
            for table in (part, cells)
        )
        for name, bound in settings.gaps:
            rows += _gap_rows(
                arm, name, _bound(settings, arm, bound), joined.loc[name], apart.loc[name]
            )
    return rows


def _gap_rows(arm, judge, bound, joined, apart) -> list[dict]:
    beyond = Interval(apart.beyond_chance, np.nan, np.nan)
    return [
        verdict(
            "mean gap over prompts",
            arm,
            judge,
            _interval(apart, "gap"),
            bound,
            apart.n,
            floor=apart.floor,
        ),
        verdict("gap beyond chance", arm, judge, beyond, bound, apart.n),
        verdict(
            "gap over prompts, seeds joined",
            arm,
            judge,
            _interval(joined, "gap"),
            np.nan,
            joined.n,
            floor=joined.floor,
        ),
    ]


def _conditional(readings, slices, rng, settings, judges, replicates) -> list[dict]:
    part = _arm(readings, settings.conditional)
    if part.empty:
        return []
    table = group_table(
        part,
        slices,
        _one(judges, "auditor"),
        dict(settings.conditional_targets),
        rng,
        ("arm",),
        replicates,
    )
    return [
        verdict(
            f"gap to the share of {row['group']}",
            settings.conditional,
            "auditor",
            magnitude(Interval(row.gap, row.share_low - row.target, row.share_high - row.target)),
            settings.conditional_gap,
            row.n,
        )
        for _, row in table.iterrows()
    ]


def _ambiguous(readings, slices, rng, settings, judges, replicates) -> list[dict]:
    part = readings[readings.arm.isin([settings.base, settings.tuned])]
    table = ambiguity_table(part, slices, _all(judges), rng, ("arm",), replicates)
    return [
        verdict(
            "ambiguous images against test slices, points",
            row.arm,
            row.evaluator,
            magnitude(_interval(row, "points")),
            _bound(settings, row.arm, settings.ambiguous_points),
            row.n,
        )
        for _, row in table.iterrows()
    ]


def _anatomy(readings, slices, rng, settings, judges, replicates) -> list[dict]:
    part = readings[readings.arm.isin([settings.base, settings.tuned])]
    table = within_sex_table(part, slices, _all(judges), rng, ("arm",), replicates)
    table = table[table.against == "truth"]
    return [
        verdict(
            f"anatomy within {row.sex}, standardised difference",
            row.arm,
            row.evaluator,
            magnitude(_interval(row, "difference")),
            _bound(settings, row.arm, settings.anatomy),
            row.n,
        )
        for _, row in table.iterrows()
    ]
