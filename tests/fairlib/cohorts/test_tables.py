"""Groups of subjects as codes, and the words in which a prompt states them."""

import numpy as np
import pandas as pd
import pytest

from fairlib import DataError
from fairlib.cohorts.tables import (
    ATTRIBUTES,
    group_codes,
    group_names,
    read_prompts,
    read_rows,
    read_text,
)

PLAIN = 'id,sex,height,site\nä1,Female,1.71,"Ward, left"\nä2,Male,-0.5,\n'


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


def respelt(delimiter, first=""):
    """The plain table as a spreadsheet of continental Europe saves it."""
    body = PLAIN.replace('"Ward, left"', "\0").replace(",", delimiter).replace(".", ",")
    return first + body.replace("\0", "Ward, left")


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace("site\n", "site,,\n").replace("-0.5,\n", "-0.5,,,\n,,,,,\n"),
        respelt(";"),
        respelt(";", "sep=;\n"),
        respelt("\t"),
        respelt("|"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("expected", [",", "\t"])
def test_what_spreadsheets_make_of_a_table_is_read(tmp_path, text, encoding, expected):
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    header, *rows = read_rows(tmp_path / "t.csv", expected)
    assert header[:4] == ["id", "sex", "height", "site"]
    quote = '"' * (expected == "\t" and "\t" in text and '"' in text)
    assert [row[:4] for row in rows] == [
        ["ä1", "Female", "1.71", f"{quote}Ward, left{quote}"],
        ["ä2", "Male", "-0.5", ""],
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PK\x03\x04 and more", "is a ZIP archive or an Office document"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"a,b\n\0\0\0,1\n", "cannot be read as UTF-8 text"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, data, reason):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataError, match=rf"t\.csv: {reason}"):
        read_rows(tmp_path / "t.csv")


def test_a_missing_table_says_what_is_there(tmp_path):
    (tmp_path / "T.CSV").write_text(PLAIN)
    with pytest.raises(DataError, match=r"no t\.csv in .* \(there is T\.CSV\); check the path"):
        read_text(tmp_path / "t.csv")


def test_prompts_are_lines_or_a_column_with_what_else_a_table_states(tmp_path):
    texts = ["axial brain, on the left", "brain"]
    (tmp_path / "prompts.txt").write_text(f"{texts[0]}\n\n  {texts[1]} \n")
    assert read_prompts(tmp_path / "prompts.txt").to_dict("list") == {"prompt": texts}
    (tmp_path / "prompts.csv").write_text(f'group,prompt\nold,"{texts[0]}"\nyoung,{texts[1]}\n')
    both = {"group": ["old", "young"], "prompt": texts}
    assert read_prompts(tmp_path / "prompts.csv").to_dict("list") == both


@pytest.mark.parametrize(
    ("text", "message"),
    [("text\nbrain\n", "has no column 'prompt'"), ("prompt\na\nb\na\n", "'a' stands twice")],
)
def test_a_table_without_prompts_or_with_one_twice_is_refused(tmp_path, text, message):
    (tmp_path / "prompts.csv").write_text(text)
    with pytest.raises(DataError, match=f"prompts.csv: .*{message}"):
        read_prompts(tmp_path / "prompts.csv")
