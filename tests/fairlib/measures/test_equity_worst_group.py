"""The worst group's interval: tails in closed form, coverage where it is exact, and the naive
bootstrap failing beside it.
"""

import numpy as np
import pytest
from scipy.special import ndtri

from fairlib.errors import DataError
from fairlib.measures.equity import (
    contenders,
    logit_bounds,
    reach,
    tails,
    worst_auc,
    worst_group,
    worst_share,
)
from fairlib.measures.intervals import delong
from studies.statistics import (
    NAIVE,
    OURS,
    PICKED,
    Setting,
    chapter_settings,
    coverage,
)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 18])
def test_tails_add_up_to_the_level(k):
    """k groups alike: one upper bound or another falls below with 5 % (k > 2), and lower and upper
    tail are 5 % together.
    """
    near = np.arange(20) < k
    lower, upper = (float(tail[0]) for tail in tails(near))
    assert lower + upper == pytest.approx(0.05) and lower >= 0.024
    assert 1 - (1 - upper) ** k == pytest.approx(0.05 if k > 2 else 1 - 0.975**k, abs=1e-12)


def test_a_single_worst_group_has_its_own_two_sided_interval():
    """Others far above: 60 % of 100 against 95 %."""
    from scipy.stats import beta

    low, high, near = worst_share([60, 950, 950], [100, 1000, 1000])
    assert near.tolist() == [True, False, False]
    assert (low, high) == pytest.approx((beta.ppf(0.025, 60.5, 40.5), beta.ppf(0.975, 60.5, 40.5)))


def test_contenders_are_those_within_reach():
    assert reach(2) == pytest.approx(ndtri(0.95)) and reach(10) == pytest.approx(ndtri(0.99))
    distance = reach(3) * np.hypot(0.03, 0.04)
    value = np.array([0.8, 0.8 + 0.999 * distance, 0.8 + 1.001 * distance])
    assert contenders(value, np.array([0.03, 0.04, 0.04])).tolist() == [True, True, False]


def test_the_ends_are_ordered_and_hold_the_lowest_value():
    rng = np.random.default_rng(0)
    right = rng.binomial(40, 0.8, (500, 6))
    low, high, _ = worst_share(right, 40)
    assert (
        (low <= right.min(1) / 40).all()
        and (right.min(1) / 40 <= high).all()
        and (low < high).all()
    )


@pytest.mark.parametrize("values", [(0.8, 0.8, 0.8), (0.6, 0.9, 0.9), (0.8,) * 7])
def test_coverage_of_shares(values):
    """2,000 test sets each; the interval of the module keeps 95 % within 2.5 points where theory
    says it is exact.
    """
    setting = Setting("x", "accuracy", (200,) * len(values), values)
    found = coverage(np.random.default_rng(1), setting, 2000, 200, 500).set_index("method")
    assert found.coverage[OURS] == pytest.approx(0.95, abs=0.025)
    if values[0] == values[1]:
        assert found.coverage[NAIVE] < 0.85 and found.above[NAIVE] == 0, (
            "the bootstrap of the minimum lies below the truth"
        )
    assert (
        found.low[OURS] <= found.coverage[OURS] <= found.high[OURS]
        and found.repeats[PICKED] == 2000
    )


def test_coverage_of_areas():
    found = coverage(
        np.random.default_rng(2),
        Setting("x", "auc", (80, 80, 80), (0.85, 0.85, 0.85)),
        500,
        60,
        200,
    )
    found = found.set_index("method")
    assert (
        0.91 <= found.coverage[OURS] <= 0.98
        and found.coverage[NAIVE] < 0.85
        and found.repeats[NAIVE] == 200
    )


def test_worst_auc_where_scores_part_the_classes_completely():
    """Error 0: the bound is that of ten of ten independent pairs, not of a sure 1."""
    low, high, near = worst_auc([1.0, 0.99], [0.0, 0.005], [10, 400])
    assert near.all() and 0.7 < low < 0.9 and high <= 1


def test_logit_bounds_are_the_quantiles_of_a_normal_logit():
    from scipy.special import expit, logit

    low, high = logit_bounds(np.array([0.8]), np.array([0.04]), 0.01, 0.05)
    scale = 0.04 / 0.16
    assert low[0] == pytest.approx(expit(logit(0.8) + ndtri(0.01) * scale))
    assert high[0] == pytest.approx(expit(logit(0.8) + ndtri(0.95) * scale))


def people(rng, n=400):
    group = rng.choice(["a", "b", "c"], n, p=[0.2, 0.3, 0.5])
    label = rng.integers(2, size=n)
    return (
        label,
        1 / (1 + np.exp(-(2 * label - 1) * np.where(group == "a", 0.3, 1.5) - rng.normal(size=n))),
        group,
    )


@pytest.mark.parametrize("metric", ["auc", "accuracy", "tpr", "tnr"])
def test_worst_group_counts_what_its_metric_says(metric):
    label, score, group = people(np.random.default_rng(3))
    found = worst_group(label, score, group, metric)
    own = {name: group == name for name in "abc"}
    answer = score >= 0.5
    by_hand = {
        "auc": lambda r: delong(score[r & (label == 1)], score[r & (label == 0)])[0],
        "accuracy": lambda r: (answer == label)[r].mean(),
        "tpr": lambda r: answer[r & (label == 1)].mean(),
        "tnr": lambda r: 1 - answer[r & (label == 0)].mean(),
    }[metric]
    assert found.by_group["value"].to_dict() == pytest.approx(
        {name: by_hand(rows) for name, rows in own.items()}
    )
    assert found.group == "a" and found.near == ("a",) and found.excluded.empty
    assert (
        found.interval.low
        < found.interval.estimate
        == found.by_group["value"].min()
        < found.interval.high
    )


def test_small_groups_are_listed():
    label, score, group = people(np.random.default_rng(4))
    group = np.where(np.arange(400) < 6, "rare", group)
    found = worst_group(label, score, group)
    [row] = found.excluded.itertuples()
    assert (
        row.group == "rare"
        and row.class_0 + row.class_1 == 6
        and row.reason == "fewer than 10 of a class"
    )
    with pytest.raises(DataError, match="comparison needs two"):
        worst_group(label, score, np.where(group == "rare", "rare", "all"))
    for bad in ({"metric": "f1"}, {"label": label + 1}, {"group": group[:-1]}):
        with pytest.raises(DataError, match="expected one of auc, accuracy, tpr, tnr"):
            worst_group(**({"label": label, "score": score, "group": group} | bad))


def test_settings_of_the_chapter():
    settings = chapter_settings(0.1)
    assert {setting.metric for setting in settings} == {"accuracy", "auc"} and len(
        {s.name for s in settings}
    ) == 8
    assert min(min(setting.sizes) for setting in settings) == 20
    with pytest.raises(DataError, match="a value for each group"):
        coverage(np.random.default_rng(0), Setting("x", "auc", (20, 20), (0.8,)), 1)
