"""The subjects of the heart study: the generator's training set, and those it never saw, part by
part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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
from fairlib.models.segmenter import frames_of
from fairlib.settings import digest
from studies.engine import runs_folder
from studies.engine.recipe import training_people
from studies.engine.stage import Artifact, Progress, stage
from studies.engine.study import Source
from studies.heart.phantom import draw_hearts
from studies.heart.rules import PhantomSettings
from studies.heart.settings import HeartSettings, part_settings

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
    row each. Of generated hearts, masks and table are those that were requested.
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
        table = self.table.iloc[rows.numpy()].reset_index(drop=True)
        return Hearts(self.images[rows], table, self.masks[rows])

    def first(self, count: int) -> Hearts:
        """The first `count` hearts, or all where there are fewer."""
        return self.take(range(min(count, len(self))))


def read_hearts(folder: Path) -> Hearts:
    """What a stage has written: `hearts.safetensors` (images and masks uint8 [N, 2, H, W]) and
    `hearts.csv`.
    """
    found = read_tensors(folder / "hearts.safetensors")
    return Hearts(
        stack(to_images(found["images"])), read_rows(folder / "hearts.csv"), found["masks"]
    )


def read_rows(path: Path) -> pd.DataFrame:
    """A table written beside tensors; a word such as NA stays a word."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def write_hearts(path: Path, images: Tensor, masks: Tensor, table: pd.DataFrame) -> None:
    """Write ED and ES of images [N, 3, H, W] as bytes, with their masks, and `table` beside."""
    write_bytes(path.with_suffix(".csv"), table.to_csv(index=False).encode())
    write_tensors(path, {"images": to_bytes(frames_of(images)), "masks": masks})


def write_in_blocks(
    out: Path,
    progress: Progress,
    count: int,
    size: int,
    label: str,
    draw: Callable[[range], tuple[Tensor, Tensor, pd.DataFrame]],
) -> None:
    """Write `count` hearts for `read_hearts`, `size` at a time; blocks of an interrupted attempt
    are kept.
    """
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    paths = [out / "working" / f"{number:04d}.safetensors" for number in range(len(blocks))]
    pairs = zip(blocks, paths, strict=True)
    for block, path in progress.track(pairs, len(blocks), label):
        if not path.is_file():
            write_hearts(path, *draw(block))
    found = [read_tensors(path) for path in paths]
    whole = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    write_tensors(out / "hearts.safetensors", whole)
    table = pd.concat([pd.read_csv(path.with_suffix(".csv")) for path in paths], ignore_index=True)
    write_bytes(out / "hearts.csv", table.to_csv(index=False).encode())


@stage(load=read_hearts, verify=False)
def draw_part(out: Path, progress: Progress, part: str, settings: PhantomSettings) -> None:
    """Draw the subjects of a part of the phantom cohort; they are named after their part."""

    def draw(block: range) -> tuple[Tensor, Tensor, pd.DataFrame]:
        images, masks, table = draw_hearts(settings, block)
        return images, masks, table.assign(subject=[f"{part}-{index:05d}" for index in block])

    label = f"synthetic hearts, {part}"
    write_in_blocks(out, progress, settings.subjects, BLOCK, label, draw)


@stage(load=read_hearts, verify=False)
def read_part(
    out: Path,
    progress: Progress,
    cohort: Artifact[Cohort],
    part: str,
    fractions: dict[str, float],
    seed: int,
) -> None:
    """Read the images of a part of a real cohort, split by subject."""
    chosen = cohort.load().split(fractions, seed=seed, stratify=("sex", "diagnosis"))[part]
    progress.say(f"reading {len(chosen)} hearts, {part}")
    write_hearts(out / "hearts.safetensors", chosen.load(), chosen.load_masks(), chosen.table)


def trained_on(settings: HeartSettings) -> PhantomSettings:
    """Which subjects the generator was trained on, as its manifest says.

    Raises `WeightsError` when it does not say so.
    """
    return training_people(
        settings.weights,
        PhantomSettings,
        "hearts",
        "heart",
        "a comparison with real images of the same people needs them: use cohort 'mnms'",
    )


def part(settings: HeartSettings, name: str) -> Artifact[Hearts]:
    """The hearts of one part of the study (see `settings.part_settings`); drawn or read on first
    use. Raises `DataError` on a part that the cohort does not have.
    """
    return SOURCES[settings.cohort].read(settings)(name)


def mnms_cohort(settings: HeartSettings) -> Artifact[Cohort]:
    """The patients of M&Ms whose attributes are complete."""
    if not settings.data_dir:
        raise DataError("cohort 'mnms' needs data_dir, the folder that holds OpenDataset")
    root = Path(settings.data_dir)
    files = [*root.rglob("*_sa*.nii.gz"), *root.rglob("*.csv")]
    return Artifact.files(root, files, _read_mnms)


def left_out(settings: HeartSettings) -> pd.DataFrame:
    """The patients of a real cohort who are in no part: item (subject), reason, detail."""
    return report() if settings.cohort == "phantom" else mnms_cohort(settings).load().excluded


def _read_mnms(root: Path) -> Cohort:
    return read_mnms(root, cache_dir=runs_folder() / "slices" / "mnms").with_prompt()


def _phantom_part(settings: HeartSettings, name: str) -> Artifact[Hearts]:
    parts = part_settings(settings, trained_on(settings))
    return draw_part(name, parts[_known(name, parts)])


def _mnms_part(settings: HeartSettings, name: str) -> Artifact[Hearts]:
    cohort = mnms_cohort(settings)
    return read_part(cohort, _known(name, FRACTIONS), FRACTIONS, settings.split_seed)


def _known(name: str, parts: dict) -> str:
    if name not in parts:
        raise DataError(f"part {name!r}: this cohort has {', '.join(parts)} and no other subjects")
    return name


def _table_digest(table: pd.DataFrame) -> str:
    return digest(table.to_csv(index=False))


SOURCES: dict[str, Source[HeartSettings]] = {
    "phantom": Source(
        lambda settings: partial(_phantom_part, settings),
        lambda settings: _table_digest(part(settings, "train").load().table),
    ),
    "mnms": Source(
        lambda settings: partial(_mnms_part, settings),
        lambda settings: _table_digest(mnms_cohort(settings).load().table),
        "patients of M&Ms",
    ),
}
