"""The evaluators of the study: tuning classifiers (which tuning follows), the held-out classifier
and the anatomical measurement (which it never meets).

An evaluator is data: what is fitted, and how that reads images into columns of a table. Each column
of readings is a stage of its own, so that one more evaluator recomputes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fairlib.cohorts.cohort import Cohort
from fairlib.io import write_bytes
from fairlib.measures.shares import Evaluator
from fairlib.methods.targets import class_logits
from fairlib.models.classifier import (
    RESIDUAL,
    ClassifierSettings,
    calibrate,
    find_classifier,
    predict,
    save_classifier,
)
from fairlib.rng import numpy_rng
from fairlib.settings import digest
from studies.brain.anatomy import AREA, AXES, AnatomicalMeasurement, fit_anatomy
from studies.brain.data import BrainSettings, cohort, split
from studies.engine import StudyStream, accelerator
from studies.engine.images import fit_heads, read_classifier
from studies.engine.reach import code_digest
from studies.engine.stage import Artifact, Progress, stage

HEADS = {"female": "binary"}
Fitted = Sequence[Artifact]
Columns = dict[str, np.ndarray]  # [N] each
Read = Callable[[str, Fitted, Tensor, list[str]], Columns]


def combined(members: Fitted) -> nn.Module:
    """The classifier of an evaluator; of several, one that gives the mean of their logits."""
    loaded = [member.load() for member in members]
    if len(loaded) == 1:
        return loaded[0]
    return FunctionClassifier(lambda images: torch.stack([one(images) for one in loaded]).mean(0))


def classify(column: str, members: Fitted, images: Tensor, contrasts: list[str]) -> Columns:
    """Probability of female by a classifier."""
    return {column: predict(combined(members), images).logit.sigmoid().numpy()}


@dataclass(frozen=True, kw_only=True)
class BrainEvaluator(Evaluator):
    """An evaluator, what it reads with and how.

    fit: settings and the seed of a run -> what it reads with. read: its column, what it reads with,
    images [N, 1, H, W] in [-1, 1] and their contrasts -> columns [N] of a table; that of its own
    name holds the probability of female.
    """

    fit: Callable[[BrainSettings, int], Fitted]
    read: Read = classify


@stage(load=read_classifier, ignore=("label",))
def sex_classifier(
    out: Path,
    progress: Progress,
    settings: ClassifierSettings,
    everyone: Artifact[Cohort],
    split_seed: int,
    part: str,
    label: str,
) -> None:
    """Fit a sex classifier on three quarters of a part's subjects, and calibrate it on the rest."""
    inner = split(everyone.load(), split_seed)[part].split({"fit": 0.75, "hold": 0.25}, split_seed)
    fit, hold = inner["fit"], inner["hold"]
    classifier = fit_heads(progress, HEADS, fit.load(), fit.labels(), settings, label)
    images, labels = hold.load(), hold.labels()
    calibrate(classifier, images, labels)
    right = predict(classifier, images).positive() == (labels == 1)
    accuracies = {
        "sensitivity": float(right[labels == 1].float().mean()),
        "specificity": float(right[labels == 0].float().mean()),
    }
    save_classifier(out, classifier, {"hold_out": accuracies})


def read_measurement(folder: Path) -> AnatomicalMeasurement:
    """Read the fitted anatomical measurement."""
    return AnatomicalMeasurement.load(folder / "anatomy.json")


@stage(load=read_measurement)
def anatomical_measurement(
    out: Path,
    progress: Progress,
    everyone: Artifact[Cohort],
    split_seed: int,
    features: tuple[str, ...],
) -> None:
    """Fit the anatomical measurement of `features` on the held-out classifier's subjects."""
    part = split(everyone.load(), split_seed)["heldout"]
    progress.say(f"measuring {len(part)} slices")
    images, contrasts = part.load().numpy(), list(part.table.contrast)
    fitted = fit_anatomy(images, part.labels().numpy(), contrasts, features=features)
    fitted.save(out / "anatomy.json")


@stage(load=read_classifier)
def shuffled_classifier(
    out: Path,
    progress: Progress,
    settings: ClassifierSettings,
    everyone: Artifact[Cohort],
    split_seed: int,
) -> None:
    """Fit a classifier on the subjects of the tuning classifiers, with sexes dealt out anew. It
    learns nothing of sex but what chance leaves in them, which can suffice to rank slices by size.
    """
    part = split(everyone.load(), split_seed)["tuning"]
    subjects, places = np.unique(part.table.subject.to_numpy(str), return_inverse=True)
    labels = np.zeros(len(subjects), dtype=np.float32)
    labels[places] = part.labels().numpy()
    rng = numpy_rng(settings.seed, StudyStream.SHUFFLED)
    dealt = torch.from_numpy(rng.permutation(labels)[places])
    save_classifier(out, fit_heads(progress, HEADS, part.load(), dealt, settings, "shuffled"))


def classifier_settings(settings: BrainSettings, kind: str, seed: int) -> ClassifierSettings:
    """The settings of the tuning classifier `kind`: standard, or robust, trained with an adversary.

    They share an architecture and a seed, so that one thing is all that differs.
    """
    standard = ClassifierSettings(steps=settings.classifier_steps, seed=seed, balance=True)
    return {"standard": standard, "robust": replace(standard, radius=settings.radius)}[kind]


def tuning_classifier(settings: BrainSettings, kind: str, seed: int = 0) -> list[Artifact]:
    """The tuning classifier `kind` ("both": standard and robust), of run `seed` where every run has
    its own; the reader's, if there is one.
    """
    if settings.classifier and kind != "shuffled":
        return [own_classifier(settings.classifier)]
    if kind == "both":
        return [each for one in KINDS[:2] for each in tuning_classifier(settings, one, seed)]
    own = seed if settings.classifier_seed is None else settings.classifier_seed
    kind, _, how = kind.partition("_")
    everyone = cohort(short_training(settings) if how == "short" else settings)
    if kind == "shuffled":
        fit = classifier_settings(settings, "standard", own)
        return [shuffled_classifier(fit, everyone, settings.split_seed)]
    if how == "short":
        settings = short_training(settings)
    fit = classifier_settings(settings, kind, own)
    return [sex_classifier(fit, everyone, settings.split_seed, "tuning", kind)]


class FunctionClassifier(nn.Module):
    """A function of images, such as a classifier of the reader's, as evaluators are read: images
    [N, 1, 128, 128] in [-1, 1] to logits [N], positive for female; of two logits an image, the
    first is of female.
    """

    heads, scalars = HEADS, ("female",)

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function
        self.register_buffer("threshold", torch.zeros(1, device=accelerator()))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return class_logits(self.function(images), 2)

    def read(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The logits by head, and as features."""
        logits = self(images)
        return {"female": logits}, logits[:, None]


def read_own(place: Path) -> FunctionClassifier:
    """Read a classifier of the reader's (`find_classifier`)."""
    return FunctionClassifier(find_classifier(str(place), accelerator()))


def own_classifier(name: str) -> Artifact[FunctionClassifier]:
    """A classifier of the reader's; a function is known by the code of its module that it reaches,
    not by the files that it reads.
    """
    known = Artifact.weights(name, read_own)
    with suppress(ImportError, AttributeError, ValueError):  # `load` says what is wrong
        known = replace(known, digest=digest([name, code_digest(resolve_name(name))]))
    return known


def short_training(settings: BrainSettings) -> BrainSettings:
    """The settings of tuning classifiers with less of everything: 300 steps, on a cohort as large
    as the real one, of other subjects.
    """
    smaller = min(1.0, settings.subjects)
    steps = round(settings.classifier_steps * 3 / 7)
    return replace(
        settings, subjects=smaller, classifier_steps=steps, cohort_seed=settings.cohort_seed + 1
    )


def selection_classifier(settings: BrainSettings, seed: int = 0) -> list[Artifact]:
    """The classifier by which strengths and rates are chosen: no tuning follows it and no result is
    read by it. It has an architecture and a seed of its own, on the tuning classifiers' subjects.
    """
    return _other_classifier(settings, 501, "tuning", "selection")


def heldout_classifier(settings: BrainSettings, seed: int = 0) -> list[Artifact]:
    """The held-out classifier, which shares neither architecture nor seed nor subjects with the
    others; the same for every run.
    """
    return _other_classifier(settings, 77, "heldout", "held-out")


def _other_classifier(settings: BrainSettings, seed: int, part: str, label: str) -> list[Artifact]:
    fit = ClassifierSettings(settings.classifier_steps, learning_rate=1.5e-3, seed=seed)
    chosen = replace(fit, architecture=RESIDUAL, balance=True)
    return [sex_classifier(chosen, cohort(settings), settings.split_seed, part, label)]


def anatomy(settings: BrainSettings, seed: int = 0) -> list[Artifact]:
    """The anatomical measurement; the same for every run."""
    return [anatomical_measurement(cohort(settings), settings.split_seed, AXES)]


def area(settings: BrainSettings, seed: int = 0) -> list[Artifact]:
    """The second anatomical measurement, of the area alone; the same for every run."""
    return [anatomical_measurement(cohort(settings), settings.split_seed, AREA)]


def measure_anatomy(column: str, members: Fitted, images: Tensor, contrasts: list[str]) -> Columns:
    """Probability of female by the anatomical measurement, and the size that it measured."""
    found = members[0].load().read(images.numpy(), contrasts)
    return {column: found.p_female.to_numpy(), "extent_mm": found.extent_mm.to_numpy()}


def measure_area(column: str, members: Fitted, images: Tensor, contrasts: list[str]) -> Columns:
    """Probability of female by the area alone."""
    return {column: members[0].load().read(images.numpy(), contrasts).p_female.to_numpy()}


def _tuning(kind: str) -> BrainEvaluator:
    def fit(settings: BrainSettings, seed: int) -> Fitted:
        return tuning_classifier(settings, kind, seed)

    return BrainEvaluator(f"{kind} tuning classifier", kind, fit=fit)


KINDS = ("standard", "robust", "standard_short", "robust_short")
_ALL = (
    *map(_tuning, (*KINDS, "both", "shuffled")),
    BrainEvaluator("selection classifier", "selection", fit=selection_classifier),
    BrainEvaluator("held-out classifier", "heldout", fit=heldout_classifier),
    BrainEvaluator("anatomical measurement", "anatomy", fit=anatomy, read=measure_anatomy),
    BrainEvaluator("measured area", "area", fit=area, read=measure_area),
)
EVALUATORS = {each.column: each for each in _ALL}
# those that read every image of every arm, and what chapter 3 shows of them
EVERYWHERE = ("standard", "robust", "heldout", "anatomy", "area")
NAMES = {column: EVALUATORS[column].name for column in EVERYWHERE[:4]}


def read_column(folder: Path) -> pd.DataFrame:
    """What an evaluator read: its columns, a row an image."""
    return pd.read_csv(folder / "readings.csv")


@stage(load=read_column)
def read_images(
    out: Path,
    progress: Progress,
    column: str,
    members: list[Artifact],
    read: Read,
    source: Callable[[], tuple[Tensor, list[str]]],
) -> None:
    """What one evaluator reads in the images and contrasts that `source` gives: a row an image."""
    images, contrasts = source()
    found = read(column, members, images, contrasts)
    table = pd.DataFrame({name: np.round(values, 5) for name, values in found.items()})
    write_bytes(out / "readings.csv", table.to_csv(index=False).encode())


def read_by(
    settings: BrainSettings, seed: int, columns: Iterable[str], source: partial
) -> list[pd.DataFrame]:
    """What the evaluators of `columns` read, in the order of `EVALUATORS`; see `read_images`."""
    chosen = [EVALUATORS[name] for name in EVALUATORS if name in set(columns)]
    return [
        read_images(each.column, list(each.fit(settings, seed)), each.read, source).load()
        for each in chosen
    ]


def pair_table(calibration: pd.DataFrame) -> pd.DataFrame:
    """How evaluators read one subject drawn as female and as male: evaluator, n (pairs), ordered
    (the female image has the higher probability), told_apart (both are classified correctly).

    calibration: a row an image with set ("pairs" are taken), seed, subject, sex and a column an
    evaluator; means over seeds.
    """
    pairs = calibration[calibration["set"] == "pairs"]
    rows = []
    for column in (name for name in EVERYWHERE if name in pairs):
        wide = pairs.pivot(index=["seed", "subject"], columns="sex", values=column)
        right = (wide["F"] > 0.5) & (wide["M"] < 0.5)
        count = len(wide.index.unique("subject"))
        found = (wide["F"] > wide["M"]).mean(), right.mean()
        rows.append((EVALUATORS[column].name, count, *found))
    return pd.DataFrame(rows, columns=["evaluator", "n", "ordered", "told_apart"])
