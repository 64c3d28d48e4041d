"""What is in a picture: a reader of people and disease fitted on real pictures, and a ruler for the
cup that learnt nothing.

Nobody of the generator's training people, and no generated picture, is in what the reader is fitted
on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.io import read_tensors, write_bytes, write_tensors
from fairlib.models.classifier import (
    WIDE,
    Classifier,
    ClassifierSettings,
    build_classifier,
    fit_classifier,
    load_classifier,
    predict,
    save_classifier,
    truth_of,
)
from studies.engine.manifest import content_digest
from studies.engine.places import accelerator
from studies.engine.stage import run_stage
from studies.fundus.cohorts import fundi, part_digest
from studies.fundus.cup import measure_cdr
from studies.fundus.generation import made, pictures_folder
from studies.fundus.settings import HEADS, PART_SEEDS, REAL, FundusStudy


def reader_folder(study: FundusStudy) -> Path:
    """The stage folder of the reader of all `HEADS`."""
    settings = ClassifierSettings(
        steps=study.judge_steps,
        batch_size=64,
        ema_decay=0.98,
        seed=61,
        architecture=WIDE,
        augmentation="light",
        stream=28,
    )

    def build(out: Path, progress) -> None:
        people, reader = (
            fundi(study, "judges"),
            build_classifier(HEADS, WIDE, settings.seed).to(accelerator()),
        )
        steps = fit_classifier(reader, people.images, truth_of(people.table, HEADS), settings)
        for _ in progress.track(steps, settings.steps, "reader of fundi"):
            pass
        save_classifier(out, reader)

    return run_stage(None, "fundus-reader", settings, [part_digest(study, "judges")], build)


@lru_cache(maxsize=2)
def fundus_reader(study: FundusStudy) -> Classifier:
    """The reader, fitted or found."""
    return load_classifier(reader_folder(study)).to(accelerator())


def readings_folder(study: FundusStudy, source: str, seed: int = 0) -> Path:
    """The stage folder with what is found in the pictures of an arm and seed, or of a part of real
    people.

    `readings.csv`: one row a picture, `cdr` (measured), `disc_diameter`, `found`, and the reader's
    probabilities `p_<attribute>_<value>` (of two values the second alone). `features.safetensors`:
    the reader's, [N, 64].
    """
    part = _part(source)
    images = (
        part_digest(study, part) if part else content_digest(pictures_folder(study, source, seed))
    )

    def build(out: Path, progress) -> None:
        given = fundi(study, part) if part else made(study, source, seed)
        blocks = given.pictures().split(50)
        found = [
            measure_cdr(block)
            for block in progress.track(blocks, len(blocks), f"discs of {source}, seed {seed}")
        ]
        read = predict(fundus_reader(study), given.images, batch_size=100)
        probabilities = {name: read.probabilities(name) for name in HEADS}
        table = pd.concat(
            [pd.concat(found, ignore_index=True), columns("p", probabilities, HEADS)], axis=1
        )
        write_bytes(out / "readings.csv", table.round(5).to_csv(index=False).encode())
        write_tensors(out / "features.safetensors", {"features": read.features})

    name = f"fundus-readings-{source}"
    return run_stage(
        None, name, {}, [images, content_digest(reader_folder(study))], build, verify=False
    )


def readings(study: FundusStudy, source: str, seed: int = 0) -> pd.DataFrame:
    """See `readings_folder`; `source`: an arm, "base", "real", or a part of real people."""
    return pd.read_csv(readings_folder(study, source, seed) / "readings.csv")


def features(study: FundusStudy, source: str, seed: int = 0) -> np.ndarray:
    """The reader's features [N, 64], in standard deviations of the reference people's."""
    reference = _raw(study, "reference", 0)
    return (_raw(study, source, seed) - reference.mean(0)) / reference.std(0).clip(1e-3)


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
    if len(values) == 2:
        second = table[f"{prefix}_{attribute}_{values[1]}"].to_numpy(float)
        return np.stack([1 - second, second], axis=1)
    return np.stack(
        [table[f"{prefix}_{attribute}_{value}"].to_numpy(float) for value in values], axis=1
    )


def _part(source: str) -> str | None:
    """The part of real people that a source stands for; None for generated pictures."""
    return "asked" if source == REAL else source if source in PART_SEEDS else None


def _raw(study: FundusStudy, source: str, seed: int) -> np.ndarray:
    return (
        read_tensors(readings_folder(study, source, seed) / "features.safetensors")["features"]
        .double()
        .numpy()
    )
