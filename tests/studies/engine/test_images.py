"""What studies have of images: files, latents, and classifiers that are fitted on them."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from fairlib.models.autoencoder import build_autoencoder
from fairlib.models.classifier import ClassifierSettings, build_classifier, fit_classifier
from studies.engine.images import Images, encode, fit_heads, load_images, save_images
from studies.engine.stage import Progress

BYTES = torch.arange(4 * 64, dtype=torch.uint8).reshape(4, 1, 8, 8)


def test_images_and_words_are_read_as_they_were_written(tmp_path):
    table = pd.DataFrame({"subject": ["a", "NA", "none", "d"], "age": [1.5, 2.0, 3.25, 4.0]})
    save_images(tmp_path, BYTES, table)
    found = load_images(tmp_path)
    assert torch.equal(found.stored, BYTES) and len(found) == 4
    pd.testing.assert_frame_equal(found.table, table)
    assert (found.images.min(), found.images.max()) == (-1, 1)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (3, 3), (9, 4)])
def test_first_gives_at_most_what_there_is(count, expected):
    found = Images(BYTES, pd.DataFrame({"row": range(4)})).first(count)
    assert len(found) == len(found.stored) == expected
    assert found.table["row"].tolist() == list(range(expected))


def test_latents_are_scaled_means_on_the_grid_of_the_pipeline():
    torch.manual_seed(0)
    vae = build_autoencoder((8, 8, 8, 8))
    vae.register_to_config(scaling_factor=0.5)
    pipeline = SimpleNamespace(vae=vae, vae_scale_factor=8)
    generator = SimpleNamespace(pipeline=pipeline, latent_shape=(4, 4, 4), device="cpu")
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = vae.encode(images.expand(-1, vae.config.in_channels, -1, -1)).latent_dist.mean
    assert torch.equal(encode(generator, images), expected * 0.5)
    coarse = encode(generator, images[..., ::2, ::2])
    assert coarse.shape == (2, 4, 4, 4) and not coarse.requires_grad


def test_fitted_heads_are_those_of_the_loop(monkeypatch):
    monkeypatch.setenv("FAIRLIB_DEVICE", "cpu")
    rng = torch.Generator().manual_seed(1)
    images = torch.rand(12, 1, 64, 64, generator=rng) * 2 - 1
    truth, heads = (torch.arange(12) % 2).float(), {"female": "binary"}
    settings = ClassifierSettings(steps=3, batch_size=4, seed=5)
    by_hand = build_classifier(heads, settings.architecture, settings.seed)
    for _ in fit_classifier(by_hand, images, truth, settings):
        pass
    found = fit_heads(Progress(), heads, images, truth, settings, "a test")
    for name, value in by_hand.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
