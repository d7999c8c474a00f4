"""A population of weighted points that steps together: sequential Monte Carlo, with any kernel and any rule of weights.

A kernel moves each point; a rule says by how much the logarithm of its weight grows in that step. Where few points hold
most of the weight, the population is drawn anew from itself: heavy points are copied, light ones die. Averages with
the weights tend to those of the distribution that the weights ask for, as the population grows, and the mean weight is
an estimate of its normaliser without bias (its logarithm is on average too low).

What was asked for belongs to the population: give all its points one label and one scale, and several labels a
population each. Points that differ in what they want must not compete.

Source: Doucet & Johansen 2011, A tutorial on particle filtering and smoothing; Del Moral 2004 (doi
10.1007/978-1-4684-9393-1).
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from difflesson.checks import holds
from difflesson.kernels import Kernel
from difflesson.noise import check_generator
from difflesson.parts import Part
from difflesson.samplers import check_one_schedule, checked_run, checked_state
from difflesson.steps import Step

Rule = Callable[[Step, Tensor, Tensor, Tensor, Tensor], Tensor]
"""`rule(step, x, new, t, s) -> (N,)`: what a step from x at t to `new` at s adds to the log-weights; `step` is the
kernel's answer at x, of which `new` was drawn. Any function will do; one with a memory is a `Part`."""


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """How many equally weighted points would be worth as much: `(sum w)^2 / sum w^2`, between 1 and N.  [eq-ess-slope]

    Only the ratios of the weights matter, so a constant may be added to all logarithms.
    Args: log_weights: (N, ...), at least one finite in each column; minus infinity is a weight of zero.
    Returns: one number a column, shape (...).
    Raises: ValueError if there is no weight, a NaN or plus infinity, or a column has no finite one (on the CPU).
    Source: Kong, Liu & Wong 1994 (doi 10.1080/01621459.1994.10476469).
    """
    if log_weights.dim() < 1 or not log_weights.is_floating_point() or len(log_weights) < 1:
        raise ValueError(f"log_weights must be floats (N, ...), got {log_weights.dtype} {tuple(log_weights.shape)}")
    if not holds(log_weights < torch.inf):
        raise ValueError("log_weights must be below infinity, they contain NaN or plus infinity")
    if not holds(log_weights.isfinite().any(0)):
        raise ValueError("log_weights must have a finite one in every column, a column has none")
    return torch.exp(2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0))


@dataclass(frozen=True, eq=False)
class Particles:
    """Weighted points at one time.

    Args: x: (N, *data);  log_weights: (N,) in float64: the weights since the start, the shares and the normaliser in
    one: a resampling gives every copy the mean weight, so that `log_normaliser` goes on;  ancestors: (N,), from which
    point of the start each comes.
    """

    x: Tensor
    log_weights: Tensor
    ancestors: Tensor

    @property
    def weights(self) -> Tensor:
        """Shares of the weight, (N,), summing to one."""
        return self.log_weights.softmax(0)

    @property
    def ess(self) -> Tensor:
        """`effective_sample_size` of the weights, 0-dim. Just after a resampling it is N, and says nothing."""
        return effective_sample_size(self.log_weights)

    @property
    def log_normaliser(self) -> Tensor:
        """Log of the mean weight, 0-dim: of an estimate of the normaliser without bias."""
        return self.log_weights.logsumexp(0) - math.log(len(self.x))

    def expectation(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """The weighted mean of `f: (N, *data) -> (N, ...)`, in the dtype of its values."""
        values = f(self.x)
        return torch.tensordot(self.weights.to(values.dtype), values, dims=1)

    def chosen(self, which: Tensor) -> "Particles":
        """The copies `which`, (M,) integers, each with the mean weight."""
        mean = self.log_normaliser.expand(len(which)).clone()
        return Particles(self.x[which], mean, self.ancestors[which])


def systematic(log_weights: Tensor, generator: torch.Generator, count: int | None = None) -> Tensor:
    """Draw indices by weight, one random number for all: each is drawn `count w` times, rounded down or up.

    The points `(i + u) / count`, with one uniform u, are looked up in the cumulated weights. Mostly less
    scatter than `multinomial`, though not for every order of the points, and right on average.
    Args: log_weights: (N,), as in `effective_sample_size`;  count: how many, by default N.
    Returns: (count,) integers, increasing.
    Raises: ValueError on log_weights that are no weights, count < 1, or without a generator.
    Source: Kitagawa 1996 (doi 10.1080/10618600.1996.10474692); Carpenter, Clifford & Fearnhead 1999.
    """
    count = _checked_count(log_weights, generator, count)
    u = torch.rand((), generator=generator, dtype=torch.float64, device=log_weights.device)
    places = torch.arange(count, dtype=torch.float64, device=log_weights.device)
    return _looked_up(log_weights, (places + u) / count)


def multinomial(log_weights: Tensor, generator: torch.Generator, count: int | None = None) -> Tensor:
    """Draw indices by weight, independently. Simple, and with more scatter than `systematic`; arguments as there.

    Returns: (count,) integers.  Raises: ValueError as `systematic`.  Source: Gordon, Salmond & Smith 1993.
    """
    count = _checked_count(log_weights, generator, count)
    places = torch.rand(count, generator=generator, dtype=torch.float64, device=log_weights.device)
    return _looked_up(log_weights, places)


def sample(
    kernel: Kernel,
    rule: Rule,
    x: Tensor,
    times: Tensor,
    generator: torch.Generator,
    log_weights: Tensor | None = None,
    after: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    resample: Callable[..., Tensor] = systematic,
    below: float = 0.5,
) -> Iterator[Particles]:
    """Walk through `times` like `samplers.sample`, and yield the `Particles` at each of them, the start included.

    What is yielded is the caller's to change.

    Resampling is the first thing that a step does, where the effective size is below a share of N: what is yielded
    has its weights still, and an effective size that can be believed. Nothing is kept but the latest population.

    Args: kernel, x, times, after: as in `samplers.sample`; `after` must keep the distribution that the weights ask for
    at time s, as Langevin steps do, and the weights stay;  rule: what a step adds to the log-weights;  generator: on
    the device of x;  log_weights: (N,), those of the start, by default 0;  resample: `systematic`, `multinomial`, or
    another `(log_weights, generator) -> (N,)` that draws each index in proportion to its weight;  below: the share,
    in [0, 1]: 0 never resamples, 1 whenever weights differ.
    Raises: ValueError as `samplers.sample`; if `log_weights` or what `rule` answers is misshapen, NaN or plus infinity,
    or if no particle has a weight left;  if `below` is outside [0, 1].
    """
    times = checked_run(x, times)
    check_one_schedule(kernel, rule)
    check_generator(generator)
    if not 0 <= below <= 1:
        raise ValueError(f"below must be a share in [0, 1], got {below}")
    log_weights = torch.zeros(len(x), device=x.device) if log_weights is None else log_weights
    begun = Particles(x.clone(), _checked("log_weights", log_weights, x, 0.0), torch.arange(len(x), device=x.device))
    started: dict = {}  # a part that stands in the kernel and in the rule remains one
    kernel, rule = (part.start(started) if isinstance(part, Part) else part for part in (kernel, rule))
    states = _walk(kernel, rule, begun, times, generator, after, resample, below)
    return (Particles(now.x.clone(), now.log_weights.clone(), now.ancestors.clone()) for now in states)


def draw(kernel: Kernel, rule: Rule, x: Tensor, times: Tensor, generator: torch.Generator, **options) -> Particles:
    """The last population of `sample`; arguments and errors are the same."""
    return deque(sample(kernel, rule, x, times, generator, **options), maxlen=1)[0]


def _walk(kernel, rule, now, times, generator, after, resample, below):
    yield now
    for t, s in zip(times[:-1], times[1:], strict=True):
        with torch.no_grad():
            ess = float(now.ess)  # on an accelerator the one look at values in a step
            if math.isnan(ess):
                raise ValueError("rule must give numbers below infinity, and leave a particle with a weight above zero")
            if ess < below * len(now.x) * (1 - 1e-9):
                now = _resampled(now, resample(now.log_weights, generator), (kernel, rule))
            step = kernel(now.x, t, s)
            new = checked_state("kernel", step.sample(generator), now.x)
            log_weights = _checked("rule", rule(step, now.x, new, t, s), new, now.log_weights)
            if after is not None:
                new = checked_state("after", after(new, t, s), new)
        now = Particles(new, log_weights, now.ancestors)
        yield now


def _resampled(now: Particles, which: Tensor, parts: tuple) -> Particles:
    if which.shape != now.log_weights.shape:
        raise ValueError(f"resample must return {len(now.x)} indices, got shape {tuple(which.shape)}")
    known: set = set()
    for part in parts:
        if isinstance(part, Part):
            part.reorder(which, known)
    return now.chosen(which)


def _looked_up(log_weights: Tensor, places: Tensor) -> Tensor:
    """For each place in [0, 1) the index in whose part of the cumulated weights it lies, (count,)."""
    weights = log_weights.double().softmax(0)
    upto = weights.cumsum(0)
    # Rounding must not lead past the last point with a weight.
    last = (torch.arange(len(weights), device=weights.device) * (weights > 0)).max()
    return torch.searchsorted(upto / upto[-1], places, right=True).clamp(max=last)


def _checked_count(log_weights: Tensor, generator: torch.Generator | None, count: int | None) -> int:
    effective_sample_size(log_weights)  # says what is wrong with weights that are none
    if log_weights.dim() != 1:
        raise ValueError(f"log_weights must have shape (N,), got {tuple(log_weights.shape)}")
    check_generator(generator)
    count = len(log_weights) if count is None else count
    if not isinstance(count, Integral) or count < 1:
        raise ValueError(f"count must be an integer, at least 1, got {count}")
    return count


def _checked(name: str, added: Tensor, x: Tensor, before: Tensor | float) -> Tensor:
    """Log-weights after `added`, (N,) in float64."""
    if not isinstance(added, Tensor) or added.shape != x.shape[:1] or not added.is_floating_point():
        got = f"{added.dtype} {tuple(added.shape)}" if isinstance(added, Tensor) else repr(added)
        raise ValueError(f"{name} must give one float for each particle, shape ({len(x)},), got {got}")
    if not holds(added < torch.inf):
        raise ValueError(f"{name} must give numbers below infinity, it gave NaN or plus infinity")
    after = before + added.detach().double()
    if not holds(after.isfinite().any()):
        raise ValueError(f"{name} left no particle with a weight above zero")
    return after
