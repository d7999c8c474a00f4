"""Numbers that several chapters' readings need: quadrature, moments, gradients, batches of step lengths."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from difflesson.schedule import Schedule
from tools.formula import law

F64 = torch.float64


def normal_nodes(dim: int, order: int = 6) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes (order^dim, dim) and weights (order^dim,) of N(0, I), from numpy."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(order))
    grid = torch.cartesian_prod(*[nodes] * dim).view(-1, dim)
    return grid, torch.cartesian_prod(*[weights / weights.sum()] * dim).view(-1, dim).prod(1)


def normal_density(x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """N(x; mean, cov) for values of formulas: columns (N, d, 1) and (N, d, d), written out.  Returns (N, 1, 1)."""
    away = x - mean
    exponent = away.mT @ torch.linalg.inv(cov) @ away / 2
    return torch.exp(-exponent) / torch.linalg.det(2 * torch.pi * cov).sqrt()[:, None, None]


def moments(points: Tensor, weights: Tensor) -> Tensor:
    """Mean and covariance of weighted points, (M, d) and (M,), as a law."""
    mean = weights @ points
    return law(mean[None], ((points - mean).T @ (weights[:, None] * (points - mean)))[None])


def expectation(weights: Tensor) -> Callable[[Tensor], Tensor]:
    """The operator E over the batch, with these weights (M,)."""
    return lambda values: (weights[:, None, None] * values).sum(0, keepdim=True)


def gradient(x: Tensor) -> Callable[[Tensor], Tensor]:
    """The operator nabla: the gradient of values (N, 1, 1) in the leaf x (N, d), each at its own point, by autograd."""
    return lambda values: torch.autograd.grad(values.sum(), x, create_graph=True)[0][:, :, None]


def earlier(schedule: Schedule, t: float, beta: Tensor) -> Tensor:
    """The time s before t to which a step has the length beta = sigma_{t|s}^2, (N,) for (N,); by bisection."""
    low, high = torch.zeros_like(beta), torch.full_like(beta, t)
    want = schedule.integrated_beta(torch.tensor(t, dtype=F64)) + torch.log1p(-beta)
    for _ in range(200):
        middle = (low + high) / 2
        too_late = schedule.integrated_beta(middle) > want
        low, high = torch.where(too_late, low, middle), torch.where(too_late, middle, high)
    return (low + high) / 2


def gaussian_kl(p: Tensor, q: Tensor) -> Tensor:
    """The divergence of Gaussian laws (N, d, d + 1) in closed form, (N,)."""
    away, cov_p, cov_q = q[:, :, :1] - p[:, :, :1], p[:, :, 1:], q[:, :, 1:]
    inverse = torch.linalg.inv(cov_q)
    traces = (inverse @ cov_p).diagonal(dim1=1, dim2=2).sum(1) + (away.mT @ inverse @ away)[:, 0, 0]
    return (traces - p.shape[1] + torch.linalg.det(cov_q).log() - torch.linalg.det(cov_p).log()) / 2


def posterior(log_prior: Callable[[Tensor], Tensor], x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """Mean (N, 2) and covariance (N, 2, 2) of z given x = alpha z + sigma noise, by summing over a grid."""
    axis = torch.linspace(-7, 7, 241, dtype=F64)
    z = torch.cartesian_prod(axis, axis)
    log = log_prior(z)[None] - torch.cdist(x, alpha * z).square() / 2 / sigma**2
    weights = log.softmax(1)
    mean = weights @ z
    return mean, torch.einsum("nm,md,me->nde", weights, z, z) - mean[:, :, None] * mean[:, None, :]
