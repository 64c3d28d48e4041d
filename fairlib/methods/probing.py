"""The same question at every look: losses of a fixed set of people at fixed time steps under fixed
noise.

The loss of a denoiser varies with the time step and the noise far more than with the group, so a
gap of one training batch is mostly chance. Here every row meets the same time steps and the same
noises, and meets them again at each look: a change of the gap is then a change of the denoiser.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fairlib.errors import DataError, SettingsError
from fairlib.methods.sample_weights import checked_groups, checked_sizes, offsets
from fairlib.models.generator import TRAINING_STEPS, alphas_cumprod
from fairlib.models.training import device_of, generator_for


@dataclass(frozen=True, eq=False)
class Probe:
    """P people: latents [P, 4, h, w], `prompt_rows` [P] (rows of the prompt embeddings),
    `group_codes` [P, A].

    times: time steps at which each is looked at, evenly spaced; seed: of the noise, one for each
    time step.
    """

    latents: Tensor
    prompt_rows: Tensor
    group_codes: Tensor
    times: int = 4
    seed: int = 0

    def __post_init__(self):
        if not len(self.latents) == len(self.prompt_rows) == len(self.group_codes) or not len(
            self.latents
        ):
            raise DataError(
                f"a probe of {len(self.latents)} latents, {len(self.prompt_rows)} prompts and "
                f"{len(self.group_codes)} rows of groups; one of each for everybody is needed"
            )
        if not 1 <= self.times <= TRAINING_STEPS:
            raise SettingsError(f"Probe.times is {self.times}; expected 1 to {TRAINING_STEPS}")


def choose_probe(
    latents: Tensor,
    prompt_rows,
    group_codes,
    sizes,
    per_group: int = 4,
    times: int = 4,
    seed: int = 0,
) -> Probe:
    """A probe drawn at random until every value of every attribute has `per_group` people, the
    rarest value first.

    Arguments as in `finetuning.finetune`; give it people that are not trained on. Raises
    `DataError` when a value has fewer.
    """
    sizes = checked_sizes(sizes)
    codes = checked_groups(group_codes, sizes)
    member = torch.zeros(len(codes), sum(sizes), dtype=torch.bool).scatter_(
        1, codes + offsets(sizes), True
    )
    counts = member.sum(0)
    if int(counts.min()) < per_group:
        column = int(counts.argmin())
        attribute = int((offsets(sizes) <= column).sum()) - 1
        raise DataError(
            f"a probe needs {per_group} people of every group; code "
            f"{column - int(offsets(sizes)[attribute])} of "
            f"attribute {attribute} has {int(counts[column])}. Lower per_group or give more people"
        )
    order = torch.randperm(len(codes), generator=generator_for(seed, 25))
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
    prompt_embeds: Tensor,
    prediction: str = "epsilon",
    batch_size: int = 64,
) -> Tensor:
    """Loss of each person, float64 [P]: mean squared error over latents, averaged over the probe's
    time steps.

    prompt_embeds: distinct prompt embeddings [M, L, D]; prediction: as in `prediction_target`.
    """
    device, found = device_of(denoiser), []
    for rows in torch.arange(len(probe.latents)).split(batch_size):
        clean, words = probe.latents[rows], prompt_embeds[probe.prompt_rows[rows]].to(device)
        each = [
            _losses_at(denoiser, probe, level, clean, words, prediction)
            for level in range(probe.times)
        ]
        found.append(torch.stack(each).mean(0))
    return torch.cat(found)


def _losses_at(
    denoiser: nn.Module, probe: Probe, level: int, clean: Tensor, words: Tensor, prediction: str
) -> Tensor:
    device = words.device
    time = torch.full((len(clean),), int((level + 0.5) / probe.times * TRAINING_STEPS))
    noise = torch.randn(clean.shape[1:], generator=generator_for(probe.seed, 27, level)).expand_as(
        clean
    )
    alpha = alphas_cumprod().float()[time].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    target = prediction_target(prediction, clean, noise, time).to(device)
    return (
        sample_losses(denoiser(noisy.to(device), time.to(device), words).sample, target)
        .cpu()
        .double()
    )


def sample_losses(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over C, H, W of the squared error of each sample, [N]; both arguments [N, C, H, W]."""
    return (prediction - target).square().flatten(1).mean(1)


def prediction_target(prediction: str, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """What the denoiser is to predict, [N, 4, h, w]: the noise ("epsilon"), the velocity sqrt(a)
    noise - sqrt(1 - a) clean ("v_prediction", Salimans & Ho 2022), or the clean latents ("sample").
    Raises `SettingsError` on another word.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return clean
    if prediction == "v_prediction":
        alpha = alphas_cumprod().float()[time].view(-1, 1, 1, 1)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    raise SettingsError(
        f"prediction type {prediction!r}; expected 'epsilon', 'v_prediction' or 'sample'"
    )
