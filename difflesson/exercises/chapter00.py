"""Exercises of chapter 00: the scale's names, a negative scale, and the story's mean from samples of the class."""

import torch

from difflesson.denoiser import Pair
from difflesson.exercises import Exercise, Mistake
from difflesson.guidance import classifier_free
from difflesson.kernels import heun
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine

# --- 0.1: a pipeline's guidance_scale as w -------------------------------------------------------------------


def pipeline_scales():
    """Cases of 0.1: scales as a pipeline takes them."""
    return {f"guidance_scale={scale}": (scale,) for scale in (7.5, 3.0, 1.0, 0.5, 0.0)}


def weight_of_the_pipeline(guidance_scale):
    """Run the pipeline's own rule on two known guesses, and solve (1 + w) c - w u = guided for w."""
    cond, uncond = 0.7, 0.2
    guided = uncond + guidance_scale * (cond - uncond) if guidance_scale > 1 else cond
    return (guided - cond) / (cond - uncond)


# --- 0.2: where guidance lands for two bells of width one -----------------------------------------------------


def two_bells():
    """Cases of 0.2: the two means and gamma."""
    return {
        "without the label around 0, with it around 2, gamma 3": (0.0, 2.0, 3.0),
        "the same, gamma -1": (0.0, 2.0, -1.0),
        "without the label around 1, with it around -0.5, gamma 0": (1.0, -0.5, 0.0),
        "the same, gamma 1": (1.0, -0.5, 1.0),
        "the same, gamma -2": (1.0, -0.5, -2.0),
    }


def landing_by_sampling(uncond_mean, cond_mean, gamma):
    """Start in the middle of the noise and let a sampler carry that point: a shift takes middles to middles."""
    schedule = cosine()
    cond, uncond = (
        GaussianMixture([1.0], torch.tensor([[mean]], dtype=torch.float64), [[[1.0]]]).denoiser(schedule)
        for mean in (cond_mean, uncond_mean)
    )
    kernel = heun(classifier_free(Pair(cond, uncond), gamma), schedule)
    return draw(kernel, torch.zeros(1, 1, dtype=torch.float64), time_grid(40))[0, 0]


# --- 0.3: the story's mean, from samples of the class ---------------------------------------------------------


def classes_in_the_plane():
    """Cases of 0.3: a mixture, samples of one of its classes, (N, 2), the label and gamma."""
    mixture = GaussianMixture(
        weights=[0.5, 0.3, 0.2],
        means=torch.tensor([[-1.0, 0.0], [0.5, 1.0], [1.5, -1.0]], dtype=torch.float64),
        covs=[[[0.6, 0.2], [0.2, 0.5]], [[0.4, -0.1], [-0.1, 0.3]], [[0.5, 0.0], [0.0, 0.4]]],
        labels=[0, 1, 1],
    )
    points, _ = mixture.given(1).sample(40_000, torch.Generator().manual_seed(3))
    return {f"class 1, gamma {gamma:g}": (mixture, points, 1, gamma) for gamma in (1.0, 1.5, 2.0, 4.0)}


def story_mean_by_quadrature(mixture, points, label, gamma):
    """Both coordinates of the mean of p(x) p(y | x)^gamma, on a grid."""
    side = torch.linspace(-7, 7, 281, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    return (mixture.log_prob(grid) + gamma * mixture.class_log_prob(grid, label)).softmax(0) @ grid


def reweighted(power):
    """The mean of `points` under weights p(y | x)^power(gamma)."""

    def answer(mixture, points, label, gamma):
        return (power(gamma) * mixture.class_log_prob(points, label)).softmax(0) @ points

    return answer


def without_normaliser(mixture, points, label, gamma):
    """The mistake of not dividing by the sum of the weights."""
    weights = mixture.class_log_prob(points, label).mul(gamma - 1).exp()
    return (weights[:, None] * points).mean(0)


def density_for_posterior(mixture, points, label, gamma):
    """The mistake of weighting by the density of the class."""
    return ((gamma - 1) * mixture.given(label).log_prob(points)).softmax(0) @ points


EXERCISES = [
    Exercise(
        number="0.1",
        title="from a pipeline's guidance_scale to w",
        cases=pipeline_scales,
        truth=weight_of_the_pipeline,
        mistakes=[
            Mistake(
                "gamma for w",
                lambda scale: max(scale, 1.0),
                "this is gamma. What does w call plain conditional sampling?",
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
            Mistake("wrong way", lambda scale: max(scale, 1.0) + 1, "which of the two scales is the larger one?"),
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
                "branches swapped",
                lambda uncond, cond, gamma: cond + gamma * (uncond - cond),
                "look at gamma = 0 and gamma = 1: which of the two bells belongs to which?",
            ),
            Mistake(
                "sign lost",
                lambda uncond, cond, gamma: uncond + abs(gamma) * (cond - uncond),
                "right for gamma >= 0. What does a minus sign do to the difference of the two guesses?",
            ),
            Mistake(
                "only between",
                lambda uncond, cond, gamma: uncond + min(max(gamma, 0.0), 1.0) * (cond - uncond),
                "guidance does not stop at either bell: nothing in the formula keeps gamma between 0 and 1.",
            ),
        ],
        tolerance=2e-3,
    ),
    Exercise(
        number="0.3",
        title="the story's mean, from samples of the class",
        cases=classes_in_the_plane,
        truth=story_mean_by_quadrature,
        mistakes=[
            Mistake(
                "gamma for gamma - 1",
                reweighted(lambda gamma: gamma),
                "one unit of gamma too much. At gamma = 1 these points need no weights at all: why?",
            ),
            Mistake(
                "no weights",
                reweighted(lambda gamma: 0.0),
                "right at gamma = 1 only: this is the mean of the points you were given.",
            ),
            Mistake(
                "no normaliser",
                without_normaliser,
                "the weights are right up to a factor. An average needs weights that sum to one.",
            ),
            Mistake(
                "density for posterior",
                density_for_posterior,
                "your weights use p(x | y), the density of the class. The story has p(y | x) in it.",
            ),
        ],
        tolerance=0.03,
    ),
]
