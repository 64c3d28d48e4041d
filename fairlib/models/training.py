"""One optimiser state, one moving average and one resume for everything that trains in the library.

Data order and noise are functions of (seed, step) alone, so a loop taken up from a saved state ends
with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_json, read_tensors
from fairlib.rng import Stream, torch_rng
from fairlib.settings import (
    AboveZero,
    BelowOne,
    Checked,
    Count,
    Natural,
    Positive,
    Weight,
)

HALF = (torch.float16, torch.bfloat16)
FP16_LOSS_SCALE = 1024.0  # gradients below 6e-8 vanish in fp16
Fitted = TypeVar("Fitted", bound=nn.Module)
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class FitSettings(Checked):
    """How to train: length, learning rate, clipping and moving average.

    The learning rate rises over `warmup` steps to its peak; with `anneal` "cosine" it then falls to
    zero at the last step, with "none" it stays. `horizon`, when not 0, is the step at which the
    cosine would reach zero: a later phase goes on from a high rate. `gradient_clip`: largest norm
    of the whole gradient. `ema_decay`: of the moving average of the weights (0: none). `betas`: of
    AdamW. Raises `SettingsError` on a word or a number that means nothing.
    """

    steps: Count
    batch_size: Count
    learning_rate: Positive
    warmup: Natural = 50
    weight_decay: Weight = 0.0
    gradient_clip: AboveZero = 1.0
    ema_decay: BelowOne = 0.0
    seed: Natural = 0
    horizon: Natural = 0
    anneal: Literal["cosine", "none"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)

    @classmethod
    def of(cls, settings: Any, **changes: Any) -> FitSettings:
        """Take over every field that `settings` has under the same name; `changes` come on top."""
        names = [each.name for each in fields(cls) if hasattr(settings, each.name)]
        return cls(**{name: getattr(settings, name) for name in names} | changes)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the 0-based `step`."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.anneal == "none":
            return self.learning_rate
        done = (step - self.warmup) / max(1, (self.horizon or self.steps) - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class FitStep:
    """What a loop yields after a step.

    step: the step just done, 1-based. gradient_norm: before clipping; a step whose norm is not
    finite changed nothing.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float


def batch_indices(seed: int, step: int, count: int, batch_size: int) -> Tensor:
    """Indices [batch_size] of step `step` (0-based): epochs of permutations, each a function of
    (seed, epoch).
    """
    start = step * batch_size
    found: list[int] = []
    while len(found) < batch_size:
        epoch, offset = divmod(start + len(found), count)
        order = torch.randperm(count, generator=torch_rng(seed, Stream.ROW_ORDER, epoch))
        found.extend(order[offset : offset + batch_size - len(found)].tolist())
    return torch.tensor(found)


def draw_rows(weights: ArrayLike, count: int, seed: int, stream: int, *counters: int) -> Tensor:
    """Draw `count` rows in proportion to `weights` `[N]`, with replacement; a function of (seed,
    stream, counters).

    Raises `DataError` when a weight is negative or not finite, or all are zero.
    """
    chances = (weights if isinstance(weights, Tensor) else torch.tensor(np.array(weights))).double()
    usable = bool((chances.isfinite() & (chances >= 0)).all()) and float(chances.sum()) > 0
    if not usable:
        what = "sampling weights must be finite, at least 0 and not all 0"
        raise DataError(f"{what}; see methods.group_weights.balancing_weights")
    rng = torch_rng(seed, stream, *counters)
    return torch.multinomial(chances, count, replacement=True, generator=rng)


def rows_of_step(
    settings: FitSettings, step: int, count: int, weights: ArrayLike | None = None
) -> Tensor:
    """Rows `[batch_size]` of the 0-based `step`, a function of (seed, step).

    Epochs of permutations of `count` rows, or with `weights` `[count]` draws in proportion.
    """
    if weights is None:
        return batch_indices(settings.seed, step, count, settings.batch_size)
    return draw_rows(weights, settings.batch_size, settings.seed, Stream.WEIGHTED_ROWS, step)


def same_length(**parts: Sized) -> int:
    """The one length of all `parts`; raises `DataError` where they differ or are empty."""
    counts = {name: len(part) for name, part in parts.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise DataError(f"one row each is needed, and at least one; the counts are {counts}")
    return next(iter(counts.values()))


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters of `module` lie, or its buffers; the CPU for a module without either."""
    return next(chain(module.parameters(), module.buffers()), torch.empty(0)).device


def load_weights(module: Fitted, path: str | Path) -> Fitted:
    """Read the weights of `module` from a safetensors file, and freeze it.

    Raises `WeightsError` when the file is missing or its tensors are not those of the module.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path} is missing; fit it again")
    tensors = read_tensors(path)
    wrong = _differing(module.state_dict(), tensors)
    if wrong:
        what = f"{path}: weights do not fit this {type(module).__name__} ({wrong})"
        raise WeightsError(f"{what}; fit it again")
    module.load_state_dict(tensors)
    return module.eval().requires_grad_(False)


def read_description(path: Path, kind: str, hint: str = "fit one first") -> Any:
    """The JSON file beside the weights of a `kind`; raises `WeightsError` when it is missing."""
    if not path.is_file():
        raise WeightsError(f"{path.parent}: no {kind} here ({path.name} is missing); {hint}")
    return read_json(path)


def crops(images: Tensor, corners: Iterable[tuple[int, int]], height: int, width: int) -> Tensor:
    """The part [height, width] of each of `images` [N, C, H, W] below and right of its corner."""
    pairs = zip(images, corners, strict=True)
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in pairs])


def _differing(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """The first name whose shape differs, and both shapes; "" when none does."""
    for name in sorted(expected.keys() | found.keys()):
        here, there = (tuple(t[name].shape) if name in t else None for t in (expected, found))
        if here != there:
            return f"{name!r} is {there} in the file and {here} here"
    return ""


class Trainer:
    """The state of one fit: parameters, AdamW's moments, moving average and counters.

    trained: a module, of which the parameters that take gradients are trained, or named parameters.
    Move it to its device first.

    Parameters in half precision have float32 master weights, which the optimiser changes and which
    are rounded back after every step. With fp16, multiply the loss by `loss_scale` before
    `backward`; `update` divides the gradients again, and halves the scale when they overflow.

    Attributes: `step` counts `update`s, `updates` those whose gradient was finite; `named`: the
    parameters that are trained; `ema`: their float32 moving average, empty without one; `extra`:
    any tensors of the caller that a saved state shall carry.

    A loop of the caller's own is `backward` then `update`; `run` is the usual loop.
    """

    def __init__(self, trained: nn.Module | Mapping[str, nn.Parameter], settings: FitSettings):
        self.module = trained if isinstance(trained, nn.Module) else None
        named = trained.named_parameters() if isinstance(trained, nn.Module) else trained.items()
        self.named = {name: p for name, p in named if p.requires_grad}
        if not self.named:
            raise SettingsError("no parameter takes gradients here; call requires_grad_(True)")
        self.masters = {
            name: nn.Parameter(p.detach().float()) if p.dtype in HALF else p
            for name, p in self.named.items()
        }
        self.settings, self.step, self.updates = settings, 0, 0
        fp16 = any(p.dtype == torch.float16 for p in self.named.values())
        self.loss_scale = FP16_LOSS_SCALE if fp16 else 1.0
        self.optimiser = torch.optim.AdamW(
            self.masters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        averaged = self.masters if settings.ema_decay else {}
        self.ema = {name: p.detach().clone() for name, p in averaged.items()}
        self.extra: dict[str, Tensor] = {}

    @property
    def skipped(self) -> int:
        """Steps that changed nothing because their gradient was not finite."""
        return self.step - self.updates

    def run(self, loss: Callable[[int], Tensor]) -> Iterator[FitStep]:
        """Run what is left of the fit, yielding after each step.

        `loss(step)` returns the scalar loss of the 0-based `step`. Raises `SettingsError` when most
        gradients are not finite.
        """
        while self.step < self.settings.steps:
            rate = self.settings.learning_rate_at(self.step)
            value = loss(self.step)
            self.zero_grad()
            (value * self.loss_scale).backward()
            norm = self.update(rate)
            if self.skipped > max(10, self.updates):
                raise SettingsError(
                    f"{self.skipped} of {self.step} steps had a gradient that is not finite; lower "
                    f"the learning rate (now {rate:.1e}) or look at the data"
                )
            yield FitStep(self.step, float(value.detach()), rate, norm)

    @torch.no_grad()
    def update(self, learning_rate: float | None = None) -> float:
        """Take one step from the `.grad` of the parameters, and clear them.

        Clips the gradient, takes an AdamW step (Loshchilov & Hutter 2019) at `learning_rate`
        (default: that of the settings), then moves the average. Returns the gradient's norm before
        clipping; when it is not finite, only `step` has changed.
        """
        rate = self.settings.learning_rate_at(self.step) if learning_rate is None else learning_rate
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        for name, parameter in self.named.items():
            master = self.masters[name]
            if parameter.grad is not None and master is not parameter:
                master.grad = parameter.grad.float()
            if master.grad is not None and self.loss_scale != 1:
                master.grad.div_(self.loss_scale)
        masters = list(self.masters.values())
        norm = float(nn.utils.clip_grad_norm_(masters, self.settings.gradient_clip))
        if math.isfinite(norm):
            self.optimiser.step()
            self._average()
            self._write_back()
            self.updates += 1
        else:
            self.loss_scale = max(1.0, self.loss_scale / 2)
        self.step += 1
        self.zero_grad()
        return norm

    def zero_grad(self) -> None:
        """Clear the gradients of the parameters and of their master weights."""
        for parameter in chain(self.named.values(), self.masters.values()):
            parameter.grad = None

    def _average(self) -> None:
        """The average forgets faster at first, so that short runs are not held back."""
        decay = min(self.settings.ema_decay, (1 + self.updates) / (10 + self.updates))
        for name, mean in self.ema.items():
            mean.lerp_(self.masters[name].detach(), 1 - decay)

    @torch.no_grad()
    def _write_back(self, values: Mapping[str, Tensor] | None = None) -> None:
        """Set the master weights to `values`, if given, and the parameters to the master
        weights.
        """
        for name, value in (values or {}).items():
            self.masters[name].copy_(value)
        for name, parameter in self.named.items():
            if parameter is not self.masters[name]:
                parameter.copy_(self.masters[name])

    def use_average(self) -> None:
        """Put the averaged weights, if there are any, in place of the last ones (at the end of a
        fit).
        """
        self._write_back(self.ema)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Hold the averaged weights inside the block, and the last ones again after it.

        Save no state inside the block.
        """
        live = {name: self.masters[name].detach().clone() for name in self.ema}
        self.use_average()
        try:
            yield
        finally:
            self._write_back(live)

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything needed to go on, as a flat `{name: tensor}` for `fairlib.io.write_tensors`;
        copies on the CPU, for a GPU that is just large enough has no room for them.
        """
        counts = {"step": self.step, "updates": self.updates, "loss_scale": self.loss_scale}
        found = {name: torch.tensor(value) for name, value in counts.items()}
        for name, parameter in self.masters.items():
            found[f"weight/{name}"] = parameter
            moments = self.optimiser.state.get(parameter, {})
            found |= {f"{key}/{name}": moments[key] for key in MOMENTS if key in moments}
        found |= {f"ema/{name}": mean for name, mean in self.ema.items()}
        found |= {f"extra/{name}": value for name, value in self.extra.items()}
        return {name: value.detach().to("cpu", copy=True) for name, value in found.items()}

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up a state that `to_tensors` wrote.

        Raises `WeightsError`, with nothing changed, when it belongs to another network.
        """
        expected = {"step": torch.tensor(0)}
        expected |= {f"weight/{name}": value for name, value in self.masters.items()}
        expected |= {f"ema/{name}": mean for name, mean in self.ema.items()}
        compared = ("weight/", "ema/")
        found = {k: v for k, v in tensors.items() if k in expected or k.startswith(compared)}
        wrong = _differing(expected, found)
        if wrong:
            what = f"saved training state does not fit this network ({wrong})"
            raise WeightsError(f"{what}; resume with the settings that made it, or start afresh")
        self.step = int(tensors["step"])
        self.updates = int(tensors.get("updates", self.step))
        self.loss_scale = float(tensors.get("loss_scale", self.loss_scale))
        self._write_back({name: tensors[f"weight/{name}"] for name in self.masters})
        self.optimiser.state.clear()
        for name, parameter in self.masters.items():
            if f"exp_avg/{name}" in tensors:
                held = {key: tensors[f"{key}/{name}"].clone() for key in MOMENTS}
                places = dict.fromkeys(held, parameter.device) | {"step": "cpu"}
                self.optimiser.state[parameter] = {k: v.to(places[k]) for k, v in held.items()}
        means = {name: tensors[f"ema/{name}"].clone() for name in self.ema}
        self.ema = {name: mean.to(self.masters[name].device) for name, mean in means.items()}
        extra = {k: value.clone() for k, value in tensors.items() if k.startswith("extra/")}
        self.extra = {k.removeprefix("extra/"): value for k, value in extra.items()}
