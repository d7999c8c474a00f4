"""What chapter 20 claims about exact answers in schedulers of diffusers, by quadrature, the flow itself and NumPy."""

import ast
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import norm

from difflesson import conventions, guidance, kernels, metrics, pipelines, plane
from difflesson.mixture import GaussianMixture
from difflesson.schedule import from_betas
from tests.oracles.chapter_cells import names_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("diffusers", reason="diffusers is not installed (extra: peers)")
    import diffusers
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        DiTPipeline,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
        HeunDiscreteScheduler,
    )
    from diffusers.guiders import ClassifierFreeGuidance

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
F64 = torch.float64
TABLE = {"beta_start": 1e-4, "beta_end": 0.02}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAILING = {"timestep_spacing": "trailing"}
ONE = GaussianMixture([1.0], torch.tensor([[0.8]], dtype=F64), [[[0.25]]])
OTHER = GaussianMixture([0.5, 0.1, 0.4], torch.tensor([[-0.7], [0.9], [2.0]], dtype=F64), [[[0.3]], [[0.05]], [[0.2]]])
LINE = pipelines.line_of_blobs()
each_line = pytest.mark.parametrize("line", [LINE, OTHER], ids=["the page's", "another"])


def ddim(**options):
    return DDIMScheduler(**{"clip_sample": False, **TABLE, **options})


def flow_end(mixture, x, alpha, sigma):
    """Where the flow takes points at this level: d x_edm / d sigma_edm is the guess of the noise, in SciPy."""
    level = float(sigma / alpha)

    def rate(size, flat):
        noisy = mixture.noised(1.0, size)
        return (-size * noisy.score(torch.from_numpy(flat).view(x.shape))).flatten().numpy()

    start = (x / float(alpha)).flatten().numpy()
    found = solve_ivp(rate, (level, 0.0), start, method="DOP853", rtol=1e-8, atol=1e-9)
    return torch.from_numpy(found.y[:, -1].copy()).view(x.shape)


def walks(scheduler, steps, line=LINE, **options):
    return [row.walk for row in pipelines.check_scheduler(scheduler, steps, line, count=40, **options)]


# ---- the network, and what must come out


@pytest.mark.equation("eq-noise-level")
@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_sigmas_are_noise_over_signal_and_the_input_is_multiplied_by_alpha(kind):
    scheduler = kind(**TABLE, beta_schedule="linear", timestep_spacing="trailing")
    scheduler.set_timesteps(40)
    k, sigma_edm = scheduler.timesteps[7], scheduler.sigmas[7]
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[int(k)]
    assert abs(float(sigma_edm) - math.sqrt((1 - kept) / kept)) < 1e-3 * float(sigma_edm)
    x = torch.ones(2, 1, dtype=F64)
    assert (scheduler.scale_model_input(x, k) - math.sqrt(kept)).abs().max() < 1e-4
    alpha, _ = conventions.noise_level(sigma_edm.double(), "edm")
    assert abs(float(alpha) - math.sqrt(kept)) < 1e-4


@each_line
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_answers_are_posterior_means_by_summing_over_clean_points(line, prediction):
    table = ddim().alphas_cumprod
    x, k = torch.tensor([[-1.1], [0.3], [2.2]], dtype=F64), 400
    kept = float(table[k].double())
    axis = torch.linspace(-6, 8, 20_001, dtype=F64)[:, None]
    log = line.log_prob(axis)[None] - (x - math.sqrt(kept) * axis.T).square() / 2 / (1 - kept)
    x0 = log.softmax(1) @ axis
    eps = (x - math.sqrt(kept) * x0) / math.sqrt(1 - kept)
    want = {"epsilon": eps, "sample": x0, "v_prediction": math.sqrt(kept) * eps - math.sqrt(1 - kept) * x0}
    got = pipelines.exact_network(line, table, prediction)(x, k)
    assert (got - want[prediction]).abs().max() < 1e-8


@pytest.mark.equation("eq-quantile-flow")
@each_line
def test_points_of_the_flow_keep_their_share_on_a_line(line):
    clock = from_betas(ddim().betas.double())
    x = torch.tensor([[-1.4], [-0.2], [0.5], [1.9]], dtype=F64)
    alpha, sigma = clock.alpha(0.7), clock.sigma(0.7)
    ends = flow_end(line, x, alpha, sigma)
    assert (pipelines.flowed(line, x, alpha, sigma) - ends).abs().max() < 1e-5
    deviations = (alpha**2 * line.variances[:, 0] + sigma**2).sqrt()
    shares = norm.cdf((x.numpy() - (alpha * line.means[:, 0]).numpy()) / deviations.numpy()) @ line.weights.numpy()
    assert np.abs(pipelines.chance(line.noised(alpha, sigma), x).numpy() - shares).max() < 1e-12


def test_in_the_plane_the_share_to_the_left_is_not_kept():
    """So the check is made on a line: here the point that starts to the right ends to the left."""
    alpha, sigma = conventions.noise_level(2.5, "edm")
    x = alpha * torch.tensor([[-1.346, -5.385], [-2.154, 5.385]], dtype=F64)
    ends = flow_end(plane.four_blobs(), x, alpha, sigma)
    assert x[0, 0] > x[1, 0] + 0.2 and ends[0, 0] < ends[1, 0] - 0.1


@pytest.mark.equation("eq-two-errors")
@each_line
def test_the_whole_error_is_walk_and_start_and_each_is_what_it_is_called(line):
    two_errors = names_of("20", "eq-two-errors")["two_errors"]
    scheduler = ddim(**SD)
    exact = pipelines.exact_network(line, scheduler.alphas_cumprod)
    z = torch.tensor([[-1.7], [0.1], [1.2]], dtype=F64)
    came = pipelines.drive(scheduler, exact, z, 20)
    walk, start = two_errors(came, z, z, line, exact.level(950))
    clock = from_betas(scheduler.betas.double())
    perfect = flow_end(line, z, clock.alpha(0.951), clock.sigma(0.951))
    truth = torch.tensor([[_percent_point(line, float(norm.cdf(v)))] for v in z[:, 0]], dtype=F64)
    assert (walk - (came - perfect)).abs().max() < 1e-5
    assert (start - (perfect - truth)).abs().max() < 1e-5


def _percent_point(line, share):
    axis = torch.linspace(-4, 5, 100_001, dtype=F64)
    mass = torch.cumulative_trapezoid(line.log_prob(axis[:, None]).exp(), axis)
    return float(np.interp(share, mass.numpy(), axis[1:].numpy()))


@pytest.mark.equation("eq-two-errors")
def test_check_scheduler_splits_the_error_by_the_flow_of_the_level_that_the_network_is_told():
    scheduler = ddim(**SD)
    (row,) = pipelines.check_scheduler(scheduler, (25,), OTHER, count=40)
    z = torch.tensor(norm.ppf((np.arange(40) + 0.5) / 40))[:, None]
    clock = from_betas(scheduler.betas.double())
    perfect = flow_end(OTHER, z, clock.alpha(0.961), clock.sigma(0.961))
    truth = torch.tensor([[_percent_point(OTHER, (i + 0.5) / 40)] for i in range(40)], dtype=F64)
    came = pipelines.drive(scheduler, pipelines.exact_network(OTHER, scheduler.alphas_cumprod), z, 25)
    mean = float(OTHER.weights @ OTHER.means[:, 0])
    size = math.sqrt(float(OTHER.weights @ (OTHER.variances[:, 0] + (OTHER.means[:, 0] - mean) ** 2)))
    for name, found in (("walk", came - perfect), ("start", perfect - truth), ("whole", came - truth)):
        assert abs(getattr(row, name) - float(found.abs().mean()) / size) < 1e-4
    assert row.start > 0.01


# ---- flow matching, and what the check refuses


@pytest.mark.equation("eq-noise-level")
def test_a_scheduler_of_flow_matching_carries_x_over_alpha_plus_sigma_and_asks_for_eps_minus_x0():
    """Its own `scale_noise` against ours; and with the noise less the clean point its step goes along the line."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    clean, eps = torch.tensor([[0.7], [-1.2]], dtype=F64), torch.tensor([[0.3], [1.1]], dtype=F64)
    k, here, there = scheduler.timesteps[4], *scheduler.sigmas[4:6].double()
    alpha, sigma = 1 / math.hypot(1, here / (1 - here)), 1 / math.hypot(1, (1 - here) / here)
    theirs = scheduler.scale_noise(clean, k[None], eps)
    assert (theirs - (alpha * clean + sigma * eps) / (alpha + sigma)).abs().max() < 1e-6
    assert abs(here - sigma / (alpha + sigma)) < 1e-6 and abs(float(k) / 1000 - here) < 1e-6
    assert all(abs(float(level) - want) < 1e-6 for level, want in
               zip(pipelines.exact_flow(LINE).level(k), (alpha, sigma), strict=True))  # fmt: skip
    after = scheduler.step(eps - clean, k, theirs).prev_sample
    assert (after - (1 - there) * clean - there * eps).abs().max() < 1e-6


@pytest.mark.parametrize("shift", [1.0, 3.0])
@each_line
def test_a_scheduler_of_flow_matching_halves_its_walk_and_is_found_wrong_if_asked_a_timestep_off(line, shift):
    scheduler, network = FlowMatchEulerDiscreteScheduler(shift=shift), pipelines.exact_flow(line)
    found = walks(scheduler, (20, 40, 80), line)
    assert all(0.42 < b / a < 0.55 for a, b in zip(found[:-1], found[1:], strict=True))
    off = walks(scheduler, (20, 40, 80), line, network=lambda x, k: network(x, min(1.05 * k, 1000)))
    assert off[2] > 0.8 * off[1] and off[2] > 3 * found[2]
    z = torch.tensor([[-1.3], [0.2], [1.4]], dtype=F64)
    came = pipelines.drive(scheduler, network, z, 400)
    assert (came - flow_end(line, z, 1e-3, 1.0)).abs().max() < 0.02


def test_what_the_check_refuses_and_what_it_takes():
    zero = {"rescale_betas_zero_snr": True, **TRAILING, **SD}
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for refused, message in (
        (ddim(**zero), "prediction_type='epsilon' where it starts at alpha = 0"),
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **SD), "must be without noise"),
        (DDPMScheduler(clip_sample=False, **TABLE), "must be without noise"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "must be without noise"),
        (DPMSolverMultistepScheduler(thresholding=True, **SD), "must have thresholding=False"),
        (dynamic, "`mu` must be passed"),
    ):
        with pytest.raises(ValueError, match=message):
            walks(refused, (10,))
    with pytest.raises(ValueError, match="must be without noise"):
        walks(ddim(), (10,), eta=1.0)
    assert walks(ddim(**{**zero, "prediction_type": "v_prediction"}), (100,))[0] < 0.02
    assert walks(type(dynamic).from_config(dynamic.config, use_dynamic_shifting=False), (100,))[0] < 0.02
    by_table = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    assert walks(by_table, (80,))[0] < 0.001


# ---- double the steps


@each_line
def test_a_right_scheduler_halves_its_walk_and_a_second_order_one_does_better(line):
    for scheduler in (ddim(), EulerDiscreteScheduler(**TRAILING, **TABLE)):
        found = walks(scheduler, (20, 40, 80, 160), line)
        assert all(0.42 < b / a < 0.55 for a, b in zip(found[:-1], found[1:], strict=True))
    two = walks(DPMSolverMultistepScheduler(**TRAILING, **TABLE), (40, 80, 160), line)
    assert two[1] < two[0] / 3 and two[2] < two[1] / 3


def test_what_the_default_cuts_never_arrives_and_stays_inside_one():
    found = walks(DDIMScheduler(), (20, 80, 320))
    assert min(found) > 0.3 and max(found) / min(found) < 1.05
    scheduler = DDIMScheduler()
    came = pipelines.drive(
        scheduler, pipelines.exact_network(LINE, scheduler.alphas_cumprod), torch.randn(40, 1).double(), 20
    )
    assert came.abs().max() <= 1 + 1e-6


@pytest.mark.equation("eq-stride-share")
@each_line
def test_ddim_with_trailing_timesteps_is_right_only_where_the_number_of_steps_divides_a_thousand(line):
    share = names_of("20", "eq-stride-share")["share_left_out"]
    counts = (25, 50, 100, 60, 80, 300)
    theirs, euler = (
        walks(kind, counts, line) for kind in (ddim(**TRAILING), EulerDiscreteScheduler(**TRAILING, **TABLE))
    )
    for n, a, b in zip(counts, theirs, euler, strict=True):
        scheduler = ddim(**TRAILING)
        scheduler.set_timesteps(n)
        ks = [*scheduler.timesteps.tolist(), -1]
        missed = sum((k - 1000 // n) - later for k, later in zip(ks[:-2], ks[1:-1], strict=True))
        assert abs(missed / 1000 - share(n)) < 1.5 / n + 0.002  # timesteps are rounded, and the last stride is cut
        assert (abs(a - b) < 1e-3) == (share(n) < 1e-12) == (1000 % n == 0)
        if share(n) > 0.01:
            assert 0.2 < (a - b) / share(n) < 0.6
    assert theirs[-1] > theirs[0]  # 300 steps are worse than 25


def test_linspace_steps_elsewhere_than_to_the_next_timestep_at_every_number_of_steps_but_1_and_1000():
    for n in range(1, 1001):
        scheduler = ddim(timestep_spacing="linspace")
        scheduler.set_timesteps(n)
        ks = scheduler.timesteps.tolist()
        assert any(k - 1000 // n != later for k, later in zip(ks[:-1], ks[1:], strict=True)) == (1 < n < 1000)


def test_the_additional_error_on_one_gaussian_is_nothing_at_60_steps_and_almost_the_share_left_out_at_300():
    """So 0.37 of the share belongs to the page's mixture; and at 300 steps DDIM is worse than at 25 here as well."""
    share = names_of("20", "eq-stride-share")["share_left_out"]
    counts = (25, 60, 300)
    theirs, euler = (
        walks(kind, counts, ONE) for kind in (ddim(**TRAILING), EulerDiscreteScheduler(**TRAILING, **TABLE))
    )
    ratio = [(a - b) / share(n) for n, a, b in zip(counts[1:], theirs[1:], euler[1:], strict=True)]
    assert abs(ratio[0]) < 0.05 and abs(ratio[1] - 0.95) < 0.02 and theirs[2] > theirs[0]


@pytest.mark.parametrize("n", [50, 80, 300])
def test_the_stride_is_the_cause(n):
    """Our DDIM does the same if it stops short, and is right if it goes on to the next timestep."""
    scheduler = ddim(**TRAILING)
    clock = from_betas(scheduler.betas.double())
    kernel, z = kernels.ddim(OTHER.denoiser(clock), clock), torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    theirs = pipelines.drive(scheduler, pipelines.exact_network(OTHER, scheduler.alphas_cumprod), z, n)
    ks = scheduler.timesteps.tolist()

    def ours(targets):
        x = z
        for k, target in zip(ks, targets, strict=True):
            x = kernel(x, (k + 1) / 1000, max(target + 1, 0) / 1000).mean
        return x

    perfect = flow_end(OTHER, z, clock.alpha(1.0), clock.sigma(1.0))
    short, on = ours([k - 1000 // n for k in ks]), ours([*ks[1:], -1])
    assert (short - theirs).abs().max() < 1e-4
    far_short, far_on = (float((x - perfect).abs().mean()) for x in (short, on))
    assert (far_short > 1.5 * far_on) == (n != 50)


def test_the_version_that_the_page_speaks_of():
    """Another version may have mended its strides: then the page must be written anew."""
    assert diffusers.__version__.split(".")[:2] == ["0", "42"]


@pytest.mark.equation("eq-one-step")
def test_current_beta_and_the_noise_of_a_step_in_ddpm_are_the_noise_between_two_levels():
    scheduler = DDPMScheduler(**TABLE, clip_sample=False)
    scheduler.set_timesteps(20)
    kept = scheduler.alphas_cumprod.double()
    for t, s in ((950, 900), (500, 450), (50, 0)):
        pair_t, pair_s = ((kept[k].sqrt(), (1 - kept[k]).sqrt()) for k in (t, s))
        ratio, added = 1.0, 0.0
        for beta in scheduler.betas.double()[s + 1 : t + 1]:  # in single steps
            ratio, added = ratio * float(1 - beta) ** 0.5, added * float(1 - beta) + float(beta)
        alpha_ts, sigma_ts = conventions.between(*pair_s, *pair_t)
        assert abs(float(alpha_ts) - ratio) < 1e-6 and abs(float(sigma_ts) - math.sqrt(added)) < 1e-6
        std = conventions.reverse_std(*pair_s, *pair_t)
        assert abs(float(std) ** 2 - float(scheduler._get_variance(t))) < 1e-5
        assert abs(float(std) - math.sqrt(added) * float(pair_s[1] / pair_t[1])) < 1e-6


def test_one_timestep_short_near_500_leaves_a_noise_of_a_tenth_and_a_third_of_300_strides_are_short():
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64), 0)
    assert round(float((1 - kept[497] / kept[496]).sqrt()), 2) == 0.1
    scheduler = ddim(**TRAILING)
    scheduler.set_timesteps(300)
    strides = -np.diff(scheduler.timesteps.numpy())
    assert set(strides) == {3, 4} and abs((strides == 4).mean() - 1 / 3) < 0.01


# ---- options


def test_the_start_depends_on_the_table_and_the_first_timestep_and_not_on_the_solver():
    def starts(scheduler, steps=(10, 50)):
        return [row.start for row in pipelines.check_scheduler(scheduler, steps, count=60)]

    sd = starts(ddim(**SD, **TRAILING))
    assert abs(sd[0] - 0.0193) < 5e-4 and abs(sd[0] - sd[1]) < 1e-6
    for scheduler in (DPMSolverMultistepScheduler(**SD), DPMSolverMultistepScheduler(use_karras_sigmas=True, **SD)):
        assert max(abs(start - sd[0]) for start in starts(scheduler)) < 1e-5
    leading = starts(ddim(**SD))
    assert leading[0] > leading[1] > sd[0] and starts(ddim())[1] < 0.003
    zero = ddim(rescale_betas_zero_snr=True, prediction_type="v_prediction", **TRAILING, **SD)
    assert max(starts(zero)) < 1e-6
    zero = ddim(rescale_betas_zero_snr=True, prediction_type="v_prediction", **SD)
    assert starts(zero)[0] > 0.01  # with leading timesteps it does not begin at pure noise
    assert abs(starts(HeunDiscreteScheduler())[0] - 0.0112) < 5e-4
    first = ddim(**SD)
    first.set_timesteps(10)
    assert int(first.timesteps[0]) == 900
    late = starts(ddim(), (501, 600, 999))  # more steps start later
    assert abs(late[0] - 0.08) < 0.005 and late[1] < 0.6 * late[0] and late[2] < 0.003
    assert starts(ddim(**TRAILING), (500,))[0] < 0.003


def test_the_defaults_of_heun_are_a_third_table():
    tables = [kind(**options).alphas_cumprod for kind, options in (
        (HeunDiscreteScheduler, {}), (DDIMScheduler, {}), (DDIMScheduler, SD))]  # fmt: skip
    assert all((tables[0] - other).abs().max() > 0.05 for other in tables[1:])


def test_alpha_to_one_and_the_offset_move_the_walk_of_this_mixture_by_less_than_a_tenth_and_of_one_gaussian_more():
    own = {"set_alpha_to_one": False, "steps_offset": 1, **SD}
    for line in (LINE, ONE):
        moved = [b / a for a, b in zip(*(walks(ddim(**way), (10, 50, 200), line) for way in (SD, own)), strict=True)]
        assert all(abs(part - 1) < 0.1 for part in moved) == (line is LINE)


@pytest.mark.parametrize("line", [OTHER, ONE], ids=["another", "one Gaussian"])
@pytest.mark.parametrize("kind", ["Karras", "Heun"])
def test_two_walks_stop_at_what_the_last_step_leaves_and_not_if_the_flow_takes_it(line, kind):
    """From sigma_edm of the table's first entry: the guess is sigma^2 score from the point, the flow's end half."""
    karras = DPMSolverMultistepScheduler(use_karras_sigmas=True, **SD)
    scheduler = karras if kind == "Karras" else HeunDiscreteScheduler()
    chances = (torch.arange(40, dtype=F64) + 0.5) / 40
    kept = float(scheduler.alphas_cumprod[0].double())
    edm = (1 - kept) / kept
    left = float((edm / 2 * line.score(pipelines.quantile(line, chances))).abs().mean())
    network, came = pipelines.exact_network(line, scheduler.alphas_cumprod), []
    scheduler.set_timesteps(300)
    x = torch.special.ndtri(chances)[:, None] * float(scheduler.init_noise_sigma)
    first = scheduler.scale_model_input(x, scheduler.timesteps[0])
    own = pipelines.flowed(line, first, *network.level(scheduler.timesteps[0]))
    for k in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, k), k), k, x).prev_sample
        came.append(x)
    before = came[-2] * (kept**0.5 if kind == "Heun" else 1.0)
    walk, rest = (float((end - own).abs().mean()) for end in (x, flow_end(line, before, kept**0.5, (1 - kept) ** 0.5)))
    assert abs(walk / left - 1) < 0.12 and rest < 0.12 * walk


def test_the_walk_of_linspace_halves_only_where_the_number_of_steps_divides_a_thousand():
    found, right = (walks(ddim(timestep_spacing=name), (25, 50, 100)) for name in ("linspace", "leading"))
    assert all(b < 0.55 * a for a, b in zip(found[:-1], found[1:], strict=True))
    assert all(a > 1.2 * b for a, b in zip(found, right, strict=True))
    other = walks(ddim(timestep_spacing="linspace"), (30, 60, 120))
    assert all(b > 0.65 * a for a, b in zip(other[:-1], other[1:], strict=True))


def test_the_rule_finds_the_stride_at_30_60_120_and_not_where_the_numbers_divide_a_thousand():
    hidden, shown = (walks(ddim(**TRAILING), counts) for counts in ((25, 50, 100), (30, 60, 120)))
    assert all(b < 0.55 * a for a, b in zip(hidden[:-1], hidden[1:], strict=True))
    assert shown[1] > 0.7 * shown[0] and shown[2] > 0.7 * shown[1]


def test_where_the_last_step_ends():
    for kind in (EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        for word in ("zero", "sigma_min"):
            scheduler = kind(final_sigmas_type=word, **TABLE)
            scheduler.set_timesteps(20)
            first = math.sqrt(1e-4 / (1 - 1e-4)) if word == "sigma_min" else 0.0
            assert abs(float(scheduler.sigmas[-1]) - first) < 1e-6
            assert (walks(scheduler, (20,), ONE)[0] > 0) and len(scheduler.sigmas) == 21
    for to_one in (True, False):
        assert abs(float(ddim(set_alpha_to_one=to_one).final_alpha_cumprod) - (1 if to_one else 1 - 1e-4)) < 1e-7


# ---- your own loop


@pytest.mark.equation("eq-wrong-gamma")
def test_swapped_branches_are_one_minus_gamma_and_a_scale_applied_twice_is_its_square():
    loops = names_of("20", "eq-wrong-gamma")["loops"]
    mixture = plane.four_blobs()
    table = ddim().alphas_cumprod
    network, x, k = pipelines.exact_network(mixture, table), torch.randn(5, 2, dtype=F64), 300
    cond, uncond = (network(x, k, torch.full((5,), label)) for label in (1, 2))
    clock = from_betas(ddim().betas.double())
    for gamma in (-0.5, 0.7, 3.0):
        for kind, scale in (("right", gamma), ("swapped", 1 - gamma), ("twice", gamma**2)):
            want = guidance.classifier_free(mixture.pair(clock, label=1), scale)(x, (k + 1) / 1000).eps
            assert (loops(uncond, cond, gamma)[kind] - want).abs().max() < 1e-4


def test_at_one_swapped_branches_draw_all_data_and_twice_is_not_seen():
    scheduler = ddim()
    network = pipelines.exact_network(LINE, scheduler.alphas_cumprod)

    def swapped(x, k):
        uncond, cond = network(torch.cat([x] * 2), k, torch.tensor([2, 1]).repeat_interleave(len(x))).chunk(2)
        return cond + 1.0 * (uncond - cond)

    right = pipelines.guided_network(network, 1, 1.0, none=2)
    class_1 = LINE.given(1)
    assert walks(scheduler, (50,), class_1, network=right)[0] < 0.025
    assert walks(scheduler, (50,), class_1, network=swapped)[0] > 0.5
    assert walks(scheduler, (50,), LINE, network=swapped)[0] < 0.04  # all data


def test_tested_at_one_a_pipeline_s_loop_hides_swapped_branches():
    scheduler = ddim()
    network = pipelines.exact_network(LINE, scheduler.alphas_cumprod)
    plain = pipelines.guided_network(network, 1, 1.0, none=2)

    def swapped(gamma):
        def ask(x, k):
            uncond, cond = network(torch.cat([x] * 2), k, torch.tensor([2, 1]).repeat_interleave(len(x))).chunk(2)
            return cond + gamma * (uncond - cond)

        return ask if gamma > 1 else plain  # as pipelines do

    at, above = (walks(scheduler, (50,), LINE.given(1), network=swapped(gamma))[0] for gamma in (1.0, 1.000001))
    assert at == walks(scheduler, (50,), LINE.given(1), network=plain)[0] and above > 0.5


def test_doubling_finds_what_is_wrong_in_the_limit_and_not_a_step_that_comes_late():
    scheduler = ddim()
    network = pipelines.exact_network(OTHER, scheduler.alphas_cumprod)
    late = walks(scheduler, (25, 50, 100), OTHER,
                 network=lambda x, k: network(x, min(int(k) + 1000 // scheduler.num_inference_steps, 999)))  # fmt: skip
    right = walks(scheduler, (25, 50, 100), OTHER)
    assert all(b < 0.6 * a for a, b in zip(late[:-1], late[1:], strict=True)) and late[2] > 2.5 * right[2]
    wrong_table = pipelines.exact_network(OTHER, ddim(**SD).alphas_cumprod)
    for wrong in (wrong_table, lambda x, k: 1.02 * network(x, k), lambda x, k: network(x, min(int(k) + 1, 999))):
        found = walks(scheduler, (25, 50, 100), OTHER, network=wrong)
        assert found[2] > 0.55 * found[1]


def test_a_timestep_early_is_nearer_with_few_steps_and_farther_with_many():
    scheduler = ddim()
    network = pipelines.exact_network(LINE, scheduler.alphas_cumprod)
    early = walks(scheduler, (25, 1000), network=lambda x, k: network(x, max(int(k) - 1, 0)))
    right = walks(scheduler, (25, 1000))
    assert early[0] < right[0] and early[1] > 1.5 * right[1]


@pytest.fixture(scope="module")
def pipe():
    scheduler = ddim()
    network = pipelines.exact_network(plane.four_blobs(), scheduler.alphas_cumprod)
    made = DiTPipeline(pipelines.exact_transformer(network), pipelines.no_autoencoder(), scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def piped(pipe, gamma, seed=8, count=40):
    pictures = pipe([0] * count, guidance_scale=gamma, num_inference_steps=25, output_type="pt",
                    generator=torch.Generator().manual_seed(seed)).images  # fmt: skip
    return pipe.vae.points(pictures)


def test_the_pipeline_guides_as_this_book_does_above_one(pipe):
    mixture, clock = plane.four_blobs(), from_betas(pipe.scheduler.betas.double())
    x = torch.randn(40, 2, 1, 1, generator=torch.Generator().manual_seed(8), dtype=F64).flatten(1)
    kernel = kernels.ddim(guidance.classifier_free(mixture.pair(clock, label=0), 2.5), clock)
    for k in range(960, -1, -40):
        x = kernel(x, (k + 1) / 1000, max(k - 40 + 1, 0) / 1000).mean
    assert (piped(pipe, 2.5) - x).abs().max() < 1e-5


def test_the_pipeline_draws_at_zero_and_a_half_what_it_draws_at_one(pipe):
    at_one = piped(pipe, 1.0)
    assert all(torch.equal(piped(pipe, gamma), at_one) for gamma in (0.0, 0.5, -2.0))
    assert 0 < (piped(pipe, 1.000001) - at_one).abs().max() < 1e-3
    assert (piped(pipe, 1.5) - at_one).abs().max() > 0.1
    assert metrics.class_mass(plane.four_blobs(), piped(pipe, 0.0))[0] > 0.8  # all data have 0.6


def test_stable_diffusion_has_no_label_first_and_the_label_second_and_is_off_at_one():
    """Read in the source, since its text encoder is not here."""
    folder = Path(diffusers.__file__).with_name("pipelines")
    text = (folder / "stable_diffusion/pipeline_stable_diffusion.py").read_text("utf-8")
    assert "noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)" in text and "_guidance_scale > 1" in text
    text = (folder / "dit/pipeline_dit.py").read_text("utf-8")
    assert "cond_eps, uncond_eps = torch.split(eps, len(eps) // 2, dim=0)" in text and "guidance_scale > 1" in text


def test_where_the_scale_is_an_input_of_the_network_there_is_one_answer_a_step():
    """Read in the source: Flux embeds it, and guides by `true_cfg_scale`; Stable Diffusion does so for some."""
    folder = Path(diffusers.__file__).with_name("pipelines")
    text = (folder / "flux/pipeline_flux.py").read_text("utf-8")
    assert "guidance = torch.full([1], guidance_scale" in text and "guidance=guidance," in text
    assert "if self.transformer.config.guidance_embeds:" in text and "Guidance-distilled models" in text
    assert "noise_pred = neg_noise_pred + true_cfg_scale * (noise_pred - neg_noise_pred)" in text
    assert "do_true_cfg = true_cfg_scale > 1 and has_neg_prompt" in text
    text = (folder / "stable_diffusion/pipeline_stable_diffusion.py").read_text("utf-8")
    assert "return self._guidance_scale > 1 and self.unet.config.time_cond_proj_dim is None" in text


@pytest.mark.parametrize("n", [20, 50])
def test_the_guider_asks_twice_only_between_its_two_shares_of_the_steps(n):
    guider, asked = ClassifierFreeGuidance(5.0, start=0.2, stop=0.9), []
    for step in range(n):
        guider.set_state(step=step, num_inference_steps=n, timestep=torch.tensor(0))
        asked.append(guider.num_conditions)
    assert asked == [2 if 0.2 * n <= step < 0.9 * n else 1 for step in range(n)]


@pytest.mark.parametrize("n", [50, 300])
def test_which_timesteps_each_spacing_asks_for(n):
    found = {}
    for spacing in ("leading", "trailing", "linspace"):
        scheduler = ddim(timestep_spacing=spacing)
        scheduler.set_timesteps(n)
        found[spacing] = scheduler.timesteps.numpy()
    assert (found["leading"][::-1] == np.arange(n) * (1000 // n)).all()
    assert np.abs(found["trailing"] - (999 - np.arange(n) * 1000 / n)).max() <= 0.5 + 1e-9
    assert found["linspace"][0] == 999 and found["linspace"][-1] == 0
    for wrong in (61, 103):  # one timestep too many, in every scheduler of the page
        for scheduler in (ddim(**TRAILING), EulerDiscreteScheduler(**TRAILING, **TABLE)):
            scheduler.set_timesteps(wrong)
            assert len(scheduler.timesteps) == wrong + 1 and scheduler.timesteps[-1] == -1


def test_the_starting_noise_has_the_unit_of_the_scheduler():
    assert ddim().init_noise_sigma == 1
    euler = EulerDiscreteScheduler(**TRAILING, **TABLE)
    euler.set_timesteps(10)
    assert abs(float(euler.init_noise_sigma) - float(euler.sigmas[0])) < 1e-3 and euler.sigmas[0] > 100


def test_rescaling_is_a_factor_for_each_picture_towards_the_deviation_of_its_conditional_guess():
    """The function as it stands in the library's source; its module wants a text encoder."""
    source = (
        Path(diffusers.__file__).with_name("pipelines") / "stable_diffusion/pipeline_stable_diffusion.py"
    ).read_text("utf-8")
    (node,) = [part for part in ast.parse(source).body if getattr(part, "name", "") == "rescale_noise_cfg"]
    space = {}
    exec(compile(ast.Module([node], []), "rescale", "exec"), space)
    guided, told = torch.randn(2, 3, 1, 8, 8, dtype=F64)
    guided = 2.5 * guided
    half = space["rescale_noise_cfg"](guided, told, 0.5)
    factors = (half / guided).flatten(1)
    assert (factors - factors[:, :1]).abs().max() < 1e-12 and len(set(factors[:, 0].tolist())) == 3
    whole = space["rescale_noise_cfg"](guided, told, 1.0)
    assert (whole.flatten(1).std(1) - told.flatten(1).std(1)).abs().max() < 1e-12


# ---- Deeper


def test_second_order_pays_at_once_without_guidance_and_late_with_strong():
    z = torch.special.ndtri((torch.arange(150, dtype=F64) + 0.5) / 150)[:, None]
    euler, multistep = EulerDiscreteScheduler(**TRAILING, **TABLE), DPMSolverMultistepScheduler(**TRAILING, **TABLE)
    network = pipelines.exact_network(LINE, euler.alphas_cumprod)
    for gamma in (1.0, 5.0):
        guided = pipelines.guided_network(network, 1, gamma, none=2)
        goal = pipelines.drive(multistep, guided, z, 250)
        first, second = ([float((pipelines.drive(kind, guided, z, n) - goal).abs().mean()) for n in (10, 40, 80)]
                         for kind in (euler, multistep))  # fmt: skip
        assert (second[0] < first[0]) == (gamma == 1.0) and second[1] < first[1] / 2
        assert second[2] < first[2] / 10


def test_the_mean_error_of_first_order_at_a_large_scale_comes_from_a_few_starts():
    """On the page's mixture, and on one of five blobs and three classes: where the multistep method passes."""
    five = GaussianMixture(
        [0.25, 0.15, 0.2, 0.25, 0.15],
        torch.tensor([[-3.0], [-1.2], [0.2], [1.5], [3.0]], dtype=F64),
        [[[0.2]], [[0.1]], [[0.3]], [[0.1]], [[0.25]]],
        [0, 1, 2, 1, 0],
    )
    euler, multistep = EulerDiscreteScheduler(**TRAILING, **TABLE), DPMSolverMultistepScheduler(**TRAILING, **TABLE)
    z = torch.special.ndtri((torch.arange(400, dtype=F64) + 0.5) / 400)[:, None]
    for mixture, none in ((LINE, 2), (five, 3)):
        network = pipelines.exact_network(mixture, euler.alphas_cumprod)
        guided = pipelines.guided_network(network, 1, 5.0, none=none)
        goal = pipelines.drive(multistep, guided, z, 200)
        first, second = ({n: (pipelines.drive(kind, guided, z, n) - goal).abs()[:, 0] for n in (10, 20, 40)}
                         for kind in (euler, multistep))  # fmt: skip
        assert second[10].mean() > first[10].mean() and second[40].mean() < 0.6 * first[40].mean()
        assert all(first[n].sort().values[-20:].sum() > 0.5 * first[n].sum() for n in (20, 40))
        assert first[40].mean() > 2 * first[40].median()
        heun = pipelines.drive(HeunDiscreteScheduler(**TABLE, beta_schedule="linear"), guided, z, 20)
        assert ((heun - goal).abs().mean() < second[40].mean()) == (mixture is LINE)
        if mixture is five:  # where doubling is far from halving the mean of first order
            assert second[20].mean() < first[20].mean() > 0.8 * first[10].mean()


def test_fixed_small_is_ddim_with_eta_one():
    small, exact = DDPMScheduler(clip_sample=False, variance_type="fixed_small", **TABLE), None
    exact = pipelines.exact_network(OTHER, small.alphas_cumprod)
    z = torch.randn(200, 1, generator=torch.Generator().manual_seed(4)).double()
    a = pipelines.drive(small, exact, z, 20, generator=torch.Generator().manual_seed(5))
    b = pipelines.drive(ddim(), exact, z, 20, generator=torch.Generator().manual_seed(5), eta=1.0)
    assert (a - b).abs().max() < 1e-3


def test_in_the_plane_300_trailing_steps_are_almost_twice_as_far_off_as_50_leading_ones():
    mixture, z = plane.four_blobs(), torch.randn(60, 2, generator=torch.Generator().manual_seed(6)).double()
    scheduler, other = ddim(), ddim(**TRAILING)
    clock = from_betas(scheduler.betas.double())
    perfect = flow_end(mixture, z, clock.alpha(1.0), clock.sigma(1.0))
    network = pipelines.exact_network(mixture, scheduler.alphas_cumprod)
    near, far = (float((pipelines.drive(kind, network, z, n) - perfect).norm(dim=1).mean())
                 for kind, n in ((scheduler, 50), (other, 300)))  # fmt: skip
    assert 1.4 < far / near < 2.2


def test_at_200_steps_the_noisy_ones_are_within_the_scatter_of_the_data_and_at_20_noise_costs():
    count, table = 1000, ddim().alphas_cumprod
    want = pipelines.quantile(LINE, (torch.arange(count, dtype=F64) + 0.5) / count)

    def far(x):
        return float((x.sort(0).values - want).abs().mean())

    lucky = sorted(far(LINE.sample(count, torch.Generator().manual_seed(100 + k))[0]) for k in range(40))
    network, z = pipelines.exact_network(LINE, table), torch.randn(count, 1, generator=torch.Generator().manual_seed(9))
    runs = {(eta, n): far(pipelines.drive(ddim(), network, z.double(), n, eta=eta,
                                          generator=torch.Generator().manual_seed(10)))
            for eta in (0.0, 1.0) for n in (20, 200)}  # fmt: skip
    assert lucky[0] > 0.01 and max(runs[0.0, 200], runs[1.0, 200]) < lucky[-1]
    assert runs[1.0, 20] > runs[0.0, 20] + 0.03
