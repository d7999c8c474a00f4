"""The mixtures that tests share: as plain numbers, for oracles that use nothing of difflesson, and as the package's.

    from tests.oracles.mixtures import FOUR, THREE, random_mixture
    FOUR.weights, FOUR.means, FOUR.covs, FOUR.labels      numpy arrays
    FOUR.mixture(), FOUR.mixture(labels=False)            difflesson's, in float64

Their weights are unequal, their covariances full and of different size, and no class is symmetric to another: a formula
that forgets a weight, a covariance or a label cannot pass by luck.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from difflesson.mixture import GaussianMixture


class Parts(NamedTuple):
    """A mixture in numbers: weights (K,), means (K, d), covs (K, d, d), labels (K,)."""

    weights: np.ndarray
    means: np.ndarray
    covs: np.ndarray
    labels: np.ndarray

    def mixture(self, labels: bool = True) -> GaussianMixture:
        weights, means, covs = (torch.tensor(part, dtype=torch.float64) for part in self[:3])
        return GaussianMixture(weights, means, covs, torch.tensor(self.labels) if labels else None)


FOUR = Parts(  # in the plane, two classes of two components each
    np.array([0.1, 0.4, 0.2, 0.3]),
    np.array([[-1.5, 0.5], [1.0, 1.2], [0.3, -1.0], [2.0, -0.4]]),
    np.array(
        [[[0.3, 0.2], [0.2, 0.4]], [[0.5, -0.3], [-0.3, 0.3]], [[0.2, 0.0], [0.0, 0.6]], [[1.0, 0.4], [0.4, 0.5]]]
    ),
    np.array([0, 1, 0, 1]),
)
THREE = Parts(  # in the plane, a class of two and a class of one
    np.array([0.5, 0.2, 0.3]),
    np.array([[-1.5, 0.3], [1.0, 1.2], [0.8, -1.0]]),
    np.array([[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0.0], [0.0, 0.6]], [[0.4, -0.1], [-0.1, 0.2]]]),
    np.array([0, 0, 1]),
)


def random_mixture(dim: int, labels: list[int]) -> GaussianMixture:
    """A mixture of as many components as labels, the same one for the same `dim`, in float64."""
    generator, count = torch.Generator().manual_seed(dim), len(labels)
    root = torch.randn(count, dim, dim, generator=generator, dtype=torch.float64) / math.sqrt(dim)
    means = 2 * torch.randn(count, dim, generator=generator, dtype=torch.float64)
    weights = torch.rand(count, generator=generator, dtype=torch.float64) + 0.2
    covs = root @ root.mT + 0.1 * torch.eye(dim, dtype=torch.float64)
    return GaussianMixture(weights / weights.sum(), means, covs, torch.tensor(labels))


def single(mean: list[float], cov: list[list[float]]) -> GaussianMixture:
    """One Gaussian without a label, in float64."""
    return GaussianMixture([1.0], torch.tensor([mean], dtype=torch.float64), torch.tensor([cov], dtype=torch.float64))
