"""What chapter 08 claims about the normaliser of gamma: by enumeration, quadrature, differences, and other mixtures."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from difflesson import exercises, guidance, kernels, metrics, plane
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, vp_linear
from tests.oracles.chapter_cells import assigned, names_of
from tests.oracles.mixtures import FOUR, random_mixture

F64 = torch.float64
BLOBS, TWO, MANY = plane.four_blobs(), FOUR.mixture(), random_mixture(2, [0, 1, 2, 3, 1])
SCHEDULE = vp_linear(0.3, 8.0)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at(mixture: GaussianMixture, schedule, t: float) -> GaussianMixture:
    return mixture.noised(schedule.alpha(t), schedule.sigma(t))


def log_joint(mixture: GaussianMixture, x: Tensor) -> Tensor:
    """log p(x, y) for each class, component by component, (N, classes)."""
    parts = []
    for weight, mean, cov in zip(mixture.weights, mixture.means, mixture.covs, strict=True):
        away = x - mean
        squares = ((away @ cov.inverse()) * away).sum(1)
        parts.append(weight.log() - squares / 2 - (2 * math.pi * cov.det().sqrt()).log())
    of = torch.tensor(mixture.labels)
    logs = torch.stack(parts, dim=1)
    return torch.stack([logs[:, of == y].logsumexp(1) for y in range(mixture.classes)], dim=1)


def joint(mixture: GaussianMixture, x: Tensor) -> Tensor:
    return log_joint(mixture, x).exp()


def chances(mixture: GaussianMixture, x: Tensor) -> Tensor:
    return log_joint(mixture, x).softmax(1)


def sharp(mixture: GaussianMixture, x: Tensor, gamma: float) -> Tensor:
    return (gamma * log_joint(mixture, x)).softmax(1)


def slopes(function, x: Tensor) -> Tensor:
    """Gradients of each column of a function of points, (N, columns, 2)."""
    leaf = x.clone().requires_grad_()
    columns = function(leaf).unbind(1)
    return torch.stack([torch.autograd.grad(c.sum(), leaf, retain_graph=True)[0] for c in columns], dim=1)


def tilt_of(mixture: GaussianMixture, kind: str, label: int, gamma: float, cells: int = 170) -> GridDensity:
    def log(x: Tensor) -> Tensor:
        logits = log_joint(mixture, x)
        weight = gamma * logits.log_softmax(1) if kind == "scaled" else (gamma * logits).log_softmax(1)
        return logits.logsumexp(1) + weight[:, label]

    return GridDensity(log, -9, 9, cells)


def logits_of(mixture: GaussianMixture, schedule):
    return lambda x, t: chances(at(mixture, schedule, t), x).log()


def guided(mixture: GaussianMixture, schedule, kind: str, label: int, gamma):
    """The guided denoiser; the push by closed form, with the shares of the rivals."""

    def push(x, t):
        noisy, power = at(mixture, schedule, t), gamma(t) if callable(gamma) else gamma
        g = torch.stack([noisy.class_gradient(x, y) for y in range(mixture.classes)], dim=1)
        p = torch.stack([noisy.class_log_prob(x, y) for y in range(mixture.classes)], dim=1)
        shares = p.exp() if kind == "scaled" else (power * p).softmax(1)
        return power * (g[:, label] - (shares[:, :, None] * g).sum(1))

    return guidance.tilt(mixture.denoiser(schedule), push, 1.0, schedule)


def cloud(denoiser, schedule, kernel, count: int = 700, steps: int = 80, seed: int = 20) -> Tensor:
    start = torch.randn(count, 2, generator=random(seed), dtype=F64)
    return draw(kernel(denoiser, schedule), start, time_grid(steps, start=0.99), random(seed + 1))


# ---- both gradients


@pytest.mark.equation("eq-sharpened")
def test_the_sharpened_classifier_sums_to_one_and_its_normaliser_depends_on_the_point():
    x = MANY.sample(50, random(1))[0]
    powers = chances(MANY, x) ** 3.0
    ours = [guidance.sharpened(logits_of(MANY, SCHEDULE), y, 3.0)(x, 0.0).exp() for y in range(4)]
    assert float((torch.stack(ours, 1) - powers / powers.sum(1, keepdim=True)).abs().max()) < 1e-12
    assert float((torch.stack(ours, 1).sum(1) - 1).abs().max()) < 1e-12
    assert float(powers.sum(1).max() - powers.sum(1).min()) > 0.3


def test_logits_may_lack_any_number_for_each_point_inside_the_softmax():
    x = MANY.sample(50, random(1))[0]
    raw = lambda x, t: logits_of(MANY, SCHEDULE)(x, t) + (3 * x[:, :1]).sin() + x[:, 1:].square()  # noqa: E731
    for gamma in (1.0, 3.0):
        fields = [guidance.gradient(guidance.sharpened(z, 2, gamma))(x, 0.3) for z in (raw, logits_of(MANY, SCHEDULE))]
        assert float((fields[0] - fields[1]).abs().max()) < 1e-10


@pytest.mark.equation("eq-sharpened-gradient")
def test_the_gradient_of_the_sharpened_classifier_is_gamma_g_less_the_slope_of_log_z():
    x, gamma = MANY.sample(50, random(2))[0], 2.7
    noisy = at(MANY, SCHEDULE, 0.3)
    g = slopes(lambda x: chances(noisy, x).log(), x)
    log_z = slopes(lambda x: (chances(noisy, x) ** gamma).sum(1, keepdim=True).log(), x)[:, 0]
    for y in range(4):
        ours = guidance.gradient(guidance.sharpened(logits_of(MANY, SCHEDULE), y, gamma))(x, 0.3)
        assert float((ours - (gamma * g[:, y] - log_z)).abs().max()) < 1e-9
        mean = (sharp(noisy, x, gamma)[:, :, None] * g).sum(1)
        assert float((log_z - gamma * mean).abs().max()) < 1e-9
        assert float((ours - gamma * g[:, y]).norm(dim=1).max()) > 0.1  # it is not gamma g


@pytest.mark.equation("eq-rivals")
def test_each_rival_pushes_along_its_gap_by_its_probability_or_by_its_sharpened_probability():
    """The page's push against automatic differentiation of the two logarithms, with four classes."""
    push = names_of("08", "eq-rivals")["push"]
    x, gamma, label = MANY.sample(50, random(3))[0], 2.3, 1
    g = slopes(lambda x: chances(MANY, x).log(), x)
    scaled = slopes(lambda x: gamma * chances(MANY, x).log(), x)[:, label]
    normalised = slopes(lambda x: sharp(MANY, x, gamma).log(), x)[:, label]
    assert float((push(chances(MANY, x), g, label, gamma) - scaled).abs().max()) < 1e-9
    assert float((push(sharp(MANY, x, gamma), g, label, gamma) - normalised).abs().max()) < 1e-9
    assert float((chances(MANY, x)[:, :, None] * g).sum(1).abs().max()) < 1e-12  # gradients of probabilities


def test_a_gap_is_the_slope_of_the_log_odds_against_the_rival():
    x = MANY.sample(50, random(3))[0]
    g = slopes(lambda x: chances(MANY, x).log(), x)
    odds = slopes(lambda x: (chances(MANY, x)[:, :1] / chances(MANY, x)[:, 2:3]).log(), x)[:, 0]
    assert float((g[:, 0] - g[:, 2] - odds).abs().max()) < 1e-10


@pytest.mark.equation("eq-force-ratio")
@pytest.mark.parametrize("gamma", [0.4, 3.0, 10.0])
def test_the_two_forces_are_derivatives_in_the_logit(gamma):
    cell, h = names_of("08", "eq-force-ratio"), 1e-6
    logit = torch.linspace(-4, 3, 15, dtype=F64)

    def logs(logit: Tensor) -> tuple[Tensor, Tensor]:
        p, q = 1 / (1 + torch.exp(-logit)), 1 / (1 + torch.exp(logit))
        return gamma * p.log(), (p**gamma / (p**gamma + q**gamma)).log()

    for force, up, down in zip(cell["forces"](logit, gamma), logs(logit + h), logs(logit - h), strict=True):
        assert float((force - (up - down) / (2 * h)).abs().max()) < 1e-7
    scaled, normalised = cell["forces"](logit, gamma)
    assert float((cell["ratio"](logit, gamma) * normalised / scaled - 1).abs().max()) < 1e-12


def test_at_the_border_the_ratio_is_one_on_the_wrong_side_between_a_half_and_one_on_the_right_side_without_bound():
    ratio = names_of("08", "eq-force-ratio")["ratio"]
    wrong, right = torch.linspace(-60, 0, 6001, dtype=F64), torch.linspace(8, 20, 13, dtype=F64)
    for gamma in (1.5, 3.0, 10.0, 1000.0):
        assert 0.5 < float(ratio(wrong, gamma).min()) and float(ratio(wrong, gamma).max()) <= 1
        assert float(ratio(torch.zeros(1), gamma)) == 1
    for gamma in (1.5, 3.0, 10.0):
        assert float((ratio(right, gamma) / ((gamma - 1) * right).exp() - 1).abs().max()) < 0.05
    assert abs(float(ratio(torch.tensor(-20.0), 3.0)) - 1) < 1e-6  # confidently wrong: the two do the same


def test_the_sharper_classifier_stops_the_sooner_the_larger_gamma():
    """At a logit of 4.6 / gamma it has a hundredth of its longest push, the scaled gradient only at 4.6."""
    forces, end = names_of("08", "eq-force-ratio")["forces"], math.log(99)
    for gamma in (1.2, 3.0, 10.0):
        assert abs(float(forces(torch.tensor(end / gamma, dtype=F64), gamma)[1]) / gamma - 0.01) < 1e-12
        assert abs(float(forces(torch.tensor(end, dtype=F64), gamma)[0]) / gamma - 0.01) < 1e-12
    assert 1.4 < float(names_of("08", "eq-force-ratio")["ratio"](torch.tensor(4.0), 1.1)) < 1.6  # hardly above one


def test_the_difference_of_the_pushes_has_the_same_size_at_a_logit_and_its_negative_and_turns_round():
    forces = names_of("08", "eq-force-ratio")["forces"]
    logit = torch.linspace(0.1, 8, 40, dtype=F64)
    for gamma in (1.5, 3.0, 10.0):
        right, wrong = (a - b for a, b in (forces(logit, gamma), forces(-logit, gamma)))
        assert float((right + wrong).abs().max()) < 1e-12 and float(right.min()) > 0


def test_at_gamma_3_sharpening_lengthens_the_plain_push_up_to_a_probability_of_two_thirds_and_shortens_it_beyond():
    forces = names_of("08", "eq-force-ratio")["forces"]
    for p, longer in ((0.3, True), (0.6, True), (0.66, True), (0.67, False), (0.9, False)):
        logit = torch.tensor(math.log(p / (1 - p)), dtype=F64)
        assert bool(forces(logit, 3.0)[1] > forces(logit, 1.0)[0]) == longer


def test_the_scaled_push_is_the_longer_one_exactly_where_the_class_is_the_more_probable_one():
    x = at(TWO, SCHEDULE, 0.3).sample(400, random(4))[0]
    noisy = at(TWO, SCHEDULE, 0.3)
    scaled = slopes(lambda x: 3.0 * chances(noisy, x).log(), x)[:, 1]
    normalised = slopes(lambda x: sharp(noisy, x, 3.0).log(), x)[:, 1]
    right = chances(noisy, x)[:, 1] > 0.5
    longer = scaled.norm(dim=1) > normalised.norm(dim=1)
    assert bool((longer == right).all()) and 50 < int(right.sum()) < 350
    ratio = scaled.norm(dim=1) / normalised.norm(dim=1)
    assert float(ratio[~right].min()) > 0.5 and float(ratio[right].max()) > 20


def test_the_difference_of_the_two_pushes_is_the_slope_of_agreement_and_leads_away_from_the_border_on_both_sides():
    noisy, gamma = at(TWO, SCHEDULE, 0.3), 3.0
    x = noisy.sample(400, random(5))[0]
    scaled = slopes(lambda x: gamma * chances(noisy, x).log(), x)[:, 1]
    normalised = slopes(lambda x: sharp(noisy, x, gamma).log(), x)[:, 1]
    log_z = slopes(lambda x: (chances(noisy, x) ** gamma).sum(1, keepdim=True).log(), x)[:, 0]
    assert float((scaled - normalised - log_z).abs().max()) < 1e-8
    rise = slopes(lambda x: (chances(noisy, x)[:, 1:] / chances(noisy, x)[:, :1]).log(), x)[:, 0]
    uphill, right = (log_z * rise).sum(1), chances(noisy, x)[:, 1] > 0.5
    assert bool(((uphill > 0) == right).all())


# ---- judges


@pytest.mark.parametrize("judges", [2, 3, 4])
def test_the_power_is_that_all_judges_name_the_class_z_that_they_agree_and_the_sharpened_what_they_agree_on(judges):
    """Every possible vote of independent judges, added up."""
    for p in (np.array([0.2, 0.8]), np.array([0.5, 0.2, 0.3])):
        all_say, agree = np.zeros(len(p)), 0.0
        for vote in itertools.product(range(len(p)), repeat=judges):
            chance = np.prod(p[list(vote)])
            if len(set(vote)) == 1:
                all_say[vote[0]] += chance
                agree += chance
        logits = torch.tensor(np.log(p))[None]
        for y in range(len(p)):
            ours = guidance.sharpened(lambda x, t, z=logits: z, y, float(judges))(torch.zeros(1, 2), 0.0).exp()
            assert abs(all_say[y] - p[y] ** judges) < 1e-12 and abs(float(ours) - all_say[y] / agree) < 1e-12
        assert abs(agree - (p**judges).sum()) < 1e-12


def test_agreement_is_certain_where_a_class_is_certain_and_least_where_all_are_equally_probable():
    p = torch.rand(2000, 4, generator=random(6), dtype=F64) ** 3
    p = p / p.sum(1, keepdim=True)
    for gamma in (1.5, 3.0, 7.0):
        z = (p**gamma).sum(1)
        assert float(z.min()) > 4 ** (1 - gamma) and float(z.max()) < 1
        assert float((torch.eye(4) ** gamma).sum(1).min()) == 1


def test_points_on_which_three_judges_are_unanimous_have_the_moments_of_the_scaled_target():
    """On another mixture than the page's; and asking until they agree, of the normalised one."""
    x = TWO.sample(60_000, random(7))[0]
    votes = torch.multinomial(chances(TWO, x), 3, replacement=True, generator=random(8))
    unanimous = x[(votes == 1).all(1)]
    agreed = torch.rand(len(x), generator=random(9), dtype=F64) < sharp(TWO, x, 3.0)[:, 1]
    for points, kind in ((unanimous, "scaled"), (x[agreed], "normalised")):
        value, error = metrics.with_error(lambda part: part.mean(0), points)
        assert bool(((value - tilt_of(TWO, kind, 1, 3.0).mean).abs() < 4 * error).all())


def test_at_gamma_3_both_targets_are_the_class_with_less_than_a_tenth_of_its_mass_moved():
    """Total variation, on the page's mixture and on another; at gamma 10 the scaled one moves more."""
    for mixture in (BLOBS, TWO):
        own = tilt_of(mixture, "scaled", 1, 1.0).weights
        moved = [float((tilt_of(mixture, kind, 1, gamma).weights - own).abs().sum() / 2)
                 for kind, gamma in (("scaled", 3.0), ("normalised", 3.0), ("scaled", 10.0))]  # fmt: skip
        assert 0.03 < min(moved[:2]) and max(moved[:2]) < 0.1 < moved[2]


# ---- the two densities, and what is noised


@pytest.mark.equation("eq-two-tilts")
@pytest.mark.parametrize("kind", ["scaled", "normalised"])
def test_the_guided_score_is_that_of_the_tilted_noisy_density(kind):
    log_tilts = names_of("08", "eq-two-tilts")["log_tilts"]
    t, gamma, label = 0.4, 2.6, 2
    noisy, x = at(MANY, SCHEDULE, t), MANY.sample(40, random(10))[0]
    weight = chances(noisy, x)[:, label] ** gamma if kind == "scaled" else sharp(noisy, x, gamma)[:, label]
    log = log_tilts(noisy, label, gamma, x)[kind == "normalised"]
    assert float((log - joint(noisy, x).sum(1).log() - weight.log()).abs().max()) < 1e-10
    score = slopes(lambda x: log_tilts(noisy, label, gamma, x)[kind == "normalised"][:, None], x)[:, 0]
    ours = guided(MANY, SCHEDULE, kind, label, gamma)(x, t).score(SCHEDULE.sigma(t))
    assert float((ours - score).abs().max()) < 1e-8


def test_both_tilts_are_densities_at_each_level_for_gamma_at_least_zero():
    for t in (0.0, 0.3, 0.9):
        x = at(MANY, SCHEDULE, t).sample(500, random(11))[0]
        for gamma in (0.0, 0.5, 3.0, 20.0):
            weights = chances(at(MANY, SCHEDULE, t), x) ** gamma, sharp(at(MANY, SCHEDULE, t), x, gamma)
            assert all(float(w.min()) >= 0 and float(w.max()) <= 1 for w in weights)


def test_the_power_over_a_constant_is_no_distribution_over_the_classes_the_sharpened_is_and_gives_back_the_data():
    """Summed over the labels, p times the sharpened is p; p times the power is p times Z."""
    x = MANY.sample(300, random(12))[0]
    powers = (chances(MANY, x) ** 3.0).sum(1)
    assert float(powers.std()) > 0.1
    assert float((sharp(MANY, x, 3.0).sum(1) - 1).abs().max()) < 1e-12


@pytest.mark.equation("eq-noised-tilt")
def test_the_noised_target_is_the_noisy_density_times_the_mean_weight_of_the_clean_points():
    """The page's denoiser of a grid, against the score of p_t E[h | x_t] by differences, on another mixture."""
    grid_denoiser = names_of("08", "eq-noised-tilt")["grid_denoiser"]
    t, gamma, h = 0.4, 3.0, 1e-4
    alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
    everything = tilt_of(TWO, "scaled", 1, 0.0)
    for kind in ("scaled", "normalised"):
        weight = chances(TWO, everything.points)[:, 1] ** gamma
        weight = weight if kind == "scaled" else sharp(TWO, everything.points, gamma)[:, 1]

        def log_q(x: Tensor, weight=weight) -> Tensor:
            away = (x[:, None] - alpha * everything.points).square().sum(2) / (2 * sigma**2)
            shares = (everything.weights.log() - away).softmax(1)
            return joint(at(TWO, SCHEDULE, t), x).sum(1).log() + (shares @ weight).log()

        x = at(TWO, SCHEDULE, t).sample(5, random(13))[0]
        steps = h * torch.eye(2, dtype=F64)
        score = torch.stack([(log_q(x + e) - log_q(x - e)) / (2 * h) for e in steps], dim=1)
        ours = grid_denoiser(tilt_of(TWO, kind, 1, gamma), SCHEDULE)(x, torch.tensor(t)).score(sigma)
        assert float((ours - score).abs().max()) < 2e-3


def test_a_noisy_verdict_is_the_mean_verdict_on_the_clean_points_and_a_power_of_a_mean_is_no_mean_of_powers():
    t, x = 0.4, torch.tensor([[0.3, 0.4], [1.0, -0.2]], dtype=F64)
    everything = tilt_of(TWO, "scaled", 1, 0.0)
    away = torch.cdist(x, float(SCHEDULE.alpha(t)) * everything.points).square() / (2 * float(SCHEDULE.sigma(t)) ** 2)
    shares = (everything.weights.log() - away).softmax(1)
    clean, noisy = chances(TWO, everything.points)[:, 1], chances(at(TWO, SCHEDULE, t), x)[:, 1]
    assert float((shares @ clean - noisy).abs().max()) < 1e-6
    assert bool((shares @ clean**3 > noisy**3 + 0.02).all())


def test_points_of_one_noisy_verdict_have_different_right_weights_so_the_verdict_does_not_tell_the_right_push():
    t, everything = 0.2, tilt_of(TWO, "scaled", 1, 0.0, 90)
    x = at(TWO, SCHEDULE, t).sample(600, random(35))[0]
    away = torch.cdist(x, float(SCHEDULE.alpha(t)) * everything.points).square() / (2 * float(SCHEDULE.sigma(t)) ** 2)
    shares = (everything.weights.log() - away).softmax(1)
    verdict, order = chances(at(TWO, SCHEDULE, t), x)[:, 1].sort()
    for weight in (chances(TWO, everything.points)[:, 1] ** 3, sharp(TWO, everything.points, 3.0)[:, 1]):
        logs = (shares @ weight).log()[order]
        alike = (verdict.diff() < 1e-3) & (verdict[1:] > 0.2)
        assert float(logs.diff()[alike].abs().max()) > 0.05 and int(alike.sum()) > 100


def test_if_the_clean_classifier_is_certain_sharpening_leaves_it_as_it_is_and_the_right_push_is_the_plain_one():
    """Two classes that do not overlap: the weight is 0 or 1, and the noised target is the noised class."""
    means, cov = torch.tensor([[-40.0, 0.0], [40.0, 3.0]]).double(), [[1.0, 0.3], [0.3, 0.5]]
    far = GaussianMixture([0.6, 0.4], means, [cov, cov])
    x0 = far.sample(500, random(31))[0]
    for gamma in (0.5, 3.0, 10.0):
        assert float((chances(far, x0)[:, 1] ** gamma - chances(far, x0)[:, 1]).abs().max()) == 0
        assert float((sharp(far, x0, gamma) - chances(far, x0)).abs().max()) == 0
    noisy = at(far, SCHEDULE, 0.95)  # so noisy that the classes overlap: here gamma would change the push
    x = noisy.sample(50, random(32))[0]
    gap = noisy.given(1).score(x) - noisy.score(x) - noisy.class_gradient(x, 1)
    assert float(gap.abs().max()) < 1e-10


def test_in_much_noise_the_right_multiple_is_the_ratio_of_the_shifts_of_the_mean_so_larger_for_classes_that_overlap():
    """On the line, p = N(0, 1) and a logit a x; by quadrature. Steep: near one. Flat: near gamma."""
    x = torch.linspace(-9, 9, 4001, dtype=F64)
    base = torch.exp(-(x**2) / 2)
    found = {}
    for a in (0.3, 10.0):
        p = torch.sigmoid(a * x)
        means = [float((base * w * x).sum() / (base * w).sum()) for w in (p, p**3)]
        t = 0.99
        alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))

        def log_mean(z: float, w: Tensor, alpha=alpha, sigma=sigma) -> float:
            return float((base * w * torch.exp(-((z - alpha * x) ** 2) / (2 * sigma**2))).sum().log())

        z, h, one = 0.3, 1e-3, torch.ones_like(x)
        slopes = [(log_mean(z + h, w) - log_mean(z - h, w)) / (2 * h) for w in (one, p, p**3)]
        found[a] = (slopes[2] - slopes[0]) / (slopes[1] - slopes[0])
        assert abs(found[a] - means[1] / means[0]) < 0.05
    assert found[0.3] > 2.5 and found[10.0] < 1.3


@cache
def push_sizes() -> dict[tuple[float, str], tuple[float, float]]:
    """At noisy points of class 1, other ones than the page's: the push used and the right one, in plain gradients."""
    grid_denoiser, schedule, found = names_of("08", "eq-noised-tilt")["grid_denoiser"], cosine(), {}
    clean = BLOBS.given(1).sample(150, random(14))[0]
    for kind in ("scaled", "normalised"):
        right, used = grid_denoiser(tilt_of(BLOBS, kind, 1, 3.0), schedule), guided(BLOBS, schedule, kind, 1, 3.0)
        for t in (0.9, 0.1):
            time = torch.tensor(t, dtype=F64)
            x = schedule.add_noise(clean, torch.randn(150, 2, generator=random(15)).double(), time)
            plain = at(BLOBS, schedule, time).class_gradient(x, 1)
            base = at(BLOBS, schedule, time).score(x)
            pushes = [d(x, time).score(schedule.sigma(time)) - base for d in (used, right)]
            found[t, kind] = tuple(float((push * plain).sum() / plain.square().sum()) for push in pushes)
    return found


def test_in_much_noise_the_right_push_hardly_knows_gamma_and_both_samplers_push_about_three_times_too_hard():
    sizes = push_sizes()
    for kind in ("scaled", "normalised"):
        assert 0.95 < sizes[0.9, kind][1] < 1.2 and sizes[0.9, kind][0] / sizes[0.9, kind][1] > 2.5
        assert sizes[0.1, kind][1] > 1.8
    assert sizes[0.9, "normalised"][0] > sizes[0.9, "scaled"][0] + 0.3  # the rarer class
    assert abs(sizes[0.9, "scaled"][0] - 3) < 1e-6


def test_near_the_data_and_at_points_of_all_data_the_right_multiple_is_more_than_gamma():
    grid_denoiser, schedule, t = names_of("08", "eq-noised-tilt")["grid_denoiser"], cosine(), torch.tensor(0.1)
    x = at(BLOBS, schedule, t).sample(150, random(36))[0]
    plain = at(BLOBS, schedule, t).class_gradient(x, 1)
    for kind in ("scaled", "normalised"):
        score = grid_denoiser(tilt_of(BLOBS, kind, 1, 3.0), schedule)(x, t).score(schedule.sigma(t))
        assert float(((score - at(BLOBS, schedule, t).score(x)) * plain).sum() / plain.square().sum()) > 3.5


def test_the_frequent_class_is_pushed_less_by_the_normalised_push_than_by_the_scaled_in_much_noise():
    noisy = at(BLOBS, cosine(), 0.9)
    x = noisy.given(0).sample(300, random(33))[0]
    g = slopes(lambda x: chances(noisy, x).log(), x)[:, 0]
    normalised = slopes(lambda x: (3.0 * log_joint(noisy, x)).log_softmax(1), x)[:, 0]
    multiple = float((normalised * g).sum() / g.square().sum())
    assert 1.8 < multiple < 2.4


def test_class_1_is_the_rarer_one_and_in_much_noise_the_less_probable_one_at_most_points():
    noisy = at(BLOBS, cosine(), 0.9)
    assert float(BLOBS.class_weights()[1]) < 0.5
    assert float((chances(noisy, noisy.sample(5000, random(16))[0])[:, 1] < 0.5).double().mean()) > 0.8


# ---- large gamma


def test_under_the_scaled_target_an_unsure_point_is_rare_by_the_bound():
    for gamma in (3.0, 10.0, 40.0):
        target, everything = tilt_of(TWO, "scaled", 1, gamma), tilt_of(TWO, "scaled", 1, 0.0)
        p = chances(TWO, target.points)[:, 1]
        for c, larger in ((0.5, 0.9), (0.8, 0.95), (0.9, 0.99)):
            mass, above = target.weights[p <= c].sum(), everything.weights[p >= larger].sum()
            assert float(mass) <= (c / larger) ** gamma / float(above)
    assert float(tilt_of(TWO, "scaled", 1, 100.0).weights[p <= 0.9].sum()) < 1e-3


@pytest.mark.equation("eq-hard-wall")
def test_in_the_limit_the_normalised_target_is_the_data_cut_off_at_the_border():
    wall = names_of("08", "eq-hard-wall")["wall"]
    x = MANY.sample(500, random(17))[0]
    inside = joint(MANY, x).argmax(1) == 2
    assert bool((wall(MANY, 2, x) == inside.double()).all()) and 20 < int(inside.sum()) < 480
    noisy = at(MANY, SCHEDULE, 0.5)  # where the winner may have less than a half
    z = noisy.sample(2000, random(34))[0]
    winner, most = chances(noisy, z).max(1)[::-1]
    assert all(bool((wall(noisy, y, z) == (winner == y).double()).all()) for y in range(4))
    assert int((most < 0.5).sum()) > 50
    share = float((joint(MANY, MANY.sample(50_000, random(18))[0]).argmax(1) == 2).double().mean())

    def log_sharp(x: Tensor) -> Tensor:
        return (3e3 * chances(MANY, x).log()).log_softmax(1)[:, 2]

    steep = GridDensity(lambda x: joint(MANY, x).sum(1).log() + log_sharp(x), -9, 9)
    clear = (chances(MANY, x).sort(1).values.diff(dim=1)[:, -1] > 0.1) & inside
    limit = joint(MANY, x[clear]).sum(1) / share
    assert float((steep.log_prob(x[clear]).exp() / limit - 1).abs().max()) < 0.05
    assert float(steep.expectation(lambda x: 1 - wall(MANY, 2, x))) < 0.01


def test_no_push_inside_the_wall_and_one_that_grows_like_gamma_outside():
    x = TWO.sample(400, random(19))[0]
    odds = chances(TWO, x)[:, 1] / chances(TWO, x)[:, 0]
    pushes = {gamma: slopes(lambda x, g=gamma: (g * chances(TWO, x).log()).log_softmax(1), x)[:, 1].norm(dim=1)
              for gamma in (50.0, 100.0)}  # fmt: skip
    assert float(pushes[100.0][odds > 2].max()) < 1e-12
    assert float((pushes[100.0] / pushes[50.0] - 2)[odds < 0.5].abs().max()) < 1e-6


def test_the_wall_keeps_points_of_other_classes_so_the_sharpest_classifier_is_not_certain():
    x, label = BLOBS.sample(100_000, random(20))
    inside = chances(BLOBS, x)[:, 1] > 0.5
    foreign = (label[inside] == 0).double().mean()
    assert 0.04 < float(foreign) < 0.06
    assert abs(float(chances(BLOBS, x[inside])[:, 1].mean()) - 0.950) < 0.002


@pytest.mark.equation("eq-mode-weights")
@pytest.mark.parametrize("kind", ["scaled", "normalised"])
def test_the_share_of_a_component_is_its_weight_times_the_mean_weight_over_it(kind):
    """The page's function against draws from each component, and against responsibilities under the target."""
    mode_shares, gamma = names_of("08", "eq-mode-weights")["mode_shares"], 4.0

    def weight(x: Tensor) -> Tensor:
        return chances(TWO, x)[:, 1] ** gamma if kind == "scaled" else sharp(TWO, x, gamma)[:, 1]

    ours = mode_shares(TWO, lambda x: weight(x).log())
    means = []
    for mean, cov in zip(TWO.means, TWO.covs, strict=True):
        blob = GaussianMixture([1.0], mean[None], cov[None])
        means.append(weight(blob.sample(40_000, random(21))[0]).mean())
    drawn = TWO.weights * torch.stack(means)
    assert float((ours - drawn / drawn.sum()).abs().max()) < 0.01
    assert float((ours - metrics.mode_weights(TWO, tilt_of(TWO, kind, 1, gamma))).abs().max()) < 1e-6


def test_scaled_the_surer_mode_gains_up_to_ten_thousand_normalised_the_modes_keep_their_proportion():
    def small(kind: str, gamma: float) -> float:
        modes = metrics.mode_weights(BLOBS, tilt_of(BLOBS, kind, 1, gamma))
        return float(modes[3] / (modes[2] + modes[3]))

    def surer(k: int) -> float:
        blob = GaussianMixture([1.0], BLOBS.means[k, None], BLOBS.covs[k, None])
        return float(chances(BLOBS, blob.sample(5000, random(22))[0])[:, 1].mean())

    assert BLOBS.weights[3] < BLOBS.weights[2] and surer(3) > surer(2) + 0.05
    scaled = [small("scaled", gamma) for gamma in (1.0, 3.0, 10.0, 100.0, 1e4)]
    assert scaled == sorted(scaled) and scaled[-1] > 0.7
    normalised = [small("normalised", gamma) for gamma in (1.0, 10.0, 100.0, 1e4)]
    assert normalised[0] - normalised[1] < 0.01 and max(normalised[1:]) - min(normalised[1:]) < 0.001


def test_the_doubt_of_the_scaled_target_falls_roughly_like_one_over_gamma_that_of_the_normalised_stops_by_ten():
    doubt = {
        (kind, gamma): float(1 - metrics.class_mass(BLOBS, tilt_of(BLOBS, kind, 1, gamma))[1])
        for kind in ("scaled", "normalised") for gamma in (10.0, 100.0, 1e4)
    }  # fmt: skip
    times = [gamma * doubt["scaled", gamma] for gamma in (10.0, 100.0, 1e4)]
    assert max(times) / min(times) < 2.5
    assert abs(doubt["normalised", 10.0] - doubt["normalised", 1e4]) < 1e-3


# ---- samples


@cache
def distances() -> dict:
    """Energy distances of guided clouds to their own targets, other noise and fewer steps than the page's."""
    schedule, found = cosine(), {}
    grid_denoiser = names_of("08", "eq-noised-tilt")["grid_denoiser"]
    for gamma in (3.0, 10.0):
        for kind in ("scaled", "normalised"):
            target = tilt_of(BLOBS, kind, 1, gamma)
            truth = target.sample(2000, random(23))
            ways = {"used": guided(BLOBS, schedule, kind, 1, gamma)}
            ways["right"] = grid_denoiser(tilt_of(BLOBS, kind, 1, gamma, 56), schedule)
            for way, denoiser in ways.items():
                for kernel in (kernels.ddim, kernels.ddpm):
                    points = cloud(denoiser, schedule, kernel, steps=50)
                    found[gamma, kind, way, kernel.__name__] = metrics.energy_distance(points, truth)
    return found


def test_far_beyond_the_mode_whose_tail_reaches_the_surest_places_gets_everything():
    """With the logit written by hand, so that no digit of a certain verdict is lost."""

    def target(gamma: float) -> GridDensity:
        def log(x: Tensor) -> Tensor:
            logs = log_joint(BLOBS, x)
            return logs.logsumexp(1) - gamma * torch.log1p(torch.exp(logs[:, 0] - logs[:, 1]).clamp(max=1e12))

        return GridDensity(log, -15, 16, 200)

    small = {}
    for gamma in (1e4, 1e12, 1e20):
        modes = metrics.mode_weights(BLOBS, target(gamma))
        small[gamma] = float(modes[3] / (modes[2] + modes[3]))
    assert 0.7 < small[1e4] < small[1e12] and small[1e12] > 0.97 and small[1e20] < 0.01


def test_where_the_class_wins_nowhere_the_normalised_target_runs_to_where_it_comes_nearest_to_winning():
    x = torch.linspace(-8, 8, 8001, dtype=F64)
    p = 0.2 / 0.7 * torch.exp(-((x - 0.5) ** 2) / 0.98)
    p = p / (p + 0.8 * torch.exp(-(x**2) / 2))
    assert float(p.max()) < 0.5
    for gamma in (1e3, 1e5):
        log = -(x**2) / 2 + gamma * p.log() - (gamma * torch.stack([p.log(), (1 - p).log()])).logsumexp(0)
        weights = log.softmax(0)
        spread = float((weights * (x - x[p.argmax()]) ** 2).sum() ** 0.5)
        assert spread < 3 / gamma**0.5


def test_all_usual_clouds_are_surer_than_their_targets_and_under_ddim_both_pushes_give_0_99():
    for kind in ("scaled", "normalised"):
        goal = float(metrics.class_mass(BLOBS, tilt_of(BLOBS, kind, 1, 3.0))[1])
        for kernel in (kernels.ddim, kernels.ddpm):
            mass = float(metrics.class_mass(BLOBS, cloud(guided(BLOBS, cosine(), kind, 1, 3.0), cosine(), kernel))[1])
            assert mass > goal + 0.01 and (kernel is kernels.ddpm or mass > 0.985)


def test_with_the_right_push_both_samplers_meet_both_targets_with_the_usual_pushes_neither_meets_either():
    for (_, _, way, _), value in distances().items():
        assert (value < 0.012) == (way == "right"), (way, value)


def test_the_normalised_clouds_end_nearer_to_their_own_target_than_the_scaled_to_theirs_and_ddpm_nearer_than_ddim():
    found = distances()
    for gamma in (3.0, 10.0):
        for sampler in ("ddim", "ddpm"):
            assert found[gamma, "normalised", "used", sampler] < 0.8 * found[gamma, "scaled", "used", sampler]
        for kind in ("scaled", "normalised"):
            assert found[gamma, kind, "used", "ddpm"] < 0.6 * found[gamma, kind, "used", "ddim"]


def test_under_ddim_the_normalised_samples_move_on_while_their_target_stands_still():
    targets = [float(tilt_of(BLOBS, "normalised", 1, gamma).mean[0]) for gamma in (3.0, 10.0)]
    clouds = [cloud(guided(BLOBS, cosine(), "normalised", 1, gamma), cosine(), kernels.ddim) for gamma in (3.0, 10.0)]
    assert abs(targets[1] - targets[0]) < 0.005 and float(clouds[1][:, 0].mean() - clouds[0][:, 0].mean()) > 0.7


def test_strong_guidance_only_late_misses_by_little_and_only_early_by_as_much_as_throughout():
    schedule = cosine()
    for kind in ("scaled", "normalised"):
        truth = tilt_of(BLOBS, kind, 1, 10.0).sample(2000, random(24))
        scales = {"all": 10.0, "early": lambda t: 10.0 if t > 0.5 else 1.0, "late": lambda t: 1.0 if t > 0.5 else 10.0}
        clouds = {
            when: cloud(guided(BLOBS, schedule, kind, 1, scale), schedule, kernels.ddim)
            for when, scale in scales.items()
        }
        off = {when: metrics.energy_distance(points, truth) for when, points in clouds.items()}
        assert off["early"] > 0.9 * off["all"] > 10 * off["late"]


def test_gamma_one_throughout_comes_nearer_to_the_normalised_target_than_late_guidance_which_is_surer_than_it():
    """Of both classes: the control without which late guidance looks like a remedy."""
    for label in (0, 1):
        target = tilt_of(BLOBS, "normalised", label, 10.0)
        truth, goal = target.sample(2000, random(24)), float(metrics.class_mass(BLOBS, target)[label])
        for kernel in (kernels.ddim, kernels.ddpm):
            off, sure = {}, {}
            for when, scale in (("never", 1.0), ("late", lambda t: 1.0 if t > 0.5 else 10.0)):
                points = cloud(guided(BLOBS, cosine(), "normalised", label, scale), cosine(), kernel, steps=40)
                off[when] = metrics.energy_distance(points, truth)
                sure[when] = float(metrics.class_mass(BLOBS, points)[label])
            assert off["never"] < 0.004 and off["never"] + 0.002 < off["late"]
            assert sure["late"] > goal + 0.004


def test_for_class_0_the_normalised_clouds_nearly_meet_their_targets_by_ddpm_and_grow_less_sure_by_ddim():
    def used(kind: str, gamma: float, kernel) -> Tensor:
        return cloud(guided(BLOBS, cosine(), kind, 0, gamma), cosine(), kernel, steps=50)

    for gamma in (3.0, 10.0):
        truth = {kind: tilt_of(BLOBS, kind, 0, gamma).sample(2000, random(24)) for kind in ("scaled", "normalised")}
        off = {kind: metrics.energy_distance(used(kind, gamma, kernels.ddpm), truth[kind]) for kind in truth}
        assert off["normalised"] < 0.012 and off["scaled"] > 0.05
    plain, steep = (used("normalised", gamma, kernels.ddim) for gamma in (1.0, 10.0))
    goal = metrics.class_mass(BLOBS, tilt_of(BLOBS, "normalised", 0, 10.0))[0]
    assert metrics.class_mass(BLOBS, steep)[0] + 0.01 < metrics.class_mass(BLOBS, plain)[0] < goal


def test_for_classes_that_overlap_a_lot_scale_only_late_is_too_little():
    """Four wide blobs, nearly one: here gamma is right in much noise too, and throughout is nearer than late."""
    wide = GaussianMixture(BLOBS.weights.tolist(), BLOBS.means * 0.2, [[[0.9, 0.1], [0.1, 0.9]]] * 4, [0, 0, 1, 1])
    for kind in ("scaled", "normalised"):
        truth = tilt_of(wide, kind, 1, 3.0).sample(2000, random(24))
        off, sure = {}, {}
        for when, scale in (("throughout", 3.0), ("late", lambda t: 1.0 if t > 0.5 else 3.0)):
            points = cloud(guided(wide, cosine(), kind, 1, scale), cosine(), kernels.ddim, steps=50)
            off[when] = metrics.energy_distance(points, truth)
            sure[when] = float(metrics.class_mass(wide, points)[1])
        assert off["throughout"] < 0.02 < 0.03 < off["late"]
        assert sure["late"] < float(metrics.class_mass(wide, tilt_of(wide, kind, 1, 3.0))[1]) - 0.02


def test_early_pushes_give_the_small_blob_more_than_its_share_late_ones_do_not():
    schedule = cosine()
    for kind in ("scaled", "normalised"):
        wanted = metrics.mode_weights(BLOBS, tilt_of(BLOBS, kind, 1, 3.0))
        wanted = float(wanted[3] / (wanted[2] + wanted[3]))
        for scale, right in ((3.0, False), (1.0, True), (lambda t: 1.0 if t > 0.5 else 3.0, True)):
            modes = metrics.mode_weights(BLOBS, cloud(guided(BLOBS, schedule, kind, 1, scale), schedule, kernels.ddpm))
            assert (abs(float(modes[3] / (modes[2] + modes[3])) - wanted) < 0.06) == right


# ---- pitfalls


def test_a_detached_normaliser_gives_the_scaled_gradient_of_log_probabilities_and_of_other_logits_counts_the_data():
    noisy, x, gamma = at(TWO, SCHEDULE, 0.4), TWO.sample(40, random(25))[0], 3.0

    def detached(z: Tensor) -> Tensor:
        return gamma * z - (gamma * z).logsumexp(1, keepdim=True).detach()

    known = slopes(lambda x: detached(chances(noisy, x).log()), x)[:, 1]
    raw = slopes(lambda x: detached(joint(noisy, x).log()), x)[:, 1]
    assert float((known - gamma * noisy.class_gradient(x, 1)).abs().max()) < 1e-9
    assert float((raw - gamma * noisy.given(1).score(x)).abs().max()) < 1e-9  # so four times the data, with the model's


def test_detached_on_raw_logits_the_samples_shrink():
    schedule, free = cosine(), BLOBS.denoiser(cosine())
    ruined = guidance.tilt(free, lambda x, t: at(BLOBS, schedule, t).given(1).score(x), 3.0, schedule)
    spread = [float(cloud(d, schedule, kernels.ddpm).var(0).sum())
              for d in (ruined, guided(BLOBS, schedule, "scaled", 1, 3.0))]  # fmt: skip
    assert spread[0] < 0.5 * spread[1]


# ---- Deeper


def page_four() -> GaussianMixture:
    return assigned("08", "four")["four"]


def test_the_page_s_four_classes_have_six_blobs_two_classes_with_two_of_unequal_weight():
    four = page_four()
    assert four.labels == (0, 0, 1, 2, 3, 3) and len(set(four.weights.tolist())) >= 5
    assert [round(w, 2) for w in four.class_weights().tolist()] == [0.3, 0.25, 0.25, 0.2]
    assert float((four.means[0] - four.means[1]).norm()) > 3 and float((four.means[4] - four.means[5]).norm()) > 3


def test_with_more_than_two_classes_neither_bound_holds_and_the_pushes_can_point_in_nearly_opposite_directions():
    noisy = at(page_four(), cosine(), 0.7)
    x = noisy.sample(3000, random(1))[0]
    x = x[chances(noisy, x).argmax(1) != 3]  # the wrong side for class 3
    scaled = slopes(lambda x: chances(noisy, x).log(), x)[:, 3]
    normalised = slopes(lambda x: (3.0 * log_joint(noisy, x)).log_softmax(1), x)[:, 3] / 3
    ratio = scaled.norm(dim=1) / normalised.norm(dim=1)
    assert ratio.min() < 0.25 and ratio.max() > 4
    assert torch.cosine_similarity(scaled, normalised, dim=1).min() < -0.8


def test_at_a_large_scale_only_the_strongest_rival_counts():
    four = at(page_four(), cosine(), 0.7)
    x = four.sample(400, random(26))[0]
    p = chances(four, x)
    rivals = p.clone()
    rivals[:, 0] = 0
    clear = (rivals.sort(1).values[:, -1] > 1.3 * rivals.sort(1).values[:, -2]) & (p[:, 0] < rivals.max(1).values)
    x, p = x[clear], p[clear]
    strongest = rivals[clear].argmax(1)
    g = slopes(lambda x: chances(four, x).log(), x)
    gap = g[:, 0] - g[torch.arange(len(x)), strongest]
    push = slopes(lambda x: (60.0 * chances(four, x).log()).log_softmax(1), x)[:, 0] / 60
    scaled = g[:, 0]
    cosines = [torch.cosine_similarity(arrow, gap, dim=1) for arrow in (push, scaled)]
    assert float(cosines[0].min()) > 0.999 and float(cosines[1].min()) < 0.9 and len(x) > 50


@pytest.mark.equation("eq-path-residual")
@pytest.mark.parametrize("gamma", [0.5, 3.0])
def test_noise_spreads_a_function_of_the_class_probability_like_heat_but_for_its_second_derivative(gamma):
    """The page's residual against the heat equation by differences, on another mixture, for both functions."""
    residual, h, q = names_of("08", "eq-path-residual")["residual"], 1e-3, 0.6
    x = TWO.noised(1.0, q**0.5).sample(30, random(27))[0]
    for f in (lambda u: u**gamma, lambda u: u**gamma / (u**gamma + (1 - u) ** gamma)):

        def mass(x: Tensor, q: float, f=f) -> Tensor:
            parts = joint(TWO.noised(1.0, q**0.5), x)
            return parts.sum(1) * f(parts[:, 1] / parts.sum(1))

        corners = [mass(x + s * h * e, q) for e in torch.eye(2, dtype=F64) for s in (1, -1)]
        heat = (mass(x, q + h) - mass(x, q - h)) / (2 * h) - (sum(corners) - 4 * mass(x, q)) / (2 * h**2)
        ours = residual(TWO, f, 1, x, q)
        assert float((ours - heat).abs().max()) < 1e-5 < 1e-3 < float(heat.abs().max())


def test_neither_density_is_the_noised_version_of_its_clean_one():
    """The ratio of the pointwise weight to the mean weight of the clean points is no constant, at any level."""
    everything = tilt_of(TWO, "scaled", 1, 0.0)
    for t in (0.2, 0.5):
        alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
        x = at(TWO, SCHEDULE, t).sample(60, random(28))[0]
        away = torch.cdist(x, alpha * everything.points).square() / (2 * sigma**2)
        shares = (everything.weights.log() - away).softmax(1)
        for gamma, a_path in ((0.0, True), (1.0, True), (0.5, False), (3.0, False)):
            for function in (lambda mixture, x, g=gamma: chances(mixture, x)[:, 1] ** g,
                             lambda mixture, x, g=gamma: sharp(mixture, x, g)[:, 1]):  # fmt: skip
                ratio = (function(at(TWO, SCHEDULE, t), x) / (shares @ function(TWO, everything.points))).log()
                assert (float(ratio.max() - ratio.min()) < 1e-4) == a_path


def test_the_sharpened_curve_bends_nowhere_but_at_one_half_and_is_symmetric_about_it():
    """By central differences of f, away from one half and from the ends."""
    u, h = torch.linspace(0.02, 0.98, 97, dtype=F64), 1e-3
    for gamma in (0.3, 0.8, 1.5, 3.0, 8.0):

        def f(u: Tensor, gamma=gamma) -> Tensor:
            return u**gamma / (u**gamma + (1 - u) ** gamma)

        assert float((f(u) + f(1 - u) - 1).abs().max()) < 1e-12
        second = (f(u + h) - 2 * f(u) + f(u - h)) / h**2
        away = (u - 0.5).abs() > 0.005
        assert float(second[~away].abs().max()) < 1e-8
        bends = second[away] * (0.5 - u[away]) * (1 if gamma > 1 else -1)
        assert float(bends.min()) > 0


def test_for_two_gaussians_of_one_covariance_the_ratio_is_log_linear_unbounded_and_guidance_is_a_path():
    cov, shift, gamma = torch.tensor([[0.6, 0.2], [0.2, 0.4]], dtype=F64), torch.tensor([0.8, -0.5], dtype=F64), 3.0
    free, told, goal = (GaussianMixture([1.0], k * shift[None], cov[None]) for k in (0.0, 1.0, gamma))
    x = torch.randn(30, 2, generator=random(29), dtype=F64)
    for t in (0.0, 0.3, 0.8):
        uncond, cond, target = (at(mixture, SCHEDULE, t).score(x) for mixture in (free, told, goal))
        assert float((uncond + gamma * (cond - uncond) - target).abs().max()) < 1e-10
        assert float((cond - uncond).std(0).max()) < 1e-10
    far = 30 * torch.linalg.solve(cov, shift)[None]
    assert float(told.log_prob(far) - free.log_prob(far)) > 10


@pytest.mark.equation("eq-balance")
def test_under_the_scaled_target_the_mean_push_balances_the_mean_score_of_the_data():
    """The page's sums over a grid against importance sampling from the data."""
    balance = names_of("08", "eq-balance")["balance"]
    x = TWO.sample(200_000, random(30))[0]
    for gamma in (2.0, 6.0):
        pushed, pulled = balance(TWO, 1, gamma)
        weights = chances(TWO, x)[:, 1] ** gamma
        weights = weights / weights.sum()
        assert float((pushed - weights @ TWO.class_gradient(x, 1)).abs().max()) < 0.01
        assert float((pulled + weights @ TWO.score(x) / gamma).abs().max()) < 0.01
        assert float((pushed - pulled).abs().max()) < 1e-8


# ---- the exercises' checkers


def test_a_ratio_that_is_right_only_at_gamma_three_does_not_pass():
    assert exercises.verdict("8.1", lambda p, gamma: 1 - p / (1 - p) + (p / (1 - p)) ** 2).kind == "wrong"


def test_an_answer_that_takes_the_network_s_logits_for_log_probabilities_is_named():
    def answer(z, slopes, label, gamma):
        return gamma * slopes[:, label]

    assert exercises.verdict("8.2", answer).mistake == "raw logit"
