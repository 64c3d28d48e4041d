"""Tables that grow: nothing is counted twice, nothing mixed, and two processes in one folder lose
no row of each other's.
"""

import sys
import threading
import time

import pandas as pd
import pytest

from fairlib.errors import DataError
from fairlib.io import read_json, write_json
from studies.engine import results
from studies.engine.places import repository
from studies.fundus import FundusStudy
from studies.heart import HeartStudy

SLOWLY = 0.15  # seconds between reading a table and writing it


@pytest.fixture
def slow(monkeypatch):
    """Reading a table takes long enough for another to read it as well."""

    def read(path):
        found = whole(path)
        time.sleep(SLOWLY)
        return found

    whole = results.read_table
    monkeypatch.setattr(results, "read_table", read)


def fundus_rows(monkeypatch, out):
    study = sys.modules["studies.fundus.study"]
    monkeypatch.setattr(study, "_identity", lambda given: {"study": {}})
    monkeypatch.setattr(study, "people_table", lambda given: pd.DataFrame({"part": []}))
    monkeypatch.setattr(study, "rows_of", lambda given, arms: arms)
    monkeypatch.setattr(
        study,
        "raw_tables",
        lambda given, arm, seed: {"readings": pd.DataFrame({"arm": [arm], "seed": [seed]})},
    )
    monkeypatch.setattr(study, "write_summary", lambda *_: None)
    return "readings.csv.gz", lambda arm: study.run_fundus_study(
        FundusStudy(), [{"a": "plain", "b": "released"}[arm]], [1], out
    )


def heart_rows(monkeypatch, out):
    study = sys.modules["studies.heart.study"]
    monkeypatch.setattr(study, "_identity", lambda given: {"study": {}})
    monkeypatch.setattr(study.downstream, "people_of", lambda given: pd.DataFrame({"part": []}))
    monkeypatch.setattr(
        study.downstream,
        "train_arm",
        lambda given, arm, seed: pd.DataFrame({"part": ["test"], "image": [0], "margin": [0.5]}),
    )
    return "margins.csv.gz", lambda arm: study._train(HeartStudy(), [arm, arm], [1, 1], out)


@pytest.mark.parametrize("rows", [fundus_rows, heart_rows])
def test_two_that_write_at_the_same_time_keep_each_others_rows(rows, slow, monkeypatch, tmp_path):
    name, write = rows(monkeypatch, tmp_path)
    write("a")  # there is something to read
    threads = [threading.Thread(target=write, args=(arm,)) for arm in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results.read_table(tmp_path / name)) == 2
    assert len(read_json(tmp_path / "study.json")["runs"]) == 2


def test_results_of_other_weights_are_refused_and_records_of_before_are_not(tmp_path):
    path, identity = tmp_path / "study.json", {"study": {"images": 9}, "inputs": {"weights": "a"}}
    write_json(path, identity)
    results.same_study(path, identity)
    with pytest.raises(DataError, match=r"another study.*'inputs'"):
        results.same_study(path, identity | {"inputs": {"weights": "b"}})
    write_json(path, {"study": {"images": 9}})
    results.same_study(path, identity)
    with pytest.raises(DataError, match=r"another study.*'study'"):
        results.same_study(path, identity | {"study": {"images": 8}})


@pytest.mark.parametrize("name", ["heart", "heart-shared", "heart-guidance2", "fundus"])
def test_committed_results_go_on(name):
    """They were made with the weights of this repository, before a record said what a study
    read.
    """
    path = repository() / "results" / name / "study.json"
    record = read_json(path)
    results.same_study(path, {"study": record["study"], "inputs": {"cohort": "digest"}})


@pytest.mark.parametrize(("name", "study"), [("heart", HeartStudy()), ("fundus", FundusStudy())])
def test_a_study_of_hearts_or_fundi_names_its_people(name, study, monkeypatch, tmp_path):
    module = sys.modules[f"studies.{name}.study"]
    found = []
    for people in ("these", "those"):
        monkeypatch.setattr(module, "table_digest", lambda given, people=people: people)
        found.append(module._identity(study))
    write_json(tmp_path / "study.json", found[0])
    results.same_study(tmp_path / "study.json", found[0])
    with pytest.raises(DataError, match="'inputs'"):
        results.same_study(tmp_path / "study.json", found[1])


def test_the_tables_in_memory_count_an_arm_once(monkeypatch):
    study = sys.modules["studies.fundus.study"]
    monkeypatch.setattr(study, "RAW", ("readings",))
    monkeypatch.setattr(study, "rows_of", lambda given, arms: tuple(arms))
    monkeypatch.setattr(
        study,
        "raw_tables",
        lambda given, arm, seed: {"readings": pd.DataFrame({"arm": [arm], "seed": [seed]})},
    )
    for name in (
        "people_table",
        "figures_from",
        "people_from",
        "values_table",
        "differences_table",
        "excluded",
    ):
        monkeypatch.setattr(study, name, lambda *_: {"people": None})
    found = study.measured(FundusStudy(), ["plain", "dro", "plain"], [1, 1])["readings"]
    assert found["arm"].tolist() == ["plain", "dro"]
