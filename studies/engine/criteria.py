"""A criterion: what was fixed beforehand as success, the rule by which a figure meets it, and the
one table of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairlib.io import read_json
from fairlib.measures.intervals import Interval
from studies.engine.study import S, Study, Tables, load_results, settings_of


class Rule(Enum):
    """How an estimate and its 95 % interval meet a bound."""

    AT_MOST = "estimate at most"
    AT_LEAST = "estimate at least"
    WHOLE_AT_MOST = "whole interval at most"
    WHOLE_AT_LEAST = "whole interval at least"
    NOT_ABOVE = "interval not wholly above"
    BETWEEN = "estimate between"
    NONE = "no criterion"

    def met(self, value: Interval, bound: float, upper: float = np.nan) -> bool | None:
        """Whether `value` meets `bound` (BETWEEN: `bound` and `upper`); None where there is no
        criterion.
        """
        if np.isnan(bound):
            return None
        return {
            Rule.AT_MOST: value.estimate <= bound,
            Rule.AT_LEAST: value.estimate >= bound,
            Rule.WHOLE_AT_MOST: value.high <= bound,
            Rule.WHOLE_AT_LEAST: value.low >= bound,
            Rule.NOT_ABOVE: value.low <= bound,
            Rule.BETWEEN: bound <= value.estimate <= upper,
            Rule.NONE: None,
        }[self]


@dataclass(frozen=True)
class Criterion:
    """A figure, and what it has to reach.

    metric_id: its name in code. figure: its name in tables, in the field's words, with its unit;
    `{...}` is filled in.
    bound: what it is held to; upper: the higher end of a rule that has two. decimals: of its
    numbers in a table.
    """

    metric_id: str
    figure: str
    bound: float = np.nan
    rule: Rule = Rule.NONE
    decimals: int = 3
    upper: float = np.nan

    def row(
        self,
        arm: str,
        evaluator: str,
        value: Interval,
        n: int,
        floor: float = np.nan,
        compared: bool = False,
        **words: object,
    ) -> dict:
        """One row, columns `COLUMNS`. compared: the figure of an arm that the criterion does not
        bind. floor: what a perfect model would read.
        """
        bound, rule = (np.nan, Rule.NONE) if compared else (self.bound, self.rule)
        return {
            "metric_id": self.metric_id,
            "figure": self.figure.format(**words),
            "arm": arm,
            "evaluator": evaluator,
            "estimate": value.estimate,
            "low": value.low,
            "high": value.high,
            "floor": floor,
            "criterion": bound,
            "upper": np.nan if compared else self.upper,
            "rule": rule.value,
            "met": rule.met(value, bound, self.upper),
            "n": n,
            "decimals": self.decimals,
        }


def as_interval(row: Any, ends: Sequence[str]) -> Interval:
    """Three columns of a row as an interval."""
    return Interval(*(float(row[name]) for name in ends))


def first_row(table: pd.DataFrame, **where: Any) -> pd.Series | None:
    """The first row in which columns have these values; None where none has."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table.iloc[0] if len(table) else None


def interval_at(table: pd.DataFrame, ends: Sequence[str], **where: Any) -> Interval | None:
    """The interval of `first_row`; None where there is none."""
    row = first_row(table, **where)
    return None if row is None else as_interval(row, ends)


COLUMNS = tuple(Criterion("", "").row("", "", Interval(np.nan, np.nan, np.nan), 0))


def criteria_table(rows: list[dict]) -> pd.DataFrame:
    """The rows as a table, columns `COLUMNS`."""
    return pd.DataFrame(rows, columns=list(COLUMNS))


def formatted(table: pd.DataFrame) -> pd.DataFrame:
    """The table for readers, in words: estimate with its interval, criterion with its rule."""
    rows = [
        {
            "figure": row.figure,
            "arm": row.arm,
            "evaluator": row.evaluator,
            "estimate (95 % CI)": _interval(row),
            "floor": _number(row.floor, row.decimals),
            "criterion": _bound(row),
            "met": {True: "yes", False: "no"}.get(row.met, "–"),
            "n": f"{row.n:,}",
        }
        for row in table.itertuples()
    ]
    return pd.DataFrame(rows)


def _number(value: float, decimals: int) -> str:
    return "–" if np.isnan(value) else f"{value:.{decimals}f}"


def _interval(row) -> str:
    low, high = _number(row.low, row.decimals), _number(row.high, row.decimals)
    text, least = _number(row.estimate, row.decimals), 10.0**-row.decimals
    if "p value" in row.figure and row.estimate < least:
        return f"< {least:.{row.decimals}f}"
    return text if low == high == text or "–" in (low, high) else f"{text} ({low} to {high})"


def _bound(row) -> str:
    if np.isnan(row.criterion):
        return "–"
    upper = "" if np.isnan(row.upper) else f" and {row.upper:.{row.decimals}f}"
    return f"{row.rule} {row.criterion:.{row.decimals}f}{upper}"


# ---- of the long runs


def criteria_of(study: Study[S], folder: str | Path | None = None) -> pd.DataFrame:
    """The figures of a long run with their criteria, columns of `studies.engine.criteria`; in its
    `attrs["outdated"]` the rows behind them that other code made (see `outdated`).

    Raises `DataError` when there are no results.
    """
    folder = Path(folder or study.results())
    table = criteria_table(study.criteria(load_results(study, folder), settings_of(study, folder)))
    table.attrs["outdated"] = outdated(folder)
    return table


def reports(studies: Iterable[Study[Any]]) -> Tables:
    """Criteria of every folder of results, by its name: of each study the main one first."""
    found = {}
    for study in studies:
        main = study.results()
        beside = sorted(path.parent for path in main.parent.glob(f"{main.name}-*/study.json"))
        for folder in [main, *beside]:
            if (folder / "study.json").is_file():
                found[folder.name] = criteria_of(study, folder)
    return found


def outdated(folder: Path) -> dict[str, list[int]]:
    """Arms and seeds of a long run whose rows come from other code than its latest rows, or from
    code that nobody noted; none where the whole folder is older than such notes.
    """
    record = read_json(folder / "study.json")
    rows, latest = record.get("rows", {}), record.get("latest", {})
    found: dict[str, list[int]] = {}
    for arm, seeds in record["runs"].items() if rows else ():
        for seed in seeds:
            codes = {row["code"] for row in rows.get(arm, {}).get(str(seed), [{"code": None}])}
            if codes != {latest.get(arm)}:
                found.setdefault(arm, []).append(seed)
    return found
