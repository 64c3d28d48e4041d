"""The state of a tuning run: everything that must survive a killed session, as plain tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fairlib.errors import WeightsError

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass
class AlignmentState:
    """Parameters, their moving average, Adam's moments and the rank pools after `step` optimiser
    steps.

    A new one is empty until `bind` gives it the generator's live parameters. `origin` is the hash
    of the values that the first `bind` found, "" where that is not known.
    """

    parameters: dict[str, Tensor] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)
    pools: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    updates: int = 0
    cosine: float = 1.0
    origin: str = ""

    @property
    def skipped(self) -> int:
        """Optimiser steps left out because their gradient was not finite."""
        return self.step - self.updates

    @torch.no_grad()
    def bind(self, parameters: dict[str, Tensor]) -> AlignmentState:
        """Make `parameters` the live ones: they take the saved values, if there are any.

        Raises `WeightsError` when the saved names or shapes are not theirs.
        """
        if self.parameters:
            self._check(parameters)
            for name, parameter in parameters.items():
                parameter.copy_(self.parameters[name])
        else:
            self.origin = fingerprint(parameters)
        self.parameters = parameters
        for held, start in (
            (self.ema, torch.clone),
            (self.first, torch.zeros_like),
            (self.second, torch.zeros_like),
        ):
            for name, parameter in parameters.items():
                held[name] = (
                    held[name].to(parameter.device) if name in held else start(parameter.detach())
                )
        return self

    def require_origin(self, parameters: dict[str, Tensor]) -> None:
        """Raises `WeightsError` unless `parameters` are as the first `bind` found them; anything
        does before the first.
        """
        if not self.parameters:
            return
        self._check(parameters)
        remedy = "give `base` or `base_cache`, of the untuned model"
        if not self.origin:
            raise WeightsError(f"this state does not say which model its run began with; {remedy}")
        if fingerprint(parameters) != self.origin:
            raise WeightsError(
                "this generator is not the one that the run began with; resume with a fresh one, "
                f"or {remedy}"
            )

    def _check(self, parameters: dict[str, Tensor]) -> None:
        saved = {name: tuple(value.shape) for name, value in self.parameters.items()}
        live = {name: tuple(value.shape) for name, value in parameters.items()}
        wrong = sorted(
            name for name in saved.keys() | live.keys() if saved.get(name) != live.get(name)
        )
        if wrong:
            raise WeightsError(
                f"the saved state does not fit this generator: {wrong[0]!r} is "
                f"{saved.get(wrong[0])} in the state and "
                f"{live.get(wrong[0])} in the generator ({len(wrong)} differ); resume with the "
                "settings that made it"
            )

    @torch.no_grad()
    def update(self, learning_rate: float, weight_decay: float, ema_decay: float) -> None:
        """One AdamW step (Loshchilov & Hutter 2019) from the `.grad` of the parameters, then the
        moving average.

        The average forgets faster at first, min(ema_decay, (1 + n) / (10 + n)), so that short runs
        are not held back.
        """
        self.updates += 1
        corrections = [1 - beta**self.updates for beta in BETAS]
        keep = min(ema_decay, self.updates / (9 + self.updates))
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                first = self.first[name].lerp_(parameter.grad, 1 - BETAS[0])
                second = (
                    self.second[name]
                    .mul_(BETAS[1])
                    .addcmul_(parameter.grad, parameter.grad, value=1 - BETAS[1])
                )
                size = (second / corrections[1]).sqrt_().add_(EPSILON)
                parameter.mul_(1 - learning_rate * weight_decay)
                parameter.addcdiv_(first, size, value=-learning_rate / corrections[0])
            self.ema[name].lerp_(parameter, 1 - keep)

    def remember(self, group: str, logits: Tensor, size: int) -> None:
        """Keep the last `size` finite logits of `group` to rank later batches within."""
        if size:
            rows = logits.detach().reshape(len(logits), -1).isfinite().all(dim=1)
            finite = logits.detach()[rows]
            self.pools[group] = torch.cat([self.pools.get(group, finite[:0]).to(finite), finite])[
                -size:
            ].clone()

    def to_tensors(self) -> dict[str, Tensor]:
        """A copy of everything, flat, for `fairlib.io.write_tensors`."""
        kinds = {
            "parameters": self.parameters,
            "ema": self.ema,
            "first": self.first,
            "second": self.second,
        }
        named = {
            f"{kind}/{name}": value for kind, held in kinds.items() for name, value in held.items()
        }
        named |= {f"pools/{group}": value for group, value in self.pools.items()}
        named["counts"] = torch.tensor([self.step, self.updates])
        named["cosine"] = torch.tensor([self.cosine], dtype=torch.float64)
        named["origin"] = torch.tensor(list(bytes.fromhex(self.origin)), dtype=torch.uint8)
        return {name: value.detach().clone() for name, value in named.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> AlignmentState:
        """The state that `to_tensors` wrote; `WeightsError` when `tensors` are something else."""
        if not {"counts", "cosine"} <= tensors.keys():
            raise WeightsError(
                "these tensors are no saved tuning state (no 'counts'); start the tuning afresh"
            )
        state = cls(
            step=int(tensors["counts"][0]),
            updates=int(tensors["counts"][1]),
            cosine=float(tensors["cosine"]),
            origin=bytes(tensors["origin"].tolist()).hex() if "origin" in tensors else "",
        )
        for key, value in tensors.items():
            kind, slash, name = key.partition("/")
            if slash:
                getattr(state, kind)[name] = value.clone()
        return state


def fingerprint(parameters: dict[str, Tensor]) -> str:
    """SHA-256 of names and values, in hexadecimal: the same bits give the same hash on any
    device.
    """
    found = hashlib.sha256()
    for name, value in sorted(parameters.items()):
        found.update(name.encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


@contextmanager
def apply_ema(state: AlignmentState) -> Iterator[None]:
    """Inside the block the generator holds the averaged weights; afterwards, the live ones
    again.
    """
    live = {name: value.detach().clone() for name, value in state.parameters.items()}
    _assign(state.parameters, state.ema)
    try:
        yield
    finally:
        _assign(state.parameters, live)


@torch.no_grad()
def _assign(parameters: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
