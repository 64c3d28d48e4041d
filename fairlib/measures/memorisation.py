"""Does the generator copy? Distances of synthetic images to the nearest training image, held
against real ones.

A real person whom the generator never saw has a nearest training image too. A generator that copies
puts its images nearer to the training set than such people lie. Distances are L2 between slightly
blurred images, or between features. An image made under a training mask shares its anatomy with
that training image by design: ask for masks of people outside the training set, or leave the pair
out by naming subjects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fairlib.errors import DataError
from fairlib.measures.quality import squared_distances
from fairlib.measures.resampling import Interval, Sample, bootstrap, interval


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
    held_out: Nearest

    def closest(self, count: int = 8) -> pd.DataFrame:
        """The `count` nearest pairs, most suspicious first: columns synthetic, training (row
        numbers), distance.
        """
        order = np.argsort(self.synthetic.distance, kind="stable")[:count]
        return pd.DataFrame(
            {
                "synthetic": order,
                "training": self.synthetic.index[order],
                "distance": self.synthetic.distance[order],
            }
        )


def blurred(images, sigma: float = 1.0) -> np.ndarray:
    """Images [N, C, H, W] under a Gaussian blur of `sigma` pixels, float32: noise alone should not
    keep a copy apart.
    """
    from scipy import ndimage

    return ndimage.gaussian_filter(
        np.asarray(images, np.float32), (0, 0, sigma, sigma), mode="nearest"
    )


def nearest(
    queries, training, query_subjects=None, training_subjects=None, chunk: int = 256
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
            "each cannot be "
            "compared; bring both to one grid"
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
    distance = np.array(
        [np.linalg.norm(query - training[i]) for query, i in zip(queries, index, strict=True)]
    )
    return Nearest(distance, index)


def memorisation(
    synthetic,
    held_out,
    training,
    rng: np.random.Generator,
    quantiles: tuple[float, ...] = (0.01, 0.05),
    synthetic_subjects=None,
    held_out_subjects=None,
    training_subjects=None,
    replicates: int = 1000,
) -> Memorisation:
    """Compare the nearest training image of `synthetic` [N, ...] with that of `held_out` real
    images [K, ...].

    All of one kind: blurred images (see `blurred`) or features [., D]. Subjects, where given, are
    drawn whole by the bootstrap, which draws the real images too: a quantile of few images is
    itself uncertain. With `synthetic_subjects` (the person whose mask was asked) and
    `training_subjects`, pairs of one subject are left out. Raises `DataError` when the held-out
    images are too few for the smallest quantile, or share a subject with the training.
    """
    _check_held_out(held_out, held_out_subjects, training_subjects, quantiles)
    own = synthetic_subjects if training_subjects is not None else None
    made = nearest(synthetic, training, own, training_subjects)
    real = nearest(held_out, training)
    samples = [
        Sample(made.distance, clusters=synthetic_subjects),
        Sample(real.distance, clusters=held_out_subjects),
    ]

    def statistic(made, real):
        return [
            *(made[:, None] < np.quantile(real, quantiles)).mean(0),
            np.median(made) / np.median(real),
        ]

    found, draws = (
        statistic(made.distance, real.distance),
        bootstrap(statistic, samples, rng, replicates),
    )
    *shares, ratio = (interval(value, column) for value, column in zip(found, draws.T, strict=True))
    table = pd.DataFrame(
        {
            "quantile": quantiles,
            "threshold": np.quantile(real.distance, quantiles),
            "share": [s.estimate for s in shares],
            "low": [s.low for s in shares],
            "high": [s.high for s in shares],
        }
    )
    return Memorisation(table, ratio, made, real)


def _check_held_out(held_out, held_out_subjects, training_subjects, quantiles) -> None:
    needed = int(np.ceil(1 / min(quantiles)))
    if len(held_out) < needed:
        raise DataError(
            f"{len(held_out)} held-out images do not fix a quantile of {min(quantiles):g}; give at "
            f"least {needed}, "
            "or ask for larger quantiles"
        )
    if held_out_subjects is not None and training_subjects is not None:
        shared = sorted(set(map(str, held_out_subjects)) & set(map(str, training_subjects)))
        if shared:
            raise DataError(
                f"subject {shared[0]!r} (of {len(shared)}) is both held out and in the training "
                "set; "
                "split by subject"
            )


def _rows(values, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim < 2 or len(values) == 0:
        raise DataError(
            f"{name} of shape {values.shape}; give at least one row, as images [N, C, H, W] or "
            "features [N, D]"
        )
    if not np.isfinite(values).all():
        raise DataError(f"{name} hold NaN or infinity; look at the images they came from")
    return values.reshape(len(values), -1)
