"""Every figure of the book on one page: small, with its caption, and linked to its place in its chapter.

The pictures are those of the chapters' pages; there is no second copy of one.
"""

import base64
import hashlib
import html
import re
from typing import NamedTuple

from docutils.nodes import make_id

from book.excerpts import elsewhere, prose

HEAD = """(figures)=
# All figures

Each with what to conclude from it. A picture leads to its place in the chapter, where the cell that draws it stands
above it; its name saves it. The text and the figures are CC BY 4.0.
"""
TAGS = re.compile(r"\\tag\{([^}]*)\}\s*\\label\{([^}]*)\}")


class Figure(NamedTuple):
    name: str  # 07_one_step
    alt: str
    caption: str
    png: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the PNG's header."""
        return int.from_bytes(self.png[16:20]), int.from_bytes(self.png[20:24])

    @property
    def file(self) -> str:
        """What MyST-NB calls the picture, by its content."""
        return f"{hashlib.sha256(self.png).hexdigest()}.png"


def anchor(name: str) -> str:
    """Where a figure stands on its chapter's page; staging.py gives it there."""
    return make_id(f"figure-{name}")


def figures(notebook: dict) -> list[Figure]:
    """The figures of a staged chapter."""
    found = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            name = output.get("metadata", {}).get("image/png", {}).get("figure")
            if name:
                shown = cell["metadata"]["mystnb"]
                png = base64.b64decode("".join(output["data"]["image/png"]))
                found.append(Figure(name, shown["image"]["alt"], shown["figure"]["caption"], png))
    return found


def tags(notebook: dict) -> dict[str, str]:
    """Label -> number of a chapter's equations."""
    return {label: tag for tag, label in TAGS.findall(prose(notebook))}


def page(chapters: dict[str, dict], titles: dict[str, str]) -> str:
    """The page in MyST Markdown.  Args: chapters: name -> staged notebook;  titles: name -> title."""
    lines = [HEAD]
    for name, notebook in chapters.items():
        shown = figures(notebook)
        if shown:
            numbers = tags(notebook)
            lines += [f"## [{name[:2]} · {titles[name]}](notebooks/{name}.ipynb)", '<div class="gallery">']
            lines += [plate(figure, name, numbers) for figure in shown]
            lines.append("</div>\n")
    return "\n\n".join(lines)


def plate(figure: Figure, chapter: str, numbers: dict[str, str]) -> str:
    width, height = figure.size
    there = rf'<a href="notebooks/{chapter}.html#\1">Play with it.</a>'
    caption = re.sub(r'<a href="#([\w-]+)">Play with it, just below\.</a>', there, figure.caption)
    return (
        f'<figure>\n<a href="notebooks/{chapter}.html#{anchor(figure.name)}"><img loading="lazy" '
        f'src="_images/{figure.file}" alt="{html.escape(figure.alt)}" width="{width}" height="{height}"></a>\n'
        f"<figcaption>\n\n{elsewhere(caption, chapter, numbers)}\n\n"
        f'<a href="_images/{figure.file}" download="{figure.name}.png">{figure.name}.png</a>\n</figcaption>\n</figure>'
    )
