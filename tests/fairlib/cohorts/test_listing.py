"""Listing a release: what is there, once, and what is not."""

import pytest

from fairlib import DataError
from fairlib.cohorts.listing import by_name, first_of, folders, listed, missing, only, tracked


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
