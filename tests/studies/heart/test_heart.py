"""The heart study: who is in which part, what is asked, and what its tables say where the answer is
known.
"""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.cohorts.cardiac import prompt_of
from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import write_json
from fairlib.settings import to_dict
from studies.engine import cli, repository, stages_folder
from studies.engine.running import run_study, same_study
from studies.engine.stage import write_manifest
from studies.engine.study import Arm, Run, load_results, settings_of
from studies.heart import arms, report
from studies.heart.arms import (
    ARMS,
    FLIPPED,
    WAYS,
    WORDS,
    best_synthetic,
    compared,
    excluded,
    flipped,
    generated,
    ppv,
    preview,
    requests,
    subsampled,
)
from studies.heart.data import HeartSettings, part, part_settings, trained_on
from studies.heart.measures import BMI_STEP, prompt_or_mask, recovered
from studies.heart.phantom import PhantomSettings, draw_hearts
from studies.heart.report import in_words, worst_difference
from studies.heart.study import STUDY, heart_report
from tests.studies.options import command_options

PATHS = ("weights", "controlnet", "data_dir")
TRAINED_ON = PhantomSettings(subjects=48, seed=101)  # as the weights of the tiny study say


@pytest.fixture(scope="module")
def study(tiny_heart_study):
    return tiny_heart_study


# ---- who is in which part
# ------------------------------------------------------------------------------------------


def test_no_two_parts_draw_the_same_people():
    parts = part_settings(HeartSettings(), PhantomSettings(subjects=6000, seed=101))
    assert len({settings.seed for settings in parts.values()}) == len(parts)
    assert parts["train"] == PhantomSettings(subjects=6000, seed=101)
    assert vars(parts["extra"]) == {
        **vars(parts["train"]),
        "seed": parts["extra"].seed,
        "subjects": HeartSettings().synthetic,
    }
    assert parts["validation"].heart_failure == 0.10 and parts["test"].female_heart_failure == 0.5
    with pytest.raises(SettingsError, match="part 'test' draws too"):
        part_settings(HeartSettings(), PhantomSettings(seed=parts["test"].seed))


@pytest.mark.slow
def test_the_training_cohort_is_exactly_what_the_generator_saw(study, runs):
    images, masks, table = draw_hearts(TRAINED_ON, range(48))
    found = part(study, "train").load()
    assert len(found) == 48 and torch.equal(found.masks, masks)
    assert (found.images - images).abs().max() <= 0.5 / 127.5 + 1e-5  # kept in bytes
    assert list(found.table["prompt"]) == list(table["prompt"]) and found.table["subject"].is_unique
    seen = set(found.table["subject"])
    assert all(
        not seen & set(part(study, name).load().table["subject"])
        for name in ("heldout", "validation", "test")
    )


def test_weights_that_do_not_say_whom_they_saw_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no heart generator here"):
        trained_on(HeartSettings(weights=str(tmp_path)))
    write_manifest(tmp_path, {}, 0.0)
    with pytest.raises(WeightsError, match="which synthetic subjects"):
        trained_on(HeartSettings(weights=str(tmp_path)))
    with pytest.raises(SettingsError, match="one of 'phantom', 'mnms'"):
        HeartSettings(cohort="brats")
    with pytest.raises(SettingsError, match="images"):
        HeartSettings(images=0)
    with pytest.raises(SettingsError, match="guidance_scale is nan"):
        HeartSettings(guidance_scale=float("nan"))
    with pytest.raises(SettingsError, match="one of them at a time"):
        HeartSettings(guidance_scale=2.0, classifier_subjects=150)


# ---- what is asked
# --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_masks_and_prompts_belong_together(study, runs):
    train, hold = part(study, "train").load(), part(study, "heldout").load()
    copies, masks = requests(study, "copies")
    assert torch.equal(masks, train.masks[copies["source"].tolist()])
    assert list(copies["prompt"]) == [train.table["prompt"][i] for i in copies["source"]]
    mixed, masks = requests(study, "combinations")
    owners = train.table.iloc[mixed["source"]]
    assert list(owners["diagnosis"]) == list(mixed["diagnosis"]) and torch.equal(
        masks, train.masks[mixed["source"].tolist()]
    )
    unseen, masks = requests(study, "unseen")
    assert list(unseen["subject"]) == list(hold.table["subject"][:16]) and torch.equal(
        masks, hold.masks[:16]
    )
    with pytest.raises(SettingsError, match="did you mean .copies."):
        requests(study, "copied")


@pytest.mark.slow
def test_another_scale_asks_for_the_same_hearts_and_for_no_more_than_are_measured(study, runs):
    many, masks = requests(replace(study, synthetic=40), "copies")
    few, same = requests(replace(study, synthetic=40, guidance_scale=2.0), "copies")
    assert len(many) == 40 and len(few) == 16
    pd.testing.assert_frame_equal(few, many.iloc[:16])
    assert torch.equal(same, masks[:16])


@pytest.mark.parametrize("word", WORDS)
def test_a_flip_changes_one_word_of_the_prompt(word):
    rows = [
        {"sex": sex, "age": age, "bmi": bmi, "diagnosis": diagnosis}
        for sex, age, bmi, diagnosis in itertools.product(
            ("F", "M"), (31, 52, 68, 85), (17.0, 22.0, 28.0, 35.0), ("healthy", "heart failure")
        )
    ]
    table = pd.DataFrame([{**row, "prompt": prompt_of(row)} for row in rows])
    turned = flipped(table, word)
    for before, after in zip(table["prompt"], turned["prompt"], strict=True):
        pairs = zip(rows[0], before.split(", "), after.split(", "), strict=True)
        assert [name for name, one, other in pairs if one != other] == [word]
    with pytest.raises(SettingsError, match="the words of a prompt"):
        flipped(table, "height")


# ---- tables whose answer is known
# ----------------------------------------------------------------------------------


def people(count=400, wrong=0.0, slope=1.0):
    """Readings of instruments that err in a share `wrong` of each class and follow ages with
    `slope`.
    """
    rng = np.random.default_rng(3)
    ill, female = np.arange(count) % 2, np.arange(count) // 2 % 2
    err = (np.arange(count) // 4 % 100 < 100 * wrong).astype(int)
    age, bmi = rng.choice([55, 65, 75], count), rng.choice(["normal", "obese"], count)
    return pd.DataFrame(
        {
            "subject": [f"s{i}" for i in range(count)],
            "diagnosis": np.where(ill, "heart failure", "healthy"),
            "sex": np.where(female, "F", "M"),
            "decade": [f"{a // 10 * 10}s" for a in age],
            "bmi_class": bmi,
            "read_ill": ill ^ err,
            "read_female": np.where(female ^ err, 2.0, -2.0),
            "read_age": 60 + slope * (age - 60.0),
            "read_bmi": np.where(bmi == "obese", 33.0, 22.0),
        }
    )


def test_what_is_recovered_is_a_share_of_what_real_hearts_show():
    table = recovered(
        people(wrong=0.2, slope=0.5), people(), np.random.default_rng(0), 50
    ).set_index("attribute")
    assert table.loc["diagnosis", "generated"] == pytest.approx(0.8) and table.loc[
        "diagnosis", "ratio"
    ] == pytest.approx(0.8)
    assert table.loc["sex", "ratio"] == pytest.approx(0.8) and table.loc[
        "age", "ratio"
    ] == pytest.approx(0.5)
    assert table.loc["bmi", "ratio"] == pytest.approx(1.0)
    assert (table["ratio_low"] <= table["ratio"]).all() and (
        table["ratio"] <= table["ratio_high"]
    ).all()


@pytest.mark.parametrize("obeys", ["mask", "prompt"])
def test_prompt_or_mask_is_zero_for_one_and_one_for_the_other(obeys):
    original = people(80)
    asked = original.assign(
        age=original["decade"].str[:2].astype(float) + 5,
        bmi=original["bmi_class"].map(BMI_STEP),
    )

    def turned(word):
        after = flipped(asked, word)
        if obeys == "prompt":
            after["read_ill"] = (after["diagnosis"] == "heart failure").astype(int)
            after["read_female"] = np.where(after["sex"] == "F", 2.0, -2.0)
            after["read_age"], after["read_bmi"] = (
                after["decade"].str[:2].astype(float) + 5,
                after["bmi"],
            )
        return after

    again = {word: turned(word) for word in WORDS}
    found = prompt_or_mask(asked, again, people(80), np.random.default_rng(0), 20).set_index("word")
    assert found["moved"].to_numpy() == pytest.approx(np.full(4, 0.0 if obeys == "mask" else 1.0))


def answers(rates, part="test", count=40, seeds=(1, 2)):
    """People of two sexes, and arms that find a share `rates[arm][sex]` of the ill and call a tenth
    of the healthy ill.
    """
    table = pd.DataFrame(
        [
            {
                "part": part,
                "image": i,
                "subject": f"{part}{i}",
                "label": i // (2 * count),
                "sex": "FM"[i // count % 2],
                "age_tertile": "lower",
                "bmi_group": "below 25",
            }
            for i in range(4 * count)
        ]
    )
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "part": part,
            "image": row.image,
            "margin": 1.0
            if row.image % count < count * (rate[row.sex] if row.label else 0.1)
            else -1.0,
        }
        for (arm, rate), seed, row in itertools.product(rates.items(), seeds, table.itertuples())
    ]
    return pd.DataFrame(rows), table


def test_downstream_tables_in_closed_form():
    margins, table = answers({"real": {"F": 0.5, "M": 0.9}, "mixed": {"F": 0.7, "M": 0.9}})
    values, differences = (
        compared(margins, table, np.random.default_rng(0), 60, by={"sex": ("sex",)}, reference=name)
        for name in (None, "real")
    )
    known = values.set_index(["arm", "group", "metric_id", "prevalence"])["estimate"]
    # balanced accuracy of a subgroup does not depend on prevalence
    for prevalence in arms.PREVALENCES:
        assert known["real", "F", "balanced_accuracy", prevalence] == pytest.approx((0.5 + 0.9) / 2)
        assert known["mixed", "worst", "balanced_accuracy", prevalence] == pytest.approx(0.8)
        selected = prevalence * (0.5 + 0.9) / 2 + (1 - prevalence) * 0.1
        assert known["real", "all", "selection_rate", prevalence] == pytest.approx(selected)
    found = worst_difference(differences, "mixed", by="sex")
    assert found.estimate == pytest.approx(0.1) and found.low > 0
    right = ppv(values).set_index(["arm", "prevalence"])["ppv"]
    assert right["real", 0.01] == pytest.approx(0.01 * 0.7 / (0.01 * 0.7 + 0.99 * 0.1))  # Bayes


def test_small_subgroups_are_left_out_and_named():
    _, table = answers({"real": {"F": 1, "M": 1}}, count=12)
    few = table[~((table["sex"] == "F") & (table["label"] == 1) & (table["image"] % 12 > 4))]
    left = excluded(
        pd.concat([few, few.assign(bmi_group="30 and above", subject=few["subject"] + "b")]), 10
    )
    assert left["group"].tolist() == ["F, lower, 30 and above", "F, lower, below 25"] and left[
        "ill"
    ].tolist() == [5, 5]


def test_the_best_arm_is_chosen_on_other_people_than_it_is_judged_on():
    good, bad = {"F": 0.9, "M": 0.9}, {"F": 0.3, "M": 0.9}
    chosen, some = answers({"mixed": good, "pretrained": bad}, "choice")
    judged, others = answers({"mixed": bad, "pretrained": good}, "test")
    margins, table = pd.concat([chosen, judged]), pd.concat([some, others])
    assert best_synthetic(margins, table, ("sex",)) == "mixed"
    with pytest.raises(DataError, match="no synthetic arm"):
        best_synthetic(margins.assign(arm="real"), table)


@pytest.mark.parametrize(
    ("mixed", "other", "words"),
    [
        ((0.05, 0.03, 0.08), 0.01, "raises.*the generator does more"),
        ((0.05, 0.01, 0.08), 0.01, "raises.*intervals overlap"),
        ((0.02, -0.01, 0.05), 0.04, "do not show.*intervals overlap"),
        ((-0.05, -0.08, -0.02), 0.00, "lowers.*the generator does less"),
    ],
)
def test_the_sentence_says_no_more_than_the_intervals(mixed, other, words):
    rows = [
        ("mixed", *mixed),
        ("reweighted", other, other - 0.01, other + 0.01),
        ("extra_real", 0.06, 0.04, 0.08),
    ]
    table = pd.DataFrame(rows, columns=["arm", "estimate", "low", "high"]).assign(
        by="all three", group="worst", metric_id="balanced_accuracy", prevalence=0.01
    )
    said = in_words(table, "mixed")
    assert pd.Series([said]).str.contains(words).all() and "+6.0" in said
    assert "“real and generated”" in said and "“real, reweighted”, which needs" in said


def test_every_arm_and_way_of_requesting_has_a_name_for_readers_of_its_own():
    assert set(report.LABELS) == {*ARMS, *WAYS}
    assert len(set(report.LABELS.values())) == len(report.LABELS)


def test_sub_sampling_to_one_in_a_hundred_leaves_subgroups_empty():
    _, table = answers({"real": {"F": 1, "M": 1}}, count=100)
    left = subsampled(table, 0.01)
    assert left["ill"].tolist() == [100, 100] and left["left"].sum() == 2


# ---- end to end
# --------------------------------------------------------------------------------------

CHOSEN = ["real", "reweighted", "mixed", "extra_real"]


@pytest.mark.slow
def test_the_study_writes_what_the_report_reads(study, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("studies.engine.study.repository", lambda: tmp_path)
    out = run_study(STUDY, study, CHOSEN, [1])
    assert out == tmp_path / "results" / "heart" and settings_of(STUDY, out) == replace(
        study, weights=HeartSettings.weights
    )
    found = load_results(STUDY)
    assert found["hearts"].groupby("hearts").size().to_dict() == {
        "heldout": 20,
        **dict.fromkeys(WAYS, 16),
        **dict.fromkeys(FLIPPED, 6),
    }
    assert found["margins"].groupby("arm").size().to_dict() == dict.fromkeys(CHOSEN, 56)
    assert found["subjects"].groupby("part").size().to_dict() == {"choice": 16, "test": 40}
    assert set(found["dice"]["way"]) == set(WAYS) and found["dice"]["mean"].between(0, 1).all()
    check_what_is_kept(study, out)

    monkeypatch.setattr(report, "best_synthetic", lambda *_, **__: "mixed")
    table = heart_report()
    assert table["figure"].str.contains("Dice, lowest subgroup").sum() == 3
    worst = table[table["metric_id"] == "worst_subgroup_gain"]
    assert worst["arm"].tolist() == ["mixed", "reweighted"] and worst["met"].isna().tolist() == [
        False,
        True,
    ]
    before = set(stages_folder().iterdir())
    run_beside(study, tmp_path)
    made = {path.name.rpartition("-")[0] for path in set(stages_folder().iterdir()) - before}
    assert made == {"generate", "evaluate", "measure"}, (
        "subjects and evaluators are those of the main study"
    )
    assert cli.main(["report"]) == 1
    said = capsys.readouterr().out
    assert said.count("figure") == 2 and "worst subgroup" in said and "guidance 2" in said
    check_beside(heart_report(), len(table))


def check_what_is_kept(study, out):
    """The same arm and seed give the same answers, and other studies and unknown arms are
    refused.
    """
    before = (out / "margins.csv.gz").read_bytes()
    run_study(STUDY, study, ["mixed", "mixed"], [1, 1], out)
    assert (out / "margins.csv.gz").read_bytes() == before
    with pytest.raises(DataError, match="another study"):
        run_study(STUDY, replace(study, images=8), ["real"], [1], out)
    with pytest.raises(SettingsError, match="did you mean 'mixed'"):
        run_study(STUDY, study, ["mixt"], [1], out)


def run_beside(study, place):
    """The same study at guidance scale 2 by the command."""
    assert cli.main(["heart", *command_options(replace(study, guidance_scale=2.0))]) == 0
    written = {path.name for path in (place / "results" / "heart-guidance2").iterdir()}
    assert written == {
        "study.json",
        "hearts.csv.gz",
        "dice.csv",
        "geometry.csv",
        "recovered.csv",
        "flips.csv",
        "distances.csv",
        "frechet.csv",
        "too_few.csv",
        "memorisation.csv",
        "cost.csv",
    }


def check_beside(whole, main_rows):
    """The whole report: every row on hearts again at the other scale, with the same criterion;
    nothing downstream.
    """
    main, other = whole.iloc[:main_rows], whole.iloc[main_rows:]
    hearts = main[main["metric_id"] != "worst_subgroup_gain"]
    assert len(other) == len(hearts) and other["figure"].str.endswith(", guidance 2").all()
    for column in ("metric_id", "arm", "criterion", "rule"):
        assert other[column].tolist() == hearts[column].tolist()


@pytest.mark.slow
def test_generated_hearts_are_the_same_in_any_batch_and_keep_their_noise(study, runs):
    first = generated(study, "unseen").load().images
    other = generated(replace(study, batch_size=5), "unseen").load().images
    assert (first - other).abs().max() <= 2 / 127.5  # a grey level, from sums in another order
    assert torch.equal(first[:, 0], first[:, 2]), "ED is one image"
    masks = part(study, "heldout").load().masks[[0, 0]]
    shown = preview(study, ["Male, age in 60s, obese BMI, healthy"] * 2, masks)
    assert (shown[0] - shown[1]).abs().max() <= 1 / 127.5 + 1e-6, "one noise for all"


@pytest.mark.parametrize("name", ["heart", "heart-shared", "heart-guidance2"])
def test_committed_results_go_on(name):
    """They were made with the weights of this repository, before a record said which cohort a study
    read.
    """
    folder = repository() / "results" / name
    settings = settings_of(STUDY, folder)
    assert STUDY.results(settings) == folder
    kept = {key: value for key, value in to_dict(settings).items() if key not in PATHS}
    weights = STUDY.bases["weights"](settings).digest
    same_study(folder / "study.json", {"study": kept, "inputs": {"weights": weights, "cohort": ""}})
    with pytest.raises(DataError, match="'inputs'"):
        same_study(folder / "study.json", {"study": kept, "inputs": {"weights": "other"}})


def test_a_study_names_its_subjects_and_its_weights(tmp_path, monkeypatch):
    settings = HeartSettings(weights="owner/model")
    found = []
    for subjects in ("these", "those"):
        source = replace(STUDY.sources["phantom"], digest=lambda given, name=subjects: name)
        found.append(replace(STUDY, sources={"phantom": source}).identity(settings))
    assert found[0]["inputs"] == {"weights": "owner/model", "controlnet": "", "cohort": "these"}
    write_json(tmp_path / "study.json", found[0])
    same_study(tmp_path / "study.json", found[0])
    with pytest.raises(DataError, match="'inputs'"):
        same_study(tmp_path / "study.json", found[1])


def test_results_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match="no results here"):
        load_results(STUDY, tmp_path)


@pytest.mark.slow
def test_only_what_a_training_uses_is_its_input(study, runs, monkeypatch):
    """The generator is no input of arms that use real images alone."""
    seen = {}

    def record(arm, seed, settings, parts, count, synthetic, extra):
        seen[arm] = synthetic is not None, extra is not None

    monkeypatch.setattr(arms, "train_arm", record)
    for arm in ARMS.values():
        arm.run(study, 0)
    assert seen["mixed"] == seen["pretrained"] == (True, False)
    assert seen["real"] == seen["reweighted"] == (False, False) and seen["extra_real"] == (
        False,
        True,
    )


def test_a_new_arm_is_one_line():
    more = replace(STUDY, arms={**ARMS, "none": Arm(lambda settings, seed: seed, "nothing")})
    assert more.arms_of(HeartSettings(), ["none"]) == ("none",)
    assert Run(more, HeartSettings(), "none", 3).artifact == 3
