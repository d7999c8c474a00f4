"""Exercises of chapter 08, the normaliser of gamma."""

import math

import numpy as np
import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake

# --- 8.1 ----------------------------------------------------------------------------------------------------


def chances() -> dict[str, tuple]:
    """Cases of 8.1: the probability of the class, and gamma."""
    return {
        "p = 0.9, gamma = 3": (0.9, 3.0),
        "p = 0.2, gamma = 3": (0.2, 3.0),
        "p = 0.6, gamma = 7.5": (0.6, 7.5),
        "p = 0.7, gamma = 0.4": (0.7, 0.4),
        "gamma = 1, where both are one": (0.35, 1.0),
        "p = 0.5, on the border": (0.5, 4.0),
        "p = 0.8, gamma = -2, away from the class": (0.8, -2.0),
    }


def ratio_by_differences(p: float, gamma: float, h: float = 1e-5) -> float:
    """The slope of gamma log p over that of log (p^gamma / Z), by moving the logit a little."""

    def at(logit: float) -> tuple[float, float]:
        p = 1 / (1 + math.exp(-logit))
        return gamma * math.log(p), gamma * math.log(p) - math.log(p**gamma + (1 - p) ** gamma)

    logit = math.log(p / (1 - p))
    (scaled_up, sharp_up), (scaled, sharp) = at(logit + h), at(logit - h)
    return (scaled_up - scaled) / (sharp_up - sharp)


# --- 8.2 ----------------------------------------------------------------------------------------------------


def heads() -> dict[str, tuple]:
    """Cases of 8.2: logits (N, classes), their gradients (N, classes, d), label, gamma."""
    generator = torch.Generator().manual_seed(82)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "three classes": (draw(5, 3), draw(5, 3, 2), 1, 3.0),
        "ten classes, a large number added to the logits": (draw(2, 10) + 40, draw(2, 10, 3), 9, 2.5),
        "two classes, gamma below one": (draw(4, 2), draw(4, 2, 2), 0, 0.6),
        "gamma = 1": (draw(3, 4), draw(3, 4, 2), 2, 1.0),
        "gamma = 0: nothing is left": (draw(3, 4), draw(3, 4, 2), 3, 0.0),
        "a negative gamma": (draw(2, 3), draw(2, 3, 5), 0, -1.5),
    }


def push_by_differences(z: Tensor, slopes: Tensor, label: int, gamma: float, h: float = 1e-5) -> Tensor:
    """Moves the point, the logits with it along their gradients, and watches the log of the share of powers."""

    def log_share(move: Tensor) -> Tensor:
        logits = z + slopes @ move
        powers = torch.exp(gamma * (logits - logits.max(1, keepdim=True).values))
        return torch.log(powers[:, label] / powers.sum(1))

    steps = h * torch.eye(slopes.shape[2], dtype=z.dtype)
    return torch.stack([(log_share(e) - log_share(-e)) / (2 * h) for e in steps], dim=1)


def weighed(z, slopes, label, gamma, *, inside=None, outside=None, sign=1.0):
    """The solution with parts that can be got wrong."""
    shares = ((gamma if inside is None else inside) * z).softmax(1)
    return (gamma if outside is None else outside) * (slopes[:, label] - sign * (shares[:, :, None] * slopes).sum(1))


# --- 8.3 ----------------------------------------------------------------------------------------------------


def panels() -> dict[str, tuple]:
    """Cases of 8.3: class probabilities (N, classes), label, gamma."""
    generator = torch.Generator().manual_seed(83)

    def draw(count, classes, sharp):
        return (sharp * torch.randn(count, classes, generator=generator, dtype=torch.float64)).softmax(1)

    return {
        "two classes, gamma = 3": (draw(40, 2, 2.0), 1, 3.0),
        "five classes, gamma = 2": (draw(60, 5, 1.0), 0, 2.0),
        "three classes, gamma = 0.5": (draw(30, 3, 1.5), 2, 0.5),
        "gamma = 1: both are the class": (draw(30, 3, 1.5), 1, 1.0),
        "gamma = 0: both are the data": (draw(30, 4, 1.5), 1, 0.0),
        "gamma = -1, away from the class": (draw(30, 3, 1.0), 0, -1.0),
    }


def confidence_in_a_loop(p: Tensor, label: int, gamma: float) -> tuple[float, float]:
    """Point by point, in numpy, with weights normalised before they are used."""
    rows = p.numpy()
    scaled = np.array([row[label] ** gamma for row in rows])
    normalised = np.array([row[label] ** gamma / sum(value**gamma for value in row) for row in rows])
    return tuple(float(np.average(rows[:, label], weights=weights)) for weights in (scaled, normalised))


def confidence(p, label, gamma, *, outer=None, over_points=False, plain=False):
    """The solution with parts that can be got wrong."""
    power = p**gamma
    scaled = power[:, label]
    normalised = scaled / (power.sum() if over_points else power.sum(1))
    what = p[:, label] if outer is None else outer(p, power)
    if plain:
        return tuple((w * what).mean() for w in (scaled, normalised))
    return tuple((w * what).sum() / w.sum() for w in (scaled, normalised))


# --- 8.4 ----------------------------------------------------------------------------------------------------


def peak_and_limit_on_a_grid(a: float, b: float, gamma: float) -> tuple[float, float]:
    """The highest point by golden section of the log-density itself, and the mean by sums to the right of the wall."""

    def log_density(x: float) -> float:
        return -(x**2) / 2 - gamma * float(np.logaddexp(0, -a * x - b))

    # A log-density is flat at its top: compare a little to the left with a little to the right.
    low, golden = -22.0, (math.sqrt(5) - 1) / 2
    width = 50.0
    while width > 1e-9:
        width *= golden
        step = low + width / 2
        low = step if log_density(step + 1e-4) > log_density(step - 1e-4) else low
    low += width / 2
    x = np.linspace(-b / a, max(-b / a, 0) + 14, 100_001)
    weights = np.exp(-(x**2) / 2)
    weights[[0, -1]] /= 2
    return low, float((weights * x).sum() / weights.sum())


def peak(a: float, b: float, gamma: float, sign: float = 1.0, inside: float = 1.0, slope: float | None = None) -> float:
    """Where -x + gamma a / (1 + e^{sign inside (a x + b)}) vanishes, by Newton's method from many starts."""
    slope = a if slope is None else slope
    x = np.linspace(-2 - gamma * a, 2 + gamma * a, 20_001)
    exponent = np.clip(sign * inside * (a * x + b), -700, 700)
    pull = -x + gamma * slope / (1 + np.exp(exponent))
    return float(x[np.argmin(np.abs(pull))])


def tail(c: float) -> float:
    """Mean of N(0, 1) to the right of c."""
    return math.exp(-(c**2) / 2) / math.sqrt(2 * math.pi) / (0.5 * math.erfc(c / math.sqrt(2)))


def right(a: float, b: float, gamma: float) -> tuple[float, float]:
    """The answer of 8.4: where the density of the blob peaks at this gamma, and its mean behind a wall."""
    return peak_and_limit_on_a_grid(a, b, gamma)


EXERCISES = [
    Exercise(
        number="8.1",
        title="sharpening raises the odds to the power gamma: the ratio is one plus the new odds over one plus the old",
        cases=chances,
        truth=ratio_by_differences,
        mistakes=[
            Mistake(
                "the other way round",
                lambda p, gamma: (1 + p / (1 - p)) / (1 + (p / (1 - p)) ** gamma),
                "right numbers, inverted: at p = 0.9 the scaled push is the longer one.",
            ),
            Mistake(
                "probability for odds",
                lambda p, gamma: (1 + p**gamma) / (1 + p),
                "e^l is the odds, not the probability. What is it at p = 0.5?",
            ),
            Mistake(
                "gamma times the odds",
                lambda p, gamma: (1 + gamma * p / (1 - p)) / (1 + p / (1 - p)),
                "sharpening multiplies the logit. What does that make of the odds, its exponential?",
            ),
            Mistake(
                "odds of the rival",
                lambda p, gamma: (1 + ((1 - p) / p) ** gamma) / (1 + (1 - p) / p),
                "your ratio is below one where the class is sure. Whose odds are e^l?",
            ),
            Mistake(
                "the logit for its exponential",
                lambda p, gamma: (1 + gamma * math.log(p / (1 - p))) / (1 + math.log(p / (1 - p)) + 1e-300),
                "e^l is needed, you have put l.",
            ),
            Mistake(
                "gamma counted once more",
                lambda p, gamma: gamma * (1 + (p / (1 - p)) ** gamma) / (1 + p / (1 - p)),
                "both pushes carry the factor gamma: on the border they must be equal.",
            ),
            Mistake(
                "the normaliser alone",
                lambda p, gamma: p**gamma + (1 - p) ** gamma,
                "this is Z. The ratio is one of slopes, not of probabilities.",
            ),
        ],
        tolerance=1e-6,
    ),
    Exercise(
        number="8.2",
        title="what the logits lack drops out of the differences, and out of the softmax",
        cases=heads,
        truth=push_by_differences,
        mistakes=[
            Mistake(
                "the scaled push",
                lambda *a: weighed(*a, inside=1.0),
                "this is gamma times the plain classifier's gradient. By which probabilities do the rivals count?",
            ),
            Mistake(
                "gamma forgotten in front",
                lambda *a: weighed(*a, outside=1.0),
                "the right direction. What is the derivative of gamma times a logit?",
            ),
            Mistake(
                "gamma twice in front",
                lambda z, slopes, label, gamma: weighed(z, slopes, label, gamma, outside=gamma**2),
                "too long, or too short, by gamma.",
            ),
            Mistake(
                "raw logit",
                lambda z, slopes, label, gamma: gamma * slopes[:, label],
                "this is the gradient of a logit: what it lacks has a gradient as well. Subtract the normaliser's.",
            ),
            Mistake(
                "away from the class",
                lambda *a: -weighed(*a),
                "the right size, the wrong way.",
            ),
            Mistake(
                "added for subtracted",
                lambda *a: weighed(*a, sign=-1.0),
                "the normaliser's gradient is subtracted. Which sign has log Z in the log of p^gamma / Z?",
            ),
            Mistake(
                "mean without weights",
                lambda z, slopes, label, gamma: gamma * (slopes[:, label] - slopes.mean(1)),
                "the classes do not count alike: each by its sharpened probability.",
            ),
            Mistake(
                "softmax over the points",
                lambda z, slopes, label, gamma: gamma
                * (slopes[:, label] - ((gamma * z).softmax(0)[:, :, None] * slopes).sum(1)),
                "each point has its own probabilities: along which axis do they sum to one?",
            ),
            Mistake(
                "temperature for gamma",
                lambda z, slopes, label, gamma: weighed(z, slopes, label, gamma, inside=1 / gamma if gamma else 0.0),
                "gamma multiplies the logits. A temperature divides them.",
            ),
        ],
        tolerance=1e-6,
    ),
    Exercise(
        number="8.3",
        title="two weighted means: by p^gamma, and by p^gamma over the sum of all powers at the point",
        cases=panels,
        truth=confidence_in_a_loop,
        mistakes=[
            Mistake(
                "the two exchanged",
                lambda *a: confidence(*a)[::-1],
                "right numbers in the wrong order.",
            ),
            Mistake(
                "weights not normalised",
                lambda *a: confidence(*a, plain=True),
                "divide by the sum of the weights: a target's density integrates to one.",
            ),
            Mistake(
                "one normaliser for all points",
                lambda *a: confidence(*a, over_points=True),
                "the first is right. Your Z is one number; it depends on the point.",
            ),
            Mistake(
                "plain mean of the sharpened probability",
                lambda p, label, gamma: (
                    (p[:, label] ** gamma).mean(),
                    (p[:, label] ** gamma / (p**gamma).sum(1)).mean(),
                ),
                "these are the constants C and D. What is wanted is the mean of p(y | x) under each target.",
            ),
            Mistake(
                "mean of the sharpened probability under each",
                lambda *a: confidence(
                    *a, outer=lambda p, power, label=a[1]: power[:, label] / power.sum(1)
                ),
                "the weights are right. The mean is of the plain p(y | x).",
            ),
            Mistake(
                "gamma - 1",
                lambda p, label, gamma: confidence(p, label, gamma - 1),
                "the weights have one power too few: the points come from p(x), not from p(x | y).",
            ),
            Mistake(
                "gamma + 1",
                lambda p, label, gamma: confidence(p, label, gamma + 1),
                "the weights have one power too many: the mean of p is taken already.",
            ),
        ],
    ),
    Exercise(
        number="8.4",
        title="the scaled peak moves like the logarithm of gamma over a; the normalised mean is that of a cut-off bell",
        cases=lambda: {
            "a = 1.5, b = 0.4, gamma = 3": (1.5, 0.4, 3.0),
            "a = 0.7, b = -1, gamma = 10": (0.7, -1.0, 10.0),
            "a = 0.2, b = -1, gamma = 300": (0.2, -1.0, 300.0),
            "a = 0.8, b = 1.5, gamma = 0.5": (0.8, 1.5, 0.5),
            "gamma = 0: nobody pushes": (2.0, -0.5, 0.0),
            "gamma = 1": (1.2, 0.9, 1.0),
        },
        truth=right,
        mistakes=[
            Mistake(
                "the wall at b / a",
                lambda a, b, gamma: (right(a, b, gamma)[0], tail(b / a)),
                "the first is right. Where does the logit change its sign?",
            ),
            Mistake(
                "the wall at -b",
                lambda a, b, gamma: (right(a, b, gamma)[0], tail(-b)),
                "the first is right. The logit has the slope a: where is it zero?",
            ),
            Mistake(
                "the place of the wall",
                lambda a, b, gamma: (right(a, b, gamma)[0], -b / a),
                "the first is right. The second is where the wall stands; the mean lies to the right of it.",
            ),
            Mistake(
                "the left part",
                lambda a, b, gamma: (right(a, b, gamma)[0], -tail(b / a)),
                "the first is right. On which side of the wall is the class the more probable one?",
            ),
            Mistake(
                "not divided by the mass",
                lambda a, b, gamma: (right(a, b, gamma)[0], math.exp(-((b / a) ** 2) / 2) / math.sqrt(2 * math.pi)),
                "the first is right. A mean is over what is left, and that has less than the whole mass.",
            ),
            Mistake(
                "the normalised peak",
                lambda a, b, gamma: (peak(a, b, gamma, inside=gamma), right(a, b, gamma)[1]),
                "the second is right. Where gamma stands in the exponent, it is the other push.",
            ),
            Mistake(
                "the sign in the push",
                lambda a, b, gamma: (peak(a, b, gamma, sign=-1.0), right(a, b, gamma)[1]),
                "the second is right. Where the class is sure, there is little push.",
            ),
            Mistake(
                "the slope of the logit forgotten",
                lambda a, b, gamma: (peak(a, b, gamma, slope=1.0), right(a, b, gamma)[1]),
                "the second is right. The push is along grad l: how long is that?",
            ),
            Mistake(
                "log gamma over a",
                lambda a, b, gamma: ((math.log(max(gamma, 0.1)) - b) / a, right(a, b, gamma)[1]),
                "the second is right. The first is where the logit is log gamma: near it for large gamma, not there.",
            ),
            Mistake(
                "the two exchanged",
                lambda a, b, gamma: right(a, b, gamma)[::-1],
                "right numbers in the wrong order.",
            ),
        ],
        tolerance=2e-6,
    ),
]
