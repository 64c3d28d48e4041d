"""How far each subgroup's synthetic images lie from real ones, at equal n, beside what real images
of other people reach.

Distances on features [N, D] (say which when quoting one): unbiased MMD, or the Frechet distance,
which grows with the number of dimensions and falls with the number of images, so that it means
something only beside a floor at the same n.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from fairlib.errors import DataError, SettingsError
from fairlib.measures.quality import N_MIN, frechet, mmd, mmd_interval, polynomial_kernel
from fairlib.measures.resampling import Interval, Sample


def subgroup_distances(
    real,
    synthetic,
    real_groups,
    synthetic_groups,
    rng: np.random.Generator,
    real_subjects=None,
    synthetic_subjects=None,
    measure: str = "mmd",
    kernel: Callable = polynomial_kernel,
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
    _check_dimensions(people, made, n, measure)
    value, spread = _measure(measure, rng, kernel, replicates, n_min)
    divided = [
        {name: disjoint(*rows, n, rng) for name, rows in people.items()} for _ in range(splits)
    ]
    drawn = {name: _take(*rows, n, rng) for name, rows in made.items()}
    rows = []
    for group in people:
        floors = [value(*halves[group]) for halves in divided]
        for other in made:
            found = spread(divided[0][group][0], drawn[other])
            between = _between(divided, group, other, floors, value)
            low, high = np.quantile(floors, [0.025, 0.975])
            rows.append(
                {
                    "real_group": group,
                    "synthetic_group": other,
                    "distance": found.estimate,
                    "low": found.low,
                    "high": found.high,
                    "floor": float(np.mean(floors)),
                    "floor_low": low,
                    "floor_high": high,
                    "between": between,
                    "n": n,
                }
            )
    return pd.DataFrame(rows)


def _measure(
    name: str, rng, kernel: Callable, replicates: int, n_min: int
) -> tuple[Callable, Callable]:
    """The distance and its interval, as functions of two sets (features, clusters)."""
    if name == "mmd":
        return (
            lambda x, y: mmd(x[0], y[0], kernel, x[1], y[1], n_min),
            lambda x, y: mmd_interval(x[0], y[0], rng, kernel, x[1], y[1], replicates, n_min),
        )
    return lambda x, y: frechet(x[0], y[0], n_min), lambda x, y: frechet_interval(
        *x, *y, rng, replicates, n_min
    )


def frechet_interval(
    x,
    x_clusters,
    y,
    y_clusters,
    rng: np.random.Generator,
    replicates: int = 200,
    n_min: int = N_MIN,
) -> Interval:
    """The Frechet distance with a 95 % bootstrap interval about its expectation at this number of
    images.

    A bootstrap draw holds copies, which raise a Frechet distance: the replicates are moved by their
    mean excess.
    """
    estimate = frechet(x, y, n_min)
    samples = [
        (features, Sample(features[:, 0], clusters=clusters))
        for features, clusters in ((x, x_clusters), (y, y_clusters))
    ]
    draws = np.array(
        [frechet(*(_again(*part, rng) for part in samples), n_min) for _ in range(replicates)]
    )
    low, high = estimate + np.quantile(draws, [0.025, 0.975]) - draws.mean()
    return Interval(estimate, float(max(0.0, low)), float(high))


def frechet_by_n(
    features, ns, rng: np.random.Generator, other=None, clusters=None, repeats: int = 5
) -> pd.DataFrame:
    """The Frechet distance from n images, for each n of `ns`: columns n, dimensions, distance, low,
    high, floor_theory.

    Two disjoint sets (of subjects, with `clusters`) of ONE population `features` [N, D], whose true
    distance is 0; or, with `other` [M, D], n of each. distance: mean over `repeats` draws, low and
    high their range. `floor_theory`: see `expected_floor`, good where n is far above D; where n is
    not, the covariances lack rank and the distance falls more slowly than 1 / n. This is why a
    distance from 500 images in 2,048 dimensions cannot be compared with one from 10,000. Raises
    `DataError` when the rows do not give the largest n.
    """
    features, clusters = np.asarray(features, np.float64), _clusters(features, clusters)
    rows = []
    for n in ns:
        if other is None:
            drawn = [
                [part[0] for part in disjoint(features, clusters, n, rng)] for _ in range(repeats)
            ]
        else:
            sets = [(features, clusters), (np.asarray(other, np.float64), _clusters(other, None))]
            drawn = [[_take(*part, n, rng)[0] for part in sets] for _ in range(repeats)]
        values = [frechet(*pair, n_min=2) for pair in drawn]
        rows.append(
            {
                "n": int(n),
                "dimensions": features.shape[1],
                "distance": float(np.mean(values)),
                "low": min(values),
                "high": max(values),
                "floor_theory": expected_floor(features, n),
            }
        )
    return pd.DataFrame(rows)


def expected_floor(features, n: int) -> float:
    """What the Frechet distance of two samples of `n` from one normal population is on average, to
    first order in 1 / n.

    With eigenvalues l of the covariance of `features` [N, D]: (5/2 sum_i l_i + sum_ij l_i l_j /
    (l_i + l_j)) / n; for unit covariance D (D + 5) / (2 n). The means give 2 sum_i l_i, the
    covariances the rest (second-order Bures distance).
    """
    values = np.maximum(
        np.linalg.eigvalsh(np.atleast_2d(np.cov(np.asarray(features, np.float64), rowvar=False))),
        1e-12,
    )
    return float(
        (2.5 * values.sum() + (np.outer(values, values) / (values[:, None] + values)).sum()) / n
    )


def frechet_limit(table: pd.DataFrame) -> float:
    """The distance of a `frechet_by_n` table carried to infinitely many images: a line in 1 / n
    (Chong and Forsyth 2020).

    Use values of n well above the number of dimensions. Raises `DataError` on fewer than two n.
    """
    if table["n"].nunique() < 2:
        raise DataError("a limit needs distances at two values of n or more")
    slope, limit = np.polyfit(1 / table["n"], table["distance"], 1, w=table["n"])
    return float(limit)


def disjoint(
    features, clusters, n: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two sets of `n` rows of `features` [N, D], each with its clusters [n], that share no cluster.

    Clusters come in random order; the first set takes as many as it needs, the second what is left.
    Raises `DataError` when there are not enough; `most_disjoint` says how many always are.
    """
    order = rng.permutation(int(clusters.max()) + 1)
    rows = np.argsort(np.argsort(order)[clusters], kind="stable")
    last = clusters[rows[n - 1]] if n <= len(rows) else -1
    rest = rows[n:][clusters[rows[n:]] != last]
    if len(rest) < n:
        raise DataError(
            f"{len(features)} images of {len(order)} subjects do not give two sets of {n} without "
            "a common "
            f"subject; at most {most_disjoint(clusters)}"
        )
    return [(features[part], clusters[part]) for part in (rows[:n], rest[:n])]


def most_disjoint(clusters) -> int:
    """The largest n for which `disjoint` never fails, whatever the order of the clusters [N]."""
    return (len(clusters) - int(np.unique(clusters, return_counts=True)[1].max()) + 1) // 2


def _groups(features, groups, subjects, name: str) -> dict:
    """{group: (features, clusters)}. Raises `DataError` on lengths that do not match."""
    features, groups = np.asarray(features, np.float64), np.asarray(groups)
    clusters = _clusters(features, subjects)
    if (
        features.ndim != 2
        or not len(features) == len(groups) == len(clusters)
        or len(features) == 0
    ):
        raise DataError(
            f"{name} features of shape {features.shape} with {len(groups)} groups and "
            f"{len(clusters)} subjects; "
            "give features [N, D] with one group and one subject a row"
        )
    parts = ((str(group), groups == group) for group in np.unique(groups))
    return {
        group: (features[rows], np.unique(clusters[rows], return_inverse=True)[1])
        for group, rows in parts
    }


def _clusters(features, subjects) -> np.ndarray:
    return (
        np.arange(len(features))
        if subjects is None
        else np.unique(np.asarray(subjects), return_inverse=True)[1]
    )


def _common_n(people: dict, made: dict, n: int | None, n_min: int) -> int:
    """The n of every comparison; raises `DataError` naming each group that cannot give it."""
    room = {("real", group): most_disjoint(rows[1]) for group, rows in people.items()}
    room |= {("synthetic", group): len(rows[0]) for group, rows in made.items()}
    n = min(room.values()) if n is None else n
    wanted = max(n, n_min)
    short = [
        f"{kind} {group!r} ({len({'real': people, 'synthetic': made}[kind][group][0])} images, "
        f"gives {most})"
        for (kind, group), most in room.items()
        if most < wanted
    ]
    if short or n < n_min:
        raise DataError(
            f"too few images to compare {wanted} with {wanted}: {', '.join(short)}; each synthetic "
            "group needs "
            f"{wanted} and each real group two sets of {wanted} without a common subject; merge or "
            "leave out groups"
        )
    return n


def _check_dimensions(people: dict, made: dict, n: int, measure: str) -> None:
    widths = {rows[0].shape[1] for rows in (*people.values(), *made.values())}
    if len(widths) > 1:
        raise DataError(
            f"features of {sorted(widths)} dimensions cannot be compared; take both from one "
            "embedding"
        )
    if measure == "frechet" and n <= (width := widths.pop()):
        raise DataError(
            f"a Frechet distance of {n} images in {width} dimensions has covariances without full "
            "rank; take "
            "measure='mmd', more images, or fewer dimensions (principal components of the real "
            "features)"
        )


def _between(divided, group, other, floors, value) -> float:
    if other == group:
        return float(np.mean(floors))
    if other not in divided[0]:
        return float("nan")
    return float(np.mean([value(halves[group][0], halves[other][1]) for halves in divided]))


def _take(features, clusters, n: int, rng) -> tuple[np.ndarray, np.ndarray]:
    if len(features) < n:
        raise DataError(f"{len(features)} images do not give {n}; ask for fewer")
    rows = rng.permutation(len(features))[:n]
    return features[rows], clusters[rows]


def _again(features: np.ndarray, sample: Sample, rng) -> np.ndarray:
    """One bootstrap draw of whole clusters with as many rows as there were, so that n stays
    equal.
    """
    rows = sample.rows(rng)
    while len(rows) < len(features):
        rows = np.concatenate([rows, sample.rows(rng)])
    return features[rows[: len(features)]]
