"""Distances and masses, against brute force, closed forms and SciPy; each sees what it is for."""

import itertools
import math

import pytest
import torch
from scipy import stats

from difflesson import metrics
from difflesson.grid import GridDensity
from tests.oracles.mixtures import FOUR, THREE

MIXTURE, ONE_EACH = FOUR.mixture(), FOUR.mixture(labels=False)


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def normal(count: int, seed: int, dim: int = 2) -> torch.Tensor:
    return torch.randn(count, dim, generator=seeded(seed), dtype=torch.float64)


def test_masses_and_weights_are_mean_posteriors_by_scipy():
    x = normal(7, 0)
    parts = torch.tensor(
        [
            [w * stats.multivariate_normal(m, c).pdf(point) for w, m, c in zip(*FOUR[:3], strict=True)]
            for point in x.numpy()
        ]
    )
    shares = (parts / parts.sum(1, keepdim=True)).mean(0)
    torch.testing.assert_close(metrics.mode_weights(MIXTURE, x), shares)
    torch.testing.assert_close(
        metrics.class_mass(MIXTURE, x), torch.stack([shares[0] + shares[2], shares[1] + shares[3]])
    )


def test_of_the_mixture_itself_they_are_its_weights():
    density = GridDensity(MIXTURE.log_prob, -9, 10)
    torch.testing.assert_close(metrics.mode_weights(MIXTURE, density), MIXTURE.weights)
    torch.testing.assert_close(metrics.class_mass(MIXTURE, density), MIXTURE.class_weights())
    x, _ = MIXTURE.sample(40_000, seeded(1))
    weights, error = metrics.with_error(lambda part: metrics.mode_weights(MIXTURE, part), x)
    assert bool(((weights - MIXTURE.weights).abs() < 5 * error).all()) and float(error.max()) < 0.005


def test_the_standard_error_of_a_mean_is_the_textbooks():
    x = normal(100_000, 2)[:, :1] * 3
    value, error = metrics.with_error(lambda part: part.mean(0), x, parts=400)
    torch.testing.assert_close(value, x.mean(0))
    assert abs(float(error) / (3 / math.sqrt(100_000)) - 1) < 0.15  # its own relative scatter is 1 / sqrt(800)


def test_wasserstein_is_the_best_of_all_pairings():
    x, y = normal(6, 3, dim=3), normal(6, 4, dim=3) + 1
    best = min(float((x - y[list(order)]).square().sum(1).mean()) for order in itertools.permutations(range(6)))
    assert abs(metrics.wasserstein(x, y) - math.sqrt(best)) < 1e-12


def test_wasserstein_on_a_line_pairs_by_rank():
    x, y = normal(500, 5, dim=1), 2 * normal(500, 6, dim=1) + 1
    ranked = (x.sort(0).values - y.sort(0).values).square().mean().sqrt()
    assert abs(metrics.wasserstein(x, y) - float(ranked)) < 1e-12


def test_wasserstein_of_a_moved_cloud_is_the_way_it_moved():
    x, away = normal(300, 7), torch.tensor([0.3, -0.4], dtype=torch.float64)
    assert metrics.wasserstein(x, x) == 0
    assert abs(metrics.wasserstein(x, x[torch.randperm(300, generator=seeded(0))] + away) - 0.5) < 1e-12


def test_energy_distance_is_scipys_on_a_line():
    """SciPy's is the root, and counts each point's distance to itself."""
    x, y = normal(300, 8, dim=1), 1.5 * normal(200, 9, dim=1) + 0.7
    self_x, self_y = (torch.cdist(z, z).sum() / len(z) for z in (x, y))
    unbiased = self_x / (len(x) - 1) - self_x / len(x) + self_y / (len(y) - 1) - self_y / len(y)
    theirs = stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    assert abs(metrics.energy_distance(x, y) + float(unbiased) - theirs) < 1e-10


def test_energy_distance_has_no_bias():
    """60 pairs of one density: the mean is zero to four standard errors, and some values are negative."""
    values = torch.tensor([metrics.energy_distance(normal(50, 100 + k), normal(40, 300 + k)) for k in range(60)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(60) and bool((values < 0).any())


def test_energy_distance_in_blocks_is_that_of_all_at_once():
    x, y = normal(2500, 10), normal(1100, 11) + 0.1
    across, own = torch.cdist(x, y).mean(), [torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    assert abs(metrics.energy_distance(x, y) - float(2 * across - sum(own))) < 1e-10


def test_a_dropped_mode_is_seen_by_the_weights_and_by_both_distances():
    x, _ = MIXTURE.sample(1500, seeded(12))
    other, _ = MIXTURE.sample(1500, seeded(13))
    third, _ = MIXTURE.sample(1500, seeded(14))
    kept = x[ONE_EACH.class_log_prob(x, 0).exp() < 0.5]
    assert metrics.mode_weights(MIXTURE, kept)[0] < 0.03 < 0.08 < metrics.mode_weights(MIXTURE, x)[0]
    count = len(kept)
    assert metrics.wasserstein(kept, other[:count]) > 1.5 * metrics.wasserstein(third[:count], other[:count])
    assert metrics.energy_distance(kept, other) > 5 * abs(metrics.energy_distance(third, other))


@pytest.mark.parametrize("distance", [metrics.wasserstein, metrics.energy_distance])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (normal(4, 0), normal(4, 1, dim=3), "x and y must have shapes"),
        (normal(4, 0)[0], normal(4, 1), "x and y must have shapes"),
        (normal(4, 0) * math.nan, normal(4, 1), "must be finite"),
        (normal(4, 0), normal(4, 1) / 0, "must be finite"),
    ],
)
def test_bad_samples_are_named(distance, x, y, message):
    with pytest.raises(ValueError, match=message):
        distance(x, y)


def test_what_each_needs_of_the_counts_is_said():
    with pytest.raises(ValueError, match="the same number of points, got 4 and 5"):
        metrics.wasserstein(normal(4, 0), normal(5, 1))
    with pytest.raises(ValueError, match="at least 2 points each, got 1 and 5"):
        metrics.energy_distance(normal(1, 0), normal(5, 1))
    for parts, count in ((1, 10), (6, 11)):
        with pytest.raises(ValueError, match=f"parts must be at least 2.*got {parts} for {count}"):
            metrics.with_error(lambda x: x.mean(0), normal(count, 0), parts)


def test_classes_need_not_be_as_many_as_components():
    three = THREE.mixture()
    assert metrics.class_mass(three, normal(9, 0)).shape == (2,) and metrics.mode_weights(
        three, normal(9, 0)
    ).shape == (3,)
