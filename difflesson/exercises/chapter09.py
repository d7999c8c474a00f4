"""Exercises of chapter 09, similarity control."""

import math

import torch
from torch import Tensor

from difflesson.exercises import Exercise, Mistake

# --- 9.1 ----------------------------------------------------------------------------------------------------


def directions() -> dict[str, tuple]:
    """Cases of 9.1: a point and a direction, (d,) each."""

    def vector(*values):
        return torch.tensor(values, dtype=torch.float64)

    return {
        "in the plane": (vector(1.2, -0.7), vector(0.5, 2.0)),
        "nearly opposite": (vector(-2.0, 0.1), vector(3.0, 0.2)),
        "in five dimensions": (vector(0.3, -1.0, 0.8, 0.0, 2.0), vector(-0.4, 0.6, 0.1, 1.5, 0.2)),
        "far out, a short direction": (vector(30.0, 40.0, -5.0), vector(0.0, 0.0, 0.2)),
    }


def pull_by_differences(x: Tensor, u: Tensor) -> Tensor:
    """Central differences of the cosine, improved once."""

    def central(h):
        steps = h * torch.eye(len(x), dtype=x.dtype)
        both = [torch.nn.functional.cosine_similarity(x + sign * steps, u[None]) for sign in (1, -1)]
        return (both[0] - both[1]) / (2 * h)

    return (4 * central(1e-3) - central(2e-3)) / 3


# --- 9.2 ----------------------------------------------------------------------------------------------------


def blobs() -> dict[str, tuple]:
    """Cases of 9.2: weights, means and variances on the line, and gamma."""

    def three(gamma):
        return tuple(
            torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.3, 0.2], [-1.0, 0.4, 2.0], [1.5, 0.6, 0.2])
        ) + (gamma,)

    two = (
        torch.tensor([0.9, 0.1], dtype=torch.float64),
        torch.tensor([0.0, 3.0], dtype=torch.float64),
        torch.tensor([0.4, 0.3], dtype=torch.float64),
    )
    return {
        "gamma = 1": three(1.0), "gamma = -2, to the left": three(-2.0), "gamma = 0": three(0.0),
        "gamma = 4": three(4.0), "gamma = 100": three(100.0), "two blobs": (*two, 1.3),
    }  # fmt: skip


def shares_by_summing(weights: Tensor, means: Tensor, variances: Tensor, gamma: float) -> Tensor:
    """The mass of each weighed blob, summed over a grid of its own around where the weight moves it; in logarithms."""
    logs = []
    for w, m, v in zip(weights.tolist(), means.tolist(), variances.tolist(), strict=True):
        x = torch.linspace(-12, 12, 4001, dtype=torch.float64) * math.sqrt(v) + m + gamma * v
        log = gamma * x - (x - m) ** 2 / 2 / v - math.log(2 * math.pi * v) / 2
        logs.append(math.log(w) + float(log.logsumexp(0)) + math.log(float(x[1] - x[0])))
    return torch.tensor(logs, dtype=torch.float64).softmax(0)


# --- 9.3 ----------------------------------------------------------------------------------------------------


def noisy_points() -> dict[str, tuple]:
    """Cases of 9.3: x, v, alpha, sigma, gamma."""
    x = torch.tensor([-2.0, 0.3, 1.5], dtype=torch.float64)
    return {
        "gamma = 1": (x, 0.7, 0.8, 0.6, 1.0), "gamma = 6, wide data": (x, 3.0, 0.6, 0.8, 6.0),
        "gamma = 0": (x, 0.7, 0.8, 0.6, 0.0), "much noise": (x, 1.4, 0.28, 0.96, 3.0),
        "hardly any noise": (x, 1.4, 0.96, 0.28, 2.0),
    }  # fmt: skip


def pulls_by_summing(x: Tensor, v: float, alpha: float, sigma: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Both means over a grid of clean points, and the derivatives of their logarithm and of gamma times them."""
    x = x.clone().requires_grad_()
    clean = torch.linspace(-9, 9, 6001, dtype=torch.float64)[:, None] * math.sqrt(v)
    chances = (-(clean**2) / 2 / v - (x - alpha * clean) ** 2 / 2 / sigma**2).log_softmax(0)
    sim = -(clean**2) / 2
    exact = (chances + gamma * sim).logsumexp(0)
    mean = gamma * (chances.exp() * sim).sum(0)
    return tuple(torch.autograd.grad(f.sum(), x, retain_graph=True)[0] for f in (exact, mean))


def pulls(x: Tensor, v: float, alpha: float, sigma: float, gamma: float, **wrong) -> tuple[Tensor, Tensor]:
    """The two pulls, with a mistake in them."""
    scale = alpha**2 * v + sigma**2
    slope = wrong.get("slope", alpha * v / scale)
    spread = wrong.get("spread", v * sigma**2 / scale)
    mean = -gamma * slope**2 * x
    return mean / (1 + gamma * spread), mean


# --- 9.4 ----------------------------------------------------------------------------------------------------


def samplers() -> dict[str, tuple]:
    """Cases of 9.4: rho and B."""
    return {
        "DDPM": (1.0, 10.05),
        "DDIM": (0.0, 10.05),
        "much noise": (2.5, 6.0),
        "little noise": (0.2, 10.0),
        "a short way": (1.0, 0.3),
    }


def counted_by_steps(rho: float, length: float) -> float:
    """The mean of the points after 200,000 steps, by the rule itself, improved once."""

    def walk(steps):
        mean, beta = 0.0, length / steps
        for _ in range(steps):
            mean += beta * (mean / 2 + (1 + rho**2) / 2 * (-mean + 1))
        return mean

    return 2 * walk(40_000) - walk(20_000)


# --- 9.5 ----------------------------------------------------------------------------------------------------


def pictures() -> dict[str, tuple]:
    """Cases of 9.5: a Gram matrix, m, alpha, sigma."""
    slanted = torch.tensor([[0.6, -0.35], [-0.35, 0.3]], dtype=torch.float64)
    round_ = 0.2 * torch.eye(2, dtype=torch.float64)
    return {
        "six points": (slanted, 6, 0.8, 0.6), "two points": (slanted, 2, 0.6, 0.8),
        "hardly any noise": (round_, 9, 0.96, 0.28),
        "a hundred points": (slanted, 100, 0.6, 0.8), "no picture, only noise": (0 * round_, 4, 0.28, 0.96),
    }  # fmt: skip


def gram_by_projection(G: Tensor, m: int, alpha: float, sigma: float) -> Tensor:
    """Taking the middle away is a projection P of the m numbers of a coordinate; noise gives sigma^2 trace(P) / m."""
    projection = torch.eye(m, dtype=G.dtype) - 1 / m
    root = torch.linalg.cholesky(G + 1e-30 * torch.eye(2, dtype=G.dtype)) if bool(G.any()) else G
    noise = (projection @ projection.T).trace() / m
    return alpha**2 * root @ root.T + sigma**2 * noise * torch.eye(2, dtype=G.dtype)


EXERCISES = [
    Exercise(
        number="9.1",
        title="the pull of a cosine",
        cases=directions,
        truth=pull_by_differences,
        mistakes=[
            Mistake(
                "length of x forgotten",
                lambda x, u: pull_by_differences(x, u) * x.norm(),
                "the direction is right. How does the pull change when x moves twice as far out?",
            ),
            Mistake(
                "derivative of the length forgotten",
                lambda x, u: u / u.norm() / x.norm(),
                "the length of x depends on x as well: the quotient rule has two terms.",
            ),
            Mistake("inner product", lambda x, u: u, "this is the gradient of x . u."),
            Mistake(
                "u not of length one",
                lambda x, u: pull_by_differences(x, u) * u.norm(),
                "if u is made twice as long, the cosine does not change. Does your pull?",
            ),
            Mistake("sign", lambda x, u: -pull_by_differences(x, u), "you walk away from u."),
            Mistake(
                "the component along x kept",
                lambda x, u: (u / u.norm() + (x @ u) / u.norm() / x.norm() * x / x.norm()) / x.norm(),
                "the pull must have no component along x: making x longer changes nothing.",
            ),
        ],
    ),
    Exercise(
        number="9.2",
        title="which blob wins",
        cases=blobs,
        truth=shares_by_summing,
        mistakes=[
            Mistake(
                "variance forgotten",
                lambda w, m, v, gamma: (w.log() + gamma * m).softmax(0),
                "a wide blob has points far beyond its mean: the mean of e^(gamma x) is not e^(gamma m).",
            ),
            Mistake(
                "gamma not squared",
                lambda w, m, v, gamma: (w.log() + gamma * m + gamma * v / 2).softmax(0),
                "with which power of gamma does the variance come in? Complete the square.",
            ),
            Mistake(
                "half forgotten",
                lambda w, m, v, gamma: (w.log() + gamma * m + gamma**2 * v).softmax(0),
                "complete the square once more: the variance has a factor too large.",
            ),
            Mistake(
                "standard deviation",
                lambda w, m, v, gamma: (w.log() + gamma * m + gamma**2 * v.sqrt() / 2).softmax(0),
                "variance or standard deviation?",
            ),
            Mistake(
                "weights forgotten",
                lambda w, m, v, gamma: (gamma * m + gamma**2 * v / 2).softmax(0),
                "at gamma = 0 the shares must be the weights.",
            ),
            Mistake(
                "variance subtracted",
                lambda w, m, v, gamma: (w.log() + gamma * m - gamma**2 * v / 2).softmax(0),
                "a wide blob gains by a large gamma. Yours loses.",
            ),
        ],
    ),
    Exercise(
        number="9.3",
        title="the mean similarity pulls 1 + gamma tau^2 times too hard",
        cases=noisy_points,
        truth=pulls_by_summing,
        mistakes=[
            Mistake(
                "order",
                lambda *a: pulls_by_summing(*a)[::-1],
                "right numbers in the wrong order: which of the two is smaller?",
            ),
            Mistake(
                "the same twice",
                lambda *a: (pulls_by_summing(*a)[1],) * 2,
                "the second is right. The logarithm of a mean of exponentials is not the mean of the exponents.",
            ),
            Mistake(
                "at the noisy point",
                lambda x, v, alpha, sigma, gamma: (pulls_by_summing(x, v, alpha, sigma, gamma)[0], -gamma * x),
                "the first is right. The second asks about the crowd, not about the noisy point.",
            ),
            Mistake(
                "chain rule",
                lambda x, v, alpha, sigma, gamma: pulls(
                    x, v, alpha, sigma, gamma, slope=(alpha * v / (alpha**2 * v + sigma**2)) ** 0.5
                ),
                "the mean of x_0 depends on x by a factor. It comes in twice: in the mean, and in its derivative.",
            ),
            Mistake(
                "variance of the data",
                lambda x, v, alpha, sigma, gamma: pulls(x, v, alpha, sigma, gamma, spread=v),
                "the second is right. In the first, which variance has the crowd of x?",
            ),
            Mistake(
                "noise variance",
                lambda x, v, alpha, sigma, gamma: pulls(x, v, alpha, sigma, gamma, spread=sigma**2),
                "the second is right. In the first, the crowd of x is neither as wide as the data nor as the noise.",
            ),
            Mistake(
                "sign",
                lambda *a: tuple(-p for p in pulls_by_summing(*a)),
                "the similarity is largest at 0: pulls point there.",
            ),
            Mistake(
                "one half",
                lambda *a: tuple(p / 2 for p in pulls_by_summing(*a)),
                "the derivative of x^2 / 2 is x.",
            ),
        ],
        tolerance=1e-5,
    ),
    Exercise(
        number="9.4",
        title="how often the condition is counted",
        cases=samplers,
        truth=counted_by_steps,
        mistakes=[
            Mistake(
                "DDPM only",
                lambda rho, B: 2 * -math.expm1(-B / 2),
                "right for rho = 1. How does the push depend on rho, and how the shrinking?",
            ),
            Mistake(
                "shrinking by B",
                lambda rho, B: (1 + rho**2) / rho**2 * -math.expm1(-(rho**2) * B) if rho else B / 2,
                "the limit for large B is right. By how much does one step shrink the mean?",
            ),
            Mistake(
                "no shrinking",
                lambda rho, B: (1 + rho**2) / 2 * B,
                "each push is right, but pushes from long ago have shrunk since: x / 2 and the score do not cancel.",
            ),
            Mistake(
                "infinitely long",
                lambda rho, B: (1 + rho**2) / rho**2 if rho else B / 2,
                "right for B without end. What is left of it on a way of length B?",
            ),
            Mistake(
                "rho not squared",
                lambda rho, B: (1 + rho) / rho * -math.expm1(-rho * B / 2) if rho else B / 2,
                "rho^2 is a variance. Which power stands in the rule?",
            ),
            Mistake(
                "push without the noise's share",
                lambda rho, B: 1 / rho**2 * -math.expm1(-(rho**2) * B / 2) if rho else B / 2,
                "the shrinking is right. The gradient is added to the score: with which factor does the score come in?",
            ),
            Mistake("once", lambda rho, B: 1.0, "so it should be; it is not. Follow the mean from step to step."),
        ],
        tolerance=1e-5,
    ),
    Exercise(
        number="9.5",
        title="the style of noise",
        cases=pictures,
        truth=gram_by_projection,
        mistakes=[
            Mistake(
                "middle forgotten",
                lambda G, m, alpha, sigma: alpha**2 * G + sigma**2 * torch.eye(2, dtype=G.dtype),
                "nearly. The middle of the noise is taken away as well.",
            ),
            Mistake(
                "alpha not squared",
                lambda G, m, alpha, sigma: gram_by_projection(G, m, alpha**0.5, sigma),
                "the noise's part is right. A Gram matrix is made of products of two features.",
            ),
            Mistake(
                "m - 1 in place",
                lambda G, m, alpha, sigma: gram_by_projection(G, m, alpha, sigma) / (1 - 1 / m),
                "this Gram matrix divides by m, not by m - 1.",
            ),
            Mistake(
                "noise forgotten",
                lambda G, m, alpha, sigma: alpha**2 * G,
                "the noise has features too, and their squares do not average out.",
            ),
            Mistake(
                "sigma not squared",
                lambda G, m, alpha, sigma: gram_by_projection(G, m, alpha, sigma**0.5),
                "the picture's part is right. Standard deviation or variance?",
            ),
            Mistake(
                "noise in all entries",
                lambda G, m, alpha, sigma: alpha**2 * G + sigma**2 * (1 - 1 / m),
                "the noises of the two coordinates are independent: what is the mean of their product?",
            ),
        ],
    ),
]  # fmt: skip
