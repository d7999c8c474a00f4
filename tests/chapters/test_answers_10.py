"""The exercises of chapter 10 computed a third way, in NumPy and SciPy."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

from tests.oracles.third_answers import disagreements


@pytest.mark.answer("10.1")
def test_the_guided_v_is_the_turned_pair_with_the_clean_point_moved_along_the_gradient():
    """(x_t, v) is (x_0, eps) turned. The clean point moves, and the noise so that x_t stays."""

    def guided(v, g, gamma, alpha):
        sigma, x_t = np.sqrt(1 - alpha**2), 1.3
        turn = np.array([[alpha, sigma], [-sigma, alpha]])  # (x_t, v) = turn (x_0, eps)
        x_0, eps = np.tensordot(turn.T, np.stack([np.full(v.shape, x_t), v.numpy()]), 1)
        lift = gamma * sigma**2 / alpha * g.numpy()
        return np.tensordot(turn, np.stack([x_0 + lift, eps - alpha / sigma * lift]), 1)[1]

    assert disagreements("10.1", guided) == []


@pytest.mark.answer("10.2")
def test_the_repair_is_by_the_geometric_mean_of_the_two_shares_of_signal():
    def factor(alpha_t, alpha_s, eta, gamma):
        beta, var = 1 - (alpha_t / alpha_s) ** 2, 1 - alpha_t**2
        b = beta / var
        v = eta**2 * b * (1 - b) * var * (alpha_s / alpha_t) ** 2
        return gamma * var * alpha_s / alpha_t * (1 - np.sqrt((1 - b) * (1 - eta**2 * b))) / v

    assert disagreements("10.2", factor) == []


@pytest.mark.answer("10.3")
def test_the_guided_clean_point_is_our_own_rule_at_the_shrunk_point():
    """x0 + gamma sigma^2 / alpha times the gradient, by central differences of the log-probability."""

    def guided(denoised, z, sigma_tilde, grad_of, gamma):
        angle = np.arctan(sigma_tilde)
        alpha, sigma, h = np.cos(angle), np.sin(angle), 1e-5
        x, slope = alpha * z, np.zeros(tuple(z.shape))
        for axis in range(2):
            step = np.eye(2)[axis] * h
            up, down = (
                grad_of.noisy.class_log_prob(x + torch.from_numpy(sign * step), grad_of.label).numpy()
                for sign in (1, -1)
            )
            slope[:, axis] = (up - down) / (2 * h)
        return denoised.numpy() + gamma * sigma**2 / alpha * slope

    assert disagreements("10.3", guided) == []


@pytest.mark.answer("10.4")
def test_the_noise_for_a_share_is_a_root_of_the_variance_that_the_way_home_adds():
    """The variance of the sampler's end from one point: what each dq adds, shrunk on the rest of the way."""

    def noise(phi, U, alpha):
        q = 1 / alpha**2 - 1

        def undecided(rho):  # substitution w = log(U + q)
            power = 1 + rho**2
            return rho**2 * quad(lambda w: np.exp(w) * (U / np.exp(w)) ** power, np.log(U), np.log(U + q))[0]

        return brentq(lambda rho: undecided(rho) / U - (1 - phi), 0, 20, xtol=1e-13)

    assert disagreements("10.4", noise) == []


@pytest.mark.answer("10.5")
def test_the_guided_variance_is_a_sum_over_the_noises_in_the_variable_u_over_c_plus_q():
    """With w = C / (C + q) the integral runs from 0 to 1."""

    def variance(C, U, gamma, rho, integrate):
        power = 1 + rho**2

        def part(w):  # dq = C dw / w^2
            q = C / w - C
            return np.exp(power * (gamma * np.log(w) - (1 - gamma) * np.log1p(q / U))) * C / w**2

        pieces = [1e-12, 1e-9, 1e-6, 1e-4, 1e-2, 0.1, 0.5, 1.0]
        total = sum(quad(part, a, b, limit=200)[0] for a, b in zip(pieces[:-1], pieces[1:], strict=True))
        tail = part(1e-12) * 1e-12 / (power - 1)  # there the integrand is a power of w
        return rho**2 * (total + tail)

    assert disagreements("10.5", variance) == []
