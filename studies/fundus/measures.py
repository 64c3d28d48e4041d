"""All figures of one arm and seed, as observed and in every bootstrap draw of the patients, and
what arms differ in.

    cdr error               mean absolute difference of the measured cup-to-disc ratio from the one
                            that the words of the prompt stand for (synthetic fundi alone)
    no disc                 share of images in which no disc with a cup was found (they have no
                            error, and are counted here; fundus images alone)
    mmd                     distance to real unseen images of the same race (or what is the first
                            attribute of the cohort); of all: the mean over races
    auc, generated to real  of a classifier trained on the images, tried on real unseen patients
    auc, real to generated  of one trained on real patients, tried on the images
    attribute recovered     share of images in which the attribute classifier reads what was
                            requested
    ... of real             the same divided by the share among the requested patients' own images

Each for all, for every group of every attribute, and as `gap` (highest less lowest) and `worst` of
an attribute; AUC also `equity-scaled` (see `measures.equity`). The gap of noisy values is above
zero without any difference, in all arms alike. The draws are the same for all arms and seeds, so a
difference of draws is a paired draw of the difference.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

from fairlib.errors import DataError
from fairlib.io import write_bytes
from fairlib.measures.distances import mmd_draws
from fairlib.measures.equity import class_counts
from fairlib.measures.intervals import Sample, pair_table, weighted_auc
from fairlib.rng import numpy_rng
from studies.engine import StudyStream
from studies.engine.stage import Artifact, Progress, stage
from studies.fundus.data import BASE, FUNDUS, REAL, Values, Vocabulary
from studies.fundus.evaluators import Readings, load_rows, stacked

ALL, GAP, WORST, SCALED = "all", "gap", "worst", "equity-scaled"
NO_TASK = "-"
CDR, NO_DISC, MMD = "cdr error", "no disc", "mmd"
TO_REAL, TO_GENERATED = "auc, generated to real", "auc, real to generated"
RECOVERED, OF_REAL = "attribute recovered", "attribute recovered, of real"
LOWER_IS_BETTER = (CDR, NO_DISC, MMD)
INDEX = ["measure", "task", "by", "group"]
LEAST = 8  # images of a group; below it, a distance says nothing
PAIRS = (
    ("released", "random"),
    ("repaired", "random-repaired"),
    ("repaired", "released"),
    ("plain", BASE),
)
"""Compared besides every arm with plain, and long training on all patients with plain: what the
optimiser does, what the repair does, and what fine-tuning does.
"""
ENDS = ["subject_low", "subject_high", "seed_low", "seed_high"]
"""subject_low, subject_high: percentiles over bootstrap draws of the patients, the seeds as they
are: would these trainings do the same for other patients? seed_low, seed_high: Student's t over the
seeds' values or paired differences, the patients as they are: would other trainings, batches and
starting noises do the same? Missing with one seed.
"""
Row = tuple[tuple[str, str, str, str], np.ndarray]  # of `INDEX`, and its draws [1 + R]


@dataclass(frozen=True, eq=False)
class Subjects:
    """requested, reference: tables of patients (attributes, and of the requested `requested_cdr`,
    all missing where there are no rules); drawn_requested, drawn_reference: [1 + R, N] draws of
    them, see `times`; n_min: see `data.FundusSettings`; vocabulary: what is known of them.
    """

    requested: pd.DataFrame
    reference: pd.DataFrame
    drawn_requested: np.ndarray
    drawn_reference: np.ndarray
    n_min: int = 10
    vocabulary: Vocabulary = FUNDUS

    @classmethod
    def drawn(cls, table: pd.DataFrame, replicates: int, n_min: int, words: Vocabulary) -> Subjects:
        """The patients of `subjects.csv.gz` with their bootstrap draws."""
        parts = [table[table["part"] == part].reset_index(drop=True) for part in PART_NAMES]
        draws = [times(part, replicates, seed, words.strata) for seed, part in enumerate(parts)]
        return cls(*parts, *draws, n_min, words)

    def answered(self) -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
        """Patients and draws that each AUC is taken over."""
        return {
            TO_REAL: (self.reference, self.drawn_reference),
            TO_GENERATED: (self.requested, self.drawn_requested),
        }


PART_NAMES = ("requested", "reference")  # in `subjects.csv.gz`


@dataclass(frozen=True, eq=False)
class Figures:
    """index: one row a figure, columns `INDEX`; draws [1 + R, K]: as observed, then one row a draw
    of patients.
    """

    index: pd.DataFrame
    draws: np.ndarray


def times(table: pd.DataFrame, replicates: int, seed: int, strata=FUNDUS.strata) -> np.ndarray:
    """How often each patient is in each bootstrap draw, [1 + replicates, N]; the first row is
    every patient once.

    Patients are drawn within `strata`, by default race, sex, ethnicity and glaucoma. The same for
    all arms and seeds, so draws of two are paired.
    """
    within = table[list(strata)].astype(str).agg(", ".join, axis=1)
    sample = Sample(np.arange(len(table)), strata=within)
    rng = numpy_rng(StudyStream.PATIENTS, seed)
    drawn = [np.bincount(sample.rows(rng), minlength=len(table)) for _ in range(replicates)]
    return np.stack([np.ones(len(table), int), *drawn]).astype(np.float32)


# ---- distances


@stage(load=load_rows, verify=False)
def race_distances(
    out: Path,
    progress: Progress,
    images: Artifact[Readings],
    real: Artifact[Readings],
    requested: pd.DataFrame,
    reference: pd.DataFrame,
    replicates: int,
    vocabulary: Vocabulary,
) -> None:
    """Measure the MMD of each race, or group of the first attribute (columns), from real unseen
    images of that group at equal numbers: as observed, then one row a bootstrap draw of both
    patients.

    requested, reference: the strata of the patients of `images` and `real`. Features are the
    attribute classifier's, in standard deviations of the reference patients'.
    """
    features, reference_features = (one.load().features for one in (images, real))
    mean, spread = reference_features.mean(0), reference_features.std(0).clip(1e-3)
    strata, (by, groups) = vocabulary.strata, vocabulary.first
    drawn = times(requested, replicates, 0, strata), times(reference, replicates, 1, strata)
    distances = {}
    for group in groups:
        a, b = (np.flatnonzero((part[by] == group).to_numpy()) for part in (requested, reference))
        a, b = a[: len(b)], b[: len(a)]
        x, y = (features[a] - mean) / spread, (reference_features[b] - mean) / spread
        distances[group] = mmd_draws(x, y, drawn[0][:, a], drawn[1][:, b], n_min=LEAST)
    table = pd.DataFrame(distances).round(6)
    write_bytes(out / "rows.csv", table.to_csv(index=False).encode())


# ---- figures


def load_figures(folder: Path) -> Figures:
    """Read what `figures` wrote."""
    index = pd.read_csv(folder / "index.csv", keep_default_na=False)
    return Figures(index, np.load(folder / "draws.npy", allow_pickle=False))


@stage(load=load_figures, verify=False)
def figures(
    out: Path,
    progress: Progress,
    subjects: pd.DataFrame,
    tables: dict[str, pd.DataFrame | None],
    replicates: int,
    n_min: int,
    vocabulary: Vocabulary,
) -> None:
    """Take the figures of one arm and seed from its tables; see `figures_of`."""
    table = figures_of(Subjects.drawn(subjects, replicates, n_min, vocabulary), **tables)
    write_bytes(out / "index.csv", table.index.to_csv(index=False).encode())
    buffer = io.BytesIO()  # a draw that lacks a class is NaN, which safetensors here may not hold
    np.save(buffer, table.draws, allow_pickle=False)
    write_bytes(out / "draws.npy", buffer.getvalue())


def figures_of(
    subjects: Subjects,
    readings: pd.DataFrame,
    answers: pd.DataFrame,
    distances: pd.DataFrame,
    real: pd.DataFrame | None = None,
) -> Figures:
    """Take the figures of one arm and seed.

    readings: one row a requested patient, with what was measured in the image
    (`evaluators.Readings`) and what a classifier trained on real patients answers (columns s_...).
    answers: the same of a classifier trained on these images, one row a reference patient.
    distances: see `race_distances`. real: readings of the requested patients' own images.
    """
    rows = _cups(subjects, readings) if subjects.vocabulary.has_disc else []
    rows += _distances(distances, subjects.vocabulary)
    for name, scores in ((TO_REAL, answers), (TO_GENERATED, readings)):
        for task in subjects.vocabulary.learnt:
            rows += _areas(name, task, scores, subjects)
    rows += _recovered(subjects, readings, real)
    index = pd.DataFrame([key for key, _ in rows], columns=INDEX)
    return Figures(index, np.stack([values for _, values in rows], axis=1))


def excluded(subjects: Subjects) -> pd.DataFrame:
    """Groups that are too small for an AUC: measure, task, by, group, the number of patients of
    each value, and the reason.
    """
    rows = [
        (name, task, by, group, " ".join(map(str, row)), f"fewer than {subjects.n_min} of a class")
        for name, (table, _) in subjects.answered().items()
        for task, values in subjects.vocabulary.only(subjects.vocabulary.learnt).items()
        for by in subjects.vocabulary.compared
        for group, row in _counts(table, task, values, by).iterrows()
        if row.min() < subjects.n_min
    ]
    return pd.DataFrame(rows, columns=[*INDEX, "subjects", "reason"])


def _label(table: pd.DataFrame, task: str, values: Values) -> np.ndarray:
    return pd.Index(values).get_indexer(table[task].astype(object))


def _counts(table: pd.DataFrame, task: str, values: Values, by: str) -> pd.DataFrame:
    names, subjects = table[by].astype(str), np.arange(len(table))
    return class_counts(_label(table, task, values), names, subjects, len(values))


def _cups(subjects: Subjects, readings: pd.DataFrame) -> list[Row]:
    has_disc = readings["has_disc"].to_numpy(bool)
    rows = _means(NO_DISC, NO_TASK, subjects, (~has_disc).astype(float))
    requested = subjects.requested["requested_cdr"].to_numpy(float)
    if np.isnan(requested).any():  # a real cohort has no rules that say what words mean in numbers
        return rows
    error = np.abs(np.where(has_disc, readings["cdr"].to_numpy(float), 0) - requested)
    return [*_means(CDR, NO_TASK, subjects, error, has_disc), *rows]


def _recovered(subjects: Subjects, readings: pd.DataFrame, real: pd.DataFrame | None) -> list[Row]:
    rows, stated = [], dict(subjects.vocabulary.stated)
    for name in (*subjects.vocabulary.compared, *subjects.vocabulary.learnt):
        requested = subjects.requested[name].astype(str).to_numpy()
        right = partial(_right, name, stated[name], requested)
        own_rows = _means(RECOVERED, name, subjects, right(readings))
        rows += own_rows
        if real is not None:
            floor = dict(_means(RECOVERED, name, subjects, right(real)))
            kept = {k: v for k, v in own_rows if k[3] not in (GAP, WORST) and floor[k].min() > 0}
            rows += _with_ends([((OF_REAL, *k[1:]), v / floor[k]) for k, v in kept.items()])
    return rows


def _right(name: str, values: Values, requested: np.ndarray, readings: pd.DataFrame) -> np.ndarray:
    read = np.array(values)[stacked(readings, "p", name, values).argmax(1)]
    return (read == requested).astype(float)


def _distances(table: pd.DataFrame, vocabulary: Vocabulary) -> list[Row]:
    by, groups = vocabulary.first
    rows = [((MMD, NO_TASK, by, group), table[group].to_numpy(float)) for group in groups]
    mean = np.mean([values for _, values in rows], axis=0)
    return [((MMD, NO_TASK, ALL, ALL), mean), *_with_ends(rows)]


def _means(
    measure: str, task: str, subjects: Subjects, values: np.ndarray, kept: np.ndarray | None = None
) -> list[Row]:
    """Means over the rows that are `kept`, of all and of each group that has one."""
    table, times = subjects.requested, subjects.drawn_requested
    kept = np.ones(len(values), bool) if kept is None else kept

    def mean(mask: np.ndarray) -> np.ndarray:
        total = times[:, mask].sum(1, dtype=float)
        return times[:, mask].astype(float) @ values[mask] / np.where(total > 0, total, np.nan)

    masks = {(ALL, ALL): kept}
    for by, names in subjects.vocabulary.attributes.items():
        masks |= {(by, name): kept & (table[by] == name).to_numpy() for name in names}
    rows = [((measure, task, *key), mean(mask)) for key, mask in masks.items() if mask.any()]
    return _with_ends(rows)


def _areas(measure: str, task: str, given: pd.DataFrame, subjects: Subjects) -> list[Row]:
    """AUC of all and of each group that is large enough; of more than two classes the mean of each
    against the rest.
    """
    table, drawn = subjects.answered()[measure]
    values = dict(subjects.vocabulary.stated)[task]
    label, score = _label(table, task, values), stacked(given, "s", task, values)
    codes = [1] if score.shape[1] == 2 else range(score.shape[1])

    def area(mask: np.ndarray) -> np.ndarray:
        parts = []
        for code in codes:
            ill, rest = (np.flatnonzero(mask & side) for side in (label == code, label != code))
            table = pair_table(score[ill, code], score[rest, code])
            # a draw may lack a class; that draw is missing then
            with np.errstate(invalid="ignore", divide="ignore"):
                parts.append(weighted_auc(table, drawn[:, ill], drawn[:, rest]))
        return np.mean(parts, axis=0)

    whole = area(np.ones(len(label), bool))
    rows = []
    for by in subjects.vocabulary.compared:
        counts = _counts(table, task, values, by)
        large = counts.index[counts.min(axis=1) >= subjects.n_min]
        groups = [
            ((measure, task, by, str(name)), area((table[by] == name).to_numpy())) for name in large
        ]
        rows += groups
        if len(groups) > 1:
            apart = np.abs(np.stack([values for _, values in groups]) - whole).sum(0)
            rows.append(((measure, task, by, SCALED), whole / (1 + apart)))
    return [((measure, task, ALL, ALL), whole), *_with_ends(rows)]


def _with_ends(rows: list[Row]) -> list[Row]:
    """The rows and, for each attribute with two groups or more, its gap and its worst group."""
    extended = list(rows)
    for by in dict.fromkeys(key[2] for key, _ in rows if key[2] != ALL):
        groups = [(key, values) for key, values in rows if key[2] == by and key[3] != SCALED]
        if len(groups) > 1:
            (measure, task, *_), values = groups[0][0], np.stack([values for _, values in groups])
            worst = values.max(0) if measure in LOWER_IS_BETTER else values.min(0)
            extended.append(((measure, task, by, GAP), values.max(0) - values.min(0)))
            extended.append(((measure, task, by, WORST), worst))
    return extended


# ---- arms over seeds


ByRun = Mapping[tuple[str, int], Figures]
Draws = dict[tuple[str, ...], np.ndarray]  # of `INDEX`; [S, 1 + R]


def values_table(by_run: ByRun) -> pd.DataFrame:
    """Means over seeds of every figure and arm: columns `INDEX`, arm, value, `ENDS`, seeds."""
    parts = []
    for arm in dict.fromkeys(arm for arm, _ in by_run):
        parts.append(_summary(_draws(by_run, arm, _seeds(by_run, arm)), "value").assign(arm=arm))
    return _joined(parts, "arm", "value")


def differences_table(by_run: ByRun, reference: str = "plain") -> pd.DataFrame:
    """Each arm less `reference`, and `PAIRS`, over the seeds that both have: columns `INDEX`, arm,
    reference, difference, `ENDS`, seeds. Empty where no pair has a seed in common.
    """
    arms = list(dict.fromkeys(arm for arm, _ in by_run))
    chosen = [(arm, reference) for arm in arms if arm not in (REAL, BASE, reference)]
    parts = []
    for arm, other in (*chosen, *PAIRS):
        seeds = [seed for seed in _seeds(by_run, arm) if (other, seed) in by_run]
        if seeds:
            # an arm without any disc found in a group has no error there
            first, second = (_draws(by_run, name, seeds) for name in (arm, other))
            both = {key: first[key] - second[key] for key in first if key in second}
            parts.append(_summary(both, "difference").assign(arm=arm, reference=other))
    return _joined(parts, "arm", "reference", "difference")


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends [K] of the 95 % interval of the mean of values [S, K] over S seeds; NaN for one seed."""
    mean, count = values.mean(0), len(values)
    if count < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    reach = t.ppf(0.975, count - 1) * values.std(0, ddof=1) / np.sqrt(count)
    return mean - reach, mean + reach


def _draws(by_run: ByRun, arm: str, seeds: Sequence[int]) -> Draws:
    """The figures that an arm has in all `seeds`."""
    each_seed = []
    for one in (by_run[arm, seed] for seed in seeds):
        keys = one.index[INDEX].itertuples(index=False, name=None)
        each_seed.append(dict(zip(keys, one.draws.T, strict=True)))
    shared = [key for key in each_seed[0] if all(key in other for other in each_seed)]
    if not shared:
        what = f"arm {arm!r} has no figure in common over seeds {list(seeds)}"
        raise DataError(f"{what}; run it again")
    return {key: np.stack([one[key] for one in each_seed]) for key in shared}


def _summary(by_figure: Draws, name: str) -> pd.DataFrame:
    index = pd.DataFrame(list(by_figure), columns=INDEX)
    draws = np.stack(list(by_figure.values()), axis=2)
    mean = draws.mean(0)
    seed_low, seed_high = t_interval(draws[:, 0])
    table = index.assign(**{name: mean[0], "subject_low": np.nan, "subject_high": np.nan})
    usable = np.isnan(mean[1:]).mean(0) <= 0.05 if len(mean) > 1 else np.zeros(len(index), bool)
    if usable.any():
        ends = np.nanquantile(mean[1:][:, usable], [0.025, 0.975], axis=0)
        table.loc[usable, "subject_low"], table.loc[usable, "subject_high"] = ends
    return table.assign(seed_low=seed_low, seed_high=seed_high, seeds=len(draws))


def _joined(parts: list[pd.DataFrame], *names: str) -> pd.DataFrame:
    columns = [*INDEX, *names, *ENDS, "seeds"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _seeds(by_run: ByRun, arm: str) -> list[int]:
    return sorted(seed for name, seed in by_run if name == arm)
