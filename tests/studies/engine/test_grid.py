"""Arms and seeds of several studies: what is left, here and on a cluster."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from fairlib.io import read_json
from studies.engine import cli
from studies.engine.running import run_study
from studies.engine.study import load_results
from tests.studies.engine.toy import CALLS, GRID, Settings

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """`python -m studies grid ...` with the toy study of this file; results lie in `tmp_path`."""
    monkeypatch.setattr(cli, "STUDIES", {"toy": ("tests.studies.engine.toy:GRID", "")})
    monkeypatch.setattr("studies.engine.study.repository", lambda: tmp_path)
    return lambda *options: cli.main(["grid", *options])


@pytest.mark.slow
def test_a_grid_goes_on_after_a_failure_and_resumes(grid, tmp_path, capfd):
    assert grid("toy::1", "--jobs", "2", "--settings", '{"count": 4}') == 1
    error = capfd.readouterr().err
    assert error.endswith("failed: toy:bad:1\n") and "no images at seed 1" in error
    out = tmp_path / "results" / "toy"
    tables = load_results(GRID, out)
    assert tables["readings"]["value"].tolist() == [1, 2, 3, 4]
    assert len(tables["people"]) == 4 and tables["means"]["value"].tolist() == [2.5]
    assert set(read_json(out / "study.json")["rows"]) == {"one"}
    assert grid("toy::1", "--list", "--settings", '{"count": 4}') == 0
    assert capfd.readouterr().out == "toy:bad:1\n"


def test_a_grid_lists_what_is_left_and_reads_the_list(grid, tmp_path, capsys, monkeypatch):
    run_study(GRID, Settings(), ["one"], [1])
    assert grid("toy", "toy:one", "--list") == 0
    left = capsys.readouterr().out
    assert left == "toy:bad:1\ntoy:bad:2\ntoy:one:2\n"
    (tmp_path / "cells").write_text(left)
    given = []
    monkeypatch.setattr(
        "studies.engine.grid.run_grid", lambda *options: given.append(options) or []
    )
    assert grid(f"@{tmp_path / 'cells'}", "--jobs", "3", "--device", "meta") == 0
    assert given[0][2:] == ([("toy", "bad", 1), ("toy", "bad", 2), ("toy", "one", 2)], 3)
    assert os.environ["FAIRLIB_DEVICE"] == "meta"


def test_a_grid_is_exported_as_a_workflow_of_what_is_left(grid, tmp_path, monkeypatch):
    """Snakemake reads it, where it is installed; without it, Python stands in for its rules."""
    run_study(GRID, Settings(count=3), ["one"], [1])
    path, settings = tmp_path / "Snakefile", '{"count": 3}'
    assert grid("toy", "toy:one", "--snakemake", str(path), "--settings", settings) == 0
    head, rules = path.read_text().split("\nrule all:")
    names = {}
    exec(head, names)
    assert names["CELLS"] == ["toy:bad:1", "toy:bad:2", "toy:one:2"]
    assert shlex.split(names["PYTHON"]) == [sys.executable]
    [shell] = re.findall(r'shell: "(.*)"', rules)
    quoted = re.sub(r"{(?:wildcards|params)\.(\w+)(?::q)?}", r"{\1}", shell)
    text = shlex.quote(names["SETTINGS"])
    command = shlex.split(quoted.format(cell="toy:one:2", settings=text, python=names["PYTHON"]))
    assert command[:3] == [sys.executable, "-m", "studies"]
    made = []
    monkeypatch.setattr("studies.engine.grid.run_grid", lambda *options: made.append(options) or [])
    assert cli.main(command[3:]) == 0
    assert made == [
        ({"toy": "tests.studies.engine.toy:GRID"}, {"count": 3}, [("toy", "one", 2)], 1)
    ]
    if snakemake := shutil.which("snakemake"):
        done = subprocess.run(
            [snakemake, "-n", "-s", path], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert re.search(r"^cell +3$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["tyo"], "did you mean 'toy'"),
        (["toy:oen"], "did you mean 'one'"),
        (["toy:one:1-3"], "give seeds as 1,2,3"),
        (["toy", "--jobs", "0"], "jobs is 0"),
        (["toy", "--settings", '{"cuont": 3}'], "did you mean 'count'"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_before_any_runs(grid, capsys, options, message):
    assert grid(*options) == 2 and message in capsys.readouterr().err and not CALLS
