"""An interval for the worst group's measure: the lowest of the TRUE values of all groups, min_g
M_g.

The lowest of several noisy values lies below the lowest true value, because whichever group had bad
luck is picked; and the percentile bootstrap of that minimum picks again in every draw, so it sits
lower still. What is done here instead, for an interval at 1 - a: every group gets a lower bound
with tail l and an upper bound with tail u; the interval runs from the smallest lower bound to the
smallest upper bound (the upper end as in Chernozhukov, Lee and Rosen, Econometrica 2013).

* The lower end fails only if the bound of a truly worst group does: chance at most l, however many
  groups there are.
* The upper end fails if the bound of ANY group falls below: with k groups equally bad, 1 - (1 -
  u)^k.

So u = 1 - (1 - a)^(1/k), at most a / 2, and l = a - u. In the limit of many people this misses a
when k groups tie and the others are clearly better, and when one alone is the worst. k is counted:
the groups whose distance to the lowest value is within `reach(G)` standard errors. Counting costs
something, and in between the interval is conservative, most where several groups lie one or two
standard errors above the worst, which no data can tell from a tie. With normal groups at a = 5 % it
misses 2.7 to 6.4 % for three groups, 1.7 to 6.9 % for seven, and 0.7 to 7.3 % for eighteen, over
ties, single outliers and stairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fairlib.errors import DataError
from fairlib.measures.equity import N_MIN, class_counts, keep_large
from fairlib.measures.intervals import Interval, delong, jeffreys

METRICS = ("auc", "accuracy", "tpr", "tnr")
# chance, over all groups together, that a group tied with the worst is not counted; found on other
# seeds
MISSED = 0.1


@dataclass(frozen=True, eq=False)
class WorstGroup:
    """interval: of the lowest true value over groups, with the lowest observed one as (low-biased)
    estimate. group: which one that is. near: the groups that may be the worst. by_group: value,
    error, people of each class. excluded: with the reason.
    """

    interval: Interval
    group: str
    near: tuple[str, ...]
    by_group: pd.DataFrame
    excluded: pd.DataFrame


def worst_group(
    label: ArrayLike,
    score: ArrayLike,
    group: ArrayLike,
    metric: str = "auc",
    threshold: float = 0.5,
    level: float = 0.95,
    n_min: int = N_MIN,
) -> WorstGroup:
    """The worst group of one classifier on one test set of independent people, one row each.

    label: [N], 0 or 1. score: [N], probability of 1. group: [N] names. metric: one of `METRICS`
    (tpr, tnr: shares of the ill and of the healthy that are answered rightly). n_min: people of
    both classes that a group must have; others are listed. Raises `DataError` on another metric,
    bad labels, or fewer than two groups left.
    """
    label, score, group = np.asarray(label), np.asarray(score, float), np.asarray(group).astype(str)
    lengths = {len(label), len(score), len(group)}
    if metric not in METRICS or not np.isin(label, (0, 1)).all() or len(lengths) > 1:
        raise DataError(
            f"metric {metric!r}, labels {np.unique(label)[:4].tolist()}; expected one of "
            f"{', '.join(METRICS)}, labels 0 or 1, and one label, score and group a person"
        )
    counts = class_counts(label, group, np.arange(len(label)))
    kept, excluded = keep_large(counts, n_min)
    table, members = counts.loc[kept], [group == name for name in kept]
    if metric == "auc":
        values = [delong(score[m & (label == 1)], score[m & (label == 0)]) for m in members]
        value, error = np.array(values).T
        low, high, near = worst_auc(value, error, table.min(axis=1).to_numpy(), level)
    else:
        counted = {"tpr": label == 1, "tnr": label == 0}.get(metric, np.ones(len(label), bool))
        hit = counted & ((score >= threshold) == (label == 1))
        right, n = (np.array([(m & rows).sum() for m in members]) for rows in (hit, counted))
        value, error = right / n, share_error(right, n)
        low, high, near = worst_share(right, n, level)
    return WorstGroup(
        Interval(float(value.min()), float(low), float(high)),
        kept[int(value.argmin())],
        tuple(name for name, chosen in zip(kept, near, strict=True) if chosen),
        table.assign(value=value, error=error),
        excluded,
    )


def worst_share(
    right: ArrayLike, n: ArrayLike, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low and high end [...] for the lowest true share of G groups, and which groups are near it
    [..., G].

    right, n: [..., G], so many of so many people; bounds by `intervals.jeffreys`.
    """
    right, n = np.asarray(right, float), np.asarray(n, float)
    near = contenders(right / n, share_error(right, n))
    low, high = jeffreys(right, n, *tails(near, level))
    return low.min(-1), high.min(-1), near


def worst_auc(
    value: ArrayLike, error: ArrayLike, fewer: ArrayLike, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for AUC: `value` and DeLong's `error` [..., G], people of the smaller class `fewer`
    [G]; bounds
    on the logit scale.

    Where a group's scores part the classes completely (error 0) its bound is that of a share: of
    the smaller class's number of pairs that have no person in common, all are right.
    """
    value, error = np.asarray(value, float), np.asarray(error, float)
    people = np.asarray(fewer) + np.zeros_like(value)
    spread = np.where(error > 0, error, share_error(np.round(value * people), people))
    near = contenders(value, spread)
    lower, upper = tails(near, level)
    shares = jeffreys(np.round(value * people), people, lower, upper)
    bounds = zip(logit_bounds(value, error, lower, upper), shares, strict=True)
    low, high = (np.where(error > 0, bound, share).min(-1) for bound, share in bounds)
    return low, high, near


def tails(near: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The tails (l, u) [..., 1] of the lower and the upper bounds, from which groups are `near` the
    worst [..., G].
    """
    a = 1 - level
    upper = np.minimum(1 - (1 - a) ** (1 / near.sum(-1, keepdims=True)), a / 2)
    return a - upper, upper


def contenders(value: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Which groups [..., G] may be the worst: no further above the lowest value than `reach(G)`
    errors of the difference.
    """
    lowest = value.argmin(-1)[..., None]
    distance = value - np.take_along_axis(value, lowest, -1)
    return distance <= reach(value.shape[-1]) * np.sqrt(
        error**2 + np.take_along_axis(error, lowest, -1) ** 2
    )


def reach(groups: int) -> float:
    """Standard errors within which one of G groups counts as near the worst: the normal quantile at
    1 - `MISSED` / G.
    """
    from scipy.special import ndtri

    return float(ndtri(1 - MISSED / groups))


def logit_bounds(
    value: ArrayLike, error: ArrayLike, lower_tail: ArrayLike, upper_tail: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Normal bounds of a measure in (0, 1) on the logit scale; an error of 0 gives the value
    itself.
    """
    from scipy.special import expit, ndtri
    from scipy.special import logit as to_logit

    inside = np.clip(value, 1e-6, 1 - 1e-6)
    middle, scale = to_logit(inside), error / (inside * (1 - inside))
    return expit(middle + ndtri(lower_tail) * scale), expit(middle - ndtri(upper_tail) * scale)


def share_error(right: np.ndarray, n: np.ndarray) -> np.ndarray:
    """The standard error of a share, with half a person added to both sides so that it is never
    0.
    """
    share = (np.asarray(right) + 0.5) / (np.asarray(n) + 1)
    return np.sqrt(share * (1 - share) / n)
