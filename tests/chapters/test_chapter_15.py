"""The claims of chapter 15, each compared with an independent computation."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.special import rel_entr
from torch import Tensor

from difflesson import guidance, kernels, path, practice, samplers
from difflesson.denoiser import Pair
from difflesson.digits import checkpoints, diversity, metrics, runs, sampling
from difflesson.digits.metrics import Statistics
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine
from tests.oracles.chapter_cells import names_of
from tests.oracles.mixtures import FOUR

F64 = torch.float64
MIXTURE = FOUR.mixture()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def of_cell(label: str) -> dict:
    return names_of("15", label)


# ---- precision and recall


@pytest.mark.equation("eq-precision-recall")
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_counted_ball_by_ball(k):
    samples, real = normal(40, 3, seed=1).numpy(), normal(30, 3, seed=2).numpy() * 1.5

    def share(points, centres):
        radii = [sorted(np.linalg.norm(c - centres, axis=1))[k] for c in centres]
        return np.mean([any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points])

    covered = of_cell("eq-precision-recall")["covered"]
    found = [float(covered(torch.tensor(a), torch.tensor(b), k).double().mean())
             for a, b in ((samples, real), (real, samples))]  # fmt: skip
    assert found == pytest.approx([share(samples, real), share(real, samples)], abs=1e-12)
    assert 0 < min(found) < max(found) < 1 and found[0] != found[1]
    if k == 3:
        told = of_cell("eq-precision-recall")["precision_recall"](torch.tensor(samples), torch.tensor(real))
        assert [float(value) for value in told] == pytest.approx(found)


def test_precision_does_not_depend_on_how_many_samples_there_are():
    """The balls are the real points': each sample lies in one with the same chance."""
    real = normal(500, 4, seed=3)
    few, many = (diversity.precision_recall(1.2 * normal(count, 4, seed=4), real)[0] for count in (200, 2000))
    assert abs(few - many) < 3 * (few * (1 - few) / 200) ** 0.5


def test_a_thousand_real_points_do_not_cover_a_thousand_others():
    precision, recall = diversity.precision_recall(normal(1000, 6, seed=5), normal(1000, 6, seed=6))
    assert 0.5 < precision < 0.99 and 0.5 < recall < 0.99
    inside = diversity.within(normal(1000, 6, seed=5), normal(1000, 6, seed=6), 3)
    far = normal(1000, 6, seed=5).square().sum(1)  # those outside are the rare ones: the density is low there
    assert float(far[~inside].mean()) > 1.5 * float(far[inside].mean())


# ---- the best scale


@pytest.mark.equation("eq-best-scale")
@pytest.mark.parametrize("true, believed, everything", [(0.5, 0.6, 3.0), (0.2, 0.5, 1.4), (0.5, 0.4, 2.0)])
def test_the_best_scale_gives_noiseless_guidance_the_true_variance(true, believed, everything):
    best = float(of_cell("eq-best-scale")["best_scale"](true, believed, everything))
    assert (best > 1) == (believed > true)
    assert path.guided_variance(believed, everything, best, 0.0) == pytest.approx(true, rel=1e-9)
    for other in (best - 0.2, best + 0.2):  # the distance on the line, a difference of deviations squared
        assert abs(path.guided_variance(believed, everything, other, 0.0) ** 0.5 - true**0.5) > 0.005


def test_an_exact_classifier_on_top_of_the_label_is_the_dial_one_further(s=0.7):
    schedule, pair = cosine(), MIXTURE.pair(cosine(), 1)
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        points = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(MIXTURE.noised(alpha, sigma).class_log_prob(points, 1).sum(), points)
        on_top = pair.cond(x, t).eps - s * sigma * slope
        torch.testing.assert_close(on_top, guidance.classifier_free(pair, 1 + s)(x, t).eps)


def test_with_exact_guesses_gamma_1_samples_the_data_and_a_larger_scale_lies_farther_from_them():
    schedule, starts = cosine(), normal(600, 2, seed=7)
    real = MIXTURE.given(1).sample(600, torch.Generator().manual_seed(8))[0]
    truth = metrics.statistics(MIXTURE.given(1).sample(200_000, torch.Generator().manual_seed(9))[0])
    told = {}
    for gamma in (1.0, 2.0, 4.0):
        kernel = kernels.heun(guidance.classifier_free(MIXTURE.pair(schedule, 1), gamma), schedule)
        cloud = draw(kernel, starts, time_grid(40, start=0.99))
        told[gamma] = (
            metrics.frechet_distance(metrics.statistics(cloud), truth),
            *diversity.precision_recall(cloud, real),
        )
    assert told[1.0][0] < 0.03 < told[2.0][0] < told[4.0][0]
    assert told[4.0][1] < told[1.0][1] + 0.02 and told[4.0][2] < 0.8 * told[1.0][2]


# ---- the Inception Score


@pytest.mark.equation("eq-inception-score")
def test_the_score_is_the_mean_relative_entropy_of_scipy_and_a_difference_of_entropies():
    answers = (2 * normal(50, 4, seed=10)).log_softmax(1)
    p = answers.exp().numpy()
    expected = rel_entr(p, p.mean(axis=0)).sum(axis=1).mean()
    cell = of_cell("eq-inception-score")
    assert float(cell["log_inception_score"](answers)) == pytest.approx(expected, abs=1e-12)
    assert float(cell["by_entropies"](answers)) == pytest.approx(expected, abs=1e-12)
    assert diversity.inception_score(answers) == pytest.approx(math.exp(expected), abs=1e-9)


@pytest.mark.parametrize("classes", [2, 10])
def test_the_score_is_at_most_the_number_of_classes_with_equality_for_certain_answers_equally_often(classes):
    certain = torch.eye(classes, dtype=F64).repeat(5, 1).log().clamp_min(-60)
    assert diversity.inception_score(certain) == pytest.approx(classes)
    for seed in range(5):
        assert diversity.inception_score((9 * normal(40, classes, seed=seed)).log_softmax(1)) < classes
    assert diversity.inception_score(certain[: 3 * classes // 2]) < classes - 0.01  # not equally often


def test_the_score_does_not_see_what_happens_within_a_class():
    answers = (5 * normal(60, 3, seed=11)).log_softmax(1)
    assert diversity.inception_score(answers.repeat(100, 1)) == pytest.approx(diversity.inception_score(answers))


# ---- the Fréchet distance


@pytest.mark.equation("eq-frechet")
def test_the_two_terms_of_the_distance_are_those_of_scipys_matrix_root():
    a, b = (metrics.statistics(normal(50, 5, seed=seed) @ normal(5, 5, seed=seed + 10) + seed) for seed in (1, 2))
    root = scipy.linalg.sqrtm(a.cov.numpy() @ b.cov.numpy()).real
    shape = np.trace(a.cov.numpy() + b.cov.numpy() - 2 * root)
    moved = float((a.mean - b.mean).square().sum())
    assert metrics.frechet_distance(a, b) == pytest.approx(moved + shape, rel=1e-8)


@pytest.mark.equation("eq-spread-split")
def test_the_spread_of_a_mixture_is_that_within_its_classes_and_that_of_their_means():
    """Exact moments of the mixture against a large sample split by the cell, and the cell's sum to rounding."""
    x, labels = MIXTURE.sample(20_000, torch.Generator().manual_seed(12))
    within, between = of_cell("eq-spread-split")["spread_parts"](x, labels)
    assert float(within + between) == pytest.approx(float(np.cov(x.numpy().T, bias=True).trace()), rel=1e-10)
    parts = [x[labels == y] for y in (0, 1)]
    shares = np.array([len(part) for part in parts]) / len(x)
    each = np.array([part.var(0, correction=0).sum() for part in parts])
    means = np.stack([part.mean(0).numpy() for part in parts])
    apart = ((means - shares @ means) ** 2).sum(axis=1)
    assert [float(within), float(between)] == pytest.approx([shares @ each, shares @ apart], rel=1e-10)


@pytest.mark.equation("eq-shrink")
@pytest.mark.parametrize("s", [0.0, 0.6, 0.95, 1.3])
def test_a_set_that_shrinks_costs_the_square_of_what_its_deviations_lose(s):
    cov = normal(4, 7, seed=13) @ normal(4, 7, seed=13).T
    here, there = (Statistics(torch.ones(4, dtype=F64), factor**2 * cov, 10) for factor in (s, 1.0))
    cost = float(of_cell("eq-shrink")["cost_of_shrinking"](s, cov))
    assert metrics.frechet_distance(here, there) == pytest.approx(cost, rel=1e-6, abs=1e-6)


@pytest.mark.equation("eq-count-bias")
def test_the_mean_of_few_samples_lies_too_far_away_by_the_spread_over_their_number():
    mean, shift = torch.tensor([0.3, -0.2, 0.5], dtype=F64), torch.tensor([0.1, 0.4, 0.0], dtype=F64)
    root, count = normal(3, 3, seed=14), 20
    found = (mean + normal(20_000, count, 3, seed=15) @ root.T).mean(1)
    squares = (found - shift).square().sum(1)
    expected = of_cell("eq-count-bias")["expected_mean_part"](mean, root @ root.T, shift, count)
    assert abs(float(squares.mean() - expected)) < 4 * float(squares.std()) / 20_000**0.5


# ---- part of the way, and the bill


@pytest.mark.equation("eq-interval-guidance")
def test_the_scale_is_gamma_from_low_to_high_and_1_elsewhere():
    schedule = cosine()
    scale = practice.interval(3.0, schedule, low=-2.0, high=1.0)
    for log_snr, wanted in ((-9.0, 1.0), (-2.01, 1.0), (-1.99, 3.0), (0.0, 3.0), (0.99, 3.0), (1.01, 1.0), (8.0, 1.0)):
        assert scale(schedule.time(torch.tensor(log_snr, dtype=F64))) == wanted


def test_guiding_from_end_to_end_is_guiding_always_and_in_an_empty_window_never():
    schedule, x, t = cosine(), normal(30, 2, seed=16), torch.tensor(0.4, dtype=F64)
    pair = MIXTURE.pair(schedule, 1)
    for window, gamma in (((-50.0, 50.0), 3.0), ((30.0, 50.0), 1.0)):
        scale = practice.interval(3.0, schedule, *window)
        told, wanted = (guidance.classifier_free(pair, g)(x, t).eps for g in (scale, gamma))
        assert float((told - wanted).abs().max()) == 0


class Counting:
    """A denoiser that counts how often it is asked."""

    def __init__(self, denoiser):
        self.denoiser, self.count = denoiser, 0

    def __call__(self, x, t):
        self.count += 1
        return self.denoiser(x, t)


@pytest.mark.equation("eq-evaluations")
@pytest.mark.parametrize("name, times_a_step", [("ddpm", 1), ("ddim", 1), ("dpmpp_2m", 1), ("heun", 2)])
@pytest.mark.parametrize("gamma, heard", [(0.0, 0), (1.0, 0), (2.5, 1), (-1.0, 1)])
def test_the_bill_is_what_a_counting_denoiser_was_asked(name, times_a_step, gamma, heard):
    schedule, steps = cosine(), 6
    pair = Pair(*(Counting(half) for half in (MIXTURE.denoiser(schedule, 1), MIXTURE.denoiser(schedule))))
    kernel = getattr(kernels, name)(guidance.classifier_free(pair, gamma), schedule)
    draw(kernel, normal(3, 2, seed=17), time_grid(steps, start=0.99), torch.Generator().manual_seed(0))
    asked = times_a_step * steps - (times_a_step - 1)
    bill = of_cell("eq-evaluations")["evaluations"](steps, times_a_step, heard * asked)
    assert pair.cond.count + pair.uncond.count == bill


@pytest.mark.equation("eq-evaluations")
def test_the_bill_of_a_window_counts_the_times_inside_it():
    schedule, times = cosine(), time_grid(12, cosine(), start=0.99, end=0.01)
    pair = Pair(*(Counting(half) for half in (MIXTURE.denoiser(schedule, 1), MIXTURE.denoiser(schedule))))
    scale = practice.interval(4.0, schedule, low=-3.0, high=2.0)
    draw(kernels.ddim(guidance.classifier_free(pair, scale), schedule), normal(3, 2, seed=18), times)
    inside = sum(-3 <= float(schedule.log_snr(t)) <= 2 for t in times[:-1])
    assert 2 < inside < 10
    assert pair.cond.count + pair.uncond.count == of_cell("eq-evaluations")["evaluations"](12, 1, inside)


def test_so_many_of_the_steps_lie_before_log_snr_1_where_the_digit_is_decided():
    for steps, early in ((50, 29), (16, 9)):
        times = sampling.digit_times(steps, cosine())[:-1]
        assert int((cosine().log_snr(times) < 1).sum()) == early
    network, judge = checkpoints.load("pocket").network, checkpoints.load("judge").network
    labels, times = torch.arange(10).repeat(5), sampling.digit_times(16, network.schedule)
    start = torch.randn(50, 1, 28, 28, generator=torch.Generator().manual_seed(4))
    seen = []
    with torch.no_grad():
        denoiser = sampling.guided_denoiser(network, labels, 1.0)
        kernel = kernels.ddpm(denoiser, network.schedule)
        generator = torch.Generator().manual_seed(5)
        for t, x in zip(times, samplers.sample(kernel, start, times, generator), strict=True):
            if abs(float(network.schedule.log_snr(t)) - 1) < 0.6 or t == 0:
                guess = denoiser(x, t.float()).x0 if t > 0 else x
                seen.append(metrics.judged(judge, guess)[1].argmax(1))
    assert len(seen) > 1 and float((seen[0] == seen[-1]).double().mean()) > 0.9  # what the guess shows there, stays


def test_a_class_believed_too_wide_is_mended_by_guidance_and_a_narrow_one_by_less_than_the_label():
    """Drawn: the deviation of noiseless samples at the best scale is the true one."""
    schedule, ends = cosine(), torch.tensor([[-1.0], [2.0]], dtype=F64)
    for believed in (0.7, 0.4):

        def one(variance):
            return GaussianMixture([1.0], torch.zeros(1, 1).double(), [[[variance]]]).denoiser(schedule)

        best = float(of_cell("eq-best-scale")["best_scale"](0.5, believed, 3.0))
        kernel = kernels.heun(guidance.classifier_free(Pair(one(believed), one(3.0)), best), schedule)
        ratios = draw(kernel, ends, time_grid(200)) / ends
        assert float((ratios.square() - 0.5).abs().max()) < 0.01 and (best > 1) == (believed > 0.5)


# ---- the sentences, on other data than the page's


@pytest.fixture(scope="module")
def others():
    """Of the pocket, at gamma 0 and 1: the judge's features and log-probabilities of 300 digits from another seed."""
    network, judge = (checkpoints.load(name).network for name in ("pocket", "judge"))
    labels = torch.arange(10).repeat(30)
    drawn = {gamma: metrics.judged(judge, sampling.generate(network, labels, gamma, seed=11)) for gamma in (0.0, 1.0)}
    return labels, diversity.load_features()[0], drawn


def test_wrong_digits_make_most_of_the_spread_above_that_of_real_digits(others):
    labels, real, drawn = others
    features, log_probs = drawn[1.0]
    right = log_probs.argmax(1) == labels
    everything, correct, of_real = (
        diversity.class_spread(*part)
        for part in ((features, labels), (features[right], labels[right]), (real.features, real.labels))
    )
    assert 0.5 < right.double().mean() < 1 and everything > of_real + 0.5
    assert correct - of_real < 0.5 * (everything - of_real)


def test_recall_does_not_see_junk_and_the_balls_of_unguided_digits_are_wide(others):
    """Left out, the digits of which the judge is unsure take next to nothing from recall: it is not they that cover."""
    _, real, drawn = others
    balls = {g: torch.cdist(f, f).kthvalue(4, dim=1).values for g, (f, _) in drawn.items()}
    inside = torch.cdist(real.features, drawn[0.0][0]) <= balls[0.0]
    junk = drawn[0.0][1].exp().amax(1) < 0.95
    assert junk.double().mean() > 0.2 and balls[0.0].median() > 1.5 * balls[1.0].median()
    recall, without = (float(part.any(dim=1).double().mean()) for part in (inside, inside[:, ~junk]))
    assert recall > 0.9 and without > recall - 0.03


@pytest.mark.parametrize("seed", [0, 2])
def test_accuracy_and_score_rise_beyond_gamma_1_with_exact_guesses_of_other_mixtures(seed):
    generator, schedule = torch.Generator().manual_seed(seed), cosine()
    means, roots = (torch.randn(6, *shape, generator=generator, dtype=F64) for shape in ((2,), (2, 2)))
    covs = 0.25 * roots @ roots.mT + 0.2 * torch.eye(2, dtype=F64)
    blobs = GaussianMixture([1 / 6] * 6, 2 * means, covs, labels=[0, 0, 1, 1, 2, 2])
    asked, starts, told = torch.arange(3).repeat(130), normal(390, 2, seed=20), {}
    for gamma in (1.0, 1.5, 3.0):
        cloud = torch.empty_like(starts)
        for y in range(3):
            kernel = kernels.heun(guidance.classifier_free(blobs.pair(schedule, y), gamma), schedule)
            cloud[asked == y] = draw(kernel, starts[asked == y], time_grid(30, start=0.99))
        answers = torch.stack([blobs.class_log_prob(cloud, y) for y in range(3)], 1)
        told[gamma] = float((answers.argmax(1) == asked).double().mean()), diversity.inception_score(answers)
    assert all(told[1.0][n] < told[1.5][n] < told[3.0][n] for n in (0, 1))
    assert told[1.0][0] < 0.98 and told[3.0][1] < 3


@pytest.mark.parametrize("reference", [0.4, 0.7])
def test_a_reference_of_other_data_moves_the_scale_of_least_distance_with_exact_guesses(reference):
    """Nothing is wrong with the guesses of the class; the distance is taken to a set that is not the class."""
    schedule, ends = cosine(), torch.tensor([[-1.0], [2.0]], dtype=F64)
    halves = Pair(*(GaussianMixture([1.0], torch.zeros(1, 1).double(), [[[v]]]).denoiser(schedule) for v in (0.5, 3.0)))
    best, distance = float(of_cell("eq-best-scale")["best_scale"](reference, 0.5, 3.0)), {}
    for gamma in (best, 1.0):
        kernel = kernels.heun(guidance.classifier_free(halves, gamma), schedule)
        distance[gamma] = float(((draw(kernel, ends, time_grid(100)) / ends).abs().mean() - reference**0.5) ** 2)
    assert abs(best - 1) > 0.1 and (best > 1) == (reference < 0.5)
    assert distance[best] < 1e-5 and distance[1.0] > 0.003


def test_at_a_finite_count_the_least_distance_is_that_of_a_slightly_narrower_set():
    root = normal(3, 3, seed=21)
    truth, told = Statistics(torch.zeros(3, dtype=F64), root @ root.T, 10**9), {0.5: [], 0.9: [], 1.0: []}
    for seed in range(200):
        points = normal(10, 3, seed=1000 + seed) @ root.T
        for width, row in told.items():
            row.append(metrics.frechet_distance(metrics.statistics(width * points), truth))
    told = {width: torch.tensor(row) for width, row in told.items()}
    for other in (0.5, 1.0):  # the same draws, so the difference has a small error
        difference = told[other] - told[0.9]
        assert float(difference.mean()) > 3 * float(difference.std()) / 200**0.5


def test_every_window_tried_lies_on_the_curve_of_the_dial_up_to_two_errors():
    rows = runs.rows("guidance")
    dial = sorted((r for r in runs.pick(rows, part="scale") if r["gamma"] >= 1), key=lambda r: r["recall"])
    x, y, y_error = (np.array([r[name] for r in dial]) for name in ("recall", "precision", "precision_error"))
    windows = runs.pick(rows, part="when")
    assert len(windows) >= 8
    for row in windows:
        right = int(np.clip(np.searchsorted(x, row["recall"]), 1, len(x) - 1))
        slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
        error = np.sqrt(row["precision_error"] ** 2 + (slope * row["recall_error"]) ** 2 + y_error[right] ** 2)
        assert abs(row["precision"] - np.interp(row["recall"], x, y)) < 2 * error
