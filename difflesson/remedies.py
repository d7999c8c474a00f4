"""What each step adds to the log-weight of a guided particle, so that the population has the density asked for.

Guided samples do not have the density `p(x) p(y | x)^gamma / Z`; weighted, they do. The rules here go into
`particles.sample` or `particles.draw`, beside the kernel that guides. The start has its weight too, `p_t(y | x)^gamma`
at the first time.  [eq-log-z]  What the rules need: `feynman_kac` two guesses of the noise, and short steps; `ramped`
also `log p_t(y | x)`, and lets gamma grow on the way; `twisted` the density of the unguided step, for steps of any
length, and any kernel that has a density.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from difflesson.denoiser import Pair, Prediction
from difflesson.guidance import Scale, scale_at
from difflesson.kernels import Kernel
from difflesson.parts import Part, Remembering
from difflesson.schedule import Schedule
from difflesson.steps import Step

LogTwist = Callable[[Tensor, Tensor], Tensor]
"""`log_twist(x, t) -> (N,)`: how much a noisy point is thought to be worth, as a logarithm."""


@dataclass(frozen=True, eq=False)
class feynman_kac(Part):
    """The weight that a guided sampler of any noise lacks, the ODE included.  [eq-weight-in-guesses]

        d log w = gamma (gamma - 1) / 2 |eps_u - eps_c|^2 d lambda,     lambda the log-SNR, growing

    In `q = sigma^2 / alpha^2` and `z = x / alpha` it is `gamma (gamma - 1) / 2 |grad log p_q(y | z)|^2 dq`.
    [eq-feynman-kac]  Over one step by the trapezoidal rule; over the last one, to the data, where there is no noise to
    guess, by the square at its start times all that is left of q.

    Args: pair: both denoisers; `asked_once(pair)`, here and in the kernel, saves the second evaluation;  gamma: the
    scale by which the kernel guides, see `guidance`; one that depends on time is taken where the step starts.
    Source: Skreta et al. 2025 (arXiv 2503.02819).
    """

    pair: Pair
    gamma: Scale
    schedule: Schedule

    def __call__(self, step: Step, x: Tensor, new: Tensor, t: Tensor, s: Tensor) -> Tensor:
        scale = scale_at(self.gamma, t, x[:, :1].flatten(1)[:, 0])
        if isinstance(scale, float) and scale in (0.0, 1.0):  # no guidance, no debt: nobody is asked
            return x.new_zeros(len(x))
        if s == 0:  # in q: the square is |eps_u - eps_c|^2 / q, and q falls by q
            return scale * (scale - 1) / 2 * self.rate(x, t)
        between = self.schedule.log_snr(s) - self.schedule.log_snr(t)
        return scale * (scale - 1) / 4 * (self.rate(x, t) + self.rate(new, s)) * between

    def rate(self, x: Tensor, t: Tensor) -> Tensor:
        """`|eps_u - eps_c|^2`, (N,)."""
        cond, uncond = self.pair(x, t)
        return (uncond.eps - cond.eps).square().flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class ramped(feynman_kac):
    """`feynman_kac` for a gamma that changes with time: after each step it pays for the change.  [eq-ramped-weight]

        log w += (gamma(s) - gamma(t)) log p_s(y | x_s)

    Args: log_prob: `log_prob(x, t) -> (N,)`, log p_t(y | x);  gamma: a function of time, the same in the kernel.
    """

    log_prob: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, step: Step, x: Tensor, new: Tensor, t: Tensor, s: Tensor) -> Tensor:
        scale = self.gamma if callable(self.gamma) else lambda _: self.gamma
        raised = torch.as_tensor(scale(s) - scale(t))
        moved = super().__call__(step, x, new, t, s)
        return moved + raised * self.log_prob(new, s) if bool((raised != 0).any()) else moved


@dataclass(frozen=True, eq=False)
class twisted(Part):
    """The weight that makes a kernel exact, for any number of steps.  [eq-twisted-weight]

        log w += log p(x_s | x_t) + log psi_s(x_s) - log k(x_s | x_t) - log psi_t(x_t)

    The population then has the density `p_t psi_t / Z` at each of its times: choose `psi_0`, and any psi before.
    Args: free: the kernel of the unguided model, a density: `kernels.exact`, or a network's DDPM step;  log_twist:
    `log psi`, such as gamma times `log p_t(y | x)`.  The kernel that moves the points must have a density as well, and
    reach wherever the unguided step does; and the start must carry `log psi` of the first time.
    Source: Wu et al. 2023 (arXiv 2306.17775), eq. 9 to 12.
    """

    free: Kernel
    log_twist: LogTwist

    def __call__(self, step: Step, x: Tensor, new: Tensor, t: Tensor, s: Tensor) -> Tensor:
        gained = self.log_twist(new, s) - self.log_twist(x, t)
        return self.free(x, t, s).log_prob(new) - step.log_prob(new) + gained


@dataclass(frozen=True, eq=False)
class asked_once(Remembering):
    """A pair that keeps its last answer: kernel and rule ask about the same points, and the network is run once.

    Put the same object in both. It is a `Pair` otherwise.
    """

    pair: Pair

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Prediction, Prediction]:
        kept, time = self.recall(), torch.as_tensor(t)
        version = None if x.is_inference() else x._version  # it counts the changes in place
        known = kept and kept["x"].shape == x.shape and torch.equal(kept["t"], time)
        same = known and kept["asked"] is x and version is not None and kept["version"] == version
        if not (same or known and torch.equal(kept["x"], x)):  # a look at values: once after resampling
            (c0, ce), (u0, ue) = self.pair(x, t)
            kept |= {"t": time, "x": x.clone(), "c0": c0, "ce": ce, "u0": u0, "ue": ue}
        kept |= {"asked": x, "version": version}
        return Prediction(kept["c0"], kept["ce"]), Prediction(kept["u0"], kept["ue"])

    @property
    def cond(self):
        """The conditional denoiser alone, not kept."""
        return self.pair.cond

    @property
    def uncond(self):
        """The unconditional denoiser alone, not kept."""
        return self.pair.uncond
