"""What a slice shows: a classifier of contrast, tumour grade and side, trained on synthetic slices
whose truth is known.

It measures prompt fidelity, and its features the distance between sets of images. Tuning never sees
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.errors import WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.models.classifier import augment
from fairlib.models.training import (
    FitSettings,
    FitStep,
    Trainer,
    batch_indices,
    device_of,
    generator_for,
)

CLASSES = {
    "contrast": ("t1", "t1ce", "t2", "flair"),
    "grade": ("none", "LGG", "HGG"),
    "side": ("none", "left", "right"),
}
FEATURES = 64


class AttributeClassifier(nn.Module):
    """images [N, 1, 128, 128] in [-1, 1] -> {attribute: logits [N, K]}; `features` gives [N,
    64].
    """

    def __init__(self):
        super().__init__()
        widths, before = (24, 48, 64, 96), 1
        layers: list[nn.Module] = []
        for width in widths:
            layers += [
                nn.Conv2d(
                    before,
                    width,
                    5 if before == 1 else 3,
                    stride=2,
                    padding=2 if before == 1 else 1,
                ),
                nn.GroupNorm(8, width),
                nn.SiLU(),
            ]
            before = width
        self.body = nn.Sequential(
            *layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96 * 16, FEATURES), nn.SiLU()
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(FEATURES, len(classes)) for name, classes in CLASSES.items()}
        )

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


def codes(table: pd.DataFrame) -> Tensor:
    """The classes of a table with columns contrast, grade, side, as int64 [N, 3]."""
    return torch.tensor(
        [
            [classes.index(row[name]) for name, classes in CLASSES.items()]
            for _, row in table.iterrows()
        ]
    )


def fit_attributes(
    classifier: AttributeClassifier,
    images: Tensor,
    truth: Tensor,
    settings: FitSettings,
    trainer: Trainer | None = None,
) -> Iterator[FitStep]:
    """Train on `images` uint8 [N, 1, H, W] with `truth` [N, 3] (see `codes`); shifted, blurred,
    noised, never mirrored.
    """
    trainer, device = trainer or Trainer(classifier, settings), device_of(classifier)

    def loss(step: int) -> Tensor:
        rows = batch_indices(settings.seed, step, len(images), settings.batch_size)
        batch = images[rows].float() / 127.5 - 1
        batch = augment(batch, generator_for(settings.seed, 6, step), mirror=False).to(device)
        wanted = truth[rows].to(device)
        return sum(
            F.cross_entropy(logits, wanted[:, i])
            for i, logits in enumerate(classifier(batch).values())
        )

    classifier.train()
    yield from trainer.run(loss)
    if trainer.ema:
        trainer.use_average()
    classifier.eval()


@torch.no_grad()
def read_attributes(
    classifier: AttributeClassifier, images: Tensor, batch_size: int = 128
) -> tuple[pd.DataFrame, np.ndarray]:
    """What each image [N, 1, H, W] in [-1, 1] shows (columns contrast, grade, side), and its
    features [N, 64].
    """
    found: dict[str, list[str]] = {name: [] for name in CLASSES}
    features = []
    for part in images.split(batch_size):
        features.append(classifier.features(part.to(device_of(classifier))))
        for name, head in classifier.heads.items():
            found[name] += [CLASSES[name][i] for i in head(features[-1]).argmax(-1).tolist()]
    return pd.DataFrame(found), torch.cat(features).cpu().numpy()


def save_attributes(folder: str | Path, classifier: AttributeClassifier) -> None:
    write_tensors(Path(folder) / "attributes.safetensors", classifier.state_dict())


def load_attributes(folder: str | Path) -> AttributeClassifier:
    """Read a folder written by `save_attributes`, frozen.

    Raises `WeightsError` when it is not one.
    """
    path = Path(folder) / "attributes.safetensors"
    if not path.is_file():
        raise WeightsError(
            f"{path}: no attribute classifier here; it is fitted by the stage that asks for it"
        )
    classifier = AttributeClassifier()
    classifier.load_state_dict(read_tensors(path))
    return classifier.eval().requires_grad_(False)
