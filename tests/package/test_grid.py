"""A density summed over a grid, against mixtures in closed form and against SciPy's quadrature."""

import math

import pytest
import torch
from scipy import integrate

from difflesson.grid import GridDensity
from tests.oracles.mixtures import FOUR

MIXTURE, LABEL = FOUR.mixture(), 1


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_of_a_mixture_it_has_the_exact_moments_and_normaliser():
    grid = GridDensity(lambda x: MIXTURE.log_prob(x) + 2.5, low=-9, high=(10, 9), cells=240)
    assert abs(grid.log_normaliser - 2.5) < 1e-9
    mean = MIXTURE.weights @ MIXTURE.means
    away = MIXTURE.means - mean
    cov = (MIXTURE.weights[:, None, None] * (MIXTURE.covs + away[:, :, None] * away[:, None, :])).sum(0)
    assert float((grid.mean - mean).abs().max()) < 1e-9 and float((grid.cov - cov).abs().max()) < 1e-9
    x = torch.tensor([[0.3, -1.0], [2.0, 2.0]], dtype=torch.float64)
    assert float((grid.log_prob(x) - MIXTURE.log_prob(x)).abs().max()) < 1e-9


def test_the_normaliser_of_a_tilted_mixture_is_scipys():
    def log(x):
        return MIXTURE.log_prob(x) + 3 * MIXTURE.class_log_prob(x, LABEL)

    def density(b, a):
        return float(log(torch.tensor([[a, b]], dtype=torch.float64)).exp())

    grid = GridDensity(log, -6, 7, cells=160)
    truth, _ = integrate.dblquad(density, -6, 7, -6, 7, epsabs=1e-7)
    assert abs(math.exp(grid.log_normaliser) - truth) < 1e-6


def test_draws_have_the_moments_to_five_standard_errors():
    grid = GridDensity(lambda x: MIXTURE.log_prob(x) + 2 * MIXTURE.class_log_prob(x, LABEL), -7, 8, cells=300)
    count = 200_000
    draws = grid.sample(count, seeded(0))
    assert draws.shape == (count, 2)
    assert bool(((draws.mean(0) - grid.mean).abs() < 5 * (grid.cov.diagonal() / count).sqrt()).all())
    squares = (draws - grid.mean).square()
    bound = 5 * squares.std(0) / count**0.5 + (grid.cell**2 / 12)
    assert bool(((squares.mean(0) - grid.cov.diagonal()).abs() < bound).all())


def test_draws_fill_their_cells():
    grid = GridDensity(lambda x: torch.where(x.abs().amax(1) < 1, 0.0, -torch.inf).double(), -3, 3, cells=6)
    draws = grid.sample(20_000, seeded(1))
    assert 0.99 < float(draws.abs().max()) <= 1
    assert abs(float(draws.square().mean()) - 1 / 3) < 0.01  # uniform on [-1, 1]; the midpoints alone would give 1 / 4


def test_an_expectation_has_the_shape_of_its_function():
    grid = GridDensity(MIXTURE.log_prob, -9, 10)
    assert grid.expectation(lambda x: x[:, 0]).shape == ()
    outer = grid.expectation(lambda x: x[:, :, None] * x[:, None, :])
    assert float((outer - grid.cov - grid.mean[:, None] * grid.mean).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cells": 1}, "cells must be at least 3"),
        ({"low": 3, "high": 3}, "low must be below high"),
        ({"high": (4, math.inf)}, "both finite"),
        ({"low": -1, "high": 1}, "must enclose the density"),
        ({"log_density": lambda x: x}, r"must have shape \(40000,\)"),
        ({"log_density": lambda x: x[:, 0] * math.nan}, "must be a number or -inf"),
        ({"log_density": lambda x: x[:, 0] * 0 - math.inf}, "finite somewhere"),
    ],
)
def test_bad_input_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        GridDensity(**{"log_density": MIXTURE.log_prob, "low": -9, "high": 10} | wrong)


def test_draws_need_a_count_and_a_generator():
    grid = GridDensity(MIXTURE.log_prob, -9, 10)
    with pytest.raises(ValueError, match="count must be at least 1"):
        grid.sample(0, seeded(0))
    with pytest.raises(ValueError, match="generator"):
        grid.sample(3, None)


def test_two_cells_are_refused_since_both_are_outermost():
    with pytest.raises(ValueError, match="cells must be at least 3, got 2"):
        GridDensity(MIXTURE.log_prob, -8, 8, 2)


def test_a_density_that_answers_in_float32_has_moments():
    narrow = MIXTURE.to(torch.float32)
    rough = GridDensity(lambda x: narrow.log_prob(x.float()), -8, 8, 100)
    assert float((rough.mean - MIXTURE.weights @ MIXTURE.means).abs().max()) < 1e-5
