"""The exercises of chapter 08 computed a third way, in NumPy and SciPy."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, softmax
from scipy.stats import norm, truncnorm

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("8.1")
def test_the_ratio_is_that_of_the_two_chances_of_being_wrong():
    """Both pushes are gamma times the probability of the rival: plain, and at gamma times the logit."""
    assert disagreements("8.1", lambda p, gamma: (1 - p) / expit(-gamma * logit(p))) == []


@pytest.mark.answer("8.2")
def test_the_normalised_push_is_a_sum_over_pairs_of_rivals():
    def push(z, slopes, label, gamma):
        z, slopes = z.numpy(), slopes.numpy()
        out = np.zeros((len(z), slopes.shape[2]))
        for n, row in enumerate(z):
            for rival, share in enumerate(softmax(gamma * row)):
                out[n] += gamma * share * (slopes[n, label] - slopes[n, rival])
        return out

    assert disagreements("8.2", push) == []


@pytest.mark.answer("8.3")
def test_the_two_means_are_ratios_of_sums_of_powers():
    def means(p, label, gamma):
        p = p.numpy()
        mine, z = p[:, label], (p**gamma).sum(1)
        return tuple((mine ** (gamma + 1) / w).sum() / (mine**gamma / w).sum() for w in (np.ones_like(z), z))

    assert disagreements("8.3", means) == []


@pytest.mark.answer("8.4")
def test_the_peak_is_the_least_of_the_negative_log_density_and_the_limit_a_truncated_normal():
    def both(a, b, gamma):
        def energy(x):
            return x**2 / 2 + gamma * np.logaddexp(0, -a * x - b)

        peak = minimize_scalar(energy, bounds=(-20, 20), method="bounded").x
        for _ in range(8):  # Newton's steps on the slope
            p = expit(-a * peak - b)
            peak -= (peak - gamma * a * p) / (1 + gamma * a**2 * p * (1 - p))
        wall = -b / a
        mean = truncnorm.mean(wall, np.inf)
        assert abs(mean - quad(lambda x: x * norm.pdf(x), wall, np.inf)[0] / norm.sf(wall)) < 1e-5
        return peak, mean

    assert disagreements("8.4", both) == []
