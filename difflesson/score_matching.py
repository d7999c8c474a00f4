"""Four losses whose minimum is a score: one needs the score itself, the others only data.

    explicit - denoising = constant,      explicit - implicit = constant

constant in the network, at the noise level of the points. Each is a mean over points, so gradients flow to what the
network is made of. A score is any function of points (N, d) that answers (N, d), each from its own point alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from difflesson.checks import check_shape

Field = Callable[[Tensor], Tensor]


def explicit_loss(score: Field, truth: Field, x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean square distance of two scores where the data are, `E |score(x) - truth(x)|^2`, 0-dim.

    Of two densities it is the Fisher divergence [eq-fisher-divergence].
    Args: x: (N, d), drawn from the density of `truth`;  weights: (N,), if x are nodes of a quadrature.
    """
    return _mean((_ask(score, x) - _ask(truth, x)).square().sum(1), weights)


def denoising_loss(
    score: Field, x_0: Tensor, eps: Tensor, sigma: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    """`E |score(x_0 + sigma eps) + eps / sigma|^2`, 0-dim: learns the score of noisy data.  [eq-denoising-score]

    Args: x_0, eps: (N, d), data and standard normal noise;  sigma: above 0, one number or (N, 1);  weights: (N,), what
    each term is multiplied by before the mean; `sigma^2` makes it the square error of a guess of the noise.
    Raises: ValueError if a shape is another.  Source: Vincent 2011 (doi 10.1162/NECO_a_00142), eq. 9.
    """
    check_shape("eps", eps, x_0.shape)
    check_shape("sigma", sigma, (), (len(x_0), 1))
    squares = (_ask(score, x_0 + sigma * eps) + eps / sigma).square().sum(1)
    if weights is None:
        return squares.mean()
    check_shape("weights", weights, squares.shape)
    return (weights * squares).mean()


def implicit_loss(score: Field, x: Tensor, weights: Tensor | None = None) -> Tensor:
    """`E [|score(x)|^2 + 2 trace(d score / d x)]`, 0-dim: needs no noise, and d derivatives.  [eq-implicit-score]

    Args: as in `explicit_loss`.  Source: Hyvarinen 2005 (Journal of Machine Learning Research 6, 695).
    """
    leaf, answer = _with_leaf(score, x)
    trace = sum(_gradient(answer[:, i], leaf)[:, i] for i in range(x.shape[1]))
    return _mean(answer.square().sum(1) + 2 * trace, weights)


def sliced_loss(score: Field, x: Tensor, directions: Tensor, weights: Tensor | None = None) -> Tensor:
    """`E [|score(x)|^2 + 2 v^T (d score / d x) v]`, 0-dim: one derivative, in a random direction.  [eq-sliced-score]

    Args: directions: v (N, d), of mean zero and covariance I, signs or normal; the others as in `explicit_loss`.
    Source: Song et al. 2019 (arXiv 1905.07088); the trace by random directions: Hutchinson 1990.
    """
    check_shape("directions", directions, x.shape)
    leaf, answer = _with_leaf(score, x)
    along = (_gradient((answer * directions).sum(1), leaf) * directions).sum(1)
    return _mean(answer.square().sum(1) + 2 * along, weights)


def _ask(score: Field, x: Tensor) -> Tensor:
    answer = score(x)
    check_shape("score's answer", answer, x.shape)
    return answer


def _with_leaf(score: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    return leaf, _ask(score, leaf)


def _gradient(values: Tensor, leaf: Tensor) -> Tensor:
    if not values.requires_grad:  # a score that is the same everywhere
        return torch.zeros_like(leaf)
    return torch.autograd.grad(values.sum(), leaf, create_graph=True, allow_unused=True, materialize_grads=True)[0]


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return values.mean()
    check_shape("weights", weights, values.shape)
    return weights @ values
