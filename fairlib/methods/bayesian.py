"""Bayesian optimisation in a few lines: a Gaussian process on the unit cube and its upper
confidence bound.

    f ~ GP(0, s^2 Matern-5/2 with a length of its own for each axis),  y = f(x) + noise,  y
    standardised next x = argmax over [0, 1]^d of  mean(x) + sqrt(beta) * standard deviation of f(x)

The kernel, the priors of its hyperparameters and the convention sqrt(beta) are the defaults of
BoTorch's `SingleTaskGP` and `UpperConfidenceBound` up to version 0.11 (before September 2024),
taken to be those of Luo et al. (arXiv 2412.20374), who use these two classes; the process itself is
scikit-learn's.
"""

from __future__ import annotations

import warnings

import numpy as np

from fairlib.errors import DataError

LENGTH, SCALE, NOISE = (3.0, 6.0), (2.0, 0.15), (1.1, 0.05)
"""Shape and rate of the gamma priors on lengths, on s^2 and on the variance of the noise."""
LEAST_NOISE = 1e-4
RESTARTS, RAW = 5, 20  # as released


class GaussianProcess:
    """The process fitted to x [n, d] in [0, 1] and y [n], by the highest posterior density of its
    hyperparameters.

    Raises `DataError` when shapes differ, a value is not finite, or all y are the same (there is
    nothing to fit).
    """

    def __init__(self, x, y):
        x, y = np.asarray(x, float), np.asarray(y, float)
        if (
            x.ndim != 2
            or y.shape != (len(x),)
            or not (np.isfinite(x).all() and np.isfinite(y).all())
        ):
            raise DataError(
                f"points {x.shape} and outcomes {y.shape}: expected finite [n, d] and [n]"
            )
        if len(y) < 2 or np.ptp(y) == 0:
            raise DataError(
                f"{len(y)} outcomes without any spread; a process needs two that differ"
            )
        self.dimension, self.x = x.shape[1], x
        self.centre, self.spread = y.mean(), y.std(ddof=1)
        self.regressor = _regressor(self.dimension)
        # a hyperparameter at the end of its range is no news to the caller
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.regressor.fit(x, (y - self.centre) / self.spread)

    @property
    def hyperparameters(self) -> np.ndarray:
        """[s^2, d lengths, variance of the noise], in units of standardised y."""
        return np.exp(self.regressor.kernel_.theta)

    def predict(self, x) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of f (without the noise of y) at x [m, d], both [m], in the
        unit of y.
        """
        mean, deviation = self.regressor.predict(np.asarray(x, float), return_std=True)
        own = np.sqrt(np.maximum(deviation**2 - self.hyperparameters[-1], 1e-12))
        return self.centre + self.spread * mean, self.spread * own

    def upper_bound(self, x, beta: float) -> np.ndarray:
        """mean + sqrt(beta) * standard deviation at x [m, d]."""
        mean, deviation = self.predict(x)
        return mean + np.sqrt(beta) * deviation


def maximise_upper_bound(
    process: GaussianProcess,
    beta: float,
    rng: np.random.Generator,
    restarts: int = RESTARTS,
    raw: int = RAW,
) -> np.ndarray:
    """The point [d] of the unit cube with the highest upper bound: L-BFGS-B from the best
    `restarts` of `raw` random points and the points already seen.
    """
    from scipy.optimize import minimize

    starts = np.concatenate([rng.random((raw, process.dimension)), process.x])
    order = np.argsort(-process.upper_bound(starts, beta), kind="stable")
    best, height = starts[order[0]], -np.inf
    for start in starts[order[:restarts]]:
        found = minimize(
            _value_and_slope,
            start,
            args=(process, beta),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, 1.0)] * process.dimension,
        )
        if -found.fun > height:
            best, height = np.clip(found.x, 0.0, 1.0), -found.fun
    return best


def _value_and_slope(x: np.ndarray, process: GaussianProcess, beta: float, width: float = 1e-5):
    """The negative bound, in units of the spread of y, and its slope by central differences, in one
    prediction.
    """
    steps = width * np.eye(len(x))
    values = (
        -process.upper_bound(np.concatenate([x[None], x + steps, x - steps]), beta) / process.spread
    )
    return values[0], (values[1 : len(x) + 1] - values[len(x) + 1 :]) / (2 * width)


def _regressor(dimension: int):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(
        np.full(dimension, 0.5), (5e-3, 20.0), nu=2.5
    ) + WhiteKernel(0.5, (LEAST_NOISE, 50.0))
    return GaussianProcessRegressor(kernel, alpha=1e-10, optimizer=_fit_with_priors)


def _fit_with_priors(objective, start: np.ndarray, bounds: np.ndarray):
    """scikit-learn's hook: minimise the negative log likelihood less the log priors over the log
    hyperparameters.
    """
    from scipy.optimize import minimize

    shape, rate = np.array([SCALE, *[LENGTH] * (len(start) - 2), NOISE]).T

    def negative(theta: np.ndarray):
        value, slope = objective(theta, eval_gradient=True)
        return value - log_prior(theta), slope - ((shape - 1) - rate * np.exp(theta))

    found = minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return found.x, found.fun


def log_prior(theta: np.ndarray) -> float:
    """Log density of the gamma priors at log hyperparameters `theta` (s^2, lengths, noise), up to a
    constant.
    """
    shape, rate = np.array([SCALE, *[LENGTH] * (len(theta) - 2), NOISE]).T
    return float(((shape - 1) * theta - rate * np.exp(theta)).sum())
