"""Fine-tuning a denoiser under a weight a sample: one loop for Fair Bayesian Perturbation and every
control.

    minimise over the denoiser  mean_i w_i mean_{C,H,W} (prediction_i - target_i)^2       (Luo et
    al., arXiv 2412.20374)

Rows, time steps, noise and dropped prompts of a step are functions of (seed, step) alone: arms of
one seed see the same batches and the same noises, and may be compared in pairs. Where the weights
come from, `methods.sample_weights` says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.methods.probing import Probe, prediction_target, probe_losses, sample_losses
from fairlib.methods.sample_weights import (
    SampleWeights,
    attribute_gaps,
    checked_groups,
    group_means,
    loss_gap,
)
from fairlib.models.generator import add_noise, alphas_cumprod, drop_words
from fairlib.models.training import FitSettings, Trainer, batch_indices, device_of, generator_for

CONSTANT = 1 << 60  # a horizon so far away that the cosine stays at one
PREFIX = "sample_weights/"


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of `finetune`. The paper: AdamW at a constant 1e-5, batches of 32 over two GPUs,
    gradients clipped at 1, EMA.

    anneal: "none" keeps the rate after `warmup` steps, "cosine" lets it fall to zero at `steps`.
    prompt_dropout: share of prompts that are emptied (classifier-free guidance). probe_every: steps
    from one look at the probe to the next.
    """

    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup: int = 0
    anneal: Literal["none", "cosine"] = "none"
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    prompt_dropout: float = 0.1
    probe_every: int = 5
    seed: int = 0

    def __post_init__(self):
        for name, holds, wanted in (
            ("steps", self.steps >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("gradient_clip", self.gradient_clip > 0, "above 0"),
            ("anneal", self.anneal in ("none", "cosine"), "'none' or 'cosine'"),
            ("warmup", self.warmup >= 0, "at least 0"),
            ("ema_decay", 0 <= self.ema_decay < 1, "in [0, 1)"),
            ("prompt_dropout", 0 <= self.prompt_dropout < 1, "in [0, 1)"),
            ("probe_every", self.probe_every >= 1, "at least 1"),
        ):
            if not holds:
                raise SettingsError(
                    f"FinetuneSettings.{name} is {getattr(self, name)!r}; expected {wanted}"
                )

    @property
    def fit(self) -> FitSettings:
        """The same as settings of the training loop that all networks share."""
        return FitSettings(
            self.steps,
            self.batch_size,
            self.learning_rate,
            self.warmup,
            self.weight_decay,
            self.gradient_clip,
            self.ema_decay,
            self.seed,
            horizon=CONSTANT if self.anneal == "none" else 0,
        )


@dataclass(frozen=True, eq=False)
class FinetuneStep:
    """What one step saw and did.

    step: the step just done, 1-based. loss: weighted; plain_loss: the same without weights.
    group_losses: unweighted mean of every value, float64 [sum of sizes], NaN where the batch has
    nobody. gap: sum over attributes of highest less lowest group loss, attributes with a missing
    group left out. weight_min, weight_mean, share_negative: of the batch's weights. sigma: in use
    at this step, [sum of sizes], or None. probe_losses, probe_gap: the same of the probe after this
    step, in the steps that look at it, otherwise None.
    """

    step: int
    loss: float
    learning_rate: float
    plain_loss: float
    group_losses: Tensor
    gap: float
    weight_min: float
    weight_mean: float
    share_negative: float
    sigma: Tensor | None
    probe_losses: Tensor | None
    probe_gap: float | None


class FinetuneState(Trainer):
    """Parameters, Adam moments, EMA, step, and what the weights have learnt: all that must outlive
    a killed run.

    A denoiser that takes no gradients anywhere is made to take them everywhere; with LoRA weights,
    those alone are trained. `to_tensors` and `from_tensors` go through safetensors; `use_average`
    puts the EMA in place at the end.
    """

    def __init__(self, denoiser: nn.Module, weights: SampleWeights, settings: FinetuneSettings):
        if not any(parameter.requires_grad for parameter in denoiser.parameters()):
            denoiser.requires_grad_(True)
        super().__init__(denoiser, settings.fit)
        self.weights = weights

    def to_tensors(self) -> dict[str, Tensor]:
        held = self.weights.state_dict()
        return super().to_tensors() | {
            PREFIX + name: _as_tensor(value) for name, value in held.items()
        }

    def from_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Raises `WeightsError` when the state is that of another network or of another arm."""
        self.weights.load_state_dict(
            {
                name.removeprefix(PREFIX): value.clone()
                for name, value in tensors.items()
                if name.startswith(PREFIX)
            }
        )
        super().from_tensors(tensors)


def finetune(
    denoiser: nn.Module,
    latents: Tensor,
    prompt_embeds: Tensor,
    prompt_rows,
    group_codes,
    weights: SampleWeights,
    settings: FinetuneSettings,
    *,
    null: Tensor | None = None,
    scheduler=None,
    state: FinetuneState | None = None,
    probe: Probe | None = None,
) -> Iterator[FinetuneStep]:
    """Train `denoiser` in place, yielding a `FinetuneStep` after each optimiser step; on the device
    the denoiser is on.

    latents: scaled, [N, 4, h, w]; prompt_embeds: distinct prompt embeddings [M, L, D]; prompt_rows:
    [N] rows of those;
    group_codes: [N, A] integers; null: embedding [1, L, D] of the empty prompt, needed unless
    `prompt_dropout` is 0.
    scheduler: of a diffusers pipeline, for its prediction type; without it the denoiser predicts
    noise. state: of the same denoiser and weights, to go on from and to save from. probe: looked at
    every `probe_every` steps whatever the arm, so that arms can be compared, and shown to weights
    that observe the probe.

    Raises `DataError` when lengths differ or a loss is not finite, `SettingsError` when a part is
    missing or the schedule of noise is not this library's, `WeightsError` when `state` belongs to
    other weights.
    """
    data = _Data(latents, prompt_embeds, prompt_rows, group_codes, null, weights.sizes)
    prediction = prediction_type(scheduler)
    state = state or FinetuneState(denoiser, weights, settings)
    _check(data, weights, settings, state, denoiser, probe)
    device, seen = device_of(denoiser), {}

    def loss(step: int) -> Tensor:
        rows = batch_indices(settings.seed, step, len(data.latents), settings.batch_size)
        chance = generator_for(settings.seed, 21, step)
        clean = data.latents[rows]
        noisy, time, noise = add_noise(clean, chance)
        words = drop_words(
            data.embeds[data.prompts[rows]], data.null, settings.prompt_dropout, chance
        )
        target = prediction_target(prediction, clean, noise, time).to(device)
        each = sample_losses(
            denoiser(noisy.to(device), time.to(device), words.to(device)).sample, target
        )
        given = weights.weights(data.groups[rows], step)
        seen.update(
            losses=each.detach().cpu(),
            groups=data.groups[rows],
            weights=given,
            sigma=weights.sigma(step),
        )
        value = (given.to(each) * each).mean()
        if not math.isfinite(float(value.detach())):
            raise DataError(
                f"the loss of step {step + 1} is not finite; lower the learning_rate, or take "
                "weights that are "
                "never negative (the repaired form)"
            )
        return value

    for done in state.run(loss):
        looked = _look(denoiser, data, probe, prediction, settings, done.step)
        if weights.observes == "batch":
            weights.observe(seen["losses"], seen["groups"], done.step - 1)
        elif looked is not None:
            weights.observe(looked, probe.group_codes, done.step - 1)
        yield _record(done, seen, weights.sizes, probe, looked)


def prediction_type(scheduler) -> str:
    """ "epsilon", "v_prediction" or "sample" of a diffusers scheduler; "epsilon" for None.

    Raises `SettingsError` when its schedule is not the scaled-linear one of Stable Diffusion that
    this library noises with.
    """
    if scheduler is None:
        return "epsilon"
    theirs = torch.as_tensor(scheduler.alphas_cumprod).double().cpu()
    ours = alphas_cumprod()
    if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=1e-3, atol=1e-5):
        raise SettingsError(
            f"{type(scheduler).__name__} has another noise schedule than Stable Diffusion's "
            "scaled-linear one "
            "(0.00085 to 0.012 in 1000 steps); this loop knows that one alone"
        )
    return scheduler.config.prediction_type


class _Data:
    """The training set on the CPU, checked once."""

    def __init__(self, latents, embeds, prompts, groups, null, sizes):
        self.latents, self.embeds = latents.detach().cpu(), embeds.detach().cpu()
        self.prompts = (
            torch.as_tensor(prompts if isinstance(prompts, Tensor) else np.asarray(prompts))
            .cpu()
            .long()
        )
        self.groups = checked_groups(groups, sizes)
        self.null = torch.zeros_like(self.embeds[:1]) if null is None else null.detach().cpu()
        counts = {
            "latents": len(self.latents),
            "prompt_rows": len(self.prompts),
            "group_codes": len(self.groups),
        }
        if len(set(counts.values())) > 1 or not len(self.latents):
            raise DataError(f"one row each is needed, and at least one; found {counts}")
        if int(self.prompts.min()) < 0 or int(self.prompts.max()) >= len(self.embeds):
            raise DataError(
                f"prompt_rows run from {int(self.prompts.min())} to "
                f"{int(self.prompts.max())}, "
                f"but there are {len(self.embeds)} prompt embeddings"
            )
        self.has_null = null is not None


def _check(
    data: _Data,
    weights: SampleWeights,
    settings: FinetuneSettings,
    state: FinetuneState,
    denoiser,
    probe,
) -> None:
    if settings.prompt_dropout > 0 and not data.has_null:
        raise SettingsError(
            f"prompt_dropout is {settings.prompt_dropout} but the empty prompt's embedding `null` "
            "is missing"
        )
    if weights.observes == "probe" and probe is None:
        raise SettingsError(
            f"{type(weights).__name__} observes a probe; give one, see methods.probing.choose_probe"
        )
    if state.weights is not weights or state.module is not denoiser:
        raise WeightsError(
            "this state is of other weights or another denoiser; make FinetuneState(denoiser, "
            "weights, settings)"
        )


def _look(
    denoiser,
    data: _Data,
    probe: Probe | None,
    prediction: str,
    settings: FinetuneSettings,
    step: int,
) -> Tensor | None:
    if probe is None or step % settings.probe_every:
        return None
    return probe_losses(denoiser, probe, data.embeds, prediction, settings.batch_size)


def _record(
    done, seen: dict, sizes: tuple[int, ...], probe: Probe | None, looked: Tensor | None
) -> FinetuneStep:
    weights, probe_means = seen["weights"], None
    if looked is not None:
        probe_means = group_means(looked, probe.group_codes, sizes)
    return FinetuneStep(
        step=done.step,
        loss=done.loss,
        learning_rate=done.learning_rate,
        plain_loss=float(seen["losses"].mean()),
        group_losses=group_means(seen["losses"], seen["groups"], sizes),
        gap=loss_gap(seen["losses"], seen["groups"], sizes),
        weight_min=float(weights.min()),
        weight_mean=float(weights.mean()),
        share_negative=float((weights < 0).double().mean()),
        sigma=seen["sigma"],
        probe_losses=probe_means,
        probe_gap=None
        if probe_means is None
        else float(attribute_gaps(probe_means, sizes).nansum()),
    )


def _as_tensor(value) -> Tensor:
    kind = torch.int64 if isinstance(value, int) else torch.float64
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=kind)
