"""Ambiguous images: the open band, and points against the test slices."""

import numpy as np
import pytest

from fairlib.errors import DataError
from fairlib.measures.shares import (
    CalibrationSet,
    ambiguity_difference,
    ambiguous,
    ambiguous_share,
)

RNG = np.random.default_rng


def test_the_band_is_open():
    assert ambiguous([0.2, 0.2001, 0.5, 0.7999, 0.8]).tolist() == [False, True, True, True, False]
    assert ambiguous([0.2, 0.5], band=(0.1, 0.3)).tolist() == [True, False]


def test_share_and_difference_by_hand():
    images, test = np.repeat([0.5, 0.9], [10, 90]), np.repeat([0.5, 0.1], [30, 170])
    assert ambiguous_share(images, RNG(0), replicates=50).estimate == pytest.approx(0.10)
    known = CalibrationSet(test, np.arange(200) % 2, np.arange(200))
    found = ambiguity_difference(images, known, RNG(0), replicates=200)
    assert found.estimate == pytest.approx(10 - 15)
    assert found.low < -5 < found.high


def test_mean_probability_and_class_targets_show_themselves():
    """Every image at the target share: all ambiguous. Every image certain: none."""
    assert ambiguous_share(np.full(50, 0.458), RNG(0), replicates=20).estimate == 1
    assert ambiguous_share(np.repeat([0.01, 0.99], 25), RNG(0), replicates=20).estimate == 0


def test_test_slices_are_drawn_by_subject():
    test = np.repeat([0.5, 0.1] * 10, 8)
    images = np.full(10000, 0.1)
    wide, narrow = (
        ambiguity_difference(
            images, CalibrationSet(test, np.arange(160) % 2, subjects), RNG(0), replicates=300
        )
        for subjects in (np.repeat(np.arange(20), 8), np.arange(160))
    )
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_logits_are_refused():
    with pytest.raises(DataError, match="apply the sigmoid"):
        ambiguous_share(np.array([-2.0, 3.0]), RNG(0))
