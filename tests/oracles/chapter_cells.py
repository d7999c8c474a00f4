"""What a chapter's own cells define, for tests of equations whose code is such a cell and no function of the package.

    mean = names_of("07", "eq-mean-shift")["mean"]      of the cell that begins  # [eq-mean-shift]

The names come from the source notebooks/NN_*.py beside these tests, so a wrong formula planted there is noticed.
"""

from pathlib import Path

import jupytext

from tools.equation_labels import own_labels
from tools.python_cells import without_magics

ROOT = Path(__file__).resolve().parents[2]


def names_of(chapter: str, label: str, root: Path = ROOT) -> dict:
    """The names that the cell `# [label]` binds, run after the chapter's first code cell and nothing else.

    Args: chapter: "07".  Raises: ValueError if there is no such chapter, or not one such cell in it.
    """
    sources = list((root / "notebooks").glob(f"{chapter}_*.py"))
    if len(sources) != 1:
        raise ValueError(f"chapter must be the number of one source in notebooks/, {chapter!r} has {len(sources)}")
    text = sources[0].read_text(encoding="utf-8")
    code = [cell.source for cell in jupytext.reads(text, fmt="py:percent").cells if cell.cell_type == "code"]
    cells = [cell for cell in code if label in own_labels(cell)]
    if len(cells) != 1:
        raise ValueError(f"one code cell of {sources[0].name} must begin '# [{label}]', {len(cells)} do")
    namespace = {"__name__": sources[0].stem}
    exec(compile(without_magics(code[0]), f"{sources[0].name}, first code cell", "exec"), namespace)
    before = dict(namespace)
    exec(compile(without_magics(cells[0]), f"{sources[0].name}, cell [{label}]", "exec"), namespace)
    return {name: value for name, value in namespace.items() if name not in before or value is not before[name]}
