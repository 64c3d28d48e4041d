"""What each part of the default contributes: it tuned again with one thing at a time taken away, or
done otherwise.

`python -m studies ablation` makes `results/ablation`. All variants of a seed start from the same
noises, in tuning and in measuring, so that their differences are paired. Settings were not chosen
from this table.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from fairlib.errors import SettingsError
from fairlib.io import to_images
from fairlib.measures.shares import Evaluator, share_table, within_sex_table
from fairlib.models.classifier import ClassifierSettings, Ensemble, load_classifier
from fairlib.models.clip import load_clip
from fairlib.models.generator import Generator
from studies.brain.cohorts import splits
from studies.brain.judges import Judges, classifier_settings, fit_judge, fit_judges, judges_digest
from studies.brain.prompts import EVALUATION_PROMPTS
from studies.brain.readings import arm_readings
from studies.brain.settings import ABLATIONS, Study
from studies.brain.study import (
    attributes,
    consistency,
    features_of,
    identity,
    quality,
    slice_readings,
)
from studies.brain.tuning import base_digest, history, tune_arm, tuned_generator
from studies.engine.manifest import content_digest
from studies.engine.places import accelerator, repository
from studies.engine.results import (
    growing,
    merged,
    read_table,
    same_study,
    write_record,
    write_table,
)

ENSEMBLE_SEEDS = (10, 11, 12)


def guide_settings(study: Study, name: str) -> list[ClassifierSettings]:
    """The classifiers that make up guide `name`; their mean logit is followed."""
    plain = classifier_settings(study)["plain"]
    if name == "bare":
        return [replace(plain, augmentation="none")]
    if name == "ensemble":
        return [replace(plain, seed=seed) for seed in ENSEMBLE_SEEDS]
    return [classifier_settings(study)[name]]


def with_guide(study: Study, judges: Judges, key: list[str], name: str) -> tuple[Judges, list[str]]:
    """The judges and what they depend on, with guide `name` among them."""
    if name in judges.guides:
        return judges, key
    folders = [fit_judge(study, name, settings) for settings in guide_settings(study, name)]
    members = [load_classifier(folder) for folder in folders]
    guide: nn.Module = (
        members[0] if len(members) == 1 else Ensemble(members).eval().requires_grad_(False)
    )
    added = replace(judges, guides={**judges.guides, name: guide.to(accelerator())})
    return added, [*key, *(content_digest(folder) for folder in folders)]


def run_ablation(
    study: Study, arms: list[str], seeds: list[int], out: Path | None = None, **changes
) -> Path:
    """Tune, sample, read and measure every variant; the tables are written after each. Returns
    their folder.

    Raises `SettingsError` on a variant that `ABLATIONS` does not know.
    """
    arms, seeds = list(dict.fromkeys(arms)), list(dict.fromkeys(seeds))
    for arm in arms:
        if arm not in ABLATIONS:
            raise SettingsError(f"unknown arm {arm!r}; known arms: {', '.join(ABLATIONS)}")
    out = out or repository() / "results" / "ablation"
    same_study(out / "study.json", identity(study))
    judges, key = fit_judges(study), judges_digest(study)
    base, clip, seen = (
        Generator.load(study.weights, accelerator()),
        load_clip(study.clip).to(accelerator()),
        attributes(study),
    )
    test = splits(study)["test"]
    target = features_of(seen, test.load()), test.table.subject.to_numpy(str)
    for seed in seeds:
        original = arm_readings(study, judges, key, base, base_digest(study), "base", seed)[1]
        for arm in arms:
            own, own_key = with_guide(study, judges, key, ABLATIONS[arm].guide)
            folder = tune_arm(study, own, own_key, arm, seed, **changes)
            readings, images = arm_readings(
                study,
                own,
                own_key,
                tuned_generator(base, folder),
                content_digest(folder),
                arm,
                seed,
            )
            row = {
                "arm": arm,
                "seed": seed,
                **shares(readings, slice_readings(study, own, own_key), ABLATIONS[arm].guide),
                **consistency(clip, own.guides[ABLATIONS[arm].guide], images, original),
                **quality(
                    features_of(seen, to_images(images)),
                    features_of(seen, to_images(original)),
                    target,
                    seed,
                ),
                "seconds": float(history(folder).seconds.median()),
            }
            _write(out, study, row)
    return out


def shares(readings: pd.DataFrame, slices: pd.DataFrame, guide: str) -> dict[str, float]:
    """Corrected shares by the arm's own guide, the auditor and the oracle; how often they part; the
    size within each sex.
    """
    rng, judges = (
        np.random.default_rng(2),
        {"guide": f"guide_{guide}", "auditor": "auditor", "oracle": "oracle"},
    )
    found: dict[str, float] = {"images": len(readings)}
    evaluators = [Evaluator(name, column) for name, column in judges.items()]
    for row in share_table(readings, slices, evaluators, rng, ("arm",), 300).itertuples():
        found |= {
            row.evaluator: row.corrected,
            f"{row.evaluator}_low": row.corrected_low,
            f"{row.evaluator}_high": row.corrected_high,
        }
    sizes = within_sex_table(readings, slices, evaluators[-1:], rng, ("arm",), 100)
    for row in sizes[sizes.against == "truth"].itertuples():
        found[f"size_{row.sex}"] = row.difference
    return found | {
        "disagree": float(((readings[judges["guide"]] > 0.5) != (readings.oracle > 0.5)).mean())
    }


def _write(out: Path, study: Study, row: dict) -> None:
    made = identity(study)
    with growing(out, made):
        table = merged(out / "ablation.csv", pd.DataFrame([row]))
        write_table(out / "ablation.csv", table)
        write_record(out / "study.json", made, table, prompts=[p.text for p in EVALUATION_PROMPTS])


def load_ablation(folder: str | Path | None = None) -> pd.DataFrame:
    """The table of `results/ablation`, in the order of `ABLATIONS`, with what each variant does
    (`says`); empty if not made.
    """
    path = Path(folder or repository() / "results" / "ablation") / "ablation.csv"
    if not path.is_file():
        return pd.DataFrame(columns=["arm", "seed", "says"])
    table = read_table(path)
    table["says"] = table.arm.map({name: arm.says for name, arm in ABLATIONS.items()})
    return table.sort_values(
        ["arm", "seed"],
        key=lambda column: (
            column.map({n: i for i, n in enumerate(ABLATIONS)}) if column.name == "arm" else column
        ),
        ignore_index=True,
    )
