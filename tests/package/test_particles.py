"""Weighted points: the effective sample size against plain arithmetic, and what it refuses."""

import math

import numpy as np
import pytest
import torch

from difflesson.particles import effective_sample_size


@pytest.mark.equation("eq-ess-slope")
def test_it_is_the_square_of_the_sum_over_the_sum_of_the_squares_in_each_column():
    log_weights = 3 * torch.randn(7, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = np.exp(log_weights.numpy())
    expected = w.sum(0) ** 2 / (w**2).sum(0)
    assert np.abs(effective_sample_size(log_weights).numpy() - expected).max() < 1e-12


@pytest.mark.equation("eq-ess-slope")
@pytest.mark.parametrize("dim", [1, 3])
def test_of_a_slope_on_a_bell_it_is_the_exponential_of_minus_variance_times_slope_squared(dim):
    """200,000 points: the share's own scatter is below 0.005 here."""
    beta, g = 0.3, torch.tensor([1.1, -0.6, 0.4], dtype=torch.float64)[:dim]
    x = math.sqrt(beta) * torch.randn(200_000, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share = float(effective_sample_size(x @ g)) / len(x)
    assert abs(share - math.exp(-beta * float(g @ g))) < 0.01


def test_equal_weights_count_fully_one_point_counts_once_and_a_constant_changes_nothing():
    equal = torch.full((5,), -700.0, dtype=torch.float64)
    assert abs(float(effective_sample_size(equal)) - 5) < 1e-12
    assert float(effective_sample_size(torch.tensor([0.3]))) == 1
    alone = torch.tensor([2.0, -math.inf, -math.inf, -math.inf])
    assert abs(float(effective_sample_size(alone)) - 1) < 1e-6
    uneven = torch.tensor([0.1, -2.0, 1.5, 0.0], dtype=torch.float64)
    assert abs(float(effective_sample_size(uneven + 900) - effective_sample_size(uneven))) < 1e-9


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(0), torch.tensor(1.0), torch.tensor([1, 2]), torch.tensor([0.0, math.nan]),
     torch.tensor([0.0, math.inf]), torch.full((3, 2), -math.inf)],
)  # fmt: skip
def test_what_is_no_table_of_weights_is_refused(bad):
    with pytest.raises(ValueError, match="log_weights"):
        effective_sample_size(bad)
