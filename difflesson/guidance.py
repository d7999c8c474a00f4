"""Guidance: a map from denoisers to a denoiser.

Every gradient-type guidance is `tilt`: add a gradient to the score. Every two-branch guidance is `mix`: combine two
predictions. What comes out is a denoiser again, so any kernel can sample from it, and guidances can be stacked.

The scale is `gamma` everywhere: 0 ignores the condition, 1 is plain conditional sampling, more exaggerates, less than
0 pushes away. It may be a number or a function of time (`gamma(t)`), which gives guidance intervals and ramps.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from difflesson.denoiser import Denoiser, Pair, Prediction, check_labels, expand_label
from difflesson.schedule import Schedule, as_time

Gradient = Callable[[Tensor, Tensor], Tensor]
"""`grad(x, t) -> (batch, *data)`: the gradient in x of log p_t(y | x), of a similarity, of minus an energy, ..."""

Scale = float | Callable[[Tensor], float]


def scale_at(gamma: Scale, t: Tensor) -> float:
    """The scale at time t as a float.  Raises: ValueError if it is not one finite number."""
    value = gamma(t) if callable(gamma) else gamma
    if (isinstance(value, Tensor) and value.numel() != 1) or not math.isfinite(value):
        raise ValueError(f"gamma must be one finite number, got {value}")
    return float(value)


def tilt(denoiser: Denoiser, grad: Gradient, gamma: Scale, schedule: Schedule) -> Denoiser:
    """Guide by a gradient: the score gets `+ gamma g`, whatever sampler follows.

        eps -= gamma sigma g          x0 += gamma sigma^2 / alpha g          [eq-eps-substitution]

    Args: grad: `grad(x, t)`, for a classifier grad log p_t(y | x);  gamma: finite number or function of time.
    At `gamma = 0` the gradient is not evaluated.  Raises: ValueError if gamma is not finite or grad is misshapen.
    Source: Dhariwal & Nichol 2021 (arXiv 2105.05233), algorithm 2, eq. 14.
    """
    if not callable(gamma):
        scale_at(gamma, torch.tensor(0.0))

    def guided(x: Tensor, t: Tensor) -> Prediction:
        prediction, scale = denoiser(x, t), scale_at(gamma, t)
        if scale == 0:
            return prediction
        g, alpha, sigma = grad(x, t), schedule.alpha(t), schedule.sigma(t)
        if g.shape != x.shape:
            raise ValueError(f"grad must return the shape of x, {tuple(x.shape)}, got {tuple(g.shape)}")
        return Prediction(prediction.x0 + scale * (sigma**2 / alpha) * g, prediction.eps - scale * sigma * g)

    return guided


def mix(pair: Pair, rule: Callable[[Prediction, Prediction], Prediction]) -> Denoiser:
    """Guide by two branches: `rule(cond, uncond)` combines the two predictions of the pair."""

    def guided(x: Tensor, t: Tensor) -> Prediction:
        return rule(*pair(x, t))

    return guided


def classifier_free(pair: Pair, gamma: Scale) -> Denoiser:
    """Classifier-free guidance: `eps = eps_u + gamma (eps_c - eps_u)`, and x0 likewise.  [eq-cfg]

    With `w = gamma - 1` this is Ho & Salimans' `(1 + w) eps_c - w eps_u`. At `gamma = 0` and `gamma = 1` only the
    branch that counts is evaluated.

    Args: gamma: finite number or function of time.  Raises: ValueError if gamma is not finite.
    Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6.
    """
    if not callable(gamma):
        scale_at(gamma, torch.tensor(0.0))

    def guided(x: Tensor, t: Tensor) -> Prediction:
        scale = scale_at(gamma, t)
        if scale in (0.0, 1.0):
            return (pair.cond if scale else pair.uncond)(x, t)
        cond, uncond = pair(x, t)
        return Prediction(*(u + scale * (c - u) for c, u in zip(cond, uncond, strict=True)))

    return guided


def gradient(log_prob: Callable[[Tensor, Tensor], Tensor]) -> Gradient:
    """The gradient in x of any differentiable `log_prob(x, t) -> (batch,)`, one backward pass for the batch.

    The values are summed before differentiating, which is right as long as no point's value depends on another point:
    true for `eval()` networks, false for batch norm in training mode.
    """

    def grad(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            values = log_prob(leaf, t)
            if values.shape != x.shape[:1]:
                raise ValueError(f"log_prob must return shape (batch,) = ({len(x)},), got {tuple(values.shape)}")
            return torch.autograd.grad(values.sum(), leaf)[0]

    return grad


def linearise(log_prob: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: float | Tensor) -> Callable:
    """The first-order Taylor polynomial of `log p_t(y | x)`, in the point and in time.  [eq-taylor]

        (x_s, s) -> log p_t(y | x) + (x_s - x) . grad_x log p_t(y | x) + (s - t) d/dt log p_t(y | x)

    The derivative in time is a number for each point x: it does not depend on x_s.

    Args: log_prob: `log_prob(x, t) -> (batch,)`, twice differentiable;  x: (batch, d);  t: one time.
    Returns: a function of x_s (..., batch, d) and s with values (..., batch).
    """
    with torch.enable_grad():
        time = as_time(t).detach().requires_grad_()
        value = log_prob(x.detach(), time)
        # One time, many values: differentiate a weighted sum in time, then the result in the weights.
        weights = torch.ones_like(value).requires_grad_()
        (total,) = torch.autograd.grad((weights * value).sum(), time, create_graph=True)
        (rate,) = torch.autograd.grad(total, weights)
    value, slope = value.detach(), gradient(log_prob)(x, t)
    return lambda x_s, s: value + ((x_s - x) * slope).sum(-1) + (s - t) * rate


def implicit_gradient(pair: Pair, schedule: Schedule) -> Gradient:
    """The gradient of the classifier that two denoisers imply, `p(x | y) / p(x)`.  [eq-implicit-classifier]

        grad log (p_t(x | y) / p_t(x)) = (eps_u - eps_c) / sigma

    For networks it need not be the gradient of anything.
    Source: Ho & Salimans 2022 (arXiv 2207.12598), section 3.2.
    """

    def grad(x: Tensor, t: Tensor) -> Tensor:
        cond, uncond = pair(x, t)
        return (uncond.eps - cond.eps) / schedule.sigma(t)

    return grad


def tempered(denoiser: Denoiser, kappa: float, schedule: Schedule) -> Denoiser:
    """The score times kappa, which is *not* how one samples `p(x)^kappa`.  [eq-low-temperature]

        eps -> kappa eps          x0 -> x0 + (1 - kappa) sigma / alpha eps

    Args: kappa: finite, at least 0; 1 changes nothing.  Raises: ValueError otherwise.
    Source: Ho & Salimans 2022 (arXiv 2207.12598), section 1, report that it fails on images.
    """
    if not (math.isfinite(kappa) and kappa >= 0):
        raise ValueError(f"kappa must be finite and at least 0, got {kappa}")

    def scaled(x: Tensor, t: Tensor) -> Prediction:
        x0, eps = denoiser(x, t)
        return Prediction(x0 + (1 - kappa) * schedule.sigma(t) / schedule.alpha(t) * eps, kappa * eps)

    return scaled


def classifier_log_prob(network: torch.nn.Module, schedule: Schedule, label: int | Tensor) -> Callable:
    """`log p_t(label | x)` of a noise-aware classifier `network(x, log_snr) -> logits` with `network.classes` labels.

    Args: label: an integer or a tensor (batch,).  Raises: ValueError if a label is outside 0..network.classes-1.
    """
    bound = check_labels(label, network.classes)

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        log_snr = torch.full((len(x),), float(schedule.log_snr(t)), device=x.device)
        logits = network(x, log_snr).to(x.dtype).log_softmax(dim=1)  # (batch, classes)
        return logits.gather(1, expand_label(bound, x)[:, None])[:, 0]

    return log_prob


def classifier_guided(
    denoiser: Denoiser, network: torch.nn.Module, schedule: Schedule, label: int | Tensor, gamma: Scale
) -> Denoiser:
    """Classifier guidance by eps substitution: `tilt` with the gradient of a noise-aware classifier.

    `eps - gamma sigma grad log p_t(y | x)`  [eq-eps-substitution].  Arguments and errors as in `tilt` and
    `classifier_log_prob`.
    """
    return tilt(denoiser, gradient(classifier_log_prob(network, schedule, label)), gamma, schedule)
