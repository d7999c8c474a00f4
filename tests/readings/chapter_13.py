"""What the letters of chapter 13's equations stand for: another mixture and other times than the page's."""

import numpy as np
import torch
from torch import Tensor

from difflesson import information
from difflesson.schedule import cosine
from tests.oracles.mixtures import FOUR
from tests.readings.common import F64, expectation, normal_nodes
from tools.formula import Reading, reads

MIXTURE, SCHEDULE, T = FOUR.mixture(), cosine(), torch.tensor(0.6, dtype=F64)
ALPHA, SIGMA = SCHEDULE.alpha(T), SCHEDULE.sigma(T)


def best(x: Tensor, label: int | None) -> Tensor:
    """E[v | x_t, y], or E[v | x_t]."""
    guess = MIXTURE.denoiser(SCHEDULE, label)(x, T)
    return ALPHA * guess.eps - SIGMA * guess.x0


def crude(x: Tensor, label: int | None) -> Tensor:
    """Some network: wrong, and wrong in another way for each label."""
    return 0.4 * x.flip(1) - 0.1 * x**2 + 0.3 * (-1.0 if label is None else float(label))


def drawn(order: int = 9) -> dict[str, Tensor]:
    """Clean points, noises and labels by quadrature: what is drawn, the best answers and a network's, and weights."""
    z, shares = normal_nodes(4, order)
    rows: dict[str, list[Tensor]] = {}
    for weight, mean, cov, label in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.covs, MIXTURE.labels, strict=True):
        x0, eps = mean + z[:, :2] @ torch.linalg.cholesky(cov).T, z[:, 2:]
        x = ALPHA * x0 + SIGMA * eps
        row = {
            "v": ALPHA * eps - SIGMA * x0, "v_c": best(x, label), "v_u": best(x, None),
            r"\hat v_c": crude(x, label), r"\hat v_u": crude(x, None), "weights": weight * shares,
        }  # fmt: skip
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in rows.items()}


DRAWN = drawn()


def squares(*names: str, lacking: str = "") -> Reading:
    """Of these letters, the others as decoys but for `lacking`: with it eq-network-gap, as true, could be read too."""
    letters = {name: DRAWN[name] for name in names} | {r"\mathbb E": expectation(DRAWN["weights"])}
    others = {name: value for name, value in DRAWN.items() if name not in ("weights", lacking, *names)}
    return Reading(letters, others, tolerance=2e-3)


@reads("eq-loss-split")
def loss_split() -> Reading:
    return squares("v", "v_c", r"\hat v_c", lacking=r"\hat v_u")


@reads("eq-loss-gap")
def loss_gap() -> Reading:
    return squares("v", "v_c", "v_u", lacking=r"\hat v_u")


@reads("eq-network-gap")
def network_gap() -> Reading:
    return squares("v", "v_c", "v_u", r"\hat v_c", r"\hat v_u")


@reads("eq-null-teacher")
def null_teacher() -> Reading:
    return squares("v_c", "v_u", r"\hat v_u", lacking=r"\hat v_c")


@reads("eq-label-average")
def label_average() -> Reading:
    """At one point; the batch is the labels."""
    x, noisy = torch.tensor([[0.4, -0.3]], dtype=F64), MIXTURE.noised(ALPHA, SIGMA)
    shares = torch.cat([noisy.class_log_prob(x, y).exp() for y in (0, 1)])
    answers = torch.cat([best(x, y) for y in (0, 1)])
    letters = {
        "v_u(x)": best(x, None), "p_t(y | x)": shares, "v_c(x, y)": answers,
        r"\sum_y": lambda values: values.sum(0, keepdim=True),
    }  # fmt: skip
    return Reading(letters, {"p(y)": MIXTURE.class_weights()})


@reads("eq-label-information")
def label_information() -> Reading:
    """The batch is levels times points: the expectation is over the points of a level, the integral over levels."""
    log_snr = torch.linspace(-12, 0.7, 60, dtype=F64)
    told, untold, weights = [], [], []
    for t in SCHEDULE.time(log_snr):
        x, shares, label = information.labelled_nodes(MIXTURE, SCHEDULE, t, order=12)
        pair = MIXTURE.pair(SCHEDULE, label)(x, t)
        told.append(pair[0].eps)
        untold.append(pair[1].eps)
        weights.append(shares)
    at, shares = SCHEDULE.time(log_snr[-1]), torch.stack(weights)
    step = torch.from_numpy(np.gradient(log_snr.numpy()))
    step[0], step[-1] = step[0] / 2, step[-1] / 2
    letters = {
        r"I(y; x_\lambda)": information.label_information(MIXTURE, SCHEDULE, at, order=40),
        r"\hat\varepsilon_c": torch.cat(told), r"\hat\varepsilon_u": torch.cat(untold),
        r"\mathbb E": lambda values: (shares * values.reshape(shares.shape)).sum(1),
        r"d\lambda'": step.mean(),
        r"\int_{-\infty}^{\lambda}": lambda values: (values.reshape(-1) * step / step.mean()).sum(),
    }  # fmt: skip
    return Reading(letters, tolerance=2e-3)


@reads("eq-objective-weights")
def objective_weights() -> Reading:
    generator = torch.Generator().manual_seed(2)
    x0, eps, guess = torch.randn(3, 5, 2, generator=generator, dtype=F64)
    x = ALPHA * x0 + SIGMA * eps
    noise = (x - ALPHA * guess) / SIGMA
    letters = {
        r"\hat\varepsilon": noise, r"\varepsilon": eps, r"\hat x_0": guess, "x_0": x0, r"\alpha_t": ALPHA,
        r"\sigma_t": SIGMA, r"\hat v": ALPHA * noise - SIGMA * guess, "v": ALPHA * eps - SIGMA * x0,
    }  # fmt: skip
    return Reading(letters, statements=2)


@reads("eq-averaging-length")
def averaging_length() -> Reading:
    """The variances by summing the covariances of 4,000 steps."""
    a, b = 0.93, 0.6
    k = torch.arange(4000, dtype=F64)
    kernel = (1 - a) * a**k
    # sum_ij w_i w_j b^|i - j|, by a filter that runs once forward
    filtered, total = 0.0, 0.0
    for weight in kernel.tolist():
        total += weight * (weight + 2 * b * filtered)
        filtered = b * filtered + weight
    letters = {r"\operatorname{Var} \bar\theta": 0.7 * total, r"\operatorname{Var} \theta": 0.7, "a": a, "b": b}
    return Reading(letters)
