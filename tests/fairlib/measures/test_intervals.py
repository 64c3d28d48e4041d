"""Intervals for shares against scipy."""

import numpy as np
import pytest
from scipy.stats import binomtest

from fairlib.errors import DataError
from fairlib.measures.intervals import clopper_pearson, jeffreys, wilson


@pytest.mark.parametrize("function, name", [(wilson, "wilson"), (clopper_pearson, "exact")])
@pytest.mark.parametrize("n", [1, 5, 30])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_against_scipy(function, name, n, level):
    low, high = function(np.arange(n + 1), n, level)
    for right in range(n + 1):
        expected = binomtest(right, n).proportion_ci(level, name)
        assert (low[right], high[right]) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_jeffreys_is_right_in_both_tails_on_average():
    """By definition: a share drawn from Beta(1/2, 1/2) lies outside with exactly the tails, on
    each side.
    """
    rng = np.random.default_rng(1)
    share = rng.beta(0.5, 0.5, 200_000)
    right = rng.binomial(20, share)
    inner = (right > 0) & (right < 20)
    low, high = jeffreys(right[inner], 20, 0.05, 0.01)
    assert (share[inner] < low).mean() == pytest.approx(0.05, abs=0.003)
    assert (share[inner] > high).mean() == pytest.approx(0.01, abs=0.002)
    ends = jeffreys([0, 20], 20, 0.05, 0.01)
    assert ends[0][0] == 0 and ends[1][1] == 1 and 0 < ends[1][0] < ends[0][1] < 1


@pytest.mark.parametrize("right, n", [(3, 2), (-1, 5), (0, 0)])
def test_counts_that_cannot_be_are_refused(right, n):
    with pytest.raises(DataError, match="expected 0 to n"):
        wilson(right, n)
