"""What a denoiser is trained on: noise, a label that is sometimes hidden, and the error of its guess.

The networks are called `network(x, log_snr, label)` and answer v, eps or x0; one label more than there are classes, the
null label, stands for "not told". Hiding labels at random is all that classifier-free guidance asks of training.
"""

import torch
from torch import Tensor
from torch.nn import functional

from difflesson.checks import check_shape
from difflesson.denoiser import PREDICTIONS, check_labels
from difflesson.noise import check_generator, standard_normal
from difflesson.schedule import Schedule, expand_as

WEIGHTINGS = ("plain", "min_snr")


def times_and_noise(x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Times (batch,) stratified over [0, 1), and standard normal noise like x0.

    One uniform number serves the whole batch, which lowers the variance of the loss (Kingma et al. 2021, arXiv
    2107.00630, appendix I.1).  Raises: ValueError if x0 is not of floats, or without a generator.
    """
    if not x0.is_floating_point() or x0.numel() < 1:
        raise ValueError(f"x0 must be floats, one or more, got {x0.dtype} {tuple(x0.shape)}")
    check_generator(generator)
    batch, fine = len(x0), torch.promote_types(x0.dtype, torch.float32)  # half precision has 256 times in [1/2, 1)
    like = {"device": x0.device, "dtype": fine}
    t = (torch.rand((), generator=generator, **like) + torch.arange(batch, **like) / batch) % 1
    return t, standard_normal(x0.shape, x0, generator)


def drop_labels(label: Tensor, probability: float, null: int, generator: torch.Generator) -> Tensor:
    """Hide each label with this probability, independently of everything else.  [eq-label-dropout]

        label -> null with probability p,  label -> label with probability 1 - p

    Because the choice looks at nothing, the points under the null label are distributed like all the data.

    Args: label: (batch,) integers;  probability: in [0, 1];  null: the null label.  Returns: (batch,).
    Raises: ValueError if the probability is outside [0, 1], label is not of integers (batch,) in 0..null, or there is
    no generator.
    Source: Ho & Salimans 2022 (arXiv 2207.12598), algorithm 1.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
    check_shape("label", label, label.shape[:1])
    check_labels(label, null + 1)
    check_generator(generator)
    hidden = torch.rand(len(label), generator=generator, device=label.device) < probability
    return label.masked_fill(hidden, null)


def v_loss(
    network, schedule: Schedule, x0: Tensor, label: Tensor, label_dropout: float, generator: torch.Generator, null: int
) -> Tensor:
    """Mean square error of `v = alpha eps - sigma x0` at random times, with label dropout.  [eq-v-loss]

        E |network(alpha x0 + sigma eps, log_snr, label or null) - v|^2 / numbers in x0

    An error of v is an error of eps divided by alpha, so this is the loss in eps with the weight `1 / alpha^2`.
    For every `label_dropout` in (0, 1) it is smallest at `E[v | x_t, label]`, and at `E[v | x_t]` under the null label.
    [eq-dropout-optimum]

    Args: x0: (batch, *data);  label: (batch,);  label_dropout: in [0, 1];  null: the null label, `network.classes`
    (an argument because wrapped networks hide it).  Returns: a 0-dim tensor in the dtype of x0.
    Raises: ValueError if label_dropout is outside [0, 1], x0 is not of floats, label is not of integers (batch,) in
    0..null, or the network answers in another shape than x0.
    Source: Salimans & Ho 2022 (arXiv 2202.00512), for v; Ho & Salimans 2022 (arXiv 2207.12598), for the dropout.
    """
    return denoising_loss(network, schedule, x0, label, label_dropout, generator, null)


def denoising_loss(
    network,
    schedule: Schedule,
    x0: Tensor,
    label: Tensor,
    label_dropout: float,
    generator: torch.Generator,
    null: int,
    *,
    prediction: str = "v",
    weighting: str = "plain",
    teacher=None,
    only_hidden: bool = False,
) -> Tensor:
    """`v_loss` for a network that may predict v, eps or x0, in its own terms, and may have a teacher.

    What it is compared with was drawn, or is the answer of a teacher at the true label:  [eq-null-teacher]

        E |network(x_t, log_snr, label or null) - teacher(x_t, log_snr, label)|^2 / numbers in x0

    Given x_t, the label of an example is a draw from p_t(y | x_t). So under the null label this is smallest at the
    teacher's answers averaged over the labels, `sum_y p_t(y | x_t) teacher(x_t, log_snr, y)`; and where the teacher is
    right, that is right as well, `E[v | x_t] = sum_y p_t(y | x_t) E[v | x_t, y]` [eq-label-average], learned from a
    target without the noise of eps in it. Where the teacher errs, both answers inherit its error.

    Args: prediction: "v", "eps" or "x0", of network and teacher;  weighting: "plain", or "min_snr" for the factor of
    `min_snr_weight`;  teacher: a network of the same kind, asked without gradients, or None;  only_hidden: ask it only
    where the label is hidden, and let the others learn what was drawn: then the teacher may be the network's own
    running average.  The others, what is returned and what is raised: as in `v_loss`; and ValueError on another
    prediction or weighting.
    """
    for name, value, allowed in (("prediction", prediction, PREDICTIONS), ("weighting", weighting, WEIGHTINGS)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")
    check_shape("label", label, x0.shape[:1])
    t, eps = times_and_noise(x0, generator)
    seen = drop_labels(label, label_dropout, null, generator)
    alpha, sigma = (expand_as(c, x0) for c in (schedule.alpha(t), schedule.sigma(t)))
    x_t, log_snr = alpha * x0 + sigma * eps, schedule.log_snr(t)
    target = {"v": alpha * eps - sigma * x0, "eps": eps, "x0": x0}[prediction]
    if teacher is not None:
        taught = seen == null if only_hidden else torch.ones_like(seen, dtype=torch.bool)
        target = taught_target(teacher, target, taught, x_t, log_snr, label)
    answer = network(x_t, log_snr, seen)
    check_shape(f"network's answer {prediction}", answer, x0.shape)
    if weighting == "min_snr":
        root = expand_as(min_snr_weight(log_snr, prediction).sqrt(), x0)
        answer, target = root * answer, root * target
    return functional.mse_loss(answer.to(x0.dtype), target)


@torch.no_grad()
def taught_target(teacher, target: Tensor, taught: Tensor, x_t: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
    """`target`, and in the rows that are `taught`, booleans (batch,), the teacher's answer.

    Raises: ValueError if the teacher answers in another shape than it was asked.
    """
    if not taught.any():  # networks with convolutions take no empty batch
        return target
    answer = teacher(x_t[taught], log_snr[taught], label[taught])
    check_shape("teacher's answer", answer, x_t[taught].shape)
    return target.index_put((taught,), answer.to(target.dtype))


def min_snr_weight(log_snr: Tensor, prediction: str, cap: float = 5.0) -> Tensor:
    """The factor of a square error that makes its weight min(SNR, cap) when it is seen as one of x0.

        min(SNR, cap) times 1 for x0, 1 / (1 + SNR) for v, 1 / SNR for eps

    since an error of x0 is one of v times sigma, and one of eps times sigma / alpha; SNR = alpha^2 / sigma^2.

    Args: log_snr: of any shape;  prediction: "v", "eps" or "x0";  cap: positive.
    Raises: ValueError on another prediction.
    Source: Hang et al. 2023 (arXiv 2303.09556).
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {list(PREDICTIONS)}, got {prediction!r}")
    seen_as_x0 = {"v": torch.sigmoid(-log_snr), "eps": torch.exp(-log_snr), "x0": torch.ones_like(log_snr)}[prediction]
    return log_snr.exp().clamp(max=cap) * seen_as_x0
