"""Make the chapters: NN_slug.py is the source, NN_slug.ipynb is built from it and executed. One way only.

    python -m tools.notebooks build           execute the chapters that changed, or whose part of the package did; write
                                              their .ipynb and their figures
    python -m tools.notebooks build 00 07     only these (a chapter is named by how its name starts)
    python -m tools.notebooks build --all     execute every chapter, changed or not
    python -m tools.notebooks check           report pairs and chapters that are not in order; exit status 1 if any
    python -m tools.notebooks minutes         print what each layer of the chapters holds, and how long it takes to read
    python -m tools.notebooks run 00          execute a chapter and write nothing

What can be wrong with a pair is in tools/pairs.py, what a chapter must have in tools/chapter_parts.py, what its cells
may not assert in tools/cell_lints.py, what proves its sentences in tools/claims.py, what its place in the repository
asks in tools/house_rules.py.

Two builds of one source give the same bytes: cell ids come from the cells, execution leaves no times, paths
or widget state, and the kernel starts from a fixed environment with one thread.
"""

import sys
import time
from pathlib import Path
from typing import Annotated

import nbformat
import typer
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from tools import cell_lints, claims, house_rules, prose_numbers, reading_time, readme
from tools.chapter_parts import missing_parts
from tools.execution import cpu_of_children, execute
from tools.exercise_cells import SourceError
from tools.figures import write_figures
from tools.house_rules import todos
from tools.pairs import NOTEBOOKS, Names, cells_of, chapters, notebook_of, problems

CELL_TIMEOUT = 120  # seconds; pyproject.toml gives the tests the same, so what was built can also be tested
CPU_LIMIT = 45  # seconds of a processor that executing a chapter may take


def execute_chapter(source: Path, write: bool) -> list[str]:
    """Execute one chapter. Returns what is wrong; a chapter that fails leaves its old notebook as it was."""
    start, spent = time.perf_counter(), cpu_of_children()
    try:
        notebook = execute(notebook_of(source), source.parent, source.stem, CELL_TIMEOUT)
    except (SourceError, CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return [str(error)]
    took, spent = time.perf_counter() - start, cpu_of_children() - spent
    print(f"{source.stem}: executed in {took:.1f} s, {spent:.1f} s of a processor", flush=True)
    if not write:
        return []
    text = nbformat.writes(notebook) + "\n"
    source.with_suffix(".ipynb").write_text(text, encoding="utf-8", newline="\n")
    write_figures(notebook, source.parent.parent / "figures")
    found = problems(source)
    if spent > CPU_LIMIT:  # whoever only runs it may have a slow machine
        found.append(f"takes {spent:.0f} s of a processor; {CPU_LIMIT} s is the most for a chapter, on an idle machine")
    return found


def build(names: list[str], folder: Path, force: bool = False) -> dict[str, list[str]]:
    """Execute the chapters that are not in order; all with `force`. Returns the problems left, by chapter."""
    remaining = {}
    for source in chapters(names, folder):
        if force or problems(source):
            remaining[source.stem] = execute_chapter(source, write=True)
        else:
            print(f"{source.stem}: up to date", flush=True)
    return {name: found for name, found in remaining.items() if found}


def check(folder: Path) -> dict[str, list[str]]:
    """The problems of every pair, by chapter; a notebook without a source is one."""
    found = {source.stem: problems(source) for source in chapters([], folder)}
    for notebook in sorted(folder.glob("*.ipynb")):
        found.setdefault(notebook.stem, ["has no source of that name"])
    return {name: messages for name, messages in found.items() if messages}


def unfinished(folder: Path) -> dict[str, list[str]]:
    """Parts that chapters lack, claims that nothing proves, numbers in prose that come from nowhere, and what is still
    to do in their files, by chapter."""
    missing = {
        source.stem: missing_parts(cells_of(source))
        + claims.problems(source)
        + prose_numbers.problems(source)
        + todos(source)
        for source in chapters([], folder)
    }
    return {name: messages for name, messages in missing.items() if messages}


def report(found: dict[str, list[str]]) -> None:
    for name, messages in found.items():
        for message in messages:
            print(f"{name}: {message}", file=sys.stderr)
    if found:
        raise typer.Exit(1)


app = typer.Typer(add_completion=False, no_args_is_help=True)
All = Annotated[bool, typer.Option("--all", help="Execute also what has not changed.")]


@app.command("build")
def build_command(names: Names = None, force: All = False) -> None:
    """Execute the chapters that changed and write their notebooks."""
    report(build(names or [], NOTEBOOKS, force))


@app.command("check")
def check_command() -> None:
    """Report notebooks that are not what their source and the package give, chapters with parts missing, minutes that
    are not honest, claims that nothing proves, numbers from nowhere or assertions that cannot fail, and what README,
    bibliography and figures lack; then exit status 1."""
    drifted, missing, root = check(NOTEBOOKS), unfinished(NOTEBOOKS), NOTEBOOKS.parent
    around = house_rules.problems(root) + cell_lints.problems(root) + readme.problems(root)
    by_chapter = {name: drifted.get(name, []) + missing.get(name, []) for name in sorted(drifted | missing)}
    report(by_chapter | ({"repository": around} if around else {}))
    print(f"notebooks in order: {len(chapters([], NOTEBOOKS))}")


@app.command("minutes")
def minutes_command(names: Names = None) -> None:
    """Print words, lines and equations of each layer, the minutes they take, and the minutes stated."""
    print(reading_time.table({source.stem: cells_of(source) for source in chapters(names or [], NOTEBOOKS)}))


@app.command("run")
def run_command(names: Names = None) -> None:
    """Execute chapters and write nothing."""
    selected = chapters(names or [], NOTEBOOKS)
    report({source.stem: found for source in selected if (found := execute_chapter(source, write=False))})


if __name__ == "__main__":
    app()
