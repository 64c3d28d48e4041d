"""Training plans, subgroups and prevalence; and the downstream test as a whole, on rings that
contract or not.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.cohorts.cardiac import control_image, prompt_of
from fairlib.errors import DataError, SettingsError
from fairlib.measures.paired import paired_answers
from fairlib.methods import downstream
from fairlib.methods.downstream import (
    ARMS,
    HEADS,
    META_GROUP,
    DownstreamSettings,
    ImageTable,
    PlanSettings,
    age_edges,
    at_prevalence,
    copies,
    evaluate_arm,
    fit_plan,
    labels_of,
    new_combinations,
    training_plan,
    with_groups,
)
from fairlib.methods.group_weights import balancing_weights
from fairlib.models.classifier import CARDIAC_SMALL, build_classifier

SETTINGS = DownstreamSettings(
    replace(DownstreamSettings().classifier, steps=4, batch_size=8, warmup=1),
    PlanSettings(synthetic_count=12),
)


def rings(n, seed, prefix):
    rng = np.random.default_rng(seed)
    ill = np.arange(n) % 2
    y, x = np.mgrid[:64, :64] - 31.5
    radii = np.stack([np.full(n, 15.0), np.where(ill == 1, 14.0, 9.0)], axis=1)
    pair = np.where(np.hypot(x, y) < radii[:, :, None, None], 0.5, -0.6).astype(np.float32)
    table = pd.DataFrame(
        {
            "subject": [f"{prefix}{i}" for i in range(n)],
            "sex": rng.choice(["F", "M"], n),
            "diagnosis": np.where(ill == 1, "heart failure", "healthy"),
            "age": rng.integers(30, 90, n),
            "bmi": rng.uniform(19, 38, n),
        }
    )
    return ImageTable(torch.from_numpy(pair[:, [0, 1, 0]]), table)


TRAIN, SYNTHETIC, EXTRA = rings(30, 0, "r"), rings(16, 1, "s"), rings(16, 2, "e")
VALIDATION, TEST = rings(12, 3, "v"), rings(20, 4, "t")


def run(arms, seeds=(0,), settings=SETTINGS, test=TEST, extra=EXTRA):
    given = TRAIN, SYNTHETIC, extra, test, settings
    return [
        evaluate_arm(arm, *given, validation=VALIDATION, seed=seed)
        for seed in seeds
        for arm in arms
    ]


def test_every_arm_answers_for_every_test_image():
    results = run(ARMS, (0, 1))
    assert [(r.seed, r.arm) for r in results] == [(seed, arm) for seed in (0, 1) for arm in ARMS]
    table = pd.concat([r.predictions for r in results], ignore_index=True)
    answers = paired_answers(table, ["sex", "age_tertile", "bmi_group"])
    assert answers.answer.shape == (8, 2, 20) and (answers.label == np.arange(20) % 2).all()
    groups = with_groups(TEST.table, age_edges(TRAIN.table))
    # edges of the training set, not of the test set
    assert list(answers.groups.age_tertile) == list(groups.age_tertile)
    for r in results:
        assert (r.predictions.positive == (r.predictions.score > np.float32(r.threshold))).all()


def test_a_run_repeats_whatever_runs_beside_it():
    alone, beside = run(["mixed"], (5,))[0], run(["real", "mixed"], (5,))[1]
    assert np.array_equal(alone.predictions.score, beside.predictions.score)
    assert not np.array_equal(alone.predictions.score, run(["mixed"], (6,))[0].predictions.score)


def test_it_learns_and_extra_images_are_trained_on():
    long = DownstreamSettings(
        replace(SETTINGS.classifier, steps=25, learning_rate=4e-3, warmup=6),
        PlanSettings(synthetic_count=12),
    )
    [result] = run(["extra_real"], settings=long)
    assert (result.predictions.positive == result.predictions.label).mean() >= 0.9
    flipped = ImageTable(-EXTRA.images, EXTRA.table)
    assert not np.array_equal(
        run(["extra_real"])[0].predictions.score,
        run(["extra_real"], extra=flipped)[0].predictions.score,
    )


@pytest.mark.parametrize("share, steps", [(0.5, [2, 2]), (0.1, [1, 3]), (0.9, [3, 1])])
def test_all_phases_together_take_the_steps_of_one_arm(monkeypatch, share, steps):
    seen = []
    monkeypatch.setattr(
        downstream, "fit_classifier", lambda *given, **_: iter(seen.append(given) or ())
    )
    plan = training_plan(
        "pretrained",
        TRAIN.table,
        SYNTHETIC.table,
        None,
        PlanSettings(pretrain_share=share, fine_tune_rate=0.25),
    )
    fit_plan(
        build_classifier(HEADS, CARDIAC_SMALL),
        plan,
        {"real": TRAIN, "synthetic": SYNTHETIC},
        SETTINGS.classifier,
    )
    assert [given[3].steps for given in seen] == steps
    assert [len(given[1]) for given in seen] == [16, 30]
    assert seen[1][3].learning_rate == pytest.approx(0.25 * seen[0][3].learning_rate)


def test_a_test_subject_that_was_trained_on_is_refused():
    with pytest.raises(DataError, match="subject 'r0' is in test and in real"):
        run(["real"], test=rings(4, 0, "r"))
    with pytest.raises(DataError, match="subject 'v0' is in test and in validation"):
        run(["real"], test=rings(4, 0, "v"))
    with pytest.raises(DataError, match="give one row each"):
        ImageTable(TEST.images[:3], TEST.table)


def patients(n, seed, prefix):
    rng = np.random.default_rng(seed)
    ill = rng.random(n) < 0.25
    return pd.DataFrame(
        {
            "subject": [f"{prefix}{i}" for i in range(n)],
            "diagnosis": np.where(ill, "heart failure", "healthy"),
            "sex": np.where(rng.random(n) < np.where(ill, 0.2, 0.55), "F", "M"),
            "age": rng.integers(30, 90, n),
            "bmi": rng.uniform(19, 38, n),
        }
    )


REAL_TABLE, SYNTHETIC_TABLE, EXTRA_TABLE = (
    patients(300, 0, "r"),
    patients(120, 1, "s"),
    patients(150, 2, "e"),
)
UNCAPPED = PlanSettings(weight_cap=1000)


def plan_of(arm, settings=UNCAPPED):
    return training_plan(arm, REAL_TABLE, SYNTHETIC_TABLE, EXTRA_TABLE, settings)


@pytest.mark.parametrize("arm", ARMS)
def test_every_plan_is_sound(arm):
    plan = plan_of(arm)
    assert plan.arm == arm and sum(phase.share for phase in plan.phases) == pytest.approx(1)
    for phase in plan.phases:
        assert all(len(np.unique(rows)) == len(rows) for rows in phase.rows.values())
        if phase.weights is not None:
            assert phase.weights.shape == (len(phase),) and phase.weights.mean() == pytest.approx(1)
        if phase.probabilities is not None:
            assert phase.probabilities.shape == (
                len(phase),
            ) and phase.probabilities.sum() == pytest.approx(1)


def test_which_images_an_arm_sees():
    seen = {
        arm: [
            {name: len(rows) for name, rows in phase.rows.items()} for phase in plan_of(arm).phases
        ]
        for arm in ARMS
    }
    real, synthetic = {"real": 300}, {"synthetic": 120}
    assert seen == {
        "real": [real],
        "reweighted": [real],
        "resampled": [real],
        "mixed": [real | synthetic],
        "pretrained": [synthetic, real],
        "extra_real": [real | {"extra": 120}],
        "synthetic": [synthetic],
        "mixed_resampled": [real | synthetic],
    }


def test_reweighting_and_resampling_balance_the_meta_groups():
    groups = with_groups(REAL_TABLE, age_edges(REAL_TABLE))
    weights, chances = (
        plan_of("reweighted").phases[0].weights,
        plan_of("resampled").phases[0].probabilities,
    )
    totals = pd.Series(weights).groupby([groups[name] for name in META_GROUP], observed=True).sum()
    assert totals.to_numpy() == pytest.approx(np.full(len(totals), 300 / len(totals)))
    assert chances * 300 == pytest.approx(weights)
    assert (
        plan_of("real").phases[0].weights is None
        and plan_of("real").phases[0].probabilities is None
    )


def test_balanced_mixing_counts_real_and_synthetic_together():
    edges = age_edges(REAL_TABLE)
    groups = pd.concat(
        [with_groups(REAL_TABLE, edges), with_groups(SYNTHETIC_TABLE, edges)], ignore_index=True
    )
    totals = (
        pd.Series(plan_of("mixed_resampled").phases[0].probabilities)
        .groupby([groups[name] for name in META_GROUP], observed=True)
        .sum()
    )
    assert totals.to_numpy() == pytest.approx(np.full(len(totals), 1 / len(totals)))


def test_the_cap_holds_a_lone_image_back():
    lone = pd.concat([patients(400, 3, "r").assign(sex="M"), patients(1, 4, "x").assign(sex="F")])
    free, capped = (
        training_plan("reweighted", lone, None, None, PlanSettings(weight_cap=cap))
        .phases[0]
        .weights
        for cap in (1000, 3)
    )
    assert free[-1] > 15 and capped[-1] < 4.5


def test_pretraining_goes_from_synthetic_to_real():
    first, second = plan_of(
        "pretrained", PlanSettings(pretrain_share=0.3, fine_tune_rate=0.2)
    ).phases
    assert (first.share, second.share, first.rate, second.rate) == (0.3, 0.7, 1.0, 0.2)
    assert list(first.rows) == ["synthetic"] and list(second.rows) == ["real"]


def test_a_number_of_images_is_chosen_by_the_seed():
    few = PlanSettings(synthetic_count=50)
    rows = plan_of("mixed", few).phases[0].rows["synthetic"]
    assert len(rows) == 50 and (rows == plan_of("mixed", few).phases[0].rows["synthetic"]).all()
    assert (
        rows
        != plan_of("mixed", PlanSettings(synthetic_count=50, seed=1)).phases[0].rows["synthetic"]
    ).any()
    assert (
        len(training_plan("extra_real", REAL_TABLE, None, EXTRA_TABLE, few).phases[0].rows["extra"])
        == 50
    )


def test_the_summary_is_one_row_a_phase_and_source():
    summary = plan_of("mixed").summary()
    assert list(summary.source) == ["real", "synthetic"] and list(summary.images) == [300, 120]
    assert [plan_of(arm).summary().sampling[0] for arm in ("real", "reweighted", "resampled")] == [
        "plain",
        "weighted",
        "resampled",
    ]


def test_what_is_missing_is_said():
    with pytest.raises(SettingsError, match="did you mean 'mixed'"):
        plan_of("mixd")
    with pytest.raises(DataError, match="needs synthetic images"):
        training_plan("mixed", REAL_TABLE, None, None, UNCAPPED)
    with pytest.raises(DataError, match="asks for 130 synthetic images, 120 are there"):
        plan_of("pretrained", PlanSettings(synthetic_count=130))
    with pytest.raises(DataError, match="asks for 160 extra images, 150 are there"):
        training_plan(
            "extra_real", REAL_TABLE, None, EXTRA_TABLE, PlanSettings(synthetic_count=160)
        )
    with pytest.raises(DataError, match="unknown key 'bmi'"):
        training_plan("reweighted", REAL_TABLE.drop(columns="bmi"), None, None, UNCAPPED)
    for wrong in (
        {"weight_cap": 0.5},
        {"pretrain_share": 1.0},
        {"synthetic_count": 0},
        {"fine_tune_rate": 0.0},
    ):
        with pytest.raises(SettingsError, match=f"PlanSettings.{next(iter(wrong))} is"):
            PlanSettings(**wrong)


def people(healthy=200, ill=60, slices=2):
    """Subjects with `slices` rows each."""
    names = [f"h{i:03d}" for i in range(healthy)] + [f"i{i:03d}" for i in range(ill)]
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "subject": names,
            "diagnosis": ["healthy"] * healthy + ["heart failure"] * ill,
            "sex": rng.choice(["F", "M"], len(names)),
            "age": rng.integers(30, 90, len(names)),
            "bmi": rng.uniform(18, 40, len(names)),
        }
    )
    return table.loc[table.index.repeat(slices)].reset_index(drop=True)


def test_the_groups_of_the_paper():
    table = pd.DataFrame({"age": [40, 60, 61, 70, 71], "bmi": [24.99, 25, 29.99, 30, 17]})
    found = with_groups(table, (60, 70))
    assert list(found.age_tertile) == ["lower", "lower", "middle", "middle", "upper"]
    assert list(found.bmi_group) == ["below 25", "25 to 30", "25 to 30", "30 and above", "below 25"]


def test_age_edges_are_those_of_subjects_not_of_slices():
    table = pd.DataFrame({"subject": list("abcdefg"), "age": [30, 40, 50, 60, 70, 80, 90]})
    often = pd.concat([table, *[table.iloc[:1]] * 20])
    assert age_edges(table) == age_edges(often) == (50, 70)
    drawn = with_groups(people().assign(bmi=25.0), age_edges(people()))
    assert drawn.age_tertile.value_counts(normalize=True).to_numpy() == pytest.approx(
        np.full(3, 1 / 3), abs=0.03
    )


@pytest.mark.parametrize("prevalence", [0.25, 0.10, 0.01, 0.6])
def test_a_prevalence_is_reached_by_leaving_out_whole_subjects(prevalence):
    table = people(healthy=500)
    chosen = table.iloc[at_prevalence(table, prevalence, seed=3)]
    by_subject = chosen.groupby("subject").size()
    assert (by_subject == 2).all()
    ill, total = sum(name.startswith("i") for name in by_subject.index), len(by_subject)
    assert abs(ill - prevalence * total) <= 0.5
    # The largest such part: one more ill subject would need more healthy ones than there are, or
    # there is no ill one left.
    assert ill == 60 or (ill + 1) * (1 - prevalence) / prevalence > 500


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_rows():
    table = people()
    shuffled = table.sample(frac=1, random_state=1)

    def kept(rows, seed):
        return set(rows.iloc[at_prevalence(rows, 0.1, seed)].subject)

    assert kept(table, 0) == kept(shuffled, 0) != kept(table, 1)


def test_an_impossible_prevalence_says_how_many_there_are():
    with pytest.raises(
        DataError,
        match="60 subjects with heart failure and 50 healthy; one ill subject needs 99 healthy",
    ):
        at_prevalence(people(healthy=50), 0.01, seed=0)
    with pytest.raises(DataError, match="0 subjects with heart failure"):
        at_prevalence(people(ill=0), 0.1, seed=0)
    with pytest.raises(SettingsError, match="between|below 1"):
        at_prevalence(people(), 1.0, seed=0)


def test_a_subject_with_two_diagnoses_is_refused():
    table = people()
    table.loc[0, "diagnosis"] = "heart failure"
    with pytest.raises(DataError, match="'h000' is both healthy and ill"):
        at_prevalence(table, 0.1, seed=0)


def test_missing_or_unknown_values_are_refused():
    table = people()
    with pytest.raises(DataError, match="3 of 520 rows have no bmi"):
        with_groups(table.assign(bmi=table.bmi.where(table.index > 2)), (50, 60))
    with pytest.raises(DataError, match="unknown key 'age'"):
        age_edges(table.drop(columns="age"))
    with pytest.raises(DataError, match="'DCM'"):
        labels_of(table.assign(diagnosis="DCM"))
    assert labels_of(table).sum() == 120


# ---- requests for synthetic hearts


@pytest.fixture(scope="module")
def cohort():
    """Ninety of one kind and ten of another; every mask is constant and names its row."""
    sick = np.arange(100) >= 90
    table = pd.DataFrame(
        {
            "subject": [f"s{i}" for i in range(100)],
            "sex": np.where(sick, "F", "M"),
            "age": np.where(sick, 55, 67),
            "bmi": np.where(sick, 22.0, 31.0),
            "diagnosis": np.where(sick, "heart failure", "healthy"),
        }
    )
    masks = torch.zeros(100, 2, 4, 4, dtype=torch.uint8)
    digits = np.arange(100)
    for cell in range(4):  # the row number in base 4
        masks[:, :, 0, cell] = torch.tensor(digits // 4**cell % 4)[:, None]
    return table, masks


def row_of(control):
    digits = (control[:, 0, 0] * 3).round().long()
    return (digits * 4 ** torch.arange(4)).sum(1)


def test_copies_repeat_real_pairs_by_capped_inverse_frequency(cohort):
    table, masks = cohort
    # of either kind; caps
    for clip, weights in ((0.5, (1 / 90, 1 / 10)), (2, (1 / 90, 1 / 18)), (5, (1 / 90, 1 / 45))):
        requests, control = copies(table, masks, 3000, seed=1, clip=clip)
        real = table.iloc[requests["source"]].reset_index(drop=True)
        assert requests["prompt"].tolist() == [prompt_of(row) for row in real.to_dict("records")]
        assert (requests["subject"] == real["subject"]).all()
        assert torch.equal(row_of(control), torch.tensor(requests["source"].tolist()))
        wanted = 10 * weights[1] / (90 * weights[0] + 10 * weights[1])
        assert abs((requests["diagnosis"] == "heart failure").mean() - wanted) < 0.04


def test_new_combinations_are_even_and_keep_the_diagnosis_of_the_mask(cohort):
    table, masks = cohort
    requests, control = new_combinations(table, masks, 2000, seed=2)
    real = table.iloc[requests["source"]].reset_index(drop=True)
    assert (requests["diagnosis"] == real["diagnosis"]).all() and (
        requests["sex"] != real["sex"]
    ).mean() > 0.4
    assert torch.equal(control, control_image(masks[torch.tensor(requests["source"].tolist())]))
    kinds = {"sex": 2, "decade": 5, "bmi_class": 3, "diagnosis": 2}
    for column, count in kinds.items():
        shares = requests[column].value_counts(normalize=True)
        assert len(shares) == count and (shares - 1 / count).abs().max() < 0.05
    assert requests["prompt"].nunique() == 2 * 5 * 3 * 2
    for row in requests.head(50).to_dict("records"):
        stated = f"age in {row['decade']}, {row['bmi_class']} BMI, {row['diagnosis']}"
        assert row["prompt"] == f"{'Female' if row['sex'] == 'F' else 'Male'}, {stated}"


def test_decades_can_be_those_of_the_table(cohort):
    requests, _ = new_combinations(*cohort, 200, seed=3, present_only=True)
    assert set(requests["decade"]) == {"50s", "60s"}
    with pytest.raises(SettingsError, match="the table has only"):
        new_combinations(*cohort, 5, seed=3, decades=("80s",), present_only=True)
    with pytest.raises(SettingsError, match="'sixties' is none"):
        new_combinations(*cohort, 5, seed=3, decades=("sixties",))


@pytest.mark.parametrize("ask", [copies, new_combinations])
def test_requests_are_a_function_of_the_seed(cohort, ask):
    (one, _), (again, _), (other, _) = (ask(*cohort, 40, seed=seed) for seed in (4, 4, 5))
    pd.testing.assert_frame_equal(one, again)
    assert not one.equals(other)


def test_a_diagnosis_without_masks_and_a_missing_mask_are_refused(cohort):
    table, masks = cohort
    with pytest.raises(DataError, match="no mask of diagnosis 'heart failure'"):
        new_combinations(table[:90], masks[:90], 5, seed=0)
    with pytest.raises(DataError, match="'masks': 99"):
        copies(table, masks[:99], 5, seed=0)


def test_the_cap_is_that_of_the_cohort(cohort):
    """The sampler behind `copies` and training is the cohort's own weights, not another."""
    prompts = [prompt_of(row) for row in cohort[0].to_dict("records")]
    assert balancing_weights(prompts, 5)[[0, 99]] == pytest.approx([1 / 90, 1 / 45])
