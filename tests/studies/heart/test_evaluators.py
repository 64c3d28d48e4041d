"""Geometry of masks, against discs and rings in closed form and against phantom hearts whose truth
is known.
"""

import numpy as np
import pandas as pd
import pytest

from fairlib.errors import DataError
from studies.heart import evaluators as c
from studies.heart import measures
from studies.heart.phantom import draw_subject, expected_geometry, make_person

RNG = np.random.default_rng


def ring(inner, outer, size=96, centre=(0.0, 0.0), stretch=1.0):
    """A mask [1, 2, size, size]: cavity of radius `inner` pixels in a ring up to `outer`; ES at 0.7
    of ED.
    """
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    away = np.hypot((x - centre[0]) / stretch, (y - centre[1]) * stretch)
    return np.stack(
        [np.where(away < k * inner, 1, np.where(away < k * outer, 2, 0)) for k in (1.0, 0.7)]
    )[None].astype(np.uint8)


def many(inner, outer, count=40, **keys):
    """The same ring at many sub-pixel positions."""
    return np.concatenate(
        [
            ring(inner, outer, centre=tuple(RNG(i).uniform(-0.5, 0.5, 2)), **keys)
            for i in range(count)
        ]
    )


@pytest.mark.parametrize("inner, outer", [(6, 10), (12, 16), (16, 19), (24, 30)])
@pytest.mark.parametrize("pixel", [1.0, 2.0])
def test_rings_in_closed_form(inner, outer, pixel):
    """Areas within 1 %, the wall within 1 % (of its thickness) on average and 6 % in the worst
    position.
    """
    found = c.geometry(many(inner, outer), pixel)
    assert found["lv_ed_area"].mean() == pytest.approx(np.pi * (inner * pixel) ** 2, rel=0.01)
    assert found["lv_es_area"].mean() == pytest.approx(np.pi * (0.7 * inner * pixel) ** 2, rel=0.02)
    assert found["diameter_ed"].mean() == pytest.approx(2 * inner * pixel, rel=0.01)
    assert found["myo_ed_area"].mean() == pytest.approx(
        np.pi * (outer**2 - inner**2) * pixel**2, rel=0.01
    )
    assert found["ejection"].mean() == pytest.approx(0.51, abs=0.01)
    assert found["wall_ed"].mean() == pytest.approx((outer - inner) * pixel, rel=0.01)
    assert found["wall_ed"].to_numpy() == pytest.approx((outer - inner) * pixel, rel=0.06)
    assert found["wall_es"].mean() == pytest.approx(0.7 * (outer - inner) * pixel, rel=0.02)


def test_perimeter_of_circles_and_ellipses():
    """Circles within 1 % on average; an ellipse with axes 1 : 1.44, against its elliptic integral,
    within 3 %.
    """
    from scipy.special import ellipe

    for radius in (5, 10, 25):
        assert c.perimeter(many(radius, radius + 2)[:, 0] == 1).mean() == pytest.approx(
            2 * np.pi * radius, rel=0.01
        )
    stretched = c.perimeter(many(20, 22, stretch=1.2)[:, 0] == 1).mean()
    assert stretched == pytest.approx(4 * 24 * ellipe(1 - (20 / 1.2 / 24) ** 2), rel=0.03)


def test_wall_of_an_even_ring_about_an_ellipse():
    """The outer outline runs 5 pixels outside of an ellipse everywhere: distance transform as an
    independent construction.
    """
    from scipy.ndimage import distance_transform_edt

    y, x = np.mgrid[:400, :400] - 199.5
    cavity = np.hypot(x / 80, y / 110) < 1
    epicardium = distance_transform_edt(~cavity) <= 50
    assert c.wall_thickness(cavity, epicardium, 0.2) == pytest.approx(10, rel=0.02)


def test_a_speck_is_not_anatomy():
    clean, dirty = ring(12, 16), ring(12, 16)
    for label, row in ((1, 2), (2, 8), (3, 14)):
        dirty[:, :, row : row + 3, 2:5] = label
    dirty[:, :, 40:50, 80:90] = 3
    found = c.geometry(dirty)
    for name in ("lv_ed_area", "myo_ed_area", "wall_ed", "ejection"):
        assert found[name][0] == c.geometry(clean)[name][0]
    assert found["rv_ed_area"][0] == 400
    assert (
        c.geometry(dirty, largest=False)["lv_ed_area"][0] == c.geometry(clean)["lv_ed_area"][0] + 36
    )


def test_missing_structures_are_nan():
    masks = np.concatenate([ring(12, 16)] * 3)
    masks[1, 1][masks[1, 1] == 1] = 0  # no cavity in systole
    masks[2] = 0
    found = c.geometry(masks)
    assert found["ejection"].isna().tolist() == [False, True, True]
    assert found["wall_ed"].isna().tolist() == [False, False, True]
    counts = found.isna().sum()
    assert counts[["lv_ed_area", "lv_es_area", "ejection", "rv_ed_area"]].tolist() == [1, 2, 2, 3]


@pytest.mark.parametrize(
    "masks, keys, words",
    [
        (np.zeros((3, 64, 64)), {}, "shape"),
        (np.zeros((1, 3, 64, 64)), {}, "shape"),
        (np.full((2, 2, 8, 8), 4), {}, r"labels \[4\] \(first in row 0\)"),
        (np.full((1, 2, 8, 8), 0.5), {}, r"labels \[0.5\]"),
        (np.full((1, 2, 8, 8), np.nan), {}, "labels"),
        (np.zeros((1, 2, 8, 8)), {"pixel": 0.0}, "pixel size"),
        (np.zeros((1, 2, 8, 8)), {"pixel": np.nan}, "pixel size"),
    ],
)
def test_bad_masks_are_refused(masks, keys, words):
    with pytest.raises(DataError, match=words):
        c.geometry(masks, **keys)


KINDS = [("F", "healthy"), ("M", "healthy"), ("F", "heart failure"), ("M", "heart failure")]


@pytest.fixture(scope="module")
def hearts():
    """12 phantom hearts of one age and body for each sex and diagnosis: masks and their table."""
    rng = RNG(3)
    found = [
        draw_subject(rng, make_person(rng, sex, 60, 27.0, diagnosis, 170), f"{sex}-{diagnosis}-{i}")
        for sex, diagnosis in KINDS
        for i in range(12)
    ]
    return np.stack([heart.masks for heart in found]), pd.DataFrame([heart.row for heart in found])


def test_masks_of_phantoms_measure_what_the_phantom_is(hearts):
    """Areas within 4 % (or 30 mm2), wall within 0.5 mm and 0.1 mm on average, ejection within 0.02
    of each heart's truth.
    """
    masks, table = hearts
    found = c.geometry(masks)
    for name in ("lv_ed_area", "lv_es_area"):
        assert found[name].to_numpy() == pytest.approx(table[name].to_numpy(), rel=0.04, abs=30)
    for name in ("wall_ed", "wall_es"):
        error = (found[name] - table[name]).to_numpy()
        assert np.abs(error).max() < 0.5 and abs(error.mean()) < 0.1
    assert found["ejection"].to_numpy() == pytest.approx(table["ejection"].to_numpy(), abs=0.02)


def test_hearts_drawn_by_the_law_obey_it_and_planted_errors_are_seen(hearts):
    """Masks of the law itself: the interval of most cells holds 0. With thinner walls in women only
    that shows.
    """
    masks, table = hearts
    own = c.geometry(masks)
    found = measures.attribute_truth(
        own, table, expected_geometry, RNG(0), real=(own, table), replicates=200
    )
    assert list(found["attribute"].unique()) == ["all", "sex", "diagnosis"]
    assert set(found["measure"]) == {
        "lv_ed_area",
        "lv_es_area",
        "diameter_ed",
        "ejection",
        "wall_ed",
        "wall_es",
        "myo_ed_area",
    }
    healthy = found[found["group"] == "healthy"].set_index("measure")
    assert (
        abs(healthy.loc["wall_ed", "difference"]) < 0.4 and healthy.loc["wall_ed", "unit"] == "mm"
    )
    assert ((found["low"] < 0) & (found["high"] > 0)).mean() > 0.7
    faces = measures.attribute_truth(
        own,
        table,
        expected_geometry,
        RNG(0),
        inputs=(*measures.RULE_INPUTS, "face"),
        replicates=200,
    )
    width, narrower = (
        (t["high"] - t["low"])[
            (t["group"] == "heart failure") & (t["measure"] == "ejection")
        ].item()
        for t in (found, faces)
    )
    assert narrower < width  # which face of the disease it is says more than the disease
    assert (found["beyond_real"] == 0).all()
    planted = own.copy()
    planted.loc[table["sex"] == "F", "wall_ed"] -= 2.0
    found = measures.attribute_truth(
        planted, table, expected_geometry, RNG(0), ("sex",), real=(own, table), replicates=200
    )
    wall = found[found["measure"] == "wall_ed"].set_index("group")
    assert wall.loc["F", "beyond_real"] == pytest.approx(-2) and wall.loc["F", "beyond_high"] < 0
    assert (
        wall.loc["M", "beyond_real"] == 0
        and wall.loc["M", "beyond_low"] < 0 < wall.loc["M", "beyond_high"]
    )
    assert wall.loc["all", "beyond_real"] == pytest.approx(-1)


def test_differences_are_means_of_measured_minus_expected():
    """A law written down here: brute force means, subjects of two images each, a missing BMI left
    out and counted.
    """
    rng = RNG(0)
    table = pd.DataFrame(
        {
            "subject": np.repeat(np.arange(12), 2),
            "sex": list("FM") * 12,
            "age": 50,
            "height": 170,
            "diagnosis": "healthy",
            "bmi": np.r_[np.nan, np.linspace(20, 30, 23)],
        }
    )
    measured = pd.DataFrame({"wall_ed": rng.normal(9, 1, 24)})
    measured.loc[5, "wall_ed"] = np.nan

    def law(sex, age, bmi, height, diagnosis):
        return {"wall_ed": bmi / 3 + (sex == "M"), "unheard_of": 1.0}

    found = measures.attribute_truth(measured, table, law, RNG(1), ("sex",)).set_index("group")
    expected = table["bmi"] / 3 + (table["sex"] == "M")
    for group, rows in (
        ("F", table["sex"] == "F"),
        ("M", table["sex"] == "M"),
        ("all", table["age"] > 0),
    ):
        error = (measured["wall_ed"] - expected)[rows]
        assert found.loc[group, "difference"] == pytest.approx(np.nanmean(error))
        assert found.loc[group, "undefined"] == error.isna().sum()
        assert found.loc[group, "low"] < np.nanmean(error) < found.loc[group, "high"]
    assert found.loc["F", "images"] == 12 and found.loc["F", "undefined"] == 1
    assert "beyond_real" not in found


def test_small_groups_have_no_interval_and_missing_labels_are_shown():
    table = pd.DataFrame(
        {
            "subject": range(9),
            "sex": ["F", "F", "M", "M", "M", "M", "M", "M", None],
            "age": 50,
            "height": 170,
            "bmi": 25.0,
            "diagnosis": "healthy",
            "centre": [1] * 8 + [None],
        }
    )
    found = measures.attribute_truth(
        pd.DataFrame({"wall_ed": np.arange(9.0)}),
        table,
        lambda **_: {"wall_ed": 3.0},
        RNG(0),
        ("sex", "centre"),
        replicates=50,
    ).set_index(["attribute", "group"])
    assert (
        np.isnan(found.loc[("sex", "F"), "low"]) and found.loc[("sex", "F"), "difference"] == -2.5
    )
    assert np.isfinite(found.loc[("sex", "M"), "low"])
    assert found.loc[("sex", "missing"), "undefined"] == 1 and np.isnan(
        found.loc[("sex", "missing"), "difference"]
    )
    assert found.loc[("centre", "missing"), "images"] == 1


def test_tables_that_do_not_match_are_refused():
    table = pd.DataFrame(
        {
            "subject": [1],
            "sex": ["F"],
            "age": [50],
            "height": [170],
            "bmi": [np.nan],
            "diagnosis": ["healthy"],
        }
    )
    measured = pd.DataFrame({"wall_ed": [9.0]})
    with pytest.raises(DataError, match="no heart has all of"):
        measures.attribute_truth(measured, table, lambda **_: {"wall_ed": 3.0}, RNG(0))
    with pytest.raises(DataError, match="height"):
        measures.attribute_truth(measured, table.drop(columns="height"), lambda **_: {}, RNG(0))
    with pytest.raises(DataError, match="2 measured hearts and 1 rows"):
        measures.attribute_truth(pd.concat([measured] * 2), table, lambda **_: {}, RNG(0))
