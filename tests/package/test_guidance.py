"""Guidance against the mixture, whose conditional denoiser is the truth; networks against separate calls."""

import math

import pytest
import torch
from torch import Tensor, nn

from difflesson.denoiser import Pair, Prediction, network_denoiser, network_pair
from difflesson.guidance import (
    classifier_free,
    classifier_guided,
    classifier_log_prob,
    classifier_logits,
    gradient,
    implicit_gradient,
    linearise,
    mix,
    scale_at,
    sharpened,
    tempered,
    tilt,
)
from difflesson.mixture import GaussianMixture
from difflesson.plane import four_blobs
from difflesson.schedule import cosine, vp_linear
from tests.oracles.mixtures import random_mixture

F32, F64 = torch.float32, torch.float64
SCHEDULES = {"linear": vp_linear(), "cosine": cosine()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
TIMES = [0.0, 1e-6, 0.01, 0.2, 0.5, 0.8, 0.95, 0.999, 1.0]
GAMMAS = [-2.0, -0.5, 0.3, 1.0, 2.0, 7.5]


def worst(a, b) -> float:
    """Maximum absolute difference of two tensors of one shape."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).detach().abs().max())


def farthest(a: Prediction, b: Prediction, alpha=1.0) -> float:
    """Maximum absolute difference of two predictions; x0 multiplied by alpha where it divides by it."""
    return max(worst(alpha * a.x0, alpha * b.x0), worst(a.eps, b.eps))


LABELS = {1: [1, 0, 1], 2: [0, 1, 1, 0], 5: [2, 0, 1]}
MIXTURES = {dim: random_mixture(dim, labels) for dim, labels in LABELS.items()}
every_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=[f"{dim}d" for dim in MIXTURES])


def points(dim: int, count: int = 7) -> Tensor:
    return 2 * torch.randn(count, dim, generator=torch.Generator().manual_seed(0), dtype=F64)


def class_gradient(mixture: GaussianMixture, schedule, label: int):
    """grad log p_t(label | x) of the noised mixture, as a guidance gradient."""

    def grad(x, t):
        return mixture.noised(schedule.alpha(t), schedule.sigma(t)).class_gradient(x, label)

    return grad


class Counted:
    """A denoiser, gradient or pair function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)


# --- tilt ----------------------------------------------------------------------------------------


@every_mixture
@every_schedule
@pytest.mark.parametrize("t", TIMES)
@pytest.mark.equation("eq-eps-substitution")
def test_tilting_by_the_classifier_at_gamma_one_is_conditional_sampling(mixture, schedule, t):
    """Bayes: score + grad log p_t(y | x) is the score of p_t(x | y), at every noise level and everywhere."""
    x = points(mixture.dim)
    for label in range(mixture.classes):
        guided = tilt(mixture.denoiser(schedule), class_gradient(mixture, schedule, label), 1.0, schedule)
        expected = mixture.denoiser(schedule, label)(x, t)
        assert farthest(guided(x, t), expected, alpha=float(schedule.alpha(t))) < 1e-12
        assert farthest(guided(x, t), expected) < 1e-10


@every_mixture
@every_schedule
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.equation("eq-eps-substitution")
def test_tilting_adds_gamma_times_the_gradient_to_the_score(mixture, schedule, gamma):
    """The guided score by autograd of log p_t(x) + gamma log p_t(y | x), and x0 from it by Tweedie."""
    x = points(mixture.dim)
    for t in TIMES[1:]:
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        noisy = mixture.noised(alpha, sigma)
        leaf = x.clone().requires_grad_()
        log_prob = noisy.log_prob(leaf) + gamma * noisy.class_log_prob(leaf, 0)
        (score,) = torch.autograd.grad(log_prob.sum(), leaf)
        guided = tilt(mixture.denoiser(schedule), class_gradient(mixture, schedule, 0), gamma, schedule)(x, t)
        assert worst(guided.eps, -sigma * score) < 1e-10
        assert worst(alpha * guided.x0, x + sigma**2 * score) < 1e-10
        assert worst(guided.score(schedule.sigma(t)), score) < 1e-9 / sigma


@every_mixture
@pytest.mark.equation("eq-eps-substitution")
def test_tilted_predictions_still_explain_the_point(mixture):
    x, schedule = points(mixture.dim), vp_linear()
    guided = tilt(mixture.denoiser(schedule), lambda x, t: torch.sin(3 * x) * (1 + t), 4.2, schedule)
    for t in TIMES:
        x0, eps = guided(x, t)
        assert worst(schedule.alpha(t) * x0 + schedule.sigma(t) * eps, x) < 1e-12


def test_gamma_zero_is_bitwise_unconditional_and_costs_no_gradient():
    mixture, schedule = MIXTURES[2], vp_linear()
    x, denoiser = points(2), mixture.denoiser(schedule)
    grad = Counted(class_gradient(mixture, schedule, 1))
    for gamma in (0, 0.0, -0.0, lambda t: 0.0, torch.tensor(0.0)):
        for t in TIMES:
            guided, plain = tilt(denoiser, grad, gamma, schedule)(x, t), denoiser(x, t)
            assert torch.equal(guided.x0, plain.x0) and torch.equal(guided.eps, plain.eps)
    assert grad.calls == 0


def test_a_gradient_of_zero_changes_nothing():
    mixture, schedule, x = MIXTURES[2], vp_linear(), points(2)
    for t in TIMES:
        guided = tilt(mixture.denoiser(schedule), lambda x, t: torch.zeros_like(x), 3.0, schedule)(x, t)
        assert farthest(guided, mixture.denoiser(schedule)(x, t)) == 0


def test_tilts_stack():
    """Tilting by gamma a and then b is tilting by a + b; a tilt can be tilted by another class."""
    mixture, schedule, x, t = MIXTURES[2], vp_linear(), points(2), 0.3
    first, other = (class_gradient(mixture, schedule, label) for label in (0, 1))
    plain = mixture.denoiser(schedule)
    twice = tilt(tilt(plain, first, 0.7, schedule), first, 1.6, schedule)(x, t)
    assert farthest(twice, tilt(plain, first, 2.3, schedule)(x, t)) < 1e-12
    both = tilt(tilt(plain, first, 0.7, schedule), other, -0.4, schedule)(x, t)
    summed = tilt(plain, lambda x, t: 0.7 * first(x, t) - 0.4 * other(x, t), 1.0, schedule)(x, t)
    assert farthest(both, summed) < 1e-12


@every_schedule
def test_gamma_may_depend_on_time(schedule):
    mixture, x = MIXTURES[2], points(2)
    grad, pair = class_gradient(mixture, schedule, 1), mixture.pair(schedule, 1)

    def ramp(t):
        return 3.0 * float(t) if t > 0.4 else 0.0

    for t in (torch.tensor(t, dtype=F64) for t in TIMES):
        constant = ramp(t)
        for guided, expected in (
            (tilt(pair.uncond, grad, ramp, schedule), tilt(pair.uncond, grad, constant, schedule)),
            (classifier_free(pair, ramp), classifier_free(pair, constant)),
        ):
            assert farthest(guided(x, t), expected(x, t)) == 0


@every_schedule
def test_float32_stays_float32(schedule):
    mixture, x = MIXTURES[2].to(F32), points(2).float()
    for t in (0.3, torch.tensor(0.3, dtype=F64)):
        for guided in (
            tilt(mixture.denoiser(schedule), class_gradient(mixture, schedule, 1), 2.0, schedule),
            classifier_free(mixture.pair(schedule, 1), 2.0),
            classifier_free(mixture.pair(schedule, 1), torch.tensor(2.0, dtype=F64)),
        ):
            assert guided(x, t).x0.dtype == guided(x, t).eps.dtype == F32


# --- two branches ------------------------------------------------------------------------------------


@every_mixture
@every_schedule
@pytest.mark.parametrize("gamma", [0.0, *GAMMAS])
@pytest.mark.equation("eq-cfg")
@pytest.mark.equation("eq-eps-substitution")
def test_classifier_free_equals_classifier_guidance_on_the_mixture(mixture, schedule, gamma):
    """With the true conditional, the true unconditional and the true classifier the two are one method."""
    x, grad = points(mixture.dim), class_gradient(mixture, schedule, 0)
    for t in TIMES:
        free = classifier_free(mixture.pair(schedule, 0), gamma)(x, t)
        tilted = tilt(mixture.denoiser(schedule), grad, gamma, schedule)(x, t)
        assert farthest(free, tilted, alpha=float(schedule.alpha(t))) < 1e-11


@every_mixture
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.equation("eq-cfg")
def test_classifier_free_score_is_that_of_the_sharpened_density(mixture, gamma):
    """grad [(1 - gamma) log p_t(x) + gamma log p_t(x | y)] by autograd, in Ho and Salimans' weights."""
    x, schedule = points(mixture.dim), vp_linear()
    for t in TIMES[1:]:
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        leaf, noisy, w = x.clone().requires_grad_(), mixture.noised(alpha, sigma), gamma - 1
        log_prob = (1 + w) * noisy.given(0).log_prob(leaf) - w * noisy.log_prob(leaf)
        (score,) = torch.autograd.grad(log_prob.sum(), leaf)
        x0, eps = classifier_free(mixture.pair(schedule, 0), gamma)(x, t)
        assert worst(eps, -sigma * score) < 1e-10
        assert worst(alpha * x0, x + sigma**2 * score) < 1e-10


@pytest.mark.parametrize(("gamma", "calls"), [(0, (0, 1)), (1, (1, 0)), (0.5, (1, 1)), (-1, (1, 1))])
@pytest.mark.equation("eq-cfg")
def test_only_the_branches_that_count_are_evaluated(gamma, calls):
    mixture, schedule, x = MIXTURES[2], vp_linear(), points(2)
    cond, uncond = Counted(mixture.denoiser(schedule, 1)), Counted(mixture.denoiser(schedule))
    guided = classifier_free(Pair(cond, uncond), gamma)(x, 0.3)
    assert (cond.calls, uncond.calls) == calls
    if gamma in (0, 1):
        plain = (cond if gamma else uncond).function(x, 0.3)
        assert torch.equal(guided.x0, plain.x0) and torch.equal(guided.eps, plain.eps)


def test_a_network_is_asked_both_questions_in_one_call_and_one_question_where_one_counts():
    asked = []

    class Network(torch.nn.Module):
        classes = 2

        def forward(self, x, log_snr, label):
            asked.append(label.tolist())
            return x * label[:, None]

    x = points(2)[:3]
    pair = network_pair(Network(), vp_linear(), torch.tensor([0, 1, 1]))
    apart = Pair(pair.cond, pair.uncond)
    assert farthest(classifier_free(pair, 2.0)(x, 0.3), classifier_free(apart, 2.0)(x, 0.3)) < 1e-14
    classifier_free(pair, 1.0)(x, 0.3), classifier_free(pair, 0.0)(x, 0.3)
    assert asked == [[0, 1, 1, 2, 2, 2], [0, 1, 1], [2, 2, 2], [0, 1, 1], [2, 2, 2]]


def test_equal_branches_are_a_fixed_point_of_every_scale():
    mixture, schedule, x = MIXTURES[2], vp_linear(), points(2)
    plain = mixture.denoiser(schedule)
    for gamma in GAMMAS:
        assert farthest(classifier_free(Pair(plain, plain), gamma)(x, 0.3), plain(x, 0.3)) == 0


def test_mix_hands_the_rule_both_predictions_conditional_first_then_the_point_and_the_time():
    mixture, schedule, x = MIXTURES[2], vp_linear(), points(2)
    pair, seen = mixture.pair(schedule, 1), []

    def rule(cond, uncond, at, time):
        seen.append((cond, uncond, at, time))
        return cond

    assert farthest(mix(pair, rule)(x, 0.3), pair.cond(x, 0.3)) == 0
    cond, uncond, at, time = seen[0]
    assert farthest(uncond, pair.uncond(x, 0.3)) == 0
    assert at is x and time == 0.3


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.equation("eq-cfg")
def test_mix_with_the_linear_rule_is_classifier_free(gamma):
    mixture, schedule, x = MIXTURES[5], vp_linear(), points(5)
    pair = mixture.pair(schedule, 1)

    def rule(cond, uncond, x, t):
        return Prediction(*((1 - gamma) * u + gamma * c for c, u in zip(cond, uncond, strict=True)))

    assert farthest(mix(pair, rule)(x, 0.3), classifier_free(pair, gamma)(x, 0.3)) < 1e-12


def test_scale_at_reads_numbers_tensors_and_functions():
    t, x = torch.tensor(0.25, dtype=F64), torch.zeros(3, 2)
    assert scale_at(2, t, x) == scale_at(torch.tensor(2.0), t, x) == scale_at(lambda t: 8 * t, t, x) == 2.0
    assert isinstance(scale_at(lambda t: 8 * t, t, x), float)
    assert torch.equal(scale_at(lambda t: torch.arange(3), t, x), torch.tensor([[0.0], [1.0], [2.0]]))


# --- a prediction says one thing, whatever guidance made it -------------------------------------------------


def clip(schedule, bound):
    """A rule that clips the guided clean point, and makes the noise anew."""

    def rule(cond, uncond, x, t):
        x0 = (uncond.x0 + 4 * (cond.x0 - uncond.x0)).clamp(-bound, bound)
        return Prediction.from_x0(x, x0, schedule.alpha(t), schedule.sigma(t))

    return rule


def guidances(mixture, schedule):
    """Every guidance of the package, on one mixture."""
    pair, plain = mixture.pair(schedule, 1), mixture.denoiser(schedule)

    def grad(x, t):
        return mixture.noised(schedule.alpha(t), schedule.sigma(t)).class_gradient(x, 1)

    return {
        "tilt": tilt(plain, grad, 2.5, schedule),
        "classifier_free": classifier_free(pair, 2.5),
        "classifier_free, a scale a point": classifier_free(pair, torch.linspace(-1, 8, len(points(2)), dtype=F64)),
        "mix": mix(pair, lambda c, u, x, t: Prediction(2 * c.x0 - u.x0, 2 * c.eps - u.eps)),
        "mix, clipped": mix(pair, clip(schedule, 0.5)),
        "tempered": tempered(plain, 3.0, schedule),
        "stacked": tilt(tempered(classifier_free(pair, 3.0), 0.5, schedule), grad, -1.0, schedule),
    }


@every_schedule
@pytest.mark.parametrize("name", guidances(MIXTURES[2], vp_linear()))
def test_what_a_guidance_predicts_adds_up_to_the_point_it_was_asked_about(name, schedule):
    guided, x = guidances(MIXTURES[2], schedule)[name], points(2)
    for t in (0.01, 0.3, 0.7, 0.99):
        x0, eps = guided(x, t)
        scale = 1 + float(x0.abs().max()) + float(eps.abs().max())
        assert worst(schedule.alpha(t) * x0 + schedule.sigma(t) * eps, x) < 1e-13 * scale


def test_crossing_two_predictions_breaks_the_sum_which_is_why_it_has_its_own_place_in_the_step():
    schedule, x = vp_linear(), points(2)
    pair = MIXTURES[2].pair(schedule, 1)
    crossed = mix(pair, lambda cond, uncond, x, t: Prediction(cond.x0, uncond.eps))(x, 0.3)
    assert worst(schedule.alpha(0.3) * crossed.x0 + schedule.sigma(0.3) * crossed.eps, x) > 0.1


# --- one time, one label, one scale for all points, or one each ----------------------------------------------


@every_schedule
def test_a_time_and_a_scale_a_point_are_the_answers_one_by_one(schedule):
    x = points(2)[:4]
    times, scales = torch.tensor([0.1, 0.4, 0.4, 0.9], dtype=F64), torch.tensor([0.0, 1.0, -2.0, 5.0], dtype=F64)
    pair = MIXTURES[2].pair(schedule, 1)
    grad = implicit_gradient(pair, schedule)
    for make in (
        lambda gamma: classifier_free(pair, gamma),
        lambda gamma: tilt(pair.uncond, grad, gamma, schedule),
        lambda gamma: classifier_free(pair, lambda t: gamma),
    ):
        together = make(scales)(x, times)
        for i in range(4):
            alone = make(float(scales[i]))(x[i : i + 1], times[i])
            assert farthest(alone, Prediction(*(half[i : i + 1] for half in together))) < 1e-11


@pytest.mark.parametrize("gamma", [torch.ones(3), torch.ones(2, 2), torch.tensor([1.0, math.nan]), "two", 1j])
def test_a_scale_of_another_shape_or_kind_is_refused(gamma):
    pair = MIXTURES[2].pair(vp_linear(), 1)
    with pytest.raises((ValueError, TypeError)):
        classifier_free(pair, gamma)(points(2)[:2], 0.3)


@pytest.mark.parametrize("shape", [(1, 2), (5,), (5, 1)])
def test_a_branch_that_answers_in_another_shape_is_refused_and_not_broadcast(shape):
    good, x = MIXTURES[2].denoiser(vp_linear()), points(2)[:5]
    pair = Pair(lambda x, t: Prediction(torch.zeros(shape).double(), x), good)
    with pytest.raises(ValueError, match="denoiser.s x0 must have shape"):
        classifier_free(pair, 3.0)(x, 0.3)


# --- parameterisations -----------------------------------------------------------------------------------


@pytest.mark.equation("eq-parameterisations")
@pytest.mark.equation("eq-tweedie")
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 1, 4, 4)])
def test_every_parameterisation_of_a_known_pair_gives_it_back(shape):
    """Draw x0 and eps; whatever a network was trained to answer, both must be found again."""
    x0, eps = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    angle = torch.tensor(0.7, dtype=F64)
    alpha, sigma = angle.cos(), angle.sin()
    x = alpha * x0 + sigma * eps
    for prediction in (
        Prediction.from_x0(x, x0, alpha, sigma),
        Prediction.from_eps(x, eps, alpha, sigma),
        Prediction.from_v(x, alpha * eps - sigma * x0, alpha, sigma),
        Prediction.from_score(x, -eps / sigma, alpha, sigma),
    ):
        assert farthest(prediction, Prediction(x0, eps)) < 1e-14
        assert worst(prediction.score(sigma), -(x - alpha * x0) / sigma**2) < 1e-14


@pytest.mark.equation("eq-parameterisations")
def test_v_is_never_singular():
    x, v = points(2), points(2) - 1
    for alpha, sigma in ((1.0, 0.0), (0.0, 1.0)):
        prediction = Prediction.from_v(x, v, alpha, sigma)
        assert farthest(prediction, Prediction(x, v) if alpha else Prediction(-v, x)) == 0


# --- gradients and classifiers ---------------------------------------------------------------------------


@every_mixture
@every_schedule
@pytest.mark.equation("eq-eps-substitution")
def test_gradient_of_the_class_log_probability_is_the_class_gradient(mixture, schedule):
    x = points(mixture.dim)
    for t in TIMES:
        noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
        grad = gradient(lambda p, t, noisy=noisy: noisy.class_log_prob(p, 0))
        for switch in (torch.no_grad(), torch.enable_grad()):
            with switch:
                ours = grad(x, t)
            assert worst(ours, noisy.class_gradient(x, 0)) < 1e-11
            assert not ours.requires_grad and not x.requires_grad


class Logits(nn.Module):
    """A small noise-aware classifier of points; optionally with batch norm."""

    classes = 3

    def __init__(self, norm: bool = False):
        super().__init__()
        middle = nn.BatchNorm1d(8) if norm else nn.Identity()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(3, 8), middle, nn.Tanh(), nn.Linear(8, 3)).double()
        self.calls = 0

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(torch.cat([x, log_snr[:, None].to(x) / 10], dim=1))


def test_one_backward_pass_gives_each_point_its_own_gradient():
    """The sum trick against one autograd call a point."""
    log_prob = classifier_log_prob(Logits().eval(), vp_linear(), 2)
    x = points(2)
    together = gradient(log_prob)(x, 0.3)
    for i in range(len(x)):
        assert worst(together[i : i + 1], gradient(log_prob)(x[i : i + 1], 0.3)) < 1e-14
        leaf = x[i].clone().requires_grad_()
        (alone,) = torch.autograd.grad(log_prob(leaf[None], 0.3)[0], leaf)
        assert worst(together[i], alone) < 1e-14


def test_batch_norm_in_training_mode_leaks_between_points_and_eval_mode_does_not():
    """Move another point: the first one's gradient must stay, and with batch statistics it does not."""
    x, network = points(2), Logits(norm=True)
    moved = x.clone()
    moved[-1] += 3
    grad = gradient(classifier_log_prob(network, vp_linear(), 1))
    network.eval()
    assert worst(grad(x, 0.3)[0], grad(moved, 0.3)[0]) == 0
    network.train()
    assert worst(grad(x, 0.3)[0], grad(moved, 0.3)[0]) > 1e-3


def test_gradient_leaves_the_networks_parameters_alone():
    network = Logits().eval()
    gradient(classifier_log_prob(network, vp_linear(), 1))(points(2), 0.3)
    assert all(parameter.grad is None for parameter in network.parameters())


@every_schedule
@pytest.mark.parametrize("label", [0, 2, torch.tensor([2, 0, 1, 1, 2, 0, 1])])
@pytest.mark.equation("eq-eps-substitution")
def test_classifier_guided_is_the_formula_with_a_network(schedule, label):
    """eps - gamma sigma g and x0 + gamma sigma^2 / alpha g, with g by finite differences of the network."""
    mixture, network, x, gamma, h = MIXTURES[2], Logits().eval(), points(2), 2.5, 1e-6
    for t in (0.01, 0.4, 0.9):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        labels, log_snr = torch.as_tensor(label).expand(7), torch.full((7,), 2 * math.log(alpha / sigma))

        def log_prob(p, log_snr=log_snr, labels=labels):
            return network(p, log_snr).log_softmax(1)[range(7), labels].detach()

        steps = h * torch.eye(2, dtype=F64)
        g = torch.stack([(log_prob(x + e) - log_prob(x - e)) / (2 * h) for e in steps], dim=1)
        plain = mixture.denoiser(schedule)(x, t)
        guided = classifier_guided(mixture.denoiser(schedule), network, schedule, label, gamma)(x, t)
        assert worst(guided.eps, plain.eps - gamma * sigma * g) < 1e-8
        assert worst(guided.x0, plain.x0 + gamma * sigma**2 / alpha * g) < 1e-8 * max(1, sigma / alpha)


def test_classifier_guided_at_gamma_zero_does_not_call_the_classifier():
    mixture, network, schedule, x = MIXTURES[2], Logits().eval(), vp_linear(), points(2)
    guided = classifier_guided(mixture.denoiser(schedule), network, schedule, 1, 0.0)(x, 0.3)
    assert farthest(guided, mixture.denoiser(schedule)(x, 0.3)) == 0 and network.calls == 0


@every_schedule
def test_a_classifier_sees_its_noise_level_and_sums_to_one(schedule):
    network, x = Logits().eval(), points(2)
    for t in (0.01, 0.4, 1.0):
        shares = torch.stack([classifier_log_prob(network, schedule, y)(x, t).exp() for y in range(3)])
        assert worst(shares.sum(0), torch.ones(7)) < 1e-14
    early, late = (classifier_log_prob(network, schedule, 0)(x, t) for t in (0.1, 0.9))
    assert worst(early, late) > 1e-3


# --- the normalised power of a classifier ------------------------------------------------------------------


def logits_of(mixture: GaussianMixture, schedule):
    """Log of weight times density of each class, (batch, classes): they do not sum to one at a point."""

    def logits(x, t):
        noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
        shares = noisy.class_weights().log()
        return torch.stack([noisy.given(y).log_prob(x) + shares[y] for y in range(mixture.classes)], dim=1)

    return logits


@every_mixture
@every_schedule
@pytest.mark.equation("eq-sharpened")
def test_the_sharpened_classifier_is_the_power_over_the_sum_of_powers_whatever_the_logits_lack(mixture, schedule):
    x = points(mixture.dim)
    for t, gamma in ((0.2, 3.0), (0.6, 0.4), (0.9, -1.5), (0.5, 0.0)):
        noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
        p = torch.stack([noisy.class_log_prob(x, y).exp() for y in range(mixture.classes)])
        for y in range(mixture.classes):
            ours = sharpened(logits_of(mixture, schedule), y, gamma)(x, t).exp()
            assert worst(ours, p[y] ** gamma / (p**gamma).sum(0)) < 1e-12


@every_mixture
@every_schedule
@pytest.mark.equation("eq-sharpened-gradient")
def test_the_gradient_of_the_sharpened_classifier_subtracts_the_mean_over_all_classes(mixture, schedule):
    """Against the closed-form class gradients, weighed by powers of the class probabilities."""
    x = points(mixture.dim)
    for t, gamma in ((0.2, 3.0), (0.6, 0.4), (0.9, -1.5), (0.5, 1.0)):
        noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
        g = torch.stack([noisy.class_gradient(x, y) for y in range(mixture.classes)])
        p = torch.stack([noisy.class_log_prob(x, y).exp() for y in range(mixture.classes)]) ** gamma
        mean = (p[:, :, None] * g).sum(0) / p.sum(0)[:, None]
        for y in range(mixture.classes):
            ours = gradient(sharpened(logits_of(mixture, schedule), y, gamma))(x, t)
            assert worst(ours, gamma * (g[y] - mean)) < 1e-10


def test_a_sharpened_classifier_takes_a_label_and_a_scale_a_point_and_functions_of_time():
    network, x = classifier_logits(Logits().eval(), vp_linear()), points(2)
    labels, scales = torch.tensor([2, 0, 1, 1, 2, 0, 1]), torch.linspace(-1, 5, 7, dtype=F64)
    together = sharpened(network, labels, scales)(x, 0.3)
    for i in range(len(x)):
        alone = sharpened(network, int(labels[i]), lambda t, i=i: float(scales[i]))(x[i : i + 1], 0.3)
        assert worst(together[i : i + 1], alone) < 1e-14


def test_at_gamma_one_the_sharpened_classifier_guides_like_the_classifier_and_at_zero_not_at_all():
    mixture, network, schedule, x = MIXTURES[2], Logits().eval(), vp_linear(), points(2)
    free = mixture.denoiser(schedule)
    for gamma in (0.0, 1.0):
        grad = gradient(sharpened(classifier_logits(network, schedule), 1, gamma))
        theirs = classifier_guided(free, network, schedule, 1, gamma)(x, 0.3)
        assert farthest(tilt(free, grad, 1.0, schedule)(x, 0.3), theirs) < 1e-13


# --- networks --------------------------------------------------------------------------------------------


class Velocity(nn.Module):
    """A small v-predicting network of points with a null label, which records its calls."""

    classes = 3

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.embed = nn.Embedding(self.classes + 1, 4)
            self.layers = nn.Sequential(nn.Linear(2 + 1 + 4, 16), nn.Tanh(), nn.Linear(16, 2))
        self.seen = []

    def forward(self, x: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        self.seen.append((tuple(x.shape), log_snr, label.tolist()))
        features = torch.cat([x, log_snr[:, None].to(x) / 10, self.embed(label).to(x)], dim=1)
        return self.layers(features)


@every_schedule
@pytest.mark.parametrize("label", [None, 2, torch.tensor(1), torch.tensor([0, 2, 1, 1, 0, 2, 2])])
@pytest.mark.equation("eq-parameterisations")
def test_a_network_denoiser_turns_v_into_both_predictions(schedule, label):
    """alpha x0 + sigma eps = x and alpha eps - sigma x0 = v: two equations for two unknowns."""
    network, x = Velocity().double(), points(2)
    for t in (0.05, 0.6, 1.0):
        x0, eps = network_denoiser(network, schedule, label)(x, t)
        shape, log_snr, seen = network.seen[-1]
        assert shape == (7, 2) and log_snr.shape == (7,)
        assert seen == torch.as_tensor(3 if label is None else label).expand(7).tolist()
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        assert abs(float(log_snr[0]) - 2 * math.log(alpha / sigma)) < 1e-5  # handed over in float32
        v = network(x, log_snr, torch.tensor(seen))
        assert worst(alpha * x0 + sigma * eps, x) < 1e-13
        assert worst(alpha * eps - sigma * x0, v) < 1e-13


@every_schedule
@pytest.mark.parametrize("label", [0, torch.tensor(2), torch.tensor([0, 2, 1, 1, 0, 2, 2])])
def test_a_network_pair_in_one_call_equals_two_calls(schedule, label):
    network, x = Velocity().double(), points(2)
    for t in (0.05, 0.6, 1.0):
        network.seen.clear()
        cond, uncond = network_pair(network, schedule, label)(x, t)
        assert [shape for shape, *_ in network.seen] == [(14, 2)]
        assert farthest(cond, network_denoiser(network, schedule, label)(x, t)) < 1e-13
        assert farthest(uncond, network_denoiser(network, schedule, None)(x, t)) < 1e-13


@pytest.mark.equation("eq-cfg")
def test_guiding_a_network_calls_it_once_and_skips_the_idle_branch():
    network, schedule, x = Velocity().double(), vp_linear(), points(2)
    pair = network_pair(network, schedule, 1)
    for gamma, labels in ((3.0, [1] * 7 + [3] * 7), (1.0, [1] * 7), (0.0, [3] * 7)):
        network.seen.clear()
        guided = classifier_free(pair, gamma)(x, 0.4)
        assert [seen for *_, seen in network.seen] == [labels]
        cond, uncond = (network_denoiser(network, schedule, label)(x, 0.4) for label in (1, None))
        assert worst(guided.eps, (1 - gamma) * uncond.eps + gamma * cond.eps) < 1e-13
        assert worst(guided.x0, (1 - gamma) * uncond.x0 + gamma * cond.x0) < 1e-13


def test_each_sample_gets_its_own_label():
    network, schedule, x = Velocity().double(), vp_linear(), points(2)
    labels = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    mixed = classifier_free(network_pair(network, schedule, labels), 2.0)(x, 0.4)
    for label in range(3):
        alone = classifier_free(network_pair(network, schedule, label), 2.0)(x, 0.4)
        mine = labels == label
        assert worst(mixed.x0[mine], alone.x0[mine]) < 1e-13
        assert worst(mixed.eps[mine], alone.eps[mine]) < 1e-13


def test_a_network_denoiser_takes_a_batch_of_one_and_images():
    class Image(Velocity):
        def forward(self, x, log_snr, label):
            return super().forward(x.flatten(1), log_snr, label).view(x.shape)

    network, schedule = Image().double(), vp_linear()
    x = points(2)[:, None, None, :]  # (7, 1, 1, 2)
    many = network_denoiser(network, schedule, 1)(x, 0.4)
    one = network_denoiser(network, schedule, 1)(x[:1], 0.4)
    assert many.x0.shape == x.shape and one.x0.shape == (1, 1, 1, 2)
    assert worst(one.x0[0], many.x0[0]) < 1e-13


def test_no_noise_reaches_the_network_as_an_infinite_log_snr():
    network, schedule = Velocity(), vp_linear()
    network_denoiser(network, schedule)(points(2).float(), 0.0)
    assert network.seen[-1][1].tolist() == [math.inf] * 7


def test_autocast_runs_the_network_in_low_precision_and_combines_in_full():
    network, schedule, x = Velocity(), vp_linear(), points(2).float()
    low = network_denoiser(network, schedule, 1, dtype=torch.bfloat16)(x, 0.4)
    full = network_denoiser(network, schedule, 1)(x, 0.4)
    assert low.x0.dtype == low.eps.dtype == F32
    assert 0 < farthest(low, full) < 0.05
    explained = schedule.alpha(0.4) * low.x0 + schedule.sigma(0.4) * low.eps
    assert worst(explained, x) < 1e-6


# --- the Taylor polynomial, the implied classifier, the wrong temperature --------------------------------------


@pytest.mark.equation("eq-taylor")
@every_mixture
@every_schedule
def test_the_taylor_polynomial_has_the_value_and_the_slopes_of_finite_differences(mixture, schedule):
    def log_prob(x, t):
        return mixture.noised(schedule.alpha(t), schedule.sigma(t)).class_log_prob(x, 1)

    x, t, h = points(mixture.dim), 0.4, 1e-5
    polynomial = linearise(log_prob, x, t)
    away = torch.randn(3, *x.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    rate = (log_prob(x, t + h) - log_prob(x, t - h)) / (2 * h)
    slopes = [(log_prob(x + h * e, t) - log_prob(x - h * e, t)) / (2 * h) for e in torch.eye(mixture.dim, dtype=F64)]
    want = log_prob(x, t) + (away * torch.stack(slopes, dim=1)).sum(-1) - 0.1 * rate
    assert worst(polynomial(x + away, t - 0.1), want) < 1e-7 * max(1.0, float(want.abs().max()))
    assert worst(polynomial(x, t), log_prob(x, t)) == 0


@pytest.mark.equation("eq-taylor")
def test_the_error_of_the_taylor_polynomial_is_of_second_order_only_with_its_time_term():
    mixture, schedule = MIXTURES[2], vp_linear()

    def log_prob(x, t):
        return mixture.noised(schedule.alpha(t), schedule.sigma(t)).class_log_prob(x, 1)

    x, t = points(2), 0.4
    polynomial, direction = linearise(log_prob, x, t), torch.tensor([0.5, -0.8], dtype=F64)
    errors = {1e-2: [], 1e-3: []}
    for h, both in errors.items():
        value = log_prob(x + h * direction, t - h)
        both += [worst(polynomial(x + h * direction, s), value) for s in (t - h, t)]
    with_time, without = (errors[1e-2][i] / errors[1e-3][i] for i in (0, 1))
    assert 80 < with_time < 120
    assert 8 < without < 12


@pytest.mark.equation("eq-implicit-classifier")
@every_mixture
@every_schedule
@pytest.mark.parametrize("t", [0.01, 0.4, 0.95])
def test_the_implicit_gradient_is_the_slope_of_the_log_ratio_of_densities(mixture, schedule, t):
    noisy, x, h = mixture.noised(schedule.alpha(t), schedule.sigma(t)), points(mixture.dim), 1e-5

    def log_ratio(x):
        return noisy.given(1).log_prob(x) - noisy.log_prob(x)

    steps = h * torch.eye(mixture.dim, dtype=F64)
    want = torch.stack([(log_ratio(x + e) - log_ratio(x - e)) / (2 * h) for e in steps], dim=1)
    got = implicit_gradient(mixture.pair(schedule, 1), schedule)(x, t)
    assert worst(got, want) < 1e-5 * max(1.0, float(want.abs().max()))


@pytest.mark.equation("eq-low-temperature")
@every_mixture
@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0, 2.5])
def test_tempering_multiplies_the_score_and_keeps_x0_and_eps_of_one_mind(mixture, kappa):
    schedule, x, t = vp_linear(), points(mixture.dim), 0.4
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    prediction = tempered(mixture.denoiser(schedule), kappa, schedule)(x, t)
    assert worst(prediction.score(sigma), kappa * mixture.noised(alpha, sigma).score(x)) < 1e-11
    assert worst(alpha * prediction.x0 + sigma * prediction.eps, x) < 1e-12


@pytest.mark.equation("eq-low-temperature")
def test_tempering_is_right_for_no_schedule_even_on_one_gaussian():
    """For N(0, v) data the score at noise level t of p(x)^kappa is -x / (alpha^2 v / kappa + sigma^2), not that."""
    schedule, v, kappa, t = vp_linear(), 0.7, 3.0, 0.4
    blob = GaussianMixture([1.0], torch.zeros(1, 1, dtype=F64), [[[v]]])
    x, alpha, sigma = points(1), float(schedule.alpha(t)), float(schedule.sigma(t))
    got = tempered(blob.denoiser(schedule), kappa, schedule)(x, t).score(sigma)
    assert worst(got, -kappa * x / (alpha**2 * v + sigma**2)) < 1e-12
    assert worst(got, -x / (alpha**2 * v / kappa + sigma**2)) > 0.1


@pytest.mark.parametrize("kappa", [-1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(kappa):
    with pytest.raises(ValueError, match="kappa"):
        tempered(MIXTURES[2].denoiser(vp_linear()), kappa, vp_linear())


# --- derivatives through a guidance ---------------------------------------------------------------------------


def test_a_guided_answer_can_be_differentiated_in_the_scale():
    pair, x = MIXTURES[2].pair(vp_linear(), 1), points(2)[:1]
    for value in (torch.tensor(2.0, dtype=F64), torch.tensor([2.0], dtype=F64)):
        scale = value.clone().requires_grad_()
        (slope,) = torch.autograd.grad(classifier_free(pair, scale)(x, 0.5).x0.sum(), scale)
        cond, uncond = pair(x, 0.5)
        assert abs(float(slope) - float((cond.x0 - uncond.x0).sum())) < 1e-12


def test_a_guided_answer_can_be_differentiated_in_the_point_through_the_gradient():
    mixture, schedule, x = MIXTURES[2], vp_linear(), points(2)[:2]

    def log_prob(x, t):
        return mixture.noised(schedule.alpha(t), schedule.sigma(t)).class_log_prob(x, 1)

    def grad(x, t):
        return mixture.noised(schedule.alpha(t), schedule.sigma(t)).class_gradient(x, 1)

    ideal = mixture.denoiser(schedule)
    tilts = [tilt(ideal, g, 2.0, schedule) for g in (gradient(log_prob), grad)]
    slopes = [torch.autograd.functional.jacobian(lambda x, guided=guided: guided(x, 0.5).x0, x) for guided in tilts]
    assert worst(*slopes) < 1e-10


def test_a_gradient_inside_inference_mode_is_the_one_outside():
    mixture, schedule, x = four_blobs(), cosine(), torch.randn(5, 2).double()
    log_prob = gradient(lambda x, t: mixture.noised(schedule.alpha(t), schedule.sigma(t)).log_prob(x))
    outside = log_prob(x, torch.tensor(0.3).double())
    with torch.inference_mode():
        inside = log_prob(x.clone(), torch.tensor(0.3).double())
    assert torch.equal(inside, outside)
    assert torch.allclose(outside, mixture.noised(schedule.alpha(0.3), schedule.sigma(0.3)).score(x))


def test_a_log_probability_that_does_not_look_at_time_has_no_rate():
    x, goal = torch.zeros(4, 2).double(), torch.ones(2).double()
    line = linearise(lambda x, t: -(x - goal).square().sum(1), x, 0.5)
    assert torch.allclose(line(x + 0.1, 0.2), torch.full((4,), -2 + 2 * 2 * 0.1).double())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_a_function_that_answers_both_guesses_stands_for_a_pair_at_every_scale(gamma):
    pair, x, t = four_blobs().pair(cosine(), 0), torch.randn(4, 2).double(), 0.4
    told = classifier_free(lambda x, t: (pair.cond(x, t), pair.uncond(x, t)), gamma)(x, t)
    assert torch.allclose(told.eps, classifier_free(pair, gamma)(x, t).eps, rtol=1e-12)


def test_a_denoiser_in_the_place_of_a_pair_is_named():
    with pytest.raises(ValueError, match="pair must answer two Predictions.*is it a denoiser"):
        classifier_free(four_blobs().denoiser(cosine(), 0), 2.0)(torch.zeros(4, 2).double(), 0.4)
