"""What these tests share: the command line run in this process, a training run of a second, and a disk that is full."""

import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import accelerate.utils  # noqa: F401  seconds to import, which no test should be charged with
import matplotlib
import pytest
import sklearn.datasets  # noqa: F401

from difflesson import cli
from difflesson.digits import recipes, training

matplotlib.use("Agg")


@pytest.fixture
def difflesson(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder, on the CPU: `difflesson("sample", "--label", 7)`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["difflesson", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=stop.value.code or 0, out=out, err=err)

    return run


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
