"""The sentences of a chapter that may claim something, as its author wrote them, on one line each.

Prose of the main line and of Deeper, captions, rows of tables, lines of Remember. Not: headings, aims, "You need", the
times, exercises and their hints, displayed formulas (their numbers have the ledger), code, what is still TODO.
"""

import re
from typing import NamedTuple

from nbformat import NotebookNode

from tools.chapter_parts import CAPTION, FIGURE
from tools.reading_time import EXERCISE, STATED

NOT_READ = re.compile(r"^(```|~~~).*?^\1|<details>.*?</details>|\$\$.*?\$\$", re.MULTILINE | re.DOTALL)
NOT_A_CLAIM = re.compile(r"#|\*\*After this chapter you can\*\*|\*\*You need\*\*|---+$")
ITEM = re.compile(r"^ *(?:[*+-]|\d+\.) +", re.MULTILINE)
FORMULA = r"\$[^$]*\$"
ABBREVIATION = r"\b(?:et al|[Ee]\.g|[Ii]\.e|[Cc]f|vs|[Ee]qs?|[Ss]ecs?|[Ff]igs?|pp)\."
WHOLE = re.compile(rf"`+[^`]*`+|{FORMULA}|\[[^][]*\]\([^)]*\)|\]\([^)]*\)|{ABBREVIATION}")
END = re.compile(r"(?<=[.!?])([)*\"”’_]*) +(?=[\"“(*_`$[]*[A-Z0-9`$\[\\])")
RULE = re.compile(r"\|[-| :]+\|")
HEADING_WORDS = 7  # a bold sentence of more words is one like any other


class Sentence(NamedTuple):
    """A sentence or a row of a table; kind: prose, caption, table, practice (a row under In practice), remember."""

    text: str
    kind: str


def one_line(text: str) -> str:
    return " ".join(text.split())


def sentences_of(cells: list[NotebookNode]) -> list[Sentence]:
    """The sentences of a source's cells in the order of the page."""
    found, section, after_figure = [], "", False
    for cell in cells:
        if cell.cell_type == "code":
            after_figure = bool(FIGURE.search(cell.source))
            continue
        if not EXERCISE.match(cell.source):
            caption = after_figure and CAPTION.match(cell.source)
            for number, block in enumerate(blocks(cell.source)):
                if block.startswith("## "):
                    section = block[3:]
                elif section != "Exercises" and "TODO" not in block:
                    found += sentences_in(block, section, is_caption=bool(caption) and number == 0)
        after_figure = False
    return found


def blocks(markdown: str) -> list[str]:
    """Paragraphs, headings, lists and tables."""
    text = re.sub(r"^(#+ .*)$", r"\n\1\n", NOT_READ.sub("\n\n", markdown), flags=re.MULTILINE)
    return [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]


def sentences_in(block: str, section: str, is_caption: bool) -> list[Sentence]:
    if NOT_A_CLAIM.match(block) or STATED.search(block):
        return []
    if block.startswith("|"):
        kind = "practice" if section == "In practice" else "table"
        rows = [one_line(line) for line in block.splitlines()]
        after = next((index + 1 for index, row in enumerate(rows) if RULE.fullmatch(row)), 0)
        return [Sentence(row, kind) for row in rows[after:]]
    kind = "remember" if section == "Remember" and ITEM.match(block) else "caption" if is_caption else "prose"
    items = [one_line(item) for item in ITEM.split(block) if item.strip()]
    return [Sentence(text, kind) for item in items for text in split(item) if says_something(text)]


def says_something(text: str) -> bool:
    """Not a few bold words, a heading in the paragraph, nor a formula alone, such as the square that ends a proof."""
    is_heading = re.fullmatch(r"\*\*[^*]+\*\*", text) and len(text.split()) <= HEADING_WORDS
    return not is_heading and bool(re.search(r"\w", re.sub(FORMULA, "", text)))


def split(paragraph: str) -> list[str]:
    """The sentences of a paragraph. What stands in formulas, code and links, and abbreviations, ends none."""
    kept = []

    def hidden(found: re.Match) -> str:
        kept.append(found[0])
        opening = found[0][0] if found[0][0] in "$`" else "_"
        return f"{opening}\0{len(kept) - 1}\0"

    parts = END.sub(r"\1\n", WHOLE.sub(hidden, paragraph)).split("\n")
    return [re.sub(r"[$`_]\0(\d+)\0", lambda mark: kept[int(mark[1])], part) for part in parts]
