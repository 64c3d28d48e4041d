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
TARGETS = {"target-30": 0.30, "target-70": 0.70}  # of arms with a target of their own
TARGETS |= {f"choose-noises{kind}-{n}": n / 100 for kind in ("", "-both") for n in (30, 70)}
PLANNED, RIVALS = "transport-robust", ("untuned", "class-standard", "generate-and-keep")
DEFAULT = "choose-noises"  # the best by the rule of the plan
BOUND = (PLANNED, DEFAULT, "choose-noises-both")  # by the criteria of the plan
LABELS = {  # of arms, for readers; the first twelve are the main ones
    "untuned": "untuned model",
    "transport-robust": "transport targets, robust classifier (planned)",
    "transport-standard": "transport targets, standard classifier",
    "class-standard": "class targets, standard classifier",
    "class-standard-corrected": "class targets, standard classifier, corrected aim",
    "class-robust": "class targets, robust classifier",
    "class-robust-corrected": "class targets, robust classifier, corrected aim",
    "class-published": "class targets, published order",
    "generate-and-keep": "generate and keep",
    "choose-noises": "choose noises, robust classifier (default)",
    "choose-noises-standard": "choose noises, standard classifier",
    "choose-noises-both": "choose noises, both classifiers",
    "generate-and-keep-corrected": "generate and keep, corrected aim",
    "target-images": "fine-tuning on the target cohort",
    "grpo": "policy gradient",
    "batch-guidance": "batch guidance",
    "null-offset": "null prompt moved",
    "quantile-robust": "quantile targets",
    "mean-kl-robust": "mean-probability divergence",
    "last-step": "gradient of the last step alone",
    "no-consistency": "no CLIP consistency",
    "target-30": "transport targets, 30 % female",
    "target-70": "transport targets, 70 % female",
    **{
        f"choose-noises{kind}-{end}": f"choose noises, {name}, {words}"
        for kind, name in (("", "robust classifier"), ("-both", "both classifiers"))
        for end, words in (("30", "30 % female"), ("70", "70 % female"), ("12", "pool of twelve"))
    },
    "null-own": "null: the model's own distribution",
    "null-shuffled": "classifier of shuffled sexes",
    "words-female": "null: prompts that say woman",
    "words-male": "null: prompts that say man",
    "conditional": "transport targets, each grade's own share",
    "class-standard-short": "class targets, standard classifier, short training",
    "class-robust-short": "class targets, robust classifier, short training",
    "transport-standard-short": "transport targets, standard classifier, short training",
    "transport-robust-short": "transport targets, robust classifier, short training",
    "transport-robust-10-steps": "transport targets, robust classifier, 10 steps",
    "transport-robust-20-steps": "transport targets, robust classifier, 20 steps",
    "class-published-9-steps": "class targets, published order, 9 steps",
    "class-published-36-steps": "class targets, published order, 36 steps",
    "transport-robust-quick": "transport targets, robust classifier, quick",
    "class-published-quick": "class targets, published order, quick",
}
BASES = {  # folders of results, for readers
    "brain": "first base",
    "brain-second": "second base",
    "brain-realistic": "sexes that overlap",
    "brain-balanced": "balanced training set",
}
PUBLISHED = "class targets, published order"
CURVES = {  # arms by their cost, for cost against gap
    "transport targets, robust classifier": tuple(
        f"transport-robust{end}" for end in ("-quick", "-10-steps", "-20-steps", "")
    ),
    "choosing noises, robust classifier": (DEFAULT,),
    "choosing noises, both classifiers": ("choose-noises-both",),
    PUBLISHED: tuple(f"class-published{end}" for end in ("-quick", "-9-steps", "", "-36-steps")),
}
NEAR = 0.05  # of the target: how near a curve of cost has to come
BEFORE_AND_AFTER = ("untuned", "class-standard", PLANNED, "transport-standard", *BOUND[1:])
KINDS = {  # tuning classifiers of the factorial, for readers
    **{kind: kind for kind in ("standard", "robust")},
    **{f"{kind}-short": f"{kind}, short training" for kind in ("standard", "robust")},
}
FACTORIAL = {
    f"{family}-{kind}{aim}": (f"{family} targets{', corrected aim' * bool(aim)}", words)
    for family, aim in (("class", ""), ("class", "-corrected"), ("transport", ""))
    for kind, words in KINDS.items()
}
MAIN = tuple(LABELS)[:12]  # arms of the main figures; the others have a section of their own
KEYS = {"tuning classifier": "tuning_classifier"}  # of evaluators, in names of quoted numbers
NAMES = {
    "heldout": "held-out classifier",
    "anatomy": "anatomical measurement",
    "area": "measured area",
}
OWN = "tuning classifier"
REPLICATES = 1000
UNKNOWN = Interval(np.nan, np.nan, np.nan)
COSINE, TIE = 0.90, 0.01  # of a choice: least CLIP cosine; distances that count as equal

SETS = {  # calibration sets, the primary one first
    PRIMARY: "radiology slices",
    "denoised": "radiology slices, denoised",
    "test": "test slices",
}
SHARE = "proportion female, calibration set: {}"
SIZE = "brain size in images classified as {}, standardised difference"
FIDELITY = "loss of prompt fidelity, {}, points"
SHARES = {
    kind: Criterion("share" if kind == PRIMARY else f"share_{kind}", SHARE.format(words))
    for kind, words in SETS.items()
}
DISTANCE = Criterion("distance", "distance of the proportion to the target", 0.03, Rule.AT_MOST)
FURTHER = Criterion(
    "distance", "distance of the proportion to the arm's own target", 0.06, Rule.AT_MOST
)
RUN = Criterion("run_distance", "distance of a single run's proportion to the target")
SPREAD = Criterion("run_spread", "the same, standard deviation of the proportion between runs")
RATIO = Criterion("confirmation_ratio", "confirmation ratio", 0.9, Rule.BETWEEN, 2, 1.1)
GAPS = {
    name: Criterion("prompt_gap", "gap by prompt", bound, Rule.AT_MOST)
    for name, bound in ((OWN, 0.03), (NAMES["heldout"], 0.04), (NAMES["anatomy"], 0.04))
}
SIZES = {
    sex: Criterion(f"size_{sex}", SIZE.format(words), -0.1, Rule.BETWEEN, 2, 0.1)
    for sex, words in (("F", "female"), ("M", "male"))
}
SIZE_DISTANCE = Criterion(
    "size_distance", "distance of brain sizes to the target's, mm", decimals=2
)
FIDELITY_LOSSES = {
    name: Criterion(f"fidelity_loss_{name}", FIDELITY.format(name), 3.0, Rule.AT_MOST, 1)
    for name in ("contrast", "grade", "side")
}
POWER = f"power for a true difference of {outcomes.PLANNED:g} to "
CONTRASTS = {
    other: (
        Criterion(f"contrast_{other}", f"distance less that of {LABELS[other]}"),
        Criterion(f"contrast_p_{other}", f"the same, p value (Holm over {len(RIVALS)})"),
        Criterion(f"contrast_power_{other}", POWER + LABELS[other], 0.8, Rule.AT_LEAST, 2),
    )
    for other in RIVALS
}
CLOSED = Criterion("gap_closed", "share of the gap to the target that is closed", decimals=2)
AWAY = "distance to the target less, at the same seeds, that of "
AGAINST = {  # exploratory
    "planned": Criterion("against_planned", AWAY + "the planned tuning"),
    "class": Criterion("against_class", AWAY + "class targets"),
    "corrected": Criterion("against_corrected", AWAY + "class targets with a corrected aim"),
}
# of `transfer`: distance to the target at most, with other prompts and at other guidance scales
ELSEWHERE = {"guidance": 0.08, "other": 0.06, "paraphrase": 0.06, "no": 0.06}
CHOICE = Criterion("choice", "distance of the proportion to the target{chosen}")
CURVE = Criterion("curve_distance", "distance of the proportion to the target, seeds of all curves")
WITHIN = f"evaluations to come within {NEAR:g}, over those of class targets in published order"
CHEAPEST = Criterion("cost_ratio", WITHIN, 0.5, Rule.AT_MOST, 2)
COST = Criterion("cost", "denoiser evaluations before any image is drawn", decimals=0)


def criteria(tables: Mapping[str, pd.DataFrame], own: Mapping[str, str]) -> list[dict]:
    """Every figure of every arm in `tables`: rows of `studies.engine.criteria`.

    own: of each arm, the column of the tuning classifier that it follows.
    """
    arms = [arm for arm in own if (tables["readings"].arm == arm).any()]
    rows: list[dict] = []
    for arm in arms:
        rows += _of_arm(tables, arm, own[arm])
        rows += _fidelity(tables["measures"], arm) if "measures" in tables else []
        rows += _cost(tables["cost"], arm) if "cost" in tables else []
    rows += [*_contrasts(tables, arms), *_differences(tables, arms)]
    return [*rows, *_curves(tables, arms, rows)]


def _of_arm(tables: Mapping[str, pd.DataFrame], arm: str, own: str) -> Iterator[dict]:
    """Shares, confirmation ratio, gaps and sizes of one arm; all evaluators and calibration sets
    take the same seeds and images in each draw.
    """
    rng, both = np.random.default_rng(0), list(dict.fromkeys((UNTUNED, arm)))
    readings, known = tables["readings"], tables["calibration"]
    seeds = readings.seed[readings.arm == arm]
    shown = readings[readings.arm.isin(both) & readings.seed.isin(seeds)]
    columns = {OWN: own, **{name: column for column, name in NAMES.items()}}
    sets, primary = sets_of(known), primary_of(known)
    first: Draws | None = None
    chosen_by: np.ndarray | None = None
    moved: dict[str, tuple[Comparison, Draws]] = {}
    for name, column in columns.items():
        if column not in known or shown.groupby("arm")[column].count().eq(0).any():
            continue
        for kind in sets:
            data = outcomes.compare(readings, known, column, both, kind)
            same = first and outcomes.same_images(data, first, rng)
            draws = same or data.draws(REPLICATES, rng)
            first = first or draws
            if not outcomes.is_useful(data):  # nothing can be corrected by a guess
                yield SHARES[kind].row(arm, name, UNKNOWN, data.p[0].size)
                continue
            count = data.p[0].size
            share = outcomes.interval_of(outcomes.shares(data, draws)[:, data.place(arm)])
            yield SHARES[kind].row(arm, name, share, count)
            if kind == primary:
                moved[name] = data, draws
                if arm != UNTUNED:
                    closed = outcomes.gap_closed(data, draws, arm, TARGETS.get(arm, TARGET))
                    yield CLOSED.row(arm, name, closed, count)
                if name == OWN and arm.startswith("choose"):
                    chosen_by = data.p[data.place(arm)]
                yield from _primary(data, draws, arm, name, share, chosen_by)
    if OWN in moved and arm != UNTUNED:
        for name in [name for name in NAMES.values() if name in moved]:
            data, draws = moved[name]
            ratio = outcomes.confirmation_ratio(data, moved[OWN][0], arm, draws, moved[OWN][1])
            bound = arm in BOUND or (arm.startswith("transport") and arm in FACTORIAL)
            bound &= name == NAMES["anatomy"]
            yield RATIO.row(arm, name, ratio, data.p[0].size, compared=not bound)


def single_runs(readings: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The corrected share of every arm and seed by the anatomical measurement: arm, seed, share."""
    rows = []
    for arm, part in readings.groupby("arm", sort=False):
        data = outcomes.compare(part, known, "anatomy", [arm], primary_of(known))
        found = zip(data.seeds, outcomes.seed_shares(data)[0], strict=True)
        rows += [{"arm": arm, "seed": seed, "share": share} for seed, share in found]
    return pd.DataFrame(rows)


def sets_of(known: pd.DataFrame) -> list[str]:
    """The calibration sets that there are."""
    return [kind for kind in SHARES if (known["set"] == kind).any()]


def primary_of(known: pd.DataFrame) -> str:
    """The primary calibration set; of a real cohort, which has that alone, its test slices."""
    return sets_of(known)[0]


def _primary(
    data: Comparison,
    draws: Draws,
    arm: str,
    name: str,
    share: Interval,
    chosen_by: np.ndarray | None,
) -> Iterator[dict]:
    bound, count, target = arm in BOUND, data.p[0].size, TARGETS.get(arm, TARGET)
    if name == NAMES["anatomy"]:
        away = distance_of(share, target)
        criterion = FURTHER if arm in TARGETS else DISTANCE
        yield criterion.row(arm, name, away, count, compared=not (bound or arm in TARGETS))
        runs = outcomes.cell_shares(data, draws)[0, data.place(arm)]
        yield RUN.row(arm, name, outcomes.mean_of_runs(np.abs(runs - target)), len(runs))
        if len(runs) > 1:
            yield SPREAD.row(arm, name, Interval(runs.std(ddof=1), np.nan, np.nan), len(runs))
        found, floor = outcomes.size_distance(data, arm, target)
        yield SIZE_DISTANCE.row(arm, name, Interval(found, np.nan, np.nan), count, floor)
    if name in GAPS:
        gap = outcomes.prompt_gap(data, draws, arm, target, chosen_by)
        yield GAPS[name].row(arm, name, gap, count, compared=not bound)
    if name == NAMES["heldout"]:
        for sex, criterion in SIZES.items():
            size = outcomes.size_within(data, draws, arm, sex)
            yield criterion.row(arm, name, size, count, compared=not bound)


def distance_of(share: Interval, target: float = TARGET) -> Interval:
    """The distance of a share to the target."""
    ends = sorted(abs(end - target) for end in (share.low, share.high))
    return Interval(abs(share.estimate - target), 0.0 if target in share else ends[0], ends[1])


def _fidelity(measures: pd.DataFrame, arm: str) -> Iterator[dict]:
    of = measures.set_index("seed")
    mine, before = of[of.arm == arm], of[of.arm == UNTUNED]
    for name, criterion in FIDELITY_LOSSES.items():
        loss = 100 * (before[name] - mine[name]).dropna()
        value = Interval(loss.mean(), loss.min(), loss.max())
        yield criterion.row(
            arm, "attribute classifier", value, len(loss), compared=arm not in BOUND
        )


def _cost(cost: pd.DataFrame, arm: str) -> Iterator[dict]:
    rows = cost[(cost.arm == arm) & (cost.kind != "sampling")]
    each = (rows.forward + 2 * rows.backward).groupby(rows.seed).sum()
    total = float(each.mean()) if len(each) else 0.0
    yield COST.row(arm, "counter", Interval(total, total, total), max(1, len(each)))


def _contrasts(tables: Mapping[str, pd.DataFrame], arms: list[str]) -> Iterator[dict]:
    """The confirmatory contrasts, of those rivals that were run."""
    rivals, known = [arm for arm in RIVALS if arm in arms], tables["calibration"]
    if PLANNED not in arms or not rivals:
        return
    chosen, primary = [PLANNED, *rivals], primary_of(known)
    data = outcomes.compare(tables["readings"], known, "anatomy", chosen, primary)
    if len(data.seeds) < 2 or not outcomes.is_useful(data):
        return
    for row in outcomes.contrasts(data, TARGET, PLANNED, rivals).itertuples():
        values = [Interval(one, np.nan, np.nan) for one in (row.p_holm, row.power)]
        values.insert(0, Interval(row.difference, row.low, row.high))
        for criterion, value in zip(CONTRASTS[row.against], values, strict=True):
            yield criterion.row(PLANNED, NAMES["anatomy"], value, row.seeds)


def _differences(tables: Mapping[str, pd.DataFrame], arms: list[str]) -> Iterator[dict]:
    """Distances of single runs to the target against those of another arm at the seeds that both
    have: exploratory, not corrected for their number. Every arm against the planned tuning, and
    transport against class targets with the same classifier (of those as published, the standard).
    """
    readings, known = tables["readings"], tables["calibration"]
    pairs = [(arm, PLANNED, "planned") for arm in arms if arm != PLANNED]
    pairs.append(("transport-standard", "class-standard", "class"))
    for kind in ("standard", "robust"):
        pairs.append((f"transport-{kind}", f"class-{kind}-corrected", "corrected"))
    for arm, other, key in pairs:
        both = readings[readings.arm.isin([arm, other])].groupby("seed").arm.nunique().eq(2)
        if both[both.index.isin(known.seed)].sum() < 2:
            continue
        data = outcomes.compare(readings, known, "anatomy", [arm, other], primary_of(known))
        if outcomes.is_useful(data):
            targets = np.array([[TARGETS.get(each, TARGET)] for each in (arm, other)])
            away = np.abs(outcomes.seed_shares(data) - targets)
            row = outcomes.paired(data, away, arm, other)
            value = Interval(row["difference"], row["low"], row["high"])
            yield AGAINST[key].row(arm, NAMES["anatomy"], value, row["seeds"])


def _curves(
    tables: Mapping[str, pd.DataFrame], arms: list[str], rows: list[dict]
) -> Iterator[dict]:
    """Distance to the target of the curves' points that were run, at the seeds that all have; and
    what the planned tuning and the default cost to come near, over the published rival. A rival
    that never does counts with its largest cost, so that the ratio is a bound from above.
    """
    points = {name: [arm for arm in curve if arm in arms] for name, curve in CURVES.items()}
    chosen, known = sum(points.values(), []), tables["calibration"]
    if not {PLANNED, "class-published"} < set(chosen) or "cost" not in tables:
        return
    seeds = tables["readings"].groupby("arm").seed.agg(set)[chosen]
    if not set.intersection(set(known.seed), *seeds):
        return
    data = outcomes.compare(tables["readings"], known, "anatomy", chosen, primary_of(known))
    drawn = outcomes.shares(data, data.draws(REPLICATES, np.random.default_rng(0)))
    costs = {row["arm"]: row["estimate"] for row in rows if row["metric_id"] == COST.metric_id}
    reached: dict[str, list[float]] = {name: [] for name in CURVES}
    for name, curve in points.items():
        for arm in curve:
            away = distance_of(outcomes.interval_of(drawn[:, data.place(arm)]))
            reached[name] += [costs[arm]] if away.estimate <= NEAR else []
            yield CURVE.row(arm, NAMES["anatomy"], away, data.p[0].size)
    theirs = min(reached[PUBLISHED] or [max(costs[arm] for arm in points[PUBLISHED])])
    for arm in BOUND:
        mine = [min(reached[name]) for name in points if arm in points[name] and reached[name]]
        for cost in mine:
            ratio = Interval(cost / theirs, np.nan, np.nan)
            yield CHEAPEST.row(arm, "counter", ratio, len(data.seeds))


def elsewhere(tables: Mapping[str, pd.DataFrame]) -> list[dict]:
    """Corrected shares of every arm under every condition of `transfer`, and by the anatomical
    measurement their distance to the target: rows of `studies.engine.criteria`.
    """
    rows, rng, known = [], np.random.default_rng(0), tables["calibration"]
    for (condition, arm), part in tables["transfer"].groupby(["condition", "arm"], sort=False):
        for column, name in NAMES.items():
            data = outcomes.compare(part, known, column, [arm], primary_of(known))
            share = outcomes.interval_of(outcomes.shares(data, data.draws(REPLICATES, rng))[:, 0])
            proportion, distance = _elsewhere(condition)
            rows.append(proportion.row(arm, name, share, len(part)))
            if column == "anatomy":
                away = distance_of(share)
                rows.append(distance.row(arm, name, away, len(part), compared=arm not in BOUND))
    return rows


def _elsewhere(condition: str) -> tuple[Criterion, Criterion]:
    """The figures of one condition: proportion, and distance with its bound."""
    bound = ELSEWHERE.get(condition.split()[0], np.nan)
    words = f"distance of the proportion to the target, {condition}"
    return (
        Criterion(f"share, {condition}", f"proportion female, {condition}"),
        Criterion(f"distance, {condition}", words, bound, Rule.AT_MOST),
    )


def standing(criteria: pd.DataFrame) -> pd.DataFrame:
    """The arms as the rule of `plan.md` ranks them: those that keep brain size within each sex and
    prompt fidelity first, the nearest first: arm, distance, run_distance, size_F, size_M,
    size_distance, fidelity_loss, cost, kept. What has no row is not a number.
    """
    evaluators = (NAMES["anatomy"], NAMES["heldout"], "attribute classifier", "counter")
    rows = criteria[criteria.evaluator.isin(evaluators) & ~criteria.arm.isin([UNTUNED, *TARGETS])]
    wide = rows.pivot_table("estimate", "arm", "metric_id")
    losses = wide[[each.metric_id for each in FIDELITY_LOSSES.values()]]
    wide["fidelity_loss"] = losses.max(axis=1, skipna=False)
    small = wide[["size_F", "size_M"]].abs().max(axis=1, skipna=False) <= SIZES["F"].upper
    wide["kept"] = small & (wide.fidelity_loss <= FIDELITY_LOSSES["grade"].bound)
    wide = wide.sort_values(["kept", "distance"], ascending=[False, True]).reset_index()
    columns = "arm distance run_distance size_F size_M size_distance fidelity_loss cost kept"
    return wide.reindex(columns=columns.split())


def numbers(criteria: pd.DataFrame, readings: pd.DataFrame) -> dict[str, float]:
    """The numbers that prose quotes, by name: <metric>_<arm>_<evaluator>, its interval with _low
    and _high; of a contrast also closer_<arm>, in points; images_<arm> and seeds_<arm>. What is not
    finite is left out.
    """
    found: dict[str, float] = {}
    keys = KEYS | {name: column for column, name in NAMES.items()}
    for row in criteria.itertuples():
        name = "_".join([row.metric_id, row.arm, keys.get(row.evaluator, "")]).replace("-", "_")
        ends = Interval(row.estimate, row.low, row.high).columns(name.rstrip("_"))
        if row.metric_id.removeprefix("contrast_") in LABELS:
            points = Interval(-100 * row.estimate, -100 * row.high, -100 * row.low)
            ends |= points.columns(row.metric_id.replace("contrast", "closer").replace("-", "_"))
        found |= {key: float(value) for key, value in ends.items() if np.isfinite(value)}
    for arm, part in readings.groupby("arm"):
        key = str(arm).replace("-", "_")
        found |= {f"images_{key}": len(part), f"seeds_{key}": part.seed.nunique()}
    return found


def labelled(table: pd.DataFrame, readings: pd.DataFrame | None = None) -> pd.DataFrame:
    """`table` with column `arm` in words for readers, in the order of `LABELS`; with `readings`,
    the words say how many seeds an arm has.
    """
    seeds = {} if readings is None else readings.groupby("arm").seed.nunique().to_dict()
    words = {arm: f" ({n} seed{'s' * (n > 1)})" for arm, n in seeds.items()}
    order = {arm: place for place, arm in enumerate(LABELS)}
    ordered = table.loc[table.arm.map(order).fillna(len(order)).sort_values(kind="stable").index]
    return ordered.assign(
        arm=ordered.arm.map(lambda arm: LABELS.get(arm, arm) + words.get(arm, ""))
    )


# ---- the choice of rates and strengths


def choices(readings: pd.DataFrame, cosine: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """What `plan.md` chooses from a sweep whose arms are called method@setting: a row each with the
    corrected share by the selection classifier, its distance to the target, the CLIP cosine (of
    chosen noises there is none) and whether it is the one.

    known: the selection classifier's readings of the primary calibration set.
    """
    rates = class_accuracies(known.selection > 0.5, known.sex == "F")
    similar = cosine.set_index("arm").cosine
    rows = []
    for arm, part in readings[readings.arm.str.contains("@")].groupby("arm", sort=False):
        method, setting = str(arm).split("@")
        share = float(rogan_gladen((part.selection > 0.5).mean(), *rates)[0])
        rows.append((method, float(setting), share, abs(share - TARGET), similar.get(arm)))
    columns = ["method", "setting", "share", "distance", "cosine"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["method", "setting"])
    allowed = table[table.method.str.startswith("choose") | (table.cosine >= COSINE)]
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


def across(criteria: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric in words, a row an arm and a column an evaluator: estimate and interval, in
    percent.
    """
    rows = criteria[criteria.metric_id == metric]
    words = [
        f"{100 * row.estimate:.1f} ({100 * row.low:.1f} to {100 * row.high:.1f})"
        for row in rows.itertuples()
    ]
    wide = rows.assign(words=words).pivot(index="arm", columns="evaluator", values="words")
    order = list(dict.fromkeys(rows.arm)), list(dict.fromkeys(rows.evaluator))
    return wide.loc[order[0], order[1]].reset_index().rename_axis(columns=None)
