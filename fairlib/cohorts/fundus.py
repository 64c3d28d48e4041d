"""What every fundus cohort shares: the vocabularies of its attributes, the prompt, and groups as
integer codes.

Source: Luo et al., arXiv 2412.20374 (FairDiffusion), and its released code: prompt template, and
seven groups (3 race, 2 sex, 2 ethnicity) for the perturbation. The order of each vocabulary is that
of the codes in FairGenMed's npz files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fairlib.errors import DataError, SettingsError
from fairlib.settings import unknown_key

RACES = ("Asian", "Black", "White")
SEXES = ("F", "M")
ETHNICITIES = ("Non-Hispanic", "Hispanic")
GLAUCOMA = ("non-glaucoma", "glaucoma")
SEVERITIES = ("normal", "mild", "moderate", "severe")
CDR_STATUSES = ("normal", "borderline", "abnormal")
RNFLT_STATUSES = ("low", "medium", "high")
REFRACTIONS = ("hyperopia", "emmetropia", "myopia")
USES = ("training", "validation", "test")
CDR_EDGES = (0.5, 0.7)  # ours: the release gives the status only

ATTRIBUTES = {"race": RACES, "sex": SEXES, "ethnicity": ETHNICITIES}
CONDITIONS = {
    "glaucoma": GLAUCOMA,
    "md_severity": SEVERITIES,
    "cdr_status": CDR_STATUSES,
    "refraction": REFRACTIONS,
}
PROMPTED = ATTRIBUTES | CONDITIONS  # what a prompt states, in its order

SEX_WORDS = {"F": "Female", "M": "Male"}
VISION = {
    "normal": "normal vision",
    **{degree: f"{degree} vision loss" for degree in SEVERITIES[1:]},
}
TEMPLATE = re.compile(
    r"SLO fundus image of a (\S+) (\S+) (\S+) patient with the following conditions: "
    r"([^,]+), ([^,]+), ([^,]+) cup-disc ratio, ([^,]+)"
)
EXAMPLE = (
    "SLO fundus image of a Black Female Non-Hispanic patient with the following conditions: "
    "glaucoma, "
    "mild vision loss, abnormal cup-disc ratio, myopia"
)


def cdr_status(cdr: float) -> str:
    """ "normal" (a vertical cup-to-disc ratio below 0.5), "borderline" (below 0.7) or "abnormal".

    The edges are ours. Raises `DataError` when the ratio is missing or not between 0 and 1.
    """
    if not 0 <= cdr <= 1:  # also NaN
        raise DataError(
            f"cup-to-disc ratio {cdr}: expected a number between 0 and 1; leave pictures without "
            "one out"
        )
    return CDR_STATUSES[int(np.searchsorted(CDR_EDGES, cdr, side="right"))]


def prompt_of(row: Mapping) -> str:
    """The prompt of one row (mapping with race, sex, ethnicity, glaucoma, md_severity, cdr_status,
    refraction).

    For example "SLO fundus image of a Black Female Non-Hispanic patient with the following
    conditions: glaucoma, mild vision loss, abnormal cup-disc ratio, myopia". Raises `DataError`
    naming the attribute that is missing or unknown.
    """
    for name, known in PROMPTED.items():
        if name not in row:
            raise DataError(f"the row has no {name!r}; a prompt states {', '.join(PROMPTED)}")
        if pd.isna(row[name]) or row[name] not in known:
            raise DataError(
                f"{name} {row[name]!r}: the prompt knows {', '.join(known)}; leave rows without "
                "one out"
            )
    return (
        f"SLO fundus image of a {row['race']} {SEX_WORDS[row['sex']]} {row['ethnicity']} patient "
        "with the following "
        f"conditions: {row['glaucoma']}, {VISION[row['md_severity']]}, {row['cdr_status']} "
        "cup-disc ratio, "
        f"{row['refraction']}"
    )


def parse_prompt(text: str) -> dict[str, str]:
    """What a prompt states: race, sex ("F"/"M"), ethnicity, glaucoma, md_severity, cdr_status,
    refraction, in this order.

    Inverse of `prompt_of`. Raises `SettingsError` naming the words that are unknown, and the
    nearest known ones.
    """
    found = TEMPLATE.fullmatch(text.strip())
    if found is None:
        raise SettingsError(
            f"prompt {text!r} does not follow the template; write it as {EXAMPLE!r}"
        )
    row = dict(zip(PROMPTED, found.groups(), strict=True))
    for name, words in {"sex": SEX_WORDS, "md_severity": VISION}.items():
        row[name] = {word: value for value, word in words.items()}[
            _known(text, row[name], list(words.values()))
        ]
    for name, known in PROMPTED.items():
        _known(text, row[name], list(known))
    return row


def group_codes(
    table: pd.DataFrame, attributes: Mapping[str, Sequence[str]] = ATTRIBUTES
) -> np.ndarray:
    """The group of each row in each attribute: int64 [N, A], code = position in the attribute's
    vocabulary.

    `attributes`: column -> its known values, in the order of the codes. Raises `DataError` on a
    missing column, or a value that is missing or not in the vocabulary (naming the column, the
    value and the row).
    """
    return np.stack(
        [_codes(table, name, list(known)) for name, known in attributes.items()], axis=1
    )


def group_names(attributes: Mapping[str, Sequence[str]] = ATTRIBUTES) -> list[tuple[str, str]]:
    """(attribute, value) of every group, attribute after attribute: seven for FairGenMed."""
    return [(name, value) for name, known in attributes.items() for value in known]


def _codes(table: pd.DataFrame, name: str, known: list[str]) -> np.ndarray:
    if name not in table:
        raise DataError(f"no groups: {unknown_key(name, list(table.columns), 'the table')}")
    codes = pd.Index(known).get_indexer(table[name].astype("object")).astype(np.int64)
    odd = np.flatnonzero(codes < 0)
    if len(odd):
        raise DataError(
            f"{name} of row {odd[0]} is {table[name].iloc[odd[0]]!r} ({len(odd)} such rows of "
            f"{len(table)}); "
            f"a group is one of {', '.join(known)}; leave the others out"
        )
    return codes


def _known(text: str, part: str, known: list[str]) -> str:
    if part not in known:
        raise SettingsError(unknown_key(part, known, f"prompt {text!r}"))
    return part
