"""Exact coverage of intervals for a share, against drawing."""

import numpy as np
import pytest

from studies.statistics.coverage_simulation import (
    METHODS,
    exact_coverage,
    percentile_bootstrap,
    rare_intersections,
)


def test_the_percentile_bootstrap_needs_no_drawing():
    rng = np.random.default_rng(0)
    for right, n in ((3, 7), (18, 20), (10, 10)):
        drawn = rng.binomial(n, right / n, 200_000) / n
        assert percentile_bootstrap(right, n) == pytest.approx(
            np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
        )


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
