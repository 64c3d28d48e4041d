"""The statistics chapter from end to end in miniature: tables, report, command; parts do not depend
on each other's length.
"""

import dataclasses

import pandas as pd
import pytest

from fairlib.errors import DataError, SettingsError
from studies.engine import study
from studies.engine.cli import main
from studies.statistics import STUDY, StatisticsSettings
from studies.statistics import study as chapter
from studies.statistics.null_simulation import PUBLISHED, SWAP

TINY = StatisticsSettings(
    sizes=(50, 100),
    size_repeats=1,
    people=400,
    counts=(2, 3),
    equity_repeats=5,
    null_repeats=3,
    null_replicates=40,
    published=(100, 400),
    shrink=0.3,
    worst_repeats=6,
    worst_replicates=50,
    naive_repeats=3,
    rare=(5, 20),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return study.run_study(STUDY, TINY, out=tmp_path_factory.mktemp("statistics") / "out")


def test_tables_are_written_and_read(folder):
    tables = study.load_results(STUDY, folder)
    assert set(tables) == set(STUDY.tables) and all(len(table) for table in tables.values())
    assert set(tables["null"].world) == set(chapter.WORLDS) and (tables["null"].repeats == 3).all()
    assert tables["null"][tables["null"].test == PUBLISHED].replicates.tolist() == [100, 400]
    assert tables["worst"].groupby("metric").setting.nunique().tolist() == [8, 8]
    assert study.settings_of(STUDY, folder).seed == 2026


def test_same_seed_same_tables_and_each_part_has_its_own_generator(folder):
    again = study.tables_of(STUDY, dataclasses.replace(TINY, size_repeats=2))
    tables = study.load_results(STUDY, folder)
    for name in ("groups", "null", "worst", "rare"):
        pd.testing.assert_frame_equal(again[name].round(6), tables[name], check_dtype=False)


def test_report_has_every_criterion_of_the_chapter(folder):
    report = study.criteria_of(STUDY, folder)
    rates = report[report.metric_id == "false_positives"]
    assert len(report) == 2 * 5 + 16 and len(rates) == 10
    assert (report.met == report.estimate.between(report.criterion, report.upper)).all()
    tables = study.load_results(STUDY, folder)
    swap = tables["null"][(tables["null"].test == SWAP)].rejected
    assert rates[rates.figure.str.contains("swapped")].estimate.tolist() == swap.tolist()


def test_command_writes_and_prints(tmp_path, capsys):
    flags = []
    for name, value in dataclasses.asdict(TINY).items():
        values = value if isinstance(value, tuple) else (value,)
        flags += ["--" + name.replace("_", "-"), *map(str, values)]
    assert main(["statistics", "--out", str(tmp_path / "x"), *flags]) == 0
    assert capsys.readouterr().out.strip().endswith(str(tmp_path / "x"))
    settings = study.settings_of(STUDY, tmp_path / "x")
    assert settings.worst_repeats == TINY.worst_repeats and tuple(settings.rare) == TINY.rare
    assert (tmp_path / "x" / "null.csv").is_file()


def test_missing_tables_and_no_repeats_are_named(tmp_path):
    with pytest.raises(DataError, match="make them with `python -m studies statistics`"):
        study.load_results(STUDY, tmp_path)
    with pytest.raises(SettingsError, match="repeats of 0"):
        StatisticsSettings(worst_repeats=0)


def test_committed_results_can_be_continued():
    folder = STUDY.results()
    study.same_study(folder / "study.json", STUDY.identity(study.settings_of(STUDY, folder)))
    assert set(study.load_results(STUDY)) == set(STUDY.tables)
