"""`python -m studies base heart`: the recipe of `weights/heart`, from nothing, in five resumable
phases.

    hearts   6,000 synthetic hearts with prompts and masks, as imbalanced as the cohort and none of
    its people words    a small CLIP on the prompts; every attribute must stay readable in its text
    tower pixels   AutoencoderKL, three channels (ED, ES, ED): crops first, then whole pictures,
    then the decoder alone noise    the denoiser, on latents and prompt embeddings control  the
    ControlNet on the masks, the denoiser locked, rows drawn by capped inverse frequency

About an hour and a half on one slow core. Killed at any moment, it goes on where it was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from fairlib.cohorts.cardiac import (
    BMI_CLASSES,
    DIAGNOSES,
    SEXES,
    balancing_weights,
    control_image,
    prompt_of,
)
from fairlib.io import read_json, read_tensors, write_json, write_tensors
from fairlib.methods.control import TYPICAL_BMI, fit_controlnet
from fairlib.models import autoencoder as ae
from fairlib.models import clip as cl
from fairlib.models import control as co
from fairlib.models.text_tower import TextTower, attribute_distances, attributes_of, fit_text_tower
from fairlib.models.training import FitSettings, Trainer
from fairlib.settings import to_dict
from studies.brain.base import (
    PixelPhase,
    drive,
    embed,
    noise_phase,
    own_work,
    pixel_phases,
    to_bytes,
)
from studies.engine.manifest import write_manifest
from studies.engine.places import accelerator
from studies.heart.phantom import HeartSettings, draw_hearts

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

    hearts: HeartSettings = HeartSettings(subjects=6000, seed=101)
    words: FitSettings = FitSettings(
        steps=500, batch_size=64, learning_rate=1e-3, weight_decay=0.05
    )
    pixels: tuple[PixelPhase, ...] = (
        PixelPhase(32, False, FitSettings(1500, 16, 2e-3, seed=0, horizon=4000)),
        PixelPhase(64, False, FitSettings(1000, 8, 1.5e-3, seed=1, ema_decay=0.99)),
        PixelPhase(64, True, FitSettings(1000, 8, 1e-3, seed=2, ema_decay=0.995)),
    )
    noise: FitSettings = field(
        default_factory=lambda: FitSettings(2500, 32, 1.5e-3, warmup=200, ema_decay=0.998, seed=3)
    )
    control: tuple[FitSettings, ...] = (
        FitSettings(1750, 32, 1e-3, warmup=100, ema_decay=0.998, seed=4),
        FitSettings(1750, 32, 6e-4, warmup=50, ema_decay=0.998, seed=5),
    )
    balance: float = 1.0
    initial_seed: int = 0


TINY = HeartBaseSettings(  # a rehearsal of every phase in seconds, for the tests
    hearts=HeartSettings(subjects=24, seed=101),
    words=FitSettings(steps=2, batch_size=8, learning_rate=1e-3),
    pixels=(
        PixelPhase(32, False, FitSettings(2, 2, 1e-3)),
        PixelPhase(64, True, FitSettings(1, 2, 1e-3)),
    ),
    noise=FitSettings(steps=2, batch_size=4, learning_rate=1e-3, ema_decay=0.9),
    control=(FitSettings(steps=2, batch_size=4, learning_rate=1e-3, ema_decay=0.9),),
)


def main(
    weights: str | Path = "weights",
    work: str | Path = "data/heart-base",
    settings: HeartBaseSettings = HeartBaseSettings(),
    say=print,
) -> Path:
    """Run what is left of the recipe; writes `weights/heart` and returns it.

    Raises `SettingsError` when `work` holds what other settings left.
    """
    folder, work, started = Path(weights) / "heart", Path(work), time.time()
    own_work(work, settings)
    images, masks, prompts = hearts(work, settings.hearts, say)
    encoder, tokenizer = words_phase(work, images, prompts, settings, say)
    autoencoder = pixel_phases(work, images, settings, say, build=build_autoencoder)
    autoencoder.register_to_config(scaling_factor=1.0)  # latents are standardised already
    latents = ae.encode(autoencoder, images)
    denoiser = noise_phase(work, encoder, tokenizer, latents, prompts, settings, say)
    controlnet = control_phase(
        work, denoiser, encoder, tokenizer, latents, masks, prompts, settings, say
    )
    pipeline = co.assemble_control(encoder, tokenizer, autoencoder, denoiser, controlnet)
    co.save_control_pipeline(folder, pipeline, latents.mean(0))
    write_manifest(
        folder,
        to_dict(settings),
        time.time() - started,
        made_by="python -m studies base heart",
        people="synthetic",
        attribute_distances=distances(encoder, tokenizer, say),
    )
    return folder


def hearts(work: Path, settings: HeartSettings, say=print) -> tuple[Tensor, Tensor, list[str]]:
    """The training hearts: images uint8 [N, 3, 64, 64], masks uint8 [N, 2, 64, 64], and their
    prompts.
    """
    path = work / "hearts.safetensors"
    if path.is_file() and read_json(work / "hearts.json")["settings"] == to_dict(settings):
        found = read_tensors(path)
        return found["images"], found["masks"], read_json(work / "hearts.json")["prompts"]
    say(f"drawing {settings.subjects} synthetic hearts")
    images, masks, table = draw_hearts(settings, range(settings.subjects))
    prompts = [prompt_of(row) for row in table.to_dict("records")]
    images = to_bytes(images)
    write_tensors(path, {"images": images, "masks": masks})
    write_json(work / "hearts.json", {"settings": to_dict(settings), "prompts": prompts})
    return images, masks, prompts


def every_prompt() -> list[str]:
    """All prompts of the template, from the 20s to the 90s."""
    bmi = {"underweight": 17.0, **TYPICAL_BMI}
    return [
        prompt_of({"sex": sex, "age": age, "bmi": bmi[name], "diagnosis": diagnosis})
        for sex, age, name, diagnosis in product(SEXES, DECADES, BMI_CLASSES, DIAGNOSES)
    ]


def words_phase(
    work: Path,
    images: Tensor,
    prompts: list[str],
    settings: HeartBaseSettings,
    say,
    known: list[str] | None = None,
    config: dict = CLIP,
    split=attributes_of,
):
    """The text encoder (frozen, as transformers' CLIPTextModel) and its tokenizer.

    known: all prompts to keep apart (those of the hearts); config: of the CLIP; split: a prompt's
    attributes.
    """
    folder, known = work / "words", every_prompt() if known is None else known
    cl.write_vocabulary(folder, cl.learn_merges(known))
    torch.manual_seed(settings.initial_seed)
    tower = TextTower(cl.build_clip(folder, config), known, split).to(accelerator())
    trainer = Trainer(tower, settings.words)
    drive(
        work / "words-state.safetensors",
        trainer,
        fit_text_tower(tower, images, prompts, settings.words, trainer=trainer),
        "words",
        say,
    )
    return cl.text_encoder_of(tower.clip), cl.pipeline_tokenizer(
        folder, config["text_cfg"]["context_length"]
    )


def build_autoencoder() -> nn.Module:
    return ae.build_autoencoder(PIXELS, image_channels=3, size=64)


def control_phase(
    work: Path,
    denoiser: nn.Module,
    encoder: nn.Module,
    tokenizer,
    latents: Tensor,
    masks: Tensor,
    prompts: list[str],
    settings: HeartBaseSettings,
    say,
) -> nn.Module:
    """The ControlNet, trained on real pairs of prompt and mask while the denoiser is locked; each
    phase goes on from the

    averaged weights of the one before.
    """
    distinct = list(dict.fromkeys(prompts))
    rows = {text: row for row, text in enumerate(distinct)}
    embeds = embed(encoder, tokenizer, ["", *distinct])
    torch.manual_seed(settings.initial_seed)
    controlnet = (
        co.build_controlnet(denoiser).to(accelerator(), memory_format=torch.channels_last).train()
    )
    images, asked = control_image(masks), torch.tensor([rows[text] for text in prompts])
    for number, fit in enumerate(settings.control):
        trainer = Trainer(controlnet, fit)
        steps = fit_controlnet(
            denoiser,
            controlnet,
            latents,
            images,
            embeds[1:],
            asked,
            embeds[:1],
            fit,
            weights=balancing_weights(prompts, settings.balance),
            trainer=trainer,
        )
        drive(
            work / f"controlnet-state-{number}.safetensors",
            trainer,
            steps,
            f"control {number}",
            say,
        )
        trainer.use_average()
    return controlnet.requires_grad_(False).eval()


def distances(
    encoder: nn.Module, tokenizer, say=print, known: list[str] | None = None, split=attributes_of
) -> dict[str, float]:
    """How far apart the text tower keeps any two values of an attribute (see
    `attribute_distances`); says the least.
    """
    prompts = every_prompt() if known is None else known
    found = attribute_distances(embed(encoder, tokenizer, prompts), prompts, split)
    least = min(found, key=found.get)
    say(
        f"words: closest are {least[0]!r} and {least[1]!r}, {found[least]:.2f} apart (two "
        "unrelated prompts: 1.41)"
    )
    return {f"{one} | {other}": round(value, 3) for (one, other), value in found.items()}
