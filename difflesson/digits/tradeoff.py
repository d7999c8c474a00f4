"""Fidelity against variety along the guidance scale: the sweep that ships, and guidance for part of the way."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflesson.checks import check_shape
from difflesson.digits.diversity import RealFeatures, check_features, class_spread, inception_score, jackknife, within
from difflesson.digits.metrics import Statistics, frechet_distance, statistics
from difflesson.parts import Part
from difflesson.schedule import Schedule

NAMES = ("accuracy", "precision", "recall", "digit_is", "digit_fid", "mean_part", "spread")
"""What `measures` answers, in this order."""


@dataclass(frozen=True, eq=False)
class interval(Part):
    """The guidance scale as a function of time: `gamma` where the log-SNR lies from `low` to `high`, else 1.

        gamma(t) = gamma  if  low <= log_snr(t) <= high,  else 1      [eq-interval-guidance]

    Where it is 1, `classifier_free` asks the network once and not twice.
    Raises: ValueError unless low < high.  Source: Kynkäänniemi et al. 2024 (arXiv 2404.07724).
    """

    gamma: float
    schedule: Schedule
    low: float
    high: float

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")

    def __call__(self, t: Tensor) -> float:
        return self.gamma if self.low <= float(self.schedule.log_snr(t)) <= self.high else 1.0


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


def load_rows(path: Path | str = "guidance") -> list[dict[str, Any]]:
    """The rows of a sweep: settings, `count` digits, numbers as in NAMES and their errors, `accuracy_error`, ...

    Args: path: a file that a sweep has written, or the name of a shipped one: "guidance", of
    `benchmarks/digits_guidance.py`, or "classifier", of `benchmarks/digits_classifier.py`, which has further numbers.
    """
    shipped = Path(str(resources.files("difflesson.digits"))) / "logs" / f"{path}.json"
    return json.loads((Path(path) if Path(path).suffix else shipped).read_text(encoding="utf-8"))["rows"]


def pick(rows: list[dict[str, Any]], **settings) -> list[dict[str, Any]]:
    """The rows with these settings, those that differ in their seed alone averaged, in the order of the file.

    What was measured has an error beside it. Errors of independent rows add in squares.
    Raises: ValueError if there is none.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if all(row[name] == value for name, value in settings.items()):
            measured = {"seed", "count", *(error for name in with_error(row) for error in (name, f"{name}_error"))}
            key = json.dumps({name: value for name, value in row.items() if name not in measured})
            groups.setdefault(key, []).append(row)
    if not groups:
        raise ValueError(f"no row has the settings {settings}")
    return [_average(group) for group in groups.values()]


def with_error(row: dict[str, Any]) -> list[str]:
    """The names of the numbers of a row that have a standard error."""
    return [name for name in row if f"{name}_error" in row]


def _average(group: list[dict[str, Any]]) -> dict[str, Any]:
    mean = dict(group[0]) | {"count": sum(row["count"] for row in group)}
    for name in with_error(mean):
        mean[name] = sum(row[name] for row in group) / len(group)
        mean[f"{name}_error"] = sum(row[f"{name}_error"] ** 2 for row in group) ** 0.5 / len(group)
    return mean
