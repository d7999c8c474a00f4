"""The claims of chapter 19, each compared with an independent computation."""

import math

import pytest
import torch

from difflesson.schedule import cosine


# TODO one test for each claim. The marker names the equation; without a numbered equation, leave it out.
@pytest.mark.equation("eq-forward-marginal")
def test_noising_is_the_weighted_sum_at_every_time():
    schedule = cosine()
    x_0, eps = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0.0, 0.3, 1.0):
        share = 1 / (1 + math.exp(-schedule.log_snr(t)))  # of the signal in the variance
        expected = math.sqrt(share) * x_0 + math.sqrt(1 - share) * eps
        torch.testing.assert_close(schedule.add_noise(x_0, eps, t), expected, atol=1e-10, rtol=0)
