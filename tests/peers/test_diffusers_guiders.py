"""Side by side with diffusers' guiders, which combine two answers of a network: on noise, clean guesses, velocities.

A guider gets what its network predicts, whatever that is; our rules say what they work on. Where theirs differs from
the paper, a test shows how: the formulation in which the projection starts from the unconditional guess, the largest
value that makes dynamic thresholding a clipping, the first step of CFG-Zero*. AutoGuidance makes its weaker model by
dropping layers, where the paper trains a smaller one for less long.
"""

import math
import warnings

import pytest
import torch

from difflesson import kernels, practice
from difflesson.denoiser import Pair, Prediction
from difflesson.guidance import classifier_free, mix
from difflesson.samplers import sample, time_grid
from difflesson.schedule import cosine, vp_linear
from tests.oracles.mixtures import random_mixture

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its dependencies
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra: peers)")
    guiders = pytest.importorskip("diffusers.guiders", reason="this diffusers has no guiders")
    from diffusers import DDPMScheduler
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
    from diffusers.guiders.guider_utils import rescale_noise_cfg
    from diffusers.hooks import LayerSkipConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

F64, T = torch.float64, torch.tensor(0.4, dtype=torch.float64)
MIXTURE = random_mixture(6, [0, 1, 1])
GAMMAS = [0.0, 0.5, 1.5, 4.0, 9.0]
every_schedule = pytest.mark.parametrize("schedule", [vp_linear(), cosine()], ids=["linear", "cosine"])
every_gamma = pytest.mark.parametrize("gamma", GAMMAS)


def asked(schedule, x=None):
    """A pair, points, and its two answers to them."""
    pair = MIXTURE.pair(schedule, 1)
    x = 2 * torch.randn(7, 6, generator=torch.Generator().manual_seed(3), dtype=F64) if x is None else x
    return pair, x, *pair(x, T)


def velocity(prediction: Prediction, schedule) -> torch.Tensor:
    return schedule.alpha(T) * prediction.eps - schedule.sigma(T) * prediction.x0


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).abs() / (1 + b.abs())).max())


@pytest.mark.equation("eq-rescaled-guidance")
@every_gamma
@every_schedule
@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaled_is_their_rescale_noise_cfg_of_what_the_network_predicts(schedule, gamma, phi):
    pair, x, cond, uncond = asked(schedule)
    said = {"eps": lambda p: p.eps, "x0": lambda p: p.x0, "v": lambda p: velocity(p, schedule)}
    for of, half in said.items():
        plain = half(uncond) + gamma * (half(cond) - half(uncond))
        theirs = rescale_noise_cfg(plain, half(cond), guidance_rescale=phi)
        ours = half(mix(pair, practice.rescaled(gamma, phi, schedule, of))(x, T))
        assert worst(ours, theirs) < 1e-12


@pytest.mark.equation("eq-cfg", "eq-rescaled-guidance")
@every_gamma
@every_schedule
def test_classifier_free_is_their_guider_and_with_guidance_rescale_it_is_rescaled(schedule, gamma):
    """In the formulation that is not "original"; the original one counts the scale from the conditional guess."""
    pair, x, cond, uncond = asked(schedule)
    for phi, ours in (
        (0.0, classifier_free(pair, gamma)), (0.6, mix(pair, practice.rescaled(gamma, 0.6, schedule))),
    ):  # fmt: skip
        theirs = [
            guiders.ClassifierFreeGuidance(scale, guidance_rescale=phi, use_original_formulation=original)
            for scale, original in ((gamma, False), (gamma - 1, True))
        ]
        assert all(worst(ours(x, T).eps, guider.forward(cond.eps, uncond.eps).pred) < 1e-12 for guider in theirs)


@pytest.mark.equation("eq-projected-guidance")
@every_gamma
@every_schedule
@pytest.mark.parametrize(("eta", "reach"), [(0.0, math.inf), (0.0, 0.7), (0.4, 1.5), (1.0, 0.3)])
def test_projected_is_their_normalized_guidance_in_the_original_formulation(schedule, gamma, eta, reach):
    """Their scale is gamma - 1 there, their threshold 0 is no reach; in float64 both."""
    pair, x, cond, uncond = asked(schedule)
    threshold = 0.0 if reach == math.inf else reach
    theirs = normalized_guidance(cond.x0, uncond.x0, gamma - 1, None, eta, threshold, use_original_formulation=True)
    ours = mix(pair, practice.projected(gamma, schedule, eta=eta, reach=reach))(x, T)
    assert worst(ours.x0, theirs) < 1e-12


@pytest.mark.equation("eq-projected-guidance")
@every_schedule
@pytest.mark.parametrize("momentum", [-0.5, 0.3])
def test_a_run_with_momentum_is_theirs(schedule, momentum):
    """Their buffer sees the guesses of each step where our run stands; paper, theirs and ours: first sum, then cut."""
    pair, x, _, _ = asked(schedule)
    times, buffer = time_grid(8, end=0.02), MomentumBuffer(momentum)
    rule = practice.projected(4.0, schedule, eta=0.2, reach=1.2, momentum=momentum)
    states = list(sample(kernels.ddim(mix(pair, rule), schedule), x, times))
    for here, there, t, s in zip(states[:-1], states[1:], times[:-1], times[1:], strict=True):
        cond, uncond = pair(here, t)
        x0 = normalized_guidance(cond.x0, uncond.x0, 3.0, buffer, 0.2, 1.2, use_original_formulation=True)
        step = Prediction.from_x0(here, x0, schedule.alpha(t), schedule.sigma(t))
        assert worst(there, schedule.alpha(s) * step.x0 + schedule.sigma(s) * step.eps) < 1e-11


@pytest.mark.equation("eq-projected-guidance")
@every_schedule
def test_in_their_default_formulation_gamma_one_is_not_the_conditional_guess(schedule):
    """With eta = 0 it is the unconditional guess and what lies across: what lies along is lost at every scale.

    Theirs starts from the unconditional guess and adds gamma times what is left of d; the paper and ours start from the
    conditional one and add gamma - 1 times that. The two differ by what was taken from d, at every gamma alike.
    """
    pair, x, cond, uncond = asked(schedule)
    d = cond.x0 - uncond.x0
    along = (d * cond.x0).sum(1, keepdim=True) / cond.x0.square().sum(1, keepdim=True) * cond.x0
    at_one = normalized_guidance(cond.x0, uncond.x0, 1.0, eta=0.0)
    assert worst(at_one, cond.x0 - along) < 1e-12 and float((at_one - cond.x0).abs().max()) > 0.3
    for gamma in GAMMAS:
        theirs = normalized_guidance(cond.x0, uncond.x0, gamma, eta=0.0)
        ours = mix(pair, practice.projected(gamma, schedule))(x, T).x0
        assert worst(theirs, ours - along) < 1e-12


@every_schedule
def test_their_guider_jumps_beside_gamma_one(schedule):
    """At exactly 1 it does not combine at all and answers the conditional guess; a millionth above, it combines."""
    _, _, cond, uncond = asked(schedule)

    def answer(gamma, **options):
        guider = guiders.AdaptiveProjectedGuidance(gamma, eta=0.0, **options)
        return guider.forward(cond.x0, uncond.x0).pred

    assert worst(answer(1.0), cond.x0) == 0
    assert float((answer(1.000001) - cond.x0).abs().max()) > 0.3
    assert worst(answer(1e-6, use_original_formulation=True), cond.x0) < 1e-5


@pytest.mark.equation("eq-projected-guidance")
@every_schedule
def test_at_its_own_defaults_their_guider_is_plain_guidance_for_as_long_as_no_push_is_longer_than_15(schedule):
    """eta is 1 and the momentum off; the paper takes 0 and a negative one. A push beyond 15 is cut."""
    pair, x, cond, uncond = asked(schedule)
    assert float((cond.x0 - uncond.x0).norm(dim=1).max()) < 15
    theirs = guiders.AdaptiveProjectedGuidance(7.5).forward(cond.x0, uncond.x0).pred
    assert worst(theirs, classifier_free(pair, 7.5)(x, T).x0) < 1e-12
    far = 100 * cond.x0, 100 * uncond.x0
    cut = guiders.AdaptiveProjectedGuidance(7.5).forward(*far).pred - far[1]
    assert float(cut.norm(dim=1).max()) <= 7.5 * 15 * (1 + 1e-12)
    as_the_page_says = guiders.AdaptiveProjectedGuidance(6.5, eta=0.0, use_original_formulation=True)
    ours = mix(pair, practice.projected(7.5, schedule, eta=0.0, reach=15.0))(x, T).x0
    assert worst(as_the_page_says.forward(cond.x0, uncond.x0).pred, ours) < 1e-12


@pytest.mark.equation("eq-zero-star")
@every_gamma
@every_schedule
def test_zero_star_is_their_guider_after_its_first_steps(schedule, gamma):
    """They find s in single precision, and have 1e-8 beside the square; hence the tolerance."""
    pair, x, cond, uncond = asked(schedule)
    ours = velocity(mix(pair, practice.zero_star(gamma, schedule))(x, T), schedule)
    for scale, original in ((gamma, False), (gamma - 1, True)):
        guider = guiders.ClassifierFreeZeroStarGuidance(scale, use_original_formulation=original)
        guider.set_state(step=5, num_inference_steps=20, timestep=None)
        theirs = guider.forward(velocity(cond, schedule), velocity(uncond, schedule)).pred
        assert worst(ours, theirs) < 1e-6


@pytest.mark.equation("eq-zero-star")
@every_schedule
def test_in_their_first_step_the_velocity_is_zero_by_default_which_is_ours_above_a_time(schedule):
    """They count steps, `zero_init_steps`, one by default; ours is a time, off by default."""
    pair, x, cond, uncond = asked(schedule)
    guider = guiders.ClassifierFreeZeroStarGuidance(3.0)
    guider.set_state(step=0, num_inference_steps=20, timestep=None)
    theirs = guider.forward(velocity(cond, schedule), velocity(uncond, schedule)).pred
    ours = mix(pair, practice.zero_star(3.0, schedule, until=0.3))(x, T)
    assert float(theirs.abs().max()) == 0 and worst(velocity(ours, schedule), theirs) < 1e-15
    at_one = guiders.ClassifierFreeZeroStarGuidance(1.0)
    at_one.set_state(step=0, num_inference_steps=20, timestep=None)
    assert float(at_one.forward(velocity(cond, schedule), velocity(uncond, schedule)).pred.abs().max()) == 0


def clean(schedule) -> tuple:
    """A guided denoiser whose clean guesses leave the range, its points, and the guesses."""
    pair, x, _, _ = asked(schedule)
    guided = classifier_free(pair, 3.0)
    return guided, x, guided(x, T).x0


@pytest.mark.equation("eq-dynamic-threshold")
@every_schedule
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995])
def test_thresholded_is_their_threshold_sample_if_its_largest_value_is_raised(schedule, quantile):
    guided, x, x0 = clean(schedule)
    scheduler = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=1e9)
    theirs = scheduler._threshold_sample(x0[:, None])[:, 0]  # with a channel
    assert worst(practice.thresholded(guided, schedule, quantile)(x, T).x0, theirs) < 1e-12
    assert float((theirs - x0.clamp(-1, 1)).abs().max()) > 0.1


@every_schedule
def test_at_their_defaults_dynamic_thresholding_is_clipping(schedule):
    """`sample_max_value` is 1, so that s lies between 1 and 1: nothing of the quantile is left."""
    guided, x, x0 = clean(schedule)
    theirs = DDPMScheduler(thresholding=True)._threshold_sample(x0[:, None])[:, 0]
    assert torch.equal(theirs, x0.clamp(-1, 1))
    assert float((practice.thresholded(guided, schedule)(x, T).x0 - theirs).abs().max()) > 0.1


@pytest.mark.equation("eq-cfg")
@every_gamma
@every_schedule
def test_their_autoguidance_is_plain_guidance_of_another_pair(schedule, gamma):
    """Its weaker answer is the network's own with layers dropped; how the two combine is the same."""
    _, x, good, _ = asked(schedule)
    weak = random_mixture(6, [0, 0, 1]).denoiser(schedule, 1)
    pair = Pair(MIXTURE.denoiser(schedule, 1), weak)
    guider = guiders.AutoGuidance(gamma, auto_guidance_config=LayerSkipConfig([0], fqn="blocks", dropout=0.1))
    theirs = guider.forward(good.eps, weak(x, T).eps).pred
    assert worst(classifier_free(pair, gamma)(x, T).eps, theirs) < 1e-12
