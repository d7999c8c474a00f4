"""Guidance as practised: what papers and libraries put beside the guidance scale, each in a few lines.

A rule goes into `guidance.mix` in the place of `u + gamma (c - u)`, and a scale into `guidance.classifier_free`; both
have a setting at which they are plain guidance. Some tricks are no more than another pair: autoguidance is
`Pair(good.cond, weak.cond)`, a negative prompt `Pair(wanted.cond, unwanted.cond)`; and two conditions at once are
`tilt` on top of `classifier_free`, by `guidance.gradient` of the second pair.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difflesson.chunks import one_thread
from difflesson.denoiser import Denoiser, Prediction, predict
from difflesson.guidance import Scale, check_scale, scale_at
from difflesson.parts import Part, Remembering
from difflesson.schedule import Schedule, as_time, expand_as


def _levels(schedule: Schedule, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at t, shaped to multiply x."""
    return expand_as(schedule.alpha(as_time(t)), x), expand_as(schedule.sigma(as_time(t)), x)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each point of a with its point of b, (batch, 1, ...)."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.dim() - 1))


def _deviation(values: Tensor) -> Tensor:
    """The standard deviation over the coordinates of each point, (batch, 1, ...)."""
    return values.flatten(1).std(1).reshape(-1, *[1] * (values.dim() - 1))


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def _check(gamma: Scale) -> None:
    if not callable(gamma):
        check_scale(gamma)


@dataclass(frozen=True, eq=False)
class rescaled(Part):
    """A rule that gives the guided noise of each point the spread, over its coordinates, of the conditional one.

        eps = eps_gamma (phi std(eps_c) / std(eps_gamma) + 1 - phi)      [eq-rescaled-guidance]

    At `phi = 0` it is plain guidance. Libraries call phi `guidance_rescale`.
    Args: gamma: see `guidance`;  phi: in [0, 1].  Points need two coordinates or more.
    Raises: ValueError if gamma is not finite or phi outside.  Source: Lin et al. 2024 (arXiv 2305.08891), section 3.4.
    """

    gamma: Scale
    phi: float
    schedule: Schedule

    def __post_init__(self):
        _check(self.gamma)
        _share("phi", self.phi)

    def __call__(self, cond: Prediction, uncond: Prediction, x: Tensor, t: Tensor) -> Prediction:
        with one_thread():
            eps = uncond.eps + scale_at(self.gamma, t, x) * (cond.eps - uncond.eps)
            eps = eps * (self.phi * _deviation(cond.eps) / _deviation(eps) + 1 - self.phi)
            return Prediction.from_eps(x, eps, *_levels(self.schedule, x, t))


@dataclass(frozen=True, eq=False)
class projected(Remembering):
    """Adaptive projected guidance, APG: the push along the conditional guess counts `eta` times, and is kept short.

        x0 = x0_c + (gamma - 1) (d_across + eta d_along),      d = x0_c - x0_u      [eq-projected-guidance]

    "along" is along x0_c, one direction in the space of all coordinates. Before it is split, `momentum` times the d of
    the step before is added to d, and the sum is cut to the length `reach`.
    At `eta = 1`, `reach = inf`, `momentum = 0` it is plain guidance, and at `gamma = 1` the conditional guess.
    Args: eta: finite, 0 drops what lies along x0_c;  reach: above 0;  momentum: in (-1, 1), in the paper negative, so
    that it works against what was pushed before; the memory belongs to a run, see `parts`.
    Raises: ValueError otherwise.
    Source: Sadat et al. 2025 (arXiv 2410.02416), algorithm 1.
    """

    gamma: Scale
    schedule: Schedule
    eta: float = 0.0
    reach: float = math.inf
    momentum: float = 0.0

    def __post_init__(self):
        _check(self.gamma)
        if not math.isfinite(self.eta):
            raise ValueError(f"eta must be finite, got {self.eta}")
        if not self.reach > 0:
            raise ValueError(f"reach must be above 0, got {self.reach}")
        if not -1 < self.momentum < 1:
            raise ValueError(f"momentum must lie in (-1, 1), got {self.momentum}")

    def __call__(self, cond: Prediction, uncond: Prediction, x: Tensor, t: Tensor) -> Prediction:
        with one_thread():
            push = cond.x0 - uncond.x0
            if self.momentum:
                kept = self.recall()
                push = kept["push"] = push + self.momentum * kept.get("push", 0.0)
            length = _dot(push, push).sqrt()
            push = push * torch.where(length > self.reach, self.reach / length, 1.0)
            square = _dot(cond.x0, cond.x0)
            along = torch.where(square > 0, _dot(push, cond.x0) / square, 0.0) * cond.x0
            x0 = cond.x0 + (scale_at(self.gamma, t, x) - 1) * (push - along + self.eta * along)
            return Prediction.from_x0(x, x0, *_levels(self.schedule, x, t))


@dataclass(frozen=True, eq=False)
class zero_star(Part):
    """CFG-Zero*: the unconditional velocity is first scaled to come closest to the conditional one, then guided from.

        v = s v_u + gamma (v_c - s v_u),      s = <v_c, v_u> / |v_u|^2      [eq-zero-star]

    At times above `until` the velocity is 0. At `gamma = 1` it is the conditional guess, whatever s; where s is 1,
    plain guidance.
    Args: until: in [0, 1], a time; 1 never silences.  The paper's velocity is that of a flow on straight lines; here it
    is `v = alpha eps - sigma x0`, the same thing on a circle.
    Raises: ValueError if gamma is not finite or until outside.
    Source: Fan et al. 2025 (arXiv 2503.18886), algorithm 1.
    """

    gamma: Scale
    schedule: Schedule
    until: float = 1.0

    def __post_init__(self):
        _check(self.gamma)
        _share("until", self.until)

    def __call__(self, cond: Prediction, uncond: Prediction, x: Tensor, t: Tensor) -> Prediction:
        with one_thread():
            alpha, sigma = _levels(self.schedule, x, t)
            told, untold = (alpha * eps - sigma * x0 for x0, eps in (cond, uncond))
            square = _dot(untold, untold)
            base = torch.where(square > 0, _dot(told, untold) / square, 0.0) * untold
            silent = expand_as(torch.as_tensor(t), x) > self.until
            v = torch.where(silent, 0.0, base + scale_at(self.gamma, t, x) * (told - base))
            return Prediction.from_v(x, v, alpha, sigma)


@dataclass(frozen=True, eq=False)
class thresholded(Part):
    """Dynamic thresholding: a clean guess that leaves [-limit, limit] is cut at its own quantile and shrunk into it.

        s = max(limit, quantile of |x0|),      x0 -> limit clip(x0, -s, s) / s      [eq-dynamic-threshold]

    Each point has its own s, over its coordinates. A guess inside the range stays as it is.
    Args: denoiser: guided already;  quantile: in [0, 1], the paper's p;  limit: above 0, of the data.
    Raises: ValueError otherwise.  Source: Saharia et al. 2022 (arXiv 2205.11487), section 2.3.
    """

    denoiser: Denoiser
    schedule: Schedule
    quantile: float = 0.995
    limit: float = 1.0

    def __post_init__(self):
        _share("quantile", self.quantile)
        if not 0 < self.limit < math.inf:
            raise ValueError(f"limit must be above 0 and finite, got {self.limit}")

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        guess = predict(self.denoiser, x, t)
        with one_thread():
            reach = guess.x0.abs().flatten(1).quantile(self.quantile, dim=1).clamp_min(self.limit)
            reach = reach.reshape(-1, *[1] * (x.dim() - 1))
            x0 = self.limit * guess.x0.clamp(-reach, reach) / reach
            return Prediction.from_x0(x, x0, *_levels(self.schedule, x, t))


@dataclass(frozen=True, eq=False)
class plus_plus_scale(Part):
    """CFG++ as a guidance scale: at each of the times of a DDIM run the gamma that makes the same step.

        gamma(t) = lam / (1 - (alpha_t sigma_s) / (alpha_s sigma_t)),      s the next time      [eq-plus-plus-scale]

    CFG++ takes the clean guess at scale lam and the noise without the condition, which is the kernel
    `ddim(classifier_free(pair, lam), schedule, noise_from=pair.uncond)`. The shorter the steps, the larger gamma.
    Args: lam: finite;  times: the run's, (steps + 1,), decreasing, in [0, 1].
    Raises: ValueError otherwise, or when asked at a time that is none of them but the last.
    Source: Chung et al. 2025 (arXiv 2406.08070), whose lambda it is.
    """

    lam: float
    schedule: Schedule
    times: Tensor

    def __post_init__(self):
        if not math.isfinite(self.lam):
            raise ValueError(f"lam must be finite, got {self.lam}")
        if self.times.dim() != 1 or len(self.times) < 2 or not bool((self.times.diff() < 0).all()):
            raise ValueError("times must be decreasing, (steps + 1,) with two or more, as time_grid gives them")

    def __call__(self, t: Tensor) -> Tensor:
        at = (self.times[:-1] - torch.as_tensor(t)).abs() < 1e-12
        if int(at.sum()) != 1:
            raise ValueError(f"t must be a time of the run with a step after it, got {t}")
        t, s = self.times[:-1][at][0], self.times[1:][at][0]
        schedule = self.schedule
        share = schedule.alpha(t) * schedule.sigma(s) / (schedule.alpha(s) * schedule.sigma(t))
        return self.lam / (1 - share)
