"""Fair Bayesian Perturbation (Luo et al., arXiv 2412.20374): noise on the weights of the samples,
steered by a gap.

    w_i = 1 + sum_a sigma[g_a(i)] xi_(i,a),  xi ~ N(0, 1)
    minimise over the denoiser  mean_i w_i loss_i
    choose sigma in [0, 1]^d for a small gap between the group losses (a Gaussian process and its
    upper bound); after every step  sigma <- rho sigma + (1 - rho) U(0, 1)^d

E[w_i] = 1 whatever sigma is: in expectation the gradient is the plain one, and sigma moves its
variance alone. What this method does beyond plain fine-tuning it does through noise, so
`RandomSigma` is the control it needs.

Two forms behind one interface (`PerturbationSettings.form`):

* released: as the authors' code. Weights are not bounded: at sigma = 1 and three attributes 28 %
  are negative, which teaches the denoiser to be worse at those samples. The outcome is minus the
  gap of the training batch, one noisy value, and an attribute that lacks a group in the batch
  counts 0, the best there is. Outcomes are forgotten at every choice. One thing is not copied:
  their step count restarts each epoch, and so does the window.
* repaired: weights max(0, 1 + noise) / E[max(0, 1 + noise)], not negative and of mean one for
  every sample whatever its groups. The outcome is how much the gap fell since the last measurement
  on a fixed probe that holds every group, with the same noise each time (the gap itself follows
  training, not sigma). The last `history` outcomes are kept.

In both forms all state is in `state_dict`, and sigma and noise are functions of (seed, step) and
that state: a killed run goes on to the same bits, and processes that are given the same gathered
losses hold the same sigma. Outcomes are standardised for the process; BoTorch of the authors' time
did so only when told to.

The Gaussian process

    f ~ GP(0, s^2 Matern-5/2, one length for each axis),  y = f(x) + noise,  y standardised
    next x = argmax over [0, 1]^d of  mean(x) + sqrt(beta) * standard deviation of f(x)

is scikit-learn's. The kernel, the priors of its hyperparameters and the convention sqrt(beta) are
the defaults of BoTorch's `SingleTaskGP` and `UpperConfidenceBound` up to version 0.11 (before
September 2024), taken to be those of Luo et al., who use these two classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fairlib.errors import DataError, SettingsError
from fairlib.methods.group_weights import (
    attribute_gaps,
    checked_groups,
    checked_sizes,
    group_means,
    loss_gap,
    offsets,
    require_keys,
)
from fairlib.rng import Stream, numpy_rng, torch_rng
from fairlib.settings import Bound, Checked, Count, Fraction, Natural, Weight

if TYPE_CHECKING:
    from sklearn.gaussian_process import GaussianProcessRegressor

LENGTH, SCALE, NOISE = (3.0, 6.0), (2.0, 0.15), (1.1, 0.05)
"""Shape and rate of the gamma priors on lengths, on s^2 and on the variance of the noise."""
LEAST_NOISE = 1e-4
RESTARTS, RAW = 5, 20  # as released


@dataclass(frozen=True)
class PerturbationSettings(Checked):
    """Settings of the perturbation; the defaults are the released ones where the release has them.

    window: steps from one choice of sigma to the next. exploitation: rho. beta: of the upper bound,
    mean + sqrt(beta) sd.
    initial_sigma: of every group until the first choice. history: outcomes kept across choices
    (repaired form).
    """

    form: Literal["released", "repaired"] = "released"
    window: Count = 30
    exploitation: Fraction = 0.95
    beta: Weight = 0.1
    initial_sigma: Fraction = 1.0
    history: Annotated[int, Bound(lambda value: value >= 2, "at least 2")] = 60
    seed: Natural = 0


class NoisyWeights:
    """Noise on the weights, and sigma's way from one candidate to the next; who chooses candidates
    is the subclass's matter.
    """

    def __init__(self, sizes: Sequence[int], settings: PerturbationSettings | None = None):
        settings = settings or PerturbationSettings()
        self.sizes, self.settings = checked_sizes(sizes), settings
        self.observes: Literal["batch", "probe"] = (
            "batch" if settings.form == "released" else "probe"
        )
        self.candidate = torch.full((sum(self.sizes),), settings.initial_sigma, dtype=torch.float64)
        self.since = 0
        # spares the way from the candidate; the result is the same
        self._reached = (self.candidate, 0, self.candidate)

    def sigma(self, step: int) -> Tensor:
        """Standard deviations of the 0-based `step`, float64 [sum of sizes]: the candidate, moved
        by every step since.

        Raises `SettingsError` for a step before the last choice, whose sigma is gone.
        """
        if step < self.since:
            raise SettingsError(f"sigma of step {step} is gone; last chosen at step {self.since}")
        rho, (candidate, reached, sigma) = self.settings.exploitation, self._reached
        if candidate is not self.candidate or reached > step:
            reached, sigma = self.since, self.candidate
        for past in range(reached, step):
            rng = torch_rng(self.settings.seed, Stream.SIGMA_DRIFT, past)
            drawn = torch.rand(len(sigma), dtype=torch.float64, generator=rng)
            sigma = rho * sigma + (1 - rho) * drawn
        self._reached = (self.candidate, step, sigma)
        return sigma.clone()

    def weights(self, groups: Tensor, step: int) -> Tensor:
        """Weights, float64 [B], of samples with codes [B, A].

        Raises `DataError` on codes outside the sizes.

        book/fairdiffusion.md, Eq. (eq-fbp).
        """
        codes = checked_groups(groups, self.sizes)
        rng = torch_rng(self.settings.seed, Stream.WEIGHT_NOISE, step)
        noise = torch.randn(codes.shape, dtype=torch.float64, generator=rng)
        each = self.sigma(step)[codes + offsets(self.sizes)]
        raw = 1 + (each * noise).sum(1)
        if self.settings.form == "released":
            return raw
        return positive_weights(raw, each.square().sum(1).sqrt())

    def state_dict(self) -> dict[str, Tensor | int | float]:
        """The candidate, and the step at which it was chosen."""
        return {"candidate": self.candidate.clone(), "since": self.since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `WeightsError` when `state` is that of another method."""
        require_keys(state, list(self.state_dict()), type(self).__name__)
        self.candidate = state["candidate"].detach().cpu().double().clone()
        self.since = int(state["since"])

    def _due(self, step: int) -> bool:
        return step - self.since >= self.settings.window

    def _choose(self, candidate: Tensor, step: int) -> None:
        self.candidate, self.since = candidate, step


class FairBayesianPerturbation(NoisyWeights):
    """The weights of Luo et al., in the form that the settings name. `sizes`: values of each
    attribute, (3, 2, 2) there.

    The repaired form observes the probe; it needs `finetune(..., probe=...)`.
    """

    def __init__(self, sizes: Sequence[int], settings: PerturbationSettings | None = None):
        super().__init__(sizes, settings)
        self.last = -1
        self.previous: float | None = None
        self.tried = torch.zeros(0, sum(self.sizes), dtype=torch.float64)
        self.outcomes = torch.zeros(0, dtype=torch.float64)

    def observe(self, losses: Tensor, groups: Tensor, step: int) -> None:
        """Note the outcome of the sigma in use since the last call; choose again after a window.

        losses: [B], unweighted, of the batch (released) or the probe (repaired) after the 0-based
        `step`. Raises `SettingsError` when steps do not increase, `DataError` on losses that are
        not finite or a probe without a group.
        """
        if step <= self.last:
            what = f"step {step} was observed already (last: {self.last})"
            raise SettingsError(f"{what}; resume with the state saved after it")
        outcome = self._outcome(losses, groups)
        if outcome is not None:
            passed = range(max(self.last + 1, self.since), step + 1)
            used = torch.stack([self.sigma(past) for past in passed]).mean(0)
            self.tried = torch.cat([self.tried, used[None]])
            self.outcomes = torch.cat([self.outcomes, torch.tensor([outcome], dtype=torch.float64)])
        self.last = step
        if self._due(step):
            self._choose(self._best(step), step)
            kept = 0 if self.settings.form == "released" else self.settings.history
            self.tried, self.outcomes = (
                held[max(0, len(held) - kept) :] for held in (self.tried, self.outcomes)
            )

    def _outcome(self, losses: Tensor, groups: Tensor) -> float | None:
        if self.settings.form == "released":
            return -loss_gap(losses, groups, self.sizes)
        gaps = attribute_gaps(group_means(losses, groups, self.sizes), self.sizes)
        if bool(gaps.isnan().any()):
            what = f"the probe lacks a group of attribute {int(gaps.isnan().nonzero()[0])}"
            remedy = "take one with every group, see methods.finetuning.choose_probe"
            raise DataError(f"{what}; {remedy}")
        before, self.previous = self.previous, float(gaps.sum())
        return None if before is None else before - self.previous

    def _best(self, step: int) -> Tensor:
        """The maximum of the upper bound; sigma as it is while there is nothing to learn from."""
        if len(self.outcomes) < 2 or float(self.outcomes.max() - self.outcomes.min()) == 0:
            return self.sigma(step)
        rng = numpy_rng(self.settings.seed, Stream.SIGMA_SEARCH, step)
        process = GaussianProcess(self.tried.numpy(), self.outcomes.numpy())
        return torch.from_numpy(maximise_upper_bound(process, self.settings.beta, rng))

    def state_dict(self) -> dict[str, Tensor | int | float]:
        """The candidate, and all outcomes that the next choice rests on."""
        previous = [] if self.previous is None else [self.previous]
        return super().state_dict() | {
            "last": self.last,
            "tried": self.tried.clone(),
            "outcomes": self.outcomes.clone(),
            "previous": torch.tensor(previous, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `WeightsError` when `state` is that of another method."""
        super().load_state_dict(state)
        self.last = int(state["last"])
        self.tried, self.outcomes = (
            state[name].detach().cpu().double().clone() for name in ("tried", "outcomes")
        )
        self.previous = float(state["previous"][0]) if len(state["previous"]) else None


def positive_weights(raw: Tensor, deviation: Tensor) -> Tensor:
    """max(0, raw) / E[max(0, raw)] for raw ~ N(1, deviation^2), both [B]: not negative and of mean
    one, each by itself.

    E[max(0, 1 + s z)] = Phi(1/s) + s phi(1/s). Dividing by the mean of the batch instead would take
    weight away from the samples with small sigma, for E[max(0, 1 + s z)] grows with s.
    """
    inverse = 1 / deviation.clamp_min(1e-12)
    density = torch.exp(-inverse.square() / 2) / math.sqrt(2 * math.pi)
    return raw.clamp_min(0) / (torch.special.ndtr(inverse) + deviation * density)


class RandomSigma(NoisyWeights):
    """The perturbation without its optimiser: candidates are drawn from U(0, 1)^d, all else is the
    same.

    Same form, same noise xi at the same seed, same first window, same drift; only the candidates of
    later windows differ, so the difference to `FairBayesianPerturbation` is what the optimiser
    does. `fixed`: sigma of every group in every step instead, without drift; 1.0 is the authors'
    own ablation, normal noise of unit variance without an optimiser.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        settings: PerturbationSettings | None = None,
        fixed: float | None = None,
    ):
        super().__init__(sizes, settings)
        if fixed is not None and not 0 <= fixed < math.inf:
            raise SettingsError(f"fixed sigma is {fixed}; expected a deviation of at least 0")
        self.fixed = fixed
        self.observes = "batch" if fixed is not None else self.observes

    def sigma(self, step: int) -> Tensor:
        """Standard deviations, float64 [sum of sizes]: the drifting candidate, or `fixed`."""
        if self.fixed is None:
            return super().sigma(step)
        return torch.full_like(self.candidate, self.fixed)

    def observe(self, losses: Tensor, groups: Tensor, step: int) -> None:
        """Draw a new candidate when the window is over; the losses do not matter."""
        if self.fixed is None and self._due(step):
            rng = torch_rng(self.settings.seed, Stream.SIGMA_CANDIDATES, step)
            drawn = torch.rand(len(self.candidate), dtype=torch.float64, generator=rng)
            self._choose(drawn, step)


class GaussianProcess:
    """The process fitted to x [n, d] in [0, 1] and y [n], by the highest posterior density of its
    hyperparameters.

    Raises `DataError` when shapes differ, a value is not finite, or all y are the same (there is
    nothing to fit).
    """

    def __init__(self, x: ArrayLike, y: ArrayLike):
        x, y = np.asarray(x, float), np.asarray(y, float)
        finite = np.isfinite(x).all() and np.isfinite(y).all()
        if x.ndim != 2 or y.shape != (len(x),) or not finite:
            raise DataError(f"points {x.shape} and outcomes {y.shape}: expected finite [n, d], [n]")
        if len(y) < 2 or np.ptp(y) == 0:
            raise DataError(f"{len(y)} outcomes without spread; a process needs two that differ")
        self.dimension, self.x = x.shape[1], x
        self.centre, self.spread = y.mean(), y.std(ddof=1)
        self.regressor = _regressor(self.dimension)
        # a hyperparameter at the end of its range need not concern the caller
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.regressor.fit(x, (y - self.centre) / self.spread)

    @property
    def hyperparameters(self) -> np.ndarray:
        """[s^2, d lengths, variance of the noise], in units of standardised y."""
        return np.exp(self.regressor.kernel_.theta)

    def predict(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of f (without the noise of y) at x [m, d], both [m], in the
        unit of y.
        """
        mean, deviation = self.regressor.predict(np.asarray(x, float), return_std=True)
        noiseless = np.sqrt(np.maximum(deviation**2 - self.hyperparameters[-1], 1e-12))
        return self.centre + self.spread * mean, self.spread * noiseless

    def upper_bound(self, x: ArrayLike, beta: float) -> np.ndarray:
        """mean + sqrt(beta) * standard deviation at x [m, d]."""
        mean, deviation = self.predict(x)
        return mean + np.sqrt(beta) * deviation


def maximise_upper_bound(
    process: GaussianProcess,
    beta: float,
    rng: np.random.Generator,
    restarts: int = RESTARTS,
    raw: int = RAW,
) -> np.ndarray:
    """The point [d] of the unit cube with the highest upper bound: L-BFGS-B from the best
    `restarts` of `raw` random points and the points already seen.
    """
    from scipy.optimize import minimize

    starts = np.concatenate([rng.random((raw, process.dimension)), process.x])
    order = np.argsort(-process.upper_bound(starts, beta), kind="stable")
    best, height = starts[order[0]], -np.inf
    how: Any = {"method": "L-BFGS-B", "bounds": [(0.0, 1.0)] * process.dimension, "jac": True}
    for start in starts[order[:restarts]]:
        optimum = minimize(_value_and_slope, start, args=(process, beta), **how)
        if -optimum.fun > height:
            best, height = np.clip(optimum.x, 0.0, 1.0), -optimum.fun
    return best


def _value_and_slope(
    x: np.ndarray, process: GaussianProcess, beta: float, width: float = 1e-5
) -> tuple[float, np.ndarray]:
    """The negative bound, in units of the spread of y, and its slope by central differences, in one
    prediction.
    """
    steps = width * np.eye(len(x))
    points = np.concatenate([x[None], x + steps, x - steps])
    values = -process.upper_bound(points, beta) / process.spread
    return values[0], (values[1 : len(x) + 1] - values[len(x) + 1 :]) / (2 * width)


def _regressor(dimension: int) -> GaussianProcessRegressor:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(
        np.full(dimension, 0.5), (5e-3, 20.0), nu=2.5
    ) + WhiteKernel(0.5, (LEAST_NOISE, 50.0))
    return GaussianProcessRegressor(kernel, alpha=1e-10, optimizer=_fit_with_priors)


def _fit_with_priors(
    objective: Callable[..., tuple[float, np.ndarray]], start: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, float]:
    """scikit-learn's hook: minimise the negative log likelihood less the log priors over the log
    hyperparameters.
    """
    from scipy.optimize import minimize

    shape, rate = np.array([SCALE, *[LENGTH] * (len(start) - 2), NOISE]).T

    def negative(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = objective(theta, eval_gradient=True)
        return value - log_prior(theta), slope - ((shape - 1) - rate * np.exp(theta))

    optimum = minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return optimum.x, optimum.fun


def log_prior(theta: np.ndarray) -> float:
    """Log density of the gamma priors at log hyperparameters `theta` (s^2, lengths, noise), up to a
    constant.
    """
    shape, rate = np.array([SCALE, *[LENGTH] * (len(theta) - 2), NOISE]).T
    return float(((shape - 1) * theta - rate * np.exp(theta)).sum())
