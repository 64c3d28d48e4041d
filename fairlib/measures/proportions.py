"""Shares of a subgroup, raw and with the classifier's error taken out.

A judge that reads a share `s` of female images, right on a share `a_F` of women and `a_M` of men,
sees `s = a_F p + (1 - a_M)(1 - p)`; the true share `p` follows (Rogan and Gladen 1978; the same
correction as CLEAM, NeurIPS 2023). Saerens, Latinne and Decaestecker (2002) estimate `p` by EM from
calibrated probabilities. Both errors are carried into the interval: the judged images and the
held-out slices (by subject) are drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairlib.errors import DataError
from fairlib.measures.resampling import Interval, Sample, bootstrap, bootstrap_interval, interval


@dataclass(frozen=True)
class HeldOut:
    """What a judge said of held-out slices whose sex is known.

    p_female: [N] probabilities in [0, 1]; truth: [N], 1 = female, 0 = male; subjects: [N] labels,
    resampled whole. Raises `DataError` on unequal lengths, probabilities outside [0, 1], or a sex
    with no slice.
    """

    p_female: np.ndarray
    truth: np.ndarray
    subjects: np.ndarray

    def __post_init__(self):
        for name in ("p_female", "truth", "subjects"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        if not len(self.p_female) == len(self.truth) == len(self.subjects):
            raise DataError(
                "held-out readings, truth and subjects differ in length; give one of each per slice"
            )
        check_probabilities(self.p_female)
        if set(np.unique(self.truth)) != {0, 1}:
            raise DataError(
                f"held-out truth holds {sorted(set(self.truth.tolist()))}; it needs both 1 "
                "(female) and 0 (male)"
            )

    def sample(self) -> Sample:
        """The held-out slices, resampled by subject within sex."""
        return Sample(self.p_female, self.truth, clusters=self.subjects, strata=self.truth)


def check_probabilities(values: np.ndarray) -> None:
    """Raise `DataError` unless every value lies in [0, 1]."""
    values = np.asarray(values, float)
    if values.size == 0 or not ((values >= 0) & (values <= 1)).all():
        raise DataError(
            "probabilities must be a non-empty array in [0, 1]; apply the sigmoid to logits, drop "
            "failed readings"
        )


def class_accuracies(p_female: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(a_F, a_M): the shares of women read as female and of men read as male, at p = 0.5."""
    female = np.asarray(p_female) > 0.5
    return float(female[truth == 1].mean()), float(1 - female[truth == 0].mean())


def rogan_gladen(share, a_f: float, a_m: float):
    """The true female share behind an observed `share` (scalar or array), clipped to [0, 1].

    Raises `DataError` when a_F + a_M <= 1: such a judge says nothing about sex.
    """
    if not a_f + a_m > 1:
        raise DataError(
            f"the judge is right on {a_f:.3f} of women and {a_m:.3f} of men; they must sum to more "
            "than 1 "
            "for its shares to be corrected; use a better judge"
        )
    return np.clip((np.asarray(share) + a_m - 1) / (a_f + a_m - 1), 0, 1)


def confusion(read: np.ndarray, truth: np.ndarray, groups: int) -> np.ndarray:
    """[K, K] matrix of P(read = row | truth = column).

    Raises `DataError` for a group with no slice.
    """
    counts = np.zeros((groups, groups))
    np.add.at(counts, (read, truth), 1)
    if (counts.sum(0) == 0).any():
        raise DataError(
            f"no held-out slice of group {int(counts.sum(0).argmin())}; its error rate cannot be "
            "known"
        )
    return counts / counts.sum(0)


def rogan_gladen_groups(shares: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """The true shares [K] behind observed `shares` [K]: solve `confusion @ p = shares`, project on
    the simplex.

    Raises `DataError` when some group is not read as itself more often than any other group is read
    as it.
    """
    off = np.where(np.eye(len(confusion), dtype=bool), 0, confusion)
    if (np.diag(confusion) <= off.max(1)).any() or np.linalg.cond(confusion) > 1e6:
        raise DataError(
            "the judge confuses the groups too much for its shares to be corrected; use a better "
            "judge or merge groups"
        )
    return project_to_simplex(np.linalg.solve(confusion, np.asarray(shares, float)))


def project_to_simplex(values: np.ndarray) -> np.ndarray:
    """The nearest point (Euclidean) of the probability simplex to `values` [K] (Duchi et al.

    2008, figure 1).
    """
    ordered = np.sort(values)[::-1]
    excess = (np.cumsum(ordered) - 1) / np.arange(1, len(values) + 1)
    return np.maximum(values - excess[np.flatnonzero(ordered > excess)[-1]], 0)


def saerens_em(
    probabilities: np.ndarray, prior: np.ndarray, tolerance: float = 1e-7, most: int = 2000
) -> np.ndarray:
    """Maximum-likelihood shares [K] of a sample from calibrated `probabilities` [N, K] under
    `prior` [K].

    `prior`: shares of the groups where the probabilities were calibrated. (Saerens et al. 2002,
    equations 2.7-2.9.)
    """
    likelihood = np.asarray(probabilities, float) / prior
    shares = np.asarray(prior, float)
    for _ in range(most):
        posterior = likelihood * shares
        updated = (posterior / posterior.sum(1, keepdims=True)).mean(0)
        if np.abs(updated - shares).max() < tolerance:
            return updated
        shares = updated
    return shares


def platt(logits: np.ndarray, truth: np.ndarray, steps: int = 50) -> tuple[float, float]:
    """(slope, intercept) of the logistic recalibration of `logits` [N] on `truth` [N] (Platt 1999).

    By Newton's method with halved steps: logits of a sure judge lie so far out that a whole step
    can lead away.
    """
    design = np.stack([logits, np.ones_like(logits)])
    # toward slope one: a judge that separates perfectly has no finite slope
    ridge = 1e-4 * len(truth)

    def loss(weights: np.ndarray) -> float:
        values = weights @ design
        return float(
            np.logaddexp(0, values).sum() - values @ truth + ridge / 2 * (weights[0] - 1) ** 2
        )

    weights, pull = np.array([1.0, 0.0]), np.array([1.0, 0.0])
    for _ in range(steps):
        p = sigmoid(weights @ design)
        gradient = design @ (p - truth) + ridge * (weights - pull) * pull
        move = np.linalg.solve(
            (design * (p * (1 - p))) @ design.T + np.diag([ridge, 0]) + 1e-9 * np.eye(2), gradient
        )
        size = next(
            (size for size in 0.5 ** np.arange(30) if loss(weights - size * move) < loss(weights)),
            0.0,
        )
        weights = weights - size * move
        if size * np.abs(move).max() < 1e-9:
            break
    return float(weights[0]), float(weights[1])


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-values)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(values, float)))


def logit(p: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), with p kept 1e-6 from 0 and 1."""
    p = np.clip(np.asarray(p, float), 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def female_share(
    p_female: np.ndarray, rng: np.random.Generator, replicates: int = 1000, clusters=None
) -> Interval:
    """The share of images read as female (p > 0.5), with a bootstrap interval over images (or
    `clusters`).
    """
    check_probabilities(p_female)
    read = np.asarray(p_female) > 0.5
    return bootstrap_interval(np.mean, [Sample(read, clusters=clusters)], rng, replicates)


def corrected_share(
    p_female: np.ndarray,
    held_out: HeldOut,
    rng: np.random.Generator,
    replicates: int = 1000,
    clusters=None,
) -> Interval:
    """The female share by Rogan and Gladen, with an interval that resamples images and held-out
    subjects.

    Raises `DataError` when the judge is no better than chance on the held-out slices.
    """
    check_probabilities(p_female)
    read = np.asarray(p_female) > 0.5
    estimate = rogan_gladen(read.mean(), *class_accuracies(held_out.p_female, held_out.truth))
    draws = bootstrap(
        _corrected, [Sample(read, clusters=clusters), held_out.sample()], rng, replicates
    )
    return interval(estimate, draws)


def em_share(
    p_female: np.ndarray,
    held_out: HeldOut,
    rng: np.random.Generator,
    replicates: int = 300,
    clusters=None,
) -> Interval:
    """The female share by Saerens EM on probabilities recalibrated (Platt) on the held-out slices.

    The interval resamples images and held-out subjects, and calibrates anew in every replicate.
    """
    check_probabilities(p_female)
    samples = [Sample(np.asarray(p_female), clusters=clusters), held_out.sample()]
    return bootstrap_interval(_em, samples, rng, replicates)


def _corrected(read, held_p, truth) -> float:
    a_f, a_m = class_accuracies(held_p, truth)
    return float(rogan_gladen(read.mean(), a_f, a_m)) if a_f + a_m > 1 else np.nan


def _em(p_female, held_p, truth) -> float:
    slope, intercept = platt(logit(held_p), truth)
    p = sigmoid(slope * logit(p_female) + intercept)
    return float(saerens_em(np.stack([1 - p, p], 1), np.array([1 - truth.mean(), truth.mean()]))[1])
