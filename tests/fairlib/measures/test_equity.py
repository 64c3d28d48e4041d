"""Equity-scaled measures against hand computation and the published formula; scikit-learn and
fairlearn for what goes in.
"""

import numpy as np
import pandas as pd
import pytest
from fairlearn import metrics as fairlearn
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score

from fairlib.errors import DataError
from fairlib.measures.equity import (
    equity_report,
    equity_scaled,
    equity_scaled_distance,
    equity_table,
    prevalence_weights,
    spread,
)

SHARES = st.floats(0.01, 1.0)


def people(n=900, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    race = rng.choice(["Asian", "Black", "White"], n, p=[0.2, 0.3, 0.5])
    groups = pd.DataFrame({"race": race, "sex": rng.choice(["F", "M"], n)})
    label = rng.integers(classes, size=n)
    logits = 1.2 * np.eye(classes)[label] * np.where(groups.race == "Black", 0.4, 1)[
        :, None
    ] + rng.normal(size=(n, classes))
    score = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return label, score if classes > 2 else score[:, 1], groups


def published(overall, values, alpha=1.0):
    """Term by term, as the released evaluation adds them up."""
    total = 0.0
    for value in values:
        total += abs(value - overall)
    return overall / (alpha * total + 1)


def test_by_hand():
    """0.8 overall, groups 0.9, 0.8, 0.6: 0.8 / (1 + 0.1 + 0 + 0.2) = 8 / 13."""
    assert equity_scaled(0.8, [0.9, 0.8, 0.6]) == pytest.approx(8 / 13, abs=1e-12)
    assert equity_scaled(0.8, [0.9, 0.8, 0.6], alpha=2) == pytest.approx(0.5, abs=1e-12)
    assert equity_scaled(0.8, [0.9, 0.8, 0.6], weights=[2, 1, 0]) == pytest.approx(
        0.8 / 1.2, abs=1e-12
    )
    found = spread(0.8, [0.9, 0.8, 0.6])
    assert found["difference"] == pytest.approx(0.3) and found[
        "difference_scaled"
    ] == pytest.approx(0.375)
    mean = 2.3 / 3
    std = np.sqrt(((0.9 - mean) ** 2 + (0.8 - mean) ** 2 + (0.6 - mean) ** 2) / 3)
    assert found["std"] == pytest.approx(std) and found["std_scaled"] == pytest.approx(std / 0.8)


@given(SHARES, st.lists(SHARES, min_size=1, max_size=18), st.floats(0, 5))
def test_it_is_the_published_formula_and_never_above_the_measure(overall, values, alpha):
    found = equity_scaled(overall, values, alpha)
    assert found == pytest.approx(published(overall, values, alpha), abs=1e-12)
    assert found <= overall and equity_scaled(overall, values[::-1], alpha) == pytest.approx(
        found, abs=1e-12
    )
    assert equity_scaled(overall, [overall] * len(values), alpha) == overall
    assert equity_scaled(overall, [*values, 0.5], alpha) <= found  # another group can only lower it


@pytest.mark.parametrize("classes", [2, 4])
def test_report_against_scikit_learn_fairlearn_and_the_published_formula(classes):
    label, score, groups = people(classes=classes)
    report = equity_report(label, score, groups)
    columns = np.stack([1 - score, score], 1) if classes == 2 else score
    answer = (score >= 0.5).astype(int) if classes == 2 else score.argmax(1)

    def auc(rows):
        return roc_auc_score(
            np.eye(classes)[label[rows]], columns[rows], average="macro", multi_class="ovr"
        )

    everybody = np.ones(len(label), bool)
    assert report.overall["auc"] == pytest.approx(auc(everybody), abs=1e-12)
    assert report.overall["accuracy"] == pytest.approx(accuracy_score(label, answer), abs=1e-12)
    for attribute in groups:
        rows = {
            name: (groups[attribute] == name).to_numpy()
            for name in sorted(groups[attribute].unique())
        }
        values = {
            "auc": [auc(own) for own in rows.values()],
            "accuracy": [accuracy_score(label[own], answer[own]) for own in rows.values()],
        }
        own = report.by_group[report.by_group.attribute == attribute]
        assert own.group.tolist() == list(rows) and own.class_1.tolist() == [
            int((label[r] == 1).sum()) for r in rows.values()
        ]
        for metric, expected in values.items():
            assert own[metric].tolist() == pytest.approx(expected, abs=1e-12)
            [row] = report.table[
                (report.table.attribute == attribute) & (report.table.metric_id == metric)
            ].itertuples()
            assert row.equity_scaled == pytest.approx(
                published(report.overall[metric], expected), abs=1e-12
            )
            assert row.std == pytest.approx(np.std(expected)) and row.difference == pytest.approx(
                max(expected) - min(expected)
            )
            assert (
                row.worst == min(expected)
                and row.worst_group == list(rows)[int(np.argmin(expected))]
            )
        asked = [1] if classes == 2 else range(classes)
        features = {"sensitive_features": groups[attribute]}
        parity = report.table.drop_duplicates("attribute").set_index("attribute").loc[attribute]
        given = [(label == c, answer == c) for c in asked]
        assert parity.demographic_parity == pytest.approx(
            np.mean([fairlearn.demographic_parity_difference(*pair, **features) for pair in given])
        )
        assert parity.equalised_odds == pytest.approx(
            np.mean([fairlearn.equalized_odds_difference(*pair, **features) for pair in given])
        )
    assert report.by_group.set_index("group").auc.idxmin() == "Black", (
        "whom the scores were made worse for"
    )


def test_two_columns_are_the_same_as_one():
    label, score, groups = people()
    one, two = (
        equity_report(label, score, groups),
        equity_report(label, np.stack([1 - score, score], 1), groups),
    )
    pd.testing.assert_frame_equal(one.table, two.table)
    pd.testing.assert_frame_equal(one.table, equity_table(label, score, groups))


def test_small_and_one_class_groups_are_named_and_never_nan():
    label, score, groups = people()
    groups["race"] = pd.Categorical(groups["race"], ["Asian", "Black", "White", "Other", "Unknown"])
    groups.loc[:29, "race"] = "Other"
    label[:30] = 1
    label[:4] = 0  # four healthy, 26 ill
    groups.loc[30:49, "sex"] = "X"
    label[30:50] = 1
    report = equity_report(label, score, groups)
    found = report.excluded.set_index("group")
    assert found.reason.to_dict() == {
        "Other": "fewer than 10 of a class",
        "Unknown": "no subject",
        "X": "no class 0 subject",
    }
    assert found.loc["Other", ["attribute", "class_0", "class_1"]].tolist() == ["race", 4, 26]
    assert report.by_group.notna().all(axis=None) and report.table.notna().all(axis=None)
    assert report.overall["auc"] == pytest.approx(roc_auc_score(label, score)), (
        "everybody, also of excluded groups"
    )
    assert "Other" in equity_report(label, score, groups, n_min=4).by_group.group.tolist()
    with pytest.raises(
        DataError, match="sex: group 'X' has 0, 20 subjects of classes 0 to 1 .no class 0 subject."
    ):
        equity_report(label, score, groups[["sex"]], small="error")


def test_people_are_counted_and_not_their_images():
    label, score, groups = people(60)
    label, score, groups = (
        np.repeat(label, 5),
        np.repeat(score, 5),
        groups.loc[groups.index.repeat(5)].reset_index(drop=True),
    )
    assert equity_report(label, score, groups[["sex"]]).by_group.class_1.sum() == label.sum()
    assert (
        equity_report(
            label, score, groups[["sex"]], np.repeat(np.arange(60), 5)
        ).by_group.class_1.sum()
        == label.sum() // 5
    )


def test_distance_adds_what_divides_the_groups():
    """Ours: 2 + mean(1, 0, 0.5) = 2.5. Equal distances cost nothing, also below zero; more groups
    alike change nothing.
    """
    images = {"all": 50, "a": 50, "b": 50, "c": 50}
    assert equity_scaled_distance(2.0, {"a": 3.0, "b": 2.0, "c": 1.5}, images) == pytest.approx(2.5)
    assert equity_scaled_distance(
        2.0, {"a": 3.0, "b": 2.0, "c": 1.5}, images, alpha=2
    ) == pytest.approx(3.0)
    assert (
        equity_scaled_distance(
            -0.001, {"a": -0.001, "b": -0.001}, dict.fromkeys(["all", "a", "b"], 9)
        )
        == -0.001
    )
    four = dict.fromkeys("abcd", 1.5)
    assert equity_scaled_distance(
        1.0, four, dict.fromkeys(["all", *four], 9)
    ) == equity_scaled_distance(1.0, {"a": 1.5}, {"all": 9, "a": 9})


@pytest.mark.parametrize("images", [{"all": 60, "a": 50}, {"a": 50}, {"all": 50, "a": 50, "b": 50}])
def test_distances_at_unequal_numbers_are_refused(images):
    with pytest.raises(DataError, match="images behind the distances"):
        equity_scaled_distance(1.0, {"a": 2.0}, images)


@pytest.mark.parametrize(
    "overall, values, alpha",
    [(0.8, [], 1), (0.8, [np.nan], 1), (np.inf, [0.5], 1), (0.8, [0.5], -1), (0.8, [0.5], np.nan)],
)
def test_values_that_are_none_are_refused(overall, values, alpha):
    with pytest.raises(DataError, match="expected finite values"):
        equity_scaled(overall, values, alpha)


@pytest.mark.parametrize("weights", [[1, 1], [2, 2, 2], [3, 1, -1], [np.nan, 1, 2]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(DataError, match="mean one"):
        equity_scaled(0.8, [0.9, 0.8, 0.6], weights=weights)


def test_bad_input_is_named():
    label, score, groups = people()
    for words, arguments in {
        "scores of shape": (label, score[:-1], groups),
        "must be finite": (label, np.where(score > 0.9, np.nan, score), groups),
        "labels among 0 to 1": (label + 1, score, groups),
        "1 of 2 classes": (np.zeros(900, int), score, groups),
        "3 of .* rows have no race": (
            label,
            score,
            groups.assign(race=groups.race.where(groups.index > 2)),
        ),
        "no attribute": (label, score, groups[[]]),
        "1 of 1 groups": (label, score, groups.assign(sex="F")[["sex"]]),
        "2 subjects for 900": (label, score, groups, [1, 2]),
    }.items():
        with pytest.raises(DataError, match=words):
            equity_report(*arguments)
    with pytest.raises(DataError, match="n_min 0"):
        equity_report(label, score, groups, n_min=0)
    with pytest.raises(DataError, match="overall value is 0"):
        spread(0.0, [0.0, 0.1])


def test_rates_by_hand():
    """F: 2 of 3 ill found, 1 of 4 healthy called ill. M: 1 of 2, 0 of 2."""
    label = [1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0]
    score = [0.9, 0.8, 0.1, 0.7, 0.2, 0.2, 0.1, 0.6, 0.2, 0.3, 0.1]
    report = equity_report(label, score, pd.DataFrame({"sex": list("FFFFFFFMMMM")}), n_min=2)
    table = report.by_group.set_index("group")
    rates = ["balanced_accuracy", "tpr", "fpr", "selection_rate"]
    assert table.loc["F", rates].tolist() == pytest.approx(
        [(2 / 3 + 3 / 4) / 2, 2 / 3, 1 / 4, 3 / 7]
    )
    assert table.loc["M", rates].tolist() == pytest.approx([(1 / 2 + 1) / 2, 1 / 2, 0, 1 / 4])
    assert table[["class_1", "class_0"]].to_numpy().tolist() == [[3, 4], [2, 2]]
    row = report.table.iloc[0]
    assert row.demographic_parity == pytest.approx(3 / 7 - 1 / 4)
    assert row.equalised_odds == pytest.approx(1 / 4)
    auc = table.auc.tolist()
    assert row.metric_id == "auc" and row.ratio == pytest.approx(min(auc) / max(auc))


def test_prevalence_weights():
    label = np.repeat([1, 0], [40, 60])
    weight = prevalence_weights(label, 0.01)
    assert weight.mean() == pytest.approx(1)
    assert weight[label == 1].sum() / weight.sum() == pytest.approx(0.01)
    with pytest.raises(DataError, match=r"give both in \(0, 1\)"):
        prevalence_weights([1, 1], 0.1)


def test_categories_keep_their_order_and_the_empty_one_is_reported():
    label, score, groups = people()
    race = pd.Categorical(groups.race, ["White", "Black", "Asian", "Other"])
    report = equity_report(label, score, pd.DataFrame({"race": race}))
    assert report.by_group.group.tolist() == ["White", "Black", "Asian"]
    assert report.excluded.group.tolist() == ["Other"]
    with pytest.raises(DataError, match="'exclude' or 'error'"):
        equity_report(label, score, groups, small="drop")
