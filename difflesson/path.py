"""Why guided densities are not one density with more and less noise, and what follows for what a sampler samples.

All in the coordinates `x = x_t / alpha_t` and `q = sigma_t^2 / alpha_t^2`, in which noising is the heat equation. Two
densities that obey it, data `p_q` and a class `p_q(. | y)`, are combined at every level into

    pi_q = p_q^{1 - gamma} p_q(. | y)^gamma / Z_q

whose score the guided guess is. Truth for mixtures and for Gaussians, in float64.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from difflesson.checks import shown
from difflesson.mixture import GaussianMixture


def combined_log_density(mixture: GaussianMixture, label: int, gamma: float, x: Tensor, q: float | Tensor) -> Tensor:
    """`(1 - gamma) log p_q(x) + gamma log p_q(x | label)`, which is `log pi_q + log Z_q`, (N,).

    Args: x: (N, d);  q: the variance of the noise, one number, at least 0.  Raises: as `mixture.noised` and `log_prob`.
    """
    noisy = mixture.noised(1.0, torch.as_tensor(q, dtype=torch.float64).sqrt())
    return (1 - gamma) * noisy.log_prob(x) + gamma * noisy.given(label).log_prob(x)


def source(mixture: GaussianMixture, label: int, gamma: float, x: Tensor, q: float | Tensor) -> Tensor:
    """What diffusion lacks: the rate at which mass must be made, per unit of q towards the data, (N,).

        gamma (gamma - 1) / 2 |grad log p_q(label | x)|^2           [eq-guided-residual]

    for `exp(combined_log_density)`; for the normalised density subtract its mean.  Args: as above.
    """
    slope = mixture.noised(1.0, torch.as_tensor(q, dtype=torch.float64).sqrt()).class_gradient(x, label)
    return gamma * (gamma - 1) / 2 * slope.square().sum(1)


def follow(mixture: GaussianMixture, label: int, gamma: float, x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Follow the guided ODE `dx/dq = -grad log pi_q / 2` from the data up: where points came from, and at what cost.

    Args: x: (N, d), points that a noiseless sampler ended at;  levels: (n,), the q to step through, from 0 upwards
    (even steps in `sqrt(q)` at its beginning, later growing ones, serve well). Heun's method, second order in the step.
    Returns: x at the last level (N, d), and the integral of `|grad log p_q(label | x)|^2 dq` on the way, (N,).
    Raises: ValueError if the levels do not increase from 0.
    """
    if levels.dim() != 1 or len(levels) < 2 or float(levels[0]) != 0 or not bool((levels.diff() > 0).all()):
        raise ValueError(f"levels must be at least two numbers that increase from 0, got {shown(levels)}")

    def push(x, q):
        noisy = mixture.noised(1.0, torch.as_tensor(q, dtype=torch.float64).sqrt())
        score, slope = noisy.score(x), noisy.class_gradient(x, label)
        return -(score + gamma * slope) / 2, slope.square().sum(1)

    energy = x.new_zeros(len(x))
    for q, higher in zip(levels[:-1], levels[1:], strict=True):
        step = higher - q
        first, rate = push(x, q)
        second, later = push(x + step * first, higher)
        x, energy = x + step * (first + second) / 2, energy + step * (rate + later) / 2
    return x, energy


def sampled_log_prob(mixture: GaussianMixture, label: int, gamma: float, x: Tensor, levels: Tensor) -> Tensor:
    """Log density of what the guided ODE samples, if it starts at the last level Q from `N(0, Q I)`, (N,).

        w_0(x) - gamma (gamma - 1) / 2 integral |grad log p_q(label | x_q)|^2 dq + log N(x_Q; 0, Q I) - w_Q(x_Q)

    with `w_q = combined_log_density`.  [eq-guided-density]  Args and errors: as in `follow`.
    """
    begun, energy = follow(mixture, label, gamma, x, levels)
    top = levels[-1]
    start = -(begun.square().sum(1) / top + begun.shape[1] * torch.log(2 * math.pi * top)) / 2
    w_0 = combined_log_density(mixture, label, gamma, x, levels[0])
    w_top = combined_log_density(mixture, label, gamma, begun, top)
    return w_0 - gamma * (gamma - 1) / 2 * energy + start - w_top


def guided_variance(class_variance: float, data_variance: float, gamma: float, rho: float) -> float:
    """Variance of what a guided sampler with noise rho samples, a class N(., C) among data N(., U) on the line.

        rho^2 integral_0^inf [(C / (C + q))^gamma (U / (U + q))^{1 - gamma}]^{1 + rho^2} dq     [eq-any-noise-variance]

    Its limits: `C^gamma U^{1 - gamma}` for rho = 0, `1 / (gamma / C + (1 - gamma) / U)` for rho to infinity,
    where that is positive (else there is no such density, and the variance grows without bound).
    Args: variances above 0;  rho: 0, or at least 0.05, of the noise's usual standard deviation.
    Raises: ValueError otherwise.  Source: Bradley & Nakkiran 2024 (arXiv 2408.09000) for rho = 0 and 1, in part.
    """
    if not (class_variance > 0 and data_variance > 0):
        raise ValueError(f"variances must be above 0, got {class_variance} and {data_variance}")
    if not (rho == 0 or 0.05 <= rho < math.inf):
        raise ValueError(f"rho must be 0, or at least 0.05, got {rho}")
    if rho == 0:
        return class_variance**gamma * data_variance ** (1 - gamma)
    log_q = torch.arange(-45.0, 45 / rho**2 + 45, 0.02, dtype=torch.float64)
    narrow, wide = (softplus(log_q - math.log(variance)) for variance in (class_variance, data_variance))
    kept = gamma * narrow + (1 - gamma) * wide  # minus the logarithm of what is kept; softplus: log(1 + q / variance)
    return float(rho**2 * 0.02 * (log_q - (1 + rho**2) * kept).exp().sum())  # the trapezium rule in log q


def corrector_scale(gamma: float, rho: float, predictor: float = 1.0) -> float:
    """The scale of the Langevin half of a guided step, if its other half is the noiseless step at scale `predictor`.

        gamma' = gamma + (gamma - predictor) / rho^2        [eq-predictor-corrector]

    So that `(1 + rho^2) / 2 s_gamma = 1/2 s_predictor + rho^2 / 2 s_gamma'`, with `s_gamma` the guided score.
    Raises: ValueError unless rho > 0.
    Source: Bradley & Nakkiran 2024 (arXiv 2408.09000): `2 gamma - 1` for rho = 1.
    """
    if not rho > 0:
        raise ValueError(f"rho must be above 0, without noise there is no Langevin half; got {rho}")
    return gamma + (gamma - predictor) / rho**2
