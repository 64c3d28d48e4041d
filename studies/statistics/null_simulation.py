"""What published statistics say where nothing is to be found: simulations in which the truth is
known, every draw from `rng`.

Three habits of the field are put to the test (Luo et al., arXiv 2412.20374, as released; others do
the same). A Frechet distance for every group, each from as many images as the group has. An
equity-scaled AUC compared between attributes with more and fewer groups. A paired t-test over the
replicates of one bootstrap: it asks whether the mean over B draws differs from zero, and with
enough draws it always does, since drawing again costs nothing and adds no patient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fairlib.errors import DataError
from fairlib.measures.distances import frechet, mmd
from fairlib.measures.equity import equity_scaled
from fairlib.measures.intervals import auc as area
from fairlib.measures.intervals import wilson
from fairlib.measures.paired import STATISTICS, PairedAreas, auc_differences, swap_p

PUBLISHED = "paired t-test over replicates"
BOOTSTRAP, SWAP = "paired bootstrap over patients", "arms swapped within patients"


def distance_by_size(
    rng: np.random.Generator,
    sizes: Sequence[int],
    worse: float = 0.25,
    dimensions: int = 64,
    repeats: int = 20,
    progress: Callable[[Iterable], Iterable] = iter,
) -> pd.DataFrame:
    """Distances of generated to real images, group by group, where every group's generator is
    perfect but one.

    Features are normal with variances 1, 1/2, ..., 1/`dimensions`. Groups have `sizes` images, real
    and generated; a further group of the largest size is generated worse: shifted by `worse`
    standard deviations in every direction. Columns: group ("as real" or "worse"), n, measure
    ("Frechet, own n", "Frechet, equal n", "MMD, own n", "MMD, equal n"; equal: the smallest size),
    and over `repeats`: mean, low, high (2.5 and 97.5 % quantiles).
    """
    scale, least, rows = 1 / np.sqrt(np.arange(1, dimensions + 1)), min(sizes), []
    groups = [*(("as real", int(n)) for n in sizes), ("worse", int(max(sizes)))]
    for _ in progress(range(repeats)):
        for group, n in groups:
            real, generated = rng.normal(size=(2, n, dimensions)) * scale
            generated = generated + worse * scale * (group == "worse")
            for name, count in {"own n": n, "equal n": least}.items():
                part = real[:count], generated[:count]
                rows += [
                    (group, n, f"Frechet, {name}", frechet(*part, n_min=2)),
                    (group, n, f"MMD, {name}", mmd(*part, n_min=2)),
                ]
    table = pd.DataFrame(rows, columns=["group", "n", "measure", "value"])
    grouped = table.groupby(["group", "n", "measure"], sort=False)["value"]
    return grouped.agg(
        mean="mean", low=lambda x: x.quantile(0.025), high=lambda x: x.quantile(0.975)
    ).reset_index()


def equity_by_groups(
    rng: np.random.Generator,
    people: int,
    counts: Sequence[int],
    auc: float = 0.85,
    repeats: int = 200,
) -> pd.DataFrame:
    """Equity-scaled AUC of one classifier that treats all patients alike, when `people` are put
    into groups at random.

    counts: numbers of groups. Columns, means over `repeats`: groups, n (people a group), auc,
    equity_scaled, worst, max_min. Raises `DataError` when a group would have fewer than ten ill or
    healthy people.
    """
    if people // (2 * max(counts)) < 10:
        raise DataError(
            f"{people} people in {max(counts)} groups: fewer than ten ill or healthy in each; ask "
            "for fewer groups"
        )
    rows = []
    for _ in range(repeats):
        ill, healthy = rng.normal(size=(2, people // 2))
        ill = ill + separation(auc)
        whole = float(area(ill, healthy))
        for count in counts:
            each = people // (2 * count)
            parts = area(*(side[: each * count].reshape(count, each) for side in (ill, healthy)))
            rows.append(
                (count, 2 * each, whole, equity_scaled(whole, parts), parts.min(), np.ptp(parts))
            )
    table = pd.DataFrame(rows, columns=["groups", "n", "auc", "equity_scaled", "worst", "max_min"])
    return table.groupby("groups", as_index=False).mean().astype({"n": int})


def separation(auc: ArrayLike) -> np.ndarray:
    """By how much normal scores of variance one must lie apart for this AUC."""
    from scipy.special import ndtri

    return np.sqrt(2) * ndtri(auc)


def simulated_arms(
    rng: np.random.Generator, sizes: Sequence[int], areas: Sequence[float], shared: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two arms of one and the same quality on the same people: label [N], scores [2, N], group [N].

    sizes, areas: people and true AUC of each group (half of it ill). shared: the part of the
    scores' variance that lies in the patient and not in the arm, in [0, 1).
    """
    group, label = (
        np.repeat(np.arange(len(sizes)), sizes),
        np.concatenate([np.arange(size) % 2 for size in sizes]),
    )
    patient = (
        np.sqrt(shared) * rng.normal(size=len(group))
        + separation(np.asarray(areas, float))[group] * label
    )
    return label, patient + np.sqrt(1 - shared) * rng.normal(size=(2, len(group))), group


def published_p(differences: np.ndarray) -> float:
    """The published test: a paired t-test over bootstrap replicates, from the differences [B] of
    the two arms.
    """
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences, 0.0).pvalue)


def published_rate(replicates: int, level: float = 0.05) -> float:
    """How often the published test rejects a true null, to first order: 2 Phi(-z / sqrt(B)), z the
    normal quantile of the level.

    The mean of B replicates lies at the observed difference, their spread is that difference's
    standard error s, and the test takes s / sqrt(B) for the error. With B = 100 it rejects at a
    fifth of a standard error.
    """
    from scipy.special import ndtr, ndtri

    return float(2 * ndtr(ndtri(level / 2) / np.sqrt(replicates)))


def null_rates(
    rng: np.random.Generator,
    sizes: Sequence[int],
    areas: Sequence[float],
    repeats: int = 1000,
    replicates: int = 400,
    published: Sequence[int] = (100, 1000, 5000),
    shared: float = 0.5,
    level: float = 0.05,
    progress: Callable[[Iterable], Iterable] = iter,
) -> pd.DataFrame:
    """How often each comparison finds a difference between two arms that have none, over `repeats`
    simulated test sets.

    Columns: test, statistic, replicates, rejected, low, high (Wilson), expected (`published_rate`
    for the published test, else `level`), repeats. The published test is run on the AUC of
    all patients, ours on all of `paired.STATISTICS`.
    """
    keys = [(PUBLISHED, "auc", count) for count in published]
    keys += [(test, name, replicates) for test in (BOOTSTRAP, SWAP) for name in STATISTICS]
    rejections: dict[tuple, list[bool]] = {key: [] for key in keys}
    for _ in progress(range(repeats)):
        arms = PairedAreas(*simulated_arms(rng, sizes, areas, shared))
        observed, drawn, swapped = auc_differences(arms, rng, replicates)
        ends = np.quantile(drawn, [level / 2, 1 - level / 2], axis=0)
        for name, out, p in zip(
            STATISTICS, (ends[0] > 0) | (ends[1] < 0), swap_p(observed, swapped), strict=True
        ):
            rejections[BOOTSTRAP, name, replicates].append(out)
            rejections[SWAP, name, replicates].append(p <= level)
        many = arms.overall_differences(rng, max(published)) if published else np.empty(0)
        for count in published:
            rejections[PUBLISHED, "auc", count].append(published_p(many[:count]) <= level)
    return pd.DataFrame([_rate(key, rejected, level) for key, rejected in rejections.items()])


def _rate(key: tuple, rejected: list, level: float) -> dict:
    test, statistic, replicates = key
    low, high = wilson(np.sum(rejected), len(rejected))
    expected = published_rate(replicates, level) if test == PUBLISHED else level
    return {
        "test": test,
        "statistic": statistic,
        "replicates": replicates,
        "rejected": float(np.mean(rejected)),
        "low": float(low),
        "high": float(high),
        "expected": expected,
        "repeats": len(rejected),
    }
