"""Classifiers that steer a digit denoiser: four gradients to follow, and how far several of them tell the truth.

A classifier's gradient is an estimate of `grad log p_t(y | x)`; the difference of a labelled denoiser's two guesses is
another. Nobody has the truth. But estimates whose errors have nothing to do with each other betray how good they are by
how well they agree.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from difflesson import guidance
from difflesson.checks import check_shape
from difflesson.denoiser import Denoiser, check_labels, expand_label, predict
from difflesson.parts import Part
from difflesson.schedule import Schedule, expand_as, noisy

PIXEL_VARIANCE = 0.27
"""Of MNIST's pixels in [-1, 1] about the mean picture's, on average over the 784: a scale for `scaled_slope`."""


@dataclass(frozen=True, eq=False)
class clean_verdict(Part):
    """`log p_o(label | x0)` of a classifier of clean images `network(x0) -> logits`; as `(x, t)`, t is not looked at.

    Args: label: an integer or a tensor (batch,).  Raises: ValueError if a label is outside 0..network.classes-1.
    """

    network: torch.nn.Module = field(repr=False)
    label: int | Tensor

    def __post_init__(self):
        check_labels(self.label, self.network.classes)

    def __call__(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        logits = self.network(x).to(x.dtype)
        label = expand_label(check_labels(self.label, logits.shape[1]), x)
        return logits.log_softmax(dim=1).gather(1, label[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class verdict_on_guess(Part):
    """A clean classifier asked about the denoiser's guess of the image: `log p_o(y | x0)`, x0 = E[x_0 | x_t].

    For `guidance.gradient`, which goes through the denoiser. As `clean_classifier.clean_guess`, for images.
    Args: verdict: `verdict(x0) -> (batch,)`.  Source: Chung et al. 2023 (arXiv 2209.14687), eq. 11.
    """

    denoiser: Denoiser
    verdict: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.verdict(predict(self.denoiser, x, t).x0)


@dataclass(frozen=True, eq=False)
class scaled_slope(Part):
    """The clean classifier's slope at the guess, times one number for the denoiser's derivative.  [eq-scaled-slope]

        g = alpha v / (alpha^2 v + sigma^2) (grad log p_o(y | .))(x0)

    The number is `d x0 / d x` of pixels that are independent and Gaussian, of variance v. Not differentiable, and no
    backward pass through the denoiser.  Args: verdict: `verdict(x0) -> (batch,)`;  variance: v, above 0.
    Raises: ValueError otherwise.
    """

    denoiser: Denoiser
    verdict: Callable[[Tensor], Tensor]
    schedule: Schedule
    variance: float = PIXEL_VARIANCE

    def __post_init__(self):
        if not self.variance > 0:
            raise ValueError(f"variance must be above 0, got {self.variance}")

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            guess = predict(self.denoiser, x, t).x0
        slope = guidance.gradient(lambda x0, _: self.verdict(x0))(guess, t)
        alpha, sigma = (expand_as(noisy(level, t), x) for level in (self.schedule.alpha(t), self.schedule.sigma(t)))
        return alpha * self.variance / (alpha**2 * self.variance + sigma**2) * slope


def agreement(a: Tensor, b: Tensor) -> float:
    """How far two fields of vectors (N, ...) agree: their cosine as one long vector.  [eq-agreement]

        E[a . b] / sqrt(E|a|^2 E|b|^2)

    In [-1, 1]; where the vectors are long they count for more.  Raises: ValueError if the shapes differ, or one is 0.
    """
    check_shape("b", b, a.shape)
    a, b = a.double().flatten(), b.double().flatten()
    lengths = float(a.norm() * b.norm())
    if lengths == 0:
        raise ValueError("a and b must not be zero everywhere, there is no direction in them")
    return float(a @ b) / lengths


def truthfulness(ab: float, ac: float, bc: float) -> float:
    """The agreement of the estimate a with the truth, out of those of three estimates.  [eq-three-witnesses]

        sqrt(ab ac / bc)

    Right if the errors of the three are uncorrelated with the truth and with each other; where errors are shared,
    it is wrong, and may exceed 1.  Raises: ValueError unless all three are above 0.
    Source: Stoffelen 1998 (doi 10.1029/97JC03180), "triple collocation", in its form with correlations.
    """
    if not min(ab, ac, bc) > 0:
        raise ValueError(f"all three agreements must be above 0, got {ab}, {ac} and {bc}")
    return (ab * ac / bc) ** 0.5
