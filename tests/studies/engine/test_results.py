"""Tables that grow: nothing is counted twice, nothing mixed, and two processes in one folder lose
no row of each other's.
"""

import sys
import threading
import time

import pandas as pd
import pytest

from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json, write_json
from studies import brain
from studies.brain import ablation
from studies.engine import results
from studies.engine.places import repository

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


def brain_rows(monkeypatch, out):
    study = sys.modules["studies.brain.study"]
    monkeypatch.setattr(study, "identity", lambda given: {"study": {}})
    rows = {arm: pd.DataFrame({"arm": [arm], "seed": [1]}) for arm in "ab"}
    return "readings.csv.gz", lambda arm: study._write(
        out,
        brain.Study(),
        {"readings": [rows[arm]], "measures": [], "history": []},
        pd.DataFrame({"subject": []}),
        {},
    )


def ablation_rows(monkeypatch, out):
    monkeypatch.setattr(ablation, "identity", lambda given: {"study": {}})
    return "ablation.csv", lambda arm: ablation._write(out, brain.Study(), {"arm": arm, "seed": 1})


@pytest.mark.parametrize("rows", [brain_rows, ablation_rows])
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


@pytest.mark.parametrize("name", ["brain", "ablation"])
def test_committed_results_go_on(name):
    """They were made with the weights of this repository, before a record said what a study
    read.
    """
    path = repository() / "results" / name / "study.json"
    record = read_json(path)
    results.same_study(path, {"study": record["study"], "inputs": {"cohort": "digest"}})


def test_the_brain_study_names_its_inputs(tmp_path, monkeypatch):
    from studies.engine.manifest import write_manifest

    study = sys.modules["studies.brain.study"]
    monkeypatch.setattr(study, "table_digest", lambda given: "people")
    found = []
    for text in ("one", "other"):
        for part in ("weights", "clip"):
            (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / "weights" / "file").write_text(text)
        write_manifest(tmp_path / "weights", {}, 0.0)
        write_manifest(tmp_path / "clip", {}, 0.0)
        found.append(
            study.identity(
                brain.Study(weights=str(tmp_path / "weights"), clip=str(tmp_path / "clip"))
            )
        )
    assert found[0]["study"] == found[1]["study"] and found[0]["inputs"]["cohort"] == "people"
    assert [
        name for name in found[0]["inputs"] if found[0]["inputs"][name] != found[1]["inputs"][name]
    ] == ["weights"]


@pytest.mark.parametrize(
    ("run", "arm"),
    [
        (brain.run_study, "robusted"),
        (brain.run_study, "bare"),
        (brain.run_ablation, "blunt"),
        (brain.run_ablation, "conditional"),
    ],
)
def test_an_arm_that_nobody_knows_is_refused_before_any_work(run, arm, monkeypatch, tmp_path):
    for module in ("study", "ablation"):
        monkeypatch.setattr(sys.modules[f"studies.brain.{module}"], "fit_judges", None)
        monkeypatch.setattr(sys.modules[f"studies.brain.{module}"], "identity", None, raising=False)
    with pytest.raises(SettingsError, match=f"arm '{arm}'"):
        run(brain.Study(), ["robust", arm], [1], tmp_path)
    assert not list(tmp_path.iterdir())
