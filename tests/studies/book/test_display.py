"""A table for a reader: words to the left, numbers to the right, the same page every time."""

import re

import numpy as np
import pandas as pd

from studies.book.display import table


def rows_of(styler):
    """The texts of a table, heads first."""
    rows = re.findall(r"<tr>(.*?)</tr>", styler.to_html(), re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]


def test_a_table_is_written_for_a_reader():
    """An index with a label twice, words that are markup, a missing value, an interval of a share
    and one of a number.
    """
    frame = pd.DataFrame(
        {
            "judge": ["guide <b>", None],
            "n": [1234, 7],
            "raw": [0.12345, np.nan],
            "raw_low": 0.1,
            "raw_high": [0.2, 1],
            "size": [1.5, -2],
            "size_low": [0, np.inf],
            "holds": [True, False],
        },
        index=[7, 7],
    )
    heads, first, second = rows_of(table(frame, digits=2, names={"judge": "read by"}))
    assert heads == ["read by", "images", "as read", "from", "to", "size", "from", "holds"]
    assert first == ["guide &lt;b&gt;", "1,234", "12%", "10%", "20%", "1.50", "0.00", "yes"]
    assert second == ["–", "7", "–", "10%", "100%", "-2.00", "inf", "no"]
    assert rows_of(table(frame[["size"]], percent=["size"]))[1:] == [["150.0%"], ["-200.0%"]]


def test_words_stand_to_the_left_and_numbers_to_the_right():
    html = table(
        pd.DataFrame({"arm": ["base"], "share": [0.5], "holds": [True]}), caption="A & B"
    ).to_html()
    assert re.findall(r"col(\d) {\s*text-align: (\w+)", html) == [
        ("0", "left"),
        ("1", "right"),
        ("2", "left"),
    ]
    assert "<caption>A &amp; B</caption>" in html


def test_the_same_frame_gives_the_same_page():
    frame = pd.DataFrame({"arm": ["base"], "share": [0.5]})
    assert table(frame).to_html() == table(frame.copy()).to_html()
    made = [table(frame), table(frame, names={"arm": "x"}), table(frame * 2)]
    ids = {re.search(r'<table id="(\w+)"', styler.to_html())[1] for styler in made}
    assert len(ids) == 3, "two tables of one page must not share their style"
