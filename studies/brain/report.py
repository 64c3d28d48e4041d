"""The criteria of the brain study, fixed before its results, and the numbers that prose quotes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.io import read_json
from fairlib.measures.gaps import gap_table
from fairlib.measures.intervals import Interval
from fairlib.measures.shares import (
    Evaluator,
    ambiguity_table,
    group_table,
    share_table,
    within_sex_table,
)
from studies.brain.arms import ARMS
from studies.brain.data import BrainSettings
from studies.brain.evaluators import NAMES, TUNING_CLASSIFIER, evaluators_of
from studies.engine import repository
from studies.engine.criteria import Criterion, Rule

TARGET = 76 / 166  # female subjects of BraTS 2018 with a known sex
CONDITIONAL_TARGETS = {"HGG": 38 / 101, "LGG": 38 / 65}
UNTUNED, TUNED, CONDITIONAL = "untuned", "transport-robust", "conditional"
PUBLISHED = "class-standard"
HELDOUT, MEASUREMENT = NAMES["heldout"], NAMES["anatomy"]
# the evaluators in names of columns and values
KEYS = {TUNING_CLASSIFIER: "tuning_classifier", HELDOUT: "heldout", MEASUREMENT: "anatomy"}
ATTRIBUTES = "attribute classifier"
FIDELITY = ("contrast", "tumour", "side", "grade")

BASE_SHARE = Criterion(
    "base_share", "female share below target, points", 20.0, Rule.AT_LEAST, decimals=1
)
GAP = {
    name: Criterion("prompt_gap", "mean gap over prompts", bound, Rule.AT_MOST)
    for name, bound in ((TUNING_CLASSIFIER, 0.03), (HELDOUT, 0.05), (MEASUREMENT, 0.05))
}
GAP_BEYOND_CHANCE = {
    name: Criterion("prompt_gap_beyond_chance", "gap beyond chance", each.bound, Rule.AT_MOST)
    for name, each in GAP.items()
}
# the milder figure: what the method makes of a prompt on average over its seeds; added after the
# first results, so it has no criterion
GAP_JOINED = Criterion("prompt_gap_seeds_joined", "gap over prompts, seeds joined")
GROUP_GAP = Criterion("group_gap", "gap to the share of {group}", 0.06, Rule.AT_MOST)
AMBIGUOUS = Criterion(
    "ambiguous", "ambiguous images against test slices, points", 3.0, Rule.AT_MOST, decimals=1
)
ANATOMY = Criterion("anatomy", "anatomy within {sex}, standardised difference", 0.2, Rule.AT_MOST)
FIDELITY_BASE = Criterion("fidelity", "prompt fidelity, {name}", 0.9, Rule.AT_LEAST)
FIDELITY_LOSS = Criterion(
    "fidelity_loss", "loss of fidelity, {name}, points", 3.0, Rule.AT_MOST, decimals=1
)
MMD_CHANGE = Criterion("mmd_change", "change of MMD to the target cohort", 0.0, Rule.AT_MOST)
COSINE = Criterion("cosine_kept", "CLIP cosine where the class stays", 0.90, Rule.AT_LEAST)
COST = {  # of `benchmarks/alignment_cost.py`
    "evaluations_ratio": Criterion(
        "evaluations", "U-Net evaluations against the published order", 1 / 3, Rule.AT_MOST
    ),
    "gradient_cosine": Criterion(
        "gradient_cosine", "gradient cosine to all steps", 0.99, Rule.AT_LEAST
    ),
    "memory_ratio": Criterion("memory", "saved activations, 50 steps against 5", 1.1, Rule.AT_MOST),
}


def criteria(tables: Mapping[str, pd.DataFrame], settings: BrainSettings) -> list[dict]:
    """All figures that the tables decide, with their criteria: rows of `studies.engine.criteria`.

    Deterministic. Of a folder with readings only (`results/brain-4000`), what these decide.
    """
    rows = readings_criteria(tables["readings"], tables["slices"])
    if "measures" in tables:
        rows += [*_measured(tables["measures"]), *_cost(repository() / "results" / "cost.json")]
    return rows


def readings_criteria(
    readings: pd.DataFrame, slices: pd.DataFrame, tuned: str = TUNED, replicates: int = 500
) -> list[dict]:
    """What the readings decide, over all seeds, for the arm `tuned`; an arm that is not among them
    has no rows.

    Each seed's prompts are cells of their own, so gaps of opposite sign in two seeds do not cancel;
    "beyond chance" takes the noise of a finite number of images out of them.
    """
    evaluators, rng = evaluators_of(_kind(tuned)), np.random.default_rng(0)
    parts = (_base_share, _prompt_gaps, _conditional, _ambiguous, _anatomy)
    return [
        row for part in parts for row in part(readings, slices, evaluators, tuned, rng, replicates)
    ]


def _kind(arm: str) -> str:
    """The tuning classifier that an arm follows; that of `TUNED` for the base model."""
    return ARMS[arm].evaluator or ARMS[TUNED].evaluator


def _of(readings: pd.DataFrame, *arms: str) -> pd.DataFrame:
    return readings[readings.arm.isin(arms)]


def _interval(row: pd.Series, name: str, scale: float = 1.0) -> Interval:
    return Interval(*(scale * row[f"{name}{end}"] for end in ("", "_low", "_high")))


def magnitude(value: Interval) -> Interval:
    """The interval of |x| from the interval of x."""
    ends = sorted(map(abs, (value.low, value.high)))
    return Interval(abs(value.estimate), 0.0 if 0 in value else ends[0], ends[1])


def _base_share(readings, slices, evaluators, tuned, rng, replicates) -> Iterator[dict]:
    part, anatomy = _of(readings, UNTUNED), evaluators[-1:]
    if part.empty:
        return
    row = share_table(part, slices, anatomy, rng, ("arm",), replicates).iloc[0]
    ends = (row.corrected, row.corrected_high, row.corrected_low)
    below = Interval(*(100 * (TARGET - share) for share in ends))
    yield BASE_SHARE.row(UNTUNED, MEASUREMENT, below, row.n)


def _prompt_gaps(readings, slices, evaluators, tuned, rng, replicates) -> Iterator[dict]:
    for arm in (UNTUNED, tuned):
        part = _of(readings, arm)
        if part.empty:
            continue
        cells = part.assign(prompt=part.prompt.astype(str) + " seed " + part.seed.astype(str))
        joined, apart = (
            gap_table(table, slices, evaluators, TARGET, rng, ("arm",), replicates)
            for table in (part, cells)
        )
        joined, apart = joined.set_index("evaluator"), apart.set_index("evaluator")
        for name in GAP:
            one, each, compared = joined.loc[name], apart.loc[name], arm == UNTUNED
            beyond = _interval(each, "beyond_chance")
            gap, gap_joined = (Interval(row.gap, np.nan, np.nan) for row in (each, one))
            yield GAP[name].row(arm, name, gap, each.n, each.floor, compared)
            yield GAP_BEYOND_CHANCE[name].row(arm, name, beyond, each.n, compared=compared)
            yield GAP_JOINED.row(arm, name, gap_joined, one.n, one.floor)


def _conditional(readings, slices, evaluators, tuned, rng, replicates) -> Iterator[dict]:
    part, heldout = _of(readings, CONDITIONAL), evaluators[1:2]
    if part.empty:
        return
    table = group_table(part, slices, heldout, CONDITIONAL_TARGETS, rng, ("arm",), replicates)
    for _, row in table.iterrows():
        gap = Interval(row.gap, row.share_low - row.target, row.share_high - row.target)
        yield GROUP_GAP.row(CONDITIONAL, HELDOUT, magnitude(gap), row.n, group=row["group"])


def _ambiguous(readings, slices, evaluators, tuned, rng, replicates) -> Iterator[dict]:
    part = _of(readings, UNTUNED, tuned)
    for _, row in ambiguity_table(part, slices, evaluators, rng, ("arm",), replicates).iterrows():
        value = magnitude(_interval(row, "points"))
        yield AMBIGUOUS.row(row.arm, row.evaluator, value, row.n, compared=row.arm == UNTUNED)


def _anatomy(readings, slices, evaluators, tuned, rng, replicates) -> Iterator[dict]:
    part = _of(readings, UNTUNED, tuned)
    table = within_sex_table(part, slices, evaluators, rng, ("arm",), replicates)
    for _, row in table[table.against == "truth"].iterrows():
        value, compared = magnitude(_interval(row, "difference")), row.arm == UNTUNED
        yield ANATOMY.row(row.arm, row.evaluator, value, row.n, compared=compared, sex=row.sex)


def _over_seeds(values: pd.Series) -> Interval:
    """Mean over seeds, with the least and the greatest of them (five seeds are too few for
    more).
    """
    return Interval(float(values.mean()), float(values.min()), float(values.max()))


def _measured(measures: pd.DataFrame) -> Iterator[dict]:
    measures = measures.set_index(["arm", "seed"])
    base, after = measures.loc[UNTUNED], measures.loc[TUNED]
    for name in FIDELITY:
        value, loss = _over_seeds(base[name]), _over_seeds(100 * (base[name] - after[name]))
        yield FIDELITY_BASE.row(UNTUNED, ATTRIBUTES, value, len(base), name=name)
        yield FIDELITY_LOSS.row(TUNED, ATTRIBUTES, loss, len(after), name=name)
    yield MMD_CHANGE.row(TUNED, ATTRIBUTES, _interval(after.mean(), "mmd_change"), len(after))
    yield COSINE.row(TUNED, "CLIP", _over_seeds(after.cosine_kept), len(after))


def _cost(path: Path) -> Iterator[dict]:
    """The figures of `benchmarks/alignment_cost.py`, if it was run."""
    found = read_json(path) if path.is_file() else {}
    for key, criterion in COST.items():
        if key in found:
            value = float(found[key])

            yield criterion.row("replay", "counter", Interval(value, value, value), 1)


def many_images_folder() -> Path | None:
    """The folder beside `results/brain` whose runs drew the most images (`brain-4000`); None when
    there is none.
    """
    found = (repository() / "results").glob("brain-*")
    numbered = {int(path.name[6:]): path for path in found if path.name[6:].isdigit()}
    return numbered[max(numbered)] if numbered else None


def corrected_shares(
    part: pd.DataFrame,
    slices: pd.DataFrame,
    evaluators: list[Evaluator],
    rng: np.random.Generator,
    replicates: int,
) -> dict[str, float]:
    """The corrected share of one arm by each evaluator: `KEYS`, and these with `_low`, `_high`."""
    table = share_table(part, slices, evaluators, rng, ("arm",), replicates)
    shares = table.set_index("evaluator").filter(like="corrected")
    return {
        KEYS[name] + column.removeprefix("corrected"): value
        for name, row in shares.iterrows()
        for column, value in row.items()
    }


def headline(
    results: Mapping[str, pd.DataFrame], tuned: str = TUNED, replicates: int = 200
) -> dict[str, float]:
    """The numbers that the book's prose quotes from the long runs, by name
    (`long_<arm>_<evaluator>` and more, with the words of `KEYS`).

    Each arm is read by the classifier that tuned it; shares are corrected, with 95 % intervals,
    over all of the arm's seeds.
    """
    readings, slices, rng = results["readings"], results["slices"], np.random.default_rng(1)
    found: dict[str, float] = {}
    for arm in (UNTUNED, PUBLISHED, tuned):
        part, evaluators = (
            _of(readings, arm),
            evaluators_of(_kind(tuned if arm == UNTUNED else arm)),
        )
        if part.empty:
            continue
        shares = corrected_shares(part, slices, evaluators, rng, replicates)
        key = f"long_{arm}".replace("-", "_")
        found |= {f"{key}_{name}": value for name, value in shares.items()}
        table = within_sex_table(part, slices, evaluators, rng, ("arm",), replicates)
        sizes = table[(table.evaluator == MEASUREMENT) & (table.against == "truth")]
        for row in sizes.itertuples():
            found[f"{key}_size_{row.sex}"] = row.difference
        disagree = (part[evaluators[0].column] > 0.5) != (part["anatomy"] > 0.5)
        means = _of(results["measures"], arm)[[*FIDELITY, "cosine_kept"]].mean()
        found |= {
            f"{key}_disagree": float(disagree.mean()),
            f"{key}_images": len(part),
            f"{key}_seeds": int(part.seed.nunique()),
            **{f"{key}_{name}": float(value) for name, value in means.items()},
        }
    return found | _conditional_shares(_of(readings, CONDITIONAL), slices, rng, replicates)


def _conditional_shares(
    part: pd.DataFrame, slices: pd.DataFrame, rng: np.random.Generator, replicates: int
) -> dict[str, float]:
    """Each grade's share under the conditional target, by every evaluator, and on how many seeds it
    rests; nothing without one.
    """
    if part.empty:
        return {}
    evaluators = evaluators_of(_kind(CONDITIONAL))
    table = group_table(part, slices, evaluators, CONDITIONAL_TARGETS, rng, ("arm",), replicates)
    found: dict[str, float] = {"long_conditional_seeds": int(part.seed.nunique())}
    for row in table.itertuples():
        found[f"long_conditional_{row.group}_{KEYS[row.evaluator]}"] = row.share
    return found
