"""Any folder of images with captions, on a handful of tiny images."""

import numpy as np
import pytest
from PIL import Image

from fairlib import DataError
from fairlib.cohorts.captions import read_captions
from fairlib.doctor import check_data


def picture(path, value=(200, 100, 0), size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if isinstance(value, tuple) else "L", size, value).save(path)


@pytest.fixture
def texts(tmp_path):
    """Two captioned images, one of them in a folder."""
    for name, value in (("a.png", (200, 100, 0)), ("grey/b.JPG", 60)):
        picture(tmp_path / name, value)
    (tmp_path / "a.txt").write_text("A fundus\n image.\n")
    (tmp_path / "grey" / "b.txt").write_text("Axial brain.")
    return tmp_path


def table(root, text, encoding="utf-8"):
    (root / "captions.csv").write_bytes(text.encode(encoding))


def excluded(cohort):
    return dict(zip(cohort.excluded["item"], cohort.excluded["reason"], strict=True))


def test_texts_beside_images_are_read(texts):
    cohort = read_captions(texts, size=4)
    assert cohort.table["image"].tolist() == ["a.png", "grey/b.JPG"]
    assert cohort.table["subject"].tolist() == ["a.png", "grey/b.JPG"]
    assert cohort.table["caption"].tolist() == ["A fundus image.", "Axial brain."]
    colour, grey = cohort.load().numpy()
    assert colour.shape == (3, 4, 4)
    np.testing.assert_allclose(colour[:, 0, 0], np.array([200, 100, 0]) / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(grey, 60 / 127.5 - 1, atol=0.02)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_goes_before_texts(texts, encoding, delimiter):
    rows = [["Caption", "image", "subject"], ["Ménière", "a.png", "p1"], ["b", "grey/b.JPG", ""]]
    table(texts, "\r\n".join(delimiter.join(row) for row in rows), encoding)
    found = read_captions(texts).table
    assert found["caption"].tolist() == ["Ménière", "b"]
    assert found["subject"].tolist() == ["p1", "grey/b.JPG"]


def test_who_is_left_out_is_said(texts):
    for name in ("alone.png", "empty.png", "latin.png", "broken.png"):
        picture(texts / name)
    (texts / "broken.png").write_bytes((texts / "broken.png").read_bytes()[:40])
    (texts / "empty.txt").write_text(" \n")
    (texts / "latin.txt").write_bytes("Ménière".encode("cp1252"))
    (texts / "broken.txt").write_text("brain")
    (texts / "._a.png").write_bytes(b"mac")
    cohort = read_captions(texts)
    assert len(cohort) == 2
    assert excluded(cohort) == {
        "alone.png": "caption missing",
        "empty.png": "caption empty",
        "latin.png": "caption broken",
        "broken.png": "image broken",
    }
    detail = dict(zip(cohort.excluded["item"], cohort.excluded["detail"], strict=True))
    assert "save it as UTF-8" in detail["latin.png"] and "no alone.txt" in detail["alone.png"]


def test_rows_without_image_or_caption_are_left_out(texts):
    table(texts, "image,caption\na.png,brain\nnone.png,brain\ngrey/b.JPG,\n")
    cohort = read_captions(texts)
    assert cohort.table["image"].tolist() == ["a.png"]
    assert excluded(cohort) == {"none.png": "image missing", "grey/b.JPG": "caption empty"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,caption\na.png,brain\n", "has no column 'image'"),
        ("image,text\na.png,brain\n", "has no column 'caption'"),
        ("image,caption\na.png,brain\na.png,heart\n", "'a.png' stands twice"),
        ("image,caption\nb.png,brain\n", "none of the 1 images with captions can be used"),
        ("image,caption\na.png,brain,2\n", "row 2 has 3 cells"),
        ("", "is empty"),
        ("<!doctype html><html>", "a web page"),
    ],
)
def test_a_table_that_cannot_be_meant_is_one_error(texts, text, message):
    table(texts, text)
    with pytest.raises(DataError, match=message) as error:
        read_captions(texts)
    assert str(texts) in str(error.value)


def test_a_folder_without_captions_says_what_to_write(tmp_path):
    (tmp_path / "Captions.txt").write_text("")
    remedy = r"no images with captions .*there is Captions.txt.*; write captions.csv with the col"
    with pytest.raises(DataError, match=remedy):
        read_captions(tmp_path)
    with pytest.raises(DataError, match="there is no nowhere in"):
        read_captions(tmp_path / "nowhere")


def test_doctor_reads_it_too(texts):
    lines, well = check_data(texts, "captions", deep=True)
    assert well and "data (captions): 2 subjects, 2 rows" in lines
