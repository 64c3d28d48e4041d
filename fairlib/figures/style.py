"""The look of every figure: the Okabe-Ito colours, a second channel beside each colour, and no red
against green.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

BLUE, ORANGE, SKY, PURPLE, YELLOW = "#0072B2", "#D98200", "#56B4E9", "#A4508B", "#C9A800"
Style = dict[str, Any]
"""Keyword arguments of a drawing function of matplotlib."""
INK, GREY, PALE = "#222222", "#6E6E6E", "#D9D9D9"


@dataclass(frozen=True)
class Look:
    """How one series is drawn: a colour, and a marker, line and hatch that distinguish it without
    the colour.
    """

    colour: str
    marker: str
    line: str | tuple
    hatch: str


WRAP = 30  # letters of a line of a long name
LOOKS = (
    Look(BLUE, "o", "-", ""),
    Look(ORANGE, "s", "--", "//"),
    Look(PURPLE, "^", "-.", ".."),
    Look(SKY, "D", (0, (5, 1, 1, 1, 1, 1)), "xx"),
    Look(YELLOW, "v", ":", "\\\\"),
    Look(INK, "P", (0, (1, 1)), "++"),
)
NAMED = {
    **dict.fromkeys(("F", "classified as female"), Look(ORANGE, "o", "-", "//")),
    **dict.fromkeys(("M", "classified as male"), Look(BLUE, "s", "--", "")),
    "target": Look(INK, "D", ":", ""),
    **dict.fromkeys(("untuned", "base"), Look(GREY, "o", "--", "//")),
    "tuned": Look(BLUE, "s", "-", ""),
    **dict.fromkeys(("tuning classifier", "tuning_classifier"), LOOKS[0]),
    **dict.fromkeys(("held-out classifier", "heldout"), LOOKS[1]),
    **dict.fromkeys(("anatomical measurement", "anatomy"), LOOKS[2]),
}


def house_style() -> None:
    """Set the look once, at the top of a notebook: quiet axes, readable sizes, light files."""
    import seaborn as sns

    sns.set_theme(
        context="notebook",
        style="ticks",
        rc={
            **dict.fromkeys(("figure.dpi", "savefig.dpi"), 100),
            "figure.figsize": (6.4, 3.8),
            "figure.constrained_layout.use": True,
            **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
            **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
            "grid.color": "#ECECEC",
            "grid.linewidth": 0.8,
            "axes.edgecolor": GREY,
            **dict.fromkeys(("axes.labelcolor", "text.color"), INK),
            "axes.titlelocation": "left",
            "axes.titlesize": 12,
            "axes.titleweight": "semibold",
            "axes.labelsize": 11,
            **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 10),
            "lines.linewidth": 2.0,
            "lines.markersize": 7,
            "hatch.linewidth": 0.7,
            "axes.prop_cycle": cycler(color=[look.colour for look in LOOKS]),
        },
    )


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name: that of `NAMED` where it has one, else the next of another colour and
    marker than those.
    """
    names = list(dict.fromkeys(names))
    fixed = [NAMED[name] for name in names if name in NAMED]
    taken = {look.colour for look in fixed} | {look.marker for look in fixed}
    free = [look for look in LOOKS if not {look.colour, look.marker} & taken] or list(LOOKS)
    free = free * len(names)
    return {name: NAMED.get(name) or free.pop(0) for name in names}


def axes(ax: Axes | None, **size: Any) -> Axes:
    """`ax`, or the only Axes of a new figure."""
    return plt.subplots(layout="constrained", **size)[1] if ax is None else ax


def percent_text(share: float) -> str:
    """A share in percent: 0.458 -> "45.8 %"."""
    return f"{100 * share:.1f} %"


def percent(axis: Axis) -> None:
    """Label an axis of shares in percent; the data stay shares."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))


def reference_line(ax: Axes, value: float | None, label: str = "", along: str = "x") -> None:
    """A dotted line at `value` across the plot along `along`, named in the legend (by default as
    the target, a share).
    """
    if value is not None:
        draw = ax.axhline if along == "x" else ax.axvline
        name = label or f"target ({percent_text(value)})"
        draw(value, color=INK, linestyle=":", linewidth=1.6, zorder=1, label=name)


def error_bars(part: pd.DataFrame, value: str) -> np.ndarray | None:
    """Lengths [2, N] of the bars from `value` to its `<value>_low` and `<value>_high` (or `low` and
    `high`) columns; None where the table has none.
    """
    low, high = (f"{value}_{end}" if f"{value}_{end}" in part else end for end in ("low", "high"))
    if low not in part:
        return None
    return np.clip([part[value] - part[low], part[high] - part[value]], 0, None)


def legend_below(ax: Axes, offset: float = 0.17) -> None:
    """The legend under the plot, `offset` of its height below, where it hides nothing."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        wide = sum(map(len, labels)) > 48  # names that would not fit on one line
        anchor, columns = (0.5, -offset), min(len(handles), 2 if wide else 4)
        ax.legend(handles, labels, loc="upper center", bbox_to_anchor=anchor, ncol=columns)


def category_axis(ax: Axes, names: Sequence[str]) -> None:
    """The names of lanes 0, 1, ... on the vertical axis, the first on top; long ones broken."""
    ax.set_yticks(range(len(names)), [textwrap.fill(name, WRAP) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(False, axis="y")


def one_legend(figure: Figure) -> Figure:
    """One legend under all panels of `figure` in place of one each."""
    entries: dict[str, Any] = {}
    for panel in figure.axes:
        handles, names = panel.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
        if legend := panel.get_legend():
            legend.remove()
        if panel is not figure.axes[0] and panel.get_ylabel() == figure.axes[0].get_ylabel():
            panel.set_ylabel("")
    place: Style = {"loc": "outside lower center", "ncol": len(entries)}
    figure.legend(list(entries.values()), list(entries), **place)
    return figure
