"""How long a chapter takes a reader whose machine does something else as well: seconds idle, and beside busy cores.

    python benchmarks/chapter_beside_a_busy_core.py 07 [11 ...] [--busy 1] [--repeats 1]

The cells of the committed notebook run in a kernel as JupyterLab starts it, with as many threads as torch takes by
default. The busy cores are held by processes of this script. Nothing is asserted about time, and nothing is written.
"""

import argparse
import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_NUM_THREADS")  # a reader has none of them set


def spin() -> None:
    while True:
        pass


@contextlib.contextmanager
def busy_cores(count: int) -> Iterator[None]:
    processes = [multiprocessing.Process(target=spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def seconds(path: Path) -> float:
    """Wall time of all cells, the start of the kernel included."""
    notebook = nbformat.read(path, as_version=4)
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    options = {"timeout": 1800, "extra_arguments": ["--log-level=ERROR"]}
    client = NotebookClient(notebook, resources={"metadata": {"path": str(path.parent)}}, **options)
    start = time.perf_counter()
    client.execute(env=environment)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="+", help="how their names start: 07")
    parser.add_argument("--busy", type=int, default=1, help="cores to hold; default 1")
    parser.add_argument("--repeats", type=int, default=1, help="the fastest of so many runs counts")
    args = parser.parse_args()
    paths = [path for name in args.chapters for path in sorted(NOTEBOOKS.glob(f"{name}*.ipynb"))]
    if not paths:
        parser.error(f"no notebook in {NOTEBOOKS} starts with {' or '.join(args.chapters)}")

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{os.cpu_count()} cores, load {load:.1f} before the start (above 0.5, the idle column is not idle)\n")
    print(f"{'chapter':34}{'idle, s':>9}{f'{args.busy} busy, s':>11}{'ratio':>7}")
    for path in paths:
        idle = min(seconds(path) for _ in range(args.repeats))
        with busy_cores(args.busy):
            beside = min(seconds(path) for _ in range(args.repeats))
        print(f"{path.stem:34}{idle:9.1f}{beside:11.1f}{beside / idle:7.2f}", flush=True)


if __name__ == "__main__":
    main()
