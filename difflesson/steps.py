"""What a reverse kernel answers: the distribution of x_s, as one of three kinds with a mean, a density and draws.

A Gaussian of one variance, a Gaussian of a full covariance, and the exact step of a mixture, a mixture itself.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from difflesson.checks import check_shape, holds, shown
from difflesson.chunks import one_thread
from difflesson.noise import standard_normal

LOG_TWO_PI = math.log(2 * math.pi)


def check_density(var: Tensor, x: Tensor, mean: Tensor) -> None:
    """Whether a step has a density at x: var, on the CPU, above 0, and x of shape (..., N, *data) for mean (N, *data).

    A batch of 1 serves for all points.  Raises: ValueError otherwise.
    """
    if var.device.type == "cpu" and not bool((var > 0).all()):
        raise ValueError(f"var must be above 0, a step without noise has no density; got {shown(var)}")
    if x.is_complex():
        raise ValueError(f"x must be real, got {x.dtype}")
    if x.shape[-mean.dim() :] not in (mean.shape, (1, *mean.shape[1:])):
        raise ValueError(f"x must end in the mean's shape, {tuple(mean.shape)}, got {tuple(x.shape)}")


class Step(Protocol):
    """The distribution of x_s."""

    mean: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each point's step at x."""

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw x_s, shaped like the mean."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """`N(mean, var I)`: mean (batch, *data), var a 0-dim tensor, at least 0."""

    mean: Tensor
    var: Tensor

    def tilted(self, g: Tensor) -> "Gaussian":
        """`N(mean, var I) exp(g . x)`, normalised again: `N(mean + var g, var I)`, with g (batch, *data).

        [eq-complete-square]  Raises: ValueError if g has another shape.
        """
        check_shape("g", g, self.mean.shape)
        return Gaussian(self.mean + self.var * g, self.var)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each point's step: (..., batch, *data) -> (..., batch).

        A batch of 1 serves for all points.
        Raises: ValueError if x does not end in the shape of the mean otherwise, or var is 0 (on the CPU).
        """
        check_density(self.var, x, self.mean)
        squares = (x - self.mean).square().flatten(x.dim() - self.mean.dim() + 1).sum(-1) / self.var
        return -(squares + math.prod(self.mean.shape[1:]) * (2 * math.pi * self.var).log()) / 2

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw x_s.  Raises: ValueError if a generator is needed (`var > 0`) and there is none."""
        if self.var.device.type == "cpu" and self.var == 0:
            return self.mean
        with one_thread():
            return self.mean + self.var.sqrt() * standard_normal(self.mean.shape, self.mean, generator)


@dataclass(frozen=True, eq=False)
class FullGaussian:
    """`N(mean, cov)` with a full covariance for each point: mean (N, d), cov (N, d, d)."""

    mean: Tensor
    cov: Tensor

    def tilted(self, g: Tensor, curvature: Tensor | None = None) -> "FullGaussian":
        """`N(mean, cov) exp(g . x)`, normalised again: `N(mean + cov g, cov)`, with g (N, d).  [eq-complete-square]

        With second derivatives H, (N, d, d), the exponent also has `(x - mean)^T H (x - mean) / 2`; then the
        covariance is `(cov^{-1} - H)^{-1}` throughout.  [eq-taylor-second]
        Raises: ValueError if `cov^{-1} - H` is not positive definite somewhere: the product has no finite mass; or if
        g or H has another shape.
        """
        check_shape("g", g, self.mean.shape)
        cov = self.cov
        if curvature is not None:
            check_shape("curvature", curvature, cov.shape)
            precision = torch.linalg.inv(cov) - curvature
            if not holds(torch.linalg.eigvalsh(precision) > 0):
                raise ValueError("curvature must leave cov^-1 - curvature positive definite; take a shorter step")
            cov = torch.linalg.inv(precision)
        return FullGaussian(self.mean + (cov @ g[:, :, None])[:, :, 0], cov)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density: (..., N, d) -> (..., N).

        Raises: torch.linalg.LinAlgError if a covariance is singular; ValueError if a variance in it is not above 0 (on
        the CPU), or x does not end in the shape of the mean or of one point.
        """
        check_density(self.cov.diagonal(dim1=-2, dim2=-1), x, self.mean)
        root = torch.linalg.cholesky(self.cov)  # not eigh: its derivative has poles where two eigenvalues meet
        white = torch.linalg.solve_triangular(root, (x - self.mean)[..., None], upper=False)[..., 0]
        scales = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -(white.square().sum(-1) + self.mean.shape[-1] * math.log(2 * math.pi)) / 2 - scales

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw x_s.  Raises: ValueError if there is no generator."""
        variances, axes = torch.linalg.eigh(self.cov)
        noise = standard_normal(self.mean.shape, self.mean, generator)[:, :, None]
        return self.mean + (axes * variances.clamp_min(0).sqrt()[:, None] @ noise)[:, :, 0]


@dataclass(frozen=True, eq=False)
class ReverseStep:
    """A mixture for each of N points: log_weights (K, N), means (K, N, d), variances (K, d) along axes (K, d, d)."""

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of each point's mixture, (N, d)."""
        return torch.einsum("kn,kne->ne", self.log_weights.exp(), self.means)

    @property
    def cov(self) -> Tensor:
        """Covariance of each point's mixture, (N, d, d)."""
        shares, deviations = self.log_weights.exp(), self.means - self.mean
        within = (self.axes * self.variances[:, None]) @ self.axes.mT  # (K, d, d)
        between = torch.einsum("kn,kne,knf->nef", shares, deviations, deviations)
        return between + torch.einsum("kn,kef->nef", shares, within)

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density of each point's mixture at `y`: (..., N, d) -> (..., N).

        Raises: ValueError if a variance is 0 (on the CPU), or y does not end in the shape of the mean or of
        one point.
        """
        check_density(self.variances, y, self.means[0])
        z = torch.einsum("kde,...kne->...knd", self.axes.mT, y[..., None, :, :] - self.means)
        z = z / self.variances.sqrt()[:, None]
        log_constant = -(self.variances.log() + LOG_TWO_PI).sum(1) / 2  # (K,)
        return (self.log_weights + log_constant[:, None] - z.square().sum(-1) / 2).logsumexp(-2)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw one point from each mixture, (N, d).  Raises: ValueError without a generator."""
        noise = standard_normal(self.means.shape[1:], self.means, generator)
        which = torch.multinomial(self.log_weights.exp().T, 1, generator=generator)[:, 0]  # (N,)
        spread = (self.axes * self.variances.sqrt()[:, None])[which]  # (N, d, d)
        return self.means[which, torch.arange(len(which), device=which.device)] + (spread @ noise[:, :, None])[:, :, 0]
