"""Teeth of the page: plant a wrong formula, run the chapter's own cells, and see one of their assertions fail.

    python -m tools.cell_mutants               of each equation in each chapter, the mutants with `cells = true`
    python -m tools.cell_mutants --fast        of each chapter the first equation whose such mutant is fast
    python -m tools.cell_mutants -k shift      those with "shift" in the equation's label
    python -m tools.cell_mutants --all         every mutant of each equation: shows which may be marked

A test is one thing, what the reader sees is another: `assert True` or a comparison of a thing with itself leaves every
test green. So each equation needs a mutant that an assertion of its own cells notices, run after nothing but the
statements that they need (tools/cell_slices.py). Without it the same statements must pass; with --fast that is left to
the notebooks' own run.
"""

import ast
import contextlib
import importlib
import os
import sys
import tempfile
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import typer

from tools.cell_slices import Statement, code_cells, equation_slice
from tools.equation_labels import MUTANTS, shown
from tools.mutant_files import Mutant, load
from tools.mutants import ROOT, Outcome, broken, clean_copy, enter, run_all

PRELOADED = ("matplotlib.pyplot", "numpy", "torch.func")  # before forking


@dataclass(frozen=True)
class CellJob:
    """The cells of an equation, to be run in a folder: a copy with the mutant in it, or without one the clean copy."""

    folder: Path
    chapter: str  # notebooks/07_mean_shift.py
    label: str
    mutant: Mutant | None = None


def run_cells(job: CellJob, clean: Path, sender: Connection) -> None:
    """In a process of its own: run the equation's slice and send what failed, at which line and how."""
    enter(job, clean)
    outcome = Outcome(status=0)
    try:
        page = equation_slice(code_cells(Path(job.chapter).read_text(encoding="utf-8")), job.label)
    except ValueError as error:
        outcome.status, outcome.output = 1, str(error)
    else:
        execute(page, job, outcome, {})
    outcome.package = getattr(sys.modules.get("difflesson"), "__file__", "") or ""
    sender.send(outcome)


def execute(page: list[Statement], job: CellJob, outcome: Outcome, namespace: dict) -> None:
    """Run statements one by one, without output; write into `outcome` what failed."""
    os.environ["MPLBACKEND"] = "agg"
    file = str(job.folder / job.chapter)
    namespace |= {"__name__": Path(job.chapter).stem}
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        for each in page:
            if each.cell and hasattr(namespace.get("plotting"), "show"):
                namespace["plotting"].show = lambda *arguments, **options: None
            try:
                exec(compile(ast.Module([each.node], []), file, "exec"), namespace)
            except BaseException as error:  # whatever the mutant makes of it, an exit too
                lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
                where = f"{job.chapter}:{lines[0] if lines else 0}"
                how = broken(error) or type(error).__name__
                outcome.status = 1
                outcome.failures.append((where, "call" if each.own else "setup", how))
                outcome.output = f"{type(error).__name__} at {where}: {error}"[:600]
                return


def judge(job: CellJob, outcome: Outcome) -> str:
    """The line of the assertion that noticed the mutant.  Raises: ValueError that says why none properly did."""
    if outcome.package and not Path(outcome.package).is_relative_to(job.folder):
        raise ValueError(f"not judged, the cells imported {outcome.package}")
    if outcome.status == 0:
        raise ValueError(
            f"SURVIVED, no assertion in the cells below the equation noticed it. The mistake: {job.mutant.why}\n"
            f"{job.mutant.diff()}\nCompare with what is written out by hand, within a real tolerance."
        )
    if not outcome.failures:
        raise ValueError(f"no proper kill, the process died or took too long {outcome.output}")
    where, phase, error = outcome.failures[0]
    if phase != "call" or error != "AssertionError":
        raise ValueError(f"no proper kill, {error} at {where}, where an assertion should fail\n{outcome.output}")
    return where


def equations(root: Path) -> list[tuple[str, str]]:
    """Each numbered equation on a page: the chapter's path and the label."""
    return [(chapter.path, equation.label) for chapter in shown(root / "notebooks") for equation in chapter.equations]


def wanted(root: Path, pages: list[tuple[str, str]], every: bool = False) -> list[CellJob]:
    """For each equation on a page its mutants that are marked, or all; a mistake in one chapter's own cell says nothing
    about another chapter."""
    mutants = [mutant for mutant in load(root / MUTANTS) if mutant.cells or every]
    return [
        CellJob(root, chapter, label, mutant)
        for chapter, label in pages
        for mutant in mutants
        if mutant.equation == label and mutant.path.startswith(("difflesson/", chapter))
    ]


def unmarked(root: Path) -> list[str]:
    """One sentence for each equation on a page for whose cells no mutant is marked."""
    pages = equations(root)
    marked = {(job.chapter, job.label) for job in wanted(root, pages)}
    return [
        f"{chapter}: {label} has no mutant with `cells = true` in {MUTANTS}: name the wrong formula that the cells "
        f"below it notice (python -m tools.cell_mutants --all -k {label})"
        for chapter, label in pages
        if (chapter, label) not in marked
    ]


def first_fast(jobs: list[CellJob]) -> list[CellJob]:
    """Of each chapter the first one whose mutant is fast."""
    fast = [job for job in jobs if job.mutant.fast]
    return [job for k, job in enumerate(fast) if job.chapter not in [other.chapter for other in fast[:k]]]


def plant_all(jobs: list[CellJob], root: Path, workers: int, clean_too: bool = True) -> dict[CellJob, str]:
    """Run the clean cells, then each job; print a line for each. Returns those that were not noticed, and why.

    Args: clean_too: false leaves the clean cells out.
    """
    problems = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        clean = clean_copy(root, Path(scratch).resolve() / "clean")
        pages = dict.fromkeys((job.chapter, job.label) for job in jobs if clean_too)
        broken = {}
        for job, outcome in run_all([CellJob(clean, *page) for page in pages], clean, workers, run_cells):
            if outcome.status != 0:
                broken[job.chapter, job.label] = f"not judged, its cells fail without a mutant: {outcome.output}"
        print(f"{'chapter':8} {'equation':24} {'mutant':40} {'noticed at':40} seconds")
        planted = []
        for number, job in enumerate(jobs):
            if problem := broken.get((job.chapter, job.label)):
                problems[job] = problem
            else:
                planted.append(CellJob(clean.with_name(f"{number}"), job.chapter, job.label, job.mutant))
        for job, outcome in run_all(planted, clean, workers, run_cells):
            try:
                text = judge(job, outcome)
            except ValueError as error:
                problems[job], text = str(error), "NOT NOTICED, see below"
            row = f"{Path(job.chapter).name[:2]:8} {job.label:24} {job.mutant.name:40} {text:40} {outcome.took:7.1f}"
            print(row, flush=True)
    return problems


def preload(modules: tuple[str, ...]) -> None:
    for module in modules:
        importlib.import_module(module)


def main(
    fast: Annotated[bool, typer.Option("--fast", help="Only the first fast one of each chapter.")] = False,
    name: Annotated[str, typer.Option("-k", help="Only equations with this in their label.")] = "",
    every: Annotated[bool, typer.Option("--all", help="All mutants, marked or not; nothing is required.")] = False,
    workers: Annotated[int, typer.Option(help="How many at a time.")] = 2,
    root: Annotated[Path, typer.Option(help="The repository.")] = ROOT,
) -> None:
    """Plant wrong formulas and see the chapters' own cells fail; exit status 1 if one does not."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        pages = [(chapter, label) for chapter, label in equations(root) if name in label]
        jobs = wanted(root, pages, every)
        if name and not jobs:
            raise ValueError(f"no equation with {name!r} in its label has a mutant for its cells")
        missing = [] if every or fast or name else unmarked(root)
    except ValueError as error:
        sys.exit(f"cell_mutants: {error}")
    preload(PRELOADED)
    jobs = first_fast(jobs) if fast else jobs
    problems = plant_all(jobs, root.resolve(), workers, clean_too=not fast)
    for job, problem in problems.items():
        print(f"\n{job.chapter}, {job.label}, {job.mutant.name}: {problem}", file=sys.stderr)
    for sentence in missing:
        print(sentence, file=sys.stderr)
    for chapter in dict.fromkeys(job.chapter for job in jobs):
        of_chapter = [job for job in jobs if job.chapter == chapter]
        labels = {job.label for job in of_chapter}
        noticed = labels - {job.label for job in problems if job.chapter == chapter}
        print(f"{chapter}: {len(noticed)} of {len(labels)} equations, all of their mutants noticed by the cells")
    if (problems and not every) or missing:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
