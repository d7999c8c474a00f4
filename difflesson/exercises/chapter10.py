"""Exercises of chapter 10, the general case."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difflesson import guidance, kernels
from difflesson.denoiser import Prediction
from difflesson.exercises import Exercise, Mistake
from difflesson.mixture import GaussianMixture
from difflesson.plane import four_blobs
from difflesson.schedule import cosine

# --- 10.1 ---------------------------------------------------------------------------------------------------


def predictions() -> dict[str, tuple]:
    """Cases of 10.1: a guess of v and a gradient of one shape, gamma, alpha."""
    generator = torch.Generator().manual_seed(10)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "points of the plane, gamma = 1": (draw(4, 2), draw(4, 2), 1.0, 0.8),
        "an image, much noise, gamma = 3": (draw(1, 1, 3, 3), draw(1, 1, 3, 3), 3.0, 0.2),
        "little noise, away from the label": (draw(4, 2), draw(4, 2), -1.5, 0.97),
        "gamma = 0, no guidance": (draw(1, 3), draw(1, 3), 0.0, 0.5),
    }


def guided_v_by_both_guesses(v: Tensor, g: Tensor, gamma: float, alpha: float) -> Tensor:
    """Into eps and x0 at some x_t, which must not matter; guide eps; solve for x0; and back."""
    sigma, x = math.sqrt(1 - alpha**2), torch.full_like(v, 0.7)
    eps = sigma * x + alpha * v - gamma * sigma * g
    return alpha * eps - sigma * (x - sigma * eps) / alpha


# --- 10.2 ---------------------------------------------------------------------------------------------------


def repairs() -> dict[str, tuple]:
    """Cases of 10.2: alpha_t, alpha_s, eta, gamma."""
    return {
        "eta = 1, a middle step": (0.5, 0.7, 1.0, 1.0),
        "eta = 0.3, a short step": (0.6, 0.62, 0.3, 2.0),
        "eta = 0.5, a long step, away from the label": (0.1, 0.9, 0.5, -1.5),
        "more noise than DDPM, near the data": (0.95, 0.96, 1.4, 3.0),
        "gamma = 0": (0.3, 0.5, 0.8, 0.0),
    }


def fresh_variance(alpha_t: float, alpha_s: float, eta: float) -> float:
    """eta^2 times the variance of x_s given x_t and x_0, from their joint Gaussian."""
    shared = alpha_t / alpha_s * (1 - alpha_s**2)
    return eta**2 * (1 - alpha_s**2 - shared**2 / (1 - alpha_t**2))


def factor_by_two_runs(alpha_t: float, alpha_s: float, eta: float, gamma: float) -> float:
    """The package's step with and without a gradient of 1 in the score, over its variance."""
    schedule = cosine()
    t, s = (schedule.time(torch.tensor(2 * math.log(a / math.sqrt(1 - a * a))).double()) for a in (alpha_t, alpha_s))
    x = torch.tensor([[0.4]], dtype=torch.float64)

    def plain(x, t):
        return Prediction.from_eps(x, 0.3 * x, schedule.alpha(t), schedule.sigma(t))

    tilted = guidance.tilt(plain, lambda x, t: torch.ones_like(x), gamma, schedule)
    told, untold = (kernels.ddim(model, schedule, eta)(x, t, s) for model in (tilted, plain))
    return float((told.mean - untold.mean) / told.var)


def repair(alpha_t, alpha_s, eta, gamma, *, power=2, over=True, squares=False, large=False):
    """The solution with parts that can be got wrong; complex where a root is, as for a reader who makes the mistake."""
    if squares:
        alpha_t, alpha_s = alpha_t**0.5, alpha_s**0.5
    ratio, var_t, var_s = alpha_t / alpha_s, 1 - alpha_t**2, 1 - alpha_s**2
    v = abs(eta) ** power * (1 if large else var_s / var_t) * (1 - ratio**2)
    moved = var_t**0.5 * (var_t**0.5 / ratio - (var_s - v) ** 0.5)
    return gamma * moved / (v if over else 1)


# --- 10.3 ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GradientAt:
    """The classifier's gradient in x, at one noise level of ours; it also knows the log-probability itself."""

    noisy: GaussianMixture
    label: int

    def __call__(self, x: Tensor) -> Tensor:
        return self.noisy.class_gradient(x, self.label)


def denoised_points() -> dict[str, tuple]:
    """Cases of 10.3: the clean guess and z (N, 2), sigma tilde, a gradient, gamma."""
    generator, blobs = torch.Generator().manual_seed(11), four_blobs()
    found = {}
    for name, sigma_tilde, label, gamma in (
        ("as much noise as signal", 1.0, 1, 1.0),
        ("much noise, gamma = 3", 4.0, 0, 3.0),
        ("little noise, away from the label", 0.3, 1, -2.0),
        ("gamma = 0", 0.7, 1, 0.0),
    ):
        z, clean = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64)
        alpha = 1 / math.sqrt(1 + sigma_tilde**2)
        noisy = blobs.noised(alpha, alpha * sigma_tilde)
        found[name] = (clean, 1.5 * z, sigma_tilde, GradientAt(noisy, label), gamma)
    return found


def denoised_by_their_score(denoised, z, sigma_tilde, grad_of, gamma):
    """Their clean guess is z + sigma~^2 score; the classifier as a function of z, differentiated by autograd."""
    leaf = z.clone().requires_grad_()
    grad_of.noisy.class_log_prob(leaf / math.hypot(1, sigma_tilde), grad_of.label).sum().backward()
    return denoised + gamma * sigma_tilde**2 * leaf.grad


def moved_guess(denoised, z, sigma_tilde, grad_of, gamma, *, inside=1, chain=1, power=2):
    """The solution with its three factors to be got wrong: alpha in the point, alpha in front, sigma tilde."""
    alpha = 1 / math.hypot(1, sigma_tilde)
    return denoised + gamma * alpha**chain * sigma_tilde**power * grad_of(alpha**inside * z)


# --- 10.4 ---------------------------------------------------------------------------------------------------


def shares() -> dict[str, tuple]:
    """Cases of 10.4: phi, U, alpha."""
    return {
        "half decided, in the middle": (0.5, 0.8, 0.7),
        "nearly all decided, much noise": (0.95, 1.7, 0.2),
        "nearly nothing decided": (0.03, 0.3, 0.6),
        "wide data, near the end": (0.9, 4.0, 0.9),
        "standard normal data": (0.4, 1.0, 0.5),
    }


def noise_by_bisection(phi: float, U: float, alpha: float) -> float:
    """The decided share by a sum over the way home, in q; then the noise that gives phi, by bisection."""
    q = (1 - alpha**2) / alpha**2
    middles = (torch.arange(4000).double() + 0.5) * q / 4000
    way = float((1 / (U + middles)).sum() * q / 4000)  # d log z is (1 + rho^2) / 2 of it

    def decided(rho):
        return math.exp(-(1 + rho**2) * way) * (U + q) / U

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if decided(middle) > phi else (low, middle)
    return low


def reliability(U: float, alpha: float) -> float:
    """R of the chapter."""
    return alpha**2 * U / (alpha**2 * U + 1 - alpha**2)


# --- 10.5 ---------------------------------------------------------------------------------------------------


def over_all_noise(f) -> float:
    """The integral of f(q) over q from 0 to infinity, by the trapezoidal rule in log q; f is given all q at once."""
    log_q = torch.linspace(-40, 80, 6001, dtype=torch.float64)
    return float(torch.trapezoid(f(log_q.exp()) * log_q.exp(), log_q))


def guided_samplers() -> dict[str, tuple]:
    """Cases of 10.5: C, U, gamma, rho, and what integrates."""
    return {
        "gamma = 3, DDPM's noise": (0.7, 1.9, 3.0, 1.0, over_all_noise),
        "gamma = 1, the class itself": (0.5, 3.0, 1.0, 0.8, over_all_noise),
        "gamma = 0, all data": (0.5, 3.0, 0.0, 1.5, over_all_noise),
        "little noise": (0.4, 1.5, 2.0, 0.6, over_all_noise),
        "much noise, away from the label": (0.9, 1.2, -0.7, 2.5, over_all_noise),
    }


def variance_by_runge_kutta(C: float, U: float, gamma: float, rho: float, integrate) -> float:
    """The equation of the variance on the way down, in log q, from where the start is forgotten."""
    high, low, steps = 60.0, -25.0, 3000
    h = (high - low) / steps

    def rate(log_q, ratio):  # of the variance over q, against log q falling
        q = math.exp(log_q)
        pull = (1 + rho**2) * (gamma * q / (C + q) + (1 - gamma) * q / (U + q))
        return rho**2 - (pull - 1) * ratio

    log_q, ratio = high, 1.0
    for _ in range(steps):
        a = rate(log_q, ratio)
        b = rate(log_q - h / 2, ratio + h / 2 * a)
        c = rate(log_q - h / 2, ratio + h / 2 * b)
        d = rate(log_q - h, ratio + h * c)
        ratio += h / 6 * (a + 2 * b + 2 * c + d)
        log_q -= h
    return ratio * math.exp(log_q)


def guided_spread(C, U, gamma, rho, integrate, *, power=None, front=None):
    """The solution with its two powers of the noise to be got wrong."""
    power = 1 + rho**2 if power is None else power(rho)
    front = rho**2 if front is None else front(rho)
    return front * integrate(lambda q: ((C / (C + q)) ** gamma * (U / (U + q)) ** (1 - gamma)) ** power)


EXERCISES = [
    Exercise(
        number="10.1",
        title="v moves by gamma sigma / alpha times the gradient: part of it because eps moves, part because x0 does",
        cases=predictions,
        truth=guided_v_by_both_guesses,
        mistakes=[
            Mistake(
                "only eps moved",
                lambda v, g, gamma, alpha: v - gamma * alpha * math.sqrt(1 - alpha**2) * g,
                "you let eps move and keep x0. But x_t stays where it is: what must x0 do then?",
            ),
            Mistake(
                "only x0 moved",
                lambda v, g, gamma, alpha: v - gamma * (1 - alpha**2) ** 1.5 / alpha * g,
                "you let x0 move and keep eps. Both change.",
            ),
            Mistake(
                "the rule for eps",
                lambda v, g, gamma, alpha: v - gamma * math.sqrt(1 - alpha**2) * g,
                "this is how eps moves. By how much does v move if eps moves by that?",
            ),
            Mistake(
                "the rule for x0",
                lambda v, g, gamma, alpha: v + gamma * (1 - alpha**2) / alpha * g,
                "this is how x0 moves. Which way does v point: to the noise or to the data?",
            ),
            Mistake(
                "sign",
                lambda v, g, gamma, alpha: v + gamma * math.sqrt(1 - alpha**2) / alpha * g,
                "the right size, the wrong way: v points from the data to the noise.",
            ),
            Mistake(
                "variance for standard deviation",
                lambda v, g, gamma, alpha: v - gamma * (1 - alpha**2) / alpha * g,
                "nearly. Is it sigma or sigma squared that turns a score into a guess of eps?",
            ),
            Mistake(
                "alpha squared for alpha",
                lambda v, g, gamma, alpha: v - gamma * math.sqrt(1 - alpha) / math.sqrt(alpha) * g,
                "here alpha is the factor of the signal, not its square.",
            ),
            Mistake(
                "gamma forgotten",
                lambda v, g, gamma, alpha: v - math.sqrt(1 - alpha**2) / alpha * g,
                "at gamma = 0 nothing may change. Yours does.",
            ),
        ],
    ),
    Exercise(
        number="10.2",
        title="for short steps the factor is gamma (1 + eta^2) / (2 eta^2): it explodes as the noise goes",
        cases=repairs,
        truth=factor_by_two_runs,
        mistakes=[
            Mistake(
                "short steps only",
                lambda alpha_t, alpha_s, eta, gamma: gamma * (1 + eta**2) / (2 * eta**2),
                "right in the limit of short steps. The question is about steps of any length.",
            ),
            Mistake(
                "DDPM's coefficient",
                lambda alpha_t, alpha_s, eta, gamma: (
                    gamma * (alpha_s / alpha_t - alpha_t / alpha_s) / fresh_variance(alpha_t, alpha_s, eta)
                ),
                "right at eta = 1. With another noise the same label moves the step by another amount.",
            ),
            Mistake(
                "not divided by the variance",
                lambda *a: repair(*a, over=False),
                "this is how far the step must move. The code still multiplies by v.",
            ),
            Mistake(
                "no repair",
                lambda alpha_t, alpha_s, eta, gamma: gamma,
                "this is the mean shift as it was. At which eta alone is it nearly right?",
            ),
            Mistake(
                "squares for the factors",
                lambda *a: repair(*a, squares=True),
                "here alpha is the factor of the signal, not its square.",
            ),
            Mistake(
                "eta for its square",
                lambda *a: repair(*a, power=1),
                "eta multiplies the standard deviation of the posterior. What does it do to the variance?",
            ),
            Mistake(
                "the large variance",
                lambda *a: repair(*a, large=True),
                "DDIM's eta counts in the posterior's standard deviation. Yours counts in that of the forward step.",
            ),
            Mistake(
                "times exchanged",
                lambda alpha_t, alpha_s, eta, gamma: repair(alpha_s, alpha_t, eta, gamma),
                "which of the two times is the noisier one, and so has the smaller alpha?",
            ),
            Mistake(
                "gamma forgotten",
                lambda alpha_t, alpha_s, eta, gamma: repair(alpha_t, alpha_s, eta, 1.0),
                "at gamma = 0 the factor must be zero. Yours is not.",
            ),
        ],
    ),
    Exercise(
        number="10.3",
        title="the clean guess moves by gamma sigma~^2 times the gradient in z, and that has a factor alpha",
        cases=denoised_points,
        truth=denoised_by_their_score,
        mistakes=[
            Mistake(
                "the chain rule forgotten",
                lambda *a: moved_guess(*a, chain=0),
                "the point is right. But a step in z is a shorter step in x: what does that do to the slope?",
            ),
            Mistake(
                "their point in our classifier",
                lambda *a: moved_guess(*a, inside=0),
                "the classifier has never seen points that are not shrunk. Where is z in its coordinates?",
            ),
            Mistake(
                "neither the point nor the slope translated",
                lambda *a: moved_guess(*a, inside=0, chain=0),
                "this treats our classifier as if it were trained in their coordinates. Translate its argument, "
                "then its slope.",
            ),
            Mistake(
                "sigma for its square",
                lambda *a: moved_guess(*a, power=1),
                "that belongs to the guess of the noise. What does Tweedie's formula have for the clean point?",
            ),
            Mistake(
                "alpha twice",
                lambda *a: moved_guess(*a, chain=2),
                "one factor alpha too many in front of the gradient.",
            ),
            Mistake(
                "alpha the wrong way",
                lambda *a: moved_guess(*a, chain=-1),
                "a step in z is a shorter step in x. Does the slope get larger or smaller?",
            ),
            Mistake(
                "sign",
                lambda denoised, z, sigma_tilde, grad_of, gamma: moved_guess(denoised, z, sigma_tilde, grad_of, -gamma),
                "the right size, the wrong way: the clean point goes uphill.",
            ),
            Mistake(
                "alpha squared for alpha",
                lambda *a: moved_guess(*a, inside=2, chain=2),
                "is 1 / (1 + sigma~^2) alpha, or its square?",
            ),
        ],
    ),
    Exercise(
        number="10.4",
        title="the decided share is R to the power rho^2: all of it without noise, whatever the noise level",
        cases=shares,
        truth=noise_by_bisection,
        mistakes=[
            Mistake(
                "the gain for the share",
                lambda phi, U, alpha: (2 * math.log(phi) / math.log(reliability(U, alpha)) - 1) ** 0.5,
                "this is the factor of x_t, not the share of a variance: square it, and mind the variance of x_t.",
            ),
            Mistake(
                "the undecided share",
                lambda phi, U, alpha: math.sqrt(math.log(1 - phi) / math.log(reliability(U, alpha))),
                "what is left over in the variance is the share that is *not* decided.",
            ),
            Mistake(
                "rho squared",
                lambda phi, U, alpha: math.log(phi) / math.log(reliability(U, alpha)),
                "nearly: is this rho, or its square?",
            ),
            Mistake(
                "shares of standard deviations",
                lambda phi, U, alpha: math.sqrt(2 * math.log(phi) / math.log(reliability(U, alpha))),
                "phi is a share of the variance. Where does your factor two come from?",
            ),
            Mistake(
                "alpha squared for R",
                lambda phi, U, alpha: math.sqrt(math.log(phi) / math.log(alpha**2)),
                "right for data of variance one. What is R for others?",
            ),
            Mistake(
                "alpha taken for its square",
                lambda phi, U, alpha: math.sqrt(math.log(phi) / math.log(reliability(U, alpha**0.5))),
                "here alpha is the factor of the signal, not its square.",
            ),
            Mistake(
                "squared gain without the variance of x_t",
                lambda phi, U, alpha: (math.log(phi) / math.log(reliability(U, alpha)) - 1) ** 0.5,
                "the gain acts on x_t / alpha, which has a larger variance than x_0.",
            ),
        ],
    ),
    Exercise(
        number="10.5",
        title="from the geometric mean of the variances, without noise, to that of the target, with much of it",
        cases=guided_samplers,
        truth=variance_by_runge_kutta,
        mistakes=[
            Mistake(
                "the target",
                lambda C, U, gamma, rho, integrate: 1 / (gamma / C + (1 - gamma) / U),
                "this is what the score says at q = 0. The sampler gets there only if it has much noise.",
            ),
            Mistake(
                "the sampler without noise",
                lambda C, U, gamma, rho, integrate: C**gamma * U ** (1 - gamma),
                "right without noise. Where does rho enter?",
            ),
            Mistake(
                "the flow forgotten",
                lambda *a: guided_spread(*a, power=lambda rho: rho**2),
                "the noise is made up for, but the flow also shrinks: by how much does z shrink in all?",
            ),
            Mistake(
                "the factor of a standard deviation",
                lambda *a: guided_spread(*a, power=lambda rho: (1 + rho**2) / 2),
                "by this z shrinks. You add up variances.",
            ),
            Mistake(
                "DDPM for every noise",
                lambda *a: guided_spread(*a, power=lambda rho: 2, front=lambda rho: 1),
                "right at rho = 1. Put rho into both places where it belongs.",
            ),
            Mistake(
                "rho for its square",
                lambda *a: guided_spread(*a, front=lambda rho: rho),
                "is rho^2 dq the variance of the noise, or rho dq?",
            ),
            Mistake(
                "noise forgotten in front",
                lambda *a: guided_spread(*a, front=lambda rho: 1),
                "how much noise is added between q and q - dq?",
            ),
            Mistake(
                "w for gamma",
                lambda C, U, gamma, rho, integrate: guided_spread(C, U, gamma + 1, rho, integrate),
                "at gamma = 1 the variance of the class must come out, for every rho.",
            ),
            Mistake(
                "class and data exchanged",
                lambda C, U, gamma, rho, integrate: guided_spread(U, C, gamma, rho, integrate),
                "at gamma = 0 the variance of all data must come out, at gamma = 1 that of the class.",
            ),
        ],
        tolerance=1e-4,
    ),
]
