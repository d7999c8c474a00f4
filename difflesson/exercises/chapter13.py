"""Exercises of chapter 13: what a loss says in nats, averages, and targets."""

import math

import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake
from difflesson.schedule import cosine

# --- 13.1 ---------------------------------------------------------------------------------------------------


def levels() -> dict[str, tuple]:
    """Cases of 13.1: loss told and not told a pixel, log-SNR, pixels."""
    return {
        "digits at equal signal and noise": (0.054, 0.0554, 0.0, 784),
        "much noise": (0.15, 0.193, -3.0, 784),
        "little noise, a small picture": (0.12, 0.1203, 6.0, 64),
        "the label makes it worse": (0.2, 0.19, 1.5, 100),
        "no difference": (0.3, 0.3, 2.0, 10),
    }


def nats_by_way_of_eps(told: float, untold: float, log_snr: float, pixels: int) -> float:
    """The two losses turned into losses of eps with a schedule's alpha."""
    schedule = cosine()
    alpha = float(schedule.alpha(schedule.time(log_snr)))
    in_eps = [alpha * alpha * loss * pixels for loss in (told, untold)]
    return 0.5 * (in_eps[1] - in_eps[0])


# --- 13.2 ---------------------------------------------------------------------------------------------------


def curves() -> dict[str, tuple]:
    """Cases of 13.2: log-SNR, gap, distance, entropy."""
    even, uneven = torch.linspace(-10, 10, 41).double(), torch.tensor([-9.0, -5, -3, -2, 0, 1, 4, 9]).double()

    def hill(x, height, at):
        return height * torch.exp(-((x - at) ** 2) / 8)

    return {
        "too much of both": (even, hill(even, 0.9, -2), hill(even, 1.1, -1), 2.3),
        "too little": (even, hill(even, 0.2, -2), hill(even, 0.25, -2), 2.3),
        "uneven levels": (uneven, hill(uneven, 0.5, 0), hill(uneven, 0.4, 1), 0.7),
        "a gap below zero": (uneven, -hill(uneven, 0.1, 2), hill(uneven, 0.3, 0), 1.2),
    }


def areas(log_snr: Tensor, *rates: Tensor) -> list[float]:
    """By hand: a trapezium for each pair of neighbours."""
    pairs = range(len(log_snr) - 1)
    return [sum(float((r[k] + r[k + 1]) / 2 * (log_snr[k + 1] - log_snr[k])) for k in pairs) for r in rates]


def verdict_by_hand(log_snr: Tensor, gap: Tensor, distance: Tensor, entropy: float) -> tuple[float, float]:
    """The truth of 13.2: the least excess of the unlabelled half, and the least squared error, in nats."""
    worse, whole = areas(log_snr, gap, distance)
    shortest = math.sqrt(whole) - math.sqrt(entropy)
    return worse - entropy, shortest * shortest if shortest > 0 else 0.0


def length(area: float) -> float:
    """The root of an area, with its sign."""
    return math.copysign(abs(area) ** 0.5, area)


def least(whole: float, entropy: float) -> float:
    """The least squared error that a distance `whole` proves: the square of a difference of lengths, or 0."""
    return max(0.0, length(whole) - length(entropy)) ** 2


def other_verdict(first=lambda g, d, h: g - h, second=lambda g, d, h: least(d, h)):
    """An answer to 13.2 whose two numbers come from (gap, distance, entropy) by other rules."""
    def answer(log_snr, gap, distance, entropy):
        g, d = areas(log_snr, gap, distance)
        return first(g, d, entropy), second(g, d, entropy)

    return answer


def summed(log_snr, gap, distance, entropy):
    """A wrong answer to 13.2: sums of the rates, without the widths of the intervals."""
    return float(gap.sum()) - entropy, least(float(distance.sum()), entropy)


# --- 13.3 ---------------------------------------------------------------------------------------------------


def runs() -> dict[str, tuple]:
    """Cases of 13.3: start, memory, decay, steps."""
    return {
        "a short run, a long average": (1.0, 0.9, 0.999, 100),
        "a long run": (2.0, 0.99, 0.995, 1500),
        "the average forgets faster": (-0.7, 0.95, 0.6, 40),
        "one step": (3.0, 0.5, 0.8, 1),
        "a weight that swings": (1.0, -0.4, 0.7, 6),
        "no step": (1.3, 0.5, 0.8, 0),
    }


def step_by_step(start: float, memory: float, decay: float, steps: int) -> float:
    """The truth of 13.3, by the loop that a training run goes through."""
    weight = average = start
    for _ in range(steps):
        weight = memory * weight
        average = decay * average + (1 - decay) * weight
    return average


def averaged_first(start, memory, decay, steps):
    """A wrong answer to 13.3: the average is taken before the step."""
    weight = average = start
    for _ in range(steps):
        average = decay * average + (1 - decay) * weight
        weight = memory * weight
    return average


def from_zero(start, memory, decay, steps):
    """A wrong answer to 13.3: the average begins at 0, not at the first weight."""
    return step_by_step(start, memory, decay, steps) - decay**steps * start


def exchanged(start, memory, decay, steps):
    """A wrong answer to 13.3: decay and its complement exchanged."""
    weight = average = start
    for _ in range(steps):
        weight = memory * weight
        average = (1 - decay) * average + decay * weight
    return average


# --- 13.4 ---------------------------------------------------------------------------------------------------


def floors() -> dict[str, tuple]:
    """Cases of 13.4: floor not told, floor told, share of the teacher."""
    return {
        "nothing but v": (2.3, 1.8, 0.0),
        "nothing but the teacher": (2.3, 1.8, 1.0),
        "a quarter": (2.3, 1.8, 0.25),
        "digits": (0.108, 0.097, 0.7),
        "beyond the teacher": (1.5, 0.6, 1.4),
        "away from the teacher": (1.2, 0.7, -0.5),
    }


def noise_from_samples(floor_untold: float, floor_told: float, m: float) -> float:
    """Two orthogonal errors of these sizes, on four equally likely outcomes."""
    gap = math.sqrt(floor_untold - floor_told)
    told = math.sqrt(floor_told)
    outcomes = [(s * gap, r * told) for s in (-1, 1) for r in (-1, 1)]  # v_c - v_u, v - v_c
    return sum((m * away + (1 - m) * (away + noise)) ** 2 for away, noise in outcomes) / 4


EXERCISES = [
    Exercise(
        number="13.1",
        title="what lies between two losses, in nats",
        cases=levels,
        truth=nats_by_way_of_eps,
        mistakes=[
            Mistake("v taken for eps", lambda told, untold, log_snr, pixels: (untold - told) * pixels / 2,
                    "this counts errors of v. In nats count those of eps: by what are they larger or smaller?"),
            Mistake("alpha for its square",
                    lambda told, untold, log_snr, pixels: pixels / 2 * (untold - told) / (1 + math.exp(-log_snr))**0.5,
                    "nearly. These are squared errors: in which power does the factor enter?"),
            Mistake("sigma for alpha",
                    lambda told, untold, log_snr, pixels: (untold - told) * pixels / 2 / (1 + math.exp(log_snr)),
                    "at little noise your factor vanishes. Which of alpha and sigma is small there?"),
            Mistake("divided instead",
                    lambda told, untold, log_snr, pixels: (untold - told) * pixels / 2 * (1 + math.exp(-log_snr)),
                    "which is larger, an error of v or the same error of eps?"),
            Mistake("half forgotten", lambda *a: 2 * nats_by_way_of_eps(*a), "twice too much: nats are half of what?"),
            Mistake("a pixel", lambda told, untold, log_snr, pixels: nats_by_way_of_eps(told, untold, log_snr, 1),
                    "this is the share of one pixel."),
            Mistake("sign", lambda *a: -nats_by_way_of_eps(*a), "who has the larger loss, told or not told?"),
        ],
    ),
    Exercise(
        number="13.2",
        title="which half is worse, and what the distance proves",
        cases=curves,
        truth=verdict_by_hand,
        mistakes=[
            Mistake("sums for areas", summed, "the levels lie apart: what does a value count for?"),
            Mistake("not cut at zero", other_verdict(second=lambda g, d, h: (length(d) - length(h)) ** 2),
                    "an area below the entropy proves no error. Which number says so?"),
            Mistake("what is above the line", other_verdict(second=lambda g, d, h: max(0.0, d - h)),
                    "too much is claimed: an error along the right difference adds more than its own square."),
            Mistake("lengths for areas", other_verdict(second=lambda g, d, h: max(0.0, length(d) - length(h))),
                    "this is a length. In nats count its square."),
            Mistake("excess from the distance", other_verdict(first=lambda g, d, h: d - h),
                    "the excesses of the halves enter the losses, so look at the other curve for the first number."),
            Mistake("gap for distance", other_verdict(second=lambda g, d, h: least(g, h)),
                    "the second number is about the distance of the answers."),
            Mistake("sign", other_verdict(first=lambda g, d, h: h - g),
                    "if the half without the label is worse, is its loss larger or smaller?"),
            Mistake("entropy left out", other_verdict(first=lambda g, d, h: g),
                    "even two perfect halves have a gap. How large is it?"),
            Mistake("compared with one another", other_verdict(second=lambda g, d, h: least(d, g)),
                    "two measurements may be wrong together. What is known for certain?"),
        ],
    ),
    Exercise(
        number="13.3",
        title="what an average remembers",
        cases=runs,
        truth=step_by_step,
        mistakes=[
            Mistake("averaged first", averaged_first, "close: what comes first, the weight or its average?"),
            Mistake("start left out", from_zero, "your average begins at zero. Where does it begin here?"),
            Mistake("decay and its rest exchanged", exchanged,
                    "which share of the old average is kept, `decay` or the rest?"),
            Mistake("only the start", lambda start, memory, decay, steps: start * decay**steps,
                    "this is what is left of the start. What came in since?"),
            Mistake("the weight itself", lambda start, memory, decay, steps: start * memory**steps,
                    "this is the weight, not its average."),
        ],
    ),
    Exercise(
        number="13.4",
        title="the noise in a mixed target",
        cases=floors,
        truth=noise_from_samples,
        mistakes=[
            Mistake("linear", lambda u, c, m: u - m * c,
                    "right at both ends. How does a factor come out of a mean square?"),
            Mistake("m for 1 - m", lambda u, c, m: u - c + m**2 * c,
                    "what is left of the noise if only the teacher is used?"),
            Mistake("gap shrunk as well", lambda u, c, m: (1 - m) ** 2 * u,
                    "both targets contain v_c. Does the difference of v_c and v_u get smaller?"),
            Mistake("squares of both parts", lambda u, c, m: m**2 * (u - c) + (1 - m) ** 2 * u,
                    "the two targets are not independent: split into parts that are."),
            Mistake("gap left out", lambda u, c, m: (1 - m) ** 2 * c,
                    "even the teacher's answer differs from v_u, from one example to another."),
        ],
    ),
]  # fmt: skip
