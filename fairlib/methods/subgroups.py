"""Who counts as which subgroup in the downstream test, and how many of each there are: pure
functions on tables.

Source: Skorupko et al., arXiv 2403.19508, and its released code: meta-group label x sex x age
tertile x body-mass class, inverse-frequency weights, prevalence set by sub-sampling.
"""

from __future__ import annotations

import numpy as np

from fairlib.errors import DataError, SettingsError
from fairlib.settings import unknown_key

ILL, HEALTHY = "heart failure", "healthy"
META_GROUP = ("diagnosis", "sex", "age_tertile", "bmi_group")
TERTILES = ("lower", "middle", "upper")
BMI_GROUPS = ("below 25", "25 to 30", "30 and above")


def balancing(groups, cap: float) -> np.ndarray:
    """Inverse-frequency weight of each row of `groups` (columns: what defines a group), float64
    [N], mean one.

    Uncapped, every group that occurs has the same total weight. `cap` bounds the weight as a
    multiple of the mean before the mean is set to one again, so that a handful of images cannot
    dominate.
    """
    counts = (
        groups.groupby(list(groups.columns), dropna=False, observed=True)[groups.columns[0]]
        .transform("size")
        .to_numpy()
    )
    weights = 1 / counts
    weights = np.minimum(weights / weights.mean(), cap)
    return weights / weights.mean()


def age_edges(table) -> tuple[float, float]:
    """The ages (years) at one and two thirds of the subjects of `table`; take those of the training
    set everywhere.

    In the paper the tertiles have medians 56, 66 and 73 years. Raises `DataError` when an age is
    missing.
    """
    require(table, ("subject", "age"))
    low, high = np.quantile(table.drop_duplicates("subject")["age"].to_numpy(float), [1 / 3, 2 / 3])
    return float(low), float(high)


def with_groups(table, edges: tuple[float, float]):
    """`table` with the columns `age_tertile` and `bmi_group` added (ordered categories, see
    `TERTILES`, `BMI_GROUPS`).

    An age equal to an edge belongs below it. These are the body-mass classes of the paper's test
    (25 and 30 kg/m2), not the four of its prompt. Raises `DataError` when an age or body-mass index
    is missing, saying how many.
    """
    import pandas as pd

    require(table, ("age", "bmi"))
    age = np.searchsorted(edges, table["age"].to_numpy(float), side="left")
    bmi = np.searchsorted((25.0, 30.0), table["bmi"].to_numpy(float), side="right")
    return table.assign(
        age_tertile=pd.Categorical.from_codes(age, TERTILES, ordered=True),
        bmi_group=pd.Categorical.from_codes(bmi, BMI_GROUPS, ordered=True),
    )


def require(table, columns) -> None:
    """Raise `DataError` when `table` lacks a column or a value of `columns`."""
    for column in columns:
        if column not in table:
            raise DataError(unknown_key(column, [str(name) for name in table.columns], "the table"))
        missing = int(table[column].isna().sum())
        if missing:
            raise DataError(
                f"{missing} of {len(table)} rows have no {column}; leave them out first, and say "
                "how many"
            )


def labels_of(table) -> np.ndarray:
    """int64 [N]: 1 = heart failure, 0 = healthy. Raises `DataError` on any other diagnosis."""
    require(table, ("diagnosis",))
    other = set(table["diagnosis"]) - {ILL, HEALTHY}
    if other:
        raise DataError(
            f"diagnosis {sorted(map(str, other))[0]!r}; expected {HEALTHY!r} or {ILL!r}: map or "
            "drop the others"
        )
    return (table["diagnosis"] == ILL).to_numpy(np.int64)


def at_prevalence(table, prevalence: float, seed: int) -> np.ndarray:
    """Positions (rising) of the largest random part of `table` in which this share of the SUBJECTS
    has heart failure.

    Whole subjects of the class that is too frequent are left out; what is kept depends on the seed
    and on who is there, not on the order of rows. The paper takes 0.25 to train, 0.10 to validate
    and 0.01 to test. The share reached is off by less than half a subject. Raises `DataError` when
    not one ill subject fits, saying how many of each there are.
    """
    if not 0 < prevalence < 1:
        raise SettingsError(f"prevalence {prevalence}: expected above 0 and below 1")
    require(table, ("subject",))
    subject, ill = table["subject"].to_numpy(), labels_of(table).astype(bool)
    people = {True: np.unique(subject[ill]), False: np.unique(subject[~ill])}
    both = np.intersect1d(people[True], people[False])
    if len(both):
        raise DataError(
            f"subject {both[0]!r} is healthy in one row and ill in another; correct the table"
        )
    odds = prevalence / (1 - prevalence)
    n_ill = min(len(people[True]), int(np.floor(len(people[False]) * odds + 1e-9)))
    n_healthy = min(len(people[False]), round(n_ill / odds))
    if n_ill < 1 or n_healthy < 1:
        raise DataError(
            f"prevalence {prevalence:g} cannot be reached with {len(people[True])} subjects with "
            "heart failure and "
            f"{len(people[False])} healthy; one ill subject needs {1 / odds:.0f} healthy ones"
        )
    rng = np.random.default_rng([seed, 37])
    kept = [
        rng.permutation(people[state])[:count]
        for state, count in ((True, n_ill), (False, n_healthy))
    ]
    return np.flatnonzero(np.isin(subject, np.concatenate(kept)))
