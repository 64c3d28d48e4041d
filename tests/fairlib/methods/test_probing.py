from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fairlib.errors import DataError, SettingsError
from fairlib.methods.probing import Probe, choose_probe, prediction_target, probe_losses
from fairlib.methods.sample_weights import loss_gap
from fairlib.models.generator import add_noise, alphas_cumprod

SIZES = (3, 2)


class Zero(nn.Module):
    """Predicts nothing and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, latents, time, words):
        self.asked.append((latents.clone(), time.clone(), words.clone()))
        return SimpleNamespace(sample=torch.zeros_like(latents))


def people(count=200, seed=0):
    chance = torch.Generator().manual_seed(seed)
    race = torch.bucketize(torch.rand(count, generator=chance), torch.tensor([0.7, 0.93]))
    codes = torch.stack([race, torch.randint(0, 2, (count,), generator=chance)], 1)
    return torch.randn(count, 4, 4, 4, generator=chance), torch.arange(count) % 5, codes


def test_a_probe_holds_every_group():
    latents, prompts, codes = people()
    probe = choose_probe(latents, prompts, codes, SIZES, per_group=3)
    counts = [
        torch.bincount(probe.group_codes[:, a], minlength=size) for a, size in enumerate(SIZES)
    ]
    assert min(int(count.min()) for count in counts) >= 3 and len(probe.latents) <= 3 * 5
    again, other = (
        choose_probe(latents, prompts, codes, SIZES, per_group=3, seed=seed) for seed in (0, 1)
    )
    assert torch.equal(probe.latents, again.latents) and not torch.equal(
        probe.latents, other.latents
    )
    for row in range(len(probe.latents)):  # rows stay together
        source = int((latents == probe.latents[row]).flatten(1).all(1).nonzero()[0])
        assert prompts[source] == probe.prompt_rows[row] and torch.equal(
            codes[source], probe.group_codes[row]
        )


def test_a_group_too_small_for_a_probe_is_named():
    latents, prompts, codes = people()
    codes[:, 0].clamp_(max=1)  # nobody of the third
    with pytest.raises(DataError, match="code 2 of attribute 0 has 0"):
        choose_probe(latents, prompts, codes, SIZES)


def test_everybody_meets_the_same_noise_at_the_same_time_steps_at_every_look():
    latents, prompts, codes = people(12)
    probe, denoiser = Probe(latents, prompts, codes, times=2), Zero()
    embeds = torch.randn(5, 1, 3)
    one, two = (
        probe_losses(denoiser, probe, embeds, batch_size=5),
        probe_losses(denoiser, probe, embeds, batch_size=12),
    )
    assert torch.equal(one, two)  # neither look nor batch matters
    times = sorted({int(t) for _, time, _ in denoiser.asked for t in time})
    assert times == [250, 750]
    for noisy, time, words in denoiser.asked[-2:]:
        alpha = alphas_cumprod().float()[int(time[0])]
        noise = (noisy - alpha.sqrt() * latents) / (1 - alpha).sqrt()
        assert torch.allclose(noise, noise[:1].expand_as(noise), atol=1e-4) and torch.equal(
            words, embeds[prompts]
        )
    assert torch.allclose(one, one[0].expand(12)) and loss_gap(one, codes, SIZES) == pytest.approx(
        0, abs=1e-6
    )


def test_the_loss_of_a_probe_is_that_of_the_target():
    """A denoiser that answers zero has the mean square of the target as its loss."""
    latents, prompts, codes = people(6)
    probe = Probe(latents, prompts, codes, times=1)
    found = probe_losses(Zero(), probe, torch.zeros(5, 1, 3), prediction="sample")
    assert found.tolist() == pytest.approx(latents.square().mean((1, 2, 3)).tolist(), rel=1e-6)


def test_targets_are_those_of_the_prediction_types():
    """Noise and velocity give back the clean latents by their definitions; another word is
    refused.
    """
    clean = torch.randn(8, 4, 4, 4)
    noisy, time, noise = add_noise(clean, torch.Generator().manual_seed(0))
    alpha = alphas_cumprod().float()[time].view(-1, 1, 1, 1)
    velocity = prediction_target("v_prediction", clean, noise, time)
    assert torch.allclose(alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity, clean, atol=1e-5)
    assert (
        prediction_target("epsilon", clean, noise, time) is noise
        and prediction_target("sample", clean, noise, time) is clean
    )
    with pytest.raises(SettingsError, match="prediction type 'score'"):
        prediction_target("score", clean, noise, time)


def test_a_probe_of_unequal_parts_is_refused():
    latents, prompts, codes = people(6)
    with pytest.raises(DataError, match="5 rows of groups"):
        Probe(latents, prompts, codes[:5])
    with pytest.raises(SettingsError, match="Probe.times is 0"):
        Probe(latents, prompts, codes, times=0)
