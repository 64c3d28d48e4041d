"""What fine-tuning needs of a GPU's memory, counted at the size of Stable Diffusion 1.5 without a
GPU and without weights.

    python benchmarks/finetune_memory.py

A training step runs on tensors that have a shape and a type but no content; every storage that it
creates is counted while it lives. As on a GPU under autocast, normalisations compute in float32;
attention keeps what fused kernels keep: queries, keys, values, output and one number a row. Not
counted: what CUDA, its libraries and the allocator take for themselves, and workspaces of kernels.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fairlib.models.generator import Generator

GB = 1e9
SDPA = "scaled_dot_product_attention"
UNET = {"sample_size": 64, "cross_attention_dim": 768}  # Stable Diffusion 1.5; the rest is default
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}


class Count(NamedTuple):
    """Bytes: of the frozen weights, of the trained ones with Adam's moments and average, and what a
    step needs beyond them at its peak, gradients included.
    """

    frozen: int
    trained: int
    step: int

    @property
    def total(self) -> int:
        """All together."""
        return self.frozen + self.trained + self.step


class Live(TorchDispatchMode):
    """Bytes of all storages that operations inside the block made and that still live, and their
    peak.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if _is(t)]
        found = func(*args, **(kwargs or {}))
        for tensor in filter(_is, tree_leaves(found)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known and storage._cdata not in given:
                self.known.add(storage._cdata)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())
        return found

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self._change(-size)

    def _change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def _is(value: object) -> bool:
    return isinstance(value, Tensor)


class Fused(torch.autograd.Function):
    """The memory of fused attention."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output, rows = torch.empty_like(query), query.new_empty(query.shape[:-1]).float()
        ctx.save_for_backward(query, key, value, output, rows)
        return output

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """As torch's function, in the precision of autocast."""
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return Fused.apply(query.to(kind), key.to(kind), value.to(kind))


def in_float32(function: Any) -> Any:
    """The function, with every tensor in float32."""

    def cast(*args: Any) -> Tensor:
        return function(*(arg.float() if _is(arg) else arg for arg in args))

    return cast


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Replace what a GPU computes in another precision, or with less memory, than a CPU."""
    functional = nn.functional
    plain = {name: getattr(functional, name) for name in ("group_norm", "layer_norm", SDPA)}
    try:
        for name, function in plain.items():
            setattr(functional, name, attention if name == SDPA else in_float32(function))
        yield
    finally:
        for name, function in plain.items():
            setattr(functional, name, function)


def count(
    lora: int, kind: torch.dtype, batch_size: int, checkpointing: bool, pixels: int = 512
) -> Count:
    """Count one step of `fairlib.stage_one` (LoRA weights of a rank, or 0: the whole denoiser)."""
    with torch.device("meta"):
        denoiser, spare = _networks()
        if lora:
            Generator.add_lora(SimpleNamespace(denoiser=denoiser, device=torch.device("cpu")), lora)
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
    with FakeTensorMode():
        frozen, trained = _place(denoiser, kind)
        return Count(
            frozen + 4 * spare, 16 * trained, _step(denoiser, kind, batch_size, pixels // 8)
        )


def _networks() -> tuple[nn.Module, int]:
    """The denoiser, and the number of weights of autoencoder and text encoder together."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextModel(CLIPTextConfig(**TEXT, num_attention_heads=12))
    spare = (AutoencoderKL(**VAE), text)
    return UNet2DConditionModel(**UNET), sum(p.numel() for part in spare for p in part.parameters())


def _place(denoiser: nn.Module, kind: torch.dtype) -> tuple[int, int]:
    """Replace the weights by empty ones: frozen ones in `kind`, others in float32.
    Returns the bytes of the former and the number of the latter.
    """
    sizes = {True: 0, False: 0}
    for module in denoiser.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                learns = weight.requires_grad
                empty = torch.empty(weight.shape, dtype=torch.float32 if learns else kind)
                module._parameters[name] = nn.Parameter(empty, learns)
                sizes[learns] += weight.numel()
    return sizes[False] * kind.itemsize, sizes[True]


def _step(denoiser: nn.Module, kind: torch.dtype, batch_size: int, side: int) -> int:
    """The peak of forward and backward pass."""
    with as_on_a_gpu(), Live() as live:
        latents = torch.empty(batch_size, 4, side, side)
        inputs = (latents, torch.zeros(batch_size, dtype=torch.long))
        words = torch.empty(batch_size, 77, UNET["cross_attention_dim"])
        with torch.autocast("cpu", kind, enabled=kind != torch.float32):
            predicted = denoiser(*inputs, words).sample
        (predicted - latents).square().mean().backward()
    return live.peak


def main() -> None:
    """Print the table."""
    rows = [
        (lora, kind, batch, kept)
        for lora, kind in ((16, torch.float16), (0, torch.float16), (0, torch.float32))
        for batch in (1, 4, 8)
        for kept in (False, True)
    ]
    print("| trained | precision | batch | checkpointing | frozen | trained | step | total GB |")
    print("|---|---|---|---|---|---|---|---|")
    for lora, kind, batch, checkpointing in rows:
        found = count(lora, kind, batch, checkpointing)
        name = f"LoRA {lora}" if lora else "whole"
        sizes = " | ".join(f"{size / GB:.1f}" for size in (*found, found.total))
        on = "yes" if checkpointing else "no"
        print(f"| {name} | {str(kind)[6:]} | {batch} | {on} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
