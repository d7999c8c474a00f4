"""The schedules against quadrature, finite differences, 50-digit arithmetic and the discrete DDPM."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from difflesson.schedule import as_time, cosine, expand_as, from_betas, vp_linear

F64 = torch.float64
DDPM_BETAS = np.linspace(1e-4, 0.02, 1000)
UNEVEN_BETAS = np.array([0.02, 0.3, 0.001, 0.15, 0.07, 0.4, 0.0005])
SCHEDULES = {
    "linear": vp_linear(),
    "linear-constant-rate": vp_linear(3.0, 3.0),
    "linear-strong": vp_linear(0.1, 60.0),
    "cosine": cosine(),
    "cosine-lopsided": cosine(9.0, -14.0),
    "table": from_betas(torch.from_numpy(DDPM_BETAS)),
    "table-uneven": from_betas(torch.from_numpy(UNEVEN_BETAS)),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
SMOOTH = {name: s for name, s in SCHEDULES.items() if "table" not in name}
every_smooth = pytest.mark.parametrize("schedule", SMOOTH.values(), ids=SMOOTH.keys())

mpmath.mp.dps = 50


def worst(a, b) -> float:
    """Maximum absolute difference."""
    return float((torch.as_tensor(a, dtype=F64) - torch.as_tensor(b, dtype=F64)).abs().max())


def by_hand(name: str, t: float) -> tuple:
    """(alpha, sigma, log_snr) of a default schedule at t, straight from its definition in 50 digits."""
    t = mpmath.mpf(t)
    if name == "linear":
        start, end = mpmath.mpf(0.1), mpmath.mpf(20.0)
        alpha = mpmath.exp(-(start * t + (end - start) * t**2 / 2) / 2)
    else:
        b, last = mpmath.atan(mpmath.exp(-10)), mpmath.atan(mpmath.exp(10))
        alpha = mpmath.cos(b + (last - b) * t)
    sigma = mpmath.sqrt(1 - alpha**2)
    return alpha, sigma, mpmath.log(alpha**2 / sigma**2) if sigma else mpmath.inf


# --- alpha, sigma, log_snr and beta are one schedule ----------------------------------------------


@every_schedule
@pytest.mark.equation("eq-forward-marginal")
def test_signal_and_noise_variances_add_to_one(schedule):
    t = torch.linspace(0, 1, 1001, dtype=F64)
    assert worst(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1) < 1e-15


@every_schedule
def test_log_snr_is_the_log_of_the_variance_ratio(schedule):
    t = torch.linspace(1e-3, 1, 1001, dtype=F64)
    by_definition = torch.log(schedule.alpha(t) ** 2 / schedule.sigma(t) ** 2)
    assert worst(schedule.log_snr(t), by_definition) < 1e-12


@every_schedule
def test_signal_falls_and_noise_rises_strictly(schedule):
    t = torch.linspace(0, 1, 5001, dtype=F64)
    assert bool((schedule.alpha(t).diff() < 0).all())
    assert bool((schedule.sigma(t).diff() > 0).all())
    assert bool((schedule.log_snr(t).diff() < 0).all())
    assert bool((schedule.beta(t) > 0).all())


@every_smooth
def test_beta_is_the_slope_of_minus_two_log_alpha_by_autograd(schedule):
    t = torch.linspace(0.01, 0.99, 197, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad((-2 * schedule.alpha(t).log()).sum(), t)
    assert worst(schedule.beta(t).detach() / slope, 1) < 1e-10


@every_schedule
def test_beta_is_the_slope_of_minus_two_log_alpha_by_central_differences(schedule):
    t = torch.linspace(0.0137, 0.9431, 61, dtype=F64)  # away from the corners of the tables
    h = 1e-6
    difference = -(schedule.alpha(t + h).log() - schedule.alpha(t - h).log()) / h
    assert worst(schedule.beta(t) / difference, 1) < 1e-7


@every_smooth
def test_integral_of_beta_is_minus_two_log_alpha_by_quadrature(schedule):
    for end in (0.001, 0.3, 0.9, 0.99):  # the cosine's rate has a pole just behind t = 1
        total, _ = quad(lambda t: float(schedule.beta(t)), 0, end, epsabs=0, epsrel=1e-11, limit=200)
        signal = float(schedule.alpha(end) / schedule.alpha(0.0))  # the cosine's data is not quite clean at 0
        assert abs(total + 2 * math.log(signal)) < 1e-10 * total + 1e-15


def test_table_rate_integrates_to_the_table():
    schedule = SCHEDULES["table"]
    middles = (torch.arange(1000, dtype=F64) + 0.5) / 1000  # the rate is constant on each step
    assert worst((schedule.beta(middles) / 1000).cumsum(0), -np.log1p(-DDPM_BETAS).cumsum()) < 1e-12


@pytest.mark.equation("eq-forward-marginal")
def test_the_forward_sde_has_the_schedules_marginals():
    """m' = -beta/2 m and v' = beta (1 - v), by a Runge-Kutta solver that knows only beta."""
    from scipy.integrate import solve_ivp

    for schedule in SMOOTH.values():

        def moments(t, y, schedule=schedule):
            rate = float(schedule.beta(min(t, 1.0)))
            return [-rate / 2 * y[0], rate * (1 - y[1])]

        start = [float(schedule.alpha(0.0)), float(schedule.sigma(0.0)) ** 2]
        end = solve_ivp(moments, (0, 0.9), start, method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
        assert abs(end[0] - float(schedule.alpha(0.9))) < 1e-10
        assert abs(end[1] - float(schedule.sigma(0.9)) ** 2) < 1e-10


# --- each family by its own formula ---------------------------------------------------------------


@pytest.mark.equation("eq-vp-linear")
@pytest.mark.parametrize("rates", [(0.1, 20.0), (3.0, 3.0), (0.5, 60.0)])
def test_linear_rate_is_the_straight_line(rates):
    t = np.linspace(0, 1, 101)
    assert worst(vp_linear(*rates).beta(torch.from_numpy(t)), np.interp(t, [0, 1], rates)) < 1e-13


@pytest.mark.equation("eq-vp-linear")
def test_linear_table_of_many_steps_tends_to_the_linear_rate_first_order():
    """With beta_k = rate(k / T) / T, the error of alpha halves when T doubles."""
    t = torch.linspace(0, 1, 11, dtype=F64)
    errors = []
    for steps in (1000, 2000, 4000):
        betas = (0.1 + 19.9 * torch.arange(1, steps + 1, dtype=F64) / steps) / steps
        errors.append(worst(from_betas(betas).alpha(t), vp_linear().alpha(t)))
    assert errors[0] < 5e-3
    assert all(1.9 < coarse / fine < 2.1 for coarse, fine in zip(errors[:-1], errors[1:], strict=True))


@pytest.mark.equation("eq-cosine")
@pytest.mark.parametrize("ends", [(20.0, -20.0), (9.0, -14.0), (-1.0, -2.0)])
def test_cosine_follows_its_defining_formula(ends):
    high, low = ends
    schedule = cosine(*ends)
    t = np.linspace(0, 1, 201)
    b = np.arctan(np.exp(-high / 2))
    a = np.arctan(np.exp(-low / 2)) - b
    t_tensor = torch.from_numpy(t)
    assert worst(schedule.log_snr(t_tensor), -2 * np.log(np.tan(a * t + b))) < 1e-10
    assert worst(schedule.alpha(t_tensor), np.cos(a * t + b)) < 1e-14
    assert worst(schedule.sigma(t_tensor), np.sin(a * t + b)) < 1e-14


@pytest.mark.equation("eq-cosine")
def test_cosine_starts_and_ends_at_its_cut_offs():
    for high, low in [(20.0, -20.0), (9.0, -14.0), (4.0, -1.0)]:
        assert worst(cosine(high, low).log_snr(0.0), high) < 1e-11
        assert worst(cosine(high, low).log_snr(1.0), low) < 1e-10


@pytest.mark.equation("eq-table")
@pytest.mark.parametrize("betas", [DDPM_BETAS, UNEVEN_BETAS, np.array([0.3])], ids=["ddpm", "uneven", "one"])
def test_table_reproduces_the_discrete_ddpm(betas):
    schedule, steps = from_betas(torch.from_numpy(betas)), len(betas)
    alphas_cumprod = np.concatenate([[1.0], np.cumprod(1 - betas)])
    t = torch.arange(steps + 1, dtype=F64) / steps
    assert schedule.steps == steps
    assert worst(schedule.alpha(t) ** 2, alphas_cumprod) < 1e-14
    assert worst(schedule.sigma(t) ** 2, 1 - alphas_cumprod) < 1e-14


@pytest.mark.equation("eq-table")
@pytest.mark.equation("eq-forward-transition")
@pytest.mark.parametrize("betas", [DDPM_BETAS, UNEVEN_BETAS], ids=["ddpm", "uneven"])
def test_one_step_of_the_table_is_one_step_of_the_discrete_ddpm(betas):
    schedule, steps = from_betas(torch.from_numpy(betas)), len(betas)
    for k in range(1, steps + 1, max(1, steps // 50)):
        alpha, sigma = schedule.transition(k / steps, (k - 1) / steps)
        assert abs(float(alpha) - math.sqrt(1 - betas[k - 1])) < 1e-14
        assert abs(float(sigma) ** 2 - betas[k - 1]) < 1e-14


@pytest.mark.equation("eq-table")
def test_a_node_of_the_table_has_the_rate_of_the_step_that_ends_there_however_its_time_was_rounded():
    """0.1 + 0.2 is a little more than 3 / 10; what is more than that by a thousandth of a step belongs to the next."""
    betas = torch.linspace(0.01, 0.4, 10, dtype=F64)
    rates = -10 * torch.log1p(-betas)
    schedule = from_betas(betas)
    assert 0.1 + 0.2 > 3 / 10 and 0.1 * 6 > 6 / 10
    for time, step in ((0.0, 1), (0.1, 1), (0.1 + 0.2, 3), (3 / 10, 3), (0.1 * 6, 6), (0.7, 7), (1.0, 10)):
        assert worst(schedule.beta(time), rates[step - 1]) < 1e-13, (time, step)
        assert worst(schedule.beta(torch.tensor([time], dtype=F64)), rates[step - 1]) < 1e-13
    for node in range(1, 10):
        assert worst(schedule.beta((node + 1e-4) / 10), rates[node]) < 1e-13
        assert worst(schedule.beta((node - 1e-4) / 10), rates[node - 1]) < 1e-13


def test_table_in_float32_betas_is_read_in_float64():
    betas = torch.tensor(UNEVEN_BETAS, dtype=torch.float32)
    assert worst(from_betas(betas).alpha(1.0) ** 2, np.cumprod(1 - betas.double().numpy())[-1]) < 1e-14


# --- precision and the ends of time ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("t", [0.0, 1e-12, 1e-8, 1e-5, 1e-3, 0.1, 0.5, 0.9, 0.999])
def test_no_digits_are_lost_near_the_data(name, t):
    """Relative errors against 50 digits; `1 - alpha^2` in float64 keeps only seven of sigma^2 at t = 1e-8."""
    schedule, (alpha, sigma, log_snr) = SCHEDULES[name], by_hand(name, t)
    assert abs(float(schedule.alpha(t)) - alpha) <= 2e-13 * alpha
    assert abs(float(schedule.sigma(t)) - sigma) <= 1e-14 * sigma
    if t > 0 or name == "cosine":
        assert abs(float(schedule.log_snr(t)) - log_snr) < 1e-12
    noise = -2 * mpmath.log(alpha)
    assert abs(float(schedule.integrated_beta(t)) - noise) <= 1e-13 * noise


def test_sigma_near_zero_follows_its_series():
    """sigma^2 = B - B^2 / 2 + ..., with B = beta_min t to leading order."""
    t = 1e-8
    integrated = 0.1 * t + 19.9 * t**2 / 2
    assert abs(float(vp_linear().sigma(t)) - math.sqrt(integrated - integrated**2 / 2)) < 1e-18


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.equation("eq-forward-transition")
def test_short_transitions_keep_their_digits(name):
    for t, s in [(1e-6, 0.0), (1e-8, 0.0), (1e-3, 5e-4), (0.5, 0.49), (0.999, 0.5)]:
        alpha_ts = by_hand(name, t)[0] / by_hand(name, s)[0]
        sigma_ts = mpmath.sqrt(1 - alpha_ts**2)
        alpha, sigma = SCHEDULES[name].transition(t, s)
        assert abs(float(alpha) - alpha_ts) < 1e-12 * alpha_ts
        assert abs(float(sigma) - sigma_ts) < 1e-10 * sigma_ts


@pytest.mark.parametrize("name", ["linear", "linear-constant-rate", "linear-strong", "table", "table-uneven"])
def test_time_zero_is_clean_data(name):
    schedule = SCHEDULES[name]
    assert float(schedule.alpha(0.0)) == 1 and float(schedule.sigma(0.0)) == 0
    assert float(schedule.log_snr(0.0)) == math.inf
    assert float(schedule.time(math.inf)) == 0


@every_schedule
def test_both_ends_are_finite_numbers(schedule):
    for t in (0, 0.0, 1, 1.0, torch.tensor(1.0), torch.tensor([0, 1])):
        for quantity in (schedule.alpha, schedule.sigma, schedule.beta, schedule.integrated_beta):
            assert bool(torch.isfinite(quantity(t)).all())
    assert math.isfinite(float(schedule.log_snr(1.0)))
    assert float(schedule.alpha(1.0)) > 0 and float(schedule.sigma(1.0)) < 1 + 1e-15


# --- the inverse ----------------------------------------------------------------------------------


@every_schedule
def test_time_inverts_log_snr(schedule):
    t = torch.cat([torch.linspace(1e-6, 1, 2001, dtype=F64), torch.tensor([1e-4, 1 - 1e-9, 1.0], dtype=F64)])
    assert worst(schedule.time(schedule.log_snr(t)), t) < 1e-13


@every_schedule
def test_log_snr_inverts_time(schedule):
    first, last = min(8.0, float(schedule.log_snr(1e-6))), float(schedule.log_snr(1.0)) + 1e-6
    log_snr = torch.linspace(first, last, 501, dtype=F64)
    assert worst(schedule.log_snr(schedule.time(log_snr)), log_snr) < 1e-9


@every_schedule
def test_ratios_out_of_reach_give_the_nearer_end(schedule):
    assert float(schedule.time(-1e3)) == 1
    assert 0 <= float(schedule.time(1e3)) < 1e-12


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(0.01, 5), st.floats(0, 60), st.floats(0, 1))
def test_inverse_of_any_linear_schedule_stays_in_range(beta_min, slope, t):
    schedule = vp_linear(beta_min, beta_min + slope)
    back = float(schedule.time(schedule.log_snr(t)))
    assert 0 <= back <= 1  # a rounding error beyond 1 would be refused by every other method
    assert abs(back - t) < 1e-12


# --- transitions ----------------------------------------------------------------------------------


@every_schedule
@pytest.mark.equation("eq-forward-transition")
def test_two_transitions_compose_to_one(schedule):
    """From s to r and on to t: signals multiply, and the second step shrinks the first one's noise."""
    for s, r, t in [(0.0, 0.3, 1.0), (0.2, 0.2001, 0.9), (0.5, 0.5, 0.6), (0.0, 1e-6, 2e-6)]:
        (alpha_rs, sigma_rs), (alpha_tr, sigma_tr) = schedule.transition(r, s), schedule.transition(t, r)
        alpha_ts, sigma_ts = schedule.transition(t, s)
        assert worst(alpha_tr * alpha_rs, alpha_ts) < 1e-14
        assert worst((alpha_tr * sigma_rs) ** 2 + sigma_tr**2, sigma_ts**2) < 1e-14


@every_schedule
@pytest.mark.equation("eq-forward-transition")
@pytest.mark.equation("eq-forward-marginal")
def test_marginal_then_transition_is_the_later_marginal(schedule):
    s = torch.tensor([0.0, 0.1, 0.5, 0.5, 0.97], dtype=F64)
    t = torch.tensor([1.0, 0.1, 0.7, 1.0, 0.98], dtype=F64)
    alpha, sigma = schedule.transition(t, s)
    assert worst(alpha * schedule.alpha(s), schedule.alpha(t)) < 1e-14
    assert worst((alpha * schedule.sigma(s)) ** 2 + sigma**2, schedule.sigma(t) ** 2) < 1e-14


@every_schedule
def test_transition_of_no_length_does_nothing(schedule):
    for t in (0.0, 0.37, 1.0):
        alpha, sigma = schedule.transition(t, t)
        assert float(alpha) == 1 and float(sigma) == 0


# --- noising points, shapes and dtypes ------------------------------------------------------------


@pytest.mark.equation("eq-forward-marginal")
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (3, 1, 4, 5)])
def test_add_noise_treats_each_sample_with_its_own_time(shape):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, *shape, generator=generator, dtype=F64)
    t = torch.linspace(0, 1, shape[0], dtype=F64)
    noisy = vp_linear().add_noise(x0, eps, t)
    for i in range(shape[0]):
        alpha, sigma, _ = by_hand("linear", float(t[i]))
        assert worst(noisy[i], float(alpha) * x0[i] + float(sigma) * eps[i]) < 1e-14
        assert worst(vp_linear().add_noise(x0[i : i + 1], eps[i : i + 1], float(t[i]))[0], noisy[i]) < 1e-15


@pytest.mark.equation("eq-forward-marginal")
def test_noised_points_have_the_schedules_mean_and_variance():
    """One point, 40,000 draws: mean and variance within 4.5 standard errors (level 1e-5, seeded)."""
    count, t = 40_000, 0.3
    eps = torch.randn(count, 1, generator=torch.Generator().manual_seed(1), dtype=F64)
    x = cosine().add_noise(torch.full((count, 1), 2.0, dtype=F64), eps, t)
    alpha, sigma, _ = by_hand("cosine", t)
    assert abs(float(x.mean()) - 2 * float(alpha)) < 4.5 * float(sigma) / math.sqrt(count)
    assert abs(float(x.var()) / float(sigma) ** 2 - 1) < 4.5 * math.sqrt(2 / count)


@every_schedule
def test_floats_scalars_and_vectors_of_times_agree(schedule):
    times = [0.0, 0.125, 0.5, 1.0]  # exact in float32, so that the inputs are the same number
    for method in (schedule.alpha, schedule.sigma, schedule.beta, schedule.integrated_beta):
        by_float = torch.stack([method(t) for t in times])
        assert by_float.dtype == F64 and by_float[0].shape == ()
        vector, scalar = torch.tensor(times, dtype=F64), torch.tensor(0.5, dtype=F64)
        assert method(vector).shape == (4,) and worst(method(vector), by_float) == 0
        assert method(scalar).shape == () and worst(method(scalar), by_float[2]) == 0
        assert method(vector.view(2, 2)).shape == (2, 2)
        assert float(((method(vector.float()) - by_float) / by_float.clamp_min(1)).abs().max()) < 2e-3


@every_schedule
def test_zero_dim_coefficients_keep_the_dtype_of_the_points(schedule):
    x = torch.ones(3, 2, dtype=torch.float32)
    for t in (0.5, torch.tensor(0.5, dtype=F64)):
        assert (schedule.alpha(t) * x).dtype == torch.float32
        assert schedule.add_noise(x, x, t).dtype == torch.float32
    for dtype in (torch.float32, F64):
        assert schedule.add_noise(x, x, torch.full((3,), 0.5, dtype=dtype)).dtype == torch.float32
    assert schedule.add_noise(x.double(), x.double(), torch.full((3,), 0.5)).dtype == F64
    assert schedule.add_noise(x.bfloat16(), x.bfloat16(), 0.5).dtype == torch.bfloat16


def test_integer_times_are_times():
    assert as_time(1).dtype == F64 and as_time(torch.tensor(1)).dtype == F64
    assert float(vp_linear().alpha(torch.tensor(1))) == float(vp_linear().alpha(1.0))


def test_a_coefficient_for_each_sample_gets_the_points_dimensions():
    assert expand_as(torch.ones(3), torch.ones(3, 4, 5)).shape == (3, 1, 1)
    assert expand_as(torch.ones(3), torch.ones(3)).shape == (3,)
    assert expand_as(torch.tensor(1.0), torch.ones(3, 4)).shape == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@every_schedule
def test_times_on_an_accelerator_give_the_same_numbers(schedule):
    t = torch.linspace(0, 1, 101, dtype=F64)
    for method in (schedule.alpha, schedule.sigma, schedule.beta):
        assert method(t.cuda()).device.type == "cuda"
        assert worst(method(t.cuda()).cpu(), method(t)) < 1e-11
    assert worst(schedule.time(schedule.log_snr(t[1:].cuda())).cpu(), t[1:]) < 1e-12
