"""Everything that is called in a sampling loop or in training runs on a device, without having one.

See `tests/oracles/far_device.py` for the device; each case below says what is called there. A public function or class
of these modules that is in no case, and is not named as one that has no business there, fails the first test.
"""

import importlib
import inspect

import pytest
import torch

from difflesson import (
    clean_classifier,
    conventions,
    denoiser,
    divergence,
    guidance,
    kernels,
    langevin,
    losses,
    metrics,
    ode,
    particles,
    path,
    plane,
    practice,
    remedies,
    samplers,
    score_matching,
    similarity,
    steps,
)
from difflesson.digits import checkpoints, networks, sampling, witnesses, words
from difflesson.digits import metrics as digit_metrics
from difflesson.schedule import cosine, from_betas, vp_linear
from tests.oracles.far_device import FAR, Looked, Mixed, far_device, not_far

TIMES = torch.linspace(1, 0, 4, dtype=torch.float64)
SMALL = {"widths": (8, 16), "embedding": 16}
T, S = TIMES[1], TIMES[2]


UNET, CLASSIFIER = (kind(**SMALL).to(FAR) for kind in (networks.DigitUNet, networks.DigitClassifier))
UNET.schedule, UNET.size = cosine(), 8
WORDS, TOWERS = words.WordsUNet(**SMALL).to(FAR), words.Towers(**SMALL, space=6).to(FAR)


class World:
    """What the cases are made of, all of it on the device; in the plane in float64, as digits in float32."""

    def __init__(self, device=FAR):
        self.plan, self.mixture = vp_linear(), plane.four_blobs().to(device)
        self.pair = self.mixture.pair(self.plan, 1)
        self.cond, self.uncond = self.pair.cond, self.pair.uncond
        self.x = torch.zeros(5, 2, dtype=torch.float64, device=device)
        self.log_weights = torch.zeros(5, dtype=torch.float64, device=device)
        self.images = torch.zeros(6, 1, 8, 8, device=device)
        self.labels = torch.arange(6)  # `generate` leaves them on the CPU, training does not
        self.unet, self.classifier = UNET, CLASSIFIER
        self.generator = torch.Generator(device)

    def grad(self, x, t):
        """The classifier's gradient, by the mixture."""
        return self.mixture.noised(self.plan.alpha(t), self.plan.sigma(t)).class_gradient(x, 1)

    def log_prob(self, x, t):
        return self.mixture.noised(self.plan.alpha(t), self.plan.sigma(t)).class_log_prob(x, 1)

    def logits(self, x, t):
        return torch.stack([self.log_prob(x, t), -self.log_prob(x, t)], dim=1)

    def clean_log_prob(self, x):
        return x.sum(-1)

    def log_weight(self, x):
        return -x.square().sum(-1)

    def prediction(self):
        return denoiser.Prediction(self.x, self.x)


def step_of(kernel):
    """One step of a kernel, all that it can do."""

    def case(w):
        step, new = kernel(w)(w.x, T, S), w.x + 1
        drawn = step.sample(w.generator)
        return [step.mean, drawn, *([step.log_prob(new)] if getattr(step, "var", 1) is not kernels.NO_NOISE else [])]

    return case


def answer_of(guided, points="x"):
    """One answer of a denoiser, at one time and, where it takes them, at a time for each point."""

    def case(w):
        x = getattr(w, points)
        each = torch.linspace(0.2, 0.9, len(x)).to(x)
        return [*guided(w)(x, T), *guided(w)(x, each)]

    return case


def at(field):
    return lambda w: field(w)(w.x, T)


KERNELS = {
    "ddpm": lambda w: kernels.ddpm(w.cond, w.plan),
    "ddim": lambda w: kernels.ddim(w.cond, w.plan, 0.5, noise_from=w.uncond),
    "reverse_sde": lambda w: kernels.reverse_sde(w.cond, w.plan),
    "heun": lambda w: kernels.heun(w.cond, w.plan),
    "dpmpp_2m": lambda w: kernels.dpmpp_2m(w.cond, w.plan).start(),
    "shift": lambda w: kernels.shift(kernels.ddpm(w.uncond, w.plan), w.grad, 2.0, at="mu"),
    "exact": lambda w: kernels.exact(w.mixture, w.plan, 1),
    "moment_matched": lambda w: kernels.moment_matched(w.mixture, w.plan, 1),
}
GUIDED = {
    "tilt": lambda w: guidance.tilt(w.uncond, lambda x, t: x, torch.linspace(0, 3, len(w.x)).to(w.x), w.plan),
    "mix": lambda w: guidance.mix(w.pair, lambda cond, uncond, x, t: cond),
    "classifier_free": lambda w: guidance.classifier_free(w.pair, lambda t: 2 * t),
    "tempered": lambda w: guidance.tempered(w.uncond, 0.7, w.plan),
}
RULES = {
    "rescaled": lambda w: practice.rescaled(torch.linspace(0, 3, len(w.x)).to(w.x), 0.7, w.plan, "v"),
    "projected": lambda w: practice.projected(lambda t: 2 * t, w.plan, reach=0.5, momentum=-0.4),
    "zero_star": lambda w: practice.zero_star(torch.linspace(0, 3, len(w.x)).to(w.x), w.plan, until=0.5),
}
ON_IMAGES = {
    "denoiser.network_denoiser": lambda w: denoiser.network_denoiser(w.unet, w.plan, w.labels.to(FAR), torch.bfloat16),
    "denoiser.network_pair": lambda w: guidance.classifier_free(denoiser.network_pair(w.unet, w.plan, w.labels), 2.0),
    "guidance.classifier_guided": lambda w: guidance.classifier_guided(
        denoiser.network_denoiser(w.unet, w.plan), w.classifier, w.plan, w.labels, 2.0
    ),
    "digits.sampling.guided_denoiser": lambda w: sampling.guided_denoiser(w.unet, 3, 2.0, w.classifier),
    "digits.sampling.check_alike": lambda w: sampling.guided_denoiser(w.unet, 3, 2.0, unlabelled=w.unet),
}
FIELDS = {
    "guidance.gradient": lambda w: guidance.gradient(w.log_prob),
    "guidance.implicit_gradient": lambda w: guidance.implicit_gradient(w.pair, w.plan),
    "guidance.sharpened": lambda w: guidance.gradient(guidance.sharpened(w.logits, 0, 2.0)),
    "similarity.noisy_log_weight": lambda w: similarity.noisy_log_weight(w.mixture, w.plan, w.log_weight),
    "similarity.noisy_gradient": lambda w: similarity.noisy_gradient(w.mixture, w.plan, w.log_weight),
    "similarity.mean_gradient": lambda w: similarity.mean_gradient(w.mixture, w.plan, w.log_weight),
    "clean_classifier.clean_guess": lambda w: guidance.gradient(
        clean_classifier.clean_guess(w.uncond, w.clean_log_prob)
    ),
    "clean_classifier.step_guess": lambda w: clean_classifier.step_guess(w.uncond, w.clean_log_prob, w.plan, 0.1),
    "clean_classifier.gaussian_cloud": lambda w: clean_classifier.gaussian_cloud(w.uncond, w.clean_log_prob, w.plan, 3),
    "digits.words.sentence_cosine": lambda w: (
        lambda x, t: guidance.gradient(words.sentence_cosine(TOWERS, w.plan, w.labels))(w.images, t)
    ),
    "digits.words.guess_cosine": lambda w: (
        lambda x, t: guidance.gradient(words.guess_cosine(denoiser.network_denoiser(w.unet, w.plan), TOWERS, w.labels))(
            w.images, t
        )
    ),
    "digits.words.guess_style": lambda w: (
        lambda x, t: guidance.gradient(
            words.guess_style(denoiser.network_denoiser(w.unet, w.plan), TOWERS.image, torch.eye(8, device=FAR))
        )(w.images, t)
    ),
    "ode.probability_flow": lambda w: ode.probability_flow(w.cond, w.plan),
}
CASES = {
    **{f"kernels.{name}": step_of(kernel) for name, kernel in KERNELS.items()},
    **{f"guidance.{name}": answer_of(guided) for name, guided in GUIDED.items()},
    **{name: answer_of(guided, "images") for name, guided in ON_IMAGES.items()},
    **{name: at(field) for name, field in FIELDS.items()},
    **{
        f"practice.{name}": answer_of(lambda w, rule=rule: guidance.mix(w.pair, rule(w)).start())
        for name, rule in RULES.items()
    },
    "practice.thresholded": answer_of(lambda w: practice.thresholded(w.cond, w.plan, 0.9)),
    "practice.interval": answer_of(
        lambda w: guidance.classifier_free(w.pair, practice.interval(2.5, w.plan, -1.0, 1.0))
    ),
    "practice.growing_scale": answer_of(lambda w: guidance.classifier_free(w.pair, practice.growing_scale(2.5))),
    "practice.healing_scale": answer_of(
        lambda w: guidance.classifier_free(w.pair, practice.healing_scale(1.0, 0.2, 0.5, w.plan))
    ),
    "practice.plus_plus_scale": lambda w: samplers.draw(
        kernels.ddim(guidance.classifier_free(w.pair, practice.plus_plus_scale(0.6, w.plan, TIMES)), w.plan), w.x, TIMES
    ),
    "kernels.posterior_variance": lambda w: kernels.posterior_variance(w.plan, w.x[:, 0] + T, w.x[:, 0] + S),
    "kernels.one_step_mean": lambda w: kernels.one_step_mean(w.x, w.x, w.plan, T, S),
    "guidance.linearise": lambda w: guidance.linearise(w.log_prob, w.x, T)(w.x + 1, S),
    "guidance.classifier_logits": lambda w: guidance.classifier_logits(w.classifier, w.plan)(w.images, T),
    "guidance.classifier_log_prob": lambda w: guidance.classifier_log_prob(w.classifier, w.plan, w.labels.to(FAR))(
        w.images, T
    ),
    "denoiser.Prediction": lambda w: [
        *denoiser.Prediction.from_x0(w.x, w.x, w.plan.alpha(T), w.plan.sigma(T)),
        *denoiser.Prediction.from_eps(w.x, w.x, w.plan.alpha(T), w.plan.sigma(T)),
        *denoiser.Prediction.from_v(w.x, w.x, w.plan.alpha(T), w.plan.sigma(T)),
        *denoiser.Prediction.from_score(w.x, w.x, w.plan.alpha(T), w.plan.sigma(T)),
        w.prediction().score(w.plan.sigma(T)),
    ],
    "denoiser.Pair": lambda w: denoiser.Pair(w.uncond, w.cond)(w.x, T),
    "steps.Gaussian": lambda w: steps.Gaussian(w.x, w.plan.sigma(T)).tilted(w.x).log_prob(w.x),
    "steps.FullGaussian": lambda w: (
        kernels.moment_matched(w.mixture, w.plan)(w.x, T, S).tilted(w.x, w.mixture.hessian(w.x)).log_prob(w.x)
    ),
    "steps.ReverseStep": lambda w: w.mixture.reverse(w.x, w.plan, T, S).cov,
    "mixture.GaussianMixture": lambda w: [w.mixture.score(w.x), *w.mixture.sample(5, w.generator)],
    "mixture.MixtureDenoiser": lambda w: w.mixture.denoiser(w.plan, w.labels[:5] % 2)(w.x, T),
    "samplers.sample": lambda w: list(samplers.sample(KERNELS["ddpm"](w), w.x, TIMES, w.generator)),
    "samplers.draw": lambda w: samplers.draw(KERNELS["dpmpp_2m"](w), w.x, TIMES, after=lambda x, t, s: x + 0 * s),
    "remedies.twisted": lambda w: remedies.twisted(KERNELS["exact"](w), w.log_prob)(
        KERNELS["ddpm"](w)(w.x, T, S), w.x, w.x + 1, T, S
    ),
    "remedies.feynman_kac": lambda w: remedies.feynman_kac(w.pair, 2.0, w.plan)(None, w.x, w.x, T, S),
    "remedies.ramped": lambda w: remedies.ramped(w.pair, lambda t: 2 * t, w.plan, w.log_prob)(None, w.x, w.x, T, S),
    "remedies.asked_once": lambda w: [(asked := remedies.asked_once(w.pair).start())(w.x, T), asked(w.x, T)],
    "losses.times_and_noise": lambda w: losses.times_and_noise(w.images, w.generator),
    "losses.drop_labels": lambda w: losses.drop_labels(w.labels.to(FAR), 0.2, 10, w.generator),
    "losses.min_snr_weight": lambda w: losses.min_snr_weight(w.x[:, 0], "v"),
    "losses.denoising_loss": lambda w: losses.denoising_loss(
        w.unet, w.plan, w.images, w.labels.to(FAR), 0.2, w.generator, 10, prediction="eps", weighting="min_snr"
    ),
    "losses.v_loss": lambda w: losses.v_loss(w.unet, w.plan, w.images, w.labels.to(FAR), 0.2, w.generator, 10),
    "particles.Particles": lambda w: [
        (now := particles.Particles(w.x, w.log_weights, torch.arange(5, device=FAR))).weights,
        now.ess, now.log_normaliser, now.expectation(lambda x: x), now.chosen(torch.arange(3, device=FAR)).x,
    ],
    "particles.effective_sample_size": lambda w: particles.effective_sample_size(w.log_weights),
    "particles.systematic": lambda w: particles.systematic(w.log_weights, w.generator),
    "particles.multinomial": lambda w: particles.multinomial(w.log_weights, w.generator, 3),
    "digits.networks.DigitUNet": lambda w: w.unet(w.images, w.x.new_zeros(6, dtype=torch.float32), w.labels.to(FAR)),
    "digits.networks.DigitClassifier": lambda w: [w.classifier(w.images), w.classifier.features(w.images)],
    "digits.sampling.own_noise": lambda w: samplers.draw(
        sampling.own_noise(kernels.ddpm(lambda x, t: denoiser.Prediction(x, x), w.plan), [torch.Generator()] * 6),
        w.images, TIMES,
    ),
    "digits.sampling.normal_of_each": lambda w: sampling.normal_of_each([torch.Generator()] * 6, w.images),
    "digits.words.SentenceEmbedding": lambda w: WORDS.label(w.labels.to(FAR)),
    "digits.words.WordsUNet": lambda w: WORDS(w.images, w.x.new_zeros(6, dtype=torch.float32), w.labels.to(FAR)),
    "digits.words.Towers": lambda w: [
        TOWERS(w.images, None, w.labels.to(FAR)), TOWERS(w.images, torch.zeros(6, device=FAR), w.labels.to(FAR)),
        TOWERS.scale,
    ],
    "digits.words.contrastive_loss": lambda w: words.contrastive_loss(TOWERS, w.images, None, w.labels.to(FAR)),
    "digits.words.places": lambda w: words.places(TOWERS.image, w.images),
    "digits.witnesses.clean_verdict": lambda w: witnesses.clean_verdict(w.classifier, w.labels.to(FAR))(w.images),
    "digits.witnesses.verdict_on_guess": lambda w: guidance.gradient(witnesses.verdict_on_guess(
        denoiser.network_denoiser(w.unet, w.plan), witnesses.clean_verdict(w.classifier, 3)))(w.images, T),
    "digits.witnesses.scaled_slope": lambda w: witnesses.scaled_slope(
        denoiser.network_denoiser(w.unet, w.plan), witnesses.clean_verdict(w.classifier, 3), w.plan)(w.images, T),
    "plane.PlaneNetwork": lambda w: (network := plane.PlaneNetwork(2).to(FAR))(
        w.x, w.x.new_zeros(5), w.labels[:5].to(FAR) % 2
    ).to(next(network.parameters())),
    "plane.jacobian": lambda w: plane.jacobian(lambda x: w.grad(x, T), w.x),
    "plane.curl": lambda w: plane.curl(lambda x: w.grad(x, T), w.x),
    "metrics.class_mass": lambda w: metrics.class_mass(w.mixture, w.x),
    "metrics.with_error": lambda w: metrics.with_error(lambda x: x.mean(0), w.x.repeat(10, 1)),
    "similarity.inner_product": lambda w: similarity.inner_product(w.x, w.x),
    "similarity.cosine": lambda w: similarity.cosine(w.x, w.x[0]),
    "similarity.gram": lambda w: similarity.gram(w.x),
    "similarity.gram_distance": lambda w: similarity.gram_distance(w.x, similarity.gram(w.x)),
    "similarity.curve_distance": lambda w: similarity.curve_distance(w.x, w.x[:3]),
    "clean_classifier.noisy_answer": lambda w: clean_classifier.noisy_answer(
        w.mixture, w.plan, w.clean_log_prob, w.x, T, 4
    ),
    "clean_classifier.clean_cov": lambda w: clean_classifier.clean_cov(w.uncond, w.plan, w.x, T),
    "clean_classifier.logistic_cloud": lambda w: clean_classifier.logistic_cloud(w.x[:, 0], w.x[:, 1]),
    "divergence.mixture_nodes": lambda w: divergence.mixture_nodes(w.mixture, 3),
    "divergence.step_nodes": lambda w: divergence.step_nodes(w.mixture.reverse(w.x, w.plan, T, S), 3),
    "divergence.kl": lambda w: divergence.kl(w.mixture.reverse(w.x, w.plan, T, S), KERNELS["ddpm"](w)(w.x, T, S), 3),
    "divergence.path_kl": lambda w: divergence.path_kl(w.mixture, w.plan, 1, KERNELS["ddpm"](w), TIMES[:-1], 3),
    "divergence.closest_gaussian": lambda w: divergence.closest_gaussian(w.mixture.reverse(w.x, w.plan, T, S)),
    "divergence.leading_kl_without_shift": lambda w: divergence.leading_kl_without_shift(w.x, w.plan.sigma(T)),
    "divergence.leading_kl_with_shift": lambda w: divergence.leading_kl_with_shift(
        w.mixture.hessian(w.x), w.plan.sigma(T), 1.0
    ),
    "langevin.unadjusted": lambda w: langevin.unadjusted(w.mixture.score, w.x, 0.1, 2, w.generator),
    "langevin.metropolis_adjusted": lambda w: langevin.metropolis_adjusted(
        w.mixture.log_prob, w.mixture.score, w.x, 0.1, 2, w.generator
    ),
    "langevin.annealed": lambda w: langevin.annealed(
        langevin.score_of(w.uncond, w.plan), w.x, [2.0, 1.0], 0.1, 2, w.generator
    ),
    "langevin.score_of": lambda w: langevin.score_of(w.uncond, w.plan)(w.x, 1.0),
    "score_matching.explicit_loss": lambda w: score_matching.explicit_loss(lambda x: -x, w.mixture.score, w.x),
    "score_matching.denoising_loss": lambda w: score_matching.denoising_loss(lambda x: -x, w.x, w.x, 1.0),
    "score_matching.implicit_loss": lambda w: score_matching.implicit_loss(lambda x: -x, w.x),
    "score_matching.sliced_loss": lambda w: score_matching.sliced_loss(lambda x: -x, w.x, w.x),
    "path.combined_log_density": lambda w: path.combined_log_density(w.mixture, 1, 2.0, w.x, 0.5),
    "path.source": lambda w: path.source(w.mixture, 1, 2.0, w.x, 0.5),
    "path.follow": lambda w: path.follow(w.mixture, 1, 2.0, w.x, TIMES.flip(0)),
    "path.sampled_log_prob": lambda w: path.sampled_log_prob(w.mixture, 1, 2.0, w.x, TIMES.flip(0)),
    "conventions.guidance_scale": lambda w: conventions.guidance_scale(w.x[:, 0], "imagen", "ho-salimans"),
    "conventions.noise_level": lambda w: conventions.noise_level(w.x[:, 0], "log-snr", "edm"),
    "conventions.rescale": lambda w: conventions.rescale(w.x, 0.5, "edm", "flow"),
    "conventions.between": lambda w: conventions.between(*[level for u in (S, T) for level in (
        w.plan.alpha(w.x[:, 0] + u), w.plan.sigma(w.x[:, 0] + u))]),
    "conventions.reverse_std": lambda w: conventions.reverse_std(*[level for u in (S, T) for level in (
        w.plan.alpha(w.x[:, 0] + u), w.plan.sigma(w.x[:, 0] + u))]),
    "conventions.vp_sde": lambda w: conventions.vp_sde(w.plan.beta(w.x[:, 0])),
    "conventions.convert": lambda w: conventions.convert(w.x, "v", "flow", w.x, w.plan.alpha(T), w.plan.sigma(T)),
}  # fmt: skip
ASKED_BY_OTHERS = {  # checks and pieces that every case above goes through
    "guidance": ("scale_at", "check_scale", "checked_gradient", "ask_both"),
    "denoiser": ("predict", "checked", "check_labels", "expand_label", "prediction_of"),
    "samplers": ("check_one_schedule", "checked_run", "checked_state"),
    "steps": ("check_density", "Step"),
    "similarity": ("asked",),
    "clean_classifier": ("asked",),
    "schedule": ("as_time", "as_log_snr", "noisy", "expand_as", "levels_at", "Schedule"),
    "digits.networks": ("NoiseEmbedding", "ResidualBlock", "Attention"),
    "digits.sampling": ("schedule_of", "check_sampler"),
}
TESTED_BELOW = {
    "schedule": ("LinearSchedule", "CosineSchedule", "TableSchedule", "vp_linear", "cosine", "from_betas"),
    "particles": ("sample", "draw"),
    "metrics": ("mode_weights", "wasserstein", "energy_distance"),
    "digits.metrics": ("judged", "digit_report"),
    "digits.sampling": ("generate",),
}
OF_THE_CPU = {  # answers in float64 on the CPU, or builds something there that is moved afterwards
    "samplers": ("time_grid",),
    "similarity": ("tilted_by_direction",),
    "ode": ("solve",),
    "path": ("guided_variance", "corrector_scale"),
    "langevin": ("relaxation_rates",),
    "divergence": ("hermite",),
    "plane": ("four_blobs", "train"),
    "conventions": ("card", "markdown"),
    "digits.metrics": ("Statistics", "statistics", "frechet_distance", "save_reference", "load_reference"),
    "digits.sampling": ("digit_times",),
    "digits.witnesses": ("agreement", "truthfulness"),
}
PICKED_BY_A_MASK = {  # in training: how many rows a teacher is asked, the host must know
    "losses": ("taught_target",),
}
TABLES = ASKED_BY_OTHERS, TESTED_BELOW, OF_THE_CPU, PICKED_BY_A_MASK
MODULES = (
    "kernels guidance practice denoiser steps samplers particles remedies losses metrics mixture schedule similarity "
    "clean_classifier ode path divergence plane conventions langevin score_matching digits.networks "
    "digits.metrics digits.sampling digits.words digits.witnesses"
).split()


def public(module: str) -> set[str]:
    """The functions and classes that a module makes itself."""
    names = vars(importlib.import_module(f"difflesson.{module}"))
    made = {name: what for name, what in names.items() if inspect.isclass(what) or inspect.isfunction(what)}
    return {
        f"{module}.{name}"
        for name, what in made.items()
        if not name.startswith("_") and what.__module__ == f"difflesson.{module}"
    }


def test_no_public_function_or_class_of_these_modules_is_forgotten():
    listed = [f"{m}.{n}" for table in TABLES for m in table for n in table[m]]
    assert sorted([*CASES, *listed]) == sorted(set().union(*map(public, MODULES)))


@pytest.mark.parametrize("name", CASES)
def test_on_a_device_nothing_is_mixed_looked_at_or_fetched_and_the_answer_stays_there(name):
    with far_device() as watch:
        answer = CASES[name](World())
        assert not_far(answer) == [] and watch.fetched == 0


@pytest.mark.parametrize("plan", [vp_linear(), cosine(), from_betas(torch.linspace(1e-3, 0.5, 20))], ids=str)
def test_a_schedule_answers_where_its_times_are(plan):
    with far_device() as watch:
        t = torch.zeros(3, device=FAR)
        answers = [level(t) for level in (plan.alpha, plan.sigma, plan.beta, plan.log_snr, plan.time)]
        answers += [*plan.transition(t, t), plan.add_noise(t[:, None], t[:, None], t)]
        assert not_far(answers) == [] and watch.fetched == 0
        assert float(plan.alpha(0.5)) < 1  # and on the CPU there are numbers still


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_digits_are_drawn_on_the_device_in_bfloat16_and_fetched_once_a_batch(sampler, indexed):
    """16-bit numbers inside the network alone; with an index the noise comes from the CPU; a classifier guides one."""
    options = {"index": torch.arange(3) if indexed else None, "guide": CLASSIFIER if sampler == "ddim" else None}
    with far_device() as watch:
        images = sampling.generate(
            UNET, torch.arange(3), 2.0, sampler=sampler, steps=2, batch=2, dtype=torch.bfloat16, **options
        )
        assert images.device.type == "cpu" and images.dtype == torch.float32 and watch.fetched == 2
        assert set(watch.autocasts) == {(FAR.type, torch.bfloat16, True)}


@pytest.mark.parametrize("heavy", [False, True], ids=["never resampled", "always resampled"])
def test_a_population_looks_once_a_step_at_its_effective_size_and_resamples_by_it(heavy):
    """A pair that is asked once looks once more after a resampling: whether its points are still the same ones."""
    with far_device([1.0, 1.0, True, 1.0, True] if heavy else [5.0, 5.0, 5.0]) as watch:
        w = World()
        pair = remedies.asked_once(w.pair)
        rule = remedies.feynman_kac(pair, 2.0, w.plan)
        kernel = kernels.ddpm(guidance.classifier_free(pair, 2.0), w.plan)
        found = particles.draw(kernel, rule, w.x, TIMES, w.generator)
        assert watch.answers == [] and watch.fetched == 0
        assert not_far([found.x, found.log_weights, found.ancestors, found.weights]) == []


def test_a_population_with_a_weight_of_nan_stops_at_its_one_look():
    with far_device([float("nan")]):
        w = World()
        run = particles.sample(KERNELS["ddpm"](w), lambda *step: w.log_weights, w.x, TIMES, w.generator)
        with pytest.raises(ValueError, match="^rule must give numbers below infinity, and leave a particle with"):
            list(run)


MEASURES = {  # what answers numbers has to look; the answers that it gets on its way, and how many tensors it fetches
    "metrics.mode_weights": (lambda w: metrics.mode_weights(w.mixture, w.x), [1, 1, 1, 1], 0),
    "metrics.energy_distance": (lambda w: metrics.energy_distance(w.x, w.x), [1, 1, 1], 0),
    "digits.metrics.judged": (lambda w: digit_metrics.judged(w.classifier, w.images), [1, 0], 2),
}


@pytest.mark.parametrize("name", MEASURES)
def test_what_answers_numbers_looks_no_more_often_than_it_says(name):
    measure, answers, fetched = MEASURES[name]
    with far_device(answers) as watch:
        measure(World())
        assert watch.answers == [] and watch.fetched == fetched


def test_digits_on_the_device_are_judged_and_measured():
    with far_device([1, 0]) as watch:
        w = World()
        reference = digit_metrics.Statistics(torch.zeros(16, dtype=torch.float64), torch.eye(16).double(), 6)
        report = digit_metrics.digit_report(w.classifier, w.images, w.labels, reference)
        assert report["digit_fid"] == pytest.approx(16) and watch.answers == []
        assert metrics.wasserstein(torch.zeros(4, 2), torch.zeros(4, 2)) == 0  # SciPy's, on the CPU


# ---- the check has teeth


def mixes_in(w):
    return guidance.tilt(w.uncond, lambda x, t: x + torch.ones(5, 2, dtype=x.dtype), 2.0, w.plan)


def looks(w):
    return guidance.mix(w.pair, lambda cond, uncond, x, t: cond if bool(x.max() > 1) else uncond)


def picks_by_truth_values(w):
    return guidance.mix(w.pair, lambda cond, uncond, x, t: cond if len(x[x > 1]) else uncond)


def joins(w):
    return guidance.gradient(lambda x, t: torch.stack([x.sum(1), torch.zeros(5, dtype=x.dtype)]).sum(0))


@pytest.mark.parametrize(
    "mistake, kind", [(mixes_in, Mixed), (looks, Looked), (picks_by_truth_values, Looked), (joins, Mixed)]
)
def test_a_mistake_in_a_guidance_is_an_error_in_the_sampling_loop(mistake, kind):
    with far_device(), pytest.raises(kind):
        w = World()
        guided = guidance.tilt(w.uncond, mistake(w), 1.0, w.plan) if mistake is joins else mistake(w)
        samplers.draw(kernels.ddim(guided, w.plan), w.x, TIMES)


def test_a_generator_of_the_cpu_and_an_index_on_the_device_are_refused():
    with far_device() as watch:
        w = World()
        with pytest.raises(RuntimeError, match="^Expected a 'meta' device type for generator but found 'cpu'"):
            samplers.draw(KERNELS["ddpm"](w), w.x, TIMES, torch.Generator())
        with pytest.raises(Mixed):
            torch.zeros(10)[w.labels.to(FAR)]
        assert watch.fetched == 0 and w.x.cpu().tolist() == [[0, 0]] * 5 and watch.fetched == 1


# ---- a real one


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu_digits_in_bfloat16_are_those_of_the_cpu_in_single_precision_but_for_rounding():
    """The same noise by index; 3 significant digits of bfloat16, twelve steps: nearly every pixel within 0.1."""
    labels, options = torch.arange(20) % 10, {"steps": 12, "index": torch.arange(20)}
    near, far = checkpoints.load("denoiser").network, checkpoints.load("denoiser", "cuda").network
    here = sampling.generate(near, labels, 2.0, **options)
    there = sampling.generate(far, labels, 2.0, dtype=torch.bfloat16, **options)
    assert there.device.type == "cpu" and there.dtype == torch.float32
    assert float((here - there).abs().quantile(0.98)) < 0.1
    single = sampling.generate(far, labels, 2.0, **options)
    assert float((sampling.generate(far, labels, 2.0, **options) - single).abs().max()) < 1e-4
    assert float((here - single).abs().max()) < 0.05  # TF32 and other orders of summation
    _, log_probs = digit_metrics.judged(checkpoints.load("judge", "cuda").network, there)
    assert float((log_probs.argmax(1) == labels).double().mean()) >= 0.95


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", KERNELS)
def test_on_a_gpu_a_kernel_steps_to_the_mean_that_it_has_on_the_cpu(name):
    means = []
    for device in ("cpu", "cuda"):
        w = World(device=device)
        means.append(KERNELS[name](w)(w.x + 0.3, T, S).mean.cpu())
    assert float((means[0] - means[1]).abs().max()) < 1e-9
