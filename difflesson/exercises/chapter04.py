"""Exercises of chapter 04, scores and Langevin: which density a step samples, its bias, what levels see, nats."""

import math

import numpy as np
import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake

F64 = torch.float64


# --- 4.1 ----------------------------------------------------------------------------------------------------


def steps() -> dict[str, tuple]:
    """Cases of 4.1: the factor of the slope, the variance of the noise."""
    return {
        "a Langevin step": (0.05, 0.1),
        "noise of variance u": (0.03, 0.03),
        "uphill twice as far": (0.2, 0.2),
        "the other convention": (0.005, 0.01),
        "much noise": (0.01, 0.5),
        "little noise": (0.6, 0.03),
    }


def exponent_by_flow(u: float, v: float) -> float:
    """The k at which no mass flows: u p k-th slope against v / 2 times that of p^k, for the bell p at x = 1."""
    low, high = 0.0, 1e3
    for _ in range(200):
        k = (low + high) / 2
        carried, spread = u * -1.0, v / 2 * (k * -1.0)  # the slope of log p is -1 there, that of log p^k is -k
        low, high = (k, high) if spread > carried else (low, k)
    return (low + high) / 2


# --- 4.2 ----------------------------------------------------------------------------------------------------


def biases() -> dict[str, tuple]:
    """Cases of 4.2: variances, and the bias that is allowed."""
    return {
        "one per cent": (torch.tensor([0.3, 1.0, 2.5], dtype=F64), 0.01),
        "twice the variance": (torch.tensor([0.7, 4.0], dtype=F64), 1.0),
        "ten times": (torch.tensor([0.2, 9.0], dtype=F64), 9.0),
        "one coordinate": (torch.tensor([1.0], dtype=F64), 0.3),
        "a matrix of them": (torch.tensor([[0.5, 1.5], [3.0, 0.04]], dtype=F64), 0.1),
    }


def step_by_bisection(v: Tensor, b: float) -> Tensor:
    """The step whose geometric series of variances, 2 c (1 + r + r^2 + ...) with r = (1 - c / v)^2, is (1 + b) v."""
    low, high = torch.zeros_like(v), 2 * v
    for _ in range(200):
        c = (low + high) / 2
        ratio = (1 - c / v) ** 2
        small = 2 * c < (1 + b) * v * (1 - ratio)
        low, high = torch.where(small, c, low), torch.where(small, high, c)
    return (low + high) / 2


# --- 4.3 ----------------------------------------------------------------------------------------------------


def levels() -> dict[str, tuple]:
    """Cases of 4.3: mean and variance of the data, of the model, lowest and highest level."""
    return {
        "another mean": (0.5, 1.0, -0.7, 1.0, 0.5, 3.0),
        "another width": (0.0, 0.4, 0.0, 2.0, 0.2, 1.5),
        "both, many levels": (1.0, 0.3, -1.5, 1.2, 0.01, 100.0),
        "little noise only": (1.0, 2.0, 0.0, 0.5, 0.0, 0.3),
        "much noise only": (-1.0, 0.6, 2.0, 0.9, 4.0, 20.0),
    }


def seen_by_quadrature(m: float, v: float, n: float, w: float, sigma_1: float, sigma_2: float) -> float:
    """Half of F summed over levels, F by Gauss-Hermite."""
    z, chance = np.polynomial.hermite_e.hermegauss(20)
    chance = chance / chance.sum()

    def fisher(sigma: float) -> float:
        x = m + math.sqrt(v + sigma**2) * z
        return float(chance @ ((n - x) / (w + sigma**2) - (m - x) / (v + sigma**2)) ** 2)

    nodes, weights = np.polynomial.legendre.leggauss(400)
    sigmas = (sigma_2 - sigma_1) / 2 * nodes + (sigma_2 + sigma_1) / 2
    half = sum(float(a) * fisher(s) * s for a, s in zip(weights, sigmas, strict=True)) * (sigma_2 - sigma_1) / 2
    return half


def kl(m: float, v: float, n: float, w: float) -> float:
    """KL of two Gaussians."""
    return (math.log(w / v) + (v + (m - n) ** 2) / w - 1) / 2


def seen(m, v, n, w, sigma_1, sigma_2, *, power=2, swap=False, only_one=False, below=True) -> float:
    """The solution with parts that can be got wrong."""

    def at(sigma: float) -> float:
        q = sigma**power
        pair = (m, v + q, n, w if only_one else w + q)
        return kl(pair[2], pair[3], pair[0], pair[1]) if swap else kl(*pair)

    return at(sigma_1) - (at(sigma_2) if below else 0.0)


# --- 4.4 ----------------------------------------------------------------------------------------------------


def losses() -> dict[str, tuple]:
    """Cases of 4.4: losses of two models of Gaussian data, at falling levels; and numbers that no model gave."""
    found = {}
    for name, (low, high, count) in {"fine": (-2, 2.5, 60), "coarse": (-1, 1, 7), "three": (-0.5, 0.5, 3)}.items():
        sigmas = torch.logspace(high, low, count, dtype=F64)
        q = sigmas**2
        both = []
        for mean, var in ((0.4, 1.3), (-1.0, 0.6)):  # of two models of N(0, 1)
            fisher = (1 / (1 + q) - 1 / (var + q)) ** 2 * (1 + q) + mean**2 / (var + q) ** 2
            both.append(fisher + 1 / q - 1 / (1 + q))
        found[f"{name}, the first is better"] = (both[0], both[1], sigmas)
        found[f"{name}, the second is better"] = (both[1], both[0], sigmas)
    found["equal losses"] = (both[0], both[0].clone(), sigmas)
    found["any numbers"] = (*torch.tensor([[3.0, 1.0, 4.0, 1.5], [2.0, 7.0, 1.0, 8.0]], dtype=F64),
                            torch.tensor([5.0, 2.0, 1.0, 0.1], dtype=F64))  # fmt: skip
    return found


def nats_by_trapezia(loss_r: Tensor, loss_u: Tensor, sigmas: Tensor) -> float:
    """Trapezium by trapezium, from the lowest level up."""
    total = 0.0
    for k in range(len(sigmas) - 1, 0, -1):
        width = float(sigmas[k - 1]) ** 2 - float(sigmas[k]) ** 2
        ends = float(loss_u[k] - loss_r[k]) + float(loss_u[k - 1] - loss_r[k - 1])
        total += width * ends / 4
    return total


EXERCISES = [
    Exercise(
        number="4.1",
        title="slope over noise decides the temperature: p to the power 2 u / v",
        cases=steps,
        truth=exponent_by_flow,
        mistakes=[
            Mistake("half", lambda u, v: u / v, "try a right Langevin step, u = c and v = 2 c: is your exponent 1?"),
            Mistake(
                "four", lambda u, v: 4 * u / v,
                "try a right Langevin step, u = c and v = 2 c: is your exponent 1? It seems to be 2.",
            ),
            Mistake(
                "deviation", lambda u, v: 2 * u / math.sqrt(v),
                "v stands under the root: which of the two, variance or deviation, is it?",
            ),
            Mistake(
                "temperature", lambda u, v: v / (2 * u),
                "this is the temperature. With more noise the walkers spread more: is p^k then flatter or sharper?",
            ),
            Mistake("nothing changes", lambda u, v: 1.0, "right for v = 2 u only."),
        ],
    ),
    Exercise(
        number="4.2",
        title="a bias b costs a step of 2 v b / (1 + b), so the narrowest direction decides",
        cases=biases,
        truth=step_by_bisection,
        mistakes=[
            Mistake(
                "first order", lambda v, b: 2 * v * b,
                "right to first order in b. For b = 1 it would be 2 v, where the walk runs away.",
            ),
            Mistake(
                "factor 2", lambda v, b: v * b / (1 + b),
                "nearly: expand (1 - c / v)^2. What does the mixed term contribute?",
            ),
            Mistake(
                "deviation for variance", lambda v, b: 2 * v.sqrt() * b / (1 + b),
                "which unit has c? The slope of log N(0, v) is -x / v.",
            ),
            Mistake(
                "noise of variance c", lambda v, b: 2 * v * (1 + 2 * b) / (1 + b),
                "the noise has the variance 2 c. With variance c the spread would be about half of v.",
            ),
            Mistake(
                "bias below", lambda v, b: 2 * v * b / (1 - b) if b != 1 else 2 * v,
                "the walkers are spread wider than the data, (1 + b) v, not narrower.",
            ),
            Mistake(
                "the ratio", lambda v, b: 2 * b / (1 + b) + 0 * v,
                "this is c in units of v. How long is the step?",
            ),
        ],
    ),
    Exercise(
        number="4.3",
        title="what levels see is a difference of two KL divergences, at the lowest and at the highest",
        cases=levels,
        truth=seen_by_quadrature,
        mistakes=[
            Mistake(
                "all above the lowest", lambda *a: seen(*a, below=False),
                "this is what all levels above sigma_1 see. Which of them does training not have?",
            ),
            Mistake(
                "deviation for variance", lambda *a: seen(*a, power=1),
                "the integral is over the variance q of the noise. Which variance has a noisy point?",
            ),
            Mistake(
                "model not noised", lambda *a: seen(*a, only_one=True),
                "F compares the scores of two noisy densities. Which of yours stays clean?",
            ),
            Mistake(
                "divergence the other way round", lambda *a: seen(*a, swap=True),
                "who stands first in KL(p || r) is averaged over. Which of the two is the data?",
            ),
            Mistake(
                "a share", lambda *a: seen(*a) / kl(*a[:4]),
                "this is the share of the whole divergence. How many nats are it?",
            ),
            Mistake(
                "what is not seen", lambda *a: kl(*a[:4]) - seen(*a),
                "this is seen by the levels that training does not have.",
            ),
            Mistake(
                "without the half", lambda *a: 2 * seen(*a),
                "which factor stands before the integral, and in the divergence of two Gaussians?",
            ),
        ],
    ),
    Exercise(
        number="4.4",
        title="the floor drops out of a difference: losses at all levels compare likelihoods",
        cases=losses,
        truth=nats_by_trapezia,
        mistakes=[
            Mistake(
                "sign", lambda r, u, s: -nats_by_trapezia(r, u, s),
                "the smaller loss is the better model. Is your answer positive where r has it? Mind that q falls.",
            ),
            Mistake(
                "without the half", lambda r, u, s: 2 * nats_by_trapezia(r, u, s),
                "which factor stands before the integral?",
            ),
            Mistake(
                "over the deviation", lambda r, u, s: nats_by_trapezia(r, u, s.sqrt()),
                "the integral is over q = sigma^2, not over sigma.",
            ),
            Mistake(
                "over the logarithm", lambda r, u, s: float(torch.trapezoid(r - u, s.log())),
                "in log sigma, dq becomes 2 sigma^2 d log sigma: which factor is missing? And take the rule in q.",
            ),
            Mistake(
                "losses of the noise", lambda r, u, s: float(torch.trapezoid((r - u) * s**2, s**2)) / 2,
                "the losses are those of the score already; sigma^2 would turn them into losses of the noise.",
            ),
            Mistake("one loss", lambda r, u, s: float(torch.trapezoid(r, s**2)) / 2,
                    "this is one model's integral, with its floor. What is compared?"),
        ],
    ),
]  # fmt: skip
