"""Exercises of chapter 06, Bayes' rule for a step and what it costs to follow it exactly."""

import math

import torch
from torch import Tensor

from difflesson.divergence import hermite
from difflesson.exercises import Exercise, Mistake

# --- 6.1 ----------------------------------------------------------------------------------------------------


def coins() -> dict[str, tuple]:
    """Cases of 6.1: p(y | x_t), p(y) and the bound."""
    return {
        "a rare label": (0.02, 0.1, 0.5),
        "a loose bound": (0.3, 0.25, 0.99),
        "a tight bound": (0.15, 0.05, 0.2),
        "a point surer than the label": (0.6, 0.08, 0.7),
    }


def proposals_by_counting(chance_at_x_t: float, chance_of_label: float, bound: float) -> tuple[float, float]:
    """The mean of a geometric number, summed term by term; and over two kinds of points, weighed by Bayes' rule."""

    def throws(chance):
        keep, number, left, total = chance / bound, 1, 1.0, 0.0
        while left > 1e-16:
            total += number * left * keep
            left, number = left * (1 - keep), number + 1
        return total

    kinds = ((0.5, 0.5 * chance_of_label), (0.5, 1.5 * chance_of_label))  # share of the points, p(y | x_t)
    kinds_given_label = [(share * chance / chance_of_label, chance) for share, chance in kinds]
    return throws(chance_at_x_t), sum(share * throws(chance) for share, chance in kinds_given_label)


# --- 6.2 ----------------------------------------------------------------------------------------------------


def tables() -> dict[str, tuple]:
    """Cases of 6.2: p(x_s, y) and p(x_t | x_s), random tables."""
    generator = torch.Generator().manual_seed(6)

    def table(n, m, classes):
        start = torch.rand(n, classes, generator=generator, dtype=torch.float64) + 0.05
        move = torch.rand(n, m, generator=generator, dtype=torch.float64) + 0.05
        return start / start.sum(), move / move.sum(1, keepdim=True)

    return {"three states, two classes": table(3, 4, 2), "five states, three classes": table(5, 2, 3),
            "as many classes as states": table(3, 3, 3)}  # fmt: skip


def step_by_loops(start: Tensor, move: Tensor) -> Tensor:
    """The model's step times p(y | x_s) / p(y | x_t), entry by entry."""
    (n, classes), m = start.shape, move.shape[1]
    answer = torch.zeros(n, m, classes, dtype=torch.float64)
    for j in range(m):
        seen = sum(float(start[i].sum() * move[i, j]) for i in range(n))
        for y in range(classes):
            chance_at_t = sum(float(start[i, y] * move[i, j]) for i in range(n)) / seen
            for i in range(n):
                step = float(start[i].sum() * move[i, j]) / seen
                answer[i, j, y] = step * float(start[i, y] / start[i].sum()) / chance_at_t
    return answer


def joint_table(start: Tensor, move: Tensor) -> Tensor:
    return start[:, None, :] * move[:, :, None]


# --- 6.3 ----------------------------------------------------------------------------------------------------


def noisy_pairs() -> dict[str, tuple]:
    """Cases of 6.3: p(y | x_s), both points, alpha_{t|s} and a variance for each class."""
    generator = torch.Generator().manual_seed(63)

    def case(count, dim, classes, alpha_ts, v):
        chances = torch.rand(count, classes, generator=generator, dtype=torch.float64) + 0.1
        x_s = torch.randn(count, dim, generator=generator, dtype=torch.float64)
        noise = torch.randn(count, dim, generator=generator, dtype=torch.float64) * 0.7
        return chances / chances.sum(1, keepdim=True), x_s, alpha_ts * x_s + noise, alpha_ts, torch.tensor(v).double()

    return {
        "two classes in the plane": case(4, 2, 2, 0.8, [0.36, 0.9]),
        "three classes on the line": case(3, 1, 3, 0.6, [0.3, 0.8, 0.5]),
        "two classes in five dimensions": case(4, 5, 2, 0.9, [0.5, 0.3]),
        "one variance for all": case(2, 2, 2, 0.7, [0.5, 0.5]),
    }


def pair_by_densities(chances: Tensor, x_s: Tensor, x_t: Tensor, alpha_ts: float, v: Tensor) -> Tensor:
    """Prior times a product of one-dimensional densities, normalised."""
    joint = torch.ones_like(chances)
    for y, var in enumerate(v):
        normal = torch.distributions.Normal(alpha_ts * x_s, var.sqrt())
        joint[:, y] = chances[:, y] * normal.log_prob(x_t).exp().prod(1)
    return joint / joint.sum(1, keepdim=True)


def pair(chances, x_s, x_t, alpha_ts, v, *, dim=None, half=0.5, squared=True, constant=1.0, prior=1.0):
    """The solution with parts that can be got wrong."""
    away = (x_t - alpha_ts * x_s).square().sum(1, keepdim=True)
    away = away if squared else away.sqrt()
    dim = x_s.shape[1] if dim is None else dim
    return (prior * chances.log() - half * away / v - constant * dim / 2 * v.log()).softmax(1)


# --- 6.4 ----------------------------------------------------------------------------------------------------


def budgets() -> dict[str, tuple]:
    """Cases of 6.4: the exponent of the path, evaluations, the smallest share; none near a whole number."""
    return {
        "half of the points": (12.3, 400, 0.5),
        "nine points in ten": (3.7, 250, 0.9),
        "a label of many bits": (95.0, 130, 0.6),
        "much to spend, few points needed": (7.1, 1000, 0.2),
    }


def proposals_by_search(path_price: float, budget: int, share: float) -> float:
    """Try one number after the other."""
    count = 0
    while math.exp(-path_price / (budget / (count + 1))) >= share:
        count += 1
    return float(count)


# --- 6.5 ----------------------------------------------------------------------------------------------------


def slopes() -> dict[str, tuple]:
    """Cases of 6.5: a slope (d,) and the number of proposals."""
    g = torch.tensor([0.7, -1.1], dtype=torch.float64)
    return {
        "one proposal": (g, 1),
        "two proposals": (g.clone(), 2),
        "three proposals, in three dimensions": (torch.tensor([2.0, 0.5, -1.5]).double(), 3),
        "two proposals, on the line": (torch.tensor([-3.0]).double(), 2),
        "three proposals, in the plane": (3 * g, 3),
    }


def nats_by_quadrature(g: Tensor, count: int) -> float:
    """KL(exact || one of N) over beta for a very short step, along the slope; across it the two laws are the same.

    In units of sqrt(beta) the slope is a = sqrt(beta) |g|. The exact step over the proposal is exp(a z - a^2 / 2), the
    law of the chosen one over the proposal N E[w / (w + the others' w)].
    """
    a = 0.01
    z, weights = hermite(24, 1)
    total = torch.exp(a * z)  # (M, 1): own weight, and then the others' added
    if count > 1:
        others, other_weights = hermite(24, count - 1)
        total = total + torch.exp(a * others).sum(1)  # (M, M')
        chosen = count * ((torch.exp(a * z) / total) * other_weights).sum(1)
    else:
        chosen = torch.ones(len(z), dtype=torch.float64)
    log_exact = a * z[:, 0] - a**2 / 2
    return float((weights * log_exact.exp() * (log_exact - chosen.log())).sum() / a**2 * g.square().sum())


EXERCISES = [
    Exercise(
        number="6.1",
        title="a bound below one saves that factor, everywhere",
        cases=coins,
        truth=proposals_by_counting,
        mistakes=[
            Mistake(
                "the bound forgotten",
                lambda chance, label, bound: (1 / chance, 1 / label),
                "this is the price with M = 1. With which probability do you keep a proposal now, on average?",
            ),
            Mistake(
                "divided by the bound",
                lambda chance, label, bound: (1 / chance / bound, 1 / label / bound),
                "you keep more than before, so you need fewer. Which way does M enter?",
            ),
            Mistake(
                "the share for the number",
                lambda chance, label, bound: (chance / bound, label / bound),
                "these are shares. How many proposals is one kept in so many?",
            ),
            Mistake(
                "the price at the point for both",
                lambda chance, label, bound: (bound / chance, bound / chance),
                "the second number is an average over points drawn from p_t(x | y). What is left of p(y | x_t) then?",
            ),
            Mistake(
                "points drawn without the label",
                lambda chance, label, bound: (bound / chance, bound / label**2),
                "p(y) enters once: the points of an exact path are not those of the model.",
            ),
        ],
    ),
    Exercise(
        number="6.2",
        title="from one table of joint probabilities comes the step, without any assumption but blind noise",
        cases=tables,
        truth=step_by_loops,
        mistakes=[
            Mistake(
                "not divided",
                joint_table,
                "this is a joint probability. For which index must the answer sum to one?",
            ),
            Mistake(
                "divided over all but the label",
                lambda start, move: joint_table(start, move) / joint_table(start, move).sum((0, 1)),
                "x_t is known. Your answer is p(x_s, x_t | y).",
            ),
            Mistake(
                "the label forgotten in the condition",
                lambda start, move: joint_table(start, move) / joint_table(start, move).sum((0, 2))[:, None],
                "your answer is p(x_s, y | x_t): it sums to one over states and labels together.",
            ),
            Mistake(
                "the step backwards in time",
                lambda start, move: joint_table(start, move) / joint_table(start, move).sum(1, keepdim=True),
                "you divided by the sum over x_t: this is the probability of the noisier state.",
            ),
            Mistake(
                "the classifier alone",
                lambda start, move: joint_table(start, move) / joint_table(start, move).sum(2, keepdim=True),
                "you divided by the sum over labels: this is p(y | x_s, x_t), a classifier.",
            ),
            Mistake(
                "the model's step",
                lambda start, move: (lambda j: (j / j.sum(0))[:, :, None].expand(*j.shape, start.shape[1]))(
                    start.sum(1)[:, None] * move
                ),
                "this is p(x_s | x_t). Where does the label come in?",
            ),
        ],
    ),
    Exercise(
        number="6.3",
        title="the classifier of pairs reads the class off the size of the noise",
        cases=noisy_pairs,
        truth=pair_by_densities,
        mistakes=[
            Mistake(
                "the noise ignored",
                lambda chances, x_s, x_t, alpha_ts, v: chances,
                "this is p(y | x_s): right for blind noise only. What does the noisier point add?",
            ),
            Mistake(
                "the prior forgotten",
                lambda *a: pair(*a, prior=0.0),
                "you used the noise alone. What did the cleaner point say about the class?",
            ),
            Mistake(
                "the normaliser forgotten",
                lambda *a: pair(*a, constant=0.0),
                "a wide Gaussian is lower at its centre: its constant depends on the class.",
            ),
            Mistake(
                "the normaliser of one dimension",
                lambda *a: pair(*a, dim=1),
                "right on the line. How often does the constant stand in d dimensions?",
            ),
            Mistake(
                "one half forgotten",
                lambda *a: pair(*a, half=1.0),
                "look at the exponent of a Gaussian again.",
            ),
            Mistake(
                "standard deviation for variance",
                lambda chances, x_s, x_t, alpha_ts, v: pair(chances, x_s, x_t, alpha_ts, v.square()),
                "v holds variances, not standard deviations.",
            ),
            Mistake(
                "the shrinking forgotten",
                lambda chances, x_s, x_t, alpha_ts, v: pair(chances, x_s, x_t, 1.0, v),
                "the noisier point is centred at a shrunken x_s.",
            ),
            Mistake(
                "distance for its square",
                lambda *a: pair(*a, squared=False),
                "the exponent of a Gaussian has the square of the distance.",
            ),
            Mistake(
                "not normalised over the classes",
                lambda chances, x_s, x_t, alpha_ts, v: (
                    chances.log()
                    - (x_t - alpha_ts * x_s).square().sum(1, keepdim=True) / (2 * v)
                    - x_s.shape[1] / 2 * (2 * math.pi * v).log()
                ).exp(),
                "this is p(y, x_t | x_s). What must the probabilities of the classes sum to?",
            ),
        ],
    ),
    Exercise(
        number="6.4",
        title="more proposals mean longer steps, and the effective share says where to stop",
        cases=budgets,
        truth=proposals_by_search,
        mistakes=[
            Mistake(
                "rounded up",
                lambda price, budget, share: float(math.ceil(-math.log(share) * budget / price)),
                "one too many: with this number the share is below the limit.",
            ),
            Mistake(
                "rounded to the nearest",
                lambda price, budget, share: float(round(-math.log(share) * budget / price)),
                "in some cases one too many. Which way is safe?",
            ),
            Mistake(
                "logarithm to the base two",
                lambda price, budget, share: float(math.floor(-math.log2(share) * budget / price)),
                "the exponent is that of e.",
            ),
            Mistake(
                "the number of steps",
                lambda price, budget, share: float(math.ceil(-price / math.log(share))),
                "this is the smallest T. How many proposals does the budget leave for each step?",
            ),
            Mistake(
                "to first order",
                lambda price, budget, share: float(math.floor((1 - share) * budget / price)),
                "exp(-x) is 1 - x for small x only.",
            ),
            Mistake(
                "the share that is lost",
                lambda price, budget, share: float(math.floor(-math.log(1 - share) * budget / price)),
                "`share` is what must be kept, not what may be lost.",
            ),
        ],
    ),
    Exercise(
        number="6.5",
        title="a path costs the information in the label over N^2, and doubling N saves three quarters of it",
        cases=slopes,
        truth=nats_by_quadrature,
        mistakes=[
            Mistake(
                "the part that is there",
                lambda g, count: (1 - 1 / count) ** 2 * g.square().sum() / 2,
                "at N = 1 all of the guidance is missing, and the price must be highest. Which part is missing at N?",
            ),
            Mistake(
                "not squared",
                lambda g, count: g.square().sum() / (2 * count),
                "1/N of the shift is missing. A divergence is quadratic in the shift.",
            ),
            Mistake(
                "one half forgotten",
                lambda g, count: g.square().sum() / count**2,
                "twice too large: look at the divergence of two bells again.",
            ),
            Mistake(
                "the length for its square",
                lambda g, count: g.norm() / (2 * count**2),
                "the slope enters through the distance of two means. In which power?",
            ),
            Mistake(
                "a mean over the coordinates",
                lambda g, count: g.square().mean() / (2 * count**2),
                "right on the line. Do the coordinates' divergences add up, or average?",
            ),
            Mistake(
                "the sum of the slope",
                lambda g, count: g.sum() ** 2 / (2 * count**2),
                "right on the line. Turning the axes must not change a divergence.",
            ),
            Mistake(
                "the exponent of the effective share",
                lambda g, count: g.square().sum(),
                "this is what the effective share loses. The answer depends on N.",
            ),
            Mistake(
                "N - 1 for N",
                lambda g, count: g.square().sum() / (2 * max(count - 1, 1) ** 2),
                "with one proposal there is no guidance, with two there is half of it. What is missing then?",
            ),
        ],
        tolerance=1e-3,
    ),
]
