"""The brain study as data, a comparison of methods on one base: `plan.md` says what it decides.

`python -m studies brain` makes `results/brain`: readings of every image of every arm and seed, what
evaluators read in the calibration sets, and what each tuning cost. `python -m studies sweep` makes
`results/sweep`, from which rates and strengths are chosen on a seed that no result uses. Every seed
has tuning classifiers and a base cache of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.io import to_images, write_json
from fairlib.models.classifier import predict
from fairlib.models.clip import Clip
from fairlib.models.imagenet import imagenet_features, is_installed
from fairlib.settings import digest
from studies.brain import report, rivals
from studies.brain.arms import (
    AS_READ,
    Plan,
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
from studies.brain.calibration import (
    COLUMNS,
    calibration_sets,
    estimators,
    known_images,
    test_images,
    test_table,
)
from studies.brain.data import (
    BrainSettings,
    Tuning,
    alignment,
    cohort,
    prompts_of,
)
from studies.brain.evaluators import EVALUATORS, EVERYWHERE, KINDS, combined, read_by
from studies.brain.quality import (
    attributes,
    change_at_rim,
    comparison,
    consistency,
    distance_fairness,
    diversity,
    prompt_fidelity,
    read_values,
)
from studies.brain.transfer import transfer
from studies.engine.criteria import criteria_table
from studies.engine.stage import Artifact, Progress, stage
from studies.engine.study import Arm, Run, Source, Study, Table, Tables

RATES = (4e-5, 1.2e-4, 3.6e-4)
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
    **dict.fromkeys(("class-standard", "transport-robust", "mean-kl-robust", "grpo"), 1.3e-5),
    **dict.fromkeys(("class-standard-corrected", "class-robust-corrected"), 1.3e-5),
    "quantile-robust": 1.1e-3,
    "target-images": 1.1e-3,
    "batch-guidance": 4.5,
    **dict.fromkeys(("choose-noises", "choose-noises-standard"), 2.0),
}
# chosen in `results/sweep` by the rule of `plan.md`
CHOSEN = {
    "class": 1.3e-5,
    "class-standard-corrected": 4e-5,
    "class-robust-corrected": 1.3e-5,
    "class-published": 1.2e-4,
    "quantile": 3.6e-4,
    "transport": 1.3e-5,
    "mean_kl": 4e-5,
    "target-images": 3.6e-4,
    "grpo": 4e-5,
    "batch-guidance": 1.5,
    **dict.fromkeys(("choose-noises", "choose-noises-standard", "choose-noises-both"), 3.0),
}
POOLS = (3.0, 6.0, 12.0)  # images generated for each that is kept, when noises are chosen
CHOOSING = {"robust": "choose-noises"}
CHOOSING |= {kind: f"choose-noises-{kind}" for kind in ("standard", "both")}


CALIBRATED = (*KINDS, "both", "heldout", "anatomy", "area")


def image_readings(
    settings: BrainSettings,
    seed: int,
    images: Artifact[Tensor],
    plan: Plan | None = None,
    columns: Iterable[str] = EVERYWHERE,
) -> pd.DataFrame:
    """What evaluators read in generated images: a row an image, with its prompt."""
    plan = plan or evaluation(settings, seed)
    found = read_by(settings, seed, columns, partial(generated, images, plan))
    return pd.concat([plan.table(), *found], axis="columns")


def slice_readings(
    settings: BrainSettings, seed: int = 0, columns: Iterable[str] = EVERYWHERE
) -> pd.DataFrame:
    """What the evaluators of one seed read in the cohort's test slices: a row a slice, with its
    subject and true sex.
    """
    source = partial(test_images, cohort(settings), settings.split_seed)
    found = read_by(settings, seed, columns, source)
    return pd.concat([test_table(settings), *found], axis="columns")


def readings(run: Run) -> pd.DataFrame:
    """What evaluators read in the images of one arm and seed, its own tuning classifier among them;
    in those of the untuned model every tuning classifier, so that each has a before and an after.
    """
    columns = {*EVERYWHERE, run.arm.evaluator, *(CALIBRATED if _untuned(run.name) else ())}
    return image_readings(run.settings, run.seed, run.artifact, columns=columns)


def calibration(run: Run) -> pd.DataFrame:
    """What the evaluators of one seed read in every calibration set: a row an image of known
    sex.
    """
    parts = []
    for name, known in calibration_sets(run.settings).items():
        found = read_by(run.settings, run.seed, CALIBRATED, partial(known_images, known))
        parts.append(
            pd.concat([known.load().table[COLUMNS], *found], axis="columns").assign(set=name)
        )
    parts.append(slice_readings(run.settings, run.seed, CALIBRATED).assign(set="test"))
    return pd.concat(parts, ignore_index=True)


def estimation(tables: Tables, settings: BrainSettings) -> pd.DataFrame:
    """What three ways of estimating a known share give (`studies.brain.estimation`), at the least
    seed.
    """
    known = tables["calibration"]
    return estimators(known[known.seed == known.seed.min()])


def fairness_of_distance(settings: BrainSettings) -> pd.DataFrame:
    """Whether distances in each feature space see the same damage in both sexes."""
    known = calibration_sets(settings)["radiology"].load()
    known = known.first(1000)
    classifier, clip = attributes(settings).load(), clip_model(settings).load()

    @torch.no_grad()
    def embedded(shown: Tensor) -> np.ndarray:
        return torch.cat([clip.embed_images(part) for part in shown.split(50)]).cpu().numpy()

    spaces = {
        "attribute classifier": lambda shown: predict(classifier, shown).features.numpy(),
        "CLIP": embedded,
    }
    if is_installed():
        spaces["ImageNet"] = imagenet_features
    female = (known.table.sex == "F").to_numpy(int)
    return distance_fairness(
        spaces, known.images, female, {"blur": (1.0, 2.0), "noise": (0.1, 0.3)}
    )


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


def changes(run: Run) -> pd.DataFrame:
    """What an arm changes besides the share: `diversity` and `change_at_rim` (NaN of the untuned
    model and of an arm whose noises are chosen).
    """
    settings, seed, pair = run.settings, run.seed, (run.artifact, run.of("untuned").artifact)
    read = [image_readings(settings, seed, each, None, ["heldout"]) for each in pair]
    images, base = (to_images(each.load()) for each in pair)
    classifier = attributes(settings).load()
    features = [predict(classifier, each).features.numpy() for each in (images, base)]
    found = diversity(*features, [each.heldout > 0.5 for each in read], read[0].prompt)
    drawn_anew = run.arm.acts in ("nowhere", "selection")
    found["at_rim"] = np.nan if drawn_anew else change_at_rim(images, base)
    return pd.DataFrame([found])


def choice_readings(run: Run) -> pd.DataFrame:
    """What a rate or a strength is chosen by: the readings of the selection classifier and, to look
    at, of the arm's own tuning classifier. No evaluator reads a swept arm.
    """
    columns = {"selection", run.arm.evaluator}
    return image_readings(run.settings, run.seed, run.artifact, columns=columns)


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
    return [("tuning", images * chosen.sampling_steps, 0), ("replay", 2 * replayed, replayed)]


def _chosen_cost(run: Run) -> list[tuple[str, int, int]]:
    more = rivals.draws_of(run.artifact) - run.settings.images
    return [("images not kept", more * run.settings.sampling_steps, 0)]


def _kept_cost(run: Run) -> list[tuple[str, int, int]]:
    """Acceptance needs the base model's shares, and so its cache."""
    steps, prompts = run.settings.sampling_steps, len(prompts_of(run.settings))
    cache = alignment(run.settings, Tuning("robust"), run.seed).cache_size
    return [("base cache", prompts * cache * steps, 0), *_chosen_cost(run)]


RIVAL_COST = {
    "target-images": _finetuning_cost,
    "grpo": _grpo_cost,
    "generate-and-keep": _kept_cost,
    "generate-and-keep-corrected": _kept_cost,
}


def selection_readings(settings: BrainSettings) -> pd.DataFrame:
    """What the selection classifier reads in the primary calibration set."""
    known = calibration_sets(settings)["radiology"]
    read = read_by(settings, 0, ["selection"], partial(known_images, known))
    return pd.concat([known.load().table[COLUMNS], *read], axis="columns")


def choice(tables: Tables, settings: BrainSettings) -> pd.DataFrame:
    """The rates and strengths that the sweep chooses."""
    return report.choices(*(tables[name] for name in ("readings", "cosine", "known")))


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
        used, prompts = chosen.cache_size, len(prompts_of(settings))
        if chosen.family != "transport":  # no target waits for the whole cache
            visits = chosen.steps * chosen.prompts_per_step / prompts
            used = min(used, round(visits * chosen.images_per_prompt))
        rows.append(("base cache", prompts * used * chosen.sampling_steps, 0))
        rows.append(("tuning", log.forward - log.backward, 0))
        rows.append(("replay", log.backward, log.backward))
    else:
        chosen = _chosen_cost if run.name.startswith("choose") else lambda run: []
        rows += RIVAL_COST.get(run.name.split("@")[0], chosen)(run)
    rows.append(("sampling", settings.images * settings.sampling_steps, 0))
    return pd.DataFrame(rows, columns=["kind", "forward", "backward"])


# ---- the arms


def arm(
    says: str,
    classifier: str = "robust",
    family: str = "transport",
    target: Any = "marginal",
    **changes: Any,
) -> TunedArm:
    """The entry of an arm that tunes: see `Tuning`."""
    tuning = Tuning(classifier, family, target, {"learning_rate": CHOSEN[family], **changes})
    return TunedArm(partial(tuned_images, tuning), says, "fine-tuning", classifier, tuning=tuning)


def rival(run: Callable, says: str, acts: Any = "sampling", reads: str = "robust") -> Arm:
    """The entry of an arm that does not tune, and is read beside tuning classifier `reads`."""
    return Arm(run, says, acts, reads)


def choosing(kind: str, pool: float, target: Any = "marginal") -> Arm:
    """The entry of an arm that chooses noises by a tuning classifier, of a pool `pool` times as
    large as what it keeps.
    """
    run = partial(rivals.kept, "transport", pool, target=target, kind=kind)
    says = f"of {pool:g} noises for each, those whose readings match the target, {kind} classifier"
    return rival(run, says, "selection", kind)


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


def _curve() -> dict[str, TunedArm]:
    """Cost against gap: fewer and more steps of the planned tuning and of class targets in the
    published order of work; and both "quick", at three times the rate in a third (half) of the
    steps, the planned one with half of its base cache.
    """
    published = {"learning_rate": CHOSEN["class-published"]} | PUBLISHED
    quick = {"learning_rate": 3 * CHOSEN["transport"], "cache_size": 60}
    cells = [("transport-robust", count, f"{count}-steps", {}) for count in (10, 20)]
    cells += [("transport-robust", 10, "quick", quick)]
    cells += [("class-published", count, f"{count}-steps", published) for count in (9, 36)]
    rate = 3 * CHOSEN["class-published"]
    cells += [("class-published", 9, "quick", published | {"learning_rate": rate})]
    found = {}
    for name, count, label, changes in cells:
        family, kind = ("class", "standard") if "class" in name else ("transport", "robust")
        steps = {"steps": count, "warmup": max(1, round(count / 8))}
        says = f"{family} targets, {label.replace('-', ' ')}"
        found[f"{name}-{label}"] = arm(says, kind, family, **(changes | steps))
    return found


UNTUNED = rival(base_images, "the untuned model", "nowhere")
LAST_STEP = {"replay_scheme": "last", "replay_steps": 1}
ALL_STEPS = {"replay_scheme": "all", "replay_steps": 8}
BATCH_GUIDED = partial(rivals.guided, rivals.batch_guided)
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
    **{
        f"class-{kind}-corrected": arm(
            f"class targets, {kind} tuning classifier, to the share that it reads in the cohort",
            kind,
            "class",
            AS_READ,
            learning_rate=CHOSEN[f"class-{kind}-corrected"],
        )
        for kind in KINDS[:2]
    },
    **_curve(),
    "last-step": arm("transport targets, the gradient through the last step alone", **LAST_STEP),
    "all-steps": arm("transport targets, the gradient through all steps", **ALL_STEPS),
    "no-consistency": arm("transport targets without CLIP consistency", consistency_weight=0.0),
    "target-images": rival(
        partial(rivals.target_images, CHOSEN["target-images"]),
        "fine-tuning on the target cohort's images",
        "fine-tuning",
    ),
    "grpo": rival(
        partial(rivals.grpo_images, CHOSEN["grpo"]), "policy gradient (Fair-GRPO)", "fine-tuning"
    ),
    "generate-and-keep": rival(
        partial(rivals.kept, "class", 1.0),
        "generate and keep by the tuning classifier's class",
        "selection",
    ),
    "generate-and-keep-corrected": rival(
        partial(rivals.kept, "class", 1.0, target=AS_READ),
        "the same, to the share that the tuning classifier reads in the cohort",
        "selection",
    ),
    **{name: choosing(kind, CHOSEN[name]) for kind, name in CHOOSING.items()},
    "batch-guidance": rival(
        partial(BATCH_GUIDED, CHOSEN["batch-guidance"]), "batch guidance (Balancing Act)"
    ),
    "null-offset": rival(
        partial(rivals.guided, rivals.offset_guided, None), "the null prompt moved (StayFair)"
    ),
    "conditional": arm("transport targets, each grade toward its own share", target="conditional"),
    "target-30": arm("transport targets, a target of 30 % female", target=0.30),
    "target-70": arm("transport targets, a target of 70 % female", target=0.70),
    **{  # three images for each cannot give 70 %, nor where sexes overlap
        f"{CHOOSING[kind]}-{label}": choosing(kind, pool, target)
        for kind in ("robust", "both")
        for label, pool, target in (("30", 3.0, 0.3), ("70", 6.0, 0.7), ("12", 12.0, "marginal"))
    },
    "null-shuffled": arm("transport targets, a classifier fitted on shuffled sexes", "shuffled"),
    "null-own": arm("null: transport targets, the untuned model's own distribution", target="own"),
    "words-female": rival(
        partial(rivals.worded, "54-year-old woman."),
        "null: the untuned model, prompts that say woman",
    ),
    "words-male": rival(
        partial(rivals.worded, "54-year-old man."), "null: the untuned model, prompts that say man"
    ),
}


def _tuned_at(classifier: str, family: str, changes: dict, rate: float) -> TunedArm:
    says = f"{family} targets at {rate:g}"
    return arm(says, classifier, family, learning_rate=rate, **changes)


def _made_at(run: Callable, acts: Any, value: float) -> Arm:
    return rival(partial(run, value), f"at {value:g}", acts)


def _swept() -> dict[str, Arm]:
    cells: dict[str, tuple[str, str, dict]] = {
        "class-standard": ("standard", "class", {}),
        **{f"class-{kind}-corrected": (kind, "class", {"target": AS_READ}) for kind in KINDS[:2]},
        "class-published": ("standard", "class", PUBLISHED),
        "quantile-robust": ("robust", "quantile", {}),
        "transport-robust": ("robust", "transport", {}),
        "mean-kl-robust": ("robust", "mean_kl", {}),
    }
    makers = {name: partial(_tuned_at, *cell) for name, cell in cells.items()}
    others = {"target-images": rivals.target_images, "grpo": rivals.grpo_images}
    makers |= {name: partial(_made_at, run, "fine-tuning") for name, run in others.items()}
    makers["batch-guidance"] = partial(_made_at, BATCH_GUIDED, "sampling")
    makers |= {CHOOSING[kind]: partial(choosing, kind) for kind in KINDS[:2]}
    strengths = {"batch-guidance": GUIDANCES, **dict.fromkeys(CHOOSING.values(), POOLS)}
    arms: dict[str, Arm] = {"untuned": UNTUNED}
    for name, make in makers.items():
        values = strengths.get(name, RATES)
        for value in sorted({*values, FURTHER.get(name, values[0])}):
            arms[f"{name}@{value:g}"] = make(value)
    return arms


SWEPT = _swept()


def _tuned(name: str) -> bool:
    return isinstance((ARMS | SWEPT)[name], TunedArm)


def _untuned(name: str) -> bool:
    return name == "untuned"


def criteria(tables: Tables, settings: BrainSettings) -> list[dict]:
    """All figures that the tables decide, with their criteria."""
    return report.criteria(tables, {name: arm.evaluator for name, arm in ARMS.items()})


def figures(tables: Tables, settings: BrainSettings) -> pd.DataFrame:
    """The same as a table, kept because it takes minutes: what chapters show and prose quotes."""
    return criteria_table(criteria(tables, settings))


def figures_elsewhere(tables: Tables, settings: BrainSettings) -> pd.DataFrame:
    """The figures of `transfer` as a table."""
    return criteria_table(report.elsewhere(tables))


def shown(run: Run) -> Tensor:
    """Images of each prompt for a reader, uint8 [N, 1, H, W]: the first three, in order."""
    prompts = evaluation(run.settings, run.seed).table().groupby("prompt", sort=False)
    return run.artifact.load()[prompts.head(3).image.tolist()]


def _table_digest(settings: BrainSettings) -> str:
    """Who is in the cohort, and what is known of them."""
    return digest(cohort(settings).load().table.to_csv(index=False))


STUDY: Study[BrainSettings] = Study(
    "brain",
    BrainSettings,
    ARMS,
    tables={
        "readings": Table(readings, compressed=True, decimals=4),
        "calibration": Table(calibration, compressed=True, decimals=4, arms=_untuned),
        "measures": Table(measures),
        "changes": Table(changes),
        "history": Table(tuning_history, arms=_tuned, compressed=True, decimals=6),
        "cost": Table(cost),
        "distance_fairness": Table(fairness_of_distance, "study"),
        "estimation": Table(estimation, per="summary"),
        "criteria": Table(figures, per="summary"),
    },
    sources={
        "phantom": Source(cohort, _table_digest),
        "brats": Source(cohort, _table_digest, "patients"),
    },
    criteria=criteria,
    evaluators=EVALUATORS,
    bases={"weights": base_model, "clip": clip_model},
    references=lambda settings: ("untuned",),
    default_arms=lambda settings: (*report.BOUND[:2], "class-standard"),
    seeds=tuple(range(1, 9)),
    shown=shown,
    folder=lambda settings: Path(settings.weights).name,  # results/brain-second, of another base
    fixed=("weights", "clip", "classifier", "prompts", "image_size", "lora", "precision"),
)
TRANSFER = replace(
    STUDY,
    name="transfer",
    shown=None,
    folder=None,
    arms={
        name: each
        for name, each in ARMS.items()
        if isinstance(each, TunedArm) or name in ("untuned", *CHOOSING.values())
    },
    seeds=(1, 2, 3),
    tables={
        "transfer": Table(transfer, compressed=True, decimals=4),
        "calibration": STUDY.tables["calibration"],
        "criteria": Table(figures_elsewhere, per="summary"),
    },
    criteria=lambda tables, settings: report.elsewhere(tables),
)
SWEEP = replace(
    STUDY,
    name="sweep",
    shown=None,
    folder=None,
    arms=SWEPT,
    default_arms=lambda settings: tuple(SWEPT)[1:],
    seeds=(0,),
    tables={
        "readings": Table(choice_readings, compressed=True, decimals=4),
        "cosine": Table(choice_cosine, arms=lambda name: not name.startswith("choose")),
        "known": Table(selection_readings, "study", compressed=True, decimals=4),
        "choice": Table(choice, "summary", decimals=7),
        **{name: STUDY.tables[name] for name in ("history", "cost")},
    },
    criteria=lambda tables, settings: report.swept(tables),
)
