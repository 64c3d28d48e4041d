"""Semantic correlation (Luo et al.): does a picture made for "glaucoma" have it? By classifiers
across the gap, both ways.

    generated to real   a classifier trained on one arm's pictures, labels the words asked for,
    tried on real unseen people real to generated   one trained on as many real people, tried on
    that arm's pictures

In the row "real" the pictures of the people who were asked for stand in for generated ones: what a
perfect generator reaches.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pandas as pd

from fairlib.io import write_bytes
from fairlib.models.classifier import (
    SLIM,
    Classifier,
    ClassifierSettings,
    build_classifier,
    fit_classifier,
    load_classifier,
    predict,
    save_classifier,
    truth_of,
)
from fairlib.settings import to_dict
from studies.engine.manifest import content_digest
from studies.engine.places import accelerator
from studies.engine.stage import run_stage
from studies.fundus.cohorts import fundi, part_digest
from studies.fundus.generation import made, pictures_folder
from studies.fundus.judges import columns
from studies.fundus.settings import REAL, TASKS, FundusStudy

JUDGES = "judges"  # real people whose pictures nobody was asked for


def classifier_folder(study: FundusStudy, source: str, seed: int) -> Path:
    """The stage folder of a classifier of `TASKS` trained on the pictures of `source` (an arm,
    "real", or "judges").

    As many pictures and steps for all; classifiers of one seed start from the same first weights.
    """
    settings = ClassifierSettings(
        steps=study.semantic_steps,
        weight_decay=5e-2,
        ema_decay=0.98,
        seed=seed,
        architecture=SLIM,
        augmentation="light",
        stream=28,
    )
    part = {REAL: "asked", JUDGES: JUDGES}.get(source)
    inputs = [
        part_digest(study, part) if part else content_digest(pictures_folder(study, source, seed))
    ]

    def build(out: Path, progress) -> None:
        given = (
            fundi(study, JUDGES).take(range(_count(study)))
            if source == JUDGES
            else made(study, source, seed)
        )
        classifier = build_classifier(TASKS, SLIM, seed).to(accelerator())
        steps = fit_classifier(classifier, given.images, truth_of(given.table, TASKS), settings)
        for _ in progress.track(steps, settings.steps, f"classifier of {source}, seed {seed}"):
            pass
        save_classifier(out, classifier)

    return run_stage(
        None,
        f"fundus-classifier-{source}",
        {**to_dict(settings), "images": study.images},
        inputs,
        build,
    )


def answers(study: FundusStudy, arm: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What classifiers say: trained on `arm` of the reference people, and trained on real people of
    the pictures of `arm`.

    Columns `s_<task>_<value>`, one row a picture; of two values the second alone.
    """
    return (_answers(study, arm, seed, "reference", 0), _answers(study, JUDGES, seed, arm, seed))


def _answers(
    study: FundusStudy, trained: str, seed: int, tried: str, tried_seed: int
) -> pd.DataFrame:
    part = {REAL: "asked", "reference": "reference"}.get(tried)
    images = (
        part_digest(study, part)
        if part
        else content_digest(pictures_folder(study, tried, tried_seed))
    )
    folder = classifier_folder(study, trained, seed)

    def build(out: Path, progress) -> None:
        given = fundi(study, part) if part else made(study, tried, tried_seed)
        read = predict(_classifier(folder), given.images, batch_size=100)
        found = {name: read.probabilities(name) for name in TASKS}
        write_bytes(
            out / "answers.csv", columns("s", found, TASKS).round(5).to_csv(index=False).encode()
        )

    done = run_stage(
        None,
        "fundus-answers",
        {"trained": trained, "tried": tried},
        [content_digest(folder), images],
        build,
        verify=False,
    )
    return pd.read_csv(done / "answers.csv")


@lru_cache(maxsize=2)
def _classifier(folder: Path) -> Classifier:
    return load_classifier(folder).to(accelerator())


def _count(study: FundusStudy) -> int:
    """As many real people as there are pictures of an arm, or all there are."""
    return min(len(fundi(study, JUDGES)), len(fundi(study, "asked")))
