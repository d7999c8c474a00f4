"""Whole runs: orders of convergence against known truths, shared marginals, and what the loop promises."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import kstest, norm

from difflesson import kernels
from difflesson.denoiser import Prediction
from difflesson.guidance import classifier_free, gradient, tilt
from difflesson.mixture import GaussianMixture
from difflesson.parts import Remembering
from difflesson.plane import four_blobs
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import LinearSchedule, cosine, from_betas, vp_linear
from tests.oracles import affine as oracle
from tests.oracles.mixtures import FOUR, random_mixture

BETAS = (0.2, 5.0)
SCHEDULE = vp_linear(*BETAS)
STEPS = [50, 100, 200, 400]

AXES = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
COV, CENTRE = AXES @ np.diag([0.2, 0.7, 3.0]) @ AXES.T, np.array([1.0, -2.0, 0.5])
GAUSSIAN = GaussianMixture(torch.ones(1).double(), torch.tensor(CENTRE)[None], torch.tensor(COV)[None])

WEIGHTS, MEANS, COVS, _ = FOUR
MIXTURE = FOUR.mixture()
DENOISER = MIXTURE.denoiser(SCHEDULE)

KERNELS = {
    "ddpm small": lambda d: kernels.ddpm(d, SCHEDULE),
    "ddpm large": lambda d: kernels.ddpm(d, SCHEDULE, "large"),
    "ddim 0": lambda d: kernels.ddim(d, SCHEDULE),
    "ddim 0.5": lambda d: kernels.ddim(d, SCHEDULE, 0.5),
    "ddim 1": lambda d: kernels.ddim(d, SCHEDULE, 1.0),
    "reverse_sde 0": lambda d: kernels.reverse_sde(d, SCHEDULE, 0.0),
    "reverse_sde 1": lambda d: kernels.reverse_sde(d, SCHEDULE, 1.0),
    "reverse_sde 1.5": lambda d: kernels.reverse_sde(d, SCHEDULE, 1.5),
    "heun": lambda d: kernels.heun(d, SCHEDULE),
    "dpmpp_2m": lambda d: kernels.dpmpp_2m(d, SCHEDULE),
}
SECOND_ORDER = ["heun", "dpmpp_2m"]
DETERMINISTIC = [*SECOND_ORDER, "ddim 0", "reverse_sde 0"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def level(t):
    return oracle.linear_level(t, *BETAS)


def max_error(got, want):
    got, want = (torch.as_tensor(a, dtype=torch.float64) for a in (got, want))
    return float((got - want).abs().max())


def marginal(t):
    """Mean and covariance of the noised Gaussian at time t."""
    alpha, sigma = level(t)
    return alpha * CENTRE, alpha**2 * COV + sigma**2 * np.eye(3)


def moments_at_the_end(kernel, times):
    """Mean and covariance that a sampler makes of the exact marginal at `times[0]`, without sampling.

    Each step (with a memory: the whole run) is affine, and is probed at 0 and at the unit vectors.
    """
    mean, cov = marginal(float(times[0]))
    probes = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    if isinstance(kernel, Remembering):
        maps = [(draw(kernel, probes, times).numpy(), 0.0)]
    else:
        steps = (kernel(probes, t, s) for t, s in zip(times[:-1], times[1:], strict=True))
        maps = [(step.mean.numpy(), float(step.var)) for step in steps]
    for image, var in maps:
        matrix = (image[1:] - image[0]).T
        mean, cov = matrix @ mean + image[0], matrix @ cov @ matrix.T + var * np.eye(3)
    return mean, cov


@pytest.mark.equation("eq-ddpm")
@pytest.mark.equation("eq-ddim")
@pytest.mark.equation("eq-reverse-sde")
@pytest.mark.equation("eq-heun")
@pytest.mark.equation("eq-dpmpp-2m")
@pytest.mark.parametrize("name", KERNELS)
def test_final_moments_of_a_gaussian_converge_to_the_truth_at_the_order_of_the_sampler(name):
    kernel, (true_mean, true_cov) = KERNELS[name](GAUSSIAN.denoiser(SCHEDULE)), marginal(0.1)
    grid = SCHEDULE if name == "dpmpp_2m" else None
    ends = [moments_at_the_end(kernel, time_grid(n, grid, 0.9, 0.1)) for n in STEPS]
    order = oracle.slope(STEPS, [max_error(cov, true_cov) for _, cov in ends])
    assert abs(order - (2 if name in SECOND_ORDER else 1)) < 0.15
    mean_errors = [max_error(mean, true_mean) for mean, _ in ends]
    if name.startswith("reverse_sde"):
        assert abs(oracle.slope(STEPS, mean_errors) - 1) < 0.15
    else:  # these keep the mean of a Gaussian at any step length
        assert max(mean_errors) < 1e-12


@pytest.mark.equation("eq-exact-reverse")
@pytest.mark.equation("eq-second-order")
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_exact_and_the_hessian_kernel_carry_a_gaussian_without_error_at_any_step_length(steps):
    for make in (kernels.exact, kernels.moment_matched):
        (mean, cov), times = marginal(1.0), time_grid(steps)
        for t, s in zip(times[:-1], times[1:], strict=True):
            step = make(GAUSSIAN, SCHEDULE)(torch.cat([torch.zeros(1, 3), torch.eye(3)]).double(), t, s)
            matrix = (step.mean[1:] - step.mean[0]).T.numpy()
            mean = matrix @ mean + step.mean[0].numpy()
            cov = matrix @ cov @ matrix.T + step.cov[0].numpy()
        assert max_error(mean, CENTRE) < 1e-12
        assert max_error(cov, COV) < 1e-12


@pytest.fixture(scope="module")
def flow():
    """Points at t = 0.9, and where the probability-flow ODE takes them at t = 0.1, by scipy and numpy."""
    start = noise(6, 2, seed=3)

    def velocity(t, x):
        score = oracle.mixture_score(WEIGHTS, *oracle.noised(MEANS, COVS, level(t)), x.reshape(-1, 2))
        return -(BETAS[0] + t * (BETAS[1] - BETAS[0])) / 2 * (x + score.ravel())

    path = solve_ivp(velocity, (0.9, 0.1), start.numpy().ravel(), method="DOP853", rtol=1e-10, atol=1e-12)
    return start, torch.tensor(path.y[:, -1].reshape(-1, 2))


@pytest.mark.equation("eq-ddim")
@pytest.mark.equation("eq-reverse-sde")
@pytest.mark.equation("eq-heun")
@pytest.mark.equation("eq-dpmpp-2m")
@pytest.mark.parametrize("spacing", ["time", "log_snr"])
@pytest.mark.parametrize(
    ("name", "order"), [("ddim 0", 1), ("reverse_sde 0", 1), ("heun", 2), ("dpmpp_2m", 2)]
)
def test_deterministic_samplers_follow_the_probability_flow_at_their_order(flow, name, order, spacing):
    start, end = flow
    grids = [time_grid(n, SCHEDULE if spacing == "log_snr" else None, 0.9, 0.1) for n in STEPS]
    errors = [max_error(draw(KERNELS[name](DENOISER), start, times), end) for times in grids]
    assert abs(oracle.slope(STEPS, errors) - order) < 0.15
    assert errors[-1] < (0.05 if order == 1 else 1e-4)


# Statistics: Kolmogorov-Smirnov tests of projections against their known distribution function. Level 1e-3
# for each test below, divided among its comparisons; seeds fixed.

DIRECTIONS = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, -0.8]])


def smallest_p_value(x, label, t):
    """Over three directions, of the test that x is distributed as the mixture (or one class) at time t."""
    chosen = slice(None) if label is None else np.array([0, 1, 0, 1]) == label
    weights = WEIGHTS[chosen] / WEIGHTS[chosen].sum()
    means, covs = oracle.noised(MEANS[chosen], COVS[chosen], level(t))

    def p_value(u):
        spread = np.sqrt(np.einsum("i,kij,j->k", u, covs, u))
        return kstest(x.numpy() @ u, lambda z: norm.cdf((z[:, None] - means @ u) / spread) @ weights).pvalue

    return min(p_value(u) for u in DIRECTIONS)


def start_of(label, t, count, seed):
    """Points from the exact marginal of a class at time t."""
    points = (MIXTURE if label is None else MIXTURE.given(label)).sample(count, seeded(seed))[0]
    return level(t).alpha * points + level(t).sigma * noise(count, 2, seed=seed + 100)


def test_the_test_of_distributions_has_power():
    x = start_of(None, 0.1, 8000, 7)
    assert smallest_p_value(x, None, 0.1) > 1e-3
    assert smallest_p_value(1.1 * x, None, 0.1) < 1e-5
    assert smallest_p_value(x, 1, 0.1) < 1e-5


@pytest.mark.equation("eq-exact-reverse")
@pytest.mark.parametrize("label", [None, 1])
@pytest.mark.parametrize("steps", [1, 10])
def test_one_giant_exact_step_and_ten_small_ones_both_end_in_the_data(label, steps):
    """Level 1e-3, 8,000 points, 3 directions."""
    x = start_of(label, 1.0, 8000, seed=steps)
    x = draw(kernels.exact(MIXTURE, SCHEDULE, label), x, time_grid(steps), seeded(steps))
    assert smallest_p_value(x, label, 0.0) > 1e-3 / 3


@pytest.mark.equation("eq-exact-reverse")
def test_two_exact_steps_compose_to_one():
    """Chapman-Kolmogorov in one dimension: p(s | t) is the integral over u of p(s | u) p(u | t)."""
    line = GaussianMixture(torch.tensor([0.3, 0.7]).double(), torch.tensor([[-1.0], [2.0]]).double(),
                           torch.tensor([[[0.2]], [[0.5]]]).double())
    kernel = kernels.exact(line, SCHEDULE)
    between = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    x, y = torch.full((1, 1), 0.7).double(), torch.full((1, 1), -0.4).double()
    late = kernel(x.expand(4001, 1), 0.9, 0.5).log_prob(between)
    early = kernel(between, 0.5, 0.1).log_prob(y.expand(4001, 1))
    composed = float((late + early).exp().sum() * 24 / 4000)
    assert abs(composed - float(kernel(x, 0.9, 0.1).log_prob(y).exp())) < 1e-12


@pytest.mark.equation("eq-reverse-sde")
@pytest.mark.equation("eq-ddim")
@pytest.mark.parametrize("name", [name for name in KERNELS if name not in SECOND_ORDER])
def test_every_amount_of_noise_shares_the_conditional_marginal_at_gamma_one(name):
    """Level 1e-3, 8,000 points, 3 directions at 2 times; guided by the gradient of log p_t(1 | x)."""

    def grad(x, t):
        return MIXTURE.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t)).class_gradient(x, 1)

    kernel, times = KERNELS[name](tilt(DENOISER, grad, 1.0, SCHEDULE)), time_grid(300, None, 1.0, 0.05)
    states = list(sample(kernel, start_of(1, 1.0, 8000, seed=5), times, seeded(6)))
    middle = int((times - 0.4).abs().argmin())
    assert smallest_p_value(states[middle], 1, float(times[middle])) > 1e-3 / 6
    assert smallest_p_value(states[-1], 1, 0.05) > 1e-3 / 6


# What the loop promises.

TIMES = time_grid(7)


@pytest.mark.parametrize("name", KERNELS)
def test_the_loop_yields_a_state_for_every_time_and_the_start_itself_first(name):
    x = noise(5, 2)
    before = x.clone()
    states = list(sample(KERNELS[name](DENOISER), x, TIMES, seeded()))
    assert len(states) == len(TIMES) == 8
    assert torch.equal(states[0], x) and states[0] is not x
    assert torch.equal(x, before)  # and is not written to
    assert all(state.shape == x.shape and torch.isfinite(state).all() for state in states)
    assert torch.equal(draw(KERNELS[name](DENOISER), x, TIMES, seeded()), states[-1])


def test_the_loop_is_the_kernel_at_neighbouring_times():
    seen = []

    def kernel(x, t, s):
        seen.append((float(t), float(s)))
        return kernels.Gaussian(x + 1, torch.zeros(()))

    end = draw(kernel, torch.zeros(1, 2), torch.tensor([1.0, 0.5, 0.25, 0.0]))
    assert seen == [(1.0, 0.5), (0.5, 0.25), (0.25, 0.0)]
    assert torch.equal(end, torch.full((1, 2), 3.0))


def test_the_loop_is_lazy_and_counts_evaluations_as_documented():
    calls = []

    def counted(x, t):
        calls.append(float(t))
        return DENOISER(x, t)

    next(iter(sample(KERNELS["heun"](counted), noise(2, 2), TIMES)))
    assert len(calls) == 0
    for name, count in {"ddim 0": 7, "dpmpp_2m": 7, "heun": 13, "ddpm small": 7, "reverse_sde 1": 7}.items():
        calls.clear()
        draw(KERNELS[name](counted), noise(2, 2), TIMES, seeded())
        assert len(calls) == count


@pytest.mark.parametrize("name", KERNELS)
def test_the_same_seed_gives_the_same_run_and_another_seed_another(name):
    kernel, x = KERNELS[name](DENOISER), noise(5, 2)
    first, again, other = (draw(kernel, x, TIMES, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name in DETERMINISTIC)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_deterministic_run_treats_every_point_alone(name):
    kernel, x = KERNELS[name](DENOISER), noise(20_000, 2)  # more than the mixture evaluates at once
    whole = draw(kernel, x, TIMES)
    parts = torch.cat([draw(kernel, part, TIMES) for part in x.split([1, 12_345, 7_654])])
    assert max_error(whole, parts) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*KERNELS, "exact", "hessian", "shift"])
def test_a_run_keeps_the_dtype_of_its_start(name, dtype):
    mixture = MIXTURE.to(dtype)

    def grad(x, t):
        return mixture.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t)).class_gradient(x, 1)

    made = {
        "exact": lambda d: kernels.exact(mixture, SCHEDULE),
        "hessian": lambda d: kernels.moment_matched(mixture, SCHEDULE),
        "shift": lambda d: kernels.shift(kernels.ddpm(d, SCHEDULE), grad, 2.0),
    }
    kernel = (KERNELS | made)[name](mixture.denoiser(SCHEDULE))
    for count in (1, 4):
        states = list(sample(kernel, noise(count, 2, dtype=dtype), TIMES, seeded()))
        assert {state.dtype for state in states} == {dtype}
        assert {state.shape for state in states} == {(count, 2)}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_float32_runs_agree_with_float64_ones(name):
    single = draw(KERNELS[name](MIXTURE.to(torch.float32).denoiser(SCHEDULE)), noise(50, 2).float(), TIMES)
    assert max_error(single, draw(KERNELS[name](DENOISER), noise(50, 2).float().double(), TIMES)) < 1e-4


def test_the_memory_of_dpmpp_2m_belongs_to_one_run():
    kernel, x, y = KERNELS["dpmpp_2m"](DENOISER), noise(5, 2), 3 * noise(9, 2, seed=1)
    alone, again = draw(kernel, x, TIMES), draw(kernel, x, TIMES)
    assert torch.equal(alone, again)
    for _ in sample(kernel, y, TIMES):  # one run after another, and inside another
        inner = draw(kernel, x, TIMES)
    assert torch.equal(inner, alone)
    one, two = sample(kernel, x, TIMES), sample(kernel, y, TIMES)
    for a, b in zip(one, two, strict=True):  # and in turns
        last = a, b
    assert torch.equal(last[0], alone)
    assert torch.equal(last[1], draw(kernel, y, TIMES))


def test_gradients_are_off_in_the_loop_and_guidance_switches_them_on_for_itself():
    def log_prob(x, t):
        return MIXTURE.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t)).class_log_prob(x, 1)

    x = noise(5, 2).requires_grad_()
    kernel = KERNELS["ddim 0"](tilt(DENOISER, gradient(log_prob), 1.0, SCHEDULE))
    with torch.no_grad():
        end = draw(kernel, x, TIMES)
    assert not end.requires_grad
    assert not draw(kernel, x, TIMES).requires_grad
    assert torch.is_grad_enabled()
    given = draw(KERNELS["ddim 0"](MIXTURE.denoiser(SCHEDULE, 1)), x.detach(), TIMES)
    assert max_error(end, given) < 1e-10
    states = sample(KERNELS["ddim 0"](DENOISER), x, TIMES)
    next(states), next(states)
    assert torch.is_grad_enabled()  # also while a run is paused


def test_images_run_through_the_loop():
    def denoiser(x, t):
        return Prediction(0.5 * x, x)

    for make in (kernels.ddpm, kernels.reverse_sde, kernels.heun, kernels.dpmpp_2m):
        assert draw(make(denoiser, SCHEDULE), noise(2, 1, 4, 3), TIMES, seeded()).shape == (2, 1, 4, 3)


# The grids.


def test_a_time_grid_is_evenly_spaced_from_start_to_end():
    times = time_grid(4, None, 0.9, 0.1)
    assert max_error(times, [0.9, 0.7, 0.5, 0.3, 0.1]) < 1e-15
    assert times.dtype == torch.float64
    assert time_grid(1).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("schedule", [SCHEDULE, cosine()])
def test_a_log_snr_grid_is_evenly_spaced_in_log_snr_and_meets_its_ends(schedule):
    end = 0.0 if schedule is not SCHEDULE else 1e-3
    times = time_grid(9, schedule, 1.0, end)
    steps = torch.stack([schedule.log_snr(t) for t in times]).diff()
    assert times[0] == 1 and times[-1] == end and bool((times.diff() < 0).all())
    assert max_error(steps, steps.mean()) < 1e-9
    draw(kernels.dpmpp_2m(MIXTURE.denoiser(schedule), schedule), noise(3, 2), times)


@pytest.mark.parametrize("schedule", [vp_linear(), cosine()], ids=["linear", "cosine"])
def test_the_times_that_dpmpp_2m_names_end_nearer_than_even_ones_without_guidance_and_not_always_with(schedule):
    """In 10 and in 20 steps, 1.5 times or more; at gamma 3 even times are ahead in one of the cases."""
    five = random_mixture(5, [2, 0, 1])
    for mixture, x in ((four_blobs(), noise(100, 2)), (five, noise(100, 5))):
        for gamma in (1.0, 3.0):
            guided = classifier_free(mixture.pair(schedule, 0), gamma)
            end, kernel = draw(kernels.heun(guided, schedule), x, time_grid(300)), kernels.dpmpp_2m(guided, schedule)
            for n in (10, 20):
                far, near = (float((draw(kernel, x, times) - end).norm(dim=1).mean())
                             for times in (time_grid(n), time_grid(n, schedule, 0.99, 0.01)))  # fmt: skip
                assert gamma != 1 or near < far / 1.5
                assert not (mixture is five and gamma == 3 and isinstance(schedule, LinearSchedule)) or near > far


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("steps", (0,)), ("steps", (-3,)), ("steps", (20.0,)), ("steps", ("20",)),
        ("start", (5, None, 0.2, 0.4)), ("start", (5, None, 1.2, 0.0)), ("start", (5, None, 0.5, -0.1)),
        ("start", (5, None, math.nan, 0.0)), ("start", (5, None, 0.5, 0.5)), ("end", (5, SCHEDULE)),
    ],
)
def test_a_bad_grid_is_named(name, arguments):
    with pytest.raises(ValueError, match=f"^{name}"):
        time_grid(*arguments)


@pytest.mark.parametrize(
    "times",
    [[], [0.5], [0.0, 1.1], [1.0, 1.0], [1.0, 0.5, 0.6], [1.1, 0.5], [0.5, -0.1], [[1.0, 0.0]],
     [1.0, math.nan, 0.0]],
)
def test_times_out_of_order_or_range_are_refused_before_the_first_step(times):
    with pytest.raises(ValueError, match="^times"):
        sample(KERNELS["ddim 0"](DENOISER), noise(2, 2), torch.tensor(times))


@pytest.mark.parametrize(
    "x",
    [torch.tensor([[0.0, 0.0], [0.0, math.nan]]), torch.full((2, 2), math.inf), torch.zeros(2),
     torch.zeros(2, 2, dtype=torch.long)],
)
def test_a_bad_start_is_refused_before_the_first_step(x):
    with pytest.raises(ValueError, match="^x must"):
        sample(KERNELS["ddim 0"](DENOISER), x, TIMES)


@pytest.mark.parametrize("name", KERNELS)
def test_a_noisy_kernel_asks_for_its_generator_and_a_deterministic_one_does_not(name):
    if name in DETERMINISTIC:
        assert torch.isfinite(draw(KERNELS[name](DENOISER), noise(2, 2), TIMES)).all()
    else:
        with pytest.raises(ValueError, match="^generator"):
            draw(KERNELS[name](DENOISER), noise(2, 2), TIMES)


# What is done after each step.


def test_what_is_done_after_a_step_goes_on_and_sees_the_times():
    seen = []

    def after(x, t, s):
        seen.append((float(t), float(s)))
        return x + 1

    def kernel(x, t, s):
        return kernels.Gaussian(2 * x, torch.zeros(()))

    end = draw(kernel, torch.ones(1, 2), torch.tensor([1.0, 0.5, 0.0]), after=after)
    assert seen == [(1.0, 0.5), (0.5, 0.0)]
    assert torch.equal(end, torch.full((1, 2), 7.0))


def test_a_corrector_after_each_step_mends_a_coarse_predictor():
    """DDIM with six steps, and ten small Langevin steps at each new time: the moments come closer to the truth."""
    def score(x, t):
        return DENOISER(x, t).score(SCHEDULE.sigma(t))

    generator = seeded(4)

    def corrector(x, t, s):
        if s > 0.05:
            for _ in range(10):
                size = 0.02 * float(SCHEDULE.sigma(s)) ** 2
                x = x + size * score(x, s) + math.sqrt(2 * size) * torch.randn(x.shape, generator=generator).double()
        return x

    times, start = time_grid(6, end=0.05), start_of(None, 1.0, 4000, 3)
    truth = MIXTURE.noised(SCHEDULE.alpha(0.05), SCHEDULE.sigma(0.05)).sample(200_000, seeded(9))[0].T.cov()
    plain, corrected = (
        float((draw(KERNELS["ddim 0"](DENOISER), start, times, after=after).T.cov() - truth).norm())
        for after in (None, corrector)
    )
    assert corrected < plain


def test_what_is_done_after_a_step_must_keep_the_shape():
    with pytest.raises(ValueError, match="^after must return what x is"):
        draw(KERNELS["ddim 0"](DENOISER), noise(3, 2), TIMES, after=lambda x, t, s: x[:1])


@pytest.mark.parametrize("name", [name for name in KERNELS if name not in DETERMINISTIC])
def test_a_sampler_with_noise_does_not_run_forwards(name):
    with pytest.raises(ValueError, match="^s must not exceed t"):
        draw(KERNELS[name](DENOISER), noise(3, 2), torch.tensor([0.1, 0.5]), seeded())


@pytest.mark.parametrize("scheme", [cosine(), vp_linear(0.1, 19.0), from_betas(torch.full((50,), 0.1))])
def test_a_guidance_that_keeps_another_time_than_its_kernel_is_refused(scheme):
    x, times, told = torch.zeros(3, 2).double(), time_grid(4, end=0.1), four_blobs().denoiser(vp_linear(), 1)
    pushed = tilt(told, gradient(lambda x, t: -x.square().sum(1)), 1.0, scheme)
    for kernel in (kernels.ddim(told, scheme), kernels.ddim(pushed, vp_linear())):
        with pytest.raises(ValueError, match="schedule must be the same in all parts"):
            draw(kernel, x, times)


def test_one_schedule_written_twice_is_one_schedule():
    x, times = torch.zeros(3, 2).double(), time_grid(4)
    for one, again in ((cosine(), cosine()), (from_betas(torch.full((50,), 0.1)), from_betas([0.1] * 50))):
        assert draw(kernels.ddim(four_blobs().denoiser(one), again), x, times).isfinite().all()
