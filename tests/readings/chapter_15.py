"""What the letters of chapter 15's equations stand for: other points, answers, windows and beliefs than the page's."""

import torch
from torch import Tensor

from difflesson import path, practice
from difflesson.digits import diversity, metrics
from difflesson.schedule import cosine
from tests.readings.common import F64
from tools.formula import Reading, reads


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


SAMPLES, REAL = 3 * random(12, 2, seed=3), 3 * (1.3 * random(9, 2, seed=103) + 0.5)  # N = 12 points x, M = 9 points r
N, M = len(SAMPLES), len(REAL)


def radii(points: Tensor) -> Tensor:
    """The distance of each point to its third nearest other."""
    return torch.cdist(points, points).topk(4, largest=False).values[:, 3]


def over_r(function):
    """An operator over the real points r, for values whose row x M + r belongs to the pair (x, r)."""
    return lambda values: function(pairs(values), 1).expand(N, M, 1, 1).flatten(0, 1)


def over_x(function):
    return lambda values: function(pairs(values), 0).expand(N, M, 1, 1).flatten(0, 1)


def pairs(values: Tensor) -> Tensor:
    return values.expand(N * M, -1, -1).unflatten(0, (N, M))


def largest(values: Tensor, dim: int) -> Tensor:
    return values.amax(dim, keepdim=True)


def added(values: Tensor, dim: int) -> Tensor:
    return values.sum(dim, keepdim=True)


def step(values: Tensor) -> Tensor:
    return (values >= 0).double()


@reads("eq-precision-recall")
def precision_recall() -> Reading:
    precision, recall = diversity.precision_recall(SAMPLES, REAL)
    x, r = SAMPLES.repeat_interleave(M, 0), REAL.repeat(N, 1)
    return Reading(
        {r"\text{precision}": precision, r"\text{recall}": recall, "N": N, "M": M, "h": step,
         "d_{xr}": (x - r).square().sum(1).sqrt(),
         r"\rho_r": radii(REAL).repeat(N), r"\rho_x": radii(SAMPLES).repeat_interleave(M),
         r"\sum_x": over_x(added), r"\max_r": over_r(largest), r"\sum_r": over_r(added), r"\max_x": over_x(largest)},
        statements=2,
    )  # fmt: skip


@reads("eq-best-scale")
def best_scale() -> Reading:
    """The scale found by bisection of the variance that the package gives without noise."""
    true = torch.tensor([0.5, 0.3, 1.2], dtype=F64)
    believed, everything = torch.tensor([0.6, 0.45, 1.3], dtype=F64), torch.tensor([3.0, 1.1, 6.0], dtype=F64)
    found = []
    for c, c_hat, u in zip(true.tolist(), believed.tolist(), everything.tolist(), strict=True):
        low, high = 0.0, 10.0
        for _ in range(80):
            middle = (low + high) / 2
            too_wide = path.guided_variance(c_hat, u, middle, 0.0) > c
            low, high = (middle, high) if too_wide else (low, middle)
        found.append(low)
    letters = {r"\gamma^\ast": torch.tensor(found, dtype=F64), "U": everything, "C": true, r"\hat C": believed}
    return Reading(letters)


ANSWERS, CLASSES = random(5, 3, seed=3).log_softmax(1), 3  # five samples, three classes


def of_answers(function, dim: int):
    """An operator over samples (0) or classes (1), for values whose row 3 i + y belongs to sample i and class y."""

    def operator(values: Tensor) -> Tensor:
        table = values.expand(len(ANSWERS) * CLASSES, -1, -1).unflatten(0, (len(ANSWERS), CLASSES))
        return function(table, dim).expand(len(ANSWERS), CLASSES, 1, 1).flatten(0, 1)

    return operator


@reads("eq-inception-score")
def inception_score() -> Reading:
    mean = ANSWERS.exp().mean(0)
    unsure = torch.special.entr(ANSWERS.exp()).sum(1)
    return Reading(
        {"S": diversity.inception_score(ANSWERS),
         r"\mathbb E_x": of_answers(lambda table, dim: table.mean(dim, keepdim=True), 0),
         r"\sum_y": of_answers(added, 1), r"p(y | x)": ANSWERS.exp().flatten(),
         r"\bar p(y)": mean.repeat(len(ANSWERS)), r"H(\bar p)": torch.special.entr(mean).sum(),
         r"H(p(\cdot | x))": unsure.repeat_interleave(CLASSES)},
    )  # fmt: skip


def covariance(seed: int) -> Tensor:
    root = random(3, 5, seed=seed)
    return root @ root.T / 5


@reads("eq-frechet")
def frechet() -> Reading:
    a, b = (metrics.Statistics(random(3, seed=10 + k), covariance(k), 100) for k in (4, 5))
    values, axes = torch.linalg.eig(a.cov @ b.cov)
    root = (axes @ torch.diag(values.sqrt()) @ torch.linalg.inv(axes)).real
    return Reading(
        {r"\text{FID}": metrics.frechet_distance(a, b), "m_a": a.mean[None], "m_b": b.mean[None], "C_a": a.cov[None],
         "C_b": b.cov[None], "(C_a C_b)^{1/2}": root[None],
         r"\operatorname{tr}": lambda value: value.diagonal(dim1=1, dim2=2).sum(1)},
        statements=1,
    )  # fmt: skip


@reads("eq-spread-split")
def spread_split() -> Reading:
    """Seven points with three labels, unequally many: a row a label, and the mean over labels is a weighted one."""
    points, labels = random(7, 2, seed=6), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    shares = labels.bincount().double() / len(labels)
    means = torch.stack([points[labels == y].mean(0) for y in range(3)])
    covs = torch.stack([points[labels == y].T.cov(correction=0) for y in range(3)])
    return Reading(
        {r"\operatorname{tr}": lambda value: value.diagonal(dim1=1, dim2=2).sum(1),
         "C": points.T.cov(correction=0)[None],
         "C_y": covs, "m_y": means, "m": points.mean(0)[None],
         r"\mathbb E_y": lambda values: (shares[:, None, None] * values.expand(3, -1, -1)).sum(0, keepdim=True)},
    )  # fmt: skip


@reads("eq-interval-guidance")
def interval_guidance() -> Reading:
    schedule = cosine()
    log_snr = torch.tensor([-6.0, -4.5, -2.0, 0.3, 0.6, 1.4, 7.0], dtype=F64)
    scale = practice.interval(3.5, schedule, low=-4.0, high=0.7)
    return Reading(
        {r"\gamma(t)": scale(schedule.time(log_snr)), r"\gamma": 3.5, "h": step,
         r"\lambda_t": log_snr, "a": -4.0, "b": 0.7},
    )  # fmt: skip


@reads("eq-evaluations")
def evaluations() -> Reading:
    """Counted: samplers that ask m times a step, once in the last, and once more where guided."""
    steps, times = [5, 8, 6, 1], [1, 2, 3, 2]
    asked, guided = [], []
    for n, m in zip(steps, times, strict=True):
        moments = [k for k in range(n) for _ in range(m if k < n - 1 else 1)]
        heard = [k for k in moments if k % 2]
        asked.append(sum(2 if k % 2 else 1 for k in moments))
        guided.append(len(heard))
    letters = {"E": asked, "m": times, "n": steps, "g": guided}
    return Reading({name: torch.tensor(value).double() for name, value in letters.items()})


def trace(value: Tensor) -> Tensor:
    return value.diagonal(dim1=1, dim2=2).sum(1)


@reads("eq-shrink")
def shrink() -> Reading:
    """The package's distance of a set from one that is s times as wide, for several s."""
    widths, cov = torch.tensor([0.3, 0.8, 1.7], dtype=F64), covariance(7)
    there = metrics.Statistics(random(3, seed=8), cov, 100)
    distances = [metrics.frechet_distance(there._replace(cov=float(s) ** 2 * cov), there) for s in widths]
    return Reading(
        {r"\text{FID}": torch.tensor(distances), "s": widths, "C_b": cov[None], r"\operatorname{tr}": trace},
        tolerance=1e-6,
    )


@reads("eq-count-bias")
def count_bias() -> Reading:
    """Samples of two numbers, each one of three points with its weight: all nine samples, by their weights."""
    points, weights = random(3, 2, seed=9), torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    mean = weights @ points
    cov = ((points - mean).T * weights) @ (points - mean)
    first, second = torch.cartesian_prod(torch.arange(3), torch.arange(3)).unbind(1)
    chances = weights[first] * weights[second]
    return Reading(
        {
            r"\hat m_a": (points[first] + points[second]) / 2,
            "m_b": torch.tensor([[0.4, -0.3]], dtype=F64),
            "m_a": mean[None],
            "N": 2,
            "C_a": cov[None],
            r"\operatorname{tr}": trace,
            r"\mathbb E": lambda values: (chances[:, None, None] * values.expand(9, -1, -1)).sum(0, keepdim=True),
        },
    )
