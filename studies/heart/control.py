"""Does the control hold? Not the loss: what instruments find in the generated images, held against
what was asked.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from fairlib.errors import DataError
from fairlib.io import read_tensors, write_bytes, write_tensors
from fairlib.measures.dice import Reference, dice, dice_table
from fairlib.measures.intervals import Interval, Sample, bootstrap, interval
from studies.engine.stage import run_stage
from studies.heart.cohorts import Hearts, age_class, hearts, part_digest
from studies.heart.generation import FLIPS, made, made_digest, made_flipped
from studies.heart.geometry import UNITS, attribute_truth
from studies.heart.judges import fit_heart_judges, judges_digest
from studies.heart.phantom import expected_geometry
from studies.heart.settings import WAYS, HeartStudy

SUBGROUPS = ("sex", "age", "bmi_class", "diagnosis", "sex, diagnosis", "bmi_class, diagnosis")
# kg/m2 that stand for a class asked
BMI_STEP = {"underweight": 17.0, "normal": 22.0, "overweight": 27.5, "obese": 33.0}


def readings(study: HeartStudy, source: str) -> tuple[pd.DataFrame, Tensor]:
    """What every instrument finds in the hearts of `source`: a way of asking, "flipped-<word>", or
    a part of real hearts.

    See `HeartJudges.read` for the columns; the masks found are uint8 [N, 2, H, W].
    """
    given = _hearts_of(study, source)
    kind = {"source": source, "count": len(given)}

    def build(out: Path, progress) -> None:
        progress.say(f"reading {len(given)} hearts, {source}")
        table, found = fit_heart_judges(study).read(given)
        write_tensors(out / "found.safetensors", {"masks": found})
        write_bytes(out / "readings.csv", table.to_csv(index=False).encode())

    folder = run_stage(
        None, "heart-readings", kind, [*judges_digest(study), *_key(study, source)], build
    )
    table = pd.read_csv(folder / "readings.csv", keep_default_na=False, na_values=[""])
    return table, read_tensors(folder / "found.safetensors")["masks"]


def _hearts_of(study: HeartStudy, source: str) -> Hearts:
    if source in WAYS:
        whole = made(study, source)
        return whole.take(range(min(study.images, len(whole))))
    if source.startswith("flipped-"):
        return made_flipped(study, source.removeprefix("flipped-"))
    return hearts(study, source)


def _key(study: HeartStudy, source: str) -> list[str]:
    generated = source in WAYS or source.startswith("flipped-")
    return list(made_digest(study, source)) if generated else [part_digest(study, source)]


def subgroups(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Labels of every subgroup attribute in `SUBGROUPS`: [N] each."""
    people = table.assign(age=age_class(table))
    return {
        name: people[name.split(", ")].astype(str).agg(", ".join, axis=1).to_numpy(object)
        for name in SUBGROUPS
    }


def dice_of(
    study: HeartStudy, way: str, rng: np.random.Generator, replicates: int = 500
) -> pd.DataFrame:
    """Dice of the mask asked and the mask found in the image, for every subgroup, beside the
    re-segmenter's own on unseen real hearts of that subgroup (columns of
    `measures.dice.dice_table`).
    """
    table, found = readings(study, way)
    real, real_found = readings(study, "hold")
    reference = Reference(
        dice(hearts(study, "hold").masks, real_found),
        real["subject"].to_numpy(str),
        subgroups(real),
    )
    asked = _hearts_of(study, way).masks
    return dice_table(
        asked, found, subgroups(table), table["subject"].to_numpy(str), rng, reference, replicates
    )


def geometry_of(
    study: HeartStudy, way: str, rng: np.random.Generator, replicates: int = 500
) -> pd.DataFrame:
    """Measured geometry less the law's for the person asked, per subgroup, beside the same for real
    hearts.

    Columns of `measures.cardiac.attribute_truth`. Raises `DataError` for a real cohort, which has
    no law.
    """
    if study.cohort != "phantom":
        raise DataError(
            "only synthetic people have a known law of geometry; measure real ones against their "
            "own masks"
        )
    table, real = readings(study, way)[0], readings(study, "hold")[0]
    pairs = [(_measured(rows), rows) for rows in (table, real)]
    return attribute_truth(*pairs[0], expected_geometry, rng, real=pairs[1], replicates=replicates)


def _measured(table: pd.DataFrame) -> pd.DataFrame:
    return table[[f"measured_{name}" for name in UNITS]].rename(
        columns=lambda name: name.removeprefix("measured_")
    )


def recovered(
    generated: pd.DataFrame, real: pd.DataFrame, rng: np.random.Generator, replicates: int = 500
) -> pd.DataFrame:
    """Is the person asked in the image? One row an attribute: how well the instruments read it in
    generated hearts, how well in real ones, and the ratio, with 95 % intervals by subject.

    diagnosis, sex: mean of the two classes' accuracies. age, bmi: how much the reading moves
    (years, kg/m2) for each unit that is asked, where what is asked is the decade or class of the
    prompt; a slope does not depend on the mix of people.
    Columns: attribute, statistic, generated, generated_low, generated_high, real, ratio, ratio_low,
    ratio_high, n.
    """
    rows = []
    for attribute, statistic in (
        ("diagnosis", "accuracy"),
        ("sex", "accuracy"),
        ("age", "slope"),
        ("bmi", "slope"),
    ):
        measure = _accuracy if statistic == "accuracy" else _slope
        samples = [
            Sample(*_pair(table, attribute), clusters=table["subject"].to_numpy(str))
            for table in (generated, real)
        ]
        values = [float(measure(*sample.arrays)) for sample in samples]
        draws = [bootstrap(measure, [sample], rng, replicates) for sample in samples]
        own = interval(values[0], draws[0], strict=False)
        ratio = interval(float(_share(*values)), _share(*draws), strict=False)
        rows.append(
            {
                "attribute": attribute,
                "statistic": statistic,
                "generated": values[0],
                "generated_low": own.low,
                "generated_high": own.high,
                "real": values[1],
                "ratio": ratio.estimate,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                "n": len(generated),
            }
        )
    return pd.DataFrame(rows)


def _share(part, whole):
    """part / whole, NaN where the whole is zero: an instrument that says the same of everybody
    finds nothing.
    """
    whole = np.asarray(whole, float)
    return np.where(whole != 0, part / np.where(whole != 0, whole, 1), np.nan)


def _pair(table: pd.DataFrame, attribute: str) -> tuple[np.ndarray, np.ndarray]:
    """What was asked and what was read, both numbers."""
    asked = {
        "diagnosis": lambda: (table["diagnosis"] == "heart failure").to_numpy(float),
        "sex": lambda: (table["sex"] == "F").to_numpy(float),
        "age": lambda: table["decade"].str[:-1].astype(float).to_numpy() + 5,
        "bmi": lambda: table["bmi_class"].map(BMI_STEP).to_numpy(float),
    }[attribute]()
    read = {
        "diagnosis": table["read_ill"],
        "sex": table["read_female"] > 0,
        "age": table["read_age"],
        "bmi": table["read_bmi"],
    }
    return asked, read[attribute].to_numpy(float)


def _accuracy(asked: np.ndarray, read: np.ndarray) -> float:
    """The mean of both classes' accuracies; NaN when one is not there."""
    if asked.min() == asked.max():
        return np.nan
    return float((read[asked == 1].mean() + 1 - read[asked == 0].mean()) / 2)


def _slope(asked: np.ndarray, read: np.ndarray) -> float:
    spread = asked - asked.mean()
    return (
        float((spread * (read - read.mean())).sum() / (spread**2).sum())
        if (spread**2).sum()
        else np.nan
    )


def prompt_or_mask(
    study: HeartStudy, rng: np.random.Generator, replicates: int = 500
) -> pd.DataFrame:
    """Which of the two rules where they contradict each other? One row a word of the prompt that
    was turned, same mask and noise.

    `moved`: how far the reading went toward the new word, as a share of how far it goes between
    real hearts of the two kinds: 0 where the mask alone decides, 1 where the prompt does. Columns:
    word, before, after (mean reading in the direction of the new word), moved, low, high, n. For
    diagnosis and sex readings are shares, for age years, for bmi kg/m2.
    """
    original, real = readings(study, "unseen")[0], readings(study, "hold")[0]
    rows = []
    for word in FLIPS:
        turned = readings(study, f"flipped-{word}")[0]
        before = original.iloc[: len(turned)]
        (was, _), (wanted, after) = _pair(before, word), _pair(turned, word)
        toward = np.sign(wanted - was)
        gone = (after - _pair(before, word)[1]) * toward
        full = abs(_real_slope(real, word)) * np.abs(wanted - was)
        sample = Sample(gone, full, clusters=before["subject"].to_numpy(str))
        draws = bootstrap(lambda a, b: _share(a.mean(), b.mean()), [sample], rng, replicates)
        found = interval(float(_share(gone.mean(), full.mean())), draws, strict=False)
        rows.append(
            {
                "word": word,
                "before": float((_pair(before, word)[1] * toward).mean()),
                "after": float((after * toward).mean()),
                "moved": found.estimate,
                "low": found.low,
                "high": found.high,
                "n": len(turned),
            }
        )
    return pd.DataFrame(rows)


def _real_slope(real: pd.DataFrame, word: str) -> float:
    """How far the instrument's reading goes, between real hearts, for one unit of what would be
    asked.
    """
    asked, read = _pair(real, word)
    return _slope(asked, read)


def lowest_dice(table: pd.DataFrame, subjects: int = 5) -> tuple[str, pd.Series, pd.Series]:
    """The subgroup with the lowest Dice (its name and row), and the row with the greatest loss
    against real hearts.

    Subgroups of fewer than `subjects` people are passed over: they have no interval.
    """
    steady = table[(table["subjects"] >= subjects) & table["difference"].notna()]
    if steady.empty:
        raise DataError(f"no subgroup has {subjects} subjects; generate more hearts")
    row = steady.loc[steady["mean"].idxmin()]
    return f"{row['attribute']}: {row['group']}", row, steady.loc[steady["difference"].idxmin()]


def as_interval(row, name: str, low: str, high: str) -> Interval:
    """Three columns of a row as an interval."""
    return Interval(float(row[name]), float(row[low]), float(row[high]))
