"""Subgroup-distribution aligned tuning (Han et al.), with Shen et al. 2024 as its nearest published
relative.

    minimise  alignment_weight * L_align(h(G(c, z)), target)
              + consistency_weight * mean_i w_i (1 - cos(E(G(c_i, z_i)), E(G0(c_i, z_i))))

G is the tuned sampler, G0 the base model before tuning, at the same prompts c and noises z; h is
the tuning classifier and E an image embedding. L_align brings the classifier's logits on G's images
to the target; which form it takes is the setting `family`:

    transport   mean_i smooth_l1(h_i, Q_target(F_base(h0_i)))   each noise's target fixed beforehand
    quantile    the same, with the image's rank in its batch in place of F_base
    class       mean_i 1[confidence_i >= 0.8] cross_entropy(h_i, class_i)   (Shen et al., 4.1)
    mean_kl     KL(target shares || mean_i softmax(h_i)); mean_l2 is their squared distance

The gradient runs through sampling by replay (`methods.replay`). This file holds, in this order,
the settings, the losses, the objective (target and loss of a batch) and the loop, `tune`.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairlib.errors import SettingsError, WeightsError
from fairlib.methods.base_cache import (
    BaseCache,
    ImageFunction,
    TunableModel,
    check_classifier,
    no_embedding,
    score_images,
)
from fairlib.methods.processes import check_processes, join_processes, own_rows, sum_gradients
from fairlib.methods.replay import (
    Trajectory,
    choose_steps,
    chunks,
    effective_coefficients,
    join,
    record,
    replay,
)
from fairlib.methods.targets import (
    Target,
    class_targets,
    classes_of,
    group_shares,
    target_of_each,
    transport_targets,
)
from fairlib.models import solvers
from fairlib.models.training import FitSettings, Trainer
from fairlib.rng import Stream, derived_seeds, numpy_rng
from fairlib.settings import (
    AboveZero,
    BelowOne,
    Bound,
    Count,
    Natural,
    Positive,
    Weight,
    check_bounds,
)

COSINE_MEMORY = 0.9
TRANSPORT = ("transport", "quantile")


@dataclass(frozen=True)
class AlignmentSettings:
    """Settings of `tune`; what each does is in the book's chapter on the method.

    Parameters
    ----------
    family
        "transport" (each noise's target fixed in advance), "quantile" (ranks in the batch and a
        pool), "class" (class targets and cross-entropy), "mean_kl" or "mean_l2".
    steps, prompts_per_step, images_per_prompt
        Optimiser steps, and what each generates.
    cache_size, cache_block, noise_seed
        Noises a prompt, how many of them the base model samples at once, and the seed that names
        them (default `seed`). The share reached on other noises cannot be surer than about
        0.5 / sqrt(cache_size).
    pool_size
        Recent logits to rank within. Old ones lag behind a fast-moving model, and ranks then
        overshoot; keep it small or the rate low.
    solver, sampling_steps, guidance_scale
        How images are sampled.
    replay_steps, replay_scheme, step_weights
        How many of the `sampling_steps` carry gradient, which, and how they are weighted
        (`methods.replay`).
    learning_rate, warmup, anneal, weight_decay, gradient_clip, ema_decay
        Of the optimiser (`models.training.FitSettings`).
    alignment_weight, smooth_l1_beta, confidence_threshold, class_draws
        Of the alignment loss; `class_draws`: random draws behind the class targets of more than two
        groups.
    consistency_weight, consistency_change_factor, consistency_floor
        Of the consistency loss; tuning stops when the running cosine to the base images whose class
        stays falls below the floor.
    trainable, lora_rank
        "full" or "lora", and its rank.
    micro_batch
        Images that are sampled, decoded or replayed at once (None: all of them).
    seed
        Of the order of prompts and noises, and of all random choices.

    Raises
    ------
    SettingsError
        A word or a number that means nothing, however the settings were built.
    """

    family: Literal["transport", "quantile", "class", "mean_kl", "mean_l2"] = "transport"
    steps: Count = 80
    prompts_per_step: Count = 4
    images_per_prompt: Count = 8
    cache_size: Count = 256
    cache_block: Count = 64
    noise_seed: Natural | None = None
    pool_size: Natural = 0
    solver: Literal["ddim", "dpm_solver_2m"] = "dpm_solver_2m"
    sampling_steps: Count = 10
    guidance_scale: Weight = 3.0
    replay_steps: Count = 3
    replay_scheme: Literal["all", "stratified", "importance", "uniform", "early", "last"] = (
        "importance"
    )
    step_weights: Literal["natural", "flat"] = "natural"
    learning_rate: Positive = 1e-4
    warmup: Natural = 5
    anneal: Literal["cosine", "none"] = "cosine"
    weight_decay: Weight = 0.0
    gradient_clip: AboveZero = 1.0
    ema_decay: BelowOne = 0.9
    alignment_weight: Weight = 1.0
    smooth_l1_beta: Positive = 1.0
    confidence_threshold: Annotated[float, Bound(lambda c: 0.5 <= c <= 1, "in [0.5, 1]")] = 0.8
    class_draws: Count = 200
    consistency_weight: Weight = 1.0
    consistency_change_factor: Weight = 0.2
    consistency_floor: Annotated[float, Bound(lambda c: -1 <= c <= 1, "in [-1, 1]")] = 0.0
    trainable: Literal["full", "lora"] = "full"
    lora_rank: Count = 8
    micro_batch: Natural | None = None
    seed: Natural = 0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.replay_steps > self.sampling_steps:
            what = f"AlignmentSettings.replay_steps is {self.replay_steps}"
            raise SettingsError(f"{what}; expected at most sampling_steps, {self.sampling_steps}")
        if self.cache_size % self.images_per_prompt:
            raise SettingsError(
                f"AlignmentSettings.cache_size is {self.cache_size}; expected a multiple of "
                f"images_per_prompt, {self.images_per_prompt}"
            )

    @property
    def fit(self) -> FitSettings:
        """The same as settings of the optimiser that all networks share."""
        images = self.prompts_per_step * self.images_per_prompt
        return FitSettings.of(self, batch_size=images, betas=(0.9, 0.999))


# ---- losses: logits `[N]` (positive for the first of two groups) or `[N, K]`; scalar means


def transport_alignment(logits: Tensor, targets: Tensor, beta: float = 1.0) -> Tensor:
    """Smooth-L1 distance of `logits` to their target logits `targets`, of one shape.

    Quadratic below `beta`, linear above: one far image does not drive the step.

    book/paper.md, Eq. (eq-quantile) and (eq-transport).
    """
    return F.smooth_l1_loss(logits, targets, beta=beta)


def class_alignment(
    logits: Tensor, labels: Tensor, confidence: Tensor, threshold: float = 0.8
) -> Tensor:
    """1/N sum_i 1[confidence_i >= threshold] * cross-entropy(logits_i, labels_i) (Shen et al. 2024,
    sec. 4.1).

    `labels` and `confidence` `[N]`; a label is 1 for the first of two groups, or a place in 0..K-1.

    book/paper.md, Eq. (eq-rank).
    """
    if logits.ndim == 2:
        each = F.cross_entropy(logits, labels, reduction="none")
    else:
        each = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return (each * (confidence >= threshold)).mean()


def mean_probability_kl(logits: Tensor, shares: Tensor | float) -> Tensor:
    """KL(shares || mean predicted probability), in nats; `logits` `[N]` with one share or `[N, K]`
    with `[K]`.

    Zero as soon as the *mean* is right, even when every image is ambiguous.
    """
    log_mean = _mean_probabilities(logits).clamp_min(torch.finfo(logits.dtype).tiny).log()
    target = _shares(logits, shares)
    return (torch.xlogy(target, target) - target * log_mean).sum()


def mean_probability_l2(logits: Tensor, shares: Tensor | float) -> Tensor:
    """Squared distance of the mean predicted probabilities to `shares`; shapes as in
    `mean_probability_kl`.
    """
    return (_mean_probabilities(logits) - _shares(logits, shares)).square().sum()


def consistency(embeds: Tensor, base_embeds: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over images of weight_i * (1 - cos_i), `embeds` and `base_embeds` `[N, D]`, `weights`
    `[N]` or None.

    Distillation of the base model: same prompt, same noise (Han et al., CLIP consistency; Shen et
    al. 4.3).

    book/paper.md, Eq. (eq-clip).
    """
    distance = 1 - F.cosine_similarity(embeds, base_embeds, dim=-1)
    return distance.mean() if weights is None else (distance * weights).mean()


def _mean_probabilities(logits: Tensor) -> Tensor:
    if logits.ndim == 2:
        return logits.softmax(dim=1).mean(dim=0)
    return torch.stack([torch.sigmoid(logits).mean(), torch.sigmoid(-logits).mean()])


def _shares(logits: Tensor, shares: Tensor | float) -> Tensor:
    shares = torch.as_tensor(shares, dtype=logits.dtype, device=logits.device)
    return torch.stack([shares, 1 - shares]) if logits.ndim == 1 else shares


# ---- the objective: target and loss of one batch


@dataclass(frozen=True)
class Batch:
    """One optimiser step's images: prompt and noise of each, and the logits and embedding of the
    base model's image of the same pair.
    """

    step: int
    prompts: tuple[int, ...]
    noises: tuple[int, ...]
    base_logits: Tensor
    base_embeds: Tensor


@dataclass(frozen=True)
class Assignment:
    """For each image: its target (logits, label or share), confidence in it `[N]`, and whether its
    class must change `[N]`.
    """

    values: Tensor
    confidence: Tensor
    changes: Tensor


@dataclass(frozen=True)
class Objective:
    """The tuning loss of one family; `fixed` maps a prompt to the target logits of its cached
    noises (family "transport" only).
    """

    settings: AlignmentSettings
    targets: tuple[Target, ...]
    fixed: dict[int, Tensor]

    def groups(self, batch: Batch) -> dict[str, Tensor]:
        """Rows of the batch that are ranked together, by the name of their target."""
        names = np.array([self.targets[prompt].name for prompt in batch.prompts], dtype=object)
        device = batch.base_logits.device
        return {
            name: torch.as_tensor(np.flatnonzero(names == name), device=device)
            for name in dict.fromkeys(names)
        }

    def assign(
        self, logits: Tensor, batch: Batch, pool: Callable[[str], Tensor | None]
    ) -> Assignment:
        """Targets for the detached `logits`; `pool` gives recent logits by the name of a target."""
        rows = self.groups(batch)
        parts = [
            self._assign_group(name, chosen, logits[chosen], batch, pool(name))
            for name, chosen in rows.items()
        ]
        order = torch.cat(list(rows.values())).argsort()
        values, confidence = (torch.cat(part)[order] for part in zip(*parts, strict=True))
        return Assignment(values, confidence, self._changes(values, confidence, batch.base_logits))

    def _assign_group(
        self, name: str, rows: Tensor, logits: Tensor, batch: Batch, pool: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        s, sure = self.settings, torch.ones_like(logits if logits.ndim == 1 else logits[:, 0])
        target = next(target for target in self.targets if target.name == name)
        if s.family == "transport":
            picked = [self.fixed[batch.prompts[row]][batch.noises[row]] for row in rows.tolist()]
            return torch.stack(picked).to(logits), sure
        if s.family == "quantile":
            return transport_targets(logits, target, pool), sure
        if s.family == "class":
            rng = numpy_rng(s.seed, Stream.CLASS_DRAWS, batch.step, int(rows[0]))
            return class_targets(logits, target, pool, draws=s.class_draws, rng=rng)
        shares = logits.new_tensor(target.proportions)
        return (shares[0] if logits.ndim == 1 else shares).expand_as(logits), sure

    def _changes(self, values: Tensor, confidence: Tensor, base_logits: Tensor) -> Tensor:
        """Where the target is not the base image's class, or (as in Shen et al.) there is no
        confident target.
        """
        if self.settings.family in TRANSPORT:
            return classes_of(values) != classes_of(base_logits)
        if self.settings.family == "class":
            unsure = confidence < self.settings.confidence_threshold
            return unsure | (values.long() != classes_of(base_logits))
        return torch.zeros_like(confidence, dtype=torch.bool)

    def alignment(self, logits: Tensor, batch: Batch, assignment: Assignment) -> Tensor:
        """The alignment loss of `logits`, a mean over images."""
        s, values = self.settings, assignment.values
        if s.family in TRANSPORT:
            return transport_alignment(logits, values, s.smooth_l1_beta)
        if s.family == "class":
            return class_alignment(logits, values, assignment.confidence, s.confidence_threshold)
        mean_loss = mean_probability_kl if s.family == "mean_kl" else mean_probability_l2
        groups = self.groups(batch).values()
        each = [len(rows) * mean_loss(logits[rows], values[rows[0]]) for rows in groups]
        return torch.stack(each).sum() / len(logits)


# ---- the loop


def cache_base(
    base: TunableModel,
    classifier: ImageFunction,
    prompts: Sequence[str],
    *,
    embed: ImageFunction | None = None,
    settings: AlignmentSettings,
) -> BaseCache:
    """The empty cache of what `base`, the untuned model, makes, which `tune` fills as it goes."""
    make, steps = getattr(solvers, settings.solver), settings.sampling_steps
    solver = make(base.alphas_cumprod, steps, prediction_type=base.prediction_type)
    return BaseCache(
        base,
        classifier,
        embed or no_embedding,
        tuple(prompts),
        solver,
        settings.seed if settings.noise_seed is None else settings.noise_seed,
        settings.cache_size,
        settings.cache_block,
        settings.guidance_scale,
        settings.micro_batch,
    )


def schedule(s: AlignmentSettings, step: int, prompts: int) -> list[tuple[int, list[int]]]:
    """`(prompt, noise indices)` of optimiser step `step`, one pair for each of its
    `prompts_per_step` prompts, of `prompts` in all.

    Prompts come in shuffled rounds; a prompt's next visit takes the next `images_per_prompt` noises
    of its cache, the first pass through it in order, later ones shuffled. A pure function of (seed,
    step), so that a resumed run needs no replayed random state.
    """
    pairs = []
    for draw in range(step * s.prompts_per_step, (step + 1) * s.prompts_per_step):
        visit, place = divmod(draw, prompts)
        prompt = int(numpy_rng(s.seed, Stream.PROMPT_ORDER, visit).permutation(prompts)[place])
        lap, block = divmod(visit, s.cache_size // s.images_per_prompt)
        order = np.arange(s.cache_size)
        if lap:
            order = numpy_rng(s.seed, Stream.NOISE_ORDER, lap, prompt).permutation(s.cache_size)
        first = block * s.images_per_prompt
        pairs.append((prompt, order[first : first + s.images_per_prompt].tolist()))
    return pairs


class AlignmentState(Trainer):
    """The state of a run: a `Trainer` that also keeps the pools of recent logits, the running
    cosine to the base images, and the hash of the parameters that the run began with (`origin`).

    `to_tensors()` is all that a killed run needs to go on; give it to `tune` as `state`.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], settings: AlignmentSettings):
        super().__init__(parameters, settings.fit)
        origin = bytearray.fromhex(fingerprint(parameters))
        self.extra = {"cosine": torch.ones((), dtype=torch.float64)}
        self.extra["origin"] = torch.frombuffer(origin, dtype=torch.uint8)
        self.last: dict[str, Tensor] = {}

    def resume(self, tensors: Mapping[str, Tensor], *, same_origin: bool) -> None:
        """Take up a saved state; with `same_origin`, only where its run began with these
        parameters.

        Raises `WeightsError`, with nothing changed, when it does not fit.
        """
        began = tensors.get("extra/origin")
        if same_origin and (began is None or not torch.equal(began, self.extra["origin"])):
            raise WeightsError(
                "this generator is not the one that the run began with; resume with a fresh one, "
                "or give `base` or `base_cache`, of the untuned model"
            )
        self.from_tensors(tensors)

    def pool(self, name: str) -> Tensor | None:
        """Recent logits of the prompts of target `name`."""
        return self.extra.get(f"pools/{name}")

    def remember(self, name: str, logits: Tensor, size: int) -> None:
        """Keep the last `size` finite `logits` of target `name` to rank later batches within."""
        if size:
            finite = logits[logits.reshape(len(logits), -1).isfinite().all(dim=1)]
            older = self.extra.get(f"pools/{name}", finite[:0]).to(finite)
            self.extra[f"pools/{name}"] = torch.cat([older, finite])[-size:].clone()

    def finish(self) -> None:
        """Leave the averaged weights in the model; `to_tensors` still gives the last ones."""
        self.last = {f"weight/{name}": p.detach().cpu().clone() for name, p in self.masters.items()}
        self.use_average()

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything, flat, for `fairlib.io.write_tensors`."""
        return super().to_tensors() | self.last


def fingerprint(parameters: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values, in hexadecimal: the same bits give the same hash on any
    device.
    """
    digest = hashlib.sha256()
    for name, value in sorted(parameters.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class AlignmentStep:
    """The record of one optimiser step. Tensors are detached and on the CPU, one row an image of
    the step's batch.

    `targets` are logits ("transport", "quantile"), labels ("class") or shares ("mean_...");
    `changes` says where the class must change; `cosine` is to the base image; `forward` and
    `backward` count denoiser evaluations (one an image and solver step, without the factor 2 of
    guidance), `base` those of the base model.
    """

    step: int
    groups: tuple[str, ...]
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
    base: int
    seconds: float
    state: AlignmentState

    @property
    def shares(self) -> dict[str, float]:
        """The share of the step's images that is classified as each group."""
        return group_shares(self.logits, self.groups)


def tune(
    generator: TunableModel,
    classifier: ImageFunction,
    prompts: Sequence[str] | Mapping[str, str],
    target: Target | Mapping[str, Target] | Sequence[Target],
    *,
    embed: ImageFunction | None = None,
    settings: AlignmentSettings | None = None,
    state: Mapping[str, Tensor] | None = None,
    base: TunableModel | None = None,
    base_cache: BaseCache | None = None,
) -> Iterator[AlignmentStep]:
    """Tune `generator` in place, yielding an `AlignmentStep` after each optimiser step.

    However the loop ends (exhausted, `break`, an exception, or `close()` of the iterator), the
    moving average of the weights is left in `generator`.

    On several GPUs, start the script by `accelerate launch` or `torchrun` and call
    `methods.processes.start()` before loading anything: each process generates its share of every
    batch, targets are those of the whole batch, and all yield the same steps. Save from one.

    book/paper.md, Eq. (eq-total).

    Parameters
    ----------
    generator
        The model to tune, such as `fairlib.Generator`.
    classifier
        The tuning classifier: images `[N, C, H, W]` in [-1, 1] to logits `[N]` (positive for the
        first of two groups) or `[N, K]`; differentiable and deterministic. Gradients pass through
        it, none stay in it.
    prompts
        What to generate; as `{prompt: group}` where each group of prompts has its own target.
    target
        Of all prompts, or `{group: target}` (`Target.by_group`), or one for each prompt. Images of
        prompts whose targets have the same name are ranked together.
    embed
        Images to embeddings `[N, D]` for the consistency with the base model's images, as of CLIP;
        without one, that of `base_cache`; without either the term is left out, and `cosine` is 1.
    settings
        By default transport targets, with at most four prompts a step.
    state
        What `step.state.to_tensors()` gave: resumes that run, to the same bits, on a generator as
        it was before the run, or with `base` or `base_cache` on any.
    base, base_cache
        The untuned model, and the cache of `cache_base`: they spare a copy of the generator, and
        what was computed with it.

    Raises
    ------
    SettingsError
        At once: settings that do not fit together, prompts and targets that do not cover each
        other, a classifier whose logits have the wrong shape, are not finite, or have no gradient.
    WeightsError
        A state that does not fit, or a generator that has moved since its run began when nothing
        else says what it was.
    """
    targets, texts = target_of_each(prompts, target), list(prompts)
    s = settings or AlignmentSettings(prompts_per_step=min(4, len(texts)))
    embed = embed or (base_cache.embed if base_cache else no_embedding)
    copies = base is None and base_cache is None
    cache = base_cache or cache_base(
        base or generator.frozen_copy(), classifier, texts, embed=embed, settings=s
    )
    _check_settings(texts, targets, s, cache)
    check_classifier(generator, classifier, len(targets[0].groups), s.seed, s.micro_batch)
    if s.trainable == "lora":
        generator.add_lora(s.lora_rank, s.seed)
    live = AlignmentState(generator.trainable_parameters(), s)
    check_processes(live.extra["origin"], images_per_step=s.fit.batch_size, cache_block=cache.block)
    if state is not None:
        live.resume(state, same_origin=copies)
    return _steps(_Run(generator, classifier, embed, texts, targets, s, live, cache))


def _steps(run: _Run) -> Iterator[AlignmentStep]:
    s, state = run.settings, run.state
    try:
        if s.family == "transport":
            run.objective.fixed.update(fixed_targets(run.cache, run.targets))
        while state.step < s.steps and state.extra["cosine"] >= s.consistency_floor:
            yield run.optimise()
    finally:
        state.finish()


def fixed_targets(cache: BaseCache, targets: Sequence[Target]) -> dict[int, Tensor]:
    """Target logits of each prompt's cached noises, `[cache_size]` or `[cache_size, K]`: the
    transport map from the base model's logits of its group to the target.
    """
    members: dict[str, list[int]] = {}
    for prompt, target in enumerate(targets):
        members.setdefault(target.name, []).append(prompt)
    fixed: dict[int, Tensor] = {}
    for prompts in members.values():
        logits = torch.cat([cache.all_logits(prompt) for prompt in prompts])
        mapped = transport_targets(logits, targets[prompts[0]])
        fixed |= dict(zip(prompts, mapped.split(cache.size), strict=True))
    return fixed


def _check_settings(
    prompts: Sequence[str], targets: Sequence[Target], settings: AlignmentSettings, cache: BaseCache
) -> None:
    if settings.prompts_per_step > len(prompts):
        raise SettingsError(
            f"prompts_per_step is {settings.prompts_per_step} but there are {len(prompts)} prompts"
        )
    if settings.family in TRANSPORT:
        for target in targets:
            target.weighted_logits()
    expected = cache_base(cache.base, cache.classifier, prompts, settings=settings).describe
    wrong = [name for name, value in cache.describe.items() if value != expected[name]]
    if wrong:
        raise SettingsError(f"base cache was made with another {', '.join(wrong)}; make a new one")


@dataclass
class _Run:
    """One tuning run: the models, the live state, and a step."""

    generator: TunableModel
    classifier: ImageFunction
    embed: ImageFunction
    prompts: list[str]
    targets: tuple[Target, ...]
    settings: AlignmentSettings
    state: AlignmentState
    cache: BaseCache

    def __post_init__(self) -> None:
        self.solver = self.cache.solver
        natural = self.solver.chain_coefficients()[1]
        self.coefficients = effective_coefficients(natural, self.settings.step_weights)
        with torch.no_grad():
            self.prompt_embeds = self.generator.encode_prompts(self.prompts)
        self.objective = Objective(self.settings, self.targets, {})

    def predict_noise(
        self, latents: Tensor, timestep: int | Tensor, prompt_embeds: Tensor
    ) -> Tensor:
        scale = self.settings.guidance_scale
        return self.generator.predict_noise(latents, timestep, prompt_embeds, scale)

    def optimise(self) -> AlignmentStep:
        """One optimiser step: sample, classify, send the gradient back, update."""
        started, before, step = time.perf_counter(), self.cache.evaluations, self.state.step
        batch = self._batch(step)
        results, replayed = self.gradient(batch)
        on_cpu = {k: v.cpu() for k, v in results.items() if isinstance(v, Tensor)}
        cells: dict[str, Any] = results | on_cpu
        rate = self.state.settings.learning_rate_at(step)
        norm = self.state.update(rate)
        self._remember(batch, results)
        return AlignmentStep(
            step=step,
            groups=self.targets[0].groups,
            gradient_norm=norm,
            learning_rate=rate,
            skipped=not math.isfinite(norm),
            prompts=batch.prompts,
            noises=batch.noises,
            forward=len(batch.noises) * len(self.solver) + replayed,
            backward=replayed,
            base=self.cache.evaluations - before,
            seconds=time.perf_counter() - started,
            state=self.state,
            **cells,
        )

    def gradient(self, batch: Batch) -> tuple[dict[str, Any], int]:
        """Leave the gradient of the loss of `batch` in `.grad`; what was read, for the step's
        record, and the denoiser evaluations of replay.
        """
        own = own_rows(len(batch.noises))
        noise = self.generator.noise(self.cache.seed, list(batch.noises[own]))
        embeds = self.prompt_embeds[list(batch.prompts[own])]
        at_once = self.settings.micro_batch
        trajectory = record(self.solver, self.predict_noise, noise, embeds, at_once)
        cotangent, results = self._read(trajectory.sample, batch)
        replayed = self._replay(trajectory, cotangent, batch.step, len(batch.noises))
        sum_gradients(self.state.named.values())
        return results, replayed

    def _batch(self, step: int) -> Batch:
        pairs = schedule(self.settings, step, len(self.targets))
        cached = [self.cache.read(prompt, indices) for prompt, indices in pairs]
        logits, embeds = zip(*cached, strict=True)
        places = tuple(prompt for prompt, indices in pairs for _ in indices)
        noises = tuple(index for _, indices in pairs for index in indices)
        return Batch(step, places, noises, torch.cat(logits), torch.cat(embeds))

    def _read(self, sample: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """dL/dx_0 `[N, C, h, w]`, and the results for the step's record.

        With several micro-batches every image is decoded twice: ranks need all logits before any
        gradient.
        """
        pieces = chunks(len(sample), self.settings.micro_batch)
        leaves = [sample[rows].detach().requires_grad_() for rows in pieces]
        with torch.set_grad_enabled(len(pieces) == 1):
            parts = [self._score(leaf) for leaf in leaves]
        outputs = [join(part) for part in zip(*parts, strict=True)]
        images, logits, embeds = (join_processes(part.detach()) for part in outputs)
        loss, results = self._loss(logits.requires_grad_(), embeds.requires_grad_(), batch)
        own, results["images"] = own_rows(len(logits)), images
        slopes = [slope[own] for slope in torch.autograd.grad(loss, (logits, embeds))]
        if len(pieces) == 1:
            return _pull_back(outputs[1:], leaves[0], slopes), results
        cotangents = [
            _pull_back(self._score(leaf)[1:], leaf, [slope[rows] for slope in slopes])
            for leaf, rows in zip(leaves, pieces, strict=True)
        ]
        return torch.cat(cotangents), results

    def _score(self, sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return score_images(self.generator, self.classifier, self.embed, sample)

    def _loss(self, logits: Tensor, embeds: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        s, detached = self.settings, logits.detach()
        assignment = self.objective.assign(detached, batch, self.state.pool)
        alignment = self.objective.alignment(logits, batch, assignment)
        # less weight where the class must change
        weights = torch.where(assignment.changes, s.consistency_change_factor, 1.0).to(embeds)
        distance = consistency(embeds, batch.base_embeds, weights)
        results = {
            "alignment": float(alignment.detach()),
            "consistency": float(distance.detach()),
            "logits": detached,
            "targets": assignment.values,
            "changes": assignment.changes,
            "cosine": F.cosine_similarity(embeds.detach(), batch.base_embeds, dim=-1),
        }
        return s.alignment_weight * alignment + s.consistency_weight * distance, results

    def _replay(self, trajectory: Trajectory, cotangent: Tensor, step: int, images: int) -> int:
        """Leave this process's part of the gradient in `.grad`; the number of denoiser evaluations
        of all `images` of the batch.
        """
        s = self.settings
        rng = torch.Generator().manual_seed(*derived_seeds(s.seed, Stream.REPLAY_STEPS, step))
        importance = choose_steps(
            len(self.solver), s.replay_steps, s.replay_scheme, self.coefficients, rng, images
        )
        self.state.zero_grad()
        cotangent = cotangent * self.state.loss_scale
        own = importance[:, own_rows(images)]
        replay(self.predict_noise, trajectory, cotangent, self.coefficients, own, s.micro_batch)
        return int(np.count_nonzero(importance))

    def _remember(self, batch: Batch, results: dict[str, Any]) -> None:
        for name, rows in self.objective.groups(batch).items():
            self.state.remember(name, results["logits"][rows], self.settings.pool_size)
        kept = results["cosine"][~results["changes"]]
        if len(kept) and bool(kept.isfinite().all()):
            running = self.state.extra["cosine"]
            running += (1 - COSINE_MEMORY) * (float(kept.mean()) - running)


def _pull_back(outputs: Sequence[Tensor], leaf: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    """The gradient in `leaf` from `slopes`, those in `outputs`; an output may have none."""
    linked = [pair for pair in zip(outputs, slopes, strict=True) if pair[0].requires_grad]
    differentiable, given = zip(*linked, strict=True)
    return torch.autograd.grad(differentiable, leaf, given)[0]
