"""The outline of the brain: right on shapes of known size, and unmoved by what only looks like
anatomy.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from fairlib.errors import DataError
from studies.brain import phantom
from studies.brain.anatomy import (
    AnatomicalMeasurement,
    Outline,
    fit_anatomy,
    measure,
    outline,
    polygon_shape,
    rim_share,
)

RNG = np.random.default_rng
CONTRASTS = ("t1", "t1ce", "t2", "flair")
ROWS, COLUMNS = np.mgrid[:128, :128]


def ellipse(width=80.0, length=104.0, middle=(63.0, 66.0), angle=0.0, inside=0.6):
    """A soft-edged (partial volume) ellipse of these axes in pixels, on background -1."""
    fine = (np.mgrid[: 128 * 8, : 128 * 8] + 0.5) / 8 - 0.5
    y, x = fine[0] - middle[0], fine[1] - middle[1]
    across, along = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    mask = (
        ((2 * across / width) ** 2 + (2 * along / length) ** 2 <= 1)
        .reshape(128, 8, 128, 8)
        .mean((1, 3))
    )
    return (2 * inside * mask - 1).astype(np.float32)


@pytest.fixture(scope="module")
def people():
    """Eighty phantom people, half of them women, in all contrasts: images [320, 1, 128, 128] and
    the truth.
    """
    images, rows = [], []
    for index in range(80):
        rng = RNG([5, index])
        subject = phantom.draw_subject(rng, "FM"[index % 2], ("HGG", "LGG")[index // 2 % 2])
        points = phantom.slice_points(128, 1.6, phantom.slice_height(subject, rng.uniform(-3, 3)))
        found, _ = phantom.render(subject, points, CONTRASTS, rng)
        for contrast, values in found.items():
            images.append(phantom.normalise(values.reshape(1, 128, 128)))
            rows.append(
                {
                    "subject": index,
                    "female": 1 - index % 2,
                    "contrast": contrast,
                    "log_size": subject.log_size,
                    "area": (values > 0).sum() * 1.6**2,
                    "grade": subject.tumour.grade,
                }
            )
    return np.stack(images), pd.DataFrame(rows)


@pytest.fixture(scope="module")
def anatomy(people):
    images, truth = people
    return fit_anatomy(images, truth.female, truth.contrast)


class TestShapes:
    @pytest.mark.parametrize(
        "width, length, angle", [(80, 104, 0.0), (76.5, 98.25, 0.3), (90, 91, 1.0), (60, 100, -0.5)]
    )
    def test_ellipse_of_known_size(self, width, length, angle):
        found = measure(ellipse(width, length, angle=angle)[None, None]).iloc[0]
        assert found.area_mm2 == pytest.approx(np.pi / 4 * width * length * 1.6**2, rel=0.004)
        assert (found.width_mm, found.length_mm) == pytest.approx(
            (1.6 * width, 1.6 * length), rel=0.006
        )
        assert found.extent_mm == pytest.approx(2 * np.sqrt(found.area_mm2 / np.pi))

    def test_sub_pixel_steps_are_seen(self):
        """A tenth of a pixel of width at a time: each is measured, to a few hundredths."""
        widths = 80 + 0.1 * np.arange(6)
        found = measure(np.stack([ellipse(width)[None] for width in widths])).width_mm / 1.6
        assert np.diff(found) == pytest.approx(np.full(5, 0.1), abs=0.04)

    def test_where_the_brain_lies_does_not_matter(self):
        areas = measure(
            np.stack([ellipse(middle=m)[None] for m in ((63, 66), (60.3, 62.7), (66.5, 64.25))])
        ).area_mm2
        assert areas.max() / areas.min() < 1.003

    def test_brightness_does_not_matter(self):
        areas = measure(
            np.stack([ellipse(inside=level)[None] for level in (0.25, 0.6, 1.0)])
        ).area_mm2
        assert areas.max() / areas.min() < 1.001

    def test_polygon_moments_of_an_ellipse(self):
        angle = np.arange(720) * np.pi / 360
        radii = 1 / np.sqrt((np.cos(angle) / 3) ** 2 + (np.sin(angle) / 5) ** 2)
        assert polygon_shape(radii) == pytest.approx((15 * np.pi, 6, 10), rel=1e-3)

    def test_pixel_size_scales(self):
        image = ellipse()[None, None]
        ratio = measure(image, pixel_mm=3.2) / measure(image)
        assert ratio.iloc[0][
            ["area_mm2", "width_mm", "length_mm", "extent_mm"]
        ].tolist() == pytest.approx([4, 2, 2, 2])

    def test_whole_equals_each_alone(self, people):
        """To the bit, in batches of several sizes, with images without a brain among them."""
        images = people[0][:19].copy()
        images[4], images[9:11] = -1, RNG(0).uniform(-1, 1, (2, 1, 128, 128))
        images[15] = np.where((ROWS - 20) ** 2 + (COLUMNS - 100) ** 2 < 49, 1, -1)
        whole = measure(images)
        alone = [measure(images[[row]]) for row in range(19)]
        pd.testing.assert_frame_equal(whole, pd.concat(alone, ignore_index=True), check_exact=True)
        assert set(np.flatnonzero(whole.area_mm2.isna())) >= {4, 15}
        fifth = outline(images[5, 0])
        assert polygon_shape(fifth.radii)[0] * 1.6**2 == whole.area_mm2[5]


class TestTruth:
    def test_area_follows_the_true_area(self, people):
        images, truth = people
        ratio = np.log(measure(images).area_mm2 / truth.area)
        assert ratio.groupby(truth.contrast).std().max() < 0.007
        # fluid at the edge is dark on t1, bright on t2
        assert ratio.groupby(truth.contrast).mean().abs().max() < 0.045

    @pytest.mark.parametrize("factor", [1.03, 0.97])
    def test_scaling_the_slice_scales_the_area(self, people, factor):
        images = people[0][:40]
        ratio = measure(zoomed(images, factor)).area_mm2 / measure(images).area_mm2
        assert ratio.to_numpy() == pytest.approx(np.full(40, factor**2), rel=0.01)


def zoomed(images, factor):
    where = [(axis - 63.5) / factor + 63.5 for axis in (ROWS, COLUMNS)]
    return np.stack(
        [ndimage.map_coordinates(image[0], where, order=1, cval=-1)[None] for image in images]
    )


def texture(rng, shape):
    """Blobs a few pixels wide, everywhere."""
    return 0.08 * 2 * np.sqrt(np.pi) * 1.5 * ndimage.gaussian_filter(rng.normal(size=shape), 1.5)


CORRUPTIONS = {
    "noise": lambda image, rng: image + rng.normal(0, 0.15, image.shape),
    "noise, clipped": lambda image, rng: np.clip(image + rng.normal(0, 0.15, image.shape), -1, 1),
    "blur": lambda image, rng: ndimage.gaussian_filter(image, 1.0),
    "bias field": lambda image, rng: (
        (image + 1)
        * (
            1
            + 0.2
            * (np.cos(t := rng.uniform(0, 6.3)) * (COLUMNS - 64) + np.sin(t) * (ROWS - 64))
            / 64
        )
        - 1
    ),
    "checkerboard": lambda image, rng: image + 0.2 * ((ROWS + COLUMNS) % 2 * 2 - 1),
    "stripes": lambda image, rng: image + 0.15 * np.sin(2 * np.pi * COLUMNS / 5),
    "blobs": lambda image, rng: np.clip(image + texture(rng, image.shape), -1, 1),
    "salt outside": lambda image, rng: np.where(
        (rng.random(image.shape) < 0.02) & (image == -1), 1.0, image
    ),
    "grey background": lambda image, rng: np.maximum(image, -0.9),
    "dim": lambda image, rng: 0.7 * (image + 1) - 1,
}


class TestNothingButAnatomy:
    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_anatomy_stands_still(self, people, anatomy, name):
        images, truth = people
        images, contrasts, rng = images[::2][:120], truth.contrast[::2][:120], RNG(0)
        images = np.concatenate([people[0][1::4][:20], images])  # t1ce, besides t1 and t2
        contrasts = [*truth.contrast[1::4][:20], *contrasts]
        spoilt = np.stack([CORRUPTIONS[name](image[0], rng)[None] for image in images]).astype(
            np.float32
        )
        before, after = anatomy.read(images, contrasts), anatomy.read(spoilt, contrasts)
        moved = np.log(after.area_mm2 / before.area_mm2)
        assert (
            abs(moved.mean()) < 0.006
            and moved.abs().quantile(0.95) < 0.012
            and moved.abs().max() < 0.025
        )
        assert abs((after.p_female - before.p_female).mean()) < 0.02
        assert abs((after.p_female > 0.5).mean() - (before.p_female > 0.5).mean()) <= 0.03

    def test_raw_thresholding_would_have_failed(self, people):
        """The corruption is a real one: counting bright pixels is fooled by it."""
        image = people[0][0, 0]
        noisy = CORRUPTIONS["noise, clipped"](image, RNG(0))
        assert (noisy > -0.9).sum() > 1.5 * (image > -0.9).sum()

    def test_a_speck_or_a_notch_is_overruled(self):
        image = ellipse()
        spoilt = image.copy()
        spoilt[60:64, 108:112] = 1.0  # a bright speck just outside
        spoilt[20:26, 60:64] = -1.0  # a dark notch in the rim
        ratio = measure(spoilt[None, None]).area_mm2[0] / measure(image[None, None]).area_mm2[0]
        assert ratio == pytest.approx(1, abs=0.01)

    @pytest.mark.parametrize(
        "image",
        [
            np.full((128, 128), -1.0),
            RNG(0).normal(0, 0.3, (128, 128)).clip(-1, 1),
            ellipse(12, 14),
            np.full((128, 128), 0.5),
        ],
        ids=["black", "noise", "speck", "flat"],
    )
    def test_no_brain_reads_nothing(self, anatomy, image):
        found = anatomy.read(image[None, None], ["t1"])
        assert found.isna().all(axis=None)
        assert outline(np.full((128, 128), -1.0)) is None


class TestOracle:
    def test_tells_sex_on_people_it_never_saw(self, people):
        from sklearn.metrics import roc_auc_score

        images, truth = people
        first = (truth.subject < 40).to_numpy()
        found = fit_anatomy(images[first], truth.female[first], truth.contrast[first]).read(
            images[~first], truth.contrast[~first]
        )
        assert roc_auc_score(truth.female[~first], found.p_female) > 0.92

    def test_extent_does_not_tell_the_contrast(self, people, anatomy):
        images, truth = people
        extent = anatomy.read(images, truth.contrast).extent_mm
        assert extent.groupby(truth.contrast).mean().agg(np.ptp) < 0.3  # mm, of about 145
        raw = measure(images).extent_mm
        assert raw.groupby(truth.contrast).mean().agg(np.ptp) > 3

    def test_larger_brains_are_more_male(self, people, anatomy):
        images, contrasts = people[0][:40], people[1].contrast[:40]
        steps = [
            anatomy.read(zoomed(images, factor), contrasts).p_female
            for factor in (0.94, 0.97, 1.0, 1.03, 1.06)
        ]
        assert (np.diff(steps, axis=0) < 0).all()

    def test_follows_the_truth_of_a_no_effect_cohort(self, anatomy):
        """`log_size`, not the label: people without a sex difference are read by their size."""
        images, sizes = [], []
        for index in range(40):
            rng = RNG([9, index])
            person = phantom.draw_subject(rng, "F" if index % 2 else "M", effect="none")
            image, _ = phantom.render_slice(person, phantom.slice_height(person, 4.0), "t1", rng)
            images.append(phantom.normalise(image)[None])
            sizes.append(person.log_size)
        p = anatomy.read(np.stack(images), ["t1"] * 40).p_female
        assert np.corrcoef(sizes, p)[0, 1] < -0.8

    def test_saves_and_loads_as_json(self, anatomy, people, tmp_path):
        again = AnatomicalMeasurement.load(anatomy.save(tmp_path / "anatomy.json"))
        assert again == anatomy
        images, contrasts = people[0][:4], people[1].contrast[:4]
        pd.testing.assert_frame_equal(
            again.read(images, contrasts), anatomy.read(images, contrasts)
        )

    def test_unknown_contrast_is_refused(self, anatomy):
        with pytest.raises(DataError, match="never fitted on contrast 'dwi'; it knows flair"):
            anatomy.read(ellipse()[None, None], ["dwi"])

    def test_one_sex_is_refused(self, people):
        images, truth = people
        women = (truth.female == 1).to_numpy()
        with pytest.raises(DataError, match="lacks slices of one sex"):
            fit_anatomy(images[women], truth.female[women], truth.contrast[women])

    def test_images_without_brains_are_refused(self):
        with pytest.raises(DataError, match="10 of 10 slices show no brain"):
            fit_anatomy(np.full((10, 1, 128, 128), -1.0), [0, 1] * 5, ["t1"] * 10)


@pytest.mark.parametrize("shape", [(128, 128), (2, 3, 128, 128), (2, 1, 128, 96), (2, 1, 32, 32)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(DataError, match="anatomy is measured on"):
        measure(np.zeros(shape))


def test_contrasts_must_match_images():
    with pytest.raises(DataError, match="1 contrasts for 2 images"):
        fitted = AnatomicalMeasurement({"t1": (0.0, 0.0, 0.0)}, (1.0, 1.0), (1.0, 1.0, 0.0))
        fitted.read(np.zeros((2, 1, 64, 64)), ["t1"])


def test_power_on_the_rim_counts_as_such_and_power_elsewhere_does_not():
    row, column = np.mgrid[:128, :128]
    radius = np.hypot(row - 60, column - 70)
    shape = Outline((60.0, 70.0), np.full(180, 40.0))
    rim, inside = ((np.abs(radius - middle) < 3).astype(float)[None, None] for middle in (40, 20))
    assert rim_share(rim, [shape]) == pytest.approx(1) and rim_share(inside, [shape]) == 0
    assert rim_share(np.ones((1, 1, 128, 128)), [shape]) == pytest.approx(
        2 * np.pi * 40 * 10 / 128**2, rel=0.05
    )


def test_the_rim_follows_an_outline_that_is_no_circle():
    """An ellipse twice as long as wide, upright: its rim is above the middle and at its side, not
    on the circle between.
    """
    angle = np.arange(180) * 2 * np.pi / 180
    shape = Outline((64.0, 64.0), 1 / np.hypot(np.cos(angle) / 20, np.sin(angle) / 40))
    spots = np.zeros((3, 1, 128, 128))
    spots[0, 0, 64 - 40, 64] = spots[1, 0, 64, 64 + 20] = spots[2, 0, 64, 64 + 30] = 1
    assert [rim_share(spot[None], [shape]) for spot in spots] == [1, 1, 0]
    small = Outline((64.0, 64.0), np.full(180, 30.0))
    either = [rim_share(spot[None], [shape], [small]) for spot in spots]
    assert either == [1, 1, 1], "within reach of one of two outlines"
