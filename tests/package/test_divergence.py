"""Steps as densities, and divergences between them, against grids, closed forms and finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from difflesson import divergence, kernels
from difflesson.mixture import GaussianMixture
from difflesson.samplers import time_grid
from difflesson.schedule import vp_linear
from difflesson.steps import FullGaussian, Gaussian
from tests.oracles.mixtures import FOUR

SCHEDULE = vp_linear(0.2, 5.0)
MIXTURE = FOUR.mixture()
POINTS = torch.tensor([[0.0, 0.0], [0.4, -0.7], [-1.1, 0.3]], dtype=torch.float64)
AXIS = torch.linspace(-9, 9, 721, dtype=torch.float64)
GRID = torch.cartesian_prod(AXIS, AXIS)
CELL = float(AXIS[1] - AXIS[0]) ** 2
MEAN = torch.tensor([[0.5, -1.0], [0.0, 0.3]], dtype=torch.float64)
COV = torch.tensor([[[0.6, -0.4], [-0.4, 0.5]], [[1.0, 0.3], [0.3, 0.2]]], dtype=torch.float64)
VAR = torch.tensor(0.3, dtype=torch.float64)
SLOPE = torch.tensor([[0.7, 1.1], [-0.4, 0.2]], dtype=torch.float64)


def noised(t):
    return MIXTURE.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t))


def class_gradient(x, t):
    return noised(t).class_gradient(x, 1)


def worst(a, b) -> float:
    return float((torch.as_tensor(a) - torch.as_tensor(b)).abs().max())


def moments_on_grid(log):
    """Mean and covariance of each density exp(log), (cells, N), by summing over the grid."""
    share = log.softmax(0)  # (cells, N)
    means = share.T @ GRID
    covs = torch.stack([((GRID - m) * share[:, i, None]).T @ (GRID - m) for i, m in enumerate(means)])
    return means, covs


# --- densities and completed squares --------------------------------------------------------------------------


@pytest.mark.parametrize("step", [Gaussian(MEAN, VAR), FullGaussian(MEAN, COV)], ids=["one", "full"])
def test_the_density_of_a_step_is_scipys(step):
    covs = step.cov.numpy() if isinstance(step, FullGaussian) else [0.3 * np.eye(2)] * 2
    x = torch.randn(4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = step.log_prob(x)
    assert got.shape == (4, 2)
    for i, cov in enumerate(covs):
        assert worst(got[:, i], stats.multivariate_normal(MEAN[i], cov).logpdf(x[:, i])) < 1e-12


@pytest.mark.equation("eq-complete-square")
def test_a_gaussian_times_an_exponential_of_a_line_is_the_gaussian_moved_by_covariance_times_slope():
    for step in (FullGaussian(MEAN, COV), Gaussian(MEAN, VAR)):
        product = step.log_prob(GRID[:, None]) + GRID @ SLOPE.T
        means, covs = moments_on_grid(product)
        tilted = step.tilted(SLOPE)
        assert worst(tilted.mean, means) < 1e-9
        want = tilted.cov if isinstance(step, FullGaussian) else tilted.var * torch.eye(2).double().expand(2, 2, 2)
        assert worst(want, covs) < 1e-9
    assert worst(FullGaussian(MEAN, COV).tilted(0 * SLOPE).mean, MEAN) == 0


@pytest.mark.equation("eq-complete-square")
def test_what_completing_the_square_leaves_over_is_the_stated_constant():
    step = FullGaussian(MEAN, COV)
    product = step.log_prob(GRID[:, None]) + GRID @ SLOPE.T
    mass = product.exp().sum(0) * CELL
    stated = (SLOPE * MEAN).sum(1) + torch.einsum("ni,nij,nj->n", SLOPE, COV, SLOPE) / 2
    assert worst(mass.log(), stated) < 1e-9


@pytest.mark.equation("eq-taylor-second")
def test_a_quadratic_exponent_changes_the_precision_and_the_changed_covariance_moves_the_mean():
    hessian = torch.tensor([[[-0.3, 0.2], [0.2, 0.4]], [[0.5, -0.1], [-0.1, -2.0]]], dtype=torch.float64)
    step = FullGaussian(MEAN, COV)
    away = GRID[:, None] - MEAN
    quadratic = torch.einsum("gni,nij,gnj->gn", away, hessian, away) / 2
    product = step.log_prob(GRID[:, None]) + (away * SLOPE).sum(-1) + quadratic
    means, covs = moments_on_grid(product)
    tilted = step.tilted(SLOPE, hessian)
    assert worst(tilted.mean, means) < 1e-8
    assert worst(tilted.cov, covs) < 1e-8


def test_a_curvature_that_leaves_no_finite_mass_is_refused():
    with pytest.raises(ValueError, match="curvature"):
        FullGaussian(MEAN, COV).tilted(SLOPE, 10 * torch.eye(2).double().expand(2, 2, 2))


# --- quadrature -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_hermite_nodes_integrate_polynomials_of_the_stated_degree(dim):
    nodes, weights = divergence.hermite(5, dim)
    assert nodes.shape == (5**dim, dim) and weights.shape == (5**dim,)
    for power, moment in {0: 1, 1: 0, 2: 1, 4: 3, 8: 105}.items():
        assert abs(float(weights @ nodes[:, -1] ** power) - moment) < 1e-11
    assert abs(float(weights @ nodes[:, -1] ** 10) - 945) > 1  # degree 10 is beyond five nodes


def test_hermite_names_what_is_wrong():
    with pytest.raises(ValueError, match="order and dim"):
        divergence.hermite(0, 2)


def test_mixture_nodes_give_the_mean_and_the_covariance_of_the_mixture():
    x, weights = divergence.mixture_nodes(MIXTURE, order=3)
    mean = MIXTURE.weights @ MIXTURE.means
    squares = MIXTURE.covs + MIXTURE.means[:, :, None] * MIXTURE.means[:, None]
    second = torch.einsum("k,kij->ij", MIXTURE.weights, squares)
    assert worst(weights.sum(), 1.0) < 1e-14
    assert worst(weights @ x, mean) < 1e-13
    assert worst((weights[:, None] * x).T @ x, second) < 1e-12


@pytest.mark.parametrize("times", [(0.9, 0.3), (0.5, 0.45)])
def test_step_nodes_give_the_moments_that_the_step_states(times):
    step = MIXTURE.reverse(POINTS, SCHEDULE, *times)
    x, weights = divergence.step_nodes(step, order=4)
    assert worst(weights.sum(0), torch.ones(3)) < 1e-14
    assert worst(torch.einsum("mn,mne->ne", weights, x), step.mean) < 1e-12
    away = x - step.mean
    assert worst(torch.einsum("mn,mne,mnf->nef", weights, away, away), step.cov) < 1e-12


# --- divergence of a step -------------------------------------------------------------------------------------


def gaussian_kl(mean, cov, other_mean, other_cov) -> float:
    """The closed form for two Gaussians, numpy."""
    inverse, d = np.linalg.inv(other_cov), other_mean - mean
    log_ratio = np.linalg.slogdet(other_cov)[1] - np.linalg.slogdet(cov)[1]
    return float(np.trace(inverse @ cov) + d @ inverse @ d - len(mean) + log_ratio) / 2


@pytest.mark.equation("eq-kl")
def test_the_divergence_of_a_single_gaussian_has_its_closed_form():
    blob = GaussianMixture([1.0], MEAN[:1], COV[1:])
    step = blob.reverse(POINTS, SCHEDULE, 0.6, 0.2)
    other = FullGaussian(step.mean + SLOPE[:1], COV[:1].expand(3, 2, 2))
    want = gaussian_kl(step.mean[0].numpy(), step.cov[0].numpy(), other.mean[0].numpy(), other.cov[0].numpy())
    # the quadrature has to resolve the ratio of the two densities, hence the order
    assert worst(divergence.kl(step, other, order=60), torch.full((3,), want)) < 1e-6


@pytest.mark.equation("eq-kl")
@pytest.mark.parametrize("times", [(0.9, 0.3), (0.5, 0.45)])
def test_the_divergence_of_a_mixture_is_the_integral_on_a_grid(times):
    step = MIXTURE.given(1).reverse(POINTS, SCHEDULE, *times)
    other = kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, "large")(POINTS, *times)
    log_p, log_q = step.log_prob(GRID[:, None]), other.log_prob(GRID[:, None])
    want = (log_p.exp() * (log_p - log_q)).sum(0) * CELL
    got = divergence.kl(step, other, order=60)
    assert float(got.min()) > 1e-3
    assert worst(got, want) < 1e-6 * float(want.max())


@pytest.mark.equation("eq-kl")
def test_a_divergence_far_below_rounding_keeps_its_digits():
    step = GaussianMixture([1.0], MEAN[:1], COV[1:]).reverse(POINTS, SCHEDULE, 0.6, 0.2)
    for nudge in (1e-4, 1e-8):  # divergences near 1e-8 and 1e-16
        other = FullGaussian(step.mean + nudge * SLOPE[:1], step.cov)
        want = nudge**2 * torch.einsum("i,nij,j->n", SLOPE[0], torch.linalg.inv(step.cov), SLOPE[0]) / 2
        assert worst(divergence.kl(step, other) / want, torch.ones(3)) < 1e-3


@pytest.mark.equation("eq-moment-matching")
def test_no_other_gaussian_is_closer_than_the_one_with_the_same_moments():
    step = MIXTURE.given(1).reverse(POINTS, SCHEDULE, 0.9, 0.3)
    best = divergence.closest_gaussian(step)
    mean, cov = best.mean.clone().requires_grad_(), best.cov.clone().requires_grad_()
    loss = divergence.kl(step, FullGaussian(mean, cov), order=40)
    slopes = torch.autograd.grad(loss.sum(), (mean, cov))
    assert max(float(g.abs().max()) for g in slopes) < 1e-6
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        nudge = 0.05 * torch.randn(2, 2, generator=generator, dtype=torch.float64)
        worse = FullGaussian(best.mean + nudge[0], best.cov + nudge @ nudge.T)
        assert bool((divergence.kl(step, worse, order=40) > loss).all())


@pytest.mark.equation("eq-moment-matching")
@pytest.mark.equation("eq-second-order")
@pytest.mark.parametrize("times", [(0.9, 0.3), (0.5, 0.45), (0.4, 0.0)])
def test_the_closest_gaussian_is_tweedies(times):
    best = divergence.closest_gaussian(MIXTURE.given(1).reverse(POINTS, SCHEDULE, *times))
    tweedie = kernels.moment_matched(MIXTURE, SCHEDULE, 1)(POINTS, *times)
    assert worst(best.mean, tweedie.mean) < 1e-12
    assert worst(best.cov, tweedie.cov) < 1e-12


# --- leading terms --------------------------------------------------------------------------------------------


def earlier(t: float, beta: float) -> float:
    left = SCHEDULE.integrated_beta(t) + math.log1p(-beta)
    return float(SCHEDULE.time(-torch.log(torch.expm1(left))))


def loss_of(kernel, t, beta):
    s = earlier(t, beta)
    return divergence.kl(kernels.exact(MIXTURE, SCHEDULE, 1)(POINTS, t, s), kernel(POINTS, t, s))


@pytest.mark.equation("eq-kl-no-shift")
def test_without_a_shift_the_divergence_is_half_beta_times_the_squared_gradient():
    t, beta = 0.5, 1e-5
    plain = kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE)
    h = 1e-5
    g = torch.stack([
        (noised(t).class_log_prob(POINTS + h * e, 1) - noised(t).class_log_prob(POINTS - h * e, 1)) / (2 * h)
        for e in torch.eye(2, dtype=torch.float64)
    ], dim=1)
    predicted = divergence.leading_kl_without_shift(g, torch.tensor(beta).double())
    assert worst(loss_of(plain, t, beta) / predicted, torch.ones(3)) < 1e-3


@pytest.mark.equation("eq-kl-shift")
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("at", ["x", "mu"])
def test_with_a_shift_the_divergence_is_the_misfit_of_the_covariance(variance, at):
    t, beta, h = 0.5, 1e-4, 1e-5
    plain = kernels.ddpm(MIXTURE.denoiser(SCHEDULE), SCHEDULE, variance)
    shifted = kernels.shift(plain, class_gradient, 1.0, at=at)
    given = noised(t).given(1)
    hessian = torch.stack([
        (given.score(POINTS + h * e) - given.score(POINTS - h * e)) / (2 * h) for e in torch.eye(2, dtype=torch.float64)
    ], dim=2)
    prior = {"small": 1 / SCHEDULE.sigma(t) ** 2, "large": 1.0}[variance]
    predicted = divergence.leading_kl_with_shift(hessian, torch.tensor(beta).double(), prior)
    assert worst(loss_of(shifted, t, beta) / predicted, torch.ones(3)) < 1e-2


# --- divergence of a path -------------------------------------------------------------------------------------


@pytest.mark.equation("eq-path-kl")
def test_the_divergence_of_a_path_of_gaussians_is_that_of_the_joint_gaussians():
    """In one dimension both paths are Gaussian vectors, so the sum has one closed form."""
    blob = GaussianMixture([1.0], torch.tensor([[0.7]], dtype=torch.float64), [[[0.4]]])
    times = torch.tensor([0.9, 0.6, 0.35, 0.1], dtype=torch.float64)

    def walk(x, t, s):  # an arbitrary affine kernel
        return Gaussian(0.3 + 0.8 * x, torch.tensor(0.5 + 0.2 * float(t)).double())

    def joint(steps, start_mean, start_var):
        """Mean and covariance of (x_0.9, ..., x_0.1) when each step is slope x + offset plus noise of variance v."""
        mean, cov = [start_mean], np.array([[start_var]])
        for slope, offset, var in steps:
            row = slope * cov[-1]
            cov = np.block([[cov, row[:, None]], [row[None], np.array([[slope**2 * cov[-1, -1] + var]])]])
            mean.append(slope * mean[-1] + offset)
        return np.array(mean), cov

    start = blob.noised(SCHEDULE.alpha(times[0]), SCHEDULE.sigma(times[0]))
    true_steps, walked = [], []
    for t, s in zip(times[:-1], times[1:], strict=True):
        at = [blob.reverse(torch.tensor([[v]]).double(), SCHEDULE, t, s) for v in (0.0, 1.0)]
        offset, end = (float(step.mean) for step in at)
        true_steps.append((end - offset, offset, float(at[0].cov)))
        walked.append((0.8, 0.3, 0.5 + 0.2 * float(t)))
    begin = float(start.means), float(start.covs)
    want = gaussian_kl(*joint(true_steps, *begin), *joint(walked, *begin))
    assert worst(divergence.path_kl(blob, SCHEDULE, 0, walk, times, order=60), want) < 1e-6


@pytest.mark.equation("eq-path-kl")
@pytest.mark.parametrize("steps", [2, 9])
def test_ignoring_the_label_costs_what_the_label_knows_however_many_steps(steps):
    ignoring, times = kernels.exact(MIXTURE, SCHEDULE), time_grid(steps, end=0.05)
    blind = divergence.path_kl(MIXTURE, SCHEDULE, 1, ignoring, times, order=20)

    def information(t):
        x, weights = divergence.mixture_nodes(noised(t).given(1), order=60)
        return float(weights @ (noised(t).given(1).log_prob(x) - noised(t).log_prob(x)))

    assert abs(float(blind) - (information(0.05) - information(1.0))) < 1e-3


@pytest.mark.parametrize("times", [[0.5, 0.5], [0.5, 0.0], [0.5], [0.2, 0.5]])
def test_path_kl_refuses_times_that_are_no_path(times):
    with pytest.raises(ValueError, match="times"):
        divergence.path_kl(MIXTURE, SCHEDULE, 1, kernels.exact(MIXTURE, SCHEDULE), torch.tensor(times))


# --- one step, and Bayes' rule --------------------------------------------------------------------------------


@pytest.mark.equation("eq-one-step-tweedie")
@pytest.mark.parametrize("times", [(0.5, 0.49), (0.5, 0.1), (1.0, 0.0)])
@pytest.mark.parametrize("label", [None, 1])
def test_the_one_step_mean_is_the_integral_of_bayes_rule(times, label):
    """One dimension, adaptive quadrature of x_s p(x_s) p(x_t | x_s), nothing of the package but the schedule."""
    t, s = times
    weights, means, variances = np.array([0.3, 0.5, 0.2]), np.array([-1.0, 0.6, 2.0]), np.array([0.3, 0.1, 0.6])
    keep = np.array([True, True, True]) if label is None else np.array([False, True, True])
    a_s, a_t = (float(SCHEDULE.alpha(u)) for u in (s, t))
    a, x_t, h = a_t / a_s, 0.4, 1e-5

    def density(x, alpha):
        spread = np.sqrt(alpha**2 * variances + 1 - alpha**2)
        return float((weights * stats.norm(alpha * means, spread).pdf(x))[keep].sum())

    def joint(x_s):
        return density(x_s, a_s) * stats.norm(a * x_s, math.sqrt(1 - a**2)).pdf(x_t)

    peak = dict(points=[x_t / a], limit=400, epsabs=1e-13, epsrel=1e-12)
    mass, first = (integrate.quad(f, -9, 9, **peak)[0] for f in (joint, lambda u: u * joint(u)))
    score = (math.log(density(x_t + h, a_t)) - math.log(density(x_t - h, a_t))) / (2 * h)
    got = kernels.one_step_mean(torch.tensor([[x_t]]).double(), torch.tensor([[score]]).double(), SCHEDULE, t, s)
    assert abs(float(got) - first / mass) < 1e-8


@pytest.mark.equation("eq-bayes-step")
@pytest.mark.parametrize("times", [(0.5, 0.49), (0.9, 0.2)])
def test_the_step_given_the_label_is_the_step_times_the_ratio_of_class_probabilities(times):
    """On a grid: prior at s, times likelihood, times the class posterior at s by Bayes' rule from densities."""
    t, s = times
    a = float(SCHEDULE.alpha(t) / SCHEDULE.alpha(s))
    at_s = noised(s)
    free = at_s.log_prob(GRID)[:, None] - (POINTS - a * GRID[:, None]).square().sum(-1) / (2 * (1 - a**2))
    weight = MIXTURE.weights[torch.tensor(MIXTURE.labels) == 1].sum()
    posterior = at_s.given(1).log_prob(GRID) + weight.log() - at_s.log_prob(GRID)
    product = (free + posterior[:, None]).log_softmax(0) - math.log(CELL)
    got = kernels.exact(MIXTURE, SCHEDULE, 1)(POINTS, t, s).log_prob(GRID[:, None])
    near = product > -20
    assert worst(got[near], product[near]) < 1e-9


@pytest.mark.equation("eq-kl")
@pytest.mark.parametrize("width", [0.1, 0.3, 1.0, 3.0])
def test_the_divergence_from_a_gaussian_much_too_narrow_or_wide_has_its_closed_form_at_every_order(width):
    """Of one Gaussian from another: with 8 nodes a dimension the density of the narrow one is seen nowhere."""
    blob = GaussianMixture([1.0], torch.tensor([[0.3, -0.2]]).double(), 0.7 * torch.eye(2)[None])
    step = blob.reverse(torch.tensor([[0.5, 0.1]]).double(), vp_linear(), 0.4, 0.2)
    var = float(step.variances[0, 0])
    other = Gaussian(step.mean + 0.1, torch.tensor(width * var, dtype=torch.float64))
    want = (1 / width - 1 + math.log(width)) + 2 * 0.1**2 / (2 * width * var)
    for order in (6, 8, 20):
        assert abs(float(divergence.kl(step, other, order)[0]) - want) < 1e-9 * (1 + want)


@pytest.mark.equation("eq-kl")
def test_mass_that_the_nodes_do_not_see_counts():
    """Classes that do not overlap: the label tells `-log p(y | x_t)` about the step, and all its points know it."""
    apart = GaussianMixture([0.5, 0.5], torch.tensor([[-2.0, 0], [2, 0]]).double(), 0.02 * torch.eye(2).repeat(2, 1, 1))
    schedule, t, s = vp_linear(), 0.5, 0.05
    x = torch.tensor([[-1.0, 0.0], [-1.5, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    told, untold = (kernels.exact(apart, schedule, label)(x, t, s) for label in (0, None))
    want = -apart.noised(schedule.alpha(t), schedule.sigma(t)).class_log_prob(x, 0)
    for order in (8, 16):
        assert float((divergence.kl(told, untold, order) / want - 1).abs().max()) < 1e-3
