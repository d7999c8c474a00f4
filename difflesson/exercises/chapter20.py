"""Exercises of chapter 20, a library's numbers in the book's terms."""

import math

import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake

# --- 20.1 ---------------------------------------------------------------------------------------------------


def sigmas() -> dict[str, tuple]:
    """Cases of 20.1: sigma_edm."""
    return {f"sigma_edm = {value:g}": (value,) for value in (0.03, 0.5, 1.0, 2.5, 14.6, 157.0)}


def level_by_bisection(sigma_edm: float) -> tuple[float, float]:
    """The angle at which noise over signal is sigma_edm, found by halving; its squared cosine and its cosine."""
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if math.sin(middle) < sigma_edm * math.cos(middle) else (low, middle)
    return math.cos(low) ** 2, math.cos(low)


# --- 20.2 ---------------------------------------------------------------------------------------------------


def applications() -> dict[str, tuple]:
    """Cases of 20.2: gamma, how often the line is applied, and whether its branches are swapped."""
    return {
        "right": (4.0, 1, False),
        "twice": (3.0, 2, False),
        "three times": (1.5, 3, False),
        "swapped": (4.0, 1, True),
        "swapped and twice": (4.0, 2, True),
        "swapped three times": (2.5, 3, True),
        "never": (7.5, 0, False),
        "swapped, never": (7.5, 0, True),
        "below 1": (0.3, 2, True),
        "away from the label": (-1.5, 3, False),
    }


def scale_of_two_numbers(gamma: float, times: int, swapped: bool) -> float:
    """For two guesses that are numbers: apply the line, and read the scale back."""
    uncond, cond = 0.3137, 1.7291
    last = cond
    for _ in range(times):
        last = last + gamma * (uncond - last) if swapped else uncond + gamma * (last - uncond)
    return (last - uncond) / (cond - uncond)


# --- 20.3 ---------------------------------------------------------------------------------------------------


def brightnesses() -> dict[str, tuple]:
    """Cases of 20.3: m, c and alphabar."""
    return {
        "Stable Diffusion's table": (-0.8, 0.3, 0.00466),
        "pure noise": (1.2, 0.5, 0.0),
        "a good part of signal": (0.9, 0.4, 0.3),
        "a broad class": (-2.0, 3.0, 0.1),
        "mean zero": (0.0, 0.7, 0.2),
        "deviation one": (0.6, 1.0, 0.25),
    }


def by_the_flow(m: float, c: float, alphabar: float) -> tuple[float, float]:
    """Follow the probability flow in the angle of alpha = cos, sigma = sin from the believed level to the data."""
    if alphabar == 0:
        return m, c
    steps = 800
    h = math.acos(math.sqrt(alphabar)) / steps

    def rate(x: float, angle: float) -> float:
        alpha, sigma = math.cos(angle), math.sin(angle)
        var = alpha**2 * c**2 + sigma**2
        x0 = m + alpha * c**2 / var * (x - alpha * m)
        eps = sigma / var * (x - alpha * m)
        return alpha * eps - sigma * x0  # dx / d angle: the velocity v

    def end(x: float) -> float:
        angle = h * steps
        for _ in range(steps):
            a = rate(x, angle)
            b = rate(x - h / 2 * a, angle - h / 2)
            d = rate(x - h / 2 * b, angle - h / 2)
            e = rate(x - h * d, angle - h)
            x, angle = x - h / 6 * (a + 2 * b + 2 * d + e), angle - h
        return x

    return end(0.0), end(1.0) - end(0.0)


def believed(m, c, alphabar, *, power=0.5, noise=True, lost=1.0):
    """The solution with parts that can be got wrong."""
    var = alphabar * c**2 + (1 - alphabar if noise else 0)
    return m - lost * c * alphabar**power * m / var**0.5, c / var**0.5


# --- 20.4 ---------------------------------------------------------------------------------------------------


def stops() -> dict[str, tuple]:
    """Cases of 20.4: a table of alphas_cumprod, where the point is, and where the network is asked."""
    linear = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    short = torch.tensor([0.95, 0.7, 0.4, 0.1], dtype=torch.float64)
    return {
        "one timestep near 500": (linear, 497, 496),
        "twenty timesteps": (linear, 980, 960),
        "near the data": (linear, 3, 0),
        "another table": (short, 3, 1),
        "its first entries": (short, 1, 0),
    }


def by_single_steps(alphas_cumprod: Tensor, j: int, k: int) -> tuple[Tensor, Tensor]:
    """One timestep after the other: amplitudes multiply, and each step adds its noise."""
    amplitude, variance = torch.ones_like(alphas_cumprod[0]), torch.zeros_like(alphas_cumprod[0])
    for i in range(k + 1, j + 1):
        kept = alphas_cumprod[i] / alphas_cumprod[i - 1]
        amplitude, variance = amplitude * kept**0.5, variance * kept + 1 - kept
    return amplitude, variance**0.5


EXERCISES = [
    Exercise(
        number="20.1",
        title="the table holds the squared amplitude, and the input is multiplied by the amplitude",
        cases=sigmas,
        truth=level_by_bisection,
        mistakes=[
            Mistake(
                "alpha for alpha squared",
                lambda s: (level_by_bisection(s)[1],) * 2,
                "the first is an amplitude. What does the table hold?",
            ),
            Mistake(
                "the square for the factor",
                lambda s: (level_by_bisection(s)[0],) * 2,
                "the table's entry is right. The factor belongs to an image, not to a variance.",
            ),
            Mistake(
                "divided instead of multiplied",
                lambda s: (level_by_bisection(s)[0], 1 / level_by_bisection(s)[1]),
                "x_edm is larger than x_t. Which way must you go?",
            ),
            Mistake(
                "sigma for sigma over alpha",
                lambda s: (1 - s**2, abs(1 - s**2) ** 0.5),
                "this takes sigma_edm for sigma_t; above 1 the table would be negative.",
            ),
            Mistake(
                "the noise's share",
                lambda s: (1 - level_by_bisection(s)[0], level_by_bisection(s)[1]),
                "this is sigma^2. The table falls as the noise grows.",
            ),
            Mistake(
                "divided by sigma",
                lambda s: (level_by_bisection(s)[0], level_by_bisection(s)[1] / s),
                "at little noise the image should hardly change.",
            ),
        ],
    ),
    Exercise(
        number="20.2",
        title="every application multiplies the distance from the unconditional guess",
        cases=applications,
        truth=scale_of_two_numbers,
        mistakes=[
            Mistake(
                "swapped only once",
                lambda gamma, times, swapped: 1 - gamma**times if swapped else gamma**times,
                "you swap after the last application. What does each of them do?",
            ),
            Mistake(
                "the scales added",
                lambda gamma, times, swapped: times * (1 - gamma if swapped else gamma),
                "each application multiplies the distance of the last result from the unconditional guess.",
            ),
            Mistake(
                "the swap forgotten",
                lambda gamma, times, swapped: gamma**times,
                "with the branches the wrong way round one application gives 1 - gamma.",
            ),
            Mistake(
                "minus gamma for the swap",
                lambda gamma, times, swapped: (-gamma if swapped else gamma) ** times,
                "at gamma = 0 a swapped line gives the conditional guess. Does yours?",
            ),
            Mistake(
                "only the scale that was asked for",
                lambda gamma, times, swapped: 1 - gamma if swapped else gamma,
                "right for a single application. What is the result of the second?",
            ),
        ],
    ),
    Exercise(
        number="20.3",
        title="too little noise at the start pulls the mean to the middle and leaves the deviation nearly alone",
        cases=brightnesses,
        truth=by_the_flow,
        mistakes=[
            Mistake(
                "alphabar for its root",
                lambda m, c, a: believed(m, c, a, power=1.0),
                "the mean that the network expects at its level is an amplitude times m.",
            ),
            Mistake(
                "a deviation of one believed",
                lambda m, c, a: (m - c * a**0.5 * m, c),
                "right if the data have deviation 1. What is the deviation of x_T with the network's level?",
            ),
            Mistake(
                "no change",
                lambda m, c, a: (m, c),
                "this would be right if the start were noisy as the network thinks.",
            ),
            Mistake(
                "the signal missing",
                lambda m, c, a: (m * (1 - a**0.5), c),
                "how far a missing amplitude moves the end depends on how narrow the data are.",
            ),
            Mistake(
                "away from the middle",
                lambda m, c, a: believed(m, c, a, lost=-1.0),
                "x_T lies nearer to 0 than the network expects. Where does it think that it is?",
            ),
        ],
        tolerance=1e-6,
    ),
    Exercise(
        number="20.4",
        title="the amplitude and the noise between two levels, whatever lies between",
        cases=stops,
        truth=by_single_steps,
        mistakes=[
            Mistake(
                "the square of the amplitude",
                lambda table, j, k: (by_single_steps(table, j, k)[0] ** 2, by_single_steps(table, j, k)[1]),
                "the table holds squares, and so does the ratio of its entries.",
            ),
            Mistake(
                "the variance of the noise",
                lambda table, j, k: (by_single_steps(table, j, k)[0], by_single_steps(table, j, k)[1] ** 2),
                "the noise is right but squared: a standard deviation was asked for.",
            ),
            Mistake(
                "t and s exchanged",
                lambda table, j, k: (1 / by_single_steps(table, j, k)[0], by_single_steps(table, j, k)[1]),
                "noising makes the amplitude smaller. Which of the two is noisier?",
            ),
            Mistake(
                "variances subtracted",
                lambda table, j, k: (by_single_steps(table, j, k)[0], (table[k] - table[j]).sqrt()),
                "the noise that was there at s shrinks on the way to t as well.",
            ),
            Mistake(
                "deviations subtracted",
                lambda table, j, k: (by_single_steps(table, j, k)[0], (1 - table[j]).sqrt() - (1 - table[k]).sqrt()),
                "noises that do not know of each other add as variances.",
            ),
        ],
    ),
]
