"""The perturbation in both forms, its control, and the Gaussian process that steers it."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import gamma, multivariate_normal, norm

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.methods.group_weights import Uniform, loss_gap
from fairlib.methods.perturbation import (
    LENGTH,
    NOISE,
    SCALE,
    FairBayesianPerturbation,
    GaussianProcess,
    PerturbationSettings,
    RandomSigma,
    log_prior,
    maximise_upper_bound,
    positive_weights,
)

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


@pytest.mark.parametrize(("sigma", "quoted"), [(0.2, 0.002), (0.5, 0.124), (1.0, 0.282)])
def test_released_weights_have_mean_one_and_the_known_variance_and_share_below_zero(sigma, quoted):
    """The book quotes the shares of the two larger sigmas."""
    weights = FairBayesianPerturbation(SIZES, PerturbationSettings(initial_sigma=sigma)).weights(
        one_group(60_000), 0
    )
    deviation = sigma * 3**0.5
    assert float(weights.mean()) == pytest.approx(1, abs=4.5 * deviation / 60_000**0.5)
    assert float(weights.var()) == pytest.approx(3 * sigma**2, rel=0.03)
    share = norm.cdf(-1 / deviation)
    assert share == pytest.approx(quoted, abs=0.001)
    assert float((weights < 0).double().mean()) == pytest.approx(
        share, abs=4.5 * (share / 60_000) ** 0.5
    )


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


def left_of_candidate(steps, exploitation=0.95):
    """Share of the chosen sigma that is left `steps` steps later: rho ** steps."""
    return exploitation**steps


def effective_sigma(candidate, steps, exploitation=0.95):
    """Mean rho^k c + (1 - rho^k) / 2 and standard deviation of a group's sigma `steps` steps after
    a choice; variance (1 - rho)^2 / 12 * (1 - rho^2k) / (1 - rho^2).
    """
    left, squared = exploitation**steps, exploitation**2
    total = steps if squared == 1 else (1 - squared**steps) / (1 - squared)
    return left * candidate + (1 - left) / 2, (1 - exploitation) * math.sqrt(total / 12)


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
    with pytest.raises(SettingsError, match="is gone; last chosen at step 30"):
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
    with pytest.raises(DataError, match="lacks a group of attribute 0"):
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
        weights.load_state_dict(Uniform(SIZES).state_dict())
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


@pytest.mark.parametrize("form", ["released", "repaired"])
def test_random_sigma_is_the_perturbation_but_for_the_choice(form):
    settings = PerturbationSettings(form=form, window=10, seed=4)
    random, chosen = RandomSigma(SIZES, settings), FairBayesianPerturbation(SIZES, settings)
    assert random.observes == chosen.observes
    for step in range(10):
        assert torch.equal(random.weights(EVERYBODY, step), chosen.weights(EVERYBODY, step))
        observed(random, step + 1, step), observed(chosen, step + 1, step)
    observed(random, 11, 10), observed(chosen, 11, 10)
    assert random.since == chosen.since == 10 and not torch.equal(
        random.candidate, chosen.candidate
    )
    random.candidate = chosen.candidate  # with the same choice it is the same again
    assert torch.equal(random.weights(EVERYBODY, 14), chosen.weights(EVERYBODY, 14))


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
        torch.equal(weights.sigma(9), torch.full((7,), 0.7, dtype=torch.float64))
        and weights.observes == "batch"
    )
    found = weights.weights(EVERYBODY[:1].expand(40_000, 3), 9)
    assert float(found.var()) == pytest.approx(3 * 0.49, rel=0.03)
    assert (
        RandomSigma(SIZES, PerturbationSettings(form="repaired"), fixed=1.0)
        .weights(EVERYBODY, 0)
        .min()
        >= 0
    )
    with pytest.raises(SettingsError, match="fixed sigma is -1"):
        RandomSigma(SIZES, fixed=-1)


def test_a_resumed_random_sigma_has_the_same_bits(tmp_path):
    settings = PerturbationSettings(window=4)
    whole, again = observed(RandomSigma(SIZES, settings), 20), RandomSigma(SIZES, settings)
    state = observed(RandomSigma(SIZES, settings), 7).state_dict()
    write_tensors(
        tmp_path / "state.safetensors",
        {name: torch.as_tensor(value) for name, value in state.items()},
    )
    again.load_state_dict(read_tensors(tmp_path / "state.safetensors"))
    observed(again, 20, start=7)
    assert torch.equal(again.weights(EVERYBODY, 20), whole.weights(EVERYBODY, 20))


def points(count=30, dimension=3, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    x = rng.random((count, dimension))
    return x, 4 + 3 * (
        np.sin(4 * x[:, 0]) - (x[:, 1] - 0.4) ** 2 + noise * rng.standard_normal(count)
    )


def matern(one, other, hyperparameters):
    """s^2 (1 + r + r^2 / 3) exp(-r) with r = sqrt(5) times the scaled distance."""
    r = np.sqrt(5 * (((one[:, None] - other[None]) / hyperparameters[1:-1]) ** 2).sum(-1))
    return hyperparameters[0] * (1 + r + r**2 / 3) * np.exp(-r)


def log_posterior(theta, x, y):
    values = np.exp(theta)
    covariance = matern(x, x, values) + values[-1] * np.eye(len(x))
    likelihood = multivariate_normal.logpdf(
        (y - y.mean()) / y.std(ddof=1), np.zeros(len(y)), covariance
    )
    kinds = [SCALE, *[LENGTH] * x.shape[1], NOISE]
    return likelihood + sum(
        gamma.logpdf(value, a, scale=1 / b) for value, (a, b) in zip(values, kinds, strict=True)
    )


def test_the_prediction_is_the_formula():
    x, y = points()
    process, new = GaussianProcess(x, y), np.random.default_rng(1).random((7, 3))
    values = process.hyperparameters
    inverse = np.linalg.inv(matern(x, x, values) + values[-1] * np.eye(len(x)))
    cross = matern(new, x, values)
    mean = y.mean() + cross @ inverse @ (y - y.mean())
    deviation = y.std(ddof=1) * np.sqrt(values[0] - np.einsum("ij,jk,ik->i", cross, inverse, cross))
    found = process.predict(new)
    assert found[0] == pytest.approx(mean, rel=1e-6) and found[1] == pytest.approx(
        deviation, rel=1e-5
    )
    assert process.upper_bound(new, 0.1) == pytest.approx(mean + 0.1**0.5 * deviation, rel=1e-6)


def test_hyperparameters_have_the_highest_posterior_density():
    """Held against a log posterior written down independently: its slope is zero at what was
    found.
    """
    x, y = points()
    theta = np.log(GaussianProcess(x, y).hyperparameters)
    steps = 1e-4 * np.eye(len(theta))
    slope = [
        (log_posterior(theta + step, x, y) - log_posterior(theta - step, x, y)) / 2e-4
        for step in steps
    ]
    assert np.abs(slope).max() < 0.02


def test_the_prior_is_the_gamma_density():
    one, other = np.log([0.5, 0.3, 0.7, 0.02]), np.log([2.0, 1.1, 0.2, 0.4])
    kinds = [SCALE, LENGTH, LENGTH, NOISE]
    wanted = [
        sum(gamma.logpdf(np.exp(t), a, scale=1 / b) for t, (a, b) in zip(theta, kinds, strict=True))
        for theta in (one, other)
    ]
    assert log_prior(one) - log_prior(other) == pytest.approx(wanted[0] - wanted[1], rel=1e-9)


def test_the_upper_bound_is_maximised():
    """Not lower than the best of a fine grid, and inside the cube."""
    x, y = points(dimension=2)
    process = GaussianProcess(x, y)
    axis = np.linspace(0, 1, 101)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    for beta in (0.0, 0.1, 9.0):
        found = maximise_upper_bound(process, beta, np.random.default_rng(0))
        assert (found >= 0).all() and (found <= 1).all()
        assert (
            process.upper_bound(found[None], beta)[0]
            >= process.upper_bound(grid, beta).max() - 1e-4 * process.spread
        )


def test_repeated_choice_finds_the_maximum_of_a_known_function():
    """Ten random points and fifteen chosen ones come near (0.3, 0.8), where random search seldom
    does.
    """

    def value(x):
        return np.exp(-8 * ((x - np.array([0.3, 0.8])) ** 2).sum(-1))

    for seed in range(2):
        rng = np.random.default_rng(seed)
        x = rng.random((10, 2))
        for _ in range(15):
            x = np.vstack([x, maximise_upper_bound(GaussianProcess(x, value(x)), 0.1, rng)])
        assert np.abs(x[-1] - [0.3, 0.8]).max() < 0.03


def test_the_choice_is_a_function_of_the_seed():
    process = GaussianProcess(*points(12))
    one, again = (maximise_upper_bound(process, 0.1, np.random.default_rng(3)) for _ in range(2))
    assert (one == again).all()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), np.ones(3), "without spread"),
        (np.zeros((1, 2)), np.ones(1), "without spread"),
        (np.zeros((3, 2)), np.ones(2), "expected finite"),
        (np.full((2, 2), np.nan), np.arange(2.0), "expected finite"),
    ],
)
def test_points_without_a_process_are_refused(x, y, message):
    with pytest.raises(DataError, match=message):
        GaussianProcess(x, y)


@pytest.mark.filterwarnings("ignore")
def test_process_and_bound_are_those_of_botorch():
    """With the same hyperparameters both give the same bound."""
    import torch
    from botorch.acquisition import UpperConfidenceBound
    from botorch.models import SingleTaskGP
    from botorch.models.utils.gpytorch_modules import (
        get_gaussian_likelihood_with_gamma_prior,
        get_matern_kernel_with_gamma_prior,
    )

    x, y = points()
    process = GaussianProcess(x, y)
    values = torch.from_numpy(process.hyperparameters)
    standard = torch.from_numpy((y - process.centre) / process.spread)[:, None]
    model = SingleTaskGP(
        torch.from_numpy(x),
        standard,
        likelihood=get_gaussian_likelihood_with_gamma_prior(),
        covar_module=get_matern_kernel_with_gamma_prior(ard_num_dims=3),
        outcome_transform=None,
    )
    model.covar_module.outputscale = values[0]
    model.covar_module.base_kernel.lengthscale = values[1:-1]
    model.likelihood.noise = values[-1:]
    model.mean_module.initialize(constant=0.0)
    model.eval()
    new = np.random.default_rng(1).random((20, 3))
    theirs = UpperConfidenceBound(model, beta=0.1)(torch.from_numpy(new)[:, None]).detach().numpy()
    assert (process.upper_bound(new, 0.1) - process.centre) / process.spread == pytest.approx(
        theirs, abs=1e-4
    )
