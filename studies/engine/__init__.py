"""What the three studies share: stages whose results carry their identity, the loop over arms and
seeds, criteria, profiles; here, where things are: the repository, the folder of all that runs leave
behind, and the device that networks run on.
"""

from __future__ import annotations

import os
from enum import IntEnum, unique
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@unique
class StudyStream(IntEnum):
    """Random streams of the studies beside `fairlib.rng.Stream`, by its rules; counters in
    brackets. A synthetic subject has the stream of its own number.
    """

    NOT_SHOWN = 1  # behind a subject's number: what no image shows
    REAL_ROWS = 41  # fundus: which patients of a release are in which part; brain: real slices that
    # an arm is compared with, and bootstrap draws of both [seed]
    EVEN_ROWS = 43  # fundus: rows that the balanced arm draws batches from; brain: halves of images
    # with as many of each sex [split]
    SHUFFLED = 61  # brain: sexes of subjects, for the null that knows nothing of sex
    PATIENTS = 71  # fundus: bootstrap draws of patients [part], the same for all arms and seeds;
    # brain: images in a known share, and bootstrap draws of them and of subjects [repeat]


PACKAGE = Path(__file__).resolve().parents[1]


def repository() -> Path:
    """The root of the checkout this package lies in; the current folder when only the package was
    installed.
    """
    root = PACKAGE.parent
    return root if (root / "notebooks").is_dir() and (root / "profiles").is_dir() else Path.cwd()


def runs_folder() -> Path:
    """Where runs write: `$FAIRLIB_RUNS`, or `runs/` in the repository."""
    chosen = os.environ.get("FAIRLIB_RUNS")
    return Path(chosen).expanduser() if chosen else repository() / "runs"


def accelerator() -> torch.device:
    """Where networks run: `$FAIRLIB_DEVICE` (as "cpu" or "cuda:1"), or the first CUDA device, or
    the CPU.
    """
    import torch

    best = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(os.environ.get("FAIRLIB_DEVICE") or best)


def stages_folder() -> Path:
    """Where stages keep their results; shared by all profiles, since a stage is known by the hash
    of its settings.
    """
    return runs_folder() / "stages"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(jobs: int) -> dict[str, str]:
    """The environment of one of `jobs` processes at a time: this very project first on the path,
    and its part of the cores, since processes that each take all keep each other from working.
    """
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // jobs))} if jobs > 1 else {}
    return {**threads, **os.environ, "PYTHONPATH": path}
