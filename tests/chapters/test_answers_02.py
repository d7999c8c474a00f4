"""The exercises of chapter 02 computed a third way, neither as their solutions nor as their checkers do."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from scipy.stats import norm

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("2.1")
def test_the_divergence_is_an_integral_in_each_coordinate():
    def price(mean, log_var):
        def one(m, v):
            q = norm(m, np.exp(v / 2))
            low, high = m - 12 * q.std(), m + 12 * q.std()
            return quad(lambda z: q.pdf(z) * (q.logpdf(z) - norm.logpdf(z)), low, high, points=[m], epsabs=1e-11)[0]

        return np.array([sum(one(*pair) for pair in zip(*row, strict=True)) for row in zip(mean, log_var, strict=True)])

    assert disagreements("2.1", lambda mean, log_var: price(mean.numpy(), log_var.numpy())) == []


@pytest.mark.answer("2.2")
def test_two_estimates_by_numpy_with_the_weights_inside():
    def both(r):
        r = r.numpy()
        return np.mean(r, axis=0), logsumexp(r, axis=0, b=np.full(r.shape, 1 / len(r)))

    assert disagreements("2.2", both) == []


@pytest.mark.answer("2.3")
def test_clumps_by_moments_of_a_drawn_label():
    """Mean and deviation of log q - log p under q, from the first two moments; entropy and cross-entropy apart."""

    def both(shares, chances):
        q, p = shares.numpy(), chances.numpy()
        q, p = q[q > 0], p[q > 0]
        gap = -np.sum(q * np.log(p)) + np.sum(q * np.log(q))
        spread = 0.0 if np.ptp(np.log(q / p)) < 1e-12 else np.sqrt(np.average((np.log(q / p) - gap) ** 2, weights=q))
        return gap, spread

    assert disagreements("2.3", both) == []


@pytest.mark.answer("2.4")
def test_the_weighted_objective_by_a_search_over_the_square_of_w():
    """With the best guess, the objective over beta is the log-likelihood of Gaussian data at the noise beta s^2."""

    def both(variances, s, beta):
        noise, squares = beta * s**2, []
        for variance in variances.numpy():
            loss = minimize_scalar(lambda w2, v=variance: np.log(w2 + noise) + v / (w2 + noise), (0, 1e-3, 6.0),
                                   method="bounded", bounds=(0, 6), options={"xatol": 1e-12})  # fmt: skip
            edge = np.log(noise) + variance / noise
            squares.append(0.0 if edge <= loss.fun + 1e-12 else loss.x)
        squares = np.array(squares)
        return squares, np.log1p(squares / noise) / 2

    assert disagreements("2.4", both) == []


@pytest.mark.answer("2.5")
def test_what_the_closed_form_leaves_in_the_eigenvectors_of_the_spread():
    """In the axes of W the coordinates are independent: the variance of a sum of squares of Gaussians, one by one."""

    def variance(W, b, s, x):
        W, b, x = W.numpy(), b.numpy(), x.numpy()
        U, singular, _ = np.linalg.svd(W)
        found = np.zeros(len(x))
        for j in range(len(b)):
            w = singular[j] if j < len(singular) else 0.0
            spread = w**2 / (1 + w**2 / s**2)  # of w z given x
            away = (x - b) @ U[:, j] * (1 - spread / s**2)
            found += (2 * spread**2 + 4 * spread * away**2) / (2 * s**2) ** 2
        return found

    assert disagreements("2.5", variance) == []
