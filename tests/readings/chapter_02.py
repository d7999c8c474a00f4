"""What the letters of chapter 02's equations stand for: other curves, guesses, models and chains than the page's."""

import math

import torch
from torch import Tensor

from tests.readings.common import F64, expectation, gaussian_kl, normal_nodes
from tools.formula import Reading, law, reads

GRID = torch.linspace(-9, 9, 6001, dtype=F64)
SPACING = float(GRID[1] - GRID[0])


def bell(x: Tensor, mean: Tensor | float, var: Tensor | float) -> Tensor:
    var = torch.as_tensor(var, dtype=F64)
    return torch.exp(-((x - mean) ** 2) / 2 / var) / (2 * math.pi * var).sqrt()


# One point of a model whose cause z bends a line twice, and a guess of it with two humps; all densities on the grid.
PRIOR = bell(GRID, 0.0, 1.0)
NOISE = bell(torch.tensor(0.7, dtype=F64), GRID + 0.8 * torch.sin(2 * GRID), 0.3)
EVIDENCE = float((PRIOR * NOISE).sum() * SPACING)
POSTERIOR = PRIOR * NOISE / EVIDENCE
GUESS = 0.6 * bell(GRID, 0.3, 0.2) + 0.4 * bell(GRID, -0.2, 0.6)


def between(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of densities on the grid."""
    return (p * (p.log() - q.log())).sum() * SPACING


KLS = {
    r"\mathrm{KL}(q(z | x) \| p(z | x))": between(GUESS, POSTERIOR),
    r"\mathrm{KL}(p(z | x) \| q(z | x))": between(POSTERIOR, GUESS),
    r"\mathrm{KL}(q(z | x) \| p(z))": between(GUESS, PRIOR),
    r"\mathrm{KL}(p(z) \| q(z | x))": between(PRIOR, GUESS),
}
LOGS = {
    r"\log p(x, z)": (PRIOR * NOISE).log(), r"\log q(z | x)": GUESS.log(), r"\log p(x | z)": NOISE.log(),
    r"\log p(z)": PRIOR.log(), r"\log p(z | x)": POSTERIOR.log(), r"\log p(x)": math.log(EVIDENCE),
    r"\mathbb E_q": expectation(GUESS * SPACING), r"\mathbb E_p": expectation(POSTERIOR * SPACING),
}  # fmt: skip


def some(*names: str, **more: object) -> Reading:
    every = LOGS | KLS | more
    return Reading({name: every[name] for name in names}, every, tolerance=1e-8)


@reads("eq-elbo-split")
def split() -> Reading:
    return some(
        r"\log p(x)", r"\mathbb E_q", r"\log p(x, z)", r"\log q(z | x)", r"\mathrm{KL}(q(z | x) \| p(z | x))"
    )


@reads("eq-elbo-terms")
def terms() -> Reading:
    bound = math.log(EVIDENCE) - float(KLS[r"\mathrm{KL}(q(z | x) \| p(z | x))"])
    names = (r"\mathbb E_q", r"\log p(x | z)", r"\mathrm{KL}(q(z | x) \| p(z))")
    letters = {name: (LOGS | KLS)[name] for name in names}
    return Reading(letters | {r"\mathrm{ELBO}": bound}, LOGS | KLS, tolerance=1e-8)


@reads("eq-gaussian-kl")
def kl_of_gaussians() -> Reading:
    """Three pairs in the plane; the divergence by quadrature over the first of each pair."""
    generator = torch.Generator().manual_seed(3)
    m, other = torch.randn(2, 3, 2, generator=generator, dtype=F64)
    roots = torch.randn(2, 3, 2, 2, generator=generator, dtype=F64)
    cov, wide = roots @ roots.mT + 0.3 * torch.eye(2, dtype=F64)
    nodes, weights = normal_nodes(2, 4)
    points = m + (nodes[:, None, None] @ torch.linalg.cholesky(cov).mT)[:, :, 0]
    gauss = torch.distributions.MultivariateNormal
    lost = weights @ (gauss(m, cov).log_prob(points) - gauss(other, wide).log_prob(points))
    return Reading(
        {r"\mathrm{KL}": lost, r"\det": torch.linalg.det, r"\mathrm{tr}": lambda a: a.diagonal(dim1=1, dim2=2).sum(1),
         "m": m, "m'": other, "C": cov, "C'": wide, "k": 2.0},
    )  # fmt: skip


@reads("eq-gap-and-spread")
def gap_and_spread() -> Reading:
    """Guesses that come closer to the posterior: its density times e^{h v}, three sizes h."""
    h = torch.tensor([4e-2, 2e-2, 1e-2], dtype=F64)
    weights = (POSTERIOR.log() + h[:, None] * torch.cos(3 * GRID + 0.5)).softmax(1)  # (3, M)
    ratio = math.log(EVIDENCE) - weights.log() + (POSTERIOR * SPACING).log()
    true = (POSTERIOR * SPACING).log()

    def variance(values: Tensor) -> Tensor:
        flat = values[:, :, 0]
        centre = (weights * flat).sum(1, keepdim=True)
        return (weights * (flat - centre).square()).sum(1)

    letters = {
        r"\mathrm{KL}(q \| p)": (weights * (weights.log() - true)).sum(1), r"\mathrm{Var}_q": variance, "r(z)": ratio,
        "h": h,
    }  # fmt: skip
    return Reading(letters, equivalent={r"z ) ] [+ -> -] O ( h": "O(...) has no sign"})


@reads("eq-two-gradients")
def two_gradients() -> Reading:
    """A guess of one number, by Gauss-Hermite nodes; log p(x, z) is a polynomial, so both averages are exact."""
    m, tau, shift = 0.4, 0.7, 1.3
    nodes, weights = normal_nodes(1, 20)
    eps = nodes[:, 0]
    z = m + tau * eps

    def joint(z: Tensor) -> Tensor:
        return -(z**4) / 3 + z**3 / 2 - z

    def log_q(z: Tensor, m: Tensor, log_tau: Tensor) -> Tensor:
        return -(((z - m) / log_tau.exp()) ** 2) / 2 - log_tau - math.log(2 * math.pi) / 2

    def along(values: Tensor) -> Tensor:
        """The gradient of r at a draw by m and log tau, the draw of each node moved with them."""
        leaves = torch.zeros(2, len(eps), dtype=F64, requires_grad=True)
        moved = values[:, 0, 0] + leaves[0] + tau * (leaves[1].exp() - 1) * eps
        r = joint(moved) - log_q(moved, m + leaves[0], math.log(tau) + leaves[1])
        return torch.autograd.grad(r.sum(), leaves)[0].T

    start = torch.tensor([m, math.log(tau)], dtype=F64, requires_grad=True)
    a, v = start[0], (2 * start[1]).exp()
    fourth, third = a**4 + 6 * a**2 * v + 3 * v**2, a**3 + 3 * a * v
    exact = torch.autograd.grad(-fourth / 3 + third / 2 - a + start[1], start)[0]  # the entropy is log tau + const
    values = log_q(z, torch.tensor(m, dtype=F64), torch.tensor(math.log(tau), dtype=F64))
    letters = {
        r"\nabla \mathbb E_q[r]": exact[None], r"\mathbb E_\varepsilon": expectation(weights), "m": m, r"\tau": tau,
        r"\varepsilon": eps, r"\nabla r": along, r"\mathbb E_q": expectation(weights), "r(z)": joint(z) - values,
        "c": shift, r"\nabla \log q(z)": torch.stack([eps / tau, eps**2 - 1], 1),
    }  # fmt: skip
    any_constant = "any constant may be subtracted"
    same = {r"( z ) [- -> +] c ) \nabla": any_constant, r"z ) - [c -> ( c ) ^ 2] ) \nabla \log": any_constant}
    return Reading(letters, {"z": z}, tolerance=1e-8, equivalent=same)


@reads("eq-collapse")
def collapse() -> Reading:
    """The best square of w by a fine search in the exact likelihood, the divergence by quadrature over data."""
    variances, s = torch.tensor([3.1, 1.6, 0.9, 0.2], dtype=F64), 1.1
    squares = torch.linspace(0, 4, 400_001, dtype=F64)
    total = squares + s**2
    best = squares[torch.stack([-(total.log() + one / total) for one in variances]).argmax(1)]
    nodes, weights = normal_nodes(1, 8)
    x = variances.sqrt()[:, None] * nodes[:, 0]
    kept = best / (best + s**2)
    mean, var = (kept / best.clamp_min(1e-9).sqrt())[:, None] * x, (1 - kept)[:, None]
    lost = ((mean**2 + var - 1 - var.log()) / 2) @ weights
    letters = {"w_j": best.sqrt(), r"\lambda_j": variances, "s": s, r"\mathbb E[\mathrm{KL}_j]": lost,
               r"\max": torch.maximum}  # fmt: skip
    same = {
        r"= \max ( [\lambda _ j - s ^ 2 , 0 -> 0 , \lambda _ j - s ^ 2] ) , \qquad": "the order does not matter to max",
        r"{ \max ( [\lambda _ j , s ^ 2 -> s ^ 2 , \lambda _ j] ) } {": "the order does not matter to max",
    }
    return Reading(letters, statements=2, tolerance=1e-5, equivalent=same)


@reads("eq-chain-bound")
def chain_bound() -> Reading:
    """Two causes in a chain on the line: all Gaussian, the guess's steps and the model's with other factors."""
    x_0, (k_1, k_2), (v_1, v_2) = 0.8, (0.9, 0.7), (0.4, 0.5)  # the guess: x_t = k_t x_{t-1} + noise of variance v_t
    (a_1, a_2), (u_1, u_2) = (0.8, 0.6), (0.5, 0.7)  # the model: x_{t-1} = a_t x_t + noise of variance u_t
    nodes, weights = normal_nodes(2, 6)
    x_1 = k_1 * x_0 + v_1**0.5 * nodes[:, 0]
    x_2 = k_2 * x_1 + v_2**0.5 * nodes[:, 1]
    start = torch.full_like(x_1, x_0)
    steps = torch.cat([bell(start, a_1 * x_1, u_1), bell(x_1, a_2 * x_2, u_2)])
    noising = torch.cat([bell(x_1, k_1 * x_0, v_1), bell(x_2, k_2 * x_1, v_2)])
    guess = law(torch.tensor([[k_1 * x_0, k_2 * k_1 * x_0]], dtype=F64),
                torch.tensor([[[v_1, k_2 * v_1], [k_2 * v_1, k_2**2 * v_1 + v_2]]], dtype=F64))  # fmt: skip
    var_1 = a_2**2 + u_2  # of the model's x_1
    both = torch.tensor([[var_1, a_2], [a_2, 1.0]], dtype=F64)
    with_0 = a_1 * both[:, 0]
    var_0 = a_1**2 * var_1 + u_1
    posterior = law((with_0 * x_0 / var_0)[None], (both - with_0[:, None] * with_0 / var_0)[None])
    names = [rf"\mathrm{{KL}}({a} \| {b})" for a, b in (("q(x_{1:T} | x_0)", "p(x_{1:T} | x_0)"),
                                                        ("p(x_{1:T} | x_0)", "q(x_{1:T} | x_0)"))]  # fmt: skip
    letters = {
        r"\log p(x_0)": bell(torch.tensor(x_0, dtype=F64), 0.0, var_0).log(), r"\mathbb E_q": expectation(weights),
        r"\log p(x_T)": bell(x_2, 0.0, 1.0).log(), r"\sum_t": lambda v: v[:, 0, 0].view(2, -1).sum(0),
        "p(x_{t-1} | x_t)": steps, "q(x_t | x_{t-1})": noising, names[0]: gaussian_kl(guess, posterior),
    }  # fmt: skip
    return Reading(letters, {names[1]: gaussian_kl(posterior, guess)})


@reads("eq-linear-posterior")
def linear_posterior() -> Reading:
    """Two causes, three coordinates: mean and covariance of the posterior by a sum over a grid of causes."""
    W = torch.tensor([[0.9, -0.3], [0.5, 1.1], [-0.6, 0.4]], dtype=F64)
    b, s = torch.tensor([0.3, -0.2, 0.6], dtype=F64), 0.7
    x = torch.tensor([[1.0, 0.2, -0.5], [-0.8, 1.5, 0.4]], dtype=F64)
    axis = torch.linspace(-7, 7, 561, dtype=F64)
    z = torch.cartesian_prod(axis, axis)
    weights = (-z.square().sum(1) / 2 - (x[:, None] - b - z @ W.T).square().sum(2) / 2 / s**2).softmax(1)
    mean = weights @ z
    cov = torch.einsum("nm,md,me->nde", weights, z, z) - mean[:, :, None] * mean[:, None]
    return Reading(
        {"C": cov, "I": torch.eye(2, dtype=F64)[None], "W": W[None], "s": s, "m": mean, "x": x, "b": b[None]},
        statements=2, tolerance=1e-8,
    )  # fmt: skip


@reads("eq-oscillating")
def oscillating() -> Reading:
    k, m, tau = 1.7, 0.3, 0.6
    weights = bell(GRID, m, tau**2) * SPACING
    slope = -k * torch.sin(k * GRID)
    variance = weights @ (slope - weights @ slope).square()
    return Reading({r"\mathrm{Var}[-k \sin(k z)]": variance, "k": k, r"\tau": tau, "m": m, r"\cos": torch.cos})
