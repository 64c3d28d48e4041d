"""A closer look: values with intervals, curves, maps and outlines laid over slices, and where each
image is told to go.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fairlib.figures.images import _checked, _sheet
from fairlib.figures.style import (
    GREY,
    INK,
    NAMED,
    axes,
    error_bars,
    legend_below,
    looks,
    need,
    percent,
)
from fairlib.figures.training import training_curves


def dots(
    table,
    x: str,
    y: str,
    by: str,
    reference: float | None = None,
    words: str = "",
    share: bool = False,
    label: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A value with its interval for each name in column `y`, one mark a series of column `by`, told
    apart by shape too.

    table: `y, by, x` and, where known, `<x>_low, <x>_high`. reference: a vertical line, named
    `words` in the legend;
    share: label the axis in percent.
    """
    need(table, x, y, by)
    rows, series = list(dict.fromkeys(table[y])), looks(table[by])
    ax = axes(ax, figsize=(6.4, 1.2 + 0.5 * len(rows)))
    if reference is not None:
        ax.axvline(
            reference, color=INK, linestyle=":", linewidth=1.6, zorder=1, label=words or None
        )
    slots = (np.arange(len(series)) - (len(series) - 1) / 2) * min(0.2, 0.7 / len(series))
    for (name, look), slot in zip(series.items(), slots, strict=True):
        part = table[table[by] == name]
        ax.errorbar(
            part[x],
            part[y].map(rows.index) + slot,
            xerr=error_bars(part, x),
            fmt=look.marker,
            color=look.colour,
            capsize=2,
            elinewidth=1.4,
            label=name,
            zorder=3,
        )
    ax.set_yticks(range(len(rows)), rows)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=label or x)
    ax.grid(False, axis="y")
    if share:
        percent(ax.xaxis)
    if len(series) > 1 or words:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12 - 0.45 / len(rows)), ncol=4)
    return ax


def lines(
    table,
    x: str,
    y: str,
    by: str,
    label_x: str = "",
    label_y: str = "",
    share: bool = False,
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Column `y` against column `x`, one line with its own mark and dash for each series of column
    `by`.
    """
    need(table, x, y, by)
    ax = axes(ax)
    for name, look in looks(table[by]).items():
        part = table[table[by] == name].sort_values(x)
        ax.plot(
            part[x], part[y], color=look.colour, marker=look.marker, linestyle=look.line, label=name
        )
    ax.set(xlabel=label_x or x, ylabel=label_y or y)
    if log:
        ax.set_yscale("log")
    if share:
        percent(ax.yaxis)
    legend_below(ax)
    return ax


def panels(
    table, x: str, y: str, by: str, column: str, label_y: str = "", share: bool = False
) -> Figure:
    """`lines` once for each value of `column`, side by side on one scale of `y`, with one legend
    for all.
    """
    need(table, x, y, by, column)
    names = list(dict.fromkeys(table[column]))
    figure, grid = plt.subplots(
        1, len(names), figsize=(4.2 * len(names), 3.8), sharey=True, layout="constrained"
    )
    for panel, name in zip(np.atleast_1d(grid), names, strict=True):
        lines(table[table[column] == name], x, y, by, name, label_y, share, ax=panel)
    return _one_legend(figure)


def curves(table, values: dict[str, float | None], by: str = "arm", smooth: int = 1) -> Figure:
    """`training_curves` of several quantities, {column: target or None}, side by side with one
    legend for all.
    """
    figure, grid = plt.subplots(
        1, len(values), figsize=(2.9 * len(values), 3.2), layout="constrained"
    )
    for panel, (value, target) in zip(np.atleast_1d(grid), values.items(), strict=True):
        training_curves(table, value, by, smooth, target, ax=panel)
    return _one_legend(figure)


def _one_legend(figure: Figure) -> Figure:
    found = {}
    for panel in figure.axes:
        handles, names = panel.get_legend_handles_labels()
        found |= dict(zip(names, handles, strict=True))
        if panel.get_legend():
            panel.get_legend().remove()
        if panel is not figure.axes[0] and panel.get_ylabel() == figure.axes[0].get_ylabel():
            panel.set_ylabel("")
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncol=len(found))
    return figure


def swarm(table, x: str, y: str, by: str = "sex", label: str = "", ax: Axes | None = None) -> Axes:
    """One point a row at column `x`, in a lane for each value of column `y`, and the mean of each
    lane as a bar.

    Points are shifted within their lane by their place in the table, so that the same table gives
    the same picture.
    """
    need(table, x, y, by)
    lanes = list(dict.fromkeys(table[y]))
    ax = axes(ax, figsize=(6.4, 1.0 + 0.55 * len(lanes)))
    for name, look in looks(table[by]).items():
        part = table[table[by] == name]
        shift = (np.arange(len(part)) * 0.618 % 1 - 0.5) * 0.5
        ax.scatter(
            part[x],
            part[y].map(lanes.index) + shift,
            color=look.colour,
            marker=look.marker,
            s=20,
            alpha=0.7,
            linewidth=0,
            label=name,
        )
    means = table.groupby(y)[x].mean()
    ax.plot(
        means[lanes],
        range(len(lanes)),
        "|",
        color=INK,
        markersize=22,
        markeredgewidth=2,
        label="mean",
    )
    ax.set_yticks(range(len(lanes)), lanes)
    ax.set(ylim=(len(lanes) - 0.4, -0.6), xlabel=label or x)
    ax.grid(False, axis="y")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12 - 0.45 / len(lanes)), ncol=4)
    return ax


def cloud(
    table,
    x: str,
    y: str,
    by: str = "sex",
    label_x: str = "",
    label_y: str = "",
    ax: Axes | None = None,
) -> Axes:
    """One point a row, coloured and shaped by column `by`."""
    need(table, x, y, by)
    ax = axes(ax, figsize=(5.2, 4.2))
    for name, look in looks(table[by]).items():
        part = table[table[by] == name]
        ax.scatter(
            part[x],
            part[y],
            color=look.colour,
            marker=look.marker,
            s=26,
            alpha=0.75,
            linewidth=0,
            label=name,
        )
    ax.set(xlabel=label_x or x, ylabel=label_y or y)
    legend_below(ax)
    return ax


def maps(images, layers: dict[str, np.ndarray], cell: float = 1.25) -> Figure:
    """Slices [N, 1, H, W] in the first row, and below each the signed maps [N, 1, H, W] of every
    layer over its outline.

    Each row has its own scale, symmetric about zero: orange where positive, purple where negative
    (as `before_after`).
    """
    images = _checked(images)
    layers = {name: _checked(values)[:, 0] for name, values in layers.items()}
    figure, grid = _sheet(1 + len(layers), len(images), cell, 0, ["slice", *layers], None)
    for panel, image in zip(grid[0], images[:, 0], strict=True):
        panel.imshow(image, cmap="gray", vmin=-1, vmax=1)
    for row, values in zip(grid[1:], layers.values(), strict=True):
        limit = max(float(np.quantile(np.abs(values), 0.995)), 1e-12)
        for panel, value, image in zip(row, values, images[:, 0], strict=True):
            panel.imshow(value, cmap="PuOr_r", vmin=-limit, vmax=limit)
            panel.contour(image > -0.98, levels=[0.5], colors=GREY, linewidths=0.5)
    return figure


def outlines(images, shapes, titles=None, cell: float = 1.5) -> Figure:
    """Slices [N, 1, H, W] with the outline (`measures.anatomy.Outline`) that was found drawn on
    each.
    """
    images = _checked(images)
    figure, grid = _sheet(1, len(images), cell, 0.2, None, titles)
    for panel, image, shape in zip(grid[0], images[:, 0], shapes, strict=True):
        panel.imshow(image, cmap="gray", vmin=-1, vmax=1)
        if shape is not None:
            panel.plot(*closed_curve(shape), color=NAMED["oracle"].colour, linewidth=1.6)
    return figure


def closed_curve(shape) -> tuple[np.ndarray, np.ndarray]:
    """(column, row) of an outline's points, the first repeated at the end."""
    angle = np.arange(len(shape.radii) + 1) * 2 * np.pi / len(shape.radii)
    radii = np.append(shape.radii, shape.radii[0])
    return shape.centre[1] + radii * np.cos(angle), shape.centre[0] - radii * np.sin(angle)


def pulls(logits, targets, ax: Axes | None = None) -> Axes:
    """The logits [N] of a batch in order of size, each with an arrow to its target [N]; zero parts
    the sexes.
    """
    logits, targets = np.asarray(logits, float), np.asarray(targets, float)
    ax, order = axes(ax), np.argsort(logits, kind="stable")
    logits, targets, place = logits[order], targets[order], np.arange(len(order))
    ax.axhline(0, color=GREY, linewidth=1, zorder=1)
    ax.quiver(
        place,
        logits,
        np.zeros(len(order)),
        targets - logits,
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.003,
        color="#9A9A9A",
        zorder=2,
    )
    ax.plot(place, logits, "o", color=NAMED["base"].colour, label="the guide's logit", zorder=3)
    ax.plot(
        place,
        targets,
        "D",
        color=NAMED["target"].colour,
        markersize=5,
        label="its target",
        zorder=3,
    )
    low, high = min(logits.min(), targets.min()), max(logits.max(), targets.max())
    ax.set(
        xlabel="images of the batch, in order of the guide's logit",
        ylabel="male   0   female",
        ylim=(low - 0.5, high + 0.5),
        xlim=(-1, len(order)),
    )
    ax.yaxis.set_label_coords(-0.08, (0 - low + 0.5) / (high - low + 1))
    legend_below(ax)
    return ax
