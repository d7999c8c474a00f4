"""The exercises of chapter 07 computed a third way, in NumPy and SciPy."""

import numpy as np
import pytest
from scipy.optimize import minimize

from difflesson import exercises
from tests.oracles.third_answers import disagreements


def parts(mixture):
    """Weights (K,), means (K, d), covariances (K, d, d), and an array of labels (K,)."""
    return mixture.weights.numpy(), mixture.means.numpy(), mixture.covs.numpy(), np.array(mixture.labels)


def log_densities(x, weights, means, covs):
    """log of weight times density at each of x (N, d), of each component: (K, N); complex parameters too."""
    rows = []
    for weight, mean, cov in zip(weights, means, covs, strict=True):
        away = x - mean
        square = np.einsum("ni,ij,nj->n", away, np.linalg.inv(cov), away)
        rows.append(np.log(weight) - square / 2 - np.log(np.linalg.det(2 * np.pi * cov)) / 2)
    return np.array(rows)


@pytest.mark.answer("7.1")
def test_the_shifted_mean_is_where_the_product_is_largest():
    def mode(mean, cov, g, gamma):
        mean, precision, g = mean.numpy(), np.linalg.inv(cov.numpy()), g.numpy()

        def minus_log(x):
            return (x - mean) @ precision @ (x - mean) / 2 - gamma * g @ x

        def slope(x):
            return precision @ (x - mean) - gamma * g

        return minimize(minus_log, mean, jac=slope, method="BFGS", options={"gtol": 1e-10}).x

    assert disagreements("7.1", mode) == []


@pytest.mark.answer("7.2")
def test_the_exact_coefficient_is_that_of_two_gaussians():
    """Linear regression of x_s on x_t, for a class and for all data: the difference over that of the scores."""

    def coefficient(alpha_t, alpha_s):
        a, x_t = alpha_t / alpha_s, 0.3
        means, scores = [], []
        for mean, variance in ((0.9, 0.6), (-0.2, 1.7)):  # of the clean class, of all clean data
            at_s, var_s = alpha_s * mean, alpha_s**2 * variance + 1 - alpha_s**2
            var_t = a**2 * var_s + 1 - a**2
            means.append(at_s + a * var_s / var_t * (x_t - a * at_s))
            scores.append(-(x_t - a * at_s) / var_t)
        return (means[0] - means[1]) / (scores[0] - scores[1])

    assert disagreements("7.2", coefficient) == []


@pytest.mark.answer("7.3")
def test_the_covariance_is_that_within_the_blobs_plus_that_between_them():
    def covariance(at_s, x, label, alpha_ts):
        weights, means, covs, labels = parts(at_s)
        chosen, x, identity = labels == label, x.numpy(), np.eye(at_s.dim)
        weights, means, covs = weights[chosen], means[chosen], covs[chosen]
        noisy = alpha_ts**2 * covs + (1 - alpha_ts**2) * identity
        log = log_densities(x, weights, alpha_ts * means, noisy)
        shares = np.exp(log - log.max(0))
        shares = (shares / shares.sum(0)).T  # (N, K)
        gains = alpha_ts * covs @ np.linalg.inv(noisy)  # (K, d, d)
        within = np.einsum("nk,kij->nij", shares, covs - alpha_ts * gains @ covs)
        centres = means + np.einsum("kij,nkj->nki", gains, x[:, None] - alpha_ts * means)
        off = centres - np.einsum("nk,nki->ni", shares, centres)[:, None]
        return within + np.einsum("nk,nki,nkj->nij", shares, off, off)

    assert disagreements("7.3", covariance) == []


@pytest.mark.answer("7.4")
def test_the_rate_is_the_derivative_by_a_complex_step_of_the_noise():
    def rate_of_change(at_t, x, label, rate):
        weights, means, covs, labels = parts(at_t)
        h = 1e-20j
        alpha = np.exp(-rate * h / 2)
        log = log_densities(x.numpy(), weights, alpha * means, alpha**2 * covs + (1 - alpha**2) * np.eye(at_t.dim))
        of_class, everything = np.exp(log[labels == label]).sum(0), np.exp(log).sum(0)
        return (np.log(of_class) - np.log(everything)).imag / h.imag

    assert disagreements("7.4", rate_of_change) == []


@pytest.mark.answer("7.5")
def test_the_constant_is_half_of_the_variance_that_no_linear_function_explains():
    """To second order in f = a(z, z, z) / 6: KL = (E f^2 - |E z f|^2) / 2, with nodes that integrate it exactly."""

    def constant(third):
        third = third.numpy()
        nodes, weights = np.polynomial.hermite_e.hermegauss(6)
        z = np.stack(np.meshgrid(*[nodes] * len(third), indexing="ij"), -1).reshape(-1, len(third))
        w = np.prod(np.meshgrid(*[weights / weights.sum()] * len(third), indexing="ij"), 0).ravel()
        f = np.einsum("ijk,ni,nj,nk->n", third, z, z, z) / 6
        return (w @ f**2 - ((w * f) @ z) @ ((w * f) @ z)) / 2

    assert disagreements("7.5", constant) == []


@pytest.mark.answer("7.5")
def test_on_the_line_it_is_the_square_of_the_skewness_over_twelve():
    """Comon (1994), "Independent component analysis, a new concept?": the negentropy begins with kappa_3^2 / 12."""
    exercise = exercises.find("7.5")
    for (third,), value in zip(exercise.cases().values(), exercise.run(exercise.truth), strict=True):
        if len(third) == 1:
            assert abs(float(value) / (float(third) ** 2 / 12) - 1) < 1e-4
