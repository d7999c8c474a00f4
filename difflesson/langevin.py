"""Langevin dynamics: a walk that follows the slope of log p and shakes, and in the long run has the density p.

The plain walk, the walk with a coin that removes the error of its step, the walk down through noise levels, and how
long the continuous walk takes to forget where it began, by the matrix of its generator. Noise levels are those of data
that do not shrink, `x = x_0 + sigma eps`; `score_of` gives them to a denoiser.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from difflesson.checks import check_shape
from difflesson.denoiser import Denoiser, predict
from difflesson.noise import standard_normal
from difflesson.schedule import Schedule

Field = Callable[[Tensor], Tensor]
"""`score(x)` of points (N, d): the slope of log p at each, (N, d)."""


def unadjusted(score: Field, x: Tensor, c: float, count: int, generator: torch.Generator) -> Tensor:
    """Walk `count` steps of length c.  [eq-langevin-step]

        x' = x + c score + sqrt(2 c) eps

    Leaves p alone in the limit of short steps; of a long one there is a bias, first order in c [eq-langevin-bias].

    Args: score: (N, d) -> (N, d);  x: (N, d);  c: above 0; from twice the variance across the data on, it
    overshoots;  count: at least 0;  generator: on the device of x.  Returns: (N, d).
    Raises: ValueError if c or count is out of range, there is no generator, or score answers in another shape.
    Source: Roberts & Tweedie 1996; Welling & Teh 2011 write c / 2 for c.
    """
    for _ in range(_checked(c, count)):
        x = x + c * _ask(score, x) + (2 * c) ** 0.5 * standard_normal(x.shape, x, generator)
    return x


def metropolis_adjusted(
    log_prob: Field, score: Field, x: Tensor, c: float, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The same walk, each step taken or refused so that p is left alone exactly, whatever c.  [eq-metropolis]

    Args: log_prob: (N, d) -> (N,), up to a constant;  the others as in `unadjusted`, but any c above 0 will do.
    Returns: x (N, d), and the share of steps taken, 0-dim (1 if count is 0).  Raises: as `unadjusted`.
    Source: Roberts & Tweedie 1996 (Bernoulli 2, 341).
    """
    height, slope, taken = log_prob(x), _ask(score, x), x.new_zeros(len(x))
    check_shape("log_prob's answer", height, x.shape[:1])
    for _ in range(_checked(c, count)):
        new = x + c * slope + (2 * c) ** 0.5 * standard_normal(x.shape, x, generator)
        new_height, new_slope = log_prob(new), _ask(score, new)
        forth = (new - x - c * slope).square().sum(1)
        back = (x - new - c * new_slope).square().sum(1)
        odds = new_height - height + (forth - back) / (4 * c)
        yes = torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device).log() < odds
        x, slope = (torch.where(yes[:, None], *pair) for pair in ((new, x), (new_slope, slope)))
        height, taken = torch.where(yes, new_height, height), taken + yes
    return x, (taken / count).mean() if count else taken.mean() + 1


def annealed(
    score: Callable[[Tensor, float], Tensor],
    x: Tensor,
    sigmas: list[float],
    a: float,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Walk `count` steps at each noise level in turn, of the length `a sigma^2`.  [eq-annealed-step]

    Args: score: `score(x, sigma)`, slopes (N, d) at a noise level;  x: (N, d), as the data are at the first level;
    sigmas: above 0, usually falling;  a: above 0 and below 2;  count: at each level.  Returns: (N, d).
    Raises: ValueError if a level is not above 0, or as `unadjusted`.
    Source: Song & Ermon 2019 (arXiv 1907.05600), algorithm 1, whose `epsilon / (2 sigma_L^2)` is a.
    """
    for sigma in sigmas:
        if not sigma > 0:
            raise ValueError(f"sigmas must be above 0, got {sigma}")
        x = unadjusted(lambda z, sigma=sigma: score(z, sigma), x, a * float(sigma) ** 2, count, generator)
    return x


def score_of(denoiser: Denoiser, schedule: Schedule) -> Callable[[Tensor, float], Tensor]:
    """The score of noisy data that were not shrunk, `score(x, sigma)`, from a denoiser of those that were.

    It asks at the time at which the noise is as loud, `sigma_t / alpha_t` = sigma, with x shrunk by alpha_t; the guess
    of the noise is the same, and divided by -sigma it is the score.  [eq-snr-clock]
    The score raises ValueError at a sigma louder than the schedule's noise ever is.
    """

    loudest = float(torch.exp(-schedule.log_snr(1.0) / 2))

    def score(x: Tensor, sigma: float) -> Tensor:
        t = schedule.time(-2 * torch.as_tensor(sigma, dtype=torch.float64).log())
        if sigma > loudest * (1 + 1e-6):
            raise ValueError(f"sigma must be at most {loudest:g}, the schedule's loudest noise, got {sigma}")
        return -predict(denoiser, schedule.alpha(t) * x, t).eps / sigma

    return score


def relaxation_rates(log_prob: Field, low, high, cells, count: int = 2) -> Tensor:
    """The slowest rates at which the continuous walk forgets its start, (count,), the first of them 0.

    Eigenvalues of minus the generator [eq-langevin-generator] on a grid: a walk from cell to cell whose jumps, at the
    rate `sqrt(p_to / p_from) / h^2`, leave p alone exactly. The error is second order in the cells' size. One over the
    second rate is the time, in units of (steps times c), in which what is wrong falls by e.

    Args: log_prob: (N, d) -> (N,), up to a constant;  low, high, cells: for each of the d axes, d at most 2; the walk
    is reflected at the border, so take it where p is small.  Raises: ValueError if the box is empty, or cells < 3.
    """
    from scipy import sparse
    from scipy.sparse.linalg import eigsh

    low, high = (torch.as_tensor(ends, dtype=torch.float64) for ends in (low, high))
    sizes = (high - low) / torch.as_tensor(cells, dtype=torch.float64)
    if min(cells) < 3 or not bool((sizes > 0).all()):
        raise ValueError(f"low must be below high, and cells at least 3, got {low.tolist()}, {high.tolist()}, {cells}")
    middles = [a + (torch.arange(n, dtype=torch.float64) + 0.5) * h for a, n, h in zip(low, cells, sizes, strict=True)]
    height = log_prob(torch.cartesian_prod(*middles).view(-1, len(cells))).numpy()
    number = np.arange(len(height)).reshape(tuple(cells))
    out, total = np.zeros(len(height)), 0
    for axis, h in enumerate(sizes.tolist()):
        one, two = (np.take(number, range(i, cells[axis] - 1 + i), axis).ravel() for i in (0, 1))
        half = (height[two] - height[one]) / 2
        out[one] += np.exp(half) / h**2  # each cell has one neighbour on either side
        out[two] += np.exp(-half) / h**2
        total = total - sparse.coo_matrix((np.full(len(one), h**-2), (one, two)), (len(out), len(out)))
    matrix = (sparse.diags(out) + total + total.T).tocsc()  # symmetric: the roots of p are multiplied through
    found = eigsh(matrix, k=count, sigma=-1e-3, v0=np.exp((height - height.max()) / 2), return_eigenvectors=False)
    return torch.from_numpy(np.sort(found))


def _checked(c: float, count: int) -> int:
    if not 0 < c < float("inf") or count < 0:
        raise ValueError(f"c must be above 0 and count at least 0, got c={c} and count={count}")
    return count


def _ask(score: Field, x: Tensor) -> Tensor:
    answer = score(x)
    check_shape("score's answer", answer, x.shape)
    return answer
