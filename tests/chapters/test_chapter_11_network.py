"""What chapter 11 says about a trained network: one of the plane, trained here with another share of hidden labels."""

import math

import pytest
import torch
from torch import Tensor

from difflesson import guidance, kernels, losses, plane
from difflesson.denoiser import Pair, network_pair
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine

F64 = torch.float64
MIXTURE = plane.four_blobs()


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=random(seed), dtype=F64)


@pytest.fixture(scope="module")
def learned() -> Pair:
    network = plane.train(MIXTURE, cosine(), label_dropout=0.3, steps=600, batch=512)
    return network_pair(network, cosine(), 1)


def test_the_network_is_right_where_the_data_are_and_wrong_far_away(learned):
    schedule, exact = cosine(), MIXTURE.pair(cosine(), 1)
    for t in (0.2, 0.5, 0.8):
        t = torch.tensor(t, dtype=F64)
        here = schedule.add_noise(MIXTURE.given(1).sample(2000, random(3))[0], normal(2000, 4), t)
        direction = normal(500, 5)
        there = 6 * direction / direction.norm(dim=1, keepdim=True)
        errors = [
            float((guidance.classifier_free(learned, 3.0)(x, t).eps - guidance.classifier_free(exact, 3.0)(x, t).eps)
                  .norm(dim=1).median())
            for x in (here, there)
        ]  # fmt: skip
        assert errors[0] < 0.35 and errors[1] > 3 * errors[0]


@pytest.mark.equation("eq-curl")
def test_the_learned_classifier_is_close_to_a_gradient_but_is_none(learned):
    """A small share of its derivatives turn; around large circles it gains log-odds from nothing."""
    schedule, t, x = cosine(), torch.tensor(0.5, dtype=F64), normal(1000, 6)
    for pair, low, high, most in ((MIXTURE.pair(schedule, 1), 0, 1e-12, 1e-10), (learned, 3e-3, 0.3, 10)):
        gradient = guidance.implicit_gradient(pair, schedule)

        def field(p, gradient=gradient):
            return gradient(p, t)

        turning = plane.curl(field, x).square().sum() / 2 / plane.jacobian(field, x).square().sum()
        assert low <= float(turning) ** 0.5 < high
        angle = 2 * math.pi * torch.arange(400, dtype=F64) / 400
        around, ahead = torch.stack([angle.cos(), angle.sin()], 1), torch.stack([-angle.sin(), angle.cos()], 1)
        gains = [float((field(r * around) * ahead).sum() * 2 * math.pi * r / 400) for r in (2, 3, 4, 5)]
        assert (max(map(abs, gains)) > 5e-2) == (low > 0) and max(map(abs, gains)) < most


def test_on_data_the_two_errors_bound_the_guided_one_and_the_class_s_share_bounds_the_unconditional(learned):
    """|gamma e_c - (gamma - 1) e_u| <= gamma |e_c| + (gamma - 1) |e_u|, in root mean square at points of class 1."""
    schedule, exact = cosine(), MIXTURE.pair(cosine(), 1)
    x0, label = MIXTURE.sample(6000, random(33))
    for t in (0.2, 0.5, 0.8):
        t = torch.tensor(t, dtype=F64)
        x = schedule.add_noise(x0, normal(6000, 34), t)

        def rms(a, b, where):
            return float((a.eps - b.eps)[where].square().sum(1).mean().sqrt())

        told, untold = learned(x, t)
        cond, uncond = exact(x, t)
        guided = [guidance.classifier_free(pair, 6.0)(x, t) for pair in (learned, exact)]
        ones, every = label == 1, label >= 0
        assert rms(*guided, ones) <= 6 * rms(told, cond, ones) + 5 * rms(untold, uncond, ones) + 1e-9
        assert rms(untold, uncond, ones) <= rms(untold, uncond, every) / math.sqrt(float(ones.double().mean())) + 1e-9


def test_nearly_all_of_the_loss_is_its_floor(learned):
    """The network's distance from the best v, told and not told, against the variance of v that nobody can avoid."""
    schedule, (x0, label), eps = cosine(), MIXTURE.sample(5000, random(42)), normal(5000, 43)
    for t in (0.2, 0.5, 0.8):
        t = torch.tensor(t, dtype=F64)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
        for mine, best in zip(learned(x, t), MIXTURE.pair(schedule, 1)(x, t), strict=True):
            ones = label == 1
            distance = ((mine.eps - best.eps) / alpha)[ones].square().mean()
            floor = (alpha * best.eps - sigma * best.x0 - v)[ones].square().mean()
            assert float(distance) < 0.05 * float(floor)


def test_told_class_one_the_network_is_several_times_worse_where_class_one_has_no_data(learned):
    schedule, exact, t = cosine(), MIXTURE.pair(cosine(), 1), torch.tensor(0.2, dtype=F64)
    errors = []
    for label in (1, 0):
        x = schedule.add_noise(MIXTURE.given(label).sample(4000, random(35))[0], normal(4000, 36), t)
        errors.append(float((learned.cond(x, t).eps - exact.cond(x, t).eps).square().sum(1).mean()))
    assert errors[1] > 2 * errors[0]


def test_guided_samples_of_network_and_exact_fields_agree_better_at_one_than_at_six(learned):
    schedule, start = cosine(), normal(500, 7)
    apart = []
    for gamma in (1.0, 6.0):
        ends = [
            draw(kernels.ddim(guidance.classifier_free(pair, gamma), schedule), start, time_grid(40))
            for pair in (learned, MIXTURE.pair(schedule, 1))
        ]
        apart.append(float((ends[0] - ends[1]).norm(dim=1).median()))
    assert apart[0] < 0.08 and apart[1] > 3 * apart[0]


@pytest.fixture(scope="module")
def others() -> dict[float, list[Pair]]:
    """Small networks like those of the page's sweep, of eight seeds that it does not use."""
    return {
        p: [network_pair(plane.train(MIXTURE, cosine(), p, steps=200, batch=128, seed=seed), cosine(), 1)
            for seed in range(3, 11)]
        for p in (0.5, 0.9)
    }  # fmt: skip


@pytest.mark.nightly
def test_with_other_seeds_samples_at_p_0_9_are_farther_off_in_the_mean_and_the_ranges_overlap(others):
    start = normal(300, 73)

    def ends(pair):
        return draw(kernels.ddim(guidance.classifier_free(pair, 3.0), cosine()), start, time_grid(30))

    goal = ends(MIXTURE.pair(cosine(), 1))
    half, most = (torch.tensor([(ends(pair) - goal).norm(dim=1).median() for pair in others[p]]) for p in (0.5, 0.9))
    assert most.mean() > 1.1 * half.mean() and most.min() < half.max()


@pytest.mark.nightly
def test_with_other_seeds_the_relative_error_outside_is_larger_in_some_networks_and_smaller_in_others(others):
    """At gamma = 6 and t = 0.5, outside of the region of 99 % of class 1's noisy data over inside."""
    schedule, exact, times = cosine(), MIXTURE.pair(cosine(), 1), time_grid(50)
    t, found = times[25], []
    noisy = MIXTURE.given(1).noised(schedule.alpha(t), schedule.sigma(t))
    edge = noisy.log_prob(noisy.sample(20_000, random(74))[0]).quantile(0.01)
    for pair in others[0.5]:
        x = draw(kernels.ddim(guidance.classifier_free(pair, 6.0), schedule), normal(500, 75), times[:26])
        mine, true = (guidance.classifier_free(guide, 6.0)(x, t).eps for guide in (pair, exact))
        outside = noisy.log_prob(x) < edge
        off, size = (mine - true).square().sum(1), true.square().sum(1)
        shares = [float((off[where].sum() / size[where].sum()).sqrt()) for where in (outside, ~outside)]
        found.append(shares[0] / shares[1])
    assert max(found) > 1.1 and min(found) < 0.7


# ---- the first picture


def grid_of_the_picture() -> Tensor:
    ticks = torch.linspace(-3, 3, 11, dtype=F64)
    return torch.cartesian_prod(ticks, ticks)


def test_without_a_label_the_arrows_lead_to_the_data_with_it_to_the_data_of_class_1(learned):
    """Uphill in that density, to a clean point inside that region; without the label often to one of class 0."""
    schedule, x, t = cosine(), grid_of_the_picture(), torch.tensor(0.5, dtype=F64)
    noisy = MIXTURE.noised(schedule.alpha(t), schedule.sigma(t))
    told, untold = learned(x, t)
    for answer, density, clean in ((untold, noisy, MIXTURE), (told, noisy.given(1), MIXTURE.given(1))):
        uphill = torch.cosine_similarity(-answer.eps, density.score(x))
        assert float(uphill.median()) > 0.98 and float(uphill.quantile(0.05)) > 0.5
        edge = clean.log_prob(clean.sample(20_000, random(40))[0]).quantile(0.01)
        assert float((clean.log_prob(answer.x0) > edge).double().mean()) > 0.9
    sure = [float((MIXTURE.class_log_prob(answer.x0, 1).exp() > 0.5).double().mean()) for answer in (told, untold)]
    assert sure[0] > 0.7 > 0.6 > sure[1]


def test_the_difference_points_away_from_class_0_and_is_almost_nothing_in_class_1(learned):
    schedule, x, t = cosine(), grid_of_the_picture(), torch.tensor(0.5, dtype=F64)
    noisy = MIXTURE.noised(schedule.alpha(t), schedule.sigma(t))
    told, untold = learned(x, t)
    difference = untold.eps - told.eps
    away = -noisy.class_gradient(x, 0)  # the other class becomes less probable
    assert float(torch.cosine_similarity(difference, away).median()) > 0.95
    plainly, foreign = (noisy.class_log_prob(x, y) > math.log(0.99) for y in (1, 0))
    sizes = difference.norm(dim=1)
    assert plainly.sum() > 10 and float(sizes[plainly].median()) < 0.1 * float(sizes[foreign].median())


def test_with_the_label_it_is_nearly_right_on_its_class_by_a_percent_of_what_the_label_changes(learned):
    """The cosine to the classifier's gradient at noisy points of class 1, and the error; one network for both."""
    schedule, exact, t = cosine(), MIXTURE.pair(cosine(), 1), torch.tensor(0.5, dtype=F64)
    x = schedule.add_noise(MIXTURE.given(1).sample(3000, random(50))[0], normal(3000, 51), t)
    ours, theirs = (guidance.implicit_gradient(pair, schedule)(x, t) for pair in (learned, exact))
    assert float(torch.cosine_similarity(ours, theirs).median()) > 0.98
    assert float((ours - theirs).square().sum() / theirs.square().sum()) < 0.05


def test_with_little_noise_the_learned_gradient_is_much_worse_than_at_middle_noise(learned):
    """The squared error over the square, at noisy points of class 1."""
    schedule, exact, errors = cosine(), MIXTURE.pair(cosine(), 1), {}
    for t in (0.1, 0.5):
        time = torch.tensor(t, dtype=F64)
        x = schedule.add_noise(MIXTURE.given(1).sample(3000, random(71))[0], normal(3000, 72), time)
        ours, theirs = (guidance.implicit_gradient(pair, schedule)(x, time) for pair in (learned, exact))
        errors[t] = float((ours - theirs).square().sum() / theirs.square().sum())
    assert errors[0.1] > 0.15 and errors[0.1] > 8 * errors[0.5]


# ---- the loss


def test_points_under_the_null_label_are_distributed_like_all_data_and_those_under_a_label_like_its_class():
    """40,000 points: mean and mean square, of each coordinate, within 4 standard errors."""
    x, label = MIXTURE.sample(40_000, random(52))
    seen = losses.drop_labels(label, 0.3, 2, random(53))
    for shown, law in ((2, MIXTURE), (0, MIXTURE.given(0)), (1, MIXTURE.given(1))):
        chosen, fresh = x[seen == shown], law.sample(40_000, random(54 + shown))[0]
        for power in (1, 2):
            off = (chosen**power).mean(0) - (fresh**power).mean(0)
            error = ((chosen**power).var(0) / len(chosen) + (fresh**power).var(0) / len(fresh)).sqrt()
            assert bool((off.abs() < 4 * error).all())
    assert abs(float((seen == 2).double().mean()) - 0.3) < 0.01


def test_at_p_0_the_null_label_keeps_the_random_numbers_it_began_with_and_at_0_2_it_does_not():
    """And the network answers to them, with numbers like any other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        began = plane.PlaneNetwork(2).label.weight[2].detach().double()
    for p, kept in ((0.0, True), (0.2, False)):
        network = plane.train(MIXTURE, cosine(), label_dropout=p, steps=20, batch=64, seed=3)
        assert torch.equal(network.label.weight[2], began) == kept
        answer = network_pair(network, cosine(), 1).uncond(normal(9, 59), torch.tensor(0.5)).eps
        assert bool(answer.isfinite().all()) and float(answer.norm(dim=1).min()) > 0


def wrong_by(added):
    """The best v at one noise level with an error field added, called like a network."""
    schedule = cosine(1e-6, -1e-6)

    def answer(x, log_snr, seen):
        guesses = [MIXTURE.denoiser(schedule, y)(x, 0.5) for y in (0, 1, None)]
        v = torch.stack([(guess.eps - guess.x0) / math.sqrt(2) for guess in guesses])[seen, torch.arange(len(x))]
        return v + added(x)

    return schedule, answer


def test_for_the_loss_an_error_that_turns_counts_as_much_as_one_of_its_size_that_does_not():
    """A gradient and the same turned by a right angle; 20,000 points, so the cross terms are below 0.01."""
    x0, label = MIXTURE.sample(20_000, random(55))
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    fields = lambda x: 0 * x, lambda x: 0.4 * x, lambda x: 0.4 * x @ turn  # noqa: E731
    found = []
    for field in fields:
        schedule, answer = wrong_by(field)
        found.append(float(losses.v_loss(answer, schedule, x0, label, 0.2, random(56), 2)))
    assert abs(found[1] - found[2]) < 0.02 and found[1] - found[0] > 0.2
    assert float(plane.curl(fields[1], x0[:9]).abs().max()) == 0
    assert float(plane.curl(fields[2], x0[:9]).abs().min()) > 0.5


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_at_each_noise_level_alone_the_best_function_is_the_same_so_weights_of_levels_do_not_matter(t):
    """Steps to either side of the exact answers, told and not told, cost at every level."""
    schedule, t = cosine(), torch.tensor(t, dtype=F64)
    x0, label = MIXTURE.sample(20_000, random(57))
    alpha, sigma, eps = schedule.alpha(t), schedule.sigma(t), normal(20_000, 58)
    x, v, ones = alpha * x0 + sigma * eps, alpha * eps - sigma * x0, label == 1
    for best, where in ((MIXTURE.denoiser(schedule), label >= 0), (MIXTURE.denoiser(schedule, 1), ones)):
        guess = best(x, t)
        answer = (alpha * guess.eps - sigma * guess.x0)[where]
        costs = [
            float((answer + step - v[where]).square().mean())
            for step in (torch.zeros(2, dtype=F64), *0.1 * torch.eye(2, dtype=F64), *-0.1 * torch.eye(2, dtype=F64))
        ]
        assert min(costs) == costs[0]
