"""The notebooks are what their sources give, and the tool that makes them sees when they are not."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import typer
from IPython.core.inputtransformer2 import TransformerManager
from typer.testing import CliRunner

from tools import figures, notebooks, pairs
from tools.exercise_cells import SourceError

ROOT = Path(notebooks.__file__).resolve().parent.parent

TINY = f"""\
# %% [markdown]
# # A chapter
# with one equation, $x_t = \\alpha_t x_0 + \\sigma_t \\epsilon$.

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

assert sys.executable == {sys.executable!r}
assert (Path.cwd() / "00_tiny.py").exists()
assert "from_a_home_folder" not in globals()

# %% tags=["hide-input"]
figure, axes = plt.subplots()
axes.plot([0, 1], [0, 1])
plt.close(figure)
display(figure, metadata={{"image/png": {{"alt": "a line that rises"}}}})

# %%
set_matplotlib_formats("svg")
plt.plot([0, 1], [1, 0]);

# %%
# NBVAL_CHECK_OUTPUT
print(f"{{1 / 3:.3f}}")

# %%

# %% tags=["raises-exception"]
int("seven")

# %%
print("the same cell")

# %%
print("the same cell")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one chapter, built on a machine whose settings would each spoil it if heeded."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("chapters")
    (folder / "00_tiny.py").write_text(TINY, encoding="utf-8")
    other_python = home / "kernels" / "python3"
    other_python.mkdir(parents=True)
    spec = {"argv": ["no-such-python", "{connection_file}"], "display_name": "another", "language": "python"}
    (other_python / "kernel.json").write_text(json.dumps(spec))
    (home / "profile_default" / "startup").mkdir(parents=True)
    (home / "profile_default" / "startup" / "00.py").write_text("from_a_home_folder = True")
    (home / "matplotlibrc").write_text("figure.figsize: 1, 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(home))
        patch.setenv("IPYTHONDIR", str(home))
        patch.setenv("MATPLOTLIBRC", str(home / "matplotlibrc"))
        patch.setenv("MPLBACKEND", "Agg")
        assert notebooks.build([], folder) == {}
    return folder


@pytest.fixture
def chapter(built: Path, tmp_path: Path) -> Path:
    """A copy of the built chapter that a test may spoil; the path of its notebook."""
    for path in built.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    return tmp_path / "00_tiny.ipynb"


def test_committed_notebooks_are_what_their_sources_give():
    assert notebooks.chapters([], notebooks.NOTEBOOKS), "there is no chapter"
    assert notebooks.check(notebooks.NOTEBOOKS) == {}


def test_committed_chapters_have_their_parts_and_nothing_is_left_to_do():
    assert notebooks.unfinished(notebooks.NOTEBOOKS) == {}


def test_the_built_chapter_is_in_order_and_carries_both_kinds_of_picture(built: Path):
    assert notebooks.check(built) == {}
    cells = nbformat.read(built / "00_tiny.ipynb", as_version=4).cells
    kinds = {kind for cell in cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert {"image/png", "image/svg+xml"} <= kinds
    assert "figure size 640x480" in json.dumps(cells).lower()


def test_a_second_build_does_not_touch_the_notebook(built: Path):
    target = built / "00_tiny.ipynb"
    before = target.stat().st_mtime_ns
    assert notebooks.build([], built) == {}
    assert target.stat().st_mtime_ns == before


def test_a_forced_build_gives_the_same_bytes(chapter: Path):
    before, written = chapter.read_bytes(), chapter.stat().st_mtime_ns
    assert notebooks.build(["00"], chapter.parent, force=True) == {}
    assert chapter.stat().st_mtime_ns != written
    assert chapter.read_bytes() == before


def test_running_a_chapter_writes_nothing(chapter: Path):
    before = chapter.stat().st_mtime_ns
    assert notebooks.execute_chapter(chapter.with_suffix(".py"), write=False) == []
    assert chapter.stat().st_mtime_ns == before


def test_only_the_edited_chapter_runs_again_and_a_failure_keeps_its_old_notebook(chapter: Path):
    untouched, bytes_before = chapter.stat().st_mtime_ns, chapter.read_bytes()
    other = chapter.with_name("01_other.py")
    other.write_text("# %%\nprint(1)\n")
    assert notebooks.build([], chapter.parent) == {}
    good = other.with_suffix(".ipynb").read_bytes()

    other.write_text("# %%\nassert 1 + 1 == 3, 'the claim does not hold'\n")
    failed = notebooks.build([], chapter.parent)
    assert list(failed) == ["01_other"]
    assert "the claim does not hold" in failed["01_other"][0]
    assert other.with_suffix(".ipynb").read_bytes() == good
    assert "01_other" in notebooks.check(chapter.parent)
    assert (chapter.stat().st_mtime_ns, chapter.read_bytes()) == (untouched, bytes_before)


def test_a_chapter_that_writes_to_stderr_is_reported_by_the_build(tmp_path: Path):
    (tmp_path / "00_loud.py").write_text("# %%\nimport warnings\nwarnings.warn('look here')\n")
    assert notebooks.build([], tmp_path) == {"00_loud": ["cell 1: writes to stderr"]}
    assert notebooks.check(tmp_path) == {"00_loud": ["cell 1: writes to stderr"]}


def stream(name: str, text: str) -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def display(kind: str, content: str) -> dict:
    return {"output_type": "display_data", "data": {kind: content}, "metadata": {}}


ERROR = {"output_type": "error", "ename": "KeyError", "evalue": "'x'", "traceback": []}
SPOILERS = {
    "cell 0: text differs from the source, which has not changed: the .ipynb was edited by hand": lambda nb: nb[
        "cells"
    ][0].update(source="# Another title"),
    "cell 0: type differs": lambda nb: nb["cells"][0].update(cell_type="raw"),
    "cell 3: tags differs": lambda nb: nb["cells"][3].update(metadata={}),
    "11 cells, the source has 10": lambda nb: nb["cells"].append(nb["cells"][0] | {"id": "more"}),
    "9 cells, the source has 10": lambda nb: nb["cells"].pop(),
    "stale: does not say with which package": lambda nb: nb["metadata"]["difflesson"].pop("package"),
    "stale: built with another version of difflesson.lines, difflesson.points": lambda nb: nb["metadata"][
        "difflesson"
    ].update(package={"difflesson.lines": "0" * 12, "difflesson.points": "1" * 12}),
    "cell 1: never executed": lambda nb: nb["cells"][1].update(execution_count=None),
    "cell 1: error output: KeyError": lambda nb: nb["cells"][1]["outputs"].append(ERROR),
    "cell 1: writes to stderr": lambda nb: nb["cells"][1]["outputs"].append(stream("stderr", "50%")),
    "cell 1: leaves a widget": lambda nb: nb["cells"][1]["outputs"].append(display(pairs.WIDGET, "{}")),
    "cell 1: shows a memory address": lambda nb: nb["cells"][1]["outputs"].append(
        display("text/plain", "<Line2D object at 0x7f00deadbeef>")
    ),
    "cell 1: shows a path of this machine": lambda nb: nb["cells"][1]["outputs"].append(
        stream("stdout", f"{ROOT}/figures/sheet.png")
    ),
    "cell 1: a picture of 300 kB": lambda nb: nb["cells"][1]["outputs"].append(
        display("image/png", "A" * 400_000) | {"metadata": {"image/png": {"alt": "a picture"}}}
    ),
    "cell 1: a picture without alt text": lambda nb: nb["cells"][1]["outputs"].append(display("image/png", "AAAA")),
    "cell 7: tagged raises-exception, raised nothing": lambda nb: nb["cells"][7].update(outputs=[]),
    "carries widget state": lambda nb: nb["metadata"].update(widgets={}),
    "stale: built from another version of the source": lambda nb: nb["metadata"]["difflesson"].update(
        source_sha256="0" * 64
    ),
}


@pytest.mark.parametrize("message", SPOILERS)
def test_a_notebook_that_differs_is_reported(chapter: Path, message: str):
    notebook = json.loads(chapter.read_text(encoding="utf-8"))
    SPOILERS[message](notebook)
    chapter.write_text(json.dumps(notebook), encoding="utf-8")
    found = notebooks.problems(chapter.with_suffix(".py"))
    assert len(found) == 1 and found[0].startswith(message)


def test_a_missing_a_broken_and_an_orphaned_notebook_are_reported(chapter: Path):
    chapter.rename(chapter.with_name("05_orphan.ipynb"))
    chapter.with_name("06_broken.py").write_text("# %%\n1\n")
    chapter.with_name("06_broken.ipynb").write_text('{"cells": [')
    found = notebooks.check(chapter.parent)
    assert found["00_tiny"] == ["not built yet"]
    assert found["05_orphan"] == ["has no source of that name"]
    assert found["06_broken"][0].startswith("not a notebook")


def test_an_edit_that_changes_no_cell_still_asks_for_a_build(chapter: Path):
    source = chapter.with_suffix(".py")
    source.write_text(TINY + "\n\n", encoding="utf-8")
    assert notebooks.problems(source) == ["stale: built from another version of the source"]


def test_an_edited_cell_is_named(chapter: Path):
    source = chapter.with_suffix(".py")
    source.write_text(TINY.replace("a line that rises", "a line that falls"), encoding="utf-8")
    assert notebooks.problems(source) == [
        "stale: built from another version of the source (cell 3: text differs from the source)"
    ]


def test_line_endings_do_not_count_as_an_edit(chapter: Path):
    chapter.with_suffix(".py").write_bytes(TINY.replace("\n", "\r\n").encode())
    assert notebooks.problems(chapter.with_suffix(".py")) == []


def test_cell_ids_are_unique_valid_and_survive_an_insertion(tmp_path: Path):
    source = tmp_path / "00_tiny.py"
    source.write_text(TINY, encoding="utf-8")
    before = [cell.id for cell in notebooks.notebook_of(source).cells]
    source.write_text("# %% [markdown]\n# first of all\n\n" + TINY, encoding="utf-8")
    after = [cell.id for cell in notebooks.notebook_of(source).cells]
    assert after[1:] == before
    assert len(set(after)) == len(after)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell_id) for cell_id in after)


def test_an_unknown_chapter_is_refused_with_the_known_ones(chapter: Path):
    with pytest.raises(typer.BadParameter, match="no chapter starts with '07'; chapters: 00_tiny"):
        notebooks.chapters(["00", "07"], chapter.parent)


def test_the_check_command_exits_with_the_answer(chapter: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(notebooks, "NOTEBOOKS", chapter.parent)
    monkeypatch.setattr(notebooks.house_rules, "problems", lambda root: [])
    monkeypatch.setattr(notebooks.readme, "problems", lambda root: [])
    unfinished = CliRunner().invoke(notebooks.app, ["check"])
    assert unfinished.exit_code == 1
    assert "00_tiny: has 0 exercises, three is the least" in unfinished.stderr
    monkeypatch.setattr(notebooks, "missing_parts", lambda cells: [])
    monkeypatch.setattr(notebooks.claims, "problems", lambda source: ["tests/claims/00.toml binds 0 of 3 claims"])
    unproven = CliRunner().invoke(notebooks.app, ["check"])
    assert unproven.exit_code == 1 and "00_tiny: tests/claims/00.toml binds 0 of 3 claims" in unproven.stderr
    monkeypatch.setattr(notebooks.claims, "problems", lambda source: [])
    assert CliRunner().invoke(notebooks.app, ["check"]).exit_code == 0
    monkeypatch.setattr(notebooks.house_rules, "problems", lambda root: ["figures/00_old.png: no cell draws it"])
    around = CliRunner().invoke(notebooks.app, ["check"])
    assert (around.exit_code, around.stderr) == (1, "repository: figures/00_old.png: no cell draws it\n")
    chapter.unlink()
    drifted = CliRunner().invoke(notebooks.app, ["check"])
    assert drifted.exit_code == 1
    assert "00_tiny: not built yet" in drifted.stderr


def test_the_minutes_command_prints_the_table(chapter: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(notebooks, "NOTEBOOKS", chapter.parent)
    printed = CliRunner().invoke(notebooks.app, ["minutes", "00"]).stdout.splitlines()
    assert printed[0].split() == ["chapter", "layer", "words", "lines", "equations", "minutes", "stated"]
    assert printed[1].split()[:3] == ["00_tiny", "main", "line"]


def test_a_chapter_that_takes_too_long_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "00_slow.py").write_text("# %%\nprint(1)\n")
    monkeypatch.setattr(notebooks, "CPU_LIMIT", -1)
    assert notebooks.execute_chapter(tmp_path / "00_slow.py", write=False) == []  # a reader's machine may be slow
    (sentence,) = notebooks.execute_chapter(tmp_path / "00_slow.py", write=True)
    assert re.fullmatch(r"takes \d+ s of a processor; -1 s is the most for a chapter, on an idle machine", sentence)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say how long processes took that have ended")
def test_the_time_of_a_chapter_is_that_of_its_kernel(tmp_path: Path, capsys: pytest.CaptureFixture):
    spin = "import time\nstart = time.process_time()\nwhile time.process_time() < start + 2:\n    pass\n"
    (tmp_path / "00_spin.py").write_text(f"# %%\n{spin}")
    assert notebooks.execute_chapter(tmp_path / "00_spin.py", write=False) == []
    assert float(re.search(r"([\d.]+) s of a processor", capsys.readouterr().out)[1]) > 2


# --- what a chapter depends on in the package -------------------------------------------------------------------


def test_a_changed_module_makes_stale_just_the_chapters_that_import_it(tmp_path: Path):
    folder, package = tmp_path / "notebooks", tmp_path / "difflesson"
    folder.mkdir()
    package.mkdir()
    (package / "lines.py").write_text("def line(x):\n    return 2 * x\n")
    # Not imported when the cell runs: the kernel has the package of this repository.
    (folder / "00_uses.py").write_text("# %%\ndef f():\n    from difflesson import lines\n")
    (folder / "01_does_not.py").write_text("# %%\nprint(1)\n")
    assert notebooks.build([], folder) == {}
    untouched = (folder / "01_does_not.ipynb").read_bytes()
    (package / "lines.py").write_text("def line(x):\n    return 3 * x  # thrice\n")
    assert notebooks.check(folder) == {"00_uses": ["stale: built with another version of difflesson.lines"]}
    assert notebooks.build([], folder) == {} == notebooks.check(folder)
    assert (folder / "01_does_not.ipynb").read_bytes() == untouched
    (package / "lines.py").write_text("def line(x):\n    return 3 * x\n")
    assert notebooks.check(folder) == {}


# --- figures ----------------------------------------------------------------------------------------------------

DRAWN = """\
# %%
from difflesson import plotting

figure, axes = plotting.plt.subplots(figsize=(1, 1))
plotting.show(figure, "00_square", alt="an empty square")
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("course")
    (root / "notebooks").mkdir()
    (root / "notebooks" / "00_drawn.py").write_text(DRAWN, encoding="utf-8")
    assert notebooks.execute_chapter(root / "notebooks" / "00_drawn.py", write=False) == []
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["00_drawn.py"], "a run wrote something"
    assert notebooks.build([], root / "notebooks") == {}
    return root


def test_the_build_writes_the_figures_that_the_notebook_shows(drawn: Path):
    png = (drawn / "figures" / "00_square.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    cells = nbformat.read(drawn / "notebooks" / "00_drawn.ipynb", as_version=4).cells
    (output,) = cells[1].outputs
    assert base64.b64decode(output["data"]["image/png"]) == png
    assert output["metadata"]["image/png"] == {"alt": "an empty square", "figure": "00_square"}


def test_running_the_cells_of_a_notebook_as_tests_writes_no_figure(drawn: Path, tmp_path: Path):
    shutil.copytree(drawn / "notebooks", tmp_path / "notebooks")
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, tmp_path]
    run = subprocess.run([*command, "-p", "no:cacheprovider"], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "2 passed" in run.stdout, run.stdout + run.stderr
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["00_drawn.ipynb", "00_drawn.py"]


def test_a_figure_that_is_not_the_notebooks_is_reported_and_built_again(drawn: Path):
    source, png = drawn / "notebooks" / "00_drawn.py", drawn / "figures" / "00_square.png"
    content = png.read_bytes()
    expected = ["figures/00_square.png is not what the notebook shows; build the chapter again"]
    png.write_bytes(b"another")
    assert notebooks.problems(source) == expected
    png.unlink()
    assert notebooks.problems(source) == expected
    assert notebooks.build([], source.parent) == {}
    assert png.read_bytes() == content


def test_two_figures_of_one_name_are_reported(drawn: Path, tmp_path: Path):
    notebook = nbformat.read(drawn / "notebooks" / "00_drawn.ipynb", as_version=4)
    notebook.cells[1].outputs *= 2
    assert figures.figure_problems(notebook, drawn / "figures") == ["two figures are named 00_square"]


# --- the cell for Colab ---------------------------------------------------------------------------------------


def run_colab_cell(folder: Path, monkeypatch: pytest.MonkeyPatch, address: str, installed: bool) -> list[tuple]:
    """The commands that the cell gives where the package is or is not, built with this address of the repository."""
    commands = []
    shell = {"get_ipython": lambda: SimpleNamespace(run_line_magic=lambda *command: commands.append(command))}
    (folder / "00_tiny.py").write_text(TINY, encoding="utf-8")
    monkeypatch.setattr("tools.pairs.repository", lambda root: address)
    cell = notebooks.notebook_of(folder / "00_tiny.py").cells[1]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    exec(TransformerManager().transform_cell(cell.source), shell)
    return commands


def test_the_first_code_cell_is_for_colab_and_stays_out_of_the_way(built: Path):
    cells = nbformat.read(built / "00_tiny.ipynb", as_version=4).cells
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert "remove-cell" in first.metadata["tags"]  # on the web page
    assert first.metadata["jupyter"]["source_hidden"]  # in JupyterLab
    assert first.outputs == [] and first.execution_count == 1


@pytest.mark.parametrize("installed", [True, False])
def test_the_colab_cell_installs_the_course_from_its_repository_only_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
):
    commands = run_colab_cell(tmp_path, monkeypatch, "https://example.org/ours", installed)
    assert commands == ([] if installed else [("pip", "install -q git+https://example.org/ours")])


def test_without_an_address_of_our_own_the_colab_cell_installs_nothing_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert run_colab_cell(tmp_path, monkeypatch, "", installed=True) == []
    with pytest.raises(ModuleNotFoundError, match=r"run  pip install -c constraints.txt -e \.  Do not install"):
        run_colab_cell(tmp_path, monkeypatch, "", installed=False)


# --- exercises ------------------------------------------------------------------------------------------------

EXERCISE = """\
# %% [markdown]
# ### Exercise 7.1 (easy)
# <details><summary>Hint</summary>
#
# Look at the sign.
#
# </details>

# %% tags=["exercise"]
def shifted(x):
    \"\"\"Move x.\"\"\"
    y = 2 * x
    ### BEGIN SOLUTION
    return y + 1
    ### END SOLUTION


# %%
exercises.check("7.1", shifted)

# %% [markdown]
# After it.
"""


def cells_from(folder: Path, text: str) -> list:
    (folder / "07_exercise.py").write_text(text, encoding="utf-8")
    return notebooks.notebook_of(folder / "07_exercise.py").cells


def test_an_exercise_becomes_a_stub_its_check_and_a_folded_solution(tmp_path: Path):
    text, _, stub, check, solution, after = cells_from(tmp_path, EXERCISE)
    head = 'def shifted(x):\n    """Move x."""\n    y = 2 * x\n'
    assert stub.source == head + '    raise NotImplementedError("your turn")'
    assert check.source == 'exercises.check("7.1", shifted)'
    assert solution.cell_type == "markdown"
    assert solution.source == (
        f"<details><summary>Solution of 7.1</summary>\n\n```python\n{head}    return y + 1\n```\n\n</details>"
    )
    assert after.source == "After it." and "Look at the sign." in text.source


BROKEN_EXERCISES = {
    "needs one line '### BEGIN SOLUTION'": ("    ### BEGIN SOLUTION\n", ""),
    "needs one line '### BEGIN SOLUTION', then one line '### END SOLUTION'": ("    ### END SOLUTION\n", ""),
    "and no more of them": ("    ### END SOLUTION\n", "    ### END SOLUTION\n    ### END SOLUTION\n"),
    "the next cell must hold its check": ('exercises.check("7.1", shifted)', "print(shifted(1))"),
    "its check names moved, which it does not define": ('"7.1", shifted', '"7.1", moved'),
    "its check says '7.2', which the Markdown cell before it does not mention": ('"7.1", shifted', '"7.2", shifted'),
    "does not mention": ("Exercise 7.1 ", "Exercise 7.11 "),
    "7.1 has no <details><summary>Hint</summary>": ("<summary>Hint</summary>", "<summary>Answer</summary>"),
    "7.1 has no <details>": ("# Look at the sign.\n#\n# </details>", "# </details>"),
}


@pytest.mark.parametrize("message", BROKEN_EXERCISES)
def test_an_incomplete_exercise_is_reported_with_its_cell(tmp_path: Path, message: str):
    old, new = BROKEN_EXERCISES[message]
    assert old in EXERCISE
    with pytest.raises(SourceError, match=re.escape(message)) as raised:
        cells_from(tmp_path, EXERCISE.replace(old, new))
    assert str(raised.value).startswith("exercise cell 'def shifted(x):': ")
    (reported,) = notebooks.build([], tmp_path)["07_exercise"]
    assert reported == str(raised.value)
    (tmp_path / "07_exercise.ipynb").write_text(json.dumps(nbformat.v4.new_notebook()))
    assert notebooks.check(tmp_path) == {"07_exercise": [reported]}
