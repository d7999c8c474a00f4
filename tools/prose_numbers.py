"""Each number that a chapter states in words comes from its code: python -m tools.prose_numbers

It is found, rounded as it is written, among what the cells of its section print; or it is a constant of their code; or
a cell, or the chapter's test file, asserts it; or its sentence cites where it is from.
"""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import nbformat

from tools import evidence
from tools.evidence import Evidence
from tools.chapter_parts import CLOSING
from tools.pairs import NOTEBOOKS, cells_of, notebook_of
from tools.prose import Number, numbers_of, sentence_ends, stated

SECTION = re.compile(r"^## +(?P<title>.+)$", re.MULTILINE)
CITED = re.compile(r"\]\(https?://")
CALLED = {"t": {"t", "time", "start", "end", "half", "now", "then", "late", "far"}, "label": {"label", "class"}}
STRICT = {"gamma", "kappa", "label", "t", "p"}  # who has such a name must be called so in the code
NEAR = {"gamma", "label"}  # and in the section, where the section has any
THREE_SHARES = re.compile(r"(\d+), (\d+) and\s+(\d+) ?%")
CONTOURS = ("50", "90", "99")  # per cent of the mass, in plotting.density


class Page(NamedTuple):
    """A chapter: its numbers, each with its section; what its cells give, by section; what its tests assert."""

    numbers: list[tuple[int, Number]]
    cells: list[tuple[int, list[Evidence]]]
    contours: frozenset[int]  # the sections that draw some
    closing: frozenset[int]  # the sections that say again what others have shown
    tested: list[Evidence]


def page_of(source: Path) -> Page:
    """Raises: SourceError if the source cannot be made into a notebook."""
    target = source.with_suffix(".ipynb")
    built = nbformat.read(target, as_version=4).cells if target.exists() else []
    outputs = {cell.id: cell.get("outputs", []) for cell in built}
    by_code = {}
    for cell in notebook_of(source).cells:
        if cell.cell_type == "code":
            by_code.setdefault(cell.source, []).append(outputs.get(cell.id, []))
    numbers, code, contours, closing, section = [], [], set(), set(), 0
    for cell in cells_of(source):
        if cell.cell_type == "markdown":
            starts = [match.start() for match in SECTION.finditer(cell.source)]
            titles = [match["title"] for match in SECTION.finditer(cell.source)]
            closing |= {section + i for i, title in enumerate(titles, 1) if title in CLOSING}
            numbers += [(section + sum(start < number.start for start in starts), number) for number in stated(cell)]
            section += len(starts)
        else:
            numbers += [(section, number) for number in stated(cell)]
            if "exercise" in cell.metadata.get("tags", []) or "exercises.check(" in cell.source:
                continue
            printed = by_code.get(cell.source) or [[]]
            code.append((section, cell.source, printed.pop(0)))
            if "plotting.density" in cell.source:
                contours.add(section)
    found = evidence.of_chapter([(text, printed) for _, text, printed in code])
    tests = source.parent.parent / "tests" / "chapters" / f"test_chapter_{source.name[:2]}.py"
    tested = evidence.of_tests(tests.read_text(encoding="utf-8")) if tests.exists() else []
    cells = [(section, each) for (section, _, _), each in zip(code, found, strict=True)]
    return Page(numbers, cells, frozenset(contours), frozenset(closing), tested)


# --- whether a number is bound ------------------------------------------------------------------------------


def source_of(section: int, number: Number, page: Page) -> str:
    """What binds a number: "output", "literal", "assertion", "citation"; "" if nothing does."""
    if section in page.contours and (shares := contours_at(number)):
        return "literal" if shares == CONTOURS else ""
    everywhere = [each for _, cell in page.cells for each in cell]
    near = [each for place, cell in page.cells if place == section for each in cell]
    if number.name:
        names = CALLED.get(number.name, {number.name})
        called = [[each for each in place if names & each.names] for place in (near, everywhere)]
        everywhere_too = called[1] if number.name not in NEAR or not called[0] else []
        bound = first(number, called[0] + everywhere_too)
        if bound or number.name in STRICT:
            return bound
    bound = first(number, [each for each in near if each.names or each.kind == "assertion" or not number.case])
    if bound:
        return bound
    together = [other for other in numbers_of(number.text) if other.sentence == number.sentence and is_measured(other)]
    if section in page.closing or len(together) > 1:  # said again, or of another section: all of a sentence from one cell
        cells = [cell for _, cell in page.cells if number.case or all(first(other, cell) for other in together)]
        again = [each for cell in cells for each in cell if each.names or not number.case]
        if bound := first(number, again):
            return bound
    if re.search(r"\.\d|\d\d\d", number.digits) and first(number, page.tested):
        return "assertion"
    return "citation" if is_cited(number) else ""


def is_measured(number: Number) -> bool:
    return not number.case and number.name != "steps"


def is_cited(number: Number) -> bool:
    """Whether a link to its source stands before it in its sentence, or in brackets behind."""
    before, after = number.text[: number.start], number.text[number.start :]
    start = max(end for end in sentence_ends(number.text) if end <= number.start)
    return bool(CITED.search(before[start:]) or re.match(r"[^.;:]*\(\[", after))


def contours_at(number: Number) -> tuple[str, ...] | None:
    """The three shares of the mass, where `number` is one of them."""
    lists = (match for match in THREE_SHARES.finditer(number.text) if match.start() <= number.start < match.end())
    return next((match.groups() for match in lists), None)


def first(number: Number, candidates: list[Evidence]) -> str:
    kinds = {each.kind for each in candidates if matches(number, each)}
    return next((kind for kind in ("assertion", "output", "literal") if kind in kinds), "")


def matches(number: Number, each: Evidence) -> bool:
    """Whether `number` is this value, rounded as it is written."""
    value, decimals, digits = number.value, number.decimals, number.digits.replace(",", "")
    if number.percent:
        value, decimals = value / 100, decimals + 2
    elif each.kind == "literal":
        return each.value == value and digits == f"{abs(value):.12g}"  # the shortest way to write it: 0.5, 200
    if re.match(r"0\d", digits) or (each.decimals is not None and each.decimals < decimals):
        return False
    if number.case or each.decimals is None:
        return abs(each.value - value) < 1e-9
    return abs(each.value - value) <= 0.5 * 10.0**-decimals + 1e-9
