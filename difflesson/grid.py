"""The truth where there is no closed form: a density in the plane, known up to a constant, summed over a grid.

What guidance is said to sample is of this kind, `p(x) p(y | x)^gamma / Z` or `p(x) exp(gamma sim(x)) / Z`. In the plane
its normaliser, its moments and draws from it need nothing but a fine grid.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from difflesson.checks import check_shape
from difflesson.noise import standard_normal

BORDER = 1e-6  # the share of the mass that the outermost cells may have


class GridDensity:
    """`p(x) = exp(log_density(x)) / Z` on a box in the plane, in float64 on the CPU.

    The midpoint rule: for a smooth density that vanishes at the border of the box its error falls faster than any power
    of the cells' size, once they are smaller than the details; for one with jumps, like that size. Double `cells` to
    see.

    Args: log_density: (N, 2) -> (N,), -inf allowed;  low, high: corners of the box, a number for both axes or a pair;
    cells: how many along each axis, at least 3.
    Attributes: points: (cells^2, 2), the midpoints;  weights: (cells^2,), their shares, summing to one;
    log_normaliser: log Z, a float.
    Raises: ValueError if the box is empty, log_density is misshapen, NaN or +inf, or nowhere finite, or if the
    outermost cells hold more than a millionth of the mass: the box cuts the density off.
    """

    def __init__(self, log_density: Callable[[Tensor], Tensor], low, high, cells: int = 200):
        if cells < 3:  # of two, both are outermost
            raise ValueError(f"cells must be at least 3, got {cells}")
        low, high = (torch.as_tensor(corner, dtype=torch.float64).broadcast_to(2) for corner in (low, high))
        if not bool(((low < high) & low.isfinite() & high.isfinite()).all()):
            raise ValueError(f"low must be below high, both finite, got {low.tolist()} and {high.tolist()}")
        self.log_density, self.cell = log_density, (high - low) / cells
        middles = (torch.arange(cells, dtype=torch.float64) + 0.5)[:, None] * self.cell + low  # (cells, 2)
        self.points = torch.cartesian_prod(*middles.T)
        log = log_density(self.points)
        check_shape("log_density's answer", log, self.points.shape[:1])
        log = log.double()
        if bool(log.isnan().any()) or not bool(log.max().isfinite()):
            raise ValueError("log_density must be a number or -inf, and finite somewhere in the box")
        self.log_normaliser = float(log.logsumexp(0) + self.cell.log().sum())
        self.weights = log.softmax(0)
        inside = self.weights.view(cells, cells)[1:-1, 1:-1].sum()
        if bool(1 - inside > BORDER):
            raise ValueError(f"low and high must enclose the density, its outermost cells hold {float(1 - inside):.1e}")

    def __repr__(self) -> str:
        return f"GridDensity({len(self.points)} cells, log Z = {self.log_normaliser:.4f})"

    def log_prob(self, x: Tensor) -> Tensor:
        """`log p(x)`, (N, 2) -> (N,)."""
        return self.log_density(x) - self.log_normaliser

    def expectation(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """`E[f(x)]` for `f: (N, 2) -> (N, ...)`."""
        return torch.tensordot(self.weights, f(self.points), dims=1)

    @property
    def mean(self) -> Tensor:
        """Mean, (2,)."""
        return self.weights @ self.points

    @property
    def cov(self) -> Tensor:
        """Covariance, (2, 2)."""
        away = self.points - self.mean
        return (self.weights[:, None] * away).T @ away

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` points, (count, 2): a cell by its share, a place in it at random.

        Inside a cell the density is taken to be flat, which adds a twelfth of the squared cell to the variance.
        Raises: ValueError if count < 1 or there is no generator.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        standard_normal((0,), self.points, generator)  # says what is wrong where there is no generator
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        place = torch.rand(count, 2, generator=generator, dtype=torch.float64) - 0.5
        return self.points[which] + place * self.cell
