"""The recipes: who is trained on, in which order and with which weight."""

import numpy as np
import pandas as pd
import pytest

from fairlib.errors import DataError, SettingsError
from fairlib.methods.baselines import ARMS, RecipeSettings, recipe
from fairlib.methods.subgroups import META_GROUP, age_edges, with_groups


def table(n, seed, prefix):
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


REAL, SYNTHETIC, EXTRA = table(300, 0, "r"), table(120, 1, "s"), table(150, 2, "e")
SETTINGS = RecipeSettings(weight_cap=1000)


def made(arm, settings=SETTINGS):
    return recipe(arm, REAL, SYNTHETIC, EXTRA, settings)


@pytest.mark.parametrize("arm", ARMS)
def test_every_recipe_is_sound(arm):
    plan = made(arm)
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
        arm: [{name: len(rows) for name, rows in phase.rows.items()} for phase in made(arm).phases]
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
    groups = with_groups(REAL, age_edges(REAL))
    weights, chances = (
        made("reweighted").phases[0].weights,
        made("resampled").phases[0].probabilities,
    )
    totals = pd.Series(weights).groupby([groups[name] for name in META_GROUP], observed=True).sum()
    assert totals.to_numpy() == pytest.approx(np.full(len(totals), 300 / len(totals)))
    assert chances * 300 == pytest.approx(weights)
    assert made("real").phases[0].weights is None and made("real").phases[0].probabilities is None


def test_balanced_mixing_counts_real_and_synthetic_together():
    edges = age_edges(REAL)
    groups = pd.concat([with_groups(REAL, edges), with_groups(SYNTHETIC, edges)], ignore_index=True)
    totals = (
        pd.Series(made("mixed_resampled").phases[0].probabilities)
        .groupby([groups[name] for name in META_GROUP], observed=True)
        .sum()
    )
    assert totals.to_numpy() == pytest.approx(np.full(len(totals), 1 / len(totals)))


def test_the_cap_holds_a_lone_image_back():
    lone = pd.concat([table(400, 3, "r").assign(sex="M"), table(1, 4, "x").assign(sex="F")])
    free, capped = (
        recipe("reweighted", lone, None, None, RecipeSettings(weight_cap=cap)).phases[0].weights
        for cap in (1000, 3)
    )
    assert free[-1] > 15 and capped[-1] < 4.5


def test_pretraining_goes_from_synthetic_to_real():
    first, second = made(
        "pretrained", RecipeSettings(pretrain_share=0.3, fine_tune_rate=0.2)
    ).phases
    assert (first.share, second.share, first.rate, second.rate) == (0.3, 0.7, 1.0, 0.2)
    assert list(first.rows) == ["synthetic"] and list(second.rows) == ["real"]


def test_a_number_of_images_is_chosen_by_the_seed():
    few = RecipeSettings(synthetic_count=50)
    rows = made("mixed", few).phases[0].rows["synthetic"]
    assert len(rows) == 50 and (rows == made("mixed", few).phases[0].rows["synthetic"]).all()
    assert (
        rows
        != made("mixed", RecipeSettings(synthetic_count=50, seed=1)).phases[0].rows["synthetic"]
    ).any()
    assert len(recipe("extra_real", REAL, None, EXTRA, few).phases[0].rows["extra"]) == 50


def test_the_summary_is_one_row_a_phase_and_source():
    summary = made("mixed").summary()
    assert list(summary.source) == ["real", "synthetic"] and list(summary.images) == [300, 120]
    assert [made(arm).summary().sampling[0] for arm in ("real", "reweighted", "resampled")] == [
        "plain",
        "weighted",
        "resampled",
    ]


def test_what_is_missing_is_said():
    with pytest.raises(SettingsError, match="did you mean 'mixed'"):
        made("mixd")
    with pytest.raises(DataError, match="needs synthetic images"):
        recipe("mixed", REAL, None, None, SETTINGS)
    with pytest.raises(DataError, match="asks for 130 synthetic images, 120 are there"):
        made("pretrained", RecipeSettings(synthetic_count=130))
    with pytest.raises(DataError, match="asks for 160 extra images, 150 are there"):
        recipe("extra_real", REAL, None, EXTRA, RecipeSettings(synthetic_count=160))
    with pytest.raises(DataError, match="unknown key 'bmi'"):
        recipe("reweighted", REAL.drop(columns="bmi"), None, None, SETTINGS)
    for wrong in (
        {"weight_cap": 0.5},
        {"pretrain_share": 1.0},
        {"synthetic_count": 0},
        {"fine_tune_rate": 0.0},
    ):
        with pytest.raises(SettingsError, match="out of its range"):
            RecipeSettings(**wrong)
