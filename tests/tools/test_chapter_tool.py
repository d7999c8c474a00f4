"""A new chapter: what the tool writes builds, passes, and says what is left to do."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from difflesson import exercises
from tests.oracles.fair_exercises import defects
from tools import chapter as chapter_tool
from tools import notebooks
from tools.chapter import next_steps, slug, start_chapter
from tools.chapter_parts import missing_parts
from tools.exercise_cells import find_exercises
from tools.formula import disagreements
from tools.pairs import ROOT
from tools.readings import displayed, fates

TITLE = "When the classifier only knows clean data"


@pytest.fixture
def written(tmp_path: Path) -> list[Path]:
    return start_chapter("99", TITLE, root=tmp_path)


def todos(path: Path, root: Path) -> list[str]:
    """What is to do in a file, as `check` says it."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    where = path.relative_to(root).as_posix()
    return [f"{where}:{number}: still {re.search('TODO.*', line)[0]}" for number, line in lines if "TODO" in line]


def test_its_files_are_written(written: list[Path], tmp_path: Path):
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "notebooks/99_when_the_classifier_only_knows_clean_data.py",
        "difflesson/exercises/chapter99.py",
        "tests/chapters/test_chapter_99.py",
        "tests/readings/chapter_99.py",
        "tests/chapters/test_answers_99.py",
        "tests/claims/99.toml",
    ]
    kept = [path for path in written if path.parent.name not in ("chapters", "readings")]  # decorators have an @
    assert not any("@" in line for path in kept for line in path.read_text("utf-8").splitlines())


def test_a_new_chapter_lacks_nothing_but_what_it_marks_as_to_do(written: list[Path], tmp_path: Path):
    expected = [todo for path in written for todo in todos(path, tmp_path)]
    assert len(expected) > 20 and {todo.split(":")[0] for todo in expected} == {
        path.relative_to(tmp_path).as_posix() for path in written
    }
    assert notebooks.unfinished(written[0].parent) == {written[0].stem: expected}


def test_the_exercises_of_a_new_chapter_pass_and_are_fair(written: list[Path]):
    source, checkers, *_ = written
    cells = notebooks.cells_of(source)
    checked = {exercise.number: exercise for exercise in runpy.run_path(str(checkers))["EXERCISES"]}
    solved = find_exercises(cells)
    assert [exercise.number for exercise in solved] == list(checked) == ["99.1", "99.2", "99.3"]
    for exercise in solved:
        namespace = {}
        exec(next(cell.source for cell in cells if cell.cell_type == "code"), namespace)
        exec(exercise.solution, namespace)
        assert exercises.judge(checked[exercise.number], namespace[exercise.name]).kind == "done"
        assert defects(checked[exercise.number]) == []


def test_the_equation_of_a_new_chapter_is_true_and_mistakes_in_it_are_noticed(written: list[Path]):
    source, _, _, readings, *_ = written
    reading = runpy.run_path(str(readings))["forward_marginal"]
    (label,) = reading.reads
    assert disagreements(displayed(source)[label], reading()) == []
    ends = fates(displayed(source)[label], reading())
    assert len(ends) >= 5 and "alive" not in ends.values()


@pytest.mark.slow
def test_a_new_chapter_builds_its_tests_pass_and_the_linter_agrees(
    written: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, _, tests, *_ = written
    package = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(ROOT / "difflesson", tmp_path / "difflesson", ignore=package, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # so that the kernel knows the new exercises
    assert notebooks.build([], source.parent) == {}
    assert notebooks.check(source.parent) == {}
    cells = nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells
    said = [output.text for cell in cells if "exercises.check(" in cell.source for output in cell.get("outputs", [])]
    assert said == [f"99.{k} still to do\n" for k in (1, 2, 3)]
    linter = ["ruff", "check", "--no-cache", *written[:5]]
    for command in (["pytest", "-q", "-p", "no:cacheprovider", tests.name], linter):
        command = [sys.executable, "-m", *command]
        run = subprocess.run(command, cwd=tests.parent, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("The mean shift: what does a classifier change?", "mean_shift"),
        ("What does gamma sample?", "what_does_gamma_sample"),
        ("The SDE & the ODE: one family", "sde_the_ode"),
        ("Schrödinger's bridge", "schrodingers_bridge"),
        ("A", "a"),
    ],
)
def test_a_title_gives_a_short_file_name(title: str, expected: str):
    assert slug(title) == expected


def test_a_title_that_is_a_question_is_kept_and_another_one_asks_for_it(tmp_path: Path):
    asked = start_chapter("7", "The mean shift: what moves?", root=tmp_path)[0]
    assert asked.name == "07_mean_shift.py"
    assert asked.read_text(encoding="utf-8").splitlines()[1] == "# # 07 · The mean shift: what moves?"
    stated = start_chapter("08", "The normaliser", root=tmp_path)[0]
    assert "# # 08 · The normaliser: TODO the question" in stated.read_text(encoding="utf-8").splitlines()[1]


@pytest.mark.parametrize("number", ["", "0", "00", "100", "-1", "1.5", "twelve", "²", " 12"])
def test_a_bad_number_is_refused(tmp_path: Path, number: str):
    with pytest.raises(ValueError, match=f"NN must be a chapter number from 1 to 99, got '{re.escape(number)}'"):
        start_chapter(number, TITLE, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("title", ["", "  ", "?!", "雪", ": why?", "two\nlines", "long " * 20])
def test_a_bad_title_is_refused(tmp_path: Path, title: str):
    with pytest.raises(ValueError, match="TITLE must be one line of 1 to 90 characters"):
        start_chapter("99", title, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


AWKWARD = """What `eps` costs: $5 or $(pwd) ${HOME} $$ "twice" 'or' \\ # 100% $\\gamma$; ls?"""


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_a_title_reaches_the_chapter_as_it_was_typed(tmp_path: Path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    echo = tmp_path / "venv" / "bin" / "python"
    echo.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\n')
    echo.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", "venv/.installed"):  # the last is newest: nothing to install
        (tmp_path / name).touch()
    command = ["make", "-s", "chapter", "VENV=venv", "NN=99", f"TITLE={AWKWARD}"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == ["-m", "tools.chapter", "99", AWKWARD], run.stdout + run.stderr


def test_an_awkward_title_makes_a_chapter_that_reads_as_it_was_typed(tmp_path: Path):
    source = start_chapter("99", AWKWARD, root=tmp_path)[0]
    assert source.name == "99_what_eps_costs.py"
    assert notebooks.cells_of(source)[0].source.splitlines()[0] == f"# 99 · {AWKWARD}"
    assert notebooks.unfinished(source.parent)[source.stem][0].split(": ")[1].startswith("still TODO")
    for path in tmp_path.rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), path.name, "exec")


@pytest.mark.parametrize("left", range(6))
def test_nothing_is_overwritten_when_only_one_of_the_files_is_there(written: list[Path], tmp_path: Path, left: int):
    for index, path in enumerate(written):
        path.unlink() if index != left else path.write_text("mine")
    with pytest.raises(ValueError, match=f"NN=99 is taken, nothing was written: .*{written[left].name}"):
        start_chapter("99", TITLE, root=tmp_path)
    assert [path.exists() for path in written] == [index == left for index in range(6)]
    assert written[left].read_text() == "mine"


def test_another_title_does_not_make_a_second_chapter_of_the_same_number(written: list[Path], tmp_path: Path):
    for path in written[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="NN=99 is taken, .*notebooks/99_when_the_classifier"):
        start_chapter("99", "Another title", root=tmp_path)


def test_the_next_steps_name_the_equations_that_wait_for_the_chapter(written: list[Path], tmp_path: Path):
    (tmp_path / "book").mkdir()
    planned = tmp_path / "book" / "planned_equations.toml"
    planned.write_text('99 = ["eq-jensen-gap", "eq-clean-posterior"]\n07 = ["eq-path-kl"]\n')
    text = next_steps(written, root=tmp_path)
    assert "eq-jensen-gap, eq-clean-posterior" in text and "eq-path-kl" not in text
    assert "tools.notebooks build 99" in text
    planned.write_text("")
    assert "planned_equations" not in next_steps(written, root=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "expected a number and a title"), (["", TITLE], "NN must be"), (["99", ""], "TITLE must be")],
)
def test_the_command_explains_itself_without_a_traceback(arguments: list[str], message: str, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["chapter.py", *arguments])
    with pytest.raises(SystemExit, match=f"chapter: {message}.*make chapter NN=12 TITLE="):
        chapter_tool.main()


# --- the parts of a chapter -----------------------------------------------------------------------------------


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """The skeleton of a chapter with everything that is to do declared done."""
    source = start_chapter("7", "The mean shift: what moves?", root=tmp_path)[0]
    source.write_text(source.read_text(encoding="utf-8").replace("TODO", "Done:"), encoding="utf-8")
    return source


def lacking(source: Path) -> list[str]:
    return missing_parts(notebooks.cells_of(source))


def test_a_complete_chapter_lacks_nothing(complete: Path):
    assert lacking(complete) == []


ROWS = "# | ... | ... | ... |\n"
PARTS = {  # what is said: what stands in a complete chapter, and what stands there instead
    "lacks the title '# NN · a question?'": ("what moves?", "what moves"),
    "lacks '**After this chapter you can**'": ("**After this", "**After that"),
    "lacks '**You need** ...'": ("**You need**", "You need"),
    "lacks the times": ("minutes to read", "minutes"),
    "lacks a numbered equation": ("\\label{eq-", "\\label{eq:"),
    "lacks a heading that starts with 'Pitfall'": ("### Pitfall", "### A pit"),
    "lacks the heading '## In practice'": ("## In practice", "## At work"),
    "lacks the heading '## Exercises'": ("## Exercises", "## Tasks"),
    "lacks the heading '## Remember'": ("## Remember", "## Summary"),
    "lacks 'Where it comes from'": ("Where it comes from", "Sources"),
    "lacks a figure": ("plotting.show(figure,", "str(figure,"),
    "lacks a picture before the first displayed formula": ("# ## Done: a pict", "# $$ x $$\n# ## Done: a pict"),
    "figure 07_question lacks a caption": ("# *Done: a caption", "# Done: a caption"),
    "has 2 exercises, three is the least": ('tags=["exercise"]', 'tags=["remove-cell"]'),
    "lacks torch.set_num_threads(1) in its first code cell": ("torch.set_num_threads(1)", "torch.set_num_threads(2)"),
    "lacks a table under '## In practice'": ("# |---|---|---|", "#"),
    "has a table of 2 rows under '## In practice'": (ROWS, ""),
    "has a table of 7 rows under '## In practice'": (ROWS, 5 * ROWS),
    "has '## One more' after In practice, where only": ("# ## Exercises", "# ## One more\n#\n# ## Exercises"),
    "has In practice, Exercises, Exercises, Remember; the order": (
        "# ## Exercises",
        "# ## Exercises\n#\n# ## Exercises",
    ),
    "has '## Afterthought' after Remember": ("## Deeper: Done", "## Afterthought\n#\n# ## Deeper: Done"),
    "'## Deeper: Done: what the expert asks next' lacks the line": (
        "# Done: one line: what",
        "# ### Done: one line: what",
    ),
}


@pytest.mark.parametrize("message", PARTS)
def test_a_missing_part_is_reported(complete: Path, message: str):
    old, new = PARTS[message]
    text = complete.read_text(encoding="utf-8")
    assert old in text
    complete.write_text(text.replace(old, new, 1), encoding="utf-8")
    (reported,) = lacking(complete)
    assert reported.startswith(message)


def test_the_closing_sections_have_an_order(complete: Path):
    text = complete.read_text(encoding="utf-8")
    swapped = text.replace("## Exercises", "## @").replace("## Remember", "## Exercises").replace("## @", "## Remember")
    complete.write_text(swapped, encoding="utf-8")
    assert lacking(complete) == [
        "has In practice, Remember, Exercises; the order is In practice, Exercises, Remember, each once"
    ]


def test_deeper_does_not_interrupt_the_main_line(complete: Path):
    text = complete.read_text(encoding="utf-8")
    early = "## Deeper: early\n#\n# For you.\n#\n# ## In practice"
    complete.write_text(text.replace("## In practice", early), encoding="utf-8")
    assert "has '## Deeper: early' before Remember" in lacking(complete)


def test_the_change_of_code_may_stand_where_the_table_would(complete: Path):
    text = complete.read_text(encoding="utf-8")
    start, end = text.index("# | if you have"), text.index("#\n# ## Exercises")
    complete.write_text(text[:start] + "# ```python\n# gamma = 1.0\n# ```\n" + text[end:], encoding="utf-8")
    assert lacking(complete) == []


def test_a_chapter_may_go_without_deeper(complete: Path):
    text = complete.read_text(encoding="utf-8").replace(", 1 more for Deeper", "")
    complete.write_text(text[: text.index("# %% [markdown]\n# ## Deeper")], encoding="utf-8")
    assert lacking(complete) == []


def test_an_exercise_that_needs_deeper_stands_at_its_end(complete: Path):
    text = complete.read_text(encoding="utf-8")
    start, deeper = text.index("# %% [markdown]\n# ### Exercise 7.3"), text.index("# %% [markdown]\n# ## Remember")
    complete.write_text(text[:start] + text[deeper:] + "\n" + text[start:deeper], encoding="utf-8")
    assert lacking(complete) == []


def test_what_is_left_to_do_is_reported_wherever_it_stands_with_its_line(complete: Path, tmp_path: Path):
    tests = tmp_path / "tests" / "chapters" / "test_chapter_07.py"
    checkers = tmp_path / "difflesson" / "exercises" / "chapter07.py"
    readings = tmp_path / "tests" / "readings" / "chapter_07.py"
    text = complete.read_text(encoding="utf-8")
    complete.write_text(text + "\n# %%\nx = 1  # TODO name it\n", encoding="utf-8")
    claims = tmp_path / "tests" / "claims" / "07.toml"
    found = [said for said in notebooks.unfinished(complete.parent)["07_mean_shift"] if "still TODO" in said]
    assert found[0] == f"notebooks/{complete.name}:{text.count(chr(10)) + 3}: still TODO name it"
    answers = tmp_path / "tests" / "chapters" / "test_answers_07.py"
    kinds = (checkers, tests, readings, answers, claims)
    assert found[1:] == [todo for path in kinds for todo in todos(path, tmp_path)]
