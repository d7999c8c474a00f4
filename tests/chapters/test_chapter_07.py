"""What chapter 07 says about the mean shift, on another mixture, other schedules and other times."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from difflesson import divergence, exercises, guidance, kernels, plane
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, from_betas, vp_linear
from difflesson.steps import FullGaussian, Gaussian

MIXTURE = GaussianMixture(
    weights=[0.2, 0.45, 0.35],
    means=torch.tensor([[-1.2, 0.4], [0.9, 0.8], [0.2, -1.1]], dtype=torch.float64),
    covs=[[[0.4, -0.1], [-0.1, 0.3]], [[0.3, 0.15], [0.15, 0.6]], [[0.7, 0.2], [0.2, 0.2]]],
    labels=[0, 1, 0],
)
LABEL = 0  # the class of two blobs
SCHEDULES = {"linear": vp_linear(0.3, 8.0), "cosine": cosine(12.0, -12.0)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
LENGTHS = [10 ** (-k / 2) for k in range(2, 10)]  # three and a half decades


def grad_under(schedule):
    return lambda x, t: MIXTURE.noised(schedule.alpha(t), schedule.sigma(t)).class_gradient(x, LABEL)


def kernel_for(schedule, name, variance="large", at="x", time=None):
    plain = kernels.ddpm(MIXTURE.denoiser(schedule), schedule, variance)
    if name == "shift":
        return kernels.shift(plain, grad_under(schedule), 1.0, at=at, time=time)
    return {"no shift": plain, "second order": kernels.moment_matched(MIXTURE, schedule, LABEL)}[name]


def losses(schedule, kernel, t, lengths=LENGTHS):
    """Mean divergence of one step from t, for each length beta."""
    t = torch.tensor(t, dtype=torch.float64)
    x, shares = divergence.mixture_nodes(MIXTURE.given(LABEL).noised(schedule.alpha(t), schedule.sigma(t)), order=6)
    found = []
    for beta in lengths:
        left = schedule.integrated_beta(t) + math.log1p(-beta)
        s = schedule.time(-torch.log(torch.expm1(left)))
        exact = kernels.exact(MIXTURE, schedule, LABEL)(x, t, s)
        found.append(float(shares @ divergence.kl(exact, kernel(x, t, s))))
    return found


def order_of(values) -> float:
    """Exponent over the last two decades."""
    return math.log10(values[-5] / values[-1]) / 2


@every_schedule
@pytest.mark.parametrize(("name", "order"), [("no shift", 1), ("shift", 2), ("second order", 3)])
@pytest.mark.parametrize("t", [0.35, 0.6])
def test_each_refinement_gains_one_order_of_divergence(schedule, name, order, t):
    values = losses(schedule, kernel_for(schedule, name), t)
    assert abs(order_of(values) - order) < 0.05
    assert all(a > b for a, b in zip(values, values[1:], strict=False))


@every_schedule
@pytest.mark.parametrize("variance", ["small", "large"])
def test_where_the_gradient_is_taken_changes_the_divergence_by_one_order_less_than_what_is_left(schedule, variance):
    base = losses(schedule, kernel_for(schedule, "shift", variance), 0.5)
    for at, time in [("mu", "s"), ("mu", "t"), ("x", "s")]:
        other = losses(schedule, kernel_for(schedule, "shift", variance, at, time), 0.5)
        change = [abs(a - b) for a, b in zip(base, other, strict=True)]
        assert abs(order_of(base) - 2) < 0.05
        assert order_of(change) > 2.8


@every_schedule
@pytest.mark.equation("eq-one-step-tweedie")
@pytest.mark.parametrize("times", [(0.5, 0.499), (0.5, 0.1), (0.9, 0.2)])
def test_the_label_moves_the_mean_by_beta_over_alpha_times_the_gradient_at_x_t(schedule, times):
    t, s = times
    x = torch.tensor([[0.0, 0.0], [0.7, -1.1], [-0.6, 1.3]], dtype=torch.float64)
    moved = kernels.exact(MIXTURE, schedule, LABEL)(x, t, s).mean - kernels.exact(MIXTURE, schedule)(x, t, s).mean
    alpha_ts, sigma_ts = schedule.transition(t, s)
    assert float((moved - sigma_ts**2 / alpha_ts * grad_under(schedule)(x, t)).abs().max()) < 1e-12


@every_schedule
@pytest.mark.equation("eq-one-step-tweedie")
def test_a_ddpm_step_with_the_gradient_in_the_score_has_the_exact_mean_and_a_shift_has_not(schedule):
    t, s = 0.6, 0.2
    x = torch.tensor([[0.0, 0.0], [0.7, -1.1]], dtype=torch.float64)
    exact = kernels.exact(MIXTURE, schedule, LABEL)(x, t, s).mean
    tilted = guidance.tilt(MIXTURE.denoiser(schedule), grad_under(schedule), 1.0, schedule)
    assert float((kernels.ddpm(tilted, schedule)(x, t, s).mean - exact).abs().max()) < 1e-12
    assert float((kernel_for(schedule, "shift")(x, t, s).mean - exact).abs().max()) > 0.01


@every_schedule
def test_the_share_of_the_exact_shift_is_alpha_times_the_ratio_of_noise_variances(schedule):
    for t, s in [(0.8, 0.5), (0.3, 0.1), (0.3, 0.0)]:
        alpha_ts, sigma_ts = schedule.transition(t, s)
        share = kernels.posterior_variance(schedule, t, s) * alpha_ts / sigma_ts**2
        assert abs(float(share - alpha_ts * (schedule.sigma(s) / schedule.sigma(t)) ** 2)) < 1e-13


def patched(kernel, grad, schedule, gamma=1.0):
    """The chapter's one-line patch: beta / alpha_{t|s} for the variance, as the coefficient."""

    def step_of(x, t, s):
        step, alpha_ts = kernel(x, t, s), schedule.alpha(t) / schedule.alpha(s)
        return replace(step, mean=step.mean + gamma * (1 - alpha_ts**2) / alpha_ts * grad(x, t))

    return step_of


def learned(mixture, schedule):
    """A variance for each coordinate: the true ones of the model's step."""

    def kernel(x, t, s):
        step = kernels.exact(mixture, schedule)(x, t, s)
        return FullGaussian(step.mean, torch.diag_embed(step.cov.diagonal(dim1=1, dim2=2)))

    return kernel


X = torch.tensor([[0.0, 0.0], [0.7, -1.1], [-0.6, 1.3], [2.5, -2.0]], dtype=torch.float64)


@every_schedule
@pytest.mark.equation("eq-one-step-tweedie")
def test_the_slope_of_the_noisy_classifier_is_how_position_and_class_go_together_across_the_cloud(schedule):
    t, s = 0.6, 0.35
    alpha_ts, sigma_ts = schedule.transition(t, s)
    at_s = MIXTURE.noised(schedule.alpha(s), schedule.sigma(s))
    cloud, weights = divergence.step_nodes(kernels.exact(MIXTURE, schedule)(X, t, s), order=24)  # (M, N, 2), (M, N)
    verdicts = at_s.class_log_prob(cloud.flatten(0, 1), LABEL).exp().view(weights.shape)
    average = (weights * verdicts).sum(0)
    at_t = MIXTURE.noised(schedule.alpha(t), schedule.sigma(t))
    assert float((average - at_t.class_log_prob(X, LABEL).exp()).abs().max()) < 1e-6
    centre = (weights[..., None] * cloud).sum(0)
    together = (weights[..., None] * (cloud - centre) * (verdicts - average)[..., None]).sum(0)
    moved = kernels.exact(MIXTURE, schedule, LABEL)(X, t, s).mean - centre
    assert float((together / average[:, None] - moved).abs().max()) < 1e-5
    slope = grad_under(schedule)(X, t)
    assert float((alpha_ts / sigma_ts**2 * together / average[:, None] - slope).abs().max()) < 1e-5


@every_schedule
@pytest.mark.equation("eq-one-step-tweedie")
@pytest.mark.parametrize("times", [(0.5, 0.49), (0.9, 0.2)])
def test_the_patch_gives_every_variance_the_exact_mean_and_leaves_the_variance_alone(schedule, times):
    exact = kernels.exact(MIXTURE, schedule, LABEL)(X, *times).mean
    plain_kernels = [kernel_for(schedule, "no shift", variance) for variance in ("small", "large")]
    for base in (*plain_kernels, learned(MIXTURE, schedule)):
        got, plain = patched(base, grad_under(schedule), schedule)(X, *times), base(X, *times)
        assert float((got.mean - exact).abs().max()) < 1e-12
        spread = "cov" if isinstance(plain, FullGaussian) else "var"
        assert torch.equal(getattr(got, spread), getattr(plain, spread))


@every_schedule
@pytest.mark.parametrize("gamma", [-1.0, 0.0, 3.0])
def test_the_patch_is_ddpm_with_the_gradient_in_the_score_for_every_scale(schedule, gamma):
    grad, free = grad_under(schedule), MIXTURE.denoiser(schedule)
    got = patched(kernels.ddpm(free, schedule), grad, schedule, gamma)(X, 0.7, 0.4)
    want = kernels.ddpm(guidance.tilt(free, grad, gamma, schedule), schedule)(X, 0.7, 0.4)
    assert float((got.mean - want.mean).abs().max()) < 1e-12


@every_schedule
@pytest.mark.parametrize(
    ("times", "low", "high"), [((0.5, 0.49), 1.9, 2.0), ((0.5, 0.1), 1.0, 1.5), ((0.5, 0.0), 1.0, 1.01)]
)
def test_on_ddim_the_patch_pushes_up_to_twice_as_far_as_the_gradient_in_the_score(schedule, times, low, high):
    grad, free = grad_under(schedule), MIXTURE.denoiser(schedule)
    plain = kernels.ddim(free, schedule)(X, *times).mean
    pushed = patched(kernels.ddim(free, schedule), grad, schedule)(X, *times).mean - plain
    wanted = kernels.ddim(guidance.tilt(free, grad, 1.0, schedule), schedule)(X, *times).mean - plain
    ratio = pushed.norm(dim=1) / wanted.norm(dim=1)
    assert low - 1e-9 <= float(ratio.min()) and float(ratio.max()) <= high + 1e-9


@every_schedule
@pytest.mark.equation("eq-mean-shift")
def test_a_shift_is_parallel_to_the_gradient_with_one_variance_and_not_with_one_a_coordinate(schedule):
    t, s = 0.3, 0.2
    g = grad_under(schedule)(X, t)
    for base, turned in ((kernel_for(schedule, "no shift"), False), (learned(MIXTURE, schedule), True)):
        shift = kernels.shift(base, grad_under(schedule), 1.0)(X, t, s).mean - base(X, t, s).mean
        across = (shift[:, 0] * g[:, 1] - shift[:, 1] * g[:, 0]) / (shift.norm(dim=1) * g.norm(dim=1))
        assert (float(across.abs().max()) > 0.01) == turned
        assert turned or float(across.abs().max()) < 1e-12


@every_schedule
@pytest.mark.equation("eq-kl-shift")
@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_constant_of_a_shifted_step_is_the_misfit_of_either_variance(schedule, variance):
    t, beta = torch.tensor(0.5, dtype=torch.float64), 1e-4
    x, shares = divergence.mixture_nodes(MIXTURE.given(LABEL).noised(schedule.alpha(t), schedule.sigma(t)), order=6)
    curvature = MIXTURE.noised(schedule.alpha(t), schedule.sigma(t)).given(LABEL).hessian(x)
    c = {"small": 1 / schedule.sigma(t) ** 2, "large": torch.ones(())}[variance]
    by_hand = float(shares @ (beta**2 / 4 * (curvature + c * torch.eye(2)).square().sum((1, 2))))
    package = float(shares @ divergence.leading_kl_with_shift(curvature, torch.tensor(beta), c))
    (measured,) = losses(schedule, kernel_for(schedule, "shift", variance), 0.5, [beta])
    assert abs(measured / by_hand - 1) < 3e-3
    assert abs(package / by_hand - 1) < 1e-6


@every_schedule
@pytest.mark.equation("eq-posterior-variance", "eq-second-order")
def test_the_two_variances_are_the_covariance_of_a_step_for_a_point_and_for_a_standard_normal(schedule):
    t, s = 0.5, 0.3
    beta = schedule.transition(t, s)[1] ** 2
    for width, want in ((1e-7, kernels.posterior_variance(schedule, t, s)), (1.0, beta)):
        data = GaussianMixture([1.0], torch.zeros(1, 2).double(), torch.eye(2)[None] * width**2)
        cov = kernels.moment_matched(data, schedule)(X, t, s).cov
        assert float((cov - want * torch.eye(2)).abs().max()) < 1e-7
    ratio = (schedule.sigma(s) / schedule.sigma(t)) ** 2 * beta
    assert abs(float(kernels.posterior_variance(schedule, t, s) - ratio)) < 1e-14


def test_a_variance_too_narrow_is_charged_much_more_than_one_too_wide():
    data = GaussianMixture([1.0], torch.zeros(1, 2).double(), torch.eye(2)[None] * 2.0)
    step = data.reverse(X, vp_linear(), 0.4, 0.3)
    nodes, weights = divergence.step_nodes(step)
    size, found = step.cov[0, 0, 0], []
    for factor in (1 / 15, 15.0):
        gap = step.log_prob(nodes) - Gaussian(step.mean, size * factor).log_prob(nodes)
        found.append((weights * gap).sum(0))
    assert float((found[0] - (14 - math.log(15))).abs().max()) < 1e-9
    assert float((found[1] - (1 / 15 - 1 + math.log(15))).abs().max()) < 1e-9


@pytest.mark.parametrize(("name", "order"), [("no shift", 0), ("shift", 1), ("second order", 2)])
def test_over_a_path_one_order_is_lost(name, order):
    schedule = SCHEDULES["linear"]
    kernel = kernel_for(schedule, name)
    found = [
        float(divergence.path_kl(MIXTURE, schedule, LABEL, kernel, time_grid(steps, end=0.05), order=6))
        for steps in (64, 128)
    ]
    assert abs(math.log2(found[0] / found[1]) - order) < 0.15


def test_a_shift_by_the_standard_deviation_gets_worse_with_more_steps_and_by_the_variance_does_not():
    schedule = SCHEDULES["linear"]
    plain, grad = kernels.ddpm(MIXTURE.denoiser(schedule), schedule, "large"), grad_under(schedule)

    def mistaken(x, t, s):
        step = plain(x, t, s)
        return Gaussian(step.mean + step.var.sqrt() * grad(x, t), step.var)

    truth = MIXTURE.given(LABEL).weights @ MIXTURE.given(LABEL).means
    errors = {"mistaken": [], "right": []}
    for steps in (20, 80, 200):
        for name, kernel in (("mistaken", mistaken), ("right", kernel_for(schedule, "shift"))):
            generator = torch.Generator().manual_seed(0)
            start = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
            points = draw(kernel, start, time_grid(steps), generator)
            errors[name].append(float((points.mean(0) - truth).norm()))
    # 4,000 points: the standard error of each coordinate of the mean is about 0.015
    assert errors["mistaken"][0] + 0.1 < errors["mistaken"][1] < errors["mistaken"][2] - 0.1
    assert max(errors["right"]) < 0.06 < errors["mistaken"][0]


@pytest.mark.parametrize("standard_deviation", [True, False])
def test_halving_a_step_tells_the_standard_deviation_from_the_variance_and_switching_the_noise_off_does_not(
    standard_deviation,
):
    schedule = SCHEDULES["linear"]
    grad, free = grad_under(schedule), MIXTURE.denoiser(schedule)

    def shifted(base):
        def kernel(x, t, s):
            step = base(x, t, s)
            size = step.var.sqrt() if standard_deviation else step.var
            return Gaussian(step.mean + size * grad(x, t), step.var)

        return kernel

    large, quiet = kernels.ddpm(free, schedule, "large"), kernels.ddim(free, schedule)
    assert torch.equal(shifted(quiet)(X, 0.5, 0.4).mean, quiet(X, 0.5, 0.4).mean)
    sizes = [(shifted(large)(X, 0.5, 0.5 - h).mean - large(X, 0.5, 0.5 - h).mean).norm() for h in (2e-3, 1e-3)]
    assert abs(float(sizes[0] / sizes[1]) - (math.sqrt(2) if standard_deviation else 2)) < 0.02


# --- the verdict and Remember, on the chapter's own mixture and schedule, with other random numbers ------------


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


# --- the exercises: answers that must not pass ----------------------------------------------------------------


def covariance_of(label):
    """Exercise 7.3, solved for one label whatever is asked."""

    def answer(at_s, x, asked, alpha_ts):
        at_t = at_s.noised(alpha_ts, math.sqrt(1 - alpha_ts**2)).given(min(label, at_s.classes - 1))
        identity = torch.eye(x.shape[1], dtype=x.dtype)
        return (1 / alpha_ts**2 - 1) * (identity + (1 - alpha_ts**2) * at_t.hessian(x))

    return answer


def rate_of(label):
    """Exercise 7.4, solved for one label whatever is asked."""

    def answer(at_t, x, asked, rate):
        known = min(label, at_t.classes - 1)
        g, s = at_t.class_gradient(x, known), at_t.score(x)
        laplacian = (at_t.given(known).hessian(x) - at_t.hessian(x)).diagonal(dim1=1, dim2=2).sum(1)
        return rate / 2 * ((x * g + g * g + 2 * g * s).sum(1) + laplacian)

    return answer


CHEATS = {
    "7.1, at gamma = 1 only": ("7.1", lambda mean, cov, g, gamma: mean + max(gamma, 1.0) * cov @ g),
    "7.1, gamma never negative": ("7.1", lambda mean, cov, g, gamma: mean + abs(gamma) * cov @ g),
    "7.2, right in short steps": ("7.2", lambda a, b: 2 * math.sinh(b / a - 1)),
    "7.5, one entry": ("7.5", lambda third: third.flatten()[0] ** 2 / 12),
    "7.5, the plane only": ("7.5", lambda third: third.square().sum() / 12 if len(third) == 2 else third.sum() / 12),
}
CHEATS |= {f"7.3, label {k}": ("7.3", covariance_of(k)) for k in (0, 1, 2)}
CHEATS |= {f"7.4, label {k}": ("7.4", rate_of(k)) for k in (0, 1, 2)}


@pytest.mark.parametrize("cheat", CHEATS)
def test_an_answer_that_is_right_in_some_cases_only_does_not_pass(cheat):
    number, answer = CHEATS[cheat]
    assert exercises.verdict(number, answer).kind in ("wrong", "mistake")


def test_an_answer_that_overwrites_its_arguments_is_told_so_and_one_that_spoils_them_is_wrong():
    def overwriting(mean, cov, g, gamma):
        return mean.add_(gamma * cov @ g)

    said = exercises.verdict("7.1", overwriting)
    assert said.kind == "wrong" and "overwrites its argument" in said.message
    assert exercises.verdict("7.1", lambda mean, cov, g, gamma: mean.mul_(2)).kind == "wrong"
