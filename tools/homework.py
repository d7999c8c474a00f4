"""Hand chapters out without their solutions, and mark what comes back.

    python -m tools.homework handout 11 17            the chapters without solutions, into the folder `handout`
    python -m tools.homework mark FOLDER              each notebook in FOLDER: what was solved, and what was said
    python -m tools.homework mark FOLDER --csv FILE   the same as a table, a line a notebook

Marking asks the checkers that the reader asks (`exercises.check`), on their cases. It runs what stands between an
exercise's heading and its check, after the chapter's imports, and nothing else of the notebook: so an answer must not
lean on other cells. It runs *other people's code* with your rights, each notebook in a process of its own with a time
limit; take a container or a second account for people you do not know.
"""

import ast
import contextlib
import csv
import io
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import nbformat
import typer

from difflesson import exercises
from tools.exercise_cells import CHECK
from tools.pairs import NOTEBOOKS, chapters

SOLUTION = "<details><summary>Solution of "
HEADING = re.compile(r"^#{2,3} ", re.MULTILINE)
RUN = "import sys; from tools.homework import write_verdicts; write_verdicts(*sys.argv[1:])"
app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0])


def without_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as a student gets it: text, hints and checks, no solution."""
    notebook.cells = [cell for cell in notebook.cells if not cell.source.lstrip().startswith(SOLUTION)]
    return notebook


def answers(notebook: nbformat.NotebookNode) -> list[tuple[str, str, list[str]]]:
    """Number, name of the function, and the code between heading and check, for each exercise of a notebook."""
    found, code = [], []
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and HEADING.search(cell.source):
            code = []
        elif cell.cell_type == "code" and (check := CHECK.search(cell.source)):
            found.append((*check.groups(), code))
            code = []
        elif cell.cell_type == "code":
            code.append(cell.source)
    return found


def imports(number: str) -> str:
    """What an exercise's chapter imports, as Python."""
    (path,) = NOTEBOOKS.glob(f"{int(number.split('.')[0]):02d}_*.py")  # a comment is what is not Python in it
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return "\n".join(ast.unparse(line) for line in body if isinstance(line, ast.Import | ast.ImportFrom))


def marked(notebook: nbformat.NotebookNode) -> dict[str, tuple[str, str]]:
    """Exercise -> kind of verdict and message, see `exercises.Verdict`. What the answers print is thrown away."""
    result = {}
    for number, name, code in answers(notebook):
        space: dict = {}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                exec(imports(number), space)
                for cell in code:
                    exec(cell, space)
                verdict = exercises.verdict(number, space[name])
                result[number] = (verdict.kind, verdict.message)
            except (Exception, SystemExit) as error:  # of the student's; a KeyError is a function that is not there
                said = f"{type(error).__name__}: {exercises.first_line(error)}"
                result[number] = ("raised", f"{number} not yet: its cell raises {said}")
    return result


def write_verdicts(notebook: str, target: str) -> None:
    """Mark one notebook and write the verdicts as JSON, for the process that waits."""
    Path(target).write_text(json.dumps(marked(nbformat.read(notebook, as_version=4))), encoding="utf-8")


def mark_apart(path: Path, seconds: float) -> dict[str, tuple[str, str]]:
    """`marked` in a process of its own.  Raises: ValueError if it does not end in time, or dies."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "verdicts.json"
        command = [sys.executable, "-c", RUN, str(path.resolve()), str(target)]
        try:
            subprocess.run(command, cwd=NOTEBOOKS.parent, capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            raise ValueError(f"took more than {seconds:g} seconds") from None
        if not target.exists():
            raise ValueError("could not be marked: is it a notebook of this course, and does it leave Python alive?")
        return json.loads(target.read_text(encoding="utf-8"))


@app.command()
def handout(
    numbers: Annotated[list[str], typer.Argument(help="Chapters, by how their names start: 11.")],
    folder: Annotated[Path, typer.Option(help="Where to write; made if it is not there.")] = Path("handout"),
):
    """Write chapters without their solutions."""
    sources = chapters(numbers, NOTEBOOKS)
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        notebook = without_solutions(nbformat.read(source.with_suffix(".ipynb"), as_version=4))
        path = folder / f"{source.stem}.ipynb"
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")
        print(path)


@app.command()
def mark(
    folder: Annotated[Path, typer.Argument(help="With notebooks, in folders or not.")],
    table: Annotated[Path | None, typer.Option("--csv", help="Write a table as well.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="The most that one notebook may take.")] = 60.0,
):
    """Say of each notebook in a folder which exercises are solved."""
    paths = sorted(path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    if not paths:
        raise typer.BadParameter(f"folder must have notebooks in it, {folder} has none")
    rows: dict[str, dict[str, tuple[str, str]]] = {}
    for path in paths:
        name = str(path.relative_to(folder))
        try:
            rows[name] = mark_apart(path, seconds)
        except ValueError as error:
            rows[name] = {}
            print(f"{name}: {error}")
            continue
        done = sum(kind == "done" for kind, _ in rows[name].values())
        print(f"{name}: {done} of {len(rows[name])} done")
        for kind, message in rows[name].values():
            if kind not in ("done", "to do"):
                print(f"    {message}")
    if table:
        numbers = list(dict.fromkeys(number for row in rows.values() for number in row))
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [["notebook", *numbers]]
                + [[name, *(row.get(number, ("",))[0] for number in numbers)] for name, row in rows.items()]
            )


if __name__ == "__main__":
    app()
