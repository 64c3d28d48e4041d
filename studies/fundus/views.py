"""What notebook 09 looks at: tables and pictures put together from the stages of the fundus
study.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fairlib.cohorts.attributes import ATTRIBUTES, RACES, group_names
from fairlib.cohorts.fairgenmed import prompt_of
from fairlib.errors import DataError
from fairlib.figures.images import image_grid
from fairlib.figures.style import INK, LOOKS, percent
from fairlib.methods.perturbation import positive_weights
from fairlib.models.training import generator_for
from fairlib.widgets import figure_png
from studies.book.display import table
from studies.engine.bounds import holds_in_words
from studies.fundus.asked import asked_cdr
from studies.fundus.comparison import PAIRS
from studies.fundus.cup import measure_cdr
from studies.fundus.finetuning import GROUPS, SIZES
from studies.fundus.generation import swatches
from studies.fundus.phantom import draw_fundus_with
from studies.fundus.report import CDR_MOST, COMPARED, fundus_report, interval_of, race_difference
from studies.fundus.settings import ARMS, BASE, EVERYONE, REAL, UNTUNED, FundusStudy
from studies.fundus.statistics import (
    CDR,
    FOUND,
    GAP,
    MMD,
    NO_DISC,
    NO_TASK,
    SCALED,
    TO_GENERATED,
    TO_REAL,
    WORST,
)

CONDITIONS = (
    ("non-glaucoma", "normal", "normal"),
    ("glaucoma", "mild", "borderline"),
    ("glaucoma", "severe", "abnormal"),
)
"""Diagnosis, severity and class of the ratio, from a small cup to a large one."""
FORMS = ("released", "repaired")


def counts(people: pd.DataFrame) -> pd.DataFrame:
    """How many people of each group of each attribute: attribute, group, people, share."""
    rows = [
        {"attribute": by, "group": name, "people": int((people[by] == name).sum())}
        for by, name in group_names()
    ]
    return pd.DataFrame(rows).assign(share=lambda found: found["people"] / len(people))


def twins(seed: int = 3) -> tuple[Tensor, list[str], list[str]]:
    """One eye as it would look in people of three races with three sizes of cup: images [9, 1, 128,
    128] (race by race), the races, and what the columns are.
    """
    ratios = (0.35, 0.60, 0.80)
    images = [
        draw_fundus_with(
            np.random.default_rng(seed),
            race,
            "F",
            "Non-Hispanic",
            *words[:2],
            "emmetropia",
            cdr=ratio,
        ).image
        for race in RACES
        for words, ratio in zip(CONDITIONS, ratios, strict=True)
    ]
    return (
        torch.from_numpy(np.stack(images)),
        list(RACES),
        [f"ratio {ratio:.2f}" for ratio in ratios],
    )


def by_group(
    study: FundusStudy, seed: int, sex: str = "F", arm: str = BASE
) -> tuple[Tensor, pd.DataFrame]:
    """An arm's pictures of three races under `CONDITIONS`, all from one noise: images [9, 1, 128,
    128], and a table (race, glaucoma, md_severity, cdr_status, asked: the law's ratio, measured:
    NaN where no disc was found).
    """
    rows = [_asked_row(race, condition, sex) for race, condition in product(RACES, CONDITIONS)]
    images = swatches(study, [prompt_of(row) for row in rows], seed, arm)
    asked = [asked_cdr(row["glaucoma"], row["md_severity"], row["cdr_status"]) for row in rows]
    return images, pd.DataFrame(rows).assign(
        asked=asked, measured=measure_cdr(images)["cdr"].to_numpy()
    )


def _asked_row(race: str, condition: tuple[str, str, str], sex: str = "F") -> dict[str, str]:
    """Everything that a prompt states, of a person who differs from others here in race, condition
    and sex alone.
    """
    glaucoma, severity, status = condition
    return {
        "race": race,
        "sex": sex,
        "ethnicity": "Non-Hispanic",
        "glaucoma": glaucoma,
        "md_severity": severity,
        "cdr_status": status,
        "refraction": "emmetropia",
    }


def grid(images: Tensor, told: pd.DataFrame) -> Figure:
    """`by_group`, a race in each row, with the ratio asked for and the one measured above each
    picture.
    """
    titles = [
        f"asked {row.asked:.2f}, found "
        + ("no disc" if np.isnan(row.measured) else f"{row.measured:.2f}")
        for row in told.itertuples()
    ]
    return image_grid(images, len(CONDITIONS), titles, list(RACES), cell=1.9)


def by_arm(
    study: FundusStudy, arms: Sequence[str], seed: int, tuning_seed: int, condition: int = 1
) -> Tensor:
    """One prompt in three races under every arm, all from one noise: images [3 * arms, 1, 128,
    128], race by race.
    """
    asked = [prompt_of(_asked_row(race, CONDITIONS[condition])) for race in RACES]
    drawn = [swatches(study, asked, seed, arm, tuning_seed) for arm in arms]
    return torch.stack(drawn, dim=1).flatten(0, 1)


def sample_weights(
    sigma: Sequence[float], form: str, count: int = 20000, seed: int = 0
) -> np.ndarray:
    """Weights [count] of pictures whose groups have these sigmas, one an attribute, in one of
    `FORMS`.
    """
    if form not in FORMS:
        raise DataError(f"form {form!r}; the weights have the forms {' and '.join(FORMS)}")
    spread = torch.as_tensor(sigma, dtype=torch.float64)
    noise = torch.randn(count, len(spread), generator=generator_for(seed, 29), dtype=torch.float64)
    raw = 1 + (spread * noise).sum(1)
    return (
        raw
        if form == "released"
        else positive_weights(raw, spread.square().sum().sqrt().expand(count))
    ).numpy()


def weights_told(weights: np.ndarray, batch: int = 32) -> dict[str, float]:
    """share_negative, share_zero, and `pictures`: the effective number of a batch, batch x mean^2 /
    mean of squares (Kish).
    """
    return {
        "share_negative": float((weights < 0).mean()),
        "share_zero": float((weights == 0).mean()),
        "pictures": float(batch * weights.mean() ** 2 / (weights**2).mean()),
    }


def weights_histogram(groups: dict[str, np.ndarray], words: str = "") -> Figure:
    """Shares of the weights in bins from -4 to 6, one outline a group; the part below zero is
    shaded.
    """
    figure, ax = plt.subplots(figsize=(5.6, 2.9), layout="constrained")
    edges = np.linspace(-4, 6, 51)
    for look, (name, weights) in zip(LOOKS, groups.items(), strict=False):
        ax.hist(
            np.clip(weights, -4, 6),
            edges,
            weights=np.full(len(weights), 1 / len(weights)),
            histtype="step",
            color=look.colour,
            linestyle=look.line,
            linewidth=1.8,
            label=name,
        )
    ax.axvspan(-4, 0, color="#EFEFEF", zorder=0)
    ax.axvline(1, color=INK, linestyle=":", linewidth=1.2)
    ax.set(
        xlim=(-4, 6), ylim=(0, 0.4), xlabel="weight of a picture (grey: unlearnt)", ylabel="share"
    )
    percent(ax.yaxis)
    ax.set_title(words, fontsize=9, fontweight="normal")
    ax.legend(loc="upper right")
    return figure


def weight_sliders(
    values: Sequence[float] = (0.0, 0.5, 1.0),
) -> tuple[list[bytes], dict[str, list[str]]]:
    """Pictures and sliders for `widgets.slider`: the sigma of each attribute, and the form."""
    pictures = []
    for *sigma, form in product(*[values] * len(ATTRIBUTES), FORMS):
        weights = sample_weights(sigma, form)
        told = weights_told(weights)
        words = (
            f"below zero {told['share_negative']:.0%}, exactly zero {told['share_zero']:.0%}; "
            f"a batch of 32 counts like {told['pictures']:.0f}"
        )
        pictures.append(figure_png(weights_histogram({form: weights}, words), dpi=60))
    return pictures, {
        **{f"sigma, {by}": [f"{value:g}" for value in values] for by in ATTRIBUTES},
        "form": list(FORMS),
    }


def sigma_path(histories: dict[str, pd.DataFrame]) -> Figure:
    """The seven sigmas against the step, one panel an arm of `histories`; a line a group, told
    apart by colour and dash.
    """
    known = {
        arm: found for arm, found in histories.items() if found[f"sigma_{GROUPS[0]}"].notna().any()
    }
    if not known:
        raise DataError(
            "no arm here has a sigma; give released, repaired, random or random-repaired"
        )
    figure, axes = plt.subplots(
        1, len(known), figsize=(1.2 + 3.3 * len(known), 3.2), sharey=True, layout="constrained"
    )
    for ax, (arm, found) in zip(np.atleast_1d(axes), known.items(), strict=True):
        for place, group in enumerate(GROUPS):
            look = LOOKS[place % len(LOOKS)]
            ax.plot(
                found["step"],
                found[f"sigma_{group}"],
                color=look.colour,
                linestyle=look.line,
                label=group,
                linewidth=1.6,
                marker="" if place < len(LOOKS) else ".",
            )
        ax.set(xlabel="step", ylim=(-0.03, 1.03))
        ax.set_title(arm, fontsize=11)
    np.atleast_1d(axes)[0].set_ylabel("sigma")
    handles, names = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncol=4)
    return figure


def gaps(history: pd.DataFrame) -> pd.DataFrame:
    """One row a step and way of measuring the gap, for `figures.training_curves`: step, gap,
    measured ("batch" or "probe").
    """
    batch = history[["step", "gap"]].assign(measured="training batch")
    probe = (
        history[["step", "probe_gap"]]
        .dropna()
        .rename(columns={"probe_gap": "gap"})
        .assign(measured="probe")
    )
    return pd.concat([batch, probe], ignore_index=True)


def chosen(
    values: pd.DataFrame, measure: str, task: str = NO_TASK, by: str = "race"
) -> pd.DataFrame:
    """Rows of one measure and attribute."""
    return values[(values["measure"] == measure) & (values["task"] == task) & (values["by"] == by)]


def race_points(values: pd.DataFrame, measure: str, task: str = NO_TASK) -> pd.DataFrame:
    """Rows for `dot_plot`: a measure of every race (series) for every arm (lane), with intervals
    over people.
    """
    part = chosen(values, measure, task)
    part = part[part["group"].isin(RACES)]
    return part.rename(
        columns={"arm": "lane", "group": "series", "people_low": "low", "people_high": "high"}
    )[["lane", "series", "value", "low", "high"]]


def difference_points(differences: pd.DataFrame, measure: str, task: str = NO_TASK) -> pd.DataFrame:
    """Rows for `dot_plot`: the gap over races of an arm less that of its rival, with both
    intervals; a lane a comparison.
    """
    rivals = ("inverse", "dro", "balanced", EVERYONE)
    pairs = [
        ("released", "plain"),
        ("repaired", "plain"),
        *PAIRS[:3],
        *((arm, "plain") for arm in rivals),
    ]
    rows = []
    for arm, reference in pairs:
        row = race_difference(differences, measure, task, arm, reference)
        if row is not None:
            lane = f"{arm} less {reference}"
            rows += [
                {
                    "lane": lane,
                    "series": f"over {name}",
                    "value": row["difference"],
                    "low": row[f"{end}_low"],
                    "high": row[f"{end}_high"],
                }
                for name, end in (("people", "people"), ("seeds", "seed"))
                if end == "people" or row["seeds"] > 1
            ]
    return pd.DataFrame(rows, columns=["lane", "series", "value", "low", "high"])


def by_race(differences: pd.DataFrame, measure: str, task: str = NO_TASK) -> pd.DataFrame:
    """What an arm changes in each race by itself, in words: arm, less that of, and a column a race,
    with intervals as `interval_of` gives them.
    """
    rows = []
    for arm, reference in (*COMPARED, ("repaired", "released")):
        found = {
            race: race_difference(differences, measure, task, arm, reference, race)
            for race in RACES
        }
        if all(row is not None for row in found.values()):
            ends = {race: interval_of(row)[0] for race, row in found.items()}
            said = {
                race: f"{end.estimate:+.2f} ({end.low:+.2f}\u00a0to\u00a0{end.high:+.2f})"
                for race, end in ends.items()
            }
            rows.append({"arm": arm, "less that of": reference, **said})
    return pd.DataFrame(rows, columns=["arm", "less that of", *RACES])


def arm_table(values: pd.DataFrame) -> pd.DataFrame:
    """One row an arm: error of the ratio (all, worst race), pictures without a disc, MMD (mean over
    races, gap), and the AUC for glaucoma of a classifier trained on the pictures (all,
    equity-scaled over race, gap), and of one trained on real people.
    """
    wanted = {
        "error": (CDR, NO_TASK, "all", "all"),
        "error, worst race": (CDR, NO_TASK, "race", WORST),
        "no disc": (NO_DISC, NO_TASK, "all", "all"),
        "MMD": (MMD, NO_TASK, "all", "all"),
        "MMD, gap": (MMD, NO_TASK, "race", GAP),
        "AUC to real": (TO_REAL, "glaucoma", "all", "all"),
        "equity-scaled": (TO_REAL, "glaucoma", "race", SCALED),
        "AUC, gap": (TO_REAL, "glaucoma", "race", GAP),
        "AUC from real": (TO_GENERATED, "glaucoma", "all", "all"),
    }
    known = values.set_index(["arm", "measure", "task", "by", "group"])["value"]
    order = [arm for arm in (REAL, *UNTUNED, *ARMS) if arm in set(values["arm"])]
    return pd.DataFrame(
        [
            {"arm": arm, **{name: known.get((arm, *key), np.nan) for name, key in wanted.items()}}
            for arm in order
        ]
    )


def bounds(results: dict | None = None) -> pd.DataFrame | None:
    """A fundus report in words: value with its interval, bound, and `holds_in_words`; of the long
    run when `results` is None, and None when there is none.
    """
    try:
        found = fundus_report(results=results)
    except DataError:
        return None
    ends = [
        f" ({row.low:.3f}\u00a0to\u00a0{row.high:.3f})" if np.isfinite(row.low) else ""
        for row in found.itertuples()
    ]
    bound = found["bound"].map(lambda b: "-" if pd.isna(b) else f"{b:.3f}")
    return found[["figure", "arm", "judge"]].assign(
        value=[f"{number:.3f}{end}" for number, end in zip(found["value"], ends, strict=True)],
        floor=found["floor"].map(lambda f: "-" if pd.isna(f) else f"{f:.3f}"),
        bound=bound,
        holds=holds_in_words(found, "gap over races"),
    )


__all__ = [
    "CDR",
    "CDR_MOST",
    "FOUND",
    "MMD",
    "SIZES",
    "TO_GENERATED",
    "TO_REAL",
    "arm_table",
    "bounds",
    "by_arm",
    "by_group",
    "by_race",
    "chosen",
    "counts",
    "difference_points",
    "gaps",
    "grid",
    "race_points",
    "sample_weights",
    "sigma_path",
    "table",
    "twins",
    "weight_sliders",
    "weights_histogram",
    "weights_told",
]
