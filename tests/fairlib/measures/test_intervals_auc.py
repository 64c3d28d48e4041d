"""Areas under the curve against scikit-learn, the textbook variance, and bootstraps drawn the long
way.
"""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fairlib.measures.intervals import auc, delong, draw_counts, pair_table, weighted_auc


def samples(rng, ill=30, healthy=40, ties=False):
    scores = rng.normal(0.8, 1, ill), rng.normal(size=healthy)
    return tuple(np.round(part, 0) for part in scores) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
def test_area_is_scikit_learns(ties):
    ill, healthy = samples(np.random.default_rng(0), ties=ties)
    expected = roc_auc_score(np.repeat([1, 0], [30, 40]), np.concatenate([ill, healthy]))
    assert auc(ill, healthy) == pytest.approx(expected) and delong(ill, healthy)[
        0
    ] == pytest.approx(expected)


def test_leading_axes_are_samples_of_their_own():
    rng = np.random.default_rng(1)
    ill, healthy = rng.normal(size=(5, 12)), rng.normal(size=(5, 9))
    together = delong(ill, healthy)
    for place in range(5):
        assert [part[place] for part in together] == pytest.approx(
            delong(ill[place], healthy[place])
        )


def test_delongs_error_is_the_spread_over_test_sets():
    """Over 3,000 test sets the standard error predicts the standard deviation of the AUC, within
    the noise of both.
    """
    rng = np.random.default_rng(2)
    values, errors = delong(rng.normal(1.2, 1, (3000, 25)), rng.normal(size=(3000, 60)))
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.05)


def test_delongs_error_by_hand():
    """Ill 3, 1; healthy 0, 2: pairs 1 1 / 1 0. Ill 1 and 1/2, healthy 1 and 1/2: both variances
    1/8, the error sqrt(1/8).
    """
    value, error = delong([3.0, 1.0], [0.0, 2.0])
    assert value == 0.75 and error == pytest.approx(np.sqrt(1 / 16 + 1 / 16))
    assert delong([2.0, 3.0], [0.0, 1.0]) == (1.0, 0.0)


def test_a_weighted_area_is_that_of_the_repeated_people():
    rng = np.random.default_rng(3)
    ill, healthy = samples(rng, ties=True)
    times = draw_counts(rng, 30, 4), draw_counts(rng, 40, 4)
    found = weighted_auc(pair_table(ill, healthy), *times)
    for b in range(4):
        repeated = [
            np.repeat(part, count[b].astype(int))
            for part, count in zip((ill, healthy), times, strict=True)
        ]
        assert found[b] == pytest.approx(float(auc(*repeated)), abs=1e-6)


def test_draws_hold_as_many_people_as_there_are_and_each_as_often():
    times = draw_counts(np.random.default_rng(4), 20, 5000)
    assert (times.sum(1) == 20).all() and times.mean(0) == pytest.approx(np.ones(20), abs=0.06)
    assert times.var(0).mean() == pytest.approx(19 / 20, abs=0.03)
