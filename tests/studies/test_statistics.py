"""The statistics chapter from end to end in miniature: tables, report, command; parts do not depend
on each other's length.
"""

import dataclasses

import pandas as pd
import pytest

from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json
from studies import statistics
from studies.engine.cli import main
from studies.null_simulation import PUBLISHED, SWAP
from studies.statistics import (
    SMOKE,
    TABLES,
    StatisticsSettings,
    load_statistics,
    measured,
    run_statistics,
    statistics_report,
)

TINY = dataclasses.replace(
    SMOKE, null_repeats=3, null_replicates=40, worst_repeats=6, naive_repeats=3, size_repeats=1
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run_statistics(TINY, tmp_path_factory.mktemp("statistics") / "out")


def test_tables_are_written_and_read(folder):
    tables = load_statistics(folder)
    assert set(tables) == set(TABLES) and all(len(table) for table in tables.values())
    assert (
        set(tables["null"].world) == set(statistics.WORLDS) and (tables["null"].repeats == 3).all()
    )
    assert tables["null"][tables["null"].test == PUBLISHED].replicates.tolist() == [100, 400]
    assert tables["worst"].groupby("metric").setting.nunique().tolist() == [8, 8]
    study = read_json(folder / "study.json")
    assert (
        study["settings"]["seed"] == 2026 and study["people"] == "synthetic" and study["packages"]
    )


def test_same_seed_same_tables_and_each_part_has_its_own_generator(folder):
    again = measured(dataclasses.replace(TINY, size_repeats=2))
    tables = load_statistics(folder)
    for name in ("groups", "null", "worst", "rare"):
        pd.testing.assert_frame_equal(again[name].round(6), tables[name], check_dtype=False)


def test_report_holds_every_bound_of_the_chapter(folder):
    report = statistics_report(load_statistics(folder))
    assert len(report) == 2 * 5 + 16 and report.figure.str.startswith("false positives").sum() == 10
    assert (
        report.holds == report.value.between(report.least, report.most)
    ).all() and not report.certain.any()
    tables = load_statistics(folder)
    swap = tables["null"][(tables["null"].test == SWAP)].rejected
    assert report[report.figure.str.contains("swapped")].value.tolist() == swap.tolist()


def test_command_writes_and_prints(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(statistics, "run_statistics", lambda out=None: run_statistics(TINY, out))
    assert main(["statistics", "--out", str(tmp_path / "x")]) == 0
    assert (
        capsys.readouterr().out.split("\n")[0].split()[:2] == ["figure", "setting"]
        and (tmp_path / "x" / "null.csv").is_file()
    )


def test_missing_tables_and_no_repeats_are_named(tmp_path):
    with pytest.raises(
        DataError, match="no distances.csv; make the tables with `python -m studies statistics`"
    ):
        load_statistics(tmp_path)
    with pytest.raises(SettingsError, match="repeats of 0"):
        statistics.worst(StatisticsSettings(worst_repeats=0))
