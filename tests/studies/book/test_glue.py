"""What leaves a notebook: numbers MyST-NB can format, and figures that carry their texts."""

import re
from base64 import b64decode
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib import SettingsError
from studies.book.glue import glue, show, span, start, table
from studies.engine import repository
from studies.engine.profiles import notebooks
from tests.studies.options import declared_defaults

ALT = "A line that rises from one to two."


@pytest.fixture
def shown(monkeypatch):
    """What was displayed: pairs of (data, metadata)."""
    found = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, raw, metadata: found.append((data, metadata))
    )
    return found


@pytest.fixture
def figure():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([1, 2])
    yield figure
    plt.close("all")


def mystnb_text(shown, spec):
    """What MyST-NB itself makes of the last glued value."""
    from myst_nb.core.variables import format_plain_text

    data, metadata = shown[-1]
    prefix = metadata["scrapbook"]["mime_prefix"]
    return format_plain_text(data[prefix + "text/plain"], spec)


@pytest.mark.parametrize(
    "value, spec, text",
    [
        (0.4578, ".3f", "0.458"),
        (np.float64(0.4578), ".1%", "45.8%"),
        (np.float32(0.5), ".2f", "0.50"),
        (torch.tensor(0.25), ".2f", "0.25"),
        (np.array([3]), "d", "3"),
        (166, "d", "166"),
        ("many", "s", "many"),
        (np.bool_(True), "s", "True"),
    ],
)
def test_mystnb_formats_what_was_glued(shown, value, spec, text):
    glue("x", value)
    assert mystnb_text(shown, spec) == text


@pytest.mark.parametrize(
    "value", [float("nan"), np.inf, [1, 2], np.zeros(3), torch.zeros(2), None, {"a": 1}]
)
def test_what_a_sentence_cannot_quote_is_refused(shown, value):
    with pytest.raises(SettingsError, match="glue 'x'"):
        glue("x", value)
    assert not shown


def test_a_span_is_one_number_where_all_agree():
    assert span(pd.Series([8000, 1000, 2000])) == "1,000 to 8,000"
    assert span([1000.0, 1000.0]) == "1,000"


def test_figure_carries_alt_and_caption(shown, figure):
    import matplotlib.pyplot as plt

    show(figure.axes[0], ALT, "It\n  **rises**.", name="fig-rise")
    (data, metadata), (below, mark) = shown
    assert b64decode(data["image/png"]).startswith(b"\x89PNG") and data["text/plain"] == ALT
    assert metadata["fairlib"] == {"alt": ALT, "caption": "It **rises**.", "name": "fig-rise"}
    assert below["text/markdown"] == "It **rises**." and mark["fairlib"]["caption_only"]
    assert not plt.get_fignums(), "the figure is closed, or the notebook would show it twice"


def test_same_figure_same_bytes(shown, figure):
    show(figure, ALT, "It rises.")
    show(figure, ALT, "It rises.")
    assert shown[0][0] == shown[2][0]


@pytest.mark.parametrize(
    "alt, caption", [("", "It rises."), ("plot", "It rises."), (ALT, "  "), ("word " * 200, "x")]
)
def test_figure_without_texts_is_refused(shown, figure, alt, caption):
    with pytest.raises(SettingsError, match="alt text|caption"):
        show(figure, alt, caption)


def test_a_notebook_starts_in_the_project_with_checked_parameters(tmp_path, monkeypatch, capsys):
    import matplotlib

    namespace = declared_defaults(notebooks()["10_equity_and_statistics"])
    monkeypatch.chdir(tmp_path)
    with matplotlib.rc_context():
        parameters = start("10_equity_and_statistics", namespace)
        with pytest.raises(SettingsError, match="size_repeats"):
            start("10_equity_and_statistics", {**namespace, "size_repeats": "many"})
    assert Path.cwd() == repository() and parameters.profile == "quick"
    assert capsys.readouterr().out.startswith("profile quick, device: ")


# ---- tables for readers ----


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
