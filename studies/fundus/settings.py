"""What the fundus study is made of (Luo et al., arXiv 2412.20374): arms, sizes, seeds, and who is
drawn for what.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from fairlib.cohorts.attributes import ETHNICITIES, RACES, SEXES
from fairlib.cohorts.fairgenmed import CDR_STATUSES, GLAUCOMA, SEVERITIES
from fairlib.errors import SettingsError
from fairlib.methods.finetuning import FinetuneSettings
from fairlib.settings import to_dict
from studies.fundus.rules import FundusSettings

ARMS = ("plain", "released", "repaired", "random", "random-repaired", "inverse", "dro", "balanced")
"""Weights of the loss: one for all; Fair Bayesian Perturbation as released and repaired; both
forms'
noise with a sigma that is drawn at random; inverse frequency over the attributes; group DRO over
the attributes. "balanced" weights nobody, and deals its batches from as many rows in which every
race is a third.
"""
BASE, EVERYONE, REAL = "base", "everyone", "real"
"""Three more rows of every table: the generator before any fine-tuning, whose denoiser has seen
White
people alone; one that was trained on everybody from the beginning; and real pictures of the people
who were asked for.
"""
UNTUNED = (BASE, EVERYONE)
HEADS = {
    "race": RACES,
    "sex": SEXES,
    "ethnicity": ETHNICITIES,
    "glaucoma": GLAUCOMA,
    "md_severity": SEVERITIES,
    "cdr_status": CDR_STATUSES,
}
"""What the reader of real pictures learns to read."""
TASKS = {"glaucoma": GLAUCOMA, "cdr_status": CDR_STATUSES}
"""What the classifiers of the semantic correlation learn."""
PART_SEEDS = {"judges": 311, "probe": 312, "asked": 313, "reference": 314}


@dataclass(frozen=True)
class FundusStudy:
    """Everything that the stages of the fundus study depend on.

    cohort: "phantom", or "fairgenmed" (the real layout under `data_dir`). weights: the pipeline
    folder that fine-tuning starts from; the phantom's cohort to fine-tune on is read from its
    manifest. everyone: the folder of row "everyone"; empty, without that row. train_people: 0, all
    of the cohort. steps ... window: see `methods.finetuning` and `methods.perturbation`; one
    learning rate for all arms.
    probe_people: held-out people, even over the groups, from whom the probe takes `probe_per_group`
    of every group; it is looked at every `probe_every` steps, each person at `probe_times` noise
    levels.
    images: one for each prompt of as many people of part "asked"; guidance_scale, sampling_steps
    (DPM-Solver++ 2M).
    judge_people, judge_steps: whom the reader is fitted on, and how long. reference_people: real
    unseen people that generated pictures are compared with and that classifiers are tried on.
    semantic_steps: of those classifiers.
    replicates: bootstrap draws of people. n_min: people of every class that a group must have for
    an AUC.
    """

    cohort: Literal["phantom", "fairgenmed"] = "phantom"
    data_dir: str = ""
    weights: str = "weights/fundus-white"
    everyone: str = "weights/fundus"
    split_seed: int = 0
    train_people: int = 0
    # Steps and rate were chosen on the probe's loss of plain fine-tuning at seed 0 (3e-4 ends lower
    # than 1e-3), on no judge.
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
    judge_people: int = 2400
    judge_steps: int = 600
    reference_people: int = 900
    semantic_steps: int = 200
    replicates: int = 300
    n_min: int = 10

    def __post_init__(self):
        if self.cohort not in ("phantom", "fairgenmed"):
            raise SettingsError(
                f"cohort {self.cohort!r}: the fundus study knows 'phantom' and 'fairgenmed'"
            )
        may_be_zero = ("split_seed", "train_people", "warmup")
        counts = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        low = {name: value for name, value in counts.items() if value < (name not in may_be_zero)}
        if low:
            raise SettingsError(f"FundusStudy: {low} must be at least 1")
        if self.reference_people < self.images:
            raise SettingsError(
                f"FundusStudy: {self.reference_people} reference_people for {self.images} images; "
                "distances are "
                "taken at equal numbers, so give at least as many"
            )

    def finetune(self, seed: int) -> FinetuneSettings:
        """The settings of one fine-tuning; the same for every arm of a seed, so that arms see the
        same noises and, but for "balanced", the same batches.
        """
        return FinetuneSettings(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            ema_decay=self.ema_decay,
            probe_every=self.probe_every,
            seed=seed,
        )


def even_settings(seed: int, index: int) -> FundusSettings:
    """Shares that leave person number `index` of an even part no choice of race, sex, ethnicity and
    glaucoma.

    Every 24 people in a row hold each combination once, so groups are of one size, whatever the
    size of the cohort.
    """
    race = RACES[index % 3]
    return FundusSettings(
        seed=seed,
        white=float(race == "White"),
        black=float(race == "Black"),
        female=float(index // 3 % 2),
        hispanic=float(index // 6 % 2),
        glaucoma=float(index // 12 % 2),
    )


def rows_of(study: FundusStudy, arms: Iterable[str] = ()) -> tuple[str, ...]:
    """The rows of a table of these arms: real pictures first, then the generators without
    fine-tuning.
    """
    return (REAL, *(UNTUNED if study.everyone else (BASE,)), *arms)


def untuned(study: FundusStudy, arm: str) -> FundusStudy:
    """The study whose `weights` draw the pictures of a row of `UNTUNED`."""
    return replace(study, weights=study.everyone) if arm == EVERYONE else study


def part_people(study: FundusStudy) -> dict[str, int]:
    """How many people each part but "train" has. judges: whom the reader and the classifiers
    "trained on real" are fitted on.
    probe: see `FundusStudy`. asked: whose prompts are asked for, and whose real pictures are the
    floor of every measure.
    reference: real unseen people.
    """
    return {
        "judges": max(study.judge_people, study.images),
        "probe": study.probe_people,
        "asked": study.images,
        "reference": study.reference_people,
    }


def check_people(trained_on: FundusSettings, study: FundusStudy) -> None:
    """Raise `SettingsError` when a part would draw the generator's training people, or more of them
    are wanted than there are.
    """
    odd = [name for name, seed in PART_SEEDS.items() if seed == trained_on.seed]
    if odd:
        raise SettingsError(
            f"the generator was trained on people of seed {trained_on.seed}, which part {odd[0]!r} "
            "draws too; "
            "train it with another seed"
        )
    if study.train_people > trained_on.subjects:
        raise SettingsError(
            f"train_people {study.train_people}: the generator was trained on "
            f"{trained_on.subjects}; 0 takes all"
        )


def identity(study: FundusStudy) -> dict:
    """All settings but the names of folders."""
    return {
        name: value
        for name, value in to_dict(study).items()
        if name not in ("weights", "everyone", "data_dir")
    }
