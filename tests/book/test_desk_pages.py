"""The gallery shows each figure, linked to its place; the cheat sheet equations of a part; one page all the advice."""

import base64
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from book import cheat_sheet, excerpts, gallery, in_practice, staging
from tools.equation_labels import Ledger, Place

ROOT = Path(staging.__file__).resolve().parent.parent
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (640).to_bytes(4) + (480).to_bytes(4)
SHOWN = {"image/png": base64.b64encode(PNG).decode(), "text/plain": "<Image>"}
CELLS = [
    "# 07 · A line?\n\nIt leads here. So\n\n$$ a = b: \\tag{7.1}\\label{eq-kl-line} $$\n\na line is a line. More.",
    "$$ c $$\n\n## Deeper: how it ends\n\n*For you.*\n\n$$ x = y. \\tag{7.2}\\label{eq-end} $$",
    "The mean is, by $\\eqref{eq-end}$ and [there](#how-it-ends),\n\n"
    "$$ m, \\tag{7.3}\\label{eq-m} $$\n\nand the variance is\n\n"
    "$$ v. \\tag{7.4}\\label{eq-v} $$\n\nwhere $v$ is. More.",
    "First. One of ten words that lead to the equation below. (An aside.)\n\n$$ z \\tag{7.5}\\label{eq-z} $$",
    "## Remember\n\n1. A line is\n   a line, $\\eqref{eq-kl-line}$.\n2. It ends.\n\n"
    "**Where it comes from.** Nowhere.\n\n## Deeper: x",
]
PICTURE = {
    "cell_type": "code",
    "source": "plotting.show(figure, ...)",
    "metadata": {},
    "outputs": [{"data": SHOWN, "metadata": {"image/png": {"alt": 'a "line" < 2', "figure": "07_a_line"}}}],
}
CAPTION = "*It goes up, [as said](06_before.ipynb#why), by $\\eqref{eq-kl-line}$.*"


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "source": text, "metadata": {}}


@pytest.fixture
def chapter() -> dict:
    cells = [*map(markdown, CELLS), json.loads(json.dumps(PICTURE)), markdown(CAPTION)]
    return staging.stage_chapter({"cells": cells}, {}, "notebooks/07_line.ipynb")


# --- all figures --------------------------------------------------------------------------------------------


def test_a_figure_has_a_place_on_its_chapters_page_and_the_gallery_leads_there(chapter):
    page = gallery.page({"07_line": chapter}, {"07_line": "A line?"})
    assert chapter["cells"][-1]["metadata"]["mystnb"]["figure"]["name"] == "figure-07-a-line"
    assert '<a href="notebooks/07_line.html#figure-07-a-line"><img' in page
    assert "## [07 · A line?](notebooks/07_line.ipynb)" in page


def test_the_gallery_shows_alt_text_size_and_caption_and_loads_a_picture_when_it_is_near(chapter):
    page = gallery.page({"07_line": chapter}, {"07_line": "A line?"})
    assert 'loading="lazy"' in page and 'alt="a &quot;line&quot; &lt; 2" width="640" height="480"' in page
    caption, file = re.search(r"<figcaption>\n\n(.*?)\n\n<a (.*?)>07_a_line.png</a>\n</figcaption>", page).groups()
    assert re.fullmatch(r'href="_images/[0-9a-f]{64}\.png" download="07_a_line.png"', file)
    equation = '<a href="notebooks/07_line.html#mjx-eqn%3Aeq-kl-line">(7.1)</a>'
    assert caption == f"It goes up, [as said](notebooks/06_before.ipynb#why), by {equation}."


def test_a_chapter_without_figures_is_not_in_the_gallery(chapter):
    chapter["cells"] = [cell for cell in chapter["cells"] if cell["cell_type"] == "markdown"]
    assert gallery.page({"07_line": chapter}, {"07_line": "A line?"}) == gallery.HEAD


# --- the cheat sheet ----------------------------------------------------------------------------------------


def ledger(**implemented: list[Place]) -> Ledger:
    return Ledger([], {f"eq-{label}": places for label, places in implemented.items()}, {}, {}, {}, {}, {})


def test_an_equation_stands_with_the_words_that_lead_to_it_and_the_end_of_its_sentence(chapter):
    found = {entry.label: entry for entry in cheat_sheet.entries(chapter)}
    assert [entry.tag for entry in found.values()] == ["7.1", "7.2", "7.3", "7.4", "7.5"]
    assert {label: (entry.before, entry.after) for label, entry in found.items()} == {
        "eq-kl-line": ("It leads here. So", "a line is a line."),
        "eq-end": ("How it ends:", ""),
        "eq-m": ("The mean is, by $\\eqref{eq-end}$ and [there](#how-it-ends),", ""),
        "eq-v": ("and the variance is", "where $v$ is."),
        "eq-z": ("One of ten words that lead to the equation below.", ""),
    }
    assert found["eq-kl-line"].latex == "a = b:" and found["eq-kl-line"].name == "KL line"


def test_the_lines_to_remember_are_those_between_the_heading_and_where_it_comes_from(chapter):
    assert cheat_sheet.remembered(chapter) == ["A line is a line, $\\eqref{eq-kl-line}$.", "It ends."]


def test_the_sheet_names_the_functions_of_the_package_and_no_cell_of_a_chapter(chapter):
    package = Place("difflesson/kernels.py", "difflesson.kernels.ddpm", 1)
    own = Place("notebooks/07_line.py", "07_line", 1)
    page = cheat_sheet.page({"07_line": chapter}, {"07_line": "A line?"}, ledger(m=[package, own], v=[own]))
    named = {line.split('"name">')[1][:1]: re.findall("<code>(.*?)</code>", line)
             for line in page.splitlines() if '"name">' in line}
    assert named == {"K": [], "E": [], "M": ["kernels.ddpm"], "V": [], "Z": []}


def test_the_sheets_equations_have_no_number_of_their_own_and_its_references_lead_to_the_chapter(chapter):
    page = cheat_sheet.page({"07_line": chapter}, {"07_line": "A line?"}, ledger())
    assert "\\tag" not in page and "\\label" not in page and "eqref" not in page  # two chapters may share a label
    assert page.count('<a href="notebooks/07_line.html#mjx-eqn%3Aeq-end">(7.2)</a>') == 2
    assert "[there](notebooks/07_line.ipynb#how-it-ends)" in page
    assert '* A line is a line, <a href="notebooks/07_line.html#mjx-eqn%3Aeq-kl-line">(7.1)</a>.\n* It ends.' in page


def test_a_reference_to_an_equation_of_another_page_is_refused():
    with pytest.raises(KeyError):
        excerpts.elsewhere("By $\\eqref{eq-other}$.", "07_line", {"eq-kl-line": "7.1"})


def test_the_sheet_takes_the_chapters_of_one_part():
    parts = [{"title": f"Part {n}. X", "chapters": [{"number": number}]} for n, number in (("I", "05"), ("II", "06"))]
    assert staging.of_part("Part II.", parts, {"05_a": {}, "06_b": {}}) == {"06_b": {}}
    assert staging.of_part("Part III.", parts, {"05_a": {}, "06_b": {}}) == {}


def test_every_equation_of_part_two_is_on_the_sheet_in_its_order():
    """From the committed notebooks, by another reading of them: each label that they show."""
    count = Counter()
    for path in sorted((ROOT / "notebooks").glob("[01][0-9]_*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        labels = re.findall(r"(?<!`)\\label\{([^}]+)\}", text)
        got = cheat_sheet.entries({"cells": cells})
        assert [entry.label for entry in got] == labels, path.name
        assert all(len(entry.before.split()) > 1 for entry in got), path.name
        count[path.name[:2]] = len(labels)
    assert all(count[f"{number:02}"] > 0 for number in range(6, 13))


# --- in practice --------------------------------------------------------------------------------------------

ADVICE = (
    "## In practice\n\nMeasured there.\n\n| if you | do | because |\n|---|---|---|\n"
    "| go on | stop ([why](#how-it-ends), [before](06_before.ipynb)) | $\\eqref{eq-end}$ |"
)
LATER = "*Limits:* some.\n\n| if | do |\n|---|---|\n| it ends | go |\n\n## Remember\n\n| not | this |\n|---|---|"


def test_the_advice_is_that_of_the_section_alone_also_where_a_cell_stands_between_its_tables(chapter):
    code = {"cell_type": "code", "source": "| no | table |", "outputs": []}
    found = in_practice.tables({"cells": [*chapter["cells"], markdown(ADVICE), code, markdown(LATER)]})
    assert [table.splitlines()[-1][:9] for table in found] == ["| go on |", "| it ends"] and "Limits" not in str(found)
    assert in_practice.tables(chapter) == []


def test_the_advice_keeps_its_links_on_a_page_of_parts_and_a_chapter_without_any_is_left_out(chapter):
    chapter["cells"].append(markdown(ADVICE))
    parts = [{"title": f"Part {n}", "chapters": [{"number": n}]} for n in ("06", "07")]
    chapters = {"06_bare": {"cells": []}, "07_line": chapter}
    page = in_practice.page(parts, chapters, {"06_bare": "B", "07_line": "A line?"})
    assert "## Part 07\n\n### [07 · A line?](notebooks/07_line.ipynb#in-practice)\n\n| if you" in page
    assert "Part 06" not in page
    equation = '<a href="notebooks/07_line.html#mjx-eqn%3Aeq-end">(7.2)</a>'
    row = f"([why](notebooks/07_line.ipynb#how-it-ends), [before](notebooks/06_before.ipynb)) | {equation} |"
    assert page.splitlines()[-1] == f"| go on | stop {row}"


def test_every_row_of_advice_in_the_courses_chapters_is_on_the_page():
    """By another reading of the notebooks: lines, counted from the heading on."""
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        lines = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown").split("\n")
        start = lines.index("## In practice")
        end = next(index for index in range(start + 1, len(lines)) if lines[index].startswith("## "))
        rows = [line.strip() for line in lines[start:end] if line.startswith("|")]
        assert "\n".join(in_practice.tables({"cells": cells})).split("\n") == rows and len(rows) > 3, path.name
