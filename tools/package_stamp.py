"""What a chapter's numbers depend on besides its source: the package's modules it imports, those that these import, and
the shipped networks. A built notebook carries a stamp, a short hash of each; what differs later has changed since.

A module is hashed without its comments, docstrings and blank lines: explaining better makes no chapter stale, and
neither does a new version number. Everything else counts, wrapping a line included. (A hash of the syntax tree would
forgive that, and would differ from one version of Python to the next.)
"""

import ast
import hashlib
import io
import tokenize
from functools import cache
from pathlib import Path

from tools.python_cells import imports, parsed

LOADS_WEIGHTS = "difflesson.digits.checkpoints"
WEIGHTS = "difflesson/digits/weights"


def stamp(code: list[str], root: Path) -> dict[str, str]:
    """Short hashes of what the code cells depend on: `difflesson.kernels`, and files of weights.

    Args: code: the code cells;  root: of the repository.  Where it has no package, the stamp is empty.
    """
    texts = {name: file_of(name, root).read_text(encoding="utf-8") for name in modules(code, root)}
    found = {name: short_hash(meaning(text).encode()) for name, text in texts.items()}
    if LOADS_WEIGHTS in texts:
        strings = {text for source in [*code, *texts.values()] for text in string_constants(source)}
        for path in sorted((root / WEIGHTS).iterdir()):  # the card beside a network, too
            if path.stem in strings:
                found[f"{WEIGHTS}/{path.name}"] = short_hash(path.read_bytes())
    return found


def changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """What one of two stamps has and the other has not, or otherwise."""
    return sorted(name for name in old | new if old.get(name) != new.get(name))


def modules(code: list[str], root: Path) -> list[str]:
    """The package's modules that the cells import, and all that these import in turn, by name."""
    found, todo = set(), list(code)
    while todo:
        for name in imported(todo.pop()):
            parts = name.split(".")
            for depth in range(2, len(parts) + 1):  # its packages run, too; the last part may be an object
                module = ".".join(parts[:depth])
                if module not in found and (file := file_of(module, root)):
                    found.add(module)
                    todo.append(file.read_text(encoding="utf-8"))
    return sorted(found)


@cache
def imported(text: str) -> list[str]:
    """What a cell or a module imports of the package. Every chapter asks this of the same modules."""
    return [name for _, name in imports(parsed(text))]


def file_of(module: str, root: Path) -> Path | None:
    """Where a module stands, None if there is none of that name."""
    base = root.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def meaning(text: str) -> str:
    """A module's text without comments, docstrings and blank lines."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            is_docstring = ast.get_docstring(node, clean=False) is not None
            if is_docstring and not text.splitlines()[first.lineno - 1][: first.col_offset].strip():
                lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def string_constants(source: str) -> set[str]:
    constants = (node.value for node in ast.walk(parsed(source)) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
