"""One reverse step at a time: kernels `kernel(x, t, s) -> Step` from time t back to an earlier time s.

Most steps are Gaussian with one variance; the Hessian-corrected one has a full covariance, and the exact one is a
mixture. Kernels are made from a denoiser, guided
or not: they never see a label or a scale. Deterministic kernels (DDIM with `eta = 0`, Heun, DPM-Solver++) are steps of
variance zero.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from difflesson.denoiser import Denoiser
from difflesson.guidance import Gradient
from difflesson.mixture import GaussianMixture, ReverseStep
from difflesson.schedule import Schedule, as_time
from difflesson.steps import FullGaussian, Gaussian, Step

Kernel = Callable[[Tensor, Tensor, Tensor], Step]
"""`kernel(x, t, s)` with x: (batch, *data) at time t and 0-dim times `0 <= s < t <= 1`."""


def posterior_variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Variance of `q(x_s | x_t, x_0)`: `sigma_s^2 sigma_{t|s}^2 / sigma_t^2`.  [eq-posterior-variance]

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 7; Kingma et al. 2021 (arXiv 2107.00630), appendix A.
    """
    _, sigma_ts = schedule.transition(t, s)
    return (schedule.sigma(s) * sigma_ts / schedule.sigma(t)) ** 2


def ddpm(denoiser: Denoiser, schedule: Schedule, variance: str | float = "small") -> Kernel:
    """DDPM's ancestral step: the mean of `q(x_s | x_t, x_0)` at the predicted x0.  [eq-ddpm]

        mean = (alpha_{t|s} sigma_s^2 x + alpha_s sigma_{t|s}^2 x0) / sigma_t^2
        var  = small^{1 - v} large^v     [eq-variance-interpolation]

    Args: variance: "small" (`v = 0`), the posterior's, right for a single point; "large" (`v = 1`), `sigma_{t|s}^2`,
    right for standard normal data; or v in [0, 1]. A step to the data itself, `sigma_s = 0`, adds no noise.
    Raises: ValueError on another variance.  Source: Ho et al. 2020 (arXiv 2006.11239), eq. 7, section 3.2, algorithm 2;
    the interpolation: Ho & Salimans 2022 (arXiv 2207.12598), algorithm 2.
    """
    v = {"small": 0.0, "large": 1.0}.get(variance, variance)
    if not (isinstance(v, int | float) and 0 <= v <= 1):
        raise ValueError(f'variance must be "small", "large" or a number in [0, 1], got {variance!r}')

    def kernel(x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        alpha_ts, sigma_ts = schedule.transition(t, s)
        sigma_s, sigma_t = schedule.sigma(s), schedule.sigma(t)
        keep, pull = alpha_ts * (sigma_s / sigma_t) ** 2, schedule.alpha(s) * (sigma_ts / sigma_t) ** 2
        var = posterior_variance(schedule, t, s) ** (1 - v) * (sigma_ts**2 * (sigma_s > 0)) ** v
        return Gaussian(keep * x + pull * denoiser(x, t).x0, var)

    return kernel


def ddim(denoiser: Denoiser, schedule: Schedule, eta: float = 0.0) -> Kernel:
    """DDIM's step, with `eta` times the posterior's standard deviation of fresh noise.  [eq-ddim]

        mean = alpha_s x0 + sqrt(sigma_s^2 - v) eps,     v = eta^2 sigma_s^2 sigma_{t|s}^2 / sigma_t^2

    `eta = 0` is deterministic and solves the probability-flow ODE to first order; `eta = 1` is `ddpm`.

    Args: eta: finite, at least 0, and small enough that `v <= sigma_s^2`.  Raises: ValueError otherwise.
    Source: Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16.
    """
    _check_level("eta", eta)

    def kernel(x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        var = eta**2 * posterior_variance(schedule, t, s)
        rest = schedule.sigma(s) ** 2 - var
        if bool(rest < -1e-12):
            raise ValueError(f"eta must be smaller for a step from {float(t):.4g} to {float(s):.4g}, got {eta}")
        x0, eps = denoiser(x, t)
        return Gaussian(schedule.alpha(s) * x0 + rest.clamp_min(0).sqrt() * eps, var)

    return kernel


def reverse_sde(denoiser: Denoiser, schedule: Schedule, rho: float = 1.0) -> Kernel:
    """One Euler-Maruyama step of the reverse SDE whose noise is free.  [eq-reverse-sde]

        dx = -beta / 2 (x + (1 + rho^2) score) dt + rho sqrt(beta) dW     (time running backwards)

    Every `rho` has the same marginals in the limit of small steps: 0 is the probability-flow ODE, 1 Song's SDE.

    Args: rho: finite, at least 0.  Raises: ValueError otherwise.
    Source: Song et al. 2021 (arXiv 2011.13456), eq. 6 and 13; Zhang & Chen 2022 (arXiv 2204.13902).
    """
    _check_level("rho", rho)

    def kernel(x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        step = schedule.beta(t) * (as_time(t) - s)
        score = denoiser(x, t).score(schedule.sigma(t))
        return Gaussian(x + step / 2 * (x + (1 + rho**2) * score), rho**2 * step)

    return kernel


def heun(denoiser: Denoiser, schedule: Schedule) -> Kernel:
    """Heun's second-order step of the probability-flow ODE `d(x / alpha) / d(sigma / alpha) = eps`.  [eq-heun]

    A DDIM step to `x_s'`, then half the change of eps along it; two evaluations, one in a step to `sigma = 0`.
    Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 1, in variance-preserving variables.
    """
    def kernel(x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
        x0, eps = denoiser(x, t)
        first = alpha_s * x0 + sigma_s * eps
        if sigma_s == 0:
            return Gaussian(first, torch.zeros(()))
        change = denoiser(first, s).eps - eps
        span = sigma_s - schedule.sigma(t) * alpha_s / schedule.alpha(t)
        return Gaussian(first + span / 2 * change, torch.zeros(()))

    return kernel


class dpmpp_2m:  # noqa: N801 - a kernel like the others, made by calling its name
    """DPM-Solver++(2M): second order with one evaluation a step, by remembering the last x0.  [eq-dpmpp-2m]

        x_s = (sigma_s / sigma_t) x + alpha_s (1 - e^{-h}) D,     D = x0 + (h / h_last) (x0 - x0_last) / 2

    with h the step in `log(alpha / sigma)`. The first step, and one to `sigma = 0`, are DDIM steps. The memory
    belongs to one run: `sample` calls `start()`, which returns a kernel with an empty memory. Called directly, it is
    a first step.  Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule):
        self.denoiser, self.schedule = denoiser, schedule

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """A first step, without memory: DDIM."""
        return self.start()(x, t, s)

    def start(self) -> Kernel:
        """A kernel for one run."""
        schedule, last = self.schedule, None

        def kernel(x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
            nonlocal last
            x0, h = self.denoiser(x, t).x0, (schedule.log_snr(s) - schedule.log_snr(t)) / 2
            blend = x0
            if last is not None and bool(torch.isfinite(h)):
                blend = x0 + h / last[1] / 2 * (x0 - last[0])
            last = (x0, h)
            mean = schedule.sigma(s) / schedule.sigma(t) * x - schedule.alpha(s) * torch.expm1(-h) * blend
            return Gaussian(mean, torch.zeros(()))

        return kernel


def shift(kernel: Kernel, grad: Gradient, gamma: float, at: str = "x", time: str | None = None) -> Kernel:
    """Guidance as a shift of the mean: `mean + gamma var grad`.  [eq-mean-shift]

    Unlike `tilt` it works on a step, and dies where the step has no variance.

    Args: grad: `grad(x, t)`;  gamma: finite;  at: where the gradient is taken, "x" (at x_t) or "mu" (at the mean, the
    original paper);  time: with which noise level, "t" or "s" (default "t" at x, "s" at mu, where the points belong).
    Raises: ValueError otherwise.  Source: Dhariwal & Nichol 2021 (arXiv 2105.05233), algorithm 1.
    """
    if at not in ("x", "mu"):
        raise ValueError(f'at must be "x" or "mu", got {at!r}')
    if time not in (None, "t", "s"):
        raise ValueError(f'time must be "t" or "s", got {time!r}')
    if not math.isfinite(gamma):
        raise ValueError(f"gamma must be finite, got {gamma}")
    if hasattr(kernel, "start"):
        raise ValueError("kernel must have no memory (dpmpp_2m has): it adds no noise, a shift would do nothing; tilt")
    time = time or {"x": "t", "mu": "s"}[at]

    def shifted(x: Tensor, t: Tensor, s: Tensor) -> Step:
        step = kernel(x, t, s)
        g = grad(x if at == "x" else step.mean, t if time == "t" else s)
        if g.shape != x.shape:
            raise ValueError(f"grad must return the shape of x, {tuple(x.shape)}, got {tuple(g.shape)}")
        return step.tilted(gamma * g)

    return shifted


def one_step_mean(x: Tensor, score: Tensor, schedule: Schedule, t: float | Tensor, s: float | Tensor) -> Tensor:
    """Tweedie's formula for one step, exact however long it is.  [eq-one-step-tweedie]

        E[x_s | x_t] = (x_t + sigma_{t|s}^2 grad log p_t(x_t)) / alpha_{t|s}

    With the score of p_t(x | y) it is E[x_s | x_t, y].  Args: x, score: (batch, *data).  Returns: the same shape.
    Source: Efron 2011 (doi 10.1198/jasa.2011.tm11181), applied to x_t = alpha_{t|s} x_s + sigma_{t|s} eps.
    """
    alpha_ts, sigma_ts = schedule.transition(t, s)
    return (x + sigma_ts**2 * score) / alpha_ts


def exact(mixture: GaussianMixture, schedule: Schedule, label: int | None = None) -> Kernel:
    """The true reverse kernel of a mixture, `p(x_s | x_t)` or `p(x_s | x_t, label)`: no step is too long.

    [eq-exact-reverse]  The second is the first times `p(label | x_s) / p(label | x_t)`.  [eq-bayes-step]
    Raises: ValueError if the label is not a class.
    """
    clean = mixture if label is None else mixture.given(label)

    def kernel(x: Tensor, t: Tensor, s: Tensor) -> ReverseStep:
        return clean.reverse(x, schedule, t, s)

    return kernel


def hessian(mixture: GaussianMixture, schedule: Schedule, label: int | None = None) -> Kernel:
    """The Gaussian with the true mean and covariance of the reverse kernel, from score and Hessian.

        mean = `one_step_mean`
        cov  = sigma_{t|s}^2 / alpha_{t|s}^2 (I + sigma_{t|s}^2 grad grad log p_t)          [eq-second-order]

    Both are Tweedie's formulas for one step, exact for any step length; only the Gaussian shape is an approximation.
    Raises: ValueError if the label is not a class.
    """
    clean = mixture if label is None else mixture.given(label)

    def kernel(x: Tensor, t: Tensor, s: Tensor) -> FullGaussian:
        alpha_ts, sigma_ts = schedule.transition(t, s)
        noisy = clean.noised(schedule.alpha(t), schedule.sigma(t))
        mean = one_step_mean(x, noisy.score(x), schedule, t, s)
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return FullGaussian(mean, (sigma_ts / alpha_ts) ** 2 * (identity + sigma_ts**2 * noisy.hessian(x)))

    return kernel


def _check_level(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
