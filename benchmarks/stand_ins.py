"""Stand-ins for trained models, so that costs can be measured without any weights."""

from __future__ import annotations

import torch
from torch import Tensor


class RandomGenerator:
    """An untrained denoiser on `[N, 4, 16, 16]`, for machines without the base weights."""

    def __init__(self):
        from fairlib.models.generator import alphas_cumprod, build_denoiser

        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.denoiser = build_denoiser((16, 32), text_width=16).eval()
        self.alphas_cumprod = alphas_cumprod()

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        seeds = [torch.Generator().manual_seed(len(prompt)) for prompt in prompts]
        return torch.stack([torch.randn(7, 16, generator=seed) for seed in seeds])

    def noise(self, seed: int, indices: list[int]) -> Tensor:
        seeds = [torch.Generator().manual_seed(seed * 100_003 + index) for index in indices]
        return torch.stack([torch.randn(4, 16, 16, generator=each) for each in seeds])

    def predict_noise(
        self, latents: Tensor, timestep: int | Tensor, prompt_embeds: Tensor, guidance_scale: float
    ) -> Tensor:
        return self.denoiser(latents, timestep, prompt_embeds).sample

    def decode(self, latents: Tensor) -> Tensor:
        return torch.tanh(
            torch.nn.functional.interpolate(latents.mean(dim=1, keepdim=True), scale_factor=8)
        )

    def trainable_parameters(self) -> dict:
        return dict(self.denoiser.named_parameters())


def bright_extent(images: Tensor) -> Tensor:
    """A differentiable stand-in for the tuning classifier: the standardised extent of what
    is brighter than the background.
    """
    extent = torch.sigmoid((images + 0.6) / 0.1).mean(dim=(1, 2, 3))
    return -(extent - extent.detach().mean()) / (extent.detach().std() + 1e-6)


def pooled_pixels(images: Tensor) -> Tensor:
    """A stand-in for the image embedding: 8 x 8 means about the background."""
    return torch.nn.functional.adaptive_avg_pool2d(images + 1.01, 8).flatten(1)
