"""What chapter 09 says of trained encoders, with encoders of another make and seed than the page's.

The clean one is quick to train and serves many tests; those that learn noise are trained in the nightly run.
"""

import math
from functools import cache

import pytest
import torch
from torch import nn

from difflesson import guidance, kernels, metrics, similarity
from difflesson.grid import GridDensity
from difflesson.samplers import draw, time_grid
from difflesson.schedule import vp_linear
from tests.chapters.test_chapter_09 import normal, page_mixture, random

F64, MIXTURE, SCHEDULE = torch.float64, page_mixture(), vp_linear()
TEMPERATURE = 0.25


def network(inputs: int, outputs: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, 40), nn.Tanh(), nn.Linear(40, 40), nn.SiLU(), nn.Linear(40, outputs)
        ).double()  # fmt: skip


def fit(loss_of, parameters, steps: int, seed: int) -> None:
    optimizer, generator = torch.optim.Adam(parameters, lr=0.01), random(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        optimizer.zero_grad()
        loss_of(generator).backward()
        optimizer.step()


@cache
def clean_encoder() -> tuple[nn.Module, torch.Tensor]:
    """An encoder of points and one of the three words, (3, 4), trained contrastively."""
    points, words = network(2, 4, 11), torch.randn(3, 4, generator=random(12), dtype=F64).requires_grad_()

    def loss(generator):
        x, y = MIXTURE.sample(200, generator)
        return nn.functional.cross_entropy(similarity.cosine(points(x)[:, None], words) / TEMPERATURE, y)

    fit(loss, [*points.parameters(), words], 250, 13)
    return points.requires_grad_(False), words.detach()


def sim(x):
    points, words = clean_encoder()
    return similarity.cosine(points(x), words[2])


clean = guidance.gradient(lambda x, t: sim(x))


def ends(grad, gamma=1.0, count=1500, steps=50):
    guided = guidance.tilt(MIXTURE.denoiser(SCHEDULE), grad, gamma, SCHEDULE)
    return draw(kernels.ddpm(guided, SCHEDULE, "large"), normal(count, 21), time_grid(steps), random(22))


@cache
def target(gamma: float) -> GridDensity:
    return GridDensity(lambda x: MIXTURE.log_prob(x) + gamma * sim(x), -7, 7)


def noisy(t: float, count: int = 200) -> torch.Tensor:
    return SCHEDULE.add_noise(MIXTURE.sample(count, random(23))[0], normal(count, 24), torch.tensor(t, dtype=F64))


def exact(gamma: float, order: int = 6):
    return similarity.noisy_gradient(MIXTURE, SCHEDULE, lambda x: gamma * sim(x), order)


def test_the_similarity_to_below_is_high_in_its_class_and_low_in_the_others():
    left, right, below = (float(sim(MIXTURE.given(y).sample(500, random(y))[0]).mean()) for y in (0, 1, 2))
    assert below > 0.5 and max(left, right) < -0.2


def test_the_gradient_at_the_noisy_point_does_too_much_at_1_and_falls_short_at_10():
    got = {gamma: float(sim(ends(clean, gamma)).mean()) for gamma in (1.0, 4.0, 10.0)}  # errors below 0.02
    wanted = {gamma: float(target(gamma).expectation(sim)) for gamma in got}
    assert got[1.0] > wanted[1.0] + 0.15 and got[10.0] < wanted[10.0] - 0.05
    assert got[10.0] > got[4.0]  # with this encoder the knob does not turn back


def test_early_the_worth_is_flat_and_the_right_pull_is_almost_nothing_and_the_clean_one_is_not():
    late, early = (torch.tensor(t, dtype=F64) for t in (0.2, 0.9))
    x = noisy(0.9)
    small, large = exact(4.0)(x, early).norm(dim=1).mean(), exact(4.0)(noisy(0.2), late).norm(dim=1).mean()
    pushed = [float((4 * clean(*at)).norm(dim=1).mean()) for at in ((x, early), (noisy(0.2), late))]
    assert small < 0.1 * large and pushed[0] > 20 * small and pushed[0] > 0.8 * pushed[1]


def test_one_in_ten_is_most_of_the_worth_at_gamma_4_and_moves_the_mean_by_little():
    """At pure noise the crowd is the data."""
    fits = MIXTURE.given(2).sample(20_000, random(25))[0]
    others = MIXTURE.sample(100_000, random(26))
    others = others[0][others[1] != 2]
    parts = [0.1 * float((4 * sim(fits)).exp().mean()), 0.9 * float((4 * sim(others)).exp().mean())]
    assert parts[0] > 2 * parts[1]
    means = [0.1 * float(sim(fits).mean()), 0.9 * float(sim(others).mean())]
    assert sum(means) < -0.1 and abs(means[0]) < 0.5 * abs(means[1])


def test_the_clean_gradient_is_right_near_the_data_and_turned_and_too_long_in_much_noise():
    for time, good in ((0.02, True), (0.4, False), (0.7, False)):
        t, x = torch.tensor(time, dtype=F64), noisy(time)
        ours, true = 4 * clean(x, t), exact(4.0)(x, t)
        angle = torch.cosine_similarity(ours, true).clamp(-1, 1).acos().rad2deg().median()
        ratio = ours.norm() / true.norm()
        assert (angle < 5 and abs(ratio - 1) < 0.1) if good else (angle > 35 and ratio > 1.5)
    assert ratio > 6


def test_starting_late_nearly_cures_gamma_1_and_makes_gamma_4_worse():
    gaps = {}
    for gamma in (1.0, 4.0):
        goal = target(gamma).sample(500, random(27))
        for level in (1.0, 0.5):
            x = ends(clean, lambda t, gamma=gamma, level=level: gamma if t <= level else 0.0, count=500)
            gaps[gamma, level] = metrics.wasserstein(x, goal)
    assert gaps[1.0, 0.5] < 0.6 * gaps[1.0, 1.0] and gaps[4.0, 0.5] > gaps[4.0, 1.0] + 0.2


def test_at_1_what_a_late_start_leaves_out_makes_up_for_what_the_clean_gradient_does_too_much():
    """Both from half time: the exact gradient ends below what was asked for, the clean one well above the exact."""

    def from_half_time(grad):
        return lambda x, t: grad(x, t) if float(t) <= 0.5 else torch.zeros_like(x)

    wanted = float(target(1.0).expectation(sim))
    right, wrong = (sim(ends(from_half_time(grad), count=2000, steps=40)) for grad in (exact(1.0, 4), clean))
    error = float(right.std()) / math.sqrt(2000)
    assert float(right.mean()) < wanted - 2.5 * error and float(wrong.mean()) > float(right.mean()) + 2.5 * error


def test_at_4_half_time_is_not_too_late_for_the_exact_gradient():
    """300 points: the standard error of their mean similarity is below 0.04."""

    def from_half_time(x, t):
        return exact(4.0, 4)(x, t) if float(t) <= 0.5 else torch.zeros_like(x)

    wanted = float(target(4.0).expectation(sim))
    late = ((from_half_time, 1.0), (clean, lambda t: 4.0 * float(t <= 0.5)))
    reached, clean_reached = (float(sim(ends(grad, gamma, count=300, steps=25)).mean()) for grad, gamma in late)
    assert reached > wanted - 0.12 and clean_reached < reached - 0.2


def test_the_normaliser_is_large_where_the_encoder_is_sure_of_any_word():
    points, words = clean_encoder()
    x = MIXTURE.sample(4000, random(28))[0]
    logits = similarity.cosine(points(x)[:, None], words) / TEMPERATURE
    sure, total = logits.softmax(1).amax(1), logits.exp().sum(1)
    assert total[sure > 0.99].mean() > 1.5 * total[sure < 0.8].mean()


def test_two_exact_gradients_added_gather_too_many_points_at_the_lowest_blob():
    """A line that passes the lowest blob, and the word; 300 points."""
    corners = torch.tensor([[-2.5, -1.0], [0.5, 0.8], [2.5, 0.0]], dtype=F64)
    wishes = [lambda x: -2 * similarity.curve_distance(x, corners) ** 2, lambda x: 4 * sim(x)]
    joint = GridDensity(lambda x: MIXTURE.log_prob(x) + sum(f(x) for f in wishes), -7, 7)
    wanted = float(metrics.mode_weights(MIXTURE, joint)[5])
    one, other = (similarity.noisy_gradient(MIXTURE, SCHEDULE, f, 4) for f in wishes)
    both = similarity.noisy_gradient(MIXTURE, SCHEDULE, lambda x: sum(f(x) for f in wishes), 4)
    got = [float(metrics.mode_weights(MIXTURE, ends(grad, count=300))[5])
           for grad in (both, lambda x, t: one(x, t) + other(x, t))]  # fmt: skip
    error = math.sqrt(wanted * (1 - wanted) / 300)
    assert abs(got[0] - wanted) < 3.5 * error and got[1] > wanted + 3.5 * error


# ---- what losses ask for


def test_a_square_is_least_at_the_mean_and_a_cross_entropy_with_soft_targets_too():
    soft = torch.rand(200, generator=random(29), dtype=F64)
    guesses = torch.linspace(0.01, 0.99, 981, dtype=F64)
    square = (guesses[:, None] - soft).square().mean(1)
    entropy = -(soft * guesses[:, None].log() + (1 - soft) * (1 - guesses[:, None]).log()).mean(1)
    for loss in (square, entropy):
        assert abs(float(guesses[loss.argmin()] - soft.mean())) < 1e-3


def test_the_soft_target_lies_between_0_and_1_and_its_mean_is_the_worth_up_to_a_factor():
    gamma, t = 3.0, torch.tensor(0.4, dtype=F64)
    x = noisy(0.4, 5)
    target = torch.exp(gamma * (sim(MIXTURE.sample(5000, random(30))[0]) - 1))
    assert float(target.min()) > 0 and float(target.max()) <= 1
    crowd = MIXTURE.reverse(x.repeat(40_000, 1), SCHEDULE, t, 0.0).sample(random(31)).view(40_000, 5, 2)
    soft = torch.exp(gamma * (sim(crowd) - 1))
    worth = similarity.noisy_log_weight(MIXTURE, SCHEDULE, lambda x: gamma * sim(x), 12)(x, t)
    assert bool(((soft.mean(0) - (worth - gamma).exp()).abs() < 4 * soft.std(0) / 200 + 1e-3).all())


def with_level(x, t, *more):
    columns = [torch.as_tensor(c, dtype=F64).expand(len(x))[:, None] for c in (SCHEDULE.sigma(t), *more)]
    return torch.cat([x, *columns], 1)


def batch(generator):
    x0, t = MIXTURE.sample(400, generator)[0], torch.rand(400, generator=generator, dtype=F64)
    return x0, SCHEDULE.add_noise(x0, torch.randn(400, 2, generator=generator, dtype=F64), t), t


@cache
def noise_trained(seed: int = 41, steps: int = 2500):
    net, (points, words) = network(3, 4, seed), clean_encoder()

    def loss(generator):
        x0, x, t = batch(generator)
        return (net(with_level(x, t)) - nn.functional.normalize(points(x0), dim=1)).square().sum(1).mean()

    fit(loss, net.parameters(), steps, seed + 1)
    net.requires_grad_(False)
    return guidance.gradient(lambda x, t: net(with_level(x, t)) @ nn.functional.normalize(words[2], dim=0))


@cache
def trained_for_the_exponential(steps: int = 2500, seed: int = 43, largest: float = 1.0):
    net = network(4, 1, seed)

    def loss(generator):
        x0, x, t = batch(generator)
        gamma = 12 * torch.rand(400, generator=generator, dtype=F64)
        soft = torch.exp(gamma * (sim(x0) - largest))
        return nn.functional.binary_cross_entropy_with_logits(net(with_level(x, t, gamma))[:, 0], soft)

    fit(loss, net.parameters(), steps, seed + 1)
    net.requires_grad_(False)
    return lambda gamma: guidance.gradient(lambda x, t: nn.functional.logsigmoid(net(with_level(x, t, gamma))[:, 0]))


@pytest.mark.nightly
@pytest.mark.parametrize("gamma", [4.0, 10.0])
def test_the_exact_gradient_is_as_near_as_a_second_sample_and_no_trained_one_is(gamma):
    goal, again = (target(gamma).sample(500, random(k)) for k in (51, 52))
    floor, trained = metrics.wasserstein(goal, again), noise_trained()  # sampling switches gradients off
    ways = {"exact": exact(gamma, 4), "noise": lambda x, t: gamma * trained(x, t),
            "exponential": trained_for_the_exponential()(gamma)}  # fmt: skip
    apart = {name: metrics.wasserstein(ends(grad, count=500), goal) for name, grad in ways.items()}
    assert apart["exact"] < 1.4 * floor and apart["noise"] > 2 * floor and apart["exponential"] > 1.2 * floor
    assert apart["exponential"] < 0.8 * apart["noise"]


@pytest.mark.nightly
def test_where_no_data_are_near_a_similarity_of_1_the_soft_target_needs_the_largest_one_in_its_place():
    """A similarity less by 1.2 is the same wish; with 1 for its largest value all targets are far smaller."""
    parts = target(7.0).sample(1600, random(53)).split(200)
    largest = float(sim(MIXTURE.sample(5000, random(54))[0]).max())
    for seed in (45, 145):
        off = []
        for m in (largest, largest + 1.2):
            clouds = ends(trained_for_the_exponential(1000, seed, m)(7.0), count=1600).split(200)
            off.append([metrics.wasserstein(*pair) for pair in zip(clouds, parts, strict=True)])
        apart = torch.tensor(off[1]) - torch.tensor(off[0])
        assert apart.mean() > 3 * apart.std() / 8**0.5


@pytest.mark.nightly
def test_from_three_starts_of_the_training_the_one_for_the_exponential_ends_nearer_at_4():
    """Half the training of the others; by three standard errors over eight parts of 200 points, each time."""
    parts = target(4.0).sample(1600, random(53)).split(200)
    for seed in (101, 201, 301):
        mean_trained = noise_trained(seed, 1200)
        ways = (mean_trained, 4.0), (trained_for_the_exponential(1200, seed + 50)(4.0), 1.0)
        off = [[metrics.wasserstein(*pair) for pair in zip(ends(*way, 1600).split(200), parts, strict=True)]
               for way in ways]  # fmt: skip
        apart = torch.tensor(off[0]) - torch.tensor(off[1])
        assert apart.mean() > 3 * apart.std() / 8**0.5


@pytest.mark.nightly
def test_at_gamma_1_the_two_networks_differ_by_less_than_chance():
    """Chance: how far the distances of second samples of the target spread."""
    samples = [target(1.0).sample(400, random(k)) for k in range(61, 67)]
    floors = torch.tensor([metrics.wasserstein(samples[0], again) for again in samples[1:]])
    ways = noise_trained(), trained_for_the_exponential()(1.0)
    apart = [float(metrics.wasserstein(ends(grad, count=400), samples[0])) for grad in ways]
    assert abs(apart[0] - apart[1]) < float(floors.max() - floors.min())


@pytest.mark.nightly
def test_at_gamma_4_the_best_mean_similarity_itself_stays_far_off_and_under_steers():
    goal, again = (target(4.0).sample(500, random(k)) for k in (51, 52))
    x = ends(similarity.mean_gradient(MIXTURE, SCHEDULE, lambda x: 4 * sim(x), 4), count=500)
    assert metrics.wasserstein(x, goal) > 2 * metrics.wasserstein(goal, again)
    assert float(sim(x).mean()) < float(target(4.0).expectation(sim)) - 0.1
    clean_gap, noise_gap = (metrics.wasserstein(ends(grad, 4.0, 500), goal) for grad in (clean, noise_trained()))
    assert noise_gap > 0.7 * clean_gap


@pytest.mark.nightly
def test_the_noise_trained_gradient_is_the_mean_pull_nearly():
    t, x = torch.tensor(0.4, dtype=F64), noisy(0.4)
    wanted = similarity.mean_gradient(MIXTURE, SCHEDULE, sim, 8)(x, t)
    got = noise_trained()(x, t)
    assert float((got - wanted).norm() / wanted.norm()) < 0.35


# ---- a drawing, and a style


def test_points_steered_by_a_curve_lie_where_both_the_data_and_the_curve_want_them():
    angles = torch.linspace(-0.2, 1.0, 7, dtype=F64) * math.pi
    curve = torch.stack([2 * angles.cos(), 1.5 * angles.sin()], 1)

    def weight(x):
        return -2 * similarity.curve_distance(x, curve).square()

    goal = GridDensity(lambda x: MIXTURE.log_prob(x) + weight(x), -7, 7)
    x = ends(similarity.noisy_gradient(MIXTURE, SCHEDULE, weight, 4), count=300)
    far, error = metrics.with_error(lambda x: similarity.curve_distance(x, curve).mean(), x)
    assert abs(float(far - goal.expectation(lambda x: similarity.curve_distance(x, curve)))) < 3.5 * float(error)
    gap = metrics.mode_weights(MIXTURE, x) - metrics.mode_weights(MIXTURE, goal)
    assert float(gap.abs().max()) < 3.5 * math.sqrt(0.25 / 300)


def test_the_gram_matrix_of_centred_points_forgets_place_and_order_and_knows_the_slant():
    def style(points):
        return similarity.gram(points - points.mean(-2, keepdim=True))

    picture = normal(6, 71) @ torch.tensor([[1.0, 0.8], [0.0, 0.3]], dtype=F64)
    moved = picture[torch.tensor([5, 2, 0, 1, 4, 3])] + torch.tensor([9.0, -4.0], dtype=F64)
    assert float((style(picture) - style(moved)).abs().max()) < 1e-12
    mirrored = picture * torch.tensor([1.0, -1.0], dtype=F64)
    assert float((style(picture) - style(mirrored)).abs().max()) > 0.1
    wide = 30 * picture
    pulls = [guidance.gradient(lambda x, t: -(style(x.unflatten(1, (6, 2))) - style(picture)).square().sum((1, 2)))(
        p.reshape(1, 12), torch.tensor(0.5)).norm() for p in (wide, 2 * wide)]  # fmt: skip
    assert abs(float(pulls[1] / pulls[0]) - 8) < 0.1  # the force grows like the cube


def test_noise_has_a_style_of_its_own():
    noise = torch.randn(20_000, 6, 2, generator=random(72), dtype=F64)
    gram = similarity.gram(noise - noise.mean(1, keepdim=True)).mean(0)
    assert float((gram - 5 / 6 * torch.eye(2, dtype=F64)).abs().max()) < 0.02
