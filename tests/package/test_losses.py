"""The training loss: labels hidden at the right rate, and a minimum at both denoisers, the same for every rate."""

import math

import pytest
import torch
from torch import Tensor

from difflesson.losses import drop_labels, times_and_noise, v_loss
from difflesson.schedule import cosine, expand_as, vp_linear
from tests.oracles.mixtures import THREE

F64 = torch.float64
MIXTURE = THREE.mixture()
NULL = 2


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior_mean(x: Tensor, alpha: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
    """E[x0 | x_t, label] for every point by itself, each at its own noise level, by conditioning Gaussians.

    x: (N, 2), alpha, sigma: (N, 1), label: (N,) in 0..2, 2 meaning any.  Independent of difflesson's denoisers.
    """
    log_shares, means = [], []
    for weight, mean, cov, y in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.covs, MIXTURE.labels, strict=True):
        marginal = alpha[:, :, None] ** 2 * cov + sigma[:, :, None] ** 2 * torch.eye(2, dtype=F64)  # (N, 2, 2)
        rest = x - alpha * mean
        density = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), marginal).log_prob(rest)
        log_shares.append((density + weight.log()).masked_fill((label != NULL) & (label != y), -math.inf))
        means.append(mean + alpha * (cov @ torch.linalg.solve(marginal, rest)[:, :, None])[:, :, 0])
    shares = torch.stack(log_shares).softmax(0)  # (K, N)
    return (shares[:, :, None] * torch.stack(means)).sum(0)


class Probe:
    """The exact v, plus `theta[label] . (1, x_1, x_2)` times a direction: a family with the exact one at theta = 0."""

    def __init__(self, null_as: int | None = None):
        self.theta, self.null_as = torch.zeros(3, 3, dtype=F64, requires_grad=True), null_as

    def __call__(self, x: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = (level.sqrt()[:, None] for level in (torch.sigmoid(log_snr), torch.sigmoid(-log_snr)))
        known = label if self.null_as is None else label.masked_fill(label == NULL, self.null_as)
        x0 = posterior_mean(x, alpha, sigma, known)
        v = alpha * (x - alpha * x0) / sigma - sigma * x0
        features = torch.cat([torch.ones(len(x), 1, dtype=F64), x], dim=1)  # (N, 3)
        return v + (self.theta[label] * features).sum(1, keepdim=True) * torch.tensor([0.6, -0.8], dtype=F64)


def slopes(dropout: float, null_as: int | None = None, batches: int = 60) -> tuple[Tensor, Tensor]:
    """Gradient of the loss at the exact answer, its mean over batches and its standard error: each (labels, 3)."""
    network, generator, found = Probe(null_as), random(3), []
    schedule = cosine(log_snr_max=8.0, log_snr_min=-8.0)
    for _ in range(batches):
        x0, label = MIXTURE.sample(2048, generator)
        loss = v_loss(network, schedule, x0, label, dropout, generator, NULL)
        found.append(torch.autograd.grad(loss, network.theta)[0])
    found = torch.stack(found)
    return found.mean(0), found.std(0) / math.sqrt(batches)


@pytest.mark.equation("eq-dropout-optimum")
@pytest.mark.parametrize("dropout", [0.05, 0.3, 0.9])
def test_the_loss_is_smallest_at_both_exact_denoisers_whatever_the_dropout(dropout):
    """It is convex in theta, and its gradient there vanishes: 9 components within 4 standard errors, level 6e-4."""
    mean, error = slopes(dropout)
    assert bool((error > 0).all()) and float((mean / error).abs().max()) < 4
    assert float(error.max()) < 0.02  # so that a wrong field would have been seen


@pytest.mark.equation("eq-dropout-optimum")
def test_the_field_of_one_class_is_not_the_optimum_under_the_null_label():
    mean, error = slopes(0.3, null_as=0)
    assert float((mean[NULL] / error[NULL]).abs().max()) > 20
    assert float((mean[:NULL] / error[:NULL]).abs().max()) < 4  # the real labels do not notice


@pytest.mark.equation("eq-dropout-optimum")
def test_without_dropout_nothing_trains_the_null_label_and_with_all_of_it_nothing_else():
    for dropout, untouched, touched in ((0.0, [NULL], [0, 1]), (1.0, [0, 1], [NULL])):
        mean, error = slopes(dropout, batches=4)
        assert float(mean[untouched].abs().max()) == 0 == float(error[untouched].max())
        assert float(error[touched].min()) > 0


@pytest.mark.equation("eq-label-dropout")
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_labels_are_hidden_at_the_rate_asked_for_in_every_class_alike(probability):
    """Per class 4 standard deviations of a binomial share, 200,000 labels; the others stay as they are."""
    label = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 200_000, replacement=True, generator=random())
    seen = drop_labels(label, probability, 7, random(1))
    hidden = seen == 7
    assert torch.equal(seen[~hidden], label[~hidden])
    for y in range(3):
        share, count = float(hidden[label == y].double().mean()), int((label == y).sum())
        assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / count)
    half = hidden.double()
    if 0 < probability < 1:  # one label's fate says nothing about the next one's
        both = float((half[1:] * half[:-1]).mean())
        assert abs(both - probability**2) < 4 * probability / math.sqrt(len(label))


def test_dropping_labels_leaves_the_given_ones_alone():
    label = torch.arange(100) % 3
    kept = label.clone()
    drop_labels(label, 0.5, 3, random())
    assert torch.equal(label, kept)


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_a_probability_outside_the_unit_interval_is_refused(probability):
    with pytest.raises(ValueError, match=rf"^probability must lie in \[0, 1\], got {probability}$"):
        drop_labels(torch.zeros(3, dtype=torch.long), probability, 1, random())


@pytest.mark.equation("eq-v-loss")
@pytest.mark.parametrize("schedule", [cosine(), vp_linear()], ids=["cosine", "vp_linear"])
@pytest.mark.parametrize("shape", [(2,), (1, 3, 4)], ids=str)
def test_the_loss_is_the_mean_square_error_of_v_recomputed_from_what_the_network_saw(schedule, shape):
    """x_t, log-SNR and label are recorded; alpha and sigma come from the log-SNR, eps from x_t and x_0."""
    saw = []

    def network(x, log_snr, label):
        saw.extend((x, log_snr, label))
        return 0.3 * x + 0.1

    x0, label = torch.randn(64, *shape, generator=random(5), dtype=F64), torch.arange(64) % 2
    loss = v_loss(network, schedule, x0, label, 0.5, random(6), NULL)
    x, log_snr, seen = saw
    alpha, sigma = (expand_as(torch.sigmoid(sign * log_snr).sqrt(), x0) for sign in (1, -1))
    eps = (x - alpha * x0) / sigma
    expected = (0.3 * x + 0.1 - (alpha * eps - sigma * x0)).square().mean()
    assert abs(float(loss) - float(expected)) < 1e-9 * float(expected) and loss.dtype == F64
    assert 0 < int((seen == NULL).sum()) < 64 and abs(float(eps.mean())) < 4 / math.sqrt(eps.numel())


@pytest.mark.equation("eq-v-loss")
def test_an_error_of_v_is_an_error_of_eps_divided_by_alpha():
    """Two networks that differ by a constant in v differ in eps = sigma x + alpha v by alpha times it."""
    alpha, sigma, x = 0.6, 0.8, torch.randn(50, 2, generator=random(), dtype=F64)
    v, off = torch.randn(50, 2, generator=random(1), dtype=F64), torch.randn(50, 2, generator=random(2), dtype=F64)
    eps, other = (sigma * x + alpha * value for value in (v, v + off))
    assert float(((other - eps).square().mean() / alpha**2 - off.square().mean()).abs()) < 1e-12


def test_times_are_stratified_and_follow_the_dtype():
    for dtype in (torch.float32, F64):
        t, eps = times_and_noise(torch.zeros(16, 3, dtype=dtype), random())
        assert t.dtype == eps.dtype == dtype and eps.shape == (16, 3)
        assert float((t.sort().values.diff() - 1 / 16).abs().max()) < 1e-6 and 0 <= float(t.min()) < 1 / 16
