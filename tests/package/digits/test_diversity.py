"""Precision, recall and the numbers of variety against brute force, scipy and sets whose answer is known."""

import math
import os

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from difflesson.digits import checkpoints, data, diversity
from difflesson.digits.diversity import class_spread, jackknife, precision_recall
from difflesson.digits.metrics import frechet_distance, judged, statistics

F64 = torch.float64
real_pixels = pytest.mark.skipif(
    not os.environ.get("DIFFLESSON_DATA"), reason="DIFFLESSON_DATA is not set: no real MNIST"
)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def grid(count: int, seed: int) -> torch.Tensor:
    """Points of a small square lattice: many ties, and many points that are there several times."""
    return torch.randint(0, 5, (count, 2), generator=torch.Generator().manual_seed(seed)).double()


def share_within(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    """The definition, one sphere at a time; in squares, so that a lattice has no rounding."""
    inside = np.zeros(len(points), dtype=bool)
    for i, centre in enumerate(centres):
        others = np.sort(((np.delete(centres, i, axis=0) - centre) ** 2).sum(1))
        inside |= ((points - centre) ** 2).sum(1) <= others[k - 1]
    return inside.mean()


# ---- precision and recall


@pytest.mark.parametrize("k", [1, 3, 4])
@pytest.mark.parametrize(
    "features, real",
    [
        (random(30, 3, seed=1), 0.5 + random(20, 3, seed=2)),
        (0.3 * random(12, 2, seed=3), random(40, 2, seed=4)),
        (grid(30, seed=5), 1 + grid(25, seed=6)),
        (random(5, 1, seed=7), random(6, 1, seed=8)),
    ],
)
def test_precision_and_recall_are_those_of_the_definition_for_every_k_and_with_ties(features, real, k):
    precision, recall = precision_recall(features, real, k)
    a, b = features.numpy(), real.numpy()
    assert abs(precision - share_within(a, b, k)) < 1e-12 and abs(recall - share_within(b, a, k)) < 1e-12


def test_a_set_has_precision_and_recall_one_with_itself_and_none_with_one_far_away():
    points = random(40, 3, seed=1)
    assert precision_recall(points, points.clone()) == (1.0, 1.0)
    assert precision_recall(points, points + 1e3) == (0.0, 0.0)
    assert precision_recall(points.float(), points.float() @ torch.eye(3)) == (1.0, 1.0)


def test_a_sampler_that_knows_one_mode_of_four_is_precise_and_recalls_a_quarter():
    corners = 100 * torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=F64)
    real = (corners[:, None] + 0.1 * random(4, 25, 2, seed=1)).flatten(0, 1)
    first = real[:25] + 0.01 * random(25, 2, seed=2)
    assert precision_recall(first, real) == (1.0, 0.25)
    assert precision_recall(torch.cat([first, first + 500]), real) == (0.5, 0.25)  # and half of it in no mode



def test_the_edge_of_a_sphere_belongs_to_it_and_its_centre_is_no_neighbour_of_itself():
    """On a line: 0, 1, 3 have the spheres [-1, 1], [0, 2], [1, 5] with k = 1."""
    line = torch.tensor([[0.0], [1.0], [3.0]], dtype=F64)
    for place, inside in [(-1.0, 1), (-1.001, 0), (5.0, 1), (5.001, 0)]:
        sample = torch.tensor([[place], [1000.0]], dtype=F64)
        assert precision_recall(sample, line, k=1)[0] == inside / 2
    twice = torch.tensor([[0.0], [0.0], [9.0]], dtype=F64)  # 0 is its own nearest: a sphere of radius 0
    assert precision_recall(torch.tensor([[0.0], [-0.1]], dtype=F64), twice, k=1)[0] == 0.5


def test_memory_goes_by_blocks_and_the_answer_does_not(monkeypatch):
    features, real = random(70, 3, seed=1), random(50, 3, seed=2)
    whole = precision_recall(features, real)
    monkeypatch.setattr(diversity, "BLOCK", 7)
    assert precision_recall(features, real) == whole and 0.2 < whole[1] < 1


# ---- what the judge answers


def test_the_inception_score_is_the_exponential_of_the_mean_divergence_from_the_mean_answer():
    log_probs = 3 * random(60, 10, seed=1)
    log_probs = log_probs.log_softmax(1)
    probs = log_probs.exp().numpy()
    mean = probs.mean(0)
    expected = math.exp(np.mean([scipy.stats.entropy(p, mean) for p in probs]))
    assert abs(diversity.inception_score(log_probs) - expected) < 1e-10 and 2 < expected < 9
    assert abs(diversity.class_entropy(log_probs) - scipy.stats.entropy(mean)) < 1e-12


def test_the_inception_score_lies_between_one_and_ten_and_reaches_both():
    sure = nn.functional.one_hot(torch.arange(70) % 10, 10).double().log()  # zeros: their logarithms are infinite
    assert abs(diversity.inception_score(sure) - 10) < 1e-9
    assert abs(diversity.class_entropy(sure) - math.log(10)) < 1e-12
    for alike in (torch.zeros(8, 10).log_softmax(1), sure[:1].expand(8, 10), random(1, 10, seed=1).log_softmax(1)):
        assert abs(diversity.inception_score(alike) - 1) < 1e-6
    assert diversity.class_entropy(sure[:1].expand(8, 10)) == 0
    two = sure[torch.arange(40) % 2]
    assert abs(diversity.inception_score(two) - 2) < 1e-12  # as many as there are classes in use
    for seed in range(20):
        assert 1 <= diversity.inception_score((4 * random(5, 10, seed=seed)).log_softmax(1)) <= 10


def test_the_spread_is_the_mean_squared_distance_from_the_mean_of_the_class():
    """Classes of unequal size, whose labels are neither sorted nor all there."""
    features, labels = random(30, 4, seed=1).float() + 5, torch.arange(30) % 7 % 3 * 4
    expected = 0.0
    for label in (0, 4, 8):
        one = features[labels == label].double().numpy()
        expected += len(one) * one.var(axis=0).sum() / 30
    assert abs(class_spread(features, labels) - expected) < 1e-10
    apart = features + 100 * labels[:, None]
    assert abs(class_spread(apart, labels) - expected) < 1e-3  # where the classes are plays no part
    assert class_spread(features, torch.arange(30)) == 0


# ---- standard errors


def test_the_jackknife_of_a_mean_with_a_part_for_each_point_is_the_textbook_error():
    x, labels = random(50, 3, seed=1), torch.arange(50) % 10
    value, error = jackknife(lambda x: x.mean(0), (x,), labels, parts=50)
    assert float((value - x.mean(0)).abs().max()) < 1e-15
    assert float((error - x.std(0) / 50**0.5).abs().max()) < 1e-12
    number, its = jackknife(lambda x: float(x.mean()), (x,), labels, parts=50)
    assert number.shape == its.shape == () and abs(float(number) - float(x.mean())) < 1e-15


def test_each_part_has_its_share_of_each_label_in_whatever_order_they_come():
    """So what the labels decide has no error: they were asked for, not drawn."""
    for labels in (torch.arange(60) % 10, torch.arange(60) // 6, torch.arange(60).flip(0) % 10):
        shares, error = jackknife(lambda y: y.bincount(minlength=10) / len(y), (labels,), labels, parts=6)
        assert float((shares - 0.1).abs().max()) < 1e-8 and float(error.abs().max()) < 1e-8


MEASURES = {
    "precision": lambda x, y: precision_recall(x, REAL)[0],
    "recall": lambda x, y: precision_recall(x, REAL)[1],
    "digit-FID": lambda x, y: frechet_distance(statistics(x), statistics(REAL)),
    "class spread": class_spread,
    "Inception Score": lambda x, y: diversity.inception_score((3 * x).log_softmax(1)),
}
REAL = random(120, 3, seed=0)


@pytest.mark.parametrize("name", MEASURES)
def test_the_jackknife_gives_the_scatter_over_other_samples_and_of_recall_at_most_twice_too_much(name):
    """Of 40 samples of 120 points: their values' deviation is known to 11 %, the errors' mean square to 8 %."""
    labels = torch.arange(120) % 2
    samples = [0.8 * random(120, 3, seed=seed) + 0.5 * labels[:, None] for seed in range(1, 41)]
    measure = MEASURES[name]
    scatter = torch.tensor([measure(x, labels) for x in samples], dtype=F64).std()
    errors = torch.stack([jackknife(measure, (x, labels), labels)[1] for x in samples[:16]])
    assert 0.6 < float(errors.square().mean().sqrt() / scatter) < (2.2 if name == "recall" else 1.6)


# ---- the report, and what ships


class Ruler(nn.Module):
    """A judge by hand: the features of an image are its first pixels, its logits ten times that."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(10.0, dtype=F64))

    def features(self, x):
        return x.flatten(1)[:, :10]

    def leave(self, features):
        return self.gain * features


def pixels(count: int, seed: int) -> data.Digits:
    """Images (count, 4, 4) that `Ruler` takes for one of each class in turn."""
    labels = torch.arange(count) % 10
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 100, (count, 16), generator=generator)
    noise[torch.arange(count), labels] += 150
    return data.Digits(noise.to(torch.uint8).reshape(count, 4, 4), labels)


def test_the_report_holds_each_number_and_its_error():
    made, judge = pixels(60, 1), Ruler()
    real = diversity.RealFeatures(judged(judge, data.to_unit(pixels(50, 2).images))[0], torch.arange(50) % 10)
    row = diversity.diversity_report(judge, data.to_unit(made.images), made.labels, real, k=2, parts=6)
    features, log_probs = judged(judge, data.to_unit(made.images))
    precision, recall = precision_recall(features, real.features, 2)
    expected = {
        "precision": precision, "recall": recall, "digit_is": diversity.inception_score(log_probs),
        "class_entropy": diversity.class_entropy(log_probs), "class_spread": class_spread(features, made.labels),
    }  # fmt: skip
    assert all(abs(row[name] - value) < 1e-5 for name, value in expected.items())
    assert len(row) == 10 and all(row[f"{name}_error"] >= 0 for name in expected)
    for name, index in (("precision", 0), ("recall", 1)):
        _, error = jackknife(lambda x: precision_recall(x, real.features, 2), (features,), made.labels, 6)
        assert abs(row[f"{name}_error"] - float(error[index])) < 1e-5 and float(error[index]) > 0


def test_saved_features_come_back_to_half_a_step_with_the_row_of_other_real_digits(tmp_path):
    path, test, judge = tmp_path / "features.safetensors", pixels(100, 1), Ruler()
    card = diversity.save_features(path, judge, test, {"data_sha256": "abc"})
    real, written = diversity.load_features(path)
    assert written == card and card["images"] == 50 and card["data_sha256"] == "abc"
    assert real.labels.bincount().tolist() == [5] * 10 and real.features.dtype == F64
    chosen = diversity.spread_out(test.labels, 10)
    features, others = (judged(judge, data.to_unit(test.images[i])) for i in (chosen[::2], chosen[1::2]))
    assert float((real.features - features[0]).abs().max()) < 0.501 * card["step"]
    assert abs(card["others"]["precision"] - precision_recall(others[0], real.features)[0]) < 1e-5


def test_what_is_picked_of_a_class_is_spread_over_the_whole_file():
    labels = torch.arange(100) % 3
    chosen = diversity.spread_out(labels, 4)
    assert labels[chosen].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert chosen[:4].tolist() == [0, 24, 51, 75]  # the 1st, 9th, 18th, 26th of 34


def test_the_shipped_features_are_a_hundred_of_each_class_and_the_others_are_among_them():
    real, card = diversity.load_features()
    assert real.features.shape == (1000, 128) and real.labels.bincount().tolist() == [100] * 10
    assert card["data_sha256"] == data.data_hash("mnist")
    others = card["others"]
    assert 0.85 < others["precision"] < 0.92 and 0.85 < others["recall"] < 0.93
    assert 9.8 < others["digit_is"] < 10 and others["class_entropy"] <= math.log(10) + 1e-5
    assert checkpoints.shipped("features").stat().st_size < 150_000


@real_pixels
def test_the_shipped_features_are_those_of_the_real_test_digits_to_half_a_step():
    (real, card), test = diversity.load_features(), data.load("mnist", "test")
    picked = diversity.spread_out(test.labels, 200)[::2]
    assert torch.equal(real.labels, test.labels[picked])
    features, _ = judged(checkpoints.load("judge").network, data.to_unit(test.images[picked[::5]]))
    assert float((features - real.features[::5]).abs().max()) < 0.5 * card["step"] + 1e-4


# ---- bad input


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: precision_recall(random(9, 3, seed=0), random(9, 4, seed=1)), "features must have shapes"),
        (lambda: precision_recall(random(9, seed=0), random(9, seed=1)), "features must have shapes"),
        (lambda: precision_recall(random(0, 3, seed=0), random(9, 3, seed=1)), "features must have shapes"),
        (lambda: precision_recall(random(9, 3, seed=0) / 0, random(9, 3, seed=1)), "features must be finite"),
        (lambda: precision_recall(random(9, 3, seed=0), random(3, 3, seed=1)), r"k must lie in 1\.\.2.*got 3"),
        (lambda: precision_recall(random(9, 3, seed=0), random(9, 3, seed=1), 0), r"k must lie in 1\.\.8.*got 0"),
        (lambda: diversity.inception_score(random(10, seed=0)), "log_probs must have shape"),
        (lambda: diversity.inception_score(random(9, 10, seed=0)), "log_probs must be logarithms"),
        (lambda: diversity.class_entropy(torch.full((3, 10), 0.1)), "log_probs must be logarithms"),
        (lambda: class_spread(random(9, 3, seed=0), torch.arange(3)), "labels must have shape"),
        (lambda: jackknife(torch.mean, (random(9, seed=0),), torch.arange(8)), r"columns\[0\] must have shape"),
        (lambda: jackknife(torch.mean, (random(9, seed=0),), torch.arange(9)), r"parts must lie in 2\.\.9.*got 10"),
        (lambda: jackknife(torch.mean, (random(9, seed=0),), torch.arange(9), 1), r"parts must lie in 2\.\.9.*got 1"),
    ],
)
def test_bad_input_is_a_value_error_that_names_the_argument(call, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        call()
