"""What published statistics do where nothing is to be found: against closed forms, and the truth of
the simulation.
"""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from fairlib.errors import DataError
from fairlib.measures.distances import expected_floor
from fairlib.measures.intervals import auc as area
from studies.statistics.null_simulation import (
    BOOTSTRAP,
    PUBLISHED,
    SWAP,
    distance_by_size,
    equity_by_groups,
    null_rates,
    published_p,
    published_rate,
    separation,
    simulated_arms,
)


def test_the_published_p_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 50)) + np.array([[0.0], [0.2]])
    assert published_p(second - first) == pytest.approx(ttest_rel(second, first).pvalue)


def test_the_published_rate_in_closed_form():
    """A normal mean bootstrapped B times has replicates N(m, 1) about an observed m ~ N(0, 1): no
    simulation of AUCs needed.
    """
    rng = np.random.default_rng(1)
    for count in (1, 100, 1000):
        observed = rng.normal(size=200_000)
        expected = published_rate(count)
        assert (np.abs(observed) > 1.959964 / np.sqrt(count)).mean() == pytest.approx(
            expected, abs=0.004
        )
    assert published_rate(1) == pytest.approx(0.05) and published_rate(100) == pytest.approx(
        0.845, abs=0.001
    )


def test_null_rates_show_the_one_and_the_other():
    table = null_rates(
        np.random.default_rng(2),
        (24, 36),
        (0.8, 0.8),
        repeats=60,
        replicates=100,
        published=(100, 1000),
    )
    found = table.set_index(["test", "statistic", "replicates"])
    assert (
        found.rejected[PUBLISHED, "auc", 100] > 0.7
        and found.rejected[PUBLISHED, "auc", 1000] > 0.85
    )
    assert found.expected[PUBLISHED, "auc", 1000] == published_rate(1000)
    for test in (BOOTSTRAP, SWAP):
        rows = table[table.test == test]
        assert (
            rows.statistic.tolist() == ["auc", "worst", "gap", "equity_scaled"]
            and rows.rejected.max() <= 0.2
        )
    assert (
        (table.low <= table.rejected).all()
        and (table.rejected <= table.high).all()
        and (table.repeats == 60).all()
    )


def test_simulated_arms_have_the_areas_they_were_asked_for():
    label, score, group = simulated_arms(
        np.random.default_rng(3), (4000, 2000), (0.8, 0.9), shared=0.6
    )
    for g, wanted in enumerate((0.8, 0.9)):
        for arm in (0, 1):
            rows = group == g
            found = area(score[arm, rows & (label == 1)], score[arm, rows & (label == 0)])
            assert found == pytest.approx(wanted, abs=0.025)
    ill = (label == 1) & (group == 0)
    assert np.corrcoef(score[:, ill])[0, 1] == pytest.approx(0.6, abs=0.04) and score[
        0, ill
    ].std() == pytest.approx(1, abs=0.05)
    assert separation(0.5) == 0


def test_frechet_measures_size_and_unbiased_mmd_does_not():
    rng = np.random.default_rng(4)
    table = distance_by_size(rng, (50, 100, 300), worse=0.3, dimensions=16, repeats=12)
    own = table.set_index(["group", "measure", "n"])["mean"].sort_index()
    frechet = own["as real", "Frechet, own n"]
    assert frechet[50] > 1.6 * frechet[100] > 4 * frechet[300]
    features = rng.normal(size=(20_000, 16)) / np.sqrt(np.arange(1, 17))
    assert frechet[300] == pytest.approx(expected_floor(features, 300), rel=0.15)
    assert frechet[50] > own["worse", "Frechet, own n", 300], (
        "the published reading names the wrong group"
    )
    for n in (50, 100, 300):
        assert own["worse", "MMD, equal n", 300] > 4 * abs(own["as real", "MMD, equal n", n])
        assert own["as real", "Frechet, equal n", n] == pytest.approx(frechet[50], rel=0.15), (
            "no more than n matters"
        )
    assert own["worse", "MMD, own n", 300] > 20 * abs(own["as real", "MMD, own n", 300])


def test_equity_scaled_falls_with_the_number_of_groups():
    table = equity_by_groups(np.random.default_rng(5), 600, (2, 5, 15), repeats=40).set_index(
        "groups"
    )
    assert table.auc.nunique() == 1 and table.auc[2] == pytest.approx(0.85, abs=0.01)
    assert (
        table.equity_scaled.is_monotonic_decreasing
        and table.equity_scaled[15] < 0.8 * table.equity_scaled[2]
    )
    assert table.worst.is_monotonic_decreasing and table.n.tolist() == [300, 120, 40]
    with pytest.raises(DataError, match="fewer than ten"):
        equity_by_groups(np.random.default_rng(0), 100, (6,))
