"""What the heart notebooks look at: tables and pictures put together from the stages of the
study.
"""

from __future__ import annotations

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fairlib.cohorts.cardiac import prompt_of
from fairlib.errors import DataError
from fairlib.figures.style import LOOKS
from fairlib.methods.control import TYPICAL_BMI
from fairlib.widgets import contact_sheet
from studies.book.display import table
from studies.engine.bounds import holds_in_words
from studies.heart.generation import ends, swatches
from studies.heart.phantom import draw_heart_with, expected_geometry
from studies.heart.report import heart_report
from studies.heart.settings import HeartStudy

SEX, DIAGNOSIS, BMI = ("F", "M"), ("healthy", "heart failure"), ("normal", "overweight", "obese")
WORDS = {"F": "woman", "M": "man"}
OUTLINES = {1: LOOKS[1].colour, 2: LOOKS[3].colour, 3: LOOKS[4].colour}  # LV, MYO, RV


def counts(people: pd.DataFrame) -> pd.DataFrame:
    """How many training hearts of each kind: sex, diagnosis, and the share below 50 years and below
    25 kg/m2 among them.
    """
    young, thin = people["age"] < 50, people["bmi"] < 25
    groups = people.assign(young=young, thin=thin).groupby(["diagnosis", "sex"])
    found = groups.agg(n=("subject", "size"), young=("young", "mean"), thin=("thin", "mean"))
    return found.reset_index().rename(
        columns={"n": "hearts", "young": "below 50 years", "thin": "BMI below 25"}
    )


def rarest(people: pd.DataFrame, count: int = 6) -> pd.DataFrame:
    """The prompts that fewest training hearts have: prompt, hearts."""
    found = people["prompt"].value_counts().sort_values(kind="stable").head(count)
    return found.rename_axis("prompt").reset_index(name="hearts")


def law_table(ages=(45, 60, 75)) -> pd.DataFrame:
    """The phantom's law for a few people of 170 cm and 25 kg/m2: diameter (mm), wall (mm),
    ejection.
    """
    rows = []
    for sex, diagnosis, face in (
        ("F", "healthy", None),
        ("M", "healthy", None),
        ("F", "heart failure", "dilated"),
        ("M", "heart failure", "dilated"),
        ("F", "heart failure", "preserved"),
        ("M", "heart failure", "preserved"),
    ):
        for age in ages if diagnosis == "healthy" else ages[1:2]:
            law = expected_geometry(sex, age, 25.0, 170.0, diagnosis, face)
            rows.append(
                {
                    "sex": sex,
                    "age": age,
                    "diagnosis": diagnosis,
                    "face": face or "-",
                    "diameter, mm": law["diameter_ed"],
                    "wall, mm": law["wall_ed"],
                    "ejection": law["ejection"],
                }
            )
    return pd.DataFrame(rows)


def twins(seed: int = 4) -> tuple[Tensor, Tensor, list[str]]:
    """Six synthetic people who differ in sex and heart only: images [6, 3, 64, 64], masks [6, 2,
    64, 64], and titles.
    """
    found, titles = [], []
    for sex, (diagnosis, face) in product(
        SEX, (("healthy", None), ("heart failure", "dilated"), ("heart failure", "preserved"))
    ):
        found.append(
            draw_heart_with(np.random.default_rng(seed), sex, 62, 27.0, diagnosis, 170.0, face)
        )
        titles.append(f"{WORDS[sex]}, {face or 'healthy'}")
    images = torch.from_numpy(np.stack([one.images for one in found]))[:, [0, 1, 0]]
    return images, torch.from_numpy(np.stack([one.masks for one in found])), titles


def outlined(
    images: Tensor,
    masks: Tensor | None,
    titles=None,
    columns: int = 6,
    cell: float = 1.5,
    others: Tensor | None = None,
    rows=("end-diastole", "end-systole"),
) -> Figure:
    """Hearts [N, 3, H, W] as columns, ED above ES, with the outlines of `masks` [N, 2, H, W] (and,
    dashed, of `others`).
    """
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise DataError(f"images of shape {tuple(images.shape)}; expected [N, 3, H, W]")
    count = min(columns, len(images))
    figure, grid = plt.subplots(
        2, count, figsize=(count * cell + 0.3, 2 * cell + 0.35), squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for place in range(count):
        for frame, picture in enumerate(ends(images[place : place + 1])[0]):
            panel = grid[frame, place]
            panel.imshow(picture, cmap="gray", vmin=-1, vmax=1)
            _contours(panel, masks, place, frame, "-")
            _contours(panel, others, place, frame, ":")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
        if titles is not None:
            grid[0, place].set_title(
                titles[place], fontsize=8, fontweight="normal", loc="center", pad=3
            )
    for frame, label in enumerate(rows):
        grid[frame, 0].set_ylabel(label, fontsize=9)
    return figure


def _contours(panel, masks: Tensor | None, place: int, frame: int, line: str) -> None:
    if masks is None:
        return
    labels = masks[place, frame].numpy()
    for label, colour in OUTLINES.items():
        if (labels == label).any():
            panel.contour(
                labels == label, levels=[0.5], colors=colour, linewidths=1.1, linestyles=line
            )


def person_sliders(
    study: HeartStudy, mask: Tensor, ages
) -> tuple[list[bytes], dict[str, list[str]], Tensor]:
    """One mask [2, H, W], every person: pictures for `widgets.slider` (ED beside ES), its sliders,
    and the images.
    """
    people = [
        {"sex": sex, "age": age, "bmi": TYPICAL_BMI[bmi], "diagnosis": diagnosis}
        for sex, age, bmi, diagnosis in product(SEX, ages, BMI, DIAGNOSIS)
    ]
    images = swatches(
        study,
        [prompt_of(person) for person in people],
        mask[None].expand(len(people), -1, -1, -1).contiguous(),
    )
    decades = [f"{int(age) // 10 * 10}s" for age in ages]
    axes = {"sex": ["woman", "man"], "age": decades, "BMI": list(BMI), "diagnosis": list(DIAGNOSIS)}
    return [pair(image) for image in images], axes, images


def mask_slider(study: HeartStudy, prompt: str, masks: Tensor) -> tuple[list[bytes], Tensor]:
    """One prompt, several masks [N, 2, H, W]: pictures for `widgets.slider`, the mask beside ED and
    ES, and the images.
    """
    images = swatches(study, [prompt] * len(masks), masks)
    shown = [
        contact_sheet(
            torch.cat([mask[:, None] * (2 / 3) - 1, ends(image[None])[0][:, None]]), enlarge=2
        )
        for mask, image in zip(masks.float(), images, strict=True)
    ]
    return shown, images


def pair(image: Tensor) -> bytes:
    """ED beside ES of one image [3, H, W], as a PNG of twice the size."""
    return contact_sheet(ends(image[None])[0][:, None], enlarge=2)


def spread(images: Tensor) -> float:
    """How much images of one mask and noise differ: mean over pixels of the standard deviation over
    images, in [0, 2].
    """
    return float(images.std(0).mean())


def dice_points(
    dice: pd.DataFrame, attributes=("sex", "age", "bmi_class", "diagnosis")
) -> pd.DataFrame:
    """Rows for `dot_plot`: generated and real Dice of each subgroup, with their intervals."""
    part = dice[dice["attribute"].isin(attributes)]
    own = part.assign(series="generated", value=part["mean"])
    real = part.assign(series="real, unseen", value=part["reference"], low=np.nan, high=np.nan)
    both = pd.concat([own, real], ignore_index=True)
    return both.assign(lane=both["group"])[["lane", "series", "value", "low", "high", "images"]]


def matrix(distances: pd.DataFrame, attribute: str) -> pd.DataFrame:
    """The cross-matrix of one attribute: real group, distance to each generated group, floor."""
    part = distances[distances["attribute"] == attribute]
    if part.empty:
        return pd.DataFrame({"real": ["too few hearts in this run"]})
    wide = part.pivot_table(
        index="real_group", columns="synthetic_group", values="distance", sort=False
    ).add_prefix("generated ")
    floors = part.drop_duplicates("real_group").set_index("real_group")[
        ["floor", "floor_low", "floor_high", "n"]
    ]
    names = {f"floor{end}": f"real to real{end}" for end in ("", "_low", "_high")}
    return wide.join(floors).reset_index().rename(columns={"real_group": "real", **names})


def arm_points(
    values: pd.DataFrame, by: str, metric: str = "balanced_accuracy", prevalence: float = 0.01
) -> pd.DataFrame:
    """Rows for `dot_plot`: a metric of every subgroup (lane) for every arm (series)."""
    part = values[
        (values["by"] == by)
        & (values["metric_id"] == metric)
        & np.isclose(values["prevalence"], prevalence)
    ]
    part = part[part["group"] != "gap"].rename(
        columns={"group": "lane", "arm": "series", "estimate": "value"}
    )
    return part[["lane", "series", "value", "low", "high"]]


def difference_points(
    differences: pd.DataFrame,
    by: str = "all three",
    prevalence: float = 0.01,
    metric: str = "balanced_accuracy",
) -> pd.DataFrame:
    """Rows for `dot_plot`: each arm's (lane) difference to real-only in the worst subgroup and
    over all, in points.
    """
    part = differences[
        (differences["by"] == by)
        & (differences["metric_id"] == metric)
        & np.isclose(differences["prevalence"], prevalence)
        & differences["group"].isin(["worst", "all"])
    ]
    shown = part.assign(
        value=100 * part["estimate"],
        low=100 * part["low"],
        high=100 * part["high"],
        series=part["group"].map({"worst": "worst subgroup", "all": "all"}),
    )
    return shown.rename(columns={"arm": "lane"})[["lane", "series", "value", "low", "high"]]


def arm_table(values: pd.DataFrame, by: str, prevalence: float = 0.01) -> pd.DataFrame:
    """One row an arm: balanced accuracy of all, of the worst subgroup with its interval, the gap,
    and the gaps of tpr and fpr.
    """
    part = values[(values["by"] == by) & np.isclose(values["prevalence"], prevalence)].set_index(
        ["arm", "group", "metric_id"]
    )
    rows = []
    for arm in dict.fromkeys(values["arm"]):
        worst = part.loc[(arm, "worst", "balanced_accuracy")]
        rows.append(
            {
                "arm": arm,
                "all": part.loc[(arm, "all", "balanced_accuracy"), "estimate"],
                "worst": worst["estimate"],
                "worst_low": worst["low"],
                "worst_high": worst["high"],
                "gap": part.loc[(arm, "gap", "balanced_accuracy"), "estimate"],
                "tpr gap": part.loc[(arm, "gap", "tpr"), "estimate"],
                "fpr gap": part.loc[(arm, "gap", "fpr"), "estimate"],
            }
        )
    return pd.DataFrame(rows)


def bounds(found: pd.DataFrame | None = None) -> pd.DataFrame | None:
    """A heart report in words: value with its interval, bound, and `holds_in_words`; that of the
    long run when `found` is None, and None when there is no long run.
    """
    if found is None:
        try:
            found = heart_report()
        except DataError:
            return None
    ends = [
        f" ({row.low:.3f}\u00a0to\u00a0{row.high:.3f})" if np.isfinite(row.low) else ""
        for row in found.itertuples()
    ]
    value = [f"{number:.3f}{end}" for number, end in zip(found["value"], ends, strict=True)]
    bound = found["bound"].map(lambda b: "-" if pd.isna(b) else f"{b:.3f}")
    return found[["figure", "arm", "judge"]].assign(
        value=value, bound=bound, holds=holds_in_words(found, "nearer to training")
    )


__all__ = [
    "arm_points",
    "arm_table",
    "bounds",
    "counts",
    "dice_points",
    "difference_points",
    "law_table",
    "mask_slider",
    "matrix",
    "outlined",
    "pair",
    "person_sliders",
    "rarest",
    "spread",
    "table",
    "twins",
]
