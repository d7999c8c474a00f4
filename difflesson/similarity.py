"""Similarities to steer by, and what each of them becomes under noise.

A similarity scores clean points. `exp(gamma sim)` weighs a density by it: that is the *tilt*. A sampler meets noisy
points, and what it needs there is neither the similarity of the noisy point nor the mean similarity of the clean ones
behind it: it is the mean of the exponential, `h_t(x) = E[exp(gamma sim(x_0)) | x_t = x]`. On a mixture, quadrature has
it. Any gradient from here goes into `guidance.tilt`; an exact one with the scale 1, for gamma is inside.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from difflesson.checks import check_shape, holds, shown
from difflesson.divergence import step_nodes
from difflesson.mixture import GaussianMixture
from difflesson.parts import Part
from difflesson.schedule import Schedule, noisy

LogWeight = Callable[[Tensor], Tensor]
"""`log_weight(x) -> (...)` of clean points (..., d): gamma times a similarity, minus an energy, or a sum of such.
It may be -inf, or have no gradient."""


def asked(log_weight: LogWeight, points: Tensor) -> Tensor:
    """The weights of points (..., d), (...).  Raises: ValueError if the answer is not one number a point."""
    values = log_weight(points)
    check_shape("log_weight's answer", values, points.shape[:-1])
    return values


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """`a . b` over the last axis; unbounded.  Args: a: (..., k);  b: (k,) or one for each.  Returns: (...).

    Raises: ValueError if a and b are not of one length k.
    """
    if a.shape[-1:] != b.shape[-1:]:
        raise ValueError(f"a and b must have one length k, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return (a * b).sum(-1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of the angle between two embeddings, `a . b / (|a| |b|)`, in [-1, 1].  [eq-cosine-similarity]

    Args: a: (..., k), not zero;  b: (k,) or one for each, not zero.  Returns: (...).
    Source: Liu et al. 2021 (arXiv 2112.05744), section 3.2.
    """
    return inner_product(a, b) / (a.norm(dim=-1) * b.norm(dim=-1))


def gram(features: Tensor) -> Tensor:
    """The Gram matrix of a set of feature vectors, averaged over the set: `sum_i f_i f_i^T / m`.  [eq-gram-distance]

    It does not see in which order the features stand.  Args: features: (..., m, k).  Returns: (..., k, k).
    """
    return features.mT @ features / features.shape[-2]


def gram_distance(features: Tensor, reference: Tensor) -> Tensor:
    """How different two styles are: `|G - G_ref|^2`, all entries squared and summed.  [eq-gram-distance]

    Args: features: (..., m, k);  reference: a Gram matrix (k, k).  Returns: (...).
    Source: Gatys et al. 2016, eq. 4; as guidance Liu et al. 2021 (arXiv 2112.05744), section 3.3.
    """
    return (gram(features) - reference).square().sum((-2, -1))


def curve_distance(x: Tensor, corners: Tensor) -> Tensor:
    """Distance of points from a drawn curve, a chain of straight pieces.

    Args: x: (..., d);  corners: (n, d), n at least 2, neighbours different.  Returns: (...).
    Raises: ValueError if there are fewer than two corners, a piece has no length, or the points another dimension.
    """
    if x.shape[-1:] != corners.shape[-1:]:
        raise ValueError(f"x and corners must have one dimension, got {tuple(x.shape)} and {tuple(corners.shape)}")
    if len(corners) < 2 or not holds(corners.diff(dim=0).abs().sum(1) != 0):
        raise ValueError(f"corners must be at least two, no two neighbours equal, got {shown(corners)}")
    start, piece = corners[:-1], corners.diff(dim=0)  # (n - 1, d)
    away = x[..., None, :] - start  # (..., n - 1, d)
    share = ((away * piece).sum(-1) / piece.square().sum(-1)).clamp(
        0, 1
    )  # how far along the piece the nearest point is
    return (away - share[..., None] * piece).norm(dim=-1).amin(-1)


def tilted_by_direction(mixture: GaussianMixture, direction: Tensor) -> GaussianMixture:
    """`p(x) exp(a . x)`, normalised again: a mixture with the same covariances.  [eq-linear-tilt]

        means m_k + C_k a          weights w_k exp(a . m_k + a^T C_k a / 2), normalised

    Args: direction: a, (d,), with gamma in it.  Raises: ValueError if it has another shape.
    """
    check_shape("direction", direction, (mixture.dim,))
    moved = mixture.covs @ direction  # (K, d)
    log_weights = mixture.weights.log() + mixture.means @ direction + moved @ direction / 2
    return GaussianMixture(log_weights.softmax(0), mixture.means + moved, mixture.covs, torch.tensor(mixture.labels))


@dataclass(frozen=True, eq=False)
class noisy_log_weight(Part):
    """`log h_t(x) = log E[exp(log_weight(x_0)) | x_t = x]`, (N,): what a weight of clean points is worth at noisy ones.

    [eq-noisy-energy] `p_t h_t` is the tilted density noised to t, up to a constant.  [eq-noised-target]
    By Gauss-Hermite quadrature over the exact posterior of a mixture, for x (N, d) and one time t, `sigma_t > 0`.

    Args: log_weight: see `LogWeight`;  order: nodes per dimension and component; double it to see the error.
    Raises: ValueError if log_weight does not answer one number a point, or where a gradient divides by sigma_t = 0.
    """

    mixture: GaussianMixture
    schedule: Schedule
    log_weight: LogWeight
    order: int = 8

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        points, shares = step_nodes(self.mixture.reverse(x, self.schedule, t, 0.0), self.order)  # (M, N, d), (M, N)
        return (shares.log() + asked(self.log_weight, points)).logsumexp(0)


@dataclass(frozen=True, eq=False)
class noisy_gradient(noisy_log_weight):
    """The gradient of `log h_t`, the exact guidance by a weight of clean points, without differentiating it.

        grad log h_t(x) = alpha_t / sigma_t^2 (tilted - mean)

    [eq-noisy-gradient] Two means of the clean points that x may come from, weighed by exp(log_weight) and not.
    A `Gradient` for `guidance.tilt`, with the scale 1: gamma belongs into log_weight.
    Fields and limits as in `noisy_log_weight`.
    """

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        points, shares = step_nodes(self.mixture.reverse(x, self.schedule, t, 0.0), self.order)
        weighed = (shares.log() + asked(self.log_weight, points)).softmax(0)
        lead = torch.einsum("mn,mnd->nd", weighed - shares, points)
        return self.schedule.alpha(t) / noisy(self.schedule.sigma(t), t) ** 2 * lead


@dataclass(frozen=True, eq=False)
class mean_gradient(noisy_log_weight):
    """The gradient of `E[log_weight(x_0) | x_t = x]`, the best that training for the mean similarity can reach.

        alpha_t / sigma_t^2 Cov(x_0, log_weight(x_0) | x_t = x)

    [eq-mean-similarity] To first order in gamma it is `noisy_gradient`. Fields and limits as in `noisy_log_weight`;
    log_weight finite.
    """

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        points, shares = step_nodes(self.mixture.reverse(x, self.schedule, t, 0.0), self.order)
        values = asked(self.log_weight, points)
        values = values - (shares * values).sum(0)
        lead = torch.einsum("mn,mnd->nd", shares * values, points)
        return self.schedule.alpha(t) / noisy(self.schedule.sigma(t), t) ** 2 * lead
