"""The look of every figure: the Okabe-Ito colours, a second channel beside each colour, and no red
against green.
"""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from fairlib.errors import DataError

BLUE, ORANGE, SKY, PURPLE, YELLOW = "#0072B2", "#D98200", "#56B4E9", "#A4508B", "#C9A800"
INK, GREY, PALE = "#222222", "#6E6E6E", "#D9D9D9"


@dataclass(frozen=True)
class Look:
    """How one series is drawn: a colour, and a marker, line and hatch that tell it apart without
    the colour.
    """

    colour: str
    marker: str
    line: str
    hatch: str


LOOKS = (
    Look(BLUE, "o", "-", ""),
    Look(ORANGE, "s", "--", "//"),
    Look(PURPLE, "^", "-.", ".."),
    Look(SKY, "D", (0, (5, 1, 1, 1, 1, 1)), "xx"),
    Look(YELLOW, "v", ":", "\\\\"),
    Look(INK, "P", (0, (1, 1)), "++"),
)
NAMED = {
    "F": Look(ORANGE, "o", "-", "//"),
    "M": Look(BLUE, "s", "--", ""),
    "target": Look(INK, "D", ":", ""),
    "base": Look(GREY, "o", "--", "//"),
    "tuned": Look(BLUE, "s", "-", ""),
    "auditor": Look(ORANGE, "s", "--", "//"),
    "oracle": Look(PURPLE, "^", "-.", ".."),
    "guide": Look(BLUE, "o", "-", ""),
}


def house_style() -> None:
    """Set the look once, at the top of a notebook: quiet axes, readable sizes, light files."""
    import seaborn as sns

    sns.set_theme(
        context="notebook",
        style="ticks",
        rc={
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "figure.figsize": (6.4, 3.8),
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#ECECEC",
            "grid.linewidth": 0.8,
            "axes.edgecolor": GREY,
            "axes.labelcolor": INK,
            "axes.titlelocation": "left",
            "axes.titlesize": 12,
            "axes.titleweight": "semibold",
            "axes.labelsize": 11,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.fontsize": 10,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "lines.markersize": 7,
            "hatch.linewidth": 0.7,
            "text.color": INK,
            "axes.prop_cycle": cycler(color=[look.colour for look in LOOKS]),
        },
    )


def looks(names) -> dict[str, Look]:
    """A look for each name: its own where it has one, else the next of another colour and marker
    than those.
    """
    names = list(dict.fromkeys(names))
    own = [NAMED[name] for name in names if name in NAMED]
    taken = {look.colour for look in own} | {look.marker for look in own}
    free = [look for look in LOOKS if not {look.colour, look.marker} & taken] or list(LOOKS)
    free = free * len(names)
    return {name: NAMED.get(name) or free.pop(0) for name in names}


def axes(ax: Axes | None, **size) -> Axes:
    """`ax`, or the only Axes of a new figure."""
    return plt.subplots(layout="constrained", **size)[1] if ax is None else ax


def need(table, *columns: str) -> None:
    """Raise `DataError` unless `table` has rows and all `columns`."""
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(
            f"nothing to draw: the table lacks column {missing[0]!r}; it has "
            f"{', '.join(map(str, table))}"
        )
    if len(table) == 0:
        raise DataError("nothing to draw: the table is empty")


def percent(axis) -> None:
    """Label an axis of shares in percent; the data stay shares."""
    axis.set_major_formatter(PercentFormatter(1, decimals=0))


def target_line(ax: Axes, target: float | None, along: str = "x", label: str = "target") -> None:
    """A dotted line at the target share, across the plot along `along`, named in the legend."""
    if target is not None:
        draw = ax.axhline if along == "x" else ax.axvline
        draw(
            target,
            color=INK,
            linestyle=":",
            linewidth=1.6,
            zorder=1,
            label=f"{label} ({100 * target:.1f} %)",
        )


def error_bars(part, value: str):
    """Lengths [2, N] of the bars from `value` to its `_low` and `_high` columns, or None where the
    table has none.
    """
    if f"{value}_low" not in part:
        return None
    return [
        (part[value] - part[f"{value}_low"]).clip(lower=0),
        (part[f"{value}_high"] - part[value]).clip(lower=0),
    ]


def legend_below(ax: Axes, columns: int | None = None) -> None:
    """The legend under the plot, where it hides nothing."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ax.legend(
            handles,
            labels,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.17),
            ncol=columns or min(len(handles), 4),
        )
