"""Losses of a score: they differ by constants and agree in gradients, shapes are compared, any dimension will do."""

import pytest
import torch

from difflesson import score_matching
from difflesson.divergence import mixture_nodes
from tests.oracles.mixtures import FOUR, random_mixture

F64 = torch.float64


def linear(matrix: torch.Tensor):
    return lambda x: torch.tanh(x @ matrix) - x


def gradients(loss_of, matrix):
    leaf = matrix.clone().requires_grad_()
    return torch.autograd.grad(loss_of(linear(leaf)), leaf)[0]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_explicit_implicit_and_sliced_losses_have_the_same_gradient(dim):
    mixture = random_mixture(dim, [0, 0, 1])
    x, weights = mixture_nodes(mixture, {1: 200, 2: 50, 3: 24}[dim])
    matrix = 0.3 * torch.randn(dim, dim, generator=torch.Generator().manual_seed(1), dtype=F64)
    explicit = gradients(lambda s: score_matching.explicit_loss(s, mixture.score, x, weights), matrix)
    implicit = gradients(lambda s: score_matching.implicit_loss(s, x, weights), matrix)
    assert float((explicit - implicit).abs().max()) < 2e-3 * float(explicit.abs().max())
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * dim).view(-1, dim)
    sliced = sum(
        gradients(lambda s, v=v: score_matching.sliced_loss(s, x, v.expand_as(x), weights), matrix) for v in signs
    )
    assert float((sliced / len(signs) - implicit).abs().max()) < 1e-12


def test_the_denoising_loss_has_the_gradient_of_the_explicit_one_of_noisy_points():
    """By quadrature over the clean point and over the noise."""
    mixture, sigma = FOUR.mixture(), 0.8
    x_0, weights = mixture_nodes(mixture, 8)
    eps, chances = mixture_nodes(random_normal(), 16)
    both = torch.cartesian_prod(torch.arange(len(x_0)), torch.arange(len(eps)))
    clean, noise, weight = x_0[both[:, 0]], eps[both[:, 1]], weights[both[:, 0]] * chances[both[:, 1]]
    matrix = torch.tensor([[0.4, -0.2], [0.1, 0.3]], dtype=F64)
    noisy = mixture.noised(1.0, sigma)
    nodes, noisy_weights = mixture_nodes(noisy, 40)
    explicit = gradients(lambda s: score_matching.explicit_loss(s, noisy.score, nodes, noisy_weights), matrix)
    denoising = gradients(lambda s: score_matching.denoising_loss(s, clean, noise, sigma, weight * len(weight)), matrix)
    assert float((explicit - denoising).abs().max()) < 1e-3 * float(explicit.abs().max())


def random_normal():
    from tests.oracles.mixtures import single

    return single([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])


def test_a_weight_and_a_level_for_each_point():
    x_0, eps = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    sigma = torch.linspace(0.2, 2, 6, dtype=F64)[:, None]
    each = torch.stack(
        [score_matching.denoising_loss(lambda x: -x, x_0[k : k + 1], eps[k : k + 1], sigma[k, 0]) for k in range(6)]
    )
    assert float((score_matching.denoising_loss(lambda x: -x, x_0, eps, sigma) - each.mean()).abs()) < 1e-12
    weighted = score_matching.denoising_loss(lambda x: -x, x_0, eps, sigma, sigma[:, 0] ** 2)
    assert float((weighted - (each * sigma[:, 0] ** 2).mean()).abs()) < 1e-12


def test_shapes_are_compared():
    x = torch.zeros(4, 2, dtype=F64)
    for call, name in (
        (lambda: score_matching.explicit_loss(lambda x: x[:1], lambda x: x, x), "score's answer"),
        (lambda: score_matching.denoising_loss(lambda x: x, x, x[:1], 1.0), "eps"),
        (lambda: score_matching.denoising_loss(lambda x: x, x, x, torch.ones(4)), "sigma"),
        (lambda: score_matching.denoising_loss(lambda x: x, x, x, 1.0, torch.ones(4, 1)), "weights"),
        (lambda: score_matching.sliced_loss(lambda x: x, x, x[:, :1]), "directions"),
        (lambda: score_matching.implicit_loss(lambda x: x, x, torch.ones(3)), "weights"),
    ):
        with pytest.raises(ValueError, match=name):
            call()
