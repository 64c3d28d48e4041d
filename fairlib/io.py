"""Atomic files: JSON and safetensors, never pickle; images as bytes; and the manifest of a folder,
with the hashes of its files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlib.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
CARD = "README.md"


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` so that a reader sees the old file or the whole new one, never a part."""
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as sorted, indented JSON, atomically. NaN is refused: JSON has none."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    return write_bytes(path, (text + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read one JSON file."""
    return json.loads(Path(path).expanduser().read_text())


def write_tensors(path: str | Path, tensors: dict, metadata: dict[str, str] | None = None) -> Path:
    """Write a flat `{name: tensor}` as safetensors, atomically."""
    from safetensors.torch import save

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_bytes(path, save(ready, metadata=metadata))


def read_tensors(path: str | Path) -> dict:
    """Read a safetensors file; every floating tensor must be finite.

    Raises `WeightsError` that names the file and the tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(Path(path).expanduser().read_bytes())
    except SafetensorError as error:
        raise WeightsError(f"{path}: not readable safetensors ({error}); make it again") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WeightsError(f"{path}: tensor {name!r} holds NaN or infinity; make it again")
    return tensors


def to_bytes(images: Tensor) -> Tensor:
    """Convert images in [-1, 1], of any shape, to uint8 0 to 255: rounded, and clipped outside."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte()


def to_images(values: Tensor) -> Tensor:
    """Convert uint8 0 to 255, of any shape, to images: float32 in [-1, 1]; floats are images
    already.
    """
    return values if values.is_floating_point() else values.float() / 127.5 - 1


def write_image(path: Path, image: Tensor) -> None:
    """Write an image, float [C, H, W] in [-1, 1] of one channel or three, as PNG."""
    write_bytes(path, png_bytes(image))


def png_bytes(image: Tensor) -> bytes:
    """The PNG file of an image as of `write_image`."""
    from io import BytesIO

    from PIL import Image

    pixels = to_bytes(image).cpu().permute(1, 2, 0).numpy()
    stream = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


def write_sheet(path: Path, images: Tensor, columns: int = 8) -> None:
    """Write square images, uint8 [N, 1, S, S], as one PNG with `columns` of them a row."""
    import torch

    rows = -(-len(images) // columns)
    padded = torch.cat([images, images.new_zeros(rows * columns - len(images), *images.shape[1:])])
    tiled = padded.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)
    write_image(path, to_images(tiled))


def read_sheet(path: Path, columns: int = 8) -> Tensor:
    """The images of a sheet that `write_sheet` wrote, uint8 [N, 1, S, S]; empty places of its last
    row are black images.
    """
    import numpy as np
    import torch
    from PIL import Image

    with Image.open(path) as sheet:
        pixels = torch.from_numpy(np.array(sheet))
    side = pixels.shape[1] // columns
    tiles = pixels.unflatten(0, (-1, side)).unflatten(2, (columns, side)).permute(0, 2, 1, 3)
    return tiles.flatten(0, 1)[:, None]


# Of files that stand where another was expected: position and bytes -> what they are.
SIGNATURES = {
    (0, b"version https://git-lfs"): "a pointer of Git LFS, not the file (run `git lfs pull`)",
    (0, b"PK\x03\x04"): "a ZIP archive or an Office document",
    (0, b"\xd0\xcf\x11\xe0"): "a document of an old Office (.xls)",
    (0, b"<!doctype html"): "a web page (a failed download)",
    (0, b"<html"): "a web page (a failed download)",
    (0, b"<?xml"): "an XML text (a failed download)",
    (0, b"%pdf"): "a PDF file",
    (0, b"nrrd"): "an NRRD file",
    (0, b"\x1f\x8b"): "gzip data",
    (4, b"n+2\x00"): "a NIfTI-2 file",
    (128, b"dicm"): "a DICOM file",
    (344, b"n+1\x00"): "a plain NIfTI-1 file",
    (344, b"ni1\x00"): "the header of a pair (.hdr and .img)",
}


def what_it_is(data: bytes) -> str:
    """Say in words what the content of a file is by its first bytes, such as "a web page (a failed
    download)"; "" where that is not known.
    """
    if not data.strip(b"\0"):
        return "zeros only (an interrupted download)" if data else "empty"
    head = data[:512].lower()
    heads = (head, head.lstrip(b"\r\n\t \xef\xbb\xbf"))  # spaces and marks before a text
    for (at, mark), name in SIGNATURES.items():
        if any(one[at:].startswith(mark.lower()) for one in heads):
            return name
    return ""


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling folder that takes the place of `path` only when the block
    succeeds.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_manifest(folder: str | Path, verify: bool = True) -> dict[str, Any]:
    """Read `folder/manifest.json`; with `verify`, recompute the hash of every file it names.

    Raises `WeightsError` naming the file that is missing or was changed; without `verify` only
    absence is noticed.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise WeightsError(f"{folder}: incomplete, no {MANIFEST}; delete it and make it again")
    manifest = parse_manifest(path)
    for name, expected in manifest["files"].items():
        _check_hash(Path(folder) / name, expected, verify)
    return manifest


def hashes(folder: str | Path) -> dict[str, str]:
    """`{relative path: sha256}` of every file below `folder`, the manifest itself and cards
    (`README.md`) left out: what a card says changes no result.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if path != folder / MANIFEST and path.name != CARD]
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def parse_manifest(path: Path) -> dict[str, Any]:
    """The manifest at `path`. Raises `WeightsError` when it cannot be read."""
    try:
        manifest = read_json(path)
        if isinstance(manifest["files"], dict):
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise WeightsError(f"{path}: not a readable manifest; delete the folder and make it again")


def _check_hash(file: Path, expected: str, verify: bool) -> None:
    if not file.is_file():
        what = f"{file}: named in {MANIFEST} but missing"
        raise WeightsError(f"{what}; delete {file.parent} and make it again")
    if verify and (found := sha256(file)) != expected:
        raise WeightsError(
            f"{file}: sha256 {found[:12]}... is not the {expected[:12]}... of its {MANIFEST}; "
            f"the file was changed or cut short: restore it, or delete {file.parent} and make it "
            "again"
        )
