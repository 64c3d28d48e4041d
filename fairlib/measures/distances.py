"""Distances between sets of images on features [N, D], whole and by subgroup: unbiased MMD, and the
Frechet distance.

Features are any embedding; say which when quoting a figure. Both distances depend on how many
images are compared, so unequal numbers are an error. The Frechet distance grows with the number of
dimensions and falls with the number of images, so that it means something only beside a floor at
the same n: what real images of other people reach.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fairlib.errors import DataError, SettingsError
from fairlib.measures.intervals import (
    Interval,
    Labels,
    Rng,
    Sample,
    bootstrap,
    cluster_codes,
    interval,
)

N_MIN = 50
Part = tuple[np.ndarray, np.ndarray]
"""Features [N, D] of a group, and the clusters of their rows [N]."""


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x.y / D + 1)^3: the kernel of KID (Binkowski et al. 2018). [N, D], [M, D] -> [N, M]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|x_i - y_j|^2: [N, D], [M, D] -> [N, M], never negative."""
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)


def check_sets(*sets: ArrayLike, n_min: int = N_MIN) -> None:
    """Raise `DataError` unless all sets are finite [N, D] with one N of at least `n_min` and one
    D.
    """
    shapes = [np.shape(features) for features in sets]
    if any(len(shape) != 2 for shape in shapes) or len(set(shapes)) > 1:
        raise DataError(f"feature sets of shapes {shapes}; take equal numbers of images")
    if shapes[0][0] < n_min:
        raise DataError(f"{shapes[0][0]} images are too few to compare; take at least {n_min}")
    if not all(np.isfinite(features).all() for features in sets):
        raise DataError("features hold NaN or infinity; look at the images they came from")


# --- maximum mean discrepancy ------------------------------------------------------------------


def mmd(
    x: np.ndarray,
    y: np.ndarray,
    x_clusters: Labels = None,
    y_clusters: Labels = None,
    n_min: int = N_MIN,
) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, equation 3) under the
    kernel of KID; may be negative.

    x, y: [N, D]. Pairs of one cluster (slices of one subject) are left out, as an image's pair with
    itself is: they are more alike than two images of the population.
    """
    check_sets(x, y, n_min=n_min)
    return _Terms(x, y, x_clusters, y_clusters).value()


def mmd_interval(
    x: np.ndarray,
    y: np.ndarray,
    rng: Rng,
    x_clusters: Labels = None,
    y_clusters: Labels = None,
    replicates: int = 500,
    n_min: int = N_MIN,
    base: np.ndarray | None = None,
) -> Interval:
    """`mmd` with a bootstrap interval over images (or clusters); copies of one image never form a
    pair.

    With `base` [N, D], whose row i was generated from the same noise as row i of x:
    MMD(x, y) - MMD(base, y), below zero where x is nearer to y; rows are drawn as pairs.
    """
    sets = (x,) if base is None else (x, base)
    check_sets(*sets, y, n_min=n_min)
    terms = [_Terms(part, y, x_clusters, y_clusters) for part in sets]
    first, second = Sample(x[:, 0], clusters=x_clusters), Sample(y[:, 0], clusters=y_clusters)

    def value(*times: np.ndarray) -> float:
        values = [part.value(*times) for part in terms]
        return values[0] if base is None else values[0] - values[1]

    draws = [value(first.times(rng), second.times(rng)) for _ in range(replicates)]
    return interval(value(), np.array(draws))


def mmd_draws(
    x: np.ndarray, y: np.ndarray, x_times: np.ndarray, y_times: np.ndarray, n_min: int = N_MIN
) -> np.ndarray:
    """`mmd` [R] of draws in which row i of x [N, D] was drawn x_times[r, i] times, and of y alike.
    Copies of one image never form a pair. With draws that several arms share, differences between
    arms are paired.
    """
    check_sets(x, y, n_min=n_min)
    terms = _Terms(x, y, None, None)
    return np.array([terms.value(*times) for times in zip(x_times, y_times, strict=True)])


class _Terms:
    """The three kernel matrices of an MMD, so that a bootstrap draw is only a reweighting of their
    rows.
    """

    def __init__(self, x: ArrayLike, y: ArrayLike, x_clusters: Labels, y_clusters: Labels) -> None:
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        self.xx, self.x_pairs = _off(polynomial_kernel(x, x), x_clusters)
        self.yy, self.y_pairs = _off(polynomial_kernel(y, y), y_clusters)
        self.xy = polynomial_kernel(x, y)

    def value(self, x_times: ArrayLike | None = None, y_times: ArrayLike | None = None) -> float:
        """The weighted U-statistic; `x_times` [N] and `y_times` [M] say how often each row was
        drawn (once).
        """
        a = np.ones(len(self.xx)) if x_times is None else np.asarray(x_times, float)
        b = np.ones(len(self.yy)) if y_times is None else np.asarray(y_times, float)
        within = a @ self.xx @ a / (a @ self.x_pairs @ a) + b @ self.yy @ b / (b @ self.y_pairs @ b)
        return float(within - 2 * (a @ self.xy @ b) / (a.sum() * b.sum()))


def _off(gram: np.ndarray, clusters: Labels) -> tuple[np.ndarray, np.ndarray]:
    """The kernel matrix with pairs inside a cluster set to zero, and the 0/1 matrix of the pairs
    that are left.
    """
    clusters = cluster_codes(clusters, len(gram))
    pairs = (clusters[:, None] != clusters[None]).astype(float)
    return gram * pairs, pairs


# --- Frechet distance --------------------------------------------------------------------------


def frechet(x: ArrayLike, y: ArrayLike, n_min: int = N_MIN) -> float:
    """Frechet distance of the Gaussians fitted to x and y [N, D] (Heusel et al. 2017). Compare only
    with the same N.
    """
    check_sets(x, y, n_min=n_min)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    first, second = (np.cov(part, rowvar=False).reshape(part.shape[1], -1) for part in (x, y))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    means = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(means + np.trace(first) + np.trace(second) - 2 * cross)


def frechet_interval(
    x: np.ndarray,
    y: np.ndarray,
    rng: Rng,
    x_clusters: Labels = None,
    y_clusters: Labels = None,
    replicates: int = 200,
    n_min: int = N_MIN,
) -> Interval:
    """The Frechet distance with a 95 % bootstrap interval about its expectation at this number of
    images.

    A bootstrap draw holds copies, which raise a Frechet distance: the replicates are moved by their
    mean excess.
    """
    estimate = frechet(x, y, n_min)
    samples = [(x, Sample(x[:, 0], clusters=x_clusters)), (y, Sample(y[:, 0], clusters=y_clusters))]
    drawn = ([_redrawn(*part, rng) for part in samples] for _ in range(replicates))
    draws = np.array([frechet(first, second, n_min) for first, second in drawn])
    low, high = estimate + np.quantile(draws, [0.025, 0.975]) - draws.mean()
    return Interval(estimate, float(max(0.0, low)), float(high))


def _redrawn(features: np.ndarray, sample: Sample, rng: Rng) -> np.ndarray:
    """One bootstrap draw of whole clusters with as many rows as there were, so that n stays
    equal.
    """
    rows = sample.rows(rng)
    while len(rows) < len(features):
        rows = np.concatenate([rows, sample.rows(rng)])
    return features[rows[: len(features)]]


def frechet_by_n(
    features: ArrayLike, sizes: Iterable[int], rng: Rng, clusters: Labels = None, repeats: int = 5
) -> pd.DataFrame:
    """The Frechet distance of two sets of n images of ONE population, for each n of `sizes`:
    columns n, dimensions, distance, low, high, floor_theory.

    The sets are drawn from `features` [N, D], disjoint (in subjects, with `clusters`); their true
    distance is 0. distance: mean over `repeats` draws, low and high their range. `floor_theory`:
    see `expected_floor`, good where n is far above D; where n is not, the covariances lack rank and
    the distance falls more slowly than 1 / n. This is why a distance from 500 images in 2,048
    dimensions cannot be compared with one from 10,000. Raises `DataError` when the rows do not give
    the largest n.
    """
    features = np.asarray(features, np.float64)
    codes, rows = cluster_codes(clusters, len(features)), []
    for n in sizes:
        pairs = [disjoint(codes, n, rng) for _ in range(repeats)]
        values = [frechet(features[one], features[other], n_min=2) for one, other in pairs]
        ends = {"distance": float(np.mean(values)), "low": min(values), "high": max(values)}
        floor = {"floor_theory": expected_floor(features, n)}
        rows.append({"n": int(n), "dimensions": features.shape[1]} | ends | floor)
    return pd.DataFrame(rows)


def expected_floor(features: ArrayLike, n: int) -> float:
    """What the Frechet distance of two samples of `n` from one normal population is on average, to
    first order in 1 / n.

    With eigenvalues l of the covariance of `features` [N, D]: (5/2 sum_i l_i + sum_ij l_i l_j /
    (l_i + l_j)) / n; for unit covariance D (D + 5) / (2 n). The means give 2 sum_i l_i, the
    covariances the rest (second-order Bures distance).
    """
    covariance = np.atleast_2d(np.cov(np.asarray(features, np.float64), rowvar=False))
    values = np.maximum(np.linalg.eigvalsh(covariance), 1e-12)
    bures = (np.outer(values, values) / (values[:, None] + values)).sum()
    return float((2.5 * values.sum() + bures) / n)


# --- by subgroup -------------------------------------------------------------------------------


def subgroup_distances(
    real: ArrayLike,
    synthetic: ArrayLike,
    real_groups: ArrayLike,
    synthetic_groups: ArrayLike,
    rng: Rng,
    real_subjects: Labels = None,
    synthetic_subjects: Labels = None,
    measure: str = "mmd",
    n: int | None = None,
    splits: int = 20,
    replicates: int = 200,
    n_min: int = N_MIN,
) -> pd.DataFrame:
    """The cross-matrix between subgroups, one row a pair: real group, synthetic group, distance,
    low, high, floor, n.

    real, synthetic: features [N, D] and [M, D]; groups and subjects: labels of their rows (subjects
    None: every row its own). Everywhere `n` images are compared with `n`: by default the most that
    every group can give, real groups twice over, on disjoint subjects. `measure`: "mmd" (unbiased)
    or "frechet".
    distance, low, high: with a 95 % bootstrap interval over subjects, for this n. floor: mean
    distance of two disjoint sets of the real group, over `splits` divisions, floor_low and
    floor_high the 95 % range; between: mean distance of the real group to real images of the other
    group, what a faithful generator shows in that cell of the matrix. Give real people whose masks
    no synthetic image was made under, or the two share more than their subgroup. Raises `DataError`
    when a group has too few images (which, how many, how many it needs), features are not
    comparable, or a Frechet distance is asked of fewer images than dimensions; `SettingsError` on
    an unknown measure.
    """
    if measure not in ("mmd", "frechet"):
        raise SettingsError(f"unknown measure {measure!r}; choose mmd or frechet")
    people = _groups(real, real_groups, real_subjects, "real")
    made = _groups(synthetic, synthetic_groups, synthetic_subjects, "synthetic")
    n = _common_n(people, made, n, n_min)
    width = next(iter(people.values()))[0].shape[1]
    if measure == "frechet" and n <= width:
        raise DataError(
            f"a Frechet distance of {n} images in {width} dimensions has covariances without full "
            "rank; take measure='mmd', more images, or fewer dimensions (principal components of "
            "the real features)"
        )

    divided = [
        {name: _chosen(rows, *disjoint(rows[1], n, rng)) for name, rows in people.items()}
        for _ in range(splits)
    ]
    drawn = {k: _chosen(rows, rng.permutation(len(rows[0]))[:n])[0] for k, rows in made.items()}
    spread = mmd_interval if measure == "mmd" else frechet_interval
    among_real = _among_real(divided, made, measure)
    rows = []
    for group, other in itertools.product(people, made):
        (x, x_clusters), (y, y_clusters) = divided[0][group][0], drawn[other]
        ends = spread(x, y, rng, x_clusters, y_clusters, replicates, n_min)
        low, high = np.quantile(among_real[group, group], [0.025, 0.975])
        between = float(np.mean(among_real.get((group, other), np.nan)))
        floor = Interval(float(np.mean(among_real[group, group])), low, high).columns("floor")
        names = {"real_group": group, "synthetic_group": other} | ends.columns("distance", "")
        rows.append(names | floor | {"between": between, "n": n})
    return pd.DataFrame(rows)


def _among_real(divided: list[dict], made: dict, measure: str) -> dict[tuple, list[float]]:
    """Distances, one a division, of each real group to disjoint sets of itself and of the others
    that are among the synthetic groups.
    """

    def distance(one: Part, two: Part) -> float:
        if measure == "frechet":
            return frechet(one[0], two[0], n_min=2)
        return mmd(one[0], two[0], one[1], two[1], n_min=2)

    return {
        (one, two): [distance(halves[one][0], halves[two][1]) for halves in divided]
        for one, two in itertools.product(divided[0], divided[0])
        if two == one or two in made
    }


def _chosen(part: Part, *sets: np.ndarray) -> list[Part]:
    return [(part[0][rows], part[1][rows]) for rows in sets]


def disjoint(clusters: np.ndarray, n: int, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two sets of `n` that share no cluster; `clusters` [N], codes from 0.

    Clusters come in random order; the first set takes as many as it needs, the second what is left.
    Raises `DataError` when there are not enough; `most_disjoint` says how many always are.
    """
    order = rng.permutation(int(clusters.max()) + 1)
    rows = np.argsort(np.argsort(order)[clusters], kind="stable")
    last = clusters[rows[n - 1]] if n <= len(rows) else -1
    rest = rows[n:][clusters[rows[n:]] != last]
    if len(rest) < n:
        raise DataError(
            f"{len(clusters)} images of {len(order)} subjects do not give two sets of {n} without "
            f"a common subject; at most {most_disjoint(clusters)}"
        )
    return rows[:n], rest[:n]


def most_disjoint(clusters: np.ndarray) -> int:
    """The largest n for which `disjoint` never fails, whatever the order of the clusters [N]."""
    return (len(clusters) - int(np.unique(clusters, return_counts=True)[1].max()) + 1) // 2


def _groups(features: ArrayLike, groups: ArrayLike, subjects: Labels, name: str) -> dict[str, Part]:
    """{group: (features, clusters)}. Raises `DataError` on lengths that do not match."""
    features, groups = np.asarray(features, np.float64), np.asarray(groups)
    clusters = cluster_codes(subjects, len(features))
    lengths = {len(features), len(groups), len(clusters)}
    if features.ndim != 2 or len(lengths) > 1 or len(features) == 0:
        raise DataError(
            f"{name} features of shape {features.shape} with {len(groups)} groups and "
            f"{len(clusters)} subjects; give features [N, D] with one group and one subject a row"
        )
    parts = {str(group): groups == group for group in np.unique(groups)}
    return {name: (features[m], cluster_codes(clusters[m], 0)) for name, m in parts.items()}


def _common_n(people: dict, made: dict, n: int | None, n_min: int) -> int:
    """The n of every comparison; raises `DataError` naming each group that cannot give it."""
    room = {f"real {name!r}": (most_disjoint(rows[1]), rows) for name, rows in people.items()}
    room |= {f"synthetic {name!r}": (len(rows[0]), rows) for name, rows in made.items()}
    n = min(most for most, _ in room.values()) if n is None else n
    needed = max(n, n_min)
    few = {name: one for name, one in room.items() if one[0] < needed}
    short = [f"{name} ({len(rows[0])} images, gives {most})" for name, (most, rows) in few.items()]
    if short or n < n_min:
        raise DataError(
            f"too few images to compare {needed} with {needed}: {', '.join(short)}; each synthetic "
            f"group needs {needed} and each real group two sets of {needed} without a common "
            "subject; merge or leave out groups"
        )
    return n


# --- memorisation --------------------------------------------------------------------------------


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
                what = "a query has no training image of another subject"
                raise DataError(f"{what}; give a training set of several subjects")
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
    owned = ((made, synthetic_subjects), (real, heldout_subjects))
    samples = [Sample(one.distance, clusters=subjects) for one, subjects in owned]

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
        what = f"{len(heldout)} held-out images do not fix a quantile of {min(quantiles):g}"
        raise DataError(f"{what}; give at least {needed}, or ask for larger quantiles")
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
        what = f"{name} of shape {values.shape}"
        raise DataError(f"{what}; give at least one row, as images [N, C, H, W] or features [N, D]")
    if not np.isfinite(values).all():
        raise DataError(f"{name} hold NaN or infinity; look at the images they came from")
    return values.reshape(len(values), -1)
