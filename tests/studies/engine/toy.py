"""A toy study for the engine: its arms count in steps of their own."""

import dataclasses
from pathlib import Path

import pandas as pd

from fairlib.io import read_json, write_json
from fairlib.measures.intervals import Interval
from studies.engine.criteria import Criterion, Rule
from studies.engine.stage import stage
from studies.engine.study import Arm, Source, Study, Table

CALLS = []


@dataclasses.dataclass(frozen=True)
class Settings:
    cohort: str = "numbers"
    data_dir: str = ""
    count: int = 3


def read(folder: Path) -> list:
    return read_json(folder / "values.json")


@stage(load=read)
def draw(out, progress, count: int, step: int, seed: int) -> None:
    CALLS.append((count, step, seed))
    write_json(out / "values.json", [seed + step * place for place in range(count)])


@stage(load=read)
def cohort(out, progress, count: int) -> None:
    write_json(out / "values.json", list(range(count)))


ARMS = {
    "base": Arm(lambda settings, seed: draw(settings.count, 0, seed), "does nothing", "nowhere"),
    "one": Arm(lambda settings, seed: draw(settings.count, 1, seed), "steps of one"),
    "two": Arm(lambda settings, seed: draw(settings.count, 2, seed), "steps of two"),
}


def readings(run):
    return pd.DataFrame({"value": run.artifact.load()})


def means(tables, settings):
    return tables["readings"].groupby("arm", sort=False)["value"].mean().reset_index()


MEAN = Criterion("mean", "mean value", 2.5, Rule.AT_LEAST)


def criteria(tables, settings):
    return [
        MEAN.row(row.arm, "eye", Interval(row.value, row.value, row.value), 1)
        for row in tables["means"].itertuples()
    ]


STUDY = Study(
    "toy",
    Settings,
    ARMS,
    tables={
        "readings": Table(readings, compressed=True),
        "people": Table(
            lambda settings: pd.DataFrame({"person": cohort(settings.count).load()}), "study"
        ),
        "means": Table(means, "summary"),
    },
    sources={"numbers": Source(lambda s: cohort(s.count), lambda s: cohort(s.count).digest)},
    criteria=criteria,
    references=lambda settings: ("base",),
    default_arms=lambda settings: ("one",),
    seeds=(1, 2),
)


def fails(settings, seed):
    raise ValueError(f"no images at seed {seed}")


GRID = dataclasses.replace(
    STUDY,
    arms={"one": ARMS["one"], "bad": Arm(fails, "fails")},
    references=lambda settings: (),
    default_arms=lambda settings: ("bad", "one"),
)
