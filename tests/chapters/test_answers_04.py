"""The exercises of chapter 04 computed a third way, neither as their solutions nor as their checkers do."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.linalg import solve_discrete_lyapunov
from scipy.optimize import brentq

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("4.1")
def test_the_exponent_is_that_of_the_variance_a_short_walk_keeps():
    """On N(0, 1) the walk keeps the variance 1 / k: the variance of a scaled walk with steps a thousandth as long."""

    def exponent(u, v):
        kept = [v * h / (1 - (1 - u * h) ** 2) for h in (1e-4, 2e-4)]
        return 1 / (2 * kept[0] - kept[1])  # without the first-order bias

    assert disagreements("4.1", exponent) == []


@pytest.mark.answer("4.2")
def test_the_step_is_the_one_whose_lyapunov_equation_has_the_wanted_variance():
    def step(v, b):
        def of(one):
            def excess(c):
                kept = solve_discrete_lyapunov(np.array([[1 - c / one]]), np.array([[2 * c]]))
                return float(kept[0, 0]) - (1 + b) * one

            return brentq(excess, 1e-9 * one, one * (2 - 1e-6), xtol=1e-14)

        return np.vectorize(of)(v.numpy())

    assert disagreements("4.2", step) == []


@pytest.mark.answer("4.3")
def test_what_is_seen_is_the_closed_form_of_the_fisher_divergence_integrated():
    def nats(m, v, n, w, sigma_1, sigma_2):
        def fisher(q):
            return (1 / (v + q) - 1 / (w + q)) ** 2 * (v + q) + (m - n) ** 2 / (w + q) ** 2

        return quad(fisher, sigma_1**2, sigma_2**2, epsabs=1e-12, epsrel=1e-11, limit=400)[0] / 2

    assert disagreements("4.3", nats) == []


@pytest.mark.answer("4.4")
def test_nats_are_a_weighted_sum_of_the_differences():
    """Each level counts by half of what lies between its neighbours."""

    def nats(loss_r, loss_u, sigmas):
        q = sigmas.numpy() ** 2
        weights = np.convolve(np.abs(np.diff(q)), [0.5, 0.5])
        return float(weights @ (loss_u - loss_r).numpy()) / 2

    assert disagreements("4.4", nats) == []
