"""Turn the committed notebooks into what Sphinx reads. The notebooks stay ordinary ones, that JupyterLab shows as well.

A link to a paper becomes a citation, the paragraph in italics after a picture becomes its caption, and the front page
lists the chapters. What cannot be turned is a ValueError that names the chapter and says what to write instead.
"""

import json
import re
import shutil
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import yaml
from pybtex.database import parse_file

from tools import ledger

LINK = re.compile(r"\[([^][]+)\]\((https?://[^)\s]+)\)")
TO_A_PAPER = re.compile(r"https?://(?:www\.|dx\.)?(?:arxiv|doi)\.org/[^\s)>\]\"']+")


class Paper(NamedTuple):
    """An entry of references.bib, and how a chapter names it: "Ho & Salimans", "Song et al."."""

    key: str
    authors: str
    year: str


def address(url: str) -> str:
    """What is the same in all links to a paper: no protocol, no version, the page and not the PDF."""
    plain = re.sub(r"^https?://(www\.|dx\.)?", "", url).rstrip("/.,;")
    return re.sub(r"v\d+$", "", plain.removesuffix(".pdf").replace("arxiv.org/pdf/", "arxiv.org/abs/"))


def bibliography(path: Path) -> dict[str, Paper]:
    """The papers of a .bib file by their address. Raises ValueError where two of them cannot be told apart."""
    papers = {}
    for key, entry in parse_file(str(path), bib_format="bibtex").entries.items():
        if "url" not in entry.fields:
            raise ValueError(f"{path.name}: entry {key} needs a url, the address that chapters link to")
        names = [" ".join([*person.prelast_names, *person.last_names]) for person in entry.persons["author"]]
        authors = " & ".join(names) if len(names) < 3 else f"{names[0]} et al."
        paper = Paper(key, authors, entry.fields["year"])
        for other, known in papers.items():
            if address(entry.fields["url"]) == other or (paper.authors, paper.year) == (known.authors, known.year):
                raise ValueError(f"{path.name}: {key} and {known.key} have the same address or read alike in the text")
        papers[address(entry.fields["url"])] = paper
    return papers


def cite(markdown: str, papers: dict[str, Paper], where: str) -> str:
    """`markdown` with each link that names its paper as "Ho & Salimans (2022)" turned into a citation.

    A link with other words stays a link. Raises ValueError for a paper that is not in `papers`, or of another year.
    """
    for url in TO_A_PAPER.findall(markdown):
        if address(url) not in papers:
            raise ValueError(f"{where} links to {url}, which no entry of book/references.bib has as its url: add one")

    def citation(link: re.Match) -> str:
        words, paper = link[1], papers.get(address(link[2]))
        if paper is None:
            return link[0]
        authors = re.escape(paper.authors).replace(r"\&", "&").replace("&", "(?:&|and)")
        named = re.match(rf"{authors},?\s+\(?(\d{{4}})\)?", words.replace("\n", " "))
        if named is None:
            return link[0]
        if named[1] != paper.year:
            raise ValueError(f"{where} says {words!r}; book/references.bib gives {paper.authors} the year {paper.year}")
        return f"{{cite:t}}`{paper.key}`{words[named.end() :]}"

    return LINK.sub(citation, markdown)


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


def alt_text(cell: dict) -> str | None:
    """What a cell's picture shows, "" where it has one and does not say; None for a cell without a picture."""
    for output in cell.get("outputs", []):
        for kind in output.get("data", {}):
            if kind.startswith("image/"):
                return output["metadata"].get(kind, {}).get("alt", "")
    return None


def stage_chapter(notebook: dict, papers: dict[str, Paper], where: str) -> dict:
    """The notebook with citations, and with pictures that carry alt text and caption where MyST-NB reads them."""
    cells = notebook["cells"]
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = cite("".join(cell["source"]), papers, where)
    for cell, following in pairwise([*cells, {"cell_type": "end of the chapter", "source": ""}]):
        alt = alt_text(cell)
        if alt is None:
            continue
        if not alt:
            raise ValueError(f"{where} has a figure without alt text: end its cell with plotting.show")
        try:
            text, following["source"] = caption(following["source"] if following["cell_type"] == "markdown" else "")
        except ValueError:
            raise ValueError(
                f"{where}: the figure {alt[:40]!r}... has no caption. Begin the Markdown cell after it with a "
                "paragraph that is wholly in italics: *What to conclude from the figure.*"
            ) from None
        cell["metadata"]["mystnb"] = {"image": {"alt": alt}, "figure": {"caption": text}}
    notebook["cells"] = [cell for cell in cells if cell["cell_type"] != "markdown" or cell["source"].strip()]
    return notebook


def title(notebook: dict) -> str:
    """The first heading of a chapter, without its number."""
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    return re.sub(r"^#\s+(\d\d\s+·\s+)?", "", "".join(first["source"]).splitlines()[0])


def front_page(template: str, parts: list[dict], ready: dict[str, str], repository: str) -> str:
    """The front page with its table of chapters and its table of contents.

    Args: parts: of chapters.toml;  ready: name -> title of the notebooks that are there.
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
    contents.append(("At the back", ["ledger", "references"]))
    trees = ("\n".join(["```{toctree}", ":hidden:", f":caption: {name}\n", *pages, "```"]) for name, pages in contents)
    page = template.replace("%repository%", repository).replace("%chapters%", "\n\n".join(tables))
    return page.replace("%contents%", "\n\n".join(trees))


def stage(source: Path, root: Path) -> None:
    """Write what Sphinx reads into the folder `source`, from the repository at `root`."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(root / "figures", source / "figures")
    (source / "notebooks").mkdir()
    for name in ("references.bib", "references.md"):
        shutil.copy(root / "book" / name, source)
    papers = bibliography(root / "book" / "references.bib")
    ready = {}
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        ready[path.stem] = title(notebook)
        staged = stage_chapter(notebook, papers, f"notebooks/{path.name}")
        (source / "notebooks" / path.name).write_text(json.dumps(staged), encoding="utf-8")
    parts = tomllib.loads((root / "book" / "chapters.toml").read_text(encoding="utf-8"))["parts"]
    repository = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))["repository-code"]
    template = (root / "book" / "index.md").read_text(encoding="utf-8")
    (source / "index.md").write_text(front_page(template, parts, ready, repository), encoding="utf-8")
    (source / "ledger.md").write_text(f"(ledger)=\n{ledger.page(root)}", encoding="utf-8")
