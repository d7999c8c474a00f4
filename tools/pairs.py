"""A chapter's source and its notebook: what the source gives, and what can be wrong with the built one.

The notebook is the source with two additions. Every solved exercise becomes a stub and a folded solution
(tools/exercise_cells.py), and one cell before the first code cell is for where the package is missing, as on Colab.
"""

import ast
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import jupytext
import nbformat
import typer
from nbformat import NotebookNode

from tools import package_stamp
from tools.address import repository
from tools.equation_labels import number_equations
from tools.exercise_cells import SourceError, for_readers
from tools.figures import figure_problems
from tools.python_cells import parsed

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
PNG_LIMIT = 60_000  # bytes
WHERE_MISSING = """\
# Only for where this course is not installed, such as Colab; elsewhere this cell does nothing.
from importlib.util import find_spec

if find_spec("difflesson") is None:
    """
INSTALL = "%pip install -q git+{address}"
EXPLAIN = """\
raise ModuleNotFoundError(
        "This notebook needs the package that comes with the course: in the folder with README.md and pyproject.toml,"
        " run  pip install -c constraints.txt -e .  Do not install a package of this name from anywhere else."
    )"""
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "file_extension": ".py", "pygments_lexer": "ipython3"},
}


Names = Annotated[list[str] | None, typer.Argument(help="How the chapters' names start: 00. Default: all.")]


def chapters(names: list[str], folder: Path) -> list[Path]:
    """The sources whose names start with one of `names`; all of them when none is given."""
    sources = sorted(folder.glob("[0-9][0-9]_*.py"))
    for name in names:
        if not any(source.stem.startswith(name) for source in sources):
            known = ", ".join(source.stem for source in sources) or "none"
            raise typer.BadParameter(f"no chapter starts with {name!r}; chapters: {known}")
    return [source for source in sources if not names or source.stem.startswith(tuple(names))]


# --- source -> notebook -------------------------------------------------------------------------------------


def source_hash(source: Path) -> str:
    """SHA-256 of the source's text, whatever line endings the checkout has."""
    return hashlib.sha256(source.read_text(encoding="utf-8").encode()).hexdigest()


def where_missing(address: str) -> str:
    """The cell that installs the package from this address, or without one says where to get it."""
    return WHERE_MISSING + (INSTALL.format(address=address) if address else EXPLAIN)


def cells_of(source: Path) -> list[NotebookNode]:
    """The cells of `source` (percent format) as its author wrote them."""
    return jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent").cells


def notebook_of(source: Path) -> NotebookNode:
    """The notebook that `source` describes, not executed.  Raises: SourceError if an exercise is incomplete."""
    cells = for_readers(cells_of(source))
    number_equations(cells, source.name[:2])
    first_code = next((index for index, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
    aside = {"tags": ["remove-cell"], "jupyter": {"source_hidden": True}}  # off the web page, folded in JupyterLab
    cells.insert(first_code, nbformat.v4.new_code_cell(where_missing(repository(ROOT)), metadata=aside))
    seen = Counter()
    for cell in cells:
        # An id depends on the text and how often that text came before: inserting a cell changes no other id.
        content = f"{cell.cell_type}\n{cell.source}"
        cell.id = hashlib.sha256(f"{seen[content]}\n{content}".encode()).hexdigest()[:12]
        seen[content] += 1
        cell.metadata = {key: cell.metadata[key] for key in ("tags", "jupyter") if cell.metadata.get(key)}
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    package = package_stamp.stamp(code, source.parent.parent)
    stamp = {"difflesson": {"source_sha256": source_hash(source), "package": package}}
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA | stamp)


# --- what can be wrong with a pair --------------------------------------------------------------------------


def drift(expected: NotebookNode, found: NotebookNode) -> list[str]:
    """Where the input cells differ from the source: the first such cell."""
    want, have = (
        [
            {"type": cell.cell_type, "text": cell.source, "tags": cell.metadata.get("tags", [])}
            for cell in notebook.cells
        ]
        for notebook in (expected, found)
    )
    for index, (a, b) in enumerate(zip(want, have, strict=False)):
        for part in a:
            if a[part] != b[part]:
                return [f"cell {index}: {part} differs from the source"]
    return [] if len(want) == len(have) else [f"{len(have)} cells, the source has {len(want)}"]


def staleness(expected: NotebookNode, found: NotebookNode, source: Path) -> list[str]:
    """Why a notebook is not the one that its source and the package give now: one of the two changed, or itself."""
    want, have = expected.metadata["difflesson"], found.metadata.get("difflesson", {})
    differs = drift(expected, found)
    messages = []
    if have.get("source_sha256") != want["source_sha256"]:
        where = f" ({differs[0]})" if differs else ""
        messages.append(f"stale: built from another version of the source{where}")
    elif differs:
        messages.append(
            f"{differs[0]}, which has not changed: the .ipynb was edited by hand, or built by another version of the "
            f"tools. Change {source.name}, then build; what was edited here will be lost"
        )
    if "package" not in have:
        messages.append("stale: does not say with which package it was built")
    elif changed := package_stamp.changed(have["package"], want["package"]):
        messages.append(f"stale: built with another version of {', '.join(changed)}")
    return messages


def output_problems(output: NotebookNode, tags: list[str]) -> list[str]:
    data = output.get("data", {})
    kinds = ("text/plain", "text/html", "text/markdown")
    text = output.get("text", "") + "".join(data.get(kind, "") for kind in kinds)
    png = len(data.get("image/png", "")) * 3 // 4
    described = output.get("metadata", {}).get("image/png", {}).get("alt")
    is_error = output.output_type == "error"
    checks = {
        f"error output: {output.get('ename')}": is_error and "raises-exception" not in tags,
        "writes to stderr": output.get("name") == "stderr",
        "leaves a widget (in chapters: from tqdm import tqdm, with disable=None)": WIDGET in data,
        "shows a memory address, which changes from run to run": re.search(r"\b0x[0-9a-f]{6,}", text),
        "shows a path of this machine": str(ROOT) in text or sys.prefix in text,
        "a picture without alt text (in chapters: end the cell with plotting.show)": png and not described,
        f"a picture of {png // 1000} kB; the limit is {PNG_LIMIT // 1000} kB": png > PNG_LIMIT,
    }
    return [message for message, is_wrong in checks.items() if is_wrong]


def leaves_output(code: str) -> bool:
    """Whether a cell must leave something: it prints on its first level, checks an exercise, or ends in a value."""
    *_, last = body = parsed(code).body or [None]
    printing = ("print", "exercises.check", "plotting.show")
    calls = [node.value for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    is_value = isinstance(last, ast.Expr) and isinstance(last.value, ast.Name) and not code.rstrip().endswith(";")
    return is_value or any(ast.unparse(call.func) in printing for call in calls)


def cell_problems(cell: NotebookNode) -> list[str]:
    if cell.cell_type != "code" or not cell.source.strip():
        return []
    tags = cell.metadata.get("tags", [])
    found = [message for output in cell.outputs for message in output_problems(output, tags)]
    if not cell.outputs and "raises-exception" not in tags and leaves_output(cell.source):
        found.append("has no output; build the chapter again")
    if cell.get("execution_count") is None:
        found.append("never executed, so the tests would not compare it")
    if "raises-exception" in tags and all(output.output_type != "error" for output in cell.outputs):
        found.append("tagged raises-exception, raised nothing")
    return found


def problems(source: Path) -> list[str]:
    """All that keeps the committed notebook from being what its source gives. Empty: the pair is in order."""
    target = source.with_suffix(".ipynb")
    if not target.exists():
        return ["not built yet"]
    try:
        notebook = nbformat.read(target, as_version=4)
    except ValueError as error:
        return [f"not a notebook: {error}"]
    try:
        expected = notebook_of(source)
    except SourceError as error:
        return [str(error)]
    found = staleness(expected, notebook, source)
    if "widgets" in notebook.metadata:
        found.append("carries widget state")
    for index, cell in enumerate(notebook.cells):
        found += [f"cell {index}: {message}" for message in cell_problems(cell)]
    return found + figure_problems(notebook, source.parent.parent / "figures")
