"""Distributions: what an evaluator says, and how well it says it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fairlib.errors import DataError
from fairlib.figures.style import GREY, Style, axes, error_bars, legend_below, looks, need
from fairlib.measures.intervals import wilson


def logit_distributions(
    table: pd.DataFrame, value: str = "logit", by: str = "arm", ax: Axes | None = None
) -> Axes:
    """Densities of an evaluator's logits, one line an arm; the arm "target" is filled.

    table: columns `by` and `value`.
    """
    from scipy.stats import gaussian_kde

    need(table, by, value)
    ax, names = axes(ax), looks(table[by])
    low, high = np.nanquantile(table[value], [0.002, 0.998])
    margin = 0.08 * (high - low) + 0.1
    grid = np.linspace(low - margin, high + margin, 256)
    for name, look in names.items():
        density = gaussian_kde(table.loc[table[by] == name, value].to_numpy(float))(grid)
        ax.plot(grid, density, color=look.colour, linestyle=look.line, label=name, zorder=3)
        if name == "target":
            ax.fill_between(grid, density, color=look.colour, alpha=0.10, linewidth=0, zorder=1)
    ax.axvline(0, color=GREY, linewidth=1, zorder=1)
    ax.set(
        xlim=(grid[0], grid[-1]),
        ylabel="density",
        xlabel=r"logit of the evaluator (male $\leftarrow$ 0 $\rightarrow$ female)",
    )
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
