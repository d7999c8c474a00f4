"""Langevin walks: bad input, neutral elements, dimensions, rates. The equations are chapter 04's."""

import math

import pytest
import torch

from difflesson import langevin
from difflesson.denoiser import Prediction
from difflesson.schedule import cosine, vp_linear
from tests.oracles.mixtures import FOUR, random_mixture, single

MIXTURE, F64 = FOUR.mixture(), torch.float64
X = torch.tensor([[0.3, -0.4], [1.5, 0.2], [-1.0, 2.0]], dtype=F64)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_steps_change_nothing():
    assert torch.equal(langevin.unadjusted(MIXTURE.score, X, 0.1, 0, random()), X)
    same, taken = langevin.metropolis_adjusted(MIXTURE.log_prob, MIXTURE.score, X, 0.1, 0, random())
    assert torch.equal(same, X) and float(taken) == 1
    assert torch.equal(langevin.annealed(lambda x, s: x, X, [], 0.1, 5, random()), X)


@pytest.mark.parametrize("c", [0.0, -0.1, math.inf, math.nan])
def test_a_step_has_a_length(c):
    for walk in (
        lambda: langevin.unadjusted(MIXTURE.score, X, c, 1, random()),
        lambda: langevin.metropolis_adjusted(MIXTURE.log_prob, MIXTURE.score, X, c, 1, random()),
        lambda: langevin.annealed(lambda x, s: x, X, [1.0], c, 1, random()),
    ):
        with pytest.raises(ValueError, match="c must be above 0"):
            walk()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="count"):
        langevin.unadjusted(MIXTURE.score, X, 0.1, -1, random())
    with pytest.raises(ValueError, match="score's answer"):
        langevin.unadjusted(lambda x: x[:, :1], X, 0.1, 1, random())
    with pytest.raises(ValueError, match="generator"):
        langevin.unadjusted(MIXTURE.score, X, 0.1, 1, None)
    with pytest.raises(ValueError, match="log_prob's answer"):
        langevin.metropolis_adjusted(lambda x: x, MIXTURE.score, X, 0.1, 1, random())
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="sigmas"):
            langevin.annealed(lambda x, s: x, X, [1.0, sigma], 0.1, 1, random())
    with pytest.raises(ValueError, match="low must be below high"):
        langevin.relaxation_rates(MIXTURE.log_prob, [1.0, 0.0], [0.0, 1.0], [10, 10])
    with pytest.raises(ValueError, match="cells at least 3"):
        langevin.relaxation_rates(MIXTURE.log_prob, [0.0, 0.0], [1.0, 1.0], [2, 10])


@pytest.mark.parametrize("dim", [1, 3])
def test_a_walk_keeps_shape_and_dtype_in_any_dimension(dim):
    mixture = random_mixture(dim, [0, 1, 1])
    for dtype in (F64, torch.float32):
        x, one = torch.zeros(4, dim, dtype=dtype), mixture.to(dtype)
        ends = [
            langevin.unadjusted(one.score, x, 0.01, 3, random()),
            langevin.metropolis_adjusted(one.log_prob, one.score, x, 0.01, 3, random())[0],
            langevin.annealed(lambda z, s, p=one: p.noised(1.0, s).score(z), x, [2.0, 1.0], 0.1, 2, random()),
        ]
        assert all(end.shape == x.shape and end.dtype == dtype for end in ends)


@pytest.mark.parametrize("schedule", [cosine(), vp_linear()], ids=str)
def test_a_denoiser_of_shrunk_points_has_the_score_of_unshrunk_ones(schedule):
    score = langevin.score_of(MIXTURE.denoiser(schedule), schedule)
    for sigma in (0.1, 1.0, 8.0):
        assert float((score(X, sigma) - MIXTURE.noised(1.0, sigma).score(X)).abs().max()) < 1e-9
    with pytest.raises(ValueError, match="denoiser"):
        langevin.score_of(lambda x, t: Prediction(x[:1], x[:1]), schedule)(X, 1.0)


def test_rates_of_a_bell_are_multiples_of_one_over_its_variance_to_second_order_in_the_cells():
    bell, errors = random_mixture(1, [0]), []
    mean, var = float(bell.means[0, 0]), float(bell.variances[0, 0])
    ends = [mean - 7 * var**0.5], [mean + 7 * var**0.5]
    for cells in (100, 200):
        rates = langevin.relaxation_rates(bell.log_prob, *ends, [cells], 4)
        errors.append(float((rates * var - torch.arange(4)).abs().max()))
    assert errors[1] < 0.02 and 3.5 < errors[0] / errors[1] < 4.5


def test_rates_in_the_plane_are_sums_of_those_along_the_axes_and_a_shift_of_the_logarithm_changes_none():
    bell = single([0.2, -0.1], [[0.5, 0.0], [0.0, 2.0]])
    rates = langevin.relaxation_rates(lambda x: bell.log_prob(x) + 300, [-4.5, -9.0], [5.0, 9.0], [90, 90], 5)
    assert float((rates - torch.tensor([0, 0.5, 1.0, 1.5, 2.0], dtype=F64)).abs().max()) < 0.02


def test_a_noise_louder_than_the_schedule_is_refused_and_its_loudest_is_right():
    schedule = vp_linear()
    score, loudest = langevin.score_of(MIXTURE.denoiser(schedule), schedule), float((-schedule.log_snr(1.0) / 2).exp())
    want = MIXTURE.noised(1.0, loudest).score(100 * X)
    assert float((score(100 * X, loudest) - want).abs().max()) < 1e-9 * float(want.abs().max())
    with pytest.raises(ValueError, match="sigma must be at most"):
        score(X, 1000.0)
