"""The sweep's numbers against the functions they are made of, and the rows that ship."""

import pytest
import torch

from difflesson.digits import diversity, metrics, runs, tradeoff
from difflesson.digits.diversity import RealFeatures

F64 = torch.float64


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.fixture
def columns():
    labels = torch.arange(3).repeat(40)
    return normal(120, 4, seed=1) + labels[:, None], (3 * normal(120, 3, seed=2)).log_softmax(1), labels


def test_the_seven_numbers_and_their_errors_are_those_of_the_functions_with_their_jackknife(columns):
    real = RealFeatures(normal(90, 4, seed=3) + 1, torch.zeros(90, dtype=torch.long))
    reference = metrics.statistics(normal(400, 4, seed=4) + 1)

    def plainly(features, log_probs, labels):
        here = metrics.statistics(features)
        return [
            float((log_probs.argmax(1) == labels).double().mean()),
            *diversity.precision_recall(features, real.features),
            diversity.inception_score(log_probs),
            metrics.frechet_distance(here, reference),
            float((here.mean - reference.mean).square().sum()),
            diversity.class_spread(features, labels),
        ]

    want = diversity.jackknife(plainly, columns, columns[2])
    for found, wanted in zip(tradeoff.measures(*columns, real, reference), want, strict=True):
        assert found.shape == (len(tradeoff.NAMES),)
        assert float((found - wanted).abs().max()) < 1e-9


def test_labels_that_are_not_one_a_sample_are_refused(columns):
    features, log_probs, labels = columns
    real, reference = RealFeatures(features, labels), metrics.statistics(features)
    with pytest.raises(ValueError, match="labels must have shape"):
        tradeoff.measures(features, log_probs, labels[:-1], real, reference)


def test_the_rows_that_ship_are_numbers_in_their_ranges():
    for one in runs.rows("guidance"):
        assert all(0 <= one[name] <= 1 for name in ("accuracy", "precision", "recall")) and 1 <= one["digit_is"] <= 10
        assert 0 <= one["mean_part"] <= one["digit_fid"] and one["spread"] >= 0 and one["count"] >= 100
        assert all(one[f"{name}_error"] >= 0 for name in tradeoff.NAMES)


def test_neighbours_that_are_not_there_are_refused(columns):
    """The jackknife keeps 108 of the 120 samples, so each has 107 others at most."""
    features, log_probs, labels = columns
    real, reference = RealFeatures(features, labels), metrics.statistics(features)
    for k in (0, 108, 120):
        with pytest.raises(ValueError, match=rf"^k must lie in 1\.\.107, .* got {k}$"):
            tradeoff.measures(features, log_probs, labels, real, reference, k)
    assert bool(tradeoff.measures(features, log_probs, labels, real, reference, 107)[0].isfinite().all())
