"""What the letters of chapter 03's equations stand for, at other points and times than the page's."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from difflesson import kernels, likelihood
from difflesson.schedule import cosine, vp_linear
from tests.oracles.mixtures import FOUR, random_mixture, single
from tests.readings.common import F64, gaussian_kl, normal_nodes
from tools.formula import Reading, law, reads

MIXTURE, SPACE, SCHEDULE = FOUR.mixture(), random_mixture(3, [0, 1, 1]), vp_linear(0.3, 8.0)
T, S, R = (torch.tensor(time, dtype=F64) for time in (0.55, 0.35, 0.2))
ALPHA, SIGMA = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
X_0 = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]], dtype=F64)
EPS = torch.tensor([[0.3, -1.2], [0.8, 0.5], [-0.4, 1.7]], dtype=F64)
X_T = ALPHA * X_0 + SIGMA * EPS
POINT = torch.tensor([[0.6, -0.4, 0.9]], dtype=F64)  # in three dimensions: there d, d^2, 2 / d and d / 2 differ
BEST = MIXTURE.denoiser(SCHEDULE)(X_T, T)
IDENTITY = torch.eye(2, dtype=F64)


def snr(time: Tensor) -> Tensor:
    return (SCHEDULE.alpha(time) / SCHEDULE.sigma(time)) ** 2


LEVELS = {
    r"\alpha_t": ALPHA, r"\sigma_t": SIGMA, r"\alpha_s": SCHEDULE.alpha(S), r"\sigma_s": SCHEDULE.sigma(S),
    r"\mathrm{SNR}_t": snr(T), r"\mathrm{SNR}_s": snr(S), r"\mathrm{SNR}_r": snr(R),
}  # fmt: skip


def step_given_both() -> tuple[Tensor, Tensor]:
    """Mean (N, d) and variance of x_s given x_t and x_0, from the inverse of the joint covariance of a coordinate."""
    alpha_ts, sigma_ts = (float(part) for part in SCHEDULE.transition(T, S))
    var_s = float(SCHEDULE.sigma(S)) ** 2
    joint = np.linalg.inv([[var_s, alpha_ts * var_s], [alpha_ts * var_s, alpha_ts**2 * var_s + sigma_ts**2]])
    mean = SCHEDULE.alpha(S) * X_0 - joint[0, 1] / joint[0, 0] * (X_T - ALPHA * X_0)
    return mean, torch.tensor(1 / joint[0, 0], dtype=F64)


def step_in(*names: str) -> Reading:
    """The same mean and variance, to be written in these levels; the other's are unknown to it."""
    mean, variance = step_given_both()
    levels = LEVELS | {r"\alpha_{t|s}": SCHEDULE.transition(T, S)[0]}
    return Reading(
        {r"\mathbb E[x_s | x_t, x_0]": mean, r"\mathrm{Var}(x_s | x_t, x_0)": variance, "x_t": X_T, "x_0": X_0},
        {name: levels[name] for name in names}, statements=2,
    )  # fmt: skip


@reads("eq-fresh-look")
def fresh_look() -> Reading:
    return step_in(r"\alpha_t", r"\alpha_s", r"\mathrm{SNR}_t", r"\mathrm{SNR}_s", r"\mathrm{SNR}_r")


@reads("eq-joint-look")
def joint_look() -> Reading:
    return step_in(r"\alpha_t", r"\alpha_s", r"\sigma_t", r"\sigma_s", r"\alpha_{t|s}")


@reads("eq-price-of-a-look")
def price() -> Reading:
    mean, variance = step_given_both()
    model = kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE)(X_T, T, S)
    cov = (variance * IDENTITY).expand(3, 2, 2)
    return Reading(
        {r"q(x_s | x_t, x_0)": law(mean, cov), "p(x_s | x_t)": law(model.mean, cov), r"\mathrm{KL}": gaussian_kl,
         "x_0": X_0, r"\hat x_0": BEST.x0},
        LEVELS | {"x_t": X_T},
        equivalent={
            r"L } ( [q ( x _ s | x _ t , x _ 0 ) \| p ( x _ s | x _ t ) -> p ( x _ s | x _ t ) \| q ( x _ s | x _ t , "
            r"x _ 0 )] ) = \frac": "with equal variances the divergence is the same both ways"
        },
    )  # fmt: skip


def by_level(levels: int, weights: Tensor):
    """The operator E over the noise, for values at several levels one after the other, or at one."""

    def average(values: Tensor) -> Tensor:
        return (values.reshape(-1, len(weights)) * weights).sum(1)

    return average


@reads("eq-bound-terms")
def bound() -> Reading:
    times, x = torch.tensor([0.9, 0.6, 0.3, 0.1], dtype=F64), POINT
    noise, weights = normal_nodes(3, 10)
    guesses = [SPACE.denoiser(SCHEDULE)(SCHEDULE.alpha(t) * x + SCHEDULE.sigma(t) * noise, t).x0 for t in times]
    last = Normal(SCHEDULE.alpha(times[0]) * x, SCHEDULE.sigma(times[0]))
    total = likelihood.variational_bound(SPACE.denoiser(SCHEDULE), SCHEDULE, x, times, order=10).total
    return Reading(
        {"B(x)": total, "d": 3, r"\pi": math.pi, r"\mathrm{SNR}_\text{end}": snr(times[-1]), "x": x,
         r"\mathbb E": by_level(3, weights), r"\hat x_0(x_\text{end})": guesses[-1],
         r"\hat x_0(x_t)": torch.cat(guesses[:-1]),
         r"\mathrm{KL}(q(x_\text{start} | x) \| \mathcal N(0, I))": kl_divergence(last, Normal(0.0 * x, 1.0)).sum(1),
         r"\mathrm{SNR}_s": snr(times[1:]), r"\mathrm{SNR}_t": snr(times[:-1]),
         r"\sum_{t \to s}": lambda values: values.reshape(-1).sum()},
    )  # fmt: skip


def along_the_levels(times: Tensor, schedule, data, x: Tensor, order: int) -> dict[str, object]:
    """Noises, their best guesses at one clean point, and the levels, one level after the other."""
    noise, weights = normal_nodes(data.dim, order)
    guesses = [data.denoiser(schedule)(schedule.alpha(t) * x + schedule.sigma(t) * noise, t).eps for t in times]
    log_snr = schedule.log_snr(times)
    step = torch.from_numpy(np.gradient(log_snr.numpy()))
    step[0], step[-1] = step[0] / 2, step[-1] / 2
    return {
        r"\varepsilon": noise.repeat(len(times), 1), r"\hat\varepsilon": torch.cat(guesses),
        r"\mathbb E": by_level(len(times), weights), r"d\lambda": step.abs().mean(),
        r"\int": lambda values: (values.reshape(-1) * step.abs() / step.abs().mean()).sum(),
    }  # fmt: skip


@reads("eq-error-area")
def area() -> Reading:
    schedule, x = cosine(16.0, -16.0), POINT
    times = schedule.time(torch.linspace(-16, 16, 65, dtype=F64))
    letters = along_the_levels(times, schedule, SPACE, x, 14)
    letters |= {r"\log p(x)": SPACE.log_prob(x), "d": 3, r"\pi": math.pi, "e": math.e,
                r"\alpha": schedule.alpha(times),
                r"\int_{-\infty}^{\infty}": letters.pop(r"\int")}  # fmt: skip
    return Reading(letters, {r"\sigma": schedule.sigma(times)}, tolerance=1e-4)


@reads("eq-clock-estimate")
def clock() -> Reading:
    times = torch.linspace(0.02, 1, 400, dtype=F64)
    letters = along_the_levels(times, SCHEDULE, MIXTURE, X_0[:1], 16)
    count = len(letters[r"\varepsilon"]) // 400
    leaf = times.clone().requires_grad_()
    rate = torch.autograd.grad(SCHEDULE.log_snr(leaf).sum(), leaf)[0] * 0.98  # of a time that runs from 0 to 1
    share = torch.full((400,), 1 / 399, dtype=F64)
    share[0] = share[-1] = 1 / 798
    letters |= {
        r"\frac{d\lambda_t}{dt}": rate.repeat_interleave(count),
        r"\mathbb E_{t, \varepsilon}": lambda values: (letters[r"\mathbb E"](values) * share).sum(),
    }
    return Reading(letters, tolerance=2e-2)


@reads("eq-loss-weights")
def losses() -> Reading:
    target = -EPS / SIGMA
    return Reading(
        {"x_0": X_0, r"\hat x_0": BEST.x0, r"\varepsilon": EPS, r"\hat\varepsilon": BEST.eps, "e": math.e,
         r"\lambda": SCHEDULE.log_snr(T), "v": ALPHA * EPS - SIGMA * X_0, r"\hat v": ALPHA * BEST.eps - SIGMA * BEST.x0,
         "s": target, r"\hat s": MIXTURE.noised(ALPHA, SIGMA).score(X_T)},
        {"x_t": X_T}, statements=3,
    )  # fmt: skip


@reads("eq-two-forms")
def two_forms() -> Reading:
    """At one clean point, with the linear denoiser of a Gaussian: all logarithms are quadratic, so few nodes do."""
    noise, weights = normal_nodes(9, 3)
    first, second, third = noise.chunk(3, 1)
    x_0, data = POINT, single([0.4, -0.3, 0.1], [[0.7, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.4]])
    alpha_sr, sigma_sr = SCHEDULE.transition(S, R)
    alpha_ts, sigma_ts = SCHEDULE.transition(T, S)
    x_r = SCHEDULE.alpha(R) * x_0 + SCHEDULE.sigma(R) * first
    x_s = alpha_sr * x_r + sigma_sr * second
    x_t = alpha_ts * x_s + sigma_ts * third
    model = kernels.ddpm(data.denoiser(SCHEDULE), SCHEDULE)(x_t, T, S)
    return Reading(
        {r"\mathbb E": lambda values: (weights[:, None, None] * values).sum(0, keepdim=True), "d": 3, "x_0": x_0,
         "q(x_s | x_r)": Normal(alpha_sr * x_r, sigma_sr).log_prob(x_s).sum(1).exp(),
         "p(x_s | x_t)": Normal(model.mean, model.var.sqrt()).log_prob(x_s).sum(1).exp(),
         r"\hat x_0(x_t)": data.denoiser(SCHEDULE)(x_t, T).x0},
        LEVELS,
    )  # fmt: skip


@reads("eq-least-error")
def least() -> Reading:
    """The error by averages over clean points and noises; the curvature by averages over a grid of noisy points."""
    axis = torch.linspace(-8, 8, 321, dtype=F64)
    x = torch.cartesian_prod(axis, axis)
    noised = MIXTURE.noised(ALPHA, SIGMA)
    chance = noised.log_prob(x).softmax(0)
    clouds = MIXTURE.reverse(x, SCHEDULE, T, 0.0).cov.diagonal(dim1=1, dim2=2).sum(1)
    return Reading(
        {r"\mathbb E \|x_0 - \hat x_0\|^2": chance @ clouds, "d": 2,
         r"\mathbb E[ \mathrm{tr} \nabla \nabla^\top \log p_t(x_t) ]":
             chance @ noised.hessian(x).diagonal(dim1=1, dim2=2).sum(1)},
        LEVELS, tolerance=1e-6,
    )  # fmt: skip


@reads("eq-wider-look")
def wider() -> Reading:
    """At three pairs of a clean point and its best guess; c of the least cost by bisection."""
    variance = step_given_both()[1]
    x_0 = POINT * torch.tensor([[1.0], [-0.7], [1.6]], dtype=F64)
    x_t = ALPHA * x_0 + SIGMA * POINT.flip(1)
    alpha_ts, sigma_ts = SCHEDULE.transition(T, S)
    mean = variance * (SCHEDULE.alpha(S) * x_0 / SCHEDULE.sigma(S) ** 2 + alpha_ts * x_t / sigma_ts**2)
    guess = SPACE.denoiser(SCHEDULE)(x_t, T).x0
    model = kernels.ddpm(SPACE.denoiser(SCHEDULE), SCHEDULE)(x_t, T, S)
    error, gained, c = (x_0 - guess).square().sum(1), snr(S) - snr(T), 0.6
    one = torch.eye(3, dtype=F64).expand(3, 3, 3)
    cost = gaussian_kl(law(mean, variance * one), law(model.mean, variance / c * one))
    low, high = torch.full((3,), 1e-6, dtype=F64), torch.ones(3, dtype=F64)
    for _ in range(200):  # where the cost has no slope in c
        middle = (low + high) / 2
        rising = 1.5 - 1.5 / middle + gained * error / 2 > 0
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    return Reading(
        {r"\mathrm{KL}_c": cost, "c": c, r"c^\ast": low, "d": 3, r"\mathbb E \|x_0 - \hat x_0\|^2": error, "x_0": x_0,
         r"\hat x_0": guess},
        LEVELS, statements=2,
    )  # fmt: skip


@reads("eq-learned-clock")
def learned() -> Reading:
    omega = torch.tensor([-3.0, 0.4, 2.2], dtype=F64)
    times = cosine(8.0, -8.0).time(-omega)
    ends = cosine(8.0, -8.0)
    return Reading(
        {r"\mathrm{SNR}(t)": (ends.alpha(times) / ends.sigma(times)) ** 2, r"\omega(t)": omega, "e": math.e,
         r"\alpha_t": ends.alpha(times), r"\sigma_t": ends.sigma(times)},
        statements=3,
    )  # fmt: skip
