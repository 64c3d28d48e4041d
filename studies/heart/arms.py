"""The arms of the downstream test: the heart-failure classifier trained in every way, read on one
test set, by subgroup and prevalence.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.cohorts.cardiac import bmi_class, control_image, decade, prompt_of
from fairlib.errors import DataError
from fairlib.io import write_bytes
from fairlib.measures.equity import class_counts, group_names, keep_large, prevalence_weights
from fairlib.measures.paired import BootstrapSettings, PairedAnswers, arm_metrics, paired_answers
from fairlib.methods.downstream import (
    BMI_GROUPS,
    TERTILES,
    DownstreamSettings,
    ImageTable,
    PlanSettings,
    age_edges,
    at_prevalence,
    copies,
    evaluate_arm,
    labels_of,
    new_combinations,
    with_groups,
)
from fairlib.models.controlnet import ControlledGenerator
from fairlib.settings import require_known
from studies.engine import accelerator
from studies.engine.stage import Artifact, Progress, as_is, in_blocks, stage
from studies.engine.study import Arm, Run, Tables
from studies.heart.data import (
    NO_PROMPTS,
    Hearts,
    HeartSettings,
    as_stored,
    part,
    read_hearts,
    write_hearts,
)
from studies.heart.evaluators import Readings, evaluate, fitted_evaluators
from studies.heart.phantom import HEIGHT_CM

WAYS = ("copies", "combinations", "unseen")
# seeds of starting noise
NOISE = {"copies": 7000, "combinations": 7001, "unseen": 7002, "preview": 7100}
OTHER = {
    "sex": {"F": "M", "M": "F"},
    "diagnosis": {"healthy": "heart failure", "heart failure": "healthy"},
}
WORDS = ("diagnosis", "sex", "age", "bmi")  # of a prompt, that can be turned
FLIPPED = tuple(f"flipped-{word}" for word in WORDS)
# what an age and a body-mass index are turned into: whichever is further
YOUNG_OLD, THIN_FAT = (55.0, 85.0), (22.0, 33.0)
ATTRIBUTES = ["prompt", "sex", "age", "bmi", "height", "decade", "bmi_class", "diagnosis"]
Weights = tuple[Artifact[Path], ...]  # of the pipeline, and of a ControlNet of its own


def weights_of(settings: HeartSettings) -> Weights:
    """The weights of a study's generator."""
    names = (settings.weights, settings.controlnet)
    return tuple(Artifact.weights(name, as_is) for name in names if name)


@lru_cache(maxsize=2)
def load_generator(weights: Weights) -> ControlledGenerator:
    """The generator with these weights, on the accelerator if there is one."""
    folder, *controlnet = (str(each.load()) for each in weights)
    return ControlledGenerator.load(folder, accelerator(), controlnet="".join(controlnet))


@stage(load=read_hearts)
def generate(
    out: Path,
    progress: Progress,
    weights: Weights,
    table: pd.DataFrame,
    masks: Tensor,
    noise_seed: int,
    steps: int,
    guidance: float,
    batch_size: int,
    one_noise: bool = False,
) -> None:
    """Draw one heart for each request (row of `table` with a prompt; mask uint8 [N, 2, H, W]),
    resumable by batches.

    Image i starts from noise i of `noise_seed`, whatever the batch; with `one_noise` all start from
    its first.
    """
    generator = load_generator(weights)

    def draw(rows: range) -> dict[str, Tensor]:
        chosen, prompts = masks[rows.start : rows.stop], table["prompt"].iloc[rows]
        noise = generator.noise(noise_seed, [0] * len(rows) if one_noise else list(rows))
        control = control_image(chosen).to(noise.device)
        how = {"control": control, "noise": noise, "steps": steps, "guidance_scale": guidance}
        return as_stored(generator.sample(list(prompts), **how).cpu(), chosen)

    tensors = in_blocks(out, progress, len(table), batch_size, "generated hearts", draw)
    write_hearts(out, tensors, table)


def requests(settings: HeartSettings, way: str) -> tuple[pd.DataFrame, Tensor]:
    """What is requested in one of `WAYS`: a table (`ATTRIBUTES`, source, subject: whose mask) and
    the masks uint8 [N, 2, H, W].

    A height is that of the mask's subject, but for a new combination, where it is the mean of the
    sex requested. Copies are as many as the study needs, and fewer are the first of more. Raises
    `SettingsError` on an unknown way.
    """
    require_known(way, WAYS, "the ways of requesting hearts")
    hearts = part(settings, "heldout" if way == "unseen" else "train").load()
    pool = hearts.table, hearts.masks
    if way == "unseen":
        unseen = hearts.first(settings.images)
        columns = unseen.table[[*ATTRIBUTES, "subject"]]
        return columns.assign(source=range(len(unseen))), unseen.masks
    if way == "copies":
        needed = settings.synthetic if settings.trains_classifiers else 0
        count = max(settings.images, needed)
        table, _ = copies(*pool, count, NOISE[way])
        height = hearts.table["height"].to_numpy(float)[table["source"].to_numpy()]
    else:
        table, _ = new_combinations(*pool, settings.images, NOISE[way], present_only=True)
        means = {sex: mean for sex, (mean, _) in HEIGHT_CM.items()}
        height = table["sex"].map(means).to_numpy(float)
    return table.assign(height=height), hearts.masks[torch.tensor(table["source"].to_numpy())]


def flipped(table: pd.DataFrame, word: str) -> pd.DataFrame:
    """The same requests with one word of each prompt turned into another (`WORDS`); age and bmi
    move to whichever of two typical values lies further away.

    The mask is not touched, so the prompt now contradicts it. Raises `SettingsError` on an unknown
    word.
    """
    require_known(word, WORDS, "the words of a prompt")
    table = table.reset_index(drop=True).copy()
    if word in OTHER:
        table[word] = table[word].map(OTHER[word])
    else:
        low, high = YOUNG_OLD if word == "age" else THIN_FAT
        table[word] = np.where(table[word] > (low + high) / 2, low, high)
    table["decade"], table["bmi_class"] = table["age"].map(decade), table["bmi"].map(bmi_class)
    return table.assign(prompt=[prompt_of(row) for row in table.to_dict("records")])


def generated(settings: HeartSettings, source: str) -> Artifact[Hearts]:
    """The generated hearts of a way; or, of "flipped-<word>", the first `flips` of way "unseen"
    again, from the same noise and mask, with one word of the prompt turned.
    """
    way = "unseen" if source in FLIPPED else source
    table, masks = requests(settings, way)
    if way != source:
        count = min(settings.flips, len(table))
        table, masks = flipped(table.iloc[:count], source.removeprefix("flipped-")), masks[:count]
    return _generate(settings, table, masks, NOISE[way])


def preview(settings: HeartSettings, prompts: list[str], masks: Tensor) -> Tensor:
    """Hearts to look at, all from one noise: images float32 [N, 3, H, W] of `prompts` under `masks`
    uint8 [N, 2, H, W].
    """
    table = pd.DataFrame({"prompt": prompts})
    return _generate(settings, table, masks, NOISE["preview"], one_noise=True).load().images


def readings(settings: HeartSettings, source: str) -> Artifact[Readings]:
    """What every evaluator reads in the hearts of `source`: a way of requesting, "flipped-<word>",
    or a part of real hearts.
    """
    if source in (*WAYS, *FLIPPED):
        return evaluate(generated(settings, source), settings.images, fitted_evaluators(settings))
    return evaluate(part(settings, source), None, fitted_evaluators(settings))


def _generate(
    settings: HeartSettings, table: pd.DataFrame, masks: Tensor, noise: int, one_noise: bool = False
) -> Artifact[Hearts]:
    how = settings.sampling_steps, settings.guidance_scale, settings.batch_size
    return generate(weights_of(settings), table, masks, noise, *how, one_noise)


SYNTHETIC_ARMS = ("mixed", "pretrained")
BY = {
    "sex": ("sex",),
    "age": ("age_tertile",),
    "bmi": ("bmi_group",),
    "all three": ("sex", "age_tertile", "bmi_group"),
}
"""Ways of cutting the test subjects into subgroups."""
PREVALENCES = (0.25, 0.10, 0.01)  # of training, validation and test in the paper
VALUES = ["arm", "group", "metric_id", "estimate", "low", "high", "by", "prevalence"]  # columns
PARTS = ("train", "validation", "choice", "test")


def downstream_settings(settings: HeartSettings) -> DownstreamSettings:
    """The same classifier, steps and synthetic images for every arm."""
    classifier = replace(DownstreamSettings().classifier, steps=settings.classifier_steps)
    return DownstreamSettings(classifier, PlanSettings(synthetic_count=settings.synthetic))


def read_margins(folder: Path) -> pd.DataFrame:
    """What a training has answered: part ("choice" or "test"), image, margin."""
    return pd.read_csv(folder / "margins.csv")


@stage(load=read_margins)
def train_arm(
    out: Path,
    progress: Progress,
    arm: str,
    seed: int,
    settings: DownstreamSettings,
    parts: dict[str, Artifact[Hearts]],
    classifier_subjects: int,
    synthetic: Artifact[Hearts] | None,
    extra: Artifact[Hearts] | None,
) -> None:
    """One training: `part` ("choice" or "test"), image (position in it) and margin (logit less the
    threshold, ill above 0).

    The threshold is the best on validation subjects at prevalence 0.10. Arms of one seed start from
    the same first weights.
    """
    progress.say(f"training {arm}, seed {seed}")
    hearts = {name: artifact.load() for name, artifact in parts.items()}
    choice, test = hearts["choice"], hearts["test"]
    result = evaluate_arm(
        arm,
        first_subjects(hearts["train"], classifier_subjects),
        synthetic and synthetic.load().first(settings.plan.synthetic_count),
        extra and extra.load(),
        ImageTable(
            torch.cat([choice.images, test.images]),
            pd.concat([choice.table, test.table], ignore_index=True),
        ),
        settings,
        validation=hearts["validation"],
        seed=seed,
        device=accelerator(),
    )
    margin = (result.predictions["score"] - result.threshold).to_numpy()
    # rounding changes no answer
    margin = np.where(margin > 0, margin.round(3).clip(0.001), margin.round(3).clip(max=0))
    names = np.repeat(["choice", "test"], [len(choice), len(test)])
    image = [*range(len(choice)), *range(len(test))]
    table = pd.DataFrame({"part": names, "image": image, "margin": margin})
    write_bytes(out / "margins.csv", table.to_csv(index=False).encode())


def trained(
    name: str, settings: HeartSettings, seed: int, synthetic: bool = False, extra: bool = False
) -> Artifact[pd.DataFrame]:
    """The answers of arm `name`; only what it trains on is an input."""
    how, parts = downstream_settings(settings), {each: part(settings, each) for each in PARTS}
    made = generated(settings, "copies") if synthetic else None
    more = part(settings, "extra") if extra else None
    return train_arm(name, seed, how, parts, settings.classifier_subjects, made, more)


def _refused(extra: bool, settings: HeartSettings) -> str | None:
    if settings.cohort == "acdc":
        return NO_PROMPTS
    if settings.cohort == "phantom" or not extra:
        return None
    return f"cohort {settings.cohort!r} has no subjects beyond its parts"


def _arm(name: str, says: str, acts: str = "training", **uses: bool) -> Arm[HeartSettings]:
    refused = partial(_refused, uses.get("extra", False))
    return Arm(partial(trained, name, **uses), says, acts, refused=refused)


ARMS: dict[str, Arm[HeartSettings]] = {
    arm.run.args[0]: arm
    for arm in (
        _arm("real", "the cohort's hearts alone", "nowhere"),
        _arm("reweighted", "loss weighted by inverse frequency of the subgroup"),
        _arm("resampled", "the same, drawn by inverse frequency of the subgroup", "selection"),
        _arm("mixed", "the cohort's and generated hearts", synthetic=True),
        _arm("pretrained", "generated hearts first, then the cohort's", synthetic=True),
        _arm("extra_real", "as many more subjects as mixed has generated hearts", extra=True),
        _arm("synthetic", "generated hearts alone", synthetic=True),
        _arm("mixed_resampled", "mixed, drawn by inverse frequency", "selection", synthetic=True),
    )
}
DEFAULT_ARMS = ("real", "reweighted", "resampled", "mixed", "pretrained", "extra_real")


def default_arms(settings: HeartSettings) -> tuple[str, ...]:
    """The arms that a study trains unless others are named; a real cohort has no further subjects
    for extra_real, which is said.
    """
    if settings.cohort == "acdc":
        Progress().say(f"without arms: {NO_PROMPTS}")
    if not settings.trains_classifiers:
        return ()
    reasons = {arm: ARMS[arm].refused(settings) for arm in DEFAULT_ARMS}
    for arm, reason in reasons.items():
        if reason:
            Progress().say(f"without arm {arm}: {reason}")
    return tuple(arm for arm, reason in reasons.items() if not reason)


def margins_of(run: Run[HeartSettings]) -> pd.DataFrame:
    """The answers of one arm and seed: arm, seed, part, image, margin."""
    columns = ["arm", "seed", "part", "image", "margin"]
    return run.artifact.load().assign(arm=run.name, seed=run.seed)[columns]


def first_subjects(train: Hearts, count: int) -> Hearts:
    """The cohort's hearts that classifiers train on: the first `count` of the generator's, or
    with 0 all. Raises `DataError` when there are fewer.
    """
    if count > len(train):
        what = f"classifier_subjects {count}: the generator was trained on {len(train)} hearts"
        raise DataError(f"{what}; 0 takes all")
    return train.first(count) if count else train


def subjects_of(settings: HeartSettings) -> pd.DataFrame:
    """Who is tested: part, image, subject, label (1 = heart failure), sex, age_tertile (of the
    training subjects), bmi_group.
    """
    train = first_subjects(part(settings, "train").load(), settings.classifier_subjects)
    edges, tables = age_edges(train.table), []
    for name in ("choice", "test"):
        table = with_groups(part(settings, name).load().table, edges)
        tables.append(table.assign(part=name, image=range(len(table)), label=labels_of(table)))
    columns = ["part", "image", "subject", "label", "sex", "age_tertile", "bmi_group"]
    return pd.concat(tables, ignore_index=True)[columns]


def answers_of(
    margins: pd.DataFrame, subjects: pd.DataFrame, part: str, by: tuple[str, ...]
) -> PairedAnswers:
    """The answers of all arms and seeds to the subjects of one part, as arrays for the paired
    bootstrap.
    """
    chosen = subjects[subjects["part"] == part].drop(columns="part")
    rows = margins[margins["part"] == part].merge(chosen, on="image", validate="m:1")
    return paired_answers(rows.assign(positive=rows["margin"] > 0), by)


def compared(
    margins: pd.DataFrame,
    subjects: pd.DataFrame,
    rng: np.random.Generator,
    replicates: int = 1000,
    n_min: int = 10,
    by: dict[str, tuple[str, ...]] | None = None,
    reference: str | None = None,
) -> pd.DataFrame:
    """Values of every arm on the test subjects, or, with a `reference`, the differences of all
    others to it (no rows without it): columns of `measures.paired`, `by`, `prevalence`.

    Sensitivity, false positive rate and balanced accuracy of a subgroup do not depend on
    prevalence; the share of subjects who are called ill does, and so do those of "all", where
    weights stand in for sub-sampling. The same `rng` gives values and differences the same draws.
    """
    settings, tables = BootstrapSettings(replicates, n_min=n_min), []
    for name, columns in (BY if by is None else by).items():
        answers = answers_of(margins, subjects, "test", columns)
        for prevalence in PREVALENCES:
            draws = np.random.default_rng(rng.integers(2**31))
            weight = prevalence_weights(answers.label, prevalence)
            if reference is None or (reference in answers.arms and len(answers.arms) > 1):
                table = arm_metrics(answers, draws, settings, weight, reference)
                tables.append(table.assign(by=name, prevalence=prevalence))
    empty = pd.DataFrame(columns=[*VALUES, *(["reference"] if reference else [])])
    return pd.concat(tables, ignore_index=True) if tables else empty


def summary(tables: Tables, settings: HeartSettings, reference: str | None = None) -> pd.DataFrame:
    """`compared` on the tables of a study, by the cuts that leave subgroups to compare."""
    subjects = tested(tables)
    cuts, _ = comparable(subjects, settings.n_min)
    given = tables["margins"], subjects, np.random.default_rng(62)
    return compared(*given, settings.replicates, settings.n_min, cuts, reference)


def tested(tables: Tables) -> pd.DataFrame:
    """The table `subjects` with groups as ordered categories, of which a file keeps the words
    alone.
    """
    values = {"age_tertile": TERTILES, "bmi_group": BMI_GROUPS}
    kinds = {name: pd.CategoricalDtype(words, ordered=True) for name, words in values.items()}
    return tables["subjects"].astype(kinds)


def comparable(
    subjects: pd.DataFrame, n_min: int = 10
) -> tuple[dict[str, tuple[str, ...]], pd.DataFrame]:
    """Which of `BY` leave two subgroups or more to compare, and what is left out: columns by,
    group, ill, healthy, reason.

    One row a subgroup that is too small; one row, of the group "all subjects", a way of cutting
    that is left out whole.
    """
    test, cuts, small = subjects[subjects["part"] == "test"], {}, []
    for name, columns in BY.items():
        try:
            found = excluded(subjects, n_min, columns)
            cuts[name] = columns
        except DataError as error:
            ill = test.loc[test["label"] == 1, "subject"].nunique()
            healthy = test["subject"].nunique() - ill
            row = {"group": "all subjects", "ill": ill, "healthy": healthy, "reason": str(error)}
            found = pd.DataFrame([row])
        small.append(found.assign(by=name))
    return cuts, pd.concat(small, ignore_index=True)[["by", "group", "ill", "healthy", "reason"]]


def excluded(
    subjects: pd.DataFrame, n_min: int = 10, by: tuple[str, ...] = BY["all three"]
) -> pd.DataFrame:
    """The subgroups that are too small to be evaluated: group, ill, healthy (test subjects) and the
    reason.
    """
    test = subjects[subjects["part"] == "test"]
    counts = class_counts(test["label"], group_names(test[list(by)]), test["subject"])
    counts = counts[["class_1", "class_0"]].rename(columns={"class_1": "ill", "class_0": "healthy"})
    return keep_large(counts, n_min)[1]


def best_synthetic(
    margins: pd.DataFrame,
    subjects: pd.DataFrame,
    by: tuple[str, ...] = BY["all three"],
    n_min: int = 10,
) -> str:
    """The synthetic arm whose worst subgroup does best on the subjects of part "choice", who are
    not those of the test. Raises `DataError` where none was trained.
    """
    trained_arms = [arm for arm in SYNTHETIC_ARMS if (margins["arm"] == arm).any()]
    if not trained_arms:
        raise DataError(f"no synthetic arm was trained; train one of {', '.join(SYNTHETIC_ARMS)}")
    answers = answers_of(margins[margins["arm"].isin(trained_arms)], subjects, "choice", by)
    table = arm_metrics(answers, np.random.default_rng(0), BootstrapSettings(2, n_min=n_min))
    worst = table[(table["group"] == "worst") & (table["metric_id"] == "balanced_accuracy")]
    return str(worst.loc[worst["estimate"].idxmax(), "arm"])


def ppv(values: pd.DataFrame) -> pd.DataFrame:
    """Of the subjects called ill, how many are: one row an arm and prevalence (group "all"): tpr,
    fpr, ppv.
    """
    table = values[(values["group"] == "all") & (values["by"] == values["by"].iloc[0])]
    wide = table.pivot_table(
        index=["arm", "prevalence"], columns="metric_id", values="estimate", sort=False
    ).reset_index()
    right = wide["prevalence"] * wide["tpr"]
    share = right / (right + (1 - wide["prevalence"]) * wide["fpr"])
    return wide.assign(ppv=share)[["arm", "prevalence", "tpr", "fpr", "ppv"]]


def subsampled(subjects: pd.DataFrame, prevalence: float = 0.01, seed: int = 0) -> pd.DataFrame:
    """How many ill subjects each subgroup would keep if the prevalence were reached by leaving
    subjects out, as in the paper's code: columns group, ill (before), left (after).
    """
    test = subjects[subjects["part"] == "test"].reset_index(drop=True)
    diagnosis = np.where(test["label"] == 1, "heart failure", "healthy")
    chosen = at_prevalence(test.assign(diagnosis=diagnosis), prevalence, seed)
    ill, kept = test["label"] == 1, test.index.isin(chosen)
    group = test[list(BY["all three"])].astype(str).agg(", ".join, axis=1)
    counted = pd.DataFrame({"group": group, "ill": ill, "left": ill & kept})
    return counted.groupby("group", sort=False)[["ill", "left"]].sum().reset_index()
