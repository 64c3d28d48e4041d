"""`python -m studies base NAME`: the recipes of all base weights, from nothing,
in the phases of `studies.engine.recipe`. None of the subjects is a patient of a cohort.

brain   `weights/clip` and `weights/brain`: 5,000 synthetic slices with captions, four in five of
        them of men; open_clip on the captions, whose text tower becomes the pipeline's frozen text
        encoder. Some hours on two slow cores, minutes on a GPU.
heart   `weights/heart`: 6,000 synthetic hearts with prompts and masks, as imbalanced as the cohort;
        images of three channels (ED, ES, ED); the ControlNet on the masks, the denoiser locked,
        rows drawn by capped inverse frequency. About an hour and a half on one slow core.
fundus  `weights/fundus` and `weights/fundus-white`: 6,000 synthetic fundi with prompts, as
        unbalanced as the cohort; a second denoiser, from nothing, on the White patients alone. The
        arms fine-tune the second one; the first shows what plain training on all patients reaches
        in much longer time. About 80 minutes on one slow core.

In the text towers of hearts and fundi every attribute of a prompt must stay readable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from fairlib.cohorts import cardiac, fairgenmed
from fairlib.cohorts.tables import SEXES
from fairlib.io import to_bytes
from fairlib.methods.downstream import TYPICAL_BMI
from fairlib.models import autoencoder as ae
from fairlib.models import clip as cl
from fairlib.models.training import FitSettings, Trainer
from studies.brain.data import mirrored
from studies.brain.phantom import RadiologySettings, draw_slice
from studies.engine import accelerator, recipe
from studies.engine.recipe import Drawn, PixelPhase, Words
from studies.engine.stage import Artifact, Progress, stage
from studies.fundus.phantom import PhantomSettings as FundusSettings
from studies.fundus.phantom import draw_fundus
from studies.heart.phantom import PhantomSettings as HeartSettings
from studies.heart.phantom import draw_hearts

HEART_CLIP = {
    **cl.SMALL,
    "vision_cfg": {**cl.SMALL["vision_cfg"], "image_size": 64, "patch_size": 8, "layers": 2},
}
# A fundus prompt is up to 33 tokens with its two ends: at 32, the last attribute would be cut off
# in silence.
FUNDUS_CLIP = {
    "embed_dim": 128,
    "vision_cfg": {**cl.SMALL["vision_cfg"], "layers": 2},
    "text_cfg": {**cl.SMALL["text_cfg"], "context_length": 40},
}
WHITE = "fundus-white"
HEART_PIXELS = (24, 48, 64)  # channels of the autoencoder: two halvings, 64 x 64 to 16 x 16
DECADES = tuple(range(20, 100, 10))
BESIDE: dict[str, dict] = {
    "brain-second": {"seed": 11},
    "brain-realistic": {"seed": 12, "effect": "realistic"},
    "brain-balanced": {"seed": 13, "male_share": 0.5},  # what a balanced training set gives
}


def pixel_phases(
    size: int, steps: tuple[int, int, int], batches: tuple[int, int, int], horizon: int
) -> tuple[PixelPhase, ...]:
    """Crops of half the size, whole images of `size` pixels, then the decoder alone."""
    first = FitSettings(steps[0], batches[0], 2e-3, seed=0, horizon=horizon)
    whole = FitSettings(steps[1], batches[1], 1.5e-3, seed=1, ema_decay=0.99)
    decoder = FitSettings(steps[2], batches[2], 1e-3, seed=2, ema_decay=0.995)
    return (
        PixelPhase(size // 2, False, first),
        PixelPhase(size, False, whole),
        PixelPhase(size, True, decoder),
    )


@dataclass(frozen=True)
class BrainBase:
    """The whole recipe. Seeds are part of it."""

    radiology: RadiologySettings = RadiologySettings()
    clip: FitSettings = FitSettings(1200, 64, 1e-3, weight_decay=0.05)
    pixels: tuple[PixelPhase, ...] = pixel_phases(128, (1500, 1000, 1500), (8, 4, 8), 4500)
    noise: FitSettings = FitSettings(4000, 32, 1.5e-3, warmup=200, ema_decay=0.999, seed=3)
    initial_seed: int = 0


@dataclass(frozen=True)
class HeartBase:
    """The whole recipe. Seeds are part of it; that of the hearts differs from every cohort's.

    `balance`: clip of the balancing weights in the control phase. The paper takes 20 for tens of
    thousands of slices; among 6,000 hearts a cap at 180 of a kind would leave nearly every prompt
    as rare as it is.
    """

    hearts: HeartSettings = HeartSettings(subjects=6000, seed=101)
    words: FitSettings = FitSettings(500, 64, 1e-3, weight_decay=0.05)
    pixels: tuple[PixelPhase, ...] = pixel_phases(64, (1500, 1000, 1000), (16, 8, 8), 4000)
    noise: FitSettings = FitSettings(2500, 32, 1.5e-3, warmup=200, ema_decay=0.998, seed=3)
    control: tuple[FitSettings, ...] = (
        FitSettings(1750, 32, 1e-3, warmup=100, ema_decay=0.998, seed=4),
        FitSettings(1750, 32, 6e-4, warmup=50, ema_decay=0.998, seed=5),
    )
    balance: float = 1.0
    initial_seed: int = 0


@dataclass(frozen=True)
class FundusBase:
    """The whole recipe. Seeds are part of it; that of the fundi differs from every cohort's."""

    fundi: FundusSettings = FundusSettings(subjects=6000, seed=109)
    words: FitSettings = FitSettings(500, 64, 1e-3, weight_decay=0.05)
    pixels: tuple[PixelPhase, ...] = pixel_phases(128, (1200, 800, 800), (8, 4, 8), 3600)
    noise: FitSettings = FitSettings(3000, 32, 1.5e-3, warmup=200, ema_decay=0.998, seed=3)
    white: FitSettings = FitSettings(1500, 32, 1.5e-3, warmup=200, ema_decay=0.998, seed=4)
    initial_seed: int = 0


# ---- what is drawn, and in which words


def draw_slices(settings: RadiologySettings, progress: Progress) -> Drawn:
    """Draw the training slices, uint8 [N, 1, 128, 128], and their captions: those that `write_roco`
    puts on disk.
    """

    def draw(index: int) -> tuple[np.ndarray, str]:
        image, truth = draw_slice(settings, index)
        return image[None], truth["caption"]

    return _one_by_one(draw, settings.slices, "synthetic slices", progress)


def draw_fundi(settings: FundusSettings, progress: Progress) -> Drawn:
    """Draw the training fundi, uint8 [N, 1, 128, 128], and their prompts."""

    def draw(index: int) -> tuple[np.ndarray, str]:
        subject = draw_fundus(settings, index)
        return subject.image, subject.row["prompt"]

    return _one_by_one(draw, settings.subjects, "synthetic fundi", progress)


def _one_by_one(
    draw: Callable[[int], tuple[np.ndarray, str]], count: int, label: str, progress: Progress
) -> Drawn:
    # bytes at once: as floats, 6,000 images would take 400 MB
    rows = progress.track(range(count), count, label)
    drawn = [(to_bytes(torch.from_numpy(image)), words) for image, words in map(draw, rows)]
    images, captions = zip(*drawn, strict=True)
    return Drawn({"images": torch.stack(images)}, list(captions))


def draw_heart_pairs(settings: HeartSettings, progress: Progress) -> Drawn:
    """Draw the training hearts: images uint8 [N, 3, 64, 64], masks uint8 [N, 2, 64, 64],
    prompts.
    """
    progress.say(f"drawing {settings.subjects} synthetic hearts")
    images, masks, table = draw_hearts(settings, range(settings.subjects))
    return Drawn({"images": to_bytes(images), "masks": masks}, table["prompt"].tolist())


def heart_autoencoder() -> nn.Module:
    """Build the autoencoder of 64 x 64 pixels and three channels."""
    return ae.build_autoencoder(HEART_PIXELS, image_channels=3, size=64)


def heart_prompts() -> list[str]:
    """All prompts of the template, from the 20s to the 90s."""
    typical = {"underweight": 17.0, **TYPICAL_BMI}
    bmi = [typical[name] for name in cardiac.BMI_CLASSES]
    values = {"sex": SEXES, "age": DECADES, "bmi": bmi, "diagnosis": cardiac.DIAGNOSES}
    return _every(cardiac.prompt_of, values)


def fundus_prompts() -> list[str]:
    """All 864 prompts of the template."""
    return _every(fairgenmed.prompt_of, fairgenmed.PROMPTED)


def _every(prompt_of: Callable[[Mapping], str], values: Mapping[str, Sequence]) -> list[str]:
    return [prompt_of(dict(zip(values, row, strict=True))) for row in product(*values.values())]


def fundus_attributes(prompt: str) -> tuple[str, ...]:
    """The seven attributes of a prompt, each a phrase of its own: ("race Black", "sex F", ...,
    "refraction myopia").
    """
    return tuple(f"{name} {value}" for name, value in fairgenmed.parse_prompt(prompt).items())


def white_rows(prompts: list[str]) -> list[int]:
    """Rows of the White patients, on whom the second denoiser is trained."""
    races = (fairgenmed.parse_prompt(prompt)["race"] for prompt in prompts)
    return [row for row, race in enumerate(races) if race == "White"]


# ---- the recipes


def load_words(folder: Path) -> Words:
    """Read a CLIP's text encoder and tokenizer."""
    return Words(cl.text_encoder_of(cl.load_clip(folder)), cl.pipeline_tokenizer(folder))


@stage(load=load_words)
def fit_words(
    out: Path, progress: Progress, drawn: Artifact[Drawn], fit: FitSettings, seed: int
) -> None:
    """Fit a CLIP on images and captions, half of both mirrored."""
    images, captions = drawn.load().tensors["images"], drawn.load().captions
    merges = cl.learn_merges(captions)
    cl.write_vocabulary(out, merges)
    torch.manual_seed(seed)
    clip = cl.build_clip(out).to(accelerator())
    trainer = Trainer(clip, fit)
    recipe.fit(
        out, progress, trainer, cl.fit_clip(clip, images, captions, fit, trainer, mirrored), "clip"
    )
    cl.save_clip(out, clip.eval(), merges)


def brain(weights: str | Path = "weights", settings: BrainBase = BrainBase()) -> Path:
    """Run what is left of the recipe; writes `weights/clip` (unless it is there) and
    `weights/brain`, returns the latter.
    """
    clip, started, seed = Path(weights) / "clip", time.time(), settings.initial_seed
    drawn = recipe.training_set(draw_slices, settings.radiology)
    if not (clip / "clip.safetensors").is_file():
        recipe.copy_weights(fit_words(drawn, settings.clip, seed), clip)
        recipe.write_weights_manifest(clip, settings, started, "brain")
    words = Artifact.weights(clip, load_words)
    model = recipe.autoencoder(drawn, settings.pixels, ae.build_autoencoder, seed)
    return _brain(clip.with_name("brain"), words, drawn, model, settings, started)


def load_pixels(folder: Path) -> nn.Module:
    """Read the autoencoder of a pipeline."""
    return recipe.load_network(folder / "vae").float()


def beside(name: str, weights: str | Path = "weights", settings: BrainBase = BrainBase()) -> Path:
    """Run what is left of the recipe of `weights/NAME`, a base of the brain study beside the first
    one, whose words and autoencoder it shares: other slices, another start, another order. Returns
    its folder.
    """
    started, seed = time.time(), settings.initial_seed + 1
    settings = replace(
        settings,
        radiology=replace(settings.radiology, **BESIDE[name]),
        noise=replace(settings.noise, seed=settings.noise.seed + 100),
        initial_seed=seed,
    )
    words = Artifact.weights(Path(weights) / "clip", load_words)
    model = Artifact.weights(Path(weights) / "brain", load_pixels)
    drawn = recipe.training_set(draw_slices, settings.radiology)
    return _brain(Path(weights) / name, words, drawn, model, settings, started)


def _brain(
    folder: Path,
    words: Artifact[Words],
    drawn: Artifact[Drawn],
    model: Artifact,
    settings: BrainBase,
    started: float,
) -> Path:
    """Latents, denoiser and pipeline of a brain base."""
    encoded, texts = recipe.latents(drawn, model, mirrors=True), drawn.load().captions
    captions = pd.Series([*texts, *map(mirrored, texts)])
    denoiser = recipe.denoiser(words, encoded, captions, settings.noise, settings.initial_seed)
    pipeline, mean = recipe.pipeline_of(words, model, denoiser), encoded.load().mean(0)
    return recipe.write_weights(folder, pipeline, mean, settings, started, folder.name)


def heart(weights: str | Path = "weights", settings: HeartBase = HeartBase()) -> Path:
    """Run what is left of the recipe; writes `weights/heart` and returns it."""
    started, seed = time.time(), settings.initial_seed
    drawn = recipe.training_set(draw_heart_pairs, settings.hearts)
    template = (heart_prompts(), HEART_CLIP, cl.attributes_of)
    words, texts, told = _words(drawn, template, settings.words, seed)
    model = recipe.autoencoder(drawn, settings.pixels, heart_autoencoder, seed)
    encoded = recipe.latents(drawn, model)
    denoiser = recipe.denoiser(words, encoded, texts, settings.noise, seed)
    control, fixed = None, (drawn, words, encoded, denoiser)
    for fit in settings.control:
        control = recipe.controlnet(*fixed, control, fit, settings.balance, seed)
    pipeline, mean = recipe.pipeline_of(words, model, denoiser, control), encoded.load().mean(0)
    folder = Path(weights) / "heart"
    return recipe.write_weights(folder, pipeline, mean, settings, started, "heart", **told)


def fundus(weights: str | Path = "weights", settings: FundusBase = FundusBase()) -> Path:
    """Run what is left of the recipe; writes `weights/fundus` and, beside it,
    `weights/fundus-white`; returns the first.
    """
    started, seed = time.time(), settings.initial_seed
    drawn = recipe.training_set(draw_fundi, settings.fundi)
    template = (fundus_prompts(), FUNDUS_CLIP, fundus_attributes)
    words, texts, told = _words(drawn, template, settings.words, seed)
    model = recipe.autoencoder(drawn, settings.pixels, ae.build_autoencoder, seed)
    encoded, white = recipe.latents(drawn, model), np.array(white_rows(list(texts)))
    everyone = np.arange(len(texts))
    denoisers = (WHITE, white, settings.white), ("fundus", everyone, settings.noise)
    for name, rows, fit in denoisers:
        told["people_seen"] = len(rows)
        denoiser = recipe.denoiser(words, encoded, texts, fit, seed, rows)
        pipeline, mean = recipe.pipeline_of(words, model, denoiser), encoded.load()[rows].mean(0)
        folder = Path(weights) / name
        recipe.write_weights(folder, pipeline, mean, settings, started, "fundus", **told)
    return folder


def _words(
    drawn: Artifact[Drawn], template: tuple, fit: FitSettings, seed: int
) -> tuple[Artifact[Words], pd.Series, dict]:
    """The text tower of a template (prompts, config, their attributes), the captions, and for the
    manifest how far apart the tower keeps the attributes.
    """
    prompts, _, split = template
    words = recipe.text_tower(drawn, *template, fit, seed)
    apart = recipe.distances(words.load(), prompts, split)
    return words, pd.Series(drawn.load().captions), {"attribute_distances": apart}


RECIPES: dict[str, Callable[[], Path]] = {
    "brain": brain,
    "heart": heart,
    "fundus": fundus,
    **{name: partial(beside, name) for name in BESIDE},
}
