"""Nearest training images against brute force; planted copies and an honest generator told
apart.
"""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from fairlib.errors import DataError
from fairlib.measures.distances import blurred, memorisation, nearest

RNG = np.random.default_rng


def random_images(n, seed, size=12):
    return blurred(RNG(seed).normal(size=(n, 2, size, size)), 1.5)


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_nearest_is_exact(chunk):
    queries, training = random_images(20, 0), random_images(50, 1)
    found = nearest(queries, training, chunk=chunk)
    brute = cdist(queries.reshape(20, -1), training.reshape(50, -1))
    assert (found.index == brute.argmin(1)).all()
    assert found.distance == pytest.approx(brute.min(1))


def test_pairs_of_one_subject_are_left_out():
    training, subjects = random_images(30, 1), np.repeat(np.arange(10), 3)
    found = nearest(training, training, subjects, subjects)
    brute = cdist(training.reshape(30, -1), training.reshape(30, -1))
    brute[subjects[:, None] == subjects] = np.inf
    assert (found.index == brute.argmin(1)).all() and found.distance.min() > 0
    assert nearest(training, training).distance.max() == 0


def test_a_planted_copy_is_found():
    """Twenty of a hundred images are training images with a trace of noise, far from the origin
    (digits are lost there).
    """
    training, held_out, made = (
        random_images(n, seed) + 50 for n, seed in ((200, 0), (300, 1), (100, 2))
    )
    copies = RNG(3).permutation(200)[:20]
    made[:20] = training[copies] + RNG(4).normal(0, 1e-3, made[:20].shape)
    made[0] = training[copies[0]]
    found = memorisation(made, held_out, training, RNG(0), replicates=200)
    pairs = found.closest(20)
    assert pairs.iloc[0].tolist() == [0, copies[0], 0]
    assert dict(zip(pairs["synthetic"], pairs["training"], strict=True)) == dict(enumerate(copies))
    assert (
        found.shares["share"].min() >= 0.20
        and (found.shares["low"] > found.shares["quantile"]).all()
    )
    assert found.shares["threshold"].tolist() == pytest.approx(
        np.quantile(found.heldout.distance, [0.01, 0.05]).tolist()
    )


def test_an_honest_generator_is_not_accused():
    """Fresh draws of the population: the share below the 5 % quantile is near 5 %, and intervals
    hold it nearly always.
    """
    training, hits, shares = random_images(150, 0, 6), 0, []
    for seed in range(20):
        made, held_out = random_images(150, 100 + seed, 6), random_images(150, 200 + seed, 6)
        found = memorisation(made, held_out, training, RNG(seed), (0.05,), replicates=100)
        row = found.shares.iloc[0]
        hits += row["low"] <= 0.05 <= row["high"]
        shares.append(row["share"])
        assert found.median_ratio.estimate == pytest.approx(1, abs=0.1)
    assert hits >= 17 and np.mean(shares) == pytest.approx(0.05, abs=0.02)


def test_under_training_masks_the_own_subject_is_left_out():
    """An image that is its mask's owner again counts as a copy, unless the pair is left out by
    name.
    """
    training, held_out = random_images(100, 0), random_images(120, 1)
    made = training + RNG(2).normal(0, 0.01, training.shape)
    blind = memorisation(made, held_out, training, RNG(0), (0.05,), replicates=50)
    named = memorisation(
        made,
        held_out,
        training,
        RNG(0),
        (0.05,),
        np.arange(100),
        np.arange(100, 220),
        np.arange(100),
        50,
    )
    assert blind.shares["share"][0] == 1 and blind.median_ratio.high < 0.2
    assert named.shares["share"][0] < 0.2 and named.median_ratio.estimate == pytest.approx(
        1, abs=0.1
    )


def test_blur_brings_noisy_copies_together():
    image = random_images(1, 0, 32)
    noisy = image + RNG(1).normal(0, 0.1, image.shape)
    assert np.linalg.norm(blurred(noisy, 1.5) - blurred(image, 1.5)) < 0.3 * np.linalg.norm(
        noisy - image
    )
    assert blurred(np.full((1, 1, 8, 8), 0.3)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: memorisation(x, x, x, RNG(0)), "at least 100"),
        (
            lambda x: memorisation(x, x, x, RNG(0), (0.5,), None, list("abcd"), list("defg")),
            "'d' .* both held out",
        ),
        (lambda x: nearest(x, x[:, :1]), "one grid"),
        (lambda x: nearest(x * np.nan, x), "NaN"),
        (lambda x: nearest(x[:0], x), "at least one row"),
        (lambda x: nearest(x, x, np.zeros(4), np.zeros(4)), "another subject"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(DataError, match=words):
        call(random_images(4, 0))
