"""Weighted points: how many of them are left, so to speak, after weighing."""

import torch
from torch import Tensor


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """How many equally weighted points would be worth as much: `(sum w)^2 / sum w^2`, between 1 and N.  [eq-ess-slope]

    Only the ratios of the weights matter, so a constant may be added to all logarithms.
    Args: log_weights: (N, ...), at least one finite in each column; minus infinity is a weight of zero.
    Returns: one number a column, shape (...).
    Raises: ValueError if there is no weight, a NaN or plus infinity, or a column has no finite one.
    Source: Kong, Liu & Wong 1994 (doi 10.1080/01621459.1994.10476469).
    """
    if log_weights.dim() < 1 or not log_weights.is_floating_point() or len(log_weights) < 1:
        raise ValueError(f"log_weights must be floats (N, ...), got {log_weights.dtype} {tuple(log_weights.shape)}")
    if bool((log_weights.isnan() | (log_weights == torch.inf)).any()):
        raise ValueError("log_weights must be below infinity, they contain NaN or plus infinity")
    if not bool(log_weights.isfinite().any(0).all()):
        raise ValueError("log_weights must have a finite one in every column, a column has none")
    return torch.exp(2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0))
