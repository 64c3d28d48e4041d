"""The re-segmenter: a small U-Net that reads the structures of one short-axis frame.

Fitted on real (or phantom) hearts alone, it says whether a generated image shows the mask that was
asked for. It never guides a generator. Labels are those of M&Ms: 0 background, 1 left ventricular
cavity, 2 myocardium, 3 right ventricle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.errors import DataError
from fairlib.io import write_json, write_tensors
from fairlib.models.classifier import change_appearance
from fairlib.models.training import (
    FitSettings,
    FitStep,
    Trainer,
    batch_indices,
    device_of,
    load_weights,
    read_description,
)
from fairlib.rng import Stream, torch_rng
from fairlib.settings import BelowOne, Count, Positive, Weight

LABELS = 4


@dataclass(frozen=True)
class SegmenterSettings(FitSettings):
    """How to fit the segmenter; `batch_size` counts frames, `augment` moves, blurs and noises
    them.
    """

    steps: Count = 300
    batch_size: Count = 16
    learning_rate: Positive = 3e-3
    weight_decay: Weight = 1e-2
    ema_decay: BelowOne = 0.99
    augment: bool = True


class Segmenter(nn.Module):
    """frames [N, 1, H, W] in [-1, 1] -> logits [N, 4, H, W] (Ronneberger et al. 2015, small).

    `widths`: channels at each resolution, each a multiple of 8; H and W are multiples of 2 **
    (len(widths) - 1).
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96)):
        super().__init__()
        self.widths = tuple(widths)
        down = zip((1, *widths[:-1]), widths, strict=True)
        up = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.down = nn.ModuleList(_block(before, after) for before, after in down)
        self.up = nn.ModuleList(_block(low + skip, skip) for low, skip in up)
        self.head = nn.Conv2d(widths[0], LABELS, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Logits [N, 4, H, W] of frames [N, 1, H, W] in [-1, 1]."""
        skips: list[Tensor] = []
        x = frames
        for depth, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if depth else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skip], dim=1))
        return self.head(x)


def _block(before: int, after: int) -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (before, after):
        convolution = nn.Conv2d(channels, after, 3, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers)


def frames_of(images: Tensor) -> Tensor:
    """The two frames [N, 2, H, W] of images [N, 3, H, W]: ED, the mean of channels 0 and 2, and ES,
    channel 1.

    Raises `DataError` on another shape, or on NaN and infinity.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise DataError(f"images of shape {tuple(images.shape)}; give [N, 3, H, W] (ED, ES, ED)")
    if not bool(images.isfinite().all()):
        raise DataError("images hold NaN or infinity; look at the generator that made them")
    return torch.stack([(images[:, 0] + images[:, 2]) / 2, images[:, 1]], dim=1)


def fit_segmenter(
    segmenter: Segmenter,
    images: Tensor,
    masks: Tensor,
    settings: SegmenterSettings,
    trainer: Trainer | None = None,
) -> Iterator[FitStep]:
    """Train on `images` float32 [N, 3, H, W] and `masks` uint8 [N, 2, H, W]: cross-entropy plus
    soft Dice.

    Raises `DataError` when masks and images differ in number or grid, or a label lies outside 0..3.
    """
    frames = frames_of(images).flatten(0, 1)[:, None]
    labels = _labels(images, masks)
    trainer, device = trainer or Trainer(segmenter, settings), device_of(segmenter)

    def loss(step: int) -> Tensor:
        rows = batch_indices(settings.seed, step, len(frames), settings.batch_size)
        batch, truth = frames[rows].to(device), labels[rows].to(device)
        if settings.augment:
            rng = torch_rng(settings.seed, Stream.SEGMENTER, step)
            batch, truth = augment_frames(batch, truth, rng)
        logits = segmenter(batch)
        return F.cross_entropy(logits, truth) + soft_dice(logits, truth)

    segmenter.train()
    yield from trainer.run(loss)
    trainer.use_average()
    segmenter.eval()


def _labels(images: Tensor, masks: Tensor) -> Tensor:
    """Masks as int64 [2 N, H, W], once they are known to fit the images."""
    wanted = (len(images), 2, *images.shape[-2:])
    if tuple(masks.shape) != wanted:
        what = f"masks of shape {tuple(masks.shape)} for images of shape {tuple(images.shape)}"
        raise DataError(f"{what}; they must lie on one grid: {wanted}")
    if masks.is_floating_point() or int(masks.min()) < 0 or int(masks.max()) >= LABELS:
        raise DataError(
            f"masks of type {masks.dtype} hold labels {masks.unique().tolist()[:8]}; only the "
            "integers 0 to 3 (background, LV, MYO, RV) are known; convert other label orders when "
            "reading"
        )
    return masks.flatten(0, 1).long()


def soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - mean over structures of 2 sum(p g) / (sum(p) + sum(g)), sums over the batch (Milletari et
    al. 2016, squares left out).

    logits: [N, 4, H, W]; labels: int64 [N, H, W]. Background is left out; a structure absent from
    the batch costs little.
    """
    p = logits.softmax(1)[:, 1:]
    g = F.one_hot(labels, LABELS).movedim(-1, 1)[:, 1:].to(p.dtype)
    return 1 - ((2 * (p * g).sum((0, 2, 3)) + 1) / (p.sum((0, 2, 3)) + g.sum((0, 2, 3)) + 1)).mean()


def augment_frames(frames: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turn (15 degrees), scale (15 %) and shift (10 % of the field) both; change gamma, blur and
    noise of the frames alone.

    frames: [N, 1, H, W] in [-1, 1]; labels: int64 [N, H, W]. Never mirrored: the right ventricle
    has a side.
    """
    n = len(frames)
    angle, stretch, *shift = (torch.rand(4, n, generator=rng) * 2 - 1).unbind()
    angle, size = angle * torch.pi / 12, torch.exp(0.15 * stretch)
    cos, sin = size * angle.cos(), size * angle.sin()
    theta = torch.stack(
        [torch.stack([cos, -sin, 0.2 * shift[0]], 1), torch.stack([sin, cos, 0.2 * shift[1]], 1)], 1
    )
    grid = F.affine_grid(theta.to(frames.device), list(frames.shape), align_corners=False)
    frames = F.grid_sample(frames, grid, padding_mode="border", align_corners=False)
    moved = F.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)
    return change_appearance(frames, rng, contrast=0.3, blurs=2), moved[:, 0].long()


@torch.no_grad()
def segment(segmenter: Segmenter, images: Tensor, batch_size: int = 64) -> Tensor:
    """Masks uint8 [N, 2, H, W] (ED, ES), on the CPU, of images [N, 3, H, W] in [-1, 1]; the same
    whatever the batch size.

    Raises `DataError` on another shape, or on NaN and infinity.
    """
    was_training = segmenter.training
    segmenter.eval()
    frames = frames_of(images).flatten(0, 1)[:, None]
    parts = (part.to(device_of(segmenter)) for part in frames.split(batch_size))
    found = [segmenter(part).argmax(1).to(torch.uint8).cpu() for part in parts]
    segmenter.train(was_training)
    return torch.cat(found).view(len(images), 2, *images.shape[-2:])


def save_segmenter(folder: str | Path, segmenter: Segmenter, report: dict) -> None:
    """Write weights (fp32) and `report` (its own Dice on unseen hearts, say) beside them."""
    write_tensors(Path(folder) / "segmenter.safetensors", segmenter.state_dict())
    write_json(Path(folder) / "segmenter.json", {"widths": list(segmenter.widths), **report})


def load_segmenter(folder: str | Path) -> Segmenter:
    """Read a folder written by `save_segmenter`, frozen.

    Raises `WeightsError` when it is not one.
    """
    folder = Path(folder).expanduser()
    about = read_description(folder / "segmenter.json", "segmenter")
    segmenter = Segmenter(tuple(about["widths"]))
    return load_weights(segmenter, folder / "segmenter.safetensors")
