"""The study from end to end, in miniature: tiny weights, few subjects, one optimiser step."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.models import clip as cl
from fairlib.models import generator as gen
from fairlib.models.autoencoder import build_autoencoder
from fairlib.runs import brain
from fairlib.runs.manifest import write_manifest

pytestmark = pytest.mark.slow
TINY = {"steps": 2, "prompts_per_step": 2, "images_per_prompt": 2, "bank_size": 2, "sampling_steps": 2, "replay_steps": 1}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    place = tmp_path_factory.mktemp("brain")
    torch.manual_seed(0)
    merges = cl.learn_merges(["axial t1 of the brain"], count=20)
    config = {"embed_dim": 16, "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1},
              "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 1}}
    cl.write_vocabulary(place / "clip", merges)
    clip = cl.build_clip(place / "clip", config)
    cl.save_clip(place / "clip", clip, merges, config)
    pipeline = gen.assemble(cl.text_encoder_of(clip), cl.pipeline_tokenizer(place / "clip"), build_autoencoder((8, 8, 8, 8)),
                            gen.build_denoiser((16, 32), 32))
    gen.save_pipeline(place / "weights", pipeline)
    for folder in ("weights", "clip"):
        write_manifest(place / folder, {}, 0.0)
    return brain.Study(weights=str(place / "weights"), clip=str(place / "clip"), subjects=0.3, judge_steps=3, radiology=12,
                       images=16, sampling_steps=2, batch_size=8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("FAIRLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
    yield
    patch.undo()


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
    monkeypatch.setattr("fairlib.runs.brain.study._quality", lambda *_: {"mmd": 0.0, "mmd_low": 0.0, "mmd_high": 0.0,
                        "mmd_change": 0.0, "mmd_change_low": 0.0, "mmd_change_high": 0.0})  # sixteen images are too few
    monkeypatch.setattr("fairlib.measures.anatomy.SMALLEST_MM2", 0.0)
    out = brain.run_study(study, ["robust", "conditional"], [0], tmp_path, fidelity_images=12, **TINY)
    readings = pd.read_csv(out / "readings.csv.gz")
    assert readings.groupby("arm").size().to_dict() == {"base": 16, "conditional": 16, "robust": 16}
    assert readings[["guide_plain", "guide_robust", "auditor"]].stack().between(0, 1).all()
    history = pd.read_csv(out / "history.csv")
    assert history.groupby("arm").step.max().to_dict() == {"robust": 1, "conditional": 1}
    before = readings[readings.arm == "base"]
    assert not np.allclose(before.extent_mm, readings[readings.arm == "robust"].extent_mm)  # tuning moved the images
    again = brain.run_study(study, ["robust"], [0], tmp_path / "again", fidelity_images=12, **TINY)
    same = pd.read_csv(again / "readings.csv.gz")
    pd.testing.assert_frame_equal(same[same.arm == "robust"].reset_index(drop=True),
                                  readings[readings.arm == "robust"].reset_index(drop=True))


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
    from fairlib.files import write_json
    from fairlib.runs.brain.study import _merged, _same_study, _write_table

    old = pd.DataFrame({"arm": ["base", "robust", "base"], "seed": [1, 1, 2], "auditor": [0.1, 0.2, 0.3]})
    _write_table(tmp_path / "table.csv.gz", old)
    new = pd.DataFrame({"arm": ["robust", "plain"], "seed": [1, 2], "auditor": [0.9, 0.8]})
    found = _merged(tmp_path / "table.csv.gz", new).set_index(["arm", "seed"]).auditor.to_dict()
    assert found == {("base", 1): 0.1, ("robust", 1): 0.9, ("base", 2): 0.3, ("plain", 2): 0.8}
    write_json(tmp_path / "study.json", {"study": {"images": 1000}, "changes": {}})
    _same_study(tmp_path / "study.json", {"study": {"images": 1000}, "changes": {}})
    with pytest.raises(DataError, match="another study"):
        _same_study(tmp_path / "study.json", {"study": {"images": 10}, "changes": {}})
