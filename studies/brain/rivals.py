"""The arms of the comparison that do not tune by aligned replay: fine-tuning on the target cohort,
a policy gradient, choosing among images, and guidance at sampling time.

Each is a stage that gives a denoiser or images, and a function (settings, seed, plan) that puts it
together for the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from fairlib.cohorts.brats import caption
from fairlib.cohorts.cohort import Cohort
from fairlib.io import read_json, read_tensors, to_bytes, write_bytes, write_json, write_tensors
from fairlib.methods.alignment import AlignmentSettings, cache_base
from fairlib.methods.finetuning import FinetuneSettings, FinetuneState, finetune
from fairlib.methods.group_weights import Uniform
from fairlib.methods.grpo import GRPOSettings, grpo
from fairlib.methods.guidance import (
    classifier_direction,
    fit_bottleneck_head,
    null_offset,
    sample_batch_guided,
    strength_for_share,
)
from fairlib.methods.selection import generate_and_keep
from fairlib.methods.targets import Target, group_shares
from fairlib.models.generator import Generator
from studies.brain.arms import (
    HISTORY,
    READINGS,
    Plan,
    base_cache,
    base_images,
    base_model,
    evaluation,
    generate,
    log_row,
    read_denoiser,
    read_images,
    targets_of,
    texts_of,
)
from studies.brain.data import (
    RANKED,
    TUNING,
    BrainSettings,
    Prompts,
    Tuning,
    alignment,
    cohort,
    prompts_of,
    sampling,
    split,
)
from studies.brain.evaluators import combined, tuning_classifier
from studies.engine.images import Sampling, encode
from studies.engine.stage import Artifact, Progress, stage

FIT_NOISE = 6800  # stream of noises of what is fitted before sampling
GUIDED_FIT, OFFSET_FIT = 50, 24  # images a prompt
OFFSETS = (-30.0, 30.0)  # beyond them contrast drifts


# ---- fine-tuning


@stage(load=read_denoiser, ignore=("label",))
def finetune_denoiser(
    out: Path,
    progress: Progress,
    settings: FinetuneSettings,
    base: Artifact[Generator],
    everyone: Artifact[Cohort],
    split_seed: int,
    label: str,
) -> None:
    """Fine-tune the denoiser on the target cohort's slices with their captions:
    `denoiser.safetensors` (moving average of the weights).
    """
    generator = base.reader(base.folder)
    part = split(everyone.load(), split_seed)["tuning"]
    rows = part.table[["contrast", "grade", "side"]].itertuples(index=False)
    texts = [caption(*row) for row in rows]
    distinct = list(dict.fromkeys(texts))
    state = FinetuneState(generator.denoiser, Uniform((1,)), settings)
    steps = finetune(
        generator.denoiser,
        torch.cat([encode(generator, images) for images in part.load().split(50)]),
        generator.encode_prompts(distinct),
        torch.tensor([distinct.index(text) for text in texts]),
        torch.zeros(len(texts), 1, dtype=torch.long),
        state.weights,
        settings,
        null=generator.encode_prompts([""]),
        scheduler=generator.pipeline.scheduler,
        state=state,
    )
    log = [(done.step, done.loss) for done in progress.track(steps, settings.steps, label)]
    state.use_average()
    _write_denoiser(out, generator, pd.DataFrame(log, columns=["step", "loss"]))


def _write_denoiser(out: Path, generator: Generator, log: pd.DataFrame) -> None:
    tuned = {name: p.half() for name, p in generator.trainable_parameters().items()}
    write_tensors(out / "denoiser.safetensors", tuned)
    write_bytes(out / HISTORY, log.to_csv(index=False).encode())


def target_finetuning(settings: BrainSettings, seed: int, rate: float) -> FinetuneSettings:
    """With 30 steps of tuning, 185 steps of 32 images, which cost as much."""
    steps = max(1, round(settings.tuning.get("steps", TUNING["steps"]) * 185 / 30))
    return FinetuneSettings(
        steps, 32, rate, warmup=10, anneal="cosine", ema_decay=0.9, probe_every=10**6, seed=seed
    )


def target_images(
    rate: float, settings: BrainSettings, seed: int, plan: Plan | None = None
) -> Artifact[Tensor]:
    """Images of the base model fine-tuned on the target cohort's own images."""
    base, label = base_model(settings), f"fine-tuning on the target cohort, seed {seed}"
    chosen = target_finetuning(settings, seed, rate)
    denoiser = finetune_denoiser(chosen, base, cohort(settings), settings.split_seed, label)
    label = f"images after fine-tuning on the target cohort, seed {seed}"
    return generate(base, denoiser, plan or evaluation(settings, seed), sampling(settings), label)


@stage(load=read_denoiser, ignore=("label",))
def grpo_denoiser(
    out: Path,
    progress: Progress,
    settings: GRPOSettings,
    base: Artifact[Generator],
    classifier: list[Artifact],
    everyone: Artifact[Cohort],
    split_seed: int,
    label: str,
    prompts: Prompts,
) -> None:
    """Tune the base model's denoiser by Fair-GRPO: `denoiser.safetensors` and `history.csv`."""
    generator, follows = base.reader(base.folder), combined(classifier)
    targets = targets_of(everyone.load(), split_seed, follows, prompts, "marginal")
    texts = texts_of(prompts)
    steps = grpo(generator, follows, texts, targets, settings=settings, base=base.load())
    count = settings.steps * settings.updates_per_batch
    rows = [log_row(step) for step in progress.track(steps, count, label)]
    _write_denoiser(out, generator, pd.DataFrame(rows))


def grpo_settings(settings: BrainSettings, seed: int, rate: float) -> GRPOSettings:
    """The published weight of the distance to the base model. Without a base cache, 46 steps cost
    what 30 of tuning do.
    """
    usual = {**TUNING, **settings.tuning}
    return GRPOSettings(
        **RANKED,
        steps=max(1, round(usual["steps"] * 46 / 30)),
        warmup=usual["warmup"],
        sampling_steps=settings.sampling_steps,
        guidance_scale=settings.guidance_scale,
        replay_steps=TUNING["replay_steps"],
        cache_size=usual["cache_size"],
        learning_rate=rate,
        seed=seed,
        noise_seed=settings.cache_seed,
    )


def grpo_images(
    rate: float, settings: BrainSettings, seed: int, plan: Plan | None = None
) -> Artifact[Tensor]:
    """Images of the base model tuned by Fair-GRPO with the robust tuning classifier."""
    base, label = base_model(settings), f"policy gradient, seed {seed}"
    denoiser = grpo_denoiser(
        grpo_settings(settings, seed, rate),
        base,
        tuning_classifier(settings, "robust", seed),
        cohort(settings),
        settings.split_seed,
        label,
        prompts_of(settings),
    )
    label = f"images after the policy gradient, seed {seed}"
    return generate(base, denoiser, plan or evaluation(settings, seed), sampling(settings), label)


# ---- choosing among images


@stage(load=read_images, ignore=("label",))
def kept_images(
    out: Path,
    progress: Progress,
    rule: str,
    settings: AlignmentSettings,
    base: Artifact[Generator],
    classifier: list[Artifact],
    cache: Artifact[Path],
    everyone: Artifact[Cohort],
    split_seed: int,
    plan: Plan,
    chosen: Sampling,
    pool: float,
    label: str,
    target: Any = "marginal",
) -> None:
    """Generate with the base model and keep the images that bring the tuning classifier's readings
    to the target: `images.safetensors`, and in `draws.json` how many were generated.
    """
    follows, texts = combined(classifier), texts_of(plan.prompts)
    stored = cache_base(base.load(), follows, texts, settings=settings)
    stored.load(read_tensors(cache.load() / READINGS))
    targets = targets_of(everyone.load(), split_seed, follows, plan.prompts, target)
    shares = []  # of the evaluation prompts, which the cache has
    if rule == "class":
        shares = [group_shares(stored.all_logits(i), one.groups) for i, one in enumerate(targets)]
    kept = generate_and_keep(
        base.load(),
        follows,
        texts,
        targets,
        plan.images // len(texts),
        base_shares=shares,
        rule=rule,
        draws_per_image=pool,
        seed=plan.noise,
        block=chosen.batch_size,
        steps=chosen.steps,
        guidance_scale=chosen.guidance_scale,
        micro_batch=chosen.batch_size,
    )
    images, draws = [], [0] * len(texts)
    for each in progress.track(kept, plan.images, label):
        images.append(to_bytes(each.image).cpu())
        draws[each.prompt] = each.draws
    write_tensors(out / "images.safetensors", {"images": torch.stack(images)})
    write_json(out / "draws.json", draws)


def kept(
    rule: str,
    pool: float,
    settings: BrainSettings,
    seed: int,
    plan: Plan | None = None,
    how: Sampling | None = None,
    target: Any = "marginal",
    kind: str = "robust",
) -> Artifact[Tensor]:
    """Images of the untuned model that a tuning classifier chooses, also sampled otherwise (by the
    rule "class" under the evaluation prompts and settings alone, whose shares the cache has).
    """
    cached = alignment(settings, Tuning("robust"), seed)
    classifier = tuning_classifier(settings, kind, seed)
    return kept_images(
        rule,
        cached,
        base_model(settings),
        classifier,
        base_cache(settings, cached, classifier),
        cohort(settings),
        settings.split_seed,
        plan or evaluation(settings, seed),
        how or sampling(settings),
        pool,
        f"generate and keep ({rule}), seed {seed}",
        target=target,
    )


def draws_of(images: Artifact) -> int:
    """How many images were generated for those that `kept_images` kept."""
    return sum(read_json(images.folder / "draws.json"))


# ---- guidance at sampling time


@dataclass(frozen=True)
class Guided:
    """What a method of guidance samples with. strength: its own, or None where it finds that."""

    generator: Generator
    classifier: nn.Module
    targets: list[Target]
    strength: float | None
    plan: Plan
    chosen: Sampling
    track: Callable[[list], Iterable]

    @property
    def how(self) -> dict[str, Any]:
        """How images are sampled."""
        given = self.chosen
        how = {"steps": given.steps, "guidance_scale": given.guidance_scale}
        return {**how, "micro_batch": given.batch_size}

    def blocks(self) -> Iterable[tuple[list[str], Tensor]]:
        """The texts and noises of each prompt's images."""
        texts = [prompt.text for prompt in self.plan.prompt_of_each()]
        blocks = []
        for prompt in self.plan.prompts:
            rows = [row for row, text in enumerate(texts) if text == prompt.text]
            noise = self.generator.noise(self.plan.noise, rows)
            blocks.append(([prompt.text] * len(rows), noise))
        return self.track(blocks)

    def fitting(self, each: int) -> tuple[list[str], Tensor]:
        """Texts and noises to fit on, `each` of every prompt."""
        texts = [prompt.text for prompt in self.plan.prompts for _ in range(each)]
        return texts, self.generator.noise(FIT_NOISE + self.plan.noise, list(range(len(texts))))


@stage(load=read_images, ignore=("label",))
def guided_images(
    out: Path,
    progress: Progress,
    sample: Callable[[Guided], Tensor],
    strength: float | None,
    base: Artifact[Generator],
    classifier: list[Artifact],
    everyone: Artifact[Cohort],
    split_seed: int,
    plan: Plan,
    chosen: Sampling,
    label: str,
) -> None:
    """Images of the base model under guidance, as `sample` makes them prompt by prompt."""
    follows, track = combined(classifier), partial(progress.track, label=label)
    targets = targets_of(everyone.load(), split_seed, follows, plan.prompts, "marginal")
    made = sample(Guided(base.load(), follows, targets, strength, plan, chosen, track))
    write_tensors(out / "images.safetensors", {"images": to_bytes(made).cpu()})


def batch_guided(given: Guided) -> Tensor:
    """Batch guidance (Balancing Act), one prompt's images at a time."""
    generator = given.generator
    head = fit_bottleneck_head(generator, given.classifier, *given.fitting(GUIDED_FIT), **given.how)
    parts = zip(given.blocks(), given.targets, strict=True)
    return torch.cat(
        [
            sample_batch_guided(generator, *block, head, target, given.strength)
            for block, target in parts
        ]
    )


def offset_guided(given: Guided) -> Tensor:
    """The null prompt moved (StayFair) along the tuning classifier's gradient, so far that the
    share by that classifier meets the target.
    """
    generator, classifier, how = given.generator, given.classifier, given.how
    texts, noise = given.fitting(OFFSET_FIT)
    direction = classifier_direction(generator, classifier, texts, noise, **how)

    def share_at(alpha: float) -> float:
        images = null_offset(generator, direction, alpha).sample(texts, noise=noise, **how)
        return float((classifier(images) > 0).float().mean())

    share, alpha = given.targets[0].proportions[0], given.strength
    alpha = strength_for_share(share_at, share, *OFFSETS) if alpha is None else alpha
    view = null_offset(generator, direction, alpha)
    return torch.cat([view.sample(words, noise=own, **how) for words, own in given.blocks()])


def guided(
    sample: Callable[[Guided], Tensor],
    strength: float | None,
    settings: BrainSettings,
    seed: int,
    plan: Plan | None = None,
) -> Artifact[Tensor]:
    """Images of the untuned model under guidance by the robust tuning classifier."""
    return guided_images(
        sample,
        strength,
        base_model(settings),
        tuning_classifier(settings, "robust", seed),
        cohort(settings),
        settings.split_seed,
        plan or evaluation(settings, seed),
        sampling(settings),
        f"{sample.__name__.replace('_', ' ')} images, seed {seed}",
    )


def worded(
    words: str, settings: BrainSettings, seed: int, plan: Plan | None = None
) -> Artifact[Tensor]:
    """Images of the untuned model whose prompts end in `words`."""
    plan = plan or evaluation(settings, seed)
    prompts = tuple(replace(each, text=f"{each.text} {words}") for each in plan.prompts)
    return base_images(settings, seed, replace(plan, prompts=prompts))
