"""Subgroup distances with their floors, and how a Frechet distance grows as images become few."""

import numpy as np
import pytest

from fairlib.errors import DataError, SettingsError
from fairlib.measures import distances as d
from fairlib.measures.distances import frechet, mmd

RNG = np.random.default_rng


def two_groups(n=120, m=60, shift=1.0, wrong=0.0, seed=0):
    """Women at 0, men `shift` away in 6 dimensions; the synthetic men moved by `wrong` more."""
    rng = RNG(seed)
    groups, made = np.repeat(["F", "M"], n), np.repeat(["F", "M"], m)
    real = rng.normal(size=(2 * n, 6)) + shift * (groups == "M")[:, None]
    synthetic = rng.normal(size=(2 * m, 6)) + (shift + wrong) * (made == "M")[:, None]
    return real, synthetic, groups, made


@pytest.mark.parametrize("measure", ["mmd", "frechet"])
def test_the_matrix_of_a_faithful_and_of_a_wrong_generator(measure):
    """Faithful: the diagonal lies within its floor, the rest where real people of the other group
    lie.
    """
    keys = {"measure": measure, "splits": 8, "replicates": 60}
    faithful = d.subgroup_distances(*two_groups(), RNG(0), **keys).set_index(
        ["real_group", "synthetic_group"]
    )
    assert (faithful["n"] == 60).all() and len(faithful) == 4
    for pair in (("F", "F"), ("M", "M")):
        row = faithful.loc[pair]
        assert (
            row["low"] <= row["floor_high"]
            and row["floor_low"] <= row["high"]
            and row["between"] == row["floor"]
        )
    for pair in (("F", "M"), ("M", "F")):
        row = faithful.loc[pair]
        assert row["low"] > row["floor_high"] and row["low"] < row["between"] < row["high"]
    wrong = d.subgroup_distances(*two_groups(wrong=0.8), RNG(0), **keys).set_index(
        ["real_group", "synthetic_group"]
    )
    assert wrong.loc[("M", "M"), "low"] > wrong.loc[("M", "M"), "floor_high"]
    assert wrong.loc[("F", "F"), "low"] <= wrong.loc[("F", "F"), "floor_high"]


def test_floors_are_those_of_the_measure():
    """MMD of one population is 0 on average; the Frechet floor is what `expected_floor` says (to
    first order).
    """
    keys = {"splits": 6, "replicates": 20}
    found = {
        m: d.subgroup_distances(*two_groups(400, 200), RNG(0), measure=m, **keys)
        for m in ("mmd", "frechet")
    }
    assert (found["mmd"]["floor_low"] < 0).all() and found["mmd"]["floor"].abs().max() < 0.02
    assert found["frechet"]["floor"].mean() == pytest.approx(6 * 11 / 2 / 200, rel=0.25)


def test_disjoint_sets_share_no_subject():
    clusters = np.repeat(np.arange(30), RNG(0).integers(1, 6, 30))
    n = d.most_disjoint(clusters)
    for seed in range(50):
        one, other = d.disjoint(clusters, n, RNG(seed))
        assert len(one) == len(other) == n and not set(clusters[one]) & set(clusters[other])
        assert len(np.unique(np.concatenate([one, other]))) == 2 * n
    with pytest.raises(DataError, match="without a common subject"):
        d.disjoint(clusters, len(clusters) // 2 + 1, RNG(0))
    assert d.most_disjoint(np.arange(9)) == 4


def test_subjects_are_kept_apart_in_the_floor():
    """Four alike images of each person: blind, copies sit on both sides and the Frechet floor is
    less than half.
    """
    real, synthetic, groups, made = two_groups(60, 60)
    real, groups, subjects = (
        np.repeat(real, 4, 0),
        np.repeat(groups, 4),
        np.repeat(np.arange(120), 4),
    )
    keys = {"measure": "frechet", "splits": 12, "replicates": 4, "n": 60}
    named = d.subgroup_distances(real, synthetic, groups, made, RNG(0), subjects, **keys)
    blind = d.subgroup_distances(real, synthetic, groups, made, RNG(0), **keys)
    assert named["floor"].mean() > 2 * blind["floor"].mean()


def test_the_frechet_interval_covers_its_expectation():
    """N(0, I) against N(1/2, I): the mean over many draws at this n lies in 95 % of the intervals
    or nearly.
    """

    def draw(seed):
        return RNG(seed).normal(size=(80, 4)), RNG(10_000 + seed).normal(size=(80, 4)) + 0.5

    expectation = np.mean([frechet(*draw(seed)) for seed in range(1000, 1300)])
    hits = sum(
        expectation in d.frechet_interval(x, y, RNG(seed), replicates=60)
        for seed in range(40)
        for x, y in [draw(seed)]
    )
    assert hits >= 34


def standard(n, width, seed):
    """A normal sample whose mean is exactly 0 and whose covariance is exactly the identity."""
    x = RNG(seed).normal(size=(n, width))
    x = x - x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_frechet_by_n_follows_theory():
    """One normal population with unequal variances: first-order theory within 15 %."""
    x = standard(4000, 5, 0) * np.array([2.0, 1.0, 1.0, 0.5, 0.5])
    table = d.frechet_by_n(x, (100, 200, 400, 800), RNG(2), repeats=80)
    assert table["distance"].is_monotonic_decreasing and (table["low"] <= table["distance"]).all()
    assert table["distance"].to_numpy() == pytest.approx(table["floor_theory"].to_numpy(), rel=0.15)
    assert d.expected_floor(standard(50, 8, 0), 500) == pytest.approx(8 * 13 / 1000)


def test_few_images_in_many_dimensions_lie():
    """150 dimensions: one population is as far from itself at n = 50 as two different ones at n =
    1000.
    """
    x = RNG(0).normal(size=(2000, 150))
    table = d.frechet_by_n(x, (50, 1000), RNG(1), repeats=2)
    moved = frechet(x[:1000], x[1000:] + 0.5)
    assert table["distance"][0] > moved > 2 * table["distance"][1]


def test_a_small_group_is_named():
    real, synthetic, groups, made = two_groups()
    groups[:50] = "X"
    with pytest.raises(
        DataError, match=r"real 'F' \(70 images, gives 35\), real 'X' \(50 images, gives 25\)"
    ):
        d.subgroup_distances(real, synthetic, groups, made, RNG(0))
    made[:30] = "Y"
    with pytest.raises(DataError, match=r"synthetic 'F' \(30 images"):
        d.subgroup_distances(*two_groups()[:3], made, RNG(0))
    with pytest.raises(DataError, match=r"compare 61 with 61: .*real 'F'"):
        d.subgroup_distances(*two_groups(), RNG(0), n=61)


def test_bad_input_is_refused():
    real, synthetic, groups, made = two_groups()
    with pytest.raises(SettingsError, match="mmd or frechet"):
        d.subgroup_distances(real, synthetic, groups, made, RNG(0), measure="fid")
    with pytest.raises(DataError, match="take equal numbers"):
        d.subgroup_distances(real, synthetic[:, :3], groups, made, RNG(0))
    with pytest.raises(DataError, match="one group and one subject a row"):
        d.subgroup_distances(real, synthetic, groups[1:], made, RNG(0))
    with pytest.raises(DataError, match="full rank"):
        d.subgroup_distances(
            np.tile(real, 12), np.tile(synthetic, 12), groups, made, RNG(0), measure="frechet"
        )


def test_mmd_cells_are_the_mmd_of_the_rows():
    """One group on each side and exactly 2 n real rows: the distance is mmd of one half with all
    synthetic rows.
    """
    real, synthetic = RNG(0).normal(size=(100, 3)), RNG(1).normal(size=(50, 3))
    row = d.subgroup_distances(
        real, synthetic, ["a"] * 100, ["a"] * 50, RNG(2), splits=1, replicates=10
    ).iloc[0]
    half = real[d.disjoint(np.arange(100), 50, RNG(2))[0]]
    assert row["distance"] == pytest.approx(mmd(half, synthetic))
