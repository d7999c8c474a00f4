"""What was written down of training runs: losses on the way, and test losses over noise levels, in `logs/*.json`."""

import json
from importlib import resources
from pathlib import Path
from typing import Any


def folder() -> Path:
    """Where the logs lie; `benchmarks/training_runs.py` writes them and says what they hold."""
    return Path(str(resources.files("difflesson.digits"))) / "logs"


def log(name: str) -> dict[str, Any]:
    """The log of a network or of a run; each measurement stands beside the command that repeats it.

    Raises: ValueError naming the ones there are.
    """
    path = folder() / f"{name}.json"
    if not path.exists():
        raise ValueError(f"name must be one of {sorted(p.stem for p in folder().glob('*.json'))}, got {name!r}")
    return json.loads(path.read_text(encoding="utf-8"))


SETTINGS = (
    "part", "way", "method", "network", "gamma", "log_snr", "sampler", "steps", "low", "high", "radius", "kappa",
    "noise", "early", "unlabelled",
)  # fmt: skip
"""What a row of a sweep may say of how its digits were drawn, beside the seed; all else in it was measured."""


def rows(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a sweep: settings, seed, `count` digits, and what was measured, much of it with an `..._error`.

    Args: path: a file that a sweep has written, or the name of a shipped log: "guidance", "classifier", "words" or
    "practice", of `benchmarks/digits_guidance.py`, `digits_classifier.py`, `digits_words.py`, `digits_practice.py`.
    """
    found = json.loads(Path(path).read_text(encoding="utf-8")) if Path(path).suffix else log(str(path))
    return found["rows"]


def pick(rows: list[dict[str, Any]], **settings) -> list[dict[str, Any]]:
    """The rows with these settings, those that differ in their seed alone averaged, in the order of the file.

    `count` is added up; the `..._error` of independent rows of one size add in squares.
    Raises: ValueError if no row has the settings.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        if all(row.get(name) == value for name, value in settings.items()):
            groups.setdefault(tuple(row.get(name) for name in SETTINGS), []).append(row)
    if not groups:
        raise ValueError(f"no row has the settings {settings}")
    return [_average(group) for group in groups.values()]


def _average(group: list[dict[str, Any]]) -> dict[str, Any]:
    mean = dict(group[0]) | {"count": sum(row["count"] for row in group)}
    for name in group[0].keys() - {"seed", "count", *SETTINGS}:
        values = [row[name] for row in group]
        total = sum(value**2 for value in values) ** 0.5 if name.endswith("_error") else sum(values)
        mean[name] = total / len(group)
    return mean
