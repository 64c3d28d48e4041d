"""Who is in a heart: a network that reads sex, age and body-mass index from one image, trained on
hearts that are known.

It measures whether a generated heart shows the person that was asked for, and its features the
distance between sets of images. No generator is ever trained with it. The diagnosis is read by
`models.diagnosis`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.errors import DataError, WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.models.classifier import augment
from fairlib.models.segmenter import frames_of
from fairlib.models.training import (
    FitSettings,
    FitStep,
    Trainer,
    batch_indices,
    device_of,
    generator_for,
)

FEATURES = 64
WIDTHS = (24, 48, 64, 96)  # channels at 32 x 32, 16 x 16, 8 x 8, 4 x 4
READINGS = ("female", "age", "bmi")


class HeartReader(nn.Module):
    """images [N, 3, 64, 64] in [-1, 1] -> [N, 3]: logit of female, age and body-mass index in their
    own units.

    `features` gives [N, 64]. `centre` and `spread` [3] are those of the training people (0 and 1
    for the logit).
    """

    def __init__(self):
        super().__init__()
        before, layers = 2, []
        for width in WIDTHS:
            size = 5 if before == 2 else 3
            layers += [
                nn.Conv2d(before, width, size, stride=2, padding=size // 2),
                nn.GroupNorm(8, width),
                nn.SiLU(),
            ]
            before = width
        self.body = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(16 * before, FEATURES), nn.SiLU()
        )
        self.head = nn.Linear(FEATURES, len(READINGS))
        self.register_buffer("centre", torch.zeros(len(READINGS)))
        self.register_buffer("spread", torch.ones(len(READINGS)))

    def features(self, images: Tensor) -> Tensor:
        # ED is the mean of its two channels, which tell real from generated otherwise
        return self.body(frames_of(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)) * self.spread + self.centre


def truth_of(table) -> Tensor:
    """float32 [N, 3] (`READINGS`) of a table with sex, age, bmi.

    Raises `DataError` when one is missing.
    """
    for column in ("sex", "age", "bmi"):
        if table[column].isna().any():
            raise DataError(
                f"{int(table[column].isna().sum())} rows have no {column}; a reader is trained on "
                "complete people"
            )
    values = np.stack(
        [
            (table["sex"] == "F").to_numpy(float),
            table["age"].to_numpy(float),
            table["bmi"].to_numpy(float),
        ],
        axis=1,
    )
    return torch.from_numpy(values).float()


def fit_reader(
    reader: HeartReader,
    images: Tensor,
    truth: Tensor,
    settings: FitSettings,
    trainer: Trainer | None = None,
) -> Iterator[FitStep]:
    """Train on `images` float32 [N, 3, 64, 64] and `truth` [N, 3] (see `truth_of`): cross-entropy
    for sex, squared error in standard deviations for age and body-mass index. Raises `DataError` on
    other lengths, or when a sex is missing.
    """
    if len(images) != len(truth) or truth[:, 0].unique().numel() < 2:
        raise DataError(
            f"{len(images)} images, {len(truth)} people, sexes {truth[:, 0].unique().tolist()}; "
            "give one person an "
            "image, and both sexes"
        )
    reader.centre[1:], reader.spread[1:] = truth[:, 1:].mean(0), truth[:, 1:].std(0).clamp_min(1e-3)
    trainer, device = trainer or Trainer(reader, settings), device_of(reader)

    def loss(step: int) -> Tensor:
        rows = batch_indices(settings.seed, step, len(images), settings.batch_size)
        found = reader(
            augment(images[rows], generator_for(settings.seed, 17, step), mirror=False).to(device)
        )
        known = truth[rows].to(device)
        error = (found - known)[:, 1:] / reader.spread[1:]
        return F.binary_cross_entropy_with_logits(found[:, 0], known[:, 0]) + error.square().mean()

    reader.train()
    yield from trainer.run(loss)
    if trainer.ema:
        trainer.use_average()
    reader.eval()


@torch.no_grad()
def read_people(
    reader: HeartReader, images: Tensor, batch_size: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """Readings [N, 3] (logit of female, age in years, body-mass index in kg/m2) and features [N,
    64].
    """
    readings, features = [], []
    for part in images.split(batch_size):
        features.append(reader.features(part.to(device_of(reader))))
        readings.append(reader.head(features[-1]) * reader.spread + reader.centre)
    return torch.cat(readings).cpu().numpy(), torch.cat(features).cpu().numpy()


def save_reader(folder: str | Path, reader: HeartReader) -> None:
    """Write the weights (fp32)."""
    write_tensors(Path(folder) / "reader.safetensors", reader.state_dict())


def load_reader(folder: str | Path) -> HeartReader:
    """Read a folder written by `save_reader`, frozen. Raises `WeightsError` when it is not one."""
    path = Path(folder) / "reader.safetensors"
    if not path.is_file():
        raise WeightsError(
            f"{path}: no reader of hearts here; it is fitted by the stage that asks for it"
        )
    reader = HeartReader()
    reader.load_state_dict(read_tensors(path))
    return reader.eval().requires_grad_(False)
