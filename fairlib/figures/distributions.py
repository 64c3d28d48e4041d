"""Whole distributions: what a judge says, how well it says it, and how large the brains are."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fairlib.errors import DataError
from fairlib.figures.style import GREY, INK, axes, legend_below, looks, need


def logit_distributions(
    table, value: str = "logit", by: str = "arm", ax: Axes | None = None
) -> Axes:
    """Densities of a judge's logits, one line an arm; the arm "target" is filled. table: `<by>,
    <value>`.
    """
    from scipy.stats import gaussian_kde

    need(table, by, value)
    ax, names = axes(ax), looks(table[by])
    grid = np.linspace(*_reach(table[value]), 256)
    for name, look in names.items():
        density = gaussian_kde(table.loc[table[by] == name, value].to_numpy(float))(grid)
        ax.plot(grid, density, color=look.colour, linestyle=look.line, label=name, zorder=3)
        if name == "target":
            ax.fill_between(grid, density, color=look.colour, alpha=0.10, linewidth=0, zorder=1)
    ax.axvline(0, color=GREY, linewidth=1, zorder=1)
    ax.set(
        xlim=(grid[0], grid[-1]),
        ylabel="density",
        xlabel=r"logit of the judge (male $\leftarrow$ 0 $\rightarrow$ female)",
    )
    ax.set_ylim(0, 1.08 * max(line.get_ydata().max() for line in ax.get_lines()[: len(names)]))
    legend_below(ax)
    return ax


def extent_by_sex(table, value: str = "extent_mm", by: str = "arm", ax: Axes | None = None) -> Axes:
    """The size of the brain within each sex: a violin with its box for every arm.

    table: `sex` ("F"/"M", as read or as known), `<by>` (as "target", "base", "tuned") and `<value>`
    in mm.
    """
    import seaborn as sns

    need(table, "sex", by, value)
    ax, names = axes(ax), looks(table[by])
    table = table[table.sex.isin(["F", "M"])]
    sns.violinplot(
        table,
        x="sex",
        y=value,
        hue=by,
        order=["F", "M"],
        hue_order=list(names),
        inner="box",
        cut=0,
        ax=ax,
        palette={name: look.colour for name, look in names.items()},
        linewidth=1,
        width=0.85,
        gap=0.08,
        saturation=0.85,
        legend="full",
        inner_kws={"color": INK},
    )
    drawn = [
        *zip(ax.collections, 2 * list(names), strict=False),
        *zip(ax.get_legend().legend_handles, names, strict=True),
    ]
    for artist, name in drawn:
        artist.set(
            hatch=names[name].hatch, edgecolor="white", alpha=0.4 if name == "target" else 0.75
        )
    ax.set_xticks([0, 1], ["women", "men"])
    ax.set(xlabel="", ylabel="brain diameter, mm")
    ax.grid(False, axis="x")
    sns.move_legend(ax, "upper center", bbox_to_anchor=(0.5, -0.1), ncol=len(names), title=None)
    return ax


def reliability_diagram(table, bins: int = 10, ax: Axes | None = None) -> Axes:
    """Observed female share against the predicted probability, in bins of equal width; larger dots
    hold more slices.

    table: `p_female` in [0, 1], `truth` (1 = female) and, for several judges, `judge`. Bars: 95 %
    Wilson intervals.
    """
    need(table, "p_female", "truth")
    table = table if "judge" in table else table.assign(judge="judge")
    ax = axes(ax, figsize=(4.8, 4.6))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfect")
    for name, look in looks(table.judge).items():
        binned = reliability(table[table.judge == name], bins)
        bars = [binned.observed - binned.low, binned.high - binned.observed]
        ax.errorbar(
            binned.predicted,
            binned.observed,
            bars,
            color=look.colour,
            linestyle=look.line,
            linewidth=1.6,
            elinewidth=1,
            capsize=2,
            label=name,
            zorder=2,
        )
        ax.scatter(
            binned.predicted,
            binned.observed,
            15 + 120 * binned.n / binned.n.max(),
            color=look.colour,
            marker=look.marker,
            zorder=3,
        )
    ax.set(
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
        aspect="equal",
        xlabel="probability of female",
        ylabel="share that is female",
    )
    ax.legend(loc="upper left")
    return ax


def reliability(table, bins: int = 10) -> pd.DataFrame:
    """The filled bins of a reliability diagram: `predicted` (mean p), `observed`, `low`, `high`
    (Wilson), `n`.
    """
    code = np.minimum((table.p_female * bins).astype(int), bins - 1)
    found = table.groupby(code).agg(
        predicted=("p_female", "mean"), observed=("truth", "mean"), n=("truth", "size")
    )
    z = 1.959964
    middle = (found.observed + z**2 / (2 * found.n)) / (1 + z**2 / found.n)
    reach = (
        z
        * np.sqrt(found.observed * (1 - found.observed) / found.n + z**2 / (4 * found.n**2))
        / (1 + z**2 / found.n)
    )
    # The estimate lies inside its interval exactly; rounding alone could put it a hair outside.
    return found.assign(
        low=np.minimum(middle - reach, found.observed),
        high=np.maximum(middle + reach, found.observed),
    )


def roc_curves(table, ax: Axes | None = None) -> Axes:
    """Women found against men taken for women, one curve a judge, its area in the legend.

    table: `judge, p_female, truth` (1 = female), one row a held-out slice and judge.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    need(table, "judge", "p_female", "truth")
    ax = axes(ax, figsize=(4.8, 4.6))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance")
    for name, look in looks(table.judge).items():
        part = table[table.judge == name]
        if part.truth.nunique() < 2:
            raise DataError(f"judge {name!r} was tried on one sex alone; a curve needs both")
        wrong, right, _ = roc_curve(part.truth, part.p_female)
        area = roc_auc_score(part.truth, part.p_female)
        ax.plot(
            wrong, right, color=look.colour, linestyle=look.line, label=f"{name} (AUC {area:.3f})"
        )
    ax.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
        xlabel="men read as female",
        ylabel="women read as female",
    )
    ax.legend(loc="lower right")
    return ax


def _reach(values) -> tuple[float, float]:
    """The range to draw: the middle 99.6 % of the values and a little more."""
    low, high = np.nanquantile(values, [0.002, 0.998])
    return low - 0.08 * (high - low) - 0.1, high + 0.08 * (high - low) + 0.1
