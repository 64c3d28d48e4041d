"""Dice overlap of the mask that was asked with the mask found in the image, per structure, frame
and subgroup.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fairlib.errors import DataError
from fairlib.measures.resampling import Interval, Sample, bootstrap, interval

FRAMES = ("ED", "ES")
STRUCTURES = ("LV", "MYO", "RV")
SUBJECTS_MIN = 5  # fewer clusters than this make a bootstrap interval that means nothing


@dataclass(frozen=True)
class Reference:
    """The segmenter's own Dice on real hearts it never saw: what a perfect generator could reach.

    scores: [M, 2, 3] from `dice`; subjects: [M]; groups: `{attribute: labels [M]}`, or None to hold
    every subgroup against all real hearts.
    """

    scores: np.ndarray
    subjects: np.ndarray
    groups: dict | None = None


def dice(asked, found) -> np.ndarray:
    """2 |A and B| / (|A| + |B|), float [N, 2, 3]: frames ED and ES, structures LV, MYO and RV.

    asked, found: [N, 2, H, W]. A structure in neither mask has no Dice (NaN); in one mask alone it
    has 0. Raises `DataError` on masks of different shapes or with unknown labels.
    """
    asked, found = check_masks(asked, "asked masks"), check_masks(found, "found masks")
    if asked.shape != found.shape:
        raise DataError(
            f"asked masks of shape {asked.shape} and found masks of shape {found.shape} lie on "
            "different grids; "
            "bring both to the grid of the images"
        )
    scores = []
    for label in range(1, len(STRUCTURES) + 1):
        a, b = asked == label, found == label
        both, total = (a & b).sum((2, 3)), a.sum((2, 3)) + b.sum((2, 3))
        scores.append(np.where(total > 0, 2 * both / np.maximum(total, 1), np.nan))
    return np.stack(scores, axis=-1)


def structure_means(scores: np.ndarray) -> np.ndarray:
    """Mean Dice [3] of LV, MYO and RV over all images and frames [N, 2, 3] where it is defined; NaN
    where it never is.
    """
    return pooled_mean(*_parts(scores), (0, 1))


def mean_dice(scores: np.ndarray) -> float:
    """The mean of the three structure means; NaN when a structure is in no mask at all."""
    return float(structure_means(scores).mean())


def dice_table(
    asked,
    found,
    groups,
    subjects,
    rng: np.random.Generator,
    reference: Reference | None = None,
    replicates: int = 1000,
) -> pd.DataFrame:
    """One row a subgroup (the first: everybody), with 95 % intervals that draw whole subjects
    again.

    asked, found: masks [N, 2, H, W]; groups: `{attribute: labels [N]}`; subjects: [N] labels, for a
    generated image those of the person whose mask was asked.
    Columns: attribute, group, images, subjects, LV, MYO, RV, ED, ES, mean (of the three
    structures), low, high, undefined (Dice values left out because the structure is in neither
    mask), and with a `reference` also reference, difference (mean - reference), difference_low,
    difference_high. Ends are NaN below 5 subjects. Raises `DataError` on masks, labels or subjects
    that do not match.
    """
    scores = dice(asked, found)
    subjects = np.asarray(subjects)
    if len(subjects) != len(scores):
        raise DataError(f"{len(subjects)} subjects for {len(scores)} images; give one an image")
    rows = []
    for attribute, group, chosen in each_group(groups, len(scores)):
        draws = _draws(scores[chosen], subjects[chosen], rng, replicates)
        row = _row(scores[chosen], subjects[chosen], draws)
        if reference is not None:
            row |= _against(row["mean"], draws, reference, attribute, group, rng)
        rows.append({"attribute": attribute, "group": group, **row})
    return pd.DataFrame(rows)


def _row(scores: np.ndarray, subjects: np.ndarray, draws: np.ndarray) -> dict:
    structures, frames = structure_means(scores), pooled_mean(*_parts(scores), 0).mean(-1)
    found = steady_interval(structures.mean(), draws)
    return {
        "images": len(scores),
        "subjects": len(np.unique(subjects)),
        **dict(zip(STRUCTURES, structures, strict=True)),
        **dict(zip(FRAMES, frames, strict=True)),
        "mean": found.estimate,
        "low": found.low,
        "high": found.high,
        "undefined": int(np.isnan(scores).sum()),
    }


def _against(
    mean: float, draws: np.ndarray, reference: Reference, attribute: str, group, rng
) -> dict:
    """The reference Dice of the same subgroup, and how far `mean` lies from it; NaN where the
    reference has nobody in it.
    """
    scores, subjects = np.asarray(reference.scores), np.asarray(reference.subjects)
    chosen = np.ones(len(scores), bool)
    if reference.groups is not None and attribute != "all":
        found = {
            name: rows
            for a, name, rows in each_group(reference.groups, len(scores))
            if a == attribute
        }
        chosen = found.get(group, ~chosen)
    own = mean_dice(scores[chosen])
    between = steady_interval(
        mean - own, draws - _draws(scores[chosen], subjects[chosen], rng, len(draws))
    )
    return {
        "reference": own,
        "difference": between.estimate,
        "difference_low": between.low,
        "difference_high": between.high,
    }


def _draws(scores: np.ndarray, subjects: np.ndarray, rng, replicates: int) -> np.ndarray:
    """Bootstrap replicates of `mean_dice` over subjects; NaN for a group too small to be drawn
    again.
    """
    if len(np.unique(subjects)) < SUBJECTS_MIN:
        return np.full(replicates, np.nan)
    total, count = _parts(scores)
    samples = [Sample(total.sum(1), count.sum(1), clusters=subjects)]
    return bootstrap(
        lambda total, count: pooled_mean(total, count, 0).mean(), samples, rng, replicates
    )


def _parts(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Defined values (0 elsewhere) and where they are, so that means are sums over counts."""
    return np.nan_to_num(scores), (~np.isnan(scores)).astype(float)


def check_masks(masks, name: str = "masks") -> np.ndarray:
    """`masks` as an integer array [N, 2, H, W].

    Raises `DataError` on another shape or a label outside {0, 1, 2, 3}.
    """
    masks = np.asarray(masks)
    if masks.ndim != 4 or masks.shape[1] != 2:
        raise DataError(
            f"{name} of shape {masks.shape}; give [N, 2, H, W] with ED in channel 0 and ES in "
            "channel 1"
        )
    if masks.size and not np.isin(masks, range(4)).all():
        odd = np.unique(masks[~np.isin(masks, range(4))])[:5].tolist()
        where = int(np.flatnonzero((~np.isin(masks, range(4))).any((1, 2, 3)))[0])
        raise DataError(
            f"{name} hold labels {odd} (first in row {where}); only 0 background, 1 LV, 2 MYO, 3 "
            "RV are known; "
            "convert other label orders when reading"
        )
    return masks.astype(np.uint8)


def each_group(groups: dict, count: int) -> Iterator[tuple[str, object, np.ndarray]]:
    """(attribute, group, bool [N]) for everybody ("all", "all") and for each group of `{attribute:
    labels [N]}`.

    Rows without a label form the group "missing": shown, never dropped. Raises `DataError` on
    labels of another length.
    """
    yield "all", "all", np.ones(count, bool)
    for attribute, labels in groups.items():
        labels = pd.Series(np.asarray(labels, dtype=object))
        if len(labels) != count:
            raise DataError(
                f"{len(labels)} labels of {attribute!r} for {count} images; give one an image"
            )
        for group in sorted(labels.dropna().unique(), key=str):
            yield attribute, group, (labels == group).to_numpy()
        if labels.isna().any():
            yield attribute, "missing", labels.isna().to_numpy()


def pooled_mean(total: np.ndarray, count: np.ndarray, axis) -> np.ndarray:
    """Sums over counts of what is defined, along `axis`; NaN where nothing is."""
    total, count = total.sum(axis), count.sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def steady_interval(estimate: float, draws: np.ndarray) -> Interval:
    """The percentile interval, or ends of NaN where the group is too small for one: a table goes on
    without it.
    """
    if np.isnan(estimate) or np.isnan(draws).mean() > 0.05:
        return Interval(float(estimate), np.nan, np.nan)
    return interval(estimate, draws)
