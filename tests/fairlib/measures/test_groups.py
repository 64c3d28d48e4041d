"""Subgroup metrics against hand computation, scikit-learn and fairlearn; small subgroups are named,
never NaN.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
from fairlearn import metrics as fairlearn
from sklearn.metrics import balanced_accuracy_score, recall_score

from fairlib.errors import DataError
from fairlib.measures.groups import METRICS, group_report, prevalence_weights


def answers(n=1200, seed=0, miss=None):
    """Right nine times in ten, save ill members of the group `miss` (sex, age), right two times in
    ten.
    """
    rng = np.random.default_rng(seed)
    groups = pd.DataFrame(
        {"sex": rng.choice(["F", "M"], n), "age": rng.choice(["lower", "middle", "upper"], n)}
    )
    label = (rng.random(n) < 0.4).astype(int)
    right = rng.random(n) < np.where(label == 1, 0.9, 0.85)
    if miss:
        hit = (groups.sex == miss[0]) & (groups.age == miss[1]) & (label == 1)
        right = np.where(hit, rng.random(n) < 0.2, right)
    return label, np.where(right, label, 1 - label), groups, np.arange(n)


def test_by_hand():
    """F: 2 of 3 ill found, 1 of 4 healthy called ill. M: 1 of 2, 0 of 2."""
    label = [1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0]
    answer = [1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    report = group_report(
        label, answer, pd.DataFrame({"sex": list("FFFFFFFMMMM")}), range(11), n_min=2
    )
    assert report.groups.loc["F", list(METRICS)].tolist() == pytest.approx(
        [(2 / 3 + 3 / 4) / 2, 2 / 3, 1 / 4, 3 / 7]
    )
    assert report.groups.loc["M", list(METRICS)].tolist() == pytest.approx(
        [(1 / 2 + 1) / 2, 1 / 2, 0, 1 / 4]
    )
    assert report.groups[["ill", "healthy", "images"]].values.tolist() == [[3, 4, 7], [2, 2, 4]]
    assert report.gaps.to_dict() == pytest.approx(
        {
            "balanced_accuracy": 3 / 4 - 17 / 24,
            "tpr": 1 / 6,
            "fpr": 1 / 4,
            "selection_rate": 3 / 7 - 1 / 4,
            "equalised_odds": 1 / 4,
        }
    )
    assert report.worst == ("F", pytest.approx(17 / 24))


@pytest.mark.parametrize("columns", [["sex"], ["sex", "age"]])
@pytest.mark.parametrize("weighted", [False, True])
def test_against_scikit_learn_and_fairlearn(columns, weighted):
    label, answer, groups, subject = answers()
    weight = np.random.default_rng(1).uniform(0.2, 3, len(label)) if weighted else None
    used = np.ones(len(label)) if weight is None else weight
    report = group_report(label, answer, groups[columns], subject, weight)
    for name, rows in groups.groupby(columns if len(columns) > 1 else columns[0]).groups.items():
        row = report.groups.loc[name if isinstance(name, str) else ", ".join(name)]
        given = label[rows], answer[rows]
        assert row.balanced_accuracy == pytest.approx(
            balanced_accuracy_score(*given, sample_weight=used[rows])
        )
        assert row.tpr == pytest.approx(recall_score(*given, sample_weight=used[rows]))
        assert row.fpr == pytest.approx(
            1 - recall_score(*given, sample_weight=used[rows], pos_label=0)
        )
    features = {"sensitive_features": groups[columns], "sample_weight": used}
    assert report.gaps.selection_rate == pytest.approx(
        fairlearn.demographic_parity_difference(label, answer, **features)
    )
    assert report.gaps.equalised_odds == pytest.approx(
        fairlearn.equalized_odds_difference(label, answer, **features)
    )
    assert report.overall.balanced_accuracy == pytest.approx(
        balanced_accuracy_score(label, answer, sample_weight=used)
    )


def test_a_planted_failure_is_found():
    label, answer, groups, subject = answers(miss=("F", "upper"))
    report = group_report(label, answer, groups, subject)
    assert report.worst[0] == "F, upper" and report.worst[1] < 0.65
    assert report.gaps.tpr > 0.5 > 0.2 > report.gaps.fpr
    assert report.groups.drop("F, upper").balanced_accuracy.min() > 0.8


def test_balanced_accuracy_does_not_depend_on_the_prevalence():
    """Weighted down to one in a hundred: the same in every subgroup; what depends on the prevalence
    changes.
    """
    label, answer, groups, subject = answers()
    weight = prevalence_weights(label, 0.01)
    assert weight.mean() == pytest.approx(1) and weight[
        label == 1
    ].sum() / weight.sum() == pytest.approx(0.01)
    plain, rare = (group_report(label, answer, groups, subject, w) for w in (None, weight))
    for name in ("balanced_accuracy", "tpr", "fpr"):
        assert rare.groups[name].to_numpy() == pytest.approx(plain.groups[name].to_numpy())
    # nearly everyone is healthy
    assert (rare.groups.selection_rate - rare.groups.fpr).abs().max() < 0.02
    assert (plain.groups.selection_rate - rare.groups.selection_rate).min() > 0.1


def test_weighting_down_is_far_surer_than_leaving_out():
    """One true sensitivity; from the whole test set, and from a hundredth of its ill subjects."""
    rng, whole, few = np.random.default_rng(0), [], []
    for _ in range(100):
        found = rng.random(2000) < 0.8
        whole.append(found.mean())
        few.append(found[:20].mean())
    assert np.mean(few) == pytest.approx(np.mean(whole), abs=0.04) and np.std(few) > 5 * np.std(
        whole
    )


def test_small_and_empty_subgroups_are_named():
    label, answer, groups, subject = answers()
    keep = ~((groups.sex == "F") & (groups.age == "lower"))  # nobody
    keep &= ~((groups.sex == "M") & (groups.age == "upper") & (label == 1))  # no ill one
    few = np.flatnonzero((groups.sex == "F") & (groups.age == "middle") & (label == 0))
    keep[few[3:]] = False  # three healthy ones
    given = label[keep], answer[keep], groups[keep].reset_index(drop=True), subject[keep]
    report = group_report(*given)
    found = report.excluded.set_index("group")
    assert found.reason.to_dict() == {
        "F, lower": "nobody",
        "F, middle": "fewer than 10 of a class",
        "M, upper": "no ill subject",
    }
    assert (
        found.loc["F, middle", "healthy"] == 3
        and found.loc["M, upper", "ill"] == 0
        and found.loc["F, lower", "ill"] == 0
    )
    assert list(report.groups.index) == ["F, upper", "M, lower", "M, middle"]
    assert report.groups.notna().all(axis=None) and report.gaps.notna().all()
    # everybody
    assert report.overall.balanced_accuracy == pytest.approx(balanced_accuracy_score(*given[:2]))
    assert "F, middle" in group_report(*given, n_min=3).groups.index
    with pytest.raises(
        DataError, match="subgroup 'F, lower': 0 ill and 0 healthy subjects .nobody."
    ):
        group_report(*given, small="error")


def test_subjects_are_counted_and_not_their_images():
    label, answer, groups, subject = answers(60)
    repeated = [np.repeat(np.asarray(part), 5) for part in (label, answer)]
    report = group_report(
        *repeated, groups[["sex"]].loc[np.repeat(groups.index, 5)], np.repeat(subject, 5), n_min=1
    )
    plain = group_report(label, answer, groups[["sex"]], subject, n_min=1)
    assert (report.groups.ill == plain.groups.ill).all() and (
        report.groups.images == 5 * plain.groups.images
    ).all()
    with pytest.raises(DataError, match="0 of 2 subgroups have 60 ill"):
        group_report(
            *repeated,
            groups[["sex"]].loc[np.repeat(groups.index, 5)],
            np.repeat(subject, 5),
            n_min=60,
        )


def test_categories_keep_their_order_and_the_missing_one_is_reported():
    label, answer, groups, subject = answers()
    age = pd.Categorical(groups.age, ["upper", "middle", "lower", "ancient"])
    report = group_report(label, answer, pd.DataFrame({"age": age}), subject)
    assert list(report.groups.index) == ["upper", "middle", "lower"] and list(
        report.excluded.group
    ) == ["ancient"]


def test_bad_input_is_refused():
    label, answer, groups, subject = answers(100)
    cases = {
        "one of each": (label[:9], answer, groups, subject),
        "0 or 1": (label, answer * 2, groups, subject),
        "above 0": (label, answer, groups, subject, np.zeros(100)),
        "1 rows have no sex": (
            label,
            answer,
            groups.assign(sex=groups.sex.where(groups.index > 0)),
            subject,
        ),
    }
    for (words, given), n_min in itertools.product(cases.items(), (1, 5)):
        with pytest.raises(DataError, match=words):
            group_report(*given, n_min=n_min)
    with pytest.raises(DataError, match="'exclude' or 'error'"):
        group_report(label, answer, groups, subject, small="drop")
    with pytest.raises(DataError, match="between 0 and 1"):
        prevalence_weights([1, 1], 0.1)
