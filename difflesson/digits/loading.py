"""A denoiser and the networks that help it draw, loaded by name and seen to fit each other."""

import torch
from torch import nn

from difflesson.digits import checkpoints
from difflesson.digits.networks import DigitUNet


def load_networks(
    network: str, guidance: str, unlabelled: str | None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, dict[str, nn.Module | None]]:
    """A denoiser, and its helpers, by the names they have in `sampling.generate`.

    Args: network: the name of a shipped denoiser, or a file;  guidance: "classifier-free", or "classifier", which needs
    the shipped guide;  unlabelled: likewise a denoiser, to answer without a label in place of the first, or None.
    Returns: the denoiser, and {"guide": its guide or None, "unlabelled": the other denoiser or None}.
    Raises: ValueError if the guidance is unknown, a network is of another kind, or the guide knows no such images;
    whether the two denoisers fit each other, `sampling.generate` sees before it draws.
    """
    if guidance not in ("classifier-free", "classifier"):
        raise ValueError(f'guidance must be "classifier-free" or "classifier", got {guidance!r}')
    denoiser = load_denoiser(network, device)
    other = None if unlabelled is None else load_denoiser(unlabelled, device, "unlabelled")
    guide = checkpoints.load("guide", device).network if guidance == "classifier" else None
    if guide is not None:
        check_size(network, denoiser, "guide", guide)
    return denoiser, {"guide": guide, "unlabelled": other}


def load_denoiser(name: str, device: torch.device | str = "cpu", argument: str = "network") -> nn.Module:
    """The denoiser of this name, of labels 0..9: one of sentences would take them for the first ten.

    Raises: ValueError if it is none, and blames the argument that is called so.
    """
    if type(denoiser := checkpoints.load(name, device).network) is not DigitUNet:
        raise ValueError(f"{argument} must be a denoiser of labels 0..9, {name} holds a {type(denoiser).__name__}")
    return denoiser


def check_size(name: str, denoiser: nn.Module, other_name: str, other: nn.Module) -> None:
    """Raises: ValueError if two networks are made for images of different sizes."""
    here, there = denoiser.size, other.size
    if here != there:
        raise ValueError(
            f"network must draw {there}x{there} digits, the {other_name} knows no others; {name} draws {here}x{here}"
        )
