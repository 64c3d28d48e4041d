"""Running a study: nothing is lost, mixed or made twice, and every row says what made it."""

import dataclasses
import threading
import time

import pytest

from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json, write_json
from studies.engine import running
from studies.engine.criteria import criteria_of
from studies.engine.running import run_study
from studies.engine.study import Table, load_results
from tests.studies.engine.toy import CALLS, STUDY, Settings, cohort, readings

pytestmark = pytest.mark.usefixtures("fresh")


def test_tables_hold_references_and_arms_in_order(tmp_path):
    out = run_study(STUDY, Settings(), ["two", "one", "two"], [2, 1], tmp_path / "out")
    table = load_results(STUDY, out)
    pairs = list(
        table["readings"][["seed", "arm"]].drop_duplicates().itertuples(index=False, name=None)
    )
    assert pairs == [(1, "base"), (1, "one"), (1, "two"), (2, "base"), (2, "one"), (2, "two")]
    assert table["readings"].query("arm == 'two' and seed == 2")["value"].tolist() == [2, 4, 6]
    assert table["people"]["person"].tolist() == [0, 1, 2]
    assert dict(table["means"].itertuples(index=False)) == {"base": 1.5, "one": 2.5, "two": 3.5}
    assert read_json(out / "study.json")["runs"] == {"base": [1, 2], "one": [1, 2], "two": [1, 2]}


def test_what_is_there_is_kept_and_nothing_is_computed_twice(tmp_path):
    run_study(STUDY, Settings(), ["one"], [1], tmp_path / "out")
    first = len(CALLS)
    run_study(STUDY, Settings(), ["two"], [1], tmp_path / "out")
    table = load_results(STUDY, tmp_path / "out")["readings"]
    assert (
        first == 2
        and len(CALLS) == 3
        and set(table["arm"]) == {"base", "one", "two"}
        and len(table) == 9
    )


def test_two_that_write_at_the_same_time_keep_each_others_rows(tmp_path, monkeypatch):
    """Reading a table takes long enough for another process to read it as well."""
    run_study(STUDY, Settings(), ["one"], [1], tmp_path / "out")
    read_table = running.read_table
    monkeypatch.setattr(running, "read_table", lambda path: (time.sleep(0.05), read_table(path))[1])
    threads = [
        threading.Thread(target=run_study, args=(STUDY, Settings(), [arm], [2], tmp_path / "out"))
        for arm in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = read_json(tmp_path / "out" / "study.json")["runs"]
    assert runs == {"base": [1, 2], "one": [1, 2], "two": [2]}
    assert len(load_results(STUDY, tmp_path / "out")["readings"]) == 15


def test_settings_that_are_not_json_are_read_back_as_the_same_study(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Several(Settings):
        sizes: tuple[int, ...] = (1, 2)

    study = dataclasses.replace(STUDY, settings=Several)
    out = run_study(study, Several(), ["one"], [1], tmp_path / "out")
    run_study(study, Several(), ["two"], [1], out)


def test_another_study_is_refused(tmp_path):
    out = run_study(STUDY, Settings(), ["one"], [1], tmp_path / "out")
    with pytest.raises(DataError, match="another study.*'study'"):
        run_study(STUDY, Settings(count=4), ["one"], [1], out)
    record = read_json(out / "study.json")
    write_json(out / "study.json", record | {"inputs": {"cohort": "other"}})
    with pytest.raises(DataError, match="'inputs'"):
        run_study(STUDY, Settings(), ["one"], [1], out)
    del record["inputs"]  # as older records are
    write_json(out / "study.json", record)
    run_study(STUDY, Settings(), ["one"], [1], out)


@pytest.mark.parametrize(
    ("arms", "only", "message"),
    [(["tow"], None, "did you mean 'two'"), (None, ["reading"], "'readings'")],
)
def test_unknown_names_are_refused_at_once(tmp_path, arms, only, message):
    with pytest.raises(SettingsError, match=message):
        run_study(STUDY, Settings(), arms, [1], tmp_path / "out", only)
    assert not CALLS


def test_references_can_be_left_out(tmp_path):
    out = run_study(STUDY, Settings(), ["two"], [1], tmp_path, references=False)
    assert set(load_results(STUDY, out)["readings"]["arm"]) == {"two"}


def test_every_arm_and_seed_says_what_made_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "commit", lambda: "abc")
    out = run_study(STUDY, Settings(), ["one"], [1], tmp_path)
    first = read_json(out / "study.json")
    [row] = first["rows"]["one"]["1"]
    assert (row["commit"], row["clean"]) == ("abc", True) and len(row["code"]) == 12
    assert row["cohort"] == cohort(3).digest
    assert [row] != first["rows"]["base"]["1"], "an arm is part of the code of its rows"
    monkeypatch.setattr(running, "commit", lambda: "def+")
    run_study(STUDY, Settings(), ["one"], [2], out, references=False)
    rows = read_json(out / "study.json")["rows"]
    assert rows["base"] == first["rows"]["base"] and rows["one"]["1"] == [row]
    assert rows["one"]["2"] == [row | {"commit": "def", "clean": False}]
    assert criteria_of(STUDY, out).attrs["outdated"] == {}, "another commit, the same code"


def test_a_table_made_again_alone_adds_to_what_made_the_rows(tmp_path, monkeypatch):
    two = dataclasses.replace(
        STUDY,
        tables={**STUDY.tables, "counts": Table(lambda run: readings(run).count().to_frame())},
    )
    for name, only in (("abc", None), ("def", ["counts"]), ("def", ["counts"])):
        monkeypatch.setattr(running, "commit", lambda name=name: name)
        run_study(two, Settings(), ["one"], [1], tmp_path, only)
    made = [row["commit"] for row in read_json(tmp_path / "study.json")["rows"]["one"]["1"]]
    assert made == ["abc", "def"]
