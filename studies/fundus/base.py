"""`python -m studies base fundus`: the recipe of `weights/fundus` and `weights/fundus-white`, from
nothing.

6,000 synthetic fundi with prompts, as unbalanced as the cohort and none of its patients; a small
CLIP on the prompts, in whose text tower every attribute must stay readable; the autoencoder; the
denoiser; and another denoiser, from nothing, on the White patients alone. The arms fine-tune the
second one; the first shows what plain training on all patients reaches in much longer time. About
80 minutes on one slow core.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fairlib.cohorts.fairgenmed import PROMPTED, parse_prompt, prompt_of
from fairlib.io import to_bytes
from fairlib.models import autoencoder as ae
from fairlib.models import clip as cl
from fairlib.models import generator as gen
from fairlib.models.training import FitSettings
from studies.engine import recipe
from studies.engine.recipe import Drawn, PixelPhase
from studies.engine.stage import Progress
from studies.fundus.phantom import PhantomSettings, draw_fundus

# A prompt of this template is up to 33 tokens with its two ends: at 32, the last attribute would be
# cut off in silence.
WHITE = "fundus-white"
CLIP = {
    "embed_dim": 128,
    "vision_cfg": {**cl.SMALL["vision_cfg"], "layers": 2},
    "text_cfg": {**cl.SMALL["text_cfg"], "context_length": 40},
}


@dataclass(frozen=True)
class FundusBaseSettings:
    """The whole recipe. Seeds are part of it; that of the fundi differs from every cohort's."""

    fundi: PhantomSettings = PhantomSettings(subjects=6000, seed=109)
    words: FitSettings = FitSettings(500, 64, 1e-3, weight_decay=0.05)
    pixels: tuple[PixelPhase, ...] = (
        PixelPhase(64, False, FitSettings(1200, 8, 2e-3, seed=0, horizon=3600)),
        PixelPhase(128, False, FitSettings(800, 4, 1.5e-3, seed=1, ema_decay=0.99)),
        PixelPhase(128, True, FitSettings(800, 8, 1e-3, seed=2, ema_decay=0.995)),
    )
    noise: FitSettings = FitSettings(3000, 32, 1.5e-3, warmup=200, ema_decay=0.998, seed=3)
    white: FitSettings = FitSettings(1500, 32, 1.5e-3, warmup=200, ema_decay=0.998, seed=4)
    initial_seed: int = 0


def draw_training(settings: PhantomSettings, progress: Progress) -> Drawn:
    """Draw the training images, uint8 [N, 1, 128, 128], and their prompts."""
    images = torch.empty(settings.subjects, 1, settings.size, settings.size, dtype=torch.uint8)
    prompts = []
    # bytes at once: as floats, 6,000 would take 400 MB
    for index in progress.track(range(settings.subjects), settings.subjects, "synthetic fundi"):
        subject = draw_fundus(settings, index)
        images[index] = to_bytes(torch.from_numpy(subject.image))
        prompts.append(subject.row["prompt"])
    return Drawn({"images": images}, prompts)


def white_rows(prompts: list[str]) -> list[int]:
    """Rows of the White patients, on whom the second denoiser is trained."""
    return [row for row, prompt in enumerate(prompts) if parse_prompt(prompt)["race"] == "White"]


def every_prompt() -> list[str]:
    """All 864 prompts of the template."""
    return [
        prompt_of(dict(zip(PROMPTED, values, strict=True)))
        for values in product(*PROMPTED.values())
    ]


def attributes_of(prompt: str) -> tuple[str, ...]:
    """The seven attributes of a prompt, each a phrase of its own: ("race Black", "sex F", ...,
    "refraction myopia").
    """
    return tuple(f"{name} {value}" for name, value in parse_prompt(prompt).items())


def main(
    weights: str | Path = "weights", settings: FundusBaseSettings = FundusBaseSettings()
) -> Path:
    """Run what is left of the recipe; writes `weights/fundus` and, beside it,
    `weights/fundus-white`; returns the first.
    """
    place, started, seed = Path(weights), time.time(), settings.initial_seed
    drawn = recipe.training_set(draw_training, settings.fundi)
    prompts = every_prompt()
    words = recipe.text_tower(drawn, prompts, CLIP, attributes_of, settings.words, seed)
    model = recipe.autoencoder(drawn, settings.pixels, ae.build_autoencoder, seed)
    encoded = recipe.latents(drawn, model)
    known = {"attribute_distances": recipe.distances(words.load(), prompts, attributes_of)}
    texts = pd.Series(drawn.load().captions)
    everyone = np.arange(len(texts))
    denoisers = {
        "fundus": (everyone, settings.noise),
        WHITE: (np.array(white_rows(list(texts))), settings.white),
    }
    for name, (rows, fit) in denoisers.items():
        denoiser = recipe.denoiser(words, encoded, texts, fit, seed, rows)
        gen.save_pipeline(place / name, recipe.pipeline_of(words, model, denoiser))
        mean = encoded.load()[rows].mean(0)
        recipe.write_weights(
            place / name, settings, started, mean, "fundus", people_seen=len(rows), **known
        )
    return place / "fundus"
