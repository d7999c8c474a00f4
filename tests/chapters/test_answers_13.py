"""The exercises of chapter 13 computed a third way, neither as their solutions nor as their checkers do."""

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.signal import lfilter
from scipy.special import expit

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("13.1")
def test_nats_between_two_losses_are_half_of_the_error_of_x0_times_the_signal_to_noise_ratio():
    def nats(told, untold, log_snr, pixels):
        in_x0 = (untold - told) * expit(-log_snr)  # sigma^2 times the error of v
        return np.exp(log_snr) * in_x0 * pixels / 2

    assert disagreements("13.1", nats) == []


@pytest.mark.answer("13.2")
def test_the_verdict_is_that_of_scipys_trapezium_rule():
    def verdict(log_snr, gap, distance, entropy):
        gap_area, area = (trapezoid(y.numpy(), log_snr.numpy()) for y in (gap, distance))
        error = np.roots([1, 2 * entropy**0.5, entropy - area]).real.max()  # (sqrt(entropy) + error)^2 = area
        return gap_area - entropy, max(error, 0) ** 2

    assert disagreements("13.2", verdict) == []


@pytest.mark.answer("13.3")
def test_the_average_is_a_linear_filter_of_the_weights():
    def remembered(start, memory, decay, steps):
        weights = start * float(memory) ** np.arange(steps + 1)
        return lfilter([1 - decay], [1, -decay], weights, zi=[decay * start])[0][-1]

    assert disagreements("13.3", remembered) == []


@pytest.mark.answer("13.4")
def test_the_noise_is_a_quadratic_form_in_the_two_targets():
    """Covariances of (v_c - v_u, v - v_u): the gap, the floor, and between them the gap again."""

    def noise(floor_untold, floor_told, m):
        gap = floor_untold - floor_told
        return np.array([m, 1 - m]) @ np.array([[gap, gap], [gap, floor_untold]]) @ np.array([m, 1 - m])

    assert disagreements("13.4", noise) == []
