"""Peak memory of a tuning step at the size of Stable Diffusion 1.5, counted without a GPU.

Tensors lie on the device "meta": they have shapes and no numbers, and every operation still makes
what it would make. Attention is counted as the fused kernels of a GPU keep it. A step holds its
parameters, the adapters with their optimiser, the trajectory (one latent a solver step), the
images, and on top of them the larger of two transients: the replay of one step, or reading a
micro-batch of images with its gradient. Both are counted; the rest is arithmetic.

    python benchmarks/memory.py [--write PATH]
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from sizes import STABLE_DIFFUSION, Size, SizedGenerator, readers  # noqa: E402

from fairlib.io import write_json  # noqa: E402

BOUNDS = {"ratio_50_to_10": 1.1, "gb": 14.0}
GUIDANCE = 3.0


class LiveBytes(TorchDispatchMode):
    """The bytes of tensors that operations in the block have made: `live` now, `peak` at most. What
    a kernel uses inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.held: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._hold, result)
        return result

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.held:
            self.held.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.held.discard(key)
        self.live -= size


class FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps of attention: its inputs, its result and a number a query; never
    the square of the tokens.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], device=query.device)
        ctx.save_for_backward(query, key, value, result, sums)
        return result

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention in the block has the memory of a fused kernel, and no numbers."""
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda query, key, value, *_, **__: FusedAttention.apply(
        query, key, value
    )
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_of(work: Callable[[], Any]) -> int:
    """Bytes that `work` has on top of what was there before it."""
    with LiveBytes() as counted:
        work()
    return counted.peak


def transients(size: Size, micro_batch: int, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of the parameters, of their training, and of what a micro-batch holds for a while."""
    with fused_attention():
        generator = SizedGenerator(size, "meta", dtype)
        classifier, embed = readers(size, "meta")
        generator.add_lora(8)
        trained = generator.trainable_parameters().values()
        latents = torch.empty(micro_batch, *generator.latent_shape, device="meta")
        words = torch.empty(micro_batch, *size.words, device="meta")

        def replay() -> None:
            predicted = generator.predict_noise(latents, 500, words, GUIDANCE)
            predicted.backward(latents)

        def read() -> None:
            leaf = latents.clone().requires_grad_()
            images = generator.decode(leaf).float()
            (classifier(images).sum() + embed(images).sum()).backward()

        found = {"replay": peak_of(replay), "read": peak_of(read)}
        # master weights where the adapters are half precision; two moments and the average
        single = 4 * sum(p.numel() for p in trained)
        masters = single if any(p.element_size() < 4 for p in trained) else 0
        frozen = [*generator.denoiser.parameters(), *generator.pipeline.vae.parameters()]
        [tower] = [cell.cell_contents for cell in embed.__closure__]
        frozen += [*classifier.parameters(), *tower.parameters()]
        found["parameters"] = bytes_of(frozen)
        # `replay` has counted the gradients as they came to be
        found["training"] = masters + 3 * single
    return found


def step_bytes(size: Size, parts: dict[str, int], batch: int, solver_steps: int) -> int:
    """The peak of a step: `parts` as of `transients`, plus the trajectory and the images."""
    latent = 4 * 4 * size.latent**2
    pixels = (size.latent * 2 ** (len(size.autoencoder) - 1)) ** 2
    held = batch * (
        latent * (solver_steps + 2) + 4 * 3 * pixels + 4 * size.words[0] * size.words[1]
    )
    return parts["parameters"] + parts["training"] + held + max(parts["replay"], parts["read"])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="PATH", help="also write the counts as JSON")
    chosen = parser.parse_args(arguments)
    rows = []
    print("| precision | micro-batch | batch | GB at 10, 20, 50 solver steps | ratio | transient |")
    print("|---|---|---|---|---|---|")
    for dtype in (torch.float16, torch.float32):
        for micro_batch in (1, 2):
            parts = transients(STABLE_DIFFUSION, micro_batch, dtype)
            for batch in (8, 24):
                sizes = [step_bytes(STABLE_DIFFUSION, parts, batch, n) / 1e9 for n in (10, 20, 50)]
                row = {
                    "precision": str(dtype).removeprefix("torch."),
                    "micro_batch": micro_batch,
                    "batch": batch,
                    "gb": dict(zip(("10", "20", "50"), sizes, strict=True)),
                    "ratio_50_to_10": sizes[2] / sizes[0],
                    "parts_gb": {name: value / 1e9 for name, value in parts.items()},
                }
                rows.append(row)
                cells = ", ".join(f"{value:.2f}" for value in sizes)
                largest = max(("replay", "read"), key=parts.get)
                print(
                    f"| {row['precision']} | {micro_batch} | {batch} | {cells} | "
                    f"{row['ratio_50_to_10']:.3f} | {largest} {parts[largest] / 1e9:.2f} |",
                    flush=True,
                )
    found = {"size": STABLE_DIFFUSION.name, "torch": torch.__version__, "rows": rows}
    if chosen.write:
        print("wrote", write_json(chosen.write, found))
    return found


if __name__ == "__main__":
    main()
