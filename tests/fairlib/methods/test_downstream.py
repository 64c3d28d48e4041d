"""The downstream test as a whole, on rings that contract or not."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.errors import DataError
from fairlib.measures.paired import paired_answers
from fairlib.methods.baselines import ARMS, RecipeSettings, recipe
from fairlib.methods.downstream import (
    HEADS,
    DownstreamSettings,
    ImageTable,
    compare_arms,
    fit_recipe,
)
from fairlib.methods.subgroups import age_edges, with_groups
from fairlib.models.classifier import CARDIAC_SMALL, build_classifier

SETTINGS = DownstreamSettings(
    replace(DownstreamSettings().classifier, steps=4, batch_size=8, warmup=1),
    RecipeSettings(synthetic_count=12),
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
    return list(
        compare_arms(TRAIN, SYNTHETIC, extra, test, arms, seeds, settings, validation=VALIDATION)
    )


def test_every_arm_answers_for_every_test_image():
    results = run(ARMS, (0, 1))
    assert [(r.seed, r.arm, r.done, r.total) for r in results] == [
        (seed, arm, 8 * s + a + 1, 16)
        for s, seed in enumerate((0, 1))
        for a, arm in enumerate(ARMS)
    ]
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
        RecipeSettings(synthetic_count=12),
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
    from fairlib.methods import downstream

    seen = []
    monkeypatch.setattr(
        downstream, "fit_classifier", lambda *given, **_: iter(seen.append(given) or ())
    )
    plan = recipe(
        "pretrained",
        TRAIN.table,
        SYNTHETIC.table,
        None,
        RecipeSettings(pretrain_share=share, fine_tune_rate=0.25),
    )
    fit_recipe(
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
    with pytest.raises(DataError, match="one row for each image"):
        ImageTable(TEST.images[:3], TEST.table)
