"""Stage one as a run in a folder: what it writes, what diffusers reads of it, and how it goes on."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch.nn import functional as F

from fairlib import DataError, SettingsError
from fairlib.cli import main
from fairlib.cohorts.captions import read_captions
from fairlib.io import read_tensors
from fairlib.models import clip
from fairlib.models.autoencoder import build_autoencoder, encode
from fairlib.models.generator import Generator, assemble, build_denoiser, denoising_task
from fairlib.models.training import batch_indices
from fairlib.rng import Stream, torch_rng
from fairlib.stage_one import StageOneSettings, stage_one
from studies.brain.phantom import RadiologySettings, write_roco
from tests.fairlib.strangers import CONFIG

SMALL = {"image_size": 32, "batch_size": 2, "warmup": 0, "steps": 4, "lora": 2}
PANEL = ["axial brain"]
OFTEN = {"panel_every": 2, "save_every": 2, "learning_rate": 0.01}
RARE = {"panel_every": 100, "save_every": 100}
UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The folder of a tiny random pipeline with a mean latent; 64 pixels a side."""
    place = tmp_path_factory.mktemp("stage_one")
    clip.write_vocabulary(place / "words", clip.learn_merges(["axial brain"], count=20))
    torch.manual_seed(0)
    encoder = clip.text_encoder_of(clip.build_clip(place / "words", CONFIG))
    parts = (encoder, clip.pipeline_tokenizer(place / "words"), build_autoencoder((8, 8, 8)))
    made = assemble(*parts, build_denoiser((16, 32), 32))
    Generator(made, mean_latent=torch.zeros(4, 16, 16)).save(place / "tiny")
    return place / "tiny"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of five colour images with captions."""
    place, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(5):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"axial brain {number}\n")
    return place


def run(pipeline, images, out, stop=None, **changes):
    """The losses of a run, which is left after `stop` steps."""
    losses, settings = [], StageOneSettings(**SMALL | changes)
    for done in stage_one(pipeline, images, "captions", out, settings, prompts=PANEL):
        losses.append(done.loss)
        if len(losses) == stop:
            break
    return losses


def content(out):
    """Name and bytes of every file of a run."""
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tuned(pipeline, images, tmp_path_factory):
    """A finished run of LoRA weights."""
    out = tmp_path_factory.mktemp("runs") / "tuned"
    run(pipeline, images, out, **OFTEN)
    return out


# ---- what it writes


def test_diffusers_reads_the_lora_weights_and_draws_as_the_pipeline_beside_them(pipeline, tuned):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    words = {"num_inference_steps": 2, "output_type": "np", "height": 32, "width": 32}

    def drawn(pipe):
        pipe.set_progress_bar_config(disable=True)
        return pipe("axial brain", latents=latents.clone(), **words).images

    base = DiffusionPipeline.from_pretrained(pipeline)
    before = drawn(base)
    base.load_lora_weights(str(tuned))
    after = drawn(base)
    merged = drawn(DiffusionPipeline.from_pretrained(tuned / "pipeline"))
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, merged, atol=1e-5)


def test_lora_weights_are_the_averaged_ones(tuned):
    saved = read_tensors(tuned / "pytorch_lora_weights.safetensors")
    state = read_tensors(tuned / "state.safetensors")
    average = {name: value for name, value in state.items() if name.startswith("ema/")}
    assert len(saved) == len(average) > 0
    for name, value in average.items():
        key = name.removeprefix("ema/denoiser.").replace(".default", "")
        assert torch.equal(saved[f"unet.{key}"], value)
    assert any(not torch.equal(value, state[name.replace("ema", "weight", 1)])
               for name, value in average.items())  # fmt: skip


def test_the_pipeline_draws_at_the_new_size_from_the_mean_of_the_new_latents(pipeline, tuned):
    generator = Generator.load(tuned / "pipeline")
    assert generator.sample(["brain"], 0, steps=1).shape == (1, 1, 32, 32)
    latents = read_tensors(tuned / "latents.safetensors")["latents"]
    torch.testing.assert_close(generator.mean_latent, latents.float().mean(0))
    assert Generator.load(pipeline).latent_shape == (4, 16, 16)


def test_latents_are_those_of_the_images(pipeline, images, tuned):
    vae = Generator.load(pipeline).pipeline.vae
    grey = read_captions(images, size=32).load().mean(1, keepdim=True)
    wanted = encode(vae, grey) * vae.config.scaling_factor
    found = read_tensors(tuned / "latents.safetensors")["latents"]
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), wanted, atol=1e-5, rtol=1e-3)


def test_panels_show_the_same_noise_as_the_model_learns(pipeline, tuned):
    names = [path.name for path in sorted((tuned / "panels").iterdir())]
    assert names == ["000000.png", "000002.png", "000004.png"]
    first, last = (
        np.asarray(Image.open(tuned / "panels" / name)) for name in (names[0], names[-1])
    )
    assert first.shape == (32, 32) and (first != last).any()
    wanted = Generator.load(tuned / "pipeline").sample(PANEL, 0)[0, 0]
    assert np.abs(last / 127.5 - 1 - wanted.numpy()).max() < 2 / 127.5


def test_the_card_says_what_it_is_and_is_not_for(pipeline, tuned):
    card = (tuned / "README.md").read_text()
    facts = json.loads((tuned / "run.json").read_text())
    for text in ("LoRA weights of rank 2", "# tiny, fine-tuned on captions", facts["base_sha256"],
                 "| images | 5 |", "| learning_rate | 0.01 |", "diagnosis"):  # fmt: skip
        assert text in card
    assert str(pipeline.parent) not in card + json.dumps(facts)


# ---- what it learns


@pytest.mark.parametrize("lora", [0, 2])
def test_the_first_loss_is_that_of_the_untuned_denoiser(pipeline, images, tmp_path, lora):
    [loss] = run(pipeline, images, tmp_path / "out", lora=lora, steps=1, prompt_dropout=0.0)
    generator = Generator.load(pipeline)
    latents = read_tensors(tmp_path / "out" / "latents.safetensors")["latents"]
    rows = batch_indices(0, 0, 5, 2)
    words = generator.encode_prompts([f"axial brain {row}" for row in rows.tolist()])
    rng = torch_rng(0, Stream.FINETUNING, 0)
    *inputs, noise = denoising_task(latents[rows], words, words[:1], 0.0, rng)
    with torch.no_grad():
        wanted = F.mse_loss(generator.denoiser(*inputs).sample, noise)
    assert loss == pytest.approx(float(wanted), rel=1e-5)


def test_the_loss_falls_and_only_the_denoiser_moves(pipeline, images, tmp_path):
    out, changes = tmp_path / "out", {"lora": 0, "learning_rate": 2e-3, "steps": 60, **RARE}
    losses = run(pipeline, images, out, **changes, prompt_dropout=0.0, ema_decay=0.0)
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    before, after = (Generator.load(place).pipeline for place in (pipeline, out / "pipeline"))
    for name in ("unet", "vae", "text_encoder"):
        pairs = zip(*(getattr(pipe, name).parameters() for pipe in (before, after)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == (name != "unet")


def test_checkpointing_changes_no_loss(pipeline, images, tmp_path, monkeypatch):
    calls = []
    kept = run(pipeline, images, tmp_path / "kept", **RARE)
    original = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        torch.utils.checkpoint,
        "checkpoint",
        lambda *args, **options: calls.append(1) or original(*args, **options),
    )
    again = run(pipeline, images, tmp_path / "again", checkpointing=True, **RARE)
    assert calls and again == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_has_float32_master_weights(pipeline, images, tmp_path, precision, lora):
    whole = run(pipeline, images, tmp_path / "whole", lora=lora, **RARE)
    half = run(pipeline, images, tmp_path / "half", lora=lora, precision=precision, **RARE)
    assert half != whole and half == pytest.approx(whole, rel=0.02)
    state = read_tensors(tmp_path / "half" / "state.safetensors")
    assert all(v.dtype == torch.float32 for k, v in state.items() if k.startswith(("w", "e")))
    assert int(state["updates"]) == 4
    assert float(state["loss_scale"]) == (1024 if precision == "fp16" else 1)
    assert (
        Generator.load(tmp_path / "half" / "pipeline")
        .sample(["brain"], 0, steps=1)
        .isfinite()
        .all()
    )


# ---- how it goes on


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_that_is_left_goes_on_to_the_same_bits(pipeline, images, tuned, tmp_path, stop):
    run(pipeline, images, tmp_path / "out", stop, **OFTEN)
    left = run(pipeline, images, tmp_path / "out", **OFTEN)
    assert len(left) == 4 - stop // 2 * 2  # a state is saved before its step is yielded
    assert content(tmp_path / "out") == content(tuned)


@pytest.mark.slow
def test_a_run_killed_at_any_file_goes_on_to_the_same_bits(pipeline, images, tmp_path, monkeypatch):
    """Every file is put in place by one call of `os.replace`: the run dies at each in turn."""
    changes = {"steps": 2, "panel_every": 2, "save_every": 1}
    run(pipeline, images, tmp_path / "whole", **changes)
    wanted, replace, left = content(tmp_path / "whole"), os.replace, [0]

    def dying(*places):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        replace(*places)

    monkeypatch.setattr(os, "replace", dying)
    for moment in range(1, 100):
        left[0], out = moment, tmp_path / str(moment)
        try:
            run(pipeline, images, out, **changes)
            break
        except KeyboardInterrupt:
            run(pipeline, images, out, **changes)
        assert content(out) == wanted, moment
    assert moment > 8


def test_a_finished_run_may_be_made_longer(pipeline, images, tuned, tmp_path):
    run(pipeline, images, tmp_path / "out", **OFTEN, steps=2)
    run(pipeline, images, tmp_path / "out", **OFTEN)
    assert content(tmp_path / "out") == content(tuned)
    with pytest.raises(SettingsError, match="a run of 4 steps, and steps is 3"):
        run(pipeline, images, tmp_path / "out", **OFTEN, steps=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": 3}, "its lora is 2, here 3"),
        ({"seed": 1}, "its seed is 0, here 1"),
        ({"image_size": 48}, "its image_size is 32, here 48"),
    ],
)
def test_another_run_is_refused(pipeline, images, tuned, changes, message):
    with pytest.raises(SettingsError, match=message):
        run(pipeline, images, tuned, **OFTEN | changes)


def test_other_data_or_another_base_are_refused(pipeline, images, tuned, tmp_path):
    other = shutil.copytree(images, tmp_path / "images")
    (other / "0.txt").write_text("another caption")
    with pytest.raises(SettingsError, match="another run: its data_sha256"):
        run(pipeline, other, tuned, **OFTEN)
    moved = Generator.load(pipeline)
    moved.denoiser.conv_out.bias.data += 1
    moved.save(tmp_path / "tiny")
    with pytest.raises(SettingsError, match="another run: its base_sha256"):
        run(tmp_path / "tiny", images, tuned, **OFTEN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 36}, "a multiple of 8"),
        ({"precision": "fp8"}, "expected one of 'fp32', 'bf16', 'fp16'"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(pipeline, images, tmp_path, changes, message):
    with pytest.raises(SettingsError, match=message):
        run(pipeline, images, tmp_path / "out", **changes)


def test_a_folder_that_holds_something_else_is_left_alone(pipeline, images, tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(SettingsError, match="holds something that is no run"):
        run(pipeline, images, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_killed_run_left_half_written_is_removed(pipeline, images, tuned, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".run.json.abc").write_text("{")
    (out / ".state.safetensors.abc").write_text("half")
    run(pipeline, images, out, **OFTEN)
    (out / ".run.json.abc").unlink()
    assert content(out) == content(tuned)


def test_a_cohort_without_captions_is_refused(pipeline, images, tmp_path):
    with pytest.raises(SettingsError, match="'brats' has no captions; give roco"):
        next(stage_one(pipeline, images, "brats", tmp_path / "out"))
    with pytest.raises(DataError, match="no images with captions"):
        next(stage_one(pipeline, tmp_path, "captions", tmp_path / "out"))


# ---- the command


def test_the_command_trains_on_the_roco_phantom(pipeline, tmp_path, capsys):
    write_roco(tmp_path / "ROCO", RadiologySettings(slices=6, validation=1, size=32))
    out = tmp_path / "out"
    command = ["finetune", str(pipeline), "--data-dir", str(tmp_path / "ROCO"), "--cohort", "roco"]
    command += ["--out", str(out), "--steps", "2", "--batch-size", "3", "--lora", "2"]
    command += ["--checkpointing", "--learning-rate", "1e-3", "--device", "cpu"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "step 2 of 2: loss " in printed and printed.endswith(f"{out}\n")
    assert "| images | 6 |" in (out / "README.md").read_text()
    with Image.open(out / "panels" / "000002.png") as panel:
        assert panel.size == (4 * 64, 64)  # the first four captions
    settings = json.loads((out / "run.json").read_text())
    assert settings["checkpointing"] and settings["learning_rate"] == 1e-3
    assert main([*command, "--precision", "bf16"]) == 2
    assert "its precision is 'fp32', here 'bf16'" in capsys.readouterr().err


def test_the_command_offers_every_setting(capsys):
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    text = capsys.readouterr().out
    names = StageOneSettings.__dataclass_fields__
    assert all(f"--{name.replace('_', '-')} " in text for name in names)
    assert "Rank of LoRA weights in the denoiser" in " ".join(text.split())
    assert "--precision {fp32,bf16,fp16}" in text and "sd15 (stable-diffusion-v1-5" in text
