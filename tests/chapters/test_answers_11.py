"""The exercises of chapter 11 computed a third way, in NumPy and SciPy."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import multivariate_normal

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("11.1")
def test_the_guided_v_is_that_of_the_guided_noise_and_the_guided_clean_point():
    """(x_t, v) is (x_0, eps) turned: guide both of these, and turn back."""

    def guided(v_cond, v_uncond, w):
        turn, x_t = np.array([[0.6, 0.8], [-0.8, 0.6]]), 1.3  # (x_t, v) = turn (x_0, eps)
        (x_c, eps_c), (x_u, eps_u) = (
            np.tensordot(turn.T, np.stack([np.full(v.shape, x_t), v.numpy()]), 1) for v in (v_cond, v_uncond)
        )
        x_0, eps = (1 + w) * x_c - w * x_u, (1 + w) * eps_c - w * eps_u
        return np.tensordot(turn, np.stack([x_0, eps]), 1)[1]

    assert disagreements("11.1", guided) == []


@pytest.mark.answer("11.2")
def test_the_gain_is_that_of_the_class_probabilities_of_scipys_gaussians():
    def gain(gradient, a, b):
        mixture = gradient.mixture
        logs = []
        for point in (a, b):
            parts = np.array([
                weight * multivariate_normal(mean, cov).pdf(point)
                for weight, mean, cov in zip(mixture.weights.tolist(), mixture.means, mixture.covs, strict=True)
            ])  # fmt: skip
            logs.append(np.log(parts[np.array(mixture.labels) == gradient.label].sum() / parts.sum()))
        return logs[1] - logs[0]

    assert disagreements("11.2", gain) == []


@pytest.mark.answer("11.3")
def test_the_two_variances_are_an_integral_over_the_line_and_one_over_all_noise_levels():
    """log Q is nearly the integral of 1 / (1 + q) from 0 to Q: what is left of the flow's has a limit."""

    def variances(c, u, gamma):
        def weight(x):
            return np.exp(-(x**2) / 2 * (gamma / c + (1 - gamma) / u))

        told = quad(lambda x: x**2 * weight(x), -np.inf, np.inf)[0] / quad(weight, -np.inf, np.inf)[0]
        rest = quad(lambda q: 1 / (1 + q) - gamma / (c + q) - (1 - gamma) / (u + q), 0, np.inf)[0]
        return told, np.exp(rest)

    assert disagreements("11.3", variances) == []


@pytest.mark.answer("11.4")
def test_the_step_is_the_conditional_of_a_joint_gaussian():
    def step(z, clean, lam, lam_next, v):
        z, clean = z.numpy(), clean.numpy()
        alpha, alpha_next = np.sqrt(expit(lam)), np.sqrt(expit(lam_next))
        shrink, var_next, var = alpha / alpha_next, expit(-lam_next), expit(-lam)  # var is that of z, given clean
        covariance = shrink * var_next
        mean = alpha_next * clean + covariance / var * (z - alpha * clean)
        ends = np.log([var_next - covariance**2 / var, var - shrink**2 * var_next])
        return mean, np.exp(np.interp(v, [0, 1], ends))

    assert disagreements("11.4", step) == []
