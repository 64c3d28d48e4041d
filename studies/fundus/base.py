"""`python -m studies base fundus`: the recipe of `weights/fundus` and `weights/fundus-white`, in
five resumable phases.

    fundi    6,000 synthetic fundi with prompts, as unbalanced as the cohort and none of its people
    words    a small CLIP on the prompts; every attribute must stay readable in its text tower
    pixels   AutoencoderKL: crops first, then whole pictures, then the decoder alone
    noise    the denoiser, on latents and prompt embeddings, every picture counting the same
    white    another denoiser, from nothing, on the White people alone: `weights/fundus-white`;
    words and autoencoder are shared

About 80 minutes on one slow core. Killed at any moment, it goes on where it was. What is to be made
fair starts from the second denoiser; the first one shows where plain training on everybody arrives
when it is given much longer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from fairlib.cohorts.fundus import PROMPTED, parse_prompt, prompt_of
from fairlib.io import read_json, read_tensors, write_json, write_tensors
from fairlib.models import autoencoder as ae
from fairlib.models import clip as cl
from fairlib.models import generator as gen
from fairlib.models.training import FitSettings
from fairlib.settings import to_dict
from studies.brain.base import PixelPhase, noise_phase, own_work, pixel_phases, to_bytes
from studies.engine.manifest import write_manifest
from studies.fundus.phantom import FundusSettings, draw_fundus
from studies.heart.base import distances, words_phase

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

    fundi: FundusSettings = FundusSettings(subjects=6000, seed=109)
    words: FitSettings = FitSettings(
        steps=500, batch_size=64, learning_rate=1e-3, weight_decay=0.05
    )
    pixels: tuple[PixelPhase, ...] = (
        PixelPhase(64, False, FitSettings(1200, 8, 2e-3, seed=0, horizon=3600)),
        PixelPhase(128, False, FitSettings(800, 4, 1.5e-3, seed=1, ema_decay=0.99)),
        PixelPhase(128, True, FitSettings(800, 8, 1e-3, seed=2, ema_decay=0.995)),
    )
    noise: FitSettings = field(
        default_factory=lambda: FitSettings(3000, 32, 1.5e-3, warmup=200, ema_decay=0.998, seed=3)
    )
    white: FitSettings = FitSettings(1500, 32, 1.5e-3, warmup=200, ema_decay=0.998, seed=4)
    initial_seed: int = 0


TINY = FundusBaseSettings(  # a rehearsal of every phase in seconds, for the tests
    fundi=FundusSettings(subjects=24, seed=109),
    words=FitSettings(steps=2, batch_size=8, learning_rate=1e-3),
    pixels=(
        PixelPhase(64, False, FitSettings(2, 2, 1e-3)),
        PixelPhase(128, True, FitSettings(1, 2, 1e-3)),
    ),
    noise=FitSettings(steps=2, batch_size=4, learning_rate=1e-3, ema_decay=0.9),
    white=FitSettings(steps=1, batch_size=4, learning_rate=1e-3, ema_decay=0.9),
)


def main(
    weights: str | Path = "weights",
    work: str | Path = "data/fundus-base",
    settings: FundusBaseSettings = FundusBaseSettings(),
    say=print,
) -> Path:
    """Run what is left of the recipe; writes `weights/fundus` and, beside it,
    `weights/fundus-white`; returns the first.

    Raises `SettingsError` when `work` holds what other settings left.
    """
    folder, work, started = Path(weights) / "fundus", Path(work), time.time()
    own_work(work, settings)
    images, prompts = fundi(work, settings.fundi, say)
    encoder, tokenizer = words_phase(
        work, images, prompts, settings, say, every_prompt(), CLIP, attributes_of
    )
    autoencoder = pixel_phases(work, images, settings, say)
    autoencoder.register_to_config(scaling_factor=1.0)  # latents are standardised already
    latents = latents_of(work, autoencoder, images)
    apart = distances(encoder, tokenizer, say, every_prompt(), attributes_of)
    white = white_rows(prompts)
    seen = {
        "fundus": (work, range(len(prompts)), settings.noise),
        WHITE: (work / "white", white, settings.white),
    }
    for name, (place, rows, fit) in seen.items():
        mine, words = latents[list(rows)], [prompts[row] for row in rows]
        denoiser = noise_phase(
            place, encoder, tokenizer, mine, words, replace(settings, noise=fit), say
        )
        gen.save_pipeline(
            folder.with_name(name), gen.assemble(encoder, tokenizer, autoencoder, denoiser)
        )
        write_tensors(folder.with_name(name) / gen.MEAN_LATENT, {"mean": mine.mean(0)})
        write_manifest(
            folder.with_name(name),
            to_dict(settings),
            time.time() - started,
            made_by="python -m studies base fundus",
            people="synthetic",
            people_seen=len(rows),
            attribute_distances=apart,
        )
    return folder


def white_rows(prompts: list[str]) -> list[int]:
    """Whom the second denoiser sees."""
    return [row for row, prompt in enumerate(prompts) if parse_prompt(prompt)["race"] == "White"]


def fundi(work: Path, settings: FundusSettings, say=print) -> tuple[Tensor, list[str]]:
    """The training pictures, uint8 [N, 1, 128, 128], and their prompts: those of `draw_fundi`,
    drawn once.
    """
    path = work / "fundi.safetensors"
    if path.is_file() and read_json(work / "fundi.json")["settings"] == to_dict(settings):
        return read_tensors(path)["images"], read_json(work / "fundi.json")["prompts"]
    say(f"drawing {settings.subjects} synthetic fundi")
    images = torch.empty(settings.subjects, 1, settings.size, settings.size, dtype=torch.uint8)
    prompts = []
    for index in range(settings.subjects):  # bytes at once: as floats, 6,000 would take 400 MB
        subject = draw_fundus(settings, index)
        images[index] = to_bytes(torch.from_numpy(subject.image))
        prompts.append(subject.row["prompt"])
    write_tensors(path, {"images": images})
    write_json(work / "fundi.json", {"settings": to_dict(settings), "prompts": prompts})
    return images, prompts


def latents_of(work: Path, autoencoder, images: Tensor) -> Tensor:
    """Latents [N, 4, 16, 16] of the pictures as they are: all are right eyes, a mirror image would
    be none.
    """
    path = work / "latents.safetensors"
    if not path.is_file():
        write_tensors(path, {"latents": ae.encode(autoencoder, images)})
    return read_tensors(path)["latents"]


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
