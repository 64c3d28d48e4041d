"""Does it help? The heart-failure classifier trained on every arm, read on one test set, by
subgroup and prevalence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fairlib.errors import DataError
from fairlib.io import write_bytes
from fairlib.measures.equity import class_counts, group_names, keep_large, prevalence_weights
from fairlib.measures.paired import (
    BootstrapSettings,
    PairedAnswers,
    arm_metrics,
    paired_answers,
)
from fairlib.methods.downstream import (
    DownstreamSettings,
    ImageTable,
    PlanSettings,
    age_edges,
    at_prevalence,
    compare_arms,
    labels_of,
    with_groups,
)
from fairlib.settings import to_dict
from studies.engine.places import accelerator
from studies.engine.stage import run_stage
from studies.heart.cohorts import Hearts, hearts, part_digest
from studies.heart.generation import made, made_digest
from studies.heart.settings import ARMS, SYNTHETIC_ARMS, HeartStudy

BY = {
    "sex": ("sex",),
    "age": ("age_tertile",),
    "bmi": ("bmi_group",),
    "all three": ("sex", "age_tertile", "bmi_group"),
}
"""Ways of cutting the test people into subgroups."""
PREVALENCES = (0.25, 0.10, 0.01)  # of training, validation and test in the paper
VALIDATION = 0.10
VALUES = ("arm", "group", "metric_id", "estimate", "low", "high", "by", "prevalence")  # columns


@dataclass(frozen=True)
class Finding:
    """The best synthetic arm, chosen on people set apart for the choice, and the tables of the test
    people.
    """

    arm: str
    values: pd.DataFrame
    differences: pd.DataFrame


def downstream_settings(study: HeartStudy) -> DownstreamSettings:
    """The same classifier, steps and synthetic images for every arm."""
    return DownstreamSettings(
        replace(DownstreamSettings().classifier, steps=study.classifier_steps),
        PlanSettings(synthetic_count=study.synthetic),
    )


def train_arm(study: HeartStudy, arm: str, seed: int) -> pd.DataFrame:
    """One training: `part` ("choice" or "test"), image (position in it) and margin (logit less the
    threshold, ill above 0).

    The real images are those of `own_people`; the threshold is the best on validation people at
    prevalence 0.10. Arms of one seed start from the same first weights.
    """
    settings = downstream_settings(study)
    inputs = [part_digest(study, name) for name in ("train", "validation", "choice", "test")]
    inputs += [part_digest(study, "extra")] if arm == "extra_real" else []
    if arm not in ("real", "reweighted", "resampled", "extra_real"):
        inputs += made_digest(study, "copies")

    def build(out: Path, progress) -> None:
        progress.say(f"training {arm}, seed {seed}")
        write_bytes(
            out / "margins.csv", _margins(study, settings, arm, seed).to_csv(index=False).encode()
        )

    chosen = {"arm": arm, "seed": seed, "people": study.classifier_people, **to_dict(settings)}
    folder = run_stage(None, "downstream", chosen, inputs, build)
    return pd.read_csv(folder / "margins.csv")


def _margins(study: HeartStudy, settings: DownstreamSettings, arm: str, seed: int) -> pd.DataFrame:
    train, (validation, choice, test) = (
        own_people(study),
        (hearts(study, name) for name in ("validation", "choice", "test")),
    )
    synthetic = (
        _copies(study) if arm not in ("real", "reweighted", "resampled", "extra_real") else None
    )
    extra = hearts(study, "extra") if arm == "extra_real" else None
    both = ImageTable(
        torch.cat([choice.images, test.images]),
        pd.concat([choice.table, test.table], ignore_index=True),
    )
    (result,) = compare_arms(
        train,
        synthetic,
        extra,
        both,
        [arm],
        [seed],
        settings,
        validation=validation,
        device=accelerator(),
    )
    margin = (result.predictions["score"] - result.threshold).to_numpy()
    # rounding changes no answer
    margin = np.where(margin > 0, margin.round(3).clip(0.001), margin.round(3).clip(max=0))
    part = np.repeat(["choice", "test"], [len(choice), len(test)])
    return pd.DataFrame(
        {"part": part, "image": [*range(len(choice)), *range(len(test))], "margin": margin}
    )


def own_people(study: HeartStudy) -> Hearts:
    """The real hearts that classifiers train on: the generator's, or the first `classifier_people`
    of them.

    Raises `DataError` when there are fewer.
    """
    whole, count = hearts(study, "train"), study.classifier_people
    if count > len(whole):
        raise DataError(
            f"classifier_people {count}: the generator was trained on {len(whole)} hearts; 0 takes "
            "all"
        )
    return whole.take(range(count)) if count else whole


def _copies(study: HeartStudy) -> ImageTable:
    """The synthetic training images, without the subjects whose masks they wear: those are the
    training people's own.
    """
    whole = made(study, "copies").take(range(study.synthetic))
    return ImageTable(whole.images, whole.table)


def predictions_of(study: HeartStudy, arms=ARMS, seeds=(0,)) -> pd.DataFrame:
    """The margins of every arm and seed, one below the other: arm, seed, part, image, margin."""
    arms, seeds = dict.fromkeys(arms), dict.fromkeys(seeds)
    frames = [
        train_arm(study, arm, seed).assign(arm=arm, seed=seed) for seed in seeds for arm in arms
    ]
    return pd.concat(frames, ignore_index=True)[["arm", "seed", "part", "image", "margin"]]


def people_of(study: HeartStudy) -> pd.DataFrame:
    """Who is tested: part, image, subject, label (1 = heart failure), sex, age_tertile (of the
    training people), bmi_group.
    """
    edges = age_edges(own_people(study).table)
    tables = []
    for part in ("choice", "test"):
        table = with_groups(hearts(study, part).table, edges)
        tables.append(table.assign(part=part, image=range(len(table)), label=labels_of(table)))
    columns = ["part", "image", "subject", "label", "sex", "age_tertile", "bmi_group"]
    return pd.concat(tables, ignore_index=True)[columns]


def answers_of(
    margins: pd.DataFrame, people: pd.DataFrame, part: str, by: tuple[str, ...]
) -> PairedAnswers:
    """The answers of all arms and seeds to the people of one part, as arrays for the paired
    bootstrap.
    """
    told = margins[margins["part"] == part].merge(
        people[people["part"] == part].drop(columns="part"), on="image", validate="m:1"
    )
    return paired_answers(told.assign(positive=told["margin"] > 0), by)


def tables_of(
    margins: pd.DataFrame,
    people: pd.DataFrame,
    rng: np.random.Generator,
    replicates: int = 1000,
    n_min: int = 10,
    by: dict[str, tuple[str, ...]] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Values of every arm and differences to real-only on the test people: columns of
    `measures.paired`, `by`, `prevalence`.

    Sensitivity, false positive rate and balanced accuracy of a subgroup do not depend on
    prevalence; the share of people who are called ill does, and so do those of "all", where weights
    stand in for sub-sampling.
    """
    values, differences = [], []
    for name, columns in (BY if by is None else by).items():
        answers = answers_of(margins, people, "test", columns)
        for prevalence in PREVALENCES:
            weight, settings = (
                prevalence_weights(answers.label, prevalence),
                BootstrapSettings(replicates, n_min=n_min),
            )
            seed = rng.integers(2**31)  # one set of draws for both tables
            made_values = arm_metrics(answers, np.random.default_rng(seed), settings, weight)
            values.append(made_values.assign(by=name, prevalence=prevalence))
            if "real" in answers.arms and len(answers.arms) > 1:
                made_differences = arm_metrics(
                    answers, np.random.default_rng(seed), settings, weight, "real"
                )
                differences.append(made_differences.assign(by=name, prevalence=prevalence))
    return _joined(values, VALUES), _joined(differences, (*VALUES, "reference"))


def _joined(tables: list[pd.DataFrame], columns: tuple[str, ...]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns))


def comparable(
    people: pd.DataFrame, n_min: int = 10
) -> tuple[dict[str, tuple[str, ...]], pd.DataFrame]:
    """Which of `BY` leave two subgroups or more to compare, and what is left out: columns by,
    group, ill, healthy, reason.

    One row a subgroup that is too small; one row, of the group "everybody", a way of cutting that
    is left out whole.
    """
    test, cuts, small = people[people["part"] == "test"], {}, []
    for name, columns in BY.items():
        try:
            found = excluded(people, n_min, columns)
        except DataError as error:
            ill = test.loc[test["label"] == 1, "subject"].nunique()
            found = pd.DataFrame(
                [
                    {
                        "group": "everybody",
                        "ill": ill,
                        "healthy": test["subject"].nunique() - ill,
                        "reason": str(error),
                    }
                ]
            )
        else:
            cuts[name] = columns
        small.append(found.assign(by=name))
    return cuts, pd.concat(small, ignore_index=True)[["by", "group", "ill", "healthy", "reason"]]


def excluded(
    people: pd.DataFrame, n_min: int = 10, by: tuple[str, ...] = BY["all three"]
) -> pd.DataFrame:
    """The subgroups that are too small to be judged: group, ill, healthy (test people) and the
    reason.
    """
    test = people[people["part"] == "test"]
    counts = class_counts(test["label"], group_names(test[list(by)]), test["subject"])
    counts = counts[["class_1", "class_0"]].rename(columns={"class_1": "ill", "class_0": "healthy"})
    return keep_large(counts, n_min)[1]


def best_synthetic(
    margins: pd.DataFrame,
    people: pd.DataFrame,
    by: tuple[str, ...] = BY["all three"],
    n_min: int = 10,
) -> str:
    """The synthetic arm whose worst subgroup does best on the people of part "choice", who are not
    those of the test.
    """
    known = [arm for arm in SYNTHETIC_ARMS if (margins["arm"] == arm).any()]
    if not known:
        raise DataError(f"no synthetic arm was trained; train one of {', '.join(SYNTHETIC_ARMS)}")
    answers = answers_of(margins[margins["arm"].isin(known)], people, "choice", by)
    table = arm_metrics(answers, np.random.default_rng(0), BootstrapSettings(2, n_min=n_min))
    worst = table[(table["group"] == "worst") & (table["metric_id"] == "balanced_accuracy")]
    return str(worst.loc[worst["estimate"].idxmax(), "arm"])


def ppv(values: pd.DataFrame) -> pd.DataFrame:
    """Of the people called ill, how many are? One row an arm and prevalence (group "all"): tpr,
    fpr, ppv.
    """
    table = values[(values["group"] == "all") & (values["by"] == values["by"].iloc[0])]
    wide = table.pivot_table(
        index=["arm", "prevalence"], columns="metric_id", values="estimate", sort=False
    ).reset_index()
    right = wide["prevalence"] * wide["tpr"]
    return wide.assign(ppv=right / (right + (1 - wide["prevalence"]) * wide["fpr"]))[
        ["arm", "prevalence", "tpr", "fpr", "ppv"]
    ]


def subsampled(people: pd.DataFrame, prevalence: float = 0.01, seed: int = 0) -> pd.DataFrame:
    """How many ill people each subgroup would keep if the prevalence were reached by leaving people
    out, as in the paper's code.

    Columns group, ill (before), left (after).
    """
    test = people[people["part"] == "test"].reset_index(drop=True)
    diagnosis = np.where(test["label"] == 1, "heart failure", "healthy")
    kept = np.zeros(len(test), bool)
    kept[at_prevalence(test.assign(diagnosis=diagnosis), prevalence, seed)] = True
    group = test[list(BY["all three"])].astype(str).agg(", ".join, axis=1)
    counted = pd.DataFrame(
        {"group": group, "ill": test["label"] == 1, "left": (test["label"] == 1) & kept}
    )
    return counted.groupby("group", sort=False)[["ill", "left"]].sum().reset_index()
