"""How far samples are from the truth: class mass, mode weights, two distances, and the scatter of each.

No single number tells. Masses and weights see which modes were dropped and nothing of their shape; a distance sees all
and says not what. And no number without its scatter: means have a standard error, `with_error`; a distance between two
samples is not zero where they come from one density, so compare it with that of two samples of the truth.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture


def class_mass(mixture: GaussianMixture, x: Tensor | GridDensity) -> Tensor:
    """The mean of `p(y | x)` for each class, (classes,): how much of a cloud the mixture counts to which class.

    Args: x: points (N, d), or a density in the plane: then its exact expectation.
    Raises: ValueError if there is no point, or as `GaussianMixture.log_prob` does.
    """
    return _mean(lambda points: _shares(mixture, points), x)


def mode_weights(mixture: GaussianMixture, x: Tensor | GridDensity) -> Tensor:
    """The mean of `p(component | x)`, (K,): how much of a cloud belongs to which mode.  Args: as in `class_mass`."""
    return class_mass(GaussianMixture(mixture.weights, mixture.means, mixture.covs), x)


def _shares(mixture: GaussianMixture, x: Tensor) -> Tensor:
    """`p(y | x)`, (N, classes)."""
    return torch.stack([mixture.class_log_prob(x, y).exp() for y in range(mixture.classes)], dim=1)


def _mean(f: Callable[[Tensor], Tensor], x: Tensor | GridDensity) -> Tensor:
    if isinstance(x, GridDensity):
        return x.expectation(f)
    if len(x) < 1:
        raise ValueError(f"x must have points in it, got shape {tuple(x.shape)}")
    return f(x).mean(0)


def with_error(statistic: Callable[[Tensor], Tensor], x: Tensor, parts: int = 20) -> tuple[Tensor, Tensor]:
    """A statistic of independent points and its standard error, from its scatter over equal parts of them.

    For what a mean is made of: moments, masses, weights. Not for `wasserstein`, which grows as samples get smaller.

    Args: statistic: `statistic(points) -> a number or a tensor`;  x: (N, d), N >= 2 parts; a remainder that does not
    fill a part is left out of the error;  parts: at least 2.
    Returns: the value on all of x, and the standard error of each of its numbers.
    Raises: ValueError if there are fewer than two points a part, or fewer than two parts.
    """
    if parts < 2 or len(x) < 2 * parts:
        raise ValueError(f"parts must be at least 2, with two points each or more, got {parts} for {len(x)} points")
    size = len(x) // parts
    values = torch.stack([torch.as_tensor(statistic(part)) for part in x[: size * parts].split(size)])
    return torch.as_tensor(statistic(x)), values.std(0) / parts**0.5


def wasserstein(x: Tensor, y: Tensor) -> float:
    """The Wasserstein-2 distance of two samples of one size: the least root mean square distance over all pairings.

    By SciPy's linear assignment, exact for these samples: 1,000 points take a fraction of a second, 3,000 some seconds.
    Two samples of one density are apart by more than zero (in the plane roughly like 1 / sqrt(N)): compare with such a
    pair.

    Args: x, y: (N, d).  Raises: ValueError if their shapes differ, or a point is not finite.
    Source: Villani 2009, Optimal Transport, chapter 6.
    """
    from scipy.optimize import linear_sum_assignment  # half a second to import, which other metrics need not wait for

    _check_samples(x, y)
    if len(x) != len(y):
        raise ValueError(f"x and y must have the same number of points, got {len(x)} and {len(y)}")
    squares = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    rows, columns = linear_sum_assignment(squares.cpu().numpy())
    return float(squares[rows, columns].mean().sqrt())


def energy_distance(x: Tensor, y: Tensor) -> float:
    """`2 E|x - y| - E|x - x'| - E|y - y'|`, without bias: zero in the mean where both come from one density.

    So it may come out a little below zero. In any dimension, and cheaper than `wasserstein`; a distance squared.

    Args: x: (N, d) and y: (M, d), at least 2 points each.  Raises: ValueError on other shapes, or a NaN or infinity.
    Source: Szekely & Rizzo 2013 (doi 10.1016/j.jspi.2013.03.018).
    """
    _check_samples(x, y)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"x and y must have at least 2 points each, got {len(x)} and {len(y)}")
    across = _total(x, y) / (len(x) * len(y))
    within = sum(_total(z, z) / (len(z) * (len(z) - 1)) for z in (x, y))
    return float(2 * across - within)


def _total(x: Tensor, y: Tensor) -> Tensor:
    """The sum of all distances between two sets of points, in blocks of rows: memory stays flat."""
    blocks = x.double().split(1024)
    return sum(torch.cdist(block, y.double(), compute_mode="donot_use_mm_for_euclid_dist").sum() for block in blocks)


def _check_samples(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or 0 in (*x.shape, *y.shape):
        raise ValueError(
            f"x and y must have shapes (N, d) and (M, d), none of them empty, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.is_complex() or y.is_complex() or not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise ValueError("x and y must be finite, one has NaN or infinity, or is complex")
