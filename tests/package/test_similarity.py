"""difflesson.similarity: what a clean score becomes under noise, compared with sums over grids and with draws."""

import math

import pytest
import torch

from difflesson import guidance, similarity
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.schedule import cosine, vp_linear
from tests.oracles.mixtures import FOUR, THREE, random_mixture

F64 = torch.float64
MIXTURE, SCHEDULE = FOUR.mixture(), vp_linear(0.3, 8.0)
X = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1], [3.0, 3.0]], dtype=F64)


def sim(x):
    return torch.sin(x[..., 0] + 0.3) * torch.exp(-x[..., 1].square() / 4) + 0.3 * x[..., 1]


def crowd(mixture, schedule, x, t, cells=241, width=9.0):
    """Clean points on a grid and p(x_0 | x_t = x) there, (N, cells), by Bayes' rule."""
    axis = torch.linspace(-width, width, cells, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    log = mixture.log_prob(grid) - (x[:, None] - schedule.alpha(t) * grid).square().sum(2) / 2 / schedule.sigma(t) ** 2
    return grid, log.softmax(1)


@pytest.mark.equation("eq-cosine-similarity")
def test_the_cosine_is_that_of_the_angle_whatever_the_lengths():
    for angle in (0.0, 0.4, 2.0, 3.1):
        a = 3.7 * torch.tensor([math.cos(1.0), math.sin(1.0)], dtype=F64)
        b = 0.2 * torch.tensor([math.cos(1.0 + angle), math.sin(1.0 + angle)], dtype=F64)
        assert abs(float(similarity.cosine(a, b)) - math.cos(angle)) < 1e-12
    one, other = torch.randn(2, 5, 7, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert similarity.cosine(one, other).shape == (5, 7) == similarity.cosine(one, other[0, 0]).shape
    naive = torch.nn.functional.cosine_similarity(one, other, dim=-1)
    assert float((similarity.cosine(one, other) - naive).abs().max()) < 1e-12
    assert float((similarity.inner_product(one, other) - (one * other).sum(-1)).abs().max()) < 1e-12


@pytest.mark.equation("eq-gram-distance")
def test_the_gram_matrix_is_the_mean_of_outer_products_and_forgets_the_order():
    features = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    by_hand = torch.stack([sum(torch.outer(f, f) for f in picture) / 5 for picture in features])
    assert float((similarity.gram(features) - by_hand).abs().max()) < 1e-12
    shuffled = features[:, torch.tensor([3, 0, 4, 1, 2])]
    assert float((similarity.gram(shuffled) - by_hand).abs().max()) < 1e-12
    reference = by_hand[0] + torch.diag(torch.tensor([1.0, 0.0, 0.5], dtype=F64))
    wanted = torch.stack([((G - reference) ** 2).sum() for G in by_hand])
    assert float((similarity.gram_distance(features, reference) - wanted).abs().max()) < 1e-12
    assert abs(float(similarity.gram_distance(features[0], reference)) - 1.25) < 1e-12


def test_the_distance_from_a_curve_is_the_least_over_many_points_on_it():
    corners = torch.tensor([[-1.0, 0.0], [0.5, 1.0], [2.0, -1.0], [2.0, -3.0]], dtype=F64)
    share = torch.linspace(0, 1, 4001, dtype=F64)[:, None]
    on_it = torch.cat([a + share * (b - a) for a, b in zip(corners[:-1], corners[1:], strict=True)])
    x = 3 * torch.randn(50, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    assert float((similarity.curve_distance(x, corners) - torch.cdist(x, on_it).amin(1)).abs().max()) < 1e-4
    assert similarity.curve_distance(x.view(5, 10, 2), corners).shape == (5, 10)
    beyond = torch.tensor([[2.0, -5.0], [-4.0, 4.0]], dtype=F64)  # past the ends
    assert float((similarity.curve_distance(beyond, corners) - torch.tensor([2.0, 5.0], dtype=F64)).abs().max()) < 1e-12


@pytest.mark.parametrize("corners", [[[0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0], [2.0, 0.0]]])
def test_a_curve_needs_two_corners_and_pieces_of_some_length(corners):
    with pytest.raises(ValueError, match="corners must be at least two"):
        similarity.curve_distance(X, torch.tensor(corners, dtype=F64))


@pytest.mark.equation("eq-linear-tilt")
@pytest.mark.parametrize(
    "mixture", [MIXTURE, THREE.mixture(), random_mixture(5, [0, 1, 1])], ids=["four", "three", "5d"]
)
def test_a_mixture_tilted_by_a_direction_is_the_product_normalised(mixture):
    a = torch.linspace(-1.0, 1.4, mixture.dim, dtype=F64)
    tilted = similarity.tilted_by_direction(mixture, a)
    x = torch.randn(30, mixture.dim, generator=torch.Generator().manual_seed(3), dtype=F64)
    gap = mixture.log_prob(x) + x @ a - tilted.log_prob(x)
    moment = (mixture.weights * torch.exp(mixture.means @ a + torch.einsum("d,kde,e->k", a, mixture.covs, a) / 2)).sum()
    assert float((gap - moment.log()).abs().max()) < 1e-9
    assert tilted.labels == mixture.labels and float((tilted.covs - mixture.covs).abs().max()) < 1e-12


def test_a_direction_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"direction must have shape \(2,\)"):
        similarity.tilted_by_direction(MIXTURE, torch.ones(3, dtype=F64))


@pytest.mark.equation("eq-noisy-energy")
@pytest.mark.parametrize("gamma", [0.0, 1.7, -2.0])
@pytest.mark.parametrize("time", [0.2, 0.6, 1.0])
def test_the_worth_is_the_mean_of_the_exponential_over_a_grid_of_clean_points(gamma, time):
    t = torch.tensor(time, dtype=F64)
    grid, chances = crowd(MIXTURE, SCHEDULE, X, t)
    wanted = (chances @ (gamma * sim(grid)).exp()).log()
    worth = similarity.noisy_log_weight(MIXTURE, SCHEDULE, lambda x: gamma * sim(x), order=20)(X, t)
    assert float((worth - wanted).abs().max()) < 2e-5


@pytest.mark.equation("eq-noisy-energy")
def test_the_mean_worth_of_a_step_is_the_worth_before_it():
    t, s = torch.tensor(0.6, dtype=F64), torch.tensor(0.3, dtype=F64)
    worth = similarity.noisy_log_weight(MIXTURE, SCHEDULE, lambda x: 1.7 * sim(x), order=8)
    step = MIXTURE.reverse(X.repeat(4000, 1), SCHEDULE, t, s).sample(torch.Generator().manual_seed(4))
    later = torch.cat([worth(part, s).exp() for part in step.split(4000)]).view(-1, len(X))
    error = later.std(0) / 4000**0.5
    assert bool(((later.mean(0) - worth(X, t).exp()).abs() < 4 * error).all())  # 4,000 draws, 4 points


@pytest.mark.equation("eq-noised-target")
@pytest.mark.parametrize("schedule", [SCHEDULE, cosine()], ids=["vp_linear", "cosine"])
def test_data_times_worth_is_the_tilted_density_noised(schedule):
    gamma, t = 1.7, torch.tensor(0.5, dtype=F64)
    target = GridDensity(lambda x: MIXTURE.log_prob(x) + gamma * sim(x), -9, 9, 240)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    apart = (X[:, None] - alpha * target.points).square().sum(2) / 2 / sigma**2
    noised = ((target.weights * torch.exp(-apart)).sum(1) / (2 * math.pi * sigma**2)).log()
    worth = similarity.noisy_log_weight(MIXTURE, schedule, lambda x: gamma * sim(x), order=20)(X, t)
    product = MIXTURE.noised(alpha, sigma).log_prob(X) + worth - target.log_normaliser
    assert float((product - noised).abs().max()) < 1e-5


@pytest.mark.equation("eq-noisy-gradient", "eq-noised-target")
@pytest.mark.parametrize("time", [0.2, 0.6, 1.0])
def test_the_exact_pull_is_the_score_of_the_noised_target_less_that_of_the_data(time):
    """For a direction the target is a mixture, so both scores have closed forms; the pull is by quadrature."""
    t, a = torch.tensor(time, dtype=F64), torch.tensor([0.8, -1.2], dtype=F64)
    pull = similarity.noisy_gradient(MIXTURE, SCHEDULE, lambda x: x @ a, order=24)(X, t)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    tilted = similarity.tilted_by_direction(MIXTURE, a).noised(alpha, sigma)
    assert float((pull - tilted.score(X) + MIXTURE.noised(alpha, sigma).score(X)).abs().max()) < 1e-8


@pytest.mark.equation("eq-noisy-gradient")
def test_the_exact_pull_is_the_slope_of_the_worth_also_for_weights_without_a_slope():
    t, h = torch.tensor(0.5, dtype=F64), 1e-4

    def weight(x):  # 1 in a half-plane, 1/3 outside
        return torch.where(x @ torch.tensor([0.6, 0.9], dtype=F64) > 0.4, 0.0, -math.log(3.0)).to(F64)

    grid, _ = crowd(MIXTURE, SCHEDULE, X, t)

    def log_worth(x):
        return (crowd(MIXTURE, SCHEDULE, x, t)[1] @ weight(grid).exp()).log()

    steps = h * torch.eye(2, dtype=F64)
    slope = torch.stack([(log_worth(X + step) - log_worth(X - step)) / (2 * h) for step in steps], 1)
    pull = similarity.noisy_gradient(MIXTURE, SCHEDULE, weight, order=80)(X, t)
    assert float((pull - slope).abs().max()) < 0.02  # nodes on either side of the edge


@pytest.mark.equation("eq-mean-similarity")
@pytest.mark.parametrize("time", [0.2, 0.6, 1.0])
def test_the_mean_pull_is_the_slope_of_the_mean_similarity(time):
    t = torch.tensor(time, dtype=F64)
    x = X.clone().requires_grad_()
    grid, chances = crowd(MIXTURE, SCHEDULE, x, t)
    (slope,) = torch.autograd.grad((chances @ (1.7 * sim(grid))).sum(), x)
    pull = similarity.mean_gradient(MIXTURE, SCHEDULE, lambda x: 1.7 * sim(x), order=20)(X, t)
    assert float((pull - slope).abs().max()) < 1e-5


@pytest.mark.equation("eq-mean-similarity")
def test_the_exact_pull_is_the_mean_pull_up_to_gamma_squared():
    t, gaps = torch.tensor(0.5, dtype=F64), []
    for gamma in (0.02, 0.01):
        ways = [way(MIXTURE, SCHEDULE, lambda x, g=gamma: g * sim(x), 20)(X, t)
                for way in (similarity.noisy_gradient, similarity.mean_gradient)]  # fmt: skip
        gaps.append(float((ways[0] - ways[1]).abs().max()))
    assert 3.9 < gaps[0] / gaps[1] < 4.1


def test_a_constant_weight_pulls_nowhere_and_adds_its_logarithm():
    t = torch.tensor(0.5, dtype=F64)
    flat = lambda x: torch.full(x.shape[:-1], 2.5, dtype=F64)  # noqa: E731
    assert float((similarity.noisy_log_weight(MIXTURE, SCHEDULE, flat)(X, t) - 2.5).abs().max()) < 1e-12
    for way in (similarity.noisy_gradient, similarity.mean_gradient):
        assert float(way(MIXTURE, SCHEDULE, flat)(X, t).abs().max()) < 1e-12


def test_the_pulls_go_into_tilt_one_point_as_well_as_many_and_in_other_dimensions():
    line = GaussianMixture([0.7, 0.3], torch.tensor([[-1.0], [1.5]], dtype=F64), [[[0.3]], [[0.6]]])
    pull = similarity.noisy_gradient(line, SCHEDULE, lambda x: -x[..., 0].square(), order=30)
    t = torch.tensor(0.5, dtype=F64)
    guided = guidance.tilt(line.denoiser(SCHEDULE), pull, 1.0, SCHEDULE)(torch.tensor([[0.4]], dtype=F64), t)
    x0 = torch.linspace(-9, 9, 6001, dtype=F64)
    log = line.log_prob(x0[:, None]) - x0**2 - (0.4 - SCHEDULE.alpha(t) * x0) ** 2 / 2 / SCHEDULE.sigma(t) ** 2
    assert abs(float(guided.x0) - float(log.softmax(0) @ x0)) < 1e-6
