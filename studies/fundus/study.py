"""The fundus study as data for the engine: `python -m studies fundus` makes `results/fundus`, and
with `--cohort ham10000` or another real cohort `results/fundus-ham10000` and the like.

subjects.csv.gz     requested and reference patients, one row each, with the ratio that the words
                    of the prompt stand for
readings.csv.gz     one row an image: arm, seed, image, what was requested, what attribute
                    classifier and (of fundus images) cup measurement read, and what a
                    classifier trained on real patients says
answers.csv.gz      one row a reference patient: what a classifier trained on an arm's images
                    says
distances.csv.gz    MMD of each race (HAM10000: of each sex), as observed (draw 0) and in every
                    bootstrap draw
history.csv.gz      each step of every fine-tuning; probe.csv.gz: losses of the finished
                    denoisers on the held-out probe
cost.csv            denoiser evaluations of each arm, by kind
values.csv, differences.csv, excluded.csv: follow from the others alone
study.json          settings, commit, packages, device, arms and seeds
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from studies.engine.study import Run, Study, Table, Tables
from studies.fundus import measures
from studies.fundus.arms import ARMS, TUNINGS, fundus_generator, shown, tuned
from studies.fundus.data import BASE, EVERYONE, REAL, SOURCES, FundusSettings, subjects
from studies.fundus.evaluators import (
    answer,
    attribute_classifier,
    measure_cdr,
    read_images,
    task_classifier,
)
from studies.fundus.measures import PART_NAMES, Figures, Subjects, race_distances
from studies.fundus.phantom import requested_ratios
from studies.fundus.report import criteria


def readings(run: Run[FundusSettings]) -> pd.DataFrame:
    """What was requested, what evaluators find in each image, and what a classifier trained on real
    patients says of it.
    """
    settings, images, words = run.settings, run.artifact, run.settings.vocabulary
    requested = subjects(settings, "requested").load().table[list(dict(words.stated))]
    classifier = task_classifier(settings, subjects(settings, "evaluators"), run.seed)
    read = read_images(images, attribute_classifier(settings)).load().table
    said = answer(classifier, images).load()
    table = pd.concat([requested.reset_index(drop=True), read, said], axis=1)
    return table.assign(image=range(len(table)))


def answers(run: Run[FundusSettings]) -> pd.DataFrame:
    """What a classifier trained on an arm's images says of the reference patients."""
    classifier = task_classifier(run.settings, run.artifact, run.seed)
    table = answer(classifier, subjects(run.settings, "reference")).load()
    return table.assign(subject=range(len(table)))


def distances(run: Run[FundusSettings]) -> pd.DataFrame:
    """Distances of an arm's images to real ones of the same race, or first attribute."""
    settings, classifier = run.settings, attribute_classifier(run.settings)
    words = settings.vocabulary
    requested, reference = (subjects(settings, part) for part in ("requested", "reference"))
    tables = (one.load().table[list(words.strata)] for one in (requested, reference))
    both = (read_images(images, classifier) for images in (run.artifact, reference))
    table = race_distances(*both, *tables, settings.replicates, words).load()
    return table.assign(draw=range(len(table)))


def probe(run: Run[FundusSettings]) -> pd.DataFrame:
    """Losses of the finished, averaged denoiser on the probe; see `arms.probe_row`."""
    return pd.read_csv(tuned(run.settings, run.name, run.seed).load() / "probe.csv")


def history(run: Run[FundusSettings]) -> pd.DataFrame:
    """Every step of a fine-tuning; see `arms.log_row`."""
    return pd.read_csv(tuned(run.settings, run.name, run.seed).load() / "history.csv")


def cost(run: Run[FundusSettings]) -> pd.DataFrame:
    """Denoiser evaluations of one arm in images, two a step of guided sampling: kind, forward,
    backward.
    """
    settings = run.settings
    an_image = settings.sampling_steps * (1 if settings.guidance_scale == 1 else 2)
    rows = [("sampling", settings.images * an_image, 0)]
    if run.name in TUNINGS:
        trained, given = settings.steps * settings.batch_size, shown(settings)
        probe = given.probe(np.zeros(len(given.held_out.load()), int))
        measured = 1 + history(run)["probe_loss"].count()  # the averaged denoiser's comes last
        rows.append(("fine-tuning", trained, trained))
        rows.append(("probe", measured * len(probe.latents) * probe.times, 0))
    return pd.DataFrame(rows, columns=["kind", "forward", "backward"])


def subjects_table(settings: FundusSettings) -> pd.DataFrame:
    """Requested and reference patients: part, subject (position), attributes, and `requested_cdr`
    where the cohort has rules that say what words mean in numbers.
    """
    parts, stated = [], list(dict(settings.vocabulary.stated))
    for part in PART_NAMES:
        table = subjects(settings, part).load().table[stated].reset_index(drop=True)
        ratios = requested_ratios(table) if settings.cohort == "phantom" else np.nan
        parts.append(table.assign(part=part, subject=range(len(table)), requested_cdr=ratios))
    return pd.concat(parts, ignore_index=True)


def all_figures(tables: Tables, settings: FundusSettings) -> dict[tuple[str, int], Figures]:
    """The figures of every arm and seed in the tables."""
    parts: dict[str, dict] = {}
    for name in ("readings", "answers", "distances"):
        runs = tables[name].groupby(["arm", "seed"], sort=False)
        parts[name] = {run: rows.reset_index(drop=True) for run, rows in runs}
    by_run, counts = {}, (settings.replicates, settings.n_min, settings.vocabulary)
    for arm, seed in parts["readings"]:
        rows = {name: part[arm, seed] for name, part in parts.items()}
        rows["real"] = None if arm == REAL else parts["readings"].get((REAL, seed))
        by_run[arm, seed] = measures.figures(tables["subjects"], rows, *counts).load()
    return by_run


def values(tables: Tables, settings: FundusSettings) -> pd.DataFrame:
    """Means over seeds of every figure and arm."""
    return measures.values_table(all_figures(tables, settings))


def differences(tables: Tables, settings: FundusSettings) -> pd.DataFrame:
    """Paired differences of arms over seeds."""
    return measures.differences_table(all_figures(tables, settings))


def excluded(tables: Tables, settings: FundusSettings) -> pd.DataFrame:
    """Groups that are too small for an AUC."""
    drawn = Subjects.drawn(tables["subjects"], 1, settings.n_min, settings.vocabulary)
    return measures.excluded(drawn)


STUDY: Study[FundusSettings] = Study(
    "fundus",
    FundusSettings,
    ARMS,
    tables={
        "subjects": Table(subjects_table, "study", compressed=True),
        "readings": Table(readings, compressed=True),
        "answers": Table(answers, compressed=True),
        "distances": Table(distances, compressed=True),
        "probe": Table(probe, compressed=True, arms=lambda arm: arm != REAL),
        "history": Table(history, compressed=True, arms=lambda arm: arm in TUNINGS),
        "cost": Table(cost, arms=lambda arm: arm != REAL),
        "values": Table(values, "summary"),
        "differences": Table(differences, "summary"),
        "excluded": Table(excluded, "summary"),
    },
    sources=SOURCES,
    criteria=criteria,
    evaluators={
        "anatomical measurement": measure_cdr,
        "attribute classifier": attribute_classifier,
    },
    bases={"weights": fundus_generator, "everyone": partial(fundus_generator, arm=EVERYONE)},
    references=lambda settings: (REAL, BASE, *([EVERYONE] if settings.everyone else [])),
    default_arms=lambda settings: tuple(TUNINGS),
    folder=lambda one: "fundus" if one.cohort == "phantom" else f"fundus-{one.cohort}",
)
