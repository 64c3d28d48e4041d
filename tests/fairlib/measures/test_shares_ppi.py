"""Prediction-powered shares: by hand, against the authors' code, and where errors shift."""

import numpy as np
import pytest
from scipy.special import ndtri

from fairlib.errors import DataError
from fairlib.measures.shares import ppi_share, rogan_gladen

RNG = np.random.default_rng


def images(rng, n, share=0.45, right=(0.7, 0.95)):
    """Truth [n], and decisions [n] that are right on a share `right` of female and male images."""
    truth = (rng.random(n) < share).astype(float)
    correct = rng.random(n) < np.where(truth == 1, *right)
    return truth, np.where(correct, truth, 1 - truth)


def test_by_hand():
    """Readings equal to the labels: the weight is var / ((1 + 4 / 8) var), with variances of 1 / 4
    of the labels and 3 / 11 of all twelve readings.
    """
    labels, rest = [1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]
    weight = (1 / 4) / (1.5 * 3 / 11)
    error = np.sqrt(weight**2 / 4 / 8 + (1 - weight) ** 2 / 4 / 4)
    found = ppi_share(labels, labels, rest, 0.9)
    assert found.estimate == pytest.approx(0.5)
    assert found.high - found.estimate == pytest.approx(ndtri(0.95) * error)
    assert found.low == pytest.approx(1 - found.high)


@pytest.mark.parametrize("rest", [np.full(900, 0.3), RNG(5).random(900)])
def test_readings_without_information_leave_the_labels_alone(rest):
    truth = np.repeat([1, 0], [40, 60])
    found = ppi_share(truth, np.full(100, 0.3), rest)
    assert found.estimate == pytest.approx(0.4)
    assert found.high - 0.4 == pytest.approx(ndtri(0.975) * np.sqrt(0.4 * 0.6 / 100))


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("right", [(0.9, 0.9), (0.7, 0.95), (0.55, 0.5)])
def test_the_authors_code_agrees(right, level):
    ppi = pytest.importorskip("ppi_py", reason="the cross-check needs ppi-python")
    truth, read = images(RNG(0), 1060, right=right)
    p = np.clip(0.1 + 0.8 * read + RNG(1).normal(0, 0.05, len(read)), 0, 1)
    parts = truth[:60], p[:60], p[60:]
    found = ppi_share(*parts, level)
    low, high = ppi.ppi_mean_ci(*parts, alpha=1 - level)
    assert found.estimate == pytest.approx(float(np.squeeze(ppi.ppi_mean_pointestimate(*parts))))
    assert (found.low, found.high) == pytest.approx((low.item(), high.item()))


def test_covers_where_errors_shift_and_rogan_gladen_does_not():
    """Right on 0.9 of both sexes in the calibration set, on 0.7 of female and 0.95 of male
    generated images: the correction is 9 points off, prediction-powered inference is not, and is
    narrower than the labels alone.
    """
    rng, estimates, corrected, hits, width, repeats = RNG(2), [], [], 0, [], 400
    for _ in range(repeats):
        truth, read = images(rng, 1100)
        found = ppi_share(truth[:100], read[:100], read[100:])
        estimates.append(found.estimate)
        corrected.append(rogan_gladen(read.mean(), 0.9, 0.9))
        hits += 0.45 in found
        width.append(found.high - found.low)
    assert np.mean(estimates) == pytest.approx(0.45, abs=0.006)
    assert np.mean(corrected) < 0.37
    assert 0.93 <= hits / repeats <= 0.97
    assert np.mean(width) < 0.85 * 2 * ndtri(0.975) * np.sqrt(0.45 * 0.55 / 100)


@pytest.mark.parametrize(
    "labels, read, words",
    [
        ([1, 0, 1], [0.5, 0.5], "3 labels for 2 readings"),
        ([1], [0.5], "at least two"),
        ([1, 2], [0.5, 0.5], "each 0 or 1"),
        ([1, 0], [0.5, 1.5], "apply the sigmoid"),
    ],
)
def test_what_cannot_be_is_refused(labels, read, words):
    with pytest.raises(DataError, match=words):
        ppi_share(labels, read, [0.1, 0.9])
