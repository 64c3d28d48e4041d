"""The heart study on people in the released layout of M&Ms, as many as the release has: it runs to
its end.
"""

from dataclasses import replace
from functools import partial

import pandas as pd
import pytest

from fairlib.errors import SettingsError
from studies import heart
from studies.engine import cli
from studies.heart import phantom_files as heart_mnms
from studies.heart.phantom import HeartSettings, write_mnms
from studies.heart.settings import REAL_ARMS
from studies.heart.study import run_heart_study, write_downstream

LIKE_MNMS = HeartSettings(subjects=345, seed=5, heart_failure=0.55, missing=0.08, unlabelled=0.07)


@pytest.fixture(scope="module")
def real(tiny_heart_study, tmp_path_factory):
    """The tiny study, on as many people as M&Ms has, each of one slice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heart_mnms, "LEVELS", (0.0,))
        root = write_mnms(tmp_path_factory.mktemp("mnms") / "OpenDataset", LIKE_MNMS)
    return replace(tiny_heart_study, cohort="mnms", data_dir=str(root.parent))


@pytest.mark.slow
def test_the_command_runs_through_on_a_cohort_of_the_real_size(
    real, runs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        "studies.heart.HeartStudy", lambda cohort, data_dir, **_: replace(real, data_dir=data_dir)
    )
    monkeypatch.setattr("studies.heart.run_heart_study", partial(run_heart_study, replicates=10))
    given = [
        "heart",
        "--cohort",
        "mnms",
        "--data-dir",
        real.data_dir,
        "--seeds",
        "1",
        "--out",
        str(tmp_path),
    ]
    assert cli.main([*given, "--n-min", "4"]) == 0
    assert "without arm extra_real" in capsys.readouterr().err
    found = heart.load_heart_results(tmp_path)
    assert set(found["margins"]["arm"]) == set(REAL_ARMS) and "extra_real" not in REAL_ARMS
    people = found["people"].groupby("part")["subject"].nunique()
    assert people["test"] >= 50 and people["choice"] >= 20
    check_what_is_left_out(real, found)

    cuts = set(found["values"]["by"])
    assert "sex" in cuts and "all three" not in cuts and cuts == set(found["differences"]["by"])
    row = found["small_groups"].set_index("by").loc["all three"]
    assert row["group"] == "everybody" and row["ill"] + row["healthy"] == people["test"]
    assert "of 18 subgroups have 4 ill and 4 healthy" in row["reason"]
    assert set(cuts_at(tmp_path, found, 1)) == {"sex", "age", "bmi", "all three"}
    assert not len(cuts_at(tmp_path, found, 50)), "no subgroup has as many: tables without a row"


def cuts_at(folder, found, n_min):
    """The ways of cutting that the downstream tables keep with another least number of people."""
    write_downstream(folder, found["margins"], found["people"], 10, n_min)
    return heart.load_heart_results(folder)["values"]["by"].unique()


def check_what_is_left_out(study, found):
    parts = [
        heart.hearts(study, part).table["subject"]
        for part in ("train", "judges", "hold", "reference", "validation", "choice", "test")
    ]
    used = pd.concat(parts)
    assert used.is_unique and len(used) + found["excluded"]["item"].nunique() == LIKE_MNMS.subjects
    assert set(found["excluded"]["reason"]) == {"no segmentation", "body-mass index unknown"}
    assert (
        len(found["frechet"]) == 2
        and found["frechet"]["n"].max() == found["people"]["part"].eq("test").sum() // 2
    )
    few = found["too_few"].set_index(["table", "item"])["reason"]
    assert (
        set(few["distances"].index) == {"sex", "bmi_class", "decade", "diagnosis"}
        and found["distances"].empty
    )
    assert "do not give two sets of 80" in few["frechet", "n"]


def test_an_arm_that_a_real_cohort_cannot_have_is_refused_at_once():
    study = heart.HeartStudy(cohort="mnms", data_dir="nowhere")
    with pytest.raises(SettingsError, match="extra_real.*no people beyond its parts"):
        run_heart_study(study, ["real", "extra_real"], [1])


@pytest.mark.parametrize("n_min", [0, -1])
def test_a_least_number_below_one_is_refused_before_the_work(n_min):
    with pytest.raises(SettingsError, match=f"n_min {n_min}"):
        run_heart_study(heart.HeartStudy(weights="nowhere"), n_min=n_min)


def test_real_people_have_a_folder_of_their_own():
    assert heart.HeartStudy(cohort="mnms").name == "heart-mnms"
    assert heart.HeartStudy(cohort="mnms", classifier_people=50).name == "heart-mnms-shared"
    assert heart.HeartStudy(cohort="mnms", guidance_scale=2.0).name == "heart-mnms-guidance2"
    assert heart.HeartStudy(guidance_scale=2.0).name == "heart-guidance2"
