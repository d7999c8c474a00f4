"""`-log p(x)` in nats from nothing but the errors of a denoiser: the bound of a grid, and the area of the error curve.

A step from t to s is a fresh look at the clean point with the precision `SNR(s) - SNR(t)`. Guessing what it will show
costs half of that times the squared error, and the first half of the module adds up such costs. The second follows the
probability flow, `flow_log_prob`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from difflesson.checks import check_shape, shown
from difflesson.denoiser import Denoiser, predict
from difflesson.divergence import hermite, mixture_nodes
from difflesson.mixture import GaussianMixture
from difflesson.noise import standard_normal
from difflesson.ode import solve
from difflesson.samplers import checked_run
from difflesson.schedule import Schedule, noisy


class Bound(NamedTuple):
    """The three terms of the variational bound, in nats, (N,) each; `total` is their sum.  [eq-bound-terms]"""

    reconstruction: Tensor
    prior: Tensor
    denoising: Tensor

    @property
    def total(self) -> Tensor:
        """At least `-log` of the density of what the steps draw at these points, (N,)."""
        return self.reconstruction + self.prior + self.denoising


def squared_errors(denoiser: Denoiser, schedule: Schedule, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """`|x - x0_hat(alpha x + sigma eps, t)|^2` for each noise and each clean point.

    Args: x: clean points (N, d);  noise: (M, d), the same for all points, or (M, N, d).  Returns: (M, N).
    Raises: ValueError if the shapes do not fit, or where `sigma_t` is 0.
    """
    noisy(schedule.sigma(t), t)
    if x.dim() != 2 or noise.shape[-1] != x.shape[1] or noise.dim() == 3 and noise.shape[1] != len(x):
        raise ValueError(f"x must be (N, d) and noise (M, d) or (M, N, d), got {tuple(x.shape)}, {tuple(noise.shape)}")
    seen = schedule.alpha(t) * x + schedule.sigma(t) * (noise if noise.dim() == 3 else noise[:, None])  # (M, N, d)
    guess = predict(denoiser, seen.flatten(0, 1), t).x0.view_as(seen)
    return (x - guess).square().sum(2)


def variational_bound(denoiser: Denoiser, schedule: Schedule, x: Tensor, times: Tensor, order: int = 12) -> Bound:
    """The bound on `-log p(x)` of the steps through `times`, by its denoising terms.  [eq-bound-terms]

        reconstruction = d / 2 log(2 pi / SNR(t_1)) + SNR(t_1) / 2 E|x - x0_hat|^2     (at t_1)
        prior: KL(N(alpha x, sigma^2 I) || N(0, I)) at t_T
        denoising: the sum over steps from t to s of (SNR(s) - SNR(t)) / 2 E|x - x0_hat|^2 at t

    The steps are those of `kernels.ddpm`, with the posterior's variance; the last latent t_1 is decoded by
    `N(x0_hat, I / SNR(t_1))`. E is over the noise, by Gauss-Hermite quadrature.

    Args: x: (N, d);  times: from t_T down to t_1 > 0 (where sigma is above 0), as `time_grid` gives them;  order:
    nodes a dimension.  Raises: ValueError if times do not decrease, or sigma is 0 at the last.
    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 11-14.
    """
    noise, weights = hermite(order, x.shape[-1])
    noise, weights = noise.to(x), weights.to(x)
    return _bound(denoiser, schedule, x, times, lambda t: weights @ squared_errors(denoiser, schedule, x, t, noise))


def sampled_bound(
    denoiser: Denoiser, schedule: Schedule, x: Tensor, times: Tensor, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The total of `variational_bound` from `draws` fresh noises at every time, and its standard error, (N,) each.

    Raises: ValueError as there, or if draws < 2 or there is no generator.
    """
    if draws < 2:
        raise ValueError(f"draws must be at least 2, for a standard error, got {draws}")

    def errors(t):
        return squared_errors(denoiser, schedule, x, t, standard_normal((draws, *x.shape), x, generator))

    total = _bound(denoiser, schedule, x, times, errors).total  # (draws, N)
    return total.mean(0), total.std(0) / math.sqrt(draws)


def error_area(denoiser: Denoiser, schedule: Schedule, x: Tensor, times: Tensor, order: int = 12) -> Tensor:
    """`-log p(x)` as the area between the error curve and that of a standard Gaussian.  [eq-error-area]

        -log p(x) = d / 2 log(2 pi e) + 1 / 2 int (E|eps - eps_hat|^2 - d alpha^2) d lambda

    with `|eps - eps_hat|^2 = SNR |x - x0_hat|^2`, E over the noise at this x by quadrature, and the trapezoidal rule
    over the log-SNR of `times`. Exact for the best denoiser, but for both rules and for the tails beyond the ends: one
    falls like the variance of the noise, the other like that of the signal.

    Args: x: (N, d);  times: decreasing, with sigma above 0 at the last, best evenly spaced in log-SNR: `time_grid(n,
    schedule)`;  order: nodes a dimension.  Returns: (N,).  Raises: ValueError if times do not decrease or sigma is 0.
    Source: Guo, Shamai & Verdu 2005 (arXiv cs/0412108); pointwise: Kong et al. 2023 (arXiv 2302.03792).
    """
    times = _falling(x, times)
    noise, weights = (part.to(x) for part in hermite(order, x.shape[-1]))
    curve, log_snr = [], schedule.log_snr(times)
    for t, level in zip(times, log_snr, strict=True):
        error = level.exp() * (weights @ squared_errors(denoiser, schedule, x, t, noise))
        curve.append(error - x.shape[1] * schedule.alpha(t) ** 2)
    area = torch.trapezoid(torch.stack(curve), log_snr.to(x), dim=0)
    return x.shape[1] / 2 * math.log(2 * math.pi * math.e) + area / 2


def least_error(mixture: GaussianMixture, schedule: Schedule, t: Tensor, order: int = 12) -> Tensor:
    """`E|x_0 - E[x_0 | x_t]|^2`, what no denoiser can avoid at time t, 0-dim.  [eq-least-error]

        least = sigma^2 / alpha^2 (d + sigma^2 E[trace grad grad log p_t(x_t)])

    Args: order: nodes a dimension and component, for the average over x_t.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    noised = mixture.noised(alpha, sigma)
    x, weights = mixture_nodes(noised, order)
    trace = noised.hessian(x).diagonal(dim1=1, dim2=2).sum(1)
    return (sigma / alpha) ** 2 * (mixture.dim + sigma**2 * (weights @ trace))


def _falling(x: Tensor, times: Tensor) -> Tensor:
    """`checked_run`, for times that decrease.  Raises: ValueError as there, or if they increase."""
    times = checked_run(x, times)
    if not times[1] < times[0]:
        raise ValueError(f"times must decrease, from noise to data, got {shown(times)}")
    return times


def _bound(denoiser: Denoiser, schedule: Schedule, x: Tensor, times: Tensor, errors) -> Bound:
    """The terms, from the squared errors at a time, `errors(t)`: (..., N)."""
    times, dim = _falling(x, times), x.shape[1]
    snr = schedule.log_snr(times).exp().tolist()
    denoising = sum(
        (after - before) / 2 * errors(t) for t, before, after in zip(times[:-1], snr[:-1], snr[1:], strict=True)
    )
    reconstruction = dim / 2 * math.log(2 * math.pi / snr[-1]) + snr[-1] / 2 * errors(times[-1])
    signal = schedule.alpha(times[0]) ** 2
    prior = (signal * (x.square().sum(1) - dim) - dim * torch.log1p(-signal)) / 2
    return Bound(reconstruction, prior, denoising)


def divergence(flow, x: Tensor, t: float | Tensor, probes: Tensor | None = None) -> Tensor:
    """How fast a velocity field spreads the points around each point, (1, N); or unbiased guesses of it, (P, N).

        div v = E[z . grad (v . z)]      [eq-hutchinson]

    the sum of the derivatives of each coordinate in itself, for any random z with `E[z z^T] = I`.
    Args: flow: `flow(x, t) -> dx/dt`, each value depending on its own point alone;  x: (N, *data);  probes: None for
    the sum, one derivative a coordinate; or z, (P, N, *data), signs or normal draws, one derivative each.
    Raises: ValueError if the probes are misshapen.  Source: Hutchinson 1990 (doi 10.1080/03610919008812866).
    """
    exactly = probes is None
    if exactly:
        size = x[0].numel()
        probes = torch.eye(size).to(x).view(size, 1, *x.shape[1:]).expand(size, *x.shape)
    check_shape("probes", probes[0], x.shape)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        velocity = flow(leaf, t)
        slopes = [torch.autograd.grad((velocity * z).sum(), leaf, retain_graph=True)[0] for z in probes]
    values = (torch.stack(slopes) * probes).flatten(2).sum(2)
    return values.sum(0, keepdim=True) if exactly else values


def flow_log_prob(
    flow, x: Tensor, s: float = 0.0, probes: Tensor | None = None, tolerance: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """`log p_s(x)` of the samples of a flow from N(0, I) at t = 1, and its standard error, (N,) each, float64.

        log p_s(x) = log N(x_1; 0, I) + integral from s to 1 of div v dt      [eq-flow-likelihood]

    along the path that starts at x, solved by `ode.solve`. Without probes the error is 0 (that of the solver is not
    in it); with P of them, fixed along a path, it is their scatter over `sqrt(P)`.
    Args: flow: `ode.probability_flow(denoiser, schedule)`;  x: (N, *data);  s: a time where the flow is defined;
    probes, at least 2, and tolerance: as in `divergence` and `ode.solve`.  Raises: ValueError as they do.
    Source: Chen et al. 2018 (arXiv 1806.07366), theorem 1; Song et al. 2021 (arXiv 2011.13456), eq. 39.
    """
    if probes is not None and len(probes) < 2:
        raise ValueError(f"probes must be at least 2, for a standard error, got {len(probes)}")
    count, size = len(x), x[0].numel()
    rows = 1 if probes is None else len(probes)

    def both(state: Tensor, t: Tensor) -> Tensor:
        points = state[:, :size].reshape(x.shape)
        return torch.cat([flow(points, t).flatten(1), divergence(flow, points, t, probes).T], 1)

    begin = torch.cat([x.double().flatten(1), x.new_zeros(count, rows).double()], 1)
    end = solve(both, begin, s, 1.0, tolerance)
    normal = -(end[:, :size].square().sum(1) + size * math.log(2 * math.pi)) / 2
    values = normal[:, None] + end[:, size:]  # (N, rows)
    return values.mean(1), values.new_zeros(count) if probes is None else values.std(1) / rows**0.5
