"""Shares of a subgroup, raw and with the evaluator's errors taken out: from readings to tables.

An evaluator that reads a share `s` of images as female, right on a share `a_F` of the female and
`a_M` of the male ones, gives `s = a_F p + (1 - a_M)(1 - p)`; the true share `p` follows (Rogan and
Gladen 1978; the same correction as CLEAM, NeurIPS 2023). Saerens, Latinne and Decaestecker (2002)
estimate `p` by EM from calibrated probabilities. Both corrections assume that the evaluator errs on
generated images as on its calibration set, and carry its errors into the interval: the generated
images and the calibration set (by subject) are drawn again. Where some generated images have labels
of their own, `ppi_share` needs no such assumption.

Readings are a table with one row a generated image: `arm, seed, prompt, group`, and for each
evaluator a column of probabilities of female in [0, 1]. An image that an evaluator could not read
is NaN: it is left out and counted in `unreadable`. A calibration set is a table with one row an
image of known sex: `subject, sex` ("F"/"M") and the evaluators' columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fairlib.errors import DataError
from fairlib.measures.intervals import (
    Interval,
    Labels,
    Rng,
    Sample,
    bootstrap,
    bootstrap_interval,
    interval,
)
from fairlib.settings import need

Tables: TypeAlias = pd.DataFrame | Mapping[str, pd.DataFrame]
"""A calibration set, or several by name."""
Numbers: TypeAlias = np.ndarray | float
BY = ("arm", "seed")
BAND = (0.2, 0.8)
"""The open interval of p that counts as ambiguous (Shen et al. 2024, logged in training)."""


@dataclass(frozen=True)
class Evaluator:
    """How a share is measured: a column of the readings, read at a threshold, and the errors that
    are taken out of it.

    Parameters
    ----------
    name
        As tables show it.
    column
        Of the readings and of the calibration set: probabilities of female in [0, 1].
    calibration
        Name of the calibration set on which errors are counted.
    threshold
        An image is read as female above it.
    stratum
        Columns (of both tables) within which errors are counted, each stratum of the images being
        corrected by its own. None: one pair of error rates for all.
    """

    name: str
    column: str
    calibration: str = "calibration"
    threshold: float = 0.5
    stratum: tuple[str, ...] = ()


@dataclass(frozen=True)
class CalibrationSet:
    """What an evaluator said of images of known sex.

    p_female: [N] probabilities in [0, 1]; truth: [N], 1 = female, 0 = male; subjects: [N] labels,
    resampled whole; strata: [N] labels within which errors are counted, or None; threshold: images
    are read as female above it. Raises `DataError` on unequal lengths, probabilities outside
    [0, 1], or a stratum in which a sex has no image.
    """

    p_female: np.ndarray
    truth: np.ndarray
    subjects: np.ndarray
    strata: np.ndarray | None = None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        strata = np.asarray(np.zeros(len(self.truth), int) if self.strata is None else self.strata)
        object.__setattr__(self, "strata", strata)
        parts = (self.p_female, self.truth, self.subjects, strata)
        if len({len(part) for part in parts}) > 1:
            what = "readings, truth, subjects and strata of the calibration set differ in length"
            raise DataError(f"{what}; give one of each per image")
        check_probabilities(self.p_female)
        sexes = pd.DataFrame({"truth": self.truth, "stratum": strata}).drop_duplicates()
        if not sexes.truth.isin([0, 1]).all() or (sexes.stratum.value_counts() < 2).any():
            what = f"the calibration set holds {sexes.to_dict('records')}"
            raise DataError(f"{what}; every stratum needs both 1 (female) and 0 (male)")

    def matched(self, strata: Labels, count: int) -> tuple[np.ndarray, Sample]:
        """Codes [count] of the images' `strata`, and the calibration set as a sample (p, truth,
        code), resampled by subject within sex, without strata that no image has.

        Raises `DataError` when an image lies in a stratum that the calibration set lacks.
        """
        strata = np.zeros(count, int) if strata is None else np.asarray(strata)
        names, codes = np.unique(strata, return_inverse=True)
        held = np.asarray(self.strata)
        missing = np.setdiff1d(names, held)
        if len(missing):
            raise DataError(f"the calibration set has no image of stratum {str(missing[0])!r}")
        used = np.isin(held, names)
        parts = (self.p_female, self.truth, self.subjects, held)
        p, truth, subjects, place = (np.asarray(part)[used] for part in parts)
        code = np.searchsorted(names, place)
        return codes, Sample(p, truth, code, clusters=subjects, strata=truth)


def calibration_set(table: pd.DataFrame, evaluator: Evaluator) -> CalibrationSet:
    """What `evaluator` said of the images of known sex that it could read.

    Raises `DataError` on a missing column.
    """
    columns = ("subject", "sex", evaluator.column, *evaluator.stratum)
    need(table, *columns, name=evaluator.calibration)
    rows = table[table[evaluator.column].notna()]
    p, truth = rows[evaluator.column].to_numpy(float), (rows.sex == "F").to_numpy(int)
    subjects, strata = rows.subject.to_numpy(str), _strata(rows, evaluator)
    return CalibrationSet(p, truth, subjects, strata, evaluator.threshold)


# --- corrections -------------------------------------------------------------------------------


def check_probabilities(values: ArrayLike) -> None:
    """Raise `DataError` unless every value lies in [0, 1]."""
    values = np.asarray(values, float)
    if values.size == 0 or not ((values >= 0) & (values <= 1)).all():
        what = "probabilities must be a non-empty array in [0, 1]"
        raise DataError(f"{what}; apply the sigmoid to logits, drop failed readings")


def class_accuracies(
    read: ArrayLike, truth: ArrayLike, codes: Labels = None, count: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(a_F, a_M), each [count]: the share of female images that are `read` [N] as female, and of
    male ones read as male, in each of `count` strata `codes` [N]; NaN where a sex is missing.
    """
    read, truth = np.asarray(read), np.asarray(truth)
    codes = np.zeros(len(truth), int) if codes is None else np.asarray(codes)
    with np.errstate(invalid="ignore"):
        of_female, of_male = (
            np.bincount(codes[rows], read[rows], count) / np.bincount(codes[rows], minlength=count)
            for rows in (truth == 1, truth == 0)
        )
    return of_female, 1 - of_male


def rogan_gladen(share: ArrayLike, a_f: Numbers, a_m: Numbers) -> np.ndarray:
    """The true female share behind an observed `share` (scalar or array), clipped to [0, 1].

    Raises `DataError` when a_F + a_M <= 1: such an evaluator says nothing about sex.

    book/fairness.md, Eq. (eq-rogan-gladen).
    """
    return np.clip(unclipped(share, a_f, a_m), 0, 1)


def unclipped(share: ArrayLike, a_f: Numbers, a_m: Numbers) -> np.ndarray:
    """As `rogan_gladen`, but also beyond 0 and 1, where noise alone can take a share."""
    if not np.all(np.add(a_f, a_m) > 1):
        raise DataError(
            f"the evaluator is right on {np.round(a_f, 3)} of female and {np.round(a_m, 3)} of "
            "male images; they must sum to more than 1 for its shares to be corrected; use a "
            "better evaluator"
        )
    return (np.asarray(share) + a_m - 1) / (np.asarray(a_f) + a_m - 1)


def saerens_em(probabilities: np.ndarray, prior: np.ndarray, tolerance: float = 1e-7) -> np.ndarray:
    """Maximum-likelihood shares [K] of a sample from calibrated `probabilities` [N, K] under
    `prior` [K].

    `prior`: shares of the groups where the probabilities were calibrated. (Saerens et al. 2002,
    equations 2.7-2.9.)
    """
    likelihood = np.asarray(probabilities, float) / prior
    shares = np.asarray(prior, float)
    for _ in range(2000):
        posterior = likelihood * shares
        updated = (posterior / posterior.sum(1, keepdims=True)).mean(0)
        if np.abs(updated - shares).max() < tolerance:
            return updated
        shares = updated
    return shares


def platt(
    logits: np.ndarray, truth: np.ndarray, weight: ArrayLike | None = None, ridge: float = 1e-4
) -> tuple[float, float]:
    """(slope, intercept) of the logistic recalibration of `logits` [N] on `truth` [N] (Platt 1999).

    By Newton's method with halved steps: logits of a sure classifier lie so far out that a whole
    step can lead away. weight: [N] of the rows, one each by default. ridge: pull of the slope
    toward one, a row, since a classifier that separates perfectly has no finite slope.
    """
    weight = np.ones(len(truth)) if weight is None else np.asarray(weight, float)
    design = np.stack([logits, np.ones_like(logits)])
    ridge = ridge * weight.sum()

    def loss(values: np.ndarray) -> float:
        z = values @ design
        fit = (weight * np.logaddexp(0, z)).sum() - z @ (weight * truth)
        return float(fit + ridge / 2 * (values[0] - 1) ** 2)

    slope_only = np.array([1.0, 0.0])
    line = slope_only
    for _ in range(50):
        p = sigmoid(line @ design)
        gradient = design @ (weight * (p - truth)) + ridge * (line - slope_only) * slope_only
        curvature = (design * (weight * (p * (1 - p)))) @ design.T
        move = np.linalg.solve(curvature + np.diag([ridge, 0]) + 1e-9 * np.eye(2), gradient)
        halved = (size for size in 0.5 ** np.arange(30) if loss(line - size * move) < loss(line))
        size = next(halved, 0.0)
        line = line - size * move
        if size * np.abs(move).max() < 1e-9:
            break
    return float(line[0]), float(line[1])


def sigmoid(values: ArrayLike) -> np.ndarray:
    """1 / (1 + exp(-values)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(values, float)))


def logit(p: ArrayLike) -> np.ndarray:
    """log(p / (1 - p)), with p kept 1e-6 from 0 and 1."""
    kept = np.clip(np.asarray(p, float), 1e-6, 1 - 1e-6)
    return np.log(kept / (1 - kept))


# --- shares with their intervals ---------------------------------------------------------------


def raw_share(
    p_female: ArrayLike, rng: Rng, replicates: int = 1000, threshold: float = 0.5
) -> Interval:
    """The share of images read as female (p above `threshold`), with a bootstrap interval."""
    check_probabilities(p_female)
    return bootstrap_interval(np.mean, [Sample(np.asarray(p_female) > threshold)], rng, replicates)


def corrected_share(
    p_female: ArrayLike,
    calibration: CalibrationSet,
    rng: Rng,
    replicates: int = 1000,
    strata: Labels = None,
) -> Interval:
    """The female share by Rogan and Gladen, with an interval that resamples images and subjects of
    the calibration set.

    p_female: [N] in [0, 1]; strata: [N] labels, images of each being corrected by its own errors
    and drawn within it. Raises `DataError` when the evaluator is no better than chance on the
    calibration set.
    """

    def share(p: np.ndarray, labelled_p: np.ndarray, truth: np.ndarray) -> float:
        (a_f,), (a_m,) = class_accuracies(labelled_p > calibration.threshold, truth)
        return float(unclipped((p > calibration.threshold).mean(), a_f, a_m))

    return _over_strata(share, p_female, calibration, rng, replicates, strata)


def em_share(
    p_female: ArrayLike,
    calibration: CalibrationSet,
    rng: Rng,
    replicates: int = 300,
    strata: Labels = None,
) -> Interval:
    """The female share by Saerens EM on probabilities recalibrated (Platt) on the calibration set.

    The interval resamples images and subjects, and recalibrates in every replicate. Arguments as in
    `corrected_share`.
    """

    def share(p_female: np.ndarray, labelled_p: np.ndarray, truth: np.ndarray) -> float:
        check_probabilities(labelled_p)
        prior = np.array([1 - truth.mean(), truth.mean()])
        if not prior.all():
            raise DataError("EM needs images of both sexes with a known sex")
        slope, intercept = platt(logit(labelled_p), truth)
        p = sigmoid(slope * logit(p_female) + intercept)
        return float(saerens_em(np.stack([1 - p, p], 1), prior)[1])

    return _over_strata(share, p_female, calibration, rng, replicates, strata)


def _over_strata(
    share: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
    p_female: ArrayLike,
    calibration: CalibrationSet,
    rng: Rng,
    replicates: int,
    strata: Labels,
) -> Interval:
    """The mean of `share(p, p of the calibration set, truth)` over strata, each weighted by its
    images, in [0, 1]; a bootstrap draw in which a share raises `DataError` is undefined.
    """
    check_probabilities(p_female)
    p = np.asarray(p_female)
    codes, labelled = calibration.matched(strata, len(p))
    size = np.bincount(codes)

    def mean(p: np.ndarray, codes: np.ndarray, *labelled: np.ndarray) -> float:
        labelled_p, truth, place = labelled
        rows = [(codes == k, place == k) for k in range(len(size))]
        parts = [share(p[mine], labelled_p[known], truth[known]) for mine, known in rows]
        return float(np.clip(size / size.sum() @ np.array(parts), 0, 1))

    def drawn(*arrays: np.ndarray) -> float:
        try:
            return mean(*arrays)
        except DataError:
            return np.nan

    samples = [Sample(p, codes, strata=codes), labelled]
    return interval(mean(p, codes, *labelled.arrays), bootstrap(drawn, samples, rng, replicates))


def ppi_share(
    labels: ArrayLike,
    readings_labelled: ArrayLike,
    readings_unlabelled: ArrayLike,
    level: float = 0.95,
) -> Interval:
    """Estimate a female share from a few labelled images and an evaluator's readings of many
    (prediction-powered inference).

    Unlike the corrections by a calibration set, it makes no assumption about the evaluator: the
    labelled images are a random sample of the same images, and measure its errors there. A poor
    evaluator costs only width: the weight of its readings is tuned to the smallest variance, and
    with a weight of 0 the labels alone decide.

    Parameters
    ----------
    labels
        [n], 1 = female, 0 = male, as an expert sees the labelled images. The interval is normal:
        give 30 or more, several of each sex.
    readings_labelled
        [n] probabilities or decisions in [0, 1] of the evaluator on the labelled images.
    readings_unlabelled
        [N] the same on the other images, which are many more.
    level
        Coverage of the interval, in (0, 1).

    Returns
    -------
    Interval
        The share with its interval, cut to [0, 1].

    Raises
    ------
    DataError
        On labels other than 0 and 1, fewer than two labels or not one for each reading, or readings
        outside [0, 1].

    Notes
    -----
    Angelopoulos et al., Science 2023; tuned as in PPI++ (Angelopoulos, Duchi and Zrnic 2023): the
    weight is cov(label, reading) / ((1 + n / N) var(reading)), in [0, 1].
    """
    from scipy.special import ndtri

    check_probabilities(readings_labelled)
    check_probabilities(readings_unlabelled)
    given = (labels, readings_labelled, readings_unlabelled)
    truth, read, rest = (np.asarray(part, float) for part in given)
    if len(truth) != len(read) or len(truth) < 2 or not np.isin(truth, (0, 1)).all():
        raise DataError(
            f"{len(truth)} labels for {len(read)} readings; give at least two, each 0 or 1, and "
            "one for each reading of a labelled image"
        )
    variance = (1 + len(read) / len(rest)) * np.var(np.concatenate([read, rest]), ddof=1)
    shared = np.cov(truth, read, ddof=0)[0, 1]
    weight = np.clip(shared / variance, 0, 1) if variance > 0 else 0.0
    residual = truth - weight * read
    estimate = weight * rest.mean() + residual.mean()
    error = np.sqrt(weight**2 * rest.var() / len(rest) + residual.var() / len(read))
    reach = ndtri((1 + level) / 2) * error
    return Interval(*(float(end) for end in np.clip(estimate + [0, -reach, reach], 0, 1)))


def ambiguous(p_female: ArrayLike, band: tuple[float, float] = BAND) -> np.ndarray:
    """[N] booleans: p strictly inside the band. Hard class targets make such images vanish,
    mean-probability targets make all images so.
    """
    check_probabilities(p_female)
    p = np.asarray(p_female, float)
    return (p > band[0]) & (p < band[1])


def ambiguous_share(p_female: ArrayLike, rng: Rng, replicates: int = 1000) -> Interval:
    """The share of images with p inside `BAND`; images are drawn again."""
    return raw_share(ambiguous(p_female), rng, replicates)


def ambiguity_difference(
    p_female: ArrayLike, calibration: CalibrationSet, rng: Rng, replicates: int = 1000
) -> Interval:
    """Ambiguous share of the images [N] less that of the calibration set, in percentage points;
    images, and subjects of the calibration set, are drawn again.
    """
    labelled = Sample(ambiguous(calibration.p_female), clusters=calibration.subjects)
    samples = [Sample(ambiguous(p_female)), labelled]
    return bootstrap_interval(
        lambda images, real: 100 * (images.mean() - real.mean()), samples, rng, replicates
    )


# --- tables ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One evaluator's readable images of one part of the readings, and its calibration set."""

    cells: dict  # the first cells of the part's row
    evaluator: Evaluator
    images: pd.DataFrame
    p: np.ndarray
    calibration: CalibrationSet
    strata: Labels


def _strata(table: pd.DataFrame, evaluator: Evaluator) -> np.ndarray | None:
    if not evaluator.stratum:
        return None
    return table[list(evaluator.stratum)].astype(str).agg(", ".join, axis=1).to_numpy(str)


def each_part(
    readings: pd.DataFrame, calibration: Tables, evaluators: Sequence[Evaluator], by: Sequence[str]
) -> Iterator[Part]:
    """Every part of the readings with every evaluator."""
    need(readings, *by, "prompt", name="readings")
    sets = calibration if isinstance(calibration, Mapping) else {"calibration": calibration}
    calibrations = {}
    for one in evaluators:
        need(readings, one.column, *one.stratum, name="readings")
        if one.calibration not in sets:
            what = f"evaluator {one.name!r} needs the calibration set {one.calibration!r}"
            raise DataError(f"{what}; given: {', '.join(sets)}")
        calibrations[one] = calibration_set(sets[one.calibration], one)
    for values, part in readings.groupby(list(by), sort=False):
        keys = dict(zip(by, values, strict=True))
        for one in evaluators:
            images = part[part[one.column].notna()]
            if images.empty:
                raise DataError(f"{one.name!r} could read no image of {keys}; look at the images")
            count = {"n": len(images), "unreadable": len(part) - len(images)}
            cells = keys | {"evaluator": one.name} | count
            p, strata = images[one.column].to_numpy(float), _strata(images, one)
            yield Part(cells, one, images, p, calibrations[one], strata)


def share_table(
    readings: pd.DataFrame,
    calibration: Tables,
    evaluators: Sequence[Evaluator],
    rng: Rng,
    by: Sequence[str] = BY,
    replicates: int = 500,
) -> pd.DataFrame:
    """Measure the female share of every part of the readings by every evaluator.

    Parameters
    ----------
    readings
        One row a generated image, see the module.
    calibration
        A table of images of known sex, or several, `{name: table}`, among which each evaluator
        names its own.
    evaluators
        Who reads; see `Evaluator`.
    rng
        Random number generator of the bootstrap draws.
    by
        Columns of the readings; each combination of their values is one part.
    replicates
        Bootstrap draws of each interval (of EM at most 200).

    Returns
    -------
    pd.DataFrame
        `*by, evaluator, n, unreadable`, and for `raw`, `corrected` (Rogan and Gladen) and `em`
        (Saerens) the share with `_low` and `_high`.

    Raises
    ------
    DataError
        On a missing column, an empty table, a part that an evaluator could not read at all, or an
        evaluator no better than chance on its calibration set.
    """

    rows = []
    for part in each_part(readings, calibration, evaluators, by):
        labelled, strata = part.calibration, part.strata
        raw = raw_share(part.p, rng, replicates, part.evaluator.threshold)
        corrected = corrected_share(part.p, labelled, rng, replicates, strata)
        em = em_share(part.p, labelled, rng, min(replicates, 200), strata)
        shares = raw.columns("raw") | corrected.columns("corrected") | em.columns("em")
        rows.append(part.cells | shares)
    return pd.DataFrame(rows)


def checked_targets(
    target: float | dict[str, float], names: Iterable[str], kind: str = "prompt"
) -> np.ndarray:
    """One target share a name. Raises `DataError` on a name without one or a share outside
    [0, 1].
    """
    target = target if isinstance(target, dict) else dict.fromkeys(names, target)
    missing = [str(name) for name in names if name not in target]
    if missing:
        raise DataError(f"no target share for {kind} {missing[0]!r}; give one, or one a {kind}")
    values = np.array([target[name] for name in names], float)
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError(f"target shares {values.tolist()} do not all lie in [0, 1]")
    return values


def group_table(
    readings: pd.DataFrame,
    calibration: Tables,
    evaluators: Sequence[Evaluator],
    targets: dict[str, float],
    rng: Rng,
    by: Sequence[str] = BY,
    replicates: int = 500,
) -> pd.DataFrame:
    """Corrected share of every prompt group against its own target.

    Columns: `*by, group, evaluator, n, unreadable, share, share_low, share_high, target, gap`.
    `gap` is signed, share less target. Raises `DataError` for a group without a target.
    """
    checked_targets(targets, sorted(set(readings["group"])), "prompt group")
    rows = []
    for part in each_part(readings, calibration, evaluators, (*by, "group")):
        share = corrected_share(part.p, part.calibration, rng, replicates, part.strata)
        rows.append(part.cells | share.columns("share"))
    table = pd.DataFrame(rows)
    target = table["group"].map(targets).astype(float)
    return table.assign(target=target, gap=table.share - target)


def ambiguity_table(
    readings: pd.DataFrame,
    calibration: Tables,
    evaluators: Sequence[Evaluator],
    rng: Rng,
    by: Sequence[str] = BY,
    replicates: int = 500,
) -> pd.DataFrame:
    """Share with p in (0.2, 0.8), `share`, and its difference to the calibration set, `points`,
    each with `_low` and `_high`.
    """
    rows = []
    for part in each_part(readings, calibration, evaluators, by):
        points = ambiguity_difference(part.p, part.calibration, rng, replicates=replicates)
        share = ambiguous_share(part.p, rng, replicates=replicates)
        rows.append(part.cells | share.columns("share") | points.columns("points"))
    return pd.DataFrame(rows)


def standardised_difference(images: np.ndarray | pd.Series, real: np.ndarray | pd.Series) -> float:
    """(mean of `images` - mean of `real`) / standard deviation of `real`.

    book/fairness.md, Eq. (eq-smd).
    """
    return float((np.mean(images) - np.mean(real)) / np.std(real, ddof=1))
