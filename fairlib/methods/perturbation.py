"""Fair Bayesian Perturbation (Luo et al., arXiv 2412.20374): noise on the weights of the samples,
steered by a gap.

    w_i = 1 + sum_a sigma[g_a(i)] xi_(i,a),  xi ~ N(0, 1)       minimise over the denoiser  mean_i
    w_i loss_i choose sigma in [0, 1]^d to make the gap between the group losses small: a Gaussian
    process and its upper bound after every step  sigma <- rho sigma + (1 - rho) U(0, 1)^d

E[w_i] = 1 whatever sigma is: in expectation the gradient is the plain one, and sigma moves its
variance alone. What this method does beyond plain fine-tuning it does through noise, so
`methods.reweighting.RandomSigma` is the control it needs.

Two forms behind one interface (`PerturbationSettings.form`):

released  As the authors' code. Weights are not bounded: at sigma = 1 and three attributes 28 % are
negative, which teaches
          the denoiser to be worse at those samples. The outcome is minus the gap of the training
          batch, one noisy value, and an attribute that lacks a group in the batch counts 0, the
          best there is. Outcomes are forgotten at every choice. One thing is not copied: their step
          count restarts each epoch, and so does the window.
repaired  Weights max(0, 1 + noise) / E[max(0, 1 + noise)]: not negative, mean one for every sample
whatever its groups.
          The outcome is how much the gap fell on a fixed probe that holds every group, with the
          same noise each time, since the last look (the gap itself follows training, not sigma).
          The last `history` outcomes are kept.

In both forms all state is in `state_dict`, and sigma and noise are functions of (seed, step) and
that state: a killed run goes on to the same bits, and processes that are given the same gathered
losses hold the same sigma. Outcomes are standardised for the process; BoTorch of the authors' time
did so only when told to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fairlib.errors import DataError, SettingsError
from fairlib.methods.bayesian import GaussianProcess, maximise_upper_bound
from fairlib.methods.sample_weights import (
    SampleWeights,
    attribute_gaps,
    checked_groups,
    checked_sizes,
    group_means,
    loss_gap,
    offsets,
    require_keys,
)
from fairlib.models.training import generator_for

__all__ = [
    "FairBayesianPerturbation",
    "NoisyWeights",
    "PerturbationSettings",
    "SampleWeights",
    "effective_sigma",
    "left_of_candidate",
    "positive_weights",
    "share_negative",
]


@dataclass(frozen=True)
class PerturbationSettings:
    """Settings of the perturbation; the defaults are the released ones where the release has them.

    window: steps from one choice of sigma to the next. exploitation: rho. beta: of the upper bound,
    mean + sqrt(beta) sd.
    initial_sigma: of every group until the first choice. history: outcomes kept across choices
    (repaired form).
    """

    form: Literal["released", "repaired"] = "released"
    window: int = 30
    exploitation: float = 0.95
    beta: float = 0.1
    initial_sigma: float = 1.0
    history: int = 60
    seed: int = 0

    def __post_init__(self):
        for name, holds, wanted in (
            ("form", self.form in ("released", "repaired"), "'released' or 'repaired'"),
            ("window", self.window >= 1, "at least 1"),
            ("exploitation", 0 <= self.exploitation <= 1, "in [0, 1]"),
            ("beta", self.beta >= 0, "at least 0"),
            ("initial_sigma", 0 <= self.initial_sigma <= 1, "in [0, 1]"),
            ("history", self.history >= 2, "at least 2"),
        ):
            if not holds:
                raise SettingsError(
                    f"PerturbationSettings.{name} is {getattr(self, name)!r}; expected {wanted}"
                )


class NoisyWeights:
    """Noise on the weights, and sigma's way from one candidate to the next; who chooses candidates
    is the subclass's matter.
    """

    def __init__(self, sizes: Sequence[int], settings: PerturbationSettings | None = None):
        settings = settings or PerturbationSettings()
        self.sizes, self.settings = checked_sizes(sizes), settings
        self.observes = "batch" if settings.form == "released" else "probe"
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
            raise SettingsError(
                f"sigma of step {step} is gone: the last choice was at step {self.since}"
            )
        rho, (candidate, reached, found) = self.settings.exploitation, self._reached
        if candidate is not self.candidate or reached > step:
            reached, found = self.since, self.candidate
        for past in range(reached, step):
            drawn = torch.rand(
                len(found),
                dtype=torch.float64,
                generator=generator_for(self.settings.seed, 23, past),
            )
            found = rho * found + (1 - rho) * drawn
        self._reached = (self.candidate, step, found)
        return found.clone()

    def weights(self, groups, step: int) -> Tensor:
        """Weights, float64 [B], of samples with codes [B, A].

        Raises `DataError` on codes outside the sizes.
        """
        codes = checked_groups(groups, self.sizes)
        noise = torch.randn(
            codes.shape, dtype=torch.float64, generator=generator_for(self.settings.seed, 22, step)
        )
        each = self.sigma(step)[codes + offsets(self.sizes)]
        raw = 1 + (each * noise).sum(1)
        return (
            raw
            if self.settings.form == "released"
            else positive_weights(raw, each.square().sum(1).sqrt())
        )

    def state_dict(self) -> dict:
        return {"candidate": self.candidate.clone(), "since": self.since}

    def load_state_dict(self, state: dict) -> None:
        """Raises `WeightsError` when `state` is that of another arm."""
        require_keys(state, list(self.state_dict()), type(self).__name__)
        self.candidate, self.since = (
            state["candidate"].detach().cpu().double().clone(),
            int(state["since"]),
        )

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

    def observe(self, losses: Tensor, groups, step: int) -> None:
        """Note the outcome of the sigma in use since the last call, and choose anew when the window
        is over.

        losses: [B], unweighted, of the batch (released) or the probe (repaired) after the 0-based
        `step`. Raises `SettingsError` when steps do not increase, `DataError` on losses that are
        not finite or a probe without a group.
        """
        if step <= self.last:
            raise SettingsError(
                f"step {step} was observed already (last: {self.last}); resume with the state "
                "saved after it"
            )
        outcome = self._outcome(losses, groups)
        if outcome is not None:
            used = torch.stack(
                [self.sigma(past) for past in range(max(self.last + 1, self.since), step + 1)]
            ).mean(0)
            self.tried = torch.cat([self.tried, used[None]])
            self.outcomes = torch.cat([self.outcomes, torch.tensor([outcome], dtype=torch.float64)])
        self.last = step
        if self._due(step):
            self._choose(self._best(step), step)
            kept = 0 if self.settings.form == "released" else self.settings.history
            self.tried, self.outcomes = (
                held[max(0, len(held) - kept) :] for held in (self.tried, self.outcomes)
            )

    def _outcome(self, losses: Tensor, groups) -> float | None:
        if self.settings.form == "released":
            return -loss_gap(losses, groups, self.sizes)
        gaps = attribute_gaps(group_means(losses, groups, self.sizes), self.sizes)
        if bool(gaps.isnan().any()):
            raise DataError(
                "the probe has nobody of some group of attribute "
                f"{int(gaps.isnan().nonzero()[0])}; "
                "take one with every group, see methods.probing.choose_probe"
            )
        before, self.previous = self.previous, float(gaps.sum())
        return None if before is None else before - self.previous

    def _best(self, step: int) -> Tensor:
        """The maximum of the upper bound; sigma as it is while there is nothing to learn from."""
        if len(self.outcomes) < 2 or float(self.outcomes.max() - self.outcomes.min()) == 0:
            return self.sigma(step)
        rng = np.random.default_rng([self.settings.seed, 24, step])
        process = GaussianProcess(self.tried.numpy(), self.outcomes.numpy())
        return torch.from_numpy(maximise_upper_bound(process, self.settings.beta, rng))

    def state_dict(self) -> dict:
        previous = [] if self.previous is None else [self.previous]
        return super().state_dict() | {
            "last": self.last,
            "tried": self.tried.clone(),
            "outcomes": self.outcomes.clone(),
            "previous": torch.tensor(previous, dtype=torch.float64),
        }

    def load_state_dict(self, state: dict) -> None:
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


def share_negative(deviation: float) -> float:
    """Share of released weights below zero: Phi(-1 / s), s = sqrt(sum of the squared sigmas of a
    sample's groups).
    """
    return 0.5 * math.erfc(1 / (deviation * math.sqrt(2))) if deviation > 0 else 0.0


def left_of_candidate(steps: int, exploitation: float = 0.95) -> float:
    """Share of the chosen sigma that is left `steps` steps later: rho ** steps, 0.215 after one
    window of 30.
    """
    return exploitation**steps


def effective_sigma(
    candidate: float, steps: int, exploitation: float = 0.95
) -> tuple[float, float]:
    """Mean and standard deviation of a group's sigma `steps` steps after the choice of `candidate`.

    Mean rho^k c + (1 - rho^k) / 2; variance (1 - rho)^2 / 12 * (1 - rho^2k) / (1 - rho^2). After
    one released window (30 steps, rho 0.95) the mean lies between 0.39 and 0.61 whatever was
    chosen, with a standard deviation of 0.045; over the whole window half of the sigma in use is
    the choice and half is drift.
    """
    left, squared = exploitation**steps, exploitation**2
    total = steps if squared == 1 else (1 - squared**steps) / (1 - squared)
    return left * candidate + (1 - left) / 2, (1 - exploitation) * math.sqrt(total / 12)
