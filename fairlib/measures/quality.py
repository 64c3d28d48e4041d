"""Distances between image sets on `(N, D)` features: unbiased MMD and Frechet, at equal numbers
only.

Both depend on how many images are compared (the Frechet distance strongly), so unequal numbers are
an error. Features are any embedding; say which when quoting a figure.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fairlib.errors import DataError
from fairlib.measures.resampling import Interval, Sample, interval

N_MIN = 50


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x.y / D + 1)^3: the kernel of KID (Binkowski et al. 2018). [N, D], [M, D] -> [N, M]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def rbf_kernel(width: float) -> Callable:
    """exp(-|x - y|^2 / (2 width^2)); `width` in the unit of the features, see `median_width`."""
    return lambda x, y: np.exp(-squared_distances(x, y) / (2 * width**2))


def median_width(features: np.ndarray) -> float:
    """The median distance between different rows (Gretton et al.

    2012, section 8): fix it on the target, once.
    """
    return float(
        np.sqrt(np.median(squared_distances(features, features)[np.triu_indices(len(features), 1)]))
    )


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|x_i - y_j|^2: [N, D], [M, D] -> [N, M], never negative."""
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)


def matched(*sets: np.ndarray, rng: np.random.Generator, n_min: int = N_MIN) -> list[np.ndarray]:
    """Random subsets of all sets at the size of the smallest, without replacement.

    Raises `DataError` below `n_min`.
    """
    size = min(len(features) for features in sets)
    chosen = [features[rng.permutation(len(features))[:size]] for features in sets]
    check_sets(*chosen, n_min=n_min)
    return chosen


def check_sets(*sets: np.ndarray, n_min: int = N_MIN) -> None:
    """Raise `DataError` unless all sets are finite [N, D] with one N of at least `n_min` and one
    D.
    """
    shapes = [np.shape(features) for features in sets]
    if any(len(shape) != 2 for shape in shapes) or len(set(shapes)) > 1:
        raise DataError(
            f"feature sets of shapes {shapes} cannot be compared; take equal numbers of images "
            "(see `matched`)"
        )
    if shapes[0][0] < n_min:
        raise DataError(
            f"{shapes[0][0]} images are too few to compare distributions; take at least {n_min}"
        )
    if not all(np.isfinite(features).all() for features in sets):
        raise DataError("features hold NaN or infinity; look at the images they came from")


def mmd(
    x, y, kernel: Callable = polynomial_kernel, x_clusters=None, y_clusters=None, n_min: int = N_MIN
) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, equation 3); may be negative.

    x, y: [N, D]. Pairs of one cluster (slices of one subject) are left out, as an image's pair with
    itself is: they are more alike than two images of the population.
    """
    check_sets(x, y, n_min=n_min)
    return _Terms(x, y, kernel, x_clusters, y_clusters).value(np.ones(len(x)), np.ones(len(y)))


def mmd_interval(
    x,
    y,
    rng: np.random.Generator,
    kernel: Callable = polynomial_kernel,
    x_clusters=None,
    y_clusters=None,
    replicates: int = 500,
    n_min: int = N_MIN,
) -> Interval:
    """`mmd` with a bootstrap interval over images (or clusters); copies of one image never form a
    pair.
    """
    check_sets(x, y, n_min=n_min)
    terms = _Terms(x, y, kernel, x_clusters, y_clusters)
    first, second = Sample(x[:, 0], clusters=x_clusters), Sample(y[:, 0], clusters=y_clusters)
    draws = [terms.value(_weights(first, rng), _weights(second, rng)) for _ in range(replicates)]
    return interval(terms.value(np.ones(len(x)), np.ones(len(y))), np.array(draws))


def mmd_difference(
    tuned,
    base,
    target,
    rng: np.random.Generator,
    kernel: Callable = polynomial_kernel,
    target_clusters=None,
    replicates: int = 500,
    n_min: int = N_MIN,
) -> Interval:
    """MMD(tuned, target) - MMD(base, target), below zero where tuning brought the images nearer.

    tuned, base: [N, D], row i of both from one noise, drawn again as pairs; target: [N, D], one
    draw for both.
    """
    check_sets(tuned, base, target, n_min=n_min)
    terms = [_Terms(images, target, kernel, None, target_clusters) for images in (tuned, base)]
    pairs, real = Sample(tuned[:, 0]), Sample(target[:, 0], clusters=target_clusters)
    ones = np.ones(len(target))

    def difference(images, wanted):
        return terms[0].value(images, wanted) - terms[1].value(images, wanted)

    draws = [difference(_weights(pairs, rng), _weights(real, rng)) for _ in range(replicates)]
    return interval(difference(ones, ones), np.array(draws))


def mmd_draws(
    x, y, x_times, y_times, kernel: Callable = polynomial_kernel, n_min: int = N_MIN
) -> np.ndarray:
    """`mmd` [R] of draws in which row i of x [N, D] was drawn x_times[r, i] times, and of y alike.
    Copies of one image never form a pair. With draws that several arms share, differences between
    arms are paired.
    """
    check_sets(x, y, n_min=n_min)
    terms = _Terms(x, y, kernel, None, None)
    return np.array(
        [
            terms.value(a, b)
            for a, b in zip(np.asarray(x_times, float), np.asarray(y_times, float), strict=True)
        ]
    )


class _Terms:
    """The three kernel matrices of an MMD, so that a bootstrap draw is only a reweighting of their
    rows.
    """

    def __init__(self, x, y, kernel, x_clusters, y_clusters):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        self.xx, self.x_pairs = _off(kernel(x, x), x_clusters)
        self.yy, self.y_pairs = _off(kernel(y, y), y_clusters)
        self.xy = kernel(x, y)

    def value(self, a: np.ndarray, b: np.ndarray) -> float:
        """The weighted U-statistic; `a` [N] and `b` [M] say how often each row was drawn."""
        within = a @ self.xx @ a / (a @ self.x_pairs @ a) + b @ self.yy @ b / (b @ self.y_pairs @ b)
        return float(within - 2 * (a @ self.xy @ b) / (a.sum() * b.sum()))


def _off(gram: np.ndarray, clusters) -> tuple[np.ndarray, np.ndarray]:
    """The kernel matrix with pairs inside a cluster set to zero, and the 0/1 matrix of the pairs
    that are left.
    """
    clusters = np.arange(len(gram)) if clusters is None else np.asarray(clusters)
    pairs = (clusters[:, None] != clusters[None]).astype(float)
    return gram * pairs, pairs


def _weights(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    return np.bincount(sample.rows(rng), minlength=len(sample.arrays[0])).astype(float)


def frechet(x, y, n_min: int = N_MIN) -> float:
    """Frechet distance of the Gaussians fitted to x and y [N, D] (Heusel et al.

    2017). Compare only with the same N.
    """
    check_sets(x, y, n_min=n_min)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    first, second = (
        np.cov(x, rowvar=False).reshape(x.shape[1], -1),
        np.cov(y, rowvar=False).reshape(y.shape[1], -1),
    )
    root = _root(first)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return float(
        ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * cross
    )


def frechet_floor(
    features, n: int, rng: np.random.Generator, splits: int = 20, clusters=None
) -> float:
    """Mean Frechet distance of two disjoint random sets of `n` rows of one population: what no
    generator can beat.

    With `clusters` no subject lies on both sides. Raises `DataError` when the rows do not suffice
    for two sets of `n`.
    """
    clusters = (
        np.arange(len(features))
        if clusters is None
        else np.unique(clusters, return_inverse=True)[1]
    )
    return float(
        np.mean([frechet(*_halves(np.asarray(features), clusters, n, rng)) for _ in range(splits)])
    )


def _halves(features, clusters, n, rng) -> tuple[np.ndarray, np.ndarray]:
    order = rng.permutation(clusters.max() + 1)
    first = np.isin(clusters, order[: len(order) // 2])
    halves = [rng.permutation(np.flatnonzero(side)) for side in (first, ~first)]
    if min(map(len, halves)) < n:
        raise DataError(
            f"{len(features)} rows do not give two disjoint sets of {n}; ask for a floor at a "
            "smaller n"
        )
    return features[halves[0][:n]], features[halves[1][:n]]


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
