"""What a denoiser is, and how a network becomes one.

A denoiser answers the question "what is in this noisy `x`?" twice: with the clean point `x0` and with the noise `eps`.
The two always say the same thing, `x = alpha x0 + sigma eps`, so a kernel may use whichever is better conditioned:
close to the data the noise is hard to see in `x`, close to pure noise the clean point is. Whoever changes one half
(clipping, say) makes the other anew, by `Prediction.from_x0` or `from_eps`. A class label is not an argument: it is
bound beforehand, so that a conditional, an unconditional and a guided model are all the same kind of thing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from difflesson.checks import as_tensor, check_shape, holds
from difflesson.parts import Part
from difflesson.schedule import Schedule, as_time, expand_as


class Prediction(NamedTuple):
    """A denoiser's answer: the clean point and the noise, each shaped like the input (batch, *data).

    Always `x = alpha x0 + sigma eps`. In the methods below alpha and sigma are 0-dim, or shaped to multiply x,
    (batch, 1, ...).  Raise: ValueError if they are not, or the other half is not of floats shaped like x.
    """

    x0: Tensor
    eps: Tensor

    @classmethod
    def from_x0(cls, x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> "Prediction":
        """`eps = (x - alpha x0) / sigma`; needs `sigma > 0`.  [eq-parameterisations]"""
        _check_fit(x, "x0", x0, alpha, sigma)
        return cls(x0, (x - alpha * x0) / sigma)

    @classmethod
    def from_eps(cls, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> "Prediction":
        """`x0 = (x - sigma eps) / alpha`; needs `alpha > 0`.  [eq-parameterisations]"""
        _check_fit(x, "eps", eps, alpha, sigma)
        return cls((x - sigma * eps) / alpha, eps)

    @classmethod
    def from_v(cls, x: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> "Prediction":
        """`v = alpha eps - sigma x0`, so `x0 = alpha x - sigma v` and `eps = sigma x + alpha v`; never singular.

        Source: Salimans & Ho 2022 (arXiv 2202.00512), appendix D.  [eq-parameterisations]
        """
        _check_fit(x, "v", v, alpha, sigma)
        return cls(alpha * x - sigma * v, sigma * x + alpha * v)

    @classmethod
    def from_score(cls, x: Tensor, score: Tensor, alpha: Tensor, sigma: Tensor) -> "Prediction":
        """`eps = -sigma score` and Tweedie's `x0 = (x + sigma^2 score) / alpha`.  [eq-tweedie]"""
        _check_fit(x, "score", score, alpha, sigma)
        return cls.from_eps(x, -sigma * score, alpha, sigma)

    def score(self, sigma: Tensor) -> Tensor:
        """`grad log p_t(x) = -eps / sigma`; needs `sigma > 0`.  [eq-parameterisations]"""
        _check_fit(self.eps, "eps", self.eps, sigma=sigma)
        return -self.eps / sigma


PREDICTIONS = {"v": Prediction.from_v, "eps": Prediction.from_eps, "x0": Prediction.from_x0}
"""What a network's output may mean, and what makes a prediction of it."""


def _check_fit(x: Tensor, name: str, half: Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 1.0) -> None:
    check_shape(name, half, x.shape)
    if not (x.is_floating_point() and half.is_floating_point()):
        raise ValueError(f"x and {name} must be floats, got {x.dtype} and {half.dtype}")
    for level, value in (("alpha", alpha), ("sigma", sigma)):
        check_shape(level, value, (), (1,) * x.dim(), x.shape[:1] + (1,) * (x.dim() - 1))


Denoiser = Callable[[Tensor, Tensor], Prediction]
"""`denoiser(x, t) -> Prediction` with x: (batch, *data) and t: a time in [0, 1], 0-dim, or (batch,) with one a point.
Any function will do; those of the package are parts (see `difflesson.parts`)."""


def predict(denoiser: Denoiser, x: Tensor, t: Tensor) -> Prediction:
    """Ask a denoiser.

    Raises: ValueError if the answer is not a Prediction of floats shaped like x, or if x was changed in place.
    """
    before = None if x.is_inference() else x._version
    prediction = checked(denoiser(x, t), x, "denoiser")
    if before is not None and x._version != before:
        raise ValueError("denoiser must not change x in place, the step still needs it; work on a copy")
    return prediction


def checked(prediction: Prediction, x: Tensor, who: str) -> Prediction:
    """The answer of someone else's function.  Raises: ValueError unless it is a Prediction of floats shaped like x."""
    if not isinstance(prediction, Prediction):
        raise ValueError(f"{who} must answer a Prediction(x0, eps), got {type(prediction).__name__}")
    for name, half in zip((f"{who}'s x0", f"{who}'s eps"), prediction, strict=True):
        check_shape(name, half, x.shape)
        if not half.is_floating_point():
            raise ValueError(f"{name} must be floats, got {half.dtype}")
    return prediction


@dataclass(frozen=True, eq=False)
class Pair(Part):
    """A conditional and an unconditional denoiser."""

    cond: Denoiser
    uncond: Denoiser

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Prediction, Prediction]:
        """Both predictions, conditional first."""
        return predict(self.cond, x, t), predict(self.uncond, x, t)


def check_labels(label: int | Tensor, classes: int) -> Tensor:
    """Labels as an int64 tensor, () or (batch,).

    Raises: ValueError if one is out of 0..classes-1 (on the CPU), or they are of another shape or type.
    """
    label = as_tensor("label", label, "an integer or a tensor of integers")
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise ValueError(f"label must be an integer or a tensor of integers, got dtype {label.dtype}")
    if label.dim() > 1:
        raise ValueError(f"label must be one integer or have shape (batch,), got {tuple(label.shape)}")
    label = label.long()
    if not holds((label >= 0) & (label < classes)):
        raise ValueError(f"label must lie in 0..{classes - 1}, got {label.unique().tolist()}")
    return label


def expand_label(label: Tensor, x: Tensor) -> Tensor:
    """A label () or (batch,) as one for each point of x, on its device.  Raises: ValueError on another length."""
    if label.dim() and len(label) != len(x):
        raise ValueError(f"label must be one integer or have shape (batch,) = ({len(x)},), got {tuple(label.shape)}")
    return label.to(x.device).expand(len(x))


def prediction_of(network: torch.nn.Module) -> str:
    """What a network's output means: its `prediction`, "v" if it says nothing.  Raises: ValueError if it is no such."""
    prediction = getattr(network, "prediction", "v")
    if prediction not in PREDICTIONS:
        raise ValueError(f"network must predict one of {list(PREDICTIONS)}, got one that predicts {prediction!r}")
    return prediction


@dataclass(frozen=True, eq=False)
class network_denoiser(Part):
    """A denoiser from a network `network(x, log_snr, label)` with `network.classes` labels.

    It answers v, or what its attribute `prediction` says, "v", "eps" or "x0". Only v is well conditioned everywhere: an
    error of eps is one of x0 times `sigma / alpha`, which near t = 1 is thousands, and an error of x0 is one of eps
    times `alpha / sigma`, as large near t = 0.

    Args: label: an integer, a tensor (batch,), or None for the null label (unconditional);  dtype: if given, the
    network runs under autocast in it (bfloat16 on a GPU) while its answer is combined in the precision of `x`.
    Raises: ValueError if a label is outside 0..network.classes-1, there is not one for each point, the network answers
    in another shape than x, or it predicts something else.
    """

    network: torch.nn.Module = field(repr=False)
    schedule: Schedule
    label: int | Tensor | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self):
        if self.label is not None:
            check_labels(self.label, self.network.classes)
        prediction_of(self.network)

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        null = self.network.classes
        label = torch.tensor(null) if self.label is None else check_labels(self.label, null)
        return self._answer(x, t, expand_label(label, x))

    def _answer(self, x: Tensor, t: Tensor, label: Tensor) -> Prediction:
        """One call of the network, x: (batch, *data), label: (batch,)."""
        t = as_time(t)
        check_shape("t", t, (), x.shape[:1])
        log_snr = self.schedule.log_snr(t).to(x.device, torch.float32).expand(len(x))
        with torch.autocast(x.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            answer = self.network(x, log_snr, label)
        prediction = prediction_of(self.network)
        check_shape(f"network's answer {prediction}", answer, x.shape)
        alpha, sigma = (expand_as(level, x) for level in (self.schedule.alpha(t), self.schedule.sigma(t)))
        return PREDICTIONS[prediction](x, answer.to(x.dtype), alpha, sigma)


@dataclass(frozen=True, eq=False)
class network_pair(Part):
    """The conditional and the unconditional denoiser of one network, a `Pair`; both in one call of twice the batch.

    Arguments and errors as in `network_denoiser`.
    """

    network: torch.nn.Module = field(repr=False)
    schedule: Schedule
    label: int | Tensor
    dtype: torch.dtype | None = None

    def __post_init__(self):
        check_labels(self.label, self.network.classes)
        prediction_of(self.network)

    @property
    def cond(self) -> network_denoiser:
        """The denoiser with the label alone."""
        return network_denoiser(self.network, self.schedule, self.label, self.dtype)

    @property
    def uncond(self) -> network_denoiser:
        """The denoiser with the null label alone."""
        return network_denoiser(self.network, self.schedule, None, self.dtype)

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Prediction, Prediction]:
        """Both predictions, conditional first."""
        labels, t = expand_label(check_labels(self.label, self.network.classes), x), as_time(t)
        both = torch.cat([labels, torch.full_like(labels, self.network.classes)])  # (2 batch,)
        x0, eps = self.cond._answer(torch.cat([x, x]), torch.cat([t, t]) if t.dim() else t, both)
        (cond_x0, uncond_x0), (cond_eps, uncond_eps) = x0.chunk(2), eps.chunk(2)
        return Prediction(cond_x0, cond_eps), Prediction(uncond_x0, uncond_eps)
