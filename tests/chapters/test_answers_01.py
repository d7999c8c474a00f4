"""The exercises of chapter 01 computed a third way, neither as their solutions nor as their checkers do."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import norm, poisson

from difflesson.exercises.chapter01 import PIXELS
from tests.oracles.third_answers import disagreements


@pytest.mark.answer("1.1")
def test_two_steps_are_one_by_the_moments_of_three_numbers():
    """Mean and variance of x_2 for x_0 = 1 and for x_0 = 2, over noises of plus or minus one."""

    def both(a_1, s_1, a_2, s_2):
        ends = {x_0: [a_2 * (a_1 * x_0 + s_1 * e) + s_2 * f for e in (-1, 1) for f in (-1, 1)] for x_0 in (1, 2)}
        return np.mean(ends[2]) - np.mean(ends[1]), np.std(ends[1])

    assert disagreements("1.1", both) == []


@pytest.mark.answer("1.2")
def test_the_score_is_that_of_the_guess_of_the_clean_point():
    """x0 = alpha x - sigma v, then the slope of the bell around alpha x0."""

    def score(x, v, log_snr):
        x, v = x.numpy(), v.numpy()
        alpha, sigma = np.sqrt(expit(log_snr)), np.sqrt(expit(-log_snr))
        return (alpha * (alpha * x - sigma * v) - x) / sigma**2

    assert disagreements("1.2", score) == []


@pytest.mark.answer("1.3")
def test_the_guess_between_two_points_is_tweedies_by_a_difference_quotient():
    def guess(x, alpha, sigma, chance):
        def log_density(z):
            return np.log(chance * norm.pdf(z, alpha, sigma) + (1 - chance) * norm.pdf(z, -alpha, sigma))

        x, h = x.numpy(), 1e-5
        return (x + sigma**2 * (log_density(x + h) - log_density(x - h)) / (2 * h)) / alpha

    assert disagreements("1.3", guess) == []


@pytest.mark.answer("1.4")
def test_the_unavoidable_error_is_what_total_variance_leaves():
    """x_t - alpha x_0 has the variance sigma^2 a coordinate: a part that x_t decides, sigma^2 score, and the error."""

    def error(mean_square_score, alpha, sigma, dim):
        decided = (sigma**2 * np.sqrt(mean_square_score)) ** 2
        return brentq(lambda left: decided + alpha**2 * left - dim * sigma**2, -1, 1e4, xtol=1e-13)

    assert disagreements("1.4", error) == []


@pytest.mark.answer("1.5")
def test_the_brightness_is_a_ratio_of_two_averages_over_the_prior():
    """One after the other: the prior's brightnesses by least squares from the counts, then Bayes' rule."""

    def guess(often, alpha, r):
        often = often.numpy()
        for bright, _, gain, dark, counts in PIXELS.values():
            if (gain, dark, counts) == (alpha, r, len(often)):
                kernel = poisson.pmf(np.arange(counts)[:, None], gain * np.array(bright) + dark)
                shares = np.linalg.lstsq(kernel, often, rcond=None)[0]
                first, second = (kernel @ (shares * np.array(bright) ** k) / (kernel @ shares) for k in (1, 2))
                return first[:-2], (second - first**2)[:-2]
        raise AssertionError

    assert disagreements("1.5", guess) == []
