"""The exercises of chapter 20 computed a third way, in NumPy."""

import numpy as np
import pytest

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("20.1")
def test_the_level_of_a_sigma_is_that_of_a_right_triangle():
    def level(sigma_edm):
        alpha = np.cos(np.arctan2(sigma_edm, 1.0))
        return alpha**2, alpha

    assert disagreements("20.1", level) == []


@pytest.mark.answer("20.2")
def test_the_scale_is_read_off_the_last_of_a_row_of_matrices():
    """(uncond, last) is multiplied by a matrix each time; the weight of cond in the last is the scale."""

    def scale(gamma, times, swapped):
        once = np.array([[1.0, 0.0], [gamma, 1 - gamma] if swapped else [1 - gamma, gamma]])
        return np.linalg.matrix_power(once, times)[1, 1]

    assert disagreements("20.2", scale) == []


@pytest.mark.answer("20.3")
def test_mean_and_deviation_are_those_of_quantiles_of_two_gaussians():
    def ends(m, c, alphabar):
        z = np.array([-1.0, 1.0])
        scores = (z - np.sqrt(alphabar) * m) / np.hypot(np.sqrt(alphabar) * c, np.sqrt(1 - alphabar))
        low, high = m + c * scores
        return (low + high) / 2, (high - low) / 2

    assert disagreements("20.3", ends) == []


@pytest.mark.answer("20.4")
def test_the_noise_between_two_levels_adds_up_to_that_of_the_noisier():
    def between(alphas_cumprod, j, k):
        table = alphas_cumprod.numpy()
        alpha = np.sqrt(table[j]) / np.sqrt(table[k])
        return alpha, np.sqrt((1 - table[j]) - alpha**2 * (1 - table[k]))

    assert disagreements("20.4", between) == []
