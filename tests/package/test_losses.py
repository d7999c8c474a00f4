"""The training loss: labels hidden at the right rate, and a minimum at both denoisers, the same for every rate."""

import math

import pytest
import torch
from torch import Tensor

from difflesson.denoiser import PREDICTIONS
from difflesson.losses import denoising_loss, drop_labels, min_snr_weight, times_and_noise, v_loss
from difflesson.schedule import cosine, expand_as, vp_linear
from tests.oracles.mixtures import THREE

F64 = torch.float64
MIXTURE = THREE.mixture()
NULL = 2


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior(x: Tensor, alpha: Tensor, sigma: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """E[x0 | x_t, label] and p_t(component | x_t, label) for every point by itself, by conditioning Gaussians.

    x: (N, 2), alpha, sigma: (N, 1), each point at its own noise level, label: (N,) in 0..2, 2 meaning any.  Returns:
    (N, 2) and (K, N).  Independent of difflesson's denoisers.
    """
    log_shares, means = [], []
    for weight, mean, cov, y in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.covs, MIXTURE.labels, strict=True):
        marginal = alpha[:, :, None] ** 2 * cov + sigma[:, :, None] ** 2 * torch.eye(2, dtype=F64)  # (N, 2, 2)
        rest = x - alpha * mean
        density = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), marginal).log_prob(rest)
        log_shares.append((density + weight.log()).masked_fill((label != NULL) & (label != y), -math.inf))
        means.append(mean + alpha * (cov @ torch.linalg.solve(marginal, rest)[:, :, None])[:, :, 0])
    shares = torch.stack(log_shares).softmax(0)  # (K, N)
    return (shares[:, :, None] * torch.stack(means)).sum(0), shares


class Probe:
    """The exact v, plus `theta[label] . (1, x_1, x_2)` times a direction: a family with the exact one at theta = 0."""

    def __init__(self, null_as: int | None = None):
        self.theta, self.null_as = torch.zeros(3, 3, dtype=F64, requires_grad=True), null_as

    def __call__(self, x: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = (level.sqrt()[:, None] for level in (torch.sigmoid(log_snr), torch.sigmoid(-log_snr)))
        known = label if self.null_as is None else label.masked_fill(label == NULL, self.null_as)
        x0, _ = posterior(x, alpha, sigma, known)
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


# ---- a teacher

OFF = torch.tensor([[0.7, -0.2], [-0.4, 0.9]], dtype=F64)  # by which the teacher of each class is wrong


def exact_v(x: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
    return Probe()(x, log_snr, label).detach()


def wrong_teacher(x: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
    """Right but for a constant of each class; it knows no null label."""
    return exact_v(x, log_snr, label) + OFF[label]


class Pupil(Probe):
    """At theta = 0 what a pupil of `wrong_teacher` should answer, taught under every label or only under the null."""

    def __init__(self, only_hidden: bool):
        super().__init__()
        self.only_hidden = only_hidden

    def __call__(self, x: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = (level.sqrt()[:, None] for level in (torch.sigmoid(log_snr), torch.sigmoid(-log_snr)))
        _, shares = posterior(x, alpha, sigma, label)  # (K, N)
        off = torch.einsum("kn,kd->nd", shares, OFF[list(MIXTURE.labels)])
        taught = (label == NULL) | (not self.only_hidden)
        return super().__call__(x, log_snr, label) + taught[:, None] * off


def taught_slopes(network: Probe, batches: int = 40, **options) -> tuple[Tensor, Tensor]:
    """As `slopes`, with a teacher or in other terms."""
    generator, found = random(11), []
    for _ in range(batches):
        x0, label = MIXTURE.sample(1024, generator)
        loss = denoising_loss(network, cosine(8.0, -8.0), x0, label, 0.4, generator, NULL, **options)
        found.append(torch.autograd.grad(loss, network.theta)[0])
    found = torch.stack(found)
    return found.mean(0), found.std(0) / math.sqrt(batches)


@pytest.mark.equation("eq-null-teacher")
@pytest.mark.parametrize("only_hidden", [True, False])
def test_the_null_label_learns_the_teachers_answers_averaged_over_the_labels_by_their_posterior(only_hidden):
    """Also where the teacher is wrong; 4 standard errors, 9 components, level 6e-4."""
    mean, error = taught_slopes(Pupil(only_hidden), teacher=wrong_teacher, only_hidden=only_hidden)
    noisy = error > 1e-12  # under a label that is taught, the optimum is reached without any noise
    assert noisy.tolist() == [[only_hidden] * 3] * 2 + [[True] * 3]
    assert float(mean[~noisy].abs().sum()) < 1e-12
    assert float((mean[noisy] / error[noisy]).abs().max()) < 4 and float(error.max()) < 0.02
    mean, error = taught_slopes(Probe(), teacher=wrong_teacher, only_hidden=only_hidden)  # the truth is not the optimum
    assert float((mean[NULL] / error[NULL]).abs().max()) > 20


@pytest.mark.equation("eq-label-average")
def test_the_exact_answer_without_a_label_is_the_mean_of_those_with_one_by_their_posterior():
    """With the package's fields: E[v | x_t] is the sum over y of p_t(y | x_t) E[v | x_t, y]."""
    schedule, x = cosine(), 2 * torch.randn(40, 2, generator=random(8), dtype=F64)
    for t in (0.05, 0.4, 0.8, 1.0):
        alpha, sigma, t = schedule.alpha(t), schedule.sigma(t), torch.tensor(t, dtype=F64)
        noisy, average = MIXTURE.noised(alpha, sigma), torch.zeros_like(x)
        for y in (0, 1):
            told = MIXTURE.denoiser(schedule, y)(x, t)
            average += noisy.class_log_prob(x, y).exp()[:, None] * (alpha * told.eps - sigma * told.x0)
        free = MIXTURE.denoiser(schedule)(x, t)
        assert float((average - (alpha * free.eps - sigma * free.x0)).abs().max()) < 1e-10


@pytest.mark.equation("eq-null-teacher", "eq-label-average")
def test_a_right_teacher_has_the_optimum_of_the_data_and_less_noise():
    alone, taught = (taught_slopes(Probe(), teacher=teacher, only_hidden=True) for teacher in (None, exact_v))
    for mean, error in (alone, taught):
        assert float((mean / error).abs().max()) < 4
    assert float((taught[1][NULL] / alone[1][NULL]).max()) < 0.85
    assert torch.equal(taught[1][:NULL], alone[1][:NULL])  # where the label is seen, nothing is taught


@pytest.mark.equation("eq-null-teacher")
@pytest.mark.parametrize("only_hidden", [True, False])
def test_a_teacher_is_asked_at_the_same_points_with_the_true_labels(only_hidden):
    """Recomputed from what both saw; the noise is that of the loss without a teacher, and x0 stays as it was."""
    asked, saw, x0, label = [], [], torch.randn(64, 2, generator=random(5), dtype=F64), torch.arange(64) % 2

    def teacher(*given):
        asked.append(given)
        return given[0].cos().float()  # in another precision, as under autocast

    def network(*given):
        saw[:] = given
        return 0.3 * given[0]

    kept = x0.clone()
    plain = v_loss(network, cosine(), x0, label, 0.5, random(6), NULL)
    x, log_snr, seen = saw
    options = {"teacher": teacher, "only_hidden": only_hidden}
    loss = denoising_loss(network, cosine(), x0, label, 0.5, random(6), NULL, **options)
    assert all(torch.equal(a, b) for a, b in zip(saw, (x, log_snr, seen), strict=True)) and loss != plain
    rows = seen == NULL if only_hidden else seen >= 0
    assert len(asked) == 1 and 0 < int((seen == NULL).sum()) < 64
    for got, meant in zip(asked[0], (x, log_snr, label), strict=True):
        assert torch.equal(got, meant[rows])
    alpha, sigma = (torch.sigmoid(sign * log_snr).sqrt()[:, None] for sign in (1, -1))
    drawn = alpha * (x - alpha * x0) / sigma - sigma * x0
    expected = (0.3 * x - torch.where(rows[:, None], x.cos(), drawn)).square().mean()
    assert abs(float(loss - expected)) < 1e-6 and torch.equal(x0, kept)


def test_no_gradient_reaches_a_teacher():
    weight = torch.ones((), dtype=F64, requires_grad=True)
    x0, label = torch.randn(8, 2, generator=random(5), dtype=F64), torch.zeros(8, dtype=torch.long)
    loss = denoising_loss(
        lambda x, *_: weight * x, cosine(), x0, label, 1.0, random(), NULL, teacher=lambda x, *_: 3 * weight * x
    )
    (slope,) = torch.autograd.grad(loss, weight)
    assert abs(slope + loss.detach()) < 1e-12  # (w - 3)^2 has at w = 1 the slope -4, and is 4


@pytest.mark.parametrize("misfit", [lambda x: x[:, :1], lambda x: x[0], lambda x: x[:2]], ids=["(N, 1)", "(2,)", "two"])
def test_a_teacher_that_answers_in_another_shape_is_refused(misfit):
    x0, label = torch.randn(8, 2, generator=random(5), dtype=F64), torch.zeros(8, dtype=torch.long)
    with pytest.raises(ValueError, match=r"^teacher's answer must have shape \(8, 2\)"):
        denoising_loss(lambda x, *_: x, cosine(), x0, label, 0.5, random(), NULL, teacher=lambda x, *_: misfit(x))


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


# ---- what is predicted, and how it is weighted


class InOtherTerms(Probe):
    """The exact v in other words, by `x = alpha x0 + sigma eps`, plus the term in theta."""

    def __init__(self, prediction: str):
        super().__init__()
        self.prediction = prediction

    def __call__(self, x: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = (level.sqrt()[:, None] for level in (torch.sigmoid(log_snr), torch.sigmoid(-log_snr)))
        v = exact_v(x, log_snr, label)
        said = {"v": v, "eps": sigma * x + alpha * v, "x0": alpha * x - sigma * v}[self.prediction]
        return said - v + super().__call__(x, log_snr, label)


@pytest.mark.parametrize("weighting", ["plain", "min_snr"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_in_the_terms_of_each_prediction_and_weighting_the_loss_is_smallest_at_the_exact_answer(prediction, weighting):
    """9 components within 4 standard errors of 20 batches, level 7e-3."""
    mean, error = taught_slopes(InOtherTerms(prediction), 20, prediction=prediction, weighting=weighting)
    assert float((mean / error).abs().max()) < 4 and float(error.max()) < 0.05


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_each_prediction_is_compared_with_what_was_drawn_in_its_own_terms(prediction):
    """Recomputed from what the network saw; x0 by itself, eps from x_t and x0."""
    saw, x0, label = [], torch.randn(64, 1, 3, 4, generator=random(5), dtype=F64), torch.arange(64) % 2

    def network(*given):
        saw[:] = given
        return 0.3 * given[0] + 0.1

    losses = {
        weighting: denoising_loss(
            network, cosine(), x0, label, 0.5, random(6), NULL, prediction=prediction, weighting=weighting
        )
        for weighting in ("plain", "min_snr")
    }
    x, log_snr, _ = saw
    alpha, sigma = (expand_as(torch.sigmoid(sign * log_snr).sqrt(), x0) for sign in (1, -1))
    eps = (x - alpha * x0) / sigma
    square = (0.3 * x + 0.1 - {"v": alpha * eps - sigma * x0, "eps": eps, "x0": x0}[prediction]).square()
    of_x0 = {"v": sigma, "eps": sigma / alpha, "x0": 1}[prediction]  # an error of x0 is this times the error
    weight = (alpha / sigma).square().clamp(max=5) * of_x0**2
    for weighting, expected in (("plain", square.mean()), ("min_snr", (weight * square).mean())):
        assert abs(float(losses[weighting] - expected)) < 1e-8 * float(expected)


def test_the_min_snr_weight_is_finite_at_both_ends_and_largest_where_it_should_be():
    log_snr = torch.tensor([-20.0, -1.0, math.log(5.0), 3.0, 20.0], dtype=F64)
    by_hand = {"x0": log_snr.exp().clamp(max=5), "eps": (5 * (-log_snr).exp()).clamp(max=1)}
    by_hand["v"] = by_hand["x0"] / (1 + log_snr.exp())
    for prediction, expected in by_hand.items():
        assert float((min_snr_weight(log_snr, prediction) / expected - 1).abs().max()) < 1e-12
    for prediction in ("v", "eps"):
        assert min_snr_weight(torch.tensor([math.inf]), prediction).tolist() == [0.0]


@pytest.mark.parametrize("wrong", [{"prediction": "u"}, {"weighting": "heavy"}], ids=str)
def test_a_prediction_or_weighting_nobody_knows_is_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name} must be one of \[.*\], got '{value}'$"):
        denoising_loss(lambda x, *_: x, cosine(), torch.zeros(2, 2), torch.zeros(2).long(), 0.1, random(), 2, **wrong)


def test_a_teacher_of_hidden_labels_is_not_asked_where_none_is_hidden():
    def network(x, log_snr, label):
        return 0 * x

    def teacher(x, log_snr, label):
        raise AssertionError("there is nothing to ask about")

    x0, label = torch.zeros(4, 3, dtype=F64), torch.zeros(4, dtype=torch.long)
    taught, plain = (
        denoising_loss(network, cosine(), x0, label, 0.0, torch.Generator().manual_seed(0), NULL, **options)
        for options in ({"teacher": teacher, "only_hidden": True}, {})
    )
    assert torch.equal(taught, plain)


def test_losses_refuse_to_draw_from_the_global_generator():
    state = torch.get_rng_state()
    for call in (
        lambda: times_and_noise(torch.zeros(3, 1), None),
        lambda: drop_labels(torch.zeros(3, dtype=torch.long), 0.5, NULL, None),
    ):
        with pytest.raises(ValueError, match="generator must be"):
            call()
    assert torch.equal(state, torch.get_rng_state())


def test_a_weight_of_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction must be one of"):
        min_snr_weight(torch.zeros(2), "noise")


def test_times_stay_stratified_in_half_precision():
    t, noise = times_and_noise(torch.zeros(4096, 2, dtype=torch.bfloat16), torch.Generator().manual_seed(0))
    assert noise.dtype == torch.bfloat16 and len(t.unique()) == 4096
    assert torch.equal((t * 4096).floor().sort().values, torch.arange(4096.0))
