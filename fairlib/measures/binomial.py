"""Intervals for a share of few people: what an accuracy or a sensitivity in a rare intersection of
groups is.

`right` of `n` people were classified rightly; all functions work on arrays. The percentile
bootstrap of a share needs no drawing: its replicates are binomial with the observed share, so its
ends, and the coverage of every interval here, are exact sums.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from fairlib.errors import DataError


def wilson(right, n, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Score interval (Wilson 1927): the shares that a normal test does not reject. Covers about
    `level` on average.
    """
    from scipy.special import ndtri

    right, n = _counted(right, n)
    z = ndtri(1 - (1 - level) / 2)
    middle = (right + z**2 / 2) / (n + z**2)
    reach = z * np.sqrt(right * (n - right) / n + z**2 / 4) / (n + z**2)
    # 0 and 1 exactly
    return np.where(right == 0, 0.0, middle - reach), np.where(right == n, 1.0, middle + reach)


def clopper_pearson(right, n, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Exact interval (Clopper and Pearson 1934): covers at least `level` for every share, and
    mostly more.
    """
    return _beta(right, n, (1 - level) / 2, (1 - level) / 2, (0, 1), (1, 0))


def jeffreys(right, n, lower_tail, upper_tail) -> tuple[np.ndarray, np.ndarray]:
    """Bounds with their own tails each (Brown, Cai and DasGupta 2001): quantiles of Beta(right +
    1/2, n - right + 1/2).

    The true share lies below the lower bound with a chance of about `lower_tail`, above the upper
    one of about `upper_tail`; on average over shares, in both tails alike, which Wilson's interval
    does not reach one-sidedly.
    """
    return _beta(right, n, lower_tail, upper_tail, (0.5, 0.5), (0.5, 0.5))


def percentile_bootstrap(right, n, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """What the percentile bootstrap gives with infinitely many replicates; of width zero where all
    or none are right.
    """
    from scipy.stats import binom

    right, n = _counted(right, n)
    tail = (1 - level) / 2
    return binom.ppf(tail, n, right / n) / n, binom.ppf(1 - tail, n, right / n) / n


METHODS = {
    "percentile bootstrap": percentile_bootstrap,
    "Wilson": wilson,
    "Clopper-Pearson": clopper_pearson,
}


def exact_coverage(method: Callable, n: int, shares, level: float = 0.95) -> pd.DataFrame:
    """Columns share, n, coverage, width (mean) and no_width (chance of an interval of width zero),
    summed over all outcomes.
    """
    from scipy.stats import binom

    outcomes, shares = np.arange(n + 1), np.atleast_1d(np.asarray(shares, float))
    low, high = method(outcomes, n, level)
    chance = binom.pmf(outcomes, n, shares[:, None])
    held = (low <= shares[:, None] + 1e-12) & (shares[:, None] <= high + 1e-12)
    return pd.DataFrame(
        {
            "share": shares,
            "n": n,
            "coverage": (chance * held).sum(1),
            "width": chance @ (high - low),
            "no_width": chance @ (high - low < 1e-12),
        }
    )


def rare_intersections(
    ns, shares, level: float = 0.95, methods: dict[str, Callable] = METHODS
) -> pd.DataFrame:
    """`exact_coverage` of every method and size `ns`, with a column `method`."""
    parts = [
        exact_coverage(method, int(n), shares, level).assign(method=name)
        for name, method in methods.items()
        for n in ns
    ]
    return pd.concat(parts, ignore_index=True)


def _beta(
    right, n, lower_tail, upper_tail, below: tuple, above: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of two Beta laws, with (successes, failures) added to the counts; 0 and 1 where
    nobody or everybody is right.
    """
    from scipy.special import betaincinv

    right, n = _counted(right, n)
    low = betaincinv(np.maximum(right + below[0], 1e-9), n - right + below[1], lower_tail)
    high = betaincinv(
        right + above[0], np.maximum(n - right + above[1], 1e-9), 1 - np.asarray(upper_tail)
    )
    return np.where(right == 0, 0.0, low), np.where(right == n, 1.0, high)


def _counted(right, n) -> tuple[np.ndarray, np.ndarray]:
    right, n = np.broadcast_arrays(np.asarray(right, float), np.asarray(n, float))
    if (n < 1).any() or (right < 0).any() or (right > n).any():
        raise DataError(
            f"{right.ravel()[:4].tolist()} right of {n.ravel()[:4].tolist()}: expected 0 to n, and "
            "n of at least 1"
        )
    return right, n
