"""The cohorts of the study: written once if synthetic, always read by the reader of the real
layout.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from fairlib.cohorts.brats import find_subjects, read_brats
from fairlib.cohorts.cohort import Cohort
from fairlib.cohorts.roco import read_roco
from fairlib.settings import digest
from studies.brain.phantom import BrainSettings, write_brats
from studies.brain.radiology import RadiologySettings, write_roco
from studies.brain.settings import Study
from studies.engine.manifest import content_digest, files_digest
from studies.engine.places import runs_folder
from studies.engine.reach import code_digest
from studies.engine.stage import run_stage

# guide: the classifier that tuning follows; auditor: the one it never sees, the oracle's fit and
# the target's quantiles;
# test: sensitivity, specificity, and everything that generated images are compared with.
FRACTIONS = {"guide": 0.30, "auditor": 0.25, "test": 0.45}


@lru_cache(maxsize=4)
def brain_cohort(study: Study) -> Cohort:
    """The target cohort: every slice, subjects without a known sex included."""
    root = _root(study)
    cache = runs_folder() / "slices" / root.name
    return read_brats(root, cache_dir=cache)


def table_digest(study: Study) -> str:
    """Who is in the cohort, and what is known of them."""
    return digest(brain_cohort(study).table.to_csv(index=False))


def cohort_digest(study: Study) -> list[str]:
    """What a stage that reads the cohort depends on: its table, its volumes (not opened), the code
    that reads them, the split.
    """
    root = _root(study)
    if study.cohort == "brats":
        volumes = files_digest(
            path for subject in find_subjects(root) for path in subject.files.values()
        )
    else:
        volumes = content_digest(root.parent)
    return [table_digest(study), volumes, code_digest(brain_cohort), str(study.split_seed)]


def _root(study: Study) -> Path:
    return Path(study.data_dir) if study.cohort == "brats" else _phantom(study)


def _phantom(study: Study) -> Path:
    settings = BrainSettings(multiple=study.subjects, effect=study.effect, seed=study.cohort_seed)
    folder = run_stage(
        None,
        "phantom-brats",
        settings,
        [],
        lambda out, progress: _write_brats(out, settings, progress),
        verify=False,
    )
    return folder / "brats"


def _write_brats(out: Path, settings: BrainSettings, progress) -> None:
    work = out / "working" / "brats"
    write_brats(work, settings, lambda rows: progress.track(rows, len(rows), "synthetic subjects"))
    work.rename(out / "brats")


def training_cohort(study: Study, seed: int = RadiologySettings.seed) -> Cohort:
    """A ROCO-shaped sample; with the default seed, the first slices that the generator was trained
    on.
    """
    settings = RadiologySettings(
        slices=study.radiology, validation=0, effect=study.effect, seed=seed
    )
    folder = run_stage(
        None,
        "phantom-roco",
        settings,
        [],
        lambda out, progress: write_roco(
            out / "roco", settings, lambda rows: progress.track(rows, len(rows), "synthetic slices")
        ),
        verify=False,
    )
    return read_roco(folder / "roco")


def splits(study: Study) -> dict[str, Cohort]:
    """Subjects with a known sex, split by subject into `FRACTIONS`."""
    return brain_cohort(study).with_known_sex().split(FRACTIONS, seed=study.split_seed)


def target_share(study: Study, target: str = "marginal") -> dict[str, float]:
    """The female share asked of each prompt group (grade), counted in subjects of the whole cohort.

    "marginal": the cohort's share for every prompt; "conditional": each grade its own.
    """
    people = brain_cohort(study).with_known_sex().by_subject(("sex", "grade"))
    overall = float((people.sex == "F").mean())
    if target == "marginal":
        return {"HGG": overall, "LGG": overall}
    return {grade: float((rows.sex == "F").mean()) for grade, rows in people.groupby("grade")}
