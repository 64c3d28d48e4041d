"""What reads a heart: a re-segmenter and the geometry of its masks, a heart-failure classifier, and
a reader of attributes.

Each is fitted on hearts of other subjects: none ever sees a generated image or one of the
generator's training subjects while it is fitted. Masks are [N, 2, H, W], frame 0 = end diastole
(ED), 1 = end systole (ES); labels 0 background, 1 LV cavity, 2 myocardium (MYO), 3 RV cavity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor, nn

from fairlib.cohorts.cohort import split_subjects
from fairlib.errors import DataError
from fairlib.io import read_tensors, write_bytes, write_tensors
from fairlib.measures.dice import FRAMES, STRUCTURES, check_masks, dice, mean_dice
from fairlib.methods.downstream import HEADS, DownstreamSettings
from fairlib.models.classifier import (
    CARDIAC,
    Classifier,
    ClassifierSettings,
    load_classifier,
    predict,
    save_classifier,
    set_threshold,
    truth_of,
)
from fairlib.models.segmenter import (
    Segmenter,
    SegmenterSettings,
    fit_segmenter,
    load_segmenter,
    save_segmenter,
    segment,
)
from fairlib.rng import Stream
from studies.engine import accelerator
from studies.engine.images import fit_heads
from studies.engine.stage import Artifact, Progress, stage
from studies.engine.study import read_table
from studies.heart.data import Hearts, HeartSettings, part

UNITS = {
    "lv_ed_area": "mm2",
    "lv_es_area": "mm2",
    "diameter_ed": "mm",
    "ejection": "",
    "wall_ed": "mm",
    "wall_es": "mm",
    "myo_ed_area": "mm2",
    "rv_ed_area": "mm2",
    "rv_es_area": "mm2",
}


def geometry(masks, pixel: float = 2.0, largest: bool = True) -> pd.DataFrame:
    """One row a heart, columns `UNITS`: areas in mm2, `ejection` = 1 - ES / ED cavity area, mean
    wall thickness in mm.

    `diameter_ed` is that of the circle with the cavity's area.
    pixel: side of a square pixel in mm. `largest`: of the LV cavity, of the outer outline (LV and
    MYO) and of the RV only the largest connected part counts, so a stray speck of a segmenter is
    not anatomy. NaN where a structure that a column needs is missing.
    Raises `DataError` on a wrong shape, an unknown label, or a pixel size that is not positive.
    """
    masks = check_masks(masks)
    if not pixel > 0:
        what = f"pixel size {pixel} mm"
        raise DataError(f"{what}; it must be positive (read it from the header of the scan)")
    cavity, epicardium, right = masks == 1, (masks == 1) | (masks == 2), masks == 3
    if largest:
        cavity, epicardium, right = map(_largest_parts, (cavity, epicardium, right))
    lv, rv, muscle = (_area(part, pixel) for part in (cavity, right, epicardium & ~cavity))
    wall = wall_thickness(cavity, epicardium, pixel)
    diameter, ejection = 2 * np.sqrt(lv[:, 0] / np.pi), 1 - lv[:, 1] / lv[:, 0]
    columns = (*lv.T, diameter, ejection, *wall.T, muscle[:, 0], *rv.T)  # in the order of UNITS
    return pd.DataFrame(dict(zip(UNITS, columns, strict=True)))


def wall_thickness(cavity: np.ndarray, epicardium: np.ndarray, pixel: float = 2.0) -> np.ndarray:
    """Mean thickness in mm of the ring between two outlines, 2 A / (P_endo + P_epi); NaN without a
    cavity or a ring.

    cavity, epicardium: bool [..., H, W], the epicardium with the cavity inside it. The formula is
    exact where the outer outline runs parallel to a convex inner one, whatever its shape;
    perimeters are those of `perimeter`.
    """
    ring = (epicardium & ~cavity).sum((-2, -1))
    defined = cavity.any((-2, -1)) & (ring > 0)
    around = perimeter(cavity) + perimeter(epicardium)
    return np.where(defined, 2 * ring / np.where(defined, around, 1), np.nan) * pixel


def perimeter(mask: np.ndarray) -> np.ndarray:
    """Perimeter, in pixels, of bool [..., H, W], by the Cauchy-Crofton formula in four directions.

    Steps from inside to outside are counted along rows, columns and both diagonals (whose lines lie
    1 / sqrt(2) apart): pi / 8 * (rows + columns + diagonals / sqrt(2)). Unbiased over position for
    a circle; for other convex outlines within about 5 %. Holes count as outline.
    """
    mask = np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(1, 1), (1, 1)])
    straight = _steps(mask[..., 1:], mask[..., :-1]) + _steps(mask[..., 1:, :], mask[..., :-1, :])
    falling = _steps(mask[..., 1:, 1:], mask[..., :-1, :-1])
    rising = _steps(mask[..., 1:, :-1], mask[..., :-1, 1:])
    return np.pi / 8 * (straight + (falling + rising) / np.sqrt(2))


def _steps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one != other).sum((-2, -1))


def _area(part: np.ndarray, pixel: float) -> np.ndarray:
    """Area in mm2 of bool [..., H, W]; NaN where empty."""
    count = part.sum((-2, -1))
    return np.where(count > 0, count * float(pixel) ** 2, np.nan)


def _largest_parts(parts: np.ndarray) -> np.ndarray:
    """The largest connected part of each mask of bool [N, 2, H, W]; nothing where it is empty."""
    kept = np.zeros_like(parts)
    for index in np.ndindex(parts.shape[:2]):
        labels, count = ndimage.label(parts[index])
        if count:
            kept[index] = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return kept


DICE = tuple(f"dice_{frame}_{part}".lower() for frame in FRAMES for part in STRUCTURES)
ATTRIBUTES = {"female": "binary", "age": "number", "bmi": "number"}  # of the reader
Columns = dict[str, np.ndarray]
Kept = dict[str, Tensor]


@dataclass(frozen=True)
class Evaluator:
    """A measurement as data: how its network is fitted, with which settings (`steps` names the
    setting of a study that replaces theirs), how it is loaded, and how it reads hearts: (network,
    hearts) -> columns of the readings [N], and tensors to keep beside them.
    """

    fit: Callable[..., None]
    settings: Any
    load: Callable[[Path], nn.Module]
    read: Callable[[nn.Module, Hearts], tuple[Columns, Kept]]
    steps: str = "evaluator_steps"


@dataclass(frozen=True, eq=False)
class Readings:
    """What the evaluators read in N hearts.

    table: the attributes of each heart (requested, or true), and what was read (see
    `read_hearts_with`). segmented, requested: masks uint8 [N, 2, H, W], read in the image and given
    with it.
    """

    table: pd.DataFrame
    segmented: Tensor
    requested: Tensor


def read_readings(folder: Path) -> Readings:
    """What the stage `evaluate` has written."""
    masks = read_tensors(folder / "masks.safetensors")
    return Readings(read_table(folder / "readings.csv"), **masks)


@stage(load=read_readings)
def evaluate(
    out: Path,
    progress: Progress,
    hearts: Artifact[Hearts],
    count: int | None,
    evaluators: dict[str, tuple[Artifact[nn.Module], Callable]],
) -> None:
    """Read the first `count` hearts (None: all) with every evaluator: (network, how it reads).

    Columns: those of the hearts' table; Dice of the given mask and that in the image (`DICE`);
    measured geometry (`measured_...`, mm and mm2); `read_failure`, `read_female` (logits),
    `read_age`, `read_bmi`, and `read_ill` (0 or 1).
    """
    given = hearts.load() if count is None else hearts.load().first(count)
    progress.say(f"reading {len(given)} hearts")
    columns: Columns = {}
    kept = {"requested": given.masks}
    for network, read in evaluators.values():
        own, tensors = read(network.load().to(accelerator()), given)
        columns, kept = columns | own, kept | tensors
    table = pd.concat([given.table, pd.DataFrame(columns).round(5)], axis=1)
    write_tensors(out / "masks.safetensors", kept)
    write_bytes(out / "readings.csv", table.to_csv(index=False).encode())


def read_shape(segmenter: Segmenter, hearts: Hearts) -> tuple[Columns, Kept]:
    """Masks found in the images, their Dice with the given ones, and their geometry."""
    masks = segment(segmenter, hearts.images)
    overlaps = dice(hearts.masks, masks).reshape(len(masks), -1)
    measured = {f"measured_{name}": values.to_numpy() for name, values in geometry(masks).items()}
    return dict(zip(DICE, overlaps.T, strict=True)) | measured, {"segmented": masks}


def read_diagnosis(classifier: Classifier, hearts: Hearts) -> tuple[Columns, Kept]:
    """The logit of heart failure, and whether it lies above the threshold."""
    prediction = predict(classifier, hearts.images)
    ill = prediction.positive().numpy().astype(int)
    return {"read_failure": prediction.logit.numpy(), "read_ill": ill}, {}


def read_attributes(reader: Classifier, hearts: Hearts) -> tuple[Columns, Kept]:
    """The logit of female, age in years and body-mass index in kg/m2."""
    logits = predict(reader, hearts.images).logits
    return {f"read_{name}": values.numpy() for name, values in logits.items()}, {}


def fit_and_calibration(hearts: Hearts, split_seed: int | None) -> tuple[Hearts, Hearts]:
    """The hearts that evaluators are fitted on, and the calibration set: a fifth, for their errors
    and thresholds.

    The last fifth without a `split_seed`, as synthetic subjects come in no order. Real ones are
    few: there it is a fifth of the subjects of each diagnosis, so that neither is missing.
    """
    if split_seed is None:
        edge = len(hearts) - len(hearts) // 5
        return hearts.take(range(edge)), hearts.take(range(edge, len(hearts)))
    subjects = hearts.table.drop_duplicates("subject")
    parts = split_subjects(subjects, {"fit": 0.8, "calibration": 0.2}, split_seed, ["diagnosis"])
    own = (hearts.table["subject"].map(parts) == "calibration").to_numpy()
    return hearts.take(np.flatnonzero(~own)), hearts.take(np.flatnonzero(own))


@stage
def fit_evaluator(
    out: Path,
    progress: Progress,
    hearts: Artifact[Hearts],
    split_seed: int | None,
    fit: Callable[..., None],
    settings: Any,
) -> None:
    """Fit an evaluator; see `fit_and_calibration` for `split_seed`."""
    fit(out, progress, *fit_and_calibration(hearts.load(), split_seed), settings)


def fit_shape(
    out: Path, progress: Progress, hearts: Hearts, calibration: Hearts, settings: SegmenterSettings
) -> None:
    """Fit the re-segmenter; its own Dice on the calibration set is written beside it."""
    torch.manual_seed(settings.seed)
    segmenter = Segmenter().to(accelerator())
    steps = fit_segmenter(segmenter, hearts.images, hearts.masks, settings)
    for _ in progress.track(steps, settings.steps, "re-segmenter"):
        pass
    segmented = segment(segmenter, calibration.images)
    save_segmenter(out, segmenter, {"dice": mean_dice(dice(calibration.masks, segmented))})


def fit_failure(
    out: Path, progress: Progress, hearts: Hearts, calibration: Hearts, settings: ClassifierSettings
) -> None:
    """Fit the heart-failure classifier; its threshold is the best on the calibration set."""
    settings = replace(settings, warmup=min(30, settings.steps // 4))
    truth = hearts.labels()
    classifier = fit_heads(progress, HEADS, hearts.images, truth, settings, "diagnosis")
    labels = calibration.labels()
    threshold = set_threshold(classifier, calibration.images, labels)
    right = (predict(classifier, calibration.images).logit > threshold) == labels.bool()
    save_classifier(out, classifier, {"accuracy": float(right.float().mean())})


def fit_reader(
    out: Path, progress: Progress, hearts: Hearts, calibration: Hearts, settings: ClassifierSettings
) -> None:
    """Fit the reader of attributes."""
    truth = truth_of(hearts.table.assign(female=hearts.table["sex"] == "F"), ATTRIBUTES)
    reader = fit_heads(progress, ATTRIBUTES, hearts.images, truth, settings, "attributes")
    save_classifier(out, reader)


# how each is fitted; the steps are those of a study
SHAPE = SegmenterSettings(seed=51)
FAILURE = replace(DownstreamSettings().classifier, seed=52)
PERSON = replace(FAILURE, warmup=50, architecture=CARDIAC, stream=Stream.CLASSIFIER_3, seed=53)
EVALUATORS: dict[str, Evaluator] = {
    "segmenter": Evaluator(fit_shape, SHAPE, load_segmenter, read_shape, "segmenter_steps"),
    "diagnosis": Evaluator(fit_failure, FAILURE, load_classifier, read_diagnosis),
    "attributes": Evaluator(fit_reader, PERSON, load_classifier, read_attributes),
}


def fitted(settings: HeartSettings, name: str) -> Artifact[nn.Module]:
    """The network of an evaluator in `EVALUATORS`, fitted on first use."""
    chosen, synthetic = EVALUATORS[name], settings.cohort == "phantom"
    split_seed = None if synthetic else settings.split_seed
    how = replace(chosen.settings, steps=getattr(settings, chosen.steps))
    hearts = part(settings, "evaluators")
    return replace(fit_evaluator(hearts, split_seed, chosen.fit, how), reader=chosen.load)


def fitted_evaluators(settings: HeartSettings) -> dict[str, tuple[Artifact[nn.Module], Callable]]:
    """Every evaluator of a study, for `evaluate`."""
    return {name: (fitted(settings, name), one.read) for name, one in EVALUATORS.items()}
