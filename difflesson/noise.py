"""Random numbers: from a generator that the caller gives, in the dtype and on the device of what they go into."""

import torch
from torch import Tensor


def standard_normal(shape, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of the dtype and device of `like`.  Raises: ValueError without a generator."""
    if generator is None:
        raise ValueError("generator must be a torch.Generator, random numbers are needed here; got None")
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
