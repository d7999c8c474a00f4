"""What a caller does to a tensor afterwards changes nothing that was made from it, and nothing that comes after."""

import numpy as np
import pytest
import torch

from difflesson import kernels
from difflesson.divergence import hermite, mixture_nodes
from difflesson.mixture import GaussianMixture
from difflesson.plane import four_blobs
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import from_betas, vp_linear

F64 = torch.float64
SCHEDULE, MIXTURE, TIMES = vp_linear(), four_blobs(), time_grid(6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(seed=0):
    return torch.randn(5, 2, generator=seeded(seed), dtype=F64)


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_a_mixture_keeps_what_it_was_made_of(kind):
    """log_prob used the means as they were, sample those that the caller had changed."""
    parts = [kind([0.4, 0.6]), kind([[0.0, 1.0], [2.0, 3.0]]), kind([[[1.0, 0.2], [0.2, 1.0]]] * 2), kind([0, 1])]
    mixture = GaussianMixture(*parts)
    x = torch.zeros(3, 2, dtype=mixture.means.dtype)

    def answers():
        return [mixture.log_prob(x), mixture.score(x), mixture.sample(4, seeded())[0], mixture.means.clone(),
                mixture.noised(0.5, 0.5).means, mixture.given(1).covs, mixture.class_weights()]  # fmt: skip

    before = answers()
    for part in parts:
        part *= 0
        part += 7
    for old, new in zip(before, answers(), strict=True):
        assert torch.equal(old, new)


def test_a_schedule_keeps_its_table():
    betas = torch.full((4,), 0.1, dtype=F64)
    schedule = from_betas(betas)
    before = schedule.alpha(1.0)
    betas += 0.5
    assert schedule.alpha(1.0) == before


def test_quadrature_nodes_that_a_caller_changes_are_his_own():
    before = [part.clone() for part in hermite(5, 2)]
    for part in (*hermite(5, 2), *mixture_nodes(MIXTURE, 5)):
        part += 100
    for old, new in zip(before, hermite(5, 2), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("change", [lambda state: state.mul_(0.5), lambda state: state.numpy().fill(0)],
                         ids=["in torch", "in NumPy"])  # fmt: skip
@pytest.mark.parametrize("make", [kernels.ddim, kernels.ddpm, kernels.heun, kernels.dpmpp_2m])
def test_a_run_goes_on_from_its_own_state_whatever_is_done_to_a_yielded_one(make, change):
    kernel, start = make(MIXTURE.denoiser(SCHEDULE), SCHEDULE), noise()
    undisturbed = list(sample(kernel, start, TIMES, seeded(1)))
    for old, state in zip(undisturbed, sample(kernel, start, TIMES, seeded(1)), strict=True):
        assert torch.equal(old, state)
        change(state)
    assert torch.equal(start, noise())  # the first state is not the caller's tensor either


def test_a_run_starts_from_the_points_it_was_given():
    kernel, start = kernels.ddim(MIXTURE.denoiser(SCHEDULE), SCHEDULE), noise()
    states = sample(kernel, start, TIMES)  # nothing is computed yet
    start.zero_()
    assert torch.equal(list(states)[-1], draw(kernel, noise(), TIMES))


def test_a_corrector_may_work_in_place():
    kernel = kernels.dpmpp_2m(MIXTURE.denoiser(SCHEDULE), SCHEDULE)
    in_place = draw(kernel, noise(), TIMES, after=lambda x, t, s: x.clamp_(-1, 1))
    assert torch.equal(in_place, draw(kernel, noise(), TIMES, after=lambda x, t, s: x.clamp(-1, 1)))
