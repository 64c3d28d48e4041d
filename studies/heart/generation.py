"""Request hearts from the generator in three ways, and keep what it draws with what was requested.

Ways: real pairs of prompt and mask drawn by capped inverse frequency (the paper's "copies"), random
attributes with a mask of the same diagnosis (the random mode of its code, "combinations"), and
pairs of subjects the generator never saw ("unseen").
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.cohorts.cardiac import bmi_class, control_image, decade, prompt_of
from fairlib.errors import SettingsError
from fairlib.methods.control import copies, new_combinations
from fairlib.models.controlnet import ControlledGenerator
from fairlib.settings import unknown_key
from studies.engine import accelerator
from studies.engine.stage import Artifact, Progress, as_is, in_blocks, stage
from studies.heart.data import Hearts, HeartSettings, as_stored, part, read_hearts, write_hearts
from studies.heart.evaluators import Readings, evaluate, fitted_evaluators
from studies.heart.phantom import HEIGHT_CM

WAYS = ("copies", "combinations", "unseen")
# seeds of starting noise
NOISE = {"copies": 7000, "combinations": 7001, "unseen": 7002, "preview": 7100}
OTHER = {
    "sex": {"F": "M", "M": "F"},
    "diagnosis": {"healthy": "heart failure", "heart failure": "healthy"},
}
WORDS = ("diagnosis", "sex", "age", "bmi")  # of a prompt, that can be turned
FLIPPED = tuple(f"flipped-{word}" for word in WORDS)
# what an age and a body-mass index are turned into: whichever is further
YOUNG_OLD, THIN_FAT = (55.0, 85.0), (22.0, 33.0)
ATTRIBUTES = ["prompt", "sex", "age", "bmi", "height", "decade", "bmi_class", "diagnosis"]
Weights = tuple[Artifact[Path], ...]  # of the pipeline, and of a ControlNet of its own


def weights_of(settings: HeartSettings) -> Weights:
    """The weights of a study's generator."""
    names = (settings.weights, settings.controlnet)
    return tuple(Artifact.weights(name, as_is) for name in names if name)


@lru_cache(maxsize=2)
def load_generator(weights: Weights) -> ControlledGenerator:
    """The generator with these weights, on the accelerator if there is one."""
    folder, *controlnet = (str(each.load()) for each in weights)
    return ControlledGenerator.load(folder, accelerator(), controlnet="".join(controlnet))


@stage(load=read_hearts)
def generate(
    out: Path,
    progress: Progress,
    weights: Weights,
    table: pd.DataFrame,
    masks: Tensor,
    noise_seed: int,
    steps: int,
    guidance: float,
    batch_size: int,
    one_noise: bool = False,
) -> None:
    """Draw one heart for each request (row of `table` with a prompt; mask uint8 [N, 2, H, W]),
    resumable by batches.

    Image i starts from noise i of `noise_seed`, whatever the batch; with `one_noise` all start from
    its first.
    """
    generator = load_generator(weights)

    def draw(rows: range) -> dict[str, Tensor]:
        chosen, prompts = masks[rows.start : rows.stop], table["prompt"].iloc[rows]
        noise = generator.noise(noise_seed, [0] * len(rows) if one_noise else list(rows))
        control = control_image(chosen).to(noise.device)
        how = {"control": control, "noise": noise, "steps": steps, "guidance_scale": guidance}
        return as_stored(generator.sample(list(prompts), **how).cpu(), chosen)

    tensors = in_blocks(out, progress, len(table), batch_size, "generated hearts", draw)
    write_hearts(out, tensors, table)


def requests(settings: HeartSettings, way: str) -> tuple[pd.DataFrame, Tensor]:
    """What is requested in one of `WAYS`: a table (`ATTRIBUTES`, source, subject: whose mask) and
    the masks uint8 [N, 2, H, W].

    A height is that of the mask's subject, but for a new combination, where it is the mean of the
    sex requested. Copies are as many as the study needs, and fewer are the first of more. Raises
    `SettingsError` on an unknown way.
    """
    if way not in WAYS:
        raise SettingsError(unknown_key(way, list(WAYS), "the ways of requesting hearts"))
    hearts = part(settings, "heldout" if way == "unseen" else "train").load()
    if way == "unseen":
        unseen = hearts.first(settings.images)
        columns = unseen.table[[*ATTRIBUTES, "subject"]]
        return columns.assign(source=range(len(unseen))), unseen.masks
    if way == "copies":
        needed = settings.synthetic if settings.trains_classifiers else 0
        count = max(settings.images, needed)
        table, _ = copies(hearts.table, hearts.masks, count, NOISE[way])
        height = hearts.table["height"].to_numpy(float)[table["source"].to_numpy()]
    else:
        table, _ = new_combinations(
            hearts.table, hearts.masks, settings.images, NOISE[way], present_only=True
        )
        means = {sex: mean for sex, (mean, _) in HEIGHT_CM.items()}
        height = table["sex"].map(means).to_numpy(float)
    return table.assign(height=height), hearts.masks[torch.tensor(table["source"].to_numpy())]


def flipped(table: pd.DataFrame, word: str) -> pd.DataFrame:
    """The same requests with one word of each prompt turned into another (`WORDS`); age and bmi
    move to whichever of two typical values lies further away.

    The mask is not touched, so the prompt now contradicts it. Raises `SettingsError` on an unknown
    word.
    """
    if word not in WORDS:
        raise SettingsError(unknown_key(word, list(WORDS), "the words of a prompt"))
    table = table.reset_index(drop=True).copy()
    if word in OTHER:
        table[word] = table[word].map(OTHER[word])
    else:
        low, high = YOUNG_OLD if word == "age" else THIN_FAT
        table[word] = np.where(table[word] > (low + high) / 2, low, high)
    table["decade"], table["bmi_class"] = table["age"].map(decade), table["bmi"].map(bmi_class)
    return table.assign(prompt=[prompt_of(row) for row in table.to_dict("records")])


def generated(settings: HeartSettings, source: str) -> Artifact[Hearts]:
    """The generated hearts of a way; or, of "flipped-<word>", the first `flips` of way "unseen"
    again, from the same noise and mask, with one word of the prompt turned.
    """
    way = "unseen" if source in FLIPPED else source
    table, masks = requests(settings, way)
    if way != source:
        count = min(settings.flips, len(table))
        table, masks = flipped(table.iloc[:count], source.removeprefix("flipped-")), masks[:count]
    return _generate(settings, table, masks, NOISE[way])


def preview(settings: HeartSettings, prompts: list[str], masks: Tensor) -> Tensor:
    """Hearts to look at, all from one noise: images float32 [N, 3, H, W] of `prompts` under `masks`
    uint8 [N, 2, H, W].
    """
    table = pd.DataFrame({"prompt": prompts})
    return _generate(settings, table, masks, NOISE["preview"], one_noise=True).load().images


def readings(settings: HeartSettings, source: str) -> Artifact[Readings]:
    """What every evaluator reads in the hearts of `source`: a way of requesting, "flipped-<word>",
    or a part of real hearts.
    """
    if source in (*WAYS, *FLIPPED):
        return evaluate(generated(settings, source), settings.images, fitted_evaluators(settings))
    return evaluate(part(settings, source), None, fitted_evaluators(settings))


def _generate(
    settings: HeartSettings, table: pd.DataFrame, masks: Tensor, noise: int, one_noise: bool = False
) -> Artifact[Hearts]:
    how = settings.sampling_steps, settings.guidance_scale, settings.batch_size
    return generate(weights_of(settings), table, masks, noise, *how, one_noise)
