"""Attributes of subjects that several data sets share: their vocabularies, prompts that state them,
and groups as integer codes.

The order of each vocabulary is that of the codes in FairGenMed's npz files. Source of the seven
groups (3 race, 2 sex, 2 ethnicity): Luo et al., arXiv 2412.20374 (FairDiffusion).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fairlib.errors import DataError, SettingsError
from fairlib.settings import unknown_key

SEXES = ("F", "M")
SEX_WORDS = {"F": "Female", "M": "Male"}
SEX_CELLS = {"female": "F", "male": "M"}  # of a release's table, in lower case
RACES = ("Asian", "Black", "White")
ETHNICITIES = ("Non-Hispanic", "Hispanic")
ATTRIBUTES = {"race": RACES, "sex": SEXES, "ethnicity": ETHNICITIES}


def require_words(row: Mapping, vocabularies: Mapping[str, Sequence[str]]) -> None:
    """Raise `DataError` unless a row states each of the attributes of a prompt in a word of its
    vocabulary.
    """
    for name, words in vocabularies.items():
        if name not in row:
            raise DataError(f"the row has no {name!r}; a prompt states {', '.join(vocabularies)}")
        if pd.isna(row[name]) or row[name] not in words:
            known = f"the prompt knows {', '.join(words)}"
            raise DataError(f"{name} {row[name]!r}: {known}; leave rows without one out")


def known_word(prompt: str, word: str, words: Sequence[str]) -> str:
    """`word`, a part of `prompt`, where it is one of `words`.

    Raises `SettingsError` naming the nearest one where it is not.
    """
    if word not in words:
        raise SettingsError(unknown_key(word, list(words), f"prompt {prompt!r}"))
    return word


def group_codes(
    table: pd.DataFrame, attributes: Mapping[str, Sequence[str]] = ATTRIBUTES
) -> np.ndarray:
    """The group of each row in each attribute: int64 [N, A], code = position in the attribute's
    vocabulary.

    `attributes`: column -> its known values, in the order of the codes. Raises `DataError` on a
    missing column, or a value that is missing or not in the vocabulary (naming the column, the
    value and the row).
    """
    return np.stack([_codes(table, name, words) for name, words in attributes.items()], axis=1)


def group_names(attributes: Mapping[str, Sequence[str]] = ATTRIBUTES) -> list[tuple[str, str]]:
    """(attribute, value) of every group, attribute after attribute: seven for FairGenMed."""
    return [(name, value) for name, words in attributes.items() for value in words]


def _codes(table: pd.DataFrame, name: str, words: Sequence[str]) -> np.ndarray:
    if name not in table:
        raise DataError(f"no groups: {unknown_key(name, list(table.columns), 'the table')}")
    codes = pd.Index(list(words)).get_indexer(table[name].astype("object")).astype(np.int64)
    unknown = np.flatnonzero(codes < 0)
    if len(unknown):
        first = f"{name} of row {unknown[0]} is {table[name].iloc[unknown[0]]!r}"
        raise DataError(
            f"{first} ({len(unknown)} such rows of {len(table)}); a group is one of "
            f"{', '.join(words)}; leave the others out"
        )
    return codes
