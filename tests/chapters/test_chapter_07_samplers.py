"""What chapter 07 says about samplers: the verdict, its captions, In practice, Remember.

On the chapter's own mixture and noise, with other random numbers, or on its schedule alone.
"""

import importlib.util
import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from difflesson import divergence, guidance, kernels, plane
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, from_betas
from difflesson.steps import Gaussian

TABLE = from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
BLOBS = plane.four_blobs()
COUNT = 6000


def blob_grad(x, t):
    return BLOBS.noised(TABLE.alpha(t), TABLE.sigma(t)).class_gradient(x, 1)


def blob_kernel(name: str, variance: str, factor: float = 1.0, degrees: float = 0.0):
    """A guided kernel of the chapter, with a classifier whose gradient is multiplied and turned."""
    free, a = BLOBS.denoiser(TABLE), math.radians(degrees)
    turn = factor * torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]], dtype=torch.float64)
    places = {"x_t, t": ("x", "t"), "mu, s": ("mu", "s"), "mu, t": ("mu", "t")}

    def grad(x, t):
        return blob_grad(x, t) @ turn

    if name == "exact":
        return kernels.ddpm(guidance.tilt(free, grad, 1.0, TABLE), TABLE, variance)
    plain = kernels.ddpm(free, TABLE, variance)
    return kernels.shift(plain, grad, 1.0, *places[name]) if name in places else plain


@cache
def samples(name: str, variance: str, steps: int, factor: float = 1.0, degrees: float = 0.0):
    generator = torch.Generator().manual_seed(11)
    start = torch.randn(COUNT, 2, generator=generator, dtype=torch.float64)
    return draw(blob_kernel(name, variance, factor, degrees), start, time_grid(steps), generator)


def off(*run) -> float:
    """Error of the mean of `samples(*run)`; chance alone gives 0.02."""
    alone = BLOBS.given(1)
    return float((samples(*run).mean(0) - alone.weights @ alone.means).norm())


CHANCE = math.sqrt(2.325 / COUNT)  # the trace of the covariance of class 1 is 2.325


def test_verdict_at_25_steps_the_derivation_removes_over_a_third_the_repair_under_a_tenth_the_coefficient_all():
    code = off("x_t, t", "small", 25)
    assert code > 10 * CHANCE
    assert 0.33 < 1 - off("mu, s", "small", 25) / code < 0.45
    assert abs(1 - off("mu, t", "small", 25) / code) < 0.1
    assert all(off("exact", variance, 25) < 2.5 * CHANCE for variance in ("small", "large"))
    assert off("x_t, t", "large", 25) < code / 2


def test_verdict_at_250_steps_the_places_differ_by_less_than_chance():
    code, derivation = samples("x_t, t", "small", 250), samples("mu, s", "small", 250)
    assert float((code.mean(0) - derivation.mean(0)).norm()) < CHANCE
    assert off("x_t, t", "small", 250) < 3 * CHANCE


def test_at_250_steps_the_error_is_no_larger_than_the_chance_of_4000_points_but_the_same_random_numbers_show_it():
    left = samples("x_t, t", "small", 250) - samples("exact", "small", 250)  # both walk with the same random numbers
    bias, scatter = float(left.mean(0).norm()), float((left.std(0) / math.sqrt(COUNT)).norm())
    assert 20 * scatter < bias < 1.2 * math.sqrt(2.325 / 4000)
    places = (samples("x_t, t", "small", 250) - samples("mu, s", "small", 250)).mean(0)
    assert float(places.norm()) < bias / 2


# --- other classes, mixtures and schedules ----------------------------------------------------------------------

RARE = GaussianMixture(
    [0.9, 0.1], torch.tensor([[-0.3, 0.0], [1.5, 0.5]]).double(), 0.2 * torch.eye(2).expand(2, 2, 2), labels=[0, 1]
)
SURE = GaussianMixture(
    [0.5, 0.5], torch.tensor([[-1.5, 0.0], [1.5, 0.0]]).double(), 0.05 * torch.eye(2).expand(2, 2, 2), labels=[0, 1]
)


def slope_of(mixture, label, schedule=TABLE):
    return lambda x, t: mixture.noised(schedule.alpha(t), schedule.sigma(t)).class_gradient(x, label)


@cache
def missed(mixture, label, schedule=TABLE):
    """Error of the mean of 4,000 points, 25 steps, small variance, for each kernel; and what chance gives."""
    free, grad, alone = mixture.denoiser(schedule), slope_of(mixture, label, schedule), mixture.given(label)
    plain, found = kernels.ddpm(free, schedule), {}
    walkers = {p: kernels.shift(plain, grad, 1.0, *p.split(", ")) for p in ("x, t", "mu, s", "mu, t")}
    for share in (0.7, 1.0):
        walkers[share] = kernels.ddpm(guidance.tilt(free, grad, share, schedule), schedule)
    true = alone.weights @ alone.means
    for name, kernel in walkers.items():
        generator = torch.Generator().manual_seed(21)
        start = torch.randn(4000, mixture.dim, generator=generator, dtype=torch.float64)
        points = draw(kernel, start, time_grid(25), generator)
        found[name] = float((points.mean(0) - true).norm())
    found["chance"] = float((points.var(0).sum() / 4000).sqrt())
    return found


def test_for_class_0_the_derivation_removes_a_quarter_and_the_repair_makes_it_worse():
    off_by = missed(BLOBS, 0)
    assert 0.15 < 1 - off_by["mu, s"] / off_by["x, t"] < 0.32
    assert off_by["mu, t"] > 1.03 * off_by["x, t"]
    assert off_by[1.0] < 2.5 * off_by["chance"] < off_by["x, t"] / 2


@pytest.mark.parametrize(
    ("mixture", "label", "schedule"), [(BLOBS, 0, TABLE), (RARE, 1, TABLE), (BLOBS, 1, cosine(12.0, -12.0))]
)
def test_elsewhere_too_the_exact_coefficient_removes_nearly_all_and_the_derivation_a_part(mixture, label, schedule):
    off_by = missed(mixture, label, schedule)
    assert off_by[1.0] < 0.3 * off_by["x, t"] and off_by[1.0] < off_by["mu, s"] < 0.9 * off_by["x, t"]


def test_the_seven_tenths_are_of_this_mixture_and_schedule():
    less, more = missed(RARE, 1), missed(BLOBS, 1, cosine(12.0, -12.0))
    assert less["x, t"] > 1.2 * less[0.7] and more["x, t"] < 0.85 * more[0.7]


def test_only_a_very_short_step_halves_its_shift_a_long_one_with_the_small_variance_does_not():
    free, grad, x = BLOBS.denoiser(TABLE), slope_of(BLOBS, 1), BLOBS.means * 0.7
    plain, ratios = kernels.ddpm(free, TABLE), {}
    for t, h in ((0.3, 1e-3), (0.3, 0.1), (0.02, 0.01), (0.04, 0.04)):
        whole, half = (
            float((kernels.shift(plain, grad, 1.0)(x, t, t - u).mean - plain(x, t, t - u).mean).norm())
            for u in (h, h / 2)
        )
        ratios[t, h] = whole / half
    assert abs(ratios[0.3, 1e-3] - 2) < 0.02
    assert ratios[0.3, 0.1] < math.sqrt(2)  # as if it were the standard deviation
    assert ratios[0.02, 0.01] < 1 and ratios[0.04, 0.04] == 0  # the last step has none


def test_at_0_4_the_full_covariance_is_no_better_than_the_large_variance_for_class_1_but_for_class_0_it_is():
    t, s, ratio = 0.4, 0.399, []
    for label in (1, 0):
        x, weights = divergence.mixture_nodes(BLOBS.given(label).noised(TABLE.alpha(t), TABLE.sigma(t)), order=6)
        exact, grad = kernels.exact(BLOBS, TABLE, label)(x, t, s), slope_of(BLOBS, label)
        bases = kernels.moment_matched(BLOBS, TABLE), kernels.ddpm(BLOBS.denoiser(TABLE), TABLE, "large")
        full, large = (float(weights @ divergence.kl(exact, kernels.shift(b, grad, 1.0)(x, t, s))) for b in bases)
        ratio.append(full / large)
    assert ratio[0] > 1.1 and ratio[1] < 0.9


def test_the_gradient_of_the_derivation_is_longer_at_0_4_but_shorter_where_the_class_is_nearly_sure():
    lengths = {}
    for name, mixture, t in (("class 1", BLOBS, 0.4), ("sure, 0.4", SURE, 0.4), ("sure, near the data", SURE, 0.08)):
        x, weights = divergence.mixture_nodes(mixture.given(1).noised(TABLE.alpha(t), TABLE.sigma(t)), order=6)
        grad, s = slope_of(mixture, 1), t - 1e-3
        at_x, at_mu = grad(x, t), grad(kernels.ddpm(mixture.denoiser(TABLE), TABLE)(x, t, s).mean, s)
        lengths[name] = float(weights @ (at_mu * at_x).sum(1) / (weights @ at_x.square().sum(1)))
    assert 1 < lengths["class 1"] < 1.01 and 1 < lengths["sure, 0.4"] < 1.01
    assert lengths["sure, near the data"] < 0.8


def test_verdict_the_patch_does_not_mend_the_shape():
    mass = [float(BLOBS.class_log_prob(samples(name, "small", 25), 1).exp().mean()) for name in ("x_t, t", "exact")]
    points, weights = divergence.mixture_nodes(BLOBS.given(1), order=40)
    true = float(weights @ BLOBS.class_log_prob(points, 1).exp())
    assert mass[0] < true - 0.05 and true + 0.01 < mass[1]


@pytest.mark.equation("eq-path-kl")
def test_by_divergence_the_small_variance_is_worse_than_no_guidance_with_the_large_one_by_samples_far_better():
    times = time_grid(25, end=0.01)

    def nats(name, variance, times):
        return float(divergence.path_kl(BLOBS, TABLE, 1, blob_kernel(name, variance), times, order=6))

    guided, unguided, wide = (
        nats(*name, times) for name in (("x_t, t", "small"), ("none", "small"), ("none", "large"))
    )
    assert guided > 10 * wide  # yet, with the same variance:
    assert guided < unguided - 0.5
    assert all(off("x_t, t", "small", 25) < off("none", variance, 25) / 4 for variance in ("small", "large"))
    assert nats("x_t, t", "small", times[-3:]) > 0.9 * guided  # the last two steps
    assert nats("x_t, t", "small", times[:-2]) < 0.8 * nats("none", "large", times[:-2])  # the others
    assert nats("exact", "small", times) > 0.9 * guided


def test_remember_a_classifier_off_by_30_percent_or_20_degrees_costs_as_much_as_the_coefficient_at_25_steps():
    coefficient = off("x_t, t", "small", 25)
    assert abs(off("exact", "small", 25, 0.7) / coefficient - 1) < 0.2
    assert off("exact", "small", 25, 1.0, 20.0) > coefficient > off("exact", "small", 25, 1.0, 10.0)


def test_a_short_gradient_adds_to_the_small_coefficient_a_long_one_makes_up_for_it_a_turned_one_hides_it():
    plain, weak, strong, turned = (
        {name: off(name, "small", 25, *bend) for name in ("x_t, t", "exact")}
        for bend in ((), (0.7,), (1.3,), (1.0, 20.0))
    )
    gap = plain["x_t, t"] - plain["exact"]
    assert weak["x_t, t"] - weak["exact"] > 0.9 * gap and weak["exact"] < 0.6 * weak["x_t, t"]
    assert strong["x_t, t"] < 0.7 * strong["exact"]
    assert abs(turned["x_t, t"] - turned["exact"]) < 0.3 * gap


def test_a_gradient_turned_by_20_degrees_costs_much_the_same_with_every_coefficient():
    errors = [off(*name, 25, 1.0, 20.0) for name in (("x_t, t", "small"), ("x_t, t", "large"), ("exact", "small"))]
    assert max(errors) < 1.35 * min(errors)


def test_turned_by_20_degrees_the_other_way_the_coefficient_still_shows_and_the_gradient_costs_more():
    small, exact = (off(name, "small", 25, 1.0, -20.0) for name in ("x_t, t", "exact"))
    assert 0.7 < exact / small < 0.9
    assert exact > off("x_t, t", "small", 25)


def degrees_turned(variances, g):
    """Angle between g and its product with a variance for each coordinate, of whole-plane points (N, 2)."""
    shifted = variances * g
    return torch.rad2deg(torch.atan2(shifted[:, 0] * g[:, 1] - shifted[:, 1] * g[:, 0], (shifted * g).sum(1)).abs())


@pytest.mark.parametrize("t", [0.6, 0.4, 0.2, 0.08])
def test_variances_kept_between_the_two_of_ddpm_turn_the_shift_by_less_than_half_a_degree_on_average(t):
    s = t - 0.04
    x, weights = divergence.mixture_nodes(BLOBS.given(1).noised(TABLE.alpha(t), TABLE.sigma(t)), order=8)
    g, true = blob_grad(x, t), kernels.moment_matched(BLOBS, TABLE)(x, t, s).cov.diagonal(dim1=1, dim2=2)
    kept = true.clamp(kernels.posterior_variance(TABLE, t, s), TABLE.transition(t, s)[1] ** 2)
    steep = g.norm(dim=1) > 0.01
    free_angle, kept_angle = (
        float(weights[steep] @ degrees_turned(v, g)[steep] / weights[steep].sum()) for v in (true, kept)
    )
    assert kept_angle < 0.5 and kept_angle < 0.4 * free_angle
    assert 0.2 < free_angle < 1.6
    assert float(degrees_turned(kept, g)[steep].max()) < 2


def test_the_shift_that_algorithm_1_adds_in_the_last_step_changes_little():
    kernel = blob_kernel("x_t, t", "large")

    def with_last_shift(x, t, s):
        step = kernel(x, t, s)
        return step if s > 0 else Gaussian(step.mean + TABLE.transition(t, s)[1] ** 2 * blob_grad(x, t), step.var)

    generator = torch.Generator().manual_seed(11)
    start = torch.randn(COUNT, 2, generator=generator, dtype=torch.float64)
    points = draw(with_last_shift, start, time_grid(25), generator)
    moved = (points.mean(0) - samples("x_t, t", "large", 25).mean(0)).norm()
    assert 0.001 < float(moved) < 0.02


def test_remember_at_25_steps_the_small_variance_acts_like_seven_tenths_of_the_scale():
    shifted = float(samples("x_t, t", "small", 25)[:, 0].mean())
    lower, upper = (float(samples("exact", "small", 25, share)[:, 0].mean()) for share in (0.65, 0.75))
    assert lower < shifted < upper


# --- captions, tables and Remember, sentence by sentence --------------------------------------------------------


def test_the_laboratory_is_four_blobs_two_of_each_class_under_the_noise_of_the_original_ddpm():
    assert BLOBS.dim == 2 and sorted(BLOBS.labels) == [0, 0, 1, 1]
    first, last = (float(TABLE.transition(k / 1000, (k - 1) / 1000)[1] ** 2) for k in (1, 1000))
    assert abs(first - 1e-4) < 1e-9 and abs(last - 0.02) < 1e-9  # Ho et al. (2020), section 4: T = 1000


def test_caption_one_step_the_line_runs_through_the_black_dot_and_the_orange_one_stops_short():
    x, t = torch.tensor([[-0.9, 0.2]], dtype=torch.float64), 0.3
    g, reached = blob_grad(x, t)[0], []
    for s in (0.24, 0.21, 0.12):
        grey, black = (kernels.exact(BLOBS, TABLE, label)(x, t, s).mean[0] for label in (None, 1))
        orange = grey + kernels.posterior_variance(TABLE, t, s) * g
        across = (black - grey)[0] * g[1] - (black - grey)[1] * g[0]
        assert abs(float(across / (g.norm() * (black - grey).norm()))) < 1e-9  # on the line
        reached.append(float((orange - grey).norm() / (black - grey).norm()))
    assert max(abs(a - b) for a, b in zip(reached, (0.63, 0.48, 0.16), strict=True)) < 0.005  # the alt text


def fractions_of(variance, steps):
    """Of the exact shift that each step but the last gets: with the variance as the coefficient."""
    t, s = time_grid(steps)[:-2], time_grid(steps)[1:-1]
    alpha, sigma = TABLE.transition(t, s)
    size = {"small": kernels.posterior_variance(TABLE, t, s), "large": sigma**2}[variance]
    return (size * alpha / sigma**2).tolist()


def test_caption_coefficient_a_third_of_the_first_shift_is_missing_and_half_or_more_of_the_last_with_the_small():
    large, small = (fractions_of(variance, 25) for variance in ("large", "small"))
    assert abs(large[0] - 2 / 3) < 0.01 and abs(small[0] - 2 / 3) < 0.01
    assert max(small[-2:]) < 0.5 and small[-1] < 1 / 3 and abs(max(small) - 0.8) < 0.05
    assert large == sorted(large) and large[-1] > 0.95
    assert min(fractions_of("large", 250)) > 0.95 and min(fractions_of("small", 250)[:-20]) > 0.9
    assert fractions_of("small", 250)[-1] < 0.4


def test_the_large_variance_too_is_too_small_a_coefficient_and_both_come_closer_with_more_steps():
    for variance in ("small", "large"):
        few, many = fractions_of(variance, 25), fractions_of(variance, 250)
        assert max(few + many) < 1 and sum(many) / len(many) > sum(few) / len(few) + 0.1


def test_the_samples_of_algorithm_1_are_close_to_class_1_but_off_by_many_standard_errors():
    points, alone = samples("x_t, t", "large", 25), BLOBS.given(1)
    miss = (points.mean(0) - alone.weights @ alone.means).abs()
    assert float((miss / (points.std(0) / math.sqrt(COUNT))).max()) > 6
    assert float(miss.max()) < 0.2 < 1 < off("none", "large", 25)


def test_the_class_mass_of_the_true_class_is_0_92():
    points, weights = divergence.mixture_nodes(BLOBS.given(1), order=30)
    assert round(float(weights @ BLOBS.class_log_prob(points, 1).exp()), 2) == 0.92


def test_verdict_with_the_small_variance_the_covariance_is_hardly_better_and_the_points_too_sure_by_0_02():
    points, weights = divergence.mixture_nodes(BLOBS.given(1), order=40)
    true = float(weights @ BLOBS.class_log_prob(points, 1).exp())
    off_by = {}
    for name in ("x_t, t", "exact"):
        mixture = BLOBS.given(1)
        between = mixture.means - mixture.weights @ mixture.means
        cov = torch.einsum("k,kij->ij", mixture.weights, mixture.covs + between[:, :, None] * between[:, None, :])
        off_by[name] = float((samples(name, "small", 25).T.cov() - cov).norm())
    assert 0.8 < off_by["exact"] / off_by["x_t, t"] < 1
    assert abs(float(BLOBS.class_log_prob(samples("exact", "small", 25), 1).exp().mean()) - true - 0.02) < 0.006


def test_verdict_exact_is_the_mean_of_each_step_that_of_the_samples_is_an_observation():
    means = torch.tensor([[-1.2, 0.4], [0.9, 0.8], [0.2, -1.1]], dtype=torch.float64)
    lopsided = GaussianMixture([0.2, 0.45, 0.35], means, 0.3 * torch.eye(2).expand(3, 2, 2), labels=[0, 1, 0])
    generator, alone = torch.Generator().manual_seed(1), lopsided.given(0)
    x, _ = alone.noised(TABLE.alpha(1.0), TABLE.sigma(1.0)).sample(20_000, generator)
    points = draw(kernels.ddpm(lopsided.denoiser(TABLE, 0), TABLE), x, time_grid(4), generator)  # exact in each step
    miss = (points.mean(0) - alone.weights @ alone.means) / (points.std(0) / math.sqrt(20_000))
    assert float(miss.abs().max()) > 5  # standard errors


def test_with_a_variance_for_each_coordinate_the_patch_mends_the_direction_too():
    x, t, s = BLOBS.means * 0.5, 0.4, 0.3
    step, (alpha, sigma) = kernels.moment_matched(BLOBS, TABLE)(x, t, s), TABLE.transition(t, s)
    wanted = kernels.exact(BLOBS, TABLE, 1)(x, t, s).mean - step.mean
    g, variances = blob_grad(x, t), step.cov.diagonal(dim1=1, dim2=2)
    assert float(degrees_turned(variances, g).max()) > 0.3
    assert float((sigma**2 / alpha * g - wanted).abs().max()) < 1e-12
    same = torch.full_like(g, 0.3)  # where both coordinates stand at the same bound, nothing turns
    assert float(degrees_turned(same, g).max()) < 1e-6


def test_many_true_variances_lie_outside_the_two_bounds():
    outside = []
    for t in (0.6, 0.2, 0.08):
        x, weights = divergence.mixture_nodes(BLOBS.given(1).noised(TABLE.alpha(t), TABLE.sigma(t)), order=8)
        true = kernels.moment_matched(BLOBS, TABLE)(x, t, t - 0.04).cov.diagonal(dim1=1, dim2=2)
        low, high = kernels.posterior_variance(TABLE, t, t - 0.04), TABLE.transition(t, t - 0.04)[1] ** 2
        outside.append(float(weights @ ((true < low) | (true > high)).double().mean(1)))
    assert min(outside) > 0.15 and max(outside) > 0.9


def test_in_the_last_step_the_missing_variance_of_0_02_is_small_beside_the_blobs_own():
    t, s = time_grid(25, end=0.01)[-2:]
    x, weights = divergence.mixture_nodes(BLOBS.given(1).noised(TABLE.alpha(t), TABLE.sigma(t)), order=8)
    true = float(weights @ kernels.exact(BLOBS, TABLE, 1)(x, t, s).cov.diagonal(dim1=1, dim2=2).mean(1))
    missing, small = true - float(kernels.posterior_variance(TABLE, t, s)), kernels.posterior_variance(TABLE, t, s)
    assert round(missing, 2) == 0.02 and missing < float(BLOBS.variances.min()) / 5
    assert true > 10 * small  # far too narrow
    assert (round(float(BLOBS.variances.min()), 2), round(float(BLOBS.variances.max()), 2)) == (0.14, 0.66)


def test_two_measures_with_the_small_variance_the_exact_coefficient_hardly_helps_and_no_guidance_costs_more_still():
    times = time_grid(25, end=0.01)
    shifted, exact, none = (
        float(divergence.path_kl(BLOBS, TABLE, 1, blob_kernel(name, "small"), times, order=5))
        for name in ("x_t, t", "exact", "none")
    )
    assert 0.9 * shifted < exact < shifted < none


def test_what_remains_after_a_shift_is_mostly_shape():
    times = time_grid(32, end=0.01)
    shifted, exact = (
        float(divergence.path_kl(BLOBS, TABLE, 1, blob_kernel(name, "large"), times, order=5))
        for name in ("x_t, t", "exact")
    )
    assert 0.7 < exact / shifted < 1  # the exact coefficient leaves no error of any step's mean


def test_a_right_method_gets_better_with_more_steps():
    errors = [off("x_t, t", "small", steps) for steps in (12, 25, 50)]
    assert errors[0] > 1.8 * errors[1] > 3 * errors[2]


def test_tuning_the_scale_for_one_sampler_absorbs_the_coefficient_but_not_for_another_number_of_steps_or_variance():
    tuned = 1.45
    assert off("x_t, t", "small", 25, tuned) < 3 * CHANCE
    assert off("x_t, t", "small", 75, tuned) > 5 * CHANCE and off("x_t, t", "large", 25, tuned) > 5 * CHANCE
    assert off("exact", "small", 25, tuned) > 5 * CHANCE


def test_the_two_variances_are_at_their_best_with_a_gradient_that_is_too_long_the_exact_coefficient_at_1():
    factors = (1.0, 1.15, 1.45)
    for name, variance, best in (("exact", "small", 1.0), ("x_t, t", "large", 1.15), ("x_t, t", "small", 1.45)):
        errors = {factor: off(name, variance, 25, factor) for factor in factors}
        assert min(errors, key=errors.get) == best


def test_at_75_steps_the_coefficient_still_shows():
    assert off("x_t, t", "small", 75) > 2.5 * CHANCE > off("exact", "small", 75)


def test_the_patch_of_the_reference_implementation_runs_as_printed_and_gives_the_exact_mean():
    (source,) = (Path(__file__).parents[2] / "notebooks").glob("07_*.py")
    code = source.read_text(encoding="utf-8").split("# ```python\n")[1].split("# ```")[0].replace("# ", "")
    kept = torch.cat([TABLE.alpha(torch.arange(1, 26, dtype=torch.float64) / 25)])  # 25 of the 1,000 steps
    before = torch.cat([torch.ones(1).double(), kept[:-1]])
    model = SimpleNamespace(betas=1 - (kept / before) ** 2)  # of the shortened schedule
    x, k = torch.tensor([[0.3, -0.4], [1.0, 0.8]], dtype=torch.float64), 9
    t, s = (k + 1) / 25, k / 25
    given = {
        "self": model, "x": x, "t": torch.full((2,), k), "gradient": blob_grad(x, t),
        "p_mean_var": {"mean": kernels.exact(BLOBS, TABLE)(x, t, s).mean},
        "_extract_into_tensor": lambda values, at, shape: values[at][:, None].expand(shape),
    }  # fmt: skip
    exec(code, given)
    assert float((given["new_mean"] - kernels.exact(BLOBS, TABLE, 1)(x, t, s).mean).abs().max()) < 1e-5  # .float()


def test_diffusers_value_guided_pipeline_multiplies_by_the_exponential_of_half_the_variance():
    found = importlib.util.find_spec("diffusers")
    if found is None:
        pytest.skip("diffusers is not installed (extra: peers)")
    folder = Path(found.origin).parent
    (pipeline,) = folder.rglob("value_guided_sampling.py")
    code = pipeline.read_text(encoding="utf-8")
    assert "model_std = torch.exp(0.5 * posterior_variance)" in code and "grad = model_std * grad" in code
    for steps in (25, 250):  # about 1, however short the step
        t, s = 0.5, 0.5 - 1 / steps
        assert abs(math.exp(float(kernels.posterior_variance(TABLE, t, s)) / 2) - 1) < 0.2


def test_caption_path_the_last_of_128_steps_is_not_short_beside_the_noise_an_early_one_is():
    times = time_grid(128, end=0.01)
    pairs = zip(times[:-1], times[1:], strict=True)
    shares = [float(TABLE.transition(t, s)[1] ** 2 / TABLE.sigma(t) ** 2) for t, s in pairs]
    assert shares[-1] > 0.4 and shares[40] < 0.2
