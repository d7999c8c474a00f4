"""Notebooks become pages: links citations, italics captions; what cannot is refused with what to write instead."""

import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest
from docutils import nodes
from docutils.utils import new_document
from pybtex.database import parse_file

from book import staging
from tools import citations

ROOT = Path(staging.__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PAPERS = {
    "arxiv.org/abs/2207.12598": citations.Paper("ho2022", "Ho & Salimans", "2022"),
    "arxiv.org/abs/2011.13456": citations.Paper("song2021", "Song et al.", "2021"),
    "doi.org/10.1198/jasa.2011.tm11181": citations.Paper("efron2011", "Efron", "2011"),
}
PICTURE = {
    "cell_type": "code",
    "source": "shown",
    "metadata": {"tags": ["hide-input"]},
    "outputs": [{"data": {"image/png": "...", "text/plain": "<Image>"}, "metadata": {"image/png": {"alt": "a line"}}}],
}


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "source": text, "metadata": {}}


def staged(*cells: dict) -> list[dict]:
    """The cells of a chapter after staging; the arguments stay as they are."""
    return staging.stage_chapter(json.loads(json.dumps({"cells": cells})), PAPERS, "notebooks/07_x.ipynb")["cells"]


# --- citations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link, citation",
    [
        ("[Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598)", "{cite:t}`ho2022`"),
        ("[Ho and Salimans, 2022](https://arxiv.org/abs/2207.12598v1)", "{cite:t}`ho2022`"),
        ("[Song et al. (2021), section 3](https://arxiv.org/pdf/2011.13456.pdf)", "{cite:t}`song2021`, section 3"),
        ("[Song et al.\n(2021)](http://www.arxiv.org/abs/2011.13456)", "{cite:t}`song2021`"),
        ("[Efron (2011)](https://doi.org/10.1198/jasa.2011.tm11181)", "{cite:t}`efron2011`"),
    ],
)
def test_a_link_that_names_its_paper_becomes_a_citation(link: str, citation: str):
    assert citations.cite(f"See {link}.", PAPERS, "chapter") == f"See {citation}."


@pytest.mark.parametrize(
    "link",
    [
        "[arXiv:2207.12598](https://arxiv.org/abs/2207.12598)",
        "[their appendix](https://arxiv.org/abs/2207.12598)",
        "[Ho & Salimans (2022)](https://example.org/slides)",
        "[the ledger](../ledger.md)",
    ],
)
def test_any_other_link_stays_a_link(link: str):
    assert citations.cite(link, PAPERS, "chapter") == link


@pytest.mark.parametrize(
    "url", ["https://arxiv.org/abs/2105.05233", "https://doi.org/10.1/x", "http://dx.doi.org/10.1/x"]
)
@pytest.mark.parametrize("text", ["[Dhariwal & Nichol (2021)]({})", "<{}>", "see {}."])
def test_a_paper_without_an_entry_is_refused_with_its_address(url: str, text: str):
    with pytest.raises(ValueError, match=rf"notebooks/07_x.ipynb links to {re.escape(url)}.*references.bib.*add one"):
        staged(markdown(text.format(url)))


def test_a_citation_of_another_year_than_the_entrys_is_refused():
    with pytest.raises(ValueError, match=r"'Ho & Salimans \(2021\)'; .* gives Ho & Salimans the year 2022"):
        staged(markdown("[Ho & Salimans (2021)](https://arxiv.org/abs/2207.12598)"))


def entry(key: str, **fields: str) -> str:
    return f"@misc{{{key}, " + ", ".join(f"{name} = {{{value}}}" for name, value in fields.items()) + "}\n"


def test_the_bibliography_is_read_as_chapters_name_the_papers(tmp_path: Path):
    one = entry("a", author="Song, Yang and Ho, J. and Poole, B.", year="2021", url="https://arxiv.org/abs/1v2")
    two = entry("b", author="von Neumann, John and Ho, J.", year="1951", url="https://doi.org/10.1/x")
    path = tmp_path / "references.bib"
    path.write_text(one + two, encoding="utf-8")
    assert citations.bibliography(path) == {
        "arxiv.org/abs/1": citations.Paper("a", "Song et al.", "2021"),
        "doi.org/10.1/x": citations.Paper("b", "von Neumann & Ho", "1951"),
    }


@pytest.mark.parametrize(
    "second, message",
    [
        ({"author": "Song, Yang", "year": "2022", "url": "https://arxiv.org/abs/1v3"}, "same address"),
        ({"author": "Song, Yang", "year": "2022"}, "needs a url"),
    ],
)
def test_entries_that_cannot_be_told_apart_are_refused(tmp_path: Path, second: dict, message: str):
    path = tmp_path / "references.bib"
    first = entry("a", author="Song, Yang", year="2021", url="https://arxiv.org/abs/1")
    path.write_text(first + entry("b", **second), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        citations.bibliography(path)


# --- two papers that read alike -----------------------------------------------------------------------------

SONGS = (
    entry("sde", author="Song, Yang and Ermon, Stefano and Poole, Ben", year="2021", url="https://arxiv.org/abs/1")
    + entry("ho", author="Ho, Jonathan", year="2021", url="https://arxiv.org/abs/3")
    + entry("ddim", author="Song, Jiaming and Meng, C. and Ermon, S.", year="2021", url="https://arxiv.org/abs/2")
)


@pytest.fixture
def songs(tmp_path: Path) -> dict[str, citations.Paper]:
    (tmp_path / "references.bib").write_text(SONGS, encoding="utf-8")
    return citations.bibliography(tmp_path / "references.bib")


def test_papers_that_read_alike_get_letters_in_the_order_of_the_bibliography(songs):
    assert {paper.key: paper.letter for paper in songs.values()} == {"sde": "a", "ddim": "b", "ho": ""}


@pytest.mark.parametrize("year", ["2021", "2021b"])
def test_the_address_says_which_of_them_is_meant(songs, year):
    assert citations.cite(f"[Song et al. ({year})](https://arxiv.org/abs/2)", songs, "chapter") == "{cite:t}`ddim`"


@pytest.mark.parametrize(("words", "url"), [("Song et al. (2021a)", 2), ("Song et al. (2021c)", 1), ("Ho (2021a)", 3)])
def test_a_letter_that_is_not_the_papers_is_refused(songs, words, url):
    with pytest.raises(ValueError, match="book/references.bib gives .* the year 2021"):
        citations.cite(f"[{words}](https://arxiv.org/abs/{url})", songs, "chapter")


def test_the_book_prints_the_letters(songs, tmp_path):
    path = tmp_path / "lettered.bib"
    path.write_text(citations.with_letters(SONGS, songs), encoding="utf-8")
    years = {key: entry.fields["year"] for key, entry in parse_file(str(path)).entries.items()}
    assert years == {"sde": "2021a", "ddim": "2021b", "ho": "2021"}


def test_every_entry_of_the_books_bibliography_is_linked_from_a_chapter():
    linked = {
        citations.address(url)
        for path in CHAPTERS
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        for _, url in citations.LINK.findall("".join(cell["source"]))
    }
    papers = citations.bibliography(ROOT / "book" / "references.bib")
    unused = sorted(paper.key for address, paper in papers.items() if address not in linked)
    assert unused == [], "no chapter links to these papers: take them out of book/references.bib"


# --- Deeper -------------------------------------------------------------------------------------------------

TIMES = "*40 minutes to read, 25 more for Deeper, 30 seconds to run, on a laptop, without a GPU.*"


def test_the_times_of_a_chapter_are_followed_by_links_to_its_deeper_sections():
    opening, *_ = staged(
        markdown(f"# 07 · A line?\n\n{TIMES}"),
        markdown("## Deeper: the `eps` of $\\gamma$\n\nFor you.\n\n### A part\n\n```\n## Deeper: quoted\n```"),
        markdown("## Deeper: the `eps` of $\\gamma$\n\n## Deeper\n\n### Deeper: not a section"),
    )
    first, second = "#deeper-the-eps-of-", "#deeper-the-eps-of--1"
    name = "the `eps` of $\\gamma$"
    links = f"[{name}]({first}); [{name}]({second})"
    assert opening["source"] == f"# 07 · A line?\n\n{TIMES}\n\nDeeper, at the end of this page: {links}."


def test_a_chapter_without_deeper_stays_as_it_is():
    assert [cell["source"] for cell in staged(markdown(TIMES), markdown("## Remember"))] == [TIMES, "## Remember"]


# --- figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "caption, rest",
    [
        ("What to see.", []),
        ("Two\nlines: $x^*$ and `a * b`, **bold**.", ["The text.\n\n*More.*"]),
    ],
)
def test_the_paragraph_in_italics_after_a_picture_becomes_its_caption(caption: str, rest: list[str]):
    picture, *others = staged(PICTURE, markdown("\n\n".join([f"*{caption}*", *rest])))
    assert picture["metadata"]["mystnb"] == {"image": {"alt": "a line"}, "figure": {"caption": caption}}
    assert picture["metadata"]["tags"] == ["hide-input"]
    assert [cell["source"] for cell in others] == rest


def test_a_caption_may_cite():
    picture, _ = staged(
        PICTURE, markdown("*After [Efron (2011)](https://doi.org/10.1198/jasa.2011.tm11181).*\n\nText.")
    )
    assert picture["metadata"]["mystnb"]["figure"]["caption"] == "After {cite:t}`efron2011`."


@pytest.mark.parametrize(
    "text", ["What to see.", "*What* to *see*", "**What to see.**", "* a list*", "*What to see", "Text.\n\n*Late.*"]
)
def test_a_picture_without_a_caption_is_refused_with_what_to_write(text: str):
    with pytest.raises(ValueError, match=r"07_x.ipynb: the figure 'a line'.* has no caption. .*\*What to conclude"):
        staged(PICTURE, markdown(text))


@pytest.mark.parametrize("after", [[], [{**PICTURE, "outputs": []}]])
def test_a_picture_with_no_text_after_it_is_refused(after: list[dict]):
    with pytest.raises(ValueError, match="has no caption"):
        staged(PICTURE, *after)


def test_a_picture_without_alt_text_is_refused():
    silent = {**PICTURE, "outputs": [{"data": {"image/png": "..."}, "metadata": {}}]}
    with pytest.raises(ValueError, match="07_x.ipynb has a figure without alt text: end its cell with plotting.show"):
        staged(silent, markdown("*What to see.*"))


@pytest.mark.parametrize("part", ["turn-the-knob", "one-step"])
def test_a_figure_that_one_can_play_with_is_followed_by_its_part_and_says_so(part: str):
    figure = next(name for name, of in staging.PLAYED_WITH.items() if of == part)
    played = json.loads(json.dumps(PICTURE))
    played["outputs"][0]["metadata"]["image/png"]["figure"] = figure
    picture, after = staged(played, markdown("*What to see.*\n\nText."))
    caption = picture["metadata"]["mystnb"]["figure"]["caption"]
    assert caption == f'What to see. <a href="#{part}">Play with it, just below.</a>'
    assert after["source"].startswith("```{raw} html\n") and after["source"].endswith("```\n\nText.")
    assert f'<section class="interactive" id="{part}" data-interactive="{part}"' in after["source"]
    assert '<script defer src="../_static/interactive.js"></script>' in after["source"]


def test_every_figure_that_one_can_play_with_is_in_a_chapter():
    shown = "".join(path.read_text(encoding="utf-8") for path in CHAPTERS)
    assert all(f'"figure": "{name}"' in shown for name in staging.PLAYED_WITH)


def test_the_front_page_has_a_part_to_play_with_beside_its_own_script():
    page = staging.front_page("Before.\n\n%play turn-the-knob%\n\n%chapters%%contents%", PARTS, {}, "")
    assert 'id="turn-the-knob"' in page and 'src="_static/interactive.js"' in page and not re.search("%[a-z]", page)


# --- equations ----------------------------------------------------------------------------------------------


def test_an_equation_reaches_mathjax_as_the_chapter_has_it():
    """Also one with a line break, which Sphinx would wrap so that the \\tag in it is an error, and a numbered align."""
    tagged = r"\begin{aligned} a &= b \\ &= c \end{aligned} \tag{7.1}\label{eq-x}"
    page = new_document("page")
    page += nodes.math_block("", tagged, number=None, nowrap=False)
    page += nodes.math_block("", r"\begin{align} a \end{align}", number=3, nowrap=True)
    runpy.run_path(str(ROOT / "book" / "conf.py"))["keep_equations"](None, page)
    assert [equation.astext() for equation in page] == [rf"\[{tagged}\]", r"\begin{align} a \end{align}"]
    assert all(equation["number"] is None for equation in page)
    assert page[0]["no-wrap"] and page[1]["nowrap"]


# --- the front page -----------------------------------------------------------------------------------------

PARTS = [
    {"title": "Part I", "chapters": [{"number": "00", "title": "Start", "about": "a"}]},
    {"title": "Part II", "chapters": [{"number": n, "title": f"T{n}", "about": "b"} for n in ("06", "07")]},
]
TEMPLATE = "%published%[code](%repository%)%end%\n\n%chapters%\n\n%contents%"


def test_the_front_page_links_the_chapters_that_are_there_and_calls_the_others_planned():
    page = staging.front_page(TEMPLATE, PARTS, {"07_mean_shift": "The mean shift?"}, "https://example.org/me/it")
    assert "[code](https://example.org/me/it)" in page
    assert "| 07 | [The mean shift?](notebooks/07_mean_shift.ipynb) | b |" in page
    assert '<span class="planned">Start (planned)</span>' in page and "T07" not in page
    trees = re.findall(r":caption: (.*)\n\n([^`]*)\n```", page)
    back = "in_practice\nconventions\ncheat_sheet\nfigures\nledger\nteaching\nreferences"
    assert trees == [("Part II", "notebooks/07_mean_shift"), ("At the back", back)]


def test_without_an_address_of_our_own_the_front_page_leads_to_no_repository():
    page = staging.front_page(TEMPLATE, PARTS, {"07_mean_shift": "The mean shift?"}, "")
    assert "code" not in page and "%" not in page and "[The mean shift?]" in page


def test_a_chapter_that_the_table_does_not_know_is_refused():
    with pytest.raises(ValueError, match="book/chapters.toml has no chapter 21: add it to a part"):
        staging.front_page(TEMPLATE, PARTS, {"21_new": "New"}, "https://example.org")


def test_the_courses_table_numbers_its_chapters_without_a_gap():
    parts = tomllib.loads((ROOT / "book" / "chapters.toml").read_text(encoding="utf-8"))["parts"]
    numbers = [chapter["number"] for part in parts for chapter in part["chapters"]]
    assert numbers == [f"{index:02}" for index in range(len(numbers))]


def test_a_chapters_title_is_its_first_heading_without_the_number():
    install = {"cell_type": "code", "source": "# %pip install", "metadata": {}}
    cells = [install, markdown("# 07 · The mean shift: why?\n\nText")]
    assert staging.title({"cells": cells}) == "The mean shift: why?"


def test_a_call_for_help_builds_nothing(monkeypatch, tmp_path, capsys):
    from book import build

    def refuse(*arguments):
        raise AssertionError("it builds")

    for name in ("vendor_mathjax", "build"):
        monkeypatch.setattr(build, name, refuse)
    monkeypatch.chdir(tmp_path)
    for word, status in (("--help", 0), ("--fast", 2)):
        monkeypatch.setattr("sys.argv", ["book.build", word])
        with pytest.raises(SystemExit) as stop:
            build.main()
        assert stop.value.code == status and "usage: python -m book.build" in "".join(capsys.readouterr())
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_book_build_or_the_one_that_is_named(monkeypatch, tmp_path):
    from book import build

    asked = []
    monkeypatch.setattr(build, "vendor_mathjax", lambda: None)
    monkeypatch.setattr(build, "build", lambda folder: asked.append(folder) or 1)
    for words in ([], [str(tmp_path / "here")]):
        monkeypatch.setattr("sys.argv", ["book.build", *words])
        assert build.main() == 1
    assert asked == [ROOT / "book" / "_build", tmp_path / "here"]
