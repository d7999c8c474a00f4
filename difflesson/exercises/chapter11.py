"""Exercises of chapter 11, classifier-free guidance."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake
from difflesson.mixture import GaussianMixture
from difflesson.plane import four_blobs

BLOBS = four_blobs()


# --- 11.1 ---------------------------------------------------------------------------------------------------


def predictions() -> dict[str, tuple]:
    """Cases of 11.1: two predictions of one shape, and w."""
    generator = torch.Generator().manual_seed(11)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "w = 2, points of the plane": (draw(4, 2), draw(4, 2), 2.0),
        "w = 0.3, an image": (draw(1, 1, 3, 3), draw(1, 1, 3, 3), 0.3),
        "w = -1.5, away from the label": (draw(4, 2), draw(4, 2), -1.5),
        "w = 0, nothing but the label": (draw(1, 3), draw(1, 3), 0.0),
    }


def guided_v_by_way_of_eps(v_cond: Tensor, v_uncond: Tensor, w: float) -> Tensor:
    """Through eps at some x_t and back; neither x_t nor the noise level may matter."""
    alpha, sigma, x = 0.8, 0.6, torch.full_like(v_cond, 0.7)
    eps_cond, eps_uncond = (sigma * x + alpha * v for v in (v_cond, v_uncond))
    return ((1 + w) * eps_cond - w * eps_uncond - sigma * x) / alpha


# --- 11.2 ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassGradient:
    """`gradient(x)` of a class's log-probability, which also knows the log-probability itself."""

    mixture: GaussianMixture
    label: int

    def __call__(self, x: Tensor) -> Tensor:
        return self.mixture.class_gradient(x, self.label)


def segments() -> dict[str, tuple]:
    """Cases of 11.2: a gradient, and the ends of a way, (2,) each."""
    a, b, c = torch.tensor([[-1.5, -0.5], [1.5, 0.8], [0.4, -1.6]], dtype=torch.float64)
    clean, noisy = BLOBS.noised(0.95, math.sqrt(1 - 0.95**2)), BLOBS.noised(0.6, 0.8)
    return {
        "from class 0 into class 1, little noise": (ClassGradient(clean, 1), a, b),
        "the same with much noise": (ClassGradient(noisy, 1), a, b),
        "the way of the other class": (ClassGradient(noisy, 0), c, a),
    }


def gain_by_class_probabilities(gradient: ClassGradient, a: Tensor, b: Tensor) -> Tensor:
    """The difference of the log-probabilities themselves, 0-dim."""
    start, end = gradient.mixture.class_log_prob(torch.stack([a, b]), gradient.label)
    return end - start


def along(gradient: ClassGradient, a: Tensor, b: Tensor, count: int = 1000, at: float = 0.5) -> Tensor:
    """The gradient on the way, once in each of `count` equal parts; `at`: 0 is a part's start, 0.5 its middle."""
    return gradient(a + ((torch.arange(count).double() + at) / count)[:, None] * (b - a))


def both_ends(gradient: ClassGradient, a: Tensor, b: Tensor, count: int) -> Tensor:
    """The mean over `count` points, a and b among them: the ends weigh twice what they should."""
    return (gradient(a + torch.linspace(0, 1, count).double()[:, None] * (b - a)) @ (b - a)).mean()


COUNTS = (10, 20, 50, 100, 200, 500, 1000, 2000)
"""How many points a reader is likely to take."""


def quadratures() -> list[Mistake]:
    """Sums for means, left ends, both ends, too few middles: each with the likely numbers of points."""
    added = "how large this is depends on how many points you take. What is a sum of slopes still to be multiplied by?"
    lopsided = "nearly: each part of the way is judged by its start. Where in a part is the slope most typical?"
    ended = "nearly: the points a and b count as much as any other. Which share of the way does each stand for?"
    rough = "the right idea with too few points: the gradient bends between them."
    return [
        *(Mistake(f"sum of {n}", lambda g, a, b, n=n: (along(g, a, b, n) @ (b - a)).sum(), added) for n in COUNTS),
        *(Mistake(f"sum with both ends, {n}", lambda g, a, b, n=n: n * both_ends(g, a, b, n), added)
          for n in (10, 50, 100)),
        *(Mistake(f"left ends, {n}", lambda g, a, b, n=n: (along(g, a, b, n, 0.0) @ (b - a)).mean(), lopsided)
          for n in (10, 20, 50, 100, 200)),
        *(Mistake(f"mean with both ends, {n}", lambda g, a, b, n=n: both_ends(g, a, b, n), ended)
          for n in (3, 5, 10, 20, 50, 100)),
        *(Mistake(f"{n} middles", lambda g, a, b, n=n: (along(g, a, b, n) @ (b - a)).mean(), rough)
          for n in (1, 2, 3, 4, 5)),
    ]  # fmt: skip


# --- 11.3 ---------------------------------------------------------------------------------------------------


def variances_by_quadrature(class_variance: float, all_variance: float, gamma: float) -> tuple[float, float]:
    """The target's second moment on a grid; the guided equation solved by Runge-Kutta in log q from far away."""
    x = torch.linspace(-40, 40, 160_001, dtype=torch.float64)
    log = -(x**2) / 2 * (gamma / class_variance + (1 - gamma) / all_variance)
    told = float(log.softmax(0) @ x**2)

    def slope(log_q: float) -> float:  # d log(x / alpha) / d log q
        q = math.exp(log_q)
        return (gamma * q / (class_variance + q) + (1 - gamma) * q / (all_variance + q)) / 2

    grid = torch.linspace(18, -18, 2001, dtype=torch.float64).tolist()
    gain = 0.0
    for high, low in zip(grid[:-1], grid[1:], strict=True):
        gain += (low - high) / 6 * (slope(high) + 4 * slope((high + low) / 2) + slope(low))
    return told, math.exp(grid[0] + 2 * gain)


# --- 11.4 ---------------------------------------------------------------------------------------------------


def steps() -> dict[str, tuple]:
    """Cases of 11.4: z and the clean point (5, 2), two log-SNRs, and v."""
    generator = torch.Generator().manual_seed(12)
    z, clean = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)
    return {
        "a short step, v = 0": (z, clean, -0.2, 0.1, 0.0),
        "a long step, v = 0.3": (z, clean, -2.0, 3.0, 0.3),
        "near the data, v = 1": (z, clean, 4.0, 6.0, 1.0),
        "far from the data, v = 0.6": (z, clean, -5.0, -1.0, 0.6),
    }


def step_by_bayes(z: Tensor, clean: Tensor, lam: float, lam_next: float, v: float) -> tuple[Tensor, float]:
    """Prior of z' from the clean point times likelihood of z, on a grid: its mean and variance."""
    (alpha, sigma), (alpha_next, sigma_next) = (
        (math.cos(angle), math.sin(angle)) for angle in (math.atan(math.exp(-x / 2)) for x in (lam, lam_next))
    )
    ratio = alpha / alpha_next
    added = sigma**2 - (ratio * sigma_next) ** 2  # the variance of what the noise adds from z' to z
    off = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    grid = alpha_next * clean[..., None] + sigma_next * off
    share = (-(off**2) / 2 - (z[..., None] - ratio * grid).square() / (2 * added)).softmax(-1)
    mean = (share * grid).sum(-1)
    known = (share * (grid - mean[..., None]).square()).sum(-1).mean()  # the same at every z
    return mean, float(torch.lerp(known.log(), torch.tensor(added).double().log(), v).exp())


def step(z, clean, lam, lam_next, v, *, mixing="geometric", backwards=False, swapped=False, power=0.5, weight=1,
         inverted=1, sign=1, late=True):  # fmt: skip
    """The solution with parts that can be got wrong; `power` of alpha^2, `weight` of alpha' beside the clean point.

    Where a variance comes out negative, its power is complex, as it is for a reader who makes this mistake.
    """
    alpha, alpha_next = ((1 + math.exp(-sign * x)) ** -power for x in (lam, lam_next))
    r = math.exp(inverted * (lam - lam_next))
    keep = 1 - r if swapped else r
    mean = keep * alpha_next / alpha * z + (1 - keep) * (alpha_next if late else alpha) ** weight * clean
    alpha, alpha_next = ((1 + math.exp(-sign * x)) ** -0.5 for x in (lam, lam_next))
    small, large = (1 - r) * (1 - alpha_next**2), (1 - r) * (1 - alpha**2)
    if backwards:
        small, large = large, small
    var = {
        "geometric": small ** (1 - v) * large**v,
        "arithmetic": (1 - v) * small + v * large,
        "none": small,
    }[mixing]
    return mean, var


def guided(class_variance: float, all_variance: float, gamma: float) -> tuple[float, float]:
    """The solution's two means, to be got wrong."""
    precision = gamma / class_variance + (1 - gamma) / all_variance
    return 1 / precision, class_variance**gamma * all_variance ** (1 - gamma)


EXERCISES = [
    Exercise(
        number="11.1",
        title="x_t drops out because the two weights add up to one: the line is the same for eps, x0, v and the score",
        cases=predictions,
        truth=guided_v_by_way_of_eps,
        mistakes=[
            Mistake(
                "w taken for gamma",
                lambda v_cond, v_uncond, w: v_uncond + w * (v_cond - v_uncond),
                "at w = 0 the paper has plain conditional sampling. What does your function return there?",
            ),
            Mistake(
                "branches swapped",
                lambda v_cond, v_uncond, w: (1 + w) * v_uncond - w * v_cond,
                "this walks away from the label. Which of the two predictions gets the weight above one?",
            ),
            Mistake(
                "one difference too many",
                lambda v_cond, v_uncond, w: v_cond + (1 + w) * (v_cond - v_uncond),
                "at w = 0 the paper has plain conditional sampling. From which of the two does w count?",
            ),
            Mistake(
                "weights that add up to 1 + 2 w",
                lambda v_cond, v_uncond, w: (1 + w) * v_cond + w * v_uncond,
                "if both predictions are equal, guidance must change nothing; yours does.",
            ),
        ],
    ),
    Exercise(
        number="11.2",
        title="for a gradient every path gives the difference of the values; with curl it depends on the path",
        cases=segments,
        truth=gain_by_class_probabilities,
        mistakes=[
            Mistake(
                "the gradient at the start only",
                lambda gradient, a, b: gradient(a[None])[0] @ (b - a),
                "this is the tangent at a. The gradient changes on the way: what do you do with all its values?",
            ),
            Mistake(
                "the two ends only",
                lambda gradient, a, b: (gradient(torch.stack([a, b])) @ (b - a)).mean(),
                "the right idea with two points, a trapezium. The gradient changes on the way: take more of them.",
            ),
            Mistake(
                "unit direction",
                lambda gradient, a, b: (along(gradient, a, b) @ ((b - a) / (b - a).norm())).mean(),
                "this is the average slope per unit of length. How long is the way?",
            ),
            Mistake(
                "backwards",
                lambda gradient, a, b: -(along(gradient, a, b) @ (b - a)).mean(),
                "the right size with the wrong sign: from where to where do you walk?",
            ),
            Mistake(
                "size of the gradient",
                lambda gradient, a, b: along(gradient, a, b).norm(dim=1).mean() * (b - a).norm(),
                "the steepest slope is not the slope of your path. Which part of the gradient counts?",
            ),
            *quadratures(),
        ],
        tolerance=1e-4,
    ),
    Exercise(
        number="11.3",
        title="the target's variance is the harmonic mean, the noiseless sampler's the geometric one",
        cases=lambda: {  # U is never 1 / C: there c ** (2 gamma - 1) would pass
            "gamma = 3": (0.7, 1.9, 3.0),
            "gamma = 1": (0.5, 3.0, 1.0),
            "gamma = 0": (0.5, 3.0, 0.0),
            "gamma = 0.4": (0.3, 1.5, 0.4),
            "gamma = 1.7, wide data": (2.0, 7.0, 1.7),
        },
        truth=variances_by_quadrature,
        mistakes=[
            Mistake(
                "the two exchanged",
                lambda c, u, gamma: (c**gamma * u ** (1 - gamma), 1 / (gamma / c + (1 - gamma) / u)),
                "right numbers in the wrong order: which of them comes from adding up exponents?",
            ),
            Mistake(
                "a factor of two in the equation",
                lambda c, u, gamma: (1 / (gamma / c + (1 - gamma) / u), (c**gamma * u ** (1 - gamma)) ** 2),
                "the first number is right. A variance is the square of a length: where does a 2 come from, or go?",
            ),
            Mistake(
                "the label's density for the classifier",
                lambda c, u, gamma: (1 / (1 / u + gamma / c), c**gamma * u ** (1 - gamma)),
                "the second number is right. p(y | x) is a ratio of densities, not p(x | y).",
            ),
            Mistake(
                "the target twice",
                lambda c, u, gamma: (1 / (gamma / c + (1 - gamma) / u),) * 2,
                "the first number is right. The sampler does not sample the target: solve its equation.",
            ),
            Mistake(
                "arithmetic mean",
                lambda c, u, gamma: (1 / (gamma / c + (1 - gamma) / u), gamma * c + (1 - gamma) * u),
                "the first number is right. Can a variance become negative? Yours does for large gamma.",
            ),
            Mistake(
                "arithmetic mean for the target",
                lambda c, u, gamma: (gamma * c + (1 - gamma) * u, c**gamma * u ** (1 - gamma)),
                "the second number is right. In an exponent, do variances add up, or their inverses?",
            ),
            Mistake(
                "arithmetic mean twice",
                lambda c, u, gamma: (gamma * c + (1 - gamma) * u,) * 2,
                "variances do not add up here. For the first, add exponents; for the second, solve the equation.",
            ),
            Mistake(
                "w for gamma",
                lambda c, u, gamma: (1 / ((1 + gamma) / c - gamma / u), c ** (1 + gamma) * u**-gamma),
                "the right formulas with the weight of another convention: what must come out at gamma = 1?",
            ),
            Mistake(
                "start forgotten",
                lambda c, u, gamma: (1 / (gamma / c + (1 - gamma) / u), c ** (gamma / 2) * u ** ((1 - gamma) / 2)),
                "the first number is right, the second is the factor of x, not of its variance.",
            ),
            Mistake(
                "standard deviations",
                lambda c, u, gamma: tuple(math.sqrt(value) for value in guided(c, u, gamma)),
                "are these variances? At gamma = 1 both must be the class's.",
            ),
            Mistake(
                "precision",
                lambda c, u, gamma: (1 / guided(c, u, gamma)[0], guided(c, u, gamma)[1]),
                "the second number is right. What adds up in the exponent is not yet a variance.",
            ),
            Mistake(
                "class and data exchanged",
                lambda c, u, gamma: guided(u, c, gamma),
                "at gamma = 1 you return the variance of all data, at gamma = 0 that of the class.",
            ),
        ],
        tolerance=1e-4,
    ),
    Exercise(
        number="11.4",
        title="one step of Algorithm 2",
        cases=steps,
        truth=step_by_bayes,
        mistakes=[
            Mistake(
                "v at the wrong end",
                lambda *a: step(*a, backwards=True),
                "the mean is right. At v = 0 the variance must be the smaller of the two.",
            ),
            Mistake(
                "arithmetic interpolation",
                lambda *a: step(*a, mixing="arithmetic"),
                "both ends are right, what lies between is not: which quantity is interpolated linearly?",
            ),
            Mistake(
                "v ignored",
                lambda *a: step(*a, mixing="none"),
                "your variance does not depend on v.",
            ),
            Mistake(
                "standard deviation for variance",
                lambda *a: (step(*a)[0], math.sqrt(step(*a)[1])),
                "the mean is right. Is your second number a variance?",
            ),
            Mistake(
                "alpha squared for alpha",
                lambda *a: step(*a, power=1.0),
                "1 / (1 + e^-lambda) is not yet alpha.",
            ),
            Mistake(
                "the clean point not shrunk",
                lambda *a: step(*a, weight=0),
                "if z were alpha times the clean point, z' should be alpha' times it. Is yours?",
            ),
            Mistake(
                "the two noise levels exchanged",
                lambda z, clean, lam, lam_next, v: step(z, clean, lam_next, lam, v),
                "a variance cannot be negative: which of lam and lam_next belongs to the noisier point?",
            ),
            Mistake(
                "r inverted",
                lambda *a: step(*a, inverted=-1),
                "a variance cannot be negative, and r must lie between 0 and 1. Does yours?",
            ),
            Mistake(
                "the sign in the sigmoid",
                lambda *a: step(*a, sign=-1),
                "near the data, where lambda is large, alpha must be nearly 1. Is yours?",
            ),
            Mistake(
                "alpha on the clean point",
                lambda *a: step(*a, late=False),
                "the variance is right. At which noise level is the point that you want the mean of?",
            ),
            Mistake(
                "r and 1 - r exchanged",
                lambda *a: step(*a, swapped=True),
                "look at a very short step: z' must be nearly z. What is r there?",
            ),
        ],
    ),
]
