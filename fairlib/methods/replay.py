"""The gradient through sampling, by replay.

With the denoiser's input detached at every step, x_0 = a * x_T + sum_t c_t * eps_t with numbers c_t
that the solver alone fixes. So dL/dtheta = sum_t c_t (d eps_t / d theta)^T dL/dx_0: sample without
gradient and keep the x_t, take dL/dx_0 once, and replay the steps one vector-Jacobian product at a
time. Memory does not grow with the number of steps, and a random part of the steps gives an
unbiased estimate. "Detached" is the adjusted gradient of Shen et al. 2024, sec. 4.2;
`weights="flat"` stands for their equal contribution of all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fairlib.errors import SettingsError
from fairlib.models.solvers import Solver

PredictNoise = Callable[[Tensor, int | Tensor, Tensor], Tensor]
SCHEMES = ("all", "stratified", "importance", "uniform", "early", "last")
WEIGHTS = ("natural", "flat")


@dataclass(frozen=True)
class Trajectory:
    """What replay needs of a sampling run: the denoiser's inputs, each `[N, C, H, W]`, their
    timesteps, and x_0.
    """

    inputs: tuple[Tensor, ...]
    timesteps: tuple[int, ...]
    conditioning: Tensor
    sample: Tensor


@torch.no_grad()
def record(
    solver: Solver,
    predict_noise: PredictNoise,
    noise: Tensor,
    conditioning: Tensor,
    micro_batch: int | None = None,
) -> Trajectory:
    """Sample from `noise` `[N, C, H, W]` without gradient, keeping every x_t.

    `predict_noise(latents, timestep, conditioning)` does classifier-free guidance itself;
    `conditioning` is `[N, ...]`. At most `micro_batch` images are sampled at once.
    """

    def sample(rows: slice) -> list[Tensor]:
        steps = list(
            solver.sample(lambda x, t: predict_noise(x, t, conditioning[rows]), noise[rows])
        )
        return [*(step.latents for step in steps), steps[-1].next_latents]

    parts = [sample(rows) for rows in chunks(len(noise), micro_batch)]
    *inputs, clean = (join(part) for part in zip(*parts, strict=True))
    return Trajectory(tuple(inputs), solver.timesteps, conditioning, clean)


def effective_coefficients(coefficients: np.ndarray, weights: str = "natural") -> np.ndarray:
    """w_t * c_t `[T]`: the chain's own c_t, or all of one magnitude with c_t's sign and the same
    absolute sum.
    """
    if weights not in WEIGHTS:
        raise SettingsError(f"step weights are {weights!r}; expected one of {', '.join(WEIGHTS)}")
    natural = np.asarray(coefficients, dtype=float)
    return natural if weights == "natural" else np.sign(natural) * np.abs(natural).mean()


def choose_steps(
    total: int,
    count: int,
    scheme: str,
    coefficients: np.ndarray,
    rng: torch.Generator,
    images: int = 1,
) -> np.ndarray:
    """Importance weights `[total, images]`: which `count` of `total` solver steps each image
    replays; 0 means not.

    "uniform": `count` steps without replacement; "stratified": one in each of `count` equal runs of
    steps; "importance": chances proportional to |coefficients| `[total]`, by systematic sampling
    whose shifts are themselves evenly spread over the images, so that together they cover all
    steps. These are unbiased for sum_t coefficient_t * (...), image by image. "early" takes the
    first, coarse steps only and is biased by intent: its weight makes up for the absolute
    coefficients left out. "last" takes the last, fine steps only, as they are: with one step, the
    exact gradient of DRaFT-1 (Clark et al. 2024, arXiv 2309.17400).
    """
    if scheme not in SCHEMES:
        raise SettingsError(f"replay scheme is {scheme!r}; expected one of {', '.join(SCHEMES)}")
    if not 1 <= count <= total:
        raise SettingsError(f"replay steps are {count}; expected 1 to {total}, the sampling steps")
    if scheme == "all" or count == total:
        return np.ones((total, images))
    size = np.abs(np.asarray(coefficients, dtype=float))
    if scheme == "importance":
        order = torch.randperm(images, generator=rng).numpy()
        shifts = (float(torch.rand(1, generator=rng)) + order / images) % 1
        return np.stack([systematic(size, count, shift) for shift in shifts], axis=1)
    weights = np.zeros((total, images))
    if scheme == "early":
        weights[:count] = size.sum() / size[:count].sum()
        return weights
    if scheme == "last":
        weights[-count:] = 1
        return weights
    for image in range(images):
        if scheme == "uniform":
            steps = torch.randperm(total, generator=rng)[:count].numpy()
            weights[steps, image] = total / count
        else:
            _one_in_each_run(weights[:, image], count, rng)
    return weights


def _one_in_each_run(weights: np.ndarray, count: int, rng: torch.Generator) -> None:
    edges = [round(k * len(weights) / count) for k in range(count + 1)]
    for start, end in pairwise(edges):
        weights[start + int(torch.randint(end - start, (1,), generator=rng))] = end - start


def systematic(size: np.ndarray, count: int, start: float) -> np.ndarray:
    """`count` distinct steps, each with a chance proportional to its `size` `[T]` but at most 1.

    The chances, cumulated, make a line of length `count`; points 1 apart, shifted by `start` in [0,
    1), pick the steps. Returns `[T]`: the inverse chance where picked, else 0.
    """
    chances = inclusion_chances(size, count)
    points = np.arange(count) + start
    steps = np.minimum(np.searchsorted(np.cumsum(chances), points, side="right"), len(size) - 1)
    weights = np.zeros(len(size))
    weights[steps] = 1 / chances[steps]
    return weights


def inclusion_chances(size: np.ndarray, count: int) -> np.ndarray:
    """Chances `[T]` in [0, 1] that sum to `count`, proportional to `size` `[T]` except where that
    would pass 1.
    """
    certain = np.zeros(len(size), dtype=bool)
    while True:
        scale = (count - certain.sum()) / max(size[~certain].sum(), np.finfo(float).tiny)
        chances = np.where(certain, 1.0, size * scale)
        if (chances <= 1 + 1e-12).all():
            return np.minimum(chances, 1.0)
        certain |= chances > 1


def replay(
    predict_noise: PredictNoise,
    trajectory: Trajectory,
    cotangent: Tensor,
    coefficients: np.ndarray,
    importance: np.ndarray,
    micro_batch: int | None = None,
) -> int:
    """Add the gradient of the loss to `.grad` of every parameter that `predict_noise` uses.

    `cotangent` is dL/dx_0 `[N, C, H, W]`; `coefficients` `[T]` as of `effective_coefficients`;
    `importance` `[T, N]` as of `choose_steps`. A call takes at most `micro_batch` images (None: N),
    each at its own step, for small calls are slow; the timestep is then a tensor of one an image.
    Returns the number of denoiser evaluations, one an image and step.

    book/diffusion.md, Eq. (eq-replay).
    """
    scales = torch.as_tensor(importance * np.asarray(coefficients)[:, None]).to(cotangent)
    steps, images = np.nonzero(importance)
    for part in chunks(len(steps), micro_batch or len(cotangent)):
        pairs = list(zip(steps[part], images[part], strict=True))
        rows = torch.as_tensor(images[part], device=cotangent.device)
        latents = torch.stack([trajectory.inputs[step][image] for step, image in pairs])
        times = [trajectory.timesteps[step] for step in steps[part]]
        time = times[0] if len(set(times)) == 1 else torch.tensor(times, device=latents.device)
        scale = scales[steps[part], images[part]].view(-1, *[1] * (cotangent.ndim - 1))
        prediction = predict_noise(latents, time, trajectory.conditioning[rows])
        prediction.backward(cotangent[rows] * scale)
    return len(steps)


def chunks(total: int, size: int | None) -> list[slice]:
    """Slices of at most `size` rows that cover `total`; one slice when `size` is None."""
    size = size or max(total, 1)
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def join(parts: Sequence[Tensor]) -> Tensor:
    """The `parts` in one tensor; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
