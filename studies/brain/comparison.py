"""The comparison of methods on one base as data: `plan.md` beside this file says what it decides.

`python -m studies comparison` makes `results/comparison`: readings of every image of every arm and
seed, what evaluators read in the calibration sets, and what each tuning cost. `python -m studies
sweep` makes `results/sweep`, from which rates and strengths are chosen on a seed that no result
uses. Every seed has tuning classifiers and a base cache of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from fairlib.cohorts.cohort import Cohort
from fairlib.io import write_json
from fairlib.models.clip import Clip
from studies.brain import comparison_report, rivals
from studies.brain.arms import (
    TunedArm,
    base_images,
    base_model,
    clip_model,
    evaluation,
    generated,
    history,
    tuned,
    tuned_images,
)
from studies.brain.calibration import COLUMNS, calibration_sets, known_images, test_images
from studies.brain.data import EVALUATION_PROMPTS, cohort, split
from studies.brain.evaluators import (
    BrainEvaluator,
    anatomy,
    area,
    classify,
    combined,
    heldout_classifier,
    measure_anatomy,
    measure_area,
    read_images,
    selection_classifier,
    tuning_classifier,
)
from studies.brain.quality import attributes, comparison, consistency, prompt_fidelity, read_values
from studies.brain.settings import ComparisonSettings, Tuning, alignment
from studies.brain.study import STUDY as BRAIN
from studies.brain.transfer import transfer
from studies.engine.progress import Progress
from studies.engine.stage import Artifact, stage
from studies.engine.study import Arm, Run, Study, Table

RATES = (4e-5, 1.2e-4, 3.6e-4)
KINDS = ("standard", "robust", "standard_short", "robust_short")
# as Shen et al. work: batches of 24 images of one prompt, the gradient through all steps with the
# same weight; 18 of its steps cost what 30 of ours do
PUBLISHED = {
    "prompts_per_step": 1,
    "images_per_prompt": 24,
    "replay_scheme": "all",
    "replay_steps": 8,
    "step_weights": "flat",
    "steps": 18,
}
GUIDANCES = (0.15, 0.5, 1.5)
# where the best value lay at an edge, one further on that side
FURTHER = {
    "class-standard": 1.3e-5,
    "transport-robust": 1.3e-5,
    "target-images": 1.1e-3,
    "batch-guidance": 4.5,
}
# chosen in `results/sweep` by the rule of `plan.md`
CHOSEN = {
    "class": 1.3e-5,
    "class-published": 1.2e-4,
    "quantile": 4e-5,
    "transport": 1.3e-5,
    "mean_kl": 4e-5,
    "target-images": 3.6e-4,
    "grpo": 1.2e-4,
    "batch-guidance": 1.5,
}
POOL = 3.0  # images generated for each that is kept, when noises are chosen


def _by(kind: str) -> BrainEvaluator:
    def fit(settings: ComparisonSettings, seed: int) -> list[Artifact]:
        return tuning_classifier(settings, kind, seed)

    return BrainEvaluator(f"{kind} tuning classifier", kind, fit=fit, read=classify)


EVALUATORS = {
    **{kind: _by(kind) for kind in (*KINDS, "shuffled")},
    "selection": BrainEvaluator(
        "selection classifier", "selection", fit=selection_classifier, read=classify
    ),
    "heldout": BrainEvaluator(
        "held-out classifier", "heldout", fit=heldout_classifier, read=classify
    ),
    "anatomy": BrainEvaluator(
        "anatomical measurement", "anatomy", fit=anatomy, read=measure_anatomy
    ),
    "area": BrainEvaluator("measured area", "area", fit=area, read=measure_area),
}
EVERYWHERE = ("standard", "robust", "selection", "heldout", "anatomy", "area")
CALIBRATED = (*KINDS, *EVERYWHERE[2:])


def _columns(run: Run, columns: Iterable[str], source: partial) -> list[pd.DataFrame]:
    chosen = [EVALUATORS[name] for name in EVALUATORS if name in set(columns)]
    return [
        read_images(each.column, list(each.fit(run.settings, run.seed)), each.read, source).load()
        for each in chosen
    ]


def readings(run: Run) -> pd.DataFrame:
    """What evaluators read in the images of one arm and seed: a row an image, with its prompt."""
    plan = evaluation(run.settings, run.seed)
    found = _columns(run, {*EVERYWHERE, run.arm.evaluator}, partial(generated, run.artifact, plan))
    return pd.concat([plan.table(), *found], axis="columns")


def calibration(run: Run) -> pd.DataFrame:
    """What the evaluators of one seed read in every calibration set: a row an image of known
    sex.
    """
    parts = []
    for name, known in calibration_sets(run.settings).items():
        found = _columns(run, CALIBRATED, partial(known_images, known))
        parts.append(
            pd.concat([known.load().table[COLUMNS], *found], axis="columns").assign(set=name)
        )
    found = _columns(run, CALIBRATED, partial(_test_slices, cohort(run.settings), run.settings))
    table = test_images(run.settings).table
    parts.append(pd.concat([table, *found], axis="columns").assign(set="test"))
    return pd.concat(parts, ignore_index=True)


def _test_slices(
    everyone: Artifact[Cohort], settings: ComparisonSettings
) -> tuple[Tensor, list[str]]:
    test = split(everyone.load(), settings.split_seed)["test"]
    return test.load(), list(test.table.contrast)


def measures(run: Run) -> pd.DataFrame:
    """Prompt fidelity, CLIP cosine to the same-noise images of the untuned model, and distance to
    the cohort.
    """
    settings = run.settings
    plan = evaluation(settings, run.seed)
    shown = prompt_fidelity(attributes(settings), run.artifact, plan).load()
    found = comparison(
        run.artifact,
        run.of("untuned").artifact,
        list(EVALUATORS[run.arm.evaluator].fit(settings, run.seed)),
        clip_model(settings),
        attributes(settings),
        cohort(settings),
        settings.split_seed,
        run.seed,
    ).load()
    return pd.DataFrame([shown | found])


def choice_readings(run: Run) -> pd.DataFrame:
    """What a rate or a strength is chosen by: the readings of the selection classifier and, to look
    at, of the arm's own tuning classifier. No evaluator reads a swept arm.
    """
    plan = evaluation(run.settings, run.seed)
    source = partial(generated, run.artifact, plan)
    found = _columns(run, {"selection", run.arm.evaluator}, source)
    return pd.concat([plan.table(), *found], axis="columns")


@stage(load=read_values)
def cosines(
    out: Path,
    progress: Progress,
    images: Artifact[Tensor],
    base: Artifact[Tensor],
    classifier: list[Artifact],
    clip: Artifact[Clip],
) -> None:
    """CLIP cosine of an arm's images to the untuned model's of the same noises."""
    found = consistency(clip.load(), combined(classifier), images.load(), base.load())
    write_json(out / "values.json", list(found.items()))


def choice_cosine(run: Run) -> pd.DataFrame:
    """CLIP cosine to the untuned model's images, by which too strong a setting is refused."""
    settings, base = run.settings, run.of("untuned").artifact
    classifier = list(EVALUATORS["selection"].fit(settings, run.seed))
    return pd.DataFrame([cosines(run.artifact, base, classifier, clip_model(settings)).load()])


def _finetuning_cost(run: Run) -> list[tuple[str, int, int]]:
    chosen = rivals.target_finetuning(run.settings, run.seed, CHOSEN["target-images"])
    images = chosen.steps * chosen.batch_size
    return [("fine-tuning", images, images)]


def _grpo_cost(run: Run) -> list[tuple[str, int, int]]:
    """The base model predicts once more wherever a step carries gradient."""
    chosen = rivals.grpo_settings(run.settings, run.seed, CHOSEN["grpo"])
    images = chosen.steps * chosen.prompts_per_step * chosen.images_per_prompt
    replayed = images * chosen.replay_steps
    sampled = ("tuning", images * chosen.sampling_steps, 0)
    return [sampled, ("replay", 2 * replayed, replayed)]


def _kept_cost(run: Run) -> list[tuple[str, int, int]]:
    steps, prompts = run.settings.sampling_steps, len(EVALUATION_PROMPTS)
    cache = alignment(run.settings, Tuning("robust"), run.seed).cache_size
    more = rivals.draws_of(run.artifact) - run.settings.images
    return [("base cache", prompts * cache * steps, 0), ("images not kept", more * steps, 0)]


RIVAL_COST = {
    "target-images": _finetuning_cost,
    "grpo": _grpo_cost,
    "generate-and-keep": _kept_cost,
    "choose-noises": _kept_cost,
}


def tuning_history(run: Run) -> pd.DataFrame:
    """What each step of one tuning recorded."""
    return history(tuned(run.settings, run.arm.tuning, run.seed))


def cost(run: Run) -> pd.DataFrame:
    """Denoiser evaluations of one arm by kind: kind, forward, backward; one an image and solver
    step, the base cache included.
    """
    settings, rows = run.settings, []
    if isinstance(run.arm, TunedArm):
        chosen = alignment(settings, run.arm.tuning, run.seed)
        log = tuning_history(run)[["forward", "backward"]].sum()
        used = chosen.cache_size
        if chosen.family != "transport":  # no target waits for the whole cache
            visits = chosen.steps * chosen.prompts_per_step / len(EVALUATION_PROMPTS)
            used = min(used, round(visits * chosen.images_per_prompt))
        rows.append(("base cache", len(EVALUATION_PROMPTS) * used * chosen.sampling_steps, 0))
        rows.append(("tuning", log.forward - log.backward, 0))
        rows.append(("replay", log.backward, log.backward))
    else:
        rows += RIVAL_COST.get(run.name.split("@")[0], lambda run: [])(run)
    rows.append(("sampling", settings.images * settings.sampling_steps, 0))
    return pd.DataFrame(rows, columns=["kind", "forward", "backward"])


# ---- the arms


def arm(
    says: str, classifier: str, family: str, target: Any = "marginal", **changes: Any
) -> TunedArm:
    """The entry of an arm that tunes: see `Tuning`."""
    tuning = Tuning(classifier, family, target, {"learning_rate": CHOSEN[family], **changes})
    return TunedArm(partial(tuned_images, tuning), says, "fine-tuning", classifier, tuning=tuning)


WORDS = {
    "class": "class targets",
    "quantile": "quantile targets within each batch",
    "transport": "transport targets",
    "mean_kl": "divergence of the mean probability",
}


def _factorial() -> dict[str, TunedArm]:
    return {
        f"{family.replace('_', '-')}-{kind.replace('_', '-')}": arm(
            f"{words}, {kind.replace('_', ' ')} tuning classifier", kind, family
        )
        for family, words in WORDS.items()
        for kind in (KINDS if family in ("class", "transport") else KINDS[:2])
    }


UNTUNED = Arm(base_images, "the untuned model", "nowhere", "robust")
ARMS: dict[str, Arm] = {
    "untuned": UNTUNED,
    **_factorial(),
    "class-published": arm(
        "class targets in the published order of work, standard tuning classifier",
        "standard",
        "class",
        learning_rate=CHOSEN["class-published"],
        **PUBLISHED,
    ),
    "last-step": arm(
        "transport targets, the gradient through the last step alone",
        "robust",
        "transport",
        replay_scheme="last",
        replay_steps=1,
    ),
    "target-images": Arm(
        partial(rivals.target_images, CHOSEN["target-images"]),
        "fine-tuning on the target cohort's images",
        "fine-tuning",
        "robust",
    ),
    "grpo": Arm(
        partial(rivals.grpo_images, CHOSEN["grpo"]),
        "policy gradient (Fair-GRPO)",
        "fine-tuning",
        "robust",
    ),
    "generate-and-keep": Arm(
        partial(rivals.kept, "class", 1.0),
        "generate and keep by the tuning classifier's class",
        "selection",
        "robust",
    ),
    "choose-noises": Arm(
        partial(rivals.kept, "transport", POOL),
        "of a pool of noises, those whose readings match the target",
        "selection",
        "robust",
    ),
    "batch-guidance": Arm(
        partial(rivals.guided, rivals.batch_guided, CHOSEN["batch-guidance"]),
        "batch guidance (Balancing Act)",
        "sampling",
        "robust",
    ),
    "null-offset": Arm(
        partial(rivals.guided, rivals.offset_guided, None),
        "the null prompt moved (StayFair)",
        "sampling",
        "robust",
    ),
    "conditional": arm(
        "transport targets, each grade toward its own share", "robust", "transport", "conditional"
    ),
    "null-shuffled": arm(
        "null: transport targets, a classifier fitted on shuffled sexes", "shuffled", "transport"
    ),
    "null-own": arm(
        "null: transport targets, the untuned model's own distribution",
        "robust",
        "transport",
        "own",
    ),
    "words-female": Arm(
        partial(rivals.worded, "54-year-old woman."),
        "null: the untuned model, prompts that say woman",
        "sampling",
        "robust",
    ),
    "words-male": Arm(
        partial(rivals.worded, "54-year-old man."),
        "null: the untuned model, prompts that say man",
        "sampling",
        "robust",
    ),
}


def transferred(run: Run) -> pd.DataFrame:
    """What evaluators read in the images of one arm and seed under the conditions of `transfer`."""
    return transfer(EVALUATORS, run)


def _tuned_at(classifier: str, family: str, changes: dict, says: str, rate: float) -> TunedArm:
    return arm(says, classifier, family, learning_rate=rate, **changes)


def _made_at(run: Callable, acts: Any, says: str, value: float) -> Arm:
    return Arm(partial(run, value), says, acts, "robust")


def _swept() -> dict[str, Arm]:
    cells: dict[str, tuple[str, str, dict]] = {
        "class-standard": ("standard", "class", {}),
        "class-published": ("standard", "class", PUBLISHED),
        "quantile-robust": ("robust", "quantile", {}),
        "transport-robust": ("robust", "transport", {}),
        "mean-kl-robust": ("robust", "mean_kl", {}),
    }
    makers = {name: partial(_tuned_at, *cell) for name, cell in cells.items()}
    others = {"target-images": rivals.target_images, "grpo": rivals.grpo_images}
    makers |= {name: partial(_made_at, run, "fine-tuning") for name, run in others.items()}
    guided = partial(rivals.guided, rivals.batch_guided)
    makers["batch-guidance"] = partial(_made_at, guided, "sampling")
    arms: dict[str, Arm] = {"untuned": UNTUNED}
    for name, make in makers.items():
        values = GUIDANCES if name == "batch-guidance" else RATES
        for value in sorted({*values, FURTHER.get(name, values[0])}):
            arms[f"{name}@{value:g}"] = make(f"{name} at {value:g}", value)
    return arms


SWEPT = _swept()


def _tuned(name: str) -> bool:
    return isinstance((ARMS | SWEPT)[name], TunedArm)


def _untuned(name: str) -> bool:
    return name == "untuned"


def criteria(tables: dict[str, pd.DataFrame], settings: ComparisonSettings) -> list[dict]:
    """All figures that the tables decide, with their criteria."""
    return comparison_report.criteria(tables, {name: arm.evaluator for name, arm in ARMS.items()})


STUDY: Study[ComparisonSettings] = Study(
    "comparison",
    ComparisonSettings,
    ARMS,
    tables={
        "readings": Table(readings, compressed=True, decimals=4),
        "calibration": Table(calibration, compressed=True, decimals=4, arms=_untuned),
        "measures": Table(measures),
        "history": Table(tuning_history, arms=_tuned, compressed=True, decimals=6),
        "cost": Table(cost),
    },
    sources=BRAIN.sources,
    criteria=criteria,
    evaluators=EVALUATORS,
    bases={"weights": base_model, "clip": clip_model},
    references=lambda settings: ("untuned",),
    default_arms=lambda settings: ("transport-robust", "class-standard"),
    seeds=tuple(range(1, 9)),
)
TRANSFER = replace(
    STUDY,
    name="transfer",
    default_arms=lambda settings: ("transport-robust", "class-standard"),
    seeds=(1, 2, 3),
    tables={"transfer": Table(transferred, compressed=True, decimals=4)},
    criteria=lambda tables, settings: [],
)
SWEEP = replace(
    STUDY,
    name="sweep",
    arms=SWEPT,
    default_arms=lambda settings: tuple(SWEPT)[1:],
    seeds=(0,),
    tables={
        "readings": Table(choice_readings, compressed=True, decimals=4),
        "cosine": Table(choice_cosine),
        **{name: STUDY.tables[name] for name in ("history", "cost")},
    },
    criteria=lambda tables, settings: [],
)
