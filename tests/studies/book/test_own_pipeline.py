"""Chapters 2 to 5 on a pipeline, a classifier and prompts that are not the book's. The pipeline is
the shipped one made to draw in colour, so that its images are known.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fairlib.errors import DataError, SettingsError
from fairlib.models.generator import MEAN_LATENT, Generator
from studies.brain.arms import as_slices, base_model, evaluation, generated, tuned
from studies.brain.data import EVALUATION_PROMPTS, BrainSettings, alignment, prompts_of
from studies.brain.evaluators import own_classifier, tuning_classifier
from studies.brain.study import ARMS, STUDY
from studies.engine import repository
from studies.engine.profiles import notebooks
from studies.engine.running import same_study
from studies.engine.study import results_of

slow = pytest.mark.slow
as_in_a_kernel = pytest.mark.filterwarnings(
    "ignore"
)  # other packages' warnings are no errors there
SMALL = {
    "runs": "live",
    "subjects": 0.3,
    "radiology": 16,
    "classifier_steps": 80,
    "images": 16,
    "sweep_images": 8,
    "scales": [1.0, 3.0],
    "tuning_steps": 1,
    "cache_size": 12,
    "examples": 2,
    "arms": ["transport-robust"],
    "lora": 2,
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """The shipped pipeline, its autoencoder with three channels, each a copy of its one."""
    place = tmp_path_factory.mktemp("own") / "coloured"
    shipped = Generator.load(repository() / "weights" / "brain")
    vae = shipped.pipeline.vae
    first, last = vae.encoder.conv_in, vae.decoder.conv_out
    vae.encoder.conv_in = nn.Conv2d(3, first.out_channels, 3, padding=1)
    vae.encoder.conv_in.weight.data = first.weight.repeat(1, 3, 1, 1) / 3
    vae.encoder.conv_in.bias = first.bias
    vae.decoder.conv_out = nn.Conv2d(last.in_channels, 3, 3, padding=1)
    vae.decoder.conv_out.weight.data = last.weight.repeat(3, 1, 1, 1)
    vae.decoder.conv_out.bias.data = last.bias.repeat(3)
    vae.register_to_config(in_channels=3, out_channels=3)
    shipped.save(place)
    return place


def dark():
    """A classifier of the reader's, a function without weights: dark images are of women."""
    return lambda images: -10 * (images.mean((1, 2, 3)) + 0.45)


@pytest.fixture
def own(coloured, tmp_path, monkeypatch):
    """The parameters of a reader, with four prompts of their own."""
    monkeypatch.setitem(sys.modules, "readers_module", sys.modules[__name__])
    rows = [(f"{p.text} Slice.", p.contrast, p.grade, p.side) for p in EVALUATION_PROMPTS[:4]]
    table = tmp_path / "prompts.csv"
    pd.DataFrame(rows, columns=["prompt", "contrast", "group", "side"]).to_csv(table, index=False)
    given = {"weights": str(coloured), "classifier": "readers_module:dark", "prompts": str(table)}
    return {**SMALL, **given}


def chapter(stem, given, monkeypatch):
    """Run the code cells of a notebook here, with those parameters of `given` that it has; returns
    what they leave behind.
    """
    monkeypatch.chdir(repository())
    space = {"__name__": "chapter"}
    for cell in json.loads(notebooks()[stem].read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{stem} {cell['id']}", "exec"), space)
        if "parameters" in cell["metadata"].get("tags", []):
            space |= {name: value for name, value in given.items() if name in space}
    return space


@slow
@as_in_a_kernel
def test_chapter_2_opens_and_draws_with_another_pipeline(own, runs, monkeypatch):
    found = chapter("02_generator", own, monkeypatch)
    assert found["pipeline"].vae.config.out_channels == 3 and found["difference"] < 1e-3
    texts = [prompt.text for prompt in EVALUATION_PROMPTS[:4]]
    assert list(found["requested"].text) == [f"{text} Slice." for text in texts]
    assert found["grid"].shape == (4, 1, 128, 128)
    shipped = base_model(BrainSettings(weights="weights/brain")).load()
    noise = shipped.noise(0, [0])
    images = [
        each.sample(texts[:1], noise=noise, steps=8) for each in (shipped, found["generator"])
    ]
    assert (images[0] - images[1]).abs().max() < 1e-4, "the same model in colour"


@slow
@as_in_a_kernel
def test_chapters_3_to_5_follow_the_readers_classifier(own, runs, monkeypatch):
    slices = chapter("03_classifier", own, monkeypatch)["slices"]
    assert np.array_equal(slices.standard, slices.robust)

    found = chapter("04_bias_discovery", own, monkeypatch)
    readings, settings = found["readings"], found["settings"]
    images, _ = generated(ARMS["untuned"].run(settings, 0), evaluation(settings, 0))
    assert np.allclose(readings.robust, dark()(images).sigmoid(), atol=1e-4)
    assert readings.prompt.nunique() == 4 and images.shape == (16, 1, 128, 128)

    found = chapter("05_alignment_tuning", own, monkeypatch)
    settings, first = found["settings"], found["first"]
    assert len(found["targets"]) == 4 and first.logits.shape == (24,)
    weights = tuned(settings, ARMS["transport-robust"].tuning, 0).load()
    assert weights and all("lora_" in name for name in weights)
    how = alignment(settings, ARMS["transport-robust"].tuning, 0)
    assert (how.lora_rank, how.micro_batch) == (2, 8)


def test_images_become_slices_of_one_size_and_no_colour():
    plain = torch.rand(2, 1, 128, 128)
    assert as_slices(plain) is plain
    colours = torch.stack([plain[:, 0], plain[:, 0] / 2, plain[:, 0] * 0], dim=1)
    assert torch.allclose(as_slices(colours), plain / 2)
    large = plain.repeat_interleave(2, 2).repeat_interleave(2, 3)
    ramp = torch.linspace(-1, 1, 256).expand(1, 1, 256, 256)
    assert as_slices(large).shape == plain.shape
    middle = as_slices(ramp)[0, 0, 5, 8:-8]
    assert torch.allclose(middle, ramp[0, 0, 0].view(128, 2).mean(1)[8:-8], atol=1e-5)


def test_another_size_and_precision_reach_the_pipeline(coloured, tmp_path):
    """Where it draws 64 pixels, evaluators read 128; a mean latent is of one size."""
    settings = BrainSettings(weights=str(coloured), image_size=64, precision="bf16")
    with pytest.raises(SettingsError, match="mean latent is of one size"):
        base_model(settings).load()
    (coloured / MEAN_LATENT).rename(tmp_path / MEAN_LATENT)
    generator = base_model(settings).load()
    (tmp_path / MEAN_LATENT).rename(coloured / MEAN_LATENT)
    assert generator.latent_shape == (4, 8, 8) and generator.denoiser.dtype == torch.bfloat16
    image = generator.sample(["brain"], 0, steps=1)
    assert image.shape == (1, 1, 128, 128) and image.dtype == torch.float32
    assert base_model(settings) != base_model(replace(settings, precision=""))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights", "sd15"),
        ("clip", "biomedclip"),
        ("classifier", "mine:load"),
        ("prompts", "prompts.csv"),
        ("image_size", 512),
        ("lora", 4),
        ("precision", "fp16"),
    ],
)
def test_stored_runs_stand_for_the_shipped_models_alone(name, value):
    settings = replace(BrainSettings(), **{name: value})
    with pytest.raises(SettingsError, match=f"^{name}: .*not '?{value}'?; set runs = 'live'"):
        results_of(STUDY, settings, "stored", [], 0)


def test_a_setting_newer_than_a_record_counts_where_it_is_set(tmp_path):
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"study": {"images": 4}, "inputs": {}}))
    same_study(path, {"study": {"images": 4, "lora": 0, "prompts": ""}})
    with pytest.raises(DataError, match="differ in 'study'"):
        same_study(path, {"study": {"images": 4, "lora": 2, "prompts": ""}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": None}, "side"),
        ({"contrast": "T1"}, "contrast of row 0 is 'T1'.*t1, t1ce"),
        ({"group": "HGG"}, "4 prompts; give four or more, of both grades"),
        ({"contrast": "t1", "side": "left"}, "one a contrast and side"),
    ],
)
def test_a_table_of_prompts_says_what_a_target_needs(own, change, message):
    table = pd.read_csv(own["prompts"]).assign(**change).dropna(axis="columns")
    table.to_csv(own["prompts"], index=False)
    with pytest.raises(DataError, match=message):
        prompts_of(BrainSettings(prompts=own["prompts"]))


def test_a_function_is_known_by_its_code(tmp_path, monkeypatch):
    """A reader who changes the classifier gets no readings of the old one."""
    monkeypatch.syspath_prepend(tmp_path)
    text = "def load():\n    return lambda images: {} * images.mean((1, 2, 3))\n"
    found = []
    for number, name in (("1", "one"), ("2", "two")):
        (tmp_path / f"mine_{name}.py").write_text(text.format(number))
        found.append(own_classifier(f"mine_{name}:load"))
    assert found[0].digest != found[1].digest
    images = torch.rand(3, 1, 8, 8)
    assert torch.allclose(found[1].load()(images), 2 * images.mean((1, 2, 3)))
    settings = BrainSettings(classifier="mine_one:load")
    assert [tuning_classifier(settings, kind)[0] for kind in ("standard", "robust_short")] == (
        [found[0]] * 2
    )
    with pytest.raises(SettingsError, match="classifier nowhere:f: .*package.module:function"):
        own_classifier("nowhere:f").load()
