"""What a denoiser is, and how a network becomes one.

A denoiser answers the question "what is in this noisy `x`?" twice: with the clean point `x0` and with the noise `eps`.
For one prediction the two say the same thing, `x = alpha x0 + sigma eps`; they are kept apart because some methods
(CFG++, clipping) use different predictions for the two. A class label is not an argument: it is bound beforehand, so
that a conditional, an unconditional and a guided model are all the same kind of thing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from difflesson.schedule import Schedule, as_time


class Prediction(NamedTuple):
    """A denoiser's answer: the clean point and the noise, each shaped like the input (batch, *data)."""

    x0: Tensor
    eps: Tensor

    @classmethod
    def from_x0(cls, x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> "Prediction":
        """`eps = (x - alpha x0) / sigma`; needs `sigma > 0`.  [eq-parameterisations]"""
        return cls(x0, (x - alpha * x0) / sigma)

    @classmethod
    def from_eps(cls, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> "Prediction":
        """`x0 = (x - sigma eps) / alpha`; needs `alpha > 0`.  [eq-parameterisations]"""
        return cls((x - sigma * eps) / alpha, eps)

    @classmethod
    def from_v(cls, x: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> "Prediction":
        """`v = alpha eps - sigma x0`, so `x0 = alpha x - sigma v` and `eps = sigma x + alpha v`; never singular.

        Source: Salimans & Ho 2022 (arXiv 2202.00512), appendix D.  [eq-parameterisations]
        """
        return cls(alpha * x - sigma * v, sigma * x + alpha * v)

    @classmethod
    def from_score(cls, x: Tensor, score: Tensor, alpha: Tensor, sigma: Tensor) -> "Prediction":
        """`eps = -sigma score` and Tweedie's `x0 = (x + sigma^2 score) / alpha`.  [eq-tweedie]"""
        return cls.from_eps(x, -sigma * score, alpha, sigma)

    def score(self, sigma: Tensor) -> Tensor:
        """`grad log p_t(x) = -eps / sigma`; needs `sigma > 0`.  [eq-parameterisations]"""
        return -self.eps / sigma


Denoiser = Callable[[Tensor, Tensor], Prediction]
"""`denoiser(x, t) -> Prediction` with x: (batch, *data) and t: a time in [0, 1], 0-dim."""


@dataclass(frozen=True)
class Pair:
    """A conditional and an unconditional denoiser; `together` evaluates both in one batched call where it can."""

    cond: Denoiser
    uncond: Denoiser
    together: Callable[[Tensor, Tensor], tuple[Prediction, Prediction]] | None = None

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Prediction, Prediction]:
        """Both predictions, conditional first."""
        if self.together is not None:
            return self.together(x, t)
        return self.cond(x, t), self.uncond(x, t)


def check_labels(label: int | Tensor, classes: int) -> Tensor:
    """Labels as an int64 tensor, () or (batch,).  Raises: ValueError if out of 0..classes-1 or of the wrong shape."""
    label = torch.as_tensor(label)
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise ValueError(f"label must be an integer or a tensor of integers, got dtype {label.dtype}")
    if label.dim() > 1:
        raise ValueError(f"label must be one integer or have shape (batch,), got {tuple(label.shape)}")
    if label.numel() and not (0 <= int(label.min()) and int(label.max()) < classes):
        raise ValueError(f"label must lie in 0..{classes - 1}, got {label.unique().tolist()}")
    return label.long()


def expand_label(label: Tensor, x: Tensor) -> Tensor:
    """A label () or (batch,) as one for each point of x, on its device.  Raises: ValueError on another length."""
    if label.dim() and len(label) != len(x):
        raise ValueError(f"label must be one integer or have shape (batch,) = ({len(x)},), got {tuple(label.shape)}")
    return label.to(x.device).expand(len(x))


def network_denoiser(
    network: torch.nn.Module, schedule: Schedule, label: int | Tensor | None = None, dtype: torch.dtype | None = None
) -> Denoiser:
    """A denoiser from a v-predicting network `network(x, log_snr, label) -> v` with `network.classes` labels.

    Args: label: an integer, a tensor (batch,), or None for the null label (unconditional);  dtype: if given, the
    network runs under autocast in it (bfloat16 on a GPU) while its answer is combined in the precision of `x`.
    Raises: ValueError if a label is outside 0..network.classes-1 or there is not one for each point.
    """
    null = network.classes
    bound = torch.tensor(null) if label is None else check_labels(label, network.classes)

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        return _run(network, schedule, x, t, expand_label(bound, x), dtype)

    return denoise


def network_pair(
    network: torch.nn.Module, schedule: Schedule, label: int | Tensor, dtype: torch.dtype | None = None
) -> Pair:
    """The conditional and the unconditional denoiser of one network; both in one call of twice the batch.

    Arguments and errors as in `network_denoiser`.
    """
    bound = check_labels(label, network.classes)

    def together(x: Tensor, t: Tensor) -> tuple[Prediction, Prediction]:
        labels = expand_label(bound, x)
        both = torch.cat([labels, torch.full_like(labels, network.classes)])  # (2 batch,)
        x0, eps = _run(network, schedule, torch.cat([x, x]), t, both, dtype)
        (cond_x0, uncond_x0), (cond_eps, uncond_eps) = x0.chunk(2), eps.chunk(2)
        return Prediction(cond_x0, cond_eps), Prediction(uncond_x0, uncond_eps)

    cond = network_denoiser(network, schedule, bound, dtype)
    return Pair(cond, network_denoiser(network, schedule, None, dtype), together)


def _run(network, schedule, x, t, label, dtype) -> Prediction:
    """One call of the network at one time for the whole batch."""
    if as_time(t).dim():
        raise ValueError(f"t must be one time for the whole batch, got {t}")
    log_snr = torch.full((len(x),), float(schedule.log_snr(t)), device=x.device)
    with torch.autocast(x.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        v = network(x, log_snr, label).to(x.dtype)
    return Prediction.from_v(x, v, schedule.alpha(t), schedule.sigma(t))
