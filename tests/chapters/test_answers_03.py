"""The exercises of chapter 03, computed a third way."""

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import multivariate_normal

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("3.1")
def test_the_bill_is_the_growth_of_the_ratio_integrated_over_the_step():
    def bill(error, alpha_t, sigma_t, alpha_s, sigma_s):
        shares = np.linspace(0, 1, 5)
        tangents = (1 - shares) * np.log(sigma_t / alpha_t) + shares * np.log(sigma_s / alpha_s)
        snr = np.exp(-2 * tangents)
        return float(np.diff(snr).sum() * error / 2)

    assert disagreements("3.1", bill) == []


@pytest.mark.answer("3.2")
def test_the_look_is_the_ratio_of_joint_densities():
    """Log of q(x_s | x_0) q(x_t | x_s) at three places of x_s: a parabola, whose top and bend are asked for."""

    def look(x_t, x_0, tau_t, tau_s):
        x_t, x_0 = x_t.numpy(), x_0.numpy()
        step = np.sqrt(tau_t**2 - tau_s**2)
        h = tau_s * step / tau_t

        def log_joint(x_s):
            return -((x_s - x_0) ** 2) / (2 * tau_s**2) - (x_t - x_s) ** 2 / (2 * step**2)

        left, here, right = (log_joint(x_0 + k * h) for k in (-1, 0, 1))
        bend = (left - 2 * here + right) / h**2
        return x_0 - (right - left) / (2 * h) / bend, float(-1 / bend.flat[0])

    assert disagreements("3.2", look) == []


@pytest.mark.answer("3.3")
def test_bits_are_those_of_a_gaussian_in_either_unit():
    """A one-dimensional Gaussian in x that needs these nats a number at its centre, and the same one in y."""

    def bits(nats, dim, levels):
        per_number = nats / dim
        deviation = np.exp(per_number) / np.sqrt(2 * np.pi)  # -log of its density at the centre
        in_y = multivariate_normal(0, (deviation * (levels - 1) / 2) ** 2)
        return -in_y.logpdf(0) / np.log(2)

    assert disagreements("3.3", bits) == []


@pytest.mark.answer("3.4")
def test_no_other_density_scatters_less_and_the_root_is_one():
    def clock(log_snr, first, second):
        log_snr, first, second = (a.numpy() for a in (log_snr, first, second))
        density = np.sqrt(second) / trapezoid(np.sqrt(second), log_snr)

        def scatter(p):
            return np.sqrt(trapezoid(second / (4 * p), log_snr) - trapezoid(first / 2, log_snr) ** 2)

        rng = np.random.default_rng(0)
        for _ in range(20):
            other = density * np.exp(0.1 * rng.standard_normal(len(density)))
            assert scatter(other / trapezoid(other, log_snr)) > scatter(density)
        return density, scatter(density)

    assert disagreements("3.4", clock) == []


@pytest.mark.answer("3.5")
def test_the_excess_is_that_of_two_covariances_of_the_joint_gaussian():
    def excess(snr_r, snr_s, snr_t, dim):
        a_r, a_s, a_t = (np.sqrt(r / (1 + r)) for r in (snr_r, snr_s, snr_t))
        true, resampled = a_t / a_s, a_t / a_s * (a_s / a_r) ** 2  # covariances of x_s, or of its twin, with x_t
        slope = a_t / a_s
        variance = np.linalg.inv(np.linalg.inv(np.array([[1 - a_s**2]])) + (a_t / a_s) ** 2 / (1 - (a_t / a_s) ** 2))
        return float(dim * 2 * slope * (true - resampled) / (2 * variance[0, 0]))

    assert disagreements("3.5", excess) == []
