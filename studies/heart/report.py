"""The criteria of the heart study, its tables in words, and other guidance scales beside the
paper's.

A guidance scale above 1 stretches what the words of the prompt change in a prediction
(classifier-free guidance). The paper's code draws copies at 4. Every other scale here was chosen
after the figures at 4 had been seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from fairlib.measures.intervals import Interval
from studies.engine.criteria import Criterion, Rule, as_interval, interval_at
from studies.engine.study import Tables
from studies.heart.arms import PREVALENCES, WAYS, best_synthetic
from studies.heart.data import PAPER_GUIDANCE, HeartSettings
from studies.heart.measures import THROUGH, lowest_dice

DICE = Criterion("dice_lowest", "Dice, lowest subgroup ({group}){where}", 0.85, Rule.AT_LEAST)
DICE_LOSS = Criterion(
    "dice_loss", "Dice less that on held-out hearts, lowest ({group}){where}", -0.05, Rule.AT_LEAST
)
RECOVERED = Criterion(
    "diagnosis_recovered", "diagnosis recovered, share of held-out{where}", 0.9, Rule.AT_LEAST
)
# A generator that copies nothing has a share near the quantile, so half of the time a little above
# it; the bound is the quantile.
NEARER = Criterion(
    "nearer_to_training",
    "nearer to training than {quantile:.0%} of held-out subjects{where}",
    rule=Rule.NOT_ABOVE,
)
WORST = Criterion(
    "worst_subgroup_gain",
    "worst subgroup, balanced accuracy less real-only{where}",
    0.0,
    Rule.WHOLE_AT_LEAST,
)
ESTIMATE, SHARE = ("estimate", "low", "high"), ("share", "low", "high")
MEAN, LOSS = ("mean", "low", "high"), ("difference", "difference_low", "difference_high")
RATIO = ("ratio", "ratio_low", "ratio_high")
LABELS = {  # of arms and of ways of requesting, for readers
    "real": "real",
    "reweighted": "real, reweighted",
    "resampled": "real, resampled",
    "mixed": "real and generated",
    "pretrained": "generated, then real",
    "extra_real": "real and further subjects",
    "synthetic": "generated",
    "mixed_resampled": "real and generated, resampled",
    "copies": "copies",
    "combinations": "new combinations",
    "unseen": "unseen pairs",
}
AS_REAL = "1"  # what a share of real hearts would be if nothing were exaggerated or lost
NAMES = {"diagnosis": "diagnosis", "sex": "sex", "age": "age", "bmi": "body-mass index"}


def criteria(tables: Tables, settings: HeartSettings) -> list[dict]:
    """Every criterion that the tables of a study (or of a notebook) tell of."""
    where = "" if settings.draws_hearts else f", {settings.classifier_subjects} own hearts"
    if not settings.trains_classifiers:
        where = f", guidance {settings.guidance_scale:g}"
    rows: list[dict] = []
    if "dice" in tables:
        rows += _control(tables, where) + _memorisation(tables["memorisation"], where)
    if "differences" in tables:
        rows += _downstream(tables, where, settings.n_min)
    return rows


def _control(tables: Tables, where: str) -> list[dict]:
    rows, dice, recovery = [], tables["dice"], tables["recovered"]
    for way in WAYS:
        name, low, loss = lowest_dice(dice[dice["way"] == way])
        worst = f"{loss['attribute']}: {loss['group']}"
        for figure, row, ends, group in ((DICE, low, MEAN, name), (DICE_LOSS, loss, LOSS, worst)):
            value, n = as_interval(row, ends), int(row["images"])
            rows.append(figure.row(way, "re-segmenter", value, n, group=group, where=where))
    for row in recovery[recovery["attribute"] == "diagnosis"].to_dict("records"):
        value = as_interval(row, RATIO)
        rows.append(RECOVERED.row(row["way"], "diagnosis", value, int(row["n"]), where=where))
    return rows


def _memorisation(table: pd.DataFrame, where: str) -> list[dict]:
    """One row a quantile: generated hearts under unseen masks, against the very same subjects'
    images.
    """
    part, rows = table[(table["way"] == "unseen") & (table["reading"] == THROUGH)], []
    for row in part.to_dict("records"):
        figure, value = replace(NEARER, bound=row["quantile"]), as_interval(row, SHARE)
        words = {"quantile": row["quantile"], "where": where}
        rows.append(figure.row("unseen", "distance", value, int(row["n"]), **words))
    return rows


def _downstream(tables: Tables, where: str, n_min: int) -> list[dict]:
    """The worst subgroup of the best synthetic arm against real-only, and of arms without a
    generator; `floor` is what as many real images more would give.
    """
    differences, subjects = tables["differences"], tables["subjects"]
    best = best_synthetic(tables["margins"], subjects, n_min=n_min)
    ideal = worst_difference(differences, "extra_real")
    floor = ideal.estimate if ideal else np.nan
    count, rows = int((subjects["part"] == "test").sum()), []
    for arm in (best, "reweighted", "resampled"):
        value = worst_difference(differences, arm)
        if value is not None:
            about = {"compared": arm != best, "where": where}
            rows.append(WORST.row(arm, "diagnosis", value, count, floor, **about))
    return rows


def worst_difference(differences: pd.DataFrame, arm: str, by: str = "all three") -> Interval | None:
    """The difference of `arm` to real-only in the balanced accuracy of the worst subgroup at the
    prevalence of the test, with its interval; None where it was not trained.
    """
    about = {"by": by, "group": "worst", "metric_id": "balanced_accuracy"}
    return interval_at(differences, ESTIMATE, arm=arm, prevalence=PREVALENCES[2], **about)


def arm_table(values: pd.DataFrame, by: str) -> pd.DataFrame:
    """One row an arm, at the prevalence of the test: balanced accuracy of all, of the worst
    subgroup with its interval, the gap, and the gaps of tpr and fpr.
    """
    rows = values[(values["by"] == by) & (values["prevalence"] == PREVALENCES[2])]
    wide = rows.pivot(index="arm", columns=["metric_id", "group"], values=list(ESTIMATE))
    accuracy = wide.xs("balanced_accuracy", axis=1, level="metric_id")
    table = accuracy["estimate"][["all", "worst"]]
    table[["worst_low", "worst_high"]] = accuracy[[("low", "worst"), ("high", "worst")]]
    for name, metric in (("gap", "balanced_accuracy"), ("tpr gap", "tpr"), ("fpr gap", "fpr")):
        table[name] = wide["estimate", metric, "gap"]
    return table.loc[rows["arm"].unique()].rename_axis(columns=None).reset_index()


def in_words(differences: pd.DataFrame, arm: str, rival: str = "reweighted") -> str:
    """What the downstream test says of a synthetic arm, in plain sentences: whether it changes what
    real-only does, and whether more than reweighting. Of two intervals that overlap nothing is
    said; they are wider apart than one of the difference would ask.
    """
    found, other = worst_difference(differences, arm), worst_difference(differences, rival)
    ideal = worst_difference(differences, "extra_real")
    arm, rival = (f"“{LABELS.get(one, one)}”" for one in (arm, rival))
    said = f"The data do not show that {arm} changes the worst subgroup's balanced accuracy: "
    if not found.low <= 0 <= found.high:
        verb = "raises" if found.low > 0 else "lowers"
        said = f"{arm} {verb} the worst subgroup's balanced accuracy by "
    said += f"{_points(found)}."
    if other is not None:
        more = "the two intervals overlap."
        if found.low > other.high or found.high < other.low:
            more = f"the generator does {'more' if found.low > other.high else 'less'}."
        least = _points(other, "")
        said += f" {rival}, which needs no generator, changes it by {least}: {more}"
    if ideal is not None:
        said += f" As many real images more would change it by {100 * ideal.estimate:+.1f}."
    return said


def _points(value: Interval, unit: str = " points") -> str:
    estimate, low, high = (100 * end for end in (value.estimate, value.low, value.high))
    return f"{estimate:+.1f}{unit} ({low:+.1f} to {high:+.1f})"


# ---- guidance scales


def scales_table(scales: dict[float, Tables]) -> pd.DataFrame:
    """The tables of several guidance scales side by side: topic (at its first figure), figure,
    reference (a criterion, or what real hearts show), and one column with intervals a scale.

    Way of requesting, where none is named: unseen. Distances lie so far apart between subgroups
    that the greatest and the median of all subgroups stand for them.
    """
    columns = {}
    for scale, tables in scales.items():
        paper = ", the paper's" if scale == PAPER_GUIDANCE else ""
        columns[f"scale {scale:g}{paper}"] = [*_control_figures(tables), *_other_figures(tables)]
    first = next(iter(columns.values()))
    rows = pd.DataFrame([row[:3] for row in first], columns=["topic", "figure", "reference"])
    texts = {name: {row[1]: row[3] for row in column} for name, column in columns.items()}
    rows = rows.assign(**{name: rows["figure"].map(text) for name, text in texts.items()})
    return rows.assign(topic=rows["topic"].mask(rows["topic"].duplicated(), ""))


def scales_in_words(scales: dict[float, Tables]) -> str:
    """What guidance costs, in a few plain sentences with the tables' numbers; the conclusion
    follows from them.

    A price is named only where the intervals of the highest and the lowest scale lie apart.
    """
    high, low = max(scales), min(scales)
    loud = {scale: _shown(tables, "bmi") for scale, tables in scales.items()}
    loss = {
        scale: min((_loss(tables, way) for way in WAYS), key=lambda value: value.estimate)
        for scale, tables in scales.items()
    }
    said = (
        f"In the long runs the requested body-mass index shows {_each(loud, '{:.1f}')} times as "
        "strongly as in held-out hearts. In the subgroup that follows its mask least well, Dice "
        f"differs from that on held-out hearts by {_each(loss, '{:+.3f}')}; "
        f"the bound is {DICE_LOSS.bound:.2f}. "
    )
    prices = []
    if loud[high].low > max(1.0, loud[low].high):
        prices.append("the requested weight is stronger in the images than in held-out subjects")
    if loss[high].high < loss[low].low:
        prices.append("the mask is followed less well")
    if prices:
        return f"{said}The cost of {high:g} instead of {low:g} is that {' and '.join(prices)}."
    return f"{said}By these two figures there is no cost of {high:g} against {low:g}."


def _each(values: dict[float, Interval], form: str) -> str:
    texts = (f"{form.format(one.estimate)} (scale {scale:g})" for scale, one in values.items())
    return " and ".join(texts)


def _control_figures(tables: Tables) -> Iterator[tuple[str, str, str, str]]:
    """(topic, figure, reference, value with its interval) of what was requested."""
    low = lowest_dice(tables["dice"][tables["dice"]["way"] == "unseen"])[1]
    value = _text(as_interval(low, MEAN))
    yield "Mask", "Dice, lowest subgroup", f"at least {DICE.bound}", value
    for way in WAYS:
        figure = f"Dice less that on held-out hearts, lowest subgroup, {LABELS[way]}"
        yield "Mask", figure, f"at least {DICE_LOSS.bound}", _text(_loss(tables, way))
    for attribute, name in NAMES.items():
        reference = f"at least {RECOVERED.bound}" if attribute == "diagnosis" else AS_REAL
        value = _text(_shown(tables, attribute), 2)
        yield "Attributes", f"{name}, as a share of held-out", reference, value
    for word in ("diagnosis", "sex"):
        value = _text(interval_at(tables["flips"], ("moved", "low", "high"), word=word), 2)
        figure = f"{word} turned in the prompt, followed by"
        yield "Prompt or mask", figure, "0: mask, 1: prompt", value


def _other_figures(tables: Tables) -> Iterator[tuple[str, str, str, str]]:
    """The same of geometry (where there are rules), realism and memorisation."""
    beyond = ("beyond_real", "beyond_low", "beyond_high")
    for measure, name in {"diameter_ed": "cavity's diameter", "wall_ed": "wall"}.items():
        if "geometry" in tables:
            about = {"way": "unseen", "attribute": "all", "measure": measure}
            value = _text(interval_at(tables["geometry"], beyond, **about), 2)
            yield "Geometry", f"{name}, mm beyond error on held-out hearts", "0", value
    table = tables["distances"]
    own = table[table["real_group"] == table["synthetic_group"]].sort_values("distance")
    if len(own):
        reference, far = f"real to real: at most {own['floor'].max():.2f}", own.iloc[-1]
        value = _text(as_interval(far, ("distance", "low", "high")), 1)
        yield "Realism", "MMD, farthest subgroup", reference, f"{value}, {far['real_group']}"
        median = f"{own['distance'].median():.1f}"
        yield "Realism", "MMD, median of the subgroups", reference, median
    part = tables["memorisation"]
    row = part[(part["way"] == "unseen") & (part["reading"] == THROUGH)].iloc[-1]
    figure = f"nearer to training than {row['quantile']:.0%} of held-out subjects"
    yield "Memorisation", figure, f"{row['quantile']:.2f}", _text(as_interval(row, SHARE))


def _shown(tables: Tables, attribute: str) -> Interval:
    """How much of an attribute the evaluators read under unseen pairs, as a share of what they read
    in real hearts.
    """
    return interval_at(tables["recovered"], RATIO, way="unseen", attribute=attribute)


def _loss(tables: Tables, way: str) -> Interval:
    """The Dice of a way less that on held-out hearts, in the subgroup where it is lowest."""
    return as_interval(lowest_dice(tables["dice"][tables["dice"]["way"] == way])[2], LOSS)


def _text(value: Interval, digits: int = 3) -> str:
    text = f"{value.estimate:.{digits}f}"
    ends = f" ({value.low:.{digits}f} to {value.high:.{digits}f})"
    return text + ends if np.isfinite(value.low) else text
