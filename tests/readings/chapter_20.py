"""What the letters of chapter 20's equations stand for: other levels, mixtures and numbers of steps than the page's."""

import torch

from difflesson import pipelines
from difflesson.mixture import GaussianMixture
from difflesson.ode import probability_flow, solve
from difflesson.schedule import vp_linear
from tests.readings.common import F64
from tools.formula import Reading, reads

MIXTURE = GaussianMixture([0.2, 0.5, 0.3], torch.tensor([[-1.1], [0.4], [2.3]], dtype=F64), [[[0.3]], [[0.1]], [[0.6]]])
SCHEDULE = vp_linear()
X = torch.tensor([[-1.3], [0.2], [0.9]], dtype=F64)


def share(x, t: float) -> torch.Tensor:
    """F_t by summing the density: the trapezium rule from far left."""
    noisy, shares = MIXTURE.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t)), []
    for end in x[:, 0].tolist():
        axis = torch.linspace(-12.0, end, 40_001, dtype=F64)
        shares.append(torch.trapezoid(noisy.log_prob(axis[:, None]).exp(), axis))
    return torch.stack(shares)


@reads("eq-noise-level")
def noise_level() -> Reading:
    """The table is a product of what each step keeps; the picture is made from its parts."""
    betas = torch.tensor([0.1, 0.35, 0.6], dtype=F64)
    kept = torch.cumprod(1 - betas, 0)
    angle = torch.acos(kept.sqrt())
    clean, eps = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    letters = {
        r"\bar\alpha_k": kept, r"\alpha_t": torch.cos(angle), r"\sigma_t": torch.sin(angle),
        r"\sigma_{\mathrm{edm}}": torch.tan(angle), r"x_{\mathrm{edm}}": clean + torch.tan(angle)[:, None] * eps,
        "x_t": torch.cos(angle)[:, None] * clean + torch.sin(angle)[:, None] * eps,
    }  # fmt: skip
    return Reading(letters, statements=3)


@reads("eq-quantile-flow")
def quantile_flow() -> Reading:
    """Points at t, followed by the probability flow to s and to the data."""
    flow = probability_flow(MIXTURE.denoiser(SCHEDULE), SCHEDULE)
    at_s, at_0 = (solve(flow, X, 0.6, end, tolerance=1e-9) for end in (0.25, 1e-9))
    letters = {
        "F_s(x_s)": share(at_s, 0.25), "F_t(x_t)": share(X, 0.6), "x_0": at_0[:, 0],
        "F_0^{-1}": lambda chances: pipelines.quantile(MIXTURE, chances.reshape(-1)).reshape(chances.shape),
    }  # fmt: skip
    return Reading(letters, {"F_s(x_t)": share(X, 0.25), "F_t(x_s)": share(at_s, 0.6)}, statements=2, tolerance=1e-5)


@reads("eq-two-errors")
def two_errors() -> Reading:
    """Any ends and any chances: what is between the two brackets is there twice."""
    came, z = torch.tensor([0.3, -0.9, 1.7], dtype=F64), torch.tensor([-0.4, 0.2, 1.1], dtype=F64)
    letters = {
        r"\hat x_0": came, r"\Phi(z)": torch.special.ndtr(z), "F_T(x_T)": share(X, 1.0),
        "F_0^{-1}": lambda chances: pipelines.quantile(MIXTURE, chances.reshape(-1)).reshape(chances.shape),
    }  # fmt: skip
    return Reading(letters)


@reads("eq-stride-share")
def stride_share() -> Reading:
    """Walk n steps of the largest whole stride that fits n times into T, and see what is left."""
    walks = [(60, 1000), (300, 1000), (7, 100), (64, 4000)]
    strides = [max(k for k in range(1, T + 1) if k * n <= T) for n, T in walks]
    left = [(T - sum(stride for _ in range(n))) / T for (n, T), stride in zip(walks, strides, strict=True)]
    n, T = torch.tensor(walks, dtype=F64).T
    letters = {"r_n": torch.tensor(left, dtype=F64), "n": n, "T": T,
               r"\lfloor \frac{T}{n} \rfloor": torch.tensor(strides, dtype=F64)}  # fmt: skip
    return Reading(letters)


@reads("eq-wrong-gamma")
def wrong_gamma() -> Reading:
    uncond, cond = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    letters = {
        r"\hat\varepsilon_u": uncond,
        r"\hat\varepsilon_c": cond,
        r"\gamma": torch.tensor([2.6, -0.7, 0.4], dtype=F64),
    }
    return Reading(letters, statements=2)


@reads("eq-one-step")
def one_step() -> Reading:
    """From s to t in many small steps, as a table has them: amplitudes multiply, each step adds its noise."""
    betas = torch.linspace(0.001, 0.05, 60, dtype=F64)
    amplitude, variance, levels = torch.ones((), dtype=F64), torch.zeros((), dtype=F64), []
    for beta in betas:  # the level after each step
        amplitude, variance = amplitude * (1 - beta).sqrt(), variance * (1 - beta) + beta
        levels.append((amplitude, variance.sqrt()))
    (alpha_s, sigma_s), (alpha_t, sigma_t) = levels[19], levels[49]
    ratio, added = torch.ones((), dtype=F64), torch.zeros((), dtype=F64)
    for beta in betas[20:50]:
        ratio, added = ratio * (1 - beta).sqrt(), added * (1 - beta) + beta
    x_s, eps = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(3), dtype=F64)
    letters = {
        "x_t": ratio * x_s + added.sqrt() * eps, "x_s": x_s, r"\varepsilon": eps, r"\alpha_{t|s}": ratio,
        r"\sigma_{t|s}": added.sqrt(), r"\alpha_t": alpha_t, r"\alpha_s": alpha_s, r"\sigma_t": sigma_t,
        r"\sigma_s": sigma_s,
    }  # fmt: skip
    return Reading(letters, statements=3)
