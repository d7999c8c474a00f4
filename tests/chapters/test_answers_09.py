"""The exercises of chapter 09 computed a third way, in NumPy and SciPy."""

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("9.1")
def test_the_pull_of_a_cosine_is_the_direction_less_its_part_along_x_over_the_length():
    """By complex steps: the derivative of an analytic function without a difference."""

    def pull(x, u):
        x, u = x.numpy(), u.numpy()
        values = []
        for k in range(len(x)):
            z = x.astype(complex)
            z[k] += 1e-30j
            values.append((z @ u / np.sqrt(z @ z) / np.sqrt(u @ u)).imag / 1e-30)
        return np.array(values)

    assert disagreements("9.1", pull) == []


@pytest.mark.answer("9.2")
def test_the_shares_follow_a_differential_equation_in_gamma():
    """The share of a blob grows with gamma at the rate of its mean position less the mean of all, m_k + gamma v_k."""

    def shares(weights, means, variances, gamma):
        weights, means, variances = (part.numpy() for part in (weights, means, variances))

        def rate(g, log_shares):
            ahead = means + g * variances
            shares = np.exp(log_shares - log_shares.max())
            return ahead - ahead @ (shares / shares.sum())

        if gamma == 0:
            return weights
        log = solve_ivp(rate, (0, gamma), np.log(weights), rtol=1e-10, atol=1e-10, method="LSODA").y[:, -1]
        shares = np.exp(log - log.max())
        return shares / shares.sum()

    assert disagreements("9.2", shares) == []


@pytest.mark.answer("9.3")
def test_the_two_pulls_are_slopes_of_integrals_over_the_clean_point():
    def pulls(x, v, alpha, sigma, gamma):
        total = alpha**2 * v + sigma**2

        def both(point):
            """log h, and gamma times the mean similarity, at a noisy point."""
            middle, spread = alpha * v * point / total, np.sqrt(v * sigma**2 / total)

            def mean(f):
                bell = lambda z: np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * f(middle + spread * z)  # noqa: E731
                return quad(bell, -12, 12, epsabs=1e-13, epsrel=1e-12)[0]

            return np.array([np.log(mean(lambda x: np.exp(-gamma * x**2 / 2))), gamma * mean(lambda x: -(x**2) / 2)])

        h = 1e-3
        slopes = np.array([(both(p + h) - both(p - h)) / (2 * h) for p in x.numpy()])  # exact: both are parabolas
        return slopes[:, 0], slopes[:, 1]

    assert disagreements("9.3", pulls) == []


@pytest.mark.answer("9.4")
def test_the_count_is_an_integral_of_pushes_that_have_shrunk():
    def counted(rho, length):
        return quad(lambda b: (1 + rho**2) / 2 * np.exp(-(rho**2) * b / 2), 0, length, epsabs=1e-12)[0]

    assert disagreements("9.4", counted) == []


@pytest.mark.answer("9.5")
def test_the_style_of_noise_is_the_covariance_of_a_centred_noise_summed_over_points():
    def mean_gram(G, m, alpha, sigma):
        cov = sigma**2 * np.eye(2 * m)
        centre = np.eye(2 * m) - np.kron(np.ones((m, m)) / m, np.eye(2))
        centred = (centre @ cov @ centre.T).reshape(m, 2, m, 2)
        return alpha**2 * G.numpy() + np.einsum("iaib->ab", centred) / m

    assert disagreements("9.5", mean_gram) == []
