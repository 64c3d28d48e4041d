"""Files: the old one or the new one, never a part; tensors that are what they were."""

import hashlib
import json
import os
import stat

import numpy as np
import pytest
import torch

from fairlib import WeightsError
from fairlib import io as files
from fairlib.io import (
    atomic_folder,
    read_json,
    read_tensors,
    sha256,
    to_bytes,
    to_images,
    write_bytes,
    write_json,
    write_tensors,
)


def left_over(folder):
    return sorted(path.name for path in folder.rglob("*") if path.name.startswith("."))


def test_json_comes_back_and_is_sorted(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"x": "é"}}
    path = write_json(tmp_path / "deep" / "er" / "v.json", value)
    assert read_json(path) == value and list(json.loads(path.read_text())) == ["a", "b"]
    assert path.read_text().endswith("\n") and stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path, bad):
    path = write_json(tmp_path / "v.json", {"old": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"new": bad})
    assert read_json(path) == {"old": 1} and not left_over(tmp_path)


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_write_that_dies_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = write_bytes(tmp_path / "v", b"old")

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, step, die)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and not left_over(tmp_path)


def test_nobody_sees_half_a_file(tmp_path, monkeypatch):
    """Until the very moment of renaming the old content stands; then the new one is complete."""
    path, seen = write_bytes(tmp_path / "v", b"old"), []
    replace = os.replace
    monkeypatch.setattr(
        files.os, "replace", lambda a, b: seen.append(path.read_bytes()) or replace(a, b)
    )
    write_bytes(path, b"new" * 10_000)
    assert seen == [b"old"] and path.read_bytes() == b"new" * 10_000


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert write_json("~/v.json", [1]) == tmp_path / "v.json" and read_json("~/v.json") == [1]
    write_tensors("~/t.safetensors", {"a": torch.ones(1)})
    assert read_tensors("~/t.safetensors")["a"].item() == 1
    with atomic_folder("~/out") as folder:
        (folder / "x").write_text("")
    assert (tmp_path / "out" / "x").is_file()


def test_tensors_come_back_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.b": torch.randn(3, 4, generator=generator).T,  # not contiguous
        "half": torch.randn(5, generator=generator).half(),
        "count": torch.arange(3),
        "one": torch.tensor(True),
    }
    back = read_tensors(write_tensors(tmp_path / "t.safetensors", tensors, {"note": "x"}))
    assert set(back) == set(tensors) and all(
        torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in tensors.items()
    )


def test_other_libraries_read_the_tensors(tmp_path):
    from safetensors.numpy import load_file

    write_tensors(tmp_path / "t.safetensors", {"x": torch.ones(2, requires_grad=True)})
    assert np.array_equal(load_file(tmp_path / "t.safetensors")["x"], np.ones(2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    path = write_tensors(
        tmp_path / "w.safetensors", {"good": torch.ones(2), "bad": torch.tensor([1.0, value])}
    )
    with pytest.raises(WeightsError, match=r"w\.safetensors.*'bad'"):
        read_tensors(path)


def test_a_broken_safetensors_file_is_named(tmp_path):
    path = write_tensors(tmp_path / "w.safetensors", {"x": torch.ones(20)})
    whole = path.read_bytes()
    for broken in (whole[:-4], whole[:6], b"", b"\xff" * 50):
        path.write_bytes(broken)
        with pytest.raises(WeightsError, match=r"w\.safetensors"):
            read_tensors(path)


def test_sha256_is_hashlibs(tmp_path):
    data = os.urandom(3 << 20)
    assert sha256(write_bytes(tmp_path / "d", data)) == hashlib.sha256(data).hexdigest()


def test_a_folder_appears_whole_and_replaces_the_old(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("x")
    with atomic_folder(target) as folder:
        (folder / "new").write_text("y")
        assert (target / "old").exists() and not (target / "new").exists()
    assert [path.name for path in target.iterdir()] == ["new"] and not left_over(tmp_path)


def test_a_folder_whose_making_fails_never_appears(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "part").write_text("x")
        raise RuntimeError
    assert not target.exists() and not left_over(tmp_path)


def test_every_byte_comes_back_and_images_are_clipped():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    images = to_images(values)
    assert images.dtype == torch.float32 and (images.min(), images.max()) == (-1, 1)
    assert torch.equal(to_bytes(images), values)
    outside = to_bytes(torch.tensor([-3.0, 0.0, 1.2]))
    assert outside.dtype == torch.uint8 and outside.tolist() == [0, 128, 255]
    images = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert (to_images(to_bytes(images)) - images).abs().max() <= 0.5 / 127.5 + 1e-6


@pytest.mark.parametrize("count", [8, 24, 11])
def test_a_sheet_gives_its_images_back(tmp_path, count):
    rng = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 1, 16, 16), generator=rng, dtype=torch.uint8)
    files.write_sheet(tmp_path / "a" / "sheet.png", images)
    back = files.read_sheet(tmp_path / "a" / "sheet.png")
    assert torch.equal(back[:count], images) and not back[count:].any()
    assert len(back) == -(-count // 8) * 8
