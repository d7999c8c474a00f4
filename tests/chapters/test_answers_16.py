"""The exercises of chapter 16 computed a third way, neither as their solutions nor as their checkers do."""

import numpy as np
import pytest
from scipy.optimize import minimize

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("16.1")
def test_the_largest_ratio_is_a_softmax_of_opposite_vectors_turned_into_odds():
    def ratio(tau):
        chances = np.exp(np.array([1.0, -1.0]) / tau - 1 / tau)
        chances = chances / chances.sum()
        return float(chances[0] / chances[1])

    assert disagreements("16.1", ratio) == []


@pytest.mark.answer("16.2")
def test_the_best_similarity_multiplies_the_ratios_of_the_words_that_are_said():
    def similarity(chance, share, said):
        ratios = np.where(said.numpy(), chance.double().numpy() / share.double().numpy(), 1.0)
        return float(np.log(np.prod(ratios)))

    assert disagreements("16.2", similarity) == []


@pytest.mark.answer("16.3")
def test_the_similarity_learned_from_other_wrong_sentences_is_found_by_scipy():
    """One right beside two wrong ones, the loss summed over all batches."""

    def learned(given, prior, q):
        q, rows = q.numpy(), []
        for p in given.numpy():
            n = len(p)

            def loss(tail, p=p, n=n):
                f = np.concatenate([[0.0], tail])
                e = np.exp(f)
                total = e[:, None, None] + e[None, :, None] + e[None, None, :]
                return float((p[:, None, None] * q[None, :, None] * q * (np.log(total) - f[:, None, None])).sum())

            found = minimize(
                loss, np.zeros(n - 1), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15, "maxiter": 20_000}
            )
            rows.append([0.0, *found.x])
        return np.array(rows)

    assert disagreements("16.3", learned) == []


@pytest.mark.answer("16.4")
def test_slant_and_breadth_are_those_of_a_transformed_covariance_matrix():
    def measured(s, b, a, k, c):
        cov = np.array([[s**2 + b**2, s], [s, 1.0]])
        turn = np.array([[a, k], [0.0, c]])
        new = turn @ cov @ turn.T
        return float(new[0, 1] / new[1, 1]), float(np.sqrt(np.linalg.det(new) / new[1, 1]))

    assert disagreements("16.4", measured) == []
