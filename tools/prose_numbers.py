"""Each number that a chapter states in words comes from its code. What binds them: python -m tools.prose_numbers

It is found, rounded as it is written, among what the cells beside its text print, hold as constants, or assert. Far
from its cell (In practice, Remember) all that a sentence measures comes from one cell. A value that has a name in the
text, as in "gamma = 3", is one that the code calls so. Else the sentence cites, before the number, where it is from; or
the paragraph says "in the tests", and the chapter's test file holds it.

What it cannot see: two numbers of one cell exchanged, and a case named for another that is in the code as well.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import nbformat
import typer
from nbformat import NotebookNode

from tools import evidence
from tools.chapter_parts import CLOSING
from tools.evidence import Evidence
from tools.pairs import NOTEBOOKS, Names, cells_of, chapters
from tools.prose import Number, alt_texts, numbers_of, stated

SECTION = re.compile(r"^## +(?P<title>.+)$", re.MULTILINE)
CITED = re.compile(r"\]\(https?://")
IN_TESTS = "in the tests"  # what a paragraph says whose numbers only the chapter's test file computes
THREE_SHARES = re.compile(r"(\d+), (\d+) and\s+(\d+) ?%")
CONTOURS = ("50", "90", "99")  # per cent of the mass, in plotting.density
CALLED = {"t": {"t", "time", "start", "end", "half", "now", "then", "late", "far"}, "label": {"label", "class"}}
STRICT = {"gamma", "kappa", "label", "t", "p"}  # who has such a name must be called so in the code
NEAR = {"gamma", "label", "p"}  # and as near as anything is called so
KINDS = ("output", "literal", "assertion", "citation")


class Place(NamedTuple):
    """A number, the number of its section, and the cells beside it: those right before and right after its own."""

    number: Number
    section: int
    beside: frozenset[int]


class Page:
    """A chapter: its numbers; what each of its cells gives; what its tests assert."""

    def __init__(self, source: Path):
        cells, outputs = cells_of(source), outputs_of(source)
        self.numbers: list[Place] = []
        self.sections: dict[int, int] = {}  # of each cell
        self.closing: set[int] = set()  # the sections that say again what others have shown
        code, section, lacking = {}, 0, False
        for index, cell in enumerate(cells):
            titles = list(SECTION.finditer(cell.source)) if cell.cell_type == "markdown" else []
            for number in stated(cell):
                above = sum(title.start() < number.start for title in titles)
                near = beside(index, cells, before=above == 0, after=above == len(titles))
                self.numbers.append(Place(number, section + above, near))
            self.closing |= {section + i for i, title in enumerate(titles, 1) if title["title"] in CLOSING}
            section += len(titles)
            self.sections[index] = section
            if cell.cell_type == "code" and not is_exercise(cell):
                built = (outputs.get(without_alt(cell.source)) or [None]).pop(0)
                lacking = lacking or built is None
                code[index] = (cell.source, built or [])
        self.is_built = not lacking
        self.cells = dict(zip(code, evidence.of_chapter(list(code.values())), strict=True))
        self.contours = {self.sections[index] for index, (text, _) in code.items() if "plotting.density" in text}
        tests = sorted((source.parent.parent / "tests" / "chapters").glob(f"test_chapter_{source.name[:2]}*.py"))
        self.tested = [each for path in tests for each in evidence.of_tests(path.read_text(encoding="utf-8"))]

    def of(self, cells: Iterable[int]) -> list[Evidence]:
        return [each for index in sorted(cells) for each in self.cells.get(index, [])]

    @cached_property
    def everywhere(self) -> list[Evidence]:
        return self.of(self.cells)

    @cached_property
    def by_section(self) -> dict[int, list[Evidence]]:
        found: dict[int, list[Evidence]] = {}
        for index, section in self.sections.items():
            found.setdefault(section, []).extend(self.cells.get(index, []))
        return found


def is_exercise(cell: NotebookNode) -> bool:
    return "exercise" in cell.metadata.get("tags", []) or "exercises.check(" in cell.source


def outputs_of(source: Path) -> dict[str, list[list[NotebookNode]]]:
    """The outputs in the built notebook by the text of their cells, of which several may be alike."""
    target, found = source.with_suffix(".ipynb"), {}
    for cell in nbformat.read(target, as_version=4).cells if target.exists() else []:
        if cell.cell_type == "code":
            found.setdefault(without_alt(cell.source), []).append(cell.get("outputs", []))
    return found


def without_alt(code: str) -> str:
    """A cell without the words of its alt texts: to change these changes no output."""
    for text in alt_texts(code):
        code = code.replace(text, "")
    return code


def beside(index: int, cells: list[NotebookNode], before: bool, after: bool) -> frozenset[int]:
    """The code cells between cell `index` and the Markdown cells before and after it, on the sides asked for."""
    found = {index}
    for step, wanted in ((-1, before), (1, after)):
        place = index + step
        while wanted and 0 <= place < len(cells) and cells[place].cell_type == "code":
            found.add(place)
            place += step
    return frozenset(found)


# --- whether a number is bound ------------------------------------------------------------------------------


def source_of(place: Place, page: Page) -> str:
    """What binds a number, one of `KINDS`; "" if nothing does."""
    number = place.number
    if is_cited(number):
        return "citation"
    if place.section in page.contours and (shares := contours_at(number)):
        return "literal" if shares == CONTOURS else ""
    near, section = page.of(cells_for(place, page)), page.by_section.get(place.section, [])
    if number.name:
        bound = named(number, (near, section, page.everywhere))
        if bound or number.name in STRICT:
            return bound
    bound = first(number, near)
    if not bound:  # three digits, or an assertion, are found by no chance
        bound = first(number, [each for each in section if each.kind == "assertion" or number.digit_count > 2])
    if not bound and (place.section in page.closing or (len(together(number)) > 1 and not number.case)):
        bound = again(number, page)
    if not bound and not number.case and IN_TESTS in number.paragraph:
        bound = first(number, page.tested)
    return bound


def cells_for(place: Place, page: Page) -> Iterable[int]:
    """The cells beside a number; for one that names a case, those of them that give all that its sentence measures."""
    others = together(place.number) if place.number.case else []
    those = [index for index in place.beside if all(first(other, page.cells.get(index, [])) for other in others)]
    return those or place.beside


def named(number: Number, levels: tuple[list[Evidence], ...]) -> str:
    """What binds a number that is called by a name: something of that name, as near as there is any."""
    names = CALLED.get(number.name, {number.name})
    called = [[each for each in level if names & each.names] for level in levels]
    if number.name in NEAR:
        called = [next(filter(None, called), [])]
    return next(filter(None, (first(number, level) for level in called)), "")


def together(number: Number) -> list[Number]:
    """The numbers of its sentence that measure something."""
    return [other for other in numbers_of(number.sentence) if not other.case and other.name != "steps"]


def again(number: Number, page: Page) -> str:
    """What binds a number that is said far from its cell: all that is measured in its sentence comes from one cell."""
    if number.case:
        return first(number, page.everywhere)
    others = together(number)
    cells = [cell for cell in page.cells.values() if all(first(other, cell) for other in others)]
    return first(number, [each for cell in cells for each in cell])


def is_cited(number: Number) -> bool:
    """Whether a link stands before it in its sentence."""
    return bool(CITED.search(number.text[number.sentence_start : number.start]))


def contours_at(number: Number) -> tuple[str, ...] | None:
    """The three shares of the mass, where `number` is one of them."""
    lists = (match for match in THREE_SHARES.finditer(number.text) if match.start() <= number.start < match.end())
    return next((match.groups() for match in lists), None)


def first(number: Number, candidates: Iterable[Evidence]) -> str:
    """The kind of what gives the number. A case is found only where it is named, or asserted."""
    kinds = {
        each.kind
        for each in candidates
        if matches(number, each) and (each.names or each.kind == "assertion" or not number.case)
    }
    return next((kind for kind in ("assertion", "output", "literal") if kind in kinds), "")


def matches(number: Number, each: Evidence) -> bool:
    """Whether `number` is this value, rounded as it is written."""
    value, decimals = number.value, number.decimals
    if number.percent:
        value, decimals = value / 100, decimals + 2
    if abs(each.value - value) > 0.5 * 10.0**-decimals + 1e-9:
        return False
    plain = number.digits.replace(",", "")
    if each.kind == "literal" and not number.percent:
        return each.value == value and plain == f"{abs(value):.12g}"  # the shortest way to write it: 0.5, 200
    if re.match(r"0\d", plain) or (each.decimals is not None and each.decimals < decimals):
        return False
    if number.case and not number.name and each.decimals not in (None, decimals):
        return False
    rounded = not number.case and each.decimals is not None
    return rounded or abs(each.value - value) < 1e-9


# --- what to do -----------------------------------------------------------------------------------------------


def problems(source: Path) -> list[str]:
    """The numbers in the prose of a chapter that nothing gives, with file and line.

    A chapter whose code has changed since it was built has none yet: that it is stale is said elsewhere.
    """
    try:
        page = Page(source)
    except ValueError:  # the built notebook cannot be read, which is said elsewhere, too
        return []
    if not page.is_built:
        return []
    unbound = (place.number for place in page.numbers if not source_of(place, page))
    return [f"notebooks/{source.name}:{line_of(number, source)}: {sentence_on(number)}" for number in unbound]


def sentence_on(number: Number) -> str:
    nothing = "no cell beside it prints, holds or asserts this number"
    if number.name in STRICT:
        nothing = f"nothing that the code calls {number.name} has this value"
    places = f", {number.decimals}" if number.decimals else ""
    form = f"assert round(value{places}) == {number.digits.replace(',', '')}"
    text = " ".join(number.sentence.split())
    return f'{number.digits} in "{text}": {nothing}. Print it, or {form}, or cite its source'


def line_of(number: Number, source: Path) -> int:
    """The line of the source in which the number stands."""
    first, last = number.text.rfind("\n", 0, number.start) + 1, number.text.find("\n", number.start)
    line = number.text[first : last if last >= 0 else None]
    lines = source.read_text(encoding="utf-8").splitlines()
    return next((place for place, text in enumerate(lines, 1) if line in text), 0)


def table(sources: list[Path]) -> str:
    """For each chapter: the numbers in its prose, and what binds them."""
    rows = [f"{'chapter':34}{'numbers':>9}" + "".join(f"{kind:>11}" for kind in (*KINDS, "nothing"))]
    for source in sources:
        page = Page(source)
        counts = Counter(source_of(place, page) for place in page.numbers)
        rows.append(f"{source.stem:34}{len(page.numbers):9}" + "".join(f"{counts[kind]:11}" for kind in (*KINDS, "")))
    return "\n".join(rows)


def main(names: Names = None) -> None:
    """Print what binds the numbers in the prose of chapters; exit status 1 if nothing binds one of them."""
    sources = chapters(names or [], NOTEBOOKS)
    print(table(sources))
    found = [problem for source in sources for problem in problems(source)]
    print("\n".join(found))
    sys.exit(bool(found))


if __name__ == "__main__":
    typer.run(main)
