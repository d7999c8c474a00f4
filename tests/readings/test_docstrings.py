"""The formulas in the docstrings of functions that implement equations are true: each is read and evaluated as well."""

import ast
import math
import re

import pytest
import torch

from difflesson import (
    elbo,
    guidance,
    information,
    kernels,
    langevin,
    likelihood,
    ode,
    path,
    plane,
    practice,
    similarity,
)
from difflesson.denoiser import Prediction
from difflesson.schedule import cosine, from_betas, vp_linear
from tests.oracles.mixtures import FOUR
from tests.readings.common import F64, expectation, gradient
from tools.equation_labels import IN_DOCSTRING, definitions
from tools.formula import Reading, disagreements
from tools.formula.mutants import fate, mutants
from tools.formula.text import from_ascii
from tools.pairs import ROOT

MIXTURE, SCHEDULE, T, S, GAMMA = FOUR.mixture(), vp_linear(0.3, 8.0), torch.tensor(0.5, dtype=F64), 0.35, 3.5
LATE = torch.tensor([0.05, 0.2, 0.7, 1.0], dtype=torch.float64)
X = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]], dtype=F64)
ALPHA, SIGMA = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
ALPHA_TS, SIGMA_TS = SCHEDULE.transition(T, S)
NOISY, FREE = MIXTURE.noised(ALPHA, SIGMA), MIXTURE.denoiser(SCHEDULE)
BEST, PAIR = FREE(X, T), MIXTURE.pair(SCHEDULE, 1)
LEVELS = {
    "alpha": ALPHA, "sigma": SIGMA, "alpha_t": ALPHA, "sigma_t": SIGMA, "alpha_s": SCHEDULE.alpha(S),
    "sigma_s": SCHEDULE.sigma(S), "alpha_{t|s}": ALPHA_TS, "sigma_{t|s}": SIGMA_TS, "beta": SCHEDULE.beta(T),
    "I": torch.eye(2, dtype=F64)[None], "sqrt": torch.sqrt, "cos": torch.cos,
}  # fmt: skip
V = ALPHA * BEST.eps - SIGMA * BEST.x0
ENDS = cosine(9.0, -7.0)


def noise_and_clean(kernel) -> dict[str, object]:
    return {"x": X, "x0": BEST.x0, "eps": BEST.eps, "mean": kernel(X, T, S).mean}


def without(name: str, letters: dict[str, object]) -> dict[str, object]:
    return {other: value for other, value in letters.items() if other != name}


def of_the_second_step() -> dict[str, object]:
    """A multistep run of two steps from 0.7 over T to S: the letters of its second one."""
    kernel, clock = kernels.dpmpp_2m(FREE, SCHEDULE).start(), lambda t: torch.log(SCHEDULE.alpha(t) / SCHEDULE.sigma(t))
    before = torch.tensor(0.7, dtype=F64)
    x = kernel(X, before, T).mean
    lengths = {"h": clock(S) - clock(T), "h_last": clock(T) - clock(before)}
    return lengths | {"x0_last": FREE(X, before).x0, "x0": FREE(x, T).x0, "x": x, "x_s": kernel(x, T, S).mean}


def of_heun() -> dict[str, object]:
    euler = kernels.ddim(FREE, SCHEDULE)(X, T, S).mean
    later = FREE(euler, torch.tensor(S, dtype=F64)).x0
    return {"x_s": kernels.heun(FREE, SCHEDULE)(X, T, S).mean, "x_s'": euler, "x0'": later, "x0": BEST.x0}


def of_the_densities() -> dict[str, object]:
    x = X.clone().requires_grad_()
    cond, uncond = PAIR(X, T)
    return {"grad": gradient(x), "p_t(x | y)": NOISY.given(1).log_prob(x).exp(), "p_t(x)": NOISY.log_prob(x).exp(),
            "eps_u": uncond.eps, "eps_c": cond.eps}  # fmt: skip


def of_a_sharpened_classifier() -> dict[str, object]:
    """At one point; the two classes are the rows of p_t(y' | x)."""
    both = torch.stack([NOISY.class_log_prob(X[:1], y)[0] for y in (0, 1)])
    ours = guidance.sharpened(lambda x, t: both[None] + 4.0, 1, GAMMA)(X[:1], T).exp()
    return {"p~(y | x)": ours, "p_t(y | x)": both[1:].exp(), "p_t(y' | x)": both.exp(), "gamma": GAMMA,
            "sum_y'": lambda values: values.sum(0, keepdim=True)}  # fmt: skip


def of_a_table() -> dict[str, object]:
    betas = torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=F64)
    schedule = from_betas(betas)
    return {"alpha(k / T)": schedule.alpha(torch.tensor(0.75, dtype=F64)), "beta_j": betas[:3],
            "prod_{j <= k}": lambda values: values.prod(0)}  # fmt: skip


def of_kl() -> dict[str, object]:
    x = torch.linspace(-12, 12, 4001, dtype=F64)
    step, other = (torch.exp(-((x - m) ** 2) / 2 / v) / (2 * torch.pi * v) ** 0.5 for m, v in ((0.3, 0.5), (-0.2, 0.9)))
    return {"step": step, "other": other, "E": expectation(step * (x[1] - x[0]))}


def field(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, 0] ** 2 * x[:, 1], torch.sin(x[:, 0]) + x[:, 1] ** 3], 1)


def slopes() -> dict[str, object]:
    rows = torch.stack([torch.autograd.functional.jacobian(lambda p: field(p[None])[0], point) for point in X])
    return {f"d f_{i + 1} / d x_{j + 1}": rows[:, i, j] for i in (0, 1) for j in (0, 1)}


def of_a_worth() -> dict[str, object]:
    """Of a weight in the plane: the package's answers, and the means that they are made of by sums over a grid."""

    def log_weight(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x[..., 0]) + 0.4 * x[..., 1]

    axis = torch.linspace(-8, 8, 161, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    chances = (MIXTURE.log_prob(grid) - (X[:, None] - ALPHA * grid).square().sum(2) / 2 / SIGMA**2).softmax(1)
    heard = chances * log_weight(grid).exp()
    worth, pull = (part(MIXTURE, SCHEDULE, log_weight, 20)(X, T)
                   for part in (similarity.noisy_log_weight, similarity.noisy_gradient))  # fmt: skip
    return {"h_t(x)": worth.exp(), "E[exp(log_weight(x_0)) | x_t = x]": heard.sum(1), "grad log h_t(x)": pull,
            "tilted": heard @ grid / heard.sum(1, keepdim=True), "mean": chances @ grid}  # fmt: skip


def of_a_label() -> dict:
    """What a little less noise tells of the label, by finite differences, and the squared distance of two guesses."""
    log_snr, step = SCHEDULE.log_snr(T), 1e-3
    near = [SCHEDULE.time(log_snr + sign * step) for sign in (1, -1)]
    more, less = (information.label_information(MIXTURE, SCHEDULE, t, order=40) for t in near)
    x, weights, label = information.labelled_nodes(MIXTURE, SCHEDULE, T, 40)
    told, untold = (guess.eps for guess in MIXTURE.pair(SCHEDULE, label)(x, T))
    return {"d I(y; x_t) / d log_snr": (more - less) / (2 * step),
            "E |eps_c - eps_u|^2": weights @ (told - untold).square().sum(1)}  # fmt: skip


def of_a_spread() -> dict[str, object]:
    """The package's divergence of a flow, and all signs in the plane, by differences along each."""
    flow, h = ode.probability_flow(FREE, SCHEDULE), 1e-5
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * 2)
    along = [((flow(X + h * z, T) - flow(X - h * z, T)) / (2 * h) * z).sum(1) for z in signs]
    return {"div v": likelihood.divergence(flow, X, T)[0], "E[z . grad (v . z)]": torch.stack(along).mean(0)}


def of_a_reconstruction() -> dict[str, object]:
    """At the last time of a grid; the error by a sum over a grid of noises."""
    axis = torch.linspace(-8, 8, 161, dtype=F64)
    noise = torch.cartesian_prod(axis, axis)
    chance = (-noise.square().sum(1) / 2).softmax(0)
    error = chance @ likelihood.squared_errors(FREE, SCHEDULE, X, T, noise)
    bound = likelihood.variational_bound(FREE, SCHEDULE, X, torch.stack([torch.tensor(0.9, dtype=F64), T]), order=60)
    return {"reconstruction": bound.reconstruction, "d": 2, "pi": math.pi, "SNR(t_1)": (ALPHA / SIGMA) ** 2,
            "E|x - x0_hat|^2": error}  # fmt: skip


def of_the_least_error() -> dict[str, object]:
    """The error, and the trace of the second derivatives, by sums over a grid of noisy points."""
    axis = torch.linspace(-8, 8, 321, dtype=F64)
    x = torch.cartesian_prod(axis, axis)
    chance = NOISY.log_prob(x).softmax(0)
    bend = chance @ NOISY.hessian(x).diagonal(dim1=1, dim2=2).sum(1)
    return {"least": likelihood.least_error(MIXTURE, SCHEDULE, T, 40), "d": 2,
            "E[trace grad grad log p_t(x_t)]": bend}  # fmt: skip


SCORE = NOISY.score(X)
CLEAN, NOISE = BEST.x0, BEST.eps
TILTED = guidance.tilt(FREE, lambda x, t: x.flip(1), GAMMA, SCHEDULE)(X, T)
COLD = guidance.tempered(FREE, 1.7, SCHEDULE)(X, T)
FORMULAS = {  # where it stands; the formula; what its letters are; what else its reading needs
    "denoiser.Prediction.from_x0": (
        "eps = (x - alpha x0) / sigma",
        {"x": X, "x0": CLEAN, "eps": Prediction.from_x0(X, CLEAN, ALPHA, SIGMA).eps}, {}),
    "denoiser.Prediction.from_eps": (
        "x0 = (x - sigma eps) / alpha",
        {"x": X, "eps": NOISE, "x0": Prediction.from_eps(X, NOISE, ALPHA, SIGMA).x0}, {}),
    "denoiser.Prediction.from_v": (
        "`v = alpha eps - sigma x0`, so `x0 = alpha x - sigma v` and `eps = sigma x + alpha v`",
        {"x": X, "v": V, "x0": Prediction.from_v(X, V, ALPHA, SIGMA).x0,
         "eps": Prediction.from_v(X, V, ALPHA, SIGMA).eps}, {"statements": 3}),
    "denoiser.Prediction.from_score": (
        "`eps = -sigma score` and Tweedie's `x0 = (x + sigma^2 score) / alpha`",
        {"x": X, "score": SCORE, "eps": Prediction.from_score(X, SCORE, ALPHA, SIGMA).eps,
         "x0": Prediction.from_score(X, SCORE, ALPHA, SIGMA).x0}, {"statements": 2}),
    "denoiser.Prediction.score": (
        "grad log p_t(x) = -eps / sigma", {"eps": NOISE, "grad log p_t(x)": BEST.score(SIGMA)}, {}),
    "clean_classifier.clean_cov": (
        "Cov(x_0 | x_t = x) = sigma^2 / alpha d x0 / d x",
        {"Cov(x_0 | x_t = x)": MIXTURE.reverse(X, SCHEDULE, T, 0.0).cov,
         "d x0 / d x": plane.jacobian(lambda x: FREE(x, T).x0, X)}, {"tolerance": 1e-6}),
    "clean_classifier.step_guess": (
        "mu = (alpha_{t|s} sigma_s^2 x + alpha_s sigma_{t|s}^2 x0) / sigma_t^2",
        {"mu": MIXTURE.reverse(X, SCHEDULE, T, S).mean, "x": X, "x0": CLEAN}, {}),
    "divergence.kl": (
        "E[log step - log other] = E[r - 1 - log r],     r = other / step", of_kl(),
        {"statements": 2, "defines": ("r",)}),
    "guidance.tilt": (
        "eps -> eps - gamma sigma g          x0 -> x0 + gamma sigma^2 / alpha g",
        {"eps": NOISE, "x0": CLEAN, "g": X.flip(1), "gamma": GAMMA,
         "->": lambda v: TILTED.eps if torch.equal(v[:, :, 0], NOISE) else TILTED.x0}, {"statements": 2}),
    "guidance.classifier_free": (
        "`eps = eps_u + gamma (eps_c - eps_u)`",
        {"eps_u": PAIR(X, T)[1].eps, "eps_c": PAIR(X, T)[0].eps, "gamma": GAMMA,
         "eps": guidance.classifier_free(PAIR, GAMMA)(X, T).eps}, {}),
    "guidance.implicit_gradient": (
        "grad log (p_t(x | y) / p_t(x)) = (eps_u - eps_c) / sigma", of_the_densities(), {}),
    "guidance.tempered": (
        "eps -> kappa eps          x0 -> x0 + (1 - kappa) sigma / alpha eps",
        {"eps": NOISE, "x0": CLEAN, "kappa": 1.7,
         "->": lambda v: COLD.eps if torch.equal(v[:, :, 0], NOISE) else COLD.x0}, {"statements": 2}),
    "guidance.sharpened": (
        "p~(y | x) = p_t(y | x)^gamma / Z,     Z = sum_y' p_t(y' | x)^gamma", of_a_sharpened_classifier(),
        {"statements": 2, "defines": ("Z",)}),
    "kernels.posterior_variance": (
        "sigma_s^2 sigma_{t|s}^2 / sigma_t^2", {"function": kernels.posterior_variance(SCHEDULE, T, S)}, {}),
    "kernels.ddpm": (
        "mean = (alpha_{t|s} sigma_s^2 x + alpha_s sigma_{t|s}^2 x0) / sigma_t^2\nvar  = small^{1 - v} large^v",
        without("eps", noise_and_clean(kernels.ddpm(FREE, SCHEDULE)))
        | {"var": kernels.ddpm(FREE, SCHEDULE, 0.3)(X, T, S).var, "v": 0.3, "large": SIGMA_TS**2,
           "small": kernels.ddpm(FREE, SCHEDULE, "small")(X, T, S).var}, {"statements": 2}),
    "kernels.ddim": (
        "mean = alpha_s x0 + sqrt(sigma_s^2 - v) eps,     v = eta^2 sigma_s^2 sigma_{t|s}^2 / sigma_t^2",
        without("x", noise_and_clean(kernels.ddim(FREE, SCHEDULE, 0.8))) | {"eta": 0.8},
        {"statements": 2, "defines": ("v",)}),
    "kernels.heun": (
        "x_s = x_s' + (alpha_s - alpha_t sigma_s / sigma_t) (x0' - x0) / 2", of_heun(), {}),
    "kernels.dpmpp_2m": (
        "x_s = (sigma_s / sigma_t) x + alpha_s (1 - e^{-h}) D,     D = x0 + (h / h_last) (x0 - x0_last) / 2",
        of_the_second_step(), {"statements": 2, "defines": ("D",)}),
    "kernels.one_step_mean": (
        "E[x_s | x_t] = (x_t + sigma_{t|s}^2 grad log p_t(x_t)) / alpha_{t|s}",
        {"x_t": X, "E[x_s | x_t]": kernels.one_step_mean(X, SCORE, SCHEDULE, T, S),
         "grad log p_t(x_t)": SCORE}, {}),
    "kernels.moment_matched": (
        "cov  = sigma_{t|s}^2 / alpha_{t|s}^2 (I + sigma_{t|s}^2 grad grad log p_t)",
        {"cov": kernels.moment_matched(MIXTURE, SCHEDULE)(X, T, S).cov, "grad grad log p_t": NOISY.hessian(X)}, {}),
    "ode.probability_flow": (
        "dx/dt = -beta / 2 (x + score) = beta alpha / (2 sigma) v,      v = alpha eps - sigma x0",
        {"dx/dt": ode.probability_flow(FREE, SCHEDULE)(X, T), "x": X, "score": SCORE, "eps": NOISE, "x0": CLEAN},
        {"statements": 2, "defines": ("v",)}),
    "path.corrector_scale": (
        "gamma' = gamma + (gamma - predictor) / rho^2",
        {"gamma'": path.corrector_scale(4.0, 0.6, 1.3), "gamma": 4.0, "predictor": 1.3, "rho": 0.6}, {}),
    "langevin.unadjusted": (
        "x' = x + c score + sqrt(2 c) eps",
        {"x'": langevin.unadjusted(NOISY.score, X, 0.3, 1, torch.Generator().manual_seed(8)), "x": X, "c": 0.3,
         "score": SCORE, "eps": torch.randn(X.shape, generator=torch.Generator().manual_seed(8), dtype=F64)}, {}),
    "information.label_rate": (
        "d I(y; x_t) / d log_snr = E |eps_c - eps_u|^2 / 2", of_a_label(), {"tolerance": 1e-6}),
    "likelihood.variational_bound": (
        "reconstruction = d / 2 log(2 pi / SNR(t_1)) + SNR(t_1) / 2 E|x - x0_hat|^2", of_a_reconstruction(),
        {"tolerance": 1e-6}),
    "likelihood.divergence": ("div v = E[z . grad (v . z)]", of_a_spread(), {"tolerance": 1e-6}),
    "likelihood.least_error": (
        "least = sigma^2 / alpha^2 (d + sigma^2 E[trace grad grad log p_t(x_t)])", of_the_least_error(),
        {"tolerance": 1e-6}),
    "plane.curl": ("curl f = d f_2 / d x_1 - d f_1 / d x_2", {"curl f": plane.curl(field, X)}, {"decoys": slopes()}),
    "schedule": (
        "x_t = alpha x_0 + sigma eps,     alpha = exp(-B / 2),     sigma^2 = 1 - exp(-B)",
        {"x_t": SCHEDULE.add_noise(X, X.flip(0), T), "x_0": X, "eps": X.flip(0), "B": SCHEDULE.integrated_beta(T)},
        {"statements": 3}),
    "schedule.Schedule.transition": (
        "`alpha_{t|s} = alpha_t / alpha_s` and `sigma_{t|s}^2 = 1 - alpha_{t|s}^2`", {}, {"statements": 2}),
    "schedule.Schedule.add_noise": (
        "x_t = alpha x_0 + sigma eps", {"x_t": SCHEDULE.add_noise(X, X.flip(0), T), "x_0": X, "eps": X.flip(0)}, {}),
    "schedule.vp_linear": (
        "beta(t) = beta_min + t (beta_max - beta_min)",
        {"beta(t)": vp_linear(0.3, 8.0).beta(T), "beta_min": 0.3, "beta_max": 8.0, "t": T}, {}),
    "schedule.cosine": (
        "`log_snr(t) = -2 log tan(a t + b)`, that is `alpha = cos(a t + b)`",
        {"log_snr(t)": ENDS.log_snr(T), "alpha": ENDS.alpha(T), "t": T, "b": math.atan(math.exp(-4.5)),
         "a": math.atan(math.exp(3.5)) - math.atan(math.exp(-4.5))}, {"statements": 2}),
    "schedule.from_betas": ("alpha(k / T)^2 = prod_{j <= k} (1 - beta_j)", of_a_table(), {}),
    "mixture.GaussianMixture.class_gradient": (
        "grad log p(label | x) = grad log p(x | label) - grad log p(x)",
        {"grad log p(label | x)": NOISY.class_gradient(X, 1), "grad log p(x | label)": NOISY.given(1).score(X),
         "grad log p(x)": SCORE}, {}),
}  # fmt: skip
WORTH_LETTERS = of_a_worth()
FORMULAS |= {
    "similarity.noisy_log_weight": (
        "log h_t(x) = log E[exp(log_weight(x_0)) | x_t = x]",
        {name: WORTH_LETTERS[name] for name in ("h_t(x)", "E[exp(log_weight(x_0)) | x_t = x]")}, {"tolerance": 1e-5}),
    "similarity.noisy_gradient": (
        "grad log h_t(x) = alpha_t / sigma_t^2 (tilted - mean)",
        {name: WORTH_LETTERS[name] for name in ("grad log h_t(x)", "tilted", "mean")}, {"tolerance": 1e-5}),
}  # fmt: skip


def of_a_linear_model() -> dict[str, dict[str, object]]:
    """Of a model with two causes: its posterior by sums over a grid of causes, two Gaussians, the likeliest W."""
    W, s = torch.tensor([[0.9, -0.3], [0.5, 1.1], [-0.6, 0.4]], dtype=F64), 0.7
    b = torch.tensor([0.3, -0.2, 0.6], dtype=F64)
    model, x = elbo.LinearGaussian(W, b, s), torch.tensor([[1.0, 0.2, -0.5], [-0.8, 1.5, 0.4]], dtype=F64)
    right = model.posterior(x)
    guess = type(right)(right.mean + 0.3, right.cov + 0.2 * torch.eye(2, dtype=F64))
    gauss = [torch.distributions.MultivariateNormal(one.mean, one.cov) for one in (guess, right)]
    axes, chances = torch.cartesian_prod(*[torch.linspace(-6, 6, 241, dtype=F64)] * 2), (12 / 240) ** 2
    noise = -(x[:, None] - b - axes @ W.T).square().sum(2) / 2 / s**2 - 1.5 * math.log(2 * math.pi) - 3 * math.log(s)
    weights = gauss[0].log_prob(axes[:, None]).exp().T * chances  # (2, M)
    prior = -axes.square().sum(1) / 2 - math.log(2 * math.pi)
    cov = torch.tensor([[2.0, 0.6, 0.1], [0.6, 1.5, -0.2], [0.1, -0.2, 0.9]], dtype=F64)
    values, directions = torch.linalg.eigh(cov)
    columns = elbo.likeliest_linear(cov, 0.5, 2).T
    signs = torch.sign((columns * directions.flip(1)[:, :2].T).sum(1, keepdim=True))
    return {
        "kl": {"KL": elbo.gaussian_kl(guess, right), "C_p": right.cov, "C_q": guess.cov, "d": 2.0, "m_p": right.mean,
               "m_q": guess.mean, "(m_p - m_q)^T": (right.mean - guess.mean)[:, None], "det": torch.linalg.det,
               "tr": lambda m: m.diagonal(dim1=1, dim2=2).sum(1)},
        "posterior": {"C": right.cov[:1], "mean": right.mean, "W^T": W.T[None], "W": W[None], "s": s, "x": x,
                      "b": b[None]},
        "elbo": {"ELBO": model.elbo(x, guess), "E_q[log p(x | z)]": (weights * noise).sum(1),
                 "KL(q(z | x) || p(z))": (weights * (gauss[0].log_prob(axes[:, None]).T - prior)).sum(1)},
        "W": {"w_j": columns, "lambda_j": values.flip(0)[:2], "s": 0.5, "u_j": signs * directions.flip(1)[:, :2].T},
    }  # fmt: skip


LINEAR = of_a_linear_model()
FORMULAS |= {
    "elbo.gaussian_kl": (
        "KL = (log(det C_p / det C_q) - d + tr(C_p^{-1} C_q) + (m_p - m_q)^T C_p^{-1} (m_p - m_q)) / 2",
        LINEAR["kl"], {}),
    "elbo.LinearGaussian.posterior": (
        "C = (I + W^T W / s^2)^{-1},     mean = C W^T (x - b) / s^2", LINEAR["posterior"], {"statements": 2}),
    "elbo.LinearGaussian.elbo": (
        "ELBO = E_q[log p(x | z)] - KL(q(z | x) || p(z))", LINEAR["elbo"], {"tolerance": 1e-7}),
    "elbo.likeliest_linear": ("w_j = sqrt(lambda_j - s^2) u_j", LINEAR["W"], {}),
}  # fmt: skip


def of_practised_rules() -> dict[str, dict[str, object]]:
    """Two guesses of one point each, their mixture by every rule, and what the formulas are made of."""
    cond, uncond = PAIR(X, T)
    velocity = [ALPHA * guess.eps - SIGMA * guess.x0 for guess in (cond, uncond)]
    push, bold = cond.x0 - uncond.x0, torch.tensor([[-1.9, 0.2], [0.3, 0.5], [1.5, -1.2]], dtype=F64)
    along = (push * cond.x0).sum(1, keepdim=True) / cond.x0.square().sum(1, keepdim=True) * cond.x0

    def says_bold(x: torch.Tensor, t: torch.Tensor) -> Prediction:
        return Prediction.from_x0(x, bold, ALPHA, SIGMA)

    rules = {
        "rescaled": practice.rescaled(GAMMA, 0.7, SCHEDULE), "zero": practice.zero_star(GAMMA, SCHEDULE),
        "projected": practice.projected(GAMMA, SCHEDULE, eta=0.4),
    }  # fmt: skip
    got = {name: guidance.mix(PAIR, rule)(X, T) for name, rule in rules.items()}
    eps_gamma = uncond.eps + GAMMA * (cond.eps - uncond.eps)
    return {
        "rescaled": {"eps": got["rescaled"].eps, "eps_gamma": eps_gamma, "eps_c": cond.eps, "phi": 0.7,
                     "std": lambda values: values.std(1, keepdim=True)},
        "projected": {"x0": got["projected"].x0, "x0_c": cond.x0, "x0_u": uncond.x0, "gamma": GAMMA, "eta": 0.4,
                      "d_across": push - along, "d_along": along, "d": push},
        "zero": {"v": ALPHA * got["zero"].eps - SIGMA * got["zero"].x0, "v_c": velocity[0], "v_u": velocity[1],
                 "gamma": GAMMA, "v_c . v_u": (velocity[0] * velocity[1]).sum(1),
                 "|v_u|^2": velocity[1].square().sum(1)},
        "threshold": {"x0": bold, "limit": 0.6, "quantile of |x0|": bold.abs().quantile(0.8, dim=1),
                      "->": lambda v: practice.thresholded(says_bold, SCHEDULE, 0.8, 0.6)(X, T).x0,
                      "max": torch.maximum, "clip": torch.clamp},
        "growing": {"gamma(t)": practice.growing_scale(GAMMA)(LATE), "gamma": GAMMA, "t": LATE},
        "plus": {"gamma(t)": practice.plus_plus_scale(0.6, SCHEDULE, torch.tensor([0.9, T, S]))(T), "lam": 0.6},
        "healed": {"gamma(t)": practice.healing_scale(0.8, 0.3, 1.1, SCHEDULE)(T), "v": 0.8, "b1": 0.3, "b2": 1.1},
    }  # fmt: skip


PRACTISED = of_practised_rules()
FORMULAS |= {
    "practice.rescaled": (
        "eps = eps_gamma (phi std(eps_c) / std(eps_gamma) + 1 - phi)", PRACTISED["rescaled"], {}),
    "practice.projected": (
        "x0 = x0_c + (gamma - 1) (d_across + eta d_along),      d = x0_c - x0_u", PRACTISED["projected"],
        {"statements": 2}),
    "practice.zero_star": (
        "v = s v_u + gamma (v_c - s v_u),      s = (v_c . v_u) / |v_u|^2", PRACTISED["zero"],
        {"statements": 2, "defines": ("s",)}),
    "practice.thresholded": (
        "s = max(limit, quantile of |x0|),      x0 -> limit clip(x0, -s, s) / s", PRACTISED["threshold"],
        {"statements": 2, "defines": ("s",), "equivalent": {
            r"= \max ( [\limit , \quantile \of | x 0 | -> \quantile \of | x 0 | , \limit] ) \qquad x":
                "the larger of two has no order"}}),
    "practice.growing_scale": ("gamma(t) = 1 + 2 (gamma - 1) (1 - t)", PRACTISED["growing"], {}),
    "practice.plus_plus_scale": (
        "gamma(t) = lam / (1 - (alpha_t sigma_s) / (alpha_s sigma_t))", PRACTISED["plus"], {}),
    "practice.healing_scale": (
        "gamma(t) = b2 (v + b1 + q) / ((b2 - b1) (v + q)),     q = sigma^2 / alpha^2", PRACTISED["healed"],
        {"statements": 2, "defines": ("q",)}),
}  # fmt: skip
NOT_READ = {
    "remedies.feynman_kac": "a rate, in differentials; it is read in chapter 18",
    "clean_classifier.gaussian_cloud": "an expectation over draws; read in chapter 12",
    "clean_classifier.logistic_cloud": "nearly true, to no order; read in chapter 12",
    "practice.interval": "two cases, in words; chapter 15 has them in symbols, and that is read",
    "divergence.path_kl": "a sum over steps, in words; chapter 07 has it in symbols, and that is read",
    "divergence.closest_gaussian": "the reason of the claim; the claim is read in chapter 07",
    "divergence.leading_kl_with_shift": "its cases, in words; read in chapter 07",
    "guidance.linearise": "a map; chapter 07 has it as an equation, and that is read",
    "kernels.reverse_sde": "a stochastic differential equation",
    "likelihood.flow_log_prob": "an integral along a path; read in chapter 05",
    "likelihood.error_area": "an integral along the log signal-to-noise ratio; read in chapter 03",
    "losses.v_loss": "in the words of the code; read in chapter 11",
    "losses.denoising_loss": "in the words of the code, with a sum over the labels",
    "losses.drop_labels": "in words; read in chapter 11",
    "mixture.GaussianMixture": "with the indices of the code",
    "mixture.GaussianMixture.score": "a sum over components with an index on each letter",
    "mixture.GaussianMixture.noised": "read at add_noise",
    "mixture.GaussianMixture.reverse": "letters inside a sentence",
    "mixture.MixtureDenoiser": "a root of a matrix",
    "pipelines.exact_network": "in words; read in chapter 20",
    "pipelines.guided_network": "in the words of the code; read in chapter 11",
    "pipelines.flowed": "a function's inverse; read in chapter 20",
    "pipelines.check_scheduler": "a function's inverse; read in chapter 20",
    "similarity.mean_gradient": "in the words of the code; read in chapter 09",
    **dict.fromkeys(
        ("conventions.between", "conventions.convert", "conventions.guidance_scale", "conventions.noise_level"),
        "what goes in and what comes out, in the words of other people's code",
    ),
}


def docstrings() -> dict[str, str]:
    """The docstrings of the package that name an equation, by dotted name without `difflesson.`."""
    found = {}
    for file in sorted((ROOT / "difflesson").glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for name, node in [(file.stem, tree), *definitions(tree, file.stem)]:
            text = ast.get_docstring(node) or ""
            if IN_DOCSTRING.search(text):
                found[name] = text
    return found


def equation(name: str) -> tuple[str, Reading]:
    """The formula of a docstring as LaTeX, and its reading."""
    formula, letters, more = FORMULAS[name]
    latex = from_ascii("\n".join(re.findall("`([^`]*)`", formula)) or formula).replace("\n", r" \qquad ")
    latex = rf"\function = {latex}" if "function" in letters else latex
    more = dict(more)
    decoys = {from_ascii(key): value for key, value in (LEVELS | more.pop("decoys", {})).items()}
    return latex, Reading({from_ascii(key).strip(): value for key, value in letters.items()}, decoys, **more)


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_formula_of_a_docstring_is_true(name: str):
    assert squeezed(FORMULAS[name][0]) in squeezed(docstrings()[name])
    assert disagreements(*equation(name)) == []


@pytest.mark.parametrize("name", FORMULAS)
def test_a_mistake_in_it_is_noticed(name: str):
    latex, reading = equation(name)
    alive = [mutant.where for mutant in mutants(latex, reading) if fate(mutant, reading) == "alive"]
    assert alive == list(reading.equivalent)


def test_every_docstring_with_a_formula_is_read_or_says_why_not():
    """A formula: an indented line, or a span of code, with `=` or `->` in it that is no default and no condition."""
    with_formula = {
        name
        for name, text in docstrings().items()
        for part in re.findall(r"^ {4}.*|`[^`]*`", text, re.MULTILINE)
        if re.search(r"\w.* (=|->) \S.*[-+/^ ].*", part) and not re.search(r"= (one_step_mean|0|1)`", part)
    }
    assert with_formula - FORMULAS.keys() - NOT_READ.keys() == set()
    assert NOT_READ.keys() & FORMULAS.keys() == set() and NOT_READ.keys() <= docstrings().keys()
    assert len(NOT_READ) < 2 / 3 * len(FORMULAS)
