"""The downstream test: train the heart-failure classifier on every arm with every seed, read one
test set with all.

Source: Skorupko et al., arXiv 2403.19508: repeats on one saved split. Within a seed all arms start
from the same first weights and take the same number of steps, so that they can be compared in
pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fairlib.errors import DataError
from fairlib.methods.baselines import Phase, Recipe, RecipeSettings, recipe
from fairlib.methods.subgroups import age_edges, labels_of, require, with_groups
from fairlib.models.classifier import (
    CARDIAC_SMALL,
    Classifier,
    ClassifierSettings,
    build_classifier,
    fit_classifier,
    predict,
    set_threshold,
)

if TYPE_CHECKING:
    import pandas as pd

HEADS = {"heart_failure": "binary"}
GROUPS = ("sex", "age_tertile", "bmi_group")


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Images float32 [N, 3, 64, 64] in [-1, 1] and their table, one row each, in the same order.

    `DataError` if not.
    """

    images: Tensor
    table: pd.DataFrame = field(repr=False)

    def __post_init__(self):
        if len(self.images) != len(self.table):
            raise DataError(
                f"{len(self.images)} images and {len(self.table)} rows; give one row for each image"
            )

    def __len__(self) -> int:
        return len(self.table)

    def take(self, rows) -> ImageTable:
        """The images and rows at these positions."""
        return ImageTable(self.images[torch.as_tensor(rows)], self.table.iloc[rows])

    def labels(self) -> Tensor:
        """int64 [N], 1 = heart failure."""
        return torch.from_numpy(labels_of(self.table))


@dataclass(frozen=True)
class DownstreamSettings:
    """The classifier (its `steps` are those of a whole arm; its `seed` is replaced by the seed of
    the run) and the recipes.
    """

    classifier: ClassifierSettings = ClassifierSettings(
        steps=300,
        batch_size=64,
        warmup=30,
        ema_decay=0.98,
        architecture=CARDIAC_SMALL,
        augmentation="shift",
    )
    recipe: RecipeSettings = RecipeSettings()


@dataclass(frozen=True, eq=False)
class ArmResult:
    """One training: `predictions` has one row a test image (see `compare_arms`); `done` of `total`
    trainings are over.
    """

    arm: str
    seed: int
    threshold: float
    predictions: pd.DataFrame = field(repr=False)
    done: int
    total: int


def compare_arms(
    train: ImageTable,
    synthetic: ImageTable | None,
    extra: ImageTable | None,
    test: ImageTable,
    arms: Sequence[str],
    seeds: Sequence[int],
    settings: DownstreamSettings,
    *,
    validation: ImageTable,
    device: torch.device | str = "cpu",
) -> Iterator[ArmResult]:
    """Train every arm with every seed and read `test`; yields an `ArmResult` after each training,
    seed by seed.

    `predictions`: arm, seed, subject, image (position in `test`), score (logit), positive (score
    above the threshold that is best on `validation`), label (1 = heart failure), sex, age_tertile
    (edges of the subjects of `train`), bmi_group. Put those of all results together with
    `pandas.concat`. `synthetic` and `extra` may be None where no arm uses them.
    device: where the classifiers are trained. Raises `DataError` when a subject of `test` or
    `validation` was trained on, or a table lacks what it must have.
    """
    recipes = {arm: _recipe(arm, train, synthetic, extra, settings) for arm in arms}
    sources = {"real": train, "synthetic": synthetic, "extra": extra}
    _check_disjoint(sources, {"validation": validation, "test": test})
    rows = _test_rows(test, age_edges(train.table))
    total, done = len(seeds) * len(arms), 0
    for seed in seeds:
        for arm in arms:
            classifier = build_classifier(HEADS, settings.classifier.architecture, seed).to(device)
            fit_recipe(classifier, recipes[arm], sources, replace(settings.classifier, seed=seed))
            threshold = set_threshold(classifier, validation.images, validation.labels())
            read = predict(classifier, test.images)
            score, positive = read.logit.numpy(), read.positive().numpy()
            table = rows.assign(arm=arm, seed=seed, score=score, positive=positive)
            done += 1
            yield ArmResult(
                arm,
                seed,
                threshold,
                table[["arm", "seed", *rows.columns, "score", "positive"]],
                done,
                total,
            )


def fit_recipe(
    classifier: Classifier,
    plan: Recipe,
    sources: dict[str, ImageTable | None],
    settings: ClassifierSettings,
) -> None:
    """Train `classifier` through the phases of `plan`, `settings.steps` in all; a later phase
    starts a new optimiser.
    """
    left = settings.steps
    for number, phase in enumerate(plan.phases):
        last = number == len(plan.phases) - 1
        steps = left if last else min(left - 1, max(1, round(settings.steps * phase.share)))
        left -= steps
        images, labels = _gather(phase, sources)
        fit = replace(
            settings,
            steps=steps,
            learning_rate=settings.learning_rate * phase.rate,
            warmup=min(settings.warmup, steps // 4),
        )
        for _ in fit_classifier(
            classifier,
            images,
            labels,
            fit,
            weights=_tensor(phase.weights),
            probabilities=_tensor(phase.probabilities),
        ):
            pass


def _recipe(arm: str, train, synthetic, extra, settings: DownstreamSettings) -> Recipe:
    tables = (source.table if source is not None else None for source in (train, synthetic, extra))
    return recipe(arm, *tables, settings.recipe)


def _gather(phase: Phase, sources: dict[str, ImageTable | None]) -> tuple[Tensor, Tensor]:
    parts = [sources[name].take(rows) for name, rows in phase.rows.items()]
    return torch.cat([part.images for part in parts]), torch.cat([part.labels() for part in parts])


def _tensor(values) -> Tensor | None:
    return None if values is None else torch.from_numpy(values).float()


def _test_rows(test: ImageTable, edges: tuple[float, float]) -> pd.DataFrame:
    require(test.table, ("subject", "sex"))
    table = with_groups(test.table, edges).assign(
        image=range(len(test)), label=test.labels().numpy()
    )
    return table[["subject", "image", "label", *GROUPS]].reset_index(drop=True)


def _check_disjoint(trained: dict[str, ImageTable | None], held_out: dict[str, ImageTable]) -> None:
    for name, part in held_out.items():
        require(part.table, ("subject",))
        for source, images in (
            trained | ({"validation": held_out["validation"]} if name == "test" else {})
        ).items():
            # a generated image need not belong to a subject
            if images is None or "subject" not in images.table:
                continue
            shared = set(part.table["subject"]) & set(images.table["subject"])
            if shared:
                raise DataError(
                    f"subject {min(shared)!r} is in {name} and in {source}; split by subject first"
                )
