"""The fundus study end to end in miniature, and what its keys are made of."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fairlib.cohorts.fairgenmed import parse_prompt
from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json
from fairlib.measures.distances import mmd
from studies import statistics
from studies.engine import cli, images
from studies.engine.criteria import criteria_of
from studies.engine.profiles import (
    known_profiles,
    load_profile,
    notebooks,
)
from studies.engine.running import run_study, same_study
from studies.engine.study import load_results, settings_of, tables_of
from studies.fundus.arms import generated
from studies.fundus.data import FUNDUS, FundusSettings, subjects
from studies.fundus.evaluators import attribute_classifier, read_images, task_classifier
from studies.fundus.measures import race_distances
from studies.fundus.phantom import PhantomSettings
from studies.fundus.study import STUDY
from tests.studies.fundus.layout import write_fairgenmed
from tests.studies.options import declared_defaults
from tests.studies.tracing import stages_traced

ARMS = ("plain", "released", "repaired")


@pytest.mark.slow
def test_every_stage_is_known_by_the_code_that_it_runs(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRLIB_RUNS", str(tmp_path))
    arms = ("repaired", "random", "inverse", "dro", "balanced")
    with stages_traced() as unseen:
        tables_of(STUDY, settings, arms)
    assert unseen == {}
    assert stages_traced.built == {
        *("draw_subjects", "encode_images", "fine_tune", "measure_probe", "generate", "figures"),
        *("fit_classifier", "read_images", "answer", "race_distances"),
    }


@pytest.mark.slow
def test_the_stage_of_real_patients_is_known_by_the_code_that_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRLIB_RUNS", str(tmp_path / "runs"))
    write_fairgenmed(tmp_path, PhantomSettings(subjects=24, seed=8))
    real = STUDY.settings(cohort="fairgenmed", data_dir=str(tmp_path))
    with stages_traced() as unseen:
        subjects(real, "train")
    assert unseen == {} and stages_traced.built == {"read_subjects"}


@pytest.mark.slow
def test_distances_are_those_of_the_public_measure(settings, runs):
    classifier = attribute_classifier(settings)
    parts = [subjects(settings, part) for part in ("requested", "reference")]
    found = [read_images(part, classifier) for part in parts]
    tables = [part.load().table[list(FUNDUS.strata)] for part in parts]
    table = race_distances(*found, *tables, 20, FUNDUS).load()
    x, y = (one.load().features for one in found)
    x, y = ((one - y.mean(0)) / y.std(0).clip(1e-3) for one in (x, y))
    rows, others = ((part["race"] == "Asian").to_numpy() for part in tables)
    assert (
        table["Asian"].iloc[0] == pytest.approx(mmd(x[rows], y[others], n_min=2), abs=1e-5)
        and len(table) == 21
    )


@pytest.mark.slow
def test_the_study_writes_what_the_report_reads(settings, runs, tmp_path, monkeypatch, capsys):
    out = run_study(STUDY, settings, ARMS, [1], tmp_path / "fundus")
    run_study(STUDY, settings, ["plain", "released"], [2], out)
    found = load_results(STUDY, out)
    runs_of = found["readings"].groupby("arm")["seed"].unique().map(list).to_dict()
    assert runs_of == {
        "base": [1, 2],
        "everyone": [1, 2],
        "plain": [1, 2],
        "real": [1, 2],
        "released": [1, 2],
        "repaired": [1],
    }
    assert (
        found["readings"].groupby(["arm", "seed"]).size().eq(24).all()
        and len(found["subjects"]) == 48
    )
    prompt = subjects(settings, "requested").load().table["prompt"][0]
    assert parse_prompt(prompt)["race"] == found["readings"]["race"][0]
    assert set(found["history"]["arm"]) == set(ARMS) and set(found["probe"]["arm"]) == {
        "base",
        "everyone",
        *ARMS,
    }
    assert set(
        zip(found["differences"]["arm"], found["differences"]["reference"], strict=True)
    ) == {
        ("released", "plain"),
        ("repaired", "plain"),
        ("repaired", "released"),
        ("plain", "base"),
        ("everyone", "plain"),
    }
    seeds = found["differences"].groupby(["arm", "reference"])["seeds"].first()
    assert seeds["released", "plain"] == 2 and seeds["repaired", "released"] == 1
    tables = {path.name: path.read_bytes() for path in out.glob("*.csv*")}
    again = run_study(STUDY, settings, ["plain"], [1], out)
    assert {path.name: path.read_bytes() for path in again.glob("*.csv*")} == tables, (
        "the same arm and seed give the same tables"
    )
    with pytest.raises(DataError, match="another study"):
        run_study(STUDY, replace(settings, images=12), ["plain"], [1], out)
    with pytest.raises(SettingsError, match="did you mean 'plain'"):
        run_study(STUDY, settings, ["plane"], [1], out)

    table = criteria_of(STUDY, out)
    assert table["figure"].str.contains("cup-to-disc error").sum() <= 5
    assert table["figure"].str.contains("less that of released").sum() >= 3
    assert set(table[table["arm"] == "released"]["evaluator"]) >= {"t over 2 seeds"}
    monkeypatch.setattr("studies.engine.study.repository", lambda: tmp_path)
    (tmp_path / "results").mkdir()
    out.rename(tmp_path / "results" / "fundus")
    assert cli.main(["report"]) in (0, 1)
    spoken = capsys.readouterr().out
    assert spoken.count("figure") == 1 and "gap over races" in spoken
    assert not statistics.STUDY.results().exists()


def test_references_come_first_and_one_of_them_can_be_left_out(settings):
    assert STUDY.arms_of(settings, ["plain"]) == ("real", "base", "everyone", "plain")
    without = replace(settings, everyone="")
    assert STUDY.arms_of(without, ["plain"]) == ("real", "base", "plain")


def test_results_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match="no results here"):
        load_results(STUDY, tmp_path)


@pytest.mark.slow
def test_the_classifier_of_real_patients_never_saw_those_it_is_tried_on(
    settings, runs, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        images,
        "fit_classifier",
        lambda reader, images, truth, settings: seen.append(images) or iter(()),
    )
    less = replace(settings, semantic_steps=2)
    task_classifier(less, subjects(less, "evaluators"), 9)
    assert torch.equal(seen[0], subjects(settings, "evaluators").load().stored[:24])


@pytest.mark.slow
def test_fairgenmed_runs_end_to_end(settings, runs, tmp_path):
    shares = {"white": 0.34, "black": 0.33, "hispanic": 0.5}
    write_fairgenmed(tmp_path / "data", PhantomSettings(subjects=240, seed=2, **shares))
    where = {"cohort": "fairgenmed", "data_dir": str(tmp_path / "data"), "everyone": ""}
    real = replace(
        settings, **where, train_subjects=40, images=30, reference_subjects=30, probe_per_group=1
    )
    out = run_study(STUDY, real, ["plain"], [1], tmp_path / "out")
    found = load_results(STUDY, out)
    assert set(found["readings"]["arm"]) == {"real", "base", "plain"}
    assert found["subjects"]["requested_cdr"].isna().all()
    assert "cdr error" not in set(found["values"]["measure"])
    assert not criteria_of(STUDY, out)["figure"].str.contains("cup-to-disc").any()
    assert generated("base", real, 1).load().images.shape == (30, 1, 128, 128)


def test_committed_results_can_be_continued():
    out = STUDY.results()
    settings = settings_of(STUDY, out)
    assert settings == STUDY.settings()
    same_study(out / "study.json", STUDY.identity(settings))
    assert "inputs" in read_json(out / "study.json")


def test_the_full_profile_of_the_notebook_is_the_long_run():
    name = "09_fairdiffusion"
    usual = declared_defaults(notebooks()[name])
    for profile in known_profiles():
        parameters = SimpleNamespace(**{**usual, **load_profile(profile).parameters(name)})
        settings = FundusSettings.from_parameters(parameters)
        assert STUDY.arms_of(settings, parameters.arms)
        assert (settings == FundusSettings()) == (profile == "full")
    other = FundusSettings.from_parameters(SimpleNamespace(**{**usual, "weights": "elsewhere"}))
    assert other.everyone == ""
