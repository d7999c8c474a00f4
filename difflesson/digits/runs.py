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


def pooled(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> dict[tuple, dict[str, Any]]:
    """Rows that differ in their seed alone as one: means of all numbers, `count` added up; `..._error` of independent
    rows of one size add in squares.

    Args: keys: what names a setting.  Returns: by the values of these keys, in the order of the rows.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return {setting: _mean(group, keys) for setting, group in groups.items()}


def _mean(group: list[dict[str, Any]], keys: tuple[str, ...]) -> dict[str, Any]:
    mean = {key: group[0][key] for key in keys} | {"count": sum(row["count"] for row in group)}
    for name in group[0].keys() - {*mean, "seed"}:
        values = [row[name] for row in group]
        total = sum(value**2 for value in values) ** 0.5 if name.endswith("_error") else sum(values)
        mean[name] = total / len(group)
    return mean
