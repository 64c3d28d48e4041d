"""The manifest of a folder: what made it, on what machine, and the hashes of its files."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from fairlib.errors import WeightsError
from fairlib.io import read_json, sha256

FORMAT = 1
NAME = "manifest.json"
PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "peft",
)


def read_manifest(folder: str | Path, verify: bool = True) -> dict[str, Any]:
    """Read `folder/manifest.json`; with `verify`, recompute the hash of every file it names.

    Raises `WeightsError` naming the file that is missing or was changed; without `verify` only
    absence is noticed.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        raise WeightsError(
            f"{folder}: no {NAME}; the folder is incomplete: delete it and make it again"
        )
    manifest = parsed(path)
    for name, expected in manifest["files"].items():
        _check(Path(folder) / name, expected, verify)
    return manifest


def hashes(folder: str | Path) -> dict[str, str]:
    """`{relative path: sha256}` of every file below `folder`, the manifest itself left out."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): sha256(path) for path in files if path != folder / NAME
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device() -> str:
    """The accelerator's name, or the machine type of the processor."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return "Apple GPU"
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def parsed(path: Path) -> dict[str, Any]:
    """The manifest at `path`. Raises `WeightsError` when it cannot be read."""
    try:
        manifest = read_json(path)
        if isinstance(manifest["files"], dict):
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise WeightsError(f"{path}: not a readable manifest; delete the folder and make it again")


def _check(file: Path, expected: str, verify: bool) -> None:
    if not file.is_file():
        raise WeightsError(
            f"{file}: named in {NAME} but missing; delete {file.parent} and make it again"
        )
    if verify and (found := sha256(file)) != expected:
        raise WeightsError(
            f"{file}: sha256 {found[:12]}... is not the {expected[:12]}... of its {NAME}; "
            f"the file was changed or cut short: restore it, or delete {file.parent} and make it "
            "again"
        )
