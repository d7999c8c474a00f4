"""Is a sampling library right? A network whose answers are exact, and the truth on a line to compare the ends with.

Nothing here imports a library: a *scheduler* is any object with diffusers' five names, `set_timesteps`, `timesteps`,
`init_noise_sigma`, `scale_model_input`, `step`, its table `alphas_cumprod` and its `config`. Those of flow matching,
with `scale_noise`, or "flow_prediction" in the config, need no table, nor the two of scale. A network is asked as
theirs are, `network(sample, timestep, class_labels)`, with the label `mixture.classes` for "no label".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from difflesson import conventions
from difflesson.checks import check_shape
from difflesson.denoiser import check_labels
from difflesson.mixture import GaussianMixture
from difflesson.parts import Part

NAMES = ("set_timesteps", "init_noise_sigma", "scale_model_input", "step", "alphas_cumprod", "config")
"""What `check_scheduler` needs of a scheduler, and `timesteps` once they are set."""


def line_of_blobs() -> GaussianMixture:
    """The mixture of the checks, on a line and in float64: four blobs, of which every second is class 1."""
    return GaussianMixture(
        weights=[0.30, 0.20, 0.35, 0.15],
        means=torch.tensor([[-1.6], [-0.2], [1.2], [2.6]], dtype=torch.float64),
        covs=[[[0.09]], [[0.16]], [[0.06]], [[0.12]]],
        labels=[0, 1, 0, 1],
    )


def deviation(mixture: GaussianMixture) -> Tensor:
    """The standard deviation of a mixture on a line, 0-dim.  Raises: ValueError in the plane."""
    _check_line(mixture)
    means, variances = mixture.means[:, 0], mixture.variances[:, 0]
    return (mixture.weights @ (variances + (means - mixture.weights @ means) ** 2)).sqrt()


def _check_line(mixture: GaussianMixture) -> None:
    if mixture.dim != 1:
        raise ValueError(f"mixture must be on a line, got dimension {mixture.dim}")


class _Level(NamedTuple):
    """One noise level in the place of a schedule."""

    level: tuple[Tensor, Tensor]

    def alpha(self, t: Tensor) -> Tensor:
        return self.level[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.level[1]


def _guesses(mixture: GaussianMixture, level: tuple, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """x0 and eps, of a batch with the label `mixture.classes` for "no label", or none at all."""
    there = _Level(level)
    if labels is not None:
        labels = check_labels(labels, mixture.classes + 1)
    x0, eps = mixture.denoiser(there)(x, 0.0)
    if labels is not None and bool((told := labels < mixture.classes).any()):
        check_shape("class_labels", labels, x.shape[:1])
        x0[told], eps[told] = mixture.denoiser(there, labels[told])(x[told], 0.0)
    return x0, eps


@dataclass(frozen=True, eq=False)
class exact_network(Part):
    """What a perfect network would answer that was trained with a scheduler's table.

    Timestep k has alpha^2 = alphas_cumprod[k], its inputs are `x = alpha x0 + sigma eps`, and it answers "epsilon",
    "sample" (x0) or "v_prediction" (alpha eps - sigma x0). Between two timesteps, where some schedulers ask, sigma /
    alpha is interpolated, as they do.  [eq-noise-level]
    Args: mixture: the data;  alphas_cumprod: (T,), falling, from a scheduler;  prediction: as a scheduler calls it.
    Of a call: sample: (N, d);  timestep: a number;  class_labels: (N,) with `mixture.classes` for none, or None.
    Raises: ValueError if `prediction` is unknown, a timestep is outside 0 ... T - 1, or a label above `classes`.
    """

    mixture: GaussianMixture
    alphas_cumprod: Tensor
    prediction: str = "epsilon"

    def __post_init__(self):
        if self.prediction not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(f"prediction must be epsilon, sample or v_prediction, got {self.prediction!r}")

    def level(self, timestep: float | Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at a timestep, 0-dim.  [eq-noise-level]"""
        k, last = float(timestep), len(self.alphas_cumprod) - 1
        if not 0 <= k <= last:
            raise ValueError(f"timestep must be between 0 and {last}, got {k}")
        below, above = (self.alphas_cumprod[i].double() for i in (math.floor(k), math.ceil(k)))
        if below == above:
            return below.sqrt(), (1 - below).sqrt()
        sigmas = [conventions.noise_level(table, "ho", "edm") for table in (below, above)]
        return conventions.noise_level(torch.lerp(*sigmas, k - math.floor(k)), "edm")

    def __call__(self, sample: Tensor, timestep: float | Tensor, class_labels: Tensor | None = None) -> Tensor:
        alpha, sigma = level = self.level(timestep)
        x0, eps = _guesses(self.mixture, level, sample.double(), class_labels)
        answers = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}
        return answers[self.prediction].to(sample)


@dataclass(frozen=True, eq=False)
class exact_flow(Part):
    """What a perfect network of flow matching would answer: the velocity `eps - x0` at `x = (1 - t) x0 + t eps`.

    t = timestep / steps = sigma / (alpha + sigma), and this x is ours over alpha + sigma: "flow" of `conventions`.
    Args: mixture: the data;  steps: T, `num_train_timesteps` of a scheduler.  Of a call: as of `exact_network`.
    Raises: ValueError if a timestep is outside 0 ... T, or a label above `classes`.
    """

    mixture: GaussianMixture
    steps: int = 1000

    def level(self, timestep: float | Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at a timestep, 0-dim."""
        if not 0 <= float(timestep) <= self.steps:
            raise ValueError(f"timestep must be between 0 and {self.steps}, got {float(timestep)}")
        return conventions.noise_level(float(timestep) / self.steps, "flow")

    def __call__(self, sample: Tensor, timestep: float | Tensor, class_labels: Tensor | None = None) -> Tensor:
        level = self.level(timestep)
        x0, eps = _guesses(self.mixture, level, sum(level) * sample.double(), class_labels)
        return (eps - x0).to(sample)


def guided_network(network: Callable, label: int, gamma: float, none: int) -> Callable:
    """`network` asked with and without the label in one batch: `uncond + gamma (cond - uncond)`.  [eq-cfg]

    Args: none: the label that says "none".  Returns: a function of a sample and a timestep.
    """

    def ask(sample: Tensor, timestep: float | Tensor) -> Tensor:
        labels = torch.tensor([none, label], device=sample.device).repeat_interleave(len(sample))
        uncond, cond = network(torch.cat([sample] * 2), timestep, labels).chunk(2)
        return uncond + gamma * (cond - uncond)

    return ask


def drive(scheduler, network: Callable, noise: Tensor, steps: int, **arguments) -> Tensor:
    """The loop of every pipeline: ask the network, give the scheduler its answer.  Returns: the samples.

    Args: noise: (N, d) standard normal;  steps: `num_inference_steps`;  arguments: of `scheduler.step`, say `eta`.
    """
    scheduler.set_timesteps(steps)
    x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for k in scheduler.timesteps:
        answer = network(_asked(scheduler, x, k), k)
        x = scheduler.step(answer, k, x, **arguments).prev_sample
    return x


def _asked(scheduler, x: Tensor, k: float | Tensor) -> Tensor:
    """What the network is given; flow matching scales nothing."""
    return scheduler.scale_model_input(x, k) if hasattr(scheduler, "scale_model_input") else x


def chance(mixture: GaussianMixture, x: Tensor) -> Tensor:
    """The distribution function F of a mixture on a line, at x (N, 1): (N,).  Raises: ValueError in the plane."""
    _check_line(mixture)
    parts = torch.special.ndtr((x - mixture.means[:, 0]) / mixture.variances[:, 0].sqrt())  # (N, K)
    return parts @ mixture.weights


def quantile(mixture: GaussianMixture, chances: Tensor) -> Tensor:
    """F's inverse, by bisection to the last digit: chances (N,) in (0, 1) to x (N, 1).

    Raises: ValueError in the plane, or if a chance is not inside (0, 1).
    """
    if not bool(((chances > 0) & (chances < 1)).all()):
        raise ValueError(f"chances must be inside (0, 1), got {float(chances.min())} to {float(chances.max())}")
    reach = 50 * float(mixture.variances.max()) ** 0.5
    low, high = (torch.full((len(chances), 1), float(end)) for end in (mixture.means.min(), mixture.means.max()))
    low, high = low.to(chances) - reach, high.to(chances) + reach
    for _ in range(64):
        middle = (low + high) / 2
        below = (chance(mixture, middle) < chances)[:, None]
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def flowed(mixture: GaussianMixture, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """Where noiseless sampling with exact guesses and endless steps takes x_t on a line: `F_0^{-1}(F_t(x_t))`.

    [eq-quantile-flow]  Args: x: (N, 1) at the level alpha, sigma, in our scale.  Returns: (N, 1); what is so far out
    that float64 has no chance for it ends at the last one that it has.
    """
    return quantile(mixture, chance(mixture.noised(alpha, sigma), x).clamp(1e-300, 1 - 2**-53))


class Found(NamedTuple):
    """What `check_scheduler` finds at one number of steps, in standard deviations of the data."""

    steps: int
    whole: float  # W_1 between what comes and the truth
    start: float  # the part that perfect steps would leave: W_1 of the first input's own ends and the truth
    walk: float  # mean distance of what comes from the first input's own ends


def check_scheduler(scheduler, steps: Sequence[int], mixture: GaussianMixture | None = None, count: int = 500,
                    network: Callable | None = None, **arguments) -> list[Found]:  # fmt: skip
    """How far a noiseless scheduler with exact answers is from the truth on a line, and whose fault that is.

        x - F_0^{-1}(Phi(z)) = (x - F_0^{-1}(F_T(x_T))) + (F_0^{-1}(F_T(x_T)) - F_0^{-1}(Phi(z)))    [eq-two-errors]

    x: what comes of the noise z;  x_T: the first input that the network gets, at its first timestep. A scheduler that
    is right loses half of `walk` when `steps` doubles, or more; what does not shrink is a mistake.
    Args: scheduler: without noise, of flow matching or with a table;  steps: numbers of steps to try;  mixture: on a
    line, `line_of_blobs()` unless given;  count: starting noises, the midpoints of as many equal chances;  network:
    `(sample, timestep) -> answer`, for a loop of your own, exact unless given;  arguments: of `scheduler.step`.
    Raises: ValueError if `mixture` is not on a line, count < 1, or the scheduler lacks one of the names above, cuts
    guesses at a quantile, asks for epsilon where alpha is 0, adds noise, or ends at NaN.
    """
    config = getattr(scheduler, "config", None)
    flow = hasattr(scheduler, "scale_noise") or getattr(config, "prediction_type", None) == "flow_prediction"
    if missing := [name for name in NAMES if not (flow or hasattr(scheduler, name))]:
        raise ValueError(f"scheduler must have {', '.join(NAMES)}; {type(scheduler).__name__} lacks {missing}")
    for option, why in (("thresholding", "a guess on a line has no quantile over its coordinates"),
                        ("invert_sigmas", "its network is asked at 1 - t")):  # fmt: skip
        if getattr(config, option, False):
            raise ValueError(f"scheduler must have {option}=False: {why}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    mixture = line_of_blobs() if mixture is None else mixture
    exact = (exact_flow(mixture, config.num_train_timesteps) if flow else
             exact_network(mixture, scheduler.alphas_cumprod, config.prediction_type))  # fmt: skip
    chances = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    noise, truth, rows = torch.special.ndtri(chances)[:, None], quantile(mixture, chances), []
    size = deviation(mixture)
    for n in steps:
        scheduler.set_timesteps(n)
        first = scheduler.timesteps[0]
        alpha, sigma = exact.level(first)
        if alpha == 0 and not flow and exact.prediction == "epsilon":
            raise ValueError("scheduler must not have prediction_type='epsilon' where it starts at alpha = 0: there "
                             "the noise says nothing of the data; take 'v_prediction'")  # fmt: skip
        given = _asked(scheduler, noise * float(getattr(scheduler, "init_noise_sigma", 1.0)), first)
        came = drive(scheduler, network or exact, noise, n, **arguments).double()
        if not bool(came.isfinite().all()):
            raise ValueError(f"scheduler must end at finite points, got NaN or infinity in {n} steps")
        again = drive(scheduler, network or exact, noise, n, **arguments) if n == min(steps) else came
        if bool((again - came).abs().max() > 1e-6):
            raise ValueError("scheduler must be without noise (eta = 0, no SDE): two runs from one start ended apart")
        own = flowed(mixture, given * (alpha + sigma) if flow else given, alpha, sigma)
        rows.append(Found(n, *(float((a.sort(0).values - b).abs().mean() / size) for a, b in
                               ((came, truth), (own, truth))), float((came - own).abs().mean() / size)))  # fmt: skip
    return rows


class exact_transformer(nn.Module):
    """`exact_network` in the place of the transformer of diffusers' `DiTPipeline`: points are pictures of one pixel.

    Their null label, 1000, counts as "no label".  Args: network: an `exact_network`.
    """

    def __init__(self, network: exact_network):
        super().__init__()
        self.network, self.dtype, self.device = network, torch.float64, torch.device("cpu")
        dim = network.mixture.dim
        self.config = SimpleNamespace(sample_size=1, in_channels=dim, out_channels=dim)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> SimpleNamespace:
        labels = class_labels.clamp(max=self.network.mixture.classes)
        return SimpleNamespace(sample=self.network(sample.flatten(1), timestep[0], labels).view_as(sample))


class no_autoencoder(nn.Module):
    """In the place of a pipeline's VAE: what was latent is the picture, shrunk to fit the grey levels.

    A pipeline shows `x / 2 + 1/2` cut to [0, 1]; so `points` takes it back: x = reach (2 picture - 1).
    Args: reach: the largest coordinate that is not cut, positive.  Raises: ValueError otherwise.
    """

    def __init__(self, reach: float = 16.0):
        super().__init__()
        if not reach > 0:
            raise ValueError(f"reach must be positive, got {reach}")
        self.reach, self.dtype, self.device = reach, torch.float64, torch.device("cpu")
        self.config = SimpleNamespace(scaling_factor=1.0)

    def decode(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latents / self.reach)

    def points(self, pictures) -> Tensor:
        """Pictures of one pixel (N, d, 1, 1) as points (N, d)."""
        return self.reach * (2 * torch.as_tensor(pictures).flatten(1) - 1)
