"""Guidance as practised: what papers and libraries put beside the guidance scale, each in a few lines.

A rule (`rescaled`, `projected`, `zero_star`) goes into `guidance.mix` in the place of `u + gamma (c - u)`, and a scale
(`interval` and what ends in `_scale`) into `guidance.classifier_free`; both have a setting at which they are plain
guidance. That makes a denoiser, which a kernel takes; `thresholded` is one itself. Some tricks are no more than another
pair: autoguidance is `Pair(good.cond, weak.cond)`, a negative prompt `Pair(wanted.cond, unwanted.cond)`; and two
conditions at once are `tilt` on top of `classifier_free`, by `guidance.implicit_gradient` of the second pair.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difflesson.checks import check_share, shown
from difflesson.chunks import one_thread
from difflesson.denoiser import PREDICTIONS, Denoiser, Prediction, predict
from difflesson.guidance import Scale, check_scale, scale_at
from difflesson.parts import Part, Remembering
from difflesson.schedule import Schedule, as_time, expand_as, levels_at, noisy


def _said(prediction: Prediction, of: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network that predicts `of` has said in this prediction."""
    return alpha * prediction.eps - sigma * prediction.x0 if of == "v" else getattr(prediction, of)


def _from_x0(x: Tensor, x0: Tensor, schedule: Schedule, t: Tensor) -> Prediction:
    """Raises: ValueError where there is no noise, so that a clean guess does not tell it."""
    return Prediction.from_x0(x, x0, levels_at(schedule, x, t)[0], noisy(levels_at(schedule, x, t)[1], t))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each point of a with its point of b, (batch, 1, ...)."""
    return expand_as((a * b).flatten(1).sum(1), a)


def _deviation(values: Tensor) -> Tensor:
    """The standard deviation over the coordinates of each point, (batch, 1, ...)."""
    return expand_as(values.flatten(1).std(1), values)


@dataclass(frozen=True, eq=False)
class rescaled(Part):
    """A rule for `guidance.mix`: the guided noise of a point gets the spread, over coordinates, of the conditional one.

        eps = eps_gamma (phi std(eps_c) / std(eps_gamma) + 1 - phi)      [eq-rescaled-guidance]

    At `phi = 0` it is plain guidance. Libraries call phi `guidance_rescale`, and rescale what the network answers: the
    paper's answers v, which in the noise is nearly the clean guess. In many coordinates the noise has the spread 1
    whatever the guidance, and rescaling it does little.
    Args: gamma: see `guidance`;  phi: in [0, 1];  of: "eps", or "v" or "x0" in its place in the formula.
    Raises: ValueError if gamma is not finite, phi outside, of another word, or a point has but one coordinate.
    Source: Lin et al. 2024 (arXiv 2305.08891), section 3.4.
    """

    gamma: Scale
    phi: float
    schedule: Schedule
    of: str = "eps"

    def __post_init__(self):
        check_scale(self.gamma)
        check_share("phi", self.phi)
        if self.of not in PREDICTIONS:
            raise ValueError(f"of must be one of {sorted(PREDICTIONS)}, got {self.of!r}")

    def __call__(self, cond: Prediction, uncond: Prediction, x: Tensor, t: Tensor) -> Prediction:
        if x[0].numel() < 2:
            raise ValueError(f"x must have two coordinates or more, one has no spread, got {tuple(x.shape)}")
        with one_thread():
            levels = levels_at(self.schedule, x, t)
            told, untold = (_said(one, self.of, *levels) for one in (cond, uncond))
            value = untold + scale_at(self.gamma, t, x) * (told - untold)
            if self.phi:  # at 0 nothing is asked about spreads, which may be 0
                ratio = torch.where((spread := _deviation(value)) > 0, _deviation(told) / spread, 1.0)
                value = value * (self.phi * ratio + 1 - self.phi)
            return _from_x0(x, value, self.schedule, t) if self.of == "x0" else PREDICTIONS[self.of](x, value, *levels)


@dataclass(frozen=True, eq=False)
class projected(Remembering):
    """APG, a rule for `guidance.mix`: the push along the conditional guess counts `eta` times, and is kept short.

        x0 = x0_c + (gamma - 1) (d_across + eta d_along),      d = x0_c - x0_u      [eq-projected-guidance]

    "along" is along x0_c, one direction in the space of all coordinates. Before it is split, `momentum` times the sum
    kept at the step before is added to d; this sum is kept in its turn, and cut to the length `reach`.
    At `eta = 1`, `reach = inf`, `momentum = 0` it is plain guidance, and at `gamma = 1` the conditional guess.
    Args: eta: finite, 0 drops what lies along x0_c;  reach: above 0;  momentum: in (-1, 1), in the paper negative, so
    that it works against what was pushed before; the memory belongs to a run, see `parts`.
    Raises: ValueError otherwise.
    Source: Sadat et al. 2025 (arXiv 2410.02416), algorithm 1, adaptive projected guidance.
    """

    gamma: Scale
    schedule: Schedule
    eta: float = 0.0
    reach: float = math.inf
    momentum: float = 0.0

    def __post_init__(self):
        check_scale(self.gamma)
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
            return _from_x0(x, x0, self.schedule, t)


@dataclass(frozen=True, eq=False)
class zero_star(Part):
    """CFG-Zero*, a rule for `guidance.mix`: the unconditional velocity, scaled to come closest to the other, is guided.

        v = s v_u + gamma (v_c - s v_u),      s = (v_c . v_u) / |v_u|^2      [eq-zero-star]

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
        check_scale(self.gamma)
        check_share("until", self.until)

    def __call__(self, cond: Prediction, uncond: Prediction, x: Tensor, t: Tensor) -> Prediction:
        with one_thread():
            levels = levels_at(self.schedule, x, t)
            told, untold = (_said(one, "v", *levels) for one in (cond, uncond))
            square = _dot(untold, untold)
            base = torch.where(square > 0, _dot(told, untold) / square, 0.0) * untold
            speaks = expand_as((as_time(t) <= self.until).to(x.dtype), x)
            v = speaks * (base + scale_at(self.gamma, t, x) * (told - base))
            return Prediction.from_v(x, v, *levels)


@dataclass(frozen=True, eq=False)
class thresholded(Part):
    """A denoiser, by dynamic thresholding: a guess that leaves [-limit, limit] is cut at its quantile and shrunk.

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
        check_share("quantile", self.quantile)
        if not 0 < self.limit < math.inf:
            raise ValueError(f"limit must be above 0 and finite, got {self.limit}")

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        guess = predict(self.denoiser, x, t)
        with one_thread():
            sizes = guess.x0.abs().flatten(1).to(torch.promote_types(x.dtype, torch.float32))  # half has no quantiles
            reach = expand_as(sizes.quantile(self.quantile, dim=1).clamp_min(self.limit), x)
            x0 = self.limit * guess.x0.clamp(-reach, reach) / reach
            return _from_x0(x, x0, self.schedule, t)


@dataclass(frozen=True, eq=False)
class interval(Part):
    """A scale for `classifier_free`: `gamma` where the log-SNR lies from `low` to `high`, else 1.

        gamma(t) = gamma  if  low <= log_snr(t) <= high,  else 1      [eq-interval-guidance]

    Where it is 1, at one time for all, `classifier_free` asks the network once and not twice.
    Args: low, high: log-SNRs, low at the noisy end; a paper's noise level sigma_edm is `-2 log(sigma_edm)`, so its two
    change places.  Raises: ValueError unless low < high.  Source: Kynkäänniemi et al. 2024 (arXiv 2404.07724).
    """

    gamma: float
    schedule: Schedule
    low: float
    high: float

    def __post_init__(self):
        check_scale(self.gamma)
        if not self.low < self.high:
            raise ValueError(f"low must be below high, both log-SNRs, got {self.low} and {self.high}")

    def __call__(self, t: Tensor) -> Tensor:
        log_snr = self.schedule.log_snr(t)
        inside = (self.low <= log_snr) & (log_snr <= self.high)
        return torch.where(inside, torch.as_tensor(self.gamma, dtype=torch.float64, device=inside.device), 1.0)


@dataclass(frozen=True, eq=False)
class growing_scale(Part):
    """A scale for `classifier_free` that grows evenly on the way from the noise, where it is 1, to the data.

        gamma(t) = 1 + 2 (gamma - 1) (1 - t)      [eq-growing-scale]

    Over times from 1 to 0 its mean is gamma; at the data it is 2 gamma - 1. At `gamma = 1` it is 1 throughout.
    Args: gamma: finite, the mean;  t, of the call: () or (batch,), in [0, 1].  Raises: ValueError otherwise.
    Source: that growing scales serve is from Wang et al. 2024 (arXiv 2404.13040).
    """

    gamma: float

    def __post_init__(self):
        if not math.isfinite(self.gamma):
            raise ValueError(f"gamma must be finite, got {self.gamma}")

    def __call__(self, t: Tensor) -> Tensor:
        return 1 + 2 * (self.gamma - 1) * (1 - as_time(t))


@dataclass(frozen=True, eq=False)
class plus_plus_scale(Part):
    """CFG++ as a guidance scale: at each of the times of a DDIM run the gamma that makes the same step.

        gamma(t) = lam / (1 - (alpha_t sigma_s) / (alpha_s sigma_t)),      s the next time      [eq-plus-plus-scale]

    CFG++ takes the clean guess at scale lam and the noise without the condition, which is the kernel
    `ddim(classifier_free(pair, lam), schedule, noise_from=pair.uncond)`. The shorter the steps, the larger gamma; on
    times even in log-SNR it is the same at all of them. In a step to no noise at all it is lam.
    Args: lam: finite;  times: the run's, (steps + 1,), decreasing, in [0, 1].
    Raises: ValueError otherwise, or when asked at what is none of them but the last.
    Source: Chung et al. 2025 (arXiv 2406.08070), whose lambda it is.
    """

    lam: float
    schedule: Schedule
    times: Tensor

    def __post_init__(self):
        if not math.isfinite(self.lam):
            raise ValueError(f"lam must be finite, got {self.lam}")
        times = as_time(self.times, "times")
        if times.dim() != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
            raise ValueError(f"times must be decreasing, (steps + 1,) with two or more, got {shown(times)}")

    def __call__(self, t: Tensor) -> Tensor:
        t = as_time(t)
        at = (self.times[:-1] - t).abs() < 1e-12 if t.dim() == 0 else t
        if t.dim() or int(at.sum()) != 1:
            raise ValueError(f"t must be one time of the run with a step after it, got {shown(t)}")
        t, s = self.times[:-1][at][0], self.times[1:][at][0]
        alpha, sigma = self.schedule.alpha, self.schedule.sigma
        share = alpha(t) * sigma(s) / (alpha(s) * sigma(t))
        return self.lam / (1 - share)


@dataclass(frozen=True, eq=False)
class healing_scale(Part):
    """The scale at which a weaker model heals a good one: both see the data blurred, the weaker one more.

        gamma(t) = b2 (v + b1 + q) / ((b2 - b1) (v + q)),     q = sigma^2 / alpha^2      [eq-autoguidance-cure]

    With data of one normal distribution of variance v, a model that takes it for v + b1 and a weaker one that takes it
    for v + b2, `classifier_free(Pair(good, weaker), healing_scale(...))` is the exact denoiser at every noise level.
    At `b1 = 0`, where there is nothing to heal, it is 1.
    Args: variance: v, above 0;  blur: b1, at least 0;  weaker_blur: b2, above b1.  Raises: ValueError otherwise.
    Source: the idea of guiding by a weaker model is Karras et al. 2024 (arXiv 2406.02507); the scale is algebra.
    """

    variance: float
    blur: float
    weaker_blur: float
    schedule: Schedule

    def __post_init__(self):
        if not 0 < self.variance < math.inf:
            raise ValueError(f"variance must be above 0 and finite, got {self.variance}")
        if not 0 <= self.blur < self.weaker_blur < math.inf:
            got = f"{self.blur} and {self.weaker_blur}"
            raise ValueError(f"blur and weaker_blur must satisfy 0 <= blur < weaker_blur, both finite, got {got}")

    def __call__(self, t: Tensor) -> Tensor:
        signal, noise = self.schedule.alpha(t) ** 2, self.schedule.sigma(t) ** 2  # q times signal is noise
        believed, true = ((self.variance + blur) * signal + noise for blur in (self.blur, 0.0))
        return self.weaker_blur * believed / ((self.weaker_blur - self.blur) * true)
