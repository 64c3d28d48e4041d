"""What generated hearts are: whether the control holds, whether they look real, and whether they
are new.

Not the loss: what evaluators read in the generated images, compared with what was requested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from fairlib.errors import DataError
from fairlib.io import write_bytes
from fairlib.measures.dice import SUBJECTS_MIN, Reference, dice, dice_table, each_group, pooled_mean
from fairlib.measures.distances import blurred, frechet_by_n, memorisation, subgroup_distances
from fairlib.measures.intervals import Sample, bootstrap, interval
from fairlib.models.autoencoder import encode
from fairlib.models.classifier import Classifier, predict
from fairlib.models.controlnet import ControlledGenerator
from fairlib.rng import numpy_rng
from studies.engine import StudyStream, accelerator
from studies.engine.stage import Artifact, Progress, stage
from studies.engine.study import read_table
from studies.heart.arms import (
    FLIPPED,
    OTHER,
    WAYS,
    WORDS,
    Weights,
    generated,
    load_generator,
    readings,
    weights_of,
)
from studies.heart.data import Hearts, HeartSettings, part
from studies.heart.evaluators import EVALUATORS, UNITS, Readings, evaluate, fitted
from studies.heart.phantom import expected_geometry

SUBGROUPS = ("sex", "age", "bmi_class", "diagnosis", "sex, diagnosis", "bmi_class, diagnosis")
# kg/m2 that stand for a class requested
BMI_STEP = {"underweight": 17.0, "normal": 22.0, "overweight": 27.5, "obese": 33.0}
# The subgroups between which the paper's code compares distances.
PAIRS = {
    "sex": ("F", "M"),
    "bmi_class": ("normal", "obese"),
    "decade": ("50s", "70s"),
    "diagnosis": ("healthy", "heart failure"),
}
# of the sets between which a Frechet distance is taken; above the 64 features
SIZES = (80, 125, 250, 500, 1000, 2000)
KEPT = ["sex", "age", "bmi", "height", "decade", "bmi_class", "diagnosis", "subject"]
THROUGH = "through the autoencoder"
UNSTATED = "other or unknown"  # of a diagnosis or a class that a cohort does not give
Rng, Names = np.random.Generator, tuple[str, ...]
Rules = Callable[..., dict[str, float]]  # attributes -> expected geometry


# ---- the control


def subgroups(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Labels of every subgroup attribute in `SUBGROUPS`: [N] each. Ages below 50 are one group:
    single decades among them have too few subjects. What a cohort does not state cuts nothing.
    """
    if "decade" in table:
        young = table["decade"].isin(["10s", "20s", "30s", "40s"])
        table = table.assign(age=table["decade"].where(~young, "below 50"))
    known = [name for name in SUBGROUPS if set(name.split(", ")) <= set(table)]
    parts = {name: table[name.split(", ")].fillna(UNSTATED).astype(str) for name in known}
    return {name: part.agg(", ".join, axis=1).to_numpy(object) for name, part in parts.items()}


def dice_of(read: Readings, real: Readings, rng: Rng, replicates: int = 500) -> pd.DataFrame:
    """Dice of the mask requested and the mask segmented in the image, for every subgroup, beside
    the re-segmenter's own on held-out hearts of that subgroup (columns of
    `measures.dice.dice_table`).
    """
    owners, subjects = (one.table["subject"].to_numpy(str) for one in (real, read))
    reference = Reference(dice(real.requested, real.segmented), owners, subgroups(real.table))
    groups = subgroups(read.table)
    return dice_table(read.requested, read.segmented, groups, subjects, rng, reference, replicates)


def segmented(settings: HeartSettings) -> pd.DataFrame:
    """Dice of the re-segmenter on real hearts that it was not fitted on, for the subgroups that the
    cohort states (columns of `measures.dice.dice_table`).
    """
    only = {"segmenter": (fitted(settings, "segmenter"), EVALUATORS["segmenter"].read)}
    read = evaluate(part(settings, "test"), None, only).load()
    rng, subjects = numpy_rng(settings.split_seed, StudyStream.PATIENTS), read.table["subject"]
    given = (subgroups(read.table), subjects.to_numpy(str), rng)
    return dice_table(read.requested, read.segmented, *given, replicates=settings.replicates)


def geometry_of(
    read: Readings, real: Readings, rng: Rng, replicates: int, rules: Rules
) -> pd.DataFrame:
    """Measured geometry less what the generative rules give for the subject requested, per
    subgroup, beside the same for real hearts (columns of `attribute_truth`).
    """
    columns = {f"measured_{name}": name for name in UNITS}
    own, other = (
        (one.table[list(columns)].rename(columns=columns), one.table) for one in (read, real)
    )
    return attribute_truth(*own, rules, rng, real=other, replicates=replicates)


def recovered(
    given: pd.DataFrame, real: pd.DataFrame, rng: Rng, replicates: int = 500
) -> pd.DataFrame:
    """How well evaluators read the requested subject in generated hearts, how well in real ones,
    and the ratio: one row an attribute, with 95 % intervals by subject.

    given, real: tables of `Readings`. diagnosis, sex: mean of the two classes' accuracies. age,
    bmi: how much the reading moves (years, kg/m2) for each unit that is requested, where what is
    requested is the decade or class of the prompt; a slope does not depend on the mix of subjects.
    Columns: attribute, statistic, generated, generated_low, generated_high, real, ratio, ratio_low,
    ratio_high, n.
    """
    rows = []
    for attribute in WORDS:
        statistic, measure = ("accuracy", _accuracy) if attribute in OTHER else ("slope", _slope)
        samples = [
            Sample(*_pair(table, attribute), clusters=table["subject"].to_numpy(str))
            for table in (given, real)
        ]
        values = [float(measure(*sample.arrays)) for sample in samples]
        draws = [bootstrap(measure, [sample], rng, replicates) for sample in samples]
        own = interval(values[0], draws[0], strict=False)
        ratio = interval(float(_share(*values)), _share(*draws), strict=False)
        row = {"attribute": attribute, "statistic": statistic, **own.columns("generated")}
        rows.append({**row, "real": values[1], **ratio.columns("ratio"), "n": len(given)})
    return pd.DataFrame(rows)


def prompt_or_mask(
    original: pd.DataFrame,
    turned: dict[str, pd.DataFrame],
    real: pd.DataFrame,
    rng: Rng,
    replicates: int = 500,
) -> pd.DataFrame:
    """Whether the prompt or the mask rules where they contradict each other: one row a word of the
    prompt that was turned, same mask and noise.

    original, real: tables of `Readings`; turned: of hearts drawn again, by the word turned.
    `moved`: how far the reading went toward the new word, as a share of how far it goes between
    real hearts of the two kinds: 0 where the mask alone decides, 1 where the prompt does. Columns:
    word, before, after (mean reading in the direction of the new word), moved, low, high, n. For
    diagnosis and sex readings are shares, for age years, for bmi kg/m2.

    book/cardiac.md, Eq. (eq-heart-moved).
    """
    rows = []
    for word, again in turned.items():
        first = original.iloc[: len(again)]
        (was, before), (becomes, after) = _pair(first, word), _pair(again, word)
        toward = np.sign(becomes - was)
        gone = (after - before) * toward
        full = abs(_slope(*_pair(real, word))) * np.abs(becomes - was)
        sample = Sample(gone, full, clusters=first["subject"].to_numpy(str))
        draws = bootstrap(lambda a, b: _share(a.mean(), b.mean()), [sample], rng, replicates)
        moved = interval(float(_share(gone.mean(), full.mean())), draws, strict=False)
        means = ((reading * toward).mean() for reading in (before, after))
        rows.append([word, *means, moved.estimate, moved.low, moved.high, len(again)])
    return pd.DataFrame(rows, columns=["word", "before", "after", "moved", "low", "high", "n"])


def lowest_dice(table: pd.DataFrame, subjects: int = 5) -> tuple[str, pd.Series, pd.Series]:
    """The subgroup with the lowest Dice (its name and row), and the row with the greatest loss
    against real hearts.

    Subgroups of fewer than `subjects` subjects are passed over: they have no interval. Raises
    `DataError` where there is no other.
    """
    steady = table[(table["subjects"] >= subjects) & table["difference"].notna()]
    if steady.empty:
        raise DataError(f"no subgroup has {subjects} subjects; generate more hearts")
    row = steady.loc[steady["mean"].idxmin()]
    return f"{row['attribute']}: {row['group']}", row, steady.loc[steady["difference"].idxmin()]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where the whole is zero: an evaluator that reads the same in every heart
    finds nothing.
    """
    whole = np.asarray(whole, float)
    return np.where(whole != 0, part / np.where(whole != 0, whole, 1), np.nan)


def _pair(table: pd.DataFrame, attribute: str) -> tuple[np.ndarray, np.ndarray]:
    """What was requested and what was read, both numbers."""
    requested, read = {
        "diagnosis": lambda: (table["diagnosis"] == "heart failure", table["read_ill"]),
        "sex": lambda: (table["sex"] == "F", table["read_female"] > 0),
        "age": lambda: (table["decade"].str[:-1].astype(float) + 5, table["read_age"]),
        "bmi": lambda: (table["bmi_class"].map(BMI_STEP), table["read_bmi"]),
    }[attribute]()
    return requested.to_numpy(float), read.to_numpy(float)


def _accuracy(requested: np.ndarray, read: np.ndarray) -> float:
    """The mean of both classes' accuracies; NaN when one is not there."""
    if requested.min() == requested.max():
        return np.nan
    return float((read[requested == 1].mean() + 1 - read[requested == 0].mean()) / 2)


def _slope(requested: np.ndarray, read: np.ndarray) -> float:
    spread = requested - requested.mean()
    total = (spread**2).sum()
    return float((spread * (read - read.mean())).sum() / total) if total else np.nan


# ---- realism and memorisation


def standardised(reader: Classifier, reference: Hearts, hearts: Hearts) -> np.ndarray:
    """The reader's features [N, 64], in standard deviations of the reference subjects'."""
    features = predict(reader, reference.images).features.numpy()
    centre, spread = features.mean(0), features.std(0).clip(1e-3)
    return (predict(reader, hearts.images).features.numpy() - centre) / spread


def distances_of(
    reader: Classifier, real: Hearts, given: Hearts, rng: Rng
) -> tuple[pd.DataFrame, dict[str, str]]:
    """MMD between every real and every generated subgroup at equal numbers, with the floor of real
    against other real subjects.

    given: way "unseen", so that their masks and prompts are those of real subjects and the mix is
    the same; real: the part "reference", none of whose masks was ever requested. Columns of
    `measures.distances.subgroup_distances` and `attribute`; and a reason for each attribute that
    has too few subjects to be compared.
    """
    x, y = standardised(reader, real, real), standardised(reader, real, given)
    tables, left_out = [], {}
    for attribute, pair in PAIRS.items():
        mine, theirs = (hearts.table[attribute].isin(pair).to_numpy() for hearts in (real, given))
        one, other = real.table[mine].astype(str), given.table[theirs].astype(str)
        labels = one[attribute].to_numpy(), other[attribute].to_numpy()
        subjects = one["subject"].to_numpy(), other["subject"].to_numpy()
        try:
            table = subgroup_distances(x[mine], y[theirs], *labels, rng, *subjects)
        except DataError as error:
            left_out[attribute] = str(error)
        else:
            tables.append(table.assign(attribute=attribute))
    columns = ["attribute", "real_group", "synthetic_group", "distance", "low", "high"]
    columns += ["floor", "floor_low", "floor_high", "between", "n"]
    found = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    return found[columns], left_out


def frechet_floor(reader: Classifier, reference: Hearts, test: Hearts, rng: Rng) -> pd.DataFrame:
    """The Frechet distance of two sets of n real test subjects, whose true distance is zero: why
    one from few images cannot be compared with another at a different n. Columns of
    `measures.distances.frechet_by_n`.

    Fewer subjects than two sets of the least of `SIZES` are halved, and halved again: the distance
    then says no more than that. Raises `DataError` below four.
    """
    half = len(test) // 2
    possible = [n for n in SIZES if n <= half] or [n for n in (half // 2, half) if n > 1]
    if not possible:
        raise DataError(f"{len(test)} test subjects do not give two sets of two; draw more")
    return frechet_by_n(standardised(reader, reference, test), possible, rng)


def too_few(left_out: dict[str, str], frechet: pd.DataFrame) -> pd.DataFrame:
    """What the tables of `distances_of` (its second answer) and `frechet_floor` lack for want of
    subjects: table, item, reason.
    """
    rows = [("distances", attribute, reason) for attribute, reason in left_out.items()]
    if frechet["n"].max() < min(SIZES):
        what = f"the test subjects do not give two sets of {min(SIZES)}; instead of {list(SIZES)}"
        instead = f"the sets have {frechet['n'].tolist()}, where covariances lack rank"
        rows.append(("frechet", "n", f"{what} {instead}"))
    return pd.DataFrame(rows, columns=["table", "item", "reason"])


def memorisation_of(
    generator: ControlledGenerator,
    train: Hearts,
    heldout: Hearts,
    unseen: Hearts,
    copied: Hearts,
    rng: Rng,
    replicates: int = 500,
) -> pd.DataFrame:
    """Whether generated hearts are nearer to the training hearts than real unseen subjects are.

    Compared in pairs: an image made under the mask and prompt of a subject the generator never saw
    (`unseen`), with that very subject's own image (`heldout`); as it is, and as the generator's
    autoencoder gives it back, because smoother images lie nearer to everything. Copies are compared
    as well, their own mask's subject left out of the training hearts. One row a way, reading ("as
    taken" or `THROUGH`) and quantile: share of generated images nearer to a training heart than
    that quantile of the real ones, low, high, median_ratio with its ends, n.
    """
    owners = heldout.first(len(unseen))
    real = {"as taken": owners.images, THROUGH: restored(generator, owners.images)}
    quantiles = (0.01, 0.05) if len(owners) >= 100 else (0.1,)
    own = {
        "synthetic_subjects": copied.table["subject"].to_numpy(str),
        "training_subjects": train.table["subject"].to_numpy(str),
    }
    training, rows = coarse(train.images), []
    for way, given, subjects in (("unseen", unseen, {}), ("copies", copied, own)):
        for reading, images in real.items():
            sets = coarse(given.images), coarse(images), training
            found = memorisation(*sets, rng, quantiles, replicates=replicates, **subjects)
            about = found.median_ratio.columns("ratio") | {"n": len(given)}
            for row in found.shares.to_dict("records"):
                rows.append({"way": way, "reading": reading, **row, **about})
    return pd.DataFrame(rows).rename(columns={"ratio": "median_ratio"})


def coarse(images: Tensor) -> np.ndarray:
    """ED and ES of images [N, 3, H, W], slightly blurred, at half the grid: [N, 2, H/2, W/2], for
    distances between images.
    """
    return F.avg_pool2d(torch.from_numpy(blurred(images[:, :2])), 2).numpy()


@torch.no_grad()
def restored(generator: ControlledGenerator, images: Tensor, batch_size: int = 50) -> Tensor:
    """Images [N, 3, H, W] as the generator's autoencoder gives them back."""
    vae, device = generator.pipeline.vae, generator.device
    latents = encode(vae, images, batch_size).split(batch_size)
    parts = [vae.decode(part.to(device)).sample for part in latents]
    return torch.cat(parts).clamp(-1, 1).cpu()


# ---- the tables on generated hearts


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """What the stage `measure` has written."""
    return {path.stem: read_table(path) for path in sorted(folder.glob("*.csv"))}


@stage(load=read_tables)
def measure(
    out: Path,
    progress: Progress,
    read: dict[str, Artifact[Readings]],
    hearts: dict[str, Artifact[Hearts]],
    reader: Artifact[Classifier],
    weights: Weights,
    images: int,
    replicates: int,
    rules: Rules | None,
) -> None:
    """Write every table on the generated hearts themselves.

    read: every way, every flip and "heldout"; hearts: "train", "heldout", "reference", "test", and
    the ways "unseen" and "copies", of which the first `images` count; rules: of geometry, None
    where there are none.
    """
    progress.say(f"measuring {images} hearts of each way")
    found = {name: artifact.load() for name, artifact in read.items()}
    given = {name: artifact.load() for name, artifact in hearts.items()}
    reference, unseen = given["reference"], given["unseen"]
    network = reader.load().to(accelerator())
    # one random number generator for all tables, in this order
    rng, real = np.random.default_rng(61), found["heldout"]

    def by_way(make: Callable[[Readings], pd.DataFrame]) -> pd.DataFrame:
        return pd.concat([make(found[way]).assign(way=way) for way in WAYS], ignore_index=True)

    rows = [_kept(one.table).assign(hearts=name) for name, one in found.items()]
    tables = {"hearts": pd.concat(rows, ignore_index=True)}
    tables["dice"] = by_way(lambda one: dice_of(one, real, rng, replicates))
    if rules:
        tables["geometry"] = by_way(lambda one: geometry_of(one, real, rng, replicates, rules))
    tables["recovered"] = by_way(lambda one: recovered(one.table, real.table, rng, replicates))
    turned = {word: found[f"flipped-{word}"].table for word in WORDS}
    tables["flips"] = prompt_or_mask(found["unseen"].table, turned, real.table, rng, replicates)
    tables["distances"], left_out = distances_of(network, reference, unseen, rng)
    tables["frechet"] = frechet_floor(network, reference, given["test"], rng)
    tables["too_few"] = too_few(left_out, tables["frechet"])
    near = given["train"], given["heldout"], unseen, given["copies"].first(images)
    tables["memorisation"] = memorisation_of(load_generator(weights), *near, rng, replicates)
    for name, table in tables.items():
        write_bytes(out / f"{name}.csv", table.to_csv(index=False).encode())


def _kept(table: pd.DataFrame) -> pd.DataFrame:
    read = [name for name in table if name.startswith(("dice_", "measured_", "read_"))]
    return table[[*KEPT, *read]].round(3)


def tables_on_hearts(settings: HeartSettings) -> dict[str, pd.DataFrame]:
    """Every table on the generated hearts of a study, by name."""
    parts = ("train", "heldout", "reference", "test")
    return measure(
        {source: readings(settings, source) for source in (*WAYS, *FLIPPED, "heldout")},
        {name: part(settings, name) for name in parts}
        | {way: generated(settings, way) for way in ("unseen", "copies")},
        fitted(settings, "attributes"),
        weights_of(settings),
        settings.images,
        settings.replicates,
        expected_geometry if settings.cohort == "phantom" else None,
    ).load()


RULE_INPUTS = ("sex", "age", "bmi", "height", "diagnosis")


def attribute_truth(
    measured: pd.DataFrame,
    requested: pd.DataFrame,
    rules: Rules,
    rng: Rng,
    groups: Names = ("sex", "diagnosis"),
    real: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    inputs: Names = RULE_INPUTS,
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


def _groups(table: pd.DataFrame, groups: Names) -> Iterator[tuple[str, object, np.ndarray]]:
    return each_group({name: table[name] for name in groups}, len(table))


def _errors(
    measured: pd.DataFrame, requested: pd.DataFrame, rules: Rules, groups: Names, inputs: Names
) -> pd.DataFrame:
    """Columns: measured - expected by the rules' names, `expected/...`, and the subject."""
    absent = [name for name in (*inputs, "subject", *groups) if name not in requested]
    if absent or len(measured) != len(requested):
        raise DataError(
            f"{len(measured)} measured hearts and {len(requested)} rows of attributes (columns "
            f"missing: {absent}); give one row of attributes a heart, in the same order"
        )
    complete = requested[list(inputs)].notna().all(axis=1).to_numpy()
    if not complete.any():
        raise DataError(f"no heart has all of {', '.join(inputs)}; the rules give no expectation")
    attributes = requested.loc[complete, list(inputs)].to_dict("records")
    expected = pd.DataFrame([rules(**row) for row in attributes], index=np.flatnonzero(complete))
    names = [name for name in UNITS if name in expected]
    expected = expected.reindex(range(len(requested)))[names].astype(float)
    errors = measured.reset_index(drop=True)[names] - expected
    errors = errors.join(expected.add_prefix("expected/"))
    return errors.assign(subject=requested["subject"].to_numpy())


def _means(
    errors: pd.DataFrame, names: list[str], chosen: np.ndarray, rng: Rng, replicates: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """One row a measure (in part), and the bootstrap replicates of the differences [R, measures],
    NaN where there are too few subjects.
    """
    part = errors[chosen]
    values, draws = part[names].to_numpy(), np.full((replicates, len(names)), np.nan)
    defined = ~np.isnan(values)
    subjects = part["subject"].astype(str).to_numpy()
    counts = np.array([len(np.unique(subjects[rows])) for rows in defined.T])
    if max(counts) >= SUBJECTS_MIN:
        sample = Sample(np.where(defined, values, 0), defined.astype(float), clusters=subjects)
        draws = bootstrap(lambda *sums: pooled_mean(*sums, 0), [sample], rng, replicates)
        draws[:, counts < SUBJECTS_MIN] = np.nan
    difference = np.array([part[name].mean() for name in names])
    pairs = zip(names, defined.T, strict=True)
    expected = np.array([part.loc[rows, f"expected/{name}"].mean() for name, rows in pairs])
    table = pd.DataFrame({"measure": names, "unit": [UNITS[name] for name in names]})
    table = table.assign(images=len(part), subjects=counts, undefined=(~defined).sum(0))
    table = table.assign(expected=expected, measured=expected + difference, difference=difference)
    table[["low", "high"]] = _ends(difference, draws)
    return table, draws


def _ends(estimates: Iterable[float], draws: np.ndarray) -> np.ndarray:
    """The ends [measures, 2] of the intervals of measures, from their replicates [R, measures]."""
    found = map(partial(interval, strict=False), estimates, draws.T)
    return np.array([(each.low, each.high) for each in found])
