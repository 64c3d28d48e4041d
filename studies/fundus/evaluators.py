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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fairlib.io import read_tensors, write_bytes, write_tensors
from fairlib.models.fundus_reader import (
    SLIM,
    WIDE,
    FundusReader,
    build_reader,
    fit_reader,
    load_reader,
    read_fundi,
    save_reader,
    truth_of,
)
from fairlib.models.training import FitSettings
from studies.engine.places import accelerator
from studies.engine.progress import Progress
from studies.engine.stage import Artifact, stage
from studies.fundus.cup import measure_cdr
from studies.fundus.data import Fundi, people
from studies.fundus.settings import HEADS, TASKS, FundusSettings

Heads = list[tuple[str, Sequence[str]]]  # a list, so that their order is part of a key


@dataclass(frozen=True, eq=False)
class Readings:
    """What is found in images. table: one row an image, `cdr` (measured), `disc_diameter`, `found`,
    and the attribute classifier's probabilities `p_<attribute>_<value>` (of two values the second
    alone). features: the classifier's, float64 [N, 64].
    """

    table: pd.DataFrame
    features: np.ndarray


def load_classifier(folder: Path) -> FundusReader:
    """Read a classifier onto the accelerator, if there is one."""
    return load_reader(folder).to(accelerator())


@stage(load=load_classifier)
def fit_classifier(
    out: Path,
    progress: Progress,
    given: Artifact[Fundi],
    most: int,
    heads: Heads,
    settings: FitSettings,
    widths: tuple[int, ...],
    pool: int,
) -> None:
    """Fit a classifier of `heads` on the first `most` images of `given`.

    Classifiers of one seed start from the same first weights.
    """
    values, fundi = dict(heads), given.load().first(most)
    classifier = build_reader(values, widths, pool, seed=settings.seed).to(accelerator())
    steps = fit_reader(classifier, fundi.stored, truth_of(fundi.table, values), settings)
    for _ in progress.track(steps, settings.steps, f"classifier of {', '.join(values)}"):
        pass
    save_reader(out, classifier)


def attribute_classifier(settings: FundusSettings) -> Artifact[FundusReader]:
    """The classifier of all `HEADS`, fitted on real patients."""
    fit = FitSettings(
        settings.evaluator_steps, 64, 2e-3, weight_decay=1e-2, ema_decay=0.98, seed=61
    )
    given = people(settings, "evaluators")
    return fit_classifier(given, len(given.load()), list(HEADS.items()), fit, WIDE, 1)


def task_classifier(
    settings: FundusSettings, images: Artifact[Fundi], seed: int
) -> Artifact[FundusReader]:
    """A classifier of `TASKS` fitted on `images`: as many images and steps for all of a study."""
    fit = FitSettings(
        settings.semantic_steps, 48, 2e-3, weight_decay=5e-2, ema_decay=0.98, seed=seed
    )
    count = len(people(settings, "requested").load())
    return fit_classifier(images, count, list(TASKS.items()), fit, SLIM, 2)


def load_readings(folder: Path) -> Readings:
    """Read what `read_images` found."""
    features = read_tensors(folder / "features.safetensors")["features"]
    return Readings(pd.read_csv(folder / "readings.csv"), features.double().numpy())


@stage(load=load_readings, verify=False)
def read_images(
    out: Path, progress: Progress, images: Artifact[Fundi], classifier: Artifact[FundusReader]
) -> None:
    """Measure cup and disc of `images`, and classify their attributes."""
    fundi = images.load()
    blocks = fundi.images.split(50)
    found = [measure_cdr(block) for block in progress.track(blocks, len(blocks), "cup and disc")]
    probabilities, features = read_fundi(classifier.load(), fundi.stored)
    parts = [pd.concat(found, ignore_index=True), columns("p", probabilities, HEADS)]
    table = pd.concat(parts, axis=1).round(5)
    write_bytes(out / "readings.csv", table.to_csv(index=False).encode())
    write_tensors(out / "features.safetensors", {"features": torch.from_numpy(features)})


def load_answers(folder: Path) -> pd.DataFrame:
    """Read what `answer` wrote."""
    return pd.read_csv(folder / "answers.csv")


@stage(load=load_answers, verify=False)
def answer(
    out: Path, progress: Progress, classifier: Artifact[FundusReader], images: Artifact[Fundi]
) -> None:
    """Classify `images` by a classifier of `TASKS`: columns `s_<task>_<value>`."""
    found, _ = read_fundi(classifier.load(), images.load().stored)
    table = columns("s", found, TASKS).round(5)
    write_bytes(out / "answers.csv", table.to_csv(index=False).encode())


def columns(
    prefix: str, probabilities: Mapping[str, np.ndarray], values: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Probabilities {attribute: [N, K]} as columns `<prefix>_<attribute>_<value>`; of two values
    the second alone.
    """
    found = {
        f"{prefix}_{name}_{value}": probabilities[name][:, place]
        for name in probabilities
        for place, value in enumerate(values[name])
        if len(values[name]) > 2 or place == 1
    }
    return pd.DataFrame(found)


def stacked(table: pd.DataFrame, prefix: str, attribute: str, values: Sequence[str]) -> np.ndarray:
    """[N, K] of one attribute from a table of `columns`."""
    names = [f"{prefix}_{attribute}_{value}" for value in values]
    if len(values) == 2:
        return np.stack([1 - table[names[1]], table[names[1]]], axis=1)
    return table[names].to_numpy(float)
