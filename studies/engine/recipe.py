"""Base weights from nothing: the phases that the recipes of all three studies are made of, each a
stage.

    draw     synthetic images with captions
    words    a small CLIP, or its text tower alone, on the captions
    pixels   AutoencoderKL: crops first, then whole images, then the decoder alone
    latents  what the autoencoder makes of the images
    noise    the denoiser, on latents and caption embeddings
    control  the ControlNet on masks, the denoiser locked

A killed recipe continues where it was, and a phase is done again only when something that it
depends on has changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fairlib.cohorts.cardiac import control_image
from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import (
    MANIFEST,
    parse_manifest,
    read_json,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
)
from fairlib.methods.group_weights import balancing_weights
from fairlib.models import autoencoder as ae
from fairlib.models import clip as cl
from fairlib.models import controlnet as co
from fairlib.models import generator as gen
from fairlib.models.clip import TextTower, attribute_distances, fit_clip
from fairlib.models.controlnet import fit_controlnet
from fairlib.models.training import FitSettings, FitStep, Trainer
from fairlib.settings import from_dict, to_dict
from studies.engine import accelerator
from studies.engine.stage import WORKING, Artifact, Progress, stage, write_manifest

P = TypeVar("P")  # settings of a phantom
SAVE = 250  # steps between two saves


@dataclass(frozen=True)
class PixelPhase:
    """One phase of the autoencoder: random crops of `crop` pixels; the decoder alone when the
    latents must stay.
    """

    crop: int
    decoder_only: bool
    fit: FitSettings


class Drawn(NamedTuple):
    """A training set: tensors by name, `images` (uint8 [N, C, H, W]) among them, and a caption for
    each image.
    """

    tensors: dict[str, Tensor]
    captions: list[str]


Draw = Callable[[Any, Progress], Drawn]


class Words(NamedTuple):
    """A frozen text encoder (transformers' CLIPTextModel) and its tokenizer."""

    encoder: nn.Module
    tokenizer: Any


def fit(
    out: Path, progress: Progress, trainer: Trainer, steps: Iterable[FitStep], label: str
) -> None:
    """Run a fit to its end, from the state of an earlier attempt if there is one, saved every
    `SAVE` steps; writes `losses.csv`.
    """
    path, log = out / WORKING / "state.safetensors", out / WORKING / "losses.csv"
    rows: list[dict] = []
    if path.is_file():
        trainer.from_tensors(read_tensors(path))
        rows = pd.read_csv(log).iloc[: trainer.step].to_dict("records")
    left = trainer.settings.steps - trainer.step
    for state in progress.track(steps, left, label, done=trainer.step):
        rows.append({"step": state.step, "loss": state.loss})
        if state.step % SAVE == 0 or state.step == trainer.settings.steps:
            write_bytes(log, pd.DataFrame(rows).to_csv(index=False).encode())
            write_tensors(path, trainer.to_tensors())
    write_bytes(out / "losses.csv", pd.DataFrame(rows).to_csv(index=False).encode())


def fit_weights(
    out: Path,
    progress: Progress,
    model: nn.Module,
    settings: FitSettings,
    steps: Callable[..., Iterable[FitStep]],
    label: str,
) -> None:
    """Fit a diffusers model by `steps(trainer=...)` and save the mean of its weights in `out`."""
    trainer = Trainer(model, settings)
    fit(out, progress, trainer, steps(trainer=trainer), label)
    trainer.use_average()
    model.save_pretrained(out)


def on_accelerator(model: nn.Module) -> nn.Module:
    """Put a network of images where networks run, its weights channels last."""
    return model.to(accelerator(), memory_format=torch.channels_last)


# ---- draw ----


def load_drawn(folder: Path) -> Drawn:
    """Read a training set."""
    return Drawn(read_tensors(folder / "tensors.safetensors"), read_json(folder / "captions.json"))


@stage(load=load_drawn, verify=False)
def training_set(out: Path, progress: Progress, draw: Draw, settings: Any) -> None:
    """Draw the images and captions of `settings` once."""
    tensors, captions = draw(settings, progress)
    write_tensors(out / "tensors.safetensors", tensors)
    write_json(out / "captions.json", captions)


# ---- words ----


def load_words(folder: Path) -> Words:
    """Read a text tower that `text_tower` has fitted."""
    config = read_json(folder / "config.json")
    clip = cl.build_clip(folder, config)
    clip.load_state_dict(read_tensors(folder / "tower.safetensors"))
    length = config["text_cfg"]["context_length"]
    return Words(cl.text_encoder_of(clip.to(accelerator())), cl.pipeline_tokenizer(folder, length))


@stage(load=load_words)
def text_tower(
    out: Path,
    progress: Progress,
    drawn: Artifact[Drawn],
    prompts: list[str],
    config: dict,
    split: Callable[[str], tuple[str, ...]],
    settings: FitSettings,
    seed: int,
) -> None:
    """Fit a CLIP whose text tower keeps every attribute of every prompt apart.

    prompts: all prompts of the template; split: a prompt's attributes; config: of open_clip.
    """
    images, captions = drawn.load().tensors["images"], drawn.load().captions
    cl.write_vocabulary(out, cl.learn_merges(prompts))
    write_json(out / "config.json", config)
    torch.manual_seed(seed)
    tower = TextTower(cl.build_clip(out, config), prompts, split).to(accelerator())
    trainer = Trainer(tower, settings)
    steps = fit_clip(tower, images, captions, settings, trainer=trainer)
    fit(out, progress, trainer, steps, "words")
    write_tensors(out / "tower.safetensors", tower.clip.state_dict())


def distances(
    words: Words, prompts: list[str], split: Callable[[str], tuple[str, ...]]
) -> dict[str, float]:
    """How far apart the text tower keeps any two values of an attribute; two unrelated prompts are
    1.41 apart.
    """
    found = attribute_distances(embed(words, prompts), prompts, split)
    return {f"{one} | {other}": round(value, 3) for (one, other), value in found.items()}


@torch.no_grad()
def embed(words: Words, texts: list[str]) -> Tensor:
    """Embeddings [N, L, D] of `texts`."""
    encoder, tokenizer = words
    length = {"max_length": tokenizer.model_max_length, "padding": "max_length"}
    tokens = tokenizer(texts, truncation=True, return_tensors="pt", **length)
    return torch.cat([encoder(part)[0] for part in tokens.input_ids.split(256)])


def embedded(words: Words, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of the distinct captions, the row [N] of each caption, and the embedding of the
    empty prompt.
    """
    distinct = list(dict.fromkeys(captions))
    rows = {text: row for row, text in enumerate(distinct)}
    embeds = embed(words, ["", *distinct])
    return embeds[1:], torch.tensor([rows[text] for text in captions]), embeds[:1]


# ---- pixels and latents ----


def load_network(folder: Path) -> nn.Module:
    """Read a diffusers network (autoencoder, denoiser or ControlNet), frozen, on the accelerator:
    as it was saved, but with no memory of the folder's name in its config.
    """
    import diffusers

    kind = getattr(diffusers, read_json(folder / "config.json")["_class_name"])
    model = kind.from_config(kind.load_config(folder))
    model.load_state_dict(read_tensors(folder / "diffusion_pytorch_model.safetensors"))
    return on_accelerator(model).requires_grad_(False).eval()


@stage(load=load_network)
def pixel_phase(
    out: Path,
    progress: Progress,
    drawn: Artifact[Drawn],
    previous: Artifact | None,
    phase: PixelPhase,
    standardise: bool,
    build: Callable[[], nn.Module],
    seed: int,
) -> None:
    """Fit one phase of the autoencoder that `build` makes, from where the previous one ended."""
    state = None if previous is None else previous.load().state_dict()
    torch.manual_seed(seed)
    model = on_accelerator(build())
    images = drawn.load().tensors["images"]
    if state is not None:
        model.load_state_dict(state)
    if standardise:
        ae.standardise_latents(model, images[:1000])
    model.requires_grad_(True)
    if phase.decoder_only:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    inputs = (model, images, phase.fit, phase.crop)
    fit_weights(out, progress, model, phase.fit, partial(ae.fit_autoencoder, *inputs), "pixels")


def autoencoder(
    drawn: Artifact[Drawn],
    phases: tuple[PixelPhase, ...],
    build: Callable[[], nn.Module],
    seed: int,
) -> Artifact:
    """All phases of the autoencoder; latents are standardised before the decoder is fitted
    alone.
    """
    done: Artifact | None = None
    for number, phase in enumerate(phases):
        standardise = phase.decoder_only and not phases[number - 1].decoder_only
        done = pixel_phase(drawn, done, phase, standardise, build, seed)
    if done is None:
        raise DataError("an autoencoder of no phases; give at least one")
    return done


def load_latents(folder: Path) -> Tensor:
    """Read latents [N, C, h, w]."""
    return read_tensors(folder / "latents.safetensors")["latents"]


@stage(load=load_latents, verify=False)
def latents(
    out: Path, progress: Progress, drawn: Artifact[Drawn], model: Artifact, mirrors: bool = False
) -> None:
    """Encode the images and, with `mirrors`, after them their mirror images."""
    images = drawn.load().tensors["images"]
    parts = [images, images.flip(-1)] if mirrors else [images]
    found = torch.cat([ae.encode(model.load(), part) for part in parts])
    write_tensors(out / "latents.safetensors", {"latents": found})


# ---- noise and control ----


@stage(load=load_network)
def denoiser(
    out: Path,
    progress: Progress,
    words: Artifact[Words],
    encoded: Artifact[Tensor],
    captions: pd.Series,
    settings: FitSettings,
    seed: int,
    rows: np.ndarray | None = None,
) -> None:
    """Fit a denoiser from nothing on latents and their captions, or on those in `rows` alone."""
    given = encoded.load()
    if len(given) != len(captions):
        raise DataError(f"{len(given)} latents and {len(captions)} captions; give one for each")
    chosen = np.arange(len(given)) if rows is None else rows
    embeds, places, null = embedded(words.load(), captions.iloc[chosen].tolist())
    torch.manual_seed(seed)
    model = on_accelerator(gen.build_denoiser(text_width=embeds.shape[-1]))
    inputs = (model, given[list(chosen)], embeds, places, null, settings)
    fit_weights(out, progress, model, settings, partial(gen.fit_denoiser, *inputs), "noise")


@stage(load=load_network)
def controlnet(
    out: Path,
    progress: Progress,
    drawn: Artifact[Drawn],
    words: Artifact[Words],
    encoded: Artifact[Tensor],
    locked: Artifact,
    previous: Artifact | None,
    settings: FitSettings,
    balance: float,
    seed: int,
) -> None:
    """Fit a ControlNet on pairs of prompt and mask, the denoiser locked, from where the previous
    phase ended.

    balance: clip of the capped inverse-frequency weights by which pairs are drawn.
    """
    tensors, captions = drawn.load()
    embeds, places, null = embedded(words.load(), captions)
    base = locked.load()  # before the seed, since a model that is read draws its first weights, too
    torch.manual_seed(seed)
    model = on_accelerator(co.build_controlnet(base)).train()
    if previous is not None:
        model.load_state_dict(previous.load().state_dict())
    masks, weights = control_image(tensors["masks"]), balancing_weights(captions, balance)
    inputs = (base, model, encoded.load(), masks, embeds, places, null, settings)
    steps = partial(fit_controlnet, *inputs, weights=weights)
    fit_weights(out, progress, model, settings, steps, "control")


def pipeline_of(
    words: Artifact[Words], model: Artifact, locked: Artifact, control: Artifact | None = None
) -> Any:
    """The diffusers pipeline of the parts; with `control` one that takes masks."""
    encoder, tokenizer = words.load()
    coder = model.load()
    coder.register_to_config(scaling_factor=1.0)  # latents are standardised already
    pipeline = gen.assemble(encoder, tokenizer, coder, locked.load())
    return pipeline if control is None else co.attach(pipeline, control.load())


def copy_weights(made: Artifact, folder: Path) -> None:
    """Put the files of a result into `folder`, but for its manifest and its losses."""
    for file in sorted(made.folder.iterdir()):
        if file.name not in ("manifest.json", "losses.csv"):
            write_bytes(folder / file.name, file.read_bytes())


def write_weights(
    folder: Path, pipeline: Any, mean: Tensor, settings: Any, started: float, study: str, **more
) -> Path:
    """Write a folder of base weights: pipeline, mean latent and manifest; returns it."""
    gen.save_pipeline(folder, pipeline)
    write_tensors(folder / gen.MEAN_LATENT, {"mean": mean})
    write_weights_manifest(folder, settings, started, study, **more)
    return folder


def write_weights_manifest(
    folder: Path, settings: Any, started: float, study: str, **more: Any
) -> None:
    """Say in `folder/manifest.json` what made the weights."""
    made = {"made_by": f"python -m studies base {study}", "people": "synthetic", **more}
    write_manifest(folder, to_dict(settings), time.time() - started, **made)


def training_subjects(weights: str | Path, kind: type, key: str, model: str, otherwise: str):
    """The settings (of class `kind`) of the synthetic subjects that a generator was trained on, by
    name `key` of its manifest.

    model, otherwise: for the error, what to train and what to do where a manifest does not tell.
    Raises `WeightsError` when there is no manifest, or none of a model of synthetic subjects.
    """
    path = Path(weights) / MANIFEST
    if not path.is_file():
        what = f"{weights}: no {model} generator here ({MANIFEST} is missing)"
        raise WeightsError(f"{what}; make it with `python -m studies base {model}`")
    found = parse_manifest(path)["parameters"].get(key)
    if not isinstance(found, dict):
        what = f"{path}: does not say which synthetic subjects the generator was trained on"
        raise WeightsError(f"{what}; {otherwise}, or make the weights anew")
    return from_dict(kind, found)


def training_part(whole: P, count: int, seeds: Mapping[str, int | None]) -> P:
    """The first `count` (0: all) of the subjects `whole` that a generator was trained on.

    seeds: those of the study's other parts. Raises `SettingsError` when one of them would draw the
    training subjects again, and when there are fewer than `count`.
    """
    same = [part for part, seed in seeds.items() if seed == whole.seed]
    if same:
        raise SettingsError(
            f"the generator was trained on subjects of seed {whole.seed}, which part {same[0]!r} "
            "draws too; train it with another seed"
        )
    if count > whole.subjects:
        what = f"train_subjects {count}: the generator was trained on {whole.subjects}"
        raise SettingsError(f"{what}; 0 takes all")
    return replace(whole, subjects=count or whole.subjects)
