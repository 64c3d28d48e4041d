"""The book: prose and executed notebooks put together in `_build/source`, and built from there.

The executed copies take the place of the sources there, at the same path. So a page of the book
shows results, while its launch button, made from that path, opens the clean notebook of the
repository.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from fairlib.errors import DataError, FairlibError, SettingsError
from fairlib.io import read_json, sha256
from studies.book.notebooks import executed_path
from studies.book.publish import publish
from studies.engine.places import repository
from studies.engine.profiles import chapters, load_profile
from studies.engine.progress import Progress, duration

FILES = ("_config.yml", "_toc.yml", "README.md", "LICENSE", "LICENSE-CONTENT", "CITATION.cff")


class BookError(FairlibError):
    """The book did not build without warnings."""


def build_book(profile: str, strict: bool = True) -> Path:
    """Build the book from the executed notebooks of `profile`; returns the path of its
    `index.html`.

    With `strict` every warning is an error. Raises `SettingsError` for a notebook that was not run
    or has changed since, `DataError` for one that cannot be published, `BookError` when the build
    fails.
    """
    start = time.monotonic()
    source = assemble(profile)
    index = repository() / "_build" / "html" / "index.html"
    shutil.rmtree(index.parent, ignore_errors=True)  # or pages that left the book would stay
    flags = ["-W", "-n", "--keep-going"] if strict else []
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(source),
        "--all",
    ]
    result = subprocess.run(
        [*command, "--path-output", str(repository()), "--quiet", *flags], cwd=repository()
    )
    if result.returncode != 0 or not index.is_file():
        raise BookError(
            f"the book did not build (exit {result.returncode}); the warnings above name page and "
            "line"
        )
    Progress().say(f"book built in {duration(time.monotonic() - start)}: {index}")
    return index


def assemble(profile: str) -> Path:
    """Fill `_build/source` anew with prose, configuration and the published notebooks of
    `profile`.
    """
    root = repository()
    _check_runs(profile)
    source = root / "_build" / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in FILES:
        if (root / name).is_file():
            shutil.copy2(root / name, source / name)
    if not (source / "_toc.yml").is_file():
        raise DataError(f"{root}/_toc.yml: missing; the book has no order of chapters")
    shutil.copytree(
        root / "book",
        source / "book",
        ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
    )
    for stem in chapters():
        publish(executed_path(profile, stem), source / "notebooks" / f"{stem}.ipynb")
    return source


def _check_runs(profile: str) -> None:
    load_profile(profile)
    remedy = f"run `python -m studies run --profile {profile}`"
    for stem, path in chapters().items():
        executed = executed_path(profile, stem)
        record = executed.with_suffix(".json")
        if not executed.is_file() or not record.is_file():
            raise SettingsError(f"{executed}: not there or not finished; {remedy}")
        if read_json(record)["source_sha256"] != sha256(path):
            raise SettingsError(f"{executed}: {path.name} has changed since it was run; {remedy}")
