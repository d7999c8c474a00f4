"""What chapter 00 claims, without its cells: the story by quadrature, the card's rows, and the guesses behind both."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from difflesson import conventions, guidance, kernels, plane
from difflesson.denoiser import Pair, Prediction, network_denoiser, network_pair
from difflesson.digits import checkpoints, metrics, sampling
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, vp_linear

F64 = torch.float64
MIXTURE, SCHEDULE = plane.four_blobs(), vp_linear()
IDEAL = MIXTURE.pair(SCHEDULE, label=1)
SIDE = torch.linspace(-13, 13, 521, dtype=F64)
GRID = torch.cartesian_prod(SIDE, SIDE)
AREA = float(SIDE[1] - SIDE[0]) ** 2
CARD = checkpoints.load("denoiser").card
CURVE = next(iter(CARD["metrics"].values()))


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def started(count: int = 2000) -> Tensor:
    return torch.randn(count, 2, generator=random(), dtype=F64)


def story(gamma: float) -> Tensor:
    """Log of p(x) p(1 | x)^gamma on the grid, with the posterior from Bayes' rule and two densities."""
    cond, uncond = MIXTURE.given(1).log_prob(GRID), MIXTURE.log_prob(GRID)
    return uncond + gamma * (cond - uncond + math.log(0.4))


@cache
def guided(gamma: float, kernel=kernels.ddim, steps: int = 100) -> Tensor:
    denoiser = guidance.classifier_free(IDEAL, gamma)
    return draw(kernel(denoiser, SCHEDULE), started(), time_grid(steps), random(1))


# ---- the story against the truth


@pytest.mark.equation("eq-cfg")
def test_the_dots_fill_the_contours_at_0_and_1_and_leave_them_at_minus_1_one_half_3_and_8():
    """2,000 points a scale: within 3.5 standard errors where the story is true, more than 9 where it is not."""
    for gamma in (-1.0, 0.0, 0.5, 1.0, 3.0, 8.0):
        x_1 = guided(gamma)[:, 0]
        told = float(story(gamma).softmax(0) @ GRID[:, 0])
        errors = abs(float(x_1.mean()) - told) / (float(x_1.std()) / len(x_1) ** 0.5)
        assert errors < 3.5 if gamma in (0, 1) else errors > 9, (gamma, errors)


def test_guidance_falls_short_at_one_half_and_overshoots_beyond_1():
    for gamma, sign in ((0.5, -1), (3.0, 1), (8.0, 1)):
        told = float(story(gamma).softmax(0) @ GRID[:, 0])
        assert sign * (float(guided(gamma)[:, 0].mean()) - told) > 0.3


def test_at_8_the_dots_have_half_the_spread_they_are_said_to_have():
    share = story(8.0).softmax(0)
    told = share @ GRID[:, 0]
    spread = float((share @ (GRID[:, 0] - told) ** 2).sqrt())
    assert 0.4 < float(guided(8.0)[:, 0].std()) / spread < 0.6


def test_at_minus_1_the_story_lies_far_outside_the_data():
    centre = story(-1.0).softmax(0) @ GRID
    outside = MIXTURE.log_prob(MIXTURE.sample(10_000, random())[0]).min() - MIXTURE.log_prob(centre[None])[0]
    assert float(outside) > 10


@pytest.mark.parametrize("steps", [100, 300])
def test_ddim_and_ddpm_part_at_3_however_many_steps_and_not_at_1(steps):
    gaps = {}
    for gamma in (1.0, 3.0):
        x_1, x_1_noisy = (guided(gamma, kernel, steps)[:, 0] for kernel in (kernels.ddim, kernels.ddpm))
        gaps[gamma] = float(x_1.mean() - x_1_noisy.mean())
    assert abs(gaps[1.0]) < 3.5 * math.sqrt(2 * 1.15**2 / 2000)
    assert abs(gaps[3.0] - 0.38) < 3.5 * math.sqrt(2 * 0.03**2)  # the page's, and as many standard errors of both


# ---- why it fails


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_needed_is_the_average_of_the_powers_and_used_the_power_of_the_average(gamma):
    """Left: the story with noise added, by quadrature. Right: p_t(x) times the average over what is behind x."""
    t = torch.tensor(0.3, dtype=F64)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    x = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.3, -1.2]], dtype=F64)
    sure = MIXTURE.class_log_prob(GRID, 1).exp()
    needed, used = [], MIXTURE.noised(alpha, sigma).class_log_prob(x, 1).exp() ** gamma
    for point in x:
        bell = -((point - alpha * GRID) ** 2).sum(1) / (2 * sigma**2) - (2 * math.pi * sigma**2).log()
        noisy_story = float((story(gamma) + bell).exp().sum()) * AREA
        behind = MIXTURE.reverse(point[None], SCHEDULE, 0.3, 0.0).log_prob(GRID[:, None])[:, 0].exp() * AREA
        needed.append(float(behind @ sure**gamma))
        p_t = float(MIXTURE.noised(alpha, sigma).log_prob(point[None]).exp())
        assert abs(noisy_story / (p_t * needed[-1]) - 1) < 1e-6
    equal = max(abs(float(u) / n - 1) for u, n in zip(used, needed, strict=True)) < 1e-6
    assert equal == (gamma in (0.0, 1.0))
    if gamma == 3:
        assert abs(needed[1] / needed[0] - 4.72) < 0.005 and abs(float(used[1] / used[0]) - 65.15) < 0.005


@pytest.mark.parametrize("gamma", [-1.0, 0.5, 3.0])
def test_for_two_bells_of_equal_width_needed_over_used_is_a_factor_without_x_t_and_for_the_blobs_it_is_not(gamma):
    """Quadrature of p_c / p_u over what is behind x_t, for bells of width one; the mixture's p(y | x) for the blobs."""
    t, apart = torch.tensor(0.4, dtype=F64), 1.5
    alpha, sigma = cosine().alpha(t), cosine().sigma(t)
    line, x_t = torch.linspace(-14, 14, 4001, dtype=F64), torch.linspace(-2, 3, 9, dtype=F64)
    behind = (-((line - 0.5) ** 2) / 2 - (x_t[:, None] - alpha * line) ** 2 / (2 * sigma**2)).softmax(1)
    tilt = (apart * line).exp()  # p_c / p_u up to a constant
    factor = behind @ tilt**gamma / (behind @ tilt) ** gamma
    expected = math.exp(gamma * (gamma - 1) * apart**2 * float(sigma) ** 2 / 2)
    assert float((factor / expected - 1).abs().max()) < 1e-8
    points = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64)
    chance = MIXTURE.reverse(points, SCHEDULE, 0.3, 0.0).log_prob(GRID[:, None]).softmax(0)
    sure = MIXTURE.class_log_prob(GRID, 1).exp()
    left, right = sure**gamma @ chance / (sure @ chance) ** gamma
    assert abs(float(left / right) - 1) > 0.1


@pytest.mark.equation("eq-parameterisations")
def test_the_best_guess_of_the_noise_is_a_slope_and_the_noise_that_was_drawn_is_not():
    """E[eps | x_t] by quadrature over the clean points; the slope by differences of log p_t."""
    t = torch.tensor(0.4, dtype=F64)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    noisy, step = MIXTURE.noised(alpha, sigma), 1e-5
    x = torch.tensor([[-1.5, 0.5], [2.0, 0.1]], dtype=F64)
    for point in x:
        noises = (point - alpha * GRID) / sigma
        average = (MIXTURE.log_prob(GRID) - noises.square().sum(1) / 2).softmax(0) @ noises
        sides = point + step * torch.eye(2, dtype=F64)
        others = point - step * torch.eye(2, dtype=F64)
        slope = (noisy.log_prob(sides) - noisy.log_prob(others)) / (2 * step)
        assert float((average + sigma * slope).abs().max()) < 1e-8
        assert float((MIXTURE.denoiser(SCHEDULE)(point[None], t).eps[0] - average).abs().max()) < 1e-8
    clean, _ = MIXTURE.sample(500, random())
    drawn = torch.randn(500, 2, generator=random(1), dtype=F64)
    x_t = SCHEDULE.add_noise(clean, drawn, t)
    assert float((drawn + sigma * noisy.score(x_t)).square().mean()) > 0.05


@pytest.mark.equation("eq-cfg")
def test_the_guided_guess_has_the_slope_of_p_t_times_the_posterior_to_the_gamma():
    t, x = torch.tensor(0.4, dtype=F64), started(50).requires_grad_()
    noisy = MIXTURE.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t))
    (noisy.log_prob(x) + 3 * noisy.class_log_prob(x, 1)).sum().backward()
    guess = guidance.classifier_free(IDEAL, 3.0)(x.detach(), t).eps
    assert float((guess + SCHEDULE.sigma(t) * x.grad).abs().max()) < 1e-12


@pytest.mark.equation("eq-parameterisations")
def test_only_v_gives_both_guesses_at_both_ends():
    x, zero, one = started(3), torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
    for alpha, sigma, lost in ((one, zero, ("x0", "eps")), (zero, one, ("eps", "x0"))):
        assert all(bool(part.isfinite().all()) for part in Prediction.from_v(x, x, alpha, sigma))
        with pytest.raises(ValueError, match="singular"):
            conventions.convert(x, *lost, x, alpha, sigma)


# ---- digits: the card, and why its first row is the worst


def test_the_card_says_what_the_page_says():
    fid = {gamma: row["digit_fid"] for gamma, row in CURVE.items()}
    right = {gamma: row["accuracy"] for gamma, row in CURVE.items()}
    real = metrics.load_reference()[1]
    assert list(CURVE) == ["0", "0.5", "1", "1.5", "2", "3", "5"]
    assert min(fid, key=fid.get) == "1" and max(fid, key=fid.get) == "0"
    assert [round(fid[gamma], 3) for gamma in ("0", "1", "2", "5")] == [0.919, 0.062, 0.204, 0.336]
    assert [round(10_000 * (1 - right[gamma])) for gamma in ("1", "1.5", "2", "3", "5")] == [86, 1, 0, 0, 0]
    assert all(right[gamma] > real["judge_accuracy_on_test"] for gamma in ("1.5", "2", "3", "5"))
    assert real["digit_fid_floor"] < 0.0285 and real["digit_fid_floor"] > 0.0275
    assert 0.95 < 1 - (1 - 3e-4) ** 10_000 < 0.951  # none of 10,000 wrong: the share is below 0.0003
    assert fid["1.5"] > fid["1"] and right["1.5"] > right["1"]


def test_one_label_in_ten_was_hidden_in_training():
    assert CARD["recipe"]["label_dropout"] == 0.1


def test_drawing_a_label_and_then_a_point_of_it_is_drawing_from_all_data():
    parts = [MIXTURE.class_weights()[y].log() + MIXTURE.given(y).log_prob(GRID) for y in (0, 1)]
    assert float((torch.logaddexp(*parts).exp() - MIXTURE.log_prob(GRID).exp()).abs().max()) < 1e-12


@pytest.mark.nightly
def test_without_the_label_the_judge_is_in_doubt_about_many_shapes():
    """24 digits a scale: about one in five at 0, one in sixty at 1."""
    network, judge = checkpoints.load("denoiser").network, checkpoints.load("judge").network
    doubt = {}
    for gamma in (0.0, 1.0):
        digits = sampling.generate(network, torch.arange(24) % 10, gamma, seed=5)
        doubt[gamma] = int((metrics.judged(judge, digits)[1].max(1).values.exp() < 0.9).sum())
    assert doubt[0.0] >= 3 and doubt[1.0] <= 1


@pytest.mark.nightly
def test_four_times_the_steps_leave_the_judge_no_less_in_doubt_without_the_label():
    """The page's 200 digits at each number of steps, and the standard error of their shares."""
    network, judge = checkpoints.load("denoiser").network, checkpoints.load("judge").network
    for steps, told in ((16, 0.170), (64, 0.205)):
        digits = sampling.generate(network, torch.arange(200) % 10, 0.0, seed=5, steps=steps)
        doubt = float((metrics.judged(judge, digits)[1].max(1).values.exp() < 0.9).double().mean())
        assert abs(doubt - told) < 0.006  # one digit more or less
        assert round((doubt * (1 - doubt) / 200) ** 0.5, 2) == 0.03


def by_bayes(network, guide, schedule):
    """The guess without a label from ten with one, weighted by the guide."""

    def guess(x: Tensor, t: Tensor) -> Prediction:
        share = guide(x, torch.full((len(x),), float(schedule.log_snr(t)))).softmax(1).view(-1, 10, 1, 1, 1)
        guesses = [network_denoiser(network, schedule, y)(x, t) for y in range(10)]
        return Prediction(*((share * torch.stack(part, 1)).sum(1) for part in zip(*guesses, strict=True)))

    return guess


@torch.no_grad()
def test_a_classifier_is_sure_of_noisy_sevens_up_to_time_06_and_of_very_noisy_ones_not():
    """The page's five sevens and noises: the guide's p(7), and what of c - u is left against the average of ten."""
    network, guide = checkpoints.load("denoiser").network, checkpoints.load("guide").network
    schedule = network.schedule
    x_0 = sampling.generate(network, torch.full((5,), 7), 1.0, seed=2, sampler="ddim", steps=16)
    eps = torch.randn(x_0.shape, generator=random(4))
    pair, average = network_pair(network, schedule, 7), by_bayes(network, guide, schedule)
    surest, label, rest = {}, {}, {}
    for t in (0.5, 0.6, 0.7, 0.8, 0.9):
        x_t = schedule.add_noise(x_0, eps, t)
        p_7 = guide(x_t, torch.full((5,), float(schedule.log_snr(t)))).softmax(1)[:, 7]
        surest[t] = (float(p_7.min()), float(p_7.max()))
        (cond, uncond), mean = pair(x_t, t), average(x_t, t)
        label[t] = float((cond.eps - mean.eps).norm() / uncond.eps.norm())
        rest[t] = float((cond.eps - uncond.eps).norm() / uncond.eps.norm())
    assert surest[0.5][0] > 0.998 and surest[0.6][0] > 0.98 and surest[0.7][0] < 0.72 and surest[0.9][1] < 0.3
    assert all(label[t] < 0.1 * rest[t] for t in (0.5, 0.6)) and label[0.8] > 0.6 * rest[0.8]
    assert abs(rest[0.5] - 0.027) < 0.001 and abs(rest[0.8] - 0.0556) < 0.001


@torch.no_grad()
def test_less_seven_is_no_seven_and_asks_for_nothing_else():
    network, judge = checkpoints.load("denoiser").network, checkpoints.load("judge").network
    sevens = torch.full((5,), 7)
    for gamma, seen in ((0.0, [6, 6, 4, 9, 0]), (-1.0, [6, 6, 9, 4, 6])):
        digits = sampling.generate(network, sevens, gamma, seed=2, sampler="ddim", steps=16)
        assert metrics.judged(judge, digits)[1].argmax(1).tolist() == seen


@pytest.mark.nightly
@torch.no_grad()
def test_sevens_thicken_also_when_the_half_without_a_label_is_the_average_of_ten():
    """The page's ten sevens: mean ink in pixels, and its rise from gamma 1, paired by the noise."""
    network, guide = checkpoints.load("denoiser").network, checkpoints.load("guide").network
    schedule, told = network.schedule, network_denoiser(network, network.schedule, 7)
    start = torch.randn(10, 1, 28, 28, generator=random(3))

    def ink(denoiser) -> Tensor:
        digits = draw(kernels.ddim(denoiser, schedule), start, sampling.digit_times(16, schedule))
        return ((digits.clamp(-1, 1) + 1) / 2).sum((1, 2, 3))

    plain = ink(told)
    assert abs(float(plain.mean()) - 95.7) < 0.5
    halves = {"own": network_denoiser(network, schedule, None), "average": by_bayes(network, guide, schedule)}
    for half, gamma, mean in (("own", 3, 105.9), ("own", 8, 121.2), ("average", 3, 108.03), ("average", 8, 119.3)):
        inked = ink(guidance.classifier_free(Pair(told, halves[half]), float(gamma)))
        rise, error = inked - plain, float((inked - plain).std()) / 10**0.5
        assert abs(float(inked.mean()) - mean) < 0.5
        assert float(rise.mean()) > 2.5 * error
        told_rise, told_error = {108.03: (12.32, 3.96), 119.3: (23.63, 4.35)}.get(mean, (float(rise.mean()), error))
        assert abs(float(rise.mean()) - told_rise) < 0.5 and abs(error - told_error) < 0.1


@pytest.mark.nightly
@torch.no_grad()
def test_digits_of_a_class_spread_less_at_3_than_at_1_in_features_more_than_in_pixels():
    """The page's 300 digits a scale; differences paired by class, ten of them, and their standard errors."""
    network, judge = checkpoints.load("denoiser").network, checkpoints.load("judge").network
    drawn = {gamma: sampling.generate(network, torch.arange(300) % 10, gamma, seed=5) for gamma in (1.0, 3.0)}
    views = {"pixels": lambda x: x.clamp(-1, 1).flatten(1), "features": lambda x: metrics.judged(judge, x)[0]}
    told = (("pixels", 137.21, 127.53, 9.68, 3.353, 1.08), ("features", 2.278, 0.691, 1.587, 0.334, 3.30))
    for name, plain, guided, difference, error, ratio in told:
        within = [views[name](drawn[gamma]).view(30, 10, -1).double().var(dim=0).sum(1) for gamma in (1.0, 3.0)]
        apart = within[0] - within[1]
        assert abs(float(within[0].mean()) / plain - 1) < 0.005 and abs(float(within[1].mean()) / guided - 1) < 0.005
        assert abs(float(apart.mean()) / difference - 1) < 0.02
        assert abs(float(apart.std()) / 10**0.5 / error - 1) < 0.02
        assert abs(float(within[0].mean() / within[1].mean()) - ratio) < 0.01


# ---- a step, and names


@pytest.mark.equation("eq-ddim", "eq-cfg")
def test_a_step_takes_the_guessed_noise_away_and_puts_back_what_belongs_to_the_earlier_time():
    t, s, x_t = torch.tensor(0.6, dtype=F64), torch.tensor(0.5, dtype=F64), started(20)
    cond, uncond = IDEAL(x_t, t)
    guess = uncond.eps + 3 * (cond.eps - uncond.eps)
    clean = (x_t - SCHEDULE.sigma(t) * guess) / SCHEDULE.alpha(t)
    x_s = SCHEDULE.alpha(s) * clean + SCHEDULE.sigma(s) * guess
    step = kernels.ddim(guidance.classifier_free(IDEAL, 3.0), SCHEDULE)(x_t, t, s)
    assert float((step.mean - x_s).abs().max()) < 1e-12 and float(step.var) == 0


@pytest.mark.equation("eq-cfg-weight")
def test_the_rows_shown_differ_in_their_zero_and_cfg_plus_plus_and_clip_have_none():
    shown = "ho-salimans imagen stable-diffusion diffusers dit smalldiffusion guided-diffusion-conditional"
    zeros = {name: conventions.guidance_scale(3.0, "gamma", name) for name in shown.split()}
    assert set(zeros.values()) == {2.0, 3.0}
    assert zeros["ho-salimans"] == zeros["smalldiffusion"] == zeros["guided-diffusion-conditional"] == 2.0
    for name in ("cfg++", "clip_guidance_scale"):
        with pytest.raises(ValueError, match="Allowed"):
            conventions.guidance_scale(3.0, name)


def test_guiding_between_two_bells_is_the_guess_of_a_third_bell_and_no_data_have_both():
    schedule, t, x = cosine(), torch.tensor(0.5, dtype=F64), torch.linspace(-4, 4, 30, dtype=F64)[:, None]

    def bell(mean):
        return GaussianMixture([1.0], torch.tensor([[mean]], dtype=F64), [[[1.0]]])

    pair = Pair(bell(2.0).denoiser(schedule), bell(0.5).denoiser(schedule))
    for gamma in (-1.5, 0.0, 1.0, 4.0):
        third = bell(0.5 + gamma * 1.5).denoiser(schedule)(x, t)
        assert float((guidance.classifier_free(pair, gamma)(x, t).eps - third.eps).abs().max()) < 1e-12
    ratio = bell(2.0).log_prob(x) - bell(0.5).log_prob(x)  # log p(y | x) up to log p(y): linear, so without a bound
    assert float(ratio.diff().min()) > 0 and float(ratio.diff().diff().abs().max()) < 1e-9
