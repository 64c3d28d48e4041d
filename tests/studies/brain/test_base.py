"""The recipe of the base weights, rehearsed in miniature."""

import shutil
from dataclasses import replace

import pytest
import torch

from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json, read_tensors
from fairlib.models.autoencoder import encode
from fairlib.models.generator import Generator
from studies.brain import base
from studies.fundus import base as fundus_base
from studies.heart import base as heart_base

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
        latents = generator.predict_noise(
            generator.noise(0, [0]), 999, generator.encode_prompts(["axial t1"])
        )
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
    # as it was, before rounding to fp16
    autoencoder.load_state_dict(read_tensors(work / "autoencoder-1.safetensors"))
    assert len(latents) == 2 * len(images)
    torch.testing.assert_close(
        latents[-1:], encode(autoencoder, images[-1:].flip(-1)), atol=1e-4, rtol=1e-4
    )


def test_the_text_encoder_and_latents_are_frozen_things(made):
    generator = Generator.load(made[1])
    pipeline = generator.pipeline
    assert not any(
        p.requires_grad for part in (pipeline.text_encoder, pipeline.vae) for p in part.parameters()
    )
    assert pipeline.vae.config.scaling_factor == 1.0


def test_clip_that_is_there_keeps_its_manifest(made, tmp_path):
    place = made[0]
    assert (
        read_json(place / "weights" / "clip" / "manifest.json")["parameters"]["clip"]["steps"] == 2
    )
    shutil.copytree(place / "weights" / "clip", tmp_path / "clip")
    before = (tmp_path / "clip" / "manifest.json").read_bytes()
    base.main(tmp_path, place / "work", base.TINY, [].append)
    assert (tmp_path / "clip" / "manifest.json").read_bytes() == before, "it was not trained again"
    assert (tmp_path / "brain" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("recipe", "drawn", "changed"),
    [
        (base, "slices", {"initial_seed": 1}),
        (heart_base, "hearts", {"balance": 0.5}),
        (fundus_base, "fundi", {"initial_seed": 1}),
    ],
)
def test_work_of_other_settings_is_not_taken_up(recipe, drawn, changed, tmp_path, monkeypatch):
    def stop(*_):
        raise InterruptedError

    monkeypatch.setattr(recipe, drawn, stop)
    for _ in range(2):  # at first, and taken up again
        with pytest.raises(InterruptedError):
            recipe.main(tmp_path / "weights", tmp_path / "work", recipe.TINY, print)
    with pytest.raises(SettingsError, match=r"work: holds work of other settings; choose another"):
        recipe.main(tmp_path / "weights", tmp_path / "work", replace(recipe.TINY, **changed), print)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "denoiser-state.safetensors").write_bytes(b"")
    with pytest.raises(SettingsError, match="old: holds work"):
        recipe.main(tmp_path / "weights", tmp_path / "old", recipe.TINY, print)


def test_latents_of_other_people_are_refused(tmp_path):
    with pytest.raises(DataError, match="3 latents and 2 captions"):
        base.noise_phase(
            tmp_path, None, None, torch.zeros(3, 4, 16, 16), ["one", "two"], base.TINY, print
        )
