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
