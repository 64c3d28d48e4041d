"""The fundus study: who is in which part, what the words ask for, and what its tables say where the
answer is known.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from fairlib.cohorts.attributes import ATTRIBUTES, RACES
from fairlib.cohorts.fairgenmed import CDR_STATUSES, SEVERITIES, cdr_status, parse_prompt
from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_tensors
from fairlib.measures.distances import mmd
from fairlib.measures.equity import equity_report
from fairlib.methods.perturbation import share_negative
from fairlib.models import clip as cl
from fairlib.models import generator as gen
from fairlib.models.autoencoder import build_autoencoder
from fairlib.settings import to_dict
from studies import fundus
from studies.engine import cli
from studies.engine.manifest import write_manifest
from studies.fundus import (
    comparison,
    distances,
    finetuning,
    generation,
    judges,
    semantics,
    statistics,
    views,
)
from studies.fundus import study as whole
from studies.fundus.cohorts import real_rows
from studies.fundus.phantom import FundusSettings, draw_fundi, write_fairgenmed
from studies.fundus.rules import make_patient
from studies.fundus.settings import HEADS, PART_SEEDS, TASKS, check_people, even_settings, rows_of

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 40, "width": 32, "heads": 2, "layers": 1},
}
TRAINED_ON = FundusSettings(subjects=40, seed=109)
ARMS = ("plain", "released", "repaired")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study with an untrained generator, a handful of people, and a few optimiser steps."""
    place = tmp_path_factory.mktemp("fundus")
    cl.write_vocabulary(
        place / "words", cl.learn_merges(["SLO fundus image of a Black Female patient"], count=20)
    )
    torch.manual_seed(0)
    encoder = cl.text_encoder_of(cl.build_clip(place / "words", CONFIG))
    pipeline = gen.assemble(
        encoder,
        cl.pipeline_tokenizer(place / "words"),
        build_autoencoder((8, 8, 8, 8)),
        gen.build_denoiser(channels=(16, 32), text_width=32),
    )
    gen.save_pipeline(place / "weights", pipeline)
    write_manifest(place / "weights", {"fundi": to_dict(TRAINED_ON)}, 0.0)
    pipeline.unet.conv_out.weight.data += 0.1
    gen.save_pipeline(place / "everyone", pipeline)
    write_manifest(place / "everyone", {"fundi": to_dict(TRAINED_ON)}, 0.0)
    return fundus.FundusStudy(
        weights=str(place / "weights"),
        everyone=str(place / "everyone"),
        steps=6,
        batch_size=8,
        window=2,
        learning_rate=1e-3,
        probe_people=24,
        probe_per_group=2,
        probe_times=1,
        probe_every=1,
        images=24,
        reference_people=24,
        sampling_steps=1,
        guidance_scale=1.0,
        sample_batch=10,
        judge_people=24,
        judge_steps=3,
        semantic_steps=3,
        replicates=20,
        n_min=1,
    )


# ---- who is in which part
# ------------------------------------------------------------------------------------------


def test_even_parts_hold_every_combination_equally_often():
    _, table = zip(
        *(draw_fundi(replace(even_settings(5, index), size=32), [index]) for index in range(24)),
        strict=True,
    )
    table = pd.concat(table)
    assert len(table.groupby([*ATTRIBUTES, "glaucoma"])) == 24


def test_no_part_draws_the_training_people():
    assert len({*PART_SEEDS.values(), TRAINED_ON.seed}) == len(PART_SEEDS) + 1
    with pytest.raises(SettingsError, match="part 'asked' draws too"):
        check_people(replace(TRAINED_ON, seed=PART_SEEDS["asked"]), fundus.FundusStudy())
    with pytest.raises(SettingsError, match="trained on 40; 0 takes all"):
        check_people(TRAINED_ON, fundus.FundusStudy(train_people=41))


@pytest.mark.slow
def test_the_training_people_are_exactly_those_the_generator_saw(study, runs):
    images, table = draw_fundi(TRAINED_ON)
    found = fundus.fundi(study, "train")
    assert (found.pictures() - images).abs().max() <= 0.5 / 127.5 + 1e-5  # kept in bytes
    assert list(found.table["prompt"]) == list(table["prompt"]) and found.groups().shape == (40, 3)
    others = [set(fundus.fundi(study, part).table["subject"]) for part in PART_SEEDS]
    assert not set(found.table["subject"]).intersection(*others) and len(set.union(*others)) == sum(
        map(len, others)
    )


def test_weights_that_do_not_say_whom_they_saw_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no fundus generator here"):
        fundus.trained_on(fundus.FundusStudy(weights=str(tmp_path)))
    write_manifest(tmp_path, {}, 0.0)
    with pytest.raises(WeightsError, match="which synthetic people"):
        fundus.trained_on(fundus.FundusStudy(weights=str(tmp_path)))
    for wrong, words in (
        ({"cohort": "ham"}, "knows 'phantom' and 'fairgenmed'"),
        ({"images": 0}, "images"),
        ({"images": 901}, "equal numbers"),
    ):
        with pytest.raises(SettingsError, match=words):
            fundus.FundusStudy(**wrong)
    with pytest.raises(DataError, match="unknown part 'exam'"):
        fundus.fundi(fundus.FundusStudy(), "exam")


@pytest.mark.slow
def test_the_real_layout_is_read_through_its_reader(study, runs, tmp_path):
    write_fairgenmed(tmp_path, FundusSettings(subjects=60, seed=8, white=0.34, black=0.33))
    real = replace(study, cohort="fairgenmed", data_dir=str(tmp_path), images=6, reference_people=6)
    parts = {part: fundus.fundi(real, part).table for part in ("train", *PART_SEEDS)}
    assert set(parts["train"]["use"]) == {"training"} and set(parts["judges"]["use"]) == {
        "validation"
    }
    assert set(parts["asked"]["use"]) == set(parts["reference"]["use"]) == {"test"}
    assert not set(parts["asked"]["subject"]) & set(parts["reference"]["subject"])
    assert parts["asked"]["race"].value_counts().nunique() == 1, "races in equal numbers"
    assert whole.people_table(real)["asked_cdr"].isna().all()
    with pytest.raises(DataError, match="nobody left of race Black"):
        real_rows(parts["asked"][parts["asked"]["race"] != "Black"], real, "asked")
    with pytest.raises(DataError, match="needs data_dir"):
        fundus.fundi(replace(real, data_dir=""), "asked")


# ---- what the words ask for
# ----------------------------------------------------------------------------------------


def test_the_ratio_asked_for_is_the_mean_of_people_with_these_words():
    rng, found = np.random.default_rng(0), []
    for severity in SEVERITIES:
        for _ in range(2500):
            patient = make_patient(rng, "White", "F", "Hispanic", "glaucoma", severity, "myopia")
            found.append((severity, cdr_status(patient.cdr), patient.cdr))
    table = pd.DataFrame(found, columns=["severity", "status", "cdr"])
    means = table.groupby(["severity", "status"])["cdr"].agg(["mean", "size"])
    for (severity, status), row in means[means["size"] > 200].iterrows():
        assert fundus.asked_cdr("glaucoma", severity, status) == pytest.approx(
            row["mean"], abs=0.012
        )
    assert len(means[means["size"] > 200]) >= 8
    order = [fundus.asked_cdr("glaucoma", "moderate", status) for status in CDR_STATUSES]
    assert order == sorted(order) and order[0] < 0.5 <= order[1] < 0.7 <= order[2]
    with pytest.raises(DataError, match="the law knows normal"):
        fundus.asked_cdr("glaucoma", "mild", "large")


# ---- figures whose answer is known
# ---------------------------------------------------------------------------------


def everybody(count=96, seed=0):
    """A table of even people with a ratio for every word."""
    rows = []
    for i in range(count):
        own = even_settings(0, i)
        race = "White" if own.white else "Black" if own.black else "Asian"
        rows.append(
            {
                "race": race,
                "sex": "F" if own.female else "M",
                "ethnicity": "Hispanic" if own.hispanic else "Non-Hispanic",
                "glaucoma": "glaucoma" if own.glaucoma else "non-glaucoma",
                "md_severity": SEVERITIES[i // 24 % 4],
                "cdr_status": CDR_STATUSES[i // 24 % 3],
            }
        )
    return pd.DataFrame(rows).assign(asked_cdr=0.5)


def said(table, heads, prefix, rng=None):
    """Probabilities that are right for everybody, or random ones."""
    found = {}
    for name, values in heads.items():
        right = (table[name].to_numpy()[:, None] == np.array(values)).astype(float)
        found[name] = right if rng is None else rng.dirichlet(np.ones(len(values)), len(table))
    return judges.columns(prefix, found, heads)


def figures(people, cdr, seen, rng=None):
    table = pd.concat(
        [
            pd.DataFrame({"cdr": cdr, "found": seen}, index=people.asked.index),
            said(people.asked, HEADS, "p", rng),
            said(people.asked, TASKS, "s", rng),
        ],
        axis=1,
    )
    distance = pd.DataFrame(np.tile([0.1, 0.4, 0.2], (len(people.times_asked), 1)), columns=RACES)
    return statistics.figures_of(
        people, table, said(people.reference, TASKS, "s", rng), distance, table
    )


@pytest.fixture(scope="module")
def people():
    asked, reference = everybody(), everybody(120)
    return statistics.People(
        asked, reference, distances.times(asked, 30, 0), distances.times(reference, 30, 1), 4
    )


def as_dict(found):
    return {
        tuple(key): value
        for key, value in zip(found.index.itertuples(index=False), found.draws[0], strict=True)
    }


def test_errors_gaps_and_shares_in_closed_form(people):
    black = (people.asked["race"] == "Black").to_numpy()
    women = (people.asked["sex"] == "F").to_numpy()
    seen = ~(black & women)
    found = as_dict(figures(people, np.where(seen, np.where(black, 0.7, 0.45), np.nan), seen))
    none = statistics.NO_TASK
    assert found["cdr error", none, "race", "Black"] == pytest.approx(0.2)
    assert found["cdr error", none, "race", "White"] == pytest.approx(0.05)
    assert found["cdr error", none, "race", "gap"] == pytest.approx(0.15)
    assert found["cdr error", none, "race", "worst"] == pytest.approx(0.2)
    assert found["no disc", none, "race", "Black"] == pytest.approx(0.5)
    assert found["no disc", none, "all", "all"] == pytest.approx(1 / 6)
    assert found["mmd", none, "race", "gap"] == pytest.approx(0.3) and found[
        "mmd", none, "all", "all"
    ] == pytest.approx(0.7 / 3)
    assert found["auc, generated to real", "cdr_status", "race", "equity-scaled"] == pytest.approx(
        1
    )
    assert (
        found["asked found", "race", "all", "all"]
        == found["asked found, of real", "race", "all", "all"]
        == 1
    )


def test_areas_are_those_of_the_equity_report(people):
    rng = np.random.default_rng(4)
    found = figures(people, 0.5, True, rng)
    rng = np.random.default_rng(4)
    said(people.asked, HEADS, "p", rng), said(people.asked, TASKS, "s", rng)
    answers = said(people.reference, TASKS, "s", rng)
    for task, values in TASKS.items():
        label = pd.Index(values).get_indexer(people.reference[task])
        score = judges.stacked(answers, "s", task, values)
        report = equity_report(
            label,
            score[:, 1] if len(values) == 2 else score,
            people.reference[list(ATTRIBUTES)],
            n_min=4,
        )
        known, values = report.by_group.set_index(["attribute", "group"])["auc"], as_dict(found)
        for (by, group), area in known.items():
            assert values["auc, generated to real", task, by, group] == pytest.approx(area)
        wanted = report.table[report.table["metric_id"] == "auc"].set_index("attribute")
        for by in ATTRIBUTES:
            assert values["auc, generated to real", task, by, "equity-scaled"] == pytest.approx(
                wanted.loc[by, "equity_scaled"]
            )
            assert values["auc, generated to real", task, by, "gap"] == pytest.approx(
                wanted.loc[by, "difference"]
            )


def test_small_groups_are_left_out_and_named(people):
    few = (
        people.asked["sex"].eq("M")
        & people.asked["cdr_status"].eq("abnormal")
        & (np.arange(96) > 50)
    )
    asked = people.asked.assign(
        cdr_status=people.asked["cdr_status"].where(~people.asked["sex"].eq("M") | few, "normal")
    )
    less = replace(people, asked=asked, n_min=10)
    table = statistics.excluded(less)
    assert ("auc, real to generated", "cdr_status", "sex", "M") in set(
        table[statistics.INDEX].itertuples(index=False, name=None)
    )
    found = as_dict(figures(less, 0.5, True))
    assert ("auc, real to generated", "cdr_status", "sex", "M") not in found
    assert ("auc, real to generated", "cdr_status", "sex", "gap") not in found, (
        "one group has no gap"
    )


def test_without_a_law_there_is_no_error_and_everything_else(people):
    found = as_dict(
        figures(replace(people, asked=people.asked.assign(asked_cdr=np.nan)), 0.5, True)
    )
    measures = {key[0] for key in found}
    assert "cdr error" not in measures and {"no disc", "mmd", "asked found"} <= measures


def test_differences_are_paired_and_their_two_intervals_are_of_seeds_and_of_people(people):
    rng = np.random.default_rng(1)
    hard = rng.random(96)  # what is hard for one arm is as hard for the other
    shift = {1: 0.02, 2: 0.03, 3: 0.07}
    found = {}
    for seed, more in shift.items():
        found["plain", seed] = figures(people, 0.5 + hard, True)
        found["released", seed] = figures(people, 0.5 + hard + more, True)
    table = fundus.differences_table(found).set_index(statistics.INDEX)
    row = table.loc[("cdr error", "-", "all", "all")]
    wanted = stats.t.interval(
        0.95, 2, np.mean(list(shift.values())), stats.sem(list(shift.values()))
    )
    assert row["difference"] == pytest.approx(0.04) and (
        row["seed_low"],
        row["seed_high"],
    ) == pytest.approx(wanted)
    assert row["people_low"] == pytest.approx(0.04, abs=1e-6) and row[
        "people_high"
    ] == pytest.approx(0.04, abs=1e-6)
    values = fundus.values_table(found).set_index(["arm", *statistics.INDEX])
    own = values.loc[("plain", "cdr error", "-", "all", "all")]
    assert own["people_high"] - own["people_low"] > 0.05, "unpaired, people matter"
    assert np.isnan(comparison.t_interval(np.ones((1, 3)))[0]).all()


def test_an_arm_without_a_figure_is_compared_in_the_others(people):
    seen = (people.asked["race"] != "Black").to_numpy()
    found = {("plain", 1): figures(people, 0.6, True), ("dro", 1): figures(people, 0.7, seen)}
    table = fundus.differences_table(found)
    part = table[table["measure"] == "cdr error"]
    assert "Black" not in set(part["group"]) and {"Asian", "White"} <= set(part["group"])
    assert part[part["group"] == "White"]["difference"].iloc[0] == pytest.approx(0.1)


def test_the_sentence_says_when_nothing_can_be_told():
    row = {
        "measure": "mmd",
        "task": "-",
        "by": "race",
        "group": "gap",
        "arm": "released",
        "reference": "random",
        "seeds": 5,
        "people_low": 0.0,
        "people_high": 0.1,
    }
    for (low, high), words in (
        ((-0.1, 0.2), "cannot be told"),
        ((0.1, 0.2), "wider"),
        ((-0.2, -0.1), "narrower"),
    ):
        table = pd.DataFrame(
            [row | {"difference": (low + high) / 2, "seed_low": low, "seed_high": high}]
        )
        assert words in fundus.in_words(table, "mmd") and "5 seeds" in fundus.in_words(table, "mmd")
    with pytest.raises(DataError, match="were not compared"):
        fundus.in_words(table, "mmd", arm="dro")


# ---- what the notebook looks at
# -------------------------------------------------------------------------------------


def test_weights_are_told_as_their_formulas_say():
    told = views.weights_told(views.sample_weights([1, 1, 1], "released"))
    assert told["share_negative"] == pytest.approx(share_negative(3**0.5), abs=0.01)
    assert told["pictures"] == pytest.approx(32 / (1 + 3), rel=0.03)  # mean one, variance three
    repaired = views.sample_weights([1, 0.5, 0], "repaired")
    assert repaired.min() == 0 and repaired.mean() == pytest.approx(1, abs=0.02)
    assert views.weights_told(views.sample_weights([0, 0, 0], "released"))[
        "pictures"
    ] == pytest.approx(32)
    with pytest.raises(DataError, match="released and repaired"):
        views.sample_weights([1, 1, 1], "restored")


def test_points_and_tables_of_the_arms(people):
    shifts = {"real": 0.01, "plain": 0.02, "released": 0.05}
    found = {
        (arm, seed): figures(people, 0.5 + shift, True)
        for arm, shift in shifts.items()
        for seed in (1, 2)
    }
    values, differences = fundus.values_table(found), fundus.differences_table(found)
    table = views.arm_table(values).set_index("arm")
    assert list(table.index) == ["real", "plain", "released"]
    assert table["error"].to_list() == pytest.approx([0.01, 0.02, 0.05]) and table.loc[
        "plain", "MMD, gap"
    ] == pytest.approx(0.3)
    points = views.race_points(values, views.CDR)
    assert set(points["lane"]) == {"real", "plain", "released"} and set(points["series"]) == set(
        RACES
    )
    lanes = views.difference_points(differences, views.CDR)
    assert list(lanes["lane"].unique()) == ["released less plain"] and list(lanes["series"]) == [
        "over people",
        "over seeds",
    ]
    told = views.bounds(
        {
            "values": values,
            "differences": differences,
            "people": pd.concat(
                [people.asked.assign(part="asked"), people.reference.assign(part="reference")]
            ),
        }
    )
    cups = told[told["figure"].str.contains("cup-to-disc")].set_index("arm")
    assert (
        cups["holds"].to_dict() == {"plain": "yes", "released": "yes"}
        and cups.loc["plain", "floor"] == "0.010"
    )


def test_groups_are_counted_and_arms_without_noise_have_no_sigma():
    table = views.counts(everybody(96)).set_index("group")["people"]
    assert table["Asian"] == 32 and table["F"] == 48 and len(table) == 7
    empty = pd.DataFrame(
        {"step": [1, 2], **{f"sigma_{name}": np.nan for name in finetuning.GROUPS}}
    )
    with pytest.raises(DataError, match="no arm here has a sigma"):
        views.sigma_path({"plain": empty})
    rows = views.gaps(
        pd.DataFrame(
            {"step": [1, 2, 3], "gap": [0.1, 0.2, 0.3], "probe_gap": [np.nan, 0.15, np.nan]}
        )
    )
    assert rows.groupby("measured").size().to_dict() == {"probe": 1, "training batch": 3}


# ---- fine-tuning
# --------------------------------------------------------------------------------------


def test_every_arm_has_its_weights(study):
    codes = np.stack([np.arange(40) % size for size in finetuning.SIZES], axis=1)
    found = {arm: fundus.weights_of(study, arm, 3, codes) for arm in fundus.ARMS}
    first = {arm: one.weights(codes, 0) for arm, one in found.items()}
    assert torch.equal(first["released"], first["random"]) and torch.equal(
        first["repaired"], first["random-repaired"]
    )
    assert (
        (first["released"] < 0).any()
        and (first["repaired"] >= 0).all()
        and (first["plain"] == 1).all()
    )
    assert found["released"].settings.window == study.window
    with pytest.raises(SettingsError, match="did you mean 'repaired'"):
        fundus.weights_of(study, "repared", 3, codes)


def test_batches_of_the_balanced_arm_are_a_third_of_each_race():
    groups = np.stack(
        [np.repeat([0, 1, 2], [4, 9, 40]), np.zeros(53, int), np.zeros(53, int)], axis=1
    )
    assert np.array_equal(finetuning.training_rows("released", groups, 1), np.arange(53))
    rows = finetuning.training_rows("balanced", groups, 1)
    races = np.bincount(groups[rows, 0])
    assert len(rows) == 53 and races.max() - races.min() <= 1
    for race in range(3):
        counts = np.bincount(rows, minlength=53)[groups[:, 0] == race]
        assert counts.max() - counts.min() <= 1, "nobody of a race is dealt twice more than another"
    assert np.array_equal(rows, finetuning.training_rows("balanced", groups, 1))
    assert not np.array_equal(rows, finetuning.training_rows("balanced", groups, 2))
    with pytest.raises(SettingsError, match="nobody of race Black"):
        finetuning.training_rows("balanced", groups[groups[:, 0] != 1], 1)


@pytest.mark.slow
def test_a_killed_tuning_goes_on_to_the_same_bits(study, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "SAVE", 2)
    for state, _ in fundus.tuning(study, "repaired", 1, tmp_path):
        if state.step == 5:  # saved at 4
            break
    *_, (state, rows) = fundus.tuning(study, "repaired", 1, tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    state.use_average()
    whole_run = read_tensors(fundus.tuned(study, "repaired", 1) / "denoiser.safetensors")
    assert all(
        torch.equal(value, whole_run[name]) for name, value in state.module.state_dict().items()
    )
    table = fundus.history(study, "repaired", 1)
    pd.testing.assert_frame_equal(pd.DataFrame(rows), table, check_dtype=False)
    assert (
        table["probe_gap"].notna().all()
        and table["share_negative"].eq(0).all()
        and (table["sigma_F"] <= 1).all()
    )


@pytest.mark.slow
def test_arms_of_a_seed_start_from_one_noise_and_one_denoiser(study, runs):
    tables = {arm: fundus.history(study, arm, 1) for arm in ARMS}
    assert len({round(table["plain_loss"].iloc[0], 5) for table in tables.values()}) == 1, (
        "the same batch and noise"
    )
    assert tables["released"]["loss"].iloc[0] != pytest.approx(tables["plain"]["loss"].iloc[0])
    first = fundus.made(study, "base", 1).images
    other = generation.made(replace(study, sample_batch=7), "base", 1).images
    assert (first.int() - other.int()).abs().max() <= 2, (
        "the same in any batch, but for sums in another order"
    )
    assert not torch.equal(first, fundus.made(study, "base", 2).images)
    assert not torch.equal(first, fundus.made(study, "plain", 1).images)


@pytest.mark.slow
def test_the_row_of_everyone_is_drawn_by_the_other_generator_from_the_same_noise(study, runs):
    other = replace(study, weights=study.everyone)
    shown, start = fundus.made(study, "everyone", 1).images, fundus.made(study, "base", 1).images
    assert torch.equal(shown, fundus.made(other, "base", 1).images) and not torch.equal(
        shown, start
    )
    losses = [
        fundus.final_probe(one, arm, 1)
        for one, arm in ((study, "everyone"), (other, "base"), (study, "base"))
    ]
    assert losses[0] == losses[1] != losses[2]
    seen = views.by_arm(study, ["base", "everyone"], 0, 1)
    assert seen.shape == (6, 1, 128, 128) and not torch.equal(seen[0], seen[1]), (
        "two arms in one row"
    )
    assert rows_of(study, ["plain"]) == ("real", "base", "everyone", "plain")
    assert rows_of(replace(study, everyone=""), ["plain"]) == ("real", "base", "plain")


@pytest.mark.slow
def test_distances_are_those_of_the_public_measure(study, runs):
    table = fundus.race_distances(study, "real", 1)
    x, y = fundus.features(study, "real"), fundus.features(study, "reference")
    rows, others = (
        (fundus.fundi(study, part).table["race"] == "Asian").to_numpy()
        for part in ("asked", "reference")
    )
    assert (
        table["Asian"].iloc[0] == pytest.approx(mmd(x[rows], y[others], n_min=2), abs=1e-5)
        and len(table) == 21
    )
    assert y.mean(0) == pytest.approx(0, abs=1e-5)


# ---- end to end
# --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_study_writes_what_the_report_reads(study, runs, tmp_path, monkeypatch, capsys):
    out = fundus.run_fundus_study(study, ARMS, [1], tmp_path / "fundus")
    fundus.run_fundus_study(study, ["plain", "released"], [2], out)
    found = fundus.load_fundus_results(out)
    assert found["study"]["runs"] == {
        "base": [1, 2],
        "everyone": [1, 2],
        "plain": [1, 2],
        "real": [1, 2],
        "released": [1, 2],
        "repaired": [1],
    }
    assert (
        found["readings"].groupby(["arm", "seed"]).size().eq(24).all()
        and len(found["people"]) == 48
    )
    assert (
        parse_prompt(fundus.fundi(study, "asked").table["prompt"][0])["race"]
        == found["readings"]["race"][0]
    )
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
    again = fundus.run_fundus_study(study, ["plain"], [1], out)
    assert {path.name: path.read_bytes() for path in again.glob("*.csv*")} == tables, (
        "the same arm and seed give the same tables"
    )
    with pytest.raises(DataError, match="another study"):
        fundus.run_fundus_study(replace(study, images=12), ["plain"], [1], out)
    with pytest.raises(SettingsError, match="did you mean 'plain'"):
        fundus.run_fundus_study(study, ["plane"], [1], out)

    table = fundus.fundus_report(out)
    assert (
        table["figure"].str.contains("cup-to-disc error").sum() <= 5
        and table["holds"].dtype == bool
    )
    assert table["figure"].str.contains("less that of released").sum() >= 3
    assert set(table[table["arm"] == "released"]["judge"]) >= {"t over 2 seeds"}
    monkeypatch.setattr("studies.fundus.study.fundus_results_folder", lambda: out)
    monkeypatch.setattr("studies.fundus.report.load_fundus_results", lambda folder=None: found)
    monkeypatch.setattr("studies.engine.study.criteria_of", lambda study: table.head(1))
    monkeypatch.setattr("studies.brain.report.many_images_folder", lambda: None)
    for module, name in (
        ("heart.report", "heart_results_folder"),
        ("statistics", "statistics_folder"),
    ):
        monkeypatch.setattr(f"studies.{module}.{name}", lambda: tmp_path)
    assert cli.main(["report"]) in (0, 1)
    spoken = capsys.readouterr().out
    assert spoken.count("figure") == 2 and "gap over races" in spoken


def test_results_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match="no results here"):
        fundus.load_fundus_results(tmp_path)


@pytest.mark.slow
def test_the_classifier_of_real_people_never_saw_whom_it_is_tried_on(study, runs, monkeypatch):
    seen = []
    monkeypatch.setattr(
        semantics,
        "fit_classifier",
        lambda reader, images, truth, settings: seen.append(images) or iter(()),
    )
    semantics.classifier_folder(replace(study, semantic_steps=2), semantics.JUDGES, 9)
    assert torch.equal(seen[0], fundus.fundi(study, "judges").images[:24])
