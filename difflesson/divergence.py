"""How far a reverse kernel is from the truth, in nats: Kullback-Leibler divergences on mixtures, by quadrature.

Expectations under a mixture are Gauss-Hermite sums over its components. They are exact for polynomials and converge
fast for the smooth logarithms here, so these numbers serve as truth; double the `order` to see that they stay.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from difflesson.checks import check_shape, shown
from difflesson.kernels import Kernel, exact
from difflesson.mixture import GaussianMixture
from difflesson.schedule import Schedule
from difflesson.steps import FullGaussian, ReverseStep, Step


def hermite(order: int, dim: int) -> tuple[Tensor, Tensor]:
    """Nodes (order^dim, dim) and weights (order^dim,) of Gauss-Hermite quadrature for `N(0, I)`, float64.

    Exact for polynomials of degree below `2 order` in each coordinate. Each call gives tensors of its own.
    Raises: ValueError if order or dim < 1, or order > 360: above, NumPy's weights overflow.
    """
    if order < 1 or dim < 1:
        raise ValueError(f"order and dim must be at least 1, got {order} and {dim}")
    if order > 360:
        raise ValueError(f"order must be at most 360, above it the weights overflow, got {order}")
    nodes, weights = _hermite(order, dim)
    return nodes.clone(), weights.clone()


@cache
def _hermite(order: int, dim: int) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # the answer is kept, and serves any later use
        nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(order))
        grid = torch.cartesian_prod(*[nodes] * dim).view(-1, dim)
        products = torch.cartesian_prod(*[weights / weights.sum()] * dim).view(-1, dim).prod(1)
        return grid, products


def mixture_nodes(mixture: GaussianMixture, order: int = 12) -> tuple[Tensor, Tensor]:
    """Points (M, d) and weights (M,) such that `(weights * f(points)).sum()` is `E[f(x)]` under the mixture."""
    z, weights = hermite(order, mixture.dim)
    spread = mixture.axes * mixture.variances.sqrt()[:, None]  # (K, d, d)
    points = mixture.means[:, None] + torch.einsum("kef,mf->kme", spread, z.to(spread))
    return points.reshape(-1, mixture.dim), (mixture.weights[:, None] * weights.to(spread)).reshape(-1)


def step_nodes(step: ReverseStep, order: int = 12) -> tuple[Tensor, Tensor]:
    """The same for each of the N mixtures of an exact step: points (M, N, d) and weights (M, N)."""
    z, weights = hermite(order, step.means.shape[-1])
    spread = step.axes * step.variances.sqrt()[:, None]  # (K, d, d)
    points = step.means[:, None] + torch.einsum("kef,mf->kme", spread, z.to(spread))[:, :, None]  # (K, m, N, d)
    shares = step.log_weights.exp()[:, None] * weights.to(spread)[:, None]  # (K, m, N)
    return points.flatten(0, 1), shares.flatten(0, 1)


def kl(step: ReverseStep, other: Step, order: int = 12) -> Tensor:
    """`KL(step || other)` for each point, (N,), at least 0: what a kernel loses in this one step.  [eq-kl]

        E[log step - log other] = E[r - 1 - log r],     r = other / step

    The second form is the first plus `E[r] - 1 = 0`. Every term of it is positive, so that divergences of 1e-15 keep
    their digits; it serves for small ones. But it needs the mass of `other` to be seen at the nodes, which are those of
    `step`. Where `E[r] - 1` is not zero, `other` is much narrower, or has mass where `step` has none: then the first
    form is the accurate one.

    Args: other: a step with a density (variance above 0);  order: nodes per dimension and component.
    Raises: ValueError if a variance is 0: without noise there is no density, and the divergence is infinite; or if
    `other.log_prob` does not answer one number a point.
    """
    points, weights = step_nodes(step, order)
    log_step, log_other = step.log_prob(points), other.log_prob(points)
    check_shape("other's log_prob", log_other, weights.shape)
    log_ratio = log_other - log_step
    direct = -(weights * log_ratio).sum(0)
    unseen = (weights * log_ratio.expm1()).sum(0)
    small = (direct < 1e-6) & (unseen.abs() < 1e-4 * direct.abs() + 1e-13)
    return torch.where(small, (weights * (log_ratio.expm1() - log_ratio)).sum(0), direct)


def path_kl(
    mixture: GaussianMixture, schedule: Schedule, label: int, kernel: Kernel, times: Tensor, order: int = 12
) -> Tensor:
    """Divergence of the whole path that `kernel` walks from the exact path given the label, 0-dim.  [eq-path-kl]

        KL(P || Q) = sum over steps of E[KL(p(x_s | x_t, y) || q(x_s | x_t))],     x_t from p_t(x | y)

    Both paths start alike; what starting from `N(0, I)` costs is not counted. By the data-processing inequality the
    end points differ by at most this.

    Args: times: decreasing, the last one above 0 (a Gaussian step to the data may have no density).
    Raises: ValueError otherwise, or if the kernel adds no noise: its steps have no density.
    Source: the chain rule of the divergence, Cover & Thomas 2006, theorem 2.5.3.
    """
    times = torch.as_tensor(times, dtype=torch.float64)
    if times.dim() != 1 or len(times) < 2 or not bool((times.diff() < 0).all()) or not bool(times[-1] > 0):
        raise ValueError(f"times must be a decreasing sequence of at least two, the last above 0, got {shown(times)}")
    truth, total = exact(mixture, schedule, label), torch.zeros((), dtype=mixture.means.dtype)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x, weights = mixture_nodes(mixture.given(label).noised(schedule.alpha(t), schedule.sigma(t)), order)
        total = total + weights @ kl(truth(x, t, s), kernel(x, t, s), order)
    return total


def closest_gaussian(step: ReverseStep) -> FullGaussian:
    """The Gaussian q that minimises `KL(step || q)`: the one with the same mean and covariance.  [eq-moment-matching]

    `KL = E[log step] - E[log q]`, and the second expectation sees nothing of the step but its two moments.
    Source: Bishop 2006, Pattern Recognition and Machine Learning, section 10.7.
    """
    return FullGaussian(step.mean, step.cov)


def leading_kl_without_shift(gradient: Tensor, beta: Tensor) -> Tensor:
    """What ignoring the label costs in one short step, to first order: `beta |g|^2 / 2`, (N,).  [eq-kl-no-shift]

    Args: gradient: grad log p_t(y | x), (N, d);  beta: the variance `sigma_{t|s}^2` of the step, 0-dim or (N,).
    Raises: ValueError on other shapes.
    """
    check_shape("gradient", gradient, (*gradient.shape[:1], *gradient.shape[-1:]))
    check_shape("beta", beta, (), gradient.shape[:1])
    return beta * gradient.square().sum(1) / 2


def leading_kl_with_shift(curvature: Tensor, beta: Tensor, prior: float | Tensor) -> Tensor:
    """What a shifted mean and one variance cost, to second order: `beta^2 |H + c I|^2 / 4`, (N,).  [eq-kl-shift]

    The error is all in the covariance. `c = 1 / sigma_t^2` for the small variance: no error where the class is a point;
    `c = 1` for the large one: no error where the class is standard normal.

    Args: curvature: H = grad grad log p_t(x | y), (N, d, d);  beta: `sigma_{t|s}^2`, () or (N,);  prior: c, a number.
    Raises: ValueError on other shapes.
    """
    check_shape("curvature", curvature, (*curvature.shape[:1], *curvature.shape[-1:] * 2))
    check_shape("beta", beta, (), curvature.shape[:1])
    check_shape("prior", prior, ())
    excess = curvature + prior * torch.eye(curvature.shape[-1], dtype=curvature.dtype, device=curvature.device)
    return beta**2 * excess.square().sum((1, 2)) / 4
