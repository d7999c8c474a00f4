"""The exercises of chapter 19 computed a third way, neither as their solutions nor as their checkers do."""

import numpy as np
import pytest
from scipy.special import expit

from tests.oracles.third_answers import disagreements

# If somebody gets solution and checker wrong together, these go red. TODO one for each exercise


@pytest.mark.answer("19.1")
def test_the_share_of_the_signal_is_a_logistic_function():
    assert disagreements("19.1", expit) == []


@pytest.mark.answer("19.2")
def test_the_share_of_the_noise_is_what_a_small_step_adds():
    """d share / d log_snr = share (1 - share), from no signal at all, summed up."""

    def noise(log_snr):
        share, steps = expit(-30.0), np.diff(np.linspace(-30.0, log_snr, 100_001))
        for step in steps:
            middle = share + step / 2 * share * (1 - share)
            share += step * middle * (1 - middle)
        return 1 - share

    assert disagreements("19.2", noise) == []


@pytest.mark.answer("19.3")
def test_the_two_shares_are_in_the_ratio_that_the_logarithm_says():
    assert disagreements("19.3", lambda log_snr: tuple(np.linalg.solve([[1, 1], [1, -np.exp(log_snr)]], [1, 0]))) == []
