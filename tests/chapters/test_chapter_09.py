"""What chapter 09 claims about steering by similarities: by sums over grids, closed forms and other samplers' runs."""

import math

import pytest
import torch

from difflesson import divergence, guidance, kernels, metrics, plane, similarity
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import cosine, vp_linear
from difflesson.steps import Gaussian
from tests.oracles.chapter_cells import assigned, names_of
from tests.oracles.mixtures import FOUR

F64 = torch.float64
MIXTURE, SCHEDULE = FOUR.mixture(), vp_linear(0.3, 8.0)
X = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]], dtype=F64)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(count: int, seed: int = 0, dim: int = 2) -> torch.Tensor:
    return torch.randn(count, dim, generator=random(seed), dtype=F64)


def sim(x):
    """Smooth and bounded, of no meaning."""
    return torch.sin(x[..., 0] + 0.3) * torch.exp(-x[..., 1].square() / 4)


def fine_sum(step: Gaussian, width: float = 9.0):
    """Points (M, N, 2) around each Gaussian step and the area of a cell, for sums in place of quadrature."""
    axis = torch.linspace(-width, width, 181, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    return step.mean + step.var.sqrt() * grid[:, None], float(step.var) * float(axis[1] - axis[0]) ** 2


def a_step(s: float = 0.35) -> Gaussian:
    return kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, "large")(X, torch.tensor(0.5), torch.tensor(s))


# ---- the step


@pytest.mark.equation("eq-similarity-step")
@pytest.mark.parametrize("gamma", [0.0, 1.7, -3.0])
def test_the_tilted_step_is_a_density_and_its_ratio_to_the_step_is_the_exponential(gamma):
    log_tilted = names_of("09", "eq-similarity-step")["log_tilted"]
    step = a_step()
    points, cell = fine_sum(step)
    log = log_tilted(step, lambda x: gamma * sim(x), points)
    assert float((log.exp().sum(0) * cell - 1).abs().max()) < 1e-5
    ratio = log - step.log_prob(points) - gamma * sim(points)
    assert float((ratio - ratio[:1]).abs().max()) < 1e-9  # one number for each x_t: minus log Z


@pytest.mark.equation("eq-similarity-shift")
def test_the_shift_has_the_mean_of_the_tilted_step_up_to_beta_squared_at_x_t_and_at_mu():
    shifted = names_of("09", "eq-similarity-shift")["shifted"]
    gamma, gaps = 1.7, []
    for s in (0.498, 0.499):
        step = a_step(s)
        points, _ = fine_sum(step)
        weights = (step.log_prob(points) + gamma * sim(points)).softmax(0)
        mean = (weights[..., None] * points).sum(0)
        leafs = [place.clone().requires_grad_() for place in (X, step.mean)]
        slopes = [torch.autograd.grad(sim(leaf).sum(), leaf)[0] for leaf in leafs]
        gaps.append([float((shifted(step, slope, gamma).mean - mean).abs().max()) for slope in slopes])
        compact = kernels.shift(lambda x, t, s, step=step: step, guidance.gradient(lambda x, t: sim(x)), gamma)
        made = compact(X, torch.tensor(0.5), torch.tensor(s)).mean
        assert float((made - shifted(step, slopes[0], gamma).mean).abs().max()) < 1e-9
    assert all(3.3 < a / b < 4.7 for a, b in zip(*gaps, strict=True))


def test_added_to_the_score_a_slope_moves_the_step_by_one_over_alpha_times_as_much():
    grad, t, s = guidance.gradient(lambda x, t: sim(x)), torch.tensor(0.5, dtype=F64), torch.tensor(0.35, dtype=F64)
    free = MIXTURE.denoiser(SCHEDULE)
    plain = kernels.ddpm(free, SCHEDULE, "large")
    scored = kernels.ddpm(guidance.tilt(free, grad, 1.7, SCHEDULE), SCHEDULE, "large")(X, t, s).mean
    moved = kernels.shift(plain, grad, 1.7)(X, t, s).mean - plain(X, t, s).mean
    assert float((SCHEDULE.alpha(t) / SCHEDULE.alpha(s) * (scored - plain(X, t, s).mean) - moved).abs().max()) < 1e-12


@pytest.mark.equation("eq-similarity-kl")
def test_what_a_shift_costs_is_a_quarter_of_gamma_squared_beta_squared_times_the_squared_curvature():
    leading = names_of("09", "eq-similarity-kl")["leading_kl"]
    gamma, beta = 1.7, torch.tensor(2e-4, dtype=F64)
    step = Gaussian(X + beta * torch.tensor([0.5, -0.8], dtype=F64), beta)  # x_t is at a distance of order beta
    leaf = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(sim(leaf).sum(), leaf)
    points, cell = fine_sum(step)
    tilted = (step.log_prob(points) + gamma * sim(points)).log_softmax(0)
    moved = Gaussian(step.mean + gamma * beta * slope, beta).log_prob(points) + math.log(cell)
    lost = (tilted.exp() * (tilted - moved)).sum(0)
    curved = torch.stack([torch.autograd.functional.hessian(lambda x: sim(x[None])[0], x) for x in X])
    assert float((lost / leading(curved, gamma, beta) - 1).abs().max()) < 0.01


# ---- the chain


def normal_data(variance: float = 1.0) -> GaussianMixture:
    return GaussianMixture([1.0], torch.zeros(1, 3, dtype=F64), variance * torch.eye(3, dtype=F64)[None])


A = torch.tensor([0.3, -0.5, 0.8], dtype=F64)
LONG = vp_linear(0.2, 12.0)  # another schedule and dimension than the page's
LENGTH = float(LONG.integrated_beta(1.0))
SAMPLERS = {"ddpm": lambda denoiser: kernels.ddpm(denoiser, LONG, "large"), "ddim": lambda d: kernels.ddim(d, LONG)}


def moved_by(sampler: str, guided, data: GaussianMixture | None = None) -> torch.Tensor:
    """How far guidance moves the mean of a few points, from the same noise: that of the start cancels, (3,)."""
    ends = [draw(SAMPLERS[sampler](denoiser), normal(50, 1, 3), time_grid(400), random(2))
            for denoiser in ((data or normal_data()).denoiser(LONG), guided)]  # fmt: skip
    return (ends[1] - ends[0]).mean(0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_chain_counts_a_direction_twice_in_ddpm_and_half_the_length_times_in_ddim(sampler, gamma):
    factor = {"ddpm": 2 * (1 - math.exp(-LENGTH / 2)), "ddim": LENGTH / 2}[sampler]
    clean = guidance.tilt(normal_data().denoiser(LONG), lambda x, t: A.expand_as(x), gamma, LONG)
    assert float((moved_by(sampler, clean) / gamma / factor - A).abs().max()) < 0.02


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_exact_pull_counts_a_direction_once_whatever_the_sampler(sampler):
    """Up to what a start from noise, and not from the noised target, leaves: its mean alpha_1 a, or alpha_1^2 a."""
    left = math.exp(-LENGTH / 2 * {"ddpm": 2, "ddim": 1}[sampler])
    exact = similarity.tilted_by_direction(normal_data(), A).denoiser(LONG)
    assert float((moved_by(sampler, exact) - (1 - left) * A).abs().max()) < 0.01


def test_ddpm_counts_a_direction_just_once_at_one_width_of_the_data_and_less_from_a_variance_of_7_on():
    """The displacement d of N(0, v) data has d' = d / 2 - d / V + gamma a: over v gamma a, an arc tangent."""

    def count(v):
        root, far = math.sqrt(v - 1), math.exp(LENGTH / 2)
        return 2 / root * (math.atan(far / root) - math.atan(1 / root))

    measured = {}
    for v in (5.15, 7.0, 20.0):
        data = normal_data(v)
        clean = guidance.tilt(data.denoiser(LONG), lambda x, t: A.expand_as(x), 1.7, LONG)
        measured[v] = moved_by("ddpm", clean, data) / (1.7 * v)
        assert float((measured[v] / count(v) - A).abs().max()) < 0.02
    assert abs(count(5.15) - 1) < 0.002 and count(7.0) < 0.97 and count(20.0) < 0.7


PAGE = assigned("09", "blobs")["blobs"]


def page_mixture() -> GaussianMixture:
    weights, means, covs, labels = zip(*PAGE, strict=True)
    return GaussianMixture(weights, torch.tensor(means, dtype=F64), covs, labels)


def to_the_lowest(x):
    """A bounded similarity of another make than the page's: the cosine with "down", from a centre above the blobs."""
    return similarity.cosine(x - torch.tensor([0.2, 0.9], dtype=F64), torch.tensor([0.0, -1.0], dtype=F64))


def ends_of(grad, gamma=1.0, count=400, steps=60, schedule=None, seed=5):
    schedule = schedule or vp_linear()
    free = page_mixture().denoiser(schedule)
    kernel = kernels.ddpm(guidance.tilt(free, grad, gamma, schedule), schedule, "large")
    return draw(kernel, normal(count, seed), time_grid(steps), random(seed + 1))


def test_the_data_are_six_blobs_with_three_words_and_one_point_in_ten_is_below():
    mixture = page_mixture()
    assert mixture.labels == (0, 0, 1, 1, 1, 2) and abs(float(mixture.class_weights()[2]) - 0.1) < 1e-12
    assert int(mixture.means[:, 1].argmin()) == 5
    spreads = mixture.covs
    assert float(spreads[:, 0, 1].abs().max()) > 0.1 and len(set(mixture.weights.tolist())) > 4


@pytest.mark.parametrize("gamma", [1.0, 4.0])
def test_the_exact_pull_samples_what_was_asked_for_and_the_clean_gradient_does_not(gamma):
    """Another similarity, schedule and seed than the page's. 400 points; the floor is a second sample."""
    mixture, schedule = page_mixture(), cosine(8.0, -8.0)
    target = GridDensity(lambda x: mixture.log_prob(x) + gamma * to_the_lowest(x), -7, 7)
    one, other = target.sample(400, random(1)), target.sample(400, random(2))
    exact = similarity.noisy_gradient(mixture, schedule, lambda x: gamma * to_the_lowest(x), order=4)
    clean = guidance.gradient(lambda x, t: to_the_lowest(x))
    floor = metrics.wasserstein(one, other)
    right, wrong = (metrics.wasserstein(ends_of(grad, scale, schedule=schedule, steps=80), one)
                    for grad, scale in ((exact, 1.0), (clean, gamma)))  # fmt: skip
    assert right < 1.1 * floor and wrong > 1.2 * floor


def test_more_steps_do_not_bring_the_clean_gradient_nearer():
    gamma, mixture = 1.0, page_mixture()
    target = GridDensity(lambda x: mixture.log_prob(x) + gamma * to_the_lowest(x), -7, 7)
    wanted = float(target.expectation(to_the_lowest))
    clean = guidance.gradient(lambda x, t: to_the_lowest(x))
    excess = [float(to_the_lowest(ends_of(clean, gamma, 4000, steps)).mean()) - wanted for steps in (50, 200)]
    assert min(excess) > 0.1 and excess[1] > 0.7 * excess[0]


@pytest.mark.parametrize("gamma", [1.0, 10.0])
def test_a_plain_cosine_with_one_direction_has_too_much_at_1_and_at_10_however_many_steps(gamma):
    """Steps moved as the definition says, other data and another schedule than the page's."""
    u = torch.tensor([0.6, -0.8], dtype=F64)
    target = GridDensity(lambda x: MIXTURE.log_prob(x) + gamma * similarity.cosine(x, u), -8, 8, 200)
    wanted = float(target.expectation(lambda x: similarity.cosine(x, u)))
    pull = guidance.gradient(lambda x, t: similarity.cosine(x, u))
    chain = kernels.shift(kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, "large"), pull, gamma)
    for steps in (50, 200):
        got = similarity.cosine(draw(chain, normal(1500, 3), time_grid(steps), random(4)), u)
        assert float(got.mean()) > wanted + 4 * float(got.std()) / math.sqrt(1500)


def test_what_normalisers_leave_on_a_path_is_of_order_beta_in_a_step_and_does_not_fade_with_shorter_steps():
    """The second parts, exp(gamma sim(x_t)) / Z(x_t), along paths of the chain; Z by quadrature."""
    z, shares = divergence.hermite(8, 2)
    free, gamma, left = MIXTURE.denoiser(SCHEDULE), 1.7, {}
    clean, plain = guidance.gradient(lambda x, t: sim(x)), kernels.ddpm(free, SCHEDULE, "large")
    guided = kernels.shift(plain, clean, gamma)
    for steps in (40, 160):
        times, sums, single = time_grid(steps, end=0.01), 0.0, []
        states = list(sample(guided, normal(200, 9), times, random(10)))
        for x, t, s in zip(states[:-1], times[:-1], times[1:], strict=True):
            step = plain(x, t, s)
            nodes = step.mean + step.var.sqrt() * z[:, None]
            log_z = (shares.log()[:, None] + gamma * sim(nodes)).logsumexp(0)
            second = gamma * sim(x) - log_z
            sums, single = sums + second, [*single, float(second.abs().mean())]
        left[steps] = sums.std(), sum(single) / steps
    assert left[160][1] < 0.35 * left[40][1]
    assert left[40][0] > 0.3 and left[160][0] > 0.8 * left[40][0]


def test_the_first_parts_cancel_along_a_path_but_for_its_ends():
    path = sim(normal(7, 11))
    first = torch.exp(1.7 * (path[1:] - path[:-1])).prod()
    assert abs(float(first / torch.exp(1.7 * (path[-1] - path[0]))) - 1) < 1e-9


def test_two_energies_added_are_two_weights_multiplied_and_their_worths_are_not():
    t = torch.tensor(0.5, dtype=F64)
    f, g = (lambda x: 2 * sim(x)), (lambda x: x[..., 1])
    both = similarity.noisy_log_weight(MIXTURE, SCHEDULE, lambda x: f(x) + g(x), 16)(X, t)
    apart = sum(similarity.noisy_log_weight(MIXTURE, SCHEDULE, one, 16)(X, t) for one in (f, g))
    clean = X[:, None] * 0 + X
    assert float(((f(clean) + g(clean)).exp() - f(clean).exp() * g(clean).exp()).abs().max()) < 1e-9
    assert float((both - apart).abs().max()) > 0.02


# ---- bounded and unbounded


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_a_similarity_between_minus_1_and_1_favours_by_at_most_e_to_2_gamma(gamma):
    mixture = page_mixture()
    target = GridDensity(lambda x: mixture.log_prob(x) + gamma * to_the_lowest(x), -8, 8)
    ratio = target.log_prob(target.points) - mixture.log_prob(target.points)
    assert float(ratio.max()) <= 2 * gamma and float(ratio.min()) >= -2 * gamma


def test_a_large_gamma_with_a_cosine_asks_for_the_data_near_the_ray():
    u, near, dense = torch.tensor([0.6, -0.8], dtype=F64), [], []
    for gamma in (1.0, 8.0, 64.0):
        target = GridDensity(lambda x, g=gamma: MIXTURE.log_prob(x) + g * similarity.cosine(x, u), -8, 8, 300)
        near.append(float(target.expectation(lambda x: similarity.cosine(x, u))))
        dense.append(float(target.expectation(MIXTURE.log_prob)))
    assert near == sorted(near) and near[2] > 0.98
    data = float(GridDensity(MIXTURE.log_prob, -8, 8, 300).expectation(MIXTURE.log_prob))
    assert min(dense) > data - 0.5  # no less dense than data are, whatever gamma


def test_a_similarity_without_a_ceiling_may_leave_no_finite_normaliser():
    """|x|^2 with gamma above 1 / (2 beta): the integrand of Z grows."""
    step, gamma = Gaussian(torch.zeros(1, 2, dtype=F64), torch.tensor(0.2, dtype=F64)), 2.6
    x = torch.tensor([[[5.0, 0.0]], [[10.0, 0.0]], [[20.0, 0.0]]], dtype=F64)
    log = step.log_prob(x)[:, 0] + gamma * x.square().sum(2)[:, 0]
    assert bool((log.diff() > 0).all())


def test_the_force_of_a_cosine_is_the_sine_of_the_angle_over_the_distance():
    u, x = torch.tensor([0.6, -0.8], dtype=F64), 3 * normal(20, 3)
    pull = guidance.gradient(lambda x, t: similarity.cosine(x, u))(x, torch.tensor(0.5))
    cos = similarity.cosine(x, u)
    assert float((pull.norm(dim=1) - (1 - cos**2).sqrt() / x.norm(dim=1)).abs().max()) < 1e-9
    assert float((pull * x).sum(1).abs().max()) < 1e-9  # nothing along x


def test_blobs_walk_off_in_straight_lines_and_the_widest_along_the_direction_wins_in_the_end():
    u = torch.tensor([0.6, -0.8], dtype=F64)
    far = [similarity.tilted_by_direction(MIXTURE, g * u) for g in (10.0, 20.0)]
    assert float(((far[1].means - MIXTURE.means) - 2 * (far[0].means - MIXTURE.means)).abs().max()) < 1e-9
    widest = int((MIXTURE.covs @ u @ u).argmax())
    assert int(similarity.tilted_by_direction(MIXTURE, 1000 * u).weights.argmax()) == widest


# ---- Deeper


@pytest.mark.equation("eq-half-plane")
@pytest.mark.parametrize("time", [0.1, 0.5, 1.0])
def test_the_worth_of_a_half_plane_is_the_share_of_the_crowd_in_it(time):
    log_half_plane = names_of("09", "eq-half-plane")["log_half_plane"]
    a, b, t = torch.tensor([0.6, 0.9], dtype=F64), 0.4, torch.tensor(time, dtype=F64)
    draws = MIXTURE.reverse(X.repeat(100_000, 1), SCHEDULE, t, 0.0).sample(random(3)).view(100_000, 3, 2)
    counted = (draws @ a >= b).double().mean(0)
    share = log_half_plane(MIXTURE, SCHEDULE, a, b, X, t).exp()
    error = (share * (1 - share) / 100_000).sqrt() + 1e-5
    assert bool(((counted - share).abs() < 4 * error).all())  # 100,000 draws each


@pytest.mark.equation("eq-half-plane")
def test_the_pull_of_a_half_plane_is_the_difference_of_two_means():
    log_half_plane = names_of("09", "eq-half-plane")["log_half_plane"]
    a, b, t = torch.tensor([0.6, 0.9], dtype=F64), 0.4, torch.tensor(0.5, dtype=F64)
    pull = guidance.gradient(lambda x, t: log_half_plane(MIXTURE, SCHEDULE, a, b, x, t))(X, t)
    axis = torch.linspace(-8, 8, 1201, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    log = MIXTURE.log_prob(grid) - (X[:, None] - SCHEDULE.alpha(t) * grid).square().sum(2) / 2 / SCHEDULE.sigma(t) ** 2
    chances = log.softmax(1)
    inside = chances * (grid @ a >= b)
    lead = inside @ grid / inside.sum(1, keepdim=True) - chances @ grid
    assert float((pull - SCHEDULE.alpha(t) / SCHEDULE.sigma(t) ** 2 * lead).abs().max()) < 0.01


@pytest.mark.equation("eq-contrastive-classifier")
def test_cosines_over_the_temperature_are_a_classifier_times_a_normaliser():
    split = names_of("09", "eq-contrastive-classifier")["split_similarity"]
    cosines = 2 * torch.rand(6, 4, generator=random(4), dtype=F64) - 1
    guess, total = split(cosines, 0.3)
    for row, (chances, mass) in zip(cosines.tolist(), zip(guess.tolist(), total.tolist(), strict=True), strict=True):
        parts = [math.exp(c / 0.3) for c in row]
        assert abs(mass / sum(parts) - 1) < 1e-12
        assert all(abs(p - part / sum(parts)) < 1e-12 for p, part in zip(chances, parts, strict=True))


def test_a_softmax_over_words_does_not_see_what_is_added_to_all_similarities_of_a_point():
    split = names_of("09", "eq-contrastive-classifier")["split_similarity"]
    cosines = torch.rand(6, 4, generator=random(4), dtype=F64)
    assert float((split(cosines + normal(6, 5, 1), 0.3)[0] - split(cosines, 0.3)[0]).abs().max()) < 1e-12


def test_a_drawn_crowds_pull_has_an_error_that_halves_with_four_times_the_draws():
    t, errors = torch.tensor(0.5, dtype=F64), []
    x = SCHEDULE.add_noise(MIXTURE.sample(100, random(6))[0], normal(100, 7), t)
    true = similarity.noisy_gradient(MIXTURE, SCHEDULE, lambda x: 2 * sim(x), 16)(x, t)
    for count in (64, 256, 1024):
        crowd = MIXTURE.reverse(x.repeat(count, 1), SCHEDULE, t, 0.0).sample(random(8)).view(count, 100, 2)
        lead = (((2 * sim(crowd)).softmax(0) - 1 / count)[..., None] * crowd).sum(0)
        errors.append(float((SCHEDULE.alpha(t) / SCHEDULE.sigma(t) ** 2 * lead - true).norm()))
    assert all(1.5 < a / b < 2.7 for a, b in zip(errors[:-1], errors[1:], strict=True))


def test_where_most_crowds_have_hardly_any_who_fit_a_large_gamma_needs_many_more_draws():
    """Other data and another similarity than the page's, with little noise; how many fit, by the draws themselves."""
    t, x_0 = torch.tensor(0.15, dtype=F64), MIXTURE.sample(100, random(6))[0]
    x = SCHEDULE.add_noise(x_0, normal(100, 7), t)
    crowd = MIXTURE.reverse(x.repeat(1024, 1), SCHEDULE, t, 0.0).sample(random(8)).view(1024, 100, 2)
    assert float(((to_the_lowest(crowd) > 0.8).double().mean(0) < 0.02).double().mean()) > 0.5
    off = {}
    for gamma in (1.0, 10.0):
        true = similarity.noisy_gradient(MIXTURE, SCHEDULE, lambda x, g=gamma: g * to_the_lowest(x), 16)(x, t)
        for count in (64, 256):
            lead = ((gamma * to_the_lowest(crowd[:count])).softmax(0) - 1 / count)[..., None] * crowd[:count]
            found = SCHEDULE.alpha(t) / SCHEDULE.sigma(t) ** 2 * lead.sum(0)
            off[gamma, count] = float((found - true).norm() / true.norm())
    assert off[10.0, 256] > 2.5 * off[1.0, 256] and off[10.0, 256] > 1.2 * off[1.0, 64]
    assert off[10.0, 64] < 1.7 * off[10.0, 256]  # not halved by four times the draws


def test_the_curvature_by_the_planes_jacobian_is_the_hessian():
    M = plane.jacobian(lambda x: guidance.gradient(lambda x, t: sim(x))(x, torch.tensor(0.5)), X)
    wanted = torch.stack([torch.autograd.functional.hessian(lambda x: sim(x[None])[0], x) for x in X])
    assert float((M - wanted).abs().max()) < 1e-10
