"""The cheat sheet: every numbered equation of some chapters, in the words that lead to it, and what to remember.

A chapter's equations, their words and its lines under "Remember" are read from its staged notebook; the functions that
compute them from the ledger.
"""

import html
import re
from pathlib import Path
from typing import NamedTuple

from book.excerpts import elsewhere, to_equation
from tools.equation_labels import Ledger
from tools.page_sentences import ITEM, one_line, split

TEMPLATE = Path(__file__).resolve().parent / "cheat_sheet.md"
EQUATION = re.compile(r"\$\$(?P<latex>(?:(?!\$\$).)+)\$\$", re.DOTALL)
NUMBER = re.compile(r"\\tag\{(?P<tag>[^}]*)\}\s*\\label\{(?P<label>[^}]*)\}")
HEADING = re.compile(r"^#{1,6} +(?:Deeper: )?(.+)$", re.MULTILINE)
REMEMBER = re.compile(r"^## Remember\n(.*?)(?=^\*\*Where it comes from|^#|\Z)", re.MULTILINE | re.DOTALL)
FEW_WORDS = 5  # "So", "Hence", "and the variance is": the sentence before belongs to it
CAPITALS = {name.lower(): name for name in ("CFG", "DDIM", "DDPM", "ESS", "KL", "SDE", "Jacobian", "Jensen", "Tweedie")}


class Entry(NamedTuple):
    """A numbered equation with the words around it."""

    tag: str
    label: str
    latex: str  # without number and label
    before: str  # the sentence that leads to it, or the heading above it
    after: str  # the rest of the sentence, where it goes on behind the equation

    @property
    def name(self) -> str:
        """`eq-kl-no-shift` in words: KL no shift."""
        words = " ".join(CAPITALS.get(word, word) for word in self.label.removeprefix("eq-").split("-"))
        return words[:1].upper() + words[1:]


def entries(notebook: dict) -> list[Entry]:
    """The numbered equations of a chapter in the order of its page."""
    found, heading = [], ""
    for cell in notebook["cells"]:
        if cell["cell_type"] != "markdown":
            continue
        text, end = "".join(cell["source"]), 0
        for shown in EQUATION.finditer(text):
            between, end = text[end : shown.start()], shown.end()
            heading = (HEADING.findall(between) or [heading])[-1].strip()
            number = NUMBER.search(shown["latex"])
            if number:
                latex = NUMBER.sub("", shown["latex"]).strip()
                before = leading_words(between) or f"{heading[:1].upper()}{heading[1:]}:"
                found.append(Entry(number["tag"], number["label"], latex, before, trailing_words(text[end:])))
        heading = (HEADING.findall(text[end:]) or [heading])[-1].strip()
    return found


def leading_words(text: str) -> str:
    """The last sentence of a text, with the one before if it has few words; "" if it ends with a heading or so.

    A sentence in brackets is an aside, and leads to nothing.
    """
    paragraph = one_line(re.split(r"\n\s*\n", text.strip())[-1])
    if not paragraph or paragraph.startswith("#") or re.fullmatch(r"\*[^*]+\*", paragraph):
        return ""
    sentences = [sentence for sentence in split(paragraph) if not re.fullmatch(r"\([^()]*\)", sentence)]
    return " ".join(sentences[-2:] if len(sentences[-1].split()) < FEW_WORDS else sentences[-1:])


def trailing_words(text: str) -> str:
    """The end of the sentence that an equation stands in; "" where it ends with it, or leads on to the next one."""
    first, *others = re.split(r"\n\s*\n", text.strip())
    leads_on = bool(others) and others[0].startswith("$$")
    return split(one_line(first))[0] if re.match(r"[a-z]", first) and not leads_on else ""


def remembered(notebook: dict) -> list[str]:
    """The lines of a chapter under `## Remember`."""
    text = "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    found = REMEMBER.search(text)
    return [one_line(item) for item in ITEM.split(found[1]) if item.strip()] if found else []


def page(chapters: dict[str, dict], titles: dict[str, str], ledger: Ledger) -> str:
    """The page in MyST Markdown.  Args: chapters: name -> staged notebook;  titles: name -> title."""
    blocks = [chapter_block(name, titles[name], notebook, ledger) for name, notebook in chapters.items()]
    return TEMPLATE.read_text(encoding="utf-8").replace("%chapters%", "\n\n".join(blocks))


def chapter_block(chapter: str, title: str, notebook: dict, ledger: Ledger) -> str:
    shown = entries(notebook)
    tags = {entry.label: entry.tag for entry in shown}
    blocks = [f"## [{chapter[:2]} · {title}](notebooks/{chapter}.ipynb)"]
    for entry in shown:
        words = [f'{to_equation(chapter, entry.label, entry.tag)} <b class="name">{html.escape(entry.name)}</b>']
        words.append(elsewhere(" … ".join(filter(None, (entry.before, entry.after))), chapter, tags))
        words.append(", ".join(f"<code>{html.escape(name)}</code>" for name in functions(entry.label, ledger)))
        blocks += ['<div class="entry">\n<div class="words">', " ".join(filter(None, words)), "</div>"]
        blocks += [f"$$\n{entry.latex}\n$$", "</div>"]
    lines = "\n".join(f"* {elsewhere(line, chapter, tags)}" for line in remembered(notebook))
    return "\n\n".join([*blocks, '<div class="remember">', lines, "</div>"])


def functions(label: str, ledger: Ledger) -> list[str]:
    """The functions of the package that compute an equation; none where only a cell of the chapter does."""
    places = [place.name for place in ledger.implemented.get(label, [])]
    return [name.removeprefix("difflesson.") for name in places if name.startswith("difflesson.")]
