"""What does not fit is refused where it comes in: torch alone would stretch it, silently and wrongly."""

import pytest
import torch

from difflesson import divergence, kernels, losses
from difflesson.denoiser import Pair, Prediction
from difflesson.guidance import classifier_free, implicit_gradient, mix, sharpened, tempered, tilt
from difflesson.mixture import GaussianMixture
from difflesson.ode import probability_flow
from difflesson.schedule import expand_as, vp_linear
from difflesson.similarity import mean_gradient, noisy_gradient, noisy_log_weight
from difflesson.steps import FullGaussian, Gaussian

F64 = torch.float64
SCHEDULE, SIZE = vp_linear(), 3  # as many points as dimensions: then a row fits where a column is meant
X = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=F64)
T, S = torch.tensor(0.5, dtype=F64), torch.tensor(0.25, dtype=F64)
ALPHA, SIGMA = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
MIXTURE = GaussianMixture([0.4, 0.6], X[:2], torch.eye(SIZE, dtype=F64).repeat(2, 1, 1))
STEP, EXACT = Gaussian(X, T), kernels.exact(MIXTURE, SCHEDULE)(X, T, S)
FULL = FullGaussian(X, torch.eye(SIZE, dtype=F64).repeat(SIZE, 1, 1))
LABEL = torch.tensor([0, 1, 0])
MISFITS = {"(N, 1)": X[:, :1], "(batch,)": X[0], "(1,)": X[0, :1], "(1, d)": X[:1], "a transposed batch": X[:, :2].T}


def seeded():
    return torch.Generator().manual_seed(0)


def echo(x, t):
    return Prediction(x, x)


def v_loss(network=lambda x, log_snr, label: x, x0=X, label=LABEL):
    return losses.v_loss(network, SCHEDULE, x0, label, 0.1, seeded(), null=2)


OF_ONE_TENSOR = {  # place: (the name in the message, a call with a tensor where one like X is meant)
    "Prediction.from_x0": ("x0", lambda bad: Prediction.from_x0(X, bad, ALPHA, SIGMA)),
    "Prediction.from_eps": ("eps", lambda bad: Prediction.from_eps(X, bad, ALPHA, SIGMA)),
    "Prediction.from_v": ("v", lambda bad: Prediction.from_v(X, bad, ALPHA, SIGMA)),
    "Prediction.from_score": ("score", lambda bad: Prediction.from_score(X, bad, ALPHA, SIGMA)),
    "add_noise": ("eps", lambda bad: SCHEDULE.add_noise(X, bad, T)),
    "one_step_mean": ("score", lambda bad: kernels.one_step_mean(X, bad, SCHEDULE, T, S)),
    "tilt": ("grad", lambda bad: tilt(echo, lambda x, t: bad, 1.0, SCHEDULE)(X, T)),
    "shift": ("grad", lambda bad: kernels.shift(kernels.ddpm(echo, SCHEDULE), lambda x, t: bad, 1.0)(X, T, S)),
    "Gaussian.tilted": ("g", lambda bad: STEP.tilted(bad)),
    "FullGaussian.tilted": ("g", lambda bad: FULL.tilted(bad)),
    "v_loss": ("network", lambda bad: v_loss(lambda x, log_snr, label: bad)),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("place", OF_ONE_TENSOR)
def test_a_tensor_of_another_shape_than_x_is_refused(place, misfit):
    name, call = OF_ONE_TENSOR[place]
    call(torch.zeros_like(X))
    with pytest.raises(ValueError, match=rf"\b{name}\b[^.]* must "):
        call(MISFITS[misfit])


ASKS_A_DENOISER = {
    "ddpm": lambda f: kernels.ddpm(f, SCHEDULE)(X, T, S),
    "ddim": lambda f: kernels.ddim(f, SCHEDULE)(X, T, S),
    "ddim, noise from another": lambda f: kernels.ddim(echo, SCHEDULE, noise_from=f)(X, T, S),
    "reverse_sde": lambda f: kernels.reverse_sde(f, SCHEDULE)(X, T, S),
    "heun": lambda f: kernels.heun(f, SCHEDULE)(X, T, S),
    "dpmpp_2m": lambda f: kernels.dpmpp_2m(f, SCHEDULE).start()(X, T, S),
    "tilt": lambda f: tilt(f, lambda x, t: x, 1.0, SCHEDULE)(X, T),
    "tempered": lambda f: tempered(f, 2.0, SCHEDULE)(X, T),
    "classifier_free": lambda f: classifier_free(Pair(echo, f), 3.0)(X, T),
    "a pair of one's own": lambda f: classifier_free(lambda x, t: (echo(x, t), f(x, t)), 3.0)(X, T),
    "implicit_gradient": lambda f: implicit_gradient(Pair(f, echo), SCHEDULE)(X, T),
    "the rule of mix": lambda f: mix(Pair(echo, echo), lambda cond, uncond, x, t: f(x, t))(X, T),
    "probability_flow": lambda f: probability_flow(f, SCHEDULE)(X, T),
}
NO_ANSWERS = {
    **{f"both halves {name}": (lambda x, t, bad=bad: Prediction(bad, bad)) for name, bad in MISFITS.items()},
    **{f"eps {name}": (lambda x, t, bad=bad: Prediction(x, bad)) for name, bad in MISFITS.items()},
    "a pair without names": lambda x, t: (x, x),
    "x0 and eps stacked": lambda x, t: torch.stack([x, x]),
    "one half only": lambda x, t: x,
    "three parts": lambda x, t: (x, x, x),
    "nothing": lambda x, t: None,
    "whole numbers": lambda x, t: Prediction(x.long(), x.long()),
    "a number": lambda x, t: Prediction(0.0, x),
}


@pytest.mark.parametrize("answer", NO_ANSWERS)
@pytest.mark.parametrize("place", ASKS_A_DENOISER)
def test_an_answer_that_is_no_prediction_of_every_point_is_refused(place, answer):
    ASKS_A_DENOISER[place](echo)
    with pytest.raises(ValueError, match="^(denoiser|pair|rule)('s (x0|eps))? must "):
        ASKS_A_DENOISER[place](NO_ANSWERS[answer])


LEVELS = {"(batch,)": torch.full((SIZE,), 0.6, dtype=F64), "(1,)": torch.full((1,), 0.6, dtype=F64),
          "(1, d)": torch.full((1, SIZE), 0.6, dtype=F64)}  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("make", ["from_x0", "from_eps", "from_v", "from_score"])
def test_a_level_that_would_be_taken_for_a_row_is_refused(make, level):
    right, column = getattr(Prediction, make), torch.full((SIZE, 1), 0.6, dtype=F64)
    assert torch.equal(right(X, X, column, column).eps, right(X, X, column[0, 0], column[0, 0]).eps)
    for levels, name in (((LEVELS[level], column), "alpha"), ((column, LEVELS[level]), "sigma")):
        with pytest.raises(ValueError, match=rf"^{name} must be one number or have shape \(1, 1\) or "):
            right(X, X, *levels)
    with pytest.raises(ValueError, match="^sigma must "):
        Prediction(X, X).score(LEVELS[level])


@pytest.mark.parametrize("call", [
    lambda t: tilt(echo, lambda x, t: x, 1.0, SCHEDULE)(X[:1], t),
    lambda t: tempered(echo, 2.0, SCHEDULE)(X[:1], t),
    lambda t: implicit_gradient(Pair(echo, echo), SCHEDULE)(X[:1], t),
    lambda t: probability_flow(echo, SCHEDULE)(X[:1], t),
    lambda t: SCHEDULE.add_noise(X[:1], X[:1], t),
    lambda t: expand_as(t, X[:1]),
], ids=["tilt", "tempered", "implicit_gradient", "probability_flow", "add_noise", "expand_as"])  # fmt: skip
def test_one_point_does_not_become_a_batch_because_there_are_many_times(call):
    """Three times for one point gave three points; so did (1, 3)."""
    call(torch.full((1,), 0.5))
    for t in (torch.full((3,), 0.5), torch.full((1, 3), 0.5), torch.full((1, 1), 0.5)):
        with pytest.raises(ValueError, match="^t must be one number or have shape"):
            call(t)


def test_scales_are_one_number_or_one_a_point():
    for bad in (torch.ones(2), torch.ones(4)):
        for part in (tilt(echo, lambda x, t: x, bad, SCHEDULE), classifier_free(Pair(echo, echo), bad),
                     sharpened(lambda x, t: x, 0, bad)):  # fmt: skip
            with pytest.raises(ValueError, match="^gamma must be one number or have shape"):
                part(X, T)
    slope = torch.ones(1, dtype=F64, requires_grad=True)  # one number that is differentiated, as before
    tilt(echo, lambda x, t: x, slope, SCHEDULE)(X, T).eps.sum().backward()
    assert slope.grad.shape == (1,)


@pytest.mark.parametrize("step", [STEP, FULL, EXACT], ids=["Gaussian", "FullGaussian", "ReverseStep"])
def test_a_density_takes_whole_points_and_no_columns(step):
    assert step.log_prob(X).shape == step.log_prob(X[:1]).shape == (SIZE,)
    assert step.log_prob(X[:, None, None]).shape == (SIZE, 1, SIZE)
    for bad in (X[:, :1], X[0], X[:2], X[0, 0]):
        with pytest.raises(ValueError, match="^x must end in the mean's shape"):
            step.log_prob(bad)


def test_leading_divergences_take_one_variance_or_one_a_point():
    beta, hessian = torch.rand(SIZE, dtype=F64), torch.randn(SIZE, SIZE, SIZE, dtype=F64)
    assert divergence.leading_kl_without_shift(X, beta).shape == (SIZE,)
    assert divergence.leading_kl_with_shift(hessian, beta, 1.0).shape == (SIZE,)
    for call, name in (
        (lambda: divergence.leading_kl_without_shift(X, beta[:, None]), "beta"),
        (lambda: divergence.leading_kl_without_shift(X, beta[:1]), "beta"),
        (lambda: divergence.leading_kl_without_shift(hessian, beta), "gradient"),
        (lambda: divergence.leading_kl_with_shift(hessian, beta[:, None], 1.0), "beta"),
        (lambda: divergence.leading_kl_with_shift(hessian[:, :1], beta, 1.0), "curvature"),
        (lambda: divergence.leading_kl_with_shift(hessian, beta, beta), "prior"),
        (lambda: divergence.kl(EXACT, _Scalar()), "log_prob"),
    ):
        with pytest.raises(ValueError, match=rf"\b{name}\b[^.]* must "):
            call()


class _Scalar:
    def log_prob(self, x):
        return torch.zeros(*x.shape[:-1], 1, dtype=F64)


@pytest.mark.parametrize("label", [LABEL[:, None], LABEL[:1], LABEL.double(), LABEL - 1, LABEL + 2, LABEL.bool()],
                         ids=["(N, 1)", "(1,)", "floats", "-1", "beyond null", "bools"])  # fmt: skip
def test_a_loss_needs_one_known_label_a_point(label):
    assert v_loss(label=LABEL.int()) == v_loss()
    with pytest.raises(ValueError, match="^label must "):
        v_loss(label=label)


@pytest.mark.parametrize("part", [noisy_log_weight, noisy_gradient, mean_gradient])
def test_a_weight_of_clean_points_is_one_number_a_point(part):
    part(MIXTURE, SCHEDULE, lambda x: x.sum(-1), 3)(X, T)
    for bad in (lambda x: x.sum(-1, keepdim=True), lambda x: x.sum(), lambda x: x[0, ..., 0]):
        with pytest.raises(ValueError, match="^log_weight's answer must have shape"):
            part(MIXTURE, SCHEDULE, bad, 3)(X, T)
