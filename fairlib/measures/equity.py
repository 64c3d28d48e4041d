"""Measures of one classifier by group, equity-scaled measures as Luo et al. release them, and an
interval for the worst group.

Luo et al., FairDiffusion, arXiv 2412.20374, evaluation code: for a measure M (accuracy or AUC,
higher is better) of everybody and M_g of each group of ONE attribute, ES-M = M / (1 + alpha * sum_g
|M_g - M|), alpha = 1, every group with the same weight whatever its size. Two things follow from
the sum. It has one term a group, so ES-M falls as the number of groups grows, also where no group
is treated differently: groups of one population differ by chance, the more so the smaller they are.
And a group that does better than all others lowers it as much as one that does worse. So ES-M
compares arms on the same people and groups; it does not compare attributes. Read it beside the
values of the groups.

A group with too few subjects of a class has no such value: it is excluded by name and counted, or
an error; never NaN.

Worst group: min_g M_g, the lowest of the TRUE values of all groups.

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

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fairlib.errors import DataError
from fairlib.measures.intervals import Interval, delong, jeffreys
from fairlib.settings import need

METRICS = ("auc", "accuracy")
WORST_METRICS = ("auc", "accuracy", "tpr", "tnr")
N_MIN = 10
"""Subjects of each class that a group must have: with ten, the standard error of a sensitivity of
0.8 is 0.13.
"""


@dataclass(frozen=True, eq=False)
class EquityReport:
    """Measures by group of one classifier on one test set.

    overall: the metrics of all rows, also those of excluded groups. by_group: one row an attribute
    and group, with subjects of each class (`class_0`, ...) and the metrics. table: see
    `equity_table`. excluded: attribute, group, subjects of each class, reason. Metrics: auc,
    accuracy, selection_rate, tpr and fpr (rates of answer 1 among all, of class 1 and of class 0;
    one of each class where there are more than two), and with two classes balanced_accuracy.
    """

    overall: pd.Series
    by_group: pd.DataFrame
    table: pd.DataFrame
    excluded: pd.DataFrame


def equity_table(
    label: ArrayLike, score: ArrayLike, groups: pd.DataFrame, **options: Any
) -> pd.DataFrame:
    """Tabulate the equity of one classifier on one test set, for each attribute on its own.

    Parameters
    ----------
    label, score, groups, options
        See `equity_report`.

    Returns
    -------
    pd.DataFrame
        One row an attribute and metric (`metric_id`, "auc" or "accuracy"): `overall` of everybody,
        `equity_scaled`, `difference` (highest less lowest group), `ratio` (lowest over highest),
        `std` (of the groups, divided by their number, as released), the first and the last also
        divided by the overall value (`difference_scaled`, `std_scaled`), `worst` (lowest value),
        `worst_group`, `groups` (their number), and of the attribute the differences
        `demographic_parity` and `equalised_odds`.

    Raises
    ------
    DataError
        As `equity_report`.
    """
    return equity_report(label, score, groups, **options).table


def equity_scaled(
    overall: float, groups: ArrayLike, alpha: float = 1.0, weights: ArrayLike | None = None
) -> float:
    """M / (1 + alpha * sum_g |M_g - M|): `overall` in [0, 1], `groups` [G] the same measure in each
    group.

    weights: [G], at least 0, mean one: of each group's term; one each as released. (By numbers of
    people, a rare group hardly counts.) Raises `DataError` on a value that is not finite, no group,
    a negative alpha, or other weights.
    """
    values = _finite(overall, groups, alpha)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    if weights.shape != values.shape or not (weights >= 0).all() or abs(weights.mean() - 1) > 1e-9:
        what = f"weights {weights.tolist()} for {len(values)} groups"
        raise DataError(f"{what}; give one of at least 0 for each, mean one")
    return float(overall / (1 + alpha * (weights * np.abs(values - overall)).sum()))


def equity_scaled_distance(
    overall: float, groups: Mapping[str, float], images: Mapping[str, int], alpha: float = 1.0
) -> float:
    """A distance (MMD, Frechet; lower is better) with its differences between groups added: OUR
    formula, ES-D (ours).

    ES-D = D + alpha * mean_g |D_g - D|. The released code has no formula for distances, and
    dividing as for AUC would reward inequality. A mean and not a sum, so that more groups alone do
    not raise it; added and not multiplied, since an unbiased MMD may be below zero. images: how
    many images `overall` (key "all") and each group rest on: the Frechet distance depends on that
    number, so they must be equal. Raises `DataError` where they are not.
    """
    values = _finite(overall, list(groups.values()), alpha)
    needed = {"all", *groups}
    if set(images) != needed or len(set(images.values())) > 1:
        raise DataError(
            f"images behind the distances: {dict(images)}; give one number for each of "
            f"{', '.join(sorted(needed))}, all equal: distances at unequal numbers of images "
            "compare the numbers"
        )
    return float(overall + alpha * np.abs(values - overall).mean())


def spread(overall: float, groups: ArrayLike) -> dict[str, float]:
    """std (population), difference (highest less lowest), both divided by `overall` as released
    (`_scaled`), and ratio (lowest over highest); `groups` [G].
    """
    values = _finite(overall, groups)
    if overall == 0:
        raise DataError("the overall value is 0; a spread cannot be divided by it")
    spreads = {"std": float(values.std()), "difference": float(np.ptp(values))}
    scaled = {f"{name}_scaled": value / overall for name, value in spreads.items()}
    return spreads | scaled | {"ratio": float(values.min() / values.max())}


def equity_report(
    label: ArrayLike,
    score: ArrayLike,
    groups: pd.DataFrame,
    subject: ArrayLike | None = None,
    threshold: float = 0.5,
    alpha: float = 1.0,
    n_min: int = N_MIN,
    small: str = "exclude",
) -> EquityReport:
    """Measure the equity of one classifier on one test set, for each attribute on its own.

    Parameters
    ----------
    label
        [N], classes 0..K-1.
    score
        [N], probability of class 1 (answer 1 from `threshold` on), or [N, K], one column a class
        (answer: the highest; AUC: mean over classes of one against the rest).
    groups
        [N] rows, one column an attribute.
    subject
        [N] ids, one a row by default.
    threshold
        In [0, 1], from which on class 1 is answered.
    alpha
        Weight of the differences between groups in equity-scaled measures, at least 0.
    n_min
        Subjects of every class that a group must have, at least 1.
    small
        What becomes of smaller groups: "exclude" (listed in `excluded`) or "error".

    Returns
    -------
    EquityReport
        Metrics of everybody and by group, the table of `equity_table`, and excluded groups.
        Demographic parity and equalised odds of more than two classes are means over classes, one
        against the rest.

    Raises
    ------
    DataError
        On bad input, on a small group under "error", or when an attribute keeps fewer than two
        groups.
    """
    label, score = _checked(label, score, groups)
    classes = score.shape[1]
    subject = np.arange(len(label)) if subject is None else np.asarray(subject)
    if len(subject) != len(label):
        raise DataError(f"{len(subject)} subjects for {len(label)} labels; give one for each row")
    answer = (score[:, 1] >= threshold).astype(int) if classes == 2 else score.argmax(1)
    overall = _metrics(label, score, answer)
    tables, rows, excluded = [], [], []
    for attribute in groups:
        counts = class_counts(label, groups[attribute], subject, classes)
        kept, left_out = keep_large(counts, n_min, small, attribute)
        members = [(groups[attribute] == name).to_numpy() for name in kept]
        values = pd.DataFrame([_metrics(label[m], score[m], answer[m]) for m in members], kept)
        tables.append(counts.loc[kept].join(values).reset_index(names="group"))
        excluded.append(left_out)
        for table in (tables[-1], left_out):
            table.insert(0, "attribute", attribute)
        for name in METRICS:
            row = {"attribute": attribute, "metric_id": name, "overall": overall[name]}
            row["equity_scaled"] = equity_scaled(overall[name], values[name], alpha)
            row |= spread(overall[name], values[name])
            row |= {"worst": float(values[name].min()), "worst_group": values[name].idxmin()}
            rows.append(row | {"groups": len(kept)} | _parity(values.max() - values.min()))
    by_group, excluded = (pd.concat(part, ignore_index=True) for part in (tables, excluded))
    return EquityReport(pd.Series(overall), by_group, pd.DataFrame(rows), excluded)


# --- groups ------------------------------------------------------------------------------------


def prevalence_weights(label: ArrayLike, prevalence: float) -> np.ndarray:
    """Weight of each row, [N], mean one, under which the share of ill rows (label 1) is
    `prevalence`.

    Sensitivity, false positive rate and balanced accuracy are shares of the ill or of the healthy
    alone: weighting a test set rich in ill subjects down to 0.01 leaves them as they are, with far
    more certainty than a hundredth of its ill subjects would give. Raises `DataError` when a class
    is missing or the prevalence is not above 0 and below 1.
    """
    label = np.asarray(label)
    share = float(np.mean(label == 1))
    if not (0 < prevalence < 1 and 0 < share < 1):
        raise DataError(f"prevalence {prevalence} from {share:.0%} ill rows: give both in (0, 1)")
    return np.where(label == 1, prevalence / share, (1 - prevalence) / (1 - share))


def group_names(groups: pd.DataFrame) -> pd.Series:
    """One name a row: the values of its columns, joined by ", "; a categorical with every
    combination of their values, in order, also those that no row has.
    """
    values = [_categories(column) for _, column in groups.items()]
    names = [", ".join(map(str, combination)) for combination in itertools.product(*values)]
    return pd.Series(pd.Categorical(groups.astype(str).agg(", ".join, axis=1), names))


def _categories(column: pd.Series) -> list:
    """The values of a column, of a categorical also those that no row has, in order."""
    categorical = isinstance(column.dtype, pd.CategoricalDtype)
    return list(column.cat.categories if categorical else sorted(column.unique()))


def class_counts(
    label: ArrayLike, group: ArrayLike, subject: ArrayLike, classes: int = 2
) -> pd.DataFrame:
    """Subjects of each class (columns class_0, ...) in each group (index), also in categories of
    `group` that nobody has.
    """
    values = pd.Series(group)
    names = _categories(values)
    people = pd.DataFrame(
        {"group": values.to_numpy(), "label": np.asarray(label), "subject": np.asarray(subject)}
    )
    counts = people.drop_duplicates().groupby(["group", "label"]).size().unstack(fill_value=0)
    counts = counts.reindex(index=names, columns=range(classes), fill_value=0).astype(int)
    counts = counts.set_axis([f"class_{c}" for c in range(classes)], axis=1)
    return counts.rename_axis(index="group", columns=None)


def keep_large(
    counts: pd.DataFrame, n_min: int = N_MIN, small: str = "exclude", attribute: str = "groups"
) -> tuple[list, pd.DataFrame]:
    """Names of the groups of `class_counts` with `n_min` subjects of every class, and a table of
    the others with the reason.

    Raises `DataError` when `small` is "error" and there are others, or when fewer than two remain.
    """
    if n_min < 1 or small not in ("exclude", "error"):
        raise DataError(f"n_min {n_min}, small {small!r}: expected 1 or more, 'exclude' or 'error'")
    large = (counts >= n_min).all(axis=1)
    reasons = [_reason(row, n_min) for _, row in counts[~large].iterrows()]
    others = counts[~large].reset_index().assign(reason=pd.Series(reasons, dtype="str"))
    if small == "error" and len(others):
        name, *numbers, reason = others.iloc[0]
        raise DataError(
            f"{attribute}: group {name!r} has {', '.join(map(str, numbers))} subjects of classes 0 "
            f"to {len(numbers) - 1} ({reason}); add subjects, merge groups, or exclude it"
        )
    if large.sum() < 2:
        raise DataError(
            f"{attribute}: {int(large.sum())} of {len(counts)} groups have {n_min} subjects of "
            "every class; a comparison needs two: add subjects, merge groups or lower n_min"
        )
    return list(counts.index[large]), others


def _reason(row: pd.Series, n_min: int) -> str:
    if row.sum() == 0:
        return "no subject"
    if row.min() == 0:
        return f"no {str(row.idxmin()).replace('_', ' ')} subject"
    return f"fewer than {n_min} of a class"


# --- metrics -----------------------------------------------------------------------------------


def _metrics(label: np.ndarray, score: np.ndarray, answer: np.ndarray) -> dict[str, float]:
    """auc, accuracy and the rates (of each class, `_0`, ..., where there are more than two)."""
    from sklearn.metrics import roc_auc_score

    classes = [1] if score.shape[1] == 2 else range(score.shape[1])
    areas = [roc_auc_score(label == c, score[:, c]) for c in classes]
    metrics = {"auc": float(np.mean(areas)), "accuracy": float(np.mean(label == answer))}
    for c in classes:
        read = answer == c
        rates = (read.mean(), read[label == c].mean(), read[label != c].mean())
        names = ("selection_rate", "tpr", "fpr")
        suffix = "" if len(classes) == 1 else f"_{c}"
        metrics |= {f"{name}{suffix}": float(v) for name, v in zip(names, rates, strict=True)}
    if len(classes) == 1:
        metrics["balanced_accuracy"] = (metrics["tpr"] + 1 - metrics["fpr"]) / 2
    return metrics


def _parity(differences: pd.Series) -> dict[str, float]:
    """Demographic parity and equalised odds from the largest differences of the rates."""
    selection, tpr, fpr = (
        differences.filter(like=rate).to_numpy() for rate in ("selection_rate", "tpr", "fpr")
    )
    parity, odds = selection.mean(), np.maximum(tpr, fpr).mean()
    return {"demographic_parity": float(parity), "equalised_odds": float(odds)}


def _finite(overall: float, groups: ArrayLike, alpha: float = 0.0) -> np.ndarray:
    values = np.asarray(groups, float)
    good = values.ndim == 1 and len(values) and np.isfinite([overall, *values]).all()
    if not good or not alpha >= 0:
        raise DataError(
            f"overall {overall}, groups {values.tolist()}, alpha {alpha}: expected finite values "
            "of one or more groups and an alpha of at least 0; leave out groups that have no "
            "value, by name"
        )
    return values


def _checked(
    label: ArrayLike, score: ArrayLike, groups: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    label, score = np.asarray(label), np.asarray(score, float)
    score = np.stack([1 - score, score], axis=1) if score.ndim == 1 else score
    lengths = {len(label), len(score), len(groups)}
    if score.ndim != 2 or score.shape[1] < 2 or len(lengths) > 1 or not len(label):
        raise DataError(
            f"{len(label)} labels, scores of shape {score.shape} and {len(groups)} rows of groups; "
            "give one of each an image, scores [N] or one column a class"
        )
    classes = range(score.shape[1])
    if not np.isfinite(score).all() or not np.isin(label, classes).all():
        what = f"scores must be finite and labels among 0 to {classes[-1]}"
        raise DataError(f"{what}; given {np.unique(label)[:6].tolist()}")
    if len(np.unique(label)) < len(classes):
        what = f"{len(np.unique(label))} of {len(classes)} classes are in the test set"
        raise DataError(f"{what}; accuracy and AUC need all of them")
    if not groups.shape[1]:
        raise DataError("no attribute to group by; give a table with one column an attribute")
    need(groups, *groups, name="the table of groups", whole=True)
    return label.astype(int), score


# --- the worst group -----------------------------------------------------------------------------

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
) -> WorstGroup:
    """The worst group of one classifier on one test set of independent people, one row each.

    label: [N], 0 or 1. score: [N], probability of 1. group: [N] names. metric: one of
    `WORST_METRICS` (tpr, tnr: shares of the ill and of the healthy that are answered rightly; 1 is
    answered from `threshold` on). Groups with fewer than `N_MIN` people of a class are listed.
    Raises `DataError` on another metric, bad labels, or fewer than two groups left.
    """
    label, score, group = np.asarray(label), np.asarray(score, float), np.asarray(group).astype(str)
    lengths = {len(label), len(score), len(group)}
    if metric not in WORST_METRICS or not np.isin(label, (0, 1)).all() or len(lengths) > 1:
        raise DataError(
            f"metric {metric!r}, labels {np.unique(label)[:4].tolist()}; expected one of "
            f"{', '.join(WORST_METRICS)}, labels 0 or 1, and one label, score and group a person"
        )
    counts = class_counts(label, group, np.arange(len(label)))
    kept, excluded = keep_large(counts)
    table, members = counts.loc[kept], [group == name for name in kept]
    if metric == "auc":
        values = [delong(score[m & (label == 1)], score[m & (label == 0)]) for m in members]
        value, error = np.array(values).T
        low, high, near = worst_auc(value, error, table.min(axis=1).to_numpy())
    else:
        counted = {"tpr": label == 1, "tnr": label == 0}.get(metric, np.ones(len(label), bool))
        hit = counted & ((score >= threshold) == (label == 1))
        right, n = (np.array([(m & rows).sum() for m in members]) for rows in (hit, counted))
        value, error = right / n, share_error(right, n)
        low, high, near = worst_share(right, n)
    ends = Interval(float(value.min()), float(low), float(high))
    tied = tuple(name for name, chosen in zip(kept, near, strict=True) if chosen)
    table = table.assign(value=value, error=error)
    return WorstGroup(ends, kept[int(value.argmin())], tied, table, excluded)


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
    [G]; bounds on the logit scale.

    Where a group's scores part the classes completely (error 0) its bound is that of a share: of
    the smaller class's number of pairs that have no person in common, all are right.
    """
    value, error = np.asarray(value, float), np.asarray(error, float)
    people = np.asarray(fewer) + np.zeros_like(value)
    right = np.round(value * people)
    near = contenders(value, np.where(error > 0, error, share_error(right, people)))
    lower, upper = tails(near, level)
    shares = jeffreys(right, people, lower, upper)
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
    errors = np.sqrt(error**2 + np.take_along_axis(error, lowest, -1) ** 2)
    return distance <= reach(value.shape[-1]) * errors


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
