"""What the kernels do to Gaussian data, derived by hand, one number at a time; nothing of difflesson is used.

For data N(m, C) the ideal denoiser is linear, so every kernel is an affine map plus Gaussian noise, and it
acts on each eigen-direction of C by itself. Here a direction is two floats, the mean m and the variance c of
the data along it; a time is two, alpha and sigma; a step is three: `x_s = gain x_t + offset + noise` and the
variance of the noise.

At the end: the density and score of a mixture in plain numpy, for what is not affine.
"""

import math
from typing import NamedTuple

import numpy as np


class Level(NamedTuple):
    """How much signal and how much noise there is at a time."""

    alpha: float
    sigma: float


class Line(NamedTuple):
    """One direction of a step: `x_s = gain x_t + offset + sqrt(var) noise`."""

    gain: float
    offset: float
    var: float


def linear_level(t: float, beta_min: float, beta_max: float) -> Level:
    """The level at time t if the noise rate is `beta_min + t (beta_max - beta_min)`."""
    kept = math.exp(-beta_min * t - (beta_max - beta_min) * t**2 / 2)  # alpha^2
    return Level(math.sqrt(kept), math.sqrt(1 - kept))


def marginal(m: float, c: float, at: Level) -> tuple[float, float]:
    """Mean and variance of the data at a level."""
    return at.alpha * m, at.alpha**2 * c + at.sigma**2


def _regress(m: float, c: float, at: Level) -> tuple[tuple[float, float], tuple[float, float]]:
    """Slope and intercept in x of E[x0 | x] and of E[eps | x]: covariance with x over the variance of x."""
    mean, total = marginal(m, c, at)
    x0, eps = at.alpha * c / total, at.sigma / total
    return (x0, m - x0 * mean), (eps, -eps * mean)


def _observe(prior_var: float, t: Level, s: Level) -> tuple[float, float, float]:
    """Kalman's update of x_s ~ N(., prior_var) by x_t = a x_s + noise: (gain of x_t, a, variance left)."""
    a = t.alpha / s.alpha
    noise = t.sigma**2 - a**2 * s.sigma**2
    k = prior_var * a / (a**2 * prior_var + noise)
    return k, a, (1 - k * a) * prior_var


def ddpm(m: float, c: float, t: Level, s: Level, large: bool = False) -> Line:
    """Given x0, x_s ~ N(alpha_s x0, sigma_s^2); condition on x_t, then insert the regressed x0."""
    (slope, intercept), _ = _regress(m, c, t)
    k, a, left = _observe(s.sigma**2, t, s)
    pull = (1 - k * a) * s.alpha
    return Line(k + pull * slope, pull * intercept, t.sigma**2 - a**2 * s.sigma**2 if large and s.sigma > 0 else left)


def ddim(m: float, c: float, t: Level, s: Level, eta: float) -> Line:
    """The predicted x0 scaled to s, and noise of variance sigma_s^2 in all, part predicted and part fresh."""
    (slope, intercept), (eps_slope, eps_intercept) = _regress(m, c, t)
    fresh = eta**2 * _observe(s.sigma**2, t, s)[2]
    old = math.sqrt(s.sigma**2 - fresh)
    return Line(s.alpha * slope + old * eps_slope, s.alpha * intercept + old * eps_intercept, fresh)


def reverse_sde(m: float, c: float, t: Level, rate: float, length: float, rho: float, last: bool = False) -> Line:
    """Euler's step of length `length` where the noise rate is `rate`: drift (x + (1 + rho^2) score) / 2.

    The last step, to the data, adds no noise.
    """
    mean, total = marginal(m, c, t)
    pull = (1 + rho**2) / total  # score = (mean - x) / total
    half = rate * length / 2
    return Line(1 + half * (1 - pull), half * pull * mean, 0.0 if last else 2 * half * rho**2)


def heun(m: float, c: float, t: Level, s: Level) -> Line:
    """Over a step `d(x / sigma) = x0 d(alpha / sigma)` is integrated with the mean of x0 at its start and at the end of
    Euler's step; a step to sigma = 0 is Euler's alone, which ends in x0.
    """
    x = np.array([1.0, 0.0])  # (gain, offset)
    (slope, intercept), _ = _regress(m, c, t)
    x0 = slope * x + [0.0, intercept]
    if s.sigma == 0:
        return Line(*x0, 0.0)
    reach = s.alpha / s.sigma - t.alpha / t.sigma
    first = s.sigma * (x / t.sigma + reach * x0)
    (slope, intercept), _ = _regress(m, c, s)
    both = (x0 + slope * first + [0.0, intercept]) / 2
    return Line(*(s.sigma * (x / t.sigma + reach * both)), 0.0)


def exact(m: float, c: float, t: Level, s: Level) -> Line:
    """x_s ~ N(alpha_s m, V_s) before x_t is seen: condition on x_t."""
    mean, total = marginal(m, c, s)
    k, a, left = _observe(total, t, s)
    return Line(k, (1 - k * a) * mean, left)


def dpmpp_2m_run(m: float, c: float, levels: list[Level]) -> Line:
    """A whole run as one line: over each step `d(x / sigma) = x0 d(alpha / sigma)` is integrated with one x0.

    In the first step that is the value at its start; later the line through the last two values, taken as a
    function of log(alpha / sigma), at mid-step.
    """
    x = np.array([1.0, 0.0])  # x as (gain, offset) of the starting point
    last = None
    for t, s in zip(levels[:-1], levels[1:], strict=True):
        (slope, intercept), _ = _regress(m, c, t)
        x0 = slope * x + [0.0, intercept]
        here, held = math.log(t.alpha / t.sigma), x0
        if last is not None:
            middle = (here + math.log(s.alpha / s.sigma)) / 2
            held = x0 + (x0 - last[0]) * (middle - here) / (here - last[1])
        last = x0, here
        x = s.sigma * (x / t.sigma + held * (s.alpha / s.sigma - t.alpha / t.sigma))
    return Line(x[0], x[1], 0.0)


def mixture_density(weights, means, covs, x) -> np.ndarray:
    """`sum_k w_k N(x; m_k, C_k)` at x: (..., d) -> (...); good near the modes."""
    return _components(weights, means, covs, x)[0].sum(0)


def mixture_score(weights, means, covs, x) -> np.ndarray:
    """Gradient of the log density at x, (..., d)."""
    density, pulls = _components(weights, means, covs, x)
    return (density[..., None] * pulls).sum(0) / density.sum(0)[..., None]


def _components(weights, means, covs, x):
    """Weighted density (K, ...) and score (K, ..., d) of each component."""
    density, pulls = [], []
    for w, m, cov in zip(weights, means, covs, strict=True):
        pull = (m - x) @ np.linalg.inv(cov)
        norm = math.sqrt(np.linalg.det(2 * math.pi * cov))
        density.append(w / norm * np.exp(((x - m) * pull).sum(-1) / 2))
        pulls.append(pull)
    return np.array(density), np.array(pulls)


def noised(means, covs, at: Level) -> tuple[np.ndarray, np.ndarray]:
    """Means and covariances of a mixture's components at a level."""
    return at.alpha * means, at.alpha**2 * covs + at.sigma**2 * np.eye(means.shape[1])


def slope(steps, errors) -> float:
    """Order of convergence: minus the slope of log error over log steps, by least squares."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
