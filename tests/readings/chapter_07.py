"""What the letters of chapter 07's equations stand for: another mixture, schedule and times than the page's."""

from functools import cache

import torch
from torch import Tensor

from difflesson import divergence, kernels
from difflesson.schedule import vp_linear
from tests.oracles.mixtures import FOUR
from tests.readings.common import (
    F64,
    earlier,
    expectation,
    gaussian_kl,
    moments,
    normal_density,
    normal_nodes,
    posterior,
)  # fmt: skip
from tools.formula import Reading, law, reads

MIXTURE, SCHEDULE, LABEL, T, S = FOUR.mixture(), vp_linear(0.3, 8.0), 1, 0.5, 0.35
IDENTITY = torch.eye(2, dtype=F64)[None]
X_T, X_S = torch.tensor([[[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]], [[-0.5, 0.3], [1.0, -0.9], [0.8, 1.4]]], dtype=F64)
ALPHA_TS, SIGMA_TS = SCHEDULE.transition(T, S)
LEVELS = {
    r"\alpha_t": SCHEDULE.alpha(T), r"\sigma_t": SCHEDULE.sigma(T), r"\alpha_s": SCHEDULE.alpha(S),
    r"\sigma_s": SCHEDULE.sigma(S), r"\alpha_{t|s}": ALPHA_TS, r"\sigma_{t|s}": SIGMA_TS, r"\beta": SIGMA_TS**2,
    "x_t": X_T, "x_s": X_S, "I": IDENTITY,
}  # fmt: skip


def at(time: float, label: int | None = None):
    noisy = MIXTURE.noised(SCHEDULE.alpha(time), SCHEDULE.sigma(time))
    return noisy if label is None else noisy.given(label)


def slope(log_density, x: Tensor) -> Tensor:
    """Its gradient at each point, (N, d), by autograd: not the package's scores."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(log_density(leaf).sum(), leaf)[0]


def class_slope(x: Tensor, time: float) -> Tensor:
    return slope(lambda x: at(time).class_log_prob(x, LABEL), x)


def curvature(time: float, x: Tensor) -> Tensor:
    """The second derivatives of log p_t(x | y) at each point, (N, d, d), by autograd: not the package's Hessian."""
    at_time = at(time, LABEL)
    hessians = [torch.autograd.functional.hessian(lambda p: at_time.log_prob(p[None])[0], point) for point in x]
    return torch.stack(hessians)


@reads("eq-forward-transition")
def forward_transition() -> Reading:
    """On the line: two noises from one clean point, one after the other, are together the noise of time t."""
    nodes, weights = normal_nodes(2, order=3)
    x_0, (first, second) = 0.7, nodes.split(1, dim=1)
    letters = {"x_s": SCHEDULE.alpha(S) * x_0 + SCHEDULE.sigma(S) * first, r"\varepsilon": second}
    decoys = {name: value for name, value in LEVELS.items() if name not in ("x_t", "x_s", "I")}
    variance, shared = SCHEDULE.sigma(T) ** 2, SIGMA_TS  # of x_t, and of x_t with the second noise
    known = law([[SCHEDULE.alpha(T) * x_0, 0.0]], [[[variance, shared], [shared, 1.0]]])
    must = {"x_t": (lambda x: moments(torch.cat([x[:, :, 0], second], 1), weights), known)}
    return Reading(letters, decoys, statements=3, defines=("x_t",), must=must)


@reads("eq-bayes-step")
def bayes_step() -> Reading:
    step, told = kernels.exact(MIXTURE, SCHEDULE)(X_T, T, S), kernels.exact(MIXTURE, SCHEDULE, LABEL)(X_T, T, S)
    return Reading({
        "p(x_s | x_t, y)": told.log_prob(X_S).exp(),
        "p(x_s | x_t)": step.log_prob(X_S).exp(),
        "p(y | x_s)": at(S).class_log_prob(X_S, LABEL).exp(),
        "p(y | x_t)": at(T).class_log_prob(X_T, LABEL).exp(),
    })  # fmt: skip


ELLIPSE = {
    r"\mu": torch.tensor([[0.5, -1.0]], dtype=F64), r"\Sigma": torch.tensor([[[0.6, -0.4], [-0.4, 0.5]]], dtype=F64),
    "g": torch.tensor([[0.7, 1.1]], dtype=F64), "G": torch.tensor([[[-0.3, 0.2], [0.2, 0.4]]], dtype=F64),
    r"\mathcal N": normal_density, "x": X_S,
}  # fmt: skip


@reads("eq-complete-square")
def complete_square() -> Reading:
    return Reading({name: value for name, value in ELLIPSE.items() if name != "G"})


@reads("eq-taylor-second")
def taylor_second() -> Reading:
    shifted = {r"\top ( x [- -> +] \mu ) +": "changes the left side by a constant factor"}
    return Reading(ELLIPSE, statements=2, defines=(r"\Sigma'",), equivalent=shifted)


@reads("eq-mean-shift")
def mean_shift() -> Reading:
    base = kernels.moment_matched(MIXTURE, SCHEDULE)
    plain, gamma = base(X_T, T, S), 3.5
    shifted = kernels.shift(base, lambda x, t: at(float(t)).class_gradient(x, LABEL), gamma)(X_T, T, S)
    others = {"g_s(x_t)": class_slope(X_T, S), "g_t(x_s)": class_slope(X_S, T)}
    step = {r"\mu": plain.mean, r"\Sigma": plain.cov, r"\mathcal N": law}
    step["q(x_s | x_t)"] = law(shifted.mean, shifted.cov)
    return Reading(step | {"g_t(x_t)": class_slope(X_T, T), r"\gamma": gamma}, others, statements=2, defines=("g",))


@cache
def quadrature(label: int) -> tuple[Tensor, Tensor]:
    return posterior(at(S, label).log_prob, X_T, float(ALPHA_TS), float(SIGMA_TS))


@reads("eq-one-step-tweedie")
def one_step_tweedie() -> Reading:
    slopes = {}
    for time, name in ((T, "t"), (S, "s")):
        for x, place in ((X_T, "x_t"), (X_S, "x_s")):
            slopes[rf"\nabla \log p_{name}({place} | y)"] = slope(at(time, LABEL).log_prob, x)
            slopes[rf"\nabla \log p_{name}({place})"] = slope(at(time).log_prob, x)
    letters = {r"\mathbb E[x_s | x_t, y]": quadrature(LABEL)[0], "x_t": X_T}
    return Reading(letters, LEVELS | slopes, tolerance=1e-7)


@reads("eq-second-order")
def second_order() -> Reading:
    letters = {"H_t(x_t)": curvature(T, X_T), r"\mathrm{Cov}(x_s | x_t, y)": quadrature(LABEL)[1]}
    others = {"H_s(x_t)": curvature(S, X_T), "H_t(x_s)": curvature(T, X_S)}
    return Reading(letters, LEVELS | others, tolerance=1e-7)


@reads("eq-posterior-variance")
def posterior_variance() -> Reading:
    """Given x_0, the pair (x_s, x_t) is Gaussian: the variance of x_s less what x_t explains of it."""
    shared = ALPHA_TS * SCHEDULE.sigma(S) ** 2
    left = SCHEDULE.sigma(S) ** 2 - shared**2 / SCHEDULE.sigma(T) ** 2
    return Reading({r"\mathrm{Var}(x_s | x_t, x_0)": left}, LEVELS)


SIGN_OF_O = {r"| ^ 2 [+ -> -] O ( \beta": "O(...) has no sign"}
LENGTHS = torch.tensor([4e-3, 2e-3, 1e-3], dtype=F64)


def losses(kernel) -> Tensor:
    """The divergence of a kernel's step from the exact one, from one point, for each of LENGTHS, (3,)."""
    truth = kernels.exact(MIXTURE, SCHEDULE, LABEL)
    times = earlier(SCHEDULE, T, LENGTHS)
    return torch.cat([divergence.kl(truth(X_T[:1], T, s), kernel(X_T[:1], T, s)) for s in times])


@reads("eq-kl-no-shift")
def kl_no_shift() -> Reading:
    plain = kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, "large")
    letters = {r"\mathrm{KL}_{\text{no shift}}": losses(plain), r"\beta": LENGTHS, "g": class_slope(X_T[:1], T)}
    return Reading(letters, equivalent=SIGN_OF_O)


@reads("eq-kl-shift")
def kl_shift() -> Reading:
    name, cases = r"\mathrm{KL}_{\text{shift}}", {}
    for variance in ("large", "small"):
        plain = kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, variance)
        shifted = kernels.shift(plain, lambda x, t: at(float(t)).class_gradient(x, LABEL), 1.0)
        cases[f"({variance} variance)"] = {name: losses(shifted)}
    others = {name: LEVELS[name] for name in (r"\sigma_t", r"\sigma_s", "I")}
    letters = {r"\beta": LENGTHS, "H_t": curvature(T, X_T[:1])}
    return Reading(letters, others, statements=3, defines=("c",), cases=cases, equivalent=SIGN_OF_O)


@reads("eq-taylor")
def taylor() -> Reading:
    """Points and times that come closer together: the two sides differ like the square of the distance."""
    h = torch.tensor([4e-3, 2e-3, 1e-3], dtype=F64)
    x_t, ahead = X_T[:1].expand(3, 2), torch.tensor([[0.8, -0.5]], dtype=F64)
    x_s, s = x_t + h[:, None] * ahead, T - h
    later = torch.tensor(T, dtype=F64)
    rate = torch.autograd.functional.jacobian(lambda t: at(t).class_log_prob(X_T[:1], LABEL)[0], later)
    exact = torch.cat([at(float(time)).class_log_prob(point[None], LABEL) for time, point in zip(s, x_s, strict=True)])
    letters = {
        "x_t": x_t, "x_s": x_s, "s": s, "t": T, r"\log p_s(y | x_s)": exact, r"\approx": h**2,
        r"\log p_t(y | x_t)": at(T).class_log_prob(x_t, LABEL), r"\nabla \log p_t(y | x_t)": class_slope(x_t, T),
        r"\partial_t \log p_t(y | x_t)": rate,
    }  # fmt: skip
    earlier = torch.cat([at(float(time)).class_log_prob(X_T[:1], LABEL) for time in s])
    return Reading(letters, {r"\log p_s(y | x_t)": earlier, r"\log p_t(y | x_s)": at(T).class_log_prob(x_s, LABEL)})


@reads("eq-kl")
def kl() -> Reading:
    """Two Gaussians on the line, whose divergence has a closed form; the expectation is a sum over a fine grid."""
    x = torch.linspace(-12, 12, 4001, dtype=F64)
    one, other = ((0.3, 0.5), (-0.2, 0.9))  # mean and variance
    p, q = (torch.exp(-((x - m) ** 2) / 2 / v) / (2 * torch.pi * v) ** 0.5 for m, v in (one, other))
    names = {rf"\mathrm{{KL}}({a} \| {b})": gaussian_kl(law(*first), law(*second))
             for a, b, first, second in (("p", "q", one, other), ("q", "p", other, one))}  # fmt: skip
    weigh = {rf"\mathbb E_{name}": expectation(density * (x[1] - x[0])) for name, density in (("p", p), ("q", q))}
    letters = {name: (names | weigh)[name] for name in (r"\mathrm{KL}(p \| q)", r"\mathbb E_p")}
    return Reading(letters | {"p": p, "q": q}, names | weigh, statements=2, defines=(r"\rho",))


@reads("eq-moment-matching")
def moment_matching() -> Reading:
    """The closest Gaussian to a mixture on the line, by minimising, and the mixture's moments, by sums over a grid."""
    x = torch.linspace(-9, 9, 1201, dtype=F64)
    shares, means, variances = torch.tensor([[0.7, 0.3], [-0.6, 1.1], [0.4, 0.2]], dtype=F64)
    p = (shares * torch.exp(-((x[:, None] - means) ** 2) / 2 / variances) / (2 * torch.pi * variances).sqrt()).sum(1)
    weights = p * (x[1] - x[0])
    free = torch.zeros(2, dtype=F64, requires_grad=True)  # mean and logarithm of the variance
    search = torch.optim.LBFGS([free], max_iter=100, tolerance_grad=1e-13, tolerance_change=1e-16)

    def loss():
        search.zero_grad()
        value = (weights * (((x - free[0]) ** 2 / free[1].exp() + free[1]) / 2)).sum()
        value.backward()
        return value

    search.step(loss)
    closest = {r"\arg\min_{q \text{ Gaussian}} \mathrm{KL}(p \| q)": law(free[0].detach(), free[1].detach().exp())}
    covariance = {r"\mathrm{Cov}_p": lambda values: moments(values[:, :, 0], weights)[:, :, 1:]}
    letters = closest | covariance | {r"\mathcal N": law, "x": x, r"\mathbb E_p": expectation(weights)}
    return Reading(letters, tolerance=1e-6)


@reads("eq-path-kl")
def path_kl() -> Reading:
    """Gaussian data on the line, two steps, and two kernels that are lines plus noise: the joint laws are Gaussian."""
    steps = [((0.8, 0.1, 0.3), (0.7, 0.2, 0.4)), ((0.9, -0.2, 0.2), (1.1, 0.0, 0.5))]  # gain, offset, variance: p and q
    start = law(0.4, 0.8)
    joint_p, joint_q = (joint(start, [pair[k] for pair in steps]) for k in (0, 1))
    nodes, weights = normal_nodes(1)
    marginal, walked = start, {"p": [], "q": []}
    for pair in steps:
        x = marginal[0, 0, 0] + marginal[0, 0, 1].sqrt() * nodes[:, 0]
        for name, (gain, offset, variance) in zip("pq", pair, strict=True):
            walked[name].append(law(gain * x + offset, torch.full_like(x, variance)))
        gain, offset, variance = pair[0]
        marginal = law(gain * marginal[:, 0, :1] + offset, gain**2 * marginal[:, 0, 1:] + variance)
    letters = {
        r"\mathrm{KL}(P \| Q)": gaussian_kl(joint_p, joint_q),
        "p(x_s | x_t, y)": torch.cat(walked["p"]), "q(x_s | x_t)": torch.cat(walked["q"]), r"\mathrm{KL}": gaussian_kl,
        r"\mathbb E_{x_t \sim p_t(\cdot | y)}": lambda values: (weights * values.reshape(2, len(weights))).sum(1),
        r"\sum_{\text{steps}}": lambda values: values.reshape(2).sum(),
    }  # fmt: skip
    return Reading(letters, {r"\mathrm{KL}(Q \| P)": gaussian_kl(joint_q, joint_p)})


def joint(start: Tensor, lines: list[tuple[float, float, float]]) -> Tensor:
    """The law of (x_1, x_2, x_3) of a chain of lines plus noise, (1, 3, 4)."""
    mean, cov = start[0, :, 0], start[0, :, 1:]
    for gain, offset, variance in lines:
        mean = torch.cat([mean, gain * mean[-1:] + offset])
        row = gain * cov[-1:]
        corner = gain**2 * cov[-1:, -1:] + variance
        cov = torch.cat([torch.cat([cov, row.T], 1), torch.cat([row, corner], 1)])
    return law(mean[None], cov[None])
