"""Fair-GRPO, generalised to any target shares: policy gradients from the classes read in a batch.

HoloFair (Chen et al., ICML 2026, arXiv 2605.24687) rewards an image of class k among the N images
of a batch, n_k of them of class k, by log((N - n_k + e) / (n_k + e)), zero-centred and clipped to
[-5, 5], with a KL penalty of weight 0.05; its training code is not released, so these come from
notes on the paper. What is implemented here, exactly:

    reward      r_i = log((N q_k + e) / (n_k + e)), k the class of image i, q the target's shares;
                for two classes and q = 1/2 that is half of the published reward
    advantage   A_i = clip(r_i - mean r, -5, 5) over the step's images of one target; not divided by
                their standard deviation, so that it vanishes at the target
    policy      DDIM with eta = 1 (Song et al. 2021, eq. 16), guidance inside:
                x_{t-1} ~ N(mu_t, s_t^2); the last step has no noise and is no part of it
    loss        mean over images and steps of max(-A_i rho, -A_i clip(rho, 1 - c, 1 + c)) +
                kl_weight KL(N(mu, s^2) || N(mu0, s^2)), with rho = exp(log p - log p_old) and mu0
                of the base model

Log-probabilities and KL are means over the latents' elements, as in the released code of DDPO
(Black et al. 2024, arXiv 2305.13301). With one update a batch rho is 1 and the clip does nothing.
The loop has the shape of `methods.alignment.tune`: its schedule of prompts and noises, its choice
of solver steps that carry gradient, its optimiser and counters. No gradient of the classifier is
taken: it may be anything that reads a class.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fairlib.methods.alignment import AlignmentSettings, AlignmentState, AlignmentStep, schedule
from fairlib.methods.base_cache import ImageFunction, TunableModel
from fairlib.methods.replay import choose_steps, chunks, join
from fairlib.methods.selection import group_places
from fairlib.methods.targets import Target, class_logits, target_of_each
from fairlib.models.solvers import Solver, ddim
from fairlib.models.training import FitSettings
from fairlib.rng import Stream, derived_seeds, torch_rng
from fairlib.settings import Count, Positive, Weight

EPSILON = 1e-6


@dataclass(frozen=True)
class GRPOSettings(AlignmentSettings):
    """Settings of `grpo`: those of `tune` (its losses and its solver are not used), and the
    policy's.

    `kl_weight`: of the distance to the base model, the knob of the method's strength.
    `reward_clip`: largest advantage. `ratio_clip`: c of the module's loss. `updates_per_batch`:
    optimiser steps on each batch of `steps`. `replay_steps` of the `sampling_steps - 1` noisy steps
    (at most all of them) carry gradient.
    """

    kl_weight: Weight = 0.05
    reward_clip: Positive = 5.0
    ratio_clip: Positive = 1e-4
    updates_per_batch: Count = 1

    @property
    def fit(self) -> FitSettings:
        """As of `AlignmentSettings`; an optimiser step is one update."""
        return replace(super().fit, steps=self.steps * self.updates_per_batch)


def advantages(logits: Tensor, target: Target, limit: float = 5.0) -> Tensor:
    """The clipped, zero-centred rewards `[N]` of one group's images with `logits` `[N]` or
    `[N, K]`.
    """
    places = group_places(logits)
    counts = np.bincount(places, minlength=len(target.groups))
    shares = np.asarray(target.proportions)
    reward = np.log((len(places) * shares + EPSILON) / (counts + EPSILON))[places]
    return torch.as_tensor(np.clip(reward - reward.mean(), -limit, limit)).to(logits)


def noisy_ddim(
    alphas_cumprod: Tensor, steps: int, eta: float = 1.0, prediction_type: str = "epsilon"
) -> tuple[Solver, np.ndarray]:
    """`(solver, s [T])`: the solver's next latents are the mean of a step whose standard deviation
    is s_t; the last is zero (Song et al. 2021, eq. 12 and 16).
    """
    solver = ddim(alphas_cumprod, steps, prediction_type=prediction_type)
    signal = alphas_cumprod.detach().double().cpu().numpy()[list(solver.timesteps)]
    following = np.append(signal[1:], 1.0)
    spread = eta * np.sqrt((1 - following) / (1 - signal) * (1 - signal / following))
    carry = np.sqrt((1 - following - spread**2).clip(0) / (1 - signal))
    current = np.sqrt(following) - np.sqrt(signal) * carry
    return replace(solver, name="noisy_ddim", carry=carry, current=current), spread


def log_probability(latents: Tensor, mean: Tensor, spread: float) -> Tensor:
    """log N(latents; mean, spread^2) `[N]`, a mean over the elements of `[N, C, h, w]`."""
    each = -((latents - mean) / spread).square() / 2 - math.log(spread * math.sqrt(2 * math.pi))
    return each.flatten(1).mean(dim=1)


def clipped_loss(log_p: Tensor, old_log_p: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """max(-A rho, -A clip(rho)) `[N]` with rho = exp(log_p - old_log_p) (Schulman et al. 2017, eq.
    7).
    """
    ratio = (log_p - old_log_p).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def grpo(
    generator: TunableModel,
    classifier: ImageFunction,
    prompts: Sequence[str] | Mapping[str, str],
    target: Target | Mapping[str, Target] | Sequence[Target],
    *,
    settings: GRPOSettings | None = None,
    state: Mapping[str, Tensor] | None = None,
    base: TunableModel | None = None,
) -> Iterator[AlignmentStep]:
    """Tune `generator` in place, yielding the record of `tune` after each batch.

    In the record `alignment` is the policy's loss of the last update (with one update a batch it is
    zero to rounding, its gradient is not) and `consistency` its KL, `targets` are the advantages,
    `changes` says where they are negative, and `cosine` is 1; `base` counts the base model's
    evaluations for the KL.

    Parameters
    ----------
    generator, prompts, state, base
        As of `tune`, as is what is left in `generator`.
    classifier
        Images `[N, C, H, W]` to logits `[N]` or `[N, K]`, of which only the class is used.
    target
        As of `tune`, without need of logits. Images of all prompts whose targets have one name are
        rewarded together: name each prompt's target where each shall reach the shares.
    settings
        `kl_weight` is the method's strength: the lower, the further from the base model.

    Raises
    ------
    SettingsError
        Prompts and targets that do not cover each other, logits of the wrong shape.
    WeightsError
        As `tune`.
    """
    targets, texts = target_of_each(prompts, target), list(prompts)
    s = settings or GRPOSettings(prompts_per_step=min(4, len(texts)))
    frozen = base or generator.frozen_copy()
    if s.trainable == "lora":
        generator.add_lora(s.lora_rank, s.seed)
    live = AlignmentState(generator.trainable_parameters(), s)
    if state is not None:
        live.resume(state, same_origin=base is None)
    return _steps(_Run(generator, frozen, classifier, texts, targets, s, live))


def _steps(run: _Run) -> Iterator[AlignmentStep]:
    try:
        while run.state.step < run.settings.fit.steps:
            yield run.optimise()
    finally:
        run.state.finish()


@dataclass(frozen=True)
class _Batch:
    """Latents x_T, ..., x_0 of a batch, and what every update of it needs."""

    path: list[Tensor]
    embeds: Tensor
    old_log_p: list[Tensor]
    advantages: Tensor


@dataclass
class _Run:
    """One run: the models, the live state, and a step."""

    generator: TunableModel
    base: TunableModel
    classifier: ImageFunction
    prompts: list[str]
    targets: tuple[Target, ...]
    settings: GRPOSettings
    state: AlignmentState

    def __post_init__(self) -> None:
        s, model = self.settings, self.generator
        self.solver, self.spread = noisy_ddim(
            model.alphas_cumprod, s.sampling_steps, prediction_type=model.prediction_type
        )
        self.prompt_embeds = model.encode_prompts(self.prompts).detach()

    def optimise(self) -> AlignmentStep:
        """One batch: sample with noise, classify, reward, update."""
        s, started = self.settings, time.perf_counter()
        step = self.state.step // s.updates_per_batch
        pairs = schedule(s, step, len(self.targets))
        prompts = tuple(prompt for prompt, indices in pairs for _ in indices)
        noises = tuple(index for _, indices in pairs for index in indices)
        batch, images, logits = self._sample(step, prompts, noises)
        replayed, norms = 0, []
        for update in range(self.state.step, self.state.step + s.updates_per_batch):
            rate = self.state.settings.learning_rate_at(update)
            count, policy, kl = self._backward(batch, update)
            replayed += count
            norms.append(self.state.update(rate))
        return AlignmentStep(
            step=step,
            groups=self.targets[0].groups,
            alignment=policy,
            consistency=kl,
            gradient_norm=norms[-1],
            learning_rate=rate,
            skipped=not np.isfinite(norms).all(),
            prompts=prompts,
            noises=noises,
            logits=logits.cpu(),
            targets=batch.advantages.cpu(),
            changes=batch.advantages.cpu() < 0,
            cosine=torch.ones(len(noises)),
            images=images.cpu(),
            forward=len(noises) * len(self.solver) + replayed,
            backward=replayed,
            base=replayed,
            seconds=time.perf_counter() - started,
            state=self.state,
        )

    @torch.no_grad()
    def _sample(
        self, step: int, prompts: tuple[int, ...], noises: tuple[int, ...]
    ) -> tuple[_Batch, Tensor, Tensor]:
        """A batch of noisy sampling runs, its images and its logits."""
        s, embeds = self.settings, self.prompt_embeds[list(prompts)]
        seed = s.seed if s.noise_seed is None else s.noise_seed
        latents = self.generator.noise(seed, list(noises))
        pieces = chunks(len(noises), s.micro_batch)
        rng = torch_rng(s.seed, Stream.POLICY_NOISE, step)
        path, old_log_p = [latents], []
        for index, spread in enumerate(self.spread.tolist()):
            given = [(self.generator, path[-1][rows], embeds[rows], index) for rows in pieces]
            mean = join([self._mean(*each) for each in given])
            path.append(mean + spread * torch.randn(mean.shape, generator=rng).to(mean))
            if spread:
                old_log_p.append(log_probability(path[-1], mean, spread))
        images = join([self.generator.decode(path[-1][rows]).float() for rows in pieces])
        outputs = join([self.classifier(images[rows]) for rows in pieces])
        logits = class_logits(outputs, len(self.targets[0].groups))
        reward = torch.zeros(len(logits)).to(latents)
        for target in {self.targets[place].name: self.targets[place] for place in prompts}.values():
            rows = [i for i, place in enumerate(prompts) if self.targets[place].name == target.name]
            reward[rows] = advantages(logits[rows], target, s.reward_clip).to(reward)
        return _Batch(path, embeds, old_log_p, reward), images, logits

    def _mean(self, model: TunableModel, latents: Tensor, embeds: Tensor, index: int) -> Tensor:
        """The mean of solver step `index` from `latents`."""
        time, scale = self.solver.timesteps[index], self.settings.guidance_scale
        output = model.predict_noise(latents, time, embeds, scale)
        return self.solver.advance(index, latents, output, None)[1]

    def _backward(self, batch: _Batch, update: int) -> tuple[int, float, float]:
        """Leave the gradient in `.grad`: evaluations that took, the policy's loss and the KL."""
        s, noisy, images = self.settings, len(batch.old_log_p), len(batch.embeds)
        [seed] = derived_seeds(s.seed, Stream.REPLAY_STEPS, update)
        rng, taken = torch.Generator().manual_seed(seed), min(s.replay_steps, noisy)
        chosen = choose_steps(noisy, taken, s.replay_scheme, np.ones(noisy), rng, images)
        weights = torch.as_tensor(chosen / (noisy * images)).to(batch.advantages)
        self.state.zero_grad()
        sums = np.zeros(2)
        for index in range(noisy):
            for rows in weights[index].nonzero()[:, 0].split(s.micro_batch or images):
                policy, kl = torch.stack(self._losses(batch, index, rows)) @ weights[index, rows]
                ((policy + s.kl_weight * kl) * self.state.loss_scale).backward()
                sums += policy.item(), kl.item()
        return int(np.count_nonzero(chosen)), float(sums[0]), float(sums[1])

    def _losses(self, batch: _Batch, index: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's loss and the KL to the base model of some images at one step, `[n]` each."""
        given, spread = (batch.path[index][rows], batch.embeds[rows], index), self.spread[index]
        mean = self._mean(self.generator, *given)
        log_p = log_probability(batch.path[index + 1][rows], mean, spread)
        old, advantage = batch.old_log_p[index][rows], batch.advantages[rows]
        policy = clipped_loss(log_p, old, advantage, self.settings.ratio_clip)
        with torch.no_grad():
            base = self._mean(self.base, *given)
        return policy, ((mean - base) / spread).square().flatten(1).mean(dim=1) / 2
