"""The exact mixture against torch.distributions, autograd, scipy and quadrature, in float64."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from scipy.stats import kstest, multivariate_normal, norm
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from difflesson import chunks
from difflesson.mixture import GaussianMixture
from difflesson.schedule import cosine, vp_linear

F32, F64 = torch.float32, torch.float64


class Case(NamedTuple):
    """A mixture's parts as given, and what other libraries make of them."""

    weights: Tensor
    means: Tensor
    covs: Tensor
    labels: Tensor | None

    @property
    def mixture(self) -> GaussianMixture:
        return GaussianMixture(*self)

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    @property
    def own_labels(self) -> list[int]:
        """Labels of the components."""
        return list(range(len(self.weights))) if self.labels is None else self.labels.tolist()

    def peer(self, alpha=1.0, sigma=0.0, label=None) -> MixtureSameFamily:
        """The noised mixture, or that of one class, by torch.distributions."""
        mine = [y == label if label is not None else True for y in self.own_labels]
        keep = torch.tensor(mine) & (self.weights > 0)  # Categorical would give a zero weight 2e-16
        covs = alpha**2 * self.covs + sigma**2 * torch.eye(self.dim, dtype=F64)
        parts = MultivariateNormal(alpha * self.means[keep], covs[keep], validate_args=False)
        return MixtureSameFamily(Categorical(self.weights[keep]), parts, validate_args=False)

    def prior(self, label: int) -> float:
        return sum(float(w) for w, y in zip(self.weights, self.own_labels, strict=True) if y == label)


def random_case(seed: int, count: int, dim: int, labels) -> Case:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, generator=generator, dtype=F64) + 0.2
    root = torch.randn(count, dim, dim, generator=generator, dtype=F64) / math.sqrt(dim)
    covs = root @ root.mT + 0.1 * torch.eye(dim, dtype=F64)
    means = 2 * torch.randn(count, dim, generator=generator, dtype=F64)
    return Case(weights / weights.sum(), means, covs, None if labels is None else torch.tensor(labels))


def line(weights, means, variances, labels) -> Case:
    """A mixture on the real line."""
    means, covs = torch.tensor(means, dtype=F64)[:, None], torch.tensor(variances, dtype=F64)[:, None, None]
    return Case(torch.tensor(weights, dtype=F64), means, covs, torch.tensor(labels))


LINE = line([0.2, 0.5, 0.3], [-2.0, 0.5, 3.0], [0.3, 0.04, 1.1], [2, 0, 2])  # unordered, no class 1
PLANE = random_case(1, 4, 2, [0, 1, 1, 0])
CASES = {
    "line": LINE,
    "plane": PLANE,
    "space": random_case(2, 3, 3, None),
    "five dimensions": random_case(3, 6, 5, [1, 0, 2, 1, 0, 2]),
    "one component": random_case(4, 1, 2, [0]),
    "one component on the line": line([1.0], [0.7], [0.5], [0]),
    "zero weight": Case(torch.tensor([0.4, 0.0, 0.6], dtype=F64), *random_case(5, 3, 2, [0, 0, 1])[1:]),
}
LEVELS = [(1.0, 0.0), (0.999, math.sqrt(1 - 0.999**2)), (0.6, 0.8), (4.5e-5, math.sqrt(1 - 4.5e-5**2))]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_level = pytest.mark.parametrize(("alpha", "sigma"), LEVELS)


def line_parts(label=None) -> list[tuple[float, float, float]]:
    """(weight, mean, variance) of the components of LINE, as numbers."""
    parts = zip(*(a.flatten().tolist() for a in LINE), strict=True)
    return [(w, m, v) for w, m, v, y in parts if label in (None, y)]


def line_density(grid: np.ndarray, label=None) -> np.ndarray:
    """p(x, label) of LINE by scipy."""
    return sum(w * norm.pdf(grid, m, math.sqrt(v)) for w, m, v in line_parts(label))


def line_cdf(q: np.ndarray, alpha=1.0, sigma=0.0) -> np.ndarray:
    """The distribution function of LINE, noised, by scipy."""
    return sum(w * norm.cdf(q, alpha * m, math.sqrt(alpha**2 * v + sigma**2)) for w, m, v in line_parts())


def points(case: Case, count: int = 11, seed: int = 0) -> Tensor:
    """Points near and between the modes, and two at some distance."""
    x = 2.5 * torch.randn(count, case.dim, generator=torch.Generator().manual_seed(seed), dtype=F64)
    x[-2:] *= 8
    return x


def worst(a, b) -> float:
    """Maximum absolute difference; shapes must agree, so that broadcasting hides nothing."""
    a, b = torch.as_tensor(a, dtype=F64).detach(), torch.as_tensor(b, dtype=F64).detach()
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max())


def derivative(function, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def second_derivative(function, x: Tensor) -> Tensor:
    hessian = torch.autograd.functional.hessian
    return torch.stack([hessian(lambda p: function(p[None])[0], point) for point in x])


# --- density, score and Hessian -------------------------------------------------------------------


@every_case
@every_level
@pytest.mark.equation("eq-mixture")
@pytest.mark.equation("eq-noised-mixture")
def test_log_prob_agrees_with_torch_distributions(case, alpha, sigma):
    x = points(case)
    assert worst(case.mixture.noised(alpha, sigma).log_prob(x), case.peer(alpha, sigma).log_prob(x)) < 1e-9


@every_case
@every_level
@pytest.mark.equation("eq-mixture-score")
def test_score_is_the_gradient_of_the_log_density(case, alpha, sigma):
    x = points(case)
    expected = derivative(case.peer(alpha, sigma).log_prob, x)
    assert worst(case.mixture.noised(alpha, sigma).score(x), expected) < 1e-9


@every_case
@pytest.mark.equation("eq-mixture-score")
def test_score_agrees_with_finite_differences(case):
    x, h, peer = points(case)[:-2], 1e-5, case.peer(0.6, 0.8)
    steps = h * torch.eye(case.dim, dtype=F64)
    differences = [(peer.log_prob(x + step) - peer.log_prob(x - step)) / (2 * h) for step in steps]
    assert worst(case.mixture.noised(0.6, 0.8).score(x), torch.stack(differences, dim=1)) < 1e-8


@every_case
@every_level
@pytest.mark.equation("eq-mixture-hessian")
def test_hessian_is_the_second_derivative_of_the_log_density(case, alpha, sigma):
    x = points(case)
    ours = case.mixture.noised(alpha, sigma).hessian(x)
    assert worst(ours, second_derivative(case.peer(alpha, sigma).log_prob, x)) < 1e-8
    assert worst(ours, ours.mT) < 1e-12


@every_case
@pytest.mark.equation("eq-mixture-hessian")
def test_hessian_agrees_with_finite_differences_of_the_score(case):
    x, h, noisy = points(case)[:-2], 1e-5, case.mixture.noised(0.6, 0.8)
    steps = h * torch.eye(case.dim, dtype=F64)
    differences = [(noisy.score(x + step) - noisy.score(x - step)) / (2 * h) for step in steps]
    assert worst(noisy.hessian(x), torch.stack(differences, dim=2)) < 1e-8


def test_density_integrates_to_one_on_the_line():
    grid = torch.linspace(-30, 30, 60_001, dtype=F64)
    for alpha, sigma in LEVELS:
        density = LINE.mixture.noised(alpha, sigma).log_prob(grid[:, None]).exp()
        assert abs(trapezoid(density, grid) - 1) < 1e-12


@pytest.mark.equation("eq-noised-mixture")
def test_noised_density_is_the_convolution_by_quadrature():
    """p_t(x) = integral of p(x0) N(x; alpha x0, sigma^2), with p(x0) from scipy."""
    grid = np.linspace(-15, 15, 30_001)
    data = line_density(grid)
    for alpha, sigma in LEVELS[1:]:
        for x in (-3.0, 0.2, 1.4, 6.0):
            by_hand = trapezoid(data * norm.pdf(x, alpha * grid, sigma), grid)
            ours = LINE.mixture.noised(alpha, sigma).log_prob(torch.tensor([[x]], dtype=F64)).exp()
            assert abs(float(ours) - by_hand) < 1e-12


@every_case
@pytest.mark.equation("eq-noised-mixture")
def test_noising_twice_is_noising_once(case):
    twice = case.mixture.noised(0.8, 0.6).noised(0.5, 0.7)
    once = case.mixture.noised(0.4, math.hypot(0.3, 0.7))
    assert worst(twice.means, once.means) < 1e-15 and worst(twice.covs, once.covs) < 1e-14


@every_case
def test_parts_come_back_as_given(case):
    ours = case.mixture
    assert worst(ours.covs, case.covs) < 1e-14 and worst(ours.means, case.means) == 0
    assert list(ours.labels) == case.own_labels and ours.dim == case.dim
    assert ours.classes == max(case.own_labels) + 1
    assert worst(ours.class_weights(), [case.prior(y) for y in range(ours.classes)]) < 1e-15


@every_case
def test_order_of_the_components_does_not_matter(case):
    order = torch.randperm(len(case.weights), generator=torch.Generator().manual_seed(0))
    parts = (case.weights, case.means, case.covs, torch.tensor(case.own_labels))
    x, ours, other = points(case), case.mixture, GaussianMixture(*(part[order] for part in parts))
    assert worst(ours.score(x), other.score(x)) < 1e-11
    assert worst(ours.class_log_prob(x, 0), other.class_log_prob(x, 0)) < 1e-10
    assert worst(ours.class_weights(), other.class_weights()) < 1e-15


# --- labels ---------------------------------------------------------------------------------------


def classes_of(case: Case) -> list[int]:
    return [y for y in sorted(set(case.own_labels)) if case.prior(y) > 0]


@every_case
@every_level
@pytest.mark.equation("eq-class-posterior")
def test_class_log_prob_is_bayes_rule_by_scipy(case, alpha, sigma):
    x, covs = points(case)[:-2], alpha**2 * case.covs.numpy() + sigma**2 * np.eye(case.dim)
    joint = np.array([  # (K, N)
        float(w) * multivariate_normal.pdf(x.numpy(), alpha * m.numpy(), c)
        for w, m, c in zip(case.weights, case.means, covs, strict=True)
    ]).reshape(len(case.weights), -1)
    noisy = case.mixture.noised(alpha, sigma)
    for label in classes_of(case):
        mine = np.array(case.own_labels) == label
        expected = joint[mine].sum(0) / joint.sum(0)
        assert worst(noisy.class_log_prob(x, label).exp(), expected) < 1e-12


@every_case
@pytest.mark.equation("eq-class-posterior")
def test_class_probabilities_sum_to_one(case):
    for noisy in (case.mixture, case.mixture.noised(0.6, 0.8)):
        everything = torch.stack([noisy.class_log_prob(points(case), y) for y in range(noisy.classes)]).exp()
        assert worst(everything.sum(0), torch.ones(11)) < 1e-13


def test_a_class_without_components_has_probability_zero():
    assert worst(LINE.mixture.class_log_prob(points(LINE), 1).exp(), torch.zeros(11)) == 0
    assert float(LINE.mixture.class_weights()[1]) == 0


@every_case
@every_level
@pytest.mark.equation("eq-score-decomposition")
def test_class_gradient_is_the_gradient_of_the_class_log_probability(case, alpha, sigma):
    x = points(case)
    for label in classes_of(case):
        given_label, everything = case.peer(alpha, sigma, label), case.peer(alpha, sigma)
        expected = derivative(lambda p, g=given_label, e=everything: g.log_prob(p) - e.log_prob(p), x)
        assert worst(case.mixture.noised(alpha, sigma).class_gradient(x, label), expected) < 1e-9


@every_case
@every_level
@pytest.mark.equation("eq-conditional-mixture")
def test_given_is_the_conditional_density(case, alpha, sigma):
    """log p(x | y) by torch.distributions, and by Bayes' rule: log p(y | x) + log p(x) - log p(y)."""
    x, noisy = points(case), case.mixture.noised(alpha, sigma)
    for label in classes_of(case):
        ours = noisy.given(label).log_prob(x)
        assert worst(ours, case.peer(alpha, sigma, label).log_prob(x)) < 1e-9
        by_bayes = noisy.class_log_prob(x, label) + noisy.log_prob(x) - math.log(case.prior(label))
        assert worst(ours, by_bayes) < 1e-9


@every_case
def test_given_keeps_its_label_and_commutes_with_noise(case):
    x = points(case)
    for label in classes_of(case):
        one = case.mixture.given(label)
        assert set(one.labels) == {label} and one.classes == label + 1
        assert worst(one.weights.sum(), 1.0) < 1e-15
        assert worst(one.given(label).log_prob(x), one.log_prob(x)) == 0
        assert worst(one.class_log_prob(x, label), torch.zeros(11)) < 1e-13
        assert worst(one.class_gradient(x, label), torch.zeros_like(x)) < 1e-12
        given_last = case.mixture.noised(0.6, 0.8).given(label)
        assert worst(one.noised(0.6, 0.8).score(x), given_last.score(x)) < 1e-12


def test_labels_may_be_tensors_of_no_dimension():
    x = points(PLANE)
    one = torch.tensor(1)
    assert worst(PLANE.mixture.class_gradient(x, one), PLANE.mixture.class_gradient(x, 1)) == 0
    assert worst(PLANE.mixture.given(one).score(x), PLANE.mixture.given(1).score(x)) == 0


# --- the denoiser ---------------------------------------------------------------------------------

TIMES = [1e-3, 0.05, 0.3, 0.7, 0.999, 1.0]
SCHEDULES = {"linear": vp_linear(), "cosine": cosine()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@every_schedule
@pytest.mark.parametrize("label", [None, 0, 2])
@pytest.mark.parametrize("t", TIMES)
@pytest.mark.equation("eq-mixture-denoiser")
def test_denoiser_is_the_posterior_mean_by_quadrature(schedule, label, t):
    """E[x_0 | x_t] and E[eps | x_t] from p(x_t | x_0) p(x_0) on a grid."""
    grid = np.linspace(-16, 16, 160_001)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    x = alpha * torch.tensor([[-2.6], [-0.7], [0.4], [3.9]], dtype=F64) + sigma * 0.3
    x0, eps = LINE.mixture.denoiser(schedule, label)(x, torch.tensor(t, dtype=F64))
    for i, point in enumerate(x[:, 0].tolist()):
        posterior = line_density(grid, label) * np.exp(-(((point - alpha * grid) / sigma) ** 2) / 2)
        posterior /= trapezoid(posterior, grid)
        assert abs(float(x0[i]) - trapezoid(posterior * grid, grid)) < 1e-10
        assert abs(float(eps[i]) - trapezoid(posterior * (point - alpha * grid) / sigma, grid)) < 1e-10


@every_case
@every_schedule
@pytest.mark.equation("eq-mixture-denoiser")
@pytest.mark.equation("eq-tweedie")
def test_denoiser_obeys_tweedie_with_the_score_of_torch_distributions(case, schedule):
    """alpha x0 = x + sigma^2 score, eps = -sigma score; dividing by a small alpha would blow up rounding."""
    x = points(case)
    for label in [None, *classes_of(case)]:
        for t in TIMES:
            alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
            score = derivative(case.peer(alpha, sigma, label).log_prob, x)
            x0, eps = case.mixture.denoiser(schedule, label)(x, t)
            assert worst(alpha * x0, x + sigma**2 * score) < 1e-11
            assert worst(eps, -sigma * score) < 1e-11


@every_case
@every_schedule
@pytest.mark.equation("eq-parameterisations")
def test_both_predictions_explain_the_point(case, schedule):
    x = points(case)
    for t in [0.0, *TIMES]:
        x0, eps = case.mixture.denoiser(schedule)(x, t)
        assert worst(schedule.alpha(t) * x0 + schedule.sigma(t) * eps, x) < 1e-12


def test_denoiser_in_the_plane_is_the_posterior_mean_by_quadrature():
    axis = np.linspace(-12, 12, 1201)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    data = PLANE.peer().log_prob(torch.from_numpy(grid)).exp().numpy()
    alpha, sigma = (float(c(0.2)) for c in (vp_linear().alpha, vp_linear().sigma))
    for point in ([0.3, -0.8], [2.0, 1.5]):
        posterior = data * np.exp(-((np.array(point) - alpha * grid) ** 2).sum(1) / (2 * sigma**2))
        expected = (posterior[:, None] * grid).sum(0) / posterior.sum()
        x0 = PLANE.mixture.denoiser(vp_linear())(torch.tensor([point], dtype=F64), 0.2).x0
        assert worst(x0[0], expected) < 1e-10


@every_case
def test_without_noise_the_denoiser_returns_the_point(case):
    x = points(case)
    x0, eps = case.mixture.denoiser(vp_linear())(x, 0.0)
    assert worst(x0, x) < 1e-12 and worst(eps, torch.zeros_like(x)) == 0


@every_case
@pytest.mark.parametrize("t", [0.0, 1e-8, 1e-3, 0.3, 0.9, 1.0])
def test_float32_denoiser_keeps_its_digits_at_both_ends_of_time(case, t):
    """At t = 1 the cosine has alpha = 4.5e-5: dividing by it would leave two digits of x0."""
    schedule, x = cosine(), points(case)[:-2].float()
    exact = case.mixture.denoiser(schedule)(x.double(), t)
    single = case.mixture.to(F32).denoiser(schedule)(x, torch.tensor(t, dtype=F64))
    assert single.x0.dtype == single.eps.dtype == F32
    assert worst(single.x0, exact.x0) < 2e-5 and worst(single.eps, exact.eps) < 2e-5


@every_schedule
def test_pair_holds_both_denoisers(schedule):
    x = points(PLANE)
    cond, uncond = PLANE.mixture.pair(schedule, 1)(x, 0.4)
    for ours, label in ((cond, 1), (uncond, None)):
        expected = PLANE.mixture.denoiser(schedule, label)(x, 0.4)
        assert worst(ours.x0, expected.x0) == 0 and worst(ours.eps, expected.eps) == 0


# --- the exact reverse kernel ---------------------------------------------------------------------

STEPS = [(0.3, 0.25), (0.7, 0.1), (1.0, 0.5), (0.999, 1e-3), (0.5, 0.0), (1.0, 0.0)]
every_step = pytest.mark.parametrize(("t", "s"), STEPS)


@every_schedule
@every_step
@pytest.mark.parametrize("label", [None, 0, 2])
@pytest.mark.equation("eq-exact-reverse")
def test_reverse_density_is_bayes_rule_on_a_grid(schedule, t, s, label):
    """p(x_s | x_t) = p(x_t | x_s) p(x_s) / p(x_t) by torch.distributions and scipy; then its moments."""
    grid = torch.linspace(-12, 12, 48_001, dtype=F64)
    alpha_s, sigma_s = float(schedule.alpha(s)), float(schedule.sigma(s))
    alpha_t, sigma_t = float(schedule.alpha(t)), float(schedule.sigma(t))
    ratio = alpha_t / alpha_s
    spread = math.sqrt(sigma_t**2 - (ratio * sigma_s) ** 2)
    x = torch.tensor([[-1.9], [0.3], [1.1]], dtype=F64)
    clean = LINE.mixture if label is None else LINE.mixture.given(label)
    step = clean.reverse(x, schedule, t, s)
    ours = step.log_prob(grid[:, None, None].expand(-1, 3, 1)).exp()  # (grid, 3)
    for i, point in enumerate(x[:, 0].tolist()):
        there = LINE.peer(alpha_s, sigma_s, label).log_prob(grid[:, None])
        here = LINE.peer(alpha_t, sigma_t, label).log_prob(x[i : i + 1])
        bayes = (there - here).exp().numpy() * norm.pdf(point, ratio * grid.numpy(), spread)
        assert worst(ours[:, i], bayes) < 1e-9
        assert abs(trapezoid(ours[:, i], grid) - 1) < 1e-10
        mean = trapezoid(bayes * grid.numpy(), grid)
        assert abs(float(step.mean[i, 0]) - mean) < 1e-9
        assert abs(float(step.cov[i, 0, 0]) - trapezoid(bayes * (grid.numpy() - mean) ** 2, grid)) < 1e-9


@every_case
@every_schedule
@every_step
@pytest.mark.equation("eq-exact-reverse")
def test_reverse_moments_obey_the_second_order_tweedie_formulas(case, schedule, t, s):
    """Mean and covariance of one step from gradient and Hessian (by autograd) of log p_t."""
    x = points(case, 5)[:3]
    alpha_ts = float(schedule.alpha(t)) / float(schedule.alpha(s))
    var_ts = float(schedule.sigma(t)) ** 2 - (alpha_ts * float(schedule.sigma(s))) ** 2
    for label in [None, classes_of(case)[-1]]:
        log_prob = case.peer(float(schedule.alpha(t)), float(schedule.sigma(t)), label).log_prob
        curvature = torch.eye(case.dim, dtype=F64) + var_ts * second_derivative(log_prob, x)
        clean = case.mixture if label is None else case.mixture.given(label)
        step = clean.reverse(x, schedule, t, s)
        # alpha_ts is as small as 4.5e-5; multiplied by it, both sides are of the order of one
        assert worst(alpha_ts * step.mean, x + var_ts * derivative(log_prob, x)) < 1e-11
        assert worst(alpha_ts**2 * step.cov, var_ts * curvature) < 1e-11


@every_case
def test_a_step_to_time_zero_has_the_denoisers_mean(case):
    x = points(case)
    for label in [None, *classes_of(case)]:
        clean = case.mixture if label is None else case.mixture.given(label)
        for t in (0.05, 0.6, 1.0):
            expected = case.mixture.denoiser(vp_linear(), label)(x, t).x0
            assert worst(clean.reverse(x, vp_linear(), t, 0.0).mean, expected) < 1e-11


@every_case
def test_a_step_of_no_length_stays_where_it_is(case):
    x = points(case)
    for t in (0.2, 1.0):
        step = case.mixture.reverse(x, vp_linear(), t, t)
        assert worst(step.mean, x) < 1e-12
        assert worst(step.cov, torch.zeros(11, case.dim, case.dim)) < 1e-12
        assert worst(step.sample(torch.Generator().manual_seed(0)), x) < 1e-12


def test_two_reverse_steps_compose_to_one_by_quadrature():
    """Chapman-Kolmogorov: integral of p(x_r | x_s) p(x_s | x_t) over x_s is p(x_r | x_t)."""
    schedule, (t, s, r) = vp_linear(), (0.6, 0.35, 0.1)
    grid = torch.linspace(-8, 8, 4001, dtype=F64)[:, None]
    x, targets = torch.tensor([[0.4]], dtype=F64), torch.tensor([-2.0, -0.3, 0.5, 1.0], dtype=F64)
    first = LINE.mixture.reverse(x, schedule, t, s).log_prob(grid[:, None])[:, 0].exp()
    second = LINE.mixture.reverse(grid, schedule, s, r)
    direct = LINE.mixture.reverse(x, schedule, t, r).log_prob(targets[:, None, None])[:, 0].exp()
    for target, expected in zip(targets, direct, strict=True):
        density = second.log_prob(target.expand_as(grid)).exp()
        assert abs(trapezoid(first * density, grid[:, 0]) - float(expected)) < 1e-10


def test_reverse_density_takes_any_leading_shape():
    step = PLANE.mixture.reverse(points(PLANE, 3), vp_linear(), 0.5, 0.2)
    y = torch.randn(4, 5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert step.log_prob(y).shape == (4, 5, 3)
    assert worst(step.log_prob(y)[2, 3], step.log_prob(y[2, 3])) < 1e-13


def test_each_component_of_the_reverse_step_agrees_with_torch_distributions():
    step = PLANE.mixture.reverse(points(PLANE, 3), vp_linear(), 0.5, 0.2)
    covs = (step.axes * step.variances[:, None]) @ step.axes.mT
    y = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    parts = MultivariateNormal(step.means.movedim(0, 1), covs)
    peer = MixtureSameFamily(Categorical(logits=step.log_weights.T), parts)
    assert worst(step.log_prob(y), peer.log_prob(y)) < 1e-11
    assert worst(step.mean, peer.mean) < 1e-13


# --- sampling: 4.5 standard errors, level 1e-5 a comparison, seeded -------------------------------

COUNT = 40_000


def check_moments(x: Tensor, mean: Tensor, cov: Tensor) -> None:
    """Sample mean and covariance within 4.5 standard errors, the latter's from fourth moments."""
    centred = x - mean
    assert bool((centred.mean(0).abs() < 4.5 * (cov.diagonal() / len(x)).sqrt()).all())
    products = centred[:, :, None] * centred[:, None]
    assert bool(((products.mean(0) - cov).abs() < 4.5 * products.std(0) / math.sqrt(len(x))).all())


@every_case
def test_samples_have_the_mixtures_moments_and_labels(case):
    x, labels = case.mixture.sample(COUNT, torch.Generator().manual_seed(7))
    assert x.shape == (COUNT, case.dim) and x.dtype == F64
    assert labels.shape == (COUNT,) and labels.dtype == torch.int64
    mean = case.weights @ case.means
    between = torch.einsum("k,kd,ke->de", case.weights, case.means - mean, case.means - mean)
    check_moments(x, mean, between + torch.einsum("k,kde->de", case.weights, case.covs))
    for label in set(case.own_labels):
        share = case.prior(label)
        frequency = float((labels == label).double().mean())
        assert abs(frequency - share) <= 4.5 * math.sqrt(share * (1 - share) / COUNT) + 1e-12
        if share > 0:
            mine = torch.tensor([y == label for y in case.own_labels]) * case.weights / share
            mean = mine @ case.means
            spread = torch.einsum("k,kd,ke->de", mine, case.means - mean, case.means - mean)
            check_moments(x[labels == label], mean, spread + torch.einsum("k,kde->de", mine, case.covs))


def test_samples_on_the_line_have_the_right_distribution():
    """Kolmogorov-Smirnov, 40,000 draws, level 1e-4."""
    x, _ = LINE.mixture.sample(COUNT, torch.Generator().manual_seed(8))
    assert kstest(x[:, 0].numpy(), line_cdf).pvalue > 1e-4


@pytest.mark.parametrize("case", [LINE, PLANE, CASES["zero weight"]], ids=["line", "plane", "zero weight"])
@pytest.mark.parametrize("label", [None, 0])
def test_reverse_samples_have_the_steps_moments(case, label):
    """40,000 draws at each of two points at once, which must not be mixed up."""
    x = points(case, 4)[:2]
    clean = case.mixture if label is None else case.mixture.given(label)
    step = clean.reverse(x.repeat_interleave(COUNT, dim=0), vp_linear(), 0.6, 0.2)
    drawn = step.sample(torch.Generator().manual_seed(9))
    few = clean.reverse(x, vp_linear(), 0.6, 0.2)
    for i, part in enumerate(drawn.split(COUNT)):
        check_moments(part, few.mean[i], few.cov[i])


def test_reverse_samples_keep_the_marginals():
    """Noise x_0 to t, step back to s: that has the marginal of s. KS, 40,000 draws, level 1e-4."""
    generator, schedule, (t, s) = torch.Generator().manual_seed(10), vp_linear(), (0.5, 0.2)
    x0, _ = LINE.mixture.sample(COUNT, generator)
    x_t = schedule.add_noise(x0, torch.randn(COUNT, 1, generator=generator, dtype=F64), t)
    x_s = LINE.mixture.reverse(x_t, schedule, t, s).sample(generator)
    alpha, sigma = float(schedule.alpha(s)), float(schedule.sigma(s))
    assert kstest(x_s[:, 0].numpy(), line_cdf, args=(alpha, sigma)).pvalue > 1e-4


def test_samples_depend_on_the_generator_alone():
    def drawn():
        generator = torch.Generator().manual_seed(3)
        x, labels = PLANE.mixture.sample(9, generator)
        return x, labels, PLANE.mixture.reverse(x, vp_linear(), 0.5, 0.2).sample(generator)

    first = drawn()
    torch.randn(5)
    state = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(), strict=True))
    assert torch.equal(state, torch.get_rng_state())  # the global generator was left alone
    assert not torch.equal(first[0], PLANE.mixture.sample(9, torch.Generator().manual_seed(4))[0])


# --- far away, and in float32 ---------------------------------------------------------------------

FAR = 1e4


def far_points(dim: int) -> Tensor:
    """Points at distance 1e4 along both directions of every axis and in random directions, in float32."""
    directions = torch.randn(40, dim, generator=torch.Generator().manual_seed(11), dtype=F64)
    directions = torch.cat([torch.eye(dim, dtype=F64), -torch.eye(dim, dtype=F64), directions])
    return (FAR * directions / directions.norm(dim=1, keepdim=True)).float()


@every_case
@pytest.mark.parametrize(("alpha", "sigma"), [*LEVELS, (1.0, 1e-4)])
def test_far_away_everything_is_finite_and_right_in_float32(case, alpha, sigma):
    x, double = far_points(case.dim), case.mixture.noised(alpha, sigma)
    single = case.mixture.to(F32).noised(alpha, sigma)
    rounding = 1e-6 * float(double.log_prob(x.double()).abs().max())  # of the squared distance, in float32
    assert worst(single.log_prob(x), double.log_prob(x.double())) < rounding
    size = double.score(x.double()).norm(dim=1).max()
    assert worst(single.score(x) / size, double.score(x.double()) / size) < 1e-4
    for label in classes_of(case):
        assert worst(single.class_log_prob(x, label), double.class_log_prob(x.double(), label)) < 5 * rounding
        ours, exact = single.class_gradient(x, label), double.class_gradient(x.double(), label)
        assert worst(ours / size, exact / size) < 2e-4
    assert bool(torch.isfinite(single.hessian(x)).all())


@pytest.mark.parametrize("covs", [[1e-6, 1e-6], [1e-6, 1.0], [100.0, 1e-2], [1.0, 1.0]])
@pytest.mark.parametrize("x", [[FAR, 0.0], [-FAR, 0.0], [3e3, -9e3]])
def test_far_away_the_score_points_to_the_component_that_reaches_farthest(covs, x):
    """The broadest wins; between equally broad ones, the nearest."""
    means = torch.tensor([[-5.0, 0.0], [5.0, 0.0]])
    case = GaussianMixture([0.9, 0.1], means, torch.tensor(covs)[:, None, None] * torch.eye(2))
    point = torch.tensor([x])
    winner = int(np.argmax(covs)) if covs[0] != covs[1] else int(x[0] > 0)
    expected = (means[winner] - point[0]) / covs[winner]
    score = case.score(point)[0]
    assert worst(score / expected.norm(), expected / expected.norm()) < 1e-5
    assert float(case.class_log_prob(point, winner)) > -1e-6
    assert float(case.class_log_prob(point, 1 - winner)) < -100
    assert worst(case.hessian(point)[0] * covs[winner], -torch.eye(2)) < 1e-5
    assert worst(case.class_gradient(point, winner) / expected.norm(), torch.zeros(1, 2)) < 1e-5


@every_case
@every_schedule
@pytest.mark.parametrize("t", [0.0, 1e-6, 0.1, 0.5, 1.0])
def test_far_away_denoiser_and_reverse_step_are_finite_and_right_in_float32(case, schedule, t):
    """At t = 1 the components' log densities (5e7) differ by less than float32 resolves (4): x0 is then
    some average of what the components say, but never more.
    """
    x = far_points(case.dim)[: 2 * case.dim]
    single, double = case.mixture.to(F32), case.mixture
    for label in [None, classes_of(case)[0]]:
        ours, exact = (m.denoiser(schedule, label)(p, t) for m, p in ((single, x), (double, x.double())))
        size = exact.x0.abs().max()  # alpha x / (alpha^2 + sigma^2 / C): large as well
        reach = double.reverse(x.double(), schedule, t, 0.0).means.abs().max()
        assert float(ours.x0.abs().max()) < 1.001 * reach
        assert t == 1 or worst(ours.x0 / size, exact.x0 / size) < 1e-4
        assert worst(ours.eps / FAR, exact.eps / FAR) < 1e-4
    step = single.reverse(x, schedule, t, t / 2)
    assert bool(torch.isfinite(step.mean).all()) and bool(torch.isfinite(step.cov).all())
    assert bool(torch.isfinite(step.sample(torch.Generator().manual_seed(0))).all())


@every_case
def test_float32_agrees_with_float64_near_the_modes(case):
    x, single, double = points(case)[:-2].float(), case.mixture.to(F32), case.mixture
    scale = double.hessian(x.double()).abs().max() + double.score(x.double()).abs().max()
    assert single.score(x).dtype == single.hessian(x).dtype == F32
    assert worst(single.score(x) / scale, double.score(x.double()) / scale) < 1e-5
    assert worst(single.hessian(x) / scale**2, double.hessian(x.double()) / scale**2) < 1e-5


# --- batches, chunks, gradients, dtypes and devices -----------------------------------------------


def everything(mixture: GaussianMixture, x: Tensor) -> dict[str, Tensor]:
    """Every quantity with one row a point."""
    x0, eps = mixture.denoiser(vp_linear())(x, 0.3)
    x0_given, _ = mixture.denoiser(vp_linear(), 0)(x, 0.3)
    step = mixture.reverse(x, vp_linear(), 0.3, 0.1)
    return {
        "log_prob": mixture.log_prob(x), "score": mixture.score(x), "hessian": mixture.hessian(x),
        "class_log_prob": mixture.class_log_prob(x, 0), "class_gradient": mixture.class_gradient(x, 0),
        "x0": x0, "eps": eps, "x0 given 0": x0_given, "reverse mean": step.mean, "reverse cov": step.cov,
        "reverse log_prob": step.log_prob(x),
    }


@every_case
def test_a_batch_of_one_gives_the_same_as_a_batch_of_many(case):
    x = points(case)
    many = everything(case.mixture, x)
    for i in range(len(x)):
        for name, row in everything(case.mixture, x[i : i + 1]).items():
            assert worst(row[0], many[name][i]) < 1e-10, name


@every_case
@pytest.mark.parametrize("chunk", [1, 4, 11])
def test_results_do_not_depend_on_the_chunks(case, chunk, monkeypatch):
    x = points(case)
    whole = everything(case.mixture, x)
    monkeypatch.setattr(chunks, "SIZE", chunk)
    for name, value in everything(case.mixture, x).items():
        assert worst(value, whole[name]) < 1e-10, name


def test_more_points_than_a_chunk():
    count = chunks.SIZE + 3
    x, _ = PLANE.mixture.sample(count, torch.Generator().manual_seed(5))
    leaf = x.clone().requires_grad_()
    values = PLANE.mixture.log_prob(leaf)
    (slope,) = torch.autograd.grad(values.sum(), leaf)
    assert worst(values, PLANE.peer().log_prob(x)) < 1e-10
    assert worst(slope, PLANE.mixture.score(x)) < 1e-10
    x0, eps = PLANE.mixture.denoiser(vp_linear())(x, 0.3)
    last = PLANE.mixture.denoiser(vp_linear())(x[-5:], 0.3)
    assert x0.shape == eps.shape == x.shape
    assert worst(x0[-5:], last.x0) < 1e-12 and worst(eps[-5:], last.eps) < 1e-12


@every_case
@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.equation("eq-mixture-score")
@pytest.mark.equation("eq-mixture-hessian")
def test_log_prob_can_be_differentiated_twice(case, chunk, monkeypatch):
    monkeypatch.setattr(chunks, "SIZE", chunk)
    noisy, x = case.mixture.noised(0.6, 0.8), points(case)
    assert worst(derivative(noisy.log_prob, x), noisy.score(x)) < 1e-11
    assert worst(second_derivative(noisy.log_prob, x), noisy.hessian(x)) < 1e-10
    for column in range(case.dim):
        row = derivative(lambda p, column=column: noisy.score(p)[:, column], x)
        assert worst(row, noisy.hessian(x)[:, column]) < 1e-10


@every_case
@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.equation("eq-score-decomposition")
def test_class_log_prob_can_be_differentiated(case, chunk, monkeypatch):
    monkeypatch.setattr(chunks, "SIZE", chunk)
    noisy, x = case.mixture.noised(0.6, 0.8), points(case)
    for label in classes_of(case):
        by_autograd = derivative(lambda p, label=label: noisy.class_log_prob(p, label), x)
        assert worst(by_autograd, noisy.class_gradient(x, label)) < 1e-11


def test_density_can_be_differentiated_in_the_means():
    x, means = points(PLANE), PLANE.means.clone().requires_grad_()
    ours = GaussianMixture(PLANE.weights, means, PLANE.covs, PLANE.labels).log_prob(x).sum()
    peer = PLANE._replace(means=means).peer().log_prob(x).sum()
    assert worst(torch.autograd.grad(ours, means)[0], torch.autograd.grad(peer, means)[0]) < 1e-10


@every_case
def test_derivative_of_the_denoiser_is_the_posterior_covariance(case):
    """d x0 / d x = alpha / sigma^2 Cov[x_0 | x_t], with the covariance of the exact step to time 0."""
    schedule, t, x = vp_linear(), 0.3, points(case)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    cov = case.mixture.reverse(x, schedule, t, 0.0).cov
    for row in range(case.dim):
        slope = derivative(lambda p, row=row: case.mixture.denoiser(schedule)(p, t).x0[:, row], x)
        assert worst(slope, alpha / sigma**2 * cov[:, row]) < 1e-10


def test_nothing_at_all_is_a_batch_too():
    nothing = torch.zeros(0, 2, dtype=F64)
    assert all(len(value) == 0 for value in everything(PLANE.mixture, nothing).values())


def test_dtype_follows_the_means():
    lists = GaussianMixture([0.5, 0.5], torch.zeros(2, 1, dtype=F32), torch.ones(2, 1, 1, dtype=F64))
    assert lists.weights.dtype == lists.covs.dtype == F32
    assert lists.labels == (0, 1)
    moved = PLANE.mixture.to(F32)
    assert moved.means.dtype == moved.axes.dtype == F32 and moved.labels == PLANE.mixture.labels


def test_weights_that_sum_to_one_up_to_rounding_are_normalised():
    weights = torch.tensor([1 / 3, 1 / 3, 1 / 3], dtype=F32)
    ours = GaussianMixture(weights, torch.zeros(3, 1, dtype=F64), torch.ones(3, 1, 1))
    assert worst(ours.weights.sum(), 1.0) < 1e-15


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@every_case
def test_a_mixture_on_an_accelerator_gives_the_same_numbers(case):
    x = points(case)
    here, there = everything(case.mixture, x), everything(case.mixture.to("cuda"), x.cuda())
    for name, value in there.items():
        assert value.device.type == "cuda" and worst(value.cpu(), here[name]) < 1e-9, name
    drawn, labels = case.mixture.to("cuda").sample(5, torch.Generator("cuda").manual_seed(0))
    assert drawn.device.type == labels.device.type == "cuda"


# --- properties of random mixtures ----------------------------------------------------------------


@st.composite
def random_mixtures(draw):
    count, dim = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    labels = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    return random_case(draw(st.integers(0, 2**31)), count, dim, labels)


few = settings(max_examples=25, deadline=None, derandomize=True)


@few
@given(random_mixtures(), st.floats(0.01, 1), st.floats(0, 0.95))
def test_covariance_of_a_reverse_step_is_positive_definite(case, t, fraction):
    cov = case.mixture.reverse(points(case), vp_linear(), t, fraction * t).cov
    assert worst(cov, cov.mT) < 1e-12
    assert float(torch.linalg.eigvalsh(cov).min()) > 0


@few
@given(random_mixtures(), st.floats(0, 1))
@pytest.mark.equation("eq-score-decomposition")
def test_class_gradients_average_to_zero(case, t):
    """Since the probabilities sum to one, sum_y p(y | x) grad log p(y | x) = 0."""
    noisy, x = case.mixture.noised(vp_linear().alpha(t), vp_linear().sigma(t)), points(case)[:-2]
    shares = {y: noisy.class_log_prob(x, y).exp()[:, None] for y in classes_of(case)}
    average = sum(share * noisy.class_gradient(x, y) for y, share in shares.items())
    assert worst(average, torch.zeros_like(x)) < 1e-10


@few
@given(random_mixtures(), st.floats(0, 1))
@pytest.mark.equation("eq-score-decomposition")
def test_score_is_the_class_average_of_the_conditional_scores(case, t):
    noisy, x = case.mixture.noised(vp_linear().alpha(t), vp_linear().sigma(t)), points(case)[:-2]
    shares = {y: noisy.class_log_prob(x, y).exp()[:, None] for y in classes_of(case)}
    average = sum(share * noisy.given(y).score(x) for y, share in shares.items())
    assert worst(average, noisy.score(x)) < 1e-10


@few
@given(random_mixtures(), st.floats(0.001, 1))
def test_denoised_points_average_to_the_mean_of_the_data(case, t):
    """The tower rule, over 4,000 draws of x_t; 6 standard errors, level 1e-7 after all examples."""
    noisy = case.mixture.noised(vp_linear().alpha(t), vp_linear().sigma(t))
    x, _ = noisy.sample(4000, torch.Generator().manual_seed(1))
    x0, mean = case.mixture.denoiser(vp_linear())(x, t).x0, case.weights @ case.means
    assert bool(((x0.mean(0) - mean).abs() < 6 * x0.std(0) / math.sqrt(len(x)) + 1e-9).all())


# --- one label and one time for all points, or one each ---------------------------------------------------------


@pytest.mark.equation("eq-mixture-denoiser")
@pytest.mark.parametrize("schedule", [vp_linear(), cosine()], ids=["linear", "cosine"])
def test_a_time_and_a_label_a_point_are_the_answers_one_by_one(schedule):
    x = points(PLANE)[:6]
    times = torch.tensor([0.0, 0.02, 0.3, 0.3, 0.8, 1.0], dtype=F64)
    known = torch.tensor(classes_of(PLANE))
    labels = known[torch.arange(6) % len(known)]
    for label in (None, int(known[0]), labels):
        together = PLANE.mixture.denoiser(schedule, label)(x, times)
        one_time = PLANE.mixture.denoiser(schedule, label)(x, 0.3)
        for i in range(6):
            alone = PLANE.mixture.denoiser(schedule, int(labels[i]) if label is labels else label)
            for got, want in zip(together, alone(x[i : i + 1], times[i]), strict=True):
                assert worst(got[i], want[0]) < 1e-9
            for got, want in zip(one_time, alone(x[i : i + 1], 0.3), strict=True):
                assert worst(got[i], want[0]) < 1e-10


def test_a_pair_takes_a_label_a_point_as_a_network_pair_does():
    known = torch.tensor(classes_of(PLANE))
    x = points(PLANE)[: len(known)]
    cond, uncond = PLANE.mixture.pair(vp_linear(), known)(x, 0.4)
    for i, label in enumerate(known.tolist()):
        assert worst(cond.eps[i], PLANE.mixture.denoiser(vp_linear(), label)(x, 0.4).eps[i]) < 1e-12
    assert worst(uncond.eps, PLANE.mixture.denoiser(vp_linear())(x, 0.4).eps) == 0
