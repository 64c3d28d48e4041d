"""The recipe of the base weights, rehearsed in miniature."""

import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch

from fairlib.errors import DataError
from fairlib.io import read_json
from fairlib.models.autoencoder import build_autoencoder, encode
from fairlib.models.generator import Generator
from fairlib.models.training import FitSettings
from studies import bases
from studies.brain.phantom import RadiologySettings
from studies.engine import recipe
from studies.engine.recipe import PixelPhase
from studies.engine.stage import Artifact

pytestmark = pytest.mark.slow

TINY = bases.BrainBase(  # a rehearsal of every phase in a minute
    radiology=RadiologySettings(slices=24, validation=0),
    clip=FitSettings(steps=2, batch_size=8, learning_rate=1e-3),
    pixels=(
        PixelPhase(64, False, FitSettings(2, 2, 1e-3)),
        PixelPhase(128, True, FitSettings(1, 2, 1e-3)),
    ),
    noise=FitSettings(steps=2, batch_size=4, learning_rate=1e-3, ema_decay=0.9),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, runs):
    place = tmp_path_factory.mktemp("base")
    return place, bases.brain(place / "weights", TINY)


def test_the_recipe_makes_a_pipeline_that_draws(made):
    generator = Generator.load(made[1])
    assert generator.latent_shape == (4, 16, 16)
    with torch.no_grad():
        latents = generator.predict_noise(
            generator.noise(0, [0]), 999, generator.encode_prompts(["axial t1"])
        )
        assert generator.decode(latents).shape == (1, 1, 128, 128)


def test_the_weights_stay_within_sixteen_megabytes(made):
    size = sum(file.stat().st_size for file in made[1].rglob("*") if file.is_file())
    assert size <= 16e6


def test_made_again_nothing_is_fitted_and_the_weights_are_the_same(made, tmp_path, monkeypatch):
    place, folder = made
    monkeypatch.setattr(recipe, "fit", None)
    again = bases.brain(tmp_path / "weights", TINY)
    for file in folder.rglob("*.safetensors"):
        assert (again / file.relative_to(folder)).read_bytes() == file.read_bytes()


def test_a_config_does_not_tell_where_it_was_made(made):
    for file in made[1].rglob("config.json"):
        assert "_name_or_path" not in read_json(file)


def test_the_denoiser_sees_every_slice_and_its_mirror(made):
    drawn = recipe.training_set(bases.draw_slices, TINY.radiology)
    model = recipe.autoencoder(drawn, TINY.pixels, build_autoencoder, 0)
    latents = recipe.latents(drawn, model, mirrors=True).load()
    images = drawn.load().tensors["images"]
    assert len(latents) == 2 * len(images)
    torch.testing.assert_close(
        latents[-1:], encode(model.load(), images[-1:].flip(-1)), atol=1e-4, rtol=1e-4
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
    record = read_json(place / "weights" / "clip" / "manifest.json")
    assert record["parameters"]["clip"]["steps"] == 2
    shutil.copytree(place / "weights" / "clip", tmp_path / "clip")
    before = (tmp_path / "clip" / "manifest.json").read_bytes()
    bases.brain(tmp_path, TINY)
    assert (tmp_path / "clip" / "manifest.json").read_bytes() == before, "it was not trained again"
    assert (tmp_path / "brain" / "manifest.json").is_file()


def test_latents_of_other_images_are_refused(made):
    drawn = recipe.training_set(bases.draw_slices, TINY.radiology)
    model = recipe.autoencoder(drawn, TINY.pixels, build_autoencoder, 0)
    words = Artifact.weights(made[0] / "weights" / "clip", bases.load_words)
    with pytest.raises(DataError, match="24 latents and 2 captions"):
        recipe.denoiser(
            words, recipe.latents(drawn, model), pd.Series(["one", "two"]), TINY.noise, 0
        )


def test_a_fit_that_is_killed_ends_with_the_same_weights(made, monkeypatch, runs):
    """The state of the last save is taken up again, to the bit."""
    drawn = recipe.training_set(bases.draw_slices, TINY.radiology)
    phase = replace(TINY.pixels[0], fit=FitSettings(4, 2, 1e-3, ema_decay=0.9))
    whole = recipe.pixel_phase(drawn, None, phase, False, build_autoencoder, 5)
    original, saved = recipe.write_tensors, []

    def killed(path, tensors):
        original(path, tensors)
        saved.append(path)
        if len(saved) == 2:
            raise InterruptedError

    monkeypatch.setattr(recipe, "SAVE", 1)
    monkeypatch.setattr(recipe, "write_tensors", killed)
    arguments = (drawn, None, phase, False, another_autoencoder, 5)
    with pytest.raises(InterruptedError):
        recipe.pixel_phase(*arguments)
    monkeypatch.setattr(recipe, "write_tensors", original)
    resumed = recipe.pixel_phase(*arguments)
    for name, value in whole.load().state_dict().items():
        assert torch.equal(value, resumed.load().state_dict()[name])


def another_autoencoder():
    """The same one by another name, so that its stage is not found."""
    return build_autoencoder()


def test_a_base_beside_the_first_shares_words_and_autoencoder_alone(made):
    place, folder = made
    other = bases.beside("brain-realistic", place / "weights", TINY)
    first, second = Generator.load(folder), Generator.load(other)
    for part in ("vae", "text_encoder"):
        old, new = (getattr(g.pipeline, part).state_dict() for g in (first, second))
        assert all(torch.equal(old[name], new[name]) for name in old)
    old, new = first.denoiser.state_dict(), second.denoiser.state_dict()
    assert not any(
        torch.equal(old[name], new[name]) for name in old if "weight" in name and "norm" not in name
    )
    drawn = read_json(other / "manifest.json")["parameters"]["radiology"]
    assert (drawn["effect"], drawn["slices"]) == ("realistic", 24)
