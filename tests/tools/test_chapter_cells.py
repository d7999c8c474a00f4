"""The oracle that hands a chapter's own cells to the tests of their equations."""

from pathlib import Path

import pytest

from tests.oracles.chapter_cells import assigned, names_of

SOURCE = """# %% [markdown]
# # 00 · A line: where does it go?

# %%
import math

%matplotlib inline
scale = 2

# %%
scale = "of a cell between, which nobody runs"

# %%
# [eq-line]
def line(x):
    return math.fabs(scale * x)

offset = line(-1)

# %%
# [eq-red]
red = undefined

# %%
# [eq-twice]
x = 1

# %%
# [eq-twice]
x = 2
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_line.py").write_text(SOURCE, encoding="utf-8")
    return tmp_path


def test_the_names_are_those_of_the_cell_run_after_the_first_code_cell_alone(root: Path):
    names = names_of("00", "eq-line", root)
    assert sorted(names) == ["line", "offset"]
    assert names["line"](3) == 6 and names["offset"] == 2


def test_each_call_runs_the_cell_anew(root: Path):
    assert names_of("00", "eq-line", root)["line"] is not names_of("00", "eq-line", root)["line"]


def test_what_the_cell_raises_comes_out_with_its_label(root: Path):
    with pytest.raises(NameError) as raised:
        names_of("00", "eq-red", root)
    assert "cell [eq-red]" in str(raised.traceback[-1].path)


@pytest.mark.parametrize(
    ("chapter", "label", "message"),
    [
        ("01", "eq-line", "'01' has 0"),
        ("00", "eq-none", r"one code cell of 00_line.py must begin '# \[eq-none\]', 0 do"),
        ("00", "eq-twice", "2 do"),
    ],
)
def test_a_cell_that_is_not_there_is_named(root: Path, chapter: str, label: str, message: str):
    with pytest.raises(ValueError, match=message):
        names_of(chapter, label, root)


def test_what_is_assigned_is_run_after_the_first_code_cell_and_needs_what_it_uses(root: Path):
    assert assigned("00", "scale", root=root) == {"scale": "of a cell between, which nobody runs"}
    assert assigned("00", "x", root=root) == {"x": 1}
    with pytest.raises(NameError):
        assigned("00", "offset", root=root)
    with pytest.raises(ValueError, match="names must be assigned in 00_line.py, line, nothing is not"):
        assigned("00", "nothing", "line", "x", root=root)
