"""Who is in which part of the fundus study, on synthetic patients and in the real layout."""

import os
from dataclasses import replace

import pandas as pd
import pytest

from fairlib.cohorts.tables import ATTRIBUTES
from fairlib.errors import DataError, SettingsError, WeightsError
from studies.engine.recipe import training_part, write_manifest
from studies.fundus.data import (
    FUNDUS,
    PARTS,
    FundusSettings,
    cohort_digest,
    even_settings,
    real_rows,
    subjects,
    trained_on,
)
from studies.fundus.phantom import PhantomSettings
from studies.fundus.study import subjects_table
from tests.studies.fundus.drawing import draw_fundi
from tests.studies.fundus.layout import write_fairgenmed

TRAINED_ON = PhantomSettings(subjects=40, seed=109)


EVEN = PhantomSettings(seed=5, size=32)


def test_even_parts_hold_every_combination_equally_often():
    _, table = zip(
        *(draw_fundi(even_settings(EVEN, index), [index]) for index in range(24)),
        strict=True,
    )
    table = pd.concat(table)
    assert len(table.groupby([*ATTRIBUTES, "glaucoma"])) == 24


def test_no_part_draws_the_training_people():
    assert len({*(part.seed for part in PARTS.values()), TRAINED_ON.seed}) == len(PARTS) + 1
    seeds = {name: part.seed for name, part in PARTS.items()}
    with pytest.raises(SettingsError, match="part 'requested' draws too"):
        training_part(replace(TRAINED_ON, seed=PARTS["requested"].seed), 0, seeds)
    with pytest.raises(SettingsError, match="trained on 40; 0 takes all"):
        training_part(TRAINED_ON, 41, seeds)


@pytest.mark.slow
def test_the_training_people_are_exactly_those_the_generator_saw(settings, runs):
    images, table = draw_fundi(TRAINED_ON)
    found = subjects(settings, "train").load()
    assert (found.images - images).abs().max() <= 0.5 / 127.5 + 1e-5  # kept in bytes
    assert list(found.table["prompt"]) == list(table["prompt"])
    assert FUNDUS.codes(found.table).shape == (40, 3)
    others = [
        set(subjects(settings, part).load().table["subject"]) for part in PARTS if part != "train"
    ]
    assert not set(found.table["subject"]).intersection(*others) and len(set.union(*others)) == sum(
        map(len, others)
    )


def test_weights_that_do_not_say_whom_they_saw_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no fundus generator here"):
        trained_on(FundusSettings(weights=str(tmp_path)))
    write_manifest(tmp_path, {}, 0.0)
    with pytest.raises(WeightsError, match="which synthetic subjects"):
        trained_on(FundusSettings(weights=str(tmp_path)))
    for wrong, words in (
        ({"cohort": "ham"}, "one of 'phantom', 'fairgenmed'"),
        ({"images": 0}, "images"),
        ({"images": 901}, "equal numbers"),
    ):
        with pytest.raises(SettingsError, match=words):
            FundusSettings(**wrong)
    with pytest.raises(DataError, match="unknown key 'exam'"):
        subjects(FundusSettings(), "exam")


@pytest.mark.slow
def test_the_real_layout_is_read_through_its_reader(settings, runs, tmp_path):
    write_fairgenmed(tmp_path, PhantomSettings(subjects=60, seed=8, white=0.34, black=0.33))
    real = replace(
        settings, cohort="fairgenmed", data_dir=str(tmp_path), images=6, reference_subjects=6
    )
    parts = {part: subjects(real, part).load().table for part in PARTS}
    assert set(parts["train"]["use"]) == {"training"} and set(parts["evaluators"]["use"]) == {
        "validation"
    }
    assert set(parts["requested"]["use"]) == set(parts["reference"]["use"]) == {"test"}
    assert not set(parts["requested"]["subject"]) & set(parts["reference"]["subject"])
    assert parts["requested"]["race"].value_counts().nunique() == 1, "races in equal numbers"
    assert subjects_table(real)["requested_cdr"].isna().all()
    with pytest.raises(DataError, match="no patient left of race Black"):
        real_rows(parts["requested"].query("race != 'Black'"), PARTS["requested"], 0, 6)
    with pytest.raises(DataError, match="needs data_dir"):
        subjects(replace(real, data_dir=""), "requested")


def test_an_image_that_was_changed_gives_another_key(runs, tmp_path):
    """Real images are known by names, sizes and times of change: none is opened to make a key."""
    write_fairgenmed(tmp_path, PhantomSettings(subjects=12, seed=8))
    real = FundusSettings(cohort="fairgenmed", data_dir=str(tmp_path))
    before, cohort = subjects(real, "train").folder, cohort_digest(real)
    assert subjects(real, "train").folder == before
    path = next((tmp_path / "Training").glob("*.npz"))
    os.utime(path, ns=(1, 1))
    assert subjects(real, "train").folder != before and cohort_digest(real) == cohort


def test_the_study_names_its_patients(runs, settings):
    other = replace(settings, train_subjects=30)
    assert cohort_digest(settings) == cohort_digest(replace(settings, images=20))
    assert cohort_digest(settings) != cohort_digest(other)
