"""Assertions that cannot fail are found in the chapters' cells and in the tests, and proper ones are left alone."""

import ast
import re

import pytest

from tools.cell_lints import chapter_problems, dropped_comparisons, idle_assertions, problems
from tools.equation_labels import Place
from tools.pairs import ROOT

CHAPTER = r"""# %%
import torch
from difflesson import lines
from difflesson.mixture import mixture

# %% [markdown]
# $$ y = 2 x \label{{eq-line}} $$

# %%
x = torch.ones(3)
{cell}

# %% [markdown]
# ## Next

# %%
torch.testing.assert_close(lines.line(x), lines.line(x + 0))
"""
FUNCTIONS = {
    "eq-line": [
        Place("difflesson/lines.py", "difflesson.lines.line", 3),
        Place("difflesson/mixture.py", "difflesson.mixture.Mixture.score", 9),
    ]
}
LINE = 11  # of the first line of `cell`


def found(cell: str) -> list[tuple[int, str]]:
    return chapter_problems(CHAPTER.format(cell=cell), FUNCTIONS)


IDLE = {
    "assert True": "cannot fail",
    "assert 1 < 2": "cannot fail",
    'assert (x.sum() == 3, "three")': "cannot fail",
    "assert x.sum() == 3 or True": "cannot fail",
    "assert (x - 1).norm() >= 0": "cannot fail",
    "assert x.sum() < float('inf')": "cannot fail",
    "assert x[0] == x[0]": "compares a thing with itself",
    "assert abs(x - x).max() < 1e-9": "compares a thing with itself",
    "for i in range(3):\n    assert x[i] <= x[i]": "compares a thing with itself",
    "torch.testing.assert_close(x, x)": "compares a thing with itself",
    "torch.testing.assert_close(expected=x, actual=x)": "compares a thing with itself",
    "assert torch.allclose(x, x.clone())": "compares a thing with itself",
    "y = x\ntorch.testing.assert_close(x, y)": "compares a thing with itself",
    "a = lines.line(x)\nb = lines.line(x)\ntorch.testing.assert_close(a, b)": "compares a thing with itself",
    "x[0] == 1": "compares and drops the answer",
    "torch.equal(x, x + 1)": "compares and drops the answer",
    "torch.testing.assert_close": "is not called",
    "by_hand = lines.line(x)\ntorch.testing.assert_close(lines.line(x + 0), by_hand)":
        "come from difflesson.lines.line, which is the equation above",
    "def by_hand(x):\n    return lines.line(x)\nassert torch.equal(by_hand(x), 1 * lines.line(x))":
        "come from difflesson.lines.line, which is the equation above",
    "by_hand, two = mixture.score(x), 2\nassert abs(by_hand - two * mixture.score(x / 2)).max() < 1e-9":
        "come from difflesson.mixture.Mixture.score, which is the equation above",
}  # fmt: skip


@pytest.mark.parametrize("cell", IDLE)
def test_an_assertion_that_cannot_fail_is_reported_with_its_line(cell: str):
    (line, what), *_ = found(cell)
    guilty = next(k for k, text in enumerate(cell.splitlines()) if re.match(r" *(assert|torch|x\[0\])", text))
    assert (line, IDLE[cell] in what) == (LINE + guilty, True), what


@pytest.mark.parametrize(
    "cell",
    [
        "torch.testing.assert_close(lines.line(x), 2 * x)",
        "by_hand = 2 * x\nassert abs(by_hand - lines.line(x)).max() < 1e-12",
        "gaps = lines.line(x) - 2 * x\nassert torch.equal(gaps, gaps[:1].expand(3))",
        "assert x.sum() == 3 and len(x) > 0",
        "print(x == x)",
        "for v in (0, 1):\n    y = x\n    y = lines.line(x)\n    torch.testing.assert_close(y, x + x)",
        "assert 1 - 0.999**3000 > 0.95",
        "torch.manual_seed(0)",
    ],
)
def test_a_proper_assertion_is_left_alone(cell: str):
    assert found(cell) == []


def test_the_function_may_stand_on_both_sides_where_it_is_not_the_equation_above():
    assert found("") == []  # the last cell of the chapter, below another heading


def test_no_cell_of_this_book_asserts_to_no_purpose():
    assert problems(ROOT) == []


def test_no_test_of_this_repository_asserts_to_no_purpose():
    idle = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for test in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            what = idle_assertions(test.body, with_calls=False) + dropped_comparisons(test.body)
            idle |= {f"{path.relative_to(ROOT)}:{line}": sentence for line, sentence in what}
    assert idle == {}
