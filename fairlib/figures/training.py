"""Curves of training and tuning."""

from __future__ import annotations

from matplotlib.axes import Axes

from fairlib.figures.style import axes, legend_below, looks, need, percent, target_line

WORDS = {
    "alignment": "alignment loss",
    "consistency": "consistency loss (1 - cosine)",
    "share": "female share read by the guide",
    "gradient_norm": "gradient norm",
    "cosine_kept": "cosine to the original, class kept",
    "lr": "learning rate",
}


def training_curves(
    table,
    value: str,
    by: str | None = None,
    smooth: int = 1,
    target: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One quantity of training against the step, one line for each value of the column `by`.

    table: `step, <value>` and `by`. smooth: steps of a running mean drawn over the faint values
    themselves (1: none);
    target: a share to draw as a dotted line; a column named "share" is labelled in percent.
    """
    need(table, "step", value, *([by] if by else []))
    ax = axes(ax)
    target_line(ax, target)
    groups = {None: table} if by is None else dict(iter(table.groupby(by, sort=False)))
    for (name, part), look in zip(groups.items(), looks(map(str, groups)).values(), strict=True):
        part = part.sort_values("step")
        if smooth > 1:
            ax.plot(part.step, part[value], color=look.colour, alpha=0.25, linewidth=0.8, zorder=2)
        mean = part[value].rolling(smooth, min_periods=1, center=True).mean()
        ax.plot(part.step, mean, color=look.colour, linestyle=look.line, label=name, zorder=3)
    ax.set(
        xlabel="step",
        ylabel=WORDS.get(value, value.replace("_", " ")),
        xlim=(table.step.min(), table.step.max()),
    )
    if value == "share" or target is not None:
        percent(ax.yaxis)
    if by is not None or target is not None:
        legend_below(ax)
    return ax
