"""Cup and disc: right on ellipses of known size and on phantoms, and unmoved by what is no
anatomy.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fairlib.errors import DataError
from studies.fundus import evaluators
from studies.fundus.evaluators import HARMONICS, _model, fit_disc, measure_cdr
from studies.fundus.phantom import PhantomSettings
from tests.studies.fundus.drawing import draw_fundi

RNG = np.random.default_rng


def ellipses(
    cdr,
    diameter=38.0,
    aspect=0.9,
    middle=(62.0, 66.0),
    shift=(0.0, 0.0),
    levels=(-0.5, 0.3, 0.9),
    size=128,
):
    """A disc and its cup, soft-edged by partial volume and a slight blur: [1, 1, size, size].
    Lengths in pixels of 128.
    """
    fine = (np.mgrid[: size * 4, : size * 4] + 0.5) * 128 / (4 * size) - 0.5

    def inside(ratio, offset):
        away = np.hypot(
            (fine[0] - middle[0] - offset[0]) / ratio,
            (fine[1] - middle[1] - offset[1]) / (ratio * aspect),
        )
        return (away < diameter / 2).reshape(size, 4, size, 4).mean((1, 3))

    disc, cup = inside(1, (0, 0)), inside(cdr, shift)
    picture = levels[0] + (levels[1] - levels[0]) * disc + (levels[2] - levels[1]) * cup
    return ndimage.gaussian_filter(picture, 0.8 * size / 128)[None, None].astype(np.float32)


@pytest.fixture(scope="module")
def phantoms():
    """75 synthetic fundi with the three races equally frequent, and their truth."""
    images, table = draw_fundi(
        PhantomSettings(seed=77, white=0.34, black=0.33, hispanic=0.3), range(75)
    )
    return images.numpy(), table


@pytest.fixture(scope="module")
def measured(phantoms):
    return measure_cdr(phantoms[0])


@pytest.mark.parametrize("cdr", [0.3, 0.45, 0.6, 0.75])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"diameter": 44, "aspect": 1.0},
        {"diameter": 34, "aspect": 0.8},
        {"shift": (0.8, -1.0), "middle": (70.3, 55.8)},
        {"levels": (-0.9, 0.6, 0.8)},
    ],
)
def test_ellipses_of_known_size(cdr, keys):
    found = measure_cdr(ellipses(cdr, **keys))
    assert found["cdr"][0] == pytest.approx(cdr, abs=0.03)
    assert found["disc_diameter"][0] == pytest.approx(keys.get("diameter", 38.0), rel=0.025)


def test_a_larger_picture_has_a_larger_disc_and_the_same_ratio():
    found = measure_cdr(ellipses(0.5, size=256))
    assert found["cdr"][0] == pytest.approx(0.5, abs=0.03) and found["disc_diameter"][
        0
    ] == pytest.approx(76, rel=0.025)


def test_the_middle_and_the_levels_are_found():
    fit = fit_disc(ellipses(0.5, middle=(58.0, 71.0))[0, 0])
    assert fit.centre == pytest.approx((58.0, 71.0), abs=0.5)
    background, rim, cup = fit.levels
    assert (rim - background) / (cup - background) == pytest.approx(0.8 / 1.4, abs=0.03)


@pytest.mark.parametrize("race", ["Asian", "Black", "White"])
def test_phantoms_of_every_race(phantoms, measured, race):
    table = phantoms[1]
    error = (measured.cdr - table.cdr)[table.race == race]
    assert len(error) > 15 and error.notna().mean() >= 0.95
    assert error.abs().mean() <= 0.04 and abs(error.mean()) <= 0.03
    assert (
        np.corrcoef(measured.cdr[error.dropna().index], table.cdr[error.dropna().index])[0, 1] > 0.9
    )
    assert (measured.disc_diameter - table.disc_diameter)[table.race == race].abs().mean() < 1.0


@pytest.mark.parametrize(
    ("change", "most"),
    [
        (lambda x: 0.6 * x - 0.3, 1e-3),
        (lambda x: 2 * ((x + 1) / 2) ** 1.3 - 1, 0.02),
        (lambda x: x + 0.3 * np.linspace(-0.5, 0.5, 128, dtype=np.float32), 0.02),
        (lambda x: x + 0.05 * RNG(0).standard_normal(x.shape), 0.025),
        (lambda x: ndimage.gaussian_filter(x, (0, 0, 0.8, 0.8)), 0.03),
        (lambda x: x[..., ::-1], 0.005),
        (lambda x: np.roll(x, (6, -7), (-2, -1)), 0.01),
    ],
    ids=["darker", "gamma", "shading", "noise", "blur", "mirrored", "shifted"],
)
def test_the_camera_hardly_moves_the_ratio(phantoms, measured, change, most):
    """Median change of a picture's reading; the mean error to the truth stays small, too."""
    images, table = phantoms[0][:16], phantoms[1][:16]
    found = measure_cdr(change(images))
    assert found.has_disc.mean() > 0.9
    assert (found.cdr - measured.cdr[:16]).abs().median() <= most
    assert (found.cdr - table.cdr).abs().mean() <= 0.05


def test_every_phantom_is_in_the_domain(measured, phantoms):
    """With room to spare: of 75 the brightest surroundings are at most 0.47 of the cup."""
    assert measured.has_disc.sum() == len(measured) == 75
    fits = [fit_disc(image[0]) for image in phantoms[0]]
    levels = [(fit.levels[0], fit.levels[2]) for fit in fits]
    assert max(background / cup for background, cup in levels) < 0.96 * evaluators.SURROUND


HALVES = np.array([130, 160, 190, 220])


def crops(channels):
    """Squares around the disc of one real eye, [N, 1, 128, 128] in [-1, 1].

    The photograph is of Mikael Haggstrom (Medical gallery, 2014, doi:10.15347/wjm/2014.008; public
    domain, CC0), of half its size.
    """
    colour = np.asarray(Image.open(Path(__file__).with_name("photograph.jpg")), np.float32)
    plane = np.pad(colour @ np.array(channels, np.float32), 300)  # the disc lies near the edge
    found = []
    for half in HALVES:
        square = Image.fromarray(plane[630 - half : 630 + half, 414 - half : 414 + half])
        grey = np.asarray(square.resize((128, 128), Image.Resampling.BILINEAR))
        found.append((grey - grey.min()) / np.ptp(grey) * 2 - 1)
    return np.stack(found)[:, None]


@pytest.mark.parametrize("channels", [(0.299, 0.587, 0.114), (0, 1, 0)], ids=["grey", "green"])
def test_a_colour_photograph_is_refused(channels, monkeypatch):
    """There one and the same disc would be found to have several sizes."""
    images = crops(channels)
    assert not measure_cdr(images).has_disc.any()
    monkeypatch.setattr(evaluators, "SURROUND", np.inf)
    wrong = (measure_cdr(images).disc_diameter * HALVES / 64).dropna()  # in the photograph's pixels
    assert len(wrong) == 3 and wrong.max() > 1.1 * wrong.min()


def test_pictures_without_a_disc_are_counted_and_never_raise():
    noise = RNG(0).standard_normal((4, 1, 128, 128)).clip(-1, 1)
    plain, lost = np.zeros((1, 1, 128, 128)), np.full((1, 1, 128, 128), np.nan)
    ramp = np.broadcast_to(np.linspace(-1, 1, 128), (1, 1, 128, 128))
    no_cup = ellipses(0.5, levels=(-0.5, 0.5, 0.5))
    found = measure_cdr(np.concatenate([noise, plain, lost, ramp, no_cup, ellipses(0.5)]))
    assert found.has_disc.tolist() == [False] * 8 + [True]
    assert found[["cdr", "disc_diameter"]].isna().all(axis=1).tolist() == [True] * 8 + [False]
    assert measure_cdr(np.zeros((0, 1, 128, 128))).columns.tolist() == [
        "cdr",
        "disc_diameter",
        "has_disc",
    ]


@pytest.mark.parametrize("shape", [(128, 128), (2, 3, 128, 128), (2, 1, 128, 100), (2, 1, 32, 32)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(DataError, match="shape"):
        measure_cdr(np.zeros(shape))


def test_the_slopes_of_the_model_are_its_derivatives():
    """Against central differences."""
    values = np.concatenate(
        [
            [19, 0.5, -0.3, 0.4, 0.2],
            [9, -0.6, 0.2, 0.1, 0.3],
            [0.3, 0.02, -0.01, 0.03, 0.6, 0.01, 0.02, 0.9],
        ]
    )
    assert len(values) == 2 * HARMONICS + 8
    _, slopes = _model(values)
    for number, slope in enumerate(slopes):
        step = np.zeros(len(values))
        step[number] = 1e-5
        expected = (_model(values + step)[0] - _model(values - step)[0]).ravel() / 2e-5
        assert slope == pytest.approx(expected, abs=1e-6)
