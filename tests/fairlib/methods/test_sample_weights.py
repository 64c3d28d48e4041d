import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.cohorts.attributes import ATTRIBUTES, group_codes
from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.methods.sample_weights import (
    attribute_gaps,
    checked_groups,
    checked_sizes,
    group_means,
    loss_gap,
    offsets,
    require_keys,
)

SIZES = (3, 2, 2)
BATCH = torch.tensor([[0, 0, 0], [1, 0, 1], [2, 1, 0], [2, 1, 0], [0, 1, 1]])
LOSSES = torch.tensor([0.1, 0.5, 0.2, 0.4, 0.3])


def test_group_means_are_those_of_a_table():
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, size, 60) for size in SIZES], 1)
    losses = rng.random(60)
    wanted = np.concatenate(
        [pd.Series(losses).groupby(codes[:, a]).mean().to_numpy() for a in range(3)]
    )
    found = group_means(torch.from_numpy(losses), codes, SIZES)
    assert found.numpy() == pytest.approx(wanted, rel=1e-12)


def test_the_gap_of_a_batch_by_hand():
    """Race: means 0.2, 0.5, 0.3. Sex: 0.3, 0.3. Ethnicity: 0.7 / 3, 0.4."""
    means = group_means(LOSSES, BATCH, SIZES)
    assert means.tolist() == pytest.approx([0.2, 0.5, 0.3, 0.3, 0.3, 0.7 / 3, 0.4], rel=1e-6)
    assert attribute_gaps(means, SIZES).tolist() == pytest.approx(
        [0.3, 0.0, 0.4 - 0.7 / 3], abs=1e-6
    )
    assert loss_gap(LOSSES, BATCH, SIZES) == pytest.approx(0.3 + 0.4 - 0.7 / 3, rel=1e-6)


def test_an_attribute_that_lacks_a_group_counts_nothing():
    kept = [0, 2, 3, 4]  # nobody of race 1
    assert group_means(LOSSES[kept], BATCH[kept], SIZES)[1].isnan()
    sex = abs(0.1 - 0.3)
    ethnicity = abs(0.7 / 3 - 0.3)
    assert loss_gap(LOSSES[kept], BATCH[kept], SIZES) == pytest.approx(sex + ethnicity, rel=1e-6)
    assert loss_gap(LOSSES[:1], BATCH[:1], SIZES) == 0  # every attribute lacks a group


def test_columns_are_those_of_the_cohort():
    table = pd.DataFrame(
        {"race": ["White", "Asian"], "sex": ["M", "F"], "ethnicity": ["Hispanic", "Non-Hispanic"]}
    )
    sizes = checked_sizes([len(known) for known in ATTRIBUTES.values()])
    assert sizes == SIZES and offsets(sizes).tolist() == [0, 3, 5]
    means = group_means(torch.tensor([1.0, 3.0]), group_codes(table), sizes)
    assert means.nan_to_num(0).tolist() == [3, 0, 1, 3, 1, 3, 1]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 0]], r"shape \(1, 2\)"),
        ([[0.0, 0, 0]], "float"),
        ([[0, 0, 0], [0, 2, 0]], "row 1 has code 2 in attribute 1"),
        ([[-1, 0, 0]], "row 0 has code -1"),
        ([0, 0, 0], "expected integers"),
    ],
)
def test_codes_that_are_none_are_refused(codes, message):
    with pytest.raises(DataError, match=message):
        checked_groups(np.array(codes), SIZES)


def test_losses_and_sizes_that_are_none_are_refused():
    with pytest.raises(DataError, match="one finite loss a row"):
        group_means(torch.tensor([float("nan")] * 5), BATCH, SIZES)
    with pytest.raises(DataError, match="for 5 rows"):
        group_means(LOSSES[:3], BATCH, SIZES)
    for sizes in ((), (3, 0)):
        with pytest.raises(SettingsError, match="number of values"):
            checked_sizes(sizes)


def test_a_state_of_another_arm_names_the_odd_key():
    require_keys({"a": 1}, ("a",), "Plain")
    with pytest.raises(WeightsError, match="'b' is missing"):
        require_keys({"a": 1}, ("a", "b"), "Plain")
    with pytest.raises(WeightsError, match="'a' is unknown"):
        require_keys({"a": 1}, (), "Plain")
