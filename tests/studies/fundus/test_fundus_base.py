"""The recipe of the fundus weights, rehearsed in miniature."""

import pytest
import torch

from fairlib.cohorts.fundus import PROMPTED
from fairlib.io import read_json, read_tensors
from fairlib.models import clip as cl
from fairlib.models.autoencoder import encode
from fairlib.models.generator import Generator
from studies.fundus import base as fb
from studies.fundus.phantom import FundusSettings, draw_fundi

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("fundus")
    lines = []
    return place, fb.main(place / "weights", place / "work", fb.TINY, lines.append), lines


def test_the_recipe_makes_a_pipeline_that_draws(made):
    _, folder, lines = made
    generator = Generator.load(folder)
    assert generator.latent_shape == (4, 16, 16) and generator.mean_latent.shape == (4, 16, 16)
    with torch.no_grad():
        latents = generator.predict_noise(
            generator.noise(0, [0]), 999, generator.encode_prompts(fb.every_prompt()[:1])
        )
        drawn = generator.decode(latents)
    assert drawn.shape == (1, 1, 128, 128) and drawn.isfinite().all()
    assert any("noise: step 2 of 2" in line for line in lines)


def test_the_second_denoiser_has_seen_the_white_people_alone(made):
    place, folder, _ = made
    white = folder.with_name("fundus-white")
    prompts = fb.fundi(place / "work", fb.TINY.fundi)[1]
    rows = fb.white_rows(prompts)
    assert rows == [row for row, prompt in enumerate(prompts) if " White " in prompt] and 0 < len(
        rows
    ) < len(prompts)
    latents = read_tensors(place / "work" / "latents.safetensors")["latents"]
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


def test_made_again_it_goes_on_where_it_was_and_ends_the_same(made, tmp_path):
    place, folder, _ = made
    lines = []
    again = fb.main(tmp_path / "weights", place / "work", fb.TINY, lines.append)
    assert sum("going on at step" in line for line in lines) == 3  # words, noise, white
    names = [file.relative_to(folder) for file in folder.rglob("*.safetensors")]
    assert len(names) == 4 and all(
        (again / name).read_bytes() == (folder / name).read_bytes() for name in names
    )


def test_the_pictures_are_those_of_the_phantom_and_not_of_a_cohort(made):
    images, prompts = fb.fundi(made[0] / "work", fb.TINY.fundi)
    drawn, table = draw_fundi(fb.TINY.fundi, [0, 23])
    assert images.shape == (24, 1, 128, 128) and prompts[::23] == table["prompt"].tolist()
    assert ((images[[0, 23]].float() / 127.5 - 1) - drawn).abs().max() <= 0.5 / 127.5 + 1e-6
    assert fb.FundusBaseSettings().fundi.seed != FundusSettings().seed


def test_the_denoiser_sees_every_picture_as_it_is(made):
    work = made[0] / "work"
    latents, images = (
        read_tensors(work / "latents.safetensors")["latents"],
        read_tensors(work / "fundi.safetensors")["images"],
    )
    autoencoder = Generator.load(made[1]).pipeline.vae
    # as it was, before rounding to fp16
    autoencoder.load_state_dict(read_tensors(work / "autoencoder-1.safetensors"))
    assert len(latents) == len(images)
    torch.testing.assert_close(latents[-2:], encode(autoencoder, images[-2:]), atol=1e-4, rtol=1e-4)


def test_no_prompt_is_cut_and_no_two_are_the_same_to_the_tokenizer(made):
    """The last attribute is the last word: at the 32 tokens of the brain's text tower it would be
    lost.
    """
    prompts = fb.every_prompt()
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
    assert torch.equal(ids, cl.clip_tokenizer(made[0] / "work" / "words", 40)(prompts))
    lengths = [len(tokenizer(prompt).input_ids) for prompt in prompts]
    assert 32 < max(lengths) <= 40
    short = cl.clip_tokenizer(made[0] / "work" / "words")(prompts)
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
    assert min(found.values()) > 0 and any("closest are" in line for line in made[2])


def test_each_attribute_of_a_prompt_is_a_phrase_of_its_own():
    first = fb.attributes_of(fb.every_prompt()[0])
    assert len(first) == 7 and first[0] == "race Asian" and first[-1] == "refraction hyperopia"
    assert (
        len({phrase for prompt in fb.every_prompt() for phrase in fb.attributes_of(prompt)}) == 19
    )
