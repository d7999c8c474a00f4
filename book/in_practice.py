"""What to do, on one page: the tables under `## In practice` of all chapters, as they stand there."""

import re

from book.excerpts import elsewhere, prose
from book.gallery import tags

HEAD = """(in-practice)=
# In practice

What each chapter advises, and why. A reason is what was measured *there*, on its data and with its limits; they stand
in the chapter around its table, which the heading leads to.
"""
SECTION = re.compile(r"^## In practice\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"(?:^\|.*\|[ \t]*(?:\n|\Z))+", re.MULTILINE)


def tables(notebook: dict) -> list[str]:
    """The tables of a chapter's `## In practice`, in Markdown, none where it has no such section."""
    section = SECTION.search(prose(notebook))
    return [table.strip() for table in TABLE.findall(section[1])] if section else []


def page(parts: list[dict], chapters: dict[str, dict], titles: dict[str, str]) -> str:
    """The page in MyST Markdown.

    Args: parts: of chapters.toml;  chapters: name -> staged notebook;  titles: name -> title.
    """
    lines = [HEAD]
    for part in parts:
        numbers = [chapter["number"] for chapter in part["chapters"]]
        advice = {name: tables(chapter) for name, chapter in chapters.items() if name[:2] in numbers}
        if any(advice.values()):
            lines.append(f"## {part['title']}")
        for name in filter(advice.get, advice):
            lines.append(f"### [{name[:2]} · {titles[name]}](notebooks/{name}.ipynb#in-practice)")
            lines += [elsewhere(table, name, tags(chapters[name])) for table in advice[name]]
    return "\n\n".join(lines)
