"""`-log p(x)` from errors and through the flow: against the closed density of mixtures, and the chain written out."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from difflesson import kernels, likelihood, ode
from difflesson.samplers import time_grid
from difflesson.schedule import cosine, vp_linear
from tests.oracles.mixtures import FOUR, random_mixture, single

F64 = torch.float64
PLANE, LINE = FOUR.mixture(), random_mixture(1, [0, 1, 1])
SPREAD, ENDS = vp_linear(0.3, 8.0), cosine(16.0, -16.0)


def some(mixture, count: int = 4, seed: int = 0):
    return mixture.sample(count, torch.Generator().manual_seed(seed))[0]


@pytest.mark.equation("eq-error-area")
@pytest.mark.parametrize("mixture", [PLANE, LINE], ids=["plane", "line"])
def test_the_area_under_the_error_curve_is_minus_the_log_density(mixture):
    x = torch.cat([some(mixture), 6 * torch.ones(1, mixture.dim, dtype=F64)])
    for schedule in (ENDS, cosine(16.0, -18.0)):
        area = likelihood.error_area(mixture.denoiser(schedule), schedule, x, time_grid(80, schedule), order=24)
        torch.testing.assert_close(area, -mixture.log_prob(x), rtol=1e-6, atol=2e-5)


@pytest.mark.equation("eq-error-area")
def test_the_area_of_one_gaussian_is_exact_with_few_nodes_and_its_tails_fall_with_the_ends():
    gaussian = single([0.4, -1.0], [[0.7, 0.2], [0.2, 0.3]])
    x, missing = some(gaussian), []
    for end in (6.0, 8.0, 10.0):
        schedule = cosine(end, -end)
        area = likelihood.error_area(gaussian.denoiser(schedule), schedule, x, time_grid(60, schedule), order=4)
        missing.append(float((area + gaussian.log_prob(x)).abs().max()))
    assert missing[0] < 0.05 and all(5 < a / b < 10 for a, b in zip(missing, missing[1:], strict=False))  # e^2 = 7.4


@pytest.mark.equation("eq-error-area")
def test_another_denoiser_has_a_larger_area_on_average():
    x = some(PLANE, 20)
    areas = [
        likelihood.error_area(model.denoiser(ENDS), ENDS, x, time_grid(60, ENDS), order=12).mean()
        for model in (PLANE, single([0.5, 0.3], [[1.0, 0.2], [0.2, 1.0]]))
    ]
    assert areas[1] > areas[0] + 0.1


def chain_terms(denoiser, schedule, x, times, noise):
    """The bound of a chain of ddpm steps at one noise, written out with distributions: terms (M, N)."""
    step, total = kernels.ddpm(denoiser, schedule), 0.0
    for t, s in zip(times[:-1], times[1:], strict=True):
        seen = schedule.alpha(t) * x + schedule.sigma(t) * noise
        alpha_ts, sigma_ts = schedule.transition(t, s)
        precision = 1 / schedule.sigma(s) ** 2 + (alpha_ts / sigma_ts) ** 2
        mean = (schedule.alpha(s) * x / schedule.sigma(s) ** 2 + alpha_ts * seen / sigma_ts**2) / precision
        q = MultivariateNormal(mean, torch.eye(2, dtype=F64) / precision)
        model = step(seen, t, s)
        total = total + kl_divergence(q, MultivariateNormal(model.mean, model.var * torch.eye(2, dtype=F64)))
    return total


@pytest.mark.equation("eq-bound-terms")
def test_the_terms_are_divergences_of_the_steps_and_of_the_last_point_from_the_prior():
    x, times, noise = some(PLANE), torch.tensor([0.95, 0.6, 0.3, 0.05], dtype=F64), torch.tensor([0.4, -1.1]).double()
    denoiser = PLANE.denoiser(SPREAD)
    snr = SPREAD.log_snr(times).exp()
    weighted = sum(
        (snr[i + 1] - snr[i]) / 2 * likelihood.squared_errors(denoiser, SPREAD, x, times[i], noise[None])[0]
        for i in range(3)
    )
    torch.testing.assert_close(weighted, chain_terms(denoiser, SPREAD, x, times, noise))
    bound = likelihood.variational_bound(denoiser, SPREAD, x, times, order=40)
    alpha, sigma = SPREAD.alpha(0.95), SPREAD.sigma(0.95)
    prior = kl_divergence(Normal(alpha * x, sigma), Normal(torch.zeros_like(x), 1.0)).sum(1)
    torch.testing.assert_close(bound.prior, prior)
    axis = torch.linspace(-8, 8, 121, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    chance = (-grid.square().sum(1) / 2).softmax(0)
    last = SPREAD.alpha(0.05) * x + SPREAD.sigma(0.05) * grid[:, None]
    guess = denoiser(last.flatten(0, 1), torch.tensor(0.05, dtype=F64)).x0.view_as(last)
    decoded = -Normal(guess, SPREAD.sigma(0.05) / SPREAD.alpha(0.05)).log_prob(x).sum(2)
    torch.testing.assert_close(bound.reconstruction, chance @ decoded, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bound.total, sum(bound))


@pytest.mark.equation("eq-bound-terms")
@pytest.mark.parametrize("mixture", [PLANE, LINE], ids=["plane", "line"])
def test_the_gap_of_the_bound_is_positive_on_average_and_halves_with_twice_the_steps(mixture):
    x = some(mixture, 10)
    gaps = [
        float((likelihood.variational_bound(mixture.denoiser(ENDS), ENDS, x, time_grid(n, ENDS)).total
               + mixture.log_prob(x)).mean()) for n in (25, 50, 100, 200)
    ]  # fmt: skip
    assert gaps[-1] > 0
    orders = [math.log2(a / b) for a, b in zip(gaps, gaps[1:], strict=False)]
    assert orders == sorted(orders, reverse=True) and 0.99 < orders[-1] < 1.2


@pytest.mark.equation("eq-bound-terms")
def test_draws_meet_the_quadrature_within_their_standard_error():
    """Level: 12 points, 4 standard errors each."""
    x, times = some(PLANE, 12), time_grid(20, ENDS)
    exact = likelihood.variational_bound(PLANE.denoiser(ENDS), ENDS, x, times, order=40).total
    dice = torch.Generator().manual_seed(3)
    mean, error = likelihood.sampled_bound(PLANE.denoiser(ENDS), ENDS, x, times, 400, dice)
    assert mean.shape == error.shape == (12,)
    assert float(((mean - exact) / error).abs().max()) < 4


@pytest.mark.equation("eq-least-error")
@pytest.mark.parametrize("time", [0.2, 0.5, 0.9])
def test_the_least_error_is_the_average_error_of_the_best_guess(time):
    t = torch.tensor(time, dtype=F64)
    x, weights = likelihood.mixture_nodes(PLANE, 12)
    noise, chances = likelihood.hermite(30, 2)
    average = chances @ likelihood.squared_errors(PLANE.denoiser(SPREAD), SPREAD, x, t, noise) @ weights
    torch.testing.assert_close(likelihood.least_error(PLANE, SPREAD, t, 40), average, rtol=1e-3, atol=0)


def test_noises_may_be_shared_by_the_points_or_each_points_own():
    x, noise = some(PLANE, 3), torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    t, denoiser = torch.tensor(0.4, dtype=F64), PLANE.denoiser(SPREAD)
    shared = likelihood.squared_errors(denoiser, SPREAD, x, t, noise)
    own = likelihood.squared_errors(denoiser, SPREAD, x, t, noise[:, None].expand(5, 3, 2))
    torch.testing.assert_close(shared, own)
    assert shared.shape == (5, 3)


@pytest.mark.parametrize("name", ["x", "times", "t", "draws", "generator"])
def test_what_does_not_fit_is_named(name):
    x, times, t = some(PLANE, 3), time_grid(5, ENDS), torch.tensor(0.4, dtype=F64)
    denoiser, dice = PLANE.denoiser(SPREAD), torch.Generator()
    wrong = {
        "x": lambda: likelihood.squared_errors(denoiser, SPREAD, x, t, torch.zeros(5, 3, dtype=F64)),
        "times": lambda: likelihood.variational_bound(PLANE.denoiser(ENDS), ENDS, x, times[[0, 2, 1]]),
        "t": lambda: likelihood.error_area(denoiser, SPREAD, x, times),  # sigma is 0 at the last
        "draws": lambda: likelihood.sampled_bound(PLANE.denoiser(ENDS), ENDS, x, times, 1, dice),
        "generator": lambda: likelihood.sampled_bound(PLANE.denoiser(ENDS), ENDS, x, times, 5, None),
    }
    with pytest.raises(ValueError, match=rf"^{name} must"):
        wrong[name]()


# ---- through the flow


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.equation("eq-hutchinson")
def test_the_divergence_is_the_trace_of_differences_and_the_mean_of_all_signs():
    flow, x, h = ode.probability_flow(PLANE.denoiser(SPREAD), SPREAD), numbers(5, 2), 1e-6
    steps = h * torch.eye(2, dtype=F64)
    trace = sum((flow(x + step, 0.4) - flow(x - step, 0.4))[:, i] / (2 * h) for i, step in enumerate(steps))
    torch.testing.assert_close(likelihood.divergence(flow, x, 0.4), trace[None], rtol=1e-6, atol=1e-6)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * 2)[:, None].expand(4, 5, 2)
    guesses = likelihood.divergence(flow, x, 0.4, signs)
    assert guesses.shape == (4, 5)
    torch.testing.assert_close(guesses.mean(0), trace, rtol=1e-6, atol=1e-6)


@pytest.mark.equation("eq-hutchinson")
def test_the_divergence_of_a_field_that_is_no_gradient_and_of_images():
    matrix = numbers(12, 12, seed=1)
    x, z = numbers(3, 1, 3, 4, seed=2), numbers(6, 3, 1, 3, 4, seed=3)

    def flow(x, t):
        return t * (x.flatten(1) @ matrix.T).view(x.shape)

    torch.testing.assert_close(likelihood.divergence(flow, x, 0.5), (matrix.trace() / 2).expand(1, 3))
    by_hand = torch.einsum("pni,ij,pnj->pn", z.flatten(2), matrix, z.flatten(2)) / 2
    torch.testing.assert_close(likelihood.divergence(flow, x, 0.5, z), by_hand)


@pytest.mark.equation("eq-flow-likelihood")
@pytest.mark.parametrize("mixture", [PLANE, LINE, random_mixture(3, [0, 1])], ids=["plane", "line", "space"])
def test_the_flow_knows_the_density_of_the_mixture(mixture):
    x = torch.cat([some(mixture), 4 * torch.ones(1, mixture.dim, dtype=F64)])
    for schedule, s in ((cosine(), 0.3), (vp_linear(0.1, 40.0), 0.05)):
        found, error = likelihood.flow_log_prob(ode.probability_flow(mixture.denoiser(schedule), schedule), x, s)
        exact = mixture.noised(schedule.alpha(s), schedule.sigma(s)).log_prob(x)
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=3e-4)
        assert not error.any()


@pytest.mark.equation("eq-flow-likelihood")
def test_probes_give_the_density_within_their_stated_error():
    schedule, x = cosine(), some(PLANE, 30)
    flow = ode.probability_flow(PLANE.denoiser(schedule), schedule)
    signs = torch.randint(0, 2, (12, 30, 2), generator=torch.Generator().manual_seed(4)).double() * 2 - 1
    for probes in (signs, numbers(12, 30, 2, seed=5)):
        found, error = likelihood.flow_log_prob(flow, x, 0.2, probes)
        score = (found - PLANE.noised(schedule.alpha(0.2), schedule.sigma(0.2)).log_prob(x)) / error
        assert bool((error > 0).all()) and float(score.square().mean().sqrt()) < 1.6 and abs(float(score.mean())) < 0.6
    with pytest.raises(ValueError, match="probes must be at least 2"):
        likelihood.flow_log_prob(flow, x, 0.2, signs[:1])


@pytest.mark.parametrize("probes", [torch.zeros(2, 4, 3), torch.zeros(2, 3, 2)])
def test_probes_shaped_otherwise_are_refused(probes):
    with pytest.raises(ValueError, match="probes"):
        likelihood.divergence(lambda x, t: x, torch.zeros(4, 2), 0.5, probes)


def test_bound_and_area_refuse_times_that_increase():
    denoiser, x, times = PLANE.denoiser(ENDS), torch.zeros(2, 2, dtype=F64), torch.linspace(0.1, 0.9, 5, dtype=F64)
    for call in (
        lambda: likelihood.error_area(denoiser, ENDS, x, times),
        lambda: likelihood.variational_bound(denoiser, ENDS, x, times),
        lambda: likelihood.sampled_bound(denoiser, ENDS, x, times, 2, torch.Generator()),
    ):
        with pytest.raises(ValueError, match="times must decrease"):
            call()
