"""Exercises of chapter 01, noising: one step of two, the score from v, two points, the least error, photons."""

import math

import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake

F64 = torch.float64


# --- 1.1 ----------------------------------------------------------------------------------------------------


def two_steps() -> dict[str, tuple]:
    """Cases of 1.1: a_1, s_1, a_2, s_2."""
    return {
        "both preserve the variance": (0.8, 0.6, 0.6, 0.8),
        "neither shrinks": (1.0, 0.5, 1.0, 0.7),
        "loud, then quiet": (0.9, 2.0, 0.3, 0.1),
        "no noise in the second": (0.5, 0.7, 0.4, 0.0),
        "no noise in the first": (0.7, 0.0, 0.9, 0.3),
        "with signs": (-0.7, 0.4, -0.5, 0.6),
        "one sign": (0.6, 0.9, -0.8, 0.2),
    }


def as_regression(a_1: float, s_1: float, a_2: float, s_2: float) -> tuple[float, float]:
    """x_2 regressed on x_0: the slope, and the deviation of what is left; from the covariance of all that is drawn."""
    chain = torch.eye(3, dtype=F64)  # x_0, first noise, second noise, of variance one each
    chain[1] = a_1 * chain[0] + s_1 * chain[1]  # x_1
    chain[2] = a_2 * chain[1] + s_2 * chain[2]  # x_2
    cov = torch.cov(torch.cat([chain, -chain], 1) * 5**0.5, correction=1) / 2
    slope = cov[0, 2] / cov[0, 0]
    return float(slope), float((cov[2, 2] - slope * cov[0, 2]).clamp_min(0).sqrt())


# --- 1.2 ----------------------------------------------------------------------------------------------------


def velocities() -> dict[str, tuple]:
    """Cases of 1.2: a noisy point, v, and the log signal-to-noise ratio."""
    generator = torch.Generator().manual_seed(12)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=F64)

    return {
        "lambda = 0, points of the plane": (draw(4, 2), draw(4, 2), 0.0),
        "lambda = -3": (draw(4, 2), draw(4, 2), -3.0),
        "lambda = 2.5, an image": (draw(1, 1, 3, 3), draw(1, 1, 3, 3), 2.5),
        "v = 0": (draw(3, 1), torch.zeros(3, 1, dtype=F64), 1.0),
        "x = 0": (torch.zeros(3, 1, dtype=F64), draw(3, 1), -1.0),
    }


def score_by_solving(x: Tensor, v: Tensor, log_snr: float) -> Tensor:
    """Two equations for x0 and eps, solved as a linear system; the levels from an angle."""
    angle = math.atan(math.exp(-log_snr / 2))
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=F64)
    eps = torch.linalg.solve(turn, torch.stack([x.flatten(), v.flatten()]))[1]
    return -eps.view_as(x) / math.sin(angle)


def score(x: Tensor, v: Tensor, log_snr: float, *, power=0.5, v_sign=1, divide=1, sign=-1, flip=1) -> Tensor:
    """The solution with parts that can be got wrong."""
    alpha, sigma = ((1 + math.exp(-s * flip * log_snr)) ** -power for s in (1, -1))
    return sign * (sigma * x + v_sign * alpha * v) / sigma**divide


# --- 1.3 ----------------------------------------------------------------------------------------------------


def coins() -> dict[str, tuple]:
    """Cases of 1.3: points, alpha, sigma, the chance of +1."""
    x = torch.tensor([-2.5, -0.7, 0.0, 0.3, 1.9], dtype=F64)
    return {
        "a fair coin": (x, 0.8, 0.6, 0.5),
        "+1 is rare": (x, 0.6, 0.8, 0.1),
        "+1 is frequent, much noise": (x, 0.3, 0.95, 0.9),
        "no shrinking, wide noise": (x, 1.0, 2.0, 0.7),
    }


def guess_by_two_bells(x: Tensor, alpha: float, sigma: float, chance: float) -> Tensor:
    """Both Gaussians written out; the difference of their shares."""
    plus, minus = (
        weight * torch.exp(torch.distributions.Normal(mean, sigma).log_prob(x))
        for weight, mean in ((chance, alpha), (1 - chance, -alpha))
    )
    return (plus - minus) / (plus + minus)


def logit(chance: float) -> float:
    """Log-odds."""
    return math.log(chance / (1 - chance))


# --- 1.4 ----------------------------------------------------------------------------------------------------


def score_sizes() -> dict[str, tuple]:
    """Cases of 1.4: the score's mean square, alpha, sigma, d; the first is at most d / sigma^2."""
    return {
        "in the plane": (1.7, 0.8, 0.6, 2),
        "ten dimensions, much noise": (9.0, 0.4, 0.9, 10),
        "on a line": (0.5, 0.6, 0.8, 1),
        "nothing to guess, one data point": (3 / 0.36, 0.8, 0.6, 3),
        "no shrinking": (0.1, 1.0, 3.0, 2),
    }


def error_of_gaussian_data(mean_square_score: float, alpha: float, sigma: float, dim: int) -> Tensor:
    """The data may as well be Gaussian, of the variance that gives this score: then precisions add up."""
    noisy = torch.as_tensor(dim, dtype=F64).div(mean_square_score)
    clean = noisy.sub(sigma * sigma).div(alpha * alpha)
    return clean.reciprocal().add(math.exp(2 * math.log(alpha / sigma))).reciprocal().mul(dim)


# --- 1.5 ----------------------------------------------------------------------------------------------------

PIXELS = {  # brightnesses, how often each, gain, dark rate, counts that are listed
    "dark and bright pixels": ((0.5, 6.0), (0.7, 0.3), 1.0, 0.0, 20),
    "gain 0.5, some dark counts": ((0.0, 2.0, 9.0), (0.2, 0.5, 0.3), 0.5, 0.8, 14),
    "gain 3": ((1.0, 2.5), (0.4, 0.6), 3.0, 0.2, 12),
    "one brightness": ((2.0,), (1.0,), 1.5, 1.0, 9),
}


def chances(brightnesses: tuple, gain: float, dark: float, counts: int) -> Tensor:
    """Of each count under each brightness, (B, counts)."""
    mean = gain * torch.tensor(brightnesses, dtype=F64)[:, None] + dark
    return torch.distributions.Poisson(mean, validate_args=False).log_prob(torch.arange(counts, dtype=F64)).exp()


def photons() -> dict[str, tuple]:
    """Cases of 1.5: how often each count comes, the gain, the dark rate."""
    return {
        name: (torch.tensor(shares, dtype=F64) @ chances(bright, gain, dark, counts), gain, dark)
        for name, (bright, shares, gain, dark, counts) in PIXELS.items()
    }


def brightness_by_bayes(often: Tensor, alpha: float, r: float) -> tuple[Tensor, Tensor]:
    """From the brightnesses themselves, found by what they give."""
    for (given, *_), (bright, shares, gain, dark, counts) in zip(photons().values(), PIXELS.values(), strict=True):
        if torch.equal(given, often):
            levels = torch.tensor(bright, dtype=F64)
            joint = torch.tensor(shares, dtype=F64)[:, None] * chances(bright, gain, dark, counts)[:, :-2]
            chance = joint / joint.sum(0)
            mean = levels @ chance
            return mean, ((levels[:, None] - mean).square() * chance).sum(0)
    raise ValueError("often must be that of a case")


def neighbours(
    often: Tensor, alpha: float, r: float, *, first=1, inverted=False, dark=1, gain=1, apart=1, less=1
) -> tuple[Tensor, Tensor]:
    """The solution with parts that can be got wrong."""
    count = torch.arange(first, len(often) - 2 + first, dtype=often.dtype)
    ratio = often[:-2] / often[1:-1] if inverted else often[1:-1] / often[:-2]
    mean, square = count * ratio, count * (count + apart) * often[2:] / often[:-2]
    return (mean - dark * r) / alpha**gain, (square - less * mean**2) / alpha ** (2 * gain)


EXERCISES = [
    Exercise(
        number="1.1",
        title="factors multiply, variances add, and what comes first is shrunk by what comes later",
        cases=two_steps,
        truth=as_regression,
        mistakes=[
            Mistake(
                "deviations added",
                lambda a_1, s_1, a_2, s_2: (a_1 * a_2, abs(a_2) * s_1 + s_2),
                "a sum of independent noises is narrower than the sum of their deviations. What does add up?",
            ),
            Mistake(
                "first noise not shrunk",
                lambda a_1, s_1, a_2, s_2: (a_1 * a_2, math.hypot(s_1, s_2)),
                "the factor is right. The first noise is part of x_1: what happens to x_1 in the second step?",
            ),
            Mistake(
                "shrunk by its own factor",
                lambda a_1, s_1, a_2, s_2: (a_1 * a_2, math.hypot(a_1 * s_1, s_2)),
                "the factor is right. Which of the two factors is applied after the first noise came in?",
            ),
            Mistake(
                "variance for deviation",
                lambda a_1, s_1, a_2, s_2: (a_1 * a_2, (a_2 * s_1) ** 2 + s_2**2),
                "this is the variance of the noise. What multiplies epsilon?",
            ),
            Mistake(
                "factor not squared under the root",
                lambda a_1, s_1, a_2, s_2: (a_1 * a_2, math.sqrt(abs(a_2) * s_1**2 + s_2**2)),
                "nearly: by what is a variance multiplied, when the noise is multiplied by a_2?",
            ),
            Mistake(
                "factors added",
                lambda a_1, s_1, a_2, s_2: (a_1 + a_2, math.hypot(a_2 * s_1, s_2)),
                "the noise is right. Put the first step into the second: what stands before x_0?",
            ),
            Mistake(
                "variance preserved",
                lambda a_1, s_1, a_2, s_2: (a_1 * a_2, math.sqrt(1 - (a_1 * a_2) ** 2)),
                "right for steps with a^2 + s^2 = 1. These need not be of that kind.",
            ),
        ],
    ),
    Exercise(
        number="1.2",
        title="v and x_t are x_0 and eps, turned by an angle: turn back, and the score is -eps / sigma",
        cases=velocities,
        truth=score_by_solving,
        mistakes=[
            Mistake(
                "alpha squared",
                lambda *a: score(*a, power=1.0),
                "with your numbers, is alpha^2 + sigma^2 = 1, and lambda the logarithm of alpha^2 / sigma^2?",
            ),
            Mistake(
                "sign of lambda",
                lambda *a: score(*a, flip=-1),
                "a large lambda means little noise. Which of your alpha and sigma is then near 1?",
            ),
            Mistake(
                "sign of v",
                lambda *a: score(*a, v_sign=-1),
                "solve the two equations again: multiply the first by sigma, the second by alpha, and add.",
            ),
            Mistake(
                "the noise itself",
                lambda *a: score(*a, divide=0, sign=1),
                "this is eps. The score has another unit.",
            ),
            Mistake(
                "minus the noise",
                lambda *a: score(*a, divide=0),
                "the right direction, but the score has the unit 1 / x: what is missing?",
            ),
            Mistake(
                "divided by the variance",
                lambda *a: score(*a, divide=2),
                "x - alpha x_0 is divided by sigma^2; you have eps. How are the two related?",
            ),
            Mistake(
                "sign",
                lambda *a: score(*a, sign=1),
                "the score leads towards the data. Where does the noise lead?",
            ),
            Mistake(
                "v taken for eps",
                lambda x, v, log_snr: -v * math.sqrt(1 + math.exp(log_snr)),
                "this would be right for a network that guesses eps. This one guesses v.",
            ),
        ],
    ),
    Exercise(
        number="1.3",
        title="between two points the best guess is a tanh: a data point only if the noise leaves no doubt",
        cases=coins,
        truth=guess_by_two_bells,
        mistakes=[
            Mistake(
                "deviation for variance",
                lambda x, alpha, sigma, chance: torch.tanh(alpha * x / sigma + logit(chance) / 2),
                "look at the exponent of a Gaussian: which power of sigma divides?",
            ),
            Mistake(
                "coin forgotten",
                lambda x, alpha, sigma, chance: torch.tanh(alpha * x / sigma**2),
                "at x = 0 the point says nothing. Is your guess then what the coin alone says?",
            ),
            Mistake(
                "whole log-odds of the coin",
                lambda x, alpha, sigma, chance: torch.tanh(alpha * x / sigma**2 + logit(chance)),
                "at x = 0 the guess must be 2 chance - 1. Is it?",
            ),
            Mistake(
                "coin turned round",
                lambda x, alpha, sigma, chance: torch.tanh(alpha * x / sigma**2 - logit(chance) / 2),
                "if +1 is frequent, should the guess be higher or lower?",
            ),
            Mistake(
                "twice the log-odds",
                lambda x, alpha, sigma, chance: torch.tanh(2 * alpha * x / sigma**2 + logit(chance)),
                "tanh takes half of the log-odds.",
            ),
            Mistake(
                "half the exponent",
                lambda x, alpha, sigma, chance: torch.tanh((alpha * x / sigma**2 + logit(chance)) / 2),
                "expand both squares: how often does the mixed term 2 alpha x appear in their difference?",
            ),
            Mistake(
                "probability",
                lambda x, alpha, sigma, chance: torch.sigmoid(2 * alpha * x / sigma**2 + logit(chance)),
                "this is the probability of +1. What is the average of x_0?",
            ),
            Mistake(
                "the likelier of the two",
                lambda x, alpha, sigma, chance: torch.sign(2 * alpha * x / sigma**2 + logit(chance)),
                "a data point, so it looks real. Which guess has the least mean square error?",
            ),
            Mistake(
                "undone without doubt",
                lambda x, alpha, sigma, chance: x / alpha,
                "this undoes the shrinking alone. The best guess lies between -1 and +1.",
            ),
            Mistake(
                "alpha forgotten",
                lambda x, alpha, sigma, chance: torch.tanh(x / sigma**2 + logit(chance) / 2),
                "where are the means of the two Gaussians, after the shrinking?",
            ),
        ],
    ),
    Exercise(
        number="1.4",
        title="what the score's size says about the error: no clean point is needed",
        cases=score_sizes,
        truth=error_of_gaussian_data,
        mistakes=[
            Mistake(
                "error of the noise",
                lambda s, alpha, sigma, dim: dim - sigma**2 * s,
                "this is the error of the best guess of the noise. How are the errors of x_0 and eps related?",
            ),
            Mistake(
                "ratio inverted",
                lambda s, alpha, sigma, dim: (alpha / sigma) ** 2 * (dim - sigma**2 * s),
                "with much noise the clean point is harder to guess. Does your error grow with sigma?",
            ),
            Mistake(
                "ratio not squared",
                lambda s, alpha, sigma, dim: sigma / alpha * (dim - sigma**2 * s),
                "errors are proportional with sigma / alpha; these are squares of errors.",
            ),
            Mistake(
                "shrinking not undone",
                lambda s, alpha, sigma, dim: sigma**2 * (dim - sigma**2 * s),
                "this is the error of alpha x_0.",
            ),
            Mistake(
                "one dimension",
                lambda s, alpha, sigma, dim: (sigma / alpha) ** 2 * (1 - sigma**2 * s),
                "what is the mean square length of the noise in d dimensions?",
            ),
            Mistake(
                "score for noise",
                lambda s, alpha, sigma, dim: (sigma / alpha) ** 2 * (dim - s),
                "the best guess of the noise is not the score: which factor is between them?",
            ),
            Mistake(
                "factor not squared",
                lambda s, alpha, sigma, dim: (sigma / alpha) ** 2 * (dim - sigma * s),
                "S is a mean square: which power of the factor between score and noise belongs to it?",
            ),
            Mistake(
                "added",
                lambda s, alpha, sigma, dim: (sigma / alpha) ** 2 * (dim + sigma**2 * s),
                "the longer the guess, the better it explains the noise. Does your error fall with S?",
            ),
        ],
    ),
    Exercise(
        number="1.5",
        title="Robbins' formula: the neighbouring count does what the gradient does for Gaussian noise",
        cases=photons,
        truth=brightness_by_bayes,
        mistakes=[
            Mistake(
                "dark rate left in",
                lambda *a: neighbours(*a, dark=0),
                "this is the mean count over the gain. Which part of the mean does not come from the pixel?",
            ),
            Mistake(
                "gain forgotten",
                lambda *a: neighbours(*a, gain=0),
                "this is what the brightness adds to the mean count. What is the brightness?",
            ),
            Mistake(
                "n for n + 1",
                lambda *a: neighbours(*a, first=0),
                "n! and (n + 1)! differ by which factor? Try n = 0.",
            ),
            Mistake(
                "ratio inverted",
                lambda *a: neighbours(*a, inverted=True),
                "m times the probability of n is n + 1 times that of which count?",
            ),
            Mistake(
                "square of the factor",
                lambda *a: neighbours(*a, apart=0),
                "the mean is right. m^2 leads two counts up: which two factors come with it?",
            ),
            Mistake(
                "second moment",
                lambda *a: neighbours(*a, less=0),
                "the mean is right. E[m^2 | n] is no variance yet.",
            ),
            Mistake(
                "variance over the gain",
                lambda often, alpha, r: (neighbours(often, alpha, r)[0], neighbours(often, alpha, r)[1] * alpha),
                "the mean is right. If m = alpha b + r, how is the variance of m related to that of b?",
            ),
            Mistake(
                "variance of the count",
                lambda often, alpha, r: (neighbours(often, alpha, r)[0], neighbours(often, alpha, r)[0]),
                "the mean is right. A Poisson count has its mean as variance; how sure you are of b is another thing.",
            ),
            Mistake(
                "the count itself",
                lambda often, alpha, r: (
                    (torch.arange(len(often) - 2, dtype=often.dtype) - r) / alpha,
                    neighbours(often, alpha, r)[1],
                ),
                "this believes one count. It is right on average over counts, not the best guess given one.",
            ),
        ],
    ),
]  # fmt: skip
