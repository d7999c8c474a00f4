"""What chapter 07 says about the mean shift, on another mixture, other schedules and other times."""

import math

import pytest
import torch

from difflesson import divergence, guidance, kernels
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, vp_linear
from difflesson.steps import Gaussian

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
    moved = (
        kernels.exact(MIXTURE, schedule, LABEL)(x, t, s).mean - kernels.exact(MIXTURE, schedule)(x, t, s).mean
    )
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
    for steps in (20, 80, 320):
        for name, kernel in (("mistaken", mistaken), ("right", kernel_for(schedule, "shift"))):
            generator = torch.Generator().manual_seed(0)
            start = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
            points = draw(kernel, start, time_grid(steps), generator)
            errors[name].append(float((points.mean(0) - truth).norm()))
    # 4,000 points: the standard error of each coordinate of the mean is about 0.015
    assert errors["mistaken"][0] + 0.1 < errors["mistaken"][1] < errors["mistaken"][2] - 0.1
    assert max(errors["right"]) < 0.06 < errors["mistaken"][0]
