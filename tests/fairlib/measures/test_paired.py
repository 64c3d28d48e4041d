"""Paired intervals: their estimates are those of fairlearn's MetricFrame, they cover, and pairing makes them
narrower.
"""

import numpy as np
import pandas as pd
import pytest
from fairlearn import metrics as fairlearn
from sklearn.metrics import balanced_accuracy_score

from fairlib.errors import DataError
from fairlib.measures.equity import prevalence_weights
from fairlib.measures.paired import (
    METRICS,
    BootstrapSettings,
    PairedAnswers,
    arm_metrics,
    crossed_interval,
    paired_answers,
)

FEW = BootstrapSettings(replicates=100)


def predictions(rng, people=160, arms=("real", "mixed"), seeds=4, spread=0.3, slices=1):
    """Every person is hard or easy for all arms alike."""
    sex, label = np.arange(people) % 2, np.arange(people) // 2 % 2
    hard = rng.normal(0, 1, people)
    rows = []
    for arm in arms:
        for seed in range(seeds):
            score = (2 * label - 1) + hard + rng.normal(0, 0.15)
            score = np.repeat(score, slices) + rng.normal(0, spread, people * slices)
            rows.append(
                pd.DataFrame(
                    {
                        "arm": arm,
                        "seed": seed,
                        "subject": np.repeat(np.arange(people), slices),
                        "image": np.arange(people * slices),
                        "label": np.repeat(label, slices),
                        "sex": np.repeat(np.where(sex, "M", "F"), slices),
                        "positive": score > 0,
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


def cell(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    [row] = table.itertuples()
    return row


def metric_frame(part, weight):
    functions = (
        balanced_accuracy_score,
        fairlearn.true_positive_rate,
        fairlearn.false_positive_rate,
        fairlearn.selection_rate,
    )
    used = np.ones(len(part)) if weight is None else weight
    return fairlearn.MetricFrame(
        metrics=dict(zip(METRICS, functions, strict=True)),
        y_true=part.label.to_numpy(),
        y_pred=part.positive.to_numpy(int),
        sensitive_features=part.sex.to_numpy(),
        sample_params={name: {"sample_weight": used} for name in METRICS},
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_estimates_are_means_over_seeds_of_metric_frames(weighted):
    table = predictions(np.random.default_rng(0), slices=2)
    answers = paired_answers(table, ["sex"])
    weight = prevalence_weights(answers.label, 0.05) if weighted else None
    values = arm_metrics(answers, np.random.default_rng(1), FEW, weight)
    for arm in ("real", "mixed"):
        parts = [table[(table.arm == arm) & (table.seed == seed)] for seed in range(4)]
        frames = [metric_frame(p, weight) for p in parts]
        for metric in METRICS:
            each = {sex: np.mean([f.by_group.loc[sex, metric] for f in frames]) for sex in "FM"}
            for sex in "FM":
                assert cell(values, arm=arm, metric_id=metric, group=sex).estimate == pytest.approx(
                    each[sex]
                )
            assert cell(values, arm=arm, metric_id=metric, group="all").estimate == pytest.approx(
                np.mean([f.overall[metric] for f in frames])
            )
            assert cell(values, arm=arm, metric_id=metric, group="gap").estimate == pytest.approx(
                abs(each["F"] - each["M"])
            )
            if metric != "selection_rate":
                worst = max(each.values()) if metric == "fpr" else min(each.values())
                assert cell(
                    values, arm=arm, metric_id=metric, group="worst"
                ).estimate == pytest.approx(worst)
    assert not ((values.group == "worst") & (values.metric_id == "selection_rate")).any()


def test_differences_are_differences_of_values():
    answers = paired_answers(
        predictions(np.random.default_rng(0), arms=("real", "mixed", "extra")), ["sex"]
    )
    values = (
        arm_metrics(answers, np.random.default_rng(1), FEW)
        .set_index(["arm", "group", "metric_id"])
        .estimate
    )
    differences = arm_metrics(
        answers, np.random.default_rng(1), settings=FEW, reference="real"
    ).set_index(["arm", "group", "metric_id"])
    assert (
        set(differences.index.get_level_values("arm")) == {"mixed", "extra"}
        and (differences.reference == "real").all()
    )
    for key, row in differences.iterrows():
        assert row.estimate == pytest.approx(values[key] - values["real", key[1], key[2]])
        assert row.low <= row.estimate + 0.05 and row.high >= row.estimate - 0.05


def test_a_paired_interval_is_narrower_than_two_separate_ones():
    answers = paired_answers(predictions(np.random.default_rng(2)), ["sex"])
    values = arm_metrics(answers, np.random.default_rng(1))
    paired = cell(
        arm_metrics(answers, np.random.default_rng(1), reference="real"),
        group="all",
        metric_id="balanced_accuracy",
    )
    widths = [
        row.high - row.low
        for row in values[
            (values.group == "all") & (values.metric_id == "balanced_accuracy")
        ].itertuples()
    ]
    assert paired.high - paired.low < 0.7 * np.hypot(*widths)


def simulated(rng, people=120, seeds=6, luck=0.15, spread=0.3, better=0.0):
    """Answers of two arms alike in distribution but for `better` (women, second arm), without the detour
    through a table.
    """
    sex, label = np.arange(people) % 2, np.arange(people) // 2 % 2
    gain = better * np.array([0, 1])[:, None, None] * (sex == 0)
    shared, luck = rng.normal(size=people), luck * rng.normal(size=(2, seeds, 1))
    score = (
        (2 * label - 1) * (1 + gain) + shared + luck + spread * rng.normal(size=(2, seeds, people))
    )
    groups = pd.DataFrame({"sex": np.where(sex == 0, "F", "M")})
    return PairedAnswers(
        ("real", "mixed"),
        tuple(range(seeds)),
        label,
        np.arange(people),
        groups,
        (score > 0).astype(float),
    )


@pytest.mark.parametrize(
    "kind", [(0.15, 0.3), (0.4, 0.1), (0.0, 1.0)], ids=["both", "seeds", "interaction"]
)
def test_intervals_cover_no_difference(kind):
    """The true difference is 0; near 95 % of 120 test sets, whatever the noise comes from."""
    rng, settings, covered = np.random.default_rng(0), BootstrapSettings(replicates=100), []
    for _ in range(120):
        answers = simulated(rng, seeds=8, luck=kind[0], spread=kind[1])
        found = arm_metrics(answers, rng, settings=settings, reference="real").set_index(
            ["metric_id", "group"]
        )
        rows = [found.loc["balanced_accuracy", group] for group in ("all", "F", "M", "worst")]
        covered.append([row.low <= 0 <= row.high for row in rows])
    assert np.mean(covered, axis=0).min() >= 0.88
    assert 0.91 <= np.mean(covered, axis=0)[:3].mean() <= 0.985


def test_intervals_exclude_zero_where_there_is_a_difference():
    """A gain in women shows in women, and not in men."""
    rng, settings, seen = np.random.default_rng(0), BootstrapSettings(replicates=100), []
    for _ in range(25):
        found = arm_metrics(
            simulated(rng, better=1.0), rng, settings=settings, reference="real"
        ).set_index(["metric_id", "group"])
        seen.append([found.loc["balanced_accuracy", group].low > 0 for group in ("F", "M")])
    assert np.mean(seen, axis=0)[0] >= 0.9 and np.mean(seen, axis=0)[1] <= 0.15


def test_patients_and_seeds_are_not_counted_twice():
    """Noise of one patient under one seed alone: the interval is that of the patients, not sqrt(3)
    times it.
    """
    draws = np.random.default_rng(0).normal(size=(3, 4000)) * np.sqrt([3.0, 1.0, 1.0])[:, None]
    found = crossed_interval(0.0, draws, seeds=1000)
    assert found.high - found.low == pytest.approx(2 * 1.96, rel=0.06)
    # no interaction
    apart = np.random.default_rng(0).normal(size=(3, 4000)) * np.sqrt([3.0, 1.0, 2.0])[:, None]
    found = crossed_interval(0.0, apart, seeds=1000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(3), rel=0.06)


def test_seeds_widen_the_interval():
    """Each arm and seed has its own luck: an interval that keeps the seeds fixed says nothing of
    it.
    """
    answers = paired_answers(
        predictions(np.random.default_rng(3), people=600, spread=0.05), ["sex"]
    )
    answers.answer[0, 0] = 1 - answers.label  # one failed training
    wide, narrow = (
        cell(
            arm_metrics(
                answers,
                np.random.default_rng(0),
                settings=BootstrapSettings(300, over),
                reference="real",
            ),
            group="all",
            metric_id="balanced_accuracy",
        )
        for over in (True, False)
    )
    assert wide.estimate == narrow.estimate and wide.high - wide.low > 3 * (
        narrow.high - narrow.low
    )


def test_whole_patients_are_drawn():
    """Five equal slices of each person carry no more than one: the interval is as wide, not
    narrower by sqrt(5).
    """
    one = predictions(np.random.default_rng(4), spread=0.0, arms=("real",))
    five = one.loc[one.index.repeat(5)].reset_index(drop=True)
    five["image"] = five.groupby(["arm", "seed"]).cumcount()
    width = [
        cell(
            arm_metrics(
                paired_answers(t, ["sex"]), np.random.default_rng(0), BootstrapSettings(400)
            ),
            group="F",
            metric_id="tpr",
        )
        for t in (one, five)
    ]
    assert width[1].high - width[1].low == pytest.approx(width[0].high - width[0].low, rel=0.25)


def test_small_subgroups_are_listed_and_the_rest_is_reported():
    table = predictions(np.random.default_rng(5))
    table["bmi"] = np.where(table.subject < 5, "below 25", "above")
    found = arm_metrics(
        paired_answers(table, ["sex", "bmi"]),
        np.random.default_rng(0),
        settings=FEW,
        reference="real",
    )
    assert sorted(row["group"] for row in found.attrs["excluded"]) == ["F, below 25", "M, below 25"]
    assert set(found.group) == {"all", "F, above", "M, above", "worst", "gap"} and found[
        ["low", "high"]
    ].notna().all(axis=None)
    with pytest.raises(DataError, match="F, below 25"):
        arm_metrics(
            paired_answers(table, ["sex", "bmi"]),
            np.random.default_rng(0),
            BootstrapSettings(10, small="error"),
        )


def test_same_generator_same_interval():
    answers = paired_answers(predictions(np.random.default_rng(6)), ["sex"])
    first, again = (
        arm_metrics(answers, np.random.default_rng(3), settings=FEW, reference="real")
        for _ in range(2)
    )
    pd.testing.assert_frame_equal(first, again)


def test_answers_that_are_not_paired_are_refused():
    table = predictions(np.random.default_rng(7))
    answers = paired_answers(table.sample(frac=1, random_state=0), ["sex"])
    assert np.array_equal(
        answers.answer[answers.arms.index("real"), answers.seeds.index(2)],
        table[(table.arm == "real") & (table.seed == 2)].positive,
    )
    other = (table.arm == "mixed") & (table.seed == 3)
    for bad in (
        table[~other],
        table.drop(table[other].index[:1]),
        pd.concat([table, table[other]]),
        table.assign(label=np.where(other, 1 - table.label, table.label)),
    ):
        with pytest.raises(DataError, match="arm 'mixed', seed 3: not the same images"):
            paired_answers(bad, ["sex"])
    with pytest.raises(DataError, match="unknown key 'sx'"):
        paired_answers(table, ["sx"])
    with pytest.raises(DataError, match="did you mean 'real'"):
        arm_metrics(answers, np.random.default_rng(0), settings=FEW, reference="reel")
    with pytest.raises(DataError, match="one finite number above 0"):
        arm_metrics(answers, np.random.default_rng(0), FEW, np.zeros(160))
