"""Running the notebooks of a profile: clean sources in `notebooks/`, executed copies in `runs/<profile>/`."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from ..errors import FairlibError, SettingsError
from ..files import read_json, sha256, write_json
from ..settings import digest, unknown_key
from .manifest import code_digest, commit, device, versions
from .places import PACKAGE, repository, runs_folder
from .profiles import Profile, chapters, load_profile, notebooks
from .progress import Progress, duration

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class NotebookError(FairlibError):
    """A cell of a notebook failed; the message holds its traceback."""


def run_profile(name: str, only: list[str] | None = None, force: bool = False) -> list[Path]:
    """Execute the book's notebooks under profile `name` in order, but for those up to date; returns the executed copies.

    `only` picks notebooks by stem, also such as the book does not list; `force` runs them even if nothing changed. A
    notebook is up to date when its source, its parameters, fairlib's code, and the files below `weights/` and
    `results/` are those of its last run. Raises `NotebookError` with the traceback of the cell that failed.
    """
    profile, sources, say = load_profile(name), notebooks(), Progress().say
    paths = []
    for count, stem in enumerate(chosen := _choose(only, list(sources)) if only else list(chapters()), 1):
        head = f"[{count}/{len(chosen)}] {stem}"
        if not force and is_current(profile, stem):
            say(f"{head}: up to date")
        else:
            say(f"{head}: running (profile {name})")
            say(f"{head}: done in {duration(run_notebook(profile, stem))}")
        paths.append(executed_path(name, stem))
    return paths


def run_notebook(profile: Profile, stem: str) -> float:
    """Execute one notebook and record what it was run with; returns the seconds it took."""
    source, output = notebooks()[stem], executed_path(profile.name, stem)
    record = output.with_suffix(".json")
    output.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    key, start = run_key(profile, stem), time.monotonic()
    execute(source, output, profile.parameters(stem))
    seconds = time.monotonic() - start
    write_json(record, {
        "key": key,
        "source_sha256": sha256(source),
        "parameters": profile.parameters(stem),
        "seconds": round(seconds, 1),
        "commit": commit(),
        "device": device(),
        "packages": versions(),
        "glued": glued(output),
    })
    return seconds


def execute(source: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Run the notebook at `source` in a kernel of this very interpreter, from the repository's root.

    What cells print to stderr (progress) is passed on as it comes. Raises `NotebookError`; the executed copy up to the
    failing cell is then at `output`.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            str(source), str(output), parameters, kernel_name="python3", cwd=str(repository()), progress_bar=False,
            stderr_file=sys.stderr, kernel_manager_class=_this_interpreter(),
        )
    except PapermillExecutionError as error:
        lines = [ANSI.sub("", line) for line in error.traceback]
        text = "\n".join(lines)
        raise NotebookError(f"{source}, cell {error.cell_index}: {error.ename}: {error.evalue}\n{text}") from None


def is_current(profile: Profile, stem: str) -> bool:
    """Whether the executed copy is what running the notebook now would be made from."""
    output = executed_path(profile.name, stem)
    record = output.with_suffix(".json")
    return output.exists() and record.exists() and read_json(record)["key"] == run_key(profile, stem)


def run_key(profile: Profile, stem: str) -> str:
    """The hash of all that an execution depends on."""
    return digest({
        "source": sha256(notebooks()[stem]),
        "parameters": profile.parameters(stem),
        "code": code_digest(),
        "kept": kept_digest(),
    })


def kept_digest() -> str:
    """The hash of the files that notebooks read from the repository: `weights/` and `results/`."""
    files = [file for place in ("weights", "results") for file in sorted((repository() / place).rglob("*"))]
    return digest({file.relative_to(repository()).as_posix(): sha256(file) for file in files if file.is_file()})


def executed_path(profile: str, stem: str) -> Path:
    """Where the executed copy of a notebook lies."""
    return runs_folder() / profile / f"{stem}.ipynb"


def glued(path: Path) -> dict[str, str]:
    """The values that the executed notebook at `path` glued: `{name: text}`."""
    import nbformat

    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
    marked = [output for output in outputs if "scrapbook" in output.get("metadata", {})]
    return {
        output.metadata["scrapbook"]["name"]: output.data.get("application/papermill.record/text/plain", "")
        for output in marked
    }


def _choose(only: list[str], known: list[str]) -> list[str]:
    for stem in only:
        if stem not in known:
            raise SettingsError(unknown_key(stem, known, "the notebooks"))
    return [stem for stem in known if stem in only]


def _kernel_environment() -> dict[str, str]:
    """This very fairlib first on the path; no bars of other libraries, which each leave a widget in a notebook."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "TQDM_DISABLE": "1"}


def _this_interpreter() -> type:
    """A kernel manager that starts `sys.executable`, whatever kernels a user has installed under the name python3."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.paths import jupyter_runtime_dir
    from traitlets import default

    class ThisInterpreter(AsyncKernelManager):
        @default("transport")
        def _transport(self):
            # local sockets, which nobody else on the machine can listen to, where their path is short enough
            return "ipc" if os.name == "posix" and len(jupyter_runtime_dir()) < 45 else "tcp"

        @property
        def kernel_spec(self):
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python", env=_kernel_environment())

    return ThisInterpreter
