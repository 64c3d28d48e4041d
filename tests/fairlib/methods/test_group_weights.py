"""Group losses, and the weights that do not perturb: by hand, by pandas and by the papers."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.cohorts.tables import ATTRIBUTES, group_codes
from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.methods.group_weights import (
    GroupDRO,
    InverseFrequency,
    Uniform,
    attribute_gaps,
    balancing_weights,
    checked_groups,
    checked_sizes,
    group_means,
    inverse_frequency,
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
        with pytest.raises(SettingsError, match="one number of at least 1 for each attribute"):
            checked_sizes(sizes)


def test_a_state_of_another_arm_names_the_odd_key():
    require_keys({"a": 1}, ("a",), "Uniform")
    with pytest.raises(WeightsError, match="'b' is missing"):
        require_keys({"a": 1}, ("a", "b"), "Uniform")
    with pytest.raises(WeightsError, match="'a' is unknown"):
        require_keys({"a": 1}, (), "Uniform")


TWO = (3, 2)
# nobody is (1, 1)
TRAINING = np.repeat([[0, 0], [0, 1], [1, 0], [2, 0], [2, 1]], [60, 10, 5, 20, 5], axis=0)
CELLS = torch.tensor([[0, 0], [0, 1], [1, 0], [2, 0], [2, 1]])
GROUPS = torch.tensor([[0, 0], [1, 0], [2, 1], [2, 0]])


def observed(weights, stop, start=0):
    for step in range(start, stop):
        weights.observe(torch.rand(4, generator=torch.Generator().manual_seed(step)), GROUPS, step)
    return weights


def test_uniform_weights_are_one_and_learn_nothing():
    weights = observed(Uniform(TWO), 3)
    assert torch.equal(weights.weights(GROUPS, 3), torch.ones(4, dtype=torch.float64))
    assert weights.state_dict() == {} and weights.sigma(3) is None
    with pytest.raises(WeightsError, match="not one of Uniform: 'logits' is unknown"):
        weights.load_state_dict(GroupDRO(TRAINING, TWO).state_dict())


def test_inverse_frequency_over_attributes_gives_every_value_the_same_total():
    weights = InverseFrequency(TRAINING, TWO).weights(TRAINING, 0).numpy()
    assert weights.mean() == pytest.approx(1, rel=1e-12)
    wanted = (
        {0: 100 / (3 * 70), 1: 100 / (3 * 5), 2: 100 / (3 * 25)},
        {0: 100 / (2 * 85), 1: 100 / (2 * 15)},
    )
    by_hand = [(wanted[0][race] + wanted[1][sex]) / 2 for race, sex in TRAINING]
    assert weights == pytest.approx(by_hand, rel=1e-12)


def test_inverse_frequency_over_intersections_gives_every_cell_the_same_total():
    weights = InverseFrequency(TRAINING, TWO, over="intersections").weights(TRAINING, 0).numpy()
    totals = pd.Series(weights).groupby([TRAINING[:, 0], TRAINING[:, 1]]).sum()
    assert totals.to_numpy() == pytest.approx(np.full(5, 20.0), rel=1e-12)


@pytest.mark.parametrize("over", ["attributes", "intersections"])
def test_capped_weights_have_mean_one_and_less_spread(over):
    free, capped = (
        InverseFrequency(TRAINING, TWO, over, cap).weights(TRAINING, 0) for cap in (math.inf, 1.5)
    )
    assert float(capped.mean()) == pytest.approx(1, rel=1e-12) and capped.max() < free.max()


def test_group_dro_follows_the_published_update():
    """All groups present: q <- q exp(rate * loss), normalised, from even q (Sagawa et al. 2020,
    algorithm 1).
    """
    weights = GroupDRO(TRAINING[:, :1], (3,), rate=0.5)
    q, shares = np.full(3, 1 / 3), np.array([0.70, 0.05, 0.25])
    for step, losses in enumerate(([0.3, 0.5, 0.2, 0.4], [0.1, 0.9, 0.8, 0.2])):
        weights.observe(torch.tensor(losses), torch.tensor([[0], [1], [2], [2]]), step)
        q = q * np.exp(0.5 * np.array([losses[0], losses[1], (losses[2] + losses[3]) / 2]))
        q = q / q.sum()
    assert weights.probabilities.numpy() == pytest.approx(q, rel=1e-6)
    assert weights.weights(torch.tensor([[0], [1], [2]]), 2).numpy() == pytest.approx(
        q / shares, rel=1e-6
    )


def test_a_group_that_the_batch_lacks_takes_the_mean_loss():
    weights = GroupDRO(TRAINING[:, :1], (3,), rate=1.0)
    weights.observe(torch.tensor([0.2, 0.6]), torch.tensor([[0], [2]]), 0)
    wanted = np.exp([0.2, 0.4, 0.6])
    assert weights.probabilities.numpy() == pytest.approx(wanted / wanted.sum(), rel=1e-6)


def test_group_dro_over_attributes_runs_each_attribute_by_itself():
    weights = GroupDRO(TRAINING, TWO, rate=0.5)
    weights.observe(torch.tensor([0.2, 0.6, 0.4, 0.3]), GROUPS, 0)
    alone = [GroupDRO(TRAINING[:, [a]], (size,), rate=0.5) for a, size in enumerate(TWO)]
    for a, one in enumerate(alone):
        one.observe(torch.tensor([0.2, 0.6, 0.4, 0.3]), GROUPS[:, [a]], 0)
    wanted = (alone[0].weights(CELLS[:, [0]], 1) + alone[1].weights(CELLS[:, [1]], 1)) / 2
    assert torch.allclose(weights.weights(CELLS, 1), wanted, rtol=1e-12)


@pytest.mark.parametrize("over", ["attributes", "intersections"])
def test_group_dro_starts_as_inverse_frequency_and_its_mean_stays_one(over):
    still, moving = (
        observed(GroupDRO(TRAINING, TWO, over, rate=0.0), 5),
        observed(GroupDRO(TRAINING, TWO, over, rate=1.0), 5),
    )
    wanted = InverseFrequency(TRAINING, TWO, over).weights(TRAINING, 0)
    assert torch.allclose(still.weights(TRAINING, 5), wanted, rtol=1e-12)
    assert not torch.allclose(moving.weights(TRAINING, 5), wanted, rtol=1e-3)
    assert float(moving.weights(TRAINING, 5).mean()) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GroupDRO(TRAINING, TWO, rate=0.3),
        lambda: GroupDRO(TRAINING, TWO, "intersections", 0.3),
        lambda: InverseFrequency(TRAINING, TWO),
    ],
)
def test_resumed_weights_have_the_same_bits(make, tmp_path):
    whole, again = observed(make(), 20), make()
    state = observed(make(), 7).state_dict()
    write_tensors(
        tmp_path / "state.safetensors",
        {name: torch.as_tensor(value) for name, value in state.items()},
    )
    again.load_state_dict(read_tensors(tmp_path / "state.safetensors"))
    observed(again, 20, start=7)
    assert torch.equal(again.weights(GROUPS, 20), whole.weights(GROUPS, 20))


@pytest.mark.parametrize("arm", [InverseFrequency, GroupDRO])
def test_a_combination_that_nobody_has_is_refused(arm):
    with pytest.raises(DataError, match="not in the (training set|codes)"):
        arm(TRAINING, TWO, "intersections").weights(torch.tensor([[1, 1]]), 0)


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingsError, match="cap is 0.5"):
        InverseFrequency(TRAINING, TWO, cap=0.5)
    for make in (InverseFrequency, GroupDRO):
        with pytest.raises(SettingsError, match="over is 'cells'"):
            make(TRAINING, TWO, over="cells")
    with pytest.raises(SettingsError, match="rate of group DRO is -1"):
        GroupDRO(TRAINING, TWO, rate=-1)


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


def test_balancing_weights_are_inverse_frequencies_under_a_cap():
    prompts = ["a"] * 300 + ["b"] * 60 + ["c"]
    counts = Counter(prompts)
    for clip in (5, 20):
        expected = [min(1 / counts[prompt], 1 / (9 * clip)) for prompt in prompts]
        assert balancing_weights(prompts, clip).tolist() == expected
    assert set(balancing_weights(prompts)) == {1 / 300, 1 / 180}
    with pytest.raises(SettingsError, match="clip"):
        balancing_weights(prompts, 0)
