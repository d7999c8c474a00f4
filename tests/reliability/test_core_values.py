"""No wrong number and no NaN comes out silently: from whole numbers, other scales, ends of time, noiseless steps."""

import math

import pytest
import torch

from difflesson import divergence, kernels, metrics
from difflesson.clean_classifier import step_guess
from difflesson.denoiser import Prediction
from difflesson.digits.metrics import Statistics, digit_report
from difflesson.guidance import implicit_gradient
from difflesson.losses import times_and_noise
from difflesson.mixture import GaussianMixture
from difflesson.ode import probability_flow
from difflesson.plane import four_blobs
from difflesson.samplers import time_grid
from difflesson.schedule import cosine, expand_as, from_betas, vp_linear
from difflesson.similarity import mean_gradient, noisy_gradient
from difflesson.steps import Gaussian

F32, F64 = torch.float32, torch.float64
SCHEDULE, MIXTURE = vp_linear(), four_blobs()
DENOISER = MIXTURE.denoiser(SCHEDULE, 1)
SCHEDULES = {"linear": vp_linear(), "flat": vp_linear(1.0, 1.0), "cosine": cosine(), "steep cosine": cosine(20, -40),
             "table": from_betas(torch.linspace(1e-4, 0.02, 1000))}  # fmt: skip


# --- whole numbers ------------------------------------------------------------------------------------------


def test_whole_numbers_are_refused_where_a_level_would_be_rounded_to_zero():
    ones, half, t = torch.ones(3, 2, dtype=torch.int64), torch.full((3, 2), 0.5), torch.full((3,), 0.3)
    for call, name in (
        (lambda: SCHEDULE.add_noise(ones, half, t), "x0"),
        (lambda: SCHEDULE.add_noise(ones, half, 0.3), "x0"),
        (lambda: SCHEDULE.add_noise(half, ones, t), "eps"),
        (lambda: SCHEDULE.add_noise(half.to(torch.uint8), half, t), "x0"),
        (lambda: expand_as(t, ones), "x"),
        (lambda: times_and_noise(ones, torch.Generator()), "x0"),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be floats"):
            call()
    assert SCHEDULE.add_noise(half, half.double(), t).dtype == F64


# --- digits on another scale ----------------------------------------------------------------------------------


class Judge(torch.nn.Module):
    """Looks at one pixel, where nothing can go wrong but the input."""

    def __init__(self):
        super().__init__()
        self.leave = torch.nn.Linear(128, 10)

    def features(self, pixels):
        return pixels.flatten(1)[:, :1].expand(-1, 128)


IMAGES = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8)
LABELS = torch.tensor([0, 1, 2, 3])
REFERENCE = Statistics(torch.zeros(128, dtype=F64), torch.eye(128, dtype=F64), 4)


@pytest.mark.parametrize("images", [
    ((IMAGES + 1) * 127.5).to(torch.uint8), (IMAGES + 1) * 127.5, (IMAGES + 1) / 2, IMAGES[:, 0], IMAGES[0], IMAGES[:0],
    IMAGES.repeat(1, 3, 1, 1), IMAGES.masked_fill(IMAGES > 0.9, math.inf), IMAGES.masked_fill(IMAGES < -0.9, math.nan),
], ids=["uint8 pixels", "0..255", "0..1", "no channel", "one image", "none", "colours", "infinite", "NaN"])  # fmt: skip
def test_a_report_refuses_images_on_another_scale(images):
    with pytest.raises(ValueError, match="^images must "):
        digit_report(Judge(), images, LABELS[: len(images)], REFERENCE)


@pytest.mark.parametrize("labels", [LABELS - 1, LABELS + 7, LABELS.double(), LABELS[:, None], LABELS[:1]],
                         ids=["-1", "10", "floats", "(N, 1)", "one label"])  # fmt: skip
def test_a_report_refuses_labels_that_are_no_classes(labels):
    digit_report(Judge(), 3 * IMAGES, LABELS.to(torch.uint8), REFERENCE)  # beyond [-1, 1] is clamped
    with pytest.raises(ValueError, match="^labels? must "):
        digit_report(Judge(), IMAGES, labels, REFERENCE)


# --- ends of time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_infinite_ratios_are_at_the_ends_of_time_and_nan_is_refused(name, dtype):
    ratios = torch.tensor([math.inf, 1e30, -1e30, -math.inf], dtype=dtype)
    assert SCHEDULES[name].time(ratios).tolist() == [0, 0, 1, 1]
    assert float(SCHEDULES[name].time(-math.inf)) == 1
    for bad in (math.nan, torch.tensor([0.0, math.nan])):
        with pytest.raises(ValueError, match="^log_snr must "):
            SCHEDULES[name].time(bad)


@pytest.mark.parametrize("lowest", [-33.0, -40.0, -60.0, -80.0])
def test_a_steep_cosine_keeps_its_lowest_ratio_in_float32(lowest):
    """Its angle was rounded beyond a right one: log_snr was NaN at t = 1, and beta negative."""
    steep, t = cosine(20.0, lowest), torch.tensor([0.0, 0.5, 1.0], dtype=F32)
    assert abs(float(steep.log_snr(t)[-1]) - lowest) < 0.3  # float32 near a right angle
    assert bool((steep.log_snr(t).diff() < 0).all()) and bool((steep.beta(t) > 0).all())
    for level in (steep.alpha, steep.sigma, steep.integrated_beta, steep.beta):
        assert bool(level(t).isfinite().all())


@pytest.mark.parametrize("ends", [(20, -81), (20, -1600), (701, 0), (1600, -1600)])
def test_cut_offs_that_no_number_can_hold_are_refused(ends):
    with pytest.raises(ValueError, match="^log_snr_max must "):
        cosine(*ends)


@pytest.mark.parametrize("time", [torch.tensor(True), torch.tensor([0.5 + 0j])])
def test_a_time_is_a_real_number(time):
    for call in (SCHEDULE.alpha, cosine().log_snr, lambda t: SCHEDULE.transition(t, 0.0)):
        with pytest.raises(ValueError, match="^t must be a real number"):
            call(time)


@pytest.mark.parametrize("call", [
    lambda x, t: kernels.ddpm(DENOISER, SCHEDULE)(x, t, 0.0),
    lambda x, t: kernels.ddim(DENOISER, SCHEDULE, 1.0)(x, t, 0.0),
    lambda x, t: kernels.reverse_sde(DENOISER, SCHEDULE)(x, t, 0.0),
    lambda x, t: kernels.posterior_variance(SCHEDULE, t, torch.zeros(2)),
    implicit_gradient(MIXTURE.pair(SCHEDULE, 1), SCHEDULE),
    probability_flow(DENOISER, SCHEDULE),
    noisy_gradient(MIXTURE, SCHEDULE, lambda x: x.sum(-1), 3),
    mean_gradient(MIXTURE, SCHEDULE, lambda x: x.sum(-1), 3),
    step_guess(DENOISER, lambda x: x.sum(-1), SCHEDULE, 0.1),
], ids=["ddpm", "ddim", "reverse_sde", "posterior_variance", "implicit_gradient", "probability_flow", "noisy_gradient",
        "mean_gradient", "step_guess"])  # fmt: skip
def test_nothing_is_divided_by_the_noise_of_pure_data(call):
    """It was infinite or NaN."""
    with pytest.raises(ValueError, match="^t must have sigma_t > 0, pure data has no noise to divide by"):
        call(torch.zeros(2, 2, dtype=F64), torch.zeros((), dtype=F64))


def test_points_on_another_device_than_the_mixture_are_refused():
    """For points without values, on the device "meta", the denoiser answered numbers."""
    with pytest.raises(ValueError, match="^x must be .*device"):
        DENOISER(torch.zeros(3, 2, dtype=F64, device="meta"), 0.5)


# --- no noise, no density -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [
    kernels.ddim(DENOISER, SCHEDULE), kernels.heun(DENOISER, SCHEDULE), kernels.reverse_sde(DENOISER, SCHEDULE, 0.0),
    lambda x, t, s: Gaussian(x, torch.full((), -0.1, dtype=F64)),
], ids=["ddim", "heun", "reverse_sde", "negative variance"])  # fmt: skip
def test_a_path_without_noise_has_no_divergence(kernel):
    with pytest.raises(ValueError, match="^var must be above 0, a step without noise has no density"):
        divergence.path_kl(MIXTURE, SCHEDULE, 1, kernel, time_grid(2, end=0.2), 3)


def test_a_step_of_no_length_has_no_density():
    x = torch.zeros(2, 2, dtype=F64)
    step = kernels.exact(MIXTURE, SCHEDULE)(x, 0.5, 0.5)
    for call in (lambda: step.log_prob(x), lambda: divergence.kl(step, kernels.ddpm(DENOISER, SCHEDULE)(x, 0.5, 0.4))):
        with pytest.raises(ValueError, match="^var must be above 0"):
            call()


def test_quadrature_is_exact_up_to_its_highest_order_and_refused_beyond():
    nodes, weights = divergence.hermite(360, 1)
    assert abs(float(weights @ nodes[:, 0] ** 6) - 15) < 1e-11
    for order in (361, 400, 10_000):
        with pytest.raises(ValueError, match="^order must be at most 360"):
            divergence.hermite(order, 1)


# --- nothing in, nothing out ----------------------------------------------------------------------------------


def test_a_mean_over_no_points_is_refused():
    none, some = torch.zeros(0, 2, dtype=F64), torch.zeros(3, 2, dtype=F64)
    for call in (
        lambda: metrics.class_mass(MIXTURE, none), lambda: metrics.mode_weights(MIXTURE, none),
        lambda: metrics.wasserstein(none, none), lambda: metrics.energy_distance(none, some),
        lambda: metrics.wasserstein(some[:, :0], some[:, :0]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="^x (and y )?must have "):
            call()


def test_a_denoiser_that_writes_on_its_question_is_refused():
    """The step went on with what was left of x."""

    def careless(x, t):
        x *= 0.5
        return Prediction(x.clone(), x.clone())

    with pytest.raises(ValueError, match="^denoiser must not change x in place"):
        kernels.ddpm(careless, SCHEDULE)(torch.ones(3, 2, dtype=F64), 0.5, 0.4)
    with torch.inference_mode():  # tensors of this mode do not count their changes
        kernels.ddpm(lambda x, t: Prediction(x, x), SCHEDULE)(torch.ones(3, 2, dtype=F64), 0.5, 0.4)


def test_a_mixture_of_noise_below_zero_is_refused():
    for alpha, sigma, name in ((-0.5, 0.3, "alpha"), (0.5, -0.3, "sigma"), (math.nan, 0.3, "alpha")):
        with pytest.raises(ValueError, match=f"^alpha and sigma must .*{name}="):
            GaussianMixture([1.0], torch.zeros(1, 2), torch.eye(2)[None]).noised(alpha, sigma)
