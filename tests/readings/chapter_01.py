"""What the letters of chapter 01's equations stand for: other mixtures, points and times than the page's."""

import torch
from torch import Tensor

from difflesson import plane
from difflesson.schedule import vp_linear
from tests.oracles.mixtures import FOUR
from tests.readings.common import F64, normal_density, posterior
from tools.formula import Reading, reads

MIXTURE, SCHEDULE, LABEL = FOUR.mixture(), vp_linear(0.3, 8.0), 1
T, S = torch.tensor(0.45, dtype=F64), torch.tensor(0.2, dtype=F64)
ALPHA, SIGMA = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
NOISY = MIXTURE.noised(ALPHA, SIGMA)
IDENTITY = torch.eye(2, dtype=F64)[None]
POINTS = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]], dtype=F64)
ONE = POINTS[1:2]  # for sums over components, whose batch the components are
LEVELS = {
    r"\alpha_t": ALPHA, r"\sigma_t": SIGMA, r"\alpha_s": SCHEDULE.alpha(S), r"\sigma_s": SCHEDULE.sigma(S),
}  # fmt: skip
OTHERS = torch.tensor([2, 0, 3, 1])  # components in another order: what k and j exchanged would give


def added(values: Tensor) -> Tensor:
    return values.sum(0, keepdim=True)


def parts() -> dict[str, object]:
    return {"w_k": MIXTURE.weights, "m_k": MIXTURE.means, "C_k": MIXTURE.covs, "x": ONE, r"\mathcal N": normal_density,
            r"\sum_k": added}  # fmt: skip


def shares(mixture, x: Tensor) -> Tensor:
    """p(k | x) at one point, (K,), each component a class of its own."""
    apart = type(mixture)(mixture.weights, mixture.means, mixture.covs)
    return torch.cat([apart.class_log_prob(x, k).exp() for k in range(len(mixture.weights))])


def component_slopes(mixture, x: Tensor) -> Tensor:
    """Gradients of the logarithm of each component at one point, (K, d), by autograd."""
    leaf = x.expand(len(mixture.weights), 2).clone().requires_grad_()
    torch.distributions.MultivariateNormal(mixture.means, mixture.covs).log_prob(leaf).sum().backward()
    return leaf.grad


@reads("eq-composed-noise")
def composed() -> Reading:
    """Four steps, walked with one noise at a time."""
    a = torch.tensor([0.95, 0.8, 0.6, 0.9], dtype=F64)
    made = torch.zeros(5, dtype=F64)  # coefficients of the clean point and of four noises
    made[0] = 1
    for k, factor in enumerate(a):
        made = factor * made
        made[k + 1] = (1 - factor**2).sqrt()

    def later(values: Tensor) -> Tensor:
        flat = values.flatten()
        return torch.stack([flat[k + 1 :].prod() for k in range(len(flat))])

    return Reading(
        {r"\alpha": made[0], r"\sigma": made[1:].norm(), "a_k": a, "a_j": a, r"\prod_k": lambda v: v.prod(0, True),
         r"\sum_k": added, r"\prod_{j > k}": later},
        statements=2,
    )  # fmt: skip


@reads("eq-mixture")
def mixture() -> Reading:
    others = {"w_j": MIXTURE.weights[OTHERS], "m_j": MIXTURE.means[OTHERS], "C_j": MIXTURE.covs[OTHERS]}
    return Reading({"p(x)": MIXTURE.log_prob(ONE).exp()} | parts(), others)


@reads("eq-noised-mixture")
def noised() -> Reading:
    """The noised density by an integral over clean points."""
    axis = torch.linspace(-7, 7, 281, dtype=F64)
    clean = torch.cartesian_prod(axis, axis)
    bell = torch.exp(-(ONE - ALPHA * clean).square().sum(1) / 2 / SIGMA**2) / (2 * torch.pi * SIGMA**2)
    density = (MIXTURE.log_prob(clean).exp() * bell).sum() * (axis[1] - axis[0]) ** 2
    return Reading({"p_t(x)": density} | parts() | {"I": IDENTITY}, LEVELS, tolerance=1e-7)


@reads("eq-mixture-score")
def score() -> Reading:
    leaf = ONE.clone().requires_grad_()
    letters = parts() | {
        r"\nabla \log p(x)": torch.autograd.grad(MIXTURE.log_prob(leaf).sum(), leaf)[0], r"\sum_j": added,
        "p(k | x)": shares(MIXTURE, ONE), "w_j": MIXTURE.weights, "m_j": MIXTURE.means, "C_j": MIXTURE.covs,
    }  # fmt: skip
    decoys = {"p_t(k | x)": shares(NOISY, ONE), "x_t": 1.2 * ONE}
    return Reading(letters, decoys, statements=2)


@reads("eq-guess-error")
def guess_error() -> Reading:
    """Pairs of a clean point and a noisy one on a grid in one dimension; a guess that no formula of the page makes."""
    data = type(MIXTURE)([0.7, 0.3], torch.tensor([[-1.0], [1.5]], dtype=F64), [[[0.3]], [[0.6]]])
    axis = torch.linspace(-8, 8, 401, dtype=F64)
    x0, x = torch.cartesian_prod(axis, axis).T
    weights = (data.log_prob(x0[:, None]) - (x - 0.8 * x0).square() / 2 / 0.36).softmax(0)
    best = data.noised(0.8, 0.6).score(x[:, None])[:, 0] * 0.36 / 0.8 + x / 0.8
    return Reading(
        {r"\mathbb E": lambda values: (weights[:, None, None] * values).sum(0, keepdim=True), "x_0": x0,
         "g": torch.sin(3 * x) + 0.4, r"\hat x_0": best},
        {"x_t": x}, tolerance=1e-7,
    )  # fmt: skip


@reads("eq-tweedie")
def tweedie() -> Reading:
    letters = {r"\mathbb E[x_0 | x_t = x]": posterior(MIXTURE.log_prob, POINTS, float(ALPHA), float(SIGMA))[0]}
    slopes = {}
    for name, level in (("t", NOISY), ("s", MIXTURE.noised(SCHEDULE.alpha(S), SCHEDULE.sigma(S)))):
        leaf = POINTS.clone().requires_grad_()
        slopes[rf"\nabla \log p_{name}(x)"] = torch.autograd.grad(level.log_prob(leaf).sum(), leaf)[0]
    return Reading(letters | {"x": POINTS}, LEVELS | slopes, tolerance=1e-7)


@reads("eq-snr-clock")
def clock() -> Reading:
    """At one noisy point, for several clean ones: joint density over the noisy one."""
    x_t, clean = ONE.expand(5, 2), torch.cartesian_prod(*[torch.linspace(-1, 1, 3, dtype=F64)] * 2)[:5]
    joint = MIXTURE.log_prob(clean) - (x_t - ALPHA * clean).square().sum(1) / 2 / SIGMA**2
    return Reading(
        {"p(x_0 | x_t)": (joint - NOISY.log_prob(ONE)).exp(), "p(x_0)": MIXTURE.log_prob(clean).exp(),
         r"\lambda_t": SCHEDULE.log_snr(T), "x_0": clean, "x_t": x_t},
        LEVELS | {r"\lambda_s": SCHEDULE.log_snr(S), "x_s": 0.8 * x_t + 0.1},
    )  # fmt: skip


@reads("eq-class-posterior")
def class_posterior() -> Reading:
    mine = torch.tensor([y == LABEL for y in MIXTURE.labels])
    letters = {"p_t(y | x)": NOISY.class_log_prob(ONE, LABEL).exp(), "p_t(k | x)": shares(NOISY, ONE),
               r"\sum_{k \text{ of class } y}": lambda values: added(values[mine])}  # fmt: skip
    return Reading(letters, {"p_s(k | x)": shares(MIXTURE, ONE), "p(k | x)": shares(MIXTURE, ONE)})


@reads("eq-vp-linear")
def linear() -> Reading:
    """The rate by a difference quotient of the integrated rate, alpha by summing many small steps."""
    schedule, h = vp_linear(0.3, 8.0), 1e-4
    times = torch.tensor([0.15, 0.5, 0.9], dtype=F64)
    rate = -(schedule.alpha(times + h).log() - schedule.alpha(times - h).log()) / h
    ends = {r"\beta_\text{min}": 0.3, r"\beta_\text{max}": 8.0, "t": times}
    return Reading({r"\beta(t)": rate, r"\alpha_t": schedule.alpha(times)} | ends, statements=2, tolerance=1e-7)


@reads("eq-mixture-denoiser")
def denoiser() -> Reading:
    guess, _ = posterior(MIXTURE.log_prob, ONE, float(ALPHA), float(SIGMA))
    letters = parts() | {
        r"\hat x_0": guess, r"\hat\varepsilon": (ONE - ALPHA * guess) / SIGMA, "p_t(k | x)": shares(NOISY, ONE),
        "V_k": NOISY.covs,
    }  # fmt: skip
    unused = ("w_k", r"\mathcal N")
    letters = {name: value for name, value in letters.items() if name not in unused}
    decoys = LEVELS | {"p(k | x)": shares(MIXTURE, ONE), "I": IDENTITY}
    return Reading(letters, decoys, statements=2, tolerance=1e-7)


@reads("eq-mixture-hessian")
def hessian() -> Reading:
    jacobian = plane.jacobian(MIXTURE.score, ONE)
    letters = {
        r"\nabla \nabla^\top \log p(x)": jacobian, r"\sum_k": added, "p(k | x)": shares(MIXTURE, ONE),
        "g_k": component_slopes(MIXTURE, ONE), "C_k": MIXTURE.covs, "g": MIXTURE.score(ONE),
    }  # fmt: skip
    return Reading(letters, {"w_k": MIXTURE.weights})


@reads("eq-conditional-mixture")
def conditional() -> Reading:
    mine = torch.tensor([y == LABEL for y in MIXTURE.labels])
    both = [(MIXTURE.class_log_prob(ONE, y) + MIXTURE.log_prob(ONE)).exp() for y in (0, 1)]
    chance = MIXTURE.class_weights()[LABEL]
    letters = {name: value for name, value in parts().items() if name != r"\sum_k"} | {
        "p(x | y)": both[LABEL] / chance, "p(y)": chance,
        r"\sum_{k \text{ of class } y}": lambda values: added(values.expand(4, -1, -1)[mine]),
    }  # fmt: skip
    return Reading(letters, {"p(x)": both[0] + both[1]}, statements=2)
