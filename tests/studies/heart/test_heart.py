"""The heart study: who is in which part, what is asked, and what its tables say where the answer is
known.
"""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.cohorts.cardiac import parse_prompt, prompt_of
from fairlib.errors import DataError, SettingsError, WeightsError
from studies import heart
from studies.engine import cli
from studies.engine.manifest import write_manifest
from studies.engine.places import stages_folder
from studies.engine.results import merged, write_table
from studies.heart import control, downstream, generation, realism, report
from studies.heart.phantom import HeartSettings, draw_hearts
from studies.heart.settings import part_settings
from studies.heart.study import run_heart_study

TRAINED_ON = HeartSettings(subjects=48, seed=101)  # as the weights of the tiny study say


@pytest.fixture(scope="module")
def study(tiny_heart_study):
    return tiny_heart_study


# ---- who is in which part
# ------------------------------------------------------------------------------------------


def test_no_two_parts_draw_the_same_people():
    parts = part_settings(heart.HeartStudy(), HeartSettings(subjects=6000, seed=101))
    assert len({settings.seed for settings in parts.values()}) == len(parts)
    assert parts["train"] == HeartSettings(subjects=6000, seed=101)
    assert vars(parts["extra"]) == {
        **vars(parts["train"]),
        "seed": parts["extra"].seed,
        "subjects": heart.HeartStudy().synthetic,
    }
    assert parts["validation"].heart_failure == 0.10 and parts["test"].female_heart_failure == 0.5
    with pytest.raises(SettingsError, match="part 'test' draws too"):
        part_settings(heart.HeartStudy(), HeartSettings(seed=parts["test"].seed))


@pytest.mark.slow
def test_the_training_cohort_is_exactly_what_the_generator_saw(study, runs):
    images, masks, table = draw_hearts(TRAINED_ON, range(48))
    found = heart.hearts(study, "train")
    assert len(found) == 48 and torch.equal(found.masks, masks)
    assert (found.images - images).abs().max() <= 0.5 / 127.5 + 1e-5  # kept in bytes
    assert list(found.table["prompt"]) == list(table["prompt"]) and found.table["subject"].is_unique
    seen = set(found.table["subject"])
    assert all(
        not seen & set(heart.hearts(study, part).table["subject"])
        for part in ("hold", "validation", "test")
    )


def test_weights_that_do_not_say_whom_they_saw_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no heart generator here"):
        heart.trained_on(heart.HeartStudy(weights=str(tmp_path)))
    write_manifest(tmp_path, {}, 0.0)
    with pytest.raises(WeightsError, match="which synthetic people"):
        heart.trained_on(heart.HeartStudy(weights=str(tmp_path)))
    with pytest.raises(SettingsError, match="knows 'phantom' and 'mnms'"):
        heart.HeartStudy(cohort="brats")
    with pytest.raises(SettingsError, match="images"):
        heart.HeartStudy(images=0)
    with pytest.raises(SettingsError, match="guidance_scale nan"):
        heart.HeartStudy(guidance_scale=float("nan"))
    with pytest.raises(SettingsError, match="one of them at a time"):
        heart.HeartStudy(guidance_scale=2.0, classifier_people=150)


# ---- what is asked
# --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_masks_and_prompts_belong_together(study, runs):
    train, hold = heart.hearts(study, "train"), heart.hearts(study, "hold")
    copies, masks = heart.requests(study, "copies")
    assert torch.equal(masks, train.masks[copies["source"].tolist()])
    assert list(copies["prompt"]) == [train.table["prompt"][i] for i in copies["source"]]
    mixed, masks = heart.requests(study, "combinations")
    owners = train.table.iloc[mixed["source"]]
    assert list(owners["diagnosis"]) == list(mixed["diagnosis"]) and torch.equal(
        masks, train.masks[mixed["source"].tolist()]
    )
    unseen, masks = heart.requests(study, "unseen")
    assert list(unseen["subject"]) == list(hold.table["subject"][:16]) and torch.equal(
        masks, hold.masks[:16]
    )
    with pytest.raises(SettingsError, match="unknown way"):
        heart.requests(study, "copied")


@pytest.mark.slow
def test_another_scale_asks_for_the_same_hearts_and_for_no_more_than_are_measured(study, runs):
    many, masks = heart.requests(replace(study, synthetic=40), "copies")
    few, same = heart.requests(replace(study, synthetic=40, guidance_scale=2.0), "copies")
    assert len(many) == 40 and len(few) == 16
    pd.testing.assert_frame_equal(few, many.iloc[:16])
    assert torch.equal(same, masks[:16])


@pytest.mark.parametrize("word", generation.FLIPS)
def test_a_flip_changes_one_word_of_the_prompt(word):
    rows = [
        {"sex": sex, "age": age, "bmi": bmi, "diagnosis": diagnosis}
        for sex, age, bmi, diagnosis in itertools.product(
            ("F", "M"), (31, 52, 68, 85), (17.0, 22.0, 28.0, 35.0), ("healthy", "heart failure")
        )
    ]
    table = pd.DataFrame([{**row, "prompt": prompt_of(row)} for row in rows])
    turned = generation.flipped(table, word)
    name = {"age": "decade", "bmi": "bmi_class"}.get(word, word)
    for before, after in zip(table["prompt"], turned["prompt"], strict=True):
        one, other = parse_prompt(before), parse_prompt(after)
        assert [key for key in one if one[key] != other[key]] == [name]
    with pytest.raises(SettingsError, match="unknown word"):
        generation.flipped(table, "height")


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
    table = heart.recovered(
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
def test_prompt_or_mask_is_zero_for_one_and_one_for_the_other(obeys, monkeypatch):
    original = people(80)
    asked = original.assign(
        age=original["decade"].str[:2].astype(float) + 5,
        bmi=original["bmi_class"].map(control.BMI_STEP),
    )

    def turned(word):
        after = generation.flipped(asked, word)
        if obeys == "prompt":
            after["read_ill"] = (after["diagnosis"] == "heart failure").astype(int)
            after["read_female"] = np.where(after["sex"] == "F", 2.0, -2.0)
            after["read_age"], after["read_bmi"] = (
                after["decade"].str[:2].astype(float) + 5,
                after["bmi"],
            )
        return after

    tables = {
        "unseen": asked,
        "hold": people(80),
        **{f"flipped-{word}": turned(word) for word in generation.FLIPS},
    }
    monkeypatch.setattr(control, "readings", lambda study, source: (tables[source], None))
    found = heart.prompt_or_mask(None, np.random.default_rng(0), 20).set_index("word")
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
    values, differences = heart.tables_of(
        margins, table, np.random.default_rng(0), 60, by={"sex": ("sex",)}
    )
    known = values.set_index(["arm", "group", "metric_id", "prevalence"])["estimate"]
    # balanced accuracy of a subgroup does not depend on prevalence
    for prevalence in heart.PREVALENCES:
        assert known["real", "F", "balanced_accuracy", prevalence] == pytest.approx((0.5 + 0.9) / 2)
        assert known["mixed", "worst", "balanced_accuracy", prevalence] == pytest.approx(0.8)
        selected = prevalence * (0.5 + 0.9) / 2 + (1 - prevalence) * 0.1
        assert known["real", "all", "selection_rate", prevalence] == pytest.approx(selected)
    found = report.worst_difference(differences, "mixed", by="sex")
    assert found.estimate == pytest.approx(0.1) and found.low > 0
    right = heart.ppv(values).set_index(["arm", "prevalence"])["ppv"]
    assert right["real", 0.01] == pytest.approx(0.01 * 0.7 / (0.01 * 0.7 + 0.99 * 0.1))  # Bayes


def test_small_subgroups_are_left_out_and_named():
    _, table = answers({"real": {"F": 1, "M": 1}}, count=12)
    few = table[~((table["sex"] == "F") & (table["label"] == 1) & (table["image"] % 12 > 4))]
    left = heart.excluded(
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
    assert heart.best_synthetic(margins, table, ("sex",)) == "mixed"
    with pytest.raises(DataError, match="no synthetic arm"):
        heart.best_synthetic(margins.assign(arm="real"), table)


@pytest.mark.parametrize(
    ("mixed", "other", "words"),
    [
        ((0.05, 0.03, 0.08), 0.01, "raises.*the generator does more"),
        ((0.05, 0.01, 0.08), 0.01, "raises.*do not tell the two apart"),
        ((0.02, -0.01, 0.05), 0.04, "cannot be told.*do not tell the two apart"),
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
    said = heart.in_words(table, "mixed")
    assert pd.Series([said]).str.contains(words).all() and "+6.0" in said


def test_sub_sampling_to_one_in_a_hundred_leaves_subgroups_empty():
    _, table = answers({"real": {"F": 1, "M": 1}}, count=100)
    left = heart.subsampled(table, 0.01)
    assert left["ill"].tolist() == [100, 100] and left["left"].sum() == 2


# ---- end to end
# --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_study_writes_what_the_report_reads(study, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(realism, "frechet_floor", lambda given, rng: pd.DataFrame({"n": [10]}))
    out = heart.run_heart_study(
        study, ["real", "reweighted", "mixed", "extra_real"], [1], tmp_path / "heart", 20, n_min=1
    )
    found = heart.load_heart_results(out)
    assert found["hearts"].groupby("hearts").size().to_dict() == {
        "combinations": 16,
        "copies": 16,
        "hold": 20,
        "unseen": 16,
        **{f"flipped-{word}": 6 for word in generation.FLIPS},
    }
    assert found["margins"].groupby("arm").size().to_dict() == dict.fromkeys(
        ("real", "reweighted", "mixed", "extra_real"), 56
    )
    assert found["people"].groupby("part").size().to_dict() == {"choice": 16, "test": 40}
    assert (
        set(found["dice"]["way"]) == set(heart.WAYS) and found["dice"]["mean"].between(0, 1).all()
    )
    before = (out / "margins.csv.gz").read_bytes()
    again = heart.run_heart_study(study, ["mixed", "mixed"], [1, 1], out, 20, n_min=1)
    assert (again / "margins.csv.gz").read_bytes() == before, (
        "the same arm and seed give the same answers"
    )
    with pytest.raises(DataError, match="another study"):
        heart.run_heart_study(replace(study, images=8), ["real"], [1], out)
    with pytest.raises(SettingsError, match="did you mean 'mixed'"):
        heart.run_heart_study(study, ["mixt"], [1], out)

    monkeypatch.setattr(report, "best_synthetic", lambda *_: "mixed")
    table = heart.heart_report(out)
    assert table["figure"].str.contains("Dice, lowest subgroup").sum() == 3
    assert (
        table["figure"].str.contains("worst subgroup").sum() == 2 and table["holds"].dtype == bool
    )
    before = set(stages_folder().iterdir())
    run_beside(study, tmp_path)
    made = {path.name.rpartition("-")[0] for path in set(stages_folder().iterdir()) - before}
    drawn = {
        *(f"heart-{way}" for way in heart.WAYS),
        *(f"heart-flipped-{word}" for word in generation.FLIPS),
    }
    assert made == drawn | {"heart-readings"}, "people and instruments are those of the main study"
    monkeypatch.setattr(
        "studies.heart.report.heart_results_folder", lambda name="heart": tmp_path / name
    )
    monkeypatch.setattr("studies.engine.study.criteria_of", lambda study: table.head(1))
    monkeypatch.setattr("studies.brain.report.many_images_folder", lambda: None)
    for module, name in (
        ("fundus.study", "fundus_results_folder"),
        ("statistics", "statistics_folder"),
    ):
        monkeypatch.setattr(f"studies.{module}.{name}", lambda: tmp_path / "nothing")
    assert cli.main(["report"]) == 1
    said = capsys.readouterr().out
    assert said.count("figure") == 2 and "worst subgroup" in said and ", guidance 2" in said
    check_beside(heart.heart_report(), len(table))


def run_beside(study, place):
    """The same study at guidance scale 2 by the command, which is given the tiny study's settings
    and this place.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "studies.heart.HeartStudy",
            lambda guidance_scale, **_: replace(study, guidance_scale=guidance_scale),
        )
        patch.setattr(
            "studies.heart.run_heart_study",
            lambda given, arms, seeds, _, n_min: run_heart_study(
                given, arms, seeds, place / given.name, replicates=20, n_min=n_min
            ),
        )
        assert cli.main(["heart", "--guidance", "2"]) == 0
    written = {path.name for path in (place / "heart-guidance2").iterdir()}
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
    }


def check_beside(whole, main_rows):
    """The whole report: every row on hearts again at the other scale, with the same bound; nothing
    downstream.
    """
    main, other = whole.iloc[:main_rows], whole.iloc[main_rows:]
    hearts = main[~main["figure"].str.contains("worst subgroup")]
    assert len(other) == len(hearts) and other["figure"].str.endswith(", guidance 2").all()
    assert (
        other["bound"].tolist() == hearts["bound"].tolist()
        and other["arm"].tolist() == hearts["arm"].tolist()
    )


@pytest.mark.slow
def test_generated_hearts_are_the_same_in_any_batch_and_keep_their_noise(study, runs):
    first = heart.made(study, "unseen").images
    other = heart.made(replace(study, batch_size=5), "unseen").images
    assert (first - other).abs().max() <= 2 / 127.5  # a grey level, from sums in another order
    assert torch.equal(first[:, 0], first[:, 2]), "ED is one picture"
    swatches = heart.swatches(
        study,
        ["Male, age in 60s, obese BMI, healthy"] * 2,
        heart.hearts(study, "hold").masks[[0, 0]],
    )
    assert (swatches[0] - swatches[1]).abs().max() <= 1 / 127.5 + 1e-6, "one noise for all"


def test_results_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match="no results here"):
        heart.load_heart_results(tmp_path)


def test_results_grow_arm_by_arm(tmp_path):
    old = pd.DataFrame({"arm": ["real", "mixed"], "seed": [1, 1], "margin": [0.1, 0.2]})
    new = pd.DataFrame({"arm": ["mixed", "real"], "seed": [1, 2], "margin": [0.9, 0.8]})
    write_table(tmp_path / "margins.csv.gz", old)
    found = merged(tmp_path / "margins.csv.gz", new).set_index(["arm", "seed"])["margin"].to_dict()
    assert found == {("real", 1): 0.1, ("mixed", 1): 0.9, ("real", 2): 0.8}


@pytest.mark.slow
def test_only_what_a_training_uses_makes_it_anew(study, runs, monkeypatch):
    """The generator is no input of arms that use real images alone."""
    seen = {}
    monkeypatch.setattr(downstream, "part_digest", lambda study, part: part)
    monkeypatch.setattr(downstream, "made_digest", lambda study, source: [f"generated {source}"])

    def record(root, name, settings, inputs, build):
        seen[settings["arm"]] = inputs
        raise KeyError

    monkeypatch.setattr(downstream, "run_stage", record)
    for arm in ("real", "mixed", "extra_real"):
        with pytest.raises(KeyError):
            downstream.train_arm(study, arm, 0)
    assert (
        "generated copies" in seen["mixed"]
        and "generated copies" not in seen["real"] + seen["extra_real"]
    )
    assert "extra" in seen["extra_real"] and "extra" not in seen["mixed"]
