"""The people of the heart study: the generator's training set, and everybody it never saw, part by
part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from fairlib.cohorts.cardiac import stack
from fairlib.cohorts.cohort import Cohort, report
from fairlib.cohorts.mnms import read_mnms
from fairlib.errors import DataError
from fairlib.io import read_tensors, to_bytes, to_images, write_bytes, write_tensors
from fairlib.methods.downstream import ImageTable
from fairlib.settings import digest
from studies.engine.manifest import content_digest, files_digest, training_people
from studies.engine.places import runs_folder
from studies.engine.stage import run_stage
from studies.heart.phantom import HeartSettings, draw_hearts
from studies.heart.settings import HeartStudy, part_settings

# Of the subjects of a real cohort; there is no `extra` among them. Of 300, as M&Ms may leave, 60
# are tested, and 24 lend masks.
FRACTIONS = {
    "train": 0.34,
    "judges": 0.12,
    "hold": 0.08,
    "reference": 0.08,
    "validation": 0.08,
    "choice": 0.10,
    "test": 0.20,
}
BLOCK = 250  # hearts drawn between two saves


@dataclass(frozen=True, eq=False)
class Hearts(ImageTable):
    """Images float32 [N, 3, 64, 64] (ED, ES, ED), masks uint8 [N, 2, 64, 64] and their table, one
    row each.
    """

    masks: Tensor = field(default=None, repr=False)

    def __post_init__(self):
        super().__post_init__()
        count = 0 if self.masks is None else len(self.masks)
        if count != len(self.images):
            raise DataError(f"{len(self.images)} images and {count} masks; give one for each")

    def take(self, rows) -> Hearts:
        """The hearts at these positions."""
        rows = torch.as_tensor(rows)
        return Hearts(
            self.images[rows],
            self.table.iloc[rows.numpy()].reset_index(drop=True),
            self.masks[rows],
        )


def trained_on(study: HeartStudy) -> HeartSettings:
    """Whom the generator was trained on, as its manifest says.

    Raises `WeightsError` when it does not say so.
    """
    return training_people(
        study.weights,
        HeartSettings,
        "hearts",
        "heart",
        "a comparison with real images of the same people needs them: use cohort 'mnms'",
    )


def part_folder(study: HeartStudy, part: str) -> Path:
    """The stage folder of one part: `hearts.safetensors` (images and masks uint8 [N, 2, H, W]) and
    `table.csv`.
    """
    if study.cohort == "mnms":
        return _real(study, part)
    parts = part_settings(study, trained_on(study))
    if part not in parts:
        raise DataError(f"unknown part {part!r}; known parts: {', '.join(parts)}")
    return run_stage(
        None,
        f"hearts-{part}",
        parts[part],
        [],
        lambda out, progress: _draw(out, parts[part], part, progress),
        verify=False,
    )


@lru_cache(maxsize=8)
def hearts(study: HeartStudy, part: str) -> Hearts:
    """The hearts of one part of the study (see `settings.part_settings`); drawn or read on first
    use.
    """
    folder = part_folder(study, part)
    found = read_tensors(folder / "hearts.safetensors")
    table = pd.read_csv(folder / "table.csv", keep_default_na=False, na_values=[""])
    return Hearts(stack(to_images(found["images"])), table, found["masks"])


def part_digest(study: HeartStudy, part: str) -> str:
    """What a stage that reads a part depends on."""
    return content_digest(part_folder(study, part))


def people_left_out(study: HeartStudy) -> pd.DataFrame:
    """The people of a real cohort who are in no part: item (subject), reason, detail. Nobody of the
    phantom.
    """
    return report() if study.cohort == "phantom" else _cohort(study).excluded


def table_digest(study: HeartStudy) -> str:
    """Who is in the cohort, and what is known of them; of a synthetic one, whom the generator was
    trained on.
    """
    table = _cohort(study).table if study.cohort == "mnms" else hearts(study, "train").table
    return digest(table.to_csv(index=False))


def age_class(table: pd.DataFrame) -> pd.Series:
    """ "below 50", or the decade: the twenties to forties are too few to be judged alone."""
    return table["decade"].where(~table["decade"].isin(["10s", "20s", "30s", "40s"]), "below 50")


def _draw(out: Path, settings: HeartSettings, part: str, progress) -> None:
    """Draw the people of a part, block by block, each kept as it is done.

    Subjects are named after their part.
    """
    blocks = [
        range(start, min(start + BLOCK, settings.subjects))
        for start in range(0, settings.subjects, BLOCK)
    ]
    for number, block in enumerate(
        progress.track(blocks, len(blocks), f"synthetic hearts, {part}")
    ):
        path = out / "working" / f"{number:04d}.safetensors"
        if not path.is_file():
            images, masks, table = draw_hearts(settings, block)
            table["subject"] = [f"{part}-{index:05d}" for index in block]
            write_bytes(path.with_suffix(".csv"), table.to_csv(index=False).encode())
            write_tensors(path, {"images": to_bytes(images[:, :2]), "masks": masks})
    _join(out, [out / "working" / f"{number:04d}.safetensors" for number in range(len(blocks))])


def _join(out: Path, paths: list[Path]) -> None:
    found = [read_tensors(path) for path in paths]
    write_tensors(
        out / "hearts.safetensors",
        {name: torch.cat([one[name] for one in found]) for name in found[0]},
    )
    table = pd.concat([pd.read_csv(path.with_suffix(".csv")) for path in paths], ignore_index=True)
    write_bytes(out / "table.csv", table.to_csv(index=False).encode())


@lru_cache(maxsize=2)
def _cohort(study: HeartStudy) -> Cohort:
    if not study.data_dir:
        raise DataError("cohort 'mnms' needs data_dir, the folder that holds OpenDataset")
    return read_mnms(study.data_dir, cache_dir=runs_folder() / "slices" / "mnms").with_prompt()


def _real(study: HeartStudy, part: str) -> Path:
    if part not in FRACTIONS:
        raise DataError(
            f"part {part!r}: a real cohort has {', '.join(FRACTIONS)} and no other people"
        )
    cohort = _cohort(study).split(FRACTIONS, seed=study.split_seed, stratify=("sex", "diagnosis"))[
        part
    ]

    def build(out: Path, progress) -> None:
        progress.say(f"reading {len(cohort)} hearts, {part}")
        write_tensors(
            out / "hearts.safetensors",
            {"images": to_bytes(cohort.load()[:, :2]), "masks": cohort.load_masks()},
        )
        write_bytes(out / "table.csv", cohort.table.to_csv(index=False).encode())

    inputs = [table_digest(study), files_digest(Path(study.data_dir).rglob("*_sa*.nii.gz"))]
    chosen = {"split_seed": study.split_seed, "fractions": FRACTIONS}
    return run_stage(None, f"mnms-{part}", chosen, inputs, build, verify=False)
