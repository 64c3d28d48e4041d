"""The patients of the fundus study: those the generator was trained on, and the others, part by
part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.cohorts.cohort import Cohort
from fairlib.cohorts.fairgenmed import FOLDERS, USES, read_fairgenmed
from fairlib.cohorts.tables import RACES, group_codes
from fairlib.errors import DataError, SettingsError
from fairlib.io import read_tensors, to_bytes, to_images, write_bytes, write_tensors
from fairlib.settings import digest, unknown_key
from studies.engine.recipe import training_people
from studies.engine.stage import Artifact, Progress, stage
from studies.fundus.phantom import draw_fundus, patient_of, row_of, use_of
from studies.fundus.rules import PhantomSettings
from studies.fundus.settings import FundusSettings

BLOCK = 300  # fundi drawn between two saves


@dataclass(frozen=True, eq=False)
class Fundi:
    """Images and their table, one row each; `stored`: uint8 [N, 1, 128, 128] (0 is -1, 255 is
    +1).
    """

    stored: Tensor
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    @property
    def images(self) -> Tensor:
        """float32 [N, 1, 128, 128] in [-1, 1]."""
        return to_images(self.stored)

    def first(self, count: int) -> Fundi:
        """At most `count` of them."""
        return Fundi(self.stored[:count], self.table.iloc[:count])

    def groups(self) -> np.ndarray:
        """Codes [N, 3] of race, sex and ethnicity."""
        return group_codes(self.table)


@dataclass(frozen=True)
class Part:
    """One part of the patients; none is in two parts.

    use: the release's own part that it is taken from. seed: of the phantom's patients; None, those
    the generator was trained on. share: each race is cut at one `share`-th of it; rest: the part is
    what comes after the cut. even: groups of equal size (real patients: races alone).
    """

    use: str
    seed: int | None = None
    share: int = 1
    rest: bool = False
    even: bool = False


PARTS = {
    "train": Part(USES[0]),
    "evaluators": Part(USES[1], 311, share=5, rest=True),
    "probe": Part(USES[1], 312, share=5),
    "requested": Part(USES[2], 313, share=2, even=True),
    "reference": Part(USES[2], 314, share=2, rest=True, even=True),
}
"""evaluators: classifiers of real images are fitted on them. probe: see `FundusSettings`.
requested: their prompts are requested, and their real images are the floor of every measure.
reference: real unseen patients.
"""


def people(settings: FundusSettings, part: str) -> Artifact[Fundi]:
    """The patients of one of `PARTS`, drawn or read on first use.

    Columns of the table: those of the cohort (see `cohorts.fairgenmed`), a phantom's `cdr` among
    them. Raises `DataError` on an unknown part.
    """
    if part not in PARTS:
        raise DataError(unknown_key(part, list(PARTS), "the parts of the fundus study"))
    counts = {
        "train": settings.train_people,
        "evaluators": max(settings.evaluator_people, settings.images),
        "probe": settings.probe_people,
        "requested": settings.images,
        "reference": settings.reference_people,
    }
    return SOURCES[settings.cohort](settings, part, counts[part])


def cohort_digest(settings: FundusSettings) -> str:
    """Which patients are in the cohort, and what is known of them; of a synthetic one, those the
    generator was trained on.
    """
    if settings.cohort == "fairgenmed":
        table = _release(settings).load().table
    else:
        table = rows_of("train", each_settings(_training_people(settings), even=False))
    return digest(table.round(4).to_csv(index=False))


def read_fundi(folder: Path) -> Fundi:
    """Read a folder of `write_fundi`; a word such as NA stays a word."""
    table = pd.read_csv(folder / "table.csv", keep_default_na=False, na_values=[""])
    return Fundi(read_tensors(folder / "images.safetensors")["images"], table)


def write_fundi(folder: Path, stored: Tensor, table: pd.DataFrame) -> None:
    """Write images as bytes and their table."""
    write_tensors(folder / "images.safetensors", {"images": stored})
    write_bytes(folder / "table.csv", table.to_csv(index=False).encode())


def in_blocks(
    out: Path,
    progress: Progress,
    count: int,
    size: int,
    label: str,
    make: Callable[[range], Tensor],
) -> Tensor:
    """Make `count` images, `size` at a time, each block kept in the working folder as it is done:
    uint8 [count, 1, H, W].

    make: rows -> images in [-1, 1].
    """
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    paths = [out / "working" / f"{block.start:06d}.safetensors" for block in blocks]
    for block, path in progress.track(zip(blocks, paths, strict=True), len(blocks), label):
        if not path.is_file():
            write_tensors(path, {"images": to_bytes(make(block))})
    return torch.cat([read_tensors(path)["images"] for path in paths])


# ---- synthetic patients


def trained_on(settings: FundusSettings) -> PhantomSettings:
    """The patients that the generator was trained on, as its manifest says.

    Raises `WeightsError` when it does not say so.
    """
    otherwise = "fine-tuning goes on with them: use cohort 'fairgenmed'"
    return training_people(settings.weights, PhantomSettings, "fundi", "fundus", otherwise)


def even_settings(settings: PhantomSettings, index: int) -> PhantomSettings:
    """Shares that leave patient number `index` of an even part no choice of race, sex, ethnicity
    and glaucoma.

    Every 24 patients in a row hold each combination once, so groups are of one size.
    """
    race = RACES[index % 3]
    return replace(
        settings,
        white=float(race == "White"),
        black=float(race == "Black"),
        female=float(index // 3 % 2),
        hispanic=float(index // 6 % 2),
        glaucoma=float(index // 12 % 2),
    )


def each_settings(drawn: PhantomSettings, even: bool) -> list[PhantomSettings]:
    """The settings that each patient of a part is drawn with."""
    return [even_settings(drawn, i) if even else drawn for i in range(drawn.subjects)]


def rows_of(part: str, each: list[PhantomSettings]) -> pd.DataFrame:
    """The table of a part, without drawing an eye; subjects are named after their part."""
    patients = [patient_of(one, i)[1] for i, one in enumerate(each)]
    rows = [row_of(one, f"{part}-{i:05d}", use_of(i)) for i, one in enumerate(patients)]
    return pd.DataFrame(rows)


@stage(load=read_fundi, verify=False)
def draw_people(
    out: Path, progress: Progress, part: str, drawn: PhantomSettings, even: bool
) -> None:
    """Draw `drawn.subjects` patients, block by block."""
    each = each_settings(drawn, even)

    def make(block: range) -> Tensor:
        return torch.from_numpy(np.stack([draw_fundus(each[i], i).image for i in block]))

    label = f"synthetic fundi, {part}"
    stored = in_blocks(out, progress, drawn.subjects, BLOCK, label, make)
    write_fundi(out, stored, rows_of(part, each))


def check_people(whole: PhantomSettings, settings: FundusSettings) -> None:
    """Raise `SettingsError` when a part would draw the generator's training patients `whole`, or
    more of them are wanted than there are.
    """
    same = [name for name, part in PARTS.items() if part.seed == whole.seed]
    if same:
        raise SettingsError(
            f"the generator was trained on patients of seed {whole.seed}, which part {same[0]!r} "
            "draws too; train it with another seed"
        )
    if settings.train_people > whole.subjects:
        raise SettingsError(
            f"train_people {settings.train_people}: the generator was trained on "
            f"{whole.subjects}; 0 takes all"
        )


def _training_people(settings: FundusSettings) -> PhantomSettings:
    whole = trained_on(settings)
    check_people(whole, settings)
    return replace(whole, subjects=settings.train_people or whole.subjects)


def _synthetic(settings: FundusSettings, part: str, count: int) -> Artifact[Fundi]:
    train, seed = _training_people(settings), PARTS[part].seed
    if seed is None:
        return draw_people(part, train, False)
    return draw_people(part, PhantomSettings(subjects=count, seed=seed), True)


# ---- real patients


def read_release(folder: Path) -> Cohort:
    """FairGenMed's patients that have a prompt."""
    return read_fairgenmed(folder).with_prompt()


@stage(load=read_fundi, verify=False)
def read_people(
    out: Path,
    progress: Progress,
    release: Artifact[Cohort],
    part: Part,
    split_seed: int,
    count: int,
) -> None:
    """Read the images of one part of a release; `count`: the most patients of a part (0: all)."""
    parts = release.load().parts()
    if part.use not in parts:
        raise DataError(
            f"{release.folder}: no patient with a prompt has use {part.use!r}; the study needs "
            f"{', '.join(USES)}"
        )
    whole = parts[part.use]
    rows = real_rows(whole.table, part, split_seed, count)
    progress.say(f"reading {len(rows)} fundi of use {part.use}")
    write_fundi(out, to_bytes(whole.load(rows)), whole.table.iloc[rows])


def real_rows(table: pd.DataFrame, part: Part, split_seed: int, count: int) -> np.ndarray:
    """Which rows of the release's own part a part of the study takes.

    "train": all of training (or the first `count`). Of validation a fifth of each race for the
    probe, the rest for the evaluators. Of test one half of each race is requested and the other is
    the reference, cut to equal numbers of every race. Raises `DataError` when a race is missing.
    """
    if part.share == 1:
        return np.arange(len(table))[: count or None]
    rng = np.random.default_rng([split_seed, 41])
    races = [rng.permutation(np.flatnonzero((table["race"] == race).to_numpy())) for race in RACES]
    edges = [max(1, len(rows) // part.share) for rows in races]
    chosen = [
        rows[edge:] if part.rest else rows[:edge] for rows, edge in zip(races, edges, strict=True)
    ]
    missing = [race for race, rows in zip(RACES, chosen, strict=True) if not len(rows)]
    if missing:
        raise DataError(
            f"no patient left of race {', '.join(missing)} among {len(table)}; give more data"
        )
    each = min(count // len(RACES), *map(len, chosen)) if part.even else None
    return np.sort(np.concatenate([rows[:each] for rows in chosen]))


def _release(settings: FundusSettings) -> Artifact[Cohort]:
    """The release under `data_dir`, known by names, sizes and times of its files."""
    if not settings.data_dir:
        raise DataError(
            "cohort 'fairgenmed' needs data_dir, the folder that holds data_summary.csv"
        )
    root = Path(settings.data_dir)
    files = [
        *root.glob("*.csv"),
        *(file for use in FOLDERS.values() for file in (root / use).glob("*.*")),
    ]
    return Artifact.files(root, files, read_release)


def _real(settings: FundusSettings, part: str, count: int) -> Artifact[Fundi]:
    return read_people(_release(settings), PARTS[part], settings.split_seed, count)


SOURCES = {"phantom": _synthetic, "fairgenmed": _real}
