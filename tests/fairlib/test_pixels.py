"""Pixel-space pipelines (DeepFloyd IF's stage 1) through loading, sampling, replay, tuning, audit and
stage one, against diffusers' own pipeline and schedulers.
"""

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    IFPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch.nn import functional as F
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from fairlib import SettingsError, WeightsError
from fairlib.cli import main
from fairlib.cohorts.captions import read_captions
from fairlib.io import read_tensors
from fairlib.methods.replay import record, replay
from fairlib.models.controlnet import ControlledGenerator
from fairlib.models.generator import Generator
from fairlib.models.loading import sampling_schedule
from fairlib.models.solvers import dpm_solver_2m
from fairlib.models.training import batch_indices
from fairlib.rng import Stream, torch_rng
from fairlib.stage_one import StageOneSettings, stage_one

PROMPTS = ["Axial brain", "brain of a patient "]
BLOCKS = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 16,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
}
SCHEDULE = {
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "learned_range",
    "thresholding": True,
    "sample_max_value": 1.5,
}
SMALL = {"steps": 2, "batch_size": 2, "warmup": 0, "save_every": 1, "learning_rate": 0.01}
UNET, INDEX = "unet/diffusion_pytorch_model.safetensors", "model_index.json"


def unet(channels=3, outputs=6, **options):
    """The UNet of IF in small, untrained."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=outputs,
        layers_per_block=1,
        block_out_channels=(16, 32),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
        **BLOCKS | options,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a tiny IFPipeline, as diffusers writes it."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁brain", -1.0)]
    tokenizer = T5Tokenizer(vocab=words + [(c, -3.0) for c in "abefilnoprtx"], extra_ids=0)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(1)
    encoder = T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes))
    parts = (tokenizer, encoder, unet(), DDPMScheduler(**SCHEDULE), None, None, None, False)
    place = tmp_path_factory.mktemp("pixels") / "if"
    IFPipeline(*parts).save_pretrained(place)
    return place


@pytest.fixture
def generator(folder):
    return Generator.load(folder)


def bright():
    """A classifier: bright images are of the first group."""
    return lambda images: 20 * images.flatten(1).mean(1)


# ---- loading and sampling


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_images_are_those_of_diffusers_own_pipeline_and_solver(folder, generator, scale):
    solver = dpm_solver_2m(generator.alphas_cumprod, 5)
    theirs = DiffusionPipeline.from_pretrained(folder)
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(
        theirs.scheduler.config, thresholding=False
    )
    theirs.set_progress_bar_config(disable=True)
    options = {"generator": torch.Generator().manual_seed(4), "timesteps": list(solver.timesteps)}
    wanted = theirs(PROMPTS, guidance_scale=scale, output_type="pt", **options).images
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    embeds = generator.encode_prompts(PROMPTS)
    with torch.no_grad():
        found = solver.run(lambda x, t: generator.predict_noise(x, t, embeds, scale), noise)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.std()))
    sampling = {"steps": 5, "guidance_scale": scale}
    images = generator.sample(PROMPTS, torch.Generator().manual_seed(4), **sampling)
    assert torch.equal(images, found.clamp(-1, 1))
    each = generator.sample(PROMPTS, noise=noise, micro_batch=1, **sampling)
    assert torch.allclose(each, images, atol=1e-3)


def test_prompts_are_read_as_if_reads_them(folder, generator):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    wanted, empty = pipeline.encode_prompt(PROMPTS)
    found = generator.encode_prompts([*PROMPTS, ""])
    assert found.shape == (3, 77, 16)
    torch.testing.assert_close(found, torch.cat([wanted, empty[:1]]))
    unmasked = pipeline.text_encoder(pipeline.tokenizer("brain", padding="max_length", max_length=77,
                                                        return_tensors="pt").input_ids)  # fmt: skip
    assert not torch.allclose(generator.encode_prompts(["brain"]), unmasked[0], atol=1e-3)


def test_sampling_starts_where_a_signal_is_left(generator):
    """Of IF's cosine, whose last signal is 2e-9, as of Stable Diffusion's schedule."""
    whole = DDPMScheduler(**SCHEDULE).alphas_cumprod.double()
    alphas, count = generator.alphas_cumprod, len(generator.alphas_cumprod)
    assert torch.equal(alphas, whole[:count])
    assert float(whole[count]) < 0.0046 <= float(alphas[-1]) < 0.0048
    velocity = DDPMScheduler(**SCHEDULE, prediction_type="v_prediction")
    assert torch.equal(sampling_schedule(velocity), whole)


def test_an_image_is_its_own_latents(generator, folder):
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    assert torch.equal(generator.decode(generator.encode(images)), images)
    assert torch.equal(generator.encode(images[:, :1]), images[:, :1].expand(-1, 3, -1, -1))
    beyond = (3 * images).requires_grad_()
    generator.decode(beyond).sum().backward()
    assert torch.equal(beyond.grad, (beyond.detach().abs() <= 1).float())
    grey = Generator(generator.pipeline, grey=True)
    assert torch.allclose(grey.decode(images), images.mean(1, keepdim=True))


def test_a_pipeline_of_grey_pixels_draws_and_encodes_grey(generator):
    generator.pipeline.register_modules(unet=unet(1, 2))
    grey = Generator(generator.pipeline)
    grey.resize(24)
    assert grey.sample(["brain"], 0, steps=1).shape == (1, 1, 24, 24)
    images = torch.rand(2, 3, 24, 24)
    assert torch.equal(grey.encode(images), images.mean(1, keepdim=True))
    with pytest.raises(SettingsError, match="a multiple of 2"):
        grey.resize(17)


# ---- what cannot be driven


def index_changed(folder, place, **changes):
    copy = shutil.copytree(folder, place)
    (copy / INDEX).write_text(json.dumps(json.loads((copy / INDEX).read_text()) | changes))
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_encoder": [None, None]}, "has no text_encoder; .* an IFPipeline with its text enc"),
        ({"_class_name": "IFSuperResolutionPipeline"}, "it enlarges images that stage 1 draws"),
    ],
)
def test_other_stages_and_missing_encoders_are_refused_at_reading(
    folder, tmp_path, changes, message
):
    with pytest.raises(WeightsError, match=message):
        Generator.load(index_changed(folder, tmp_path / "if", **changes))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"channels": 6}, r"more than images \(.*super-resolution\): 6 channels for 3"),
        ({"outputs": 4}, "gives 4 channels for 3 of the images"),
        ({"class_embed_type": "timestep"}, "wants class labels"),
        ({"encoder_hid_dim": 24}, "text encoder is 16 wide, its UNet attends to 24"),
    ],
)
def test_a_unet_of_another_stage_is_refused(folder, tmp_path, network, message):
    copy = shutil.copytree(folder, tmp_path / "if")
    unet(**network).save_pretrained(copy / "unet")
    with pytest.raises(WeightsError, match=message):
        Generator.load(copy)


def test_a_checker_and_a_watermarker_are_not_read(folder, generator, tmp_path):
    parts = {"safety_checker": "IFSafetyChecker", "watermarker": "IFWatermarker"}
    changes = {name: ["deepfloyd_if", kind] for name, kind in parts.items()}
    copy = index_changed(folder, tmp_path / "if", **changes, requires_safety_checker=True)
    (copy / "watermarker").mkdir()  # without weights
    same = Generator.load(copy).sample(PROMPTS, 0, steps=1)
    assert torch.equal(same, generator.sample(PROMPTS, 0, steps=1))


def test_words_that_need_another_package_say_which(folder, tmp_path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "if")
    (copy / "tokenizer" / "tokenizer.json").rename(copy / "tokenizer" / "spiece.model")
    monkeypatch.setattr("transformers.utils.is_sentencepiece_available", lambda: False)
    with pytest.raises(WeightsError, match=r"spiece\.model: .*pip install sentencepiece protobuf"):
        Generator.load(copy)


def test_a_controlnet_for_pixels_is_refused(folder, generator):
    with pytest.raises(WeightsError, match="draws pixels; a ControlNet needs Stable Diffusion"):
        ControlledGenerator.load(folder, controlnet=folder / "unet")


# ---- tuning


def test_replay_is_the_gradient_of_autograd(generator):
    """Through the chain whose inputs are detached; the learned variance has none."""
    generator.denoiser.double()
    parameters = generator.trainable_parameters()
    embeds, solver = generator.encode_prompts(PROMPTS), dpm_solver_2m(generator.alphas_cumprod, 3)
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double() / 30

    def predict(latents, timestep, words):
        return generator.predict_noise(latents.detach(), timestep, words, 2.0)

    def loss(latents):
        return (generator.decode(latents) - 0.1).double().square().mean()

    whole = solver.run(lambda x, t: predict(x, t, embeds), noise)
    assert 0 < float((whole.abs() < 1).double().mean()) < 1  # some are clipped, some not
    wanted = torch.autograd.grad(loss(whole), list(parameters.values()), allow_unused=True)
    path = record(solver, predict, noise, embeds)
    leaf = path.sample.detach().requires_grad_()
    [slope] = torch.autograd.grad(loss(leaf), leaf)
    replay(predict, path, slope, solver.chain_coefficients()[1], np.ones((3, 2)))
    for (name, parameter), gradient in zip(parameters.items(), wanted, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        expected = torch.zeros_like(parameter) if gradient is None else gradient
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9, msg=name)
    bias = parameters["conv_out.bias"].grad
    assert bool(bias[:3].all()) and not bool(bias[3:].any())


@pytest.mark.parametrize("lora", ["0", "2"])
def test_the_commands_tune_and_audit(folder, tmp_path, capsys, monkeypatch, lora):
    monkeypatch.setitem(sys.modules, "strangers_classifier", sys.modules[__name__])
    pd.DataFrame({"logit": [-2.0, -1.0, 1.0, 2.0]}).to_csv(tmp_path / "scores.csv", index=False)
    few = {"images_per_prompt": 2, "cache_size": 2, "cache_block": 2, "sampling_steps": 2}
    monkeypatch.setattr("fairlib.commands.FEW", few | {"replay_steps": 1})
    out, shares = tmp_path / "tuned", ["--shares", "F=0.458", "M=0.542"]
    given = ["--classifier", "strangers_classifier:bright", *shares, "--image-size", "16"]
    command = ["tune", str(folder), "brain", *given, "--scores", str(tmp_path / "scores.csv")]
    assert main([*command, "--steps", "2", "--lora", lora, "--out", str(out)]) == 0
    assert "step 2 of 2: F " in capsys.readouterr().out
    before, after = read_tensors(folder / UNET), read_tensors(out / UNET)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    attention = "down_blocks.1.attentions.0.add_k_proj.weight"
    assert attention in moved and before.keys() == after.keys()
    drawn = DiffusionPipeline.from_pretrained(out)
    assert drawn.scheduler.config.variance_type == "fixed_small"
    assert drawn.scheduler.config.thresholding
    images = drawn("brain", num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, 3, 16, 16) and bool(images.isfinite().all())
    place = tmp_path / "audit"
    assert main(["audit", str(out), "brain", "--count", "3", "--steps", "2", *given, "--out", str(place)]) == 0  # fmt: skip
    assert json.loads((place / "audit.json").read_text())["shares"][0]["n"] == 3


# ---- stage one


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of five colour images with captions."""
    place, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(5):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"axial brain {number}\n")
    return place


def run(folder, images, out, stop=None, **changes):
    """The losses of a run, which is left after `stop` steps."""
    losses, settings = [], StageOneSettings(**SMALL | changes)
    for done in stage_one(folder, images, "captions", out, settings, prompts=["brain"]):
        losses.append(done.loss)
        if len(losses) == stop:
            break
    return losses


def content(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_the_first_loss_is_that_of_the_noise_of_the_pipelines_own_schedule(
    folder, generator, images, tmp_path
):
    loss = run(folder, images, tmp_path / "out", stop=1, prompt_dropout=0.0)[0]
    rows, rng = batch_indices(0, 0, 5, 2), torch_rng(0, Stream.FINETUNING, 0)
    clean = read_captions(images, size=16).load(rows.tolist())
    noise = torch.randn(clean.shape, generator=rng)
    time = ((torch.arange(2) + torch.rand(2, generator=rng)) / 2 * 1000).long()
    time = time[torch.randperm(2, generator=rng)]
    noisy = DDPMScheduler(**SCHEDULE).add_noise(clean, noise, time)
    words = generator.encode_prompts([f"axial brain {row}" for row in rows.tolist()])
    with torch.no_grad():
        predicted = generator.denoiser(noisy, time, words).sample
    assert predicted.shape[1] == 6
    assert loss == pytest.approx(float(F.mse_loss(predicted[:, :3], noise)), rel=2e-3)


@pytest.mark.parametrize("lora", [0, 2])
def test_a_run_goes_on_to_the_same_bits_and_diffusers_reads_it(folder, images, tmp_path, lora):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(folder, images, whole, lora=lora)
    assert run(folder, images, resumed, 1, lora=lora)
    assert len(run(folder, images, resumed, lora=lora)) == 1
    assert content(whole) == content(resumed)
    stored = read_tensors(whole / "latents.safetensors")["latents"].float()
    wanted = read_captions(images, size=16).load()
    assert float((stored - wanted).abs().max()) < 1e-3
    drawn = DiffusionPipeline.from_pretrained(whole / "pipeline")
    before, after = (Generator.load(place) for place in (folder, whole / "pipeline"))
    assert torch.equal(after.mean_latent, stored.mean(0))
    same = torch.equal(before.denoiser.conv_in.weight, after.denoiser.conv_in.weight)
    assert same == bool(lora)
    if lora:
        theirs = DiffusionPipeline.from_pretrained(folder)
        theirs.load_lora_weights(str(whole))
        inputs = (torch.randn(1, 3, 16, 16), 500, after.encode_prompts(["brain"]))
        with torch.no_grad():
            found, merged = theirs.unet(*inputs).sample, drawn.unet(*inputs).sample
            assert not torch.allclose(found, before.denoiser(*inputs).sample, atol=1e-4)
        torch.testing.assert_close(found, merged, rtol=1e-4, atol=1e-4)
    card = (whole / "README.md").read_text()
    assert "every other part is that of the base" in card
