"""What the letters of chapter 06's equations stand for, at other mixtures, points and times than the page's."""

from functools import cache

import torch
from torch import Tensor

from difflesson import kernels
from difflesson.mixture import GaussianMixture
from difflesson.schedule import vp_linear
from tests.oracles.mixtures import FOUR
from tests.readings.common import F64, earlier, expectation, gradient, normal_density, normal_nodes
from tools.formula import Reading, reads

MIXTURE, SCHEDULE, LABEL, T, S = FOUR.mixture(), vp_linear(0.3, 8.0), 1, 0.5, 0.35
X_T, X_S = torch.tensor([[[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]], [[-0.5, 0.3], [1.0, -0.9], [0.8, 1.4]]], dtype=F64)
ALPHA_TS, SIGMA_TS = SCHEDULE.transition(T, S)
NOISES = (0.3, 0.7)  # variances of the noise of class 0 and class 1, where it looks at the label


def at(time: float):
    return MIXTURE.noised(SCHEDULE.alpha(time), SCHEDULE.sigma(time))


def density(x: Tensor, means: Tensor, covs: Tensor) -> Tensor:
    """N(x; m_k, C_k) for points (N, d) or (1, d) and K Gaussians: (K, N); written out."""
    away = x - means[:, None]
    exponent = torch.einsum("kni,kij,knj->kn", away, torch.linalg.inv(covs), away) / 2
    return torch.exp(-exponent) / torch.linalg.det(2 * torch.pi * covs).sqrt()[:, None]


def joint_law(noises: tuple[float, float]) -> dict[str, Tensor]:
    """Every density of (x_s, x_t, y) at the three pairs of points, from Gaussians of pairs (x_s, x_t): (N,) each."""
    at_s, identity = at(S), torch.eye(2, dtype=F64)
    means, covs = at_s.means, at_s.covs
    noise = torch.stack([noises[y] * identity for y in at_s.labels])
    cov_t = ALPHA_TS**2 * covs + noise
    pair_means = torch.cat([means, ALPHA_TS * means], 1)
    pair_covs = torch.cat([torch.cat([covs, ALPHA_TS * covs], 2), torch.cat([ALPHA_TS * covs, cov_t], 2)], 1)
    chosen, weights = torch.tensor(at_s.labels) == LABEL, at_s.weights[:, None]
    both = weights * density(torch.cat([X_S, X_T], 1), pair_means, pair_covs)
    clean, noisy = weights * density(X_S, means, covs), weights * density(X_T, ALPHA_TS * means, cov_t)

    def told(rows):
        return rows[chosen].sum(0)

    return {
        "p(x_s, x_t, y)": told(both), "p(x_s, x_t)": both.sum(0), "p(x_t, y)": told(noisy), "p(x_t)": noisy.sum(0),
        "p(x_s)": clean.sum(0), "p(x_s, y)": told(clean), "p(x_s | x_t, y)": told(both) / told(noisy),
        "p(x_s | x_t)": both.sum(0) / noisy.sum(0), "p(y | x_s, x_t)": told(both) / both.sum(0),
        "p(y | x_t)": told(noisy) / noisy.sum(0), "p(y | x_s)": told(clean) / clean.sum(0),
        "p(x_t | x_s, y)": told(both) / told(clean), "p(x_t | x_s)": both.sum(0) / clean.sum(0),
    }  # fmt: skip


def some(law: dict[str, Tensor], *names: str) -> Reading:
    """A reading with these letters, and all the other densities as decoys."""
    return Reading({name: law[name] for name in names}, law)


@reads("eq-bayes-given-xt")
def bayes_given_xt() -> Reading:
    """With noise that looks at the label: the equation assumes nothing."""
    law = {name: value for name, value in joint_law(NOISES).items() if name != "p(x_s, x_t, y)"}
    return some(law, "p(x_s | x_t, y)", "p(x_s | x_t)", "p(y | x_s, x_t)", "p(y | x_t)")


@reads("eq-joint-chain")
def joint_chain() -> Reading:
    names = (
        "p(x_s | x_t, y)",
        "p(x_s, x_t, y)",
        "p(x_t, y)",
        "p(y | x_s, x_t)",
        "p(x_s | x_t)",
        "p(x_t)",
        "p(y | x_t)",
    )
    return some(joint_law(NOISES), *names)


BLIND = (float(SIGMA_TS**2), float(SIGMA_TS**2))


@reads("eq-label-blind-noise")
def label_blind_noise() -> Reading:
    law = joint_law(BLIND)
    letters = {name: law[name] for name in ("p(y | x_s, x_t)", "p(x_t | x_s, y)", "p(y | x_s)", "p(x_t | x_s)")}
    return Reading(letters, {name: law[name] for name in ("p(y | x_t)", "p(x_s | x_t)", "p(x_t)", "p(x_s)")})


@reads("eq-bayes-exponential")
def bayes_exponential() -> Reading:
    law = joint_law(BLIND)
    logs = {rf"\log {name}": law[name].log() for name in ("p(y | x_s)", "p(y | x_t)")}
    letters = {name: law[name] for name in ("p(x_s | x_t, y)", "p(x_s | x_t)")} | logs
    return Reading(letters, {name: law[name] for name in ("p(x_t)", "p(x_s)")})


@reads("eq-exact-reverse")
def exact_reverse() -> Reading:
    """One pair of points; the batch is the components, so that the sum over k is a sum over the batch."""
    x_s, x_t, count = X_S[1:2], X_T[1:2], len(MIXTURE.weights)
    weights, covs_t = (
        MIXTURE.weights,
        SCHEDULE.alpha(T) ** 2 * MIXTURE.covs + SCHEDULE.sigma(T) ** 2 * torch.eye(2, dtype=F64),
    )
    explained = weights * density(x_t, SCHEDULE.alpha(T) * MIXTURE.means, covs_t)[:, 0]
    letters = {
        "p(x_s | x_t)": joint_law(BLIND)["p(x_s | x_t)"][1:2], r"\sum_k": lambda values: values.sum(0, keepdim=True),
        "p(k | x_t)": explained / explained.sum(), r"\mathcal N": normal_density, "C_k": MIXTURE.covs,
        "x_s": x_s, "x_t": x_t, "m_k": MIXTURE.means, "I": torch.eye(2, dtype=F64)[None],
        r"\alpha_s": SCHEDULE.alpha(S), r"\alpha_t": SCHEDULE.alpha(T), r"\alpha_{t|s}": ALPHA_TS,
        r"\sigma_s": SCHEDULE.sigma(S), r"\sigma_t": SCHEDULE.sigma(T), r"\sigma_{t|s}": SIGMA_TS,
    }  # fmt: skip
    prior = {"p(k)": weights, "p(k | x_s)": torch.full((count,), 1 / count, dtype=F64)}
    return Reading(letters, prior, statements=3, defines=("V_s", "V_t"))


@cache
def step_grid(point: int) -> tuple[Tensor, Tensor]:
    """A fine grid of x_s, (M, 2), and the weights of p(x_s | x_t) there, by Bayes' rule for one Gaussian noise."""
    axis = torch.linspace(-7, 7, 241, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    log = at(S).log_prob(grid) - (X_T[point] - ALPHA_TS * grid).square().sum(1) / 2 / SIGMA_TS**2
    return grid, log.softmax(0)


@reads("eq-rejection-rate")
def rejection_rate() -> Reading:
    grid, weights = step_grid(0)
    law = joint_law(BLIND)
    letters = {
        r"\mathbb E_{x_s \sim p(\cdot | x_t)}": expectation(weights), "p(y | x_t)": law["p(y | x_t)"][:1],
        "p(y | x_s)": at(S).class_log_prob(grid, LABEL).exp(),
    }  # fmt: skip
    return Reading(letters, {"p(x_t)": law["p(x_t)"][:1], "p(x_s | x_t)": law["p(x_s | x_t)"][:1]}, tolerance=1e-7)


@cache
def path_grid() -> tuple[Tensor, Tensor]:
    """A grid of x_t and the weights of p_t(x | y)."""
    axis = torch.linspace(-9, 9, 301, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    return grid, at(T).given(LABEL).log_prob(grid).softmax(0)


PATH = r"\mathbb E_{x_t \sim p_t(\cdot | y)}"


@reads("eq-mean-cost")
def mean_cost() -> Reading:
    grid, weights = path_grid()
    letters = {
        PATH: expectation(weights), "p_t(y | x_t)": at(T).class_log_prob(grid, LABEL).exp(),
        "p(y)": MIXTURE.class_weights()[LABEL],
    }  # fmt: skip
    return Reading(letters, {"p_s(y | x_t)": at(S).class_log_prob(grid, LABEL).exp()}, tolerance=1e-6)


def information(time: float) -> Tensor:
    """KL(p_t(x | y) || p_t(x)) by a sum over a grid."""
    axis = torch.linspace(-9, 9, 301, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    log = at(time).given(LABEL).log_prob(grid)
    return log.softmax(0) @ (log - at(time).log_prob(grid))


@reads("eq-typical-cost")
def typical_cost() -> Reading:
    grid, weights = path_grid()
    letters = {
        PATH: expectation(weights), "p_t(y | x_t)": at(T).class_log_prob(grid, LABEL).exp(),
        "p(y)": MIXTURE.class_weights()[LABEL], "I_t": information(T),
    }  # fmt: skip
    return Reading(letters, {"I_s": information(S)}, tolerance=1e-6)


LENGTHS = torch.tensor([4e-3, 2e-3, 1e-3], dtype=F64)
SIGN_OF_O = {r"_ t ) [+ -> -] O ( \beta": "O(...) has no sign"}


def slope(x: Tensor, time: float) -> Tensor:
    """The gradient of log p_t(y | x), (N, d), by autograd: not the package's scores."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(at(time).class_log_prob(leaf, LABEL).sum(), leaf)[0]


def short_steps(point: Tensor, order: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each of LENGTHS: places of x_s (M, 2), weights of the model's step there, and p(y | x_s)."""
    found = []
    for s in earlier(SCHEDULE, T, LENGTHS):
        step = kernels.exact(MIXTURE, SCHEDULE)(point, T, s)
        z, shares = normal_nodes(2, order)
        places = step.means[:, 0][:, None] + torch.einsum("kde,ke,me->kmd", step.axes, step.variances.sqrt(), z)
        weights = (step.log_weights.exp()[:, 0][:, None] * shares).reshape(-1)
        places = places.reshape(-1, 2)
        found.append((places, weights, at(float(s)).class_log_prob(places, LABEL).exp()))
    return found


@reads("eq-ess-slope")
def ess_slope() -> Reading:
    """The mean is over the nodes of a step; the batch is three step lengths, whose weights w are given as one table."""
    steps = short_steps(X_T[:1], order=10)
    weights = torch.stack([weights for _, weights, _ in steps])  # (3, M)

    def mean(values: Tensor) -> Tensor:  # (3 M, 1, 1) -> (3, 1, 1)
        return (weights * values.reshape(weights.shape)).sum(1)[:, None, None]

    letters = {
        r"\mathbb E": mean, "w": torch.cat([w for _, _, w in steps]), r"\beta": LENGTHS, "g_t(x_t)": slope(X_T[:1], T),
    }  # fmt: skip
    others = {"g_s(x_t)": slope(X_T[:1], S), "g_t(x_s)": slope(X_S[:1], T)}
    return Reading(letters, others, equivalent={r"^ 2 } [+ -> -] O ( \beta": "O(...) has no sign"})


LINE = GaussianMixture([0.3, 0.2, 0.5], torch.tensor([[-1.2], [0.4], [1.5]], dtype=F64), [[[0.3]], [[0.1]], [[0.4]]],
                       labels=[0, 1, 1])  # fmt: skip


POWER = 1.7


@reads("eq-one-of-n")
def one_of_n() -> Reading:
    """Three proposals on the line: a triple sum over the nodes of a step, one chosen by weight."""
    chosen, plain, x_t = [], [], torch.tensor([[-0.3]], dtype=F64)
    for s in earlier(SCHEDULE, T, LENGTHS):
        step = kernels.exact(LINE, SCHEDULE)(x_t, T, s)
        z, shares = normal_nodes(1, order=8)
        places = (step.means[:, 0] + step.variances.sqrt() * z[:, 0]).reshape(-1)
        weights = (step.log_weights.exp() * shares).reshape(-1)
        w = LINE.noised(SCHEDULE.alpha(s), SCHEDULE.sigma(s)).class_log_prob(places[:, None], 1).exp()
        w = w**POWER
        share = w[:, None, None] / (w[:, None, None] + w[:, None] + w)  # of the first of three
        chosen.append(3 * torch.einsum("i,i,j,k,ijk->", places, weights, weights, weights, share))
        plain.append(weights @ places)

    def g(time: float, x: float) -> Tensor:
        return LINE.noised(SCHEDULE.alpha(time), SCHEDULE.sigma(time)).class_gradient(torch.tensor([[x]], dtype=F64), 1)

    letters = {
        r"\mathbb E[x_s^{(N)} | x_t]": torch.stack(chosen), r"\mathbb E[x_s | x_t]": torch.stack(plain), "N": 3.0,
        "a": POWER, r"\beta": LENGTHS, "g_t(x_t)": g(T, -0.3),
    }  # fmt: skip
    return Reading(letters, {"g_s(x_t)": g(S, -0.3), "g_t(x_s)": g(T, 0.5)}, equivalent=SIGN_OF_O)


@reads("eq-path-information")
def path_information() -> Reading:
    """The expectation is over x_t; the batch on the other side is three lengths of step."""
    grid, weights = path_grid()
    times = earlier(SCHEDULE, T, LENGTHS)
    letters = {
        r"\beta": LENGTHS, PATH: expectation(weights), "g_t(x_t)": slope(grid, T), "I_t": information(T),
        "I_s": torch.stack([information(float(s)) for s in times]),
    }  # fmt: skip
    return Reading(letters, equivalent=SIGN_OF_O)


@reads("eq-ess-floor")
def ess_floor() -> Reading:
    grid, weights = step_grid(0)
    w, chance = at(S).class_log_prob(grid, LABEL).exp(), joint_law(BLIND)["p(y | x_t)"][:1]
    letters = {r"\mathbb E": expectation(weights), "w": w, "p(y | x_t)": chance}
    return Reading(letters, {"p(x_t)": joint_law(BLIND)["p(x_t)"][:1]}, tolerance=1e-7)


@reads("eq-score-of-a-step")
def score_of_a_step() -> Reading:
    leaf = X_S.clone().requires_grad_()
    told = kernels.exact(MIXTURE, SCHEDULE, LABEL)(X_T, T, S).log_prob(leaf)
    free = kernels.exact(MIXTURE, SCHEDULE)(X_T, T, S).log_prob(leaf)
    letters = {
        r"\nabla": gradient(leaf), "p(x_s | x_t, y)": told.exp(), "p(x_s | x_t)": free.exp(),
        "p(y | x_s)": at(S).class_log_prob(leaf, LABEL).exp(),
    }  # fmt: skip
    return Reading(letters, {"p(x_s)": at(S).log_prob(leaf).exp()})


@reads("eq-inherited-error")
def inherited_error() -> Reading:
    """One point, a Gaussian step, both classes: the batch is the labels, and all divergences are sums over one grid."""
    grid, weights = step_grid(1)
    area = (grid[1] - grid[0]).sum() ** 2
    log_p = weights.log() - area.log()
    step = kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, "large")(X_T[1:2], T, S)
    log_q = step.log_prob(grid[:, None])[:, 0]
    chance = torch.stack([at(S).class_log_prob(grid, y) for y in (0, 1)])  # log p(y | x_s), (2, M)

    def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
        return (log_a.exp() * (log_a - log_b)).sum() * area

    label_p, label_q = ((log + chance).logsumexp(1) + area.log() for log in (log_p, log_q))
    told = torch.stack([kl(log_p + chance[y] - label_p[y], log_q + chance[y] - label_q[y]) for y in (0, 1)])
    names = {
        r"\mathrm{KL}(p(x_s | x_t, y) \| q_y)": told, r"\mathrm{KL}(p(x_s | x_t) \| q)": kl(log_p, log_q),
        r"\mathrm{KL}(p(y | x_t) \| q(y))": (label_p.exp() * (label_p - label_q)).sum(),
        "p(y | x_t)": label_p.exp(), r"\sum_y": lambda values: values.sum(0, keepdim=True),
    }  # fmt: skip
    return Reading(names, {"p(x_t)": at(T).log_prob(X_T[1:2]).exp(), "q(y)": label_q.exp()}, tolerance=1e-6)
