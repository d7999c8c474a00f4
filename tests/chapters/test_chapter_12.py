"""What chapter 12 claims about a classifier that knows only clean data: by grids, differences and autograd."""

import math

import pytest
import torch
from torch import Tensor

from difflesson import guidance, kernels, metrics, plane
from difflesson.clean_classifier import clean_cov, clean_guess, gaussian_cloud, logistic_cloud, noisy_answer, step_guess
from difflesson.divergence import hermite, mixture_nodes
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, vp_linear
from tests.oracles.chapter_cells import names_of
from tests.oracles.mixtures import FOUR, THREE, single

F64 = torch.float64
SCHEDULE, LABEL = cosine(), 1
POINTS = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1], [2.5, 2.0]], dtype=F64)


def at(t: float) -> Tensor:
    return torch.tensor(t, dtype=F64)


def classifier(mixture: GaussianMixture, label: int = LABEL):
    return lambda x0: mixture.class_log_prob(x0, label)


def noised(mixture: GaussianMixture, t: float, schedule=SCHEDULE) -> GaussianMixture:
    return mixture.noised(schedule.alpha(t), schedule.sigma(t))


def differences(function, x: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a function (N, d) -> (N, ...) along each axis, (N, ..., d)."""
    axes = step * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.stack([(function(x + axis) - function(x - axis)) / (2 * step) for axis in axes], -1)


def grid_cloud(parts, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """Points of a grid (M, 2), and p(x_0 | x) at them, (N, M); the densities written out."""
    axis = torch.linspace(-7, 7, 351, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    prior = torch.zeros(len(grid), dtype=F64)
    for weight, mean, cov in zip(parts.weights, parts.means, parts.covs, strict=True):
        away, cov = grid - torch.tensor(mean), torch.tensor(cov)
        prior += weight * torch.exp(-((away @ cov.inverse()) * away).sum(1) / 2) / cov.det().sqrt()
    weights = prior * torch.exp(-torch.cdist(x, alpha * grid).square() / (2 * sigma**2))
    return grid, weights / weights.sum(1, keepdim=True)


def verdicts(parts, grid: Tensor, label: int) -> Tensor:
    """p_o(label | x_0) on the grid, the densities written out."""
    bells = []
    for weight, mean, cov in zip(parts.weights, parts.means, parts.covs, strict=True):
        away, cov = grid - torch.tensor(mean), torch.tensor(cov)
        bells.append(weight * torch.exp(-((away @ cov.inverse()) * away).sum(1) / 2) / cov.det().sqrt())
    bells = torch.stack(bells)
    return bells[torch.tensor(parts.labels) == label].sum(0) / bells.sum(0)


# ---- what a noisy classifier should say, and what the guess says


@pytest.mark.equation("eq-noisy-answer")
@pytest.mark.parametrize("parts", [FOUR, THREE], ids=["four", "three"])
def test_a_noisy_classifier_says_the_average_of_the_clean_one_over_the_cloud(parts):
    mixture, schedule = parts.mixture(), vp_linear()
    for t in (0.2, 0.4):
        grid, cloud = grid_cloud(parts, POINTS, float(schedule.alpha(t)), float(schedule.sigma(t)))
        for label in (0, 1):
            average = cloud @ verdicts(parts, grid, label)
            answer = noisy_answer(mixture, schedule, classifier(mixture, label), POINTS, t, order=30).exp()
            known = noised(mixture, t, schedule).class_log_prob(POINTS, label).exp()
            assert float((average - known).abs().max()) < 1e-6 and float((answer - known).abs().max()) < 2e-4


def test_given_the_clean_point_the_noisy_one_says_nothing_more_about_the_class():
    """By Bayes on a grid of pairs: p(x_0, x | y) p(y) / p(x_0, x) does not depend on x."""
    mixture, t = FOUR.mixture(), 0.5
    alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
    x0, x = POINTS[:, None], POINTS.flip(0)[None]
    kernel = torch.exp(-(x - alpha * x0).square().sum(2) / (2 * sigma**2))
    joint = {
        y: (mixture.given(y).log_prob(POINTS).exp() * float(mixture.class_weights()[y]))[:, None] * kernel
        for y in (0, 1)
    }
    share = joint[1] / (joint[0] + joint[1])
    assert float((share - classifier(mixture)(POINTS).exp()[:, None]).abs().max()) < 1e-12


@pytest.mark.equation("eq-clean-guess")
@pytest.mark.parametrize("schedule", [cosine(), vp_linear()], ids=["cosine", "vp_linear"])
def test_the_guess_is_the_clean_verdict_about_the_middle_of_the_cloud(schedule):
    mixture = FOUR.mixture()
    for t in (0.2, 0.4):
        grid, cloud = grid_cloud(FOUR, POINTS, float(schedule.alpha(t)), float(schedule.sigma(t)))
        middle = cloud @ grid
        guess = clean_guess(mixture.denoiser(schedule), classifier(mixture))(POINTS, at(t))
        assert float((guess - classifier(mixture)(middle)).abs().max()) < 1e-5


def test_guidance_with_the_exact_noisy_answer_at_gamma_1_is_the_conditional_denoiser():
    mixture, x = FOUR.mixture(), POINTS
    for t in (0.1, 0.5, 0.95):
        exact = guidance.gradient(lambda x, t: noised(mixture, t).class_log_prob(x, LABEL))
        guided = guidance.tilt(mixture.denoiser(SCHEDULE), exact, 1.0, SCHEDULE)(x, at(t))
        told = mixture.denoiser(SCHEDULE, LABEL)(x, at(t))
        assert float((guided.x0 - told.x0).abs().max()) < 1e-9 and float((guided.eps - told.eps).abs().max()) < 1e-9


def test_the_jensen_gap_has_either_sign_and_the_classifier_is_neither_convex_nor_concave():
    mixture, t = plane.four_blobs(), 0.6
    x = noised(mixture, t).sample(2000, torch.Generator().manual_seed(5))[0]
    gap = (
        clean_guess(mixture.denoiser(SCHEDULE), classifier(mixture))(x, at(t)).exp()
        - noised(mixture, t).class_log_prob(x, 1).exp()
    )
    assert float(gap.min()) < -0.1 and float(gap.max()) > 0.1
    ends = mixture.means[[0, 2]]
    on_the_way = ends[0] + torch.linspace(0, 1, 101, dtype=F64)[:, None] * (ends[1] - ends[0])
    bend = mixture.class_log_prob(on_the_way, 1).exp().diff().diff()
    assert float(bend.min()) < -1e-4 and float(bend.max()) > 1e-4


# ---- gradients


@pytest.mark.equation("eq-nudge")
@pytest.mark.parametrize("schedule", [cosine(), vp_linear()], ids=["cosine", "vp_linear"])
def test_a_nudge_changes_averages_over_the_cloud_by_their_covariance_with_position(schedule):
    """The page's function against differences of sums over a grid, for three functions."""
    nudged, mixture, t = names_of("12", "eq-nudge")["nudged"], FOUR.mixture(), at(0.4)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    for f in (
        lambda z: torch.sin(z[:, 0]) + z[:, 1] ** 2,
        lambda z: z[:, 1],
        lambda z: mixture.class_log_prob(z, 0).exp(),
    ):

        def average(x, f=f):
            grid, cloud = grid_cloud(FOUR, x, alpha, sigma)
            return cloud @ f(grid)

        slopes = nudged(f, mixture, schedule, POINTS, t)
        assert float((slopes - differences(average, POINTS, 1e-4)).abs().max()) < 2e-3 * (1 + float(slopes.abs().max()))


def test_the_logarithm_of_the_cloud_s_density_has_the_gradient_that_the_proof_says():
    alpha, sigma = 0.7, 0.6
    grid, cloud = grid_cloud(FOUR, POINTS[:1], alpha, sigma)
    middle = (cloud @ grid)[0]
    seen = cloud[0] > 1e-12
    slopes = differences(lambda x: grid_cloud(FOUR, x, alpha, sigma)[1].log()[:, seen], POINTS[:1], 1e-5)[0]
    expected = alpha / sigma**2 * (grid[seen] - middle)
    assert float((slopes - expected).abs().max()) < 1e-4
    assert float((cloud[0, seen] @ expected).abs().max()) < 1e-8  # its average over the cloud is zero


@pytest.mark.equation("eq-clean-jacobian")
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_derivative_of_the_guess_is_the_covariance_of_the_cloud_times_alpha_over_sigma_squared(t):
    mixture = FOUR.mixture()
    denoiser = mixture.denoiser(SCHEDULE)
    slopes = differences(lambda x: denoiser(x, at(t)).x0, POINTS)
    exact = mixture.reverse(POINTS, SCHEDULE, t, 0.0).cov
    factor = float(SCHEDULE.alpha(t) / SCHEDULE.sigma(t) ** 2)
    assert float((slopes - factor * exact).abs().max()) < 1e-6
    assert float((clean_cov(denoiser, SCHEDULE, POINTS, t) - exact).abs().max()) < 1e-8


@pytest.mark.equation("eq-guess-gradient")
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_backpropagation_multiplies_the_gradient_at_the_guess_by_the_covariance(t):
    mixture = FOUR.mixture()
    guess = clean_guess(mixture.denoiser(SCHEDULE), classifier(mixture))
    gradient = guidance.gradient(guess)(POINTS, at(t))
    step = mixture.reverse(POINTS, SCHEDULE, t, 0.0)
    factor = float(SCHEDULE.alpha(t) / SCHEDULE.sigma(t) ** 2)
    by_hand = factor * torch.einsum("nde,ne->nd", step.cov, mixture.class_gradient(step.mean, LABEL))
    assert float((gradient - by_hand).abs().max()) < 1e-6 * (1 + float(by_hand.abs().max()))
    assert float((gradient - differences(lambda x: guess(x, at(t)), POINTS)).abs().max()) < 1e-4


def test_for_a_gaussian_cloud_the_covariance_of_position_and_verdict_is_the_covariance_times_the_average_slope():
    """Stein's lemma, by quadrature, for a classifier that is no Gaussian."""
    mixture, cov = FOUR.mixture(), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
    z, weights = hermite(60, 2)
    points = torch.tensor([0.5, 0.2], dtype=F64) + z @ torch.linalg.cholesky(cov).T
    p = classifier(mixture)(points).exp()
    together = (weights * (p - weights @ p)) @ points
    slope = weights @ (p[:, None] * mixture.class_gradient(points, LABEL))
    assert float((together - cov @ slope).abs().max()) < 1e-4


@pytest.mark.equation("eq-logistic-cloud")
def test_a_blurred_logistic_curve_is_nearly_a_flatter_one():
    """Within 0.02 of a fine sum; a wrong factor, or no root, is far outside."""
    x = torch.linspace(-14, 14, 20_001, dtype=F64)
    bell = torch.exp(-(x**2) / 2)
    bell = bell / bell.sum()
    for variance in (0.1, 1.0, 5.0, 20.0, 60.0):
        logit = torch.linspace(-9, 9, 13, dtype=F64)
        average = torch.sigmoid(logit[:, None] + math.sqrt(variance) * x) @ bell
        wide = torch.full_like(logit, variance)
        assert float((logistic_cloud(logit, wide).exp() - average).abs().max()) < 0.02
        slope = float((average[7] - average[5]) / (logit[7] - logit[5]))
        flat = logistic_cloud(torch.tensor([0.01, -0.01], dtype=F64), wide[:2]).exp()
        assert abs(float(flat[0] - flat[1]) / 0.02 / slope - 1) < 0.3


def test_a_logistic_curve_is_nearly_a_gaussian_distribution_function_of_variance_8_over_pi():
    x = torch.linspace(-8, 8, 161, dtype=F64)
    bell = 0.5 * (1 + torch.erf(x / math.sqrt(2 * 8 / math.pi)))
    assert float((bell - torch.sigmoid(x)).abs().max()) < 0.02
    assert abs(float(bell[81] - bell[79]) - float(torch.sigmoid(x)[81] - torch.sigmoid(x)[79])) < 1e-5


def lengths_where(mixture, t: float, low: float, high: float, seed: int = 3) -> tuple[float, float, float, float]:
    """Of noisy data where the guess lies between: the exact answer, both gradients' lengths, the predicted factor."""
    denoiser, guess = mixture.denoiser(SCHEDULE), clean_guess(mixture.denoiser(SCHEDULE), classifier(mixture))
    x = noised(mixture, t).sample(20_000, torch.Generator().manual_seed(seed))[0]
    p = guess(x, at(t)).exp()
    x, p = x[(p >= low) & (p <= high)], p[(p >= low) & (p <= high)]
    k = mixture.class_gradient(denoiser(x, at(t)).x0, LABEL) / (1 - p)[:, None]
    v = torch.einsum("ni,nij,nj->n", k, clean_cov(denoiser, SCHEDULE, x, t), k)
    exact, through = noised(mixture, t).class_gradient(x, LABEL), guidance.gradient(guess)(x, at(t))
    answer = noised(mixture, t).class_log_prob(x, LABEL).exp().mean()
    factor = (1 + math.pi * v / 8).sqrt().median()
    return float(answer), float(exact.norm(dim=1).mean()), float(through.norm(dim=1).mean()), float(factor)


def test_the_gradient_is_several_times_too_long_where_the_guess_is_undecided_and_silent_where_it_is_sure():
    mixture = plane.four_blobs()
    for low, high in ((0.0, 0.02), (0.02, 0.2), (0.2, 0.8)):
        _, exact, through, _ = lengths_where(mixture, 0.6, low, high)
        assert 2.5 < through / exact < 4.5
    answer, exact, through, _ = lengths_where(mixture, 0.6, 0.98, 1.0)
    assert 6 < exact / through < 9 and abs(answer - 6 / 7) < 0.02


@pytest.mark.parametrize("t", [0.3, 0.4, 0.5, 0.6])
def test_the_gradient_is_too_long_by_the_blur_of_the_border(t):
    _, exact, through, factor = lengths_where(plane.four_blobs(), t, 0.2, 0.8, seed=8)
    assert abs(factor / (through / exact) - 1) < 0.1


def slopes_along(x1: list[float]) -> Tensor:
    """On the page's line of noisy points, the first component of both gradients by differences: guess over exact."""
    mixture, t = plane.four_blobs(), 0.6
    line = torch.tensor([[value, -0.6] for value in x1], dtype=F64)
    guess = clean_guess(mixture.denoiser(SCHEDULE), classifier(mixture))
    exact = differences(lambda x: noised(mixture, t).class_log_prob(x, LABEL), line)[:, 0]
    return differences(lambda x: guess(x, at(t)), line)[:, 0] / exact


def test_just_left_of_the_border_the_slope_is_several_times_too_steep_and_far_from_it_no_longer():
    assert bool((slopes_along([-1.4, -1.0, -0.6]) > 3).all()) and bool((slopes_along([-3.2, -2.8]) < 1.6).all())


def test_a_step_to_the_right_of_the_border_the_guess_is_flat_or_falls_while_the_cloud_is_divided():
    flat, falling = slopes_along([0.2, 0.4]), slopes_along([0.8, 1.2, 1.6])
    assert float(flat.abs().max()) < 0.25 and bool((falling < -0.2).all())
    divided = noised(plane.four_blobs(), 0.6).class_log_prob(torch.tensor([[0.8, -0.6]], dtype=F64), LABEL).exp()
    assert 0.7 < float(divided) < 0.8


@pytest.mark.parametrize("t", [0.2, 0.4, 0.6])
def test_on_three_other_blobs_the_blur_foretells_the_factor_to_12_percent(t):
    mixture, denoiser = THREE.mixture(), THREE.mixture().denoiser(SCHEDULE)
    guess = clean_guess(denoiser, classifier(mixture))
    x = noised(mixture, t).sample(20_000, torch.Generator().manual_seed(2))[0]
    x = x[(guess(x, at(t)).exp() - 0.5).abs() < 0.3]
    p, right = guess(x, at(t)).exp(), noised(mixture, t).class_log_prob(x, LABEL).exp()
    k = mixture.class_gradient(denoiser(x, at(t)).x0, LABEL) / (1 - p)[:, None]
    v = torch.einsum("ni,nij,nj->n", k, mixture.reverse(x, SCHEDULE, t, 0.0).cov, k)
    lengths = [g.norm(dim=1) for g in (guidance.gradient(guess)(x, at(t)), noised(mixture, t).class_gradient(x, LABEL))]
    measured = lengths[0] / (1 - p) / (lengths[1] / (1 - right))
    assert abs(float((1 + math.pi * v / 8).sqrt().median() / measured.median()) - 1) < 0.125


# ---- the cloud


@pytest.mark.equation("eq-gaussian-cloud")
@pytest.mark.parametrize("order", [6, 9])
def test_the_averaged_classifier_is_the_clean_one_summed_over_a_gaussian_with_the_clouds_moments(order):
    mixture, t = FOUR.mixture(), 0.45
    step = mixture.reverse(POINTS, SCHEDULE, t, 0.0)
    nodes, weights = hermite(order, 2)
    compact = gaussian_cloud(mixture.denoiser(SCHEDULE), classifier(mixture), SCHEDULE, order)
    for n in range(len(POINTS)):
        points = step.mean[n] + nodes @ torch.linalg.cholesky(step.cov[n]).T
        expected = weights @ classifier(mixture)(points).exp()
        assert abs(float(compact(POINTS[n : n + 1], at(t)).exp()) - float(expected)) < 1e-7
    slopes = guidance.gradient(compact)(POINTS, at(t))
    assert float((slopes - differences(lambda x: compact(x, at(t)), POINTS)).abs().max()) < 1e-5


@pytest.mark.equation("eq-gaussian-cloud")
def test_where_the_cloud_is_gaussian_the_averaged_classifier_is_the_right_one():
    """Data of one Gaussian, and a classifier that has nothing to do with them: sums over a fine grid."""
    bell, mixture, t = single([0.3, -0.4], [[0.7, 0.3], [0.3, 0.5]]), FOUR.mixture(), 0.5
    alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
    axis = torch.linspace(-7, 7, 401, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    cloud = (bell.log_prob(grid) - torch.cdist(POINTS, alpha * grid).square() / (2 * sigma**2)).softmax(1)
    average = cloud @ classifier(mixture)(grid).exp()
    averaged = gaussian_cloud(bell.denoiser(SCHEDULE), classifier(mixture), SCHEDULE, order=40)(POINTS, at(t)).exp()
    assert float((averaged - average).abs().max()) < 1e-3


def relative_error(log_prob, mixture, t: float, order: int = 10) -> float:
    x, weights = mixture_nodes(noised(mixture, t), order)
    g = noised(mixture, t).class_gradient(x, LABEL)
    off = guidance.gradient(log_prob)(x, at(t)) - g
    return float(((weights @ off.square().sum(1)) / (weights @ g.square().sum(1))).sqrt())


@pytest.mark.parametrize("t", [0.15, 0.4, 0.6, 0.85])
def test_the_average_removes_four_fifths_of_the_error_of_the_gradient(t):
    mixture = plane.four_blobs()
    denoiser = mixture.denoiser(SCHEDULE)
    guess = relative_error(clean_guess(denoiser, classifier(mixture)), mixture, t)
    averaged = relative_error(gaussian_cloud(denoiser, classifier(mixture), SCHEDULE), mixture, t)
    assert averaged < guess / 4.5 and (t > 0.2 or averaged < guess / 10)


def strips() -> GaussianMixture:
    """The page's six thin strips, three classes, built from axes instead of angles."""
    shapes = [
        (1.2, 0.8, 0.15), (-0.5, 0.7, 0.15), (0.4, 0.9, 0.15), (-0.3, 0.5, 0.12), (1.0, 0.8, 0.15), (-0.8, 0.5, 0.12)
    ]  # fmt: skip
    along = [torch.tensor([math.cos(angle), math.sin(angle)], dtype=F64) for angle, _, _ in shapes]
    covs = [
        (long**2 - thin**2) * axis[:, None] * axis + thin**2 * torch.eye(2, dtype=F64)
        for axis, (_, long, thin) in zip(along, shapes, strict=True)
    ]
    means = torch.tensor([[-2.0, 0.3], [-0.9, -1.5], [0.1, 0.6], [1.2, 1.9], [1.6, -0.6], [2.6, 0.6]], dtype=F64)
    return GaussianMixture([0.18, 0.12, 0.25, 0.15, 0.2, 0.1], means, torch.stack(covs), labels=[0, 0, 1, 1, 2, 2])


def error_over(x: Tensor, log_prob, mixture, label: int, t: float) -> float:
    g = noised(mixture, t).class_gradient(x, label)
    return float((guidance.gradient(log_prob)(x, at(t)) - g).square().sum() ** 0.5 / g.square().sum() ** 0.5)


def test_near_the_data_the_guess_is_right_only_where_the_cloud_is_narrower_than_the_border():
    for mixture, label, low, high in (
        (plane.four_blobs(), 1, 0.05, 0.12), (FOUR.mixture(), 1, 0.3, 0.6), (strips(), 2, 0.85, 1.05)
    ):  # fmt: skip
        x = noised(mixture, 0.1).sample(5000, random(3))[0]
        guess = clean_guess(mixture.denoiser(SCHEDULE), classifier(mixture, label))
        assert low < error_over(x, guess, mixture, label, 0.1) < high


def test_near_the_data_averaging_over_strips_is_worse_over_all_points_and_better_over_the_class_s_own():
    mixture, t = strips(), 0.1
    denoiser, verdict = mixture.denoiser(SCHEDULE), classifier(mixture, 2)
    off = {}
    for whose, law in (("all", noised(mixture, t)), ("own", noised(mixture.given(2), t))):
        x = law.sample(3000, random(13))[0]
        for name, log_prob in (
            ("guess", clean_guess(denoiser, verdict)), ("averaged", gaussian_cloud(denoiser, verdict, SCHEDULE))
        ):  # fmt: skip
            off[whose, name] = error_over(x, log_prob, mixture, 2, t)
    assert off["all", "averaged"] > 1.2 * off["all", "guess"] and off["own", "averaged"] < off["own", "guess"] / 10


def test_averaging_logarithms_is_another_number():
    mixture, t = FOUR.mixture(), 0.5
    step = mixture.reverse(POINTS, SCHEDULE, t, 0.0)
    z, weights = hermite(6, 2)
    points = step.mean[:, None] + torch.einsum("nij,mj->nmi", torch.linalg.cholesky(step.cov), z)
    logs = (classifier(mixture)(points.flatten(0, 1)).view(len(POINTS), -1) @ weights).exp()
    right = gaussian_cloud(mixture.denoiser(SCHEDULE), classifier(mixture), SCHEDULE)(POINTS, at(t)).exp()
    assert bool((logs < right - 0.05).any()) and bool((logs <= right + 1e-12).all())  # Jensen, of a concave logarithm


def test_a_cloud_near_noise_is_several_blobs_and_near_the_data_one():
    mixture = plane.four_blobs()
    for t, low, high in ((0.1, 0.9, 0.97), (0.9, 0.33, 0.4)):
        x, weights = mixture_nodes(noised(mixture, t), 12)
        largest = mixture.reverse(x, SCHEDULE, t, 0.0).log_weights.exp().amax(0)
        assert low < float(weights @ largest) < high


# ---- one step


@pytest.mark.equation("eq-step-guess")
@pytest.mark.parametrize("schedule", [cosine(), vp_linear()], ids=["cosine", "vp_linear"])
@pytest.mark.parametrize("length", [0.01, 0.2, 0.5])
def test_the_mean_of_a_step_weighs_the_point_and_the_guess_as_ddpm_does(schedule, length):
    mixture, t = FOUR.mixture(), at(0.5)
    denoiser, s = mixture.denoiser(schedule), t - length
    mean = mixture.reverse(POINTS, schedule, t, s).mean
    asked_there = step_guess(denoiser, classifier(mixture), schedule, length)(POINTS, t)
    assert float((asked_there - classifier(mixture)(mean)).abs().max()) < 1e-8
    assert float((kernels.ddpm(denoiser, schedule)(POINTS, t, s).mean - mean).abs().max()) < 1e-9


def test_a_short_step_is_worse_than_the_guess_with_much_noise_and_better_with_little():
    mixture = plane.four_blobs()
    denoiser = mixture.denoiser(SCHEDULE)
    guess, short = clean_guess(denoiser, classifier(mixture)), step_guess(denoiser, classifier(mixture), SCHEDULE, 0.01)
    assert relative_error(short, mixture, 0.9) > 4 * relative_error(guess, mixture, 0.9)
    for t in (0.1, 0.2, 0.3):
        assert 0.5 < relative_error(short, mixture, t) / relative_error(guess, mixture, t) < 1


@pytest.mark.parametrize("parts", [FOUR, THREE], ids=["four", "three"])
def test_on_other_blobs_a_short_step_is_about_as_good_with_little_noise_and_worse_with_much(parts):
    mixture = parts.mixture()
    denoiser = mixture.denoiser(SCHEDULE)
    guess, short = clean_guess(denoiser, classifier(mixture)), step_guess(denoiser, classifier(mixture), SCHEDULE, 0.01)
    for t, low, high in ((0.1, 0.8, 1.2), (0.3, 0.8, 1.2), (0.9, 4, 12)):
        x = noised(mixture, t).sample(10_000, random(4))[0]
        off = [error_over(x, log_prob, mixture, LABEL, t) for log_prob in (short, guess)]
        assert low < off[0] / off[1] < high


# ---- without the Jacobian


def test_a_detached_noise_makes_the_derivative_of_the_guess_the_identity_over_alpha():
    """By autograd through x0 = (x - sigma eps) / alpha; that would be the covariance sigma^2 / alpha^2."""
    mixture, t = FOUR.mixture(), at(0.7)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    rows = plane.jacobian(lambda x: (x - sigma * mixture.denoiser(SCHEDULE)(x, t).eps.detach()) / alpha, POINTS)
    identity = torch.eye(2, dtype=F64)
    assert float((rows - identity / alpha).abs().max()) < 1e-12
    assert float((sigma**2 / alpha * rows - sigma**2 / alpha**2 * identity).abs().max()) < 1e-12
    flat = single([0.0, 0.0], [[1e9, 0.0], [0.0, 1e9]])  # as if there were no data
    assert (
        float((clean_cov(flat.denoiser(SCHEDULE), SCHEDULE, POINTS, t) / (sigma / alpha) ** 2 - identity).abs().max())
        < 1e-6
    )


# ---- a test that needs no truth


@pytest.mark.equation("eq-answer-martingale")
def test_on_average_the_right_verdict_does_not_change_and_the_guess_drifts():
    """The page's function, and draws of the exact step: 40,000 of them know a mean to 0.0025."""
    later, mixture, t = names_of("12", "eq-answer-martingale")["later_verdict"], FOUR.mixture(), 0.6
    exact = lambda x, s: noised(mixture, s).class_log_prob(x, LABEL)  # noqa: E731
    guess = clean_guess(mixture.denoiser(SCHEDULE), classifier(mixture))
    known, drifts = exact(POINTS, t).exp(), []
    for s in (0.45, 0.2):
        found = later(exact, mixture, SCHEDULE, POINTS, at(t), at(s), 24)
        assert float((found - known).abs().max()) < 2e-3
        many = POINTS[:1].expand(40_000, 2)
        drawn = mixture.reverse(many, SCHEDULE, t, s).sample(torch.Generator().manual_seed(4))
        assert abs(float(exact(drawn, s).exp().mean() - known[0])) < 0.01
        assert (
            abs(float(guess(drawn, at(s)).exp().mean() - later(guess, mixture, SCHEDULE, POINTS, at(t), at(s))[0]))
            < 0.01
        )
        drifts.append(
            float((later(guess, mixture, SCHEDULE, POINTS, at(t), at(s)) - guess(POINTS, at(t)).exp()).abs().max())
        )
    assert drifts[1] > 0.05


def test_the_guess_is_over_sure_of_labelled_noisy_data_and_the_average_is_calibrated():
    mixture, t = plane.four_blobs(), 0.6
    denoiser = mixture.denoiser(SCHEDULE)
    x, labels = noised(mixture, t).sample(20_000, torch.Generator().manual_seed(11))
    for log_prob, most, least in ((clean_guess(denoiser, classifier(mixture)), 1.0, 0.12),
                                  (gaussian_cloud(denoiser, classifier(mixture), SCHEDULE), 0.06, 0.0)):  # fmt: skip
        p = log_prob(x, at(t)).exp()
        owner = torch.bucketize(p, torch.linspace(0, 1, 11, dtype=F64)[1:-1])
        gaps = [float((labels[owner == k] == 1).double().mean() - p[owner == k].mean()) for k in range(10)]
        assert max(map(abs, gaps)) < most and gaps[0] >= least - 0.02 and -gaps[9] >= least - 0.02


# ---- Deeper


@pytest.mark.equation("eq-measured-guess", "eq-measured-cloud")
def test_both_gradients_of_a_measurement_by_autograd_on_gaussian_data_in_three_dimensions():
    gradients = names_of("12", "eq-measured-guess")["measured_gradients"]
    root = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    prior, mean = root @ root.T + 0.3 * torch.eye(3, dtype=F64), torch.tensor([0.2, -0.5, 1.0], dtype=F64)
    A, y, s2 = (
        torch.randn(2, 3, generator=torch.Generator().manual_seed(2), dtype=F64),
        torch.tensor([0.4, -1.3], dtype=F64),
        0.6,
    )
    alpha, sigma = 0.8, 0.6
    joint = alpha**2 * prior + sigma**2 * torch.eye(3, dtype=F64)
    gain = alpha * prior @ joint.inverse()
    cov = prior - gain @ (alpha * prior)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=F64).requires_grad_()
    x0 = mean + (x - alpha * mean) @ gain.T
    expected = []
    for spread in (s2 * torch.eye(2, dtype=F64), s2 * torch.eye(2, dtype=F64) + A @ cov @ A.T):
        law = torch.distributions.MultivariateNormal(x0 @ A.T, spread)
        expected.append(torch.autograd.grad(law.log_prob(y).sum(), x, retain_graph=True)[0])
    found = gradients(A, y, s2, x0.detach(), cov.expand(5, 3, 3), alpha, sigma)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) < 1e-9 * (1 + float(other.abs().max()))


def test_one_measured_direction_is_pushed_one_plus_c_over_s_squared_times_too_hard_however_far_it_is():
    gradients = names_of("12", "eq-measured-guess")["measured_gradients"]
    A, cov = torch.tensor([[0.6, 0.8]], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.9]], dtype=F64)
    along = float(A[0] @ cov @ A[0])
    for y in (-3.0, 0.2, 7.0):
        for s2 in (1.0, 0.01):
            guess, cloud = gradients(A, torch.tensor([y], dtype=F64), s2, POINTS, cov.expand(4, 2, 2), 0.7, 0.7)
            assert float((guess / cloud - (1 + along / s2)).abs().max()) < 1e-9 * (1 + along / s2)


def test_what_the_cloud_s_gradient_does_to_the_blobs_depends_on_what_is_measured():
    gradients = names_of("12", "eq-measured-guess")["measured_gradients"]
    mixture, blobs, off, apart = plane.four_blobs(), plane.four_blobs(), {}, {}
    denoiser = mixture.denoiser(SCHEDULE)
    for A, y, s2 in (((0.8, -0.6), 1.0, 0.25), ((1.0, 0.0), -1.0, 0.04)):
        A, y = torch.tensor([A], dtype=F64), torch.tensor([y], dtype=F64)
        law = GridDensity(lambda x, A=A, y=y, s2=s2: mixture.log_prob(x) - (y - x @ A.T)[:, 0] ** 2 / (2 * s2), -6, 6)
        goal, start = law.sample(400, random(41)), torch.randn(400, 2, generator=random(42), dtype=F64)
        for kind in (0, 1):

            def push(x, t, A=A, y=y, s2=s2, kind=kind):
                cov, levels = clean_cov(denoiser, SCHEDULE, x, t), (SCHEDULE.alpha(t), SCHEDULE.sigma(t))
                return gradients(A, y, s2, denoiser(x, t).x0, cov, *levels)[kind]

            x = draw(kernels.ddim(guidance.tilt(denoiser, push, 1.0, SCHEDULE), SCHEDULE), start, time_grid(50))
            away = metrics.mode_weights(blobs, x) - metrics.mode_weights(blobs, law.sample(4000, random(43)))
            off[s2, kind], apart[s2, kind] = float(away.abs().max()), metrics.wasserstein(x, goal)
    assert off[0.25, 0] > 0.3 and off[0.25, 1] < 0.06
    assert apart[0.04, 1] > 1.05 * apart[0.04, 0]


@pytest.mark.equation("eq-normalised-step")
def test_a_normalised_push_has_one_length_whatever_the_gradient_and_the_step():
    pushed, mixture = names_of("12", "eq-normalised-step")["pushed"], FOUR.mixture()
    kernel = kernels.ddpm(mixture.denoiser(SCHEDULE), SCHEDULE)
    grad = guidance.gradient(clean_guess(mixture.denoiser(SCHEDULE), classifier(mixture)))
    for t, s in ((0.9, 0.88), (0.5, 0.1)):
        base, step = kernel(POINTS, at(t), at(s)), pushed(kernel, grad, 0.3)(POINTS, at(t), at(s))
        g = grad(POINTS, at(t))
        assert float((step.mean - base.mean - 0.3 * torch.nn.functional.normalize(g)).abs().max()) < 1e-9
        assert torch.equal(step.var, base.var)


@pytest.mark.equation("eq-jensen-gap")
def test_half_the_trace_is_the_second_term_and_helps_only_while_the_cloud_is_narrow():
    second, mixture = names_of("12", "eq-jensen-gap")["to_second_order"], FOUR.mixture()
    p = lambda x0: mixture.class_log_prob(x0[None], LABEL).exp()[0]  # noqa: E731
    for t in (0.05, 0.3):
        step = mixture.reverse(POINTS, SCHEDULE, t, 0.0)
        curved = torch.stack([torch.autograd.functional.hessian(p, x0) for x0 in step.mean])
        expected = torch.stack([p(x0) for x0 in step.mean]) + (step.cov * curved).sum((1, 2)) / 2
        assert float((second(mixture, LABEL, SCHEDULE, POINTS, at(t)) - expected).abs().max()) < 1e-7
    gaps = {}
    for t in (0.05, 0.5):
        x, weights = mixture_nodes(noised(mixture, t), 8)
        right = noised(mixture, t).class_log_prob(x, LABEL).exp()
        plain = clean_guess(mixture.denoiser(SCHEDULE), classifier(mixture))(x, at(t)).exp()
        gaps[t] = [float(weights @ (v - right).abs()) for v in (plain, second(mixture, LABEL, SCHEDULE, x, at(t)))]
    assert gaps[0.05][1] < 0.3 * gaps[0.05][0] and gaps[0.5][1] > gaps[0.5][0]


# ---- samples, from another start than the page's: 500 points, so shares are known to 0.02


def sampled(log_prob, gamma, kernel, count: int = 500, steps: int = 50) -> Tensor:
    mixture = plane.four_blobs()
    guided = guidance.tilt(mixture.denoiser(SCHEDULE), guidance.gradient(log_prob), gamma, SCHEDULE)
    start = torch.randn(count, 2, generator=random(31), dtype=F64)
    return draw(kernel(guided, SCHEDULE), start, time_grid(steps), random(32))


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares_and_spread(x: Tensor) -> tuple[float, float, float]:
    """Mass of the far blob, of class 1; mean square distance from the mean."""
    mass = metrics.mode_weights(plane.four_blobs(), x)
    return float(mass[3]), float(mass[2:].sum()), float((x - x.mean(0)).square().sum(1).mean())


def exact_answer(x: Tensor, t: Tensor) -> Tensor:
    return noised(plane.four_blobs(), t).class_log_prob(x, LABEL)


def page_s_guess():
    mixture = plane.four_blobs()
    return clean_guess(mixture.denoiser(SCHEDULE), classifier(mixture))


@pytest.mark.parametrize("kernel", [kernels.ddim, kernels.ddpm])
def test_the_exact_noisy_answer_samples_the_class(kernel):
    far, sure, spread = shares_and_spread(sampled(exact_answer, 1.0, kernel))
    assert abs(far - 0.37) < 0.07 and abs(sure - 0.922) < 0.03 and 1.9 < spread < 2.6


def test_through_the_guess_gamma_1_over_guides_and_neither_smaller_factors_nor_a_late_start_mend_it():
    guess, classes = page_s_guess(), plane.four_blobs().given(LABEL)
    target = classes.sample(500, random(33))[0]
    far, sure, spread = shares_and_spread(sampled(guess, 1.0, kernels.ddim))
    assert far < 0.09 and sure > 0.985 and spread < 2.32 / 2.5
    floor = metrics.wasserstein(classes.sample(500, random(34))[0], target)
    for kernel in (kernels.ddim, kernels.ddpm):
        for gamma in (1.0, 1 / 2, 1 / 3, 0.2, 0.1, lambda t: float(t < 0.5)):
            x = sampled(guess, gamma, kernel)
            assert shares_and_spread(x)[0] < 0.28 and metrics.wasserstein(x, target) > 2 * floor
    assert shares_and_spread(sampled(guess, 1 / 3, kernels.ddim))[1] < 0.922


def test_on_other_blobs_half_the_scale_brings_ddpm_as_near_as_the_exact_classifier():
    """So "no smaller scale mends it" is a sentence about the page's blobs: here 1 is too much and 1/2 is not."""
    bends = torch.tensor([[0.3, 0.3, 0.1], [0.4, 0.3, 0.1], [0.4, 0.3, -0.1], [0.3, 0.3, 0.0]], dtype=F64)
    covs = bends[:, [0, 2, 2, 1]].view(4, 2, 2)
    means = torch.tensor([[1.1, 0.4], [0.1, 1.0], [-0.7, -0.3], [-2.4, 0.6]], dtype=F64)
    mixture = GaussianMixture([0.33, 0.15, 0.15, 0.37], means, covs, labels=[0, 0, 1, 1])
    denoiser, target = mixture.denoiser(SCHEDULE), mixture.given(LABEL).sample(500, random(60))[0]
    guess, start = clean_guess(denoiser, classifier(mixture)), torch.randn(500, 2, generator=random(31), dtype=F64)
    exact = lambda x, t: noised(mixture, t).class_log_prob(x, LABEL)  # noqa: E731

    def apart(log_prob, gamma: float) -> float:
        guided = guidance.tilt(denoiser, guidance.gradient(log_prob), gamma, SCHEDULE)
        return metrics.wasserstein(draw(kernels.ddpm(guided, SCHEDULE), start, time_grid(50), random(91)), target)

    right, whole, half = apart(exact, 1.0), apart(guess, 1.0), apart(guess, 0.5)
    assert whole > 1.3 * right and half < 1.2 * right


def test_on_strips_ddim_s_samples_are_nearer_with_the_averaged_classifier_for_both_classes():
    mixture = strips()
    denoiser, start = mixture.denoiser(SCHEDULE), torch.randn(150, 2, generator=random(51), dtype=F64)
    for label in (1, 2):
        target, apart = mixture.given(label).sample(150, random(52))[0], []
        for log_prob in (
            gaussian_cloud(denoiser, classifier(mixture, label), SCHEDULE),
            clean_guess(denoiser, classifier(mixture, label)),
        ):
            model = guidance.tilt(denoiser, guidance.gradient(log_prob), 1.0, SCHEDULE)
            x = draw(kernels.ddim(model, SCHEDULE), start, time_grid(50, start=0.99))
            apart.append(metrics.wasserstein(x, target))
        assert apart[0] < 0.85 * apart[1]


def class_0_runs() -> dict[str, float]:
    """W2 of DDPM's samples for the page's class 0, each way of asking."""
    mixture = plane.four_blobs()
    denoiser, target = mixture.denoiser(SCHEDULE), mixture.given(0).sample(500, random(33))[0]
    start = torch.randn(500, 2, generator=random(31), dtype=F64)
    through = guidance.gradient(clean_guess(denoiser, classifier(mixture, 0)))

    def number(x, t):
        points, weights = mixture_nodes(noised(mixture, t), 6)
        variance = weights @ mixture.reverse(points, SCHEDULE, t, 0.0).cov.diagonal(dim1=1, dim2=2).mean(1)
        return SCHEDULE.alpha(t) / SCHEDULE.sigma(t) ** 2 * variance * mixture.class_gradient(denoiser(x, t).x0, 0)

    ways = {
        "exact": (lambda x, t: noised(mixture, t).class_gradient(x, 0), 1.0), "guess": (through, 1.0),
        "half": (through, 0.5), "third": (through, 1 / 3), "late": (through, lambda t: float(t < 0.5)),
        "number": (number, 1.0),
    }  # fmt: skip
    apart = {}
    for name, (field, gamma) in ways.items():
        kernel = kernels.ddpm(guidance.tilt(denoiser, field, gamma, SCHEDULE), SCHEDULE)
        apart[name] = metrics.wasserstein(draw(kernel, start, time_grid(50), random(32)), target)
    return apart


def test_for_class_0_ddpm_comes_within_twice_the_exact_distance_and_other_ways_of_asking_are_no_nearer():
    apart = class_0_runs()
    assert apart["guess"] < 2 * apart["exact"]
    assert all(apart[name] > apart["guess"] for name in ("half", "third", "late"))
    assert apart["number"] > 1.3 * apart["guess"]


@pytest.mark.parametrize("t", [0.3, 0.7])
def test_the_mean_trace_of_the_covariance_is_the_denoisers_mean_square_error(t):
    """So one number a level needs no Jacobian: 40,000 errors against the sum over nodes."""
    mixture = plane.four_blobs()
    x0 = mixture.sample(40_000, random(3))[0]
    eps = torch.randn(x0.shape, generator=random(4), dtype=F64)
    error = (x0 - mixture.denoiser(SCHEDULE)(SCHEDULE.add_noise(x0, eps, at(t)), at(t)).x0).square().sum(1).mean()
    x, weights = mixture_nodes(noised(mixture, t), 16)
    traces = clean_cov(mixture.denoiser(SCHEDULE), SCHEDULE, x, t).diagonal(dim1=1, dim2=2).sum(1)
    assert abs(float(error / (weights @ traces)) - 1) < 0.03


def test_the_points_stop_behind_the_border_where_exact_guidance_at_a_large_scale_goes_to_the_far_side():
    """The mean of x_1: of class 1 it is 1.15."""
    through = sampled(page_s_guess(), 1.0, kernels.ddim)
    away = sampled(exact_answer, 3.0, kernels.ddim)
    assert float(through[:, 0].mean()) < 0.7 and float(away[:, 0].mean()) > 1.8
    shares = torch.stack([metrics.mode_weights(plane.four_blobs(), x[None]) for x in through])
    inside = through[shares.argmax(1) == 2]  # the near blob, whose middle is (0.4, -0.6)
    assert len(inside) > 0.85 * len(through)
    assert float((inside.median(0).values - torch.tensor([0.4, -0.6])).norm()) < 0.25


@pytest.mark.parametrize("kernel", [kernels.ddim, kernels.ddpm])
def test_with_the_averaged_classifier_the_far_blob_gets_its_share(kernel):
    mixture = plane.four_blobs()
    averaged = gaussian_cloud(mixture.denoiser(SCHEDULE), classifier(mixture), SCHEDULE)
    far, sure, spread = shares_and_spread(sampled(averaged, 1.0, kernel, count=300))
    assert abs(far - 0.37) < 0.1 and abs(sure - 0.922) < 0.04 and 1.8 < spread < 2.7


def test_with_few_points_the_average_is_several_times_farther_off_near_noise_than_with_many():
    mixture = plane.four_blobs()
    denoiser = mixture.denoiser(SCHEDULE)
    off = {}
    for order in (6, 30):
        averaged = gaussian_cloud(denoiser, classifier(mixture), SCHEDULE, order)
        off[order] = {t: relative_error(averaged, mixture, t, order=6) for t in (0.2, 0.5, 0.9)}
    assert off[6][0.9] > 2.5 * off[30][0.9] and max(off[30].values()) == off[30][0.5]


def test_far_on_the_wrong_side_the_guess_of_a_logistic_classifier_has_the_right_gradient():
    """By a fine sum: logit -20, variance 8. Both slopes of the logarithm are 1, the formula's is not."""
    x = torch.linspace(-14, 14, 20_001, dtype=F64)
    bell = torch.exp(-(x**2) / 2) / torch.exp(-(x**2) / 2).sum()
    logit = torch.tensor(-20.0, dtype=F64, requires_grad=True)
    average = (torch.sigmoid(logit + math.sqrt(8) * x) @ bell).log()
    formula = logistic_cloud(logit, torch.tensor(8.0, dtype=F64))
    values = (average, torch.nn.functional.logsigmoid(logit), formula)
    slopes = [float(torch.autograd.grad(value, logit)[0]) for value in values]
    assert abs(slopes[0] - 1) < 0.01 and abs(slopes[1] - 1) < 0.01 and slopes[2] < 0.6


def test_at_a_logit_of_minus_12_the_guess_is_the_nearer_one_as_the_last_exercise_s_solution_says():
    x = torch.linspace(-14, 14, 20_001, dtype=F64)
    bell = torch.exp(-(x**2) / 2)
    lower, upper = (float((torch.sigmoid(logit + math.sqrt(8) * x) @ bell).log()) for logit in (-12 - 1e-4, -12 + 1e-4))
    assert round((upper - lower) / 2e-4, 2) == 0.93 and round(1 / (1 + math.exp(-12)), 2) == 1.0
    blur = math.sqrt(1 + math.pi)
    assert round(1 / (1 + math.exp(-12 / blur)) / blur, 2) == 0.49


def test_the_residual_s_norm_has_a_gradient_without_curl_that_does_not_shrink_with_the_residual():
    """DPS's: the squared residual's gradient over the norm is twice the norm's gradient."""
    mixture, A, y = FOUR.mixture(), torch.tensor([[0.6, 0.8]], dtype=F64), 0.3
    denoiser = mixture.denoiser(SCHEDULE)
    norm = lambda x: (y - denoiser(x, at(0.5)).x0 @ A.T)[:, 0].abs()  # noqa: E731
    field = guidance.gradient(lambda x, t: norm(x))
    squared = guidance.gradient(lambda x, t: norm(x) ** 2)
    assert float((squared(POINTS, None) / norm(POINTS)[:, None] - 2 * field(POINTS, None)).abs().max()) < 1e-9
    assert float(plane.curl(lambda x: field(x, None), POINTS).abs().max()) < 1e-9
    lengths, residuals = field(POINTS, None).norm(dim=1), norm(POINTS)
    assert float(residuals.max() / residuals.min()) > 3 > float(lengths.max() / lengths.min())
