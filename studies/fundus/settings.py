"""What the fundus study is made of (Luo et al., arXiv 2412.20374): its sizes, and what evaluators
read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fairlib.cohorts.fairgenmed import CDR_STATUSES, GLAUCOMA, PROMPTED
from fairlib.errors import SettingsError
from fairlib.methods.finetuning import FinetuneSettings
from studies.engine.profiles import settings_from

BASE, EVERYONE, REAL = "base", "everyone", "real"
"""References that the arms are compared with: the generator before any fine-tuning, whose denoiser
was trained on White patients alone; one that was trained on all patients from the beginning; and
real images of the patients whose prompts are requested.
"""
UNTUNED = (BASE, EVERYONE)
HEADS = {name: values for name, values in PROMPTED.items() if name != "refraction"}
"""What the attribute classifier of real images learns to read."""
TASKS = {"glaucoma": GLAUCOMA, "cdr_status": CDR_STATUSES}
"""What the classifiers of the semantic correlation learn."""


@dataclass(frozen=True)
class FundusSettings:
    """Everything that the fundus study depends on.

    cohort: "phantom", or "fairgenmed" (the real layout under `data_dir`). weights: the pipeline
    folder that fine-tuning starts from; the phantom's cohort to fine-tune on is read from its
    manifest. everyone: the folder of reference "everyone"; empty, without it. train_people: 0, all
    of the cohort. steps ... window: see `methods.finetuning` and `methods.perturbation`; one
    learning rate for all arms. probe_people: held-out patients, even over the groups, from whom the
    probe takes `probe_per_group` of every group; it is measured every `probe_every` steps, each
    patient at `probe_times` noise levels. images: one for each prompt of as many patients;
    guidance_scale, sampling_steps (DPM-Solver++ 2M). evaluator_people, evaluator_steps: patients
    that the attribute classifier is fitted on, and how long. reference_people: real unseen patients
    that generated images are compared with and that classifiers are tried on. semantic_steps: of
    those classifiers. replicates: bootstrap draws of patients. n_min: patients of every class that
    a group must have for an AUC.
    """

    cohort: Literal["phantom", "fairgenmed"] = "phantom"
    data_dir: str = ""
    weights: str = "weights/fundus-white"
    everyone: str = "weights/fundus"
    split_seed: int = 0
    train_people: int = 0
    # Steps and rate were chosen on the probe's loss of plain fine-tuning at seed 0 (3e-4 ends lower
    # than 1e-3), on no evaluator.
    steps: int = 180
    batch_size: int = 32
    learning_rate: float = 3e-4
    warmup: int = 0
    ema_decay: float = 0.99
    window: int = 30
    probe_people: int = 48
    probe_per_group: int = 8
    probe_times: int = 3
    probe_every: int = 6
    images: int = 600
    sampling_steps: int = 8
    guidance_scale: float = 2.0
    sample_batch: int = 50
    evaluator_people: int = 2400
    evaluator_steps: int = 600
    reference_people: int = 900
    semantic_steps: int = 200
    replicates: int = 300
    n_min: int = 10

    def __post_init__(self) -> None:
        if self.cohort not in ("phantom", "fairgenmed"):
            raise SettingsError(
                f"cohort {self.cohort!r}: the fundus study knows 'phantom' and 'fairgenmed'"
            )
        may_be_zero = ("split_seed", "train_people", "warmup")
        counts = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        low = {name: value for name, value in counts.items() if value < (name not in may_be_zero)}
        if low:
            raise SettingsError(f"FundusSettings: {low} must be at least 1")
        if self.reference_people < self.images:
            raise SettingsError(
                f"FundusSettings: {self.reference_people} reference_people for {self.images} "
                "images; distances are taken at equal numbers, so give at least as many"
            )

    @classmethod
    def from_parameters(cls, parameters: Any) -> FundusSettings:
        """The study at the size that the parameters of a notebook ask for: what they leave out
        follows from what they give, as in the long runs. Of other weights there is no generator
        that was trained on everyone.
        """
        given, steps = parameters, parameters.evaluator_people // 4
        return settings_from(
            cls,
            given,
            everyone=cls.everyone if given.weights == cls.weights else "",
            window=max(2, given.steps // 6),
            probe_every=max(1, given.steps // 30),
            reference_people=given.images * 3 // 2,
            evaluator_steps=steps,
            semantic_steps=min(cls.semantic_steps, steps // 2),
            n_min=min(cls.n_min, max(1, given.images // 18)),
        )

    def finetune(self, seed: int) -> FinetuneSettings:
        """The settings of one fine-tuning; the same for every arm of a seed, so that arms see the
        same noises and, but for "balanced", the same batches.
        """
        names = ("steps", "batch_size", "learning_rate", "warmup", "ema_decay", "probe_every")
        return FinetuneSettings(**{name: getattr(self, name) for name in names}, seed=seed)
