"""The statements that an equation's own cells need are found, and no others."""

import ast

import pytest

from tools.cell_slices import code_cells, equation_slice

CHAPTER = r"""# %%
import math
import torch

torch.set_num_threads(1)

# %% [markdown]
# A quoted `\label{eq-quoted}` shows nothing.

# %%
def double(x):
    factor = scale
    return factor * x


scale, unused = 2, print("slow")
values = []

# %%
values.append(1)
unrelated = [values for values in (1, 2)]
total = sum(values)
assert total == 1
print(total)

# %% [markdown]
# $$ y = 2 x \label{eq-line} $$

# %%
by_hand = 0
for value in values:
    by_hand += 2 * value

# %%
assert double(total) == by_hand

# %% tags=["exercise"]
assert "never"

# %% [markdown]
# $$ y' = 2 \label{eq-slope} $$ and $$ y'' = 0 \label{eq-bend} $$

# %%
leaf = torch.ones(1, requires_grad=True)
double(leaf).sum().backward()
torch.testing.assert_close(leaf.grad, torch.full((1,), 2.0))

# %% [markdown]
# ### The end

# %%
assert math.pi > 3

# %% [markdown]
# $$ 0 = 0 \label{eq-idle} $$

# %%
print(0)
"""


def lines(label: str) -> list[str]:
    """The first lines of the statements in a slice, as the source has them."""
    source = CHAPTER.splitlines()
    return [source[each.node.lineno - 1] for each in equation_slice(code_cells(CHAPTER), label)]


FIRST = ["import math", "import torch", "torch.set_num_threads(1)"]


def test_a_slice_holds_what_the_assertion_needs_in_the_order_of_the_page():
    assert lines("eq-line") == [
        *FIRST, "def double(x):", 'scale, unused = 2, print("slow")', "values = []", "values.append(1)",
        "total = sum(values)", "by_hand = 0", "for value in values:", "assert double(total) == by_hand",
    ]  # fmt: skip


def test_two_equations_of_one_formula_share_their_cells_and_a_call_for_its_effect_stays():
    assert lines("eq-slope") == lines("eq-bend")
    assert lines("eq-slope")[-3:] == [
        "leaf = torch.ones(1, requires_grad=True)",
        "double(leaf).sum().backward()",
        "torch.testing.assert_close(leaf.grad, torch.full((1,), 2.0))",
    ]
    assert "values = []" not in lines("eq-slope")


def test_the_assertions_of_other_cells_do_not_count():
    own = [each.node.lineno for each in equation_slice(code_cells(CHAPTER), "eq-line") if each.own]
    assert own == [CHAPTER[: CHAPTER.index("assert double")].count("\n") + 1]
    for label in ("eq-idle", "eq-quoted", "eq-other"):
        with pytest.raises(ValueError, match=f"no cell between {label} and the next numbered equation or heading"):
            equation_slice(code_cells(CHAPTER), label)


LOOP = r"""# %%
x, found = 1, []

# %%
for k in range(3):
    assert k < 3
    found.append(k)

# %% [markdown]
# $$ \label{eq-sum} $$

# %%
assert sum(found) == 3
"""


def test_what_is_needed_from_above_asserts_nothing_itself():
    """Else it would notice a mistake in the equation's stead."""
    namespace = {"range": lambda n: (7, -4)}
    for each in equation_slice(code_cells(LOOP), "eq-sum"):
        exec(compile(ast.Module([each.node], []), "loop", "exec"), namespace)
    assert namespace["found"] == [7, -4]
