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


def names_used(code: list[str], index: int) -> frozenset[str]:
    """What the cells after `index` use of the package: `difflesson.kernels.ddpm` for what is imported, `.noised` for an
    attribute of a value; directly, or in the value of a variable such as `truth = kernels.exact(mixture, schedule)`.
    """
    cells = [parsed(cell) for cell in code]
    everything, after = ast.Module(cells, []), ast.Module(cells[index + 1 :], [])
    imported = {"difflesson": "difflesson"} | dict(imports(everything))
    values = {}
    for node in ast.walk(everything):
        if isinstance(node, ast.Assign):
            for target in (part for whole in node.targets for part in ast.walk(whole) if isinstance(part, ast.Name)):
                values.setdefault(target.id, []).append(node.value)

    def dotted(node: ast.expr) -> str | None:
        """`difflesson.kernels.ddpm` for `kernels.ddpm`; None for what does not begin with an import."""
        if isinstance(node, ast.Name):
            return imported.get(node.id)
        base = dotted(node.value) if isinstance(node, ast.Attribute) else None
        return base and f"{base}.{node.attr}"

    loaded = {node.id for node in ast.walk(after) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    found = set()
    for whole in [after, *(value for name in loaded for value in values.get(name, []))]:
        for node in ast.walk(whole):
            if isinstance(node, ast.Attribute):
                found.add(dotted(node) or f".{node.attr}")
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found.add(dotted(node))
    return frozenset(found - {None})
