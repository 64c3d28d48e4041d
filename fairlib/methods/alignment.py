"""Subgroup-distribution aligned tuning (Han et al.), with Shen et al. 2024 as its nearest published
relative.

    minimise  L_align + consistency_weight * mean_i w_i (1 - cos(E(G(c, z_i)), E(G0(c, z_i))))

G is the tuned sampler, G0 the frozen original at the same prompt c and noise z, E an image
embedding. L_align brings the guide's readings of G's images to the target; which form is a setting.
`tune` is a generator: it yields after every optimiser step, so the caller watches, plots, saves or
stops.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairlib.errors import SettingsError
from fairlib.methods.bank import FrozenBank, Generator, schedule, step_seed
from fairlib.methods.objective import Batch, Objective
from fairlib.methods.replay import (
    Trajectory,
    choose_steps,
    chunks,
    effective_coefficients,
    record,
    replay,
)
from fairlib.methods.settings import AlignmentSettings, learning_rate_at
from fairlib.methods.state import AlignmentState, apply_ema
from fairlib.methods.targets import Target, transport_map
from fairlib.models import solvers

__all__ = [
    "AlignmentSettings",
    "AlignmentState",
    "AlignmentStep",
    "FrozenBank",
    "Generator",
    "Target",
    "apply_ema",
    "frozen_bank",
    "learning_rate_at",
    "transport",
    "tune",
]
Reader = Callable[[Tensor], Tensor]
COSINE_MEMORY = 0.9


@dataclass(frozen=True)
class AlignmentStep:
    """What one optimiser step saw and did. Tensors are detached and on the CPU, one row an image of
    the step's batch.

    `targets` are logits ("quantile", "monge"), labels ("class") or the group's share ("mean_...");
    `changes` says where the class must change; `cosine` is to the frozen image; `forward` and
    `backward` count denoiser evaluations (one an image and solver step, without the factor 2 of
    guidance), `frozen` those of the frozen model.
    """

    step: int
    alignment: float
    consistency: float
    gradient_norm: float
    learning_rate: float
    skipped: bool
    prompts: tuple[int, ...]
    noises: tuple[int, ...]
    logits: Tensor
    targets: Tensor
    changes: Tensor
    cosine: Tensor
    images: Tensor
    forward: int
    backward: int
    frozen: int
    seconds: float
    state: AlignmentState


def tune(
    generator: Generator,
    guide: Reader,
    embed: Reader,
    prompts: Sequence[str],
    targets: Sequence[Target],
    settings: AlignmentSettings,
    *,
    state: AlignmentState | None = None,
    frozen: Generator | None = None,
    bank: FrozenBank | None = None,
) -> Iterator[AlignmentStep]:
    """Tune `generator` in place, yielding an `AlignmentStep` after each optimiser step.

    `guide`: images `[N, 1, H, W]` to logits `[N]`; `embed`: images to embeddings `[N, D]`; both
    differentiable and deterministic; gradients pass through them, none stay in them. One of
    `targets` for each of `prompts`; images of prompts whose targets share a `group` are ranked
    together. `state` resumes a saved run, to the same bits, on a generator as it was before the
    run, or with `frozen` or `bank` on any. `frozen` (the original) and `bank` (of `frozen_bank`)
    spare the copy of the original and its cached readings.

    Raises `SettingsError` for settings that do not fit together, and `WeightsError` for a state
    that does not fit or a generator that has moved since its run began, when nothing else tells
    what it was.
    """
    copies = frozen is None and bank is None
    bank = bank or frozen_bank(frozen or generator.frozen_copy(), guide, embed, prompts, settings)
    if settings.trainable == "lora":
        generator.add_lora(settings.lora_rank, settings.seed)
    state, parameters = state or AlignmentState(), generator.trainable_parameters()
    if copies:
        state.require_origin(parameters)
    state.bind(parameters)
    run = _Run(generator, guide, embed, prompts, targets, settings, state, bank)
    while state.step < settings.steps and state.cosine >= settings.consistency_floor:
        yield run.optimise()


def frozen_bank(
    frozen: Generator,
    guide: Reader,
    embed: Reader,
    prompts: Sequence[str],
    settings: AlignmentSettings,
) -> FrozenBank:
    """The empty cache of the frozen model's readings that `tune` fills as it goes."""
    seed = settings.seed if settings.noise_seed is None else settings.noise_seed
    return FrozenBank(
        frozen,
        guide,
        embed,
        tuple(prompts),
        _solver(frozen, settings),
        seed,
        settings.bank_size,
        settings.bank_block,
        settings.guidance_scale,
    )


def _solver(generator: Generator, settings: AlignmentSettings) -> solvers.Solver:
    make = getattr(solvers, settings.solver)
    return make(
        generator.alphas_cumprod, settings.sampling_steps, prediction_type=generator.prediction_type
    )


def _check(prompts, targets, settings: AlignmentSettings, bank: FrozenBank) -> None:
    if len(prompts) != len(targets) or not prompts:
        raise SettingsError(
            f"there are {len(prompts)} prompts and {len(targets)} targets; give one target a prompt"
        )
    if settings.prompts_per_step > len(prompts):
        raise SettingsError(
            f"prompts_per_step is {settings.prompts_per_step} but there are {len(prompts)} prompts"
        )
    clash = {a.group for a in targets for b in targets if a.group == b.group and a != b}
    if clash:
        raise SettingsError(
            f"group {min(clash)!r} has two different targets; give each its own group"
        )
    wanted = frozen_bank(bank.generator, bank.guide, bank.embed, prompts, settings).describe
    wrong = [name for name, value in bank.describe.items() if value != wanted[name]]
    if wrong:
        raise SettingsError(
            f"the frozen bank was made with another {', '.join(wrong)}; make it anew"
        )


def transport(bank: FrozenBank, targets: Sequence[Target]) -> dict[int, Tensor]:
    """Target logits `[bank_size]` of each prompt: the Monge map of its group's frozen logits to the
    target.
    """
    groups: dict[str, list[int]] = {}
    for prompt, target in enumerate(targets):
        groups.setdefault(target.group, []).append(prompt)
    fixed = {}
    for members in groups.values():
        base = torch.cat([bank.all_logits(prompt) for prompt in members])
        mapped = transport_map(base, targets[members[0]].distribution())
        fixed |= dict(zip(members, mapped.split(bank.size), strict=True))
    return fixed


class _Run:
    """One tuning run: the models, the live state, and a step."""

    def __init__(self, generator, guide, embed, prompts, targets, settings, state, bank):
        _check(prompts, targets, settings, bank)
        self.generator, self.guide, self.embed, self.bank = generator, guide, embed, bank
        self.settings, self.state = settings, state
        self.solver = _solver(generator, settings)
        self.coefficients = effective_coefficients(
            self.solver.chain_coefficients()[1], settings.step_weights
        )
        with torch.no_grad():
            self.prompt_embeds = generator.encode_prompts(list(prompts))
        fixed = transport(bank, targets) if settings.family == "monge" else {}
        self.objective = Objective(settings, tuple(targets), fixed)

    def predict_noise(self, latents: Tensor, timestep: int, prompt_embeds: Tensor) -> Tensor:
        return self.generator.predict_noise(
            latents, timestep, prompt_embeds, self.settings.guidance_scale
        )

    def optimise(self) -> AlignmentStep:
        """One optimiser step: sample, read, send the gradient back, update."""
        started, before, step = time.perf_counter(), self.bank.evaluations, self.state.step
        batch = self._batch(step)
        noise = self.generator.noise(self.bank.seed, list(batch.noises))
        trajectory = record(
            self.solver, self.predict_noise, noise, self.prompt_embeds[list(batch.prompts)]
        )
        cotangent, seen = self._read(trajectory.sample, batch)
        replayed = self._replay(trajectory, cotangent, step)
        rate = learning_rate_at(step, self.settings)
        norm = self._update(rate)
        self._remember(batch, seen)
        seen = {
            name: value.cpu() if isinstance(value, Tensor) else value
            for name, value in seen.items()
        }
        return AlignmentStep(
            step=step,
            gradient_norm=norm,
            learning_rate=rate,
            skipped=not math.isfinite(norm),
            prompts=batch.prompts,
            noises=batch.noises,
            forward=len(batch.noises) * len(self.solver) + replayed,
            backward=replayed,
            frozen=self.bank.evaluations - before,
            seconds=time.perf_counter() - started,
            state=self.state,
            **seen,
        )

    def _batch(self, step: int) -> Batch:
        s, prompts = self.settings, len(self.objective.targets)
        pairs = schedule(
            s.seed, step, prompts, s.prompts_per_step, s.images_per_prompt, s.bank_size
        )
        logits, embeds = zip(
            *(self.bank.read(prompt, indices) for prompt, indices in pairs), strict=True
        )
        each = [(prompt, index) for prompt, indices in pairs for index in indices]
        return Batch(*zip(*each, strict=True), torch.cat(logits), torch.cat(embeds))

    def _read(self, sample: Tensor, batch: Batch) -> tuple[Tensor, dict]:
        """dL/dx_0 `[N, C, h, w]`, and what was seen, for the step's record.

        With several micro-batches every image is read twice: ranks need all logits before any
        gradient.
        """
        pieces = chunks(len(sample), self.settings.micro_batch)
        if len(pieces) == 1:
            leaf = sample.detach().requires_grad_()
            images, logits, embeds = self._look(leaf)
            loss, seen = self._loss(logits, embeds, batch)
            return torch.autograd.grad(loss, leaf)[0], seen | {"images": images.detach()}
        with torch.no_grad():
            looked = [self._look(sample[rows]) for rows in pieces]
            images, logits, embeds = (torch.cat(part) for part in zip(*looked, strict=True))
        loss, seen = self._loss(logits.requires_grad_(), embeds.requires_grad_(), batch)
        pulls = torch.autograd.grad(loss, (logits, embeds))
        cotangents = [self._pull(sample[rows], [pull[rows] for pull in pulls]) for rows in pieces]
        return torch.cat(cotangents), seen | {"images": images}

    def _look(self, sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = self.generator.decode(sample)
        return images, self.guide(images), self.embed(images)

    def _pull(self, sample: Tensor, pulls: list[Tensor]) -> Tensor:
        leaf = sample.detach().requires_grad_()
        return torch.autograd.grad(self._look(leaf)[1:], leaf, pulls)[0]

    def _loss(self, logits: Tensor, embeds: Tensor, batch: Batch) -> tuple[Tensor, dict]:
        s, detached = self.settings, logits.detach()
        assignment = self.objective.assign(detached, batch, self.state.pools)
        alignment = self.objective.alignment(logits, batch, assignment)
        consistency = self.objective.consistency(embeds, batch, assignment)
        cosine = torch.cosine_similarity(embeds.detach(), batch.frozen_embeds, dim=-1)
        seen = {
            "alignment": float(alignment.detach()),
            "consistency": float(consistency.detach()),
            "logits": detached,
            "targets": assignment.values,
            "changes": assignment.changes,
            "cosine": cosine,
        }
        return s.alignment_weight * alignment + s.consistency_weight * consistency, seen

    def _replay(self, trajectory: Trajectory, cotangent: Tensor, step: int) -> int:
        """Leave the gradient in `.grad`; the number of denoiser evaluations that took."""
        s = self.settings
        chance = torch.Generator().manual_seed(step_seed(s.seed, step))
        importance = choose_steps(
            len(self.solver),
            s.replay_steps,
            s.replay_scheme,
            self.coefficients,
            chance,
            len(cotangent),
        )
        for parameter in self.state.parameters.values():
            parameter.grad = None
        return replay(
            self.predict_noise, trajectory, cotangent, self.coefficients, importance, s.micro_batch
        )

    def _update(self, rate: float) -> float:
        """Clip and apply the gradient, unless it is not finite; its norm before clipping."""
        s, parameters = self.settings, list(self.state.parameters.values())
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, s.gradient_clip))
        if math.isfinite(norm):
            self.state.update(rate, s.weight_decay, s.ema_decay)
        for parameter in parameters:
            parameter.grad = None
        self.state.step += 1
        return norm

    def _remember(self, batch: Batch, seen: dict) -> None:
        for name, rows in self.objective.groups(batch).items():
            self.state.remember(name, seen["logits"][rows], self.settings.pool_size)
        kept = seen["cosine"][~seen["changes"]]
        if len(kept) and bool(kept.isfinite().all()):
            self.state.cosine += (1 - COSINE_MEMORY) * (float(kept.mean()) - self.state.cosine)
