"""The brain study as data: its registry, and its figures on readings whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from studies.brain import report, study
from studies.brain.arms import TunedArm
from studies.brain.data import BrainSettings, alignment
from studies.engine.criteria import criteria_table
from studies.engine.study import load_results
from tests.studies.brain.test_outcomes import world

SHARES = {"untuned": 0.17, "class-standard": 0.30, "transport-robust": 0.45}
OWN = {"untuned": "robust", "class-standard": "standard", "transport-robust": "robust"}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    readings, known = world(SHARES, seeds=4)
    rng = np.random.default_rng(9)
    for column in ("robust", "standard", "heldout", "area"):
        readings[column], known[column] = readings.anatomy, known.anatomy
    sets = [known.assign(set=name) for name in report.SHARES]
    rows = [
        {"arm": arm, "seed": seed, "contrast": 1 - rng.random() / 100, "grade": 1.0, "side": 0.99}
        for arm in SHARES
        for seed in range(1, 5)
    ]
    cost = pd.DataFrame(
        [("untuned", 1, "sampling", 8000, 0), ("transport-robust", 1, "replay", 1440, 1440)],
        columns=["arm", "seed", "kind", "forward", "backward"],
    )
    tables = {
        "readings": readings,
        "calibration": pd.concat(sets),
        "measures": pd.DataFrame(rows),
        "cost": cost,
    }
    return criteria_table(report.criteria(tables, OWN))


def figure(table: pd.DataFrame, metric: str, arm: str, evaluator: str) -> pd.Series:
    rows = table[(table.metric_id == metric) & (table.arm == arm)]
    return rows[rows.evaluator == evaluator].iloc[0]


@pytest.mark.parametrize("arm", SHARES)
def test_shares_by_every_evaluator_cover_the_truth(table, arm):
    rows = table[table.metric_id.str.startswith("share") & (table.arm == arm)]
    assert set(rows.evaluator) == {report.OWN, *report.NAMES.values()}
    assert len(rows) == 4 * len(report.SHARES)
    assert (rows.low - 0.01 <= SHARES[arm]).all() and (SHARES[arm] <= rows.high + 0.01).all()


def test_the_default_is_held_to_the_criteria_and_others_are_not(table):
    distance = figure(table, "distance", "transport-robust", "anatomical measurement")
    assert bool(distance.met) and distance.estimate < 0.03
    assert figure(table, "distance", "class-standard", "anatomical measurement").met is None
    ratio = figure(table, "confirmation_ratio", "transport-robust", "anatomical measurement")
    assert ratio.estimate == pytest.approx(1) and bool(ratio.met)


def test_a_single_run_is_farther_from_the_target_than_the_mean_of_runs_on_both_sides_of_it():
    """Two seeds twelve points below and above: on target together, twelve points off each."""
    parts = [
        world({"untuned": 0.17, "class-published": share}, seeds=2) for share in (0.338, 0.578)
    ]
    (low, known), (high, _) = parts
    readings = pd.concat([low[low.seed == 1], high[high.seed == 2]])
    for column in ("robust", "heldout", "area"):
        readings[column], known[column] = readings.anatomy, known.anatomy
    tables = {"readings": readings, "calibration": known.assign(set="radiology")}
    rows = criteria_table(
        report.criteria(tables, dict.fromkeys(("untuned", "class-published"), "robust"))
    )
    runs = report.single_runs(readings, tables["calibration"]).set_index(["arm", "seed"]).share
    assert runs["class-published"].to_list() == pytest.approx([0.338, 0.578], abs=0.04)
    found = rows[(rows.arm == "class-published") & (rows.evaluator == "anatomical measurement")]
    found = found.set_index("metric_id").estimate
    assert found["distance"] < 0.03
    assert found["run_distance"] == pytest.approx(0.12, abs=0.03)
    assert found["run_spread"] == pytest.approx(0.24 / np.sqrt(2), abs=0.04)


def test_contrasts_name_the_rivals_that_were_run(table):
    rows = table[table.metric_id.str.startswith("contrast")].set_index("metric_id").estimate
    assert list(rows.index) == [
        "contrast_untuned",
        "contrast_p_untuned",
        "contrast_power_untuned",
        "contrast_class-standard",
        "contrast_p_class-standard",
        "contrast_power_class-standard",
    ]
    assert 0 < rows["contrast_power_untuned"] <= 1
    words = table.set_index("metric_id").figure
    for other in ("untuned", "class-standard"):
        assert words[f"contrast_power_{other}"].endswith(f"0.04 to {report.LABELS[other]}")
    assert rows["contrast_untuned"] == pytest.approx(-0.28, abs=0.03)
    assert rows["contrast_class-standard"] == pytest.approx(-0.15, abs=0.03)
    assert rows["contrast_p_untuned"] < 0.001


def test_other_arms_stand_against_the_planned_tuning_at_common_seeds(table):
    rows = table[table.metric_id == "against_planned"].set_index("arm")
    assert list(rows.index) == ["untuned", "class-standard"] and (rows.n == 4).all()
    away = {arm: abs(share - report.TARGET) for arm, share in SHARES.items()}
    for arm, row in rows.iterrows():
        assert row.low <= away[arm] - away["transport-robust"] <= row.high
        assert row.estimate > 0, "both lie farther from the target than the default does"


def test_the_gap_that_is_closed_is_zero_at_the_untuned_share_and_one_on_target(table):
    rows = table[table.metric_id == "gap_closed"]
    assert "untuned" not in set(rows.arm) and set(rows.evaluator) >= set(report.NAMES.values())
    for row in rows.itertuples():
        true = (SHARES[row.arm] - 0.17) / (report.TARGET - 0.17)
        assert row.low - 0.02 <= true <= row.high + 0.02


def test_an_arm_with_a_target_of_its_own_is_held_to_that():
    readings, known = world({"untuned": 0.17, "target-70": 0.70}, seeds=2)
    for column in ("robust", "heldout", "area"):
        readings[column], known[column] = readings.anatomy, known.anatomy
    tables = {"readings": readings, "calibration": known.assign(set="radiology")}
    rows = criteria_table(report.criteria(tables, {"untuned": "robust", "target-70": "robust"}))
    distance = figure(rows, "distance", "target-70", "anatomical measurement")
    assert distance.estimate < 0.06 and bool(distance.met) and distance.criterion == 0.06
    closed = figure(rows, "gap_closed", "target-70", "anatomical measurement")
    assert closed.estimate == pytest.approx(1, abs=0.1)


def test_shares_elsewhere_are_those_of_each_condition_with_its_bound():
    parts = []
    for condition, share in (("other side", 0.45), ("guidance 6", 0.30), ("25 steps", 0.45)):
        readings, known = world({report.PLANNED: share, "untuned": 0.17}, seeds=2)
        parts.append(readings.assign(condition=condition))
    tables = {"transfer": pd.concat(parts), "calibration": known.assign(set="radiology")}
    for column in ("heldout", "area"):
        for each in tables.values():
            each[column] = each.anatomy
    rows = criteria_table(report.elsewhere(tables))
    share = figure(rows, "share, guidance 6", "untuned", "held-out classifier")
    assert share.low <= 0.17 <= share.high
    met = rows[rows.metric_id.str.startswith("distance") & (rows.arm == report.PLANNED)]
    assert met.set_index("metric_id").met.to_dict() == {
        "distance, other side": True,
        "distance, guidance 6": False,
        "distance, 25 steps": None,
    }


def test_what_prose_quotes_is_the_table_by_name(table):
    readings = pd.DataFrame({"arm": ["untuned"] * 6, "seed": [1, 1, 1, 2, 2, 2]})
    found = report.numbers(table, readings)
    row = figure(table, "share", "transport-robust", "anatomical measurement")
    assert found["share_transport_robust_anatomy"] == row.estimate
    assert found["share_transport_robust_anatomy_high"] == row.high
    assert found["cost_transport_robust"] == 3 * 1440
    row = figure(table, "contrast_class-standard", "transport-robust", "anatomical measurement")
    assert found["closer_class_standard"] == pytest.approx(-100 * row.estimate)
    assert found["closer_class_standard_low"] == pytest.approx(-100 * row.high)
    assert found["images_untuned"] == 6 and found["seeds_untuned"] == 2
    assert np.isfinite(list(found.values())).all()
    assert len(found) > len(table), "no two rows have one name"


def test_the_rule_of_the_plan_puts_arms_that_keep_the_images_before_nearer_ones():
    cells = {  # distance, size within women and men, loss of fidelity in grade
        "near but small": (0.01, 0.05, -0.30, 1.0),
        "near but other images": (0.02, 0.05, 0.05, 4.0),
        "farther": (0.05, 0.10, -0.10, 3.0),
        "farthest": (0.09, 0.0, 0.0, 0.0),
        "target-30": (0.0, 0.0, 0.0, 0.0),
    }
    names = ("distance", "size_F", "size_M", "fidelity_loss_grade")
    read = ("anatomical measurement", "held-out classifier", "held-out classifier")
    rows = [
        {"arm": arm, "metric_id": name, "evaluator": evaluator, "estimate": value}
        for arm, values in cells.items()
        for name, evaluator, value in zip(
            names, (*read, "attribute classifier"), values, strict=True
        )
    ]
    rows += [
        {
            "arm": arm,
            "metric_id": f"fidelity_loss_{name}",
            "evaluator": "attribute classifier",
            "estimate": 0.0,
        }
        for arm in cells
        for name in ("contrast", "side")
    ]
    more = {"run_distance": read[0], "size_distance": read[0], "cost": "counter"}
    rows += [
        {"arm": "farther", "metric_id": name, "evaluator": evaluator, "estimate": float(place)}
        for place, (name, evaluator) in enumerate(more.items())
    ]
    table = report.standing(pd.DataFrame(rows))
    assert list(table.arm) == ["farther", "farthest", "near but small", "near but other images"]
    assert list(table.kept) == [True, True, False, False]
    assert table.loc[0, list(more)].tolist() == [0, 1, 2]
    assert table.loc[1:, list(more)].isna().all(axis=None)
    lacking = [row for row in rows if (row["arm"], row["metric_id"]) != ("farther", "size_M")]
    kept = report.standing(pd.DataFrame(lacking)).set_index("arm").kept
    assert not kept["farther"] and kept["farthest"], "a size that nobody measured is not kept"


@pytest.mark.parametrize("late, ratio", [(0.44, 0.25), (0.30, 0.125)])
def test_curves_of_cost_say_what_it_takes_to_come_near(late, ratio):
    """The planned tuning is near at 200 evaluations, class targets at 800 or, at 1,600, never;
    chosen noises are near at 1,200.
    """
    mine, (chosen,), _, theirs = report.CURVES.values()
    shares = dict(zip(mine, (0.20, 0.30, 0.44, 0.45), strict=True)) | {chosen: 0.46}
    shares |= dict(zip(theirs, (0.20, 0.20, late, late), strict=True)) | {"untuned": 0.17}
    costs = dict(zip([*mine, *theirs], (50, 100, 200, 400, 50, 400, 800, 1600), strict=True))
    costs[chosen] = 1200
    readings, known = world(shares, seeds=3)
    for column in ("robust", "heldout", "area"):
        readings[column], known[column] = readings.anatomy, known.anatomy
    cost = pd.DataFrame(
        [(arm, 1, "tuning", count, 0) for arm, count in costs.items()],
        columns=["arm", "seed", "kind", "forward", "backward"],
    )
    tables = {"readings": readings, "calibration": known.assign(set="radiology"), "cost": cost}
    rows = criteria_table(report.criteria(tables, dict.fromkeys(shares, "robust")))
    curve = rows[rows.metric_id == "curve_distance"].set_index("arm")
    assert list(curve.index) == [*mine, chosen, *theirs]
    assert curve.estimate[mine[1]] == pytest.approx(report.TARGET - 0.30, abs=0.03)
    found = figure(rows, "cost_ratio", report.PLANNED, "counter")
    assert found.estimate == ratio and bool(found.met)
    found = figure(rows, "cost_ratio", chosen, "counter")
    assert found.estimate == 6 * ratio and not bool(found.met)
    bound = rows[(rows.metric_id == "confirmation_ratio") & rows.criterion.notna()]
    assert set(bound.arm) == set(report.BOUND[:2]), "shorter runs are bound by nothing"
    apart = (readings.arm != theirs[0]) ^ (readings.seed == 3)  # no seed in common
    tables["readings"] = readings[apart | (readings.arm == "untuned")]
    rows = criteria_table(report.criteria(tables, dict.fromkeys(shares, "robust")))
    assert (rows.metric_id == "share").any() and not (rows.metric_id == "curve_distance").any()


def test_a_metric_across_evaluators_is_one_row_an_arm(table):
    wide = report.across(table, "share")
    assert list(wide.arm) == list(SHARES) and list(wide.columns[1:]) == [
        report.OWN,
        *report.NAMES.values(),
    ]
    row = figure(table, "share", "untuned", "measured area")
    expected = f"{100 * row.estimate:.1f} ({100 * row.low:.1f} to {100 * row.high:.1f})"
    assert wide.set_index("arm").loc["untuned", "measured area"] == expected


def test_arms_have_labels_in_one_order(table):
    labelled = report.labelled(table)
    assert list(dict.fromkeys(labelled.arm)) == [
        report.LABELS[arm] for arm in ("untuned", "transport-robust", "class-standard")
    ]
    assert set(report.LABELS) <= set(study.ARMS)
    readings = pd.DataFrame({"arm": ["untuned", "untuned", "class-standard"], "seed": [1, 2, 1]})
    counted = set(report.labelled(table, readings).arm)
    assert {"untuned model (2 seeds)", "class targets, standard classifier (1 seed)"} < counted
    other = report.labelled(table.assign(arm="words-any"))
    assert set(other.arm) == {"words-any"}


def test_an_evaluator_that_knows_nothing_has_no_share_and_stops_nothing():
    readings, known = world(SHARES, seeds=2)
    for column in ("robust", "standard", "heldout"):
        readings[column], known[column] = readings.anatomy, known.anatomy
    known["anatomy"] = 0.9  # takes everything for female
    tables = {"readings": readings, "calibration": known.assign(set="test")}
    rows = criteria_table(report.criteria(tables, OWN))
    useless = rows[(rows.evaluator == "anatomical measurement")]
    assert set(useless.metric_id) == {"share_test"} and useless.estimate.isna().all()
    shares = rows[rows.metric_id == "share_test"]
    assert shares[shares.evaluator == "held-out classifier"].estimate.notna().all()
    assert not rows.metric_id.str.startswith("contrast").any()


@pytest.mark.slow
def test_stored_criteria_are_those_of_the_stored_readings():
    """The table that prose quotes is made again from the readings, for the planned tuning."""
    stored = load_results(study.STUDY)
    arms = ["untuned", report.PLANNED]
    part = {name: table for name, table in stored.items() if "arm" in table.columns}
    part = {name: table[table.arm.isin(arms)] for name, table in part.items()}
    again = study.figures(part | {"calibration": stored["calibration"]}, BrainSettings())
    keys = ["metric_id", "arm", "evaluator"]
    old, new = (
        table[table.arm.isin(arms) & ~table.metric_id.str.startswith("contrast")]
        .set_index(keys)
        .estimate.sort_index()
        for table in (stored["criteria"], again)
    )
    assert len(new) > 40
    old = old[old.index.isin(new.index)]  # without what compares the default with other arms
    pd.testing.assert_series_equal(new, old, atol=1e-5, rtol=0)


def test_a_backward_pass_costs_two(table):
    assert figure(table, "cost", "transport-robust", "counter").estimate == 3 * 1440


def test_every_tuned_arm_has_valid_settings_and_an_evaluator_that_exists():
    settings = BrainSettings()
    for name, arm in (study.ARMS | study.SWEPT).items():
        assert arm.evaluator in study.EVALUATORS, name
        if isinstance(arm, TunedArm):
            chosen = alignment(settings, arm.tuning, 3)
            assert chosen.noise_seed is None and chosen.seed == 3, name


def test_methods_in_our_engine_have_one_budget():
    settings = BrainSettings()
    for name in ("class-standard", "quantile-robust", "transport-robust", "mean-kl-robust"):
        chosen = alignment(settings, study.ARMS[name].tuning, 1)
        images = chosen.steps * chosen.prompts_per_step * chosen.images_per_prompt
        tuning = images * (chosen.sampling_steps + 3 * chosen.replay_steps)
        cache = 8 * chosen.cache_size * chosen.sampling_steps
        assert tuning + cache == 17_760, name


def test_no_evaluator_reads_a_swept_arm():
    assert study.SWEEP.tables["readings"].make is study.choice_readings
    assert "calibration" not in study.SWEEP.tables


def test_a_choice_is_the_nearest_under_the_floor_of_similarity_and_the_weakest_of_equals():
    known = pd.DataFrame({"sex": ["F", "M"] * 500, "selection": [0.9, 0.1] * 500})
    cells = {
        "a@0.1": (0.30, 0.99),
        "a@0.2": (0.452, 0.95),  # 0.006 from the target, as good as the nearest
        "a@0.4": (0.456, 0.92),
        "b@1": (0.40, 0.91),
        "b@2": (0.46, 0.80),  # nearest, but another image
        "choose@3": (0.40, None),  # other noises: no image to be like
        "choose@6": (0.455, None),
        "choose@12": (0.46, None),
    }
    rows, cosine = [], []
    for arm, (share, similar) in cells.items():
        read = np.where(np.arange(1000) < 1000 * share, 0.9, 0.1)
        rows.append(pd.DataFrame({"arm": arm, "selection": read}))
        cosine += [(arm, similar)] if similar else []
    readings, similar = pd.concat(rows), pd.DataFrame(cosine, columns=["arm", "cosine"])
    table = report.choices(readings, similar, known)
    chosen = table[table.chosen]
    assert dict(zip(chosen.method, chosen.setting, strict=True)) == {
        "a": 0.2,
        "b": 1.0,
        "choose": 6.0,
    }
    assert table["share"].to_numpy() == pytest.approx(
        [0.30, 0.452, 0.456, 0.40, 0.46, 0.40, 0.455, 0.46]
    )
