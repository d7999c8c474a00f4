"""Exercises of chapter 15, classifier-free guidance on digits."""

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from difflesson.exercises import Exercise, Mistake

F64 = torch.float64

# --- 15.1 ---------------------------------------------------------------------------------------------------


def bills() -> dict[str, tuple]:
    """Cases of 15.1: the scales at the times asked."""
    return {
        "never guided": ([1.0] * 5,),
        "always guided": ([3.0] * 7,),
        "only in the middle": ([1.0, 1.0, 4.0, 4.0, 4.0, 1.0],),
        "no label, then away from it": ([0.0, 0.0, 0.0, -1.0, 0.5],),
        "one time": ([0.0],),
    }


def answers_that_count(gammas: list[float]) -> int:
    """The answers whose weights in gamma cond + (1 - gamma) uncond are not 0."""
    return sum((gamma != 0) + (1 - gamma != 0) for gamma in gammas)


# --- 15.2 ---------------------------------------------------------------------------------------------------


def answers() -> dict[str, tuple]:
    """Cases of 15.2: answers of a judge and labels, unequally many of each; also some that are all alike."""
    generator = torch.Generator().manual_seed(152)

    def judged(count: int, classes: int, sure: float) -> Tensor:
        return (sure * torch.randn(count, classes, generator=generator, dtype=F64)).log_softmax(1)

    alike = judged(1, 3, 1.0).expand(4, 3).contiguous()
    return {
        "three classes, unequally often": (judged(9, 3, 1.0), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])),
        "sure answers": (judged(6, 5, 4.0), torch.tensor([4, 4, 1, 1, 1, 4])),
        "all answers alike": (alike, torch.tensor([0, 0, 1, 1])),
        "each label once": (judged(3, 4, 2.0), torch.tensor([2, 0, 3])),
    }


def score_by_entropies(log_probs: Tensor, labels: Tensor) -> float:
    """exp of the mean of (entropy of the class's mean answer - entropy of the answer)."""
    total = 0.0
    for y, answer in zip(labels.tolist(), log_probs.exp(), strict=True):
        mean = log_probs.exp()[labels == y].mean(0)
        total += float(torch.special.entr(mean).sum() - torch.special.entr(answer).sum())
    return math.exp(total / len(labels))


def divergences(log_probs: Tensor, mean: Tensor) -> Tensor:
    """Of each answer (N, classes) from a mean answer (classes,), in nats, (N,)."""
    return (log_probs.exp() * (log_probs - mean.log())).sum(1)


def by_label(log_probs: Tensor, labels: Tensor, mean_of=lambda part: part.exp().mean(0)) -> Tensor:
    """The divergence of each answer from the mean of its label, label by label, (labels,) lists of numbers."""
    return [divergences(log_probs[labels == y], mean_of(log_probs[labels == y])) for y in labels.unique()]


# --- 15.3 and 15.4 ------------------------------------------------------------------------------------------


def beliefs() -> dict[str, tuple]:
    """Cases of 15.3: C, U, and what is believed of them."""
    return {
        "the class too wide, all data rightly": (0.5, 3.0, 0.6, 3.0),
        "all data too wide, the class rightly": (0.5, 3.0, 0.5, 3.6),
        "both too wide": (0.4, 2.0, 0.5, 2.2),
        "the class too narrow": (0.5, 3.0, 0.4, 2.7),
        "nothing wrong": (0.7, 1.9, 0.7, 1.9),
        "all data believed narrower than the class": (0.5, 3.0, 0.8, 0.6),
    }


def scale_by_search(C: float, U: float, C_hat: float, U_hat: float) -> float:
    """The equation of the noiseless sampler integrated over noise levels; then the scale whose variance is C.

    d log(variance) / dq is linear in gamma: gamma / (C_hat + q) + (1 - gamma) / (U_hat + q).
    """
    log_q = torch.linspace(-25, 25, 20_001, dtype=F64)
    q = log_q.exp()
    told, untold = (torch.trapezoid(q / (v + q) - q / (1 + q), log_q) for v in (C_hat, U_hat))
    return float((math.log(C) + untold) / (untold - told))


def directions() -> dict[str, tuple]:
    """Cases of 15.4: C, C_hat, U, (d,) each."""
    return {
        "two directions": (torch.tensor([0.5, 0.2]).double(), torch.tensor([0.6, 0.3]).double(),
                           torch.tensor([3.0, 2.0]).double()),
        "one direction": (torch.tensor([0.5]).double(), torch.tensor([0.7]).double(), torch.tensor([2.5]).double()),
        "one of three too narrow": (torch.tensor([0.5, 0.3, 1.0]).double(), torch.tensor([0.8, 0.25, 1.1]).double(),
                                    torch.tensor([3.0, 1.5, 4.0]).double()),
        "nothing wrong": (torch.tensor([0.5, 0.2]).double(), torch.tensor([0.5, 0.2]).double(),
                          torch.tensor([1.0, 3.0]).double()),
        "both too narrow": (torch.tensor([0.5, 0.2]).double(), torch.tensor([0.4, 0.1]).double(),
                            torch.tensor([3.0, 2.0]).double()),
        "hardly told": (torch.tensor([0.5]).double(), torch.tensor([2.5]).double(), torch.tensor([3.0]).double()),
    }  # fmt: skip


def one_scale_by_slope(C: Tensor, C_hat: Tensor, U: Tensor) -> float:
    """SciPy's bounded search of the distance of Gaussians, by their deviations."""
    c, told, untold = (v.sqrt().numpy() for v in (C, C_hat, U))

    def distance(gamma: float) -> float:
        return float(((told**gamma * untold ** (1 - gamma) - c) ** 2).sum())

    return float(minimize_scalar(distance, bounds=(0, 10), method="bounded", options={"xatol": 1e-9}).x)


def searched(distance) -> float:
    """The scale in [0, 10] at which a distance is least."""
    return float(minimize_scalar(distance, bounds=(0, 10), method="bounded", options={"xatol": 1e-9}).x)


def each_scale(C: Tensor, C_hat: Tensor, U: Tensor) -> Tensor:
    """The best scale of each coordinate by itself."""
    return (U / C).log() / (U / C_hat).log()


EXERCISES = [
    Exercise(
        "15.1",
        "an answer without weight need not be asked for; all others cost one evaluation each",
        bills,
        answers_that_count,
        [
            Mistake("always two", lambda gammas: 2 * len(gammas), "at some scales one of the two has no weight."),
            Mistake("one a time", lambda gammas: len(gammas), "at most scales both answers are needed."),
            Mistake("0 guided", lambda g: sum(1 if x == 1 else 2 for x in g),
                    "at gamma = 0, does the answer with the label count?"),
            Mistake("1 guided", lambda g: sum(1 if x == 0 else 2 for x in g),
                    "at gamma = 1, what is the weight of the answer without the label?"),
            Mistake("only above 1", lambda g: sum(2 if x > 1 else 1 for x in g),
                    "below 1, and below 0, which of the two answers has no weight?"),
            Mistake("the guided ones alone", lambda g: sum(x not in (0, 1) for x in g),
                    "each time costs at least one evaluation."),
        ],
    ),
    Exercise(
        "15.2",
        "compared within its label, a judge's answer tells of variety that the Inception Score does not see",
        answers,
        score_by_entropies,
        [
            Mistake("over all samples", lambda p, y: divergences(p, p.exp().mean(0)).mean().exp(),
                    "that is the Inception Score itself: with which mean is each answer to be compared?"),
            Mistake("without the exponential", lambda p, y: torch.cat(by_label(p, y)).mean(),
                    "right up to the last step: the score is not a divergence but its ..."),
            Mistake("mean over labels", lambda p, y: torch.stack([d.mean() for d in by_label(p, y)]).mean().exp(),
                    "labels that come more often must count more: the mean is over samples."),
            Mistake("mean of exponentials",
                    lambda p, y: torch.stack([d.mean().exp() for d in by_label(p, y)]).mean(),
                    "first the mean over all samples, then one exponential."),
            Mistake("exponential of each", lambda p, y: torch.cat(by_label(p, y)).exp().mean(),
                    "first the mean over all samples, then one exponential."),
            Mistake("mean of logarithms",
                    lambda p, y: torch.cat(by_label(p, y, lambda part: part.mean(0).softmax(0))).mean().exp(),
                    "the mean answer is a mean of probabilities, not of their logarithms."),
            Mistake("the other way round",
                    lambda p, y: torch.cat([
                        (p[y == k].exp().mean(0) * (p[y == k].exp().mean(0).log() - p[y == k])).sum(1)
                        for k in y.unique()]).mean().exp(),
                    "which of the two distributions stands in front of the logarithm?"),
        ],
    ),
    Exercise(
        "15.3",
        "the scale of least distance is a ratio of logarithms of what is believed, and of one thing that is true",
        beliefs,
        scale_by_search,
        [
            Mistake("the true U", lambda C, U, c, u: math.log(U / C) / math.log(U / c) if U != c else 0.0,
                    "the sampler follows what is believed: does it know the true U?"),
            Mistake("upside down", lambda C, U, c, u: math.log(u / c) / math.log(u / C),
                    "at which scale is C_hat^gamma U_hat^(1 - gamma) equal to C? Solve for gamma once more."),
            Mistake("without logarithms", lambda C, U, c, u: (u - C) / (u - c),
                    "the variance is a product of powers: what is linear in gamma?"),
            Mistake("inverse variances", lambda C, U, c, u: (1 / C - 1 / u) / (1 / c - 1 / u),
                    "that is for the density that was ordered; what does a sampler without noise give?"),
            Mistake("w", lambda C, U, c, u: math.log(u / C) / math.log(u / c) - 1, "nearly: which scale is 1 off?"),
            Mistake("as if nothing were wrong", lambda C, U, c, u: 1.0, "only if C_hat = C is it 1."),
            Mistake("true ones for believed ones", lambda C, U, c, u: math.log(U / c) / math.log(U / C),
                    "what is true and what is believed are exchanged."),
        ],
    ),
    Exercise(
        "15.4",
        "one dial for many directions is a compromise, and the wide directions have most to say",
        directions,
        one_scale_by_slope,
        [
            Mistake("mean of the scales", lambda C, c, U: float(each_scale(C, c, U).mean()),
                    "each direction has a best scale, but a wide one errs by more: minimise the sum."),
            Mistake("summed logarithms",
                    lambda C, c, U: float((U / C).log().sum() / (U / c).log().sum()),
                    "that makes the volumes equal; the distance is a sum over directions."),
            Mistake("summed variances",
                    lambda C, c, U: float((U.sum() / C.sum()).log() / (U.sum() / c.sum()).log()),
                    "the directions cannot be added before the powers are taken."),
            Mistake("variances for deviations",
                    lambda C, c, U: searched(lambda g: float((c**g * U ** (1 - g) - C).square().sum())),
                    "the distance compares standard deviations, not variances."),
            Mistake("inverse variances",
                    lambda C, c, U: searched(lambda g: float(
                        ((g / c + (1 - g) / U).clamp_min(1e-3).rsqrt() - C.sqrt()).square().sum())),
                    "that is for the density that was ordered; what does a sampler without noise give?"),
        ],
        tolerance=1e-4,
    ),
]  # fmt: skip
