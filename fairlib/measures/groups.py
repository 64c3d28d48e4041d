"""How well a classifier does in each subgroup, and how far the subgroups lie apart: fairlearn's
MetricFrame.

Metrics of answers at a threshold (1 = ill): sensitivity (tpr), false positive rate (fpr), selection
rate, and balanced accuracy = (tpr + 1 - fpr) / 2, the headline of Skorupko et al., arXiv
2403.19508. Within a subgroup tpr, fpr and with them balanced accuracy are shares of the ill or of
the healthy alone, so they do not depend on the prevalence: a test set rich in ill subjects,
weighted down to prevalence 0.01 (`prevalence_weights`), gives the same values with far more
certainty than a hundredth of it would. The selection rate and the accuracy do depend on it.

A subgroup with too few ill or healthy subjects has no such figure: it is left out by name and
counted, or an error.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fairlib.errors import DataError

METRICS = ("balanced_accuracy", "tpr", "fpr", "selection_rate")
N_MIN = 10
"""Ill and healthy subjects that a subgroup must have: with ten, the standard error of a sensitivity
of 0.8 is 0.13.
"""


@dataclass(frozen=True, eq=False)
class GroupReport:
    """What `group_report` found.

    groups: one row a subgroup (index: its name), columns ill, healthy (subjects), images and
    `METRICS`. overall: the same metrics over all rows, also those of excluded subgroups. gaps:
    highest less lowest of each metric; those of the selection rate and of tpr are the
    demographic-parity and the equal-opportunity difference, and `equalised_odds` is the larger of
    those of tpr and fpr. excluded: columns group, ill, healthy, reason.
    """

    groups: pd.DataFrame
    overall: pd.Series
    gaps: pd.Series
    excluded: pd.DataFrame

    @property
    def worst(self) -> tuple[str, float]:
        """The subgroup with the lowest balanced accuracy, and that accuracy."""
        values = self.groups["balanced_accuracy"]
        return str(values.idxmin()), float(values.min())


def group_report(
    label,
    answer,
    groups: pd.DataFrame,
    subject,
    weight=None,
    n_min: int = N_MIN,
    small: str = "exclude",
) -> GroupReport:
    """Metrics by subgroup of one classifier on one test set.

    label, answer: [N], 0 or 1 (ill); groups: [N] rows, one column an attribute: subgroups are the
    combinations of their values (one column: its values). subject: [N] ids. weight: [N] positive
    (default one), see `prevalence_weights`.
    n_min: ill and healthy subjects a subgroup must have, at least 1; `small` says what becomes of
    the others: "exclude" (listed in `excluded`, also combinations that nobody has) or "error".
    Raises `DataError` on bad input, a small subgroup under "error", or fewer than two subgroups
    left.
    """
    from fairlearn.metrics import MetricFrame

    label, answer, weight = _checked(label, answer, groups, subject, weight)
    names = group_names(groups)
    counts = count_subjects(label, groups, subject)
    kept, excluded = keep_large(counts, n_min, small)
    rows = np.isin(names, kept)
    frame = MetricFrame(
        metrics=_functions(),
        y_true=label[rows],
        y_pred=answer[rows],
        sensitive_features=pd.Series(names[rows], name="group"),
        sample_params={name: {"sample_weight": weight[rows]} for name in METRICS},
    )
    images = pd.Series(names).value_counts()
    table = counts.loc[kept].assign(
        images=images.loc[kept], **frame.by_group.loc[kept].astype(float)
    )
    overall = pd.Series(
        {name: f(label, answer, sample_weight=weight) for name, f in _functions().items()}
    )
    gaps = frame.difference(method="between_groups").astype(float)
    gaps["equalised_odds"] = max(gaps["tpr"], gaps["fpr"])
    return GroupReport(table, overall, gaps, excluded)


def prevalence_weights(label, prevalence: float) -> np.ndarray:
    """Weight of each row, [N], mean one, under which the share of ill rows (label 1) is
    `prevalence`.

    Raises `DataError` when a class is missing or the prevalence is not above 0 and below 1.
    """
    label = np.asarray(label)
    share = float(np.mean(label == 1))
    if not (0 < prevalence < 1 and 0 < share < 1):
        raise DataError(
            f"prevalence {prevalence} from {share:.0%} ill rows: both must lie between 0 and 1"
        )
    return np.where(label == 1, prevalence / share, (1 - prevalence) / (1 - share))


def group_names(groups: pd.DataFrame) -> np.ndarray:
    """One name a row, [N]: the values of its columns, joined by ", "."""
    return groups.astype(str).agg(", ".join, axis=1).to_numpy(dtype=object)


def count_subjects(label, groups: pd.DataFrame, subject) -> pd.DataFrame:
    """Ill and healthy subjects of every combination of values (index: its name), also of those that
    nobody has.
    """
    values = [
        column.cat.categories
        if isinstance(column.dtype, pd.CategoricalDtype)
        else sorted(column.unique())
        for _, column in groups.items()
    ]
    names = [", ".join(map(str, combination)) for combination in itertools.product(*values)]
    people = pd.DataFrame(
        {"group": group_names(groups), "label": np.asarray(label), "subject": np.asarray(subject)}
    )
    counts = people.drop_duplicates().groupby(["group", "label"]).size().unstack(fill_value=0)
    counts = counts.reindex(index=names, columns=[1, 0], fill_value=0).astype(int)
    return counts.rename(columns={1: "ill", 0: "healthy"}).rename_axis(index="group", columns=None)


def keep_large(
    counts: pd.DataFrame, n_min: int = N_MIN, small: str = "exclude"
) -> tuple[list[str], pd.DataFrame]:
    """Names of the subgroups with `n_min` ill and `n_min` healthy subjects, and a table of the
    others with the reason.

    Raises `DataError` when `small` is "error" and there are others, or when fewer than two remain.
    """
    if n_min < 1 or small not in ("exclude", "error"):
        raise DataError(
            f"n_min {n_min}, small {small!r}: expected at least 1, and 'exclude' or 'error'"
        )
    large = (counts >= n_min).all(axis=1)
    others = counts[~large].reset_index()
    reasons = [_reason(row.ill, row.healthy, n_min) for row in others.itertuples()]
    excluded = others.assign(reason=pd.Series(reasons, dtype="str"))
    if small == "error" and len(excluded):
        first = excluded.iloc[0]
        raise DataError(
            f"subgroup {first.group!r}: {first.ill} ill and {first.healthy} healthy "
            f"subjects ({first.reason}); "
            "add subjects, merge subgroups, or exclude it"
        )
    if large.sum() < 2:
        raise DataError(
            f"{int(large.sum())} of {len(counts)} subgroups have {n_min} ill and {n_min} healthy "
            "subjects; "
            "a comparison needs two: add subjects, merge subgroups or lower n_min"
        )
    return list(counts.index[large]), excluded


def _reason(ill: int, healthy: int, n_min: int) -> str:
    if ill == healthy == 0:
        return "nobody"
    missing = [name for name, count in (("ill", ill), ("healthy", healthy)) if count == 0]
    return f"no {missing[0]} subject" if missing else f"fewer than {n_min} of a class"


def _functions() -> dict:
    from fairlearn.metrics import false_positive_rate, selection_rate, true_positive_rate
    from sklearn.metrics import balanced_accuracy_score

    return {
        "balanced_accuracy": balanced_accuracy_score,
        "tpr": true_positive_rate,
        "fpr": false_positive_rate,
        "selection_rate": selection_rate,
    }


def _checked(
    label, answer, groups: pd.DataFrame, subject, weight
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    label, answer = np.asarray(label).astype(int), np.asarray(answer).astype(int)
    weight = np.ones(len(label)) if weight is None else np.asarray(weight, float)
    if len({len(label), len(answer), len(groups), len(subject), len(weight)}) > 1 or not len(label):
        raise DataError(
            f"{len(label)} labels, {len(answer)} answers, {len(groups)} rows of "
            f"groups, {len(subject)} subjects and "
            f"{len(weight)} weights; give one of each for every image"
        )
    if not (
        np.isin(label, (0, 1)).all()
        and np.isin(answer, (0, 1)).all()
        and np.isfinite(weight).all()
        and (weight > 0).all()
    ):
        raise DataError("labels and answers must be 0 or 1, weights finite and above 0")
    if groups.isna().any(axis=None):
        column = groups.columns[groups.isna().any()][0]
        raise DataError(
            f"{int(groups[column].isna().sum())} rows have no {column}; leave them out first, and "
            "say how many"
        )
    return label, answer, weight
