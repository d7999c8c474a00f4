"""The equation ledger: every numbered equation is shown, evaluated, implemented, tested, and its test has teeth.

    python -m tools.ledger check    report what lacks one of these; exit status 1 if anything does
    python -m tools.ledger page     print the ledger as a page of the book

A label joins them. It stands in a chapter as `\\label{eq-mean-shift}`, in a docstring of the package as
`[eq-mean-shift]`, on a test as `@pytest.mark.equation("eq-mean-shift")`, and in tests/mutants/ as the `equation` of a
wrong formula that the test must notice, and for one of them the chapter's own cells. Where the code of an equation is a
cell of the chapter, the cell begins `# [eq-mean-shift]`. What is implemented before its chapter is written waits in
book/planned_equations.toml, a list that can only get shorter.
"""

import re
import sys
from pathlib import Path

import typer

from tools.address import repository
from tools.cell_mutants import unmarked
from tools.equation_labels import LABEL, MUTANTS, PLANNED, READINGS, Chapter, Equation, Ledger, Place, read
from tools.exercise_cells import SourceError

UNREAD_SHARE = 1 / 5  # of a chapter's equations: how many may be on the list of those that no reading can evaluate
ROOT = Path(__file__).resolve().parent.parent


def problems(ledger: Ledger) -> list[str]:
    """One sentence for each thing that is missing or stale, with the file to change. Empty: nothing is."""
    standing = {equation.label for chapter in ledger.chapters for equation in chapter.equations}
    known = standing | ledger.implemented.keys()
    found = []
    for chapter in ledger.chapters:
        found += page_problems(chapter)
        found += reading_problems(chapter, ledger)
        for equation in chapter.equations:
            found += display_problems(chapter, equation, ledger) if re.fullmatch(LABEL, equation.label) else []
    for label, (place, *_) in ledger.implemented.items():
        if label not in standing and label not in ledger.planned:
            found.append(f"{place.path}: {label} of {place.name} is in no chapter; show it, or list it in {PLANNED}")
        if label not in ledger.tested:
            found.append(
                f"{place.path}: {label} of {place.name} has no test; compare it with an independent computation "
                f'under @pytest.mark.equation("{label}")'
            )
    for label, (place, *_) in ledger.tested.items():
        if label not in known:
            found.append(f"{place.path}: {label} of {place.name} is named by no docstring of the package, no cell")
    for label, names in ledger.mutants.items():
        if label not in known:
            found.append(f"{MUTANTS}: {label} of mutant {names[0]} is named by no docstring of the package, no cell")
    numbers = {int(chapter.number): chapter.path for chapter in ledger.chapters}
    for label, number in ledger.planned.items():
        if label in standing:
            found.append(f"{PLANNED}: {label} stands in a chapter by now; take it off the list")
        elif int(number) in numbers:
            found.append(f"{PLANNED}: {label} waits for {numbers[int(number)]}, which does not show it; show it there")
        elif label not in ledger.implemented:
            found.append(f"{PLANNED}: {label} is named by no docstring of the package, no cell; take it off the list")
    return found


def page_problems(chapter: Chapter) -> list[str]:
    """What is wrong with the labels and references of one page."""
    found, labels = [], []
    for tag, label, *_ in chapter.equations:
        if not re.fullmatch(LABEL, label):
            found.append(f"{chapter.path}: ({tag}) has the label {label!r}; write \\label{{eq-small-letters}}")
        elif label in labels:
            found.append(f"{chapter.path}: {label} stands twice on the page; refer to it with \\eqref{{{label}}}")
        labels.append(label)
    for label in dict.fromkeys(chapter.references):
        if label not in labels:
            found.append(f"{chapter.path}: \\eqref{{{label}}} is not on this page; link to its chapter instead")
    for label, place in chapter.own.items():
        if label not in labels:
            found.append(f"{place.path}:{place.line}: a cell is the code of {label}, which is not on this page")
    return found


def reading_problems(chapter: Chapter, ledger: Ledger) -> list[str]:
    """Which equations of a page are not evaluated as it has them; what is wrong with the list of those that cannot."""
    evaluated, unread = (part.get(chapter.number, {}) for part in (ledger.readings, ledger.unread))
    labels, home = [equation.label for equation in chapter.equations], f"{READINGS}/chapter_{chapter.number}.py"
    found = [
        f"{chapter.path}: {label} is not evaluated as the page has it; write its reading in {home}, "
        f'under @reads("{label}")'
        for label in labels
        if label not in evaluated and label not in unread and re.fullmatch(LABEL, label)
    ]
    for label, place in evaluated.items():
        if label not in labels:
            found.append(f"{place.path}:{place.line}: reads {label}, which is not on the page of {chapter.path}")
    for label in unread:
        if label not in labels or label in evaluated:
            why = "has a reading" if label in evaluated else "is not on the page"
            found.append(f"{READINGS}/unread.toml: {label} of {chapter.number} {why}; take it off the list")
    if len(unread) > UNREAD_SHARE * len(labels):
        found.append(
            f"{READINGS}/unread.toml: {len(unread)} of the {len(labels)} equations of {chapter.number}; "
            f"{int(UNREAD_SHARE * len(labels))} is the most"
        )
    return found


def display_problems(chapter: Chapter, equation: Equation, ledger: Ledger) -> list[str]:
    """What makes an equation of a chapter a mere display."""
    label, found = equation.label, []
    functions = [place for place in ledger.implemented.get(label, []) if place.path.startswith("difflesson")]
    own = chapter.own.get(label)
    if not functions and not own:
        found.append(
            f"{chapter.path}: {label} is implemented nowhere; name it in the function's docstring, [{label}], "
            f"or begin the cell that is its code with # [{label}]"
        )
    elif own and label not in equation.used_after:
        found.append(f"{own.path}:{own.line}: the cell that is the code of {label} stands above the equation")
    elif not own and not any(executes(equation, place, chapter) for place in functions):
        names = " or ".join(place.name for place in functions)
        found.append(f"{chapter.path}: {label} is not executed; let a cell below it use {names}")
    if label not in ledger.mutants:
        found.append(f"{MUTANTS}: {label} of {chapter.path} has no mutant; plant a wrong formula that its test notices")
    return found


def executes(equation: Equation, place: Place, chapter: Chapter) -> bool:
    """Whether the cells below an equation use what stands at `place`: a function or class by where it is imported from,
    a method by its name, on any value, in a chapter whose imports lead to its module.
    """
    inner = place.name.removeprefix(place.module).removeprefix(".")
    if not inner:  # the label is the module's
        return any(f"{name}.".startswith(f"{place.module}.") for name in equation.used_after)
    owner, _, last = inner.rpartition(".")
    is_method_of_a_value = owner and f".{last}" in equation.used_after and place.module in chapter.modules
    return place.name in equation.used_after or bool(is_method_of_a_value)


# --- the page -----------------------------------------------------------------------------------------------


def page(root: Path = ROOT, address: str | None = None, ledger: Ledger | None = None) -> str:
    """The ledger in MyST Markdown, to stand beside a folder with the notebooks.

    Args: address: of the repository, to link to; by default what `tools.address` says, and without one no links;
    ledger: of `root`, where it is read already.
    """
    ledger = ledger or read(root)
    address = repository(root) if address is None else address

    def links(places: list[Place], text) -> str:
        if not address:
            return "<br>".join(f"· {text(place)}" for place in places)
        return "<br>".join(f"· [{text(place)}]({address}/blob/main/{place.path}#L{place.line})" for place in places)

    def function(place: Place) -> str:  # its module goes without saying, and the column is narrow
        if place.path.startswith("notebooks"):
            return "in the chapter"
        return f"`{place.name.removeprefix(place.module + '.')}`"

    def claim(place: Place) -> str:
        return place.name.split(".")[-1].removeprefix("test_").replace("_", " ")

    def evaluated(number: str, label: str) -> str:
        place = ledger.readings.get(number, {}).get(label)
        why = ledger.unread.get(number, {}).get(label, "not read")
        return links([place], lambda _: "evaluated").removeprefix("· ") if place else why

    def row(first: str, label: str, *more: str) -> str:
        functions = links(ledger.implemented.get(label, []), function)
        tests = links(ledger.tested.get(label, []), claim)
        columns = [first, f"`{label}`", functions, tests, str(len(ledger.mutants.get(label, []))), *more]
        return f"| {' | '.join(columns)} |"

    def table(first: str, rows: list[str], *more: str) -> list[str]:
        head = [first, "label", "function", "compared with an independent computation", "wrong formulas", *more]
        return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows, ""]

    lines = [
        "# Every numbered equation is executed",
        "",
        "Each equation of the chapters, the function that implements it, or the chapter's own cell, and the tests that",
        "compare it with a closed form, a quadrature, finite differences or another library. Then the number of wrong",
        "formulas (a sign, a missing factor, the wrong point) planted in the code to see these tests fail; and whether",
        "the equation is *evaluated*: by a test that reads the formula as you see it, puts numbers for its letters and",
        "compares its two sides, and that notices a sign, an index or an exponent changed on the page.",
        "",
    ]
    for chapter in ledger.chapters:
        if chapter.equations:
            link = f"notebooks/{Path(chapter.path).stem}.ipynb"
            rows = [
                row(f"[({tag})]({link}#{slug})", label, evaluated(chapter.number, label))
                for tag, label, slug, _ in chapter.equations
            ]
            lines += [f"## {chapter.title}", "", *table("equation", rows, "as displayed")]
    if ledger.planned:
        waiting = sorted(ledger.planned.items(), key=lambda item: item[1])
        lines += ["## Waiting for their chapter", "", "Implemented and tested, not yet derived on a page.", ""]
        lines += table("chapter", [row(number, label) for label, number in waiting])
    return "\n".join(lines)


# --- commands -----------------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command("check")
def check_command() -> None:
    """Report what is missing or stale; exit status 1 if anything is."""
    try:
        ledger = read(ROOT)
    except SourceError as error:
        sys.exit(f"ledger: {error}")
    found = problems(ledger) + unmarked(ROOT)
    for chapter in ledger.chapters:
        reasons = ledger.unread.get(chapter.number, {})
        reasons |= dict.fromkeys(ledger.readings.get(chapter.number, {}), "read and evaluated")
        for tag, label, *_ in chapter.equations:
            print(f"{tag:>5} {label:28} {reasons.get(label, 'NOT READ')}")
    for sentence in found:
        print(sentence, file=sys.stderr)
    standing = {equation.label for chapter in ledger.chapters for equation in chapter.equations}
    mutants = {name for names in ledger.mutants.values() for name in names}
    displayed = sum(len(chapter.equations) for chapter in ledger.chapters)
    listed = sum(len(labels) for labels in ledger.unread.values())
    print(
        f"equations: {len(standing)} shown, {len(ledger.implemented)} implemented, {len(ledger.tested)} tested, "
        f"{len(mutants)} mutants; {displayed} on the pages, {displayed - listed} read and evaluated, {listed} listed"
    )
    if found:
        raise typer.Exit(1)


@app.command("page")
def page_command() -> None:
    """Print the ledger as a page of the book."""
    print(page())


if __name__ == "__main__":
    app()
