"""One reverse step at a time: kernels `kernel(x, t, s) -> Step` from time t to another time s.

They are made from a denoiser, guided or not, and never see a label or a scale; the exact ones are made from a mixture.

Two rules hold on every schedule. A step that adds noise runs backwards, `s <= t`; one without noise (`eta = 0`, Heun,
DPM-Solver++, `rho = 0`) also runs forwards. And the step to the data, `s = 0`, adds no noise. (The exact ones draw it.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from difflesson.checks import check_shape
from difflesson.chunks import one_thread
from difflesson.denoiser import Denoiser, predict
from difflesson.guidance import Gradient, Scale, check_scale, checked_gradient, scale_at
from difflesson.mixture import GaussianMixture
from difflesson.parts import Part, Remembering
from difflesson.schedule import Schedule, as_time, noisy
from difflesson.steps import FullGaussian, Gaussian, ReverseStep, Step

Kernel = Callable[[Tensor, Tensor, Tensor], Step]
"""`kernel(x, t, s)` with x: (batch, *data) and 0-dim times. Any function will do; the package's are `parts`."""
NO_NOISE = torch.zeros((), dtype=torch.float64)
VARIANCES = {"small": 0.0, "large": 1.0}  # the two of DDPM, as v


def posterior_variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Variance of `q(x_s | x_t, x_0)`: `sigma_s^2 sigma_{t|s}^2 / sigma_t^2`.  [eq-posterior-variance]

    Raises: ValueError where `sigma_t` is 0.
    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 7; Kingma et al. 2021 (arXiv 2107.00630), appendix A.
    """
    _, sigma_ts = schedule.transition(t, s)
    return (schedule.sigma(s) * sigma_ts / noisy(schedule.sigma(t), t)) ** 2


@dataclass(frozen=True, eq=False)
class ddpm(Part):
    """DDPM's ancestral step: the mean of `q(x_s | x_t, x_0)` at the predicted x0.  [eq-ddpm]

        mean = (alpha_{t|s} sigma_s^2 x + alpha_s sigma_{t|s}^2 x0) / sigma_t^2
        var  = small^{1 - v} large^v     [eq-variance-interpolation]

    Args: variance: "small" (`v = 0`), the posterior's, right for a single point; "large" (`v = 1`), `sigma_{t|s}^2`,
    right for standard normal data; or v in [0, 1].  Raises: ValueError on another variance.
    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 7 and section 3.2; v: Ho & Salimans 2022 (arXiv 2207.12598).
    """

    denoiser: Denoiser
    schedule: Schedule
    variance: str | float = "small"

    def __post_init__(self):
        v = VARIANCES.get(self.variance, self.variance)
        if not (isinstance(v, int | float) and 0 <= v <= 1):
            raise ValueError(f'variance must be "small", "large" or a number in [0, 1], got {self.variance!r}')

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        t, s = _times(t, s)
        v = VARIANCES.get(self.variance, self.variance)
        alpha_ts, sigma_ts = self.schedule.transition(t, s)
        sigma_s, sigma_t = self.schedule.sigma(s), self.schedule.sigma(t)
        keep, pull = alpha_ts * (sigma_s / sigma_t) ** 2, self.schedule.alpha(s) * (sigma_ts / sigma_t) ** 2
        var = posterior_variance(self.schedule, t, s) ** (1 - v) * (sigma_ts**2) ** v
        prediction = predict(self.denoiser, x, t)
        with one_thread():
            return Gaussian(keep * x + pull * prediction.x0, var * (s > 0))


@dataclass(frozen=True, eq=False)
class ddim(Part):
    """DDIM's step, with `eta` times the posterior's standard deviation of fresh noise.  [eq-ddim]

        mean = alpha_s x0 + sqrt(sigma_s^2 - v) eps,     v = eta^2 sigma_s^2 sigma_{t|s}^2 / sigma_t^2

    `eta = 0` is deterministic and solves the probability-flow ODE to first order; `eta = 1` is `ddpm`.
    Args: eta: finite, at least 0, and small enough that `v <= sigma_s^2`;  noise_from: another denoiser to take eps
    from: to one clean point with another's noise, as CFG++ (Chung et al. 2024, arXiv 2406.08070), a property of the
    step, since no single prediction says both.  Raises: ValueError otherwise.
    Source: Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16.
    """

    denoiser: Denoiser
    schedule: Schedule
    eta: float = 0.0
    noise_from: Denoiser | None = None

    def __post_init__(self):
        _check_level("eta", self.eta)

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        t, s = _times(t, s)
        var = self.eta**2 * posterior_variance(self.schedule, t, s) if self.eta else NO_NOISE
        rest = self.schedule.sigma(s) ** 2 - var
        if bool(rest < -1e-12):
            raise ValueError(f"eta must be smaller for a step from {float(t):.4g} to {float(s):.4g}, got {self.eta}")
        x0, eps = predict(self.denoiser, x, t)
        if self.noise_from is not None:
            eps = predict(self.noise_from, x, t).eps
        with one_thread():
            return Gaussian(self.schedule.alpha(s) * x0 + rest.clamp_min(0).sqrt() * eps, var * (s > 0))


@dataclass(frozen=True, eq=False)
class reverse_sde(Part):
    """One Euler-Maruyama step of the reverse SDE whose noise is free.  [eq-reverse-sde]

        dx = -beta / 2 (x + (1 + rho^2) score) dt + rho sqrt(beta) dW     (time running backwards)

    Every `rho` has the same marginals in the limit of small steps: 0 is the probability-flow ODE, 1 Song's SDE.
    Args: rho: finite, at least 0.  Raises: ValueError otherwise, or where `sigma_t` is 0.
    Source: Song et al. 2021 (arXiv 2011.13456), eq. 6 and 13; Zhang & Chen 2022 (arXiv 2204.13902).
    """

    denoiser: Denoiser
    schedule: Schedule
    rho: float = 1.0

    def __post_init__(self):
        _check_level("rho", self.rho)

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        t, s = _times(t, s, backwards=self.rho > 0)
        step, sigma = self.schedule.beta(t) * (t - s), noisy(self.schedule.sigma(t), t)
        prediction = predict(self.denoiser, x, t)
        with one_thread():
            score = prediction.score(sigma)
            return Gaussian(x + step / 2 * (x + (1 + self.rho**2) * score), self.rho**2 * step * (s > 0))


@dataclass(frozen=True, eq=False)
class heun(Part):
    """Heun's second-order step of the probability-flow ODE: a DDIM step to `x_s'`, then corrected.  [eq-heun]

        x_s = x_s' + (alpha_s - alpha_t sigma_s / sigma_t) (x0' - x0) / 2,     x0' predicted at x_s' and s

    The trapezoidal rule for `d(x / sigma) / d(alpha / sigma) = x0`. That for `d(x / alpha) / d(sigma / alpha) = eps`
    divides by alpha, nearly 0 where sampling starts; forward steps, which start where sigma is, take it. Two
    evaluations, one in a step to the data.  Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 1.
    """

    denoiser: Denoiser
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        t, s = _times(t, s)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ((self.schedule.alpha(u), self.schedule.sigma(u)) for u in (t, s))
        here = predict(self.denoiser, x, t)
        with one_thread():
            first = alpha_s * here.x0 + sigma_s * here.eps
        if s == 0:
            return Gaussian(first, NO_NOISE)
        there = predict(self.denoiser, first, s)
        with one_thread():
            if s <= t:
                return Gaussian(first + (alpha_s - alpha_t * sigma_s / sigma_t) / 2 * (there.x0 - here.x0), NO_NOISE)
            return Gaussian(first + (sigma_s - sigma_t * alpha_s / alpha_t) / 2 * (there.eps - here.eps), NO_NOISE)


@dataclass(frozen=True, eq=False)
class dpmpp_2m(Remembering):
    """DPM-Solver++(2M): second order with one evaluation a step, by remembering the last x0.  [eq-dpmpp-2m]

        x_s = (sigma_s / sigma_t) x + alpha_s (1 - e^{-h}) D,     D = x0 + (h / h_last) (x0 - x0_last) / 2

    with h the step in `log(alpha / sigma)`; computed as a DDIM step plus what D adds to x0, without the quotient. The
    first step of a run, and those from or to `sigma = 0`, are DDIM steps. The memory belongs to one run; another that
    begins at the time where it ended could not be told from its continuation, so call `start()` for each of your own.
    Times, for few steps: `time_grid(n, schedule, 0.99, 0.01)`.  Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2.
    """

    denoiser: Denoiser
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        t, s = _times(t, s)
        memory = self.recall()
        if memory and (memory["s"] != t or memory["x0"].shape != x.shape):
            raise ValueError(f"t must be where this run's last step ended, {float(memory['s'])}, got {float(t)}")
        x0, eps = predict(self.denoiser, x, t)
        h = (self.schedule.log_snr(s) - self.schedule.log_snr(t)) / 2
        with one_thread():
            mean = self.schedule.alpha(s) * x0 + self.schedule.sigma(s) * eps
            if memory and bool(h.isfinite()):
                slope = h / memory["h"] / 2 * (x0 - memory["x0"])
                mean = mean - self.schedule.alpha(s) * torch.expm1(-h) * slope
        memory |= {"x0": x0, "h": h, "s": s}
        return Gaussian(mean, NO_NOISE)


@dataclass(frozen=True, eq=False)
class shift(Part):
    """Guidance as a shift of the mean: `mean + gamma var grad`.  [eq-mean-shift]

    Unlike `tilt` it works on a step, and dies where the step has no variance.
    Args: grad: `grad(x, t)`;  gamma: a scale as in `difflesson.guidance`;  at: where the gradient is taken, "x" (at
    x_t) or "mu" (at the mean, the original paper);  time: with which noise level, "t" or "s" (default "t" at x, "s" at
    mu, where the points belong).  Raises: ValueError otherwise, or if the kernel's step is no Gaussian.
    Source: Dhariwal & Nichol 2021 (arXiv 2105.05233), algorithm 1.
    """

    kernel: Kernel
    grad: Gradient
    gamma: Scale
    at: str = "x"
    time: str | None = None

    def __post_init__(self):
        if self.at not in ("x", "mu"):
            raise ValueError(f'at must be "x" or "mu", got {self.at!r}')
        if self.time not in (None, "t", "s"):
            raise ValueError(f'time must be "t" or "s", got {self.time!r}')
        check_scale(self.gamma)

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Step:
        step, scale = self.kernel(x, t, s), scale_at(self.gamma, t, x)
        if not hasattr(step, "tilted"):
            raise ValueError(f"kernel must answer a Gaussian to shift, got {type(step).__name__}")
        point, time = (x, self.time or "t") if self.at == "x" else (step.mean, self.time or "s")
        return step.tilted(scale * checked_gradient(self.grad, point, t if time == "t" else s))


def one_step_mean(x: Tensor, score: Tensor, schedule: Schedule, t: float | Tensor, s: float | Tensor) -> Tensor:
    """Tweedie's formula for one step, exact however long it is.  [eq-one-step-tweedie]

        E[x_s | x_t] = (x_t + sigma_{t|s}^2 grad log p_t(x_t)) / alpha_{t|s}

    With the score of p_t(x | y) it is E[x_s | x_t, y].  Args: x, score: (batch, *data).  Returns: the same shape.
    Raises: ValueError if the shapes differ.
    Source: Efron 2011 (doi 10.1198/jasa.2011.tm11181), applied to x_t = alpha_{t|s} x_s + sigma_{t|s} eps.
    """
    check_shape("score", score, x.shape)
    alpha_ts, sigma_ts = schedule.transition(*_times(t, s))
    return (x + sigma_ts**2 * score) / alpha_ts


@dataclass(frozen=True, eq=False)
class exact(Part):
    """The true reverse kernel of a mixture, `p(x_s | x_t)` or `p(x_s | x_t, label)`: no step is too long.

    [eq-exact-reverse]  The second is the first times `p(label | x_s) / p(label | x_t)`.  [eq-bayes-step]
    Raises: ValueError if the label is not a class.
    """

    mixture: GaussianMixture
    schedule: Schedule
    label: int | None = None

    def __post_init__(self):
        self.clean()

    def clean(self) -> GaussianMixture:
        """The mixture, or the class, at time 0."""
        return self.mixture if self.label is None else self.mixture.given(self.label)

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> ReverseStep:
        return self.clean().reverse(x, self.schedule, *_times(t, s))


@dataclass(frozen=True, eq=False)
class moment_matched(exact):
    """The Gaussian with the true mean and covariance of the reverse kernel, from score and Hessian.

        mean = `one_step_mean`
        cov  = sigma_{t|s}^2 / alpha_{t|s}^2 (I + sigma_{t|s}^2 grad grad log p_t)          [eq-second-order]

    Both are Tweedie's formulas for one step, exact for any step length; only the Gaussian shape is an approximation.
    Raises: ValueError if the label is not a class.
    """

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> FullGaussian:
        t, s = _times(t, s)
        alpha_ts, sigma_ts = self.schedule.transition(t, s)
        clean, exactly = self.clean(), self.mixture._checked(x).double()
        if x.dtype != torch.float64:  # near pure noise I and the Hessian nearly cancel; rounded axes would be seen
            clean = GaussianMixture(*(a.double() for a in (clean.weights, clean.means, clean.covs)), clean.labels)
        noisy = clean.noised(self.schedule.alpha(t), self.schedule.sigma(t))
        mean = one_step_mean(exactly, noisy.score(exactly), self.schedule, t, s)
        identity = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
        cov = (sigma_ts / alpha_ts) ** 2 * (identity + sigma_ts**2 * noisy.hessian(exactly))
        return FullGaussian(mean.to(x.dtype), cov.to(x.dtype))


def _times(t: float | Tensor, s: float | Tensor, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """The times of a step, 0-dim.  Raises: ValueError on more than one each, or if a noisy step runs forwards."""
    t, s = as_time(t), as_time(s, "s")
    if t.dim() or s.dim():
        raise ValueError(f"t and s must be single times, a step takes all points together; got {t} and {s}")
    if backwards and bool(s > t):
        raise ValueError(f"s must not exceed t in a step that adds noise, got s={float(s)}, t={float(t)}")
    return t, s


def _check_level(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
