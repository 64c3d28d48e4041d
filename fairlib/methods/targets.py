"""What each image's logit, or class, should be: the target side of the alignment loss.

Quantile targets are one-dimensional optimal transport: the k-th smallest logit goes to the k-th
quantile. The target distribution of a prompt group is the guide's logits on the target cohort, with
any female share p: p * (logits of female slices) + (1 - p) * (logits of male slices).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairlib.errors import SettingsError


@dataclass(frozen=True)
class Distribution:
    """A weighted sample of logits: ascending `values` `[M]`, each at the middle of its own mass,
    `levels` `[M]`.
    """

    values: np.ndarray
    levels: np.ndarray

    def quantile(self, level) -> np.ndarray:
        """Logits at `level` (in [0, 1], any shape): linear between the values, constant beyond the
        outermost.

        With equal weights this is Hazen's definition (`numpy.quantile(method="hazen")`).
        """
        return np.interp(level, self.levels, self.values)


@dataclass(frozen=True)
class Target:
    """The target of one prompt group: its female share and the guide's logits on the cohort's
    slices, by sex.

    Images of prompts with equal `group` are ranked together.
    """

    group: str
    female_share: float
    female_logits: tuple[float, ...]
    male_logits: tuple[float, ...]

    def __post_init__(self):
        check_share(self.female_share, f"target of group {self.group!r}")
        for name in ("female_logits", "male_logits"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))

    def distribution(self) -> Distribution:
        """The mixture at `female_share`; `SettingsError` where a sex with a positive share has no
        logits.
        """
        return mixture(self.female_logits, self.male_logits, self.female_share)


def check_share(share: float, where: str = "target") -> float:
    """`share` itself, if it is a finite number in [0, 1]; else `SettingsError`."""
    if not (isinstance(share, (int, float)) and 0 <= share <= 1):
        raise SettingsError(
            f"{where}: female share is {share!r}; give a fraction from 0 to 1, as 0.458"
        )
    return share


def check_shares(shares, where: str = "target") -> np.ndarray:
    """`shares` `[K]` as an array, if they are non-negative and sum to one (to 1e-6); else
    `SettingsError`.
    """
    array = np.asarray(shares, dtype=float)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all() or (array < 0).any():
        raise SettingsError(f"{where}: shares are {shares!r}; give one non-negative share a class")
    if abs(array.sum() - 1) > 1e-6:
        raise SettingsError(
            f"{where}: shares {array.tolist()} sum to {array.sum():.4g}; they must sum to 1"
        )
    return array / array.sum()


def mixture(female_logits, male_logits, female_share: float) -> Distribution:
    """The distribution that gives the female logits the mass `female_share` in all, the male ones
    the rest.
    """
    check_share(female_share)
    values, weights = [], []
    for name, logits, mass in (
        ("female", female_logits, female_share),
        ("male", male_logits, 1 - female_share),
    ):
        logits = np.asarray(logits, dtype=float).ravel()
        if mass and not (len(logits) and np.isfinite(logits).all()):
            raise SettingsError(
                f"the target asks for a {name} share of {mass:.3g} but has {len(logits)} finite "
                f"{name} logits to draw from; read the guide on {name} slices first"
            )
        if mass:
            values.append(logits)
            weights.append(np.full(len(logits), mass / len(logits)))
    return weighted(np.concatenate(values), np.concatenate(weights))


def weighted(values: np.ndarray, weights: np.ndarray | None = None) -> Distribution:
    """The `Distribution` of `values` `[M]` with `weights` `[M]` (default equal; scale does not
    matter).
    """
    values = np.asarray(values, dtype=float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    order = np.argsort(values, kind="stable")
    mass = weights[order] / weights.sum()
    return Distribution(values[order], np.cumsum(mass) - mass / 2)


def ranks(logits: Tensor, pool: Tensor | None = None) -> tuple[np.ndarray, int]:
    """0-based rank of each of `logits` `[N]` among them and `pool` `[P]`, and the number ranked, N
    + P.

    Ties keep the order of the batch, after the pool.
    """
    values = logits.detach().double().cpu().numpy()
    others = np.empty(0) if pool is None else pool.detach().double().cpu().numpy()
    everything = np.concatenate([others, values])
    rank = np.empty(len(everything), dtype=int)
    rank[np.argsort(everything, kind="stable")] = np.arange(len(everything))
    return rank[len(others) :], len(everything)


def quantile_targets(
    logits: Tensor,
    distribution: Distribution,
    pool: Tensor | None = None,
    generator: np.random.Generator | None = None,
) -> Tensor:
    """Target logits `[N]`: the image of rank r among n goes to the quantile (r + 1/2) / n.

    `pool` `[P]` holds recent logits of the same group to rank within: midpoints of a small batch
    alone shrink the distribution (one image would always be sent to the median). The pool lags
    behind a model that moves, so a long one with a high learning rate overshoots; `transport_map`
    needs neither. `generator` draws the level uniformly within the rank's cell instead of its
    middle.
    """
    rank, count = ranks(logits, pool)
    offset = 0.5 if generator is None else generator.random(len(rank))
    return torch.as_tensor(distribution.quantile((rank + offset) / count)).to(logits)


def transport_map(base_logits: Tensor, distribution: Distribution) -> Tensor:
    """Fixed targets `[N]` by the monotone (Monge) map Q_target(F_base(.)) of the frozen model's
    `base_logits` `[N]`.

    Give the logits of a whole noise bank of one group: every noise then keeps its target for the
    whole tuning.
    """
    return quantile_targets(base_logits, distribution)


def binary_class_targets(
    logits: Tensor, female_share: float, pool: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`(labels [N] in {0, 1}, confidence [N])` for any share by the exact rank rule.

    If the batch were drawn from the target, its count of males would be K0 ~ Binomial(n, 1 -
    female_share), and the image of ascending rank r would be female with probability P(K0 <= r).
    Corrects the released code of Shen et al., which holds at a share of one half only.
    """
    from scipy.stats import binom

    check_share(female_share)
    rank, count = ranks(logits, pool)
    female = binom.cdf(rank, count, 1 - female_share)
    labels = torch.as_tensor(female > 0.5).to(logits)
    return labels, torch.as_tensor(np.maximum(female, 1 - female)).to(logits)


def optimal_transport_class_targets(
    probabilities: Tensor, shares, draws: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """`(labels int64 [N], confidence [N])` for K classes (Shen et al. 2024, sec. 4.1).

    `draws` times, N classes are drawn from `shares` `[K]` and matched to `probabilities` `[N, K]`
    at least total Euclidean cost to the one-hot classes; an image's label is the class it gets most
    often, its confidence how often.
    """
    shares = check_shares(shares)
    points = probabilities.detach().double().cpu().numpy()
    if points.ndim != 2 or points.shape[1] != len(shares):
        raise SettingsError(
            f"probabilities have shape {points.shape} but the target has {len(shares)} shares"
        )
    cost = np.linalg.norm(points[:, None, :] - np.eye(len(shares)), axis=2)
    counts = generator.multinomial(len(points), shares, size=draws)
    often = np.zeros_like(cost)
    for drawn in counts:
        often[np.arange(len(points)), assign(cost, drawn)] += 1
    often = torch.as_tensor(often / draws, device=probabilities.device)
    confidence, labels = often.max(dim=1)
    return labels, confidence.to(probabilities.dtype)


def assign(cost: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The class `[N]` of each image at least total `cost` `[N, K]` with `counts` `[K]` images a
    class.
    """
    from scipy.optimize import linear_sum_assignment

    classes = np.repeat(np.arange(len(counts)), counts)
    rows, columns = linear_sum_assignment(cost[:, classes])
    assert (rows == np.arange(len(cost))).all()
    return classes[columns]
