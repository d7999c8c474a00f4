"""Turn the committed notebooks into what Sphinx reads. The notebooks stay ordinary ones, that JupyterLab shows as well.

A link to a paper becomes a citation, the paragraph in italics after a picture becomes its caption, the times of a
chapter are followed by links to its Deeper sections, some figures by a part in which one plays with them, and the front
page lists the chapters. What cannot be turned is a ValueError that names the chapter and says what to write instead.
"""

import json
import re
import shutil
import tomllib
from itertools import pairwise
from pathlib import Path

from book import cheat_sheet, conventions, gallery, in_practice, teaching
from difflesson import interactive
from tools import equation_labels, ledger
from tools.address import repository
from tools.citations import Paper, bibliography, cite, with_letters
from tools.equation_labels import NOT_PROSE, unique_slug
from tools.pairs import cells_of
from tools.reading_time import STATED

SHEET = "Part II."  # whose equations are on the cheat sheet
PLAYED_WITH = {"00_story_and_truth": "turn-the-knob", "07_one_step": "one-step"}  # figure: part to play with


def part_to_play_with(name: str, to_static: str) -> str:
    """A part that answers the hand, as MyST: its HTML, style and script, from the folder at the address `to_static`."""
    return f"""```{{raw}} html
<link rel="stylesheet" href="{to_static}/interactive.css">
{interactive.section(name)}
<script defer src="{to_static}/interactive.js"></script>
```"""


def played_with(cell: dict) -> str | None:
    """The name of the interactive part of a cell's figure, if it has one."""
    kinds = (kind for output in cell.get("outputs", []) for kind in output.get("metadata", {}).values())
    return next((PLAYED_WITH[kind["figure"]] for kind in kinds if kind.get("figure") in PLAYED_WITH), None)


def caption(markdown: str) -> tuple[str, str]:
    """The first paragraph of a cell without its asterisks if all of it is in italics, and the rest of the cell.

    Raises ValueError if the cell does not begin so.
    """
    first, _, rest = markdown.strip().partition("\n\n")
    inner = first.strip()[1:-1]
    stars = re.sub(r"\$[^$]*\$|`[^`]*`|\*\*", "", inner)  # a formula's, code's and bold's are no end of the italics
    if not re.fullmatch(r"\*[^\s*].*[^\s*]\*", first.strip(), flags=re.DOTALL) or "*" in stars:
        raise ValueError("no caption")
    return inner, rest.strip()


def picture(cell: dict) -> dict[str, str] | None:
    """What `plotting.show` says of a cell's picture: its `alt`, its name `figure`. None for a cell without one."""
    for output in cell.get("outputs", []):
        for kind in output.get("data", {}):
            if kind.startswith("image/"):
                return output["metadata"].get(kind, {})
    return None


def to_deeper(cells: list[dict]) -> str:
    """A line of links to a chapter's sections `## Deeper: ...`; empty where it has none."""
    slugs, links = [], []
    for cell in cells:
        prose = NOT_PROSE.sub("", cell["source"]) if cell["cell_type"] == "markdown" else ""
        for level, heading in re.findall(r"^(#{1,3}) +(.+)$", prose, flags=re.MULTILINE):
            slugs.append(unique_slug(heading.strip(), slugs))
            if level == "##" and heading.startswith("Deeper: "):
                links.append(f"[{heading.removeprefix('Deeper: ').strip()}](#{slugs[-1]})")
    return f"Deeper, at the end of this page: {'; '.join(links)}." if links else ""


def stage_chapter(notebook: dict, papers: dict[str, Paper], where: str) -> dict:
    """The notebook with citations, and with pictures that carry alt text and caption where MyST-NB reads them."""
    cells = notebook["cells"]
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = cite("".join(cell["source"]), papers, where)
    deeper = to_deeper(cells)
    opening = next((cell for cell in cells if cell["cell_type"] == "markdown" and STATED.search(cell["source"])), None)
    if deeper and opening:
        opening["source"] = STATED.sub(lambda times: f"{times[0]}\n\n{deeper}", opening["source"], count=1)
    for cell, following in pairwise([*cells, {"cell_type": "end of the chapter", "source": ""}]):
        shown = picture(cell)
        if shown is None:
            continue
        alt = shown.get("alt")
        if not alt:
            raise ValueError(f"{where} has a figure without alt text: end its cell with plotting.show")
        try:
            text, following["source"] = caption(following["source"] if following["cell_type"] == "markdown" else "")
        except ValueError:
            raise ValueError(
                f"{where}: the figure {alt[:40]!r}... has no caption. Begin the Markdown cell after it with a "
                "paragraph that is wholly in italics: *What to conclude from the figure.*"
            ) from None
        name = {"name": gallery.anchor(shown["figure"])} if "figure" in shown else {}
        if part := played_with(cell):
            text += f' <a href="#{part}">Play with it, just below.</a>'
            following["source"] = f"{part_to_play_with(part, '../_static')}\n\n{following['source']}"
        cell["metadata"]["mystnb"] = {"image": {"alt": alt}, "figure": {"caption": text} | name}
    notebook["cells"] = [cell for cell in cells if cell["cell_type"] != "markdown" or cell["source"].strip()]
    return notebook


def title(notebook: dict) -> str:
    """The first heading of a chapter, without its number."""
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    return re.sub(r"^#\s+(\d\d\s+·\s+)?", "", "".join(first["source"]).splitlines()[0])


def front_page(template: str, parts: list[dict], ready: dict[str, str], address: str) -> str:
    """The front page with its table of chapters and its table of contents.

    Args: parts: of chapters.toml;  ready: name -> title of the notebooks that are there;  address: of the repository;
    without one, what the template has between `%published%` and `%end%` is left out. `%play name%` stands for an
    interactive part.
    """
    unlisted = {name[:2] for name in ready} - {chapter["number"] for part in parts for chapter in part["chapters"]}
    if unlisted:
        raise ValueError(f"book/chapters.toml has no chapter {', '.join(sorted(unlisted))}: add it to a part")
    tables, contents = [], []
    for part in parts:
        rows, pages = [], []
        for chapter in part["chapters"]:
            number, about = chapter["number"], chapter["about"]
            name = next((name for name in ready if name.startswith(number)), None)
            if name is None:
                planned = (number, f"{chapter['title']} (planned)", about)
                cells = (f'<span class="planned">{text}</span>' for text in planned)
            else:
                cells = (number, f"[{ready[name]}](notebooks/{name}.ipynb)", about)
                pages.append(f"notebooks/{name}")
            rows.append("| {} | {} | {} |".format(*cells))
        tables.append("\n".join([f"### {part['title']}\n", "| | chapter | in one line |", "|---|---|---|", *rows]))
        if pages:
            contents.append((part["title"], pages))
    back = ["in_practice", "conventions", "cheat_sheet", "figures", "ledger", "teaching", "references"]
    contents.append(("At the back", back))
    trees = ("\n".join(["```{toctree}", ":hidden:", f":caption: {name}\n", *pages, "```"]) for name, pages in contents)
    page = re.sub("%published%(.*?)%end%", r"\1" if address else "", template, flags=re.DOTALL)
    page = page.replace("%repository%", address).replace("%chapters%", "\n\n".join(tables))
    page = re.sub("%play (.+)%", lambda part: part_to_play_with(part[1], "_static"), page)
    return page.replace("%contents%", "\n\n".join(trees))


def of_part(beginning: str, parts: list[dict], chapters: dict[str, dict]) -> dict[str, dict]:
    """Those of the chapters that belong to the part whose title begins so."""
    part = next((part["chapters"] for part in parts if part["title"].startswith(beginning)), [])
    numbers = [chapter["number"] for chapter in part]
    return {name: chapter for name, chapter in chapters.items() if name[:2] in numbers}


def stage(source: Path, root: Path) -> None:
    """Write what Sphinx reads into the folder `source`, from the repository at `root`."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(root / "figures", source / "figures")
    (source / "notebooks").mkdir()
    shutil.copy(root / "book" / "references.md", source)
    papers = bibliography(root / "book" / "references.bib")
    entries = (root / "book" / "references.bib").read_text(encoding="utf-8")
    (source / "references.bib").write_text(with_letters(entries, papers), encoding="utf-8")
    chapters, titles = {}, {}
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        titles[path.stem] = title(notebook)
        chapters[path.stem] = stage_chapter(notebook, papers, f"notebooks/{path.name}")
        (source / "notebooks" / path.name).write_text(json.dumps(chapters[path.stem]), encoding="utf-8")
    parts = tomllib.loads((root / "book" / "chapters.toml").read_text(encoding="utf-8"))["parts"]
    template = (root / "book" / "index.md").read_text(encoding="utf-8")
    known = equation_labels.read(root)
    sources = {name: cells_of(root / "notebooks" / f"{name}.py") for name in chapters}
    pages = {
        "index": front_page(template, parts, titles, repository(root)),
        "in_practice": in_practice.page(parts, chapters, titles),
        "conventions": conventions.page(),
        "cheat_sheet": cheat_sheet.page(of_part(SHEET, parts, chapters), titles, known),
        "figures": gallery.page(chapters, titles),
        "teaching": teaching.page(root, parts, chapters, titles, sources, lambda heading: unique_slug(heading, [])),
        "ledger": f"(ledger)=\n{ledger.page(root, ledger=known)}",
    }
    for name, text in pages.items():
        (source / f"{name}.md").write_text(text, encoding="utf-8")
