"""Pictures of real people are part of what a stage depends on, by names, sizes and times: none is
opened to make a key.
"""

import os
from types import SimpleNamespace

import pandas as pd
import pytest

from studies.engine.manifest import files_digest
from studies.fundus import FundusStudy
from studies.fundus import cohorts as fundi

TABLE = pd.DataFrame({"subject": ["one", "two"]})


def of_fundi(place):
    return fundi._real(FundusStudy(cohort="fairgenmed", data_dir=str(place)), "train")


@pytest.mark.parametrize(
    ("module", "cohort", "file", "key"),
    [
        (fundi, {"training": SimpleNamespace(table=TABLE)}, "Training/data_00001.npz", of_fundi),
    ],
    ids=["fundi"],
)
def test_a_picture_that_was_changed_gives_another_key(
    module, cohort, file, key, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_cohort", lambda study: cohort)
    monkeypatch.setattr(
        module, "run_stage", lambda root, name, settings, inputs, build, verify: inputs
    )
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a picture")
    before = key(tmp_path)
    assert key(tmp_path) == before
    os.utime(path, ns=(1, 1))
    later = key(tmp_path)
    path.write_bytes(b"another picture")
    os.utime(path, ns=(1, 1))
    assert len({*map(str, (before, later, key(tmp_path)))}) == 3
    assert before[0] == later[0], "the table is the same"


def test_files_are_told_apart_by_name_size_and_time_in_any_order(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_bytes(b"x")
        os.utime(path, ns=(1, 1))
    assert files_digest([one, two]) == files_digest([two, one]) != files_digest([one, one])
