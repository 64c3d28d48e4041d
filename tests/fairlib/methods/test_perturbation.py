import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.methods.perturbation import (
    FairBayesianPerturbation,
    PerturbationSettings,
    effective_sigma,
    left_of_candidate,
    positive_weights,
    share_negative,
)
from fairlib.methods.reweighting import Plain
from fairlib.methods.sample_weights import loss_gap

SIZES = (3, 2, 2)
RELEASED, REPAIRED = PerturbationSettings(), PerturbationSettings(form="repaired")
EVERYBODY = torch.tensor([[0, 0, 0], [1, 1, 1], [2, 0, 1], [2, 1, 0]])


def losses_at(step, count=4):
    return torch.rand(count, generator=torch.Generator().manual_seed(step))


def observed(weights, stop, start=0, every=1):
    for step in range(start, stop, every):
        weights.observe(losses_at(step), EVERYBODY, step)
    return weights


def one_group(count, codes=(0, 0, 0)):
    return torch.tensor(codes).expand(count, 3)


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0])
def test_released_weights_have_mean_one_the_known_variance_and_the_known_share_below_zero(sigma):
    weights = FairBayesianPerturbation(SIZES, PerturbationSettings(initial_sigma=sigma)).weights(
        one_group(60_000), 0
    )
    deviation = sigma * 3**0.5
    assert float(weights.mean()) == pytest.approx(1, abs=4.5 * deviation / 60_000**0.5)
    assert float(weights.var()) == pytest.approx(3 * sigma**2, rel=0.03)
    share = norm.cdf(-1 / deviation)
    assert share_negative(deviation) == pytest.approx(share, rel=1e-12)
    assert float((weights < 0).double().mean()) == pytest.approx(
        share, abs=4.5 * (share / 60_000) ** 0.5
    )


def test_the_shares_below_zero_that_the_book_quotes():
    assert share_negative(3**0.5) == pytest.approx(0.282, abs=0.001)
    assert share_negative(0.75**0.5) == pytest.approx(0.124, abs=0.001)
    assert share_negative(0.0) == 0


def test_each_group_has_its_own_sigma_and_each_sample_its_own_noise():
    weights = FairBayesianPerturbation(SIZES)
    weights.candidate = torch.tensor([0.0, 0.3, 0.9, 0.0, 0.5, 0.0, 0.7], dtype=torch.float64)
    for codes in ((0, 0, 0), (1, 0, 0), (2, 1, 0), (1, 1, 1)):
        columns = torch.tensor(codes) + torch.tensor([0, 3, 5])
        found = weights.weights(one_group(40_000, codes), 0)
        assert float(found.var()) == pytest.approx(
            float(weights.candidate[columns].square().sum()), rel=0.03, abs=1e-12
        )
    assert float((found[:-1] - 1) @ (found[1:] - 1)) / 40_000 == pytest.approx(0, abs=0.02)
    again, next_step = (weights.weights(one_group(40_000, codes), step) for step in (0, 1))
    assert torch.equal(found, again) and not torch.equal(found, next_step)


def test_repaired_weights_are_not_negative_and_have_mean_one_in_every_group():
    weights = FairBayesianPerturbation(SIZES, REPAIRED)
    weights.candidate = torch.tensor([0.0, 0.3, 1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    for codes in ((0, 0, 0), (1, 0, 0), (2, 1, 0), (2, 1, 1)):
        found = weights.weights(one_group(60_000, codes), 0)
        assert float(found.min()) >= 0
        assert float(found.mean()) == pytest.approx(
            1, abs=4.5 * float(found.std()) / 60_000**0.5 + 1e-12
        )


@pytest.mark.parametrize("deviation", [0.05, 0.5, 1.0, 2.0])
def test_the_mean_of_clipped_weights_is_the_integral(deviation):
    mean, _ = quad(
        lambda z: max(0.0, 1 + deviation * z) * norm.pdf(z),
        -1 / deviation if deviation > 0.1 else -12,
        12,
    )
    raw = torch.tensor([2.0, -1.0], dtype=torch.float64)
    found = positive_weights(raw, torch.full((2,), deviation, dtype=torch.float64))
    assert found.tolist() == pytest.approx([2 / mean, 0], rel=1e-8)


def test_the_outcome_of_the_released_form_is_minus_the_gap_of_the_batch():
    weights = FairBayesianPerturbation(SIZES)
    # race 0.1, 0.4, 0.4; sex 0.15, 0.5; ethnicity 0.35, 0.3
    losses = torch.tensor([0.1, 0.4, 0.2, 0.6])
    weights.observe(losses, EVERYBODY, 0)
    # nobody is missing but the fourth: ethnicity 0.1, 0.3; race 0.2; sex 0.25
    weights.observe(losses[:3], EVERYBODY[:3], 1)
    # race 1 and ethnicity 1 are missing; sex 0.1, 0.6
    weights.observe(losses[[0, 3]], EVERYBODY[[0, 3]], 2)
    wanted = [-(0.3 + 0.35 + 0.05), -(0.3 + 0.25 + 0.2), -0.5]
    assert weights.outcomes.tolist() == pytest.approx(wanted, rel=1e-6)
    assert torch.equal(weights.tried[0], torch.ones(7, dtype=torch.float64))


def test_a_batch_without_a_group_looks_fairer_in_the_released_form():
    """The defect: leaving the rare group out raises the outcome."""
    weights = FairBayesianPerturbation((2,))
    weights.observe(torch.tensor([0.1, 0.9]), torch.tensor([[0], [1]]), 0)
    weights.observe(torch.tensor([0.1, 0.9]), torch.tensor([[0], [0]]), 1)
    assert weights.outcomes.tolist() == pytest.approx([-0.8, 0.0])


def test_sigma_moves_towards_uniform_noise_after_every_step():
    weights = FairBayesianPerturbation(SIZES)
    steps = torch.stack([weights.sigma(step) for step in range(6)])
    drawn = (steps[1:] - 0.95 * steps[:-1]) / 0.05  # the uniform numbers behind it
    assert torch.equal(steps[0], torch.ones(7, dtype=torch.float64))
    assert bool((drawn > 0).all() and (drawn < 1).all()) and len(drawn.unique()) == drawn.numel()
    assert torch.equal(weights.sigma(5), steps[5])  # asking changes nothing


def test_what_is_left_of_a_choice_after_one_window():
    assert left_of_candidate(30) == pytest.approx(0.2146, abs=1e-4)
    low, high = (effective_sigma(candidate, 30)[0] for candidate in (0, 1))
    assert (low, high) == pytest.approx((0.393, 0.607), abs=1e-3)
    assert np.mean([left_of_candidate(step) for step in range(1, 31)]) == pytest.approx(
        0.497, abs=1e-3
    )
    groups = 400
    found = torch.cat(
        [
            FairBayesianPerturbation(
                (groups,), PerturbationSettings(seed=seed, initial_sigma=0.8)
            ).sigma(30)
            for seed in range(10)
        ]
    )
    mean, deviation = effective_sigma(0.8, 30)
    assert float(found.mean()) == pytest.approx(mean, abs=4.5 * deviation / (10 * groups) ** 0.5)
    assert float(found.std()) == pytest.approx(deviation, rel=0.06) and deviation == pytest.approx(
        0.0452, abs=1e-4
    )


def test_the_limits_of_exploitation():
    assert effective_sigma(0.3, 10, 1.0) == pytest.approx((0.3, 0))
    assert effective_sigma(0.3, 1, 0.0) == pytest.approx((0.5, 12**-0.5))


def test_sigma_is_chosen_once_a_window_and_the_released_form_forgets():
    weights = FairBayesianPerturbation(SIZES, PerturbationSettings(window=10))
    chosen = []
    for step in range(35):
        observed(weights, step + 1, step)
        if weights.since == step and step:
            chosen.append(step)
            assert len(weights.outcomes) == len(weights.tried) == 0
            assert bool((weights.candidate >= 0).all() and (weights.candidate <= 1).all())
    assert chosen == [10, 20, 30] and len(weights.outcomes) == 4
    with pytest.raises(SettingsError, match="the last choice was at step 30"):
        weights.sigma(29)


def test_sigma_goes_where_the_gap_is_small():
    """A world in which the gap of a batch is the distance of sigma to (0.9, 0.2), with noise."""
    weights = FairBayesianPerturbation(
        (2,), PerturbationSettings(exploitation=0.8, initial_sigma=0.5)
    )
    best, groups = torch.tensor([0.9, 0.2], dtype=torch.float64), torch.tensor([[0], [1]])
    chosen, rng = [], np.random.default_rng(0)
    for step in range(241):
        gap = float((weights.sigma(step) - best).norm()) + 0.01 * rng.standard_normal()
        weights.observe(torch.tensor([1.0, 1.0 + max(gap, 0.0)]), groups, step)
        if weights.since == step and step:
            chosen.append(float((weights.candidate - best).norm()))
    middle = float((torch.tensor([0.5, 0.5]) - best).norm())
    assert np.mean(chosen) < 0.5 * middle


def test_the_repaired_form_learns_from_the_fall_of_the_gap_since_the_last_look():
    weights = FairBayesianPerturbation(SIZES, PerturbationSettings(form="repaired", window=1000))
    observed(weights, 20, start=4, every=5)
    gaps = [loss_gap(losses_at(step), EVERYBODY, SIZES) for step in (4, 9, 14, 19)]
    assert weights.outcomes.tolist() == pytest.approx(
        [gaps[0] - gaps[1], gaps[1] - gaps[2], gaps[2] - gaps[3]]
    )
    used = torch.stack([weights.sigma(step) for step in range(10, 15)]).mean(0)
    assert torch.equal(weights.tried[1], used)


def test_the_repaired_form_keeps_its_last_outcomes():
    weights = FairBayesianPerturbation(
        SIZES, PerturbationSettings(form="repaired", window=10, history=5)
    )
    observed(weights, 51)
    assert weights.since == 50 and len(weights.outcomes) == len(weights.tried) == 5
    gaps = [loss_gap(losses_at(step), EVERYBODY, SIZES) for step in range(45, 51)]
    assert weights.outcomes.tolist() == pytest.approx(
        [one - two for one, two in zip(gaps[:-1], gaps[1:], strict=True)]
    )


def test_a_probe_without_a_group_is_refused():
    with pytest.raises(DataError, match="nobody of some group of attribute 0"):
        FairBayesianPerturbation(SIZES, REPAIRED).observe(torch.ones(2), EVERYBODY[[0, 3]], 4)


def test_outcomes_that_are_all_the_same_leave_sigma_as_it_is():
    weights = FairBayesianPerturbation(SIZES, PerturbationSettings(window=3))
    before = weights.sigma(3)
    for step in range(4):
        weights.observe(torch.ones(4), EVERYBODY, step)
    assert weights.since == 3 and torch.equal(weights.candidate, before)


@pytest.mark.parametrize("settings", [RELEASED, REPAIRED], ids=lambda settings: settings.form)
@pytest.mark.parametrize("stop", [17, 31])
def test_a_resumed_run_has_the_same_bits(settings, stop, tmp_path):
    whole = observed(FairBayesianPerturbation(SIZES, settings), 75)
    state = observed(FairBayesianPerturbation(SIZES, settings), stop).state_dict()
    write_tensors(
        tmp_path / "state.safetensors",
        {name: torch.as_tensor(value) for name, value in state.items()},
    )
    again = FairBayesianPerturbation(SIZES, settings)
    again.load_state_dict(read_tensors(tmp_path / "state.safetensors"))
    observed(again, 75, start=stop)
    for step in (75, 80):
        assert torch.equal(again.sigma(step), whole.sigma(step))
        assert torch.equal(again.weights(EVERYBODY, step), whole.weights(EVERYBODY, step))
    assert again.since == 60 and all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(again.state_dict()[name]))
        for name, value in whole.state_dict().items()
    )


def test_two_processes_with_the_same_gathered_losses_hold_the_same_sigma():
    one, two, other = (
        observed(FairBayesianPerturbation(SIZES, PerturbationSettings(seed=seed)), 70)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.sigma(70), two.sigma(70)) and not torch.equal(
        one.sigma(70), other.sigma(70)
    )
    assert torch.equal(one.weights(EVERYBODY, 70), two.weights(EVERYBODY, 70))


def test_a_state_of_another_arm_and_a_step_twice_are_refused():
    weights = FairBayesianPerturbation(SIZES)
    with pytest.raises(WeightsError, match="not one of FairBayesianPerturbation"):
        weights.load_state_dict(Plain(SIZES).state_dict())
    observed(weights, 3)
    with pytest.raises(SettingsError, match="step 2 was observed already"):
        observed(weights, 3, start=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"exploitation": 1.1},
        {"beta": -1.0},
        {"form": "best"},
        {"history": 1},
        {"initial_sigma": 1.5},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(SettingsError, match=f"PerturbationSettings.{next(iter(wrong))} is"):
        PerturbationSettings(**wrong)
