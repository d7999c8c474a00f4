"""The mathematics of the interactive pages, run by Node on cases that the package answers: the same numbers.

And mistakes planted in the JavaScript are noticed.
"""

import json
import math
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from difflesson import divergence, guidance, interactive, kernels
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.plane import four_blobs
from difflesson.samplers import time_grid
from difflesson.schedule import from_betas, vp_linear
from difflesson.steps import FullGaussian, Gaussian

MODULES = interactive.FOLDER
RUNNER = Path(__file__).with_name("run_cases.mjs")
MISTAKES = tomllib.loads(Path(__file__).with_name("mistakes_in_javascript.toml").read_text(encoding="utf-8"))["mistake"]
POINTS, STEPS = 5, 8
# What is summed over a grid or along a ray in one language only: absolute error. All else agrees to 1e-9 of its size.
LOOSE = {name: 1e-6 for name in ("target_mean", "target_spread", "target_mass", "later_mean", "later_spread")}
LOOSE |= {"later_mass": 1e-5, "levels": 0.01, "drawn_mean": 0.06, "drawn_spread": 0.06, "noise": 0.03, "off": 0.2}


def random_mixture(random: np.random.Generator) -> GaussianMixture:
    """Two to five components of unequal weights, full covariances, two classes."""
    count = int(random.integers(2, 6))
    root = random.normal(size=(count, 2, 2)) * 0.6
    covs = root @ root.transpose(0, 2, 1) + 0.12 * np.eye(2)
    weights = random.dirichlet(np.full(count, 2.0)) * 0.9 + 0.1 / count
    means = torch.from_numpy(random.normal(size=(count, 2)) * 1.5)
    return GaussianMixture(weights, means, covs, [0, 1, *random.integers(0, 2, count - 2)])


def flat(x: torch.Tensor) -> list[float]:
    return x.flatten().tolist()


def case(mixture: GaussianMixture, seed: int) -> tuple[dict, dict]:
    """What the modules are asked, and what the package answers."""
    random = np.random.default_rng([seed, 7])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    schedule, named = (
        (vp_linear(0.2, 17.0), ["vp_linear", 0.2, 17.0]) if seed % 2
        else (from_betas(betas), ["from_betas", flat(betas)])
    )  # fmt: skip
    t, label = float(random.uniform(0.15, 0.9)), int(random.integers(0, 2))
    s = t * float(random.uniform(0.3, 0.97))
    gamma, rho = float(random.uniform(0, 5)), float(random.uniform(0.5, 2))
    x = torch.from_numpy(random.normal(size=(POINTS, 2)) * 1.5)
    x[-1] *= 20  # far away
    noise = torch.from_numpy(random.normal(size=(STEPS, POINTS, 2)))
    deviation = mixture.variances.amax(1).sqrt()[:, None]
    low, high = (mixture.means - 7 * deviation).amin(0), (mixture.means + 7 * deviation).amax(0)
    asked = {
        "weights": flat(mixture.weights), "means": mixture.means.tolist(), "covs": mixture.covs.tolist(),
        "labels": list(mixture.labels), "x": flat(x), "noise": [flat(part) for part in noise], "label": label,
        "gamma": gamma, "rho": rho, "t": t, "s": s, "schedule": named, "box": [low.tolist(), high.tolist()],
    }  # fmt: skip
    wanted = of_the_mixture(mixture, schedule, x, t, s, label)
    wanted |= of_kernels(mixture, schedule, x, t, s, label, gamma, rho)
    wanted |= of_runs(mixture, schedule, x, noise, label, gamma, rho)
    wanted |= of_the_target(mixture, schedule, low, high, t, label, gamma)
    wanted["noise"] = [0, 0, 1, 1]
    ends = np.array(wanted["run_ddim"]).reshape(-1, 2)
    shadows = [wasserstein_distance(x.numpy() @ ray, ends @ ray) for ray in rays()]
    return asked, wanted | {"sliced": float(np.mean(shadows))}


def rays() -> list[np.ndarray]:
    return [np.array([math.cos(math.pi * d / 8), math.sin(math.pi * d / 8)]) for d in range(8)]


def of_the_mixture(mixture, schedule, x, t, s, label) -> dict:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    noisy = mixture.noised(alpha, sigma)
    guess = mixture.denoiser(schedule, label)(x, t)
    mean = mixture.weights @ mixture.means
    away = mixture.means - mean
    between = torch.einsum("k,ki,kj->ij", mixture.weights, away, away)
    return {
        "alpha": [float(alpha)], "sigma": [float(sigma)], "beta": [float(schedule.beta(t))],
        "transition": [float(a) for a in schedule.transition(t, s)],
        "log_prob": flat(noisy.log_prob(x)), "score": flat(noisy.score(x)), "hessian": flat(noisy.hessian(x[:1])),
        "class_log_prob": flat(noisy.class_log_prob(x, label)), "class_gradient": flat(noisy.class_gradient(x, label)),
        "class_score": flat(noisy.given(label).score(x)), "x0": flat(guess.x0), "eps": flat(guess.eps),
        "mean": flat(mean), "cov": flat(between + torch.tensordot(mixture.weights, mixture.covs, 1)),
    }  # fmt: skip


def of_kernels(mixture, schedule, x, t, s, label, gamma, rho) -> dict:
    guided = guidance.classifier_free(mixture.pair(schedule, label), gamma)

    def grad(x, t):
        return mixture.noised(schedule.alpha(t), schedule.sigma(t)).class_gradient(x, label)

    def patched(x, t, s):
        step, (alpha_ts, sigma_ts) = free["large"](x, t, s), schedule.transition(t, s)
        return Gaussian(step.mean + gamma * sigma_ts**2 / alpha_ts * grad(x, t), step.var)

    free = {v: kernels.ddpm(mixture.denoiser(schedule), schedule, v) for v in ("small", "large")}
    shifted = {v: kernels.shift(kernel, grad, gamma) for v, kernel in free.items()}
    steps = {"ddim": kernels.ddim(guided, schedule), "sde": kernels.reverse_sde(guided, schedule, rho)}
    steps |= {"patched": patched} | {v: kernels.ddpm(guided, schedule, v) for v in ("small", "large")}
    steps |= {f"shifted_{v}": kernel for v, kernel in shifted.items()}
    found, zero = {}, torch.zeros((), dtype=torch.float64)
    for name, kernel in steps.items():
        step, last = kernel(x, t, s), kernel(x, t, zero)
        found |= {f"{name}_mean": flat(step.mean), f"{name}_var": [float(step.var)]}
        if name != "patched":  # written for this test, not for the step to the data
            found |= {f"{name}_last": flat(last.mean), f"{name}_last_var": [float(last.var)]}
    for name, told in (("free", None), ("told", label)):
        truth = kernels.exact(mixture, schedule, told)(x[:1], t, s)
        found |= {f"{name}_mean": flat(truth.mean), f"{name}_cov": flat(truth.cov)}
        found[f"{name}_log_prob"] = flat(truth.log_prob(x[:, None]))
        best = divergence.closest_gaussian(truth)
        found[f"{name}_kl_moments"] = flat(divergence.kl(truth, FullGaussian(best.mean, best.cov)))
        for v, kernel in shifted.items():
            found[f"{name}_kl_{v}"] = flat(divergence.kl(truth, kernel(x[:1], t, s)))
    return found


def of_runs(mixture, schedule, x, noise, label, gamma, rho) -> dict:
    guided = guidance.classifier_free(mixture.pair(schedule, label), gamma)
    solvers = {"ddim": kernels.ddim(guided, schedule), "ddpm": kernels.ddpm(guided, schedule)}
    solvers["sde"] = kernels.reverse_sde(guided, schedule, rho)
    found, times = {}, time_grid(STEPS)
    for name, kernel in solvers.items():
        state = x
        for t, s, drawn in zip(times[:-1], times[1:], noise, strict=True):
            step = kernel(state, t, s)
            state = step.mean + step.var.sqrt() * drawn
        found[f"run_{name}"] = flat(state)
    return found


def of_the_target(mixture, schedule, low, high, t, label, gamma) -> dict:
    """The story and the story with noise on it, on a grid that is finer than the page's."""

    def told(x):
        return mixture.log_prob(x) + gamma * mixture.class_log_prob(x, label)

    def sure_of(mixture):
        return lambda x: mixture.class_log_prob(x, label).exp()

    target = GridDensity(told, low, high, cells=160)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    noisy, (z, shares) = mixture.noised(alpha, sigma), divergence.hermite(12, 2)
    heavy = target.weights > 1e-9
    spots = (alpha * target.points[heavy, None] + sigma * z).reshape(-1, 2)
    later = (target.weights[heavy, None] * shares).flatten() @ sure_of(noisy)(spots)
    spread = target.cov.diagonal().sqrt()
    return {
        "target_mean": flat(target.mean), "target_spread": flat(spread),
        "target_mass": [float(target.expectation(sure_of(mixture)))],
        "later_mean": flat(alpha * target.mean), "later_spread": flat((alpha**2 * spread**2 + sigma**2).sqrt()),
        "later_mass": [float(later)], "levels": [0.5, 0.9, 0.99],
        "drawn_mean": flat(target.mean), "drawn_spread": flat(spread), "open": [0], "off": [0],
    }  # fmt: skip


@cache
def cases() -> tuple[list[dict], list[dict]]:
    random = np.random.default_rng(0)
    mixtures = [four_blobs(), *(random_mixture(random) for _ in range(5))]
    asked, wanted = zip(*(case(mixture, seed) for seed, mixture in enumerate(mixtures)), strict=True)
    return list(asked), list(wanted)


def answers(folder: Path, first: int = 100) -> list[dict]:
    """What the modules in a folder say to the first cases.  Raises: CalledProcessError if they stop."""
    command = [shutil.which("node") or pytest.skip("no Node.js on the path"), str(RUNNER), str(folder)]
    asked = json.dumps(cases()[0][:first])
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True, timeout=100)
    return json.loads(done.stdout)


def disagreements(found: list[dict]) -> list[str]:
    """Names of the answers that are not the package's, with the error."""
    wrong = []
    for number, (ours, wanted) in enumerate(zip(found, cases()[1], strict=False)):
        for name, value in wanted.items():
            got, want = np.asarray(ours[name], dtype=float).flatten(), np.asarray(value).flatten()
            allowed = LOOSE.get(name, 1e-9 * (1 + np.abs(want)))
            if got.shape != want.shape or not (np.abs(got - want) <= allowed).all():
                wrong.append(f"case {number}, {name}: {got} is not {want}")
    return wrong


def test_the_pages_mathematics_is_the_packages():
    assert disagreements(answers(MODULES)) == []


def test_the_axes_of_an_ellipse_are_perpendicular_and_make_its_covariance():
    for asked, found in zip(cases()[0], answers(MODULES), strict=True):
        short, long = np.array(found["axes"])
        np.testing.assert_allclose(np.outer(short, short) + np.outer(long, long), asked["covs"][0], atol=1e-12)
        assert abs(short @ long) < 1e-12 and np.linalg.norm(short) <= np.linalg.norm(long)


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(m, id=m["why"], marks=() if m.get("fast") else pytest.mark.nightly) for m in MISTAKES],
)
def test_a_mistake_in_the_javascript_is_noticed(mistake: dict, tmp_path: Path):
    folder = tmp_path / "interactive"
    shutil.copytree(MODULES, folder)
    path = folder / mistake["file"]
    text = path.read_text(encoding="utf-8")
    assert text.count(mistake["old"]) == 1, mistake["old"]
    path.write_text(text.replace(mistake["old"], mistake["new"]), encoding="utf-8")
    try:
        found = answers(folder, first=2)
    except subprocess.CalledProcessError as stopped:  # a covariance that is none, say
        assert "RangeError" in stopped.stderr
    else:
        assert disagreements(found) != []
