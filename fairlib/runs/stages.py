"""A stage is work that is done once: its result lies in a folder named after the hash of everything it depends on."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..settings import digest, to_dict
from .manifest import code_digest, read_manifest, write_manifest
from .places import stages_folder
from .progress import Progress, duration

WORKING = "working"
Build = Callable[[Path, Progress], None]


def stage(root: str | Path | None, name: str, settings: Any, inputs: list[str], build: Build, *,
          code: str | None = None, verify: bool = True) -> Path:
    """The folder that holds the result of stage `name`; made by `build(folder, progress)` if it is not there yet.

    `settings` is a dictionary or a settings dataclass; `inputs` are the digests of what the stage reads (see
    `manifest.content_digest`); `code` names the version of the code that makes it (default: a hash of all of
    fairlib's source; pass `code_digest("methods", ...)` to depend on less). Any of them changing means another folder.

    `build` writes its files into `folder`, which takes its final name only once it is complete. What it puts below
    `folder / "working"` outlives a kill and is there again at the next attempt, so a long build can save checkpoints
    there (atomically) and go on from them; the working folder is no part of the result. Two processes asking for the
    same stage do not both build it. Raises `WeightsError` when a finished stage no longer matches its manifest.
    """
    root = stages_folder() if root is None else Path(root)
    parameters = to_dict(settings) if is_dataclass(settings) else dict(settings)
    key = stage_key(name, parameters, inputs, code)
    final = root / f"{_checked(name)}-{key}"
    if not final.exists():
        with alone(root, final.name):
            if not final.exists():
                _make(final, name, parameters, {"stage": name, "key": key, "inputs": list(inputs)}, build)
    read_manifest(final, verify=verify)
    return final


def stage_key(name: str, parameters: dict[str, Any], inputs: list[str], code: str | None = None) -> str:
    """The hash that tells one variant of a stage from another."""
    return digest({"name": name, "settings": parameters, "inputs": list(inputs), "code": code or code_digest()})


def clean_working(root: str | Path | None = None) -> int:
    """Delete the unfinished attempts below `root`; returns how many there were."""
    attempts = list((stages_folder() if root is None else Path(root)).glob(".attempt-*"))
    for attempt in attempts:
        shutil.rmtree(attempt)
    return len(attempts)


def _make(final: Path, name: str, parameters: dict, extra: dict, build: Build) -> None:
    progress = Progress()
    attempt, resumed = _open_attempt(final)
    progress.say(f"stage {name}: {'taken up again' if resumed else 'started'}")
    start = time.monotonic()
    build(attempt, progress)
    seconds = time.monotonic() - start
    shutil.rmtree(attempt / WORKING)
    write_manifest(attempt, parameters, seconds, resumed=resumed, **extra)
    _flush(attempt)
    os.replace(attempt, final)
    progress.say(f"stage {name}: done in {duration(seconds)}")


def _open_attempt(final: Path) -> tuple[Path, bool]:
    """The folder to build in, emptied of all but what an earlier attempt left in its working folder."""
    attempt = final.parent / f".attempt-{final.name}"
    attempt.mkdir(parents=True, exist_ok=True)
    for leftover in attempt.iterdir():
        if leftover.name != WORKING:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    working = attempt / WORKING
    working.mkdir(exist_ok=True)
    return attempt, any(working.iterdir())


@contextmanager
def alone(root: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` of the folder `root`; the system lets go of it when the holder dies, however it dies."""
    lock = root / ".locks" / name
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # not on Windows; there, of two processes at the same work the later result stands
        yield
        return
    with open(lock, "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _flush(folder: Path) -> None:
    """Have every file on the disk before the folder gets its name, so that a power cut cannot leave a hollow one."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _checked(name: str) -> str:
    if not name or not all(letter.isalnum() or letter in "_-." for letter in name) or name.startswith("."):
        raise SettingsError(f"stage name {name!r}: use letters, digits, '_' and '-' only")
    return name
