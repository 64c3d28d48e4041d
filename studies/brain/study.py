"""The whole study over seeds: every arm tuned, sampled, read by every judge, and written down.

`python -m studies study` makes `results/brain`: readings of every image, so that anyone can
recompute every share. With `--images 4000` it makes `results/brain-4000`, in which shares by prompt
are told more finely.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.errors import SettingsError
from fairlib.io import to_images, write_bytes
from fairlib.measures.distances import mmd_interval
from fairlib.models.classifier import (
    WIDE_MAX,
    Classifier,
    ClassifierSettings,
    build_classifier,
    fit_classifier,
    load_classifier,
    predict,
    save_classifier,
    truth_of,
)
from fairlib.models.clip import load_clip
from fairlib.models.generator import Generator
from fairlib.settings import to_dict
from studies.brain.cohorts import cohort_digest, splits, table_digest, training_cohort
from studies.brain.judges import Judges, classifier_settings, fit_judges, judges_digest
from studies.brain.prompts import EVALUATION_PROMPTS, FIDELITY_PROMPTS
from studies.brain.readings import arm_readings, generate, prompts_of, read_images
from studies.brain.settings import ARMS, Study, arm_settings
from studies.brain.tuning import base_digest, history, tune_arm, tuned_generator
from studies.engine.manifest import content_digest
from studies.engine.places import accelerator, repository
from studies.engine.results import INPUTS, growing, merged, same_study, write_record, write_table
from studies.engine.stage import run_stage

ATTRIBUTES = {
    "contrast": ("t1", "t1ce", "t2", "flair"),
    "grade": ("none", "LGG", "HGG"),
    "side": ("none", "left", "right"),
}
SLICE_COLUMNS = ["subject", "sex", "grade", "contrast", "side"]


def slice_readings(study: Study, judges: Judges, judges_key: list[str]) -> pd.DataFrame:
    """What every judge says of the test slices: one row a slice, with its subject and true sex."""

    def build(out: Path, progress) -> None:
        test = splits(study)["test"]
        progress.say(f"reading {len(test)} test slices")
        table = test.table[SLICE_COLUMNS].reset_index(drop=True)
        readings = judges.read(test.load(), list(table.contrast))
        table = table.assign(**{name: np.round(values, 5) for name, values in readings.items()})
        write_bytes(out / "slices.csv", table.to_csv(index=False).encode())

    folder = run_stage(None, "slice-readings", {}, [*judges_key, *cohort_digest(study)], build)
    return pd.read_csv(folder / "slices.csv", keep_default_na=False, na_values=[""])


def attributes(study: Study) -> Classifier:
    """The classifier of contrast, grade and side, fitted on synthetic radiology slices other than
    the generator's.
    """
    settings = ClassifierSettings(
        steps=study.judge_steps, seed=21, architecture=WIDE_MAX, augmentation="shift", stream=6
    )

    def build(out: Path, progress) -> None:
        cohort = training_cohort(study, seed=31)
        images = ((cohort.load() + 1) * 127.5).round().to(torch.uint8)
        classifier = build_classifier(ATTRIBUTES, settings.architecture, settings.seed)
        truth = truth_of(cohort.table, ATTRIBUTES)
        steps = fit_classifier(classifier.to(accelerator()), images, truth, settings)
        for _ in progress.track(steps, settings.steps, "attributes"):
            pass
        save_classifier(out, classifier)

    folder = run_stage(None, "attributes", settings, [study.effect, str(study.radiology)], build)
    return load_classifier(folder).to(accelerator())


def fidelity(
    study: Study, classifier: Classifier, generator: Generator, seed: int, images: int
) -> dict[str, float]:
    """Shares of `images` images that show the contrast, tumour, side and grade their prompt asked
    for.
    """
    prompts = prompts_of(images, FIDELITY_PROMPTS)
    drawn = generate(generator, study, 900 + seed, images, FIDELITY_PROMPTS)
    read = predict(classifier, to_images(drawn))
    seen = pd.DataFrame({name: read.classes(name) for name in ATTRIBUTES})
    asked = pd.DataFrame({name: [getattr(p, name) for p in prompts] for name in ATTRIBUTES})
    ill = asked.grade != "none"
    return {
        "contrast": float((seen.contrast == asked.contrast).mean()),
        "tumour": float(((seen.grade != "none") == ill).mean()),
        "side": float((seen.side == asked.side)[ill].mean()),
        "grade": float((seen.grade == asked.grade)[ill].mean()),
    }


def consistency(clip, guide, images: Tensor, base: Tensor) -> dict[str, float]:
    """Mean CLIP cosine to the same-noise original, over all images and over those whose class
    stays.
    """
    with torch.no_grad():
        now, before = (to_images(images.to(accelerator())) for images in (images, base))
        cosine = torch.cat(
            [
                (clip.embed_images(a) * clip.embed_images(b)).sum(-1)
                for a, b in zip(now.split(50), before.split(50), strict=True)
            ]
        )
        stays = torch.cat(
            [
                (guide(a) > 0) == (guide(b) > 0)
                for a, b in zip(now.split(50), before.split(50), strict=True)
            ]
        )
    return {
        "cosine": float(cosine.mean()),
        "cosine_kept": float(cosine[stays].mean()),
        "kept": float(stays.float().mean()),
    }


def results_folder(study: Study) -> Path:
    """Where the study's tables belong: `results/brain`, or beside it for another number of images,
    as `results/brain-4000`.
    """
    return (
        repository()
        / "results"
        / ("brain" if study.images == Study.images else f"brain-{study.images}")
    )


def run_study(
    study: Study,
    arms: list[str],
    seeds: list[int],
    out: Path | None = None,
    fidelity_images: int = 240,
    readings_only: bool = False,
    **changes,
) -> Path:
    """Tune, sample, read and measure every arm at every seed; write the tables after every seed.
    Returns their folder.

    With `readings_only` nothing but the judges' readings of `arms` is made: no untuned images to
    measure against, unless `arms` names them ("base"). Raises `SettingsError` on an unknown arm,
    `DataError` when the folder holds another study.
    """
    arms, seeds = (
        list(dict.fromkeys(given)) for given in (arms if readings_only else ["base", *arms], seeds)
    )
    for arm in arms:
        if arm != "base" and arm_settings(study, arm, 0)[0].guide not in classifier_settings(study):
            raise SettingsError(
                f"arm {arm!r} follows a guide that only `python -m studies ablation` fits"
            )
    out = out or results_folder(study)
    same_study(out / "study.json", identity(study) | {"changes": changes})
    judges, key = fit_judges(study), judges_digest(study)
    base, slices = Generator.load(study.weights, accelerator()), slice_readings(study, judges, key)
    measures = None if readings_only else _measures_against(study, judges, fidelity_images)
    tables: dict[str, list] = {"readings": [], "measures": [], "history": []}
    for seed in seeds:
        original = None
        for arm in arms:
            folder = None if arm == "base" else tune_arm(study, judges, key, arm, seed, **changes)
            generator = base if folder is None else tuned_generator(base, folder)
            name = base_digest(study) if folder is None else content_digest(folder)
            readings, images = arm_readings(study, judges, key, generator, name, arm, seed)
            tables["readings"].append(readings)
            if measures is not None:
                original = images if arm == "base" else original
                tables["measures"].append(measures(arm, seed, generator, images, original))
            if folder is not None:
                tables["history"].append(history(folder).assign(arm=arm, seed=seed))
        _write(out, study, tables, slices, changes)
    return out


def _measures_against(study: Study, judges: Judges, fidelity_images: int) -> Callable[..., dict]:
    """The function that measures one arm at one seed against the test slices and the untuned
    images: one row of a table.
    """
    clip, seen = load_clip(study.clip).to(accelerator()), attributes(study)
    test = splits(study)["test"]
    target = features_of(seen, test.load()), test.table.subject.to_numpy(str)

    def measure(
        arm: str, seed: int, generator: Generator, images: Tensor, original: Tensor
    ) -> dict:
        guide = judges.guides[ARMS[arm].guide if arm in ARMS else "robust"]
        return {
            "arm": arm,
            "seed": seed,
            **fidelity(study, seen, generator, seed, fidelity_images),
            **consistency(clip, guide, images, original),
            **quality(
                features_of(seen, to_images(images)),
                features_of(seen, to_images(original)),
                target,
                seed,
            ),
        }

    return measure


def features_of(classifier: Classifier, images: Tensor) -> np.ndarray:
    """What quality is measured on: the attribute classifier's last layer, [N, D]."""
    return predict(classifier, images).features.numpy()


def quality(
    features: np.ndarray, base: np.ndarray, target: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, float]:
    """Unbiased MMD to an equal number of target slices, and its difference to the base's, with
    intervals.

    Features are in standard deviations of the target's, so that none of them rules for its scale
    alone.
    """
    rng = np.random.default_rng([41, seed])
    slices, subjects = target
    centre, spread = slices.mean(0), slices.std(0).clip(1e-3)
    features, base, slices = ((values - centre) / spread for values in (features, base, slices))
    chosen = rng.choice(len(slices), min(len(features), len(slices)), replace=False)
    real, clusters = slices[chosen], subjects[chosen]
    found = mmd_interval(features, real, rng, y_clusters=clusters, replicates=200)
    against = mmd_interval(features, real, rng, y_clusters=clusters, replicates=200, base=base)
    return {
        "mmd": found.estimate,
        "mmd_low": found.low,
        "mmd_high": found.high,
        "mmd_change": against.estimate,
        "mmd_change_low": against.low,
        "mmd_change_high": against.high,
    }


def _write(
    out: Path, study: Study, tables: dict[str, list], slices: pd.DataFrame, changes: dict
) -> None:
    """Write the tables, beside what earlier calls left there: arms and seeds made anew take the
    place of the old.
    """
    made = identity(study) | {"changes": changes}
    with growing(out, made):
        readings = merged(out / "readings.csv.gz", pd.concat(tables["readings"]))
        write_table(out / "readings.csv.gz", readings)
        write_table(out / "slices.csv.gz", slices)
        if tables["measures"]:
            write_table(
                out / "measures.csv", merged(out / "measures.csv", pd.DataFrame(tables["measures"]))
            )
        if tables["history"]:
            write_table(
                out / "history.csv",
                merged(out / "history.csv", pd.concat(tables["history"])),
                decimals=6,
            )
        write_record(
            out / "study.json", made, readings, prompts=[p.text for p in EVALUATION_PROMPTS]
        )


def identity(study: Study) -> dict:
    """What makes results comparable: all settings, and digests of the base model, of CLIP and of
    the cohort's table.
    """
    inputs = {
        "weights": base_digest(study),
        "clip": content_digest(study.clip),
        "cohort": table_digest(study),
    }
    return {"study": to_dict(study), INPUTS: inputs}


__all__ = [
    "attributes",
    "consistency",
    "fidelity",
    "read_images",
    "results_folder",
    "run_study",
    "slice_readings",
]
