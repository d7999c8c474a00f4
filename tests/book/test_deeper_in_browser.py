"""Deeper sections of the web book: folded, found, opened by what points into them, and plain text without a script.

A small book of one made-up chapter, built as the real one is, and opened from the disk.
"""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from book import build

CHAPTER = [
    """# 07 · A line: where does it go?

**After this chapter you can** tell.

*40 minutes to read, 25 more for Deeper, 3 seconds to run, on a laptop, without a GPU or a network connection.*""",
    "## What it is\n\nA line, see $\\eqref{eq-deep}$.\n\n$$ y = 2 x. \\tag{7.1}\\label{eq-line} $$\n\n"
    + "Long text. " * 900,
    "## Remember\n\n1. It goes on.",
    "## Deeper: a second order\n\nFor the expert: the brachistochrone.\n\n### A part of it\n\n" + "More text. " * 900,
    "$$ y = 3 x. \\tag{7.2}\\label{eq-deep} $$\n\nAfter the equation.",
    "## Deeper: history\n\nFor the curious: who drew it first.",
]
CLOSED = "[...document.querySelectorAll('details.deeper')].map(details => details.open)"
READY = "() => document.querySelector('details.deeper')"


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    try:
        build.vendor_mathjax()
    except build.MathJaxOutOfReach as reason:
        pytest.skip(str(reason))
    root = tmp_path_factory.mktemp("course")
    for folder in ("notebooks", "figures", "book"):
        (root / folder).mkdir()
    cells = [nbformat.v4.new_markdown_cell(text) for text in CHAPTER]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / "07_line.ipynb")
    (root / "notebooks" / "07_line.py").write_text("# %%\n", encoding="utf-8")
    (root / "book" / "teaching.md").write_text("# Teaching\n", encoding="utf-8")
    (root / "book" / "references.bib").write_text("", encoding="utf-8")
    (root / "book" / "references.md").write_text("# References\n", encoding="utf-8")
    (root / "book" / "index.md").write_text("# Book\n\n## Chapters\n\n%chapters%\n\n%contents%\n", encoding="utf-8")
    (root / "book" / "chapters.toml").write_text(
        '[[parts]]\ntitle = "I"\nchapters = [{ number = "07", about = "Lines" }]\n', encoding="utf-8"
    )
    (root / "CITATION.cff").write_text((build.ROOT / "CITATION.cff").read_text("utf-8"), encoding="utf-8")
    folder = tmp_path_factory.mktemp("built")
    code = "import pathlib, sys; from book import build; sys.exit(build.build(*map(pathlib.Path, sys.argv[1:])))"
    command = [sys.executable, "-c", code, str(folder), str(root)]
    done = subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


@pytest.fixture
def visit(html: Path, page):
    """Opens the chapter, or another page, at an address, and waits until Deeper is folded."""

    def go(hash: str = "", name: str = "notebooks/07_line"):
        page.goto("about:blank")  # an address that differs only behind the # would not load the page again
        page.goto((html / f"{name}.html").as_uri() + hash)
        page.wait_for_function(READY)
        return page

    return go


def in_view(page, selector: str) -> bool:
    top = page.locator(selector).bounding_box()["y"]
    return 0 <= top < page.viewport_size["height"]


def test_deeper_is_folded_and_the_main_line_is_not(visit):
    page = visit()
    assert page.evaluate(CLOSED) == [False, False]
    assert page.locator("text=brachistochrone").is_hidden() and page.locator("text=It goes on").is_visible()
    assert page.locator("details.deeper > summary").all_inner_texts() == ["Deeper: a second order", "Deeper: history"]


def test_each_deeper_is_linked_below_the_times_and_opens_there(visit):
    page = visit()
    line = page.locator("p:has-text('Deeper, at the end of this page')")
    assert line.inner_text() == "Deeper, at the end of this page: a second order; history."
    line.locator("text=history").click()
    page.wait_for_function(f"{CLOSED}.join() === 'false,true'")
    assert in_view(page, "text=who drew it first")
    page.locator("details.deeper > summary").last.click()
    assert page.evaluate(CLOSED) == [False, False]
    line.locator("text=history").click()  # the same address once more
    page.wait_for_function(f"{CLOSED}.join() === 'false,true'")


EQUATION = "[id='mjx-eqn:eq-deep']"
INSIDE = {
    "#deeper-a-second-order": "#deeper-a-second-order", "#a-part-of-it": "#a-part-of-it",
    "#mjx-eqn%3Aeq-deep": EQUATION, "#eq-deep": EQUATION,
}  # fmt: skip


@pytest.mark.parametrize(("hash", "selector"), INSIDE.items())
def test_an_address_inside_opens_it_and_shows_the_place(visit, hash, selector):
    page = visit(hash)
    assert page.evaluate(CLOSED) == [True, False]
    assert in_view(page, selector)


def test_a_reference_in_the_main_line_opens_the_equation_in_deeper(visit):
    page = visit()
    page.locator("mjx-container a[href]").first.click()
    page.wait_for_function(f"{CLOSED}.join() === 'true,false'")
    assert in_view(page, "[id='mjx-eqn:eq-deep']")


def test_the_contents_beside_the_page_lead_into_it(visit):
    page = visit()
    page.locator(".bd-sidebar-secondary a:has-text('Deeper: a second order')").click()
    page.wait_for_function(f"{CLOSED}.join() === 'true,false'")


def test_the_books_search_finds_a_word_in_it_and_opens_it(html, page):
    page.goto("about:blank")
    page.goto((html / "search.html").as_uri() + "?q=brachistochrone")
    link = page.locator("#search-results li a").first
    link.click()
    page.wait_for_function(f"{CLOSED}.join() === 'true,false'")
    assert page.locator("span.highlighted").first.is_visible()


def test_the_browsers_search_looks_into_it(visit):
    page = visit()
    folded = page.evaluate(
        "getComputedStyle(document.querySelector('details.deeper'), '::details-content').contentVisibility"
    )
    assert folded == "hidden"  # not display: none, which a search does not look into


def test_the_keyboard_opens_and_folds_it(visit):
    page = visit()
    page.locator("details.deeper > summary").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(CLOSED) == [True, False]
    page.keyboard.press("Space")
    assert page.evaluate(CLOSED) == [False, False]


def test_it_is_printed(visit):
    page = visit()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(CLOSED) == [True, True]


def test_an_open_deeper_is_no_wider_than_a_phone(visit):
    page = visit("#deeper-a-second-order")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    page.set_viewport_size({"width": 1280, "height": 900})


def test_without_a_script_it_is_open_text(html, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((html / "notebooks" / "07_line.html").as_uri())
    assert page.locator("text=brachistochrone").is_visible()
    assert page.locator("section.deeper > h2").count() == 2
    context.close()
