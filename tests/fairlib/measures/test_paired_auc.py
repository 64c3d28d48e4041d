"""Paired comparisons: draws against the long way round, the null, and a difference that is
there.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fairlib.errors import DataError
from fairlib.measures.equity import equity_report
from fairlib.measures.paired import (
    STATISTICS,
    PairedAreas,
    auc_differences,
    compare_auc,
    swap_p,
)
from studies.statistics import simulated_arms

SIZES = (30, 40, 60)


def arms(seed=0, areas=(0.7, 0.85, 0.9)):
    return simulated_arms(np.random.default_rng(seed), SIZES, areas)


def test_observed_differences_are_those_of_the_equity_report():
    label, score, group = arms()
    probability = 1 / (1 + np.exp(-score))
    found = compare_auc(
        label, probability, group, np.random.default_rng(1), replicates=50
    ).set_index("metric_id")
    rows = [
        equity_report(label, part, pd.DataFrame({"g": group})).table.iloc[0] for part in probability
    ]
    expected = {
        "auc": "overall",
        "worst": "worst",
        "gap": "difference",
        "equity_scaled": "equity_scaled",
    }
    assert list(found.index) == list(STATISTICS)
    for name, column in expected.items():
        assert found.difference[name] == pytest.approx(rows[1][column] - rows[0][column], abs=1e-6)
    assert (found.low <= found.high).all() and found.p.between(0, 1).all()


def test_draws_are_those_of_repeated_people():
    """Two draws computed from people repeated one by one, the same people for both arms."""
    label, score, group = arms()
    areas, rng = PairedAreas(label, score, group), np.random.default_rng(2)
    times = [
        rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), 2).astype(np.float32)
        for rows in areas.strata
    ]
    found = areas.statistics(times, 1.0)
    for b in range(2):
        rows = np.concatenate(
            [
                np.repeat(own, count[b].astype(int))
                for own, count in zip(areas.strata, times, strict=True)
            ]
        )
        for arm in (0, 1):
            whole = roc_auc_score(label[rows], score[arm, rows])
            each = [
                roc_auc_score(label[rows[group[rows] == g]], score[arm, rows[group[rows] == g]])
                for g in range(3)
            ]
            scaled = whole / (1 + sum(abs(value - whole) for value in each))
            assert found[arm, b] == pytest.approx(
                [whole, min(each), max(each) - min(each), scaled], abs=1e-6
            )


def test_swapped_draws_are_those_of_exchanged_scores():
    label, score, group = arms()
    areas, rng = PairedAreas(label, score, group), np.random.default_rng(3)
    swap = [rng.random((3, len(rows))) < 0.5 for rows in areas.strata]
    found = areas.swapped(swap, 1.0)
    once = [np.ones((1, len(rows)), np.float32) for rows in areas.strata]
    for b in range(3):
        changed = score.copy()
        for rows, mask in zip(areas.strata, swap, strict=True):
            changed[:, rows[mask[b]]] = changed[::-1][:, rows[mask[b]]]
        assert found[:, b] == pytest.approx(
            PairedAreas(label, changed, group).statistics(once, 1.0)[:, 0], abs=1e-6
        )


def test_under_the_null_one_in_twenty():
    """250 pairs of equal arms whose groups differ, 60 people: the swap test rejects at most 5 %
    (here:
    within three standard errors), its p is even over [0, 1], and the bootstrap of the AUC, a little
    too sure with so few, stays near.
    """
    rng, out, even = np.random.default_rng(4), [], []
    for _ in range(250):
        observed, drawn, swapped = auc_differences(
            PairedAreas(*simulated_arms(rng, (30, 30), (0.75, 0.9))), rng, 120
        )
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        even.append(swap_p(observed, swapped))
        out.append([*(even[-1] <= 0.05), low[0] > 0 or high[0] < 0])
    rates = np.mean(out, axis=0)
    assert (
        rates[:4].max() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 250)
        and rates[:4].min() >= 0.01
        and 0.02 <= rates[4] <= 0.13
    )
    assert np.mean(even, axis=0) == pytest.approx(np.full(4, 0.5), abs=3 * np.sqrt(1 / 12 / 250))


def test_a_difference_that_is_there_is_found():
    label, score, group = simulated_arms(
        np.random.default_rng(5), (100, 100, 200), (0.6, 0.85, 0.85)
    )
    # the worst group's ill people are found
    better = score[0] + np.where((group == 0) & (label == 1), 1.1, 0)
    found = compare_auc(label, [score[0], better], group, np.random.default_rng(6)).set_index(
        "metric_id"
    )
    assert (found.loc[["auc", "worst", "equity_scaled"], "low"] > 0).all() and found.loc[
        "gap", "high"
    ] < 0
    assert found.p.max() < 0.01


def test_equal_arms_do_not_differ_at_all():
    label, score, group = arms()
    found = compare_auc(label, [score[0]] * 2, group, np.random.default_rng(0), 50)
    assert (found[["difference", "low", "high"]] == 0).all(axis=None) and (found.p == 1).all()


def test_same_generator_same_table():
    label, score, group = arms()
    first, again = (
        compare_auc(label, score, group, np.random.default_rng(7), 60) for _ in range(2)
    )
    pd.testing.assert_frame_equal(first, again)


def test_p_counts_the_observed_one():
    assert swap_p(
        np.array([2.0, 0.0]), np.array([[1.0, 1.0], [-2.0, 0.0], [0.5, -1.0]])
    ).tolist() == [0.5, 1.0]


def test_bad_input_is_named():
    label, score, group = arms()
    for words, arguments in {
        "labels 0 or 1": (label + 1, score, group),
        "one score of each arm": (label[:-1], score, group[:-1]),
        "NaN or infinity": (label, np.where(score > 1, np.nan, score), group),
        "group '0' has .*fewer than 16": (label, score, group),
        "1 of 1 groups": (label, score, np.zeros(len(label))),
    }.items():
        with pytest.raises(DataError, match=words):
            compare_auc(*arguments, np.random.default_rng(0), n_min=16)
