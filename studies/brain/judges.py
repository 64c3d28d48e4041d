"""The judges of the study: guides (which tuning follows), the auditor and the oracle (which it
never sees).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fairlib.models.classifier import (
    RESIDUAL,
    Classifier,
    ClassifierSettings,
    build_classifier,
    calibrate,
    fit_classifier,
    load_classifier,
    predict,
    save_classifier,
)
from studies.brain.cohorts import cohort_digest, splits
from studies.brain.oracle import AnatomyOracle, fit_oracle
from studies.brain.settings import Study
from studies.engine.manifest import content_digest
from studies.engine.places import accelerator
from studies.engine.stage import run_stage


@dataclass(frozen=True)
class Judges:
    """`guides` {"plain", "robust"}, `auditor`: images -> logits; `oracle`: anatomy only."""

    guides: dict[str, Classifier]
    auditor: Classifier
    oracle: AnatomyOracle

    def read(self, images: Tensor, contrasts: list[str]) -> dict[str, np.ndarray]:
        """Probability of female by every judge, and the oracle's measurement of size; arrays
        [N].
        """
        found = {
            f"guide_{name}": predict(guide, images).logit.sigmoid().numpy()
            for name, guide in self.guides.items()
        }
        found["auditor"] = predict(self.auditor, images).logit.sigmoid().numpy()
        measured = self.oracle.read(images.numpy(), contrasts)
        return found | {
            "oracle": measured.p_female.to_numpy(),
            "extent_mm": measured.extent_mm.to_numpy(),
        }


def classifier_settings(study: Study) -> dict[str, ClassifierSettings]:
    """Guides share an architecture and a seed, so that the adversary is all that differs; the
    auditor shares nothing.
    """
    return {
        "plain": ClassifierSettings(steps=study.judge_steps, seed=10, balance=True),
        "robust": ClassifierSettings(
            steps=study.judge_steps, radius=study.radius, seed=10, balance=True
        ),
        "auditor": ClassifierSettings(
            steps=study.judge_steps,
            learning_rate=1.5e-3,
            seed=77,
            architecture=RESIDUAL,
            balance=True,
        ),
    }


def fit_judges(study: Study) -> Judges:
    """Fit (or find) all judges of `study`."""
    classifiers = {
        name: load_classifier(fit_judge(study, name, settings)).to(accelerator())
        for name, settings in classifier_settings(study).items()
    }
    auditor = classifiers.pop("auditor")
    return Judges(classifiers, auditor, AnatomyOracle.load(_fit_oracle(study) / "oracle.json"))


def fit_judge(study: Study, name: str, settings: ClassifierSettings) -> Path:
    """The stage folder of one classifier, fitted on the auditor's subjects or on the guides'."""
    part = "auditor" if name == "auditor" else "guide"

    def build(out: Path, progress) -> None:
        inner = splits(study)[part].split({"fit": 0.75, "hold": 0.25}, seed=study.split_seed)
        classifier = build_classifier(
            {"female": "binary"}, settings.architecture, settings.seed
        ).to(accelerator())
        fit = inner["fit"]
        for _ in progress.track(
            fit_classifier(classifier, fit.load(), fit.labels(), settings), settings.steps, name
        ):
            pass
        hold, labels = inner["hold"].load(), inner["hold"].labels()
        calibrate(classifier, hold, labels)
        right = (predict(classifier, hold).logit > 0) == (labels == 1)
        report = {
            "sensitivity": float(right[labels == 1].float().mean()),
            "specificity": float(right[labels == 0].float().mean()),
        }
        save_classifier(out, classifier, {"hold_out": report})

    return run_stage(None, f"judge-{name}", settings, cohort_digest(study), build)


def _fit_oracle(study: Study) -> Path:
    def build(out: Path, progress) -> None:
        part = splits(study)["auditor"]
        progress.say(f"measuring {len(part)} slices")
        oracle = fit_oracle(part.load().numpy(), part.labels().numpy(), list(part.table.contrast))
        oracle.save(out / "oracle.json")

    return run_stage(None, "oracle", {}, cohort_digest(study), build)


def judges_digest(study: Study) -> list[str]:
    """What a stage that uses the judges depends on."""
    folders = [
        fit_judge(study, name, settings) for name, settings in classifier_settings(study).items()
    ]
    return [content_digest(folder) for folder in (*folders, _fit_oracle(study))]
