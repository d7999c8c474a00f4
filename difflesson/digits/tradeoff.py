"""Fidelity against variety along the guidance scale: what a sweep measures."""

import torch
from torch import Tensor

from difflesson.checks import check_shape
from difflesson.digits import diversity
from difflesson.digits.diversity import RealFeatures, check_features, class_spread, inception_score, jackknife, within
from difflesson.digits.metrics import Statistics, frechet_distance, statistics

NAMES = ("accuracy", "precision", "recall", "digit_is", "digit_fid", "mean_part", "spread")
"""What `measures` answers, in this order."""


def measures(
    features: Tensor, log_probs: Tensor, labels: Tensor, real: RealFeatures, reference: Statistics, k: int = 3
) -> tuple[Tensor, Tensor]:
    """The seven numbers called NAMES, of a set of digits, and their standard errors by the jackknife: (7,) and (7,).

    As the functions of `diversity` and `metrics` give them, with each distance computed once: a second for 1,000.

    Args: features: (N, d) and log_probs: (N, classes), of the judge;  labels: (N,), what was asked for;  real: for
    precision and recall;  reference: for the Fréchet distance, of which `mean_part` is the first term.
    Raises: ValueError if labels are not (N,), or as these functions do.
    """
    check_shape("labels", labels, features.shape[:1])
    check_features(features, real.features)
    diversity.check_neighbours(k, features[: 9 * len(features) // 10], real.features)  # the jackknife's fewest
    right, inside = (log_probs.argmax(1) == labels).double(), within(features, real.features, k).double()
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    near, far = (torch.cdist(features, other, **exact) for other in (features, real.features))

    def statistic(rows: Tensor) -> list[float]:
        radii = near[rows][:, rows].kthvalue(k + 1, dim=1).values
        here = statistics(features[rows])
        return [
            float(right[rows].mean()),
            float(inside[rows].mean()),
            float((far[rows] <= radii[:, None]).any(dim=0).double().mean()),
            inception_score(log_probs[rows]),
            frechet_distance(here, reference),
            float((here.mean - reference.mean).square().sum()),
            class_spread(features[rows], labels[rows]),
        ]

    return jackknife(statistic, (torch.arange(len(features)),), labels)
