"""Fidelity and diversity apart: precision, recall, density and coverage of generated features.

Precision and recall: Kynkaanniemi et al. 2019; density and coverage: Naeem et al. 2020.
"""

from __future__ import annotations

import numpy as np

from fairlib.errors import DataError
from fairlib.measures.distances import N_MIN, check_sets, squared_distances


def precision_recall(
    real: np.ndarray, generated: np.ndarray, k: int = 5, n_min: int = N_MIN
) -> dict[str, float]:
    """`precision`, `recall`, `coverage` in [0, 1] and `density` >= 0, from real and generated
    features [N, D].

    A tight cluster inside the real data has high precision and low recall. Numbers must be equal,
    above `k`.
    """
    check_sets(real, generated, n_min=n_min)
    if not 1 <= k < len(real):
        raise DataError(
            f"k = {k} neighbours of {len(real)} images; take k between 1 and {len(real) - 1}"
        )
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    between = squared_distances(real, generated)
    in_real = between <= _radius(real, k)[:, None]
    in_generated = between <= _radius(generated, k)[None]
    return {
        "precision": float(in_real.any(0).mean()),
        "recall": float(in_generated.any(1).mean()),
        "density": float(in_real.sum(0).mean() / k),
        "coverage": float(in_real.any(1).mean()),
    }


def _radius(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row to its k-th nearest other row."""
    distances = squared_distances(features, features)
    np.fill_diagonal(distances, 0)
    return np.sort(distances, axis=1)[:, k]
