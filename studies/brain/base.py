"""`python -m studies base brain`: the recipe of `weights/brain` and `weights/clip`, from nothing.

5,000 synthetic brain MR slices with captions, four in five of them of men; open_clip on the
captions,
whose text tower becomes the pipeline's frozen text encoder; the autoencoder; the denoiser. On two
slow cores this takes some hours, on a GPU minutes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from fairlib.io import to_bytes
from fairlib.models import autoencoder as ae
from fairlib.models import clip as cl
from fairlib.models import generator as gen
from fairlib.models.training import FitSettings, Trainer
from studies.brain.data import mirrored
from studies.brain.phantom import RadiologySettings, draw_slice
from studies.engine import accelerator, recipe
from studies.engine.recipe import Drawn, PixelPhase, Words
from studies.engine.stage import Artifact, Progress, stage


@dataclass(frozen=True)
class BaseSettings:
    """The whole recipe. Seeds are part of it."""

    radiology: RadiologySettings = RadiologySettings()
    clip: FitSettings = FitSettings(1200, 64, 1e-3, weight_decay=0.05)
    pixels: tuple[PixelPhase, ...] = (
        PixelPhase(64, False, FitSettings(1500, 8, 2e-3, seed=0, horizon=4500)),
        PixelPhase(128, False, FitSettings(1000, 4, 1.5e-3, seed=1, ema_decay=0.99)),
        PixelPhase(128, True, FitSettings(1500, 8, 1e-3, seed=2, ema_decay=0.995)),
    )
    noise: FitSettings = FitSettings(4000, 32, 1.5e-3, warmup=200, ema_decay=0.999, seed=3)
    initial_seed: int = 0


def draw_slices(settings: RadiologySettings, progress: Progress) -> Drawn:
    """Draw the training slices, uint8 [N, 1, 128, 128], and their captions: those that `write_roco`
    puts on disk.
    """
    rows = progress.track(range(settings.slices), settings.slices, "synthetic slices")
    drawn = [draw_slice(settings, index) for index in rows]
    images = torch.stack([to_bytes(torch.from_numpy(image)) for image, _ in drawn])[:, None]
    return Drawn({"images": images}, [truth["caption"] for _, truth in drawn])


def load_words(folder: Path) -> Words:
    """Read a CLIP's text encoder and tokenizer."""
    return Words(cl.text_encoder_of(cl.load_clip(folder)), cl.pipeline_tokenizer(folder))


@stage(load=load_words)
def words(
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


def main(weights: str | Path = "weights", settings: BaseSettings = BaseSettings()) -> Path:
    """Run what is left of the recipe; writes `weights/clip` (unless it is there) and
    `weights/brain`, returns the latter.
    """
    weights, started = Path(weights), time.time()
    drawn = recipe.training_set(draw_slices, settings.radiology)
    clip = weights / "clip"
    if not (clip / "clip.safetensors").is_file():
        recipe.copy_weights(words(drawn, settings.clip, settings.initial_seed), clip)
        recipe.write_weights_manifest(clip, settings, started, "brain")
    spoken = Artifact.weights(clip, load_words)
    model = recipe.autoencoder(drawn, settings.pixels, ae.build_autoencoder, settings.initial_seed)
    encoded = recipe.latents(drawn, model, mirrors=True)
    captions = drawn.load().captions
    texts = pd.Series([*captions, *(mirrored(text) for text in captions)])
    denoiser = recipe.denoiser(spoken, encoded, texts, settings.noise, settings.initial_seed)
    pipeline = recipe.pipeline_of(spoken, model, denoiser)
    gen.save_pipeline(weights / "brain", pipeline)
    return recipe.write_weights(
        weights / "brain", settings, started, encoded.load().mean(0), "brain"
    )
