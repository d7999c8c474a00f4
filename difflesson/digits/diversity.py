"""How real, and how varied: precision and recall, an Inception Score, class entropy, the spread within a class.

A Fréchet distance sees both at once and does not say which is amiss; guidance trades the one for the other. All of it
is measured in the judge's features and answers, so no value can be compared with a published one: compare rows with
each other, and with real digits, whose own row stands in the card of the shipped features. That of 1,000 other test
digits has neither precision 1 nor recall 1: a thousand spheres do not cover all there is.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from difflesson.checks import check_shape
from difflesson.denoiser import check_labels
from difflesson.digits import checkpoints
from difflesson.digits.data import Digits, to_unit
from difflesson.digits.metrics import judged

FEATURES = "features"
EACH = 100  # real digits of each class whose features ship
BLOCK = 256  # rows of a matrix of distances that are in memory at once


class RealFeatures(NamedTuple):
    """The judge's features (n, d) of real digits, float64, and their labels (n,)."""

    features: Tensor
    labels: Tensor


def precision_recall(features: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Precision, the share of samples that lie among the real ones, and recall, the share of real ones among samples.

    "Among" a set: within the distance from one of its points to that point's k-th nearest other. On the edge counts as
    within; a point that the set holds k + 1 times has a sphere of radius 0, where only its like are.

    Args: features: (N, d) of samples;  real: (M, d);  k: 1..min(N, M) - 1. Compare rows of equal N, M and k.
    Raises: ValueError if k is not allowed, or as `check_features`.
    Source: Kynkäänniemi et al. 2019 (arXiv 1904.06991), eqs. 1 and 2.
    """
    check_features(features, real)
    check_neighbours(k, features, real)
    precision, recall = within(features, real, k), within(real, features, k)
    return float(precision.double().mean()), float(recall.double().mean())


def within(points: Tensor, centres: Tensor, k: int) -> Tensor:
    """Which points (N, d) lie in the sphere of one of the centres (M, d), up to its k-th nearest other: (N,), bool."""
    # The k + 1 smallest hold the centre itself, at distance 0: without matrix products, which would round it.
    radii = torch.cat([part.kthvalue(k + 1, dim=1).values for part in _distances(centres, centres)])  # (M,)
    return torch.cat([(part <= radii).any(dim=1) for part in _distances(points, centres)])


def _distances(x: Tensor, y: Tensor):
    """The distances of all x from all y, some rows at a time, (rows, len(y)) in float64."""
    y = y.double()
    for rows in x.double().split(BLOCK):
        yield torch.cdist(rows, y, compute_mode="donot_use_mm_for_euclid_dist")


def check_features(*sets: Tensor) -> None:
    """Raises: ValueError unless all are finite, (N, d) with N >= 1 and one d."""
    shapes = [tuple(one.shape) for one in sets]
    if any(len(shape) != 2 or 0 in shape or shape[1] != shapes[0][1] for shape in shapes):
        raise ValueError(f"features must have shapes (N, d), not empty, with one d, got {shapes}")
    if not all(bool(one.isfinite().all()) for one in sets):
        raise ValueError("features must be finite, there is a NaN or an infinity in them")


def check_neighbours(k: int, *sets: Tensor) -> None:
    """Raises: ValueError unless each point of each set has k others."""
    smallest = min(len(one) for one in sets)
    if not 1 <= k < smallest:
        raise ValueError(f"k must lie in 1..{smallest - 1}, below the number of points, got {k}")


def inception_score(log_probs: Tensor) -> float:
    """`exp(mean_i KL(p_i | p))`, where p is the mean of the answers p_i.

    From 1, where all are alike, to the number of classes, where each answer is sure and all classes come equally
    often; of variety within a class it sees nothing.
    Args: log_probs: (N, classes), of the judge.  Raises: ValueError as `class_entropy`.
    Source: Salimans et al. 2016 (arXiv 1606.03498), section 4, on one split.
    """
    overall = class_entropy(log_probs)
    unsure = float(torch.special.entr(log_probs.double().exp()).sum(1).mean())
    return math.exp(max(overall - unsure, 0.0))  # the mean divergence is a difference of entropies


def class_entropy(log_probs: Tensor) -> float:
    """The entropy in nats of the mean of the judge's answers: from 0, one class only, to log classes.

    Args: log_probs: (N, classes).  Raises: ValueError if they are not, or an answer's sum is not 1.
    """
    if log_probs.dim() != 2 or len(log_probs) < 1:
        raise ValueError(f"log_probs must have shape (N, classes) with N >= 1, got {tuple(log_probs.shape)}")
    probs = log_probs.double().exp()
    if not bool(((probs.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError("log_probs must be logarithms of probabilities that sum to 1 in each row")
    return float(torch.special.entr(probs.mean(0)).sum())


def class_spread(features: Tensor, labels: Tensor) -> float:
    """The mean squared distance of features (N, d) from the mean of their class.

    Args: labels: (N,), what was asked for, or what the judge has answered. With n of each class, the value is
    (n - 1) / n of that of infinitely many.  Raises: ValueError if labels are not (N,), or as `check_features`.
    """
    check_features(features)
    check_shape("labels", labels, features.shape[:1])
    classes, place = labels.unique(return_inverse=True)
    sums = torch.zeros(len(classes), features.shape[1], dtype=torch.float64, device=features.device)
    means = sums.index_add(0, place, features.double()) / place.bincount()[:, None]  # (classes, d)
    return float((features.double() - means[place]).square().sum(1).mean())


def jackknife(
    statistic: Callable[..., Any], columns: tuple[Tensor, ...], labels: Tensor, parts: int = 10
) -> tuple[Tensor, Tensor]:
    """A statistic of samples and its standard error, from what it becomes without each part of them in turn.

        error^2 = (g - 1) / g  sum_i (value without part i - their mean)^2,      g parts

    Good for whatever changes smoothly with the sample: means, Fréchet distances, neighbours (drawing with replacement,
    as a bootstrap does, would put neighbours at distance 0). It is the scatter that other samples from the same
    sampler would show, against the same real digits. With 10 parts the error itself is known to a quarter; that of
    recall comes out up to twice too large for a hundred samples, and about right for 1,000.

    Args: statistic: `statistic(*columns) -> a number or several`;  columns: tensors (N, ...), a row a sample;
    labels: (N,), dealt out evenly to the parts;  parts: 2..N.
    Returns: the value on all of it, and the standard error of each of its numbers, in float64.
    Raises: ValueError if the columns differ in length, labels are not (N,), or there cannot be so many parts.
    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 11, with parts for points.
    """
    for place, column in enumerate(columns):
        check_shape(f"columns[{place}]", column, labels.shape[:1] + column.shape[1:])
    if not 2 <= parts <= len(labels):
        raise ValueError(f"parts must lie in 2..{len(labels)}, the number of samples, got {parts}")
    part = torch.empty_like(labels)
    part[labels.argsort(stable=True)] = torch.arange(len(labels), device=labels.device) % parts
    kept = [part != i for i in range(parts)]
    whole, *without = (
        torch.as_tensor(statistic(*(column[keep] for column in columns)), dtype=torch.float64)
        for keep in (torch.ones_like(kept[0]), *kept)
    )
    without = torch.stack(without)
    return whole, ((without - without.mean(0)).square().sum(0) * (parts - 1) / parts).sqrt()


def diversity_report(
    judge: nn.Module, images: Tensor, labels: Tensor, real: RealFeatures, k: int = 3, parts: int = 10
) -> dict[str, float]:
    """Precision, recall, Inception Score, class entropy and spread within a class, each with its standard error.

    Some three seconds on one core for 1,000 digits, a minute for 5,000: all their distances are computed for each part.

    Args: images: (N, 1, H, W) in [-1, 1];  labels: (N,), what was asked for;  real: as `load_features` gives them;
    k: as in `precision_recall`;  parts: as in `jackknife`.
    Returns: numbers by name, and their errors as `precision_error`, ...
    Raises: ValueError as these two and `metrics.judged` do.
    """
    check_shape("labels", labels, images.shape[:1])
    features, log_probs = judged(judge, images)
    labels = check_labels(labels, log_probs.shape[1]).cpu()

    check_features(features, real.features)
    check_neighbours(k, features, real.features)
    among = within(features, real.features, k).double()  # once: leaving out a sample does not move the real digits

    def measure(features: Tensor, log_probs: Tensor, labels: Tensor, among: Tensor) -> tuple[float | Tensor, ...]:
        recall = within(real.features, features, k).double().mean()
        answers = inception_score(log_probs), class_entropy(log_probs)
        return among.mean(), recall, *answers, class_spread(features, labels)

    values, errors = jackknife(measure, (features, log_probs, labels, among), labels, parts)
    names = ("precision", "recall", "digit_is", "class_entropy", "class_spread")
    row = {}
    for name, value, error in zip(names, values.tolist(), errors.tolist(), strict=True):
        row |= {name: round(value, 5), f"{name}_error": round(error, 5)}
    return row


def save_features(path, judge: nn.Module, test: Digits, card: dict[str, Any]) -> dict[str, Any]:
    """Ship what `precision_recall` needs to know of real digits: features of 100 of each class, in 8 bits a number.

    Args: test: real digits, at least two of each class; with fewer than 200 of one, half as many as it has are taken
    of each.  Returns: the card as written, in which stands the report on as many others, the row to compare with.
    """
    each = min(EACH, int(test.labels.bincount().min()) // 2)
    chosen = spread_out(test.labels, 2 * each)
    picked, others = chosen[::2], chosen[1::2]
    features, _ = judged(judge, to_unit(test.images[picked]))
    low, high = float(features.min()), float(features.max())
    step = (high - low) / 255
    levels = ((features - low) / step).round().to(torch.uint8)
    card = card | {"images": len(picked), "low": low, "step": step}
    real = RealFeatures(low + step * levels.double(), test.labels[picked])
    card["others"] = diversity_report(judge, to_unit(test.images[others]), test.labels[others], real)
    checkpoints.save_tensors(path, {"levels": levels, "labels": real.labels.to(torch.uint8)}, card)
    checkpoints.write_card(path, card)
    return card


def spread_out(labels: Tensor, each: int) -> Tensor:
    """Indices of so many of each class, evenly over their order: the first half of MNIST's test digits is the cleaner.

    Returns: (classes * each,), class by class.
    """
    places = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    return torch.cat([place[torch.arange(each) * len(place) // each] for place in places])


def load_features(path=None) -> tuple[RealFeatures, dict[str, Any]]:
    """The shipped features of 1,000 MNIST test digits (or those of a file), and their card."""
    tensors, card = checkpoints.load_tensors(path or checkpoints.shipped(FEATURES))
    return RealFeatures(card["low"] + card["step"] * tensors["levels"].double(), tensors["labels"].long()), card
