"""The information of a label, nodes with labels, and the variance of an average."""

import math

import numpy as np
import pytest
import torch

from difflesson import information
from difflesson.digits import runs
from difflesson.schedule import cosine
from tests.oracles.mixtures import FOUR, THREE

F64 = torch.float64


def test_nodes_with_labels_integrate_functions_of_point_and_label():
    mixture, schedule, t = THREE.mixture(), cosine(), torch.tensor(0.4, dtype=F64)
    x, weights, label = information.labelled_nodes(mixture, schedule, t)
    assert abs(float(weights.sum()) - 1) < 1e-12
    for y in (0, 1):
        noisy, mine = mixture.given(y).noised(schedule.alpha(t), schedule.sigma(t)), label == y
        torch.testing.assert_close(weights[mine].sum(), mixture.class_weights()[y])
        torch.testing.assert_close(weights[mine] @ x[mine] / weights[mine].sum(), noisy.weights @ noisy.means)


def test_the_rate_is_half_the_squared_distance_of_the_guesses_of_the_noise_for_any_shape():
    def pair(x, t):
        return (None, 3 * x), (None, x)

    class Guess(tuple):
        eps = property(lambda self: self[1])

    x = torch.randn(4, 1, 3, 3, dtype=F64)
    rate = information.label_rate(lambda x, t: tuple(map(Guess, pair(x, t))), x, torch.tensor(0.5))
    torch.testing.assert_close(rate, 2 * x.square().sum((1, 2, 3)))


def test_the_information_lies_between_zero_and_the_entropy_and_is_that_of_a_grid():
    mixture, schedule = FOUR.mixture(), cosine()
    for t in (0.0, 0.3, 0.9):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        axis = np.linspace(-9, 9, 361)
        grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        joint = np.zeros((2, len(grid)))
        for weight, mean, cov, label in zip(FOUR.weights, FOUR.means, FOUR.covs, FOUR.labels, strict=True):
            cov = alpha**2 * cov + sigma**2 * np.eye(2)
            away = grid - alpha * mean
            square = np.einsum("nd,de,ne->n", away, np.linalg.inv(cov), away)
            joint[label] += weight * np.exp(-square / 2) / (2 * math.pi * np.linalg.det(cov) ** 0.5)
        joint /= joint.sum()
        shares = joint.sum(1)
        with np.errstate(all="ignore"):
            expected = np.nansum(joint * np.log(joint / joint.sum(0) / shares[:, None]))
        found = information.label_information(mixture, schedule, torch.tensor(t, dtype=F64), order=50)
        assert abs(float(found) - expected) < 2e-3 and 0 <= expected < -(shares * np.log(shares)).sum()


@pytest.mark.parametrize(("name", "decay", "memory"), [("decay", 1.0, 0.5), ("decay", -0.1, 0.5), ("memory", 0.5, 1.0)])
def test_a_decay_or_a_memory_out_of_range_is_named(name, decay, memory):
    with pytest.raises(ValueError, match=name):
        information.averaged_variance(decay, memory)


def test_a_log_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(ValueError, match="denoiser"):
        runs.log("nothing")
    assert {"log_snr", "distance", "gap"} <= runs.log("denoiser").keys()


def test_a_class_without_weight_changes_no_information():
    t, mixture = torch.tensor(0.5, dtype=F64), THREE.mixture()
    parts = mixture.means[:2], mixture.covs[:2]
    want = information.label_information(type(mixture)([0.3, 0.7], *parts, [0, 1]), cosine(), t)
    for weights, labels, which in (([0.3, 0.7], [0, 2], [0, 1]), ([0.3, 0.0, 0.7], [0, 1, 2], [0, 0, 1])):
        gap = type(mixture)(weights, *(part[which] for part in parts), labels)
        torch.testing.assert_close(information.label_information(gap, cosine(), t), want, rtol=0, atol=1e-12)
