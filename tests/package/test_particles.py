"""Weighted points: effective size, resampling and the loop against exact answers, and what they refuse."""

import math
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from difflesson import kernels, particles
from difflesson.denoiser import Prediction
from difflesson.guidance import tilt
from difflesson.particles import effective_sample_size, multinomial, systematic
from difflesson.parts import Remembering
from difflesson.plane import four_blobs
from difflesson.samplers import draw, time_grid
from difflesson.schedule import vp_linear
from difflesson.steps import Gaussian

SCHEDULE, MIXTURE = vp_linear(), four_blobs()
DENOISER = MIXTURE.denoiser(SCHEDULE)
END = torch.tensor(1.0, dtype=torch.float64)
NOISE = MIXTURE.noised(SCHEDULE.alpha(END), SCHEDULE.sigma(END))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count, seed=0, dtype=torch.float64):
    return torch.randn(count, 2, generator=seeded(seed), dtype=dtype)


def nothing(step, x, new, t, s):
    return torch.zeros(len(x))


def log_label(x, t, label=1):
    return MIXTURE.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t)).class_log_prob(x, label)


def towards_the_label(step, x, new, t, s):
    """With proposals that know no label: each step's ratio of `p(y | x)`."""
    return log_label(new, s) - log_label(x, t)


def told_by(step, x, new, t, s):
    """A weight that depends on where a point is, at the first step only."""
    return 4 * x[:, 0] if t > 0.95 else torch.zeros(len(x), dtype=x.dtype)


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


UNEVEN = torch.tensor([0.31, 0.0, 0.02, 0.27, 0.4], dtype=torch.float64)


@pytest.mark.parametrize("rule", [systematic, multinomial])
@pytest.mark.parametrize("count", [3, 5, 12])
def test_each_index_is_drawn_in_proportion_to_its_weight(rule, count):
    """4,000 draws; 4.5 standard errors of an independent draw, which is the larger one."""
    generator, runs = seeded(1), 4000
    counts = sum(torch.bincount(rule(UNEVEN.log() + 7, generator, count), minlength=5) for _ in range(runs))
    error = (count * UNEVEN * (1 - UNEVEN) / runs).sqrt()
    assert bool(((counts / runs - count * UNEVEN).abs() <= 4.5 * error).all())


@pytest.mark.parametrize("count", [1, 5, 64, 1000])
def test_systematic_resampling_rounds_the_expected_number_down_or_up(count):
    for seed in range(50):
        counts = torch.bincount(systematic(UNEVEN.log(), seeded(seed), count), minlength=5)
        assert counts.sum() == count and bool(((counts - count * UNEVEN).abs() < 1).all())


def test_independent_draws_scatter_as_a_multinomial_does():
    generator = seeded(2)
    counts = torch.stack([torch.bincount(multinomial(UNEVEN.log(), generator), minlength=5) for _ in range(4000)])
    torch.testing.assert_close(counts.double().var(0), 5 * UNEVEN * (1 - UNEVEN), rtol=0.12, atol=1e-9)


@pytest.mark.parametrize("rule", [systematic, multinomial])
def test_a_weight_of_zero_is_never_drawn_and_one_of_everything_always(rule):
    log_weights = torch.full((100_000,), -700.0).double()
    log_weights[99_990:] = -math.inf
    assert int(rule(log_weights, seeded()).max()) < 99_990
    log_weights[7] = 700.0
    assert bool((rule(log_weights, seeded()) == 7).all())


@pytest.mark.parametrize("rule", [systematic, multinomial])
@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_no_point_without_a_weight(rule, u, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **given: torch.full((shape,) if shape else (), u).double())
    log_weights = torch.tensor([0.0, 0.3, 0.0, 0.1, 0.0], dtype=torch.float64).log()
    assert {int(i) for i in rule(log_weights, seeded(), 3)} <= {1, 3}


def test_equal_weights_are_left_alone_by_systematic_resampling():
    assert torch.equal(systematic(torch.full((9,), 3.0), seeded(5)), torch.arange(9))


@pytest.mark.parametrize("below, resample", [(0, systematic), (0.5, systematic), (1, systematic), (1, multinomial)])
def test_the_normaliser_is_the_probability_of_the_label_without_bias(below, resample):
    """Proposals that know no label, weights `p_t(y | x_t)`: the mean weight is on average p(y), here 0.4, with as few
    as 10 particles and 5 steps. 120 populations; level: 4.5 standard errors."""
    generator, kernel, times = seeded(3), kernels.exact(MIXTURE, SCHEDULE), time_grid(5)
    estimates = []
    for _ in range(120):
        x = NOISE.sample(10, generator)[0]
        options = {"log_weights": log_label(x, END), "resample": resample, "below": below}
        last = particles.draw(kernel, towards_the_label, x, times, generator, **options)
        estimates.append(float(last.log_normaliser.exp()))
    truth = float(MIXTURE.weights[2:].sum())
    assert abs(np.mean(estimates) - truth) < 4.5 * np.std(estimates) / len(estimates) ** 0.5
    assert np.std(estimates) / len(estimates) ** 0.5 < 0.03


def test_the_weighted_mean_is_that_of_the_class():
    """4,000 particles in 20 exact steps against the class in closed form, four standard errors."""
    x = NOISE.sample(4000, seeded(4))[0]
    start = log_label(x, END)
    kernel = kernels.exact(MIXTURE, SCHEDULE)
    last = particles.draw(kernel, towards_the_label, x, time_grid(20), seeded(5), log_weights=start)
    shares, means, covs = (a[2:] for a in (MIXTURE.weights / MIXTURE.weights[2:].sum(), MIXTURE.means, MIXTURE.covs))
    mean = shares @ means
    variance = shares @ (covs.diagonal(dim1=1, dim2=2) + (means - mean).square())
    assert bool(((last.expectation(lambda x: x) - mean).abs() < 4 * (variance / last.ess).sqrt()).all())
    by_hand = (last.weights[:, None] * last.x).sum(0)
    torch.testing.assert_close(last.expectation(lambda x: x), by_hand, atol=1e-12, rtol=0)


@dataclass(frozen=True, eq=False)
class with_momentum(Remembering):
    """A denoiser that goes on in the direction in which its guess of each point last moved."""

    def __call__(self, x, t):
        memory, guess = self.recall(), DENOISER(x, t).x0
        push = 0.3 * (guess - memory["guess"]) if memory else 0
        memory["guess"] = guess
        return Prediction.from_x0(x, guess + push, SCHEDULE.alpha(t), SCHEDULE.sigma(t))


SOLVERS = {
    "ddim": kernels.ddim(DENOISER, SCHEDULE),
    "dpmpp_2m": kernels.dpmpp_2m(DENOISER, SCHEDULE),
    "inside a guidance": kernels.ddim(tilt(with_momentum(), lambda x, t: x, 0.1, SCHEDULE), SCHEDULE),
    "both remember": kernels.dpmpp_2m(tilt(with_momentum(), lambda x, t: x, 0.1, SCHEDULE), SCHEDULE),
    "inside a shift": kernels.shift(kernels.dpmpp_2m(DENOISER, SCHEDULE), lambda x, t: x, 1.0),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_what_a_solver_remembers_follows_the_copies(name):
    """Without noise a copy goes on exactly as its ancestor would have gone."""
    x, times = noise(64, seed=6), time_grid(12, start=0.999)
    run = particles.draw(SOLVERS[name], told_by, x, times, seeded(7))
    assert len(run.ancestors.unique()) < 30
    torch.testing.assert_close(run.x, draw(SOLVERS[name], x, times)[run.ancestors], atol=1e-10, rtol=0)


def test_ancestors_are_points_of_the_start_however_often_the_population_was_drawn_anew():
    x, times = noise(64, seed=6), time_grid(6, start=0.999)
    run = particles.draw(SOLVERS["ddim"], lambda step, x, new, t, s: 4 * x[:, 1], x, times, seeded(7), below=1.0)
    torch.testing.assert_close(run.x, draw(SOLVERS["ddim"], x, times)[run.ancestors], atol=1e-10, rtol=0)


def test_a_part_in_the_kernel_and_in_the_rule_is_one_and_is_reordered_once():
    memory, seen = with_momentum(), []

    @dataclass(frozen=True, eq=False)
    class rule(Remembering):
        denoiser: with_momentum

        def __call__(self, step, x, new, t, s):
            seen.append(self.denoiser.memory["guess"])
            return told_by(step, x, new, t, s)

    x, times = noise(64, seed=6), time_grid(6, start=0.999)
    run = particles.draw(kernels.ddim(memory, SCHEDULE), rule(memory), x, times, seeded(7))
    assert len(seen) == 6 and len(run.ancestors.unique()) < 30
    alone = draw(kernels.ddim(memory, SCHEDULE), x, times)
    torch.testing.assert_close(run.x, alone[run.ancestors], atol=1e-10, rtol=0)
    assert memory.memory is None


def test_weights_are_yielded_before_resampling_and_the_normaliser_goes_on_after_it():
    x, times = noise(64, seed=6), time_grid(3, start=0.999)
    start, first, *rest = particles.sample(SOLVERS["ddim"], told_by, x, times, seeded(7))
    assert abs(float(start.ess) - 64) < 1e-9 and float(first.ess) < 16
    torch.testing.assert_close(first.log_weights, 4 * x[:, 0], atol=0, rtol=0)
    truth = math.log(float((4 * x[:, 0]).exp().mean()))
    for later in (first, *rest):
        assert abs(float(later.log_normaliser) - truth) < 1e-12
    assert abs(float(rest[0].ess) - 64) < 1e-9


@pytest.mark.parametrize("below, resampled", [(0.0, False), (0.999, True), (1.0, True)])
def test_below_is_the_share_under_which_the_population_is_drawn_anew(below, resampled):
    calls = []

    def noted(log_weights, generator):
        calls.append(float(effective_sample_size(log_weights)))
        return systematic(log_weights, generator)

    options = {"below": below, "resample": noted}
    particles.draw(SOLVERS["ddim"], told_by, noise(64), time_grid(5, start=0.999), seeded(), **options)
    assert len(calls) == resampled and all(size < below * 64 for size in calls)


def test_equal_weights_are_never_resampled():
    run = particles.draw(kernels.ddpm(DENOISER, SCHEDULE), nothing, noise(16), time_grid(5), seeded(8), below=1.0)
    assert torch.equal(run.ancestors, torch.arange(16))
    assert torch.equal(run.x, draw(kernels.ddpm(DENOISER, SCHEDULE), noise(16), time_grid(5), seeded(8)))
    assert float(run.log_normaliser) == 0


def test_one_seed_gives_one_population_and_the_start_is_untouched():
    x, kernel = noise(32), kernels.ddpm(DENOISER, SCHEDULE)
    kept = x.clone()
    one, two = (particles.draw(kernel, told_by, x, time_grid(5, start=0.999), seeded(9)) for _ in range(2))
    assert torch.equal(one.x, two.x) and torch.equal(one.log_weights, two.log_weights) and torch.equal(x, kept)
    assert not torch.equal(one.x, particles.draw(kernel, told_by, x, time_grid(5, start=0.999), seeded(10)).x)


def test_single_precision_points_have_double_precision_weights():
    def halved(x, t, s):
        return Gaussian(x / 2, torch.tensor(0.1))

    run = particles.draw(halved, told_by, noise(8, dtype=torch.float32), time_grid(4, start=0.999), seeded())
    assert run.x.dtype == torch.float32 and run.log_weights.dtype == torch.float64
    assert run.expectation(lambda x: x).dtype == torch.float32


def test_nothing_is_kept_but_the_latest_population():
    walk, seen = particles.sample(SOLVERS["ddim"], told_by, noise(8), time_grid(9, start=0.999), seeded()), []
    for now in walk:
        seen.append(weakref.ref(now.log_weights))
    assert sum(ref() is not None for ref in seen) == 1


def test_a_corrector_moves_the_points_and_leaves_the_weights():
    x, times = noise(8), time_grid(4, start=0.999)
    run = particles.draw(SOLVERS["ddim"], nothing, x, times, seeded(), after=lambda x, t, s: x + 1)
    assert torch.equal(run.x, draw(SOLVERS["ddim"], x, times, after=lambda x, t, s: x + 1))
    assert float(run.log_weights.abs().max()) == 0


ARGUMENTS = {"kernel": SOLVERS["ddim"], "rule": nothing, "x": noise(8), "times": time_grid(3), "generator": seeded()}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"generator": None}, "generator must be"),
        ({"below": -0.1}, "below must be"),
        ({"below": math.nan}, "below must be"),
        ({"x": noise(8)[:, 0]}, "x must be"),
        ({"x": noise(8) / 0}, "x must be"),
        ({"times": torch.tensor([0.5, 0.7, 0.1])}, "times must be"),
        ({"log_weights": torch.zeros(7)}, "log_weights must give one float"),
        ({"log_weights": torch.zeros(8, 1)}, "log_weights must give one float"),
        ({"log_weights": torch.full((8,), math.nan)}, "log_weights must give numbers below infinity"),
        ({"log_weights": torch.full((8,), -math.inf)}, "log_weights left no particle"),
        ({"rule": lambda *given: torch.zeros(8, 1)}, "rule must give one float"),
        ({"rule": lambda *given: 0.0}, "rule must give one float"),
        ({"rule": lambda *given: torch.zeros(8, dtype=torch.long)}, "rule must give one float"),
        ({"rule": lambda *given: torch.full((8,), math.nan)}, "rule must give numbers below infinity"),
        ({"rule": lambda *given: torch.full((8,), math.inf)}, "rule must give numbers below infinity"),
        ({"rule": lambda *given: torch.full((8,), -math.inf)}, "rule left no particle"),
        ({"after": lambda x, t, s: x[:4]}, "after must return"),
        ({"resample": lambda w, g: torch.zeros(4, dtype=torch.long), "rule": told_by, "below": 1.0,
          "times": time_grid(3, start=0.999)}, "resample must return 8"),
    ],
)  # fmt: skip
def test_the_loop_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        particles.draw(**(ARGUMENTS | change))


@pytest.mark.parametrize("rule", [systematic, multinomial])
@pytest.mark.parametrize(
    "log_weights, options, message",
    [
        (torch.zeros(3, 2), {}, "log_weights"),
        (torch.zeros(3, dtype=torch.long), {}, "log_weights"),
        (torch.tensor([0.0, math.nan]), {}, "log_weights"),
        (torch.full((3,), -math.inf), {}, "log_weights"),
        (torch.zeros(3), {"generator": None}, "generator"),
        (torch.zeros(3), {"count": 0}, "count"),
    ],
)
def test_resampling_says_what_is_wrong(rule, log_weights, options, message):
    with pytest.raises(ValueError, match=message):
        rule(log_weights, **({"generator": seeded()} | options))


def test_a_population_that_is_yielded_and_the_start_are_the_callers_to_change():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel, before, ends = kernels.ddpm(DENOISER, SCHEDULE), x.clone(), []
    for change in (0.0, 5.0):
        run = particles.sample(
            kernel, lambda step, a, b, t, s: b[:, 0], x, time_grid(4), torch.Generator().manual_seed(1)
        )
        for now in run:
            ends.append(now.x.clone())
            now.x.add_(change)
            now.log_weights.sub_(change * now.x[:, 0])
    assert torch.equal(x, before) and torch.equal(torch.stack(ends[:5]), torch.stack(ends[5:]))
