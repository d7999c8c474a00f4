"""Guided densities and what comes instead: bad input, neutral elements, dimensions. The equations are chapter 17's."""

import math

import pytest
import torch

from difflesson import path
from tests.oracles.mixtures import FOUR, random_mixture

MIXTURE, LABEL, F64 = FOUR.mixture(), 1, torch.float64
LEVELS = torch.cat([torch.linspace(0, 1, 9, dtype=F64)[:-1], torch.logspace(0, 1.5, 12, dtype=F64)]) ** 2


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_without_guidance_and_with_the_label_alone_nothing_is_made(gamma):
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert float(path.source(MIXTURE, LABEL, gamma, x, 0.7).abs().max()) == 0
    clean = MIXTURE if gamma == 0 else MIXTURE.given(LABEL)
    assert float((path.combined_log_density(MIXTURE, LABEL, gamma, x, 0.0) - clean.log_prob(x)).abs().max()) < 1e-12


def test_any_dimension_and_one_point_will_do():
    for dim in (1, 3):
        mixture = random_mixture(dim, [0, 1, 1])
        x = torch.zeros(1, dim, dtype=F64)
        begun, energy = path.follow(mixture, 1, 2.0, x, LEVELS)
        assert begun.shape == (1, dim) and energy.shape == (1,) and float(energy) > 0
        assert path.sampled_log_prob(mixture, 1, 2.0, x, LEVELS).shape == (1,)


def test_a_shift_of_a_gaussian_along_itself_is_followed_exactly_to_second_order():
    """N(0, C): every path is x sqrt((C + Q) / C)."""
    mixture = random_mixture(1, [0])
    mean, var = mixture.means[0], mixture.variances[0]
    x = mean + torch.tensor([[0.4], [-1.3]], dtype=F64)
    exact = mean + (x - mean) * ((var + LEVELS[-1]) / var).sqrt()
    errors = []
    for parts in (2, 4):
        roots = torch.cat([torch.linspace(float(a), float(b), parts + 1, dtype=F64)[:-1]
                           for a, b in zip(LEVELS[:-1].sqrt(), LEVELS[1:].sqrt(), strict=True)])  # fmt: skip
        levels = torch.cat([roots**2, LEVELS[-1:]])
        errors.append(float((path.follow(mixture, 0, 0.0, x, levels)[0] - exact).abs().max()))
    assert 3.2 < errors[0] / errors[1] < 4.8 and errors[1] < 1


@pytest.mark.parametrize("levels", [[0.0], [0.1, 1.0], [0.0, 1.0, 1.0], [[0.0, 1.0]]])
def test_levels_must_increase_from_zero(levels):
    with pytest.raises(ValueError, match="levels must"):
        path.follow(MIXTURE, LABEL, 2.0, torch.zeros(1, 2, dtype=F64), torch.tensor(levels, dtype=F64))


@pytest.mark.parametrize(("C", "U", "rho", "name"), [
    (0.0, 1.0, 1.0, "variances"), (1.0, -1.0, 1.0, "variances"), (1.0, 2.0, 0.01, "rho"), (1.0, 2.0, -1.0, "rho"),
    (1.0, 2.0, math.inf, "rho"), (1.0, 2.0, math.nan, "rho"),
])  # fmt: skip
def test_a_variance_needs_variances_and_a_noise(C, U, rho, name):
    with pytest.raises(ValueError, match=name):
        path.guided_variance(C, U, 2.0, rho)


def test_the_corrector_needs_noise():
    for rho in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="rho must"):
            path.corrector_scale(2.0, rho)
    assert path.corrector_scale(3.0, 0.7, 3.0) == 3.0
