import shutil

import pytest
import torch
from torch import nn

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.models import clip as cl
from fairlib.models import controlnet as co
from fairlib.models import generator as gen
from fairlib.models.autoencoder import build_autoencoder, encode
from fairlib.models.solvers import ddim
from studies.engine.stage import write_manifest

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 1},
}
PROMPTS = [
    "Female, age in 60s, obese BMI, healthy",
    "Male, age in 70s, normal BMI, heart failure",
    "Male, age in 50s, normal BMI, healthy",
]


def controls(count, seed=0):
    labels = torch.randint(0, 4, (count, 3, 64, 64), generator=torch.Generator().manual_seed(seed))
    return labels.float() / 3


def make_parts(place):
    cl.write_vocabulary(place / "words", cl.learn_merges(PROMPTS, count=20))
    torch.manual_seed(0)
    encoder = cl.text_encoder_of(cl.build_clip(place / "words", CONFIG))
    denoiser = gen.build_denoiser(channels=(16, 32), text_width=32)
    autoencoder = build_autoencoder((8, 8, 8), image_channels=3, size=64)
    return encoder, cl.pipeline_tokenizer(place / "words"), autoencoder, denoiser


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A pipeline whose ControlNet has taken no step."""
    parts = make_parts(tmp_path_factory.mktemp("untrained"))
    return co.ControlledGenerator(co.attach(gen.assemble(*parts), co.build_controlnet(parts[-1])))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved pipeline whose ControlNet has something to say: its zero convolutions are zero no
    longer.
    """
    place = tmp_path_factory.mktemp("weights")
    parts = make_parts(place)
    controlnet = co.build_controlnet(parts[-1])
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in controlnet.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=chance) * 0.2)
    pipeline = co.attach(gen.assemble(*parts), controlnet)
    gen.save_pipeline(place / "heart", pipeline, torch.full((4, 16, 16), 0.5))
    assert pipeline.unet.dtype == pipeline.controlnet.dtype == torch.float32, (
        "the pipeline itself was halved"
    )
    write_manifest(place / "heart", {}, 0.0)
    return place / "heart"


@pytest.fixture(scope="module")
def generator(folder):
    return co.ControlledGenerator.load(folder)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_controlnet_starts_by_adding_nothing(untrained, guidance):
    latents, embeds = untrained.noise(0, [0, 1, 2]), untrained.encode_prompts(PROMPTS)
    with torch.no_grad():
        base = gen.Generator.predict_noise(untrained, latents, 400, embeds, guidance)
        assert torch.equal(
            untrained.predict_noise(latents, 400, embeds, guidance, controls(3)), base
        )


def test_the_controlnet_starts_as_the_denoisers_encoder(untrained):
    ours, theirs = untrained.controlnet.state_dict(), untrained.denoiser.state_dict()
    shared = [
        name
        for name in theirs
        if name.startswith(("conv_in.", "time_embedding.", "down_blocks.", "mid_block."))
    ]
    assert len(shared) > 20 and all(torch.equal(ours[name], theirs[name]) for name in shared)
    blank = [
        name
        for name, value in ours.items()
        if name.startswith(("controlnet_down", "controlnet_mid")) and not value.any()
    ]
    assert len(blank) == 2 + 2 * len(untrained.controlnet.controlnet_down_blocks)
    with torch.no_grad():
        assert untrained.controlnet.controlnet_cond_embedding(controls(1)).shape == (1, 16, 16, 16)


def test_strength_is_a_dial_from_the_base(generator):
    latents, embeds, control = (
        generator.noise(0, [0, 1, 2]),
        generator.encode_prompts(PROMPTS),
        controls(3),
    )
    with torch.no_grad():
        base = gen.Generator.predict_noise(generator, latents, 400, embeds, 2.0)
        assert torch.equal(
            generator.predict_noise(latents, 400, embeds, 2.0, control, strength=0.0), base
        )
        assert torch.equal(generator.predict_noise(latents, 400, embeds, 2.0), base)
        weak, full = (
            generator.predict_noise(latents, 400, embeds, 2.0, control, s) - base
            for s in (1e-3, 1.0)
        )
    assert 0 < weak.norm() < 0.05 * full.norm()


def test_a_batch_is_each_of_its_images(generator):
    latents, embeds, control = (
        generator.noise(0, [0, 1, 2]),
        generator.encode_prompts(PROMPTS),
        controls(3),
    )
    with torch.no_grad():
        whole = generator.predict_noise(latents, 400, embeds, 4.0, control)
        each = torch.cat(
            [
                generator.predict_noise(*part)
                for part in zip(
                    latents.split(1),
                    [400] * 3,
                    embeds.split(1),
                    [4.0] * 3,
                    control.split(1),
                    strict=True,
                )
            ]
        )
    assert torch.allclose(whole, each, atol=1e-5)
    assert not torch.allclose(
        whole, generator.predict_noise(latents, 400, embeds, 4.0, control.flip(0)), atol=1e-2
    )


def test_guidance_is_the_line_between_both_predictions(generator):
    latents, control = generator.noise(1, [0, 1, 2]), controls(3)
    with torch.no_grad():
        plain = generator.predict_noise(
            latents, 400, generator.encode_prompts(PROMPTS), 1.0, control
        )
        blank = generator.predict_noise(
            latents, 400, generator.encode_prompts([""] * 3), 1.0, control
        )
        guided = generator.predict_noise(
            latents, 400, generator.encode_prompts(PROMPTS), 4.0, control
        )
    assert torch.allclose(guided, blank + 4 * (plain - blank), atol=1e-4)


def test_diffusers_draws_the_same_images_from_the_saved_folder(generator, folder):
    """`DiffusionPipeline.from_pretrained`, its own sampling loop, and ours: DDIM down to noise
    level zero.
    """
    from diffusers import DDIMScheduler, DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True).to(torch.float32)
    assert type(pipeline).__name__ == "StableDiffusionControlNetPipeline"
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    noise, control = generator.noise(0, [0, 1]), controls(2)
    theirs = pipeline(
        prompt=PROMPTS[:2],
        image=control,
        latents=noise.clone(),
        num_inference_steps=5,
        guidance_scale=4.0,
        output_type="pt",
        return_dict=False,
    )[0]
    ours = generator.sample(PROMPTS[:2], noise=noise, control=control, steps=5, solver=ddim)
    assert ours.shape == (2, 3, 64, 64) and ours.std() > 0.01
    assert torch.allclose((ours + 1) / 2, theirs, atol=1e-4)


def test_three_channels_stay_three_channels(generator):
    with torch.no_grad():
        images = generator.decode(generator.noise(0, [0]))
        assert images.shape == (1, 3, 64, 64) and not torch.allclose(images[:, 0], images[:, 1])
        assert encode(generator.pipeline.vae, images).shape == (1, 4, 16, 16)


def test_noise_carries_the_mean_latent(generator):
    last = float(gen.alphas_cumprod()[-1])
    bare = generator.noise(0, [0]) - last**0.5 * 0.5
    generator.mean_latent, kept = None, generator.mean_latent
    assert torch.allclose(bare, (1 - last) ** 0.5 * generator.noise(0, [0]), atol=1e-5)
    generator.mean_latent = kept


def test_a_larger_pipeline_draws_onto_the_masks_grid(generator):
    """What a Stable Diffusion of 512 pixels does with masks of 64: labels do not mix, images are
    averaged down.
    """
    small = (
        torch.randint(0, 4, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float() / 3
    )
    fitted = generator.fit_control(small, 1)
    assert torch.equal(fitted, small.repeat_interleave(2, 2).repeat_interleave(2, 3))
    noise = generator.noise(0, [0])
    large, down = (
        generator.sample(PROMPTS[:1], noise=noise, control=control, steps=2)
        for control in (fitted, small)
    )
    assert torch.allclose(down, nn.functional.avg_pool2d(large, 2), atol=1e-6)


def test_a_plain_pipeline_takes_a_controlnet_of_its_own_folder(generator, folder, tmp_path):
    from diffusers import StableDiffusionPipeline

    p = generator.pipeline
    StableDiffusionPipeline(
        vae=p.vae,
        text_encoder=p.text_encoder,
        tokenizer=p.tokenizer,
        unet=p.unet,
        scheduler=p.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path / "plain")
    both = co.ControlledGenerator.load(tmp_path / "plain", controlnet=folder / "controlnet")
    latents, embeds = generator.noise(0, [0]), generator.encode_prompts(PROMPTS[:1])
    with torch.no_grad():
        wanted = generator.predict_noise(latents, 10, embeds, 2.0, controls(1))
        assert torch.allclose(
            both.predict_noise(latents, 10, embeds, 2.0, controls(1)), wanted, atol=1e-5
        )
    with pytest.raises(WeightsError, match="no ControlNet; name one"):
        co.ControlledGenerator.load(tmp_path / "plain")


def test_folders_that_are_not_it_are_named(folder, tmp_path):
    with pytest.raises(WeightsError, match=r"no pipeline here .*model_index\.json"):
        co.ControlledGenerator.load(tmp_path)
    with pytest.raises(WeightsError, match="nobody/nothing: no pipeline here"):
        co.ControlledGenerator.load("nobody/nothing")
    shutil.copytree(folder, tmp_path / "heart")
    weights = next((tmp_path / "heart" / "controlnet").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match="sha256"):
        co.ControlledGenerator.load(tmp_path / "heart")


def test_control_images_that_cannot_be_right_are_refused(generator):
    latents, embeds = generator.noise(0, [0]), generator.encode_prompts(PROMPTS[:1])
    with pytest.raises(DataError, match="from 0 to 3; expected label / 3"):
        generator.predict_noise(latents, 10, embeds, 1.0, controls(1) * 3)
    with pytest.raises(DataError, match=r"expected \[1, 3, H, W\]"):
        generator.predict_noise(latents, 10, embeds, 1.0, controls(2))
    with pytest.raises(SettingsError, match="1 prompts, but rows of .*'control': 2"):
        generator.sample(PROMPTS[:1], noise=latents, control=controls(2))
