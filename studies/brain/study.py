"""The brain study and its ablation as data: what the engine runs.

`python -m studies brain` makes `results/brain`, with readings of every image, so that every share
can be recomputed; with `--images 4000` it makes `results/brain-4000`, where shares by prompt are
known more finely. `python -m studies ablation` makes `results/ablation`: the default tuned again
with one thing at a time taken away or done otherwise, from the same noises, so that differences are
paired. Settings were not chosen from that table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from torch import Tensor

from fairlib.measures.shares import within_sex_table
from fairlib.settings import digest
from studies.brain.arms import (
    ABLATIONS,
    ARMS,
    Plan,
    TunedArm,
    base_model,
    clip_model,
    evaluation,
    fidelity_plan,
    generated,
    history,
    tuned,
)
from studies.brain.data import EVALUATION_PROMPTS, BrainSettings, alignment, cohort, split, splits
from studies.brain.evaluators import (
    EVALUATORS,
    EVERYWHERE,
    SLICE_COLUMNS,
    evaluators_of,
    read_images,
)
from studies.brain.quality import attributes, comparison, prompt_fidelity
from studies.brain.report import corrected_shares, criteria
from studies.engine.stage import Artifact
from studies.engine.study import Run, Source, Study, Table


def calibration_images(everyone: Artifact, split_seed: int) -> tuple[Tensor, list[str]]:
    """The test slices and their contrasts, for an evaluator to read."""
    test = split(everyone.load(), split_seed)["test"]
    return test.load(), list(test.table.contrast)


def _read(settings: BrainSettings, seed: int, columns: Iterable[str], source: partial) -> list:
    return [
        read_images(column, list(each.fit(settings, seed)), each.read, source).load()
        for column, each in EVALUATORS.items()
        if column in columns
    ]


def slice_readings(
    settings: BrainSettings, seed: int = 0, columns: Iterable[str] = EVERYWHERE
) -> pd.DataFrame:
    """What evaluators read in the test slices, the calibration set: a row a slice, with its subject
    and true sex. seed: of a run that has tuning classifiers of its own.
    """
    table = splits(settings)["test"].table[SLICE_COLUMNS].reset_index(drop=True)
    source = partial(calibration_images, cohort(settings), settings.split_seed)
    return pd.concat([table, *_read(settings, seed, columns, source)], axis="columns")


def image_readings(
    settings: BrainSettings,
    seed: int,
    images: Artifact[Tensor],
    plan: Plan | None = None,
    columns: Iterable[str] = EVERYWHERE,
) -> pd.DataFrame:
    """What evaluators read in generated images: a row an image, with its prompt."""
    plan = plan or evaluation(settings, seed)
    found = _read(settings, seed, columns, partial(generated, images, plan))
    return pd.concat([plan.table(), *found], axis="columns")


def readings(run: Run) -> pd.DataFrame:
    """The table of readings of one arm and seed; its own tuning classifier is among them."""
    columns = {*EVERYWHERE, run.arm.evaluator}
    table = image_readings(run.settings, run.seed, run.artifact, columns=columns)
    table.insert(0, "arm", run.name)
    table.insert(1, "seed", run.seed)
    return table


def compared(run: Run) -> dict[str, float]:
    """One arm's images against the same-noise images of the base model and the test slices."""
    settings = run.settings
    return comparison(
        run.artifact,
        run.of("untuned").artifact,
        list(EVALUATORS[run.arm.evaluator].fit(settings, run.seed)),
        clip_model(settings),
        attributes(settings),
        cohort(settings),
        settings.split_seed,
        run.seed,
    ).load()


def measures(run: Run) -> pd.DataFrame:
    """Prompt fidelity, consistency and distance to the cohort: one row."""
    plan = fidelity_plan(run.settings, run.seed)
    images = run.arm.run(run.settings, run.seed, plan)
    fidelity = prompt_fidelity(attributes(run.settings), images, plan).load()
    return pd.DataFrame([{"arm": run.name, "seed": run.seed, **fidelity, **compared(run)}])


def tuning_history(run: Run) -> pd.DataFrame:
    """What each step of one tuning recorded."""
    return history(tuned(run.settings, run.arm.tuning, run.seed))


def cost(run: Run) -> pd.DataFrame:
    """Denoiser evaluations of one arm by kind: kind, forward, backward; one an image and solver
    step. The base cache is counted whole, though arms that share it draw it once.
    """
    settings = run.settings
    rows = [("sampling", settings.images * settings.sampling_steps, 0)]
    if _is_tuned(run.name):
        chosen = alignment(settings, run.arm.tuning, run.seed)
        cache = len(EVALUATION_PROMPTS) * chosen.cache_size * chosen.sampling_steps
        log = tuning_history(run)[["forward", "backward"]].sum()
        rows.append(("base cache", cache, 0))
        rows.append(("tuning", log.forward - log.backward, 0))
        rows.append(("replay", log.backward, log.backward))
    return pd.DataFrame(rows, columns=["kind", "forward", "backward"])


def ablation(run: Run) -> pd.DataFrame:
    """Shares, disagreement, anatomy and quality of one variant: one row."""
    slices = slice_readings(run.settings, run.seed, {*EVERYWHERE, run.arm.evaluator})
    found = shares(readings(run), slices, run.arm.tuning.classifier)
    seconds = float(tuning_history(run).seconds.median())
    row = {"arm": run.name, "seed": run.seed, **found, **compared(run), "seconds": seconds}
    return pd.DataFrame([row])


def shares(table: pd.DataFrame, slices: pd.DataFrame, kind: str) -> dict[str, float]:
    """Corrected shares by the arm's own tuning classifier `kind`, the held-out classifier and the
    anatomical measurement; how often the first and the last disagree; the size within each sex.
    """
    rng, evaluators = np.random.default_rng(2), evaluators_of(kind)
    found = {"images": len(table), **corrected_shares(table, slices, evaluators, rng, 300)}
    sizes = within_sex_table(table, slices, evaluators[-1:], rng, ("arm",), 100)
    for row in sizes[sizes.against == "truth"].itertuples():
        found[f"size_{row.sex}"] = row.difference
    disagree = (table[evaluators[0].column] > 0.5) != (table.anatomy > 0.5)
    return found | {"disagree": float(disagree.mean())}


def _table_digest(settings: BrainSettings) -> str:
    """Who is in the cohort, and what is known of them."""
    return digest(cohort(settings).load().table.to_csv(index=False))


def _is_tuned(arm: str) -> bool:
    return isinstance((ARMS | ABLATIONS)[arm], TunedArm)


def _folder(settings: BrainSettings) -> str:
    usual = settings.images == BrainSettings.images
    return "brain" if usual else f"brain-{settings.images}"


STUDY = Study(
    "study",
    BrainSettings,
    ARMS,
    tables={
        "readings": Table(readings, compressed=True),
        "slices": Table(slice_readings, "study", compressed=True),
        "measures": Table(measures),
        "history": Table(tuning_history, arms=_is_tuned, decimals=6),
        "cost": Table(cost),
    },
    sources={
        "phantom": Source(cohort, _table_digest),
        "brats": Source(cohort, _table_digest, "patients"),
    },
    criteria=criteria,
    evaluators=EVALUATORS,
    bases={"weights": base_model, "clip": clip_model},
    references=lambda settings: ("untuned",),
    default_arms=lambda settings: ("class-standard", "transport-robust", "conditional"),
    folder=_folder,
)
ABLATION = replace(
    STUDY,
    name="ablation",
    arms=ABLATIONS,
    tables={
        "readings": STUDY.tables["readings"],
        "ablation": Table(ablation, arms=_is_tuned),
        "cost": Table(cost),
    },
    criteria=lambda tables, settings: [],
    default_arms=lambda settings: tuple(ABLATIONS),
    seeds=(1,),
    folder=lambda settings: "ablation",
)
