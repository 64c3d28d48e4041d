"""What the stages of the brain study depend on: their keys follow the cohort, and the code that
really runs.
"""

import os
import shutil
from dataclasses import replace
from functools import partial

import pytest

from fairlib.cohorts import brats
from studies.brain import study
from studies.brain.arms import tuned
from studies.brain.data import BrainSettings, Tuning, cohort
from studies.brain.evaluators import EVERYWHERE
from studies.brain.phantom import PhantomSettings, write_brats
from studies.brain.study import STUDY
from studies.engine import stage
from studies.engine.stage import write_manifest
from studies.engine.study import Run
from tests.studies.tracing import stages_traced

pytestmark = pytest.mark.slow
STAGES = {"sex_classifier", "anatomical_measurement", "read_images", "tune_denoiser"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Four subjects in the real layout."""
    return write_brats(tmp_path_factory.mktemp("brats"), PhantomSettings(multiple=0.02, unknown=0))


@pytest.fixture
def place(written, tmp_path, runs):
    return shutil.copytree(written, tmp_path / "brats")


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """settings -> {stage: keys}; nothing is built, and what a stage gives is known by its key."""
    found, make = {}, stage.make

    def keyed(name, kept, code, build, verify=True, root=None):
        if name.startswith("phantom"):
            return make(name, kept, code, build, verify, root)
        key = stage.stage_key(name, kept, code)
        found.setdefault(name, set()).add(key)
        folder = tmp_path / "keyed" / f"{name}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "readings.csv").write_text(f"value\n{key}\n")
        write_manifest(folder, {}, 0.0)
        return folder

    monkeypatch.setattr(stage, "make", keyed)
    (tmp_path / "weights").mkdir()
    write_manifest(tmp_path / "weights", {}, 0.0)

    def of(**settings):
        found.clear()
        weights = str(tmp_path / "weights")
        chosen = BrainSettings(weights=weights, clip=weights, **settings)
        stage._loaded.cache_clear()  # as in another process
        source = partial(study.test_images, cohort(chosen), chosen.split_seed)
        study.read_by(chosen, 0, EVERYWHERE, source)
        tuned(chosen, Tuning("robust"), 0)
        return dict(found)

    return of


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def differ(before, after):
    return {name for name in STAGES if not before[name] & after[name]}


def test_a_corrected_table_gives_every_stage_another_key(place, keys):
    before = keys(cohort="brats", data_dir=str(place))
    assert set(before) >= STAGES
    change(place / "clinical_patient_gbm.txt", "\tMALE", "\tFEMALE")
    assert differ(before, keys(cohort="brats", data_dir=str(place))) == STAGES


def test_another_volume_gives_every_stage_another_key(place, keys):
    before = keys(cohort="brats", data_dir=str(place))
    scan = sorted(place.rglob("*_t1.nii.gz"))[0]
    os.utime(scan, ns=(1, 1))
    assert differ(before, keys(cohort="brats", data_dir=str(place))) == STAGES


def test_nothing_changed_keeps_every_key_and_opens_no_volume(place, keys, monkeypatch):
    before = keys(cohort="brats", data_dir=str(place))
    monkeypatch.setattr(brats, "read_stored", None)
    assert keys(cohort="brats", data_dir=str(place)) == before
    moved = shutil.copytree(place, place.with_name("moved") / "brats")
    assert keys(cohort="brats", data_dir=str(moved)) == before, (
        "where the folder lies is no part of what lies in it"
    )


def test_a_synthetic_cohort_is_known_by_what_was_drawn(keys, runs):
    before = keys(subjects=0.02)
    assert keys(subjects=0.02) == before
    assert keys(subjects=0.02, images=7) == before, "images are none of their business"
    assert differ(before, keys(subjects=0.02, split_seed=1)) == STAGES
    assert differ(before, keys(subjects=0.02, cohort_seed=3)) == STAGES


def test_keys_miss_nothing_that_stages_run(settings, runs, monkeypatch):
    """Every stage of the study is built once under a tracer."""
    monkeypatch.setattr("studies.brain.anatomy.SMALLEST_MM2", 0.0)
    settings = replace(settings, images=52)  # distances want fifty
    with stages_traced() as unseen:
        for arm in STUDY.arms_of(settings, ["class-standard", "quantile-robust"]):
            run = Run(STUDY, settings, arm, 0)
            study.readings(run)
            study.measures(run)
        study.calibration(Run(STUDY, settings, "untuned", 0))
    assert unseen == {}
    assert stages_traced.built == {
        "phantom_brats",
        "phantom_roco",
        "sex_classifier",
        "anatomical_measurement",
        "attribute_classifier",
        "draw_base_cache",
        "read_base_cache",
        "tune_denoiser",
        "generate",
        "read_images",
        "prompt_fidelity",
        "comparison",
        "known_sex_slices",
        "denoised_slices",
    }
