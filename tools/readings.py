"""Evaluate the equations of the chapters as their pages have them, and the wrong formulas that a machine makes of them.

    python -m tools.readings           every chapter: are its equations true, and which mistakes would go unnoticed?
    python -m tools.readings 07 -v     of one chapter, with every mistake and what became of it

What an equation's letters stand for is its reading, in tests/readings/chapter_NN.py under `@reads("eq-name")`; an
equation that cannot be read is listed with its reason in tests/readings/unread.toml.
"""

import importlib
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from tools.equation_labels import LABEL, NOT_PROSE
from tools.formula import Reading, Unreadable, disagreements
from tools.formula.mutants import Mutant, fate, mutants
from tools.pairs import NOTEBOOKS, Names, cells_of, chapters

DISPLAYED = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)


def displayed(source: Path) -> dict[str, str]:
    """The LaTeX of a chapter's numbered equations, by label, in the order of the page."""
    prose = [NOT_PROSE.sub("", cell.source) for cell in cells_of(source) if cell.cell_type == "markdown"]
    formulas = [formula for text in prose for formula in DISPLAYED.findall(text)]
    labels = [re.search(rf"\\label\{{({LABEL})\}}", formula) for formula in formulas]
    return {label[1]: formula for label, formula in zip(labels, formulas, strict=True) if label}


@cache
def readings(number: str) -> dict[str, Callable[[], Reading]]:
    """The functions that make the readings of a chapter, by label. Each is called once."""
    module = importlib.import_module(f"tests.readings.chapter_{number}")
    functions = [value for value in vars(module).values() if callable(value) and hasattr(value, "reads")]
    return {label: cache(function) for function in functions for label in function.reads}


def fates(latex: str, reading: Reading) -> dict[Mutant, str]:
    """What becomes of each wrong formula: 'value', 'unreadable', 'alive', 'equivalent' where the reading says why."""
    found = {mutant: fate(mutant, reading) for mutant in mutants(latex, reading)}
    return {
        mutant: "equivalent" if end == "alive" and mutant.where in reading.equivalent else end
        for mutant, end in found.items()
    }


def main(
    names: Names = None,
    verbose: Annotated[bool, typer.Option("-v", help="Print every wrong formula.")] = False,
) -> None:
    """Evaluate the displayed equations; exit status 1 if one is not true, or a mistake in it would go unnoticed."""
    sources = {source.name[:2]: source for source in chapters(names or [], NOTEBOOKS)}
    counts, bad = Counter(), False
    print(f"{'':4}{'equation':26}{'wrong formulas':>15}{'value':>8}{'unreadable':>12}{'equivalent':>12}{'alive':>7}")
    for number, source in sources.items():
        for label, latex in displayed(source).items():
            if label not in readings(number):
                print(f"{number}  {label:26} not read")
                continue
            reading = readings(number)[label]()
            try:
                wrong = disagreements(latex, reading)
            except Unreadable as error:
                wrong = [f"unreadable: {error}"]
            ends = {} if wrong else fates(latex, reading)
            kinds = Counter(ends.values())
            counts += kinds
            bad |= bool(wrong) or bool(kinds["alive"])
            print(f"{number}  {label:26}{len(ends):15}{kinds['value']:8}{kinds['unreadable']:12}"
                  f"{kinds['equivalent']:12}{kinds['alive']:7}", *wrong)  # fmt: skip
            for mutant, end in ends.items():
                if verbose or end == "alive":
                    print(f"      {end:11} {mutant.what}: {mutant.where}")
    print(f"{counts.total()} wrong formulas: {dict(counts)}")
    sys.exit(int(bad))


if __name__ == "__main__":
    typer.run(main)
