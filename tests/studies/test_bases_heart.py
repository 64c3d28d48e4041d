"""The recipe of the heart weights, rehearsed in miniature."""

import pytest
import torch

from fairlib.cohorts.cardiac import control_image
from fairlib.io import read_json
from fairlib.models import clip as cl
from fairlib.models.controlnet import ControlledGenerator, build_controlnet
from fairlib.models.generator import build_denoiser
from fairlib.models.training import FitSettings
from studies import bases
from studies.engine import recipe
from studies.engine.recipe import PixelPhase
from studies.heart.phantom import PhantomSettings

pytestmark = pytest.mark.slow
TINY = bases.HeartBase(  # a rehearsal of every phase in seconds
    hearts=PhantomSettings(subjects=24, seed=101),
    words=FitSettings(steps=2, batch_size=8, learning_rate=1e-3),
    pixels=(
        PixelPhase(32, False, FitSettings(2, 2, 1e-3)),
        PixelPhase(64, True, FitSettings(1, 2, 1e-3)),
    ),
    noise=FitSettings(steps=2, batch_size=4, learning_rate=1e-3, ema_decay=0.9),
    control=(FitSettings(steps=2, batch_size=4, learning_rate=1e-3, ema_decay=0.9),),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, runs):
    place = tmp_path_factory.mktemp("heart")
    return place, bases.heart(place / "weights", TINY)


def words_of(made):
    drawn = recipe.training_set(bases.draw_heart_pairs, TINY.hearts)
    return recipe.text_tower(
        drawn,
        bases.heart_prompts(),
        bases.HEART_CLIP,
        cl.attributes_of,
        TINY.words,
        TINY.initial_seed,
    )


def test_the_recipe_makes_a_pipeline_that_draws_under_a_mask(made):
    generator = ControlledGenerator.load(made[1])
    tensors, prompts = recipe.training_set(bases.draw_heart_pairs, TINY.hearts).load()
    images, masks = tensors["images"], tensors["masks"]
    assert images.shape == (24, 3, 64, 64) and masks.shape == (24, 2, 64, 64)
    drawn = generator.sample(prompts[:2], 0, control=control_image(masks[:2]), steps=2)
    assert drawn.shape == (2, 3, 64, 64) and drawn.isfinite().all()
    assert generator.latent_shape == (4, 16, 16) and generator.mean_latent.shape == (4, 16, 16)


def test_the_weights_stay_within_twenty_five_megabytes(made):
    assert sum(file.stat().st_size for file in made[1].rglob("*") if file.is_file()) <= 25e6
    parts = (denoiser := build_denoiser(), build_controlnet(denoiser), bases.heart_autoencoder())
    words = ControlledGenerator.load(made[1]).pipeline.text_encoder
    count = sum(p.numel() for part in (*parts, words) for p in part.parameters())
    assert 9e6 < count < 12.4e6, "two bytes each, and room for the configurations"


def test_made_again_nothing_is_fitted_and_the_weights_are_the_same(made, tmp_path, monkeypatch):
    folder = made[1]
    monkeypatch.setattr(recipe, "fit", None)
    again = bases.heart(tmp_path / "weights", TINY)
    names = [file.relative_to(folder) for file in folder.rglob("*.safetensors")]
    assert len(names) == 5
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_the_manifest_says_how_far_apart_the_words_are(made):
    manifest = read_json(made[1] / "manifest.json")
    found = manifest["attribute_distances"]
    assert (
        manifest["people"] == "synthetic" and manifest["made_by"] == "python -m studies base heart"
    )
    # 2 sexes, 8 decades, 4 classes, 2 diagnoses: 1 + 28 + 6 + 1 pairs
    assert len(found) == 36 and min(found.values()) > 0


def test_every_prompt_is_within_the_vocabulary(made):
    """Each attribute is a few whole words to the tokenizer, and no two prompts give the same
    ids.
    """
    prompts = bases.heart_prompts()
    tokens = cl.clip_tokenizer(words_of(made).folder)(prompts)
    assert len(prompts) == 128 and len(torch.unique(tokens, dim=0)) == 128
    assert (tokens != 0).sum(1).max() <= 20


def test_the_hearts_are_not_those_of_a_cohort():
    assert bases.HeartBase().hearts.seed != PhantomSettings().seed
