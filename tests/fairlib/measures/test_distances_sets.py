"""Distances on features, against brute force, closed forms and torchmetrics."""

import itertools

import numpy as np
import pytest
import torch

from fairlib.errors import DataError
from fairlib.measures import distances as q

RNG = np.random.default_rng


def sets(n=60, d=8, shift=0.5, seed=0):
    rng = RNG(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(n, d)) + shift


def brute_mmd(x, y, kernel):
    """The definition of the U-statistic, pair by pair."""

    def k(a, b):
        return kernel(a[None], b[None])[0, 0]

    n = len(x)
    within = [sum(k(a, b) for a, b in itertools.permutations(s, 2)) / (n * (n - 1)) for s in (x, y)]
    return sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_mmd_is_the_u_statistic():
    x, y = sets(12, 3)
    assert q.mmd(x, y, n_min=2) == pytest.approx(brute_mmd(x, y, q.polynomial_kernel))


# torchmetrics speaks of memory and of its own deprecations
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mmd_agrees_with_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = sets(50, 16)
    theirs = KernelInceptionDistance(
        feature=_Pixels(16), subsets=1, subset_size=50, degree=3, coef=1.0
    )
    theirs.update(_as_images(x), real=True)
    theirs.update(_as_images(y), real=False)
    assert q.mmd(x, y) == pytest.approx(float(theirs.compute()[0]), rel=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_frechet_agrees_with_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = sets(100, 16)
    theirs = FrechetInceptionDistance(feature=_Pixels(16), input_img_size=(1, 1, 16)).set_dtype(
        torch.float64
    )
    theirs.update(_as_images(x).double(), real=True)
    theirs.update(_as_images(y).double(), real=False)
    assert q.frechet(x, y) == pytest.approx(float(theirs.compute()), rel=1e-3)


def test_mmd_is_unbiased_and_frechet_is_not():
    """Same population: MMD averages to zero at every n, the Frechet distance falls with n and
    equals its floor.
    """
    means = {}
    for n in (60, 240):
        pairs = [sets(n, 8, 0.0, seed) for seed in range(40)]
        values = [q.mmd(x, y) for x, y in pairs]
        assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(40)
        means[n] = np.mean([q.frechet(x, y) for x, y in pairs])
        pairs = [q.disjoint(np.arange(2 * n), n, RNG(seed)) for seed in range(20)]
        pool = RNG(1).normal(size=(2 * n, 8))
        floor = np.mean([q.frechet(pool[one], pool[other]) for one, other in pairs])
        assert floor == pytest.approx(means[n], rel=0.25)
    assert means[60] > 3 * means[240]


def test_frechet_of_a_shift_and_a_scale():
    """Same sample moved by m and stretched by s: |m|^2 + (s - 1)^2 trace of its covariance."""
    x = RNG(0).normal(size=(80, 4))
    assert q.frechet(x, x + 2.0) == pytest.approx(16.0)
    centred = x - x.mean(0)
    assert q.frechet(centred, 3 * centred) == pytest.approx(4 * np.trace(np.cov(x, rowvar=False)))


def test_interval_holds_the_true_value_and_excludes_zero_when_far():
    """Unit normals shifted by m in each of d dimensions: E (s + 1)^3 of s = x.y / d, with moments
    E s = ab, E s^2 = (1 + a^2 + b^2) / d + a^2 b^2 and E s^3 of normal products; the interval
    covers it.
    """
    m, d = 1.0, 3

    def cubic(a, b):
        mean, variance = d * a * b, d * (1 + a**2 + b**2)
        third = 6 * d * a * b  # central, of a sum of products of normals
        raw = [mean, variance + mean**2, third + 3 * mean * variance + mean**3]
        return 1 + 3 * raw[0] / d + 3 * raw[1] / d**2 + raw[2] / d**3

    true = cubic(0, 0) + cubic(m, m) - 2 * cubic(0, m)
    hits = 0
    for seed in range(40):
        x, y = sets(80, d, m, seed)
        found = q.mmd_interval(x, y, RNG(seed), replicates=60)
        hits += true in found
        assert found.low > 0
    assert hits >= 34


def test_pairs_of_one_subject_are_left_out():
    """Four near copies of each of 60 images: unbiased with subjects named, biased upward
    without.
    """
    x, y = (np.repeat(part, 4, 0) for part in sets(60, 8, 0.0))
    subjects = np.repeat(np.arange(60), 4)
    named, blind = q.mmd(x, y, x_clusters=subjects, y_clusters=subjects), q.mmd(x, y)
    single = q.mmd(x[::4], y[::4])
    assert named == pytest.approx(single)
    assert blind > named + 0.1


def test_difference_is_paired():
    """Tuned images that are the base images moved a little toward the target: certain, though each
    distance is not.
    """
    target = RNG(0).normal(size=(80, 6))
    base = RNG(1).normal(size=(80, 6)) + 0.8
    tuned = base - 0.1
    found = q.mmd_interval(tuned, target, RNG(2), base=base, replicates=200)
    assert found.estimate == pytest.approx(q.mmd(tuned, target) - q.mmd(base, target))
    assert found.high < 0
    alone = [q.mmd_interval(images, target, RNG(2), replicates=200) for images in (tuned, base)]
    assert alone[0].high > alone[1].low  # the separate intervals overlap
    same = q.mmd_interval(base, target, RNG(2), base=base, replicates=20)
    assert (same.low, same.high) == (0, 0)


@pytest.mark.parametrize(
    "x, y, words",
    [
        (np.zeros((60, 2)), np.zeros((61, 2)), "equal numbers"),
        (np.zeros((60, 2)), np.zeros((60, 3)), "equal numbers"),
        (np.zeros(60), np.zeros(60), "equal numbers"),
        (np.zeros((49, 2)), np.zeros((49, 2)), "too few"),
        (np.full((60, 2), np.nan), np.zeros((60, 2)), "NaN"),
    ],
)
@pytest.mark.parametrize("measure", [q.mmd, q.frechet])
def test_bad_sets_are_refused(measure, x, y, words):
    with pytest.raises(DataError, match=words):
        measure(x, y)


class _Pixels(torch.nn.Module):
    """Features that are the pixels themselves, so that torchmetrics needs no weights."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, images):
        return images.reshape(len(images), -1)


def _as_images(features):
    return torch.tensor(features, dtype=torch.float32)[:, None, None]
