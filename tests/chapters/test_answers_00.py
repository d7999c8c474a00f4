"""The exercises of chapter 00 computed a third way, in NumPy and SciPy."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from tests.oracles.third_answers import disagreements

BY_HEAD = {7.5: 6.5, 3.0: 2.0, 1.25: 0.25, 100.0: 99.0, 1.0: 0.0, 0.5: 0.0, 0.0: 0.0, -2.0: 0.0}


@pytest.mark.answer("0.1")
def test_the_pipelines_weight_is_that_of_a_table_made_by_head():
    assert disagreements("0.1", lambda guidance_scale: BY_HEAD[guidance_scale]) == []


@pytest.mark.answer("0.2")
def test_the_guided_point_lands_where_the_flow_over_the_noise_level_carries_it():
    """In y = x_t / alpha_t and q = (sigma_t / alpha_t)^2 a bell around m has the score -(y - m) / (1 + q)."""

    def landing(uncond_mean, cond_mean, gamma):
        uncond_mean, cond_mean, gamma = float(uncond_mean), float(cond_mean), float(gamma)

        def slope(log_q, y):  # d y / d log q = -q / 2 times the guided score
            q = np.exp(log_q)
            cond, uncond = -(y - cond_mean) / (1 + q), -(y - uncond_mean) / (1 + q)
            return -q / 2 * (uncond + gamma * (cond - uncond))

        return solve_ivp(slope, (25, -25), [0.0], rtol=1e-8, atol=1e-8).y[0, -1]

    assert disagreements("0.2", landing) == []


@pytest.mark.answer("0.3")
def test_the_storys_mean_is_the_slope_of_the_log_of_a_sum():
    """The mean under weights e^w is the derivative in h of log sum exp(w + h x), here a difference quotient."""

    def mean(mixture, points, label, gamma):
        blobs = zip(mixture.weights.tolist(), mixture.means, mixture.covs, strict=True)
        joint = np.array([np.log(w) + multivariate_normal(mean, cov).logpdf(points) for w, mean, cov in blobs])
        of_class = np.array(mixture.labels) == label
        log_posterior = logsumexp(joint[of_class], axis=0) - logsumexp(joint, axis=0)
        h, x = 1e-4, points.numpy()
        ahead, behind = (logsumexp((gamma - 1) * log_posterior[:, None] + sign * h * x, axis=0) for sign in (1, -1))
        return (ahead - behind) / (2 * h)

    assert disagreements("0.3", mean) == []
