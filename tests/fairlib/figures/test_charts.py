"""The closer figures: what is drawn is what the table says."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from fairlib import figures  # noqa: E402
from fairlib.errors import DataError  # noqa: E402
from fairlib.figures.images import closed_curve  # noqa: E402
from studies.brain.anatomy import Outline, outline  # noqa: E402


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def table():
    return pd.DataFrame(
        {
            "evaluator": ["a", "b", "a", "b"],
            "arm": ["base", "base", "tuned", "tuned"],
            "share": [0.1, 0.2, 0.4, 0.5],
            "share_low": [0.0, 0.1, 0.3, 0.4],
            "share_high": [0.3, 0.3, 0.5, 0.6],
        }
    )


def drawn(ax, label):
    """(x, y, low, high) of the marks of one series."""
    [container] = [c for c in ax.containers if c.get_label() == label]
    line, _, (bars,) = container
    ends = np.array([segment[:, 0] for segment in bars.get_segments()])
    return np.column_stack([line.get_xdata(), line.get_ydata(), ends])


def test_dots_are_where_the_table_says_with_their_intervals():
    ax = figures.dot_plot(
        table(), "share", "evaluator", "arm", reference=0.45, reference_label="target"
    )
    for name, rows in table().groupby("arm"):
        found = drawn(ax, name)
        assert np.allclose(found[:, [0, 2, 3]], rows[["share", "share_low", "share_high"]])
        assert [round(y) for y in found[:, 1]] == [0, 1]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "a",
        "b",
    ] and ax.yaxis_inverted()
    assert any(np.allclose(line.get_xdata(), 0.45) for line in ax.get_lines())
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"base", "tuned", "target"}


def test_series_differ_in_shape_and_not_in_colour_alone():
    ax = figures.dot_plot(table(), "share", "evaluator", "arm")
    marks = {container.get_label(): container[0].get_marker() for container in ax.containers}
    assert len(set(marks.values())) == len(marks) == 2


def test_one_series_needs_no_legend():
    assert figures.dot_plot(table()[:2], "share", "evaluator", "arm").get_legend() is None


def test_lines_are_sorted_and_named():
    shuffled = pd.DataFrame(
        {"x": [3, 1, 2, 1], "y": [9.0, 1.0, 4.0, 5.0], "s": ["p", "p", "p", "q"]}
    )
    ax = figures.line_plot(shuffled, "x", "y", "s", log=True)
    first = ax.get_lines()[0]
    assert first.get_xdata().tolist() == [1, 2, 3] and first.get_ydata().tolist() == [1, 4, 9]
    assert ax.get_yscale() == "log"


def test_panels_share_one_legend_and_one_scale():
    long = pd.DataFrame(
        [
            {"x": x, "y": x * k, "s": s, "kind": kind}
            for x in (1, 2)
            for s, k in (("p", 1), ("q", 5))
            for kind in ("noise", "blur")
        ]
    )
    figure = figures.line_panels(long, "x", "y", "s", "kind", "moved")
    first, second = figure.axes
    assert (first.get_xlabel(), second.get_xlabel()) == ("noise", "blur")
    assert first.get_ylim() == second.get_ylim() and first.get_legend() is None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["p", "q"]
    assert (first.get_ylabel(), second.get_ylabel()) == ("moved", "")


def test_curves_keep_their_own_words():
    steps = pd.DataFrame(
        {"step": [0, 1, 2], "alignment": [3.0, 2.0, 1.0], "share": [0.1, 0.2, 0.4], "arm": "robust"}
    )
    figure = figures.training_panels(steps, {"alignment": None, "share": 0.458})
    assert [panel.get_ylabel() for panel in figure.axes] == [
        "alignment loss",
        "share read as female",
    ]
    assert any("45.8" in text.get_text() for text in figure.legends[0].get_texts())


def test_strip_plot_puts_each_point_in_its_lane_and_marks_the_mean():
    people = pd.DataFrame(
        {
            "mm": [140.0, 142, 150, 158],
            "sex": ["F", "F", "M", "M"],
            "lane": ["women", "women", "men", "men"],
        }
    )
    ax = figures.strip_plot(people, "mm", "lane")
    points = {c.get_label(): c.get_offsets().data for c in ax.collections}
    assert np.allclose(points["F"][:, 0], [140, 142]) and np.abs(points["F"][:, 1]).max() < 0.5
    assert np.allclose(points["M"][:, 0], [150, 158]) and np.abs(points["M"][:, 1] - 1).max() < 0.5
    [means] = [line for line in ax.get_lines() if line.get_label() == "mean"]
    assert means.get_xdata().tolist() == [141, 154]


def test_scatter_draws_every_row():
    ax = figures.scatter(table().assign(sex=["F", "M", "F", "M"]), "share", "share_low")
    assert sorted(np.concatenate([c.get_offsets().data[:, 0] for c in ax.collections])) == [
        0.1,
        0.2,
        0.4,
        0.5,
    ]


def disc(radius, size=128):
    row, column = np.mgrid[:size, :size] - size / 2
    return np.where(row**2 + column**2 < radius**2, 0.5, -1.0).astype(np.float32)


def test_maps_are_symmetric_about_zero_each_layer_on_its_own_scale():
    images = np.stack([disc(30), disc(40)])[:, None]
    small, large = np.zeros_like(images), np.zeros_like(images)
    small[:, 0, 60:70, 60:70], large[:, 0, 60:70, 60:70] = 0.1, -8.0
    figure = figures.maps(images, {"plain": small, "robust": large})
    limits = [panel.images[0].get_clim() for panel in figure.axes]
    assert limits[:2] == [(-1, 1)] * 2
    assert all(np.allclose(clim, (-0.1, 0.1)) for clim in limits[2:4]) and all(
        np.allclose(clim, (-8, 8)) for clim in limits[4:6]
    )
    assert [figure.axes[i].get_ylabel() for i in (0, 2, 4)] == ["slice", "plain", "robust"]


def test_an_outline_is_drawn_around_the_disc_that_it_was_found_on():
    picture = disc(40)
    figure = figures.outlines(picture[None, None], [outline(picture)], ["M"])
    [line] = figure.axes[0].get_lines()
    distance = np.hypot(line.get_xdata() - 63.5, line.get_ydata() - 63.5)
    assert np.abs(distance - 40).max() < 1.5
    assert line.get_xdata()[0] == line.get_xdata()[-1]
    assert not figures.outlines(picture[None, None], [None]).axes[0].get_lines()


def test_an_outline_runs_anticlockwise_from_the_right():
    columns, rows = closed_curve(Outline((10.0, 20.0), np.array([1.0, 2.0, 3.0, 4.0])))
    assert np.allclose(columns, [21, 20, 17, 20, 21]) and np.allclose(rows, [10, 8, 10, 14, 10])


def test_arrows_pair_each_logit_with_its_own_target():
    logits, targets = np.array([2.0, -3.0, 0.5]), np.array([2.5, -1.0, -0.5])
    ax = figures.arrow_plot(logits, targets)
    read, wanted = (line.get_ydata() for line in ax.get_lines()[1:3])
    assert read.tolist() == [-3, 0.5, 2] and wanted.tolist() == [-1, -0.5, 2.5]
    assert np.allclose(ax.collections[0].V, [2.0, -1.0, 0.5])


def test_an_empty_table_is_refused():
    with pytest.raises(DataError, match="empty"):
        figures.dot_plot(table()[:0], "share", "evaluator", "arm")
