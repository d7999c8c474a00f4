"""What a reverse kernel answers: the distribution of x_s, as a Gaussian of one variance or of a full covariance.

The exact step of a mixture, `mixture.ReverseStep`, is the third kind. All of them have a mean, a density and draws.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from difflesson.mixture import standard_normal


class Step(Protocol):
    """The distribution of x_s."""

    mean: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each point's step at x."""

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw x_s, shaped like the mean."""


@dataclass(frozen=True)
class Gaussian:
    """`N(mean, var I)`: mean (batch, *data), var a 0-dim tensor, at least 0."""

    mean: Tensor
    var: Tensor

    def tilted(self, g: Tensor) -> "Gaussian":
        """`N(mean, var I) exp(g . x)`, normalised again: `N(mean + var g, var I)`, with g (batch, *data).

        [eq-complete-square]
        """
        return Gaussian(self.mean + self.var * g, self.var)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at points of the plane or space: (..., N, d) -> (..., N). Needs `var > 0`."""
        squares = (x - self.mean).square().sum(-1) / self.var
        return -(squares + self.mean.shape[-1] * (2 * math.pi * self.var).log()) / 2

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw x_s.  Raises: ValueError if a generator is needed (`var > 0`) and there is none."""
        if self.var.device.type == "cpu" and self.var == 0:
            return self.mean
        return self.mean + self.var.sqrt() * standard_normal(self.mean.shape, self.mean, generator)


@dataclass(frozen=True)
class FullGaussian:
    """`N(mean, cov)` with a full covariance for each point: mean (N, d), cov (N, d, d)."""

    mean: Tensor
    cov: Tensor

    def tilted(self, g: Tensor, hessian: Tensor | None = None) -> "FullGaussian":
        """`N(mean, cov) exp(g . x)`, normalised again: `N(mean + cov g, cov)`, with g (N, d).  [eq-complete-square]

        With second derivatives H, (N, d, d), the exponent also has `(x - mean)^T H (x - mean) / 2`; then the
        covariance is `(cov^{-1} - H)^{-1}` throughout.  [eq-taylor-second]
        Raises: ValueError if `cov^{-1} - H` is not positive definite somewhere: the product has no finite mass.
        """
        cov = self.cov
        if hessian is not None:
            precision = torch.linalg.inv(cov) - hessian
            if not bool((torch.linalg.eigvalsh(precision) > 0).all()):
                raise ValueError("hessian must leave cov^-1 - hessian positive definite; take a shorter step")
            cov = torch.linalg.inv(precision)
        return FullGaussian(self.mean + (cov @ g[:, :, None])[:, :, 0], cov)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density: (..., N, d) -> (..., N).  Raises: torch.linalg.LinAlgError if a covariance is singular."""
        root = torch.linalg.cholesky(self.cov)  # not eigh: its derivative has poles where two eigenvalues meet
        white = torch.linalg.solve_triangular(root, (x - self.mean)[..., None], upper=False)[..., 0]
        scales = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -(white.square().sum(-1) + self.mean.shape[-1] * math.log(2 * math.pi)) / 2 - scales

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw x_s.  Raises: ValueError if there is no generator."""
        variances, axes = torch.linalg.eigh(self.cov)
        noise = standard_normal(self.mean.shape, self.mean, generator)[:, :, None]
        return self.mean + (axes * variances.clamp_min(0).sqrt()[:, None] @ noise)[:, :, 0]
