"""Arms and seeds of several studies at once, each in a process of its own here, or as jobs of a
cluster; those that the present code has made are skipped.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pkgutil import resolve_name
from typing import Any

from fairlib.errors import SettingsError
from fairlib.io import read_json
from fairlib.settings import digest, from_dict
from studies.engine import environment
from studies.engine.running import origins_of, run_study, same_study
from studies.engine.stage import Progress, commit, duration
from studies.engine.study import S, Study

WORKFLOW = """\
# Run it from the repository's root, as: snakemake -s FILE --keep-going --jobs 8 --executor slurm
CELLS = {cells}
SETTINGS = {settings}
PYTHON = {python}

rule all:
    input: expand("runs/grid/{done}/{{cell}}", cell=CELLS)

rule cell:
    output: touch("runs/grid/{done}/{{cell}}")
    params: settings=SETTINGS, python=PYTHON
    shell: "{{params.python}} -m studies grid {{wildcards.cell:q}} --settings {{params.settings:q}}"
"""


def missing(study: Study[S], settings: S, text: str) -> list[tuple[str, int]]:
    """The arms and seeds that `ARM,...:SEED,...` names (all of a long run where one of the lists is
    empty), seed by seed, references first, but for those whose rows the present code has made.

    Raises `SettingsError` on an unknown arm or a seed that is no number, and `DataError` when the
    folder holds another study.
    """
    arms, _, seeds = text.partition(":")
    if not re.fullmatch(r"(\d+(,\d+)*)?", seeds):
        raise SettingsError(f"{study.name}:{text}: give seeds as 1,2,3")
    numbers = map(int, seeds.split(",")) if seeds else study.seeds
    chosen = study.arms_of(settings, arms.split(",") if arms else None)
    record, made = study.results(settings) / "study.json", study.identity(settings)
    same_study(record, made)
    rows = read_json(record).get("rows", {}) if record.is_file() else {}
    now = origins_of(study, made)

    def is_done(arm: str, seed: int) -> bool:
        found = rows.get(arm, {}).get(str(seed), [{"code": None}])
        whole = any("only" not in row for row in found)
        return whole and {row["code"] for row in found} == {now[arm]["code"]}

    return [(arm, seed) for seed in numbers for arm in chosen if not is_done(arm, seed)]


def run_cell(place: str, settings: str, out: str, *cell: str) -> None:
    """Make the rows of one arm and seed of the study at `place` (`module:name`) with `settings`
    (JSON); without arm and seed, the tables that the study has once.
    """
    study, arms, seeds = resolve_name(place), cell[:1], map(int, cell[1:])
    only = [name for name, table in study.tables.items() if (table.per == "run") == bool(cell)]
    chosen = from_dict(study.settings, json.loads(settings))
    run_study(study, chosen, arms, seeds, out, only, references=False)


def run_grid(
    places: dict[str, str], settings: dict[str, Any], cells: list[tuple[str, str, int]], jobs: int
) -> list[str]:
    """Run `cells` (study, arm, seed) with `settings`, `jobs` at a time, each in a process of its
    own, and then make what the studies `places` (name: `module:name`) have once; returns what
    failed. A finished cell is in the folder of its study at once; a failure ends no other cell.
    """
    call = "import sys; from studies.engine.grid import run_cell; run_cell(*sys.argv[1:])"
    failed = []

    def run(name: str, *cell: object) -> None:
        study, start = resolve_name(places[name]), time.monotonic()
        out = study.results(from_dict(study.settings, settings))
        given = [places[name], json.dumps(settings), out, *map(str, cell)]
        label = ":".join(map(str, [name, *(cell or ["summary"])]))
        process = subprocess.run([sys.executable, "-c", call, *given], env=environment(jobs))
        if process.returncode:
            failed.append(label)
        ended = f"{'failed' if process.returncode else 'done'} in"
        Progress().say(f"{label}: {ended} {duration(time.monotonic() - start)}")

    with ThreadPoolExecutor(jobs) as pool:  # after Ctrl-C, `map` cancels what has not begun
        list(pool.map(run, *zip(*cells, strict=True)))
    for name in places:
        run(name)
    return failed


def workflow(settings: dict[str, Any], cells: list[tuple[str, str, int]]) -> str:
    """A Snakefile that runs `cells` (study, arm, seed) with `settings` as jobs of a cluster. An
    empty file in `runs/grid` says that a job is done; another commit does all of them again.
    """
    return WORKFLOW.format(
        cells=json.dumps([":".join(map(str, cell)) for cell in cells], indent=4),
        settings=json.dumps(json.dumps(settings)),
        done=digest([cells, settings, commit()]),
        python=json.dumps(shlex.quote(sys.executable)),
    )
