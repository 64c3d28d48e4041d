"""Intervals: of a share from counts, of an AUC from pairs of scores, of anything by the bootstrap.

Shares: `right` of `n` people were classified rightly; all functions work on arrays.

AUC: the share of (ill, healthy) pairs in which the ill person has the higher score, ties counted
half (Mann and Whitney), from the scores `positive` [..., P] of the ill and `negative` [..., M] of
the healthy, over leading axes at once.

Bootstrap: percentile intervals from draws of whole subjects, stratified, paired, and with an
explicit random number generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fairlib.errors import DataError

Rng = np.random.Generator
Labels = ArrayLike | None
"""Labels of rows [N], or None for none."""
LEVEL = 0.95  # of every bootstrap interval
Ends = tuple[np.ndarray, np.ndarray]
"""The low and the high ends of many intervals, or their bounds."""
Tails = tuple[ArrayLike, ArrayLike]
"""The chances that the truth lies below the low and above the high end."""
Added = tuple[float, float]
"""What is added to the counts of successes and failures."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval, all three in the unit of the measure.

    `value in interval` asks whether a value lies between the ends, which are part of it.

    Parameters
    ----------
    estimate
        The value measured on the data.
    low, high
        The ends of its 95 % interval, unless a function says otherwise; NaN where it has none.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def columns(self, name: str, ends: str | None = None) -> dict[str, float]:
        """The cells `{name, <ends>low, <ends>high}` of a table's row; `ends` is "<name>_" by
        default.
        """
        ends = f"{name}_" if ends is None else ends
        return {name: self.estimate, f"{ends}low": self.low, f"{ends}high": self.high}


# --- shares ------------------------------------------------------------------------------------


def wilson(right: ArrayLike, n: ArrayLike, level: float = 0.95) -> Ends:
    """Score interval (Wilson 1927): the shares that a normal test does not reject. Covers about
    `level` on average.
    """
    from scipy.special import ndtri

    right, n = counted(right, n)
    z = ndtri(1 - (1 - level) / 2)
    middle = (right + z**2 / 2) / (n + z**2)
    reach = z * np.sqrt(right * (n - right) / n + z**2 / 4) / (n + z**2)
    # 0 and 1 exactly
    return np.where(right == 0, 0.0, middle - reach), np.where(right == n, 1.0, middle + reach)


def clopper_pearson(right: ArrayLike, n: ArrayLike, level: float = 0.95) -> Ends:
    """Exact interval (Clopper and Pearson 1934): covers at least `level` for every share, and
    mostly more.
    """
    tail = (1 - level) / 2
    return _beta(right, n, (tail, tail), (0, 1), (1, 0))


def jeffreys(right: ArrayLike, n: ArrayLike, lower_tail: ArrayLike, upper_tail: ArrayLike) -> Ends:
    """Bounds with their own tails each (Brown, Cai and DasGupta 2001): quantiles of Beta(right +
    1/2, n - right + 1/2).

    The true share lies below the lower bound with a chance of about `lower_tail`, above the upper
    one of about `upper_tail`; on average over shares, in both tails alike, which Wilson's interval
    does not reach one-sidedly.
    """
    return _beta(right, n, (lower_tail, upper_tail), (0.5, 0.5), (0.5, 0.5))


def _beta(right: ArrayLike, n: ArrayLike, tails: Tails, below: Added, above: Added) -> Ends:
    """Quantiles of two Beta distributions, with (successes, failures) added to the counts; 0 and 1
    where none or all are right.
    """
    from scipy.special import betaincinv

    right, n = counted(right, n)
    low = betaincinv(np.maximum(right + below[0], 1e-9), n - right + below[1], tails[0])
    upper = 1 - np.asarray(tails[1])
    high = betaincinv(right + above[0], np.maximum(n - right + above[1], 1e-9), upper)
    return np.where(right == 0, 0.0, low), np.where(right == n, 1.0, high)


def counted(right: ArrayLike, n: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Counts as arrays of one shape. Raises `DataError` unless 0 <= right <= n and n >= 1."""
    right, n = np.broadcast_arrays(np.asarray(right, float), np.asarray(n, float))
    if (n < 1).any() or (right < 0).any() or (right > n).any():
        what = f"{right.ravel()[:4].tolist()} right of {n.ravel()[:4].tolist()}"
        raise DataError(f"{what}: expected 0 to n, and n of at least 1")
    return right, n


# --- areas under the ROC curve -----------------------------------------------------------------


def pair_table(positive: ArrayLike, negative: ArrayLike) -> np.ndarray:
    """1 where the positive has the higher score, 0.5 where they tie, 0 else: [..., P, M],
    float32.
    """
    positive, negative = np.asarray(positive)[..., :, None], np.asarray(negative)[..., None, :]
    return (positive > negative).astype(np.float32) + np.float32(0.5) * (positive == negative)


def auc(positive: ArrayLike, negative: ArrayLike) -> np.ndarray:
    """The area under the ROC curve [...]."""
    return pair_table(positive, negative).mean((-1, -2), dtype=float)


def delong(positive: ArrayLike, negative: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """AUC [...] and its standard error [...] by DeLong et al. (Biometrics 1988); P and M of at
    least 2.

    The error is 0 where the scores part ill and healthy completely: there the data do not say how
    sure they are.
    """
    table = pair_table(positive, negative)
    of_positive, of_negative = table.mean(-1, dtype=float), table.mean(-2, dtype=float)
    by_positive = of_positive.var(-1, ddof=1) / table.shape[-2]
    by_negative = of_negative.var(-1, ddof=1) / table.shape[-1]
    return of_positive.mean(-1), np.sqrt(by_positive + by_negative)


def weighted_auc(
    table: np.ndarray, positive_times: np.ndarray, negative_times: np.ndarray
) -> np.ndarray:
    """AUC [B] of bootstrap draws that hold each person so many times: `table` [P, M] of
    `pair_table`, times [B, P] and [B, M].
    """
    total = positive_times.sum(1, dtype=float) * negative_times.sum(1, dtype=float)
    return np.einsum("bm,bm->b", positive_times @ table, negative_times, dtype=float) / total


def draw_counts(rng: Rng, size: int, replicates: int) -> np.ndarray:
    """How often each of `size` people is drawn in each of `replicates` bootstrap draws: [B, size],
    float32.
    """
    codes = rng.integers(size, size=(replicates, size)) + size * np.arange(replicates)[:, None]
    counts = np.bincount(codes.ravel(), minlength=replicates * size)
    return counts.reshape(replicates, size).astype(np.float32)


# --- bootstrap ---------------------------------------------------------------------------------


class Sample:
    """Arrays that share their first axis, and the rule by which their rows are drawn again.

    `arrays`: each [N, ...]; the same rows are drawn from all of them, so they stay paired.
    `clusters`: [N] labels; whole clusters (subjects) are drawn. None: every row is its own cluster.
    `strata`: [N] labels; each stratum keeps its number of clusters. A cluster lies in one stratum.
    Raises `DataError` on arrays of unequal length, no rows, or a cluster in two strata.
    """

    def __init__(self, *arrays: ArrayLike, clusters: Labels = None, strata: Labels = None):
        self.arrays = tuple(np.asarray(array) for array in arrays)
        count = len(self.arrays[0])
        clusters = cluster_codes(clusters, count)
        strata = cluster_codes(np.zeros(count) if strata is None else strata, count)
        if count == 0 or {len(part) for part in (*self.arrays, clusters, strata)} != {count}:
            raise DataError(
                f"arrays of lengths {[len(a) for a in self.arrays]} cannot be resampled together; "
                "give at least one row, and as many clusters and strata as rows"
            )
        # where each cluster's rows lie, and which clusters each stratum holds
        self._rows = np.argsort(clusters, kind="stable")
        held = clusters[self._rows]
        _, self._start, self._size = np.unique(held, return_index=True, return_counts=True)
        owner = strata[self._rows][self._start]
        if (np.repeat(owner, self._size) != strata[self._rows]).any():
            raise DataError("a cluster lies in two strata; stratify by attributes of subjects")
        self._members = [np.flatnonzero(owner == stratum) for stratum in np.unique(owner)]

    def rows(self, rng: Rng) -> np.ndarray:
        """Indices of one bootstrap draw: clusters with replacement within each stratum."""
        chosen = [held[rng.integers(len(held), size=len(held))] for held in self._members]
        drawn = np.concatenate(chosen)
        size = self._size[drawn]
        shift = np.repeat(self._start[drawn] - np.concatenate([[0], np.cumsum(size)[:-1]]), size)
        return self._rows[shift + np.arange(size.sum())]

    def times(self, rng: Rng) -> np.ndarray:
        """How often each row is in one bootstrap draw: [N] integers."""
        return np.bincount(self.rows(rng), minlength=len(self.arrays[0]))

    def draw(self, rng: Rng) -> tuple[np.ndarray, ...]:
        """One bootstrap draw of all arrays, with the same rows in each."""
        rows = self.rows(rng)
        return tuple(array[rows] for array in self.arrays)


def cluster_codes(labels: Labels, count: int) -> np.ndarray:
    """Labels of any kind [N] as integers 0..K-1; None: every one of `count` rows its own."""
    return np.arange(count) if labels is None else np.unique(labels, return_inverse=True)[1]


def bootstrap(
    statistic: Callable, samples: list[Sample], rng: Rng, replicates: int = 1000
) -> np.ndarray:
    """`statistic(*arrays of the first sample, *arrays of the next, ...)` on `replicates` draws:
    [replicates, ...].

    Samples are drawn independently of each other; arrays inside one sample are drawn together.
    """
    draws = ([array for sample in samples for array in sample.draw(rng)] for _ in range(replicates))
    return np.array([statistic(*arrays) for arrays in draws])


def interval(estimate: float, replicates: np.ndarray, strict: bool = True) -> Interval:
    """The 95 % percentile interval of `estimate` from its bootstrap `replicates` [B].

    A replicate that could not be computed is NaN; more than 5 % of them raise `DataError`. Not
    `strict`: they, or an estimate of NaN, give ends of NaN, and a table goes on without them.
    """
    if not strict and (np.isnan(estimate) or np.isnan(replicates).mean() > 0.05):
        return Interval(float(estimate), np.nan, np.nan)
    check_defined(replicates)
    low, high = np.nanquantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(estimate), float(low), float(high))


def check_defined(replicates: np.ndarray) -> None:
    """Raise `DataError` when more than 5 % of bootstrap `replicates` [B, ...] are NaN: they could
    not be computed.
    """
    missing = float(np.isnan(replicates).mean())
    if missing > 0.05:
        what = f"{missing:.0%} of the bootstrap replicates are undefined"
        raise DataError(f"{what}; the sample holds too few subjects of a subgroup")


def bootstrap_interval(
    statistic: Callable, samples: list[Sample], rng: Rng, replicates: int = 1000
) -> Interval:
    """A scalar `statistic` of the samples as they are, with its percentile bootstrap interval."""
    estimate = statistic(*(array for sample in samples for array in sample.arrays))
    return interval(estimate, bootstrap(statistic, samples, rng, replicates))
