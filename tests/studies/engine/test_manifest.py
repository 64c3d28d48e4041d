"""Manifests: whatever byte changes, and whatever file goes missing, is noticed and named."""

import hashlib
import json

import pytest

from fairlib import WeightsError
from fairlib.doctor import versions
from fairlib.io import hashes, read_manifest
from studies.engine.manifest import content_digest, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w.bin").write_bytes(bytes(range(256)))
    (tmp_path / "note.txt").write_text("hello")
    write_manifest(tmp_path, {"seed": 7, "steps": 3}, seconds=1.234)
    return tmp_path


def test_hashes_are_those_of_hashlib(folder):
    assert hashes(folder) == {
        "note.txt": hashlib.sha256(b"hello").hexdigest(),
        "unet/w.bin": hashlib.sha256(bytes(range(256))).hexdigest(),
    }


def test_manifest_tells_where_a_number_is_from(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (
        manifest["seed"] == 7
        and manifest["parameters"]["steps"] == 3
        and manifest["seconds"] == 1.23
    )
    assert manifest["packages"]["torch"] == versions()["torch"]
    assert {"commit", "device", "format"} <= set(manifest)


def test_untouched_folder_is_accepted(folder):
    assert read_manifest(folder)["files"] == hashes(folder)


@pytest.mark.parametrize("position", [0, 100, 255])
def test_one_flipped_bit_is_found(folder, position):
    data = bytearray((folder / "unet" / "w.bin").read_bytes())
    data[position] ^= 1
    (folder / "unet" / "w.bin").write_bytes(data)
    with pytest.raises(WeightsError, match=r"w\.bin: sha256 .* restore it"):
        read_manifest(folder)
    read_manifest(folder, verify=False)  # cheap look: presence only


def test_missing_file_is_named_even_without_verifying(folder):
    (folder / "note.txt").unlink()
    with pytest.raises(WeightsError, match=r"note\.txt: .* missing"):
        read_manifest(folder, verify=False)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', '{"seed": 1}'])
def test_broken_manifest(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match="not a readable manifest"):
        read_manifest(folder)


def test_no_manifest(tmp_path):
    with pytest.raises(WeightsError, match=r"no manifest\.json"):
        read_manifest(tmp_path)


def test_content_digest_follows_content_alone(folder, tmp_path):
    before = content_digest(folder)
    write_manifest(folder, {"seed": 8}, seconds=99.0)
    assert content_digest(folder) == before
    (folder / "note.txt").write_text("hellO")
    write_manifest(folder, {"seed": 8}, seconds=99.0)
    assert content_digest(folder) != before


def test_versions_leave_out_what_is_not_installed(monkeypatch):
    monkeypatch.setattr("fairlib.doctor.PACKAGES", ("numpy", "no-such-package-here"))
    assert set(versions()) == {"python", "numpy"}
