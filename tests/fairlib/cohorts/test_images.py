"""Image files as squares of one size: padded or cut, never stretched."""

import numpy as np
import pytest
from PIL import Image

from fairlib import DataError
from fairlib.cohorts.images import read_colour, read_grey


def picture(path, width=12, height=8, value=200):
    Image.new("L", (width, height), value).save(path, quality=95)


def test_pictures_are_padded_to_a_square_not_stretched(tmp_path):
    picture(tmp_path / "wide.jpg", 40, 20, 255)
    image = read_grey(tmp_path / "wide.jpg", 20)
    assert image.dtype == np.float32 and image.shape == (20, 20)
    assert (image[:4] == -1).all() and (image[-4:] == -1).all() and (image[6:14] > 0.98).all()


def test_colour_becomes_grey_in_range(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(
        tmp_path / "c.jpg"
    )
    image = read_grey(tmp_path / "c.jpg", 30)
    assert image.shape == (30, 30) and -1 <= image.min() < image.max() <= 1


def test_a_picture_too_large_is_refused(tmp_path, monkeypatch):
    picture(tmp_path / "large.jpg", 100, 100)
    monkeypatch.setattr("fairlib.cohorts.images.MAX_PIXELS", 5000)
    with pytest.raises(DataError, match="100 x 100 pixels"):
        read_grey(tmp_path / "large.jpg", 16)


def test_the_middle_square_is_read(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:30, 0], wide[:, 30:40, 2], wide[:, :20, 1] = 255, 255, 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    image = read_colour(tmp_path / "wide.png", 20)
    assert (
        (image[0, :, :10] == 1).all() and (image[2, :, 10:] == 1).all() and (image[1] == -1).all()
    )
