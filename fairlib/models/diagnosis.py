"""The heart-failure classifier of the downstream test: one image (ED, ES, ED) in, one logit out.

Source: Skorupko et al., arXiv 2403.19508, section on the downstream task, and its released code:
there a ResNet-18 of 224 x 224 pictures, here a small network of 64 x 64 ones, so that dozens of
trainings fit into minutes on one core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_json, read_tensors, write_json, write_tensors
from fairlib.models.classifier import augment, predict
from fairlib.models.training import (
    FitSettings,
    FitStep,
    Trainer,
    batch_indices,
    device_of,
    generator_for,
)

# channels, kernel, stride, padding: 16 x 16, 8 x 8, 4 x 4
LAYERS = ((32, 8, 4, 2), (64, 3, 2, 1), (96, 3, 2, 1))


@dataclass(frozen=True)
class DiagnosisSettings:
    """How to fit the classifier: `steps` of `batch_size` images, peak `learning_rate` (AdamW,
    cosine to zero).

    augment: small shifts, contrast, blur and noise (no mirror image: the right ventricle has its
    side; no scaling: the size of the cavity carries the disease).
    """

    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    augment: bool = True
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise SettingsError(
                    f"DiagnosisSettings.{name} is {getattr(self, name)}; expected above 0"
                )


class DiagnosisClassifier(nn.Module):
    """images [N, 3, 64, 64] in [-1, 1] -> logits [N], positive = heart failure. 80,000 weights.

    `threshold` is the logit above which the answer is heart failure; `set_threshold` chooses it on
    validation data.
    """

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        before = 2
        for width, kernel, stride, padding in LAYERS:
            layers += [
                nn.Conv2d(before, width, kernel, stride, padding),
                nn.GroupNorm(8, width),
                nn.SiLU(),
            ]
            before = width
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * before, 1))
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        # Channels 0 and 2 are both ED. In a real image they are equal, in a generated one they are
        # not quite: their difference would tell real from synthetic, and so, where the two differ
        # in prevalence, stand in for the disease.
        phases = torch.stack([(images[:, 0] + images[:, 2]) / 2, images[:, 1]], dim=1)
        return self.body(phases).squeeze(-1)


def build_classifier(seed: int) -> DiagnosisClassifier:
    """A fresh classifier whose first weights are a function of `seed`; the global random state is
    left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DiagnosisClassifier()


def fit_diagnosis(
    classifier: DiagnosisClassifier,
    images: Tensor,
    labels: Tensor,
    settings: DiagnosisSettings,
    weights: Tensor | None = None,
    probabilities: Tensor | None = None,
    trainer: Trainer | None = None,
) -> Iterator[FitStep]:
    """Train `classifier`, from whatever weights it has, on `images` [N, 3, 64, 64] and `labels` [N]
    (1 = heart failure).

    weights: [N] factor of each image's loss (default one). probabilities: [N], chance of each image
    at every draw, with replacement; by default all images come once an epoch. A classifier trained
    before is fitted on from there. Raises `DataError` when a class is missing, or on weights that
    are not [N], finite and not negative.
    """
    _check(images, labels, {"weights": weights, "probabilities": probabilities})
    fit = FitSettings(
        settings.steps,
        settings.batch_size,
        settings.learning_rate,
        warmup=min(30, settings.steps // 4),
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        ema_decay=0.98,
    )
    trainer, device = trainer or Trainer(classifier, fit), device_of(classifier)

    def loss(step: int) -> Tensor:
        rows = _rows(settings, step, len(images), probabilities)
        batch = images[rows]
        batch = (
            augment(batch, generator_for(settings.seed, 5, step), mirror=False)
            if settings.augment
            else batch
        )
        # Cross-entropy of the logits themselves. The released code puts a softmax before torch's
        # CrossEntropyLoss, which
        # takes a softmax of its own: its loss then lies between 0.31 and 1.31 and its gradient
        # fades on confident errors.
        logits = classifier(batch.to(device))
        each = F.binary_cross_entropy_with_logits(
            logits, labels[rows].float().to(device), reduction="none"
        )
        return each.mean() if weights is None else (each * weights[rows].to(device)).mean()

    classifier.train()
    yield from trainer.run(loss)
    trainer.use_average()
    classifier.eval()


def _rows(
    settings: DiagnosisSettings, step: int, count: int, probabilities: Tensor | None
) -> Tensor:
    if probabilities is None:
        return batch_indices(settings.seed, step, count, settings.batch_size)
    chance = generator_for(settings.seed, 11, step)
    return torch.multinomial(
        probabilities.double(), settings.batch_size, replacement=True, generator=chance
    )


def _check(images: Tensor, labels: Tensor, numbers: dict[str, Tensor | None]) -> None:
    if images.ndim != 4 or images.shape[1:] != (3, 64, 64) or len(images) != len(labels):
        raise DataError(
            f"{tuple(images.shape)} images and {len(labels)} labels; expected [N, 3, 64, 64] and N "
            "labels"
        )
    counts = torch.bincount(labels, minlength=2).tolist()
    if len(counts) > 2 or 0 in counts:
        raise DataError(
            f"labels 0, 1, ... occur {counts} times; training needs healthy (0) and heart failure "
            "(1), no other"
        )
    for name, value in numbers.items():
        if value is not None and not (
            value.shape == labels.shape
            and value.isfinite().all()
            and value.min() >= 0 < value.sum()
        ):
            raise DataError(
                f"{name}: expected {len(labels)} finite numbers, none negative and not all zero"
            )


def choose_threshold(scores, labels) -> float:
    """The cut of `scores` [N] with the best balanced accuracy for `labels` [N] (1 = ill), read as
    ill above the cut.

    Halfway between two neighbouring scores; of several equally good cuts the middle one. Being a
    mean of sensitivity and specificity, it does not depend on the prevalence. Raises `DataError`
    when a class is missing.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels).astype(bool)
    if not len(scores) == len(labels) or labels.all() or not labels.any():
        raise DataError(
            f"{len(scores)} scores, {int(labels.sum())} of {len(labels)} labels ill; a threshold "
            "needs both classes"
        )
    values, place = np.unique(scores, return_inverse=True)
    if len(values) == 1:
        return float(values[0])
    ill, healthy = (
        np.bincount(place[of_class], minlength=len(values)) / of_class.sum()
        for of_class in (labels, ~labels)
    )
    # cut after each value but the last
    balanced = (1 - np.cumsum(ill) + np.cumsum(healthy))[:-1] / 2
    best = np.flatnonzero(balanced >= balanced.max() - 1e-12)
    cut = best[len(best) // 2]
    return float((values[cut] + values[cut + 1]) / 2)


def set_threshold(classifier: DiagnosisClassifier, images: Tensor, labels: Tensor) -> float:
    """Choose the threshold on validation images [N, 3, 64, 64] and labels [N], and keep it in the
    classifier.
    """
    classifier.threshold.fill_(
        choose_threshold(predict(classifier, images).numpy(), labels.numpy())
    )
    return float(classifier.threshold)


def diagnose(classifier: DiagnosisClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N] and answers [N] (True = heart failure, logit above the threshold), both on the
    CPU.
    """
    logits = predict(classifier, images)
    return logits, logits > classifier.threshold.cpu()


def save_diagnosis(folder: str | Path, classifier: DiagnosisClassifier, report: dict) -> None:
    """Write weights and threshold (fp32), and `report` beside them."""
    write_tensors(Path(folder) / "diagnosis.safetensors", classifier.state_dict())
    write_json(Path(folder) / "diagnosis.json", {**report, "layers": LAYERS})


def load_diagnosis(folder: str | Path) -> DiagnosisClassifier:
    """Read a folder written by `save_diagnosis`, frozen.

    Raises `WeightsError` when it is not one or does not fit.
    """
    folder = Path(folder)
    if not (folder / "diagnosis.json").is_file():
        raise WeightsError(
            f"{folder}: no heart-failure classifier here (diagnosis.json is missing); fit it first"
        )
    layers = read_json(folder / "diagnosis.json").get("layers")
    if layers != [list(layer) for layer in LAYERS]:
        raise WeightsError(
            f"{folder}: a classifier of layers {layers}, expected {LAYERS}; fit it again"
        )
    classifier = DiagnosisClassifier()
    classifier.load_state_dict(read_tensors(folder / "diagnosis.safetensors"))
    return classifier.eval().requires_grad_(False)
