"""The settings of the heart study (Skorupko et al., arXiv 2403.19508), and its subjects: the
generator's training set, and those it never saw, part by part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from fairlib.cohorts import acdc, mnms
from fairlib.cohorts.acdc import read_acdc
from fairlib.cohorts.cardiac import check_diagnoses, stack
from fairlib.cohorts.cohort import Cohort, report
from fairlib.cohorts.mnms import read_mnms
from fairlib.errors import DataError, SettingsError
from fairlib.io import read_tensors, to_bytes, to_images, write_bytes, write_tensors
from fairlib.methods.downstream import ImageTable
from fairlib.models.segmenter import frames_of
from fairlib.settings import Count, Natural, Positive, check_bounds, digest
from studies.engine import runs_folder
from studies.engine.profiles import settings_from
from studies.engine.recipe import training_part, training_subjects
from studies.engine.stage import Artifact, Progress, in_blocks, stage
from studies.engine.study import Source, read_table, release_folder
from studies.heart.phantom import PhantomSettings, draw_hearts, table_of

NO_PROMPTS = "ACDC states neither sex nor age, so the study has its re-segmenter's Dice alone"
PAPER_GUIDANCE = 4.0  # of copies; the paper's code draws new combinations at 9


@dataclass(frozen=True)
class HeartSettings:
    """Everything that the stages of the heart study depend on.

    cohort: "phantom", or "mnms" or "acdc" (the real layout under `data_dir`). diagnoses: pathology
    code of a real cohort to "healthy", "heart failure" or None, beside those that its reader knows.
    weights: the pipeline folder;
    the phantom's training subjects are read from its manifest, so that they are exactly those the
    generator was trained on. controlnet: folder or hub name of a ControlNet for a plain Stable
    Diffusion given as `weights`.
    train_subjects: 0, all of them; fewer only to see that everything runs, because synthetic images
    would then know subjects that real-only training does not.
    classifier_subjects: real subjects that the downstream classifiers train on: 0, the generator's
    own training subjects, so that nobody else enters through the synthetic images. More: only so
    many of them, as in a small hospital that uses a generator and masks shared by a large one;
    synthetic images then carry subjects that real-only training never saw. segmenter_steps,
    evaluator_steps, classifier_steps: optimiser steps of the re-segmenter, of the other evaluators,
    and of the downstream classifier in all its phases. *_subjects: synthetic subjects drawn for a
    part (see `part_settings`); of a real cohort each part is a share (`FRACTIONS`).
    images: generated in each way and measured; synthetic: copies that the downstream classifiers
    train on; flips: images drawn again with one word of the prompt changed. guidance_scale: the
    paper's for copies; at another one the hearts are measured, and no classifier trains on them.
    replicates: bootstrap draws of an interval. n_min: ill and healthy subjects that a subgroup of
    the downstream tables must have.
    """

    cohort: Literal["phantom", "mnms", "acdc"] = "phantom"
    data_dir: str = ""
    diagnoses: dict[str, str | None] = field(default_factory=dict)
    weights: str = "weights/heart"
    controlnet: str = ""
    split_seed: Natural = 0
    train_subjects: Natural = 0
    classifier_subjects: Natural = 0
    segmenter_steps: Count = 800
    evaluator_steps: Count = 800
    classifier_steps: Count = 400
    evaluator_subjects: Count = 3000
    heldout_subjects: Count = 800
    validation_subjects: Count = 2000
    choice_subjects: Count = 2000
    test_subjects: Count = 4000
    images: Count = 800
    synthetic: Count = 2000
    flips: Count = 100
    sampling_steps: Count = 8
    guidance_scale: Positive = PAPER_GUIDANCE
    batch_size: Count = 50
    replicates: Count = 1000
    n_min: Count = 10

    def __post_init__(self):
        check_bounds(self)
        check_diagnoses(self.diagnoses)
        if self.classifier_subjects and self.guidance_scale != PAPER_GUIDANCE:
            raise SettingsError(
                f"HeartSettings: classifier_subjects {self.classifier_subjects} and guidance_scale "
                f"{self.guidance_scale:g}: change one of them at a time"
            )

    @classmethod
    def from_parameters(cls, parameters: Any) -> HeartSettings:
        """The study at the size that the parameters of a notebook ask for: `test_subjects`,
        `evaluator_steps` and `images` set the others in the ratios of the long runs.
        """
        if parameters.cohort == "acdc":
            raise SettingsError(f"{NO_PROMPTS}; use `python -m studies heart --cohort acdc`")
        subjects, images = parameters.test_subjects, parameters.images
        steps = parameters.evaluator_steps
        return settings_from(
            cls,
            parameters,
            evaluator_subjects=subjects * 3 // 4,
            heldout_subjects=subjects // 5,
            validation_subjects=subjects // 2,
            choice_subjects=subjects // 2,
            segmenter_steps=steps,
            evaluator_steps=steps,
            classifier_steps=steps // 2,
            synthetic=images * 5 // 2,
            flips=images // 8,
            replicates=min(cls.replicates, images * 2),
            n_min=min(cls.n_min, max(1, subjects // 120)),
        )

    @property
    def name(self) -> str:
        """ "heart", or what the study is beside the main one, "heart-shared" or "heart-guidance2":
        its folder in `results/`.

        Real patients never lie among synthetic ones: "heart-mnms", "heart-mnms-shared" ...
        """
        name = "heart" if self.cohort == "phantom" else f"heart-{self.cohort}"
        if self.classifier_subjects:
            return f"{name}-shared"
        scale = self.guidance_scale
        return name if scale == PAPER_GUIDANCE else f"{name}-guidance{scale:g}"

    @property
    def draws_hearts(self) -> bool:
        """Whether the tables on generated hearts are this study's own; with `classifier_subjects`
        they are the main study's. Of ACDC's patients no heart can be requested.
        """
        return not self.classifier_subjects and self.cohort != "acdc"

    @property
    def trains_classifiers(self) -> bool:
        """Whether downstream classifiers belong to it; at another guidance scale than the paper's
        none is trained, nor without subgroups (ACDC).
        """
        return self.guidance_scale == PAPER_GUIDANCE and self.cohort != "acdc"


# Evaluators are fitted and tried on subjects drawn evenly, so that they err alike in every
# subgroup. Ages keep their natural spread among the tested, because age tertiles are those of the
# training subjects.
EVEN = dict.fromkeys(("heart_failure", "female_healthy", "female_heart_failure"), 0.5)
EVEN |= dict.fromkeys(("normal_bmi_healthy", "normal_bmi_heart_failure"), 0.4)
YOUNG = {"young_healthy": 0.25, "young_heart_failure": 0.25}


def part_settings(
    settings: HeartSettings, trained_on: PhantomSettings
) -> dict[str, PhantomSettings]:
    """Which subjects each part of the phantom cohort draws. Every part has a seed of its own; no
    subject is in two.

    train: the generator's own training subjects, and the real training set of every classifier.
    evaluators: those the evaluators are fitted on. heldout, reference: two halves of unseen
    subjects; the first lend their masks and prompts, the second are those generated images are
    compared with. validation: natural shares at the paper's prevalence 0.10. choice: where the best
    synthetic arm is chosen; test: where it is evaluated. extra: more subjects like `train`, for the
    upper bound. Raises `SettingsError` when a part would draw the training subjects again.
    """

    def drawn(seed: int, count: int, **shares: float) -> PhantomSettings:
        return PhantomSettings(subjects=count, seed=seed, **shares)

    parts = {
        "evaluators": drawn(211, settings.evaluator_subjects, **EVEN, **YOUNG),
        "heldout": drawn(212, settings.heldout_subjects, **EVEN),
        "reference": drawn(213, settings.heldout_subjects, **EVEN),
        "validation": drawn(214, settings.validation_subjects, heart_failure=0.10),
        "choice": drawn(215, settings.choice_subjects, **EVEN),
        "test": drawn(216, settings.test_subjects, **EVEN),
        "extra": replace(trained_on, seed=217, subjects=settings.synthetic),
    }
    seeds = {name: part.seed for name, part in parts.items()}
    return {"train": training_part(trained_on, settings.train_subjects, seeds), **parts}


# Of the subjects of a real cohort; there is no `extra` among them. Of 300, as M&Ms may leave, 60
# are tested, and 24 lend masks.
FRACTIONS = {
    "train": 0.34,
    "evaluators": 0.12,
    "heldout": 0.08,
    "reference": 0.08,
    "validation": 0.08,
    "choice": 0.10,
    "test": 0.20,
}
REAL = {  # reader, codes that it knows, what its folder holds, shares of the parts
    "mnms": (read_mnms, mnms.DIAGNOSES, "OpenDataset", FRACTIONS),
    "acdc": (read_acdc, acdc.DIAGNOSES, "training", {"evaluators": 0.6, "test": 0.4}),
}
FILES = tuple(f"**/{name}" for name in ("*_*.nii*", "*.csv", "*.xlsx", "*.cfg"))
BLOCK = 250  # hearts drawn between two saves


@dataclass(frozen=True, eq=False)
class Hearts(ImageTable):
    """Images float32 [N, 3, 64, 64] (ED, ES, ED), masks uint8 [N, 2, 64, 64] and their table, one
    row each. Of generated hearts, masks and table are those that were requested.
    """

    masks: Tensor = field(default=None, repr=False)

    def __post_init__(self):
        super().__post_init__()
        count = 0 if self.masks is None else len(self.masks)
        if count != len(self.images):
            raise DataError(f"{len(self.images)} images and {count} masks; give one for each")

    def take(self, rows) -> Hearts:
        """The hearts at these positions."""
        rows = torch.as_tensor(rows)
        table = self.table.iloc[rows.numpy()].reset_index(drop=True)
        return Hearts(self.images[rows], table, self.masks[rows])

    def first(self, count: int) -> Hearts:
        """The first `count` hearts, or all where there are fewer."""
        return self.take(range(min(count, len(self))))


def read_hearts(folder: Path) -> Hearts:
    """What a stage has written: `hearts.safetensors` (images and masks uint8 [N, 2, H, W]) and
    `hearts.csv`.
    """
    tensors = read_tensors(folder / "hearts.safetensors")
    images = stack(to_images(tensors["images"]))
    return Hearts(images, read_table(folder / "hearts.csv"), tensors["masks"])


def write_hearts(out: Path, tensors: dict[str, Tensor], table: pd.DataFrame) -> None:
    """Write tensors (see `as_stored`) and `table` for `read_hearts`."""
    write_bytes(out / "hearts.csv", table.to_csv(index=False).encode())
    write_tensors(out / "hearts.safetensors", tensors)


def as_stored(images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """ED and ES of images [N, 3, H, W] as bytes, with their masks."""
    return {"images": to_bytes(frames_of(images)), "masks": masks}


@stage(load=read_hearts, verify=False)
def draw_part(out: Path, progress: Progress, part: str, settings: PhantomSettings) -> None:
    """Draw the subjects of a part of the phantom cohort; they are named after their part."""

    def draw(block: range) -> dict[str, Tensor]:
        return as_stored(*draw_hearts(settings, block)[:2])

    label = f"synthetic hearts, {part}"
    tensors = in_blocks(out, progress, settings.subjects, BLOCK, label, draw)
    write_hearts(out, tensors, table_of(settings, part))


@stage(load=read_hearts, verify=False)
def read_part(
    out: Path, progress: Progress, cohort: Artifact[Cohort], part: str, shares: dict, seed: int
) -> None:
    """Read the images of a part of a real cohort, split by subject; shares: part -> fraction of
    the subjects.
    """
    chosen = cohort.load().split(shares, seed=seed)[part]
    progress.say(f"reading {len(chosen)} hearts, {part}")
    write_hearts(out, as_stored(chosen.load(), chosen.load_masks()), chosen.table)


def trained_on(settings: HeartSettings) -> PhantomSettings:
    """Which subjects the generator was trained on, as its manifest says.

    Raises `WeightsError` when it does not say so.
    """
    otherwise = "a comparison with real images of the same subjects needs them: use cohort 'mnms'"
    return training_subjects(settings.weights, PhantomSettings, "hearts", "heart", otherwise)


def part(settings: HeartSettings, name: str) -> Artifact[Hearts]:
    """The hearts of one part of the study (see `part_settings`); drawn or read on first
    use. Raises `DataError` on a part that the cohort does not have.
    """
    real = settings.cohort in REAL
    parts = REAL[settings.cohort][-1] if real else part_settings(settings, trained_on(settings))
    if name not in parts:
        raise DataError(f"part {name!r}: this cohort has {', '.join(parts)} and no other subjects")
    if real:
        return read_part(real_cohort(settings), name, parts, settings.split_seed)
    return draw_part(name, parts[name])


def real_cohort(settings: HeartSettings) -> Artifact[Cohort]:
    """The patients of M&Ms whose attributes are complete, or all of ACDC."""
    reader = _reader(settings.cohort, tuple(settings.diagnoses.items()))
    found = release_folder(settings, REAL[settings.cohort][2], FILES, reader)
    return replace(found, digest=digest([found.digest, settings.diagnoses]))


def left_out(settings: HeartSettings) -> pd.DataFrame:
    """The patients of a real cohort who are in no part: item (subject), reason, detail."""
    return report() if settings.cohort == "phantom" else real_cohort(settings).load().excluded


@lru_cache  # one and the same function for the same codes, or a release would be read again
def _reader(cohort: str, diagnoses: tuple[tuple[str, str | None], ...]) -> Callable:
    def read(root: Path) -> Cohort:
        reader, known = REAL[cohort][:2]
        where = runs_folder() / "slices" / cohort
        found = reader(root, diagnoses={**known, **dict(diagnoses)}, cache_dir=where)
        return found if "prompt" in found.not_stated else found.with_prompt()

    return read


def cohort_digest(settings: HeartSettings) -> str:
    """Which patients are in the cohort, and what is known of them; of a synthetic one, those the
    generator was trained on.
    """
    real = settings.cohort != "phantom"
    table = (real_cohort(settings) if real else part(settings, "train")).load().table
    return digest(table.to_csv(index=False))


TRAIN = partial(part, name="train")
SOURCES: dict[str, Source[HeartSettings]] = {
    "phantom": Source(TRAIN, cohort_digest),
    "mnms": Source(TRAIN, cohort_digest, "patients of M&Ms"),
    "acdc": Source(partial(part, name="evaluators"), cohort_digest, "patients of ACDC"),
}
