"""The probability-flow ODE: the noiseless process with the marginals of the diffusion, as a velocity and solved."""

from dataclasses import dataclass

import torch
from torch import Tensor

from difflesson.denoiser import Denoiser, predict
from difflesson.parts import Part
from difflesson.schedule import Schedule, as_time, expand_as, noisy


@dataclass(frozen=True, eq=False)
class probability_flow(Part):
    """The velocity `dx/dt` of the probability-flow ODE, a field `flow(x, t)`.  [eq-probability-flow]

        dx/dt = -beta / 2 (x + score) = beta alpha / (2 sigma) v,      v = alpha eps - sigma x0

    The two are equal since `x = alpha x0 + sigma eps`; the second has no difference of large numbers in it. Followed
    from data to noise or back it carries `p_s` to `p_t`, if the denoiser is that of a diffusion (a guided one is not).

    Args of a call: x: (batch, *data);  t: one time or (batch,), with `sigma_t > 0`.  Returns: (batch, *data).
    Raises: ValueError if `sigma_t` is 0 at a time: the velocity may be infinite there.
    Source: Song et al. 2021 (arXiv 2011.13456), eq. 13.
    """

    denoiser: Denoiser
    schedule: Schedule

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        t = as_time(t)
        plan = self.schedule
        alpha, sigma, beta = (expand_as(level(t), x) for level in (plan.alpha, plan.sigma, plan.beta))
        noisy(sigma, t)
        x0, eps = predict(self.denoiser, x, t)
        return beta * alpha / (2 * sigma) * (alpha * eps - sigma * x0)


def solve(flow, x: Tensor, t: float, s: float, tolerance: float = 1e-9) -> Tensor:
    """Carry points along a velocity field from time t to time s, to a tolerance: a reference for the samplers.

    By SciPy's `solve_ivp` (DOP853), in float64 on the CPU.  Args: flow: `flow(x, t) -> dx/dt`;  x: (batch, *data);
    t, s: different times in [0, 1], in either order, where the flow is defined;  tolerance: relative and absolute, of
    one step, in the mean over the batch.  Returns: (batch, *data), float64. Slow where the field has kinks in time, as
    with a schedule from a table; the flow depends on the signal-to-noise ratio alone, so take a smooth schedule.
    Raises: ValueError if the times are not so; RuntimeError if the solver gives up.
    """
    from scipy.integrate import solve_ivp  # half a second to import, which sampling need not wait for

    t, s = float(as_time(t)), float(as_time(s, "s"))
    if t == s:
        raise ValueError(f"t and s must differ, got {t} twice")

    def velocity(time, flat):
        with torch.no_grad():
            return flow(torch.from_numpy(flat).view(x.shape), torch.tensor(time, dtype=torch.float64)).flatten().numpy()

    start = x.detach().cpu().double().flatten().numpy()
    found = solve_ivp(velocity, (t, s), start, method="DOP853", rtol=tolerance, atol=tolerance)
    if not found.success:
        raise RuntimeError(f"the flow from t={t} to s={s} was not solved: {found.message}")
    return torch.from_numpy(found.y[:, -1].copy()).view(x.shape)
