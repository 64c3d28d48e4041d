"""A diffusion model of one number, the "size" of what it draws, whose truth is known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

BASE_MEANS = {"HGG": -0.42, "LGG": -0.10}
SPREAD = 0.5


def stable_diffusion_schedule() -> torch.Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


class SizeGenerator(nn.Module):
    """Latents `[N, 1, 1, 1]`: the exact denoiser of N(base mean of the prompt, 0.5^2), plus a small
    network.
    """

    prediction_type = "epsilon"

    def __init__(self):
        super().__init__()
        self.alphas_cumprod = stable_diffusion_schedule()
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)
        )
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            self.net[-1].weight.zero_()
            self.net[-1].bias.zero_()
        self.calls = 0
        self.lora_rank = None

    def encode_prompts(self, prompts):
        return torch.tensor([[[BASE_MEANS[prompt]]] for prompt in prompts])

    def noise(self, seed, indices):
        rows = [
            torch.randn(1, 1, 1, generator=torch.Generator().manual_seed(seed * 100003 + i))
            for i in indices
        ]
        return torch.stack(rows)

    def predict_noise(self, latents, timestep, prompt_embeds, guidance_scale):
        self.calls += len(latents)
        timestep = torch.as_tensor(timestep).view(-1, 1, 1, 1)
        signal = self.alphas_cumprod.to(latents)[timestep]
        alpha, variance = signal**0.5, 1 - signal
        mean = prompt_embeds[:, :, :, None]
        exact = variance**0.5 * (latents - alpha * mean) / (signal * SPREAD**2 + variance)
        flat = latents.flatten(1)
        inputs = torch.cat(
            [flat, (timestep / 1000).expand_as(latents).flatten(1), prompt_embeds.flatten(1)], dim=1
        )
        return exact + self.net(inputs).reshape(latents.shape)

    def decode(self, latents):
        return torch.tanh(latents / 2).expand(-1, 1, 4, 4)

    def trainable_parameters(self):
        return dict(self.net.named_parameters())

    def add_lora(self, rank, seed):
        self.lora_rank = rank
        for parameter in self.net[:-1].parameters():
            parameter.requires_grad_(False)
        self.trainable_parameters = lambda: dict(self.net[-1].named_parameters())

    def frozen_copy(self):
        return copy.deepcopy(self).requires_grad_(False)


def read_size(images):
    return 2 * torch.atanh(images.mean(dim=(1, 2, 3)).clamp(-0.999, 0.999))


def classifier(images):
    """Logit of female: four times the size."""
    return 4 * read_size(images)


def embed(images):
    angle = 0.3 * read_size(images)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


@pytest.fixture
def size_generator():
    return SizeGenerator()


@pytest.fixture
def size_readers():
    return classifier, embed


@pytest.fixture
def alphas_cumprod():
    return stable_diffusion_schedule()
