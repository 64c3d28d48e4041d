"""The synthetic hearts: pictures, masks and truth agree, and the people follow the law that is
written down.
"""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib import DataError, SettingsError
from fairlib.cohorts.cardiac import label_order
from studies.heart.phantom import (
    DILATED_SHARE,
    PhantomSettings,
    depths,
    draw_heart,
    draw_hearts,
    draw_person,
    draw_subject,
    expected_geometry,
    grid,
    make_heart,
    make_person,
    masks,
    truth,
)

SETTINGS = PhantomSettings(seed=11)
PERSON = {"sex": "M", "age": 50, "bmi": 25.1, "diagnosis": "healthy", "height": 176}


def geometry(count, seed=3, **attributes):
    """The truth about `count` individual hearts with given attributes."""
    rng = np.random.default_rng(seed)
    rows = [
        truth(make_heart(rng, make_person(rng, **{**PERSON, **attributes}))) for _ in range(count)
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def hearts():
    return [draw_heart(SETTINGS, index) for index in range(24)]


@pytest.fixture(scope="module")
def crowd():
    """People and truth of 1400 hearts, without pictures."""
    rows = []
    for index in range(1400):
        rng = np.random.default_rng([SETTINGS.seed, index])
        person = draw_person(rng, SETTINGS)
        rows.append({**vars(person), **truth(make_heart(rng, person))})
    return pd.DataFrame(rows)


def test_a_subject_is_a_function_of_seed_and_index(hearts):
    again = draw_heart(PhantomSettings(seed=11, subjects=3), 7)
    assert np.array_equal(again.images, hearts[7].images) and np.array_equal(
        again.masks, hearts[7].masks
    )
    assert again.row == hearts[7].row
    other = draw_heart(PhantomSettings(seed=12), 7)
    assert not np.array_equal(other.masks, hearts[7].masks)


def test_many_hearts_come_as_tensors_and_a_table(hearts):
    images, labels, table = draw_hearts(SETTINGS, [4, 9])
    assert (
        images.shape == (2, 3, 64, 64)
        and images.dtype == torch.float32
        and labels.shape == (2, 2, 64, 64)
    )
    assert labels.dtype == torch.uint8 and images.min() == -1 and images.max() == 1
    assert torch.equal(images[1], torch.from_numpy(hearts[9].images[[0, 1, 0]]))
    assert table["subject"].tolist() == ["synthetic-heart-00004", "synthetic-heart-00009"]
    assert len(draw_hearts(PhantomSettings(subjects=2))[2]) == 2
    with pytest.raises(DataError, match="no hearts"):
        draw_hearts(SETTINGS, [])


def test_areas_and_walls_in_a_fine_picture_are_those_of_the_truth(hearts):
    x, y = grid(400, 0.4, (-10.0, 0.0))
    for subject in hearts[:4]:
        known = subject.row
        areas = []
        for phase, area in ((0.0, known["lv_ed_area"]), (1.0, known["lv_es_area"])):
            labels = masks(depths(subject.heart, x, y, phase))
            areas.append([(labels == label).sum() * 0.16 for label in (1, 2, 3)])
            assert areas[-1][0] == pytest.approx(area, rel=0.01)
        (_, wall_ed, rv_ed), (_, wall_es, rv_es) = areas
        assert wall_es / wall_ed == pytest.approx(subject.heart.thickening, rel=0.01)
        assert rv_es < rv_ed
        assert known["ejection"] == pytest.approx(1 - known["lv_es_area"] / known["lv_ed_area"])
        radius = np.sqrt(areas[0][0] / np.pi)  # a ring of the mean wall has nearly the wall's area
        assert wall_ed == pytest.approx(
            np.pi * ((radius + known["wall_ed"]) ** 2 - radius**2), rel=0.02
        )


def test_the_wall_encloses_the_cavity_and_the_heart_is_in_the_middle(hearts):
    for subject in hearts:
        for labels in subject.masks:
            assert set(np.unique(labels)) == {0, 1, 2, 3} and label_order(labels) == (1, 2, 3)
            cavity = labels == 1
            around = np.zeros_like(cavity)
            for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                around |= np.roll(cavity, shift, (0, 1))
            assert set(np.unique(labels[around & ~cavity])) == {2}
            assert not labels[[0, -1]].any() and not labels[:, [0, -1]].any()
        rows, columns = np.nonzero((subject.masks > 0).any(axis=0))
        assert (
            abs(rows.min() + rows.max() - 63) <= 2 and abs(columns.min() + columns.max() - 63) <= 2
        )
        # RV on the left
        assert (
            np.nonzero(subject.masks[0] == 3)[1].mean()
            < np.nonzero(subject.masks[0] == 1)[1].mean()
        )


def test_blood_is_bright_muscle_is_not_and_lung_is_dark(hearts):
    for subject in hearts:
        image, labels = subject.images[0], subject.masks[0]
        blood, muscle, right = (image[labels == label].mean() for label in (1, 2, 3))
        assert (
            blood > muscle + 0.4 and right > muscle + 0.3 and np.percentile(image, 5) < muscle - 0.2
        )


@pytest.mark.parametrize(
    "who",
    [
        {},
        {"sex": "F", "height": 163},
        {"age": 80},
        {"bmi": 34.0},
        {"height": 190},
        {"diagnosis": "heart failure", "face": "dilated"},
        {"diagnosis": "heart failure", "face": "preserved", "sex": "F"},
    ],
)
def test_individuals_scatter_about_the_law(who):
    person = {**PERSON, **who}
    expected, found = expected_geometry(**person), geometry(300, **person)
    for name in ("lv_ed_area", "lv_es_area", "wall_ed", "wall_es", "ejection"):
        error = 1.25 * found[name].std() / np.sqrt(len(found))  # of a median
        assert found[name].median() == pytest.approx(
            expected[name], abs=4 * error + 0.01 * expected[name]
        ), name


def test_the_law_has_the_sizes_it_states():
    man = expected_geometry("M", 50, 25, 176, "healthy")
    woman = expected_geometry("F", 50, 25, 163, "healthy")
    assert (
        48 <= man["diameter_ed"] <= 52
        and man["wall_ed"] == pytest.approx(8.8)
        and man["ejection"] == pytest.approx(0.58)
    )
    assert 0.08 <= 1 - woman["diameter_ed"] / man["diameter_ed"] <= 0.10 and woman[
        "wall_ed"
    ] == pytest.approx(8.0, abs=0.1)
    assert man["wall_es"] > 1.3 * man["wall_ed"]
    assert expected_geometry("M", 70, 25, 176, "healthy")["wall_ed"] - man[
        "wall_ed"
    ] == pytest.approx(20 * 0.025)
    assert expected_geometry("M", 50, 35, 176, "healthy")["wall_ed"] - man[
        "wall_ed"
    ] == pytest.approx(10 * 0.06)
    faces = {
        face: expected_geometry("M", 50, 25, 176, "heart failure", face)
        for face in ("dilated", "preserved")
    }
    assert faces["dilated"]["ejection"] == pytest.approx(0.28) and faces["preserved"][
        "ejection"
    ] == pytest.approx(0.50)
    assert faces["dilated"]["wall_ed"] < man["wall_ed"] < faces["preserved"]["wall_ed"]
    assert faces["dilated"]["diameter_ed"] > man["diameter_ed"] > faces["preserved"]["diameter_ed"]
    mixed = expected_geometry("M", 50, 25, 176, "heart failure")
    for name, value in mixed.items():
        assert value == pytest.approx(
            0.80 * faces["dilated"][name] + 0.20 * faces["preserved"][name]
        )


def test_the_shares_are_those_of_the_settings(crowd):
    for diagnosis, group in crowd.groupby("diagnosis"):
        whom = diagnosis.replace(" ", "_")
        for what, found in (
            ("female", group.sex == "F"),
            ("young", group.age < 50),
            ("normal_bmi", group.bmi < 25),
        ):
            share = getattr(SETTINGS, f"{what}_{whom}")
            assert found.mean() == pytest.approx(
                share, abs=4 * np.sqrt(share * (1 - share) / len(group))
            ), (what, diagnosis)
    assert (crowd.diagnosis == "heart failure").mean() == pytest.approx(0.25, abs=0.04)
    for (sex, heavy), share in DILATED_SHARE.items():
        group = crowd[
            (crowd.sex == sex) & ((crowd.bmi >= 25) == heavy) & (crowd.diagnosis == "heart failure")
        ]
        error = np.sqrt(share * (1 - share) / len(group))
        assert (group.face == "dilated").mean() == pytest.approx(share, abs=4 * error)


def test_the_diagnosis_can_be_told_from_the_heart_but_not_always_and_sex_less_well(crowd):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    features = crowd[["lv_ed_area", "lv_es_area", "wall_ed", "wall_es"]]
    model = make_pipeline(
        StandardScaler(),
        PolynomialFeatures(2),
        LogisticRegression(class_weight="balanced", max_iter=2000),
    )
    scores = {}
    for name in ("diagnosis", "sex"):
        model.fit(features[:700], crowd[name][:700])
        scores[name] = balanced_accuracy_score(crowd[name][700:], model.predict(features[700:]))
    assert 0.88 < scores["diagnosis"] < 0.97 and 0.70 < scores["sex"] < 0.90


def test_given_attributes_are_kept():
    rng = np.random.default_rng(0)
    person = make_person(rng, "F", 34, 22.0, "heart failure", height=171, face="dilated")
    subject = draw_subject(rng, person, "extra")
    row = subject.row
    assert (
        row["prompt"] == "Female, age in 30s, normal BMI, heart failure"
        and row["pathology"] == "DCM"
    )
    assert (row["subject"], row["height"], row["bmi"], row["face"]) == (
        "extra",
        171,
        22.0,
        "dilated",
    )
    faces = Counter(make_person(rng, "F", 60, 22.0, "heart failure").face for _ in range(200))
    assert set(faces) == {"dilated", "preserved"} and faces["preserved"] > faces["dilated"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sex": "W"}, "sex 'W'"),
        ({"diagnosis": "ill"}, "'ill'"),
        ({"bmi": float("nan")}, "body-mass index"),
        ({"face": "dilated"}, "healthy cannot have the face"),
        ({"face": "healthy", "diagnosis": "heart failure"}, "heart failure cannot have"),
        ({"face": "dilatd", "diagnosis": "heart failure"}, "did you mean 'dilated'"),
    ],
)
def test_an_impossible_person_is_refused(change, match):
    with pytest.raises(DataError, match=match):
        make_person(np.random.default_rng(0), **{**PERSON, **change})


def test_shares_outside_zero_and_one_are_refused():
    with pytest.raises(SettingsError, match="female_healthy"):
        PhantomSettings(female_healthy=1.2)
    with pytest.raises(SettingsError, match="subjects"):
        PhantomSettings(subjects=0)
