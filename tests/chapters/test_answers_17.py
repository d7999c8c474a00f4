"""The exercises of chapter 17 computed a third way, in NumPy and SciPy."""

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("17.1")
def test_the_langevin_half_has_what_the_two_weights_of_a_step_leave():
    """Weights of the two scores on both sides, (1 - gamma, gamma): one unknown, by least squares."""

    def scale(gamma, rho, a):
        whole, predictor = (factor / 2 * np.array([1 - g, g]) for factor, g in ((1 + rho**2, gamma), (1, a)))
        column = rho**2 / 2 * np.array([-1.0, 1.0])
        return np.linalg.lstsq(column[:, None], whole - predictor - rho**2 / 2 * np.array([1.0, 0.0]), rcond=None)[0][0]

    assert disagreements("17.1", scale) == []


@pytest.mark.answer("17.2")
def test_the_bill_is_the_integral_along_the_path_of_a_gaussian():
    def bill(x, C, U, gamma):
        def rate(q):
            onward = ((C + q) / C) ** (gamma / 2) * ((U + q) / U) ** ((1 - gamma) / 2)
            return gamma * (gamma - 1) / 2 * (onward * (1 / (U + q) - 1 / (C + q))) ** 2

        return x.numpy() ** 2 * quad(rate, 0, np.inf, epsabs=1e-12)[0]

    assert disagreements("17.2", bill) == []


@pytest.mark.answer("17.3")
def test_the_rate_is_a_sum_over_pairs_of_scores():
    """Minus half the sum of c_i c_j |s_i - s_j|^2, for weights that add up to one."""

    def made(s0, s1, s2, gamma1, gamma2):
        scores, weights = [s.numpy() for s in (s0, s1, s2)], (1 - gamma1 - gamma2, gamma1, gamma2)
        pairs = ((0, 1), (0, 2), (1, 2))
        return -sum(weights[i] * weights[j] * np.linalg.norm(scores[i] - scores[j], axis=1) ** 2 for i, j in pairs) / 2

    assert disagreements("17.3", made) == []


@pytest.mark.answer("17.4")
def test_the_mean_follows_its_own_equation_from_very_far_up():
    def mean(m, C, U, gamma, rho, integrate):
        def rate(log_q, value):
            q, half = np.exp(log_q), (1 + rho**2) / 2
            return -half * q * (gamma * (m - value) / (C + q) - (1 - gamma) * value / (U + q))

        found = solve_ivp(rate, (45.0, -22.0), [3.0], method="LSODA", rtol=1e-9, atol=1e-11)
        return found.y[0, -1]

    assert disagreements("17.4", mean) == []
