"""Teeth: plant each wrong formula of tests/mutants/ in a copy of the course, and see its equation's tests fail.

    python -m tools.mutants               every wrong formula
    python -m tools.mutants --fast        what `make test` plants: the first few fast ones of each file
    python -m tools.mutants -k shift      those with "shift" in their name
    python -m tools.mutants --list        print them, plant nothing

Each mutant gets a copy of its own, in which the tests that are marked with its equation run until one fails; that one
must pass without the mutant. A mutant that no test notices is an error here, and so is one that fits its file no more
or fails otherwise than by a wrong result. Most of the time would go into importing torch, so this process imports it
once and, on Linux, forks.
"""

import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Annotated

import typer

from tools.equation_labels import MUTANTS, Ledger, read
from tools.mutant_files import Mutant, few, load

ROOT = Path(__file__).resolve().parent.parent

COPIED = ("difflesson", "tests", "tools", "notebooks", "pyproject.toml")
PEERS = "tests/peers/"  # they import large libraries, and our own tests must do
HEAVY = ("hypothesis", "numpy", "pytest", "scipy.integrate", "scipy.stats", "torch.func")  # imported before forking
LOG = "pytest.txt"  # in each copy, what pytest printed
TIME_LIMIT = 120  # seconds for the tests of one mutant
BROKEN_CODE = ("AttributeError", "ImportError", "ModuleNotFoundError", "NameError", "SyntaxError", "TypeError")
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


@dataclass(frozen=True)
class Job:
    """Some tests to run in a folder, which is a copy with the mutant in it; without one it is the clean copy."""

    folder: Path
    node_ids: list[str]
    mutant: Mutant | None = None


@dataclass
class Outcome:
    """What a run of pytest came to."""

    status: int = -1  # pytest's exit status; -1 if it died or took too long
    package: str = ""  # the file that `import difflesson` gave the tests
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # node id, phase, exception
    took: float = 0.0  # seconds, all of it
    output: str = ""


# --- in the child process -----------------------------------------------------------------------------------


class Recorder:
    """A plugin of pytest: what failed, and how."""

    def __init__(self, outcome: Outcome):
        self.outcome = outcome

    def pytest_exception_interact(self, node, call, report):
        how = broken(call.excinfo.value) or call.excinfo.typename
        self.outcome.failures.append((node.nodeid, getattr(report, "when", "collection"), how))


def broken(error: BaseException | None) -> str:
    """The error of broken code that `error` is, comes from, holds or reports in its text; empty if it is none of these.

    So a TypeError is no wrong result, nor is an assertion about a process or a reader's function that raised one.
    """
    if error is None:
        return ""
    own = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in BROKEN_CODE), "")
    told = re.search(rf"\b({'|'.join(BROKEN_CODE)}): ", str(error))
    from_others = [error.__cause__, None if error.__suppress_context__ else error.__context__]
    from_others += getattr(error, "exceptions", ())  # of a group
    return own or (told[1] if told else "") or next(filter(None, map(broken, from_others)), "")


def enter(job, clean: Path) -> None:
    """Go into the job's folder and import from there: the clean copy, or a copy of that with the mutant in it."""
    if job.mutant is not None:
        shutil.copytree(clean, job.folder)
        target = job.folder / job.mutant.path
        target.write_text(job.mutant.plant(target.read_text(encoding="utf-8")), encoding="utf-8")
        Path(importlib.util.cache_from_source(str(target))).unlink(missing_ok=True)  # that of the right formula
    os.chdir(job.folder)
    os.environ["PYTHONPATH"] = str(job.folder)
    sys.path.insert(0, str(job.folder))


def run_tests(job: Job, clean: Path, sender: Connection) -> None:
    """Run pytest in the clean copy, or with a mutant in a copy of that, and send the outcome."""
    import pytest

    enter(job, clean)
    options = ["-q", "-p", "no:cacheprovider", "--no-header", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    outcome = Outcome()
    with open(LOG, "w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        stop = [] if job.mutant is None else ["-x"]
        outcome.status = int(pytest.main([*options, *stop, *job.node_ids], plugins=[Recorder(outcome)]))
        sys.stdout.flush()
    outcome.package = getattr(sys.modules.get("difflesson"), "__file__", "") or ""
    sender.send(outcome)


# --- in this process ----------------------------------------------------------------------------------------


def run_all(jobs: list, clean: Path, workers: int, run=run_tests) -> Iterator[tuple[Job, Outcome]]:
    """Run the jobs, `workers` at a time, each in a process of its own, and yield each with its outcome when it is done.

    Args: jobs: with a `folder` and a `mutant`;  run: (job, clean, sender), called in the process.
    """
    waiting, running = list(jobs), {}
    while waiting or running:
        while waiting and len(running) < workers:
            receiver, sender = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(target=run, args=(waiting[0], clean, sender))
            process.start()
            sender.close()
            running[receiver] = (waiting.pop(0), process, time.perf_counter())
        ready = wait(list(running), timeout=1)
        for receiver, (job, process, start) in list(running.items()):
            outcome, took = Outcome(), time.perf_counter() - start
            if receiver in ready:
                with contextlib.suppress(EOFError):  # the process died
                    outcome = receiver.recv()
            elif took > TIME_LIMIT:
                process.kill()
            else:
                continue
            del running[receiver]
            process.join()
            outcome.took = took
            with contextlib.suppress(OSError):
                outcome.output = (job.folder / LOG).read_text(encoding="utf-8", errors="replace")[-3000:]
            yield job, outcome
            if job.mutant is not None:
                shutil.rmtree(job.folder, ignore_errors=True)


def judge(job: Job, outcome: Outcome) -> str:
    """The node id of the test that noticed the mutant.  Raises: ValueError that says why none properly did."""
    if outcome.package and not Path(outcome.package).is_relative_to(job.folder):
        raise ValueError(f"not judged, the tests imported {outcome.package}")
    if outcome.status == 0:
        raise ValueError(f"SURVIVED, no test noticed it. The mistake: {job.mutant.why}\n{job.mutant.diff()}")
    if outcome.status != 1 or not outcome.failures:
        raise ValueError(f"no proper kill, pytest ended with status {outcome.status}\n{outcome.output}")
    node_id, phase, error = outcome.failures[0]
    if phase != "call" or error in BROKEN_CODE:
        raise ValueError(f"no proper kill, {error} in the {phase} of {node_id}; plant a wrong formula, not broken code")
    return node_id


def marked_tests(mutant: Mutant, ledger: Ledger) -> list[str]:
    """The node ids to run: the tests marked with its equation, and those it names itself."""
    places = [place for place in ledger.tested.get(mutant.equation, []) if not place.path.startswith(PEERS)]
    places.sort(key=lambda place: "test_chapter_" in place.path)  # last: some of them train a network
    return [*(f"{place.path}::{place.name.replace('.', '::')}" for place in places), *mutant.tests]


def clean_copy(root: Path, folder: Path) -> Path:
    """What the tests need of the repository, in `folder`."""
    folder.mkdir()
    for path in (root / name for name in COPIED if (root / name).exists()):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
        else:
            shutil.copy2(path, folder)
    return folder


def plant_all(mutants: list[Mutant], root: Path, ledger: Ledger, workers: int) -> dict[Mutant, str]:
    """Plant each mutant and print a line when its tests end. Returns those that were not killed, and why."""
    problems, killers, tests = {}, {}, {}
    for mutant in mutants:
        try:
            mutant.plant((root / mutant.path).read_text(encoding="utf-8"))
            tests[mutant] = marked_tests(mutant, ledger)
            if not tests[mutant]:
                problems[mutant] = "no test is marked with its equation"
        except (OSError, ValueError) as error:
            problems[mutant] = str(error)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        clean = clean_copy(root, Path(scratch).resolve() / "clean")
        print(f"{'mutant':40} {'equation':24} {'killed by':64} seconds")
        jobs = [
            Job(clean.with_name(f"{mutant.name} {mutant.equation}"), ids, mutant)
            for mutant, ids in tests.items()
            if mutant not in problems
        ]
        for job, outcome in run_all(jobs, clean, workers):
            try:
                killers[job.mutant] = judge(job, outcome)
                text = killers[job.mutant].split("::", 1)[1]
            except ValueError as error:
                problems[job.mutant], text = str(error), "NOT KILLED, see below"
            print(f"{job.mutant.name:40} {job.mutant.equation:24} {text[:64]:64} {outcome.took:7.1f}", flush=True)

        by_file = {}
        for killer in dict.fromkeys(killers.values()):
            by_file.setdefault(killer.split("::")[0], []).append(killer)
        for job, outcome in run_all([Job(clean, ids) for ids in by_file.values()], clean, workers):
            red = {node_id for node_id, _, _ in outcome.failures}
            if outcome.status not in (0, 1):  # they did not even run
                red |= set(job.node_ids)
            for mutant, killer in killers.items():
                if killer in red:
                    problems[mutant] = f"not judged, {killer} also fails without it\n{outcome.output}"
    return problems


def print_counts(mutants: list[Mutant], problems: dict[Mutant, str], ledger: Ledger) -> None:
    """How many were planted and killed for the equations of each chapter, and in all."""
    standing = {chapter.number: {equation.label for equation in chapter.equations} for chapter in ledger.chapters}
    for label, number in ledger.planned.items():
        standing.setdefault(f"{number}, planned", set()).add(label)
    alive = {mutant.name for mutant in problems}
    for number, labels in sorted(standing.items()):
        planted = {mutant.name for mutant in mutants if mutant.equation in labels}
        if planted:
            print(f"chapter {number}: {len(planted)} planted, {len(planted - alive)} killed")
    planted = {mutant.name for mutant in mutants}
    print(f"{len(planted)} planted, {len(planted - alive)} killed")


def main(
    fast: Annotated[bool, typer.Option("--fast", help="Only those that `make test` plants as well.")] = False,
    name: Annotated[str, typer.Option("-k", help="Only those with this in their name.")] = "",
    listing: Annotated[bool, typer.Option("--list", help="Print them, plant nothing.")] = False,
    workers: Annotated[int, typer.Option(help="How many at a time.")] = 2,
    root: Annotated[Path, typer.Option(help="The repository.")] = ROOT,
) -> None:
    """Plant wrong formulas one by one and see the tests of their equations fail; exit status 1 if one does not."""
    try:
        mutants = [mutant for mutant in load(root / MUTANTS) if name in mutant.name]
        if name and not mutants:
            raise ValueError(f"no name has {name!r} in it; --list prints them")
        mutants = [mutant for mutant in mutants if not fast or mutant.name in few(root / MUTANTS)]
    except ValueError as error:
        sys.exit(f"mutants: {error}")
    if listing:
        for mutant in mutants:
            print(f"{mutant.name:40} {mutant.equation:24} {mutant.why}")
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for variable in [name for name in os.environ if name.startswith("PYTEST_")]:  # of a run that started this one
        del os.environ[variable]
    for module in HEAVY:
        importlib.import_module(module)
    ledger = read(root)
    problems = plant_all(mutants, root.resolve(), ledger, workers)
    for mutant, problem in problems.items():
        print(f"\n{mutant.name}, {mutant.equation}: {problem}", file=sys.stderr)
    print_counts(mutants, problems, ledger)
    if problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
