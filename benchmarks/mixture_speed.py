"""What one step with the exact mixture costs: nanoseconds a point, for three ways to write it.

    python benchmarks/mixture_speed.py [--points 1000000] [--components 8] [--threads 2] [--repeats 3]

The task is a DDIM step in the plane in float32, with full covariances. All three ways compute the same x0 and
eps; the last columns show by how much they differ from float64. Nothing is asserted about time.
"""

import argparse
import time

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from difflesson.denoiser import Prediction
from difflesson.kernels import ddim
from difflesson.mixture import GaussianMixture
from difflesson.schedule import vp_linear


def random_mixture(components: int, dim: int = 2) -> GaussianMixture:
    """A mixture with full covariances, in float64."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(components, dim, dim, generator=generator, dtype=torch.float64)
    means = 3 * torch.randn(components, dim, generator=generator, dtype=torch.float64)
    covs = 0.2 * root @ root.mT + 0.05 * torch.eye(dim, dtype=torch.float64)
    return GaussianMixture(torch.full((components,), 1 / components), means, covs)


def points_first(mixture: GaussianMixture, schedule):
    """The layout one writes first: (points, components, dim), softmax over the last but one axis."""

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        noisy = mixture.noised(alpha, sigma)
        precision = torch.linalg.inv(noisy.covs)  # (K, d, d)
        residual = x[:, None] - noisy.means  # (N, K, d)
        pulled = torch.einsum("kde,nke->nkd", precision, residual)  # (N, K, d)
        log = noisy.weights.log() + precision.logdet() / 2 - (residual * pulled).sum(-1) / 2  # (N, K)
        score = -(log.softmax(-1)[:, :, None] * pulled).sum(1)  # (N, d)
        return Prediction.from_score(x, score, alpha, sigma)

    return denoise


def by_autograd(mixture: GaussianMixture, schedule):
    """The density by torch.distributions, its score by autograd, the denoiser by Tweedie's formula."""

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        noisy = mixture.noised(alpha, sigma)
        parts = MultivariateNormal(noisy.means, noisy.covs)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            log_prob = MixtureSameFamily(Categorical(noisy.weights), parts).log_prob(leaf).sum()
            score = torch.autograd.grad(log_prob, leaf)[0]
        return Prediction.from_score(x, score, alpha, sigma)

    return denoise


def seconds(function, repeats: int) -> float:
    """The fastest of some runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--components", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    schedule, exact = vp_linear(), random_mixture(args.components)
    single = exact.to(torch.float32)
    t, s = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.28, dtype=torch.float64)
    x = 2 * torch.randn(args.points, 2, generator=torch.Generator().manual_seed(1))
    reference = exact.denoiser(schedule)(x[:10_000].double(), t)

    print(f"{args.points:,} points, {args.components} components, full covariances in the plane, float32,")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(f"{'ns a point and step':38}{'denoiser':>10}{'DDIM step':>11}{'max error of x0, eps':>24}")
    ways = {
        "difflesson: components first, chunked": single.denoiser(schedule),
        "points first, softmax over the last": points_first(single, schedule),
        "torch.distributions and autograd": by_autograd(single, schedule),
    }
    for name, denoiser in ways.items():
        step = ddim(denoiser, schedule)
        with torch.no_grad():
            alone = seconds(lambda denoiser=denoiser: denoiser(x, t), args.repeats)
            whole = seconds(lambda step=step: step(x, t, s).sample(None), args.repeats)
            ours = denoiser(x[:10_000], t)
        errors = [float((a - b).abs().max()) for a, b in zip(ours, reference, strict=True)]
        print(f"{name:38}{1e9 * alone / args.points:10.1f}{1e9 * whole / args.points:11.1f}"
              f"{errors[0]:13.1e}{errors[1]:11.1e}")


if __name__ == "__main__":
    main()
