"""What the letters of chapter 19's equations stand for, at other points and times than the page's."""

import torch

from difflesson.schedule import vp_linear
from tools.formula import Reading, reads


# TODO one reading for each numbered equation: numbers for its letters, from the package or from quadrature, and nothing
# of its structure. `python -m tools.readings 19` evaluates them, and says which mistakes would go unnoticed.
@reads("eq-forward-marginal")
def forward_marginal() -> Reading:
    schedule, t = vp_linear(), 0.4
    x_0, eps = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    letters = {"x_t": schedule.add_noise(x_0, eps, t), "x_0": x_0, r"\varepsilon": eps}
    levels = {r"\alpha_t": schedule.alpha(t), r"\sigma_t": schedule.sigma(t)}
    decoys = {r"\alpha_s": schedule.alpha(0.2), r"\sigma_s": schedule.sigma(0.2)}  # what a typing mistake may put there
    return Reading(letters | levels, decoys)
