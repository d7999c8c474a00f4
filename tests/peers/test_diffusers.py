"""Side by side with diffusers' schedulers: the same betas, ideal denoiser, start and noise.

Timestep k of a scheduler is time (k + 1) / 1000 here. diffusers keeps its tables in float32, in which the
first `1 - alphabar` has three digits left; to compare formulas and not roundings, the tables are replaced by
the same numbers in float64. The last test leaves them alone.
"""

import warnings

import pytest
import torch

from difflesson import kernels
from difflesson.mixture import GaussianMixture
from difflesson.schedule import from_betas

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its dependencies
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra: peers)")
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, when diffusers calls numpy

STEPS = 1000
BETAS = torch.linspace(1e-4, 0.02, STEPS)  # float32, as diffusers rounds them
SCHEDULE = from_betas(BETAS.double())
MIXTURE = GaussianMixture(
    torch.tensor([0.2, 0.5, 0.3]).double(),
    torch.tensor([[-1.5, 0.5], [1.0, 1.25], [0.25, -1.0]]).double(),
    torch.tensor([[[0.25, 0.125], [0.125, 0.5]], [[0.5, -0.25], [-0.25, 0.25]],
                  [[0.125, 0.0], [0.0, 0.5]]]).double(),
)
DENOISER = MIXTURE.denoiser(SCHEDULE)
OUTPUTS = ["epsilon", "sample", "v_prediction"]


def peer(kind, steps, double=True, **options):
    """A scheduler with our betas, ready for `steps` steps."""
    if kind is not DPMSolverMultistepScheduler:
        options["clip_sample"] = False
    scheduler = kind(num_train_timesteps=STEPS, trained_betas=BETAS.tolist(), **options)
    if double:
        scheduler.alphas_cumprod = torch.cumprod(1 - BETAS.double(), 0)
    if double and kind is DDIMScheduler and not options.get("set_alpha_to_one", True):
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    if double and kind is DPMSolverMultistepScheduler:
        alphabar = scheduler.alphas_cumprod[scheduler.timesteps]
        last = float(scheduler.alphas_cumprod[0]) if options.get("final_sigmas_type") == "sigma_min" else 1.0
        scheduler.sigmas = (1 / torch.cat([alphabar, torch.full((1,), last, dtype=torch.float64)]) - 1).sqrt()
    return scheduler


def network(x, k, output):
    """What a perfect network of this prediction type answers."""
    t = (int(k) + 1) / STEPS
    x0, eps = DENOISER(x, t)
    v = SCHEDULE.alpha(t) * eps - SCHEDULE.sigma(t) * x0
    return {"epsilon": eps, "sample": x0, "v_prediction": v}[output]


def compare(scheduler, kernel, end=0.0, noise_at_the_end=True, batch=8, **arguments):
    """Largest difference after one step from the same point, and along the two runs, each on its own way."""
    ends = [(int(k) + 1) / STEPS for k in scheduler.timesteps] + [end]
    one, run = (kernel.start() if hasattr(kernel, "start") else kernel for _ in range(2))
    theirs = ours = torch.randn(batch, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    worst_step = worst_run = 0.0

    def take(kernel, x, t, s, seed):
        step = kernel(x, t, s)
        quiet = s == end and not noise_at_the_end
        return step.mean if quiet else step.sample(torch.Generator().manual_seed(seed))

    for i, k in enumerate(scheduler.timesteps):
        if "generator" in arguments:
            arguments["generator"] = torch.Generator().manual_seed(i)
        output = network(theirs, k, scheduler.config.prediction_type)
        single = take(one, theirs, *ends[i : i + 2], i)
        ours = take(run, ours, *ends[i : i + 2], i)
        theirs = scheduler.step(output, k, theirs, **arguments).prev_sample
        assert theirs.dtype == torch.float64
        worst_step = max(worst_step, float((single - theirs).abs().max()))
        worst_run = max(worst_run, float((ours - theirs).abs().max()))
    return worst_step, worst_run


@pytest.mark.equation("eq-ddpm")
@pytest.mark.equation("eq-posterior-variance")
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(("steps", "output"), [(1000, "epsilon"), *((50, output) for output in OUTPUTS)])
def test_ddpm_takes_the_steps_of_diffusers(variance, steps, output):
    """In its last step diffusers adds no noise, as Ho et al. do; `ddpm` keeps the large variance there."""
    scheduler = peer(DDPMScheduler, steps, variance_type=f"fixed_{variance}", prediction_type=output)
    kernel = kernels.ddpm(DENOISER, SCHEDULE, variance)
    errors = compare(scheduler, kernel, noise_at_the_end=False, generator=None)
    assert max(errors) < 1e-10


@pytest.mark.equation("eq-ddim")
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("steps", "output", "spacing"),
    [(1000, "epsilon", "leading"), (50, "epsilon", "leading"), (50, "sample", "leading"),
     (50, "v_prediction", "leading"), (50, "epsilon", "trailing")],
)
def test_ddim_takes_the_steps_of_diffusers(eta, steps, output, spacing):
    """Not "linspace": there diffusers' DDIM steps to k - 20, which is not its next timestep."""
    scheduler = peer(DDIMScheduler, steps, prediction_type=output, timestep_spacing=spacing)
    errors = compare(scheduler, kernels.ddim(DENOISER, SCHEDULE, eta), eta=eta, generator=None)
    assert max(errors) < 1e-10


@pytest.mark.equation("eq-ddim")
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_that_ends_at_the_first_table_entry_is_diffusers_without_set_alpha_to_one(eta):
    """Stable Diffusion's setting: timesteps 981, ..., 21, 1 and the last step to alphabar of timestep 0."""
    scheduler = peer(DDIMScheduler, 50, set_alpha_to_one=False, steps_offset=1)
    errors = compare(scheduler, kernels.ddim(DENOISER, SCHEDULE, eta), end=1 / STEPS, eta=eta, generator=None)
    assert max(errors) < 1e-10


@pytest.mark.equation("eq-dpmpp-2m")
@pytest.mark.parametrize(
    ("steps", "output", "spacing", "last"),
    [
        (10, "epsilon", "trailing", "zero"),
        (20, "sample", "trailing", "zero"),
        (20, "epsilon", "linspace", "zero"),
        (50, "v_prediction", "leading", "zero"),
        (20, "epsilon", "trailing", "sigma_min"),
    ],
)
def test_dpmpp_2m_takes_the_steps_of_diffusers_multistep_solver(steps, output, spacing, last):
    """Of order 2, "dpmsolver++", "midpoint"; a last step to no noise is of first order in both.

    diffusers rounds x to float32 in every step, hence the tolerances: 1e-6 a step, 5e-6 a run.
    """
    scheduler = peer(DPMSolverMultistepScheduler, steps, prediction_type=output, timestep_spacing=spacing,
                     final_sigmas_type=last)
    kernel = kernels.dpmpp_2m(DENOISER, SCHEDULE)
    one_step, run = compare(scheduler, kernel, end=1 / STEPS if last == "sigma_min" else 0.0)
    assert one_step < 1e-6
    assert run < 5e-6


@pytest.mark.parametrize(
    ("kind", "kernel", "options"),
    [
        (DDPMScheduler, kernels.ddpm(DENOISER, SCHEDULE), {"generator": None}),
        (DDIMScheduler, kernels.ddim(DENOISER, SCHEDULE), {"eta": 0.0}),
        (DPMSolverMultistepScheduler, kernels.dpmpp_2m(DENOISER, SCHEDULE), {}),
    ],
)
def test_diffusers_own_float32_tables_cost_it_no_more_than_rounding(kind, kernel, options):
    assert max(compare(peer(kind, 50, double=False), kernel, **options)) < 5e-5
