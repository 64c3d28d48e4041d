"""Images in the studies: kept as bytes with a table, sampled, encoded, and read by classifiers that
are fitted on images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from fairlib.io import read_tensors, to_images, write_bytes, write_tensors
from fairlib.models.classifier import (
    Classifier,
    ClassifierSettings,
    Heads,
    build_classifier,
    fit_classifier,
    load_classifier,
)
from fairlib.models.generator import Generator
from studies.engine import accelerator
from studies.engine.stage import Progress
from studies.engine.study import read_table


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their table, one row each; `stored`: uint8 [N, C, H, W] (0 is -1, 255 is +1)."""

    stored: Tensor
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    @property
    def images(self) -> Tensor:
        """float32 [N, C, H, W] in [-1, 1]."""
        return to_images(self.stored)

    def first(self, count: int) -> Images:
        """At most `count` of them."""
        return Images(self.stored[:count], self.table.iloc[:count])


def load_images(folder: Path) -> Images:
    """Read a folder of `save_images`; a word such as NA stays a word."""
    images = read_tensors(folder / "images.safetensors")["images"]
    return Images(images, read_table(folder / "table.csv"))


def save_images(folder: Path, stored: Tensor, table: pd.DataFrame) -> None:
    """Write images as bytes and their table."""
    write_tensors(folder / "images.safetensors", {"images": stored})
    write_bytes(folder / "table.csv", table.to_csv(index=False).encode())


@dataclass(frozen=True)
class Sampling:
    """How images are generated: solver steps, guidance scale, images at once, and channels: where
    it is 1, the mean of a pipeline's colours.
    """

    steps: int
    guidance_scale: float
    batch_size: int
    channels: int = 1


def load_generator(folder: Path) -> Generator:
    """Read a pipeline, its hashes checked, to the device that networks run on."""
    return Generator.load(folder, accelerator())


@torch.no_grad()
def encode(generator: Generator, images: Tensor) -> Tensor:
    """Encode images [N, C, H, W] in [-1, 1] as scaled latents on the CPU, on the pipeline's own
    grid and in its number of channels.
    """
    vae, size = generator.pipeline.vae, generator.latent_shape[-1]
    size, images = size * generator.pipeline.vae_scale_factor, images.to(generator.device)
    if images.shape[-1] != size:
        images = F.interpolate(images, (size, size), mode="bilinear")
    images = images.expand(-1, vae.config.in_channels, -1, -1)
    return (vae.encode(images).latent_dist.mean.float() * vae.config.scaling_factor).cpu()


def read_classifier(folder: Path) -> Classifier:
    """Read a classifier to the device that networks run on."""
    return load_classifier(folder).to(accelerator())


def fit_heads(
    progress: Progress,
    heads: Heads,
    images: Tensor,
    truth: Tensor | Mapping[str, Tensor],
    settings: ClassifierSettings,
    label: str,
) -> Classifier:
    """A new classifier with these heads, fitted on images [N, C, H, W] and their `truth`."""
    classifier = build_classifier(heads, settings.architecture, settings.seed).to(accelerator())
    steps = fit_classifier(classifier, images, truth, settings)
    for _ in progress.track(steps, settings.steps, label):
        pass
    return classifier
