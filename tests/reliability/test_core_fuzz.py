"""Every argument of the core in every wrong shape and kind: no call answers as if nothing were wrong.

A wrong call raises; or its answer has another shape or dtype than the right one, because it is a right call of another
batch. The few that answer alike for good reason are listed with it.
"""

import pytest
import torch

from difflesson import divergence, guidance, kernels, losses, metrics, plane, similarity
from difflesson.clean_classifier import clean_cov, noisy_answer, step_guess
from difflesson.denoiser import Pair, Prediction, network_denoiser, network_pair
from difflesson.mixture import GaussianMixture
from difflesson.ode import probability_flow
from difflesson.samplers import draw, time_grid
from difflesson.schedule import vp_linear

F64, SCHEDULE = torch.float64, vp_linear()
SEED = torch.Generator().manual_seed(0)
X, Y = torch.randn(2, 4, 3, generator=SEED, dtype=F64)
HESSIAN, CORNERS = -torch.eye(3, dtype=F64).repeat(4, 1, 1), torch.randn(5, 3, generator=SEED, dtype=F64)
PARTS = [0.4, 0.6], Y[:2].clone(), torch.eye(3, dtype=F64).repeat(2, 1, 1)
MIXTURE, LABEL = GaussianMixture(*PARTS), torch.tensor([0, 1, 0, 1])
T, S, TIMES = torch.tensor(0.5, dtype=F64), torch.tensor(0.25, dtype=F64), X[:, 0].sigmoid()
DENOISER = MIXTURE.denoiser(SCHEDULE)
GAUSSIAN, EXACT = kernels.ddpm(DENOISER, SCHEDULE)(X, T, S), kernels.exact(MIXTURE, SCHEDULE)(X, T, S)
FULL = kernels.moment_matched(MIXTURE, SCHEDULE)(X, T, S)


class Network(torch.nn.Module):
    """Answers its question."""

    classes = 2

    def forward(self, x, log_snr, label):
        return x


def echo(x, t):
    return Prediction(x, x)


def ascent(x, t):
    return x


def loss(x0, label):
    return losses.v_loss(Network(), SCHEDULE, x0, label, 0.1, torch.Generator().manual_seed(0), 2)


def reverse(make):
    return lambda x, t, s: make(x, t, s).mean


CALLS = {  # what is called: the call, and right arguments
    "add_noise": (SCHEDULE.add_noise, X, Y, TIMES),
    "from_x0": (lambda *given: Prediction.from_x0(*given).eps, X, Y, T, T),
    "from_eps": (lambda *given: Prediction.from_eps(*given).x0, X, Y, T, T),
    "from_v": (lambda *given: Prediction.from_v(*given).eps, X, Y, T, T),
    "mixture": (lambda means, covs: GaussianMixture([0.4, 0.6], means, covs).log_prob(X), *PARTS[1:]),
    "score": (MIXTURE.score, X),
    "reverse": (lambda x, t, s: MIXTURE.reverse(x, SCHEDULE, t, s).mean, X, T, S),
    "noised": (lambda alpha, sigma: MIXTURE.noised(alpha, sigma).score(X), T, T),
    "denoiser": (lambda x, t, label: MIXTURE.denoiser(SCHEDULE, label)(x, t).x0, X, TIMES, LABEL),
    "network": (lambda x, t, label: network_denoiser(Network(), SCHEDULE, label)(x, t).x0, X, TIMES, LABEL),
    "network_pair": (lambda x, t, label: network_pair(Network(), SCHEDULE, label)(x, t)[0].x0, X, TIMES, LABEL),
    "tilt": (lambda x, t, gamma: guidance.tilt(echo, ascent, gamma, SCHEDULE)(x, t).x0, X, TIMES, TIMES),
    "classifier_free": (lambda x, gamma: guidance.classifier_free(Pair(echo, echo), gamma)(x, T).x0, X, TIMES),
    "tempered": (lambda x, t: guidance.tempered(echo, 2.0, SCHEDULE)(x, t).x0, X, TIMES),
    "implicit_gradient": (guidance.implicit_gradient(Pair(echo, DENOISER), SCHEDULE), X, TIMES),
    "sharpened": (lambda x, label, gamma: guidance.sharpened(ascent, label, gamma)(x, T), X, LABEL, TIMES),
    "linearise": (lambda x, x_s: guidance.linearise(lambda x, t: t * x.sum(1), x, T)(x_s, S), X, Y),
    "ddpm": (reverse(kernels.ddpm(DENOISER, SCHEDULE)), X, T, S),
    "ddim": (reverse(kernels.ddim(DENOISER, SCHEDULE, 0.5)), X, T, S),
    "reverse_sde": (reverse(kernels.reverse_sde(DENOISER, SCHEDULE)), X, T, S),
    "heun": (reverse(kernels.heun(DENOISER, SCHEDULE)), X, T, S),
    "moment_matched": (reverse(kernels.moment_matched(MIXTURE, SCHEDULE)), X, T, S),
    "one_step_mean": (lambda x, score, t, s: kernels.one_step_mean(x, score, SCHEDULE, t, s), X, Y, T, S),
    "Gaussian.log_prob": (GAUSSIAN.log_prob, X),
    "Gaussian.tilted": (lambda g: GAUSSIAN.tilted(g).mean, X),
    "FullGaussian.log_prob": (FULL.log_prob, X),
    "FullGaussian.tilted": (lambda g, curvature: FULL.tilted(g, curvature).mean, X, HESSIAN),
    "ReverseStep.log_prob": (EXACT.log_prob, X),
    "draw": (lambda x, times: draw(kernels.ddim(DENOISER, SCHEDULE), x, times), X, time_grid(3)),
    "leading_kl_without_shift": (divergence.leading_kl_without_shift, X, TIMES),
    "leading_kl_with_shift": (lambda h, beta: divergence.leading_kl_with_shift(h, beta, 1.0), HESSIAN, TIMES),
    "v_loss": (loss, X, LABEL),
    "class_mass": (lambda x: metrics.class_mass(MIXTURE, x), X),
    "wasserstein": (lambda x, y: torch.tensor(metrics.wasserstein(x, y)), X, Y),
    "curl": (lambda x: plane.curl(torch.square, x), X[:, :2]),
    "probability_flow": (probability_flow(echo, SCHEDULE), X, TIMES),
    "noisy_gradient": (similarity.noisy_gradient(MIXTURE, SCHEDULE, lambda x: x.sum(-1), 2), X, T),
    "tilted_by_direction": (lambda a: similarity.tilted_by_direction(MIXTURE, a).means, X[0]),
    "cosine": (similarity.cosine, X, Y[0]),
    "curve_distance": (similarity.curve_distance, X, CORNERS),
    "clean_cov": (lambda x, t: clean_cov(DENOISER, SCHEDULE, x, t), X, T),
    "noisy_answer": (lambda x, t: noisy_answer(MIXTURE, SCHEDULE, lambda x: x.sum(-1), x, t, 2), X, T),
    "step_guess": (step_guess(DENOISER, lambda x: x.sum(-1), SCHEDULE, 0.1), X, T),
}  # fmt: skip
WRONG = {
    "(..., 1)": lambda v: v[..., None],
    "(1, ...)": lambda v: v[None],
    "one for all": lambda v: v[:1] if v.dim() else v[None],
    "one point less": lambda v: v[:-1] if v.dim() else v.expand(3),
    "twice": lambda v: torch.cat([v, v]) if v.dim() else v.expand(4),
    "a column": lambda v: v[:, :1] if v.dim() > 1 else v.expand(4)[:, None] if v.dim() < 1 else v[:, None],
    "transposed": lambda v: v.mT if v.dim() > 1 else v.expand(4)[None] if v.dim() < 1 else v[None],
    "flat": lambda v: v.flatten() if v.dim() > 1 else v.new_zeros(0),
    "complex": lambda v: v.to(torch.complex128),
    "truth values": lambda v: v > 0,
    "nothing": lambda v: None,
    "words": lambda v: "0.5",
}
ALIKE = {  # (call, position, what is wrong): why the answer has the right shape all the same
    **{("class_mass", 0, wrong): "a mean over another cloud" for wrong in ("one for all", "one point less", "twice")},
    **{("v_loss", 0, wrong): "a mean over other data" for wrong in ("(..., 1)", "a column")},
    **{(f"from_{half}", level, "a column"): "one level a point" for half in ("x0", "eps", "v") for level in (2, 3)},
    **{(call, position, "truth values"): "on or off" for call, position in
       (("noised", 0), ("noised", 1), ("tilt", 2), ("classifier_free", 1), ("sharpened", 2))},
    **{(f"{step}.log_prob", 0, "one for all"): "one point serves for all steps, as stated"
       for step in ("Gaussian", "FullGaussian", "ReverseStep")},
    **{(call, position, "one for all"): "one scale in a list" for call, position in
       (("tilt", 2), ("classifier_free", 1), ("sharpened", 2))},
    ("mixture", 1, "transposed"): "covariances are symmetric",
    ("mixture", 1, "truth values"): "the identity, written in truth values",
    ("FullGaussian.tilted", 1, "transposed"): "curvatures are symmetric",
    ("FullGaussian.tilted", 1, "nothing"): "no curvature, as stated",
    ("leading_kl_with_shift", 0, "transposed"): "curvatures are symmetric",
    ("leading_kl_without_shift", 0, "a column"): "gradients on a line",
    ("linearise", 1, "one for all"): "one point, seen from all",
    ("linearise", 0, "one for all"): "one polynomial, at all points",
    ("draw", 1, "one point less"): "another walk",
    ("cosine", 1, "one for all"): "a number has no length",
    **{("cosine", 1, wrong): "one embedding for all" for wrong in ("(1, ...)", "transposed")},
    **{(call, position, "truth values"): "corners of a cube are points" for call, position in
       (("one_step_mean", 0), ("FullGaussian.log_prob", 0), ("wasserstein", 0), ("wasserstein", 1))},
    ("curve_distance", 1, "one point less"): "a shorter curve",
    ("curve_distance", 1, "twice"): "a longer curve",
    **{(call, 2, "nothing"): "no label" for call in ("denoiser", "network")},
}


@pytest.mark.parametrize("name", CALLS)
def test_no_wrong_argument_is_taken_for_a_right_one(name):
    call, *right = CALLS[name]
    answer = call(*right)
    assert bool(torch.isfinite(answer).all())
    for position, value in enumerate(right):
        for wrong, change in WRONG.items():
            given = [*right[:position], change(value), *right[position + 1 :]]
            try:
                got = call(*given)
            except Exception:  # a warning, too; loud is good enough here, the other tests want a ValueError by name
                continue
            alike = got.shape == answer.shape and got.dtype == answer.dtype
            assert not alike or (name, position, wrong) in ALIKE, (name, position, wrong, got)
