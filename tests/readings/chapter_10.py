"""What the letters of chapter 10's equations stand for: another mixture, schedule and times than the page's."""

import torch
from torch import Tensor

from difflesson import guidance, kernels, ode, plane
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import vp_linear
from tests.oracles.mixtures import FOUR
from tests.readings.common import F64, earlier
from tools.formula import Reading, reads

MIXTURE, SCHEDULE, LABEL, T, S = FOUR.mixture(), vp_linear(0.3, 8.0), 1, 0.5, 0.35
GAMMA = 2.5
X_T = torch.tensor([[[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]]], dtype=F64)[0]
ALPHA_TS, SIGMA_TS = SCHEDULE.transition(T, S)
LEVELS = {
    r"\alpha_t": SCHEDULE.alpha(T), r"\sigma_t": SCHEDULE.sigma(T), r"\alpha_s": SCHEDULE.alpha(S),
    r"\sigma_s": SCHEDULE.sigma(S), r"\alpha_{t|s}": ALPHA_TS,
}  # fmt: skip
LENGTHS = torch.tensor([4e-3, 2e-3, 1e-3], dtype=F64)  # of steps from T


def at(time: float, label: int | None = None):
    noisy = MIXTURE.noised(SCHEDULE.alpha(time), SCHEDULE.sigma(time))
    return noisy if label is None else noisy.given(label)


def slope(log_density, x: Tensor) -> Tensor:
    """Its gradient at each point, (N, d), by autograd: not the package's scores."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(log_density(leaf).sum(), leaf)[0]


def class_slope(x: Tensor, time: float = T) -> Tensor:
    return slope(lambda x: at(time).class_log_prob(x, LABEL), x)


def curvature(log_density, x: Tensor) -> Tensor:
    """The second derivatives at each point, (N, d, d), by autograd: not the package's Hessian."""
    return torch.stack([torch.autograd.functional.hessian(lambda p: log_density(p[None])[0], point) for point in x])


def tilted(gamma: float = GAMMA):
    grad = lambda x, t: at(float(t)).class_gradient(x, LABEL)  # noqa: E731
    return guidance.tilt(MIXTURE.denoiser(SCHEDULE), grad, gamma, SCHEDULE)


@reads("eq-conditional-reverse-sde")
def conditional_reverse_sde() -> Reading:
    """One short step of the package's sampler of this equation, for a model of the class, with a drawn noise."""
    rho, dt = 0.6, -1e-3
    noise = torch.randn(X_T.shape, generator=torch.Generator().manual_seed(5), dtype=F64) * (-dt) ** 0.5
    step = kernels.reverse_sde(MIXTURE.denoiser(SCHEDULE, LABEL), SCHEDULE, rho)(X_T, T, T + dt)
    moved = step.mean - X_T + (step.var / -dt).sqrt() * noise
    letters = {
        "dx": moved, "x": X_T, "r": SCHEDULE.beta(T), r"\rho": rho, "dt": dt, r"d\bar w": noise,
        r"\nabla \log p_t(x | y)": slope(at(T, LABEL).log_prob, X_T),
    }  # fmt: skip
    others = {
        r"\nabla \log p_t(x)": slope(at(T).log_prob, X_T), r"\nabla \log p_s(x | y)": slope(at(S, LABEL).log_prob, X_T),
        r"\nabla \log p_t(y | x)": class_slope(X_T),
    }  # fmt: skip
    return Reading(letters, others)


@reads("eq-eps-substitution")
def eps_substitution() -> Reading:
    letters = {
        r"\hat\varepsilon_\gamma": tilted()(X_T, torch.tensor(T, dtype=F64)).eps,
        r"\hat\varepsilon_u": MIXTURE.denoiser(SCHEDULE)(X_T, torch.tensor(T, dtype=F64)).eps,
        r"\gamma": GAMMA, r"\sigma_t": SCHEDULE.sigma(T), r"\nabla \log p_t(y | x_t)": class_slope(X_T),
    }  # fmt: skip
    others = {name: LEVELS[name] for name in (r"\alpha_t", r"\sigma_s")}
    others[r"\hat\varepsilon_c"] = MIXTURE.denoiser(SCHEDULE, LABEL)(X_T, torch.tensor(T, dtype=F64)).eps
    others[r"\nabla \log p_s(y | x_t)"] = class_slope(X_T, S)
    return Reading(letters, others)


def step_of(eta: float, gamma: float):
    return kernels.ddim(tilted(gamma), SCHEDULE, eta)(X_T, T, S)


@reads("eq-general-step")
def general_step() -> Reading:
    step = step_of(0.7, GAMMA)
    letters = {"m": step.mean, "x_t": X_T, "v": step.var}
    letters |= {r"\hat\varepsilon_\gamma": tilted()(X_T, torch.tensor(T, dtype=F64)).eps}
    return Reading(letters, LEVELS)


@reads("eq-shift-of-a-step")
def shift_of_a_step() -> Reading:
    letters = {
        r"m_\gamma": step_of(0.7, GAMMA).mean, "m_0": step_of(0.7, 0.0).mean, r"\gamma": GAMMA,
        "g_t(x_t)": class_slope(X_T), "v": step_of(0.7, 0.0).var,
    }  # fmt: skip
    return Reading(letters, LEVELS | {"g_s(x_t)": class_slope(X_T, S)}, statements=2, defines=("c",))


def coefficients(eta: float) -> tuple[Tensor, Tensor]:
    """How far a unit of gradient moves the mean of the package's step, for each of LENGTHS; and its variance."""
    moved, variances = [], []
    for s in earlier(SCHEDULE, T, LENGTHS):
        with_label, without = (kernels.ddim(tilted(g), SCHEDULE, eta)(X_T[:1], T, s) for g in (1.0, 0.0))
        moved.append(((with_label.mean - without.mean) / class_slope(X_T[:1])).mean())
        variances.append(without.var)
    return torch.stack(moved), torch.stack(variances)


@reads("eq-half-and-half")
def half_and_half() -> Reading:
    eta = 0.7
    letters = {
        "c": coefficients(eta)[0], r"\sigma_t": SCHEDULE.sigma(T), r"\eta": eta, "b": LENGTHS / SCHEDULE.sigma(T) ** 2,
        r"\beta": LENGTHS, r"\alpha_{t|s}": (1 - LENGTHS).sqrt(),
    }  # fmt: skip
    return Reading(
        letters, {r"\sigma_s": SCHEDULE.sigma(S)}, equivalent={r"} b ) [+ -> -] O ( \beta": "O(...) has no sign"}
    )


@reads("eq-shift-share")
def shift_share() -> Reading:
    eta = 0.7
    moved, variances = coefficients(eta)
    letters = {"v": variances, "c": moved, r"\eta": eta, "b": LENGTHS / SCHEDULE.sigma(T) ** 2}
    return Reading(letters, equivalent={"^ 2 } [+ -> -] O ( b": "O(...) has no sign"})


@reads("eq-stiffness")
def stiffness() -> Reading:
    """The left side by autograd through the package's ODE, in another clock."""
    flow, per_ell = ode.probability_flow(tilted(), SCHEDULE), -SCHEDULE.beta(T) / (2 * SCHEDULE.sigma(T) ** 2)
    letters = {
        r"J_\gamma": plane.jacobian(lambda x: flow(x, T) / per_ell, X_T), r"\gamma": GAMMA,
        r"\sigma_t": SCHEDULE.sigma(T), "I": torch.eye(2, dtype=F64)[None],
        r"\nabla \nabla \log p_t(x)": curvature(at(T).log_prob, X_T),
        r"\nabla \nabla \log p_t(y | x)": curvature(lambda x: at(T).class_log_prob(x, LABEL), X_T),
    }  # fmt: skip
    others = {
        r"\alpha_t": SCHEDULE.alpha(T), r"\sigma_s": SCHEDULE.sigma(S),
        r"\nabla \nabla \log p_s(x)": curvature(at(S).log_prob, X_T),
        r"\nabla \nabla \log p_s(y | x)": curvature(lambda x: at(S).class_log_prob(x, LABEL), X_T),
    }  # fmt: skip
    return Reading(letters, others, statements=3, defines=("H_t", "G_t"))


@reads("eq-own-forecast")
def own_forecast() -> Reading:
    """The mean's and the variance's equations on the way home, by Runge-Kutta in q, for one Gaussian on the line."""
    U, rho, x_t, alpha, sigma = 0.6, 1.4, 0.9, SCHEDULE.alpha(T), SCHEDULE.sigma(T)
    steps, q = 4000, sigma**2 / alpha**2
    mean, variance, h = x_t / alpha, torch.zeros((), dtype=F64), q / 4000

    def rates(q, mean, variance):
        pull = (1 + rho**2) / (U + q)  # of the variance; the mean has half of it
        return -mean * pull / 2, rho**2 - pull * variance

    for k in range(steps):
        here = q - k * h
        first = rates(here, mean, variance)
        middle = rates(here - h / 2, mean + h / 2 * first[0], variance + h / 2 * first[1])
        mean, variance = mean + h * middle[0], variance + h * middle[1]
    letters = {
        r"\mathbb E_\rho[x_0 | x_t]": mean, r"\mathrm{Var}_\rho(x_0 | x_t)": variance, r"\rho": rho, "x_t": x_t,
        r"\alpha_t": alpha, r"\sigma_t": sigma, "U": U,
    }  # fmt: skip
    others = {r"\alpha_s": SCHEDULE.alpha(S), r"\sigma_s": SCHEDULE.sigma(S)}
    return Reading(letters, others, statements=3, defines=("R",), tolerance=1e-6)


@reads("eq-global-error")
def global_error() -> Reading:
    """One Gaussian on the line, where the guess is linear in the point: flow and derivatives are closed forms."""
    U, x_1, h_all = 0.6, 0.8, torch.tensor([0.04, 0.02, 0.01], dtype=F64)
    line = GaussianMixture([1.0], torch.zeros(1, 1, dtype=F64), [[[U]]])
    start, end = float(SCHEDULE.log_snr(1.0)) / 2, 2.0
    last = float(SCHEDULE.time(2 * end))
    ell = torch.linspace(start, end, 20_001, dtype=F64)
    alpha, sigma = torch.sigmoid(2 * ell).sqrt(), torch.sigmoid(-2 * ell).sqrt()
    root = (alpha**2 * U + sigma**2).sqrt()  # a point keeps its place in units of this standard deviation
    path = x_1 * root / root[0]
    guess = alpha * U / root**2 * path
    speed = torch.gradient(guess, spacing=(ell,), edge_order=2)[0]
    onward = root[-1] / root
    weights = torch.ones_like(ell)
    weights[[0, -1]] /= 2
    ends, h = [], []
    for length in h_all:
        steps = round((end - start) / float(length))
        h.append((end - start) / steps)
        times = time_grid(steps, SCHEDULE, end=last)
        ends.append(
            draw(kernels.ddim(line.denoiser(SCHEDULE), SCHEDULE), torch.full((1, 1), x_1, dtype=F64), times)[0, 0]
        )
    letters = {
        r"x_{\text{DDIM}}": torch.stack(ends), r"x_{\text{ODE}}": path[-1].expand(3), "h": torch.tensor(h, dtype=F64),
        r"\int": lambda values: (weights * values.reshape(-1)).sum(), r"\alpha": alpha, r"\Phi_\ell": onward,
        r"\frac{d \hat x_0}{d\ell}": speed, r"d\ell": ell[1] - ell[0],
    }  # fmt: skip
    return Reading(letters, {r"\sigma": sigma}, equivalent={r") d \ell [+ -> -] O ( h": "O(...) has no sign"})


@reads("eq-posterior-share")
def posterior_share() -> Reading:
    """The variance of x_s given x_t and x_0, from their joint Gaussian, over the exact coefficient."""
    alpha_ts, var_t = (1 - LENGTHS).sqrt(), SCHEDULE.sigma(T) ** 2
    var_s = (var_t - LENGTHS) / alpha_ts**2
    letters = {"v": var_s - (alpha_ts * var_s) ** 2 / var_t, r"\alpha_{t|s}": alpha_ts, r"\beta": LENGTHS}
    letters |= {r"\sigma_t": SCHEDULE.sigma(T)}
    others = {r"\sigma_s": SCHEDULE.sigma(S)}
    return Reading(letters, others, equivalent={r"} ) \beta [+ -> -] O ( \beta": "O(...) has no sign"})
