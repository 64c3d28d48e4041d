"""The instruments: a re-segmenter, a heart-failure classifier and a reader of people, fitted on
hearts of other people.

None of them ever sees a generated image or one of the generator's training people while it is
fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.cohorts.cohort import split_subjects
from fairlib.measures.dice import dice, mean_dice
from fairlib.methods.downstream import DownstreamSettings
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
from studies.engine.manifest import content_digest
from studies.engine.places import accelerator
from studies.engine.stage import run_stage
from studies.heart.cohorts import Hearts, hearts, part_digest
from studies.heart.geometry import geometry
from studies.heart.settings import HeartStudy

READER_HEADS = {"female": "binary", "age": "number", "bmi": "number"}
DICE = tuple(
    f"dice_{frame}_{structure}" for frame in ("ed", "es") for structure in ("lv", "myo", "rv")
)


@dataclass(frozen=True)
class HeartJudges:
    """`segmenter`: images -> masks; `diagnosis`: images -> logits of heart failure; `reader`:
    images -> sex, age, bmi.
    """

    segmenter: Segmenter
    diagnosis: Classifier
    reader: Classifier

    def read(self, given: Hearts) -> tuple[pd.DataFrame, Tensor]:
        """What is in each image, beside what was asked: the table of `given` with the Dice of its
        mask (`DICE`), measured

        geometry (`measured_...`, mm and mm2), `read_failure`, `read_female` (logits), `read_age`,
        `read_bmi`, and `read_ill` (0 or 1); and the masks found, uint8 [N, 2, H, W].
        """
        found = segment(self.segmenter, given.images)
        overlaps = dice(given.masks, found).reshape(len(found), -1)
        people = predict(self.reader, given.images).logits
        failure = predict(self.diagnosis, given.images)
        columns = dict(zip(DICE, overlaps.T, strict=True))
        columns |= {f"measured_{name}": values for name, values in geometry(found).items()}
        columns |= {
            "read_failure": failure.logit.numpy(),
            "read_ill": failure.positive().numpy().astype(int),
        }
        columns |= {f"read_{name}": values.numpy() for name, values in people.items()}
        readings = pd.DataFrame(columns).round(5)
        return pd.concat([given.table.reset_index(drop=True), readings], axis=1), found


@lru_cache(maxsize=2)
def fit_heart_judges(study: HeartStudy) -> HeartJudges:
    """Fit (or find) the instruments of `study`, on the accelerator if there is one."""
    loaded = (
        load(folder)
        for load, folder in zip(
            (load_segmenter, load_classifier, load_classifier), _folders(study), strict=True
        )
    )
    return HeartJudges(*(network.to(accelerator()) for network in loaded))


def judges_digest(study: HeartStudy) -> list[str]:
    """What a stage that uses the instruments depends on."""
    return [content_digest(folder) for folder in _folders(study)]


def features(judges: HeartJudges, images: Tensor) -> np.ndarray:
    """The reader's features [N, 64], for distances between sets of images."""
    return predict(judges.reader, images).features.numpy()


def _folders(study: HeartStudy) -> list[Path]:
    settings = (
        SegmenterSettings(steps=study.segmenter_steps, seed=51),
        replace(
            DownstreamSettings().classifier,
            steps=study.judge_steps,
            warmup=min(30, study.judge_steps // 4),
            seed=52,
        ),
        ClassifierSettings(
            steps=study.judge_steps,
            batch_size=64,
            ema_decay=0.98,
            seed=53,
            architecture=CARDIAC,
            augmentation="shift",
            stream=17,
        ),
    )
    jobs = {
        "segmenter": (_segmenter, "models/segmenter.py"),
        "diagnosis": (_diagnosis, "models/classifier.py"),
        "reader": (_reader, "models/classifier.py"),
    }
    inputs = [part_digest(study, "judges")]
    return [
        run_stage(
            None,
            f"heart-{name}",
            chosen,
            inputs,
            lambda out, progress, job=job, chosen=chosen: job(study, chosen, out, progress),
        )
        for (name, (job, code)), chosen in zip(jobs.items(), settings, strict=True)
    ]


def _two(study: HeartStudy) -> tuple[Hearts, Hearts]:
    """The judges' people: those the instruments are fitted on, and the last fifth, for their own
    errors and thresholds.

    Real people are few: there it is a fifth of the subjects of each diagnosis, so that neither is
    missing.
    """
    people = hearts(study, "judges")
    if study.cohort == "phantom":
        edge = len(people) - len(people) // 5
        return people.take(range(edge)), people.take(range(edge, len(people)))
    subjects = people.table.drop_duplicates("subject")
    part = people.table["subject"].map(
        split_subjects(subjects, {"fit": 0.8, "own": 0.2}, study.split_seed, ["diagnosis"])
    )
    return tuple(people.take(np.flatnonzero(part == name)) for name in ("fit", "own"))


def _segmenter(study: HeartStudy, settings: SegmenterSettings, out: Path, progress) -> None:
    fit, hold = _two(study)
    torch.manual_seed(settings.seed)
    segmenter = Segmenter().to(accelerator())
    for _ in progress.track(
        fit_segmenter(segmenter, fit.images, fit.masks, settings), settings.steps, "re-segmenter"
    ):
        pass
    save_segmenter(
        out, segmenter, {"dice": mean_dice(dice(hold.masks, segment(segmenter, hold.images)))}
    )


def _diagnosis(study: HeartStudy, settings: ClassifierSettings, out: Path, progress) -> None:
    fit, hold = _two(study)
    heads = {"heart_failure": "binary"}
    classifier = build_classifier(heads, settings.architecture, settings.seed).to(accelerator())
    for _ in progress.track(
        fit_classifier(classifier, fit.images, fit.labels(), settings), settings.steps, "diagnosis"
    ):
        pass
    threshold = set_threshold(classifier, hold.images, hold.labels())
    right = (predict(classifier, hold.images).logit > threshold) == hold.labels().bool()
    save_classifier(out, classifier, {"accuracy": float(right.float().mean())})


def _reader(study: HeartStudy, settings: ClassifierSettings, out: Path, progress) -> None:
    fit, _ = _two(study)
    reader = build_classifier(READER_HEADS, settings.architecture, settings.seed).to(accelerator())
    truth = truth_of(fit.table.assign(female=fit.table["sex"] == "F"), READER_HEADS)
    for _ in progress.track(
        fit_classifier(reader, fit.images, truth, settings), settings.steps, "reader"
    ):
        pass
    save_classifier(out, reader)
