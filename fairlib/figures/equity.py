"""The measure of each group beside that of everybody: what equity-scaled measures are made of."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from fairlib.figures.style import INK, LOOKS, axes, legend_below, need, percent


def group_bars(
    table,
    overall: float,
    words: str = "",
    least: float = 0.5,
    label: str = "accuracy",
    ax: Axes | None = None,
) -> Axes:
    """One bar a group with its 95 % interval, and a dotted line at the value of everybody; `words`
    above.

    table: `group, value, low, high` in [0, 1] and `n`, people. least: where the axis begins
    (intervals may be cut there).
    """
    need(table, "group", "value", "low", "high", "n")
    ax, places = axes(ax, figsize=(5.6, 3.6)), np.arange(len(table))
    for place, look in zip(places, LOOKS * len(table), strict=False):
        height = table["value"].iloc[place] - least
        ax.bar(
            place, height, 0.6, bottom=least, color=look.colour, hatch=look.hatch, edgecolor="white"
        )
    reach = np.stack([table["value"] - table["low"], table["high"] - table["value"]])
    ax.errorbar(
        places, table["value"], reach.clip(0), fmt="none", ecolor=INK, capsize=4, elinewidth=1.5
    )
    ax.axhline(overall, color=INK, linestyle=":", linewidth=1.6, label=f"everybody ({overall:.1%})")
    ax.set_xticks(places, [f"{row.group}\n{row.n:,d} people" for row in table.itertuples()])
    ax.set(ylim=(least, 1.0), ylabel=label)
    ax.set_title(words, fontsize=11, fontweight="normal")
    percent(ax.yaxis)
    ax.grid(False, axis="x")
    legend_below(ax)
    return ax
