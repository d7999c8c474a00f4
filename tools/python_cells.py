"""What the code cells of a chapter use of the package, read as text: by module and name, as the imports have it."""

import ast
import re
from functools import cache


@cache
def parsed(cell: str) -> ast.Module:
    """A cell without its magics; nothing of one that is not Python, which executing the chapter will report."""
    try:
        return ast.parse(without_magics(cell))
    except SyntaxError:
        return ast.Module([], [])


def without_magics(cell: str) -> str:
    return re.sub(r"^[%!].*$", "", cell, flags=re.MULTILINE)


def imports(tree: ast.AST) -> list[tuple[str, str]]:
    """What is imported of the package: the name it gets, and where it is from: ("k", "difflesson.kernels")."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "difflesson":
            found += [(alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias for alias in node.names if alias.name.split(".")[0] == "difflesson"]
            found += [(alias.asname or alias.name, alias.name) for alias in names]
    return found


def names_used(code: list[str]) -> list[frozenset[str]]:
    """For each cell, what the cells after it use of the package: `difflesson.kernels.ddpm` for what is imported,
    `.noised` for an attribute of a value; directly, or in the value of a variable such as
    `truth = kernels.exact(mixture, schedule)`, wherever that stands.
    """
    cells = [parsed(cell) for cell in code]
    imported = {"difflesson": "difflesson"} | dict(pair for cell in cells for pair in imports(cell))

    def dotted(node: ast.expr) -> str | None:
        """`difflesson.kernels.ddpm` for `kernels.ddpm`; None for what does not begin with an import."""
        if isinstance(node, ast.Name):
            return imported.get(node.id)
        base = dotted(node.value) if isinstance(node, ast.Attribute) else None
        return base and f"{base}.{node.attr}"

    def used(tree: ast.AST) -> set[str | None]:
        attributes = {dotted(node) or f".{node.attr}" for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        return attributes | {imported.get(name) for name in loaded(tree)}

    values = {}  # variable -> what any value that it is given uses
    for node in (node for cell in cells for node in ast.walk(cell) if isinstance(node, ast.Assign)):
        uses = used(node.value)
        for target in (part for whole in node.targets for part in ast.walk(whole) if isinstance(part, ast.Name)):
            values.setdefault(target.id, set()).update(uses)
    found, after = [], set()
    for cell in reversed(cells):
        found.append(frozenset(after - {None}))
        after = after.union(used(cell), *(values.get(name, ()) for name in loaded(cell)))
    return found[::-1]


def loaded(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
