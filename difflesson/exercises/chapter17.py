"""Exercises of chapter 17, what gamma samples."""

import math

import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake
from difflesson.exercises.chapter10 import over_all_noise

# --- 17.1 ---------------------------------------------------------------------------------------------------


def splits() -> dict[str, tuple]:
    """Cases of 17.1: gamma, rho, and the predictor's scale."""
    return {
        "gamma = 4, DDPM's noise, conditional predictor": (4.0, 1.0, 1.0),
        "a guided predictor": (4.0, 1.5, 4.0),
        "a predictor without label, little noise": (2.5, 0.4, 0.0),
        "a predictor in between": (6.0, 2.0, 3.0),
        "away from the label": (-1.0, 0.7, 0.5),
        "a predictor that goes away from the label": (3.0, 1.2, -0.7),
    }


def scale_from_three_scores(gamma: float, rho: float, a: float) -> float:
    """For two scores that are numbers: what is left for the Langevin half, read back as a scale."""
    untold, told = 0.3137, 1.7291
    whole = (1 + rho**2) / 2 * (untold + gamma * (told - untold))
    rest = whole - (untold + a * (told - untold)) / 2
    return (rest / (rho**2 / 2) - untold) / (told - untold)


# --- 17.2 ---------------------------------------------------------------------------------------------------


def bills() -> dict[str, tuple]:
    """Cases of 17.2: points, C, U, gamma."""
    x = torch.tensor([-1.3, 0.0, 0.4, 2.0], dtype=torch.float64)
    return {
        "gamma = 3": (x, 0.7, 1.9, 3.0),
        "gamma = 0.5, between": (x, 0.5, 3.0, 0.5),
        "gamma = 1, nobody pays": (x, 0.5, 3.0, 1.0),
        "gamma = -0.6, away from the label": (x, 1.4, 2.1, -0.6),
        "one point, gamma = 6": (x[:1], 1.1, 1.6, 6.0),
    }


def bill_by_runge_kutta(x: Tensor, C: float, U: float, gamma: float) -> Tensor:
    """The gradient's square summed along the path, in log q."""
    low, high, steps = -20.0, 10.0, 400  # beyond, next to nothing is paid; the error is below 2e-7
    h = (high - low) / steps
    path, total = x.clone(), torch.zeros_like(x)

    def rates(path, log_q):
        q = math.exp(log_q)
        slope = -path / (C + q) + path / (U + q)
        return q / 2 * (gamma / (C + q) + (1 - gamma) / (U + q)) * path, q * gamma * (gamma - 1) / 2 * slope**2

    for k in range(steps):
        at = low + k * h
        a, pay_a = rates(path, at)
        b, pay_b = rates(path + h / 2 * a, at + h / 2)
        c, pay_c = rates(path + h / 2 * b, at + h / 2)
        d, pay_d = rates(path + h * c, at + h)
        path, total = path + h / 6 * (a + 2 * b + 2 * c + d), total + h / 6 * (pay_a + 2 * pay_b + 2 * pay_c + pay_d)
    return total


def two_variances(C: float, U: float, gamma: float) -> tuple[float, float]:
    """What comes, and what was ordered."""
    return C**gamma * U ** (1 - gamma), 1 / (gamma / C + (1 - gamma) / U)


# --- 17.3 ---------------------------------------------------------------------------------------------------


def three_scores() -> dict[str, tuple]:
    """Cases of 17.3: the scores of all data and under two labels, (N, d), and two scales."""
    generator = torch.Generator().manual_seed(17)

    def draw(*shape):
        return torch.randn(3, *shape, generator=generator, dtype=torch.float64)

    return {
        "two labels, the plane": (*draw(5, 2), 2.0, 3.0),
        "one label": (*draw(4, 3), 4.0, 0.0),
        "neither": (*draw(3, 2), 0.0, 0.0),
        "towards one, away from the other": (*draw(1, 4), 1.5, -0.8),
        "away from both": (*draw(2, 2), -1.2, -0.4),
        "weights that add up to one": (*draw(6, 1), 0.3, 0.7),
    }


def made_by_differences(s0: Tensor, s1: Tensor, s2: Tensor, gamma1: float, gamma2: float) -> Tensor:
    """Log densities s . x + |s|^2 q / 2 diffuse and have these scores. What does their combination do at x = 0?"""
    h, (count, dim) = 1e-2, s0.shape
    told = [(s1, gamma1), (s2, gamma2)]

    def log(s: Tensor, x: Tensor, q: float) -> Tensor:
        return torch.einsum("nd,nd->n", s, x) + q / 2 * torch.einsum("nd,nd->n", s, s)

    def combined(x: Tensor, q: float) -> Tensor:
        base = log(s0, x, q)
        return base + sum(gamma * (log(s, x, q) - base) for s, gamma in told)

    origin = s0.new_zeros(count, dim)
    missing = (combined(origin, h) - combined(origin, -h)) / (2 * h)
    for axis in torch.eye(dim, dtype=s0.dtype):
        slope = (combined(origin + h * axis, 0.0) - combined(origin - h * axis, 0.0)) / (2 * h)
        missing = missing - slope**2 / 2
    return -missing


def half_of_squares(s0, s1, s2, gamma1, gamma2, *, first=None, factor=0.5, mixed=True, rows=True):
    """The solution with parts that can be got wrong."""
    c = (1 - gamma1 - gamma2 if first is None else first, gamma1, gamma2)
    square = (lambda s: s.square().sum(1)) if rows else (lambda s: s.square().mean(1))
    together = square(sum(w * s for w, s in zip(c, (s0, s1, s2), strict=True))) if mixed else 0.0
    return factor * (together - sum(w * square(s) for w, s in zip(c, (s0, s1, s2), strict=True)))


# --- 17.4 ---------------------------------------------------------------------------------------------------


def runaways() -> dict[str, tuple]:
    """Cases of 17.4: m, C, U, gamma, rho, and what integrates."""
    return {
        "gamma = 3, DDPM's noise": (1.2, 0.7, 1.9, 3.0, 1.0, over_all_noise),
        "gamma = 1, the class itself": (-0.8, 0.5, 3.0, 1.0, 0.8, over_all_noise),
        "without noise": (0.6, 0.5, 1.4, 2.0, 0.0, over_all_noise),
        "much noise": (2.0, 0.9, 1.2, 4.0, 2.0, over_all_noise),
        "away from the label": (0.5, 0.8, 1.1, -0.5, 1.5, over_all_noise),
    }


def mean_by_runge_kutta(m: float, C: float, U: float, gamma: float, rho: float, integrate) -> float:
    """The mean's own equation on the way down, in log q, from a start at 0 so far up that it is forgotten."""
    high, low, steps = 50.0, -25.0, 6000
    h, half = (high - low) / steps, (1 + rho**2) / 2

    def rate(log_q, mean):  # against log q falling
        q = math.exp(log_q)
        return half * q * (gamma * (m - mean) / (C + q) - (1 - gamma) * mean / (U + q))

    log_q, mean = high, 0.0
    for _ in range(steps):
        a = rate(log_q, mean)
        b = rate(log_q - h / 2, mean + h / 2 * a)
        c = rate(log_q - h / 2, mean + h / 2 * b)
        d = rate(log_q - h, mean + h * c)
        mean += h / 6 * (a + 2 * b + 2 * c + d)
        log_q -= h
    return mean


def arriving(m, C, U, gamma, rho, integrate, *, half=None, power=None, scale=None, swapped=False):
    """The solution with parts that can be got wrong."""
    half = (1 + rho**2) / 2 if half is None else half
    power = (1 + rho**2) / 2 if power is None else power
    scale = gamma if scale is None else scale
    inner, outer = (U, C) if swapped else (C, U)

    def arrives(q):
        kept = (inner / (inner + q)) ** gamma * (outer / (outer + q)) ** (1 - gamma)
        return half * scale * m / (C + q) * kept**power

    return integrate(arrives)


EXERCISES = [
    Exercise(
        number="17.1",
        title="whatever the predictor's scale, the Langevin half gets the rest",
        cases=splits,
        truth=scale_from_three_scores,
        mistakes=[
            Mistake(
                "the page's predictor",
                lambda gamma, rho, a: gamma + (gamma - 1) / rho**2,
                "this is for a conditional predictor. Where does its scale a enter?",
            ),
            Mistake(
                "rho for its square",
                lambda gamma, rho, a: gamma + (gamma - a) / rho,
                "the noise has variance rho^2 dq: which power of rho stands before the Langevin half?",
            ),
            Mistake(
                "DDPM for every noise",
                lambda gamma, rho, a: 2 * gamma - a,
                "right at rho = 1. Where does rho enter?",
            ),
            Mistake(
                "the wrong way",
                lambda gamma, rho, a: gamma - (gamma - a) / rho**2,
                "if the predictor is guided too little, must the corrector make up for it, or add to it?",
            ),
            Mistake(
                "the step's factor forgotten",
                lambda gamma, rho, a: (gamma - a) / rho**2,
                "a guided predictor, a = gamma, leaves the scale gamma. What do you return there?",
            ),
            Mistake(
                "gamma itself",
                lambda gamma, rho, a: gamma,
                "this is what is left if the predictor is guided as well. Compare the weights of s_1 on both sides.",
            ),
        ],
    ),
    Exercise(
        number="17.2",
        title="a Gaussian's bill is the difference of two precisions, and the centre pays nothing",
        cases=bills,
        truth=bill_by_runge_kutta,
        mistakes=[
            Mistake(
                "the order less what comes",
                lambda x, C, U, gamma: (
                    x**2 / 2 * (1 / two_variances(C, U, gamma)[1] - 1 / two_variances(C, U, gamma)[0])
                ),
                "right but for the sign: who is rarer than ordered pays, and what comes is narrower.",
            ),
            Mistake(
                "variances for precisions",
                lambda x, C, U, gamma: x**2 / 2 * (two_variances(C, U, gamma)[1] - two_variances(C, U, gamma)[0]),
                "what stands in the exponent of a Gaussian, its variance or its inverse?",
            ),
            Mistake(
                "the half forgotten",
                lambda x, C, U, gamma: x**2 * (1 / two_variances(C, U, gamma)[0] - 1 / two_variances(C, U, gamma)[1]),
                "write the exponent of a Gaussian down once more: a factor is missing.",
            ),
            Mistake(
                "the class for the order",
                lambda x, C, U, gamma: x**2 / 2 * (1 / two_variances(C, U, gamma)[0] - 1 / C),
                "you compare with the plain class. What was ordered at this gamma?",
            ),
            Mistake(
                "with the normalisers",
                lambda x, C, U, gamma: (
                    x**2 / 2 * (1 / two_variances(C, U, gamma)[0] - 1 / two_variances(C, U, gamma)[1])
                    + math.log(two_variances(C, U, gamma)[0] / two_variances(C, U, gamma)[1]) / 2
                ),
                "the ratio of the two densities has a constant as well. What does a point at 0 pay?",
            ),
            Mistake(
                "the path left out",
                lambda x, C, U, gamma: gamma * (gamma - 1) / 2 * x**2 * (1 / C + 1 / U - 2 * math.log(U / C) / (U - C)),
                "this integrates the gradient at x itself. At noise q the path is elsewhere.",
            ),
        ],
        tolerance=1e-5,
    ),
    Exercise(
        number="17.3",
        title="every pair of scores that differ makes mass; with one label it is the page's equation",
        cases=three_scores,
        truth=made_by_differences,
        mistakes=[
            Mistake(
                "away from the data",
                lambda *a: -half_of_squares(*a),
                "the right size for growing q. Which way does the sampler go?",
            ),
            Mistake(
                "the half forgotten",
                lambda *a: half_of_squares(*a, factor=1.0),
                "with one label you get twice the page's term.",
            ),
            Mistake(
                "one label at a time",
                lambda s0, s1, s2, g1, g2: (
                    g1 * (g1 - 1) / 2 * (s1 - s0).square().sum(1) + g2 * (g2 - 1) / 2 * (s2 - s0).square().sum(1)
                ),
                "right with one label. The square of the sum has a term in which both labels stand.",
            ),
            Mistake(
                "weight of all data 1",
                lambda *a: half_of_squares(*a, first=1.0),
                "the weights must add up to one: how much of s_0 is left?",
            ),
            Mistake(
                "mean over coordinates",
                lambda *a: half_of_squares(*a, rows=False),
                "a squared norm is a sum over coordinates.",
            ),
            Mistake(
                "the square of the sum forgotten",
                lambda *a: half_of_squares(*a, mixed=False),
                "at scales of zero nothing is made. Is it, with yours?",
            ),
        ],
    ),
    Exercise(
        number="17.4",
        title="the mean of what comes, for every noise",
        cases=runaways,
        truth=mean_by_runge_kutta,
        mistakes=[
            Mistake(
                "the order",
                lambda m, C, U, gamma, rho, integrate: gamma * m / C / (gamma / C + (1 - gamma) / U),
                "this is the mean of the order. A sampler gets there only with very much noise.",
            ),
            Mistake(
                "the class",
                lambda m, C, U, gamma, rho, integrate: m,
                "right at gamma = 1 only.",
            ),
            Mistake(
                "the factor of a variance",
                lambda m, C, U, gamma, rho, integrate: arriving(m, C, U, gamma, rho, integrate, power=1 + rho**2),
                "by this a variance shrinks. A displacement is a length.",
            ),
            Mistake(
                "half a score whatever the noise",
                lambda m, C, U, gamma, rho, integrate: arriving(m, C, U, gamma, rho, integrate, half=0.5),
                "right without noise. How much of the score does a step with noise take?",
            ),
            Mistake(
                "the displacement does not shrink",
                lambda m, C, U, gamma, rho, integrate: arriving(m, C, U, gamma, rho, integrate, power=0.5),
                "how fast a displacement shrinks depends on the noise as well.",
            ),
            Mistake(
                "gamma forgotten",
                lambda m, C, U, gamma, rho, integrate: arriving(m, C, U, gamma, rho, integrate, scale=1.0),
                "which part of the guided score does not depend on x? Its weight is missing.",
            ),
            Mistake(
                "class and data exchanged",
                lambda m, C, U, gamma, rho, integrate: arriving(m, C, U, gamma, rho, integrate, swapped=True),
                "at gamma = 1 the mean must be m. In the factor, which variance belongs to the class?",
            ),
        ],
        tolerance=1e-4,
    ),
]
