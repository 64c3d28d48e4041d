"""Equity-scaled measures as Luo et al. release them, beside the spreads they are made of:
fairlearn's MetricFrame.

Luo et al., FairDiffusion, arXiv 2412.20374, evaluation code: for a measure M (accuracy or AUC,
higher is better) of everybody and M_g of each group of ONE attribute, ES-M = M / (1 + alpha * sum_g
|M_g - M|), alpha = 1, every group with the same weight whatever its size. Two things follow from
the sum. It has one term a group, so ES-M falls as the number of groups grows, also
where no group is treated differently: groups of one population differ by chance, the more so the
smaller they are. And a group that does better than all others lowers it as much as one that does
worse. So ES-M compares arms on the same people and groups; it does not compare attributes. Put the
values of the groups beside it.

A group with too few people of a class has no such value: it is left out by name and counted, or an
error; never NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fairlib.errors import DataError
from fairlib.measures.groups import N_MIN

METRICS = ("auc", "accuracy")


@dataclass(frozen=True, eq=False)
class EquityReport:
    """What `equity_report` found.

    overall: auc and accuracy of all rows, also those of excluded groups. groups: one row an
    attribute and group, with people of each class (`class_0`, ...) and `METRICS`. spread: one row
    an attribute and metric: `overall`, `equity_scaled`, `std` (of the groups, divided by their
    number, as released) and `max_min`, both also divided by the overall value (`_scaled`), `worst`
    (lowest value), `worst_group`, and `groups`, their number. parity: one row an attribute:
    `demographic_parity` and `equalised_odds` differences. excluded: attribute, group, people of
    each class, reason.
    """

    overall: pd.Series
    groups: pd.DataFrame
    spread: pd.DataFrame
    parity: pd.DataFrame
    excluded: pd.DataFrame


def equity_scaled(overall: float, groups, alpha: float = 1.0, weights=None) -> float:
    """M / (1 + alpha * sum_g |M_g - M|): `overall` in [0, 1], `groups` [G] the same measure in each
    group.

    weights: [G], at least 0, mean one: of each group's term; one each as released. (By numbers of
    people, a rare group hardly counts.) Raises `DataError` on a value that is not finite, no group,
    a negative alpha, or other weights.
    """
    values = _finite(overall, groups, alpha)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    if weights.shape != values.shape or not (weights >= 0).all() or abs(weights.mean() - 1) > 1e-9:
        raise DataError(
            f"weights {weights.tolist()} for {len(values)} groups; give one of at least 0 for "
            "each, mean one"
        )
    return float(overall / (1 + alpha * (weights * np.abs(values - overall)).sum()))


def equity_scaled_distance(
    overall: float, groups: Mapping[str, float], images: Mapping[str, int], alpha: float = 1.0
) -> float:
    """A distance (MMD, Frechet; lower is better) with its differences between groups added: OUR
    formula, ES-D (ours).

    ES-D = D + alpha * mean_g |D_g - D|. The released code has no formula for distances, and
    dividing as for AUC would reward inequality. A mean and not a sum, so that more groups alone do
    not raise it; added and not multiplied, since an unbiased MMD may be below zero. images: how
    many images stand behind `overall` (key "all") and each group: the Frechet distance depends on
    that number, so they must be equal (see `quality.matched`). Raises `DataError` where they are
    not.
    """
    values = _finite(overall, list(groups.values()), alpha)
    needed = {"all", *groups}
    if set(images) != needed or len(set(images.values())) > 1:
        raise DataError(
            f"images behind the distances: {dict(images)}; give one number for each of "
            f"{', '.join(sorted(needed))}, "
            "all equal: distances at unequal numbers of images compare the numbers"
        )
    return float(overall + alpha * np.abs(values - overall).mean())


def spread(overall: float, groups) -> dict[str, float]:
    """std (population), max_min, and both divided by `overall` (`std_scaled`, `max_min_scaled`), as
    released; `groups` [G].
    """
    values = _finite(overall, groups)
    if overall == 0:
        raise DataError("the overall value is 0; a spread cannot be divided by it")
    found = {"std": float(values.std()), "max_min": float(np.ptp(values))}
    return found | {f"{name}_scaled": value / overall for name, value in found.items()}


def equity_report(
    label,
    score,
    groups: pd.DataFrame,
    subject=None,
    threshold: float = 0.5,
    alpha: float = 1.0,
    n_min: int = N_MIN,
    small: str = "exclude",
) -> EquityReport:
    """Equity of one classifier on one test set, for each attribute by itself.

    label: [N], classes 0..K-1. score: [N], probability of class 1 (answer 1 from `threshold` on),
    or [N, K], one column a class (answer: the highest; AUC: mean over classes of one against the
    rest). groups: [N] rows, one column an attribute. subject: [N] ids, one a row by default. n_min:
    people of every class that a group must have, at least 1; `small`: "exclude" or "error".
    Demographic parity and equalised odds of more than two classes are means over classes, one
    against the rest. Raises `DataError` on bad input, on a small group under "error", or when an
    attribute keeps fewer than two groups.
    """
    label, score, classes = _checked(label, score, groups, n_min, small)
    subject = np.arange(len(label)) if subject is None else np.asarray(subject)
    if len(subject) != len(label):
        raise DataError(f"{len(subject)} subjects for {len(label)} labels; give one for each row")
    answer = (score[:, 1] >= threshold).astype(int) if classes == 2 else score.argmax(1)
    functions = _functions(label, score, answer, classes)
    everybody = {name: functions[name](label, np.arange(len(label))) for name in METRICS}
    tables, spreads, parities, excluded = [], [], [], []
    for attribute in groups:
        counts = class_counts(label, groups[attribute], subject, classes)
        kept = _keep(counts, attribute, n_min, small, excluded)
        values, differences = _by_group(functions, label, groups[attribute], kept)
        tables.append(
            counts.loc[kept]
            .join(values[list(METRICS)])
            .reset_index(names="group")
            .assign(attribute=attribute)
        )
        spreads += [
            {"attribute": attribute, "metric": name, **_row(everybody[name], values[name], alpha)}
            for name in METRICS
        ]
        parities.append({"attribute": attribute, **_parity(differences, classes)})
    columns = [f"class_{c}" for c in range(classes)]
    return EquityReport(
        pd.Series(everybody),
        pd.concat(tables, ignore_index=True)[["attribute", "group", *columns, *METRICS]],
        pd.DataFrame(spreads),
        pd.DataFrame(parities),
        pd.DataFrame(excluded, columns=["attribute", "group", *columns, "reason"]),
    )


def class_counts(label, group, subject, classes: int = 2) -> pd.DataFrame:
    """People of each class (columns class_0, ...) in each group (index), also in categories of
    `group` that nobody has.
    """
    group = pd.Series(group)
    names = (
        group.cat.categories
        if isinstance(group.dtype, pd.CategoricalDtype)
        else sorted(group.unique())
    )
    people = pd.DataFrame(
        {"group": group.to_numpy(), "label": np.asarray(label), "subject": np.asarray(subject)}
    )
    counts = people.drop_duplicates().groupby(["group", "label"]).size().unstack(fill_value=0)
    counts = counts.reindex(index=list(names), columns=range(classes), fill_value=0).astype(int)
    return counts.set_axis([f"class_{c}" for c in range(classes)], axis=1)


def _keep(
    counts: pd.DataFrame, attribute: str, n_min: int, small: str, excluded: list[dict]
) -> list:
    """Groups with `n_min` people of every class; the others go to `excluded` with the reason."""
    kept = [name for name, row in counts.iterrows() if row.min() >= n_min]
    for name, row in counts.drop(index=kept).iterrows():
        if small == "error":
            raise DataError(
                f"{attribute}: group {name!r} has {', '.join(map(str, row))} people of classes 0 "
                f"to {len(row) - 1} "
                f"({_reason(row, n_min)}); add people, merge groups, or exclude it"
            )
        excluded.append(
            {"attribute": attribute, "group": name, **row, "reason": _reason(row, n_min)}
        )
    if len(kept) < 2:
        raise DataError(
            f"{attribute}: {len(kept)} of {len(counts)} groups have {n_min} people of "
            "every class; a comparison "
            "needs two: add people, merge groups or lower n_min"
        )
    return kept


def _reason(row: pd.Series, n_min: int) -> str:
    if row.sum() == 0:
        return "nobody"
    if row.min() == 0:
        return f"nobody of {row.idxmin().replace('_', ' ')}"
    return f"fewer than {n_min} of a class"


def _by_group(
    functions: dict[str, Callable], label: np.ndarray, group: pd.Series, kept: list
) -> tuple[pd.DataFrame, pd.Series]:
    """Every function in every kept group, and its largest difference between two of them."""
    from fairlearn.metrics import MetricFrame

    rows = np.flatnonzero(group.isin(kept))
    # MetricFrame carries one number a row, and scores have one a class: so it carries the row's
    # place, and they are looked up.
    frame = MetricFrame(
        metrics=functions,
        y_true=label[rows],
        y_pred=rows,
        sensitive_features=pd.Series(group.astype(object).to_numpy()[rows], name="group"),
    )
    return frame.by_group.loc[kept].astype(float), frame.difference(method="between_groups").astype(
        float
    )


def _functions(
    label: np.ndarray, score: np.ndarray, answer: np.ndarray, classes: int
) -> dict[str, Callable]:
    """Metrics of rows, each called with (labels, places of the rows)."""
    from sklearn.metrics import roc_auc_score

    asked = [1] if classes == 2 else range(classes)
    found = {
        "auc": lambda true, at: float(
            np.mean([roc_auc_score(true == c, score[at, c]) for c in asked])
        ),
        "accuracy": lambda true, at: float(np.mean(true == answer[at])),
    }
    for c in asked:
        found[f"selected_{c}"] = lambda true, at, c=c: float(np.mean(answer[at] == c))
        found[f"tpr_{c}"] = lambda true, at, c=c: float(np.mean(answer[at][true == c] == c))
        found[f"fpr_{c}"] = lambda true, at, c=c: float(np.mean(answer[at][true != c] == c))
    return found


def _row(overall: float, values: pd.Series, alpha: float) -> dict:
    return {
        "overall": overall,
        "equity_scaled": equity_scaled(overall, values, alpha),
        **spread(overall, values),
        "worst": float(values.min()),
        "worst_group": values.idxmin(),
        "groups": len(values),
    }


def _parity(differences: pd.Series, classes: int) -> dict[str, float]:
    asked = [1] if classes == 2 else range(classes)
    return {
        "demographic_parity": float(np.mean([differences[f"selected_{c}"] for c in asked])),
        "equalised_odds": float(
            np.mean([max(differences[f"tpr_{c}"], differences[f"fpr_{c}"]) for c in asked])
        ),
    }


def _finite(overall: float, groups, alpha: float = 0.0) -> np.ndarray:
    values = np.asarray(groups, float)
    if (
        values.ndim != 1
        or not len(values)
        or not (np.isfinite(values).all() and np.isfinite(overall))
        or not alpha >= 0
    ):
        raise DataError(
            f"overall {overall}, groups {values.tolist()}, alpha {alpha}: expected finite values "
            "of one or more "
            "groups and an alpha of at least 0; leave out groups that have no value, by name"
        )
    return values


def _checked(
    label, score, groups: pd.DataFrame, n_min: int, small: str
) -> tuple[np.ndarray, np.ndarray, int]:
    label, score = np.asarray(label), np.asarray(score, float)
    score = np.stack([1 - score, score], axis=1) if score.ndim == 1 else score
    if (
        score.ndim != 2
        or score.shape[1] < 2
        or len({len(label), len(score), len(groups)}) > 1
        or not len(label)
    ):
        raise DataError(
            f"{len(label)} labels, scores of shape {score.shape} and {len(groups)} "
            "rows of groups; give one of each "
            "a picture, scores [N] or one column a class"
        )
    classes = score.shape[1]
    if not np.isfinite(score).all() or not np.isin(label, range(classes)).all():
        raise DataError(
            f"scores must be finite and labels among 0 to {classes - 1}; found "
            f"{np.unique(label)[:6].tolist()}"
        )
    if len(np.unique(label)) < classes:
        raise DataError(
            f"{len(np.unique(label))} of {classes} classes are in the test set; accuracy and AUC "
            "need all of them"
        )
    if n_min < 1 or small not in ("exclude", "error"):
        raise DataError(
            f"n_min {n_min}, small {small!r}: expected at least 1, and 'exclude' or 'error'"
        )
    if groups.isna().any(axis=None) or not groups.shape[1]:
        empty = groups.columns[groups.isna().any()]
        raise DataError(
            f"{int(groups[empty[0]].isna().sum())} rows have no {empty[0]}; leave them out first, "
            "and say how many"
            if len(empty)
            else "no attribute to group by; give a table with one column an attribute"
        )
    return label.astype(int), score, classes
