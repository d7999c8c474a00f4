"""What chapter 00 claims, without its cells: the story by quadrature, the card's rows, and the guesses behind both."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from difflesson import conventions, guidance, kernels, plane
from difflesson.denoiser import Pair, Prediction
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
    assert 0.2 < gaps[3.0] < 0.5


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
        assert 4 < needed[1] / needed[0] < 6 and 50 < float(used[1] / used[0]) < 70  # the page's 5 and 60


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
    assert f"{math.sqrt(right['1'] * (1 - right['1']) / 10_000):.4f}" == "0.0009"
    assert round(real["digit_fid_floor"], 2) == 0.03


def test_one_label_in_ten_was_hidden_in_training():
    assert CARD["recipe"]["label_dropout"] == 0.1


def test_drawing_a_label_and_then_a_point_of_it_is_drawing_from_all_data():
    parts = [MIXTURE.class_weights()[y].log() + MIXTURE.given(y).log_prob(GRID) for y in (0, 1)]
    assert float((torch.logaddexp(*parts).exp() - MIXTURE.log_prob(GRID).exp()).abs().max()) < 1e-12


def test_without_the_label_the_judge_is_in_doubt_about_many_shapes():
    """24 digits a scale: about one in five at 0, one in sixty at 1."""
    network, judge = checkpoints.load("denoiser").network, checkpoints.load("judge").network
    doubt = {}
    for gamma in (0.0, 1.0):
        digits = sampling.generate(network, torch.arange(24) % 10, gamma, seed=5)
        doubt[gamma] = int((metrics.judged(judge, digits)[1].max(1).values.exp() < 0.9).sum())
    assert doubt[0.0] >= 3 and doubt[1.0] <= 1


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
