"""The study from end to end, in miniature, on the engine that runs it."""

import dataclasses
import itertools
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_json, read_tensors, to_bytes
from fairlib.methods.targets import Target
from fairlib.models.classifier import predict
from studies.brain import arms, quality, study
from studies.brain.arms import base_model, tuned, tuned_generator
from studies.brain.data import (
    FIDELITY_PROMPTS,
    FRACTIONS,
    BrainSettings,
    Tuning,
    alignment,
    cohort,
    sampling,
    split,
    splits,
    target_share,
)
from studies.brain.evaluators import combined, tuning_classifier
from studies.brain.study import ARMS, STUDY, SWEEP, TRANSFER
from studies.engine.running import run_study, same_study
from studies.engine.study import Source, load_results, results_of, tables_of

slow = pytest.mark.slow
BASE_COST = {"forward": 32, "backward": 0, "seed": 0}  # sixteen images, two solver steps
MMD = ("mmd", "mmd_low", "mmd_high", "mmd_change", "mmd_change_low", "mmd_change_high")


@pytest.fixture
def few(monkeypatch):
    """Sixteen images, and classifiers of three steps, are too few for distances and intervals."""
    monkeypatch.setattr(quality, "quality", lambda *_: dict.fromkeys(MMD, 0.0))
    monkeypatch.setattr(quality, "mmd", lambda *_: 1.0)
    monkeypatch.setattr(study, "estimators", lambda known: known.head(1))
    monkeypatch.setattr("studies.brain.anatomy.SMALLEST_MM2", 0.0)


@slow
def test_subjects_are_never_shared_between_splits(settings, runs):
    parts = [set(part.subjects()) for part in splits(settings).values()]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert len(set.union(*parts)) == len(cohort(settings).load().with_known_sex().subjects())
    assert list(splits(settings)) == list(FRACTIONS)


@slow
def test_targets_are_counted_in_subjects(settings, runs):
    people = cohort(settings).load().with_known_sex().by_subject(("sex", "grade"))
    marginal, conditional = target_share(settings), target_share(settings, "conditional")
    assert marginal["HGG"] == marginal["LGG"] == pytest.approx((people.sex == "F").mean())
    weights = people.grade.value_counts(normalize=True)
    assert sum(conditional[g] * weights[g] for g in weights.index) == pytest.approx(marginal["HGG"])


def test_an_aim_as_read_is_the_share_that_the_classifier_reads_in_the_target():
    """Three of four women and one of four men are read as female: 0.4 x 3/4 + 0.6 x 1/4."""
    logits, sexes = [1.0, 2.0, 3.0, -1.0, 1.0, -2.0, -3.0, -4.0], ["F"] * 4 + ["M"] * 4
    target = arms.as_read(Target.shares({"F": 0.4, "M": 0.6}, logits, sexes))
    assert target.proportions == pytest.approx((0.45, 0.55))
    assert [len(part) for part in target.logits] == [4, 4], "the same slices of known sex"


@slow
def test_the_study_writes_what_the_report_reads(settings, runs, tmp_path, few):
    out = run_study(STUDY, settings, ["transport-robust", "conditional"], [0], tmp_path / "all")
    tables = load_results(STUDY, out)
    readings, history = tables["readings"], tables["history"]
    assert readings.groupby("arm").size().to_dict() == {
        "conditional": 16,
        "transport-robust": 16,
        "untuned": 16,
    }
    columns = ["standard", "robust", "heldout", "anatomy", "area"]
    assert readings[columns].stack().between(0, 1).all()
    assert history.groupby("arm").step.max().to_dict() == {"transport-robust": 1, "conditional": 1}
    assert list(tables["measures"]) == [
        *("contrast", "tumour", "side", "grade", "cosine", "cosine_kept", "kept"),
        *(*MMD, "arm", "seed"),
    ]
    costs = tables["cost"].set_index(["arm", "kind"])
    assert costs.loc["untuned"].to_dict("index") == {"sampling": BASE_COST}
    # eight prompts, two noises each; two steps of four images, one solver step of two replayed
    assert costs.loc["transport-robust"].forward.to_dict() == {
        "sampling": 32,
        "base cache": 32,
        "tuning": 16,
        "replay": 8,
    }
    assert costs.loc["transport-robust"].backward.sum() == 8
    before, after = (readings[readings.arm == arm] for arm in ("untuned", "transport-robust"))
    assert not np.allclose(before.extent_mm, after.extent_mm), "tuning changed the images"
    again = run_study(
        STUDY,
        settings,
        ["untuned", "transport-robust", "transport-robust"],
        [0, 0],
        tmp_path / "again",
    )
    same = load_results(STUDY, again)
    pd.testing.assert_frame_equal(
        same["readings"][same["readings"].arm == "transport-robust"].reset_index(drop=True),
        after.reset_index(drop=True),
    )
    assert len(same["readings"]) == 32 and len(same["history"]) == 2, "named twice, counted once"


@slow
def test_readings_alone_need_no_untuned_images(settings, runs, tmp_path, few):
    only = ("readings", "history")
    out = run_study(STUDY, settings, ["transport-robust"], [0], tmp_path, only, references=False)
    tables = load_results(STUDY, out)
    assert sorted(tables) == sorted(only) and set(tables["readings"].arm) == {"transport-robust"}


@slow
def test_an_arm_with_low_rank_weights_is_tuned_and_drawn_from(settings, runs):
    chosen = Tuning("robust", changes={"trainable": "lora", "lora_rank": 2})
    saved = tuned(settings, chosen, 0).load()
    assert saved and all("lora_" in name for name in saved)
    base = base_model(settings).load()
    generator = tuned_generator(base, saved)
    held = dict(generator.denoiser.named_parameters())
    assert all(torch.equal(held[name], value.float()) for name, value in saved.items())
    assert not any(p.requires_grad for p in held.values())
    assert not any("lora_" in name for name, _ in base.denoiser.named_parameters())
    latents, words = base.noise(0, [0]), base.encode_prompts(["axial t1 of the brain"])
    with torch.no_grad():
        for name in saved:
            held[name].add_(0.1)  # two steps moved them too little for one image to show
        assert not torch.allclose(
            generator.predict_noise(latents, 500, words),
            base.predict_noise(latents, 500, words),
            atol=1e-3,
        )


@slow
def test_a_killed_tuning_goes_on_to_the_same_bits(settings, runs, tmp_path):
    """What the working folder holds after one of two steps is enough."""
    settings = dataclasses.replace(settings, tuning={**settings.tuning, "steps": 3})
    chosen = alignment(settings, Tuning("robust"), 4)
    classifier = tuning_classifier(settings, "robust")
    given = {
        "settings": chosen,
        "target": "marginal",
        "base": base_model(settings),
        "clip": arms.clip_model(settings),
        "classifier": classifier,
        "everyone": cohort(settings),
        "split_seed": settings.split_seed,
        "cache": arms.base_cache(settings, chosen, classifier),
        "label": "test",
        "every": 1,
    }
    stop = Stopping(after=2)
    for name in ("whole", "killed"):
        (tmp_path / name / "working").mkdir(parents=True)
    arms.tune_denoiser.function(tmp_path / "whole", Stopping(), **given)
    with pytest.raises(KeyboardInterrupt):
        arms.tune_denoiser.function(tmp_path / "killed", stop, **given)
    assert not (tmp_path / "killed" / "denoiser.safetensors").exists()
    arms.tune_denoiser.function(tmp_path / "killed", Stopping(), **given)
    whole, killed = (
        read_tensors(tmp_path / name / "denoiser.safetensors") for name in ("whole", "killed")
    )
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    logs = [
        pd.read_csv(tmp_path / name / "history.csv").drop(columns="seconds")
        for name in ("whole", "killed")
    ]
    pd.testing.assert_frame_equal(*logs)


class Stopping:
    """Progress that is interrupted after some steps."""

    def __init__(self, after=None):
        self.after = after

    def track(self, steps, total, label, done=0):
        for count, step in enumerate(steps, 1):
            yield step
            if count == self.after:
                raise KeyboardInterrupt


@slow
def test_every_run_has_its_own_tuning_classifier_and_base_cache(settings, runs):
    one, other = (tuning_classifier(settings, "standard", seed) for seed in (10, 11))
    assert one != other and alignment(settings, Tuning("standard"), 7).noise_seed is None
    shared = dataclasses.replace(settings, classifier_seed=10, cache_seed=100)
    assert tuning_classifier(shared, "standard", 3) == one, "one of all runs"
    assert alignment(shared, Tuning("standard"), 7).noise_seed == 100


@pytest.mark.parametrize(
    ("which", "arm"),
    [(STUDY, "transport-robusted"), (STUDY, "grpo@1"), (SWEEP, "conditional")],
)
def test_an_unknown_arm_is_refused_before_any_work(which, arm, tmp_path):
    with pytest.raises(SettingsError, match=f"'{arm}'"):
        run_study(which, BrainSettings(weights="nowhere"), ["untuned", arm], [1], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("which", [STUDY, SWEEP])
def test_committed_results_go_on(which):
    """They can be read and continued: settings and weights are those of today."""
    folder = which.results()
    recorded = read_json(folder / "study.json")
    # not the whole phantom, which takes minutes to write
    known = Source(str, lambda settings: recorded["inputs"]["cohort"])
    here = dataclasses.replace(which, sources={"phantom": known})
    images = recorded["study"]["images"]
    same_study(folder / "study.json", here.identity(BrainSettings(images=images)))
    assert set(recorded["runs"]) <= set(which.arms) and load_results(which, folder)


@slow
def test_noises_are_chosen_elsewhere_by_the_classifier_of_the_arm(settings, runs):
    """Prompts without a tumour and another guidance scale: against all assignments, one by one."""
    arm, seed = ARMS["choose-noises-standard"], 1
    plan = arms.Plan(FIDELITY_PROMPTS[8:], 8, 70)
    how = dataclasses.replace(sampling(settings), guidance_scale=4.0)
    found = arms.images_of(arm, settings, seed, plan, how).load()
    classifier = combined(tuning_classifier(settings, "standard", seed))
    everyone, base = cohort(settings).load(), base_model(settings).load()
    share = target_share(settings)["HGG"]
    part = split(everyone, settings.split_seed)["heldout"]
    table = part.table.assign(logit=predict(classifier, part.load()).logit.numpy())
    for place, prompt in enumerate(plan.prompts):
        rows = table[table.contrast == prompt.contrast]  # of both grades
        wanted = Target.shares({"F": share, "M": 1 - share}, rows.logit, rows.sex.tolist())
        points = wanted.distribution().quantile(np.array([0.25, 0.75]))
        given = {"noise": base.noise(plan.noise, range(6)), "steps": 2, "guidance_scale": 4.0}
        pool = base.sample([prompt.text] * 6, **given)
        logits = predict(classifier, pool).logit.double().numpy()
        best = min(
            itertools.permutations(range(6), 2),
            key=lambda pair: ((points - logits[[*pair]]) ** 2).sum(),
        )
        assert torch.equal(found[2 * place : 2 * place + 2], to_bytes(pool[sorted(best)]))


def test_a_transfer_takes_only_arms_that_it_can_sample_otherwise():
    assert {"untuned", "transport-robust", "choose-noises"} < set(TRANSFER.arms) < set(ARMS)
    assert not {"grpo", "batch-guidance", "generate-and-keep", "words-female"} & set(TRANSFER.arms)


def test_a_transfer_and_a_sweep_keep_no_images():
    assert STUDY.shown and TRANSFER.shown is None and SWEEP.shown is None


@slow
def test_mistakes_are_named(settings, runs, tmp_path):
    with pytest.raises(DataError, match="no results here"):
        load_results(STUDY, tmp_path)
    broken = tmp_path / "weights"
    shutil.copytree(settings.weights, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="sha256"):
        base_model(dataclasses.replace(settings, weights=str(broken))).load()


@slow
def test_a_chapter_gets_tables_images_and_their_seed(settings, runs, few):
    wanted = ["readings", "calibration", "criteria"]
    tables, images, seed = results_of(STUDY, settings, "live", ["class-standard"], 3, wanted)
    assert (
        set(tables) == set(wanted) and seed == 3 and list(images) == ["untuned", "class-standard"]
    )
    assert images["untuned"].shape == (16, 1, 128, 128), "two of each of eight prompts"
    known = tables["calibration"]
    assert known.groupby("set").size().to_dict()["radiology"] == 12
    assert set(tables["criteria"].arm) == {"untuned", "class-standard"}
    with pytest.raises(SettingsError, match="runs is 'lively'; choose stored"):
        results_of(STUDY, settings, "lively", [], 3)


def test_stored_images_are_of_one_seed_and_of_what_was_read():
    tables, images, seed = results_of(STUDY, BrainSettings(), "stored", ["class-standard"], 0)
    assert list(images) == ["untuned", "class-standard"]
    assert all(each.shape == (24, 1, 128, 128) for each in images.values())
    assert seed in set(tables["readings"].seed)
    assert not torch.equal(*images.values())
    elsewhere = dataclasses.replace(STUDY, seeds=(99,))  # no long run has this seed
    with pytest.raises(DataError, match="no images of untuned, class-standard at one seed"):
        results_of(elsewhere, BrainSettings(), "stored", ["class-standard"], 0)


@slow
def test_the_study_names_what_it_read(settings, runs):
    identity = STUDY.identity(settings)
    assert set(identity["inputs"]) == {"weights", "clip", "cohort"}
    assert "weights" not in identity["study"]
    assert STUDY.sources["brats"].people == "patients"


@slow
def test_a_notebook_gets_the_same_in_memory(settings, runs, few):
    tables = tables_of(STUDY, settings, ["transport-robust"], [0], ["readings", "measures"])
    assert set(tables) == {"readings", "measures"} and len(tables["readings"]) == 32
    assert set(ARMS) >= set(tables["measures"].arm)
