"""Every kernel, one step at a time, against conditioning done by hand, quadrature and numpy."""

import math

import numpy as np
import pytest
import torch

from difflesson import kernels
from difflesson.denoiser import Pair, Prediction
from difflesson.guidance import classifier_free, tilt
from difflesson.kernels import FullGaussian, Gaussian
from difflesson.mixture import GaussianMixture
from difflesson.plane import four_blobs
from difflesson.schedule import cosine, from_betas, vp_linear
from tests.oracles import affine as oracle
from tests.oracles.mixtures import FOUR

BETAS = (0.2, 5.0)
SCHEDULE = vp_linear(*BETAS)
TIMES = [(0.9, 0.89), (0.9, 0.3), (0.5, 0.0), (1.0, 0.0), (0.02, 0.01)]

# One Gaussian in three dimensions, known by its axes: the oracle works along each of them by itself.
AXES = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]  # an eigenvector a column
SPREADS, CENTRE = np.array([0.2, 0.7, 3.0]), np.array([1.0, -2.0, 0.5])
GAUSSIAN = GaussianMixture(torch.ones(1).double(), torch.tensor(CENTRE)[None],
                           torch.tensor(AXES @ np.diag(SPREADS) @ AXES.T)[None])

# A mixture in the plane: full covariances, two classes of two components.
WEIGHTS, MEANS, COVS, LABELS = FOUR
MIXTURE = FOUR.mixture()
POINTS = torch.tensor([[0.0, 0.0], [0.4, -0.7], [-1.1, 0.3], [1.7, 0.9], [2.5, -1.5]], dtype=torch.float64)


def level(t):
    return oracle.linear_level(t, *BETAS)


def parts(label=None):
    """Weights, means and covariances of the mixture in the plane, or of one class, as numpy arrays."""
    chosen = slice(None) if label is None else LABELS == label
    return WEIGHTS[chosen] / WEIGHTS[chosen].sum(), MEANS[chosen], COVS[chosen]


def true_score(x, t, label=None):
    weights, means, covs = parts(label)
    return torch.tensor(oracle.mixture_score(weights, *oracle.noised(means, covs, level(t)), x.numpy()))


def max_error(got, want):
    got, want = (torch.as_tensor(a, dtype=torch.float64) for a in (got, want))
    return float((got - want).abs().max())


def covariance(step, dim):
    """The covariance of a step at its first point, whatever kind of step it is."""
    return step.var * torch.eye(dim, dtype=step.mean.dtype) if isinstance(step, Gaussian) else step.cov[0]


def fixed(x0, eps):
    """A denoiser that always answers the same."""
    return lambda x, t: Prediction(x0, eps)


DENOISER = GAUSSIAN.denoiser(SCHEDULE)
AFFINE = {
    "ddpm small": (kernels.ddpm(DENOISER, SCHEDULE), oracle.ddpm, {}),
    "ddpm large": (kernels.ddpm(DENOISER, SCHEDULE, "large"), oracle.ddpm, {"large": True}),
    "ddim 0": (kernels.ddim(DENOISER, SCHEDULE), oracle.ddim, {"eta": 0.0}),
    "ddim 0.5": (kernels.ddim(DENOISER, SCHEDULE, 0.5), oracle.ddim, {"eta": 0.5}),
    "ddim 1": (kernels.ddim(DENOISER, SCHEDULE, 1.0), oracle.ddim, {"eta": 1.0}),
    "heun": (kernels.heun(DENOISER, SCHEDULE), oracle.heun, {}),
    "exact": (kernels.exact(GAUSSIAN, SCHEDULE), oracle.exact, {}),
    "hessian": (kernels.moment_matched(GAUSSIAN, SCHEDULE), oracle.exact, {}),
}


def line_errors(kernel, t, s, lines):
    """Largest errors of a kernel's matrix, offset and covariance against one oracle line a direction.

    Probed at 0 and at the unit vectors, which tells an affine map, and far away, which checks it.
    """
    probes = torch.cat([torch.zeros(1, 3), torch.eye(3), 100 * torch.ones(1, 3)]).double()
    step = kernel(probes, torch.tensor(t, dtype=torch.float64), torch.tensor(s, dtype=torch.float64))
    offset, matrix = step.mean[0], (step.mean[1:4] - step.mean[0]).T
    gains, offsets, variances = (np.array(part) for part in zip(*lines, strict=True))
    return (
        max_error(matrix, AXES @ np.diag(gains) @ AXES.T),
        max_error(offset, AXES @ offsets),
        max_error(covariance(step, 3), AXES @ np.diag(variances) @ AXES.T),
        max_error(step.mean[4], 100 * matrix.sum(1) + offset) / 100,
    )


@pytest.mark.equation("eq-ddpm")
@pytest.mark.equation("eq-ddim")
@pytest.mark.equation("eq-heun")
@pytest.mark.equation("eq-exact-reverse")
@pytest.mark.equation("eq-second-order")
@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("times", TIMES)
def test_a_step_on_a_gaussian_is_the_affine_map_derived_by_hand(name, times):
    kernel, line, options = AFFINE[name]
    t, s = map(level, times)
    centre = AXES.T @ CENTRE
    lines = [line(m, c, t, s, **options) for m, c in zip(centre, SPREADS, strict=True)]
    assert max(line_errors(kernel, *times, lines)) < 1e-12


@pytest.mark.equation("eq-reverse-sde")
@pytest.mark.parametrize("rho", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("times", TIMES)
def test_a_reverse_sde_step_on_a_gaussian_is_the_affine_map_derived_by_hand(rho, times):
    t, s = times
    rate = BETAS[0] + t * (BETAS[1] - BETAS[0])
    centre = AXES.T @ CENTRE
    lines = [
        oracle.reverse_sde(m, c, level(t), rate, t - s, rho, last=s == 0) for m, c in zip(centre, SPREADS, strict=True)
    ]
    assert max(line_errors(kernels.reverse_sde(DENOISER, SCHEDULE, rho), t, s, lines)) < 1e-12


@pytest.mark.equation("eq-dpmpp-2m")
@pytest.mark.parametrize("times", [[0.9, 0.4], [1.0, 0.8, 0.7, 0.3, 0.02], [0.5, 0.45, 0.1]])
def test_a_dpmpp_2m_run_on_a_gaussian_is_the_two_term_recursion(times):
    kernel = kernels.dpmpp_2m(DENOISER, SCHEDULE).start()
    x = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    for t, s in zip(torch.tensor(times).double()[:-1], torch.tensor(times).double()[1:], strict=True):
        x = kernel(x, t, s).mean
    levels = [level(float(t)) for t in torch.tensor(times).double()]
    lines = [oracle.dpmpp_2m_run(m, c, levels) for m, c in zip(AXES.T @ CENTRE, SPREADS, strict=True)]
    gains, offsets, _ = (np.array(part) for part in zip(*lines, strict=True))
    assert max_error((x[1:] - x[0]).T, AXES @ np.diag(gains) @ AXES.T) < 1e-12
    assert max_error(x[0], AXES @ offsets) < 1e-12


@pytest.mark.equation("eq-posterior-variance")
@pytest.mark.parametrize("schedule", [SCHEDULE, cosine(), from_betas(torch.linspace(1e-4, 0.02, 100))])
def test_posterior_variance_adds_the_precisions_of_prior_and_observation(schedule):
    for t, s in [(1.0, 0.5), (0.5, 0.01), (0.73, 0.7), (0.02, 0.01)]:
        alpha_t, alpha_s = float(schedule.alpha(t)), float(schedule.alpha(s))
        noise = 1 - (alpha_t / alpha_s) ** 2
        precision = 1 / (1 - alpha_s**2) + (alpha_t / alpha_s) ** 2 / noise
        assert abs(float(kernels.posterior_variance(schedule, t, s)) - 1 / precision) < 1e-12
    assert float(kernels.posterior_variance(vp_linear(), 0.5, 0.0)) == 0


@pytest.mark.equation("eq-ddpm")
def test_ddpm_small_is_exact_for_a_point_and_large_for_standard_normal_data():
    t, s = level(0.8), level(0.3)
    x = torch.tensor([[0.7, -0.2]], dtype=torch.float64)
    for variance, spread in (("small", 1e-14), ("large", 1.0)):
        cov = spread * torch.eye(2).double()
        data = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 2).double(), cov[None])
        step = kernels.ddpm(data.denoiser(SCHEDULE), SCHEDULE, variance)(x, 0.8, 0.3)
        want = oracle.exact(0.0, spread, t, s)
        assert max_error(step.mean, want.gain * x) < 1e-12
        assert abs(float(step.var) - want.var) < 1e-12


@pytest.mark.equation("eq-ddim")
@pytest.mark.parametrize("times", TIMES)
def test_ddim_with_eta_one_is_ddpm(times):
    denoiser, x = MIXTURE.denoiser(SCHEDULE, label=1), POINTS
    a, b = kernels.ddim(denoiser, SCHEDULE, 1.0)(x, *times), kernels.ddpm(denoiser, SCHEDULE)(x, *times)
    assert max_error(a.mean, b.mean) < 1e-13
    assert abs(float(a.var) - float(b.var)) < 1e-15


def test_ddim_without_noise_is_the_probability_flow_step_up_to_second_order_of_the_step():
    denoiser, lengths, gaps = MIXTURE.denoiser(SCHEDULE), [0.04, 0.02, 0.01, 0.005], []
    ddim, flow = kernels.ddim(denoiser, SCHEDULE), kernels.reverse_sde(denoiser, SCHEDULE, 0.0)
    for length in lengths:
        gaps.append(max_error(ddim(POINTS, 0.5, 0.5 - length).mean, flow(POINTS, 0.5, 0.5 - length).mean))
    assert abs(oracle.slope(1 / np.array(lengths), gaps) - 2) < 0.1
    assert gaps[-1] < 1e-3


@pytest.mark.equation("eq-heun")
def test_heun_corrects_a_ddim_step_with_one_more_evaluation_at_its_end():
    ideal, calls = MIXTURE.denoiser(SCHEDULE), []

    def denoiser(x, t):
        calls.append((x, float(t)))
        return ideal(x, t)

    step = kernels.heun(denoiser, SCHEDULE)(POINTS, 0.6, 0.5)
    first = kernels.ddim(ideal, SCHEDULE)(POINTS, 0.6, 0.5)
    assert [t for _, t in calls] == [0.6, 0.5]
    assert max_error(calls[1][0], first.mean) < 1e-14
    assert float(step.var) == 0
    assert max_error(step.mean, first.mean) > 1e-3  # the correction is there


def test_heun_and_dpmpp_2m_fall_back_to_ddim_in_a_step_to_no_noise():
    ideal, calls = MIXTURE.denoiser(SCHEDULE), []

    def denoiser(x, t):
        calls.append(float(t))
        return ideal(x, t)

    want = ideal(POINTS, 0.2).x0
    run = kernels.dpmpp_2m(ideal, SCHEDULE).start()
    run(POINTS + 1, 0.4, 0.2)  # a memory, which the last step must not use
    assert max_error(kernels.heun(denoiser, SCHEDULE)(POINTS, 0.2, 0.0).mean, want) < 1e-14
    assert max_error(kernels.ddim(ideal, SCHEDULE)(POINTS, 0.2, 0.0).mean, want) < 1e-14
    assert max_error(run(POINTS, 0.2, 0.0).mean, want) < 1e-14
    assert calls == [0.2]


@pytest.mark.equation("eq-heun")
def test_heun_asks_once_in_the_step_to_the_data_also_where_some_noise_is_left_there():
    """On the cosine schedule sigma(0) is 4.5e-5: whether the step is the last one is a matter of s, not of sigma."""
    schedule, calls = cosine(), []
    ideal = MIXTURE.denoiser(schedule)

    def denoiser(x, t):
        calls.append(float(t))
        return ideal(x, t)

    step = kernels.heun(denoiser, schedule)(POINTS, 0.2, 0.0)
    assert calls == [0.2] and 0 < float(schedule.sigma(0.0)) < 1e-4
    assert max_error(step.mean, kernels.ddim(ideal, schedule)(POINTS, 0.2, 0.0).mean) < 1e-14


@pytest.mark.equation("eq-ddim")
@pytest.mark.parametrize("t", [0.9, 0.5])
def test_ddim_takes_every_eta_up_to_the_largest_and_none_above(t):
    """The largest makes all of sigma_s fresh noise: `sigma_t / sigma_{t|s}`, itself rounded to either side of that."""
    origin, here = torch.zeros(1, 3).double(), level(t)
    for s in np.linspace(0.02, t - 0.02, 40):
        there = level(float(s))
        largest = here.sigma / math.sqrt(1 - (here.alpha / there.alpha) ** 2)
        for eta in (largest, largest * (1 - 1e-9)):
            assert abs(float(kernels.ddim(DENOISER, SCHEDULE, eta)(origin, t, s).var) - there.sigma**2) < 1e-8
        with pytest.raises(ValueError, match="^eta must be smaller for a step from"):
            kernels.ddim(DENOISER, SCHEDULE, largest * (1 + 1e-9))(origin, t, s)


@pytest.mark.equation("eq-dpmpp-2m")
def test_dpmpp_2m_starts_with_a_ddim_step_and_outside_a_run_it_has_no_memory_to_use():
    denoiser = MIXTURE.denoiser(SCHEDULE)
    kernel, ddim = kernels.dpmpp_2m(denoiser, SCHEDULE), kernels.ddim(denoiser, SCHEDULE)
    with pytest.raises(ValueError, match="dpmpp_2m has a memory, which belongs to one run"):
        kernel(POINTS, 0.9, 0.5)
    run = kernel.start()
    assert max_error(run(POINTS, 0.9, 0.5).mean, ddim(POINTS, 0.9, 0.5).mean) < 1e-13
    assert max_error(run(POINTS, 0.5, 0.4).mean, ddim(POINTS, 0.5, 0.4).mean) > 1e-2


def quadrature(x, t, s, label):
    """Mean and covariance of p(x_s | x_t = x) by Bayes' rule on a grid, exact for such smooth densities."""
    weights, means, covs = parts(label)
    ticks = np.linspace(-9, 9, 361)
    grid = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
    at_t, at_s = level(t), level(s)
    a = at_t.alpha / at_s.alpha
    likelihood = np.exp(-((x - a * grid) ** 2).sum(-1) / 2 / (1 - a**2))
    mass = oracle.mixture_density(weights, *oracle.noised(means, covs, at_s), grid) * likelihood
    mass /= mass.sum()
    mean = mass @ grid
    return mean, (grid - mean).T @ ((grid - mean) * mass[:, None])


@pytest.mark.equation("eq-exact-reverse")
@pytest.mark.equation("eq-second-order")
@pytest.mark.parametrize("label", [None, 0, 1])
@pytest.mark.parametrize("times", [(0.9, 0.1), (0.5, 0.4), (0.4, 0.2)])
def test_exact_and_hessian_kernels_have_the_moments_of_bayes_rule_on_a_grid(label, times):
    exact = kernels.exact(MIXTURE, SCHEDULE, label)(POINTS, *times)
    hessian = kernels.moment_matched(MIXTURE, SCHEDULE, label)(POINTS, *times)
    assert max_error(hessian.mean, exact.mean) < 1e-10
    assert max_error(hessian.cov, exact.cov) < 1e-10
    for i, point in enumerate(POINTS.numpy()):
        mean, cov = quadrature(point, *times, label)
        assert max_error(exact.mean[i], mean) < 1e-10
        assert max_error(exact.cov[i], cov) < 1e-10


@pytest.mark.equation("eq-exact-reverse")
@pytest.mark.parametrize("label", [None, 1])
def test_the_density_of_the_exact_kernel_is_bayes_rule(label):
    t, s = 0.7, 0.25
    weights, means, covs = parts(label)
    a = level(t).alpha / level(s).alpha
    ys = POINTS.flip(0) * 0.8
    distance = ((POINTS - a * ys) ** 2).sum(-1).numpy()
    forward = np.exp(-distance / 2 / (1 - a**2)) / (2 * math.pi * (1 - a**2))
    at_s = oracle.mixture_density(weights, *oracle.noised(means, covs, level(s)), ys.numpy())
    at_t = oracle.mixture_density(weights, *oracle.noised(means, covs, level(t)), POINTS.numpy())
    got = kernels.exact(MIXTURE, SCHEDULE, label)(POINTS, t, s).log_prob(ys)
    assert max_error(got, np.log(at_s * forward / at_t)) < 1e-11


@pytest.mark.equation("eq-second-order")
@pytest.mark.parametrize("times", TIMES)
def test_tweedies_formula_holds_for_one_step_given_a_label(times):
    t, s = times
    a = level(t).alpha / level(s).alpha
    for label in (None, 0, 1):
        want = (POINTS + (1 - a**2) * true_score(POINTS, t, label)) / a
        assert max_error(kernels.exact(MIXTURE, SCHEDULE, label)(POINTS, t, s).mean, want) < 1e-11
        assert max_error(kernels.moment_matched(MIXTURE, SCHEDULE, label)(POINTS, t, s).mean, want) < 1e-11
    want = (POINTS + (1 - a**2) * true_score(POINTS, t)) / a
    assert max_error(kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE)(POINTS, t, s).mean, want) < 1e-11


# Guidance as a shift of the mean.


def class_gradient(x, t):
    """`grad log p_t(1 | x)` in numpy."""
    return true_score(x, float(t), 1) - true_score(x, float(t))


@pytest.mark.equation("eq-mean-shift")
@pytest.mark.parametrize("at", ["x", "mu"])
@pytest.mark.parametrize("time", [None, "t", "s"])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_shift_adds_gamma_times_the_variance_times_the_gradient_at_the_named_place(at, time, variance):
    t, s, gamma = 0.6, 0.45, -2.5
    a = level(t).alpha / level(s).alpha
    noise = 1 - a**2
    mu = (POINTS + noise * true_score(POINTS, t)) / a
    place = POINTS if at == "x" else mu
    when = {"t": t, "s": s, None: t if at == "x" else s}[time]
    var = noise if variance == "large" else noise * (level(s).sigma / level(t).sigma) ** 2
    plain = kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, variance)
    step = kernels.shift(plain, class_gradient, gamma, at=at, time=time)(POINTS, t, s)
    assert max_error(step.mean, mu + gamma * var * class_gradient(place, when)) < 1e-12
    assert abs(float(step.var) - var) < 1e-13


@pytest.mark.equation("eq-mean-shift")
@pytest.mark.parametrize(
    ("at", "time", "variance", "order"),
    [(None, None, "small", 1), ("x", "t", "small", 2), ("x", "t", "large", 2), ("x", "s", "small", 2),
     ("mu", "s", "small", 2), ("mu", "t", "small", 2), ("mu", "s", "large", 2)],
)
def test_a_shift_finds_the_conditional_mean_one_order_better_than_no_shift(at, time, variance, order):
    kernel = kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, variance)
    if at is not None:
        kernel = kernels.shift(kernel, class_gradient, 1.0, at=at, time=time)
    lengths, errors = [0.02, 0.01, 0.005, 0.0025], []
    for length in lengths:
        t, s = 0.5, 0.5 - length
        a = level(t).alpha / level(s).alpha
        truth = (POINTS + (1 - a**2) * true_score(POINTS, t, 1)) / a
        errors.append(max_error(kernel(POINTS, t, s).mean, truth))
    assert abs(oracle.slope(1 / np.array(lengths), errors) - order) < 0.15


@pytest.mark.equation("eq-mean-shift")
@pytest.mark.parametrize("at", ["x", "mu"])
def test_a_shift_of_a_full_gaussian_multiplies_by_its_covariance(at):
    t, s, gamma = 0.8, 0.3, 1.5
    step = kernels.shift(kernels.moment_matched(MIXTURE, SCHEDULE), class_gradient, gamma, at=at)(POINTS, t, s)
    for i, point in enumerate(POINTS.numpy()):
        mean, cov = quadrature(point, t, s, None)
        g = class_gradient(torch.tensor(point if at == "x" else mean)[None], t if at == "x" else s)[0].numpy()
        assert max_error(step.mean[i], mean + gamma * cov @ g) < 1e-9
        assert max_error(step.cov[i], cov) < 1e-10
        assert abs(cov[0, 1]) > 1e-3  # so a scalar, or the diagonal, would be caught


def test_a_shift_dies_with_the_variance_and_a_tilt_does_not():
    plain = MIXTURE.denoiser(SCHEDULE)
    want = kernels.ddim(plain, SCHEDULE)(POINTS, 0.6, 0.5).mean
    shifted = kernels.shift(kernels.ddim(plain, SCHEDULE), class_gradient, 5.0)(POINTS, 0.6, 0.5)
    tilted = kernels.ddim(tilt(plain, class_gradient, 5.0, SCHEDULE), SCHEDULE)(POINTS, 0.6, 0.5)
    assert torch.equal(shifted.mean, want)
    assert max_error(tilted.mean, want) > 0.1


def test_a_tilt_at_gamma_one_is_the_conditional_kernel_whatever_the_kernel():
    tilted = tilt(MIXTURE.denoiser(SCHEDULE), class_gradient, 1.0, SCHEDULE)
    given = MIXTURE.denoiser(SCHEDULE, label=1)
    for make in (kernels.ddpm, kernels.ddim, kernels.reverse_sde, kernels.heun, kernels.dpmpp_2m):
        a, b = (make(denoiser, SCHEDULE).start()(POINTS, 0.6, 0.4) for denoiser in (tilted, given))
        assert max_error(a.mean, b.mean) < 1e-12


def test_a_shift_by_gamma_zero_changes_nothing():
    for kernel in (kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE), kernels.moment_matched(MIXTURE, SCHEDULE)):
        shifted = kernels.shift(kernel, class_gradient, 0.0)
        assert torch.equal(shifted(POINTS, 0.6, 0.4).mean, kernel(POINTS, 0.6, 0.4).mean)


# Drawing from a step. Of n draws the mean must come within 5 / sqrt(n) standard deviations and the variance
# within 5 sqrt(2 / n) of itself: level 6e-7 each, 3e-5 for the file. The seed is fixed.


def test_draws_have_the_mean_and_the_covariance_that_the_step_states():
    n, generator = 40_000, torch.Generator().manual_seed(0)
    for data in (MIXTURE, GAUSSIAN):  # axes in the plane can equal their transpose, those in space do not
        ddpm = kernels.ddpm(data.denoiser(SCHEDULE), SCHEDULE)
        for kernel in (ddpm, kernels.moment_matched(data, SCHEDULE), kernels.exact(data, SCHEDULE)):
            step = kernel(torch.full((n, data.dim), -0.5).double(), 0.8, 0.3)
            cov, draws = covariance(step, data.dim), step.sample(generator)
            white = torch.linalg.solve(torch.linalg.cholesky(cov), (draws - step.mean).T)
            assert draws.shape == (n, data.dim)
            assert max_error(white.mean(1), torch.zeros(data.dim)) < 5 / math.sqrt(n)
            assert max_error(white @ white.T / n, torch.eye(data.dim)) < 5 * math.sqrt(2 / n)


def test_every_point_and_coordinate_gets_its_own_noise():
    step = Gaussian(torch.zeros(500, 2, 3).double(), torch.tensor(4.0).double())
    draws = step.sample(torch.Generator().manual_seed(0)).flatten()
    assert len(draws.unique()) == 3000
    assert abs(float(draws.var()) - 4) < 4 * 5 * math.sqrt(2 / 3000)


def test_a_step_without_variance_needs_no_generator_and_one_with_variance_asks_for_it():
    mean = torch.ones(2, 2).double()
    assert torch.equal(Gaussian(mean, torch.zeros(())).sample(None), mean)
    with pytest.raises(ValueError, match="generator"):
        Gaussian(mean, torch.tensor(1e-9)).sample(None)
    with pytest.raises(ValueError, match="generator"):
        FullGaussian(mean, torch.eye(2).double().expand(2, 2, 2)).sample(None)
    with pytest.raises(ValueError, match="generator"):
        kernels.exact(MIXTURE, SCHEDULE)(POINTS, 0.5, 0.4).sample(None)


def test_a_singular_covariance_can_be_drawn_from():
    cov = torch.tensor([[1.0, 1.0], [1.0, 1.0]]).double().expand(7, 2, 2)
    draws = FullGaussian(torch.zeros(7, 2).double(), cov).sample(torch.Generator().manual_seed(0))
    assert torch.isfinite(draws).all()
    assert max_error(draws[:, 0], draws[:, 1]) < 1e-7
    zero = FullGaussian(torch.ones(7, 2).double(), 0 * cov).sample(torch.Generator().manual_seed(0))
    assert torch.equal(zero, torch.ones(7, 2).double())


# Any data shape, bad input.


def test_gaussian_kernels_take_images_and_a_batch_of_one():
    x = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    x0, eps = x + 1, x - 1
    for make in (kernels.ddpm, kernels.ddim, kernels.reverse_sde, kernels.heun, kernels.dpmpp_2m):
        step = make(fixed(x0, eps), SCHEDULE).start()(x, 0.5, 0.4)
        assert step.mean.shape == x.shape


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("variance", lambda d: kernels.ddpm(d, SCHEDULE, "medium")),
        ("eta", lambda d: kernels.ddim(d, SCHEDULE, -0.1)),
        ("eta", lambda d: kernels.ddim(d, SCHEDULE, math.nan)),
        ("rho", lambda d: kernels.reverse_sde(d, SCHEDULE, math.inf)),
        ("rho", lambda d: kernels.reverse_sde(d, SCHEDULE, -1.0)),
        ("at", lambda d: kernels.shift(kernels.ddpm(d, SCHEDULE), class_gradient, 1.0, at="y")),
        ("time", lambda d: kernels.shift(kernels.ddpm(d, SCHEDULE), class_gradient, 1.0, time="u")),
        ("gamma", lambda d: kernels.shift(kernels.ddpm(d, SCHEDULE), class_gradient, math.nan)),
        ("gamma", lambda d: kernels.shift(kernels.ddpm(d, SCHEDULE), class_gradient, torch.ones(3))(POINTS, 0.9, 0.3)),
        ("label", lambda d: kernels.exact(MIXTURE, SCHEDULE, 2)),
        ("label", lambda d: kernels.moment_matched(MIXTURE, SCHEDULE, -1)),
        ("eta", lambda d: kernels.ddim(d, SCHEDULE, 3.0)(POINTS, 0.9, 0.3)),
        ("s must", lambda d: kernels.ddpm(d, SCHEDULE)(POINTS, 0.3, 0.9)),
        ("s must", lambda d: kernels.exact(MIXTURE, SCHEDULE)(POINTS, 0.3, 0.9)),
        ("s must", lambda d: kernels.moment_matched(MIXTURE, SCHEDULE)(POINTS, 0.3, 0.9)),
        ("s must", lambda d: kernels.ddim(d, SCHEDULE, 0.5)(POINTS, 0.3, 0.9)),
        ("s must", lambda d: kernels.reverse_sde(d, SCHEDULE)(POINTS, 0.3, 0.9)),
        ("t and s", lambda d: kernels.ddim(d, SCHEDULE)(POINTS, torch.full((5,), 0.9), 0.3)),
        ("denoiser", lambda d: kernels.ddim(lambda x, t: Prediction(x[:, :1], x), SCHEDULE)(POINTS, 0.9, 0.3)),
        ("denoiser", lambda d: kernels.ddpm(lambda x, t: Prediction(x, x[0]), SCHEDULE)(POINTS, 0.9, 0.3)),
        ("t must", lambda d: kernels.ddpm(d, SCHEDULE)(POINTS, 1.3, 0.9)),
    ],
)
def test_bad_input_is_named(name, make):
    with pytest.raises(ValueError, match=f"^{name}"):
        make(MIXTURE.denoiser(SCHEDULE))


@pytest.mark.equation("eq-variance-interpolation")
@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_the_variance_between_small_and_large_is_a_weighted_geometric_mean(v):
    """From the two levels by hand: log var is the line from log small to log large."""
    t, s = 0.7, 0.4
    a = level(t).alpha / level(s).alpha
    large = 1 - a**2
    small = large * (level(s).sigma / level(t).sigma) ** 2
    step = kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, v)(POINTS, t, s)
    assert abs(math.log(float(step.var)) - ((1 - v) * math.log(small) + v * math.log(large))) < 1e-12
    assert small < large / 1.5


@pytest.mark.equation("eq-variance-interpolation")
def test_the_ends_of_the_interpolation_are_the_two_named_variances_and_a_step_to_data_adds_no_noise():
    plain = MIXTURE.denoiser(SCHEDULE)
    for t, s in TIMES:
        for v, name in [(0, "small"), (1.0, "large")]:
            numbered, named = (kernels.ddpm(plain, SCHEDULE, choice)(POINTS, t, s) for choice in (v, name))
            assert torch.equal(numbered.var, named.var) and torch.equal(numbered.mean, named.mean)
        if s == 0:
            assert all(float(kernels.ddpm(plain, SCHEDULE, v)(POINTS, t, s).var) == 0 for v in (0.0, 0.5, 1.0))


@pytest.mark.parametrize("variance", [-0.1, 1.5, math.nan, "medium", None])
def test_a_variance_that_is_none_is_refused(variance):
    with pytest.raises(ValueError, match="variance"):
        kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, variance)


# --- the last step, CFG++, images -----------------------------------------------------------------------------

EVERY_SCHEDULE = [vp_linear(), cosine(), from_betas(torch.linspace(1e-4, 0.02, 100))]


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE, ids=["linear", "cosine", "table"])
def test_a_step_to_the_data_adds_no_noise_on_any_schedule(schedule):
    d = MIXTURE.denoiser(schedule)
    for kernel in (
        kernels.ddpm(d, schedule), kernels.ddpm(d, schedule, "large"), kernels.ddpm(d, schedule, 0.5),
        kernels.ddim(d, schedule, 0.7), kernels.reverse_sde(d, schedule, 2.0), kernels.heun(d, schedule),
    ):  # fmt: skip
        assert float(kernel(POINTS, 0.1, 0.0).var) == 0


@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_point_mass_comes_out_as_a_point_on_the_cosine_schedule(variance):
    """Ten steps with the large variance once gave it a standard deviation of 0.15."""
    point = GaussianMixture([1.0], torch.tensor([[0.4, -0.3]]).double(), 1e-12 * torch.eye(2)[None])
    kernel = kernels.ddpm(point.denoiser(cosine()), cosine(), variance)
    x, generator = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)).double(), torch.Generator()
    for t, s in zip(torch.linspace(1, 0, 11)[:-1], torch.linspace(1, 0, 11)[1:], strict=True):
        x = kernel(x, t, s).sample(generator.manual_seed(1))
    assert float((x - point.means).abs().max()) < 1e-4


@pytest.mark.equation("eq-ddim")
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_noise_may_come_from_another_denoiser_as_in_cfg_plus_plus(eta):
    """CFG++ (Chung et al. 2024, algorithm 2): go to the guided clean point, with the unconditional noise."""
    t, s, gamma = 0.7, 0.5, 0.6
    cond, uncond = MIXTURE.denoiser(SCHEDULE, 1), MIXTURE.denoiser(SCHEDULE)
    guided = classifier_free(Pair(cond, uncond), gamma)
    step = kernels.ddim(guided, SCHEDULE, eta, noise_from=uncond)(POINTS, t, s)
    eps = (1 - gamma) * -level(t).sigma * true_score(POINTS, t) + gamma * -level(t).sigma * true_score(POINTS, t, 1)
    x0 = (POINTS - level(t).sigma * eps) / level(t).alpha
    fresh = eta**2 * float(kernels.posterior_variance(SCHEDULE, t, s))
    old = math.sqrt(level(s).sigma**2 - fresh) * -level(t).sigma * true_score(POINTS, t)
    assert max_error(step.mean, level(s).alpha * x0 + old) < 1e-11
    plain = kernels.ddim(guided, SCHEDULE, eta)(POINTS, t, s)
    assert max_error(step.mean, plain.mean) > 0.01
    same = kernels.ddim(guided, SCHEDULE, eta, noise_from=guided)(POINTS, t, s)
    assert torch.equal(same.mean, plain.mean) and torch.equal(same.var, plain.var)


@pytest.mark.parametrize("shape", [(5, 3), (2, 1, 4, 4), (1, 3, 2, 2)])
def test_the_density_of_a_gaussian_step_is_one_number_for_each_point_whatever_its_shape(shape):
    mean, x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = Gaussian(mean, torch.tensor(0.3, dtype=torch.float64))
    want = torch.distributions.Normal(mean, math.sqrt(0.3)).log_prob(x).flatten(1).sum(1)
    assert step.log_prob(x).shape == shape[:1]
    assert max_error(step.log_prob(x), want) < 1e-12
    many = step.log_prob(x.expand(7, 2, *shape))  # further axes in front
    assert many.shape == (7, 2, shape[0]) and max_error(many[3, 1], want) < 1e-12


@pytest.mark.equation("eq-mean-shift")
def test_a_shift_takes_a_scale_that_changes_with_time_or_from_point_to_point():
    plain = kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, "large")
    scales = torch.tensor([0.0, 1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    each = kernels.shift(plain, class_gradient, scales)(POINTS, 0.6, 0.4).mean
    for i, scale in enumerate(scales):
        alone = kernels.shift(plain, class_gradient, float(scale))(POINTS, 0.6, 0.4).mean[i]
        assert max_error(each[i], alone) < 1e-14
    ramp = kernels.shift(plain, class_gradient, lambda t: 5 * t)(POINTS, 0.6, 0.4).mean
    assert max_error(ramp, kernels.shift(plain, class_gradient, 3.0)(POINTS, 0.6, 0.4).mean) < 1e-12


@pytest.mark.equation("eq-second-order")
def test_the_moment_matched_kernel_in_float32_is_right_from_pure_noise_on():
    single = MIXTURE.to(torch.float32)
    for schedule in EVERY_SCHEDULE:
        for times in [(1.0, 0.5), (1.0, 0.0), (0.6, 0.4)]:
            step = kernels.moment_matched(single, schedule)(POINTS.float(), *times)
            want = kernels.exact(MIXTURE, schedule)(POINTS, *times)
            assert step.cov.dtype == torch.float32
            assert max_error(step.mean, want.mean) < 1e-3 and max_error(step.cov, want.cov) < 1e-3


@pytest.mark.parametrize("shape", [(2,), (5, 1), (4, 2), (5, 2, 2)])
def test_the_density_of_a_step_at_points_of_another_shape_is_refused(shape):
    step = Gaussian(POINTS, torch.tensor(0.3))
    with pytest.raises(ValueError, match="^x must end in the mean's shape"):
        step.log_prob(torch.zeros(shape).double())


def test_an_euler_step_from_pure_data_is_refused():
    with pytest.raises(ValueError, match="^t must have sigma_t > 0"):
        kernels.reverse_sde(MIXTURE.denoiser(vp_linear()), vp_linear(), 0.0)(POINTS, 0.0, 0.1)


def test_a_step_that_is_no_gaussian_is_not_shifted():
    kernel = kernels.shift(kernels.exact(four_blobs(), vp_linear()), lambda x, t: x, 2.0)
    with pytest.raises(ValueError, match="kernel must answer a Gaussian"):
        kernel(torch.zeros(3, 2).double(), torch.tensor(0.5), torch.tensor(0.4))


def test_no_points_have_no_densities():
    assert Gaussian(torch.zeros(0, 2), torch.tensor(1.0)).log_prob(torch.zeros(0, 2)).shape == (0,)
