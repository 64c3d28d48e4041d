import math

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.methods.perturbation import FairBayesianPerturbation, PerturbationSettings
from fairlib.methods.reweighting import GroupDRO, InverseFrequency, Plain, RandomSigma

SIZES = (3, 2)
# nobody is (1, 1)
TRAINING = np.repeat([[0, 0], [0, 1], [1, 0], [2, 0], [2, 1]], [60, 10, 5, 20, 5], axis=0)
CELLS = torch.tensor([[0, 0], [0, 1], [1, 0], [2, 0], [2, 1]])
GROUPS = torch.tensor([[0, 0], [1, 0], [2, 1], [2, 0]])


def observed(weights, stop, start=0):
    for step in range(start, stop):
        weights.observe(torch.rand(4, generator=torch.Generator().manual_seed(step)), GROUPS, step)
    return weights


def test_plain_weights_are_one_and_learn_nothing():
    weights = observed(Plain(SIZES), 3)
    assert torch.equal(weights.weights(GROUPS, 3), torch.ones(4, dtype=torch.float64))
    assert weights.state_dict() == {} and weights.sigma(3) is None
    with pytest.raises(WeightsError, match="not one of Plain: 'logits' is unknown"):
        weights.load_state_dict(GroupDRO(TRAINING, SIZES).state_dict())


@pytest.mark.parametrize("form", ["released", "repaired"])
def test_random_sigma_is_the_perturbation_but_for_the_choice(form):
    settings = PerturbationSettings(form=form, window=10, seed=4)
    random, chosen = RandomSigma(SIZES, settings), FairBayesianPerturbation(SIZES, settings)
    assert random.observes == chosen.observes
    for step in range(10):
        assert torch.equal(random.weights(GROUPS, step), chosen.weights(GROUPS, step))
        observed(random, step + 1, step), observed(chosen, step + 1, step)
    observed(random, 11, 10), observed(chosen, 11, 10)
    assert random.since == chosen.since == 10 and not torch.equal(
        random.candidate, chosen.candidate
    )
    random.candidate = chosen.candidate  # with the same choice it is the same again
    assert torch.equal(random.weights(GROUPS, 14), chosen.weights(GROUPS, 14))


def test_random_candidates_are_uniform_and_come_once_a_window():
    weights, drawn = RandomSigma((10,), PerturbationSettings(window=2)), []
    for step in range(401):
        weights.observe(torch.ones(1), torch.tensor([[0]]), step)
        if weights.since == step and step:
            drawn.append(weights.candidate)
    found = torch.cat(drawn).numpy()
    assert len(drawn) == 200 and len(np.unique(found)) == 2000
    # Kolmogorov-Smirnov, 1 in 10,000
    assert np.abs(np.sort(found) - (np.arange(2000) + 0.5) / 2000).max() < 2.23 / 2000**0.5


def test_a_fixed_sigma_stays():
    weights = observed(RandomSigma(SIZES, PerturbationSettings(window=2), fixed=0.7), 9)
    assert (
        torch.equal(weights.sigma(9), torch.full((5,), 0.7, dtype=torch.float64))
        and weights.observes == "batch"
    )
    found = weights.weights(GROUPS[:1].expand(40_000, 2), 9)
    assert float(found.var()) == pytest.approx(2 * 0.49, rel=0.03)
    assert (
        RandomSigma(SIZES, PerturbationSettings(form="repaired"), fixed=1.0)
        .weights(GROUPS, 0)
        .min()
        >= 0
    )
    with pytest.raises(SettingsError, match="fixed sigma is -1"):
        RandomSigma(SIZES, fixed=-1)


def test_inverse_frequency_over_attributes_gives_every_value_the_same_total():
    weights = InverseFrequency(TRAINING, SIZES).weights(TRAINING, 0).numpy()
    assert weights.mean() == pytest.approx(1, rel=1e-12)
    wanted = (
        {0: 100 / (3 * 70), 1: 100 / (3 * 5), 2: 100 / (3 * 25)},
        {0: 100 / (2 * 85), 1: 100 / (2 * 15)},
    )
    by_hand = [(wanted[0][race] + wanted[1][sex]) / 2 for race, sex in TRAINING]
    assert weights == pytest.approx(by_hand, rel=1e-12)


def test_inverse_frequency_over_intersections_gives_every_cell_the_same_total():
    weights = InverseFrequency(TRAINING, SIZES, over="intersections").weights(TRAINING, 0).numpy()
    totals = pd.Series(weights).groupby([TRAINING[:, 0], TRAINING[:, 1]]).sum()
    assert totals.to_numpy() == pytest.approx(np.full(5, 20.0), rel=1e-12)


@pytest.mark.parametrize("over", ["attributes", "intersections"])
def test_capped_weights_have_mean_one_and_less_spread(over):
    free, capped = (
        InverseFrequency(TRAINING, SIZES, over, cap).weights(TRAINING, 0) for cap in (math.inf, 1.5)
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
    weights = GroupDRO(TRAINING, SIZES, rate=0.5)
    weights.observe(torch.tensor([0.2, 0.6, 0.4, 0.3]), GROUPS, 0)
    alone = [GroupDRO(TRAINING[:, [a]], (size,), rate=0.5) for a, size in enumerate(SIZES)]
    for a, one in enumerate(alone):
        one.observe(torch.tensor([0.2, 0.6, 0.4, 0.3]), GROUPS[:, [a]], 0)
    wanted = (alone[0].weights(CELLS[:, [0]], 1) + alone[1].weights(CELLS[:, [1]], 1)) / 2
    assert torch.allclose(weights.weights(CELLS, 1), wanted, rtol=1e-12)


@pytest.mark.parametrize("over", ["attributes", "intersections"])
def test_group_dro_starts_as_inverse_frequency_and_its_mean_stays_one(over):
    still, moving = (
        observed(GroupDRO(TRAINING, SIZES, over, rate=0.0), 5),
        observed(GroupDRO(TRAINING, SIZES, over, rate=1.0), 5),
    )
    wanted = InverseFrequency(TRAINING, SIZES, over).weights(TRAINING, 0)
    assert torch.allclose(still.weights(TRAINING, 5), wanted, rtol=1e-12)
    assert not torch.allclose(moving.weights(TRAINING, 5), wanted, rtol=1e-3)
    assert float(moving.weights(TRAINING, 5).mean()) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomSigma(SIZES, PerturbationSettings(window=4)),
        lambda: GroupDRO(TRAINING, SIZES, rate=0.3),
        lambda: GroupDRO(TRAINING, SIZES, "intersections", 0.3),
        lambda: InverseFrequency(TRAINING, SIZES),
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
    with pytest.raises(DataError, match="not occur in the codes"):
        arm(TRAINING, SIZES, "intersections").weights(torch.tensor([[1, 1]]), 0)


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingsError, match="cap is 0.5"):
        InverseFrequency(TRAINING, SIZES, cap=0.5)
    for make in (InverseFrequency, GroupDRO):
        with pytest.raises(SettingsError, match="over is 'cells'"):
            make(TRAINING, SIZES, over="cells")
    with pytest.raises(SettingsError, match="rate of group DRO is -1"):
        GroupDRO(TRAINING, SIZES, rate=-1)
