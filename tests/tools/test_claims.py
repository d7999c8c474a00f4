"""Sentences of a page are bound to what proves them; what is unbound, stale or nothing is said, with file and line."""

from pathlib import Path

import pytest

from tools import claims, notebooks
from tools.page_sentences import sentences_of, split
from tools.pairs import NOTEBOOKS, ROOT

SOURCE = """\
# %% [markdown]
# # 01 · A line: where does it go?
#
# A line is straight. Lines, as Euclid et al. drew them, have
# no ends ([Euclid (1900)](https://arxiv.org/abs/1900.00001)). Why?
#
# **After this chapter you can**
# * draw one.
#
# *5 minutes to read, 5 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math
def tangent(x): return math.tan(x)
assert tangent(0) == 0
shown = plotting.show(figure, "01_line", alt="a line")

# %% [markdown]
# *A line of slope $1. 2$. It rises.*
#
# **Why is it so?** We now go on. The law, with
#
# $$ y = a x. \\label{eq-line} $$
#
# It holds at 3 points.
#
# ## In practice
#
# | if you | do | because |
# |---|---|---|
# | have a line | follow it | it goes on |
#
# ## Exercises
#
# Write your answer below.

# %% [markdown]
# ### Exercise 1.1 (easy): which?
#
# A text that claims a lot.

# %% [markdown]
# ## Remember
#
# 1. Lines go on. They
#    do not end.
"""
BOUND = """\
[[claim]]
says = '''Lines, as Euclid et al. drew them,
# have no ends ([Euclid (1900)](https://arxiv.org/abs/1900.00001)).'''
by = ["paper: http://arxiv.org/abs/1900.00001v2"]

[[claim]]
says = 'A line of slope $1. 2$. It rises.'
by = ["cell: assert tangent(0) == 0", "test_lines::test_a_line_rises"]

[[claim]]
says = 'follow it | it goes on'
by = ["test_lines::TestLine::test_it"]

[[claim]]
says = 'Lines go on.'
by = ["package: difflesson.lines.Line.slope", "equation: eq-line"]

[[claim]]
says = 'They do not end.'
by = ["package: difflesson.lines.SLOPE", "equation: eq-line"]

[[claim]]
says = 'It holds at 3 points.'
by = ["equation: eq-line"]

[no-claim]
begins = ["We now go", "The law"]
"""
FILES = {
    "notebooks/01_line.py": SOURCE,
    "tests/claims/01.toml": BOUND,
    "tests/lines/test_lines.py": "def test_a_line_rises(): ...\nclass TestLine:\n    def test_it(self): ...\n",
    "book/references.bib": "@misc{euclid, url = {https://arxiv.org/abs/1900.00001}}\n",
    "difflesson/lines.py": "SLOPE = 1\nclass Line:\n    def slope(self): ...\n",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / "notebooks" / "01_line.py"


def test_every_chapter_of_this_repository_binds_its_claims():
    assert {path.name: found for path in NOTEBOOKS.glob("[0-9]*.py") if (found := claims.problems(path))} == {}
    numbers = {path.name[:2] for path in NOTEBOOKS.glob("[0-9]*.py")}
    assert {path.stem for path in (ROOT / claims.FOLDER).glob("*.toml")} <= numbers


def test_sentences_are_those_of_prose_captions_tables_and_remember(source: Path):
    found = [(sentence.kind, sentence.text) for sentence in sentences_of(notebooks.cells_of(source))]
    assert found == [
        ("prose", "A line is straight."),
        ("prose", "Lines, as Euclid et al. drew them, have no ends ([Euclid (1900)](https://arxiv.org/abs/1900.00001))."),
        ("prose", "Why?"),
        ("caption", "*A line of slope $1. 2$."),
        ("caption", "It rises.*"),
        ("prose", "We now go on."),
        ("prose", "The law, with"),
        ("prose", "It holds at 3 points."),
        ("practice", "| have a line | follow it | it goes on |"),
        ("remember", "Lines go on."),
        ("remember", "They do not end."),
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "At 0.5 it is 3. ",
        "See [a. B](https://a.b/C.D) and `x. Y`, e.g. Here, cf. Eq. 3 of $a. B$. ",
        "(It is so.) ",
        '*So it is said: "no." ',
    ],
)
def test_a_sentence_ends_at_its_full_stop_and_nowhere_else(sentence: str):
    assert split(sentence + "$x$ is next. And one more.") == [sentence.strip(), "$x$ is next.", "And one more."]


def test_the_small_chapter_is_in_order_and_says_what_is_left(source: Path):
    assert claims.problems(source) == []
    assert claims.report(source).splitlines() == [
        "notebooks/01_line.py:4: prose: A line is straight.",
        "01_line: 7 of 8 claims bound (88%), 3 claim nothing",
    ]


CHANGED = {  # the file, what stood there, what stands there now: what is said, and how many sentences say so
    "sentence changed": (
        "notebooks/01_line.py", "Lines go on.", "Lines go on for ever.",
        ["tests/claims/01.toml: the page does not say 'Lines go on.'; nearest is 'Lines go on for ever.'. Where",
         "notebooks/01_line.py:45: a line of Remember that nothing proves: 'Lines go on for ever.'; bind it in"],
    ),
    "caption of a figure longer": (
        "notebooks/01_line.py", "It rises.*", "It rises. Always.*",
        ["notebooks/01_line.py:19: a caption that nothing proves: 'Always.*'; bind it in tests/claims/01.toml"],
    ),
    "row of the table": (
        "notebooks/01_line.py", "| follow it |", "| leave it |",
        ["the page does not say 'follow it | it goes on'",
         "notebooks/01_line.py:31: a row of In practice that nothing proves: '| have a line | leave it | it goes on"],
    ),
    "part of a row": (
        "tests/claims/01.toml", "'follow it | it goes on'", "'it goes on'",
        ["a row of In practice that nothing proves: '| have a line | follow it | it goes on |'"],
    ),
    "a test renamed": (
        "tests/lines/test_lines.py", "a_line_rises", "a_line_falls",
        ["tests/ has no test 'test_lines::test_a_line_rises'; the form is 'test_chapter_07::test_name', "
         "which is to prove 'A line of slope"],
    ),
    "a test of a class renamed": ("tests/lines/test_lines.py", "test_it", "test_that", ["TestLine::test_it"]),
    "a cell changed": (
        "notebooks/01_line.py", "tangent(0) == 0", "tangent(0) == 1",
        ["no line of 01_line.py that asserts is 'assert tangent(0) == 0'"],
    ),
    "a line that asserts nothing": (
        "tests/claims/01.toml", "assert tangent(0) == 0", "import math",
        ["no line of 01_line.py that asserts is 'import math'"],
    ),
    "an equation gone": ("notebooks/01_line.py", "eq-line", "eq-curve", 3 * ["no chapter shows the equation"]),
    "a paper gone": ("book/references.bib", "1900.00001", "1900.00002", ["book/references.bib has no url 'http"]),
    "a name of the package gone": (
        "difflesson/lines.py", "def slope", "def rise", ["the package has no 'difflesson.lines.Line.slope'"],
    ),
    "a constant of the package gone": ("difflesson/lines.py", "SLOPE", "RISE", ["has no 'difflesson.lines.SLOPE'"]),
    "the package alone": (
        "tests/claims/01.toml", '.Line.slope", "equation: eq-line"]', '"]', ["the package alone proves nothing"],
    ),
    "bound twice": (
        "tests/claims/01.toml", "[no-claim]", "[[claim]]\nsays = 'at 3 points'\nby = ['equation: eq-line']\n[no-claim]",
        ["binds twice: 'at 3 points', in part by 'It holds at 3 points.'"],
    ),
    "bound twice in the same words": (
        "tests/claims/01.toml", "says = 'Lines go on.'", "says = 'They do not end.'",
        ["binds twice: 'They do not end.'", "a line of Remember that nothing proves: 'Lines go on.'"],
    ),
    "bound and no claim": ("tests/claims/01.toml", '"The law"', '"The law", "It holds"', ["'It holds': it is bound"]),
    "a number is a claim": (
        "notebooks/01_line.py", "We now go on.", "We now go on in 3 steps.", ["begins 'We now go': it has a number"],
    ),
    "no such beginning": (
        "tests/claims/01.toml", '"The law"', '"The law", "Some law"', ["no sentence begins 'Some law'"],
    ),
    "a beginning of two": (
        "notebooks/01_line.py", "We now go on.", "We now go on. We now go further.", ["'We now go': it stands for two"],
    ),
    "too few": (
        "notebooks/01_line.py", "A line is straight.", "A line is straight. And thin. And long.",
        ["tests/claims/01.toml binds 7 of 10 claims, 80% is the least; python -m tools.claims 01 lists the rest"],
    ),
    "an entry without by": (
        "tests/claims/01.toml", 'by = ["paper: http://arxiv.org/abs/1900.00001v2"]', "",
        ["a claim has `says`, and in `by`"],
    ),
    "another key": ("tests/claims/01.toml", "[no-claim]", "[no_claim]", ["has no_claim; known are"]),
    "no TOML": ("tests/claims/01.toml", "[no-claim]", "[no-claim", ["is not TOML"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_what_is_wrong_is_said(source: Path, tmp_path: Path, case: str):
    name, old, new, expected = CHANGED[case]
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
    found = claims.problems(source)
    for said in expected:
        assert any(said in one for one in found), found
    if case not in ("another key", "no TOML", "an entry without by"):  # these leave more unbound than we name
        others = [said for said in found if "is the least" not in said or case == "too few"]
        assert len(others) == len(expected), found
