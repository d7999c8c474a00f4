"""What the letters of chapter 17's equations stand for: another mixture, levels and scales than the page's."""

import torch
from torch import Tensor

from difflesson import path
from difflesson.exercises.chapter10 import variance_by_runge_kutta
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.schedule import vp_linear
from tests.oracles.mixtures import FOUR
from tests.readings.common import F64
from tools.formula import Reading, reads

MIXTURE, LABEL, GAMMA, Q = FOUR.mixture(), 1, 2.6, 0.8
POINTS = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]], dtype=F64)
AXES = torch.eye(2, dtype=F64)


def logs(x: Tensor, q: float) -> tuple[Tensor, Tensor]:
    """log p_q and log p_q(. | y), from the mixture's densities."""
    noisy = MIXTURE.noised(1.0, q**0.5)
    return noisy.log_prob(x), noisy.given(LABEL).log_prob(x)


def combined(x: Tensor, q: float) -> Tensor:
    u, v = logs(x, q)
    return u + GAMMA * (v - u)


def in_q(f, h: float = 2e-2) -> Tensor:
    """The derivative in q at POINTS, by differences of fourth order."""
    near, far = (f(POINTS, Q + k * h) - f(POINTS, Q - k * h) for k in (1, 2))
    return (8 * near - far) / (12 * h)


def laplacian(f, h: float = 2e-2) -> Tensor:
    """The sum of second derivatives at POINTS, by differences of fourth order."""
    total = 0.0
    for axis in AXES:
        near, far = (f(POINTS + k * h * axis, Q) + f(POINTS - k * h * axis, Q) for k in (1, 2))
        total = total + (16 * near - far - 30 * f(POINTS, Q)) / (12 * h**2)
    return total


def slope(f) -> Tensor:
    """The gradient at POINTS, by autograd."""
    x = POINTS.clone().requires_grad_()
    return torch.autograd.grad(f(x, Q).sum(), x)[0]


def classifier(x: Tensor, q: float) -> Tensor:
    return MIXTURE.noised(1.0, q**0.5).class_log_prob(x, LABEL)


@reads("eq-log-heat")
def log_heat() -> Reading:
    def density(x, q):
        return logs(x, q)[0].exp()

    def log(x, q):
        return logs(x, q)[0]

    letters = {
        r"\partial_q p_q": in_q(density), r"\Delta p_q": laplacian(density), r"\partial_q u": in_q(log),
        r"\Delta u": laplacian(log), r"\nabla u": slope(log),
    }  # fmt: skip
    return Reading(letters, statements=2, tolerance=1e-4)


@reads("eq-guided-residual")
def guided_residual() -> Reading:
    letters = {
        r"\partial_q w_q": in_q(combined), r"\Delta w_q": laplacian(combined), r"\nabla w_q": slope(combined),
        r"\gamma": GAMMA, "g_q(x)": slope(classifier),
    }  # fmt: skip
    return Reading(letters, tolerance=1e-4)


def frame(q: float) -> GridDensity:
    return GridDensity(lambda x: combined(x, q), -13, 13, 200)


def mean_square(q: float) -> float:
    """The mean of |g_q|^2 under pi_q."""
    density = frame(q)
    x = density.points.clone().requires_grad_()
    (steep,) = torch.autograd.grad(classifier(x, q).sum(), x)
    return float(density.weights @ steep.square().sum(1))


@reads("eq-guided-mass")
def guided_mass() -> Reading:
    frames = {q: frame(q) for q in (Q, *(Q + k * 2e-2 for k in (-2, -1, 1, 2)))}

    def density(x, q):
        return frames[q].log_prob(x).exp()

    letters = {
        r"\partial_q \pi_q": in_q(density), r"\Delta \pi_q": laplacian(density), r"\pi_q": density(POINTS, Q),
        r"\gamma": GAMMA, "g_q": slope(classifier), r"\mathbb E_{\pi_q} \|g_q\|^2": mean_square(Q),
    }  # fmt: skip
    return Reading(letters, tolerance=1e-4)


@reads("eq-guided-density")
def guided_density() -> Reading:
    """A narrow class N(0.6, C) among data N(0, U), on the line: path, bill and what comes are those of linear maps."""
    C, U, top = 0.7, 1.9, 6.0
    qs = torch.linspace(0.0, top, 20_001, dtype=F64)
    x = torch.tensor([-0.7, 0.3, 1.2], dtype=F64)
    pull = GAMMA / (C + qs) + (1 - GAMMA) / (U + qs)
    push = GAMMA * 0.6 / (C + qs)
    steps, onward, shift = qs.diff(), [torch.ones((), dtype=F64)], [torch.zeros((), dtype=F64)]
    for k, h in enumerate(steps):  # x_q = onward x_0 + shift, by the midpoint's coefficients
        a, b = (pull[k] + pull[k + 1]) / 4, (push[k] + push[k + 1]) / 4
        grow = torch.exp(a * h)
        onward.append(grow * onward[-1])
        shift.append(grow * shift[-1] - b / a * (grow - 1))
    onward, shift = torch.stack(onward), torch.stack(shift)
    way = onward[:, None] * x + shift[:, None]
    steep = -(way - 0.6) / (C + qs[:, None]) + way / (U + qs[:, None])
    bill = torch.trapezoid(steep.square(), qs, dim=0)

    def normal(x, mean, var):
        return torch.exp(-((x - mean) ** 2) / (2 * var)) / (2 * torch.pi * var) ** 0.5

    late, narrow, wide = way[-1], top + C, top + U
    letters = {
        "r_0(x)": normal(late, 0.2, top) * onward[-1], "r_Q(x_Q)": normal(late, 0.2, top),
        "p(x)": normal(x, 0.0, U), "p(x | y)": normal(x, 0.6, C), "p_Q(x_Q)": normal(late, 0.0, wide),
        "p_Q(x_Q | y)": normal(late, 0.6, narrow), r"\gamma": GAMMA, r"\int_0^Q \|g_q(x_q)\|^2 \, dq": bill,
    }  # fmt: skip
    return Reading(letters, tolerance=1e-5)


@reads("eq-constant-norm")
def constant_norm() -> Reading:
    """gamma 0 and 1 where the norm varies, another where it does not: all data N(0, C), the class moved."""
    steep = slope(classifier)
    mean = torch.tensor([0.4, 0.4, 4.0], dtype=F64)
    even = torch.tensor([[2.0, 0.0]], dtype=F64)
    letters = {
        r"\gamma": torch.tensor([0.0, 1.0, 2.5], dtype=F64), "g_q(x)": torch.cat([steep[:2], even]),
        r"\mathbb E_{\pi_q} \|g_q\|^2": mean,
    }  # fmt: skip
    return Reading(letters, words=(r"\text{for all } x",), equivalent={
        r"[\gamma -> ( \gamma ) ^ 2] ( \gamma -": "the square has the same zeros",
        r"\gamma ( [\gamma -> ( \gamma ) ^ 2] - 1 )": "for positive gamma the square is 1 where gamma is",
    })  # fmt: skip


@reads("eq-any-noise-variance")
def any_noise_variance() -> Reading:
    C, U, rho = 0.7, 1.9, 1.3
    log_q = torch.linspace(-40, 60, 5001, dtype=F64)
    cells = log_q.exp() * (log_q[1] - log_q[0])
    axis = torch.linspace(-25, 25, 100_001, dtype=F64)
    weights = (-(axis**2) / 2 * (GAMMA / C + (1 - GAMMA) / U)).softmax(0)
    rest = torch.trapezoid((1 / (1 + log_q.exp()) - GAMMA / (C + log_q.exp()) - (1 - GAMMA) / (U + log_q.exp()))
                           * log_q.exp(), log_q)  # fmt: skip
    letters = {
        r"S_\rho": variance_by_runge_kutta(C, U, GAMMA, rho, None), r"\rho": rho, "C": C, "U": U, r"\gamma": GAMMA,
        "q": log_q.exp(), "dq": 0.01, "S_0": rest.exp(), r"S_\infty": weights @ axis**2,
        r"\int_0^\infty": lambda values: (100 * cells * values.reshape(-1)).sum(),
    }  # fmt: skip
    return Reading(letters, statements=3, tolerance=1e-6)


@reads("eq-predictor-corrector")
def predictor_corrector() -> Reading:
    rho = 0.6

    def score(scale):
        return slope(lambda x, q: (1 - scale) * logs(x, q)[0] + scale * logs(x, q)[1])

    other = path.corrector_scale(GAMMA, rho)
    letters = {
        r"\rho": rho, r"\gamma": GAMMA, r"s_\gamma": score(GAMMA), "s_1": score(1.0), r"s_{\gamma'}": score(other),
        r"\gamma'": other,
    }  # fmt: skip
    return Reading(letters, statements=2)


@reads("eq-source-clock")
def source_clock() -> Reading:
    schedule, t, dt = vp_linear(), torch.tensor(0.4, dtype=F64), 1e-5
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    qs = [(schedule.sigma(t + k * dt / 2) / schedule.alpha(t + k * dt / 2)) ** 2 for k in (-1, 1)]

    def steep(x, alpha, sigma):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(MIXTURE.noised(alpha, sigma).class_log_prob(x, LABEL).sum(), x)[0]

    letters = {
        r"\gamma": GAMMA, r"\nabla_{\bar x} \log p(y | \bar x)": steep(POINTS, 1.0, sigma / alpha), "dq": qs[1] - qs[0],
        r"\beta_t": schedule.beta(t), r"\nabla_{x_t} \log p_t(y | x_t)": steep(alpha * POINTS, alpha, sigma), "dt": dt,
    }  # fmt: skip
    return Reading(letters, tolerance=1e-6)


@reads("eq-normaliser-rate")
def normaliser_rate() -> Reading:
    """A class N(0.6, C) among data N(0, U) on the line, where all guided densities are Gaussians."""
    C, U = 0.7, 1.9
    x = torch.linspace(-20, 20, 20_001, dtype=F64)
    line = [GaussianMixture([1.0], torch.tensor([[m]], dtype=F64), [[[c]]]).log_prob(x[:, None]).exp()
            for m, c in ((0.0, U), (0.6, C))]  # fmt: skip
    log_q = torch.linspace(-20, 20, 4001, dtype=F64)
    q = log_q.exp()
    cells = q * (log_q[1] - log_q[0])
    precision = GAMMA / (C + q) + (1 - GAMMA) / (U + q)
    mean = GAMMA * 0.6 / (C + q) / precision
    a, b = -1 / (C + q) + 1 / (U + q), 0.6 / (C + q)  # g is a x + b
    letters = {
        r"\gamma": GAMMA, "Z": torch.trapezoid(line[0] ** (1 - GAMMA) * line[1] ** GAMMA, x),
        r"\int_0^\infty": lambda values: (100 * cells * values.reshape(-1)).sum(),
        r"\mathbb E_{\pi_q} \|g_q\|^2": (a * mean + b) ** 2 + a**2 / precision, "dq": 0.01,
    }  # fmt: skip
    return Reading(letters, tolerance=1e-5)
