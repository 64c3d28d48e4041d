"""Arms compared on one test set: bootstrap intervals over whole patients, paired between arms, and
over training seeds.

All arms answer for the same images, and seed by seed start from the same first weights; so every
bootstrap draw takes the same patients, and the same seeds, in all of them, and what makes a patient
hard for all arms drops out of a difference. Patients are drawn within subgroup and diagnosis, which
keeps every subgroup's size. Metrics as in `measures.groups`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fairlib.errors import DataError
from fairlib.measures.groups import METRICS, N_MIN, count_subjects, group_names, keep_large
from fairlib.measures.resampling import Interval, Sample, interval
from fairlib.settings import unknown_key

ALL, WORST, GAP = "all", "worst", "gap"
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
    the interval speaks of other trainings and not only of other patients. n_min, small: see
    `groups.group_report`.
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
    for column in ("arm", "seed", "subject", "image", "label", "positive", *by):
        if column not in predictions:
            raise DataError(
                unknown_key(column, [str(name) for name in predictions.columns], "the predictions")
            )
    arms, seeds = tuple(predictions["arm"].unique()), tuple(predictions["seed"].unique())
    parts = {
        key: part.sort_values("image")
        for key, part in predictions.groupby(["arm", "seed"], sort=False)
    }
    shared = ["image", "subject", "label", *by]
    first = parts[arms[0], seeds[0]][shared].reset_index(drop=True)
    for arm in arms:
        for seed in seeds:
            part = parts.get((arm, seed))
            if (
                part is None
                or not part[shared].reset_index(drop=True).equals(first)
                or first["image"].duplicated().any()
            ):
                raise DataError(
                    f"arm {arm!r}, seed {seed}: not the same images, subjects, labels and groups "
                    f"as arm {arms[0]!r}, "
                    f"seed {seeds[0]}, each image once; read one test set with all"
                )
    answer = np.stack(
        [[parts[arm, seed]["positive"].to_numpy(float) for seed in seeds] for arm in arms]
    )
    return PairedAnswers(
        arms,
        seeds,
        first["label"].to_numpy(int),
        first["subject"].to_numpy(),
        first[list(by)],
        answer,
    )


def arm_values(
    answers: PairedAnswers,
    rng: np.random.Generator,
    settings: BootstrapSettings = BootstrapSettings(),
    weight=None,
) -> pd.DataFrame:
    """Each arm's metrics, means over seeds, with 95 % intervals: columns arm, group, metric,
    estimate, low, high.

    group: every subgroup that is large enough, "all" (every row), "worst" (lowest balanced accuracy
    or tpr, highest fpr) and "gap" (highest less lowest). "Worst" and "gap" pick an extreme of noisy
    values: they look worse than they are, the more so the smaller the subgroups; compare them
    between arms, where this is alike. weight: [N], see `groups.prevalence_weights`. Excluded
    subgroups are listed in `attrs["excluded"]`, a dictionary each.
    """
    values, draws, names, excluded = _bootstrap(answers, rng, settings, weight)
    parts = [(arm, values[..., a], draws[..., a]) for a, arm in enumerate(answers.arms)]
    return _table(parts, names, excluded, len(answers.seeds))


def arm_differences(
    answers: PairedAnswers,
    reference: str,
    rng: np.random.Generator,
    settings: BootstrapSettings = BootstrapSettings(),
    weight=None,
) -> pd.DataFrame:
    """Every other arm less `reference`, with paired 95 % intervals; columns and groups as in
    `arm_values`.

    Above zero is better for balanced accuracy and tpr, worse for fpr and "gap". Raises `DataError`
    on an unknown reference.
    """
    if reference not in answers.arms:
        raise DataError(unknown_key(reference, list(answers.arms), "the arms"))
    values, draws, names, excluded = _bootstrap(answers, rng, settings, weight)
    base = answers.arms.index(reference)
    parts = [
        (arm, values[..., a] - values[..., base], draws[..., a] - draws[..., base])
        for a, arm in enumerate(answers.arms)
        if a != base
    ]
    return _table(parts, names, excluded, len(answers.seeds)).assign(reference=reference)


def crossed_interval(estimate: float, draws: np.ndarray, seeds: int) -> Interval:
    """Interval from draws [1, R] (patients drawn) or [3, R] (patients and seeds drawn, patients
    alone, seeds alone).

    Drawing both at once counts what is peculiar to one patient under one seed three times (Owen,
    Annals of Applied Statistics 2007), and `seeds` of them spread too little by (seeds - 1) /
    seeds. So the draws are scaled to the variance of the two-way cluster estimate: patients + seeds
    - their interaction (Cameron, Gelbach and Miller, JBES 2011), and to Student's t with the
    degrees of freedom (Satterthwaite) that few seeds leave. On simulated pairs of equal arms it
    covers 0 in 89 to 98 % for a subgroup (least where six seeds make all the noise), in 95 to 100 %
    for "worst" and "gap".
    """
    from scipy.stats import t

    found = interval(estimate, draws[0])
    if len(draws) == 1:
        return found
    both, patients, luck = draws.var(axis=1)
    luck_alone = max(0.0, luck * seeds / (seeds - 1) - max(0.0, both - patients - luck))
    variance = patients + luck_alone
    if variance == 0 or both == 0:
        return found
    freedom = min(1e6, (seeds - 1) * variance**2 / luck_alone**2) if luck_alone else 1e6
    scale = np.sqrt(variance / both) * t.ppf(0.975, freedom) / t.ppf(0.975, 1e6)
    return Interval(
        estimate,
        estimate + scale * (found.low - estimate),
        estimate + scale * (found.high - estimate),
    )


def _table(parts: list, names: list[str], excluded: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """Rows from (arm, estimates [metrics, groups], draws [K, R, metrics, groups])."""
    rows = []
    for arm, estimate, draws in parts:
        for m, metric in enumerate(METRICS):
            for g, name in enumerate(names):
                if name == WORST and metric == "selection_rate":  # neither end of it is the bad one
                    continue
                found = crossed_interval(float(estimate[m, g]), draws[:, :, m, g], seeds)
                rows.append({"arm": arm, "group": name, "metric": metric, **vars(found)})
    table = pd.DataFrame(rows)
    # plain, so that pandas can compare it when tables are joined
    table.attrs["excluded"] = excluded.to_dict("records")
    return table


def _bootstrap(answers: PairedAnswers, rng, settings: BootstrapSettings, weight):
    """Estimates [metrics, groups, arms], draws [K, R, metrics, groups, arms], names of the groups,
    excluded subgroups.
    """
    kept, excluded = keep_large(
        count_subjects(answers.label, answers.groups, answers.subject),
        settings.n_min,
        settings.small,
    )
    names = group_names(answers.groups)
    count, seeds = len(answers.label), len(answers.seeds)
    weight = np.ones(count) if weight is None else np.asarray(weight, float)
    if weight.shape != (count,) or not (np.isfinite(weight).all() and (weight > 0).all()):
        raise DataError(
            f"weights of shape {weight.shape} for {count} images; give one finite number above 0 "
            "for each"
        )
    strata = [f"{name}, {label}" for name, label in zip(names, answers.label, strict=True)]
    sample = Sample(np.arange(count), clusters=answers.subject, strata=strata)
    members = [np.ones(count, bool), *(names == name for name in kept)]
    whole, equal = _rates(answers, members, weight[None]), np.full((1, seeds), 1 / seeds)
    draws = []
    for start in range(0, settings.replicates, BATCH):
        size = min(BATCH, settings.replicates - start)
        times = np.stack([np.bincount(sample.rows(rng), minlength=count) for _ in range(size)])
        rates = _rates(answers, members, times * weight)
        kinds = [_over_seeds(rates, equal)]
        if settings.over_seeds and seeds > 1:
            drawn = rng.multinomial(seeds, equal[0], size) / seeds
            kinds = [_over_seeds(rates, drawn), *kinds, _over_seeds(whole, drawn)]
        draws.append(np.stack(kinds))
    return (
        _over_seeds(whole, equal)[0],
        np.concatenate(draws, axis=1),
        [ALL, *kept, WORST, GAP],
        excluded,
    )


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
