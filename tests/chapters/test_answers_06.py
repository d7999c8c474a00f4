"""The exercises of chapter 06 computed a third way, in NumPy."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("6.1")
def test_the_number_of_proposals_is_the_mean_of_a_geometric_law():
    """Absorbing chain with one state: mean time (1 - q)^-1 with q the chance to go on; averaged over many kinds."""

    def proposals(chance_at_x_t, chance_of_label, bound):
        share = np.array([0.2, 0.5, 0.3])  # of the points, by how sure they are of the label
        chance = np.array([0.4, 1.0, 1.4])
        chance = np.minimum(chance * chance_of_label / (share @ chance), bound)
        chance = chance * chance_of_label / (share @ chance)
        given_label = share * chance / chance_of_label
        times = np.linalg.inv(np.eye(3) - np.diag(1 - chance / bound)) @ np.ones(3)
        return 1 / (1 - (1 - chance_at_x_t / bound)), float(given_label @ times)

    assert disagreements("6.1", proposals) == []


@pytest.mark.answer("6.2")
def test_the_step_is_each_classs_own_bayes_rule():
    def step(start, move):
        start, move = start.numpy(), move.numpy()
        answers = []
        for of_class in start.T:
            prior = np.diag(of_class / of_class.sum())
            answers.append(prior @ move @ np.diag(1 / (of_class / of_class.sum() @ move)))
        return np.stack(answers, axis=-1).tolist()

    assert disagreements("6.2", step) == []


@pytest.mark.answer("6.3")
def test_the_pair_classifier_is_a_product_of_odds():
    def pair(chances, x_s, x_t, alpha_ts, v):
        chances, v = chances.numpy(), v.numpy()
        residual = x_t.numpy() - alpha_ts * x_s.numpy()
        odds = chances / chances[:, :1]
        for column in residual.T:  # one coordinate after the other multiplies the odds against the first class
            odds = odds * np.sqrt(v[0] / v) * np.exp((column[:, None] ** 2) * (1 / v[0] - 1 / v) / 2)
        return (odds / odds.sum(1, keepdims=True)).tolist()

    assert disagreements("6.3", pair) == []


@pytest.mark.answer("6.4")
def test_the_mean_of_the_chosen_is_half_the_difference_times_a_hyperbolic_tangent():
    """By adaptive quadrature: E[(u / 2) tanh(a g u / 2)] with the density of u, of variance 2 beta."""

    def mean(beta, g, power):
        def integrand(u):
            return u / 2 * np.tanh(power * g * u / 2) * norm(scale=np.sqrt(2 * beta)).pdf(u)

        return quad(integrand, -12 * np.sqrt(beta), 12 * np.sqrt(beta), epsabs=1e-12)[0]

    assert disagreements("6.4", mean) == []


@pytest.mark.answer("6.5")
def test_the_nats_are_half_the_variance_of_the_slope_that_is_left():
    """log(exact / one of N) is, to leading order, a linear function of x: KL is half of its variance."""

    def nats(g, count, power):
        g = g.numpy()
        nodes, weights = np.polynomial.hermite_e.hermegauss(4)
        weights = weights / weights.sum()
        total = 0.0
        for part in g:  # the coordinates of a bell are independent
            left = part * nodes - power * (count - 1) * part * nodes / count
            total += weights @ left**2 - (weights @ left) ** 2
        return total / 2

    assert disagreements("6.5", nats) == []
