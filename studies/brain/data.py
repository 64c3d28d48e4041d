"""The cohorts of the study, written once if synthetic and always read by the reader of the real
layout; and the neutral prompts that images are sampled from.

ROCO captions hardly ever name sex (about one in twenty), so a prompt that says nothing of sex is
the right test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from fairlib.cohorts.brats import GRADES, caption, find_biotabs, find_subjects, read_brats
from fairlib.cohorts.cohort import Cohort
from fairlib.cohorts.roco import read_roco
from fairlib.cohorts.slices import CONTRASTS
from fairlib.cohorts.tables import group_codes, read_prompts
from fairlib.errors import DataError
from fairlib.methods.alignment import AlignmentSettings
from studies.brain.phantom import PhantomSettings, RadiologySettings, write_brats, write_roco
from studies.engine import runs_folder
from studies.engine.images import Sampling
from studies.engine.stage import Artifact, Progress, stage

Target = str | float
BATCH = 50
# of the comparison: 30 steps of 24 images and 120 noises a prompt are 17,760 denoiser evaluations,
# base cache included
BUDGET = {"steps": 30, "warmup": 4, "cache_size": 120}


@dataclass(frozen=True)
class BrainSettings:
    """Everything that the brain study depends on.

    cohort: "phantom" (written on first use) or "brats" (the real layout under `data_dir`, with
    `name_mapping.csv` and `*clinical_patient_{gbm,lgg}.txt` beside it). subjects: multiple of the
    real cohort's counts for the phantom.
    weights: a pipeline folder, or a preset or hub name (`loading.pipeline_folder`). clip: of the
    consistency term (`load_clip`). classifier: of the reader, in place of the tuning classifiers
    (`find_classifier`); empty: they are fitted. prompts: a table in place of the eight
    (`prompts_of`). image_size: pixels a side that the pipeline draws (0: as it says); evaluators
    read them as grey images of 128. lora: rank of the LoRA weights that are tuned (0: all weights
    are). precision: of the pipeline; empty: fp32.
    radiology: synthetic ROCO slices of the training set. classifier_steps: optimiser steps of each
    classifier. radius: L2 radius of the robust tuning classifier's adversary.
    classifier_seed: of the tuning classifiers; cache_seed: of the base cache's noises; None gives
    every run its own.
    images: generated per arm and seed; batch_size: of them at once. tuning: settings of the tuning
    (`AlignmentSettings`) other than the arms', by default the budget of `plan.md`.
    calibration: images of known sex in the primary calibration set; denoised, pairs: in the others;
    transfer: generated in each condition of `transfer`.
    """

    cohort: Literal["phantom", "brats"] = "phantom"
    data_dir: str = ""
    weights: str = "weights/brain"
    clip: str = "weights/clip"
    classifier: str = ""
    prompts: str = ""
    image_size: int = 0
    lora: int = 0
    precision: Literal["", "bf16", "fp16"] = ""
    effect: str = "teaching"
    subjects: float = 5.0
    cohort_seed: int = 2
    split_seed: int = 0
    radiology: int = 1500
    classifier_steps: int = 700
    classifier_seed: int | None = None
    cache_seed: int | None = None
    radius: float = 4.0
    images: int = 1000
    sampling_steps: int = 8
    guidance_scale: float = 2.0
    batch_size: int = BATCH
    tuning: dict[str, Any] = field(default_factory=lambda: dict(BUDGET))
    calibration: int = 4000
    denoised: int = 1200
    pairs: int = 500
    transfer: int = 200


def sampling(settings: BrainSettings, guidance_scale: float | None = None) -> Sampling:
    """How the study samples, with its own guidance scale or another."""
    scale = settings.guidance_scale if guidance_scale is None else guidance_scale
    return Sampling(settings.sampling_steps, scale, settings.batch_size)


@dataclass(frozen=True)
class Tuning:
    """How an arm tunes: the tuning classifier it follows, towards which shares, and what makes an
    image's target.

    target: as `data.female_shares` has it; "own", the untuned model's own distribution.
    changes: settings of the tuning other than `TUNING`.
    """

    classifier: str
    family: str = "transport"
    target: Target = "marginal"
    changes: dict[str, Any] = field(default_factory=dict)


# Chosen on seed 0 with earlier base models: the family and weights with all evaluators in view,
# from a handful of runs; steps and learning rate by the tuning classifier alone. Results use other
# seeds.
TUNING = {
    "steps": 90,
    "learning_rate": 4e-5,
    "warmup": 10,
    "replay_steps": 2,
    "prompts_per_step": 4,
    "images_per_prompt": 6,
    "cache_size": 516,
    "cache_block": 12,
    "consistency_weight": 4.0,
}
# families that rank a batch want more images of one prompt
RANKED = {"prompts_per_step": 2, "images_per_prompt": 12}


def alignment(settings: BrainSettings, tuning: Tuning, seed: int) -> AlignmentSettings:
    """The settings of one arm's tuning at one seed."""
    chosen = {
        "sampling_steps": settings.sampling_steps,
        "guidance_scale": settings.guidance_scale,
        "noise_seed": settings.cache_seed,
        # None: a step's images at once, as in the stored runs
        "micro_batch": settings.batch_size if settings.batch_size < BATCH else None,
        **TUNING,
        **({} if tuning.family == "transport" else RANKED),
        **({"trainable": "lora", "lora_rank": settings.lora} if settings.lora else {}),
        **settings.tuning,
        **tuning.changes,
    }
    return AlignmentSettings(family=tuning.family, seed=seed, **chosen)


def cache_settings(settings: AlignmentSettings) -> AlignmentSettings:
    """What the base cache of a tuning depends on; all else as `AlignmentSettings` has it."""
    seed = settings.seed if settings.noise_seed is None else settings.noise_seed
    names = "cache_size", "cache_block", "solver", "sampling_steps", "guidance_scale", "micro_batch"
    kept = {name: getattr(settings, name) for name in names}
    return AlignmentSettings(images_per_prompt=1, replay_steps=1, noise_seed=seed, **kept)


# tuning: subjects of the tuning classifiers; heldout: of the held-out classifier, the anatomical
# measurement and the target's quantiles; test: the calibration set, and what generated images are
# compared with.
FRACTIONS = {"tuning": 0.30, "heldout": 0.25, "test": 0.45}


def cohort(settings: BrainSettings) -> Artifact[Cohort]:
    """The target cohort: every slice, subjects without a known sex included."""
    if settings.cohort == "phantom":
        effect, seed = settings.effect, settings.cohort_seed
        return phantom_brats(PhantomSettings(settings.subjects, effect=effect, seed=seed))
    root = Path(settings.data_dir).expanduser()
    volumes = [path for subject in find_subjects(root) for path in subject.files.values()]
    tables = [root / "name_mapping.csv", *find_biotabs(root)]
    return Artifact.files(root, [*tables, *volumes], read_cohort)


def read_cohort(folder: Path) -> Cohort:
    """Read BraTS in `folder`, or in the folder `brats` of a stage; slices are cached in `runs/`."""
    root = folder / "brats" if (folder / "brats").is_dir() else folder
    return read_brats(root, cache_dir=runs_folder() / "slices" / root.name)


@stage(load=read_cohort, verify=False)
def phantom_brats(out: Path, progress: Progress, settings: PhantomSettings) -> None:
    """Write the synthetic cohort; a killed attempt goes on where it was."""
    work = out / "working" / "brats"
    write_brats(work, settings, lambda rows: progress.track(rows, len(rows), "synthetic subjects"))
    work.rename(out / "brats")


def training_cohort(
    settings: BrainSettings, seed: int = RadiologySettings.seed
) -> Artifact[Cohort]:
    """A ROCO-shaped sample; with the default seed, the first slices that the generator was trained
    on.
    """
    slices, effect = settings.radiology, settings.effect
    return phantom_roco(RadiologySettings(slices, validation=0, effect=effect, seed=seed))


def read_training(folder: Path) -> Cohort:
    """Read the ROCO layout in the folder of a stage."""
    return read_roco(folder / "roco")


@stage(load=read_training, verify=False)
def phantom_roco(out: Path, progress: Progress, settings: RadiologySettings) -> None:
    """Write the synthetic training slices."""
    label = "synthetic slices"
    write_roco(out / "roco", settings, lambda rows: progress.track(rows, len(rows), label))


def split(everyone: Cohort, seed: int) -> dict[str, Cohort]:
    """Subjects with a known sex, split by subject into `FRACTIONS`."""
    return everyone.with_known_sex().split(FRACTIONS, seed=seed)


def splits(settings: BrainSettings) -> dict[str, Cohort]:
    """The parts of the study's cohort."""
    return split(cohort(settings).load(), settings.split_seed)


def female_shares(everyone: Cohort, target: str | float = "marginal") -> dict[str, float]:
    """The female share requested of each prompt group (grade), counted in subjects of the cohort.

    "marginal": the cohort's share for every prompt; "conditional": each grade its own; a number:
    that share for every prompt.
    """
    if not isinstance(target, str):
        return {"HGG": target, "LGG": target}
    subjects = everyone.with_known_sex().by_subject(("sex", "grade"))
    overall = float((subjects.sex == "F").mean())
    if target == "marginal":
        return {"HGG": overall, "LGG": overall}
    return {grade: float((rows.sex == "F").mean()) for grade, rows in subjects.groupby("grade")}


def target_share(settings: BrainSettings, target: str = "marginal") -> dict[str, float]:
    """`female_shares` of the study's cohort."""
    return female_shares(cohort(settings).load(), target)


def phantom_truth(settings: BrainSettings) -> pd.DataFrame | None:
    """What is known of synthetic subjects alone: subject, sex, grade, age, side, log_size, known.

    One row a subject; None for a real cohort.
    """
    if settings.cohort != "phantom":
        return None
    truth = pd.read_csv(cohort(settings).folder / "brats" / "truth.csv")
    return truth.rename(columns={"brats": "subject"})


# ---- prompts

SIDES = ("left", "right")


@dataclass(frozen=True)
class Prompt:
    """A prompt and what it asks for. `group` is the prompt group of the conditional target."""

    text: str
    contrast: str
    grade: str
    side: str

    @property
    def group(self) -> str:
        """The grade."""
        return self.grade


Prompts = tuple[Prompt, ...]
WORDS = {"contrast": CONTRASTS, "group": GRADES, "side": SIDES}  # of a table of prompts


def mirrored(text: str) -> str:
    """The caption of the same slice seen in a mirror: "left" and "right" change places, all else
    stays.
    """
    return re.sub(r"\b(left|right)\b", lambda word: SIDES[1 - SIDES.index(word[0])], text)


def _prompt(contrast: str, grade: str, side: str) -> Prompt:
    return Prompt(caption(contrast, grade, side), contrast, grade, side)


# Every contrast with every grade; the side alternates, so that each occurs four times.
EVALUATION_PROMPTS = tuple(
    _prompt(contrast, grade, SIDES[(i + j) % 2])
    for i, contrast in enumerate(CONTRASTS)
    for j, grade in enumerate(GRADES)
)
# The same and one prompt a contrast without a tumour: "tumour" can only be checked where some ask
# for none.
FIDELITY_PROMPTS = EVALUATION_PROMPTS + tuple(
    _prompt(contrast, "none", "none") for contrast in CONTRASTS
)


def prompts_of(settings: BrainSettings) -> Prompts:
    """The evaluation prompts, or those of the table `settings.prompts`: columns `prompt`,
    `contrast`, `group` (the grade) and `side`, in the words that the evaluation prompts have.

    Raises `DataError` on a missing column and another word, and unless there are four prompts or
    more, of both grades, one of a contrast, grade and side.
    """
    if not settings.prompts:
        return EVALUATION_PROMPTS
    table = read_prompts(settings.prompts)
    group_codes(table, WORDS)  # refuses others
    if len(table) < 4 or table.duplicated([*WORDS]).any() or table["group"].nunique() < len(GRADES):
        found = f"{settings.prompts}: {len(table)} prompts"
        raise DataError(f"{found}; give four or more, of both grades, one a contrast and side")
    return tuple(Prompt(*row) for row in table[["prompt", *WORDS]].itertuples(index=False))


def smaller(images: int) -> dict[str, int]:
    """Settings of a run with few images: calibration sets in proportion."""
    return {"calibration": 4 * images, "denoised": images, "pairs": images // 2}
