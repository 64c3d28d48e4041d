"""The autoencoder of a small model: diffusers' AutoencoderKL, 128 x 128 grey (or 64 x 64
three-channel) pixels to 4 x 16 x 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fairlib.io import to_images
from fairlib.models.training import (
    FitSettings,
    FitStep,
    Trainer,
    batch_indices,
    crops,
    device_of,
)
from fairlib.rng import Stream, torch_rng

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

KL_WEIGHT = 1e-6


def build_autoencoder(
    channels: tuple[int, ...] = (16, 16, 32, 64), image_channels: int = 1, size: int = 128
) -> AutoencoderKL:
    """An untrained AutoencoderKL for `size` x `size` images; each entry of `channels` after the
    first halves the grid.
    """
    from diffusers import AutoencoderKL

    levels = len(channels)
    return AutoencoderKL(
        in_channels=image_channels,
        out_channels=image_channels,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        block_out_channels=channels,
        mid_block_add_attention=False,
        sample_size=size,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )


def reconstruction_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 of pixels plus L1 of their first differences (edges are what an eye looks for)."""
    edges = sum((image.diff(dim=d) - target.diff(dim=d)).abs().mean() for d in (-1, -2))
    return (image - target).abs().mean() + edges


def fit_autoencoder(
    autoencoder: AutoencoderKL,
    images: Tensor,
    settings: FitSettings,
    crop: int = 128,
    trainer: Trainer | None = None,
) -> Iterator[FitStep]:
    """Train on `images` uint8 [N, C, H, W] (0 is -1 and 255 is +1), random `crop`s, mirrored at
    random.

    Freeze `encoder` and `quant_conv` first where the latents must stay as they are (a denoiser may
    have learnt their distribution already).
    """
    trainer, device = trainer or Trainer(autoencoder, settings), device_of(autoencoder)

    def loss(step: int) -> Tensor:
        rng = torch_rng(settings.seed, Stream.AUTOENCODER, step)
        rows = batch_indices(settings.seed, step, len(images), settings.batch_size)
        batch = _crops(images[rows].to(device), crop, rng)
        posterior = autoencoder.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng).to(device)
        latents = posterior.mean + posterior.std * noise
        kl = posterior.kl().mean()
        return reconstruction_loss(autoencoder.decode(latents).sample, batch) + KL_WEIGHT * kl

    yield from trainer.run(loss)


def _crops(images: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Random crops [N, 1, size, size] in [-1, 1], drawn toward the middle, each mirrored with
    probability one half.
    """
    batch = to_images(images)
    if torch.rand((), generator=rng) < 0.5:
        batch = batch.flip(-1)
    room = images.shape[-1] - size
    if room == 0:
        return batch
    middle = torch.rand(len(batch), 2, 2, generator=rng).mean(-1)
    corners = (middle * (room + 1)).long().clamp(max=room).tolist()
    return crops(batch, corners, size, size)


@torch.no_grad()
def standardise_latents(autoencoder: AutoencoderKL, images: Tensor) -> None:
    """Give each latent channel mean 0 and variance 1 over `images`, by folding the affine map into
    the 1 x 1 convolutions.

    The pipeline knows one scaling factor alone; this leaves it nothing to do. Images come out as
    they did before.
    """
    latents = encode(autoencoder, images).to(device_of(autoencoder))
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    # [2C, 2C, 1, 1] and [C, C, 1, 1]
    into, back = autoencoder.quant_conv, autoencoder.post_quant_conv
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight *= std.view(1, -1, 1, 1)
    channels = len(mean)
    into.weight[:channels] /= std.view(-1, 1, 1, 1)
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.bias[channels:] -= 2 * std.log()


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, images: Tensor, batch_size: int = 32) -> Tensor:
    """Posterior means [N, 4, H/8, W/8] on the CPU, unscaled, of uint8 or [-1, 1] float images."""
    found = []
    for part in images.split(batch_size):
        part = to_images(part).to(device_of(autoencoder))
        found.append(autoencoder.encode(part).latent_dist.mean.cpu())
    return torch.cat(found)
