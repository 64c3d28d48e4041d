"""Running the notebooks of a profile: clean sources in `notebooks/`, executed copies in
`runs/<profile>/`.

Each notebook runs in a process of its own (`studies.book.execute`), the parts of the book beside
each other. `make` with file targets was the alternative: it runs a notebook again for a comment.
"""

from __future__ import annotations

import asyncio
import json
import platform
import re
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from fairlib.errors import FairlibError, SettingsError
from fairlib.io import hashes, read_json, sha256, write_json
from fairlib.settings import digest, require_known
from studies.engine import accelerator, cores, environment, repository, runs_folder
from studies.engine.profiles import Profile, chapters, lanes, load_profile, notebooks
from studies.engine.reach import script_digest
from studies.engine.stage import Progress, duration, provenance

REHEARSAL = "smoke"  # the profile of `rehearse`
AT_MOST = 2  # a third lane saves little after the longest one, and every kernel takes memory


class NotebookError(FairlibError):
    """A cell of a notebook failed; the message holds its traceback. Or the kernel died."""


def run_profile(
    name: str, only: list[str] | None = None, force: bool = False, jobs: int | None = None
) -> list[Path]:
    """Execute the book's notebooks under profile `name`, but for those up to date; returns the
    executed copies in order.

    `only` picks notebooks by stem, also such as the book does not list; `force` runs them even if
    nothing changed (see `run_key`). `jobs` parts of the book run at the same time (None: as many
    as make sense, see `jobs_for`), each in the order of the book; with 1, so does the whole. A
    failure and Ctrl-C end all notebooks at once.

    Raises `NotebookError` with the traceback of the cell that failed, `SettingsError` when `jobs`
    is no number above zero.
    """
    profile, known = load_profile(name), list(notebooks())
    for stem in only or ():
        require_known(stem, known, "the notebooks")
    chosen = [stem for stem in known if stem in only] if only else list(chapters())
    parts = _lanes(chosen)
    jobs = jobs_for(jobs, len(parts))

    async def in_order(stems: list[str], free: asyncio.Semaphore) -> None:
        async with free:
            for stem in stems:
                head = f"[{chosen.index(stem) + 1}/{len(chosen)}] {stem}"
                await _bring_up_to_date(profile, stem, head, force, jobs)

    async def all_parts() -> None:
        free = asyncio.Semaphore(jobs)
        longest_first = sorted(parts, key=len, reverse=True) if jobs > 1 else [chosen]
        await asyncio.gather(*(in_order(stems, free) for stems in longest_first))

    asyncio.run(all_parts())  # at the first error, and at Ctrl-C, it cancels what is left
    return [executed_path(name, stem) for stem in chosen]


def jobs_for(jobs: int | None, parts: int) -> int:
    """How many of `parts` to run at the same time: `jobs` of them, or with None as many as make
    sense here.

    That is two, but one where there is a single core, and on an accelerator, which two notebooks
    would have to share. Raises `SettingsError` when `jobs` is not a whole number above zero.
    """
    if jobs is None:
        jobs = 1 if cores() == 1 or accelerator().type != "cpu" else AT_MOST
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise SettingsError(f"jobs is {jobs!r}; notebooks at a time: give a whole number from 1")
    return max(1, min(jobs, parts))


async def _bring_up_to_date(profile: Profile, stem: str, head: str, force: bool, jobs: int) -> None:
    say, key = Progress().say, run_key(profile, stem)
    if not force and is_current(executed_path(profile.name, stem), key):
        return say(f"{head}: up to date")
    say(f"{head}: running (profile {profile.name})")
    try:
        seconds = await run_notebook(profile, stem, key, jobs)
    except BaseException as error:
        say(f"{head}: {'failed' if isinstance(error, NotebookError) else 'stopped'}")
        raise
    say(f"{head}: done in {duration(seconds)}")


async def run_notebook(profile: Profile, stem: str, key: str, jobs: int = 1) -> float:
    """Execute one notebook and record what it was run with, under `key`; returns the seconds it
    took.
    """
    source, output = notebooks()[stem], executed_path(profile.name, stem)
    record = output.with_suffix(".json")
    output.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    found, start = sha256(source), time.monotonic()
    await execute(source, output, profile.parameters(stem), jobs)
    seconds = time.monotonic() - start
    made = {"key": key, "source_sha256": found, "parameters": profile.parameters(stem)}
    write_json(record, {**made, "seconds": round(seconds, 1), **provenance()})
    return seconds


async def execute(source: Path, output: Path, parameters: dict[str, Any], jobs: int = 1) -> None:
    """Run the notebook at `source` with this very interpreter, from the repository's root.

    What cells print to stderr (progress) is passed on as it comes; where several `jobs` run at the
    same time, each line after the number of its notebook. Raises `NotebookError`; the executed
    copy up to the failing cell is then at `output`. Cancelled, it leaves no process behind.
    """
    failure = output.with_suffix(".error")
    failure.unlink(missing_ok=True)
    label = f"{source.stem.partition('_')[0]} | " if jobs > 1 else ""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "studies.book.execute", source, output, json.dumps(parameters)),
        label,
        stdin=asyncio.subprocess.PIPE,
        cwd=repository(),
        env=_environment(jobs),
        start_new_session=True,  # or Ctrl-C would reach it, too
    )
    try:
        status = await process.wait()
    finally:
        process.stdin.close()  # upon which it ends, with all that it started
        await process.wait()
    if failure.is_file():
        raise NotebookError(failure.read_text())
    if status:
        what = f"{source}: its process ended with status {status}"
        raise NotebookError(f"{what}; where that is -9, memory ran out")


def _environment(jobs: int) -> dict[str, str]:
    """The environment of a process beside others, this interpreter's kernel first among those
    called python3; no bars of other libraries, which each leave a widget in a notebook.
    """
    kernels = str(Path(sys.prefix, "share", "jupyter"))
    return environment(jobs) | {"JUPYTER_PATH": kernels, "TQDM_DISABLE": "1"}


def is_current(output: Path, key: str) -> bool:
    """Whether the executed copy at `output` is what a run with this `key` would make."""
    record = output.with_suffix(".json")
    return output.exists() and record.exists() and read_json(record)["key"] == key


def run_key(profile: Profile, stem: str) -> str:
    """The hash of all that an execution depends on: the notebook and its parameters, the project's
    code that its cells can reach, and the files below `weights/` and `results/`.
    """
    source = notebooks()[stem]
    return digest(
        {
            "source": sha256(source),
            "parameters": profile.parameters(stem),
            "code": script_digest(code_of(source)),
            "kept": {name: hashes(repository() / name) for name in ("weights", "results")},
        }
    )


def code_of(notebook: Path) -> str:
    """The code cells of a notebook as one Python source, without the lines meant for IPython."""
    cells = read_json(notebook)["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", text, flags=re.M)


def executed_path(profile: str, stem: str) -> Path:
    """Where the executed copy of a notebook lies."""
    return runs_folder() / profile / f"{stem}.ipynb"


def _lanes(chosen: list[str]) -> list[list[str]]:
    """`chosen` by part of the book; those that the book does not list make one more lane."""
    parts = lanes()
    rest = [stem for stem in chosen if not any(stem in part for part in parts)]
    return [lane for part in [*parts, rest] if (lane := [stem for stem in part if stem in chosen])]


# ---- all notebooks with the versions that Colab ships: `.ci/colab` sets the environment up and
# calls `python -m studies.book.notebooks LIST`; Colab's front end, GPU and Drive it cannot show


def rehearse(listed: str) -> int:
    """Run every chapter with the versions that are installed here and write
    `results/colab/summary.json`; `listed` is a file of name==version lines. Returns the exit
    status: 1 when a notebook failed.
    """
    other = differing(Path(listed))
    made = {stem: _rehearsed(stem) for stem in chapters()}
    about = {"list": Path(listed).name, "python": platform.python_version(), "profile": REHEARSAL}
    out = repository() / "results" / "colab" / "summary.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {**about, "other_versions": other, "notebooks": made, **provenance()})
    print(out)
    return int(any("error" in outcome for outcome in made.values()))


def differing(listed: Path) -> dict[str, list[str]]:
    """`{name: [version in the list, version here]}` of the listed packages that are installed here
    in another version; what follows a plus (`+cu128`) says nothing about the code.
    """
    lines = [line.split("==") for line in listed.read_text().splitlines() if "==" in line]
    here = {_plain(one.metadata["Name"]): one.version for one in metadata.distributions()}
    found = {name: [version, here.get(_plain(name), version)] for name, version in lines}
    return {name: pair for name, pair in found.items() if len({v.split("+")[0] for v in pair}) > 1}


def _rehearsed(stem: str) -> dict[str, Any]:
    """Seconds that one notebook took, or its error."""
    try:
        [executed] = run_profile(REHEARSAL, only=[stem], force=True)
    except NotebookError as error:
        return {"error": str(error).split("\n")[0]}
    return {"seconds": read_json(executed.with_suffix(".json"))["seconds"]}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    sys.exit(rehearse(*sys.argv[1:]))
