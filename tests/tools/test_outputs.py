"""A chapter's outputs are compared with the committed ones: words, numbers to the last digit, pictures by content."""

import json
import re
import subprocess
import sys
import tomllib
from decimal import Decimal
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.image import imread, imsave

from difflesson import plotting
from tools import notebooks, outputs
from tools.pairs import NOTEBOOKS, ROOT
from tools.picture_difference import picture_difference

SAME = [
    ("error 0.0126", "error 0.0125"), ("3 dots, 4.0 %", "3 dots, 4.1 %"), ("[0.3  1.]", "[0.29 1.0]"),
    ("-0.07", "-0.08"), ("9.99e-04", "1.00e-03"), ("98 %", "99 %"), ("nan", "nan"), ("x1 = 2", "x1  = 2"),
    ("off by 1,000.5", "off by 1,000.6"),
]  # fmt: skip
DIFFERENT = [
    ("error 0.0126", "error 0.0136"), ("error 0.01", "errors 0.01"), ("3 dots", "4 dots"), ("-0.07", "0.07"),
    ("x1", "x2"), ("1.00e-03", "1.00e-04"), ("0.5", "nan"), ("one\ntwo", "one"), ("", "one"), ("0.5 nats", "0.5"),
    ("97 %", "99 %"),
]  # fmt: skip


@pytest.mark.parametrize(("committed", "computed"), SAME)
def test_a_number_may_be_off_by_its_last_digit(committed: str, computed: str):
    assert outputs.text_differences(committed, computed) == []


@pytest.mark.parametrize(("committed", "computed"), DIFFERENT)
def test_a_word_a_count_a_sign_or_a_digit_before_the_last_is_a_difference(committed: str, computed: str):
    assert outputs.text_differences(committed, computed) != []
    assert outputs.text_differences(computed, committed) != []


def test_a_cell_may_say_how_much_its_numbers_move():
    assert outputs.looseness(["hide-input"]) == 0 and outputs.looseness(["loose-5%"]) == Decimal("0.05")
    assert outputs.text_differences("2.000", "2.090", Decimal("0.05")) == []
    assert outputs.text_differences("2.000", "2.110", Decimal("0.05")) != []
    for tags in (["loose"], ["loose-50%"], ["loose-0%"], ["loose-1%", "loose-2%"]):
        with pytest.raises(ValueError, match="loose-1%"):
            outputs.looseness(tags)


# --- pictures ---------------------------------------------------------------------------------------------------


def drawn(shift: float = 0.0, colour: str = "conditional", title: str = "a title", **how) -> bytes:
    with plotting.style():
        figure, axes = plotting.plt.subplots(figsize=(4, 2.5))
        x = np.linspace(0, 1, 50)
        axes.plot(x, x**2 + shift, color=plotting.COLOURS[colour])
        axes.set(title=title, xlabel="x", ylim=(-0.1, 1.1))
        file = BytesIO()
        figure.savefig(file, format="png", **how)
        plotting.plt.close(figure)
    return file.getvalue()


def test_a_picture_is_the_same_with_another_compressor_and_smoother_letters():
    file = BytesIO()
    imsave(file, imread(BytesIO(drawn())), format="png", pil_kwargs={"compress_level": 1})
    assert file.getvalue() != drawn() and picture_difference(drawn(), file.getvalue()) == ""
    with plotting.plt.rc_context({"text.antialiased": False}):
        rough = drawn()
    assert rough != drawn() and picture_difference(drawn(), rough) == ""


@pytest.mark.parametrize("change", [{"shift": 0.036}, {"colour": "unconditional"}, {"title": "another"}, {"title": ""}])
def test_a_curve_that_moved_another_colour_or_another_label_is_a_difference(change: dict):
    assert "no counterpart" in picture_difference(drawn(), drawn(**change))


def test_another_size_and_a_broken_file_are_differences():
    assert "pixels, the computed one" in picture_difference(drawn(), drawn(dpi=60))
    assert picture_difference(drawn(), drawn()[:50]) == "the computed picture cannot be read"


# --- in the notebooks -------------------------------------------------------------------------------------------

CELLS = {  # a cell, and what is committed as its output: whether that passes
    "print('0.333')": ("0.333\n", True),
    "print('0.334')": ("0.333\n", True),
    "print('0.353')": ("0.333\n", False),
    "print('a word')": ("another word\n", False),
    "print('emptied')": ("", False),
    "x = 1": ("printed once\n", False),
    "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['PYTHONHASHSEED'])": ("1 0\n", True),
    "assert 1 + 1 == 3": ("", False),
}


def test_nbval_compares_every_cell_with_what_is_committed_in_the_surroundings_of_the_build(tmp_path: Path):
    notebook = nbformat.v4.new_notebook()
    for count, (source, (text, _)) in enumerate(CELLS.items(), start=1):
        stream = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
        notebook.cells.append(nbformat.v4.new_code_cell(source, execution_count=count, outputs=stream))
    nbformat.write(notebook, tmp_path / "00_claims.ipynb")
    (tmp_path / "conftest.py").write_text((NOTEBOOKS / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, tmp_path]
    run = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, check=False)
    failed = [str(count) for count, (_, passes) in enumerate(CELLS.values()) if not passes]
    assert re.findall(r"FAILED .*::Cell (\d+)", run.stdout) == failed, run.stdout + run.stderr
    assert "off by 0.020, and 0.001 is allowed" in run.stdout


def test_a_cell_that_prints_or_draws_has_its_output_in_the_committed_notebook(tmp_path: Path):
    source = tmp_path / "notebooks" / "00_tiny.py"
    source.parent.mkdir()
    source.write_text("# %%\nprint('one')\n\n# %%\nx = 2\nx\n\n# %%\nx = 3\n", encoding="utf-8")
    assert notebooks.build([], source.parent) == {}
    built = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    for cell in built["cells"]:
        cell["outputs"] = []
    source.with_suffix(".ipynb").write_text(json.dumps(built), encoding="utf-8")
    said = notebooks.problems(source)
    assert said == [f"cell {k}: has no output; build the chapter again" for k in (1, 2)]


def test_every_code_cell_of_every_chapter_is_a_test_in_one_thread_and_warnings_are_errors():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert options["testpaths"] == ["tests", "notebooks"] and options["filterwarnings"] == ["error"]
    assert "--nbval" in options["addopts"] and "--nbval-lax" not in options["addopts"]
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert "torch.set_num_threads(1)" in cells[1].source, path.name  # the first is for Colab
        silenced = {"nbval-skip", "nbval-ignore-output", "skip-execution"}
        assert not [cell for cell in cells if silenced & set(cell.metadata.get("tags", [])) or "NBVAL_" in cell.source]
