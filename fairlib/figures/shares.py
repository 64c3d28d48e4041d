"""Female shares: by judge, by prompt, by guidance scale, and the people of a cohort."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fairlib.figures.style import (
    NAMED,
    axes,
    error_bars,
    legend_below,
    looks,
    need,
    percent,
    target_line,
)


def share_by_judge(
    table, target: float | None = None, value: str = "corrected", ax: Axes | None = None
) -> Axes:
    """Female share of every arm as each judge reads it, with intervals.

    table: `arm, judge, <value>` and, where known, `<value>_low, <value>_high` (see
    `measures.readings.share_table`); shares in [0, 1]; several rows of one arm and judge (seeds)
    stand side by side.
    """
    need(table, "arm", "judge", value)
    ax, judges, arms = axes(ax), list(dict.fromkeys(table.judge)), list(dict.fromkeys(table.arm))
    target_line(ax, target)
    for (name, look), slot in zip(looks(arms).items(), _slots(len(arms)), strict=True):
        part = table[table.arm == name]
        order = (
            part.groupby("judge").cumcount()
            - (part.groupby("judge")[value].transform("size") - 1) / 2
        )
        x = part.judge.map(judges.index) + slot + 0.05 * order
        ax.errorbar(
            x,
            part[value],
            error_bars(part, value),
            fmt=look.marker,
            color=look.colour,
            capsize=3,
            label=name,
            elinewidth=1.6,
            zorder=3,
        )
    ax.set_xticks(range(len(judges)), judges)
    ax.set(
        xlim=(-0.6, len(judges) - 0.4),
        ylim=(0, max(0.6, ax.get_ylim()[1])),
        ylabel="female share",
        xlabel="read by",
    )
    percent(ax.yaxis)
    ax.grid(False, axis="x")
    legend_below(ax)
    return ax


def per_prompt_shares(table, target: float | None = None, ax: Axes | None = None) -> Axes:
    """Female share of every prompt before and after, a line from one to the other.

    table: `arm, prompt, share` and, where known, `low, high` (see `measures.readings.prompt_table`,
    one judge's rows). A column `target` of the table marks each prompt's own target when `target`
    is None.
    """
    need(table, "arm", "prompt", "share")
    prompts, arms = list(dict.fromkeys(table.prompt)), list(dict.fromkeys(table.arm))
    ax = axes(ax, figsize=(6.4, 1.3 + 0.42 * len(prompts)))
    target_line(ax, target, "y")
    wide = table.pivot_table(index="prompt", columns="arm", values="share", sort=False)
    ax.hlines(
        range(len(prompts)),
        wide.min(axis=1)[prompts],
        wide.max(axis=1)[prompts],
        color="#BBBBBB",
        linewidth=1.2,
        zorder=1,
    )
    for (name, look), slot in zip(looks(arms).items(), _slots(len(arms), 0.12), strict=True):
        part = table[table.arm == name].rename(columns={"low": "share_low", "high": "share_high"})
        ax.errorbar(
            part.share,
            part.prompt.map(prompts.index) + slot,
            xerr=error_bars(part, "share"),
            fmt=look.marker,
            color=look.colour,
            capsize=2,
            elinewidth=1.3,
            label=name,
            zorder=3,
        )
    if target is None and "target" in table:
        own = table.drop_duplicates("prompt")
        ax.plot(
            own.target,
            own.prompt.map(prompts.index),
            "|",
            color=NAMED["target"].colour,
            markersize=16,
            markeredgewidth=1.8,
            label="target",
            zorder=2,
        )
    ax.set_yticks(range(len(prompts)), prompts)
    ax.set(
        xlim=(-0.02, max(0.8, ax.get_xlim()[1])),
        ylim=(len(prompts) - 0.5, -0.5),
        xlabel="female share",
    )
    percent(ax.xaxis)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09 - 0.5 / len(prompts)), ncol=4)
    return ax


def guidance_sweep(
    table, target: float | None = None, value: str = "corrected", ax: Axes | None = None
) -> Axes:
    """Female share against the guidance scale, one line a judge (or an arm, when there is but one
    judge).

    table: `scale, judge, <value>` and, where known, `<value>_low, <value>_high`.
    """
    need(table, "scale", "judge", value)
    by = (
        "arm"
        if table.judge.nunique() == 1 and "arm" in table and table.arm.nunique() > 1
        else "judge"
    )
    ax = axes(ax)
    target_line(ax, target)
    for name, look in looks(table[by]).items():
        part = table[table[by] == name].sort_values("scale")
        ax.plot(
            part.scale,
            part[value],
            color=look.colour,
            marker=look.marker,
            linestyle=look.line,
            label=name,
            zorder=3,
        )
        if f"{value}_low" in part:
            ax.fill_between(
                part.scale,
                part[f"{value}_low"],
                part[f"{value}_high"],
                color=look.colour,
                alpha=0.13,
                linewidth=0,
            )
    ax.set(xlabel="guidance scale", ylabel="female share", ylim=(0, max(0.6, ax.get_ylim()[1])))
    percent(ax.yaxis)
    legend_below(ax)
    return ax


def cohort_bars(table, by: str = "grade", ax: Axes | None = None) -> Axes:
    """How many women and men a cohort holds in each group, with the female share above.

    table: one row a slice or subject with `sex` ("F"/"M"; others are left out) and `by`; with a
    column `subject` each subject counts once.
    """
    need(table, "sex", by)
    people = table.drop_duplicates("subject") if "subject" in table else table
    counts = (
        people[people.sex.isin(["F", "M"])]
        .groupby([by, "sex"], sort=True)
        .size()
        .unstack(fill_value=0)
    )
    counts = counts.reindex(columns=["F", "M"], fill_value=0)
    ax, groups = axes(ax), np.arange(len(counts))
    for sex, word, slot in (("F", "women", -0.2), ("M", "men", 0.2)):
        bars = ax.bar(
            groups + slot,
            counts[sex],
            0.38,
            label=word,
            color=NAMED[sex].colour,
            hatch=NAMED[sex].hatch,
            edgecolor="white",
            linewidth=0,
        )
        ax.bar_label(bars, padding=2)
    shares = 100 * counts.F / counts.sum(axis=1)
    ax.set_xticks(groups, [f"{name}\n{share:.1f} % female" for name, share in shares.items()])
    ax.set(
        ylabel="subjects" if "subject" in table else "rows",
        xlabel="",
        ylim=(0, 1.15 * counts.to_numpy().max()),
    )
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(False, axis="x")
    ax.legend()
    return ax


def _slots(count: int, step: float = 0.2) -> np.ndarray:
    """Places of `count` series beside one tick, even about it."""
    return (np.arange(count) - (count - 1) / 2) * min(step, 0.7 / max(count, 1))
