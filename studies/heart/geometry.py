"""The geometry of a heart, read from short-axis masks: cavity areas, area ejection fraction, wall
thickness.

Masks are [N, 2, H, W], frame 0 = end diastole (ED), 1 = end systole (ES); labels 0 background, 1 LV
cavity, 2 myocardium (MYO), 3 RV cavity. Nothing here knows a generator or a classifier: it says
whether what was asked is in the image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from fairlib.errors import DataError
from fairlib.measures.dice import SUBJECTS_MIN, check_masks, each_group, pooled_mean
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
LAW_INPUTS = ("sex", "age", "bmi", "height", "diagnosis")


def geometry(masks, pixel: float = 2.0, largest: bool = True) -> pd.DataFrame:
    """One row a heart, columns `UNITS`: areas in mm2, `ejection` = 1 - ES / ED cavity area, mean
    wall thickness in mm.

    `diameter_ed` is that of the circle with the cavity's area.
    pixel: side of a square pixel in mm. `largest`: of the LV cavity, of the outer outline (LV and
    MYO) and of the RV only the largest connected part counts, so a stray speck of a segmenter is
    not anatomy. NaN where a structure that a column needs is missing (count them with `missing`).
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
    return pd.DataFrame(
        {
            "lv_ed_area": lv[:, 0],
            "lv_es_area": lv[:, 1],
            "diameter_ed": 2 * np.sqrt(lv[:, 0] / np.pi),
            "ejection": 1 - lv[:, 1] / lv[:, 0],
            "wall_ed": wall[:, 0],
            "wall_es": wall[:, 1],
            "myo_ed_area": muscle[:, 0],
            "rv_ed_area": rv[:, 0],
            "rv_es_area": rv[:, 1],
        }
    )


def missing(table: pd.DataFrame) -> dict[str, int]:
    """How many hearts of a `geometry` table have no value, for each column."""
    return {name: int(count) for name, count in table.isna().sum().items()}


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
    from scipy import ndimage

    kept = np.zeros_like(parts)
    for index in np.ndindex(parts.shape[:2]):
        labels, count = ndimage.label(parts[index])
        kept[index] = (
            parts[index] if count < 2 else labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
        )
    return kept


def attribute_truth(
    measured: pd.DataFrame,
    asked: pd.DataFrame,
    law: Callable[..., dict[str, float]],
    rng: np.random.Generator,
    groups: tuple[str, ...] = ("sex", "diagnosis"),
    real: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    inputs: tuple[str, ...] = LAW_INPUTS,
    replicates: int = 1000,
) -> pd.DataFrame:
    """Is the asked person in the image? Measured minus expected geometry, per subgroup, with 95 %
    intervals by subject.

    measured: `geometry` of the images; asked: their attributes in the same order, columns `inputs`,
    subject and `groups`; law(**inputs) -> expected values under names of `UNITS` (others are left
    out).
    real: (measured, attributes) of real hearts read by the same segmenter. What the segmenter and
    the pixels do to a measure they do to both, so `beyond_real` (difference of generated minus that
    of real) is the generator's own error.
    Columns: attribute, group, measure, unit, images, subjects, undefined (left out: no cavity, or
    an input is missing), expected, measured, difference, low, high, and with `real` also
    real_difference, beyond_real, beyond_low, beyond_high. Raises `DataError` on tables that do not
    match or lack a column.
    """
    errors = _errors(measured, asked, law, groups, inputs)
    real_errors = _errors(*real, law, groups, inputs) if real else None
    names = [name for name in errors if name in UNITS]
    rows = []
    for attribute, group, chosen in each_group({name: asked[name] for name in groups}, len(asked)):
        own = _means(errors, names, chosen, rng, replicates)
        if real_errors is not None:
            others = _means(
                real_errors, names, _same_group(real[1], attribute, group), rng, replicates
            )
        for name in names:
            beyond = {} if real_errors is None else _beyond(own[name], others[name])
            rows.append(
                {
                    "attribute": attribute,
                    "group": group,
                    "measure": name,
                    "unit": UNITS[name],
                    **own[name][0],
                    **beyond,
                }
            )
    return pd.DataFrame(rows)


def _errors(measured, asked, law, groups, inputs) -> pd.DataFrame:
    """measured - expected in columns of the law's names, expected values in columns `expected/...`,
    and the subject.
    """
    absent = [name for name in (*inputs, "subject", *groups) if name not in asked]
    if absent or len(measured) != len(asked):
        raise DataError(
            f"{len(measured)} measured hearts and {len(asked)} rows of attributes (columns "
            f"missing: {absent}); "
            "give one row of attributes a heart, in the same order"
        )
    complete = asked[list(inputs)].notna().all(axis=1).to_numpy()
    if not complete.any():
        raise DataError(
            f"no heart has all of {', '.join(inputs)}; the law cannot say what to expect"
        )
    people = asked.loc[complete, list(inputs)].to_dict("records")
    expected = pd.DataFrame([law(**person) for person in people], index=np.flatnonzero(complete))
    names = [name for name in UNITS if name in expected]
    expected = expected.reindex(range(len(asked)))[names].astype(float)
    errors = measured.reset_index(drop=True)[names] - expected
    return errors.assign(
        subject=asked["subject"].to_numpy(),
        **{f"expected/{name}": expected[name] for name in names},
    )


def _means(
    errors: pd.DataFrame, names: list[str], chosen: np.ndarray, rng, replicates
) -> dict[str, tuple[dict, np.ndarray]]:
    """For each measure one row of the table (in part) and the bootstrap replicates of its
    difference.
    """
    part = errors[chosen]
    values, draws = part[names].to_numpy(), np.full((replicates, len(names)), np.nan)
    known = ~np.isnan(values)
    subjects = part["subject"].astype(str).to_numpy()
    counts = [len(np.unique(subjects[rows])) for rows in known.T]
    if max(counts) >= SUBJECTS_MIN:
        sample = Sample(np.where(known, values, 0), known.astype(float), clusters=subjects)
        draws = bootstrap(
            lambda total, count: pooled_mean(total, count, 0), [sample], rng, replicates
        )
    found = {}
    for i, name in enumerate(names):
        expected, difference = part.loc[known[:, i], f"expected/{name}"].mean(), part[name].mean()
        replicate = draws[:, i] if counts[i] >= SUBJECTS_MIN else np.full(replicates, np.nan)
        ends = interval(difference, replicate, strict=False)
        found[name] = (
            {
                "images": len(part),
                "subjects": counts[i],
                "undefined": int((~known[:, i]).sum()),
                "expected": expected,
                "measured": expected + difference,
                "difference": difference,
                "low": ends.low,
                "high": ends.high,
            },
            replicate,
        )
    return found


def _beyond(own: tuple[dict, np.ndarray], other: tuple[dict, np.ndarray]) -> dict:
    estimate = own[0]["difference"] - other[0]["difference"]
    found = interval(estimate, own[1] - other[1], strict=False)
    return {
        "real_difference": other[0]["difference"],
        "beyond_real": estimate,
        "beyond_low": found.low,
        "beyond_high": found.high,
    }


def _same_group(table: pd.DataFrame, attribute: str, group) -> np.ndarray:
    if attribute == "all":
        return np.ones(len(table), bool)
    labels = table[attribute]
    return (labels.isna() if group == "missing" else labels == group).to_numpy()
