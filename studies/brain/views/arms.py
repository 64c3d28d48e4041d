"""Judges, readings and measures of the arms, each from its stage, so that every notebook finds what
another has made.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pandas as pd
from torch import Tensor

from fairlib.io import read_tensors, to_images, write_bytes, write_tensors
from fairlib.models.clip import load_clip
from fairlib.models.generator import Generator
from studies.brain.cohorts import splits
from studies.brain.judges import Judges, fit_judges, judges_digest
from studies.brain.readings import arm_readings, generate, prompts_of, read_images
from studies.brain.settings import ARMS, Study
from studies.brain.study import (
    attributes,
    consistency,
    features_of,
    fidelity,
    quality,
    slice_readings,
)
from studies.brain.tuning import base_digest, history, tune_arm, tuned_generator
from studies.engine.manifest import content_digest
from studies.engine.places import accelerator
from studies.engine.stage import run_stage


@lru_cache(maxsize=2)
def judges_of(study: Study) -> tuple[Judges, tuple[str, ...]]:
    """The judges of `study`, and the digests on which the stages that use them depend."""
    return fit_judges(study), tuple(judges_digest(study))


@lru_cache(maxsize=2)
def base_generator(study: Study) -> Generator:
    """The untuned model, its hashes checked."""
    return Generator.load(study.weights, accelerator())


def judged_slices(study: Study) -> pd.DataFrame:
    """Every judge's reading of the held-out slices: subject, sex, grade, contrast, side, p of each
    judge, extent_mm.
    """
    judges, key = judges_of(study)
    return slice_readings(study, judges, list(key))


def arm(study: Study, name: str, seed: int, tuning: dict) -> tuple[Generator, str, Path | None]:
    """The generator of arm `name` ("base" or a key of `ARMS`), its digest, and the folder of its
    tuning (None: base).

    `tuning`: settings of `AlignmentSettings` that differ from the study's, as {"steps": 30}.
    """
    if name == "base":
        return base_generator(study), base_digest(study), None
    judges, key = judges_of(study)
    folder = tune_arm(study, judges, list(key), name, seed, **tuning)
    return tuned_generator(base_generator(study), folder), content_digest(folder), folder


def arms_readings(
    study: Study, names, seed: int, tuning: dict
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Readings of the arms `names`, one below the other, and their images {arm: uint8 [N, 1, H,
    W]}, same noise in all.
    """
    judges, key = judges_of(study)
    tables, images = [], {}
    for name in names:
        generator, digest, _ = arm(study, name, seed, tuning)
        table, images[name] = arm_readings(study, judges, list(key), generator, digest, name, seed)
        tables.append(table)
    return pd.concat(tables, ignore_index=True), images


def histories(study: Study, names, seed: int, tuning: dict) -> pd.DataFrame:
    """What each tuning step of the arms `names` saw, one arm below the other."""
    folders = {name: arm(study, name, seed, tuning)[2] for name in names}
    return pd.concat(
        [history(folder).assign(arm=name) for name, folder in folders.items()], ignore_index=True
    )


def arms_measures(study: Study, names, seed: int, tuning: dict) -> pd.DataFrame:
    """Prompt fidelity, consistency to the same-noise original and distance to the target cohort,
    one row an arm.
    """
    judges, key = judges_of(study)
    _, images = arms_readings(study, ["base", *names], seed, tuning)

    def build(out: Path, progress) -> None:
        seen, clip, test = (
            attributes(study),
            load_clip(study.clip).to(accelerator()),
            splits(study)["test"],
        )
        target = features_of(seen, test.load()), test.table.subject.to_numpy(str)
        base = features_of(seen, to_images(images["base"]))
        rows = []
        for name in progress.track(names, len(names), "measures"):
            guide = judges.guides[ARMS[name].guide if name in ARMS else "robust"]
            rows.append(
                {
                    "arm": name,
                    **fidelity(study, seen, arm(study, name, seed, tuning)[0], seed, study.images),
                    **consistency(clip, guide, images[name], images["base"]),
                    **quality(features_of(seen, to_images(images[name])), base, target, seed),
                }
            )
        write_bytes(out / "measures.csv", pd.DataFrame(rows).to_csv(index=False).encode())

    settings = {
        "seed": seed,
        "images": study.images,
        "judge_steps": study.judge_steps,
        "radiology": study.radiology,
    }
    inputs = [*key, *(arm(study, name, seed, tuning)[1] for name in names)]
    return pd.read_csv(run_stage(None, "measures", settings, inputs, build) / "measures.csv")


def guidance_sweep(
    study: Study, seed: int, scales, count: int
) -> tuple[pd.DataFrame, dict[float, Tensor]]:
    """Readings of `count` untuned images at each guidance scale (column `scale`), and the images
    {scale: uint8}.
    """
    judges, key = judges_of(study)

    def build(out: Path, progress) -> None:
        tables, kept = [], {}
        for scale in progress.track(scales, len(scales), "guidance scales"):
            kept[f"{scale:g}"] = generate(
                base_generator(study), study, seed, count, guidance_scale=scale
            )
            table = read_images(judges, kept[f"{scale:g}"], prompts_of(count), "base", seed)
            tables.append(table.assign(scale=scale))
        write_tensors(out / "images.safetensors", kept)
        write_bytes(out / "readings.csv", pd.concat(tables).to_csv(index=False).encode())

    settings = {"scales": list(scales), "count": count, "seed": seed, "steps": study.sampling_steps}
    folder = run_stage(None, "guidance", settings, [*key, base_digest(study)], build)
    images = read_tensors(folder / "images.safetensors")
    return pd.read_csv(folder / "readings.csv"), {scale: images[f"{scale:g}"] for scale in scales}
