"""A digit network that is drawn with in milliseconds: small, of random weights."""

from pathlib import Path

import torch

from difflesson.digits import checkpoints
from difflesson.digits.blueprint import Blueprint
from difflesson.digits.networks import DigitUNet

SMALL = {"widths": (8, 16), "embedding": 16}
ABOUT = {"log_snr_max": 20.0, "log_snr_min": -20.0}


def small() -> DigitUNet:
    """A network of 8x8 digits with random weights, as a loaded one."""
    network, generator = DigitUNet(**SMALL), torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=generator) / 8
    fresh = Blueprint("DigitUNet", SMALL, "v", "cosine", ABOUT, "embedded", 8).build()
    fresh.load_state_dict(network.state_dict())
    return fresh.requires_grad_(False)


def save_small(path: Path, data: str = "embedded") -> Path:
    """Its checkpoint, for the 8x8 digits or for MNIST's."""
    blueprint = Blueprint("DigitUNet", SMALL, "v", "cosine", ABOUT, data, 8 if data == "embedded" else 28)
    checkpoints.save(path, blueprint, small().state_dict(), {})
    return path
