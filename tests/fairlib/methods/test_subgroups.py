"""Who counts as which subgroup, how much each weighs, and how a prevalence is reached."""

import numpy as np
import pandas as pd
import pytest

from fairlib.errors import DataError, SettingsError
from fairlib.methods.subgroups import age_edges, at_prevalence, balancing, labels_of, with_groups


def people(healthy=200, ill=60, slices=2):
    """Subjects with `slices` rows each."""
    names = [f"h{i:03d}" for i in range(healthy)] + [f"i{i:03d}" for i in range(ill)]
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "subject": names,
            "diagnosis": ["healthy"] * healthy + ["heart failure"] * ill,
            "sex": rng.choice(["F", "M"], len(names)),
            "age": rng.integers(30, 90, len(names)),
            "bmi": rng.uniform(18, 40, len(names)),
        }
    )
    return table.loc[table.index.repeat(slices)].reset_index(drop=True)


def test_the_groups_of_the_paper():
    table = pd.DataFrame({"age": [40, 60, 61, 70, 71], "bmi": [24.99, 25, 29.99, 30, 17]})
    found = with_groups(table, (60, 70))
    assert list(found.age_tertile) == ["lower", "lower", "middle", "middle", "upper"]
    assert list(found.bmi_group) == ["below 25", "25 to 30", "25 to 30", "30 and above", "below 25"]


def test_age_edges_are_those_of_subjects_not_of_slices():
    table = pd.DataFrame({"subject": list("abcdefg"), "age": [30, 40, 50, 60, 70, 80, 90]})
    often = pd.concat([table, *[table.iloc[:1]] * 20])
    assert age_edges(table) == age_edges(often) == (50, 70)
    drawn = with_groups(people().assign(bmi=25.0), age_edges(people()))
    assert drawn.age_tertile.value_counts(normalize=True).to_numpy() == pytest.approx(
        np.full(3, 1 / 3), abs=0.03
    )


def test_balancing_gives_every_group_one_total_and_keeps_the_mean():
    groups = pd.DataFrame({"sex": list("FFMMMMMM"), "ill": [1, 0, 0, 0, 0, 0, 1, 1]})
    weights = balancing(groups, cap=100)
    assert weights.mean() == pytest.approx(1)
    totals = pd.Series(weights).groupby([groups.sex, groups.ill]).sum()
    assert totals.to_numpy() == pytest.approx(np.full(4, 2.0))


def test_balancing_is_capped():
    groups = pd.DataFrame({"sex": ["F"] + ["M"] * 199})
    assert balancing(groups, cap=1000)[0] == pytest.approx(100)
    weights = balancing(groups, cap=10)
    assert weights[0] / weights[1:].mean() == pytest.approx(10 / (0.5 * 200 / 199))
    assert weights.mean() == pytest.approx(1) and (balancing(groups, cap=1) > 0).all()


@pytest.mark.parametrize("prevalence", [0.25, 0.10, 0.01, 0.6])
def test_a_prevalence_is_reached_by_leaving_out_whole_subjects(prevalence):
    table = people(healthy=500)
    chosen = table.iloc[at_prevalence(table, prevalence, seed=3)]
    by_subject = chosen.groupby("subject").size()
    assert (by_subject == 2).all()
    ill, total = sum(name.startswith("i") for name in by_subject.index), len(by_subject)
    assert abs(ill - prevalence * total) <= 0.5
    # The largest such part: one more ill subject would need more healthy ones than there are, or
    # there is no ill one left.
    assert ill == 60 or (ill + 1) * (1 - prevalence) / prevalence > 500


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_rows():
    table = people()
    shuffled = table.sample(frac=1, random_state=1)

    def kept(rows, seed):
        return set(rows.iloc[at_prevalence(rows, 0.1, seed)].subject)

    assert kept(table, 0) == kept(shuffled, 0) != kept(table, 1)


def test_an_impossible_prevalence_says_how_many_there_are():
    with pytest.raises(
        DataError,
        match="60 subjects with heart failure and 50 healthy; one ill subject needs 99 healthy",
    ):
        at_prevalence(people(healthy=50), 0.01, seed=0)
    with pytest.raises(DataError, match="0 subjects with heart failure"):
        at_prevalence(people(ill=0), 0.1, seed=0)
    with pytest.raises(SettingsError, match="between|below 1"):
        at_prevalence(people(), 1.0, seed=0)


def test_a_subject_with_two_diagnoses_is_refused():
    table = people()
    table.loc[0, "diagnosis"] = "heart failure"
    with pytest.raises(DataError, match="'h000' is healthy in one row and ill in another"):
        at_prevalence(table, 0.1, seed=0)


def test_missing_or_unknown_values_are_refused():
    table = people()
    with pytest.raises(DataError, match="3 of 520 rows have no bmi"):
        with_groups(table.assign(bmi=table.bmi.where(table.index > 2)), (50, 60))
    with pytest.raises(DataError, match="unknown key 'age'"):
        age_edges(table.drop(columns="age"))
    with pytest.raises(DataError, match="'DCM'"):
        labels_of(table.assign(diagnosis="DCM"))
    assert labels_of(table).sum() == 120
