"""What the stages of the brain study depend on: a change of the cohort gives them another key, and
nothing else does.
"""

import dataclasses
import os
import shutil
import sys

import pytest

from fairlib.cohorts import brats
from fairlib.settings import to_dict
from studies import brain
from studies.brain import cohorts, judges
from studies.brain.phantom import BrainSettings, write_brats
from studies.engine.manifest import write_manifest
from studies.engine.reach import code_digest
from studies.engine.stage import stage_key

pytestmark = pytest.mark.slow
STAGES = {"judge-plain", "oracle", "slice-readings", "tuned-robust"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Four subjects in the real layout."""
    return write_brats(tmp_path_factory.mktemp("brats"), BrainSettings(multiple=0.02, unknown=0))


@pytest.fixture
def place(written, tmp_path, runs):
    return shutil.copytree(written, tmp_path / "brats")


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """study -> {stage: key} of the stages that read the cohort; none of them is built."""
    found = {}

    def keyed(root, name, settings, inputs, build, verify=True):
        parameters = to_dict(settings) if dataclasses.is_dataclass(settings) else settings
        kept = {"settings": parameters, "inputs": inputs}
        found[name] = stage_key(name, kept, code_digest(build))
        return tmp_path

    for module in ("judges", "study", "tuning"):
        monkeypatch.setattr(sys.modules[f"studies.brain.{module}"], "run_stage", keyed)
    (tmp_path / "slices.csv").write_text("subject\n")
    write_manifest(tmp_path / "weights", {}, 0.0)

    def of(**settings):
        study = brain.Study(
            weights=str(tmp_path / "weights"), clip=str(tmp_path / "weights"), **settings
        )
        cohorts.brain_cohort.cache_clear()  # as in another process
        judges.fit_judge(study, "plain", judges.classifier_settings(study)["plain"])
        judges._fit_oracle(study)
        brain.slice_readings(study, None, ["judges"])
        brain.tune_arm(study, None, ["judges"], "robust", 0)
        return dict(found)

    return of


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def differ(before, after):
    return {name for name in STAGES if before[name] != after[name]}


def test_a_corrected_table_gives_every_stage_another_key(place, keys):
    before = keys(cohort="brats", data_dir=str(place))
    assert set(before) == STAGES
    change(place / "clinical_patient_gbm.txt", "\tMALE", "\tFEMALE")
    assert differ(before, keys(cohort="brats", data_dir=str(place))) == STAGES


def test_another_volume_gives_judges_and_readings_another_key(place, keys):
    before = keys(cohort="brats", data_dir=str(place))
    scan = sorted(place.rglob("*_t1.nii.gz"))[0]
    os.utime(scan, ns=(1, 1))
    # that reads the judges
    assert differ(before, keys(cohort="brats", data_dir=str(place))) == STAGES - {"tuned-robust"}


def test_nothing_changed_keeps_every_key_and_opens_no_volume(place, keys, monkeypatch):
    before = keys(cohort="brats", data_dir=str(place))
    monkeypatch.setattr(brats, "read_volume", None)
    assert keys(cohort="brats", data_dir=str(place)) == before
    moved = shutil.copytree(place, place.with_name("moved") / "brats")
    assert keys(cohort="brats", data_dir=str(moved)) == before, (
        "the folder's name is no part of what lies in it"
    )


def test_a_synthetic_cohort_is_known_by_what_was_drawn(keys, runs):
    before = keys(subjects=0.02)
    assert keys(subjects=0.02) == before
    assert differ(before, keys(subjects=0.02, split_seed=1)) == STAGES - {"tuned-robust"}
    folder = cohorts._phantom(brain.Study(subjects=0.02))
    change(folder / "clinical_patient_lgg.txt", "\tMALE", "\tFEMALE")
    assert differ(before, keys(subjects=0.02)) == STAGES
