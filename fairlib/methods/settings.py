"""The settings of aligned tuning (`methods.alignment`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fairlib.errors import SettingsError
from fairlib.models.training import FitSettings
from fairlib.settings import BelowOne, Bound, Count, Natural, Positive, Weight, check_bounds


@dataclass(frozen=True)
class AlignmentSettings:
    """Settings of `tune`; what each does is in the book's chapter on the method.

    `family`: "transport" (each noise's target fixed in advance), "quantile" (ranks in the batch and
    a pool), "class" (class targets and cross-entropy), "mean_kl", "mean_l2". `replay_steps` of
    `sampling_steps` carry gradient. `cache_size`: noises a prompt; the share reached on other
    noises cannot be surer than about 0.5 / sqrt(cache_size). `noise_seed` (default `seed`) names
    the noises. `pool_size`: old logits lag behind a fast-moving model, and ranks within them then
    overshoot; keep it small or the rate low. `cache_block`: noises that the base model samples at
    once. `consistency_floor`: stop when the running cosine to the base images whose class stays
    falls below it. `class_draws`: random draws behind the class targets of more than two groups.
    `micro_batch`: images that are sampled, decoded or replayed at once (None: all of them).

    Raises `SettingsError` on a word or a number that means nothing, however the settings were
    built.
    """

    family: Literal["transport", "quantile", "class", "mean_kl", "mean_l2"] = "transport"
    steps: Count = 80
    prompts_per_step: Count = 4
    images_per_prompt: Count = 8
    cache_size: Count = 256
    cache_block: Count = 64
    noise_seed: Natural | None = None
    pool_size: Natural = 0
    solver: Literal["ddim", "dpm_solver_2m"] = "dpm_solver_2m"
    sampling_steps: Count = 10
    guidance_scale: Weight = 3.0
    replay_steps: Count = 3
    replay_scheme: Literal["all", "stratified", "importance", "uniform", "early", "last"] = (
        "importance"
    )
    step_weights: Literal["natural", "flat"] = "natural"
    learning_rate: Positive = 1e-4
    warmup: Natural = 5
    anneal: Literal["cosine", "none"] = "cosine"
    weight_decay: Weight = 0.0
    gradient_clip: Annotated[float, Bound(lambda value: value > 0, "above 0")] = 1.0
    ema_decay: BelowOne = 0.9
    alignment_weight: Weight = 1.0
    smooth_l1_beta: Positive = 1.0
    confidence_threshold: Annotated[float, Bound(lambda c: 0.5 <= c <= 1, "in [0.5, 1]")] = 0.8
    class_draws: Count = 200
    consistency_weight: Weight = 1.0
    consistency_change_factor: Weight = 0.2
    consistency_floor: Annotated[float, Bound(lambda c: -1 <= c <= 1, "in [-1, 1]")] = 0.0
    trainable: Literal["full", "lora"] = "full"
    lora_rank: Count = 8
    micro_batch: Natural | None = None
    seed: Natural = 0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.replay_steps > self.sampling_steps:
            raise SettingsError(
                f"AlignmentSettings.replay_steps is {self.replay_steps}; expected at most "
                f"sampling_steps, {self.sampling_steps}"
            )
        if self.cache_size % self.images_per_prompt:
            raise SettingsError(
                f"AlignmentSettings.cache_size is {self.cache_size}; expected a multiple of "
                f"images_per_prompt, {self.images_per_prompt}"
            )

    @property
    def fit(self) -> FitSettings:
        """The same as settings of the optimiser that all networks share."""
        return FitSettings(
            self.steps,
            self.prompts_per_step * self.images_per_prompt,
            self.learning_rate,
            self.warmup,
            self.weight_decay,
            self.gradient_clip,
            self.ema_decay,
            self.seed,
            anneal=self.anneal,
            betas=(0.9, 0.999),
        )
