"""Targets of tuning: the shares that a model should generate, and what each image should become.

A `Target` names K groups, their shares, and the classifier's logits on real images of each. From it
follow, for every generated image, a target logit or a target class:

* transport targets. With two groups, one-dimensional optimal transport: the k-th smallest logit
  goes to the k-th quantile of the target distribution, which gives the real logits of each group
  that group's share as their mass. With more groups, the assignment to a sample of the target at
  least total squared distance.
* class targets (Shen et al. 2024, section 4.1). With two groups, the exact rank rule; with more,
  optimal transport to random draws of the classes.

Logits here are `[N]` for two groups, positive for the first, and centred `[N, K]` for more
(`class_logits` makes them from what a classifier returns).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fairlib.errors import SettingsError


@dataclass(frozen=True)
class Distribution:
    """A weighted sample of logits: ascending `values` `[M]`, each at the middle of its own mass,
    `levels` `[M]`.
    """

    values: np.ndarray
    levels: np.ndarray

    def quantile(self, level: ArrayLike) -> np.ndarray:
        """Logits at `level` (in [0, 1], any shape): linear between the values, constant beyond the
        outermost.

        With equal weights this is Hazen's definition (`numpy.quantile(method="hazen")`).
        """
        return np.interp(np.asarray(level), self.levels, self.values)


@dataclass(frozen=True)
class Target:
    """The target of the prompts that are ranked together; make it with `Target.shares`.

    Parameters
    ----------
    name
        Of this target; images of prompts whose targets have the same name are ranked together.
    groups
        Names of the K groups, in the order of the classifier's outputs.
    proportions
        `[K]`, sum one.
    logits
        Of the real images of each group, `[n]` each for two groups, `[n, K]` for more; empty where
        only shares matter.
    """

    name: str
    groups: tuple[str, ...]
    proportions: tuple[float, ...]
    logits: tuple[tuple, ...]

    @classmethod
    def shares(
        cls,
        shares: Mapping[str, float],
        scores: Tensor | ArrayLike | None = None,
        labels: Sequence[str] | None = None,
        *,
        name: str = "all",
    ) -> Target:
        """Make a target from the share of each group.

        Parameters
        ----------
        shares
            Share of each of K groups, of any names, in the order of the classifier's outputs: with
            logits `[N]`, a positive logit means the first of two groups. They sum to one.
        scores
            The classifier's logits on real images, `[M]` or `[M, K]`; generated images shall be
            scored alike. Class targets and mean-probability losses do without.
        labels
            The recorded group of each real image, `[M]`: the aim is then the distribution of the
            logits of real images in these shares. By default the classifier's own decision, its
            errors included: the aim is then the share *as the classifier reads it*, which differs
            from the share of the recorded groups wherever its errors do not cancel.
        name
            Images of prompts whose targets have the same name are ranked together.

        Raises
        ------
        SettingsError
            Shares that are negative or do not sum to one, scores of the wrong shape, or a group
            with a positive share and without finite scores.
        """
        groups, where = tuple(shares), f"target {name!r}"
        proportions = tuple(float(share) for share in shares.values())
        check_shares(proportions, where)
        if scores is None:
            return cls(name, groups, proportions, ((),) * len(groups))
        outputs = scores if isinstance(scores, Tensor) else torch.tensor(np.array(scores))
        logits = class_logits(outputs.detach().cpu(), len(groups), where)
        if labels is None:
            places = classes_of(logits) if logits.ndim == 2 else 1 - classes_of(logits)
            labels = [groups[place] for place in places.tolist()]
        if len(labels) != len(logits) or set(labels) - set(groups):
            raise SettingsError(
                f"{where}: {len(labels)} labels of groups {sorted(map(str, set(labels)))} for "
                f"{len(logits)} scores; give each score one of {', '.join(groups)}"
            )
        held = np.asarray(labels, dtype=object)
        parts = [logits.numpy()[held == group] for group in groups]
        target = cls(name, groups, proportions, tuple(_as_tuples(part) for part in parts))
        target.weighted_logits()
        return target

    @classmethod
    def by_group(cls, targets: Mapping[str, Target]) -> dict[str, Target]:
        """Give each group of prompts a target of its own, as `{"HGG": Target, "LGG": Target}`.

        `tune` then takes its prompts as `{prompt: group}`. Raises `SettingsError` when the targets
        do not name the same groups in the same order.
        """
        if len({target.groups for target in targets.values()}) != 1:
            raise SettingsError(
                f"the targets of {', '.join(targets)} name different groups; give all of them the "
                "same groups, in the order of the classifier's outputs"
            )
        return {name: replace(target, name=name) for name, target in targets.items()}

    def weighted_logits(self) -> tuple[np.ndarray, np.ndarray]:
        """The real images' logits, `[M]` or `[M, K]`, and the mass of each, `[M]`: a group's share,
        evenly over its images.

        Raises `SettingsError` where a group with a positive share has no finite logits.
        """
        values, weights = [], []
        for group, share, logits in zip(self.groups, self.proportions, self.logits, strict=True):
            array = np.asarray(logits, dtype=float)
            if share and not (len(array) and np.isfinite(array).all()):
                raise SettingsError(
                    f"target {self.name!r} has a share of {share:.3g} of {group!r} but not the "
                    f"finite logits of real images of {group!r} to set it ({len(array)} logits); "
                    "run the classifier on real images of that group first"
                )
            if share:
                values.append(array)
                weights.append(np.full(len(array), share / len(array)))
        return np.concatenate(values), np.concatenate(weights)

    def distribution(self) -> Distribution:
        """The target distribution of the logits of two groups; raises as `weighted_logits`."""
        return weighted(*self.weighted_logits())

    def sample(self, count: int) -> np.ndarray:
        """`count` logits `[count, K]` spread evenly over the target's mass, group by group."""
        values, weights = self.weighted_logits()
        levels = (np.arange(count) + 0.5) / count
        rows = np.searchsorted(np.cumsum(weights) / weights.sum(), levels)
        return values[np.minimum(rows, len(values) - 1)]


def target_of_each(
    prompts: Sequence[str] | Mapping[str, str],
    target: Target | Mapping[str, Target] | Sequence[Target],
) -> tuple[Target, ...]:
    """The target of each prompt: of one for all, one for each group of prompts, or one each.

    Raises `SettingsError` for a prompt without a target, a target without a prompt, and targets
    that contradict each other.
    """
    if isinstance(target, Target):
        targets = (target,) * len(prompts)
    elif isinstance(target, Mapping):
        if not isinstance(prompts, Mapping):
            fault = f"the target is by group ({', '.join(target)})"
            raise SettingsError(f"{fault}; give prompts as {{prompt: group}}")
        for prompt, group in prompts.items():
            if group not in target:
                what = f"prompt {prompt!r} is of group {group!r}, which no target covers"
                raise SettingsError(f"{what}; there are targets of {', '.join(target)}")
        unused = [group for group in target if group not in prompts.values()]
        if unused:
            what = f"no prompt is of group {unused[0]!r}, which has a target"
            raise SettingsError(f"{what}; add prompts of that group or leave its target out")
        targets = tuple(target[group] for group in prompts.values())
    else:
        targets = tuple(target)
    if len(prompts) != len(targets) or not targets:
        raise SettingsError(f"{len(prompts)} prompts, {len(targets)} targets; give one each")
    clash = {a.name for a in targets for b in targets if a.name == b.name and a != b}
    if clash:
        raise SettingsError(f"group {min(clash)!r} has two targets; give each its own name")
    Target.by_group({each.name: each for each in targets})
    return targets


def class_logits(outputs: Tensor, groups: int | None = None, where: str = "classifier") -> Tensor:
    """A classifier's `outputs` as logits `[N]` (two groups, positive for the first) or centred
    `[N, K]` (K > 2).

    Two columns become their difference. Raises `SettingsError` on another shape, or one that does
    not fit the number of `groups`.
    """
    shape = tuple(outputs.shape)
    if outputs.ndim not in (1, 2) or (outputs.ndim == 2 and shape[1] < 2):
        raise SettingsError(f"{where}: logits have shape {shape}; expected [N] or [N, K], K > 1")
    columns = 2 if outputs.ndim == 1 else shape[1]
    if groups is not None and columns != groups:
        raise SettingsError(f"{where}: logits of {columns} groups but {groups} have a share")
    if outputs.ndim == 1:
        return outputs
    if columns == 2:
        return outputs[:, 0] - outputs[:, 1]
    return outputs - outputs.mean(dim=1, keepdim=True)


def classes_of(logits: Tensor) -> Tensor:
    """Classes int64 `[N]`: 1 for the first and 0 for the second of two groups, else their place."""
    return (logits > 0).long() if logits.ndim == 1 else logits.argmax(dim=1)


def group_shares(logits: Tensor, groups: Sequence[str]) -> dict[str, float]:
    """The share of images that is classified as each of `groups`."""
    classes = classes_of(logits)
    if logits.ndim == 1:
        classes = 1 - classes
    counts = torch.bincount(classes, minlength=len(groups)) / len(logits)
    return dict(zip(groups, counts.tolist(), strict=True))


def check_shares(shares: ArrayLike, where: str = "target") -> np.ndarray:
    """Return `shares` `[K]` as an array, if they are non-negative and sum to one (to 1e-6).

    Raises `SettingsError` otherwise.
    """
    array = np.asarray(shares, dtype=float)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all() or (array < 0).any():
        raise SettingsError(f"{where}: shares are {shares!r}; give one non-negative share a group")
    if abs(array.sum() - 1) > 1e-6:
        raise SettingsError(f"{where}: shares {array.tolist()} sum to {array.sum():.4g}, not to 1")
    return array / array.sum()


def weighted(values: ArrayLike, weights: ArrayLike | None = None) -> Distribution:
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
    rank = np.argsort(np.argsort(everything, kind="stable"))
    return rank[len(others) :], len(everything)


def transport_targets(logits: Tensor, target: Target, pool: Tensor | None = None) -> Tensor:
    """Target logits, shaped as `logits` `[N]` or `[N, K]`, by optimal transport to `target`.

    Give the base model's logits of a whole cache of noises of one group, and every noise has its
    target for the whole tuning (the map Q_target(F_base(.))). Give one batch, and `pool`, recent
    logits of the same group to rank within: a small batch alone shrinks the distribution.

    book/paper.md, Eq. (eq-transport).
    """
    if logits.ndim == 1:
        return quantile_targets(logits, target.distribution(), pool)
    from scipy.spatial.distance import cdist

    everything = logits if pool is None else torch.cat([pool.to(logits), logits])
    points = target.sample(len(everything))
    cost = cdist(everything.detach().double().cpu().numpy(), points, "sqeuclidean")
    nearest = points[assign(cost, np.ones(len(points), dtype=int))]
    return torch.as_tensor(nearest[-len(logits) :]).to(logits)


def quantile_targets(
    logits: Tensor, distribution: Distribution, pool: Tensor | None = None
) -> Tensor:
    """Target logits `[N]`: the image of rank r among n goes to the quantile (r + 1/2) / n.

    `pool` `[P]` holds recent logits of the same group to rank within: midpoints of a small batch
    alone shrink the distribution (one image would always be sent to the median). The pool lags
    behind a model that moves, so a long one with a high learning rate overshoots; ranks among the
    base model's logits need neither.

    book/paper.md, Eq. (eq-quantile).
    """
    rank, count = ranks(logits, pool)
    return torch.as_tensor(distribution.quantile((rank + 0.5) / count)).to(logits)


def class_targets(
    logits: Tensor,
    target: Target,
    pool: Tensor | None = None,
    *,
    draws: int = 200,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """`(labels [N], confidence [N])` for `logits` `[N]` or `[N, K]`; labels as of `classes_of`.

    For more than two groups, `draws` random draws from `rng` decide.
    """
    if logits.ndim == 1:
        return binary_class_targets(logits, target.proportions[0], pool)
    everything = logits if pool is None else torch.cat([pool.to(logits), logits])
    labels, confidence = optimal_transport_class_targets(
        everything.softmax(dim=1), target.proportions, draws, rng
    )
    return labels[-len(logits) :], confidence[-len(logits) :]


def binary_class_targets(
    logits: Tensor, share: float, pool: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`(labels [N] in {0, 1}, confidence [N])` for any share of the first group by the exact rank
    rule.

    If the batch were drawn from the target, its count of the second group would be K0 ~ Binomial(n,
    1 - share), and the image of ascending rank r would be of the first with probability P(K0 <= r).
    Corrects the released code of Shen et al., which holds at a share of one half only.

    book/paper.md, Eq. (eq-rank).
    """
    from scipy.stats import binom

    rank, count = ranks(logits, pool)
    first = binom.cdf(rank, count, 1 - share)
    labels = torch.as_tensor(first > 0.5).to(logits)
    return labels, torch.as_tensor(np.maximum(first, 1 - first)).to(logits)


def optimal_transport_class_targets(
    probabilities: Tensor, shares: ArrayLike, draws: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """`(labels int64 [N], confidence [N])` for K classes (Shen et al. 2024, sec. 4.1).

    `draws` times, N classes are drawn from `shares` `[K]` and matched to `probabilities` `[N, K]`
    at least total Euclidean cost to the one-hot classes; an image's label is the class it gets most
    often, its confidence how often.
    """
    shares = check_shares(shares)
    points = probabilities.detach().double().cpu().numpy()
    if points.ndim != 2 or points.shape[1] != len(shares):
        raise SettingsError(f"probabilities of shape {points.shape} for {len(shares)} shares")
    cost = np.linalg.norm(points[:, None, :] - np.eye(len(shares)), axis=2)
    counts = rng.multinomial(len(points), shares, size=draws)
    often = np.zeros_like(cost)
    for drawn in counts:
        often[np.arange(len(points)), assign(cost, drawn)] += 1
    chances = torch.as_tensor(often / draws, device=probabilities.device)
    confidence, labels = chances.max(dim=1)
    return labels, confidence.to(probabilities.dtype)


def assign(cost: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The class `[N]` of each image at least total `cost` `[N, K]` with `counts` `[K]` images a
    class, N in all.
    """
    from scipy.optimize import linear_sum_assignment

    classes = np.repeat(np.arange(len(counts)), counts)
    _, columns = linear_sum_assignment(cost[:, classes])
    return classes[columns]


def _as_tuples(logits: np.ndarray) -> tuple:
    values = logits.astype(float).tolist()
    return tuple(values) if logits.ndim == 1 else tuple(map(tuple, values))
