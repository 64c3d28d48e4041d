"""How far the share of each prompt lies from its target, and how far chance alone would put it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binom

from fairlib.errors import DataError
from fairlib.measures.proportions import (
    HeldOut,
    check_probabilities,
    class_accuracies,
    rogan_gladen,
)
from fairlib.measures.resampling import Interval, Sample, bootstrap, check_defined


@dataclass(frozen=True)
class Gap:
    """Mean over prompts of |share - target|.

    mean: with a 95 % interval; floor: the mean that a generator exactly on target would show at
    this number of images;
    beyond_chance: root mean square gap with the noise of sampling taken out, at least the
    noise-free mean gap;
    prompts: one row a prompt with `prompt, n, target, raw, share, low, high, gap, floor`.
    """

    mean: Interval
    floor: float
    beyond_chance: float
    prompts: pd.DataFrame


def per_prompt_gap(
    p_female,
    prompts,
    target,
    rng: np.random.Generator,
    held_out: HeldOut | None = None,
    replicates: int = 1000,
) -> Gap:
    """The mean over prompts of the distance between female share and target.

    p_female: [N] in [0, 1]; prompts: [N] labels; target: one share, or `{prompt: share}`; with
    `held_out` shares are corrected (Rogan and Gladen). Images are drawn again within each prompt,
    held-out slices by subject. A mean of absolute values is biased upward by noise, and its
    bootstrap twice; so the low end is reflected, and zero where chance alone could make the mean,
    and `floor` stands beside it.

    Raises `DataError` as `proportions.corrected_share` does: on a judge no better than chance on
    the held-out slices, or in more than 5 % of the bootstrap replicates.
    """
    check_probabilities(p_female)
    names, codes = np.unique(np.asarray(prompts), return_inverse=True)
    targets = _targets(target, names)
    read = (np.asarray(p_female) > 0.5).astype(float)
    accuracies = class_accuracies(held_out.p_female, held_out.truth) if held_out else (1.0, 1.0)
    raw = _shares(read, codes)
    share = rogan_gladen(raw, *accuracies)
    draws = _draws(read, codes, held_out, rng, replicates)
    count = np.bincount(codes)
    floors = [sampling_floor(t, n, *accuracies) for t, n in zip(targets, count, strict=True)]
    check_defined(draws)
    low, high = np.nanquantile(draws, [0.025, 0.975], axis=0)
    table = pd.DataFrame(
        {
            "prompt": names,
            "n": count,
            "target": targets,
            "raw": raw,
            "share": share,
            "low": low,
            "high": high,
            "gap": np.abs(share - targets),
            "floor": floors,
        }
    )
    excess = beyond_chance(raw, count, targets, *accuracies)
    return Gap(_honest(draws, share, targets), float(np.mean(floors)), excess, table)


def sampling_floor(target: float, n: int, a_f: float = 1.0, a_m: float = 1.0) -> float:
    """E|corrected share - target| when the true share is `target` and `n` images are read: an exact
    binomial sum.
    """
    seen = a_f * target + (1 - a_m) * (1 - target)
    counts = np.arange(n + 1)
    return float(binom.pmf(counts, n, seen) @ np.abs(rogan_gladen(counts / n, a_f, a_m) - target))


def beyond_chance(raw, n, target, a_f: float = 1.0, a_m: float = 1.0) -> float:
    """Root of the mean over prompts of (share - target)^2 less its sampling variance; zero where
    chance explains all.

    raw, n, target: [prompts]. The mean square is unbiased, and a root mean square is never below
    the mean of |gap|.
    """
    raw, n = np.asarray(raw), np.asarray(n)
    gap = (raw + a_m - 1) / (a_f + a_m - 1) - target
    noise = raw * (1 - raw) / np.maximum(n - 1, 1) / (a_f + a_m - 1) ** 2
    return float(np.sqrt(max(0.0, np.mean(gap**2 - noise))))


def _targets(target, names) -> np.ndarray:
    """One target share a prompt.

    Raises `DataError` on a prompt without one or a share outside [0, 1].
    """
    if not isinstance(target, dict):
        target = dict.fromkeys(names, target)
    missing = [str(name) for name in names if name not in target]
    if missing:
        raise DataError(
            f"no target share for prompt {missing[0]!r}; give one share, or one for each prompt"
        )
    values = np.array([target[name] for name in names], float)
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError(f"target shares {values.tolist()} do not all lie in [0, 1]")
    return values


def _shares(read, codes) -> np.ndarray:
    return np.bincount(codes, read) / np.bincount(codes)


def _draws(read, codes, held_out, rng, replicates) -> np.ndarray:
    """Bootstrap replicates of the (corrected) share of each prompt: [replicates, prompts]."""
    images = Sample(read, codes, strata=codes)
    if held_out is None:
        return bootstrap(_shares, [images], rng, replicates)
    return bootstrap(_corrected_shares, [images, held_out.sample()], rng, replicates)


def _corrected_shares(read, codes, held_p, truth) -> np.ndarray:
    a_f, a_m = class_accuracies(held_p, truth)
    shares = _shares(read, codes)
    return rogan_gladen(shares, a_f, a_m) if a_f + a_m > 1 else np.full_like(shares, np.nan)


def _honest(draws, share, targets) -> Interval:
    """Interval of the mean gap: percentile above; below reflected, and zero where noise alone
    reaches as far.
    """
    estimate = float(np.abs(share - targets).mean())
    high = float(np.nanquantile(np.abs(draws - targets).mean(1), 0.975))
    chance = np.nanquantile(np.abs(draws - share).mean(1), 0.975)
    return Interval(estimate, 0.0 if estimate <= chance else max(0.0, 2 * estimate - high), high)
