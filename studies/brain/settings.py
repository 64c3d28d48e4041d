"""What a study is made of, and the arms it compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fairlib.errors import SettingsError
from fairlib.methods.settings import AlignmentSettings


@dataclass(frozen=True)
class Study:
    """Everything that the stages of the brain study depend on.

    cohort: "phantom" (written on first use) or "brats" (the real layout under `data_dir`, with
    `name_mapping.csv` and `*clinical_patient_{gbm,lgg}.txt` beside it). subjects: multiple of the
    real cohort's counts for the phantom.
    radiology: synthetic ROCO slices to write for notebook 01. judge_steps: optimiser steps of each
    classifier.
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
    radiology: int = 1500
    judge_steps: int = 700
    radius: float = 4.0
    images: int = 1000
    sampling_steps: int = 8
    guidance_scale: float = 2.0
    batch_size: int = 50


@dataclass(frozen=True)
class Arm:
    """One way of tuning: whom it follows, toward what, and what makes an image's target."""

    guide: Literal["plain", "robust", "bare", "ensemble"]
    target: Literal["marginal", "conditional"] = "marginal"
    family: str = "transport"
    says: str = ""
    changes: tuple[tuple[str, object], ...] = ()  # settings of the tuning other than `TUNING`


ARMS = {
    "plain": Arm(
        "plain",
        family="class",
        says="class targets as the nearest public relative has them, plain guide",
    ),
    "plain-transport": Arm("plain", says="transport targets, plain guide"),
    "robust-class": Arm("robust", family="class", says="class targets, robust guide"),
    "robust-quantile": Arm(
        "robust", family="quantile", says="quantile targets ranked within each batch, robust guide"
    ),
    "robust": Arm("robust", says="transport targets, robust guide: the default"),
    "conditional": Arm(
        "robust", "conditional", says="the default, each grade toward its own share"
    ),
}
# One thing at a time taken from the default, or done otherwise: `python -m studies ablation` shows
# what each contributes.
ABLATIONS = {
    "robust": ARMS["robust"],
    "plain-transport": Arm("plain", says="guide: not trained against an adversary"),
    "bare": Arm(
        "bare", says="guide: neither adversary nor augmentation (noise, blur, contrast, shifts)"
    ),
    "ensemble": Arm("ensemble", says="guide: mean logit of three augmented ones, no adversary"),
    "robust-class": ARMS["robust-class"],
    "robust-quantile": ARMS["robust-quantile"],
    "early": Arm(
        "robust",
        says="gradient through the two first, coarse steps only",
        changes=(("replay_scheme", "early"),),
    ),
    "all-steps": Arm(
        "robust",
        says="gradient through all eight steps",
        changes=(("replay_scheme", "all"), ("replay_steps", 8)),
    ),
    "flat": Arm(
        "robust", says="all steps with the same weight", changes=(("step_weights", "flat"),)
    ),
    "no-consistency": Arm(
        "robust", says="no CLIP consistency", changes=(("consistency_weight", 0.0),)
    ),
    "consistency-16": Arm(
        "robust",
        says="CLIP consistency four times as strong",
        changes=(("consistency_weight", 16.0),),
    ),
    "no-annealing": Arm(
        "robust",
        says="rate held, no moving average of the weights",
        changes=(("anneal", "none"), ("ema_decay", 0.0)),
    ),
    "larger-steps": Arm(
        "robust",
        says="three times the rate, a third of the steps",
        changes=(("learning_rate", 1.2e-4), ("steps", 30), ("warmup", 4)),
    ),
}
# Found on seed 0 with earlier base models: the family and weights with all judges in view, from a
# handful of runs; steps and learning rate by the guide alone. Results use other seeds.
TUNING = {
    "steps": 90,
    "learning_rate": 4e-5,
    "warmup": 10,
    "replay_steps": 2,
    "prompts_per_step": 4,
    "images_per_prompt": 6,
    "cache_size": 516,
    "cache_block": 12,
    "noise_seed": 100,
    "consistency_weight": 4.0,
}
# families that rank a batch want more images of one prompt
RANKED = {"prompts_per_step": 2, "images_per_prompt": 12}


def arm_settings(study: Study, arm: str, seed: int, **changes) -> tuple[Arm, AlignmentSettings]:
    """The arm and its tuning settings. Raises `SettingsError` on an unknown arm."""
    known = ARMS | ABLATIONS
    if arm not in known:
        raise SettingsError(f"unknown arm {arm!r}; known arms: {', '.join(known)}")
    found = known[arm]
    own = {} if found.family == "transport" else RANKED
    common = {
        "sampling_steps": study.sampling_steps,
        "guidance_scale": study.guidance_scale,
        "seed": seed,
    }
    return found, AlignmentSettings(
        **{**common, **TUNING, **own, "family": found.family, **dict(found.changes), **changes}
    )
