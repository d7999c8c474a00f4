"""What these tests share: a training run of a second, and a disk that is full."""

from contextlib import contextmanager
from pathlib import Path

import accelerate.utils  # noqa: F401  seconds to import, which no test should be charged with
import matplotlib
import pytest
import sklearn.datasets  # noqa: F401

from difflesson.digits import recipes, training

matplotlib.use("Agg")


@pytest.fixture(scope="session")
def tiny():
    """A recipe of eight steps on the embedded digits: `tiny("judge", seed=1)`."""

    def made(task: str = "denoiser", **changes) -> recipes.Recipe:
        base = {"data": "embedded", "steps": 8, "batch": 16, "warmup": 2}
        return recipes.recipe(task, **base | {"arguments": (("widths", (8, 16)), ("embedding", 16))} | changes)

    return made


@pytest.fixture(scope="session")
def run():
    """Train quietly on the CPU: `run(folder, recipe)`."""

    def train(folder: Path, made: recipes.Recipe, **options) -> Path:
        return training.train(made, folder, device="cpu", precision="no", **{"progress": False} | options)

    return train


@pytest.fixture
def full_disk():
    """No file gets larger than this many bytes: with `full_disk(1000)`, as on a disk that is full, with its error."""
    resource = pytest.importorskip("resource", reason="there are no limits on the size of files here")

    @contextmanager
    def limit(size: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
