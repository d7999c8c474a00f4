"""What the letters of chapter 14's equations stand for: other mixtures, levels, fields and ripples than the page's."""

import torch
from torch import Tensor

from difflesson.digits.witnesses import truthfulness
from difflesson.divergence import mixture_nodes
from difflesson.mixture import GaussianMixture
from difflesson.schedule import cosine
from tests.readings.common import F64, expectation, gradient
from tools.formula import Reading, reads

MIXTURE = GaussianMixture(
    weights=torch.tensor([0.5, 0.2, 0.3]),
    means=torch.tensor([[-1.0, 0.4], [1.2, 0.3], [0.3, -1.1]]),
    covs=torch.tensor([[[0.5, 0.1], [0.1, 0.3]], [[0.3, -0.1], [-0.1, 0.6]], [[0.2, 0.05], [0.05, 0.4]]]),
    labels=torch.tensor([0, 1, 2]),
)
SCHEDULE = cosine()


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def cross_entropy(log_snr: float) -> Tensor:
    """Of the exact classifier."""
    t = SCHEDULE.time(torch.tensor(log_snr, dtype=F64))
    noisy = MIXTURE.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t))
    x, weights = mixture_nodes(noisy, 20)
    return -sum(weights @ (noisy.class_log_prob(x, y).exp() * noisy.class_log_prob(x, y)) for y in range(3))


@reads("eq-slope-of-doubt")
def slope_of_doubt() -> Reading:
    """Three levels; the mean over nodes and labels by quadrature, the derivative by differences."""
    sigmas, slopes, shares, rates = [], [], [], []
    for level in (-1.5, 0.3, 1.7):
        t = SCHEDULE.time(torch.tensor(level, dtype=F64))
        noisy = MIXTURE.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t))
        x, weights = mixture_nodes(noisy, 20)
        slopes += [noisy.class_gradient(x, y) for y in range(3)]
        shares.append(torch.cat([weights * noisy.class_log_prob(x, y).exp() for y in range(3)]))
        sigmas.append(SCHEDULE.sigma(t).expand(3 * len(x)))
        rates.append((cross_entropy(level + 0.01) - cross_entropy(level - 0.01)) / 0.02)
    shares, size = torch.stack(shares), len(shares[0])

    def mean(values: Tensor) -> Tensor:
        return (shares * values.reshape(shares.shape)).sum(1).repeat_interleave(size)[:, None, None]

    letters = {r"\frac{dL}{d\lambda}": torch.stack(rates).repeat_interleave(size), r"\mathbb E": mean,
               r"\sigma_t": torch.cat(sigmas), "g": torch.cat(slopes)}  # fmt: skip
    return Reading(letters, decoys={r"\alpha_t": (1 - torch.cat(sigmas) ** 2).sqrt()}, tolerance=2e-3)


@reads("eq-scaled-slope")
def scaled_slope() -> Reading:
    """By regression: the covariance of the clean and the noisy pixel over the variance of the noisy one."""
    alpha, v = torch.tensor([0.3, 0.7, 0.9], dtype=F64), torch.tensor([0.2, 1.7, 0.6], dtype=F64)
    sigma = (1 - alpha**2).sqrt()
    root = torch.stack([torch.stack([v.sqrt(), 0 * v], 1), torch.stack([alpha * v.sqrt(), sigma], 1)], 1)
    joint = root @ root.mT  # of the clean and the noisy pixel
    eye = torch.eye(2, dtype=F64)
    slope = (joint[:, 0, 1] / joint[:, 1, 1])[:, None, None] * eye
    letters = {r"\frac{\partial \hat x_0}{\partial x}": slope, r"\alpha_t": alpha, r"\sigma_t": sigma, "v": v,
               "I": eye.expand(3, 2, 2)}  # fmt: skip
    return Reading(letters)


A, B = 2 * normal(7, 3, seed=1), normal(7, 3, seed=1) + 0.7 * normal(7, 3, seed=2)
MEAN = expectation(torch.full((7,), 1 / 7, dtype=F64))


@reads("eq-agreement")
def agreement() -> Reading:
    cosine_of_all = torch.nn.functional.cosine_similarity(A.flatten(), B.flatten(), dim=0)
    return Reading({r"\rho_{ab}": cosine_of_all, "a": A, "b": B, r"\mathbb E": MEAN})


@reads("eq-what-no-scale-mends")
def what_no_scale_mends() -> Reading:
    """The least over scales by least squares; the batch holds each of five scales with each of seven points."""
    best = torch.linalg.lstsq(A.flatten()[:, None], B.flatten()[:, None]).solution[0, 0]
    scales = torch.stack([best - 1, best - 0.1, best, best + 0.3, best + 2])

    def mean(values: Tensor) -> Tensor:
        return values.expand(35, 1, 1).reshape(5, 7).mean(1).repeat_interleave(7)[:, None, None]

    letters = {
        r"\min_\gamma": lambda values: values.expand(35, 1, 1).amin(0, keepdim=True),
        r"\gamma": scales.repeat_interleave(7),
        r"\mathbb E": mean, "a": A.repeat(5, 1), "g": B.repeat(5, 1),
        r"\rho_a": torch.nn.functional.cosine_similarity(A.flatten(), B.flatten(), dim=0),
    }  # fmt: skip
    return Reading(letters)


RHO = {name: torch.tensor(values, dtype=F64) for name, values in
       {"a": [0.9, 0.5, 0.3], "b": [0.4, 0.8, 0.7], "c": [0.6, 0.2, 0.95]}.items()}  # fmt: skip


@reads("eq-three-witnesses")
def three_witnesses() -> Reading:
    a, b, c = RHO.values()
    letters = {r"\rho_a": a, r"\rho_{ab}": a * b, r"\rho_{ac}": a * c, r"\rho_{bc}": b * c}
    return Reading(letters, decoys={r"\rho_b": b, r"\rho_c": c})


@reads("eq-shared-errors")
def shared_errors() -> Reading:
    """What `truthfulness` answers where the agreement of b and c is too large by s."""
    a, b, c = RHO.values()
    s = torch.tensor([0.05, 0.2, -0.1], dtype=F64)
    found = torch.tensor([[truthfulness(*ab_ac_bc.tolist()) for ab_ac_bc in torch.stack(part, 1)] for part in
                          ((a * b, a * c, b * c + s), (b * a, b * c + s, a * c))], dtype=F64)  # fmt: skip
    letters = {r"\hat\rho_a": found[0], r"\hat\rho_b": found[1], r"\rho_a": a, r"\rho_b": b, r"\rho_c": c, "s": s}
    return Reading(letters, statements=2)


@reads("eq-ripple-divergence")
def ripple_divergence() -> Reading:
    """Ripples of falling height at one point: what is left falls like the height cubed."""
    a, x = torch.tensor([0.02, 0.01, 0.005], dtype=F64), torch.tensor([[0.4, -0.3]], dtype=F64)
    k, p = torch.tensor([[3.0, 1.5]], dtype=F64), torch.tensor([0.35], dtype=F64)
    q = torch.sigmoid(torch.logit(p) + a * torch.sin((k * x).sum()))
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    letters = {r"\mathrm{KL}(p \| \tilde p)": kl, "p": p, "a": a, "k": k, "x": x, r"\approx": a**3, r"\sin": torch.sin}
    return Reading(letters, decoys={r"\tilde p": q})


@reads("eq-ripple-slope")
def ripple_slope() -> Reading:
    x = normal(4, 2, seed=5).requires_grad_()
    a, k = torch.tensor([0.3, 0.7, 0.2, 1.1], dtype=F64), normal(4, 2, seed=6) * 2
    odds = 0.3 + x[:, 0] ** 2 - x[:, 1]
    rippled = torch.sigmoid(odds + a * torch.sin((k * x).sum(1)))
    letters = {r"\nabla": gradient(x), r"\tilde p": rippled, r"\ell": odds, "a": a, "k": k, "x": x, r"\cos": torch.cos}
    return Reading(letters, decoys={"p": odds.sigmoid()})
