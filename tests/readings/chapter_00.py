"""What the letters of chapter 00's equations stand for, at other points and another time than the page's."""

import torch

from difflesson import conventions, guidance
from difflesson.schedule import vp_linear
from tests.oracles.mixtures import FOUR
from tests.readings.common import moments, normal_nodes
from tools.formula import Reading, law, reads

SCHEDULE, T = vp_linear(), 0.4
ALPHA, SIGMA = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
LEVEL = {r"\alpha_t": ALPHA, r"\sigma_t": SIGMA, r"\alpha_s": SCHEDULE.alpha(0.2), r"\sigma_s": SCHEDULE.sigma(0.2)}
X = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 2.1]], dtype=torch.float64)
GAMMA = 3.5
COND, UNCOND = FOUR.mixture().pair(SCHEDULE, 1)(X, torch.tensor(T, dtype=torch.float64))
GUIDED = guidance.classifier_free(FOUR.mixture().pair(SCHEDULE, 1), GAMMA)(X, torch.tensor(T, dtype=torch.float64))
GUESSES = {
    r"\hat\varepsilon_c": COND.eps, r"\hat\varepsilon_u": UNCOND.eps, r"\hat\varepsilon_\gamma": GUIDED.eps,
    r"\gamma": GAMMA,
}  # fmt: skip


@reads("eq-forward-marginal")
def forward_marginal() -> Reading:
    eps, weights = normal_nodes(2)
    x0 = X[:1].expand_as(eps)
    noised = {"x_0": x0, r"\varepsilon": eps, "x_t": SCHEDULE.add_noise(x0, eps, T)}
    drawn = {r"\sim": lambda eps: moments(eps[:, :, 0], weights), r"\mathcal N": law, "I": torch.eye(2)[None]}
    return Reading(noised | drawn, decoys=LEVEL, statements=3)


@reads("eq-cfg")
def guided() -> Reading:
    return Reading(GUESSES)


@reads("eq-cfg-weight")
def weight() -> Reading:
    w = conventions.guidance_scale(GAMMA, "gamma", "ho-salimans")
    return Reading(GUESSES | {"w": w}, statements=2)


@reads("eq-parameterisations")
def parameterisations() -> Reading:
    """v is the velocity on the circle alpha = cos, sigma = sin."""
    best = FOUR.mixture().denoiser(SCHEDULE)(X, torch.tensor(T, dtype=torch.float64))
    angle = torch.atan2(SIGMA, ALPHA)

    def circle(angle):
        return angle.cos() * best.x0 + angle.sin() * best.eps

    _, v = torch.autograd.functional.jvp(circle, angle, torch.ones_like(angle))
    guesses = {"x_t": X, r"\hat x_0": best.x0, r"\hat\varepsilon": best.eps, r"\hat v": v}
    slope = {r"\nabla \log p_t(x_t)": FOUR.mixture().noised(ALPHA, SIGMA).score(X)}
    return Reading(guesses | slope, decoys=LEVEL, statements=3)
