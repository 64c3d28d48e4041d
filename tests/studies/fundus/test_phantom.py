"""The synthetic fundi: pictures and truth agree, and the people follow the law that is written
down.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib import DataError, SettingsError
from fairlib.cohorts.fairgenmed import (
    CDR_STATUSES,
    GLAUCOMA,
    SEVERITIES,
    cdr_status,
    parse_prompt,
    read_fairgenmed,
)
from fairlib.cohorts.tables import RACES
from studies.fundus.phantom import (
    CALIBRE,
    CDR_SCATTER,
    DISC,
    GRADIENT,
    PIGMENT,
    RNFL_SCATTER,
    PhantomSettings,
    _depth,
    draw_fundus,
    draw_fundus_with,
    draw_patient,
    draw_scene,
    expected_cdr,
    expected_rnfl,
    make_eye,
    make_patient,
    render,
    requested_cdr,
)
from tests.studies.fundus.drawing import draw_fundi
from tests.studies.fundus.layout import write_fairgenmed

SETTINGS = PhantomSettings(seed=11)
WHO = {
    "race": "White",
    "sex": "F",
    "ethnicity": "Non-Hispanic",
    "glaucoma": "glaucoma",
    "md_severity": "mild",
    "refraction": "emmetropia",
}
RNG = np.random.default_rng


def patients(count, seed=3, **attributes):
    rng = RNG(seed)
    return pd.DataFrame([vars(make_patient(rng, **{**WHO, **attributes})) for _ in range(count)])


def picture(seed=0, **attributes):
    return draw_fundus_with(RNG(seed), **{**WHO, "cdr": 0.5, **attributes}).image[0]


def pictures(count=12, **attributes):
    return np.stack([picture(seed, **attributes) for seed in range(count)])


def rendered(seed, **attributes):
    """An eye without blur and noise [128, 128], depths below the edges of disc and cup, and the
    scene.
    """
    patient = make_patient(rng := RNG(seed), **{**WHO, **attributes})
    eye = make_eye(rng, patient)
    scene = draw_scene(rng, patient, eye)
    x, y = np.meshgrid(np.arange(128) - 63.5, np.arange(128) - 63.5)
    parts = (
        _depth(x, y, *part, eye.tilt) for part in ((eye.disc, eye.axes), (eye.cup, eye.cup_axes))
    )
    return render(patient, eye, scene), *parts, scene


@pytest.fixture(scope="module")
def crowd():
    """3000 people without pictures."""
    return pd.DataFrame([vars(draw_patient(RNG([11, index]), SETTINGS)) for index in range(3000)])


def test_a_subject_is_a_function_of_seed_and_index():
    one, again = draw_fundus(SETTINGS, 7), draw_fundus(PhantomSettings(seed=11, subjects=3), 7)
    assert np.array_equal(one.image, again.image) and one.row == again.row
    assert not np.array_equal(one.image, draw_fundus(PhantomSettings(seed=12), 7).image)


def test_many_fundi_come_as_tensors_and_a_table():
    images, table = draw_fundi(SETTINGS, [4, 9])
    assert images.shape == (2, 1, 128, 128) and images.dtype == torch.float32
    assert images.amin((1, 2, 3)).tolist() == [-1, -1] and images.amax((1, 2, 3)).tolist() == [1, 1]
    assert torch.equal(images[1], torch.from_numpy(draw_fundus(SETTINGS, 9).image))
    assert table["subject"].tolist() == ["synthetic-fundus-00004", "synthetic-fundus-00009"]
    assert len(draw_fundi(PhantomSettings(subjects=2))[1]) == 2
    for row in table.to_dict("records"):
        said = parse_prompt(row["prompt"])
        assert said == {name: row[name] for name in said} and row["cdr_status"] == cdr_status(
            row["cdr"]
        )


def test_a_larger_picture_shows_the_same_eye():
    small, large = (
        draw_fundus(SETTINGS, 3).image[0],
        draw_fundus(PhantomSettings(seed=11, size=256), 3).image[0],
    )
    shrunk = large.reshape(128, 2, 128, 2).mean((1, 3))
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.97


def test_six_in_ten_train_three_test():
    table = pd.DataFrame(
        [draw_fundus(PhantomSettings(seed=1, size=32), index).row for index in range(10)]
    )
    assert table["use"].value_counts().to_dict() == {"training": 6, "test": 3, "validation": 1}


@pytest.mark.parametrize("seed", range(6))
def test_cup_and_disc_in_a_fine_raster_are_those_of_the_truth(seed):
    """The vertical extents of both ellipses, and the cup lies within the disc."""
    patient = make_patient(
        RNG(seed),
        **{**WHO, "refraction": "myopia" if seed % 2 else "hyperopia"},
        cdr=0.2 + 0.14 * seed,
    )
    eye = make_eye(RNG(seed + 50), patient)
    axis = np.arange(-32, 32, 0.05)
    x, y = np.meshgrid(axis, axis)
    disc, cup = (
        _depth(x, y, *part, eye.tilt) > 0
        for part in ((eye.disc, eye.axes), (eye.cup, eye.cup_axes))
    )
    extent = [np.ptp(axis[inside.any(axis=1)]) for inside in (disc, cup)]
    assert extent[0] == pytest.approx(patient.disc_diameter, abs=0.15)
    assert extent[1] / extent[0] == pytest.approx(patient.cdr, abs=0.006)
    assert not (cup & ~disc).any()


@pytest.mark.parametrize("glaucoma, severity", [(g, s) for g in GLAUCOMA for s in SEVERITIES])
def test_individuals_scatter_about_the_law(glaucoma, severity):
    found = patients(500, glaucoma=glaucoma, md_severity=severity)
    error = 4 / np.sqrt(500)
    assert found.cdr.median() == pytest.approx(
        expected_cdr(glaucoma, severity), abs=1.25 * error * CDR_SCATTER
    )
    assert found.rnfl.mean() == pytest.approx(
        expected_rnfl(glaucoma, severity), abs=error * RNFL_SCATTER + 0.3
    )
    assert found.cdr.std() == pytest.approx(CDR_SCATTER, rel=0.15)


def test_the_law_has_the_sizes_it_states_and_does_not_know_race():
    assert expected_cdr("non-glaucoma", "normal") == 0.38 and expected_cdr(
        "glaucoma", "severe"
    ) == pytest.approx(0.76)
    assert expected_cdr("non-glaucoma", "severe") == pytest.approx(0.44)
    assert (
        expected_rnfl("non-glaucoma", "normal") == 98 and expected_rnfl("glaucoma", "severe") == 62
    )
    kinds = {race: patients(400, race=race) for race in RACES}
    for race, found in kinds.items():
        assert found.cdr.equals(kinds["White"].cdr) and found.rnfl.equals(kinds["White"].rnfl)
        assert found.pigment.mean() == pytest.approx(PIGMENT[race], abs=0.015)
        assert found.disc_diameter.mean() == pytest.approx(DISC[race], abs=0.3)
    smaller = patients(50, refraction="hyperopia").disc_diameter / patients(50).disc_diameter
    assert smaller.to_numpy() == pytest.approx(0.95)


def test_the_shares_are_those_of_the_settings(crowd):
    for found, share in (
        ((crowd.race == "White"), 0.76),
        ((crowd.race == "Black"), 0.15),
        ((crowd.race == "Asian"), 0.09),
        ((crowd.sex == "F"), 0.57),
        ((crowd.ethnicity == "Hispanic"), 0.05),
        ((crowd.glaucoma == "glaucoma"), 0.5),
    ):
        assert found.mean() == pytest.approx(
            share, abs=4 * np.sqrt(share * (1 - share) / len(crowd))
        )
    mean = crowd.groupby("race").cdr.mean()
    assert mean.max() - mean.min() < 0.04
    assert set(crowd.groupby("glaucoma").md_severity.nunique()) == {4}


def test_glaucoma_can_be_told_from_the_truth_but_not_always(crowd):
    from sklearn.metrics import roc_auc_score

    assert 0.88 < roc_auc_score(crowd.glaucoma == "glaucoma", crowd.cdr) < 0.98


def test_the_ratio_requested_is_the_mean_of_people_with_these_words():
    rng, found = np.random.default_rng(0), []
    for severity in SEVERITIES:
        for _ in range(2500):
            patient = make_patient(rng, **{**WHO, "md_severity": severity})
            found.append((severity, cdr_status(patient.cdr), patient.cdr))
    table = pd.DataFrame(found, columns=["severity", "status", "cdr"])
    means = table.groupby(["severity", "status"])["cdr"].agg(["mean", "size"])
    for (severity, status), row in means[means["size"] > 200].iterrows():
        assert requested_cdr("glaucoma", severity, status) == pytest.approx(row["mean"], abs=0.012)
    assert len(means[means["size"] > 200]) >= 8
    order = [requested_cdr("glaucoma", "moderate", status) for status in CDR_STATUSES]
    assert order == sorted(order) and order[0] < 0.5 <= order[1] < 0.7 <= order[2]
    with pytest.raises(DataError, match="cdr_status of a synthetic patient"):
        requested_cdr("glaucoma", "mild", "large")


def test_a_status_bounds_the_ratio():
    for status in CDR_STATUSES:
        found = patients(60, cdr_status=status, glaucoma="non-glaucoma")
        assert set(found.cdr.map(cdr_status)) == {status} and found.cdr.nunique() > 50


def test_one_seed_is_one_eye_under_other_attributes():
    """All that the attribute does not move stays: the vessels' courses, the textures, the noise."""

    def moved(**change):
        patient = make_patient(rng := RNG(4), **{**WHO, **change})
        return draw_scene(rng, patient, make_eye(rng, patient)), rng.random()

    scene, after = moved()
    for change in (
        {"race": "Black"},
        {"sex": "M"},
        {"ethnicity": "Hispanic"},
        {"refraction": "myopia"},
        {"md_severity": "severe"},
        {"glaucoma": "non-glaucoma"},
    ):
        other, then = moved(**change)
        assert (
            then == after
            and np.array_equal(scene.network, other.network)
            and scene.noise == other.noise
        )
    assert np.array_equal(scene.vessels.x.shape, moved(ethnicity="Hispanic")[0].vessels.x.shape)


def test_disc_and_cup_are_bright_and_vessels_are_not():
    for seed in range(4):
        value, disc, cup, scene = rendered(seed, cdr=0.6)
        inside, rim, around = (
            np.median(value[where]) for where in (cup > 1.5, (cup < -1.5) & (disc > 1.5), disc < -6)
        )
        assert inside > rim + 0.12 and rim > around + 0.12
        columns, rows = (
            np.rint(place + 63.5).astype(int).clip(0, 127)
            for place in (scene.vessels.x, scene.vessels.y)
        )
        outside = disc[rows, columns] < -6
        assert np.median(value[rows, columns][outside]) < around - 0.08


def test_race_moves_brightness_and_the_step_at_the_cup():
    """The same eyes: with more pigment the background is darker, and the cup stands out less from
    the rim.
    """

    def steps(race):
        found = []
        for seed in range(8):
            value, disc, cup, _ = rendered(seed, race=race, cdr=0.5)
            rim = np.median(value[(cup < -1.5) & (disc > 1.5)])
            found.append([np.median(value[cup > 1.5]) - rim, np.median(value[disc < -6])])
        return np.mean(found, axis=0)

    white, black = steps("White"), steps("Black")
    assert 0.07 < white[0] - black[0] < 0.13 and 0.08 < white[1] - black[1] < 0.16


def test_sex_ethnicity_and_refraction_can_be_seen():
    """Each moves what the law says it moves, in the same eyes."""

    def dark(images):  # share of vessel pixels: far below their surroundings
        from scipy.ndimage import uniform_filter

        return np.mean([(image < uniform_filter(image, 15) - 0.15).mean() for image in images])

    def slope(images):  # brightness of the left half over the right half, away from the disc
        return np.median(images[:, :, :32], axis=(1, 2)) - np.median(images[:, :, 96:], axis=(1, 2))

    assert dark(pictures(sex="M")) > 1.25 * dark(pictures(sex="F"))
    assert (slope(pictures(ethnicity="Hispanic")) - slope(pictures()) > 0.1).all()
    left = pictures(refraction="myopia")[:, 54:74, 30:48].mean((1, 2)) - pictures()[
        :, 54:74, 30:48
    ].mean((1, 2))
    assert (left > 0).mean() > 0.8
    assert CALIBRE["M"] > CALIBRE["F"] and GRADIENT["Hispanic"] > GRADIENT["Non-Hispanic"]


def test_nerve_fibres_fade_and_severe_loss_leaves_a_wedge():
    """In the same eyes, brightness above and below the disc; where loss is severe, a sector is
    darker than at any layer.
    """

    def around(seed, severity):
        value, disc, _, _ = rendered(seed, cdr=0.5, md_severity=severity)
        return value, (disc < -4) & (disc > -22)

    for seed in range(6):
        normal, ring = around(seed, "normal")
        moderate, severe = around(seed, "moderate")[0], around(seed, "severe")[0]
        assert 0.004 < (normal - moderate)[ring].mean() < 0.05
        assert (
            np.percentile((moderate - severe)[ring], 99) > 0.05 > (moderate - severe)[ring].mean()
        )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"race": "Whit"}, "did you mean 'White'"),
        ({"sex": "W"}, "sex"),
        ({"md_severity": "sever"}, "did you mean 'severe'"),
        ({"cdr": 0.05}, "0.15 to 0.92|0.15 and 0.92"),
        ({"cdr": 0.4, "cdr_status": "abnormal"}, "in its status"),
        ({"cdr": float("nan")}, "cup-to-disc ratio nan"),
        ({"cdr_status": "high"}, "cdr_status"),
    ],
)
def test_an_impossible_person_is_refused(change, match):
    with pytest.raises(DataError, match=match):
        draw_fundus_with(RNG(0), **{**WHO, **change})


def test_unknown_words_of_the_law_are_refused():
    with pytest.raises(DataError, match="did you mean 'glaucoma'"):
        expected_cdr("glaucma", "mild")


@pytest.mark.parametrize(
    "change", [{"female": 1.2}, {"white": 0.9, "black": 0.2}, {"subjects": 0}, {"size": 8}]
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(SettingsError, match="PhantomSettings"):
        PhantomSettings(**change)


def test_the_written_layout_is_read_by_the_reader(tmp_path):
    settings = PhantomSettings(subjects=12, seed=4)
    root = write_fairgenmed(tmp_path, settings)
    with np.load(root / "Training" / "data_00000.npz", allow_pickle=False) as found:
        assert set(found) == {
            "glaucoma",
            "oct_bscans",
            "slo_fundus",
            "race",
            "male",
            "hispanic",
            "maritalstatus",
            "language",
            "md",
        }
        assert found["slo_fundus"].shape == (200, 200, 3) and found["slo_fundus"].dtype == np.uint8
    cohort = read_fairgenmed(root)
    images, table = draw_fundi(settings)
    assert len(cohort.table) == 12 and len(cohort.excluded) == 0
    for name in (
        "age",
        "sex",
        "race",
        "ethnicity",
        "glaucoma",
        "md",
        "md_severity",
        "cdr_status",
        "rnflt_status",
        "refraction",
        "use",
        "prompt",
    ):
        assert cohort.table[name].tolist() == table[name].tolist(), name
    for name in ("cdr", "disc_diameter", "pigment", "rnfl"):
        assert cohort.table[name].to_numpy(float) == pytest.approx(table[name].to_numpy(), abs=1e-5)
    for image, again in zip(images[:3].numpy(), np.asarray(cohort.load([0, 1, 2])), strict=True):
        assert np.corrcoef(image.ravel(), again.ravel())[0, 1] > 0.95
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.npz")}
    write_fairgenmed(root, settings)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*.npz")}
