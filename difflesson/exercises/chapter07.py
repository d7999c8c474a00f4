"""Exercises of chapter 07, the mean shift."""

import math

import torch
from torch import Tensor

from difflesson.divergence import hermite
from difflesson.exercises import Exercise, Mistake
from difflesson.mixture import GaussianMixture


def blobs() -> GaussianMixture:
    """Three blobs in the plane, the first of class 0, the others of class 1."""
    return GaussianMixture(
        weights=[0.2, 0.5, 0.3],
        means=torch.tensor([[-1.0, 0.3], [0.8, -0.4], [0.1, 1.5]], dtype=torch.float64),
        covs=[[[0.5, 0.2], [0.2, 0.3]], [[0.3, -0.1], [-0.1, 0.6]], [[0.4, 0.0], [0.0, 0.2]]],
        labels=[0, 1, 1],
    )


def points() -> Tensor:
    """Some points among the blobs and one outside, (4, 2)."""
    return torch.tensor([[0.0, 0.0], [0.7, -1.1], [-0.6, 1.3], [2.5, -2.0]], dtype=torch.float64)


def hills() -> GaussianMixture:
    """Four hills on the line; class 2 is the second and the last."""
    means = torch.tensor([[-1.5], [-0.2], [0.6], [1.9]], dtype=torch.float64)
    return GaussianMixture([0.3, 0.1, 0.4, 0.2], means, [[[0.3]], [[0.2]], [[0.5]], [[0.1]]], labels=[0, 2, 1, 2])


def places() -> Tensor:
    """Points on the line, (3, 1)."""
    return torch.tensor([[-0.4], [1.2], [-2.5]], dtype=torch.float64)


# --- 7.1 ----------------------------------------------------------------------------------------------------


def gaussians() -> dict[str, tuple]:
    """Cases of 7.1: a Gaussian, a slope and a scale, shapes (d,), (d, d), (d,)."""
    tilted = torch.tensor([[0.6, -0.4], [-0.4, 0.5]], dtype=torch.float64)
    g = torch.tensor([0.7, 1.1], dtype=torch.float64)
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64)
    solid = torch.tensor([[0.5, 0.2, 0.1], [0.2, 0.9, -0.3], [0.1, -0.3, 0.4]], dtype=torch.float64)
    return {
        "gamma = 1, in the plane": (mean, tilted, g, 1.0),
        "gamma = 2.5": (mean.clone(), tilted.clone(), g.clone(), 2.5),
        "gamma = -0.5, in three dimensions": (torch.ones(3).double(), solid, torch.arange(3).double() / 3, -0.5),
        "gamma = 0": (mean.clone(), tilted.clone(), g.clone(), 0.0),
        "gamma = 6, on the line": (mean[:1] - 3, tilted[:1, :1] / 8, -g[:1], 6.0),
    }


def mean_by_quadrature(mean: Tensor, cov: Tensor, g: Tensor, gamma: float) -> Tensor:
    """The mean of `N(mean, cov) exp(gamma g . x)`, normalised, by Gauss-Hermite quadrature: (d,)."""
    nodes, weights = hermite(30, len(mean))
    x = mean + nodes @ torch.linalg.cholesky(cov).T
    weights = weights * (gamma * (x @ g)).exp()
    return weights @ x / weights.sum()


# --- 7.2 ----------------------------------------------------------------------------------------------------


def coefficient_by_brute_force(alpha_t: float, alpha_s: float) -> float:
    """In one dimension: both conditional means on a grid, and the classifier's gradient by a difference quotient."""
    grid = torch.linspace(-12, 12, 48_001, dtype=torch.float64)
    alpha_ts = alpha_t / alpha_s
    var = 1 - alpha_ts**2
    class_at_s = [normal(grid, alpha_s * m, 1 - 0.6 * alpha_s**2) for m in (-1.0, 1.4)]  # data: variance 0.4

    def at(x_t: float):
        joint = torch.stack([p * normal(x_t, alpha_ts * grid, var) for p in class_at_s])  # (classes, grid)
        means = (joint[1] @ grid / joint[1].sum(), joint.sum(0) @ grid / joint.sum())
        return means[0] - means[1], (joint[1].sum() / joint.sum()).log()

    h = 1e-4
    gradient = (at(0.3 + h)[1] - at(0.3 - h)[1]) / (2 * h)
    return float(at(0.3)[0] / gradient)


def normal(x, mean, var: float) -> Tensor:
    """The density of `N(mean, var)` at x."""
    return torch.exp(-((x - mean) ** 2) / (2 * var)) / math.sqrt(2 * math.pi * var)


# --- 7.3 ----------------------------------------------------------------------------------------------------


def covariance_by_brute_force(at_s: GaussianMixture, x: Tensor, label: int, alpha_ts: float) -> Tensor:
    """Moments of prior times likelihood on a grid over the line or the plane."""
    axis = torch.linspace(-8, 8, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * at_s.dim).view(-1, at_s.dim)
    log_prior = at_s.given(label).log_prob(grid)
    covs = []
    for point in x:
        log = log_prior - (point - alpha_ts * grid).square().sum(1) / (2 * (1 - alpha_ts**2))
        share = log.softmax(0)
        off = grid - share @ grid
        covs.append((share[:, None] * off).T @ off)
    return torch.stack(covs)


def covariance(at_s, x, label, alpha_ts, *, curvature="class", front=2, inner=1.0, sigma=0.5, identity=1.0):
    """The solution with parts that can be got wrong; `sigma` is the power of the variance that `noised` is given."""
    var = 1 - alpha_ts**2
    at_t = at_s.noised(alpha_ts, var**sigma)
    given = at_t.given(label)
    hessian = {
        "class": given.hessian(x),
        "everything": at_t.hessian(x),
        "classifier": given.hessian(x) - at_t.hessian(x),
        "earlier": at_s.given(label).hessian(x),
    }[curvature]
    return var / alpha_ts**front * (identity * torch.eye(x.shape[1], dtype=x.dtype) + inner * var * hessian)


def short_step_covariance(at_s, x, label, alpha_ts):
    """The two leading orders, beta (I + beta (I + H))."""
    var, identity = 1 - alpha_ts**2, torch.eye(x.shape[1], dtype=x.dtype)
    hessian = at_s.noised(alpha_ts, math.sqrt(var)).given(label).hessian(x)
    return var * (identity + var * (identity + hessian))


def inverse_of_a_precision(at_s, x, label, alpha_ts):
    """What completing a square of second order gives, with the Hessian of the wrong density."""
    var, identity = 1 - alpha_ts**2, torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.inv(identity / var - at_s.noised(alpha_ts, math.sqrt(var)).given(label).hessian(x))


# --- 7.4 ----------------------------------------------------------------------------------------------------


def rate_by_noising_a_little(at_t: GaussianMixture, x: Tensor, label: int, rate: float) -> Tensor:
    """One-sided difference quotients of two lengths, extrapolated: noise can be added, not taken away."""
    first = at_t.class_log_prob(x, label)

    def quotient(h: float) -> Tensor:
        later = at_t.noised(math.exp(-rate * h / 2), math.sqrt(-math.expm1(-rate * h)))
        return (later.class_log_prob(x, label) - first) / h

    return 2 * quotient(1e-5) - quotient(2e-5)


def rate_of_change(
    at_t, x, label, rate, *, half=0.5, cross=2.0, square=1.0, drift=1.0, diffusion=1.0, free=1.0, stray=0.0
):
    """The solution with parts that can be got wrong."""
    g = at_t.class_gradient(x, label)
    laplacian = (at_t.given(label).hessian(x) - free * at_t.hessian(x)).diagonal(dim1=1, dim2=2).sum(1)
    terms = drift * (x * g) + square * g * g + cross * g * at_t.score(x) + stray
    return half * rate * (terms.sum(1) + diffusion * laplacian)


def rate_of_class_density(at_t, x, label, rate):
    """The time derivative of log p_t(x | y), without the subtraction."""
    given = at_t.given(label)
    score, laplacian = given.score(x), given.hessian(x).diagonal(dim1=1, dim2=2).sum(1)
    return rate / 2 * (x.shape[1] + (x * score).sum(1) + laplacian + score.square().sum(1))


# --- 7.5 ----------------------------------------------------------------------------------------------------


def third_derivatives() -> dict[str, tuple]:
    """Cases of 7.5: symmetric tensors (d, d, d)."""
    lopsided = torch.zeros(2, 2, 2, dtype=torch.float64)
    lopsided[0, 0, 0] = 0.7
    for place in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):  # d^3 / dx_1 dx_2^2, in whichever order
        lopsided[place] = -0.5
    saddle = torch.zeros(2, 2, 2, dtype=torch.float64)
    saddle[1, 1, 1] = -1.2
    for place in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):  # no trace: it does not push the mean
        saddle[place] = 1.2
    return {
        "one dimension, third = 1": (torch.ones(1, 1, 1, dtype=torch.float64),),
        "one dimension, third = -2": (torch.full((1, 1, 1), -2.0, dtype=torch.float64),),
        "the plane, with mixed derivatives": (lopsided,),
        "the plane, a saddle of third order": (saddle,),
        "the plane, no third derivatives": (torch.zeros(2, 2, 2, dtype=torch.float64),),
        "one dimension, third = 30": (torch.full((1, 1, 1), 30.0, dtype=torch.float64),),
    }


def constant_by_quadrature(third: Tensor) -> float:
    """KL of `exp(-|u|^2 / 2 beta + third(u, u, u) / 6)` from its closest Gaussian over beta^3, extrapolated to 0."""
    dim = len(third)
    axis = torch.linspace(-7, 7, {1: 20_001, 2: 501}[dim], dtype=torch.float64)  # in units of sqrt(beta)
    z = torch.cartesian_prod(*[axis] * dim).view(-1, dim)
    cubic = torch.einsum("ni,nj,nk,ijk->n", z, z, z, third) / 6

    def ratio(beta: float) -> Tensor:
        log_p = (beta**1.5 * cubic - z.square().sum(1) / 2).log_softmax(0)
        p = log_p.exp()
        away = z - p @ z
        precision = torch.linalg.inv((away * p[:, None]).T @ away)
        log_q = (-torch.einsum("ni,ij,nj->n", away, precision, away) / 2).log_softmax(0)
        return p @ (log_p - log_q) / beta**3

    beta = 0.05 / max(1.0, float(third.abs().max())) ** (2 / 3)
    return float((8 * ratio(beta / 2) - ratio(beta)) / 7)  # the next term is of relative order beta^3


EXERCISES = [
    Exercise(
        number="7.1",
        title="multiplying by the exponential of a linear function moves a Gaussian by its covariance times the slope",
        cases=gaussians,
        truth=mean_by_quadrature,
        mistakes=[
            Mistake(
                "only the diagonal of the covariance",
                lambda mean, cov, g, gamma: mean + gamma * cov.diagonal() * g,
                "right for round Gaussians only. What does a correlation between coordinates do to the step?",
            ),
            Mistake(
                "standard deviation for variance",
                lambda mean, cov, g, gamma: mean + gamma * torch.linalg.cholesky(cov) @ g,
                "check the units: mean has the unit of x, g its inverse. What has the unit of x squared?",
            ),
            Mistake(
                "precision for covariance",
                lambda mean, cov, g, gamma: mean + gamma * torch.linalg.solve(cov, g),
                "a wide Gaussian must move further than a narrow one; yours moves less.",
            ),
            Mistake(
                "covariance forgotten",
                lambda mean, cov, g, gamma: mean + gamma * g,
                "your answer does not depend on cov. How far does a very narrow Gaussian move?",
            ),
            Mistake(
                "half the shift",
                lambda mean, cov, g, gamma: mean + gamma * cov @ g / 2,
                "half of it. The half in front of the square and the 2 of the cross term belong together.",
            ),
            Mistake(
                "the shift alone",
                lambda mean, cov, g, gamma: gamma * cov @ g,
                "this is how far it moves. Where does it start?",
            ),
            Mistake(
                "w for gamma",
                lambda mean, cov, g, gamma: mean + (gamma - 1) * cov @ g,
                "at gamma = 1 yours does not move. Is gamma here the whole scale, or what is added to 1?",
            ),
            Mistake(
                "gamma squared",
                lambda mean, cov, g, gamma: mean + gamma**2 * cov @ g,
                "a negative gamma must push the other way. In which power does it enter the exponent?",
            ),
            Mistake(
                "gamma forgotten",
                lambda mean, cov, g, gamma: mean + cov @ g,
                "your answer does not depend on gamma.",
            ),
            Mistake(
                "wrong sign",
                lambda mean, cov, g, gamma: mean - gamma * cov @ g,
                "it moves to where the factor is small. Look at the sign once more.",
            ),
        ],
    ),
    Exercise(
        number="7.2",
        title="the exact coefficient is beta / alpha, not any variance",
        cases=lambda: {
            "a short step": (0.6, 0.61),
            "a long step": (0.3, 0.9),
            "to the data": (0.5, 1.0),
            "from noise": (0.06, 0.95),
            "near the data": (0.98, 0.999),
        },
        truth=coefficient_by_brute_force,
        mistakes=[
            Mistake(
                "the large variance",
                lambda alpha_t, alpha_s: 1 - (alpha_t / alpha_s) ** 2,
                "good for short steps. x_t is a shrunken x_s: who divides by the shrinking?",
            ),
            Mistake(
                "the small variance",
                lambda alpha_t, alpha_s: (1 - alpha_s**2) / (1 - alpha_t**2) * (1 - (alpha_t / alpha_s) ** 2),
                "this is the variance of DDPM's step. Your answer does nothing in a step to the data; the truth does.",
            ),
            Mistake(
                "alpha of the whole way for alpha of the step",
                lambda alpha_t, alpha_s: (1 - alpha_t**2) / alpha_t,
                "this is a step all the way to the data. How much does the signal shrink between s and t?",
            ),
            Mistake(
                "standard deviation for variance",
                lambda alpha_t, alpha_s: math.sqrt(1 - (alpha_t / alpha_s) ** 2) * alpha_s / alpha_t,
                "check the units: the gradient has the inverse unit of x. What must multiply it to give a length?",
            ),
            Mistake(
                "alpha squared",
                lambda alpha_t, alpha_s: (alpha_s / alpha_t) ** 2 - 1,
                "too large by one factor of alpha_{t|s}: mean and covariance do not divide by the same power.",
            ),
            Mistake(
                "alpha read as its own square, and no division",
                lambda alpha_t, alpha_s: 1 - alpha_t / alpha_s,
                "here alpha^2 + sigma^2 = 1: which power of alpha_{t|s} is 1 - beta? And who divides by the shrinking?",
            ),
            Mistake(
                "alpha read as its own square",
                lambda alpha_t, alpha_s: (1 - alpha_t / alpha_s) * math.sqrt(alpha_s / alpha_t),
                "this is right for codes whose alpha is the square of ours. Here alpha^2 + sigma^2 = 1.",
            ),
            Mistake(
                "beta read off one alpha too few",
                lambda alpha_t, alpha_s: alpha_s / alpha_t - 1,
                "the division is right, the variance is not: sigma_{t|s}^2 = 1 - alpha_{t|s} to which power?",
            ),
            Mistake(
                "multiplied by alpha for divided",
                lambda alpha_t, alpha_s: (1 - (alpha_t / alpha_s) ** 2) * alpha_t / alpha_s,
                "smaller than beta; the truth is larger. x_t is a shrunken x_s: what does solving for x_s do?",
            ),
            Mistake(
                "divided by alpha_t",
                lambda alpha_t, alpha_s: (1 - (alpha_t / alpha_s) ** 2) / alpha_t,
                "right in a step to the data. By how much does the signal shrink between s and t only?",
            ),
            Mistake(
                "divided by alpha_s",
                lambda alpha_t, alpha_s: (1 - (alpha_t / alpha_s) ** 2) / alpha_s,
                "alpha_s is what happened before this step. By how much does the signal shrink between s and t?",
            ),
            Mistake(
                "times swapped",
                lambda alpha_t, alpha_s: alpha_t / alpha_s - alpha_s / alpha_t,
                "negative: the label would push away from its class. Which of the two times has the smaller alpha?",
            ),
        ],
        tolerance=1e-5,
    ),
    Exercise(
        number="7.3",
        title="Tweedie's second formula, with the class's own curvature",
        cases=lambda: {
            "a short step, label 1": (blobs(), points(), 1, 0.98),
            "a long step, label 1": (blobs(), points(), 1, 0.6),
            "a long step, label 0": (blobs(), points(), 0, 0.6),
            "nearly all the way, label 1": (blobs(), points(), 1, 0.05),
            "on the line, label 2": (hills(), places(), 2, 0.8),
        },
        truth=covariance_by_brute_force,
        mistakes=[
            Mistake(
                "the label forgotten",
                lambda *a: covariance(*a, curvature="everything"),
                "this is the covariance of p(x_s | x_t). Where does the label come in?",
            ),
            Mistake(
                "the classifier's curvature alone",
                lambda *a: covariance(*a, curvature="classifier"),
                "this uses the second derivatives of log p(y | x). The formula is about another density.",
            ),
            Mistake(
                "1 for the identity",
                lambda at_s, x, label, alpha_ts: covariance(at_s, x, label, alpha_ts)
                + (1 / alpha_ts**2 - 1) * (1 - torch.eye(x.shape[1], dtype=x.dtype)),
                "right on the diagonal. What is 1 when it stands for a matrix?",
            ),
            Mistake(
                "the density at time s",
                lambda *a: covariance(*a, curvature="earlier"),
                "the curvature belongs to a density of the noisier point, and x is one. Which method gets you there?",
            ),
            Mistake(
                "variance for standard deviation",
                lambda *a: covariance(*a, sigma=1.0),
                "look at the second argument of noised: is it a variance?",
            ),
            Mistake(
                "leading orders only",
                short_step_covariance,
                "right for short steps only. The formula on the page has no approximation in it.",
            ),
            Mistake(
                "no alpha at all",
                lambda *a: covariance(*a, front=0),
                "a covariance scales with the square of its variable. How does x_t shrink with x_s?",
            ),
            Mistake(
                "one alpha too few",
                lambda *a: covariance(*a, front=1),
                "a covariance scales with the square of its variable. How does x_t shrink with x_s?",
            ),
            Mistake(
                "the inverse of a precision",
                inverse_of_a_precision,
                "this is what the curvature of a classifier does to a Gaussian. The formula needs no inverse.",
            ),
            Mistake(
                "the curvature with the other sign",
                lambda *a: covariance(*a, inner=-1.0),
                "at a maximum of the density the step must be narrow, not wide. Which sign has the curvature there?",
            ),
            Mistake(
                "the identity forgotten",
                lambda *a: covariance(*a, identity=0.0),
                "near a maximum your variances are negative. What is the covariance where the density is flat?",
            ),
            Mistake(
                "the variance counted twice",
                lambda at_s, x, label, alpha_ts: covariance(at_s, x, label, alpha_ts, inner=1 - alpha_ts**2),
                "the curvature counts too little in short steps. What multiplies it inside the bracket?",
            ),
        ],
    ),
    Exercise(
        number="7.4",
        title="the time term is a Fokker-Planck equation",
        cases=lambda: {
            "label 1, rate 1": (blobs().noised(0.8, 0.6), points(), 1, 1.0),
            "label 0, rate 4": (blobs().noised(0.6, 0.8), points(), 0, 4.0),
            "label 1, rate 0": (blobs().noised(0.6, 0.8), points(), 1, 0.0),
            "on the line, label 2, rate 20": (hills().noised(0.3, 0.91**0.5), places(), 2, 20.0),
        },
        truth=rate_by_noising_a_little,
        mistakes=[
            Mistake(
                "square of the difference for difference of the squares",
                lambda *a: rate_of_change(*a, cross=0.0),
                "the score of the whole mixture is missing. Expand |s + g|^2 - |s|^2.",
            ),
            Mistake(
                "the squares forgotten",
                lambda *a: rate_of_change(*a, cross=0.0, square=0.0),
                "log p does not obey the same equation as p: the logarithm adds a term.",
            ),
            Mistake(
                "one half forgotten",
                lambda *a: rate_of_change(*a, half=1.0),
                "off by a constant factor everywhere. Look at the coefficient of the equation.",
            ),
            Mistake(
                "the drift forgotten",
                lambda *a: rate_of_change(*a, drift=0.0),
                "right at the origin only. The forward process also shrinks.",
            ),
            Mistake(
                "the drift with the wrong sign",
                lambda *a: rate_of_change(*a, drift=-1.0),
                "expand the divergence of x p, and divide by p: what stands in front of x . grad log p?",
            ),
            Mistake(
                "the Laplacian forgotten",
                lambda *a: rate_of_change(*a, diffusion=0.0),
                "the squares are there, but the second derivatives of log p are not.",
            ),
            Mistake(
                "the Laplacian without the label not subtracted",
                lambda *a: rate_of_change(*a, free=0.0),
                "second derivatives of log p(x | y) only. Which other density does Bayes' rule divide by?",
            ),
            Mistake(
                "the cross term once",
                lambda *a: rate_of_change(*a, cross=1.0),
                "nearly: expand |s + g|^2 once more, and count the mixed terms.",
            ),
            Mistake(
                "a stray dimension",
                lambda *a: rate_of_change(*a, stray=1.0),
                "off by a constant. The divergence of x is d for both densities: what is left of it in the difference?",
            ),
            Mistake(
                "the equation without the label not subtracted",
                rate_of_class_density,
                "this is the rate of log p(x | y). Bayes' rule has one more density in it.",
            ),
            Mistake(
                "time backwards",
                lambda *a: rate_of_change(*a, half=-0.5),
                "right size, wrong direction. Which way does the forward equation run?",
            ),
        ],
        tolerance=1e-5,
    ),
    Exercise(
        number="7.5",
        title="what is left is the sum of the squares of all third derivatives, over twelve",
        cases=third_derivatives,
        truth=constant_by_quadrature,
        mistakes=[
            Mistake(
                "not squared",
                lambda third: third.sum() / 12,
                "a divergence cannot be negative, and turning the axis round cannot change it.",
            ),
            Mistake(
                "the mean left where it was",
                lambda third: third.square().sum() / 12 + torch.einsum("iik->k", third).square().sum() / 8,
                "the cubic also pushes the mean, and the closest Gaussian follows. What is left without that part?",
            ),
            Mistake(
                "the mean left where it was, counted as on the line",
                lambda third: third.square().sum() * 15 / 72,
                "E[z^6] = 15 counts all of the cubic. Which part of it does the closest Gaussian follow?",
            ),
            Mistake(
                "one entry only",
                lambda third: third.flatten()[0] ** 2 / 12,
                "right on the line. In the plane the tensor has eight entries, and turning the axes mixes them.",
            ),
            Mistake(
                "mixed derivatives forgotten",
                lambda third: sum(third[i, i, i] ** 2 for i in range(len(third))) / 12,
                "right in one dimension. In the plane your answer changes when the axes turn; a divergence does not.",
            ),
            Mistake(
                "traced first",
                lambda third: torch.einsum("iik->k", third).square().sum() / 12,
                "right in one dimension. In the plane there is more than one way to contract a tensor with itself.",
            ),
            Mistake(
                "the mean square of He_3 forgotten",
                lambda third: third.square().sum() / 72,
                "nearly: what is the mean of the square of the third Hermite polynomial?",
            ),
            Mistake(
                "one half too many",
                lambda third: third.square().sum() / 24,
                "half of the truth. The divergence is E[(r - 1)^2] / 2; is another half hidden in your coefficient?",
            ),
            Mistake(
                "the quarter of the covariance",
                lambda third: third.square().sum() / 48,
                "the quarter belongs to an error of the covariance. Here covariance and mean are right.",
            ),
            Mistake(
                "the one half of the divergence forgotten",
                lambda third: third.square().sum() / 6,
                "twice too large: r - 1 - log r is how much, to second order in r - 1?",
            ),
            Mistake(
                "the coefficient of the polynomial forgotten",
                lambda third: third.square().sum() / 2,
                "six times too large: in which multiple does the third cumulant enter the expansion?",
            ),
        ],
        tolerance=1e-4,
    ),
]
