"""What the letters of chapter 08's equations stand for: other mixtures, schedule, scale and times than the page's."""

from functools import cache

import torch
from torch import Tensor

from difflesson import metrics
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.schedule import vp_linear
from tests.oracles.mixtures import FOUR, random_mixture
from tests.readings.common import F64, expectation, gradient
from tools.formula import Reading, reads

SCHEDULE, T, GAMMA, LABEL = vp_linear(0.3, 8.0), 0.35, 2.5, 1
ALPHA, SIGMA = float(SCHEDULE.alpha(T)), float(SCHEDULE.sigma(T))
TWO, MANY = FOUR.mixture(), random_mixture(2, [0, 1, 2, 3, 1])  # two classes, and four
NOISY, NOISY_MANY = TWO.noised(ALPHA, SIGMA), MANY.noised(ALPHA, SIGMA)
POINTS = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1], [0.1, -0.2]], dtype=F64)


def chance(mixture: GaussianMixture, x: Tensor, label: int) -> Tensor:
    """p(label | x), from the densities of the classes themselves, (N,)."""
    parts = torch.stack(
        [mixture.given(y).log_prob(x).exp() * mixture.class_weights()[y] for y in range(mixture.classes)], dim=1
    )
    return parts[:, label] / parts.sum(1)


def powers(mixture: GaussianMixture, x: Tensor) -> Tensor:
    """p(y | x)^gamma for each class, (N, classes)."""
    return torch.stack([chance(mixture, x, y) for y in range(mixture.classes)], dim=1) ** GAMMA


def sharp(mixture: GaussianMixture, x: Tensor, label: int) -> Tensor:
    return powers(mixture, x)[:, label] / powers(mixture, x).sum(1)


@cache
def classes() -> dict[str, object]:
    """Four points, each once for every rival y' in turn: a sum over rivals is a sum within a point's four rows."""
    count = MANY.classes
    rows, rivals = POINTS.repeat_interleave(count, 0).requires_grad_(), list(range(count)) * len(POINTS)
    nabla = gradient(rows)
    each = [chance(NOISY_MANY, rows, y) for y in range(count)]
    sharper = [sharp(NOISY_MANY, rows, y) for y in range(count)]
    of_rival = torch.arange(len(rivals)), torch.tensor(rivals)
    slopes = torch.stack([nabla(p.log()[:, None, None])[:, :, 0].detach() for p in each], dim=1)  # (N, classes, 2)

    def within_a_point(values: Tensor) -> Tensor:
        groups = values.unflatten(0, (len(POINTS), -1))
        groups = groups.expand(-1, count, -1, -1) if groups.shape[1] == 1 else groups
        return groups.sum(1, keepdim=True).expand(-1, count, -1, -1).flatten(0, 1)

    return {
        r"\nabla": nabla, r"\sum_{y'}": within_a_point, r"\gamma": GAMMA,
        "p_t(y | x)": each[LABEL], "p_t(y' | x)": torch.stack(each, 1)[of_rival],
        r"\tilde p_t(y | x)": sharper[LABEL], r"\tilde p_t(y' | x)": torch.stack(sharper, 1)[of_rival],
        "g_y": slopes[:, LABEL], "g_{y'}": slopes[of_rival], "Z_t(x)": powers(NOISY_MANY, rows).sum(1),
    }  # fmt: skip


def letters(*names: str) -> dict[str, object]:
    return {name: classes()[name] for name in names}


@reads("eq-sharpened")
def sharpened() -> Reading:
    used = letters(r"\tilde p_t(y | x)", "p_t(y | x)", "p_t(y' | x)", "Z_t(x)", r"\gamma", r"\sum_{y'}")
    return Reading(used, classes(), statements=2)


@reads("eq-sharpened-gradient")
def sharpened_gradient() -> Reading:
    sharper = r"\tilde p_t(y | x)", r"\tilde p_t(y' | x)"
    return Reading(letters(*sharper, "g_y", "g_{y'}", "Z_t(x)", r"\gamma", r"\nabla", r"\sum_{y'}"), classes())


@reads("eq-rivals")
def rivals() -> Reading:
    sharper = r"\tilde p_t(y | x)", r"\tilde p_t(y' | x)"
    used = letters(*sharper, "p_t(y' | x)", "g_y", "g_{y'}", r"\gamma", r"\nabla", r"\sum_{y'}")
    zero = {"g _ y [- -> +] g _ {": "in the first clause: the sum of p g_y' over all classes is zero"}
    return Reading(used, classes(), statements=2, equivalent=zero)


@reads("eq-force-ratio")
def force_ratio() -> Reading:
    """Two classes; the logit is the log of the ratio of the two classes' joint densities."""
    x = POINTS.clone().requires_grad_()
    p, weights = chance(NOISY, x, LABEL), NOISY.class_weights()
    logit = NOISY.given(1).log_prob(x) - NOISY.given(0).log_prob(x) + (weights[1] / weights[0]).log()
    slope = gradient(x)(p.log()[:, None, None])
    used = {r"\nabla": gradient(x), "l": logit, "g_y": slope, r"\gamma": GAMMA}
    return Reading(used | {r"\tilde p_t(y | x)": sharp(NOISY, x, LABEL)}, {"p_t(y | x)": p}, statements=3)


def clean(weight) -> GridDensity:
    return GridDensity(lambda x: TWO.log_prob(x) + weight(x).log(), -9, 9, 240)


@reads("eq-two-tilts")
def two_tilts() -> Reading:
    """The normalised densities on a grid; their constants are means under p_t."""
    everything = GridDensity(NOISY.log_prob, -9, 9, 240)
    weights = {"S": lambda x: chance(NOISY, x, LABEL) ** GAMMA, "N": lambda x: sharp(NOISY, x, LABEL)}
    tilts = {k: GridDensity(lambda x, w=w: NOISY.log_prob(x) + w(x).log(), -9, 9, 240) for k, w in weights.items()}
    return Reading(
        {
            "S_t(x)": tilts["S"].log_prob(POINTS).exp(), "N_t(x)": tilts["N"].log_prob(POINTS).exp(),
            "C_t": everything.expectation(weights["S"]), "D_t": everything.expectation(weights["N"]),
            "p_t(x)": NOISY.log_prob(POINTS).exp(), "p_t(y | x)": chance(NOISY, POINTS, LABEL), r"\gamma": GAMMA,
            r"\tilde p_t(y | x)": sharp(NOISY, POINTS, LABEL),
        },
        statements=2,
    )  # fmt: skip


@reads("eq-noised-tilt")
def noised_tilt() -> Reading:
    """Left: the clean target's cells, each noised; right: the mean of the weight over where a point comes from."""

    def weight(x: Tensor) -> Tensor:
        return chance(TWO, x, LABEL) ** GAMMA

    target, everything = clean(weight), clean(lambda x: torch.ones(len(x), dtype=F64))
    away = torch.cdist(POINTS, ALPHA * target.points).square() / (2 * SIGMA**2)
    noised = (target.weights * torch.exp(-away)).sum(1) / (2 * torch.pi * SIGMA**2)
    shares = (everything.weights * torch.exp(-away)).sum(1, keepdim=True)
    average = (everything.weights * torch.exp(-away) / shares) @ weight(target.points)
    return Reading(
        {
            "Q_t(x)": noised, "C": everything.expectation(weight), "p_t(x)": NOISY.log_prob(POINTS).exp(),
            r"\mathbb E[h(x_0) | x_t = x]": average,
        },
        {r"\mathbb E[h(x_0)]": everything.expectation(weight)}, tolerance=1e-7,
    )  # fmt: skip


@reads("eq-hard-wall")
def hard_wall() -> Reading:
    """The limit taken as a scale of 10,000, at points off the border."""

    def log_sharp(x: Tensor) -> Tensor:
        chances = torch.stack([chance(TWO, x, y).log() for y in (0, 1)], dim=1)
        return (1e4 * chances).log_softmax(1)[:, LABEL]

    steep = GridDensity(lambda x: TWO.log_prob(x) + log_sharp(x), -9, 9, 400)
    everything = GridDensity(TWO.log_prob, -9, 9, 400)
    inside = [(chance(TWO, x, LABEL) > 0.5).double() for x in (POINTS, everything.points)]
    known = {
        r"\lim_{\gamma \to \infty} N_0(x)": steep.log_prob(POINTS).exp(), "p(x)": TWO.log_prob(POINTS).exp(),
        r"\mathbf 1_y(x)": inside[0], r"\mathbb E[\mathbf 1_y(x)]": everything.weights @ inside[1],
    }  # fmt: skip
    where = r"( x ) [\mathbf 1 _ y ( x ) -> ( \mathbf 1 _ y ( x ) ) ^ 2] } { \mathbb"
    square = {where: "the square of 0 or 1 is itself"}
    decoy = {"p(x | y)": TWO.given(LABEL).log_prob(POINTS).exp()}
    return Reading(known, decoy, tolerance=1e-4, equivalent=square)


@reads("eq-mode-weights")
def mode_weights() -> Reading:
    """Rows: the components, each with the cells of a grid, weighed by the component's own density."""
    cells = GridDensity(TWO.log_prob, -9, 9, 240).points
    alone = [GaussianMixture([1.0], TWO.means[k, None], TWO.covs[k, None]) for k in range(len(TWO.weights))]
    shares = torch.stack([blob.log_prob(cells).softmax(0) for blob in alone])  # (K, cells)
    targets = (clean(lambda x: chance(TWO, x, LABEL) ** GAMMA), clean(lambda x: sharp(TWO, x, LABEL)))
    return Reading(
        {
            "S(k)": metrics.mode_weights(TWO, targets[0]), "N(k)": metrics.mode_weights(TWO, targets[1]),
            "w_k": TWO.weights, r"\mathbb E_k": lambda values: shares @ values[:, 0, 0], r"\gamma": GAMMA,
            "p(y | x)": chance(TWO, cells, LABEL), r"\tilde p(y | x)": sharp(TWO, cells, LABEL),
        },
        statements=2, tolerance=1e-6,
    )  # fmt: skip


@reads("eq-path-residual")
def path_residual() -> Reading:
    """The heat equation by differences of fourth order, f a power."""
    q, h = 0.7, 2e-2

    def at(x: Tensor, q: float) -> tuple[Tensor, Tensor]:
        noisy = TWO.noised(1.0, q**0.5)
        return noisy.log_prob(x).exp(), chance(noisy, x, LABEL)

    def mass(x: Tensor, q: float) -> Tensor:
        density, u = at(x, q)
        return density * u**GAMMA

    def second(step: Tensor) -> Tensor:
        near, far = (mass(POINTS + k * step, q) + mass(POINTS - k * step, q) for k in (1, 2))
        return (16 * near - far - 30 * mass(POINTS, q)) / (12 * h**2)

    near, far = (mass(POINTS, q + k * h) - mass(POINTS, q - k * h) for k in (1, 2))
    rate = (8 * near - far) / (12 * h)
    x = POINTS.clone().requires_grad_()
    density, u = at(x, q)
    known = {
        r"\partial_q F": rate, r"\Delta F": second(h * torch.tensor([1.0, 0.0])) + second(h * torch.tensor([0.0, 1.0])),
        "p_q": density, "f''(u_q)": GAMMA * (GAMMA - 1) * u ** (GAMMA - 2), "u_q": u, r"\nabla": gradient(x),
    }  # fmt: skip
    return Reading(known, {"f'(u_q)": GAMMA * u ** (GAMMA - 1)}, tolerance=1e-4)


@reads("eq-balance")
def balance() -> Reading:
    target = clean(lambda x: chance(TWO, x, LABEL) ** GAMMA)
    x = target.points.clone().requires_grad_()
    slope = gradient(x)(chance(TWO, x, LABEL).log()[:, None, None]).detach()
    known = {
        r"\mathbb E_S": expectation(target.weights), "g_y": slope, r"\gamma": GAMMA, r"\nabla": gradient(x),
        "p": TWO.log_prob(x).exp(),
    }  # fmt: skip
    return Reading(known, tolerance=1e-6)
