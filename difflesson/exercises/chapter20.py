"""Exercises of chapter 20: TODO what they are about, in a line."""

import math

from difflesson.exercises import Exercise, Mistake

# An exercise knows the right answer by another way than its solution: quadrature, finite differences, brute force.
# TODO replace the examples


def ratios():
    """The cases: what each is, and the arguments of the reader's function."""
    return {f"log_snr = {value:g}": (value,) for value in (-3.0, 0.0, 0.5, 4.0)}


def signal_by_bisection(log_snr):
    """The share a of the signal at which log(a / (1 - a)) is log_snr."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.log(middle / (1 - middle)) < log_snr else (low, middle)
    return low


EXERCISES = [
    Exercise(
        number="20.1",
        title="the share of the signal",
        cases=ratios,
        truth=signal_by_bisection,
        mistakes=[
            Mistake(
                "amplitude",
                lambda log_snr: signal_by_bisection(log_snr) ** 0.5,
                "this is alpha. The variance asks for another power of it.",
            ),
            Mistake(
                "noise for signal",
                lambda log_snr: 1 - signal_by_bisection(log_snr),
                "which of the two shares grows with log_snr?",
            ),
        ],
    ),
    Exercise(
        number="20.2",
        title="the share of the noise",
        cases=ratios,
        truth=lambda log_snr: 1 - signal_by_bisection(log_snr),
        mistakes=[
            Mistake(
                "amplitude",
                lambda log_snr: (1 - signal_by_bisection(log_snr)) ** 0.5,
                "this is sigma. The variance asks for another power of it.",
            ),
            Mistake("signal for noise", signal_by_bisection, "which of the two shares falls with log_snr?"),
        ],
    ),
    Exercise(
        number="20.3",
        title="both shares",
        cases=ratios,
        truth=lambda log_snr: (signal_by_bisection(log_snr), 1 - signal_by_bisection(log_snr)),
        mistakes=[
            Mistake(
                "order",
                lambda log_snr: (1 - signal_by_bisection(log_snr), signal_by_bisection(log_snr)),
                "the order of the two: which one was asked for first?",
            ),
            Mistake("the same twice", lambda log_snr: (signal_by_bisection(log_snr),) * 2, "what do the two sum to?"),
        ],
    ),
]
