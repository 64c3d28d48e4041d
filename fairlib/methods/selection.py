"""Generate and keep: reach a target by choosing among a model's images; the model stays as it is.

The null hypothesis of all tuning: RoentGen-v2 (arXiv 2508.16783; its released script
`run_inference_w_quality_check.py`) generates, classifies and keeps only images that agree with the
request. Two rules, on the logits that the tuning classifier gives:

    class       accept an image of group k with probability (q_k / p_k) / max_j (q_j / p_j), where p
                are the base model's classified shares and q the target's: accept/reject with the
                shares q exactly, at an acceptance rate of 1 / max_j (q_j / p_j)
    transport   of a pool of images, keep those whose logits lie nearest to the target's: the
                assignment to its quantiles (two groups) or to a sample of it (more) at least total
                squared distance

Neither rule looks at anything but the classifier: what it gets wrong, they get wrong. Logits are
`[N]` (positive for the first of two groups) or `[N, K]`, as everywhere in `methods`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fairlib.errors import SettingsError
from fairlib.methods.base_cache import ImageFunction
from fairlib.methods.targets import Target, check_shares, class_logits, classes_of, target_of_each
from fairlib.models.generator import Generator
from fairlib.rng import Stream, numpy_rng

RULES = ("class", "transport")
Draw = Callable[[int, int], tuple[Tensor, Tensor]]


def group_places(logits: Tensor) -> np.ndarray:
    """The place `[N]` of each image's classified group among a target's `groups`."""
    classes = classes_of(logits).cpu().numpy()
    return 1 - classes if logits.ndim == 1 else classes


def acceptance(
    base: ArrayLike, shares: ArrayLike, strength: float = 1.0
) -> tuple[np.ndarray, float]:
    """`(probability of accepting an image of each group [K], the share of draws accepted)`.

    `base` `[K]`: the base model's shares; `shares` `[K]`: the target's; `strength` in [0, 1]: how
    far to go from the first (every image is accepted) to the second. Raises `SettingsError` when
    the target has a group that the base model never generates.
    """
    base, shares = check_shares(base, "base shares"), check_shares(shares)
    if not 0 <= strength <= 1:
        raise SettingsError(f"strength is {strength}; expected in [0, 1]")
    if ((base == 0) & (shares > 0)).any():
        raise SettingsError(
            f"base shares {base.tolist()} are zero where the target's are {shares.tolist()}: no "
            "draw is ever of that group, so none can be kept; tune the model instead"
        )
    aim = (1 - strength) * base + strength * shares
    ratio = np.divide(aim, base, out=np.zeros_like(base), where=base > 0)
    return ratio / ratio.max(), float(1 / ratio.max())


def choose_noises(logits: Tensor, target: Target, count: int) -> np.ndarray:
    """Which `count` of the images with `logits` `[N]` or `[N, K]` to use, ascending rows: those at
    the least total squared distance to `count` points of the target (book/paper.md, Eq.
    (eq-choose)). Deterministic.

    Parameters
    ----------
    logits
        Of the tuning classifier on images of one prompt, such as `BaseCache.all_logits` gives.
    target
        With the logits of real images.
    count
        How many to use. The method's strength is N / count, the draws for each image used: at 1
        nothing is chosen.

    Raises
    ------
    SettingsError
        Fewer images than `count`, or a target without logits.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    if not 1 <= count <= len(logits):
        raise SettingsError(f"{count} images cannot be chosen among {len(logits)}")
    two, levels = logits.ndim == 1, (np.arange(count) + 0.5) / count
    points = target.distribution().quantile(levels)[:, None] if two else target.sample(count)
    values = logits.detach().double().cpu().numpy().reshape(len(logits), -1)
    return np.sort(linear_sum_assignment(cdist(points, values, "sqeuclidean"))[1])


@dataclass(frozen=True)
class Kept:
    """A kept image: `[C, H, W]` in [-1, 1], its prompt's place, its noise's index and its logits.

    draws: images of this prompt generated up to this one ("class") or for all of its kept images
    ("transport").
    """

    prompt: int
    noise: int
    image: Tensor
    logits: Tensor
    draws: int


def generate_and_keep(
    generator: Generator,
    classifier: ImageFunction,
    prompts: Sequence[str] | Mapping[str, str],
    target: Target | Mapping[str, Target] | Sequence[Target],
    count: int,
    *,
    base_shares: Sequence[Mapping[str, float]] = (),
    rule: str = "class",
    strength: float = 1.0,
    draws_per_image: float = 4.0,
    seed: int = 0,
    block: int = 16,
    **sampling: Any,
) -> Iterator[Kept]:
    """Yield `count` kept images a prompt, prompt by prompt, drawing noises 0, 1, ... of `seed`.

    Parameters
    ----------
    generator, classifier, prompts, target
        As of `tune`; the classifier needs no gradient, and gets images in parts of `micro_batch`.
    count
        Images to keep of each prompt.
    base_shares
        The base model's shares at each prompt (`targets.group_shares` of its logits), for the rule
        "class".
    rule
        "class" or "transport", see the module.
    strength
        Of "class", in [0, 1]: from the base shares to the target's.
    draws_per_image
        Of "transport": the size of the pool over `count`.
    seed
        Of the noises and of the acceptance.
    block
        Images generated between two looks at whether "class" has enough; which are kept does not
        depend on it.
    sampling
        For `Generator.sample`, such as `guidance_scale` and `micro_batch`.

    Raises
    ------
    SettingsError
        As `acceptance` and `choose_noises`; for less than one draw an image; for logits that are
        not finite or of another number of groups than the target; and when ten times the expected
        draws do not suffice: the base shares are then wrong.
    """
    targets = target_of_each(prompts, target)
    if rule not in RULES:
        raise SettingsError(f"rule is {rule!r}; expected one of {', '.join(RULES)}")
    if not 1 <= draws_per_image < math.inf:
        raise SettingsError(f"draws_per_image is {draws_per_image}; give a number from 1")
    if rule == "class" and len(base_shares) != len(targets):
        raise SettingsError(f"{len(base_shares)} base shares for {len(targets)} prompts")

    @torch.no_grad()
    def draw(prompt: str, first: int, size: int) -> tuple[Tensor, Tensor]:
        noise = generator.noise(seed, list(range(first, first + size)))
        images = generator.sample([prompt] * size, noise=noise, **sampling)
        parts = images.split(sampling.get("micro_batch") or size)
        logits = torch.cat([classifier(part) for part in parts])
        if not bool(logits.isfinite().all()):
            raise SettingsError(f"{prompt!r}: logits hold NaN or infinity; try fp32")
        return images, class_logits(logits, len(targets[0].groups))

    for place, (prompt, each) in enumerate(zip(prompts, targets, strict=True)):
        if rule == "class":
            base = [base_shares[place][group] for group in each.groups]
            accepting = acceptance(base, each.proportions, strength)
            rng = numpy_rng(seed, Stream.KEEPING, place)
            drawn = _accepted(partial(draw, prompt), accepting, count, block, rng)
        else:
            images, logits = draw(prompt, 0, math.ceil(count * draws_per_image))
            rows = choose_noises(logits, each, count).tolist()
            drawn = ((row, images[row], logits[row], len(images)) for row in rows)
        yield from (Kept(place, *parts) for parts in drawn)


def _accepted(
    draw: Draw,
    accepting: tuple[np.ndarray, float],
    count: int,
    block: int,
    rng: np.random.Generator,
) -> Iterator[tuple[int, Tensor, Tensor, int]]:
    """Draw blocks until `count` images are accepted, giving all but the first part of `Kept`."""
    (chances, rate), kept, draws = accepting, 0, 0
    while kept < count:
        if draws > 10 * (count / rate + block):
            raise SettingsError(
                f"{draws} draws gave {kept} of {count} images and {count / rate:.0f} were expected "
                "to suffice; count the base model's shares again, at this prompt and guidance"
            )
        images, logits = draw(draws, block)
        accept = rng.random(block) < chances[group_places(logits)]
        for row in np.flatnonzero(accept)[: count - kept].tolist():
            kept += 1
            yield draws + row, images[row], logits[row], draws + row + 1
        draws += block
