"""What a fundus picture shows: a network that reads several attributes of one picture, trained on
pictures that are known.

The study fits it twice over. With all attributes and on real pictures it says whether an asked
attribute can be found, and its features give distances between sets of pictures. With the disease
alone, in a smaller size, it is the classifier of the semantic correlation of Luo et al. (arXiv
2412.20374): trained on generated pictures and tried on real ones, and the other way round (there a
ViT-B/16 and an EfficientNet-B1). No generator is ever trained with either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.errors import DataError, WeightsError
from fairlib.io import read_json, read_tensors, write_json, write_tensors
from fairlib.models.training import (
    FitSettings,
    FitStep,
    Trainer,
    batch_indices,
    device_of,
    generator_for,
)
from fairlib.settings import unknown_key

FEATURES = 64
WIDE, SLIM = (24, 48, 64, 96), (16, 32, 48, 64)  # channels after each halving
SHIFT, GAIN, NOISE = 3, 0.05, 0.05  # of the augmentation: pixels, and parts of the range [-1, 1]


class FundusReader(nn.Module):
    """images [N, 1, 128, 128] in [-1, 1] -> {attribute: logits [N, K]}; `features` gives [N, 64].

    heads: {attribute: its values, in the order of the logits}. pool: the picture is averaged over
    squares of so many pixels first. widths: channels after each halving of the grid.
    """

    def __init__(
        self, heads: Mapping[str, Sequence[str]], widths: Sequence[int] = WIDE, pool: int = 1
    ):
        super().__init__()
        self.values = {name: tuple(values) for name, values in heads.items()}
        self.widths, self.pool = tuple(widths), pool
        before, layers = 1, [nn.AvgPool2d(pool)] if pool > 1 else []
        for width in self.widths:
            size = 5 if before == 1 else 3
            layers += [
                nn.Conv2d(before, width, size, stride=2, padding=size // 2),
                nn.GroupNorm(8, width),
                nn.SiLU(),
            ]
            before = width
        self.body = nn.Sequential(
            *layers,
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(16 * before, FEATURES),
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(FEATURES, len(values)) for name, values in self.values.items()}
        )

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


def build_reader(
    heads: Mapping[str, Sequence[str]], widths: Sequence[int] = WIDE, pool: int = 1, seed: int = 0
) -> FundusReader:
    """A fresh reader whose first weights are a function of `seed`; the global random state is left
    as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FundusReader(heads, widths, pool)


def truth_of(table: pd.DataFrame, heads: Mapping[str, Sequence[str]]) -> Tensor:
    """The classes of a table with one column for each head, int64 [N, heads]. Raises `DataError` on
    a missing column or an unknown value.
    """
    found = []
    for name, values in heads.items():
        if name not in table:
            raise DataError(
                "nothing to read: "
                f"{unknown_key(name, [str(column) for column in table], 'the table')}"
            )
        codes = pd.Index(list(values)).get_indexer(table[name].astype(object))
        if (codes < 0).any():
            odd = table[name].iloc[int(np.flatnonzero(codes < 0)[0])]
            raise DataError(
                f"{name} is {odd!r} in {int((codes < 0).sum())} of {len(table)} rows; a reader of "
                f"{name} knows "
                f"{', '.join(values)}: leave the others out"
            )
        found.append(torch.from_numpy(codes.astype(np.int64)))
    return torch.stack(found, dim=1)


def fit_reader(
    reader: FundusReader,
    images: Tensor,
    truth: Tensor,
    settings: FitSettings,
    trainer: Trainer | None = None,
) -> Iterator[FitStep]:
    """Train on `images` [N, 1, H, W] (uint8, or float in [-1, 1]) and `truth` [N, heads] (see
    `truth_of`): the sum of the heads' cross-entropies.

    Pictures are shifted, made a little brighter or darker, and noised. They are not mirrored,
    scaled or blurred: side, size and sharpness of the cup's rim carry what is to be read. Raises
    `DataError` on other lengths, or a head with one class alone.
    """
    if len(images) != len(truth) or truth.shape[1] != len(reader.values):
        raise DataError(
            f"{len(images)} pictures, truth of shape {tuple(truth.shape)}; give one row a picture "
            "and one column for "
            f"each of {', '.join(reader.values)}"
        )
    for name, column in zip(reader.values, truth.T, strict=True):
        if column.unique().numel() < 2:
            raise DataError(
                f"all {len(column)} pictures have one value of {name}; nothing can be learnt of "
                "it: give more people"
            )
    trainer, device = trainer or Trainer(reader, settings), device_of(reader)

    def loss(step: int) -> Tensor:
        rows = batch_indices(settings.seed, step, len(images), settings.batch_size)
        found = reader(
            changed(_in_range(images[rows]), generator_for(settings.seed, 28, step)).to(device)
        )
        wanted = truth[rows].to(device)
        return sum(
            F.cross_entropy(logits, wanted[:, place]) for place, logits in enumerate(found.values())
        )

    reader.train()
    yield from trainer.run(loss)
    if trainer.ema:
        trainer.use_average()
    reader.eval()


def changed(images: Tensor, chance: torch.Generator) -> Tensor:
    """Each image shifted by up to `SHIFT` pixels, its grey levels by about `GAIN`, and noised by up
    to `NOISE`.
    """
    count, size = len(images), images.shape[-1]
    padded = F.pad(images, (SHIFT,) * 4, mode="replicate")
    corners = torch.randint(0, 2 * SHIFT + 1, (count, 2), generator=chance).tolist()
    images = torch.stack(
        [
            image[:, y : y + size, x : x + size]
            for image, (y, x) in zip(padded, corners, strict=True)
        ]
    )
    level = GAIN * torch.randn(count, 1, 1, 1, generator=chance)
    noise = NOISE * torch.rand(count, 1, 1, 1, generator=chance)
    return images + level + noise * torch.randn(images.shape, generator=chance)


@torch.no_grad()
def read_fundi(
    reader: FundusReader, images: Tensor, batch_size: int = 100
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Probabilities {attribute: [N, K]} and features [N, 64] of images [N, 1, H, W] (uint8, or
    float in [-1, 1]).
    """
    found: dict[str, list[Tensor]] = {name: [] for name in reader.values}
    features = []
    for part in images.split(batch_size):
        features.append(reader.features(_in_range(part).to(device_of(reader))))
        for name, head in reader.heads.items():
            found[name].append(head(features[-1]).double().softmax(-1).cpu())
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}, torch.cat(
        features
    ).cpu().numpy()


def save_reader(folder: str | Path, reader: FundusReader) -> None:
    """Write the weights (fp32), and what they are weights of."""
    write_tensors(Path(folder) / "reader.safetensors", reader.state_dict())
    write_json(
        Path(folder) / "reader.json",
        {
            "heads": reader.values,
            "order": list(reader.values),
            "widths": reader.widths,
            "pool": reader.pool,
        },
    )


def load_reader(folder: str | Path) -> FundusReader:
    """Read a folder written by `save_reader`, frozen. Raises `WeightsError` when it is not one."""
    path = Path(folder) / "reader.json"
    if not path.is_file():
        raise WeightsError(
            f"{path}: no reader of fundi here; it is fitted by the stage that asks for it"
        )
    about = read_json(path)
    reader = FundusReader(
        {name: about["heads"][name] for name in about["order"]}, about["widths"], about["pool"]
    )
    reader.load_state_dict(read_tensors(path.with_suffix(".safetensors")))
    return reader.eval().requires_grad_(False)


def _in_range(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
