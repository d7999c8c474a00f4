"""Guidance: a map from denoisers to a denoiser.

Every gradient-type guidance is `tilt`: add a gradient to the score. Every two-branch guidance is `mix`: combine two
predictions. What comes out is a denoiser again, so any kernel can sample from it, and guidances can be stacked.

The scale is `gamma` everywhere: 0 ignores the condition, 1 is plain conditional sampling, more exaggerates, less than
0 pushes away. It may be a number, a tensor (batch,) with one scale a point, or a function of time that returns either,
which gives guidance in an interval and ramps (`practice.interval`, `practice.growing_scale`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from difflesson.checks import as_tensor, check_shape
from difflesson.chunks import one_thread
from difflesson.denoiser import Denoiser, Pair, Prediction, check_labels, checked, expand_label, predict
from difflesson.parts import Part
from difflesson.schedule import Schedule, as_time, expand_as, noisy

Gradient = Callable[[Tensor, Tensor], Tensor]
"""`grad(x, t) -> (batch, *data)`: the gradient in x of log p_t(y | x), a similarity, a reward, minus an energy, ..."""

Scale = float | Tensor | Callable[[Tensor], float | Tensor]


def scale_at(gamma: Scale, t: Tensor, x: Tensor) -> float | Tensor:
    """The scale at time t: a float, or a tensor (batch, 1, ...) that multiplies x.

    Raises: ValueError if it is not one finite number, nor one for each point.
    """
    value = check_scale(gamma(t) if callable(gamma) else gamma)
    return expand_as(value, x, "gamma") if isinstance(value, Tensor) else value


def check_scale(gamma: Scale) -> Scale:
    """One number as a float, or a tensor (batch,), or one that is differentiated; then it stays a tensor, 0-dim.

    A function of time is asked in its time.  Raises: ValueError if it is none of these, or not finite.
    """
    if callable(gamma):
        return gamma
    number = None if isinstance(gamma, Tensor) else torch.float64
    value = as_tensor("gamma", gamma, "one finite number (or one a point, of shape (batch,))", number)
    known = value.device.type == "cpu"  # elsewhere a look at the values would make the host wait
    if value.dim() > 1 or value.is_complex() or known and not bool(value.isfinite().all()):
        raise ValueError(f"gamma must be one finite number (or one a point, of shape (batch,)), got {gamma}")
    if value.numel() == 1:
        return float(value) if known and not value.requires_grad else value.reshape(())
    return value


def checked_gradient(grad: Gradient, x: Tensor, t: Tensor) -> Tensor:
    """Evaluate a gradient.  Raises: ValueError if it has another shape than x: it would be broadcast silently."""
    g = grad(x, t)
    check_shape("grad's answer", g, x.shape)
    return g


def ask_both(pair: Pair, x: Tensor, t: Tensor) -> tuple[Prediction, Prediction]:
    """Ask a pair, or what stands for one.  Raises: ValueError unless both answers are Predictions shaped like x."""
    answer = pair(x, t)
    if isinstance(answer, Prediction):  # which would unpack into two tensors
        raise ValueError("pair must answer two Predictions, conditional first, got one: is it a denoiser?")
    return tuple(checked(one, x, "pair") for one in answer)


@dataclass(frozen=True, eq=False)
class tilt(Part):
    """Guide by a gradient: the score gets `+ gamma g`, whatever sampler follows.

        eps -> eps - gamma sigma g          x0 -> x0 + gamma sigma^2 / alpha g      [eq-eps-substitution]

    Args: grad: `grad(x, t)`, for a classifier grad log p_t(y | x);  gamma: see the module.
    At `gamma = 0` the gradient is not evaluated.  Raises: ValueError if gamma is not finite or grad is misshapen.
    Source: Dhariwal & Nichol 2021 (arXiv 2105.05233), algorithm 2, eq. 14.
    """

    denoiser: Denoiser
    grad: Gradient
    gamma: Scale
    schedule: Schedule

    def __post_init__(self):
        check_scale(self.gamma)

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        prediction, scale = predict(self.denoiser, x, t), scale_at(self.gamma, t, x)
        if isinstance(scale, float) and scale == 0:
            return prediction
        alpha, sigma = (expand_as(level, x) for level in (self.schedule.alpha(t), self.schedule.sigma(t)))
        g = checked_gradient(self.grad, x, t)
        with one_thread():
            push = scale * g
            return Prediction(prediction.x0 + sigma**2 / alpha * push, prediction.eps - sigma * push)


@dataclass(frozen=True, eq=False)
class mix(Part):
    """Guide by two branches: `rule(cond, uncond, x, t)` combines the two predictions of the pair into one.

    A rule that treats x0 and eps alike by weights that sum to one keeps `x = alpha x0 + sigma eps`; any other changes
    one half and makes the other with `Prediction.from_x0` or `from_eps`.
    Raises: ValueError if its answer is not a Prediction of floats shaped like x.
    """

    pair: Pair
    rule: Callable[[Prediction, Prediction, Tensor, Tensor], Prediction]

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        return checked(self.rule(*ask_both(self.pair, x, t), x, t), x, "rule")


@dataclass(frozen=True, eq=False)
class classifier_free(Part):
    """Classifier-free guidance: `eps = eps_u + gamma (eps_c - eps_u)`, and x0 likewise.  [eq-cfg]

    With `w = gamma - 1` this is Ho & Salimans' `(1 + w) eps_c - w eps_u`. At `gamma = 0` and `gamma = 1` only the
    branch that counts is evaluated.

    Args: gamma: see the module.  Raises: ValueError if gamma is not finite.
    Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6.
    """

    pair: Pair
    gamma: Scale

    def __post_init__(self):
        check_scale(self.gamma)

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        scale = scale_at(self.gamma, t, x)
        if isinstance(scale, float) and scale in (0.0, 1.0):
            if branch := getattr(self.pair, "cond" if scale else "uncond", None):  # a function for a pair has none
                return predict(branch, x, t)
        cond, uncond = ask_both(self.pair, x, t)
        with one_thread():
            return Prediction(*(u + scale * (c - u) for c, u in zip(cond, uncond, strict=True)))


@dataclass(frozen=True, eq=False)
class gradient(Part):
    """The gradient in x of any differentiable `log_prob(x, t) -> (batch,)`, or reward, one backward pass for the batch.

    The values are summed before differentiating, which is right as long as no point's value depends on another point:
    true for `eval()` networks, false for batch norm in training mode. Where x is being differentiated, the answer is
    differentiable. `torch.inference_mode()` is left for the while.  Raises: ValueError if log_prob is misshapen.
    """

    log_prob: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        further = torch.is_grad_enabled() and x.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            x, t = (v.clone() if isinstance(v, Tensor) and v.is_inference() else v for v in (x, t))
            leaf = x if further else x.detach().requires_grad_()
            values = self.log_prob(leaf, t)
            check_shape("log_prob's answer", values, x.shape[:1])
            return torch.autograd.grad(values.sum(), leaf, create_graph=further)[0]


def linearise(log_prob: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: float | Tensor) -> Callable:
    """The first-order Taylor polynomial of `log p_t(y | x)`, in the point and in time.  [eq-taylor]

        (x_s, s) -> log p_t(y | x) + (x_s - x) . grad_x log p_t(y | x) + (s - t) d/dt log p_t(y | x)

    The derivative in time is a number for each point x: it does not depend on x_s.

    Args: log_prob: `log_prob(x, t) -> (batch,)`, twice differentiable;  x: (batch, d);  t: one time.
    Returns: a function of x_s (..., batch, d) and s with values (..., batch); ValueError if x_s has another d.
    """
    with torch.enable_grad():
        time = as_time(t).detach().to(x.device).requires_grad_()
        value = log_prob(x.detach(), time) + 0 * time  # which may not look at the time
        # One time, many values: differentiate a weighted sum in time, then the result in the weights.
        weights = torch.ones_like(value).requires_grad_()
        (total,) = torch.autograd.grad((weights * value).sum(), time, create_graph=True)
        (rate,) = torch.autograd.grad(total, weights)
    value, slope = value.detach(), gradient(log_prob)(x, t)

    def polynomial(x_s: Tensor, s: float | Tensor) -> Tensor:
        if x_s.shape[-1:] != x.shape[-1:]:
            raise ValueError(f"x_s must have the dimension of x, {x.shape[-1]}, got {tuple(x_s.shape)}")
        return value + ((x_s - x) * slope).sum(-1) + (s - t) * rate

    return polynomial


@dataclass(frozen=True, eq=False)
class implicit_gradient(Part):
    """The gradient of the classifier that two denoisers imply, `p(x | y) / p(x)`.  [eq-implicit-classifier]

        grad log (p_t(x | y) / p_t(x)) = (eps_u - eps_c) / sigma

    For networks it need not be the gradient of anything.  Raises: ValueError where `sigma_t` is 0.
    Source: Ho & Salimans 2022 (arXiv 2207.12598), section 3.2.
    """

    pair: Pair
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        cond, uncond = ask_both(self.pair, x, t)
        return (uncond.eps - cond.eps) / expand_as(noisy(self.schedule.sigma(t), t), x)


@dataclass(frozen=True, eq=False)
class tempered(Part):
    """The score times kappa, which is *not* how one samples `p(x)^kappa`.  [eq-low-temperature]

        eps -> kappa eps          x0 -> x0 + (1 - kappa) sigma / alpha eps

    Args: kappa: finite, at least 0; 1 changes nothing.  Raises: ValueError otherwise.
    Source: Ho & Salimans 2022 (arXiv 2207.12598), section 1, report that it fails on images.
    """

    denoiser: Denoiser
    kappa: float
    schedule: Schedule

    def __post_init__(self):
        if not (math.isfinite(self.kappa) and self.kappa >= 0):
            raise ValueError(f"kappa must be finite and at least 0, got {self.kappa}")

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        x0, eps = predict(self.denoiser, x, t)
        alpha, sigma = (expand_as(level, x) for level in (self.schedule.alpha(t), self.schedule.sigma(t)))
        return Prediction(x0 + (1 - self.kappa) * sigma / alpha * eps, self.kappa * eps)


@dataclass(frozen=True, eq=False)
class classifier_logits(Part):
    """The logits (batch, classes) of a noise-aware classifier `network(x, log_snr) -> logits`, in the dtype of x."""

    network: torch.nn.Module = field(repr=False)
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        log_snr = self.schedule.log_snr(t).to(x.device, torch.float32).expand(len(x))
        return self.network(x, log_snr).to(x.dtype)


@dataclass(frozen=True, eq=False)
class sharpened(Part):
    """`log p~(label | x)` of a classifier raised to the power gamma *and normalised again*.  [eq-sharpened]

        p~(y | x) = p_t(y | x)^gamma / Z,     Z = sum_y' p_t(y' | x)^gamma

    For logits it is the softmax of gamma times them. Gamma stands inside, so guide by
    `tilt(denoiser, gradient(sharpened(logits, label, gamma)), 1.0, schedule)`. The gradient is
    `gamma (g_y - sum_y' p~(y' | x) g_y')`, not `gamma g_y`.  [eq-sharpened-gradient]

    Args: logits: `logits(x, t) -> (batch, classes)`, log-probabilities up to one number for each x and t, such as
    `classifier_logits`;  label: an integer or a tensor (batch,);  gamma: see the module.
    Raises: ValueError if gamma is not finite, logits are misshapen, or a label is outside 0..classes-1.
    """

    logits: Callable[[Tensor, Tensor], Tensor]
    label: int | Tensor
    gamma: Scale

    def __post_init__(self):
        check_scale(self.gamma)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        logits = self.logits(x, t)  # (batch, classes)
        check_shape("logits, (batch, classes),", logits, (len(x), *logits.shape[-1:]))
        label = expand_label(check_labels(self.label, logits.shape[1]), x)
        return (scale_at(self.gamma, t, logits) * logits).log_softmax(dim=1).gather(1, label[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class classifier_log_prob(Part):
    """`log p_t(label | x)` of a noise-aware classifier `network(x, log_snr) -> logits` with `network.classes` labels.

    Args: label: an integer or a tensor (batch,).  Raises: ValueError if a label is outside 0..network.classes-1.
    """

    network: torch.nn.Module = field(repr=False)
    schedule: Schedule
    label: int | Tensor

    def __post_init__(self):
        check_labels(self.label, self.network.classes)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return sharpened(classifier_logits(self.network, self.schedule), self.label, 1.0)(x, t)


def classifier_guided(
    denoiser: Denoiser, network: torch.nn.Module, schedule: Schedule, label: int | Tensor, gamma: Scale
) -> Denoiser:
    """Classifier guidance by eps substitution: `tilt` with the gradient of a noise-aware classifier.

    [eq-eps-substitution]  Arguments and errors as in `tilt` and `classifier_log_prob`.
    """
    return tilt(denoiser, gradient(classifier_log_prob(network, schedule, label)), gamma, schedule)
