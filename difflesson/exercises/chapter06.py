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
    """`p(x_s, x_t, y)`, (n, m, classes), from `p(x_s, y)` (n, classes) and `p(x_t | x_s)` (n, m)."""
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


def pairs_of_proposals() -> dict[str, tuple]:
    """Cases of 6.4: the variance of the proposals, the slope and the power."""
    return {
        "a short step": (0.01, 1.5, 1.0),
        "a longer one": (0.4, 1.2, 1.0),
        "squares, and a long step": (0.9, 1.7, 2.0),
        "downhill": (0.5, -2.0, 2.5),
        "no slope": (0.7, 0.0, 3.0),
        "against the weights": (0.3, 1.0, -1.0),
    }


def chosen_by_counting(beta: float, g: float, power: float) -> float:
    """Both proposals on a grid of their own: the mean of the one that is drawn by its weight."""
    axis = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    share = torch.exp(-(axis**2) / 2)
    share, x = share / share.sum(), math.sqrt(beta) * axis
    first, second = x[:, None], x[None, :]
    mine, yours = (power * g * first).exp(), (power * g * second).exp()
    drawn = (mine * first + yours * second) / (mine + yours)
    return float(share @ drawn @ share)


def of_two(beta, g, power, *, variance=2.0, part=1.0, slope=1.0):
    """The solution with parts that can be got wrong."""
    nodes, weights = hermite(60, 1)
    u = math.sqrt(variance * beta) * nodes[:, 0]
    return float(weights @ (part * u * torch.sigmoid(slope * power * g * u)))


# --- 6.5 ----------------------------------------------------------------------------------------------------


def slopes() -> dict[str, tuple]:
    """Cases of 6.5: a slope (d,), the number of proposals and the power."""
    g = torch.tensor([0.7, -1.1], dtype=torch.float64)
    return {
        "one proposal": (g, 1, 1.0),
        "two proposals": (g.clone(), 2, 1.0),
        "three proposals, in three dimensions": (torch.tensor([2.0, 0.5, -1.5]).double(), 3, 1.0),
        "two proposals, squares": (torch.tensor([-3.0]).double(), 2, 2.0),
        "two proposals, fourth powers": (g.clone(), 2, 4.0),
        "three proposals, roots": (3 * g, 3, 0.5),
        "three proposals, against the weights": (g.clone(), 3, -1.0),
    }


def nats_by_quadrature(g: Tensor, count: int, power: float) -> float:
    """KL(exact || one of N) over beta for a very short step, along the slope; across it the two laws are the same.

    In units of sqrt(beta) the slope is k = sqrt(beta) |g|. The exact step over the proposal is exp(k z - k^2 / 2), the
    law of the chosen one over the proposal N E[w^a / (w^a + the others' w^a)].
    """
    k = 0.01
    z, weights = hermite(24, 1)
    total = torch.exp(power * k * z)  # (M, 1): own weight, and then the others' added
    chosen = torch.ones(len(z), dtype=torch.float64)
    if count > 1:
        others, other_weights = hermite(24, count - 1)
        whole = total + torch.exp(power * k * others).sum(1)  # (M, M')
        chosen = count * ((total / whole) * other_weights).sum(1)
    log_exact = k * z[:, 0] - k**2 / 2
    return float((weights * log_exact.exp() * (log_exact - chosen.log())).sum() / k**2 * g.square().sum())


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
        title="at a^2 beta g^2 = 1 two proposals make 73 % of what first order promises",
        cases=pairs_of_proposals,
        truth=chosen_by_counting,
        mistakes=[
            Mistake(
                "to first order",
                lambda beta, g, power: power * beta * g / 2,
                "right for short steps only. Keep the probability to choose the larger one as it is.",
            ),
            Mistake(
                "all of the shift",
                lambda beta, g, power: power * beta * g,
                "this is the first order of infinitely many proposals.",
            ),
            Mistake(
                "the power forgotten",
                lambda beta, g, power: of_two(beta, g, 1.0),
                "which weights decide who is chosen?",
            ),
            Mistake(
                "the variance of one proposal",
                lambda *a: of_two(*a, variance=1.0),
                "the difference of two independent proposals is more spread out than one of them.",
            ),
            Mistake(
                "the difference halved",
                lambda *a: of_two(*a, part=0.5),
                "c + u/2 with one probability, c - u/2 with the other: what is the mean of the chosen one given u?",
            ),
            Mistake(
                "half of the difference decides",
                lambda *a: of_two(*a, slope=0.5),
                "the ratio of the two weights is that of two points which are u apart.",
            ),
            Mistake(
                "standard deviation for variance",
                lambda beta, g, power: of_two(beta**2, g, power),
                "beta is a variance. What must the nodes be multiplied by?",
            ),
        ],
        tolerance=1e-4,
    ),
    Exercise(
        number="6.5",
        title="with the weights as they are a path costs I / N^2 nats, and doubling N saves three quarters of it",
        cases=slopes,
        truth=nats_by_quadrature,
        mistakes=[
            Mistake(
                "the part that is there",
                lambda g, count, power: (power * (1 - 1 / count)) ** 2 * g.square().sum() / 2,
                "at N = 1 all of the guidance is missing. Which part is missing at N?",
            ),
            Mistake(
                "not squared",
                lambda g, count, power: (1 - power * (1 - 1 / count)) * g.square().sum() / 2,
                "a divergence is quadratic in the shift that is missing, and never negative.",
            ),
            Mistake(
                "one half forgotten",
                lambda g, count, power: (1 - power * (1 - 1 / count)) ** 2 * g.square().sum(),
                "twice too large: look at the divergence of two bells again.",
            ),
            Mistake(
                "the power forgotten",
                lambda g, count, power: g.square().sum() / (2 * count**2),
                "right for the weights as they are. What does a power of them change?",
            ),
            Mistake(
                "the power on the part that is missing",
                lambda g, count, power: (power / count) ** 2 * g.square().sum() / 2,
                "at N = 1 there is no choice, and no power can matter.",
            ),
            Mistake(
                "the length for its square",
                lambda g, count, power: (1 - power * (1 - 1 / count)) ** 2 * g.norm() / 2,
                "the slope enters through the distance of two means. In which power?",
            ),
            Mistake(
                "a mean over the coordinates",
                lambda g, count, power: (1 - power * (1 - 1 / count)) ** 2 * g.square().mean() / 2,
                "right on the line. Do the coordinates' divergences add up, or average?",
            ),
            Mistake(
                "the sum of the slope",
                lambda g, count, power: (1 - power * (1 - 1 / count)) ** 2 * g.sum() ** 2 / 2,
                "right on the line. Turning the axes must not change a divergence.",
            ),
            Mistake(
                "the exponent of the effective share",
                lambda g, count, power: g.square().sum(),
                "this is what the effective share loses. The answer depends on N.",
            ),
        ],
        tolerance=1e-3,
    ),
]
