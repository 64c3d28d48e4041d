"""Figures of the fundus study whose answer is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fairlib.cohorts.fairgenmed import CDR_STATUSES, SEVERITIES
from fairlib.cohorts.tables import ATTRIBUTES, RACES
from fairlib.errors import DataError
from fairlib.measures.equity import equity_report
from studies.fundus import measures, report
from studies.fundus.arms import ARMS
from studies.fundus.data import FUNDUS, FundusSettings, even_settings
from studies.fundus.evaluators import columns, stacked
from studies.fundus.measures import INDEX, Subjects, figures_of, times
from studies.fundus.phantom import PhantomSettings

HEADS = {name: values for name, values in FUNDUS.stated if name != "refraction"}
TASKS = FUNDUS.only(FUNDUS.learnt)


def everybody(count=96, seed=0):
    """A table of even people with a ratio for every word."""
    rows = []
    for i in range(count):
        own = even_settings(PhantomSettings(seed=0), i)
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
    return pd.DataFrame(rows).assign(requested_cdr=0.5)


def said(table, heads, prefix, rng=None):
    """Probabilities that are right for everybody, or random ones."""
    found = {}
    for name, values in heads.items():
        right = (table[name].to_numpy()[:, None] == np.array(values)).astype(float)
        found[name] = right if rng is None else rng.dirichlet(np.ones(len(values)), len(table))
    return columns(prefix, found, heads)


def figures(people, cdr, seen, rng=None):
    table = pd.concat(
        [
            pd.DataFrame({"cdr": cdr, "has_disc": seen}, index=people.requested.index),
            said(people.requested, HEADS, "p", rng),
            said(people.requested, TASKS, "s", rng),
        ],
        axis=1,
    )
    distance = pd.DataFrame(
        np.tile([0.1, 0.4, 0.2], (len(people.drawn_requested), 1)), columns=RACES
    )
    return figures_of(people, table, said(people.reference, TASKS, "s", rng), distance, table)


@pytest.fixture(scope="module")
def people():
    asked, reference = everybody(), everybody(120)
    return Subjects(asked, reference, times(asked, 30, 0), times(reference, 30, 1), 4)


def as_dict(found):
    return {
        tuple(key): value
        for key, value in zip(found.index.itertuples(index=False), found.draws[0], strict=True)
    }


def test_errors_gaps_and_shares_in_closed_form(people):
    black = (people.requested["race"] == "Black").to_numpy()
    women = (people.requested["sex"] == "F").to_numpy()
    seen = ~(black & women)
    found = as_dict(figures(people, np.where(seen, np.where(black, 0.7, 0.45), np.nan), seen))
    none = measures.NO_TASK
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
        found["attribute recovered", "race", "all", "all"]
        == found["attribute recovered, of real", "race", "all", "all"]
        == 1
    )


def test_areas_are_those_of_the_equity_report(people):
    rng = np.random.default_rng(4)
    found = figures(people, 0.5, True, rng)
    rng = np.random.default_rng(4)
    said(people.requested, HEADS, "p", rng), said(people.requested, TASKS, "s", rng)
    answers = said(people.reference, TASKS, "s", rng)
    for task, values in TASKS.items():
        label = pd.Index(values).get_indexer(people.reference[task])
        score = stacked(answers, "s", task, values)
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
        people.requested["sex"].eq("M")
        & people.requested["cdr_status"].eq("abnormal")
        & (np.arange(96) > 50)
    )
    asked = people.requested.assign(
        cdr_status=people.requested["cdr_status"].where(
            ~people.requested["sex"].eq("M") | few, "normal"
        )
    )
    less = replace(people, requested=asked, n_min=10)
    table = measures.excluded(less)
    assert ("auc, real to generated", "cdr_status", "sex", "M") in set(
        table[INDEX].itertuples(index=False, name=None)
    )
    found = as_dict(figures(less, 0.5, True))
    assert ("auc, real to generated", "cdr_status", "sex", "M") not in found
    assert ("auc, real to generated", "cdr_status", "sex", "gap") not in found, (
        "one group has no gap"
    )


def test_without_a_law_there_is_no_error_and_everything_else(people):
    found = as_dict(
        figures(replace(people, requested=people.requested.assign(requested_cdr=np.nan)), 0.5, True)
    )
    measures = {key[0] for key in found}
    assert "cdr error" not in measures and {"no disc", "mmd", "attribute recovered"} <= measures


def test_differences_are_paired_and_their_two_intervals_are_of_seeds_and_of_people(people):
    rng = np.random.default_rng(1)
    hard = rng.random(96)  # what is hard for one arm is as hard for the other
    shift = {1: 0.02, 2: 0.03, 3: 0.07}
    found = {}
    for seed, more in shift.items():
        found["plain", seed] = figures(people, 0.5 + hard, True)
        found["released", seed] = figures(people, 0.5 + hard + more, True)
    table = measures.differences_table(found).set_index(INDEX)
    row = table.loc[("cdr error", "-", "all", "all")]
    wanted = stats.t.interval(
        0.95, 2, np.mean(list(shift.values())), stats.sem(list(shift.values()))
    )
    assert row["difference"] == pytest.approx(0.04) and (
        row["seed_low"],
        row["seed_high"],
    ) == pytest.approx(wanted)
    assert row["subject_low"] == pytest.approx(0.04, abs=1e-6) and row[
        "subject_high"
    ] == pytest.approx(0.04, abs=1e-6)
    values = measures.values_table(found).set_index(["arm", *INDEX])
    own = values.loc[("plain", "cdr error", "-", "all", "all")]
    assert own["subject_high"] - own["subject_low"] > 0.05, "unpaired, people matter"
    assert np.isnan(measures.t_interval(np.ones((1, 3)))[0]).all()


def test_an_arm_without_a_figure_is_compared_in_the_others(people):
    seen = (people.requested["race"] != "Black").to_numpy()
    found = {("plain", 1): figures(people, 0.6, True), ("dro", 1): figures(people, 0.7, seen)}
    table = measures.differences_table(found)
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
        "subject_low": 0.0,
        "subject_high": 0.1,
    }
    for (low, high), words in (
        ((-0.1, 0.2), "do not show a difference"),
        ((0.1, 0.2), "wider"),
        ((-0.2, -0.1), "narrower"),
    ):
        table = pd.DataFrame(
            [row | {"difference": (low + high) / 2, "seed_low": low, "seed_high": high}]
        )
        said = report.in_words(table, "mmd", report.NO_TASK, "released", "random")
        assert words in said and "5 seeds" in said
    with pytest.raises(DataError, match="were not compared"):
        report.in_words(table, "mmd", report.NO_TASK, "dro", "random")


def test_every_arm_has_a_name_for_readers_of_its_own():
    assert set(report.LABELS) == set(ARMS)
    assert len(set(report.LABELS.values())) == len(ARMS)
    assert not set(report.LABELS.values()) & set(ARMS)


def test_points_and_tables_of_the_arms(people):
    shifts = {"real": 0.01, "plain": 0.02, "released": 0.05}
    found = {
        (arm, seed): figures(people, 0.5 + shift, True)
        for arm, shift in shifts.items()
        for seed in (1, 2)
    }
    values, differences = measures.values_table(found), measures.differences_table(found)
    table = report.arm_table(values).set_index("arm")
    assert list(table.index) == ["real", "plain", "released"]
    assert table["error"].to_list() == pytest.approx([0.01, 0.02, 0.05]) and table.loc[
        "plain", "MMD, gap"
    ] == pytest.approx(0.3)
    points = report.race_points(values, measures.CDR)
    assert set(points["arm"]) == {"real", "plain", "released"}
    assert set(points["race"]) == set(RACES)
    gaps = report.difference_points(differences, measures.CDR)
    assert set(gaps["comparison"]) == {"FairDiffusion (released) less plain fine-tuning"}
    assert list(gaps["interval"]) == ["over patients", "over seeds"]
    said = report.findings(differences)
    assert len(said) == 2 and said[0].startswith("**Quality.**")
    assert "FairDiffusion (released)" in said[1] and "plain fine-tuning" in said[1]
    of_races = report.by_race(differences, measures.MMD).iloc[0]
    assert of_races["arm"] == "FairDiffusion (released)"
    assert of_races["less that of"] == "plain fine-tuning"
    row = report.race_difference(differences, measures.MMD, "-", "released", "plain", "Black")
    assert set(report.numbers_of(row, "black")) == {"black", "black_low", "black_high"}
    patients = [
        people.requested.assign(part="requested"),
        people.reference.assign(part="reference"),
    ]
    tables = {"values": values, "differences": differences, "subjects": pd.concat(patients)}
    rows = pd.DataFrame(report.criteria(tables, FundusSettings()))
    cups = rows[rows["metric_id"] == "cdr"].set_index("arm")
    assert cups["met"].to_dict() == {"plain": True, "released": True}
    assert cups.loc["plain", "floor"] == pytest.approx(0.01)
    assert set(rows.query("metric_id == 'gap'")["met"]) == {None}


@pytest.mark.parametrize(("low", "met"), [(-0.1, True), (0.1, False)])
def test_the_repair_is_worse_only_where_the_whole_interval_says_so(low, met):
    row = {"measure": "mmd", "task": "-", "by": "race", "group": "gap", "difference": 0.2}
    ends = {"subject_low": low, "subject_high": 0.4, "seed_low": np.nan, "seed_high": np.nan}
    row |= {"arm": "repaired", "reference": "released", "seeds": 1, **ends}
    no_values = pd.DataFrame(columns=[*INDEX, "arm", "value"])
    people = pd.DataFrame({"part": ["requested"] * 3, "race": "Black"})
    tables = {"values": no_values, "differences": pd.DataFrame([row]), "subjects": people}
    (found,) = report.criteria(tables, FundusSettings())
    assert found["met"] is met and found["n"] == 3 and found["metric_id"] == "repair"
