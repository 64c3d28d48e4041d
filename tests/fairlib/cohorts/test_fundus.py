"""The prompt of a fundus picture, the vocabularies behind it, and groups as codes."""

import itertools

import numpy as np
import pandas as pd
import pytest

from fairlib import DataError, SettingsError
from fairlib.cohorts.fundus import (
    ATTRIBUTES,
    EXAMPLE,
    PROMPTED,
    cdr_status,
    group_codes,
    group_names,
    parse_prompt,
    prompt_of,
)

ROW = {
    "race": "Black",
    "sex": "F",
    "ethnicity": "Non-Hispanic",
    "glaucoma": "glaucoma",
    "md_severity": "mild",
    "cdr_status": "abnormal",
    "refraction": "myopia",
}


def test_the_template_is_the_paper_s():
    assert (
        prompt_of(ROW)
        == (
            "SLO fundus image of a Black Female Non-Hispanic patient with the following "
            "conditions: "
            "glaucoma, mild vision loss, abnormal cup-disc ratio, myopia"
        )
        == EXAMPLE
    )
    assert prompt_of(ROW | {"glaucoma": "non-glaucoma", "md_severity": "normal"}).endswith(
        ": non-glaucoma, normal vision, abnormal cup-disc ratio, myopia"
    )


def test_every_prompt_is_its_own_and_is_read_back():
    rows = [
        dict(zip(PROMPTED, values, strict=True)) for values in itertools.product(*PROMPTED.values())
    ]
    assert len(rows) == 3 * 2 * 2 * 2 * 4 * 3 * 3 and len({prompt_of(row) for row in rows}) == len(
        rows
    )
    assert all(parse_prompt(prompt_of(row)) == row for row in rows)
    assert prompt_of(pd.Series(ROW)) == EXAMPLE


@pytest.mark.parametrize("value", ["unknown", None, np.nan, pd.NA])
@pytest.mark.parametrize("name", PROMPTED)
def test_a_row_that_has_no_prompt_says_why(name, value):
    with pytest.raises(DataError, match=f"^{name} .*leave rows without one out"):
        prompt_of(ROW | {name: value})
    with pytest.raises(DataError, match=f"the row has no '{name}'"):
        prompt_of({key: word for key, word in ROW.items() if key != name})


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("Black", "Blak", "did you mean 'Black'"),
        ("Female", "female", "did you mean 'Female'"),
        ("Female", "F", "known keys: Female, Male"),
        ("mild vision loss", "mild vision", "did you mean 'mild vision loss'"),
        ("abnormal", "odd", "known keys: normal, borderline, abnormal"),
        ("glaucoma,", "glaucomas,", "did you mean 'glaucoma'"),
        (", myopia", "", "does not follow the template"),
        ("SLO fundus", "Fundus", "does not follow the template"),
    ],
)
def test_words_outside_the_template_are_named(old, new, match):
    with pytest.raises(SettingsError, match=match):
        parse_prompt(EXAMPLE.replace(old, new))


@pytest.mark.parametrize(
    ("cdr", "status"),
    [
        (0, "normal"),
        (0.49999, "normal"),
        (0.5, "borderline"),
        (0.69999, "borderline"),
        (0.7, "abnormal"),
        (1, "abnormal"),
    ],
)
def test_the_status_is_a_threshold(cdr, status):
    assert cdr_status(cdr) == status


@pytest.mark.parametrize("cdr", [-0.01, 1.01, np.nan])
def test_no_ratio_no_status(cdr):
    with pytest.raises(DataError, match="between 0 and 1"):
        cdr_status(cdr)


def test_groups_are_positions_in_the_vocabulary():
    table = pd.DataFrame(
        {
            "race": ["White", "Asian", "Black"],
            "sex": ["M", "F", "F"],
            "ethnicity": ["Hispanic", "Non-Hispanic", "Non-Hispanic"],
        },
        index=[7, 7, 9],
    )
    codes = group_codes(table)
    assert codes.dtype == np.int64 and codes.tolist() == [[2, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert group_codes(table.astype("string")).tolist() == codes.tolist()
    named = [[list(ATTRIBUTES.values())[a][code] for a, code in enumerate(row)] for row in codes]
    assert named == table[list(ATTRIBUTES)].to_numpy().tolist()
    assert group_codes(table, {"sex": ("M", "F")}).tolist() == [[0], [1], [1]]
    assert group_codes(table[:0]).shape == (0, 3)


def test_the_seven_groups_have_names():
    names = group_names()
    assert (
        len(names) == 7 and names[0] == ("race", "Asian") and names[-1] == ("ethnicity", "Hispanic")
    )


@pytest.mark.parametrize("value", ["Other", None])
def test_a_group_outside_the_vocabulary_is_named(value):
    table = pd.DataFrame({"sex": ["F", "M", "F"], "race": ["Asian", value, value]})
    with pytest.raises(DataError, match=r"race of row 1 is .* \(2 such rows of 3\)"):
        group_codes(table, {"sex": ("F", "M"), "race": ("Asian", "Black")})
    with pytest.raises(DataError, match="unknown key 'ethnicity'"):
        group_codes(table, {"ethnicity": ("Hispanic",)})
