"""What chapter 10 says about guiding a sampler of any noise, on other mixtures, schedules, times and seeds."""

import math
from functools import cache

import pytest
import torch

from difflesson import divergence, guidance, kernels, metrics, ode, plane
from difflesson.denoiser import Prediction
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import cosine, vp_linear
from tests.oracles.chapter_cells import names_of

MIXTURE = GaussianMixture(
    weights=[0.2, 0.45, 0.35],
    means=torch.tensor([[-1.2, 0.4], [0.9, 0.8], [0.2, -1.1]], dtype=torch.float64),
    covs=[[[0.4, -0.1], [-0.1, 0.3]], [[0.3, 0.15], [0.15, 0.6]], [[0.7, 0.2], [0.2, 0.2]]],
    labels=[0, 1, 0],
)
LABEL = 0  # the class of two blobs
FIVE = GaussianMixture(  # class 0 stands on both sides of the others
    weights=[0.15, 0.2, 0.25, 0.1, 0.3],
    means=torch.tensor([[-2.2, 1.0], [0.3, 1.8], [1.8, -0.4], [-1.2, -1.6], [0.2, -0.6]], dtype=torch.float64),
    covs=[[[0.3, 0.1], [0.1, 0.2]], [[0.5, -0.2], [-0.2, 0.2]], [[0.2, -0.1], [-0.1, 0.5]], [[0.4, 0.15], [0.15, 0.3]],
          [[0.25, 0.05], [0.05, 0.15]]],
    labels=[0, 1, 0, 2, 2],
)  # fmt: skip
SCHEDULES = {"linear": vp_linear(0.3, 9.0), "cosine": cosine(12.0, -12.0)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
X = torch.tensor([[0.0, 0.0], [0.7, -1.1], [-0.6, 1.3], [2.5, -2.0]], dtype=torch.float64)
LINEAR = vp_linear()
BLOBS = plane.four_blobs()


def at(schedule, t, mixture=MIXTURE, label=None):
    noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
    return noisy if label is None else noisy.given(label)


def grad_under(schedule, mixture=MIXTURE, label=LABEL):
    return lambda x, t: at(schedule, t, mixture).class_gradient(x, label)


def guided(schedule, gamma=1.0, mixture=MIXTURE, label=LABEL):
    return guidance.tilt(mixture.denoiser(schedule), grad_under(schedule, mixture, label), gamma, schedule)


def noise(count, seed, dim=2):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(kernel, start, steps, seed=0, schedule=LINEAR, end=0.001):
    return draw(kernel, start, time_grid(steps, schedule, end=end), torch.Generator().manual_seed(seed))


def mass(x, mixture=BLOBS, label=1):
    return float(metrics.class_mass(mixture, x)[label])


# --- the equations --------------------------------------------------------------------------------------------------


@every_schedule
@pytest.mark.equation("eq-conditional-reverse-sde")
def test_the_backward_run_changes_the_density_of_the_class_as_time_does_for_every_noise(schedule):
    change = names_of("10", "eq-conditional-reverse-sde")["change_backwards"]
    h = 1e-5
    for t in (0.3, 0.7):
        truth = (at(schedule, t - h, label=LABEL).log_prob(X) - at(schedule, t + h, label=LABEL).log_prob(X)) / (2 * h)
        for rho in (0.0, 0.3, 1.0, 2.5):
            found = change(at(schedule, t, label=LABEL), X, schedule.beta(t), rho)
            assert float((found - truth).abs().max()) < 1e-6


@every_schedule
@pytest.mark.equation("eq-conditional-reverse-sde")
@pytest.mark.parametrize("rho", [0.0, 0.6, 1.7])
def test_the_packages_step_has_the_drift_and_the_noise_of_the_equation(schedule, rho):
    """A short step from nodes of p_t(x | y): its first moments are those of p_s(x | y), to second order in the step."""
    t, errors = 0.5, []
    for h in (2e-3, 1e-3):
        x, w = divergence.mixture_nodes(at(schedule, t, label=LABEL), order=14)
        step = kernels.reverse_sde(MIXTURE.denoiser(schedule, LABEL), schedule, rho)(x, t, t - h)
        y, u = divergence.mixture_nodes(at(schedule, t - h, label=LABEL), order=14)
        second = w @ step.mean.square() + step.var
        errors.append(float(max((w @ step.mean - u @ y).abs().max(), (second - u @ y.square()).abs().max())))
    assert errors[0] < 2e-3 and 3 < errors[0] / errors[1] < 5


@every_schedule
@pytest.mark.equation("eq-eps-substitution")
def test_the_substitution_is_the_conditional_model_to_1e_12_at_every_noise_level(schedule):
    for t in (0.01, 0.3, 0.8, 0.99):
        t = torch.tensor(t, dtype=torch.float64)
        both = guided(schedule)(X, t), MIXTURE.denoiser(schedule, LABEL)(X, t)
        assert float((both[0].eps - both[1].eps).abs().max()) < 1e-12
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        assert float((alpha * both[0].x0 + sigma * both[0].eps - X).abs().max()) < 1e-12


@every_schedule
@pytest.mark.equation("eq-general-step")
@pytest.mark.parametrize("times", [(0.8, 0.5), (0.3, 0.29), (1.0, 0.2)])
def test_the_general_step_removes_the_guessed_noise_and_puts_part_of_it_back(schedule, times):
    general = names_of("10", "eq-general-step")["general_step"]
    t, s = times
    eps, (alpha_t, alpha_s) = X.flip(0) / 2, (schedule.alpha(t), schedule.alpha(s))
    for share in (0.0, 0.4, 0.99):  # of the noise of s, fresh
        v = share * (1 - alpha_s**2)
        clean = (X - schedule.sigma(t) * eps) / alpha_t
        by_hand = alpha_s * clean + (schedule.sigma(s) ** 2 - v).clamp_min(0).sqrt() * eps
        found = general(X, eps, alpha_t, alpha_s, v)
        assert float((found - by_hand).abs().max()) < 1e-11 / float(alpha_t)


@every_schedule
@pytest.mark.equation("eq-general-step")
def test_the_ends_of_the_general_step_are_ddim_and_the_posterior_of_ddpm(schedule):
    general, (t, s) = names_of("10", "eq-general-step")["general_step"], (0.7, 0.4)
    eps = MIXTURE.denoiser(schedule)(X, torch.tensor(t, dtype=torch.float64)).eps
    alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
    clean = (X - schedule.sigma(t) * eps) / alpha_t
    shared = alpha_t / alpha_s * schedule.sigma(s) ** 2  # given x_0, x_s and x_t are jointly Gaussian
    var = schedule.sigma(s) ** 2 - shared**2 / schedule.sigma(t) ** 2
    mean = alpha_s * clean + shared / schedule.sigma(t) ** 2 * (X - alpha_t * clean)
    assert float((general(X, eps, alpha_t, alpha_s, var) - mean).abs().max()) < 1e-12
    quiet = kernels.ddim(MIXTURE.denoiser(schedule), schedule)(X, t, s)
    assert float((general(X, eps, alpha_t, alpha_s, torch.tensor(0.0)) - quiet.mean).abs().max()) < 1e-12


@every_schedule
@pytest.mark.equation("eq-shift-of-a-step")
@pytest.mark.parametrize("gamma", [1.0, -2.0, 5.0])
def test_the_label_moves_the_mean_of_every_step_by_the_coefficient_times_the_gradient(schedule, gamma):
    moved_by = names_of("10", "eq-shift-of-a-step")["moved_by"]
    for t, s in ((0.8, 0.5), (0.3, 0.28)):
        for eta in (0.0, 0.3, 1.0):
            told, untold = (
                kernels.ddim(model, schedule, eta)(X, t, s)
                for model in (guided(schedule, gamma), MIXTURE.denoiser(schedule))
            )
            c = moved_by(schedule.alpha(t), schedule.alpha(s), told.var)
            assert float((told.mean - untold.mean - gamma * c * grad_under(schedule)(X, t)).abs().max()) < 1e-11


@every_schedule
@pytest.mark.equation("eq-half-and-half")
def test_the_coefficient_is_a_geometric_mean_and_half_belongs_to_the_flow(schedule):
    closed, t = names_of("10", "eq-half-and-half")["moved_in_closed_form"], 0.6
    for eta in (0.0, 0.4, 1.0, 1.5):
        gaps = []
        for s in (0.59, 0.595):
            beta, v = schedule.transition(t, s)[1] ** 2, eta**2 * kernels.posterior_variance(schedule, t, s)
            ratio, var_t, var_s = schedule.alpha(t) / schedule.alpha(s), schedule.sigma(t) ** 2, schedule.sigma(s) ** 2
            truth = var_t / ratio - (var_t * (var_s - v)).sqrt()
            exactly, expanded = closed(beta, schedule.sigma(t), eta)
            assert abs(float(exactly - truth)) < 1e-14
            gaps.append(float(exactly - expanded) / float(beta))
            assert abs(float(exactly / beta) - (1 + eta**2) / 2) < 0.6 * float(beta / var_t) * (1 + eta**4)
        if eta == 1.0:
            assert max(abs(g) for g in gaps) < 1e-14
        else:
            assert 3 < gaps[0] / gaps[1] < 5.5  # the third order: b halves, the rest falls by four


@every_schedule
@pytest.mark.equation("eq-shift-share")
def test_the_mean_shift_pays_a_share_that_depends_on_eta_alone_in_short_steps(schedule):
    share_of, t, s = names_of("10", "eq-shift-share")["share_of_the_shift"], 0.5, 0.4999
    for eta, share in ((0.1, 0.02 / 1.01), (0.5, 0.4), (1.0, 1.0), (1.5, 4.5 / 3.25), (3.0, 1.8)):
        plain = kernels.ddim(MIXTURE.denoiser(schedule), schedule, eta)
        shifted = kernels.shift(plain, grad_under(schedule), 1.0)(X, t, s).mean - plain(X, t, s).mean
        told = kernels.ddim(guided(schedule), schedule, eta)(X, t, s).mean - plain(X, t, s).mean
        measured = float((shifted * told).sum() / told.square().sum())
        beta = schedule.transition(t, s)[1] ** 2
        assert abs(measured - share) < 0.01
        assert abs(measured - float(share_of(beta, schedule.sigma(t), eta))) < 1e-6


@every_schedule
@pytest.mark.equation("eq-stiffness")
def test_the_derivative_of_the_guided_velocity_is_a_line_in_gamma(schedule):
    stiffness, t = names_of("10", "eq-stiffness")["stiffness"], 0.6
    h = 1e-6
    for gamma in (0.0, 1.0, 7.0):
        flow = ode.probability_flow(guided(schedule, gamma), schedule)
        ell = lambda u: float(schedule.log_snr(u)) / 2  # noqa: E731
        per_ell = (ell(t + h) - ell(t - h)) / (2 * h)
        columns = []
        for axis in torch.eye(2, dtype=torch.float64):
            columns.append((flow(X + h * axis, t) - flow(X - h * axis, t)) / (2 * h) / per_ell)
        found = stiffness(MIXTURE, schedule, LABEL, gamma, X, torch.tensor(t, dtype=torch.float64))
        assert float((found - torch.stack(columns, 2)).abs().max()) < 1e-5 * (1 + gamma)


@pytest.mark.equation("eq-own-forecast")
@pytest.mark.parametrize("rho", [0.0, 0.7, 1.0, 1.8])
def test_where_a_sampler_ends_is_foretold_for_gaussian_data(rho):
    """By the chain of its own steps: each is a line plus noise, so mean and variance go through exactly."""
    forecast, U, t = names_of("10", "eq-own-forecast")["forecast"], 1.7, 0.6
    line = GaussianMixture([1.0], torch.zeros(1, 1, dtype=torch.float64), [[[U]]])
    walk, gain, var = kernels.reverse_sde(line.denoiser(LINEAR), LINEAR, rho), 1.0, 0.0
    grid = time_grid(1000, LINEAR, start=t, end=1e-3)
    one = torch.ones(1, 1, dtype=torch.float64)
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        step = walk(one, a, b)
        gain, var = gain * float(step.mean), var * float(step.mean) ** 2 + float(step.var)
    told = forecast(LINEAR.alpha(t), U, rho)
    assert abs(gain - float(told[0])) < 0.01 and abs(var - float(told[1])) < 0.01


@pytest.mark.equation("eq-global-error")
def test_the_error_of_ddim_under_guidance_is_foretold_without_a_fit():
    contributions = names_of("10", "eq-global-error")["contributions"]
    start, gamma = noise(60, 3), 2.0
    model, steps = guided(LINEAR, gamma), 200
    parts, middles = contributions(model, LINEAR, start, time_grid(80, LINEAR, end=0.001))
    whole = float(LINEAR.log_snr(0.001) - LINEAR.log_snr(1.0)) / 2
    foretold = -whole / steps / 2 * parts.sum(0) * whole / 80
    exact = ode.solve(ode.probability_flow(model, LINEAR), start, 1.0, 0.001, tolerance=1e-8)
    seen = run(kernels.ddim(model, LINEAR), start, steps) - exact
    assert float((seen - foretold).norm() / seen.norm()) < 0.05
    assert bool((middles.diff() > 0).all())


@every_schedule
@pytest.mark.equation("eq-posterior-share")
def test_the_posterior_variance_is_the_exact_coefficient_to_first_order_only(schedule):
    posterior_share, t = names_of("10", "eq-posterior-share")["posterior_share"], 0.4
    gaps = []
    for s in (0.39, 0.395):
        alpha_ts, sigma_ts = schedule.transition(t, s)
        shared = alpha_ts * schedule.sigma(s) ** 2
        v = schedule.sigma(s) ** 2 - shared**2 / schedule.sigma(t) ** 2
        share, expanded = posterior_share(sigma_ts**2, schedule.sigma(t))
        assert abs(float(v * alpha_ts / sigma_ts**2 - share)) < 1e-12
        gaps.append(float(share - expanded))
    assert 3 < gaps[0] / gaps[1] < 5.5


# --- the sentences --------------------------------------------------------------------------------------------------


def test_a_mean_shift_leaves_ddim_bit_for_bit_as_without_guidance_at_any_gamma():
    start = noise(200, 5)
    plain = run(kernels.ddim(BLOBS.denoiser(LINEAR), LINEAR), start, 30)
    for gamma in (1.0, 10.0, 1e6):
        shifted = kernels.shift(kernels.ddim(BLOBS.denoiser(LINEAR), LINEAR), grad_under(LINEAR, BLOBS, 1), gamma)
        assert torch.equal(run(shifted, start, 30), plain)


def test_a_heun_step_and_a_multistep_step_have_no_variance_either():
    for solver in (kernels.heun, kernels.dpmpp_2m):
        start = noise(50, 5)
        shifted = kernels.shift(solver(BLOBS.denoiser(LINEAR), LINEAR), grad_under(LINEAR, BLOBS, 1), 3.0)
        times = time_grid(1, LINEAR, end=0.3)
        assert torch.equal(draw(shifted, start, times), draw(solver(BLOBS.denoiser(LINEAR), LINEAR), start, times))


@cache
def by_noise(seed: int = 11) -> dict:
    """Class mass of samples, for each noise and both ways to guide."""
    start, found = noise(3000, seed), {}
    for rho in (0.0, 0.4, 1.0, 2.0):
        plain = kernels.reverse_sde(BLOBS.denoiser(LINEAR), LINEAR, rho)
        shifted = kernels.shift(plain, grad_under(LINEAR, BLOBS, 1), 1.0)
        told = kernels.reverse_sde(guided(LINEAR, 1.0, BLOBS, 1), LINEAR, rho)
        found[rho] = [mass(run(kernel, start, 80, seed + 1)) for kernel in (shifted, told)]
    return found


def test_guidance_by_substitution_does_not_depend_on_the_noise_and_by_mean_shift_goes_from_none_to_too_much():
    found = by_noise()
    x, w = divergence.mixture_nodes(BLOBS.given(1), order=40)
    truth = float(w @ BLOBS.class_log_prob(x, 1).exp())
    assert all(abs(told - truth) < 0.015 for _, told in found.values())
    shifted = [row[0] for row in found.values()]
    assert shifted == sorted(shifted) and shifted[0] < 0.45 and shifted[-1] > truth + 0.02
    assert abs(shifted[2] - truth) < 0.015
    assert 0.25 < (shifted[1] - shifted[0]) / (truth - shifted[0]) < 0.4  # a third of the way at 0.4


def test_between_0_and_1_a_larger_gamma_mends_the_mean_shift_and_fits_no_other_noise():
    """By the share of the push: gamma (1 + rho^2) / (2 rho^2), on another mixture than the page's."""
    start, target, off = noise(3000, 15), MIXTURE.given(LABEL).weights @ MIXTURE.given(LABEL).means, {}
    for rho, gamma in ((0.5, 1.0), (0.5, 2.5), (0.8, 2.5), (1.0, 2.5), (0.0, 2.5)):
        plain = kernels.reverse_sde(MIXTURE.denoiser(LINEAR), LINEAR, rho)
        got = run(kernels.shift(plain, grad_under(LINEAR), gamma), start, 100, 16)
        off[rho, gamma] = float((got.mean(0) - target).norm())
    assert off[0.5, 2.5] < 0.08 and min(off[key] for key in off if key != (0.5, 2.5)) > 0.2


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_at_gamma_1_the_mean_of_the_general_step_is_that_of_x_s_given_x_t_and_the_label_at_each_eta(eta):
    """Over a fine line of clean points: given x_0 and x_t, x_s is alpha_s x_0 + sqrt(sigma_s^2 - v) eps + new noise."""
    means = torch.tensor([[-1.5], [0.4], [1.9]], dtype=torch.float64)
    line = GaussianMixture([0.3, 0.5, 0.2], means, [[[0.2]], [[0.5]], [[0.1]]], [0, 1, 1])
    x, x0 = torch.full((1, 1), 0.7, dtype=torch.float64), torch.linspace(-8, 8, 40_001, dtype=torch.float64)[:, None]
    for t, s in ((0.6, 0.4), (0.3, 0.25)):
        step = kernels.ddim(guided(LINEAR, 1.0, line, 1), LINEAR, eta)(x, t, s)
        eps = (x - LINEAR.alpha(t) * x0) / LINEAR.sigma(t)
        chance = torch.softmax(line.given(1).log_prob(x0) - eps[:, 0].square() / 2, 0)
        x_s = LINEAR.alpha(s) * x0 + (LINEAR.sigma(s) ** 2 - step.var).sqrt() * eps
        assert abs(float(chance @ x_s) - float(step.mean)) < 1e-6


def test_at_rho_1_the_euler_steps_of_both_ways_are_the_same():
    step = kernels.reverse_sde(guided(LINEAR), LINEAR, 1.0)(X, 0.5, 0.45)
    shifted = kernels.shift(kernels.reverse_sde(MIXTURE.denoiser(LINEAR), LINEAR, 1.0), grad_under(LINEAR), 1.0)
    assert float((step.mean - shifted(X, 0.5, 0.45).mean).abs().max()) < 1e-12


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0, 1.5])
def test_in_a_short_step_half_the_push_goes_with_the_flow_and_the_rest_with_the_noise(rho):
    beta = LINEAR.beta(0.5) * 0.05
    told, untold = (
        kernels.reverse_sde(model, LINEAR, rho)(X, 0.5, 0.45).mean
        for model in (guided(LINEAR), MIXTURE.denoiser(LINEAR))
    )
    assert float((told - untold - (1 + rho**2) / 2 * beta * grad_under(LINEAR)(X, 0.5)).abs().max()) < 1e-12


def test_a_shift_and_a_substitution_together_are_about_gamma_2():
    start, grad = noise(3000, 7), grad_under(LINEAR, BLOBS, 1)
    both = kernels.shift(kernels.ddpm(guided(LINEAR, 1.0, BLOBS, 1), LINEAR, "large"), grad, 1.0)
    means = {
        name: float(run(kernel, start, 80, 8)[:, 0].mean())
        for name, kernel in {
            "both": both,
            "one": kernels.ddpm(guided(LINEAR, 1.0, BLOBS, 1), LINEAR, "large"),
            "two": kernels.ddpm(guided(LINEAR, 2.0, BLOBS, 1), LINEAR, "large"),
        }.items()
    }
    assert abs(means["both"] - means["two"]) < 0.07 and means["both"] - means["one"] > 0.3


@pytest.mark.parametrize(("power", "strong"), [(0, True), (2, False)])
def test_sigma_squared_guides_too_weakly_and_no_sigma_too_strongly(power, strong):
    start, grad = noise(3000, 7), grad_under(LINEAR, BLOBS, 1)

    def model(x, t):
        alpha, sigma = LINEAR.alpha(t), LINEAR.sigma(t)
        return Prediction.from_eps(x, BLOBS.denoiser(LINEAR)(x, t).eps - sigma**power * grad(x, t), alpha, sigma)

    wrong, right = (mass(run(kernels.ddim(m, LINEAR), start, 80)) for m in (model, guided(LINEAR, 1.0, BLOBS, 1)))
    assert wrong > right + 0.03 if strong else wrong < right - 0.06


def test_only_the_walk_with_rho_1_ends_in_the_class_as_often_as_the_classifier_says():
    here, t = torch.tensor([[-0.5, 0.1]], dtype=torch.float64), 0.35
    says = float(at(LINEAR, t, BLOBS).class_log_prob(here, 1).exp())
    ended = {}
    for rho in (0.0, 1.0, 3.0):
        walk = kernels.reverse_sde(BLOBS.denoiser(LINEAR), LINEAR, rho)
        times = time_grid(200, LINEAR, start=t, end=0.001)
        homes = draw(walk, here.expand(3000, 2), times, torch.Generator().manual_seed(1))
        ended[rho] = mass(homes)
        assert rho or float(homes.std(0).max()) < 1e-9
    assert abs(ended[1.0] - says) < 0.03 and abs(ended[0.0] - says) > 0.1
    assert says < ended[3.0] and abs(ended[3.0] - float(BLOBS.class_weights()[1])) < 0.05


def test_one_line_drives_every_sampler_on_a_mixture_of_three_classes():
    mixture = GaussianMixture(
        [0.3, 0.1, 0.2, 0.25, 0.15],
        torch.tensor([[1.5, 1.2], [-1.8, 0.2], [0.3, -1.5], [-0.7, 1.6], [0.0, 0.1]], dtype=torch.float64),
        [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]], [[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.3]],
         [[0.1, 0.03], [0.03, 0.1]]],
        [0, 0, 1, 2, 2],
    )  # fmt: skip
    model, start = guided(LINEAR, 1.0, mixture, 0), noise(2500, 2)
    x, w = divergence.mixture_nodes(mixture.given(0), order=20)
    walks = [kernels.ddpm(model, LINEAR), kernels.ddim(model, LINEAR, 0.5), kernels.ddim(model, LINEAR)]
    walks += [kernels.reverse_sde(model, LINEAR, 2.0), kernels.heun(model, LINEAR), kernels.dpmpp_2m(model, LINEAR)]
    for walk in walks:
        got = run(walk, start, 80, 4)
        chance = math.sqrt(float(got.var(0).sum()) / len(got))
        assert float((got.mean(0) - w @ x).norm()) < 3.2 * chance


@cache
def costs(gamma: float) -> dict:
    """Root mean square distance to the exact ends, by solver and number of evaluations; with a seed of its own."""
    start, model, found = noise(250, 21), guided(LINEAR, gamma, BLOBS, 1), {}
    goal = ode.solve(ode.probability_flow(model, LINEAR), start, 1.0, 0.001, tolerance=1e-7)
    for name, (solver, calls) in {
        "DDIM": (kernels.ddim, 1),
        "Heun": (kernels.heun, 2),
        "2M": (kernels.dpmpp_2m, 1),
    }.items():
        for budget in (4, 8, 12, 16, 32, 64, 128):
            off = run(solver(model, LINEAR), start, budget // calls) - goal
            found[name, budget] = float(off.square().sum(1).mean().sqrt())
    return found


@pytest.mark.nightly
def test_the_orders_are_one_for_ddim_and_two_for_heun_and_2m():
    for gamma in (1.0, 3.0):
        for name, order in (("DDIM", 1), ("Heun", 2), ("2M", 2)):
            assert abs(math.log2(costs(gamma)[name, 64] / costs(gamma)[name, 128]) - order) < 0.15


@pytest.mark.nightly
def test_guidance_costs_evaluations_with_every_solver():
    for name in ("DDIM", "Heun", "2M"):
        for budget in (16, 32, 64, 128):
            assert costs(1.0)[name, budget] < costs(3.0)[name, budget] < costs(10.0)[name, budget]


@pytest.mark.nightly
def test_second_order_is_ahead_at_gamma_1_and_behind_with_few_evaluations_at_gamma_10():
    assert all(costs(1.0)["2M", n] < costs(1.0)["DDIM", n] for n in (4, 8, 16, 32, 64, 128))
    assert all(costs(10.0)["2M", n] > costs(10.0)["DDIM", n] for n in (4, 8, 12))
    assert all(costs(10.0)[name, n] < costs(10.0)["DDIM", n] for name in ("2M", "Heun") for n in (32, 64, 128))
    assert costs(3.0)["2M", 4] > costs(3.0)["DDIM", 4] and costs(3.0)["2M", 12] < costs(3.0)["DDIM", 12]


@pytest.mark.nightly
def test_twice_the_evaluations_at_gamma_3_give_what_they_give_at_gamma_1():
    assert costs(3.0)["2M", 16] < 1.3 * costs(1.0)["2M", 8] and costs(3.0)["2M", 8] > 2 * costs(1.0)["2M", 8]


@cache
def paths(gamma: float):
    model, times = guided(LINEAR, gamma, BLOBS, 1), time_grid(40, LINEAR, end=0.001)
    x = torch.stack(list(sample(kernels.heun(model, LINEAR), noise(250, 22), times)))
    guesses = torch.stack([model(point, t).x0 for point, t in zip(x, times, strict=True)])
    ells = LINEAR.log_snr(times) / 2
    speeds = (guesses.diff(dim=0) / ells.diff()[:, None, None]).square().sum(2).mean(1).sqrt()
    return x, times, ells, speeds


def drawn_together(gamma, x, times) -> float:
    stiffness = names_of("10", "eq-stiffness")["stiffness"]
    return max(
        float(-torch.linalg.eigvalsh(stiffness(BLOBS, LINEAR, 1, gamma, point, t)).min())
        for point, t in zip(x, times, strict=True)
    )


def test_at_fixed_points_stiffness_grows_with_gamma_and_on_the_paths_that_are_walked_it_does_not():
    x, times, _, _ = paths(1.0)
    fixed = [drawn_together(gamma, x, times) for gamma in (1.0, 3.0, 10.0)]
    assert fixed[0] < fixed[1] / 4 < fixed[2] / 12 and fixed[2] > 10
    for gamma in (1.0, 3.0, 10.0):
        assert drawn_together(gamma, *paths(gamma)[:2]) < 1.7


def lowest_eigenvalue(mixture, label, gamma, steps, x) -> float:
    """Of the derivative of each DDIM step, at the points that this DDIM visits."""
    kernel, lowest = kernels.ddim(guided(LINEAR, gamma, mixture, label), LINEAR), 1.0
    times = time_grid(steps, LINEAR, end=0.001)
    for t, s in zip(times[:-1], times[1:], strict=True):
        slopes = plane.jacobian(lambda p, t=t, s=s: kernel(p, t, s).mean, x)
        lowest, x = min(lowest, float(torch.linalg.eigvals(slopes).real.min())), kernel(x, t, s).mean
    return lowest


def test_ddims_steps_do_not_overshoot_on_the_four_blobs_and_do_with_class_0_of_the_five():
    for gamma in (1.0, 3.0, 10.0):
        for steps in (4, 6, 8, 12, 16):
            assert lowest_eigenvalue(BLOBS, 1, gamma, steps, noise(3000, 0)[:500]) > -0.85
        assert lowest_eigenvalue(BLOBS, 1, gamma, 4, noise(500, 25)) > -0.95
    for steps in (4, 8, 12, 16, 24):
        assert lowest_eigenvalue(FIVE, 0, 10.0, steps, noise(3000, 0)[:500]) < -1.5


SOLVERS = (kernels.ddim, kernels.dpmpp_2m)


def error_of(solver, mixture, label, gamma, evaluations, x, goal) -> float:
    got = run(solver(guided(LINEAR, gamma, mixture, label), LINEAR), x, evaluations)
    return float((got - goal).square().sum(1).mean().sqrt())


def exact_end(mixture, label, gamma, x):
    return ode.solve(ode.probability_flow(guided(LINEAR, gamma, mixture, label), LINEAR), x, 1.0, 0.001, tolerance=1e-8)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [7, 8])
def test_with_class_0_of_the_five_blobs_ddims_error_is_smaller_at_gamma_10_than_at_1(seed):
    x = noise(400, seed)
    off = [error_of(kernels.ddim, FIVE, 0, gamma, 128, x, exact_end(FIVE, 0, gamma, x)) for gamma in (1.0, 10.0)]
    assert off[1] < 0.9 * off[0]


@pytest.mark.nightly
@pytest.mark.parametrize(("mixture", "label"), [(FIVE, 0), (BLOBS, 0), (MIXTURE, 0)], ids=["five", "blobs", "three"])
def test_with_other_classes_2m_passes_ddim_between_12_and_16_evaluations(mixture, label):
    x = noise(300, 7)
    goal = exact_end(mixture, label, 10.0, x)
    for evaluations, ahead in ((12, False), (16, True)):
        off = {solver: error_of(solver, mixture, label, 10.0, evaluations, x, goal) for solver in SOLVERS}
        assert (off[kernels.dpmpp_2m] < off[kernels.ddim]) == ahead


@pytest.mark.parametrize(("mixture", "label"), [(FIVE, 0), (BLOBS, 0), (MIXTURE, 0)], ids=["five", "blobs", "three"])
def test_strong_guidance_makes_its_error_early_on_other_mixtures_too(mixture, label):
    contributions = names_of("10", "eq-global-error")["contributions"]
    parts, middles = contributions(
        guided(LINEAR, 10.0, mixture, label), LINEAR, noise(150, 26), time_grid(50, LINEAR, end=0.001)
    )
    size = parts.square().sum(2).mean(1).sqrt()
    assert float(size[middles < 0].sum() / size.sum()) > 0.6
    among = (middles > -math.log(4.0) - 0.2) & (middles < 0.05)  # the noise one to four times the signal
    assert float(size[among].sum() / size.sum()) > 0.45


def test_the_guess_runs_faster_under_guidance_and_earlier():
    tops = [float(paths(gamma)[3].max()) for gamma in (1.0, 3.0, 10.0)]
    places = [float(paths(gamma)[2][int(paths(gamma)[3].argmax())]) for gamma in (1.0, 3.0, 10.0)]
    assert tops[1] > 2 * tops[0] and tops[2] > 10 * tops[0] and places[0] >= places[1] > places[2]


@pytest.mark.nightly
def test_steps_placed_where_the_error_is_made_halve_it_or_better_on_other_noises():
    contributions = names_of("10", "eq-global-error")["contributions"]
    model, fresh = guided(LINEAR, 10.0, BLOBS, 1), noise(250, 24)
    fine = time_grid(60, LINEAR, end=0.001)
    parts, _ = contributions(model, LINEAR, noise(150, 23), fine)
    size = parts.square().sum(2).mean(1).sqrt().sqrt()
    density = size / size.sum() + 0.1 / len(size)
    levels = torch.cat([torch.zeros(1), (density / density.sum()).cumsum(0)]).double()
    ells, want = LINEAR.log_snr(fine) / 2, torch.linspace(0, 1, 33, dtype=torch.float64)
    place = torch.searchsorted(levels, want).clamp(1, len(levels) - 1)
    weight = (want - levels[place - 1]) / (levels[place] - levels[place - 1])
    times = LINEAR.time(2 * torch.lerp(ells[place - 1], ells[place], weight))
    times[0], times[-1] = 1.0, 0.001
    goal = ode.solve(ode.probability_flow(model, LINEAR), fresh, 1.0, 0.001, tolerance=1e-7)
    for solver in (kernels.ddim, kernels.dpmpp_2m):
        even, placed = (draw(solver(model, LINEAR), fresh, grid) for grid in (time_grid(32, LINEAR, end=0.001), times))
        assert float((placed - goal).norm()) < 0.6 * float((even - goal).norm())


def own_gradient(U, y, blur, rho):
    forecast = names_of("10", "eq-own-forecast")["forecast"]

    def grad(x, t):
        gain, var = forecast(LINEAR.alpha(t), U, rho)
        return gain * (y - gain * x) / (var + blur)

    return grad


@pytest.mark.parametrize("rho", [0.0, 0.6, 1.0, 1.6])
def test_a_mean_shift_by_the_samplers_own_classifier_from_a_weighed_start_is_right_at_every_noise(rho):
    U, y, blur = 1.3, -1.0, 0.5
    line = GaussianMixture([1.0], torch.zeros(1, 1, dtype=torch.float64), [[[U]]])
    grad, plain = own_gradient(U, y, blur, rho), kernels.reverse_sde(line.denoiser(LINEAR), LINEAR, rho)
    gain, var = names_of("10", "eq-own-forecast")["forecast"](LINEAR.alpha(1.0), U, rho)
    precision = 1 + gain**2 / (var + blur)
    start = gain * y / (var + blur) / precision + noise(3000, 31, 1) / precision.sqrt()
    got = run(kernels.shift(plain, grad, 1.0), start, 200, 32)
    assert abs(float(got.mean()) - U * y / (U + blur)) < 0.04
    assert abs(float(got.var()) - U * blur / (U + blur)) < 0.03
    if rho != 1.0:
        usual = run(kernels.shift(plain, own_gradient(U, y, blur, 1.0), 1.0), noise(3000, 31, 1), 200, 32)
        assert abs(float(usual.mean()) - U * y / (U + blur)) > 0.06


def test_algorithm_2_in_the_letters_of_its_code_is_the_substitution():
    start, times, gamma = noise(100, 41), time_grid(20, LINEAR, end=0.01), 2.0
    x = start
    for t, s in zip(times[:-1], times[1:], strict=True):
        bar, bar_prev = LINEAR.alpha(t) ** 2, LINEAR.alpha(s) ** 2
        noisy = at(LINEAR, t)
        eps = -(1 - bar).sqrt() * noisy.score(x)
        eps = eps - (1 - bar).sqrt() * gamma * noisy.class_gradient(x, LABEL)
        x = bar_prev.sqrt() * (x - (1 - bar).sqrt() * eps) / bar.sqrt() + (1 - bar_prev).sqrt() * eps
    assert float((x - draw(kernels.ddim(guided(LINEAR, gamma), LINEAR), start, times)).abs().max()) < 1e-9


def test_the_repaired_mean_shift_has_the_mean_of_the_substitution_in_short_steps():
    for eta in (0.2, 0.5, 0.9):
        plain = kernels.ddim(MIXTURE.denoiser(LINEAR), LINEAR, eta)
        repaired = kernels.shift(plain, grad_under(LINEAR), (1 + eta**2) / (2 * eta**2))
        gaps = []
        for s in (0.49, 0.495):
            told = kernels.ddim(guided(LINEAR), LINEAR, eta)(X, 0.5, s).mean
            gaps.append(float((repaired(X, 0.5, s).mean - told).abs().max()))
        assert 3 < gaps[0] / gaps[1] < 5  # the rest is of second order in the step


@pytest.mark.nightly
@pytest.mark.parametrize(("limit_seed", "seed"), [(51, 53), (20, 140), (30, 240)])
def test_a_noisy_sampler_needs_more_evaluations_under_guidance_too(limit_seed, seed):
    found = {}
    for gamma in (1.0, 3.0):
        model = guided(LINEAR, gamma, BLOBS, 1)
        limit = run(kernels.reverse_sde(model, LINEAR), noise(1200, limit_seed), 150, limit_seed + 1)
        for name, walk in {"SDE": kernels.reverse_sde, "DDPM": kernels.ddpm}.items():
            for n in (8, 64):
                cloud = run(walk(model, LINEAR), noise(1200, seed), n, seed + 1)
                found[name, gamma, n] = metrics.energy_distance(cloud, limit)
    assert found["SDE", 3.0, 8] > 5 * found["SDE", 1.0, 8] > 0
    assert 1.5 < found["DDPM", 3.0, 8] / found["DDPM", 1.0, 8] < 3.5
    assert max(value for (_, _, n), value in found.items() if n == 64) < 0.015


@every_schedule
def test_the_noised_density_obeys_the_fokker_planck_equation_and_so_does_that_of_a_class(schedule):
    h, t = 1e-5, 0.5
    for label in (None, LABEL):
        now, rate = at(schedule, t, label=label), schedule.beta(t)
        score, curve = now.score(X), now.hessian(X).diagonal(dim1=1, dim2=2).sum(1)
        laplacian = curve + score.square().sum(1)  # of p, over p
        expected = rate / 2 * (X.shape[1] + (X * score).sum(1)) + rate / 2 * laplacian
        change = at(schedule, t + h, label=label).log_prob(X) - at(schedule, t - h, label=label).log_prob(X)
        assert float((change / (2 * h) - expected).abs().max()) < 1e-6
        torch.testing.assert_close(
            -(torch.log(schedule.alpha(t + h)) - torch.log(schedule.alpha(t - h))) / h, rate, rtol=1e-6, atol=0
        )


def test_at_gamma_3_more_noise_moves_the_points_less_far():
    model, start = guided(LINEAR, 3.0, BLOBS, 1), noise(1500, 61)
    means = [
        float(run(kernels.reverse_sde(model, LINEAR, rho), start, 100, 62)[:, 0].mean()) for rho in (0.0, 1.0, 2.0)
    ]
    assert means[0] > means[1] + 0.2 and means[1] > means[2] + 0.2


@pytest.mark.parametrize(("mixture", "label"), [(MIXTURE, 0), (FIVE, 0)], ids=["three", "five"])
def test_at_gamma_3_the_samples_of_other_classes_depend_on_the_noise_too(mixture, label):
    """On the five blobs the mean stays where it is, and the spread does not."""
    start, model = noise(1500, 63), guided(LINEAR, 3.0, mixture, label)
    clouds = [run(kernels.reverse_sde(model, LINEAR, rho), start, 100, 64) for rho in (0.0, 2.0)]
    spread = [float(cloud.var(0).sum()) for cloud in clouds]
    moved = float((clouds[0].mean(0) - clouds[1].mean(0)).norm())
    assert moved > 0.3 if mixture is MIXTURE else moved < 0.2 and spread[0] > spread[1] + 1


@every_schedule
def test_in_long_steps_the_share_is_less_and_ddpms_variance_is_smaller_than_the_coefficient(schedule):
    share_of, t = names_of("10", "eq-shift-share")["share_of_the_shift"], 0.6
    sigma = schedule.sigma(t)
    for eta in (0.2, 0.5, 1.0, 1.3):
        shares = [float(share_of(b * sigma**2, sigma, eta)) for b in (1e-4, 0.05, 0.2, 0.5)]
        assert shares == sorted(shares, reverse=True) and shares[0] - shares[-1] > 0.05 * eta**2
    for s in (0.599, 0.5, 0.1):
        alpha_ts, sigma_ts = schedule.transition(t, s)
        assert kernels.posterior_variance(schedule, t, s) < sigma_ts**2 / alpha_ts


@every_schedule
def test_the_guided_velocity_in_log_snr_and_what_ddim_takes_as_constant(schedule):
    """dx / dl = sigma^2 (x + score + gamma g), and d (x / sigma) / dl = e^l x0; DDIM's step is that with x0 fixed."""
    t, h, gamma = torch.tensor(0.5, dtype=torch.float64), 1e-5, 2.0
    model = guided(schedule, gamma)
    ell = lambda u: schedule.log_snr(u) / 2  # noqa: E731
    flow = ode.probability_flow(model, schedule)(X, t) / ((ell(t + h) - ell(t - h)) / (2 * h))
    score = at(schedule, t).score(X) + gamma * grad_under(schedule)(X, t)
    assert float((flow - schedule.sigma(t) ** 2 * (X + score)).abs().max()) < 1e-6
    rate_of_log_sigma = (schedule.sigma(t + h).log() - schedule.sigma(t - h).log()) / (ell(t + h) - ell(t - h))
    divided = (flow - rate_of_log_sigma * X) / schedule.sigma(t)
    assert float((divided - torch.exp(ell(t)) * model(X, t).x0).abs().max()) < 1e-6
    s = torch.tensor(0.3, dtype=torch.float64)
    step = kernels.ddim(model, schedule)(X, t, s).mean / schedule.sigma(s)
    fixed = X / schedule.sigma(t) + (torch.exp(ell(s)) - torch.exp(ell(t))) * model(X, t).x0
    assert float((step - fixed).abs().max()) < 1e-10


def test_an_euler_step_is_unstable_where_step_times_rate_passes_2():
    for product, grows in ((1.9, False), (2.1, True)):
        x = 1.0
        for _ in range(100):
            x = x + product * -x
        assert (abs(x) > 1) == grows


def test_a_shift_by_the_standard_deviation_vanishes_without_noise_too():
    plain = kernels.ddim(MIXTURE.denoiser(LINEAR), LINEAR)(X, 0.5, 0.4)
    assert torch.equal(plain.mean + plain.var.sqrt() * grad_under(LINEAR)(X, 0.5), plain.mean)


def test_with_much_noise_a_sampler_forgets_where_it_was():
    forecast = names_of("10", "eq-own-forecast")["forecast"]
    gains = [float(forecast(LINEAR.alpha(0.4), 0.8, rho)[0]) for rho in (0.0, 0.5, 1.0, 2.0, 5.0)]
    assert gains == sorted(gains, reverse=True) and gains[-1] < 1e-3
    assert float(forecast(LINEAR.alpha(0.4), 0.8, 0.0)[1]) == 0.0
