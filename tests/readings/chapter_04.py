"""What the letters of chapter 04's equations stand for: other mixtures, points and steps than the page's."""

import math

import torch
from torch import Tensor

from difflesson import langevin, plane
from difflesson.divergence import mixture_nodes
from difflesson.mixture import GaussianMixture
from tests.oracles.mixtures import FOUR, THREE
from tests.readings.common import F64, expectation, normal_density, normal_nodes
from tools.formula import Reading, reads

MIXTURE, OTHER = FOUR.mixture(), THREE.mixture()
POINTS = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]], dtype=F64)
NOISE = torch.tensor([[0.4, -1.1], [0.7, 0.3], [-1.6, 0.9]], dtype=F64)
LINE = GaussianMixture([0.3, 0.7], torch.tensor([[-0.6], [0.9]], dtype=F64), [[[0.5]], [[0.8]]])
RIVAL = GaussianMixture([0.6, 0.4], torch.tensor([[-0.2], [1.1]], dtype=F64), [[[0.9]], [[0.6]]])
SWAPPED = (
    r"= \min ( [1 , \frac { p ( x ' ) k ( x | x ' ) } { p ( x ) k ( x ' | x ) } -> "
    r"\frac { p ( x ' ) k ( x | x ' ) } { p ( x ) k ( x ' | x ) } , 1] ) , \qquad"
)
FINE = torch.linspace(-12, 12, 6001, dtype=F64)[:, None]


def slope(mixture: GaussianMixture, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(mixture.log_prob(leaf).sum(), leaf)[0]


def on_line(mixture: GaussianMixture) -> Tensor:
    """The density of a mixture on a fine grid of the line, (M,), as weights."""
    return mixture.log_prob(FINE).exp() * (FINE[1] - FINE[0])


@reads("eq-energy-score")
def energy() -> Reading:
    """An energy with a bend; Z by a sum over a grid, the slope by differences of log p."""

    def f(x: Tensor) -> Tensor:
        return x[:, 0] ** 4 / 4 - x[:, 0] * x[:, 1] + x[:, 1] ** 2

    axis = torch.linspace(-6, 6, 601, dtype=F64)
    total = torch.exp(-f(torch.cartesian_prod(axis, axis))).sum() * (axis[1] - axis[0]) ** 2
    h = 1e-5 * torch.eye(2, dtype=F64)
    log_p = [torch.stack([-f(POINTS + s * e) - total.log() for e in h], 1) for s in (1, -1)]
    grad_f = torch.stack([POINTS[:, 0] ** 3 - POINTS[:, 1], 2 * POINTS[:, 1] - POINTS[:, 0]], 1)
    return Reading(
        {"p(x)": torch.exp(-f(POINTS) - total.log()), "f(x)": f(POINTS), "Z": total,
         r"\nabla \log p(x)": (log_p[0] - log_p[1]) / 2e-5, r"\nabla f(x)": grad_f},
        {r"\log p(x)": -f(POINTS) - total.log()}, statements=2, tolerance=1e-6,
    )  # fmt: skip


@reads("eq-langevin-step")
def step() -> Reading:
    generator = torch.Generator().manual_seed(3)
    new = langevin.unadjusted(MIXTURE.score, POINTS, 0.3, 1, generator)
    drawn = torch.randn(POINTS.shape, generator=torch.Generator().manual_seed(3), dtype=F64)
    return Reading(
        {"x'": new, "x": POINTS, "c": 0.3, r"\nabla \log p(x)": slope(MIXTURE, POINTS), r"\varepsilon": drawn}
    )


@reads("eq-annealed-step")
def annealed() -> Reading:
    sigma, generator = 0.7, torch.Generator().manual_seed(4)
    new = langevin.annealed(lambda x, s: MIXTURE.noised(1.0, s).score(x), POINTS, [sigma], 0.3, 1, generator)
    drawn = torch.randn(POINTS.shape, generator=torch.Generator().manual_seed(4), dtype=F64)
    return Reading(
        {"x'": new, "x": POINTS, "a": 0.3, r"\sigma": sigma, r"\varepsilon": drawn,
         r"\nabla \log p_{\sigma^2}(x)": slope(MIXTURE.noised(1.0, sigma), POINTS)},
        {r"\nabla \log p(x)": slope(MIXTURE, POINTS)},
    )  # fmt: skip


@reads("eq-fisher-divergence")
def fisher() -> Reading:
    """By the definition on a line, where the divergence is also minus twice the rate at which noise destroys KL."""

    def kl(q: float) -> Tensor:
        p, r = (m.noised(1.0, q**0.5).log_prob(FINE) for m in (LINE, RIVAL))
        return (p.exp() * (p - r)).sum() * (FINE[1] - FINE[0])[0]

    q, h = 0.3, 1e-3
    p, r = (m.noised(1.0, q**0.5) for m in (LINE, RIVAL))
    return Reading(
        {r"F(p \,\|\, r)": -2 * (kl(q + h) - kl(q - h)) / (2 * h), r"\mathbb E_{x \sim p}": expectation(on_line(p)),
         r"\nabla \log p(x)": slope(p, FINE), r"\nabla \log r(x)": slope(r, FINE)},
        tolerance=1e-5,
    )  # fmt: skip


@reads("eq-kl-over-levels")
def over_levels() -> Reading:
    """On growing levels, a trapezium rule in log q from nearly nothing to much."""
    log_q = torch.linspace(math.log(1e-9), math.log(1e9), 400, dtype=F64)
    values = []
    for q in log_q.exp():
        p, r = (m.noised(1.0, q.sqrt()) for m in (LINE, RIVAL))
        x, weights = mixture_nodes(p, 60)
        values.append(weights @ (p.score(x) - r.score(x)).square().sum(1))
    p, r = on_line(LINE), RIVAL.log_prob(FINE)
    total = p @ (LINE.log_prob(FINE) - r)

    def integral(shown: Tensor) -> Tensor:
        return torch.trapezoid(shown.flatten() * log_q.exp(), log_q)[None, None, None]

    return Reading(
        {r"\mathrm{KL}(p \,\|\, r)": total, r"\int_0^\infty": integral, r"F(p_q \,\|\, r_q)": torch.stack(values),
         r"dq": torch.ones(len(log_q), dtype=F64)}, tolerance=1e-5,
        equivalent={r"_ q ) [d q -> ( d q ) ^ 2] .": "dq says over what is integrated, it is no factor"},
    )  # fmt: skip


@reads("eq-denoising-score")
def denoising() -> Reading:
    """Pairs of a clean point and a noise by quadrature; the averages over noisy points are over the same pairs."""
    sigma = 0.6
    pair = GaussianMixture([0.4, 0.6], POINTS[1:], [[[0.5, 0.1], [0.1, 0.4]], [[0.6, -0.2], [-0.2, 0.5]]])
    x_0, weights = mixture_nodes(pair, 20)
    eps, chances = normal_nodes(2, 20)
    both = torch.cartesian_prod(torch.arange(len(x_0)), torch.arange(len(eps)))
    x = x_0[both[:, 0]] + sigma * eps[both[:, 1]]
    noisy = pair.noised(1.0, sigma)
    guess = torch.sin(x.flip(1)) - 0.3 * x
    return Reading(
        {r"\mathbb E": expectation(weights[both[:, 0]] * chances[both[:, 1]]), r"s(x_0 + \sigma \varepsilon)": guess,
         "s": guess, r"\varepsilon": eps[both[:, 1]], r"\sigma": sigma, "d": 2.0,
         r"\nabla \log p_{\sigma^2}": slope(noisy, x)},
        {r"\nabla \log p": slope(pair, x)}, tolerance=1e-5,
    )  # fmt: skip


@reads("eq-fall-and-shake")
def fall_and_shake() -> Reading:
    """The step as a step to the guess of the clean point, at the same noise, and a Langevin step of the old level."""
    sigma, lower, c = 0.9, 0.6, 0.2
    noisy = MIXTURE.noised(1.0, sigma)
    score = slope(noisy, POINTS)
    clean = POINTS + sigma**2 * score
    fallen = clean + lower * (POINTS - clean) / sigma
    shaken = langevin.unadjusted(noisy.score, POINTS, c, 1, torch.Generator().manual_seed(5)) - POINTS
    drawn = torch.randn(POINTS.shape, generator=torch.Generator().manual_seed(5), dtype=F64)
    return Reading(
        {"x'": fallen + shaken, "x": POINTS, r"\sigma": sigma, r"\sigma'": lower, "s(x)": score, "s": score, "c": c,
         r"\varepsilon": drawn, r"\nabla \log p_{\sigma^2}": score},
        {r"\nabla \log p": slope(MIXTURE, POINTS)}, statements=2,
    )  # fmt: skip


@reads("eq-langevin-generator")
def generator() -> Reading:
    """The limit by Richardson from Gauss-Hermite averages of a polynomial."""

    def f(x: Tensor) -> Tensor:
        return x[..., 0] ** 3 - 2 * x[..., 0] * x[..., 1] + x[..., 1] ** 2

    z, weights = normal_nodes(2, 8)
    score = slope(MIXTURE, POINTS)

    def rate(c: float) -> Tensor:
        moved = (POINTS + c * score)[:, None] + (2 * c) ** 0.5 * z
        return (f(moved) @ weights - f(POINTS)) / c

    first = torch.stack([3 * POINTS[:, 0] ** 2 - 2 * POINTS[:, 1], 2 * POINTS[:, 1] - 2 * POINTS[:, 0]], 1)
    limit = 2 * rate(1e-5) - rate(2e-5)
    return Reading(
        {r"\lim_{c \to 0} \frac{\mathbb E[f(x')] - f(x)}{c}": limit, r"\nabla \log p(x)": score, r"\nabla f(x)": first,
         r"\Delta f(x)": 6 * POINTS[:, 0] + 2}, tolerance=1e-6,
    )  # fmt: skip


@reads("eq-langevin-bias")
def bias() -> Reading:
    """Where the variance of the walk ends, step by step."""
    v, c = torch.tensor([0.4, 1.7], dtype=F64), 0.3
    kept = torch.zeros(2, dtype=F64)
    for _ in range(3000):
        kept = (1 - c / v) ** 2 * kept + 2 * c
    return Reading({"V": kept, "v": v, "c": c})


@reads("eq-metropolis")
def metropolis() -> Reading:
    """How often a proposal is taken, by the detailed balance of densities; proposals on both sides of one."""
    c = 0.4
    old, new = POINTS, torch.tensor([[-0.2, 0.5], [1.2, -2.0], [0.1, 0.6]], dtype=F64)
    identity = torch.eye(2, dtype=F64)[None]

    def proposal(x: Tensor, y: Tensor) -> Tensor:
        middle = x + c * MIXTURE.score(x)
        return torch.exp(-(y - middle).square().sum(1) / (4 * c)) / (4 * math.pi * c)

    p, forth, back = (m.exp() for m in (MIXTURE.log_prob(old), proposal(old, new).log(), proposal(new, old).log()))
    there = MIXTURE.log_prob(new).exp()
    ratio = there * back / (p * forth)
    assert bool((ratio < 1).any()) and bool((ratio > 1).any())
    return Reading(
        {r"A(x' | x)": torch.where(ratio < 1, ratio, torch.ones(3, dtype=F64)), "p(x')": there, "p(x)": p,
         r"k(x | x')": back, r"k(x' | x)": forth, "x'": new, "x": old, "c": c, r"\nabla \log p(x)": MIXTURE.score(old),
         r"\mathcal N": normal_density, "I": identity,
         r"\min": torch.minimum}, statements=2,
        equivalent={SWAPPED: "the order of arguments does not matter to min"},
    )  # fmt: skip


@reads("eq-implicit-score")
def implicit() -> Reading:
    guess, dense = torch.sin(2 * FINE) - 0.3 * FINE, on_line(LINE)
    return Reading(
        {r"\mathbb E": expectation(dense), r"s(x)": guess, "s": guess, r"\nabla \log p": slope(LINE, FINE),
         r"\nabla \cdot s(x)": 2 * torch.cos(2 * FINE) - 0.3}, tolerance=1e-6,
    )  # fmt: skip


@reads("eq-sliced-score")
def sliced() -> Reading:
    """At one point; all directions of signs, and the derivative of a field that is no slope."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * 2)

    def field(x: Tensor) -> Tensor:
        return torch.stack([torch.sin(x[:, 0]) * x[:, 1], x[:, 0] ** 2 + 3 * x[:, 1] ** 3], 1)

    slopes = plane.jacobian(field, POINTS[:1])
    return Reading(
        {r"\nabla \cdot s(x)": slopes[0].trace(), r"\mathbb E_v": expectation(torch.full((4,), 0.25, dtype=F64)),
         "v": signs, r"\nabla s(x)": slopes},
    )  # fmt: skip
