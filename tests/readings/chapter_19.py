"""What the letters of chapter 19's equations stand for: another mixture, other points and scales."""

import numpy as np
import torch
from torch import Tensor

from difflesson import guidance, kernels, practice
from difflesson.denoiser import Prediction
from difflesson.mixture import GaussianMixture
from difflesson.schedule import cosine
from tests.oracles.mixtures import FOUR
from tests.readings.common import F64
from tools.formula import Reading, reads

MIXTURE, SCHEDULE, LABEL, GAMMA = FOUR.mixture(), cosine(), 1, 2.7
T, S = torch.tensor(0.55, dtype=F64), torch.tensor(0.47, dtype=F64)
POINTS = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1], [0.1, -0.4]], dtype=F64)
PAIR = MIXTURE.pair(SCHEDULE, LABEL)
COND, UNCOND = PAIR(POINTS, T)
ALPHA, SIGMA = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
EPS = {r"\hat\varepsilon_c": COND.eps, r"\hat\varepsilon_u": UNCOND.eps}


def spread(values: Tensor) -> Tensor:
    """The standard deviation over the coordinates of columns (N, d, 1)."""
    return torch.from_numpy(np.std(values.numpy(), axis=1, ddof=1, keepdims=True))


@reads("eq-two-leads")
def two_leads() -> Reading:
    plain, trick = [3.0, 1.2, 0.7, 1.9], [2.5, 0.9, 1.1, 1.4]
    return Reading(
        {r"L_\gamma": torch.tensor([0.5, 0.3, -0.4, 0.5], dtype=F64), r"L^\ast": sorted(plain)[0] - sorted(trick)[0],
         r"D_{\text{plain}}(\gamma)": torch.tensor(plain, dtype=F64),
         r"D_{\text{trick}}(\gamma)": torch.tensor(trick, dtype=F64),
         r"\min_\gamma": lambda values: values.amin(0, keepdim=True)},
        statements=2,
    )  # fmt: skip


@reads("eq-growing-scale")
def growing_scale() -> Reading:
    """The straight line from 1 at t = 1 to 2 gamma - 1 at t = 0."""
    t = torch.tensor([0.0, 0.2, 0.55, 0.9, 1.0], dtype=F64)
    line = np.interp(t.numpy(), [0.0, 1.0], [2 * GAMMA - 1, 1.0])
    return Reading({r"\gamma(t)": torch.from_numpy(line), r"\gamma": GAMMA, "t": t})


@reads("eq-plus-plus-scale")
def plus_plus_scale() -> Reading:
    """Left, from two steps of DDIM: how far the label moves CFG++'s at lambda, over how far it moves the usual one."""
    lam = 0.6

    def step(denoiser, **options):
        return kernels.ddim(denoiser, SCHEDULE, **options)(POINTS, T, S).mean

    theirs = step(guidance.classifier_free(PAIR, lam), noise_from=PAIR.uncond) - step(PAIR.uncond)
    ours = step(PAIR.cond) - step(PAIR.uncond)
    return Reading(
        {r"\gamma(t)": (theirs / ours).mean(), r"\lambda": lam, r"\alpha_t": ALPHA, r"\sigma_t": SIGMA,
         r"\alpha_s": SCHEDULE.alpha(S), r"\sigma_s": SCHEDULE.sigma(S)}
    )  # fmt: skip


@reads("eq-rescaled-guidance")
def rescaled_guidance() -> Reading:
    got = guidance.mix(PAIR, practice.rescaled(GAMMA, 0.6, SCHEDULE))(POINTS, T).eps
    plain = guidance.classifier_free(PAIR, GAMMA)(POINTS, T).eps
    return Reading(
        {r"\hat\varepsilon": got, r"\phi": 0.6, r"\operatorname{std}": spread, r"\hat\varepsilon_c": COND.eps,
         r"\hat\varepsilon_\gamma": plain},
        {r"\hat\varepsilon_u": UNCOND.eps},
    )  # fmt: skip


@reads("eq-projected-guidance")
def projected_guidance() -> Reading:
    got = guidance.mix(PAIR, practice.projected(GAMMA, SCHEDULE, eta=0.3))(POINTS, T).x0
    return Reading(
        {r"\hat x_0": got, r"\hat x_{0,c}": COND.x0, r"\gamma": GAMMA, r"\eta": 0.3, "d": COND.x0 - UNCOND.x0},
        {r"\hat x_{0,u}": UNCOND.x0}, statements=3, defines=(r"d_\perp", r"d_\parallel"),
    )  # fmt: skip


@reads("eq-zero-star")
def zero_star() -> Reading:
    got = guidance.mix(PAIR, practice.zero_star(GAMMA, SCHEDULE))(POINTS, T)
    v, v_c, v_u = (ALPHA * one.eps - SIGMA * one.x0 for one in (got, COND, UNCOND))
    return Reading({r"\hat v": v, r"\hat v_c": v_c, r"\hat v_u": v_u, r"\gamma": GAMMA}, statements=2, defines=("s",))


@reads("eq-dynamic-threshold")
def dynamic_threshold() -> Reading:
    """Guesses that are cut above, below, and not at all."""
    guess = torch.tensor([[1.4, 0.2], [-1.7, 0.6], [0.3, -0.4], [0.9, 2.3], [-0.8, -1.2]], dtype=F64)
    x, limit = 0.7 * guess + 0.1, 0.8

    def bold(x: Tensor, t: Tensor) -> Prediction:
        return Prediction.from_x0(x, guess, SCHEDULE.alpha(t), SCHEDULE.sigma(t))

    return Reading(
        {"L": limit, r"Q_p(|\hat x_0|)": torch.from_numpy(np.quantile(guess.abs().numpy(), 0.9, axis=1)),
         r"\hat x_0": guess, r"\max": lambda a, b: torch.maximum(*torch.broadcast_tensors(a, b)),
         r"\operatorname{clip}": lambda x, low, high: torch.minimum(torch.maximum(x, low), high),
         r"\to": lambda _: practice.thresholded(bold, SCHEDULE, quantile=0.9, limit=limit)(x, T).x0},
        statements=2, defines=("s",), equivalent={
            r"= \max ( [L , Q _ p ( | \hat x _ 0 | ) -> Q _ p ( | \hat x _ 0 | ) , L] ) , \qquad": "max has no order"
        },
    )  # fmt: skip


@reads("eq-autoguidance-cure")
def autoguidance_cure() -> Reading:
    """Left, the scale that takes the two models' scores at one point to the right one, at five noise levels."""
    v, b_1, b_2 = 0.8, 0.3, 1.1
    q = torch.tensor([0.05, 0.4, 1.0, 3.0, 40.0], dtype=F64)
    scores = []
    for variance in (v, v + b_1, v + b_2):
        bell = GaussianMixture([1.0], torch.zeros(1, 1, dtype=F64), [[[variance]]])
        at = [bell.noised(1.0, float(level) ** 0.5).score(torch.tensor([[0.7]], dtype=F64)) for level in q]
        scores.append(torch.cat(at)[:, 0])
    wanted, good, weak = scores
    return Reading({r"\gamma(t)": (wanted - weak) / (good - weak), "b_1": b_1, "b_2": b_2, "v": v, "q": q})


@reads("eq-rescale-split")
def rescale_split() -> Reading:
    """r times the guided guess is what the rule with phi = 1 makes of it; r is the quotient of the spreads."""
    got = guidance.mix(PAIR, practice.rescaled(GAMMA, 1.0, SCHEDULE))(POINTS, T).eps
    plain = guidance.classifier_free(PAIR, GAMMA)(POINTS, T).eps
    r = COND.eps.std(1) / plain.std(1)
    return Reading({r"r \hat\varepsilon_\gamma": got, "r": r, r"\gamma": GAMMA} | EPS)


@reads("eq-projection-in-a-library")
def projection_in_a_library() -> Reading:
    """Left, point by point in an orthonormal basis whose first axis is the conditional guess."""
    eta, found, parts = 0.3, [], []
    for told, untold in zip(COND.x0, UNCOND.x0, strict=True):
        first = told / told.norm()
        second = torch.stack([-first[1], first[0]])
        d = told - untold
        along, across = (d @ first) * first, (d @ second) * second
        parts.append((along, across))
        found.append(untold + GAMMA * (across + eta * along))
    along, across = (torch.stack(part) for part in zip(*parts, strict=True))
    return Reading(
        {r"\hat x_0": torch.stack(found), r"\hat x_{0,u}": UNCOND.x0, r"\hat x_{0,c}": COND.x0, r"\gamma": GAMMA,
         r"\eta": eta, r"d_\perp": across, r"d_\parallel": along}
    )  # fmt: skip


OTHER = FOUR.mixture()
PARTS = OTHER.weights, OTHER.means, OTHER.covs
FIRST, SECOND = (GaussianMixture(*PARTS, labels) for labels in ([0, 1, 1, 0], [0, 0, 1, 1]))


def product(z: Tensor, q: float) -> Tensor:
    """p_q(z) p_q(a | z) p_q(b | z), label 1 of both, from joint densities."""
    a, b = (mixture.noised(1.0, q**0.5) for mixture in (FIRST, SECOND))
    joint = [m.class_weights()[1] * m.given(1).log_prob(z).exp() for m in (a, b)]
    return joint[0] * joint[1] / a.log_prob(z).exp()


@reads("eq-two-conditions-weight")
def two_conditions_weight() -> Reading:
    """Left, what the heat equation lacks for the product, by differences of fourth order, at q of the time T."""
    q, d_lambda, z, h = float((SIGMA / ALPHA) ** 2), 0.02, POINTS / ALPHA, 2e-2
    near, far = (product(z, q + k * h) - product(z, q - k * h) for k in (1, 2))
    in_q, laplacian = (8 * near - far) / (12 * h), 0.0
    for step in h * torch.eye(2, dtype=F64):
        one, two = (product(z + k * step, q) + product(z - k * step, q) for k in (1, 2))
        laplacian = laplacian + (16 * one - two - 30 * product(z, q)) / (12 * h**2)
    growth = (laplacian / 2 - in_q) / product(z, q) * q * d_lambda
    told = [mixture.denoiser(SCHEDULE, 1)(POINTS, T).eps for mixture in (FIRST, SECOND)]
    return Reading(
        {r"d \log w": growth, r"\hat\varepsilon_u": UNCOND.eps, r"\hat\varepsilon_a": told[0],
         r"\hat\varepsilon_b": told[1], r"d\ell": d_lambda},
        tolerance=1e-4,
    )  # fmt: skip
