"""Sex classifiers of one slice: the guide that tuning follows, and the auditor that tuning never
sees.

Both map images [N, 1, H, W] in [-1, 1] to one logit an image, positive for female. They differ in
architecture, subjects and seed. What they can know is how a synthetic cohort drew "sex"; nothing
here speaks of a person.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


@dataclass(frozen=True)
class ClassifierSettings:
    """How to fit a sex classifier.

    architecture: "plain" (strided convolutions) or "residual" (another family, for the auditor).
    radius: L2 radius of the adversarial perturbation (0: none), in units of the image;
    `attack_steps` of PGD.
    augment: shifts, gain, noise and blur.
    """

    architecture: Literal["plain", "residual"] = "plain"
    radius: float = 0.0
    attack_steps: int = 2
    augment: bool = True
    steps: int = 600
    batch_size: int = 48
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    seed: int = 0


class SexClassifier(nn.Module):
    """images [N, 1, H, W] in [-1, 1] -> logits [N], positive = female, divided by the calibrated
    temperature.
    """

    def __init__(self, architecture: str = "plain"):
        super().__init__()
        self.architecture = architecture
        self.body = _plain() if architecture == "plain" else _residual()
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).squeeze(-1) / self.temperature + self.offset


def _plain() -> nn.Module:
    widths = (16, 32, 48, 64)
    layers: list[nn.Module] = [nn.AvgPool2d(2)]
    before = 1
    for width in widths:
        layers += [
            nn.Conv2d(before, width, 3, stride=2, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
        ]
        before = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 16, 1))


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _residual() -> nn.Module:
    width = 48
    return nn.Sequential(
        nn.Conv2d(1, width, 8, stride=8),
        _Residual(width),
        _Residual(width),
        _Residual(width),
        nn.GroupNorm(8, width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(8),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(width * 64, 1),
    )


def fit_classifier(
    classifier: SexClassifier,
    images: Tensor,
    labels: Tensor,
    settings: ClassifierSettings,
    trainer: Trainer | None = None,
) -> Iterator[FitStep]:
    """Train on `images` [N, 1, H, W] and `labels` [N] (1 = female), each sex with equal weight.

    With a `radius`, half of every batch is moved against its label first (Madry et al., 2018), so
    that the gradient of the logit has to be one that changes what a person would see. Raises
    `DataError` when a sex is missing.
    """
    counts = torch.bincount(labels, minlength=2).float()
    if (counts == 0).any():
        raise DataError(
            f"a sex classifier needs both sexes; found {int(counts[1])} F and {int(counts[0])} M "
            "images"
        )
    weight = (len(labels) / 2 / counts)[labels]
    fit = FitSettings(
        settings.steps,
        settings.batch_size,
        settings.learning_rate,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        ema_decay=0.99,
    )
    trainer, device = trainer or Trainer(classifier, fit), device_of(classifier)

    def loss(step: int) -> Tensor:
        rows = batch_indices(settings.seed, step, len(images), settings.batch_size)
        chance = generator_for(settings.seed, 5, step)
        # dropout has no generator of its own
        torch.manual_seed(int(torch.randint(2**31, (), generator=chance)))
        batch, target = images[rows], labels[rows].float().to(device)
        batch = (augment(batch, chance) if settings.augment else batch).to(device)
        if settings.radius:
            half = len(batch) // 2
            moved = attack(
                classifier, batch[:half], target[:half], settings.radius, settings.attack_steps
            )
            batch = torch.cat([moved, batch[half:]])
        return F.binary_cross_entropy_with_logits(
            classifier(batch), target, weight=weight[rows].to(device)
        )

    classifier.train()
    yield from trainer.run(loss)
    trainer.use_average()
    classifier.eval()


def augment(images: Tensor, chance: torch.Generator, mirror: bool = True) -> Tensor:
    """Mirror, shift by up to 5 pixels, change contrast, blur and add noise; never scale: size
    carries sex.
    """
    n = len(images)
    if mirror:
        images = torch.where(
            torch.rand(n, 1, 1, 1, generator=chance) < 0.5, images.flip(-1), images
        )
    shifts = torch.randint(-5, 6, (n, 2), generator=chance).tolist()
    images = torch.stack(
        [
            image.roll(tuple(shift), dims=(-2, -1))
            for image, shift in zip(images, shifts, strict=True)
        ]
    )
    gamma = torch.exp(0.25 * torch.randn(n, 1, 1, 1, generator=chance))
    images = ((images + 1) / 2).clamp(1e-4, 1).pow(gamma) * 2 - 1
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, torch.rand(n, 1, 1, 1, generator=chance))
    level = 0.12 * torch.rand(n, 1, 1, 1, generator=chance)
    return images + level * torch.randn(images.shape, generator=chance)


def attack(
    classifier: nn.Module, images: Tensor, labels: Tensor, radius: float, steps: int
) -> Tensor:
    """Projected gradient ascent on the loss within an L2 ball of `radius` around each image,
    without gradient.
    """
    was_training = classifier.training
    classifier.eval()
    change = torch.zeros_like(images)
    for _ in range(steps):
        change.requires_grad_(True)
        loss = F.binary_cross_entropy_with_logits(
            classifier(images + change), labels, reduction="sum"
        )
        (slope,) = torch.autograd.grad(loss, change)
        with torch.no_grad():
            change = change + 1.5 * radius / steps * _unit(slope)
            norm = change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            change = change * (radius / norm.clamp(min=radius))
    classifier.train(was_training)
    return (images + change).detach()


def _unit(x: Tensor) -> Tensor:
    return x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp(min=1e-12)


@torch.no_grad()
def predict(classifier: nn.Module, images: Tensor, batch_size: int = 128) -> Tensor:
    """Logits [N] on the CPU, wherever the classifier lies; the same whatever the batch size."""
    device = device_of(classifier)
    return torch.cat([classifier(part.to(device)).cpu() for part in images.split(batch_size)])


def calibrate(classifier: SexClassifier, images: Tensor, labels: Tensor) -> None:
    """Temperature and offset (Platt) on held-out images with sexes weighted equally: minimises the
    log loss.
    """
    classifier.temperature.fill_(1.0)
    classifier.offset.fill_(0.0)
    logits = predict(classifier, images).double()
    weight = (len(labels) / 2 / torch.bincount(labels, minlength=2).double())[labels]
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    offset = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [log_temperature, offset], max_iter=100, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(
            logits / log_temperature.exp() + offset, labels.double(), weight=weight
        )
        loss.backward()
        return loss

    optimiser.step(closure)
    classifier.temperature.fill_(float(log_temperature.detach().exp()))
    classifier.offset.fill_(float(offset.detach()))


def class_accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Sensitivity (female slices read as female) and specificity (male as male)."""
    female = logits > 0
    return {
        "sensitivity": float(female[labels == 1].float().mean()),
        "specificity": float((~female[labels == 0]).float().mean()),
    }


class Ensemble(nn.Module):
    """Mean logit of several classifiers."""

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.members]).mean(0)


def save_classifier(folder: str | Path, classifier: SexClassifier, report: dict) -> None:
    """Write weights (fp32: they are small) and `report` beside them."""
    write_tensors(Path(folder) / "classifier.safetensors", classifier.state_dict())
    write_json(
        Path(folder) / "classifier.json", {"architecture": classifier.architecture, **report}
    )


def load_classifier(folder: str | Path) -> SexClassifier:
    """Read a folder written by `save_classifier`, frozen.

    Raises `WeightsError` when it is not one.
    """
    folder = Path(folder)
    if not (folder / "classifier.json").is_file():
        raise WeightsError(
            f"{folder}: no classifier here (classifier.json is missing); run notebook "
            "03_classifier first"
        )
    classifier = SexClassifier(read_json(folder / "classifier.json")["architecture"])
    classifier.load_state_dict(read_tensors(folder / "classifier.safetensors"))
    return classifier.eval().requires_grad_(False)
