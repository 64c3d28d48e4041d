"""The area under the ROC curve as a mean over pairs (Mann and Whitney), its standard error, and its
bootstrap draws.

AUC = the share of (ill, healthy) pairs in which the ill person has the higher score, ties counted
half. Everything here works on the two samples of scores, `positive` [..., P] (ill) and `negative`
[..., M] (healthy), and over leading axes at once.
"""

from __future__ import annotations

import numpy as np


def pairs(positive, negative) -> np.ndarray:
    """1 where the positive has the higher score, 0.5 where they tie, 0 else: [..., P, M],
    float32.
    """
    positive, negative = np.asarray(positive)[..., :, None], np.asarray(negative)[..., None, :]
    return (positive > negative).astype(np.float32) + np.float32(0.5) * (positive == negative)


def area(positive, negative) -> np.ndarray:
    """AUC [...]."""
    return pairs(positive, negative).mean((-1, -2), dtype=float)


def delong(positive, negative) -> tuple[np.ndarray, np.ndarray]:
    """AUC [...] and its standard error [...] by DeLong et al. (Biometrics 1988); P and M of at
    least 2.

    The error is 0 where the scores part ill and healthy completely: there the data do not say how
    sure they are.
    """
    table = pairs(positive, negative)
    of_positive, of_negative = table.mean(-1, dtype=float), table.mean(-2, dtype=float)
    variance = (
        of_positive.var(-1, ddof=1) / table.shape[-2]
        + of_negative.var(-1, ddof=1) / table.shape[-1]
    )
    return of_positive.mean(-1), np.sqrt(variance)


def weighted(
    table: np.ndarray, positive_times: np.ndarray, negative_times: np.ndarray
) -> np.ndarray:
    """AUC [B] of bootstrap draws that hold each person so many times: `table` [P, M] of `pairs`,
    times [B, P] and [B, M].
    """
    total = positive_times.sum(1, dtype=float) * negative_times.sum(1, dtype=float)
    return np.einsum("bm,bm->b", positive_times @ table, negative_times, dtype=float) / total


def drawn_times(rng: np.random.Generator, size: int, replicates: int) -> np.ndarray:
    """How often each of `size` people is drawn in each of `replicates` bootstrap draws: [B, size],
    float32.
    """
    codes = rng.integers(size, size=(replicates, size)) + size * np.arange(replicates)[:, None]
    return (
        np.bincount(codes.ravel(), minlength=replicates * size)
        .reshape(replicates, size)
        .astype(np.float32)
    )
