"""What the heart study does with ACDC, which states neither sex nor age; and pathology codes that a
user maps.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json
from fairlib.measures.dice import dice, mean_dice
from studies.engine import cli
from studies.engine.criteria import criteria_of
from studies.engine.running import run_study
from studies.engine.study import load_results
from studies.heart.arms import DEFAULT_ARMS, default_arms
from studies.heart.data import HeartSettings, part, real_cohort
from studies.heart.measures import subgroups
from studies.heart.phantom import PhantomSettings, table_of
from studies.heart.study import STUDY
from tests.fairlib.cohorts.test_acdc import write_patient
from tests.studies.heart.layout import TABLE, write_mnms
from tests.studies.options import command_options

GROUPS = ("NOR", "DCM", "MINF")
REASON = "ACDC states neither sex nor age"


@pytest.fixture(scope="module")
def acdc(tiny_heart_study, tmp_path_factory):
    """The tiny study on nine patients of each of three groups, each of one heart."""
    root = tmp_path_factory.mktemp("acdc")
    for number in range(27):
        folder = root / ("training", "testing")[number % 2] / f"patient{number:03d}"
        write_patient(folder, number, GROUPS[number % 3])
    return replace(tiny_heart_study, cohort="acdc", data_dir=str(root))


def test_the_command_segments_acdc_and_says_why_there_is_no_more(acdc, runs, tmp_path, capsys):
    given = ["heart", *command_options(acdc), "--out", str(tmp_path / "out")]
    assert cli.main(given) == 0
    assert f"without arms: {REASON}" in capsys.readouterr().err
    found = load_results(STUDY, tmp_path / "out")
    assert set(found) == {"excluded", "segmented"} and found["excluded"].empty
    assert read_json(tmp_path / "out" / "study.json")["people"] == "patients of ACDC"
    assert criteria_of(STUDY, tmp_path / "out").empty
    table = found["segmented"].set_index(["attribute", "group"])
    assert set(found["segmented"]["attribute"]) == {
        *("all", "bmi_class", "diagnosis", "bmi_class, diagnosis")
    }
    people = part(acdc, "test").load().table
    assert table.loc[("diagnosis", "other or unknown"), "subjects"] > 0
    assert table.loc[("diagnosis", "healthy"), "subjects"] == (people["pathology"] == "NOR").sum()
    fitted_on = part(acdc, "evaluators").load().table["subject"]
    assert not set(fitted_on) & set(people["subject"]) and len(fitted_on) + len(people) == 27


def test_the_table_is_the_dice_of_the_masks(acdc, runs, monkeypatch):
    from studies.heart import measures

    hearts = part(acdc, "test").load()
    wrong = hearts.masks.clone()
    wrong[:, :, :32] = 0
    read = type("Read", (), {"load": lambda self: self})()
    read.table, read.requested, read.segmented = hearts.table, hearts.masks, wrong
    monkeypatch.setattr(measures, "evaluate", lambda *_: read)
    table = measures.segmented(acdc)
    assert table["mean"].iloc[0] == pytest.approx(mean_dice(dice(hearts.masks, wrong)))
    monkeypatch.setattr(read, "segmented", hearts.masks)
    assert measures.segmented(acdc)["mean"].tolist() == [1.0] * len(table)


def test_subgroups_are_those_that_the_table_can_tell():
    table = table_of(PhantomSettings(subjects=12), "one")
    whole, less = subgroups(table), subgroups(table.drop(columns=["sex", "age", "decade"]))
    assert set(less) == {"bmi_class", "diagnosis", "bmi_class, diagnosis"}
    assert all(np.array_equal(less[name], whole[name]) for name in less)
    assert set(whole) - set(less) == {"sex", "age", "sex, diagnosis"}


def test_arms_and_chapters_on_acdc_are_refused_in_one_sentence():
    settings = HeartSettings(cohort="acdc", data_dir="nowhere")
    assert default_arms(settings) == () and STUDY.results(settings).name == "heart-acdc"
    for arm in DEFAULT_ARMS:
        with pytest.raises(SettingsError, match=f"^arm '{arm}': {REASON}"):
            run_study(STUDY, settings, [arm], [1])
    parameters = type("Parameters", (), {"cohort": "acdc"})
    with pytest.raises(SettingsError, match=f"^{REASON}.*studies heart --cohort acdc"):
        HeartSettings.from_parameters(parameters)
    with pytest.raises(DataError, match="part 'heldout': this cohort has evaluators, test and"):
        part(settings, "heldout")
    with pytest.raises(DataError, match="cohort 'acdc' needs data_dir, the folder that holds"):
        part(replace(settings, data_dir=""), "test")


def test_a_pathology_code_of_ones_own_can_be_mapped(tmp_path, runs, monkeypatch):
    root = write_mnms(
        tmp_path / "OpenDataset", PhantomSettings(subjects=6, missing=0, unlabelled=0)
    )
    path = root / TABLE
    table = pd.read_csv(path, keep_default_na=False)
    table.loc[0, "Pathology"] = "TRI"
    path.write_text(table.to_csv(index=False))
    plain = HeartSettings(cohort="mnms", data_dir=str(tmp_path))
    mapped = replace(plain, diagnoses={"TRI": "healthy"})
    code = table["External code"][0]
    before, after = (real_cohort(one).load() for one in (plain, mapped))
    assert (
        before.excluded.set_index("item").loc[code, "reason"] == "neither healthy nor heart failure"
    )
    assert after.table.set_index("subject").loc[code, "diagnosis"] == "healthy"
    assert set(after.table["subject"]) == {*before.table["subject"], code}
    assert real_cohort(mapped) == real_cohort(replace(mapped)), "a release is read once"
    assert real_cohort(mapped).identity != real_cohort(plain).identity
    given = []
    monkeypatch.setattr("studies.engine.running.run_study", lambda *all: given.append(all[1]))
    assert cli.main(["heart", "--cohort", "mnms", "--diagnoses", '{"TRI": null}']) == 0
    assert given[0].diagnoses == {"TRI": None}
    with pytest.raises(SettingsError, match="diagnoses\\['TRI'\\] is 'ill'; expected 'healthy'"):
        HeartSettings(diagnoses={"TRI": "ill"})
    assert cli.main(["heart", "--diagnoses", '["TRI"]']) == 2
