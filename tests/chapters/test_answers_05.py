"""The exercises of chapter 05 computed a third way, neither as their solutions nor as their checkers do."""

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq

from tests.oracles.third_answers import disagreements


def kept(first: float, last: float, rho: float) -> float:
    """Follow du / dr = -rho^2 u / r + (1 + rho^2) b with b = 1 on the stretch, from 0 to 1."""

    def rate(r, u):
        return -(rho**2) * u / r + (1 + rho**2) * (first <= r <= last)

    u, begin = 0.0, 1e-9
    for left, right in ((begin, max(first, begin)), (max(first, begin), last), (last, 1.0)):
        if right > left:
            u = solve_ivp(
                lambda r, u, a=left, b=right: rate(np.clip(r, a + 1e-15, b - 1e-15), u), (left, right), [u],
                method="LSODA", rtol=1e-11, atol=1e-13,
            ).y[0, -1]  # fmt: skip
    return float(u)


@pytest.mark.answer("5.1")
def test_the_part_kept_by_following_the_error_along_the_clock():
    assert disagreements("5.1", kept) == []


@pytest.mark.answer("5.2")
def test_the_variance_of_ddim_by_walking_one_point():
    """The walk is linear: its factor is where the point 1 ends."""

    def variance(alphas, c):
        alphas, x = alphas.numpy(), 1.0
        for a_t, a_s in zip(alphas[:-1], alphas[1:], strict=True):
            s_t, s_s = np.sqrt(1 - a_t**2), np.sqrt(1 - a_s**2)
            x_0 = a_t * c * x / (a_t**2 * c + s_t**2)
            x = a_s * x_0 + s_s * (x - a_t * x_0) / s_t
        return x**2 * (alphas[0] ** 2 * c + 1 - alphas[0] ** 2)

    assert disagreements("5.2", variance) == []


@pytest.mark.answer("5.3")
def test_the_best_dose_by_the_characteristic_function_of_the_sum():
    """The variance of a sum of normal numbers is minus the second derivative of its log characteristic function."""

    def deviation(edges, spread, rho):
        pieces = zip(edges[:-1], edges[1:], strict=True)
        weights = [quad(lambda r: (1 + rho**2) * r ** (rho**2), a, b, epsabs=1e-13)[0] for a, b in pieces]

        def log_phi(k):
            return sum(np.log(np.exp(-((k * w * s) ** 2) / 2)) for w, s in zip(weights, spread, strict=True))

        return np.sqrt(-2 * log_phi(1.0))

    def answer(edges, spread, doses):
        found = [deviation(edges.numpy(), spread.numpy(), rho) for rho in doses]
        best = int(np.argmin(found))
        return found[best], doses[best]

    assert disagreements("5.3", answer) == []


@pytest.mark.answer("5.4")
def test_the_dose_at_which_memory_and_belief_give_the_wished_weight():
    """rho^2 = d log M / d log r, with the memory M = F / r, and d log F / d log r by its logarithm near r."""

    def dose(r, F, f):
        h = 1e-4  # F near r is F exp(f (r' - r) / F) to first order
        memory = [F * np.exp(f * step / F) / (r + step) for step in (-h, h)]
        square = (np.log(memory[1]) - np.log(memory[0])) / (np.log(r + h) - np.log(r - h))
        if square < -1e-6:
            return "none"
        return brentq(lambda rho: rho**2 - max(square, 0.0), -1e-12, 50) if square > 1e-7 else 0.0

    assert disagreements("5.4", dose) == []
