"""The recipe of the base weights, rehearsed in miniature."""

import pytest
import torch

from fairlib.files import read_tensors
from fairlib.models.autoencoder import encode
from fairlib.models.generator import Generator
from fairlib.runs import base

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("base")
    lines = []
    folder = base.main(place / "weights", place / "work", base.TINY, lines.append)
    return place, folder, lines


def test_the_recipe_makes_a_pipeline_that_draws(made):
    _, folder, lines = made
    generator = Generator.load(folder)
    assert generator.latent_shape == (4, 16, 16)
    with torch.no_grad():
        latents = generator.predict_noise(generator.noise(0, [0]), 999, generator.encode_prompts(["axial t1"]))
        assert generator.decode(latents).shape == (1, 1, 128, 128)
    assert any("noise: step 2 of 2" in line for line in lines)


def test_the_weights_stay_within_sixteen_megabytes(made):
    size = sum(file.stat().st_size for file in made[1].rglob("*") if file.is_file())
    assert size <= 16e6


def test_made_again_it_goes_on_where_it_was_and_ends_the_same(made, tmp_path):
    place, folder, _ = made
    lines = []
    again = base.main(tmp_path / "weights", place / "work", base.TINY, lines.append)
    assert any("going on at step 2" in line for line in lines)
    for file in folder.rglob("*.safetensors"):
        assert (again / file.relative_to(folder)).read_bytes() == file.read_bytes()


def test_the_denoiser_sees_every_slice_and_its_mirror(made):
    work = made[0] / "work"
    latents = read_tensors(work / "latents.safetensors")["latents"]
    images = read_tensors(work / "slices.safetensors")["images"]
    autoencoder = Generator.load(made[1]).pipeline.vae
    autoencoder.load_state_dict(read_tensors(work / "autoencoder-1.safetensors"))  # as it was, before rounding to fp16
    assert len(latents) == 2 * len(images)
    torch.testing.assert_close(latents[-1:], encode(autoencoder, images[-1:].flip(-1)), atol=1e-4, rtol=1e-4)


def test_the_text_encoder_and_latents_are_frozen_things(made):
    generator = Generator.load(made[1])
    pipeline = generator.pipeline
    assert not any(p.requires_grad for part in (pipeline.text_encoder, pipeline.vae) for p in part.parameters())
    assert pipeline.vae.config.scaling_factor == 1.0
