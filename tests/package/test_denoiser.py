"""A network says what its output means, and becomes the same denoiser whatever that is."""

import pytest
import torch
from torch import nn

from difflesson.conventions import convert
from difflesson.denoiser import PREDICTIONS, network_denoiser, network_pair
from difflesson.schedule import cosine
from tests.oracles.mixtures import THREE

F64 = torch.float64
MIXTURE, SCHEDULE = THREE.mixture(), cosine()
X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


class Exact(nn.Module):
    """The mixture's own answer in the terms of a prediction; label 2 is the null label."""

    classes = 2

    def __init__(self, prediction: str | None):
        super().__init__()
        if prediction:
            self.prediction = prediction

    def forward(self, x, log_snr, label):
        t = SCHEDULE.time(log_snr.double())
        halves = [MIXTURE.denoiser(SCHEDULE, None if y == 2 else int(y))(x, t).eps[i] for i, y in enumerate(label)]
        into = getattr(self, "prediction", "v")
        return convert(torch.stack(halves), "eps", into, x, SCHEDULE.alpha(t), SCHEDULE.sigma(t))


@pytest.mark.parametrize("prediction", [*PREDICTIONS, None])
def test_whatever_a_network_predicts_its_denoiser_is_the_exact_one(prediction):
    """None: a network that says nothing predicts v. One time, and another for each point."""
    for t in (torch.tensor(0.4, dtype=F64), torch.linspace(0.1, 0.8, 5, dtype=F64)):
        cond, uncond = network_pair(Exact(prediction), SCHEDULE, 1)(X, t)
        for label, answer in ((1, cond), (None, uncond), (1, network_denoiser(Exact(prediction), SCHEDULE, 1)(X, t))):
            exact = MIXTURE.denoiser(SCHEDULE, label)(X, t)
            assert float((answer.x0 - exact.x0).abs().max()) < 1e-5  # the network is told its time in float32
            assert float((answer.eps - exact.eps).abs().max()) < 1e-5
            alpha, sigma = (level.reshape(-1, 1) for level in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
            assert float((alpha * answer.x0 + sigma * answer.eps - X).abs().max()) < 1e-12


def test_an_error_of_eps_grows_near_pure_noise_and_one_of_v_does_not():
    """An error of 0.01 in each: at t = 0.99 that of x0 is 0.01 sigma / alpha, here above 0.6, and below 0.01."""

    class Off(Exact):
        def forward(self, *given):
            return super().forward(*given) + 0.01

    t = torch.tensor(0.99, dtype=F64)
    exact, found = MIXTURE.denoiser(SCHEDULE, 1)(X, t).x0, {}
    for prediction in PREDICTIONS:
        found[prediction] = float((network_denoiser(Off(prediction), SCHEDULE, 1)(X, t).x0 - exact).abs().max())
    assert abs(found["eps"] - 0.01 * float(SCHEDULE.sigma(t) / SCHEDULE.alpha(t))) < 1e-3 and found["eps"] > 0.6
    assert found["v"] < 0.0101 and abs(found["x0"] - 0.01) < 1e-3


@pytest.mark.parametrize("make", [network_denoiser, network_pair])
def test_a_network_that_predicts_something_else_is_refused(make):
    with pytest.raises(ValueError, match=r"^network must predict one of \['v', 'eps', 'x0'\], got .* 'logits'$"):
        make(Exact("logits"), SCHEDULE, 1)
