"""What a prompt asks for, in numbers: the cup-to-disc ratio that the phantom's law gives people of
these words.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd

from fairlib.cohorts.fairgenmed import CDR_EDGES, CDR_STATUSES
from fairlib.errors import DataError
from studies.fundus.rules import CDR_RANGE, CDR_SCATTER, expected_cdr

WORDS = ("glaucoma", "md_severity", "cdr_status")
"""The words of a prompt that the ratio depends on; race is not among them."""


@lru_cache(maxsize=64)
def asked_cdr(glaucoma: str, md_severity: str, cdr_status: str) -> float:
    """The mean true cup-to-disc ratio of people with these three words.

    Diagnosis and severity set the mean of a normal law with scatter 0.085, and the class of the
    ratio cuts it: the mean of the cut law, in closed form. Raises `DataError` on unknown words.
    """
    from scipy.stats import truncnorm

    if cdr_status not in CDR_STATUSES:
        raise DataError(f"cdr_status {cdr_status!r}: the law knows {', '.join(CDR_STATUSES)}")
    mean, place = expected_cdr(glaucoma, md_severity), CDR_STATUSES.index(cdr_status)
    edges = (np.array([CDR_RANGE[0], *CDR_EDGES, CDR_RANGE[1]]) - mean) / CDR_SCATTER
    return float(mean + CDR_SCATTER * truncnorm.mean(edges[place], edges[place + 1]))


def asked_ratios(table: pd.DataFrame) -> np.ndarray:
    """`asked_cdr` of every row of a table with the columns `WORDS`, [N]."""
    return np.array([asked_cdr(*row) for row in table[list(WORDS)].itertuples(index=False)])
