"""Chapters are handed out without solutions, and what comes back is marked, whatever is in it."""

import csv

import nbformat
import pytest
from typer.testing import CliRunner

from tools import homework
from tools.exercise_cells import find_exercises
from tools.pairs import NOTEBOOKS, cells_of, chapters

CHAPTERS = [source.stem for source in chapters([], NOTEBOOKS)]


def solved(chapter: str) -> nbformat.NotebookNode:
    """A chapter in which somebody has typed in every solution."""
    notebook = nbformat.v4.new_notebook(cells=cells_of(NOTEBOOKS / f"{chapter}.py"))
    for exercise in find_exercises(notebook.cells):
        notebook.cells[exercise.index].source = exercise.solution
    return notebook


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_handout_has_every_exercise_and_no_solution(chapter: str):
    notebook = nbformat.read(NOTEBOOKS / f"{chapter}.ipynb", as_version=4)
    exercises = find_exercises(cells_of(NOTEBOOKS / f"{chapter}.py"))
    handed = homework.without_solutions(notebook)
    text = "\n".join(cell.source for cell in handed.cells)
    assert [number for number, *_ in homework.answers(handed)] == [exercise.number for exercise in exercises]
    assert "Solution" not in text
    for exercise in exercises:
        assert exercise.solution not in text and exercise.stub in text
    assert {kind for kind, _ in homework.marked(handed).values()} == {"to do"}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_solutions_need_nothing_but_the_chapters_imports_and_are_marked_done(chapter: str):
    marks = homework.marked(solved(chapter))
    assert marks and {kind for kind, _ in marks.values()} == {"done"}


def returned(folder, name: str, code: str) -> None:
    """A notebook as it comes back: chapter 11 with `code` for exercise 11.1."""
    notebook = homework.without_solutions(nbformat.read(NOTEBOOKS / f"{CHAPTERS[11]}.ipynb", as_version=4))
    index = next(i for i, cell in enumerate(notebook.cells) if "guided_v(v_cond" in cell.source)
    notebook.cells[index].source = code
    (folder / name).parent.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / name)


def test_a_folder_of_notebooks_is_marked_whatever_they_do(tmp_path):
    head = "def guided_v(v_cond, v_uncond, w):\n    "
    codes = {
        "ada.ipynb": head + "print('mine')\n    return v_cond + w * (v_cond - v_uncond)",
        "bob/copy.ipynb": head + "return v_cond + (w - 1) * (v_cond - v_uncond)",
        "cleo.ipynb": "def guided_v(\n",
        "dan.ipynb": head + "return undefined",
        "eve.ipynb": "import os\nos._exit(3)",
        "finn.ipynb": "while True:\n    pass",
    }
    for name, code in codes.items():
        returned(tmp_path, name, code)
    (tmp_path / "gus.ipynb").write_text("no notebook")
    table = tmp_path / "marks.csv"
    done = CliRunner().invoke(homework.app, ["mark", str(tmp_path), "--csv", str(table), "--seconds", "20"])
    assert done.exit_code == 0, done.output
    with table.open(encoding="utf-8", newline="") as file:
        kinds = {row["notebook"]: row["11.1"] for row in csv.DictReader(file)}
    assert kinds == {
        "ada.ipynb": "done", "bob/copy.ipynb": "mistake", "cleo.ipynb": "raised", "dan.ipynb": "raised",
        "eve.ipynb": "", "finn.ipynb": "", "gus.ipynb": "",
    }  # fmt: skip
    assert "ada.ipynb: 1 of 4 done" in done.output and "mine" not in done.output
    assert "NameError: name 'undefined'" in done.output and "finn.ipynb: took more than 20 seconds" in done.output
    assert "eve.ipynb: could not be marked" in done.output and "gus.ipynb: could not be marked" in done.output


def test_a_folder_without_notebooks_and_a_chapter_that_is_not_there_are_said(tmp_path):
    for call, word in ((["mark", str(tmp_path)], "has none"), (["handout", "99"], "no chapter starts with")):
        done = CliRunner().invoke(homework.app, call)
        assert done.exit_code == 2 and word in " ".join(done.output.replace("│", " ").split())  # lines break in a box


def test_a_handout_is_written_where_it_was_asked_for(tmp_path):
    done = CliRunner().invoke(homework.app, ["handout", "11", "--folder", str(tmp_path / "out")])
    assert done.exit_code == 0 and [path.name for path in (tmp_path / "out").iterdir()] == [f"{CHAPTERS[11]}.ipynb"]
