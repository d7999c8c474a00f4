"""What a chapter costs its reader: seconds on an idle machine, and beside a process that keeps one core busy.

    python benchmarks/chapter_beside_a_busy_core.py 00 07 11 [--threads 2]

A reader's Jupyter does not fix the number of threads, so neither does this: by default PyTorch takes what it finds, and
a chapter that is not to suffer from a browser in the background says so itself. `--threads` sets OMP_NUM_THREADS for
comparison. The cells run one after the other in a fresh process, in an empty folder; figures are drawn and thrown away.
Close what you can before you measure. Nothing is asserted about time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import jupytext

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


@contextmanager
def busy_core(wanted: bool):
    """Keep one core busy inside the `with` block, if wanted."""
    if not wanted:
        yield
        return
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        spinning.kill()
        spinning.wait()


def seconds(source: Path, threads: int | None, beside: bool) -> float:
    """Wall-clock seconds of a chapter's code cells.  Raises: subprocess.CalledProcessError if one of them fails."""
    cells = [cell.source for cell in jupytext.read(source).cells if cell.cell_type == "code"]
    variables = {name: os.environ[name] for name in os.environ if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    variables |= {"MPLBACKEND": "Agg"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    variables["PYTHONPATH"] = os.pathsep.join([str(NOTEBOOKS.parent), variables.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as scratch, busy_core(beside):
        folder = Path(scratch) / "notebooks"  # figures go to ../figures
        folder.mkdir()
        script = folder / "chapter.ipy"
        script.write_text("\n\n".join(cells), encoding="utf-8")
        start = time.perf_counter()
        command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=nocolor", script.name]
        subprocess.run(command, cwd=folder, env=variables, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="+", help="how their names start: 00 07")
    parser.add_argument("--threads", type=int, help="by default what PyTorch takes")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, {args.threads or 'default'} threads")
    print(f"{'chapter':36}{'idle, s':>10}{'busy, s':>10}{'times':>8}")
    for start in args.chapters:
        for source in sorted(NOTEBOOKS.glob(f"{start}*.py")):
            idle, busy = (seconds(source, args.threads, beside) for beside in (False, True))
            print(f"{source.stem:36}{idle:10.1f}{busy:10.1f}{busy / idle:8.1f}", flush=True)


if __name__ == "__main__":
    main()
