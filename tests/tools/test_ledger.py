"""Every numbered equation of this repository is in order, and the ledger notices one that is not."""

import re

import pytest

from tools import equation_labels
from tools.equation_labels import MUTANTS, PLANNED, Place, read
from tools.exercise_cells import SourceError
from tools.ledger import ROOT, executes, page, problems

CHAPTER, SECOND = "notebooks/00_line.py", "notebooks/01_curve.py"
MODULE, TEST = "difflesson/lines.py", "tests/test_lines.py"
CHAPTER_TEXT = r"""# %% [markdown]
# # 00 · A line: where does it go?
#
# ## Two points, `one` line
#
# $$ y = 2 x \label{eq-line} $$

# %%
from difflesson.lines import line, slope
print(line(1))

# %% [markdown]
# ## Two points, `one` line
# By $\eqref{eq-line}$ it is straight,
# $$ y' = 2. \label{eq-slope} $$
# Quoted, neither counts: `\label{eq-not}`.
# ```
# ## no heading
# $$ \label{eq-neither} $$
# ```

# %%
print(slope(1))
"""
MODULE_TEXT = '''"""Lines."""


def line(x):
    """`y = 2 x`  [eq-line]"""
    return 2 * x


def slope(x):
    """`y' = 2`  (eq-slope)"""
    return 2


def curve(x):
    """`y = x^2`  [eq-curve]"""
    return x**2
'''
TEST_TEXT = """import pytest


@pytest.mark.equation("eq-line", "eq-slope")
def test_lines():
    pass


@pytest.mark.equation("eq-curve")
def test_curve():
    pass
"""
READINGS_00, UNREAD = "tests/readings/chapter_00.py", "tests/readings/unread.toml"
READINGS_TEXT = """@reads("eq-line", "eq-slope")
def line():
    return Reading({})
"""
MUTANTS_07 = f"{MUTANTS}/07.toml"
MUTANTS_TEXT = """[[mutant]]
name = "one"
equation = "eq-line"

[[mutant]]
name = "two"
equation = ["eq-slope", "eq-line"]
"""


@pytest.fixture
def root(tmp_path):
    """A repository whose ledger is in order: two equations are shown, one waits for chapter 01."""
    texts = {
        CHAPTER: CHAPTER_TEXT,
        MODULE: MODULE_TEXT,
        TEST: TEST_TEXT,
        MUTANTS_07: MUTANTS_TEXT,
        READINGS_00: READINGS_TEXT,
        UNREAD: "",
        PLANNED: '01 = ["eq-curve"]\n',
        "CITATION.cff": 'repository-code: "https://example.org/lines"\n',
    }
    for path, text in texts.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    return tmp_path


def edit(root, path, old, new):
    text = (root / path).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (root / path).write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def known():
    """What is known of this repository's labels; reading all of it takes seconds."""
    return read(ROOT)


def test_the_ledger_of_this_repository_is_in_order(known):
    assert problems(known) == []


def test_the_ledger_of_the_small_repository_is_in_order(root):
    assert problems(read(root)) == []


SLOPE = r"2. \label{eq-slope} $$"
NO_DOCSTRING = "is named by no docstring of the package, no cell"
BROKEN = {  # what is wrong: file, what stands there, what shall stand there, the one sentence
    "shown, not implemented": (
        MODULE, "[eq-line]", "",
        f"{CHAPTER}: eq-line is implemented nowhere; name it in the function's docstring, [eq-line], "
        "or begin the cell that is its code with # [eq-line]",
    ),
    "shown, not executed": (
        CHAPTER, "print(line(1))", "print(slope(1))",
        f"{CHAPTER}: eq-line is not executed; let a cell below it use difflesson.lines.line",
    ),
    "shown, no mutant": (
        MUTANTS_07, '["eq-slope", "eq-line"]', '["eq-line"]',
        f"{MUTANTS}: eq-slope of {CHAPTER} has no mutant; plant a wrong formula that its test notices",
    ),
    "implemented, not tested": (
        TEST, '"eq-line", ', "",
        f"{MODULE}: eq-line of difflesson.lines.line has no test; compare it with an independent computation "
        'under @pytest.mark.equation("eq-line")',
    ),
    "implemented, not shown": (
        PLANNED, '"eq-curve"', "",
        f"{MODULE}: eq-curve of difflesson.lines.curve is in no chapter; show it, or list it in {PLANNED}",
    ),
    "tested, not implemented": (
        TEST, '"eq-curve"', '"eq-curve", "eq-other"', f"{TEST}: eq-other of test_curve {NO_DOCSTRING}",
    ),
    "mutant, not implemented": (
        MUTANTS_07, '"eq-line"]', '"eq-line", "eq-other"]', f"{MUTANTS}: eq-other of mutant two {NO_DOCSTRING}",
    ),
    "label of another form": (
        CHAPTER, SLOPE, SLOPE + r" $$ y \label{fig:y} $$",
        rf"{CHAPTER}: (0.3) has the label 'fig:y'; write \label{{eq-small-letters}}",
    ),
    "label twice": (
        CHAPTER, SLOPE, SLOPE + r" $$ y \label{eq-slope} $$",
        rf"{CHAPTER}: eq-slope stands twice on the page; refer to it with \eqref{{eq-slope}}",
    ),
    "reference to another page": (
        CHAPTER, r"\eqref{eq-line}", r"\eqref{eq-curve}",
        rf"{CHAPTER}: \eqref{{eq-curve}} is not on this page; link to its chapter instead",
    ),
    "planned, but shown": (
        PLANNED, '"eq-curve"', '"eq-curve", "eq-line"',
        f"{PLANNED}: eq-line stands in a chapter by now; take it off the list",
    ),
    "planned, not implemented": (
        PLANNED, '"eq-curve"', '"eq-curve", "eq-other"',
        f"{PLANNED}: eq-other {NO_DOCSTRING}; take it off the list",
    ),
    "not read": (
        READINGS_00, '"eq-line", ', "",
        f"{CHAPTER}: eq-line is not evaluated as the page has it; write its reading in {READINGS_00}, "
        'under @reads("eq-line")',
    ),
    "read, not on the page": (
        READINGS_00, '"eq-line"', '"eq-line", "eq-curve"',
        f"{READINGS_00}:2: reads eq-curve, which is not on the page of {CHAPTER}",
    ),
    "planned for a chapter that is there": (
        PLANNED, "01 =", "00 =",
        f"{PLANNED}: eq-curve waits for {CHAPTER}, which does not show it; show it there",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("path", "old", "new", "sentence"), BROKEN.values(), ids=BROKEN)
def test_each_broken_rule_gives_one_sentence_that_says_what_to_do(root, path, old, new, sentence):
    edit(root, path, old, new)
    assert problems(read(root)) == [sentence]


UNREADABLE = [  # labels that are read, the list of those that cannot be, and what is wrong
    ('"eq-line"', 'eq-slope = "a sentence"', ["1 of the 2 equations of 00; 0 is the most"]),
    ('"eq-line", "eq-slope"', 'eq-slope = "a sentence"', ["eq-slope of 00 has a reading; take it off the list",
                                                         "1 of the 2 equations of 00; 0 is the most"]),
    ('"eq-line", "eq-slope"', 'eq-gone = "a sentence"', ["eq-gone of 00 is not on the page; take it off the list",
                                                        "1 of the 2 equations of 00; 0 is the most"]),
]  # fmt: skip


@pytest.mark.parametrize(("read_ones", "listed", "sentences"), UNREADABLE)
def test_the_list_of_unreadable_equations_is_short_and_holds_no_other(root, read_ones, listed, sentences):
    edit(root, READINGS_00, '"eq-line", "eq-slope"', read_ones)
    (root / UNREAD).write_text(f"[00]\n{listed}\n", encoding="utf-8")
    assert problems(read(root)) == [f"{UNREAD}: {sentence}" for sentence in sentences]


def test_one_equation_in_five_may_be_unreadable_and_the_page_says_why(root):
    labels = [f"eq-{letter}" for letter in "abc"]
    for label in labels:
        edit(root, CHAPTER, SLOPE, SLOPE + rf" $$ y \label{{{label}}} $$")
    edit(root, READINGS_00, '"eq-line", "eq-slope"', ", ".join(f'"{label}"' for label in ["eq-line", *labels]))
    (root / UNREAD).write_text('[00]\neq-slope = "a sentence in symbols"\n', encoding="utf-8")
    assert [sentence for sentence in problems(read(root)) if "read" in sentence] == []
    lines = page(root).splitlines()
    (slope,) = (line for line in lines if "| `eq-slope` |" in line)
    (straight,) = (line for line in lines if "| `eq-line` |" in line)
    assert slope.endswith("| a sentence in symbols |")
    assert straight.endswith(f"| [evaluated](https://example.org/lines/blob/main/{READINGS_00}#L2) |")


def test_equations_are_numbered_in_the_order_of_the_page_and_a_number_by_hand_is_refused(root):
    assert [equation.tag for equation in read(root).chapters[0].equations] == ["0.1", "0.2"]
    edit(root, CHAPTER, SLOPE, SLOPE + r" $$ y \tag{0.3} $$")
    with pytest.raises(SourceError, match=rf"{CHAPTER}: an equation has a .tag; numbers come from the order"):
        read(root)


def test_an_equation_may_stand_in_two_chapters_each_with_a_number_of_its_own(root):
    text = CHAPTER_TEXT.replace("# 00 ·", "# 01 ·")
    (root / SECOND).write_text(text.replace("eq-slope", "eq-curve").replace("slope", "curve"), encoding="utf-8")
    edit(root, PLANNED, '"eq-curve"', "")
    edit(root, MUTANTS_07, '"eq-line"]', '"eq-line", "eq-curve"]')
    (root / READINGS_00.replace("00", "01")).write_text(READINGS_TEXT.replace("slope", "curve"), encoding="utf-8")
    assert problems(read(root)) == []
    assert [chapter.equations[0][:2] for chapter in read(root).chapters] == [("0.1", "eq-line"), ("1.1", "eq-line")]


USES = [  # a cell, and whether it executes difflesson.lines.line and the method difflesson.lines.Line.at
    ("from difflesson import lines\nlines.line(1)", True, False),
    ("from difflesson.lines import line as straight\nstraight(1)", True, False),
    ("difflesson.lines.line(1)", True, False),
    ("made_above(1)", True, False),  # from `made_above = partial(line)` before the equation
    ("from difflesson.lines import line", False, False),
    ("from difflesson.curves import line\nline(1)", False, False),  # that of another module
    ("from difflesson import curves\ncurves.line(1)", False, False),
    ("from numpy import line\nline(1)", False, False),
    ("line = 3\nprint(line)", False, False),  # a name of the chapter's own
    ("axes.line(1)", False, False),  # a method of something else
    ("drawn.at(1)", False, True),
    ("difflesson.lines.Line.at(drawn, 1)", False, True),
    ("difflesson.curves.at(1)", False, False),
    ("%time line", False, False),
    ("    unexpected(indent)\n\n# %%\nfrom difflesson.lines import line\nline(1)", True, False),
]


@pytest.mark.parametrize(("cell", "function", "method"), USES)
def test_an_equation_is_executed_by_what_is_imported_from_its_module(root, cell, function, method):
    text = (
        "# %%\nfrom functools import partial\nimport difflesson.lines\nmade_above = partial(difflesson.lines.line)\n\n"
        "# %% [markdown]\n# $$ y = 2 x \\label{eq-line} $$\n\n# %%\n" + cell + "\n"
    )
    (root / CHAPTER).write_text(text, encoding="utf-8")
    chapter = equation_labels.read_chapter(root / CHAPTER)
    (equation,) = chapter.equations
    assert executes(equation, Place(MODULE, "difflesson.lines.line", 1), chapter) == function
    assert executes(equation, Place(MODULE, "difflesson.lines.Line.at", 1), chapter) == method
    assert executes(equation, Place(MODULE, "difflesson.lines", 1), chapter) == (function or "lines.Line" in cell)


def test_a_method_of_a_module_that_the_chapter_never_imports_is_not_what_it_uses(root):
    (root / CHAPTER).write_text("# %% [markdown]\n# $$ y \\label{eq-line} $$\n\n# %%\ndrawn.at(1)\n", encoding="utf-8")
    chapter = equation_labels.read_chapter(root / CHAPTER)
    assert not executes(chapter.equations[0], Place(MODULE, "difflesson.lines.Line.at", 1), chapter)


# --- equations whose code is a cell of the chapter --------------------------------------------------------------

OWN = "# %%\n# [eq-slope]\ndef slope_of(x):\n    return 2\n"


@pytest.fixture
def own(root):
    """The small repository with the second equation's code in the chapter instead of the package."""
    edit(root, MODULE, "  (eq-slope)", "")
    edit(root, CHAPTER, "# %%\nprint(slope(1))\n", OWN)
    return root


def test_the_code_of_an_equation_may_be_a_cell_of_the_chapter(own):
    assert problems(read(own)) == []
    line = CHAPTER_TEXT[: CHAPTER_TEXT.index("# %%\nprint(slope(1))")].count("\n") + 2
    assert read(own).implemented["eq-slope"] == [Place(CHAPTER, "00_line", line)]
    code = "https://example.org/lines/blob/main"
    assert f"| `eq-slope` | · [in the chapter]({code}/{CHAPTER}#L{line}) |" in page(own)


@pytest.mark.parametrize("first", ["# [eq-slope], [eq-line]", "# [eq-line] [eq-slope]"])
def test_a_cell_may_be_the_code_of_two_equations(own, first):
    edit(own, CHAPTER, "# [eq-slope]", first)
    edit(own, MODULE, "  [eq-line]", "")
    assert problems(read(own)) == []


OWN_BROKEN = {
    "above the equation": (
        "# %% [markdown]\n# # 00", OWN + "\n# %% [markdown]\n# # 00",
        f"{CHAPTER}:2: the cell that is the code of eq-slope stands above the equation",
    ),
    "of no equation of the page": (
        "print(line(1))", "print(line(1))\n\n# %%\n# [eq-curve]\ny = 1",
        f"{CHAPTER}:13: a cell is the code of eq-curve, which is not on this page",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "sentence"), OWN_BROKEN.values(), ids=OWN_BROKEN)
def test_a_cell_that_is_the_code_of_nothing_on_the_page_is_reported(own, old, new, sentence):
    if new.startswith(OWN):
        edit(own, CHAPTER, OWN, "")
    edit(own, CHAPTER, old, new)
    assert problems(read(own)) == [sentence]


@pytest.mark.parametrize("cell", ["x = 1\n# [eq-slope]", "# see [eq-slope]\nx = 1", "# [eq-slope]: why\nx = 1"])
def test_only_a_cell_that_begins_with_the_label_alone_is_its_code(own, cell):
    edit(own, CHAPTER, OWN.removeprefix("# %%\n"), cell + "\n")
    (sentence,) = (sentence for sentence in problems(read(own)) if "implemented nowhere" in sentence)
    assert sentence.endswith("or begin the cell that is its code with # [eq-slope]")


def test_a_solved_exercise_is_no_use_of_its_function(root):
    edit(root, CHAPTER, "# %%\nprint(slope(1))", '# %% tags=["exercise"]\nprint(slope(1))')
    assert problems(read(root)) == [
        f"{CHAPTER}: eq-slope is not executed; let a cell below it use difflesson.lines.slope"
    ]


def test_labels_in_docstrings_belong_to_the_innermost_definition(tmp_path):
    (tmp_path / "lines").mkdir()
    text = '"""[eq-a]"""\n\n\nclass Line:\n    """[eq-b]"""\n\n    def at(self, x):\n        """(eq-c), not eq-d"""\n'
    (tmp_path / "lines" / "straight.py").write_text(text, encoding="utf-8")
    found = equation_labels.implemented(tmp_path / "lines")
    assert {label: (place.name, place.line) for label, (place,) in found.items()} == {
        "eq-a": ("lines.straight", 1),
        "eq-b": ("lines.straight.Line", 4),
        "eq-c": ("lines.straight.Line.at", 7),
    }


def test_marks_are_found_on_functions_classes_parameters_and_whole_files(tmp_path):
    text = """import pytest

pytestmark = [pytest.mark.equation("eq-file"), pytest.mark.slow]


@pytest.mark.equation("eq-class")
class TestLines:
    @pytest.mark.equation("eq-a", "eq-b")
    def test_one(self):
        pass


@pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.equation("eq-parameter"))])
def test_two(x):
    pass


@pytest.mark.equation("eq-helper")
def helper():
    pass
"""
    (tmp_path / "test_lines.py").write_text(text, encoding="utf-8")
    names = {label: [place.name for place in places] for label, places in equation_labels.tested(tmp_path).items()}
    assert names == {
        "eq-file": ["TestLines.test_one", "test_two"],
        "eq-class": ["TestLines.test_one"],
        "eq-a": ["TestLines.test_one"],
        "eq-b": ["TestLines.test_one"],
        "eq-parameter": ["test_two"],
    }


def test_the_page_links_equations_functions_and_tests(root):
    text = page(root)
    assert "## 00 · A line: where does it go?" in text
    code = "https://example.org/lines/blob/main"
    assert (
        f"| [(0.2)](notebooks/00_line.ipynb#two-points-one-line-1) | `eq-slope` | · [`slope`]({code}/{MODULE}#L9) "
        f"| · [lines]({code}/{TEST}#L5) | 1 | [evaluated]({code}/{READINGS_00}#L2) |" in text
    )
    assert f"| 01 | `eq-curve` | · [`curve`]({code}/{MODULE}#L14) | · [curve]({code}/{TEST}#L10) | 0 |" in text


def test_without_an_address_of_our_own_the_page_names_functions_and_tests_and_links_none(root):
    (root / "CITATION.cff").write_text("title: lines\n", encoding="utf-8")
    assert "· `slope` | · lines | 1 | evaluated |" in page(root) and "http" not in page(root)


def test_every_link_to_a_file_of_this_repository_finds_it_and_the_line(known):
    links = re.findall(r"https://example\.org/blob/main/([^)#]+)#L(\d+)\)", page(ROOT, "https://example.org", known))
    assert len(links) > 100
    for path, line in links:
        first = (ROOT / path).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert re.match(r"\s*(def|class) |\"\"\"|# \[eq-", first), f"{path}#L{line}: {first}"


def test_anchors_are_those_that_myst_gives():
    slugs = pytest.importorskip("myst_parser.slugs", reason="only newer releases of myst-parser have such a module")
    for title in ("00 · Start here: how do you tell?", "Second order: three names", r"What $\gamma$ is", "A `b_c` d"):
        assert equation_labels.unique_slug(title, []) == slugs.github_slugify(re.sub(r"\$[^$]*\$|`", "", title))
    taken = ["a-b"]
    taken.append(equation_labels.unique_slug("A b", taken))
    taken.append(equation_labels.unique_slug("A b", taken))
    assert taken == ["a-b", "a-b-1", "a-b-2"]
