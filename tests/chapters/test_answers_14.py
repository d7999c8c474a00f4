"""The exercises of chapter 14 computed a third way, neither as their solutions nor as their checkers do."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("14.1")
def test_the_length_squared_times_the_levels_is_twice_what_was_learned():
    def length(loss_low, loss_high, low, high):
        return np.hypot.reduce([np.sqrt(2 * max(loss_low - loss_high, 0) / (high - low) / 4)] * 4)

    assert disagreements("14.1", length) == []


@pytest.mark.answer("14.2")
def test_the_scale_is_that_of_the_best_multiple_of_one_column_beside_a_rank_one_matrix():
    """The products of three witnesses are h h^T off the diagonal: solve for h, and find the scale by search."""

    def scale(a, b, c, length):
        stack = np.stack([v.numpy().ravel() for v in (a, b, c)])
        m = stack @ stack.T / len(a)  # E[a . b], ...
        h = np.sqrt(m[0, 1] * m[0, 2] / m[1, 2])  # h_a times the length of the truth
        best = minimize_scalar(lambda s: s * s * m[0, 0] - 2 * s * h * length, bounds=(0, 100), method="bounded",
                               options={"xatol": 1e-11})  # fmt: skip
        return best.x

    assert disagreements("14.2", scale) == []


@pytest.mark.answer("14.3")
def test_the_slope_of_a_softened_classifier_by_central_differences():
    def slope(logits, slopes, y, T):
        logits, slopes, step = logits.numpy(), slopes.numpy(), 1e-5
        columns = []
        for i in range(slopes.shape[2]):
            sides = [(logits + sign * step * slopes[:, :, i]) / T for sign in (1, -1)]
            values = [side[:, y] - logsumexp(side, axis=1) for side in sides]
            columns.append((values[0] - values[1]) / (2 * step))
        return np.stack(columns, 1)

    assert disagreements("14.3", slope) == []


@pytest.mark.answer("14.4")
def test_the_weights_solve_the_normal_equations_with_lengths():
    def weights(rho_a, rho_b, rho_ab, len_a, len_b, len_g):
        gram = np.array([[len_a**2, rho_ab * len_a * len_b], [rho_ab * len_a * len_b, len_b**2]])
        right = np.array([rho_a * len_a * len_g, rho_b * len_b * len_g])
        w = np.linalg.solve(gram, right)
        return w[0], w[1], 1 - w @ right / len_g**2

    assert disagreements("14.4", weights) == []
