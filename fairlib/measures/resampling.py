"""The bootstrap of every interval in the book: stratified, by subject, paired, with an explicit
generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fairlib.errors import DataError


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval, all three in the unit of the measure."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


class Sample:
    """Arrays that share their first axis, and the rule by which their rows are drawn again.

    `arrays`: each [N, ...]; the same rows are drawn from all of them, so they stay paired.
    `clusters`: [N] labels; whole clusters (subjects) are drawn. None: every row is its own cluster.
    `strata`: [N] labels; each stratum keeps its number of clusters. A cluster lies in one stratum.
    Raises `DataError` on arrays of unequal length, no rows, or a cluster in two strata.
    """

    def __init__(self, *arrays, clusters=None, strata=None):
        self.arrays = tuple(np.asarray(array) for array in arrays)
        count = len(self.arrays[0])
        clusters = np.arange(count) if clusters is None else _codes(clusters)
        strata = np.zeros(count, int) if strata is None else _codes(strata)
        if count == 0 or {len(part) for part in (*self.arrays, clusters, strata)} != {count}:
            raise DataError(
                f"arrays of lengths {[len(a) for a in self.arrays]} cannot be resampled together; "
                "give at least one row, and as many clusters and strata as rows"
            )
        self._plan(clusters, strata)

    def _plan(self, clusters, strata) -> None:
        """Remember where each cluster's rows lie, and which clusters each stratum holds."""
        self._rows = np.argsort(clusters, kind="stable")
        ids, self._start, self._size = np.unique(
            clusters[self._rows], return_index=True, return_counts=True
        )
        owner = strata[self._rows][self._start]
        if (np.repeat(owner, self._size) != strata[self._rows]).any():
            raise DataError(
                "one cluster lies in two strata; stratify by an attribute of the whole subject"
            )
        self._members = [np.flatnonzero(owner == stratum) for stratum in np.unique(owner)]

    def rows(self, rng: np.random.Generator) -> np.ndarray:
        """Indices of one bootstrap draw: clusters with replacement within each stratum."""
        drawn = np.concatenate(
            [members[rng.integers(len(members), size=len(members))] for members in self._members]
        )
        size = self._size[drawn]
        shift = np.repeat(self._start[drawn] - np.concatenate([[0], np.cumsum(size)[:-1]]), size)
        return self._rows[shift + np.arange(size.sum())]

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """One bootstrap draw of all arrays, with the same rows in each."""
        rows = self.rows(rng)
        return tuple(array[rows] for array in self.arrays)


def bootstrap(
    statistic: Callable, samples: list[Sample], rng: np.random.Generator, replicates: int = 1000
) -> np.ndarray:
    """`statistic(*arrays of the first sample, *arrays of the next, ...)` on `replicates` draws:
    [replicates, ...].

    Samples are drawn independently of each other; arrays inside one sample are drawn together.
    """
    draws = ([array for sample in samples for array in sample.draw(rng)] for _ in range(replicates))
    return np.array([statistic(*arrays) for arrays in draws])


def interval(estimate: float, replicates: np.ndarray, level: float = 0.95) -> Interval:
    """The percentile interval of `estimate` from its bootstrap `replicates` [B].

    A replicate that could not be computed is NaN; more than 5 % of them raise `DataError`.
    """
    check_defined(replicates)
    low, high = np.nanquantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high))


def check_defined(replicates: np.ndarray) -> None:
    """Raises `DataError` when more than 5 % of bootstrap `replicates` [B, ...] are NaN: they could
    not be computed.
    """
    missing = float(np.isnan(replicates).mean())
    if missing > 0.05:
        raise DataError(
            f"{missing:.0%} of the bootstrap replicates are undefined; the sample holds too few "
            "subjects of a subgroup"
        )


def bootstrap_interval(
    statistic: Callable,
    samples: list[Sample],
    rng: np.random.Generator,
    replicates: int = 1000,
    level: float = 0.95,
) -> Interval:
    """A scalar `statistic` of the samples as they are, with its percentile bootstrap interval."""
    estimate = statistic(*(array for sample in samples for array in sample.arrays))
    return interval(estimate, bootstrap(statistic, samples, rng, replicates), level)


def _codes(labels) -> np.ndarray:
    """Labels of any kind as integers 0..K-1."""
    return np.unique(np.asarray(labels), return_inverse=True)[1]
