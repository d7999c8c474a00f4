"""Which statements of a chapter execute and assert one equation: its own cells, and what they need from above.

An equation's own cells are the code cells from its formula down to the next numbered equation or heading. Of these the
assertions count. What they use is followed upwards, statement by statement, so that neither a picture nor a training
that they do not need is run. Everything is read as text; nothing is imported.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jupytext

from tools.equation_labels import LABEL, NOT_PROSE
from tools.python_cells import without_magics

SHOWN = re.compile(rf"\\label\{{({LABEL})\}}")
HEADING = re.compile(r"^#{1,6} +\S", re.MULTILINE)


@dataclass(frozen=True)
class CodeCell:
    """A code cell: its text, the line of the source at which it begins, its tags, the equations whose cell it is."""

    source: str
    line: int
    tags: tuple[str, ...]
    equations: tuple[str, ...]

    @property
    def is_exercise(self) -> bool:
        return "exercise" in self.tags or self.source.startswith("exercises.check(")

    @property
    def tree(self) -> ast.Module:
        """Its syntax, with the source's line numbers; nothing, if it is not Python: executing it will tell."""
        try:
            return ast.increment_lineno(ast.parse(without_magics(self.source)), self.line - 1)
        except SyntaxError:
            return ast.Module([], [])


def code_cells(text: str) -> list[CodeCell]:
    """The code cells of a chapter's source."""
    found, equations, position = [], (), 0
    for cell in jupytext.reads(text, fmt="py:percent").cells:
        if cell.cell_type == "markdown":
            prose = NOT_PROSE.sub("", cell.source)
            labels = tuple(SHOWN.findall(prose))
            if labels or HEADING.search(prose):
                equations = labels
        elif cell.cell_type == "code":
            at = text.find(cell.source, position)
            position = at + len(cell.source) if at >= 0 else position
            line = text.count("\n", 0, at if at >= 0 else position) + 1
            found.append(CodeCell(cell.source, line, tuple(cell.metadata.get("tags", [])), equations))
    return found


# --- what a statement uses and changes ------------------------------------------------------------------------


class Names(ast.NodeVisitor):
    """The names a piece of code needs from outside (`loads`), binds (`stores`), and changes in place (`touches`).

    `later`: those of `loads` that a function needs only when it is called.
    """

    def __init__(self, *nodes: ast.AST):
        self.loads, self.stores, self.touches, self.later = set(), set(), set(), set()
        for node in nodes:
            self.visit(node)

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Load):
            self.loads |= {node.id} - self.stores
        else:
            self.stores.add(node.id)

    def in_order(self, *parts):
        for part in parts:
            for node in part if isinstance(part, list) else [part]:
                if node is not None:
                    self.visit(node)

    def visit_Assign(self, node):
        self.in_order(node.value, node.targets)

    def visit_AnnAssign(self, node):
        self.in_order(node.value, node.target)

    def visit_AugAssign(self, node):
        self.in_order(node.value)
        self.touch(node.target)

    def visit_For(self, node):
        self.in_order(node.iter, node.target, node.body, node.orelse)

    def visit_Subscript(self, node):
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            self.touch(node)

    visit_Attribute = visit_Subscript

    def visit_Expr(self, node):
        self.generic_visit(node)
        if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
            self.touch(node.value.func)  # found.append(x)

    def touch(self, node):
        name = root(node)
        if name and name not in self.stores:
            self.loads.add(name)
            self.touches.add(name)

    def inside(self, bound: set[str], *nodes):
        """A function or a comprehension: its own names stay inside."""
        inner = Names(*nodes)
        own = bound | inner.stores
        self.loads |= inner.loads - own - self.stores
        self.later |= inner.loads - own
        self.touches |= inner.touches - own - self.stores

    def visit_FunctionDef(self, node):
        self.in_order(node.decorator_list, node.args.defaults, node.args.kw_defaults)
        self.inside({argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}, *node.body)
        self.stores.add(node.name)

    def visit_Lambda(self, node):
        self.in_order(node.args.defaults, node.args.kw_defaults)
        self.inside({argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}, node.body)

    def visit_ClassDef(self, node):
        self.in_order(node.bases, node.decorator_list)
        self.inside(set(), *node.body)
        self.stores.add(node.name)

    def visit_comprehension_of(self, node):
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        self.inside(set(), *(g for loop in node.generators for g in (loop.iter, loop.target, *loop.ifs)), *parts)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_comprehension_of

    def visit_Import(self, node):
        self.stores |= {alias.asname or alias.name.split(".")[0] for alias in node.names}

    visit_ImportFrom = visit_Import


def root(node: ast.AST) -> str:
    """The name at the left end: `leaf` of `leaf.grad[0].sum()`; empty if there is none."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Starred):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_assertion(node: ast.AST) -> bool:
    """`assert ...` or a call whose name begins `assert_`, as a statement."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func).split(".")[-1].startswith("assert_")
    return isinstance(node, ast.Assert)


class WithoutAssertions(ast.NodeTransformer):
    """Code that asserts nothing: what is needed from above shall not notice a mistake in the equation's stead."""

    def visit(self, node):
        return ast.copy_location(ast.Pass(), node) if is_assertion(node) else self.generic_visit(node)


# --- the slice ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    """A statement at the top level of a cell; `own`: one of the equation's assertions, or with one inside."""

    node: ast.stmt
    cell: int
    names: Names
    asserts: bool
    equations: tuple[str, ...]  # whose cell it is in
    own: bool = False

    @property
    def acts(self) -> bool:
        """A call for its effect, such as `search.step(loss)`: what it changes, nobody can read off its names."""
        is_call = isinstance(self.node, ast.Expr) and isinstance(self.node.value, ast.Call)
        return is_call and not self.asserts and ast.unparse(self.node.value.func) != "print"


def statements(cells: list[CodeCell]) -> Iterator[Statement]:
    for index, cell in enumerate(cells):
        if not cell.is_exercise:
            for node in cell.tree.body:
                yield Statement(node, index, Names(node), any(map(is_assertion, ast.walk(node))), cell.equations)


def equation_slice(cells: list[CodeCell], label: str) -> list[Statement]:
    """The assertions of an equation's own cells and the statements that they need, in the order of the page.

    The whole of the first code cell is always there. Raises: ValueError if no own cell asserts anything.
    """
    kept = with_needs([replace(each, own=each.asserts and label in each.equations) for each in statements(cells)])
    if not any(each.own for each in kept):
        raise ValueError(f"no cell between {label} and the next numbered equation or heading asserts anything")
    return kept


def all_assertions(cells: list[CodeCell]) -> list[Statement]:
    """Every assertion of a chapter and the statements that they need, in the order of the page."""
    return with_needs([replace(each, own=each.asserts) for each in statements(cells)])


def with_needs(page: list[Statement]) -> list[Statement]:
    """The statements of a page that are `own`, and those that they need."""
    missing = set()
    while True:
        kept = one_walk(page, missing)
        bound = set().union(*(each.names.stores for each in kept))
        later = set().union(*(each.names.later for each in kept)) - bound - missing
        if not later & set().union(*(each.names.stores for each in page)):
            return kept
        missing |= later  # bound between the function that needs it and the call


def one_walk(page: list[Statement], missing: set[str]) -> list[Statement]:
    """One walk up the page, from the last own statement; `missing`: names that are needed from the start."""
    imported = set().union(*(each.names.stores for each in page if isinstance(each.node, ast.Import | ast.ImportFrom)))
    needed, used_cells, kept = set(missing), set(), []
    for each in reversed(page):
        names = each.names
        is_changed = bool(kept) and (names.stores | names.touches - imported) & needed
        if each.own or is_changed or each.cell == 0 or (each.acts and each.cell in used_cells):
            kept.append(each if each.own else without_assertions(each))
            used_cells.add(each.cell)
            needed = (needed - (set() if isinstance(each.node, ast.If) else names.stores)) | names.loads
    return kept[::-1]


def without_assertions(each: Statement) -> Statement:
    return replace(each, node=WithoutAssertions().visit(each.node)) if each.asserts else each
