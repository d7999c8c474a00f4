"""Gradients of classifiers for digits, on small networks, and what their arguments must be."""

import pytest
import torch

from difflesson import guidance
from difflesson.denoiser import Prediction, network_denoiser
from difflesson.digits.networks import DigitClassifier, DigitUNet
from difflesson.digits.witnesses import agreement, clean_verdict, scaled_slope, truthfulness, verdict_on_guess
from difflesson.schedule import cosine

SCHEDULE, T = cosine(), torch.tensor(0.5, dtype=torch.float64)
SMALL = {"widths": (8, 16), "classes": 3, "embedding": 16}


def random_network(kind, seed: int):
    """With random weights everywhere, in float64."""
    network, generator = kind(**SMALL).double().eval().requires_grad_(False), torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) / 8)
    return network


class InDouble(torch.nn.Module):
    """A denoiser for images in double precision: its clock comes in single."""

    def __init__(self, network):
        super().__init__()
        self.network, self.classes, self.prediction = network, network.classes, "v"

    def forward(self, x, log_snr, label):
        return self.network(x, log_snr.double(), label)


@pytest.fixture
def images():
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_verdict_is_the_log_probability_of_each_ones_own_label(images):
    network, labels = random_network(DigitClassifier, 1), torch.tensor([2, 0, 1, 1])
    expected = torch.stack([network(images)[i].softmax(0)[y].log() for i, y in enumerate(labels)])
    torch.testing.assert_close(clean_verdict(network, labels)(images), expected)
    torch.testing.assert_close(clean_verdict(network, labels)(images, T), expected)  # as a log_prob(x, t)
    torch.testing.assert_close(clean_verdict(network, 1)(images)[2:], expected[2:])
    with pytest.raises(ValueError, match="label must lie in 0..2"):
        clean_verdict(network, 3)


def test_the_gradient_through_the_guess_is_the_difference_quotient(images):
    verdict = clean_verdict(random_network(DigitClassifier, 1), 1)
    denoiser = network_denoiser(InDouble(random_network(DigitUNet, 2)), SCHEDULE)
    log_prob = verdict_on_guess(denoiser, verdict)
    along = torch.randn(images.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    slope = guidance.gradient(log_prob)(images, T)
    step = 1e-5
    found = (log_prob(images + step * along, T) - log_prob(images - step * along, T)) / (2 * step)
    torch.testing.assert_close((slope * along).flatten(1).sum(1), found, rtol=1e-5, atol=1e-8)


def test_the_scaled_slope_asks_the_denoiser_once_and_takes_one_time_for_each_image(images):
    calls = []

    def denoiser(x, t):
        calls.append(x.requires_grad)
        return Prediction.from_x0(
            x, 0.5 * x, *(level[:, None, None, None] for level in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
        )

    verdict, times = clean_verdict(random_network(DigitClassifier, 1), 1), torch.tensor([0.2, 0.4, 0.6, 0.8]).double()
    slope = scaled_slope(denoiser, verdict, SCHEDULE, variance=0.4)(images, times)
    assert calls == [False]
    plain = guidance.gradient(lambda x0, _: verdict(x0))(0.5 * images, T)
    for i, t in enumerate(times):
        alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
        torch.testing.assert_close(slope[i], alpha * 0.4 / (alpha**2 * 0.4 + sigma**2) * plain[i])
    with pytest.raises(ValueError, match="variance must be above 0, got 0"):
        scaled_slope(denoiser, verdict, SCHEDULE, variance=0)


def test_two_fields_agree_as_one_long_vector_and_their_signs_and_sizes_do_not_matter_or_do(images):
    assert agreement(images, 3 * images) == pytest.approx(1) and agreement(images, -images) == pytest.approx(-1)
    half = torch.cat([images[:2], -images[2:]])
    weight = images[:2].square().sum() - images[2:].square().sum()
    assert agreement(images, half) == pytest.approx(float(weight / images.square().sum()))
    with pytest.raises(ValueError, match="b must have shape"):
        agreement(images, images[:1])
    with pytest.raises(ValueError, match="zero everywhere"):
        agreement(images, 0 * images)


def test_witnesses_at_odds_are_refused():
    assert truthfulness(0.4, 0.3, 0.6) == pytest.approx(0.2**0.5)
    with pytest.raises(ValueError, match="must be above 0, got 0.4, -0.1 and 0.6"):
        truthfulness(0.4, -0.1, 0.6)
