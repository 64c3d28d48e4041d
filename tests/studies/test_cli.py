"""The command line: what it prints, and with which status it ends."""

import subprocess
import sys

import pytest

from studies import doctor
from studies.engine.cli import main
from studies.engine.manifest import write_manifest


def test_mistake_is_one_line_and_status_two(house, capsys):
    assert main(["run", "--profile", "quik"]) == 2
    error = capsys.readouterr().err
    assert error == "fairlib: unknown profile 'quik'; known profiles: tiny\n"


def test_jobs_reach_the_run(house, capsys, monkeypatch):
    assert main(["run", "--profile", "tiny", "--jobs", "0"]) == 2
    assert capsys.readouterr().err.startswith("fairlib: jobs is 0; ")
    monkeypatch.setattr("studies.book.notebooks.run_profile", lambda *given: [given])
    assert (
        main(["run", "--profile", "tiny"])
        == main(["resume", "--profile", "tiny", "--jobs", "3"])
        == 0
    )
    assert capsys.readouterr().out == "('tiny', None, False, None)\n('tiny', None, False, 3)\n"


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["run", "--prfile", "tiny"], ["doctor", "--cohort", "x"]]
)
def test_misspelt_command_shows_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage: fairlib" in capsys.readouterr().err


def test_doctor_finds_whole_weights(house, capsys):
    (house / "weights" / "brain").mkdir()
    (house / "weights" / "brain" / "w.bin").write_bytes(b"abc")
    write_manifest(house / "weights" / "brain", {}, 0)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "weights: brain: 1 files, hashes match" in out and "torch: " in out and "device: " in out


def test_doctor_finds_changed_and_absent_weights(house, capsys):
    assert main(["doctor"]) == 1
    assert "`make base` trains them" in capsys.readouterr().out
    (house / "weights" / "brain").mkdir()
    (house / "weights" / "brain" / "w.bin").write_bytes(b"abc")
    write_manifest(house / "weights" / "brain", {}, 0)
    (house / "weights" / "brain" / "w.bin").write_bytes(b"abd")
    assert main(["doctor"]) == 1
    assert "w.bin: sha256" in capsys.readouterr().out


def test_doctor_counts_a_brats_folder(house):
    subject = house / "data" / "HGG" / "Brats18_TCIA01_1_1"
    subject.mkdir(parents=True)
    for name in ("t1", "seg"):
        (subject / f"{subject.name}_{name}.nii.gz").touch()
    lines, well = doctor.check_layout(str(house / "data"), "brats")
    assert not well
    counts = {line.split(": ")[1]: line.split(": ")[2] for line in lines}
    assert (
        counts["subjects of high grade (HGG/*/)"] == "1"
        and counts["scans (*.nii, *.nii.gz)"] == "2"
    )
    assert counts["name_mapping.csv"].startswith("none, expected in ")


@pytest.mark.parametrize(
    "arguments, trained",
    [([], "brain"), (["brain"], "brain"), (["heart"], "heart"), (["fundus"], "fundus")],
)
def test_base_trains(monkeypatch, arguments, trained):
    import types

    calls = []
    for name, module in {
        "brain": "studies.brain.base",
        "heart": "studies.heart.base",
        "fundus": "studies.fundus.base",
    }.items():
        trainer = types.ModuleType(module)
        trainer.main = lambda name=name: calls.append(name)
        monkeypatch.setitem(sys.modules, module, trainer)
    assert main(["base", *arguments]) == 0 and calls == [trained]


@pytest.mark.parametrize("holds, status", [([True, True], 0), ([True, False], 1)])
def test_report_prints_the_table_and_tells_whether_it_holds(
    monkeypatch, capsys, tmp_path, holds, status
):
    import pandas as pd

    for module, folder in (
        ("heart.report", "heart_results_folder"),
        ("fundus.study", "fundus_results_folder"),
        ("statistics", "statistics_folder"),
    ):
        # the other studies were not run
        monkeypatch.setattr(f"studies.{module}.{folder}", lambda: tmp_path)

    table = pd.DataFrame({"figure": ["a", "b"], "criterion": [0.03, 0.05], "met": holds})
    monkeypatch.setattr("studies.brain.report.many_images_folder", lambda: None)
    monkeypatch.setattr("studies.engine.study.criteria_of", lambda study: table)
    assert main(["report"]) == status
    assert capsys.readouterr().out.split("\n")[0].split() == ["figure", "criterion", "met"]


def test_help_needs_nothing_heavy():
    code = """import sys, studies.engine.cli
try: studies.engine.cli.main(["--help"])
except SystemExit: print(*sys.modules, file=sys.stderr)"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "doctor" in result.stdout and not {"torch", "pandas", "papermill"} & set(
        result.stderr.split()
    )
