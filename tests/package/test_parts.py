"""Parts print as what they are; memory belongs to one run, is passed on by whatever wraps it, and is never lost."""

import copy
from dataclasses import dataclass

import pytest
import torch

from difflesson import kernels
from difflesson.denoiser import Denoiser, Pair, Prediction, network_pair, predict
from difflesson.guidance import classifier_free, gradient, mix, tilt
from difflesson.parts import Part, Remembering
from difflesson.plane import four_blobs
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, from_betas, vp_linear

SCHEDULE, MIXTURE, TIMES = vp_linear(), four_blobs(), time_grid(12)
START = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class counting(Remembering):
    """A denoiser that pushes x0 by the number of times it was asked before: momentum, in its simplest form."""

    denoiser: Denoiser

    def __call__(self, x, t):
        memory = self.recall()
        before = memory["calls"] = memory.get("calls", -1) + 1
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        return Prediction.from_x0(x, predict(self.denoiser, x, t).x0 + 0.1 * before, alpha, sigma)


def by_hand(steps):
    """A DDIM run with the pushes written out."""
    ideal, x = MIXTURE.denoiser(SCHEDULE), START
    for before, (t, s) in enumerate(zip(steps[:-1], steps[1:], strict=True)):
        x0 = ideal(x, t).x0 + 0.1 * before
        eps = (x - SCHEDULE.alpha(t) * x0) / SCHEDULE.sigma(t)
        x = SCHEDULE.alpha(s) * x0 + SCHEDULE.sigma(s) * eps
    return x


def wrapped_in(how, part):
    """A denoiser that asks `part` through another part of the package, and answers the same."""
    plain = MIXTURE.denoiser(SCHEDULE)
    grad = gradient(lambda x, t: x.sum(1))
    return {
        "nothing": part,
        "tilt": tilt(part, grad, 0.0, SCHEDULE),
        "classifier_free": classifier_free(Pair(part, plain), 1.0),
        "mix": mix(Pair(plain, part), lambda cond, uncond, x, t: uncond),
        "two wrappers": classifier_free(Pair(plain, tilt(part, grad, 0.0, SCHEDULE)), 0.0),
    }[how]


@pytest.mark.parametrize("how", ["nothing", "tilt", "classifier_free", "mix", "two wrappers"])
def test_a_denoiser_keeps_its_memory_inside_every_guidance(how):
    kernel = kernels.ddim(wrapped_in(how, counting(MIXTURE.denoiser(SCHEDULE))), SCHEDULE)
    first, second = draw(kernel, START, TIMES), draw(kernel, START, TIMES)
    torch.testing.assert_close(first, by_hand(TIMES), atol=1e-12, rtol=0)
    assert torch.equal(first, second)  # each run begins anew


def test_a_solver_keeps_its_memory_inside_a_shift():
    solver = kernels.dpmpp_2m(MIXTURE.denoiser(SCHEDULE), SCHEDULE)
    shifted = kernels.shift(solver, gradient(lambda x, t: x.sum(1)), 3.0)  # no variance, so nothing is shifted
    assert torch.equal(draw(shifted, START, TIMES), draw(solver, START, TIMES))
    ddim = draw(kernels.ddim(MIXTURE.denoiser(SCHEDULE), SCHEDULE), START, TIMES)
    assert float((draw(shifted, START, TIMES) - ddim).abs().max()) > 0.01


@pytest.mark.parametrize("wrap", [lambda k: k, lambda k: lambda x, t, s: k(x, t, s)])
def test_a_solver_whose_memory_is_out_of_reach_raises_instead_of_becoming_ddim(wrap):
    hidden = wrap(kernels.dpmpp_2m(MIXTURE.denoiser(SCHEDULE), SCHEDULE))
    with pytest.raises(ValueError, match="dpmpp_2m has a memory, which belongs to one run"):
        hidden(START, 0.9, 0.8) if isinstance(hidden, Part) else draw(hidden, START, TIMES)


def test_a_denoiser_whose_memory_is_out_of_reach_raises():
    memory = counting(MIXTURE.denoiser(SCHEDULE))
    with pytest.raises(ValueError, match="counting has a memory"):
        draw(kernels.ddim(lambda x, t: memory(x, t), SCHEDULE), START, TIMES)


def test_a_part_that_was_started_gives_fresh_runs_all_the_same():
    kernel = kernels.dpmpp_2m(MIXTURE.denoiser(SCHEDULE), SCHEDULE)
    started = kernel.start()
    started(START, 0.9, 0.8)  # it has something to remember, which no other run may see
    assert torch.equal(draw(started, START, TIMES), draw(kernel, START, TIMES))
    assert torch.equal(draw(started, START, TIMES), draw(kernel, START, TIMES))


def test_parts_print_as_what_they_are():
    guided = classifier_free(MIXTURE.pair(SCHEDULE, 1), 3.0)
    printed = repr(kernels.ddim(guided, cosine(), 0.5))
    assert printed.startswith("ddim(denoiser=classifier_free(pair=Pair(cond=MixtureDenoiser(mixture=GaussianMixture(4 ")
    for piece in ("gamma=3.0", "schedule=vp_linear(0.1, 20.0)", "schedule=cosine(20.0, -20.0)", "eta=0.5", "label=1"):
        assert piece in printed
    assert repr(from_betas(torch.linspace(1e-4, 0.02, 50))) == "from_betas(50 steps)"
    assert "0x" not in printed


def test_parts_are_frozen():
    with pytest.raises(AttributeError):
        kernels.ddim(MIXTURE.denoiser(SCHEDULE), SCHEDULE).eta = 1.0


def test_a_part_that_stands_in_two_places_has_one_memory():
    denoiser = counting(MIXTURE.denoiser(SCHEDULE))
    started = kernels.ddim(denoiser, SCHEDULE, noise_from=denoiser).start()
    assert started.denoiser is started.noise_from
    started(START, 0.9, 0.8)
    assert started.denoiser.memory["calls"] == 1  # asked twice, counted from 0


def test_a_memory_that_is_of_another_run_is_noticed():
    started = kernels.dpmpp_2m(MIXTURE.denoiser(SCHEDULE), SCHEDULE).start()
    started(START, 0.9, 0.8)
    with pytest.raises(ValueError, match="t must be where this run's last step ended, 0.8, got 0.9"):
        started(START, 0.9, 0.8)


def test_a_network_pair_is_copied_with_its_network():
    class Network(torch.nn.Module):
        classes = 2

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x, log_snr, label):
            return self.scale * x * label[:, None]

    network = Network()
    pair = network_pair(network, SCHEDULE, 1)
    copied, before = copy.deepcopy(pair), pair(START, 0.5)[0].eps
    with torch.no_grad():
        network.scale.mul_(2)
    for answer in (copied(START, 0.5)[0], copied.cond(START, 0.5)):
        assert torch.equal(answer.eps, before)
    assert not torch.equal(pair(START, 0.5)[0].eps, before)
