"""Charts of a table: values with intervals, curves, counts, and what an evaluator says and how well
it says it.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fairlib.errors import DataError
from fairlib.figures.style import (
    GREY,
    INK,
    LOOKS,
    NAMED,
    Style,
    axes,
    category_axis,
    error_bars,
    legend_below,
    looks,
    one_legend,
    percent,
    percent_text,
    reference_line,
)
from fairlib.measures.intervals import wilson
from fairlib.settings import need

LABELS = {
    "alignment": "alignment loss",
    "consistency": "consistency loss (1 - cosine)",
    "share": "share read as female",
    "gradient_norm": "gradient norm",
    "cosine_kept": "cosine to the original, class kept",
    "lr": "learning rate",
}


def dot_plot(
    table: pd.DataFrame,
    value: str,
    group: str,
    by: str,
    reference: float | str | None = None,
    reference_label: str = "",
    share: bool = False,
    label: str = "",
    connect: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Column `value` with its interval for each name in column `group`, one mark a series of column
    `by`, which differ in shape too.

    table: `group, by, value` and, where known, `<value>_low, <value>_high` (or `low, high`);
    several rows of one group and series (seeds) are drawn side by side. reference: a vertical line
    (named `reference_label` in the legend, by default as the target), or a column of the table
    whose values are marked, one a group. share: label the axis in percent. connect: a line between
    the lowest and the highest value of each group.
    """
    need(table, value, group, by)
    names, series = list(dict.fromkeys(table[group])), looks(table[by])
    ax = axes(ax, figsize=(6.4, 1.2 + 0.5 * len(names)))
    if isinstance(reference, str):
        marks = table.drop_duplicates(group)
        style: Style = {"color": INK, "markersize": 16, "markeredgewidth": 1.8, "zorder": 2}
        places = marks[group].map(names.index)
        ax.plot(marks[reference], places, "|", label=reference_label or reference, **style)
    else:
        reference_line(ax, reference, reference_label, "y")
    if connect:
        ends = table.groupby(group)[value].agg(["min", "max"]).loc[names]
        ax.hlines(range(len(names)), ends["min"], ends["max"], color="#BBBBBB", linewidth=1.2)
    slots = (np.arange(len(series)) - (len(series) - 1) / 2) * min(0.2, 0.7 / len(series))
    for (name, look), slot in zip(series.items(), slots, strict=True):
        part = table[table[by] == name]
        repeats = part.groupby(group)[value]
        order = repeats.cumcount() - (repeats.transform("size") - 1) / 2
        y, bars = part[group].map(names.index) + slot + 0.05 * order, error_bars(part, value)
        style = {"fmt": look.marker, "color": look.colour, "capsize": 2, "elinewidth": 1.4}
        ax.errorbar(part[value], y, xerr=bars, label=name, zorder=3, **style)
    category_axis(ax, names)
    ax.set_xlabel(label or value)
    if share:
        percent(ax.xaxis)
    if len(series) > 1 or reference is not None:
        legend_below(ax, 0.12 + 0.45 / len(names))
    return ax


def strip_plot(
    table: pd.DataFrame,
    value: str,
    group: str,
    by: str = "sex",
    label: str = "",
    ax: Axes | None = None,
) -> Axes:
    """One point a row at column `value`, in a lane for each value of column `group`, and the mean
    of each lane as a bar.

    Points are shifted within their lane by their place in the table, so that the same table gives
    the same figure.
    """
    need(table, value, group, by)
    lanes = list(dict.fromkeys(table[group]))
    ax = axes(ax, figsize=(6.4, 1.0 + 0.55 * len(lanes)))
    shift = (table.groupby(by).cumcount() * 0.618 % 1 - 0.5) * 0.5
    scatter(table.assign(lane=table[group].map(lanes.index) + shift), value, "lane", by, ax=ax)
    means = table.groupby(group)[value].mean()
    style: Style = {"markersize": 22, "markeredgewidth": 2}
    ax.plot(means[lanes], range(len(lanes)), "|", color=INK, label="mean", **style)
    category_axis(ax, lanes)
    ax.set(xlabel=label or value, ylabel="")
    legend_below(ax, 0.12 + 0.45 / len(lanes))
    return ax


def scatter(
    table: pd.DataFrame,
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
        style: Style = {"color": look.colour, "marker": look.marker, "s": 26, "alpha": 0.75}
        ax.scatter(part[x], part[y], linewidth=0, label=name, **style)
    ax.set(xlabel=label_x or x, ylabel=label_y or y)
    legend_below(ax)
    return ax


def line_plot(
    table: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    label_x: str = "",
    label_y: str = "",
    share: bool = False,
    log: bool = False,
    band: bool = False,
    reference: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Column `y` against column `x`, one line with its own mark and dash for each series of column
    `by`.

    share: label the axis of `y` in percent; log: on a log scale; band: fill from `<y>_low` to
    `<y>_high`; reference: a dotted line at the target.
    """
    need(table, x, y, by)
    ax = axes(ax)
    reference_line(ax, reference)
    for name, look in looks(table[by]).items():
        part = table[table[by] == name].sort_values(x)
        style: Style = {"color": look.colour, "marker": look.marker, "linestyle": look.line}
        ax.plot(part[x], part[y], label=name, zorder=3, **style)
        if band:
            low, high = part[f"{y}_low"], part[f"{y}_high"]
            ax.fill_between(part[x], low, high, color=look.colour, alpha=0.13, linewidth=0)
    ax.set(xlabel=label_x or x, ylabel=label_y or y)
    if log:
        ax.set_yscale("log")
    if share:
        percent(ax.yaxis)
    legend_below(ax)
    return ax


def line_panels(
    table: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    column: str,
    label_y: str = "",
    share: bool = False,
) -> Figure:
    """`line_plot` once for each value of `column`, side by side on one scale of `y`, with one
    legend for all.
    """
    need(table, x, y, by, column)
    names = list(dict.fromkeys(table[column]))
    size: Style = {"figsize": (4.2 * len(names), 3.8), "sharey": True, "layout": "constrained"}
    figure, grid = plt.subplots(1, len(names), **size)
    for panel, name in zip(np.atleast_1d(grid), names, strict=True):
        line_plot(table[table[column] == name], x, y, by, name, label_y, share, ax=panel)
    return one_legend(figure)


def training_curves(
    table: pd.DataFrame,
    value: str,
    by: str | None = None,
    smooth: int = 1,
    target: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One quantity of training against the step, one line for each value of the column `by`.

    table: `step, <value>` and `by`. smooth: steps of a running mean drawn over the faint values
    themselves (1: none); target: a share to draw as a dotted line; a column named "share" is
    labelled in percent.
    """
    need(table, "step", value, *([by] if by else []))
    ax = axes(ax)
    reference_line(ax, target)
    groups = {None: table} if by is None else dict(iter(table.groupby(by, sort=False)))
    for (name, part), look in zip(groups.items(), looks(map(str, groups)).values(), strict=True):
        part = part.sort_values("step")
        if smooth > 1:
            ax.plot(part.step, part[value], color=look.colour, alpha=0.25, linewidth=0.8, zorder=2)
        mean = part[value].rolling(smooth, min_periods=1, center=True).mean()
        ax.plot(part.step, mean, color=look.colour, linestyle=look.line, label=name, zorder=3)
    ax.set(xlabel="step", ylabel=LABELS.get(value, value.replace("_", " ")))
    ax.set_xlim(table.step.min(), table.step.max())
    if value == "share" or target is not None:
        percent(ax.yaxis)
    if by is not None or target is not None:
        legend_below(ax)
    return ax


def training_panels(
    table: pd.DataFrame, values: Mapping[str, float | None], by: str = "arm", smooth: int = 1
) -> Figure:
    """`training_curves` of several quantities, {column: target or None}, side by side with one
    legend for all.
    """
    size = (2.9 * len(values), 3.2)
    figure, grid = plt.subplots(1, len(values), figsize=size, layout="constrained")
    for panel, (value, target) in zip(np.atleast_1d(grid), values.items(), strict=True):
        training_curves(table, value, by, smooth, target, ax=panel)
    return one_legend(figure)


def arrow_plot(logits: np.ndarray, targets: np.ndarray, ax: Axes | None = None) -> Axes:
    """The logits [N] of a batch in order of size, each with an arrow to its target [N]; the line at
    zero separates the sexes.
    """
    logits, targets = np.asarray(logits, float), np.asarray(targets, float)
    ax, order = axes(ax), np.argsort(logits, kind="stable")
    logits, targets, place = logits[order], targets[order], np.arange(len(order))
    ax.axhline(0, color=GREY, linewidth=1, zorder=1)
    scale: Style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.003}
    ax.quiver(place, logits, 0 * place, targets - logits, color="#9A9A9A", zorder=2, **scale)
    base, target = NAMED["base"].colour, NAMED["target"].colour
    ax.plot(place, logits, "o", color=base, label="logit of the tuning classifier", zorder=3)
    ax.plot(place, targets, "D", color=target, markersize=5, label="its target", zorder=3)
    low, high = min(logits.min(), targets.min()), max(logits.max(), targets.max())
    ax.set(xlabel="images of the batch, in order of their logit", ylabel="male   0   female")
    ax.set(ylim=(low - 0.5, high + 0.5), xlim=(-1, len(order)))
    ax.yaxis.set_label_coords(-0.08, (0 - low + 0.5) / (high - low + 1))
    legend_below(ax)
    return ax


def cohort_bars(table: pd.DataFrame, by: str = "grade", ax: Axes | None = None) -> Axes:
    """How many women and men a cohort has in each group, with the female share above.

    table: one row a slice or subject with `sex` ("F"/"M"; others are left out) and `by`; with a
    column `subject` each subject counts once.
    """
    need(table, "sex", by)
    people = table.drop_duplicates("subject") if "subject" in table else table
    counts = pd.crosstab(people[by], people.sex).reindex(columns=["F", "M"], fill_value=0)
    counts = counts[counts.sum(axis=1) > 0]
    ax, groups = axes(ax), np.arange(len(counts))
    for sex, word, slot in (("F", "women", -0.2), ("M", "men", 0.2)):
        style: Style = {"color": NAMED[sex].colour, "hatch": NAMED[sex].hatch, "edgecolor": "white"}
        bars = ax.bar(groups + slot, counts[sex], 0.38, label=word, linewidth=0, **style)
        ax.bar_label(bars, padding=2)
    shares = counts.F / counts.sum(axis=1)
    names = [f"{name}\n{percent_text(share)} female" for name, share in shares.items()]
    ax.set_xticks(groups, names)
    ax.set_ylabel("subjects" if "subject" in table else "rows")
    ax.set_ylim(0, 1.15 * counts.to_numpy().max())
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(False, axis="x")
    ax.legend()
    return ax


def group_bars(
    table: pd.DataFrame, overall: float, title: str = "", ax: Axes | None = None
) -> Axes:
    """The accuracy of each group as a bar with its 95 % interval, and a dotted line at that of
    everybody.

    table: `group, value, low, high` in [0, 1] and `n`, people. The axis begins at 0.5; intervals
    may be cut there.
    """
    need(table, "group", "value", "low", "high", "n")
    ax, places = axes(ax, figsize=(5.6, 3.6)), np.arange(len(table))
    for place, look in zip(places, LOOKS * len(table), strict=False):
        style: Style = {"color": look.colour, "hatch": look.hatch, "edgecolor": "white"}
        ax.bar(place, table["value"].iloc[place] - 0.5, 0.6, bottom=0.5, **style)
    style = {"fmt": "none", "ecolor": INK, "capsize": 4, "elinewidth": 1.5}
    ax.errorbar(places, table["value"], error_bars(table, "value"), **style)
    reference_line(ax, overall, f"everybody ({percent_text(overall)})")
    ax.set_xticks(places, [f"{row.group}\n{row.n:,d} people" for row in table.itertuples()])
    ax.set(ylim=(0.5, 1.0), ylabel="accuracy")
    ax.set_title(title, fontsize=11, fontweight="normal")
    percent(ax.yaxis)
    ax.grid(False, axis="x")
    legend_below(ax)
    return ax


# --- evaluators ----------------------------------------------------------------------------------


def logit_distributions(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Densities of an evaluator's logits, one line an arm; the arm "target" is filled.

    table: columns `arm` and `logit`.
    """
    from scipy.stats import gaussian_kde

    need(table, "arm", "logit")
    ax, names = axes(ax), looks(table.arm)
    low, high = np.nanquantile(table.logit, [0.002, 0.998])
    margin = 0.08 * (high - low) + 0.1
    grid = np.linspace(low - margin, high + margin, 256)
    for name, look in names.items():
        density = gaussian_kde(table.loc[table.arm == name, "logit"].to_numpy(float))(grid)
        ax.plot(grid, density, color=look.colour, linestyle=look.line, label=name, zorder=3)
        if name == "target":
            ax.fill_between(grid, density, color=look.colour, alpha=0.10, linewidth=0, zorder=1)
    ax.axvline(0, color=GREY, linewidth=1, zorder=1)
    ax.set_xlabel(r"logit of the evaluator (male $\leftarrow$ 0 $\rightarrow$ female)")
    ax.set(xlim=(grid[0], grid[-1]), ylabel="density")
    ax.set_ylim(0, 1.08 * max(np.max(line.get_ydata()) for line in ax.get_lines()[: len(names)]))
    legend_below(ax)
    return ax


def reliability_diagram(table: pd.DataFrame, bins: int = 10, ax: Axes | None = None) -> Axes:
    """Observed female share against the predicted probability, in bins of equal width; larger marks
    are bins of more images.

    table: `p_female` in [0, 1], `truth` (1 = female) and, for several evaluators, `evaluator`.
    Bars: 95 % Wilson intervals.
    """
    need(table, "p_female", "truth")
    table = table if "evaluator" in table else table.assign(evaluator="evaluator")
    ax = _unit_square(ax, "perfect", "probability of female", "share that is female")
    for name, look in looks(table.evaluator).items():
        binned = reliability(table[table.evaluator == name], bins)
        x, y, colour = binned.predicted, binned.observed, look.colour
        style: Style = {"linestyle": look.line, "linewidth": 1.6, "elinewidth": 1, "capsize": 2}
        bars = error_bars(binned, "observed")
        ax.errorbar(x, y, bars, color=colour, label=name, zorder=2, **style)
        size = 15 + 120 * binned.n / binned.n.max()
        ax.scatter(x, y, size, color=colour, marker=look.marker, zorder=3)
    ax.legend(loc="upper left")
    return ax


def reliability(table: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """The filled bins of a reliability diagram: `predicted` (mean p), `observed`, `low`, `high`
    (Wilson), `n`.
    """
    code = np.minimum((table.p_female * bins).astype(int), bins - 1)
    binned = table.groupby(code).agg(
        predicted=("p_female", "mean"), observed=("truth", "mean"), n=("truth", "size")
    )
    low, high = wilson(table.truth.groupby(code).sum(), binned.n)
    return binned.assign(low=low, high=high)


def roc_curves(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Female images read as female against male images read as female, one curve an evaluator, its
    area in the legend.

    table: `evaluator, p_female, truth` (1 = female), one row an image and evaluator.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    need(table, "evaluator", "p_female", "truth")
    ax = _unit_square(ax, "chance", "men read as female", "women read as female")
    for name, look in looks(table.evaluator).items():
        part = table[table.evaluator == name]
        if part.truth.nunique() < 2:
            raise DataError(f"{name!r} was tried on one sex alone; a curve needs both")
        wrong, right, _ = roc_curve(part.truth, part.p_female)
        label = f"{name} (AUC {roc_auc_score(part.truth, part.p_female):.3f})"
        ax.plot(wrong, right, color=look.colour, linestyle=look.line, label=label)
    ax.legend(loc="lower right")
    return ax


def _unit_square(ax: Axes | None, diagonal: str, label_x: str, label_y: str) -> Axes:
    ax = axes(ax, figsize=(4.8, 4.6))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label=diagonal)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xlabel=label_x, ylabel=label_y)
    return ax
