"""Which slices, which side, which millimetres: checked on volumes whose truth is written by
hand.
"""

import itertools

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairlib import DataError, SettingsError
from fairlib.cohorts.slices import (
    SliceSettings,
    _percentile,
    choose_slices,
    draw,
    extract,
    normalise,
    resampling,
    side_of,
    to_canonical,
)

SIZES = np.array([2.0, 2.0, 4.0])
RAS = np.diag([*SIZES, 1.0])
SETTINGS = SliceSettings(
    size=16, field_of_view_mm=32.0, slices_per_subject=2, minimum_gap_mm=4.0, minimum_tumour_mm2=4.0
)


def head(seed=0, shape=(12, 14, 6)) -> tuple[dict, np.ndarray]:
    """RAS volumes with a bright marker on the patient's left, to the front, and a tumour there
    too.
    """
    rng = np.random.default_rng(seed)
    volume = np.zeros(shape, np.float32)
    volume[2:10, 2:12, 1:5] = rng.uniform(100, 200, (8, 10, 4))
    volume[2:4, 9:12, 1:5] = 1000.0  # low x is left, high y is anterior
    labels = np.zeros(shape, np.uint8)
    labels[2:4, 9:12, 2:4] = 1
    return {"t1": volume, "t2": volume**0.5}, labels


def test_the_display_is_radiological():
    """A marker on the patient's left, in front, is seen in the right upper quarter of the
    picture.
    """
    volumes, labels = head()
    slices = extract(volumes, labels, RAS, SETTINGS)
    picture = slices.images[0, 0]
    rows, columns = np.nonzero(picture > 0.9)
    assert len(rows) == 6 and rows.max() < 8 and columns.min() >= 8
    assert slices.sides == ("left", "left")


FLIPS = list(itertools.product([1, -1], repeat=3))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", FLIPS)
def test_storage_order_changes_nothing(flips, order):
    """The same head stored along any axes in any direction gives the same images, bit for bit."""
    volumes, labels = head()
    code = [("LR", "PA", "IS")[axis][(flips[axis] + 1) // 2] for axis in order]
    stored = {
        name: nibabel.Nifti1Image(v, RAS).as_reoriented(_to(code)) for name, v in volumes.items()
    }
    seg = nibabel.Nifti1Image(labels, RAS).as_reoriented(_to(code))
    arrays = {name: np.asarray(image.dataobj) for name, image in stored.items()}
    again, first = (
        extract(arrays, np.asarray(seg.dataobj), seg.affine, SETTINGS),
        extract(volumes, labels, RAS, SETTINGS),
    )
    assert (
        np.array_equal(again.images, first.images)
        and again.index == first.index
        and again.side == first.side
    )


def _to(code):
    return nibabel.orientations.ornt_transform(
        nibabel.io_orientation(RAS), nibabel.orientations.axcodes2ornt(code)
    )


def test_canonical_voxel_sizes_follow_their_axes():
    affine = np.array([[0, 0, -2.0, 0], [3.0, 0, 0, 0], [0, 5.0, 0, 0], [0, 0, 0, 1]])
    data = np.random.default_rng(0).normal(size=(4, 5, 6))
    turned, sizes = to_canonical(data, affine)
    assert sizes.tolist() == [2.0, 3.0, 5.0]
    assert np.array_equal(
        turned, nibabel.as_closest_canonical(nibabel.Nifti1Image(data, affine)).dataobj
    )


def test_a_grid_that_is_right_is_copied():
    """At 2 mm pixels on 2 mm voxels the picture holds the normalised voxels themselves."""
    volumes, labels = head()
    slices = extract(volumes, labels, RAS, SETTINGS)
    expected = 2 * normalise(volumes["t1"], list(slices.index))[2:10, 2:12, 0] - 1
    assert np.array_equal(
        slices.images[0, 0][3:13, 4:12], expected[::-1, ::-1].T.astype(np.float32)
    )
    outside = slices.images[0, 0].copy()
    outside[3:13, 4:12] = -1
    assert (outside == -1).all()


@pytest.mark.parametrize(("n", "size"), [(32, 16), (48, 16), (24, 16), (16, 32)])
def test_resampling_is_torchs_antialiased_bilinear(n, size):
    """Independent check: torch's antialiased interpolation of an image with an empty margin."""
    image = np.zeros((n, n))
    margin = n // 4
    image[margin:-margin, margin:-margin] = np.random.default_rng(n).uniform(
        size=(n - 2 * margin,) * 2
    )
    settings = SliceSettings(size=size, field_of_view_mm=float(n))
    matrix = resampling(n, 1.0, (n - 1) / 2, settings)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None],
        size=(size, size),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )[0, 0]
    # torch works out its weights in single precision
    assert np.allclose(matrix @ image @ matrix.T, expected.numpy(), atol=1e-6)


@given(
    n=st.integers(5, 60),
    spacing=st.floats(0.4, 4),
    centre=st.floats(0, 50),
    size=st.integers(8, 40),
    fov=st.floats(20, 200),
)
def test_resampling_keeps_brightness_and_never_overshoots(n, spacing, centre, size, fov):
    matrix = resampling(n, spacing, centre, SliceSettings(size=size, field_of_view_mm=fov))
    assert matrix.min() >= 0 and matrix.sum(axis=1).max() <= 1 + 1e-9
    # pixel centres in voxels from the picture's edge
    place = (np.arange(size) + 0.5) * fov / size / spacing
    edge = np.floor(centre + 1 - fov / spacing / 2) - 0.5
    reach = max(fov / size / spacing, 1) + 1
    inside = (edge + place - reach >= 0) & (edge + place + reach <= n - 1)
    assert np.allclose(matrix[inside].sum(axis=1), 1)


@pytest.mark.parametrize("width", [20, 26, 33])
@pytest.mark.parametrize("voxel", [0.5, 1.0, 1.6, 2.0, 3.0])
def test_a_large_brain_stays_larger_than_a_small_one(voxel, width):
    """Millimetres in, millimetres out: the bright area of the picture is the area of the box, at
    any voxel size.
    """
    n = int(80 / voxel)
    volume = np.zeros((n, n, 3), np.float32)
    half = int(width / voxel / 2)
    volume[n // 2 - half : n // 2 + half, n // 2 - half : n // 2 + half, :] = np.array(
        [3.0, 2.0, 1.0]
    )  # slice 0 is all white
    settings = SliceSettings(size=64, field_of_view_mm=64.0, slices_per_subject=1, minimum_gap_mm=0)
    slices = extract(
        {"t1": volume}, np.zeros_like(volume, np.uint8), np.diag([voxel, voxel, 3, 1]), settings
    )
    area = float((slices.images[0, 0] + 1).sum() / 2)  # pixels of 1 mm^2
    assert slices.index == (0,) and area == pytest.approx((2 * half * voxel) ** 2, rel=0.01)


def test_normalisation_is_linear_between_percentiles_of_the_brain():
    rng = np.random.default_rng(1)
    volume = np.zeros((20, 20, 10))
    volume[5:15, 5:15] = rng.normal(500, 50, (10, 10, 10))
    volume[5, 5, 0] = 1e6  # one hot voxel must not darken the rest
    low, high = np.percentile(volume[volume != 0], [0.5, 99.5])
    grey = normalise(volume, [0, 7])
    inside = (volume[..., 7] > low) & (volume[..., 7] < high)
    assert np.allclose(grey[..., 1][inside], (volume[..., 7][inside] - low) / (high - low))
    assert grey[5, 5, 0] == 1 and (grey[:5] == 0).all() and 0.3 < grey[5:15, 5:15].mean() < 0.7


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 200),
    dtype=st.sampled_from(["u1", "i2", "u2", "f4", "f8"]),
    limits=st.tuples(st.floats(0, 49), st.floats(50, 100)),
)
def test_grey_limits_are_numpys_percentiles(seed, count, dtype, limits):
    """Of integers too, whose differences may exceed their type."""
    rng = np.random.default_rng(seed)
    ends = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype[0] in "iu" else (-1e5, 1e5)
    values = rng.uniform(*ends, count).astype(dtype)
    floats = values.astype(np.float64 if dtype == "f8" else np.float32)
    expected = np.percentile(floats, limits).tolist()
    assert [_percentile(values, limit) for limit in limits] == pytest.approx(expected, rel=1e-15)


def test_integers_give_the_images_of_floats():
    """Bit for bit, in the order of files and in that of numpy."""
    volumes, labels = head()
    whole = {name: np.round(volume).astype(np.int16) for name, volume in volumes.items()}
    floats = {name: volume.astype(np.float32) for name, volume in whole.items()}
    files = {name: np.asfortranarray(volume) for name, volume in whole.items()}
    expected = extract(floats, labels, RAS, SETTINGS).images
    for given_volumes in (whole, files):
        assert np.array_equal(extract(given_volumes, labels, RAS, SETTINGS).images, expected)


@given(scale=st.floats(0.1, 50), shift=st.floats(1, 1000))
def test_normalisation_ignores_the_scanners_scale(scale, shift):
    volume = np.zeros((6, 6, 4))
    volume[1:5, 1:5] = np.random.default_rng(2).uniform(10, 20, (4, 4, 4))
    other = np.where(volume != 0, volume * scale + shift, 0)
    assert np.allclose(normalise(volume, [1]), normalise(other, [1]), atol=1e-6)


def greedy(brain, tumour, spacing, settings):
    """The rule once more, spelt out naively."""
    left = [z for z in range(len(brain)) if brain[z] >= settings.minimum_area * max(brain)]
    chosen = []
    while left and len(chosen) < settings.slices_per_subject:
        best = max(left, key=lambda z: (tumour[z], brain[z], -z))
        chosen.append(best)
        left = [z for z in left if z != best and abs(z - best) * spacing >= settings.minimum_gap_mm]
    return sorted(chosen)


@given(
    brain=st.lists(st.integers(1, 100), min_size=1, max_size=30),
    tumour=st.lists(st.integers(0, 9), min_size=30, max_size=30),
    wanted=st.integers(1, 6),
    gap=st.integers(0, 12),
)
def test_chosen_slices_are_those_of_the_rule(brain, tumour, wanted, gap):
    settings = SliceSettings(slices_per_subject=wanted, minimum_gap_mm=gap, minimum_area=0.5)
    brain, tumour = np.array(brain, float), np.array(tumour[: len(brain)], float)
    chosen = choose_slices(brain, tumour, 2.0, settings)
    assert chosen == greedy(brain, tumour, 2.0, settings) and chosen
    assert all(b - a >= gap / 2 for a, b in itertools.pairwise(chosen))


def test_most_tumour_comes_first_and_thin_slices_never():
    brain, tumour = np.array([10.0, 90, 100, 95, 90, 20]), np.array([50.0, 0, 3, 8, 0, 90])
    settings = SliceSettings(slices_per_subject=2, minimum_gap_mm=0)
    assert choose_slices(brain, tumour, 1.0, settings) == [2, 3]
    assert choose_slices(brain, 0 * tumour, 1.0, settings) == [2, 3]  # without tumour: most brain
    assert choose_slices(
        brain, tumour, 1.0, SliceSettings(slices_per_subject=2, minimum_gap_mm=2)
    ) == [1, 3]


def test_side_is_the_patients():
    tumour = np.zeros((10, 4), bool)
    tumour[1:3, :2] = True
    sizes = np.ones(3)
    assert (
        side_of(tumour, 4.5, sizes, 0) == "left" and side_of(tumour[::-1], 4.5, sizes, 0) == "right"
    )
    tumour[6:9] = True
    assert side_of(tumour, 4.5, sizes, 0) == "right"
    assert (
        side_of(tumour, 4.5, sizes, 17) == "none" and side_of(0 * tumour, 4.5, sizes, 0) == "none"
    )


def test_draw_maps_background_to_minus_one_and_bright_to_one():
    eye = np.eye(8)
    picture = draw(np.pad(np.ones((2, 2)), 3), eye, eye)
    assert picture.dtype == np.float32 and picture.min() == -1 and picture.max() == 1


def test_a_brain_wider_than_the_picture_is_said_to_be_cropped():
    volumes, labels = head()
    narrow = SliceSettings(size=16, field_of_view_mm=18.0, slices_per_subject=1, minimum_gap_mm=0)
    assert (
        extract(volumes, labels, RAS, narrow).cropped
        and not extract(volumes, labels, RAS, SETTINGS).cropped
    )


def test_empty_and_flat_volumes_are_refused():
    volumes, labels = head()
    with pytest.raises(DataError, match="t2 volume shows no brain"):
        extract({**volumes, "t2": 0 * volumes["t2"]}, labels, RAS, SETTINGS)
    with pytest.raises(DataError, match="single value"):
        extract({"t1": (volumes["t1"] > 0).astype(np.float32)}, labels, RAS, SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 4},
        {"slices_per_subject": 0},
        {"minimum_area": 0.0},
        {"clip_percentiles": (99.0, 1.0)},
        {"field_of_view_mm": -1.0},
        {"minimum_gap_mm": -1.0},
        {"clip_percentiles": (1.0,)},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(SettingsError, match="expected"):
        SliceSettings(**change)
