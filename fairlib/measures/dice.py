"""Dice overlap of the requested mask with the mask read from the image, per structure, frame and
subgroup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fairlib.errors import DataError
from fairlib.measures.intervals import Rng, Sample, bootstrap, interval

FRAMES = ("ED", "ES")
STRUCTURES = ("LV", "MYO", "RV")
SUBJECTS_MIN = 5  # fewer clusters than this make a bootstrap interval that means nothing


@dataclass(frozen=True)
class Reference:
    """Dice of the segmenter itself on real hearts kept from training: what a perfect generator
    could reach.

    scores: [M, 2, 3] from `dice`; subjects: [M]; groups: `{attribute: labels [M]}`, or None to
    compare every subgroup with all real hearts.
    """

    scores: np.ndarray
    subjects: np.ndarray
    groups: Mapping[str, ArrayLike] | None = None

    def of(self, attribute: str, group: object) -> tuple[np.ndarray, np.ndarray]:
        """Scores and subjects of the same subgroup; empty where it has no subject."""
        scores, subjects = np.asarray(self.scores), np.asarray(self.subjects)
        if self.groups is None or attribute == "all":
            return scores, subjects
        of_group = {tuple(key): rows for *key, rows in each_group(self.groups, len(scores))}
        chosen = of_group.get((attribute, group), np.zeros(len(scores), bool))
        return scores[chosen], subjects[chosen]


def dice(requested: ArrayLike, read: ArrayLike) -> np.ndarray:
    """2 |A and B| / (|A| + |B|), float [N, 2, 3]: frames ED and ES, structures LV, MYO and RV.

    requested, read: masks [N, 2, H, W]. A structure in neither mask has no Dice (NaN); in one mask
    alone it has 0. Raises `DataError` on masks of different shapes or with unknown labels.
    """
    requested, read = check_masks(requested, "requested masks"), check_masks(read, "masks read")
    if requested.shape != read.shape:
        raise DataError(
            f"requested masks of shape {requested.shape} and masks read of shape {read.shape} lie "
            "on different grids; bring both to the grid of the images"
        )
    scores = []
    for label in range(1, len(STRUCTURES) + 1):
        a, b = requested == label, read == label
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
    requested: ArrayLike,
    read: ArrayLike,
    groups: Mapping[str, ArrayLike],
    subjects: ArrayLike,
    rng: Rng,
    reference: Reference | None = None,
    replicates: int = 1000,
) -> pd.DataFrame:
    """One row a subgroup (the first: everybody), with 95 % intervals that draw whole subjects
    again.

    requested, read: masks [N, 2, H, W]; groups: `{attribute: labels [N]}`; subjects: [N] labels,
    for a generated image those of the subject whose mask was requested.
    Columns: attribute, group, images, subjects, LV, MYO, RV, ED, ES, mean (of the three
    structures), low, high, undefined (Dice values left out because the structure is in neither
    mask), and with a `reference` also reference, difference (mean - reference), difference_low,
    difference_high. Ends are NaN below 5 subjects. Raises `DataError` on masks, labels or subjects
    that do not match.
    """
    scores, subjects = dice(requested, read), np.asarray(subjects)
    if len(subjects) != len(scores):
        raise DataError(f"{len(subjects)} subjects for {len(scores)} images; give one an image")
    rows = []
    for attribute, group, chosen in each_group(groups, len(scores)):
        part, people = scores[chosen], subjects[chosen]
        draws = _draws(part, people, rng, replicates)
        structures, frames = structure_means(part), pooled_mean(*_parts(part), 0).mean(-1)
        counts = {"images": len(part), "subjects": len(np.unique(people))}
        row: dict[str, Any] = {"attribute": attribute, "group": group} | counts
        row |= dict(zip(STRUCTURES + FRAMES, [*structures, *frames], strict=True))
        row |= interval(structures.mean(), draws, strict=False).columns("mean", "")
        row |= {"undefined": int(np.isnan(part).sum())}
        if reference is not None:
            real, owners = reference.of(attribute, group)
            drawn = draws - _draws(real, owners, rng, len(draws))
            row["reference"] = mean_dice(real)
            difference = interval(row["mean"] - row["reference"], drawn, strict=False)
            row |= difference.columns("difference")
        rows.append(row)
    return pd.DataFrame(rows)


def _draws(scores: np.ndarray, subjects: np.ndarray, rng: Rng, replicates: int) -> np.ndarray:
    """Bootstrap replicates of `mean_dice` over subjects; NaN for a group too small to be drawn
    again.
    """
    if len(np.unique(subjects)) < SUBJECTS_MIN:
        return np.full(replicates, np.nan)
    total, count = _parts(scores)
    sample = Sample(total.sum(1), count.sum(1), clusters=subjects)
    return bootstrap(lambda t, c: pooled_mean(t, c, 0).mean(), [sample], rng, replicates)


def _parts(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Defined values (0 elsewhere) and where they are, so that means are sums over counts."""
    return np.nan_to_num(scores), (~np.isnan(scores)).astype(float)


def check_masks(masks: ArrayLike, name: str = "masks") -> np.ndarray:
    """`masks` as an integer array [N, 2, H, W].

    Raises `DataError` on another shape or a label outside {0, 1, 2, 3}.
    """
    masks = np.asarray(masks)
    if masks.ndim != 4 or masks.shape[1] != 2:
        raise DataError(f"{name} of shape {masks.shape}; give [N, 2, H, W] (ED, ES)")
    unknown = ~np.isin(masks, range(4))
    if unknown.any():
        raise DataError(
            f"{name} hold labels {np.unique(masks[unknown])[:5].tolist()} (first in row "
            f"{np.argwhere(unknown)[0][0]}); only 0 background, 1 LV, 2 MYO, 3 RV are known; "
            "convert other label orders when reading"
        )
    return masks.astype(np.uint8)


def each_group(
    groups: Mapping[str, ArrayLike], count: int
) -> Iterator[tuple[str, object, np.ndarray]]:
    """(attribute, group, bool [N]) for everybody ("all", "all") and for each group of `{attribute:
    labels [N]}`.

    Rows without a label form the group "missing": shown, never dropped. Raises `DataError` on
    labels of another length.
    """
    yield "all", "all", np.ones(count, bool)
    for attribute, values in groups.items():
        labels = pd.Series(np.asarray(values, dtype=object))
        if len(labels) != count:
            raise DataError(f"{len(labels)} {attribute!r} labels for {count} images; give one each")
        for group in sorted(labels.dropna().unique(), key=str):
            yield attribute, group, (labels == group).to_numpy()
        if labels.isna().any():
            yield attribute, "missing", labels.isna().to_numpy()


def pooled_mean(total: np.ndarray, count: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Sums over counts of what is defined, along `axis`; NaN where nothing is."""
    total, count = total.sum(axis), count.sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
