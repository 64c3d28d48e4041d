"""The recipe of the fundus weights, rehearsed in miniature."""

import pytest
import torch

from fairlib.cohorts.fairgenmed import PROMPTED
from fairlib.io import read_json
from fairlib.models import clip as cl
from fairlib.models.autoencoder import build_autoencoder, encode
from fairlib.models.generator import Generator
from fairlib.models.training import FitSettings
from studies import bases
from studies.engine import recipe
from studies.engine.recipe import PixelPhase
from studies.fundus.phantom import PhantomSettings
from tests.studies.fundus.drawing import draw_fundi

pytestmark = pytest.mark.slow
TINY = bases.FundusBase(  # a rehearsal of every phase in seconds
    fundi=PhantomSettings(subjects=24, seed=109),
    words=FitSettings(steps=2, batch_size=8, learning_rate=1e-3),
    pixels=(
        PixelPhase(64, False, FitSettings(2, 2, 1e-3)),
        PixelPhase(128, True, FitSettings(1, 2, 1e-3)),
    ),
    noise=FitSettings(steps=2, batch_size=4, learning_rate=1e-3, ema_decay=0.9),
    white=FitSettings(steps=1, batch_size=4, learning_rate=1e-3, ema_decay=0.9),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, runs):
    place = tmp_path_factory.mktemp("fundus")
    return place, bases.fundus(place / "weights", TINY)


def parts():
    """The stages of the recipe: training set, autoencoder, latents."""
    drawn = recipe.training_set(bases.draw_fundi, TINY.fundi)
    model = recipe.autoencoder(drawn, TINY.pixels, build_autoencoder, TINY.initial_seed)
    return drawn, model, recipe.latents(drawn, model)


def test_the_recipe_makes_a_pipeline_that_draws(made):
    generator = Generator.load(made[1])
    assert generator.latent_shape == (4, 16, 16) and generator.mean_latent.shape == (4, 16, 16)
    with torch.no_grad():
        latents = generator.predict_noise(
            generator.noise(0, [0]), 999, generator.encode_prompts(bases.fundus_prompts()[:1])
        )
        drawn = generator.decode(latents)
    assert drawn.shape == (1, 1, 128, 128) and drawn.isfinite().all()


def test_the_second_denoiser_has_seen_the_white_people_alone(made):
    _, folder = made
    white = folder.with_name("fundus-white")
    drawn, _, encoded = parts()
    prompts = drawn.load().captions
    rows = bases.white_rows(prompts)
    assert rows == [row for row, prompt in enumerate(prompts) if " White " in prompt] and 0 < len(
        rows
    ) < len(prompts)
    latents = encoded.load()
    one, other = Generator.load(white), Generator.load(folder)
    torch.testing.assert_close(one.mean_latent, latents[rows].mean(0), atol=1e-3, rtol=0)
    same = [
        torch.equal(a, b)
        for a, b in zip(one.pipeline.vae.parameters(), other.pipeline.vae.parameters(), strict=True)
    ]
    assert all(same) and not torch.equal(one.denoiser.conv_in.weight, other.denoiser.conv_in.weight)
    assert read_json(white / "manifest.json")["people_seen"] == len(rows)
    assert read_json(folder / "manifest.json")["people_seen"] == len(prompts)


def test_the_weights_stay_within_fourteen_megabytes(made):
    assert sum(file.stat().st_size for file in made[1].rglob("*") if file.is_file()) <= 14e6


def test_made_again_nothing_is_fitted_and_the_weights_are_the_same(made, tmp_path, monkeypatch):
    folder = made[1]
    monkeypatch.setattr(recipe, "fit", None)
    again = bases.fundus(tmp_path / "weights", TINY)
    names = [file.relative_to(folder) for file in folder.rglob("*.safetensors")]
    assert len(names) == 4
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_the_pictures_are_those_of_the_phantom_and_not_of_a_cohort(made):
    tensors, prompts = parts()[0].load()
    images = tensors["images"]
    drawn, table = draw_fundi(TINY.fundi, [0, 23])
    assert images.shape == (24, 1, 128, 128) and prompts[::23] == table["prompt"].tolist()
    assert ((images[[0, 23]].float() / 127.5 - 1) - drawn).abs().max() <= 0.5 / 127.5 + 1e-6
    assert bases.FundusBase().fundi.seed != PhantomSettings().seed


def test_the_denoiser_sees_every_picture_as_it_is(made):
    drawn, model, encoded = parts()
    latents, images, autoencoder = encoded.load(), drawn.load().tensors["images"], model.load()
    assert len(latents) == len(images)
    torch.testing.assert_close(latents[-2:], encode(autoencoder, images[-2:]), atol=1e-4, rtol=1e-4)


def test_no_prompt_is_cut_and_no_two_are_the_same_to_the_tokenizer(made):
    """The last attribute is the last word: at the 32 tokens of the brain's text tower it would be
    lost.
    """
    prompts = bases.fundus_prompts()
    tokenizer = Generator.load(made[1]).pipeline.tokenizer
    ids = tokenizer(
        prompts,
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    assert (
        tokenizer.model_max_length == 40
        and len(prompts) == 864
        and len(torch.unique(ids, dim=0)) == 864
    )
    words = recipe.text_tower(
        parts()[0],
        prompts,
        bases.FUNDUS_CLIP,
        bases.fundus_attributes,
        TINY.words,
        TINY.initial_seed,
    ).folder
    assert torch.equal(ids, cl.clip_tokenizer(words, 40)(prompts))
    lengths = [len(tokenizer(prompt).input_ids) for prompt in prompts]
    assert 32 < max(lengths) <= 40
    short = cl.clip_tokenizer(words)(prompts)
    assert len(torch.unique(short, dim=0)) < 864


def test_the_manifest_says_how_far_apart_every_two_values_are(made):
    manifest = read_json(made[1] / "manifest.json")
    found = manifest["attribute_distances"]
    assert (
        manifest["people"] == "synthetic" and manifest["made_by"] == "python -m studies base fundus"
    )
    assert (
        len(found)
        == sum(len(values) * (len(values) - 1) // 2 for values in PROMPTED.values())
        == 18
    )
    assert min(found.values()) > 0


def test_each_attribute_of_a_prompt_is_a_phrase_of_its_own():
    first = bases.fundus_attributes(bases.fundus_prompts()[0])
    assert len(first) == 7 and first[0] == "race Asian" and first[-1] == "refraction hyperopia"
    assert (
        len(
            {
                phrase
                for prompt in bases.fundus_prompts()
                for phrase in bases.fundus_attributes(prompt)
            }
        )
        == 19
    )
