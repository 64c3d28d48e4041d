"""Dice against brute force and scikit-learn's F1; intervals and references by subgroup."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from fairlib.errors import DataError
from fairlib.measures import dice as o

RNG = np.random.default_rng


def blobs(n=6, size=16, seed=0):
    return RNG(seed).integers(0, 4, (n, 2, size, size)).astype(np.uint8)


def disturbed(masks, share, seed=1):
    """`masks` with a share of the pixels drawn anew."""
    rng = RNG(seed)
    return np.where(rng.random(masks.shape) < share, rng.integers(0, 4, masks.shape), masks).astype(
        np.uint8
    )


def test_dice_is_the_f1_score_of_each_structure():
    asked, found = blobs(), disturbed(blobs(), 0.3)
    scores = o.dice(asked, found)
    assert scores.shape == (6, 2, 3)
    for index in np.ndindex(6, 2):
        theirs = f1_score(
            asked[index].ravel(), found[index].ravel(), labels=[1, 2, 3], average=None
        )
        assert scores[index] == pytest.approx(theirs)


def test_edges_of_dice():
    asked = np.zeros((1, 2, 4, 4), np.uint8)
    found = asked.copy()
    asked[0, 0, :2], found[0, 0, 1:3] = 1, 1  # half overlap
    asked[0, 0, 3] = 2  # asked, not found
    scores = o.dice(asked, found)
    assert scores[0, 0].tolist()[:2] == [0.5, 0.0]
    assert np.isnan(scores[0, 0, 2]) and np.isnan(scores[0, 1]).all()
    assert (o.dice(asked, asked)[0, 0, :2] == 1).all()
    assert np.isnan(o.mean_dice(scores))


def test_means_leave_out_what_is_undefined():
    scores = RNG(0).random((5, 2, 3))
    scores[0, 1, 2] = scores[3, 0, 0] = np.nan
    assert o.structure_means(scores) == pytest.approx(
        [np.nanmean(scores[..., i]) for i in range(3)]
    )
    assert o.mean_dice(scores) == pytest.approx(
        np.mean([np.nanmean(scores[..., i]) for i in range(3)])
    )


def test_a_table_by_subgroup():
    asked = blobs(40)
    sex = np.array(list("FM") * 20)
    found = np.where(
        (sex == "F")[:, None, None, None], disturbed(asked, 0.5), disturbed(asked, 0.1)
    )
    asked[0, 0][asked[0, 0] == 3] = 0
    found[0, 0][found[0, 0] == 3] = 0
    centre = np.array([None] * 3 + ["A"] * 37, dtype=object)
    table = o.dice_table(
        asked, found, {"sex": sex, "centre": centre}, np.arange(40), RNG(0), replicates=200
    )
    rows = table.set_index(["attribute", "group"])
    assert list(rows.index) == [
        ("all", "all"),
        ("sex", "F"),
        ("sex", "M"),
        ("centre", "A"),
        ("centre", "missing"),
    ]
    scores = o.dice(asked, found)
    for group in "FM":
        row, own = rows.loc[("sex", group)], scores[sex == group]
        assert [row["LV"], row["MYO"], row["RV"]] == pytest.approx(o.structure_means(own))
        assert row["ES"] == pytest.approx(own[:, 1].mean())
        assert row["low"] < row["mean"] < row["high"]
    assert rows.loc[("sex", "F"), "high"] < rows.loc[("sex", "M"), "low"]
    assert rows.loc[("sex", "F"), "undefined"] == rows.loc[("all", "all"), "undefined"] == 1
    assert rows.loc[("centre", "missing"), "subjects"] == 3 and np.isnan(
        rows.loc[("centre", "missing"), "low"]
    )


def test_intervals_draw_subjects():
    """Five images of each person, alike: the interval is that of the people, sqrt(5) times as wide
    as that of the rows.
    """
    asked = np.repeat(blobs(20), 5, 0)
    shares = np.repeat(RNG(0).uniform(0.05, 0.5, 20), 5)
    found = np.stack([disturbed(mask, share, 2) for mask, share in zip(asked, shares, strict=True)])

    def width(subjects):
        row = o.dice_table(asked, found, {}, subjects, RNG(1), replicates=400).iloc[0]
        return row["high"] - row["low"]

    assert width(np.repeat(np.arange(20), 5)) == pytest.approx(
        np.sqrt(5) * width(np.arange(100)), rel=0.25
    )


def test_the_reference_is_that_of_the_subgroup():
    asked, sex = blobs(40), np.array(list("FM") * 20)
    found = disturbed(asked, 0.2)
    real = blobs(30, seed=5)
    real_sex = np.array(list("FFM") * 10)
    scores = o.dice(
        real, np.where((real_sex == "F")[:, None, None, None], disturbed(real, 0.4), real)
    )
    reference = o.Reference(scores, np.arange(30), {"sex": real_sex})
    rows = o.dice_table(
        asked, found, {"sex": sex}, np.arange(40), RNG(0), reference, 200
    ).set_index("group")
    for group in "FM":
        assert rows.loc[group, "reference"] == pytest.approx(o.mean_dice(scores[real_sex == group]))
        assert rows.loc[group, "difference"] == pytest.approx(
            rows.loc[group, "mean"] - rows.loc[group, "reference"]
        )
    assert rows.loc["F", "difference_low"] > 0 > rows.loc["M", "difference_high"]
    alone = o.dice_table(
        asked, found, {"sex": sex}, np.arange(40), RNG(0), o.Reference(scores, np.arange(30)), 20
    )
    assert alone["reference"].nunique() == 1
    nobody = o.Reference(scores, np.arange(30), {"sex": np.full(30, "F")})
    rows = o.dice_table(asked, found, {"sex": sex}, np.arange(40), RNG(0), nobody, 20).set_index(
        "group"
    )
    assert np.isnan(rows.loc["M", "reference"]) and np.isnan(rows.loc["M", "difference_low"])


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="different grids"):
        o.dice(blobs(size=16), blobs(size=8))
    with pytest.raises(DataError, match="masks read hold labels"):
        o.dice(blobs(), blobs() + 4)
    with pytest.raises(DataError, match="5 subjects for 6 images"):
        o.dice_table(blobs(), blobs(), {}, np.arange(5), RNG(0))
    with pytest.raises(DataError, match="2 'sex' labels for 6 images"):
        o.dice_table(blobs(), blobs(), {"sex": ["F", "M"]}, np.arange(6), RNG(0))
