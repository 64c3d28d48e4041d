"""What is in an image: a measurement of the cup that learnt nothing, and a classifier of attributes
fitted on real images.

The anatomical measurement is the cup-to-disc ratio by geometry alone: no learned feature, nothing a
gradient has touched. The disc is the bright blob of the right size. Around it a small model is
fitted to the brightness along rays: background, rim and cup are levels, both edges are soft steps
whose radii may vary as an ellipse with its own middle does. Vessels (dark and narrow) are left out,
and points far from the model (a crescent, what is left of vessels) lose their weight. On phantom
images the mean absolute error is about 0.03 in every race (the tests hold it to 0.04), large ratios
read up to 0.03 too small on average, and one image in three hundred is wrong by more than 0.15.
Cups below 0.2 of the disc are the hard ones: with noise or blur a disc may then be taken for a cup.
Images that are not as synthetic fundi are (a colour photograph) have no ratio, rather than a wrong
one.
Radii of the model are in pixels of a 128 x 128 image. `rays` [RAYS, K] is brightness over the
image's range; `known` [RAYS, K] says how far each point counts (vessels do not).

None of the generator's training patients, and no generated image, is in what the attribute
classifier is fitted on.

Semantic correlation (Luo et al.): does an image generated for "glaucoma" show it? By classifiers
across the gap, both ways: one trained on an arm's images (labels: the words requested) and tried on
real unseen patients, and one trained on as many real patients and tried on that arm's images. In
the row "real" the images of the requested patients take the place of generated ones: what a perfect
generator reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import ndimage

from fairlib.errors import DataError
from fairlib.io import read_tensors, write_bytes, write_tensors
from fairlib.models.classifier import (
    SLIM,
    WIDE,
    Classifier,
    ClassifierSettings,
    predict,
    save_classifier,
    truth_of,
)
from fairlib.rng import Stream
from studies.engine.images import Images, fit_heads, read_classifier
from studies.engine.stage import Artifact, Progress, stage
from studies.fundus.data import CUP, FundusSettings, subjects

# px of 128: what is narrower, and so much darker than is usual here, is a vessel
VESSEL, VALLEY, USUAL = 11, 0.03, 2.0
WIDEST = 0.96  # cup over disc: a wider one is the soft edge of a disc that shows no cup
COLUMNS = ("cdr", "disc_diameter", "has_disc")
# directions; pixels of 128 between points of a ray, and how far it goes
RAYS, STEP, REACH = 72, 0.6, 33.0
DISC_RADIUS = (11.0, 27.0)  # px of 128: of discs that are looked for
# px: half width of the disc's edge and of the cup's, which is softer, after the smoothing
SOFT = np.array([1.3, 1.8])
LEAST_STEP = 0.08  # of the image's range: from background to rim
LEAST_CUP = 0.03  # from rim to cup
# of the typical error: what is further from the model hardly counts; vessels are darker
DARKER, BRIGHTER = 1.3, 2.5
HAZE = 2.0  # step from rim to cup over that from background to rim
# Background over cup: at most 0.47 in 400 synthetic fundi. In a colour photograph the whole retina
# is bright (0.50 to 0.75), and radii from there depend on how it is cropped.
SURROUND = 0.49
ROUNDS, HARMONICS = 14, 5
ANGLE = np.arange(RAYS) * 2 * np.pi / RAYS
DOWN, RIGHT = -np.sin(ANGLE)[:, None], np.cos(ANGLE)[:, None]  # a step along each ray
RADII = np.arange(2.0, REACH, STEP)
# what an ellipse off the middle needs, [5, RAYS]
WAVES = np.stack([ANGLE**0, *(wave(k * ANGLE) for k in (1, 2) for wave in (np.cos, np.sin))])
# Scatter of the prior, infinite where a parameter is free: shape of the disc; middle of the cup
# against that of the disc, and its shape against the disc's; evenness of the rim's brightness.
SCATTER = np.full(2 * HARMONICS + 8, np.inf)
SCATTER[[3, 4, 6, 7, 8, 9, 15, 16]] = [3.0, 3.0, 1.5, 1.5, 0.3, 0.3, 0.02, 0.02]
PRIOR = 20 * (1 / SCATTER**2)  # neighbouring points of the rays are not independent


@dataclass(frozen=True)
class DiscFit:
    """Edges of disc and cup around `centre` (row, column): radii [RAYS] in pixels, anticlockwise
    from the right; levels: brightness (background, rim, cup) of the image's range; misfit: mean
    absolute error of the model, cut at 0.15.
    """

    centre: tuple[float, float]
    disc: np.ndarray
    cup: np.ndarray
    levels: tuple[float, float, float]
    misfit: float


def measure_cdr(images: ArrayLike) -> pd.DataFrame:
    """Cup and disc of fundus images [N, 1, H, H] in [-1, 1], H at least 64, disc within the
    middle: one row an image.

    cdr: vertical cup-to-disc ratio; disc_diameter: vertical, in pixels of the image; has_disc:
    whether a disc with a cup was found, in an image of the kind that is measured. Where not,
    cdr and disc_diameter are NaN; no image raises. Raises `DataError` on another shape.
    """
    pixels = np.asarray(images, dtype=np.float32)
    sizes = pixels.shape[1:]
    if len(sizes) != 3 or sizes != (1, sizes[2], sizes[2]) or sizes[2] < 64:
        what = f"images of shape {pixels.shape}"
        raise DataError(f"{what}; cup and disc are measured on [N, 1, H, H] with H of at least 64")
    return pd.DataFrame([_measured(fit_disc(image[0])) for image in pixels], columns=list(COLUMNS))


def fit_disc(image: np.ndarray) -> DiscFit | None:
    """Disc and cup of one image [H, H] in [-1, 1]; None where there is no disc with a cup to be
    found.
    """
    if not np.isfinite(image).all() or np.ptp(image) < 1e-3:
        return None
    scale = len(image) / 128
    low, high = np.percentile(image, (1, 99.7))
    smooth = ndimage.gaussian_filter((image - low) / max(high - low, 1e-6), 0.9 * scale)
    closed = ndimage.grey_closing(smooth, size=2 * [_odd(VESSEL * scale)])
    valley = closed - smooth  # of noise and texture, too: what is usual is none
    clear = valley < max(VALLEY, USUAL * np.median(valley))
    seen = ndimage.gaussian_filter(clear.astype(np.float32), 1.5 * scale)
    first = _fit(smooth, seen, _blob(closed, scale), scale)
    if first is None or not _plausible(first, scale, 0.5):
        return None
    moved = [2 * (first.disc * along[:, 0]).mean() for along in (DOWN, RIGHT)]
    centre = (first.centre[0] + moved[0], first.centre[1] + moved[1])
    fit = _fit(smooth, seen, centre, scale)  # again from the disc's own middle
    return fit if fit is not None and _plausible(fit, scale) else None


def _measured(fit: DiscFit | None) -> tuple[float, float, bool]:
    if fit is None:
        return np.nan, np.nan, False
    cup, disc = (np.ptp(radii * DOWN[:, 0]) for radii in (fit.cup, fit.disc))
    return cup / disc, disc, True


def _plausible(fit: DiscFit, scale: float, strictness: float = 1.0) -> bool:
    """Whether the fit is a disc: of its size, brighter than what is around it, with a brighter cup
    inside it, in an image whose background is as dark as in those that this was made for.
    """
    background, rim, cup = fit.levels
    if not np.isfinite([*fit.disc, *fit.cup, *fit.levels]).all():
        return False
    inside = (fit.cup > 0.5 * scale).all() and fit.cup.mean() < WIDEST * fit.disc.mean()
    least, most = 0.7 * DISC_RADIUS[0] * scale, 1.2 * DISC_RADIUS[1] * scale
    sized = ((fit.disc > least) & (fit.disc < most)).all()
    disc_shown = rim - background > strictness * max(LEAST_STEP, 3 * fit.misfit)
    highest = 1.25 * HAZE * (rim - background)
    cup_shown = strictness * max(LEAST_CUP, fit.misfit) < cup - rim < highest
    in_domain = strictness * background < SURROUND * cup
    return bool(inside and sized and disc_shown and cup_shown and in_domain)


def _blob(clear: np.ndarray, scale: float) -> tuple[float, float]:
    """The middle of the brightest blob of a disc's size, away from the frame."""
    found = ndimage.gaussian_filter(clear, 9 * scale) - ndimage.gaussian_filter(clear, 20 * scale)
    edge = round(24 * scale)
    inner = found[edge:-edge, edge:-edge]
    row, column = np.unravel_index(np.argmax(inner), inner.shape)
    return float(row + edge), float(column + edge)


def _fit(
    smooth: np.ndarray, seen: np.ndarray, centre: tuple[float, float], scale: float
) -> DiscFit | None:
    where = [centre[0] + scale * RADII * DOWN, centre[1] + scale * RADII * RIGHT]
    rays, known = (
        ndimage.map_coordinates(values, where, order=1, mode="nearest") for values in (smooth, seen)
    )
    known = np.clip(5 * known - 4, 0.001, 1)
    found = best_fit(rays, known) if (known > 0.5).mean() > 0.2 else None
    if found is None:
        return None
    disc, cup, levels, misfit = found
    background, rim, centre_level = map(float, levels)
    return DiscFit(centre, disc * scale, cup * scale, (background, rim, centre_level), misfit)


def _odd(width: float) -> int:
    return 2 * round((width - 1) / 2) + 1


# ---- the model


def best_fit(
    rays: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float] | None:
    """Radii of disc and cup [RAYS], brightness (background, rim, cup) and misfit of the model; None
    where no pair of steps is.

    The fit starts from the best circles with a small cup and from the best with a large one, and
    the better end is taken. An end whose outer step is far lower than its inner one took the disc
    for a cup, and the haze around it for a rim: it is taken only if there is no other.
    """
    profile = _median(rays, known)
    fits = [_refine(rays, known, _levels(profile, start), start) for start in _circles(profile)]
    if not fits:
        return None
    values, misfit = min(fits, key=lambda found: (_hazy(found[0]), found[1]))
    disc, cup = (values[i : i + HARMONICS] @ WAVES for i in (0, HARMONICS))
    return disc, cup, values[2 * HARMONICS :][[0, 4, 7]], misfit


def _hazy(values: np.ndarray) -> bool:
    ground, rim, cup = values[2 * HARMONICS :][[0, 4, 7]]
    return bool(cup - rim > HAZE * (rim - ground))


def _refine(
    rays: np.ndarray, known: np.ndarray, levels: np.ndarray, start: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """Weighted Gauss-Newton steps from circles of radius `start` (cup, disc): the parameters and
    their misfit.
    """
    edges = 2 * HARMONICS
    values = np.concatenate([np.zeros(edges), levels])
    values[0], values[HARMONICS] = start[1], start[0]
    share, clear = known.ravel(), known.ravel() > 0.5
    for turn in range(ROUNDS):
        model, slopes = _model(values)
        error = (rays - model).ravel()
        typical = max(1.4826 * np.median(np.abs(error[clear])), 0.004)
        reach = np.where(error < 0, DARKER, BRIGHTER) * typical
        # Geman and McClure: what is far off does not count
        weight = share / (1 + (error / reach) ** 2) ** 2
        normal, ridge = (slopes * weight) @ slopes.T, PRIOR * typical**2
        pull = slopes @ (weight * error) - ridge * _free(values)
        step = np.linalg.solve(normal + np.diag(ridge + 1e-4 * np.diag(normal) + 1e-9), pull)
        step[:edges] = np.clip(step[:edges], -1.5, 1.5)
        values = values + step
        if turn > 4 and np.abs(step[:edges]).max() < 0.02:
            break
    return values, float((np.minimum(np.abs(error), 0.15) * share).sum() / share.sum())


def _model(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brightness [RAYS, K] and its derivatives [P, RAYS * K]. Parameters: five harmonics of each
    edge; background (mean, two waves, slope along the ray), rim (mean, two waves), cup.
    """
    levels = values[2 * HARMONICS :]
    disc, cup = (
        _soft((values[i : i + HARMONICS] @ WAVES)[:, None] - RADII, width)
        for i, width in zip((0, HARMONICS), SOFT, strict=True)
    )
    ground = (levels[:3] @ WAVES[:3])[:, None] + levels[3] * (RADII - 20) / 20
    rim = (levels[4:7] @ WAVES[:3])[:, None]
    model = ground + (rim - ground) * disc + (levels[7] - rim) * cup * disc
    steep_disc, steep_cup = (
        2 / width * part * (1 - part) for part, width in zip((disc, cup), SOFT, strict=True)
    )
    by_disc = (rim - ground + (levels[7] - rim) * cup) * steep_disc
    by_cup = (levels[7] - rim) * disc * steep_cup
    outside, middle = 1 - disc, disc * (1 - cup)
    waves = WAVES[:, :, None]
    slopes = [waves * by_disc, waves * by_cup, waves[:3] * outside]
    slopes += [(outside * (RADII - 20) / 20)[None], waves[:3] * middle, (disc * cup)[None]]
    return model, np.concatenate(slopes).reshape(len(values), -1)


def _circles(profile: np.ndarray) -> list[tuple[float, float]]:
    """Radii (cup, disc) whose two steps fit the median ray best, all pairs tried: one with a small
    cup, one with a large.

    Both steps must lead down; a kind that has no such pair is left out.
    """
    pairs, design, inverse = _trials()
    found = inverse @ (design @ profile)[:, :, None]
    error = ((profile - (found * design).sum(1)) ** 2).sum(1)
    error[(found[:, 1, 0] < 0.5 * LEAST_CUP) | (found[:, 2, 0] < 0.5 * LEAST_STEP)] = np.inf
    small = pairs[:, 0] < 0.5 * pairs[:, 1]
    best = [int(np.argmin(np.where(kind, error, np.inf))) for kind in (small, ~small)]
    return [tuple(pairs[row]) for row in best if np.isfinite(error[row])]


@lru_cache(maxsize=1)
def _trials() -> tuple[np.ndarray, ...]:
    """Pairs (cup, disc) [P, 2], and for each the regressors [P, 4, K] and their inverse normal
    matrix.
    """
    discs, shares = np.arange(*DISC_RADIUS, 0.5), np.arange(0.14, 0.97, 0.04)
    pairs = np.array([(share * disc, disc) for disc in discs for share in shares])
    steps = _soft(pairs[:, :, None] - RADII, SOFT[::-1, None])
    ones, slope = np.ones((len(pairs), 1, len(RADII))), (1 - steps[:, 1:]) * (RADII - 20) / 20
    design = np.concatenate([ones, steps, slope], axis=1)
    return pairs, design, np.linalg.inv(design @ design.transpose(0, 2, 1) + 1e-6 * np.eye(4))


def _median(rays: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The median over rays [K] of what is not vessel."""
    return np.nanmedian(np.where((known > 0.5) | (known.max(axis=0) <= 0.5), rays, np.nan), axis=0)


def _levels(profile: np.ndarray, start: tuple[float, float]) -> np.ndarray:
    cup, disc = start
    parts = (disc + 2 < RADII, (cup < RADII) & (disc > RADII), cup > RADII)
    ground, rim, cup = (np.median(profile[part] if part.any() else profile) for part in parts)
    return np.array([ground, 0, 0, 0, rim, 0, 0, cup])


def _free(values: np.ndarray) -> np.ndarray:
    """What the prior pulls to zero: the cup's deviation from the disc's shape, and waves of
    brightness.
    """
    found = values.copy()
    ratio = values[HARMONICS] / max(values[0], 1.0)
    found[HARMONICS + 3 : 2 * HARMONICS] -= ratio * values[3:HARMONICS]
    return found


def _soft(depth: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(depth / width)


Heads = list[tuple[str, Sequence[str]]]  # a list, so that their order is part of a key
FIT = ClassifierSettings(
    ema_decay=0.98, architecture=SLIM, augmentation="light", stream=Stream.CLASSIFIER_4
)
BATCH = 100  # images that are classified at a time


@dataclass(frozen=True, eq=False)
class Readings:
    """What is read in images. table: one row an image, `cdr` (measured), `disc_diameter` and
    `has_disc` where there is a disc to measure, and the attribute classifier's probabilities
    `p_<attribute>_<value>` (of two values the second alone). features: the classifier's, float64
    [N, 64].
    """

    table: pd.DataFrame
    features: np.ndarray


@stage(load=read_classifier)
def fit_classifier(
    out: Path,
    progress: Progress,
    given: Artifact[Images],
    most: int,
    heads: Heads,
    settings: ClassifierSettings,
) -> None:
    """Fit a classifier of `heads` on the first `most` images of `given`.

    Classifiers of one seed start from the same first weights.
    """
    values, fundi = dict(heads), given.load().first(most)
    architecture = replace(settings.architecture, channels=fundi.stored.shape[1])
    settings, truth = replace(settings, architecture=architecture), truth_of(fundi.table, values)
    label = f"classifier of {', '.join(values)}"
    save_classifier(out, fit_heads(progress, values, fundi.stored, truth, settings, label))


def attribute_classifier(settings: FundusSettings) -> Artifact[Classifier]:
    """The classifier of what prompts state and images show, fitted on real patients."""
    fit = replace(FIT, steps=settings.evaluator_steps, batch_size=64, seed=61, architecture=WIDE)
    given, words = subjects(settings, "evaluators"), settings.vocabulary
    heads = [(name, values) for name, values in words.stated if name not in words.unread]
    return fit_classifier(given, len(given.load()), heads, fit)


def task_classifier(
    settings: FundusSettings, images: Artifact[Images], seed: int
) -> Artifact[Classifier]:
    """A classifier of the tasks fitted on `images`: as many images and steps for all of a study."""
    fit = replace(FIT, steps=settings.semantic_steps, weight_decay=5e-2, seed=seed)
    count, words = len(subjects(settings, "requested").load()), settings.vocabulary
    tasks = words.only(words.learnt)
    return fit_classifier(images, count, list(tasks.items()), fit)


def load_readings(folder: Path) -> Readings:
    """Read what `read_images` found."""
    features = read_tensors(folder / "features.safetensors")["features"]
    return Readings(pd.read_csv(folder / "readings.csv"), features.double().numpy())


@stage(load=load_readings, verify=False)
def read_images(
    out: Path, progress: Progress, images: Artifact[Images], classifier: Artifact[Classifier]
) -> None:
    """Classify the attributes of `images`, and measure cup and disc where the classifier reads
    something of a cup.
    """
    fundi, heads = images.load(), classifier.load().heads
    blocks = fundi.images.split(50) if CUP in heads else []
    cups = [measure_cdr(block) for block in progress.track(blocks, len(blocks), "cup and disc")]
    read = predict(classifier.load(), fundi.stored, batch_size=BATCH)
    probabilities = columns("p", {name: read.probabilities(name) for name in heads}, heads)
    measured = [pd.concat(cups, ignore_index=True)] if cups else []
    table = pd.concat([*measured, probabilities], axis=1).round(5)
    write_bytes(out / "readings.csv", table.to_csv(index=False).encode())
    write_tensors(out / "features.safetensors", {"features": read.features})


def load_rows(folder: Path) -> pd.DataFrame:
    """Read the one table of numbers that a stage wrote."""
    return pd.read_csv(folder / "rows.csv")


@stage(load=load_rows, verify=False)
def answer(
    out: Path, progress: Progress, classifier: Artifact[Classifier], images: Artifact[Images]
) -> None:
    """Classify `images` by a classifier of the tasks: columns `s_<task>_<value>`."""
    tasks = classifier.load().heads
    read = predict(classifier.load(), images.load().stored, batch_size=BATCH)
    table = columns("s", {name: read.probabilities(name) for name in tasks}, tasks).round(5)
    write_bytes(out / "rows.csv", table.to_csv(index=False).encode())


def columns(
    prefix: str, probabilities: Mapping[str, np.ndarray], values: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Probabilities {attribute: [N, K]} as columns `<prefix>_<attribute>_<value>`; of two values
    the second alone.
    """
    table = {
        f"{prefix}_{name}_{value}": probabilities[name][:, place]
        for name in probabilities
        for place, value in enumerate(values[name])
        if len(values[name]) > 2 or place == 1
    }
    return pd.DataFrame(table)


def stacked(table: pd.DataFrame, prefix: str, attribute: str, values: Sequence[str]) -> np.ndarray:
    """[N, K] of one attribute from a table of `columns`."""
    names = [f"{prefix}_{attribute}_{value}" for value in values]
    if len(values) == 2:
        return np.stack([1 - table[names[1]], table[names[1]]], axis=1)
    return table[names].to_numpy(float)
