"""Where the labels of the equations stand: in chapters, docstrings, tests, the list of mutants and the list to come.

Everything is read as text; nothing of the package is imported. `tools/ledger.py` says what must be true of it.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jupytext

from tools.exercise_cells import SourceError
from tools.package_stamp import modules
from tools.python_cells import names_used

PLANNED, MUTANTS, READINGS = "book/planned_equations.toml", "tests/mutants", "tests/readings"
LABEL = r"eq-[a-z0-9]+(?:-[a-z0-9]+)*"
OWN_CELL = re.compile(rf"# ((?:\[{LABEL}\],? ?)+)\n")  # how a cell begins that is the code of equations
IN_DOCSTRING = re.compile(rf"[\[(]({LABEL})[\])]")
HEADING_OR_TAG = re.compile(
    r"^(?P<level>#{1,6}) +(?P<title>.+)$|\\tag\{(?P<tag>[^}]*)\}\\label\{(?P<label>[^}]*)\}", re.MULTILINE
)
QUOTED = r"^(?P<fence>```|~~~).*?^(?P=fence)|`[^`\n]*\\[^`\n]*`"  # fences, and quoted LaTeX
NOT_PROSE = re.compile(QUOTED, re.MULTILINE | re.DOTALL)
TO_NUMBER = re.compile(rf"(?P<quoted>{QUOTED})|(?P<tag>\\tag\b)|\\label\{{", re.MULTILINE | re.DOTALL)


class Equation(NamedTuple):
    """An equation as a chapter displays it."""

    tag: str
    label: str
    slug: str  # of the heading above it, as the book links to it
    used_after: frozenset[str]  # what later code cells use of the package, and the labels of those that are `own`


class Chapter(NamedTuple):
    path: str  # notebooks/07_mean_shift.py
    title: str
    equations: list[Equation]
    references: list[str]  # the labels inside \eqref
    modules: frozenset[str]  # of the package: those it imports, and theirs
    own: dict[str, "Place"]  # the equations whose code is a cell that begins `# [eq-name]`

    @property
    def number(self) -> str:
        return Path(self.path).name[:2]


class Place(NamedTuple):
    """Where a label stands in the package or in the tests: path from the root, dotted name, line."""

    path: str
    name: str
    line: int

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class Ledger(NamedTuple):
    """Everything that is known about the labels of a repository."""

    chapters: list[Chapter]
    implemented: dict[str, list[Place]]  # in the package or in a chapter's own cell
    tested: dict[str, list[Place]]
    mutants: dict[str, list[str]]  # the names of the wrong formulas
    planned: dict[str, str]  # the number of the chapter that will show it
    readings: dict[str, dict[str, Place]]  # by chapter: what evaluates its equations as the page has them
    unread: dict[str, dict[str, str]]  # by chapter: the equations that nothing can evaluate, and why


def read(root: Path) -> Ledger:
    """Raises: SourceError where a chapter numbers an equation by hand."""
    chapters, code = shown(root / "notebooks"), implemented(root / "difflesson")
    for chapter in chapters:
        for label, place in chapter.own.items():
            code.setdefault(label, []).append(place)
    return Ledger(
        chapters,
        code,
        tested(root / "tests"),
        planted(root / MUTANTS),
        {label: number for number, labels in toml(root / PLANNED).items() for label in labels},
        readings(root / READINGS),
        toml(root / READINGS / "unread.toml"),
    )


def shown(notebooks: Path) -> list[Chapter]:
    """The chapters in order, with every label in them."""
    return [read_chapter(source) for source in sorted(notebooks.glob("[0-9][0-9]_*.py"))]


def read_chapter(source: Path) -> Chapter:
    text, path = source.read_text(encoding="utf-8"), f"{source.parent.name}/{source.name}"
    cells = jupytext.reads(text, fmt="py:percent").cells
    try:
        number_equations(cells, source.name[:2])
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from None
    # Readers do not see how an exercise is solved: that is no use of a function in the chapter.
    is_code = [cell.cell_type == "code" and "exercise" not in cell.metadata.get("tags", []) for cell in cells]
    code = [cell.source if shown_code else "" for cell, shown_code in zip(cells, is_code, strict=True)]
    own, used_after = [own_labels(cell) for cell in code], names_used(code)
    titles, slugs, equations, references = [], [], [], []
    for index, cell in enumerate(cells):
        prose = NOT_PROSE.sub("", cell.source) if cell.cell_type == "markdown" else ""
        references += re.findall(r"\\eqref\{([^}]*)\}", prose)
        for found in HEADING_OR_TAG.finditer(prose):
            if found["title"] is None:
                used = used_after[index].union(*own[index + 1 :])
                equations.append(Equation(found["tag"], found["label"], slugs[-1] if slugs else "", used))
            elif len(found["level"]) <= 3:  # as deep as the book has anchors
                titles.append(found["title"].strip())
                slugs.append(unique_slug(titles[-1], slugs))
    return Chapter(
        path,
        titles[0] if titles else source.stem,
        equations,
        references,
        frozenset(modules(code, source.parent.parent)),
        {label: Place(path, source.stem, line_of(text, label)) for labels in own for label in labels},
    )


def own_labels(cell: str) -> list[str]:
    """The equations whose code this cell is: it begins `# [eq-name]`."""
    first = OWN_CELL.match(cell)
    return re.findall(LABEL, first[1]) if first else []


def line_of(source: str, label: str) -> int:
    """The line of a chapter's source at which the cell begins that is the code of `label`."""
    lines = enumerate(source.splitlines(keepends=True), start=1)
    return next(number for number, line in lines if label in own_labels(line))


def number_equations(cells: list, chapter: str) -> None:
    """Write the number before each `\\label{eq-...}` of the Markdown cells, in the order of the page.

    Args: cells: changed in place;  chapter: "07".  Raises: SourceError where an author wrote a number by hand.
    """
    count = 0

    def tagged(found: re.Match) -> str:
        nonlocal count
        if found["quoted"]:
            return found[0]
        if found["tag"]:
            raise SourceError(r"an equation has a \tag; numbers come from the order, write \label{eq-...} alone")
        count += 1
        return f"\\tag{{{int(chapter)}.{count}}}{found[0]}"

    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = TO_NUMBER.sub(tagged, cell.source)


def unique_slug(title: str, taken: list[str]) -> str:
    """The anchor that MyST gives a heading; when it is taken, with -1, -2, ... behind it."""
    words = re.sub(r"\$[^$]*\$|\]\([^)]*\)", "", title)  # neither equations nor the targets of links belong to it
    base = slug = re.sub(r"[^\w\- ]", "", words.lower().replace(" ", "-"))
    count = 0
    while slug in taken:
        count += 1
        slug = f"{base}-{count}"
    return slug


def implemented(package: Path) -> dict[str, list[Place]]:
    """The labels that docstrings of modules, classes and functions name in brackets."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = path.relative_to(package.parent).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        for name, node in [(module, tree), *definitions(tree, module)]:
            for label in dict.fromkeys(IN_DOCSTRING.findall(ast.get_docstring(node) or "")):
                place = Place(path.relative_to(package.parent).as_posix(), name, getattr(node, "lineno", 1))
                found.setdefault(label, []).append(place)
    return found


def definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    """Classes and functions inside `node`, nested ones too, with their dotted names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}.{child.name}", child
            yield from definitions(child, f"{prefix}.{child.name}")


def tested(tests: Path) -> dict[str, list[Place]]:
    """The labels that tests are marked with: themselves, a parameter of theirs, their class or their file."""
    found = {}
    for path in sorted(tests.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        add_tests(found, tree, path.relative_to(tests.parent).as_posix(), "", [])
    return found


def add_tests(found: dict[str, list[Place]], scope: ast.AST, path: str, prefix: str, outer: list[str]) -> None:
    assigned = [node for node in scope.body if isinstance(node, ast.Assign)]
    own = [node.value for node in assigned if any(getattr(t, "id", "") == "pytestmark" for t in node.targets)]
    outer = outer + marked(own)
    for node in scope.body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            add_tests(found, node, path, f"{prefix}{node.name}.", outer + marked(node.decorator_list))
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            for label in dict.fromkeys(outer + marked(node.decorator_list)):
                found.setdefault(label, []).append(Place(path, prefix + node.name, node.lineno))


def marked(expressions: list[ast.expr]) -> list[str]:
    """The labels of every `pytest.mark.equation(...)` inside the expressions."""
    calls = [node for e in expressions for node in ast.walk(e) if isinstance(node, ast.Call)]
    marks = [node for node in calls if ast.unparse(node.func) == "pytest.mark.equation"]
    return [argument.value for mark in marks for argument in mark.args if isinstance(argument, ast.Constant)]


def readings(folder: Path) -> dict[str, dict[str, Place]]:
    """By chapter, the labels that functions of tests/readings/chapter_NN.py are decorated with, `@reads("eq-name")`."""
    found = {}
    for path in sorted(folder.glob("chapter_[0-9][0-9].py")):
        functions = [node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
        name = path.relative_to(folder.parent.parent).as_posix()
        found[path.stem[-2:]] = {
            argument.value: Place(name, node.name, node.lineno)
            for node in functions
            for call in node.decorator_list
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "reads"
            for argument in call.args
        }
    return found


def planted(folder: Path) -> dict[str, list[str]]:
    """The names of the mutants in a folder's files, by the labels that they break."""
    found = {}
    for mutant in (mutant for file in sorted(folder.glob("*.toml")) for mutant in toml(file).get("mutant", [])):
        labels = mutant["equation"]
        for label in [labels] if isinstance(labels, str) else labels:
            found.setdefault(label, []).append(mutant["name"])
    return found


def toml(path: Path) -> dict:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
