"""The exercises of chapter 15 computed a third way, neither as their solutions nor as their checkers do."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import rel_entr

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("15.1")
def test_each_time_costs_one_answer_and_a_second_where_the_scale_is_neither_root_of_its_weights():
    """gamma (1 - gamma) is 0 just where one of the two has no weight."""
    assert (
        disagreements("15.1", lambda gammas: len(gammas) + int(np.count_nonzero([g * (1 - g) for g in gammas]))) == []
    )


@pytest.mark.answer("15.2")
def test_the_score_within_classes_is_a_mean_of_scipys_relative_entropies():
    def score(log_probs, labels):
        answers, labels = np.exp(log_probs.numpy()), labels.numpy()
        means = np.array([answers[labels == y].mean(axis=0) for y in labels])
        return np.exp(rel_entr(answers, means).sum(axis=1).mean())

    assert disagreements("15.2", score) == []


@pytest.mark.answer("15.3")
def test_the_scale_of_least_distance_is_where_a_bracketed_root_of_the_variance_lies():
    def scale(C, U, C_hat, U_hat):
        return brentq(lambda g: g * np.log(C_hat) + (1 - g) * np.log(U_hat) - np.log(C), -50, 50, xtol=1e-13)

    assert disagreements("15.3", scale) == []


@pytest.mark.answer("15.4")
def test_the_one_scale_is_where_the_slope_of_the_summed_squares_vanishes():
    def scale(C, C_hat, U):
        c, told, untold = (np.sqrt(v.numpy()) for v in (C, C_hat, U))

        def slope(g):
            deviation = told**g * untold ** (1 - g)
            return float(((deviation - c) * deviation * np.log(told / untold)).sum())

        return brentq(slope, 0, 10, xtol=1e-13)

    assert disagreements("15.4", scale) == []
