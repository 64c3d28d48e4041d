"""All notebooks of the book with the versions that Colab ships: `.ci/colab` sets the environment up
and calls `python -m studies.book.rehearsal LIST`.

What it cannot show: Colab's own front end, its GPU, Google Drive, and the way there from a badge.
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from fairlib.io import read_json, write_json
from studies.book.notebooks import NotebookError, run_profile
from studies.engine import repository
from studies.engine.profiles import chapters
from studies.engine.stage import provenance

PROFILE = "smoke"


def main(listed: str) -> int:
    """Run every chapter and write `results/colab/summary.json`; `listed` is a file of name==version
    lines. Returns the exit status: 1 when a notebook failed.
    """
    other = differing(Path(listed))
    made = {stem: run(stem) for stem in chapters()}
    about = {"list": Path(listed).name, "python": platform.python_version(), "profile": PROFILE}
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


def run(stem: str) -> dict[str, Any]:
    """Seconds that one notebook took, or its error."""
    try:
        [executed] = run_profile(PROFILE, only=[stem], force=True)
    except NotebookError as error:
        return {"error": str(error).split("\n")[0]}
    return {"seconds": read_json(executed.with_suffix(".json"))["seconds"]}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
