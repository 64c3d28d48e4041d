"""Groups of subjects as codes, and the words in which a prompt states them."""

import numpy as np
import pandas as pd
import pytest

from fairlib import DataError
from fairlib.cohorts.tables import ATTRIBUTES, group_codes, group_names


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
