"""Guided digits from a trained network, in as few words as the experiments need."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from difflesson import guidance, kernels
from difflesson.denoiser import Denoiser, check_labels, network_denoiser, network_pair
from difflesson.guidance import Scale
from difflesson.kernels import Kernel
from difflesson.samplers import draw
from difflesson.schedule import Schedule

SAMPLERS: dict[str, Callable[[Denoiser, Schedule], Kernel]] = {
    "ddpm": kernels.ddpm,
    "ddim": kernels.ddim,
    "heun": kernels.heun,
    "dpmpp_2m": kernels.dpmpp_2m,
}


def guided_denoiser(
    network: nn.Module,
    label: int | Tensor,
    gamma: Scale,
    guide: nn.Module | None = None,
    dtype: torch.dtype | None = None,
) -> Denoiser:
    """A digit denoiser steered to a label by classifier-free guidance, or by a classifier if a `guide` is given.

    Args: network: carries the `schedule` it was trained under, as loaded ones do;  label: an integer or (batch,);
    gamma: guidance scale;  guide: a noise-aware classifier, which then steers the unconditional half of the network;
    dtype: of the network's arithmetic (bfloat16 on a GPU), None for float32.
    Raises: ValueError if a label is out of range, gamma is not finite, or the network carries no schedule.
    """
    schedule = schedule_of(network)
    if guide is None:
        return guidance.classifier_free(network_pair(network, schedule, label, dtype), gamma)
    return guidance.classifier_guided(network_denoiser(network, schedule, None, dtype), guide, schedule, label, gamma)


def schedule_of(network: nn.Module) -> Schedule:
    """The schedule that a network carries.  Raises: ValueError if it carries none: there is no safe guess."""
    if not isinstance(schedule := getattr(network, "schedule", None), Schedule):
        raise ValueError(f"network must carry its schedule, as one from checkpoints.load does, got {schedule!r}")
    return schedule


def digit_times(steps: int, schedule: Schedule) -> Tensor:
    """The times the digit samplers walk through: even in log-SNR from -9 to 8, then one step to the data.

    Below -9 the signal is less than 1.1 % of the noise, above 8 the noise is less than 1.9 % of the signal: nothing is
    decided outside. The spacing matters: with 15 DDPM steps, 99.2 % of 3,000 digits at gamma 1 were what was asked
    for, against 98.7 % with even steps in time.  Returns (steps + 1,), decreasing to 0.
    Raises: ValueError if steps < 2.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    log_snr = torch.linspace(-9.0, 8.0, steps, dtype=torch.float64)
    return torch.cat([schedule.time(log_snr), log_snr.new_zeros(1)])


def generate(
    network: nn.Module,
    labels: Tensor,
    gamma: Scale,
    *,
    seed: int = 0,
    steps: int = 16,
    sampler: str = "ddpm",
    guide: nn.Module | None = None,
    dtype: torch.dtype | None = None,
    batch: int = 256,
    size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw one digit for each label, (N, 1, size, size), roughly in [-1, 1], on the CPU.

    Drawn in batches, so memory does not grow with N.  Args: labels: (N,);  gamma, guide, dtype as in
    `guided_denoiser`;  seed: decides every random number;  steps: kernel steps, at least 2;  sampler: a name in
    SAMPLERS;  size: side of the images, by default the one the network was trained on, `network.size`.
    Raises: ValueError if the sampler is unknown, steps < 2, size is not a multiple of 4, labels are not (N,) with
    N >= 1, or an argument of `guided_denoiser` is not allowed;  FloatingPointError if a digit comes out with NaN or
    infinity in it.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {sorted(SAMPLERS)}, got {sampler!r}")
    schedule, size = schedule_of(network), network.size if size is None else size
    if size < 4 or size % 4:
        raise ValueError(f"size must be a multiple of 4, the network halves images twice, got {size}")
    if labels.dim() != 1 or len(labels) == 0:
        raise ValueError(f"labels must have shape (N,) with N >= 1, got {tuple(labels.shape)}")
    labels = check_labels(labels, network.classes)
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    times, images = digit_times(steps, schedule), []
    parts = labels.split(batch)
    for part in tqdm(parts, desc=f"gamma {gamma}", disable=None if progress else True, leave=False):
        kernel = SAMPLERS[sampler](guided_denoiser(network, part, gamma, guide, dtype), schedule)
        noise = torch.randn(len(part), 1, size, size, generator=generator, device=device)
        images.append(draw(kernel, noise, times, generator).cpu())
        if broken := int((~images[-1].isfinite()).flatten(1).any(1).sum()):
            raise FloatingPointError(
                f"{sampler} at gamma = {gamma} drew NaN or infinity in {broken} of {len(part)} digits: "
                "take a gamma nearer to 1, or another network"
            )
    return torch.cat(images)
