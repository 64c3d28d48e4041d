import numpy as np
import pytest
from scipy.stats import gamma, multivariate_normal

from fairlib.errors import DataError
from fairlib.methods.bayesian import (
    LENGTH,
    NOISE,
    SCALE,
    GaussianProcess,
    log_prior,
    maximise_upper_bound,
)


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
        (np.zeros((3, 2)), np.ones(3), "without any spread"),
        (np.zeros((1, 2)), np.ones(1), "without any spread"),
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
