"""The files of a release: what is there, once, what is not, and images as squares, padded or cut."""

import numpy as np
import pytest
from PIL import Image

from fairlib import DataError
from fairlib.cohorts.listing import (
    broken_image,
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


@pytest.mark.parametrize(
    ("there", "wanted", "near"),
    [
        ("Scan.NII.gz", "scan.nii.gz", "Scan.NII.gz"),  # another case
        ("scan.nii", "scan.nii.gz", "scan.nii"),  # another ending
        ("images/x.png", "images", ""),  # it is there
        ("scan.nii.gz/a", "scan.nii.gz", "scan.nii.gz/"),  # a folder of that name
        ("release/HGG/a", "HGG", "release/HGG/"),  # deeper
        ("inner/x.jpg", "x.jpg", "inner/x.jpg"),
        (
            "org_clinical_patient_gbm.tsv",
            "*clinical_patient_gbm.txt",
            "org_clinical_patient_gbm.tsv",
        ),
        ("name_maping.csv", "name_mapping.csv", "name_maping.csv"),  # a letter
        ("subject_0001.npz", "subject_0002.npz", ""),  # another number is another one
    ],
)
def test_what_is_not_there_says_what_is(tmp_path, there, wanted, near):
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_text("")
    text = str(missing(tmp_path, "is missing", "copy it", wanted))
    if near or not (tmp_path / wanted).exists():
        found = f" (there is {near})" if near else ""
        assert text == f"{tmp_path}: is missing{found}; copy it"
    nowhere = str(missing(tmp_path / "nowhere" / "deep", "no table", "copy it", wanted))
    assert nowhere.endswith(f"deep: no table: there is no nowhere in {tmp_path}; copy it")


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


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_greys_of_more_than_8_bits_are_kept(tmp_path, bits):
    ramp = np.linspace(0, 2**bits - 1, 24).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (24, 1))).save(tmp_path / "ramp.jpg", "PNG")
    assert np.abs(read_grey(tmp_path / "ramp.jpg", 24)[0] - np.linspace(-1, 1, 24)).max() < 0.01
    assert broken_image(tmp_path / "ramp.jpg") == ""


def test_greys_without_a_white_are_refused(tmp_path):
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(
        tmp_path / "x.jpg", "TIFF"
    )
    with pytest.raises(DataError, match="greys are fractions"):
        read_grey(tmp_path / "x.jpg", 8)
    assert "greys are fractions" in broken_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_broken_pictures_are_found_without_reading_the_whole_ones(tmp_path, ending, monkeypatch):
    path = tmp_path / f"a.{ending}"
    picture(path, 40, 40)
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("fairlib.cohorts.listing.open_image", None)  # only the header is read
        assert broken_image(path) == ""
    for data, reason in (
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
        (whole[: len(whole) // 2], "cannot be decoded"),
        (bytes(500), "is zeros only"),
    ):
        path.write_bytes(data)
        assert broken_image(path).startswith(reason), data[:10]
    path.write_bytes(whole + bytes(200))  # harmless: decoded as a whole
    assert broken_image(path) == ""
