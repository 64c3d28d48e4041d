"""The settings of aligned tuning, and the learning rate they give."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from typing import Literal

from fairlib.errors import SettingsError


@dataclass(frozen=True)
class AlignmentSettings:
    """Settings of `tune`; what each does is in the book's chapter on the method.

    `family`: "quantile" (ranks in the batch and a pool), "monge" (each noise's target fixed in
    advance), "class" (rank rule and cross-entropy), "mean_kl", "mean_l2". `replay_steps` of
    `sampling_steps` carry gradient. `bank_size`: noises a prompt; the share reached on other noises
    cannot be surer than about 0.5 / sqrt(bank_size). `noise_seed` (default `seed`) names the bank.
    `pool_size`: old logits lag behind a fast-moving model, and ranks within them then overshoot;
    keep it small or the rate low. `bank_block`: noises that the frozen model draws at once.
    `consistency_floor`: stop when the running cosine to the frozen images whose class stays falls
    below it.

    Raises `SettingsError` on a word or a number that means nothing, however the settings were
    built.
    """

    family: Literal["quantile", "monge", "class", "mean_kl", "mean_l2"] = "quantile"
    steps: int = 80
    prompts_per_step: int = 4
    images_per_prompt: int = 8
    bank_size: int = 256
    bank_block: int = 64
    noise_seed: int | None = None
    pool_size: int = 0
    solver: Literal["ddim", "dpm_solver_2m"] = "dpm_solver_2m"
    sampling_steps: int = 10
    guidance_scale: float = 3.0
    replay_steps: int = 3
    replay_scheme: Literal["all", "stratified", "importance", "uniform", "early"] = "importance"
    step_weights: Literal["natural", "flat"] = "natural"
    learning_rate: float = 1e-4
    warmup: int = 5
    anneal: Literal["cosine", "none"] = "cosine"
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    ema_decay: float = 0.9
    alignment_weight: float = 1.0
    smooth_l1_beta: float = 1.0
    confidence_threshold: float = 0.8
    consistency_weight: float = 1.0
    consistency_change_factor: float = 0.2
    consistency_floor: float = 0.0
    trainable: Literal["full", "lora"] = "full"
    lora_rank: int = 8
    micro_batch: int | None = None
    seed: int = 0

    def __post_init__(self):
        for name, hint in typing.get_type_hints(type(self)).items():
            if typing.get_origin(hint) is Literal:
                words = typing.get_args(hint)
                self._require(
                    getattr(self, name) in words, name, f"one of {', '.join(map(repr, words))}"
                )
        for name in (
            "steps",
            "prompts_per_step",
            "images_per_prompt",
            "bank_size",
            "bank_block",
            "sampling_steps",
            "replay_steps",
            "lora_rank",
        ):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        # the last two may be None
        for name in ("pool_size", "warmup", "seed", "noise_seed", "micro_batch"):
            self._require((getattr(self, name) or 0) >= 0, name, "at least 0")
        for name in (
            "guidance_scale",
            "weight_decay",
            "alignment_weight",
            "consistency_weight",
            "consistency_change_factor",
        ):
            self._require(0 <= getattr(self, name) < math.inf, name, "at least 0 and finite")
        for name in ("learning_rate", "smooth_l1_beta"):
            self._require(0 < getattr(self, name) < math.inf, name, "above 0 and finite")
        self._require(self.gradient_clip > 0, "gradient_clip", "above 0")
        self._require(0 <= self.ema_decay < 1, "ema_decay", "in [0, 1)")
        self._require(
            -1 <= self.consistency_floor <= 1, "consistency_floor", "a cosine, in [-1, 1]"
        )
        self._require(0.5 <= self.confidence_threshold <= 1, "confidence_threshold", "in [0.5, 1]")
        self._require(
            self.replay_steps <= self.sampling_steps, "replay_steps", "at most sampling_steps"
        )
        self._require(
            self.bank_size % self.images_per_prompt == 0,
            "bank_size",
            f"a multiple of {self.images_per_prompt}",
        )

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise SettingsError(
                f"AlignmentSettings.{name} is {getattr(self, name)!r}; expected {expected}"
            )


def learning_rate_at(step: int, settings: AlignmentSettings) -> float:
    """Linear warm-up over `warmup` steps, then constant or a half cosine down to zero at the end of
    `steps`.
    """
    rate = settings.learning_rate * min(1.0, (step + 1) / (settings.warmup + 1))
    if settings.anneal == "none":
        return rate
    progress = max(0, step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return rate * 0.5 * (1 + math.cos(math.pi * progress))
