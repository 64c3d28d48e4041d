"""The people of the fundus study: whom the generator was trained on, and everybody it never saw,
part by part.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.cohorts.attributes import RACES, group_codes
from fairlib.cohorts.cohort import Cohort
from fairlib.cohorts.fairgenmed import FOLDERS, USES, read_fairgenmed
from fairlib.errors import DataError
from fairlib.io import read_tensors, to_bytes, to_images, write_bytes, write_tensors
from fairlib.methods.downstream import ImageTable
from fairlib.settings import digest
from studies.engine.manifest import content_digest, files_digest, training_people
from studies.engine.stage import run_stage
from studies.fundus.phantom import FundusSettings, draw_fundus
from studies.fundus.settings import (
    PART_SEEDS,
    FundusStudy,
    check_people,
    even_settings,
    part_people,
)

BLOCK = 300  # fundi drawn between two saves


class Fundi(ImageTable):
    """Pictures uint8 [N, 1, 128, 128] (0 is -1 and 255 is +1) and their table, one row each."""

    def take(self, rows) -> Fundi:
        """The fundi at these positions."""
        rows = torch.as_tensor(rows)
        return Fundi(self.images[rows], self.table.iloc[rows.numpy()].reset_index(drop=True))

    def pictures(self) -> Tensor:
        """float32 [N, 1, 128, 128] in [-1, 1]."""
        return to_images(self.images)

    def groups(self) -> np.ndarray:
        """Codes [N, 3] of race, sex and ethnicity."""
        return group_codes(self.table)


def trained_on(study: FundusStudy) -> FundusSettings:
    """Whom the generator was trained on, as its manifest says.

    Raises `WeightsError` when it does not say so.
    """
    return training_people(
        study.weights,
        FundusSettings,
        "fundi",
        "fundus",
        "fine-tuning goes on with them: use cohort 'fairgenmed'",
    )


def part_folder(study: FundusStudy, part: str) -> Path:
    """The stage folder of one part: `fundi.safetensors` (images uint8 [N, 1, H, W]) and
    `table.csv`.
    """
    known = ("train", *PART_SEEDS)
    if part not in known:
        raise DataError(f"unknown part {part!r}; known parts: {', '.join(known)}")
    if study.cohort == "fairgenmed":
        return _real(study, part)
    whole = trained_on(study)
    check_people(whole, study)
    count = (study.train_people or whole.subjects) if part == "train" else part_people(study)[part]
    people = (
        replace(whole, subjects=count)
        if part == "train"
        else {"even": PART_SEEDS[part], "subjects": count}
    )
    return run_stage(
        None,
        f"fundi-{part}",
        people,
        [],
        lambda out, progress: _draw(out, whole, part, count, progress),
        verify=False,
    )


@lru_cache(maxsize=8)
def fundi(study: FundusStudy, part: str) -> Fundi:
    """The people of one part: "train", or one of `settings.part_people`; drawn or read on first
    use.

    Columns of the table: those of the cohort (see `cohorts.fairgenmed`), a phantom's `cdr` among
    them.
    """
    folder = part_folder(study, part)
    table = pd.read_csv(folder / "table.csv", keep_default_na=False, na_values=[""])
    return Fundi(read_tensors(folder / "fundi.safetensors")["images"], table)


def part_digest(study: FundusStudy, part: str) -> str:
    """What a stage that reads a part depends on."""
    return content_digest(part_folder(study, part))


def table_digest(study: FundusStudy) -> str:
    """Who is in the cohort, and what is known of them; of a synthetic one, whom the generator was
    trained on.
    """
    real = study.cohort == "fairgenmed"
    tables = (
        [part.table for part in _cohort(study).values()] if real else [fundi(study, "train").table]
    )
    return digest([table.to_csv(index=False) for table in tables])


def _draw(out: Path, whole: FundusSettings, part: str, count: int, progress) -> None:
    """Draw the people of a part, block by block, each kept as it is done.

    Subjects are named after their part.
    """
    blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    paths = [out / "working" / f"{number:04d}.safetensors" for number in range(len(blocks))]
    for block, path in progress.track(
        zip(blocks, paths, strict=True), len(blocks), f"synthetic fundi, {part}"
    ):
        if path.is_file():
            continue
        drawn = [
            draw_fundus(whole if part == "train" else even_settings(PART_SEEDS[part], index), index)
            for index in block
        ]
        table = pd.DataFrame(
            [
                {**one.row, "subject": f"{part}-{index:05d}"}
                for one, index in zip(drawn, block, strict=True)
            ]
        )
        write_bytes(path.with_suffix(".csv"), table.to_csv(index=False).encode())
        write_tensors(
            path, {"images": torch.stack([to_bytes(torch.from_numpy(one.image)) for one in drawn])}
        )
    join(out, paths, "fundi")


def join(out: Path, paths: list[Path], name: str) -> None:
    """Put blocks (`images` in safetensors, and a CSV beside each where there is one) together in
    `out`.
    """
    write_tensors(
        out / f"{name}.safetensors",
        {"images": torch.cat([read_tensors(path)["images"] for path in paths])},
    )
    tables = [
        pd.read_csv(path.with_suffix(".csv"))
        for path in paths
        if path.with_suffix(".csv").is_file()
    ]
    if tables:
        write_bytes(
            out / "table.csv", pd.concat(tables, ignore_index=True).to_csv(index=False).encode()
        )


@lru_cache(maxsize=2)
def _cohort(study: FundusStudy) -> dict[str, Cohort]:
    if not study.data_dir:
        raise DataError(
            "cohort 'fairgenmed' needs data_dir, the folder that holds data_summary.csv"
        )
    return read_fairgenmed(study.data_dir).with_prompt().parts()


def _real(study: FundusStudy, part: str) -> Path:
    use = {"train": USES[0], "judges": USES[1], "probe": USES[1]}.get(part, USES[2])
    if use not in _cohort(study):
        raise DataError(
            f"{study.data_dir}: nobody with a prompt has use {use!r}; the study needs "
            f"{', '.join(USES)}"
        )
    whole = _cohort(study)[use]
    rows = real_rows(whole.table, study, part)

    def build(out: Path, progress) -> None:
        progress.say(f"reading {len(rows)} fundi, {part}")
        write_tensors(out / "fundi.safetensors", {"images": to_bytes(whole.load(rows))})
        write_bytes(out / "table.csv", whole.table.iloc[rows].to_csv(index=False).encode())

    folder = Path(study.data_dir) / FOLDERS[use]
    inputs = [
        digest(whole.table.to_csv(index=False)),
        files_digest([*folder.glob("*.npz"), *folder.glob("*.jpg")]),
    ]
    return run_stage(
        None, f"fairgenmed-{part}", {"rows": rows.tolist()}, inputs, build, verify=False
    )


def real_rows(table: pd.DataFrame, study: FundusStudy, part: str) -> np.ndarray:
    """Which rows of the release's own part a part of the study takes.

    "train": all of training (or the first `train_people`). Of validation a fifth of each race for
    the probe, the rest for the judges. Of test one half of each race is asked for and the other is
    the reference, cut to equal numbers of every race. Raises `DataError` when a race is missing.
    """
    if part == "train":
        return np.arange(len(table))[: study.train_people or None]
    rng = np.random.default_rng([study.split_seed, 41])
    races = {
        race: rng.permutation(np.flatnonzero((table["race"] == race).to_numpy())) for race in RACES
    }
    share = 5 if part in ("judges", "probe") else 2
    edges = {race: max(1, len(rows) // share) for race, rows in races.items()}
    second = part in ("judges", "reference")
    chosen = [
        rows[edges[race] :] if second else rows[: edges[race]] for race, rows in races.items()
    ]
    missing = [race for race, rows in zip(races, chosen, strict=True) if not len(rows)]
    if missing:
        raise DataError(
            f"part {part!r}: nobody left of race {', '.join(missing)} among {len(table)} people; "
            "give more data"
        )
    if part in ("asked", "reference"):
        each = min(part_people(study)[part] // len(RACES), *map(len, chosen))
        chosen = [rows[:each] for rows in chosen]
    return np.sort(np.concatenate(chosen))
