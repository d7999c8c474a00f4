"""The exercises of chapter 19 computed a third way, in NumPy and SciPy."""

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("19.1")
def test_the_two_factors_are_read_off_unit_vectors():
    """Untold, wanted and unwanted are three axes: the library's line has its factors as coordinates."""

    def factors(gamma):
        wanted, unwanted = np.eye(3)[1], np.eye(3)[2]
        line = unwanted + gamma * (wanted - unwanted)
        return line[1], -line[2]

    assert disagreements("19.1", factors) == []


@pytest.mark.answer("19.2")
def test_lambda_is_the_root_of_the_mean_scale():
    def lam(gamma, log_snr):
        q = np.exp(-log_snr.numpy() / 2)  # sigma / alpha, falling to 0
        mean = np.mean(q[:-1] / (q[:-1] - q[1:]))
        return brentq(lambda value: value * mean - gamma, -50, 50, xtol=1e-13)

    assert disagreements("19.2", lam) == []


@pytest.mark.answer("19.3")
def test_what_heals_is_one_root_a_direction():
    def scales(v, v_1, v_2, log_snr):
        q = np.exp(-log_snr)
        now, constant = [], []
        for true, good, weak in zip(v.tolist(), v_1.tolist(), v_2.tolist(), strict=True):
            off = lambda g, true=true, good=good, weak=weak: g / (good + q) + (1 - g) / (weak + q) - 1 / (true + q)  # noqa: E731
            now.append(brentq(off, 0, 1000, xtol=1e-13))
            end = lambda g, true=true, good=good, weak=weak: g * np.log(good) + (1 - g) * np.log(weak) - np.log(true)  # noqa: E731
            constant.append(brentq(end, 0, 1000, xtol=1e-13))
        return np.array(now), np.array(constant)

    assert disagreements("19.3", scales) == []


@pytest.mark.answer("19.4")
def test_the_nearest_plain_step_is_the_least_of_a_parabola():
    def nearest(eps_c, eps_u, gamma, phi):
        scales, off = [], []
        for told, untold in zip(eps_c.numpy(), eps_u.numpy(), strict=True):
            guided = (1 - gamma) * untold + gamma * told
            rescaled = guided * (1 - phi + phi * np.std(told) / np.std(guided))

            def away(g, told=told, untold=untold, rescaled=rescaled):
                return np.sum((untold + g * (told - untold) - rescaled) ** 2)

            found = minimize_scalar(away, bracket=(-1, 8), tol=1e-14)
            scales.append(found.x)
            off.append(np.sqrt(away(found.x) / np.sum((told - untold) ** 2)))
        return np.array(scales), np.array(off)

    assert disagreements("19.4", nearest) == []
