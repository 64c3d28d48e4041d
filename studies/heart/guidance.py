"""The paper's guidance scale beside others: one person at several scales, the long runs in a table
and in words.

A scale above 1 stretches what the words of the prompt change in a prediction (classifier-free
guidance). The paper's code draws copies at 4. Every other scale here was chosen after the figures
at 4 had been seen.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from fairlib.errors import DataError
from fairlib.measures.intervals import Interval
from fairlib.models.classifier import predict
from studies.heart.cohorts import Hearts
from studies.heart.control import BMI_STEP, as_interval, lowest_dice
from studies.heart.generation import swatches
from studies.heart.judges import fit_heart_judges
from studies.heart.report import (
    DICE_LEAST,
    DICE_LOSS,
    RECOVERED,
    load_guidance_results,
    load_heart_results,
)
from studies.heart.settings import PAPER_GUIDANCE, WAYS, HeartStudy
from studies.heart.views import outlined

AS_REAL = "1"  # what a share of real hearts would be if nothing were exaggerated or lost


def scales_picture(
    study: HeartStudy, hold: Hearts, scales: tuple[float, ...]
) -> tuple[Figure, dict[str, float]]:
    """One obese person with heart failure (or whoever of `hold` comes nearest): the real picture,
    then the same mask, words and noise at each scale. Also body-mass indices, kg/m2: "person", the
    truth; "real", what the reader finds in the real picture; and what it finds at each scale.
    """
    ill = (hold.table["diagnosis"] == "heart failure").to_numpy(bool)
    away = (hold.table["bmi"].to_numpy(float) - BMI_STEP["obese"]) ** 2 + np.where(ill, 0, 1e4)
    person = hold.take([int(np.nanargmin(away))])
    prompts = list(person.table["prompt"])
    made = [
        swatches(replace(study, guidance_scale=float(scale)), prompts, person.masks)
        for scale in scales
    ]
    images = torch.cat([person.images, *made])
    titles = ["real", *(f"scale {scale:g}" for scale in scales)]
    read = predict(fit_heart_judges(study).reader, images).logits["bmi"]
    found = {
        "person": float(person.table["bmi"][0]),
        **dict(zip(titles, map(float, read), strict=True)),
    }
    return outlined(images, person.masks.expand(len(images), -1, -1, -1), titles), found


def load_scales() -> dict[float, dict[str, pd.DataFrame]]:
    """The long runs' tables by guidance scale, the paper's first; empty where the main study or
    every other scale is missing.
    """
    others = load_guidance_results()
    try:
        return {PAPER_GUIDANCE: load_heart_results(), **others} if others else {}
    except DataError:
        return {}


def scales_table(scales: dict[float, dict[str, pd.DataFrame]]) -> pd.DataFrame:
    """One row a figure: question (at its first figure), figure, wanted (a bound, or what real
    hearts show), and one column with intervals a scale.

    Way of asking, where none is named: unseen. Distances lie so far apart between subgroups that
    the greatest and the median of all subgroups stand for them.
    """
    columns = {_heading(scale): _figures(found) for scale, found in scales.items()}
    first = next(iter(columns.values()))
    table = pd.DataFrame(
        [
            {
                "question": question,
                "figure": figure,
                "wanted": wanted,
                **{name: column[question, figure][1] for name, column in columns.items()},
            }
            for (question, figure), (wanted, _) in first.items()
        ]
    )
    return table.assign(question=table["question"].mask(table["question"].duplicated(), ""))


def scales_in_words(scales: dict[float, dict[str, pd.DataFrame]]) -> str:
    """What guidance costs, in a few plain sentences with the tables' numbers; the verdict follows
    from them.

    A price is named only where the intervals of the highest and the lowest scale lie apart.
    """
    high, low = max(scales), min(scales)
    loud, loss = (
        {s: _shown(scales[s], "bmi") for s in scales},
        {s: _worst_loss(scales[s]) for s in scales},
    )
    said = (
        f"In the long runs the asked body-mass index shows {_each(loud, '{:.1f}')} times as "
        "strongly as in real hearts. In "
        "the subgroup that follows its mask least well, Dice differs from that on real hearts by "
        f"{_each(loss, '{:+.3f}')}; "
        f"the bound is {DICE_LOSS:.2f}. "
    )
    prices = []
    if loud[high].low > max(1.0, loud[low].high):
        prices.append("the asked weight is stronger in the pictures than in real people")
    if loss[high].high < loss[low].low:
        prices.append("the mask is followed less well")
    return said + (
        f"So the price of {high:g} in place of {low:g} is that {' and '.join(prices)}."
        if prices
        else f"By these two figures {high:g} costs nothing that {low:g} would save."
    )


def _each(found: dict[float, Interval], form: str) -> str:
    return " and ".join(
        f"{form.format(one.estimate)} (scale {scale:g})" for scale, one in found.items()
    )


def _heading(scale: float) -> str:
    return f"scale {scale:g}" + (", the paper's" if scale == PAPER_GUIDANCE else "")


def _figures(found: dict[str, pd.DataFrame]) -> dict[tuple[str, str], tuple[str, str]]:
    """(question, figure) -> what is wanted, and the value with its interval."""
    parts = (_mask(found), _person(found), _words(found), _law(found), _real(found), _copied(found))
    return {
        (question, figure): (wanted, text)
        for part in parts
        for question, figure, wanted, text in part
    }


def _mask(found):
    question = "Is the mask followed?"
    low = lowest_dice(found["dice"][found["dice"]["way"] == "unseen"])[1]
    yield (
        question,
        "Dice, lowest subgroup",
        f"at least {DICE_LEAST}",
        _text(as_interval(low, "mean", "low", "high")),
    )
    for way in WAYS:
        figure = f"Dice less that on real hearts, lowest subgroup, {way}"
        yield question, figure, f"at least {DICE_LOSS}", _text(_loss(found, way))


def _person(found):
    for attribute, name in (
        ("diagnosis", "diagnosis"),
        ("sex", "sex"),
        ("age", "age"),
        ("bmi", "body-mass index"),
    ):
        wanted = f"at least {RECOVERED}" if attribute == "diagnosis" else AS_REAL
        yield (
            "Is the person in the picture?",
            f"{name}, as a share of real",
            wanted,
            _text(_shown(found, attribute), 2),
        )


def _words(found):
    turned = found["flips"].set_index("word")
    for word in ("diagnosis", "sex"):
        value = as_interval(turned.loc[word], "moved", "low", "high")
        yield (
            "Prompt or mask?",
            f"{word} turned in the prompt, followed by",
            "0: mask, 1: prompt",
            _text(value, 2),
        )


def _law(found):
    if "geometry" not in found:
        return
    law = found["geometry"]
    law = law[(law["way"] == "unseen") & (law["attribute"] == "all")].set_index("measure")
    for measure, name in (("diameter_ed", "cavity's diameter"), ("wall_ed", "wall")):
        value = as_interval(law.loc[measure], "beyond_real", "beyond_low", "beyond_high")
        yield "Against the law", f"{name}, mm beyond real hearts' error", "0", _text(value, 2)


def _real(found):
    table = found["distances"]
    own = table[table["real_group"] == table["synthetic_group"]].sort_values(
        "distance", ignore_index=True
    )
    if own.empty:
        return
    wanted, question = f"real to real: at most {own['floor'].max():.2f}", "As real as real?"
    far = as_interval(own.iloc[-1], "distance", "low", "high")
    yield (
        question,
        "MMD, farthest subgroup",
        wanted,
        f"{_text(far, 1)}, {own.iloc[-1]['real_group']}",
    )
    yield question, "MMD, median of the subgroups", wanted, f"{own['distance'].median():.1f}"


def _copied(found):
    part = found["memorisation"]
    row = part[(part["way"] == "unseen") & (part["reading"] == "through the autoencoder")].iloc[-1]
    figure = f"nearer to training than {row['quantile']:.0%} of real people"
    yield (
        "Copies?",
        figure,
        f"{row['quantile']:.2f}",
        _text(as_interval(row, "share", "low", "high")),
    )


def _shown(found: dict[str, pd.DataFrame], attribute: str) -> Interval:
    """How much of an attribute the instruments find under unseen pairs, as a share of what they
    find in real hearts.
    """
    row = found["recovered"].set_index(["way", "attribute"]).loc[("unseen", attribute)]
    return as_interval(row, "ratio", "ratio_low", "ratio_high")


def _loss(found: dict[str, pd.DataFrame], way: str) -> Interval:
    """The Dice of a way less that on real hearts, in the subgroup where it is lowest."""
    row = lowest_dice(found["dice"][found["dice"]["way"] == way])[2]
    return as_interval(row, "difference", "difference_low", "difference_high")


def _worst_loss(found: dict[str, pd.DataFrame]) -> Interval:
    return min((_loss(found, way) for way in WAYS), key=lambda loss: loss.estimate)


def _text(found: Interval, digits: int = 3) -> str:
    value = f"{found.estimate:.{digits}f}"
    return (
        f"{value} ({found.low:.{digits}f} to {found.high:.{digits}f})"
        if np.isfinite(found.low)
        else value
    )


__all__ = ["load_scales", "scales_in_words", "scales_picture", "scales_table"]
