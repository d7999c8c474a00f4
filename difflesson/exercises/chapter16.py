"""Exercises of chapter 16, digits by words and by style."""

import math

import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake

F64 = torch.float64

# --- 16.1 ---------------------------------------------------------------------------------------------------


def temperatures() -> dict[str, tuple]:
    """Cases of 16.1: temperatures, and two cosines or None."""
    return {f"tau = {tau:g}": (tau,) for tau in (0.05, 0.2, 0.5, 1.0, 2.0)}


def largest_by_search(tau: float) -> float:
    """The largest ratio of two exponentials of cosines over tau, over a grid of pairs of angles."""
    angles = torch.linspace(0, math.pi, 181, dtype=F64)
    weights = (angles.cos() / tau).exp()
    return float((weights[:, None] / weights[None, :]).max())


# --- 16.2 ---------------------------------------------------------------------------------------------------


def posteriors() -> dict[str, tuple]:
    """Cases of 16.2: chances of each thing's word given the picture, their shares, and what is said; (k,) each."""

    def case(chance: list[float], share: list[float], said: list[bool]) -> tuple:
        return torch.tensor(chance, dtype=F64), torch.tensor(share, dtype=F64), torch.tensor(said)

    return {
        "all said": case([0.9, 0.5, 0.2], [0.1, 0.3, 0.4], [True, True, True]),
        "two of four": case([0.9, 0.5, 0.2, 0.7], [0.1, 0.3, 0.4, 0.2], [True, False, False, True]),
        "nothing said": case([0.9, 0.5], [0.1, 0.3], [False, False]),
        "one, and unlikely": case([0.01, 0.99], [0.3, 0.3], [True, False]),
        "as likely as ever": case([0.3, 0.4, 0.8], [0.3, 0.4, 0.5], [True, True, False]),
    }


def similarity_by_enumeration(chance: Tensor, share: Tensor, said: Tensor) -> float:
    """log of p(sentence holds | x) / p(sentence holds), over every pattern of true and false words."""
    count = len(said)
    here, ever = 0.0, 0.0
    for pattern in range(2**count):
        true = [bool(pattern >> k & 1) for k in range(count)]
        if all(t or not s for t, s in zip(true, said.tolist(), strict=True)):
            here += math.prod(float(c if t else 1 - c) for c, t in zip(chance, true, strict=True))
            ever += math.prod(float(c if t else 1 - c) for c, t in zip(share, true, strict=True))
    return math.log(here / ever)


def chosen(values: Tensor, said: Tensor) -> float:
    """The sum over what is said."""
    return float(values[said].sum())


# --- 16.3 ---------------------------------------------------------------------------------------------------


def tables() -> dict[str, tuple]:
    """Cases of 16.3: p(c | x) (pictures, sentences), p(c), and the law q the wrong sentences come from."""
    generator = torch.Generator().manual_seed(164)

    def law(*shape: int) -> Tensor:
        table = torch.rand(*shape, generator=generator, dtype=F64) + 0.1
        return table / table.sum(-1, keepdim=True)

    given, prior = law(3, 4), torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)
    return {
        "wrong ones as they come": (given, prior, prior),
        "all equally often": (given, prior, torch.full((4,), 0.25, dtype=F64)),
        "the rare ones mostly": (given, prior, torch.tensor([0.1, 0.1, 0.2, 0.6], dtype=F64)),
        "two sentences": (law(2, 2), law(2), law(2)),
    }


def learned_by_descent(given: Tensor, prior: Tensor, q: Tensor) -> Tensor:
    """Newton's steps on the exact loss of one right sentence beside one wrong one; the first column made 0."""
    count = given.shape[1]
    answers = []
    for row in given:
        f = torch.zeros(count, dtype=F64)
        for _ in range(50):
            g = f.clone().requires_grad_()
            loss = (row[:, None] * q[None, :] * (torch.logaddexp(g[:, None], g[None, :]) - g[:, None])).sum()
            (slope,) = torch.autograd.grad(loss, g, create_graph=True)
            hessian = torch.stack([torch.autograd.grad(one, g, retain_graph=True)[0] for one in slope])
            step = torch.linalg.lstsq(hessian + 1e-12, slope.detach()[:, None]).solution[:, 0]
            f = f - step.clamp(-1, 1)
        answers.append(f - f[0])
    return torch.stack(answers)


def first_is_0(values: Tensor) -> Tensor:
    """With the first column made 0."""
    return values - values[:, :1]


# --- 16.4 ---------------------------------------------------------------------------------------------------


def stretches() -> dict[str, tuple]:
    """Cases of 16.4: slant, breadth; then u becomes a u + k v, and v becomes c v."""
    return {
        "a shear alone": (0.2, 3.0, 1.0, 0.3, 1.0),
        "nothing": (-0.1, 2.0, 1.0, 0.0, 1.0),
        "twice as broad": (0.25, 3.5, 2.0, 0.0, 1.0),
        "half as high": (0.25, 3.5, 1.0, 0.0, 0.5),
        "all at once": (-0.3, 1.5, 1.4, 0.2, 0.7),
        "mirrored": (0.4, 2.5, -1.0, 0.0, 1.0),
        "sheared to the left": (0.2, 3.0, 1.2, -0.5, 0.8),
    }


def by_grains(s: float, b: float, a: float, k: float, c: float) -> tuple[float, float]:
    """Four grains that have this slant and breadth, moved; measured again by a regression."""
    v = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=F64) * 1.7
    u = s * v + b * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=F64)
    u, v = a * u + k * v, c * v
    slope = float((u * v).sum() / v.square().sum())
    return slope, float((u - slope * v).square().mean().sqrt())


EXERCISES = [
    Exercise(
        "16.1",
        "the largest ratio: one cosine is 1, the other -1",
        temperatures,
        largest_by_search,
        [
            Mistake("from 0 to 1", lambda tau: math.exp(1 / tau), "how small can a cosine be?"),
            Mistake("tau on top", lambda tau: math.exp(2 * tau), "a small temperature makes the softmax sure."),
            Mistake(
                "not exponentiated", lambda tau: 2 / tau, "these are nats; the question asks for a ratio of chances."
            ),
        ],
    ),
    Exercise(
        "16.2",
        "logarithms of the ratio, summed over what is said",
        posteriors,
        similarity_by_enumeration,
        [
            Mistake(
                "unsaid words counted", lambda c, s, said: float((c / s).log().sum()), "what is unsaid is left open."
            ),
            Mistake(
                "without the shares",
                lambda c, s, said: chosen(c.log(), said),
                "what would the best similarity be for a picture one knows nothing of?",
            ),
            Mistake(
                "no logarithm", lambda c, s, said: math.exp(chosen((c / s).log(), said)), "a similarity is a logarithm."
            ),
            Mistake(
                "upside down",
                lambda c, s, said: chosen((s / c).log(), said),
                "a likely word makes the similarity larger.",
            ),
        ],
    ),
    Exercise(
        "16.3",
        "the chance that a place is the right one is proportional to p(c | x) over the law of the wrong ones",
        tables,
        learned_by_descent,
        [
            Mistake(
                "the prior of the data",
                lambda given, prior, q: first_is_0((given / prior).log()),
                "the wrong sentences in the batch come from q.",
            ),
            Mistake(
                "no prior",
                lambda given, prior, q: first_is_0(given.log()),
                "a sentence that often comes up as a wrong one needs more evidence.",
            ),
            Mistake(
                "q on top",
                lambda given, prior, q: first_is_0((given * q).log()),
                "often among the wrong ones: is that for it or against it?",
            ),
            Mistake(
                "both priors",
                lambda given, prior, q: first_is_0((given * prior / q).log()),
                "the right sentence comes from p(c | x), which has the prior in it.",
            ),
        ],
    ),
    Exercise(
        "16.4",
        "u and v enter the covariance once each, v the variance twice; what is left scales with u",
        stretches,
        by_grains,
        [
            Mistake("the shear alone", lambda s, b, a, k, c: (s + k, b), "what do a and c do to the covariance?"),
            Mistake(
                "height forgotten",
                lambda s, b, a, k, c: (a * s + k, abs(a) * b),
                "v is stretched as well: it stands below.",
            ),
            Mistake(
                "height once too often",
                lambda s, b, a, k, c: ((a * s + k) / c**2, abs(a) * b),
                "the covariance has one v in it, the variance two.",
            ),
            Mistake("a negative breadth", lambda s, b, a, k, c: ((a * s + k) / c, a * b), "a deviation has no sign."),
            Mistake(
                "breadth sheared",
                lambda s, b, a, k, c: ((a * s + k) / c, abs(a * b + k)),
                "a shear leaves the breadth.",
            ),
        ],
    ),
]
