"""Counting what a piece of work costs: denoiser evaluations, bytes kept for backward, seconds."""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Counter:
    """Denoiser evaluations, in images."""

    forward: int = 0
    recompute: int = 0
    backward: int = 0
    recomputing: bool = False

    @property
    def cost(self) -> int:
        """Evaluations in units of one forward pass of one image."""
        return self.forward + self.recompute + 2 * self.backward

    @contextmanager
    def during_recompute(self):
        self.recomputing = True
        try:
            yield
        finally:
            self.recomputing = False


def peak_saved_bytes(work) -> int:
    """Most bytes that autograd keeps for backward at one time; a tensor kept twice counts once."""
    holders: dict[int, int] = {}
    sizes: dict[int, int] = {}
    peak = 0

    class Kept:
        def __init__(self, tensor: Tensor):
            nonlocal peak
            self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
            sizes[self.key] = tensor.untyped_storage().nbytes()
            holders[self.key] = holders.get(self.key, 0) + 1
            peak = max(peak, sum(sizes.values()))

        def __del__(self):
            holders[self.key] -= 1
            if not holders[self.key]:
                del holders[self.key], sizes[self.key]

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        work()
    return peak


def seconds(works: dict, repeats: int) -> dict[str, float]:
    """Median wall time of each, taken in turns; the first round is not counted."""
    taken = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}
