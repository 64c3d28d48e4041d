"""One training loop for every network here: a generator that yields once a step and can stop
anywhere.

Data order and noise are functions of (seed, step) alone, so a loop taken up from a saved state ends
with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from fairlib.errors import WeightsError


@dataclass(frozen=True)
class FitSettings:
    """Steps, peak learning rate (warm-up over `warmup` steps, then cosine to zero), clipping, EMA
    (0: none).

    `horizon`, when not 0, is the step at which the cosine would reach zero: a later phase goes on
    from a high rate.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 50
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    ema_decay: float = 0.0
    seed: int = 0
    horizon: int = 0


@dataclass(frozen=True)
class FitStep:
    """What a loop yields: the step just done (1-based), its loss and learning rate."""

    step: int
    loss: float
    learning_rate: float


def generator_for(seed: int, *keys: int) -> torch.Generator:
    """A CPU generator that is a function of (seed, keys); distinct keys give independent
    streams.
    """
    import numpy as np

    state = np.random.SeedSequence([seed, *keys]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


def batch_indices(seed: int, step: int, count: int, batch_size: int) -> Tensor:
    """Indices [batch_size] of step `step` (0-based): epochs of permutations, each a function of
    (seed, epoch).
    """
    start = step * batch_size
    found = []
    while len(found) < batch_size:
        epoch, offset = divmod(start + len(found), count)
        order = torch.randperm(count, generator=generator_for(seed, 7, epoch))
        found.extend(order[offset : offset + batch_size - len(found)].tolist())
    return torch.tensor(found)


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters of `module` lie, or its buffers; the CPU for a module without either."""
    return next(chain(module.parameters(), module.buffers()), torch.empty(0)).device


class Trainer:
    """Parameters, Adam moments and EMA of one fit, and the loop over them."""

    def __init__(self, module: nn.Module, settings: FitSettings):
        self.module, self.settings, self.step = module, settings, 0
        self.named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(
            self.named.values(),
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
        )
        self.ema = (
            {name: p.detach().clone() for name, p in self.named.items()}
            if settings.ema_decay
            else {}
        )

    def learning_rate(self, step: int) -> float:
        s = self.settings
        if step < s.warmup:
            return s.learning_rate * (step + 1) / s.warmup
        done = (step - s.warmup) / max(1, (s.horizon or s.steps) - s.warmup)
        return s.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def run(self, loss: Callable[[int], Tensor]) -> Iterator[FitStep]:
        """Run what is left of the fit.

        `loss(step)` returns the scalar loss of the 0-based `step`.
        """
        while self.step < self.settings.steps:
            rate = self.learning_rate(self.step)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            value = loss(self.step)
            self.optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(self.named.values(), self.settings.gradient_clip)
            self.optimiser.step()
            self._average()
            self.step += 1
            yield FitStep(self.step, float(value.detach()), rate)

    def _average(self) -> None:
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        for name, mean in self.ema.items():
            mean.lerp_(self.named[name].detach(), 1 - decay)

    def use_average(self) -> None:
        """Put the EMA weights in place of the last ones (at the end of a fit)."""
        for name, mean in self.ema.items():
            self.named[name].data.copy_(mean)

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything needed to go on, as a flat `{name: tensor}` for safetensors."""
        found = {"step": torch.tensor(self.step)}
        for name, parameter in self.named.items():
            found[f"weight/{name}"] = parameter.detach().clone()
            moments = self.optimiser.state.get(parameter, {})
            found.update(
                {
                    f"{key}/{name}": moments[key].detach().clone()
                    for key in ("exp_avg", "exp_avg_sq", "step")
                    if key in moments
                }
            )
        return found | {f"ema/{name}": mean.clone() for name, mean in self.ema.items()}

    def from_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take up a saved state. Raises `WeightsError` when it belongs to another network."""
        wanted = {f"weight/{name}" for name in self.named}
        found = {name for name in tensors if name.startswith("weight/")}
        if wanted != found:
            odd = sorted(wanted ^ found)[0]
            raise WeightsError(
                f"saved training state does not fit this network (first odd key: {odd}); start "
                "afresh"
            )
        self.step = int(tensors["step"])
        for name, parameter in self.named.items():
            parameter.data.copy_(tensors[f"weight/{name}"])
            if f"exp_avg/{name}" in tensors:
                self.optimiser.state[parameter] = {"step": tensors[f"step/{name}"].clone()} | {
                    key: tensors[f"{key}/{name}"].clone().to(parameter.device)
                    for key in ("exp_avg", "exp_avg_sq")
                }
        for name in self.ema:
            self.ema[name] = tensors[f"ema/{name}"].clone().to(self.named[name].device)
