"""What a study is made of, and the arms it compares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ...errors import SettingsError
from ...methods.alignment import AlignmentSettings


@dataclass(frozen=True)
class Study:
    """Everything that the stages of the brain study depend on.

    cohort: "phantom" (written on first use) or "brats" (the real layout under `data_dir`, with `name_mapping.csv` and
    `clinical_patient_{gbm,lgg}.txt` beside it). subjects: multiple of the real cohort's counts for the phantom.
    radiology: synthetic ROCO slices to write for notebook 01. judge_steps: optimiser steps of each classifier.
    radius: L2 radius of the robust guide's adversary. target: "marginal" (the cohort's share for every prompt) or
    "conditional" (each grade its own). images: generated per arm and seed.
    """

    cohort: Literal["phantom", "brats"] = "phantom"
    data_dir: str = ""
    weights: str = "weights/brain"
    clip: str = "weights/clip"
    effect: str = "teaching"
    subjects: float = 5.0
    cohort_seed: int = 2
    split_seed: int = 0
    radiology: int = 600
    judge_steps: int = 700
    radius: float = 1.5
    target: Literal["marginal", "conditional"] = "marginal"
    images: int = 1000
    sampling_steps: int = 10
    guidance_scale: float = 2.0
    batch_size: int = 50


# name: (guide, changes to the settings of tuning). "plain" is the published recipe as far as it can be read.
ARMS: dict[str, tuple[str, dict]] = {
    "plain": ("plain", {"family": "class"}),
    "plain-quantile": ("plain", {"family": "quantile"}),
    "robust-class": ("robust", {"family": "class"}),
    "robust": ("robust", {"family": "quantile"}),
}


def arm_settings(study: Study, arm: str, seed: int, **changes) -> tuple[str, AlignmentSettings]:
    """The guide's name and the tuning settings of `arm`. Raises `SettingsError` on an unknown arm."""
    if arm not in ARMS:
        raise SettingsError(f"unknown arm {arm!r}; known arms: {', '.join(ARMS)}")
    guide, own = ARMS[arm]
    base = AlignmentSettings(sampling_steps=study.sampling_steps, guidance_scale=study.guidance_scale, seed=seed)
    return guide, replace(base, **own, **changes)
