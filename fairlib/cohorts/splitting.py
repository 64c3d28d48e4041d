"""Split people, never slices: largest remainders within each stratum, in an order that only the
seed decides.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import pandas as pd

from fairlib.errors import DataError, SettingsError


def split_subjects(
    people: pd.DataFrame, fractions: dict[str, float], seed: int, stratify: Sequence[str]
) -> dict[str, str]:
    """Give each subject of `people` (columns `subject` and `stratify`) one of the parts named in
    `fractions`.

    Subjects are ordered by a hash of seed and id, so neither the order of rows nor the other people
    matter to it. Raises `SettingsError` on bad fractions, `DataError` naming a stratum with too few
    subjects.
    """
    _check_fractions(fractions)
    keys = people[list(stratify)].astype("string").fillna("unknown")
    # subjects so far minus quota: a tie goes to the part that is most behind
    given = dict.fromkeys(fractions, 0.0)
    part: dict[str, str] = {}
    for stratum, rows in people.groupby(
        [keys[name] for name in stratify] or (lambda _: "all"), sort=True
    ):
        subjects = sorted(rows["subject"], key=lambda subject: _order(seed, subject))
        counts = allot(len(subjects), fractions, given)
        if counts is None:
            raise DataError(_too_few(stratify, stratum, subjects, fractions))
        for name, count in counts.items():
            given[name] += count - fractions[name] * len(subjects)
            part.update(dict.fromkeys(subjects[:count], name))
            subjects = subjects[count:]
    return part


def allot(n: int, fractions: dict[str, float], ahead: dict[str, float]) -> dict[str, int] | None:
    """Whole numbers that sum to `n`, each at least 1 and within one of its fraction of `n`; None
    when there are none.

    Largest remainder; ties go to the part least `ahead`. A part left with nothing takes one from
    the part most over.
    """
    quota = {name: fraction * n for name, fraction in fractions.items()}
    counts = {name: math.floor(value + 1e-9) for name, value in quota.items()}
    need = sorted(
        quota, key=lambda name: (round(counts[name] - quota[name], 9), round(ahead[name], 9))
    )
    for name in need[: n - sum(counts.values())]:
        counts[name] += 1
    for name in counts:
        if counts[name] == 0:
            giver = max(
                counts,
                key=lambda other: counts[other] - quota[other] if counts[other] > 1 else -math.inf,
            )
            if counts[giver] < 2 or quota[giver] - (counts[giver] - 1) > 1 + 1e-9:
                return None
            counts[giver] -= 1
            counts[name] = 1
    return counts


def _check_fractions(fractions: dict[str, float]) -> None:
    total = sum(fractions.values())
    if not fractions or min(fractions.values()) <= 0 or abs(total - 1) > 1e-6:
        raise SettingsError(
            f"split fractions {fractions} sum to {total:g}; give each part more than 0 and 1 in all"
        )


def _order(seed: int, subject: str) -> bytes:
    return hashlib.sha256(f"{seed}:{subject}".encode()).digest()


def _too_few(
    stratify: Sequence[str], stratum, subjects: list[str], fractions: dict[str, float]
) -> str:
    name = (
        ", ".join(f"{column}={value}" for column, value in zip(stratify, stratum, strict=True))
        if stratify
        else "the cohort"
    )
    return (
        f"{name}: {len(subjects)} subject(s) ({', '.join(subjects[:5])}) cannot give each of "
        f"{list(fractions)} one; "
        "use fewer parts, stratify by less, or leave the subgroup out (with_known_sex() drops "
        "those without a sex)"
    )
