"""Cells of a release's table as the words and numbers of a cohort: missing stays missing, a strange
word is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fairlib.errors import DataError

MISSING = {"", "-", "-1", "na", "n/a", "nan", "none", "unknown"}


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
        raise DataError(
            f"{where}: {column} is {text!r}; expected one of {', '.join(words)}, or an empty cell; "
            "correct the table"
        )
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
        raise DataError(
            f"{where}: {column} is {text!r}, not a number; correct the table or leave the cell "
            "empty"
        ) from error
    if not low <= value <= high:  # also NaN and infinity
        raise DataError(
            f"{where}: {column} is {text}; expected {low:g} to {high:g}, or an empty cell; correct "
            "the table"
        )
    return value
