"""`make base`: the recipe of `weights/brain` and `weights/clip`, from nothing, in four resumable
phases.

    slices   5,000 synthetic brain MR slices with captions, four in five of men (two minutes)
    clip     open_clip on the captions; its text tower becomes the pipeline's frozen text encoder
    pixels   AutoencoderKL: crops first, then whole slices, then the decoder alone
    noise    the denoiser, on latents and caption embeddings

On two slow cores this takes some hours, on a GPU minutes. Killed at any moment, it goes on where it
was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fairlib.cohorts.captions import mirrored
from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json, read_tensors, write_json, write_tensors
from fairlib.models import autoencoder as ae
from fairlib.models import clip as cl
from fairlib.models import generator as gen
from fairlib.models.training import FitSettings, Trainer
from fairlib.settings import digest, to_dict
from studies.brain.radiology import RadiologySettings, draw_slice
from studies.engine.manifest import write_manifest
from studies.engine.places import accelerator


@dataclass(frozen=True)
class PixelPhase:
    """One phase of the autoencoder: random crops of `crop` pixels; the decoder alone when the
    latents must stay.
    """

    crop: int
    decoder_only: bool
    fit: FitSettings


@dataclass(frozen=True)
class BaseSettings:
    """The whole recipe. Seeds are part of it."""

    radiology: RadiologySettings = RadiologySettings()
    clip: FitSettings = FitSettings(
        steps=1200, batch_size=64, learning_rate=1e-3, weight_decay=0.05
    )
    pixels: tuple[PixelPhase, ...] = (
        PixelPhase(64, False, FitSettings(1500, 8, 2e-3, seed=0, horizon=4500)),
        PixelPhase(128, False, FitSettings(1000, 4, 1.5e-3, seed=1, ema_decay=0.99)),
        PixelPhase(128, True, FitSettings(1500, 8, 1e-3, seed=2, ema_decay=0.995)),
    )
    noise: FitSettings = field(
        default_factory=lambda: FitSettings(4000, 32, 1.5e-3, warmup=200, ema_decay=0.999, seed=3)
    )
    initial_seed: int = 0


TINY = BaseSettings(  # a rehearsal of every phase in a minute, for the tests
    radiology=RadiologySettings(slices=24, validation=0),
    clip=FitSettings(steps=2, batch_size=8, learning_rate=1e-3),
    pixels=(
        PixelPhase(64, False, FitSettings(2, 2, 1e-3)),
        PixelPhase(128, True, FitSettings(1, 2, 1e-3)),
    ),
    noise=FitSettings(steps=2, batch_size=4, learning_rate=1e-3, ema_decay=0.9),
)


def main(
    weights: str | Path = "weights",
    work: str | Path = "data/base",
    settings: BaseSettings = BaseSettings(),
    say=print,
) -> Path:
    """Run what is left of the recipe; writes `weights/clip` (unless it is there) and
    `weights/brain`, returns the latter.

    Raises `SettingsError` when `work` holds what other settings left.
    """
    weights, work, started = Path(weights), Path(work), time.time()
    own_work(work, settings)
    images, captions = slices(work, settings.radiology, say)
    clip = clip_phase(work, weights / "clip", images, captions, settings, say)
    autoencoder = pixel_phases(work, images, settings, say)
    latents, captions = (
        latents_of(work, autoencoder, images),
        captions + [mirrored(text) for text in captions],
    )
    encoder, tokenizer = cl.text_encoder_of(clip), cl.pipeline_tokenizer(weights / "clip")
    denoiser = noise_phase(work, encoder, tokenizer, latents, captions, settings, say)
    autoencoder.register_to_config(scaling_factor=1.0)  # latents are standardised already
    pipeline = gen.assemble(encoder, tokenizer, autoencoder, denoiser)
    gen.save_pipeline(weights / "brain", pipeline)
    write_tensors(weights / "brain" / gen.MEAN_LATENT, {"mean": latents.mean(0)})
    write_manifest(
        weights / "brain",
        to_dict(settings),
        time.time() - started,
        made_by="python -m studies base",
        people="synthetic",
    )
    return weights / "brain"


def own_work(work: Path, settings) -> None:
    """Keep `work` for one recipe: `settings.json` says whose files lie there.

    Raises `SettingsError` when they are those of other settings, or when nothing says whose they
    are: phases take up what they find, so they would pass off the old fit for the new.
    """
    path = work / "settings.json"
    known = path.is_file() and digest(read_json(path)) == digest(to_dict(settings))
    if not known and any(work.glob("*")):
        raise SettingsError(
            f"{work}: holds work of other settings; choose another work folder, or delete this one"
        )
    write_json(path, to_dict(settings))


def slices(work: Path, settings: RadiologySettings, say=print) -> tuple[Tensor, list[str]]:
    """The training slices as uint8 [N, 1, 128, 128] and their captions: those that `write_roco`
    puts on disk.
    """
    path = work / "slices.safetensors"
    if path.is_file() and read_json(work / "slices.json")["settings"] == to_dict(settings):
        return read_tensors(path)["images"], read_json(work / "slices.json")["captions"]
    say(f"drawing {settings.slices} synthetic slices")
    drawn = [draw_slice(settings, index) for index in range(settings.slices)]
    images = torch.stack([to_bytes(torch.from_numpy(image)) for image, _ in drawn])[:, None]
    captions = [truth["caption"] for _, truth in drawn]
    write_tensors(path, {"images": images})
    write_json(work / "slices.json", {"settings": to_dict(settings), "captions": captions})
    return images, captions


def to_bytes(image: Tensor) -> Tensor:
    """[-1, 1] to 0 ... 255."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_images(values: Tensor) -> Tensor:
    """0 ... 255 to float32 [-1, 1]."""
    return values.float() / 127.5 - 1


def clip_phase(
    work: Path, folder: Path, images: Tensor, captions: list[str], settings: BaseSettings, say
) -> cl.Clip:
    started = time.time()
    if not (folder / "clip.safetensors").is_file():
        merges = cl.learn_merges(captions)
        cl.write_vocabulary(folder, merges)
        torch.manual_seed(settings.initial_seed)
        clip = cl.build_clip(folder).to(accelerator())
        trainer = Trainer(clip, settings.clip)
        drive(
            work / "clip-state.safetensors",
            trainer,
            cl.fit_clip(clip, images, captions, settings.clip, trainer, mirrored),
            "clip",
            say,
        )
        cl.save_clip(folder, clip.eval(), merges)
        write_manifest(
            folder,
            to_dict(settings),
            time.time() - started,
            made_by="python -m studies base",
            people="synthetic",
        )
    return cl.load_clip(folder)


def pixel_phases(
    work: Path, images: Tensor, settings: BaseSettings, say, build=ae.build_autoencoder
) -> nn.Module:
    torch.manual_seed(settings.initial_seed)
    autoencoder = build().to(accelerator(), memory_format=torch.channels_last)
    for number, phase in enumerate(settings.pixels):
        if phase.decoder_only and not settings.pixels[number - 1].decoder_only:
            ae.standardise_latents(autoencoder, images[:1000])
        done = work / f"autoencoder-{number}.safetensors"
        if not done.is_file():
            trainer = Trainer(_trainable(autoencoder, phase), phase.fit)
            steps = ae.fit_autoencoder(
                autoencoder, images, phase.fit, phase.crop, phase.decoder_only, trainer=trainer
            )
            drive(
                work / f"autoencoder-state-{number}.safetensors",
                trainer,
                steps,
                f"pixels {number}",
                say,
            )
            trainer.use_average()
            write_tensors(done, autoencoder.state_dict())
        autoencoder.load_state_dict(read_tensors(done))
    return autoencoder.requires_grad_(False).eval()


def _trainable(autoencoder: nn.Module, phase: PixelPhase) -> nn.Module:
    autoencoder.requires_grad_(True)
    if phase.decoder_only:
        autoencoder.encoder.requires_grad_(False)
        autoencoder.quant_conv.requires_grad_(False)
    return autoencoder


def latents_of(work: Path, autoencoder: nn.Module, images: Tensor) -> Tensor:
    """Latents [2N, 4, h, w] of the images and, after them, of their mirrors: so that side is a
    matter of words alone.
    """
    path = work / "latents.safetensors"
    if not path.is_file():
        write_tensors(
            path,
            {
                "latents": torch.cat(
                    [ae.encode(autoencoder, images), ae.encode(autoencoder, images.flip(-1))]
                )
            },
        )
    return read_tensors(path)["latents"]


def noise_phase(
    work: Path,
    encoder: nn.Module,
    tokenizer,
    latents: Tensor,
    captions: list[str],
    settings: BaseSettings,
    say,
) -> nn.Module:
    if len(latents) != len(captions):
        raise DataError(
            f"{len(latents)} latents and {len(captions)} captions in {work}; give one for each, or "
            "delete the folder"
        )
    distinct = list(dict.fromkeys(captions))
    rows = {text: row for row, text in enumerate(distinct)}
    embeds = embed(encoder, tokenizer, ["", *distinct])
    torch.manual_seed(settings.initial_seed)
    denoiser = gen.build_denoiser(text_width=embeds.shape[-1]).to(
        accelerator(), memory_format=torch.channels_last
    )
    trainer = Trainer(denoiser, settings.noise)
    steps = gen.fit_denoiser(
        denoiser,
        latents,
        embeds[1:],
        torch.tensor([rows[text] for text in captions]),
        embeds[:1],
        settings.noise,
        trainer=trainer,
    )
    drive(work / "denoiser-state.safetensors", trainer, steps, "noise", say)
    trainer.use_average()
    return denoiser.requires_grad_(False).eval()


@torch.no_grad()
def embed(encoder: nn.Module, tokenizer, texts: list[str]) -> Tensor:
    tokens = tokenizer(
        texts,
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )
    return torch.cat([encoder(part)[0] for part in tokens.input_ids.split(256)])


def drive(path: Path, trainer: Trainer, steps, label: str, say, every: int = 250) -> None:
    """Run a fit to its end, saving its state every `every` steps and taking up a saved one
    first.
    """
    if path.is_file():
        trainer.from_tensors(read_tensors(path))
        say(f"{label}: going on at step {trainer.step}")
    start, first, losses = time.time(), trainer.step, []
    for state in steps:
        losses.append(state.loss)
        if state.step % every == 0 or state.step == trainer.settings.steps:
            write_tensors(path, trainer.to_tensors())
            left = (
                (time.time() - start)
                / (state.step - first)
                * (trainer.settings.steps - state.step)
                / 60
            )
            say(
                f"{label}: step {state.step} of {trainer.settings.steps}, mean loss "
                f"{sum(losses) / len(losses):.4f}, "
                f"{left:.0f} min left"
            )
            losses = []
