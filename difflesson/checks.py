"""Shapes are compared where tensors, and the answers of functions, come in from outside.

Torch stretches an axis of length one, and counts axes from the last: (batch, 1) or (batch,) beside (batch, d) would be
combined without a word, the second point with coordinate where batch is d. So every such place asks `check_shape`.

Values are looked at on the CPU alone. On an accelerator a look makes the host wait until the device has come so far, in
every step of a sampling loop; there NaN or a label too large is not an error but shows in what comes out.
"""

import torch
from torch import Tensor


def holds(condition: Tensor) -> bool:
    """Whether truth values are all true; those on an accelerator are not looked at, and count as true."""
    return condition.device.type != "cpu" or bool(condition.all())


def shown(values: Tensor) -> str:
    """Numbers as an error message says them: all of a few, of many the ends and how many there are."""
    if values.numel() <= 8:
        return str(values.tolist())
    return f"{values.numel()} values from {float(values.min()):.6g} to {float(values.max()):.6g}"


def as_tensor(name: str, value, allowed: str, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.as_tensor` for a caller's numbers.  Raises: ValueError that names the argument if value is none."""
    try:
        return torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be {allowed}, got {value!r}") from error


def check_share(name: str, value: float) -> None:
    """Raises: ValueError that names the argument unless value lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def check_shape(name: str, value, *allowed: tuple[int, ...]) -> None:
    """Compare the shape of a tensor or a number, whose shape is (), with those allowed.

    Raises: ValueError that names the argument, what is allowed and what was given; also for complex numbers and for a
    tensor of truth values.
    """
    if isinstance(value, Tensor):
        shape = value.shape
        if value.dtype.is_complex or value.dtype == torch.bool:
            raise ValueError(f"{name} must be real numbers, got {value.dtype}")
    else:
        shape = () if isinstance(value, int | float) else getattr(value, "shape", None)
    if shape not in allowed:
        wanted = " or ".join(f"have shape {tuple(one)}" if one else "be one number" for one in allowed)
        got = f"{type(value).__name__}" if shape is None else f"{tuple(shape)}"
        raise ValueError(f"{name} must {wanted}, got {got}")
