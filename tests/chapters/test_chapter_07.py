"""What chapter 07 says about the mean shift, on another mixture, other schedules and other times."""

import math
from dataclasses import replace

import pytest
import torch

from difflesson import divergence, exercises, guidance, kernels
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


@pytest.mark.equation("eq-one-step-tweedie", "eq-second-order")
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.9), (0.7, 1.3)])
def test_the_shift_is_sigma_squared_over_alpha_times_the_gradient_even_where_variance_is_not_preserved(alpha, sigma):
    """On the line, by Bayes' rule on a grid: the exact mean, and the exact covariance, of one step."""
    line = GaussianMixture([0.4, 0.6], torch.tensor([[-1.0], [0.8]]).double(), [[[0.5]], [[0.2]]], labels=[0, 1])
    grid, x, moments = torch.linspace(-9, 9, 9001, dtype=torch.float64), torch.tensor([[0.6]]).double(), []
    for prior in (line, line.given(1)):
        shares = (prior.log_prob(grid[:, None]) - (x[0] - alpha * grid) ** 2 / (2 * sigma**2)).softmax(0)
        moments.append((shares @ grid, shares @ (grid - shares @ grid) ** 2))
    later = line.noised(alpha, sigma)
    shift = sigma**2 / alpha * later.class_gradient(x, 1)[0, 0]
    assert abs(float(moments[1][0] - moments[0][0] - shift)) < 1e-6
    width = (sigma / alpha) ** 2 * (1 + sigma**2 * later.given(1).hessian(x)[0, 0, 0])
    assert abs(float(moments[1][1] - width)) < 1e-6


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
        for steps in (40, 80)
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
    for steps in (20, 50, 100):
        for name, kernel in (("mistaken", mistaken), ("right", kernel_for(schedule, "shift"))):
            generator = torch.Generator().manual_seed(0)
            start = torch.randn(3000, 2, generator=generator, dtype=torch.float64)
            points = draw(kernel, start, time_grid(steps), generator)
            errors[name].append(float((points.mean(0) - truth).norm()))
    # 3,000 points: the standard error of each coordinate of the mean is about 0.017
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


# --- the opening and the derivation, sentence by sentence -------------------------------------------------------


LINEAR = SCHEDULES["linear"]
LINE = GaussianMixture([0.4, 0.6], torch.tensor([[-1.0], [0.8]]).double(), [[[0.5]], [[0.2]]], labels=[0, 1])
AXIS = torch.linspace(-9, 9, 6001, dtype=torch.float64)


def at(schedule, t):
    return MIXTURE.noised(schedule.alpha(t), schedule.sigma(t))


def slopes_at(bases, first, second):
    """Orders in beta: the exponents of two lists of errors, one for each of `bases`."""
    return [math.log(a / b) / math.log(bases[0] / bases[1]) for a, b in zip(first, second, strict=True)]


def test_the_cloud_given_the_label_has_moved_and_changed_its_shape():
    free, given = (kernels.exact(MIXTURE, LINEAR, label)(X, 0.6, 0.3) for label in (None, LABEL))
    assert float((free.mean - given.mean).norm(dim=1).min()) > 0.05
    assert float((free.cov / given.cov - 1).diagonal(dim1=1, dim2=2).abs().amax(1).min()) > 0.02


def test_across_a_small_cloud_the_log_classifier_is_nearly_straight_and_across_a_large_one_it_is_not():
    bent = []  # share of the variance of log p(y | x_s) across the cloud that no straight slope explains
    for s in (0.599, 0.59, 0.2):
        nodes, weights = divergence.step_nodes(kernels.exact(MIXTURE, LINEAR)(X[:1], 0.6, s), order=10)
        cloud, weights = nodes[:, 0], weights[:, 0]
        values, root = at(LINEAR, s).class_log_prob(cloud, LABEL), weights.sqrt()[:, None]
        design = torch.cat([torch.ones_like(cloud[:, :1]), cloud], 1)
        fitted = design @ torch.linalg.lstsq(root * design, root * values[:, None]).solution
        spread = weights @ (values - weights @ values).square()
        bent.append(float(weights @ (values - fitted[:, 0]).square() / spread))
    assert bent[0] < 0.01 and bent[2] > 0.1 and bent == sorted(bent)


def test_the_slope_measured_at_x_t_is_not_the_slope_where_a_large_cloud_is():
    grad, cloud = grad_under(LINEAR), kernels.exact(MIXTURE, LINEAR)(X, 0.6, 0.2)
    assert float((grad(X, 0.6) - grad(cloud.mean, 0.2)).norm(dim=1).min()) > 0.1


@pytest.mark.equation("eq-complete-square")
def test_weighing_a_bell_by_a_slope_slides_it_uphill_by_slope_times_variance_and_does_nothing_else():
    mu, slope, slid = 0.3, 0.8, []
    for variance in (0.1, 0.7):
        weighed = torch.exp(-((AXIS - mu) ** 2) / (2 * variance) + slope * AXIS)
        heavier, lighter = (weighed[torch.argmin((AXIS - mu - side).abs())] for side in (0.3, -0.3))
        assert heavier > lighter
        shares = weighed / weighed.sum()
        centre = shares @ AXIS
        moments = [float(shares @ (AXIS - centre) ** k) for k in (2, 3, 4)]
        assert abs(float(centre) - mu - slope * variance) < 1e-9
        assert max(abs(m - want) for m, want in zip(moments, (variance, 0, 3 * variance**2), strict=True)) < 1e-9
        slid.append(float(centre) - mu)
    assert slid[1] > slid[0] > 0


def test_a_nudge_of_x_t_weighs_the_cloud_by_a_slope_along_the_nudge():
    t, s, nudge = 0.6, 0.25, torch.tensor([[0.03, -0.02]], dtype=torch.float64)
    step, (alpha_ts, sigma_ts) = kernels.exact(MIXTURE, LINEAR), LINEAR.transition(t, s)
    cloud = torch.randn(50, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    weight = (step(X[:1] + nudge, t, s).log_prob(cloud) - step(X[:1], t, s).log_prob(cloud))[:, 0]
    rest = weight - cloud[:, 0] @ (alpha_ts / sigma_ts**2 * nudge[0])
    assert float((rest - rest[0]).abs().max()) < 1e-10


@pytest.mark.equation("eq-bayes-step")
def test_given_the_cleaner_point_the_noisier_one_says_nothing_more_about_the_class():
    t, s = 0.7, 0.3
    x_s = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
    free, given = (kernels.exact(MIXTURE, LINEAR, label)(X, t, s).log_prob(x_s.expand(4, 2)) for label in (None, LABEL))
    of_both = given - free + at(LINEAR, t).class_log_prob(X, LABEL)  # log p(y | x_s, x_t), for four x_t
    assert float((of_both - at(LINEAR, s).class_log_prob(x_s, LABEL)).abs().max()) < 1e-10


def test_a_gaussian_times_a_classifier_is_no_gaussian():
    product = -((AXIS - 0.1) ** 2) / 0.8 + LINE.class_log_prob(AXIS[:, None], 1)
    shares = product.softmax(0)
    centred = AXIS - shares @ AXIS
    assert abs(float(shares @ centred**3 / (shares @ centred**2) ** 1.5)) > 0.1  # the skewness of a Gaussian is 0


def test_the_slope_points_to_the_upper_right_but_the_bell_moves_straight_up_along_its_long_axis_further():
    cov, g = torch.tensor([[0.6, -0.4], [-0.4, 0.5]], dtype=torch.float64), torch.tensor([0.7, 1.1]).double()
    moved = FullGaussian(torch.zeros(1, 2).double(), cov[None]).tilted(g[None]).mean[0]
    assert bool((g > 0.5).all()) and abs(float(moved[0])) < 0.1 * float(moved[1])
    short, long = (float((axis @ moved) / (axis @ g)) for axis in torch.linalg.eigh(cov).eigenvectors.T)
    assert long > 3 * short > 0  # how far the same slope moves it, along each axis


@every_schedule
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpms_step_has_the_models_mean_one_variance_and_no_noise_and_no_shift_in_the_last_step(schedule, variance):
    plain, guided = kernel_for(schedule, "no shift", variance), kernel_for(schedule, "shift", variance)
    for s in (0.2, 0.0):
        assert float((plain(X, 0.6, s).mean - kernels.exact(MIXTURE, schedule)(X, 0.6, s).mean).abs().max()) < 1e-12
        assert plain(X, 0.6, s).var.numel() == 1
    assert float(plain(X, 0.6, 0.0).var) == 0 and torch.equal(guided(X, 0.6, 0.0).mean, plain(X, 0.6, 0.0).mean)
    assert not torch.equal(guided(X, 0.6, 0.2).mean, plain(X, 0.6, 0.2).mean)


@every_schedule
@pytest.mark.equation("eq-second-order")
def test_the_derivative_of_the_mean_is_alpha_over_beta_times_the_covariance(schedule):
    t, s, h = 0.5, 0.3, 1e-5
    step, (alpha_ts, sigma_ts) = kernels.exact(MIXTURE, schedule, LABEL), schedule.transition(t, s)
    for k, unit in enumerate(torch.eye(2).double()):
        slope = (step(X + h * unit, t, s).mean - step(X - h * unit, t, s).mean) / (2 * h)
        assert float((slope - alpha_ts / sigma_ts**2 * step(X, t, s).cov[:, k]).abs().max()) < 1e-8


@every_schedule
def test_noise_adds_up(schedule):
    t, s = 0.5, 0.3
    alpha_ts, sigma_ts = schedule.transition(t, s)
    old, new = schedule.sigma(s) ** 2, schedule.sigma(t) ** 2
    assert abs(float(new - alpha_ts**2 * old - sigma_ts**2)) < 1e-14
    assert abs(float(1 - sigma_ts**2 / new - alpha_ts**2 * old / new)) < 1e-14


# --- how large is what is left ----------------------------------------------------------------------------------


def test_gaussians_are_half_the_squared_distance_over_beta_apart_and_a_quarter_of_the_squared_misfit_of_covariance():
    beta, delta = 0.03, torch.tensor([0.02, -0.05], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal
    kl, identity = torch.distributions.kl_divergence, torch.eye(2).double()
    apart = kl(normal(delta, beta * identity), normal(0 * delta, beta * identity))
    assert abs(float(apart) - float(delta.square().sum()) / (2 * beta)) < 1e-12
    misfit = 1e-4 * torch.tensor([[1.0, 0.6], [0.6, -0.7]], dtype=torch.float64)
    bent = kl(normal(0 * delta, beta * (identity + misfit)), normal(0 * delta, beta * identity))
    assert abs(float(bent / (misfit.square().sum() / 4)) - 1) < 1e-3


@every_schedule
@pytest.mark.parametrize(("variance", "c"), [("small", None), ("large", 1.0)])
def test_a_short_step_misses_the_mean_by_beta_g_without_a_shift_by_beta_squared_with_one_and_its_shape_by_beta_squared(
    schedule, variance, c
):
    t, identity, errors, lengths = 0.5, torch.eye(2).double(), [], []
    g, curvature = grad_under(schedule)(X, t), at(schedule, t).given(LABEL).hessian(X)
    c = 1 / float(schedule.sigma(t)) ** 2 if c is None else c
    for s in (t - 1e-3, t - 1e-4):
        beta = float(schedule.transition(t, s)[1] ** 2)
        exact = kernels.exact(MIXTURE, schedule, LABEL)(X, t, s)
        plain, shifted = (kernel_for(schedule, name, variance)(X, t, s) for name in ("no shift", "shift"))
        true_cov = beta * (identity + beta * (identity + curvature))
        own_var = beta * (1 + beta * (1 - c))
        missed = beta**2 * (curvature + c * identity)
        lengths.append(beta)
        errors.append([
            float((exact.mean - plain.mean - beta * g).abs().max()),
            float((exact.mean - shifted.mean).abs().max()),
            float((exact.cov - true_cov).abs().max()),
            abs(float(plain.var) - own_var) + 1e-12 * beta**3,
            float((exact.cov - plain.var * identity - missed).abs().max()),
        ])  # fmt: skip
    orders = slopes_at(lengths, *errors)
    wanted = [2, 2, 3, 3, 3]
    assert max(abs(found - want) for found, want in zip(orders, wanted, strict=True)) < 0.05


def test_the_small_variance_is_beta_over_one_minus_beta_times_one_minus_beta_over_sigma_squared():
    t, s = 0.5, 0.2
    beta = float(LINEAR.transition(t, s)[1] ** 2)
    by_hand = beta / (1 - beta) * (1 - beta / float(LINEAR.sigma(t)) ** 2)
    assert abs(float(kernels.posterior_variance(LINEAR, t, s)) - by_hand) < 1e-14


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_place_of_the_gradient_moves_only_the_mean_by_order_beta_squared(variance):
    moved, lengths = [], []
    for s in (0.499, 0.4999):
        here, *others = (
            kernel_for(LINEAR, "shift", variance, *place)(X, 0.5, s) for place in (("x", "t"), ("mu", "s"), ("mu", "t"))
        )
        assert all(torch.equal(other.var, here.var) for other in others)
        moved.append([float((other.mean - here.mean).abs().max()) for other in others])
        lengths.append(float(LINEAR.transition(0.5, s)[1] ** 2))
    assert all(abs(order - 2) < 0.05 for order in slopes_at(lengths, *moved))


def test_mean_errors_of_the_shift_point_the_same_way_in_every_step_against_the_gradient():
    for variance in ("small", "large"):
        for t, s in ((0.9, 0.8), (0.5, 0.45), (0.2, 0.1)):
            exact = kernels.exact(MIXTURE, LINEAR, LABEL)(X, t, s).mean
            error = kernel_for(LINEAR, "shift", variance)(X, t, s).mean - exact
            along = torch.nn.functional.cosine_similarity(error, grad_under(LINEAR)(X, t))
            assert float((along + 1).abs().max()) < 1e-9


@pytest.mark.equation("eq-path-kl")
def test_the_divergence_of_the_path_bounds_that_of_its_end_points():
    t, s = 0.5, 0.35
    x, shares = divergence.mixture_nodes(at(LINEAR, t).given(LABEL), order=20)
    for name in ("no shift", "shift"):
        step = kernel_for(LINEAR, name)(x, t, s)
        path = float(shares @ divergence.kl(kernels.exact(MIXTURE, LINEAR, LABEL)(x, t, s), step))
        end, weights = divergence.mixture_nodes(at(LINEAR, s).given(LABEL), order=12)
        arrived = (step.log_prob(end[:, None].expand(-1, len(x), 2)) + shares.log()).logsumexp(1)
        ends = float(weights @ (at(LINEAR, s).given(LABEL).log_prob(end) - arrived))
        assert 0 < ends < 0.8 * path


# --- Deeper -----------------------------------------------------------------------------------------------------


def log_class(x, t):
    return at(LINEAR, t).class_log_prob(x, LABEL)


@pytest.mark.equation("eq-taylor")
def test_with_the_time_term_the_error_falls_as_the_square_of_the_distance_without_it_only_as_the_distance():
    expansion, aside, errors = guidance.linearise(log_class, X, 0.5), X.flip(0) - X, []
    for distance in (1e-2, 1e-3):
        point, time = X + distance * aside, 0.5 - 0.3 * distance
        errors.append([float((expansion(point, u) - log_class(point, time)).abs().max()) for u in (time, 0.5)])
    orders = slopes_at((1e-2, 1e-3), *errors)
    assert abs(orders[0] - 2) < 0.1 and abs(orders[1] - 1) < 0.1


@pytest.mark.equation("eq-taylor")
def test_the_time_term_does_not_depend_on_x_s_and_normalisation_removes_it():
    expansion = guidance.linearise(log_class, X[:1], 0.5)
    cloud = torch.randn(30, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    model = -cloud[:, 0].square().sum(1) / 0.2
    with_term, without = ((model + expansion(cloud, s)[:, 0]).softmax(0) for s in (0.45, 0.5))
    assert float((with_term / without - 1).abs().max()) < 1e-9
    assert float((expansion(cloud, 0.45) - expansion(cloud, 0.5)).abs().max()) > 1e-3  # the value does change


def test_the_table_of_ddpm_has_a_kink_at_every_step_of_the_table_and_the_smooth_schedule_has_none():
    h = 1e-6
    table = from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    for t, kinks in ((0.3, True), (0.3005, False), (0.641, True)):
        for schedule, has in ((table, kinks), (vp_linear(), False)):
            left, right = (float(schedule.beta(u)) for u in (t - h, t + h))
            assert (abs(right / left - 1) > 1e-3) == has


def test_in_a_short_step_the_distance_is_root_beta_and_the_time_term_as_large_as_the_second_order_in_x():
    sizes, lengths = [], []
    for s in (0.499, 0.4999):
        beta = float(LINEAR.transition(0.5, s)[1] ** 2)
        step = kernels.exact(MIXTURE, LINEAR, LABEL)(X, 0.5, s)
        cloud, weights = divergence.step_nodes(step, order=10)
        away = cloud - X
        distance = float((weights * away.square().sum(-1)).sum(0).mean().sqrt())
        assert abs(distance / math.sqrt(2 * beta) - 1) < 0.02  # two coordinates
        expansion = guidance.linearise(log_class, X, 0.5)
        time_term = float((expansion(X, s) - expansion(X, 0.5)).abs().mean())
        bend = at(LINEAR, 0.5).given(LABEL).hessian(X) - at(LINEAR, 0.5).hessian(X)
        second = float((weights * torch.einsum("mnd,nde,mne->mn", away, bend, away).abs() / 2).sum(0).mean())
        sizes.append([distance, time_term, second])
        lengths.append(beta)
    assert max(abs(a - b) for a, b in zip(slopes_at(lengths, *sizes), (0.5, 1, 1), strict=True)) < 0.03
    assert 0.2 < sizes[1][1] / sizes[1][2] < 5


@pytest.mark.parametrize("label", [None, LABEL])
def test_the_noised_density_obeys_the_fokker_planck_equation_of_exercise_7_4(label):
    t, h = 0.5, 1e-4
    rate = -2 * float(LINEAR.alpha(t + h).log() - LINEAR.alpha(t - h).log()) / (2 * h)
    shrunk, added = LINEAR.transition(t + h, t)
    assert abs(float(shrunk) - math.exp(-rate * h / 2)) < 1e-6 and abs(float(added**2) + math.expm1(-rate * h)) < 1e-6

    def p(x, time=t):
        mixture = at(LINEAR, time) if label is None else at(LINEAR, time).given(label)
        return mixture.log_prob(x).exp()

    change = (p(X, t + h) - p(X, t - h)) / (2 * h)
    drift = laplacian = 0
    for k, unit in enumerate(h * torch.eye(2).double()):
        drift = drift + ((X + unit)[:, k] * p(X + unit) - (X - unit)[:, k] * p(X - unit)) / (2 * h)
        laplacian = laplacian + (p(X + unit) - 2 * p(X) + p(X - unit)) / h**2
    assert float((change - rate / 2 * (drift + laplacian)).abs().max()) < 1e-5


@pytest.mark.equation("eq-second-order")
def test_along_a_direction_of_variance_v_the_curvature_is_minus_one_over_the_noised_variance():
    t, s = 0.2, 0.1
    variances = torch.tensor([1.0, 0.02, 1e-7], dtype=torch.float64)
    data = GaussianMixture([1.0], torch.zeros(1, 3).double(), torch.diag(variances)[None])
    x = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)
    alpha, sigma = LINEAR.alpha(t), LINEAR.sigma(t)
    curvature = data.noised(alpha, sigma).hessian(x)[0].diagonal()
    assert float((curvature + 1 / (alpha**2 * variances + sigma**2)).abs().max()) < 1e-9
    wide, between, narrow = kernels.exact(data, LINEAR)(x, t, s).cov[0].diagonal()
    small, large = kernels.posterior_variance(LINEAR, t, s), LINEAR.transition(t, s)[1] ** 2
    assert abs(float(wide / large - 1)) < 1e-9 and abs(float(narrow / small - 1)) < 1e-4
    assert 1.1 * small < between < large / 1.1
    aslant = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64) / math.sqrt(2)  # no principal axis
    full = data.noised(alpha, sigma).hessian(x)[0]
    assert float(aslant @ full @ aslant + 1 / (alpha**2 * (aslant**2 @ variances) + sigma**2)) < -0.1


@pytest.mark.equation("eq-taylor-second")
def test_the_taylor_way_gives_another_gaussian_whose_divergence_is_of_order_beta_cubed_as_well():
    def taylor(x, t, s):
        step = kernels.moment_matched(MIXTURE, LINEAR)(x, t, s)
        bend = at(LINEAR, s).given(LABEL).hessian(step.mean) - at(LINEAR, s).hessian(step.mean)
        return step.tilted(grad_under(LINEAR)(step.mean, s), bend)

    def from_the_large_variance(x, t, s):
        plain = kernel_for(LINEAR, "no shift")(x, t, s)
        step = FullGaussian(plain.mean, (plain.var * torch.eye(2).double()).expand(len(x), 2, 2))
        bend = at(LINEAR, s).given(LABEL).hessian(step.mean) - at(LINEAR, s).hessian(step.mean)
        return step.tilted(grad_under(LINEAR)(step.mean, s), bend)

    lengths = [1e-2, 1e-3]
    found, best, careless = (
        losses(LINEAR, kernel, 0.5, lengths)
        for kernel in (taylor, kernel_for(LINEAR, "second order"), from_the_large_variance)
    )
    assert abs(math.log10(found[0] / found[1]) - 3) < 0.1 and found[1] > 1.1 * best[1]
    assert math.log10(careless[0] / careless[1]) < 2.2  # not from any covariance


def test_second_derivatives_of_d_numbers_are_d_by_d_and_a_gradient_d():
    for dim in (1, 3):
        data = GaussianMixture([1.0], torch.zeros(1, dim).double(), torch.eye(dim)[None].double())
        x = torch.zeros(5, dim).double()
        assert data.hessian(x).shape == (5, dim, dim) and data.class_gradient(x, 0).shape == (5, dim)


def test_hermite_polynomials_and_their_tensor_in_the_plane_are_as_exercise_7_5_says():
    z, weights = divergence.hermite(8, 1)
    polynomials = torch.stack([z[:, 0], z[:, 0] ** 2 - 1, z[:, 0] ** 3 - 3 * z[:, 0]])
    assert float((polynomials @ weights).abs().max()) < 1e-12
    assert float(((polynomials * weights) @ polynomials.T - torch.diag(torch.tensor([1.0, 2, 6]))).abs().max()) < 1e-12
    random = torch.randn(2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    a = sum(random.permute(order) for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))) / 6
    z, weights = divergence.hermite(8, 2)
    linear = torch.einsum("iik,nk->n", a, z)
    third = torch.einsum("ijk,ni,nj,nk->n", a, z, z, z) - 3 * linear
    assert abs(float(weights @ (third * linear))) < 1e-12  # nothing of first order is left in it
    assert abs(float(weights @ third.square() - 6 * a.square().sum())) < 1e-10


@pytest.mark.equation("eq-kl")
def test_the_terms_of_the_second_form_are_positive_and_about_half_the_square_of_rho_less_one():
    rho = torch.linspace(0.05, 20, 999, dtype=torch.float64)
    assert float((rho - 1 - rho.log()).min()) >= 0
    near = 1 + torch.tensor([1e-3, -1e-3], dtype=torch.float64)
    assert float(((near - 1 - near.log()) / ((near - 1) ** 2 / 2) - 1).abs().max()) < 1e-3
    step = kernels.exact(MIXTURE, LINEAR, LABEL)(X, 0.5, 0.4)
    other = kernel_for(LINEAR, "shift")(X, 0.5, 0.4)
    nodes, weights = divergence.step_nodes(step, order=20)
    seen = (weights * (other.log_prob(nodes) - step.log_prob(nodes)).exp()).sum(0)
    assert float((seen - 1).abs().max()) < 1e-3


def test_ddpms_step_to_the_data_has_no_density():
    step = kernel_for(LINEAR, "no shift")(X, 0.2, 0.0)
    with pytest.raises(ValueError, match="a step without noise has no density"):
        step.log_prob(X + 0.1)


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
