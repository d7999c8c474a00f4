"""Exercises of chapter 12, guidance by a classifier that knows only clean data."""

import math

import torch
from torch import Tensor

from difflesson.divergence import hermite
from difflesson.exercises import Exercise, Mistake


def drawn(seed: int):
    """A function that draws standard normal numbers of a shape, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


LITTLE, HALF, MUCH = ((alpha, math.sqrt(1 - alpha**2)) for alpha in (0.95, 0.7, 0.25))
LEVELS = {"little noise": LITTLE, "half and half": HALF, "much noise": MUCH}

# --- 12.1 ---------------------------------------------------------------------------------------------------


def pairs() -> dict[str, tuple]:
    """Cases of 12.1: two clean points a point, and a noise level."""
    normal = drawn(21)
    shapes = ((4, 2), (1, 3), (5, 1))
    return {name: (normal(*shape), normal(*shape), *level)
            for (name, level), shape in zip(LEVELS.items(), shapes, strict=True)}  # fmt: skip


def gradient_by_noise(x0_told: Tensor, x0_untold: Tensor, alpha: float, sigma: float) -> Tensor:
    """The difference of two scores, -eps / sigma, at some x; which x it is does not matter."""
    x = torch.full_like(x0_told, 0.7)
    told, untold = ((x - alpha * x0) / sigma for x0 in (x0_told, x0_untold))
    return (untold - told) / sigma


# --- 12.2 ---------------------------------------------------------------------------------------------------


def covariance(root: Tensor) -> Tensor:
    """A positive definite matrix from any square one, (d, d) -> (d, d)."""
    return root @ root.T + 0.2 * torch.eye(len(root), dtype=root.dtype)


def measurements() -> dict[str, tuple]:
    """Cases of 12.2: a, y, s2, mean, cov, alpha, sigma."""
    normal = drawn(22)
    return {
        "in the plane, half and half": (normal(2), 0.4, 0.9, normal(2), 0.1 * covariance(normal(2, 2)), *HALF),
        "three dimensions, little noise": (normal(3), -1.1, 1.5, normal(3), 0.3 * covariance(normal(3, 3)), *LITTLE),
        "one dimension, much noise": (normal(1), 2.0, 0.8, normal(1), covariance(normal(1, 1)), *MUCH),
        "a narrow cloud": (normal(2), 0.9, 0.7, normal(2), 0.01 * covariance(normal(2, 2)), 0.98, 0.199),
    }


def gradients_by_quadrature(a, y, s2, mean, cov, alpha, sigma) -> tuple[Tensor, Tensor]:
    """Both logarithms as functions of x, the second by quadrature over the cloud; gradients by autograd."""
    z, weights = hermite({1: 80, 2: 60, 3: 30}[len(mean)], len(mean))
    root, found = torch.linalg.cholesky(cov), []
    for around, shares in ((torch.zeros_like(mean)[None], torch.ones(1, dtype=mean.dtype)), (z @ root.T, weights)):
        nudge = torch.zeros_like(mean).requires_grad_()
        points = mean + alpha / sigma**2 * cov @ nudge + around
        log = shares.log() - (y - points @ a) ** 2 / (2 * s2)
        found.append(torch.autograd.grad(log.logsumexp(0), nudge)[0])
    return found[0], found[1]


def measured(a, y, s2, mean, cov, alpha, sigma, *, level=None, back=None, whole=None, sign=1.0):
    """The solution with parts that can be got wrong."""
    push = (alpha / sigma**2 if level is None else level) * (cov @ a if back is None else back) * sign * (y - a @ mean)
    return push / s2, push / (s2 + a @ cov @ a if whole is None else whole)


# --- 12.3 ---------------------------------------------------------------------------------------------------


def clouds() -> dict[str, tuple]:
    """Cases of 12.3: clean points (M, d), verdicts (M,), a noisy point (d,), and a noise level."""
    normal = drawn(23)
    sizes = ((12, 2), (7, 3), (20, 1))
    cases = {}
    for (name, level), (count, dim) in zip(LEVELS.items(), sizes, strict=True):
        x0 = normal(count, dim)
        cases[name] = (x0, torch.sigmoid(2 * normal(count)), level[0] * normal(dim), *level)
    return cases


def gradient_by_autograd(x0: Tensor, p: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """The logarithm of the average verdict, differentiated."""
    leaf = x.clone().requires_grad_()
    log = -(leaf - alpha * x0).square().sum(1) / (2 * sigma**2)
    return torch.autograd.grad((log + p.log()).logsumexp(0) - log.logsumexp(0), leaf)[0]


def by_shares(x0, p, x, alpha, sigma, *, width=2.0, level=None, over=True, centred=True, flat=False):
    """The solution with parts that can be got wrong; width 2 is that of a Gaussian's exponent."""
    shares = (-(x - alpha * x0).square().sum(1) / (width * sigma**2)).softmax(0)
    if flat:
        shares = torch.full_like(shares, 1 / len(shares))
    told = shares * p / (shares @ p if over else 1.0)
    rest = shares * (1.0 if over else shares @ p) if centred else 0.0
    return (alpha / sigma**2 if level is None else level) * (told - rest) @ x0


# --- 12.4 ---------------------------------------------------------------------------------------------------


def classifiers() -> dict[str, tuple]:
    """Cases of 12.4: k, b, mean, cov, alpha, sigma."""
    normal = drawn(24)
    return {
        "in the plane, half and half": (2 * normal(2), 0.4, normal(2), covariance(normal(2, 2)), *HALF),
        "four dimensions, little noise": (normal(4), -0.8, normal(4), 0.3 * covariance(normal(4, 4)), *LITTLE),
        "one dimension, much noise": (3 * normal(1), 1.0, normal(1), covariance(normal(1, 1)), *MUCH),
        "far on the wrong side": (normal(2), -9.0, normal(2), covariance(normal(2, 2)), 0.6, 0.8),
    }


def blurred_by_differences(k, b, mean, cov, alpha, sigma) -> tuple[float, Tensor]:
    """Floats: the logit's variance from independent directions, the gradient by differences along each axis."""
    variances, axes = torch.linalg.eigh(cov)
    variance = sum(float(v) * float(axis @ k) ** 2 for v, axis in zip(variances, axes.T, strict=True))
    steeper = math.hypot(1.0, math.sqrt(math.pi * variance / 8))

    def value(nudge: Tensor) -> float:
        moved = mean + alpha / sigma**2 * cov @ nudge
        return -math.log1p(math.exp(-(float(moved @ k) + b) / steeper))

    ahead = 1e-5 * torch.eye(len(mean), dtype=mean.dtype)
    slopes = [(value(step) - value(-step)) / 2e-5 for step in ahead]
    return value(torch.zeros_like(mean)), torch.tensor(slopes, dtype=mean.dtype)


def blurring(k, b, mean, cov, alpha, sigma, *, variance=None, wrong_side=True, chain=True, level=None, back=None,
             power=0.5, factor=math.pi / 8, spread=True):  # fmt: skip
    """The solution with parts that can be got wrong."""
    variance = k @ cov @ k if variance is None else variance
    blur = (1 + factor * variance) ** power
    logit = (k @ mean + (b if spread else b * blur)) / blur
    slope = torch.sigmoid(-logit if wrong_side else logit) / (blur if chain else 1.0)
    direction = cov @ k if back is None else back
    return torch.nn.functional.logsigmoid(logit), (alpha / sigma**2 if level is None else level) * slope * direction


EXERCISES = [
    Exercise(
        number="12.1",
        title="the right gradient is the label's move of the clean guess, in units of the noise",
        cases=pairs,
        truth=gradient_by_noise,
        mistakes=[
            Mistake(
                "alpha / sigma",
                lambda told, untold, alpha, sigma: alpha / sigma * (told - untold),
                "nearly: in the exponent of the cloud's density, what does |x - alpha x0|^2 stand over?",
            ),
            Mistake(
                "without alpha",
                lambda told, untold, alpha, sigma: (told - untold) / sigma**2,
                "nearly: x0 enters the noisy point with a factor.",
            ),
            Mistake(
                "the step of x0 for the score",
                lambda told, untold, alpha, sigma: sigma**2 / alpha * (told - untold),
                "this factor turns a score into a move of x0. You go the other way.",
            ),
            Mistake(
                "swapped",
                lambda told, untold, alpha, sigma: alpha / sigma**2 * (untold - told),
                "this points away from the label.",
            ),
            Mistake(
                "alpha squared",
                lambda told, untold, alpha, sigma: (alpha / sigma) ** 2 * (told - untold),
                "nearly: which power of alpha does the derivative of |x - alpha x0|^2 in x leave beside x0?",
            ),
        ],
    ),
    Exercise(
        number="12.2",
        title="the guess is (s2 + a C a) / s2 times too long, whatever was measured",
        cases=measurements,
        truth=gradients_by_quadrature,
        mistakes=[
            Mistake(
                "the noise forgotten",
                lambda a, y, s2, mean, cov, *levels: measured(a, y, s2, mean, cov, *levels, whole=a @ cov @ a),
                "the first is right. For the second: y is the measured coordinate plus noise; both vary.",
            ),
            Mistake(
                "the cloud forgotten",
                lambda a, y, s2, mean, cov, *levels: measured(a, y, s2, mean, cov, *levels, whole=s2),
                "the first is right. The second asks about the whole cloud, not about its mean: what varies across it?",
            ),
            Mistake(
                "the order",
                lambda *args: measured(*args)[::-1],
                "right numbers, wrong order: the guess was asked for first.",
            ),
            Mistake(
                "no Jacobian",
                lambda a, y, s2, mean, cov, alpha, sigma: measured(
                    a, y, s2, mean, cov, alpha, sigma, back=a, level=1.0
                ),
                "these are gradients in the clean point. How does the clean guess move with x?",
            ),
            Mistake(
                "the noise detached",
                lambda a, y, s2, mean, cov, alpha, sigma: measured(
                    a, y, s2, mean, cov, alpha, sigma, back=a, level=1 / alpha
                ),
                "the Jacobian of the clean guess is not I / alpha: the guessed noise changes with x as well.",
            ),
            Mistake(
                "alpha / sigma",
                lambda a, y, s2, mean, cov, alpha, sigma: measured(
                    a, y, s2, mean, cov, alpha, sigma, level=alpha / sigma
                ),
                "nearly: look at the powers in front of the covariance.",
            ),
            Mistake(
                "the sign",
                lambda *args: measured(*args, sign=-1.0),
                "this leads away from the measurement.",
            ),
            Mistake(
                "standard deviations added",
                lambda a, y, s2, mean, cov, *levels: measured(
                    a, y, s2, mean, cov, *levels, whole=(math.sqrt(s2) + (a @ cov @ a).sqrt()) ** 2
                ),
                "the first is right. For independent parts, what adds up?",
            ),
        ],
        tolerance=1e-4,
    ),
    Exercise(
        number="12.3",
        title="labelled clean data alone give the noisy gradient: a covariance of position and verdict",
        cases=clouds,
        truth=gradient_by_autograd,
        mistakes=[
            Mistake(
                "all points alike",
                lambda *args: by_shares(*args, flat=True),
                "not every clean point explains x equally well: what is the weight of each?",
            ),
            Mistake(
                "of the probability",
                lambda *args: by_shares(*args, over=False),
                "this is the gradient of the average verdict. You were asked for that of its logarithm.",
            ),
            Mistake(
                "not centred",
                lambda *args: by_shares(*args, centred=False),
                "a covariance: if all verdicts are equal, the gradient must vanish. Yours does not.",
            ),
            Mistake(
                "the exponent without its half",
                lambda *args: by_shares(*args, width=1.0),
                "nearly: look at the exponent of a Gaussian density again.",
            ),
            Mistake(
                "alpha / sigma",
                lambda x0, p, x, alpha, sigma: by_shares(x0, p, x, alpha, sigma, level=alpha / sigma),
                "nearly: which power of sigma stands in front of the covariance?",
            ),
            Mistake(
                "without alpha",
                lambda x0, p, x, alpha, sigma: by_shares(x0, p, x, alpha, sigma, level=1 / sigma**2),
                "nearly: a factor in front of the covariance is missing.",
            ),
            Mistake(
                "unshrunk",
                lambda x0, p, x, alpha, sigma: by_shares(x0, p, x, 1.0, sigma, level=alpha / sigma**2),
                "in the weights you compare x with the clean points as they are. What does noising do to them first?",
            ),
            Mistake(
                "averaged logarithms",
                lambda x0, p, x, alpha, sigma: (lambda w: alpha / sigma**2 * (w * (p.log() - w @ p.log())) @ x0)(
                    (-(x - alpha * x0).square().sum(1) / (2 * sigma**2)).softmax(0)
                ),
                "you average logarithms. A noisy classifier averages probabilities, and then takes the logarithm.",
            ),
        ],
    ),
    Exercise(
        number="12.4",
        title="an averaged classifier costs one product with the covariance, in any dimension",
        cases=classifiers,
        truth=blurred_by_differences,
        mistakes=[
            Mistake(
                "the guess",
                lambda k, b, mean, cov, *levels: blurring(k, b, mean, cov, *levels, variance=0.0),
                "this asks about the mean alone. Where does the width of the cloud come in?",
            ),
            Mistake(
                "the chain rule forgotten",
                lambda *args: blurring(*args, chain=False),
                "the verdict is right, its gradient is too long: what is the derivative of a quotient's numerator?",
            ),
            Mistake(
                "the side",
                lambda *args: blurring(*args, wrong_side=False),
                "the verdict is right. Far inside the class the gradient must vanish; yours vanishes far outside.",
            ),
            Mistake(
                "no root",
                lambda *args: blurring(*args, power=1.0),
                "nearly: the logit is divided by a standard deviation, so to speak, not by a variance.",
            ),
            Mistake(
                "8 / pi",
                lambda *args: blurring(*args, factor=8 / math.pi),
                "nearly: pi and 8 have changed places.",
            ),
            Mistake(
                "the offset left out",
                lambda *args: blurring(*args, spread=False),
                "all of the logit is divided, not only what depends on the point.",
            ),
            Mistake(
                "the norm of k",
                lambda k, b, mean, cov, *levels: blurring(
                    k, b, mean, cov, *levels, variance=(k @ k) * cov.diagonal().mean()
                ),
                "how much does the logit vary over this cloud? It is longer in some directions than in others.",
            ),
            Mistake(
                "no Jacobian",
                lambda k, b, mean, cov, alpha, sigma: blurring(k, b, mean, cov, alpha, sigma, back=k, level=1.0),
                "the verdict is right. This is its gradient in the clean mean: how does that move with x?",
            ),
            Mistake(
                "the noise detached",
                lambda k, b, mean, cov, alpha, sigma: blurring(k, b, mean, cov, alpha, sigma, back=k, level=1 / alpha),
                "the verdict is right. The Jacobian of the clean guess is not I / alpha.",
            ),
            Mistake(
                "alpha / sigma",
                lambda k, b, mean, cov, alpha, sigma: blurring(k, b, mean, cov, alpha, sigma, level=alpha / sigma),
                "the verdict is right. Look at the powers in front of the covariance.",
            ),
        ],
    ),
]
