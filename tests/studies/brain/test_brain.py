"""The study from end to end, in miniature: tiny weights, few subjects, one optimiser step."""

import dataclasses
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_tensors
from fairlib.models import clip as cl
from fairlib.models import generator as gen
from fairlib.models.autoencoder import build_autoencoder
from studies import brain
from studies.engine.manifest import write_manifest

pytestmark = pytest.mark.slow
TINY = {
    "steps": 2,
    "prompts_per_step": 2,
    "images_per_prompt": 2,
    "cache_size": 2,
    "sampling_steps": 2,
    "replay_steps": 1,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    place = tmp_path_factory.mktemp("brain")
    torch.manual_seed(0)
    merges = cl.learn_merges(["axial t1 of the brain"], count=20)
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 64,
            "patch_size": 16,
            "width": 32,
            "head_width": 16,
            "layers": 1,
        },
        "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 1},
    }
    cl.write_vocabulary(place / "clip", merges)
    clip = cl.build_clip(place / "clip", config)
    cl.save_clip(place / "clip", clip, merges, config)
    pipeline = gen.assemble(
        cl.text_encoder_of(clip),
        cl.pipeline_tokenizer(place / "clip"),
        build_autoencoder((8, 8, 8, 8)),
        gen.build_denoiser((16, 32), 32),
    )
    gen.save_pipeline(place / "weights", pipeline)
    for folder in ("weights", "clip"):
        write_manifest(place / folder, {}, 0.0)
    return brain.Study(
        weights=str(place / "weights"),
        clip=str(place / "clip"),
        subjects=0.3,
        judge_steps=3,
        radiology=12,
        images=16,
        sampling_steps=2,
        batch_size=8,
    )


def test_subjects_are_never_shared_between_splits(study, runs):
    parts = [set(part.subjects()) for part in brain.splits(study).values()]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert len(set.union(*parts)) == len(brain.brain_cohort(study).with_known_sex().subjects())


def test_targets_are_counted_in_subjects(study, runs):
    people = brain.brain_cohort(study).with_known_sex().by_subject(("sex", "grade"))
    marginal, conditional = brain.target_share(study), brain.target_share(study, "conditional")
    assert marginal["HGG"] == marginal["LGG"] == pytest.approx((people.sex == "F").mean())
    weights = people.grade.value_counts(normalize=True)
    assert sum(conditional[g] * weights[g] for g in weights.index) == pytest.approx(marginal["HGG"])


def test_the_study_writes_what_the_report_reads(study, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "studies.brain.study.quality",
        lambda *_: {
            "mmd": 0.0,
            "mmd_low": 0.0,
            "mmd_high": 0.0,
            # sixteen images are too few
            "mmd_change": 0.0,
            "mmd_change_low": 0.0,
            "mmd_change_high": 0.0,
        },
    )
    monkeypatch.setattr("studies.brain.anatomy.SMALLEST_MM2", 0.0)
    out = brain.run_study(
        study, ["robust", "conditional"], [0], tmp_path, fidelity_images=12, **TINY
    )
    readings = pd.read_csv(out / "readings.csv.gz")
    assert readings.groupby("arm").size().to_dict() == {"base": 16, "conditional": 16, "robust": 16}
    assert readings[["guide_plain", "guide_robust", "auditor"]].stack().between(0, 1).all()
    history = pd.read_csv(out / "history.csv")
    assert history.groupby("arm").step.max().to_dict() == {"robust": 1, "conditional": 1}
    before = readings[readings.arm == "base"]
    # tuning moved the images
    assert not np.allclose(before.extent_mm, readings[readings.arm == "robust"].extent_mm)
    again = brain.run_study(
        study, ["base", "robust", "robust"], [0, 0], tmp_path / "again", fidelity_images=12, **TINY
    )
    same = pd.read_csv(again / "readings.csv.gz")
    pd.testing.assert_frame_equal(
        same[same.arm == "robust"].reset_index(drop=True),
        readings[readings.arm == "robust"].reset_index(drop=True),
    )
    assert len(same) == 32 and len(pd.read_csv(again / "history.csv")) == 2, (
        "named twice, counted once"
    )
    few = brain.run_study(study, ["robust"], [0], tmp_path / "few", readings_only=True, **TINY)
    pd.testing.assert_frame_equal(
        pd.read_csv(few / "readings.csv.gz"), same[same.arm == "robust"].reset_index(drop=True)
    )
    # and nothing measured against the base
    assert sorted(brain.load_results(few)) == ["history", "readings", "slices"]


def test_an_arm_with_low_rank_weights_is_tuned_and_drawn_from(study, runs):
    judges, key = brain.fit_judges(study), brain.judges_digest(study)
    folder = brain.tune_arm(study, judges, key, "robust", 0, trainable="lora", lora_rank=2, **TINY)
    saved = read_tensors(folder / "denoiser.safetensors")
    assert saved and all("lora_" in name for name in saved)
    base = gen.Generator.load(study.weights)
    tuned = brain.tuned_generator(base, folder)
    held = dict(tuned.denoiser.named_parameters())
    assert all(torch.equal(held[name], value.float()) for name, value in saved.items())
    assert not any(p.requires_grad for p in held.values())
    assert not any("lora_" in name for name, _ in base.denoiser.named_parameters())
    latents, words = base.noise(0, [0]), base.encode_prompts(["axial t1 of the brain"])
    with torch.no_grad():
        for name in saved:
            held[name].add_(0.1)  # two steps moved them too little for one image to show
        assert not torch.allclose(
            tuned.predict_noise(latents, 500, words),
            base.predict_noise(latents, 500, words),
            atol=1e-3,
        )


def test_more_images_have_a_folder_of_their_own(monkeypatch, tmp_path):
    from studies.brain import report, views
    from studies.brain.study import results_folder

    for module in ("study", "report"):  # a function of the package hides the module `report`
        monkeypatch.setattr(sys.modules[f"studies.brain.{module}"], "repository", lambda: tmp_path)
    assert brain.many_images_folder() is None and views.many_images_table() is None
    folders = [results_folder(brain.Study(images=images)) for images in (1000, 900, 4000)]
    assert [folder.name for folder in folders] == ["brain", "brain-900", "brain-4000"]
    for name in ("brain", "brain-900", "brain-4000", "brain-old"):
        (tmp_path / "results" / name).mkdir(parents=True)
    assert brain.many_images_folder() == folders[2]
    p = np.tile([0.1, 0.9], 200)
    slices = pd.DataFrame(
        {
            "subject": [f"s{i}" for i in range(400)],
            "sex": np.where(p > 0.5, "F", "M"),
            "guide_robust": p,
            "auditor": p,
            "oracle": p,
            "extent_mm": 100 + 10 * (p < 0.5) + np.arange(400) % 7,
        }
    )
    readings = slices.assign(
        arm="robust", seed=0, prompt=np.repeat(["one", "two"], 200), group="HGG", auditor=0.9
    )
    for name, table in (("readings", readings), ("slices", slices)):
        table.to_csv(folders[2] / f"{name}.csv.gz", index=False)
    assert set(report(folders[2]).arm) == {"robust"}
    shown = views.many_images_table().set_index(["figure", "judge"])
    assert len(shown) == 9 and (shown.n == 400).all()
    gaps = shown.loc["mean gap over prompts"]
    # |1/2 - 76/166|, 1 - 76/166
    assert gaps.found.str[:5].to_dict() == {"guide": "0.042", "auditor": "0.542", "oracle": "0.042"}
    assert gaps.holds.to_dict() == {"guide": "no", "auditor": "no", "oracle": "yes"}


def test_what_each_part_contributes(study, runs, tmp_path, monkeypatch):
    from fairlib.models.classifier import predict
    from studies.brain import ablation

    monkeypatch.setattr(ablation, "quality", lambda *_: {"mmd_change": 0.0})
    # judges of three steps know too little for them
    monkeypatch.setattr(ablation, "shares", lambda *_: {"images": 16})
    out = brain.run_ablation(study, ["ensemble", "robust"], [0], tmp_path, **TINY)
    table = brain.load_ablation(out)
    # in the order of ABLATIONS
    assert list(table.arm) == ["robust", "ensemble"] and (table.seconds > 0).all()
    judges, key = ablation.with_guide(study, brain.fit_judges(study), ["key"], "ensemble")
    members = [
        ablation.load_classifier(ablation.fit_judge(study, "ensemble", settings))
        for settings in ablation.guide_settings(study, "ensemble")
    ]
    images = torch.rand(4, 1, 128, 128) * 2 - 1
    mean = sum(predict(member, images).logit for member in members) / len(members)
    torch.testing.assert_close(predict(judges.guides["ensemble"], images).logit, mean)
    assert len(key) == 4 and len({member.body[1].weight.sum().item() for member in members}) == 3
    with pytest.raises(SettingsError, match="unknown arm 'blunt'"):
        brain.run_ablation(study, ["blunt"], [0], tmp_path)
    assert brain.load_ablation(tmp_path / "nothing").empty


def test_shares_of_a_variant_are_read_by_its_own_guide():
    from studies.brain.ablation import shares

    p = np.tile([0.1, 0.9], 50)
    slices = pd.DataFrame(
        {
            "subject": [f"s{i}" for i in range(100)],
            "sex": np.where(p > 0.5, "F", "M"),
            "guide_bare": p,
            "guide_robust": p,
            "auditor": p,
            "oracle": p,
            "extent_mm": 100 + 10 * (p < 0.5) + np.arange(100) % 7,
        }
    )
    readings = slices.assign(
        arm="bare", prompt="one", group="HGG", guide_bare=0.9, guide_robust=0.1
    )
    found = shares(readings, slices, "bare")
    assert (
        found["guide"] == 1 and found["auditor"] == pytest.approx(0.5) and found["disagree"] == 0.5
    )
    assert found["size_F"] == pytest.approx(0) and found["images"] == 100


def test_variants_differ_from_the_default_in_what_they_say():
    settings = {arm: brain.arm_settings(brain.Study(), arm, 1)[1] for arm in brain.ABLATIONS}
    default = settings["robust"]
    for arm, chosen in brain.ABLATIONS.items():
        other = {
            f.name
            for f in dataclasses.fields(default)
            if getattr(settings[arm], f.name) != getattr(default, f.name)
        }
        if chosen.family == "transport":
            assert other == {name for name, _ in chosen.changes}, arm
        assert arm == "robust" or other or chosen.guide != "robust"


def test_mistakes_are_named(study, runs, tmp_path):
    with pytest.raises(SettingsError, match="unknown arm 'robusted'"):
        brain.arm_settings(study, "robusted", 0)
    with pytest.raises(DataError, match="no results here"):
        brain.load_results(tmp_path)
    broken = tmp_path / "weights"
    shutil.copytree(study.weights, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="hash"):
        gen.Generator.load(dataclasses.replace(study, weights=str(broken)).weights)


def test_results_grow_and_are_never_mixed(tmp_path):
    from fairlib.io import write_json
    from studies.engine.results import merged, same_study, write_table

    old = pd.DataFrame(
        {"arm": ["base", "robust", "base"], "seed": [1, 1, 2], "auditor": [0.1, 0.2, 0.3]}
    )
    write_table(tmp_path / "table.csv.gz", old)
    new = pd.DataFrame({"arm": ["robust", "plain"], "seed": [1, 2], "auditor": [0.9, 0.8]})
    found = merged(tmp_path / "table.csv.gz", new).set_index(["arm", "seed"]).auditor.to_dict()
    assert found == {("base", 1): 0.1, ("robust", 1): 0.9, ("base", 2): 0.3, ("plain", 2): 0.8}
    write_json(tmp_path / "study.json", {"study": {"images": 1000}, "changes": {}})
    same_study(tmp_path / "study.json", {"study": {"images": 1000}, "changes": {}})
    with pytest.raises(DataError, match="another study"):
        same_study(tmp_path / "study.json", {"study": {"images": 10}, "changes": {}})
