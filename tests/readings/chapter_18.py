"""What the letters of chapter 18's equations stand for: another mixture, other points and scales than the page's."""

import torch
from torch import Tensor

from difflesson import guidance, kernels, particles, remedies
from difflesson.samplers import time_grid
from difflesson.schedule import cosine
from difflesson.steps import Gaussian
from tests.oracles.mixtures import FOUR
from tests.readings.common import F64, expectation, gradient, posterior
from tools.formula import Reading, reads

MIXTURE, SCHEDULE, LABEL, GAMMA = FOUR.mixture(), cosine(), 1, 2.7
T, S = torch.tensor(0.55, dtype=F64), torch.tensor(0.47, dtype=F64)
POINTS = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1], [0.1, -0.4]], dtype=F64)
NEW = POINTS + torch.tensor([[0.1, -0.2], [0.05, 0.15], [-0.1, 0.1], [0.2, 0.0]], dtype=F64)
PAIR, Q = MIXTURE.pair(SCHEDULE, LABEL), 0.7


def noised(t: Tensor):
    return MIXTURE.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t))


def chance(x: Tensor, t: Tensor) -> Tensor:
    """p_t(label | x), from the two joint densities."""
    noisy = noised(t)
    return MIXTURE.class_weights()[LABEL] * (noisy.given(LABEL).log_prob(x) - noisy.log_prob(x)).exp()


def mass(x: Tensor, q: float) -> Tensor:
    """F_q, in points divided by alpha."""
    noisy = MIXTURE.noised(1.0, q**0.5)
    share = MIXTURE.class_weights()[LABEL] * (noisy.given(LABEL).log_prob(x) - noisy.log_prob(x)).exp()
    return noisy.log_prob(x).exp() * share**GAMMA


def changes(x: Tensor, q: float, h: float = 1e-2) -> tuple[Tensor, Tensor]:
    """The derivative of F_q in q, and its second derivatives in x, summed; differences of fourth order."""
    near, far = (mass(x, q + k * h) - mass(x, q - k * h) for k in (1, 2))
    laplacian = 0.0
    for step in h * torch.eye(2, dtype=F64):
        one, two = (mass(x + k * step, q) + mass(x - k * step, q) for k in (1, 2))
        laplacian = laplacian + (16 * one - two - 30 * mass(x, q)) / (12 * h**2)
    return (8 * near - far) / (12 * h), laplacian


def clean_slopes() -> dict[str, object]:
    x = POINTS.clone().requires_grad_()
    noisy = MIXTURE.noised(1.0, Q**0.5)
    told = noisy.given(LABEL).log_prob(x) - noisy.log_prob(x)
    return {r"\gamma": GAMMA, r"\nabla": gradient(x), "p_q(y | z)": told.exp() * MIXTURE.class_weights()[LABEL]}


@reads("eq-guided-source")
def guided_source() -> Reading:
    in_q, laplacian = changes(POINTS, Q)
    letters = {r"\partial_q F_q(z)": in_q, r"\Delta F_q(z)": laplacian, "F_q(z)": mass(POINTS, Q)} | clean_slopes()
    return Reading(letters, statements=2, defines=("V_q(z)",), tolerance=1e-5)


@reads("eq-weighted-change")
def weighted_change() -> Reading:
    """At f = F; the divergence by autograd, of a flux that is differentiable."""
    in_q, laplacian = changes(POINTS, Q)
    x, rho = POINTS.clone().requires_grad_(), 1.3
    f = mass(x, Q)

    def divergence(flux: Tensor) -> Tensor:
        rows = flux.reshape(-1, 2)
        return sum(torch.autograd.grad(rows[:, k].sum(), x, create_graph=True)[0][:, k] for k in (0, 1))[:, None, None]

    missing = (laplacian / 2 - in_q) / f
    return Reading(
        {r"\partial_q f_q": in_q, "c": (1 + rho**2) / 2, r"\nabla \cdot": divergence, r"\nabla": gradient(x), "f_q": f,
         "F_q": f, r"\rho": rho, r"\Delta f_q": laplacian, "V_q": missing.detach()},
        tolerance=1e-5,
    )  # fmt: skip


@reads("eq-feynman-kac")
def feynman_kac() -> Reading:
    """The growth that the two halves of the heat equation leave over, in a step of q."""
    in_q, laplacian = changes(POINTS, Q)
    dq = 0.01
    growth = (laplacian / 2 - in_q) / mass(POINTS, Q) * dq
    return Reading({r"d \log w": growth, "dq": dq} | clean_slopes(), tolerance=1e-5)


@reads("eq-weight-in-guesses")
def weight_in_guesses() -> Reading:
    """Left, the same growth in q, at q of the time T: in log-SNR a step is dq / q."""
    q, d_lambda = float((SCHEDULE.sigma(T) / SCHEDULE.alpha(T)) ** 2), 0.02
    in_q, laplacian = changes(POINTS / SCHEDULE.alpha(T), q, h=0.03)
    growth = (laplacian / 2 - in_q) / mass(POINTS / SCHEDULE.alpha(T), q) * q * d_lambda
    cond, uncond = PAIR(POINTS, T)
    return Reading(
        {r"d \log w": growth, r"d\lambda": d_lambda, r"\gamma": GAMMA, r"\hat\varepsilon_u": uncond.eps,
         r"\hat\varepsilon_c": cond.eps},
        {r"\sigma_t": SCHEDULE.sigma(T)}, tolerance=1e-4,
    )  # fmt: skip


def look(x: Tensor) -> Tensor:
    return (x[:, 0] * x[:, 1]).sin() + 2


@reads("eq-log-z")
def log_z() -> Reading:
    """Left, by the flow from all starting points on a grid; right, sums over clean points on another grid."""
    gamma, walk = 1.4, time_grid(100, SCHEDULE, 0.95, 0.01)
    first, axis = noised(walk[0]), torch.linspace(-11, 11, 121, dtype=F64)
    starts, cell = torch.cartesian_prod(axis, axis), (axis[1] - axis[0]) ** 2
    begun = gamma * first.class_log_prob(starts, LABEL)
    crowd = particles.draw(
        kernels.heun(guidance.classifier_free(PAIR, gamma), SCHEDULE), remedies.feynman_kac(PAIR, gamma, SCHEDULE),
        starts, walk, torch.Generator(), log_weights=begun, below=0,
    )  # fmt: skip
    weight = crowd.log_weights.exp() * first.log_prob(starts).exp() * cell
    inner = torch.linspace(-5, 6, 111, dtype=F64)
    x, area = torch.cartesian_prod(inner, inner), (inner[1] - inner[0]) ** 2
    p, told = MIXTURE.log_prob(x).exp(), chance(x, torch.zeros((), dtype=F64))
    there = noised(walk[0]).sample(len(x), torch.Generator().manual_seed(0))[0]
    share = chance(there, walk[0])
    return Reading(
        {
            "w_T": (gamma * first.class_log_prob(there, LABEL)).exp(), "p_T(y | x_T)": share, r"\gamma": gamma,
            r"\mathbb E[w_0 f(x_0)]": weight @ look(crowd.x), r"\mathbb E[w_0]": weight.sum(), "dx": area,
            r"\int": lambda values: values.sum(0, keepdim=True), "p(x)": p, "p(y | x)": told, "f(x)": look(x),
            "Z": area * (p * told**gamma).sum(), r"\mathbb E_{p(x)}": expectation(p * area),
        },
        statements=3, tolerance=3e-3,
    )  # fmt: skip


def half_a_step() -> tuple[Gaussian, Tensor, Tensor]:
    """A guided step, and the log-densities there of the exact unguided one and of the guided one."""
    step = kernels.ddpm(guidance.classifier_free(PAIR, GAMMA), SCHEDULE, variance="large")(POINTS, T, S)
    return step, kernels.exact(MIXTURE, SCHEDULE)(POINTS, T, S).log_prob(NEW), step.log_prob(NEW)


@reads("eq-twisted-weight")
def twisted_weight() -> Reading:
    step, free, moved = half_a_step()
    twist = {t: chance(x, t) ** GAMMA for x, t in ((POINTS, T), (NEW, S))}
    rule = remedies.twisted(kernels.exact(MIXTURE, SCHEDULE), lambda x, t: GAMMA * chance(x, t).log())
    return Reading(
        {r"\frac{w_s}{w_t}": rule(step, POINTS, NEW, T, S).exp(), "p(x_s | x_t)": free.exp(),
         "k(x_s | x_t)": moved.exp(), r"\psi_s(x_s)": twist[S], r"\psi_t(x_t)": twist[T]}
    )  # fmt: skip


@reads("eq-thinning")
def thinning() -> Reading:
    """x_0: cells of a grid, weighed by the class; Z over the same cells, weighed by all data."""
    axis, zero = torch.linspace(-6, 7, 261, dtype=F64), torch.zeros((), dtype=F64)
    x, area = torch.cartesian_prod(axis, axis), (axis[1] - axis[0]) ** 2
    class_weights, all_weights = (density.log_prob(x).exp() * area for density in (MIXTURE.given(LABEL), MIXTURE))
    return Reading(
        {"p(y | x_0)": chance(x, zero), r"\gamma": GAMMA, r"\mathbb E_{p(x | y)}": expectation(class_weights),
         "Z": all_weights @ chance(x, zero) ** GAMMA, "p(y)": MIXTURE.class_weights()[LABEL]},
        statements=2, defines=("w",), words=(r"x_0 \sim p(x | y)",), tolerance=1e-5,
    )  # fmt: skip


@reads("eq-ramped-weight")
def ramped_weight() -> Reading:
    """A step so short that nothing moves, in which gamma grows by a tenth."""
    near, jump = torch.tensor(0.55 - 1e-7, dtype=F64), 0.1
    rule = remedies.ramped(
        PAIR, lambda t: GAMMA if t > near else GAMMA + jump, SCHEDULE, lambda x, t: chance(x, t).log()
    )
    step = Gaussian(POINTS, torch.zeros(()))
    cond, uncond = PAIR(POINTS, T)
    d_lambda = SCHEDULE.log_snr(near) - SCHEDULE.log_snr(T)
    moved = remedies.feynman_kac(PAIR, GAMMA, SCHEDULE)(step, POINTS, POINTS, T, near)
    changed = rule(step, POINTS, POINTS, T, near) - moved
    return Reading(
        {r"d \log w": 1e6 * moved + changed, r"\gamma_t": GAMMA, r"\hat\varepsilon_u": uncond.eps,
         r"\hat\varepsilon_c": cond.eps, r"d\lambda": 1e6 * d_lambda, "p_t(y | x_t)": chance(POINTS, T),
         r"d\gamma_t": jump},
        tolerance=1e-5,
    )  # fmt: skip


@reads("eq-step-square")
def step_square() -> Reading:
    steps = [kernels.ddpm(guidance.classifier_free(PAIR, g), SCHEDULE)(POINTS, T, S) for g in (0.0, 1.0, GAMMA)]
    k_u, k_c, k_g = (step.log_prob(NEW).exp() for step in steps)
    cond, uncond = PAIR(POINTS, T)
    return Reading(
        {"k_u": k_u, "k_c": k_c, r"k_\gamma": k_g, r"\gamma": GAMMA, r"\lambda_s": SCHEDULE.log_snr(S),
         r"\lambda_t": SCHEDULE.log_snr(T), r"\hat\varepsilon_u": uncond.eps, r"\hat\varepsilon_c": cond.eps},
        tolerance=1e-8,
    )  # fmt: skip


@reads("eq-flow-weight")
def flow_weight() -> Reading:
    """The weight summed over the noise levels along the flow of a Gaussian class among Gaussian data."""
    C, U, gamma = 0.4, 1.3, 1.8
    v = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    q = v / (1 - v)
    ends = POINTS[:, :, None]  # (N, 2, 1)
    moved = ends * (((C + q) / C) ** gamma * ((U + q) / U) ** (1 - gamma)) ** 0.5
    square = (moved * (1 / (U + q) - 1 / (C + q))).square().sum(1)
    log_w = gamma * (gamma - 1) / 2 * (square / (1 - v) ** 2).mean(1)
    return Reading(
        {r"\log w": log_w, "z_0": POINTS, "C": C, "U": U, r"\gamma": gamma},
        statements=3, defines=("G", "T"), constant=r"\text{const}_\gamma", tolerance=1e-4, equivalent={
            r"\| ^ 2 [+ -> -] \text{const} _ \gamma": "a constant has no sign",
            r"^ 2 + [\text{const} _ \gamma -> ( \text{const} _ \gamma ) ^ 2] , \qquad G": "its square is a constant",
        },
    )  # fmt: skip


@reads("eq-doob")
def doob() -> Reading:
    """Left, the target's noised cells; right, the mean of the power over where a point comes from."""
    alpha, sigma = float(SCHEDULE.alpha(T)), float(SCHEDULE.sigma(T))

    def log_weight(z: Tensor) -> Tensor:
        return MIXTURE.log_prob(z) + GAMMA * chance(z, torch.zeros((), dtype=F64)).log()

    x = POINTS.clone().requires_grad_()
    axis = torch.linspace(-6, 7, 261, dtype=F64)
    z = torch.cartesian_prod(axis, axis)
    near = -(x[:, None] - alpha * z).square().sum(2) / (2 * sigma**2)
    power = ((near + log_weight(z)).logsumexp(1) - (near + MIXTURE.log_prob(z)).logsumexp(1)).exp()
    mean, _ = posterior(log_weight, POINTS, alpha, sigma)
    slope = (alpha * mean - POINTS) / sigma**2
    return Reading(
        {r"\nabla \log \tilde p_t(x)": slope, r"\nabla": gradient(x), "p_t(x)": noised(T).log_prob(x).exp(),
         r"\mathbb E[p(y | x_0)^\gamma | x_t = x]": power},
        tolerance=1e-4,
    )  # fmt: skip
