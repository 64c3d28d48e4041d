"""Fine-tuning a denoiser with one weight a sample: one loop for Fair Bayesian Perturbation and
every rival.

    minimise over the denoiser  mean_i w_i mean_{C,H,W} (prediction_i - target_i)^2
    (Luo et al., arXiv 2412.20374)

Rows, time steps, noise and dropped prompts of a step are functions of (seed, step) alone: methods
of one seed see the same batches and the same noises, and may be compared in pairs. Where the
weights come from, `methods.group_weights` and `methods.perturbation` say.

The gap between groups is measured on a probe. The loss of a denoiser varies with the time step and
the noise far more than with the group, so a gap of one training batch is mostly chance. In a probe
every row meets the same time steps and noises, and meets them again at each measurement: a change
of the gap is then a change of the denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.methods.group_weights import (
    SampleWeights,
    attribute_gaps,
    checked_groups,
    checked_sizes,
    group_means,
    loss_gap,
    offsets,
)
from fairlib.models.generator import (
    TRAINING_STEPS,
    denoising_task,
    diffuse,
    prediction_target,
    training_schedule,
)
from fairlib.models.training import (
    FitSettings,
    FitStep,
    Trainer,
    batch_indices,
    device_of,
    same_length,
)
from fairlib.rng import Stream, torch_rng
from fairlib.settings import BelowOne, Count, Natural, Positive


@dataclass(frozen=True)
class FinetuneSettings(FitSettings):
    """Settings of `finetune`. The paper: AdamW at a constant 1e-5, batches of 32 over two GPUs,
    gradients clipped at 1, EMA.

    Parameters
    ----------
    steps, batch_size, learning_rate, warmup, anneal, ema_decay, seed and the others
        As of `models.training.FitSettings`; of `seed` are rows, time steps, noise and emptied
        prompts.
    prompt_dropout
        Share of prompts that are emptied (classifier-free guidance).
    probe_every
        Steps from one measurement of the probe to the next.

    Raises
    ------
    SettingsError
        A word or a number that means nothing.
    """

    steps: Count = 1000
    batch_size: Count = 32
    learning_rate: Positive = 1e-4
    warmup: Natural = 0
    anneal: Literal["cosine", "none"] = "none"
    ema_decay: BelowOne = 0.999
    prompt_dropout: BelowOne = 0.1
    probe_every: Count = 5


class Embeddings(Protocol):
    """Prompt embeddings `[M, L, D]` that are made when they are needed, by rows `[B]`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class FinetuneStep:
    """The record of one step.

    step: the step just done, 1-based. loss: weighted; plain_loss: the same without weights.
    group_losses: unweighted mean of every value, float64 [sum of sizes], NaN where the batch lacks
    it. gap: sum over attributes of highest less lowest group loss, attributes with a missing group
    left out. weight_min, weight_mean, share_negative: of the batch's weights. sigma: in use at this
    step, [sum of sizes], or None. probe_losses, probe_gap: the same of the probe after this step,
    in the steps that measure it, otherwise None.
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
        super().__init__(denoiser, settings)
        self.weights = weights

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything, flat, for `fairlib.io.write_tensors`."""
        self.extra = {name: _as_tensor(value) for name, value in self.weights.state_dict().items()}
        return super().to_tensors()

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises `WeightsError` when the state is that of another network or method."""
        super().from_tensors(tensors)
        self.weights.load_state_dict(self.extra)


def finetune(
    denoiser: nn.Module,
    latents: Tensor,
    prompt_embeds: Tensor | Embeddings,
    prompt_rows: Tensor | ArrayLike,
    group_codes: Tensor | ArrayLike,
    weights: SampleWeights,
    settings: FinetuneSettings,
    *,
    null: Tensor | None = None,
    scheduler: Any = None,
    state: FinetuneState | None = None,
    probe: Probe | None = None,
) -> Iterator[FinetuneStep]:
    """Train `denoiser` in place, yielding a `FinetuneStep` after each optimiser step; on the device
    the denoiser is on.

    Parameters
    ----------
    denoiser
        UNet of a pipeline that `Generator` can drive; a learned variance in its further channels
        is not trained.
    latents
        Scaled, `[N, 4, h, w]`.
    prompt_embeds
        Distinct prompt embeddings `[M, L, D]`, or what makes rows of them when they are needed.
    prompt_rows
        The row of `prompt_embeds` of each sample, `[N]`.
    group_codes
        Integers `[N, A]`, one column an attribute.
    weights
        Weight of each sample's loss, such as `group_weights.GroupDRO`.
    settings
        Length, learning rate and so on.
    null
        Embedding `[1, L, D]` of the empty prompt, needed unless `prompt_dropout` is 0.
    scheduler
        Of a diffusers pipeline, for its noise and prediction type, as in
        `generator.training_schedule`.
    state
        Of the same denoiser and weights, to go on from and to save from.
    probe
        Measured every `probe_every` steps whatever the method, so that methods can be compared, and
        shown to weights that observe the probe.

    Raises
    ------
    DataError
        Lengths that differ, or a loss that is not finite.
    SettingsError
        A part that is missing.
    WeightsError
        A `state` that belongs to other weights.
    """
    data = _Data.checked(latents, prompt_embeds, prompt_rows, group_codes, null, weights.sizes)
    prediction, alphas = training_schedule(scheduler)
    state = state or FinetuneState(denoiser, weights, settings)
    _check(null, weights, settings, state, denoiser, probe)
    device = device_of(denoiser)
    batch: dict[str, Any] = {}

    def loss(step: int) -> Tensor:
        rows = batch_indices(settings.seed, step, len(data.latents), settings.batch_size)
        rng = torch_rng(settings.seed, Stream.FINETUNING, step)
        words, dropout = data.embeds[data.prompts[rows]], settings.prompt_dropout
        *inputs, target = denoising_task(
            data.latents[rows], words, data.null, dropout, rng, prediction, device, alphas
        )
        each, groups = sample_losses(denoiser(*inputs).sample, target), data.groups[rows]
        given, sigma = weights.weights(groups, step), weights.sigma(step)
        batch.update(losses=each.detach().cpu(), groups=groups, weights=given, sigma=sigma)
        return _finite((given.to(each) * each).mean(), step)

    for done in state.run(loss):
        measured = None
        if probe is not None and done.step % settings.probe_every == 0:
            task = (data.embeds, prediction, settings.batch_size, alphas)
            measured = probe_losses(denoiser, probe, *task)
        if weights.observes == "batch":
            weights.observe(batch["losses"], batch["groups"], done.step - 1)
        elif measured is not None and probe is not None:
            weights.observe(measured, probe.group_codes, done.step - 1)
        yield _record(done, batch, weights.sizes, probe, measured)


@dataclass(frozen=True, eq=False)
class _Data:
    """The training set on the CPU."""

    latents: Tensor
    embeds: Tensor | Embeddings
    prompts: Tensor
    groups: Tensor
    null: Tensor

    @classmethod
    def checked(
        cls,
        latents: Tensor,
        embeds: Tensor | Embeddings,
        prompts: Tensor | ArrayLike,
        groups: Tensor | ArrayLike,
        null: Tensor | None,
        sizes: tuple[int, ...],
    ) -> _Data:
        latents = latents.detach().cpu()
        embeds = embeds.detach().cpu() if isinstance(embeds, Tensor) else embeds
        rows = prompts if isinstance(prompts, Tensor) else torch.as_tensor(np.asarray(prompts))
        rows, codes = rows.cpu().long(), checked_groups(groups, sizes)
        same_length(latents=latents, prompt_rows=rows, group_codes=codes)
        if int(rows.min()) < 0 or int(rows.max()) >= len(embeds):
            raise DataError(
                f"prompt_rows run from {int(rows.min())} to {int(rows.max())}, "
                f"but there are {len(embeds)} prompt embeddings"
            )
        null = torch.zeros_like(embeds[torch.tensor([0])]) if null is None else null.detach().cpu()
        return cls(latents, embeds, rows, codes, null)


def _check(
    null: Tensor | None,
    weights: SampleWeights,
    settings: FinetuneSettings,
    state: FinetuneState,
    denoiser: nn.Module,
    probe: Probe | None,
) -> None:
    if settings.prompt_dropout > 0 and null is None:
        raise SettingsError(
            f"prompt_dropout is {settings.prompt_dropout} but the empty prompt's embedding `null` "
            "is missing"
        )
    if weights.observes == "probe" and probe is None:
        what = f"{type(weights).__name__} observes a probe"
        raise SettingsError(f"{what}; give one, see methods.finetuning.choose_probe")
    if state.weights is not weights or state.module is not denoiser:
        what = "this state is of other weights or another denoiser"
        raise WeightsError(f"{what}; make FinetuneState(denoiser, weights, settings)")


def _record(
    done: FitStep,
    batch: dict[str, Any],
    sizes: tuple[int, ...],
    probe: Probe | None,
    measured: Tensor | None,
) -> FinetuneStep:
    weights, means, gap = batch["weights"], None, None
    if measured is not None and probe is not None:
        means = group_means(measured, probe.group_codes, sizes)
        gap = float(attribute_gaps(means, sizes).nansum())
    return FinetuneStep(
        step=done.step,
        loss=done.loss,
        learning_rate=done.learning_rate,
        plain_loss=float(batch["losses"].mean()),
        group_losses=group_means(batch["losses"], batch["groups"], sizes),
        gap=loss_gap(batch["losses"], batch["groups"], sizes),
        weight_min=float(weights.min()),
        weight_mean=float(weights.mean()),
        share_negative=float((weights < 0).double().mean()),
        sigma=batch["sigma"],
        probe_losses=means,
        probe_gap=gap,
    )


def _finite(loss: Tensor, step: int) -> Tensor:
    if not math.isfinite(float(loss.detach())):
        raise DataError(
            f"the loss of step {step + 1} is not finite; lower the learning_rate, or take "
            "weights that are never negative (the repaired form)"
        )
    return loss


def _as_tensor(value: Tensor | int | float) -> Tensor:
    kind = torch.int64 if isinstance(value, int) else torch.float64
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=kind)


@dataclass(frozen=True, eq=False)
class Probe:
    """P samples: latents [P, 4, h, w], `prompt_rows` [P] (rows of the prompt embeddings),
    `group_codes` [P, A].

    times: time steps at which each is measured, evenly spaced; seed: of the noise, one for each
    time step.
    """

    latents: Tensor
    prompt_rows: Tensor
    group_codes: Tensor
    times: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        parts = {"prompt_rows": self.prompt_rows, "group_codes": self.group_codes}
        same_length(latents=self.latents, **parts)
        if not 1 <= self.times <= TRAINING_STEPS:
            raise SettingsError(f"Probe.times is {self.times}; expected 1 to {TRAINING_STEPS}")


def choose_probe(
    latents: Tensor,
    prompt_rows: Tensor | ArrayLike,
    group_codes: Tensor | ArrayLike,
    sizes: tuple[int, ...],
    per_group: int = 4,
    times: int = 4,
    seed: int = 0,
) -> Probe:
    """Draw a probe at random until every value of every attribute has `per_group` samples, the
    rarest value first.

    Arguments as in `finetune`; give it samples that are not trained on. Raises `DataError` when a
    value has fewer.
    """
    sizes = checked_sizes(sizes)
    codes = checked_groups(group_codes, sizes)
    member = torch.zeros(len(codes), sum(sizes), dtype=torch.bool)
    member.scatter_(1, codes + offsets(sizes), True)
    counts = member.sum(0)
    if int(counts.min()) < per_group:
        column = int(counts.argmin())
        attribute = int((offsets(sizes) <= column).sum()) - 1
        raise DataError(
            f"a probe needs {per_group} samples of every group; code "
            f"{column - int(offsets(sizes)[attribute])} of "
            f"attribute {attribute} has {int(counts[column])}. Lower per_group or give more samples"
        )
    order = torch.randperm(len(codes), generator=torch_rng(seed, Stream.PROBE_ROWS))
    chosen = torch.zeros(len(codes), dtype=torch.bool)
    for column in counts.argsort(stable=True).tolist():
        free = order[(member[:, column] & ~chosen)[order]]
        chosen[free[: max(0, per_group - int((member[:, column] & chosen).sum()))]] = True
    rows = chosen.nonzero()[:, 0]
    prompts = torch.as_tensor(np.asarray(prompt_rows))
    return Probe(latents.detach().cpu()[rows], prompts[rows], codes[rows], times, seed)


@torch.no_grad()
def probe_losses(
    denoiser: nn.Module,
    probe: Probe,
    prompt_embeds: Tensor | Embeddings,
    prediction: str = "epsilon",
    batch_size: int = 64,
    alphas: Tensor | None = None,
) -> Tensor:
    """Loss of each sample, float64 [P]: mean squared error over latents, averaged over the probe's
    time steps.

    prompt_embeds: distinct prompt embeddings [M, L, D]; prediction: as in `prediction_target`;
    alphas: as in `generator.diffuse`.
    """
    total = TRAINING_STEPS if alphas is None else len(alphas)
    device, losses = device_of(denoiser), []
    streams = [torch_rng(probe.seed, Stream.PROBE_NOISE, level) for level in range(probe.times)]
    noises = [torch.randn(probe.latents.shape[1:], generator=rng) for rng in streams]
    for rows in torch.arange(len(probe.latents)).split(batch_size):
        clean, words = probe.latents[rows], prompt_embeds[probe.prompt_rows[rows]].to(device)
        each = []
        for level, one in enumerate(noises):
            time = torch.full((len(clean),), int((level + 0.5) / probe.times * total))
            noise = one.expand_as(clean)
            target = prediction_target(prediction, clean, noise, time, alphas).to(device)
            noisy = diffuse(clean, noise, time, alphas).to(device)
            predicted = denoiser(noisy, time.to(device), words).sample
            each.append(sample_losses(predicted, target).cpu().double())
        losses.append(torch.stack(each).mean(0))
    return torch.cat(losses)


def sample_losses(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over C, H, W of the squared error of each sample, [N]; both arguments [N, C, H, W], of
    which the prediction may have further channels (a learned variance), which do not count.

    book/diffusion.md, Eq. (eq-denoise).
    """
    return (prediction[:, : target.shape[1]] - target).square().flatten(1).mean(1)
