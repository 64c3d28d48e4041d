"""The comparison as data: its registry, and its figures on readings whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from studies.brain import comparison, comparison_report
from studies.brain.arms import TunedArm
from studies.brain.data import ComparisonSettings, alignment
from studies.engine.criteria import criteria_table
from tests.studies.brain.test_outcomes import world

SHARES = {"untuned": 0.17, "class-standard": 0.30, "transport-robust": 0.45}
OWN = {"untuned": "robust", "class-standard": "standard", "transport-robust": "robust"}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    readings, known = world(SHARES, seeds=4)
    rng = np.random.default_rng(9)
    for column in ("robust", "standard", "heldout", "area"):
        readings[column], known[column] = readings.anatomy, known.anatomy
    sets = [known.assign(set=name) for name in comparison_report.SETS]
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
    return criteria_table(comparison_report.criteria(tables, OWN))


def figure(table: pd.DataFrame, metric: str, arm: str, evaluator: str) -> pd.Series:
    rows = table[(table.metric_id == metric) & (table.arm == arm)]
    return rows[rows.evaluator == evaluator].iloc[0]


@pytest.mark.parametrize("arm", SHARES)
def test_shares_by_every_evaluator_cover_the_truth(table, arm):
    rows = table[(table.metric_id == "share") & (table.arm == arm)]
    assert set(rows.evaluator) == {comparison_report.OWN, *comparison_report.NAMES.values()}
    assert len(rows) == 4 * len(comparison_report.SETS)
    assert (rows.low - 0.01 <= SHARES[arm]).all() and (SHARES[arm] <= rows.high + 0.01).all()


def test_the_default_is_held_to_the_criteria_and_others_are_not(table):
    distance = figure(table, "distance", "transport-robust", "anatomical measurement")
    assert bool(distance.met) and distance.estimate < 0.03
    assert figure(table, "distance", "class-standard", "anatomical measurement").met is None
    ratio = figure(table, "confirmation_ratio", "transport-robust", "anatomical measurement")
    assert ratio.estimate == pytest.approx(1) and bool(ratio.met)


def test_contrasts_name_the_rivals_that_were_run(table):
    rows = table[table.metric_id == "contrast"]
    assert [row.figure.split(" (")[0] for row in rows.itertuples()] == [
        "distance less that of untuned",
        "distance less that of class-standard",
    ]
    assert rows.estimate.to_numpy() == pytest.approx([-0.28, -0.15], abs=0.03)


def test_a_backward_pass_costs_two(table):
    assert figure(table, "cost", "transport-robust", "counter").estimate == 3 * 1440


def test_every_tuned_arm_has_valid_settings_and_an_evaluator_that_exists():
    settings = ComparisonSettings()
    for name, arm in (comparison.ARMS | comparison.SWEPT).items():
        assert arm.evaluator in comparison.EVALUATORS, name
        if isinstance(arm, TunedArm):
            chosen = alignment(settings, arm.tuning, 3)
            assert chosen.noise_seed is None and chosen.seed == 3, name


def test_methods_in_our_engine_have_one_budget():
    settings = ComparisonSettings()
    for name in ("class-standard", "quantile-robust", "transport-robust", "mean-kl-robust"):
        chosen = alignment(settings, comparison.ARMS[name].tuning, 1)
        images = chosen.steps * chosen.prompts_per_step * chosen.images_per_prompt
        tuning = images * (chosen.sampling_steps + 3 * chosen.replay_steps)
        cache = 8 * chosen.cache_size * chosen.sampling_steps
        assert tuning + cache == 17_760, name


def test_no_evaluator_reads_a_swept_arm():
    assert comparison.SWEEP.tables["readings"].make is comparison.choice_readings
    assert "calibration" not in comparison.SWEEP.tables


def test_a_choice_is_the_nearest_under_the_floor_of_similarity_and_the_weakest_of_equals():
    known = pd.DataFrame({"sex": ["F", "M"] * 500, "selection": [0.9, 0.1] * 500})
    cells = {
        "a@0.1": (0.30, 0.99),
        "a@0.2": (0.452, 0.95),  # 0.006 from the target, as good as the nearest
        "a@0.4": (0.456, 0.92),
        "b@1": (0.40, 0.91),
        "b@2": (0.46, 0.80),  # nearest, but another image
    }
    rows, cosine = [], []
    for arm, (share, similar) in cells.items():
        read = np.where(np.arange(1000) < 1000 * share, 0.9, 0.1)
        rows.append(pd.DataFrame({"arm": arm, "selection": read}))
        cosine.append((arm, similar))
    readings, similar = pd.concat(rows), pd.DataFrame(cosine, columns=["arm", "cosine"])
    table = comparison_report.choices(readings, similar, known)
    chosen = table[table.chosen]
    assert dict(zip(chosen.method, chosen.setting, strict=True)) == {"a": 0.2, "b": 1.0}
    assert table["share"].to_numpy() == pytest.approx([0.30, 0.452, 0.456, 0.40, 0.46])
