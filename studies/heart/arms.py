"""The arms of the downstream test: the heart-failure classifier trained in every way, read on one
test set, by subgroup and prevalence.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

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
    evaluate_arm,
    labels_of,
    with_groups,
)
from studies.engine import accelerator
from studies.engine.stage import Artifact, Progress, stage
from studies.engine.study import Arm, Run, Tables
from studies.heart.data import Hearts, HeartSettings, part
from studies.heart.generation import generated

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
    return DownstreamSettings(
        replace(DownstreamSettings().classifier, steps=settings.classifier_steps),
        PlanSettings(synthetic_count=settings.synthetic),
    )


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
    return train_arm(
        name,
        seed,
        downstream_settings(settings),
        {each: part(settings, each) for each in PARTS},
        settings.classifier_subjects,
        generated(settings, "copies") if synthetic else None,
        part(settings, "extra") if extra else None,
    )


def _no_more_subjects(settings: HeartSettings) -> str | None:
    if settings.cohort == "phantom":
        return None
    return f"cohort {settings.cohort!r} has no subjects beyond its parts"


def _arm(name: str, says: str, acts: str = "training", **uses: bool) -> Arm[HeartSettings]:
    refused = _no_more_subjects if uses.get("extra") else Arm.refused
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
        raise DataError(
            f"classifier_subjects {count}: the generator was trained on {len(train)} hearts; "
            "0 takes all"
        )
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
