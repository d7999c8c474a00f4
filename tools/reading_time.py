"""How long a chapter takes to read, in its two layers: words / 200 + lines of visible code / 12 + 2 for each equation.

The main line goes up to the first `## Deeper`, Deeper from there to the end. Exercises, their hints and solutions
do not count, nor does code that the web page hides.
"""

import re
from typing import NamedTuple

from nbformat import NotebookNode

LIMIT = 45  # minutes of the main line
HIDDEN = {"hide-input", "remove-cell", "exercise"}
DEEPER = re.compile(r"^## Deeper\b", re.MULTILINE)
EXERCISE = re.compile(r"#+ Exercise|<details>")  # how a cell begins that does not count
STATED = re.compile(r"^\*(\d+) minutes to read(?:, (\d+) more for Deeper)?,[^*]*\bto run\b[^*]*\*$", re.MULTILINE)
FORM = "'*40 minutes to read, 25 more for Deeper, 30 seconds to run, on a laptop, ...*'"


class Layer(NamedTuple):
    words: int = 0
    lines: int = 0
    equations: int = 0

    @property
    def minutes(self) -> float:
        return self.words / 200 + self.lines / 12 + 2 * self.equations


def layers(cells: list[NotebookNode]) -> tuple[Layer, Layer]:
    """What counts of the main line and of Deeper, in the cells as their author wrote them."""
    counts, deeper = {False: [0, 0, 0], True: [0, 0, 0]}, False
    for cell in cells:
        if cell.cell_type == "code":
            if not HIDDEN & set(cell.metadata.get("tags", [])):
                counts[deeper][1] += sum(bool(line.strip()) for line in cell.source.splitlines())
            continue
        start = DEEPER.search(cell.source)
        pieces = [(deeper, cell.source)]
        if start and not deeper:
            pieces, deeper = [(False, cell.source[: start.start()]), (True, cell.source[start.start() :])], True
        for below, text in pieces:
            if not EXERCISE.match(text):
                counts[below][0] += len(re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL).split())
                counts[below][2] += len(re.findall(r"(?<!`)\\label\{", text))
    return Layer(*counts[False]), Layer(*counts[True])


def stated(cells: list[NotebookNode]) -> tuple[int, int | None] | None:
    """The minutes that the page gives for its main line and for Deeper; None where it does not say."""
    found = next(filter(None, (STATED.search(cell.source) for cell in cells if cell.cell_type == "markdown")), None)
    return found and (int(found[1]), int(found[2]) if found[2] else None)


def time_problems(cells: list[NotebookNode]) -> list[str]:
    """What is wrong with the minutes on the page. Empty: nothing, they are honest."""
    (main, deeper), said = layers(cells), stated(cells)
    found = []
    if main.minutes > LIMIT:
        found.append(f"the main line takes {minutes(main)}; {LIMIT} minutes is the most, move something to Deeper")
    if said is None:
        return [*found, f"lacks the times {FORM}; the main line takes {minutes(main)}"]
    for layer, name, number in ((main, "the main line", said[0]), (deeper, "Deeper", said[1])):
        if number is None and layer != Layer():
            found.append(f"does not say how long Deeper takes, which is {minutes(layer)}; the form is {FORM}")
        elif number is not None and abs(number - layer.minutes) > max(1, layer.minutes / 4):
            found.append(f"says {number} minutes for {name}, which takes {minutes(layer)}")
    return found


def minutes(layer: Layer) -> str:
    words, lines, equations = layer
    return f"{layer.minutes:.0f} minutes ({words} words, {lines} lines, {equations} equations)"


def table(chapters: dict[str, list[NotebookNode]]) -> str:
    """A row for each layer of each chapter: what it holds, the minutes counted and the minutes stated."""
    rows = [f"{'chapter':34}{'layer':10}{'words':>7}{'lines':>7}{'equations':>11}{'minutes':>9}{'stated':>8}"]
    for name, cells in chapters.items():
        said = stated(cells) or (None, None)
        for layer, title, number in zip(layers(cells), ("main line", "Deeper"), said, strict=True):
            if layer != Layer():
                counts = f"{layer.words:7}{layer.lines:7}{layer.equations:11}{layer.minutes:9.0f}"
                rows.append(f"{name:34}{title:10}{counts}{'-' if number is None else number:>8}")
    return "\n".join(rows)
