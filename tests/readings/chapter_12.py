"""What the letters of chapter 12's equations stand for: another mixture and other times than the page's, and grids."""

from functools import cache

import torch
from torch import Tensor

from difflesson import clean_classifier, guidance
from difflesson.mixture import GaussianMixture
from difflesson.schedule import vp_linear
from tests.oracles.mixtures import FOUR, single
from tests.readings.common import F64, expectation, gradient, normal_nodes
from tools.formula import Reading, reads

MIXTURE, SCHEDULE, LABEL = FOUR.mixture(), vp_linear(0.3, 8.0), 1
T, S = torch.tensor(0.4, dtype=F64), torch.tensor(0.25, dtype=F64)
POINTS = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]], dtype=F64)
ALPHA, SIGMA = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
LEVELS = {r"\alpha_t": ALPHA, r"\sigma_t": SIGMA, r"\alpha_s": SCHEDULE.alpha(S), r"\sigma_s": SCHEDULE.sigma(S)}
OTHER = {r"\alpha_s": SCHEDULE.alpha(S), r"\sigma_s": SCHEDULE.sigma(S)}  # what a typing mistake may put there
NOW = {r"\alpha_t": ALPHA, r"\sigma_t": SIGMA}
NOISY, DENOISER = MIXTURE.noised(ALPHA, SIGMA), MIXTURE.denoiser(SCHEDULE)
IDENTITY = torch.eye(2, dtype=F64)[None]


def clean(x0: Tensor) -> Tensor:
    """log p_o(y | x0)."""
    return MIXTURE.class_log_prob(x0, LABEL)


@cache
def grid() -> Tensor:
    axis = torch.linspace(-7, 7, 281, dtype=F64)
    return torch.cartesian_prod(axis, axis)


def shares(x: Tensor, prior: GaussianMixture, alpha: Tensor, sigma: Tensor) -> Tensor:
    """p(z | x) at the points z of the grid, for x = alpha z + sigma noise: (N, M), differentiable in x."""
    away = (x[:, None] - alpha * grid()).square().sum(2)
    return (prior.log_prob(grid()) - away / (2 * sigma**2)).softmax(1)


def cloud(x: Tensor) -> Tensor:
    return shares(x, MIXTURE, ALPHA, SIGMA)


def covariance(x: Tensor) -> Tensor:
    weights, mean = cloud(x), cloud(x) @ grid()
    return torch.einsum("nm,md,me->nde", weights, grid(), grid()) - mean[:, :, None] * mean[:, None, :]


def slope(log_prob, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(log_prob(leaf).sum(), leaf)[0]


@reads("eq-noisy-answer")
def noisy_answer() -> Reading:
    averaged = cloud(POINTS) @ clean(grid()).exp()
    answer = NOISY.class_log_prob(POINTS, LABEL).exp()
    letters = {"p_t(y | x)": answer, r"\mathbb E[p_o(y | x_0) | x_t = x]": averaged}
    return Reading(letters, {"p_o(y | x)": clean(POINTS).exp()}, tolerance=1e-7)


@reads("eq-clean-guess")
def clean_guess() -> Reading:
    guess = clean_classifier.clean_guess(DENOISER, clean)(POINTS, T).exp()
    middle = clean(cloud(POINTS) @ grid()).exp()
    letters = {r"\hat p_t(y | x)": guess, r"p_o(y | \hat x_0(x))": middle}
    return Reading(letters, {"p_o(y | x)": clean(POINTS).exp()}, tolerance=1e-7)


@reads("eq-nudge")
def nudge() -> Reading:
    def f(z: Tensor) -> Tensor:
        return torch.sin(z[:, 0]) + z[:, 0] * z[:, 1] ** 2

    x = POINTS.clone().requires_grad_()
    weights, values = cloud(POINTS), f(grid())
    mean, value = weights @ grid(), weights @ values
    together = torch.einsum("nm,m,md->nd", weights, values, grid()) - value[:, None] * mean
    letters = {
        r"\nabla": gradient(x), r"\mathbb E[f(x_0) | x_t = x]": cloud(x) @ values,
        r"\mathrm{Cov}(x_0, f(x_0) | x_t = x)": together,
    }  # fmt: skip
    return Reading(letters | NOW, OTHER, tolerance=1e-7)


@reads("eq-clean-jacobian")
def clean_jacobian() -> Reading:
    rows = [torch.autograd.functional.jacobian(lambda x: (cloud(x[None]) @ grid())[0], x) for x in POINTS]
    letters = {r"\frac{\partial \hat x_0}{\partial x}": torch.stack(rows),
               r"\mathrm{Cov}(x_0 | x_t = x)": clean_classifier.clean_cov(DENOISER, SCHEDULE, POINTS, T)}  # fmt: skip
    return Reading(letters | NOW, OTHER, tolerance=1e-7)


@reads("eq-guess-gradient")
def guess_gradient() -> Reading:
    letters = {
        r"\nabla \log \hat p_t(y | x)": slope(lambda x: clean(cloud(x) @ grid()), POINTS),
        r"\mathrm{Cov}(x_0 | x_t = x)": covariance(POINTS),
        r"\nabla \log p_o(y | \hat x_0(x))": slope(clean, cloud(POINTS) @ grid()),
    }
    return Reading(letters | NOW, OTHER, tolerance=1e-7)


@reads("eq-logistic-cloud")
def logistic_cloud() -> Reading:
    """True to a hundredth and to no order: the sides must differ as the package's answers and the quadrature do."""
    logit, variance = torch.tensor([5.0, 1.0, 3.0], dtype=F64), torch.tensor([6.0, 3.0, 1.0], dtype=F64)
    z, weights = normal_nodes(1, order=80)
    average = torch.sigmoid(logit[:, None] + variance.sqrt()[:, None] * z[:, 0]) @ weights
    off = average - clean_classifier.logistic_cloud(logit, variance).exp()
    assert 0.001 < float(off.abs().min()) and float(off.abs().max()) < 0.012
    letters = {r"\mathbb E[\varsigma(\ell)]": average, r"\varsigma": torch.sigmoid, r"\ell(\hat x_0)": logit,
               "v": variance, r"\pi": torch.pi, r"\approx": off.abs()}  # fmt: skip
    return Reading(letters)


@reads("eq-gaussian-cloud")
def gaussian_cloud() -> Reading:
    here, order = POINTS[1:2], 8
    z, weights = normal_nodes(2, order=order)
    root = torch.linalg.cholesky(covariance(here))
    asked = clean(cloud(here) @ grid() + z @ root[0].T).exp()
    compact = clean_classifier.gaussian_cloud(DENOISER, clean, SCHEDULE, order)(here, T).exp()
    letters = {
        r"\tilde p_t(y | x)": compact, r"\mathbb E_{z \sim \mathcal N(0, I)}": expectation(weights),
        r"p_o(y | \hat x_0(x) + L z)": asked, "L": root, r"\mathrm{Cov}(x_0 | x_t = x)": covariance(here),
    }  # fmt: skip
    return Reading(letters, statements=2, tolerance=1e-6)


@reads("eq-step-guess")
def step_guess() -> Reading:
    ratio, added = SCHEDULE.transition(T, S)
    earlier = MIXTURE.noised(SCHEDULE.alpha(S), SCHEDULE.sigma(S))
    mean = shares(POINTS, earlier, ratio, added) @ grid()
    package = clean_classifier.step_guess(DENOISER, clean, SCHEDULE, length=float(T - S))(POINTS, T).exp()
    letters = {
        r"\check p_t(y | x)": package, r"p_o(y | \mu(x))": clean(mean).exp(),
        r"\mu(x)": MIXTURE.reverse(POINTS, SCHEDULE, T, S).mean, r"\mathbb E[x_s | x_t = x]": mean,
        "x": POINTS, r"\hat x_0(x)": cloud(POINTS) @ grid(),
    }  # fmt: skip
    return Reading(letters | LEVELS, statements=2, tolerance=1e-6)


@reads("eq-answer-martingale")
def martingale() -> Reading:
    ratio, added = SCHEDULE.transition(T, S)
    earlier = MIXTURE.noised(SCHEDULE.alpha(S), SCHEDULE.sigma(S))
    later = shares(POINTS, earlier, ratio, added) @ earlier.class_log_prob(grid(), LABEL).exp()
    letters = {r"\mathbb E[p_s(y | x_s) | x_t = x]": later, "p_t(y | x)": NOISY.class_log_prob(POINTS, LABEL).exp()}
    decoys = {"p_s(y | x)": earlier.class_log_prob(POINTS, LABEL).exp()}
    return Reading(letters, decoys, words=(r"\text{for all } s < t:",), tolerance=1e-6)


A = torch.tensor([[[0.6, 0.8], [-1.0, 0.3]]], dtype=F64)
SEEN, NOISE = torch.tensor([[0.5, -0.4]], dtype=F64), 0.7
BELL = single([0.3, -0.6], [[0.8, 0.3], [0.3, 0.5]])


def likelihood(x0: Tensor) -> Tensor:
    return -(SEEN - x0 @ A[0].T).square().sum(1) / (2 * NOISE**2)


def measured() -> dict[str, object]:
    weights = shares(POINTS, BELL, ALPHA, SIGMA)
    mean = weights @ grid()
    cov = torch.einsum("nm,md,me->nde", weights, grid(), grid()) - mean[:, :, None] * mean[:, None, :]
    return {"C": cov, "A": A, "y": SEEN, r"\hat x_0(x)": mean, "s": NOISE} | NOW


@reads("eq-measured-guess")
def measured_guess() -> Reading:
    gradient_there = slope(lambda x: likelihood(shares(x, BELL, ALPHA, SIGMA) @ grid()), POINTS)
    return Reading({r"\nabla \log \hat p_t(y | x)": gradient_there} | measured(), OTHER, tolerance=1e-6)


@reads("eq-measured-cloud")
def measured_cloud() -> Reading:
    """One Gaussian: the average over its cloud, by a sum over the grid."""
    gradient_there = slope(lambda x: (shares(x, BELL, ALPHA, SIGMA) @ likelihood(grid()).exp()).log(), POINTS)
    letters = {r"\nabla \log \tilde p_t(y | x)": gradient_there, "I": IDENTITY}
    return Reading(letters | measured(), OTHER, tolerance=1e-6)


@reads("eq-normalised-step")
def normalised_step() -> Reading:
    g = guidance.gradient(clean_classifier.clean_guess(DENOISER, clean))(POINTS, T)
    before, zeta = POINTS.flip(0), 0.3
    lengths = g.square().sum(1, keepdim=True).sqrt()
    letters = {"x_s'": before + g * zeta / lengths, "x_s": before, r"\zeta": zeta,
               r"\nabla \log \hat p_t(y | x_t)": g}  # fmt: skip
    return Reading(letters, statements=2, defines=("g",))


@reads("eq-jensen-gap")
def jensen_gap() -> Reading:
    """Gaussian clouds of falling width around one point: what is left falls like the width to the fourth power."""
    middle = torch.tensor([0.6, 0.1], dtype=F64)
    width = torch.tensor([0.02, 0.01, 0.005], dtype=F64)
    root = torch.linalg.cholesky(torch.tensor([[0.8, 0.3], [0.3, 0.5]], dtype=F64))
    z, weights = normal_nodes(2, order=12)
    points = middle + width[:, None, None] * (z @ root.T)
    average = torch.stack([weights @ clean(part).exp() for part in points])
    curvature = torch.autograd.functional.hessian(lambda x0: clean(x0[None]).exp()[0], middle)
    letters = {
        "p_t(y | x)": average, r"p_o(y | \hat x_0)": clean(middle[None]).exp(),
        r"\mathrm{tr}": lambda m: m.diagonal(dim1=1, dim2=2).sum(1),
        r"\mathrm{Cov}(x_0 | x_t = x)": width[:, None, None] ** 2 * (root @ root.T),
        r"\nabla^2 p_o(y | \hat x_0)": curvature[None], r"\approx": width**4,
    }  # fmt: skip
    return Reading(letters)
