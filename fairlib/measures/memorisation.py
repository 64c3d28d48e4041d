"""Does the generator copy? Distances of synthetic images to the nearest training image, held
against real ones.

A real person whom the generator never saw has a nearest training image too. A generator that copies
puts its images nearer to the training set than such people lie. Distances are L2 between slightly
blurred images, or between features. An image made under a training mask shares its anatomy with
that training image by design: ask for masks of people outside the training set, or leave the pair
out by naming subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fairlib.errors import DataError
from fairlib.measures.distances import squared_distances
from fairlib.measures.intervals import Interval, Labels, Rng, Sample, bootstrap, interval


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of each query: `distance` [N] and its row `index` [N] in the
    training set.
    """

    distance: np.ndarray
    index: np.ndarray


@dataclass(frozen=True)
class Memorisation:
    """How synthetic images lie to the training set, compared with real people outside it.

    shares: one row a quantile with `quantile, threshold, share, low, high`. `share` of the
    synthetic images lies nearer to a training image than that quantile of the real ones does;
    without copying it is about the quantile itself.
    median_ratio: median nearest distance of synthetic over that of real images; below 1 they are
    nearer.
    """

    shares: pd.DataFrame
    median_ratio: Interval
    synthetic: Nearest
    heldout: Nearest

    def closest(self, count: int = 8) -> pd.DataFrame:
        """The `count` nearest pairs, most suspicious first: columns synthetic, training (row
        numbers), distance.
        """
        order = np.argsort(self.synthetic.distance, kind="stable")[:count]
        training, distance = self.synthetic.index[order], self.synthetic.distance[order]
        return pd.DataFrame({"synthetic": order, "training": training, "distance": distance})


def blurred(images: ArrayLike, sigma: float = 1.0) -> np.ndarray:
    """Images [N, C, H, W] under a Gaussian blur of `sigma` pixels, float32: noise alone should not
    keep a copy apart.
    """
    from scipy import ndimage

    width = (0, 0, sigma, sigma)
    return ndimage.gaussian_filter(np.asarray(images, np.float32), width, mode="nearest")


def nearest(
    queries: ArrayLike,
    training: ArrayLike,
    query_subjects: Labels = None,
    training_subjects: Labels = None,
    chunk: int = 256,
) -> Nearest:
    """The exact nearest row of `training` [M, ...] to each row of `queries` [N, ...], in L2,
    `chunk` queries at a time.

    With subjects, pairs of one subject are left out. Raises `DataError` on rows of different
    shapes, NaN, or a query whose subject is everybody in the training set.
    """
    queries, training = _rows(queries, "queries"), _rows(training, "training images")
    if queries.shape[1] != training.shape[1]:
        raise DataError(
            f"queries with {queries.shape[1]} and training images with {training.shape[1]} values "
            "each cannot be compared; bring both to one grid"
        )
    index = np.empty(len(queries), int)
    for start in range(0, len(queries), chunk):
        rows = slice(start, start + chunk)
        squared = squared_distances(queries[rows], training)
        if query_subjects is not None:
            same = np.asarray(query_subjects)[rows, None] == np.asarray(training_subjects)[None]
            if same.all(1).any():
                raise DataError(
                    "a query has no training image of another subject; give a training set of "
                    "several subjects"
                )
            squared[same] = np.inf
        index[rows] = squared.argmin(1)
    # taken again as a difference: the expanded square loses the digits that tell a copy (0) from a
    # near copy
    pairs = zip(queries, index, strict=True)
    return Nearest(np.array([np.linalg.norm(query - training[i]) for query, i in pairs]), index)


def memorisation(
    synthetic: ArrayLike,
    heldout: ArrayLike,
    training: ArrayLike,
    rng: Rng,
    quantiles: tuple[float, ...] = (0.01, 0.05),
    synthetic_subjects: Labels = None,
    heldout_subjects: Labels = None,
    training_subjects: Labels = None,
    replicates: int = 1000,
) -> Memorisation:
    """Compare the nearest training image of `synthetic` [N, ...] with that of `heldout` real
    images [K, ...].

    All of one kind: blurred images (see `blurred`) or features [., D]. Subjects, where given, are
    drawn whole by the bootstrap, which draws the real images too: a quantile of few images is
    itself uncertain. With `synthetic_subjects` (the person whose mask was requested) and
    `training_subjects`, pairs of one subject are left out. Raises `DataError` when the held-out
    images are too few for the smallest quantile, or share a subject with the training.
    """
    _check_heldout(heldout, heldout_subjects, training_subjects, quantiles)
    left_out = synthetic_subjects if training_subjects is not None else None
    made = nearest(synthetic, training, left_out, training_subjects)
    real = nearest(heldout, training)
    samples = [
        Sample(made.distance, clusters=synthetic_subjects),
        Sample(real.distance, clusters=heldout_subjects),
    ]

    def statistic(made: np.ndarray, real: np.ndarray) -> list[float]:
        shares = (made[:, None] < np.quantile(real, quantiles)).mean(0)
        return [*shares, np.median(made) / np.median(real)]

    draws = bootstrap(statistic, samples, rng, replicates)
    values = statistic(made.distance, real.distance)
    *shares, ratio = (interval(*pair) for pair in zip(values, draws.T, strict=True))
    table = pd.DataFrame([share.columns("share", "") for share in shares])
    table.insert(0, "quantile", quantiles)
    table.insert(1, "threshold", np.quantile(real.distance, quantiles))
    return Memorisation(table, ratio, made, real)


def _check_heldout(
    heldout: Any, heldout_subjects: Any, training_subjects: Any, quantiles: Sequence[float]
) -> None:
    needed = int(np.ceil(1 / min(quantiles)))
    if len(heldout) < needed:
        raise DataError(
            f"{len(heldout)} held-out images do not fix a quantile of {min(quantiles):g}; give at "
            f"least {needed}, or ask for larger quantiles"
        )
    if heldout_subjects is not None and training_subjects is not None:
        shared = sorted(set(map(str, heldout_subjects)) & set(map(str, training_subjects)))
        if shared:
            raise DataError(
                f"subject {shared[0]!r} (of {len(shared)}) is both held out and in the training "
                "set; split by subject"
            )


def _rows(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim < 2 or len(values) == 0:
        raise DataError(
            f"{name} of shape {values.shape}; give at least one row, as images [N, C, H, W] or "
            "features [N, D]"
        )
    if not np.isfinite(values).all():
        raise DataError(f"{name} hold NaN or infinity; look at the images they came from")
    return values.reshape(len(values), -1)
