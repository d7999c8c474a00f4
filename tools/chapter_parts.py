"""The seven parts of a chapter, by the marks that its source must carry.

1. a title question, aims, what you need, times    2. a picture before the first formula    3. numbered equations
4. figures with captions    5. a pitfall    6. three exercises or more    7. what to remember, and where it comes from
"""

import re

from nbformat import NotebookNode

from tools.exercise_cells import SourceError, find_exercises

FIGURE = re.compile(r"plotting\.show\(\s*\w+,\s*[\"'](\w+)[\"']")
CAPTION = re.compile(r"\*[^\s*](?:(?!\n\s*\n).)*[^\s*]\*\s*(\n\s*\n|\Z)", re.DOTALL)  # first paragraph, in italics
LABELLED = r"\label{eq-"
MARKS = {  # what is said if it is missing: how it is recognised
    "the title '# NN · a question?'": r"\A# \d\d · .*\?",
    "'**After this chapter you can**'": r"^\*\*After this chapter you can\*\*",
    "'**You need** ...'": r"^\*\*You need\*\*",
    "the times '... minutes to read, ... to run'": r"minutes? to read,.* to run",
    "a numbered equation, \\label{eq-...}": r"\\label\{eq-",
    "a heading that starts with 'Pitfall'": r"^#{2,6} Pitfall\b",
    "the heading '## Exercises'": r"^## Exercises",
    "the heading '## Remember'": r"^## Remember",
    "'Where it comes from'": r"Where it comes from",
}


def missing_parts(cells: list[NotebookNode]) -> list[str]:
    """What a source's cells still lack to be a chapter, marks of TODO included. Empty: nothing."""
    prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = [f"lacks {part}" for part, mark in MARKS.items() if not re.search(mark, prose, re.MULTILINE)]

    figures = [index for index, cell in enumerate(cells) if cell.cell_type == "code" and FIGURE.search(cell.source)]
    equations = [index for index, cell in enumerate(cells) if cell.cell_type == "markdown" and LABELLED in cell.source]
    if not figures:
        found.append("lacks a figure, plotting.show(figure, name, alt)")
    elif equations and figures[0] > equations[0]:
        found.append("lacks a picture before the first numbered equation")
    for index in figures:
        after = cells[index + 1] if index + 1 < len(cells) else None
        if after is None or after.cell_type != "markdown" or not CAPTION.match(after.source):
            name = FIGURE.search(cells[index].source).group(1)
            found.append(f"figure {name} lacks a caption: the next cell's first paragraph, wholly in *italics*")

    try:
        exercises = len(find_exercises(cells))
        if exercises < 3:
            found.append(f"has {exercises} exercises, three is the least")
    except SourceError:
        pass  # then there is no notebook, and that is reported as a fault of the pair

    lines = (line.strip() for cell in cells for line in cell.source.splitlines())
    return found + [f"still {line[line.index('TODO'):]}" for line in lines if "TODO" in line]
