"""Random numbers: from a generator that the caller gives, in the dtype and on the device of what they go into."""

import torch
from torch import Tensor


def check_generator(generator) -> None:
    """Raises: ValueError if it is no generator: None would silently mean the global one."""
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator must be a torch.Generator, random numbers are needed here; got {generator}")


def standard_normal(shape, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of the dtype and device of `like`.  Raises: ValueError without a generator."""
    check_generator(generator)
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
