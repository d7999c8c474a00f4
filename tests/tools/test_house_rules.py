"""What a chapter's place in the repository asks is checked, and each problem names file and line."""

from pathlib import Path

import pytest

from tools.house_rules import problems, todos
from tools.pairs import ROOT

SOURCE = """# %% [markdown]
# # 00 · A line: where does it go?
#
# After [Efron
# (2011)](https://doi.org/10.1198/jasa.2011.tm11181), and see <https://doi.org/10.1/x>.

# %%
plotting.show(figure, "00_line", alt="a line")
"""
FILES = {
    "notebooks/00_line.py": SOURCE.replace(", and see <https://doi.org/10.1/x>", ""),
    "README.md": "| | chapter |\n|---|---|\n| 00 | [A line](notebooks/00_line.ipynb): where does it go? |\n",
    "book/chapters.toml": '[[parts]]\ntitle = "I"\nchapters = [{ number = "00" }]\n',
    "book/references.bib": "@misc{efron, author = {Efron, B.}, year = {2011}, "
    "url = {https://doi.org/10.1198/jasa.2011.tm11181}}\n"
    "@misc{gauss, author = {Gauss, C.}, year = {1809}, url = {https://doi.org/10.1198/jasa.2011.other}}\n",
    "figures/00_line.png": "",
    "figures/tour.png": "",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_this_repository_is_in_order():
    assert problems(ROOT) == []


def test_the_small_repository_is_in_order(root: Path):
    assert problems(root) == []


BROKEN = {  # file, its new text, the one sentence
    "no row": (
        "README.md", "[A line](notebooks/00_line.ipynb), outside the table",
        "README.md: the table of chapters has no row that links to notebooks/00_line.ipynb",
    ),
    "not in the course": (
        "book/chapters.toml", FILES["book/chapters.toml"].replace("00", "01"),
        "book/chapters.toml has no chapter 00: add it to a part",
    ),
    "orphan": ("figures/00_old.png", "", "figures/00_old.png: no cell draws it; delete it"),
    "no entry": (
        "notebooks/00_line.py", SOURCE,
        "notebooks/00_line.py:5 links to https://doi.org/10.1/x, which no entry of book/references.bib has as its url: "
        "add one",
    ),
    "another year": (
        "notebooks/00_line.py", FILES["notebooks/00_line.py"].replace("2011)]", "2012)]"),
        "notebooks/00_line.py:5 says 'Efron\\n(2012)'; book/references.bib gives Efron the year 2011",
    ),
    "another paper": (
        "notebooks/00_line.py", FILES["notebooks/00_line.py"].replace("tm11181", "other"),
        "notebooks/00_line.py:5 says 'Efron\\n(2011)'; the address is that of Gauss (1809)",
    ),
    "no url": ("book/references.bib", "@misc{a, year = {1}}", "book/references.bib: entry a needs a url, the address "
               "that chapters link to"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "text", "sentence"), BROKEN.values(), ids=BROKEN)
def test_each_broken_rule_gives_one_sentence(root: Path, name: str, text: str, sentence: str):
    (root / name).write_text(text, encoding="utf-8")
    assert problems(root) == [sentence]


def test_what_is_left_to_do_is_found_in_every_file_of_a_chapter(root: Path):
    for name in ("difflesson/exercises/chapter00.py", "tests/chapters/test_chapter_00.py", "tests/mutants/00.toml"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("# first\n# TODO this\n\n# TODO and that\n", encoding="utf-8")
    found = todos(root / "notebooks" / "00_line.py")
    assert len(found) == 6 and found[-1] == "tests/mutants/00.toml:4: still TODO and that"


def test_a_norm_that_the_web_pages_table_would_lose_is_reported(root: Path):
    source = root / "notebooks" / "00_line.py"
    rows = (
        r"# | a | $\|x\|^2$ and more |",  # one bar on the page
        r"# | a | $\lVert x \rVert^2$ and $p(x \mid y)$ |",
        r"# | a \| b | $x$ \| $y$ |",  # in words it is what Markdown wants
        r"# The norm $\|x\|$ in a sentence.",
    )
    source.write_text(SOURCE.partition("\n# %%\n")[0] + "\n".join(rows) + "\n", encoding="utf-8")
    number = source.read_text(encoding="utf-8").splitlines().index(rows[1])  # counted from 0; from 1, that of rows[0]
    (found,) = [problem for problem in problems(root) if "of a table" in problem]
    assert found.startswith(rf"notebooks/00_line.py:{number} has \| in a formula of a table") and "lVert" in found
