"""Criteria: the rule by which a figure meets one, their table, and those of the long runs."""

import dataclasses

import pandas as pd
import pytest

from fairlib.errors import DataError
from fairlib.io import read_json, write_json
from fairlib.measures.intervals import Interval
from studies.engine.criteria import (
    Criterion,
    Rule,
    criteria_of,
    criteria_table,
    formatted,
    interval_at,
    outdated,
)
from studies.engine.running import run_study
from studies.engine.study import Arm
from tests.studies.engine.toy import ARMS, MEAN, STUDY, Settings, draw

pytestmark = pytest.mark.usefixtures("fresh")


def test_criteria_are_those_of_the_stored_tables_and_settings(tmp_path):
    out = run_study(STUDY, Settings(count=4), None, [1], tmp_path)
    found = criteria_of(STUDY, out).set_index("arm")
    assert found["estimate"].to_dict() == {"base": 1.0, "one": 2.5}
    assert found["met"].to_dict() == {"base": False, "one": True}
    with pytest.raises(DataError, match="no results here"):
        criteria_of(STUDY, tmp_path / "nothing")


def test_rows_of_different_code_are_told(tmp_path):
    """By the code of the arm's latest rows, and of the other arms when these were made."""
    out = run_study(STUDY, Settings(), ["one"], [1], tmp_path)
    arms = {**ARMS, "one": Arm(lambda s, seed: draw(s.count, 1, seed + 0), "steps of one")}
    later = dataclasses.replace(STUDY, arms=arms)
    run_study(later, Settings(), ["two"], [1], out)
    assert outdated(out) == {"one": [1]}
    run_study(later, Settings(), ["one"], [1, 2], out, references=False)
    assert outdated(out) == {}


def test_results_older_than_these_notes_are_passed_over(tmp_path):
    out = run_study(STUDY, Settings(), ["one"], [1], tmp_path)
    record = read_json(out / "study.json")
    del record["rows"], record["latest"]
    write_json(out / "study.json", record)
    assert outdated(out) == {}
    run_study(STUDY, Settings(), ["two"], [1], out, references=False)
    assert outdated(out) == {"base": [1], "one": [1]}


@pytest.mark.parametrize(
    ("rule", "met"),
    [
        (Rule.AT_MOST, True),
        (Rule.AT_LEAST, False),
        (Rule.WHOLE_AT_MOST, False),
        (Rule.WHOLE_AT_LEAST, False),
        (Rule.NOT_ABOVE, True),
        (Rule.NONE, None),
    ],
)
def test_a_rule_says_what_meets_a_criterion(rule, met):
    row = Criterion("x", "share of {group}", 1.0, rule).row(
        "a", "e", Interval(0.9, 0.8, 1.2), 5, group="F"
    )
    assert row["met"] is met and row["figure"] == "share of F" and row["rule"] == rule.value


@pytest.mark.parametrize(("value", "met"), [(0.02, False), (0.05, True), (0.08, False)])
def test_a_criterion_may_have_two_ends(value, met):
    rate = Criterion("rate", "false positives", 0.03, Rule.BETWEEN, 2, upper=0.07)
    row = rate.row("a", "e", Interval(value, value, value), 5)
    assert row["met"] is met and row["upper"] == 0.07
    assert formatted(criteria_table([row])).criterion[0] == "estimate between 0.03 and 0.07"


@pytest.mark.parametrize("p, words", [(2e-5, "< 0.001"), (0.0112, "0.011")])
def test_a_p_value_is_never_zero(p, words):
    row = Criterion("p", "the same, p value (Holm over 3)").row(
        "a", "b", Interval(p, *[float("nan")] * 2), 8
    )
    assert formatted(criteria_table([row]))["estimate (95 % CI)"][0] == words


def test_a_compared_arm_has_no_criterion():
    row = MEAN.row("base", "eye", Interval(0.0, 0.0, 0.0), 1, compared=True)
    assert row["met"] is None and row["criterion"] != row["criterion"]


def test_the_interval_of_the_first_row_that_fits():
    table = pd.DataFrame(
        {"arm": ["a", "b", "b"], "seed": [1, 1, 2], "mean": [0.1, 0.2, 0.3], "low": 0.0, "high": 1}
    )
    ends = ("mean", "low", "high")
    assert interval_at(table, ends, arm="b") == Interval(0.2, 0.0, 1.0)
    assert interval_at(table, ends, arm="b", seed=2) == Interval(0.3, 0.0, 1.0)
    assert interval_at(table, ends, arm="a", seed=2) is None


def test_the_table_for_readers_has_estimate_interval_and_rule():
    rows = [
        MEAN.row("a", "e", Interval(0.9, 0.8, 1.2), 1200),
        MEAN.row("b", "e", Interval(3.0, 3.0, 3.0), 1, compared=True),
    ]
    shown = formatted(criteria_table(rows))
    assert shown.loc[0].to_dict() == {
        "figure": "mean value",
        "arm": "a",
        "evaluator": "e",
        "estimate (95 % CI)": "0.900 (0.800 to 1.200)",
        "floor": "–",
        "criterion": "estimate at least 2.500",
        "met": "no",
        "n": "1,200",
    }
    assert shown.loc[1, "met"] == "–" and shown.loc[1, "estimate (95 % CI)"] == "3.000"
