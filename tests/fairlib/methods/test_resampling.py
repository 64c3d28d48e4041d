"""Weights that balance groups, and rows drawn in proportion to weights."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.errors import DataError, SettingsError
from fairlib.methods.resampling import (
    balancing_weights,
    draw_rows,
    inverse_frequency,
    rows_of_step,
)
from fairlib.models.training import FitSettings


def test_balancing_gives_every_group_one_total_and_keeps_the_mean():
    groups = pd.DataFrame({"sex": list("FFMMMMMM"), "ill": [1, 0, 0, 0, 0, 0, 1, 1]})
    weights = inverse_frequency(groups, cap=100)
    assert weights.mean() == pytest.approx(1)
    totals = pd.Series(weights).groupby([groups.sex, groups.ill]).sum()
    assert totals.to_numpy() == pytest.approx(np.full(4, 2.0))


def test_balancing_is_capped():
    groups = pd.DataFrame({"sex": ["F"] + ["M"] * 199})
    assert inverse_frequency(groups, cap=1000)[0] == pytest.approx(100)
    weights = inverse_frequency(groups, cap=10)
    assert weights[0] / weights[1:].mean() == pytest.approx(10 / (0.5 * 200 / 199))
    assert weights.mean() == pytest.approx(1) and (inverse_frequency(groups, cap=1) > 0).all()


def test_weights_are_inverse_frequencies_under_a_cap():
    prompts = ["a"] * 300 + ["b"] * 60 + ["c"]
    counts = Counter(prompts)
    for clip in (5, 20):
        expected = [min(1 / counts[prompt], 1 / (9 * clip)) for prompt in prompts]
        assert balancing_weights(prompts, clip).tolist() == expected
    assert set(balancing_weights(prompts)) == {1 / 300, 1 / 180}
    with pytest.raises(SettingsError, match="clip"):
        balancing_weights(prompts, 0)


def test_rows_are_drawn_in_proportion_and_are_a_function_of_seed_and_step():
    weights = np.array([1.0, 0.0, 3.0])
    rows = torch.cat(
        [rows_of_step(FitSettings(1, 500, 0.1, seed=1), step, 3, weights) for step in range(8)]
    )
    shares = torch.bincount(rows, minlength=3) / len(rows)
    assert shares[1] == 0 and abs(float(shares[2]) - 0.75) < 0.03  # four standard deviations
    assert torch.equal(
        rows[500:1000], rows_of_step(FitSettings(1, 500, 0.1, seed=1), 1, 3, weights)
    )
    assert not torch.equal(rows[:500], rows[500:1000])


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0], []])
def test_weights_that_cannot_be_drawn_from_are_refused(weights):
    with pytest.raises(DataError, match="sampling weights"):
        draw_rows(weights, 4, 0)
