"""What the letters of chapter 09's equations stand for: another mixture, similarity, point and time than the page's."""

import torch
from torch import Tensor

from difflesson import kernels, similarity
from difflesson.schedule import vp_linear
from difflesson.steps import Gaussian
from tests.oracles.chapter_cells import names_of
from tests.oracles.mixtures import FOUR
from tests.readings.common import F64, earlier, gradient, moments, normal_density
from tools.formula import Reading, law, reads

MIXTURE, SCHEDULE, GAMMA = FOUR.mixture(), vp_linear(0.3, 8.0), 1.7
T, S = torch.tensor(0.5, dtype=F64), torch.tensor(0.35, dtype=F64)
X = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]], dtype=F64)
LEVELS = {
    r"\alpha_t": SCHEDULE.alpha(T), r"\sigma_t": SCHEDULE.sigma(T), r"\alpha_s": SCHEDULE.alpha(S),
    r"\sigma_s": SCHEDULE.sigma(S),
}  # fmt: skip
AXIS = torch.linspace(-8, 8, 161, dtype=F64)
GRID = torch.cartesian_prod(AXIS, AXIS)
CELL = float(AXIS[1] - AXIS[0]) ** 2


def sim(x: Tensor) -> Tensor:
    """A smooth similarity that is nothing in particular."""
    return torch.sin(x[..., 0] + 0.3) * torch.exp(-x[..., 1].square() / 4) + 0.3 * x[..., 1]


def crowd(x: Tensor, t: Tensor = T) -> Tensor:
    """p(x_0 | x_t = x) on GRID by Bayes' rule, (N, cells), not by the package's reverse step."""
    log = MIXTURE.log_prob(GRID) - (x[:, None] - SCHEDULE.alpha(t) * GRID).square().sum(2) / 2 / SCHEDULE.sigma(t) ** 2
    return log.softmax(1)


def over_the_grid(weights: Tensor):
    """The operator E with weights (N, cells), of values at every pair (N cells, 1, 1); one number for each of the N."""
    return lambda values: (weights * values.reshape(weights.shape)).sum(1)


@reads("eq-similarity-step")
def similarity_step() -> Reading:
    """At the points of a grid, from one x_t: the tilted density made a density by a sum."""
    step = kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, "large")(X[:1], T, S)
    free = step.log_prob(GRID[:, None])[:, 0]
    tilted = (free + GAMMA * sim(GRID)).softmax(0) / CELL
    return Reading(
        {"p(x_s | x_t, y)": tilted, "p(x_s | x_t)": free.exp(), r"\gamma": GAMMA, r"\mathrm{sim}(x_s, y)": sim(GRID),
         r"\mathbb E_{p(x_s | x_t)}": lambda values: (values.reshape(-1) * free.exp()).sum() * CELL},
        {r"\mathrm{sim}(x_t, y)": sim(X[:1]), r"\mathrm{sim}(x_s)": sim(GRID) + 0.2, "p(x_t | x_s)": free.exp() * 0.7},
        statements=2, defines=("Z(x_t, y)",), tolerance=1e-6,
    )  # fmt: skip


def embeddings() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(9), dtype=F64)


@reads("eq-cosine-similarity")
def cosine() -> Reading:
    points, conditions = embeddings()
    letters = {"E_1(x)": points, "E_2(y)": conditions, r"\mathrm{sim}(x, y)": similarity.cosine(points, conditions)}
    return Reading(letters)


def slope(x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(sim(leaf).sum(), leaf)[0]


@reads("eq-similarity-shift")
def similarity_shift() -> Reading:
    """Steps of falling length from one point: tilted moments by sums around the step; the sides differ like beta^2."""
    beta = torch.tensor([4e-3, 2e-3, 1e-3], dtype=F64)
    z = torch.linspace(-9, 9, 181, dtype=F64)
    z = torch.cartesian_prod(z, z)
    means, tilted = [], []
    for s in earlier(SCHEDULE, float(T), beta):
        step = kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, "large")(X[:1], T, s)
        nodes = step.mean + step.var.sqrt() * z
        tilted.append(moments(nodes, (-z.square().sum(1) / 2 + GAMMA * sim(nodes)).softmax(0)))
        means.append(step.mean)
    cov = beta[:, None, None] * torch.eye(2, dtype=F64)
    here = X[:1].expand(3, 2)
    return Reading(
        {"p(x_s | x_t, y)": torch.cat(tilted), r"\mathcal N": law, r"\mu": torch.cat(means), r"\Sigma": cov,
         r"\gamma": GAMMA, r"\nabla \mathrm{sim}(x_t, y)": slope(here), r"\approx": beta**2},
        {r"\nabla \mathrm{sim}(x_s, y)": slope(here + 0.3), r"\nabla \mathrm{sim}(x_t)": 2 * slope(here)},
    )  # fmt: skip


@reads("eq-noisy-energy")
def noisy_energy() -> Reading:
    """Left the package's quadrature, right a sum over a grid of clean points."""
    worth = similarity.noisy_log_weight(MIXTURE, SCHEDULE, lambda x: GAMMA * sim(x), order=24)(X, T).exp()
    at_all = sim(GRID).expand(len(X), -1).reshape(-1)
    return Reading(
        {"h_t(x)": worth, r"\mathbb E_{p(x_0 | x_t = x)}": over_the_grid(crowd(X)), r"\gamma": GAMMA,
         r"\mathrm{sim}(x_0, y)": at_all},
        {r"\mathrm{sim}(x_0)": at_all + 0.1, r"\mathbb E_{p(x_0 | x_s = x)}": over_the_grid(crowd(X, S))},
        tolerance=1e-6,
    )  # fmt: skip


@reads("eq-noised-target")
def noised_target() -> Reading:
    """Left, the tilted data noised by a sum over the grid; right, the package's worth."""
    weights = MIXTURE.log_prob(GRID).exp() * CELL
    target = (weights * (GAMMA * sim(GRID)).exp()) / (weights * (GAMMA * sim(GRID)).exp()).sum()
    apart = (X[:, None] - SCHEDULE.alpha(T) * GRID).square().sum(2) / 2 / SCHEDULE.sigma(T) ** 2
    noised = (target * torch.exp(-apart)).sum(1) / (2 * torch.pi * SCHEDULE.sigma(T) ** 2)
    worth = {name: similarity.noisy_log_weight(MIXTURE, SCHEDULE, lambda x: GAMMA * sim(x), order=24)(X, time).exp()
             for name, time in (("h_t(x)", T), ("h_s(x)", S))}  # fmt: skip
    free = {f"p_{name}(x)": MIXTURE.noised(SCHEDULE.alpha(time), SCHEDULE.sigma(time)).log_prob(X).exp()
            for name, time in (("t", T), ("s", S))}  # fmt: skip
    letters = {
        r"\tilde p_t(x)": noised, "p_t(x)": free["p_t(x)"], "h_t(x)": worth["h_t(x)"], r"\gamma": GAMMA,
        r"\mathbb E_{p(x_0)}": lambda values: (values.reshape(-1) * weights).sum(), r"\mathrm{sim}(x_0, y)": sim(GRID),
    }  # fmt: skip
    decoys = {r"\mathrm{sim}(x_0)": sim(GRID) + 0.1, "h_s(x)": worth["h_s(x)"], "p_s(x)": free["p_s(x)"]}
    return Reading(letters, decoys, statements=2, defines=("Z",), tolerance=1e-6)


@reads("eq-noisy-gradient")
def noisy_gradient() -> Reading:
    """Left by autograd of the package's worth; right the two means by sums over the grid."""
    x = X.clone().requires_grad_()
    worth = similarity.noisy_log_weight(MIXTURE, SCHEDULE, lambda x: GAMMA * sim(x), order=24)(x, T).exp()
    heard = crowd(X) * (GAMMA * sim(GRID)).exp()
    letters = {
        r"\nabla": gradient(x), "h_t(x)": worth, r"\alpha_t": LEVELS[r"\alpha_t"], r"\sigma_t": LEVELS[r"\sigma_t"],
        r"\tilde{\mathbb E}[x_0 | x_t = x]": (heard / heard.sum(1, keepdim=True)) @ GRID,
        r"\mathbb E[x_0 | x_t = x]": crowd(X) @ GRID,
    }  # fmt: skip
    return Reading(letters, LEVELS, tolerance=1e-5)


@reads("eq-mean-similarity")
def mean_similarity() -> Reading:
    """Falling strengths at one point; by sums over a grid, and the mean similarity's slope by autograd."""
    gamma = torch.tensor([4e-2, 2e-2, 1e-2], dtype=F64)
    x = X[:1].expand(3, 2).clone().requires_grad_()
    chances = crowd(x)
    (of_worth,) = torch.autograd.grad((chances * torch.exp(gamma[:, None] * sim(GRID))).sum(1).log().sum(), x)
    (of_mean,) = torch.autograd.grad((crowd(x) @ sim(GRID)).sum(), x)
    chances = chances.detach()
    away = sim(GRID) - chances[:1] @ sim(GRID)
    letters = {
        r"\nabla \log h_t(x)": of_worth, r"\gamma": gamma, r"\alpha_t": LEVELS[r"\alpha_t"],
        r"\sigma_t": LEVELS[r"\sigma_t"], r"\nabla \mathbb E[\mathrm{sim}(x_0, y) | x_t = x]": of_mean,
        r"\mathrm{Cov}(x_0, \mathrm{sim}(x_0, y) | x_t = x)": (chances * away) @ GRID,
    }  # fmt: skip
    return Reading(letters | {r"\approx": gamma**2}, LEVELS, statements=2, tolerance=1e-6)


@reads("eq-linear-tilt")
def linear_tilt() -> Reading:
    """Every component at every point; left the density, right the components' sum, the same for each component."""
    count, a = len(MIXTURE.weights), torch.tensor([[0.7, -1.1]], dtype=F64)
    x, rows = X.repeat(count, 1), torch.arange(count).repeat_interleave(len(X))

    def summed(values: Tensor) -> Tensor:
        return values.reshape(count, len(X)).sum(0).repeat(count)

    return Reading({
        "p(x)": MIXTURE.log_prob(x).exp(), "a": a, "x": x, r"\sum_k": summed, "w_k": MIXTURE.weights[rows],
        "m_k": MIXTURE.means[rows], "C_k": MIXTURE.covs[rows], r"\mathcal N": normal_density,
    })  # fmt: skip


@reads("eq-half-plane")
def half_plane() -> Reading:
    """The share of the half-plane by a sum over a fine grid; crowd's parts from the package's reverse step."""
    a, b = torch.tensor([[0.6, 0.9]], dtype=F64), 0.4
    step = MIXTURE.reverse(X, SCHEDULE, T, 0.0)
    count = len(step.variances)
    covs = (step.axes * step.variances[:, None]) @ step.axes.mT
    rows = torch.arange(count).repeat_interleave(len(X))
    closed = names_of("09", "eq-half-plane")["log_half_plane"](MIXTURE, SCHEDULE, a[0], b, X, T).exp()
    axis = torch.linspace(-8, 8, 1601, dtype=F64)
    along = a[0] / a[0].norm()
    parts = (axis[:, None, None] - step.means @ along) / (covs @ along @ along).sqrt()[:, None]  # (cells, K, N)
    density = torch.exp(-parts.square() / 2) / (2 * torch.pi * (covs @ along @ along)).sqrt()[:, None]
    cell, edge = axis[1] - axis[0], b / a[0].norm()
    inside = ((axis - edge) / cell + 0.5).clamp(0, 1)  # the cell that the edge cuts counts in part
    share = (inside[:, None] * (step.log_weights.exp() * density).sum(1)).sum(0) * cell

    def summed(values: Tensor) -> Tensor:
        return values.reshape(count, len(X)).sum(0).repeat(count)

    return Reading(
        {"h_t(x)": closed.repeat(count), r"P(a \cdot x_0 \ge b | x_t = x)": share.repeat(count), r"\sum_k": summed,
         "r_k(x)": step.log_weights.exp().reshape(-1), r"\Phi": torch.special.ndtr, "a": a.expand(len(rows), 2), "b": b,
         "m_k(x)": step.means.reshape(-1, 2), "S_k": covs[rows]},
        tolerance=2e-4,
    )  # fmt: skip


@reads("eq-contrastive-classifier")
def contrastive_classifier() -> Reading:
    """Three words at four points: the classifier from the cell, the sum over words here."""
    cosines = 2 * torch.rand(4, 3, generator=torch.Generator().manual_seed(3), dtype=F64) - 1
    guess, total = names_of("09", "eq-contrastive-classifier")["split_similarity"](cosines, 0.3)
    spread = cosines.T.reshape(-1)  # (words points,)

    def summed(values: Tensor) -> Tensor:
        return values.reshape(3, 4).sum(0)

    names = {r"\mathrm{sim}(x, y)": cosines[:, 1], r"\mathrm{sim}(x, y')": spread}
    letters = names | {r"\tau": 0.3, r"\hat p(y | x)": guess[:, 1], r"\sum_{y'}": summed}
    assert torch.allclose(total, (cosines / 0.3).exp().sum(1))
    return Reading(letters, {r"\hat p(y)": guess[:, 1].mean()}, statements=2, defines=("N(x)",))


@reads("eq-gram-distance")
def gram_distance() -> Reading:
    """Four pictures of five places with three features each: the package's distance, and the sum over places."""
    features = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(4), dtype=F64)  # (places, pictures, k)
    reference = similarity.gram(torch.randn(6, 3, generator=torch.Generator().manual_seed(5), dtype=F64))
    distance = similarity.gram_distance(features.transpose(0, 1), reference)

    def summed(values: Tensor) -> Tensor:
        return values.reshape(5, 4, 3, 3).sum(0)

    return Reading(
        {r"\mathrm{sim}(x, y)": -distance, "G(y)": reference[None], "m": 5, r"\sum_{i=1}^m": summed,
         "f_i(x)": features.reshape(20, 3)},
        statements=2, defines=("G(x)",),
    )  # fmt: skip


@reads("eq-similarity-kl")
def similarity_kl() -> Reading:
    """Gaussian steps of falling variance about one mean: the divergence of the shifted from the tilted one by sums."""
    beta = torch.tensor([4e-4, 2e-4, 1e-4], dtype=F64)
    z = torch.linspace(-9, 9, 181, dtype=F64)
    z = torch.cartesian_prod(z, z)
    lost = []
    for value in beta:
        step = Gaussian(X[:1] + value * torch.tensor([[0.4, -0.7]], dtype=F64), value)  # a mean of order beta away
        nodes = step.mean + value.sqrt() * z
        weights = (-z.square().sum(1) / 2 + GAMMA * sim(nodes)).softmax(0)
        away = nodes - step.mean - GAMMA * value * slope(X[:1])
        log_tilted = weights.log()  # of equal cells, up to their size, as is the other
        log_shifted = -away.square().sum(1) / 2 / value
        log_shifted = log_shifted - (-z.square().sum(1) / 2).logsumexp(0)
        lost.append((weights * (log_tilted - log_shifted)).sum())
    curved = torch.autograd.functional.hessian(lambda x: sim(x[None])[0], X[0])[None]
    letters = {r"\mathrm{KL}_{\text{sim}}": torch.stack(lost), r"\gamma": GAMMA, r"\beta": beta,
               r"\nabla \nabla \mathrm{sim}(x_t, y)": curved}  # fmt: skip
    decoys = {r"\nabla \nabla \mathrm{sim}(x_s, y)": 1.3 * curved, r"\nabla \nabla \mathrm{sim}(x_t)": 0.7 * curved}
    sign = {r"| ^ 2 [+ -> -] O ( \beta": "O(...) has no sign"}
    return Reading(letters, decoys, statements=2, defines=("M",), equivalent=sign)
