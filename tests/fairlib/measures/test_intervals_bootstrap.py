"""The bootstrap: who is drawn together, and whether its intervals cover."""

import numpy as np
import pytest
from scipy import stats

from fairlib.errors import DataError
from fairlib.measures.intervals import Interval, Sample, bootstrap, bootstrap_interval, interval

SUBJECTS = np.array(["a", "a", "b", "c", "c", "c", "d", "e"])


def test_whole_subjects_are_drawn():
    sample = Sample(np.arange(8), clusters=SUBJECTS)
    for seed in range(50):
        rows = sample.rows(np.random.default_rng(seed))
        counts = np.bincount(rows, minlength=8)
        assert all(len(set(counts[subject == SUBJECTS])) == 1 for subject in "abcde")
        assert sum(counts[[0, 2, 3, 6, 7]]) == 5  # five subjects drawn, with replacement


def test_strata_keep_their_number_of_subjects():
    strata = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    sample = Sample(np.arange(8), clusters=SUBJECTS, strata=strata)
    for seed in range(50):
        counts = np.bincount(sample.rows(np.random.default_rng(seed)), minlength=8)
        assert (counts[[0, 2, 7]].sum(), counts[[3, 6]].sum()) == (3, 2)


def test_arrays_of_one_sample_stay_paired_and_samples_are_independent():
    first, second = np.arange(30), np.arange(30) * 10
    draws = bootstrap(
        lambda a, b, c: [np.abs(b - 10 * a).max(), np.abs(c - a).max()],
        [Sample(first, second), Sample(first)],
        np.random.default_rng(0),
        20,
    )
    assert (draws[:, 0] == 0).all() and (draws[:, 1] > 0).all()


def test_every_row_is_drawn_equally_often():
    counts = sum(
        np.bincount(Sample(SUBJECTS, clusters=SUBJECTS).rows(np.random.default_rng(s)), minlength=8)
        for s in range(4000)
    )
    assert counts / 4000 == pytest.approx(np.ones(8), abs=0.07)


def test_agrees_with_scipy_on_independent_rows():
    values = np.random.default_rng(3).gamma(2, size=80)
    ours = bootstrap_interval(np.mean, [Sample(values)], np.random.default_rng(0), 4000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    )
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.03)
    assert ours.estimate == values.mean()


def test_clustered_intervals_cover_where_row_wise_ones_do_not():
    """Forty subjects of five identical slices: 93-97 % by subject, far too few by slice."""
    rng, hits = np.random.default_rng(0), np.zeros(2)
    for _ in range(300):
        values, clusters = np.repeat(rng.normal(size=40), 5), np.repeat(np.arange(40), 5)
        for i, by in enumerate((clusters, None)):
            hits[i] += 0.0 in bootstrap_interval(np.mean, [Sample(values, clusters=by)], rng, 200)
    assert 0.90 <= hits[0] / 300 <= 0.98
    assert hits[1] / 300 < 0.75


def test_same_generator_same_interval():
    def draw():
        return bootstrap_interval(np.mean, [Sample(np.arange(20.0))], np.random.default_rng(5), 50)

    assert draw() == draw()


def test_undefined_replicates_are_tolerated_up_to_a_point():
    draws = np.r_[np.linspace(0, 1, 97), [np.nan] * 3]
    assert interval(0.5, draws).low == pytest.approx(0.025)
    with pytest.raises(DataError, match="10% of the bootstrap replicates"):
        interval(0.5, np.r_[draws[:90], [np.nan] * 10])
    lenient = interval(0.5, np.r_[draws[:90], [np.nan] * 10], strict=False)
    assert lenient.estimate == 0.5 and np.isnan(lenient.low) and np.isnan(lenient.high)
    assert interval(0.5, draws, strict=False) == interval(0.5, draws)


@pytest.mark.parametrize(
    "arrays, keys, words",
    [
        (([1, 2], [1]), {}, "cannot be resampled"),
        (([],), {}, "cannot be resampled"),
        (([1, 2],), {"clusters": [1]}, "cannot be resampled"),
        (([1, 2],), {"clusters": [1, 1], "strata": [0, 1]}, "two strata"),
    ],
)
def test_bad_samples_are_refused(arrays, keys, words):
    with pytest.raises(DataError, match=words):
        Sample(*arrays, **keys)


def test_an_interval_prints_and_contains():
    assert str(Interval(0.5, 0.4, 0.6)) == "0.500 [0.400, 0.600]"
    assert 0.45 in Interval(0.5, 0.4, 0.6) and 0.61 not in Interval(0.5, 0.4, 0.6)


def test_an_interval_as_cells_of_a_table():
    found = Interval(0.5, 0.4, 0.6)
    assert found.columns("share") == {"share": 0.5, "share_low": 0.4, "share_high": 0.6}
    assert found.columns("mean", "") == {"mean": 0.5, "low": 0.4, "high": 0.6}
