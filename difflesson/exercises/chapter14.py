"""Exercises of chapter 14, classifier guidance on digits."""

import math

import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake

F64 = torch.float64


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --- 14.1 ---------------------------------------------------------------------------------------------------


def logs() -> dict[str, tuple]:
    """Cases of 14.1: two cross-entropies and their log-SNRs."""
    return {
        "one unit": (2.1, 1.6, -4.0, -3.0),
        "three units, across zero": (0.9, 0.05, -2.0, 1.0),
        "a fraction of a unit": (0.31, 0.3, 2.25, 2.5),
        "nothing learned": (2.3, 2.3, -9.0, -7.0),
    }


def length_by_search(loss_low: float, loss_high: float, low: float, high: float) -> float:
    """The length whose half square, summed over the levels, is what was learned; by bisection."""
    below, above = 0.0, 100.0
    for _ in range(100):
        middle = (below + above) / 2
        spent = sum(middle**2 / 2 * (high - low) / 8 for _ in range(8))
        below, above = (middle, above) if spent < loss_low - loss_high else (below, middle)
    return below


# --- 14.2 ---------------------------------------------------------------------------------------------------


def witnesses() -> dict[str, tuple]:
    """Cases of 14.2: three fields (N, d) of which each two agree, and the length of the truth."""
    cases = {}
    for k, (count, d, factors, sizes, length) in enumerate(
        [(40, 3, (1.0, 2.0, 0.5), (0.5, 1.0, 0.4), 1.7), (25, 2, (3.0, 1.0, 1.0), (2.0, 0.6, 0.9), 0.2),
         (60, 5, (0.2, 1.0, 4.0), (0.3, 0.5, 2.0), 5.0)]
    ):  # fmt: skip
        g = normal(count, d, seed=140 + k)
        fields = [
            h * g + e * normal(count, d, seed=150 + 10 * k + j)
            for j, (h, e) in enumerate(zip(factors, sizes, strict=True))
        ]
        cases[f"{count} points in {d} dimensions, witness 1 times {factors[0]:g}"] = (*fields, length)
    return cases


def cosine(u: Tensor, v: Tensor) -> float:
    """Of two fields as long vectors."""
    return float(torch.nn.functional.cosine_similarity(u.flatten(), v.flatten(), dim=0))


def truth_of(a: Tensor, b: Tensor, c: Tensor) -> float:
    """The cosine of a with the truth, by logarithms."""
    logs = [math.log(cosine(*pair)) for pair in ((a, b), (a, c), (b, c))]
    return math.exp((logs[0] + logs[1] - logs[2]) / 2)


def rms(a: Tensor) -> float:
    """The root mean square length of vectors (N, d)."""
    return float(a.norm(dim=1).square().mean().sqrt())


# --- 14.3 ---------------------------------------------------------------------------------------------------


def classifiers() -> dict[str, tuple]:
    """Cases of 14.3: logits (N, K), their slopes (N, K, d), a label and a temperature."""
    return {
        "softer": (normal(4, 3, seed=1), normal(4, 3, 2, seed=2), 1, 2.0),
        "harder, sure logits": (6 * normal(5, 4, seed=3), normal(5, 4, 3, seed=4), 3, 0.7),
        "temperature one": (normal(3, 2, seed=5), normal(3, 2, 5, seed=6), 0, 1.0),
    }


def slope_by_autograd(logits: Tensor, slopes: Tensor, y: int, T: float) -> Tensor:
    """Of the logits' linear continuation, by differentiation."""
    moved = torch.zeros(len(logits), slopes.shape[2], dtype=logits.dtype, requires_grad=True)
    here = logits + (slopes * moved[:, None]).sum(2)
    torch.log_softmax(here / T, dim=1)[:, y].sum().backward()
    return moved.grad


def weighed(logits: Tensor, slopes: Tensor, y: int, weights: Tensor) -> Tensor:
    """The slope of logit y less the weighted mean of all slopes."""
    return slopes[:, y] - torch.einsum("nk,nkd->nd", weights, slopes)


# --- 14.4 ---------------------------------------------------------------------------------------------------


def pairs() -> dict[str, tuple]:
    """Cases of 14.4: rho_a, rho_b, rho_ab, len_a, len_b, len_g."""
    return {
        "errors unrelated": (0.8, 0.5, 0.4, 1.3, 0.7, 1.1),
        "errors shared": (0.8, 0.7, 0.75, 2.0, 1.0, 0.5),
        "b adds nothing": (0.9, 0.45, 0.5, 1.0, 3.0, 2.0),
        "b by its errors alone": (0.6, 0.0, 0.5, 1.0, 0.3, 1.0),
        "at right angles": (0.6, 0.3, 0.0, 1.5, 2.5, 1.2),
        "both away from the truth": (-0.3, -0.5, 0.4, 1.5, 0.5, 1.2),
        "one away from the truth": (-0.3, 0.5, -0.4, 1.0, 0.7, 2.0),
    }


def by_least_squares(rho_a, rho_b, rho_ab, len_a, len_b, len_g) -> tuple[float, float, float]:
    """With three vectors that have these lengths and cosines: NumPy-like least squares, and what is left."""
    gram = torch.tensor([[1, rho_ab, rho_a], [rho_ab, 1, rho_b], [rho_a, rho_b, 1]], dtype=F64)
    vectors = torch.linalg.cholesky(gram) * torch.tensor([[len_a], [len_b], [len_g]], dtype=F64)
    weights = torch.linalg.lstsq(vectors[:2].T, vectors[2][:, None]).solution[:, 0]
    left = (vectors[2] - weights @ vectors[:2]).square().sum() / vectors[2].square().sum()
    return float(weights[0]), float(weights[1]), float(left)


def alone(rho_a, rho_b, rho_ab, len_a, len_b, len_g) -> tuple[float, float, float]:
    """Each by its own best scale, as if the two did not overlap."""
    return rho_a * len_g / len_a, rho_b * len_g / len_b, 1 - rho_a**2 - rho_b**2


EXERCISES = [
    Exercise(
        "14.1",
        "the fall of the cross-entropy says how long the slope is",
        logs,
        length_by_search,
        [
            Mistake("without the two", lambda a, b, low, high: math.sqrt((a - b) / (high - low)),
                    "what stands before the mean square in the equation?"),
            Mistake("the square", lambda a, b, low, high: 2 * (a - b) / (high - low),
                    "that is a mean square; the length was asked for."),
            Mistake("per level", lambda a, b, low, high: math.sqrt(2 * (a - b)),
                    "the equation has a derivative: how far apart are the levels?"),
            Mistake("times the levels", lambda a, b, low, high: math.sqrt(2 * (a - b) * (high - low)),
                    "a derivative is a difference over a difference."),
            Mistake("half", lambda a, b, low, high: math.sqrt((a - b) / (high - low) / 2),
                    "solve the equation for the mean square once more: where does the one half go?"),
        ],
    ),
    Exercise(
        "14.2",
        "three witnesses and one length are enough to set the scale",
        witnesses,
        lambda a, b, c, length: truth_of(a, b, c) * length / rms(a),
        [
            Mistake("the length alone", lambda a, b, c, length: length / rms(a),
                    "that makes a as long as the truth; part of a is error, so the nearest multiple is shorter."),
            Mistake("the square of it", lambda a, b, c, length: truth_of(a, b, c) ** 2 * length / rms(a),
                    "is it rho or its square that stands in E[a . g]?"),
            Mistake("divided by it", lambda a, b, c, length: length / rms(a) / truth_of(a, b, c),
                    "that makes the part along the truth as long as the truth, and the error longer; what is nearest?"),
            Mistake("of b", lambda a, b, c, length: truth_of(b, a, c) * length / rms(b),
                    "whose factor was asked for?"),
            Mistake("truthfulness alone", lambda a, b, c, length: truth_of(a, b, c),
                    "a and the truth have different lengths."),
            Mistake("lengths exchanged", lambda a, b, c, length: truth_of(a, b, c) * rms(a) / length,
                    "which of the two lengths is to be matched, and which is there?"),
        ],
    ),
    Exercise(
        "14.3",
        "a temperature divides the slope, and weighs the other labels anew",
        classifiers,
        slope_by_autograd,
        [
            Mistake("only divided", lambda v, s, y, T: weighed(v, s, y, v.softmax(1)) / T,
                    "the weights of the other labels are probabilities too: which ones?"),
            Mistake("not divided", lambda v, s, y, T: weighed(v, s, y, (v / T).softmax(1)),
                    "the logits are divided; so what happens to their slopes?"),
            Mistake("multiplied", lambda v, s, y, T: T * weighed(v, s, y, (T * v).softmax(1)),
                    "is a large temperature softer or harder?"),
            Mistake("no other labels", lambda v, s, y, T: s[:, y] / T,
                    "the normaliser depends on the point as well."),
            Mistake("equal weights", lambda v, s, y, T: (s[:, y] - s.mean(1)) / T,
                    "a mean, yes: weighed by what?"),
        ],
    ),
    Exercise(
        "14.4",
        "two estimates are weighed by what each knows that the other does not",
        pairs,
        by_least_squares,
        [
            Mistake("each alone", alone, "what both know is counted twice: solve the two equations together."),
            Mistake("lengths left out",
                    lambda ra, rb, rab, la, lb, lg: by_least_squares(ra, rb, rab, 1, 1, 1),
                    "right for vectors of length one: now the lengths."),
            Mistake("lengths upside down",
                    lambda ra, rb, rab, la, lb, lg: by_least_squares(ra, rb, rab, 1 / la, 1 / lb, 1 / lg),
                    "a long estimate needs a small weight."),
            Mistake("errors taken as unrelated",
                    lambda ra, rb, rab, la, lb, lg: by_least_squares(ra, rb, ra * rb, la, lb, lg),
                    "rho_ab was given; it need not be the product of the two."),
            Mistake("the root is left",
                    lambda ra, rb, rab, la, lb, lg: (*by_least_squares(ra, rb, rab, la, lb, lg)[:2],
                                                     by_least_squares(ra, rb, rab, la, lb, lg)[2] ** 0.5),
                    "the share of the mean square was asked for, not that of the length."),
        ],
    ),
]  # fmt: skip
