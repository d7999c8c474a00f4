"""Noise schedules: how much of the signal is left at time t, and how fast it goes.

A variance-preserving schedule is one increasing function, the integrated noise rate `B(t)`, with

    x_t = alpha x_0 + sigma eps,     alpha = exp(-B / 2),     sigma^2 = 1 - exp(-B)      [eq-forward-marginal]

Everything else follows: `log_snr = -log(expm1(B))`, and `B' = beta` is the rate of the forward SDE
`dx = -beta / 2 x dt + sqrt(beta) dW`. Keeping `B` rather than `alpha` loses no digits near `t = 0`, where `sigma`
would otherwise be a difference of nearly equal numbers.

Times run over [0, 1]: 0 is data, 1 is (nearly) noise. A schedule accepts Python floats and tensors of any shape and
answers with tensors; a float is treated as float64 on the CPU, which mixes with tensors of any dtype and device
without promoting or synchronising them.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from difflesson.checks import check_shape, shown


def as_time(t: float | Tensor, name: str = "t") -> Tensor:
    """Turn a time into a tensor and check that it lies in [0, 1].

    Args: t: float, or tensor of any shape.  Returns: a floating tensor of the same shape.
    Raises: ValueError if a time is outside [0, 1] or NaN, or a tensor is complex or of truth values. The values of
    tensors on an accelerator are not checked: looking at them would make the host wait.
    """
    if not isinstance(t, Tensor):
        if isinstance(t, bool | complex):
            raise ValueError(f"{name} must be a real number or a tensor of such, got {t}")
        t = torch.as_tensor(t, dtype=torch.float64)
    if not t.is_floating_point():
        if t.is_complex() or t.dtype == torch.bool:
            raise ValueError(f"{name} must be a real number or a tensor of such, got {t.dtype}")
        t = t.double()
    # One time, as a sampler has, is looked at as a number: that takes a hundredth of what comparing tensors does.
    if t.device.type == "cpu" and not (bool(((t >= 0) & (t <= 1)).all()) if t.dim() else 0 <= t.item() <= 1):
        raise ValueError(f"{name} must lie in [0, 1] (0 is data, 1 is noise), got {shown(t)}")
    return t


def as_log_snr(log_snr: float | Tensor) -> Tensor:
    """Turn a log signal-to-noise ratio, infinite ones included, into a float64 tensor.

    Raises: ValueError if one is NaN (on the CPU, see `as_time`).
    """
    log_snr = torch.as_tensor(log_snr, dtype=torch.float64)
    if log_snr.device.type == "cpu" and bool(log_snr.isnan().any()):
        raise ValueError(f"log_snr must be a number or infinite, got {shown(log_snr)}")
    return log_snr


def noisy(sigma: Tensor, t: float | Tensor) -> Tensor:
    """`sigma` at time t, to divide by.

    Raises: ValueError if it is 0 somewhere (on the CPU, see `as_time`): pure data has no noise to divide by.
    """
    if sigma.device.type == "cpu" and not (bool((sigma > 0).all()) if sigma.dim() else sigma.item() > 0):
        t = shown(torch.as_tensor(t))
        raise ValueError(f"t must have sigma_t > 0, pure data has no noise to divide by; got t={t}")
    return sigma


def expand_as(coefficient: Tensor, x: Tensor, name: str = "t") -> Tensor:
    """Shape a per-sample coefficient so that it multiplies `x`: () stays (), (batch,) becomes (batch, 1, ...).

    Raises: ValueError if the coefficient, or what it comes from, `name`, has another shape, or x is not of floats.
    """
    check_shape(name, coefficient, (), x.shape[:1])
    if not x.is_floating_point():
        raise ValueError(f"x must be floats, a coefficient would be rounded to {x.dtype}")
    if coefficient.dim() == 0:
        return coefficient
    return coefficient.to(x).reshape(-1, *[1] * (x.dim() - 1))


def levels_at(schedule: "Schedule", x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at t, () or (batch,), shaped to multiply x."""
    return expand_as(schedule.alpha(as_time(t)), x), expand_as(schedule.sigma(as_time(t)), x)


class Schedule(ABC):
    """A variance-preserving schedule, given by its integrated noise rate; see the module's docstring."""

    @abstractmethod
    def integrated_beta(self, t: float | Tensor) -> Tensor:
        """`B(t) = -2 log alpha`, an integral of `beta`, so increasing; at least 0, and above 0 where `alpha(0) < 1`."""

    @abstractmethod
    def beta(self, t: float | Tensor) -> Tensor:
        """`beta(t) = B'(t)`, the noise rate of the forward SDE, per unit of time."""

    @abstractmethod
    def time(self, log_snr: float | Tensor) -> Tensor:
        """The time at which the schedule has this log signal-to-noise ratio (inverse of `log_snr`).

        A ratio that the schedule never reaches, an infinite one included, gives the nearer end, 0 or 1.
        Raises: ValueError if it is NaN.
        """

    def alpha(self, t: float | Tensor) -> Tensor:
        """Factor of the signal, `exp(-B / 2)`, in (0, 1]; same shape as `t`."""
        return torch.exp(-self.integrated_beta(t) / 2)

    def sigma(self, t: float | Tensor) -> Tensor:
        """Standard deviation of the noise, `sqrt(1 - exp(-B))`, in [0, 1); same shape as `t`."""
        return torch.sqrt(-torch.expm1(-self.integrated_beta(t)))

    def log_snr(self, t: float | Tensor) -> Tensor:
        """`log(alpha^2 / sigma^2)`, decreasing in t; infinite where `sigma` is 0."""
        b = self.integrated_beta(t)
        return -b - torch.log(-torch.expm1(-b))

    def transition(self, t: float | Tensor, s: float | Tensor) -> tuple[Tensor, Tensor]:
        """`(alpha_{t|s}, sigma_{t|s})` of `x_t = alpha_{t|s} x_s + sigma_{t|s} eps`.  [eq-forward-transition]

        `alpha_{t|s} = alpha_t / alpha_s` and `sigma_{t|s}^2 = 1 - alpha_{t|s}^2`.
        Raises: ValueError unless `0 <= s <= t <= 1`.
        """
        t, s = as_time(t), as_time(s, "s")
        if t.device.type == "cpu" and s.device.type == "cpu" and not bool((s <= t).all()):
            raise ValueError(f"s must not exceed t (a step runs from t back to s), got s={shown(s)}, t={shown(t)}")
        b = self.integrated_beta(t) - self.integrated_beta(s)
        return torch.exp(-b / 2), torch.sqrt(-torch.expm1(-b))

    def add_noise(self, x0: Tensor, eps: Tensor, t: float | Tensor) -> Tensor:
        """`x_t = alpha x_0 + sigma eps`.  [eq-forward-marginal]

        Args: x0, eps: (batch, *data);  t: () or (batch,).  Returns: (batch, *data).
        Raises: ValueError if the shapes are not these, x0 or eps is not of floats, or t is outside [0, 1].
        """
        t = as_time(t)
        check_shape("eps", eps, x0.shape)
        for name, value in (("x0", x0), ("eps", eps)):
            if not value.is_floating_point():
                raise ValueError(f"{name} must be floats, got {value.dtype}")
        return expand_as(self.alpha(t), x0) * x0 + expand_as(self.sigma(t), x0) * eps


class LinearSchedule(Schedule):
    """Noise rate linear in time; make it with `vp_linear`."""

    def __init__(self, beta_min: float, beta_max: float):
        if not (0 < beta_min <= beta_max < math.inf):
            raise ValueError(f"beta_min, beta_max must satisfy 0 < beta_min <= beta_max, got {beta_min}, {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def __repr__(self):
        return f"vp_linear({self.beta_min}, {self.beta_max})"

    def integrated_beta(self, t):
        t = as_time(t)
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)

    def beta(self, t):
        return self.beta_min + as_time(t) * (self.beta_max - self.beta_min)

    def time(self, log_snr):
        slope = self.beta_max - self.beta_min
        b = -torch.nn.functional.logsigmoid(as_log_snr(log_snr))
        b = b.clamp_max(2 * self.beta_min + slope)  # twice B(1), of which the root below is above 1; infinity has none
        # The stable root of slope t^2 / 2 + beta_min t = b; it is also right for slope = 0.
        return (2 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * b))).clamp(0, 1)


class CosineSchedule(Schedule):
    """Angle linear in time, cut off at two signal-to-noise ratios; make it with `cosine`."""

    def __init__(self, log_snr_max: float, log_snr_min: float):
        if not (-80 <= log_snr_min < log_snr_max <= 700):  # beyond, float32 has neither `exp(B)` nor float64 the angle
            raise ValueError(
                f"log_snr_max must exceed log_snr_min, both in [-80, 700], got {log_snr_max}, {log_snr_min}"
            )
        self.log_snr_max, self.log_snr_min = log_snr_max, log_snr_min
        self.start = math.atan(math.exp(-log_snr_max / 2))
        self.span = math.atan(math.exp(-log_snr_min / 2)) - self.start
        self.short = math.atan(math.exp(log_snr_min / 2))  # of a right angle, at t = 1

    def __repr__(self):
        return f"cosine({self.log_snr_max}, {self.log_snr_min})"

    def _tan(self, t):
        """`sigma / alpha`, the tangent of the angle."""
        t = as_time(t)
        angle = self.start + self.span * t
        if self.short > 1e-7:
            return torch.tan(angle)
        # In float32 the angle may be rounded to a right one or beyond; then from what it is short of one.
        return torch.where(angle < math.pi / 2, torch.tan(angle), 1 / torch.tan(self.short + self.span * (1 - t)))

    def integrated_beta(self, t):
        # alpha is the cosine of the angle; 1 / cos^2 = 1 + tan^2 keeps the digits that a cosine near 1 has lost.
        return torch.log1p(self._tan(t) ** 2)

    def beta(self, t):
        return 2 * self.span * self._tan(t)

    def sigma(self, t):
        return torch.sin(self.start + self.span * as_time(t))

    def log_snr(self, t):
        return -2 * torch.log(self._tan(t))

    def time(self, log_snr):
        angle = torch.atan(torch.exp(-as_log_snr(log_snr) / 2))
        return ((angle - self.start) / self.span).clamp(0, 1)


class TableSchedule(Schedule):
    """A table of discrete noise rates, joined by constant rates in between; make it with `from_betas`."""

    def __init__(self, betas: Tensor):
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.dim() != 1 or len(betas) == 0 or not bool(((betas > 0) & (betas < 1)).all()):
            got = f"{tuple(betas.shape)}: {shown(betas)}"
            raise ValueError(f"betas must be a non-empty 1-D table of numbers in (0, 1), got {got}")
        rates = -torch.log1p(-betas)  # (steps,): what each discrete step adds to B
        self.table = torch.cat([rates.new_zeros(1), rates.cumsum(0)])  # (steps + 1,)

    def __repr__(self):
        return f"from_betas({self.steps} steps)"

    @property
    def steps(self) -> int:
        """Number of discrete steps; step k of the table ends at time k / steps."""
        return len(self.table) - 1

    def _cell(self, t):
        """Index of the interval that ends at or after `t`, and the position in it, in units of one step.

        A node belongs to the interval before it, the one that a reverse step from there crosses, also where
        rounding puts `t * steps` a little beyond the node.
        """
        position = as_time(t).double() * self.steps
        index = (position - 1e-9).ceil().long().sub(1).clamp(0, self.steps - 1)
        return index, position - index

    def integrated_beta(self, t):
        index, rest = self._cell(t)
        table = self.table.to(index.device)
        return torch.lerp(table[index], table[index + 1], rest)

    def beta(self, t):
        index, _ = self._cell(t)
        table = self.table.to(index.device)
        return (table[index + 1] - table[index]) * self.steps

    def time(self, log_snr):
        b = -torch.nn.functional.logsigmoid(as_log_snr(log_snr))
        table = self.table.to(b.device)
        index = (torch.searchsorted(table, b, right=True) - 1).clamp(0, self.steps - 1)
        low, high = table[index], table[index + 1]
        return ((index + (b - low) / (high - low)) / self.steps).clamp(0, 1)


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> LinearSchedule:
    """`beta(t) = beta_min + t (beta_max - beta_min)`: the continuous limit of DDPM's linear table.  [eq-vp-linear]

    Args: beta_min, beta_max: rates per unit of time, `0 < beta_min <= beta_max`.
    Raises: ValueError otherwise.  Source: Song et al. 2021 (arXiv 2011.13456), appendix C.
    """
    return LinearSchedule(beta_min, beta_max)


def cosine(log_snr_max: float = 20.0, log_snr_min: float = -20.0) -> CosineSchedule:
    """`log_snr(t) = -2 log tan(a t + b)`, that is `alpha = cos(a t + b)`, between two cut-offs.  [eq-cosine]

    Args: log_snr_max: value at t = 0;  log_snr_min: value at t = 1.
    Raises: ValueError unless `-80 <= log_snr_min < log_snr_max <= 700`.
    Source: Ho & Salimans 2022 (arXiv 2207.12598); the idea is Nichol & Dhariwal's (arXiv 2102.09672).
    """
    return CosineSchedule(log_snr_max, log_snr_min)


def from_betas(betas: Tensor) -> TableSchedule:
    """The schedule of a discrete DDPM: `alpha(k / T)^2 = prod_{j <= k} (1 - beta_j)` exactly.  [eq-table]

    Args: betas: (T,) noise variances in (0, 1), first step first.  Raises: ValueError otherwise.
    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 4. Between grid points the rate is constant.
    """
    return TableSchedule(betas)
