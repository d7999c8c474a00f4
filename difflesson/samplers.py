"""The sampling loop, and the times it walks through. The loop owns nothing else."""

from collections.abc import Callable, Iterator
from numbers import Integral

import torch
from torch import Tensor

from difflesson.checks import holds, shown
from difflesson.kernels import Kernel
from difflesson.parts import Part
from difflesson.schedule import Schedule, as_time

PROBES = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)  # times at which schedules are compared


def time_grid(steps: int, schedule: Schedule | None = None, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Decreasing times from `start` to `end`, (steps + 1,), float64 on the CPU.

    Evenly spaced in time; with a schedule, evenly spaced in log-SNR, which needs `end > 0` or a schedule whose log-SNR
    is finite at 0. For `dpmpp_2m` in 10 or 20 steps without guidance `time_grid(n, schedule, 0.99, 0.01)` ended more
    than one and a half times as near to where the flow ends as even times did, on both mixtures and both schedules of
    the test; guided, or in 40 steps, now one was ahead, now the other: try both.

    Raises: ValueError if `steps` is no integer or below 1, the times are not `1 >= start > end >= 0`, or the log-SNR at
    an end is infinite.
    """
    if not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"steps must be an integer, at least 1, got {steps!r}")
    if not (1 >= start > end >= 0):
        raise ValueError(f"start and end must satisfy 1 >= start > end >= 0, got start={start}, end={end}")
    if schedule is None:
        return torch.linspace(start, end, steps + 1, dtype=torch.float64)
    first, last = float(schedule.log_snr(start)), float(schedule.log_snr(end))
    if not (abs(first) < float("inf") and abs(last) < float("inf")):
        raise ValueError(f"end must have a finite log-SNR under this schedule (take a small positive one), got {end}")
    times = schedule.time(torch.linspace(first, last, steps + 1, dtype=torch.float64))
    times[0], times[-1] = start, end
    return times


def sample(
    kernel: Kernel,
    x: Tensor,
    times: Tensor,
    generator: torch.Generator | None = None,
    after: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Walk through `times` and yield x at each of them, the start included; what is yielded is the caller's to change.

    Args: kernel: from `difflesson.kernels`;  x: (batch, *data) at `times[0]`, usually standard normal;  times: (n,)
    decreasing in [0, 1], or increasing (from data to noise, for kernels without noise);  generator: on the device of x;
    only kernels without noise do without;  after: `after(x, t, s) -> x`, called with the new x after each step from t
    to s: a corrector, a projection, a record of what happens. What it returns goes on.
    Gradients are off inside a step (guidance switches them on for itself). Every run begins with an empty memory.
    Raises: ValueError if times are out of order or range, parts of the kernel have different schedules, x has NaN or
    infinity (on the CPU), a generator is missing, or the kernel or `after` returns another shape or dtype.
    """
    times = checked_run(x, times)
    check_one_schedule(kernel)
    states = _walk(kernel.start() if isinstance(kernel, Part) else kernel, x.clone(), times, generator, after)
    return (state.clone() for state in states)


def check_one_schedule(*parts) -> None:
    """Raises: ValueError if parts of a run, guidance and kernel say, take one time for different noise levels."""
    first, *others = [one for part in parts if isinstance(part, Part) for one in part.schedules()] or [None]
    for other in others:
        if other is not first and not torch.allclose(other.log_snr(PROBES), first.log_snr(PROBES), rtol=1e-4):
            raise ValueError(f"schedule must be the same in all parts of a kernel, got {first} and {other}")


def checked_run(x: Tensor, times: Tensor) -> Tensor:
    """The times of a run in float64 on the CPU, (n,).  Raises: ValueError if `sample` does not take them, or not x."""
    times = as_time(times, "times").double().cpu()
    steps = times.diff() if times.dim() == 1 else times.new_zeros(1)
    if len(steps) < 1 or not (bool((steps < 0).all()) or bool((steps > 0).all())):
        raise ValueError(f"times must be at least two, all decreasing or all increasing, got {shown(times)}")
    if not bool(((times >= 0) & (times <= 1)).all()):
        raise ValueError(f"times must lie in [0, 1], got {shown(times)}")
    if not x.is_floating_point() or x.dim() < 2 or not holds(torch.isfinite(x)):
        raise ValueError(f"x must be finite floats of shape (batch, *data), got {x.dtype} {tuple(x.shape)}")
    return times


def checked_state(name: str, state: Tensor, x: Tensor) -> Tensor:
    """What `name` made of x.  Raises: ValueError if it has another shape or dtype than x."""
    if state.shape != x.shape or state.dtype != x.dtype:
        got, want = (f"{v.dtype} {tuple(v.shape)}" for v in (state, x))
        raise ValueError(f"{name} must return what x is, {want}, got {got}")
    return state


def _walk(kernel, x, times, generator, after):
    yield x
    for t, s in zip(times[:-1], times[1:], strict=True):
        with torch.no_grad():
            x = checked_state("kernel", kernel(x, t, s).sample(generator), x)
            if after is not None:
                x = checked_state("after", after(x, t, s), x)
        yield x


def draw(
    kernel: Kernel,
    x: Tensor,
    times: Tensor,
    generator: torch.Generator | None = None,
    after: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The last state of `sample`, (batch, *data); arguments and errors are the same."""
    for state in sample(kernel, x, times, generator, after):
        x = state
    return x
