"""Exercises of chapter 05: what is left of a mistake, the variance of DDIM, independent mistakes, a dose."""

import itertools
import math

import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake

F64 = torch.float64


# --- 5.1 ----------------------------------------------------------------------------------------------------


def stretches() -> dict[str, tuple]:
    """Cases of 5.1: the clock's readings at both ends of a stretch, and the dose."""
    return {
        "the whole way, rho = 2": (0.0, 1.0, 2.0),
        "no dice": (0.2, 0.6, 0.0),
        "rho = 1": (0.3, 0.9, 1.0),
        "the first half, little noise": (0.0, 0.5, 0.6),
        "the last tenth, rho = 1.5": (0.9, 1.0, 1.5),
        "early, rho = 3": (0.1, 0.4, 3.0),
    }


def weight_by_quadrature(first: float, last: float, rho: float) -> float:
    """The integral of the weight by a fine midpoint rule, in the logarithm of r."""
    low, high = math.log(max(first, 1e-12)), math.log(last)
    log_r = torch.linspace(low, high, 400_001, dtype=F64)
    middle = ((log_r[1:] + log_r[:-1]) / 2).exp()
    return float(((1 + rho * rho) * middle ** (rho * rho) * middle).sum() * (high - low) / 400_000)


# --- 5.2 ----------------------------------------------------------------------------------------------------


def walks() -> dict[str, tuple]:
    """Cases of 5.2: the alphas of a walk, most noise first, and the variance of the data."""
    return {
        "four steps, wide data": (torch.tensor([0.01, 0.3, 0.7, 0.95, 0.999], dtype=F64), 4.0),
        "thin data": (torch.tensor([0.05, 0.4, 0.8, 0.99], dtype=F64), 0.04),
        "variance 1": (torch.tensor([0.1, 0.6, 0.9], dtype=F64), 1.0),
        "one step, to the data": (torch.tensor([0.2, 1.0], dtype=F64), 0.5),
        "from the middle on": (torch.tensor([0.6, 0.7, 0.8, 0.9], dtype=F64), 2.5),
    }


def variance_by_angles(alphas: Tensor, c: float) -> float:
    """Each step turns the pair (alpha sqrt(c), sigma) and keeps the cosine of the angle."""
    angles = torch.atan2((1 - alphas * alphas).sqrt(), alphas * math.sqrt(c))
    shrunk = angles.diff().cos().prod() ** 2
    return float(shrunk * (1 + (c - 1) * alphas[-1] ** 2))


def ddim_walk(alphas: Tensor, c: float, *, power=2, begin="width", root=False, swap=False) -> Tensor:
    """The solution with parts that can be got wrong."""
    sigmas = (1 - alphas**2).sqrt()
    widths = alphas**2 * c + sigmas**2
    guess = alphas if swap else alphas * c
    factors = (alphas[1:] * guess[:-1] + sigmas[1:] * sigmas[:-1]) / widths[:-1]
    variance = {"width": widths[0], "one": widths.new_tensor(1.0), "data": widths.new_tensor(c)}[begin]
    variance = variance * (factors**power).prod()
    return variance.sqrt() if root else variance


# --- 5.3 ----------------------------------------------------------------------------------------------------


def cells() -> dict[str, tuple]:
    """Cases of 5.3: edges of the clock, the deviation of the error in each cell, doses to choose from."""
    return {
        "wrong early": (
            torch.tensor([0.0, 0.4, 0.8, 1.0], dtype=F64), torch.tensor([2.0, 0.3, 0.1], dtype=F64), [0.0, 1.0, 2.0]),
        "wrong late": (
            torch.tensor([0.0, 0.5, 0.9, 1.0], dtype=F64), torch.tensor([0.1, 0.2, 3.0], dtype=F64), [0.5, 0.0, 1.5]),
        "alike everywhere": (torch.linspace(0, 1, 9, dtype=F64), torch.full((8,), 0.7, dtype=F64), [2.0, 0.0, 1.0]),
        "one cell": (torch.tensor([0.0, 1.0], dtype=F64), torch.tensor([0.4], dtype=F64), [1.3]),
        "in the middle": (
            torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=F64), torch.tensor([0.2, 1.5, 0.4], dtype=F64), [0.0, 0.7, 1.4]),
    }  # fmt: skip


def by_all_signs(edges: Tensor, spread: Tensor, doses: list) -> tuple[float, float]:
    """Each error plus or minus its deviation, all combinations, for each dose."""
    found = {}
    for rho in doses:
        shares = [weight_by_quadrature(float(a), float(b), rho) for a, b in itertools.pairwise(edges)]
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(spread))), dtype=F64)
        sums = signs @ (torch.tensor(shares, dtype=F64) * spread)
        found[rho] = float(sums.square().mean().sqrt())
    best = min(found, key=found.get)
    return found[best], best


def chosen(edges: Tensor, spread: Tensor, doses: list, *, add="squares", pick=min, square=True, unit="deviation"):
    """The solution with parts that can be got wrong."""

    def size(rho):
        parts = (edges ** (1 + (rho**2 if square else rho))).diff() * spread
        if add == "sizes":
            return float(parts.sum())
        return float((parts.square().sum() if add == "squares" else (parts * spread).sum()) ** 0.5)

    best = pick(doses, key=size)
    return (size(best) ** 2 if unit == "variance" else size(best)), best


# --- 5.4 ----------------------------------------------------------------------------------------------------


def wishes() -> dict[str, tuple]:
    """Cases of 5.4: r, F(r), F'(r)."""
    return {
        "F = r, no dice": (0.4, 0.4, 1.0),
        "F = r^2, DDPM": (0.3, 0.09, 0.6),
        "F = r^5": (0.8, 0.8**5, 5 * 0.8**4),
        "half r, half r^4": (0.6, (0.6 + 0.6**4) / 2, (1 + 4 * 0.6**3) / 2),
        "a smooth switch": (0.5, 0.5**2 * (3 - 2 * 0.5), 6 * 0.5 * 0.5),
        "a switch near its end": (0.95, 0.95**2 * (3 - 2 * 0.95), 6 * 0.95 * 0.05),
        "early guesses wanted": (0.5, 0.5**0.5, 0.5 * 0.5**-0.5),
    }


def dose_by_bisection(r: float, F: float, f: float) -> float | str:
    """The dose at which the weight of a guess at r, (1 + rho^2) M with M = F / r, is f."""
    low, high = 0.0, 100.0
    if F / r > f * (1 + 1e-12):
        return "none"
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 + middle * middle) * F / r < f else (low, middle)
    return low


def wished(r: float, F: float, f: float, *, less=1.0, root=True, strict=True, flip=False, share=True) -> float | str:
    """The solution with parts that can be got wrong."""
    square = (F / (r * f) if flip else r * f / F if share else f) - less
    if square < 0 and strict:
        return "none"
    return math.sqrt(abs(square)) if root else square


EXERCISES = [
    Exercise(
        number="5.1",
        title="what is left of a mistake made on a part of the way",
        cases=stretches,
        truth=weight_by_quadrature,
        mistakes=[
            Mistake(
                "rho for its square",
                lambda first, last, rho: last ** (1 + rho) - first ** (1 + rho),
                "with which power does the dose enter? Compare the noise of the process with its drift.",
            ),
            Mistake(
                "the memory of the start",
                lambda first, last, rho: last ** (rho**2) - first ** (rho**2),
                "this uses the factor by which the start is remembered. A guess has another weight.",
            ),
            Mistake(
                "the weight, not its integral",
                lambda first, last, rho: (1 + rho**2) * (last ** (rho**2) - first ** (rho**2)),
                "these are weights at the two ends. Add up over all guesses between them.",
            ),
            Mistake("no dice", lambda first, last, rho: last - first, "this is right without dice only."),
            Mistake(
                "times forgotten one",
                lambda first, last, rho: (last ** (1 + rho**2) - first ** (1 + rho**2)) / (1 + rho**2),
                "over the whole way, from 0 to 1, all guesses must have the weight 1.",
            ),
            Mistake(
                "ends exchanged",
                lambda first, last, rho: first ** (1 + rho**2) - last ** (1 + rho**2),
                "a part of the error cannot be negative: at which end is the clock later?",
            ),
        ],
    ),
    Exercise(
        number="5.2",
        title="how narrow DDIM's samples are",
        cases=walks,
        truth=variance_by_angles,
        mistakes=[
            Mistake("a factor once", lambda a, c: ddim_walk(a, c, power=1), "x is multiplied by it. And its square?"),
            Mistake(
                "started at 1",
                lambda a, c: ddim_walk(a, c, begin="one"),
                "at the first level the points have the variance V there, which is not 1 unless c is.",
            ),
            Mistake(
                "started at the data",
                lambda a, c: ddim_walk(a, c, begin="data"),
                "the walk begins with noisy points: what is their variance?",
            ),
            Mistake("deviation", lambda a, c: ddim_walk(a, c, root=True), "this is a deviation, not a variance."),
            Mistake(
                "c forgotten in the guess",
                lambda a, c: ddim_walk(a, c, swap=True),
                "the guess of the clean point is alpha c / V times x.",
            ),
            Mistake(
                "the true variance",
                lambda a, c: a[-1] ** 2 * c + 1 - a[-1] ** 2,
                "this is what the samples should have. DDIM's steps are not infinitely short.",
            ),
        ],
    ),
    Exercise(
        number="5.3",
        title="which dose suits mistakes that do not know of each other",
        cases=cells,
        truth=by_all_signs,
        mistakes=[
            Mistake(
                "deviations added",
                lambda *case: chosen(*case, add="sizes"),
                "errors that do not know of each other partly cancel: what adds up for independent ones?",
            ),
            Mistake(
                "weights not squared",
                lambda *case: chosen(*case, add="weights"),
                "a variance is multiplied by the square of the weight.",
            ),
            Mistake("variance", lambda *case: chosen(*case, unit="variance"), "this is a variance, not a deviation."),
            Mistake(
                "the worst dose",
                lambda *case: chosen(*case, pick=max),
                "the smallest was asked for, this is the largest.",
            ),
            Mistake(
                "rho for its square", lambda *case: chosen(*case, square=False), "the power of r is 1 + rho squared."
            ),
        ],
    ),
    Exercise(
        number="5.4",
        title="which dose gives the weights that one wishes",
        cases=wishes,
        truth=dose_by_bisection,
        mistakes=[
            Mistake(
                "the one forgotten",
                lambda r, F, f: wished(r, F, f, less=0.0),
                "with F = r no dice are needed. Does yours give 0 there?",
            ),
            Mistake("square", lambda r, F, f: wished(r, F, f, root=False), "this is the square of the dose."),
            Mistake(
                "no limit",
                lambda r, F, f: wished(r, F, f, strict=False),
                "in one case the square comes out negative. No dose can do that.",
            ),
            Mistake(
                "upside down",
                lambda r, F, f: wished(r, F, f, flip=True),
                "the faster F grows, the more dice are needed.",
            ),
            Mistake(
                "M forgotten",
                lambda r, F, f: wished(r, F, f, share=False),
                "a guess at r is forgotten in part afterwards: f is not 1 + rho squared alone.",
            ),
        ],
    ),
]
