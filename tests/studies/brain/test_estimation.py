"""Estimators of a share where the classifier's errors shift between the calibration set and the
images.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from studies.brain.estimation import estimators


def known(kind: str, sensitivity: float, specificity: float, count: int, seed: int):
    rng = np.random.default_rng(seed)
    female = np.arange(count) // 2 % 2 == 0
    right = rng.random(count) < np.where(female, sensitivity, specificity)
    read = np.where(right, female, ~female)
    p = np.where(read, rng.uniform(0.55, 0.95, count), rng.uniform(0.05, 0.45, count))
    subject = [f"{kind}-{place}" for place in range(count)]
    sex = np.where(female, "F", "M")
    return pd.DataFrame({"set": kind, "subject": subject, "sex": sex, "heldout": p})


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    sets = [known("denoised", 0.80, 0.90, 1200, 1), known("test", 0.95, 0.80, 800, 2)]
    return estimators(pd.concat(sets), repeats=12, replicates=30)


def row(table: pd.DataFrame, method: str, errors_from: str, share: float) -> pd.Series:
    rows = table[(table.method == method) & (table.errors_from == errors_from)]
    return rows[np.isclose(rows["share"], share)].iloc[0]


@pytest.mark.parametrize("share", [0.16, 0.458])
def test_the_correction_is_right_where_its_assumption_holds_and_biased_where_it_fails(table, share):
    good = row(table, "Rogan-Gladen", "the same kind of image", share)
    assert good["mean"] == pytest.approx(share, abs=0.05)
    bad = row(table, "Rogan-Gladen", "test slices", share)
    raw = 0.80 * share + 0.10 * (1 - share)
    assert bad["mean"] == pytest.approx((raw + 0.80 - 1) / 0.75, abs=0.05)


@pytest.mark.parametrize("share", [0.16, 0.458])
def test_prediction_powered_inference_needs_no_assumption_and_is_narrower_than_labels_alone(
    table, share
):
    found = row(table, "prediction-powered", "200 labels", share)
    assert found["mean"] == pytest.approx(share, abs=0.03)
    assert found.coverage >= 0.75
    assert found.width < row(table, "labels alone", "200 labels", share).width
