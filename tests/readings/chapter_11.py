"""What the letters of chapter 11's equations stand for: another mixture and other times than the page's."""

import torch
from torch import Tensor

from difflesson import conventions, guidance, kernels, losses, plane
from difflesson.schedule import cosine
from tests.oracles.mixtures import FOUR
from tests.readings.common import F64, gradient, normal_nodes, posterior
from tools.formula import Reading, law, reads

MIXTURE, SCHEDULE, LABEL = FOUR.mixture(), cosine(), 1
T, S = torch.tensor(0.55, dtype=F64), torch.tensor(0.3, dtype=F64)
IDENTITY = torch.eye(2, dtype=F64)[None]
POINTS = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]], dtype=F64)
LEVELS = {
    r"\alpha_t": SCHEDULE.alpha(T), r"\sigma_t": SCHEDULE.sigma(T), r"\alpha_s": SCHEDULE.alpha(S),
    r"\sigma_s": SCHEDULE.sigma(S),
}  # fmt: skip
NOISY, GAMMA = MIXTURE.noised(SCHEDULE.alpha(T), SCHEDULE.sigma(T)), 3.5
PAIR = MIXTURE.pair(SCHEDULE, LABEL)


def guesses() -> dict[str, object]:
    cond, uncond = PAIR(POINTS, T)
    guided = guidance.classifier_free(PAIR, GAMMA)(POINTS, T)
    names = {r"\hat\varepsilon_c": cond, r"\hat\varepsilon_u": uncond, r"\hat\varepsilon_\gamma": guided}
    return {name: guess.eps for name, guess in names.items()} | {r"\gamma": GAMMA}


def densities() -> dict[str, object]:
    """p_t and its gradient, by autograd, at POINTS."""
    x = POINTS.clone().requires_grad_()
    return {
        r"\nabla": gradient(x), "p_t(x)": NOISY.log_prob(x).exp(), "p_t(x | y)": NOISY.given(LABEL).log_prob(x).exp(),
        "p_t(y | x)": NOISY.class_log_prob(x, LABEL).exp(),
    }  # fmt: skip


@reads("eq-guess-is-score")
def guess_is_score() -> Reading:
    alpha, sigma = LEVELS[r"\alpha_t"], LEVELS[r"\sigma_t"]
    mean, _ = posterior(MIXTURE.log_prob, POINTS, float(alpha), float(sigma))
    letters = {r"\mathbb E[\varepsilon | x_t = x]": (POINTS - alpha * mean) / sigma}
    return Reading(letters, LEVELS | densities(), tolerance=1e-7)


@reads("eq-score-decomposition")
def score_decomposition() -> Reading:
    return Reading(densities())


@reads("eq-implicit-classifier")
def implicit_classifier() -> Reading:
    letters = {name: guesses()[name] for name in (r"\hat\varepsilon_u", r"\hat\varepsilon_c")}
    return Reading(densities() | letters, LEVELS | guesses())


@reads("eq-cfg")
def guided() -> Reading:
    return Reading(guesses())


@reads("eq-cfg-weight")
def weight() -> Reading:
    w = conventions.guidance_scale(GAMMA, "gamma", "ho-salimans")
    letters = {name: value for name, value in guesses().items() if name != r"\hat\varepsilon_\gamma"}
    return Reading(letters | {"w": w}, guesses(), statements=2)


@reads("eq-label-dropout")
def label_dropout() -> Reading:
    """Labels as columns with one 1, so that a probable label is a sum; 400,000 are dropped."""
    one = torch.eye(3, dtype=F64)  # classes 0 and 1, and the null label
    hidden = losses.drop_labels(torch.ones(400_000, dtype=torch.long), 0.2, 2, torch.Generator().manual_seed(0))
    return Reading(
        {"y'": one[hidden].mean(0)[None], r"\varnothing": one[2:], "y": one[1:2], "p": 0.2,
         r"\cases": lambda a, chance_a, b, chance_b: a * chance_a + b * chance_b},
        words=(r"\text{independently of } x_0, y, \varepsilon, t",), tolerance=0.01,
    )  # fmt: skip


def some_network(scale: float):
    """A function in the place of a v-network, (x, log_snr, label) -> v: a polynomial, other for each label."""

    def network(x: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        shift = label.to(x)[:, None] - 0.7
        return scale * (0.3 * x.flip(1) + shift * x + 0.1 * x**2 - 0.2 * shift)

    return network


@reads("eq-v-loss")
def v_loss() -> Reading:
    """The package's loss, and the draws that it makes from the same seed."""
    (x0, label), seed = MIXTURE.sample(50, torch.Generator().manual_seed(1)), 7
    loss = losses.v_loss(some_network(1.0), SCHEDULE, x0, label, 0.3, torch.Generator().manual_seed(seed), null=2)
    generator = torch.Generator().manual_seed(seed)
    t, eps = losses.times_and_noise(x0, generator)
    seen = losses.drop_labels(label, 0.3, 2, generator)
    alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
    told, untold, whole = (some_network(1.0)(alpha * x0 + sigma * eps, SCHEDULE.log_snr(t), y)
                           for y in (label, torch.full_like(label, 2), seen))  # fmt: skip
    letters = {
        r"L(\theta)": loss, "d": 2, r"\mathbb E_{x_0, y, \varepsilon, t, y'}": lambda values: values.mean(0),
        r"v_\theta(x_t, t, y')": whole, "v": alpha * eps - sigma * x0,
    }  # fmt: skip
    return Reading(letters, {r"v_\theta(x_t, t, y)": told, r"v_\theta(x_t, t, \varnothing)": untold})


@reads("eq-dropout-optimum")
def dropout_optimum() -> Reading:
    """Three networks, one noise level. Left, sums over clean points and noises; right, over a grid of noisy points."""
    alpha, sigma, p = SCHEDULE.alpha(T), SCHEDULE.sigma(T), 0.3
    networks = [some_network(scale) for scale in (0.5, 1.0, -0.8)]
    z, shares = normal_nodes(4, order=5)
    left = []
    for network in networks:
        risk = 0.0
        for weight, mean, cov, label in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.covs, MIXTURE.labels, strict=True):
            x0, eps = mean + z[:, :2] @ torch.linalg.cholesky(cov).T, z[:, 2:]
            x, v, told = alpha * x0 + sigma * eps, alpha * eps - sigma * x0, torch.full((len(z),), int(label))
            for chance, y in ((1 - p, told), (p, torch.full_like(told, 2))):
                risk += weight * chance * (shares @ (network(x, T, y) - v).square().sum(1))
        left.append(risk / 2)
    axis = torch.linspace(-7, 7, 141, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    x, labels = grid.repeat(2, 1), torch.arange(2).repeat_interleave(len(grid))
    joint = torch.cat([(NOISY.log_prob(grid) + NOISY.class_log_prob(grid, y)).exp() for y in (0, 1)])
    weights = joint / joint.sum()

    def best(label: Tensor | None) -> Tensor:
        guess = MIXTURE.denoiser(SCHEDULE, label)(x, T)
        return (alpha * guess.eps - sigma * guess.x0).repeat(3, 1)

    answers = {y: torch.cat([network(x, T, label) for network in networks])
               for y, label in (("y", labels), (r"\varnothing", torch.full_like(labels, 2)))}  # fmt: skip
    return Reading(
        {r"L(\theta)": torch.stack(left), "d": 2, "p": p, r"\mathbb E": lambda values: values.reshape(3, -1) @ weights,
         r"\mathbb E[v | x_t, y]": best(labels), r"\mathbb E[v | x_t]": best(None)}
        | {rf"v_\theta(x_t, t, {y})": values for y, values in answers.items()},
        constant=r"\text{const}_p", tolerance=1e-6, equivalent={
            r"\| ^ 2 [+ -> -] \text{const} _ p": "a constant has no sign",
            r"^ 2 + [\text{const} _ p -> ( \text{const} _ p ) ^ 2] .": "its square is a constant as well",
        },
    )  # fmt: skip


@reads("eq-curl")
def curl() -> Reading:
    def field(x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] ** 2 * x[:, 1], torch.sin(x[:, 0]) + x[:, 1] ** 3], 1)

    rows = [torch.autograd.functional.jacobian(lambda point: field(point[None])[0], point) for point in POINTS]
    rows = torch.stack(rows)
    partial = {rf"\frac{{\partial f_{i + 1}}}{{\partial x_{j + 1}}}": rows[:, i, j] for i in (0, 1) for j in (0, 1)}
    sentence = r"f = \nabla \phi \text{ for some } \phi \iff \operatorname{curl} f = 0 \text{ everywhere}"
    return Reading({r"\operatorname{curl} f": plane.curl(field, POINTS)}, partial, words=(sentence,))


@reads("eq-low-temperature")
def low_temperature() -> Reading:
    cold = guidance.tempered(PAIR.cond, 1.7, SCHEDULE)
    return Reading({r"\varepsilon": PAIR.cond(POINTS, T).eps, r"\kappa": 1.7, r"\to": lambda eps: cold(POINTS, T).eps})


@reads("eq-cosine")
def clock() -> Reading:
    u = torch.linspace(0.1, 0.9, 7, dtype=F64)
    ends = {r"\lambda_\text{max}": 9.0, r"\lambda_\text{min}": -7.0}
    return Reading({r"\lambda": cosine(9.0, -7.0).log_snr(u), "u": u} | ends, statements=3, defines=("a", "b"))


EARLY, LATE = SCHEDULE.log_snr(S), SCHEDULE.log_snr(T)  # lambda' and lambda: the paper's clock runs to the data
ALPHA_TS, SIGMA_TS = SCHEDULE.transition(T, S)
CLEAN = torch.tensor([[0.3, -1.2], [0.8, 0.1], [-0.4, 0.6]], dtype=F64)
CLOCK = {
    r"\alpha_\lambda": SCHEDULE.alpha(T), r"\sigma_\lambda": SCHEDULE.sigma(T), "r": torch.exp(LATE - EARLY),
    r"\alpha_{\lambda'}": SCHEDULE.alpha(S), r"\sigma_{\lambda'}": SCHEDULE.sigma(S), r"z_\lambda": POINTS,
    r"z_{\lambda'}": CLEAN.flip(0), "x": CLEAN, "I": IDENTITY,
}  # fmt: skip


def given_the_clean_point() -> tuple[Tensor, Tensor]:
    """Mean and variance of z at the early time given the late one and x, by conditioning a pair of Gaussians."""
    prior, shared = SCHEDULE.sigma(S) ** 2, ALPHA_TS * SCHEDULE.sigma(S) ** 2
    gain = shared / SCHEDULE.sigma(T) ** 2
    return SCHEDULE.alpha(S) * CLEAN + gain * (POINTS - SCHEDULE.alpha(T) * CLEAN), prior - gain * shared


@reads("eq-forward-transition")
def forward_transition() -> Reading:
    name = r"\sigma^2_{\lambda | \lambda'}"
    step = law(ALPHA_TS * CLOCK[r"z_{\lambda'}"], SIGMA_TS**2 * IDENTITY)
    letters = {r"q(z_\lambda | z_{\lambda'})": step, name: SIGMA_TS**2, r"\mathcal N": law}
    return Reading(letters, CLOCK, statements=2)


@reads("eq-ddpm")
def ddpm() -> Reading:
    mean, _ = given_the_clean_point()
    return Reading({r"\tilde\mu_{\lambda' | \lambda}(z_\lambda, x)": mean}, CLOCK)


@reads("eq-posterior-variance")
def posterior_variance() -> Reading:
    return Reading({r"\tilde\sigma^2_{\lambda' | \lambda}": given_the_clean_point()[1]}, CLOCK)


@reads("eq-variance-interpolation")
def variance_interpolation() -> Reading:
    step = kernels.ddpm(PAIR.cond, SCHEDULE, variance=0.3)(POINTS, T, S)
    large, small = r"\sigma^2_{\lambda | \lambda'}", r"\tilde\sigma^2_{\lambda' | \lambda}"
    return Reading({r"\text{variance}": step.var, "v": 0.3, large: SIGMA_TS**2, small: given_the_clean_point()[1]})
