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

PLANNED, MUTANTS = "book/planned_equations.toml", "tests/mutants"
LABEL = r"eq-[a-z0-9]+(?:-[a-z0-9]+)*"
IN_DOCSTRING = re.compile(rf"[\[(]({LABEL})[\])]")
HEADING_OR_TAG = re.compile(
    r"^(?P<level>#{1,6}) +(?P<title>.+)$"
    r"|\\tag\{(?P<tag>[^}]*)\}(?:\s*\\label\{(?P<label>[^}]*)\})?|\\label\{(?P<lone>[^}]*)\}",
    re.MULTILINE,
)
QUOTED = r"^(?P<fence>```|~~~).*?^(?P=fence)|`[^`\n]*\\[^`\n]*`"  # fences, and quoted LaTeX
NOT_PROSE = re.compile(QUOTED, re.MULTILINE | re.DOTALL)
TO_NUMBER = re.compile(rf"(?P<quoted>{QUOTED})|(?P<tag>\\tag\b)|\\label\{{", re.MULTILINE | re.DOTALL)


class Equation(NamedTuple):
    """An equation as a chapter displays it; `tag` or `label` is empty where the author left it out."""

    tag: str
    label: str
    slug: str  # of the heading above it, as the book links to it
    used_after: frozenset[str]  # what later code cells use: names imported from the package, and attributes


class Chapter(NamedTuple):
    path: str  # notebooks/07_mean_shift.py
    title: str
    equations: list[Equation]
    references: list[str]  # the labels inside \eqref

    @property
    def number(self) -> str:
        return Path(self.path).name[:2]


class Place(NamedTuple):
    """Where a label stands in the package or in the tests: path from the root, dotted name, line."""

    path: str
    name: str
    line: int


class Ledger(NamedTuple):
    """Everything that is known about the labels of a repository."""

    chapters: list[Chapter]
    implemented: dict[str, list[Place]]
    tested: dict[str, list[Place]]
    mutants: dict[str, list[str]]  # the names of the wrong formulas
    planned: dict[str, str]  # the number of the chapter that will show it


def read(root: Path) -> Ledger:
    return Ledger(
        shown(root / "notebooks"),
        implemented(root / "difflesson"),
        tested(root / "tests"),
        planted(root / MUTANTS),
        {label: number for number, labels in toml(root / PLANNED).items() for label in labels},
    )


def shown(notebooks: Path) -> list[Chapter]:
    """The chapters in order, with every tag or label in them."""
    return [read_chapter(source) for source in sorted(notebooks.glob("[0-9][0-9]_*.py"))]


def read_chapter(source: Path) -> Chapter:
    cells = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent").cells
    number_equations(cells, source.name[:2])
    # Readers do not see how an exercise is solved: that is no use of a function in the chapter.
    is_code = [cell.cell_type == "code" and "exercise" not in cell.metadata.get("tags", []) for cell in cells]
    code = [cell.source if shown_code else "" for cell, shown_code in zip(cells, is_code, strict=True)]
    titles, slugs, equations, references = [], [], [], []
    for index, cell in enumerate(cells):
        prose = NOT_PROSE.sub("", cell.source) if cell.cell_type == "markdown" else ""
        references += re.findall(r"\\eqref\{([^}]*)\}", prose)
        for found in HEADING_OR_TAG.finditer(prose):
            if found["title"] is None:
                used = names_used(code, index)
                label = found["label"] or found["lone"] or ""
                equations.append(Equation(found["tag"] or "", label, slugs[-1] if slugs else "", used))
            elif len(found["level"]) <= 3:  # as deep as the book has anchors
                titles.append(found["title"].strip())
                slugs.append(unique_slug(titles[-1], slugs))
    path = f"{source.parent.name}/{source.name}"
    return Chapter(path, titles[0] if titles else source.stem, equations, references)


def number_equations(cells: list, chapter: str) -> None:
    """Write the number before each `\\label{eq-...}` of the Markdown cells, in the order of the page.

    Args: cells: changed in place;  chapter: "07".  Raises: ValueError where an author wrote a number by hand.
    """
    count = 0

    def tagged(found: re.Match) -> str:
        nonlocal count
        if found["quoted"]:
            return found[0]
        if found["tag"]:
            raise ValueError(r"an equation has a \tag; numbers come from the order, write \label{eq-...} alone")
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


def names_used(code: list[str], index: int) -> frozenset[str]:
    """What the cells after `index` use: names that some cell imported from the package, and attributes of anything;
    directly, or in the value of a variable such as `truth = kernels.exact(mixture, schedule)`.
    """
    cells = [parsed(cell) for cell in code]
    after = ast.Module(cells[index + 1 :], [])
    imported, values = {}, {}
    for node in ast.walk(ast.Module(cells, [])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "difflesson":
            imported |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            for target in (part for whole in node.targets for part in ast.walk(whole) if isinstance(part, ast.Name)):
                values.setdefault(target.id, []).append(node.value)
    seen = {node.id for node in ast.walk(after) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    used = [part for whole in [after, *(v for name in seen for v in values.get(name, []))] for part in ast.walk(whole)]
    names = {node.id for node in used if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    attributes = {node.attr for node in used if isinstance(node, ast.Attribute)}
    return frozenset(attributes | {imported[name] for name in names & imported.keys()})


def parsed(cell: str) -> ast.Module:
    """A cell without its magics; nothing of one that is not Python, which executing the chapter will report."""
    try:
        return ast.parse(re.sub(r"^[%!].*$", "", cell, flags=re.MULTILINE))
    except SyntaxError:
        return ast.Module([], [])


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
