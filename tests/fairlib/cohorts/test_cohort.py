"""Cohorts: splits by person, honest intervals, and no silent loss."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fairlib import DataError, SettingsError
from fairlib.cohorts.cohort import Cohort, allot, no_prompt

REAL = {("M", "HGG"): 63, ("F", "HGG"): 38, ("M", "LGG"): 27, ("F", "LGG"): 38}
PARTS = {"train": 0.6, "validation": 0.2, "test": 0.2}


def people_of(parts: dict[str, Cohort]) -> dict[str, str]:
    return {subject: name for name, part in parts.items() for subject in part.subjects()}


def test_split_never_parts_a_subject_and_loses_no_row(make_cohort):
    cohort = make_cohort(REAL, images=3)
    parts = cohort.split(PARTS, seed=0)
    sets = [set(part.subjects()) for part in parts.values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 166
    assert sorted(pd.concat([part.table for part in parts.values()])["image"]) == sorted(
        cohort.table["image"]
    )


def test_every_stratum_is_within_one_subject_of_its_fraction(make_cohort):
    for seed in range(5):
        parts = make_cohort(REAL, images=2).split(PARTS, seed=seed)
        for (sex, grade), count in REAL.items():
            for name, fraction in PARTS.items():
                table = parts[name].by_subject(["sex", "grade"])
                got = int(((table["sex"] == sex) & (table["grade"] == grade)).sum())
                assert abs(got - fraction * count) <= 1


def test_split_depends_on_the_seed_and_on_nothing_else(make_cohort):
    cohort = make_cohort(REAL, images=2)
    shuffled = cohort.select(np.random.default_rng(1).permutation(len(cohort)))
    assert people_of(cohort.split(PARTS, seed=3)) == people_of(shuffled.split(PARTS, seed=3))
    assert people_of(cohort.split(PARTS, seed=3)) != people_of(cohort.split(PARTS, seed=4))


def test_split_is_a_draw_without_favourites(make_cohort):
    """Over many seeds each subject is in the test part about one time in five."""
    cohort, parts = make_cohort({("F", "HGG"): 20, ("M", "HGG"): 20}), {"train": 0.8, "test": 0.2}
    drawn = [set(cohort.split(parts, seed=seed)["test"].subjects()) for seed in range(60)]
    hits = np.array([sum(subject in test for test in drawn) for subject in cohort.subjects()])
    assert hits.sum() == 60 * 8
    assert (
        binomtest(int(hits.min()), 60, 0.2).pvalue > 1e-4
        and binomtest(int(hits.max()), 60, 0.2).pvalue > 1e-4
    )


@given(
    n=st.integers(0, 60),
    weights=st.lists(st.floats(0.05, 1), min_size=1, max_size=5),
    ahead=st.lists(st.floats(-2, 2), min_size=5, max_size=5),
)
def test_allotment_is_whole_positive_and_within_one(n, weights, ahead):
    fractions = {str(i): weight / sum(weights) for i, weight in enumerate(weights)}
    counts = allot(n, fractions, {str(i): value for i, value in enumerate(ahead)})
    if counts is None:
        # Brute force: no allotment with at least one each stays within one of every quota.
        high = [int(np.floor(fractions[name] * n + 1 + 1e-9)) for name in fractions]
        low = [max(1, int(np.ceil(fractions[name] * n - 1 - 1e-9))) for name in fractions]
        assert n < sum(low) or n > sum(high) or any(a > b for a, b in zip(low, high, strict=True))
        return
    assert sum(counts.values()) == n and min(counts.values()) >= 1
    assert all(abs(counts[name] - fractions[name] * n) <= 1 + 1e-6 for name in fractions)


def test_a_subgroup_too_small_to_split_is_named(make_cohort):
    cohort = make_cohort({**REAL, ("F", "LGG"): 2})
    with pytest.raises(DataError, match=r"sex=F, grade=LGG: 2 subject"):
        cohort.split(PARTS, seed=0)


def test_without_strata_the_whole_cohort_is_split(make_cohort):
    parts = make_cohort(REAL).split(PARTS, seed=0, stratify=())
    assert [len(part) for part in parts.values()] == [100, 33, 33]
    with pytest.raises(DataError, match=r"the cohort: 2 subject"):
        make_cohort({("F", "HGG"): 2}).split(PARTS, seed=0, stratify=())


def test_unknown_sex_is_a_stratum_of_its_own(make_cohort):
    cohort = make_cohort({**REAL, ("", "HGG"): 1})
    with pytest.raises(DataError, match=r"sex=unknown.*with_known_sex"):
        cohort.split(PARTS, seed=0)
    assert len(cohort.with_known_sex().split(PARTS, seed=0)) == 3


@pytest.mark.parametrize(
    "fractions", [{"a": 0.5, "b": 0.4}, {"a": 1.2, "b": -0.2}, {"a": 1.0, "b": 0.0}]
)
def test_fractions_must_be_positive_and_sum_to_one(make_cohort, fractions):
    with pytest.raises(SettingsError, match="sum to"):
        make_cohort(REAL).split(fractions, seed=0)


def test_shares_are_those_of_the_real_joined_cohort(make_cohort):
    """76 of 166 female with an interval of 38 to 53 %; 38 of 101 in high and 38 of 65 in low
    grade.
    """
    cohort = make_cohort(REAL, images=2)
    row = cohort.shares().iloc[0]
    assert (row["female"], row["n"]) == (76, 166)
    assert (
        row["share"] == pytest.approx(76 / 166)
        and round(row["low"], 2) == 0.38
        and round(row["high"], 2) == 0.53
    )
    by_grade = cohort.shares("grade").set_index("grade")
    assert by_grade["share"].to_dict() == pytest.approx({"HGG": 38 / 101, "LGG": 38 / 65})


def test_image_interval_counts_people_not_pictures(make_cohort):
    """Five equal pictures of each person say no more about the share than one."""
    one, five = (make_cohort(REAL, images=k).shares(unit="image").iloc[0] for k in (1, 5))
    assert five["n"] == 5 * one["n"]
    assert (five["low"], five["high"]) == pytest.approx((one["low"], one["high"]))


def test_unknown_sex_is_counted_apart(make_cohort):
    row = make_cohort({("F", "HGG"): 3, ("M", "HGG"): 1, ("", "HGG"): 2}).shares().iloc[0]
    assert (row["female"], row["n"], row["unknown"], row["share"]) == (3, 4, 2, 0.75)


def test_with_known_sex_lists_whom_it_leaves_out(make_cohort):
    cohort = make_cohort({("F", "HGG"): 3, ("", "HGG"): 2}, images=4)
    known = cohort.with_known_sex()
    assert len(known) == 12 and list(known.excluded["item"]) == ["HGG--000", "HGG--001"]
    assert set(known.excluded["reason"]) == {"sex unknown"} and not len(cohort.excluded)


def test_labels_are_one_for_female(make_cohort):
    cohort = make_cohort({("F", "HGG"): 2, ("M", "HGG"): 1})
    assert torch.equal(cohort.labels(), torch.tensor([1, 1, 0]))
    with pytest.raises(DataError, match="with_known_sex"):
        make_cohort({("F", "HGG"): 1, ("", "HGG"): 1}).labels()


def test_load_reads_the_rows_asked_for_and_no_others(make_cohort):
    cohort, asked = make_cohort({("F", "HGG"): 6}), []
    watched = Cohort("w", cohort.table, lambda key: asked.append(key) or cohort.read_image(key))
    images = watched.load([4, 1])
    assert asked == list(cohort.table["image"].iloc[[4, 1]])
    assert images.shape == (2, 1, 8, 8) and images.dtype == torch.float32
    assert torch.equal(images, cohort.load()[[4, 1]])


def test_select_takes_masks_with_missing_values_and_positions(make_cohort):
    cohort = make_cohort({("F", "HGG"): 2, ("", "HGG"): 2, ("M", "HGG"): 1})
    assert len(cohort.select(cohort.table["sex"] == "F")) == 2
    assert cohort.select([4, 0]).table["sex"].tolist() == ["M", "F"]
    assert list(cohort.select([4, 0]).table.index) == [0, 1] and len(cohort.select([])) == 0


@pytest.mark.parametrize("rows", [[5], [-1], [0.5], [True, False]])
def test_select_refuses_rows_that_are_not_there(make_cohort, rows):
    with pytest.raises(DataError, match="mask|positions"):
        make_cohort({("F", "HGG"): 5}).select(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sex": ["F", "woman"]}, "woman"),
        ({"image": ["a", "a"]}, "listed twice"),
        ({"subject": ["x", None]}, "no subject"),
    ],
)
def test_a_table_that_breaks_the_convention_is_refused(change, message):
    table = pd.DataFrame({"subject": ["x", "y"], "sex": ["F", "M"], "image": ["a", "b"], **change})
    with pytest.raises(DataError, match=message):
        Cohort("bad", table, dict)


def test_a_missing_column_is_named_with_its_neighbour(make_cohort):
    with pytest.raises(DataError, match="'image'"):
        Cohort("bad", pd.DataFrame({"subject": ["x"], "sex": ["F"], "images": ["a"]}), dict)
    with pytest.raises(DataError, match="did you mean 'grade'"):
        make_cohort(REAL).shares("grades")


def test_a_subject_with_two_sexes_is_refused():
    table = pd.DataFrame({"subject": ["x", "x"], "sex": ["F", "M"], "image": ["a", "b"]})
    with pytest.raises(DataError, match="'x' has several values"):
        Cohort("bad", table, dict).split({"a": 0.5, "b": 0.5}, seed=0, stratify=["sex"])


@pytest.mark.parametrize("bad", [np.full((8, 8), 1.5), np.full((8, 8), np.nan), np.zeros((4, 4))])
def test_a_reader_outside_the_convention_is_refused(make_cohort, bad):
    cohort = make_cohort({("F", "HGG"): 2})
    keys = iter([np.zeros((8, 8), np.float32), bad.astype(np.float32)])
    with pytest.raises(DataError, match="shapes|values reach"):
        Cohort("bad", cohort.table, lambda _: next(keys)).load()


def full(prompts, **fields):
    """Three images of two subjects, with masks."""
    table = pd.DataFrame(
        {
            "subject": ["x", "x", "y"],
            "sex": ["F", "F", "M"],
            "image": ["a", "b", "c"],
            "age": [50, 50, np.nan],
            "prompt": pd.array(prompts, dtype="string"),
        }
    )
    mask = np.arange(4, dtype=np.uint8).reshape(1, 2, 2)
    read = {"read_image": lambda _: np.zeros((2, 2), np.float32), "read_mask": lambda _: mask}
    return Cohort("full", table, **read, **fields)


def test_masks_are_read_like_images(make_cohort):
    masks = full(["p"] * 3).load_masks([0, 2])
    assert masks.dtype == torch.uint8 and masks.tolist() == [[[[0, 1], [2, 3]]]] * 2
    with pytest.raises(DataError, match="has no masks"):
        make_cohort(REAL).load_masks()


def test_rows_without_prompt_are_listed_once_each(make_cohort):
    by_image = full(["p", None, None], why_no_prompt=partial(no_prompt, needed=("sex", "age")))
    assert by_image.with_prompt().excluded.to_numpy().tolist() == [
        ["b", "prompt unknown", ""],
        ["c", "age unknown", ""],
    ]
    by_subject = full([None, None, "p"], why_no_prompt=lambda row: (row["subject"], "old", ""))
    whole = by_subject.with_prompt()
    assert whole.excluded.to_numpy().tolist() == [["x", "old", ""]] and whole.subjects() == ["y"]
    with pytest.raises(DataError, match="'prompt'"):
        make_cohort(REAL).with_prompt()


def test_what_a_data_set_does_not_state_is_said():
    cohort = full(["p"] * 3, not_stated={"bmi": "take another data set"})
    for use in (lambda: cohort.by_subject(["bmi"]), lambda: cohort.shares("bmi")):
        with pytest.raises(DataError, match="full: has no bmi; take another data set"):
            use()


def test_a_cohort_without_sex_has_no_labels_and_no_shares():
    table = pd.DataFrame({"subject": ["x", "y"], "image": ["a", "b"]})
    cohort = Cohort("sexless", table, dict)
    for use in (cohort.labels, cohort.shares, cohort.with_known_sex, cohort.by_subject):
        with pytest.raises(DataError, match="sexless: has no sex; unknown key 'sex'"):
            use()
    assert len(cohort.split({"a": 0.5, "b": 0.5}, seed=0, stratify=())["a"]) == 1
