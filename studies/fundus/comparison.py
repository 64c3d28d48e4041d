"""Arms over seeds: values, and paired differences with two intervals that answer two questions.

people_low, people_high   percentiles over bootstrap draws of the people, the seeds as they are:
would these trainings do the
                          same for other people?
seed_low, seed_high       Student's t over the seeds' values or paired differences, the people
as they are: would other
                          trainings, batches and starting noises do the same? Missing with one
                          seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fairlib.errors import DataError
from studies.fundus.settings import BASE, REAL
from studies.fundus.statistics import INDEX, Figures

PAIRS = (
    ("released", "random"),
    ("repaired", "random-repaired"),
    ("repaired", "released"),
    ("plain", BASE),
)
"""Beside every arm less plain, and what long training on everybody would reach less plain: what the
optimiser does, what the repair does, and what fine-tuning does.
"""
ENDS = ["people_low", "people_high", "seed_low", "seed_high"]


def values_table(found: Mapping[tuple[str, int], Figures]) -> pd.DataFrame:
    """Means over seeds of every figure and arm: columns of `statistics.INDEX`, arm, value, `ENDS`,
    seeds.
    """
    parts = []
    for arm in dict.fromkeys(arm for arm, _ in found):
        index, draws = _draws(found, arm, _seeds(found, arm))
        parts.append(_summary(index, draws, "value").assign(arm=arm))
    return _joined(parts, "arm")


def differences_table(
    found: Mapping[tuple[str, int], Figures], reference: str = "plain"
) -> pd.DataFrame:
    """Each arm less `reference`, and `PAIRS`, over the seeds that both have: columns of
    `statistics.INDEX`, arm, reference, difference, `ENDS`, seeds. Empty where no pair has a seed in
    common.
    """
    arms = list(dict.fromkeys(arm for arm, _ in found))
    chosen = [
        (arm, reference)
        for arm in arms
        if arm != reference and reference in arms and arm not in (REAL, BASE)
    ]
    parts = []
    for arm, other in [*chosen, *(pair for pair in PAIRS if set(pair) <= set(arms))]:
        seeds = [seed for seed in _seeds(found, arm) if (other, seed) in found]
        if seeds:
            parts.append(
                _summary(*_difference(found, arm, other, seeds), "difference").assign(
                    arm=arm, reference=other
                )
            )
    return _joined(parts, "arm", "reference")


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends [K] of the 95 % interval of the mean of values [S, K] over S seeds; NaN for one seed."""
    from scipy.stats import t

    mean, count = values.mean(0), len(values)
    if count < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    reach = t.ppf(0.975, count - 1) * values.std(0, ddof=1) / np.sqrt(count)
    return mean - reach, mean + reach


def _difference(found, arm: str, other: str, seeds: Sequence[int]):
    """Figures that both have (an arm without any found disc in a group has no error there), and the
    draws of the difference.
    """
    (mine, one), (theirs, two) = (_draws(found, name, seeds) for name in (arm, other))
    place = {tuple(key): row for row, key in enumerate(theirs[INDEX].itertuples(index=False))}
    rows = [
        (row, place[tuple(key)])
        for row, key in enumerate(mine[INDEX].itertuples(index=False))
        if tuple(key) in place
    ]
    first, second = (np.array(part) for part in zip(*rows, strict=True))
    return mine.iloc[first].reset_index(drop=True), one[..., first] - two[..., second]


def _draws(found, arm: str, seeds: Sequence[int]) -> tuple[pd.DataFrame, np.ndarray]:
    """The figures that an arm has in all `seeds`, and their draws [S, 1 + R, K]."""
    own = [found[arm, seed] for seed in seeds]
    keys = [dict.fromkeys(one.index[INDEX].itertuples(index=False, name=None)) for one in own]
    shared = [key for key in keys[0] if all(key in other for other in keys)]
    if not shared:
        raise DataError(
            f"arm {arm!r} has no figure in common over seeds {list(seeds)}; run it again"
        )
    columns = [[list(names).index(key) for key in shared] for names in keys]
    return (
        pd.DataFrame(shared, columns=INDEX),
        np.stack([one.draws[:, places] for one, places in zip(own, columns, strict=True)]),
    )


def _summary(index: pd.DataFrame, draws: np.ndarray, name: str) -> pd.DataFrame:
    """draws [S, 1 + R, K]: as observed, then one row a draw of people."""
    mean = draws.mean(0)
    seed_low, seed_high = t_interval(draws[:, 0])
    table = index.assign(**{name: mean[0], "people_low": np.nan, "people_high": np.nan})
    usable = np.isnan(mean[1:]).mean(0) <= 0.05 if len(mean) > 1 else np.zeros(len(index), bool)
    if usable.any():
        ends = np.nanquantile(mean[1:][:, usable], [0.025, 0.975], axis=0)
        table.loc[usable, "people_low"], table.loc[usable, "people_high"] = ends
    return table.assign(seed_low=seed_low, seed_high=seed_high, seeds=len(draws))


def _joined(parts: list[pd.DataFrame], *names: str) -> pd.DataFrame:
    value = "difference" if "reference" in names else "value"
    columns = [*INDEX, *names, value, *ENDS, "seeds"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _seeds(found, arm: str) -> list[int]:
    return sorted(seed for name, seed in found if name == arm)
