"""From the table of readings to tables of shares, gaps, ambiguity and anatomy. Pure functions on
DataFrames.

Readings, one row a generated image: `arm, seed, prompt, group`, one column of p_female in [0, 1]
for each judge (`guide, auditor, oracle`), and the oracle's `extent_mm`. Slices, one row a held-out
real slice: `subject, sex` ("F"/"M"), the same judges' columns and `extent_mm`. An image in which
the oracle finds no brain reads NaN: it is left out and counted in `unreadable`. `judges` is a list
of columns, or `{name to show: column}`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from fairlib.errors import DataError
from fairlib.measures.ambiguity import ambiguity_difference, ambiguous_share
from fairlib.measures.gaps import per_prompt_gap
from fairlib.measures.proportions import HeldOut, corrected_share, em_share, female_share
from fairlib.measures.resampling import Interval, Sample, bootstrap_interval

JUDGES = ("guide", "auditor", "oracle")
BY = ("arm", "seed")


def held_out(slices: pd.DataFrame, judge: str) -> HeldOut:
    """What `judge` said of the held-out slices it could read.

    Raises `DataError` on a missing column.
    """
    need(slices, ["subject", "sex", judge], "slices")
    good = slices[slices[judge].notna()]
    return HeldOut(
        good[judge].to_numpy(float), (good.sex == "F").to_numpy(int), good.subject.to_numpy(str)
    )


def share_table(
    readings, slices, rng: np.random.Generator, judges=JUDGES, by=BY, replicates: int = 500
) -> pd.DataFrame:
    """Female shares of every part of the readings by every judge.

    Columns: `*by, judge, n, unreadable`, and for raw, corrected (Rogan and Gladen) and em (Saerens)
    the share with `_low` and `_high`.
    """

    def row(part, judge, real):
        p = part[judge].to_numpy(float)
        return (
            _columns("raw", female_share(p, rng, replicates))
            | _columns("corrected", corrected_share(p, real, rng, replicates))
            | _columns("em", em_share(p, real, rng, min(replicates, 200)))
        )

    return _each(readings, slices, judges, by, row)


def gap_table(
    readings, slices, target, rng: np.random.Generator, judges=JUDGES, by=BY, replicates: int = 500
) -> pd.DataFrame:
    """Mean over prompts of |corrected share - target|.

    Columns: `*by, judge, n, unreadable, gap, gap_low, gap_high, floor, beyond_chance`.
    target: one share, or `{prompt: share}`. `floor` is what chance alone makes of a generator on
    target.
    """

    def row(part, judge, real):
        found = per_prompt_gap(
            part[judge].to_numpy(float), part.prompt.to_numpy(), target, rng, real, replicates
        )
        return _columns("gap", found.mean) | {
            "floor": found.floor,
            "beyond_chance": found.beyond_chance,
        }

    return _each(readings, slices, judges, by, row)


def prompt_table(
    readings,
    slices,
    target,
    rng: np.random.Generator,
    judges=JUDGES,
    by=("arm",),
    replicates: int = 500,
) -> pd.DataFrame:
    """Corrected share of every prompt: `*by, judge` and the columns of `Gap.prompts`."""
    tables = []
    for keys, name, column, part in _parts(readings, judges, by):
        found = per_prompt_gap(
            part[column].to_numpy(float),
            part.prompt.to_numpy(),
            target,
            rng,
            held_out(slices, column),
            replicates,
        )
        tables.append(found.prompts.assign(**keys, judge=name))
    return pd.concat(tables, ignore_index=True)[
        [*by, "judge", *tables[0].columns.drop([*by, "judge"])]
    ]


def group_table(
    readings,
    slices,
    targets: dict[str, float],
    rng: np.random.Generator,
    judges=JUDGES,
    by=BY,
    replicates: int = 500,
) -> pd.DataFrame:
    """Corrected share of every prompt group against its own target.

    Columns: `*by, group, judge, n, unreadable, share, share_low, share_high, target, gap`.
    `gap` is signed, share less target. Raises `DataError` for a group without a target.
    """
    missing = sorted(set(readings["group"]) - set(targets))
    if missing:
        raise DataError(
            f"no target share for prompt group {missing[0]!r}; known groups: {', '.join(targets)}"
        )

    def row(part, judge, real):
        return _columns(
            "share", corrected_share(part[judge].to_numpy(float), real, rng, replicates)
        )

    table = _each(readings, slices, judges, (*by, "group"), row)
    target = table["group"].map(targets).astype(float)
    return table.assign(target=target, gap=table.share - target)


def ambiguity_table(
    readings, slices, rng: np.random.Generator, judges=JUDGES, by=BY, replicates: int = 500
) -> pd.DataFrame:
    """Share with p in (0.2, 0.8), `share`, and its difference to the slices, `points`, each with
    `_low` and `_high`.
    """

    def row(part, judge, real):
        p = part[judge].to_numpy(float)
        points = ambiguity_difference(p, real.p_female, real.subjects, rng, replicates=replicates)
        return _columns("share", ambiguous_share(p, rng, replicates=replicates)) | _columns(
            "points", points
        )

    return _each(readings, slices, judges, by, row)


def within_sex_table(
    readings, slices, rng: np.random.Generator, judges=JUDGES, by=BY, replicates: int = 500
) -> pd.DataFrame:
    """Anatomy within each sex: `*by, judge, sex, against, n, n_real, difference, difference_low,
    difference_high`.

    Images a judge reads as F or M are set against real slices of that sex: (mean extent of the
    images - mean extent of the slices) / standard deviation of the slices. `against` says how the
    slices were told apart: "truth" (their sex; the headline) or "reading" (by the same judge: like
    with like, since its mistakes move both means alike).
    """
    rows = []
    for keys, name, column, part in _parts(readings, judges, by):
        part, real = (
            part[part.extent_mm.notna()],
            slices[slices[column].notna() & slices.extent_mm.notna()],
        )
        for sex in ("F", "M"):
            images = part[_read_as(part, column) == sex]
            for against, mask in (
                ("truth", real.sex == sex),
                ("reading", _read_as(real, column) == sex),
            ):
                found = _difference(images, real[mask], rng, replicates)
                rows.append(
                    {
                        **keys,
                        "judge": name,
                        "sex": sex,
                        "against": against,
                        "n": len(images),
                        "n_real": int(mask.sum()),
                    }
                    | _columns("difference", found)
                )
    return pd.DataFrame(rows)


def standardised_difference(images, slices) -> float:
    """(mean of `images` - mean of `slices`) / standard deviation of `slices`."""
    return float((np.mean(images) - np.mean(slices)) / np.std(slices, ddof=1))


def _difference(images, slices, rng, replicates) -> Interval:
    """NaN where fewer than ten images or slices carry that reading: such a mean says nothing."""
    if min(len(images), len(slices)) < 10:
        return Interval(np.nan, np.nan, np.nan)
    samples = [
        Sample(images.extent_mm),
        Sample(slices.extent_mm, clusters=slices.subject.to_numpy(str)),
    ]
    return bootstrap_interval(standardised_difference, samples, rng, replicates)


def _read_as(table: pd.DataFrame, column: str) -> np.ndarray:
    return np.where(table[column] > 0.5, "F", "M")


def need(table: pd.DataFrame, columns: list[str], name: str) -> None:
    """Raise `DataError` unless `table` has rows and all `columns`."""
    missing = [column for column in columns if column not in table]
    if missing or len(table) == 0:
        raise DataError(
            f"the table of {name} ({len(table)} rows) lacks column {missing[0]!r}; it has "
            f"{', '.join(table)}"
            if missing
            else f"the table of {name} is empty; generate and read images first"
        )


def _named(judges) -> dict[str, str]:
    return dict(judges) if isinstance(judges, dict) else {judge: judge for judge in judges}


def _parts(readings: pd.DataFrame, judges, by):
    """(keys, judge's name, its column, readable rows) of every part of the readings and every
    judge.
    """
    named = _named(judges)
    need(readings, [*by, "prompt", *named.values()], "readings")
    for values, part in readings.groupby(list(by), sort=False):
        for name, column in named.items():
            good = part[part[column].notna()]
            if good.empty:
                raise DataError(
                    f"judge {name!r} could read no image of {dict(zip(by, values, strict=True))}; "
                    "look at the images"
                )
            yield dict(zip(by, values, strict=True)), name, column, good


def _each(readings, slices, judges, by, row) -> pd.DataFrame:
    """One row of `row(part, judge, held out)` for every part of the readings and every judge."""
    need(readings, list(by), "readings")
    real = {column: held_out(slices, column) for column in _named(judges).values()}
    whole = readings.groupby(list(by), sort=False).size()
    rows = []
    for keys, name, column, part in _parts(readings, judges, by):
        total = int(whole.loc[tuple(keys.values()) if len(by) > 1 else keys[by[0]]])
        rows.append(
            {**keys, "judge": name, "n": len(part), "unreadable": total - len(part)}
            | row(part, column, real[column])
        )
    return pd.DataFrame(rows)


def _columns(name: str, found: Interval) -> dict[str, float]:
    return {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
