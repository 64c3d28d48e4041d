"""Atomic files: JSON and safetensors, never pickle; and images as bytes."""

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


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` so that a reader sees the old file or the whole new one, never a part."""
    path = Path(path)
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
    return json.loads(Path(path).read_text())


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
        tensors = load(Path(path).read_bytes())
    except SafetensorError as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({error}); make it again"
        ) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WeightsError(
                f"{path}: tensor {name!r} holds NaN or infinity; make the file again"
            )
    return tensors


def to_bytes(images: Tensor) -> Tensor:
    """Convert images in [-1, 1], of any shape, to uint8 0 to 255: rounded, and clipped outside."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte()


def to_images(values: Tensor) -> Tensor:
    """Convert uint8 0 to 255, of any shape, to images: float32 in [-1, 1]; floats are images
    already.
    """
    return values if values.is_floating_point() else values.float() / 127.5 - 1


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling folder that takes the place of `path` only when the block
    succeeds.
    """
    path = Path(path)
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
