"""Ask the generator for hearts, in three ways, and keep what it draws with what was asked."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.cohorts.cardiac import bmi_class, control_image, decade, prompt_of, stack
from fairlib.errors import SettingsError
from fairlib.io import read_tensors, to_bytes, to_images, write_bytes, write_tensors
from fairlib.methods.control import copies, new_combinations
from fairlib.models.controlnet import ControlledGenerator
from fairlib.settings import digest
from studies.engine.manifest import content_digest
from studies.engine.places import accelerator
from studies.engine.stage import run_stage
from studies.heart.cohorts import Hearts, _join, hearts
from studies.heart.rules import HEIGHT_CM
from studies.heart.settings import WAYS, HeartStudy

NOISE = {"copies": 7000, "combinations": 7001, "unseen": 7002}  # banks of starting noise
OTHER = {
    "sex": {"F": "M", "M": "F"},
    "diagnosis": {"healthy": "heart failure", "heart failure": "healthy"},
}
FLIPS = ("diagnosis", "sex", "age", "bmi")
# what an age and a body-mass index are turned into: whichever is further
YOUNG_OLD, THIN_FAT = (55.0, 85.0), (22.0, 33.0)


def heart_generator(study: HeartStudy) -> ControlledGenerator:
    """The generator of the study, on the accelerator if there is one."""
    return _generator(study.weights, study.controlnet)


@lru_cache(maxsize=2)
def _generator(weights: str, controlnet: str) -> ControlledGenerator:
    return ControlledGenerator.load(weights, accelerator(), controlnet=controlnet or None)


def generator_digest(study: HeartStudy) -> list[str]:
    """What the generator is: the hashes in its manifests, or its name where it has none (a hub
    name).
    """
    return [
        content_digest(name) if (Path(name) / "manifest.json").is_file() else name
        for name in (study.weights, study.controlnet)
        if name
    ]


def requests(study: HeartStudy, way: str) -> tuple[pd.DataFrame, Tensor]:
    """What is asked for in one of `WAYS`: a table (prompt, sex, age, bmi, height, decade,
    bmi_class, diagnosis, source,

    subject: whose mask) and the masks uint8 [N, 2, H, W]. A height is that of the mask's person,
    but for a new combination, where it is the mean of the sex asked for. Copies are as many as the
    study needs, and fewer are the first of more. Raises `SettingsError` on an unknown way.
    """
    if way not in WAYS:
        raise SettingsError(f"unknown way of asking {way!r}; known ways: {', '.join(WAYS)}")
    if way == "unseen":
        people = hearts(study, "hold")
        rows = torch.arange(min(study.images, len(people)))
        columns = [
            "prompt",
            "sex",
            "age",
            "bmi",
            "height",
            "decade",
            "bmi_class",
            "diagnosis",
            "subject",
        ]
        return people.table.iloc[rows.numpy()][columns].assign(source=rows.numpy()), people.masks[
            rows
        ]
    people = hearts(study, "train")
    if way == "copies":
        count = max(study.images, study.synthetic) if study.trains_classifiers else study.images
        table, _ = copies(people.table, people.masks, count, NOISE[way])
        height = people.table["height"].to_numpy(float)[table["source"].to_numpy()]
    else:
        table, _ = new_combinations(
            people.table, people.masks, study.images, NOISE[way], present_only=True
        )
        height = (
            table["sex"].map({sex: mean for sex, (mean, _) in HEIGHT_CM.items()}).to_numpy(float)
        )
    return table.assign(height=height), people.masks[torch.tensor(table["source"].to_numpy())]


def flipped(table: pd.DataFrame, word: str) -> pd.DataFrame:
    """The same requests with one word of each prompt turned into another: `FLIPS`; age and bmi move
    to whichever of two typical

    values lies further away. The mask is not touched, so the prompt now contradicts it.
    """
    if word not in FLIPS:
        raise SettingsError(f"unknown word {word!r}; choose one of {', '.join(FLIPS)}")
    table = table.reset_index(drop=True).copy()
    if word in OTHER:
        table[word] = table[word].map(OTHER[word])
    else:
        low, high = YOUNG_OLD if word == "age" else THIN_FAT
        table[word] = np.where(table[word] > (low + high) / 2, low, high)
    table["decade"], table["bmi_class"] = table["age"].map(decade), table["bmi"].map(bmi_class)
    return table.assign(prompt=[prompt_of(row) for row in table.to_dict("records")])


@lru_cache(maxsize=4)
def made(study: HeartStudy, way: str) -> Hearts:
    """The generated hearts of one way, with the masks and attributes that were asked for; from
    their stage.
    """
    return _drawn(study, *_asked(study, way))


def made_flipped(study: HeartStudy, word: str) -> Hearts:
    """The first `flips` hearts of way "unseen" again, from the same noise and mask, with one word
    of the prompt turned.
    """
    return _drawn(study, *_asked(study, f"flipped-{word}"))


@lru_cache(maxsize=8)
def made_digest(study: HeartStudy, source: str) -> tuple[str, str]:
    """What a stage that reads generated hearts depends on: the images of a way, or of
    "flipped-<word>", and the masks asked.
    """
    name, table, masks, noise_seed = _asked(study, source)
    return content_digest(draw(study, name, table, masks, noise_seed)), sha256(
        masks.numpy().tobytes()
    ).hexdigest()


def _asked(study: HeartStudy, source: str) -> tuple[str, pd.DataFrame, Tensor, int]:
    """Name of the stage, table, masks and bank of noise of a way, or of "flipped-<word>"."""
    way = "unseen" if source.startswith("flipped-") else source
    table, masks = requests(study, way)
    if way != source:
        count = min(study.flips, len(table))
        table, masks = flipped(table.iloc[:count], source.removeprefix("flipped-")), masks[:count]
    return f"heart-{source}", table, masks, NOISE[way]


def swatches(study: HeartStudy, prompts: list[str], masks: Tensor) -> Tensor:
    """Hearts to look at, all from ONE noise: images float32 [N, 3, H, W] of `prompts` under `masks`
    uint8 [N, 2, H, W].
    """
    return _drawn(
        study, "heart-swatches", pd.DataFrame({"prompt": prompts}), masks, 7100, one_noise=True
    ).images


def _drawn(
    study: HeartStudy,
    name: str,
    table: pd.DataFrame,
    masks: Tensor,
    noise_seed: int,
    one_noise: bool = False,
) -> Hearts:
    found = read_tensors(
        draw(study, name, table, masks, noise_seed, one_noise) / "hearts.safetensors"
    )
    return Hearts(stack(to_images(found["images"])), table.reset_index(drop=True), masks)


def draw(
    study: HeartStudy,
    name: str,
    table: pd.DataFrame,
    masks: Tensor,
    noise_seed: int,
    one_noise: bool = False,
) -> Path:
    """The stage folder with one generated heart (uint8 [N, 2, H, W], ED and ES) for each request,
    resumable by batches.

    Image i starts from noise i of bank `noise_seed`, whatever the batch; with `one_noise` all start
    from its first.
    """
    settings = {
        "steps": study.sampling_steps,
        "guidance": study.guidance_scale,
        "noise": noise_seed,
        "count": len(table),
        "batch": study.batch_size,
        "one_noise": one_noise,
    }
    asked = [digest(table.to_csv(index=False)), sha256(masks.numpy().tobytes()).hexdigest()]

    def build(out: Path, progress) -> None:
        generator = heart_generator(study)
        size = study.batch_size
        blocks = [
            list(range(start, min(start + size, len(table))))
            for start in range(0, len(table), size)
        ]
        paths = [out / "working" / f"{number:04d}.safetensors" for number in range(len(blocks))]
        for rows, path in progress.track(zip(blocks, paths, strict=True), len(blocks), name):
            if not path.is_file():
                noise = generator.noise(noise_seed, [0] * len(rows) if one_noise else rows)
                images = sample(
                    generator, study, list(table["prompt"].iloc[rows]), masks[rows], noise
                )
                write_bytes(path.with_suffix(".csv"), table.iloc[rows].to_csv(index=False).encode())
                write_tensors(path, {"images": to_bytes(ends(images))})
        _join(out, paths)

    return run_stage(None, name, settings, generator_digest(study) + asked, build)


def sample(
    generator: ControlledGenerator,
    study: HeartStudy,
    prompts: list[str],
    masks: Tensor,
    noise: Tensor,
) -> Tensor:
    """Images [N, 3, H, W] in [-1, 1] on the CPU, as the study samples them."""
    control = control_image(masks).to(noise.device)
    return generator.sample(
        prompts,
        noise=noise,
        control=control,
        steps=study.sampling_steps,
        guidance_scale=study.guidance_scale,
    ).cpu()


def ends(images: Tensor) -> Tensor:
    """ED (the mean of its two channels) and ES of images [N, 3, H, W]: [N, 2, H, W]."""
    return torch.stack([(images[:, 0] + images[:, 2]) / 2, images[:, 1]], dim=1)
