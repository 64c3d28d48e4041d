"""The figures of the comparison with their criteria, from the stored readings alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from fairlib.measures.intervals import Interval
from fairlib.measures.shares import class_accuracies, rogan_gladen
from studies.brain import outcomes
from studies.brain.outcomes import PRIMARY, UNTUNED, Comparison, Draws
from studies.engine.criteria import Criterion, Rule

TARGET = 76 / 166  # female subjects of BraTS 2018 with a known sex
DEFAULT, RIVALS = "transport-robust", ("untuned", "class-standard", "generate-and-keep")
SETS = (PRIMARY, "denoised", "test")
NAMES = {
    "heldout": "held-out classifier",
    "anatomy": "anatomical measurement",
    "area": "measured area",
}
OWN = "tuning classifier"
REPLICATES = 1000
COSINE, TIE = 0.90, 0.01  # of a choice: least CLIP cosine; distances that count as equal

SHARE = Criterion("share", "proportion female, calibration set: {set}")
DISTANCE = Criterion("distance", "distance of the proportion to the target", 0.03, Rule.AT_MOST)
RATIO = Criterion("confirmation_ratio", "confirmation ratio", 0.9, Rule.BETWEEN, 2, 1.1)
GAPS = {
    name: Criterion("prompt_gap", "gap by prompt", bound, Rule.AT_MOST)
    for name, bound in ((OWN, 0.03), (NAMES["heldout"], 0.04), (NAMES["anatomy"], 0.04))
}
SIZE = Criterion("size", "brain size within {sex}, standardised difference", 0.1, Rule.AT_MOST, 2)
SIZE_DISTANCE = Criterion(
    "size_distance", "distance of brain sizes to the target's, mm", decimals=2
)
FIDELITY_LOSS = Criterion(
    "fidelity_loss", "loss of prompt fidelity, {name}, points", 3.0, Rule.AT_MOST, decimals=1
)
CONTRAST = Criterion("contrast", "distance less that of {other} (Holm p {p:.2g})")
CHOICE = Criterion("choice", "distance of the proportion to the target{chosen}")
COST = Criterion("cost", "denoiser evaluations before any image is drawn", decimals=0)


def criteria(tables: Mapping[str, pd.DataFrame], own: Mapping[str, str]) -> list[dict]:
    """Every figure of every arm in `tables`: rows of `studies.engine.criteria`.

    own: of each arm, the column of the tuning classifier that it follows.
    """
    arms = [arm for arm in own if (tables["readings"].arm == arm).any()]
    rows: list[dict] = []
    for arm in arms:
        rows += _of_arm(tables, arm, own[arm])
        rows += _fidelity(tables["measures"], arm)
        rows += _cost(tables["cost"], arm)
    return [*rows, *_contrasts(tables, arms)]


def _of_arm(tables: Mapping[str, pd.DataFrame], arm: str, own: str) -> Iterator[dict]:
    """Shares, confirmation ratio, gaps and sizes of one arm; all evaluators and calibration sets
    take the same seeds and images in each draw.
    """
    rng, both = np.random.default_rng(0), list(dict.fromkeys((UNTUNED, arm)))
    readings, known = tables["readings"], tables["calibration"]
    columns = {OWN: own, **{name: column for column, name in NAMES.items()}}
    first: Draws | None = None
    moved: dict[str, tuple[Comparison, Draws]] = {}
    for name, column in columns.items():
        if column not in known or readings.loc[readings.arm == arm, column].isna().all():
            continue
        for kind in SETS:
            data = outcomes.compare(readings, known, column, both, kind)
            draws = data.draws(REPLICATES, rng) if first is None else None
            draws = draws or outcomes.same_images(data, first, rng)
            first = first or draws
            share = outcomes.interval_of(outcomes.shares(data, draws)[:, data.place(arm)])
            yield SHARE.row(arm, name, share, data.p[0].size, set=kind)
            if kind == PRIMARY:
                moved[name] = data, draws
                yield from _primary(data, draws, arm, name, share)
    if OWN in moved and arm != UNTUNED:
        for name in (NAMES["heldout"], NAMES["anatomy"], NAMES["area"]):
            data, draws = moved[name]
            ratio = outcomes.confirmation_ratio(data, moved[OWN][0], arm, draws, moved[OWN][1])
            bound = name == NAMES["anatomy"] and arm.startswith("transport-")
            yield RATIO.row(arm, name, ratio, data.p[0].size, compared=not bound)


def _primary(
    data: Comparison, draws: Draws, arm: str, name: str, share: Interval
) -> Iterator[dict]:
    bound, count = arm == DEFAULT, data.p[0].size
    if name == NAMES["anatomy"]:
        ends = sorted(abs(end - TARGET) for end in (share.low, share.high))
        low = 0.0 if TARGET in share else ends[0]
        distance = Interval(abs(share.estimate - TARGET), low, ends[1])
        yield DISTANCE.row(arm, name, distance, count, compared=not bound)
        found, floor = outcomes.size_distance(data, arm, TARGET)
        nothing = Interval(found, np.nan, np.nan)
        yield SIZE_DISTANCE.row(arm, name, nothing, count, floor)
    if name in GAPS:
        gap = outcomes.prompt_gap(data, draws, arm, TARGET)
        yield GAPS[name].row(arm, name, gap, count, compared=not bound)
    if name == NAMES["heldout"]:
        for sex, word in (("F", "women"), ("M", "men")):
            size = outcomes.size_within(data, draws, arm, sex)
            ends = sorted(map(abs, (size.low, size.high)))
            signless = Interval(abs(size.estimate), 0.0 if 0 in size else ends[0], ends[1])
            yield SIZE.row(arm, name, signless, count, compared=not bound, sex=word)


def _fidelity(measures: pd.DataFrame, arm: str) -> Iterator[dict]:
    of = measures.set_index("seed")
    mine, before = of[of.arm == arm], of[of.arm == UNTUNED]
    for name in ("contrast", "grade", "side"):
        loss = 100 * (before[name] - mine[name]).dropna()
        value = Interval(loss.mean(), loss.min(), loss.max())
        yield FIDELITY_LOSS.row(
            arm, "attribute classifier", value, len(loss), compared=arm != DEFAULT, name=name
        )


def _cost(cost: pd.DataFrame, arm: str) -> Iterator[dict]:
    rows = cost[(cost.arm == arm) & (cost.kind != "sampling")]
    each = (rows.forward + 2 * rows.backward).groupby(rows.seed).sum()
    total = float(each.mean()) if len(each) else 0.0
    yield COST.row(arm, "counter", Interval(total, total, total), max(1, len(each)))


def _contrasts(tables: Mapping[str, pd.DataFrame], arms: list[str]) -> Iterator[dict]:
    """The confirmatory contrasts, of those rivals that were run."""
    rivals = [arm for arm in RIVALS if arm in arms]
    if DEFAULT not in arms or not rivals:
        return
    data = outcomes.compare(
        tables["readings"], tables["calibration"], "anatomy", [DEFAULT, *rivals]
    )
    if len(data.seeds) < 2:
        return
    for row in outcomes.contrasts(data, TARGET, DEFAULT, rivals).itertuples():
        value = Interval(row.difference, row.low, row.high)
        yield CONTRAST.row(
            DEFAULT, NAMES["anatomy"], value, row.seeds, other=row.against, p=row.p_holm
        )


# ---- the choice of rates and strengths


def choices(readings: pd.DataFrame, cosine: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """What `plan.md` chooses from a sweep whose arms are called method@setting: a row each with the
    corrected share by the selection classifier, its distance to the target, the CLIP cosine and
    whether it is the one.

    known: the selection classifier's readings of the primary calibration set.
    """
    rates = class_accuracies(known.selection > 0.5, known.sex == "F")
    similar = cosine.set_index("arm").cosine
    rows = []
    for arm, part in readings[readings.arm.str.contains("@")].groupby("arm", sort=False):
        method, setting = str(arm).split("@")
        share = float(rogan_gladen((part.selection > 0.5).mean(), *rates)[0])
        rows.append((method, float(setting), share, abs(share - TARGET), similar[arm]))
    columns = ["method", "setting", "share", "distance", "cosine"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["method", "setting"])
    allowed = table[table.cosine >= COSINE]
    best = allowed.groupby("method").distance.transform("min")
    chosen = allowed[allowed.distance <= best + TIE].groupby("method").setting.idxmin()
    return table.assign(chosen=table.index.isin(chosen)).reset_index(drop=True)


def swept(tables: Mapping[str, pd.DataFrame]) -> list[dict]:
    """What a sweep says of each setting: rows of `studies.engine.criteria`."""
    count = tables["readings"].groupby("arm").size()
    rows = []
    for row in tables["choice"].itertuples():
        arm, chosen = f"{row.method}@{row.setting:g}", ": chosen" if row.chosen else ""
        value = Interval(row.distance, np.nan, np.nan)
        rows.append(CHOICE.row(arm, "selection classifier", value, int(count[arm]), chosen=chosen))
    return rows
