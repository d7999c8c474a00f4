"""The exercises of chapter 18 computed a third way, in NumPy and SciPy."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("18.1")
def test_the_weight_of_a_step_is_a_sum_over_pixels():
    def weight(eps_c, eps_u, gamma, start, end):
        away = (eps_u.numpy() - eps_c.numpy()).reshape(len(eps_c), -1)
        return np.einsum("np,np->n", away, away) * (gamma**2 - gamma) * (end - start) / 2

    assert disagreements("18.1", weight) == []


@pytest.mark.answer("18.2")
def test_the_share_kept_is_a_mean_of_powers():
    def kept(log_p, p_y, gamma):
        powers = np.float_power(np.exp(log_p.numpy()), gamma - 1)
        return powers.mean(), np.log(p_y * powers.mean())

    assert disagreements("18.2", kept) == []


def flow(C, U, gamma):
    """From z_0 = 1 upwards in log(1 + q), the point and its log-weight together; the weight at a very large q."""

    def rates(v, state):
        q = np.expm1(v)
        z = state[0]
        pull = gamma / (C + q) + (1 - gamma) / (U + q)
        return [z * pull / 2 * (1 + q), gamma * (gamma - 1) / 2 * z**2 * (1 / (C + q) - 1 / (U + q)) ** 2 * (1 + q)]

    return solve_ivp(rates, (0, 30), [1.0, 0.0], rtol=1e-10, atol=1e-12).y[1, -1]


@pytest.mark.answer("18.3")
def test_the_weight_is_what_a_differential_equation_gathers():
    assert disagreements("18.3", flow) == []


@pytest.mark.answer("18.4")
def test_the_variance_is_infinite_from_where_the_target_is_twice_as_wide_as_the_flow():
    def scale(C, U):
        r = U / C
        return brentq(lambda g: g * np.log(r) - np.log(2 * (g * r + 1 - g)), 1, 500, xtol=1e-12)

    assert disagreements("18.4", scale) == []
