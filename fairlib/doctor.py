"""What a bug report needs, and what is most often missing: versions, device, memory, weights, and
data, of which the readers are asked.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fairlib.errors import FairlibError
from fairlib.io import MANIFEST, read_manifest

if TYPE_CHECKING:
    import torch

    from fairlib.cohorts.cohort import Cohort

PACKAGES = "torch numpy scipy scikit-learn pandas diffusers transformers open_clip_torch peft"
CAPTIONED = ("roco", "rocov2", "captions")  # of `READERS`, what a generator is trained on
SUBGROUPS = ("sex", "grade", "race", "ethnicity", "diagnosis", "finding")
NAMED = 20  # of those left out for one reason, so many are named; all of them in depth


class Reader(NamedTuple):
    """How the data of one cohort are read.

    module, read: the reader, which is called with the folder and `options`. survey: a function of
    the module that lists the same subjects without opening every scan, where the reader opens them.
    splits: values of the reader's `split`, of which any may be missing.
    """

    module: str
    read: str
    survey: str = ""
    options: Mapping[str, Any] = {}
    splits: tuple[str, ...] = ()

    def function(self, survey: bool = False) -> Callable[..., Cohort]:
        """The reader, or with `survey` the function that lists subjects, where there is one."""
        name = self.survey if survey and self.survey else self.read
        return getattr(import_module(f"fairlib.cohorts.{self.module}"), name)


READERS = {
    "brats": Reader("brats", "read_brats", "survey_brats", {"skip_faulty": True}),
    "roco": Reader("roco", "read_roco", splits=("train", "validation", "test")),
    "rocov2": Reader("roco", "read_rocov2", splits=("train", "valid", "test")),
    "captions": Reader("captions", "read_captions"),
    "mnms": Reader("mnms", "read_mnms", "survey_mnms", {"skip_faulty": True}),
    "acdc": Reader("acdc", "read_acdc", "survey_acdc", {"skip_faulty": True}),
    "fairgenmed": Reader("fairgenmed", "read_fairgenmed"),
    "ham10000": Reader("ham10000", "read_ham10000"),
    "chexpert": Reader("chexpert", "read_chexpert", options={"uncertain": "exclude"}),
}


def examine(
    weights: str | Path = "weights", data_dir: str = "", cohort: str = "brats", deep: bool = False
) -> tuple[list[str], bool]:
    """Lines about this machine, the folder `weights` and, if given, the data in `data_dir`; and
    whether all of it is well. `deep` as in `check_data`.
    """
    facts = {"device": device(), "cores": os.cpu_count(), "memory": memory(), "disk": disk()}
    facts = {**versions(), **facts, "platform": platform.platform(terse=True)}
    machine = [f"{name}: {value}" for name, value in facts.items()]
    lines, weights_well = check_weights(Path(weights).expanduser())
    data, data_well = check_data(data_dir, cohort, deep) if data_dir else ([], True)
    return machine + lines + data, weights_well and data_well


def check_weights(folder: Path) -> tuple[list[str], bool]:
    """One line for each folder of weights, its hashes recomputed."""
    manifests = sorted(folder.rglob(MANIFEST))
    if not manifests:
        return [f"weights: none in {folder}; `make base` trains them"], False
    lines, well = [], True
    for place in (path.parent for path in manifests):
        try:
            files = read_manifest(place)["files"]
            lines.append(f"weights: {place.name}: {len(files)} files, hashes match")
        except FairlibError as error:
            lines, well = [*lines, f"weights: {error}"], False
    return lines, well


def check_data(data_dir: str | Path, cohort: str, deep: bool = False) -> tuple[list[str], bool]:
    """What the reader of `cohort` makes of a folder, and whether it reads it.

    Parameters
    ----------
    data_dir
        The folder of the release, whole or in part.
    cohort
        A name in `READERS`.
    deep
        Whether every scan and every image is read to its last byte. By default tables, names,
        sizes and headers are checked, where the reader can do without more.

    Returns
    -------
    tuple
        Lines: the reader's refusal, counts by subgroup with 95 % Wilson intervals, who is left out
        and why; and whether the reader reads it (of several splits, the first that is there).
    """
    root, reader = Path(data_dir).expanduser(), READERS[cohort]
    if not root.is_dir():
        from fairlib.cohorts.listing import missing

        fault = missing(root, "no such folder", "give the folder of the release", root.name)
        return [f"data ({cohort}): {fault}"], False
    lines, verdicts = [], []
    there = [split for split in reader.splits if _holds(root, split)] or reader.splits[:1] or [""]
    for split in reader.splits or there:
        told, well = ["not there"], False
        if split in there:
            told, well = _examined(root, reader, split, deep)
            verdicts.append(well)
        lines += [f"data ({cohort}{', ' * bool(split)}{split}): {line}" for line in told]
    return lines, verdicts[0]


def _holds(root: Path, split: str) -> bool:
    """Whether anything in the folder, or in its folder `data`, is called by the name of a split."""
    return any(path.name.startswith(split) for one in (root, root / "data") if one.is_dir()
               for path in one.iterdir())  # fmt: skip


def _examined(root: Path, reader: Reader, split: str, deep: bool) -> tuple[list[str], bool]:
    """Lines about the data that one call of the reader returns, and whether it is well."""
    from fairlib.cohorts.listing import FAULTY, attempt

    options = {**reader.options, **({"split": split} if split else {})}
    try:
        cohort = reader.function(survey=not deep)(root, **options)
    except FairlibError as error:
        return [f"refused: {error}"], False
    lines = list(_counts(cohort))
    for title, table in (("left out", cohort.excluded), ("note", cohort.notes)):
        for reason, rows in table.groupby("reason", sort=False):
            lines.append(f"{title}: {reason}: {len(rows)}")
            shown = rows if deep else rows[:NAMED]
            lines.extend("  " + shown["item"] + ": " + shown["detail"])
            if len(shown) < len(rows):
                lines.append(f"  and {len(rows) - len(shown)} more (--deep names all)")
    broken: dict[str, FairlibError] = {}
    for key in cohort.table["image"] if deep else ():
        attempt(partial(cohort.read_image, key), broken, str(key))
    lines += [f"broken: {fault}" for fault in broken.values()]
    if broken or (cohort.excluded["reason"] == FAULTY).any():  # for whom the reader refuses all
        return [*lines, "not usable before the above is mended"], False
    partly = "no fault in tables, names, sizes and headers; --deep reads every byte"
    return [*lines, partly if reader.survey and not deep else "usable"], True


def _counts(cohort: Cohort) -> Iterator[str]:
    """Subjects, images, and the share of each subgroup among subjects."""
    from fairlib.measures.intervals import wilson

    table = cohort.table
    yield f"{table['subject'].nunique()} subjects, {len(table)} rows"
    for column in [name for name in SUBGROUPS if name in table]:
        people = table[["subject", column]].drop_duplicates()
        known = people[column].dropna()
        for value, count in known.value_counts().sort_index().items():
            low, high = (100 * float(end) for end in wilson(count, len(known)))
            share = f"{100 * count / len(known):.1f} % (95 % CI {low:.1f} to {high:.1f} %)"
            yield f"{column} {value}: {count} of {len(known)} subjects, {share}"
        if len(known) < len(people):
            yield f"{column} unknown: {len(people) - len(known)} subjects"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES.split():
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def device(where: str | torch.device = "") -> str:
    """The name of the GPU `where` (as "cuda:1"), or the machine type of the processor; by default
    of the best that there is.
    """
    import torch

    best = "mps" if torch.backends.mps.is_available() else "cpu"
    chosen = torch.device(where or ("cuda" if torch.cuda.is_available() else best))
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    if chosen.type == "mps":
        return "Apple GPU"
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def memory() -> str:
    """The memory of the machine, where the system tells."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{size / 2**30:.1f} GiB"


def disk() -> str:
    """The free space of the current folder."""
    place = Path.cwd()
    return f"{shutil.disk_usage(place).free / 2**30:.1f} GiB free at {place}"
