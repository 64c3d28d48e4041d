"""Tuning on several GPUs: a process each, started by `accelerate launch` or `torchrun`.

Each process holds the whole model and takes its share of a batch's images. What targets are made of
(logits, embeddings) is joined before any target is set, so that images are ranked in the global
batch; gradients are summed. One process alone does none of this.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor, distributed

from fairlib.errors import SettingsError


def start() -> int:
    """Join the processes of this launch, before any model is loaded; the place of this one.

    "cuda" then is the GPU of this process. A process that was started alone stays alone.
    """
    if _launched() > 1 and not distributed.is_initialized():
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if on_gpu else "gloo")
    return place()


def _launched() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def count() -> int:
    """How many processes tune together."""
    return distributed.get_world_size() if _joined() else 1


def place() -> int:
    """The place of this process among them, from 0."""
    return distributed.get_rank() if _joined() else 0


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def own_rows(total: int) -> slice:
    """The rows of `total` that this process takes; all of them when it is alone."""
    each = total // count()
    return slice(place() * each, (place() + 1) * each)


def join_processes(part: Tensor) -> Tensor:
    """The parts `[n, ...]` of all processes, `[count * n, ...]`, without gradient, everywhere."""
    if count() == 1:
        return part
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(count())]
    distributed.all_gather(parts, part.detach().contiguous())
    return torch.cat(parts)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Make every `.grad` the sum over all processes."""
    if count() > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)


def check_processes(fingerprint: Tensor, **totals: int) -> None:
    """Raise `SettingsError` unless the launched processes have joined, began with the same
    parameters (`fingerprint`, a row of bytes) and can share each of `totals` evenly.
    """
    if _launched() > 1 and not _joined():
        raise SettingsError(
            f"{_launched()} processes were launched but have not joined; call "
            "fairlib.methods.processes.start() before the models are loaded"
        )
    for name, total in totals.items():
        if total % count():
            raise SettingsError(f"{name} is {total}; expected a multiple of {count()} processes")
    if len(join_processes(fingerprint[None]).unique(dim=0)) > 1:
        raise SettingsError("processes hold different generators; load the same weights in each")
