"""Small text tables, read strictly: rows as long as the header, every needed column there, no id
twice. Missing cells stay missing, and an unknown word is an error.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from fairlib.errors import DataError
from fairlib.settings import unknown_key

MISSING = {"", "-", "-1", "na", "n/a", "nan", "none", "unknown"}
TAKE_AGAIN = "take the file from its release again"


def read_text(path: str | Path) -> str:
    """Read UTF-8 text (a byte-order mark is dropped) with plain newlines.

    Raises `DataError` naming the file.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read().replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as UTF-8 text ({error}); check the path"
        ) from error


def read_rows(path: str | Path, delimiter: str = ",") -> list[list[str]]:
    """Read header and body as stripped cells; tab-separated files know no quotes.

    Raises `DataError` on a ragged row, and on a file without any.
    """
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    try:
        read = list(csv.reader(io.StringIO(read_text(path)), delimiter=delimiter, quoting=quoting))
    except csv.Error as error:
        raise DataError(f"{path}: is not a table ({error}); {TAKE_AGAIN}") from error
    rows = [[cell.strip() for cell in row] for row in read if any(cell.strip() for cell in row)]
    if not rows:
        raise DataError(f"{path}: is empty; {TAKE_AGAIN}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            counts = f"{len(row)} cells, the header {len(rows[0])}"
            raise DataError(f"{path}: row {number} has {counts}; {TAKE_AGAIN}")
    return rows


def column(path: str | Path, header: Sequence[str], name: str) -> int:
    """The position of a column.

    Raises `DataError` naming the file, the column and the nearest one it has.
    """
    if name not in header:
        near = unknown_key(name, list(header), "its header")
        raise DataError(f"{path}: has no column {name!r}; {near}")
    return header.index(name)


def named_cells(
    path: str | Path, rows: Sequence[Sequence[str]], columns: Mapping[str, str]
) -> list[dict[str, str]]:
    """The body of a table as one mapping a row, by `columns` (our name -> the table's heading).

    rows: header and body, as `read_rows` returns them. Raises `DataError` on a missing column.
    """
    places = {name: column(path, rows[0], heading) for name, heading in columns.items()}
    return [{name: row[place] for name, place in places.items()} for row in rows[1:]]


def refuse_twice(path: str | Path, ids: Iterable[str]) -> None:
    """Raise `DataError` naming the first id that stands twice."""
    keys = pd.Series(list(ids), dtype="object")
    twice = keys[keys.duplicated()]
    if len(twice):
        raise DataError(f"{path}: id {twice.iloc[0]!r} stands twice; keep one row per id")


def read_truth(
    path: Path, key: str, ids: Iterable[str], needed: Sequence[str] = ()
) -> pd.DataFrame:
    """Read what a phantom knows of its images: one row for each of `ids`, all columns "string".

    The column `key` holds the ids; an id that the file does not name, an empty cell and NA are
    missing. Raises `DataError` on a missing column of `needed`, or an id that stands twice.
    """
    rows = read_rows(path)
    for name in (key, *needed):
        column(path, rows[0], name)
    truth = pd.DataFrame(rows[1:], columns=rows[0], dtype="string")
    refuse_twice(path, truth[key])
    return truth.replace({"": pd.NA, "NA": pd.NA}).set_index(key).reindex(list(ids))


def typed(
    rows: Sequence[Mapping], numbers: Sequence[str] = (), whole: Sequence[str] = ()
) -> pd.DataFrame:
    """A cohort's table, one mapping a row: `numbers` as float, `whole` as int, all other columns as
    "string".
    """
    table = pd.DataFrame(list(rows))
    kinds = dict.fromkeys(table, "string") | dict.fromkeys(numbers, float)
    return table.astype(kinds | dict.fromkeys(whole, int))


def itself(words: Sequence[str]) -> dict[str, str]:
    """Words in lower case -> the words, for `word_of`."""
    return {word.lower(): word for word in words}


def is_missing(text: str) -> bool:
    """Whether a cell is empty or one of the usual marks for a missing value (NA, unknown, -1,
    ...).
    """
    return text.strip().lower() in MISSING


def word_of(where: str, column: str, text: str, words: Mapping[str, str]) -> str | None:
    """The cohort's word for a cell, whatever its case; None when it is missing.

    `words`: the release's word in lower case -> ours. Raises `DataError` naming the place, the
    column and the known words.
    """
    if is_missing(text):
        return None
    if text.strip().lower() not in words:
        expected = f"one of {', '.join(words)}, or an empty cell; correct the table"
        raise DataError(f"{where}: {column} is {text!r}; expected {expected}")
    return words[text.strip().lower()]


def number_of(where: str, column: str, text: str, low: float, high: float) -> float:
    """The number in a cell, NaN when it is missing (-1 counts as missing only where `low` is above
    it).

    Raises `DataError` when the cell holds no number, or one outside [low, high].
    """
    if is_missing(text) and (text.strip() != "-1" or low > -1):
        return np.nan
    try:
        value = float(text)
    except ValueError as error:
        remedy = "correct the table or leave the cell empty"
        raise DataError(f"{where}: {column} is {text!r}, not a number; {remedy}") from error
    if not low <= value <= high:  # also NaN and infinity
        expected = f"{low:g} to {high:g}, or an empty cell; correct the table"
        raise DataError(f"{where}: {column} is {text}; expected {expected}")
    return value
