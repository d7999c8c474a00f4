"""Assertions that cannot fail: of a constant, of a thing compared with itself, of a function compared with itself.

`python -m tools.notebooks check` runs this over the cells of every chapter, and a test over the tests of the package. A
name that a cell binds once is read as what it is bound to, so `b = a; assert_close(a, b)` is seen as well.
"""

import ast
import copy
import re
from collections.abc import Iterator
from pathlib import Path

from tools.cell_slices import CodeCell, Names, code_cells, is_assertion
from tools.cell_slices import root as root_name
from tools.equation_labels import Place, implemented
from tools.python_cells import imports

COMPARING = ("allclose", "array_equal", "equal", "isclose")
NEVER_NEGATIVE = ("abs", "len", "norm", "square", "std", "var")
COPIES = ("clone", "contiguous", "copy", "detach", "double", "float", "item", "numpy", "tolist")
INLINED = 20  # replacements of names by what they are bound to, at most


def problems(root: Path) -> list[str]:
    """What the chapters' cells assert to no purpose, with file and line. Empty: nothing."""
    functions = implemented(root / "difflesson")
    return [
        f"notebooks/{source.name}:{line}: {what}"
        for source in sorted((root / "notebooks").glob("[0-9][0-9]_*.py"))
        for line, what in chapter_problems(source.read_text(encoding="utf-8"), functions)
    ]


def chapter_problems(text: str, functions: dict[str, list[Place]]) -> list[tuple[int, str]]:
    """Of one chapter's source: line and what is wrong there.  Args: functions: by label, what implements it."""
    cells = [cell for cell in code_cells(text) if not cell.is_exercise]
    imported = dict(imports(ast.Module([cell.tree for cell in cells], [])))
    found = []
    for cell in cells:
        found += idle_assertions(cell.tree.body)
        found += dropped_comparisons(cell.tree.body)
        found += own_witnesses(cell, functions, imported)
    return sorted(found)


# --- what cannot be false -------------------------------------------------------------------------------------


def idle_assertions(body: list[ast.stmt], with_calls: bool = True) -> list[tuple[int, str]]:
    """The assertions among `body` that hold whatever the code computes.

    Args: with_calls: whether `f(x) == f(x)` is one too; a test may ask whether two calls give the same.
    """
    known, found = bindings(body), []
    for node in (node for statement in body for node in ast.walk(statement) if is_assertion(node)):
        where = f"`{shortened(node)}`"
        if isinstance(node, ast.Assert) and cannot_be_false(node.test):
            found.append((node.lineno, f"{where} cannot fail; assert what the sentence above it says"))
        elif any(same(*pair, known, with_calls) for pair in pairs(node)):
            found.append((node.lineno, f"{where} compares a thing with itself; compute one side another way"))
    return found


def cannot_be_false(test: ast.expr) -> bool:
    if isinstance(test, ast.BoolOp):
        return (any if isinstance(test.op, ast.Or) else all)(map(cannot_be_false, test.values))
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, (operator,), (right,) = test.left, test.ops, test.comparators
        if isinstance(operator, ast.GtE) and is_number(right, 0) and last_name(left) in NEVER_NEGATIVE:
            return True
        if isinstance(operator, ast.Lt | ast.LtE) and re.search(r"\binf\b", ast.unparse(right)):
            return True
    if isinstance(test, ast.Tuple | ast.List | ast.Set | ast.Dict | ast.JoinedStr | ast.Lambda):
        return True
    return not any(isinstance(node, ast.Name | ast.BinOp) for node in ast.walk(test))  # arithmetic may be a claim


def is_number(node: ast.expr, value: float) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


def last_name(node: ast.expr) -> str:
    """The name of what is called last: `norm` of `(a - b).norm()`; empty for what is no call."""
    return ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""


def pairs(node: ast.stmt) -> Iterator[tuple[ast.expr, ast.expr]]:
    """What an assertion compares with what: the arguments of a call, the sides of `==`, `<=`, `>=`, of a difference."""
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and (last_name(part) in COMPARING or last_name(part).startswith("assert_")):
            named = {keyword.arg: keyword.value for keyword in part.keywords}
            both = (part.args + [named[name] for name in ("actual", "expected", "input", "other") if name in named])[:2]
            if len(both) == 2:
                yield tuple(both)
        elif isinstance(part, ast.Compare):
            sides = [part.left, *part.comparators]
            for left, operator, right in zip(sides[:-1], part.ops, sides[1:], strict=True):
                if isinstance(operator, ast.Eq | ast.Is | ast.LtE | ast.GtE):
                    yield left, right
        elif isinstance(part, ast.BinOp) and isinstance(part.op, ast.Sub) and isinstance(node, ast.Assert):
            yield part.left, part.right


def bindings(body: list[ast.stmt]) -> dict[str, ast.expr]:
    """The names that `body` binds exactly once, by a plain assignment at its top level, and to what."""
    bound = [name for statement in body for name in (*Names(statement).stores, *Names(statement).touches)]
    return {
        node.targets[0].id: node.value
        for node in body
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
        if bound.count(node.targets[0].id) == 1
    }


class Inlined(ast.NodeTransformer):
    """Names replaced by what they are bound to."""

    def __init__(self, known: dict[str, ast.expr]):
        self.known, self.left = known, INLINED

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Load) and node.id in self.known and self.left:
            self.left -= 1
            return self.visit(copy.deepcopy(self.known[node.id]))
        return node


class WithoutCopies(ast.NodeTransformer):
    """`a.clone()` is `a`."""

    def visit_Call(self, node):
        self.generic_visit(node)
        is_copy = isinstance(node.func, ast.Attribute) and node.func.attr in COPIES and not node.args
        return node.func.value if is_copy else node


def same(left: ast.expr, right: ast.expr, known: dict[str, ast.expr], with_calls: bool) -> bool:
    """Whether two expressions are one and the same, and no constants."""
    left, right = (WithoutCopies().visit(copy.deepcopy(side)) for side in (left, right))
    if not with_calls and any(isinstance(node, ast.Call) for side in (left, right) for node in ast.walk(side)):
        return False
    written = [ast.dump(Inlined(known).visit(copy.deepcopy(side))) for side in (left, right)]
    return written[0] == written[1] and not isinstance(left, ast.Constant)


# --- what compares nothing ------------------------------------------------------------------------------------


def dropped_comparisons(body: list[ast.stmt]) -> list[tuple[int, str]]:
    """Comparisons that nobody asserts, and assertions that nobody calls."""
    found = []
    for node in (node for statement in body for node in ast.walk(statement) if isinstance(node, ast.Expr)):
        if isinstance(node.value, ast.Compare) or last_name(node.value) in COMPARING:
            found.append((node.lineno, f"`{shortened(node)}` compares and drops the answer; put `assert` before it"))
        elif isinstance(node.value, ast.Attribute) and node.value.attr.startswith("assert_"):
            found.append((node.lineno, f"`{shortened(node)}` is not called"))
    return found


# --- who is compared with whom --------------------------------------------------------------------------------


def own_witnesses(cell: CodeCell, functions: dict[str, list[Place]], imported: dict[str, str]) -> list[tuple[int, str]]:
    """Comparisons of which both sides come from the function that implements the equation above the cell."""
    places = [place for label in cell.equations for place in functions.get(label, [])]
    sources, found = definitions(cell.tree.body), []
    for node in (node for statement in cell.tree.body for node in ast.walk(statement) if is_assertion(node)):
        for pair in (pair for pair in pairs(node) if not is_part(*pair) and not is_part(*pair[::-1])):
            used = [used_names(side, sources, imported) for side in pair]
            for place in places:
                owner, _, last = place.name.removeprefix(f"{place.module}.").rpartition(".")
                names = {place.name, f".{last}" if owner else place.name}  # a method is called on any value
                if all(names & side for side in used):
                    what = f"both sides of `{shortened(node)}` come from {place.name}, which is the equation above"
                    found.append((node.lineno, f"{what}; write one side out by hand"))
    return list(dict.fromkeys(found))


def definitions(body: list[ast.stmt]) -> dict[str, list[ast.AST]]:
    """Of each name that `body` binds or changes, at whatever depth: what it is bound to or changed by."""
    found = {}
    for node in (node for statement in body for node in ast.walk(statement)):
        targets, value = [], None
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.NamedExpr):
            targets, value = getattr(node, "targets", None) or [node.target], node.value
        elif isinstance(node, ast.For | ast.comprehension):
            targets, value = [node.target], node.iter
        elif isinstance(node, ast.FunctionDef):
            found.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not is_assertion(node):
            targets, value = [node.value.func], node.value  # found.append(x)
        for target in targets:
            parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
            for name in filter(None, map(root_name, parts)):
                found.setdefault(name, []).append(value)
    return found


def is_part(whole: ast.expr, other: ast.expr) -> bool:
    """`constants` and `constants[:1].expand(5)`: are all of its entries alike?"""
    parts = (node.value for node in ast.walk(other) if isinstance(node, ast.Subscript))
    return any(ast.dump(part) == ast.dump(whole) for part in parts)


def used_names(side: ast.expr, sources: dict[str, list[ast.AST]], imported: dict[str, str]) -> set[str]:
    """What an expression calls, directly or through names of its cell: `difflesson.kernels.ddpm` for what is imported,
    `.noised` for a method of a value."""
    waiting, seen, found = [side], set(), set()
    while waiting:
        for node in ast.walk(waiting.pop()):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                first, _, rest = ast.unparse(node.func).partition(".")
                found |= {f"{imported[first]}.{rest}".rstrip(".")} if first in imported else set()
                found |= {f".{node.func.attr}"} if isinstance(node.func, ast.Attribute) else set()
            if isinstance(node, ast.Name) and node.id not in seen:
                seen.add(node.id)
                waiting += sources.get(node.id, [])
    return found


def shortened(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 80 else text[:77] + "..."
