"""Every conversion of the convention card against its two-line formula, and back again."""

import math
from itertools import product

import pytest
import torch

from difflesson import conventions
from difflesson.conventions import (
    GUIDANCE,
    NOISE,
    OUTPUTS,
    between,
    convert,
    guidance_scale,
    noise_level,
    rescale,
)
from difflesson.kernels import posterior_variance
from difflesson.schedule import cosine, from_betas, vp_linear

PAIRS = {"difflesson", "su"}
LEVELS = torch.linspace(-8, 8, 33, dtype=torch.float64)  # log SNR: alphabar from 3e-4 to 1 - 3e-4


def max_relative_error(got, want):
    """Largest deviation relative to the entry it deviates from, for a tensor or a pair of them."""
    if isinstance(want, tuple):
        return max(max_relative_error(g, w) for g, w in zip(got, want, strict=True))
    return ((got - want).abs() / want.abs().clamp(min=1e-300)).max().item()


def two_of(table):
    return list(product(table, repeat=2))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# How strong is my guidance. Each formula is written as its library or paper has it: (u, c, scale) -> guided.

FORMULAS = {
    "gamma": lambda u, c, scale: u + scale * (c - u),
    "ho-salimans": lambda u, c, scale: (1 + scale) * c - scale * u,
    "imagen": lambda u, c, scale: scale * c + (1 - scale) * u,
    "glide": lambda u, c, scale: u + scale * (c - u),
    "stable-diffusion": lambda u, c, scale: u + scale * (c - u),
    "diffusers": lambda u, c, scale: u + scale * (c - u) if scale > 1 else c,
    "diffusers-guider": lambda u, c, scale: u + scale * (c - u),
    "diffusers-original": lambda u, c, scale: c + scale * (c - u),
    "dit": lambda u, c, scale: u + scale * (c - u),
    "k-diffusion": lambda u, c, scale: u + (c - u) * scale,
    "edm2": lambda u, c, scale: u.lerp(c, scale),
    "z-image": lambda u, c, scale: c + scale * (c - u),
    "smalldiffusion": lambda u, c, scale: c + scale * (c - u),
    "flow-matching": lambda u, c, scale: (1.0 + scale) * c - scale * u,
    # condition_score: eps - sqrt(1 - alphabar) scale grad log p(y | x), where eps is the steered network's
    # and, for the Bayes posterior, -sqrt(1 - alphabar) grad log p(y | x) = c - u (tested further down).
    "guided-diffusion-conditional": lambda u, c, scale: c + scale * (c - u),
    "guided-diffusion-unconditional": lambda u, c, scale: u + scale * (c - u),
}


@pytest.mark.equation("eq-cfg-weight")
@pytest.mark.parametrize("name,gamma", [
    (name, gamma) for name in GUIDANCE for gamma in (-2.0, 0.0, 1.0, 1.5, 7.5)
    if gamma - GUIDANCE[name][0] >= conventions.LOWEST.get(name, -math.inf)])
def test_each_library_formula_at_its_own_scale_is_our_formula_at_gamma(name, gamma):
    uncond, cond = normal(3, 5), normal(3, 5, seed=1)
    guided = FORMULAS[name](uncond, cond, guidance_scale(gamma, "gamma", name))
    assert (guided - (uncond + gamma * (cond - uncond))).abs().max() < 1e-13


@pytest.mark.equation("eq-cfg-weight")
@pytest.mark.parametrize("source,target", two_of(GUIDANCE))
def test_guidance_scale_there_and_back_is_the_same(source, target):
    scale = 7.3
    assert abs(guidance_scale(guidance_scale(scale, source, target), target, source) - scale) < 1e-12 * scale


@pytest.mark.equation("eq-cfg-weight")
def test_taking_w_for_gamma_is_off_by_exactly_one_difference():
    uncond, cond, w = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 2.0]), 2.0  # integers: exact
    right = uncond + guidance_scale(w, "ho-salimans") * (cond - uncond)
    mistaken = uncond + w * (cond - uncond)
    assert torch.equal(right - mistaken, cond - uncond)


@pytest.mark.equation("eq-cfg-weight")
def test_classifier_scale_counts_from_what_the_network_already_does():
    """Two Gaussian classes, everything exact: u, c and the classifier's gradient come from closed forms."""
    alpha, sigma, means, x = 0.6, 0.8, torch.tensor([-1.5, 2.0]).double(), normal(7).requires_grad_()
    log_joint = -((x[:, None] - alpha * means) ** 2) / 2  # N(alpha m, 1), as the class variance is 1
    log_posterior = log_joint.log_softmax(1)[:, 1]
    (gradient,) = torch.autograd.grad(log_posterior.sum(), x, retain_graph=True)
    (score,) = torch.autograd.grad(log_joint.logsumexp(1).sum(), x)
    x = x.detach()
    uncond, cond = -sigma * score, sigma * (x - alpha * means[1])
    for scale in (0.0, 1.0, 2.5):
        for name, steered in (("conditional", cond), ("unconditional", uncond)):
            gamma = guidance_scale(scale, f"guided-diffusion-{name}")
            guided = steered - sigma * scale * gradient  # condition_score of guided-diffusion
            assert (guided - (uncond + gamma * (cond - uncond))).abs().max() < 1e-13


@pytest.mark.equation("eq-cfg-weight")
@pytest.mark.parametrize("output", OUTPUTS)
def test_gamma_is_the_same_whatever_the_network_outputs(output):
    alpha, sigma, gamma = 0.8, 0.6, 3.0
    x, uncond, cond = normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2)
    theirs = [convert(eps, "eps", output, x, alpha, sigma) for eps in (uncond, cond)]
    guided = convert(theirs[0] + gamma * (theirs[1] - theirs[0]), output, "eps", x, alpha, sigma)
    assert (guided - (uncond + gamma * (cond - uncond))).abs().max() < 1e-12


def test_guidance_scale_takes_a_schedule_of_scales():
    assert torch.equal(guidance_scale(torch.tensor([0.0, 1.0]), "ho-salimans"), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("name", conventions.NO_SINGLE_GAMMA)
def test_ambiguous_scales_are_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=f"source = '{name}'|source = 'cfg") as error:
        guidance_scale(2.0, name)
    assert conventions.NO_SINGLE_GAMMA[name][0] in str(error.value)
    assert "ho-salimans" in str(error.value)


def test_diffusers_pipelines_cannot_be_asked_for_less_than_conditional():
    assert guidance_scale(1.0, "gamma", "diffusers") == 1.0
    for value, source, target in ((0.0, "diffusers", "gamma"), (-1.0, "ho-salimans", "diffusers")):
        with pytest.raises(ValueError, match="no guidance below 1"):
            guidance_scale(value, source, target)


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor([1.0, -math.inf])])
def test_guidance_scale_must_be_finite(value):
    with pytest.raises(ValueError, match="value must be finite"):
        guidance_scale(value, "imagen")


# How noisy is my image.


def pair_at(log_snr):
    return noise_level(log_snr, "log-snr")


# Their numbers, each from log SNR by a formula of its own rather than from alpha and sigma.
INDEPENDENT = {
    "ho": torch.sigmoid,
    "ho-variance": lambda log_snr: torch.sigmoid(-log_snr),
    "song": lambda log_snr: torch.nn.functional.softplus(-log_snr),
    "log-snr": lambda log_snr: log_snr,
    "vdm": lambda log_snr: -log_snr,
    "dpm-solver": lambda log_snr: log_snr / 2,
    "edm": lambda log_snr: torch.exp(-log_snr / 2),
    "flow": lambda log_snr: torch.sigmoid(-log_snr / 2),
    "flow-reversed": lambda log_snr: torch.sigmoid(log_snr / 2),
}


@pytest.mark.equation("eq-noise-level")
@pytest.mark.parametrize("name", sorted(set(NOISE) - PAIRS))
def test_noise_level_is_the_known_function_of_log_snr(name):
    want = INDEPENDENT[name](LEVELS)
    assert (noise_level(LEVELS, "log-snr", name) - want).abs().max() < 1e-12 * want.abs().max()


@pytest.mark.equation("eq-noise-level")
@pytest.mark.parametrize("source,target", two_of(NOISE))
def test_noise_level_there_and_back_is_the_same(source, target):
    pair = pair_at(LEVELS)
    start = noise_level(pair, "difflesson", source)
    back = noise_level(noise_level(start, source, target), target, source)
    if source in ("log-snr", "vdm", "dpm-solver"):  # these cross zero: compare with their range instead
        assert (back - start).abs().max() < 1e-12 * start.abs().max()
    else:
        assert max_relative_error(back, start) < 2e-12
    assert max_relative_error(noise_level(start, source), pair) < 1e-12


@pytest.mark.equation("eq-noise-level")
@pytest.mark.parametrize("name", ["log-snr", "vdm", "dpm-solver", "edm", "flow", "song", "ho-variance"])
def test_tiny_noise_survives_where_the_card_says_so(name):
    sigma = torch.tensor([1e-12, 1e-8, 1e-4], dtype=torch.float64)
    pair = ((1 - sigma**2).sqrt(), sigma)
    assert max_relative_error(noise_level(noise_level(pair, "difflesson", name), name), pair) < 1e-12


def test_alphabar_in_float32_loses_small_noise():
    alphabar = noise_level(torch.tensor(1e-4), "edm", "ho")
    assert alphabar.dtype == torch.float32
    assert noise_level(alphabar, "ho", "edm") == 0


@pytest.mark.equation("eq-noise-level")
def test_the_two_ends_are_levels_too():
    for name, clean, noise in (("ho", 1, 0), ("ho-variance", 0, 1), ("flow", 0, 1), ("flow-reversed", 1, 0)):
        assert noise_level((1.0, 0.0), "difflesson", name) == clean
        assert noise_level((0.0, 1.0), "difflesson", name) == noise
        assert noise_level(float(clean), name) == (1, 0)
        assert noise_level(float(noise), name) == (0, 1)
    assert noise_level((1.0, 0.0), "difflesson", "edm") == 0
    assert noise_level((1.0, 0.0), "difflesson", "song") == 0


@pytest.mark.equation("eq-noise-level")
@pytest.mark.parametrize("log_snr", [-3.0, 0.0, 4.0])
def test_rescaled_images_are_what_each_convention_would_have_made(log_snr):
    x0, eps, level = normal(4, 2, 3), normal(4, 2, 3, seed=1), torch.full((4,), log_snr, dtype=torch.float64)
    alpha, sigma = (v[0] for v in pair_at(level))
    x = alpha * x0 + sigma * eps
    sigma_edm, t = noise_level(level, "log-snr", "edm"), noise_level(level, "log-snr", "flow")
    edm = x0 + sigma_edm[:, None, None] * eps
    flow = (1 - t)[:, None, None] * x0 + t[:, None, None] * eps
    assert (rescale(x, level, "log-snr", "edm") - edm).abs().max() < 1e-12 * edm.abs().max()
    assert (rescale(x, level, "log-snr", "flow") - flow).abs().max() < 1e-12
    assert (rescale(edm, sigma_edm, "edm", "flow") - flow).abs().max() < 1e-12
    assert (rescale(flow, t, "flow", "difflesson") - x).abs().max() < 1e-12
    reversed_t = noise_level(t, "flow", "flow-reversed")
    assert (reversed_t - (1 - t)).abs().max() < 1e-15
    assert (rescale(flow, reversed_t, "flow-reversed", "ho") - x).abs().max() < 1e-12


@pytest.mark.parametrize("source,target", two_of(NOISE))
def test_rescale_there_and_back_is_the_same(source, target):
    x = normal(3, 4)
    start, end = (noise_level((0.28, 0.96), "difflesson", name) for name in (source, target))
    assert (rescale(rescale(x, start, source, target), end, target, source) - x).abs().max() < 1e-12


# One step.


@pytest.mark.equation("eq-one-step")
def test_steps_of_a_ddpm_table_give_its_betas_back():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphabar = torch.cumprod(1 - betas, 0)
    levels = torch.cat([torch.ones(1, dtype=torch.float64), alphabar])  # t = 0 is clean
    alpha, sigma = noise_level(levels, "ho")
    step = between(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    assert (noise_level(step, "su", "ho-variance") - betas).abs().max() < 1e-12  # Ho's beta_t
    assert (noise_level(step, "su", "ho") - (1 - betas)).abs().max() < 1e-12  # Ho's alpha_t
    assert (step[0] ** 2 + step[1] ** 2 - 1).abs().max() < 1e-12  # Su's alpha_t^2 + beta_t^2
    assert (noise_level(step, "su", "song") + torch.log1p(-betas)).abs().max() < 1e-12
    assert (step[0].cumprod(0) - alpha[1:]).abs().max() < 1e-12


@pytest.mark.equation("eq-one-step")
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_reverse_std_is_ddims_and_at_one_the_posteriors(eta):
    """DDIM eq. 16 in alphabars; the posterior by Bayes' rule on precisions, which knows neither."""
    alphabar_s, alphabar_t = torch.tensor([[0.99, 0.7, 0.2], [0.98, 0.3, 0.001]], dtype=torch.float64)
    s, t = noise_level(alphabar_s, "ho"), noise_level(alphabar_t, "ho")
    std = conventions.reverse_std(*s, *t, eta=eta)
    ddim = eta * ((1 - alphabar_s) / (1 - alphabar_t)).sqrt() * (1 - alphabar_t / alphabar_s).sqrt()
    assert (std - ddim).abs().max() < 1e-12
    ratio = alphabar_t / alphabar_s
    posterior = 1 / (1 / (1 - alphabar_s) + ratio / (1 - ratio))
    assert (std - eta * posterior.sqrt()).abs().max() < 1e-12
    assert (std <= between(*s, *t)[1]).all()  # the larger choice is larger
    assert eta == 0 or (std - eta * t[1]).abs().min() > 1e-3  # and the level's sigma is something else


@pytest.mark.equation("eq-one-step")
@pytest.mark.parametrize("schedule", [cosine(), vp_linear(), from_betas(torch.linspace(1e-4, 0.2, 40))],
                         ids=lambda schedule: type(schedule).__name__)
def test_one_step_by_the_card_is_one_step_of_a_schedule(schedule):
    """Two computations of one thing: here from alpha and sigma, there from the integral of the noise rate."""
    times = torch.linspace(0.02, 1, 50, dtype=torch.float64)
    s, t = times[:-1], times[1:]
    level_s, level_t = ((schedule.alpha(u), schedule.sigma(u)) for u in (s, t))
    assert max_relative_error(between(*level_s, *level_t), schedule.transition(t, s)) < 1e-9
    variance = torch.stack([posterior_variance(schedule, b, a) for a, b in zip(s, t, strict=True)])
    assert max_relative_error(conventions.reverse_std(*level_s, *level_t) ** 2, variance) < 1e-9


@pytest.mark.equation("eq-one-step")
def test_songs_sde_moves_the_level_as_the_schedule_does():
    """Mean and variance of dx = f x dt + g dW obey alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64, requires_grad=True)
    alpha, sigma = noise_level(0.1 * t + 9.95 * t**2, "song")  # the integral of beta = 0.1 + 19.9 t
    (alpha_rate,) = torch.autograd.grad(alpha.sum(), t, retain_graph=True)
    (variance_rate,) = torch.autograd.grad((sigma**2).sum(), t)
    f, g = conventions.vp_sde((0.1 + 19.9 * t).detach())
    assert (alpha_rate - f * alpha).abs().max() < 1e-12
    assert (variance_rate - 2 * f * sigma**2 - g**2).abs().max() < 1e-12


# What does my network output.


@pytest.mark.equation("eq-parameterisations")
@pytest.mark.parametrize("source,target", two_of(OUTPUTS))
def test_every_pair_of_outputs_agrees_with_the_known_x0_and_eps(source, target):
    alpha, sigma = pair_at(torch.tensor([-8.0, -1.0, 0.0, 2.0, 8.0], dtype=torch.float64))
    x0, eps = normal(5, 2, 3), normal(5, 2, 3, seed=1)
    a, s = alpha[:, None, None], sigma[:, None, None]
    x = a * x0 + s * eps
    known = {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": -(x - a * x0) / s**2,
             "flow": eps - x0, "flow-reversed": x0 - eps}
    got = convert(known[source], source, target, x, alpha, sigma)
    assert (got - known[target]).abs().max() < 1e-12 * known[target].abs().max()
    back = convert(got, target, source, x, alpha, sigma)
    assert (back - known[source]).abs().max() < 1e-12 * known[source].abs().max()


@pytest.mark.equation("eq-parameterisations")
def test_score_is_the_gradient_of_the_log_density():
    alpha, sigma, x0 = 0.6, torch.tensor(0.8, dtype=torch.float64), normal(4, 3)
    x = normal(4, 3, seed=1).requires_grad_()
    log_density = torch.distributions.Normal(alpha * x0, sigma).log_prob(x).sum()
    (score,) = torch.autograd.grad(log_density, x)
    assert (convert(x0, "x0", "score", x.detach(), alpha, sigma) - score).abs().max() < 1e-12


@pytest.mark.equation("eq-parameterisations")
def test_libraries_formulas_for_v_and_velocity():
    """VDenoiser of k-diffusion and PredV of smalldiffusion in EDM's x, DDIM of diffusers, CondOT."""
    alpha, sigma = 0.28, 0.96
    x0, eps = normal(4, 3), normal(4, 3, seed=1)
    x = alpha * x0 + sigma * eps
    v = convert(eps, "eps", "v", x, alpha, sigma)
    s = noise_level((alpha, sigma), "difflesson", "edm")
    x_edm = rescale(x, (alpha, sigma), "difflesson", "edm")
    k_diffusion = (x0 - x_edm / (s**2 + 1)) / (-s / (s**2 + 1).sqrt())
    small = 1 / (1 + s**2)  # its alpha(sigma)
    assert (v - k_diffusion).abs().max() < 1e-12
    assert (small.sqrt() * (v + (1 - small).sqrt() * x_edm) - eps).abs().max() < 1e-12
    assert (alpha * x - sigma * v - x0).abs().max() < 1e-12
    t, h = noise_level((alpha, sigma), "difflesson", "flow-reversed"), 1e-6
    velocity = ((t + h) * x0 + (1 - t - h) * eps - (t - h) * x0 - (1 - t + h) * eps) / (2 * h)
    assert (convert(v, "v", "flow-reversed", x, alpha, sigma) - velocity).abs().max() < 1e-8


@pytest.mark.equation("eq-parameterisations")
def test_edm_score_is_alpha_times_ours():
    alpha, sigma, x0, x = 0.6, 0.8, normal(4, 3), normal(4, 3, seed=1)
    edm = (x0 - x / alpha) / (sigma / alpha) ** 2  # (D - x_edm) / sigma_edm^2
    assert (convert(x0, "x0", "score", x, alpha, sigma) * alpha - edm).abs().max() < 1e-12


def test_planted_sign_of_v_is_seen():
    x0, eps = normal(4, 3), normal(4, 3, seed=1)
    x = 0.6 * x0 + 0.8 * eps
    assert (convert(0.8 * x0 - 0.6 * eps, "v", "eps", x, 0.6, 0.8) - eps).abs().max() > 0.1


def test_convert_keeps_dtype_and_takes_a_batch_of_one():
    x = normal(1, 3).float()
    assert convert(x, "eps", "v", x, 0.6, 0.8).dtype == torch.float32
    assert convert(x, "eps", "v", x, torch.tensor([0.6]), torch.tensor([0.8])).shape == (1, 3)


def test_a_level_for_each_image_is_never_taken_for_one_for_each_pixel():
    x = normal(3, 3)
    alpha, sigma = pair_at(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
    rows = torch.stack([convert(x[i], "v", "x0", x[i], alpha[i], sigma[i]) for i in range(3)])
    assert (convert(x, "v", "x0", x, alpha, sigma) - rows).abs().max() < 1e-15


SINGULAR = {
    (1.0, 0.0): {("x0", t) for t in OUTPUTS if t != "x0"} | {(s, "score") for s in OUTPUTS if s != "score"}
    | {("score", t) for t in OUTPUTS if t not in ("score", "eps")},
    (0.0, 1.0): {(s, t) for s in ("eps", "score") for t in OUTPUTS if t not in ("eps", "score")},
}


@pytest.mark.equation("eq-parameterisations")
@pytest.mark.parametrize("pair", SINGULAR)
@pytest.mark.parametrize("source,target", two_of(OUTPUTS))
def test_singular_conversions_are_refused_and_no_others(pair, source, target):
    value, x = normal(2, 3), normal(2, 3, seed=1)
    if (source, target) in SINGULAR[pair]:
        with pytest.raises(ValueError, match=f"{source} -> {target}"):
            convert(value, source, target, x, *pair)
    else:
        assert convert(value, source, target, x, *pair).isfinite().all()


# Bad input and the card.

X = torch.zeros(2, 3)
BAD = {
    "unknown noise source": (lambda: noise_level(0.5, "hoe", "edm"), "source = 'hoe': unknown. Allowed"),
    "unknown noise target": (lambda: noise_level(0.5, "ho", "edmm"), "target = 'edmm'"),
    "unknown scale target": (lambda: rescale(X, 0.5, "ho", "edmm"), "target = 'edmm'"),
    "unknown output": (lambda: convert(X, "epsilon", "x0", X, 0.6, 0.8), "source = 'epsilon'.*score"),
    "unknown guidance": (lambda: guidance_scale(1.0, "gamma", "midjourney"), "target = 'midjourney'.*edm2"),
    "nan level": (lambda: noise_level(math.nan, "edm"), "value must be finite"),
    "alphabar over one": (lambda: noise_level(1.2, "ho"), "ho = 1.2"),
    "negative variance": (lambda: noise_level(-0.1, "ho-variance"), "ho-variance = -0.1"),
    "negative integral": (lambda: noise_level(-0.1, "song"), "song = -0.1"),
    "negative sigma": (lambda: noise_level(-1.0, "edm"), "edm = -1"),
    "time over one": (lambda: noise_level(1.1, "flow"), "flow = 1.1"),
    "time below zero": (lambda: noise_level(-0.1, "flow-reversed"), "flow-reversed = -0.1"),
    "not a pair": (lambda: noise_level(0.5, "su"), "must be a pair"),
    "not variance preserving": (lambda: noise_level((0.7, 0.7), "difflesson", "ho"), "alpha.2 . sigma.2 = 1"),
    "variances for stds": (lambda: convert(X, "eps", "x0", X, 0.36, 0.64), "alpha.2 . sigma.2 = 1"),
    "negative alpha": (lambda: convert(X, "eps", "x0", X, -0.6, 0.8), "alpha, sigma >= 0"),
    "nan sigma": (lambda: convert(X, "eps", "x0", X, 1.0, math.nan), "alpha, sigma >= 0"),
    "infinite sigma_edm": (lambda: noise_level((0.0, 1.0), "su", "edm"), "as edm must be finite"),
    "infinite log snr": (lambda: noise_level((1.0, 0.0), "su", "log-snr"), "as log-snr must be finite"),
    "infinite integral": (lambda: noise_level(0.0, "ho", "song"), "as song must be finite"),
    "no x_edm at pure noise": (lambda: rescale(X, 1.0, "flow", "edm"), "x_edm / x_flow must be finite"),
    "nan image": (lambda: rescale(X / 0, 0.5, "ho", "edm"), "x must be finite"),
    "nan value": (lambda: convert(X / 0, "v", "x0", X, 0.6, 0.8), "value must be finite"),
    "shapes differ": (lambda: convert(X[0], "v", "x0", X, 0.6, 0.8), "shape of x"),
    "levels for another batch": (lambda: rescale(X, torch.tensor([0.5, 0.5, 0.5]), "ho", "edm"), "scalar or"),
    "level of x's rank": (lambda: rescale(X, torch.full((2, 3), 0.5), "ho", "edm"), "scalar or"),
    "s noisier than t": (lambda: between(0.6, 0.8, 0.8, 0.6), "alpha_s >= alpha_t"),
    "s all noise": (lambda: between(0.0, 1.0, 0.0, 1.0), "alpha_s > 0"),
    "t clean": (lambda: conventions.reverse_std(1.0, 0.0, 1.0, 0.0), "reverse std"),
    "negative eta": (lambda: conventions.reverse_std(0.8, 0.6, 0.6, 0.8, eta=-1.0), "eta must be >= 0"),
    "negative rate": (lambda: conventions.vp_sde(-1.0), "beta"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_value_error_that_says_what(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_card_has_every_convention_as_plain_strings():
    rows = conventions.card()
    assert {row["convention"] for row in rows} >= {*GUIDANCE, *NOISE, *OUTPUTS}
    assert len({tuple(row) for row in rows}) == 1  # the same keys
    assert all(isinstance(cell, str) and cell for row in rows for cell in row.values())
    assert {row["checked in"] for row in rows} == {"code", "copy", "blog", "paper"}
    by_name = {row["convention"]: row["in our notation"] for row in rows if row["question"] == "guidance"}
    assert by_name["smalldiffusion"] == "gamma = cfg_scale + 1"
    assert by_name["dit"] == "gamma = cfg_scale"


def test_markdown_has_as_many_columns_in_every_line():
    rows = conventions.card()
    lines = conventions.markdown(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}
    assert any("sigma_{t\\|s}" in line for line in lines)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", ["ho", "log-snr", "flow", "difflesson"])
def test_levels_in_half_precision_are_taken_and_as_near_as_it_allows(dtype, target):
    value = torch.tensor(0.37, dtype=dtype)
    coarse, fine = (noise_level(v, "edm", target) for v in (value, value.double()))
    for a, b in zip(coarse, fine, strict=True) if target == "difflesson" else [(coarse, fine)]:
        assert float(a) == pytest.approx(float(b), rel=8 * torch.finfo(dtype).eps)


def test_words_and_empty_cards_are_refused_by_name():
    for call in (lambda: guidance_scale("2", "diffusers"), lambda: noise_level("loud", "edm")):
        with pytest.raises(ValueError, match="value must be a number"):
            call()
    with pytest.raises(ValueError, match="rows"):
        conventions.markdown([])
    assert conventions.reverse_std([0.9], [0.19**0.5], [0.6], [0.8]).shape == (1,)
