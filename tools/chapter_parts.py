"""The parts of a chapter and their order, by the marks that its source must carry.

Opening: a title that asks, aims, what you need, times; a picture before the first displayed formula.
Main line: numbered equations, figures with captions, a pitfall; "In practice", a table; three exercises or more;
"Remember", and where it comes from.
Deeper, which may be left out: sections that each open with a line saying what they add and for whom.
"""

import re

from nbformat import NotebookNode

from tools.exercise_cells import SourceError, find_exercises
from tools.reading_time import time_problems

FIGURE = re.compile(r"plotting\.show\(\s*\w+,\s*[\"'](\w+)[\"']")
CAPTION = re.compile(r"\*[^\s*](?:(?!\n\s*\n).)*[^\s*]\*\s*(\n\s*\n|\Z)", re.DOTALL)  # first paragraph, in italics
FORMULA = re.compile(r"^[^`\n]*\$\$", re.MULTILINE)
HEADING = re.compile(r"^## +(.+)$", re.MULTILINE)
CLOSING = ["In practice", "Exercises", "Remember"]  # headings, in this order; only Deeper comes after them
TABLE = re.compile(r"^\|.*\|\n\|[-| :]+\|\n((?:\|.*\|(?:\n|\Z))+)", re.MULTILINE)
MARKS = {  # what is said if it is missing: how it is recognised
    "the title '# NN · a question?'": r"\A# \d\d · .*\?",
    "'**After this chapter you can**'": r"^\*\*After this chapter you can\*\*",
    "'**You need** ...'": r"^\*\*You need\*\*",
    "a numbered equation, \\label{eq-...}": r"\\label\{eq-",
    "a heading that starts with 'Pitfall'": r"^#{2,6} Pitfall\b",
    "'Where it comes from'": r"Where it comes from",
}


def missing_parts(cells: list[NotebookNode]) -> list[str]:
    """What a source's cells still lack to be a chapter. Empty: nothing."""
    prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = [f"lacks {part}" for part, mark in MARKS.items() if not re.search(mark, prose, re.MULTILINE)]
    found += time_problems(cells)
    found += picture_problems(cells)
    found += order_problems(prose)
    found += deeper_problems(cells)
    try:
        exercises = len(find_exercises(cells))
        if exercises < 3:
            found.append(f"has {exercises} exercises, three is the least")
    except SourceError:
        pass  # then there is no notebook, and that is reported as a fault of the pair
    first = next((cell.source for cell in cells if cell.cell_type == "code"), "")
    if "torch.set_num_threads(1)" not in first:
        found.append("lacks torch.set_num_threads(1) in its first code cell: a reader's busy core then does no harm")
    return found


def picture_problems(cells: list[NotebookNode]) -> list[str]:
    figures = [index for index, cell in enumerate(cells) if cell.cell_type == "code" and FIGURE.search(cell.source)]
    formulas = [i for i, cell in enumerate(cells) if cell.cell_type == "markdown" and FORMULA.search(cell.source)]
    found = []
    if not figures:
        found.append("lacks a figure, plotting.show(figure, name, alt)")
    elif formulas and figures[0] > formulas[0]:
        found.append("lacks a picture before the first displayed formula")
    for index in figures:
        after = cells[index + 1] if index + 1 < len(cells) else None
        if after is None or after.cell_type != "markdown" or not CAPTION.match(after.source):
            name = FIGURE.search(cells[index].source).group(1)
            found.append(f"figure {name} lacks a caption: the next cell's first paragraph, wholly in *italics*")
    return found


def order_problems(prose: str) -> list[str]:
    """Whether the main line closes with `CLOSING`, and nothing but Deeper follows."""
    headings = HEADING.findall(prose)
    found = [f"lacks the heading '## {name}'" for name in CLOSING if name not in headings]
    closing = [heading for heading in headings if heading in CLOSING]
    if not found and closing != CLOSING:
        found.append(f"has {', '.join(closing)}; the order is {', '.join(CLOSING)}, each once")
    elif not found:
        last = headings.index("Remember")
        after = headings[last + 1 :]
        main, closing = headings[: headings.index("In practice")], headings[headings.index("In practice") : last]
        for heading in after:
            if not heading.startswith("Deeper: "):
                found.append(f"has '## {heading}' after Remember, where only '## Deeper: ...' stands")
        for heading in main + closing:
            if heading.startswith("Deeper"):
                found.append(f"has '## {heading}' before Remember")
        for heading in closing:
            if heading not in CLOSING and not heading.startswith("Deeper"):
                found.append(f"has '## {heading}' after In practice, where only Exercises and Remember stand")
    if "In practice" in headings:
        practice = HEADING.split(prose.split("\n## In practice", 1)[-1])[0]
        rows = max((table[1].count("\n|") + 1 for table in TABLE.finditer(practice)), default=0)
        if not rows and "```" not in practice:
            found.append("lacks a table under '## In practice' (if you have, do, because), or the change of code")
        elif rows and not 3 <= rows <= 6:
            found.append(f"has a table of {rows} rows under '## In practice'; three to six decisions are the measure")
    return found


def deeper_problems(cells: list[NotebookNode]) -> list[str]:
    """Each section of Deeper opens with a paragraph of prose: what it adds, and for whom."""
    found = []
    for cell in cells:
        for section in re.split(r"^(?=## Deeper)", cell.source, flags=re.MULTILINE):
            if cell.cell_type == "markdown" and section.startswith("## Deeper"):
                heading, _, text = section.partition("\n")
                if not re.match(r"[^\W\d_]|[*$`\[]", text.strip()):
                    found.append(f"'{heading}' lacks the line that says what it adds, and for whom")
    return found
