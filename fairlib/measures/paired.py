"""Arms compared on one test set, paired over subjects: answers at a threshold, and AUC.

All arms answer for the same images; so every bootstrap draw takes the same subjects in all of them,
and what makes a subject hard for all arms drops out of a difference. Subjects are drawn within
group and diagnosis, which keeps every group's size.

Answers at a threshold, of several trainings (seeds) of each arm: `arm_metrics`.
Seed by seed all arms start from the same first weights, so draws take the same seeds too.

Scores of two arms: `compare_auc`. Two answers to "do the arms differ", both for the AUC of
everybody, of the worst group, the difference between best and worst, and the equity-scaled AUC.
`difference`, `low`, `high`: the paired percentile bootstrap. `p`: the arms' scores swapped at
random within subjects (a permutation test). If it makes no difference which arm scored a subject,
p below 0.05 comes at most one time in twenty, for every statistic and every number of subjects;
scores of both arms must then be on one scale (probabilities from the same kind of classifier).
Simulated (`results/statistics`), the swap rejects 4 to 6 % at a nominal 5 % in every statistic; the
bootstrap 6 % for the AUC, but 0 to 3 % for the other three: an extreme of groups is spread wider in
its draws than in truth.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fairlib.errors import DataError
from fairlib.measures.equity import N_MIN, class_counts, group_names, keep_large
from fairlib.measures.intervals import (
    Interval,
    Rng,
    Sample,
    draw_counts,
    interval,
    pair_table,
    weighted_auc,
)
from fairlib.settings import need, unknown_key

METRICS = ("balanced_accuracy", "tpr", "fpr", "selection_rate")
ALL, WORST, GAP = "all", "worst", "gap"
STATISTICS = ("auc", "worst", "gap", "equity_scaled")
BATCH = 100  # bootstrap draws computed at once


@dataclass(frozen=True, eq=False)
class PairedAnswers:
    """The answers of every arm and seed to the same N images.

    arms [A], seeds [S]: names; label [N]: 1 = ill; subject [N]; groups [N] rows of attributes;
    answer [A, S, N]: 1 = ill.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    label: np.ndarray
    subject: np.ndarray
    groups: pd.DataFrame
    answer: np.ndarray


@dataclass(frozen=True)
class BootstrapSettings:
    """replicates: bootstrap draws. over_seeds: count the luck of the training seeds too, so that
    the interval speaks of other trainings and not only of other subjects. n_min, small: see
    `equity.keep_large`.
    """

    replicates: int = 1000
    over_seeds: bool = True
    n_min: int = N_MIN
    small: str = "exclude"


def paired_answers(predictions: pd.DataFrame, by: Sequence[str]) -> PairedAnswers:
    """Long predictions (arm, seed, subject, image, label, positive, and the columns `by`) as
    arrays.

    Raises `DataError` on a missing column, or when an arm and seed lacks an image, has one twice,
    or calls its subject, label or group otherwise than another does.
    """
    need(predictions, "arm", "seed", "subject", "image", "label", "positive", *by, name="answers")
    arms, seeds = tuple(predictions["arm"].unique()), tuple(predictions["seed"].unique())
    parts = {
        key: part.sort_values("image").reset_index(drop=True)
        for key, part in predictions.groupby(["arm", "seed"], sort=False)
    }
    shared = ["image", "subject", "label", *by]
    first = parts[arms[0], seeds[0]][shared]
    once = not first["image"].duplicated().any()
    for arm, seed in itertools.product(arms, seeds):
        part = parts.get((arm, seed))
        if part is None or not once or not part[shared].equals(first):
            raise DataError(
                f"arm {arm!r}, seed {seed}: not the same images, subjects, labels and groups as "
                f"arm {arms[0]!r}, seed {seeds[0]}, each image once; read one test set with all"
            )
    answer = [[parts[arm, seed]["positive"].to_numpy(float) for seed in seeds] for arm in arms]
    label, subject = first["label"].to_numpy(int), first["subject"].to_numpy()
    return PairedAnswers(arms, seeds, label, subject, first[list(by)], np.array(answer))


def arm_metrics(
    answers: PairedAnswers,
    rng: Rng,
    settings: BootstrapSettings = BootstrapSettings(),
    weight: ArrayLike | None = None,
    reference: str | None = None,
) -> pd.DataFrame:
    """Each arm's metrics, means over seeds, with 95 % intervals: columns arm, group, metric_id,
    estimate, low, high; with a `reference`, every other arm less that arm, paired.

    group: every subgroup that is large enough, "all" (every row), "worst" (lowest balanced accuracy
    or tpr, highest fpr) and "gap" (highest less lowest). "Worst" and "gap" pick an extreme of noisy
    values: they look worse than they are, the more so the smaller the subgroups; compare them
    between arms, where this is alike. A difference above zero is better for balanced accuracy and
    tpr, worse for fpr and "gap". weight: [N], see `equity.prevalence_weights`. Excluded subgroups
    are listed in `attrs["excluded"]`, a dictionary each. Raises `DataError` on an unknown
    reference.
    """
    if reference not in (None, *answers.arms):
        raise DataError(unknown_key(str(reference), list(answers.arms), "the arms"))
    values, draws, names, excluded = _bootstrap(answers, rng, settings, weight)
    seeds, parts = len(answers.seeds), list(zip(answers.arms, values, draws, strict=True))
    if reference is None:
        return _table(parts, names, excluded, seeds)
    _, base, base_draws = parts[answers.arms.index(reference)]
    less = [(arm, v - base, d - base_draws) for arm, v, d in parts if arm != reference]
    return _table(less, names, excluded, seeds).assign(reference=reference)


def crossed_interval(estimate: float, draws: np.ndarray, seeds: int) -> Interval:
    """Interval from draws [1, R] (subjects drawn) or [3, R] (subjects and seeds drawn, subjects
    alone, seeds alone).

    Drawing both at once counts what is peculiar to one subject under one seed three times (Owen,
    Annals of Applied Statistics 2007), and `seeds` of them spread too little by (seeds - 1) /
    seeds. So the draws are scaled to the variance of the two-way cluster estimate: subjects + seeds
    - their interaction (Cameron, Gelbach and Miller, JBES 2011), and to Student's t with the
    degrees of freedom (Satterthwaite) that few seeds leave. On simulated pairs of equal arms it
    covers 0 in 89 to 98 % for a subgroup (least where six seeds make all the noise), in 95 to 100 %
    for "worst" and "gap".
    """
    from scipy.stats import t

    percentile = interval(estimate, draws[0])
    if len(draws) == 1:
        return percentile
    both, subjects, luck = draws.var(axis=1)
    luck_alone = max(0.0, luck * seeds / (seeds - 1) - max(0.0, both - subjects - luck))
    variance = subjects + luck_alone
    if variance == 0 or both == 0:
        return percentile
    freedom = min(1e6, (seeds - 1) * variance**2 / luck_alone**2) if luck_alone else 1e6
    scale = np.sqrt(variance / both) * t.ppf(0.975, freedom) / t.ppf(0.975, 1e6)
    low, high = (estimate + scale * (end - estimate) for end in (percentile.low, percentile.high))
    return Interval(estimate, low, high)


def _table(
    parts: Sequence[tuple[str, np.ndarray, np.ndarray]],
    names: list[str],
    excluded: pd.DataFrame,
    seeds: int,
) -> pd.DataFrame:
    """Rows from (arm, estimates [metrics, groups], draws [K, R, metrics, groups])."""
    rows = []
    for arm, estimate, draws in parts:
        for (m, metric), (g, name) in itertools.product(enumerate(METRICS), enumerate(names)):
            if name == WORST and metric == "selection_rate":  # neither end of it is the bad one
                continue
            ends = crossed_interval(float(estimate[m, g]), draws[:, :, m, g], seeds)
            rows.append({"arm": arm, "group": name, "metric_id": metric, **vars(ends)})
    table = pd.DataFrame(rows)
    # plain, so that pandas can compare it when tables are joined
    table.attrs["excluded"] = excluded.to_dict("records")
    return table


def _bootstrap(
    answers: PairedAnswers, rng: Rng, settings: BootstrapSettings, weight: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, list[str], pd.DataFrame]:
    """Estimates [arms, metrics, groups], draws [arms, K, R, metrics, groups], names of the groups,
    excluded subgroups.
    """
    names = group_names(answers.groups)
    counts = class_counts(answers.label, names, answers.subject)
    kept, excluded = keep_large(counts, settings.n_min, settings.small)
    count, seeds = len(answers.label), len(answers.seeds)
    weight = np.ones(count) if weight is None else np.asarray(weight, float)
    if weight.shape != (count,) or not (np.isfinite(weight).all() and (weight > 0).all()):
        what = f"weights of shape {weight.shape} for {count} images"
        raise DataError(f"{what}; give one finite number above 0 for each")
    strata = [f"{name}, {label}" for name, label in zip(names, answers.label, strict=True)]
    sample = Sample(np.arange(count), clusters=answers.subject, strata=strata)
    members = [np.ones(count, bool), *((names == name).to_numpy() for name in kept)]
    whole, equal = _rates(answers, members, weight[None]), np.full((1, seeds), 1 / seeds)
    draws = []
    for start in range(0, settings.replicates, BATCH):
        size = min(BATCH, settings.replicates - start)
        times = np.stack([sample.times(rng) for _ in range(size)])
        rates = _rates(answers, members, times * weight)
        kinds = [_over_seeds(rates, equal)]
        if settings.over_seeds and seeds > 1:
            drawn = rng.multinomial(seeds, equal[0], size) / seeds
            kinds = [_over_seeds(rates, drawn), *kinds, _over_seeds(whole, drawn)]
        draws.append(np.stack(kinds))
    values = np.moveaxis(_over_seeds(whole, equal)[0], -1, 0)
    joined = np.moveaxis(np.concatenate(draws, axis=1), -1, 0)
    return values, joined, [ALL, *kept, WORST, GAP], excluded


def _rates(answers: PairedAnswers, members: list[np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Metrics [R, metrics, groups, arms, seeds] under weights [R, N]; members: [N] of each
    group.
    """
    return np.stack([_one_group(answers, member, weight) for member in members], axis=2)


def _one_group(answers: PairedAnswers, member: np.ndarray, weight: np.ndarray) -> np.ndarray:
    totals, hits = [], []
    for label in (1, 0):
        rows = np.flatnonzero(member & (answers.label == label))
        totals.append(weight[:, rows].sum(1)[:, None, None])
        said = answers.answer[:, :, rows].reshape(-1, len(rows)).T
        hits.append((weight[:, rows] @ said).reshape(len(weight), *answers.answer.shape[:2]))
    tpr, fpr = hits[0] / totals[0], hits[1] / totals[1]
    selected = (hits[0] + hits[1]) / (totals[0] + totals[1])
    return np.stack([(tpr + 1 - fpr) / 2, tpr, fpr, selected], axis=1)


def _over_seeds(rates: np.ndarray, seed_weight: np.ndarray) -> np.ndarray:
    """Means over seeds by weights [R, S] (sum one), and "worst" and "gap" of those means: [R,
    metrics, groups + 2, arms].
    """
    values = (rates * seed_weight[:, None, None, None]).sum(-1)
    groups = values[:, :, 1:]
    low, high = groups.min(axis=2, keepdims=True), groups.max(axis=2, keepdims=True)
    worst = np.where(np.array(METRICS)[:, None, None] == "fpr", high, low)
    return np.concatenate([values, worst, high - low], axis=2)


# --- AUC of two arms ---------------------------------------------------------------------------


def compare_auc(
    label: ArrayLike,
    scores: ArrayLike,
    group: ArrayLike,
    rng: Rng,
    replicates: int = 1000,
    alpha: float = 1.0,
    n_min: int = N_MIN,
) -> pd.DataFrame:
    """Second arm less first on the same people: one row a statistic (`metric_id`, one of
    `STATISTICS`), with `difference`, `low`, `high` and `p`.

    label: [N], 0 or 1; scores: [2, N], of both arms; group: [N]. Raises `DataError` on unequal
    lengths, other labels, scores that are not finite, fewer than two groups, or a group with fewer
    than `n_min` people of a class: leave it out first, by name.
    """
    areas = PairedAreas(label, scores, group, n_min)
    observed, drawn, swapped = auc_differences(areas, rng, replicates, alpha)
    ends = [interval(value, column) for value, column in zip(observed, drawn.T, strict=True)]
    table = pd.DataFrame([end.columns("difference", "") for end in ends])
    table.insert(0, "metric_id", STATISTICS)
    return table.assign(p=swap_p(observed, swapped))


def auc_differences(
    areas: PairedAreas, rng: Rng, replicates: int = 1000, alpha: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Second arm less first: observed [S], bootstrap draws [B, S] and swapped draws [B, S] of
    `STATISTICS`.
    """
    sizes = [len(rows) for rows in areas.strata]
    once = areas.statistics([np.ones((1, size), np.float32) for size in sizes], alpha)
    drawn = areas.statistics([draw_counts(rng, size, replicates) for size in sizes], alpha)
    swapped = areas.swapped([rng.random((replicates, size)) < 0.5 for size in sizes], alpha)
    return (once[1] - once[0])[0], drawn[1] - drawn[0], swapped[1] - swapped[0]


def swap_p(observed: np.ndarray, swapped: np.ndarray) -> np.ndarray:
    """Two-sided p [S] of `observed` [S] among `swapped` [B, S]; the observed one is counted among
    them, so it is never 0.
    """
    return (1 + (np.abs(swapped) >= np.abs(observed) - 1e-9).sum(0)) / (1 + len(swapped))


class PairedAreas:
    """The people of each group and class (a stratum), and the pair tables of every two arms: what
    all draws are sums over.
    """

    def __init__(self, label: ArrayLike, scores: ArrayLike, group: ArrayLike, n_min: int = N_MIN):
        label, group = np.asarray(label), np.asarray(group).astype(str)
        scores = np.asarray(scores, float)
        shapes = scores.shape == (2, len(label)) and len(group) == len(label)
        if not shapes or not np.isin(label, (0, 1)).all():
            raise DataError(
                f"{len(label)} labels, scores of shape {scores.shape}, {len(group)} groups; give "
                "labels 0 or 1 and one score of each arm and one group for every person"
            )
        if not np.isfinite(scores).all():
            raise DataError("scores hold NaN or infinity; look at the classifier that gave them")
        names, _ = keep_large(class_counts(label, group, np.arange(len(label))), n_min, "error")
        self.strata = [
            np.flatnonzero((group == name) & (label == c)) for name in names for c in (1, 0)
        ]
        # table[i][j]: a positive scored by arm i against a negative scored by arm j; everybody
        # first, then each group
        self.tables = [
            [[pair_table(scores[i, p], scores[j, m]) for j in (0, 1)] for i in (0, 1)]
            for p, m in self._sides(self.strata)
        ]

    def _sides(self, parts: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What `parts` [..., n of the stratum] hold of the positives and the negatives of
        everybody, then of each group.
        """
        yield np.concatenate(parts[::2], axis=-1), np.concatenate(parts[1::2], axis=-1)
        yield from zip(parts[::2], parts[1::2], strict=True)

    def statistics(self, times: list[np.ndarray], alpha: float) -> np.ndarray:
        """[2, B, S] of both arms, each person counted so many `times` [B, n of the stratum]."""
        parts = list(zip(self.tables, self._sides(times), strict=True))
        values = [[weighted_auc(table[arm][arm], *side) for table, side in parts] for arm in (0, 1)]
        return np.stack([_statistics(value, alpha) for value in values])

    def overall_differences(self, rng: Rng, replicates: int) -> np.ndarray:
        """Bootstrap draws [B] of everybody's AUC, second arm less first, as `statistics` draws them
        but nothing of the groups.
        """
        sides = next(self._sides([draw_counts(rng, len(rows), replicates) for rows in self.strata]))
        first, second = (weighted_auc(self.tables[0][arm][arm], *sides) for arm in (0, 1))
        return second - first

    def swapped(self, swap: list[np.ndarray], alpha: float) -> np.ndarray:
        """[2, B, S] with the two arms' scores of a person exchanged where `swap` [B, n of the
        stratum].
        """
        sides = self._sides([part.astype(np.float32) for part in swap])
        both = [_exchanged(table, *side) for table, side in zip(self.tables, sides, strict=True)]
        return np.stack([_statistics([part[arm] for part in both], alpha) for arm in (0, 1)])


def _exchanged(
    table: Sequence[Sequence[np.ndarray]], positive: np.ndarray, negative: np.ndarray
) -> np.ndarray:
    """AUC [2, B] of both arms when the people of weight 1 (not 0) have exchanged the scores of the
    two arms.
    """
    total = np.zeros((2, len(positive)))
    for j, side in ((0, negative), (1, 1 - negative)):
        kept, moved = positive @ table[0][j], positive @ table[1][j]
        total[0] += np.einsum("bm,bm->b", table[0][j].sum(0) - kept + moved, 1 - side, dtype=float)
        total[1] += np.einsum("bm,bm->b", table[1][j].sum(0) - moved + kept, side, dtype=float)
    return total / (positive.shape[1] * negative.shape[1])


def _statistics(areas: list[np.ndarray], alpha: float) -> np.ndarray:
    """`STATISTICS` [B, S] from the AUC [B] of everybody and of each group."""
    whole, groups = areas[0], np.stack(areas[1:])
    scaled = whole / (1 + alpha * np.abs(groups - whole).sum(0))
    return np.stack([whole, groups.min(0), groups.max(0) - groups.min(0), scaled], axis=1)
