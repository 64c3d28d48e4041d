"""The geometry of a heart, read from short-axis masks: cavity areas, area ejection fraction, wall
thickness.

Masks are [N, 2, H, W], frame 0 = end diastole (ED), 1 = end systole (ES); labels 0 background, 1 LV
cavity, 2 myocardium (MYO), 3 RV cavity. Nothing here knows a generator or a classifier: it says
whether what was requested is in the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import pandas as pd
from scipy import ndimage

from fairlib.errors import DataError
from fairlib.measures.dice import (
    SUBJECTS_MIN,
    check_masks,
    each_group,
    pooled_mean,
)
from fairlib.measures.intervals import Sample, bootstrap, interval

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
RULE_INPUTS = ("sex", "age", "bmi", "height", "diagnosis")


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
        raise DataError(
            f"pixel size {pixel} mm; it must be positive (read it from the header of the scan)"
        )
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
    known = cavity.any((-2, -1)) & (ring > 0)
    around = perimeter(cavity) + perimeter(epicardium)
    return np.where(known, 2 * ring / np.where(known, around, 1), np.nan) * pixel


def perimeter(mask: np.ndarray) -> np.ndarray:
    """Perimeter, in pixels, of bool [..., H, W], by the Cauchy-Crofton formula in four directions.

    Steps from inside to outside are counted along rows, columns and both diagonals (whose lines lie
    1 / sqrt(2) apart): pi / 8 * (rows + columns + diagonals / sqrt(2)). Unbiased over position for
    a circle; for other convex outlines within about 5 %. Holes count as outline.
    """
    mask = np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(1, 1), (1, 1)])
    straight = _steps(mask[..., 1:], mask[..., :-1]) + _steps(mask[..., 1:, :], mask[..., :-1, :])
    diagonal = _steps(mask[..., 1:, 1:], mask[..., :-1, :-1]) + _steps(
        mask[..., 1:, :-1], mask[..., :-1, 1:]
    )
    return np.pi / 8 * (straight + diagonal / np.sqrt(2))


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


def attribute_truth(
    measured: pd.DataFrame,
    requested: pd.DataFrame,
    rules: Callable[..., dict[str, float]],
    rng: np.random.Generator,
    groups: tuple[str, ...] = ("sex", "diagnosis"),
    real: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    inputs: tuple[str, ...] = RULE_INPUTS,
    replicates: int = 1000,
) -> pd.DataFrame:
    """Measured minus expected geometry, per subgroup, with 95 % intervals by subject.

    measured: `geometry` of the images; requested: their attributes in the same order, columns
    `inputs`, subject and `groups`; rules(**inputs) -> expected values under names of `UNITS`
    (others are left out).
    real: (measured, attributes) of real hearts read by the same segmenter. What the segmenter and
    the pixels do to a measure they do to both, so `beyond_real` (difference of generated minus that
    of real) is the generator's own error.
    Columns: attribute, group, measure, unit, images, subjects, undefined (left out: no cavity, or
    an input is missing), expected, measured, difference, low, high, and with `real` also
    real_difference, beyond_real, beyond_low, beyond_high. Raises `DataError` on tables that do not
    match or lack a column.
    """
    errors = _errors(measured, requested, rules, groups, inputs)
    if real:
        real_errors = _errors(*real, rules, groups, inputs)
        real_groups = {(name, group): rows for name, group, rows in _groups(real[1], groups)}
    names, tables = [name for name in errors if name in UNITS], []
    for attribute, group, chosen in _groups(requested, groups):
        table, draws = _means(errors, names, chosen, rng, replicates)
        if real:
            same = real_groups.get((attribute, group), np.zeros(len(real_errors), bool))
            others, other_draws = _means(real_errors, names, same, rng, replicates)
            beyond = table["difference"] - others["difference"]
            table["real_difference"], table["beyond_real"] = others["difference"], beyond
            table[["beyond_low", "beyond_high"]] = _ends(beyond, draws - other_draws)
        table.insert(0, "attribute", attribute)
        table.insert(1, "group", group)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _groups(
    table: pd.DataFrame, groups: tuple[str, ...]
) -> Iterator[tuple[str, object, np.ndarray]]:
    return each_group({name: table[name] for name in groups}, len(table))


def _errors(
    measured: pd.DataFrame,
    requested: pd.DataFrame,
    rules: Callable[..., dict[str, float]],
    groups: tuple[str, ...],
    inputs: tuple[str, ...],
) -> pd.DataFrame:
    """Columns: measured - expected by the rules' names, `expected/...`, and the subject."""
    absent = [name for name in (*inputs, "subject", *groups) if name not in requested]
    if absent or len(measured) != len(requested):
        raise DataError(
            f"{len(measured)} measured hearts and {len(requested)} rows of attributes (columns "
            f"missing: {absent}); "
            "give one row of attributes a heart, in the same order"
        )
    complete = requested[list(inputs)].notna().all(axis=1).to_numpy()
    if not complete.any():
        raise DataError(f"no heart has all of {', '.join(inputs)}; the rules give no expectation")
    people = requested.loc[complete, list(inputs)].to_dict("records")
    expected = pd.DataFrame([rules(**person) for person in people], index=np.flatnonzero(complete))
    names = [name for name in UNITS if name in expected]
    expected = expected.reindex(range(len(requested)))[names].astype(float)
    errors = measured.reset_index(drop=True)[names] - expected
    return errors.assign(
        subject=requested["subject"].to_numpy(),
        **{f"expected/{name}": expected[name] for name in names},
    )


def _means(
    errors: pd.DataFrame,
    names: list[str],
    chosen: np.ndarray,
    rng: np.random.Generator,
    replicates: int,
) -> tuple[pd.DataFrame, np.ndarray]:
    """One row a measure (in part), and the bootstrap replicates of the differences [R, measures],
    NaN where there are too few subjects.
    """
    part = errors[chosen]
    values, draws = part[names].to_numpy(), np.full((replicates, len(names)), np.nan)
    known = ~np.isnan(values)
    subjects = part["subject"].astype(str).to_numpy()
    counts = np.array([len(np.unique(subjects[rows])) for rows in known.T])
    if max(counts) >= SUBJECTS_MIN:
        sample = Sample(np.where(known, values, 0), known.astype(float), clusters=subjects)
        draws = bootstrap(lambda *sums: pooled_mean(*sums, 0), [sample], rng, replicates)
        draws[:, counts < SUBJECTS_MIN] = np.nan
    difference = np.array([part[name].mean() for name in names])
    pairs = zip(names, known.T, strict=True)
    expected = np.array([part.loc[rows, f"expected/{name}"].mean() for name, rows in pairs])
    table = pd.DataFrame({"measure": names, "unit": [UNITS[name] for name in names]}).assign(
        images=len(part),
        subjects=counts,
        undefined=(~known).sum(0),
        expected=expected,
        measured=expected + difference,
        difference=difference,
    )
    table[["low", "high"]] = _ends(difference, draws)
    return table, draws


def _ends(estimates: Iterable[float], draws: np.ndarray) -> np.ndarray:
    """The ends [measures, 2] of the intervals of measures, from their replicates [R, measures]."""
    found = map(partial(interval, strict=False), estimates, draws.T)
    return np.array([(each.low, each.high) for each in found])
