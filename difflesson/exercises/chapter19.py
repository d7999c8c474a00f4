"""Exercises of chapter 19: the negative prompt, CFG++'s lambda, a scale that heals, and what a rescaled step is."""

import math

import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake

# --- 19.1 ---------------------------------------------------------------------------------------------------


def scales() -> dict[str, tuple]:
    """Cases of 19.1."""
    return {f"gamma = {gamma:g}": (gamma,) for gamma in (7.5, 1.0, 0.0, 2.5, -1.5)}


def factors_by_elimination(gamma: float) -> tuple[float, float]:
    """The two factors from three guesses in many coordinates, by least squares."""
    generator = torch.Generator().manual_seed(19)
    untold, wanted, unwanted = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    line = unwanted + gamma * (wanted - unwanted)
    columns = torch.stack([wanted - untold, untold - unwanted], 1)
    a, b = torch.linalg.lstsq(columns, (line - untold)[:, None]).solution.flatten().tolist()
    return a, b


# --- 19.2 ---------------------------------------------------------------------------------------------------


def walks() -> dict[str, tuple]:
    """Cases of 19.2: a scale, and log-SNRs that end at clean data."""

    def until_clean(*values):
        return torch.tensor([*values, math.inf], dtype=torch.float64)

    return {
        "gamma = 2, even in log-SNR": (2.0, until_clean(-6.0, -4.0, -2.0, 0.0, 2.0, 4.0)),
        "gamma = 3.5, uneven": (3.5, until_clean(-7.0, -3.0, -1.5, -1.0, 0.3, 5.0)),
        "gamma = 0.5, three steps": (0.5, until_clean(-3.0, 0.5, 1.0)),
        "gamma = -1, two steps": (-1.0, until_clean(-1.0, 0.2)),
        "gamma = 4, one step to clean data": (4.0, until_clean(-2.0)),
    }


def mean_scale_at_one(log_snr: Tensor) -> list[float]:
    """Of each step at lambda = 1: how far the label moves CFG++'s step, over how far it moves DDIM's at gamma = 1."""
    ratios = []
    for now, then in zip(log_snr.tolist()[:-1], log_snr.tolist()[1:], strict=True):
        alpha_t, sigma_t = (1 / (1 + math.exp(-now))) ** 0.5, (1 / (1 + math.exp(now))) ** 0.5
        alpha_s = (1 / (1 + math.exp(-then))) ** 0.5
        sigma_s = (1 - alpha_s**2) ** 0.5
        ratios.append(alpha_s / (alpha_s - sigma_s * alpha_t / sigma_t))
    return ratios


def lam_by_steps(gamma: float, log_snr: Tensor) -> float:
    """lambda is proportional to the mean scale."""
    ratios = mean_scale_at_one(log_snr)
    return gamma / (math.fsum(ratios) / len(ratios))


# --- 19.3 ---------------------------------------------------------------------------------------------------


def variances() -> dict[str, tuple]:
    """Cases of 19.3: of the data, of both models, in some directions; a log-SNR."""

    def three(*rows):
        return tuple(torch.tensor(row, dtype=torch.float64) for row in rows)

    return {
        "in the middle": (*three([0.5, 0.1, 2.0], [0.7, 0.3, 2.2], [1.1, 0.7, 2.6]), 0.4),
        "almost noise": (*three([0.3, 1.5], [0.4, 1.9], [0.6, 2.0]), -5.0),
        "almost clean": (*three([0.3, 0.9, 0.05, 1.2], [0.35, 1.0, 0.2, 1.9], [0.9, 1.7, 0.3, 2.0]), 6.0),
        "one direction": (*three([1.0], [2.0], [3.0]), -0.7),
    }


def healing_by_scores(v: Tensor, v_1: Tensor, v_2: Tensor, log_snr: float) -> tuple[Tensor, Tensor]:
    """From where the three scores lie at z = 1; the constant by bisection of the variance at the end."""
    q = 1 / torch.tensor(log_snr, dtype=torch.float64).exp()
    wanted, good, weak = (-1 / (variance + q) for variance in (v, v_1, v_2))
    low, high = torch.zeros_like(v), torch.full_like(v, 200.0)
    for _ in range(80):
        middle = (low + high) / 2
        too_wide = v_2 * (v_1 / v_2) ** middle > v
        low, high = torch.where(too_wide, middle, low), torch.where(too_wide, high, middle)
    return (wanted - weak) / (good - weak), low


def healing_wrongly(now=lambda right, v, v_1, v_2, q: right, constant=lambda right, v, v_1, v_2: right):
    """The right answer with one half changed."""

    def answer(v, v_1, v_2, log_snr):
        right = healing_by_scores(v, v_1, v_2, log_snr)
        return now(right[0], v, v_1, v_2, math.exp(-log_snr)), constant(right[1], v, v_1, v_2)

    return answer


# --- 19.4 ---------------------------------------------------------------------------------------------------


def pictures() -> dict[str, tuple]:
    """Cases of 19.4: two guesses (N, C, H, W), gamma, phi."""
    generator = torch.Generator().manual_seed(194)

    def two(*shape, apart=0.5):
        base, other = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        channels = 1 + torch.arange(shape[1], dtype=torch.float64)[None, :, None, None]
        return base * channels + apart * other, base * channels + 0.3

    return {
        "gamma = 3, phi = 0.7": (*two(3, 2, 4, 3), 3.0, 0.7),
        "gamma = 7.5, phi = 1": (*two(2, 3, 3, 5, apart=0.2), 7.5, 1.0),
        "gamma = 2, phi = 0: plain": (*two(2, 1, 3, 3), 2.0, 0.0),
        "gamma = -1, phi = 0.4": (*two(4, 2, 2, 3, apart=1.0), -1.0, 0.4),
        "gamma = 1, the guess with label": (*two(1, 2, 3, 4), 1.0, 0.6),
    }


def nearest_by_least_squares(eps_c, eps_u, gamma, phi, factor=None) -> tuple[Tensor, Tensor]:
    """Picture by picture; the length of what least squares leaves over."""
    scales, off = [], []
    for told, untold in zip(eps_c, eps_u, strict=True):
        guided = gamma * told + (1 - gamma) * untold
        ratio = (told.var() / guided.var()).sqrt() if factor is None else factor(told, guided)
        rest = (guided + phi * (ratio - 1) * guided - untold).flatten()[:, None]
        push = (told - untold).flatten()[:, None]
        scale = torch.linalg.lstsq(push, rest).solution
        scales.append(scale[0, 0])
        off.append((rest - push @ scale).norm() / push.norm())
    return torch.stack(scales), torch.stack(off)


def factor_of_rescaling(eps_c, eps_u, gamma, phi) -> Tensor:
    """r of each picture, (N,)."""
    guided = eps_u + gamma * (eps_c - eps_u)
    return phi * eps_c.flatten(1).std(1) / guided.flatten(1).std(1) + 1 - phi


def length_of_push(eps_c: Tensor, eps_u: Tensor) -> Tensor:
    """|eps_c - eps_u| of each picture, (N,)."""
    return (eps_c - eps_u).flatten(1).norm(dim=1)


def in_one_batch(eps_c, eps_u, gamma, phi) -> tuple[Tensor, Tensor]:
    """One spread for the whole batch."""
    ratio = eps_c.std() / (eps_u + gamma * (eps_c - eps_u)).std()
    return nearest_by_least_squares(eps_c, eps_u, gamma, phi, lambda told, guided: ratio)


EXERCISES = [
    Exercise(
        number="19.1",
        title="the negative prompt pulls and pushes",
        cases=scales,
        truth=factors_by_elimination,
        mistakes=[
            Mistake(
                "both gamma",
                lambda gamma: (gamma, gamma),
                "at gamma = 1 the first library answers your prompt's guess. Is the negative prompt heard there?",
            ),
            Mistake("sign of b", lambda gamma: (gamma, 1 - gamma), "there is a minus before b already."),
            Mistake(
                "the other way round",
                lambda gamma: (gamma - 1, gamma),
                "at gamma = 1 the first library answers your prompt's guess. Which of the two factors must be 1 there?",
            ),
            Mistake(
                "w for gamma",
                lambda gamma: (gamma + 1, gamma),
                "these are the factors for w = gamma - 1. At gamma = 1 the answer is your prompt's guess.",
            ),
            Mistake(
                "no push",
                lambda gamma: (gamma, 0.0),
                "the first factor is right; the factors of the guess for no prompt must agree as well.",
            ),
        ],
    ),
    Exercise(
        number="19.2",
        title="the lambda of a push",
        cases=walks,
        truth=lam_by_steps,
        mistakes=[
            Mistake(
                "log-SNR not halved",
                lambda gamma, log_snr: gamma / (1 / (1 - (log_snr[:-1] - log_snr[1:]).exp())).mean(),
                "the log-SNR is the logarithm of alpha^2 / sigma^2. Which power stands in the equation?",
            ),
            Mistake(
                "mean of the shares",
                lambda gamma, log_snr: gamma * (1 - ((log_snr[:-1] - log_snr[1:]) / 2).exp()).mean(),
                "the mean of gamma over the steps was asked for: is the mean of inverses the inverse of the mean?",
            ),
            Mistake(
                "largest for mean",
                lambda gamma, log_snr: gamma / max(mean_scale_at_one(log_snr)),
                "this fixes the largest scale of the run. The mean was asked for.",
            ),
            Mistake(
                "mean scale for lambda",
                lambda gamma, log_snr: gamma * math.fsum(mean_scale_at_one(log_snr)) / (len(log_snr) - 1),
                "this is the mean scale at lambda = gamma. What was given, and what was asked for?",
            ),
            Mistake(
                "last step left out",
                lambda gamma, log_snr: lam_by_steps(gamma, log_snr[:-1]) if len(log_snr) > 2 else gamma,
                "the step to clean data counts as well. What is the scale there?",
            ),
        ],
    ),
    Exercise(
        number="19.3",
        title="healed from measured variances",
        cases=variances,
        truth=healing_by_scores,
        mistakes=[
            Mistake(
                "signal over noise",
                lambda v, v_1, v_2, log_snr: healing_wrongly()(v, v_1, v_2, -log_snr),
                "q is noise over signal. Does it grow with the log-SNR?",
            ),
            Mistake(
                "halved",
                lambda v, v_1, v_2, log_snr: healing_wrongly()(v, v_1, v_2, log_snr / 2),
                "the log-SNR is that of squares, and so is q.",
            ),
            Mistake(
                "the other model's blur",
                healing_wrongly(now=lambda right, v, v_1, v_2, q: right * (v_1 - v) / (v_2 - v)),
                "the second half is right. Far in the noise the scale must be b_2 / (b_2 - b_1).",
            ),
            Mistake(
                "variance for variance and blur",
                healing_wrongly(now=lambda right, v, v_1, v_2, q: (v_2 - v) / (v_2 - v_1) + 0 * right),
                "this is the limit far in the noise. Near the data more is needed.",
            ),
            Mistake(
                "variances for blurs",
                healing_wrongly(now=lambda right, v, v_1, v_2, q: v_2 * (v + v_1 + q) / ((v_2 - v_1) * (v + q))),
                "the second half is right. v_1 and v_2 are what the models have in all: how much of it is blur?",
            ),
            Mistake(
                "linear for geometric",
                healing_wrongly(constant=lambda right, v, v_1, v_2: (v_2 - v) / (v_2 - v_1)),
                "the first half is right. The end has v_1 and v_2 in powers, not in a sum.",
            ),
            Mistake(
                "upside down",
                healing_wrongly(constant=lambda right, v, v_1, v_2: 1 / right),
                "the first half is right. Must the constant scale be above or below 1?",
            ),
        ],
    ),
    Exercise(
        number="19.4",
        title="the scale of a rescaled step",
        cases=pictures,
        truth=nearest_by_least_squares,
        mistakes=[
            Mistake(
                "factor times gamma",
                lambda c, u, gamma, phi: (
                    factor_of_rescaling(c, u, gamma, phi) * gamma,
                    nearest_by_least_squares(c, u, gamma, phi)[1],
                ),
                "the second half is right. The noise that is not taken away has a part along the push as well.",
            ),
            Mistake(
                "upside down",
                lambda c, u, gamma, phi: nearest_by_least_squares(
                    c, u, gamma, phi, lambda told, guided: guided.std() / told.std()
                ),
                "rescaling brings the guided guess back to the spread of the one with label. Which stands above?",
            ),
            Mistake(
                "phi for 1 - phi",
                lambda c, u, gamma, phi: nearest_by_least_squares(c, u, gamma, 1 - phi),
                "at phi = 0 it is plain guidance.",
            ),
            Mistake(
                "one spread for the batch",
                in_one_batch,
                "each picture has its own factor.",
            ),
            Mistake(
                "a length, not a share",
                lambda c, u, gamma, phi: (
                    nearest_by_least_squares(c, u, gamma, phi)[0],
                    nearest_by_least_squares(c, u, gamma, phi)[1] * length_of_push(c, u),
                ),
                "the first half is right. The way off the line was asked for as a share of the difference's length.",
            ),
            Mistake(
                "a square, not a length",
                lambda c, u, gamma, phi: (
                    nearest_by_least_squares(c, u, gamma, phi)[0],
                    nearest_by_least_squares(c, u, gamma, phi)[1] ** 2,
                ),
                "the first half is right. Lengths were asked for, not their squares.",
            ),
        ],
    ),
]
