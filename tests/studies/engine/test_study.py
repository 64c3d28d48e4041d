"""A study as data: one entry makes a new arm, table or cohort; its tables in memory and on disk."""

import dataclasses

import pandas as pd
import pytest

from fairlib.errors import DataError
from fairlib.io import read_json
from studies.engine.running import run_study
from studies.engine.study import (
    Arm,
    Source,
    Table,
    load_results,
    read_tables,
    release_folder,
    results_of,
    settings_of,
    tables_of,
)
from tests.studies.engine.toy import ARMS, CALLS, STUDY, Settings, cohort, draw, read

pytestmark = pytest.mark.usefixtures("fresh")


def test_one_entry_makes_an_arm_a_table_and_a_cohort(tmp_path):
    """What a newcomer adds is a function and a line."""
    more = dataclasses.replace(
        STUDY,
        arms={
            **ARMS,
            "ten": Arm(
                lambda settings, seed: draw(settings.count, 10, seed), "steps of ten", "sampling"
            ),
        },
        tables={
            **STUDY.tables,
            "largest": Table(
                lambda tables, s: tables["readings"].groupby("arm")["value"].max().reset_index(),
                "summary",
            ),
        },
        sources={
            **STUDY.sources,
            "few": Source(lambda s: cohort(1), lambda s: cohort(1).digest, "patients"),
        },
    )
    out = run_study(more, Settings(cohort="few"), ["ten"], [0], tmp_path / "out")
    tables = load_results(more, out)
    assert dict(tables["largest"].itertuples(index=False)) == {"base": 0, "ten": 20}
    assert read_json(out / "study.json")["people"] == "patients"


def test_a_table_can_be_left_out_by_arm_and_by_setting():
    chosen = {
        "readings": dataclasses.replace(STUDY.tables["readings"], arms=lambda arm: arm != "base"),
        "people": dataclasses.replace(
            STUDY.tables["people"], when=lambda settings: settings.count > 9
        ),
    }
    found = tables_of(dataclasses.replace(STUDY, tables=chosen), Settings())
    assert set(found) == {"readings"} and set(found["readings"]["arm"]) == {"one"}


def test_memory_and_disk_hold_the_same(tmp_path):
    out = run_study(STUDY, Settings(), None, None, tmp_path / "out")
    for name, table in tables_of(STUDY, Settings(), None, STUDY.seeds).items():
        pd.testing.assert_frame_equal(table, read_tables(STUDY, out)[name])


def test_no_results_say_how_to_make_them(tmp_path):
    with pytest.raises(DataError, match="python -m studies toy"):
        load_results(STUDY, tmp_path)


def test_a_chapter_of_a_study_without_images_shows_stored_rows_or_makes_some(tmp_path, monkeypatch):
    monkeypatch.setattr("studies.engine.study.repository", lambda: tmp_path)
    run_study(STUDY, Settings(), ["two"], [1, 2])
    made = len(CALLS)
    tables, images, seed = results_of(STUDY, Settings(), "stored", ["one"], [7, 8])
    assert set(tables["readings"].arm) == {"base", "two"} and images == {} and seed == 1
    assert len(CALLS) == made, "stored rows need no run"
    tables, images, seed = results_of(STUDY, Settings(), "live", ["one"], [7, 8])
    assert set(tables["readings"].arm) == {"base", "one"} and images == {} and seed == 7
    assert set(tables["readings"].seed) == {7, 8} and len(CALLS) == made + 4
    with pytest.raises(DataError, match="of cohort 'numbers', not 'patients'; set runs = 'live'"):
        results_of(STUDY, Settings("patients"), "stored", ["one"], 1)


def test_settings_are_read_back(tmp_path):
    out = run_study(STUDY, Settings(count=4), ["one"], [1], tmp_path / "out")
    assert settings_of(STUDY, out) == Settings(count=4)


def test_where_things_lie_is_no_part_of_the_identity():
    assert STUDY.identity(Settings(data_dir="/a")) == STUDY.identity(Settings(data_dir="/b"))


def test_a_release_is_known_by_the_files_that_match(tmp_path):
    settings = dataclasses.replace(Settings(), data_dir=str(tmp_path))
    (tmp_path / "part").mkdir()
    for name in ("table.csv", "part/scan.nii", "notes.txt"):
        (tmp_path / name).write_text(name)

    def found(*patterns):
        return release_folder(settings, "table.csv", patterns, read)

    first = found("*.csv", "**/*.nii")
    assert first.folder == tmp_path and first.reader is read
    (tmp_path / "notes.txt").write_text("no part of the release")
    assert found("**/*.nii", "*.csv").digest == first.digest
    (tmp_path / "part" / "scan.nii").write_text("another scan")
    assert found("*.csv", "**/*.nii").digest != first.digest
    with pytest.raises(DataError, match="cohort 'numbers' needs data_dir, the folder that holds t"):
        release_folder(Settings(), "table.csv", ("*.csv",), read)
