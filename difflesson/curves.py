"""Data on a thin curve: as near as a mixture in the plane comes to pictures, which fill hardly any of their space."""

import math

import torch

from difflesson.mixture import GaussianMixture


def two_arcs(mass: float = 0.8, width: float = 0.03, parts: int = 24) -> GaussianMixture:
    """Two thin arcs in the plane, in float64: a long one, class 0, and a short one in its opening, class 1.

    Each is a string of narrow ellipses, the last of which has three times the weight of the first.

    Args: mass: of the long arc, in (0, 1);  width: standard deviation across the curve, positive;  parts: ellipses of
    the long arc, at least 4, half as many of the short one.  Raises: ValueError if one of them is not so.
    """
    if not 0 < mass < 1 or not 0 < width < math.inf or parts < 4:
        raise ValueError(f"0 < mass < 1, width > 0 and parts >= 4 must hold, got mass={mass}, {width=}, {parts=}")
    means, covs, weights, labels = [], [], [], []
    arcs = ((mass, (-0.1, -0.1), 1.7, 30, 250, parts), (1 - mass, (0.6, -0.6), 0.8, -140, 50, parts // 2))
    for label, (share, centre, radius, start, end, count) in enumerate(arcs):
        edges = torch.linspace(math.radians(start), math.radians(end), count + 1, dtype=torch.float64)
        angle = (edges[1:] + edges[:-1]) / 2
        out = torch.stack([angle.cos(), angle.sin()], 1)  # (count, 2), across the curve
        along = torch.stack([-angle.sin(), angle.cos()], 1)
        half = radius * (edges[1] - edges[0]) / 2  # neighbours overlap at one standard deviation
        means.append(torch.tensor(centre, dtype=torch.float64) + radius * out)
        covs.append(width**2 * out[:, :, None] * out[:, None] + half**2 * along[:, :, None] * along[:, None])
        growing = torch.linspace(1, 3, count, dtype=torch.float64)
        weights.append(share * growing / growing.sum())
        labels += [label] * count
    return GaussianMixture(torch.cat(weights), torch.cat(means), torch.cat(covs), torch.tensor(labels))
