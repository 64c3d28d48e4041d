"""The settings of the fundus study (Luo et al., arXiv 2412.20374), and its patients: those the
generator was trained on, and the others, part by part.

As in the paper, two other cohorts take the same way: dermoscopic images (HAM10000) and chest
radiographs (CheXpert), with the attributes that they state. They show no optic disc, so for them
the study has no cup-to-disc ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.cohorts import ham10000
from fairlib.cohorts.chexpert import read_chexpert
from fairlib.cohorts.cohort import Cohort
from fairlib.cohorts.fairgenmed import FOLDERS, PROMPTED, USES, read_fairgenmed
from fairlib.cohorts.tables import ATTRIBUTES, RACES, SEXES, group_codes
from fairlib.errors import DataError, SettingsError
from fairlib.io import to_bytes
from fairlib.methods.finetuning import FinetuneSettings
from fairlib.rng import numpy_rng
from fairlib.settings import Count, Natural, check_bounds, digest, require_known
from studies.engine import StudyStream
from studies.engine.images import Images, load_images, save_images
from studies.engine.profiles import settings_from
from studies.engine.recipe import training_part, training_subjects
from studies.engine.stage import Artifact, Progress, in_blocks, stage
from studies.engine.study import Source, release_folder
from studies.fundus.phantom import PhantomSettings, draw_fundus, patient_of, row_of, use_of

BASE, EVERYONE, REAL = "base", "everyone", "real"
"""References that the arms are compared with: the generator before any fine-tuning, whose denoiser
was trained on White patients alone; one that was trained on all patients from the beginning; and
real images of the patients whose prompts are requested.
"""
UNTUNED = (BASE, EVERYONE)


CUP = "cdr_status"  # stated of fundus images alone
Values = tuple[str, ...]
First = tuple[str, Values]  # an attribute and its values


@dataclass(frozen=True)
class Vocabulary:
    """What a cohort states of its patients, and what is asked of its images.

    stated: every attribute and condition of a prompt with its values. compared: the attributes
    whose groups are compared; parts are even over the first, distances are taken within its groups,
    and the criteria are of them. learnt: the conditions that the classifiers of the semantic
    correlation learn, the first of which is a stratum of the bootstrap. unread: what no classifier
    reads from an image. channels: of the images, 1 or 3.
    """

    stated: tuple[First, ...]  # pairs, so that their order is part of a key
    compared: Values
    learnt: Values
    unread: Values = ()
    channels: int = 1

    def only(self, names: Values) -> dict[str, Values]:
        """Some of what is stated, with its values."""
        return {name: dict(self.stated)[name] for name in names}

    @property
    def attributes(self) -> dict[str, Values]:
        """The attributes whose groups are compared, with their values."""
        return self.only(self.compared)

    @property
    def has_disc(self) -> bool:
        """Whether there is an optic disc, with a cup, to measure."""
        return CUP in self.learnt

    @property
    def strata(self) -> Values:
        """Columns within whose values patients are drawn again."""
        return (*self.compared, self.learnt[0])

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of groups of each attribute."""
        return tuple(map(len, self.attributes.values()))

    def codes(self, table: pd.DataFrame) -> np.ndarray:
        """Codes [N, A] of the attributes that are compared."""
        return group_codes(table, self.attributes)

    @property
    def groups(self) -> Values:
        """All groups, attribute after attribute."""
        return sum(self.attributes.values(), ())

    @property
    def first(self) -> First:
        """The attribute that parts are even over, and its values."""
        return self.compared[0], dict(self.stated)[self.compared[0]]


FINDING = "Pleural Effusion"
STATED = tuple(PROMPTED.items()), tuple(ham10000.PROMPTED.items())
FUNDUS = Vocabulary(STATED[0], tuple(ATTRIBUTES), ("glaucoma", CUP), ("refraction",))
SKIN = Vocabulary(STATED[1], tuple(ham10000.ATTRIBUTES), ("category",), channels=3)
OF_CHEST = {"race": RACES, "sex": SEXES, "finding": (f"non {FINDING}", FINDING)}
CHEST = Vocabulary(tuple(OF_CHEST.items()), ("race", "sex"), ("finding",))


@dataclass(frozen=True)
class FundusSettings:
    """Everything that the fundus study depends on.

    cohort: "phantom", or one of `RELEASES` (the real layout under `data_dir`). weights: the
    pipeline folder that fine-tuning starts from; the phantom's cohort to fine-tune on is read from
    its manifest. everyone: the folder of reference "everyone"; empty, without it. train_subjects:
    0, all of the cohort. steps ... window: see `methods.finetuning` and `methods.perturbation`; one
    learning rate for all arms. probe_subjects: held-out patients, even over the groups, from whom
    the probe takes `probe_per_group` of every group; it is measured every `probe_every` steps, each
    patient at `probe_times` noise levels. images: one for each prompt of as many patients;
    guidance_scale, sampling_steps (DPM-Solver++ 2M). evaluator_subjects, evaluator_steps: patients
    that the attribute classifier is fitted on, and how long. reference_subjects: real unseen
    patients that generated images are compared with and that classifiers are tried on.
    semantic_steps: of those classifiers. replicates: bootstrap draws of patients. n_min: patients
    of every class that a group must have for an AUC.
    """

    cohort: Literal["phantom", "fairgenmed", "ham10000", "chexpert"] = "phantom"
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
        if given.cohort not in ("phantom", "fairgenmed"):
            command = f"`python -m studies fundus --cohort {given.cohort}`"
            raise SettingsError(f"the chapter is on fundus images; use {command}")
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

    @property
    def vocabulary(self) -> Vocabulary:
        """What is known of the patients."""
        return FUNDUS if self.cohort == "phantom" else RELEASES[self.cohort].vocabulary

    def finetune(self, seed: int) -> FinetuneSettings:
        """The settings of one fine-tuning; the same for every arm of a seed, so that arms see the
        same noises and, but for "balanced", the same batches.
        """
        names = ("steps", "batch_size", "learning_rate", "warmup", "ema_decay", "probe_every")
        return FinetuneSettings(**{name: getattr(self, name) for name in names}, seed=seed)


BLOCK = 300  # fundi drawn between two saves


@dataclass(frozen=True)
class Part:
    """One part of the patients; none is in two parts.

    use: the release's own part that it is taken from; fraction: of the subjects of a release that
    has no test set of its own. seed: of the phantom's patients; None, those the generator was
    trained on. share: each race is cut at one `share`-th of it; rest: the part is what comes after
    the cut. even: groups of equal size (real patients: those of the first attribute alone).
    """

    use: str
    fraction: float
    seed: int | None = None
    share: int = 1
    rest: bool = False
    even: bool = False


PARTS = {
    "train": Part(USES[0], 0.6),
    "evaluators": Part(USES[1], 0.15, 311, share=5, rest=True),
    "probe": Part(USES[1], 0.05, 312, share=5),
    "requested": Part(USES[2], 0.1, 313, share=2, even=True),
    "reference": Part(USES[2], 0.1, 314, share=2, rest=True, even=True),
}
"""evaluators: classifiers of real images are fitted on them. probe: see `FundusSettings`.
requested: their prompts are requested, and their real images are the floor of every measure.
reference: real unseen patients.
"""


def subjects(settings: FundusSettings, part: str) -> Artifact[Images]:
    """The patients of one of `PARTS`, drawn or read on first use.

    Columns of the table: those of the cohort (see `cohorts.fairgenmed`), a phantom's `cdr` among
    them. Raises `DataError` on an unknown part.
    """
    require_known(part, PARTS, "the parts of the fundus study", DataError)
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
    if settings.cohort in RELEASES:
        table = _release(settings).load().table
    else:
        table = rows_of("train", each_settings(_training_subjects(settings), even=False))
    return digest(table.round(4).to_csv(index=False))


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
    numbers = {"female": index // 3, "hispanic": index // 6, "glaucoma": index // 12}
    shares = {name: float(number % 2) for name, number in numbers.items()}
    return replace(settings, white=float(race == "White"), black=float(race == "Black"), **shares)


def each_settings(drawn: PhantomSettings, even: bool) -> list[PhantomSettings]:
    """The settings that each patient of a part is drawn with."""
    return [even_settings(drawn, i) if even else drawn for i in range(drawn.subjects)]


def rows_of(part: str, each: list[PhantomSettings]) -> pd.DataFrame:
    """The table of a part, without drawing an eye; subjects are named after their part."""
    patients = [patient_of(one, i)[1] for i, one in enumerate(each)]
    rows = [row_of(one, f"{part}-{i:05d}", use_of(i)) for i, one in enumerate(patients)]
    return pd.DataFrame(rows)


@stage(load=load_images, verify=False)
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
    save_images(out, tensors["images"], rows_of(part, each))


def _training_subjects(settings: FundusSettings) -> PhantomSettings:
    seeds = {name: part.seed for name, part in PARTS.items()}
    return training_part(trained_on(settings), settings.train_subjects, seeds)


def _synthetic(settings: FundusSettings, part: str, count: int) -> Artifact[Images]:
    train, seed = _training_subjects(settings), PARTS[part].seed
    if seed is None:
        return draw_subjects(part, train, False)
    return draw_subjects(part, PhantomSettings(subjects=count, seed=seed), True)


# ---- real patients


def read_release(folder: Path) -> Cohort:
    """FairGenMed's patients that have a prompt."""
    return read_fairgenmed(folder).with_prompt()


def read_skin(folder: Path) -> Cohort:
    """HAM10000's images, in colour."""
    return ham10000.read_ham10000(folder)


def read_chest(folder: Path) -> Cohort:
    """CheXpert's frontal images that have a prompt; a label that is uncertain counts as absent, as
    in the paper's code.
    """
    return read_chexpert(folder, uncertain="zeros", label=FINDING).with_prompt()


class Release(NamedTuple):
    """A cohort of real patients.

    name: of the release. read: what reads its folder. holds: a table that tells the folder. files:
    patterns of what the folder holds. own_test: whether the release has a test set; where it has
    none, subjects are split by `Part.fraction`, and all parts but training are even.
    """

    name: str
    read: Callable[[Path], Cohort]
    vocabulary: Vocabulary
    holds: str
    files: tuple[str, ...]
    own_test: bool = False


FUNDI = ("*.csv", *(f"{use}/*.*" for use in FOLDERS.values()))
CHESTS = ("**/*.csv", "../CHEXPERT DEMO.*", "**/*.xlsx", "**/*.jpg", "**/*.png")
RELEASES = {
    "fairgenmed": Release("FairGenMed", read_release, FUNDUS, "data_summary.csv", FUNDI, True),
    "ham10000": Release("HAM10000", read_skin, SKIN, "HAM10000_metadata.csv", ("**/*.*",)),
    "chexpert": Release("CheXpert", read_chest, CHEST, "train.csv", CHESTS),
}


@stage(load=load_images, verify=False)
def read_subjects(
    out: Path,
    progress: Progress,
    cohort: Artifact[Cohort],
    release: Release,
    part: str,
    split_seed: int,
    count: int,
) -> None:
    """Read the images of one part of a release; `count`: the most patients of a part (0: all)."""
    which, everyone = PARTS[part], cohort.load()
    if release.own_test:
        name, parts = which.use, everyone.parts()
    else:
        fractions = {name: each.fraction for name, each in PARTS.items()}
        name, parts = part, everyone.split(fractions, split_seed, stratify=())
        which = replace(which, share=1, rest=False, even=True)
    if name not in parts:
        what = f"{cohort.folder}: no patient with a prompt has use {name!r}"
        raise DataError(f"{what}; the study needs {', '.join(USES)}")
    whole = parts[name]
    rows = real_rows(whole.table, which, split_seed, count, release.vocabulary.first)
    progress.say(f"reading {len(rows)} images of part {part}")
    save_images(out, to_bytes(whole.load(rows)), whole.table.iloc[rows])


def real_rows(
    table: pd.DataFrame, part: Part, split_seed: int, count: int, first: First = FUNDUS.first
) -> np.ndarray:
    """Which rows of the release's own part a part of the study takes.

    "train": all of training (or the first `count`). Of validation a fifth of each race for the
    probe, the rest for the evaluators. Of test one half of each race is requested and the other is
    the reference, cut to equal numbers of every race, with one image a subject. `first`: the
    attribute that takes the place of race, and its values. Raises `DataError` when one is missing.
    """
    if part.seed is None:
        return np.arange(len(table))[: count or None]
    rng = numpy_rng(split_seed, StudyStream.REAL_ROWS)
    (by, values), usable = first, ~(table["subject"].duplicated() & part.even)
    found = [((table[by] == value) & usable).to_numpy(bool) for value in values]
    groups = [rng.permutation(np.flatnonzero(rows)) for rows in found]
    edges = [max(1, len(rows) // part.share) for rows in groups]
    pairs = zip(groups, edges, strict=True)
    chosen = [rows[edge:] if part.rest else rows[:edge] for rows, edge in pairs]
    missing = [value for value, rows in zip(values, chosen, strict=True) if not len(rows)]
    if missing:
        what = f"no patient left of {by} {', '.join(missing)} among {len(table)}"
        raise DataError(f"{what}; give more data")
    each = min(count // len(values), *map(len, chosen)) if part.even else None
    return np.sort(np.concatenate([rows[:each] for rows in chosen]))


def _release(settings: FundusSettings) -> Artifact[Cohort]:
    chosen = RELEASES[settings.cohort]
    return release_folder(settings, chosen.holds, chosen.files, chosen.read)


def _real(settings: FundusSettings, part: str, count: int) -> Artifact[Images]:
    chosen = RELEASES[settings.cohort]
    return read_subjects(_release(settings), chosen, part, settings.split_seed, count)


TRAIN = partial(subjects, part="train")
SOURCES: dict[str, Source[FundusSettings]] = {"phantom": Source(TRAIN, cohort_digest)}
SOURCES |= {k: Source(TRAIN, cohort_digest, f"patients of {r.name}") for k, r in RELEASES.items()}
