"""What one step with the exact mixture costs: nanoseconds a point, for three ways to write it.

    python benchmarks/mixture_speed.py [--points 1000000] [--components 8] [--threads 2] [--repeats 5]

The task is a DDIM step in the plane in float32, with full covariances: on one thread, on several with idle cores, and
on several while another program keeps one of the cores busy, which is how a laptop with a browser open is. All three
ways compute the same x0 and eps; the last columns show by how much they differ from float64. Nothing is asserted about
time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

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


@contextmanager
def one_core_busy():
    """Another process that computes without pause, as a browser's tab may; on Linux it is held to one core."""
    code = "import os\nif hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    process = subprocess.Popen([sys.executable, "-c", code + "while True: pass"])
    time.sleep(0.5)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def seconds(function, repeats: int) -> float:
    """The median of some runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(denoiser, schedule, x: Tensor, threads: int, repeats: int) -> float:
    """Nanoseconds a point of one DDIM step."""
    torch.set_num_threads(threads)
    step, t, s = ddim(denoiser, schedule), torch.tensor(0.3).double(), torch.tensor(0.28).double()
    with torch.no_grad():
        return 1e9 * seconds(lambda: step(x, t, s).sample(None), repeats) / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--components", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    schedule, exact = vp_linear(), random_mixture(args.components)
    single, t = exact.to(torch.float32), torch.tensor(0.3, dtype=torch.float64)
    x = 2 * torch.randn(args.points, 2, generator=torch.Generator().manual_seed(1))
    reference = exact.denoiser(schedule)(x[:10_000].double(), t)
    ways = {
        "difflesson: components first, chunks": single.denoiser(schedule),
        "points first, softmax over the last": points_first(single, schedule),
        "torch.distributions and autograd": by_autograd(single, schedule),
    }
    print(f"{args.points:,} points, {args.components} components, full covariances in the plane, float32,")
    print(f"torch {torch.__version__}, {os.cpu_count()} cores\n")
    many = f"{args.threads} threads"
    print(f"{'ns a point and DDIM step':38}{'1 thread':>10}{many:>11}{many + ', busy':>17}{'max error of x0, eps':>24}")
    for name, denoiser in ways.items():
        one, idle = (measure(denoiser, schedule, x, threads, args.repeats) for threads in (1, args.threads))
        with one_core_busy():
            busy = measure(denoiser, schedule, x[: args.points // 10], args.threads, args.repeats)
        ours = denoiser(x[:10_000], t)
        errors = [float((a - b).abs().max()) for a, b in zip(ours, reference, strict=True)]
        print(f"{name:38}{one:10.1f}{idle:11.1f}{busy:17.1f}{errors[0]:13.1e}{errors[1]:11.1e}", flush=True)
    print(f"\nbusy: another process computes on one of the cores meanwhile ({args.points // 10:,} points)")


if __name__ == "__main__":
    main()
