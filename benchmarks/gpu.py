"""What a tuning step and a fine-tuning step cost on this machine's GPU, in one table.

Tuning at the size of Stable Diffusion 1.5 (random weights, 512 px, LoRA), the published order of
work against the library's step in one run: seconds, peak memory, cosine of the gradients, by solver
steps and batch; the same with the brain model of `weights/`; and a fine-tuning step. Both orders of
work take micro-batches of the same size: the largest that fits both. What does not fit says so, and
what the minutes no longer allow.

    python benchmarks/gpu.py [--minutes 8] [--write]
    python benchmarks/gpu.py --small        the same on tiny models, on any machine
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from memory import LiveBytes  # noqa: E402
from sizes import STABLE_DIFFUSION, TINY, Size, SizedGenerator, readers  # noqa: E402

from fairlib.doctor import device as device_name  # noqa: E402
from fairlib.doctor import versions  # noqa: E402
from fairlib.io import write_json  # noqa: E402
from fairlib.methods import alignment as al  # noqa: E402
from fairlib.methods.finetuning import FinetuneSettings, finetune  # noqa: E402
from fairlib.methods.group_weights import Uniform  # noqa: E402
from fairlib.methods.replay import chunks  # noqa: E402
from fairlib.methods.targets import Target  # noqa: E402

MICRO_BATCHES = (8, 4, 2, 1)
SCORES = torch.cat([torch.linspace(1, 3, 458), torch.linspace(-3, -1, 542)])
TARGET = Target.shares({"female": 0.458, "male": 0.542}, SCORES)
SHORT = "out of memory"
LATE = "no minutes left"


def tuning_settings(steps: int, batch: int, micro_batch: int | None, **more: Any):
    """Of one optimiser step on one prompt; every image keeps its weight in the consistency, so that
    the loss is a mean over images in both orders of work.
    """
    return al.AlignmentSettings(
        family="quantile",
        steps=1,
        prompts_per_step=1,
        images_per_prompt=batch,
        cache_size=batch,
        cache_block=batch,
        sampling_steps=steps,
        replay_steps=min(3, steps),
        consistency_change_factor=1.0,
        micro_batch=micro_batch,
        **more,
    )


@dataclass
class Contest:
    """One batch and two ways to its gradient. The base model's readings, which the library takes
    from its cache, are those that the published order reads last.
    """

    run: Any  # of the library
    reference: Tensor | None = None

    @classmethod
    def of(cls, generator: Any, classifier: Any, embed: Any, settings: al.AlignmentSettings):
        texts = ["axial T2 brain MRI of a patient with a glioma"]
        cache = al.cache_base(generator, classifier, texts, embed=embed, settings=settings)
        if settings.trainable == "lora":
            generator.add_lora(settings.lora_rank, settings.seed)
        state = al.AlignmentState(generator.trainable_parameters(), settings)
        return cls(al._Run(generator, classifier, embed, texts, (TARGET,), settings, state, cache))

    def batch(self, logits: Tensor, embeds: Tensor) -> al.Batch:
        count = self.run.settings.images_per_prompt
        return al.Batch(0, (0,) * count, tuple(range(count)), logits, embeds)

    def published(self) -> None:
        """Leave the gradient in `.grad`, by three generations: targets, the frozen model's
        embeddings (before the first update it is the model itself), and the detached chain.
        """
        run, s = self.run, self.run.settings
        noise = run.generator.noise(run.cache.seed, list(range(s.images_per_prompt)))
        words = run.prompt_embeds.expand(len(noise), -1, -1)
        pieces = chunks(len(noise), s.micro_batch)
        with torch.no_grad():
            logits, _ = self._generate(noise, words, pieces)
            self.reference, embeds = self._generate(noise, words, pieces)
        batch = self.batch(self.reference, embeds)
        assignment = run.objective.assign(logits, batch, lambda name: None)
        for rows in pieces:
            sample = run.solver.run(self._checkpointed(words[rows]), noise[rows])
            _, found, seen = run._score(sample)
            part = replace(assignment, values=assignment.values[rows])
            loss = s.alignment_weight * run.objective.alignment(found, batch, part)
            loss = loss + s.consistency_weight * al.consistency(seen, embeds[rows])
            (loss * len(found) / len(noise)).backward()
        run.cache.readings[0, 0] = self.reference, embeds

    def _generate(self, noise: Tensor, words: Tensor, pieces: list[slice]) -> list[Tensor]:
        """Logits and embeddings of the whole batch."""
        parts = []
        for rows in pieces:
            given = words[rows]
            sample = self.run.solver.run(
                lambda x, t, given=given: self.run.predict_noise(x, t, given), noise[rows]
            )
            parts.append(self.run._score(sample)[1:])
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def _checkpointed(self, words: Tensor) -> Callable[[Tensor, int], Tensor]:
        return lambda latents, timestep: checkpoint(
            self.run.predict_noise,
            latents.detach(),
            timestep,
            words,
            use_reentrant=False,
            preserve_rng_state=False,
        )

    def ours(self) -> None:
        """Leave the gradient in `.grad` by the library's step."""
        self.run.gradient(self.run._batch(0))

    def gradient(self) -> Tensor:
        """What was left in `.grad`, flat and on the processor; none is left after."""
        named = self.run.state.named.values()
        flat = torch.cat([p.grad.flatten().float().cpu() for p in named if p.grad is not None])
        self.run.state.zero_grad()
        return flat


class Card:
    """The device: seconds and peak memory of a piece of work on it."""

    def __init__(self, name: str = ""):
        self.name = name or ("cuda" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.name.startswith("cuda")
        half = torch.bfloat16 if self.on_gpu and torch.cuda.is_bf16_supported() else torch.float16
        self.dtype = half if self.on_gpu else torch.float32

    def measure(self, work: Callable[[], Any], peak: bool = True) -> tuple[float, float]:
        """Seconds, and the peak of allocated memory in GB, of `work`. On the processor memory is
        counted in a second run.
        """
        self.clear()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        work()
        if self.on_gpu:
            torch.cuda.synchronize()
            return time.perf_counter() - started, torch.cuda.max_memory_allocated() / 1e9
        spent = time.perf_counter() - started
        if not peak:
            return spent, float("nan")
        with LiveBytes() as counted:
            work()
        return spent, counted.peak / 1e9

    def clear(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def is_short(error: BaseException) -> bool:
    """Whether memory is what lacked: of the GPU, or of the machine."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def compare(card: Card, contest: Contest) -> dict[str, Any]:
    """One row of the table: both orders of work on the same batch."""
    row: dict[str, Any] = {}
    gradients = {}
    for name, work in (("published", contest.published), ("ours", contest.ours)):
        row[f"{name}_seconds"], row[f"{name}_gb"] = card.measure(work)
        # of two runs where memory was counted in one of its own: no cosine changes
        gradients[name] = contest.gradient().double()
    row["times_faster"] = row["published_seconds"] / row["ours_seconds"]
    row["cosine"] = float(torch.cosine_similarity(*gradients.values(), dim=0))
    return row


def fitting(card: Card, make: Callable[[int], Contest]) -> tuple[int | None, float]:
    """The largest micro-batch of which both orders of work fit, and the seconds of an image and a
    solver step in the published one; None where not one image fits.
    """
    for micro_batch in MICRO_BATCHES:
        try:
            contest = make(micro_batch)
            count = contest.run.settings.images_per_prompt * contest.run.settings.sampling_steps
            for work in (contest.published, contest.ours):  # the first call also warms up
                work()
                contest.gradient()
            spent, _ = card.measure(contest.published, peak=False)
            contest.gradient()
            return micro_batch, spent / count
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_short(error):
                raise
        contest = None
        card.clear()
    return None, 0.0


def tuning_rows(
    card: Card, size: Size, steps: Iterable[int], batches: Iterable[int], end: float
) -> list[dict[str, Any]]:
    """A row for each batch and number of solver steps, the cheap ones first."""
    plans = [
        {"model": size.name, "work": "tuning, LoRA", "batch": batch, "solver_steps": count}
        for batch in batches
        for count in steps
    ]
    try:
        generator = SizedGenerator(size, card.name, card.dtype)
        classifier, embed = readers(size, card.name)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_short(error):
            raise
        return [plan | {"note": SHORT} for plan in plans]

    def make(batch: int, count: int, micro_batch: int) -> Contest:
        settings = tuning_settings(count, batch, micro_batch, trainable="lora")
        return Contest.of(generator, classifier, embed, settings)

    micro_batch, each = fitting(card, lambda micro: make(max(micro, 2), 2, micro))
    if micro_batch is None:
        return [plan | {"note": SHORT} for plan in plans]
    rows = []
    for plan in plans:
        images, count = plan["batch"], plan["solver_steps"]
        plan = plan | {"micro_batch": min(micro_batch, images)}
        if time.monotonic() + 1.5 * each * images * count > end:
            rows.append(plan | {"note": LATE})
            continue
        rows.append(attempt(card, plan, lambda n=images, c=count: make(n, c, micro_batch)))
        show([rows[-1]])
    return rows


def attempt(card: Card, plan: dict, make: Callable[[], Contest]) -> dict[str, Any]:
    """The row of `plan`; where memory does not suffice, a note in place of figures."""
    try:
        return plan | compare(card, make())
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_short(error):
            raise
    card.clear()
    return plan | {"note": SHORT}


def brain_row(card: Card, batch: int, steps: int) -> dict[str, Any]:
    """The shipped brain model's step: every weight of the denoiser, in float32."""
    from fairlib.models.classifier import WIDE_MAX, build_classifier
    from fairlib.models.clip import load_clip
    from fairlib.models.generator import Generator

    plan = {"model": "weights/brain", "work": "tuning, full", "batch": batch}
    plan |= {"solver_steps": steps, "micro_batch": batch}
    generator = Generator.load(ROOT / "weights" / "brain", card.name)
    clip = load_clip(ROOT / "weights" / "clip").eval().requires_grad_(False).to(card.name)
    classifier = build_classifier({"female": "binary"}, WIDE_MAX).eval().requires_grad_(False)

    def make() -> Contest:
        settings = tuning_settings(steps, batch, None)
        return Contest.of(generator, classifier.to(card.name), clip.embed_images, settings)

    warm = make()
    if card.on_gpu:
        warm.published(), warm.ours(), warm.gradient()
    return attempt(card, plan, make)


def finetuning_row(card: Card, size: Size, batch: int) -> dict[str, Any]:
    """A step of `finetune` with LoRA and gradient checkpointing, under autocast where there is a
    GPU.
    """
    plan = {"model": size.name, "work": "fine-tuning, LoRA", "batch": batch}
    try:
        generator = SizedGenerator(size, card.name)
        generator.add_lora(8)
        denoiser = generator.denoiser.train()
        denoiser.enable_gradient_checkpointing()
        steps = list_steps(denoiser, size, batch, card)
        next(steps)  # warms up
        seconds, peak = card.measure(lambda: next(steps))
        return plan | {"ours_seconds": seconds, "ours_gb": peak}
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_short(error):
            raise
        return plan | {"note": SHORT}


def list_steps(denoiser: nn.Module, size: Size, batch: int, card: Card):
    """Steps of fine-tuning on random latents."""
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(2 * batch, 4, size.latent, size.latent, generator=rng)
    words = torch.randn(2, *size.words, generator=rng)
    rows, groups = torch.arange(2 * batch) % 2, (torch.arange(2 * batch) % 2)[:, None]
    settings = FinetuneSettings(steps=4, batch_size=batch, ema_decay=0.0)
    steps = finetune(
        denoiser, latents, words, rows, groups, Uniform((2,)), settings, null=words[:1]
    )
    while True:
        half = torch.autocast("cuda", card.dtype) if card.on_gpu else nullcontext()
        with half:
            done = next(steps)
        yield done


COLUMNS = {
    "model": "{}",
    "work": "{}",
    "batch": "{}",
    "solver_steps": "{}",
    "micro_batch": "{}",
    "published_seconds": "{:.3g}",
    "ours_seconds": "{:.3g}",
    "times_faster": "{:.2f}",
    "published_gb": "{:.3g}",
    "ours_gb": "{:.3g}",
    "cosine": "{:.4f}",
    "note": "{}",
}


def show(rows: list[dict[str, Any]], head: bool = False) -> None:
    """Print rows of the table, in Markdown."""
    if head:
        print("| " + " | ".join(COLUMNS).replace("_", " ") + " |")
        print("|" + "---|" * len(COLUMNS))
    for row in rows:
        cells = [form.format(row[name]) if name in row else "" for name, form in COLUMNS.items()]
        print("| " + " | ".join(cells) + " |", flush=True)


def about(card: Card) -> dict[str, Any]:
    """The card, its memory, precision and versions."""
    facts = {"device": device_name(card.name), "precision": str(card.dtype).removeprefix("torch.")}
    if card.on_gpu:
        facts["memory_gb"] = torch.cuda.get_device_properties(0).total_memory / 1e9
        facts["cuda"] = torch.version.cuda
    return facts | versions()


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="tiny models, in place of SD 1.5's")
    parser.add_argument("--device", default="", help="by default the first GPU, or the processor")
    parser.add_argument("--minutes", type=float, default=8.0, help="rows that would pass them wait")
    parser.add_argument("--write", metavar="PATH", help="also write the table as JSON")
    chosen = parser.parse_args(arguments)
    card = Card(chosen.device)
    small = chosen.small or not (card.on_gpu or chosen.device)
    size = TINY if small else STABLE_DIFFUSION
    end = time.monotonic() + 60 * chosen.minutes
    facts = about(card)
    print(*(f"{name}: {value}" for name, value in facts.items()), sep="\n")
    if small and not chosen.small:
        print("no GPU here: tiny models, as with --small")
    show([], head=True)
    rows = [brain_row(card, 2, 4) if small else brain_row(card, 32, 10)]
    rows.append(finetuning_row(card, size, 4))
    show(rows)
    steps, batches = ((2, 4), (2, 3)) if small else ((10, 20, 50), (8, 24))
    rows += tuning_rows(card, size, steps, batches, end)
    found = {"about": facts, "small": small, "rows": rows}
    if chosen.write:
        print("wrote", write_json(chosen.write, found))
    return found


if __name__ == "__main__":
    main()
