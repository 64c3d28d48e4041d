"""The heart study on people in the released layout of M&Ms, as many as the release has: it runs to
its end.
"""

import os
from dataclasses import replace

import pandas as pd
import pytest

from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json
from studies.engine import cli
from studies.engine.running import run_study
from studies.engine.study import load_results
from studies.heart.arms import DEFAULT_ARMS, default_arms, summary
from studies.heart.data import FRACTIONS, HeartSettings, part, real_cohort
from studies.heart.phantom import PhantomSettings
from studies.heart.study import STUDY
from tests.studies.heart import layout
from tests.studies.heart.layout import write_mnms
from tests.studies.options import command_options

LIKE_MNMS = PhantomSettings(subjects=345, seed=5, heart_failure=0.55, missing=0.08, unlabelled=0.07)


@pytest.fixture(scope="module")
def real(tiny_heart_study, tmp_path_factory):
    """The tiny study, on as many people as M&Ms has, each of one slice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "LEVELS", (0.0,))
        root = write_mnms(tmp_path_factory.mktemp("mnms") / "OpenDataset", LIKE_MNMS)
    return replace(tiny_heart_study, cohort="mnms", data_dir=str(root.parent))


@pytest.mark.slow
def test_the_command_runs_through_on_a_cohort_of_the_real_size(real, runs, tmp_path, capsys):
    given = ["heart", *command_options(replace(real, n_min=4)), "--seeds", "1"]
    assert cli.main([*given, "--out", str(tmp_path / "four")]) == 0
    assert "without arm extra_real" in capsys.readouterr().err
    found = load_results(STUDY, tmp_path / "four")
    assert (
        set(found["margins"]["arm"])
        == set(default_arms(real))
        == set(DEFAULT_ARMS) - {"extra_real"}
    )
    assert read_json(tmp_path / "four" / "study.json")["people"] == "patients of M&Ms"
    people = found["subjects"].groupby("part")["subject"].nunique()
    assert people["test"] >= 50 and people["choice"] >= 20
    check_what_is_left_out(real, found)

    cuts = set(found["values"]["by"])
    assert "sex" in cuts and "all three" not in cuts and cuts == set(found["differences"]["by"])
    row = found["small_groups"].set_index("by").loc["all three"]
    assert row["group"] == "all subjects" and row["ill"] + row["healthy"] == people["test"]
    assert "of 18 groups have 4 subjects" in row["reason"]
    least = {n_min: summary(found, replace(real, n_min=n_min))["by"].unique() for n_min in (1, 50)}
    assert set(least[1]) == {"sex", "age", "bmi", "all three"}
    assert not len(least[50]), "no subgroup has as many: tables without a row"
    with pytest.raises(DataError, match="another study"):
        run_study(STUDY, replace(real, n_min=3), ["real"], [1], tmp_path / "four")


def check_what_is_left_out(study, found):
    used = pd.concat([part(study, name).load().table["subject"] for name in FRACTIONS])
    assert used.is_unique and len(used) + found["excluded"]["item"].nunique() == LIKE_MNMS.subjects
    assert set(found["excluded"]["reason"]) == {"no segmentation", "body-mass index unknown"}
    assert (
        len(found["frechet"]) == 2
        and found["frechet"]["n"].max() == found["subjects"]["part"].eq("test").sum() // 2
    )
    few = found["too_few"].set_index(["table", "item"])["reason"]
    assert (
        set(few["distances"].index) == {"sex", "bmi_class", "decade", "diagnosis"}
        and found["distances"].empty
    )
    assert "do not give two sets of 80" in few["frechet", "n"]


def test_an_arm_that_a_real_cohort_cannot_have_is_refused_at_once():
    settings = HeartSettings(cohort="mnms", data_dir="nowhere")
    with pytest.raises(SettingsError, match="extra_real.*no subjects beyond its parts"):
        run_study(STUDY, settings, ["real", "extra_real"], [1])


@pytest.mark.parametrize("n_min", [0, -1])
def test_a_least_number_below_one_is_refused_before_the_work(n_min):
    with pytest.raises(SettingsError, match=f"n_min is {n_min}"):
        HeartSettings(n_min=n_min)


def test_real_patients_have_a_folder_of_their_own():
    def name(**settings):
        return STUDY.results(HeartSettings(**settings)).name

    assert name(cohort="mnms") == "heart-mnms"
    assert name(cohort="mnms", classifier_subjects=50) == "heart-mnms-shared"
    assert name(cohort="mnms", guidance_scale=2.0) == "heart-mnms-guidance2"
    assert name(guidance_scale=2.0) == "heart-guidance2" and STUDY.results().name == "heart"


def test_a_file_that_was_changed_gives_another_key(tmp_path):
    path = tmp_path / "Testing" / "A" / "A_sa.nii.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"an image")
    settings, digests = HeartSettings(cohort="mnms", data_dir=str(tmp_path)), []
    for content, time in ((b"an image", None), (b"an image", 1), (b"another image", 1)):
        path.write_bytes(content)
        os.utime(path, None if time is None else (time, time))
        digests.append(real_cohort(settings).digest)
    (tmp_path / "table.csv").write_text("x")
    assert len({*digests, real_cohort(settings).digest}) == 4
