"""Models of Stable Diffusion 1.5's size, and tiny ones of the same make, with random weights."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fairlib.methods.base_cache import ImageFunction
from fairlib.models.classifier import WIDE, build_classifier
from fairlib.models.generator import Evaluations, Generator, alphas_cumprod

PRECISIONS = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Size:
    """Channels of the denoiser's levels and of the autoencoder's, and what belongs to them.

    latent: side of the latents; the autoencoder makes images of `latent` times two to the number of
    its levels less one. words: of a prompt, and their width. clip: of a vision transformer.
    """

    name: str
    denoiser: tuple[int, ...]
    autoencoder: tuple[int, ...]
    latent: int
    words: tuple[int, int]
    layers: int = 2
    heads: int = 8
    norm_groups: int = 32
    clip: dict[str, Any] = field(default_factory=dict)  # by default that of ViT-B/32


STABLE_DIFFUSION = Size("SD 1.5", (320, 640, 1280, 1280), (128, 256, 512, 512), 64, (77, 768))
TINY = Size(
    "tiny",
    (16, 32),
    (8, 8, 8, 8),
    8,
    (7, 16),
    layers=1,
    heads=2,
    norm_groups=8,
    clip={
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "projection_dim": 16,
    },
)


@contextmanager
def seeded(device: str) -> Iterator[None]:
    """Modules built in the block lie on `device`, and are a function of nothing else."""
    cards = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cards), torch.device(device):
        torch.manual_seed(0)
        yield


class SizedGenerator(Generator):
    """A generator of this size without a text encoder: embeddings of prompts are random numbers."""

    def __init__(self, size: Size, device: str = "cpu", dtype: torch.dtype = torch.float32):
        with seeded(device):
            vae, unet = build_autoencoder(size), build_denoiser(size)
        for part in (vae, unet):
            part.requires_grad_(False).eval()
            getattr(part, PRECISIONS[dtype])().to(memory_format=torch.channels_last)
        self.device, self.size = torch.device(device), size
        self.pipeline, self.denoiser = SimpleNamespace(vae=vae), unet
        self.mean_latent, self.grey = None, False
        self.alphas_cumprod, self.prediction_type = alphas_cumprod(), "epsilon"
        self.latent_shape = (4, size.latent, size.latent)
        self.evaluations, self.purpose = Evaluations(), "sampling"

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        seeds = [torch.Generator().manual_seed(zlib.crc32(text.encode())) for text in prompts]
        rows = [torch.randn(self.size.words, generator=seed) for seed in seeds]
        return torch.stack(rows).to(self.device)


def build_denoiser(size: Size) -> torch.nn.Module:
    """The UNet: words are attended to at every level but the coarsest, as in Stable Diffusion."""
    from diffusers import UNet2DConditionModel

    attending = len(size.denoiser) - 1
    return UNet2DConditionModel(
        sample_size=size.latent,
        layers_per_block=size.layers,
        block_out_channels=size.denoiser,
        down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
        cross_attention_dim=size.words[1],
        attention_head_dim=size.heads,
        norm_num_groups=size.norm_groups,
    )


def build_autoencoder(size: Size) -> torch.nn.Module:
    """The autoencoder of latent diffusion, of colour images."""
    from diffusers import AutoencoderKL

    levels = len(size.autoencoder)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.autoencoder,
        layers_per_block=size.layers,
        norm_num_groups=size.norm_groups,
        sample_size=size.latent * 2 ** (levels - 1),
    )


def readers(size: Size, device: str = "cpu") -> tuple[ImageFunction, ImageFunction]:
    """A tuning classifier of two groups, and the image tower of a CLIP; in float32."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with seeded(device):
        classifier = build_classifier({"group": "binary"}, replace(WIDE, channels=3))
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**size.clip))
    for part in (classifier, tower):
        part.eval().requires_grad_(False)

    def embed(images: Tensor) -> Tensor:
        side = (tower.config.image_size,) * 2
        return tower(F.interpolate(images, side, mode="bilinear", antialias=True)).image_embeds

    return classifier, embed
