"""Running the notebooks of a profile: clean sources in `notebooks/`, executed copies in
`runs/<profile>/`.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

from fairlib.errors import FairlibError, SettingsError
from fairlib.io import read_json, sha256, write_json
from fairlib.settings import digest, unknown_key
from studies.book.kernel import this_interpreter
from studies.book.parallel import Company, Lines, Stop, cores, in_lanes, jobs_for
from studies.engine.manifest import commit, device, versions
from studies.engine.places import repository, runs_folder
from studies.engine.profiles import Profile, chapters, lanes, load_profile, notebooks
from studies.engine.progress import Progress, duration
from studies.engine.reach import project_digest

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class NotebookError(FairlibError):
    """A cell of a notebook failed; the message holds its traceback. Or the kernel died."""


def run_profile(
    name: str, only: list[str] | None = None, force: bool = False, jobs: int | None = None
) -> list[Path]:
    """Execute the book's notebooks under profile `name`, but for those up to date; returns the
    executed copies in order.

    `only` picks notebooks by stem, also such as the book does not list; `force` runs them even if
    nothing changed. A notebook is up to date when its source, its parameters, fairlib's code, and
    the files below `weights/` and `results/` are those of its last run. `jobs` parts of the book
    run at the same time (None: as many as make sense, see `parallel.jobs_for`), each in the order
    of the book; with 1, so does the whole.

    Raises `NotebookError` with the traceback of the cell that failed, `SettingsError` when `jobs`
    is no number above zero.
    """
    profile, known = load_profile(name), list(notebooks())
    chosen = _choose(only, known) if only else list(chapters())
    rows = _lanes(chosen)
    jobs = jobs_for(jobs, len(rows))

    def alone(stem: str, company: Company | None = None) -> None:
        _bring_up_to_date(
            profile, stem, f"[{chosen.index(stem) + 1}/{len(chosen)}] {stem}", force, company
        )

    def beside_others(stem: str, stop: Stop) -> None:
        stream = Lines(sys.stderr, f"{stem.split('_')[0]} | ")
        alone(stem, Company(stream, stop, threads=max(1, cores() // jobs)))
        stream.end()

    if jobs > 1:
        in_lanes(rows, jobs, beside_others)
    else:
        for stem in chosen:
            alone(stem)
    return [executed_path(name, stem) for stem in chosen]


def _bring_up_to_date(
    profile: Profile, stem: str, head: str, force: bool, company: Company | None
) -> None:
    say = Progress(stream=Lines(sys.stderr)).say
    if not force and is_current(profile, stem):
        return say(f"{head}: up to date")
    say(f"{head}: running (profile {profile.name})")
    try:
        seconds = run_notebook(profile, stem, company)
    except BaseException:
        if company:
            say(f"{head}: {'stopped' if company.stop.is_set() else 'failed'}")
        raise
    say(f"{head}: done in {duration(seconds)}")


def run_notebook(profile: Profile, stem: str, company: Company | None = None) -> float:
    """Execute one notebook and record what it was run with; returns the seconds it took."""
    source, output = notebooks()[stem], executed_path(profile.name, stem)
    record = output.with_suffix(".json")
    output.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    key, start = run_key(profile, stem), time.monotonic()
    execute(source, output, profile.parameters(stem), company)
    seconds = time.monotonic() - start
    write_json(
        record,
        {
            "key": key,
            "source_sha256": sha256(source),
            "parameters": profile.parameters(stem),
            "seconds": round(seconds, 1),
            "commit": commit(),
            "device": device(),
            "packages": versions(),
            "glued": glued(output),
        },
    )
    return seconds


def execute(
    source: Path, output: Path, parameters: dict[str, Any], company: Company | None = None
) -> None:
    """Run the notebook at `source` in a kernel of this very interpreter, from the repository's
    root.

    What cells print to stderr (progress) is passed on as it comes. Raises `NotebookError`; the
    executed copy up to the failing cell is then at `output`. `company` is for notebooks that run in
    threads, at the same time.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        # not papermill's `cwd`, which would change the folder of this process, and with it that of
        # every thread
        papermill.execute_notebook(
            str(source),
            str(output),
            parameters,
            kernel_name="python3",
            progress_bar=False,
            stderr_file=company.stream if company else sys.stderr,
            kernel_manager_class=this_interpreter(repository(), company),
        )
    except DeadKernelError:
        raise NotebookError(
            f"{source}: its kernel died or was killed; where memory ran out, close other programs, "
            "or run "
            "one notebook at a time (--jobs 1)"
        ) from None
    except PapermillExecutionError as error:
        lines = [ANSI.sub("", line) for line in error.traceback]
        text = "\n".join(lines)
        raise NotebookError(
            f"{source}, cell {error.cell_index}: {error.ename}: {error.evalue}\n{text}"
        ) from None


def is_current(profile: Profile, stem: str) -> bool:
    """Whether the executed copy is what running the notebook now would be made from."""
    output = executed_path(profile.name, stem)
    record = output.with_suffix(".json")
    return (
        output.exists() and record.exists() and read_json(record)["key"] == run_key(profile, stem)
    )


def run_key(profile: Profile, stem: str) -> str:
    """The hash of all that an execution depends on."""
    return digest(
        {
            "source": sha256(notebooks()[stem]),
            "parameters": profile.parameters(stem),
            "code": project_digest(),
            "kept": kept_digest(),
        }
    )


def kept_digest() -> str:
    """The hash of the files that notebooks read from the repository: `weights/` and `results/`."""
    files = [
        file
        for place in ("weights", "results")
        for file in sorted((repository() / place).rglob("*"))
    ]
    return digest(
        {
            file.relative_to(repository()).as_posix(): sha256(file)
            for file in files
            if file.is_file()
        }
    )


def executed_path(profile: str, stem: str) -> Path:
    """Where the executed copy of a notebook lies."""
    return runs_folder() / profile / f"{stem}.ipynb"


def glued(path: Path) -> dict[str, str]:
    """The values that the executed notebook at `path` glued: `{name: text}`."""
    import nbformat

    outputs = [
        output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])
    ]
    marked = [output for output in outputs if "scrapbook" in output.get("metadata", {})]
    return {
        output.metadata["scrapbook"]["name"]: output.data.get(
            "application/papermill.record/text/plain", ""
        )
        for output in marked
    }


def _choose(only: list[str], known: list[str]) -> list[str]:
    for stem in only:
        if stem not in known:
            raise SettingsError(unknown_key(stem, known, "the notebooks"))
    return [stem for stem in known if stem in only]


def _lanes(chosen: list[str]) -> list[list[str]]:
    """`chosen` by part of the book; those that the book does not list make one more lane."""
    parts = lanes()
    rest = [stem for stem in chosen if not any(stem in part for part in parts)]
    return [lane for part in [*parts, rest] if (lane := [stem for stem in part if stem in chosen])]
