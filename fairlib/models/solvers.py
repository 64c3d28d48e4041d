"""Deterministic diffusion solvers as data: sampling is a linear recurrence around the denoiser.

With `alpha_i = sqrt(abar_t)` and `sigma_i = sqrt(1 - abar_t)` at the i-th chosen timestep, every
solver here reads

    x0_i    = data_i * x_i + output_i * model(x_i, t_i)
    x_{i+1} = carry_i * x_i + current_i * x0_i + previous_i * x0_{i-1}

where x0_i is the model's estimate of the clean latents,

so the last latents are linear in the noise and the model's outputs once the model's *input* is
detached.
DDIM: Song et al. 2021, eq. 12 with eta = 0. DPM-Solver++ 2M: Lu et al. 2022, algorithm 2; its
first-order step is DDIM.
No thresholding, no clipping: either would break the linearity that `fairlib.methods.replay` relies
on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fairlib.errors import SettingsError

PredictNoise = Callable[[Tensor, int], Tensor]
Values = TypeVar("Values", Tensor, np.ndarray)
SPACINGS = ("trailing", "leading", "linspace")
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class SamplingStep:
    """One solver step: the denoiser saw `latents` at `timestep`; `next_latents` of the last step is
    x_0.
    """

    index: int
    timestep: int
    latents: Tensor
    noise_prediction: Tensor
    data_prediction: Tensor
    next_latents: Tensor


@dataclass(frozen=True)
class Solver:
    """A solver of T steps as coefficients, each an array of shape `[T]`; `timesteps` descend."""

    name: str
    timesteps: tuple[int, ...]
    data: np.ndarray
    output: np.ndarray
    carry: np.ndarray
    current: np.ndarray
    previous: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)

    def sample(self, predict_noise: PredictNoise, noise: Tensor) -> Iterator[SamplingStep]:
        """Yield one `SamplingStep` a solver step, from `noise` `[N, C, H, W]` (x_T) to x_0."""
        latents, before = noise, None
        for index, timestep in enumerate(self.timesteps):
            prediction = predict_noise(latents, timestep)
            estimate, following = self.advance(index, latents, prediction, before)
            yield SamplingStep(index, timestep, latents, prediction, estimate, following)
            latents, before = following, estimate

    def run(self, predict_noise: PredictNoise, noise: Tensor) -> Tensor:
        """x_0 alone; `noise` as in `sample`."""
        latents = noise
        for step in self.sample(predict_noise, noise):
            latents = step.next_latents
        return latents

    def advance(
        self, index: int, latents: Values, prediction: Values, before: Values | None
    ) -> tuple[Values, Values]:
        """`(x0_i, x_{i+1})` of step `index`; `before` is x0_{i-1}, or None at the first step."""
        estimate = float(self.data[index]) * latents + float(self.output[index]) * prediction
        following = float(self.carry[index]) * latents + float(self.current[index]) * estimate
        if before is not None and self.previous[index]:
            following = following + float(self.previous[index]) * before
        return estimate, following

    def chain_coefficients(self) -> tuple[float, np.ndarray]:
        """`(a, c [T])` with x_0 = a * x_T + sum_t c_t * model_t when the model's inputs are held
        fixed.

        Found by pushing unit vectors through the very recurrence that samples.

        book/diffusion.md, Eq. (eq-sum).
        """
        basis = np.eye(len(self) + 1)
        latents, before = basis[0], None
        for index in range(len(self)):
            before, latents = self.advance(index, latents, basis[index + 1], before)
        return float(latents[0]), latents[1:].copy()


def ddim(
    alphas_cumprod: Tensor, steps: int, spacing: str = "trailing", prediction_type: str = "epsilon"
) -> Solver:
    """Deterministic DDIM over `steps` of the `[T_train]` schedule; the last step lands on noise
    level zero.

    Every step leads to the noise level of the next timestep, with one exception: with "linspace",
    as in diffusers, it leads `T_train // steps` timesteps down, which are not those that follow.
    Equal to diffusers' `DDIMScheduler`, but with "trailing" only where `steps` divides T_train (in
    other cases diffusers takes that fixed stride there too).

    book/diffusion.md, Eq. (eq-ddim).
    """
    return _build("ddim", alphas_cumprod, steps, spacing, prediction_type, order=1)


def dpm_solver_2m(
    alphas_cumprod: Tensor, steps: int, spacing: str = "trailing", prediction_type: str = "epsilon"
) -> Solver:
    """DPM-Solver++ 2M (midpoint) over `steps` of the `[T_train]` schedule.

    The last step is first order and lands on noise level zero, where a second-order step is
    undefined.
    """
    return _build("dpm_solver_2m", alphas_cumprod, steps, spacing, prediction_type, order=2)


def choose_timesteps(train_steps: int, steps: int, spacing: str, order: int = 1) -> np.ndarray:
    """`steps` descending timesteps in `[0, train_steps)`.

    "trailing" (the default: it starts at pure noise, Lin et al. 2024, table 2), "leading" and
    "linspace" are the timesteps of diffusers, whose DPM-Solver++ reserves one interval more than
    its DDIM does; hence `order`.
    """
    if spacing not in SPACINGS:
        raise SettingsError(f"spacing is {spacing!r}; expected one of {', '.join(SPACINGS)}")
    if not 1 <= steps <= train_steps:
        raise SettingsError(f"sampling steps are {steps}; expected 1 to {train_steps}")
    if spacing == "trailing":
        return np.round(np.arange(steps, 0, -1) * (train_steps / steps)).astype(int) - 1
    points = steps + (order > 1)
    if spacing == "leading":
        return (np.arange(points) * (train_steps // points))[::-1][:steps].copy()
    return np.linspace(0, train_steps - 1, points).round()[::-1][:steps].astype(int)


def _build(
    name: str, alphas_cumprod: Tensor, steps: int, spacing: str, prediction_type: str, order: int
) -> Solver:
    if prediction_type not in PREDICTION_TYPES:
        raise SettingsError(f"prediction_type is {prediction_type!r}; expected {PREDICTION_TYPES}")
    schedule = torch.as_tensor(alphas_cumprod).detach().double().cpu().numpy()
    timesteps = choose_timesteps(len(schedule), steps, spacing, order)
    following = np.append(timesteps[1:], -1)
    if order == 1 and spacing == "linspace":
        following = timesteps - len(schedule) // steps
    signal, reached = schedule[timesteps], np.where(following < 0, 1.0, schedule[following])
    # x0 = data x + output model: (x - sigma eps) / alpha, or alpha x - sigma v (Salimans & Ho 2022)
    with np.errstate(all="ignore"):
        alpha, sigma = np.sqrt(signal), np.sqrt(1 - signal)
        noise_predicted = prediction_type == "epsilon"
        data, output = (1 / alpha, -sigma / alpha) if noise_predicted else (alpha, -sigma)
        carry = np.sqrt(1 - reached) / sigma
        pull = np.sqrt(reached) - alpha * carry
        extrapolation = np.zeros(steps)
        if order == 2:
            extrapolation = _extrapolation(np.append(alpha, 1.0), np.append(sigma, 0.0))
        current, previous = pull * (1 + extrapolation), -pull * extrapolation
    coefficients = (data, output, carry, current, previous)
    if not np.isfinite(coefficients).all():
        what = f"this schedule gives {prediction_type} coefficients that are not finite"
        raise SettingsError(f"{what}: its alphas_cumprod must lie above 0 and below 1")
    return Solver(name, tuple(timesteps.tolist()), *coefficients)


def _extrapolation(alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """1 / (2 r_i), r_i the ratio of the last two steps in log signal-to-noise; 0 where the step is
    first order.
    """
    log_snr = np.log(alpha) - np.log(sigma)
    step = np.diff(log_snr)
    factor = np.zeros(len(step))
    second = np.isfinite(step[1:])
    factor[1:][second] = step[1:][second] / (2 * step[:-1][second])
    return factor
