"""The exercises of chapter 12 computed a third way, in NumPy and SciPy."""

import numpy as np
import pytest
from scipy.special import log_expit
from scipy.stats import multivariate_normal

from tests.oracles.third_answers import disagreements


def slopes(function, dim: int, step: float = 1e-5) -> np.ndarray:
    """Central differences of a function of a nudge, (dim,)."""
    return np.array([(function(step * e) - function(-step * e)) / (2 * step) for e in np.eye(dim)])


@pytest.mark.answer("12.1")
def test_the_gradient_is_the_move_of_the_score_that_tweedies_formula_reads_off_the_clean_points():
    def gradient(told, untold, alpha, sigma):
        x = np.linspace(-1, 1, told.numel()).reshape(told.shape)
        scores = [(alpha * x0.numpy() - x) / sigma**2 for x0 in (told, untold)]
        return scores[0] - scores[1]

    assert disagreements("12.1", gradient) == []


@pytest.mark.answer("12.2")
def test_both_gradients_are_differences_of_scipys_gaussian_log_densities():
    def both(a, y, s2, mean, cov, alpha, sigma):
        a, mean, cov = a.numpy(), mean.numpy(), cov.numpy()

        def log_density(variance):
            return lambda nudge: multivariate_normal(
                float(a @ (mean + alpha / sigma**2 * cov @ nudge)), variance
            ).logpdf(y)

        joint = np.block([[cov, cov @ a[:, None]], [a[None] @ cov, np.array([[a @ cov @ a + s2]])]])  # of x0 and y
        return tuple(slopes(log_density(variance), len(a)) for variance in (s2, joint[-1, -1]))

    assert disagreements("12.2", both) == []


@pytest.mark.answer("12.3")
def test_the_gradient_is_a_difference_of_the_log_average_verdict():
    def gradient(x0, p, x, alpha, sigma):
        x0, p, x = x0.numpy(), p.numpy(), x.numpy()

        def log_answer(nudge):
            explains = np.array([multivariate_normal(alpha * point, sigma**2 * np.eye(len(x))).pdf(x + nudge)
                                 for point in x0])  # fmt: skip
            return np.log(explains @ p / explains.sum())

        return slopes(log_answer, len(x))

    assert disagreements("12.3", gradient) == []


@pytest.mark.answer("12.4")
def test_the_blurred_verdict_by_the_deviation_of_the_logit_and_its_slope_by_differences():
    def blurred(k, b, mean, cov, alpha, sigma):
        k, mean, cov = k.numpy(), mean.numpy(), cov.numpy()
        deviation = np.linalg.norm(np.linalg.cholesky(cov).T @ k)
        probit = np.sqrt(8 / np.pi)  # the deviation of the Gaussian whose distribution function is the logistic curve

        def value(nudge):
            logit = k @ (mean + alpha / sigma**2 * cov @ nudge) + b
            return log_expit(logit * probit / np.hypot(probit, deviation))

        return value(np.zeros(len(k))), slopes(value, len(k))

    assert disagreements("12.4", blurred) == []
