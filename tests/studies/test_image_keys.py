"""Pictures of real people are part of what a stage depends on, by names, sizes and times: none is
opened to make a key.
"""

import os
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from studies.engine.manifest import files_digest, write_manifest
from studies.heart import HeartStudy, control, generation
from studies.heart import cohorts as hearts

TABLE = pd.DataFrame({"subject": ["one", "two"]})


def of_hearts(place):
    return hearts._real(HeartStudy(cohort="mnms", data_dir=str(place)), "test")


@pytest.mark.parametrize(
    ("module", "cohort", "file", "key"),
    [
        (
            hearts,
            SimpleNamespace(table=TABLE, split=lambda *_, **__: {"test": TABLE}),
            "Testing/A/A_sa.nii.gz",
            of_hearts,
        ),
    ],
    ids=["hearts"],
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


@pytest.mark.parametrize("source", ["unseen", "flipped-sex"])
def test_readings_of_generated_hearts_depend_on_the_images_and_on_the_masks(
    source, tmp_path, monkeypatch
):
    def key(image, mask):
        (tmp_path / "hearts.safetensors").write_bytes(image)
        write_manifest(tmp_path, {}, 0.0)
        masks = torch.full((1, 2, 4, 4), mask, dtype=torch.uint8)
        monkeypatch.setattr(generation, "_asked", lambda study, source: (source, None, masks, 0))
        generation.made_digest.cache_clear()
        return tuple(control._key(HeartStudy(), source))

    monkeypatch.setattr(generation, "draw", lambda *_: tmp_path)
    assert len({key(b"image", 0), key(b"other", 0), key(b"image", 1)}) == 3
    assert key(b"image", 0) == key(b"image", 0)
