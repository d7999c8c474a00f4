"""The numbers that chapters state in words come from their code, and the check sees when one does not."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from tools.pairs import NOTEBOOKS, notebook_of
from tools.prose import Number, numbers_of
from tools.prose_numbers import Page, Place, problems, source_of

SOURCES = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.py"))
CHAPTER = """# %% [markdown]
# # 00 · How far?
#
# ## A walk

# %%
for gamma in (1.0, 3.0):
    walk = draw(kernel(gamma), start, time_grid(200))
    print(f"gamma {gamma:g}: {walk.mean():.3f}, share {share:.1%}")
@CODE@

# %% [markdown]
# @TEXT@
#
# ## Another matter
#
# More text.

# %%
print("a difference of", 0.77)

# %% [markdown]
# ## Remember
#
# 1. @LATER@
"""
PRINTED = "gamma 1: 0.214, share 12.5%\ngamma 3: 1.386, share 64.7%\n"


@pytest.fixture
def chapter(tmp_path: Path):
    """A function that writes a chapter and what it printed, and returns its source."""

    def write(text: str = "", code: str = "", later: str = "") -> Path:
        source = tmp_path / "notebooks" / "00_walk.py"
        source.parent.mkdir(exist_ok=True)
        filled = CHAPTER.replace("@TEXT@", text).replace("@CODE@", code).replace("@LATER@", later)
        source.write_text(filled, encoding="utf-8")
        notebook = notebook_of(source)
        code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell, printed in zip(code_cells, ("", PRINTED, "a difference of 0.77"), strict=True):
            cell.outputs = [nbformat.v4.new_output("stream", text=printed)]
        nbformat.write(notebook, source.with_suffix(".ipynb"))
        return source

    return write


def stated(text: str) -> list[str]:
    return [f"{'-' * n.negative}{n.digits}{'%' * n.percent} {n.name}".strip() for n in numbers_of(text)]


# ---- which numbers a page states


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3,000 dots and 0.38 (+- 0.03)", ["3,000", "0.38", "0.03"]),
        ("Contours hold 50, 90 and 99 % of the mass", ["50%", "90%", "99%"]),
        ("9\nto 18 % of ours", ["9%", "18%"]),
        ("at $\\gamma = 3$ and 8, not $-2$ or $(0.4, -0.6)$", ["3 gamma", "8 gamma", "-2", "0.4", "-0.6"]),
        ("scales -1, 0, 1, 3 and 6; p = 0.9; class 2", ["-1 gamma", "3 gamma", "6 gamma", "0.9 p", "2 label"]),
        ("With 25 steps from $\\gamma = 3$, 300 steps", ["25 steps", "3 gamma", "300 steps"]),
        ("about $0.7\\, \\gamma$, of $\\alpha_t^2 / 2 + \\frac14$ in $10^{-15}$ and $x_2$", ["0.7"]),
        ("$$ x = 0.25 $$ and `steps=64` and ``` 12 ```", []),
        ("## Heading of 12\n\n1. first 0.5\n12. twelfth", ["0.5"]),
        ("chapters 05 and 17, exercise 11.3, section 4.3, eq. 6, seed 3, Algorithm 2", []),
        ("[Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598) of [7.5](07_x.ipynb#a-2)", ["7.5"]),
        ("<details><summary>Hint</summary> 0.77 </details> float64, x2, 28x28", []),
        ("*40 minutes to read, 25 more for Deeper, 30 seconds to run, on a laptop.*", []),
        ("between 0 and 1, and 1 % of 100", ["1%", "100"]),
    ],
)
def test_the_numbers_of_a_text(text: str, numbers: list[str]):
    assert stated(text) == numbers


# ---- what binds them


@pytest.mark.parametrize(
    "text",
    [
        "It goes 0.21 far, or 1.39, or 0.214.",
        "A share of 65 %, 64.7 percent, or 0.647.",
        "After 200 steps at $\\gamma = 3$.",
    ],
)
def test_a_number_is_found_rounded_as_it_is_written(chapter, text: str):
    assert problems(chapter(text)) == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It goes 0.22 far.", "0.22"),  # the last digit
        ("It goes 0.41 far.", "0.41"),  # two digits exchanged
        ("It goes 0.2140 far.", "0.2140"),  # more than was printed
        ("A share of 64 %.", "64"),
        ("After 400 steps.", "400"),
        ("At $\\gamma = 4$.", "4"),
        ("A difference of 0.77.", "0.77"),  # of another section
        ("It takes 2 times as long.", "2"),
        ("At class 3.", "3"),  # there is a 3, but no class of that name
    ],
)
def test_a_number_that_nothing_gives_is_named_with_its_line(chapter, text: str, number: str):
    (problem,) = problems(chapter(text))
    assert problem.startswith(f'notebooks/00_walk.py:13: {number} in "{text}": no')
    assert "Print it, or assert round(value" in problem and "or cite its source" in problem


@pytest.mark.parametrize(
    "code",
    [
        "assert round(ratio, 1) == 6.5",
        "assert [round(r, 1) for r in ratios] == [6.5, 7.1]",
        "assert abs(ratio - 6.5) < 0.05",
        "torch.testing.assert_close(ratios, torch.tensor([6.5, 7.1]), atol=0.05, rtol=0)",
    ],
)
def test_an_assertion_binds_what_it_says_a_value_is(chapter, code: str):
    assert problems(chapter("It is 6.5 times as far.", code)) == []
    assert len(problems(chapter("It is 6.6 times as far.", code))) == 1


@pytest.mark.parametrize(
    "code",
    ["assert ratio < 6.5", "assert f(6.5) == ratio", "# 6.5", "with plotting.style():\n    plotting.dot(6.5)"],
)
def test_a_bound_a_comment_and_what_only_draws_bind_nothing(chapter, code: str):
    assert len(problems(chapter("It is 6.5 times as far.", code))) == 1


def test_a_number_after_a_link_to_its_source_is_cited(chapter):
    cited = "[Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598) found 0.15 the best."
    assert problems(chapter(cited)) == []
    assert len(problems(chapter(cited + " So 0.15 it is."))) == 1
    assert len(problems(chapter("We took 0.15 steps more than [they](https://arxiv.org/abs/2207.12598)."))) == 1


def test_the_alt_text_of_a_figure_and_its_caption_are_read(chapter):
    alt = 'shown = plotting.show(figure, "00_walk", alt="It goes @ far.")'
    assert problems(chapter(code=alt.replace("@", "0.21"))) == []
    (problem,) = problems(chapter(code=alt.replace("@", "0.22")))
    assert ':10: 0.22 in "It goes 0.22 far."' in problem
    assert len(problems(chapter("*It goes 0.22 far.*"))) == 1


def test_an_alt_text_that_was_changed_since_the_build_is_read(chapter):
    source = chapter(code='shown = plotting.show(figure, "00_walk", alt="It goes 0.21 far.")')
    source.write_text(source.read_text(encoding="utf-8").replace("0.21 far", "0.22 far"), encoding="utf-8")
    assert len(problems(source)) == 1


def test_what_is_said_again_comes_from_one_cell(chapter):
    assert problems(chapter(later="It goes from 0.214 to 1.386.")) == []
    assert len(problems(chapter(later="It goes from 0.214 to 0.77."))) == 2


def test_the_chapters_test_file_binds_where_the_paragraph_says_so(chapter, tmp_path: Path):
    tests = tmp_path / "tests" / "chapters" / "test_chapter_00.py"
    tests.parent.mkdir(parents=True)
    tests.write_text("def test_far():\n    assert abs(far() - 137.21) < 0.5\n\n\nTOLD = (9.682,)\n")
    text = "A longer walk (not run here, but in the tests) goes 137.21 far, 9.7 on average."
    assert problems(chapter(text)) == []
    assert len(problems(chapter(text.replace(", but in the tests", "")))) == 2


def test_a_chapter_whose_code_is_not_built_yet_has_no_problems_of_this_kind(chapter):
    source = chapter("It goes 0.22 far.")
    source.write_text(source.read_text(encoding="utf-8").replace("print(f", "print(g"), encoding="utf-8")
    assert problems(source) == []


# ---- the chapters there are


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_number_in_the_prose_of_the_chapters_comes_from_somewhere(source: Path):
    assert problems(source) == []


def changed(number: Number) -> Iterator[Number]:
    """The number with its last digit one more, doubled, and with its last two digits exchanged."""
    digits, decimals = number.digits, number.decimals
    last = digits[:-1] + str((int(digits[-1]) + 1) % 10)
    twice = f"{2 * abs(number.value):,.{decimals}f}" if "," in digits else f"{2 * abs(number.value):.{decimals}f}"
    swapped = re.sub(r"(\d)(\D?)(\d)$", r"\3\2\1", digits)
    for other in sorted({last, twice, swapped} - {digits}):
        text = number.text[: number.start] + other + number.text[number.start + len(digits) :]
        yield next((each for each in numbers_of(text) if each.start == number.start), number)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_of_ten_changed_numbers_of_a_chapter_more_than_eight_are_found(source: Path):
    """Those that cite a source apart: nothing here knows what stands in it."""
    page = Page(source)
    if not page.is_built:
        pytest.skip("its code has changed since it was built")
    own = [place for place in page.numbers if source_of(place, page) != "citation"]
    trials = [Place(other, place.section, place.beside) for place in own for other in changed(place.number)]
    if len(own) < 20:
        pytest.skip("too few numbers yet to have a rate")
    found = sum(not source_of(trial, page) for trial in trials)
    assert found / len(trials) > 0.8, f"{found} of {len(trials)}"
