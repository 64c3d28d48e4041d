"""The settings of the fundus study (Luo et al., arXiv 2412.20374), and its patients: those the
generator was trained on, and the others, part by part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.cohorts.cohort import Cohort
from fairlib.cohorts.fairgenmed import (
    CDR_STATUSES,
    FOLDERS,
    GLAUCOMA,
    PROMPTED,
    USES,
    read_fairgenmed,
)
from fairlib.cohorts.tables import RACES, group_codes
from fairlib.errors import DataError, SettingsError
from fairlib.io import read_tensors, to_bytes, to_images, write_bytes, write_tensors
from fairlib.methods.finetuning import FinetuneSettings
from fairlib.rng import numpy_rng
from fairlib.settings import Count, Natural, check_bounds, digest, unknown_key
from studies.engine import StudyStream
from studies.engine.profiles import settings_from
from studies.engine.recipe import training_part, training_subjects
from studies.engine.stage import Artifact, Progress, in_blocks, stage
from studies.engine.study import Source, read_table
from studies.fundus.phantom import PhantomSettings, draw_fundus, patient_of, row_of, use_of

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
    manifest. everyone: the folder of reference "everyone"; empty, without it. train_subjects: 0,
    all of the cohort. steps ... window: see `methods.finetuning` and `methods.perturbation`; one
    learning rate for all arms. probe_subjects: held-out patients, even over the groups, from whom
    the probe takes `probe_per_group` of every group; it is measured every `probe_every` steps, each
    patient at `probe_times` noise levels. images: one for each prompt of as many patients;
    guidance_scale, sampling_steps (DPM-Solver++ 2M). evaluator_subjects, evaluator_steps: patients
    that the attribute classifier is fitted on, and how long. reference_subjects: real unseen
    patients that generated images are compared with and that classifiers are tried on.
    semantic_steps: of those classifiers. replicates: bootstrap draws of patients. n_min: patients
    of every class that a group must have for an AUC.
    """

    cohort: Literal["phantom", "fairgenmed"] = "phantom"
    data_dir: str = ""
    weights: str = "weights/fundus-white"
    everyone: str = "weights/fundus"
    split_seed: Natural = 0
    train_subjects: Natural = 0
    # Steps and rate were chosen on the probe's loss of plain fine-tuning at seed 0 (3e-4 ends lower
    # than 1e-3), on no evaluator.
    steps: Count = 180
    batch_size: Count = 32
    learning_rate: float = 3e-4
    warmup: Natural = 0
    ema_decay: float = 0.99
    window: Count = 30
    probe_subjects: Count = 48
    probe_per_group: Count = 8
    probe_times: Count = 3
    probe_every: Count = 6
    images: Count = 600
    sampling_steps: Count = 8
    guidance_scale: float = 2.0
    sample_batch: Count = 50
    evaluator_subjects: Count = 2400
    evaluator_steps: Count = 600
    reference_subjects: Count = 900
    semantic_steps: Count = 200
    replicates: Count = 300
    n_min: Count = 10

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.reference_subjects < self.images:
            raise SettingsError(
                f"FundusSettings: {self.reference_subjects} reference_subjects for {self.images} "
                "images; distances are taken at equal numbers, so give at least as many"
            )

    @classmethod
    def from_parameters(cls, parameters: Any) -> FundusSettings:
        """The study at the size that the parameters of a notebook ask for: what they leave out
        follows from what they give, as in the long runs. Of other weights there is no generator
        that was trained on everyone.
        """
        given, steps = parameters, parameters.evaluator_subjects // 4
        return settings_from(
            cls,
            given,
            everyone=cls.everyone if given.weights == cls.weights else "",
            window=max(2, given.steps // 6),
            probe_every=max(1, given.steps // 30),
            reference_subjects=given.images * 3 // 2,
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


BLOCK = 300  # fundi drawn between two saves


@dataclass(frozen=True, eq=False)
class Fundi:
    """Images and their table, one row each; `stored`: uint8 [N, 1, 128, 128] (0 is -1, 255 is
    +1).
    """

    stored: Tensor
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    @property
    def images(self) -> Tensor:
        """float32 [N, 1, 128, 128] in [-1, 1]."""
        return to_images(self.stored)

    def first(self, count: int) -> Fundi:
        """At most `count` of them."""
        return Fundi(self.stored[:count], self.table.iloc[:count])

    def groups(self) -> np.ndarray:
        """Codes [N, 3] of race, sex and ethnicity."""
        return group_codes(self.table)


@dataclass(frozen=True)
class Part:
    """One part of the patients; none is in two parts.

    use: the release's own part that it is taken from. seed: of the phantom's patients; None, those
    the generator was trained on. share: each race is cut at one `share`-th of it; rest: the part is
    what comes after the cut. even: groups of equal size (real patients: races alone).
    """

    use: str
    seed: int | None = None
    share: int = 1
    rest: bool = False
    even: bool = False


PARTS = {
    "train": Part(USES[0]),
    "evaluators": Part(USES[1], 311, share=5, rest=True),
    "probe": Part(USES[1], 312, share=5),
    "requested": Part(USES[2], 313, share=2, even=True),
    "reference": Part(USES[2], 314, share=2, rest=True, even=True),
}
"""evaluators: classifiers of real images are fitted on them. probe: see `FundusSettings`.
requested: their prompts are requested, and their real images are the floor of every measure.
reference: real unseen patients.
"""


def subjects(settings: FundusSettings, part: str) -> Artifact[Fundi]:
    """The patients of one of `PARTS`, drawn or read on first use.

    Columns of the table: those of the cohort (see `cohorts.fairgenmed`), a phantom's `cdr` among
    them. Raises `DataError` on an unknown part.
    """
    if part not in PARTS:
        raise DataError(unknown_key(part, list(PARTS), "the parts of the fundus study"))
    counts = {
        "train": settings.train_subjects,
        "evaluators": max(settings.evaluator_subjects, settings.images),
        "probe": settings.probe_subjects,
        "requested": settings.images,
        "reference": settings.reference_subjects,
    }
    make = _synthetic if settings.cohort == "phantom" else _real
    return make(settings, part, counts[part])


def cohort_digest(settings: FundusSettings) -> str:
    """Which patients are in the cohort, and what is known of them; of a synthetic one, those the
    generator was trained on.
    """
    if settings.cohort == "fairgenmed":
        table = _release(settings).load().table
    else:
        table = rows_of("train", each_settings(_training_subjects(settings), even=False))
    return digest(table.round(4).to_csv(index=False))


def read_fundi(folder: Path) -> Fundi:
    """Read a folder of `write_fundi`; a word such as NA stays a word."""
    images = read_tensors(folder / "images.safetensors")["images"]
    return Fundi(images, read_table(folder / "table.csv"))


def write_fundi(folder: Path, stored: Tensor, table: pd.DataFrame) -> None:
    """Write images as bytes and their table."""
    write_tensors(folder / "images.safetensors", {"images": stored})
    write_bytes(folder / "table.csv", table.to_csv(index=False).encode())


# ---- synthetic patients


def trained_on(settings: FundusSettings) -> PhantomSettings:
    """The patients that the generator was trained on, as its manifest says.

    Raises `WeightsError` when it does not say so.
    """
    otherwise = "fine-tuning goes on with them: use cohort 'fairgenmed'"
    return training_subjects(settings.weights, PhantomSettings, "fundi", "fundus", otherwise)


def even_settings(settings: PhantomSettings, index: int) -> PhantomSettings:
    """Shares that leave patient number `index` of an even part no choice of race, sex, ethnicity
    and glaucoma.

    Every 24 patients in a row hold each combination once, so groups are of one size.
    """
    race = RACES[index % 3]
    return replace(
        settings,
        white=float(race == "White"),
        black=float(race == "Black"),
        female=float(index // 3 % 2),
        hispanic=float(index // 6 % 2),
        glaucoma=float(index // 12 % 2),
    )


def each_settings(drawn: PhantomSettings, even: bool) -> list[PhantomSettings]:
    """The settings that each patient of a part is drawn with."""
    return [even_settings(drawn, i) if even else drawn for i in range(drawn.subjects)]


def rows_of(part: str, each: list[PhantomSettings]) -> pd.DataFrame:
    """The table of a part, without drawing an eye; subjects are named after their part."""
    patients = [patient_of(one, i)[1] for i, one in enumerate(each)]
    rows = [row_of(one, f"{part}-{i:05d}", use_of(i)) for i, one in enumerate(patients)]
    return pd.DataFrame(rows)


@stage(load=read_fundi, verify=False)
def draw_subjects(
    out: Path, progress: Progress, part: str, drawn: PhantomSettings, even: bool
) -> None:
    """Draw `drawn.subjects` patients, block by block."""
    each = each_settings(drawn, even)

    def make(block: range) -> dict[str, Tensor]:
        images = np.stack([draw_fundus(each[index], index).image for index in block])
        return {"images": to_bytes(torch.from_numpy(images))}

    label = f"synthetic fundi, {part}"
    tensors = in_blocks(out, progress, drawn.subjects, BLOCK, label, make)
    write_fundi(out, tensors["images"], rows_of(part, each))


def _training_subjects(settings: FundusSettings) -> PhantomSettings:
    seeds = {name: part.seed for name, part in PARTS.items()}
    return training_part(trained_on(settings), settings.train_subjects, seeds)


def _synthetic(settings: FundusSettings, part: str, count: int) -> Artifact[Fundi]:
    train, seed = _training_subjects(settings), PARTS[part].seed
    if seed is None:
        return draw_subjects(part, train, False)
    return draw_subjects(part, PhantomSettings(subjects=count, seed=seed), True)


# ---- real patients


def read_release(folder: Path) -> Cohort:
    """FairGenMed's patients that have a prompt."""
    return read_fairgenmed(folder).with_prompt()


@stage(load=read_fundi, verify=False)
def read_subjects(
    out: Path,
    progress: Progress,
    release: Artifact[Cohort],
    part: Part,
    split_seed: int,
    count: int,
) -> None:
    """Read the images of one part of a release; `count`: the most patients of a part (0: all)."""
    parts = release.load().parts()
    if part.use not in parts:
        raise DataError(
            f"{release.folder}: no patient with a prompt has use {part.use!r}; the study needs "
            f"{', '.join(USES)}"
        )
    whole = parts[part.use]
    rows = real_rows(whole.table, part, split_seed, count)
    progress.say(f"reading {len(rows)} fundi of use {part.use}")
    write_fundi(out, to_bytes(whole.load(rows)), whole.table.iloc[rows])


def real_rows(table: pd.DataFrame, part: Part, split_seed: int, count: int) -> np.ndarray:
    """Which rows of the release's own part a part of the study takes.

    "train": all of training (or the first `count`). Of validation a fifth of each race for the
    probe, the rest for the evaluators. Of test one half of each race is requested and the other is
    the reference, cut to equal numbers of every race. Raises `DataError` when a race is missing.
    """
    if part.share == 1:
        return np.arange(len(table))[: count or None]
    rng = numpy_rng(split_seed, StudyStream.REAL_ROWS)
    races = [rng.permutation(np.flatnonzero((table["race"] == race).to_numpy())) for race in RACES]
    edges = [max(1, len(rows) // part.share) for rows in races]
    chosen = [
        rows[edge:] if part.rest else rows[:edge] for rows, edge in zip(races, edges, strict=True)
    ]
    missing = [race for race, rows in zip(RACES, chosen, strict=True) if not len(rows)]
    if missing:
        raise DataError(
            f"no patient left of race {', '.join(missing)} among {len(table)}; give more data"
        )
    each = min(count // len(RACES), *map(len, chosen)) if part.even else None
    return np.sort(np.concatenate([rows[:each] for rows in chosen]))


def _release(settings: FundusSettings) -> Artifact[Cohort]:
    """The release under `data_dir`, known by names, sizes and times of its files."""
    if not settings.data_dir:
        raise DataError(
            "cohort 'fairgenmed' needs data_dir, the folder that holds data_summary.csv"
        )
    root = Path(settings.data_dir).expanduser()
    files = [
        *root.glob("*.csv"),
        *(file for use in FOLDERS.values() for file in (root / use).glob("*.*")),
    ]
    return Artifact.files(root, files, read_release)


def _real(settings: FundusSettings, part: str, count: int) -> Artifact[Fundi]:
    return read_subjects(_release(settings), PARTS[part], settings.split_seed, count)


SOURCES: dict[str, Source[FundusSettings]] = {
    "phantom": Source(partial(subjects, part="train"), cohort_digest),
    "fairgenmed": Source(partial(subjects, part="train"), cohort_digest, "patients of FairGenMed"),
}
