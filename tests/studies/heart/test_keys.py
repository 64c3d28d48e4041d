"""What the stages of the heart study depend on: their keys follow the code that really runs, and
nothing that they do not use.
"""

from dataclasses import replace

import pytest

from studies.engine import stage
from studies.engine.running import run_study
from studies.heart.arms import (
    FLIPPED,
    WAYS,
    generated,
    load_generator,
    preview,
    readings,
    weights_of,
)
from studies.heart.data import HeartSettings, read_part, real_cohort
from studies.heart.phantom import PhantomSettings
from studies.heart.study import STUDY, cost
from tests.studies.heart.layout import write_mnms
from tests.studies.tracing import stages_traced

pytestmark = pytest.mark.slow
STAGES = {"draw_part", "fit_evaluator", "generate", "evaluate", "measure", "train_arm"}


def test_keys_miss_no_code_that_runs(tiny_heart_study, runs, tmp_path):
    study = replace(tiny_heart_study, flips=2)
    with stages_traced() as unseen:
        run_study(STUDY, study, ["real", "mixed", "extra_real"], [1], tmp_path / "out")
    assert stages_traced.built == STAGES and unseen == {}


def test_the_key_of_a_real_part_misses_no_code_that_runs(tmp_path, runs):
    write_mnms(
        tmp_path / "OpenDataset",
        PhantomSettings(subjects=4, missing=0, unlabelled=0),
    )
    settings = HeartSettings(cohort="mnms", data_dir=str(tmp_path))
    with stages_traced() as unseen:
        read_part(real_cohort(settings), "one", {"one": 1.0}, 0)
    assert stages_traced.built == {"read_part"} and unseen == {}


@pytest.mark.parametrize(
    ("change", "made"),
    [
        ({"guidance_scale": 2.0}, {"generate", "evaluate"}),
        ({"segmenter_steps": 3}, {"fit_evaluator", "evaluate"}),
        ({"classifier_steps": 3, "test_subjects": 44, "replicates": 21, "n_min": 2}, set()),
    ],
)
def test_a_setting_remakes_what_it_can_change(change, made, tiny_heart_study, runs, monkeypatch):
    keys, make = set(), stage._make
    readings(tiny_heart_study, "unseen")

    def noted(final, name, *rest):
        keys.add(name)
        make(final, name, *rest)

    monkeypatch.setattr(stage, "_make", noted)
    readings(replace(tiny_heart_study, **change), "unseen")
    assert keys == made


def test_generated_hearts_depend_on_the_mask_and_on_the_prompt(tiny_heart_study, runs):
    masks = generated(tiny_heart_study, "unseen").load().masks[:2]
    prompts = ["Female, age in 60s, obese BMI, healthy"] * 2
    first = preview(tiny_heart_study, prompts, masks)
    assert first is preview(tiny_heart_study, prompts, masks)
    assert preview(tiny_heart_study, prompts, masks.flip(-1)) is not first
    assert preview(tiny_heart_study, [prompts[0].replace("F", "f")] * 2, masks) is not first


def test_the_cost_is_what_the_generator_evaluates(tiny_heart_study, runs):
    other = replace(tiny_heart_study, batch_size=7)
    counted = load_generator(weights_of(other)).evaluations
    before = counted["sampling", "forward"]
    table = cost(other)
    assert table["forward"].sum() == counted["sampling", "forward"] - before
    assert table["hearts"].tolist() == [*WAYS, *FLIPPED] and (table["backward"] == 0).all()
