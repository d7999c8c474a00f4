"""Guidance as practised: each rule against its paper's algorithm, written out in numpy, point by point, in float64."""

import inspect
import math

import numpy as np
import pytest
import torch

from difflesson import kernels, practice
from difflesson.denoiser import Pair, Prediction
from difflesson.guidance import classifier_free, implicit_gradient, mix, tilt
from difflesson.mixture import GaussianMixture
from difflesson.plane import four_blobs
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import cosine, expand_as, from_betas, vp_linear
from tests.oracles.mixtures import random_mixture

F32, F64 = torch.float32, torch.float64
SCHEDULES = {
    "linear": vp_linear(), "cosine": cosine(), "table": from_betas(torch.linspace(1e-3, 0.2, 60, dtype=F64)),
}  # fmt: skip
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
TIMES = [0.05, 0.4, 0.8, 0.97]
GAMMAS = [-1.5, 0.0, 0.6, 1.0, 2.5, 9.0]
FIVE = random_mixture(5, [2, 0, 1])
INF, NAN = math.inf, math.nan


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def points(count: int = 6) -> torch.Tensor:
    return 2 * torch.randn(count, 5, generator=seeded(0), dtype=F64)


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 2, 3, 3, generator=seeded(1), dtype=F64)


def strange_pair(schedule) -> Pair:
    """Two guesses of the noise in images, of no model at all; they differ along the clean guess and across it."""

    def guess(function):
        def denoise(x, t):
            return Prediction.from_eps(x, function(x), *(expand_as(f(t), x) for f in (schedule.alpha, schedule.sigma)))

        return denoise

    return Pair(guess(lambda x: 0.7 * x + 0.3 * torch.sin(3 * x)), guess(lambda x: 0.4 * x - 0.2 * x.flip(-1).cos()))


def apart(a: Prediction, b: Prediction) -> float:
    """The largest difference, in units of how large the predictions are."""
    size = 1 + max(float(half.abs().max()) for half in b)
    return max(float((one - two).abs().max()) for one, two in zip(a, b, strict=True)) / size


def numbers(pair: Pair, x: torch.Tensor, t: float, schedule) -> tuple:
    """Both predictions, x and the levels as numpy has them: (x0_c, eps_c), (x0_u, eps_u), x, alpha, sigma."""
    cond, uncond = pair(x, t)
    level = float(schedule.alpha(t)), float(schedule.sigma(t))
    return tuple(h.numpy() for h in cond), tuple(h.numpy() for h in uncond), x.numpy(), *level


def flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1)


def agrees(got: Prediction, x0=None, eps=None, v=None, *, x, alpha, sigma, tolerance=1e-12) -> bool:
    """Whether a prediction is the one of which one half is known; the other by what adding noise means."""
    if v is not None:
        x0, eps = alpha * x - sigma * v, sigma * x + alpha * v
    x0 = (x - sigma * eps) / alpha if x0 is None else x0
    eps = (x - alpha * x0) / sigma if eps is None else eps
    return apart(got, Prediction(torch.from_numpy(x0), torch.from_numpy(eps))) < tolerance


# ---- rescaled


def rescaled_by_the_paper(pos: np.ndarray, neg: np.ndarray, w: float, phi: float) -> np.ndarray:
    """Lin et al. 2024, section 3.4: a scale for each picture of the batch."""
    final = np.empty_like(pos)
    for i in range(len(pos)):
        cfg = neg[i] + w * (pos[i] - neg[i])
        rescaled = cfg * np.std(pos[i]) / np.std(cfg)
        final[i] = phi * rescaled + (1 - phi) * cfg
    return final


@pytest.mark.equation("eq-rescaled-guidance")
@pytest.mark.parametrize("of", ["eps", "v", "x0"])
@pytest.mark.parametrize("phi", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t", TIMES)
@every_schedule
def test_rescaled_is_the_papers_formula_on_what_the_network_predicts(schedule, t, phi, of):
    for pair, x in ((strange_pair(schedule), images()), (FIVE.pair(schedule, 0), points())):
        cond, uncond, noisy, alpha, sigma = numbers(pair, x, t, schedule)
        told, untold = ({"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[of] for x0, eps in (cond, uncond))
        for gamma in GAMMAS:
            want = rescaled_by_the_paper(told, untold, gamma, phi)
            got = mix(pair, practice.rescaled(gamma, phi, schedule, of))(x, t)
            assert agrees(got, **{of: want}, x=noisy, alpha=alpha, sigma=sigma, tolerance=1e-11)


@pytest.mark.equation("eq-rescaled-guidance")
def test_the_noise_is_what_is_rescaled_if_nothing_else_is_said():
    schedule, x = cosine(), points()
    rules = practice.rescaled(3.0, 0.7, schedule), practice.rescaled(3.0, 0.7, schedule, of="eps")
    assert apart(*(mix(FIVE.pair(schedule, 0), rule)(x, 0.4) for rule in rules)) == 0


@pytest.mark.equation("eq-rescaled-guidance")
@pytest.mark.parametrize("of", ["eps", "v", "x0"])
@every_schedule
def test_at_phi_one_what_is_predicted_has_the_spread_of_the_conditional_prediction(schedule, of):
    x, pair = images(), strange_pair(schedule)
    got, cond = mix(pair, practice.rescaled(6.0, 1.0, schedule, of))(x, 0.4), pair.cond(x, 0.4)

    def spread(prediction):
        alpha, sigma = schedule.alpha(0.4), schedule.sigma(0.4)
        half = {"eps": prediction.eps, "x0": prediction.x0, "v": alpha * prediction.eps - sigma * prediction.x0}[of]
        return half.flatten(1).std(1)

    torch.testing.assert_close(spread(got), spread(cond), atol=1e-11, rtol=1e-11)


# ---- projected


class AdaptiveProjected:
    """Sadat et al. 2025, algorithm 1: on clean guesses; the buffer holds the running average."""

    def __init__(self, gamma, eta, reach, momentum):
        self.gamma, self.eta, self.reach, self.momentum, self.buffer = gamma, eta, reach, momentum, 0.0

    def __call__(self, cond: np.ndarray, uncond: np.ndarray) -> np.ndarray:
        diff = cond - uncond
        if self.momentum:
            self.buffer = diff + self.momentum * self.buffer
            diff = self.buffer
        answer = np.empty_like(cond)
        for i in range(len(cond)):
            d, c = diff[i].ravel(), cond[i].ravel()
            d = d * min(1.0, self.reach / max(np.linalg.norm(d), 1e-300))
            unit = c / np.linalg.norm(c)
            parallel = (d @ unit) * unit
            update = (d - parallel) + self.eta * parallel
            answer[i] = (c + (self.gamma - 1) * update).reshape(cond[i].shape)
        return answer


@pytest.mark.equation("eq-projected-guidance")
@pytest.mark.parametrize(("eta", "reach"), [(0.0, INF), (0.0, 0.8), (0.3, 1.5), (1.0, 0.2), (-0.5, 4.0)])
@pytest.mark.parametrize("t", TIMES)
@every_schedule
def test_projected_is_the_papers_algorithm(schedule, t, eta, reach):
    for pair, x in ((strange_pair(schedule), images()), (FIVE.pair(schedule, 0), points())):
        cond, uncond, noisy, alpha, sigma = numbers(pair, x, t, schedule)
        for gamma in GAMMAS:
            want = AdaptiveProjected(gamma, eta, reach, 0.0)(cond[0], uncond[0])
            got = mix(pair, practice.projected(gamma, schedule, eta=eta, reach=reach))(x, t)
            assert agrees(got, x0=want, x=noisy, alpha=alpha, sigma=sigma)


@pytest.mark.equation("eq-projected-guidance")
@pytest.mark.parametrize("momentum", [-0.75, -0.3, 0.5])
@every_schedule
def test_a_run_with_momentum_is_the_papers_run(schedule, momentum):
    """DDIM in numpy, the networks asked where it stands; the reach cuts in some of the steps and not in others."""
    pair, x, times = FIVE.pair(schedule, 0), points(), time_grid(9, end=0.02)
    guide, here = AdaptiveProjected(3.0, 0.2, 1.0, momentum), x.numpy()
    for t, s in zip(times[:-1], times[1:], strict=True):
        cond, uncond = pair(torch.from_numpy(here), t)
        x0 = guide(cond.x0.numpy(), uncond.x0.numpy())
        alpha, sigma, next_alpha, next_sigma = (float(f(u)) for u in (t, s) for f in (schedule.alpha, schedule.sigma))
        here = next_alpha * x0 + next_sigma * (here - alpha * x0) / sigma
    rule = practice.projected(3.0, schedule, eta=0.2, reach=1.0, momentum=momentum)
    got = draw(kernels.ddim(mix(pair, rule), schedule), x, times)
    torch.testing.assert_close(got, torch.from_numpy(here), atol=1e-11, rtol=1e-11)


@pytest.mark.equation("eq-projected-guidance")
@every_schedule
def test_without_what_lies_along_it_the_push_is_across_the_conditional_guess_and_no_longer_than_its_reach(schedule):
    x, pair = images(), strange_pair(schedule)
    cond = flat(pair.cond(x, 0.4).x0.numpy())
    push = flat(mix(pair, practice.projected(2.0, schedule, reach=0.3))(x, 0.4).x0.numpy()) - cond
    assert np.abs((push * cond).sum(1)).max() < 1e-12
    assert 0.01 < np.linalg.norm(push, axis=1).min() <= np.linalg.norm(push, axis=1).max() < 0.3


def test_a_run_with_momentum_repeats_to_the_last_bit_and_its_memory_begins_empty():
    schedule = cosine()
    rule = practice.projected(3.0, schedule, momentum=-0.5)
    kernel, x, times = kernels.ddim(mix(FIVE.pair(schedule, 0), rule), schedule), points(), time_grid(8)
    first, second = draw(kernel, x, times), draw(kernel, x, times)
    assert torch.equal(first, second)
    other = draw(kernels.ddim(mix(FIVE.pair(schedule, 0), practice.projected(3.0, schedule)), schedule), x, times)
    assert float((first - other).abs().max()) > 0.05


@pytest.mark.equation("eq-projected-guidance")
def test_the_first_step_of_a_run_has_no_memory_and_is_that_without_momentum():
    schedule, x = cosine(), points()
    pair, times = FIVE.pair(schedule, 0), time_grid(8)
    rules = practice.projected(3.0, schedule, momentum=-0.5), practice.projected(3.0, schedule)
    one, other = (list(sample(kernels.ddim(mix(pair, rule), schedule), x, times))[:3] for rule in rules)
    assert torch.equal(one[1], other[1]) and not torch.equal(one[2], other[2])


def test_the_memory_follows_points_that_change_places():
    schedule, x, which = cosine(), points(), torch.tensor([3, 3, 0, 5, 1, 1])
    pair = FIVE.pair(schedule, 0)
    straight, moved = (mix(pair, practice.projected(3.0, schedule, momentum=-0.5)).start() for _ in range(2))
    straight(x, 0.8), moved(x, 0.8)
    moved.reorder(which)
    want, got = straight(x, 0.6), moved(x[which], 0.6)
    assert apart(got, Prediction(*(half[which] for half in want))) < 1e-14


def test_momentum_has_no_memory_outside_a_run_and_without_momentum_none_is_needed():
    schedule = cosine()
    with pytest.raises(ValueError, match="^projected has a memory, which belongs to one run"):
        mix(FIVE.pair(schedule, 0), practice.projected(3.0, schedule, momentum=-0.5))(points(), 0.4)
    mix(FIVE.pair(schedule, 0), practice.projected(3.0, schedule))(points(), 0.4)


# ---- zero star


def zero_star_by_the_paper(cond: np.ndarray, uncond: np.ndarray, w: float) -> np.ndarray:
    """Fan et al. 2025, algorithm 1, but for the first steps."""
    answer = np.empty_like(cond)
    for i in range(len(cond)):
        star = np.vdot(cond[i], uncond[i]) / np.vdot(uncond[i], uncond[i])
        answer[i] = (1 - w) * star * uncond[i] + w * cond[i]
    return answer


@pytest.mark.equation("eq-zero-star")
@pytest.mark.parametrize("t", TIMES)
@every_schedule
def test_zero_star_is_the_papers_algorithm_on_the_velocity_of_a_circle(schedule, t):
    for pair, x in ((strange_pair(schedule), images()), (FIVE.pair(schedule, 0), points())):
        cond, uncond, noisy, alpha, sigma = numbers(pair, x, t, schedule)
        told, untold = (alpha * eps - sigma * x0 for x0, eps in (cond, uncond))
        for gamma in GAMMAS:
            want = zero_star_by_the_paper(told, untold, gamma)
            got = mix(pair, practice.zero_star(gamma, schedule))(x, t)
            assert agrees(got, v=want, x=noisy, alpha=alpha, sigma=sigma)


@pytest.mark.equation("eq-zero-star")
def test_the_scaled_velocity_is_the_nearest_to_the_conditional_one():
    """At gamma = 0 the rule answers s v_u: every other multiple of v_u is farther from v_c."""
    schedule, x, t = cosine(), images(), 0.4
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    pair = strange_pair(schedule)
    told, untold = (alpha * p.eps - sigma * p.x0 for p in pair(x, t))
    x0, eps = mix(pair, practice.zero_star(0.0, schedule))(x, t)
    base = alpha * eps - sigma * x0

    def miss(v):
        return (told - v).flatten(1).norm(dim=1)

    assert all(bool((miss(base) < miss(base + shift * untold)).all()) for shift in (-1.0, -1e-3, 1e-3, 1.0))


@pytest.mark.equation("eq-zero-star")
@every_schedule
def test_above_its_time_the_velocity_is_zero_and_at_it_it_speaks_again(schedule):
    """No velocity: the point turns neither to the clean guess nor to the noise; x0 = alpha x, eps = sigma x."""
    pair, x = FIVE.pair(schedule, 0), points()
    quiet, loud = mix(pair, practice.zero_star(3.0, schedule, until=0.6)), mix(pair, practice.zero_star(3.0, schedule))
    for t in (0.6 + 1e-9, 0.9, torch.tensor(0.9, dtype=F64)):
        got = quiet(x, t)
        assert apart(got, Prediction(schedule.alpha(t) * x, schedule.sigma(t) * x)) == 0
    for t in (0.6, torch.tensor(0.6, dtype=F64), 0.2):
        assert apart(quiet(x, t), loud(x, t)) == 0
    times = torch.tensor([0.1, 0.6, 0.7, 0.9, 0.5, 0.99], dtype=F64)
    still = schedule.alpha(times)[:, None] * x, schedule.sigma(times)[:, None] * x
    both = zip(still, loud(x, times), strict=True)
    assert apart(quiet(x, times), Prediction(*(torch.where(times[:, None] > 0.6, a, b) for a, b in both))) < 1e-15


@pytest.mark.equation("eq-zero-star")
def test_where_both_velocities_are_one_every_scale_is_a_fixed_point():
    schedule, x = cosine(), points()
    plain = FIVE.denoiser(schedule)
    for gamma in GAMMAS:
        assert apart(mix(Pair(plain, plain), practice.zero_star(gamma, schedule))(x, 0.4), plain(x, 0.4)) < 1e-14


# ---- thresholded


def thresholded_by_the_paper(x0: np.ndarray, p: float) -> np.ndarray:
    """Saharia et al. 2022, section 2.3 and the listing of its appendix, for data in [-1, 1]."""
    answer = np.empty_like(x0)
    for i in range(len(x0)):
        s = max(np.percentile(np.abs(x0[i]), 100 * p), 1.0)
        answer[i] = np.clip(x0[i], -s, s) / s
    return answer


@pytest.mark.equation("eq-dynamic-threshold")
@pytest.mark.parametrize("limit", [1.0, 0.4, 3.0])
@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.995, 1.0])
@every_schedule
def test_thresholded_is_the_papers_algorithm_in_units_of_the_limit(schedule, quantile, limit):
    for pair, x in ((strange_pair(schedule), images()), (FIVE.pair(schedule, 0), points())):
        for t in TIMES:
            guided = classifier_free(pair, 4.0)
            want = limit * thresholded_by_the_paper(guided(x, t).x0.numpy() / limit, quantile)
            got = practice.thresholded(guided, schedule, quantile, limit)(x, t)
            level = {"x": x.numpy(), "alpha": float(schedule.alpha(t)), "sigma": float(schedule.sigma(t))}
            assert agrees(got, x0=want, **level)
            assert float(got.x0.abs().max()) <= limit * (1 + 1e-15)


@pytest.mark.equation("eq-dynamic-threshold")
def test_only_the_points_that_leave_the_range_are_changed_each_by_its_own_reach():
    """Three points of two coordinates: inside, one outside, both outside; the largest of each is its reach."""
    schedule, t = cosine(), 0.4
    x0 = torch.tensor([[0.9, -0.2], [3.0, 0.6], [-4.0, 2.0]], dtype=F64)
    x, eps = torch.zeros_like(x0), -schedule.alpha(t) / schedule.sigma(t) * x0
    got = practice.thresholded(lambda x, t: Prediction(x0, eps), schedule, quantile=1.0)(x, t).x0
    torch.testing.assert_close(got, torch.tensor([[0.9, -0.2], [1.0, 0.2], [-1.0, 0.5]], dtype=F64))


# ---- CFG++


def plus_plus_by_the_paper(pair: Pair, x: np.ndarray, times, schedule, lam: float) -> np.ndarray:
    """Chung et al. 2025, algorithm 2: DDIM whose clean point is guided and whose noise is not."""
    for t, s in zip(times[:-1], times[1:], strict=True):
        cond, uncond = (prediction.eps.numpy() for prediction in pair(torch.from_numpy(x), t))
        here, there = float(schedule.alpha(t)) ** 2, float(schedule.alpha(s)) ** 2  # the paper's alpha bar
        guided = uncond + lam * (cond - uncond)
        clean = (x - np.sqrt(1 - here) * guided) / np.sqrt(here)
        x = np.sqrt(there) * clean + np.sqrt(1 - there) * uncond
    return x


GRIDS = {
    "even in time": lambda schedule: time_grid(12, start=0.98),
    "even in log-SNR": lambda schedule: time_grid(7, schedule, 0.97, 0.03),
    "uneven": lambda schedule: torch.tensor([0.95, 0.9, 0.5, 0.45, 0.1, 0.0], dtype=F64),
}


@pytest.mark.equation("eq-plus-plus-scale")
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.8, 1.7])
@every_schedule
def test_guided_by_its_scale_ddim_is_the_run_of_cfg_plus_plus(schedule, lam, grid):
    pair, x, times = FIVE.pair(schedule, 0), points(), grid(schedule)
    crossed = kernels.ddim(classifier_free(pair, lam), schedule, noise_from=pair.uncond)
    plain = kernels.ddim(classifier_free(pair, practice.plus_plus_scale(lam, schedule, times)), schedule)
    runs = draw(crossed, x, times), draw(plain, x, times)
    paper = torch.from_numpy(plus_plus_by_the_paper(pair, x.numpy(), times, schedule, lam))
    assert float((runs[0] - runs[1]).abs().max()) < 1e-12 * (1 + float(runs[0].abs().max()))
    assert float((runs[1] - paper).abs().max()) < 1e-10 * (1 + float(paper.abs().max()))


@pytest.mark.equation("eq-plus-plus-scale")
@every_schedule
def test_on_times_even_in_log_snr_the_scale_is_one_number(schedule):
    times = time_grid(9, schedule, 0.97, 0.03)
    scale = practice.plus_plus_scale(0.6, schedule, times)
    step = float(schedule.log_snr(times[1]) - schedule.log_snr(times[0]))
    for t in times[:-1]:
        assert float(scale(t)) == pytest.approx(0.6 / (1 - math.exp(-step / 2)), rel=1e-9)


@pytest.mark.equation("eq-plus-plus-scale")
def test_in_the_step_to_no_noise_the_scale_is_lam_and_twice_the_steps_push_nearly_twice_as_hard():
    schedule = vp_linear()
    few, many = (practice.plus_plus_scale(0.6, schedule, time_grid(n)) for n in (100, 200))
    assert float(few(few.times[-2])) == pytest.approx(0.6, abs=1e-12)
    assert float(many(0.5) / few(0.5)) == pytest.approx(2, rel=0.02)


def test_the_scale_knows_a_time_that_went_through_single_precision_in_no_way_but_its_own():
    schedule, times = cosine(), time_grid(4)
    scale = practice.plus_plus_scale(0.6, schedule, times)
    assert float(scale(0.75)) == float(scale(torch.tensor(0.75))) == float(scale(times[1]))
    for t in (0.0, 0.7500001, torch.tensor([0.75]), torch.tensor([0.75, 0.5])):
        with pytest.raises(ValueError, match="^t must be one time of the run with a step after it, got "):
            scale(t)


@pytest.mark.equation("eq-interval-guidance")
@every_schedule
def test_guided_in_a_window_each_point_is_guided_as_its_own_time_asks(schedule):
    pair, x, times = FIVE.pair(schedule, 0), points(4), torch.tensor(TIMES, dtype=F64)
    low, high = float(schedule.log_snr(0.9)), float(schedule.log_snr(0.3))
    scale = practice.interval(2.6, schedule, low, high)
    assert scale(times).tolist() == [1.0, 2.6, 2.6, 1.0] and [float(scale(t)) for t in TIMES] == [1.0, 2.6, 2.6, 1.0]
    together = classifier_free(pair, scale)(x, times)
    for i, t in enumerate(TIMES):
        alone = classifier_free(pair, 2.6 if 0.3 <= t <= 0.9 else 1.0)(x[i : i + 1], t)
        assert apart(alone, Prediction(*(half[i : i + 1] for half in together))) < 1e-12


@pytest.mark.equation("eq-interval-guidance")
def test_a_papers_noise_levels_are_log_snrs_by_minus_twice_the_logarithm():
    """The window of EDM2-S, sigma / alpha from 0.28 to 2.9, on another schedule than EDM's."""
    schedule = vp_linear()
    scale = practice.interval(2.1, schedule, -2 * math.log(2.9), -2 * math.log(0.28))
    times = torch.linspace(0.01, 1, 60, dtype=F64)
    sizes = (schedule.sigma(times) / schedule.alpha(times)).tolist()
    assert scale(times).tolist() == [2.1 if 0.28 <= size <= 2.9 else 1.0 for size in sizes]
    assert 5 < int((scale(times) == 2.1).sum()) < 50


@pytest.mark.equation("eq-growing-scale")
@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_growing_scale_is_the_line_from_1_in_the_noise_to_twice_gamma_less_1_at_the_data(gamma):
    times = torch.linspace(0, 1, 21, dtype=F64)
    line = np.interp(times.numpy(), [0.0, 1.0], [2 * gamma - 1, 1.0])
    scale = practice.growing_scale(gamma)
    assert np.abs(scale(times).numpy() - line).max() < 1e-13
    assert [float(scale(t)) for t in (0.0, 1)] == [2 * gamma - 1, 1]
    middles = (times[1:] + times[:-1]) / 2
    assert float(scale(middles).mean()) == pytest.approx(gamma, abs=1e-13)


@every_schedule
def test_guided_by_the_growing_scale_each_point_is_guided_as_its_own_time_asks(schedule):
    pair, x, times = FIVE.pair(schedule, 0), points(4), torch.tensor(TIMES, dtype=F64)
    together = classifier_free(pair, practice.growing_scale(3.0))(x, times)
    for i, t in enumerate(TIMES):
        alone = classifier_free(pair, 3.0 + 2.0 * (1 - t) - 2.0 * t)(x[i : i + 1], t)
        assert apart(alone, Prediction(*(half[i : i + 1] for half in together))) < 1e-12
    with pytest.raises(ValueError, match="^t must lie in "):
        practice.growing_scale(3.0)(1.5)


# ---- autoguidance


def believed(schedule, variance: float, mean: torch.Tensor):
    """The denoiser of N(mean, variance I), its score written out."""

    def denoise(x, t):
        alpha, sigma = (expand_as(f(t), x) for f in (schedule.alpha, schedule.sigma))
        return Prediction.from_score(x, -(x - alpha * mean) / (alpha**2 * variance + sigma**2), alpha, sigma)

    return denoise


BLURS = [(1.0, 0.5, 2.0), (0.2, 1.5, 1.6), (4.0, 0.3, 7.0)]
MEAN = torch.tensor([0.7, -1.1, 0.2, 2.0, -0.4], dtype=F64)


@pytest.mark.equation("eq-autoguidance-cure")
@pytest.mark.parametrize(("v", "b1", "b2"), BLURS)
@every_schedule
def test_guided_by_a_weaker_model_at_the_healing_scale_the_denoiser_is_exact_at_every_noise_level(schedule, v, b1, b2):
    """Against the package's own mixture of one component, of which no blur is known."""
    truth = GaussianMixture([1.0], MEAN[None], v * torch.eye(5, dtype=F64)[None]).denoiser(schedule)
    pair = Pair(believed(schedule, v + b1, MEAN), believed(schedule, v + b2, MEAN))
    healed = classifier_free(pair, practice.healing_scale(v, b1, b2, schedule))
    for t in (1e-4, *TIMES, torch.linspace(0.1, 0.9, 6, dtype=F64)):
        assert apart(healed(points(), t), truth(points(), t)) < 1e-11
        assert apart(pair.cond(points(), t), truth(points(), t)) > 1e-8
    assert apart(healed(points(), 1.0), truth(points(), 1.0)) < 1e-8  # x0 divides what is rounded by alpha


@pytest.mark.equation("eq-autoguidance-cure")
@pytest.mark.parametrize(("v", "b1", "b2"), BLURS)
@every_schedule
def test_the_healing_scale_is_its_formula(schedule, v, b1, b2):
    scale = practice.healing_scale(v, b1, b2, schedule)
    for t in TIMES:
        q = float(schedule.sigma(t) / schedule.alpha(t)) ** 2
        assert float(scale(t)) == pytest.approx(b2 * (v + b1 + q) / ((b2 - b1) * (v + q)), rel=1e-12)
    assert float(practice.healing_scale(v, 0.0, b2, schedule)(0.4)) == 1


@pytest.mark.equation("eq-autoguidance-cure")
@pytest.mark.parametrize(("schedule", "v", "b1", "b2"), [(vp_linear(), 1.0, 0.5, 2.0), (cosine(), 0.2, 1.5, 1.6)])
def test_healed_samples_have_the_variance_of_the_data_and_not_that_of_the_model(schedule, v, b1, b2):
    """DDIM multiplies what is away from the mean by one number, the same for all starts: no sampling error in it."""
    pair = Pair(believed(schedule, v + b1, MEAN), believed(schedule, v + b2, MEAN))
    healed = classifier_free(pair, practice.healing_scale(v, b1, b2, schedule))
    times = torch.cat([time_grid(800, schedule, 0.99, 1e-3), torch.zeros(1)])
    alpha, sigma = schedule.alpha(0.99), schedule.sigma(0.99)
    starts = alpha * MEAN + torch.stack([0 * MEAN, 1 + 0 * MEAN])
    for denoiser, variance in ((healed, v), (pair.cond, v + b1)):
        ends = draw(kernels.ddim(denoiser, schedule), starts, times)
        torch.testing.assert_close(ends[0], MEAN, atol=1e-7, rtol=0)
        variances = (ends[1] - ends[0]) ** 2 * (alpha**2 * variance + sigma**2)
        torch.testing.assert_close(variances, variance + 0 * MEAN, rtol=0.01, atol=0)


# ---- what all of them share


def every_way(schedule, gamma=2.5) -> dict:
    """Each guided denoiser of the module, on images."""
    pair = strange_pair(schedule)
    return {
        "rescaled": mix(pair, practice.rescaled(gamma, 0.7, schedule)),
        "rescaled v": mix(pair, practice.rescaled(gamma, 0.7, schedule, "v")),
        "rescaled x0": mix(pair, practice.rescaled(gamma, 0.7, schedule, "x0")),
        "projected": mix(pair, practice.projected(gamma, schedule, eta=0.2, reach=1.0)),
        "with momentum": mix(pair, practice.projected(gamma, schedule, momentum=-0.4)).start(),
        "zero_star": mix(pair, practice.zero_star(gamma, schedule, until=0.9)),
        "thresholded": practice.thresholded(classifier_free(pair, gamma), schedule, 0.9),
        "healed": classifier_free(pair, practice.healing_scale(1.0, 0.5, 2.0, schedule)),
    }


WAYS = list(every_way(cosine()))


@every_schedule
@pytest.mark.parametrize("name", WAYS)
def test_what_it_predicts_adds_up_to_the_point_it_was_asked_about(name, schedule):
    for t in TIMES:
        guided, x = every_way(schedule)[name], images()
        x0, eps = guided(x, t)
        size = 1 + float(x0.abs().max()) + float(eps.abs().max())
        assert float((schedule.alpha(t) * x0 + schedule.sigma(t) * eps - x).abs().max()) < 1e-13 * size


@pytest.mark.parametrize("name", [name for name in WAYS if name != "healed"])
def test_a_time_and_a_scale_a_point_are_the_answers_one_by_one(name):
    schedule, x = cosine(), images()
    times, scales = torch.tensor([0.1, 0.4, 0.6, 0.95], dtype=F64), torch.tensor([0.0, 1.0, -2.0, 5.0], dtype=F64)
    for gamma in (scales, lambda t: scales):
        together = every_way(schedule, gamma)[name](x, times)
        for i in range(4):
            alone = every_way(schedule, float(scales[i]))[name](x[i : i + 1], times[i])
            assert apart(alone, Prediction(*(half[i : i + 1] for half in together))) < 1e-12


@every_schedule
@pytest.mark.parametrize("name", [name for name in WAYS if name != "healed"])
def test_gamma_may_depend_on_time(name, schedule):
    def ramp(t):
        return 3.0 * float(t) if t > 0.5 else 1.0

    for t in TIMES:
        ways = (every_way(schedule, gamma)[name] for gamma in (ramp, ramp(t)))
        assert apart(*(way(images(), t) for way in ways)) == 0


@pytest.mark.parametrize("name", WAYS)
def test_float32_stays_float32(name):
    schedule, x = cosine(), images().float()
    for t in (0.3, torch.tensor(0.3, dtype=F64), torch.full((4,), 0.3, dtype=F64)):
        x0, eps = every_way(schedule)[name](x, t)
        assert x0.dtype == eps.dtype == F32


def of_equation(label, make):
    return pytest.param(make, marks=pytest.mark.equation(label), id=label)


NEUTRAL = [
    of_equation("eq-rescaled-guidance", lambda gamma, plan: practice.rescaled(gamma, 0.0, plan)),
    of_equation("eq-rescaled-guidance", lambda gamma, plan: practice.rescaled(gamma, 0.0, plan, "v")),
    of_equation("eq-projected-guidance", lambda gamma, plan: practice.projected(gamma, plan, eta=1.0)),
]


@every_schedule
@pytest.mark.parametrize("make", NEUTRAL)
def test_at_its_neutral_setting_a_rule_is_plain_guidance(make, schedule):
    for pair, x in ((strange_pair(schedule), images()), (FIVE.pair(schedule, 0), points())):
        for gamma in GAMMAS:
            got, want = mix(pair, make(gamma, schedule)), classifier_free(pair, gamma)
            assert max(apart(got(x, t), want(x, t)) for t in TIMES) < 1e-12


AT_ONE = [
    of_equation("eq-rescaled-guidance", lambda plan: practice.rescaled(1.0, 0.7, plan, "v")),
    of_equation("eq-projected-guidance", lambda plan: practice.projected(1.0, plan, eta=0.3, reach=0.1)),
    of_equation("eq-zero-star", lambda plan: practice.zero_star(1.0, plan)),
]


@every_schedule
@pytest.mark.parametrize("make", AT_ONE)
def test_at_gamma_one_a_rule_answers_the_conditional_guess(make, schedule):
    pair, x = strange_pair(schedule), images()
    assert max(apart(mix(pair, make(schedule))(x, t), pair.cond(x, t)) for t in TIMES) < 1e-13


@pytest.mark.equation("eq-dynamic-threshold")
@every_schedule
def test_a_guess_inside_the_range_stays_as_it_is(schedule):
    pair, x = strange_pair(schedule), images()
    guided = classifier_free(pair, 2.5)
    limit = 1.01 * float(guided(x, 0.4).x0.abs().max())
    got, want = practice.thresholded(guided, schedule, 0.9, limit)(x, 0.4), guided(x, 0.4)
    assert apart(got, want) < 1e-15


def test_nothing_to_divide_by_is_no_nan():
    """A conditional guess of 0 has no direction, a velocity of 0 no length, a push of 0 is not cut."""
    schedule, x = cosine(), points()
    alpha, sigma = schedule.alpha(0.4), schedule.sigma(0.4)
    zero, usual = Prediction.from_x0(x, 0 * x, alpha, sigma), FIVE.denoiser(schedule)(x, 0.4)
    for rule, cond, uncond, want in (
        (practice.projected(3.0, schedule), zero, usual, Prediction.from_x0(x, -2 * usual.x0, alpha, sigma)),
        (practice.projected(3.0, schedule, reach=2.0), usual, usual, usual),
    ):
        assert apart(rule(cond, uncond, x, 0.4), want) < 1e-13
    moving, still = Prediction.from_v(0 * x, x, alpha, sigma), Prediction(0 * x, 0 * x)
    want = Prediction.from_v(0 * x, 3 * x, alpha, sigma)
    assert apart(practice.zero_star(3.0, schedule)(moving, still, 0 * x, 0.4), want) < 1e-13


def test_each_docstring_says_where_the_part_goes():
    """A rule goes into `mix`, a scale into `classifier_free`, a denoiser into a kernel: what each is called with."""
    places = {
        "A rule for `guidance.mix`": (practice.rescaled, "cond"),
        "a rule for `guidance.mix`": (practice.projected, "cond"),
        "CFG-Zero*, a rule for `guidance.mix`": (practice.zero_star, "cond"),
        "A scale for `classifier_free`": (practice.interval, "t"),
        "A scale for `classifier_free` that": (practice.growing_scale, "t"),
        "A denoiser": (practice.thresholded, "x"),
    }
    for said, (part, first) in places.items():
        assert said in part.__doc__ and list(inspect.signature(part.__call__).parameters)[1] == first


def test_parts_print_as_what_they_are():
    rule = practice.projected(3.0, cosine(), reach=2.0, momentum=-0.5)
    assert repr(rule) == (
        "projected(gamma=3.0, schedule=cosine(20.0, -20.0), eta=0.0, reach=2.0, momentum=-0.5)"
    )  # fmt: skip


PLAN, TWO = cosine(), torch.tensor([1.0, 0.5])
REFUSED = [
    *(
        (f"gamma {gamma} to {make.__name__}", "gamma", lambda make=make, gamma=gamma: make(gamma))
        for gamma in (NAN, INF, -INF)
        for make in (
            lambda gamma: practice.rescaled(gamma, 0.5, PLAN), lambda gamma: practice.projected(gamma, PLAN),
            lambda gamma: practice.zero_star(gamma, PLAN),
        )
    ),
    *(
        (f"phi {phi}", "phi", lambda phi=phi: practice.rescaled(2.0, phi, PLAN))
        for phi in (-0.1, 1.1, NAN, INF)
    ),
    ("another word than a prediction", "of", lambda: practice.rescaled(2.0, 0.5, PLAN, "score")),
    ("one coordinate", "x", lambda: mix(FIVE.pair(PLAN, 0), practice.rescaled(2.0, 0.5, PLAN)).rule(
        *[Prediction(TWO[:, None], TWO[:, None])] * 2, TWO[:, None], 0.4)),
    *((f"eta {eta}", "eta", lambda eta=eta: practice.projected(2.0, PLAN, eta=eta)) for eta in (NAN, INF, -INF)),
    *((f"reach {r}", "reach", lambda r=r: practice.projected(2.0, PLAN, reach=r)) for r in (0.0, -1.0, NAN, -INF)),
    *(
        (f"momentum {m}", "momentum", lambda m=m: practice.projected(2.0, PLAN, momentum=m))
        for m in (-1.0, 1.0, 1.5, NAN)
    ),
    *((f"until {u}", "until", lambda u=u: practice.zero_star(2.0, PLAN, until=u)) for u in (-0.1, 1.1, NAN)),
    *(
        (f"quantile {q}", "quantile", lambda q=q: practice.thresholded(FIVE.denoiser(PLAN), PLAN, q))
        for q in (-0.1, 99.5, NAN)
    ),
    *(
        (f"limit {limit}", "limit", lambda limit=limit: practice.thresholded(FIVE.denoiser(PLAN), PLAN, limit=limit))
        for limit in (0.0, -1.0, INF, NAN)
    ),
    *((f"window at gamma {g!r}", "gamma", lambda g=g: practice.interval(g, PLAN, -1.0, 1.0)) for g in (NAN, INF, "2")),
    *(
        (f"a window {low} to {high}", "low", lambda low=low, high=high: practice.interval(2.0, PLAN, low, high))
        for low, high in ((1.0, 1.0), (1.0, -1.0), (NAN, 1.0), (0.0, NAN))
    ),
    *((f"growing {g}", "gamma", lambda g=g: practice.growing_scale(g)) for g in (NAN, INF, -INF)),
    *((f"lam {lam}", "lam", lambda lam=lam: practice.plus_plus_scale(lam, PLAN, TWO)) for lam in (NAN, INF, -INF)),
    *(
        (f"times {times}", "times", lambda times=times: practice.plus_plus_scale(0.5, PLAN, torch.tensor(times)))
        for times in ([0.5], [], [0.5, 0.5], [0.2, 0.5], [[0.9, 0.5]], [1.2, 0.5], [0.5, -0.1], [0.9, NAN])
    ),
    *(
        (f"variance {v}", "variance", lambda v=v: practice.healing_scale(v, 0.1, 0.2, PLAN))
        for v in (0.0, -1.0, INF, NAN)
    ),
    *(
        (f"blurs {b}", "blur", lambda b=b: practice.healing_scale(1.0, *b, PLAN))
        for b in ((0.2, 0.2), (0.3, 0.2), (-0.1, 0.2), (0.1, INF), (NAN, 0.2), (0.1, NAN))
    ),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "call"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_bad_input_is_refused_by_name(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}\b[^.]* must "):
        call()


def test_a_scale_that_is_not_one_a_point_is_refused_when_it_is_used():
    for make in (
        lambda gamma: practice.rescaled(gamma, 0.5, PLAN), lambda gamma: practice.projected(gamma, PLAN),
        lambda gamma: practice.zero_star(gamma, PLAN),
    ):  # fmt: skip
        for gamma in (torch.ones(3), lambda t: NAN, lambda t: torch.ones(2)):
            with pytest.raises(ValueError, match="^gamma must "):
                mix(FIVE.pair(PLAN, 0), make(gamma))(points(), 0.4)


# ---- what the module's docstring says needs no rule of its own


@every_schedule
@pytest.mark.parametrize("t", TIMES)
def test_two_conditions_at_once_are_tilt_on_top_of_classifier_free(schedule, t):
    """eps_u + 1.7 (eps_a - eps_u) + 0.6 (eps_b - eps_u), each push of its own pair."""
    a, b = FIVE, GaussianMixture(FIVE.weights, FIVE.means, FIVE.covs, torch.tensor([0, 1, 2]))
    second = implicit_gradient(b.pair(schedule, 2), schedule)
    found = tilt(classifier_free(a.pair(schedule, 1), 1.7), second, 0.6, schedule)(points(), torch.tensor(t))
    told = [m.denoiser(schedule, label)(points(), torch.tensor(t)) for m, label in ((a, 1), (b, 2))]
    untold = a.denoiser(schedule)(points(), torch.tensor(t))
    for half, first, other, none in zip(found, *told, untold, strict=True):
        torch.testing.assert_close(half, none + 1.7 * (first - none) + 0.6 * (other - none), rtol=1e-6, atol=1e-6)


def test_plain_guidance_by_rescaling_starts_from_data_without_noise():
    schedule, x = vp_linear(), torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    pair, times = FIVE.pair(schedule, 0), torch.linspace(0, 1, 4, dtype=F64)
    plain, none = (
        draw(kernels.ddim(guided, schedule), x, times)
        for guided in (classifier_free(pair, 2.0), mix(pair, practice.rescaled(2.0, 0.0, schedule)))
    )
    torch.testing.assert_close(none, plain, rtol=0, atol=1e-12)


def test_a_rule_that_changes_the_clean_guess_says_where_it_cannot():
    mixture, schedule, x = four_blobs(), vp_linear(), torch.ones(3, 2).double()
    for denoiser in (practice.thresholded(mixture.denoiser(schedule), schedule, limit=5.0),
                     mix(mixture.pair(schedule, 0), practice.rescaled(2.0, 0.7, schedule, of="x0")),
                     mix(mixture.pair(schedule, 0), practice.projected(2.0, schedule))):  # fmt: skip
        with pytest.raises(ValueError, match="t must have sigma_t > 0"):
            denoiser(x, torch.tensor(0.0))


def test_a_guess_without_spread_is_not_rescaled():
    same = Prediction(torch.ones(2, 3).double(), torch.zeros(2, 3).double())
    rule = practice.rescaled(3.0, 0.7, cosine(), of="x0")
    assert torch.equal(rule(same, same, torch.ones(2, 3).double(), torch.tensor(0.5)).x0, same.x0)


def test_a_guess_is_thresholded_in_half_precision():
    guess = Prediction(torch.linspace(-4, 4, 6).view(2, 3).bfloat16(), torch.zeros(2, 3).bfloat16())
    cut = practice.thresholded(lambda x, t: guess, cosine())(torch.zeros(2, 3).bfloat16(), torch.tensor(0.5))
    assert cut.x0.dtype == torch.bfloat16 and float(cut.x0.abs().max()) <= 1
