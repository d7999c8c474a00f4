"""Guidance by a classifier that knows only clean points: three stand-ins for `log p_t(y | x)`, and the truth.

Each stand-in is a `log_prob(x, t)` for `guidance.gradient`, so that with `tilt` it guides any sampler:

    tilt(denoiser, gradient(gaussian_cloud(denoiser, log_prob, schedule)), gamma, schedule)

`log_prob` is that of clean points, `log p_o(y | x0)`: (N, d) -> (N,), differentiable; a classifier, or the logarithm of
any likelihood. Derivatives in x go through the denoiser, so this has to be differentiable as well.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from difflesson.checks import check_shape, holds
from difflesson.denoiser import Denoiser, predict
from difflesson.divergence import hermite, step_nodes
from difflesson.mixture import GaussianMixture
from difflesson.parts import Part
from difflesson.schedule import Schedule, as_time, noisy

CleanLogProb = Callable[[Tensor], Tensor]


def asked(log_prob: CleanLogProb, points: Tensor) -> Tensor:
    """`log_prob` at points (..., N, d) -> (..., N).  Raises: ValueError if it does not answer one number a point."""
    flat = points.reshape(-1, points.shape[-1])
    values = log_prob(flat)
    check_shape("log_prob's answer", values, flat.shape[:1])
    return values.view(points.shape[:-1])


def noisy_answer(
    mixture: GaussianMixture, schedule: Schedule, log_prob: CleanLogProb, x: Tensor, t: float | Tensor, order: int = 12
) -> Tensor:
    """The truth, `log E[p_o(y | x_0) | x_t = x]`, by quadrature over the exact cloud; (N,).  [eq-noisy-answer]

    Args: x: (N, d);  t: one time above 0;  order: Gauss-Hermite nodes per dimension and component.
    Raises: ValueError if x is misshapen or log_prob does not answer one number a point.
    """
    points, weights = step_nodes(mixture.reverse(x, schedule, t, 0.0), order)
    return (asked(log_prob, points) + weights.log()).logsumexp(0)


def clean_cov(denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float | Tensor) -> Tensor:
    """Covariance of the clean points that x may come from, out of the denoiser's derivative; (N, d, d).

        Cov(x_0 | x_t = x) = sigma^2 / alpha d x0 / d x     [eq-clean-jacobian]

    Args: x: (N, d);  t: one time. d backward passes. Symmetric for the exact denoiser; a learned one's is symmetrised.
    Where x is being differentiated, so is the answer.  Raises: ValueError if x has another shape.
    Source: the second of Tweedie's formulas; used by Boys et al. 2023 (arXiv 2310.06721).
    """
    check_shape("x", x, (*x.shape[:1], *x.shape[-1:]))
    t = as_time(t)
    further = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        leaf = x if further else x.detach().requires_grad_()
        columns = predict(denoiser, leaf, t).x0.unbind(dim=1)
        rows = [torch.autograd.grad(c.sum(), leaf, create_graph=further, retain_graph=True)[0] for c in columns]
    slopes = torch.stack(rows, dim=1) * (schedule.sigma(t) ** 2 / schedule.alpha(t))
    return (slopes + slopes.mT) / 2


@dataclass(frozen=True, eq=False)
class clean_guess(Part):
    """The clean classifier asked about the guessed clean point: `log p_o(y | x0)`, x0 = E[x_0 | x_t].  [eq-clean-guess]

    Its gradient in x is the clean one at x0, times `alpha / sigma^2 Cov(x_0 | x_t)`, the derivative of x0.
    [eq-guess-gradient]

    Source: Chung et al. 2023 (arXiv 2209.14687), eq. 11, for measurements instead of classes.
    """

    denoiser: Denoiser
    log_prob: CleanLogProb

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return asked(self.log_prob, predict(self.denoiser, x, t).x0)


@dataclass(frozen=True, eq=False)
class step_guess(Part):
    """The clean classifier asked about the mean of one step, `log p_o(y | mu)`, mu = E[x_s | x_t].  [eq-step-guess]

        mu = (alpha_{t|s} sigma_s^2 x + alpha_s sigma_{t|s}^2 x0) / sigma_t^2,     s = max(t - length, 0)

    A point still noisy at s; at s = 0 it is the guess.  Args: length: of the step in time, above 0.
    Raises: ValueError otherwise, and where `sigma_t` is 0.  Source: Su 2022 (https://spaces.ac.cn/archives/9257).
    """

    denoiser: Denoiser
    log_prob: CleanLogProb
    schedule: Schedule
    length: float

    def __post_init__(self):
        if not self.length > 0:
            raise ValueError(f"length must be above 0, got {self.length}")

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        t = as_time(t)
        s = (t - self.length).clamp_min(0)
        alpha_ts, sigma_ts = self.schedule.transition(t, s)
        keep = alpha_ts * (self.schedule.sigma(s) / noisy(self.schedule.sigma(t), t)) ** 2
        pull = self.schedule.alpha(s) * (sigma_ts / self.schedule.sigma(t)) ** 2
        return asked(self.log_prob, keep * x + pull * predict(self.denoiser, x, t).x0)


@dataclass(frozen=True, eq=False)
class gaussian_cloud(Part):
    """The clean classifier averaged over a Gaussian cloud with the true mean and covariance.  [eq-gaussian-cloud]

        log E[p_o(y | x0 + L z)],     L L^T = Cov(x_0 | x_t),     z ~ N(0, I)

    Exact where the clean points that x may come from are Gaussian. By Gauss-Hermite quadrature, `order^d` questions to
    the classifier a point, so for a few dimensions; in many, draw z.  Args: order: nodes per dimension.
    Raises: ValueError where the covariance is not positive definite, as a learned denoiser's may be; NaN on a GPU.
    Source: Song et al. 2023 (proceedings.mlr.press/v202/song23k.html) with one variance for all directions.
    """

    denoiser: Denoiser
    log_prob: CleanLogProb
    schedule: Schedule
    order: int = 12

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        z, weights = (part.to(x) for part in hermite(self.order, x.shape[1]))  # (M, d), (M,)
        root, failed = torch.linalg.cholesky_ex(clean_cov(self.denoiser, self.schedule, x, t))
        if not holds(failed == 0):
            raise ValueError(f"the covariance must be positive definite, at {int((failed > 0).sum())} points it is not")
        root = root.masked_fill((failed != 0)[:, None, None], math.nan)  # where nobody looked
        points = predict(self.denoiser, x, t).x0 + torch.einsum("nij,mj->mni", root, z)  # (M, N, d)
        return (asked(self.log_prob, points) + weights.log()[:, None]).logsumexp(0)


def logistic_cloud(logit: Tensor, variance: Tensor) -> Tensor:
    """Log of the average of a logistic classifier whose logit varies over the cloud.  [eq-logistic-cloud]

        log E[sigmoid(l)] = log sigmoid(logit / sqrt(1 + pi variance / 8)), nearly,     l ~ N(logit, variance)

    Args: logit: at the centre, (N,);  variance: of the logit over the cloud, k^T Cov k for its slope k, (N,), at least
    0.  Raises: ValueError if a variance is negative.  Source: MacKay 1992 (doi 10.1162/neco.1992.4.5.720).
    """
    if not holds(variance >= 0):
        raise ValueError(f"variance must be at least 0, the smallest is {float(variance.min())}")
    return torch.nn.functional.logsigmoid(logit / (1 + math.pi * variance / 8).sqrt())
