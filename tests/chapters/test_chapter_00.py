"""What chapter 00 claims, without its cells: the story by quadrature, the guesses behind it. Digits: the next file."""

import math
import tomllib
from functools import cache

import pytest
import torch
from torch import Tensor

from difflesson import conventions, guidance, kernels, plane
from difflesson.denoiser import Pair, Prediction
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, vp_linear
from tests.oracles.chapter_cells import ROOT, assigned

F64 = torch.float64
MIXTURE, SCHEDULE = plane.four_blobs(), vp_linear()
IDEAL = MIXTURE.pair(SCHEDULE, label=1)
SIDE = torch.linspace(-13, 13, 261, dtype=F64)
PAGE = next((ROOT / "notebooks").glob("00_*.py")).read_text(encoding="utf-8")
GRID = torch.cartesian_prod(SIDE, SIDE)
AREA = float(SIDE[1] - SIDE[0]) ** 2


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


def test_asked_for_the_other_class_the_dots_leave_the_story_as_well():
    """Class 0 of the same blobs, 60 steps: the gaps have the other sign, and are as clear."""
    pair, all_data, of_class = MIXTURE.pair(SCHEDULE, label=0), MIXTURE.log_prob(GRID), MIXTURE.given(0).log_prob(GRID)
    for gamma, sign in ((0.5, 1), (1.0, 0), (3.0, -1), (8.0, -1)):
        x_1 = draw(kernels.ddim(guidance.classifier_free(pair, gamma), SCHEDULE), started(), time_grid(60))[:, 0]
        told = float(((1 - gamma) * all_data + gamma * of_class).softmax(0) @ GRID[:, 0])
        errors = (float(x_1.mean()) - told) / (float(x_1.std()) / len(x_1) ** 0.5)
        assert sign * errors > 7 if sign else abs(errors) < 3.5, (gamma, errors)


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


def test_ddim_and_ddpm_part_at_3_however_many_steps_and_not_at_1():
    gaps = {}
    for gamma, steps in ((1.0, 100), (3.0, 100), (3.0, 300)):
        x_1, x_1_noisy = (guided(gamma, kernel, steps)[:, 0] for kernel in (kernels.ddim, kernels.ddpm))
        gaps[gamma, steps] = float(x_1.mean() - x_1_noisy.mean())
    assert abs(gaps[1.0, 100]) < 3.5 * math.sqrt(2 * 1.15**2 / 2000)
    for steps in (100, 300):  # the page's, and as many standard errors of both
        assert abs(gaps[3.0, steps] - 0.38) < 3.5 * math.sqrt(2 * 0.03**2)


def test_ddim_adds_no_noise_on_its_way_and_ddpm_some_at_every_step():
    for t, s in ((1.0, 0.9), (0.5, 0.4), (0.02, 0.01)):
        steps = [kernel(IDEAL.cond, SCHEDULE)(started(5), t, s) for kernel in (kernels.ddim, kernels.ddpm)]
        assert float(steps[0].var) == 0 and float(steps[1].var) > 0


def test_the_contours_hardly_move_and_the_dots_run_away_from_the_other_class_and_crowd_together():
    told = {gamma: float(story(gamma).softmax(0) @ GRID[:, 0]) for gamma in (1.0, 3.0, 8.0)}
    means = {gamma: float(guided(gamma)[:, 0].mean()) for gamma in told}
    other = {gamma: float(MIXTURE.given(0).log_prob(guided(gamma)).mean()) for gamma in told}
    spreads = [float(guided(gamma).std(0).norm()) for gamma in told]
    assert told[8.0] - told[1.0] < 0.25 and means[3.0] - means[1.0] > 0.8 and means[8.0] - means[3.0] > 0.8
    assert other[1.0] > other[3.0] > other[8.0] and spreads == sorted(spreads, reverse=True)


def test_what_the_figures_and_their_captions_say_is_set_up_so():
    """The page's blobs, noises and times; the scales drawn; and whose noises a panel shares."""
    page = assigned("00", "mixture", "plane", "times", "first", "requests", "pictured")
    assert page["mixture"].labels == (0, 0, 1, 1)
    x = started(50)
    assert torch.equal(page["mixture"].log_prob(x), MIXTURE.log_prob(x)) and repr(page["plane"]) == repr(SCHEDULE)
    assert torch.equal(page["times"], time_grid(200)) and page["first"].shape == (3000, 2)
    assert page["requests"].tolist() == [7] * 8 and page["pictured"] == (0, 1, 3, 8)
    assert "(3.0, 300)):\n    steered, clouds" in PAGE and "panel.axvline(dots[:, 0].mean(), color" in PAGE
    assert "for solver in (kernels.ddim, kernels.ddpm):" in PAGE and "lambda x: story(x, 3.0)" in PAGE
    assert "schedule.add_noise(x_0[2:3], eps[2:3], time)" in PAGE and PAGE.count("seed=8, sampler=") == 1


def test_the_story_at_1_is_the_class_by_bayes_rule_and_sharpening_makes_doubtful_points_rare():
    given = MIXTURE.given(1).log_prob(GRID).softmax(0)
    assert float((story(1.0).softmax(0) - given).abs().max()) < 1e-12
    doubtful = MIXTURE.class_log_prob(GRID, 1).exp() < 0.9
    shares = [float(story(gamma).softmax(0)[doubtful].sum()) for gamma in (1.0, 3.0, 8.0)]
    assert shares[0] > 2 * shares[1] > 4 * shares[2]


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
    """Quadrature of p_c / p_u over what is behind x_t, for bells of widths one and 0.7; the mixture's p(y | x)."""
    t, apart = torch.tensor(0.4, dtype=F64), 1.5
    alpha, sigma = cosine().alpha(t), cosine().sigma(t)
    line, x_t = torch.linspace(-14, 14, 4001, dtype=F64), torch.linspace(-2, 3, 9, dtype=F64)
    for width in (1.0, 0.7):
        noise = (x_t[:, None] - alpha * line) / sigma
        behind = (-(((line - 0.5) / width) ** 2) / 2 - noise**2 / 2).softmax(1)
        slope = apart / width**2
        tilt = (slope * line).exp()  # p_c / p_u up to a constant
        factor = behind @ tilt**gamma / (behind @ tilt) ** gamma
        variance = 1 / (1 / width**2 + float(alpha / sigma) ** 2)  # of what is behind x_t: sigma^2 at width one
        assert width < 1 or abs(variance - float(sigma) ** 2) < 1e-12
        expected = math.exp(gamma * (gamma - 1) * slope**2 * variance / 2)
        assert float((factor / expected - 1).abs().max()) < 1e-8
    points = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64)
    chance = MIXTURE.reverse(points, SCHEDULE, 0.3, 0.0).log_prob(GRID[:, None]).softmax(0)
    sure = MIXTURE.class_log_prob(GRID, 1).exp()
    left, right = sure**gamma @ chance / (sure @ chance) ** gamma
    assert abs(float(left / right) - 1) > 0.1


def test_two_classes_that_are_bells_of_equal_width_are_not_sampled_as_told():
    """Around -1 and 1, on a line: then all data are no bell. The noise is even quantiles, so nothing scatters."""
    two = GaussianMixture([0.5, 0.5], torch.tensor([[-1.0], [1.0]], dtype=F64), [[[1.0]], [[1.0]]], labels=[0, 1])
    noise = torch.special.ndtri((torch.arange(500, dtype=F64) + 0.5) / 500)[:, None]
    line = torch.linspace(-12, 12, 2401, dtype=F64)[:, None]
    for gamma, right in ((1.0, True), (3.0, False), (8.0, False)):
        steered = guidance.classifier_free(two.pair(SCHEDULE, 1), gamma)
        ends = draw(kernels.ddim(steered, SCHEDULE), noise, time_grid(100))
        cond, other = (-((line[:, 0] - mean) ** 2) / 2 for mean in (1.0, -1.0))
        told = (gamma * cond + (1 - gamma) * torch.logaddexp(cond, other)).softmax(0) @ line[:, 0]
        gap = float(ends.mean() - told)
        assert abs(gap) < 0.02 if right else gap > 0.5, (gamma, gap)


def test_equally_sure_pictures_are_the_only_case_in_which_power_and_average_may_change_places():
    """Jensen: random chances, gamma between 0 and 1 and outside; then one chance for all."""
    sure, share = torch.rand(2, 50, generator=random(), dtype=F64)
    share = share / share.sum()
    for gamma, sign in ((-1.0, 1), (0.5, -1), (3.0, 1)):
        assert sign * float(share @ sure**gamma - (share @ sure) ** gamma) > 0.01
        assert abs(float(share @ sure.mean().expand(50) ** gamma - sure.mean() ** gamma)) < 1e-12


def test_wrong_slopes_on_the_way_need_not_mean_a_wrong_end():
    """Three times the difference above t = 0.7 and none below: DDPM forgets, and ends in the class."""
    denoiser = guidance.classifier_free(IDEAL, lambda t: torch.where(t > 0.7, 3.0, 1.0))
    t = torch.tensor(0.75, dtype=F64)
    assert float((denoiser(started(), t).eps - IDEAL.cond(started(), t).eps).square().mean().sqrt()) > 0.01
    x_1 = draw(kernels.ddpm(denoiser, SCHEDULE), started(), time_grid(100), random(1))[:, 0]
    told = float(story(1.0).softmax(0) @ GRID[:, 0])
    assert abs(float(x_1.mean()) - told) < 3.5 * float(x_1.std()) / 2000**0.5


def test_the_average_of_the_noises_is_the_guess_with_the_least_squared_error():
    """20,000 noisy points: every other guess costs more, by the mean square of what it changes."""
    t = torch.tensor(0.5, dtype=F64)
    clean, _ = MIXTURE.sample(20_000, random())
    drawn = torch.randn(20_000, 2, generator=random(1), dtype=F64)
    x_t = SCHEDULE.add_noise(clean, drawn, t)
    best = MIXTURE.denoiser(SCHEDULE)(x_t, t).eps
    for other in (0.9 * best, 1.1 * best, best + 0.1, best + 0.1 * x_t, IDEAL.cond(x_t, t).eps):
        more = (drawn - other).square().sum(1) - (drawn - best).square().sum(1)
        assert float(more.mean()) > 0
        assert abs(float((more - (other - best).square().sum(1)).mean())) < 3.5 * float(more.std()) / 20_000**0.5


def test_the_density_of_noisy_points_is_an_average_of_gaussians_each_with_log_slope_minus_eps_over_sigma():
    """The gradient of one Gaussian by autograd; the average of these, over sampled clean points, against log p_t."""
    t = torch.tensor(0.5, dtype=F64)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    clean, x = MIXTURE.sample(100_000, random())[0], torch.tensor([0.7, -0.4], dtype=F64, requires_grad=True)
    bells = (-(x - alpha * clean).square().sum(1) / (2 * sigma**2)).exp() / (2 * math.pi * sigma**2)  # (N,)
    (slope,) = torch.autograd.grad(bells.mean(), x)
    bells, eps = bells.detach(), (x.detach() - alpha * clean) / sigma
    assert float((slope - (bells[:, None] * -eps / sigma).mean(0)).abs().max()) < 1e-12
    noisy = MIXTURE.noised(alpha, sigma)
    p_t, exact = noisy.log_prob(x.detach()[None]).exp(), noisy.score(x.detach()[None])[0]
    error = float(bells.std()) / 100_000**0.5
    assert abs(float(bells.mean() - p_t)) < 3.5 * error
    assert float((slope / bells.mean() - exact).abs().max()) < 0.02


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
        for part in ("x0", "eps"):  # of these four: the velocity of flow matching, a fifth, gives both as well
            assert bool(conventions.convert(x, "flow", part, x, alpha, sigma).isfinite().all())


# ---- labels and classes


def test_drawing_a_label_and_then_a_point_of_it_is_drawing_from_all_data():
    parts = [MIXTURE.class_weights()[y].log() + MIXTURE.given(y).log_prob(GRID) for y in (0, 1)]
    assert float((torch.logaddexp(*parts).exp() - MIXTURE.log_prob(GRID).exp()).abs().max()) < 1e-12


def test_the_guess_without_a_label_is_the_average_of_those_with_one_weighted_by_the_classes():
    t, x = torch.tensor(0.5, dtype=F64), started(20)
    noisy = MIXTURE.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t))
    guesses = [MIXTURE.denoiser(SCHEDULE, y)(x, t).eps for y in (0, 1)]
    average = sum(noisy.class_log_prob(x, y).exp()[:, None] * guess for y, guess in enumerate(guesses))
    assert float((average - MIXTURE.denoiser(SCHEDULE)(x, t).eps).abs().max()) < 1e-12


def test_a_negative_prompt_keeps_its_class_out_and_a_negative_scale_walks_away_from_the_request():
    """Four blobs, a class each. The prompt takes the place of "not told"; the slopes are those of the densities."""
    means = torch.tensor([[-2, 0], [2, 0], [0, 2], [0, -2]], dtype=F64)
    four = GaussianMixture([0.25] * 4, means, 0.6 * torch.eye(2, dtype=F64).expand(4, 2, 2), labels=[0, 1, 2, 3])
    told, kept_out = four.denoiser(SCHEDULE, 2), four.denoiser(SCHEDULE, 1)
    start, ends = started(400), {}
    for name, pair, gamma in (
        ("plain", Pair(told, kept_out), 1.0),
        ("prompt", Pair(told, kept_out), 3.0),
        ("less", Pair(told, four.denoiser(SCHEDULE)), -1.0),
    ):
        ends[name] = draw(kernels.ddim(guidance.classifier_free(pair, gamma), SCHEDULE), start, time_grid(50))
    away = {name: float((cloud - means[1]).norm(dim=1).mean()) for name, cloud in ends.items()}
    assert away["prompt"] > away["plain"] + 0.5
    asked = four.class_log_prob(ends["less"], 2).exp()
    assert float(asked.mean()) < 0.05  # no 2, and each of the others is still there: nothing else was asked for
    assert all(float(four.class_log_prob(ends["less"], y).exp().mean()) > 0.1 for y in (0, 1, 3))


def test_the_parts_of_the_course_are_as_the_page_says():
    parts = tomllib.loads((ROOT / "book" / "chapters.toml").read_text(encoding="utf-8"))["parts"]
    ends = [(part["chapters"][0]["number"], part["chapters"][-1]["number"]) for part in parts]
    assert ends == [("00", "05"), ("06", "12"), ("13", "16"), ("17", "20")]
    titles = [part["title"].split(". ", 1)[1] for part in parts]
    assert titles[:3] == ["The process nobody steers", "Guidance", "Digits"]
    assert titles[3] == "What gamma really does, and what to do about it"


def test_where_a_row_of_the_card_was_read_is_what_the_page_lists():
    assert {row["checked in"] for row in conventions.card()} == {"code", "copy", "blog", "paper"}


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
