"""What a study is made of, and the arms it compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import SettingsError
from ...methods.alignment import AlignmentSettings


@dataclass(frozen=True)
class Study:
    """Everything that the stages of the brain study depend on.

    cohort: "phantom" (written on first use) or "brats" (the real layout under `data_dir`, with `name_mapping.csv` and
    `clinical_patient_{gbm,lgg}.txt` beside it). subjects: multiple of the real cohort's counts for the phantom.
    radiology: synthetic ROCO slices to write for notebook 01. judge_steps: optimiser steps of each classifier.
    radius: L2 radius of the robust guide's adversary. images: generated per arm and seed.
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
    images: int = 1000
    sampling_steps: int = 8
    guidance_scale: float = 1.0
    batch_size: int = 50


@dataclass(frozen=True)
class Arm:
    """One way of tuning: whom it follows, toward what, and how its settings differ from the common ones."""

    guide: Literal["plain", "robust"]
    target: Literal["marginal", "conditional"] = "marginal"
    family: str = "quantile"
    says: str = ""


ARMS = {
    "plain": Arm("plain", family="class", says="the published recipe as far as it can be read: class targets, plain guide"),
    "plain-quantile": Arm("plain", says="quantile targets, plain guide"),
    "robust-class": Arm("robust", family="class", says="class targets, robust guide"),
    "robust": Arm("robust", says="quantile targets, robust guide: the default"),
    "conditional": Arm("robust", "conditional", says="the default, each grade toward its own share"),
}
# Found on development seeds, by the guide and the pictures alone; the auditor and the oracle had no say.
TUNING = {"steps": 60, "learning_rate": 2e-4}


def arm_settings(study: Study, arm: str, seed: int, **changes) -> tuple[Arm, AlignmentSettings]:
    """The arm and its tuning settings. Raises `SettingsError` on an unknown arm."""
    if arm not in ARMS:
        raise SettingsError(f"unknown arm {arm!r}; known arms: {', '.join(ARMS)}")
    found = ARMS[arm]
    common = {"sampling_steps": study.sampling_steps, "guidance_scale": study.guidance_scale, "seed": seed}
    return found, AlignmentSettings(**{**common, **TUNING, "family": found.family, **changes})
