"""Two arms compared on one test set by AUC and what equity measures make of it: paired over
patients, never over replicates.

Two answers to "do the arms differ", both for the AUC of everybody, of the worst group, the gap
between best and worst, and the equity-scaled AUC. `difference`, `low`, `high`: the paired
percentile bootstrap; whole patients are drawn within group and class, the same for both arms. `p`:
the arms' scores swapped at random within patients (a permutation test). If it makes no difference
which arm scored a patient, p below 0.05 comes at most one time in twenty, for every statistic and
every number of people; scores of both arms must then be on one scale (probabilities from the same
kind of classifier). Simulated (`measures.replication`, results/statistics), the swap rejects 4 to 6
% at a nominal 5 % in every statistic; the bootstrap 6 % for the AUC, but 0 to 3 % for the other
three: an extreme of groups is spread wider in its draws than in truth.

One row is one patient. For several trainings of each arm, and answers at a threshold, see
`measures.paired`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from fairlib.errors import DataError
from fairlib.measures.areas import drawn_times, pairs, weighted
from fairlib.measures.equity import class_counts
from fairlib.measures.groups import N_MIN
from fairlib.measures.resampling import interval

STATISTICS = ("auc", "worst", "gap", "equity_scaled")


def compare_areas(
    label,
    score,
    other,
    group,
    rng: np.random.Generator,
    replicates: int = 1000,
    alpha: float = 1.0,
    n_min: int = N_MIN,
) -> pd.DataFrame:
    """Arm `other` less arm `score` on the same people: one row a statistic, with `difference`,
    `low`, `high` and `p`.

    label, score, other, group: [N]; labels 0 or 1. Raises `DataError` on unequal lengths, other
    labels, scores that are not finite, fewer than two groups, or a group with fewer than `n_min`
    people of a class: leave it out first, by name.
    """
    areas = PairedAreas(
        label, np.stack([np.asarray(score, float), np.asarray(other, float)]), group, n_min
    )
    return _summary(*differences(areas, rng, replicates, alpha))


def differences(
    areas: PairedAreas, rng: np.random.Generator, replicates: int = 1000, alpha: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Second arm less first: observed [S], bootstrap draws [B, S] and swapped draws [B, S] of
    `STATISTICS`.
    """
    once = [np.ones((1, len(rows)), np.float32) for rows in areas.strata]
    found = areas.statistics(once, alpha)
    drawn = areas.statistics(
        [drawn_times(rng, len(rows), replicates) for rows in areas.strata], alpha
    )
    swapped = areas.swapped(
        [rng.random((replicates, len(rows))) < 0.5 for rows in areas.strata], alpha
    )
    return (found[1] - found[0])[0], drawn[1] - drawn[0], swapped[1] - swapped[0]


def swap_p(observed: np.ndarray, swapped: np.ndarray) -> np.ndarray:
    """Two-sided p [S] of `observed` [S] among `swapped` [B, S]; the observed one is counted among
    them, so it is never 0.
    """
    return (1 + (np.abs(swapped) >= np.abs(observed) - 1e-9).sum(0)) / (1 + len(swapped))


class PairedAreas:
    """The people of each group and class (a stratum), and the pair tables of every two arms: what
    all draws are sums over.
    """

    def __init__(self, label, scores: np.ndarray, group, n_min: int = N_MIN):
        label, group = np.asarray(label), np.asarray(group).astype(str)
        if (
            scores.shape != (2, len(label))
            or len(group) != len(label)
            or not np.isin(label, (0, 1)).all()
        ):
            raise DataError(
                f"{len(label)} labels, scores of shape {scores.shape}, {len(group)} "
                "groups; give labels 0 or 1 and "
                "one score of each arm and one group for every person"
            )
        if not np.isfinite(scores).all():
            raise DataError("scores hold NaN or infinity; look at the classifier that gave them")
        counts = class_counts(label, group, np.arange(len(label)))
        small = counts[counts.min(axis=1) < max(n_min, 1)]
        if len(small) or len(counts) < 2:
            raise DataError(
                f"{len(counts)} groups, {', '.join(map(repr, small.index)) or 'none'} with fewer "
                f"than {n_min} people "
                "of a class; two large ones are needed: leave the others out first, by name"
            )
        self.names = list(counts.index)
        self.strata = [
            np.flatnonzero((group == name) & (label == c)) for name in self.names for c in (1, 0)
        ]
        ill, healthy = self.strata[::2], self.strata[1::2]
        # table[i][j]: a positive scored by arm i against a negative scored by arm j; everybody
        # first, then each group
        self.tables = [
            [[pairs(scores[i, p], scores[j, m]) for j in (0, 1)] for i in (0, 1)]
            for p, m in [
                (np.concatenate(ill), np.concatenate(healthy)),
                *zip(ill, healthy, strict=True),
            ]
        ]

    def _sides(self, weights: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Weights of the positives and the negatives of everybody, then of each group."""
        yield np.concatenate(weights[::2], axis=1), np.concatenate(weights[1::2], axis=1)
        yield from zip(weights[::2], weights[1::2], strict=True)

    def statistics(self, times: list[np.ndarray], alpha: float) -> np.ndarray:
        """[2, B, S] of both arms, each person counted so many `times` [B, n of the stratum]."""
        parts = list(zip(self.tables, self._sides(times), strict=True))
        return np.stack(
            [
                _statistics([weighted(table[arm][arm], *side) for table, side in parts], alpha)
                for arm in (0, 1)
            ]
        )

    def area_differences(self, rng: np.random.Generator, replicates: int) -> np.ndarray:
        """Bootstrap draws [B] of everybody's AUC, second arm less first, as `statistics` draws them
        but nothing of the groups.
        """
        sides = next(self._sides([drawn_times(rng, len(rows), replicates) for rows in self.strata]))
        return weighted(self.tables[0][1][1], *sides) - weighted(self.tables[0][0][0], *sides)

    def swapped(self, swap: list[np.ndarray], alpha: float) -> np.ndarray:
        """[2, B, S] with the two arms' scores of a person exchanged where `swap` [B, n of the
        stratum].
        """
        sides = self._sides([part.astype(np.float32) for part in swap])
        both = [_mixed(table, *side) for table, side in zip(self.tables, sides, strict=True)]
        return np.stack([_statistics([part[arm] for part in both], alpha) for arm in (0, 1)])


def _mixed(table, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """AUC [2, B] of both arms when the people of weight 1 (not 0) have exchanged the scores of the
    two arms.
    """
    total = np.zeros((2, len(positive)))
    for j, side in ((0, negative), (1, 1 - negative)):
        kept, moved = positive @ table[0][j], positive @ table[1][j]
        total[0] += np.einsum("bm,bm->b", table[0][j].sum(0) - kept + moved, 1 - side, dtype=float)
        total[1] += np.einsum("bm,bm->b", table[1][j].sum(0) - moved + kept, side, dtype=float)
    return total / (positive.shape[1] * negative.shape[1])


def _statistics(areas: list[np.ndarray], alpha: float) -> np.ndarray:
    """`STATISTICS` [B, S] from the AUC [B] of everybody and of each group."""
    whole, groups = areas[0], np.stack(areas[1:])
    scaled = whole / (1 + alpha * np.abs(groups - whole).sum(0))
    return np.stack([whole, groups.min(0), groups.max(0) - groups.min(0), scaled], axis=1)


def _summary(observed: np.ndarray, drawn: np.ndarray, swapped: np.ndarray) -> pd.DataFrame:
    ends = [interval(value, column) for value, column in zip(observed, drawn.T, strict=True)]
    return pd.DataFrame(
        {
            "statistic": STATISTICS,
            "difference": observed,
            "low": [end.low for end in ends],
            "high": [end.high for end in ends],
            "p": swap_p(observed, swapped),
        }
    )
