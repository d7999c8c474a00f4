"""A bound for models with a hidden cause z: exact where all is linear and Gaussian, and a small network in the plane.

A model draws z from `N(0, I)`, puts a point somewhere by z and adds noise. Its log-likelihood is an integral over z.
What its lower bound averages is the *log-ratio* `log p(x, z) - log q(z | x)`, for z drawn from a guess q of the cause.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difflesson.checks import check_shape
from difflesson.mixture import GaussianMixture
from difflesson.noise import standard_normal
from difflesson.steps import FullGaussian

LOG_TWO_PI = math.log(2 * math.pi)


def gaussian_kl(q: FullGaussian, p: FullGaussian) -> Tensor:
    """`KL(q || p)` of two Gaussians for each point, (N,), at least 0.  [eq-gaussian-kl]

        KL = (log(det C_p / det C_q) - d + tr(C_p^{-1} C_q) + (m_p - m_q)^T C_p^{-1} (m_p - m_q)) / 2

    Args: q, p: of the same shapes (N, d) and (N, d, d); a batch of one serves for all.
    Raises: ValueError if the dimensions differ;  torch.linalg.LinAlgError if a covariance is not positive definite.
    """
    if q.mean.shape[-1] != p.mean.shape[-1]:
        raise ValueError(f"q and p must have one dimension, got {q.mean.shape[-1]} and {p.mean.shape[-1]}")
    root_q, root_p = (torch.linalg.cholesky(one.cov) for one in (q, p))
    away = torch.linalg.solve_triangular(root_p, (q.mean - p.mean)[..., None], upper=False)
    ratio = torch.linalg.solve_triangular(root_p, root_q.expand(*away.shape[:-2], -1, -1), upper=False)
    logs = [root.diagonal(dim1=-2, dim2=-1).log().sum(-1) for root in (root_p, root_q)]
    squares = ratio.square().sum((-2, -1)) + away.square().sum((-2, -1))
    return logs[0] - logs[1] + (squares - q.mean.shape[-1]) / 2


def standard(like: FullGaussian) -> FullGaussian:
    """`N(0, I)`, the prior, as a batch of one, in the dimension and precision of another Gaussian."""
    dim, kind = like.mean.shape[-1], {"dtype": like.mean.dtype, "device": like.mean.device}
    return FullGaussian(torch.zeros(1, dim, **kind), torch.eye(dim, **kind)[None])


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """`z` from `N(0, I)`, `x` given z from `N(W z + b, s^2 I)`: W (d, k), b (d,), s a positive number.

    Raises: ValueError if the shapes do not fit or s is not positive.
    """

    W: Tensor
    b: Tensor
    s: float

    def __post_init__(self):
        check_shape("W", self.W, (len(self.b), *self.W.shape[-1:]))
        check_shape("b", self.b, (len(self.b),))
        if not 0 < self.s < math.inf:
            raise ValueError(f"s must be a positive number, got {self.s}")

    @property
    def cov(self) -> Tensor:
        """Covariance of x, `W W^T + s^2 I`, (d, d)."""
        return self.W @ self.W.T + self.s**2 * torch.eye(len(self.b), dtype=self.W.dtype, device=self.W.device)

    def log_prob(self, x: Tensor) -> Tensor:
        """`log p(x)` of points (N, d), (N,): x is Gaussian with mean b and covariance `W W^T + s^2 I`."""
        return FullGaussian(self.b.expand_as(x), self.cov.expand(len(x), -1, -1)).log_prob(x)

    def posterior(self, x: Tensor) -> FullGaussian:
        """`p(z | x)` of points (N, d): a Gaussian whose covariance is the same for all of them.  [eq-linear-posterior]

            C = (I + W^T W / s^2)^{-1},     mean = C W^T (x - b) / s^2

        Source: Bishop 2006, Pattern Recognition and Machine Learning, eq. 2.116.
        """
        identity = torch.eye(self.W.shape[1], dtype=self.W.dtype, device=self.W.device)
        cov = torch.linalg.inv(identity + self.W.T @ self.W / self.s**2)
        return FullGaussian((x - self.b) @ self.W @ cov / self.s**2, cov.expand(len(x), -1, -1))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """`log p(x, z)` of points (N, d) and causes (..., N, k), (..., N)."""
        return log_joint(x, z, z @ self.W.T + self.b, self.s)

    def reconstruction(self, x: Tensor, q: FullGaussian) -> Tensor:
        """`E_q[log p(x | z)]` of points (N, d), (N,), in closed form: the noise's density, averaged over the guess."""
        off = (x - self.b - q.mean @ self.W.T).square().sum(1)
        spread = (self.W @ q.cov @ self.W.T).diagonal(dim1=1, dim2=2).sum(1)
        return -(off + spread) / (2 * self.s**2) - len(self.b) * (LOG_TWO_PI / 2 + math.log(self.s))

    def elbo(self, x: Tensor, q: FullGaussian) -> Tensor:
        """The bound of `log p(x)` for any Gaussian guess `q(z | x)`, (N,), exactly.  [eq-elbo-terms]

        ELBO = E_q[log p(x | z)] - KL(q(z | x) || p(z))
        """
        return self.reconstruction(x, q) - gaussian_kl(q, standard(q))


def likeliest_linear(cov: Tensor, s: float, latent: int) -> Tensor:
    """The W (d, k) that makes data of this covariance likeliest, the noise's deviation s being given.  [eq-collapse]

        w_j = sqrt(lambda_j - s^2) u_j

    for the k largest eigenvalues `lambda_j` of cov and their axes `u_j`, and 0 where `lambda_j` is below `s^2`: a
    direction in which the data vary less than the noise gets no latent.
    Source: Tipping & Bishop 1999, J. R. Stat. Soc. B 61, appendix A; Lucas et al. 2019
    (arXiv 1911.02469).

    Args: cov: (d, d), symmetric;  latent: k, from 0 to d.  Raises: ValueError otherwise.
    """
    if not 0 <= latent <= len(cov):
        raise ValueError(f"latent must be at most the dimension {len(cov)} and at least 0, got {latent}")
    values, axes = torch.linalg.eigh(cov)
    values, axes = values.flip(0)[:latent], axes.flip(1)[:, :latent]
    return axes * (values - s**2).clamp_min(0).sqrt()


def log_joint(x: Tensor, z: Tensor, place: Tensor, s: float | Tensor) -> Tensor:
    """`log N(z; 0, I) + log N(x; place, s^2 I)`: x (N, d), z (..., N, k), place (..., N, d), s one number; (..., N)."""
    s = torch.as_tensor(s, dtype=z.dtype)
    prior = -(z.square().sum(-1) + z.shape[-1] * LOG_TWO_PI) / 2
    return prior - (x - place).square().sum(-1) / (2 * s**2) - x.shape[-1] * (LOG_TWO_PI / 2 + s.log())


def log_guess(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """`log q(z | x)` of a Gaussian with a deviation for each coordinate: all (..., k), the answer (...)."""
    return -(((z - mean) / log_std.exp()).square() / 2 + log_std + LOG_TWO_PI / 2).sum(-1)


def log_ratio(joint: Callable, z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """`log p(x, z) - log q(z | x)`, what the bound averages over draws z of the guess q.  [eq-elbo-split]

    Args: joint: z (..., N, k) -> `log p(x, z)` (..., N);  mean, log_std: of q, (N, k).
    """
    return joint(z) - log_guess(z, mean, log_std)


def held(joint: Callable, z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """The log-ratio with mean and log_std held fixed inside `log q`: its slope along z alone.

    The slope that is left out averages to zero.  Source: Roeder et al. 2017 (arXiv 1703.09194).
    """
    return joint(z) - log_guess(z, mean.detach(), log_std.detach())


def pathwise(ratio: Callable, mean: Tensor, log_std: Tensor, eps: Tensor) -> Tensor:
    """The slope of what is averaged, the draw `mean + std eps` moving too: for each draw, by mean, then by log_std.

    Its average over eps is the gradient of the average; (M, N, 2 k).  [eq-two-gradients]

    Args: ratio: (z (M, N, k), mean, log_std) -> (M, N), differentiable;  mean, log_std: (N, k);  eps: (M, N, k)
    standard normal.  Raises: ValueError on other shapes.
    """
    check_shape("log_std", log_std, mean.shape)
    check_shape("eps", eps, (*eps.shape[:1], *mean.shape))
    with torch.enable_grad():
        leaves = [part.detach().expand_as(eps).clone().requires_grad_() for part in (mean, log_std)]
        values = ratio(leaves[0] + leaves[1].exp() * eps, *leaves)
        return torch.cat(torch.autograd.grad(values.sum(), leaves), -1)


def score_function(
    ratio: Callable, mean: Tensor, log_std: Tensor, eps: Tensor, baseline: float | Tensor = 0.0
) -> Tensor:
    """What is averaged, less a baseline, times the slope of `log q(z | x)` at the drawn z: for each draw, (M, N, 2 k).

    For the log-ratio, its average over eps is the gradient of the bound, whatever the baseline; nothing but q is
    differentiated.  [eq-two-gradients]  Source: Williams 1992, Machine Learning 8.

    Args: as of `pathwise`, but ratio need not be differentiable;  baseline: a number or (N,).
    Raises: ValueError on other shapes.
    """
    check_shape("log_std", log_std, mean.shape)
    check_shape("eps", eps, (*eps.shape[:1], *mean.shape))
    worth = ratio(mean + log_std.exp() * eps, mean, log_std) - baseline  # (M, N)
    return worth[..., None] * torch.cat([eps / log_std.exp(), eps**2 - 1], -1)


class VAE(nn.Module):
    """A cause of `latent` numbers, a decoder to the plane with one learned noise, an encoder that guesses the cause.

    Args: noise: the decoder's deviation at the start of training.
    Raises: ValueError if latent or width is less than 1, or noise is not positive.
    """

    def __init__(self, latent: int = 1, width: int = 64, noise: float = 0.2):
        super().__init__()
        if not 0 < noise < math.inf:
            raise ValueError(f"noise must be a positive number, got {noise}")
        for name, value in (("latent", latent), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

        def network(inside: int, outside: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(inside, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outside)
            )

        self.encoder, self.decoder = network(2, 2 * latent), network(latent, 2)
        self.log_s = nn.Parameter(torch.tensor(math.log(noise)))

    def guess(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log of the deviation of `q(z | x)`, both (N, k)."""
        mean, log_std = self.encoder(x).chunk(2, dim=-1)
        return mean, log_std.clamp(-6, 3)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """`log p(x, z)` of points (N, 2) and causes (..., N, k), (..., N)."""
        return log_joint(x, z, self.decoder(z), self.log_s.exp())

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Points (count, 2): a cause, its place, the noise.  Raises: ValueError without a generator."""
        first = self.decoder[0]
        z = standard_normal((count, first.in_features), first.weight, generator)
        place = self.decoder(z)
        return place + self.log_s.exp() * standard_normal(place.shape, place, generator)


def train_vae(
    mixture: GaussianMixture, steps: int = 2000, batch: int = 256, seed: int = 0, keep: tuple[int, ...] = (), **shape
) -> tuple[VAE, dict[int, dict[str, Tensor]]]:
    """Train a `VAE` on fresh samples of a mixture in the plane: one draw a point, Adam, the rate falling to 0.

    Args: keep: steps before which the weights are copied;  seed: decides all randomness, the global generator is left
    as it was;  shape: latent, width and noise of the `VAE`.
    Returns: the network in float64, frozen, and the kept weights.
    Raises: ValueError if the mixture is not in the plane, or steps or batch is less than 1.
    """
    for name, value in (("steps", steps), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if mixture.dim != 2:
        raise ValueError(f"mixture must be in the plane (2 dimensions), got {mixture.dim}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed accelerators as well
        vae = VAE(**shape).float()
    generator, kept = torch.Generator().manual_seed(seed), {}
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-3, betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        if step in keep:
            kept[step] = {name: value.clone().double() for name, value in vae.state_dict().items()}
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 + math.cos(math.pi * step / steps)) / 2
        x = mixture.sample(batch, generator)[0].float()
        mean, log_std = vae.guess(x)
        z = mean + log_std.exp() * standard_normal(mean.shape, mean, generator)
        loss = -(vae.log_joint(x, z) - log_guess(z, mean, log_std)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vae.double().requires_grad_(False).eval(), kept
