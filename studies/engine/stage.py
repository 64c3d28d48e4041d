"""A stage is work that is done once: its result lies in a folder named after everything that it
depends on.

    @stage(load=load_classifier)
    def tuning_classifier(out, progress, settings: ClassifierSettings, cohort: Artifact) -> None:
        ...                                        # writes files into the folder `out`

    classifier = tuning_classifier(ClassifierSettings(steps=700), cohort)  # built, or found
    classifier.load()                              # an Artifact: what `load_classifier` reads

The name of the folder is a hash of the arguments, of the results that come in as artifacts, and of
the code: of all definitions of this project that the function can reach (`studies.engine.reach`).
Nobody passes a key or lists a file.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fairlib.doctor import device, versions
from fairlib.errors import SettingsError
from fairlib.io import (
    MANIFEST,
    hashes,
    parse_manifest,
    read_manifest,
    read_tensors,
    write_json,
    write_tensors,
)
from fairlib.settings import digest
from studies.engine import accelerator, repository, stages_folder
from studies.engine.reach import code_digest

T = TypeVar("T")
WORKING = "working"
Build = Callable[[Path, "Progress"], None]


@dataclasses.dataclass(frozen=True)
class Artifact(Generic[T]):
    """A result on disk: its folder, the digest of what it holds, and the function that reads it.

    `load` keeps the value of the last few artifacts in memory, so treat it as read-only.
    """

    folder: Path
    digest: str
    reader: Callable[[Path], T]

    def load(self) -> T:
        """What the folder holds."""
        return _loaded(self)

    @property
    def identity(self) -> list[Any]:
        """What a stage that takes this artifact depends on: the files, and the code that reads
        them, with what it was given.
        """
        code_of = identity if isinstance(self.reader, functools.partial) else code_digest
        return [self.digest, code_of(self.reader)]

    @classmethod
    def weights(cls, name: str | Path, reader: Callable[[Path], T]) -> Artifact[T]:
        """Weights made elsewhere: a folder, known by the hashes of its manifest or, where there is
        none, by names, sizes and times of its files; or else a name of a hub.
        """
        folder = Path(name)
        if (folder / MANIFEST).is_file():
            return cls(folder, content_digest(folder), reader)
        files = [path for path in folder.rglob("*") if path.is_file()] if str(name) else []
        return cls(folder, files_digest(files) if files else str(name), reader)

    @classmethod
    def files(
        cls, folder: str | Path, files: Iterable[Path], reader: Callable[[Path], T]
    ) -> Artifact[T]:
        """Data too many to be read for a key: known by names, sizes and times of change of
        `files`.
        """
        return cls(Path(folder), files_digest(files), reader)


@functools.lru_cache(maxsize=16)
def _loaded(artifact: Artifact[T]) -> T:
    return artifact.reader(artifact.folder)


def as_is(folder: Path) -> Path:
    """The reader of a result that is used as a folder."""
    return folder


def stage(
    function: Callable[..., None] | None = None,
    *,
    load: Callable[[Path], T] = as_is,
    verify: bool = True,
    ignore: tuple[str, ...] = (),
) -> Any:
    """Make a stage of `function(out, progress, ...)`, which writes files into the folder `out`.

    The stage takes the other arguments and returns an `Artifact` that `load` reads. Arguments are
    settings (dataclasses, dictionaries, numbers, words), tables and arrays, functions, and
    artifacts; those named in `ignore` cannot change the result. What `function` writes below
    `out / "working"` outlives a kill and is there again at the next attempt. With `verify` every
    file is hashed again when a finished result is found. Raises `SettingsError` on an argument that
    has no identity, and `WeightsError` when a finished result no longer matches its manifest.
    """
    if function is None:
        return functools.partial(stage, load=load, verify=verify, ignore=ignore)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Artifact:
        bound = signature.bind(None, None, *args, **kwargs)
        bound.apply_defaults()
        out, progress, *names = signature.parameters
        values = {name: bound.arguments[name] for name in names}
        kept = {name: identity(value, name) for name, value in values.items() if name not in ignore}
        folder = make(
            function.__name__.strip("_"),
            kept,
            code_digest(function),
            lambda folder, shown: function(folder, shown, **values),
            verify,
        )
        return Artifact(folder, content_digest(folder), load)

    run.function = function  # type: ignore[attr-defined]
    return run


def identity(value: Any, name: str = "value") -> Any:
    """What `value` is, as something that JSON can hold; equal values are equal in it. Raises
    `SettingsError` otherwise.
    """
    if isinstance(value, Artifact):
        return {"artifact": value.identity}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [identity(part, name) for part in value]
        return sorted(parts, key=repr) if isinstance(value, (set, frozenset)) else parts
    if isinstance(value, dict):
        return {str(key): identity(part, f"{name}[{key!r}]") for key, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {key: identity(part, f"{name}.{key}") for key, part in fields.items()}
    if isinstance(value, functools.partial):
        given = identity([value.args, value.keywords], name)
        return {"code": code_digest(value.func), "args": given}
    if isinstance(value, type) or inspect.isfunction(value):
        return {"code": code_digest(value)}
    if isinstance(value, (pd.DataFrame, pd.Series)):
        return {"table": _short(value.to_csv(index=False).encode())}
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        data = _short(np.ascontiguousarray(value).tobytes())
        return {"array": [str(value.dtype), list(value.shape), data]}
    raise SettingsError(
        f"{name} is a {type(value).__name__}, which has no identity; give a stage settings, "
        "tables, functions and artifacts"
    )


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def make(
    name: str,
    kept: dict[str, Any],
    code: str,
    build: Build,
    verify: bool = True,
    root: str | Path | None = None,
) -> Path:
    """The folder with the result of the stage `name`; made by `build(folder, progress)` if it is
    not there yet.

    The folder takes its final name only once it is complete. Two processes asking for the same
    result do not both make it.
    """
    root = stages_folder() if root is None else Path(root)
    key = stage_key(name, kept, code)
    final = root / f"{_checked(name)}-{key}"
    if not final.exists():
        with alone(root, final.name):
            if not final.exists():
                _make(final, name, kept, {"stage": name, "key": key, "code": code}, build)
    read_manifest(final, verify=verify)
    return final


def stage_key(name: str, kept: dict[str, Any], code: str) -> str:
    """The hash that tells one variant of a stage from another."""
    return digest({"name": name, "arguments": kept, "code": code})


def in_blocks(
    out: Path,
    progress: Progress,
    count: int,
    size: int,
    label: str,
    make: Callable[[range], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Make `count` rows of tensors, `size` at a time, for a stage that builds in `out`; blocks of
    an interrupted attempt are kept in its working folder.

    make: rows -> tensors by name, whose first dimension is that of the rows.
    """
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    paths = [out / WORKING / f"{block.start:06d}.safetensors" for block in blocks]
    for block, path in progress.track(zip(blocks, paths, strict=True), len(blocks), label):
        if not path.is_file():
            write_tensors(path, make(block))
    parts = [read_tensors(path) for path in paths]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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
    """The folder to build in, emptied of all but what an earlier attempt left in its working
    folder.
    """
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
    """Hold the lock `name` of the folder `root`; the system lets go of it when the holder dies,
    however it dies.
    """
    lock = root / ".locks" / name
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    # not on Windows; there, of two processes at the same work the later result stands
    except ImportError:
        yield
        return
    with open(lock, "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _flush(folder: Path) -> None:
    """Have every file on the disk before the folder gets its name, so that a power cut cannot leave
    a hollow one.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _checked(name: str) -> str:
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise SettingsError(f"stage name {name!r}: use letters, digits, '_' and '-' only")
    return name


# ---- what made a result ----


def write_manifest(
    folder: str | Path, parameters: dict[str, Any], seconds: float, **extra
) -> dict[str, Any]:
    """Write `folder/manifest.json` for all files now in `folder`, and return it.

    `parameters` are the settings that made them (its `seed`, if any, is repeated on top); `extra`
    is kept as it is.
    """
    folder = Path(folder)
    manifest = {
        "format": 1,
        "parameters": parameters,
        "seed": parameters.get("seed"),
        "seconds": round(seconds, 2),
        "files": hashes(folder),
        **provenance(),
        **extra,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def content_digest(folder: str | Path) -> str:
    """A short hash of what `folder` holds, from its manifest: the name of this result as an input
    to the next stage.
    """
    return digest(parse_manifest(Path(folder) / MANIFEST)["files"])


def files_digest(files: Iterable[Path]) -> str:
    """A short hash of names, sizes and times of change: what data are that are too many to be read
    for a key.
    """
    found = ((file.parent.name, file.name, file.stat()) for file in files)
    return digest(sorted((*names, stat.st_size, stat.st_mtime_ns) for *names, stat in found))


def provenance() -> dict[str, Any]:
    """What a number depends on beside code and settings: commit, the device that networks run on,
    package versions.
    """
    return {"commit": commit(), "device": device(accelerator()), "packages": versions()}


def commit() -> str | None:
    """The commit of the checkout, with `+` when tracked files other than results differ from it;
    None outside a checkout.
    """
    if not (repository() / ".git").exists():
        return None
    head = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return head and head + ("+" if changes else "")


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=repository(), capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


# ---- what long work says ----


class Progress:
    """What long work says to `stream` (stderr): texts, and how far it is, in a log at most every
    `every` seconds.
    """

    def __init__(self, every: float = 10.0, stream: TextIO | None = None):
        self.every, self.stream = every, stream or sys.stderr

    def say(self, text: str) -> None:
        """Print one line at once, whatever the interval."""
        if self.stream.isatty():
            tqdm.write(text, file=self.stream)  # above a bar
        else:
            print(text, file=self.stream, flush=True)

    def track(
        self, iterable: Iterable[T], total: int | None = None, label: str = "", done: int = 0
    ) -> Iterator[T]:
        """Pass `iterable` through and say how far it is and how long the rest will take; `done` of
        `total` were there before (a resumed run).
        """
        if total is None and hasattr(iterable, "__len__"):
            total = done + len(iterable)
        if self.stream.isatty():
            bar, options = tqdm, {"mininterval": 0.5, "dynamic_ncols": True}
        else:
            bar, options = _Lines, {"mininterval": self.every, "miniters": 1}
            options["delay"] = max(self.every, 1e-9)  # no line before the first item
        yield from bar(
            iterable,
            label,
            total,
            leave=False,
            file=self.stream,
            disable=False,  # whatever $TQDM_DISABLE tells other libraries
            smoothing=0,  # the mean time of all items
            initial=done,
            **options,
        )


class _Lines(tqdm):
    """A bar for a log: a line of its own each time, and none at the start and the end."""

    monitor_interval = 0  # no thread that looks after it

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the state as a line; `msg` is the empty text that would clear a bar."""
        if msg is None:
            left = ", about {remaining} left" if self.total else ""
            self.bar_format = "{desc}: {n_fmt}/{total_fmt}, {elapsed} so far" + left
            print(self, file=self.fp, flush=True)


def duration(seconds: float) -> str:
    """Seconds in words: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
