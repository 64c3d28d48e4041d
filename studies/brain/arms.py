"""Tuned arms: the base cache, the tuning of the denoiser, and the images of a tuned or untuned
model.

What every arm is, and which there are, `study.py` says; `rivals.py` has those that are no tuning.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.cohorts.brats import GRADES
from fairlib.cohorts.cohort import Cohort
from fairlib.io import read_tensors, to_bytes, to_images, write_bytes, write_tensors
from fairlib.methods.alignment import AlignmentSettings, AlignmentStep, cache_base, tune
from fairlib.methods.base_cache import BaseCache
from fairlib.methods.targets import Target
from fairlib.models.classifier import predict
from fairlib.models.clip import Clip, load_clip
from fairlib.models.generator import Generator
from fairlib.models.loading import pipeline_folder
from studies.brain.data import (
    EVALUATION_PROMPTS,
    BrainSettings,
    Prompt,
    Prompts,
    Tuning,
    alignment,
    cache_settings,
    cohort,
    female_shares,
    prompts_of,
    sampling,
    split,
)
from studies.brain.evaluators import Fitted, combined, tuning_classifier
from studies.engine import accelerator
from studies.engine.images import Sampling
from studies.engine.stage import Artifact, Progress, stage
from studies.engine.study import Arm

SIDE = 128  # pixels of the slices that evaluators were fitted on
NOISE = 5000  # the streams of evaluation start here; tuning uses its seed as it is
STATE, HISTORY = "state.safetensors", "history.csv"
AS_READ = "as read"  # of targets: the cohort's share with the classifier's own errors
LATENTS, READINGS = "latents.safetensors", "readings.safetensors"


@dataclass(frozen=True)
class Plan:
    """Which images are generated: `images` of them, image i with noise i of stream `noise`, their
    prompts in equal blocks.

    The same noise for every arm, so that before and after can be laid side by side.
    """

    prompts: tuple[Prompt, ...]
    images: int
    noise: int

    def prompt_of_each(self) -> list[Prompt]:
        """The prompt of each image."""
        return [self.prompts[i * len(self.prompts) // self.images] for i in range(self.images)]

    def table(self) -> pd.DataFrame:
        """A row an image: image, prompt (contrast-grade-side), contrast, group."""
        rows = [
            (i, f"{p.contrast}-{p.grade}-{p.side}", p.contrast, p.group)
            for i, p in enumerate(self.prompt_of_each())
        ]
        return pd.DataFrame(rows, columns=["image", "prompt", "contrast", "group"])


def evaluation(settings: BrainSettings, seed: int) -> Plan:
    """The images that every evaluator reads."""
    return Plan(prompts_of(settings), settings.images, NOISE + seed)


def read_clip(folder: Path) -> Clip:
    """Read CLIP to the device that networks run on; a hub name is fetched."""
    return load_clip(folder, local_files_only=False).to(accelerator())


class SliceGenerator(Generator):
    """A pipeline whose images are brought to what evaluators read, [N, 1, 128, 128]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images as the pipeline makes them, grey and resized; differentiable, not clipped."""
        return as_slices(super().decode(latents))


def as_slices(images: Tensor) -> Tensor:
    """Images [N, C, H, W] as [N, 1, 128, 128]: the mean of their colours, smoothed where they are
    larger.
    """
    grey = images if images.shape[1] == 1 else images.mean(1, keepdim=True)
    if grey.shape[-2:] == (SIDE, SIDE):
        return grey
    return F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True)


def read_base(image_size: int, precision: str, folder: Path) -> SliceGenerator:
    """Read a pipeline, its hashes checked, to the device that networks run on; what is no folder is
    fetched from the hub.
    """
    place, _ = pipeline_folder(str(folder), local=False)
    generator = SliceGenerator.load(place, accelerator())
    generator.adapt(precision or "fp32", image_size)
    return generator


@cache  # of equal settings one reader, so that a loaded model is found again
def _reader(image_size: int, precision: str) -> Callable[[Path], SliceGenerator]:
    return partial(read_base, image_size, precision)


def base_model(settings: BrainSettings) -> Artifact[Generator]:
    """The untuned model."""
    return Artifact.weights(settings.weights, _reader(settings.image_size, settings.precision))


def clip_model(settings: BrainSettings) -> Artifact[Clip]:
    """The image embedding of the consistency term."""
    return Artifact.weights(settings.clip, read_clip)


def sample(
    generator: Generator,
    chosen: Sampling,
    plan: Plan,
    track: Callable[[range], Iterable[int]] = iter,
) -> Tensor:
    """Generate the images of `plan`, uint8 [N, 1, H, W]."""
    images, texts = [], [prompt.text for prompt in plan.prompt_of_each()]
    for start in track(range(0, plan.images, chosen.batch_size)):
        rows = list(range(plan.images))[start : start + chosen.batch_size]
        found = generator.sample(
            [texts[row] for row in rows],
            noise=generator.noise(plan.noise, rows),
            steps=chosen.steps,
            guidance_scale=chosen.guidance_scale,
        )
        images.append(to_bytes(found).cpu())
    return torch.cat(images)


def read_images(folder: Path) -> Tensor:
    """Read generated images, uint8 [N, 1, H, W]."""
    return read_tensors(folder / "images.safetensors")["images"]


@stage(load=read_images, ignore=("label",))
def generate(
    out: Path,
    progress: Progress,
    base: Artifact[Generator],
    tuned: Artifact[dict[str, Tensor]] | None,
    plan: Plan,
    chosen: Sampling,
    label: str,
) -> None:
    """Generate the images of `plan` with the base model, or with its tuned denoiser."""
    generator = base.load() if tuned is None else tuned_generator(base.load(), tuned.load())
    images = sample(generator, chosen, plan, partial(progress.track, label=label))
    write_tensors(out / "images.safetensors", {"images": images})


def generated(images: Artifact[Tensor], plan: Plan) -> tuple[Tensor, list[str]]:
    """Generated images [N, 1, H, W] in [-1, 1] and their contrasts, for an evaluator to read."""
    return to_images(images.load()), [prompt.contrast for prompt in plan.prompt_of_each()]


def read_denoiser(folder: Path) -> dict[str, Tensor]:
    """Read the tuned parameters."""
    return read_tensors(folder / "denoiser.safetensors")


def tuned_generator(base: Generator, tuned: dict[str, Tensor]) -> Generator:
    """A copy of `base` whose denoiser has the tuned weights, LoRA weights where those were
    tuned.
    """
    generator = base.frozen_copy()
    values = {name: value.float() for name, value in tuned.items()}
    ranks = {len(value) for name, value in values.items() if "lora_A" in name}
    if ranks:
        generator.add_lora(ranks.pop())
        generator.denoiser.requires_grad_(False).eval()
    generator.denoiser.load_state_dict(copy.copy(generator.denoiser.state_dict()) | values)
    return generator


def targets_of(
    everyone: Cohort, split_seed: int, classifier: nn.Module, prompts: Prompts, target: Any
) -> list[Target]:
    """The target of each prompt: the tuning classifier's logits on slices of the same contrast and
    grade that it was not fitted on (of both grades, for a prompt without a tumour).

    Images of one contrast and grade are ranked together; the female share is that of the cohort
    under `target` (`female_shares`). With "as read" it is what the classifier reads in those slices
    at the cohort's share: its errors on them are part of the aim.
    """
    shares = female_shares(everyone, "marginal" if target == AS_READ else target)
    overall = female_shares(everyone, "marginal" if isinstance(target, str) else target)[GRADES[0]]
    part = split(everyone, split_seed)["heldout"]
    table = part.table.assign(logit=predict(classifier, part.load()).logit.numpy())
    targets = []
    for prompt in prompts:
        any_grade = prompt.grade not in GRADES
        rows = table[
            (table.contrast == prompt.contrast) & (any_grade | (table.grade == prompt.grade))
        ]
        share = overall if any_grade else shares[prompt.group]
        name = f"{prompt.contrast}-{prompt.grade}"
        wanted, logits = {"F": share, "M": 1 - share}, rows.logit.to_numpy()
        aim = Target.shares(wanted, logits, rows.sex.tolist(), name=name)
        targets.append(as_read(aim) if target == AS_READ else aim)
    return targets


def as_read(target: Target) -> Target:
    """`target` with the share that a classifier reads in its distribution of logits."""
    values, weights = target.weighted_logits()
    share = float(weights[values > 0].sum())
    return replace(target, proportions=(share, 1 - share))


def own_targets(cache: BaseCache, prompts: Prompts) -> list[Target]:
    """The untuned model's own distribution of logits as the target of each prompt: a null, toward
    which there is nothing to tune.
    """
    targets = []
    for place, prompt in enumerate(prompts):
        logits = cache.all_logits(place)
        share = float((logits > 0).float().mean().clamp(0.01, 0.99))
        scores = {"F": share, "M": 1 - share}
        targets.append(Target.shares(scores, logits, name=f"{prompt.contrast}-{prompt.grade}"))
    return targets


def no_logits(images: Tensor) -> Tensor:
    """Stand for the classifier where latents alone are drawn."""
    raise NotImplementedError("the base cache is drawn before any classifier reads it")


def texts_of(prompts: Prompts) -> list[str]:
    """What the prompts say."""
    return [prompt.text for prompt in prompts]


@stage
def draw_base_cache(
    out: Path, progress: Progress, settings: AlignmentSettings, base: Artifact, prompts: Prompts
) -> None:
    """Generate the untuned model's latents of every prompt, once for all arms that share them."""
    cache = cache_base(base.load(), no_logits, texts_of(prompts), settings=settings)
    saved = out / "working" / LATENTS
    if saved.is_file():
        cache.load(read_tensors(saved))
    blocks = len(cache.prompts) * (cache.size // cache.block)
    for done, _ in progress.track(cache.draw(), blocks, "images of the base model"):
        if done % 12 == 0:
            write_tensors(saved, cache.to_tensors())
    write_tensors(out / LATENTS, cache.to_tensors())


@stage
def read_base_cache(
    out: Path,
    progress: Progress,
    settings: AlignmentSettings,
    latents: Artifact[Path],
    base: Artifact[Generator],
    clip: Artifact[Clip],
    classifier: list[Artifact],
    prompts: Prompts,
) -> None:
    """Read the base cache with one tuning classifier and with CLIP."""
    how = {"embed": clip.load().embed_images, "settings": settings}
    cache = cache_base(base.load(), combined(classifier), texts_of(prompts), **how)
    cache.load(read_tensors(latents.load() / LATENTS))
    blocks = len(cache.prompts) * (cache.size // cache.block)
    for _ in progress.track(cache.fill(), blocks, "reading the base cache"):
        pass
    write_tensors(out / READINGS, cache.to_tensors(readings=True))


@stage(load=read_denoiser, ignore=("label", "every"))
def tune_denoiser(
    out: Path,
    progress: Progress,
    settings: AlignmentSettings,
    target: str | float,
    base: Artifact[Generator],
    clip: Artifact[Clip],
    classifier: list[Artifact],
    everyone: Artifact[Cohort],
    split_seed: int,
    cache: Artifact[Path],
    label: str,
    every: int = 10,
    prompts: Prompts = EVALUATION_PROMPTS,
) -> None:
    """Tune the base model's denoiser: `denoiser.safetensors` (moving average of the weights) and
    `history.csv`, a row a step.
    """
    # a copy to change: what `load` gives is shared
    generator, follows = base.reader(base.folder), combined(classifier)
    how = {"embed": clip.load().embed_images, "settings": settings}
    texts = texts_of(prompts)
    stored = cache_base(base.load(), follows, texts, **how)
    stored.load(read_tensors(cache.load() / READINGS))
    if target == "own":
        targets = own_targets(stored, prompts)
    else:
        targets = targets_of(everyone.load(), split_seed, follows, prompts, target)
    state, rows = _saved(out / "working")
    steps = tune(generator, follows, texts, targets, **how, state=state, base_cache=stored)
    for step in progress.track(steps, settings.steps, label, done=len(rows)):
        rows.append(log_row(step))
        if (step.step + 1) % every == 0:
            _write_history(out / "working", rows)
            write_tensors(out / "working" / STATE, step.state.to_tensors())
    # the moving average, which the end of the loop leaves in the generator
    tuned = {name: p.half() for name, p in generator.trainable_parameters().items()}
    write_tensors(out / "denoiser.safetensors", tuned)
    _write_history(out, rows)


def _saved(working: Path) -> tuple[dict[str, Tensor] | None, list[dict]]:
    """What a killed attempt left, if anything."""
    if not (working / STATE).is_file():
        return None, []
    state = read_tensors(working / STATE)
    return state, pd.read_csv(working / HISTORY).to_dict("records")[: int(state["step"])]


def _write_history(folder: Path, rows: list[dict]) -> None:
    write_bytes(folder / HISTORY, pd.DataFrame(rows).to_csv(index=False).encode())


def log_row(step: AlignmentStep) -> dict:
    """What is kept of one step."""
    kept = step.cosine[~step.changes]
    row = {name: getattr(step, name) for name in ("step", "alignment", "consistency")}
    row |= {"lr": step.learning_rate, "gradient_norm": step.gradient_norm}
    row["cosine_kept"] = float(kept.mean()) if len(kept) else np.nan
    row["share"] = float((step.logits > 0).float().mean())
    row |= {name: getattr(step, name) for name in ("seconds", "forward", "backward")}
    return row | {"frozen": step.base}


def base_cache(settings: BrainSettings, chosen: AlignmentSettings, classifier: Fitted) -> Artifact:
    """The base cache of a tuning with settings `chosen`, read by its tuning classifier."""
    kept, base, prompts = cache_settings(chosen), base_model(settings), prompts_of(settings)
    latents = draw_base_cache(kept, base, prompts)
    return read_base_cache(kept, latents, base, clip_model(settings), list(classifier), prompts)


def tuned(settings: BrainSettings, tuning: Tuning, seed: int) -> Artifact[dict[str, Tensor]]:
    """The denoiser that a tuning makes at one seed."""
    chosen = alignment(settings, tuning, seed)
    classifier = tuning_classifier(settings, tuning.classifier, seed)
    return tune_denoiser(
        chosen,
        tuning.target,
        base_model(settings),
        clip_model(settings),
        classifier,
        cohort(settings),
        settings.split_seed,
        base_cache(settings, chosen, classifier),
        f"tuning towards {tuning.family} targets by {tuning.classifier}, seed {seed}",
        prompts=prompts_of(settings),
    )


def history(artifact: Artifact) -> pd.DataFrame:
    """What each step of a tuning recorded."""
    return pd.read_csv(artifact.folder / HISTORY)


def base_images(
    settings: BrainSettings,
    seed: int,
    plan: Plan | None = None,
    guidance_scale: float | None = None,
) -> Artifact[Tensor]:
    """Images of the untuned model: those that evaluators read, or those of another plan."""
    plan, how = plan or evaluation(settings, seed), sampling(settings, guidance_scale)
    return generate(base_model(settings), None, plan, how, f"untuned images, seed {seed}")


def tuned_images(
    tuning: Tuning, settings: BrainSettings, seed: int, plan: Plan | None = None
) -> Artifact[Tensor]:
    """Images of a tuned model: those that evaluators read, or those of another plan."""
    plan, denoiser = plan or evaluation(settings, seed), tuned(settings, tuning, seed)
    label = f"images of a tuned model, seed {seed}"
    return generate(base_model(settings), denoiser, plan, sampling(settings), label)


def images_of(
    arm: Arm[BrainSettings], settings: BrainSettings, seed: int, plan: Plan, how: Sampling
) -> Artifact[Tensor]:
    """Images of the untuned model, of a tuned one or of chosen noises, of another plan and sampled
    otherwise.
    """
    if arm.acts == "selection":
        choose: Callable[..., Artifact[Tensor]] = arm.run
        return choose(settings, seed, plan, how)
    denoiser = tuned(settings, arm.tuning, seed) if isinstance(arm, TunedArm) else None
    return generate(base_model(settings), denoiser, plan, how, f"images elsewhere, seed {seed}")


@dataclass(frozen=True)
class TunedArm(Arm[BrainSettings]):
    """An arm that tunes the base model, and how."""

    tuning: Tuning = Tuning("robust")
