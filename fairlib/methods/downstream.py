"""The downstream test of synthetic hearts: which are requested (`copies`, `new_combinations`), the
heart-failure classifier trained with every arm and seed, and all evaluated on one test set.

An arm is a training plan: which images are trained on, in which phase, with which weights. Within a
seed all arms start from the same first weights and take the same number of steps, so that they can
be compared in pairs. Tables have one row an image with `subject`, `diagnosis` ("healthy" or "heart
failure") and, for balancing, `sex`, `age` (years) and `bmi` (kg/m2).

Source: Skorupko et al., arXiv 2403.19508, and its released code (real, or real and synthetic, each
with or without sampling by the inverse frequency of the meta-group label x sex x age tertile x
body-mass class; prevalence set by sub-sampling; repeats on one saved split); pre-training on
synthetic images as in RoentGen-v2 (arXiv 2508.16783).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fairlib.cohorts.cardiac import (
    BMI_CLASSES,
    DIAGNOSES,
    bmi_class,
    control_image,
    decade,
    prompt_of,
)
from fairlib.errors import DataError, SettingsError
from fairlib.methods.group_weights import balancing_weights, inverse_frequency
from fairlib.models.classifier import (
    CARDIAC_SMALL,
    Classifier,
    ClassifierSettings,
    build_classifier,
    fit_classifier,
    predict,
    set_threshold,
)
from fairlib.models.training import draw_rows, same_length
from fairlib.rng import Stream, numpy_rng
from fairlib.settings import Bound, Checked, Count, Natural, Positive, need, require_known

if TYPE_CHECKING:
    import pandas as pd

HEADS = {"heart_failure": "binary"}
ILL, HEALTHY = "heart failure", "healthy"
META_GROUP = ("diagnosis", "sex", "age_tertile", "bmi_group")
GROUPS = META_GROUP[1:]
TERTILES = ("lower", "middle", "upper")
BMI_GROUPS = ("below 25", "25 to 30", "30 and above")
Sampling = Literal["plain", "weighted", "resampled"]


class _Stage(NamedTuple):
    sources: tuple[str, ...]
    sampling: Sampling = "plain"


ARMS: dict[str, tuple[_Stage, ...]] = {
    "real": (_Stage(("real",)),),
    "reweighted": (_Stage(("real",), "weighted"),),
    "resampled": (_Stage(("real",), "resampled"),),
    "mixed": (_Stage(("real", "synthetic")),),
    "pretrained": (_Stage(("synthetic",)), _Stage(("real",))),
    "extra_real": (_Stage(("real", "extra")),),
    "synthetic": (_Stage(("synthetic",)),),
    "mixed_resampled": (_Stage(("real", "synthetic"), "resampled"),),
}
"""Phases of each arm: the six arms compared (`extra_real`, as many further real images as `mixed`
has synthetic ones, is the upper bound), and two more of the paper.
"""


@dataclass(frozen=True)
class PlanSettings(Checked):
    """What the training plans share.

    weight_cap: the most that an image may count or be drawn, as a multiple of the mean.
    synthetic_count: synthetic (and extra real) images used; None takes all synthetic ones.
    pretrain_share: share of the steps spent on synthetic images in the arm `pretrained`;
    fine_tune_rate: learning rate of its second phase, as a multiple of the usual one. Every arm
    takes the same number of steps in all, so that none wins by training longer.
    """

    weight_cap: Annotated[float, Bound(lambda value: value >= 1, "at least 1")] = 10.0
    synthetic_count: Count | None = None
    pretrain_share: Annotated[float, Bound(lambda value: 0 < value < 1, "in (0, 1)")] = 0.5
    fine_tune_rate: Positive = 0.5
    seed: Natural = 0


@dataclass(frozen=True, eq=False)
class Phase:
    """One stretch of training.

    rows: `{source: positions}` with source "real", "synthetic" or "extra", positions int64 in that
    table; the images of the phase are those of the sources in this order, N in all. weights: [N],
    mean one, or None. probabilities: [N], sum one, or None (each image once an epoch). share: of
    all steps; rate: factor of the learning rate. sampling: how images are chosen, in a word.
    """

    rows: dict[str, np.ndarray]
    weights: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    share: float = 1.0
    rate: float = 1.0
    sampling: Sampling = "plain"

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows.values())


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """An arm and its phases; their shares sum to one."""

    arm: str
    phases: tuple[Phase, ...]

    def summary(self) -> pd.DataFrame:
        """One row a phase and source: arm, phase, source, images, share of the steps, sampling
        ("plain", "weighted" or "resampled").
        """
        import pandas as pd

        rows = [
            (self.arm, number, source, len(rows), phase.share, phase.sampling)
            for number, phase in enumerate(self.phases, 1)
            for source, rows in phase.rows.items()
        ]
        names = ["arm", "phase", "source", "images", "share", "sampling"]
        return pd.DataFrame(rows, columns=names)


def training_plan(
    arm: str,
    real: pd.DataFrame,
    synthetic: pd.DataFrame | None,
    extra: pd.DataFrame | None,
    settings: PlanSettings,
) -> TrainingPlan:
    """The plan of `arm` (one of `ARMS`) for three tables; `synthetic` and `extra` may be None where
    the arm uses neither.

    Age tertiles are those of the real subjects. Raises `SettingsError` on an unknown arm,
    `DataError` on a missing table or column, or fewer images than the settings need.
    """
    require_known(arm, ARMS, "the arms")
    tables = {"real": real, "synthetic": synthetic, "extra": extra}
    counts = {"real": None, "synthetic": settings.synthetic_count}
    if any("extra" in stage.sources for stage in ARMS[arm]):
        counts["extra"] = settings.synthetic_count or _size("synthetic", synthetic, arm)
    phases = []
    for number, stage in enumerate(ARMS[arm]):
        given = {name: (tables[name], counts[name]) for name in stage.sources}
        rows = {name: _chosen(name, *one, arm, settings.seed) for name, one in given.items()}
        phase = Phase(rows, sampling=stage.sampling)
        if stage.sampling != "plain":
            phase = _balanced(phase, tables, settings.weight_cap)
        if len(ARMS[arm]) > 1:
            share = settings.pretrain_share
            share, rate = (1 - share, settings.fine_tune_rate) if number else (share, 1.0)
            phase = replace(phase, share=share, rate=rate)
        phases.append(phase)
    return TrainingPlan(arm, tuple(phases))


def _balanced(phase: Phase, tables: Mapping[str, pd.DataFrame], cap: float) -> Phase:
    import pandas as pd

    edges = age_edges(tables["real"])
    parts = [with_groups(tables[name].iloc[rows], edges) for name, rows in phase.rows.items()]
    groups = pd.concat(parts, ignore_index=True)[list(META_GROUP)]
    weights = inverse_frequency(groups, cap)
    if phase.sampling == "weighted":
        return replace(phase, weights=weights)
    return replace(phase, probabilities=weights / weights.sum())


def _size(name: str, table: pd.DataFrame | None, arm: str) -> int:
    if table is None or len(table) == 0:
        raise DataError(f"arm {arm!r} needs {name} images and there are none; give their table")
    return len(table)


def _chosen(
    name: str, table: pd.DataFrame | None, count: int | None, arm: str, seed: int
) -> np.ndarray:
    """Positions of `count` images of `table` (all when None), chosen by `seed`, in rising order."""
    size = _size(name, table, arm)
    if count is None:
        return np.arange(size)
    if count > size:
        what = f"arm {arm!r} asks for {count} {name} images, {size} are there"
        raise DataError(f"{what}; make more or ask for fewer")
    return np.sort(numpy_rng(seed, Stream.ARM_IMAGES).permutation(size)[:count])


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Images float32 [N, 3, 64, 64] in [-1, 1] and their table, one row each, in the same order.

    `DataError` if not.
    """

    images: Tensor
    table: pd.DataFrame = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.images) != len(self.table):
            raise DataError(f"{len(self.images)} images, {len(self.table)} rows; give one row each")

    def __len__(self) -> int:
        return len(self.table)

    def take(self, rows: ArrayLike) -> ImageTable:
        """The images and rows at these positions."""
        return ImageTable(self.images[torch.as_tensor(rows)], self.table.iloc[rows])

    def labels(self) -> Tensor:
        """int64 [N], 1 = heart failure."""
        return torch.from_numpy(labels_of(self.table))


@dataclass(frozen=True)
class DownstreamSettings:
    """The classifier (its `steps` are those of a whole arm; its `seed` is replaced by the seed of
    the run) and the training plans.
    """

    classifier: ClassifierSettings = ClassifierSettings(
        steps=300,
        batch_size=64,
        warmup=30,
        ema_decay=0.98,
        architecture=CARDIAC_SMALL,
        augmentation="shift",
    )
    plan: PlanSettings = PlanSettings()


@dataclass(frozen=True, eq=False)
class ArmResult:
    """One training: `predictions` has one row a test image (see `evaluate_arm`)."""

    arm: str
    seed: int
    threshold: float
    predictions: pd.DataFrame = field(repr=False)


def evaluate_arm(
    arm: str,
    train: ImageTable,
    synthetic: ImageTable | None,
    extra: ImageTable | None,
    test: ImageTable,
    settings: DownstreamSettings,
    *,
    validation: ImageTable,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ArmResult:
    """Train `arm` (one of `ARMS`) with one seed and evaluate it on `test`.

    `predictions`: arm, seed, subject, image (position in `test`), score (logit), positive (score
    above the threshold that is best on `validation`), label (1 = heart failure), sex, age_tertile
    (edges of the subjects of `train`), bmi_group. Put those of several arms and seeds together with
    `pandas.concat`. `synthetic` and `extra` may be None where the arm does not use them.
    device: where the classifier is trained. Raises `DataError` when a subject of `test` or
    `validation` was trained on, or a table lacks what it must have.
    """
    optional = {"synthetic": synthetic, "extra": extra}
    sources = {"real": train} | {k: part for k, part in optional.items() if part is not None}
    tables = {name: part.table for name, part in sources.items()}
    further = (tables.get("synthetic"), tables.get("extra"))
    plan = training_plan(arm, train.table, *further, settings.plan)
    _check_disjoint(sources, {"validation": validation, "test": test})
    rows = _test_rows(test, age_edges(train.table))
    classifier = build_classifier(HEADS, settings.classifier.architecture, seed).to(device)
    fit_plan(classifier, plan, sources, replace(settings.classifier, seed=seed))
    threshold = set_threshold(classifier, validation.images, validation.labels())
    read = predict(classifier, test.images)
    score, positive = read.logit.numpy(), read.positive().numpy()
    table = rows.assign(arm=arm, seed=seed, score=score, positive=positive)
    table = table[["arm", "seed", *rows.columns, "score", "positive"]]
    return ArmResult(arm, seed, threshold, table)


def fit_plan(
    classifier: Classifier,
    plan: TrainingPlan,
    sources: Mapping[str, ImageTable],
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
        parts = [sources[name].take(rows) for name, rows in phase.rows.items()]
        images = torch.cat([part.images for part in parts])
        labels = torch.cat([part.labels() for part in parts])
        rate, warmup = settings.learning_rate * phase.rate, min(settings.warmup, steps // 4)
        fit = replace(settings, steps=steps, learning_rate=rate, warmup=warmup)
        given = {"weights": phase.weights, "probabilities": phase.probabilities}
        drawn: Any = {name: _tensor(values) for name, values in given.items()}
        for _ in fit_classifier(classifier, images, labels, fit, **drawn):
            pass


def _tensor(values: np.ndarray | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values).float()


def _test_rows(test: ImageTable, edges: tuple[float, float]) -> pd.DataFrame:
    need(test.table, "subject", "sex", whole=True)
    table = with_groups(test.table, edges)
    table = table.assign(image=range(len(test)), label=test.labels().numpy())
    return table[["subject", "image", "label", *GROUPS]].reset_index(drop=True)


def _check_disjoint(trained: Mapping[str, ImageTable], heldout: Mapping[str, ImageTable]) -> None:
    for name, part in heldout.items():
        need(part.table, "subject", whole=True)
        others = {**trained, **({"validation": heldout["validation"]} if name == "test" else {})}
        for source, images in others.items():
            # a generated image need not belong to a subject
            if "subject" not in images.table:
                continue
            shared = set(part.table["subject"]) & set(images.table["subject"])
            if shared:
                what = f"subject {min(shared)!r} is in {name} and in {source}"
                raise DataError(f"{what}; split by subject first")


def age_edges(table: pd.DataFrame) -> tuple[float, float]:
    """The ages (years) at one and two thirds of the subjects of `table`; take those of the training
    set everywhere.

    In the paper the tertiles have medians 56, 66 and 73 years. Raises `DataError` when an age is
    missing.
    """
    need(table, "subject", "age", whole=True)
    low, high = np.quantile(table.drop_duplicates("subject")["age"].to_numpy(float), [1 / 3, 2 / 3])
    return float(low), float(high)


def with_groups(table: pd.DataFrame, edges: tuple[float, float]) -> pd.DataFrame:
    """Return `table` with the columns `age_tertile` and `bmi_group` added (ordered categories, see
    `TERTILES`, `BMI_GROUPS`).

    An age equal to an edge belongs below it. These are the body-mass classes of the paper's test
    (25 and 30 kg/m2), not the four of its prompt. Raises `DataError` when an age or body-mass index
    is missing, saying how many.
    """
    import pandas as pd

    need(table, "age", "bmi", whole=True)
    age = np.searchsorted(edges, table["age"].to_numpy(float), side="left")
    bmi = np.searchsorted((25.0, 30.0), table["bmi"].to_numpy(float), side="right")
    named = partial(pd.Categorical.from_codes, ordered=True)
    return table.assign(age_tertile=named(age, TERTILES), bmi_group=named(bmi, BMI_GROUPS))


def labels_of(table: pd.DataFrame) -> np.ndarray:
    """int64 [N]: 1 = heart failure, 0 = healthy. Raises `DataError` on any other diagnosis."""
    need(table, "diagnosis", whole=True)
    other = set(table["diagnosis"]) - {ILL, HEALTHY}
    if other:
        what = f"diagnosis {sorted(map(str, other))[0]!r}"
        raise DataError(f"{what}; expected {HEALTHY!r} or {ILL!r}: map or drop the others")
    return (table["diagnosis"] == ILL).to_numpy(np.int64)


def at_prevalence(table: pd.DataFrame, prevalence: float, seed: int) -> np.ndarray:
    """Positions (rising) of the largest random part of `table` in which this share of the SUBJECTS
    has heart failure.

    Whole subjects of the class that is too frequent are left out; what is kept depends on the seed
    and on the subjects, not on the order of rows. The paper takes 0.25 to train, 0.10 to validate
    and 0.01 to test. The share reached is off by less than half a subject. Raises `DataError` when
    not one ill subject fits, saying how many of each there are.
    """
    if not 0 < prevalence < 1:
        raise SettingsError(f"prevalence {prevalence}: expected above 0 and below 1")
    need(table, "subject", whole=True)
    subject, label = table["subject"].to_numpy(), labels_of(table).astype(bool)
    ill, healthy = np.unique(subject[label]), np.unique(subject[~label])
    both = np.intersect1d(ill, healthy)
    if len(both):
        raise DataError(f"subject {both[0]!r} is both healthy and ill; correct the table")
    odds = prevalence / (1 - prevalence)
    n_ill = min(len(ill), int(np.floor(len(healthy) * odds + 1e-9)))
    n_healthy = min(len(healthy), round(n_ill / odds))
    if n_ill < 1 or n_healthy < 1:
        raise DataError(
            f"prevalence {prevalence:g} cannot be reached with {len(ill)} subjects with heart "
            f"failure and {len(healthy)} healthy; one ill subject needs {1 / odds:.0f} healthy ones"
        )
    rng = numpy_rng(seed, Stream.PREVALENCE)
    kept = [rng.permutation(ill)[:n_ill], rng.permutation(healthy)[:n_healthy]]
    return np.flatnonzero(np.isin(subject, np.concatenate(kept)))


# ---- two kinds of requests for synthetic hearts: copies of real pairs, and new combinations

DECADES = ("50s", "60s", "70s", "80s", "90s")  # those of the paper's random mode
# kg/m2 that stand for a class of the random mode
TYPICAL_BMI = {"normal": 22.0, "overweight": 27.5, "obese": 33.0}


def copies(
    table: pd.DataFrame, masks: Tensor, count: int, seed: int, clip: float = 5
) -> tuple[pd.DataFrame, Tensor]:
    """Requests for `count` hearts that repeat real pairs of prompt and mask, drawn by capped
    inverse frequency.

    `table`: one row a heart with sex, age, bmi, diagnosis (and subject, if known); `masks`: uint8
    [N, 2, H, W], one a row. Returns the requests (columns prompt, sex, age, bmi, decade, bmi_class,
    diagnosis, source; source is the row of `table`) and their control images [count, 3, H, W]. As
    in the paper; `clip` 5 is its cap in generation.
    """
    same_length(table=table, masks=masks)
    prompts = [prompt_of(row) for row in table.to_dict("records")]
    source = draw_rows(balancing_weights(prompts, clip), count, seed, Stream.COPIES)
    return _requests(table, table.iloc[source.numpy()], source), control_image(masks[source])


def new_combinations(
    table: pd.DataFrame,
    masks: Tensor,
    count: int,
    seed: int,
    decades: Sequence[str] = DECADES,
    present_only: bool = False,
) -> tuple[pd.DataFrame, Tensor]:
    """Requests for `count` hearts of random attributes, each with a random real mask of the same
    diagnosis.

    Sex, decade, body-mass class (normal, overweight, obese) and diagnosis are drawn evenly and
    independently of each other, as in the random mode of the paper's code; `present_only` leaves
    out the decades that `table` has not. The mask may therefore belong to another sex, age and
    weight than the prompt. Arguments and result as in `copies`, age and bmi being typical of the
    requested class. Raises `DataError` when a diagnosis has no mask.
    """
    import pandas as pd

    same_length(table=table, masks=masks)
    present = {decade(age) for age in table["age"]} if present_only else set(decades)
    ages = _typical_ages(decades, present)
    pools = {name: np.flatnonzero((table["diagnosis"] == name).to_numpy()) for name in DIAGNOSES}
    empty = [name for name, rows in pools.items() if not len(rows)]
    if empty:
        what = f"no mask of diagnosis {empty[0]!r} in the table"
        raise DataError(f"{what}; a new combination takes a mask of its diagnosis")
    rng = numpy_rng(seed, Stream.COMBINATIONS)
    choices = {
        "sex": ("F", "M"),
        "age": ages,
        "bmi": [TYPICAL_BMI[name] for name in BMI_CLASSES[1:]],
        "diagnosis": DIAGNOSES,
    }
    rows = []
    for _ in range(count):
        drawn = {name: _one(rng, values) for name, values in choices.items()}
        rows.append(drawn | {"source": int(_one(rng, pools[drawn["diagnosis"]]))})
    requested = pd.DataFrame(rows, columns=[*choices, "source"])
    source = torch.tensor(requested["source"].to_numpy(dtype=np.int64))
    return _requests(table, requested, source), control_image(masks[source])


def _requests(table: pd.DataFrame, requested: pd.DataFrame, source: Tensor) -> pd.DataFrame:
    """The table of requests: the attributes requested, and the row (and subject, where known) of
    the mask.
    """
    requests = requested[["sex", "age", "bmi", "diagnosis"]].reset_index(drop=True)
    requests.insert(0, "prompt", [prompt_of(row) for row in requests.to_dict("records")])
    requests["decade"] = [decade(age) for age in requests["age"]]
    requests["bmi_class"] = [bmi_class(bmi) for bmi in requests["bmi"]]
    requests["source"] = source.numpy()
    if "subject" in table:
        requests["subject"] = table["subject"].to_numpy()[source.numpy()]
    return requests


def _typical_ages(decades: Sequence[str], present: set[str]) -> list[float]:
    """The middle of each of the decades that are `present`, in years.

    Raises `SettingsError` on a word that names none.
    """
    for name in decades:
        if re.fullmatch(r"[1-9]0s", name) is None:
            raise SettingsError(f"decades {list(decades)}: {name!r} is none; write it as '60s'")
    chosen = [name for name in decades if name in present]
    if not chosen:
        raise SettingsError(f"decades {list(decades)}: the table has only {sorted(present)}")
    return [float(name[:-1]) + 5 for name in chosen]


def _one(rng: np.random.Generator, choices: Sequence[Any] | np.ndarray) -> Any:
    return choices[int(rng.integers(len(choices)))]
