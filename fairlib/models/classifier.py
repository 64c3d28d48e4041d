"""One classifier for everything that is read from an image; its heads and its layers are data.

A head is "binary" (one logit, positive for 1), "number" (a value in its own unit) or a tuple of
class names (one logit each). A study fits it as tuning classifier (the gradient of its logit tunes
a generator), as held-out classifier (never differentiated), and for features that measure
distances between sets of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Literal, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.errors import DataError, SettingsError
from fairlib.io import to_images, write_json, write_tensors
from fairlib.measures.shares import platt
from fairlib.models.training import (
    FitSettings,
    FitStep,
    Trainer,
    crops,
    device_of,
    load_weights,
    read_description,
    rows_of_step,
)
from fairlib.rng import Stream, torch_rng
from fairlib.settings import BelowOne, Count, Positive, Weight

Heads = Mapping[str, str | Sequence[str]]
Augmentation = Literal["none", "mirror", "shift", "light"]
SCALARS = ("binary", "number")


def halvings(*channels: int, first: int = 3) -> tuple[tuple[int, int, int], ...]:
    """Layers with these channels, each halving the grid; `first`: kernel of the first."""
    return tuple((width, 3 if i else first, 2) for i, width in enumerate(channels))


@dataclass(frozen=True)
class Architecture:
    """The layers of a `Classifier`.

    layers: (channels, kernel, stride) of each convolution; channels are multiples of 8. blocks:
    residual blocks after them; with any, the convolutions have no norm of their own. pool: images
    are averaged over squares of so many pixels first. grid, reduce: the last layer is brought to
    `grid` x `grid` places by "average" or "max" pooling, so that any image size will do. features:
    width of the layer before the heads (0: the heads read the grid). dropout: probability, before
    the heads. channels: of the images. phases: images are cardiac (ED, ES, ED), and the mean of
    both ED channels counts once: in a generated image they differ, which would tell it from a real
    one.
    """

    layers: tuple[tuple[int, int, int], ...]
    blocks: int = 0
    pool: int = 1
    grid: int = 4
    reduce: Literal["average", "max"] = "average"
    features: int = 64
    dropout: float = 0.0
    channels: int = 1
    phases: bool = False


SMALL = Architecture(halvings(16, 32, 48, 64), pool=2, features=0, dropout=0.2)
RESIDUAL = Architecture(((48, 8, 8),), blocks=3, grid=8, features=0, dropout=0.3)
SLIM = Architecture(halvings(16, 32, 48, 64, first=5), pool=2)
WIDE = Architecture(halvings(24, 48, 64, 96, first=5))
WIDE_MAX = replace(WIDE, reduce="max")
CARDIAC = replace(WIDE, channels=3, phases=True)
CARDIAC_SMALL = replace(CARDIAC, layers=((32, 8, 4), (64, 3, 2), (96, 3, 2)), features=0)


@dataclass(frozen=True)
class ClassifierSettings(FitSettings):
    """How to fit a classifier.

    architecture: for `build_classifier`. augmentation: see `augment`. radius: of the L2 ball (in
    units of the image) in which an adversary moves half of every batch (0: none), in `attack_steps`
    steps. balance: every class of a head has equal weight. stream: of augmentation and dropout,
    one of the classifiers' in `rng.Stream`.
    """

    steps: Count = 600
    batch_size: Count = 48
    learning_rate: Positive = 2e-3
    weight_decay: Weight = 1e-2
    ema_decay: BelowOne = 0.99
    architecture: Architecture = SMALL
    augmentation: Augmentation = "mirror"
    radius: float = 0.0
    attack_steps: int = 2
    balance: bool = False
    stream: int = Stream.CLASSIFIER


class Classifier(nn.Module):
    """images [N, C, H, W] in [-1, 1] -> logits by head.

    Called, it gives the values of its only head, or of several a dict: [N] of a "binary" head
    (logit, calibrated when `calibrate` has been) or a "number", [N, K] of K classes. `read` gives
    the dict and the features.

    Parameters
    ----------
    heads
        `{name: kind}`; a kind is "binary", "number" or the tuple of class names.
    architecture
        Its layers; see `build_classifier` for first weights that are a function of a seed.
    """

    slope: Tensor
    intercept: Tensor
    threshold: Tensor

    def __init__(self, heads: Heads, architecture: Architecture = SMALL):
        super().__init__()
        self.heads = {k: v if isinstance(v, str) else tuple(v) for k, v in heads.items()}
        self.architecture = architecture
        self.body, width = _body(architecture)
        self.scalars = [name for name, kind in self.heads.items() if kind in SCALARS]
        if self.scalars:
            self.scalar_head = nn.Linear(width, len(self.scalars))
        self.class_heads = nn.ModuleDict(
            {n: nn.Linear(width, len(k)) for n, k in self.heads.items() if n not in self.scalars}
        )
        # a scalar head is slope * value + intercept: calibration of a logit, unit of a number
        for name, value in (("slope", 1.0), ("intercept", 0.0), ("threshold", 0.0)):
            self.register_buffer(name, torch.full((len(self.scalars),), value))

    def read(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Values of every head and features [N, D].

        Raises `DataError` on images of another number of channels.
        """
        channels = self.architecture.channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise DataError(f"images of shape {tuple(images.shape)}; give [N, {channels}, H, W]")
        if self.architecture.phases:
            images = torch.stack([(images[:, 0] + images[:, 2]) / 2, images[:, 1]], dim=1)
        features = self.body(images)
        found = {name: head(features) for name, head in self.class_heads.items()}
        if self.scalars:
            values = self.scalar_head(features) * self.slope + self.intercept
            found |= dict(zip(self.scalars, values.unbind(-1), strict=True))
        return {name: found[name] for name in self.heads}, features

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """The values of the only head, or of several a dict."""
        values = self.read(images)[0]
        return next(iter(values.values())) if len(values) == 1 else values

    def place(self, head: str | None = None) -> int:
        """Position of a scalar head (default: the first) in `slope`, `intercept`, `threshold`."""
        return self.scalars.index(head or self.scalars[0])


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


def _body(a: Architecture) -> tuple[nn.Sequential, int]:
    """The layers before the heads, and how many numbers they give for an image."""
    layers: list[nn.Module] = [nn.AvgPool2d(a.pool)] if a.pool > 1 else []
    before = 2 if a.phases else a.channels
    for width, kernel, stride in a.layers:
        layers.append(nn.Conv2d(before, width, kernel, stride, padding=(kernel - stride + 1) // 2))
        if not a.blocks:
            layers += [nn.GroupNorm(8, width), nn.SiLU()]
        before = width
    layers += [_Residual(before) for _ in range(a.blocks)]
    if a.blocks:
        layers += [nn.GroupNorm(8, before), nn.ReLU()]
    pooling = nn.AdaptiveAvgPool2d if a.reduce == "average" else nn.AdaptiveMaxPool2d
    layers += [pooling(a.grid), nn.Flatten()]
    width = before * a.grid**2
    if a.features:
        layers += [nn.Linear(width, a.features), nn.SiLU()]
        width = a.features
    if a.dropout:
        layers.append(nn.Dropout(a.dropout))
    return nn.Sequential(*layers), width


def build_classifier(heads: Heads, architecture: Architecture = SMALL, seed: int = 0) -> Classifier:
    """A fresh classifier whose first weights are a function of `seed`; the global random state is
    left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(heads, architecture)


def truth_of(table: pd.DataFrame, heads: Heads) -> dict[str, Tensor]:
    """Targets [N] of every head from the column of its name.

    Classes become their positions, int64; "binary" columns hold 0 and 1, "number" columns numbers,
    float32. Raises `DataError` on a missing column, an unknown class or a missing value.
    """
    found = {}
    for name, kind in heads.items():
        if name not in table:
            raise DataError(f"the table has no column {name!r}; its columns: {', '.join(table)}")
        if kind in SCALARS:
            values, expected = pd.to_numeric(table[name]).to_numpy(float), "a number"
        else:
            codes = pd.Index(list(kind)).get_indexer(table[name].astype(object))
            values, expected = np.where(codes < 0, np.nan, codes), ", ".join(kind)
        wrong = np.flatnonzero(np.isnan(values))
        if len(wrong):
            what = f"{name} is '{table[name].iloc[wrong[0]]}' in {len(wrong)} of {len(table)} rows"
            raise DataError(f"{what}; expected {expected}; leave the others out")
        dtype = torch.float32 if kind in SCALARS else torch.int64
        found[name] = torch.tensor(values, dtype=dtype)
    return found


class _Targets:
    """What a classifier is trained on: targets by head, which of them are known, weights of rows.

    Raises `DataError` on targets that do not fit the heads or the `count` of images.
    """

    def __init__(
        self,
        classifier: Classifier,
        truth: Tensor | Mapping[str, Tensor],
        count: int,
        balance: bool,
        weights: Tensor | None,
    ):
        self.classifier, heads = classifier, classifier.heads
        truth = dict.fromkeys(heads, truth) if isinstance(truth, Tensor) else truth
        shapes = {name: tuple(value.shape) for name, value in truth.items()}
        if truth.keys() != heads.keys() or set(shapes.values()) != {(count,)}:
            what = f"{count} images, targets of shapes {shapes}"
            raise DataError(f"{what}; give one target an image for each of {', '.join(heads)}")
        self.values = {name: value.nan_to_num(-1) for name, value in truth.items()}
        self.known = {
            name: value.isfinite() & ((value >= 0) | (heads[name] == "number"))
            for name, value in truth.items()
        }
        self.weights = dict.fromkeys(heads, weights)
        for name, kind in heads.items():
            known = self.values[name][self.known[name]]
            classes = 2 if kind == "binary" else len(kind)
            distinct = known.unique().tolist()
            if len(distinct) < 2 or (kind != "number" and not {*distinct} <= {*range(classes)}):
                raise DataError(
                    f"{name} has the values {distinct[:8]} in {count} images; training needs two "
                    "different ones" + f" of 0 to {classes - 1}" * (kind != "number")
                )
            if balance and kind != "number":
                counts = torch.bincount(known.long(), minlength=classes).clamp(min=1).float()
                each = (len(known) / classes / counts)[self.values[name].long().clamp(min=0)]
                self.weights[name] = each if weights is None else each * weights

    def loss(self, images: Tensor, rows: Tensor, summed: bool = False) -> Tensor:
        """Cross-entropies of logits, plus the squared error of numbers in standard deviations, a
        mean over these; for `images` of `rows`, a mean over the known ones, or without weights
        their sum.
        """
        found = self.classifier.read(images)[0]
        losses: list[Tensor] = []
        errors: list[Tensor] = []
        for name, kind in self.classifier.heads.items():
            keep, chosen, logits = self.known[name][rows], rows, found[name]
            if not bool(keep.all()):
                chosen, logits = rows[keep], logits[keep.nonzero()[:, 0].to(images.device)]
            if not len(chosen):
                losses.append(0 * logits.sum())
                continue
            truth, weight = self.values[name][chosen].to(images.device), self.weights[name]
            weight = None if weight is None or summed else weight[chosen].to(images.device)
            if kind == "binary":
                # one call: a weighted mean in two steps differs in its last bit
                reduced = partial(F.binary_cross_entropy_with_logits, logits, truth.float(), weight)
                losses.append(reduced(reduction="sum" if summed else "mean"))
                continue
            if kind == "number":
                spread = self.classifier.slope[self.classifier.place(name)]
                each = ((logits - truth) / spread).square()
            else:
                each = F.cross_entropy(logits, truth.long(), reduction="none")
            each = each if weight is None else each * weight
            (errors if kind == "number" else losses).append(each.sum() if summed else each.mean())
        return cast(Tensor, sum(losses) + (sum(errors) / len(errors) if errors else 0))


def fit_classifier(
    classifier: Classifier,
    images: Tensor,
    truth: Tensor | Mapping[str, Tensor],
    settings: ClassifierSettings,
    *,
    weights: Tensor | None = None,
    probabilities: Tensor | None = None,
    trainer: Trainer | None = None,
) -> Iterator[FitStep]:
    """Train `classifier`, from whatever weights it has; its average is in place at the end.

    With a `radius` in the settings, half of every batch is moved against its targets first (Madry
    et al., 2018), so that the gradient of a logit must change what a reader would see.

    Parameters
    ----------
    classifier
        As of `build_classifier`; it is trained in place, on the device that it is on.
    images
        `[N, C, H, W]`, uint8 or float in [-1, 1].
    truth
        `{head: [N]}`, or `[N]` for an only head: 0 or 1, the position of the class, or the number;
        -1 or NaN where it is ambiguous (NaN for a number), which leaves that image out of that
        head's loss.
    settings
        Length, learning rate, augmentation and adversary.
    weights
        `[N]` factors of each image's loss.
    probabilities
        `[N]`, of each image at every draw, with replacement; by default every image comes once an
        epoch.
    trainer
        Of the same classifier, to go on from and to save from.

    Yields
    ------
    FitStep
        After each step.

    Raises
    ------
    DataError
        Lengths, channels or weights that do not fit, or a head that has one value alone.
    """
    targets = _Targets(classifier, truth, len(images), settings.balance, weights)
    _check_factors(len(images), weights=weights, probabilities=probabilities)
    for place, name in enumerate(classifier.scalars):
        if classifier.heads[name] == "number":
            known = targets.values[name][targets.known[name]].float()
            classifier.intercept[place] = known.mean()
            classifier.slope[place] = known.std().clamp_min(1e-3)
    trainer, device = trainer or Trainer(classifier, settings), device_of(classifier)

    def loss(step: int) -> Tensor:
        rows = rows_of_step(settings, step, len(images), probabilities)
        rng = torch_rng(settings.seed, settings.stream, step)
        if classifier.architecture.dropout:  # which has no generator of its own
            torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
        batch = augment(to_images(images[rows].to(device)), rng, settings.augmentation)
        if settings.radius:
            half = len(batch) // 2
            classifier.eval()
            summed = partial(targets.loss, rows=rows[:half], summed=True)
            moved = attack(summed, batch[:half], settings.radius, settings.attack_steps)
            batch = torch.cat([moved, batch[half:]])
            classifier.train()
        return targets.loss(batch, rows)

    classifier.train()
    yield from trainer.run(loss)
    trainer.use_average()
    classifier.eval()


def _check_factors(count: int, **factors: Tensor | None) -> None:
    for name, values in factors.items():
        if values is None:
            continue
        whole = values.shape == (count,) and bool(values.isfinite().all())
        if not (whole and values.min() >= 0 < values.sum()):
            raise DataError(f"{name}: expected {count} finite numbers, none negative, not all zero")


def augment(images: Tensor, rng: torch.Generator, kind: Augmentation = "mirror") -> Tensor:
    """Change images [N, C, H, W] in [-1, 1], where they lie, in ways that keep what is to be read.

    "mirror": mirror, and as "shift". "shift": shift by up to 5 pixels, change contrast, blur and
    noise. "light": shift by up to 3 pixels, change brightness and noise; for small sharp
    structures. "none". Nothing is ever scaled: size carries sex and disease.
    """
    n = len(images)
    if kind == "none":
        return images
    if kind == "light":
        wider = F.pad(images, (3, 3, 3, 3), mode="replicate")
        corners = torch.randint(0, 7, (n, 2), generator=rng).tolist()
        images = crops(wider, corners, *images.shape[-2:])
        level = 0.05 * torch.randn(n, 1, 1, 1, generator=rng).to(images.device)
        noise = 0.05 * torch.rand(n, 1, 1, 1, generator=rng).to(images.device)
        return images + level + noise * _noise(images, rng)
    if kind == "mirror":
        flipped = (torch.rand(n, 1, 1, 1, generator=rng) < 0.5).to(images.device)
        images = torch.where(flipped, images.flip(-1), images)
    shifts = torch.randint(-5, 6, (n, 2), generator=rng).tolist()
    moved = [i.roll(tuple(shift), (-2, -1)) for i, shift in zip(images, shifts, strict=True)]
    return change_appearance(torch.stack(moved), rng)


def change_appearance(
    images: Tensor, rng: torch.Generator, contrast: float = 0.25, blurs: int = 1
) -> Tensor:
    """Change the contrast of each image, blur it up to `blurs` times by 3 x 3 pixels, add noise."""
    n = len(images)
    gamma = torch.exp(contrast * torch.randn(n, 1, 1, 1, generator=rng)).to(images.device)
    images = ((images + 1) / 2).clamp(1e-4, 1).pow(gamma) * 2 - 1
    blurred = images
    for _ in range(blurs):
        blurred = F.avg_pool2d(F.pad(blurred, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, torch.rand(n, 1, 1, 1, generator=rng).to(images.device))
    level = 0.12 * torch.rand(n, 1, 1, 1, generator=rng).to(images.device)
    return images + level * _noise(images, rng)


def _noise(images: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal noise, one number a pixel; on a GPU drawn there, from a seed that `rng`
    gives.
    """
    if not images.is_cuda:
        return torch.randn(images.shape, generator=rng).to(images.device)
    seed = int(torch.randint(2**31, (), generator=rng))
    there = torch.Generator(images.device).manual_seed(seed)
    return torch.randn(images.shape, generator=there, device=images.device)


def attack(loss: Callable[[Tensor], Tensor], images: Tensor, radius: float, steps: int) -> Tensor:
    """Projected gradient ascent on `loss` within an L2 ball of `radius` around each image.

    loss: images [N, C, H, W] to a scalar, a sum over images. Returns images without gradient.
    """
    change = torch.zeros_like(images)
    for _ in range(steps):
        change.requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(images + change), change)
        with torch.no_grad():
            size = slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp(min=1e-12)
            change = change + 1.5 * radius / steps * (slope / size)
            norm = change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            change = change * (radius / norm.clamp(min=radius))
    return (images + change).detach()


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a classifier reads in N images, on the CPU.

    logits: {head: [N] or [N, K]}, of a "number" head the numbers. features: [N, D]. thresholds: of
    binary heads.
    """

    heads: Mapping[str, str | tuple[str, ...]]
    logits: dict[str, Tensor]
    features: Tensor
    thresholds: dict[str, Tensor] = field(default_factory=dict)

    @property
    def logit(self) -> Tensor:
        """The values of the only head."""
        (values,) = self.logits.values()
        return values

    def positive(self, head: str | None = None) -> Tensor:
        """bool [N]: the logit of a binary head (default: the only head) is above its threshold."""
        head = head or next(iter(self.logits))
        return self.logits[head] > self.thresholds.get(head, 0.0)

    def probabilities(self, head: str) -> np.ndarray:
        """float64 [N, K] of a head of classes, [N] of a binary one."""
        values = self.logits[head].double()
        return (values.sigmoid() if values.ndim == 1 else values.softmax(-1)).numpy()

    def classes(self, head: str) -> np.ndarray:
        """The most probable class of each image, by name [N]."""
        return np.array(self.heads[head])[self.logits[head].argmax(-1)]


@torch.no_grad()
def predict(classifier: Classifier, images: Tensor, batch_size: int = 128) -> Prediction:
    """Read what a classifier says about images, wherever the classifier lies.

    Parameters
    ----------
    classifier
        As of `fit_classifier` or `load_classifier`.
    images
        `[N, C, H, W]`, uint8 or float in [-1, 1].
    batch_size
        Images that are read at once.

    Returns
    -------
    Prediction
        Values of every head and features, on the CPU.

    Raises
    ------
    DataError
        Images that hold NaN or infinity.
    """
    if not bool(images.isfinite().all()):
        raise DataError("images hold NaN or infinity; look at the generator that made them")
    device = device_of(classifier)
    parts = [classifier.read(to_images(part).to(device)) for part in images.split(batch_size)]
    read = [values for values, _ in parts]
    logits = {name: torch.cat([one[name].cpu() for one in read]) for name in classifier.heads}
    features = torch.cat([part.cpu() for _, part in parts])
    thresholds = dict(zip(classifier.scalars, classifier.threshold.cpu(), strict=True))
    return Prediction(classifier.heads, logits, features, thresholds)


def calibrate(classifier: Classifier, images: Tensor, labels: Tensor) -> None:
    """Slope and intercept (Platt) of the logit of the first scalar head, a binary one, on held-out
    images and labels [N] in {0, 1}, both classes with equal weight.
    """
    place = classifier.place()
    classifier.slope[place], classifier.intercept[place] = 1.0, 0.0
    logits = predict(classifier, images).logits[classifier.scalars[place]]
    counts = torch.bincount(labels, minlength=2).double()
    weight = (len(labels) / 2 / counts)[labels]
    found = platt(logits.double().numpy(), labels.numpy(), weight.numpy())
    classifier.slope[place], classifier.intercept[place] = found


def choose_threshold(scores: np.ndarray | Tensor, labels: np.ndarray | Tensor) -> float:
    """The cut of `scores` [N] with the best balanced accuracy for `labels` [N] in {0, 1}.

    Above it the answer is 1. Halfway between two neighbouring scores; of several equally good cuts
    the middle one. Being a mean of sensitivity and specificity, it does not depend on the
    prevalence. Raises `DataError` when a class is missing.
    """
    from sklearn.metrics import roc_curve

    scores, labels = np.asarray(scores, float), np.asarray(labels).astype(bool)
    if len(scores) != len(labels) or labels.all() or not labels.any():
        what = f"{len(scores)} scores, {int(labels.sum())} of {len(labels)} labels positive"
        raise DataError(f"{what}; a threshold needs both classes")
    if np.ptp(scores) == 0:
        return float(scores[0])
    false, true, cuts = roc_curve(labels, scores, drop_intermediate=False)
    balanced = (1 + true - false)[-2:0:-1] / 2  # of a cut above each value but the highest
    best = np.flatnonzero(balanced >= balanced.max() - 1e-12)
    above = len(cuts) - 1 - best[len(best) // 2]
    return float((cuts[above] + cuts[above - 1]) / 2)


def set_threshold(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """Choose the threshold of the first scalar head, a binary one, on validation images and labels
    [N], and keep it in the classifier.
    """
    place = classifier.place()
    logits = predict(classifier, images).logits[classifier.scalars[place]]
    classifier.threshold[place] = choose_threshold(logits.numpy(), labels.numpy())
    return float(classifier.threshold[place])


def save_classifier(
    folder: str | Path, classifier: Classifier, report: Mapping[str, object] | None = None
) -> None:
    """Write the weights (float32), and beside them architecture, heads, calibration and
    `report`.
    """
    write_tensors(Path(folder) / "classifier.safetensors", classifier.state_dict())
    fixed = {key: getattr(classifier, key).tolist() for key in ("slope", "intercept", "threshold")}
    about = {
        "architecture": asdict(classifier.architecture),
        "heads": list(classifier.heads.items()),
        "calibration": {"heads": classifier.scalars, **fixed},
        **(report or {}),
    }
    write_json(Path(folder) / "classifier.json", about)


def find_classifier(name: str, device: str | torch.device) -> Callable[[Tensor], Tensor]:
    """A classifier on `device`: a folder that `save_classifier` wrote, or `package.module:function`
    that returns one, a callable from images to logits.

    Raises `SettingsError` when there is neither, `WeightsError` as `load_classifier`.
    """
    if Path(name).expanduser().is_dir():
        return load_classifier(name).to(device)
    try:
        found = resolve_name(name)()
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"classifier {name}: {error}; give a folder, or package.module:function that returns a "
            "callable from images to logits"
        ) from None
    return found.to(device) if hasattr(found, "to") else found


def load_classifier(folder: str | Path) -> Classifier:
    """Read a folder written by `save_classifier`, frozen.

    Raises `WeightsError` when it is not one, or the weights do not fit the architecture.
    """
    path = Path(folder).expanduser() / "classifier.json"
    about = read_description(path, "classifier")
    layers = tuple(tuple(layer) for layer in about["architecture"]["layers"])
    architecture = Architecture(**{**about["architecture"], "layers": layers})
    classifier = Classifier(dict(about["heads"]), architecture)
    return load_weights(classifier, path.with_suffix(".safetensors"))
