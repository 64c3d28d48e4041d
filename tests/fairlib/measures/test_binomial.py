"""Intervals for shares against scipy, and their exact coverage against drawing."""

import numpy as np
import pytest
from scipy.stats import binomtest

from fairlib.errors import DataError
from fairlib.measures.binomial import (
    METHODS,
    clopper_pearson,
    exact_coverage,
    jeffreys,
    percentile_bootstrap,
    rare_intersections,
    wilson,
)


@pytest.mark.parametrize("function, name", [(wilson, "wilson"), (clopper_pearson, "exact")])
@pytest.mark.parametrize("n", [1, 5, 30])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_against_scipy(function, name, n, level):
    low, high = function(np.arange(n + 1), n, level)
    for right in range(n + 1):
        expected = binomtest(right, n).proportion_ci(level, name)
        assert (low[right], high[right]) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_percentile_bootstrap_needs_no_drawing():
    rng = np.random.default_rng(0)
    for right, n in ((3, 7), (18, 20), (10, 10)):
        drawn = rng.binomial(n, right / n, 200_000) / n
        assert percentile_bootstrap(right, n) == pytest.approx(
            np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
        )


def test_jeffreys_is_right_in_both_tails_on_average():
    """The law behind it: a share drawn from Beta(1/2, 1/2) lies outside with exactly the tails, on
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


@pytest.mark.parametrize("name", METHODS)
def test_exact_coverage_is_what_drawing_finds(name):
    rng = np.random.default_rng(2)
    [row] = exact_coverage(METHODS[name], 12, 0.85).itertuples()
    right = rng.binomial(12, 0.85, 100_000)
    low, high = METHODS[name](right, 12)
    assert row.coverage == pytest.approx(((low <= 0.85) & (high >= 0.85)).mean(), abs=0.005)
    assert row.width == pytest.approx((high - low).mean(), abs=0.003)
    assert row.no_width == pytest.approx((high == low).mean(), abs=0.003)


def test_what_each_interval_promises():
    table = rare_intersections((5, 10, 20, 50), np.arange(0.5, 0.995, 0.01))
    by = table.groupby("method")
    assert by.coverage.min()["Clopper-Pearson"] >= 0.95
    assert by.coverage.mean()["Wilson"] == pytest.approx(0.95, abs=0.015)
    assert by.coverage.min()["percentile bootstrap"] < 0.25
    few = table[(table.n == 5) & (table.method == "percentile bootstrap")]
    assert few.no_width.to_numpy() == pytest.approx(few.share**5 + (1 - few.share) ** 5)
    assert table[table.method != "percentile bootstrap"].no_width.max() == 0


@pytest.mark.parametrize("right, n", [(3, 2), (-1, 5), (0, 0)])
def test_counts_that_cannot_be_are_refused(right, n):
    with pytest.raises(DataError, match="expected 0 to n"):
        wilson(right, n)
