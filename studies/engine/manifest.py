"""The manifest behind a number: parameters, seed, commit, package versions, device, seconds, hashes
of files.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from fairlib.errors import WeightsError
from fairlib.io import read_json, sha256, write_json
from fairlib.settings import digest, from_dict
from studies.engine.places import repository

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


def write_manifest(
    folder: str | Path, parameters: dict[str, Any], seconds: float, **extra
) -> dict[str, Any]:
    """Write `folder/manifest.json` for all files now in `folder`, and return it.

    `parameters` are the settings that made them (its `seed`, if any, is repeated on top); `extra`
    is kept as it is.
    """
    folder = Path(folder)
    manifest = {
        "format": FORMAT,
        "parameters": parameters,
        "seed": parameters.get("seed"),
        "seconds": round(seconds, 2),
        "commit": commit(),
        "device": device(),
        "packages": versions(),
        "files": hashes(folder),
        **extra,
    }
    write_json(folder / NAME, manifest)
    return manifest


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
    manifest = _parsed(path)
    for name, expected in manifest["files"].items():
        _check(Path(folder) / name, expected, verify)
    return manifest


def training_people(weights: str | Path, kind: type, key: str, model: str, otherwise: str):
    """The settings (of class `kind`) of the synthetic people that a generator was trained on, by
    name `key` of its manifest.

    model, otherwise: for the error, what to train and what to do where a manifest does not tell.
    Raises `WeightsError` when there is no manifest, or none of a model made from synthetic people.
    """
    path = Path(weights) / NAME
    if not path.is_file():
        raise WeightsError(
            f"{weights}: no {model} generator here ({NAME} is missing); make it with "
            f"`python -m studies base {model}`"
        )
    found = _parsed(path)["parameters"].get(key)
    if not isinstance(found, dict):
        raise WeightsError(
            f"{path}: does not say which synthetic people the generator was trained on; "
            f"{otherwise}, or make the "
            "weights anew"
        )
    return from_dict(kind, found)


def content_digest(folder: str | Path) -> str:
    """A short hash of what `folder` holds, from its manifest: the name of this result as an input
    to the next stage.
    """
    return digest(_parsed(Path(folder) / NAME)["files"])


def files_digest(files: Iterable[Path]) -> str:
    """A short hash of names, sizes and times of change: what data are that are too many to be read
    for a key.
    """
    found = ((file.parent.name, file.name, file.stat()) for file in files)
    return digest(sorted((*names, stat.st_size, stat.st_mtime_ns) for *names, stat in found))


def hashes(folder: str | Path) -> dict[str, str]:
    """`{relative path: sha256}` of every file below `folder`, the manifest itself left out."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): sha256(path) for path in files if path != folder / NAME
    }


def commit() -> str | None:
    """The commit of the checkout, with `+` when tracked files differ from it; None outside a
    checkout.
    """
    if not (repository() / ".git").exists():
        return None
    head = _git("rev-parse", "HEAD")
    return head and head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


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


def _parsed(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path)
        return manifest if isinstance(manifest["files"], dict) else _unreadable(path)
    except (OSError, ValueError, KeyError, TypeError):
        _unreadable(path)


def _unreadable(path: Path):
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


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=repository(), capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
