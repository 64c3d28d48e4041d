"""How far the pictures of each race lie from real unseen pictures of that race: unbiased MMD at
equal numbers.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from fairlib.cohorts.attributes import ATTRIBUTES, RACES
from fairlib.io import write_bytes
from fairlib.measures.distances import mmd_draws
from fairlib.measures.intervals import Sample
from studies.engine.manifest import content_digest
from studies.engine.stage import run_stage
from studies.fundus.cohorts import fundi
from studies.fundus.judges import features, readings_folder
from studies.fundus.settings import FundusStudy

STRATA = (*ATTRIBUTES, "glaucoma")
LEAST = 8  # pictures of a race; below it, a distance says nothing


def times(table: pd.DataFrame, replicates: int, seed: int) -> np.ndarray:
    """How often each person is in each bootstrap draw, [1 + replicates, N]; the first row is
    everybody once.

    People are drawn within race, sex, ethnicity and glaucoma. The same for all arms and seeds, so
    draws of two are paired.
    """
    strata = table[list(STRATA)].astype(str).agg(", ".join, axis=1)
    sample, rng = Sample(np.arange(len(table)), strata=strata), np.random.default_rng([71, seed])
    drawn = [np.bincount(sample.rows(rng), minlength=len(table)) for _ in range(replicates)]
    return np.stack([np.ones(len(table), int), *drawn]).astype(np.float32)


def race_distances(study: FundusStudy, arm: str, seed: int) -> pd.DataFrame:
    """MMD of each race [1 + replicates rows: as observed, then one a bootstrap draw of both real
    and generated people].

    Columns: the races. Features are the reader's, standardised by the reference people.
    """
    inputs = [
        content_digest(readings_folder(study, arm, seed)),
        content_digest(readings_folder(study, "reference")),
    ]

    def build(out, progress) -> None:
        progress.say(f"distances of {arm}, seed {seed}")
        write_bytes(
            out / "distances.csv", _table(study, arm, seed).round(6).to_csv(index=False).encode()
        )

    folder = run_stage(
        None, "fundus-distances", {"replicates": study.replicates}, inputs, build, verify=False
    )
    return pd.read_csv(folder / "distances.csv")


def _table(study: FundusStudy, arm: str, seed: int) -> pd.DataFrame:
    asked, reference = fundi(study, "asked").table, fundi(study, "reference").table
    made, real = features(study, arm, seed), features(study, "reference")
    of_asked, of_real = times(asked, study.replicates, 0), times(reference, study.replicates, 1)
    found = {}
    for race in RACES:
        mine, theirs = (
            np.flatnonzero((table["race"] == race).to_numpy()) for table in (asked, reference)
        )
        theirs = theirs[: len(mine)]
        found[race] = mmd_draws(
            made[mine], real[theirs], of_asked[:, mine], of_real[:, theirs], n_min=LEAST
        )
    return pd.DataFrame(found)
