"""Exercises of chapter 00: the scale's names, a negative scale, and the story's mean from samples of the class."""

import torch
from torch.distributions import MultivariateNormal

from difflesson.denoiser import Pair
from difflesson.exercises import Exercise, Mistake
from difflesson.guidance import classifier_free
from difflesson.kernels import heun
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine

# --- 0.1: a pipeline's guidance_scale as w -------------------------------------------------------------------


def pipeline_scales():
    """Cases of 0.1: scales as a pipeline takes them, negative ones too."""
    return {f"guidance_scale={scale}": (scale,) for scale in (7.5, 3.0, 1.0, 0.5, 0.0, -2.0, 100.0, 1.25)}


def weight_of_the_pipeline(guidance_scale):
    """Run the pipeline's own rule on two known guesses, and solve (1 + w) c - w u = guided for w."""
    cond, uncond = 0.7, 0.2
    guided = uncond + guidance_scale * (cond - uncond) if guidance_scale > 1 else cond
    return (guided - cond) / (cond - uncond)


# --- 0.2: where guidance lands for two bells of width one -----------------------------------------------------


def two_bells():
    """Cases of 0.2: the two means and gamma, as tensors: an answer that divides by zero is told in which case."""
    cases = {
        "without the label around 0, with it around 2, gamma 3": (0.0, 2.0, 3.0),
        "the same, gamma -1": (0.0, 2.0, -1.0),
        "without the label around 1, with it around -0.5, gamma 0": (1.0, -0.5, 0.0),
        "the same, gamma 1": (1.0, -0.5, 1.0),
        "the same, gamma 0.5": (1.0, -0.5, 0.5),
        "the same, gamma -2": (1.0, -0.5, -2.0),
        "both around 1.5, gamma 7": (1.5, 1.5, 7.0),
        "without the label around -1.5, with it around 0, gamma 6": (-1.5, 0.0, 6.0),
    }
    return {case: torch.tensor(values, dtype=torch.float64).unbind() for case, values in cases.items()}


def landing_by_sampling(uncond_mean, cond_mean, gamma):
    """Start in the middle of the noise and let a sampler carry that point: a shift takes middles to middles."""
    schedule = cosine()
    cond, uncond = (
        GaussianMixture([1.0], mean.view(1, 1), [[[1.0]]]).denoiser(schedule)
        for mean in (cond_mean, uncond_mean)
    )
    kernel = heun(classifier_free(Pair(cond, uncond), gamma), schedule)
    return draw(kernel, torch.zeros(1, 1, dtype=torch.float64), time_grid(30))[0, 0]


# --- 0.3: the story's mean, from samples of the class ---------------------------------------------------------


def mixture_in_the_plane():
    """Three blobs: one of class 0, two of class 1."""
    return GaussianMixture(
        weights=[0.5, 0.3, 0.2],
        means=torch.tensor([[-1.0, 0.0], [0.5, 1.0], [1.5, -1.0]], dtype=torch.float64),
        covs=[[[0.6, 0.2], [0.2, 0.5]], [[0.4, -0.1], [-0.1, 0.3]], [[0.5, 0.0], [0.0, 0.4]]],
        labels=[0, 1, 1],
    )


def mixture_on_the_line():
    """Three bells, three classes."""
    means = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    return GaussianMixture([0.2, 0.5, 0.3], means, [[[0.5]], [[0.8]], [[0.3]]], labels=[0, 1, 2])


def samples_of_a_class():
    """Cases of 0.3: a mixture, a few samples of one of its classes, (N, d), the label and gamma."""
    cases = {}
    for where, mixture, label, count in (
        ("in the plane, class 1", mixture_in_the_plane(), 1, 40),
        ("in the plane, class 0", mixture_in_the_plane(), 0, 25),
        ("on the line, class 2", mixture_on_the_line(), 2, 30),
    ):
        for gamma in (0.0, 0.5, 1.0, 2.0, 5.0, -0.5):
            points, _ = mixture.given(label).sample(count, torch.Generator().manual_seed(3))
            cases[f"{where}, {count} points, gamma {gamma:g}"] = (mixture, points, label, gamma)
    return cases


def mean_by_density_ratios(mixture, points, label, gamma):
    """Weigh each point by density wanted over density had, with PyTorch's own Gaussians, one for each blob."""
    bells = map(MultivariateNormal, mixture.means, mixture.covs)
    blobs = [bell.log_prob(points).exp() for bell in bells]
    joint = mixture.weights[:, None] * torch.stack(blobs)  # (K, N)
    of_class = joint[torch.tensor(mixture.labels) == label].sum(0)  # p(x, label)
    everything = joint.sum(0)  # p(x)
    weights = everything * (of_class / everything) ** gamma / of_class
    return (weights[:, None] * points).sum(0) / weights.sum()


def reweighted(power):
    """The mean of `points` under weights p(y | x)^power(gamma)."""

    def answer(mixture, points, label, gamma):
        return (power(gamma) * mixture.class_log_prob(points, label)).softmax(0) @ points

    return answer


def unnormalised(total):
    """The mistake of weights that do not sum to one: their sum, or their mean over the points."""

    def answer(mixture, points, label, gamma):
        weighted = mixture.class_log_prob(points, label).mul(gamma - 1).exp()[:, None] * points
        return total(weighted)

    return answer


def density_for_posterior(mixture, points, label, gamma):
    """The mistake of weighting by the density of the class."""
    return ((gamma - 1) * mixture.given(label).log_prob(points)).softmax(0) @ points


def probability_for_logarithm(mixture, points, label, gamma):
    """The mistake of exp((gamma - 1) p) where p^(gamma - 1) is meant."""
    return ((gamma - 1) * mixture.class_log_prob(points, label).exp()).softmax(0) @ points


def weights_of_all_data(mixture, points, label, gamma):
    """The mistake of weighting points of the class by the whole of p(x) p(y | x)^gamma."""
    return (mixture.log_prob(points) + gamma * mixture.class_log_prob(points, label)).softmax(0) @ points


def fixed_label(mixture, points, label, gamma):
    """The mistake of the label 1 whatever is asked."""
    return reweighted(lambda gamma: gamma - 1)(mixture, points, 1, gamma)


def points_ignored(mixture, points, label, gamma):
    """The chapter's cell: a sum over a grid, with no look at the points."""
    side = torch.linspace(-12, 12, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(*[side] * mixture.dim).view(-1, mixture.dim)
    return (mixture.log_prob(grid) + gamma * mixture.class_log_prob(grid, label)).softmax(0) @ grid


EXERCISES = [
    Exercise(
        number="0.1",
        title="from a pipeline's guidance_scale to w",
        cases=pipeline_scales,
        truth=weight_of_the_pipeline,
        mistakes=[
            Mistake(
                "nothing converted",
                lambda scale: scale,
                "this is the guidance_scale itself. What does w call plain conditional sampling?",
            ),
            Mistake(
                "gamma for w",
                lambda scale: max(scale, 1.0),
                "this is the gamma that acts. What does w call plain conditional sampling?",
            ),
            Mistake(
                "guided below one",
                lambda scale: scale - 1,
                "right where the pipeline guides. What does it do at 1 and below?",
            ),
            Mistake(
                "off means unconditional",
                lambda scale: scale - 1 if scale > 1 else -1.0,
                "a pipeline without guidance still knows the label. Which w leaves only the guess with the label?",
            ),
            Mistake(
                "zero where it is off, gamma where it is on",
                lambda scale: scale if scale > 1 else 0.0,
                "right at 1 and below. Above, this is gamma: where does w start to count?",
            ),
            Mistake(
                "one where it is off",
                lambda scale: scale - 1 if scale > 1 else 1.0,
                "right where the pipeline guides. Below, 1 is the gamma that acts; which w is that?",
            ),
            Mistake(
                "off at zero and below",
                lambda scale: max(scale, 0.0) - 1,
                "at which guidance_scale does the pipeline stop guiding?",
            ),
            Mistake("wrong way", lambda scale: max(scale, 1.0) + 1, "which of the two scales is the larger one?"),
            Mistake("sign", lambda scale: 1 - max(scale, 1.0), "the sign: is more guidance a larger or a smaller w?"),
        ],
    ),
    Exercise(
        number="0.2",
        title="a negative scale goes the other way, as far as it is negative",
        cases=two_bells,
        truth=landing_by_sampling,
        mistakes=[
            Mistake(
                "gamma for w",
                lambda uncond, cond, gamma: cond + gamma * (cond - uncond),
                "one unit of gamma too far. Where must gamma = 0 land?",
            ),
            Mistake(
                "counted from the wrong bell",
                lambda uncond, cond, gamma: cond + gamma * (uncond - cond),
                "look at gamma = 0 and gamma = 1: which of the two bells belongs to which?",
            ),
            Mistake(
                "wrong sign",
                lambda uncond, cond, gamma: uncond - gamma * (cond - uncond),
                "right at gamma = 0. Where must gamma = 1 land?",
            ),
            Mistake(
                "sign lost",
                lambda uncond, cond, gamma: uncond + abs(gamma) * (cond - uncond),
                "right for gamma >= 0. What does a minus sign do to the difference of the two guesses?",
            ),
            Mistake(
                "only between",
                lambda uncond, cond, gamma: uncond + gamma.clamp(0, 1) * (cond - uncond),
                "guidance does not stop at either bell: nothing in the formula keeps gamma between 0 and 1.",
            ),
            Mistake(
                "never below zero",
                lambda uncond, cond, gamma: uncond + gamma.clamp(min=0) * (cond - uncond),
                "right for gamma >= 0. Nothing in the formula stops a negative gamma at 0.",
            ),
            Mistake(
                "never above one",
                lambda uncond, cond, gamma: uncond + gamma.clamp(max=1) * (cond - uncond),
                "right for gamma <= 1. Nothing in the formula stops at the bell with the label.",
            ),
            Mistake(
                "gamma times the bell with the label",
                lambda uncond, cond, gamma: gamma * cond,
                "right where the other bell is around 0. Where must gamma = 0 land?",
            ),
            Mistake(
                "the bell with the label",
                lambda uncond, cond, gamma: cond,
                "right at gamma = 1 only. How does gamma enter?",
            ),
            Mistake(
                "added",
                lambda uncond, cond, gamma: uncond + gamma * cond,
                "what the label changes is the difference of the two guesses. What if both bells are the same?",
            ),
        ],
        tolerance=2e-3,
    ),
    Exercise(
        number="0.3",
        title="the story's mean, from samples of the class",
        cases=samples_of_a_class,
        truth=mean_by_density_ratios,
        mistakes=[
            Mistake(
                "gamma for gamma - 1",
                reweighted(lambda gamma: gamma),
                "one unit of gamma too much. At gamma = 1 these points need no weights at all: why?",
            ),
            Mistake(
                "gamma + 1 for gamma - 1",
                reweighted(lambda gamma: gamma + 1),
                "two units of gamma too much. At gamma = 1 these points need no weights at all: why?",
            ),
            Mistake(
                "1 - gamma for gamma - 1",
                reweighted(lambda gamma: 1 - gamma),
                "right at gamma = 1 only. Is it density wanted over density had, or the other way round?",
            ),
            Mistake(
                "no weights",
                reweighted(lambda gamma: 0.0),
                "right at gamma = 1 only: this is the mean of the points you were given.",
            ),
            Mistake(
                "a sum, not a mean",
                unnormalised(lambda weighted: weighted.sum(0)),
                "the weights are right up to a factor. A mean needs weights that sum to one.",
            ),
            Mistake(
                "divided by the number of points",
                unnormalised(lambda weighted: weighted.mean(0)),
                "the weights are right up to a factor. Divide by their sum, not by the number of points.",
            ),
            Mistake(
                "density for posterior",
                density_for_posterior,
                "your weights use p(x | y), the density of the class. The story has p(y | x) in it.",
            ),
            Mistake(
                "probability for its logarithm",
                probability_for_logarithm,
                "your weights are exp((gamma - 1) p(y | x)), no power of p(y | x). Of what does softmax take the exp?",
            ),
            Mistake(
                "the story's density as a weight",
                weights_of_all_data,
                "your weights are the density you want. These points have a density already: divide by it.",
            ),
            Mistake(
                "the label is always 1",
                fixed_label,
                "right for class 1 only. The label is an argument.",
            ),
            Mistake(
                "points ignored",
                points_ignored,
                "this is the story's mean, but not from the points you were given: pictures allow no grid.",
            ),
        ],
        tolerance=1e-5,
    ),
]
