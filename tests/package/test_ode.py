"""The probability-flow ODE: its velocity against the Fokker-Planck equation, its solution against closed forms."""

import math

import pytest
import torch

from difflesson import kernels
from difflesson.denoiser import Prediction
from difflesson.mixture import GaussianMixture
from difflesson.ode import probability_flow, solve
from difflesson.plane import four_blobs
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, from_betas, vp_linear

SCHEDULES = {"linear": vp_linear(), "cosine": cosine(), "table": from_betas(torch.linspace(1e-4, 0.02, 500))}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
MIXTURE = four_blobs()
POINTS = torch.tensor([[0.3, -0.2], [-1.5, 0.8], [2.0, 1.1]], dtype=torch.float64)


@pytest.mark.equation("eq-probability-flow")
@pytest.mark.parametrize("schedule", [vp_linear(), cosine()], ids=["linear", "cosine"])
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_the_velocity_carries_the_density_of_the_mixture(schedule, t):
    """The continuity equation `d log p / dt = -div f - f . grad log p`, by central differences."""
    flow, h = probability_flow(MIXTURE.denoiser(schedule), schedule), 1e-4

    def log_prob(x, time):
        return MIXTURE.noised(schedule.alpha(time), schedule.sigma(time)).log_prob(x)

    rate = (log_prob(POINTS, t + h) - log_prob(POINTS, t - h)) / (2 * h)
    divergence, along = torch.zeros(3).double(), torch.zeros(3).double()
    for i, step in enumerate(h * torch.eye(2).double()):
        divergence += (flow(POINTS + step, t) - flow(POINTS - step, t))[:, i] / (2 * h)
        along += flow(POINTS, t)[:, i] * (log_prob(POINTS + step, t) - log_prob(POINTS - step, t)) / (2 * h)
    assert float((rate + divergence + along).abs().max()) < 1e-5 * (1 + float(rate.abs().max()))


@pytest.mark.equation("eq-probability-flow")
@every_schedule
def test_the_two_forms_of_the_velocity_are_one(schedule):
    flow = probability_flow(MIXTURE.denoiser(schedule, 1), schedule)
    for t in (0.05, 0.41, 0.9):
        score = MIXTURE.given(1).noised(schedule.alpha(t), schedule.sigma(t)).score(POINTS)
        assert float((flow(POINTS, t) + schedule.beta(t) / 2 * (POINTS + score)).abs().max()) < 1e-10


@pytest.mark.equation("eq-probability-flow")
@pytest.mark.parametrize("schedule", [vp_linear(), cosine()], ids=["linear", "cosine"])
def test_a_gaussian_flows_as_its_standard_deviation_grows(schedule):
    mean, var = torch.tensor([[0.7, -1.2]], dtype=torch.float64), 0.3
    blob = GaussianMixture([1.0], mean, var * torch.eye(2)[None])
    flow, ends = probability_flow(blob.denoiser(schedule), schedule), (0.95, 0.05)
    widths = [math.sqrt(float(schedule.alpha(t)) ** 2 * var + float(schedule.sigma(t)) ** 2) for t in ends]
    centres = [float(schedule.alpha(t)) * mean for t in ends]
    there = solve(flow, POINTS, *ends)
    assert float((there - (centres[1] + widths[1] / widths[0] * (POINTS - centres[0]))).abs().max()) < 1e-7
    assert float((solve(flow, there, *reversed(ends)) - POINTS).abs().max()) < 1e-7


@pytest.mark.equation("eq-probability-flow")
def test_a_time_a_point_is_a_velocity_a_point():
    schedule, times = vp_linear(), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    flow = probability_flow(MIXTURE.denoiser(schedule), schedule)
    for i, t in enumerate(times):
        assert float((flow(POINTS, times)[i] - flow(POINTS[i : i + 1], t)[0]).abs().max()) < 1e-12


# --- samplers from pure noise, on every schedule ------------------------------------------------------------

SAMPLERS = {"ddim": (kernels.ddim, 1), "heun": (kernels.heun, 2), "dpmpp_2m": (kernels.dpmpp_2m, 2)}


@pytest.mark.equation("eq-heun")
@pytest.mark.equation("eq-ddim")
@pytest.mark.equation("eq-dpmpp-2m")
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", [vp_linear(), cosine()], ids=["linear", "cosine"])
def test_a_sampler_that_starts_at_time_one_meets_the_flow_at_its_order_on_every_schedule(name, schedule):
    make, order = SAMPLERS[name]
    start = torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = solve(probability_flow(MIXTURE.denoiser(schedule), schedule), start, 1.0, 0.02)
    errors = [
        float((draw(make(MIXTURE.denoiser(schedule), schedule), start, time_grid(n, end=0.02)) - want).abs().max())
        for n in (80, 160, 320)
    ]
    assert math.log2(errors[1] / errors[2]) > order - 0.3
    assert errors[0] < (0.2 if order == 1 else 0.03)


@pytest.mark.parametrize(
    "make", [kernels.ddim, kernels.heun, kernels.dpmpp_2m, lambda d, s: kernels.reverse_sde(d, s, 0.0)]
)
@pytest.mark.parametrize("schedule", [vp_linear(), cosine()], ids=["linear", "cosine"])
def test_a_sampler_without_noise_runs_forwards_too_and_finds_the_noise_that_a_point_came_from(make, schedule):
    kernel, gaps = make(MIXTURE.denoiser(schedule), schedule), []
    for steps in (100, 200):
        times = time_grid(steps, end=0.02)
        back = draw(kernel, draw(kernel, POINTS, times), times.flip(0))
        gaps.append(float((back - POINTS).abs().max()))
    assert gaps[1] < 0.6 * gaps[0] < 0.5  # first order or better


def test_a_noiseless_sampler_inverts_from_the_data_itself():
    gaps = []
    for make in (kernels.ddim, kernels.heun, kernels.dpmpp_2m):
        schedule = vp_linear()
        kernel = make(MIXTURE.denoiser(schedule), schedule)
        noise = draw(kernel, POINTS, time_grid(200).flip(0))
        assert bool(noise.isfinite().all())
        gaps.append(float((draw(kernel, noise, time_grid(200)) - POINTS).abs().max()))
    assert max(gaps) < 0.3, gaps


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("t must", lambda flow: flow(POINTS, 0.0)),
        ("t must", lambda flow: flow(POINTS, 1.1)),
        ("t and s must differ", lambda flow: solve(flow, POINTS, 0.4, 0.4)),
        ("s must", lambda flow: solve(flow, POINTS, 0.4, -0.1)),
        ("denoiser's x0 must", lambda _: probability_flow(lambda x, t: Prediction(x[:1], x), vp_linear())(POINTS, 0.4)),
    ],
)
def test_bad_input_is_named(name, call):
    with pytest.raises(ValueError, match=f"^{name}"):
        call(probability_flow(MIXTURE.denoiser(vp_linear()), vp_linear()))
