"""What is in an image: a classifier of attributes fitted on real images, and a measurement of the
cup that learnt nothing.

None of the generator's training patients, and no generated image, is in what the attribute
classifier is fitted on.

Semantic correlation (Luo et al.): does an image generated for "glaucoma" show it? By classifiers
across the gap, both ways: one trained on an arm's images (labels: the words requested) and tried on
real unseen patients, and one trained on as many real patients and tried on that arm's images. In
the row "real" the images of the requested patients take the place of generated ones: what a perfect
generator reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.io import read_tensors, write_bytes, write_tensors
from fairlib.models import classifier as cf
from fairlib.models.classifier import SLIM, WIDE, Classifier, ClassifierSettings, predict
from fairlib.rng import Stream
from studies.engine import accelerator
from studies.engine.stage import Artifact, Progress, stage
from studies.fundus.cup import measure_cdr
from studies.fundus.data import Fundi, people
from studies.fundus.settings import HEADS, TASKS, FundusSettings

Heads = list[tuple[str, Sequence[str]]]  # a list, so that their order is part of a key
FIT = ClassifierSettings(
    ema_decay=0.98, architecture=SLIM, augmentation="light", stream=Stream.CLASSIFIER_4
)
BATCH = 100  # images that are classified at a time


@dataclass(frozen=True, eq=False)
class Readings:
    """What is found in images. table: one row an image, `cdr` (measured), `disc_diameter`, `found`,
    and the attribute classifier's probabilities `p_<attribute>_<value>` (of two values the second
    alone). features: the classifier's, float64 [N, 64].
    """

    table: pd.DataFrame
    features: np.ndarray


def load_classifier(folder: Path) -> Classifier:
    """Read a classifier onto the accelerator, if there is one."""
    return cf.load_classifier(folder).to(accelerator())


@stage(load=load_classifier)
def fit_classifier(
    out: Path,
    progress: Progress,
    given: Artifact[Fundi],
    most: int,
    heads: Heads,
    settings: ClassifierSettings,
) -> None:
    """Fit a classifier of `heads` on the first `most` images of `given`.

    Classifiers of one seed start from the same first weights.
    """
    values, fundi = dict(heads), given.load().first(most)
    classifier = cf.build_classifier(values, settings.architecture, settings.seed)
    truth = cf.truth_of(fundi.table, values)
    steps = cf.fit_classifier(classifier.to(accelerator()), fundi.stored, truth, settings)
    for _ in progress.track(steps, settings.steps, f"classifier of {', '.join(values)}"):
        pass
    cf.save_classifier(out, classifier)


def attribute_classifier(settings: FundusSettings) -> Artifact[Classifier]:
    """The classifier of all `HEADS`, fitted on real patients."""
    fit = replace(FIT, steps=settings.evaluator_steps, batch_size=64, seed=61, architecture=WIDE)
    given = people(settings, "evaluators")
    return fit_classifier(given, len(given.load()), list(HEADS.items()), fit)


def task_classifier(
    settings: FundusSettings, images: Artifact[Fundi], seed: int
) -> Artifact[Classifier]:
    """A classifier of `TASKS` fitted on `images`: as many images and steps for all of a study."""
    fit = replace(FIT, steps=settings.semantic_steps, weight_decay=5e-2, seed=seed)
    count = len(people(settings, "requested").load())
    return fit_classifier(images, count, list(TASKS.items()), fit)


def load_readings(folder: Path) -> Readings:
    """Read what `read_images` found."""
    features = read_tensors(folder / "features.safetensors")["features"]
    return Readings(pd.read_csv(folder / "readings.csv"), features.double().numpy())


@stage(load=load_readings, verify=False)
def read_images(
    out: Path, progress: Progress, images: Artifact[Fundi], classifier: Artifact[Classifier]
) -> None:
    """Measure cup and disc of `images`, and classify their attributes."""
    fundi = images.load()
    blocks = fundi.images.split(50)
    cups = [measure_cdr(block) for block in progress.track(blocks, len(blocks), "cup and disc")]
    read = predict(classifier.load(), fundi.stored, batch_size=BATCH)
    probabilities = {name: read.probabilities(name) for name in HEADS}
    parts = [pd.concat(cups, ignore_index=True), columns("p", probabilities, HEADS)]
    table = pd.concat(parts, axis=1).round(5)
    write_bytes(out / "readings.csv", table.to_csv(index=False).encode())
    write_tensors(out / "features.safetensors", {"features": read.features})


def load_answers(folder: Path) -> pd.DataFrame:
    """Read what `answer` wrote."""
    return pd.read_csv(folder / "answers.csv")


@stage(load=load_answers, verify=False)
def answer(
    out: Path, progress: Progress, classifier: Artifact[Classifier], images: Artifact[Fundi]
) -> None:
    """Classify `images` by a classifier of `TASKS`: columns `s_<task>_<value>`."""
    read = predict(classifier.load(), images.load().stored, batch_size=BATCH)
    table = columns("s", {name: read.probabilities(name) for name in TASKS}, TASKS).round(5)
    write_bytes(out / "answers.csv", table.to_csv(index=False).encode())


def columns(
    prefix: str, probabilities: Mapping[str, np.ndarray], values: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Probabilities {attribute: [N, K]} as columns `<prefix>_<attribute>_<value>`; of two values
    the second alone.
    """
    table = {
        f"{prefix}_{name}_{value}": probabilities[name][:, place]
        for name in probabilities
        for place, value in enumerate(values[name])
        if len(values[name]) > 2 or place == 1
    }
    return pd.DataFrame(table)


def stacked(table: pd.DataFrame, prefix: str, attribute: str, values: Sequence[str]) -> np.ndarray:
    """[N, K] of one attribute from a table of `columns`."""
    names = [f"{prefix}_{attribute}_{value}" for value in values]
    if len(values) == 2:
        return np.stack([1 - table[names[1]], table[names[1]]], axis=1)
    return table[names].to_numpy(float)
