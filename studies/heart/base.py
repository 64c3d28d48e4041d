"""`python -m studies base heart`: the recipe of `weights/heart`, from nothing.

6,000 synthetic hearts with prompts and masks, as imbalanced as the cohort and none of its patients;
a small CLIP on the prompts, in whose text tower every attribute must stay readable; the autoencoder
with three channels (ED, ES, ED); the denoiser; the ControlNet on the masks, the denoiser locked,
rows drawn by capped inverse frequency. About an hour and a half on one slow core.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd
from torch import nn

from fairlib.cohorts.cardiac import BMI_CLASSES, DIAGNOSES, prompt_of
from fairlib.cohorts.tables import SEXES
from fairlib.io import to_bytes
from fairlib.methods.control import TYPICAL_BMI
from fairlib.models import autoencoder as ae
from fairlib.models import clip as cl
from fairlib.models.clip import attributes_of
from fairlib.models.generator import save_pipeline
from fairlib.models.training import FitSettings
from studies.engine import recipe
from studies.engine.recipe import Drawn, PixelPhase
from studies.engine.stage import Artifact, Progress
from studies.heart.phantom import PhantomSettings, draw_hearts

CLIP = {
    **cl.SMALL,
    "vision_cfg": {**cl.SMALL["vision_cfg"], "image_size": 64, "patch_size": 8, "layers": 2},
}
PIXELS = (24, 48, 64)  # channels of the autoencoder: two halvings, 64 x 64 to 16 x 16
DECADES = tuple(range(20, 100, 10))


@dataclass(frozen=True)
class HeartBaseSettings:
    """The whole recipe. Seeds are part of it; that of the hearts differs from every cohort's.

    `balance`: clip of the balancing weights in the control phase. The paper takes 20 for tens of
    thousands of slices; among 6,000 hearts a cap at 180 of a kind would leave nearly every prompt
    as rare as it is.
    """

    hearts: PhantomSettings = PhantomSettings(subjects=6000, seed=101)
    words: FitSettings = FitSettings(500, 64, 1e-3, weight_decay=0.05)
    pixels: tuple[PixelPhase, ...] = (
        PixelPhase(32, False, FitSettings(1500, 16, 2e-3, seed=0, horizon=4000)),
        PixelPhase(64, False, FitSettings(1000, 8, 1.5e-3, seed=1, ema_decay=0.99)),
        PixelPhase(64, True, FitSettings(1000, 8, 1e-3, seed=2, ema_decay=0.995)),
    )
    noise: FitSettings = FitSettings(2500, 32, 1.5e-3, warmup=200, ema_decay=0.998, seed=3)
    control: tuple[FitSettings, ...] = (
        FitSettings(1750, 32, 1e-3, warmup=100, ema_decay=0.998, seed=4),
        FitSettings(1750, 32, 6e-4, warmup=50, ema_decay=0.998, seed=5),
    )
    balance: float = 1.0
    initial_seed: int = 0


def draw_training(settings: PhantomSettings, progress: Progress) -> Drawn:
    """Draw the training hearts: images uint8 [N, 3, 64, 64], masks uint8 [N, 2, 64, 64],
    prompts.
    """
    progress.say(f"drawing {settings.subjects} synthetic hearts")
    images, masks, table = draw_hearts(settings, range(settings.subjects))
    return Drawn({"images": to_bytes(images), "masks": masks}, table["prompt"].tolist())


def build_autoencoder() -> nn.Module:
    """Build the autoencoder of 64 x 64 pixels and three channels."""
    return ae.build_autoencoder(PIXELS, image_channels=3, size=64)


def every_prompt() -> list[str]:
    """All prompts of the template, from the 20s to the 90s."""
    bmi = {"underweight": 17.0, **TYPICAL_BMI}
    return [
        prompt_of({"sex": sex, "age": age, "bmi": bmi[name], "diagnosis": diagnosis})
        for sex, age, name, diagnosis in product(SEXES, DECADES, BMI_CLASSES, DIAGNOSES)
    ]


def main(
    weights: str | Path = "weights", settings: HeartBaseSettings = HeartBaseSettings()
) -> Path:
    """Run what is left of the recipe; writes `weights/heart` and returns it."""
    folder, started, seed = Path(weights) / "heart", time.time(), settings.initial_seed
    drawn = recipe.training_set(draw_training, settings.hearts)
    prompts = every_prompt()
    words = recipe.text_tower(drawn, prompts, CLIP, attributes_of, settings.words, seed)
    model = recipe.autoencoder(drawn, settings.pixels, build_autoencoder, seed)
    encoded = recipe.latents(drawn, model)
    texts = pd.Series(drawn.load().captions)
    denoiser = recipe.denoiser(words, encoded, texts, settings.noise, seed)
    control: Artifact | None = None
    for fit in settings.control:
        control = recipe.controlnet(
            drawn, words, encoded, denoiser, control, fit, settings.balance, seed
        )
    pipeline = recipe.pipeline_of(words, model, denoiser, control)
    save_pipeline(folder, pipeline)
    return recipe.write_weights(
        folder,
        settings,
        started,
        encoded.load().mean(0),
        "heart",
        attribute_distances=recipe.distances(words.load(), prompts, attributes_of),
    )
