"""Precision, recall, density, coverage: the convention, the definition, and the edges."""

import numpy as np
import pytest

from fairlib.errors import DataError
from studies.replicate_tests import precision_recall

RNG = np.random.default_rng


def test_a_tight_cluster_has_high_precision_and_low_recall():
    """Mode collapse; swapped, the two change places."""
    wide, tight = RNG(0).normal(size=(300, 2)), 0.05 * RNG(1).normal(size=(300, 2))
    collapsed, spread = precision_recall(wide, tight), precision_recall(tight, wide)
    assert collapsed["precision"] > 0.95 and collapsed["recall"] < 0.1
    assert spread["precision"] < 0.1 and spread["recall"] > 0.95
    assert collapsed["coverage"] < 0.2


def test_the_same_population_scores_high_everywhere():
    found = precision_recall(RNG(0).normal(size=(400, 3)), RNG(1).normal(size=(400, 3)))
    assert min(found["precision"], found["recall"], found["coverage"]) > 0.85
    assert found["density"] == pytest.approx(1, abs=0.15)


def test_against_the_definition():
    real, generated, k = RNG(0).normal(size=(25, 2)), RNG(1).normal(size=(25, 2)) + 0.7, 3

    def radius(points):
        return [sorted(np.linalg.norm(points - p, axis=1))[k] for p in points]

    def inside(p, points, radii):
        return [np.linalg.norm(p - q) <= r for q, r in zip(points, radii, strict=True)]

    by_real = np.array([inside(g, real, radius(real)) for g in generated])
    by_generated = np.array([inside(r, generated, radius(generated)) for r in real])
    expected = {
        "precision": by_real.any(1).mean(),
        "recall": by_generated.any(1).mean(),
        "density": by_real.sum() / (k * 25),
        "coverage": by_real.any(0).mean(),
    }
    assert precision_recall(real, generated, k, n_min=10) == pytest.approx(expected)


def test_far_apart_scores_nothing():
    found = precision_recall(RNG(0).normal(size=(60, 2)), RNG(1).normal(size=(60, 2)) + 100)
    assert set(found.values()) == {0.0}


def test_unequal_numbers_and_impossible_k_are_refused():
    x = RNG(0).normal(size=(60, 2))
    with pytest.raises(DataError, match="equal numbers"):
        precision_recall(x, x[:55])
    with pytest.raises(DataError, match="neighbours"):
        precision_recall(x, x, k=60)
