"""Exercises of chapter 18: the weight of a step, the price of thinning, and two of the weight along a Gaussian flow."""

import math

import numpy as np
import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake

# --- 18.1 ---------------------------------------------------------------------------------------------------


def pictures() -> dict[str, tuple]:
    """Cases of 18.1: two guesses (N, C, H, W), a scale, and the log-SNR at both ends."""
    generator = torch.Generator().manual_seed(18)

    def two(*shape):
        return torch.randn(2, *shape, generator=generator, dtype=torch.float64).unbind()

    return {
        "gamma = 3, three pictures": (*two(3, 2, 4, 3), 3.0, -1.5, -0.9),
        "gamma = 0.4, between the two guesses": (*two(2, 1, 3, 5), 0.4, 0.2, 1.1),
        "gamma = -2, away from the label": (*two(4, 3, 2, 2), -2.0, 2.0, 2.3),
        "gamma = 1, no guidance": (*two(2, 1, 2, 2), 1.0, 0.0, 1.0),
    }


def added(eps_c: Tensor, eps_u: Tensor, gamma: float, start: float, end: float) -> Tensor:
    """Pixel by pixel: log N(e; mean) of the guided mixture of two unit Gaussians, whose cross terms cancel."""
    rates = []
    for told, untold in zip(eps_c.flatten(1), eps_u.flatten(1), strict=True):
        # gamma |d - c|^2 + (1 - gamma) |d - u|^2 at the guided point d = u + gamma (c - u), with the sign turned
        guided = untold + gamma * (told - untold)
        rates.append(-(gamma * (guided - told) @ (guided - told) + (1 - gamma) * (guided - untold) @ (guided - untold)))
    return torch.stack(rates) / 2 * (end - start)


def added_wrongly(power=lambda g: g * (g - 1) / 2, square=lambda d: d.square().flatten(1).sum(1), sign=1.0):
    """The answer with one thing changed."""
    return lambda c, u, gamma, start, end: sign * power(gamma) * square(u - c) * (end - start)


# --- 18.2 ---------------------------------------------------------------------------------------------------


def verdicts() -> dict[str, tuple]:
    """Cases of 18.2: log p(y | x) of plain samples, the share of the class, a scale."""
    odds = torch.tensor([4.0, 1.0, -0.5, 0.2, 2.5], dtype=torch.float64)
    log_p = torch.nn.functional.logsigmoid(odds)
    return {
        "gamma = 3": (log_p, 0.4, 3.0),
        "gamma = 8, a rare class": (log_p[:4], 0.05, 8.0),
        "gamma = 1, all are kept": (log_p, 0.7, 1.0),
        "gamma = 1.5, two samples": (log_p[1:3], 0.3, 1.5),
    }


def kept_by_odds(log_p: Tensor, p_y: float, gamma: float) -> tuple[float, float]:
    """Point by point, in plain numbers."""
    kept = sum(math.pow(math.exp(value), gamma - 1) for value in log_p.tolist()) / len(log_p)
    return kept, math.log(kept * p_y)


def with_log_z(kept: Tensor, p_y: float) -> tuple[Tensor, Tensor]:
    """The share, and what follows from it rightly."""
    return kept, kept.log() + math.log(p_y)


# --- 18.3 and 18.4 ------------------------------------------------------------------------------------------


def gaussians() -> dict[str, tuple]:
    """Cases of 18.3: the variances of the class and of all data, and a scale."""
    return {
        "C = 0.5, U = 1, gamma = 3": (0.5, 1.0, 3.0),
        "C = 0.3, U = 2, gamma = 1.5": (0.3, 2.0, 1.5),
        "C = 0.9, U = 1.3, gamma = 6": (0.9, 1.3, 6.0),
        "C = 0.7, U = 2, gamma = 0.5": (0.7, 2.0, 0.5),
        "C = 0.8, U = 1.5, gamma = 1": (0.8, 1.5, 1.0),
    }


NODES = np.polynomial.legendre.leggauss(200)


def exponent_by_quadrature(C: float, U: float, gamma: float) -> float:
    """The integral over all noise levels, by Gauss-Legendre in v = q / (1 + q)."""
    v, weights = (NODES[0] + 1) / 2, NODES[1] / 2
    q = v / (1 - v)
    slope = 1 / (C + q) - 1 / (U + q)
    moved = ((C + q) / C) ** gamma * ((U + q) / U) ** (1 - gamma)
    return float(gamma * (gamma - 1) / 2 * np.sum(weights * slope**2 * moved / (1 - v) ** 2))


def pairs_of_variances() -> dict[str, tuple]:
    """Cases of 18.4."""
    return {"C = 0.3, U = 1": (0.3, 1.0), "C = 0.9, U = 1.1": (0.9, 1.1), "C = 0.2, U = 4": (0.2, 4.0)}


def least_scale(threshold: float, C: float, U: float) -> float:
    """The gamma above 1 at which `4 k G = 2 (1 - G / T)`, which grows with gamma, reaches a threshold below 2."""

    def reached(gamma):
        return 4 * exponent_by_quadrature(C, U, gamma) * C**gamma * U ** (1 - gamma) >= threshold

    low, high = 1.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def frozen(C: float, U: float, gamma: float) -> float:
    """The integral of 18.3 with z_0 in the place of z_q."""
    return gamma * (gamma - 1) / 2 * (1 / C + 1 / U - 2 * math.log(U / C) / (U - C))


EXERCISES = [
    Exercise(
        number="18.1",
        title="the weight of a step",
        cases=pictures,
        truth=added,
        mistakes=[
            Mistake(
                "wrong way round",
                added_wrongly(sign=-1.0),
                "the right size, with the wrong sign. Which end of a reverse step has the larger log-SNR?",
            ),
            Mistake(
                "without the half",
                added_wrongly(power=lambda g: g * (g - 1)),
                "off by a factor that is the same everywhere.",
            ),
            Mistake(
                "gamma squared",
                added_wrongly(power=lambda g: g**2 / 2),
                "at gamma = 1 nobody guides, and nothing is to be weighed.",
            ),
            Mistake(
                "w squared",
                added_wrongly(power=lambda g: (g - 1) ** 2 / 2),
                "right at gamma = 1. At gamma = 0 nobody guides either; and between the two weights fall.",
            ),
            Mistake(
                "w for gamma",
                added_wrongly(power=lambda g: g * (g + 1) / 2),
                "the formula of w = gamma - 1, with gamma put in: at gamma = 1 nothing is to be weighed.",
            ),
            Mistake(
                "mean over pixels",
                added_wrongly(square=lambda d: d.square().flatten(1).mean(1)),
                "a weight of a picture counts all its pixels: is the square of a length a mean?",
            ),
            Mistake(
                "length, not its square",
                added_wrongly(square=lambda d: d.flatten(1).norm(dim=1)),
                "twice the difference of the guesses is four times the weight.",
            ),
        ],
    ),
    Exercise(
        number="18.2",
        title="what thinning costs",
        cases=verdicts,
        truth=kept_by_odds,
        mistakes=[
            Mistake(
                "gamma for gamma - 1",
                lambda log_p, p_y, gamma: with_log_z((gamma * log_p).exp().mean(), p_y),
                "at gamma = 1 plain samples are what you want: all must be kept.",
            ),
            Mistake(
                "mean of the logarithms",
                lambda log_p, p_y, gamma: with_log_z(((gamma - 1) * log_p).mean().exp(), p_y),
                "the power of a mean verdict is not the mean power. Average what is averaged in the equation.",
            ),
            Mistake(
                "power of the mean",
                lambda log_p, p_y, gamma: with_log_z(log_p.exp().mean() ** (gamma - 1), p_y),
                "a power of a mean is not the mean of a power.",
            ),
            Mistake(
                "share of the class forgotten",
                lambda log_p, p_y, gamma: with_log_z(((gamma - 1) * log_p).exp().mean(), 1.0),
                "the first number is right. Z is a mean over all data, not over the class.",
            ),
            Mistake(
                "divided by the share",
                lambda log_p, p_y, gamma: (
                    ((gamma - 1) * log_p).exp().mean(),
                    ((gamma - 1) * log_p).exp().mean().log() - math.log(p_y),
                ),
                "the first number is right. Solve the equation for Z again.",
            ),
            Mistake(
                "Z for its logarithm",
                lambda log_p, p_y, gamma: (
                    ((gamma - 1) * log_p).exp().mean(),
                    ((gamma - 1) * log_p).exp().mean() * p_y,
                ),
                "the first number is right; the second was asked for as a logarithm.",
            ),
        ],
    ),
    Exercise(
        number="18.3",
        title="the weight along the flow",
        cases=gaussians,
        truth=exponent_by_quadrature,
        mistakes=[
            Mistake(
                "twice",
                lambda C, U, gamma: 2 * exponent_by_quadrature(C, U, gamma),
                "the exponent of a Gaussian has a half in it.",
            ),
            Mistake(
                "sign",
                lambda C, U, gamma: -exponent_by_quadrature(C, U, gamma),
                "for gamma above 1 the flow's points lie too close together. Which of them must gain?",
            ),
            Mistake(
                "variances subtracted",
                lambda C, U, gamma: (1 / (gamma / C + (1 - gamma) / U) - C**gamma * U ** (1 - gamma)) / 2,
                "in an exponent, are variances subtracted, or their inverses?",
            ),
            Mistake(
                "a point that stands still",
                lambda C, U, gamma: frozen(C, U, gamma),
                "the point does not stand still: at noise level q it is not at z_0.",
            ),
            Mistake(
                "w for gamma",
                lambda C, U, gamma: exponent_by_quadrature(C, U, gamma + 1),
                "at gamma = 1 nobody guides, and nothing is to be weighed.",
            ),
        ],
        tolerance=1e-5,
    ),
    Exercise(
        number="18.4",
        title="a scale with no variance",
        cases=pairs_of_variances,
        truth=lambda C, U: least_scale(1.0, C, U),
        mistakes=[
            Mistake(
                "counted twice",
                lambda C, U: least_scale(0.5, C, U),
                "a squared weight has twice the exponent, and a Gaussian's exponent has a half: is one of them lost?",
            ),
            Mistake(
                "w for gamma",
                lambda C, U: least_scale(1.0, C, U) - 1,
                "this is w = gamma - 1. The scale here is gamma.",
            ),
            Mistake(
                "standard deviations",
                lambda C, U: least_scale(2 - 2**0.5, C, U),
                "T and G are variances; compare them as they are.",
            ),
        ],
        tolerance=1e-6,
    ),
]
