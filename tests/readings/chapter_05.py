"""What the letters of chapter 05's equations stand for: another mixture, schedule, points and times than the page's."""

import torch
from torch import Tensor

from difflesson import kernels, ode
from difflesson.schedule import from_betas, vp_linear
from tests.oracles.mixtures import FOUR
from tests.readings.common import F64
from tools.formula import Reading, reads

MIXTURE, SCHEDULE = FOUR.mixture(), vp_linear(0.3, 8.0)
T, S = torch.tensor([0.5, 0.3], dtype=F64)
FREE = MIXTURE.denoiser(SCHEDULE)
X = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]], dtype=F64)
LEVELS = {
    r"\alpha_t": SCHEDULE.alpha(T), r"\sigma_t": SCHEDULE.sigma(T), r"\alpha_s": SCHEDULE.alpha(S),
    r"\sigma_s": SCHEDULE.sigma(S),
}  # fmt: skip


def slope(time: Tensor) -> Tensor:
    """The gradient of log p_t at each point, (N, d), by autograd: not the package's score."""
    leaf = X.clone().requires_grad_()
    noisy = MIXTURE.noised(SCHEDULE.alpha(time), SCHEDULE.sigma(time))
    return torch.autograd.grad(noisy.log_prob(leaf).sum(), leaf)[0]


def scores() -> dict[str, Tensor]:
    return {r"\nabla \log p_t(x)": slope(T), r"\nabla \log p_s(x)": slope(S)}


@reads("eq-probability-flow")
def probability_flow() -> Reading:
    velocity = ode.probability_flow(FREE, SCHEDULE)(X, T)
    letters = {r"\frac{dx}{dt}": velocity, "x": X, r"\beta(t)": SCHEDULE.beta(T)}
    return Reading(letters | {r"\nabla \log p_t(x)": slope(T)}, {r"\nabla \log p_s(x)": slope(S)})


@reads("eq-reverse-sde")
def reverse_sde() -> Reading:
    """One short step of the package's sampler, with a drawn noise."""
    rho, dt = 0.6, -1e-3
    noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(5), dtype=F64) * (-dt) ** 0.5
    step = kernels.reverse_sde(FREE, SCHEDULE, rho)(X, T, T + dt)
    letters = {
        "dx": step.mean - X + (step.var / -dt).sqrt() * noise, "x": X, r"\beta": SCHEDULE.beta(T), r"\rho": rho,
        "dt": dt, r"d\bar w": noise, r"\nabla \log p_t(x)": slope(T),
    }  # fmt: skip
    return Reading(letters, {r"\nabla \log p_s(x)": slope(S)})


@reads("eq-correlation-clock")
def correlation_clock() -> Reading:
    """Correlations from the joint covariance of clean and noisy numbers; their rate by differences."""
    c, times, h = 0.7, torch.tensor([0.2, 0.5, 0.8], dtype=F64), 1e-5

    def correlation(t: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        clean, noisy = torch.stack([torch.full_like(alpha, c**0.5), 0 * alpha]), torch.stack([alpha * c**0.5, sigma])
        made = torch.stack([clean, noisy])
        joint = torch.einsum("ikt,jkt->tij", made, made)
        return joint[:, 0, 1] / (joint[:, 0, 0] * joint[:, 1, 1]).sqrt()

    rate = (correlation(times + h) - correlation(times - h)) / (2 * h)
    alpha, sigma = SCHEDULE.alpha(times), SCHEDULE.sigma(times)
    letters = {
        "r_t": correlation(times), r"\frac{d r_t}{dt}": rate, r"\alpha_t": alpha, "c": c,
        "V_t": torch.tensor([[[float(a**2 * c + s**2)]] for a, s in zip(alpha, sigma, strict=True)], dtype=F64),
        r"\beta": SCHEDULE.beta(times),
    }  # fmt: skip
    return Reading(letters, {r"\sigma_t": sigma}, statements=2, tolerance=1e-7)


@reads("eq-error-weights")
def error_weights() -> Reading:
    """The distance of two runs with the same dice, for Gaussian data, followed in fine steps of time."""
    rho, c, first = 1.3, 0.7, 0.9

    def believed(r: Tensor) -> Tensor:
        return 0.4 + torch.sin(5 * r)

    def rate(t: Tensor, distance: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        width = alpha**2 * c + sigma**2
        b = believed(alpha * (c / width).sqrt())
        return SCHEDULE.beta(t) / 2 * ((1 - (1 + rho**2) / width) * distance + (1 + rho**2) * alpha / width * b)

    times = torch.linspace(first, 0, 4001, dtype=F64)
    start = SCHEDULE.alpha(times[0]) ** 2 * c + SCHEDULE.sigma(times[0]) ** 2
    u_start = torch.tensor(0.8, dtype=F64)
    distance = u_start * start.sqrt()
    for t, s in zip(times[:-1], times[1:], strict=True):  # Runge-Kutta, backwards in time
        h, middle = t - s, (t + s) / 2
        k_1 = rate(t, distance)
        k_2 = rate(middle, distance + h / 2 * k_1)
        k_3 = rate(middle, distance + h / 2 * k_2)
        distance = distance + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + rate(s, distance + h * k_3))
    r_start = SCHEDULE.alpha(times[0]) * (c / start).sqrt()
    edges = torch.linspace(float(r_start), 1, 20_001, dtype=F64)
    r = (edges[1:] + edges[:-1]) / 2
    letters = {
        r"\delta": distance, "c": c, "r_T": r_start, r"\rho": rho, "u_T": u_start, "r": r, "b(r)": believed(r),
        r"\int_{r_T}^1": lambda values: values.sum(0, keepdim=True), "dr": (edges[1] - edges[0]),
    }  # fmt: skip
    return Reading(letters, {r"\alpha_t": 0.8}, tolerance=1e-6)


@reads("eq-ddim")
def ddim() -> Reading:
    eta = 0.7
    z = torch.randn(X.shape, generator=torch.Generator().manual_seed(6), dtype=F64)
    step, guess = kernels.ddim(FREE, SCHEDULE, eta)(X, T, S), FREE(X, T)
    letters = {
        "x_s": step.mean + step.var.sqrt() * z, r"\hat x_0": guess.x0, r"\hat\varepsilon": guess.eps, "z": z,
        r"\eta": eta,
    }  # fmt: skip
    return Reading(letters | LEVELS, statements=2, defines=("v",))


@reads("eq-dpmpp-2m")
def dpmpp_2m() -> Reading:
    """The second step of a run from 0.7 over T to S."""
    kernel, before = kernels.dpmpp_2m(FREE, SCHEDULE).start(), torch.tensor(0.7, dtype=F64)
    x = kernel(X, before, T).mean

    def clock(t: Tensor) -> Tensor:
        return torch.log(SCHEDULE.alpha(t) / SCHEDULE.sigma(t))

    letters = {
        "x_s": kernel(x, T, S).mean, "x_t": x, "h": clock(S) - clock(T), "h'": clock(T) - clock(before),
        r"\hat x_0": FREE(x, T).x0, r"\hat x_0'": FREE(X, before).x0,
    }  # fmt: skip
    used = {name: LEVELS[name] for name in (r"\sigma_s", r"\sigma_t", r"\alpha_s")}
    return Reading(letters | used, {r"\alpha_t": LEVELS[r"\alpha_t"]})


@reads("eq-heun")
def heun() -> Reading:
    guess = FREE(X, T)
    euler = LEVELS[r"\alpha_s"] * guess.x0 + LEVELS[r"\sigma_s"] * guess.eps
    letters = {
        "x_s": kernels.heun(FREE, SCHEDULE)(X, T, S).mean, r"\hat x_0": guess.x0, r"\hat\varepsilon": guess.eps,
        "x_s'": euler, r"\hat x_0'": FREE(euler, S).x0,
    }  # fmt: skip
    return Reading(letters | LEVELS, statements=2)


@reads("eq-table")
def table() -> Reading:
    betas = torch.tensor([0.02, 0.3, 0.1, 0.25, 0.4], dtype=F64)
    schedule, k = from_betas(betas), 3
    h = 1e-4  # the rate just before the node, from the logarithm of alpha^2
    rate = -2 * (schedule.alpha(k / 5 - 1e-9).log() - schedule.alpha(k / 5 - h).log()) / (h - 1e-9)
    letters = {
        r"\alpha_{k / T}": schedule.alpha(k / 5), r"\beta(k / T)": rate, "T": 5, r"\beta_j": betas,
        r"\beta_k": betas[k - 1], r"\prod_{j \le k}": lambda values: values[:k].prod(0, keepdim=True),
    }  # fmt: skip
    return Reading(letters, statements=2, tolerance=1e-6)


@reads("eq-flow-likelihood")
def flow_likelihood() -> Reading:
    """A Gaussian in the plane, standard at t = 1 by construction: its flow is a stretching, in closed form."""
    schedule = vp_linear(0.3, 40.0)  # alpha_1 is 4e-5
    widths, s = torch.tensor([0.4, 1.8], dtype=F64), 0.1
    edges = torch.linspace(s, 1, 4001, dtype=F64)
    times = (edges[1:] + edges[:-1]) / 2

    def spread(t: Tensor) -> Tensor:
        return schedule.alpha(t)[..., None] ** 2 * widths + schedule.sigma(t)[..., None] ** 2  # (..., 2)

    low, high = spread(torch.tensor(s, dtype=F64)), spread(torch.tensor(1.0, dtype=F64))
    x_s = torch.tensor([[0.3, -0.8]], dtype=F64)
    h = 1e-5
    velocity_slopes = ((spread(times + h).log() - spread(times - h).log()) / (4 * h)).sum(1)  # x moves with the root
    law = torch.distributions.Normal(0.0, 1.0)
    letters = {
        r"\log p_s(x_s)": torch.distributions.Normal(0.0, low.sqrt()).log_prob(x_s).sum(1),
        r"\log \mathcal N(x_1; 0, I)": law.log_prob(x_s * (high / low).sqrt()).sum(1),
        r"\int_s^1": lambda values: values.sum(0, keepdim=True), r"\nabla \cdot v(x_t, t)": velocity_slopes,
        "dt": edges[1] - edges[0],
    }  # fmt: skip
    return Reading(letters, tolerance=1e-5)


@reads("eq-hutchinson")
def hutchinson() -> Reading:
    """Signs in three dimensions, all eight of them; a matrix that is not symmetric."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * 3)
    matrix = torch.randn(3, 3, generator=torch.Generator().manual_seed(7), dtype=F64)
    letters = {
        r"\nabla \cdot v": matrix.trace(), r"\mathbb E": lambda values: values.mean(0, keepdim=True), "z": signs,
        "J": matrix[None], r"\frac{\partial v}{\partial x}": matrix[None],
    }  # fmt: skip
    return Reading(letters, statements=2)
