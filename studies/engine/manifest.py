"""The manifest behind a number: parameters, seed, commit, package versions, device, seconds, hashes
of files.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fairlib.errors import SettingsError, WeightsError
from fairlib.io import write_json
from fairlib.manifest import FORMAT, NAME, device, hashes, parsed, versions
from fairlib.settings import digest, from_dict
from studies.engine.places import repository

P = TypeVar("P")  # settings of a phantom


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


def training_subjects(weights: str | Path, kind: type, key: str, model: str, otherwise: str):
    """The settings (of class `kind`) of the synthetic subjects that a generator was trained on, by
    name `key` of its manifest.

    model, otherwise: for the error, what to train and what to do where a manifest does not tell.
    Raises `WeightsError` when there is no manifest, or none of a model of synthetic subjects.
    """
    path = Path(weights) / NAME
    if not path.is_file():
        raise WeightsError(
            f"{weights}: no {model} generator here ({NAME} is missing); make it with "
            f"`python -m studies base {model}`"
        )
    found = parsed(path)["parameters"].get(key)
    if not isinstance(found, dict):
        raise WeightsError(
            f"{path}: does not say which synthetic subjects the generator was trained on; "
            f"{otherwise}, or make the "
            "weights anew"
        )
    return from_dict(kind, found)


def training_part(whole: P, count: int, seeds: Mapping[str, int | None]) -> P:
    """The first `count` (0: all) of the subjects `whole` that a generator was trained on.

    seeds: those of the study's other parts. Raises `SettingsError` when one of them would draw the
    training subjects again, and when there are fewer than `count`.
    """
    same = [part for part, seed in seeds.items() if seed == whole.seed]
    if same:
        raise SettingsError(
            f"the generator was trained on subjects of seed {whole.seed}, which part {same[0]!r} "
            "draws too; train it with another seed"
        )
    if count > whole.subjects:
        raise SettingsError(
            f"train_subjects {count}: the generator was trained on {whole.subjects}; 0 takes all"
        )
    return replace(whole, subjects=count or whole.subjects)


def content_digest(folder: str | Path) -> str:
    """A short hash of what `folder` holds, from its manifest: the name of this result as an input
    to the next stage.
    """
    return digest(parsed(Path(folder) / NAME)["files"])


def files_digest(files: Iterable[Path]) -> str:
    """A short hash of names, sizes and times of change: what data are that are too many to be read
    for a key.
    """
    found = ((file.parent.name, file.name, file.stat()) for file in files)
    return digest(sorted((*names, stat.st_size, stat.st_mtime_ns) for *names, stat in found))


def commit() -> str | None:
    """The commit of the checkout, with `+` when tracked files differ from it; None outside a
    checkout.
    """
    if not (repository() / ".git").exists():
        return None
    head = _git("rev-parse", "HEAD")
    return head and head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=repository(), capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
