"""The files of a release: what is there, once, what is not, and images as squares, padded or cut."""

import numpy as np
import pytest
from PIL import Image

from fairlib import DataError
from fairlib.cohorts.listing import (
    by_name,
    first_of,
    folders,
    listed,
    missing,
    only,
    read_colour,
    read_grey,
    tracked,
)


@pytest.fixture
def root(tmp_path):
    for name in ("b", "a", ".hidden", "__MACOSX"):
        (tmp_path / name).mkdir()
    for name in ("b/x.jpg", "a/x.jpg", "a/y.jpg", "a/._x.jpg", "a/.DS_Store"):
        (tmp_path / name).write_text("")
    return tmp_path


def test_files_and_folders_are_sorted_without_what_macos_adds(root):
    assert [path.name for path in folders(root)] == ["a", "b"]
    assert [path.name for path in listed(root / "a", "*.jpg")] == ["x.jpg", "y.jpg"]
    assert [path.name for path in listed(root / "a")] == ["x.jpg", "y.jpg"]
    assert listed(root / "nowhere") == [] and folders(root / "a" / "x.jpg") == []


def test_a_name_in_two_parts_is_refused(root):
    assert by_name(root, {"one": listed(root / "a")})["y.jpg"] == ("one", root / "a" / "y.jpg")
    with pytest.raises(DataError, match="x.jpg lies in one and two; .* remove one of them"):
        by_name(root, {"one": listed(root / "a"), "two": listed(root / "b")})


def test_one_file_is_one_file(root):
    assert only(root / "b", "*.jpg", "put it there") == root / "b" / "x.jpg"
    with pytest.raises(DataError, match=r"none of the files match \*.png, expected one; put it"):
        only(root / "b", "*.png", "put it there")
    with pytest.raises(DataError, match=r"2 of the files match \*.jpg \(x.jpg, y.jpg\)"):
        only(root / "a", "*.jpg", "put it there")


def test_the_first_that_is_there_counts(root):
    error = missing(root, "neither c nor b is there", "give another folder")
    assert first_of([root / "c", root / "b"], error) == root / "b"
    with pytest.raises(DataError, match="neither c nor b is there; give another folder"):
        first_of([root / "c"], error)


def test_progress_follows_the_work():
    log = []
    for item in tracked("ab", lambda done, total: log.append((done, total))):
        log.append(item)
    assert log == ["a", (1, 2), "b", (2, 2)] and list(tracked("ab", None)) == ["a", "b"]


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
    monkeypatch.setattr("fairlib.cohorts.listing.MAX_PIXELS", 5000)
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
