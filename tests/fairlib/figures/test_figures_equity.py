"""Bars of groups: heights, intervals, the line of everybody, and words, read back from what was
drawn.
"""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from fairlib.errors import DataError
from fairlib.figures.equity import group_bars

TABLE = pd.DataFrame(
    {
        "group": ["Asian", "White"],
        "value": [0.7, 0.9],
        "low": [0.6, 0.88],
        "high": [0.8, 0.92],
        "n": [90, 1760],
    }
)


def test_bars_stand_for_their_groups():
    ax = group_bars(TABLE, 0.88, "words")
    assert [round(bar.get_y() + bar.get_height(), 9) for bar in ax.patches] == [0.7, 0.9]
    assert (
        len({bar.get_facecolor() for bar in ax.patches})
        == len({bar.get_hatch() for bar in ax.patches})
        == 2
    )
    ends = [segment[:, 1].tolist() for part in ax.collections for segment in part.get_segments()]
    assert ends == [pytest.approx([0.6, 0.8]), pytest.approx([0.88, 0.92])]
    assert [text.get_text() for text in ax.get_xticklabels()] == [
        "Asian\n90 people",
        "White\n1,760 people",
    ]
    assert (
        ax.get_legend().get_texts()[0].get_text() == "everybody (88.0%)"
        and ax.get_title() == "words"
    )
    plt.close("all")


def test_a_table_without_a_column_is_refused():
    with pytest.raises(DataError, match="lacks column 'low'"):
        group_bars(TABLE.drop(columns="low"), 0.8)
