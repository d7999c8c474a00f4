"""Exercises of chapter 02, the bound: a divergence to the prior, two estimates, clumps, a weight, the noise left."""

import math

import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake

F64 = torch.float64


def normal(*shape: int, seed: int) -> Tensor:
    """Seeded draws of N(0, 1)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --- 2.1 ----------------------------------------------------------------------------------------------------


def encoded() -> dict[str, tuple]:
    """Cases of 2.1: means and log-variances, (N, k)."""
    return {
        "the prior itself": (torch.zeros(2, 3, dtype=F64), torch.zeros(2, 3, dtype=F64)),
        "one number, far away": (torch.tensor([[4.0], [-3.0]], dtype=F64), torch.tensor([[0.0], [0.0]], dtype=F64)),
        "narrow": (torch.zeros(1, 2, dtype=F64), torch.tensor([[-6.0, -2.0]], dtype=F64)),
        "wide": (torch.zeros(1, 2, dtype=F64), torch.tensor([[1.5, 3.0]], dtype=F64)),
        "five points, four numbers": (normal(5, 4, seed=1), normal(5, 4, seed=2)),
    }


def by_distributions(mean: Tensor, log_var: Tensor) -> Tensor:
    """PyTorch's own divergence."""
    guess = torch.distributions.Normal(mean, torch.exp(log_var * 0.5))
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return torch.distributions.kl_divergence(guess, prior) @ torch.ones(mean.shape[1], dtype=mean.dtype)


def divergence(mean: Tensor, log_var: Tensor, *, scale=1.0, half=0.5, square=2, log=1.0, one=1.0) -> Tensor:
    """The solution with parts that can be got wrong."""
    log_var = scale * log_var
    return half * (mean**square + log_var.exp() - one - log * log_var).sum(1)


# --- 2.2 ----------------------------------------------------------------------------------------------------


def log_ratios() -> dict[str, tuple]:
    """Cases of 2.2: log-ratios (M, N)."""
    return {
        "four draws of three points": (normal(4, 3, seed=3),),
        "a picture": (normal(6, 2, seed=4) - 1000,),
        "one draw": (normal(1, 3, seed=5),),
        "all draws alike": (torch.full((5, 1), -2.5, dtype=F64),),
        "one lucky draw": (torch.tensor([[-80.0], [-3.0], [-90.0]], dtype=F64),),
    }


def by_adding_up(r: Tensor) -> tuple[Tensor, Tensor]:
    """One draw after the other, with logaddexp."""
    total, bound = r[0].clone(), r[0].clone()
    for count, row in enumerate(r[1:], 2):
        total = torch.logaddexp(total, row)
        bound = bound + (row - bound) / count
    return bound, total - math.log(r.shape[0])


# --- 2.3 ----------------------------------------------------------------------------------------------------


def clumps() -> dict[str, tuple]:
    """Cases of 2.3: probabilities of the guess and of the posterior, (K,)."""
    pairs = {
        "one of two forgotten": ([1.0, 0.0], [0.6, 0.4]),
        "two of four forgotten": ([0.0, 0.7, 0.3, 0.0], [0.1, 0.35, 0.15, 0.4]),
        "none forgotten": ([0.2, 0.5, 0.3], [0.6, 0.1, 0.3]),
        "one starved": ([1 - 1e-6, 1e-6], [0.99, 0.01]),
        "the posterior": ([0.25, 0.75], [0.25, 0.75]),
        "a rare one overrated": ([0.5, 0.5], [0.99, 0.01]),
    }
    return {name: tuple(torch.tensor(part, dtype=F64) for part in pair) for name, pair in pairs.items()}


def clump_by_clump(shares: Tensor, chances: Tensor) -> tuple[float, float]:
    """Sums in plain numbers."""
    values = [(q, math.log(p) - math.log(q)) for q, p in zip(shares.tolist(), chances.tolist(), strict=True) if q > 0]
    low = math.fsum(q * value for q, value in values)
    return -low, math.sqrt(math.fsum(q * (value - low) ** 2 for q, value in values))


def two_moments(shares: Tensor, chances: Tensor, *, weights=None, swap=False, sign=1, power=0.5, mean=True):
    """The solution with parts that can be got wrong."""
    drawn = (shares > 0) & (chances > 0)
    top, bottom = (chances, shares) if swap else (shares, chances)
    u, weight = torch.log(top[drawn] / bottom[drawn]), (shares if weights is None else weights(shares, chances))[drawn]
    gap = weight @ u
    return float(sign * gap), float((weight @ (u - gap * mean).square()) ** power)


# --- 2.4 ----------------------------------------------------------------------------------------------------


def weights() -> dict[str, tuple]:
    """Cases of 2.4: variances of the data (k,), the noise's deviation, beta."""
    variances = torch.tensor([4.0, 2.7, 1.0, 0.3], dtype=F64)
    return {
        "no weight": (variances, 0.8, 1.0),
        "beta 4": (variances, 0.8, 4.0),
        "beta below 1": (variances, 1.3, 0.3),
        "a batch of 256": (variances, 0.2, 256.0),
        "one axis, at the threshold": (torch.tensor([0.75], dtype=F64), 0.5, 3.0),
        "little noise": (variances, 0.05, 2.0),
    }


def by_search(variances: Tensor, s: float, beta: float) -> tuple[Tensor, Tensor]:
    """For each axis the objective itself: the best guess for a given w, then w by a search that halves its step."""
    squares, nats = [], []
    for variance in variances.tolist():

        def rate(w: float, variance=variance) -> tuple[float, float, float]:
            tau2 = 1 / (1 + w * w / (beta * s * s))  # where the slope by the guess's variance vanishes
            gain = tau2 * w / (beta * s * s)  # and by its mean, gain * x
            return tau2, gain, (tau2 + gain * gain * variance - 1 - math.log(tau2)) / 2

        def worth(w: float, variance=variance, rate=rate) -> float:
            tau2, gain, nats = rate(w)
            return -((1 - w * gain) ** 2 * variance + w * w * tau2) / (2 * s * s) - beta * nats

        low, high = 0.0, 2 * math.sqrt(variance) + 1
        for _ in range(200):  # the slope by central differences of complex-free numbers, then halve
            middle, h = (low + high) / 2, 1e-5 * (high - low) + 1e-7
            low, high = (middle, high) if worth(middle + h) > worth(middle - h) else (low, middle)
        w = (low + high) / 2
        w = 0.0 if w < 1e-5 else w
        squares.append(w * w)
        nats.append(rate(w)[2])
    return torch.tensor(squares, dtype=F64), torch.tensor(nats, dtype=F64)


def collapse(variances, s, beta, *, noise=lambda s, beta: beta * s**2, half=0.5, root=1.0, floor=True):
    """The solution with parts that can be got wrong."""
    level = noise(s, beta)
    square = (variances - level).clamp_min(0) if floor else variances - level
    return square**root, half * torch.log(variances.clamp_min(level) / level)


# --- 2.5 ----------------------------------------------------------------------------------------------------


def linear_models() -> dict[str, tuple]:
    """Cases of 2.5: W (d, k), b (d,), s, x (N, d)."""
    return {
        "one of each": (torch.tensor([[1.5]], dtype=F64), torch.zeros(1, dtype=F64), 0.7, normal(3, 1, seed=6)),
        "three coordinates, two causes": (normal(3, 2, seed=7), normal(3, seed=8), 0.5, normal(4, 3, seed=9)),
        "more causes than coordinates": (normal(2, 4, seed=10), normal(2, seed=11), 1.2, normal(2, 2, seed=12)),
        "a latent that is off": (torch.diag(torch.tensor([1.0, 0.0], dtype=F64)), normal(2, seed=13), 0.9,
                                 normal(3, 2, seed=14)),
        "much noise": (normal(3, 2, seed=15), torch.zeros(3, dtype=F64), 4.0, normal(2, 3, seed=16)),
    }  # fmt: skip


def by_quadrature(W: Tensor, b: Tensor, s: float, x: Tensor) -> Tensor:
    """The variance of the log-density over Gauss-Hermite nodes of each posterior."""
    from difflesson.divergence import hermite

    count = W.shape[1]
    cov = torch.linalg.inv(torch.eye(count, dtype=F64) + W.T.mm(W).div(s * s))
    nodes, chance = hermite(4, count)
    z = ((x - b) @ W @ cov).div(s * s)[:, None] + nodes @ torch.linalg.cholesky(cov).T  # (N, M, k)
    value = torch.distributions.Normal(z @ W.T + b, s).log_prob(x[:, None]).sum(2)
    return (value.square() @ chance) - (value @ chance).square()


def drawn_noise(W, b, s, x, *, cross=1.0, square=0.5, power=4, residual=True, prior=False):
    """The solution with parts that can be got wrong."""
    eye = torch.eye(W.shape[1], dtype=W.dtype)
    cov = torch.linalg.inv(eye + W.T @ W / s**2)
    spread = W @ (eye if prior else cov) @ W.T
    e = (x - b) - ((x - b) @ W @ cov @ W.T / s**2 if residual else 0)
    return cross * ((e @ spread) * e).sum(1) / s**power + square * spread.square().sum() / s**power


EXERCISES = [
    Exercise(
        number="2.1",
        title="far, narrow or wide: three ways to differ from the prior, each with its price",
        cases=encoded,
        truth=by_distributions,
        mistakes=[
            Mistake(
                "log-variance taken for log-deviation",
                lambda mean, log_var: divergence(mean, log_var, scale=2.0),
                "this is right for the logarithm of the deviation. Which one does the encoder answer?",
            ),
            Mistake(
                "deviation for variance",
                lambda mean, log_var: divergence(mean, log_var, scale=0.5),
                "the covariance of q has variances on its diagonal. Did you halve the logarithm?",
            ),
            Mistake(
                "half forgotten",
                lambda mean, log_var: divergence(mean, log_var, half=1.0),
                "look at what stands before the bracket of the formula.",
            ),
            Mistake(
                "sign",
                lambda mean, log_var: divergence(mean, log_var, half=-0.5),
                "a divergence is not negative. Is yours?",
            ),
            Mistake(
                "the wrong way round",
                lambda mean, log_var: ((mean.square() + 1) * torch.exp(-log_var) - 1 + log_var).sum(1) / 2,
                "you have averaged over the prior. Over which of the two is the average in KL(q || p)?",
            ),
            Mistake(
                "averaged over coordinates",
                lambda mean, log_var: divergence(mean, log_var) / mean.shape[1],
                "a trace is a sum. This gives two latents half the weight of one.",
            ),
            Mistake(
                "dimension forgotten",
                lambda mean, log_var: divergence(mean, log_var, one=0.0),
                "for q the prior itself, is your divergence 0?",
            ),
            Mistake(
                "mean not squared",
                lambda mean, log_var: divergence(mean, log_var, square=1),
                "a guess to the left costs as much as one to the right. Does yours?",
            ),
            Mistake(
                "logarithm forgotten",
                lambda mean, log_var: divergence(mean, log_var, log=0.0),
                "a very narrow q must be very far from the prior. What grows as the variance falls?",
            ),
            Mistake(
                "over the batch",
                lambda mean, log_var: divergence(mean, log_var).mean(),
                "one number for each point is asked for.",
            ),
        ],
    ),
    Exercise(
        number="2.2",
        title="the logarithm of the average lies above the average of the logarithms, and both are bounds on average",
        cases=log_ratios,
        truth=by_adding_up,
        mistakes=[
            Mistake(
                "the other way round",
                lambda r: (r.logsumexp(0) - math.log(len(r)), r.mean(0)),
                "the right two, in the other order: which of them is the bound?",
            ),
            Mistake(
                "sum for average",
                lambda r: (r.mean(0), r.logsumexp(0)),
                "with all draws alike both estimates must be that number. Are they?",
            ),
            Mistake(
                "divided outside the logarithm",
                lambda r: (r.mean(0), r.logsumexp(0) / len(r)),
                "the sum is divided by M before the logarithm is taken. What becomes of it outside?",
            ),
            Mistake(
                "over points",
                lambda r: (r.mean(1), r.logsumexp(1) - math.log(r.shape[1])),
                "the draws stand along the first axis.",
            ),
            Mistake(
                "number of points for number of draws",
                lambda r: (r.mean(0), r.logsumexp(0) - math.log(r.shape[1])),
                "how many were added up?",
            ),
            Mistake(
                "the best draw",
                lambda r: (r.mean(0), r.max(0).values),
                "the largest draw is not the average: it grows as you draw more.",
            ),
            Mistake(
                "the average twice",
                lambda r: (r.mean(0), r.mean(0)),
                "the first is right. The logarithm of an average is not the average of logarithms.",
            ),
        ],
    ),
    Exercise(
        number="2.3",
        title="a guess in the right proportions is quiet, even if clumps are missing; the gap is what it left out",
        cases=clumps,
        truth=clump_by_clump,
        mistakes=[
            Mistake(
                "the other way round",
                lambda q, p: two_moments(q, p, weights=lambda q, p: p, swap=True),
                "this is KL(p || q). Who draws?",
            ),
            Mistake(
                "averaged over the posterior",
                lambda q, p: two_moments(q, p, weights=lambda q, p: p),
                "the ratio is right. Draws come from the guess: which weights belong to the average?",
            ),
            Mistake(
                "every clump alike",
                lambda q, p: two_moments(q, p, weights=lambda q, p: (q > 0).to(q) / (q > 0).sum()),
                "a clump that is drawn more often counts more.",
            ),
            Mistake(
                "sign",
                lambda q, p: two_moments(q, p, sign=-1),
                "a gap is not negative: log p(x) less the bound.",
            ),
            Mistake(
                "variance",
                lambda q, p: two_moments(q, p, power=1.0),
                "the gap is right. The other is the variance.",
            ),
            Mistake(
                "second moment",
                lambda q, p: two_moments(q, p, mean=False),
                "the gap is right. For one clump that is drawn alone all draws agree: what is their deviation?",
            ),
            Mistake(
                "half the variance for the gap",
                lambda q, p: (two_moments(q, p)[1] ** 2 / 2, two_moments(q, p)[1]),
                "the rule of half the variance holds near the posterior, and for a guess that forgets nothing.",
            ),
            Mistake(
                "only the forgotten share",
                lambda q, p: (-math.log(float(p[q > 0].sum())), two_moments(q, p)[1]),
                "right if the clumps that are left stand in the right proportions. Need they?",
            ),
        ],
    ),
    Exercise(
        number="2.4",
        title="a weight on the divergence is noise that the decoder does not have: beta times its variance",
        cases=weights,
        truth=by_search,
        tolerance=1e-5,
        mistakes=[
            Mistake(
                "weight ignored",
                lambda v, s, beta: collapse(v, s, beta, noise=lambda s, beta: s**2),
                "this is beta = 1. What does the weight do to a latent that is worth little?",
            ),
            Mistake(
                "divided by beta",
                lambda v, s, beta: collapse(v, s, beta, noise=lambda s, beta: s**2 / beta),
                "with a larger weight, do more latents switch off, or fewer?",
            ),
            Mistake(
                "beta squared",
                lambda v, s, beta: collapse(v, s, beta, noise=lambda s, beta: (beta * s) ** 2),
                "beta divides the exponent of the noise's density: does it go with the deviation or with the variance?",
            ),
            Mistake(
                "deviation for variance",
                lambda v, s, beta: collapse(v, s, beta, noise=lambda s, beta: beta * s),
                "you have compared a variance of the data with a deviation of the noise.",
            ),
            Mistake(
                "root of beta",
                lambda v, s, beta: collapse(v, s, beta, noise=lambda s, beta: beta**0.5 * s**2),
                "write down the exponent of the noise's density, divided by beta.",
            ),
            Mistake(
                "negative square",
                lambda v, s, beta: collapse(v, s, beta, floor=False),
                "the divergences are right. A square cannot be negative: what happens to such a latent?",
            ),
            Mistake(
                "w for its square",
                lambda v, s, beta: collapse(v, s, beta, root=0.5),
                "the divergences are right. w^2 is asked for.",
            ),
            Mistake(
                "half forgotten",
                lambda v, s, beta: collapse(v, s, beta, half=1.0),
                "the squares are right. What stands before the logarithm?",
            ),
            Mistake(
                "weighted divergence",
                lambda v, s, beta: (collapse(v, s, beta)[0], beta * collapse(v, s, beta)[1]),
                "the squares are right. The divergence itself is asked for, not its part of the objective.",
            ),
            Mistake(
                "noise of the decoder in the divergence",
                lambda v, s, beta: (collapse(v, s, beta)[0], collapse(v, s, 1.0)[1]),
                "the squares are right. With this q, which noise does the posterior believe in?",
            ),
        ],
    ),
    Exercise(
        number="2.5",
        title="at little noise one half for each hidden number, and more for a point that is badly explained",
        cases=linear_models,
        truth=by_quadrature,
        mistakes=[
            Mistake(
                "residual forgotten",
                lambda *a: drawn_noise(*a, cross=0.0),
                "this is right where the posterior's mean explains the point exactly. What if it does not?",
            ),
            Mistake(
                "square forgotten",
                lambda *a: drawn_noise(*a, square=0.0),
                "the exponent has a linear and a quadratic part in y. Both scatter.",
            ),
            Mistake(
                "factor of the square",
                lambda *a: drawn_noise(*a, square=2.0),
                "the square stands with 1 / (2 s^2) in the exponent: what becomes of it in a variance?",
            ),
            Mistake(
                "factor of the mixed term",
                lambda *a: drawn_noise(*a, cross=4.0),
                "the mixed term is 2 e y: with 1 / (2 s^2) before it, what stands before e y?",
            ),
            Mistake(
                "half of the mixed term",
                lambda *a: drawn_noise(*a, cross=0.25),
                "how often does e y appear in the square of e - y?",
            ),
            Mistake(
                "factor not squared",
                lambda *a: drawn_noise(*a, power=2),
                "a factor before a random number comes out of its variance squared.",
            ),
            Mistake(
                "mean of the prior",
                lambda *a: drawn_noise(*a, residual=False),
                "the causes are drawn around the posterior's mean. What does it leave of x - b?",
            ),
            Mistake(
                "covariance of the prior",
                lambda *a: drawn_noise(*a, prior=True),
                "how wide are the causes drawn, once the point is seen?",
            ),
            Mistake(
                "deviation",
                lambda *a: drawn_noise(*a).sqrt(),
                "this is the standard deviation; the variance is asked for.",
            ),
        ],
    ),
]
