"""What reads a heart: a re-segmenter, a heart-failure classifier and a reader of attributes, fitted
on hearts of other subjects.

None of them ever sees a generated image or one of the generator's training subjects while it is
fitted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fairlib.cohorts.cohort import split_subjects
from fairlib.io import read_tensors, write_bytes, write_tensors
from fairlib.measures.dice import dice, mean_dice
from fairlib.methods.downstream import HEADS, DownstreamSettings
from fairlib.models.classifier import (
    CARDIAC,
    Classifier,
    ClassifierSettings,
    build_classifier,
    fit_classifier,
    load_classifier,
    predict,
    save_classifier,
    set_threshold,
    truth_of,
)
from fairlib.models.segmenter import (
    Segmenter,
    SegmenterSettings,
    fit_segmenter,
    load_segmenter,
    save_segmenter,
    segment,
)
from fairlib.rng import Stream
from studies.engine import accelerator
from studies.engine.stage import Artifact, Progress, stage
from studies.heart.data import Hearts, part, read_rows
from studies.heart.geometry import geometry
from studies.heart.settings import HeartSettings

DICE = tuple(
    f"dice_{frame}_{structure}" for frame in ("ed", "es") for structure in ("lv", "myo", "rv")
)
ATTRIBUTES = {"female": "binary", "age": "number", "bmi": "number"}  # of the reader
Columns = dict[str, np.ndarray]
Kept = dict[str, Tensor]


@dataclass(frozen=True)
class Evaluator:
    """A measurement as data: how its network is fitted, with which settings (`steps` names the
    setting of a study that replaces theirs), how it is loaded, and how it reads hearts: (network,
    hearts) -> columns of the readings [N], and tensors to keep beside them.
    """

    fit: Callable[..., None]
    settings: Any
    steps: str
    load: Callable[[Path], nn.Module]
    read: Callable[[nn.Module, Hearts], tuple[Columns, Kept]]


@dataclass(frozen=True, eq=False)
class Readings:
    """What the evaluators read in N hearts.

    table: the attributes of each heart (requested, or true), and what was read (see
    `read_hearts_with`). found, requested: masks uint8 [N, 2, H, W], read in the image and given
    with it.
    """

    table: pd.DataFrame
    found: Tensor
    requested: Tensor


def read_readings(folder: Path) -> Readings:
    """What the stage `evaluate` has written."""
    return Readings(
        read_rows(folder / "readings.csv"), **read_tensors(folder / "masks.safetensors")
    )


@stage(load=read_readings)
def evaluate(
    out: Path,
    progress: Progress,
    hearts: Artifact[Hearts],
    count: int | None,
    evaluators: dict[str, tuple[Artifact[nn.Module], Callable]],
) -> None:
    """Read the first `count` hearts (None: all) with every evaluator: (network, how it reads).

    Columns: those of the hearts' table; Dice of the given mask and that in the image (`DICE`);
    measured geometry (`measured_...`, mm and mm2); `read_failure`, `read_female` (logits),
    `read_age`, `read_bmi`, and `read_ill` (0 or 1).
    """
    given = hearts.load() if count is None else hearts.load().first(count)
    progress.say(f"reading {len(given)} hearts")
    columns: Columns = {}
    kept = {"requested": given.masks}
    for network, read in evaluators.values():
        own, tensors = read(network.load().to(accelerator()), given)
        columns, kept = columns | own, kept | tensors
    table = pd.concat([given.table, pd.DataFrame(columns).round(5)], axis=1)
    write_tensors(out / "masks.safetensors", kept)
    write_bytes(out / "readings.csv", table.to_csv(index=False).encode())


def read_shape(segmenter: Segmenter, hearts: Hearts) -> tuple[Columns, Kept]:
    """Masks found in the images, their Dice with the given ones, and their geometry."""
    found = segment(segmenter, hearts.images)
    overlaps = dice(hearts.masks, found).reshape(len(found), -1)
    measured = {f"measured_{name}": values.to_numpy() for name, values in geometry(found).items()}
    return dict(zip(DICE, overlaps.T, strict=True)) | measured, {"found": found}


def read_diagnosis(classifier: Classifier, hearts: Hearts) -> tuple[Columns, Kept]:
    """The logit of heart failure, and whether it lies above the threshold."""
    found = predict(classifier, hearts.images)
    ill = found.positive().numpy().astype(int)
    return {"read_failure": found.logit.numpy(), "read_ill": ill}, {}


def read_attributes(reader: Classifier, hearts: Hearts) -> tuple[Columns, Kept]:
    """The logit of female, age in years and body-mass index in kg/m2."""
    logits = predict(reader, hearts.images).logits
    return {f"read_{name}": values.numpy() for name, values in logits.items()}, {}


def fit_and_calibration(people: Hearts, split_seed: int | None) -> tuple[Hearts, Hearts]:
    """The hearts that evaluators are fitted on, and the calibration set: a fifth, for their errors
    and thresholds.

    The last fifth without a `split_seed`, as synthetic subjects come in no order. Real ones are
    few: there it is a fifth of the subjects of each diagnosis, so that neither is missing.
    """
    if split_seed is None:
        edge = len(people) - len(people) // 5
        return people.take(range(edge)), people.take(range(edge, len(people)))
    subjects = people.table.drop_duplicates("subject")
    parts = split_subjects(subjects, {"fit": 0.8, "own": 0.2}, split_seed, ["diagnosis"])
    own = (people.table["subject"].map(parts) == "own").to_numpy()
    return people.take(np.flatnonzero(~own)), people.take(np.flatnonzero(own))


@stage
def fit_evaluator(
    out: Path,
    progress: Progress,
    people: Artifact[Hearts],
    split_seed: int | None,
    fit: Callable[..., None],
    settings: Any,
) -> None:
    """Fit an evaluator; see `fit_and_calibration` for `split_seed`."""
    fit(out, progress, *fit_and_calibration(people.load(), split_seed), settings)


def fit_shape(
    out: Path, progress: Progress, hearts: Hearts, own: Hearts, settings: SegmenterSettings
) -> None:
    """Fit the re-segmenter; its own Dice on the calibration set is written beside it."""
    torch.manual_seed(settings.seed)
    segmenter = Segmenter().to(accelerator())
    steps = fit_segmenter(segmenter, hearts.images, hearts.masks, settings)
    for _ in progress.track(steps, settings.steps, "re-segmenter"):
        pass
    found = segment(segmenter, own.images)
    save_segmenter(out, segmenter, {"dice": mean_dice(dice(own.masks, found))})


def fit_failure(
    out: Path, progress: Progress, hearts: Hearts, own: Hearts, settings: ClassifierSettings
) -> None:
    """Fit the heart-failure classifier; its threshold is the best on the calibration set."""
    settings = replace(settings, warmup=min(30, settings.steps // 4))
    classifier = _fit_heads(progress, "diagnosis", HEADS, hearts, hearts.labels(), settings)
    threshold = set_threshold(classifier, own.images, own.labels())
    right = (predict(classifier, own.images).logit > threshold) == own.labels().bool()
    save_classifier(out, classifier, {"accuracy": float(right.float().mean())})


def fit_reader(
    out: Path, progress: Progress, hearts: Hearts, own: Hearts, settings: ClassifierSettings
) -> None:
    """Fit the reader of attributes."""
    truth = truth_of(hearts.table.assign(female=hearts.table["sex"] == "F"), ATTRIBUTES)
    save_classifier(out, _fit_heads(progress, "attributes", ATTRIBUTES, hearts, truth, settings))


def _fit_heads(
    progress: Progress,
    label: str,
    heads: Any,
    hearts: Hearts,
    truth: Any,
    settings: ClassifierSettings,
) -> Classifier:
    """A classifier with these heads, fitted on the images of `hearts` and their `truth`."""
    classifier = build_classifier(heads, settings.architecture, settings.seed).to(accelerator())
    steps = fit_classifier(classifier, hearts.images, truth, settings)
    for _ in progress.track(steps, settings.steps, label):
        pass
    return classifier


# how each is fitted; the steps are those of a study
SHAPE = SegmenterSettings(seed=51)
FAILURE = replace(DownstreamSettings().classifier, seed=52)
PERSON = replace(FAILURE, warmup=50, architecture=CARDIAC, stream=Stream.CLASSIFIER_3, seed=53)
EVALUATORS: dict[str, Evaluator] = {
    "segmenter": Evaluator(fit_shape, SHAPE, "segmenter_steps", load_segmenter, read_shape),
    "diagnosis": Evaluator(fit_failure, FAILURE, "judge_steps", load_classifier, read_diagnosis),
    "attributes": Evaluator(fit_reader, PERSON, "judge_steps", load_classifier, read_attributes),
}


def fitted(settings: HeartSettings, name: str) -> Artifact[nn.Module]:
    """The network of an evaluator in `EVALUATORS`, fitted on first use."""
    chosen, synthetic = EVALUATORS[name], settings.cohort == "phantom"
    split_seed = None if synthetic else settings.split_seed
    how = replace(chosen.settings, steps=getattr(settings, chosen.steps))
    people = part(settings, "judges")
    return replace(fit_evaluator(people, split_seed, chosen.fit, how), reader=chosen.load)


def fitted_evaluators(settings: HeartSettings) -> dict[str, tuple[Artifact[nn.Module], Callable]]:
    """Every evaluator of a study, for `evaluate`."""
    return {name: (fitted(settings, name), one.read) for name, one in EVALUATORS.items()}
