"""A chapter whose cells cannot notice a wrong formula is found; this book's cells notice theirs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.cell_mutants import unmarked
from tools.equation_labels import MUTANTS
from tools.mutant_files import load
from tools.pairs import ROOT

PACKAGE = '''"""A line."""


def line(x):
    """`2 x`  [eq-line]"""
    return 2.0 * x
'''
CHAPTER = r"""# %%
import torch
from difflesson import lines

# %% [markdown]
# $$ y = 2 x \label{{eq-line}} $$

# %%
x = torch.arange(3.0)
y = lines.line(x)
{cell}
"""
CELLS = {  # number of the chapter: its cell, and what is said of it; empty: noticed
    "01": ("torch.testing.assert_close(y, x + x)", ""),
    "02": ("assert True", "SURVIVED"),
    "03": ("torch.testing.assert_close(y, x + x, atol=10, rtol=0)", "SURVIVED"),
    "04": ("torch.testing.assert_close(y, y)", "SURVIVED"),
    "05": ("torch.testing.assert_close(lines.line(x), y)", "SURVIVED"),
    "06": ("assert y[4] if y[2] < 4 else True", "no proper kill, IndexError at notebooks/06_a.py:11"),
    "07": ("z = x if y[2] == 4 else undefined\nassert len(z)", "no proper kill, NameError at notebooks/07_a.py:11"),
    "08": ("torch.testing.assert_close(y, x + x)\nassert y[0] == 1", "not judged, its cells fail without a mutant"),
    "09": ("print(y)", "not judged, its cells fail without a mutant: no cell between eq-line"),
    "10": ("z = 1 / float(y[1] - 1)\nassert z", "no proper kill, ZeroDivisionError at notebooks/10_a.py:11"),
}  # fmt: skip
MUTANT = """
[[mutant]]
name = "halved"
equation = {equation}
file = "lines.py"
old = "return 2.0 * x"
new = "return 1.0 * x"
why = "half of it"
fast = true
cells = {cells}
"""


def run(root: Path, *options: str) -> subprocess.CompletedProcess:
    """The tool in a process of its own: it forks, which this one, full of torch's threads, must not."""
    command = [sys.executable, "-m", "tools.cell_mutants", "--root", str(root), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600, check=False)


def write(root: Path, cells: dict[str, str], equation: str = '"eq-line"', marked: str = "true") -> None:
    for folder in ("difflesson", "notebooks", MUTANTS):
        (root / folder).mkdir(parents=True)
    (root / "difflesson" / "__init__.py").touch()
    (root / "difflesson" / "lines.py").write_text(PACKAGE, encoding="utf-8")
    for number, cell in cells.items():
        (root / "notebooks" / f"{number}_a.py").write_text(CHAPTER.format(cell=cell), encoding="utf-8")
    (root / MUTANTS / "01.toml").write_text(MUTANT.format(equation=equation, cells=marked), encoding="utf-8")


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, str]:
    """What the tool says of each chapter; empty where the mutant was noticed."""
    root = tmp_path_factory.mktemp("course")
    write(root, {number: cell for number, (cell, _) in CELLS.items()})
    done = run(root)
    assert done.returncode == 1, done.stdout + done.stderr
    pieces = re.split(r"^notebooks/(\d\d)_a.py, eq-line, halved: ", done.stderr, flags=re.MULTILINE)
    reports = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    assert re.search(r"^01 +eq-line +halved +notebooks/01_a.py:11 ", done.stdout, re.MULTILINE), done.stdout
    assert "notebooks/01_a.py: 1 of 1 equations" in done.stdout and "notebooks/02_a.py: 0 of 1" in done.stdout
    return reports


@pytest.mark.parametrize("number", CELLS)
def test_only_an_assertion_that_fails_has_noticed_a_wrong_formula(reports: dict[str, str], number: str):
    expected = CELLS[number][1]
    assert reports.get(number, "").startswith(expected) and (number in reports) == bool(expected), reports.get(number)


def test_the_mistake_and_its_diff_are_shown(reports: dict[str, str]):
    assert "half of it\n-return 2.0 * x\n+return 1.0 * x" in reports["02"]


def test_an_equation_without_a_marked_mutant_is_reported(tmp_path: Path):
    write(tmp_path, {"01": "assert y[1] == 2"}, '["eq-line", "eq-other"]', '"eq-other"')
    assert unmarked(tmp_path) == [
        "notebooks/01_a.py: eq-line has no mutant with `cells = true` in tests/mutants: name the wrong formula that "
        "the cells below it notice (python -m tools.cell_mutants --all -k eq-line)"
    ]
    (tmp_path / MUTANTS / "01.toml").write_text(MUTANT.format(equation='"eq-line"', cells='"eq-line"'), "utf-8")
    assert unmarked(tmp_path) == []
    (tmp_path / MUTANTS / "01.toml").write_text(MUTANT.format(equation='"eq-line"', cells='"eq-bend"'), "utf-8")
    with pytest.raises(ValueError, match="cells of mutant 'halved' names 'eq-bend', which is not its equation"):
        load(tmp_path / MUTANTS)


def test_each_equation_of_this_book_has_a_mutant_for_its_cells():
    assert unmarked(ROOT) == []


@pytest.mark.slow
def test_the_cells_of_each_chapter_notice_a_fast_wrong_formula():
    done = run(ROOT, "--fast", "--workers", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    chapters = len(list((ROOT / "notebooks").glob("[0-9][0-9]_*.py")))
    assert len(re.findall(r"^notebooks/.*: 1 of 1 equations", done.stdout, re.MULTILINE)) == chapters
