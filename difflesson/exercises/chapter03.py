"""Exercises of chapter 03, the variational diffusion model: a bill, a step, bits, a clock, the printed form's error."""

import math

import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake

F64 = torch.float64


# --- 3.1 ----------------------------------------------------------------------------------------------------


def steps() -> dict[str, tuple]:
    """Cases of 3.1: an error, alpha_t, sigma_t, alpha_s, sigma_s."""
    return {
        "in the middle": (0.7, 0.6, 0.8, 0.8, 0.6),
        "near the data": (0.01, 0.96, 0.28, 0.9999, (1 - 0.9999**2) ** 0.5),
        "no shrinking": (1.3, 1.0, 2.0, 1.0, 0.5),
        "a perfect guess": (0.0, 0.6, 0.8, 0.8, 0.6),
        "no step": (2.0, 0.6, 0.8, 0.6, 0.8),
    }


def bill_by_divergence(error: float, alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float) -> float:
    """From the posterior's variance and how far its mean moves with x_0, both by regression on x_t."""
    slope = alpha_t / alpha_s * sigma_s**2 / sigma_t**2
    variance = sigma_s**2 - slope * alpha_t / alpha_s * sigma_s**2
    moved = alpha_s - slope * alpha_t
    return moved**2 * error / (2 * variance) if moved else 0.0


def bill(error, alpha_t, sigma_t, alpha_s, sigma_s, *, power=2, half=2, sign=1):
    """The solution with parts that can be got wrong."""
    return sign * ((alpha_s / sigma_s) ** power - (alpha_t / sigma_t) ** power) / half * error


# --- 3.2 ----------------------------------------------------------------------------------------------------


def looks() -> dict[str, tuple]:
    """Cases of 3.2: noisy and clean points, tau_t, tau_s."""
    generator = torch.Generator().manual_seed(32)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=F64)

    return {
        "half the noise": (draw(4, 2), draw(4, 2), 2.0, 1.0),
        "a short step on a line": (draw(3, 1), draw(3, 1), 0.5, 0.45),
        "nearly to the data": (draw(2, 3), draw(2, 3), 1.5, 0.01),
        "from wide noise": (draw(4, 2), draw(4, 2), 80.0, 3.0),
    }


def look_by_precisions(x_t: Tensor, x_0: Tensor, tau_t: float, tau_s: float) -> tuple[Tensor, float]:
    """Two independent measurements of x_s, one from either side, weighted by their precisions."""
    clean, noisy = 1 / tau_s**2, 1 / (tau_t**2 - tau_s**2)
    return (clean * x_0 + noisy * x_t) / (clean + noisy), 1 / (clean + noisy)


def look(x_t, x_0, tau_t, tau_s, *, power=2, swapped=False, deviation=False, factor=1):
    """The solution with parts that can be got wrong."""
    kept = (tau_s / tau_t) ** power
    first, second = (x_0, x_t) if swapped else (x_t, x_0)
    variance = tau_s**2 * (1 - kept) ** factor
    return kept * first + (1 - kept) * second, math.sqrt(variance) if deviation else variance


# --- 3.3 ----------------------------------------------------------------------------------------------------


def pictures() -> dict[str, tuple]:
    """Cases of 3.3: nats of a picture, its numbers, the levels of each."""
    return {
        "a small picture, a byte each": (-1900.0, 784, 256),
        "colours": (-9000.0, 3072, 256),
        "four levels": (350.0, 100, 4),
        "black and white, one pixel": (1.2, 1, 2),
        "no nats": (0.0, 10, 16),
    }


def bits_by_cells(nats: float, dim: int, levels: int) -> float:
    """The probability of a cell as wide as the distance of two levels, in units of x; all numbers alike."""
    width = 2 / (levels - 1)
    return -math.log2(width) + nats * math.log2(math.e) / dim


# --- 3.4 ----------------------------------------------------------------------------------------------------


def curves() -> dict[str, tuple]:
    """Cases of 3.4: levels, mean and mean square of the error."""
    even, uneven = torch.linspace(-6, 8, 57, dtype=F64), torch.linspace(-2, 3, 41, dtype=F64) ** 3 / 3
    plane, line = 2 * torch.sigmoid(even), torch.sigmoid(uneven) * 0.7 + 0.05
    bump = 1 + torch.exp(-(even**2))
    return {
        "one Gaussian in the plane": (even, plane, 2 * plane**2),
        "levels that are not even": (uneven, line, 3.5 * line**2),
        "a bump": (even, bump, bump**2 + 0.4),
    }


def clock_by_descent(log_snr: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The stationary point of the second moment, found by Newton steps on each density against one multiplier."""
    width = torch.empty_like(log_snr)
    width[1:-1], width[0], width[-1] = log_snr[2:] - log_snr[:-2], log_snr[1] - log_snr[0], log_snr[-1] - log_snr[-2]
    width = width / 2
    low, high = torch.tensor(1e-9, dtype=F64), torch.tensor(1e9, dtype=F64)
    for _ in range(200):  # second / p^2 is the same everywhere: the multiplier by bisection
        multiplier = (low * high).sqrt()
        mass = width @ (second / multiplier) ** 0.5
        low, high = (multiplier, high) if mass > 1 else (low, multiplier)
    density = (second / multiplier) ** 0.5
    mean = width @ first / 2
    return density, (width @ (second / density) / 4 - mean**2) ** 0.5


def clock(log_snr, first, second, *, of=None, power=0.5, halves=(2, 2), root=True):
    """The solution with parts that can be got wrong."""
    shape = (second if of is None else of) ** power
    density = shape / torch.trapezoid(shape, log_snr)
    moment = torch.trapezoid(second / density, log_snr) / halves[0] ** 2
    scatter = moment - (torch.trapezoid(first, log_snr) / halves[1]) ** 2
    return density, scatter.sqrt() if root else scatter


# --- 3.5 ----------------------------------------------------------------------------------------------------


def ratios() -> dict[str, tuple]:
    """Cases of 3.5: three signal-to-noise ratios, falling, and the dimension."""
    return {
        "even in lambda, in the plane": (4.0, 2.0, 1.0, 2),
        "short steps": (1.02, 1.0, 0.985, 5),
        "much noise": (0.03, 0.01, 0.002, 1),
        "little noise, uneven": (900.0, 50.0, 30.0, 3),
    }


def excess_by_moments(snr_r: float, snr_s: float, snr_t: float, dim: int) -> float:
    """Second moments of one coordinate of x_0 and three noises, and of a second x_s from the same x_r."""
    alpha = [math.sqrt(snr / (1 + snr)) for snr in (snr_r, snr_s, snr_t)]
    x_r = torch.tensor([alpha[0], math.sqrt(1 - alpha[0] ** 2), 0, 0, 0], dtype=F64)
    keep, fresh = alpha[1] / alpha[0], torch.zeros(3, 5, dtype=F64)
    fresh[0, 2] = fresh[1, 3] = math.sqrt(1 - keep**2)
    x_s, second = keep * x_r + fresh[0], keep * x_r + fresh[1]
    down = alpha[2] / alpha[1]
    fresh[2, 4] = math.sqrt(1 - down**2)
    x_t = down * x_s + fresh[2]
    model = (x_s @ x_t) / (x_t @ x_t) * x_t  # the best linear guess of x_s
    x_0 = torch.tensor([1.0, 0, 0, 0, 0], dtype=F64)
    known = torch.stack([x_0, x_t])
    weights = torch.linalg.solve(known @ known.T, known @ x_s)
    variance = (x_s - weights @ known).square().sum()
    return float(dim * ((second - model).square().sum() - (x_s - model).square().sum()) / (2 * variance))


def excess(snr_r, snr_s, snr_t, dim, *, step_power=1, shrink=True, inverted=False, factor=1.0, whole=True):
    """The solution with parts that can be got wrong."""
    step = (snr_t / (1 + snr_t) * (1 + snr_s) / snr_s) ** step_power if shrink else 1.0
    shared, variance = 1 - snr_s / snr_r, 1 - snr_t / snr_s
    ratio = variance / shared if inverted else shared / variance
    return factor * (dim if whole else 1) * step * ratio


EXERCISES = [
    Exercise(
        number="3.1",
        title="half the precision that the step adds, times the squared error of the guess",
        cases=steps,
        truth=bill_by_divergence,
        mistakes=[
            Mistake(
                "alpha for alpha squared",
                lambda *a: bill(*a, power=1),
                "is your ratio one of variances, or of deviations?",
            ),
            Mistake(
                "half forgotten", lambda *a: bill(*a, half=1), "what does the square of a Gaussian's exponent have?"
            ),
            Mistake(
                "swapped times",
                lambda *a: bill(*a, sign=-1),
                "a bill is not negative. Which of the two levels has the larger ratio?",
            ),
            Mistake(
                "the difference of the logarithms",
                lambda e, a_t, s_t, a_s, s_s: (math.log((a_s / s_s) ** 2) - math.log((a_t / s_t) ** 2)) / 2 * e,
                "this is right for a squared error of the noise, and short steps. Yours is one of x_0.",
            ),
            Mistake(
                "only the signal",
                lambda e, a_t, s_t, a_s, s_s: (a_s**2 - a_t**2) / 2 * e,
                "a ratio of the signal's variance, to what?",
            ),
            Mistake(
                "sigma not squared",
                lambda e, a_t, s_t, a_s, s_s: (a_s**2 / s_s - a_t**2 / s_t) / 2 * e,
                "both are squared in the signal-to-noise ratio.",
            ),
        ],
    ),
    Exercise(
        number="3.2",
        title="without shrinking, the old measurement keeps the share of the variances",
        cases=looks,
        truth=look_by_precisions,
        mistakes=[
            Mistake(
                "deviations",
                lambda *a: look(*a, power=1),
                "the signal-to-noise ratio is 1 / tau^2. With which power do your two levels enter?",
            ),
            Mistake(
                "exchanged",
                lambda *a: look(*a, swapped=True),
                "with tau_s = tau_t you must stay at x_t. Do you?",
            ),
            Mistake("deviation", lambda *a: look(*a, deviation=True), "the variance is asked for."),
            Mistake(
                "fresh noise of the forward step",
                lambda x_t, x_0, t, s: (look(x_t, x_0, t, s)[0], t**2 - s**2),
                "the mean is right. This variance is what the noising adds; where x_0 is known, less is left.",
            ),
            Mistake(
                "variance of the marginal",
                lambda x_t, x_0, t, s: (look(x_t, x_0, t, s)[0], s**2),
                "the mean is right. This is the variance without x_t.",
            ),
            Mistake(
                "factor squared",
                lambda *a: look(*a, factor=2),
                "the mean is right. Divide the gained ratio by the square of the new one again.",
            ),
        ],
    ),
    Exercise(
        number="3.3",
        title="a density depends on the unit, so bits belong to a grid of levels",
        cases=pictures,
        truth=bits_by_cells,
        mistakes=[
            Mistake(
                "unit forgotten",
                lambda n, d, k: n / d / math.log(2),
                "this is in bits, but for a density in x. What is a density in y?",
            ),
            Mistake(
                "unit the wrong way",
                lambda n, d, k: (n / d + math.log(2 / (k - 1))) / math.log(2),
                "y is spread wider than x. Is its density then larger or smaller?",
            ),
            Mistake("nats", lambda n, d, k: n / d - math.log(2 / (k - 1)), "these are nats."),
            Mistake(
                "levels for distances",
                lambda n, d, k: (n / d - math.log(2 / k)) / math.log(2),
                "from the first level to the last, how many distances are there?",
            ),
            Mistake(
                "once for the picture",
                lambda n, d, k: (n - math.log(2 / (k - 1))) / d / math.log(2),
                "the unit changes for every number of the picture.",
            ),
            Mistake(
                "whole picture",
                lambda n, d, k: (n - d * math.log(2 / (k - 1))) / math.log(2),
                "for each number, not for all.",
            ),
            Mistake(
                "half the distance",
                lambda n, d, k: (n / d - math.log(1 / (k - 1))) / math.log(2),
                "x goes from -1 to 1.",
            ),
        ],
    ),
    Exercise(
        number="3.4",
        title="spend time where the loss is large in the root mean square",
        cases=curves,
        truth=clock_by_descent,
        mistakes=[
            Mistake(
                "in proportion to the mean",
                lambda x, f, s: clock(x, f, s, of=f, power=1),
                "right if every draw at one level were the same. They scatter, too.",
            ),
            Mistake(
                "in proportion to the mean square",
                lambda x, f, s: clock(x, f, s, power=1),
                "the integrand is second / p. At its minimum, second is in proportion to which power of p?",
            ),
            Mistake(
                "even",
                lambda x, f, s: clock(x, f, s, power=0),
                "this is the even clock. Where is the error small?",
            ),
            Mistake(
                "half forgotten",
                lambda x, f, s: clock(x, f, s, halves=(1, 1)),
                "the density is right. What is half of the area estimated by?",
            ),
            Mistake(
                "variance",
                lambda x, f, s: clock(x, f, s, root=False),
                "the density is right. This is the variance.",
            ),
            Mistake(
                "mean not subtracted",
                lambda x, f, s: clock(x, 0 * f, s),
                "the density is right. This is the root of the second moment.",
            ),
            Mistake(
                "mean halved twice",
                lambda x, f, s: clock(x, f / 2, s),
                "the density is right, and the second moment. What is the mean of the estimate?",
            ),
            Mistake(
                "not normalised",
                lambda x, f, s: (s.sqrt(), clock(x, f, s)[1]),
                "a density has the integral one.",
            ),
        ],
    ),
    Exercise(
        number="3.5",
        title="the printed form is too large by what x_s and x_t share, one nat a dimension for short even steps",
        cases=ratios,
        truth=excess_by_moments,
        mistakes=[
            Mistake(
                "half",
                lambda *a: excess(*a, factor=0.5),
                "twice a product of x_s with the model's mean, over twice the variance.",
            ),
            Mistake(
                "one dimension",
                lambda *a: excess(*a, whole=False),
                "right for one coordinate.",
            ),
            Mistake(
                "one nat a dimension",
                lambda r, s, t, d: float(d),
                "right in the limit of short and even steps. Exactly?",
            ),
            Mistake(
                "shrinking forgotten",
                lambda *a: excess(*a, shrink=False),
                "the model's mean is alpha_t / alpha_s times x_t, and x_t has that factor of x_s.",
            ),
            Mistake(
                "shrinking once",
                lambda *a: excess(*a, step_power=0.5),
                "the factor alpha_t / alpha_s comes in twice: in the mean, and in x_t.",
            ),
            Mistake(
                "variances exchanged",
                lambda *a: excess(*a, inverted=True),
                "what is shared is the noise from r to s; the variance that divides is that of the model's step.",
            ),
            Mistake(
                "no shared noise",
                lambda r, s, t, d: excess(r, s, t, d, factor=1 / (1 - s / r)),
                "the noise that x_s has beyond x_r: how large is it, in units of sigma_s^2?",
            ),
        ],
    ),
]
