"""What a label says, in nats: the squared difference of two answers, added up over the log signal-to-noise ratio."""

import torch
from torch import Tensor

from difflesson.checks import shown
from difflesson.denoiser import Pair
from difflesson.divergence import mixture_nodes
from difflesson.mixture import GaussianMixture
from difflesson.schedule import Schedule


def labelled_nodes(mixture: GaussianMixture, schedule: Schedule, t: Tensor, order: int = 12) -> tuple[Tensor, ...]:
    """Points (M, d), weights (M,) and labels (M,) such that `(weights * f(x, y)).sum()` is `E f(x_t, y)`.

    A class of weight 0 has no points.
    """
    parts = []
    for y, share in enumerate(mixture.class_weights()):
        if share == 0:
            continue
        x, weights = mixture_nodes(mixture.given(y).noised(schedule.alpha(t), schedule.sigma(t)), order)
        parts.append((x, share * weights, torch.full((len(x),), y)))
    x, weights, label = (torch.cat(part) for part in zip(*parts, strict=True))
    return x, weights, label


def label_rate(pair: Pair, x: Tensor, t: Tensor) -> Tensor:
    """Half the squared distance of the two guesses of the noise, one number a point, (batch,).  [eq-label-information]

        d I(y; x_t) / d log_snr = E |eps_c - eps_u|^2 / 2

    if the guesses are the best ones and x is drawn with the labels of the pair. Then it is never more than the entropy
    of the label that the sum over log_snr comes to.

    Args: pair: told, and not told, the label of each point;  x: (batch, *data);  t: a time, 0-dim or (batch,).
    Source: Guo, Shamai & Verdu 2005 (arXiv cs/0412108), for one Gaussian channel; Kong et al. 2023 (arXiv 2302.03792).
    """
    told, untold = (guess.eps for guess in pair(x, t))
    return (told - untold).square().flatten(1).sum(1) / 2


def label_information(mixture: GaussianMixture, schedule: Schedule, t: Tensor, order: int = 12) -> Tensor:
    """`I(y; x_t) = E[log p_t(y | x_t) - log p(y)]` in nats, 0-dim: how well x_t tells the class, by quadrature."""
    noisy, total = mixture.noised(schedule.alpha(t), schedule.sigma(t)), 0.0
    x, weights, label = labelled_nodes(mixture, schedule, t, order)
    for y, share in enumerate(mixture.class_weights()):
        if share == 0:  # 0 log 0 is 0
            continue
        mine = label == y
        total = total + weights[mine] @ (noisy.class_log_prob(x[mine], y) - share.log())
    return total


def averaged_variance(decay: Tensor, memory: Tensor) -> Tensor:
    """Variance of a running average of weights, over that of the weights themselves.  [eq-averaging-length]

        (1 - a) (1 + a b) / ((1 + a) (1 - a b))

    of an average that keeps the share a of itself in each step and takes the rest from the weights, which keep the
    share b of their distance from the optimum and get fresh noise; after so many steps that the start is forgotten.

    Args: decay: a in [0, 1);  memory: b in (-1, 1), `1 - learning rate * curvature` of plain gradient descent.
    Returns: like decay and memory, broadcast.  Raises: ValueError if one is out of range.
    """
    decay, memory = torch.as_tensor(decay, dtype=torch.float64), torch.as_tensor(memory, dtype=torch.float64)
    if not bool(((decay >= 0) & (decay < 1)).all()):
        raise ValueError(f"decay must be in [0, 1), got {shown(decay)}")
    if not bool((memory.abs() < 1).all()):
        raise ValueError(f"memory must be in (-1, 1), got {shown(memory)}")
    return (1 - decay) * (1 + decay * memory) / ((1 + decay) * (1 - decay * memory))
