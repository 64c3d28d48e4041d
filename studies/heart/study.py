"""The heart study as data for the engine: `python -m studies heart` makes `results/heart`.

Beside it lie a half of it each: `--classifier-subjects 150` makes `results/heart-shared`, the
downstream tables alone; `--guidance-scale 2` makes `results/heart-guidance2`, the tables on the
hearts alone. What a half has in common with the main study is its stages.

    hearts.csv.gz       requests and readings, one row a heart (generated, or real and unseen)
    dice.csv            requested and segmented masks, per subgroup
    geometry.csv        measured geometry against the generative rules
    recovered.csv       whether the requested subject is in the image
    flips.csv           prompt or mask
    distances.csv       to real hearts, with the floor
    frechet.csv, memorisation.csv
    cost.csv            denoiser evaluations of each set of generated hearts, by kind
    too_few.csv         what those lack for want of subjects
    excluded.csv        subjects of a real cohort who are in no part
    segmented.csv       Dice of the re-segmenter on real hearts (ACDC, which states neither sex nor
                        age, so that it has no other table)
    subjects.csv.gz     who was tested
    margins.csv.gz      every answer of every arm and seed
    values.csv, differences.csv     the downstream tables
    small_groups.csv    subgroups with too few subjects for them
    study.json          settings, inputs, commit, packages, device
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from studies.engine.criteria import criteria_table
from studies.engine.stage import Artifact, as_is
from studies.engine.study import Study, Table, Tables, load_results, settings_of
from studies.heart.arms import (
    ARMS,
    FLIPPED,
    WAYS,
    comparable,
    default_arms,
    generated,
    margins_of,
    subjects_of,
    summary,
    tested,
)
from studies.heart.data import SOURCES, HeartSettings, left_out
from studies.heart.evaluators import EVALUATORS
from studies.heart.measures import segmented, tables_on_hearts
from studies.heart.report import criteria

CONTROL = ("dice", "geometry", "recovered", "flips")
REALISM = ("distances", "frechet", "too_few", "memorisation")


def cost(settings: HeartSettings) -> pd.DataFrame:
    """Denoiser evaluations of each set of generated hearts, two a step of guided sampling: hearts
    (way of requesting, or word of the prompt that is flipped), kind, forward, backward.
    """
    a_heart = settings.sampling_steps * (1 if settings.guidance_scale == 1 else 2)
    counts = {name: len(generated(settings, name).load()) for name in (*WAYS, *FLIPPED)}
    rows = [(name, "sampling", count * a_heart, 0) for name, count in counts.items()]
    return pd.DataFrame(rows, columns=["hearts", "kind", "forward", "backward"])


def _on_hearts(name: str, compressed: bool = False) -> Table[HeartSettings]:
    """A table on generated hearts; with settings that have none of them, no table."""

    def when(settings: HeartSettings) -> bool:
        return settings.draws_hearts and (name != "geometry" or settings.cohort == "phantom")

    return Table(lambda settings: tables_on_hearts(settings)[name], "study", compressed, when)


def _downstream(make: Callable, per: str = "summary", compressed: bool = False) -> Table:
    """A table of the downstream test; with settings that train no classifier, no table."""
    return Table(make, per, compressed, lambda settings: settings.trains_classifiers)


STUDY = Study(
    "heart",
    HeartSettings,
    ARMS,
    tables={
        "excluded": Table(left_out, "study", when=lambda settings: settings.cohort != "phantom"),
        "segmented": Table(segmented, "study", when=lambda settings: settings.cohort == "acdc"),
        "hearts": _on_hearts("hearts", compressed=True),
        **{name: _on_hearts(name) for name in (*CONTROL, *REALISM)},
        "cost": Table(cost, "study", when=lambda settings: settings.draws_hearts),
        "subjects": _downstream(subjects_of, "study", compressed=True),
        "margins": _downstream(margins_of, "run", compressed=True),
        "small_groups": _downstream(
            lambda tables, settings: comparable(tested(tables), settings.n_min)[1]
        ),
        "values": _downstream(summary),
        "differences": _downstream(lambda tables, settings: summary(tables, settings, "real")),
    },
    sources=SOURCES,
    criteria=criteria,
    evaluators=EVALUATORS,
    bases={
        "weights": lambda settings: Artifact.weights(settings.weights, as_is),
        "controlnet": lambda settings: Artifact.weights(settings.controlnet, as_is),
    },
    default_arms=default_arms,
    seeds=tuple(range(1, 9)),
    folder=lambda settings: settings.name,
)


def long_runs() -> dict[str, tuple[HeartSettings, Tables]]:
    """The committed runs on synthetic hearts, by folder: settings and tables. The main study comes
    first, then the small hospital, then other guidance scales; empty where none was made.
    """
    main = STUDY.results()
    scales = sorted(main.parent.glob(f"{main.name}-guidance*"))
    return {
        folder.name: (settings_of(STUDY, folder), load_results(STUDY, folder))
        for folder in (main, main.parent / f"{main.name}-shared", *scales)
        if (folder / "study.json").is_file()
    }


def heart_report() -> pd.DataFrame:
    """The criteria of every long run, columns `studies.engine.criteria.COLUMNS`."""
    runs = long_runs().values()
    return criteria_table([row for settings, tables in runs for row in criteria(tables, settings)])
