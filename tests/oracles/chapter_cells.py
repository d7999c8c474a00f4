"""What a chapter's own cells define, for tests of equations whose code is such a cell and no function of the package,
and of sentences that say what the page set up.

    mean = names_of("07", "eq-mean-shift")["mean"]      of the cell that begins  # [eq-mean-shift]
    scales = assigned("00", "scales")["scales"]         of the statement  scales = ...

The names come from the source notebooks/NN_*.py beside these tests, so a wrong formula planted there is noticed.
"""

import ast
from pathlib import Path

import jupytext

from tools.equation_labels import own_labels
from tools.python_cells import without_magics

ROOT = Path(__file__).resolve().parents[2]


def names_of(chapter: str, label: str, root: Path = ROOT) -> dict:
    """The names that the cell `# [label]` binds, run after the chapter's first code cell and nothing else.

    Args: chapter: "07".  Raises: ValueError if there is no such chapter, or not one such cell in it.
    """
    source, code = code_of(chapter, root)
    cells = [cell for cell in code if label in own_labels(cell)]
    if len(cells) != 1:
        raise ValueError(f"one code cell of {source.name} must begin '# [{label}]', {len(cells)} do")
    namespace = after_first_cell(source, code)
    before = dict(namespace)
    exec(compile(without_magics(cells[0]), f"{source.name}, cell [{label}]", "exec"), namespace)
    return {name: value for name, value in namespace.items() if name not in before or value is not before[name]}


def assigned(chapter: str, *names: str, root: Path = ROOT) -> dict:
    """The values that a chapter's statements first assign to `names`: run in the order of the page after its first code
    cell, and nothing else of it. A statement that uses another name of the page needs that name in `names` as well.

    Raises: ValueError if the chapter assigns no such name outside loops, functions and `with`.
    """
    source, code = code_of(chapter, root)
    namespace, found = after_first_cell(source, code), {}
    for statement in (node for cell in code[1:] for node in ast.parse(without_magics(cell)).body):
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        given = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        if new := (given & {*names}) - found.keys():
            exec(compile(ast.Module([statement], []), f"{source.name}, {', '.join(sorted(new))} =", "exec"), namespace)
            found |= {name: namespace[name] for name in new}
    if missing := {*names} - found.keys():
        raise ValueError(f"names must be assigned in {source.name}, {', '.join(sorted(missing))} is not")
    return found


def code_of(chapter: str, root: Path = ROOT) -> tuple[Path, list[str]]:
    """A chapter's source, and the text of its code cells."""
    sources = list((root / "notebooks").glob(f"{chapter}_*.py"))
    if len(sources) != 1:
        raise ValueError(f"chapter must be the number of one source in notebooks/, {chapter!r} has {len(sources)}")
    cells = jupytext.reads(sources[0].read_text(encoding="utf-8"), fmt="py:percent").cells
    return sources[0], [cell.source for cell in cells if cell.cell_type == "code"]


def after_first_cell(source: Path, code: list[str]) -> dict:
    namespace = {"__name__": source.stem}
    exec(compile(without_magics(code[0]), f"{source.name}, first code cell", "exec"), namespace)
    return namespace
