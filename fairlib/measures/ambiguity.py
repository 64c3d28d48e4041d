"""Images a judge cannot place: hard class targets make them vanish, mean-probability targets make
all images so.
"""

from __future__ import annotations

import numpy as np

from fairlib.measures.proportions import check_probabilities
from fairlib.measures.resampling import Interval, Sample, bootstrap_interval

# the open interval of p that counts as ambiguous (Shen et al. 2024, logged in training)
BAND = (0.2, 0.8)


def ambiguous_share(
    p_female,
    rng: np.random.Generator,
    clusters=None,
    band: tuple[float, float] = BAND,
    replicates: int = 1000,
) -> Interval:
    """The share of images with p inside the open `band`; rows (or whole `clusters`) are drawn
    again.
    """
    check_probabilities(p_female)
    return bootstrap_interval(
        np.mean, [Sample(ambiguous(p_female, band), clusters=clusters)], rng, replicates
    )


def ambiguity_difference(
    p_female,
    test_p_female,
    test_subjects,
    rng: np.random.Generator,
    band: tuple[float, float] = BAND,
    replicates: int = 1000,
) -> Interval:
    """Ambiguous share of the images less that of the test slices, in percentage points, with
    interval.

    p_female: [N]; test_p_female: [M]; test_subjects: [M], drawn whole.
    """
    check_probabilities(p_female)
    check_probabilities(test_p_female)
    samples = [
        Sample(ambiguous(p_female, band)),
        Sample(ambiguous(test_p_female, band), clusters=test_subjects),
    ]
    return bootstrap_interval(
        lambda images, test: 100 * (images.mean() - test.mean()), samples, rng, replicates
    )


def ambiguous(p_female, band: tuple[float, float] = BAND) -> np.ndarray:
    """[N] booleans: p strictly inside the band."""
    p = np.asarray(p_female, float)
    return (p > band[0]) & (p < band[1])
