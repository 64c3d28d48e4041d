"""The command line: what it prints, and with which status it ends."""

import dataclasses
import subprocess
import sys

import pytest

from studies.bases import RECIPES
from studies.engine.cli import BASES, main, study_of


def test_mistake_is_one_line_and_status_two(house, capsys):
    assert main(["run", "--profile", "quik"]) == 2
    error = capsys.readouterr().err
    assert error == "studies: unknown profile 'quik'; known profiles: tiny\n"


def test_jobs_reach_the_run(house, capsys, monkeypatch):
    assert main(["run", "--profile", "tiny", "--jobs", "0"]) == 2
    assert capsys.readouterr().err.startswith("studies: jobs is 0; ")
    monkeypatch.setattr("studies.book.notebooks.run_profile", lambda *given: [given])
    assert (
        main(["run", "--profile", "tiny"])
        == main(["resume", "--profile", "tiny", "--jobs", "3"])
        == 0
    )
    assert capsys.readouterr().out == "('tiny', None, False, None)\n('tiny', None, False, 3)\n"


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["run", "--prfile", "tiny"], ["base", "lung"]]
)
def test_misspelt_command_shows_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage: studies" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, trained",
    [([], "brain"), *(([name], name) for name in BASES)],
)
def test_base_trains(monkeypatch, arguments, trained):
    assert set(BASES) == set(RECIPES)
    calls = []
    for name in BASES:
        monkeypatch.setitem(RECIPES, name, lambda name=name: calls.append(name))
    assert main(["base", *arguments]) == 0 and calls == [trained]


def test_an_interrupt_is_one_line_and_status_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("studies.book.notebooks.run_profile", interrupted)
    assert main(["run"]) == 130
    error = "studies: interrupted; run the same command again to resume\n"
    assert capsys.readouterr().err == error


def test_a_tilde_in_a_setting_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    runs = []
    monkeypatch.setattr("studies.engine.running.run_study", lambda *given: runs.append(given))
    assert main(["heart", "--data-dir", "~/MnM", "--out", "~/out"]) == 0
    [(_, settings, _, _, out, _)] = runs
    assert settings.data_dir == f"{tmp_path}/MnM" and out == f"{tmp_path}/out"
    given = []
    monkeypatch.setattr("studies.engine.grid.missing", lambda *o: given.append(o[1]) or [])
    assert main(["grid", "heart", "--settings", '{"data_dir": "~/MnM"}', "--list"]) == 0
    assert given[0].data_dir == f"{tmp_path}/MnM"


@pytest.mark.parametrize(("met", "status"), [([True, None], 0), ([True, False], 1)])
def test_report_prints_every_folder_and_tells_whether_all_is_met(monkeypatch, capsys, met, status):
    import pandas as pd

    from fairlib.measures.intervals import Interval
    from studies.engine.criteria import Criterion, Rule, criteria_table

    row = Criterion("gap", "gap", 0.03, Rule.AT_MOST).row("arm", "eye", Interval(0.02, 0.0, 0.1), 5)
    table = criteria_table([row, row]).assign(met=pd.Series(met, dtype=object))
    table.attrs["outdated"] = {"base": [1, 2], "one": [1]}
    monkeypatch.setattr("studies.engine.cli.study_of", lambda name: name)
    monkeypatch.setattr("studies.engine.criteria.reports", lambda studies: {"brain": table})
    assert main(["report"]) == status
    out = capsys.readouterr().out
    assert out.startswith("brain\n") and "0.020 (0.000 to 0.100)" in out
    assert "other code made than its latest rows: base, seeds 1 2; one, seeds 1\n" in out


def test_every_setting_of_a_study_is_an_option(capsys):
    with pytest.raises(SystemExit):
        main(["fundus", "--help"])
    words = capsys.readouterr().out
    settings = study_of("fundus").settings
    for field in dataclasses.fields(settings):
        assert f"--{field.name.replace('_', '-')}" in words
    assert "--arms" in words and "plain" in words


def test_a_setting_reaches_the_study(monkeypatch, capsys):
    given = []
    monkeypatch.setattr("studies.engine.running.run_study", lambda *a: given.append(a) or "out")
    assert (
        main(["fundus", "--steps", "7", "--arms", "plain", "--seeds", "3", "--only", "history"])
        == 0
    )
    study, settings, arms, seeds, out, only = given[0]
    assert (settings.steps, arms, seeds, out, only) == (7, ["plain"], [3], None, ["history"])


def test_help_needs_nothing_heavy():
    code = """import sys, studies.engine.cli
try: studies.engine.cli.main(["--help"])
except SystemExit: print(*sys.modules, file=sys.stderr)"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "report" in result.stdout and not {"torch", "pandas", "papermill"} & set(
        result.stderr.split()
    )
